//! What a migration came to.

use thiserror::Error;

use crate::running;

/// What `--help` and the man page say of [`Failure::code`].
pub(crate) const EXIT_STATUS: &str = "\
Exit status:
  0  the guest runs at the destination; or, with --dry-run, nothing speaks against it
  1  this host could not do what it takes; the guest is where it was
  2  the command line makes no sense
  3  a check failed, and nothing was begun
  4  the destination could not be reached, or does not let us in
  5  libvirt gave the migration up; the guest is where it was
  6  it was cancelled; the guest is where it was
  7  the connection to the destination was lost, and with it the migration; the guest is where it was
  8  the guest is not where it was, or nobody can tell: look at both hosts";

/// Why a guest was not moved, in one sentence.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Local(String),
    /// Of one that had begun.
    #[error("the migration was given up, since it cannot be watched, and {guest}: {why}")]
    Unwatched { why: String, guest: Guest },
    /// What was found, with semicolons.
    #[error("nothing was begun, since {0}")]
    Checks(String),
    #[error("{0}")]
    Destination(String),
    #[error("libvirt gave the migration up, and {guest}: {why}")]
    Libvirt { why: String, guest: Guest },
    #[error("the migration was cancelled, and {0}")]
    Cancelled(Guest),
    #[error("the connection to the destination was lost, and {guest}: {why}")]
    Lost { why: String, guest: Guest },
}

/// Where the guest is after a migration that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// Where it was: nothing was begun.
    Untouched,
    /// At the source, in libvirt's word for its state.
    Here(String),
    /// Nobody can tell, or not at the source.
    Unknown(String),
}

impl std::fmt::Display for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untouched => f.write_str("nothing was begun: the guest is where it was"),
            Self::Here(state) => write!(f, "the guest is {state} at the source"),
            Self::Unknown(why) => write!(f, "where the guest is has to be seen ({why})"),
        }
    }
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Libvirt { guest: Guest::Unknown(_), .. }
            | Self::Cancelled(Guest::Unknown(_))
            | Self::Unwatched { guest: Guest::Unknown(_), .. }
            | Self::Lost { guest: Guest::Unknown(_), .. } => 8,
            Self::Local(_) | Self::Unwatched { .. } => 1,
            Self::Checks(_) => 3,
            Self::Destination(_) => 4,
            Self::Libvirt { .. } => 5,
            Self::Cancelled(_) => 6,
            Self::Lost { .. } => 7,
        }
    }

    /// Where the guest is, in libvirt's word for its state, if anybody has looked and it is here.
    pub(super) fn state(&self) -> Option<&str> {
        match self {
            Self::Libvirt { guest: Guest::Here(state), .. }
            | Self::Cancelled(Guest::Here(state))
            | Self::Unwatched { guest: Guest::Here(state), .. }
            | Self::Lost { guest: Guest::Here(state), .. } => Some(state),
            _ => None,
        }
    }
}

impl From<running::Error> for Failure {
    fn from(error: running::Error) -> Self {
        match error {
            running::Error::Connect { .. } | running::Error::Legacy { .. } | running::Error::SessionEnded { .. } => {
                Self::Destination(error.to_string())
            }
            _ => Self::Local(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_that_could_not_be_watched_is_where_it_was_only_if_libvirt_says_so() {
        let unwatched = |guest| Failure::Unwatched { why: "no thread".into(), guest };
        let here = unwatched(Guest::Here("running".into()));
        assert_eq!((here.code(), here.state()), (1, Some("running")));
        assert_eq!(unwatched(Guest::Unknown("it is shut off at the source".into())).code(), 8);
    }
}
