use thiserror::Error;

use crate::wire::RemoteError;

/// What the peer did that libvirt, too, ends the link for. There is no answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A hole in a stream that was not opened sparse.
    #[error("the peer sent a hole on a stream that is not sparse")]
    HoleUnasked,
    /// A hole whose payload has not its 12 bytes.
    #[error("the peer sent a hole of {0} bytes of payload")]
    HoleLength(u32),
    /// A packet that comes with file descriptors, on a link that carries none.
    #[error("the peer sent a packet with file descriptors, and this link carries none")]
    Descriptors,
    /// A client was called.
    #[error("the peer called a client")]
    CalledClient,
    /// A packet of a type that there is not.
    #[error("the peer sent a packet of type {0}")]
    PacketType(u32),
}

/// Why a legacy stream ended before its time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The daemon failed it; the error is its cause.
    #[error("the daemon failed the stream: {0}")]
    Remote(Box<RemoteError>),
    /// The client aborted it, which has no words.
    #[error("the client aborted the stream")]
    Aborted,
    /// Its consumer took too little for too long, and was the only one to suffer: raise the limit, or read faster.
    #[error("more than {limit} bytes waited for the stream's consumer")]
    Overrun {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The daemon ended it before its own last byte.
    #[error("the daemon ended the stream before its end")]
    CutShort,
    /// The peer sent what the stream cannot have.
    #[error("{0}")]
    Misbehaved(String),
    /// Our own handler of it failed; this is what the peer was told, where it can be told. The dispatcher's.
    #[error("{0}")]
    Handler(Box<RemoteError>),
    /// The link ended under it.
    #[error("the link was lost")]
    LinkLost,
}

/// Why a call has no good answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CallError {
    /// The daemon's error. Code 39 or 3: it does not know the procedure.
    #[error("{0}")]
    Remote(Box<RemoteError>),
    /// No answer came in time. It may have been carried out; one that comes later is passed over.
    #[error("the daemon did not answer in time")]
    Timeout,
    /// The link ended before the answer.
    #[error("the link was lost")]
    LinkLost,
    /// The arguments are longer than a packet can be; nothing was sent.
    #[error("the arguments are too long for a packet")]
    TooLong,
    /// We are the daemon of this link: it is for the other end to call. The dispatcher's.
    #[error("a daemon does not call its client")]
    Accepting,
}
