//! `virbistream serve`: offers targets.

use std::path::Path;
use std::sync::Arc;

use virbistream::io::{Address, LinkLimits, SessionOptions, TlsServer};

use crate::args::ServeArgs;
use crate::config::{Mistake, Settings, is_open, open, threads};
use crate::pki::Pki;
use crate::policy::{Offered, Policy, Rights, Rule, Tickets, Who, glob};
use crate::running::{Error, News, Running, bind, say_ready};

pub(crate) fn run(args: &ServeArgs) -> Result<(), Error> {
    let settings = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
            Settings::read(&text).map_err(|mistakes| Error::Config(mistakes_text(path, &mistakes)))?
        }
        None => settings_of(args).map_err(Error::Config)?,
    };
    serve(settings)
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
    let rights = Rights { targets: vec![glob("*")], daemon: args.libvirt.is_some(), ..Rights::default() };
    let who = if args.insecure_tcp { Who::Anyone } else { Who::Local };
    let by_name = args.allow_dn.iter().map(|dn| Who::Dn(glob(dn)));
    let rules = by_name.chain([who]).map(|who| Rule { who, rights: rights.clone() }).collect();
    if let Some(address) = args.listen.iter().find(|address| is_open(address)).filter(|_| !args.insecure_tcp) {
        return Err(format!("{}; say --insecure-tcp if everybody who reaches it may have the targets", open(address)));
    }
    let mut permissions = args.socket.permissions();
    if args.libvirt.is_some() {
        permissions.mode = Some(permissions.mode.unwrap_or(0o600));
    }
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

fn serve(settings: Settings) -> Result<(), Error> {
    let Settings { listen, permissions, mut session, libvirt, .. } = settings;
    if libvirt.is_some() {
        // Clients of libvirt's need not know HELLO.
        session.hello_timeout = None;
    }
    let tickets = Arc::new(Tickets::default());
    let running = Running::start(log::Level::Warn, settings.threads)?;
    let policy = Policy::new(settings.rules, settings.offered, Arc::clone(&tickets), running.disks().clone());
    let options = SessionOptions {
        config: session,
        access: Some(Arc::new(policy)),
        daemon: libvirt,
        ..SessionOptions::default()
    };
    let tls = match listen.iter().any(|address| matches!(address, Address::Tls { .. })) {
        true => Some(settings.pki.server()?),
        false => None,
    };
    if tls.is_some() {
        running.tell_hangups()?;
    }
    running.handle().limit(settings.bandwidth);
    let most = settings.max_sessions;
    running.handle().limit_links(LinkLimits { sessions: most, half_open: most });
    let _metrics = running.metrics(settings.metrics.as_ref())?;
    let _control = running.control(settings.control.as_deref(), Some(tickets))?;
    let bind = |address| bind(address, permissions, tls.as_ref());
    let listeners = listen.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let mut addresses: Vec<Address> = listeners.iter().map(|listener| listener.address().clone()).collect();
    if addresses == listen {
        addresses.clear();
    }
    for listener in listeners {
        running.handle().listen(listener, options.clone());
    }
    say_ready(&addresses);
    loop {
        match running.next(None) {
            News::Signal => return running.drain(settings.drain),
            News::Ended(ended) => return ended,
            News::Hangup => tls.iter().for_each(|tls| reload(&settings.pki, tls)),
            News::Report(_) | News::Connected(_) | News::Nothing => {}
        }
    }
}

/// A set that is wrong leaves the one before in use: who may connect goes on to.
fn reload(pki: &Pki, tls: &TlsServer) {
    match pki.reload(tls) {
        Ok(()) => log::info!("the certificates were read anew"),
        Err(error) => log::warn!("the certificates stay as they were: {error}"),
    }
}
