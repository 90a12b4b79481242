//! `virbistream serve`: offers targets.

use std::path::Path;
use std::sync::Arc;

use virbistream::io::{Address, LinkLimits, Listener, Permissions, SessionOptions, TlsServer};

use crate::args::ServeArgs;
use crate::config::{FRONT_MODE, MigrationSettings, Mistake, Settings, is_open, open, threads};
use crate::events::Loudness;
use crate::inherited::Inherited;
use crate::listen::{Kind, Listen};
use crate::notify;
use crate::pki::Pki;
use crate::policy::{Migrations, Offered, Policy, Rights, Rule, Who, glob};
use crate::running::{Error, News, Running, bind, say_ready};

/// Links without HELLO that there may be at least, of which one address has a quarter.
const HALF_OPEN_LEAST: usize = 64;

/// Links that any of those may make in a second.
const PER_SECOND_EACH: u32 = 100;

pub(crate) fn run(args: &ServeArgs, inherited: Inherited) -> Result<(), Error> {
    let settings = match &args.config {
        Some(path) => read(path)?,
        None => settings_of(args).map_err(Error::Config)?,
    };
    serve(settings, inherited)
}

/// What the command line says. Who reaches a UNIX socket or the loopback may have what is offered; others only by
/// `--allow-dn` or `--insecure-tcp`.
fn settings_of(args: &ServeArgs) -> Result<Settings, String> {
    let mut offered = Offered::default();
    for target in &args.target {
        if !offered.insert(&target.name, &target.path) {
            return Err(format!("two targets are named `{}`", target.name));
        }
    }
    let (targets, daemon, migrate) = (vec![glob("*")], args.libvirt.is_some(), args.migrations.is_some());
    let rights = Rights { targets, daemon, migrate, ..Rights::default() };
    let by_name = args.allow_dn.iter().map(|dn| Who::Dn(glob(dn)));
    let unproven = args.insecure_tcp.then_some(Who::Unproven);
    let rules = by_name.chain([Who::Local]).chain(unproven).map(|who| Rule { who, rights: rights.clone() }).collect();
    if let Some(address) =
        args.listen.iter().filter_map(Listen::address).find(|address| is_open(address)).filter(|_| !args.insecure_tcp)
    {
        return Err(format!("{}; say --insecure-tcp if everybody who reaches it may have the targets", open(address)));
    }
    let mut permissions = args.socket.permissions();
    if args.libvirt.is_some() {
        permissions.mode = Some(permissions.mode.unwrap_or(FRONT_MODE));
    }
    let owner = args.migrations_owner.unwrap_or_default();
    Ok(Settings {
        listen: args.listen.clone(),
        permissions,
        libvirt: args.libvirt.as_ref().map(|libvirt| libvirt.0.clone()),
        control: args.control.clone(),
        metrics: args.metrics.clone(),
        pki: args.pki.clone(),
        threads: threads(args.threads),
        max_sessions: args.max_sessions as usize,
        session: args.session.config(),
        bandwidth: args.session.bandwidth(),
        drain: args.session.drain(),
        offered,
        migrations: args
            .migrations
            .clone()
            .map(|path| MigrationSettings { path, permissions: owner.permissions(None) }),
        rules,
    })
}

fn read(path: &Path) -> Result<Settings, Error> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Error::Config(format!("{}: {error}", path.display())))?;
    let try_pki = |pki: &Pki| pki.server().map(drop).map_err(|error| error.to_string());
    Settings::read(&text, try_pki).map_err(|mistakes| Error::Config(mistakes_text(path, &mistakes)))
}

/// A line for each.
fn mistakes_text(path: &Path, mistakes: &[Mistake]) -> String {
    let line = |mistake: &Mistake| format!("{}:{}: {}", path.display(), mistake.line, mistake.sentence);
    mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `virbistream check-config`.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    read(path).map(drop)
}

