//! Streams whose sink takes nothing: what they cost, and that nobody else notices them.

mod io_support;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{Decision, Request, SessionOptions, Waker};
use virbistream::proto::Config;
use virbistream::wire::Open;

const MIB: usize = 1 << 20;

/// What moves beside the stalled streams.
const BULK: usize = 256 * MIB;

const STALLED: usize = 63;

/// As in the default configuration.
const WINDOW: usize = 256 * 1024;

/// What the window of the bulk grows to, at the most.
const BULK_WINDOW: usize = 4 * MIB;

/// Opens streams that have filled their windows when this returns.
fn stall(tunnel: &mut Tunnel, streams: usize) {
    let (reached, marks) = mpsc::channel();
    for n in 0..streams {
        tunnel.ask("stalled", Box::new(Endless::new(Pattern::new(n as u64), WINDOW, reached.clone())));
    }
    drop(reached);
    for _ in 0..streams {
        marks.recv_timeout(PATIENCE).unwrap();
    }
    assert!(marks.try_recv().is_err(), "every source has said it once");
}

/// Moves the bulk from one UNIX socket to the other, and judges every byte. The end comes in order.
fn bulk(client: UnixStream, server: UnixStream) -> Duration {
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            Pattern::new(64).write_to(&client, BULK).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        Pattern::new(64).check_from(&server, BULK);
        assert_eq!(to_eof(&server), []);
    });
    begun.elapsed()
}

fn timed_bulk(tunnel: &mut Tunnel) -> Duration {
    let Carried { id, client, server } = tunnel.carry();
    let time = bulk(client, server);
    tunnel.ended_well(id);
    time
}

#[test]
fn sixty_three_stalled_streams_leave_the_64th_undisturbed_and_hold_their_windows_and_little_more() {
    let mut alone = Tunnel::with(|options, _| options.config.window_max = BULK_WINDOW as u64);
    let mut beside = Tunnel::with(|options, path| {
        options.config.window_max = BULK_WINDOW as u64;
        with_stalled(options, path);
    });
    stall(&mut beside, STALLED);
    // A busy machine may disturb a round, a stalled stream would disturb them all.
    let mut rounds = Vec::new();
    while rounds.last().is_none_or(|(alone, beside)| *beside > *alone * 3) {
        assert!(rounds.len() < 5, "alone and beside stalled streams: {rounds:?}");
        rounds.push((timed_bulk(&mut alone), timed_bulk(&mut beside)));
    }

    let (near, far) = (beside.near.stop().bytes_max, beside.far.stop().bytes_max);
    let windows = (STALLED * WINDOW) as u64;
    let moving = (BULK_WINDOW + 4 * MIB) as u64;
    assert!(far >= windows, "the windows are full: {far}");
    assert!(near + far <= windows + moving, "{near} bytes near, {far} far");
    let (near, far) = (alone.near.stop().bytes_max, alone.far.stop().bytes_max);
    assert!(near + far <= moving, "{near} bytes near, {far} far, with no stream stalled");
}

