use std::fmt;

/// Who is at the other end of a link, as far as its transport proves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Identity {
    /// Nobody can tell: plain TCP, or a UNIX socket that the kernel knows nothing of.
    #[default]
    Unknown,
    /// Some process of this host, over plain TCP: the kernel lets nobody else have an address of the loopback.
    Loopback,
    /// A process of this host, by the kernel's word of when it connected.
    Local {
        /// The user it ran as.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// For people to read.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("nobody known"),
            Self::Loopback => f.write_str("a process of this host"),
            Self::Local { uid, .. } => write!(f, "uid {uid}"),
        }
    }
}
