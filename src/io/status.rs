//! What runs in a dispatcher, as it is at one time.

use std::time::Duration;

use super::handle::{SessionKey, StreamKey};
use super::identity::Identity;
use crate::proto::{StreamId, StreamStats};

/// A session, or a link on its way to one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionStatus {
    /// Which.
    pub session: SessionKey,
    /// Where its link comes from or goes to, for people to read.
    pub peer: String,
    /// Who is at the link's other end, as far as its transport proves it.
    pub identity: Identity,
    /// The version in force; `None` before HELLO stands, and for who speaks libvirt's RPC alone.
    pub version: Option<u32>,
    /// The last that was measured.
    pub round_trip: Option<Duration>,
    /// Bytes that the link has taken, before TLS.
    pub sent: u64,
    /// Bytes that came over it, behind TLS.
    pub received: u64,
    /// Its streams that stand, by rising number.
    pub streams: Vec<StreamStatus>,
}

/// A stream that stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StreamStatus {
    /// Which.
    pub stream: StreamKey,
    /// Its name on the wire, within its session.
    pub id: StreamId,
    /// The accepting end's name for what it reaches.
    pub target: String,
    /// 0 first to 3 last.
    pub priority: u32,
    /// What it did so far.
    pub stats: StreamStats,
    /// How long sending waited for credit, all in all.
    pub stalled: Duration,
    /// Bytes that the peer lets us send now.
    pub credit: u64,
    /// Bytes that the peer may be ahead of our delivery.
    pub window: u64,
}
