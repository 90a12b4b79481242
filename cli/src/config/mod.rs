//! What `serve` is to do, from a file that is checked as a whole before anything listens.

mod table;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml::de::DeTable;
use virbistream::io::{Address, Permissions};
use virbistream::proto::{Config, MemoryBudget};
use virbistream::wire::{is_valid_target, kind};

use crate::listen::{Kind, Listen};
use crate::pki::Pki;
use crate::policy::{Offered, Pattern, Rights, Rule, Who, glob};
use crate::values::{Owner, THREADS_MAX, Upstream, parse_bandwidth, parse_metrics, parse_mode, parse_window};
use table::{Source, Table};

pub(crate) use table::Mistake;

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
    /// What a file says.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn read(text: &str) -> Result<Self, Vec<Mistake>> {
        let source = Source::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            source.mistake(error.span().map_or(0, |span| span.start), error.message());
        }
        if !errors.is_empty() {
            return Err(source.into_mistakes());
        }
        let settings = Self::of_table(Table::new(&source, table.get_ref(), 0));
        let mistakes = source.into_mistakes();
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }

    fn of_table(mut table: Table<'_, '_>) -> Self {
        let owner: Owner = table.parsed("socket_owner").unwrap_or_default();
        let mode = table.parsed_by("socket_mode", parse_mode);
        let (targets, allows) = (table.tables("target"), table.tables("allow"));
        let settings = Self {
            listen: table.list("listen", str::parse::<Listen>),
            permissions: owner.permissions(mode),
            libvirt: table.parsed("libvirt").map(|Upstream(path)| path),
            control: table.text("control").map(PathBuf::from),
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
            offered: offered(targets),
            migrations: table.table("migration").and_then(base),
            rules: allows.into_iter().filter_map(rule).collect(),
        };
        settings.check(&table);
        table.end();
        settings
    }

    /// What no key can tell by itself.
    fn check(&self, table: &Table<'_, '_>) {
        if self.listen.is_empty() && !table.has("listen") {
            table.mistake("`listen` is missing: nobody could connect");
        }
        if self.libvirt.is_none() && !table.has("target") {
            table.mistake("nothing is offered: neither [[target]] nor `libvirt`");
        }
        if !table.has("allow") {
            table.mistake("nobody is let in without a rule: [[allow]] is missing");
        }
        if self.session.window > self.session.memory_budget.bytes() {
            table.mistake_at("memory", "`memory` has no room for one `window`");
        }
        let anyone = self.rules.iter().any(|rule| rule.who == Who::Anyone);
        if let Some(address) =
            self.listen.iter().filter_map(Listen::address).find(|address| is_open(address)).filter(|_| !anyone)
        {
            table.mistake_at("listen", format!("{}, and no [[allow]] is for `anyone`", open(address)));
        }
        let is_tls = self.listen.iter().any(|listen| listen.kind() == Kind::Tls);
        if self.pki.directory.is_some() && !is_tls {
            table.mistake_at("pki", "`pki` goes with a tls:// address");
        }
        let may_migrate = self.rules.iter().any(|rule| rule.rights.migrate);
        if self.migrations.is_none() && may_migrate && !table.has("migration") {
            table.mistake_at("allow", "a rule lets somebody migrate, and [migration] is missing");
        }
        if self.libvirt.is_none() && self.migrations.is_some() {
            table.mistake_at("migration", "a migration needs `libvirt`, which says where libvirtd is");
        }
        if self.libvirt.is_none() && self.rules.iter().any(|rule| rule.rights.daemon) {
            table.mistake_at("allow", "a rule lets somebody reach libvirtd, and `libvirt` says not where it is");
        }
    }
}

fn session(table: &mut Table<'_, '_>) -> Config {
    let default = Config::default();
    let window = table.parsed_by("window", parse_window).map_or(default.window, |ByteSize(bytes)| bytes);
    let window_max = table.parsed_by("window_max", parse_window).map_or(default.window_max, |ByteSize(bytes)| bytes);
    let memory = table.parsed("memory").map(|ByteSize(bytes)| MemoryBudget::new(bytes));
    let max_streams = table.number("max_streams", 1..1 << 32).map(|number| number as u32);
    Config {
        window,
        window_max,
        memory_budget: memory.unwrap_or_else(|| default.memory_budget.clone()),
        max_streams: max_streams.unwrap_or(default.max_streams),
        ..default
    }
}

