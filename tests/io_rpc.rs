//! A daemon and a client of libvirt's RPC over real sockets, beside BiStream streams on the same link.

mod io_support;

use std::io::{self, IoSlice, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use io_support::*;
use mio::Registry;
use virbistream::io::{
    Attachment, Call, Decision, Handler, Identity, NoTargets, Procedure, Procedures, Relay, Report, Request,
    SessionKey, SessionOptions, Socket,
};
use virbistream::proto::{Config, Side, StreamError};
use virbistream::rpc::{self, CallError, Direction, ProcedureId, StreamOptions};
use virbistream::wire::{Header, Open, RemoteError, codes, domains, encode_packet};

const ECHO: ProcedureId = ProcedureId::remote(4);
const SLOW: ProcedureId = ProcedureId::remote(5);
const DOWNLOAD: ProcedureId = ProcedureId::remote(209);
const UPLOAD: ProcedureId = ProcedureId::remote(208);
const MIB: usize = 1 << 20;

/// A volume: what is sent of it, and what was received.
struct Volume {
    pattern: Pattern,
    left: usize,
    got: Got,
    ended: mpsc::Sender<Result<(), StreamError>>,
    /// Zeroes to be sent first.
    hole: Option<u64>,
    /// Takes no more than this.
    takes: usize,
    is_over: bool,
}

type Got = Arc<Mutex<Vec<u8>>>;

impl Volume {
    fn new(len: usize) -> (Self, Got, mpsc::Receiver<Result<(), StreamError>>) {
        let (got, (ended, end)) = (Arc::default(), mpsc::channel());
        let volume = Self {
            pattern: Pattern::new(7),
            left: len,
            got: Arc::clone(&got),
            ended,
            hole: None,
            takes: usize::MAX,
            is_over: false,
        };
        (volume, got, end)
    }
}

impl Handler for Volume {
    fn attach(&mut self, _at: &Attachment<'_>) -> io::Result<()> {
        Ok(())
    }

    fn detach(&mut self, _registry: &Registry) {
        self.is_over = true;
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.left);
        self.pattern.fill(&mut buf[..len]);
        self.left -= len;
        Ok(len)
    }

    fn read_hole(&mut self) -> io::Result<Option<u64>> {
        Ok(self.hole.take())
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut got = self.got.lock().unwrap();
        let len = bufs[0].len().min(self.takes - got.len());
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        got.extend_from_slice(&bufs[0][..len]);
        Ok(len)
    }

    fn write_hole(&mut self, length: u64) -> io::Result<()> {
        let mut got = self.got.lock().unwrap();
        let len = got.len() + length as usize;
        got.resize(len, 0);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn reset(&mut self, cause: &StreamError) {
        let _ = self.ended.send(Err(cause.clone()));
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // After a reset nobody listens any more.
        let _ = self.ended.send(Ok(()));
    }
}

fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Pattern::new(7).fill(&mut bytes);
    bytes
}

fn add(programs: &mut Procedures, id: ProcedureId, procedure: impl Fn(Call) + Send + Sync + 'static) {
    programs.add(id, Arc::new(procedure) as Arc<dyn Procedure>);
}

/// A daemon: `ECHO`, `SLOW` whose calls are handed out, and a client's session to it, which stands.
struct Daemon {
    near: Node,
    far: Node,
    key: SessionKey,
    far_key: SessionKey,
    slow: mpsc::Receiver<Call>,
}

