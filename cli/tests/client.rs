//! A client of ours, as a client library has it: the dispatcher, with libvirt's calls and legacy streams beside BiStream, at a real
//! libvirtd and at its front.

mod support;

use std::fs;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use support::bytes::{Noise, allocated, noise_file};
use support::echo::echo_on;
use support::libvirtd::Libvirtd;
use support::process::Process;
use support::tool::serve;
use support::{PATIENCE, Scratch, alone, machine, wait_for};
use virbistream::io::{
    Address, Attachment, Dispatcher, Handle, Handler, Report, SessionKey, SessionOptions, Socket, Waker,
};
use virbistream::proto::Side;
use virbistream::rpc::{self, Direction, ProcedureId, StreamOptions};
use virbistream::wire::{Open, RemoteError};

const DOMAIN_LOOKUP_BY_NAME: u32 = 23;
const POOL_LOOKUP_BY_NAME: u32 = 84;
const VOLUME_LOOKUP_BY_NAME: u32 = 95;
const VOLUME_UPLOAD: u32 = 208;
const VOLUME_DOWNLOAD: u32 = 209;
const DOMAIN_SCREENSHOT: u32 = 211;

const SPARSE: u32 = 1;
const MIB: u64 = 1 << 20;

/// A session of ours, its dispatcher in a thread.
struct Client {
    handle: Handle,
    key: SessionKey,
    reports: mpsc::Receiver<Report>,
}

impl Client {
    #[track_caller]
    fn connect(socket: &Path) -> Self {
        let (report, reports) = mpsc::channel();
        let dispatcher = Dispatcher::new(move |told| drop(report.send(told))).expect("a dispatcher");
        let handle = dispatcher.handle();
        thread::spawn(move || dispatcher.run().expect("it ends well"));
        let socket = Socket::connect(&Address::Unix(socket.to_owned()), PATIENCE).expect("somebody listens");
        let options = SessionOptions { keep_legacy: true, ..SessionOptions::default() };
        let key = handle.attach(socket, Side::Connecting, options);
        Self { handle, key, reports }
    }

