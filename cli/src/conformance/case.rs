//! What a case is, and what it finds.

use std::fmt;
use std::time::Duration;

use super::peer::Peer;
use crate::uri::Uri;

/// What the user gives.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) uri: Uri,
    pub(super) timeout: Duration,
    pub(super) pool: Option<String>,
    pub(super) target: Option<String>,
}

/// What a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Not even a login.
    Nothing,
    /// A connection that libvirt's calls open: the peer has libvirt's remote program.
    Login,
    /// `--pool`.
    Pool,
    /// `--target`.
    Target,
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Login => "libvirt's remote program",
            Self::Pool => "--pool",
            Self::Target => "--target",
        })
    }
}

/// What was found wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) expected: String,
    pub(super) got: String,
}

impl Fault {
    pub(super) fn new(expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self { expected: expected.to_string(), got: got.to_string() }
    }
}

pub(super) type Verdict = Result<(), Fault>;

pub(super) struct Case {
    /// `SECTION/NAME`; stable.
    pub(super) name: &'static str,
    /// What is done and expected, in a few words.
    pub(super) what: &'static str,
    pub(super) needs: Needs,
    pub(super) test: Box<dyn Fn(&Setting) -> Verdict>,
}

impl Case {
    pub(super) fn new(
        name: &'static str,
        what: &'static str,
        needs: Needs,
        test: impl Fn(&Setting) -> Verdict + 'static,
    ) -> Self {
        Self { name, what, needs, test: Box::new(test) }
    }

    /// Has the connection, and fails if it cannot be had.
    pub(super) fn on_connection(
        name: &'static str,
        what: &'static str,
        needs: Needs,
        test: impl Fn(&mut Peer) -> Verdict + 'static,
    ) -> Self {
        Self::new(name, what, needs, move |setting| test(&mut Peer::connect(setting)?))
    }

    pub(super) fn run(&self, setting: &Setting) -> Verdict {
        match self.needs {
            Needs::Pool if setting.pool.is_none() => {
                Err(Fault::new("a storage pool to write to", "no --pool POOL was given"))
            }
            Needs::Target if setting.target.is_none() => {
                Err(Fault::new("a target that gives back what it is sent", "no --target NAME was given"))
            }
            _ => (self.test)(setting),
        }
    }
}
