//! Where `serve` listens: at addresses of its own, or on sockets that systemd made for it.

use std::fmt;
use std::str::FromStr;

use virbistream::io::Address;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tls,
    Tcp,
    Unix,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Tls, Self::Tcp, Self::Unix];

    pub(crate) fn name(self) -> &'static str {
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
