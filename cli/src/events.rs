//! What happens in sessions, said: a sentence for people, and its fields for programs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use virbistream::io::{Report, SessionKey};
use virbistream::proto::SessionError;

use crate::sparing::Sparing;

/// How loud it is when a session fails, and when a stream is refused: a command that ends with it says so itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loudness {
    pub(crate) session: log::Level,
    pub(crate) stream: log::Level,
}

/// Says what dispatchers report, from whichever thread; what peers can bring about as often as they like, ten times at once and then
/// once a second.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    loudness: Loudness,
    said: Arc<Mutex<Said>>,
}

impl Log {
    pub(crate) fn new(loudness: Loudness) -> Self {
        Self { loudness, said: Arc::default() }
    }

    pub(crate) fn report(&self, report: &Report) {
        self.said.lock().on_report(report, Instant::now(), &mut |line| say(line, self.loudness));
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum More {
    LinksFailed(u64),
    LinksClosed(u64),
    Streams(SessionKey, u64),
}

#[derive(Clone, Copy)]
enum Line<'a> {
    Report(&'a Report),
    /// So many more of which nothing else is said.
    More(More),
}

#[derive(Debug, Default)]
struct Said {
    /// Links that came and have not said HELLO, with what was kept back of each.
    links: HashMap<SessionKey, Vec<Report>>,
    accepted: Sparing,
    closed: Sparing,
    failed: Sparing,
    /// Of sessions that stand, their streams that were refused or failed.
    streams: HashMap<SessionKey, Sparing>,
}

impl Said {
    fn on_report(&mut self, report: &Report, now: Instant, say: &mut dyn FnMut(Line<'_>)) {
        match report {
            Report::LinkAccepted { session, .. } => {
                let is_said = self.accepted.take(now).is_some();
                self.links.insert(*session, if is_said { Vec::new() } else { vec![report.clone()] });
                if is_said {
                    say(Line::Report(report));
                }
            }
            Report::LinkSecured { session, .. } => match self.links.get_mut(session).filter(|kept| !kept.is_empty()) {
                Some(kept) => kept.push(report.clone()),
                None => say(Line::Report(report)),
            },
            Report::Established { session, .. } => {
                self.links.remove(session).iter().flatten().for_each(|kept| say(Line::Report(kept)));
                self.streams.insert(*session, Sparing::default());
                say(Line::Report(report));
            }
            Report::SessionEnded { session, cause } => match self.links.remove(session) {
                Some(kept) => self.on_link_end(report, cause.is_err(), &kept, now, say),
                None => {
                    let more = self.streams.remove(session).map_or(0, |streams| streams.left_out());
                    if more > 0 {
                        say(Line::More(More::Streams(*session, more)));
                    }
                    say(Line::Report(report));
                }
            },
            Report::StreamRefused { session, .. } | Report::StreamEnded { session, cause: Err(_), .. } => {
                let streams = self.streams.get_mut(session);
                let Some(more) = streams.map_or(Some(0), |streams| streams.take(now)) else { return };
                if more > 0 {
                    say(Line::More(More::Streams(*session, more)));
                }
                say(Line::Report(report));
            }
            // With the link's end.
            Report::DaemonRefused { session, .. } if self.links.contains_key(session) => {
                self.links.entry(*session).or_default().push(report.clone());
            }
            _ => say(Line::Report(report)),
        }
    }

    /// A link has ended that never said HELLO.
    fn on_link_end(
        &mut self,
        end: &Report,
        failed: bool,
        kept: &[Report],
        now: Instant,
        say: &mut dyn FnMut(Line<'_>),
    ) {
        let more = if failed { self.failed.take(now) } else { self.closed.take(now) };
        let Some(more) = more else { return };
        if more > 0 {
            say(Line::More(if failed { More::LinksFailed(more) } else { More::LinksClosed(more) }));
        }
        kept.iter().chain([end]).for_each(|report| say(Line::Report(report)));
    }
}

fn say(line: Line<'_>, loudness: Loudness) {
    match line {
        Line::Report(report) => log(report, loudness),
        Line::More(More::LinksFailed(count)) => log::log!(
            loudness.session, event = "links_failed", count;
            "more links that failed before HELLO: {count}"
        ),
        Line::More(More::LinksClosed(count)) => log::info!(
            event = "links_closed", count;
            "more links that were closed without HELLO: {count}"
        ),
        Line::More(More::Streams(session, count)) => log::log!(
            loudness.stream, event = "streams_failed", session = session.number(), count;
            "session {session}: more streams that were refused or failed: {count}"
        ),
    }
}

fn log(report: &Report, loudness: Loudness) {
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
        Report::DaemonRefused { session, reason } => log::warn!(
            event = "daemon_refused", session = session.number(), reason:%;
            "session {session}: libvirtd is not for this client: {reason}"
        ),
        Report::SessionEnded { session, cause } => log_session_end(*session, cause, loudness.session),
        Report::StreamOpened { .. } | Report::StreamRefused { .. } | Report::StreamEnded { .. } => {
            log_stream(report, loudness.stream);
        }
        Report::LinksRefused { peer, count, over_rate: 0 } => log::warn!(
            event = "links_refused", peer:%, count = *count, over_rate = 0;
            "as many links are open as may be: {count} refused, the last from {peer}"
        ),
        Report::LinksRefused { peer, count, over_rate } => log::warn!(
            event = "links_refused", peer:%, count = *count, over_rate = *over_rate;
            "links come too fast or are too many: {count} refused, {over_rate} of them for their rate, the last from {peer}"
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use virbistream::io::{Dispatcher, Handle, Relay, SessionOptions, Socket};
    use virbistream::proto::Side;
    use virbistream::wire::{Limits, Open};

    use super::*;

    struct Told {
        said: Said,
        handle: Handle,
        now: Instant,
        lines: Vec<String>,
    }

    impl Told {
        fn new() -> Self {
            let handle = Dispatcher::new(drop).expect("a dispatcher").handle();
            Self { said: Said::default(), handle, now: Instant::now(), lines: Vec::new() }
        }

        /// The name of a session that there is not.
        fn key(&self) -> SessionKey {
            let socket = Socket::from_unix(UnixStream::pair().expect("a pair").0).expect("a socket");
            self.handle.attach(socket, Side::Accepting, SessionOptions::default())
        }

        fn tell(&mut self, report: &Report) {
            let lines = &mut self.lines;
            self.said.on_report(report, self.now, &mut |line| {
                lines.push(match line {
                    Line::Report(Report::LinkAccepted { .. }) => "accepted".into(),
                    Line::Report(Report::Established { .. }) => "established".into(),
                    Line::Report(Report::SessionEnded { .. }) => "ended".into(),
                    Line::Report(Report::StreamRefused { .. }) => "refused".into(),
                    Line::Report(report) => panic!("{report:?}"),
                    Line::More(More::Streams(_, count)) => format!("{count} more streams"),
                    Line::More(More::LinksFailed(count)) => format!("{count} more failed"),
                    Line::More(More::LinksClosed(count)) => format!("{count} more closed"),
                });
            });
        }

        fn accept(&mut self) -> SessionKey {
            let session = self.key();
            self.tell(&Report::LinkAccepted { session, peer: "somewhere".into() });
            session
        }

        fn end(&mut self, session: SessionKey) {
            self.tell(&Report::SessionEnded { session, cause: Err(SessionError::LinkLost("gone".into())) });
        }

        fn establish(&mut self, session: SessionKey) {
            let limits = Limits { max_data: 1, max_streams: 1 };
            self.tell(&Report::Established { session, version: 1, limits });
        }

        fn count(&self, line: &str) -> usize {
            self.lines.iter().filter(|said| *said == line).count()
        }
    }

    #[test]
    fn links_that_end_before_hello_are_said_ten_times_and_then_once_a_second() {
        let mut told = Told::new();
        for _ in 0..100 {
            let session = told.accept();
            told.end(session);
        }
        assert_eq!((told.count("accepted"), told.count("ended"), told.lines.len()), (10, 10, 20));
        told.lines.clear();
        told.now += Duration::from_secs(1);
        for _ in 0..100 {
            let session = told.accept();
            told.end(session);
        }
        assert_eq!(told.lines, ["accepted", "90 more failed", "ended"]);
        assert!(told.said.links.is_empty());
    }

    #[test]
    fn all_is_said_of_a_link_that_says_hello_among_many_that_do_not() {
        let mut told = Told::new();
        for _ in 0..100 {
            let session = told.accept();
            told.end(session);
        }
        told.lines.clear();
        let session = told.accept();
        assert_eq!(told.lines, [""; 0]);
        told.establish(session);
        told.end(session);
        assert_eq!(told.lines, ["accepted", "established", "ended"]);
        assert!(told.said.streams.is_empty());
    }

    #[test]
    fn streams_that_are_refused_are_said_ten_times_and_then_once_a_second_for_each_session() {
        let mut told = Told::new();
        let sessions = [told.key(), told.key()];
        sessions.iter().for_each(|session| told.establish(*session));
        let relay = Relay::from(Socket::from_unix(UnixStream::pair().expect("a pair").0).expect("a socket"));
        let stream = told.handle.open(sessions[0], Open::default(), Box::new(relay));
        told.lines.clear();
        let refuse = |told: &mut Told, session, times| {
            for _ in 0..times {
                let (target, reason) = (String::new(), String::new());
                told.tell(&Report::StreamRefused { session, stream, target, reason });
            }
        };
        refuse(&mut told, sessions[0], 100);
        assert_eq!((told.count("refused"), told.lines.len()), (10, 10));
        refuse(&mut told, sessions[1], 1);
        assert_eq!(told.lines.len(), 11);
        told.lines.clear();
        told.now += Duration::from_secs(1);
        refuse(&mut told, sessions[0], 100);
        assert_eq!(told.lines, ["90 more streams", "refused"]);
        told.lines.clear();
        told.end(sessions[0]);
        assert_eq!(told.lines, ["99 more streams", "ended"]);
    }
}
