//! `virbistream serve`: offers targets.

use std::sync::Arc;

use virbistream::io::{Address, SessionOptions, UnixTargets};

use crate::args::ServeArgs;
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
    let running = Running::start(log::Level::Warn, args.threads())?;
    running.handle().limit(args.session.bandwidth());
    let listeners = args.listen.iter().map(|address| bind(address, permissions)).collect::<Result<Vec<_>, _>>()?;
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
            News::Report(_) | News::Connected(_) | News::Nothing => {}
        }
    }
}
