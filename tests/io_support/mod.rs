//! What the io tests share: dispatchers on threads, and waits that end.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod handlers;
mod raw;
mod sockets;
mod tunnel;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use allocation_counter::{AllocationInfo, measure};
use virbistream::io::{Address, Dispatcher, Handle, Listener, Permissions, Report, SessionKey, SessionOptions};
use virbistream::proto::{SessionError, StreamError, StreamId, StreamStats};

pub(crate) use handlers::{Custom, Endless, Offer, Told, all_told, once, remote_error, with_stalled};
pub(crate) use raw::{Raw, data_packet, hello, legacy_call, ours, packet};
pub(crate) use sockets::{Pattern, accept, closed_listener, patient, tcp_link, to_eof, unix_link};
pub(crate) use tunnel::{Carried, Tunnel};

/// No wait is longer; none is that long unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A dispatcher on a thread of its own, or several, shut down with their owner.
pub(crate) struct Node {
    pub(crate) handle: Handle,
    reports: mpsc::Receiver<Report>,
    /// Reports that no wait has asked for yet.
    kept: Vec<Report>,
    over: Vec<mpsc::Receiver<AllocationInfo>>,
}

impl Node {
    pub(crate) fn start() -> Self {
        let (report, reports) = mpsc::channel();
        Self::reporting(reports, move |what| drop(report.send(what)))
    }

    /// One whose reports are dropped at once, so that they are no part of the memory it uses.
    pub(crate) fn without_reports() -> Self {
        Self::reporting(mpsc::channel().1, drop)
    }

    /// Dispatchers that share one handle, each on a thread.
    pub(crate) fn several(threads: usize) -> Self {
        let (report, reports) = mpsc::channel();
        let threads = threads.try_into().expect("one at least");
        Self::running(reports, Dispatcher::several(threads, move |what| drop(report.send(what))).unwrap())
    }

    fn reporting(reports: mpsc::Receiver<Report>, report: impl FnMut(Report) + Send + 'static) -> Self {
        Self::running(reports, vec![Dispatcher::new(report).unwrap()])
    }

    fn running(reports: mpsc::Receiver<Report>, dispatchers: Vec<Dispatcher>) -> Self {
        let handle = dispatchers[0].handle();
        let run = |dispatcher: Dispatcher| {
            let (end, over) = mpsc::channel();
            thread::spawn(move || {
                let used = measure(|| dispatcher.run().unwrap());
                let _ = end.send(used);
            });
            over
        };
        Self { handle, reports, kept: Vec::new(), over: dispatchers.into_iter().map(run).collect() }
    }

    /// Listens for links on a free TCP port of the loopback.
    pub(crate) fn listen(&self, options: SessionOptions) -> Address {
        let listener = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), Permissions::default()).unwrap();
        let address = listener.address().clone();
        self.handle.listen(listener, options);
        address
    }

    /// The first report that `pick` takes. Others are kept for later waits.
    #[track_caller]
    pub(crate) fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Report) -> Option<T>) -> T {
        let mut at = 0;
        let deadline = Instant::now() + PATIENCE;
        loop {
            while at == self.kept.len() {
                match self.reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(report) => self.kept.push(report),
                    Err(_) => panic!("no report of {what}; what came: {:#?}", self.kept),
                }
            }
            if let Some(found) = pick(&self.kept[at]) {
                self.kept.remove(at);
                return found;
            }
            at += 1;
        }
    }

    /// What has been reported and not been asked for.
    pub(crate) fn unasked(&mut self) -> &[Report] {
        self.kept.extend(self.reports.try_iter());
        &self.kept
    }

    #[track_caller]
    pub(crate) fn link_accepted(&mut self) -> SessionKey {
        self.wait("a link accepted", |report| match report {
            Report::LinkAccepted { session, .. } => Some(*session),
            _ => None,
        })
    }

    #[track_caller]
    pub(crate) fn established(&mut self, key: SessionKey) {
        self.wait("a session established", |report| {
            matches!(report, Report::Established { session, .. } if *session == key).then_some(())
        });
    }

    #[track_caller]
    pub(crate) fn session_ended(&mut self, key: SessionKey) -> Result<(), SessionError> {
        self.wait("the end of the session", |report| match report {
            Report::SessionEnded { session, cause } if *session == key => Some(cause.clone()),
            _ => None,
        })
    }

    #[track_caller]
    pub(crate) fn opened(&mut self, key: SessionKey) -> StreamId {
        self.wait("a stream opened", |report| match report {
            Report::StreamOpened { session, id, .. } if *session == key => Some(*id),
            _ => None,
        })
    }

    #[track_caller]
    pub(crate) fn opened_as(&mut self, key: SessionKey, stream: StreamId) {
        self.wait("the stream opened", |report| {
            let stands = matches!(report, Report::StreamOpened { session, id, .. } if (*session, *id) == (key, stream));
            stands.then_some(())
        });
    }

    /// Why a stream was refused.
    #[track_caller]
    pub(crate) fn refused(&mut self) -> String {
        self.wait("a stream refused", |report| match report {
            Report::StreamRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
    }

    #[track_caller]
    pub(crate) fn ended(&mut self, key: SessionKey, stream: StreamId) -> (Result<(), StreamError>, StreamStats) {
        self.wait("the end of the stream", |report| match report {
            Report::StreamEnded { session, id, cause, stats, .. } if (*session, *id) == (key, stream) => {
                Some((cause.clone(), *stats))
            }
            _ => None,
        })
    }

    /// Waits until the dispatcher has ended by itself, and those it works with; gives what memory the thread of the first used.
    #[track_caller]
    pub(crate) fn join(self) -> AllocationInfo {
        let used = |over: &mpsc::Receiver<AllocationInfo>| {
            over.recv_timeout(PATIENCE).expect("the dispatcher ends, and without a panic")
        };
        let all: Vec<AllocationInfo> = self.over.iter().map(used).collect();
        all[0]
    }

    /// Ends it at once; gives what memory its thread used.
    #[track_caller]
    pub(crate) fn stop(self) -> AllocationInfo {
        self.handle.shutdown("the test is over");
        self.join()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.handle.shutdown("the test is over");
    }
}
