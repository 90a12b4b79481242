//! Thousands of short sessions with one serve, many of which end rudely: descriptors, threads and memory stay what they were.

mod support;

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use support::bytes::{MIB, Noise};
use support::echo::echo_on;
use support::process::Process;
use support::tool::{ANY_PORT, tool};
use support::{PATIENCE, Scratch, alone, wait_for};
use virbistream::io::{Address, Dispatcher, Handle, Handler, Report, SessionKey, SessionOptions, Socket};
use virbistream::proto::Side;
use virbistream::wire::{Open, RemoteError, codes};

/// Sessions at once.
const AT_ONCE: usize = 16;

/// Streams of each.
const STREAMS: usize = 3;

/// Sends its bytes, and wants them back.
struct Echoed {
    bytes: Vec<u8>,
    sent: usize,
    back: usize,
}

impl Handler for Echoed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = &self.bytes[self.sent..];
        let len = left.len().min(buf.len());
        buf[..len].copy_from_slice(&left[..len]);
        self.sent += len;
        Ok(len)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut len = 0;
        for buf in bufs {
            assert_eq!(self.bytes.get(self.back..self.back + buf.len()), Some(&**buf), "another's bytes");
            self.back += buf.len();
            len += buf.len();
        }
        Ok(len)
    }

    fn finish(&mut self) -> io::Result<()> {
        assert_eq!(self.back, self.bytes.len(), "the echo ends before its time");
        Ok(())
    }
}

/// How a session ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// With its last stream, and a word of it.
    Close,
    /// In the middle of its streams.
    Reset,
    /// With its connection, in the middle of a packet.
    Cut,
}

/// The other end: a dispatcher of the test's own.
struct Client {
    handle: Handle,
    reports: Receiver<Report>,
    peer: Address,
    noise: Noise,
}

impl Client {
    fn start(peer: &str) -> Self {
        let (report, reports) = mpsc::channel();
        let dispatcher = Dispatcher::new(move |what| drop(report.send(what))).expect("a dispatcher");
        let handle = dispatcher.handle();
        thread::spawn(move || dispatcher.run());
        Self { handle, reports, peer: peer.parse().expect("an address"), noise: Noise::new(3) }
    }

    fn connect(&self) -> SessionKey {
        let socket = Socket::connect(&self.peer, PATIENCE).expect("serve takes connections");
        self.handle.attach(socket, Side::Connecting, SessionOptions::default())
    }

    /// Runs so many sessions, some at once.
    fn run(&mut self, sessions: usize) {
        let (mut begun, mut ended) = (0, 0);
        let mut how = std::collections::BTreeMap::new();
        let deadline = Instant::now() + PATIENCE * 10;
        while ended < sessions {
            while begun < sessions && how.len() < AT_ONCE {
                let end = [End::Close, End::Close, End::Reset, End::Cut][begun % 4];
                begun += 1;
                match end {
                    End::Cut => {
                        self.cut();
                        ended += 1;
                    }
                    _ => drop(how.insert(self.connect(), (end, STREAMS))),
                }
            }
            match self.reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(report) => ended += usize::from(self.on(report, &mut how)),
                Err(RecvTimeoutError::Timeout) if how.is_empty() => {}
                Err(error) => panic!("{error}: {ended} of {sessions} sessions have ended"),
            }
            if how.is_empty() && begun == sessions {
                return;
            }
        }
    }

    /// True when a session has ended.
    fn on(&mut self, report: Report, how: &mut std::collections::BTreeMap<SessionKey, (End, usize)>) -> bool {
        match report {
            Report::Established { session, .. } => {
                for n in 0..STREAMS {
                    let mut bytes = vec![0; 1000 + 7000 * n];
                    self.noise.fill(&mut bytes);
                    let handler = Echoed { bytes, sent: 0, back: 0 };
                    let open = Open { target: "echo".into(), ..Open::default() };
                    let stream = self.handle.open(session, open, Box::new(handler));
                    if how[&session].0 == End::Reset {
                        let error = RemoteError::new(codes::OPERATION_ABORTED, 0, "the soak wants it");
                        self.handle.reset(session, stream, error);
                    }
                }
                false
            }
            Report::StreamEnded { session, .. } | Report::StreamRefused { session, .. } => {
                let (_, left) = how.get_mut(&session).expect("one of ours");
                *left -= 1;
                if *left == 0 {
                    self.handle.close(session);
                }
                false
            }
            Report::SessionEnded { session, cause } => {
                assert!(cause.is_ok(), "{cause:?}");
                how.remove(&session);
                true
            }
            _ => false,
        }
    }

    /// A connection that says half a HELLO and is gone.
    fn cut(&self) {
        let Address::Tcp { host, port } = &self.peer else { panic!("not TCP: {}", self.peer) };
        let mut stream = TcpStream::connect((host.as_str(), *port)).expect("serve takes connections");
        stream.write_all(&[0, 0, 0, 80, 0x20, 0, 0x80, 0x86, 0, 0]).expect("an open socket");
    }
}

/// Once nothing is under way.
fn settled(serve: &Process) -> (usize, usize, u64) {
    let threads =
        || std::fs::read_dir(format!("/proc/{}/task", serve.pid().as_raw_nonzero())).expect("its threads").count();
    let mut last = usize::MAX;
    let descriptors = wait_for("all connections to be closed", PATIENCE, || {
        let now = serve.descriptors();
        let steady = now == std::mem::replace(&mut last, now);
        steady.then_some(now)
    });
    (descriptors, threads(), serve.resident())
}

/// `VIRBISTREAM_SOAK` sessions, ten thousand if it is not set.
#[test]
fn thousands_of_sessions_leave_nothing_behind() {
    let _alone = alone();
    let sessions = std::env::var("VIRBISTREAM_SOAK").map_or(10_000, |count| count.parse().expect("a number"));
    let scratch = Scratch::new();
    let far = scratch.join("far");
    echo_on(Path::new(&far));
    // Without -v, whose lines the test would keep.
    let run = tool().args(["serve", "--listen", ANY_PORT, "--target"]).arg(format!("echo=unix:{}", far.display()));
    let serve = run.start();
    let mut client = Client::start(&serve.ready());
    client.run(500);
    let (descriptors, threads, resident) = settled(&serve);
    client.run(sessions);
    wait_for("the descriptors to be what they were", PATIENCE, || (settled(&serve).0 <= descriptors).then_some(()));
    let after = settled(&serve);
    assert_eq!(after.1, threads, "threads");
    assert!(after.2 < resident + 2 * MIB, "{resident} bytes have become {}", after.2);
    client.handle.shutdown("enough");
    serve.end_well(&[]);
}
