//! What a warm dispatcher allocates for data that handlers take as it comes: nothing for a packet, read, relayed and written.

mod io_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use allocation_counter::measure;
use io_support::*;
use mio::Events;
use virbistream::io::{Decision, Dispatcher, Report, Request, SessionOptions, Socket};
use virbistream::proto::Side;
use virbistream::wire::Open;

const STREAMS: usize = 4;

#[test]
fn bulk_of_several_streams_allocates_nothing_for_a_packet() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&arrived);
    let sink = Offer(move |_: &Request<'_>| {
        let arrived = Arc::clone(&counting);
        let taking = Custom::new().0.writing(move |bufs| {
            let len = bufs.iter().map(|buf| buf.len()).sum();
            arrived.fetch_add(len, Ordering::Relaxed);
            Ok(len)
        });
        Decision::Accept(taking.boxed())
    });
    let stands = Arc::new(AtomicBool::new(false));
    let standing = Arc::clone(&stands);
    let report = move |report| standing.store(matches!(report, Report::Established { .. }), Ordering::Relaxed);
    let mut ends = [Dispatcher::new(drop).unwrap(), Dispatcher::new(report).unwrap()];
    let (ours, theirs) = tcp_link();
    ends[0].handle().attach(
        Socket::from_tcp(theirs).unwrap(),
        Side::Accepting,
        SessionOptions { targets: Arc::new(sink), ..SessionOptions::default() },
    );
    let near = ends[1].handle();
    let session = near.attach(Socket::from_tcp(ours).unwrap(), Side::Connecting, SessionOptions::default());
    let mut events = [Events::with_capacity(64), Events::with_capacity(64)];
    let deadline = Instant::now() + PATIENCE;
    let mut turns_until = |done: &dyn Fn() -> bool| {
        while !done() {
            for (end, events) in ends.iter_mut().zip(&mut events) {
                end.turn(events, Some(Duration::ZERO)).unwrap();
            }
            assert!(Instant::now() < deadline, "{} bytes arrive", arrived.load(Ordering::Relaxed));
        }
    };
    turns_until(&|| stands.load(Ordering::Relaxed));
    for _ in 0..STREAMS {
        let source = Custom::new().0.reading(|buf: &mut [u8]| Ok(buf.len()));
        near.open(session, Open { target: "it".into(), ..Open::default() }, source.boxed());
    }
    turns_until(&|| arrived.load(Ordering::Relaxed) >= 256 << 20);
    let used = measure(|| turns_until(&|| arrived.load(Ordering::Relaxed) >= 512 << 20));
    assert_eq!((used.count_total, used.bytes_total), (0, 0));
}
