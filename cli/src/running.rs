//! A dispatcher on its thread, and what reaches the command that runs it: reports, signals, the end.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use virbistream::io::{
    Address, Dispatcher, Handle, Listener, Permissions, Report, Socket, TlsClient, TlsConfigError, TlsServer,
};

use crate::control::Control;
use crate::desk::Desk;
use crate::events;
use crate::metrics::Metrics;
use crate::nbd::Disks;
use crate::policy::Policy;

/// Why a command failed, in one sentence.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: Address, source: io::Error },
    #[error("cannot connect to {peer}: {source}")]
    Connect { peer: Address, source: io::Error },
    #[error("{peer} speaks libvirt's RPC but not BiStream (it answered: {answer}); run `virbistream serve` there")]
    Legacy { peer: Address, answer: String },
    #[error("the session with {peer} is over: {cause}")]
    SessionEnded { peer: Address, cause: String },
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    #[error("the time to drain had passed, and what had not finished was cut; streams cut: {0}")]
    Cut(usize),
    #[error("the event loop failed: {0}")]
    System(#[from] io::Error),
    #[error("the event loop panicked")]
    Panicked,
}

/// What reaches a running command.
#[derive(Debug)]
pub(crate) enum News {
    Report(Report),
    /// What `connect` came to.
    Connected(io::Result<Socket>),
    /// SIGTERM or SIGINT.
    Signal,
    /// SIGHUP, if it was asked for.
    Hangup,
    /// The dispatchers are over, or one of them failed.
    Ended(Result<(), Error>),
    /// The time given has passed.
    Nothing,
}

pub(crate) struct Running {
    handle: Handle,
    disks: Disks,
    sender: Sender<News>,
    news: Receiver<News>,
    /// A signal has come that ends us.
    signalled: Arc<AtomicBool>,
}

impl Running {
    /// Sessions are shared by so many threads.
    pub(crate) fn start(loudness: events::Loudness, threads: NonZeroUsize) -> Result<Self, Error> {
        allow_descriptors();
        let (sender, news) = mpsc::channel();
        let reports = sender.clone();
        let log = events::Log::new(loudness);
        let dispatchers = Dispatcher::several(threads, move |report| {
            log.report(&report);
            let _ = reports.send(News::Report(report));
        })?;
        // There is one at least.
        let handle = dispatchers[0].handle();
        let running = Self { handle, disks: Disks::default(), sender, news, signalled: Arc::default() };
        running.end_at(&[SIGTERM, SIGINT])?;
        spawn_loops(&running.sender, dispatchers.into_iter().map(|dispatcher| || dispatcher.run()).collect());
        Ok(running)
    }

    fn end_at(&self, signals: &[c_int]) -> io::Result<()> {
        let mut signals = Signals::new(signals)?;
        let (told, signalled) = (self.sender.clone(), Arc::clone(&self.signalled));
        let tell = move |_: &c_int| {
            signalled.store(true, Ordering::Relaxed);
            told.send(News::Signal).is_ok()
        };
        thread::spawn(move || signals.forever().take_while(tell).for_each(drop));
        Ok(())
    }

    /// Treats the end of the terminal as another signal to end, unless whoever started us has that ignored, as nohup does.
    pub(crate) fn end_at_hangups(&self) -> Result<(), Error> {
        match is_ignored(SIGHUP) {
            true => Ok(()),
            false => Ok(self.end_at(&[SIGHUP])?),
        }
    }

    /// Whether a signal has come that ends us, seen at once from any thread.
    pub(crate) fn signalled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.signalled)
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The disks of streams that are observed.
    pub(crate) fn disks(&self) -> &Disks {
        &self.disks
    }

    /// Answers at a control socket, if there is to be one, until that is dropped.
    pub(crate) fn control(&self, path: Option<&Path>, policy: Option<Arc<Policy>>) -> Result<Option<Control>, Error> {
        let Some(path) = path else { return Ok(None) };
        let control = Control::start(path, self.desk(policy));
        control.map(Some).map_err(|source| Error::Listen { address: Address::Unix(path.into()), source })
    }

    /// The same for metrics.
    pub(crate) fn metrics(&self, address: Option<&Address>) -> Result<Option<Metrics>, Error> {
        let Some(address) = address else { return Ok(None) };
        let metrics = Metrics::start(address, self.desk(None));
        metrics.map(Some).map_err(|source| Error::Listen { address: address.clone(), source })
    }

    fn desk(&self, policy: Option<Arc<Policy>>) -> Desk {
        Desk::new(self.handle.clone(), self.disks.clone(), policy)
    }

    /// From now on SIGHUP ends nothing, and is told.
    pub(crate) fn tell_hangups(&self) -> Result<(), Error> {
        let mut signals = Signals::new([SIGHUP])?;
        let told = self.sender.clone();
        thread::spawn(move || signals.forever().take_while(|_| told.send(News::Hangup).is_ok()).for_each(drop));
        Ok(())
    }

    /// Connects on a thread of its own, since a name that is looked up and an address that is silent take their time, and a
    /// signal ends the command meanwhile. That thread is left to itself then.
    pub(crate) fn connect(&self, peer: &Address, tls: Option<TlsClient>, timeout: Duration) {
        let (peer, connected) = (peer.clone(), self.sender.clone());
        let attempt = move || {
            let socket = match tls {
                Some(tls) => Socket::connect_tls(&peer, &tls, timeout),
                None => Socket::connect(&peer, timeout),
            };
            drop(connected.send(News::Connected(socket)));
        };
        if let Err(error) = thread::Builder::new().spawn(attempt) {
            let _ = self.sender.send(News::Connected(Err(error)));
        }
    }

    /// What comes next, or `Nothing` once `until` has passed.
    pub(crate) fn next(&self, until: Option<Instant>) -> News {
        let received = match until {
            None => self.news.recv().map_err(RecvTimeoutError::from),
            Some(until) => self.news.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        // Never disconnected: we have a sender ourselves.
        received.unwrap_or(News::Nothing)
    }

    /// Lets everything finish, for at most this long or until another signal; then cuts what is left.
    pub(crate) fn drain(self, patience: Duration) -> Result<(), Error> {
        log::info!("draining");
        self.handle.drain();
        let deadline = Instant::now() + patience;
        let mut cutting = false;
        let mut cut = 0;
        loop {
            match self.next((!cutting).then_some(deadline)) {
                News::Signal | News::Nothing if !cutting => {
                    cutting = true;
                    self.handle.shutdown("the operator ended it");
                }
                News::Report(Report::StreamEnded { cause: Err(_), .. } | Report::StreamRefused { .. }) if cutting => {
                    cut += 1;
                }
                News::Ended(result) => {
                    result?;
                    return if cut == 0 { Ok(()) } else { Err(Error::Cut(cut)) };
                }
                News::Report(_) | News::Connected(_) | News::Signal | News::Hangup | News::Nothing => {}
            }
        }
    }
}

