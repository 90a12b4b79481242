use std::fmt;

/// Who is at the other end of a link, as far as its transport proves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Identity {
    /// Nobody can tell: plain TCP, or a UNIX socket that the kernel knows nothing of.
    #[default]
    Unknown,
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
            Self::Local { uid, .. } => write!(f, "uid {uid}"),
        }
    }
}
