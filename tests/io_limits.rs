//! Bandwidth limits over real sockets, by the clock of the machine: coarse, since it has other work. `session_limits` is exact.

mod io_support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{Decision, Dispatcher, Handle, Report, Request, SessionKey, SessionOptions, Socket, StreamKey};
use virbistream::proto::Side;
use virbistream::wire::Open;

const MIB: u64 = 1 << 20;

/// A session with streams that send without end.
struct Flood {
    near: Node,
    _far: Node,
    key: SessionKey,
    streams: Vec<StreamKey>,
    arrived: Arc<AtomicU64>,
}

impl Flood {
    fn start(streams: usize) -> Self {
        let arrived = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&arrived);
        let targets = Arc::new(Offer(move |_: &Request<'_>| {
            let count = Arc::clone(&count);
            let (sink, _) = Custom::new();
            let sink = sink.writing(move |bufs| {
                let len = bufs.iter().map(|buf| buf.len()).sum::<usize>();
                count.fetch_add(len as u64, Ordering::Relaxed);
                Ok(len)
            });
            Decision::Accept(sink.boxed())
        }));
        let (near, far) = tcp_link();
        let (mut near_node, far_node) = (Node::start(), Node::start());
        let options = SessionOptions { targets, ..SessionOptions::default() };
        far_node.handle.attach(Socket::from_tcp(far).unwrap(), Side::Accepting, options);
        let near = Socket::from_tcp(near).unwrap();
        let key = near_node.handle.attach(near, Side::Connecting, SessionOptions::default());
        near_node.established(key);
        let open = || near_node.handle.open(key, Open { target: "it".into(), ..Open::default() }, source());
        let streams = (0..streams).map(|_| open()).collect();
        Self { near: near_node, _far: far_node, key, streams, arrived }
    }

    /// Bytes a second, over the time that as many take at the rate.
    fn rate(&self, bytes: u64) -> u64 {
        let until = |count| {
            let deadline = Instant::now() + PATIENCE;
            while self.arrived.load(Ordering::Relaxed) < count {
                assert!(Instant::now() < deadline, "no more than {} bytes", self.arrived.load(Ordering::Relaxed));
                std::thread::yield_now();
            }
        };
        // What was under way under another limit does not count.
        until(self.arrived.load(Ordering::Relaxed) + bytes / 2);
        let (begin, from) = (Instant::now(), self.arrived.load(Ordering::Relaxed));
        until(from + bytes);
        let took = begin.elapsed().max(Duration::from_nanos(1));
        (u128::from(bytes) * 1_000_000_000 / took.as_nanos()) as u64
    }
}

fn source() -> Box<dyn virbistream::io::Handler> {
    let (source, _) = Custom::new();
    source.reading(|buf| Ok(buf.len())).boxed()
}

/// Never above; and not far below, though the machine may be busy.
#[track_caller]
fn assert_limited(rate: u64, limit: u64) {
    assert!((limit / 2..=limit * 6 / 5).contains(&rate), "{rate} bytes a second at a limit of {limit}");
}

#[test]
fn each_limit_is_kept_to_and_changes_while_bytes_flow() {
    let flood = Flood::start(2);
    let free = flood.rate(64 * MIB);
    assert!(free > 60 * MIB, "{free} bytes a second without a limit");
    let handle = &flood.near.handle;
    handle.limit(Some(20 * MIB));
    assert_limited(flood.rate(8 * MIB), 20 * MIB);
    handle.limit_session(flood.key, Some(10 * MIB));
    assert_limited(flood.rate(4 * MIB), 10 * MIB);
    for stream in &flood.streams {
        handle.limit_stream(flood.key, *stream, Some(2 * MIB));
    }
    assert_limited(flood.rate(2 * MIB), 4 * MIB);
    handle.limit(None);
    handle.limit_session(flood.key, None);
    assert_limited(flood.rate(2 * MIB), 4 * MIB);
    for stream in &flood.streams {
        handle.limit_stream(flood.key, *stream, None);
    }
    assert!(flood.rate(64 * MIB) > 60 * MIB);
}

