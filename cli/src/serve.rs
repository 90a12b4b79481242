//! `virbistream serve`: offers targets.

use std::sync::Arc;

use virbistream::io::{Address, SessionOptions};

use crate::args::ServeArgs;
use crate::config::{Mistake, Settings};
use crate::control::Control;
use crate::policy::{Policy, Tickets};
use crate::running::{Error, News, Running, bind, say_ready};

pub(crate) fn run(args: &ServeArgs) -> Result<(), Error> {
    let settings = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
            Settings::read(&text).map_err(|mistakes| Error::Config(mistakes_text(path, &mistakes)))?
        }
        None => Settings::of_args(args).map_err(Error::Config)?,
    };
    serve(settings)
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Error {
    Error::Config(format!("{}: {error}", path.display()))
}

/// A line for each.
fn mistakes_text(path: &std::path::Path, mistakes: &[Mistake]) -> String {
    let line = |mistake: &Mistake| format!("{}:{}: {}", path.display(), mistake.line, mistake.sentence);
    mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `virbistream check-config`.
pub(crate) fn check(path: &std::path::Path) -> Result<(), Error> {
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
    let policy = Policy::new(settings.rules, settings.offered, Arc::clone(&tickets));
    let options = SessionOptions {
        config: session,
        access: Some(Arc::new(policy)),
        daemon: libvirt,
        ..SessionOptions::default()
    };
    let running = Running::start(log::Level::Warn, settings.threads)?;
    running.handle().limit(settings.bandwidth);
    let control = settings.control.as_ref().map(|path| {
        let address = Address::Unix(path.clone());
        Control::start(path, tickets).map_err(|source| Error::Listen { address, source })
    });
    let _control = control.transpose()?;
    let listeners = listen.iter().map(|address| bind(address, permissions)).collect::<Result<Vec<_>, _>>()?;
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
            News::Report(_) | News::Connected(_) | News::Nothing => {}
        }
    }
}
