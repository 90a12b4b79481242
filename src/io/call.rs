//! What a daemon is called for, and what a client is answered.

use std::fmt;
use std::sync::Arc;

use xdr_codec::{Pack, Unpack};

use super::handle::{Command, Handle, SessionKey};
use super::handler::Handler;
use super::identity::Identity;
use super::link::Link;
use crate::rpc::{CallError, IncomingCall, IncomingId, ProcedureId, Programs, StreamOptions, decode_arguments};
use crate::wire::{Reader, RemoteError, codes, domains};

/// A procedure of a daemon's: called on the dispatcher's thread, so it must not block. The answer may come later, from any
/// thread.
pub trait Procedure: Send + Sync {
    /// Takes a call.
    fn call(&self, call: Call);
}

impl<F: Fn(Call) + Send + Sync> Procedure for F {
    fn call(&self, call: Call) {
        self(call);
    }
}

/// The procedures of a daemon.
pub type Procedures = Programs<Arc<dyn Procedure>>;

/// What a client does with an answer. Called on the dispatcher's thread: it must not block.
pub type OnAnswer = Box<dyn FnOnce(Result<Vec<u8>, CallError>) + Send>;

/// A call of a client's. Dropped without an answer, it is answered with an error.
#[derive(Debug)]
pub struct Call {
    procedure: ProcedureId,
    arguments: Vec<u8>,
    peer: String,
    identity: Identity,
    reply: Reply,
}

/// Who waits for the answer.
#[derive(Debug)]
struct Reply {
    handle: Handle,
    session: SessionKey,
    id: IncomingId,
    given: bool,
}

pub(super) enum Answer {
    Body(Result<Vec<u8>, RemoteError>),
    Stream { procedure: ProcedureId, body: Vec<u8>, options: StreamOptions, handler: Box<dyn Handler> },
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

impl Call {
    pub(super) fn new(handle: &Handle, session: SessionKey, link: &Link, call: IncomingCall) -> Self {
        let reply = Reply { handle: handle.clone(), session, id: call.id, given: false };
        let (peer, identity) = (link.peer().to_owned(), link.identity().clone());
        Self { procedure: call.procedure, arguments: call.arguments, peer, identity, reply }
    }

    /// What is called.
    pub fn procedure(&self) -> ProcedureId {
        self.procedure
    }

    /// The session whose link it came on.
    pub fn session(&self) -> SessionKey {
        self.reply.session
    }

    /// Where the link comes from, as [`Socket::peer`](super::Socket::peer) says it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Who calls, as far as the link's transport proves it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The arguments as they came.
    pub fn raw_arguments(&self) -> &[u8] {
        &self.arguments
    }

    /// The arguments; bytes behind them are passed over, as libvirt does.
    ///
    /// # Errors
    /// What to answer when they do not decode.
    pub fn arguments<'a, T: Unpack<Reader<'a>>>(&'a self) -> Result<T, RemoteError> {
        decode_arguments(&self.arguments)
    }

    /// Answers with a body as it stands on the wire, or with an error.
    pub fn answer(mut self, answer: Result<Vec<u8>, RemoteError>) {
        self.reply.give(Answer::Body(answer));
    }

    /// Answers with what xdr-codec can pack, or with an error.
    pub fn answer_with<T: Pack<Vec<u8>>>(self, answer: Result<T, RemoteError>) {
        self.answer(answer.and_then(|value| {
            let mut body = Vec::new();
            match value.pack(&mut body) {
                Ok(_) => Ok(body),
                Err(error) => Err(RemoteError::new(codes::RPC, domains::RPC, format!("the answer: {error}"))),
            }
        }));
    }

    /// Answers well, and begins a legacy stream that is connected to `handler`.
    pub fn answer_with_stream(mut self, body: Vec<u8>, options: StreamOptions, handler: Box<dyn Handler>) {
        self.reply.give(Answer::Stream { procedure: self.procedure, body, options, handler });
    }
}

impl Reply {
    fn give(&mut self, answer: Answer) {
        self.given = true;
        self.handle.send(self.session, Command::Answer { session: self.session, call: self.id, answer });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.given {
            let error = RemoteError::new(codes::RPC, domains::RPC, "the call was dropped without an answer");
            self.give(Answer::Body(Err(error)));
        }
    }
}
