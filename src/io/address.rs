use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Bytes of the longest path that a UNIX socket can have on Linux.
pub const UNIX_PATH_MAX: usize = 107;

/// Where a link listens or is dialled: `tcp://HOST:PORT`, `tls://HOST:PORT`, `unix:///PATH` or `unix:PATH`.
///
/// ```
/// use virbistream::io::Address;
/// assert_eq!("tcp://[::1]:16599".parse(), Ok(Address::Tcp { host: "::1".into(), port: 16599 }));
/// assert_eq!("tls://host:16514".parse(), Ok(Address::Tls { host: "host".into(), port: 16514 }));
/// assert_eq!("unix:///run/b.sock".parse(), Ok(Address::Unix("/run/b.sock".into())));
/// assert!("http://localhost".parse::<Address>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host, by name or number, and a port; port 0 listens on one that is free.
    Tcp {
        /// A name or a numeric address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// The same, and TLS over it.
    Tls {
        /// A name or a numeric address, without brackets. The peer's certificate is for it.
        host: String,
        /// The port.
        port: u16,
    },
    /// A UNIX socket of at most [`UNIX_PATH_MAX`] bytes.
    Unix(PathBuf),
}

/// Why a text is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// None of `tcp://`, `tls://` and `unix:`.
    #[error("`{0}` is no address: write tcp://HOST:PORT, tls://HOST:PORT or unix:PATH")]
    Scheme(String),
    /// No port, or none from 0 to 65535.
    #[error("`{0}` has no port from 0 to 65535")]
    Port(String),
    /// An empty host.
    #[error("`{0}` has no host")]
    Host(String),
    /// An empty path.
    #[error("`{0}` has no path")]
    NoPath(String),
    /// A path that the operating system would cut.
    #[error("the socket path `{path}` has {} bytes; at most {UNIX_PATH_MAX} are possible", path.len())]
    PathTooLong {
        /// The path.
        path: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let tls = text.strip_prefix("tls://");
        if let Some(rest) = text.strip_prefix("tcp://").or(tls) {
            let (host, port) = rest.rsplit_once(':').ok_or_else(|| AddressError::Port(text.into()))?;
            let port = port.parse().map_err(|_| AddressError::Port(text.into()))?;
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            if host.is_empty() {
                return Err(AddressError::Host(text.into()));
            }
            let host = host.into();
            return Ok(if tls.is_some() { Self::Tls { host, port } } else { Self::Tcp { host, port } });
        }
        let path = text.strip_prefix("unix:").ok_or_else(|| AddressError::Scheme(text.into()))?;
        let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
        if path.is_empty() {
            return Err(AddressError::NoPath(text.into()));
        }
        if path.len() > UNIX_PATH_MAX {
            return Err(AddressError::PathTooLong { path: path.into() });
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Tls { host, port } if host.contains(':') => write!(f, "tls://[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "tls://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
