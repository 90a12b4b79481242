//! The sockets that systemd made for us.

use std::env;
use std::io;

use listenfd::ListenFd;
use virbistream::io::{Listener, TlsServer};

use crate::listen::Kind;

/// The listening sockets that this process was started with.
pub(crate) struct Inherited {
    sockets: ListenFd,
    /// Of each socket; taken ones have none any more.
    names: Vec<Option<String>>,
}

impl Inherited {
    /// Takes the variables of systemd's out of the environment: call it before there are threads.
    pub(crate) fn of_this_process() -> Self {
        let names = env::var("LISTEN_FDNAMES").ok();
        let sockets = ListenFd::from_env();
        let mut names: Vec<_> =
            names.iter().flat_map(|names| names.split(':')).map(|name| Some(name.to_owned())).collect();
        names.resize(sockets.len(), Some("unknown".into()));
        Self { sockets, names }
    }

    /// All of this name; there must be one at least.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn take(&mut self, kind: Kind, name: &str, tls: Option<&TlsServer>) -> Result<Vec<Listener>, String> {
        let mut listeners = Vec::new();
        for index in 0..self.names.len() {
            if self.names[index].as_deref() != Some(name) {
                continue;
            }
            self.names[index] = None;
            let listener = self.take_one(kind, index, tls);
            let failed = |error| format!("the socket `{name}` of systemd's is none for {}: {error}", kind.name());
            let listener = listener.map_err(failed)?;
            log::info!("listening on {}, which systemd calls `{name}`", listener.address());
            listeners.push(listener);
        }
        match listeners.is_empty() {
            true => Err(format!(
                "systemd gave no socket `{name}`: set FileDescriptorName={name} in a .socket unit, and start that"
            )),
            false => Ok(listeners),
        }
    }

    fn take_one(&mut self, kind: Kind, index: usize, tls: Option<&TlsServer>) -> io::Result<Listener> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        match (kind, tls) {
            (Kind::Unix, _) => Listener::from_unix(self.sockets.take_unix_listener(index)?.ok_or_else(gone)?),
            (Kind::Tls, Some(tls)) => {
                let listener = self.sockets.take_tcp_listener(index)?.ok_or_else(gone)?;
                Listener::from_tcp_with_tls(listener, tls.clone())
            }
            (Kind::Tcp, _) => Listener::from_tcp(self.sockets.take_tcp_listener(index)?.ok_or_else(gone)?),
            (Kind::Tls, None) => Err(io::Error::new(io::ErrorKind::InvalidInput, "there are no certificates")),
        }
    }

    /// Who connects to a socket that nobody accepts from would wait for ever.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn end(self) -> Result<(), String> {
        match self.names.into_iter().flatten().next() {
            Some(name) => Err(format!(
                "systemd gave a socket `{name}` that is not listened on: add tls+systemd:{name}, or what it is for"
            )),
            None => Ok(()),
        }
    }
}