#[test]
fn streams_stalled_in_both_directions_leave_others_undisturbed() {
    let mut tunnel = Tunnel::with(with_stalled);
    let (reached, marks) = mpsc::channel();
    for n in 0..8 {
        let open = Open { target: "stalled".into(), ..Open::default() };
        let source = || Box::new(Endless::new(Pattern::new(n), WINDOW, reached.clone()));
        tunnel.near.handle.open(tunnel.near_key, open.clone(), source());
        tunnel.far.handle.open(tunnel.far_key, open, source());
    }
    for _ in 0..16 {
        marks.recv_timeout(PATIENCE).unwrap();
    }
    let Carried { id, client, server } = tunnel.carry();
    thread::scope(|scope| {
        for (mut from, mut to) in [(&client, &server), (&server, &client)] {
            scope.spawn(move || {
                Pattern::new(1).write_to(&mut from, 8 * MIB).unwrap();
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || Pattern::new(1).check_from(&mut to, 8 * MIB));
        }
    });
    tunnel.ended_well(id);
}

#[test]
fn a_stalled_socket_holds_up_its_own_stream_alone_and_loses_nothing() {
    let mut tunnel = Tunnel::new();
    let stalled = tunnel.carry();
    let writer = thread::spawn({
        let client = stalled.client.try_clone().unwrap();
        move || {
            Pattern::new(1).write_to(&client, 8 * MIB).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
    });
    for _ in 0..3 {
        let Carried { id, client, server } = tunnel.carry();
        Pattern::new(2).write_to(&client, 100_000).unwrap();
        drop(client);
        assert!(to_eof(&server) == Pattern::new(2).bytes(100_000));
        drop(server);
        tunnel.ended_well(id);
    }
    assert!(!writer.is_finished(), "8 MiB are more than the window and the buffers of the sockets");
    Pattern::new(1).check_from(&stalled.server, 8 * MIB);
    assert_eq!(to_eof(&stalled.server), []);
    writer.join().unwrap();
}

/// One that takes all that it is given as fast as memory is copied, after it has taken nothing for long.
#[test]
fn a_sink_that_catches_up_lets_others_have_their_turns() {
    const HELD: usize = 48 * MIB;
    let (goes, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (source, source_told) = Custom::new();
    let (reads, had) = mpsc::channel();
    let source = source.reading({
        let taken = Arc::clone(&taken);
        move |_| {
            let _ = reads.send(taken.load(Ordering::Relaxed));
            Err(io::ErrorKind::WouldBlock.into())
        }
    });
    let (waker, wakers) = mpsc::channel::<Waker>();
    let (sink, sink_told) = Custom::new();
    let sink = sink.writing({
        let (goes, taken, mut other) = (Arc::clone(&goes), Arc::clone(&taken), None);
        move |bufs| {
            if !goes.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            other.get_or_insert_with(|| wakers.recv().unwrap()).wake();
            let len = bufs.iter().map(|buf| buf.len()).sum();
            taken.fetch_add(len, Ordering::Relaxed);
            Ok(len)
        }
    });
    let handlers = Mutex::new(vec![sink.boxed(), source.boxed()]);
    let targets = Offer(move |_: &Request<'_>| {
        let handler = handlers.lock().unwrap().pop();
        Decision::Accept(handler.expect("one of two"))
    });
    let config = Config { window: HELD as u64, ..Config::default() };
    let far = Node::start();
    let options = SessionOptions { targets: Arc::new(targets), config, ..SessionOptions::default() };
    let mut peer = Raw::connect(&far.listen(options));
    peer.hello();
    peer.open(1, "source", 1 << 20);
    peer.opened(3, "sink", 0);
    let attached = |told: mpsc::Receiver<Told>| match told.recv_timeout(PATIENCE) {
        Ok(Told::Attached(waker)) => waker,
        other => panic!("{other:?}"),
    };
    waker.send(attached(source_told)).unwrap();
    for _ in 0..HELD / (128 * 1024) {
        peer.say(&data_packet(3, &[7; 128 * 1024]));
    }
    peer.ping();
    had.try_iter().for_each(drop);
    goes.store(true, Ordering::Relaxed);
    attached(sink_told).wake();
    let turns: Vec<usize> = std::iter::from_fn(|| {
        let had = had.recv_timeout(PATIENCE).expect("a turn");
        (had < HELD).then_some(had)
    })
    .collect();
    assert!(turns.len() >= HELD / (8 * MIB), "the other had its turns when so much was taken: {turns:?}");
    drop(peer);
    far.stop();
}

#[test]
fn one_byte_packets_of_a_stalled_stream_hold_their_bytes_and_a_small_overhead() {
    let far = Node::start();
    let mut options = SessionOptions::default();
    with_stalled(&mut options, std::path::Path::new("nowhere"));
    let mut peer = Raw::connect(&far.listen(options));
    peer.hello();
    peer.opened(1, "stalled", 0);
    let packet = data_packet(1, b"x");
    for _ in 0..WINDOW / 1024 {
        peer.say(&packet.repeat(1024));
    }
    peer.ping();
    drop(peer);
    let used = far.stop().bytes_max;
    // Beside the bytes: the read buffer, one on its way out, and what any session takes.
    let least = WINDOW as u64;
    assert!((least..least + MIB as u64).contains(&used), "{used} bytes held for {WINDOW} packets of one");
}