fn daemon(change: impl FnOnce(&mut Procedures)) -> Daemon {
    let mut programs = Procedures::new();
    add(&mut programs, ECHO, |call| {
        let arguments = call.raw_arguments().to_vec();
        call.answer(Ok(arguments));
    });
    let (hand_out, slow) = mpsc::channel();
    let hand_out = Mutex::new(hand_out);
    add(&mut programs, SLOW, move |call| drop(hand_out.lock().unwrap().send(call)));
    change(&mut programs);
    let (near, far) = tcp_link();
    let (mut near_node, far_node) = (Node::start(), Node::start());
    let targets = Arc::new(Offer(|_: &Request<'_>| {
        Decision::Accept(Box::new(Endless::new(Pattern::new(1), usize::MAX, mpsc::channel().0)))
    }));
    let options = SessionOptions { targets, programs: Arc::new(programs), ..SessionOptions::default() };
    let far_key = far_node.handle.attach(Socket::from_tcp(far).unwrap(), Side::Accepting, options);
    let options = SessionOptions { targets: Arc::new(NoTargets), ..SessionOptions::default() };
    let key = near_node.handle.attach(Socket::from_tcp(near).unwrap(), Side::Connecting, options);
    near_node.established(key);
    Daemon { near: near_node, far: far_node, key, far_key, slow }
}

impl Daemon {
    fn call(&self, id: ProcedureId, arguments: &[u8]) -> mpsc::Receiver<Result<Vec<u8>, CallError>> {
        let (answer, answered) = mpsc::channel();
        self.near.handle.call(self.key, id, arguments.to_vec(), PATIENCE, move |came| drop(answer.send(came)));
        answered
    }

    fn stream(&self, id: ProcedureId, options: StreamOptions, volume: Volume) {
        let begun = (options, Box::new(volume) as Box<dyn Handler>);
        self.near.handle.call_with_stream(self.key, id, Vec::new(), PATIENCE, begun, drop);
    }
}

fn legacy_ended(node: &mut Node) -> Result<(), rpc::StreamError> {
    node.wait("the end of a legacy stream", |report| match report {
        Report::LegacyStreamEnded { cause, .. } => Some(cause.clone()),
        _ => None,
    })
}

#[test]
fn calls_are_answered_at_once_or_later_from_any_thread() {
    let daemon = daemon(|_| ());
    let slow = daemon.call(SLOW, b"slow");
    assert_eq!(daemon.call(ECHO, b"at once").recv_timeout(PATIENCE).unwrap(), Ok(b"at once".to_vec()));
    let call = daemon.slow.recv_timeout(PATIENCE).unwrap();
    assert_eq!((call.procedure(), call.raw_arguments()), (SLOW, &b"slow"[..]));
    assert!(call.peer().starts_with("tcp://127.0.0.1:"));
    assert_eq!(*call.identity(), Identity::Loopback);
    assert!(slow.try_recv().is_err());
    thread::spawn(move || call.answer_with(Ok(7u32))).join().unwrap();
    assert_eq!(slow.recv_timeout(PATIENCE).unwrap(), Ok(vec![0, 0, 0, 7]));
    // One that is dropped is an error, and one of nobody's too.
    let dropped = daemon.call(SLOW, b"");
    drop(daemon.slow.recv_timeout(PATIENCE).unwrap());
    let Err(CallError::Remote(error)) = dropped.recv_timeout(PATIENCE).unwrap() else { panic!() };
    assert!(error.message.contains("without an answer"), "{error}");
    let unknown = daemon.call(ProcedureId::remote(9999), b"").recv_timeout(PATIENCE).unwrap();
    let Err(CallError::Remote(error)) = unknown else { panic!() };
    assert_eq!((error.code, error.message.as_str()), (codes::RPC, "unknown procedure: 9999"));
}

#[test]
fn calls_fail_with_the_link_and_to_a_client_there_are_none() {
    let mut daemon = daemon(|_| ());
    let lost = daemon.call(SLOW, b"");
    let call = daemon.slow.recv_timeout(PATIENCE).unwrap();
    daemon.far.handle.shutdown("enough");
    assert_eq!(lost.recv_timeout(PATIENCE).unwrap(), Err(CallError::LinkLost));
    daemon.near.session_ended(daemon.key).unwrap_err();
    assert_eq!(daemon.call(ECHO, b"").recv_timeout(PATIENCE).unwrap(), Err(CallError::LinkLost));
    call.answer(Ok(Vec::new()));
    let near = Node::start();
    let (link, _peer) = tcp_link();
    let key = near.handle.attach(Socket::from_tcp(link).unwrap(), Side::Accepting, SessionOptions::default());
    let (answer, answered) = mpsc::channel();
    near.handle.call(key, ECHO, Vec::new(), PATIENCE, move |came| drop(answer.send(came)));
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), Err(CallError::Accepting));
}

