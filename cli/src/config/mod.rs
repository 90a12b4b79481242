//! What `serve` is to do, from a file that is checked as a whole before anything listens.

mod check;
mod rules;
mod table;
mod targets;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use toml::de::DeTable;
use virbistream::io::{Address, Permissions};
use virbistream::proto::{Config, MemoryBudget};

use crate::listen::Listen;
use crate::pki::Pki;
use crate::policy::{Offered, Rule};
use crate::values::{Owner, THREADS_MAX, Upstream, parse_bandwidth, parse_metrics, parse_mode, parse_window};
use rules::ReadRule;
use table::{Source, Table};
use targets::Targets;

use check::Found;

pub(crate) use table::Mistake;

/// Of the UNIX sockets of a front, where nothing else is said: libvirtd takes whoever comes through for the front's own user.
pub(crate) const FRONT_MODE: u32 = 0o600;

const YEAR: u64 = 365 * 24 * 3600;

/// All that `serve` needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: Vec<Listen>,
    pub(crate) permissions: Permissions,
    pub(crate) libvirt: Option<PathBuf>,
    pub(crate) control: Option<PathBuf>,
    pub(crate) metrics: Option<Address>,
    pub(crate) pki: Pki,
    pub(crate) threads: NonZeroUsize,
    pub(crate) max_sessions: usize,
    pub(crate) session: Config,
    pub(crate) bandwidth: Option<u64>,
    pub(crate) drain: Duration,
    pub(crate) offered: Offered,
    pub(crate) migrations: Option<MigrationSettings>,
    pub(crate) rules: Vec<Rule>,
}

/// Where the directories of migrations are made, and their mode and owner.
#[derive(Debug)]
pub(crate) struct MigrationSettings {
    pub(crate) path: PathBuf,
    pub(crate) permissions: Permissions,
}

impl Settings {
    /// What a file says. Where it listens for TLS, `try_pki` says what is wrong with the keys.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn read(text: &str, try_pki: fn(&Pki) -> Result<(), String>) -> Result<Self, Vec<Mistake>> {
        let source = Source::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            source.mistake(error.span().map_or(0, |span| span.start), error.message());
        }
        if !errors.is_empty() {
            return Err(source.into_mistakes());
        }
        let settings = Self::of_table(Table::new(&source, table.get_ref(), 0), try_pki);
        let mistakes = source.into_mistakes();
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }

    fn of_table(mut table: Table<'_, '_>, try_pki: fn(&Pki) -> Result<(), String>) -> Self {
        let owner: Owner = table.parsed("socket_owner").unwrap_or_default();
        let mode = table.parsed_by("socket_mode", parse_mode);
        let listen = table.list("listen", str::parse::<Listen>);
        let libvirt = table.parsed("libvirt").map(|Upstream(path)| path);
        let Targets { offered, paths, whole } = Targets::read(table.tables("target"));
        let rules: Vec<_> = table.tables("allow").into_iter().filter_map(ReadRule::read).collect();
        let settings = Self {
            listen: listen.iter().map(|(_, listen)| listen.clone()).collect(),
            permissions: owner.permissions(mode.or(libvirt.is_some().then_some(FRONT_MODE))),
            libvirt,
            control: table.parsed_by("control", targets::socket),
            metrics: table.parsed_by("metrics", parse_metrics),
            pki: Pki { directory: table.text("pki").map(PathBuf::from) },
            threads: threads(
                table
                    .number("threads", 1..u64::from(THREADS_MAX) + 1)
                    .and_then(|number| NonZeroUsize::new(number as usize)),
            ),
            max_sessions: table.number("max_sessions", 1..1 << 32).map_or(1024, |number| number as usize),
            bandwidth: table.parsed_by("bandwidth", parse_bandwidth).map(|ByteSize(bytes)| bytes),
            drain: Duration::from_secs(table.number("drain", 0..YEAR + 1).unwrap_or(30)),
            session: session(&mut table),
            offered,
            migrations: table.table("migration").and_then(base),
            rules: rules.iter().map(|read| read.rule.clone()).collect(),
        };
        let found = Found { table: &table, listen: &listen, paths: &paths, targets_are_whole: whole, rules: &rules };
        found.check(&settings, try_pki);
        table.end();
        settings
    }
}

fn session(table: &mut Table<'_, '_>) -> Config {
    let default = Config::default();
    let window = table.parsed_by("window", parse_window).map_or(default.window, |ByteSize(bytes)| bytes);
    let window_max = table.parsed_by("window_max", parse_window).map_or(default.window_max, |ByteSize(bytes)| bytes);
    let memory = table.parsed("memory").map(|ByteSize(bytes)| MemoryBudget::new(bytes));
    let session_memory = table.parsed("session_memory").map(|ByteSize(bytes)| bytes);
    let max_streams = table.number("max_streams", 1..1 << 32).map(|number| number as u32);
    Config {
        window,
        window_max,
        memory_budget: memory.unwrap_or_else(|| default.memory_budget.clone()),
        session_memory: session_memory.unwrap_or(default.session_memory),
        max_streams: max_streams.unwrap_or(default.max_streams),
        ..default
    }
}

fn base(mut table: Table<'_, '_>) -> Option<MigrationSettings> {
    let path = table.text("base");
    if path.is_none_or(|path| !path.starts_with('/')) {
        table.mistake("[migration] has a `base`, a directory whose path begins with /");
    }
    let owner: Owner = table.parsed("owner").unwrap_or_default();
    let mode = table.parsed_by("mode", parse_mode);
    table.end();
    Some(MigrationSettings { path: path?.into(), permissions: owner.permissions(mode) })
}

pub(crate) fn threads(asked: Option<NonZeroUsize>) -> NonZeroUsize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

/// Whether who is not on this host may reach it, and nothing proves who that is.
pub(crate) fn is_open(address: &Address) -> bool {
    match address {
        Address::Tcp { host, .. } => {
            let ip = host.parse::<IpAddr>().map(|ip| ip.to_canonical().is_loopback());
            !ip.unwrap_or(host == "localhost")
        }
        Address::Tls { .. } | Address::Unix(_) => false,
    }
}

pub(crate) fn open(address: &Address) -> String {
    format!("{address} can be reached from other hosts, and nothing proves who connects there or hides what passes")
}