fn serve(settings: Settings, inherited: Inherited) -> Result<(), Error> {
    let Settings { listen, permissions, session, libvirt, .. } = settings;
    let may_be_open = settings.rules.iter().any(|rule| rule.who.is_open());
    let migrations = settings.migrations.zip(libvirt.as_ref()).map(|(base, libvirt)| migrations(&base, libvirt));
    let loudness = Loudness { session: log::Level::Warn, stream: log::Level::Warn };
    let running = Running::start(loudness, settings.threads)?;
    let disks = running.disks().clone();
    let policy = Arc::new(Policy::new(settings.rules, settings.offered, migrations.transpose()?, disks));
    let options =
        SessionOptions { config: session, access: Some(policy.clone()), daemon: libvirt, ..SessionOptions::default() };
    let tls = match listen.iter().any(|listen| listen.kind() == Kind::Tls) {
        true => Some(settings.pki.server()?),
        false => None,
    };
    if tls.is_some() || notify::is_wanted() {
        running.tell_hangups()?;
    }
    running.handle().limit(settings.bandwidth);
    running.handle().limit_links(link_limits(settings.max_sessions));
    let _metrics = running.metrics(settings.metrics.as_ref())?;
    let _control = running.control(settings.control.as_deref(), Some(policy))?;
    let listeners = listeners(&listen, inherited, permissions, tls.as_ref())?;
    let mut addresses: Vec<Address> = listeners.iter().map(|listener| listener.address().clone()).collect();
    // Where systemd's sockets are is known only now.
    if let Some(address) = addresses.iter().find(|address| is_open(address)).filter(|_| !may_be_open) {
        return Err(Error::Config(format!(
            "{}, and nothing says that anyone may: --insecure-tcp, or a rule",
            open(address)
        )));
    }
    let status = listening_on(&addresses);
    if addresses.iter().map(Some).eq(listen.iter().map(Listen::address)) {
        addresses.clear();
    }
    for listener in listeners {
        running.handle().listen(listener, options.clone());
    }
    say_ready(&addresses);
    notify::ready(&status);
    loop {
        match running.next(None) {
            News::Signal => {
                notify::stopping(settings.drain);
                return running.drain(settings.drain);
            }
            News::Ended(ended) => return ended,
            News::Hangup => {
                notify::reloading();
                tls.iter().for_each(|tls| reload(&settings.pki, tls));
                notify::ready(&status);
            }
            News::Report(_) | News::Connected(_) | News::Nothing => {}
        }
    }
}

/// A quarter each: one address keeps no other out.
fn link_limits(sessions: usize) -> LinkLimits {
    let half_open = sessions.max(HALF_OPEN_LEAST);
    let per_second_each = u32::try_from(sessions / 10).unwrap_or(u32::MAX).max(PER_SECOND_EACH);
    LinkLimits { sessions, half_open, half_open_each: half_open / 4, per_second_each }
}

fn migrations(base: &MigrationSettings, libvirt: &Path) -> Result<Migrations, Error> {
    let failed = |error| Error::Config(format!("no migration can come in through {}: {error}", base.path.display()));
    Migrations::new(&base.path, base.permissions, libvirt).map_err(failed)
}

/// In the order of `listen`, so that the first mistake is the first told.
fn listeners(
    listen: &[Listen],
    mut inherited: Inherited,
    permissions: Permissions,
    tls: Option<&TlsServer>,
) -> Result<Vec<Listener>, Error> {
    let mut listeners = Vec::new();
    for listen in listen {
        match listen {
            Listen::Address(address) => listeners.push(bind(address, permissions, tls)?),
            Listen::Systemd { kind, name } => {
                listeners.append(&mut inherited.take(*kind, name, tls).map_err(Error::Config)?);
            }
        }
    }
    inherited.end().map_err(Error::Config)?;
    Ok(listeners)
}

fn listening_on(addresses: &[Address]) -> String {
    let addresses: Vec<String> = addresses.iter().map(Address::to_string).collect();
    format!("listening on {}", addresses.join(" "))
}

/// A set that is wrong leaves the one before in use: who may connect goes on to.
fn reload(pki: &Pki, tls: &TlsServer) {
    match pki.reload(tls) {
        Ok(()) => log::info!("the certificates were read anew"),
        Err(error) => log::warn!("the certificates stay as they were: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use virbistream::io::Identity;

    use super::*;
    use crate::args::{Cli, Command};

    /// The rules of a command line.
    fn rules(more: &[&str]) -> Vec<Rule> {
        let line = ["virbistream", "serve", "--listen", "tls://[::]:1", "--target", "d=unix:/d"];
        let cli = Cli::parse_from(line.iter().chain(more));
        let Command::Serve(args) = cli.command else { panic!("{cli:?}") };
        settings_of(&args).unwrap().rules
    }

    #[test]
    fn what_the_command_line_says_of_names_and_plain_tcp_lets_nobody_else_in() {
        let certificate = |dn: &str| Identity::Certificate {
            dn: dn.into(),
            names: Vec::new(),
            expires: std::time::SystemTime::UNIX_EPOCH,
        };
        let (local, other) = (Identity::Local { uid: 7, gid: 7 }, certificate("CN=mallory"));
        let dn = ["--allow-dn", "CN=admin"];
        let open = [&dn[..], &["--listen", "tcp://0.0.0.0:2", "--insecure-tcp"]].concat();
        for (more, expected) in [(&dn[..], [true, false, true, true, false]), (&open, [true, false, true, true, true])]
        {
            let identities = [&certificate("CN=admin"), &other, &local, &Identity::Loopback, &Identity::Unknown];
            let is_in = identities.map(|identity| rules(more).iter().any(|rule| rule.who.is(identity)));
            assert_eq!(is_in, expected, "{more:?}");
        }
    }

    #[test]
    fn one_address_never_has_more_than_a_quarter_of_the_places_before_hello() {
        for sessions in [1, 4, 16, 63, 64, 100, 1024] {
            let limits = link_limits(sessions);
            assert_eq!(limits.sessions, sessions);
            assert!(
                limits.half_open >= sessions.max(64) && limits.half_open_each * 4 <= limits.half_open,
                "{limits:?}"
            );
            assert!(limits.half_open_each >= 16, "{limits:?}");
        }
    }
}