#[test]
fn a_call_that_is_not_answered_ends_at_its_time() {
    let daemon = daemon(|_| ());
    let (answer, answered) = mpsc::channel();
    let short = Duration::from_millis(50);
    daemon.near.handle.call(daemon.key, SLOW, Vec::new(), short, move |came| drop(answer.send(came)));
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), Err(CallError::Timeout));
    assert!(daemon.call(ECHO, b"on").recv_timeout(PATIENCE).unwrap().is_ok(), "the link lives");
}

#[test]
fn events_are_reported() {
    let mut daemon = daemon(|_| ());
    let key = daemon.far.wait("the session", |report| match report {
        Report::Established { session, .. } => Some(*session),
        _ => None,
    });
    daemon.far.handle.message(key, ProcedureId::remote(107), b"an event".to_vec());
    let body = daemon.near.wait("an event", |report| match report {
        Report::Message { procedure, body, .. } if *procedure == ProcedureId::remote(107) => Some(body.clone()),
        _ => None,
    });
    assert_eq!(body, b"an event");
}

#[test]
fn legacy_streams_carry_bytes_and_holes_both_ways_beside_bulk() {
    let (sent, got_there) = (40 * MIB, Arc::new(Mutex::new(None)));
    let keep = Arc::clone(&got_there);
    let mut daemon = daemon(move |programs| {
        add(programs, DOWNLOAD, move |call| {
            let (mut volume, _, _) = Volume::new(sent);
            volume.hole = Some(3 * MIB as u64);
            let options = StreamOptions { sparse: true, ..StreamOptions::new(Direction::Sending) };
            call.answer_with_stream(b"here".to_vec(), options, Box::new(volume));
        });
        add(programs, UPLOAD, move |call| {
            let (volume, got, _) = Volume::new(0);
            *keep.lock().unwrap() = Some(got);
            let options = StreamOptions { sparse: true, ..StreamOptions::new(Direction::Receiving) };
            call.answer_with_stream(Vec::new(), options, Box::new(volume));
        });
    });
    let (volume, got, _) = Volume::new(0);
    // What of the bulk came between the first and the last byte of the download.
    let bulk = Arc::new(Mutex::new(0));
    let (count, download) = (Arc::clone(&bulk), Arc::clone(&got));
    let sink = Custom::new().0.writing(move |bufs| {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        if (1..63 * MIB).contains(&download.lock().unwrap().len()) {
            *count.lock().unwrap() += len;
        }
        Ok(len)
    });
    daemon.near.handle.open(daemon.key, Open { target: "bulk".into(), ..Open::default() }, sink.boxed());
    let sparse = StreamOptions { sparse: true, ..StreamOptions::new(Direction::Receiving) };
    daemon.stream(DOWNLOAD, sparse, volume);
    assert_eq!(legacy_ended(&mut daemon.near), Ok(()));
    assert_eq!(legacy_ended(&mut daemon.far), Ok(()));
    let whole = [vec![0; 3 * MIB], pattern(sent)].concat();
    assert!(*got.lock().unwrap() == whole);
    assert!(*bulk.lock().unwrap() > 2 * MIB, "{} bytes of bulk beside it", bulk.lock().unwrap());

    let (mut volume, _, _) = Volume::new(sent);
    volume.hole = Some(3 * MIB as u64);
    daemon.stream(UPLOAD, StreamOptions { direction: Direction::Sending, ..sparse }, volume);
    assert_eq!(legacy_ended(&mut daemon.far), Ok(()));
    assert_eq!(legacy_ended(&mut daemon.near), Ok(()));
    let got = got_there.lock().unwrap().take().expect("it was called");
    assert!(*got.lock().unwrap() == whole);
}

