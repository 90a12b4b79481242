//! Both ends of the tunnel: two dispatchers with one TCP connection between them.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};

use virbistream::io::{
    Address, Dispatcher, Handle, Listener, Permissions, Report, SessionKey, SessionOptions, Socket, UnixTargets,
};
use virbistream::proto::{Side, StreamId, StreamStats};
use virbistream::wire::{Open, kind};

use super::PATIENCE;
use super::scratch::Scratch;

const DISKS: &str = "disks";
const MEMORY: &str = "memory";

/// Why an end is shut down before its time.
const FAILED: &str = "the demo failed";

/// Memory goes ahead of the disks.
const PRIORITY_MEMORY: u32 = 1;
const PRIORITY_DISKS: u32 = 2;

/// Why the tunnel failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the session ended: {0}")]
    Session(String),
    #[error("a stream to `{target}` failed: {cause}")]
    Stream { target: String, cause: String },
    #[error("no stream to `{target}`: {reason}")]
    Refused { target: String, reason: String },
    #[error("{got} streams were carried, not {wanted}")]
    Streams { wanted: usize, got: usize },
    #[error("it did not come to its end within {} seconds", PATIENCE.as_secs())]
    Stuck,
}

/// What was carried, as host A counted it.
#[derive(Debug)]
pub(crate) struct Carried {
    /// In the order in which the connections were made.
    pub(crate) disks: Vec<StreamStats>,
    pub(crate) memory: StreamStats,
}

/// Host A's dispatcher listens on two sockets, host B's dials what stands behind them.
#[derive(Debug)]
pub(crate) struct Tunnel {
    disks: PathBuf,
    memory: PathBuf,
    a: End,
    b: End,
    off: Arc<AtomicBool>,
}

impl Tunnel {
    /// Offers host B's sockets on host A; returns when the session between the two stands.
    pub(crate) fn start(scratch: &Scratch, b_disks: &Path, b_memory: &Path) -> Result<Tunnel, Error> {
        let off = Arc::default();
        let (a, b) = (End::start("host-a", &off)?, End::start("host-b", &off)?);
        let (a_socket, b_socket) = connection()?;
        let mut targets = UnixTargets::new();
        targets.insert(DISKS, b_disks);
        targets.insert(MEMORY, b_memory);
        let options = SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() };
        b.handle.attach(b_socket, Side::Accepting, options);
        let session = a.handle.attach(a_socket, Side::Connecting, SessionOptions::default());
        a.await_session()?;

        let (disks, memory) = (scratch.join("a-disks"), scratch.join("a-memory"));
        let open = Open { target: DISKS.into(), kind: kind::DISK, priority: PRIORITY_DISKS, ..Open::default() };
        a.forward(session, &disks, open)?;
        let open = Open { target: MEMORY.into(), kind: kind::MEMORY, priority: PRIORITY_MEMORY, ..Open::default() };
        a.forward(session, &memory, open)?;
        Ok(Tunnel { disks, memory, a, b, off })
    }

    /// The socket on host A for any number of connections to the disks.
    pub(crate) fn disks(&self) -> &Path {
        &self.disks
    }

    /// The socket on host A for the memory.
    pub(crate) fn memory(&self) -> &Path {
        &self.memory
    }

    /// For the threads that use the tunnel.
    pub(crate) fn switch(&self) -> Switch {
        Switch { ends: [self.a.handle.clone(), self.b.handle.clone()], off: Arc::clone(&self.off) }
    }

    /// Lets the streams finish, and the session and both dispatchers after them.
    pub(crate) fn finish(self, disks: usize) -> Result<Carried, Error> {
        let reports = self.a.finish()?;
        self.b.finish()?;
        let mut streams = BTreeMap::new();
        for report in reports {
            match report {
                Report::StreamEnded { id, target, cause: Ok(()), stats, .. } => {
                    streams.insert((target, id), stats);
                }
                Report::StreamEnded { target, cause: Err(cause), .. } => {
                    return Err(Error::Stream { target, cause: cause.to_string() });
                }
                Report::StreamRefused { target, reason, .. } => return Err(Error::Refused { target, reason }),
                Report::SessionEnded { cause: Err(cause), .. } => return Err(Error::Session(cause.to_string())),
                _ => {}
            }
        }
        Carried::from_streams(streams, disks)
    }
}

/// Turns a tunnel off.
#[derive(Debug)]
pub(crate) struct Switch {
    ends: [Handle; 2],
    /// From then on failures are of our own making.
    off: Arc<AtomicBool>,
}

impl Switch {
    /// Ends every stream at once, and with it the waiting of whoever is at its end.
    pub(crate) fn off(&self) {
        self.off.store(true, Ordering::Relaxed);
        for end in &self.ends {
            end.shutdown(FAILED);
        }
    }
}

impl Carried {
    /// Stream ids rise in the order in which connections are accepted.
    fn from_streams(streams: BTreeMap<(String, StreamId), StreamStats>, disks: usize) -> Result<Carried, Error> {
        let of = |name| streams.iter().filter(move |((target, _), _)| target == name).map(|(_, stats)| *stats);
        let carried = of(DISKS).collect::<Vec<_>>();
        match of(MEMORY).next() {
            Some(memory) if carried.len() == disks && streams.len() == disks + 1 => {
                Ok(Carried { disks: carried, memory })
            }
            _ => Err(Error::Streams { wanted: disks + 1, got: streams.len() }),
        }
    }
}