fn offered(tables: Vec<Table<'_, '_>>) -> Offered {
    let mut offered = Offered::default();
    for mut table in tables {
        let (name, path, below) = (table.text("name"), table.text("path"), table.text("below"));
        match (name, path, below) {
            (Some(name), Some(path), Some(below)) => match Pattern::new(name, Path::new(below), path) {
                Ok(pattern) => offered.insert_pattern(pattern),
                Err(sentence) => table.mistake(sentence),
            },
            (Some(name), Some(path), None) => {
                if !is_valid_target(name) || name.contains('*') {
                    table.mistake_at(
                        "name",
                        "a target's name has 1 to 255 bytes, no control characters, and `*` only with `below`",
                    );
                } else if !path.starts_with('/') {
                    table.mistake_at("path", "without `below` the path begins with /");
                } else if !offered.insert(name, Path::new(path)) {
                    table.mistake_at("name", format!("two targets are named `{name}`"));
                }
            }
            _ if table.has("name") && table.has("path") => {}
            _ => table.mistake("a [[target]] has `name` and `path`"),
        }
        table.end();
    }
    offered
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

fn rule(mut table: Table<'_, '_>) -> Option<Rule> {
    let who = who(&mut table);
    let kinds = table.has("kinds").then(|| table.list("kinds", kind_number));
    let rights = Rights {
        targets: table.list("targets", |text| Ok::<_, String>(glob(text))),
        kinds,
        daemon: table.flag("libvirt").unwrap_or(false),
        migrate: table.flag("migrate").unwrap_or(false),
        sessions: table.number("sessions", 0..1 << 32).map(|number| number as u32),
        streams: table.number("streams", 0..1 << 32).map(|number| number as u32),
        bandwidth: table.parsed_by("bandwidth", parse_bandwidth).map(|ByteSize(bytes)| bytes),
    };
    if !table.has("targets") && !rights.daemon && !rights.migrate {
        table.mistake("a rule that allows nothing: say `targets`, `libvirt = true` or `migrate = true`");
    }
    table.end();
    Some(Rule { who: who?, rights })
}

fn who(table: &mut Table<'_, '_>) -> Option<Who> {
    let named = ["dn", "name", "uid", "local", "anyone"].into_iter().filter(|key| table.has(key)).count();
    let dn = table.text("dn").map(|dn| Who::Dn(glob(dn)));
    let name = table.text("name").map(|name| Who::Name(glob(name)));
    let uid = table.number("uid", 0..u64::from(u32::MAX)).map(|uid| Who::Uid(uid as u32));
    let mut by_flag = |key, who| match table.flag(key) {
        Some(false) => {
            table.mistake_at(key, format!("`{key}` can only be true: leave it out"));
            None
        }
        Some(true) => Some(who),
        None => None,
    };
    let (local, anyone) = (by_flag("local", Who::Local), by_flag("anyone", Who::Anyone));
    if named != 1 {
        table.mistake("a rule is for one of `dn`, `name`, `uid`, `local = true` and `anyone = true`");
        return None;
    }
    dn.or(name).or(uid).or(local).or(anyone)
}

fn kind_number(text: &str) -> Result<u32, String> {
    match text {
        "bytes" => Ok(kind::BYTES),
        "control" => Ok(kind::CONTROL),
        "memory" => Ok(kind::MEMORY),
        "disk" => Ok(kind::DISK),
        _ => Err(format!("`{text}` is none of bytes, control, memory and disk")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed of the fuzzer's, too.
    const WHOLE: &str = include_str!("../../../fuzz/seeds/config/whole.toml");

    #[test]
    fn a_file_says_all_that_serve_needs() {
        let settings = Settings::read(WHOLE).unwrap();
        assert_eq!(settings.listen.len(), 2);
        assert_eq!((settings.session.window, settings.session.max_streams), (1 << 20, 100));
        assert_eq!(settings.session.memory_budget.bytes(), 64 << 20);
        assert_eq!((settings.bandwidth, settings.drain), (Some(1 << 30), Duration::from_secs(5)));
        assert_eq!((settings.permissions.mode, settings.threads.get()), (Some(0o660), 2));
        let [first, second, _] = &settings.rules[..] else { panic!("{:?}", settings.rules) };
        assert_eq!((&first.who, first.rights.sessions), (&Who::Uid(107), Some(4)));
        assert_eq!(first.rights.kinds, Some(vec![kind::DISK, kind::MEMORY]));
        assert_eq!((&second.who, second.rights.daemon), (&Who::Local, true));
    }

    /// Line 1 is the first of the text.
    fn mistakes(text: &str) -> Vec<(usize, String)> {
        Settings::read(text).unwrap_err().into_iter().map(|mistake| (mistake.line, mistake.sentence)).collect()
    }

    #[test]
    fn the_file_in_the_guide_is_one() {
        let guide = include_str!("../../../docs/migration.md");
        let file = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        Settings::read(&file.replace("/run/virbistream/vms", "/")).unwrap();
    }

    #[test]
    fn the_fuzzers_seeds_are_read_or_have_a_mistake() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/config");
        let files: Vec<_> = seeds.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 3, "{} has no seeds", seeds.display());
        for file in files {
            let read = Settings::read(&std::fs::read_to_string(&file).unwrap());
            assert!(read.err().is_none_or(|mistakes| !mistakes.is_empty()), "{}", file.display());
        }
    }

    #[test]
    fn a_file_cut_anywhere_or_with_any_byte_changed_is_read_or_has_a_mistake() {
        for at in (0..WHOLE.len()).filter(|at| WHOLE.is_char_boundary(*at)) {
            let _ = Settings::read(&WHOLE[..at]);
            for byte in ['\0', '"', '[', '-', '9', 'ä', '\n'] {
                let changed = format!("{}{byte}{}", &WHOLE[..at], WHOLE.get(at + 1..).unwrap_or_default());
                assert!(Settings::read(&changed).err().is_none_or(|mistakes| !mistakes.is_empty()));
            }
        }
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let found = mistakes(
            r#"listen = ["tcp://0.0.0.0:1", "what"]
windows = 3
window = "1"
[[target]]
name = "a"
[[target]]
name = "vm-*"
below = "/nowhere"
path = "*/x"
[[allow]]
uid = 1
local = true
targets = "a"
kinds = ["tape"]
[[allow]]
anyone = false
sessions = -1
"#,
        );
        let expected = [
            (1, "write"),
            (1, "can be reached from other hosts"),
            (2, "`windows` is not known"),
            (3, "at least 4096 bytes"),
            (4, "has `name` and `path`"),
            (6, "/nowhere"),
            (10, "a rule is for one of"),
            (13, "`targets` is a list"),
            (14, "tape"),
            (15, "a rule that allows nothing"),
            (16, "can only be true"),
            (17, "`sessions` is a number"),
        ];
        for (line, words) in expected {
            assert!(
                found.iter().any(|(at, said)| *at == line && said.contains(words)),
                "{line}: {words}, in {found:#?}"
            );
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line_and_nothing_else() {
        assert_eq!(
            mistakes("listen = [\"unix:/a\"]\nfoo bar\n[[allow]\n").iter().map(|(line, _)| *line).min(),
            Some(2)
        );
    }

    #[test]
    fn nothing_is_open_by_leaving_something_out() {
        let found = mistakes("");
        for words in ["`listen` is missing", "nothing is offered", "nobody is let in"] {
            assert!(found.iter().any(|(line, said)| *line == 1 && said.contains(words)), "{words}, in {found:?}");
        }
        let without_rule = WHOLE.split("[[allow]]").next().unwrap();
        assert!(mistakes(without_rule)[0].1.contains("nobody is let in"));
    }
}