#[test]
fn a_download_that_its_consumer_leaves_is_aborted_alone_and_below_its_limit_resumes_whole() {
    for (sent, aborted) in [(64 * MIB, true), (4 * MIB, false)] {
        let mut daemon = daemon(move |programs| {
            add(programs, DOWNLOAD, move |call| {
                let (volume, _, _) = Volume::new(sent);
                call.answer_with_stream(Vec::new(), StreamOptions::new(Direction::Sending), Box::new(volume));
            });
        });
        let bulk = Arc::new(Mutex::new(0));
        let count = Arc::clone(&bulk);
        let sink = Custom::new().0.writing(move |bufs| {
            let len = bufs.iter().map(|buf| buf.len()).sum();
            *count.lock().unwrap() += len;
            Ok(len)
        });
        daemon.near.handle.open(daemon.key, Open { target: "bulk".into(), ..Open::default() }, sink.boxed());
        let (mut volume, got, end) = Volume::new(0);
        volume.takes = MIB;
        if aborted {
            daemon.stream(DOWNLOAD, StreamOptions::new(Direction::Receiving), volume);
            assert_eq!(legacy_ended(&mut daemon.near), Err(rpc::StreamError::Overrun { limit: 4 << 20 }));
            assert_eq!(legacy_ended(&mut daemon.far), Err(rpc::StreamError::Aborted));
            assert!(matches!(end.recv_timeout(PATIENCE).unwrap(), Err(StreamError::Local(_))));
            assert_eq!(got.lock().unwrap().len(), MIB);
        } else {
            // Its source has ended; the end waits behind what its consumer has not taken.
            let (wakers, waker) = mpsc::channel();
            daemon.stream_woken(volume, wakers);
            let waker: virbistream::io::Waker = waker.recv_timeout(PATIENCE).unwrap();
            assert!(daemon.call(ECHO, b"").recv_timeout(PATIENCE).unwrap().is_ok());
            OPEN_WIDE.store(true, std::sync::atomic::Ordering::Release);
            waker.wake();
            assert_eq!(legacy_ended(&mut daemon.near), Ok(()));
            assert!(*got.lock().unwrap() == pattern(sent));
        }
        // The streams beside it did not notice.
        let before = *bulk.lock().unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        while *bulk.lock().unwrap() < before + 10 * MIB {
            assert!(std::time::Instant::now() < deadline, "bulk has stopped");
            thread::yield_now();
        }
        assert!(daemon.call(ECHO, b"on").recv_timeout(PATIENCE).unwrap().is_ok());
    }
}

/// Whether a [`Narrow`] volume takes everything by now.
static OPEN_WIDE: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// A volume that takes a MiB and then nothing, until it is told.
struct Narrow(Volume, mpsc::Sender<virbistream::io::Waker>);

impl Handler for Narrow {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        let _ = self.1.send(at.waker());
        Ok(())
    }

    fn detach(&mut self, _registry: &Registry) {}

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if OPEN_WIDE.load(std::sync::atomic::Ordering::Acquire) {
            self.0.takes = usize::MAX;
        }
        self.0.write(bufs)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn reset(&mut self, cause: &StreamError) {
        self.0.reset(cause);
    }
}

impl Daemon {
    fn stream_woken(&self, volume: Volume, wakers: mpsc::Sender<virbistream::io::Waker>) {
        let begun = (StreamOptions::new(Direction::Receiving), Box::new(Narrow(volume, wakers)) as Box<dyn Handler>);
        self.near.handle.call_with_stream(self.key, DOWNLOAD, Vec::new(), PATIENCE, begun, drop);
    }
}

