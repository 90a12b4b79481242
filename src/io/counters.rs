//! What has happened in the dispatchers of a handle, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::report::Report;
use crate::proto::SessionError;
use crate::wire::Rule;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// What there is of links that came over listeners, and what has happened since the handle was made, all its dispatchers together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            /// Links now that have said HELLO, or called a daemon behind us.
            pub sessions_now: u64,
            /// Links now that have said nothing whole yet.
            pub half_open_now: u64,
            /// Links that were closed at once, since there were too many.
            pub links_refused: u64,
            /// Links that were closed at once, since too many came in a second from where they came from.
            pub links_over_rate: u64,
            $($(#[$doc])* pub $name: u64,)*
        }

        /// Counts by what is reported, so that nothing is done for a packet.
        #[derive(Debug, Default)]
        pub(super) struct Tally {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Tally {
            pub(super) fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* ..Counters::default() }
            }
        }
    };
}

counters! {
    /// Links accepted by listeners.
    links_accepted;
    /// Sessions whose HELLO stood.
    sessions_begun;
    /// Sessions that are over, and links that never had one.
    sessions_ended;
    /// Links whose HELLO did not come in time.
    hello_timeouts;
    /// Sessions ended since nothing was heard from the peer.
    silent_peers;
    /// Sessions ended since the peer took nothing of what was sent.
    unread_links;
    /// Sessions ended by the rules `flood` and `open-flood`.
    floods;
    /// Sessions ended by another rule that the peer broke.
    violations;
    /// Sessions lost with their link.
    links_lost;
    /// Links whose TLS handshake failed, or was not over in time.
    handshakes_failed;
    /// Streams that stood, of both sides.
    streams_opened;
    /// Streams that were asked for, by the peer or by us, and did not come to be; those over a limit of ours are not among them.
    streams_refused;
    /// OPENs refused by `Config::max_opens`.
    opens_over_rate;
    /// OPENs refused by `Config::max_streams`.
    opens_over_streams;
    /// OPENs refused by `Config::memory_budget` or `Config::session_memory`.
    opens_over_memory;
    /// Peers whose HELLO was refused: by who judges it ([`Access`](super::Access)), or since version, features or limits do not fit.
    peers_refused;
    /// Clients that may not reach the daemon behind us.
    daemon_refused;
    /// Bytes that links have taken, before TLS.
    sent_bytes;
    /// Bytes that came over links, behind TLS.
    received_bytes;
}

/// One more.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn count(&self, report: &Report) {
        match report {
            Report::LinkAccepted { .. } => add(&self.links_accepted, 1),
            Report::Established { .. } => add(&self.sessions_begun, 1),
            Report::SessionEnded { cause, .. } => {
                add(&self.sessions_ended, 1);
                if let Some(counter) = cause.as_ref().err().and_then(|cause| self.of_cause(cause)) {
                    add(counter, 1);
                }
            }
            Report::DaemonRefused { .. } => add(&self.daemon_refused, 1),
            Report::StreamOpened { .. } => add(&self.streams_opened, 1),
            Report::StreamRefused { .. } => add(&self.streams_refused, 1),
            _ => {}
        }
    }

    fn of_cause(&self, cause: &SessionError) -> Option<&AtomicU64> {
        Some(match cause {
            SessionError::PeerMisbehaved { rule: Rule::Flood | Rule::OpenFlood, .. } => &self.floods,
            SessionError::PeerMisbehaved { .. } => &self.violations,
            SessionError::HelloTimeout(_) => &self.hello_timeouts,
            SessionError::Silent(_) => &self.silent_peers,
            SessionError::Unread(_) => &self.unread_links,
            SessionError::LinkLost(_) => &self.links_lost,
            SessionError::Handshake(_) => &self.handshakes_failed,
            SessionError::RefusedPeer(_) => &self.peers_refused,
            _ => return None,
        })
    }
}
