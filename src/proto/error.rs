use std::time::Duration;

use thiserror::Error;

use crate::wire::{Escaped, RemoteError, Rule};

/// Why a session ended, other than by agreement. The first cause stays the cause.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The peer broke a rule of docs/protocol.md. The peer is at fault: report it to its maintainers.
    #[error("the peer broke {rule}: {detail}")]
    PeerMisbehaved {
        /// The rule broken.
        rule: Rule,
        /// What exactly it did.
        detail: String,
    },
    /// A BiStream peer refused our HELLO: no version or feature in common, or we may not. The error says which.
    #[error("the peer refused the session: {0}")]
    Refused(Box<RemoteError>),
    /// We refused the peer's HELLO, with this error.
    #[error("the peer's HELLO was refused: {0}")]
    RefusedPeer(Box<RemoteError>),
    /// The peer ended the session and says why; the cause is on its side or in what we sent.
    #[error("the peer closed the session: {}", close_text(*.code, *.rule, .text))]
    PeerClosed {
        /// A `BS_CLOSE_…` code, not 0.
        code: u32,
        /// The rule that it says we broke, 0 for none.
        rule: u32,
        /// Its words.
        text: String,
    },
    /// The link ended without a CLOSE: the peer's process or the network is gone.
    #[error("the link was lost: {0}")]
    LinkLost(String),
    /// The transport's handshake, TLS say, failed or was given up: nothing of the session went over the link.
    #[error("the link could not be secured: {0}")]
    Handshake(String),
    /// Nothing was heard from the peer for the configured limit.
    #[error("nothing was heard from the peer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The peer read nothing for the configured limit, while something waited for it.
    #[error("the peer has read nothing for {} s", .0.as_secs())]
    Unread(Duration),
    /// HELLO, or its reply, did not come in time. The other end may be no BiStream or libvirt peer at all.
    #[error("no HELLO came from the peer within {} s", .0.as_secs())]
    HelloTimeout(Duration),
    /// Our own side ended the session before its streams were done.
    #[error("the session was shut down: {0}")]
    Shutdown(String),
    /// It had ended by agreement before: what a later call gives, never a cause.
    #[error("the session is closed")]
    Closed,
}

fn close_text(code: u32, rule: u32, text: &str) -> String {
    let text = Escaped(text);
    match Rule::from_number(rule) {
        Some(rule) => format!("it says that we broke {rule}: {text}"),
        None if text.0.is_empty() => format!("code {code}"),
        None => text.to_string(),
    }
}

/// Why a stream ended, other than by both directions being done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer refused our OPEN; the error says why, an errno of its in `int1`.
    #[error("the peer refused the stream: {0}")]
    Refused(Box<RemoteError>),
    /// The peer reset the stream; the error is its cause.
    #[error("the peer reset the stream: {0}")]
    Reset(Box<RemoteError>),
    /// The peer broke a rule whose scope is the stream; we reset it.
    #[error("the peer broke {0}")]
    PeerMisbehaved(Rule),
    /// Our OPEN was not answered in time; we reset it.
    #[error("the peer did not answer OPEN within {} s", .0.as_secs())]
    OpenTimeout(Duration),
    /// Our own side reset it, with this error to the peer. A session does not say what its owner did: this is the
    /// dispatcher's.
    #[error("{0}")]
    Local(Box<RemoteError>),
    /// Our OPEN crossed the peer's CLOSE 0: open it in another session.
    #[error("the peer closed the session before it answered OPEN")]
    Closing,
    /// It could not even be asked for. The dispatcher's, too: [`Session::open`](super::Session::open) gives it at once.
    #[error("{0}")]
    NotOpened(OpenError),
    /// The session ended under it.
    #[error("{0}")]
    Session(SessionError),
}

/// Why [`Session::open`](super::Session::open) could not even ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// HELLO does not stand: wait for `Event::Established`, or the session is over.
    #[error("no session stands")]
    NotEstablished,
    /// One side said CLOSE.
    #[error("the session is closing")]
    Closing,
    /// As many streams are open as the peer takes; try again when one is over.
    #[error("the peer takes no more than {0} streams")]
    StreamLimit(u32),
    /// Our own memory budget has no window left for it.
    #[error("the memory budget has no window left")]
    MemoryBudget,
    /// The target's name is empty, longer than 255 bytes, or has control characters.
    #[error("not a target name")]
    TargetName,
    /// A priority above 3.
    #[error("no priority from 0 to 3")]
    Priority,
    /// More than 16 extensions, or one longer than 1,024 bytes.
    #[error("too many or too long extensions")]
    Extensions,
    /// This session has used all its stream ids; begin another.
    #[error("the session has no stream ids left")]
    IdsExhausted,
}

/// A call that the stream's state does not allow; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// More was sent than the grant allowed, or nothing.
    #[error("sent beyond the grant")]
    BeyondGrant,
    /// More was consumed than was received.
    #[error("consumed more than was received")]
    BeyondReceived,
    /// The stream is not in a state for this.
    #[error("the stream is not in a state for this")]
    State,
}