#[test]
fn a_handler_that_fails_fails_its_stream_at_both_ends_and_a_refusal_reaches_it() {
    let mut daemon = daemon(|programs| {
        add(programs, DOWNLOAD, |call| {
            let (volume, _, _) = Volume::new(MIB);
            call.answer_with_stream(Vec::new(), StreamOptions::new(Direction::Sending), Box::new(volume));
        });
        add(programs, UPLOAD, |call| {
            call.answer(Err(RemoteError::new(codes::DEVICE_MISSING, domains::STREAMS, "no such volume")));
        });
    });
    let (failing, told) = Custom::new();
    let failing = failing.writing(|_| Err(io::Error::from_raw_os_error(28)));
    let begun = (StreamOptions::new(Direction::Receiving), failing.boxed());
    daemon.near.handle.call_with_stream(daemon.key, DOWNLOAD, Vec::new(), PATIENCE, begun, drop);
    assert!(matches!(legacy_ended(&mut daemon.near), Err(rpc::StreamError::Handler(error)) if error.int1 == 28));
    assert_eq!(legacy_ended(&mut daemon.far), Err(rpc::StreamError::Aborted));
    let told = all_told(&told);
    assert!(matches!(told[..], [Told::Attached(_), Told::Detached, Told::Reset(StreamError::Local(_))]), "{told:?}");

    let (refused, told) = Custom::new();
    let (answer, answered) = mpsc::channel();
    let begun = (StreamOptions::new(Direction::Sending), refused.boxed());
    let on_answer = move |came: Result<Vec<u8>, CallError>| drop(answer.send(came));
    daemon.near.handle.call_with_stream(daemon.key, UPLOAD, Vec::new(), PATIENCE, begun, on_answer);
    assert!(matches!(answered.recv_timeout(PATIENCE).unwrap(), Err(CallError::Remote(_))));
    assert!(matches!(all_told(&told)[..], [Told::Detached, Told::Reset(_)]));
}

/// From either end: what is under way ends first, and nothing new begins.
#[test]
fn a_session_that_is_closed_waits_for_calls_and_legacy_streams() {
    for by_client in [true, false] {
        let mut daemon = daemon(|_| ());
        let (volume, got, _) = Volume::new(0);
        daemon.stream(SLOW, StreamOptions::new(Direction::Receiving), volume);
        let slow = daemon.call(SLOW, b"");
        let [begins, call] = [0, 1].map(|_| daemon.slow.recv_timeout(PATIENCE).unwrap());
        if by_client {
            daemon.near.handle.close(daemon.key)
        } else {
            daemon.far.handle.close(daemon.far_key)
        }
        // Commands are carried out in their order: what comes now comes to a session that is to be closed.
        let (volume, _, _) = Volume::new(MIB);
        begins.answer_with_stream(Vec::new(), StreamOptions::new(Direction::Sending), Box::new(volume));
        assert_eq!(legacy_ended(&mut daemon.near), Ok(()));
        assert!(*got.lock().unwrap() == pattern(MIB));
        let (refused, told) = Custom::new();
        daemon.near.handle.open(daemon.key, Open { target: "it".into(), ..Open::default() }, refused.boxed());
        assert!(matches!(all_told(&told)[..], [Told::Detached, Told::Reset(_)]));
        call.answer(Ok(b"at last".to_vec()));
        assert_eq!(slow.recv_timeout(PATIENCE).unwrap(), Ok(b"at last".to_vec()));
        assert_eq!(daemon.near.session_ended(daemon.key), Ok(()));
        assert_eq!(daemon.far.session_ended(daemon.far_key), Ok(()));
    }
}

/// As a screenshot does: the relay's other end is closed both ways when all is written.
#[test]
fn a_download_from_a_socket_whose_other_end_is_gone_comes_whole() {
    for len in [4, 100_000] {
        let mut daemon = daemon(move |programs| {
            add(programs, DOWNLOAD, move |call| {
                let (near, far) = UnixStream::pair().unwrap();
                let relay = Relay::new(near).unwrap();
                call.answer_with_stream(Vec::new(), StreamOptions::new(Direction::Sending), Box::new(relay));
                thread::spawn(move || (&far).write_all(&pattern(len)).unwrap());
            });
        });
        let (volume, got, _) = Volume::new(0);
        daemon.stream(DOWNLOAD, StreamOptions::new(Direction::Receiving), volume);
        assert_eq!(legacy_ended(&mut daemon.near), Ok(()));
        assert!(*got.lock().unwrap() == pattern(len));
    }
}

