//! Short sessions, thousands of them, several at once and many ended rudely, leave nothing behind in `serve`.
//!
//! `VIRBISTREAM_SOAK` says how many; CONTRIBUTING.md tells of the long run.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;
use support::bytes::{MIB, Noise};
use support::echo::{assert_echoes, assert_ends, assert_reads, echo_on, patient};
use support::process::{Process, Run};
use support::tool::{ANY_PORT, tool};
use support::{PATIENCE, Scratch, wait_for};
use virbistream::io::{Dispatcher, Handle, Relay, Report, SessionKey, SessionOptions, Socket, StreamKey};
use virbistream::proto::Side;
use virbistream::wire::{Open, RemoteError, codes, domains};

/// What is allocated once and kept is there after so many.
const WARM: u64 = 500;
const AT_ONCE: u64 = 4;
const STREAMS: usize = 3;

/// A packet of 64 bytes that ends within its header.
const HALF: [u8; 10] = [0, 0, 0, 64, 0x20, 0, 0x80, 0x86, 0, 0];

/// How a session ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Each stream is finished, then the session closed.
    Well,
    /// The streams are reset with bytes under way, then the session closed.
    Reset,
    /// The clients of all streams are gone with bytes unread, and the session closed at once.
    Unread,
    /// The link ends with bytes under way.
    Cut,
    /// It ends within a packet.
    HalfPacket,
    /// There is never more than the half of a HELLO.
    HalfHello,
}

const ENDS: [End; 6] = [End::Well, End::Reset, End::Unread, End::Cut, End::HalfPacket, End::HalfHello];

/// A dispatcher on a thread of its own, which holds one session at a time.
struct Client {
    handle: Handle,
    reports: Receiver<Report>,
    thread: JoinHandle<()>,
    address: String,
}

impl Client {
    #[track_caller]
    fn new(address: &str) -> Self {
        let (sender, reports) = channel();
        let dispatcher = Dispatcher::new(move |report| drop(sender.send(report))).expect("a dispatcher");
        let handle = dispatcher.handle();
        let thread = std::thread::spawn(move || dispatcher.run().expect("a dispatcher that runs"));
        Self { handle, reports, thread, address: address.to_owned() }
    }

    #[track_caller]
    fn end(self) {
        self.handle.shutdown("the test is over");
        self.thread.join().expect("a dispatcher that ends");
    }