    /// The first report that is `wanted`.
    #[track_caller]
    fn told<T>(&self, what: &str, wanted: impl Fn(Report) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let report = self.reports.recv_timeout(left).unwrap_or_else(|_| panic!("nothing tells of {what}"));
            if let Some(found) = wanted(report) {
                return found;
            }
        }
    }

    /// A call that must be answered well.
    #[track_caller]
    fn call(&self, procedure: u32, arguments: &[&[u8]]) -> Vec<u8> {
        let (answer, answered) = mpsc::channel();
        let id = ProcedureId::remote(procedure);
        self.handle.call(self.key, id, arguments.concat(), PATIENCE, move |came| drop(answer.send(came)));
        answered.recv_timeout(PATIENCE).expect("an answer").unwrap_or_else(|error| panic!("{procedure}: {error}"))
    }

    /// Opens libvirtd's connection.
    #[track_caller]
    fn login(&self) {
        let (ended, end) = mpsc::channel();
        self.handle.login(self.key, "qemu:///system", PATIENCE, move |came| drop(ended.send(came)));
        assert_eq!(end.recv_timeout(PATIENCE), Ok(Ok(())));
    }

    #[track_caller]
    fn volume(&self, name: &str) -> Vec<u8> {
        let pool = self.call(POOL_LOOKUP_BY_NAME, &[&string("disks")]);
        self.call(VOLUME_LOOKUP_BY_NAME, &[&pool, &string(name)])
    }

    /// Begins a stream between the handler and what the call names.
    fn begin(&self, procedure: u32, arguments: &[&[u8]], options: StreamOptions, handler: impl Handler + 'static) {
        let begun = (options, Box::new(handler) as Box<dyn Handler>);
        let id = ProcedureId::remote(procedure);
        self.handle.call_with_stream(self.key, id, arguments.concat(), PATIENCE, begun, |answer| {
            answer.expect("a good answer");
        });
    }

    /// The whole of a volume, to or from memory.
    fn transfer(&self, procedure: u32, volume: &[u8], flags: u32, memory: &Memory) {
        let direction = if procedure == VOLUME_UPLOAD { Direction::Sending } else { Direction::Receiving };
        let options = StreamOptions { sparse: flags == SPARSE, ..StreamOptions::new(direction) };
        self.begin(procedure, &[volume, &[0; 16], &flags.to_be_bytes()], options, memory.clone());
        assert_eq!(self.legacy_stream_ended(), Ok(()));
    }

    #[track_caller]
    fn legacy_stream_ended(&self) -> Result<(), rpc::StreamError> {
        self.told("the end of a legacy stream", |report| match report {
            Report::LegacyStreamEnded { cause, .. } => Some(cause),
            _ => None,
        })
    }

    #[track_caller]
    fn end(self) {
        self.handle.close(self.key);
        let cause = self.told("the session's end", |report| match report {
            Report::SessionEnded { cause, .. } => Some(cause),
            _ => None,
        });
        assert_eq!(cause, Ok(()));
        self.handle.shutdown("the test is over");
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What a stream reads and writes: data and holes, one after the other.
#[derive(Clone, Default)]
struct Memory {
    /// Still to be sent.
    pieces: Arc<Mutex<Vec<Piece>>>,
    got: Arc<Mutex<Vec<u8>>>,
    holes: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Piece {
    Data(Vec<u8>),
    Hole(u64),
}

impl Memory {
    fn of(pieces: impl IntoIterator<Item = Piece>) -> Self {
        let mut pieces: Vec<_> = pieces.into_iter().collect();
        pieces.reverse();
        Self { pieces: Arc::new(Mutex::new(pieces)), ..Self::default() }
    }

    fn got(&self) -> Vec<u8> {
        std::mem::take(&mut *self.got.lock().unwrap())
    }
}

impl Handler for Memory {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut pieces = self.pieces.lock().unwrap();
        let Some(Piece::Data(data)) = pieces.last_mut() else { return Ok(0) };
        let len = data.len().min(buf.len());
        buf[..len].copy_from_slice(&data[..len]);
        data.drain(..len);
        if data.is_empty() {
            pieces.pop();
        }
        Ok(len)
    }

    fn read_hole(&mut self) -> io::Result<Option<u64>> {
        let mut pieces = self.pieces.lock().unwrap();
        let Some(Piece::Hole(length)) = pieces.last() else { return Ok(None) };
        let length = *length;
        pieces.pop();
        Ok(Some(length))
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.got.lock().unwrap().extend_from_slice(&bufs[0]);
        Ok(bufs[0].len())
    }

    fn write_hole(&mut self, length: u64) -> io::Result<()> {
        let mut got = self.got.lock().unwrap();
        let len = got.len() + length as usize;
        got.resize(len, 0);
        self.holes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that a legacy client does with streams. The machine must run.
#[track_caller]
fn assert_legacy_streams_work(client: &Client, libvirtd: &Libvirtd) {
    client.login();
    let bytes = Noise::new(1).bytes(3 << 20);
    libvirtd.virsh(&["vol-create-as", "disks", "plain", "3M", "--format", "raw"]);
    let volume = client.volume("plain");
    client.transfer(VOLUME_UPLOAD, &volume, 0, &Memory::of([Piece::Data(bytes.clone())]));
    assert!(fs::read(libvirtd.disk("plain")).expect("the volume") == bytes);
    let back = Memory::default();
    client.transfer(VOLUME_DOWNLOAD, &volume, 0, &back);
    assert!(back.got() == bytes);

    libvirtd.virsh(&["vol-create-as", "disks", "sparse", "8M", "--format", "raw", "--allocation", "0"]);
    let volume = client.volume("sparse");
    let (head, tail) = (bytes[..4096].to_vec(), bytes[4096..65536].to_vec());
    let holes = [(4 << 20) - 4096, (4 << 20) - (65536 - 4096)];
    let pieces = [Piece::Data(head.clone()), Piece::Hole(holes[0]), Piece::Data(tail.clone()), Piece::Hole(holes[1])];
    let whole = [&head[..], &vec![0; holes[0] as usize], &tail, &vec![0; holes[1] as usize]].concat();
    client.transfer(VOLUME_UPLOAD, &volume, SPARSE, &Memory::of(pieces));
    assert!(fs::read(libvirtd.disk("sparse")).expect("the volume") == whole);
    assert!(allocated(&libvirtd.disk("sparse")) < MIB, "holes went as holes");
    let back = Memory::default();
    client.transfer(VOLUME_DOWNLOAD, &volume, SPARSE, &back);
    assert!(back.got() == whole);
    assert!(back.holes.load(Ordering::Relaxed) > 7 * MIB, "holes came as holes");

    let domain = client.call(DOMAIN_LOOKUP_BY_NAME, &[&string("echo")]);
    let screen = Memory::default();
    let options = StreamOptions::new(Direction::Receiving);
    client.begin(DOMAIN_SCREENSHOT, &[&domain, &[0; 8]], options, screen.clone());
    assert_eq!(client.legacy_stream_ended(), Ok(()));
    let picture = screen.got();
    assert!(picture.starts_with(b"\x89PNG") || picture.starts_with(b"P6"), "{:?}", &picture[..8]);
}

#[test]
fn a_real_libvirtd_does_not_know_hello_and_serves_on_the_same_connection() {
    let _alone = alone();
    let libvirtd = Libvirtd::start();
    machine::start(&libvirtd);
    let client = Client::connect(&libvirtd.socket());
    let error = client.told("what it is", |report| match report {
        Report::Legacy { error, .. } => Some(error),
        _ => None,
    });
    let unknown = RemoteError::new(39, 7, "unknown procedure: 1112735745").with_ints(-1, -1);
    assert_eq!(error, unknown);
    assert_legacy_streams_work(&client, &libvirtd);
    client.end();
}

/// A front of a real libvirtd with a target that sends back what comes.
fn front(scratch: &Scratch, libvirtd: &Libvirtd) -> (Process, Client) {
    echo_on(&scratch.join("echo"));
    let front = serve(&format!("unix:{}", scratch.join("front").display()), [("echo", &*scratch.join("echo"))])
        .arg("--libvirt")
        .arg(format!("unix:{}", libvirtd.socket().display()))
        .start();
    front.ready();
    let client = Client::connect(&scratch.join("front"));
    client.told("BiStream", |report| matches!(report, Report::Established { .. }).then_some(()));
    (front, client)
}

/// Sends without end and counts what comes back.
struct Flood(Arc<AtomicU64>);

impl Handler for Flood {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let len = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        self.0.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins a stream that goes at full rate as long as its session lives; gives how many bytes it has carried.
fn flood(client: &Client) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let open = Open { target: "echo".into(), window: MIB, ..Open::default() };
    client.handle.open(client.key, open, Box::new(Flood(Arc::clone(&count))));
    wait_for("the flood", PATIENCE, || (count.load(Ordering::Relaxed) > 0).then_some(()));
    count
}

/// How long so many more bytes take.
#[track_caller]
fn time_of(bytes: u64, count: &AtomicU64) -> Duration {
    let (begin, until) = (Instant::now(), count.load(Ordering::Relaxed) + bytes);
    wait_for("bytes of the flood", PATIENCE, || (count.load(Ordering::Relaxed) >= until).then_some(()));
    begin.elapsed()
}

/// Watches a count that should not stand still.
struct Gaps {
    stop: Arc<AtomicBool>,
    watcher: thread::JoinHandle<Duration>,
}

impl Gaps {
    fn watch(count: &Arc<AtomicU64>) -> Self {
        let (count, stop) = (Arc::clone(count), Arc::<AtomicBool>::default());
        let stopped = Arc::clone(&stop);
        let watcher = thread::spawn(move || {
            let (mut last, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
            while !stopped.load(Ordering::Acquire) {
                let now = count.load(Ordering::Relaxed);
                longest = longest.max(since.elapsed());
                if now != last {
                    (last, since) = (now, Instant::now());
                }
                // A pause between two looks; nothing depends on its length.
                thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        Self { stop, watcher }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Release);
        self.watcher.join().expect("it only looks")
    }
}

#[test]
fn a_front_serves_both_on_one_connection() {
    let _alone = alone();
    let (libvirtd, scratch) = (Libvirtd::start(), Scratch::new());
    machine::start(&libvirtd);
    let (front, client) = front(&scratch, &libvirtd);
    let count = flood(&client);
    assert_legacy_streams_work(&client, &libvirtd);
    time_of(MIB, &count);
    client.handle.shutdown("enough");
    front.end_well(&[&scratch.join("front")]);
}

/// Takes bytes up to a number and then no more, until it is opened.
struct Narrow {
    takes: usize,
    got: Arc<Mutex<Vec<u8>>>,
    open: Arc<AtomicBool>,
    waker: mpsc::Sender<Waker>,
}

impl Handler for Narrow {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        self.waker.send(at.waker()).map_err(io::Error::other)
    }

    fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut got = self.got.lock().unwrap();
        let room = if self.open.load(Ordering::Acquire) { usize::MAX } else { self.takes - got.len() };
        let len = bufs[0].len().min(room);
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        got.extend_from_slice(&bufs[0][..len]);
        Ok(len)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_download_that_its_consumer_leaves_slows_no_bistream_and_ends_as_documented() {
    let _alone = alone();
    let (libvirtd, scratch) = (Libvirtd::start(), Scratch::new());
    noise_file(&libvirtd.disk("big"), 64, 3);
    libvirtd.virsh(&["pool-refresh", "disks"]);
    let whole = fs::read(libvirtd.disk("big")).expect("the volume");
    let (front, client) = front(&scratch, &libvirtd);
    client.login();
    let volume = client.volume("big");
    let count = flood(&client);
    let gaps = Gaps::watch(&count);
    // The default: what the consumer does not take is over 4 MiB.
    for limit in [StreamOptions::new(Direction::Receiving).limit, 64 * MIB] {
        let got = Arc::<Mutex<Vec<u8>>>::default();
        let open = Arc::<AtomicBool>::default();
        let (waker, wakers) = mpsc::channel();
        let consumer = Narrow { takes: MIB as usize, got: Arc::clone(&got), open: Arc::clone(&open), waker };
        let options = StreamOptions { limit, ..StreamOptions::new(Direction::Receiving) };
        client.begin(VOLUME_DOWNLOAD, &[&volume, &[0; 20]], options, consumer);
        wait_for("the first MiB", PATIENCE, || (got.lock().unwrap().len() as u64 == MIB).then_some(()));
        time_of(256 * MIB, &count);
        if limit == 64 * MIB {
            open.store(true, Ordering::Release);
            wakers.recv_timeout(PATIENCE).expect("it was attached").wake();
            assert_eq!(client.legacy_stream_ended(), Ok(()));
            assert!(*got.lock().unwrap() == whole, "it resumes whole");
        } else {
            assert_eq!(client.legacy_stream_ended(), Err(rpc::StreamError::Overrun { limit }));
            assert_eq!(got.lock().unwrap().len() as u64, MIB);
        }
    }
    // It was the only one to suffer. A machine with other work stands still for a while, too, but not for long.
    let longest = gaps.longest();
    assert!(longest < Duration::from_secs(3), "the stream stood still for {longest:?}");
    assert_eq!(client.volume("big"), volume);
    time_of(MIB, &count);
    client.handle.shutdown("enough");
    front.end_well(&[&scratch.join("front")]);
}