/// Answers may come when nothing else does.
#[test]
fn a_client_that_leaves_late_answers_unread_loses_its_link() {
    let mut programs = Procedures::new();
    let (hand_out, calls) = mpsc::channel();
    let hand_out = Mutex::new(hand_out);
    add(&mut programs, SLOW, move |call| drop(hand_out.lock().unwrap().send(call)));
    let config = Config { hello_timeout: None, silence_limit: Duration::from_millis(200), ..Config::default() };
    let options = SessionOptions { config, programs: Arc::new(programs), ..SessionOptions::default() };
    let mut far = Node::start();
    let (near, theirs) = UnixStream::pair().unwrap();
    let key = far.handle.attach(Socket::from_unix(theirs).unwrap(), Side::Accepting, options);
    (0..100).for_each(|serial| (&near).write_all(&legacy_call(0x2000_8086, 1, 5, serial)).unwrap());
    let calls: Vec<Call> = (0..100).map(|_| calls.recv_timeout(PATIENCE).unwrap()).collect();
    calls.into_iter().for_each(|call| call.answer(Ok(vec![0; 60_000])));
    assert!(far.session_ended(key).is_err());
    drop(near);
}

/// The answer comes from another thread, after the end.
#[test]
fn a_client_that_says_no_more_has_its_answers_first() {
    let mut programs = Procedures::new();
    add(&mut programs, ECHO, |call| drop(thread::spawn(move || call.answer_with(Ok(9u64)))));
    let config = Config { hello_timeout: None, ..Config::default() };
    let options = SessionOptions { config, programs: Arc::new(programs), ..SessionOptions::default() };
    let mut far = Node::start();
    let address = far.listen(options);
    for _ in 0..20 {
        let mut peer = Raw::connect(&address);
        let key = far.link_accepted();
        (0..3).for_each(|serial| peer.say(&legacy_call(0x2000_8086, 1, 4, serial)));
        peer.shut();
        assert_eq!(peer.rest().len(), 3 * 36);
        assert_eq!(far.session_ended(key), Ok(()));
    }
}

/// It is told so, and the link ends when what it called for before is answered.
#[test]
fn a_client_that_calls_on_while_its_session_is_closed_holds_nothing_up() {
    let mut programs = Procedures::new();
    let (hand_out, calls) = mpsc::channel();
    let hand_out = Mutex::new(hand_out);
    add(&mut programs, SLOW, move |call| drop(hand_out.lock().unwrap().send(call)));
    let config = Config { hello_timeout: None, ..Config::default() };
    let mut far = Node::start();
    let options = SessionOptions { config, programs: Arc::new(programs), ..SessionOptions::default() };
    let mut peer = Raw::connect(&far.listen(options));
    let key = far.link_accepted();
    peer.say(&legacy_call(0x2000_8086, 1, 5, 1));
    let call = calls.recv_timeout(PATIENCE).unwrap();
    far.handle.close(key);
    // Carried out in this order: an answer by the handle stands behind the close.
    far.handle.message(key, ECHO, Vec::new());
    peer.receive();
    peer.say(&legacy_call(0x2000_8086, 1, 5, 2));
    let (header, _) = peer.receive();
    assert_eq!((header.serial, header.status), (2, 1), "refused");
    call.answer(Ok(Vec::new()));
    let (header, _) = peer.receive();
    assert_eq!((header.serial, header.status), (1, 0));
    assert_eq!(peer.rest(), []);
    assert_eq!(far.session_ended(key), Ok(()));
}

/// A peer that never says HELLO: its link stays for calls, and goes without a complaint.
#[test]
fn a_client_that_knows_no_bistream_is_served_and_leaves_in_order() {
    let mut programs = Procedures::new();
    add(&mut programs, ECHO, |call| call.answer_with(Ok(9u64)));
    let config = Config { hello_timeout: None, ..Config::default() };
    let options = SessionOptions { config, programs: Arc::new(programs), ..SessionOptions::default() };
    let mut far = Node::start();
    let mut peer = Raw::connect(&far.listen(options));
    let key = far.link_accepted();
    peer.say(&legacy_call(0x2000_8086, 1, 4, 11));
    let (header, body) = peer.receive();
    assert_eq!((header.kind, header.serial, header.status, body), (1, 11, 0, vec![0, 0, 0, 0, 0, 0, 0, 9]));
    peer.shut();
    assert_eq!(peer.rest(), []);
    assert_eq!(far.session_ended(key), Ok(()));
}

