use std::fmt;
use std::time::SystemTime;

use crate::wire::Escaped;

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
    /// The owner of a certificate that was verified: it is of our authority, valid today, and for what it was used for.
    Certificate {
        /// Its distinguished name as libvirt's `tls_allowed_dn_list` has it: `C=GB,O=Red Hat,CN=host`, in the certificate's order,
        /// escaped as in RFC 4514. A CA may have let anything into it, control characters too.
        dn: String,
        /// The DNS names and addresses that the certificate is for.
        names: Vec<String>,
        /// Until when it is valid. Nobody looks again while the connection stands.
        expires: SystemTime,
    },
}

/// For people to read.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("nobody known"),
            Self::Loopback => f.write_str("a process of this host"),
            Self::Local { uid, .. } => write!(f, "uid {uid}"),
            Self::Certificate { dn, .. } => write!(f, "{}", Escaped(dn)),
        }
    }
}
