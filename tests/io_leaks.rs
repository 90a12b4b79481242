//! Streams and sessions leave nothing behind. One test, and no thread but its own, so that every descriptor and
//! every allocation of the process is counted.

mod io_support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use allocation_counter::measure;
use io_support::*;
use mio::Events;
use virbistream::io::{Dispatcher, Handle, Relay, Report, SessionKey, SessionOptions, Socket, UnixTargets};
use virbistream::proto::Side;
use virbistream::wire::Open;

/// What is open at a time.
const AT_ONCE: usize = 100;

/// Bytes that a thousand streams may leave: a hash table grows by chance, once.
const TOLERANCE: i64 = 8 * 1024;

/// How often each kind of report came.
#[derive(Default)]
struct Counts {
    opened: AtomicUsize,
    ended: AtomicUsize,
    refused: AtomicUsize,
    established: AtomicUsize,
    sessions_ended: AtomicUsize,
}

impl Counts {
    fn count(&self, report: &Report) {
        let counter = match report {
            Report::StreamOpened { .. } => &self.opened,
            Report::StreamEnded { .. } => &self.ended,
            Report::StreamRefused { .. } => &self.refused,
            Report::Established { .. } => &self.established,
            Report::SessionEnded { .. } => &self.sessions_ended,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

struct Driven {
    dispatcher: Dispatcher,
    handle: Handle,
    counts: Arc<Counts>,
}

impl Driven {
    fn new() -> Self {
        let counts = Arc::new(Counts::default());
        let counted = counts.clone();
        let dispatcher = Dispatcher::new(move |report| counted.count(&report)).unwrap();
        Self { handle: dispatcher.handle(), dispatcher, counts }
    }
}

/// Both ends, driven in turn.
struct Pair {
    near: Driven,
    far: Driven,
    events: Events,
    options: SessionOptions,
    target: UnixListener,
}

impl Pair {
    fn new(dir: &Path) -> Self {
        let mut targets = UnixTargets::new();
        targets.insert("disk", dir.join("disk.sock"));
        targets.insert("gone", dir.join("gone.sock"));
        let target = UnixListener::bind(dir.join("disk.sock")).unwrap();
        target.set_nonblocking(true).unwrap();
        let options = SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() };
        Self { near: Driven::new(), far: Driven::new(), events: Events::with_capacity(256), options, target }
    }

    /// Drives both until `done` has given something.
    #[track_caller]
    fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.near.dispatcher.turn(&mut self.events, Some(Duration::ZERO)).unwrap();
            self.far.dispatcher.turn(&mut self.events, Some(Duration::ZERO)).unwrap();
            if let Some(found) = done(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "it does not come about");
        }
    }

    /// Waits until a count at both ends has risen by `by`.
    #[track_caller]
    fn count(&mut self, by: usize, of: fn(&Counts) -> &AtomicUsize, before: [usize; 2]) {
        self.until(|pair| {
            let now = pair.counted(of);
            (now[0] >= before[0] + by && now[1] >= before[1] + by).then_some(())
        });
    }

    fn counted(&self, of: fn(&Counts) -> &AtomicUsize) -> [usize; 2] {
        [&self.near, &self.far].map(|end| of(&end.counts).load(Ordering::Relaxed))
    }

    /// A session that stands, and its link.
    fn connect(&mut self) -> (SessionKey, TcpStream) {
        let before = self.counted(|counts| &counts.established);
        let (near, far) = tcp_link();
        let link = near.try_clone().unwrap();
        let (near, far) = (Socket::from_tcp(near).unwrap(), Socket::from_tcp(far).unwrap());
        let key = self.near.handle.attach(near, Side::Connecting, SessionOptions::default());
        self.far.handle.attach(far, Side::Accepting, self.options.clone());
        self.count(1, |counts| &counts.established, before);
        (key, link)
    }

    fn open(&self, key: SessionKey, target: &str) -> UnixStream {
        let (client, inner) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let handler = Box::new(Relay::new(inner).unwrap());
        self.near.handle.open(key, Open { target: target.into(), ..Open::default() }, handler);
        client
    }

