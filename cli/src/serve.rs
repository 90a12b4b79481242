//! `virbistream serve`: offers targets.

use std::sync::Arc;

use virbistream::io::{Address, SessionOptions, TlsServer, UnixTargets};

use crate::args::ServeArgs;
use crate::pki::Pki;
use crate::running::{Error, News, Running, bind, say_ready};

pub(crate) fn run(args: &ServeArgs) -> Result<(), Error> {
    let mut targets = UnixTargets::new();
    for target in &args.target {
        if !targets.insert(&target.name, &target.path) {
            return Err(Error::SameName(target.name.clone()));
        }
    }
    let mut config = args.session.config();
    let daemon = args.libvirt.as_ref().map(|libvirt| libvirt.0.clone());
    let mut permissions = args.socket.permissions();
    if daemon.is_some() {
        // Clients of libvirt's need not know HELLO.
        config.hello_timeout = None;
        permissions.mode = Some(permissions.mode.unwrap_or(0o600));
    }
    let options = SessionOptions { config, targets: Arc::new(targets), daemon, ..SessionOptions::default() };
    let tls = match args.listen.iter().any(|address| matches!(address, Address::Tls { .. })) {
        true => Some(args.pki.server()?),
        false => None,
    };
    let running = Running::start(log::Level::Warn, args.threads())?;
    if tls.is_some() {
        running.tell_hangups()?;
    }
    running.handle().limit(args.session.bandwidth());
    let bind = |address| bind(address, permissions, tls.as_ref());
    let listeners = args.listen.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let mut addresses: Vec<Address> = listeners.iter().map(|listener| listener.address().clone()).collect();
    if addresses == args.listen {
        addresses.clear();
    }
    for listener in listeners {
        running.handle().listen(listener, options.clone());
    }
    say_ready(&addresses);
    loop {
        match running.next(None) {
            News::Signal => return running.drain(args.session.drain()),
            News::Ended(ended) => return ended,
            News::Hangup => tls.iter().for_each(|tls| reload(&args.pki, tls)),
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
