use super::handle::{ListenerKey, SessionKey, StreamKey};
use super::identity::Identity;
use crate::proto::{SessionError, StreamError, StreamId, StreamStats};
use crate::rpc::{self, ProcedureId};
use crate::wire::{Limits, RemoteError};

/// What happened in a dispatcher, for people and programs to know. Nothing needs an answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Report {
    /// Somebody connected to a listener for links.
    LinkAccepted {
        /// The session begun.
        session: SessionKey,
        /// Where from.
        peer: String,
    },
    /// Connections were closed at once, since there are as many links as [`Handle::limit_links`](super::Handle::limit_links) allows, or too
    /// many came in a second. Told once a second at most.
    LinksRefused {
        /// Where the last one came from.
        peer: String,
        /// How many since this was told before.
        count: u64,
        /// Those of them that came too fast from where they come from.
        over_rate: u64,
    },
    /// A client may not reach the daemon behind us, by [`Access`](super::Access)' word: each of its calls is answered with that.
    DaemonRefused {
        /// The session whose link it is on.
        session: SessionKey,
        /// Why.
        reason: String,
    },
    /// The TLS handshake of a link is over, and each side has accepted the other.
    LinkSecured {
        /// The session.
        session: SessionKey,
        /// `TLS 1.3` or `TLS 1.2`.
        version: &'static str,
        /// Who is at the other end.
        identity: Identity,
    },
    /// HELLO stands.
    Established {
        /// The session.
        session: SessionKey,
        /// The version in force.
        version: u32,
        /// What the peer takes from us.
        limits: Limits,
    },
    /// The peer does not know BiStream. `SessionEnded` follows.
    Legacy {
        /// The session.
        session: SessionKey,
        /// What the peer answered to HELLO.
        error: RemoteError,
    },
    /// The peer takes and opens no new streams; `SessionEnded` follows once the last is over.
    Draining {
        /// The session.
        session: SessionKey,
    },
    /// The session is over; of its streams, those that were open have been reported.
    SessionEnded {
        /// The session.
        session: SessionKey,
        /// Its first cause, if it did not end by agreement.
        cause: Result<(), SessionError>,
    },
    /// A stream stands.
    StreamOpened {
        /// The session.
        session: SessionKey,
        /// The stream, for as long as its dispatcher lives.
        stream: StreamKey,
        /// Its name on the wire, within its session.
        id: StreamId,
        /// The accepting end's name for what it reaches.
        target: String,
    },
    /// A stream was asked for, by the peer or by us, and does not come to be. Of one that the peer takes back while its
    /// target is dialled nothing is said.
    StreamRefused {
        /// The session.
        session: SessionKey,
        /// The stream that there is not.
        stream: StreamKey,
        /// The target asked for.
        target: String,
        /// Why.
        reason: String,
    },
    /// The peer asked for more streams than it may have, or for too many in a second. Told once a second at most.
    OpensRefused {
        /// The session.
        session: SessionKey,
        /// How many were refused since this was told before.
        count: u64,
    },
    /// A stream is over.
    StreamEnded {
        /// The session.
        session: SessionKey,
        /// The stream, for as long as its dispatcher lives.
        stream: StreamKey,
        /// Its name on the wire, within its session.
        id: StreamId,
        /// The accepting end's name for what it reached.
        target: String,
        /// Its first cause, if not by both directions being done.
        cause: Result<(), StreamError>,
        /// What it did.
        stats: StreamStats,
    },
    /// A daemon tells of an event, or whatever else needs no answer.
    Message {
        /// The session on whose link it came.
        session: SessionKey,
        /// Of which procedure.
        procedure: ProcedureId,
        /// Its body.
        body: Vec<u8>,
    },
    /// A legacy stream is over.
    LegacyStreamEnded {
        /// The session on whose link it was.
        session: SessionKey,
        /// The stream.
        stream: StreamKey,
        /// The procedure that began it.
        procedure: String,
        /// Its first cause, if it did not end in order.
        cause: Result<(), rpc::StreamError>,
    },
    /// A listener cannot accept, for want of descriptors say. It is tried again; this is told once until it can.
    AcceptFailed {
        /// Which.
        listener: ListenerKey,
        /// The system's words.
        reason: String,
    },
}