    /// Waits for a report of the session.
    #[track_caller]
    fn wait_for(&self, what: &str, wanted: impl Fn(&Report) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let report = self.reports.recv_timeout(left).unwrap_or_else(|error| panic!("{what}: {error}"));
            if wanted(&report) {
                return;
            }
        }
    }

    /// One session from its beginning to its end.
    #[track_caller]
    fn run(&self, number: u64) {
        let message = Noise::new(number).bytes(2000 + usize::try_from(number % 7).expect("a small number") * 1000);
        let end = ENDS[usize::try_from(number % ENDS.len() as u64).expect("a small number")];
        let mut link = TcpStream::connect(&self.address).expect("serve");
        if matches!(end, End::HalfHello) {
            link.write_all(&HALF).expect("room for it");
            return;
        }
        let socket = Socket::from_tcp(link.try_clone().expect("a descriptor")).expect("a TCP socket");
        let session = self.handle.attach(socket, Side::Connecting, SessionOptions::default());
        self.wait_for(
            "HELLO",
            |report| matches!(report, Report::Established { session: which, .. } if *which == session),
        );
        let streams: Vec<_> = (0..STREAMS).map(|_| self.open(session)).collect();
        streams.iter().for_each(|(_, stream)| assert_echoes(stream, &message));
        match end {
            End::Well => {
                for (_, stream) in &streams {
                    (&*stream).write_all(&message).expect("a stream that stands");
                    stream.shutdown(Shutdown::Write).expect("a stream that stands");
                    assert_reads(stream, &message);
                }
                self.handle.close(session);
            }
            End::Reset => {
                for (key, stream) in &streams {
                    (&*stream).write_all(&message).expect("a stream that stands");
                    let error = RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, "as the test wants it");
                    self.handle.reset(session, *key, error);
                }
                streams.iter().for_each(|(_, stream)| drop((&*stream).read_to_end(&mut Vec::new())));
                self.handle.close(session);
            }
            End::Unread => {
                streams.iter().for_each(|(_, stream)| (&*stream).write_all(&message).expect("a stream that stands"));
                drop(streams);
                self.handle.close(session);
            }
            End::Cut => {
                streams.iter().for_each(|(_, stream)| (&*stream).write_all(&message).expect("a stream that stands"));
                link.shutdown(Shutdown::Both).expect("a link that stands");
            }
            End::HalfPacket => {
                link.write_all(&HALF).expect("a link that stands");
                link.shutdown(Shutdown::Both).expect("a link that stands");
                streams.iter().for_each(|(_, stream)| assert_ends(stream));
            }
            End::HalfHello => unreachable!("there is no session"),
        }
        self.wait_for(
            "the end of the session",
            |report| matches!(report, Report::SessionEnded { session: which, .. } if *which == session),
        );
    }

    /// A stream to the target, and the socket that it is reached by.
    #[track_caller]
    fn open(&self, session: SessionKey) -> (StreamKey, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let open = Open { target: "echo".into(), ..Open::default() };
        let relay = Relay::new(theirs).expect("a UNIX socket");
        (self.handle.open(session, open, Box::new(relay)), patient(ours))
    }
}

/// Runs the sessions of these numbers, several at once.
#[track_caller]
fn run(address: &str, numbers: std::ops::Range<u64>) {
    let next = AtomicU64::new(numbers.start);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let client = Client::new(address);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        break client.end();
                    }
                    client.run(number);
                }
            });
        }
    });
}

/// What a process has: descriptors, threads, bytes of memory.
fn has(process: &Process) -> (usize, usize, u64) {
    (process.descriptors(), process.threads(), process.resident())
}

#[test]
fn thousands_of_short_sessions_many_ended_rudely_leave_nothing_behind() {
    let sessions = std::env::var("VIRBISTREAM_SOAK");
    let sessions = sessions.map_or(10_000, |text| text.parse().expect("VIRBISTREAM_SOAK is a number"));
    let scratch = Scratch::new();
    let far = scratch.join("far.echo");
    echo_on(&far);
    let mut serve = serve_quietly(&format!("echo=unix:{}", far.display())).start();
    let peer = serve.ready();
    let address = peer.strip_prefix("tcp://").expect("a TCP address");
    let (idle, ..) = has(&serve);
    run(address, 0..WARM);
    wait_for("the first sessions to be over", PATIENCE, || (serve.descriptors() == idle).then_some(()));
    let (_, threads, memory) = has(&serve);
    let begun = Instant::now();
    run(address, WARM..sessions);
    let time = begun.elapsed();
    wait_for("all sessions to be over", PATIENCE, || (serve.descriptors() == idle).then_some(()));
    let (_, threads_now, memory_now) = has(&serve);
    eprintln!(
        "{sessions} sessions in {time:.1?}; serve has {idle} descriptors, {threads_now} threads, {} KiB, and had {} KiB after {WARM}",
        memory_now / 1024,
        memory / 1024
    );
    assert_eq!(threads_now, threads, "threads");
    let grown = memory_now.saturating_sub(memory);
    assert!(grown < 2 * MIB, "serve has grown by {grown} bytes");
    serve.assert_alive();
    serve.end_well(&[]);
}

/// `serve` that tells only of what goes wrong.
fn serve_quietly(target: &str) -> Run {
    tool().named("virbistream serve").args([
        "serve",
        "--listen",
        ANY_PORT,
        "--target",
        target,
        "--max-sessions",
        "100000",
    ])
}
