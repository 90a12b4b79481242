//! Where `serve` listens: at addresses of its own, or on sockets that systemd made for it.

use std::env;
use std::fmt;
use std::io;
use std::str::FromStr;

use listenfd::ListenFd;
use virbistream::io::{Address, Listener, TlsServer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tls,
    Tcp,
    Unix,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Tls, Self::Tcp, Self::Unix];

    fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

/// An address, or `tls+systemd:NAME`, `tcp+systemd:NAME` or `unix+systemd:NAME`: what a socket is for is never guessed from what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Address(Address),
    /// All sockets that systemd made under this name (FileDescriptorName=).
    Systemd {
        kind: Kind,
        name: String,
    },
}

impl Listen {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Address(Address::Tls { .. }) => Kind::Tls,
            Self::Address(Address::Tcp { .. }) => Kind::Tcp,
            Self::Address(Address::Unix(_)) => Kind::Unix,
            Self::Systemd { kind, .. } => *kind,
        }
    }

    /// That of a socket that we make ourselves.
    pub(crate) fn address(&self) -> Option<&Address> {
        match self {
            Self::Address(address) => Some(address),
            Self::Systemd { .. } => None,
        }
    }

    pub(crate) fn is_unix_of_systemd(&self) -> bool {
        matches!(self, Self::Systemd { kind: Kind::Unix, .. })
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("systemd") {
            return Err(format!("`{text}`: write tls+systemd:NAME, tcp+systemd:NAME or unix+systemd:NAME"));
        }
        for kind in Kind::ALL {
            let name = text.strip_prefix(kind.name()).and_then(|rest| rest.strip_prefix("+systemd:"));
            if let Some(name) = name {
                // What FileDescriptorName= can be.
                let is_name = (1..=255).contains(&name.len())
                    && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':');
                let name =
                    is_name.then(|| name.into()).ok_or_else(|| format!("`{text}` has no name of systemd's sockets"))?;
                return Ok(Self::Systemd { kind, name });
            }
        }
        text.parse().map(Self::Address).map_err(|error| format!("{error}"))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Systemd { kind, name } => write!(f, "{}+systemd:{name}", kind.name()),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_is_written_as_it_is_read() {
        for text in ["tls+systemd:virbistream.socket", "tcp+systemd:a b", "unix+systemd:x", "unix:/a", "tcp://[::1]:1"]
        {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in [
            "systemd",
            "systemd:x",
            "tls+systemd:",
            "tls+systemd:a:b",
            "tcp+systemd:\n",
            "udp+systemd:x",
            "tls+systemd",
        ] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