/// Sessions of one host, on so many threads, which all send without end.
fn shares(threads: usize, sessions: usize) -> Vec<u64> {
    let mut near = Node::several(threads);
    near.handle.limit(Some(20 * MIB));
    let far = Node::start();
    let counts: Vec<_> = (0..sessions).map(|_| Arc::new(AtomicU64::new(0))).collect();
    for count in &counts {
        let count = Arc::clone(count);
        let targets = Arc::new(Offer(move |_: &Request<'_>| {
            let count = Arc::clone(&count);
            let sink = Custom::new().0.writing(move |bufs| {
                let len = bufs.iter().map(|buf| buf.len()).sum::<usize>();
                count.fetch_add(len as u64, Ordering::Relaxed);
                Ok(len)
            });
            Decision::Accept(sink.boxed())
        }));
        let (ours, theirs) = unix_link();
        far.handle.attach(theirs, Side::Accepting, SessionOptions { targets, ..SessionOptions::default() });
        let key = near.handle.attach(ours, Side::Connecting, SessionOptions::default());
        near.established(key);
        near.handle.open(key, Open { target: "it".into(), ..Open::default() }, source());
    }
    let sum = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
    let deadline = Instant::now() + PATIENCE;
    while sum() < 40 * MIB {
        assert!(Instant::now() < deadline, "{counts:?}");
        std::thread::yield_now();
    }
    counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
}

#[test]
fn sessions_under_the_hosts_limit_share_it_alike_on_one_thread_and_on_several() {
    for threads in [1, 2] {
        let shares = shares(threads, 3);
        let all: u64 = shares.iter().sum();
        assert!(shares.iter().all(|share| share * 3 * 3 > all * 2), "{shares:?} on {threads} threads");
    }
}

#[test]
fn a_handler_and_a_report_may_change_the_limit() {
    let (near, far) = tcp_link();
    let handle: Arc<OnceLock<Handle>> = Arc::default();
    let theirs = Arc::clone(&handle);
    let (tell, told) = mpsc::channel();
    let dispatcher = Dispatcher::new(move |report| {
        if let Some(handle) = theirs.get() {
            handle.limit(Some(50 * MIB));
        }
        let _ = tell.send(report);
    })
    .unwrap();
    let ours = dispatcher.handle();
    handle.set(ours.clone()).unwrap();
    std::thread::spawn(move || dispatcher.run());
    let far_node = Node::start();
    let targets = Arc::new(Offer(|_: &Request<'_>| Decision::Accept(Custom::new().0.boxed())));
    let options = SessionOptions { targets, ..SessionOptions::default() };
    far_node.handle.attach(Socket::from_tcp(far).unwrap(), Side::Accepting, options);
    let key = ours.attach(Socket::from_tcp(near).unwrap(), Side::Connecting, SessionOptions::default());
    let wait = |pick: fn(&Report) -> bool| while !pick(&told.recv_timeout(PATIENCE).expect("a report in time")) {};
    wait(|report| matches!(report, Report::Established { .. }));
    let (changing, mut left) = (ours.clone(), 4 * MIB as usize);
    let (all_read, finish) = mpsc::channel();
    let source = Custom::new().0.reading(move |buf| {
        changing.limit(Some(100 * MIB));
        let len = left.min(buf.len());
        left -= len;
        if len == 0 {
            let _ = all_read.send(());
        }
        Ok(len)
    });
    ours.open(key, Open { target: "it".into(), ..Open::default() }, source.boxed());
    wait(|report| matches!(report, Report::StreamOpened { .. }));
    finish.recv_timeout(PATIENCE).expect("all of it is taken");
    ours.shutdown("enough");
}

#[test]
fn a_limit_of_0_stops_everything_until_it_is_lifted() {
    let flood = Flood::start(1);
    flood.rate(MIB);
    flood.near.handle.limit(Some(0));
    // What is under way arrives, and then nothing does for a while, which takes a while to see.
    let mut last = 0;
    while last != flood.arrived.load(Ordering::Relaxed) {
        last = flood.arrived.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
    }
    flood.near.handle.limit(None);
    flood.rate(MIB);
}
