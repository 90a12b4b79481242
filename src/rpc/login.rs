//! How a client comes in: which calls open libvirt's connection, and what their answers mean.

use thiserror::Error;

use super::error::CallError;
use super::procedure::ProcedureId;
use crate::wire::{Reader, decode_legacy};

const AUTH_LIST: ProcedureId = ProcedureId::remote(66);
const CONNECT_SUPPORTS_FEATURE: ProcedureId = ProcedureId::remote(60);
const CONNECT_OPEN: ProcedureId = ProcedureId::remote(1);

const AUTH_NONE: u32 = 0;
const AUTHS_MAX: usize = 20;
const FEATURE_KEEPALIVE: i32 = 10;

/// Opens libvirt's connection at a daemon: make the call that [`poll_call`](Self::poll_call) gives, hand its answer to
/// [`handle_answer`](Self::handle_answer), and again, until that says how it ended.
#[derive(Clone, Debug)]
pub struct Login {
    connection: String,
    step: Step,
    keepalive: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Authentication,
    Features,
    Open,
}

/// Why the connection is not open.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LoginError {
    /// A call failed, or the daemon refused it.
    #[error("{0}")]
    Call(#[from] CallError),
    /// The daemon lets nobody in without an authentication that this library does not have.
    #[error("the daemon asks for an authentication of a kind in {0:?}, and none is known here")]
    Authentication(Vec<u32>),
    /// The answer means nothing.
    #[error("the daemon's list of authentications cannot be read")]
    Answer,
}

struct Authentications(Vec<u32>);

impl<'a> xdr_codec::Unpack<Reader<'a>> for Authentications {
    fn unpack(input: &mut Reader<'a>) -> xdr_codec::Result<(Self, usize)> {
        input.counted(|input| Ok(Self(input.list("a list of authentications", AUTHS_MAX)?)))
    }
}

impl Login {
    /// To a connection as libvirt names it to its daemons, `qemu:///system` say.
    pub fn new(connection: impl Into<String>) -> Self {
        Self { connection: connection.into(), step: Step::Authentication, keepalive: false }
    }

    /// The call to make now, and its arguments.
    pub fn poll_call(&self) -> (ProcedureId, Vec<u8>) {
        match self.step {
            Step::Authentication => (AUTH_LIST, Vec::new()),
            Step::Features => (CONNECT_SUPPORTS_FEATURE, FEATURE_KEEPALIVE.to_be_bytes().to_vec()),
            Step::Open => (CONNECT_OPEN, self.open_arguments()),
        }
    }

    /// A name that is there, and no flags.
    fn open_arguments(&self) -> Vec<u8> {
        let mut arguments = 1u32.to_be_bytes().to_vec();
        // Into memory: it cannot fail.
        let _ = xdr_codec::pack_string(&self.connection, None, &mut arguments);
        arguments.extend([0; 4]);
        arguments
    }

    /// What came of that call; `None`: there is another.
    pub fn handle_answer(&mut self, answer: Result<Vec<u8>, CallError>) -> Option<Result<(), LoginError>> {
        match (self.step, answer) {
            (Step::Authentication, Ok(body)) => match decode_legacy(&body) {
                Ok(Authentications(known)) if known.contains(&AUTH_NONE) => self.step = Step::Features,
                Ok(Authentications(known)) => return Some(Err(LoginError::Authentication(known))),
                Err(_) => return Some(Err(LoginError::Answer)),
            },
            // One that does not know the question has not the feature.
            (Step::Features, Ok(body)) => {
                self.keepalive = body.iter().any(|byte| *byte != 0);
                self.step = Step::Open;
            }
            (Step::Features, Err(CallError::Remote(_))) => self.step = Step::Open,
            (Step::Open, Ok(_)) => return Some(Ok(())),
            (_, Err(error)) => return Some(Err(error.into())),
        }
        None
    }

    /// Whether the daemon has libvirt's keepalive.
    pub fn has_keepalive(&self) -> bool {
        self.keepalive
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RemoteError;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn three_calls_open_the_connection() {
        let mut login = Login::new("test:///default");
        assert_eq!(login.poll_call(), (ProcedureId::remote(66), vec![]));
        assert_eq!(login.handle_answer(Ok(words(&[1, 0]))), None);
        assert_eq!(login.poll_call(), (ProcedureId::remote(60), words(&[10])));
        assert_eq!(login.handle_answer(Ok(words(&[1]))), None);
        assert!(login.has_keepalive());
        let (procedure, arguments) = login.poll_call();
        assert_eq!(procedure, ProcedureId::remote(1));
        assert_eq!(arguments, [&words(&[1, 15])[..], b"test:///default\0", &words(&[0])].concat());
        assert_eq!(login.handle_answer(Ok(vec![])), Some(Ok(())));
    }

    #[test]
    fn what_keeps_a_client_out_is_a_typed_value() {
        let refused = || CallError::Remote(Box::new(RemoteError::new(39, 7, "no")));
        let mut login = Login::new("x");
        assert_eq!(login.handle_answer(Ok(words(&[2, 1, 2]))), Some(Err(LoginError::Authentication(vec![1, 2]))));
        for bad in [words(&[9]), words(&[1000]), vec![]] {
            assert_eq!(Login::new("x").handle_answer(Ok(bad)), Some(Err(LoginError::Answer)));
        }
        assert_eq!(login.handle_answer(Err(CallError::Timeout)), Some(Err(CallError::Timeout.into())));
        assert_eq!(login.handle_answer(Ok(words(&[1, 0]))), None);
        assert_eq!(login.handle_answer(Err(refused())), None, "it has no features");
        assert!(!login.has_keepalive());
        assert_eq!(login.handle_answer(Err(refused())), Some(Err(refused().into())));
    }
}
