use std::fmt;
use std::sync::Arc;

use super::handle::SessionKey;
use super::handler::Targets;
use super::identity::Identity;
use crate::wire::{Extension, RemoteError};

/// Who may have what of us, by our administrator's word. Called on dispatchers' threads: no call may block.
pub trait Access: Send + Sync {
    /// A peer said HELLO.
    ///
    /// # Errors
    /// What the peer is told: `AUTH_FAILED` for who it is or is not, `OPERATION_DENIED` for policy. It is not let in.
    fn admit(&self, caller: &Caller<'_>) -> Result<Admission, RemoteError>;

    /// A client of libvirt's RPC wants to go to the daemon behind us ([`SessionOptions::daemon`](super::SessionOptions::daemon)),
    /// before anything of it went there. The permit is dropped when its link or session ends;
    /// one client may have both this and that of its [`Admission`].
    ///
    /// # Errors
    /// What all its calls are answered with instead.
    fn admit_to_daemon(&self, caller: &Caller<'_>) -> Result<Permit, RemoteError>;
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Caller<'a> {
    /// The session asked for.
    pub session: SessionKey,
    /// Where its link comes from, as [`Socket::peer`](super::Socket::peer) says it.
    pub peer: &'a str,
    /// Who is at the link's other end, as far as its transport proves it.
    pub identity: &'a Identity,
    /// What HELLO says besides: a ticket say.
    pub extensions: &'a [Extension],
}

/// What a peer that is let in may have.
pub struct Admission {
    /// What it may open.
    pub targets: Arc<dyn Targets>,
    /// Streams that it may have open at once; the session's configuration may allow less.
    pub max_streams: u32,
    /// Bytes that all its streams together carry each second, at most, in each direction. First windows count: so many of them a second bound
    /// how many streams it opens, as [`Session::set_receive_limit`](crate::proto::Session::set_receive_limit) says.
    pub bandwidth: Option<u64>,
    /// Dropped when the session ends.
    pub permit: Permit,
}

/// What is held as long as somebody is in: a place in a count, or nothing.
pub type Permit = Option<Box<dyn Send>>;

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("max_streams", &self.max_streams)
            .field("bandwidth", &self.bandwidth)
            .finish_non_exhaustive()
    }
}
