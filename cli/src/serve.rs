//! `virbistream serve`: offers targets.

use std::path::Path;
use std::sync::Arc;

use virbistream::io::{Address, LinkLimits, Listener, Permissions, SessionOptions, TlsServer};

use crate::args::ServeArgs;
use crate::config::{MigrationSettings, Mistake, Settings, is_open, open, threads};
use crate::events::Loudness;
use crate::inherited::Inherited;
use crate::listen::{Kind, Listen};
use crate::notify;
use crate::pki::Pki;
use crate::policy::{Migrations, Offered, Policy, Rights, Rule, Tickets, Who, glob};
use crate::running::{Error, News, Running, bind, say_ready};

/// Links without HELLO that any address or user may have.
const HALF_OPEN_EACH: usize = 16;

/// Links that any of those may make in a second.
const PER_SECOND_EACH: u32 = 100;

pub(crate) fn run(args: &ServeArgs, inherited: Inherited) -> Result<(), Error> {
    let settings = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
            Settings::read(&text).map_err(|mistakes| Error::Config(mistakes_text(path, &mistakes)))?
        }
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
    let who = if args.insecure_tcp { Who::Anyone } else { Who::Local };
    let by_name = args.allow_dn.iter().map(|dn| Who::Dn(glob(dn)));
    let rules = by_name.chain([who]).map(|who| Rule { who, rights: rights.clone() }).collect();
    if let Some(address) =
        args.listen.iter().filter_map(Listen::address).find(|address| is_open(address)).filter(|_| !args.insecure_tcp)
    {
        return Err(format!("{}; say --insecure-tcp if everybody who reaches it may have the targets", open(address)));
    }
    let mut permissions = args.socket.permissions();
    if args.libvirt.is_some() {
        permissions.mode = Some(permissions.mode.unwrap_or(0o600));
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
        max_sessions: args.max_sessions,
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

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::Config(format!("{}: {error}", path.display()))
}

/// A line for each.
fn mistakes_text(path: &Path, mistakes: &[Mistake]) -> String {
    let line = |mistake: &Mistake| format!("{}:{}: {}", path.display(), mistake.line, mistake.sentence);
    mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `virbistream check-config`.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    Settings::read(&text).map(drop).map_err(|mistakes| Error::Config(mistakes_text(path, &mistakes)))
}

fn serve(settings: Settings, inherited: Inherited) -> Result<(), Error> {
    let Settings { listen, permissions, session, libvirt, .. } = settings;
    let anyone = settings.rules.iter().any(|rule| rule.who == Who::Anyone);
    let tickets = Arc::new(Tickets::default());
    let migrations = settings.migrations.zip(libvirt.as_ref()).map(|(base, libvirt)| migrations(&base, libvirt));
    let loudness = Loudness { session: log::Level::Warn, stream: log::Level::Warn };
    let running = Running::start(loudness, settings.threads)?;
    let disks = running.disks().clone();
    let policy = Policy::new(settings.rules, settings.offered, migrations.transpose()?, Arc::clone(&tickets), disks);
    let options = SessionOptions {
        config: session,
        access: Some(Arc::new(policy)),
        daemon: libvirt,
        ..SessionOptions::default()
    };
    let tls = match listen.iter().any(|listen| listen.kind() == Kind::Tls) {
        true => Some(settings.pki.server()?),
        false => None,
    };
    if tls.is_some() || notify::is_wanted() {
        running.tell_hangups()?;
    }
    running.handle().limit(settings.bandwidth);
    let most = settings.max_sessions;
    running.handle().limit_links(LinkLimits {
        sessions: most,
        half_open: most,
        half_open_each: (most / 4).max(HALF_OPEN_EACH),
        per_second_each: u32::try_from(most / 10).unwrap_or(u32::MAX).max(PER_SECOND_EACH),
    });
    let _metrics = running.metrics(settings.metrics.as_ref())?;
    let _control = running.control(settings.control.as_deref(), Some(tickets))?;
    let listeners = listeners(&listen, inherited, permissions, tls.as_ref())?;
    let mut addresses: Vec<Address> = listeners.iter().map(|listener| listener.address().clone()).collect();
    // Where systemd's sockets are is known only now.
    if let Some(address) = addresses.iter().find(|address| is_open(address)).filter(|_| !anyone) {
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
