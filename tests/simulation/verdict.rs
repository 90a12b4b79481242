//! What must be true at the end, at both ends together.

use virbistream::proto::{SessionError, StreamError};
use virbistream::wire::{RemoteError, close, codes};

use crate::handler::{Ending, Handler};
use crate::host::Host;
use crate::support::End;
use crate::world::Link;

pub(crate) fn judge(link: &Link) {
    for end in End::BOTH {
        let (host, peer) = (&link.hosts[end as usize], &link.hosts[end.other() as usize]);
        assert_nothing_is_left(host);
        assert_cause(link, host, peer);
        for (id, handler) in &host.handlers {
            assert_ending(link, host, handler, peer, peer.handlers.get(id));
        }
    }
}

fn assert_nothing_is_left(host: &Host) {
    let session = &host.session;
    assert_eq!((session.stream_count(), session.granted(), session.poll_timeout()), (0, 0, None));
    assert!(session.is_closed() && (session.is_finished() || !host.out.is_empty()));
    assert!(host.handlers.values().all(|handler| !handler.is_living()), "every stream has had its end");
}

/// The first cause is what both ends report, or the lost link where one could not be told.
fn assert_cause(link: &Link, host: &Host, peer: &Host) {
    let (ours, theirs) = (host.closed.as_ref().expect("an end"), peer.closed.as_ref().expect("an end"));
    let explained = match ours {
        Ok(()) => !matches!(theirs, Err(SessionError::PeerClosed { .. })),
        Err(SessionError::PeerClosed { code, rule: 0, text }) => match theirs {
            Err(cause @ SessionError::Shutdown(_)) => (*code, text) == (close::SHUTDOWN, &cause.to_string()),
            Err(cause @ SessionError::Silent(_)) => (*code, text) == (close::SILENT, &cause.to_string()),
            _ => false,
        },
        // Without a fault of the link, its end is the word of a peer that could have no other: HELLO did not stand there.
        Err(SessionError::LinkLost(_)) => link.was_cut || !peer.stood,
        Err(SessionError::Shutdown(_) | SessionError::Silent(_) | SessionError::HelloTimeout(_)) => true,
        Err(_) => false,
    };
    assert!(explained, "{:?} ended by {ours:?}, its peer by {theirs:?}", host.end);
}

fn assert_ending(link: &Link, host: &Host, handler: &Handler, peer: &Host, far: Option<&Handler>) {
    let words = |error: &RemoteError| far.and_then(|far| far.ending.as_ref()).is_some_and(|ending| told(ending, error));
    let explained = match handler.ending.as_ref().expect("an end") {
        Ending::Over(_) => handler.was_stopped || far.is_some_and(|far| far.consumed == handler.sent),
        Ending::Failed(StreamError::Session(cause)) => host.closed == Some(Err(cause.clone())),
        Ending::Failed(StreamError::Closing) => host.closed == Some(Ok(())),
        Ending::Failed(StreamError::Reset(error)) => words(error),
        Ending::Failed(StreamError::Refused(error)) => match far {
            Some(_) => words(error),
            // An opener that counts well is refused for want of memory, never for too many streams.
            None if error.code == codes::RESOURCE_BUSY => !link.has_memory[peer.end as usize],
            None => error.code == codes::OPERATION_INVALID,
        },
        Ending::Failed(StreamError::OpenTimeout(_)) => true,
        Ending::Failed(_) => false,
        // The peer knows, had an end of its own, or could not be told any more.
        Ending::Dismissed(words) => match far.and_then(|far| far.ending.as_ref()) {
            Some(Ending::Failed(StreamError::Reset(error) | StreamError::Refused(error))) => error.message == *words,
            Some(Ending::Failed(StreamError::Session(_))) => link.was_cut || peer.closed != Some(Ok(())),
            _ => true,
        },
    };
    assert!(explained, "{:?}: {handler:?}, its peer: {far:?}", host.end);
}

/// Whether this ending is what the peer's error tells of.
fn told(ending: &Ending, error: &RemoteError) -> bool {
    match ending {
        Ending::Dismissed(words) => error.message == *words,
        Ending::Failed(StreamError::OpenTimeout(_)) => error.code == codes::OPERATION_TIMEOUT,
        _ => false,
    }
}
