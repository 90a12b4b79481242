use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token};

use super::handle::{Command, Handle, SessionKey, StreamKey};
use super::identity::Identity;
use super::tokens::Place;
use crate::proto::StreamError;
use crate::wire::{Extension, RemoteError};

/// What a stream is connected to: one handler for each stream, called on the dispatcher's thread only.
///
/// No call may block. `WouldBlock` from `read` or `write` means *not now*: the handler is asked again after an event of
/// a source it registered, or after [`Waker::wake`].
pub trait Handler: Send {
    /// The stream stands. Register event sources, if there are any, for reading and writing under the token
    /// given; mio's rules for edge-triggered sources hold.
    ///
    /// # Errors
    /// Any: the stream is reset with it.
    fn attach(&mut self, _at: &Attachment<'_>) -> io::Result<()> {
        Ok(())
    }

    /// The stream is over, or never stood. Deregister what `attach` registered; the handler is dropped next.
    fn detach(&mut self, _registry: &Registry) {}

    /// Fills the front of `buf` with bytes for the peer and gives how many; 0 is the end: our direction finishes.
    ///
    /// # Errors
    /// `WouldBlock` and `Interrupted` as usual; any other resets the stream.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Takes bytes from the peer, in order, and gives how many; they count as delivered.
    ///
    /// # Errors
    /// `WouldBlock` and `Interrupted` as usual. `BrokenPipe`: nobody reads here any more, the peer is asked to stop and the other
    /// direction goes on. Any other resets the stream.
    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// The peer's direction is over and all of it was taken.
    ///
    /// # Errors
    /// Any: the stream is reset with it.
    fn finish(&mut self) -> io::Result<()>;

    /// The peer discards what is still read here; `read` is not called again.
    fn stop(&mut self) {}

    /// Both directions ended at once, for the cause given; or the stream never stood. `detach` came before.
    fn reset(&mut self, _cause: &StreamError) {}

    /// Takes so many zeroes of the peer's, in their place, all or none. Asked on legacy streams that are sparse alone.
    ///
    /// # Errors
    /// As of `write`.
    fn write_hole(&mut self, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// So many zeroes that come next, if they do; `read` goes on behind them. Asked before `read`, on legacy streams that are
    /// sparse alone.
    ///
    /// # Errors
    /// As of `read`.
    fn read_hole(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Whether an event of a source tells that bytes of the peer's are taken no more, though none waits to be written: the
    /// same as `BrokenPipe` from `write`, only sooner. Not when only a source of our own bytes has ended.
    fn is_broken(&self, _event: &Event) -> bool {
        false
    }
}

/// Where a handler is attached.
#[derive(Debug)]
pub struct Attachment<'a> {
    pub(super) registry: &'a Registry,
    pub(super) token: Token,
    pub(super) stream: StreamKey,
    pub(super) waker: Waker,
}

impl Attachment<'_> {
    /// Where event sources are registered.
    pub fn registry(&self) -> &Registry {
        self.registry
    }

    /// The token to register them under, the same for all of them.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The session that the stream belongs to.
    pub fn session(&self) -> SessionKey {
        self.waker.session
    }

    /// The stream, as [`Report`](super::Report)s name it.
    pub fn stream(&self) -> StreamKey {
        self.stream
    }

    /// For a handler whose readiness comes from elsewhere: another thread, a timer.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// Has a stream's handler asked again, from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    handle: Handle,
    session: SessionKey,
    place: Place,
    /// A call is under way: it stands for all that come until it is carried out.
    waking: Arc<AtomicBool>,
}

impl Waker {
    pub(super) fn new(handle: &Handle, session: SessionKey, place: Place) -> Self {
        Self { handle: handle.clone(), session, place, waking: Arc::default() }
    }

    /// The handler may have bytes to read, or take bytes again.
    pub fn wake(&self) {
        if !self.waking.swap(true, Ordering::AcqRel) {
            let waking = Arc::clone(&self.waking);
            self.handle.send(self.session, Command::Wake { place: self.place, waking });
        }
    }
}

/// A stream that the peer asks for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// The session it is asked on.
    pub session: SessionKey,
    /// Where the session's link comes from, as [`Socket::peer`](super::Socket::peer) says it.
    pub peer: &'a str,
    /// Who is at the link's other end, as far as its transport proves it.
    pub identity: &'a Identity,
    /// The name of the target: 1..255 bytes without control characters, otherwise the peer's choice.
    pub target: &'a str,
    /// What it carries, a `wire::kind`: a hint.
    pub kind: u32,
    /// 0 first to 3 last.
    pub priority: u32,
    /// Those that the library does not know; none of them is needed.
    pub extensions: &'a [Extension],
}

/// The answer to a [`Request`].
#[allow(missing_debug_implementations, reason = "holds a handler")]
pub enum Decision {
    /// The stream stands, connected to this handler.
    Accept(Box<dyn Handler>),
    /// The peer is told this error; docs/protocol.md, §5 has the codes.
    Refuse(RemoteError),
    /// Not now: ask again after this time, until the session's dial timeout.
    RetryAfter(Duration),
}

/// What the accepting end of streams offers, by its administrator's word.
pub trait Targets: Send + Sync {
    /// Answers a request. Called on the dispatcher's thread: it must not block.
    fn open(&self, request: &Request<'_>) -> Decision;
}

/// No targets: every request is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTargets;

impl Targets for NoTargets {
    fn open(&self, request: &Request<'_>) -> Decision {
        Decision::Refuse(no_such_target(request.target))
    }
}

pub(super) fn no_such_target(target: &str) -> RemoteError {
    use crate::wire::{codes, domains};
    RemoteError::new(codes::DEVICE_MISSING, domains::STREAMS, format!("no target `{target}` is offered here"))
}
