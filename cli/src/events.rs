//! What happens in sessions, said: a sentence for people, and its fields for programs.

use virbistream::io::{Report, SessionKey};
use virbistream::proto::SessionError;

/// How loud it is when a session fails, and when a stream is refused: a command that ends with it says so itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loudness {
    pub(crate) session: log::Level,
    pub(crate) stream: log::Level,
}

pub(crate) fn log(report: &Report, loudness: Loudness) {
    match report {
        Report::LinkAccepted { session, peer } => log::info!(
            event = "link_accepted", session = session.number(), peer:%;
            "session {session}: link accepted from {peer}"
        ),
        Report::LinkSecured { session, version, identity } => log::info!(
            event = "link_secured", session = session.number(), tls = *version, identity:%;
            "session {session}: {version} with {identity}"
        ),
        Report::Established { session, version, limits } => log::info!(
            event = "session_established", session = session.number(), version = *version;
            "session {session}: BiStream {version}, {} streams, {} bytes a packet", limits.max_streams, limits.max_data
        ),
        Report::Draining { session } => log::info!(
            event = "session_draining", session = session.number();
            "session {session}: the peer takes no new streams"
        ),
        Report::Legacy { session, error } => log::info!(
            event = "legacy_peer", session = session.number(), error:%;
            "session {session}: a legacy peer: {error}"
        ),
        Report::OpensRefused { session, count } => log::warn!(
            event = "opens_refused", session = session.number(), count = *count;
            "session {session}: the peer asked for more streams than it may have: {count} refused"
        ),
        Report::SessionEnded { session, cause } => log_session_end(*session, cause, loudness.session),
        Report::StreamOpened { .. } | Report::StreamRefused { .. } | Report::StreamEnded { .. } => {
            log_stream(report, loudness.stream);
        }
        Report::LinksRefused { peer, count } => log::warn!(
            event = "links_refused", peer:%, count = *count;
            "as many links are open as may be: {count} refused, the last from {peer}"
        ),
        Report::AcceptFailed { reason, .. } => log::warn!(
            event = "accept_failed", reason:%;
            "a connection cannot be accepted: {reason}"
        ),
        _ => {}
    }
}

fn log_session_end(session: SessionKey, cause: &Result<(), SessionError>, failed: log::Level) {
    match cause {
        Ok(()) => {
            log::info!(event = "session_ended", session = session.number(); "session {session}: closed");
        }
        Err(cause) => {
            log::log!(failed, event = "session_ended", session = session.number(), cause:%; "session {session}: {cause}");
        }
    }
}

fn log_stream(report: &Report, refused: log::Level) {
    match report {
        Report::StreamOpened { session, id, target, .. } => log::info!(
            event = "stream_opened", session = session.number(), stream = id.number(), target:%;
            "session {session}: stream {id} to `{target}`"
        ),
        Report::StreamRefused { session, target, reason, .. } => log::log!(
            refused, event = "stream_refused", session = session.number(), target:%, reason:%;
            "session {session}: no stream to `{target}`: {reason}"
        ),
        Report::StreamEnded { session, id, target, cause: Ok(()), stats, .. } => log::info!(
            event = "stream_ended", session = session.number(), stream = id.number(), target:%,
            sent = stats.sent, received = stats.received;
            "session {session}: stream {id} to `{target}` done, {} bytes sent, {} received", stats.sent, stats.received
        ),
        Report::StreamEnded { session, id, target, cause: Err(cause), stats, .. } => log::warn!(
            event = "stream_ended", session = session.number(), stream = id.number(), target:%,
            sent = stats.sent, received = stats.received, cause:%;
            "session {session}: stream {id} to `{target}` failed, {} bytes sent, {} received: {cause}",
            stats.sent, stats.received
        ),
        _ => {}
    }
}
