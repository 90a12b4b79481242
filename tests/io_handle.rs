//! What a handle can ask of a dispatcher, by name, and what becomes of it when that is gone.

mod io_support;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use allocation_counter::measure;
use io_support::*;
use mio::Events;
use virbistream::io::{Address, Dispatcher, Listener, Permissions, Report, SessionOptions, Socket};
use virbistream::proto::{SessionError, Side, StreamError};
use virbistream::wire::{Open, RemoteError, codes};

fn listener() -> Listener {
    Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), Permissions::default()).unwrap()
}

#[test]
fn a_stream_has_one_name_from_its_opening_to_its_end_and_is_reset_by_it() {
    let mut tunnel = Tunnel::new();
    let (living, _) = Custom::new();
    let (failing, told) = Custom::new();
    let living = tunnel.ask("disk", living.boxed());
    let failing = tunnel.ask("disk", failing.boxed());
    let _servers = [tunnel.accepted(), tunnel.accepted()];
    let stands = |node: &mut Node, key| {
        node.wait("the stream opened", |report| match report {
            Report::StreamOpened { stream, id, .. } if *stream == key => Some(*id),
            _ => None,
        })
    };
    let (living_id, id) = (stands(&mut tunnel.near, living), stands(&mut tunnel.near, failing));
    tunnel.near.handle.reset(tunnel.near_key, failing, RemoteError::new(codes::OPERATION_ABORTED, 0, "by hand"));
    for (cause, _) in tunnel.ended(id) {
        assert_eq!(remote_error(&cause.unwrap_err()).message, "by hand");
    }
    assert!(matches!(all_told(&told)[..], [Told::Attached(_), Told::Detached, Told::Reset(StreamError::Local(_))]));
    // What is over is not reset, nor what is another session's.
    let other =
        tunnel.near.handle.attach(Socket::from_tcp(tcp_link().0).unwrap(), Side::Accepting, tunnel.options.clone());
    tunnel.near.handle.reset(tunnel.near_key, failing, RemoteError::new(1, 0, ""));
    tunnel.near.handle.reset(other, living, RemoteError::new(1, 0, ""));
    let carried = tunnel.carry();
    drop((carried.client, carried.server));
    tunnel.ended_well(carried.id);
    assert!(
        !tunnel
            .near
            .unasked()
            .iter()
            .any(|report| matches!(report, Report::StreamEnded { id, .. } if *id == living_id))
    );
}

#[test]
fn a_reset_behind_the_end_of_the_session_changes_nothing() {
    let mut tunnel = Tunnel::new();
    let (handler, told) = Custom::new();
    let stream = tunnel.ask("disk", handler.boxed());
    let mut server = tunnel.accepted();
    let id = tunnel.near.opened(tunnel.near_key);
    std::io::Write::write_all(&mut server, b"hello").unwrap();
    // Through another stream, so it has come.
    let carried = tunnel.carry();
    std::io::Write::write_all(&mut &carried.server, b"x").unwrap();
    std::io::Read::read_exact(&mut &carried.client, &mut [0]).unwrap();
    tunnel.near.handle.shutdown("bye");
    tunnel.near.handle.reset(tunnel.near_key, stream, RemoteError::new(1, 0, "by hand"));
    let (cause, stats) = tunnel.near.ended(tunnel.near_key, id);
    assert!(matches!(cause, Err(StreamError::Session(SessionError::Shutdown(_)))), "{cause:?}");
    assert_eq!(stats.received, 5);
    assert_eq!(all_told(&told).len(), 3);
}

#[test]
fn one_listener_is_closed_and_the_others_go_on() {
    let mut tunnel = Tunnel::new();
    let (first, second) = (listener(), listener());
    let (gone, stays) = (first.address().clone(), second.address().clone());
    let key = tunnel.far.handle.listen(first, tunnel.options.clone());
    tunnel.far.handle.listen(second, tunnel.options.clone());
    let (held, free) = (Raw::connect(&gone), tunnel.path("door.sock"));
    let accepted = tunnel.far.link_accepted();
    tunnel.far.handle.stop_listening(key);
    let deadline = Instant::now() + PATIENCE;
    while Socket::connect(&gone, PATIENCE).is_ok() {
        assert!(Instant::now() < deadline, "it listens on");
    }
    let mut held = held;
    held.hello();
    tunnel.far.established(accepted);
    Raw::connect(&stays).hello();
    let door = Listener::bind(&Address::Unix(free.clone()), Permissions::default()).unwrap();
    let forward = tunnel.near.handle.forward(door, Open::default());
    tunnel.near.handle.stop_listening(forward);
    while free.exists() {
        assert!(Instant::now() < deadline, "it listens on");
    }
}

#[test]
fn a_dispatcher_that_drains_says_of_a_new_session_that_it_has_ended() {
    let mut tunnel = Tunnel::new();
    let _carried = tunnel.carry();
    tunnel.near.handle.drain();
    let (near, far) = tcp_link();
    let key = tunnel.near.handle.attach(Socket::from_tcp(near).unwrap(), Side::Connecting, SessionOptions::default());
    assert!(matches!(tunnel.near.session_ended(key), Err(SessionError::Shutdown(_))));
    Raw::from(far).rest();
}

#[test]
fn what_is_asked_of_a_dispatcher_that_is_gone_is_dropped() {
    let dispatcher = Dispatcher::new(drop).unwrap();
    let handle = dispatcher.handle();
    let (near, far) = tcp_link();
    let session = handle.attach(Socket::from_tcp(near).unwrap(), Side::Connecting, SessionOptions::default());
    let (before, told_before) = Custom::new();
    handle.open(session, Open::default(), before.boxed());
    drop(dispatcher);
    let (after, told_after) = Custom::new();
    handle.open(session, Open::default(), after.boxed());
    assert!(all_told(&told_before).is_empty() && all_told(&told_after).is_empty());
    assert_eq!(Raw::from(far).rest(), []);
}

/// The first wake stands for all until the handler is asked.
#[test]
fn wakes_do_not_pile_up() {
    let (report, reports) = mpsc::channel();
    let mut dispatcher = Dispatcher::new(move |what| drop(report.send(what))).unwrap();
    let far = Tunnel::new();
    let address = far.far.listen(far.options.clone());
    let handle = dispatcher.handle();
    let socket = Socket::connect(&address, PATIENCE).unwrap();
    let session = handle.attach(socket, Side::Connecting, SessionOptions::default());
    let mut events = Events::with_capacity(16);
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&asked);
    let (handler, told) = Custom::new();
    let handler = handler.reading(move |_| {
        counting.fetch_add(1, Ordering::Relaxed);
        Err(io::ErrorKind::WouldBlock.into())
    });
    let mut handler = Some(handler.boxed());
    let waker = loop {
        dispatcher.turn(&mut events, Some(PATIENCE)).unwrap();
        if reports.try_iter().any(|report| matches!(report, Report::Established { .. })) {
            handle.open(session, Open { target: "disk".into(), ..Open::default() }, handler.take().unwrap());
        }
        if let Ok(Told::Attached(waker)) = told.try_recv() {
            break waker;
        }
    };
    for _ in 0..2 {
        let before = asked.load(Ordering::Relaxed);
        let used = measure(|| (0..1000).for_each(|_| waker.wake()));
        assert!(used.bytes_total < 4096, "{used:?}");
        dispatcher.turn(&mut events, Some(PATIENCE)).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), before + 1);
    }
}

#[test]
fn sessions_are_told_with_any_patience() {
    let node = Node::start();
    assert_eq!(node.handle.sessions(Duration::MAX).len(), 0);
}