/// One TCP connection over loopback, made here from end to end, so that nobody else can be at one of them.
fn connection() -> io::Result<(Socket, Socket)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    loop {
        let (far, peer) = listener.accept()?;
        if peer == near.local_addr()? {
            return Ok((Socket::from_tcp(near)?, Socket::from_tcp(far)?));
        }
    }
}

/// A dispatcher on its thread.
#[derive(Debug)]
struct End {
    handle: Handle,
    /// Ends when the dispatcher does.
    reports: Receiver<Report>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl End {
    fn start(name: &'static str, off: &Arc<AtomicBool>) -> io::Result<End> {
        let (sender, reports) = channel();
        let off = Arc::clone(off);
        let mut refusing = false;
        let dispatcher = Dispatcher::new(move |report| {
            // It is tried again several times a second.
            let said = matches!(report, Report::AcceptFailed { .. }) && std::mem::replace(&mut refusing, true);
            if !said && !off.load(Ordering::Relaxed) {
                complain(name, &report);
            }
            // Nobody listens any more once the demo has failed.
            let _ = sender.send(report);
        })?;
        let handle = dispatcher.handle();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || dispatcher.run())?;
        Ok(End { handle, reports, thread: Some(thread) })
    }

    /// HELLO has a deadline of its own, so one of the two comes.
    fn await_session(&self) -> Result<(), Error> {
        for report in &self.reports {
            match report {
                Report::Established { .. } => return Ok(()),
                Report::SessionEnded { cause, .. } => {
                    return Err(Error::Session(
                        cause.err().map_or("it was closed".to_owned(), |cause| cause.to_string()),
                    ));
                }
                _ => {}
            }
        }
        Err(Error::Session("its dispatcher failed".to_owned()))
    }

    fn forward(&self, session: SessionKey, path: &Path, open: Open) -> io::Result<()> {
        let listener = Listener::bind(&Address::Unix(path.to_owned()), Permissions::default())?;
        let forward = self.handle.forward(listener, open);
        self.handle.route(forward, Some(session));
        Ok(())
    }

    /// What was reported up to the end.
    fn finish(mut self) -> Result<Vec<Report>, Error> {
        self.handle.drain();
        let mut reports = Vec::new();
        loop {
            match self.reports.recv_timeout(PATIENCE) {
                Ok(report) => reports.push(report),
                Err(RecvTimeoutError::Timeout) => return Err(Error::Stuck),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.join()?;
        Ok(reports)
    }

    fn join(&mut self) -> io::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.handle.shutdown(FAILED);
        if let Some(thread) = self.thread.take() {
            // What it could say is less than the error that brought us here.
            let _ = thread.join();
        }
    }
}

/// Tells at once what goes wrong: to those at the streams' ends it is only a closed connection.
fn complain(name: &str, report: &Report) {
    match report {
        Report::SessionEnded { cause: Err(cause), .. } => log::warn!("{name}: the session ended: {cause}"),
        Report::StreamEnded { target, cause: Err(cause), .. } => {
            log::warn!("{name}: the stream to `{target}` failed: {cause}")
        }
        Report::StreamRefused { target, reason, .. } => log::warn!("{name}: no stream to `{target}`: {reason}"),
        Report::AcceptFailed { reason, .. } => log::warn!("{name}: a connection cannot be accepted: {reason}"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::demo::acceptor::Acceptor;

    #[test]
    fn streams_are_told_apart_in_the_order_of_their_connections() {
        let scratch = Scratch::new().expect("a directory");
        let (b_disks, b_memory) = (scratch.join("b-disks"), scratch.join("b-memory"));
        let swallow = |mut stream: &UnixStream| assert!(io::copy(&mut stream, &mut io::sink()).is_ok());
        let listening = [&b_disks, &b_memory].map(|path| Acceptor::bind(path, swallow).expect("bound"));
        let tunnel = Tunnel::start(&scratch, &b_disks, &b_memory).expect("it stands");
        let mut disks: Vec<_> = (0..5).map(|_| UnixStream::connect(tunnel.disks()).expect("connected")).collect();
        let mut memory = UnixStream::connect(tunnel.memory()).expect("connected");
        // The last connection speaks first.
        for (number, disk) in disks.iter_mut().enumerate().rev() {
            say(disk, number + 1);
        }
        say(&mut memory, 99);
        let carried = tunnel.finish(5).expect("all went well");
        assert_eq!(carried.disks.iter().map(|stats| stats.sent).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(carried.memory.sent, 99);
        drop(listening);
    }

    /// Sends so many bytes, and waits until the other end has had them.
    fn say(stream: &mut UnixStream, bytes: usize) {
        stream.write_all(&vec![0; bytes]).expect("written");
        stream.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(stream.read(&mut [0]).expect("closed in good order"), 0);
    }

    #[test]
    fn a_target_that_is_not_there_is_the_tunnels_failure() {
        let scratch = Scratch::new().expect("a directory");
        let tunnel = Tunnel::start(&scratch, &scratch.join("nobody"), &scratch.join("nobody")).expect("it stands");
        let mut disk = UnixStream::connect(tunnel.disks()).expect("connected");
        assert_eq!(disk.read(&mut [0]).expect("closed in good order"), 0);
        let error = tunnel.finish(1).expect_err("a stream was refused");
        assert!(matches!(&error, Error::Refused { target, .. } if target == DISKS), "{error}");
    }
}