    /// Streams that stand all at once, and both their ends.
    fn carry(&mut self, key: SessionKey, streams: usize) -> Vec<(UnixStream, UnixStream)> {
        let before = self.counted(|counts| &counts.opened);
        let mut clients: Vec<_> = (0..streams).map(|_| self.open(key, "disk")).collect();
        let mut carried = Vec::new();
        self.until(|pair| {
            while let Ok((server, _)) = pair.target.accept() {
                server.set_nonblocking(true).unwrap();
                carried.push((clients.remove(0), server));
            }
            clients.is_empty().then_some(())
        });
        self.count(streams, |counts| &counts.opened, before);
        carried
    }

    /// Streams that carry something each way and end in order.
    fn well(&mut self, key: SessionKey) {
        let before = self.counted(|counts| &counts.ended);
        for (mut client, mut server) in self.carry(key, AT_ONCE) {
            client.write_all(b"question").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(self.read(&mut server), b"question");
            server.write_all(b"answer").unwrap();
            drop(server);
            assert_eq!(self.read(&mut client), b"answer");
        }
        self.count(AT_ONCE, |counts| &counts.ended, before);
    }

    fn read(&mut self, stream: &mut UnixStream) -> Vec<u8> {
        let mut heard = Vec::new();
        self.until(|_| match stream.read_to_end(&mut heard) {
            Ok(_) => Some(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        });
        heard
    }

    /// Streams that nobody reads, closed with bytes in every buffer; some with more than the sockets hold.
    fn abandoned(&mut self, key: SessionKey) {
        let before = self.counted(|counts| &counts.ended);
        let bytes = [7; 64 * 1024];
        let carried = self.carry(key, AT_ONCE);
        for (n, (mut client, mut server)) in carried.iter().map(|(client, server)| (client, server)).enumerate() {
            let mut left = if n % 10 == 0 { 512 * 1024 } else { bytes.len() };
            self.until(|_| {
                left -= client.write(&bytes).unwrap_or_default();
                (left == 0).then_some(())
            });
            let _ = server.write(&bytes);
        }
        drop(carried);
        self.count(AT_ONCE, |counts| &counts.ended, before);
    }

    /// Streams that do not come to be.
    fn refused(&mut self, key: SessionKey) {
        let before = self.counted(|counts| &counts.refused);
        let clients: Vec<_> = (0..AT_ONCE).map(|n| self.open(key, ["gone", "unknown"][n % 2])).collect();
        self.count(AT_ONCE, |counts| &counts.refused, before);
        drop(clients);
    }

    /// Sessions, of one stream each, that end with it: by agreement, or cut off.
    fn sessions(&mut self, _key: SessionKey) {
        for n in 0..AT_ONCE {
            let (key, link) = self.connect();
            let (ended, over) = (self.counted(|counts| &counts.ended), self.counted(|counts| &counts.sessions_ended));
            let carried = self.carry(key, 1);
            if n % 2 == 0 {
                self.near.handle.close(key);
                drop(carried);
            } else {
                link.shutdown(Shutdown::Both).unwrap();
            }
            self.count(1, |counts| &counts.ended, ended);
            self.count(1, |counts| &counts.sessions_ended, over);
        }
    }
}

/// What is opened and ended, [`AT_ONCE`] streams of it.
type Kind = fn(&mut Pair, SessionKey);

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_thousand_streams_and_their_sessions_leave_no_descriptor_and_no_memory_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::new(dir.path());
    let (key, _link) = pair.connect();
    let kinds: [(&str, Kind); 4] = [
        ("in order", Pair::well),
        ("abandoned", Pair::abandoned),
        ("refused", Pair::refused),
        ("with their sessions", Pair::sessions),
    ];
    let open = descriptors();
    // A link may linger for a moment.
    let settle = |pair: &mut Pair| pair.until(|_| (descriptors() == open).then_some(()));
    for (name, kind) in kinds {
        // Tables grow to what is open at a time.
        (0..3).for_each(|_| kind(&mut pair, key));
        settle(&mut pair);
        let used = measure(|| {
            (0..1000 / AT_ONCE).for_each(|_| kind(&mut pair, key));
            settle(&mut pair);
        });
        assert!(used.count_current.abs() <= 4 && used.bytes_current.abs() <= TOLERANCE, "{name}: {used:?}");
    }
}
