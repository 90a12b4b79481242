use super::error::{SessionError, StreamError};
use super::stream::{StreamId, StreamStats};
use crate::wire::{Extension, Limits, Open, RemoteError};

/// What happened to a session, for its owner to act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The peer said HELLO, and [`Config::judge_hello`](super::Config::judge_hello) is set: answer with `admit` or `deny`.
    Hello {
        /// All that it says besides, known or not; none that is needed is unknown to this library.
        extensions: Vec<Extension>,
    },
    /// HELLO stands: streams may be opened.
    Established {
        /// The version in force.
        version: u32,
        /// The feature bits in force.
        features: u64,
        /// What the peer takes from us.
        limits: Limits,
    },
    /// The peer does not know HELLO. The link stays usable for legacy calls; the session does nothing more.
    Legacy(RemoteError),
    /// The peer asks for a stream: answer with `accept` or `refuse`, at once or later.
    Incoming {
        /// The stream asked for.
        id: StreamId,
        /// What it asks.
        request: Open,
    },
    /// The peer accepted a stream of ours.
    Accepted(StreamId),
    /// The peer finished its direction: no more data will come. What came before it is still to be delivered.
    Finished(StreamId),
    /// The peer discards what we send: read the source no more. Our direction has been finished already.
    Stopped(StreamId),
    /// The stream ended before both directions were done. Nothing more will be said of it.
    Failed {
        /// Which.
        id: StreamId,
        /// Why.
        error: StreamError,
        /// What it did.
        stats: StreamStats,
    },
    /// Both directions are done, and the peer delivered all that we sent, or discarded it by STOP.
    Over {
        /// Which.
        id: StreamId,
        /// What it did.
        stats: StreamStats,
    },
    /// The peer opens no new streams and takes none; the session ends with its last stream.
    Draining,
    /// The session is over, with its first cause if it was not by agreement. Its streams have failed with that cause.
    Closed(Result<(), SessionError>),
}