/// Runs event loops, each on a thread, and tells the end of the last, or of one that fails, in every case: a command that missed it
/// would wait for ever.
fn spawn_loops(news: &Sender<News>, loops: Vec<impl FnOnce() -> io::Result<()> + Send + 'static>) {
    let running = Arc::new(AtomicUsize::new(loops.len()));
    for run in loops {
        let (news, running) = (news.clone(), Arc::clone(&running));
        thread::spawn(move || {
            // Nothing that a panic may have left half done is used again.
            let ended = catch_unwind(AssertUnwindSafe(run)).map_err(|_| Error::Panicked);
            let ended = ended.and_then(|ended| ended.map_err(Error::System));
            if running.fetch_sub(1, Ordering::AcqRel) == 1 || ended.is_err() {
                let _ = news.send(News::Ended(ended));
            }
        });
    }
}

fn is_ignored(signal: c_int) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Each stream is a socket here, and the soft limit that most systems start a process with, 1,024, is for programs that use
/// select. What the administrator allows at the most is the hard one.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("the limit of descriptors cannot be raised: {error}");
    }
}

pub(crate) fn bind(address: &Address, permissions: Permissions, tls: Option<&TlsServer>) -> Result<Listener, Error> {
    let listener = match (address, tls) {
        (Address::Tls { .. }, Some(tls)) => Listener::bind_tls(address, tls.clone()),
        _ => Listener::bind(address, permissions),
    };
    let listener = listener.map_err(|source| Error::Listen { address: address.clone(), source })?;
    log::info!("listening on {}", listener.address());
    Ok(listener)
}

/// Tells a program that waits for us that we are there; `chosen` are addresses that it cannot know.
pub(crate) fn say_ready(chosen: &[Address]) {
    use std::io::Write;
    let mut stdout = io::stdout();
    // Who started us may not read it: no reason to fail.
    let chosen: String = chosen.iter().map(|address| format!(" {address}")).collect();
    let _ = writeln!(stdout, "ready{chosen}").and_then(|()| stdout.flush());
}

#[cfg(test)]
impl Running {
    /// One whose event loop is this.
    pub(crate) fn of(loops: Vec<impl FnOnce() -> io::Result<()> + Send + 'static>) -> Self {
        let (sender, news) = mpsc::channel();
        let handle = Dispatcher::new(drop).expect("a dispatcher").handle();
        spawn_loops(&sender, loops);
        Self { handle, disks: Disks::default(), sender, news, signalled: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_loop_that_panics_or_fails_is_over_and_says_so() {
        let soon = || Some(Instant::now() + Duration::from_secs(20));
        let news = Running::of(vec![|| panic!("as the test wants it")]).next(soon());
        assert!(matches!(news, News::Ended(Err(Error::Panicked))), "{news:?}");
        let news = Running::of(vec![|| Err(io::ErrorKind::Other.into())]).next(soon());
        assert!(matches!(news, News::Ended(Err(Error::System(_)))), "{news:?}");
    }

    #[test]
    fn several_event_loops_are_over_with_the_last_or_with_one_that_fails() {
        type Loop = Box<dyn FnOnce() -> io::Result<()> + Send>;
        let soon = || Some(Instant::now() + Duration::from_secs(20));
        let (go, wait) = mpsc::channel::<()>();
        let waiting = move || wait.recv().map_err(io::Error::other);
        let running = Running::of(vec![Box::new(waiting) as Loop, Box::new(|| Ok(()))]);
        assert!(matches!(running.next(Some(Instant::now() + Duration::from_millis(50))), News::Nothing));
        go.send(()).unwrap();
        assert!(matches!(running.next(soon()), News::Ended(Ok(()))));

        let (_go, wait) = mpsc::channel::<()>();
        let waiting = move || wait.recv().map_err(io::Error::other);
        let failing = || Err(io::ErrorKind::Other.into());
        let running = Running::of(vec![Box::new(waiting) as Loop, Box::new(failing)]);
        assert!(matches!(running.next(soon()), News::Ended(Err(_))));
    }
}