/// Our client at a daemon that does not know HELLO: typed, and the same link serves calls.
/// A client of ours, and the raw daemon that has told it that it knows no BiStream.
fn legacy_daemon() -> (Node, SessionKey, Raw) {
    let (near, far) = tcp_link();
    let mut node = Node::start();
    let options = SessionOptions { keep_legacy: true, ..SessionOptions::default() };
    let key = node.handle.attach(Socket::from_tcp(near).unwrap(), Side::Connecting, options);
    let mut daemon = Raw::from(far);
    let (hello, _) = daemon.receive();
    let error = RemoteError::new(codes::RPC, domains::RPC, "unknown procedure: 1112735745");
    let mut packet = [0; 1000];
    let len = encode_packet(&Header { kind: 1, status: 1, ..hello }, &error, &mut packet).unwrap();
    daemon.say(&packet[..len]);
    node.wait("that it is legacy", |report| {
        matches!(report, Report::Legacy { session, .. } if *session == key).then_some(())
    });
    (node, key, daemon)
}

#[test]
fn a_client_falls_back_to_calls_on_the_same_link() {
    let (mut node, key, mut daemon) = legacy_daemon();
    let (answer, answered) = mpsc::channel();
    node.handle.call(key, ECHO, b"args".to_vec(), PATIENCE, move |came| drop(answer.send(came)));
    let (call, body) = daemon.receive();
    assert_eq!(
        (ProcedureId { program: call.program, version: call.version, procedure: call.procedure }, &body[..]),
        (ECHO, &b"args"[..])
    );
    daemon.say(&Header { kind: 1, ..call }.encode(0));
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), Ok(Vec::new()));
    node.handle.close(key);
    assert_eq!(daemon.rest(), []);
    assert_eq!(node.session_ended(key), Ok(()));
}

/// As libvirtd does at times.
#[test]
fn what_a_daemon_sends_before_it_answers_the_call_waits_for_the_handler() {
    for (place, data) in [(0, "data"), (1, "data"), (2, "data"), (0, ""), (1, "")] {
        let (mut node, key, mut daemon) = legacy_daemon();
        let (volume, got, _) = Volume::new(0);
        let begun = (StreamOptions::new(Direction::Receiving), Box::new(volume) as Box<dyn Handler>);
        let (answer, answered) = mpsc::channel();
        node.handle.call_with_stream(key, DOWNLOAD, Vec::new(), PATIENCE, begun, move |came| drop(answer.send(came)));
        let (call, _) = daemon.receive();
        let stream = |status| Header { kind: 3, status, ..call };
        let mut packets = vec![stream(2).encode(0).to_vec()];
        if !data.is_empty() {
            packets.insert(0, [&stream(2).encode(4)[..], data.as_bytes()].concat());
        }
        packets.insert(place, Header { kind: 1, ..call }.encode(0).to_vec());
        for packet in &packets[..place] {
            daemon.say(packet);
        }
        // What was said before has come when this is answered.
        let ping = Header { program: rpc::KEEPALIVE, procedure: 1, kind: 2, serial: 0, ..call };
        daemon.say(&ping.encode(0));
        assert_eq!(daemon.receive(), (Header { procedure: 2, ..ping }, vec![]));
        assert_eq!(*got.lock().unwrap(), b"", "not before it stands");
        packets[place..].iter().for_each(|packet| daemon.say(packet));
        assert_eq!(daemon.receive(), (stream(0), vec![]));
        daemon.say(&stream(0).encode(0));
        assert_eq!(legacy_ended(&mut node), Ok(()));
        assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), Ok(Vec::new()));
        assert_eq!(*got.lock().unwrap(), data.as_bytes());
    }
}
