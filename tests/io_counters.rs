//! What runs in a dispatcher and what happened there, asked for from another thread.

mod io_support;

use std::sync::Arc;
use std::time::Instant;

use io_support::*;
use virbistream::io::{Counters, Decision, Handle, Report, Request, SessionOptions, Socket};
use virbistream::proto::{Config, MemoryBudget, Side};
use virbistream::wire::Open;

#[track_caller]
fn counters_until(handle: &Handle, what: &str, holds: impl Fn(&Counters) -> bool) -> Counters {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counters = handle.counters();
        if holds(&counters) {
            return counters;
        }
        assert!(Instant::now() < deadline, "{what}: {counters:?}");
        std::thread::yield_now();
    }
}

/// Takes so many bytes, and then no more.
fn taking(most: usize) -> Box<dyn virbistream::io::Handler> {
    let mut left = most;
    let (sink, _) = Custom::new();
    let sink = sink.writing(move |bufs| {
        let taken = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(left);
        left -= taken;
        if taken == 0 { Err(std::io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    });
    sink.boxed()
}

#[test]
fn a_stream_that_stands_still_is_seen_with_all_that_it_did_from_both_ends() {
    // So little that no credit follows.
    const TAKEN: usize = 4_000;
    let targets = Arc::new(Offer(|_: &Request<'_>| Decision::Accept(taking(TAKEN))));
    let config = Config { window: 65_536, window_max: 65_536, ..Config::default() };
    let (near, far) = tcp_link();
    let (mut near_node, far_node) = (Node::start(), Node::start());
    let options = SessionOptions { targets, config, ..SessionOptions::default() };
    far_node.handle.attach(Socket::from_tcp(far).unwrap(), Side::Accepting, options);
    let key = near_node.handle.attach(Socket::from_tcp(near).unwrap(), Side::Connecting, SessionOptions::default());
    near_node.established(key);
    let (source, _) = Custom::new();
    let open = Open { target: "it".into(), priority: 3, ..Open::default() };
    near_node.handle.open(key, open, source.reading(|buf| Ok(buf.len())).boxed());
    let sent = 65_536;
    let deadline = Instant::now() + PATIENCE;
    let (near, far) = loop {
        // What has come there went from here before.
        let [far, near] = [&far_node, &near_node].map(|node| node.handle.sessions(PATIENCE));
        let received = |sessions: &[virbistream::io::SessionStatus]| {
            sessions.first().and_then(|session| session.streams.first()).map(|stream| stream.stats.received)
        };
        if received(&far) == Some(sent) {
            break (near, far);
        }
        assert!(Instant::now() < deadline, "{near:?} {far:?}");
    };
    let ([near], [far]) = (&near[..], &far[..]) else { panic!("{near:?} {far:?}") };
    assert_eq!((near.session, near.version, far.version), (key, Some(1), Some(1)));
    assert!(near.sent > sent && far.received > sent, "{near:?} {far:?}");
    let ([out], [into]) = (&near.streams[..], &far.streams[..]) else { panic!("{near:?} {far:?}") };
    assert_eq!((&*out.target, out.priority, out.id), ("it", 3, into.id));
    assert_eq!((out.stats.sent, out.stats.stalls, out.credit), (sent, 1, 0));
    assert_eq!((into.stats.consumed, into.window), (TAKEN as u64, sent));
    let [later] = &near_node.handle.sessions(PATIENCE)[..] else { panic!("one session") };
    assert!(later.streams[0].stalled > out.stalled && into.stalled.is_zero(), "{later:?}");
    let counters = near_node.handle.counters();
    assert_eq!((counters.sessions_begun, counters.streams_opened, counters.sessions_ended), (1, 1, 0));
    far_node.handle.shutdown("the test is over");
    counters_until(&near_node.handle, "the end", |counters| counters.sessions_ended == 1);
    assert!(near_node.handle.sessions(PATIENCE).is_empty());
}

#[test]
fn streams_and_opens_beyond_the_limits_are_counted_apart() {
    for (config, over) in [
        (Config { window: 65_536, memory_budget: MemoryBudget::new(131_072), ..Config::default() }, [0, 0, 3]),
        (Config { window: 65_536, session_memory: 131_072, ..Config::default() }, [0, 0, 3]),
        (Config { max_opens: 0, ..Config::default() }, [5, 0, 0]),
    ] {
        let targets = Arc::new(Offer(|_: &Request<'_>| Decision::Accept(taking(0))));
        let (near, far) = tcp_link();
        let (mut near_node, mut far_node) = (Node::start(), Node::start());
        let options = SessionOptions { targets, config, ..SessionOptions::default() };
        far_node.handle.attach(Socket::from_tcp(far).unwrap(), Side::Accepting, options);
        let key = near_node.handle.attach(Socket::from_tcp(near).unwrap(), Side::Connecting, SessionOptions::default());
        near_node.established(key);
        for _ in 0..5 {
            near_node.handle.open(key, Open { target: "it".into(), ..Open::default() }, taking(0));
        }
        counters_until(&near_node.handle, "answers", |counters| {
            counters.streams_opened + counters.streams_refused == 5
        });
        let counted =
            |counters: &Counters| [counters.opens_over_rate, counters.opens_over_streams, counters.opens_over_memory];
        counters_until(&far_node.handle, "the refusals", |counters| counted(counters) == over);
        far_node.wait("a line", |report| matches!(report, Report::OpensRefused { count: 1.., .. }).then_some(()));
    }
}

#[test]
fn a_session_without_hello_is_counted_by_its_cause() {
    let node = Node::start();
    let config = Config { hello_timeout: Some(std::time::Duration::from_millis(1)), ..Config::default() };
    let address = node.listen(SessionOptions { config, ..SessionOptions::default() });
    let _silent = Raw::connect(&address);
    let counters = counters_until(&node.handle, "the end", |counters| counters.sessions_ended == 1);
    assert_eq!((counters.links_accepted, counters.hello_timeouts, counters.violations), (1, 1, 0));
}
