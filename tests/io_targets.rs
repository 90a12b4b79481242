//! What becomes of a stream whose target is not there, or not ready.

mod io_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{Decision, Identity, Request, SessionOptions, Targets, UnixTargets};
use virbistream::proto::{OpenError, StreamError};
use virbistream::wire::{Extension, Open, PacketType, Procedure, RemoteError, Status, codes, kind};

const ENOENT: i32 = 2;
const ECONNREFUSED: i32 = 111;

/// A listener whose backlog is full, and the connections that fill it.
fn full_listener(path: &Path) -> (UnixListener, Vec<socket2::Socket>) {
    let socket = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let address = socket2::SockAddr::unix(path).unwrap();
    let listener = socket();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut fillers = Vec::new();
    loop {
        let filler = socket();
        filler.set_nonblocking(true).unwrap();
        if filler.connect(&address).is_err() {
            return (UnixListener::from(listener), fillers);
        }
        fillers.push(filler);
    }
}

/// The targets `disk`, `full` and `again`, and the name of each that is put off. The last two are one socket.
fn with_full(options: &mut SessionOptions, dir: &Path) -> mpsc::Receiver<String> {
    let mut targets = UnixTargets::new();
    targets.insert("disk", dir.join("disk.sock"));
    targets.insert("full", dir.join("full.sock"));
    targets.insert("again", dir.join("full.sock"));
    let (put_off, retries) = mpsc::channel();
    options.targets = Arc::new(Offer(move |request: &Request<'_>| {
        let decision = targets.open(request);
        if matches!(decision, Decision::RetryAfter(_)) {
            let _ = put_off.send(request.target.to_owned());
        }
        decision
    }));
    retries
}

/// What the stream's handler is told of its refusal.
#[track_caller]
fn refusal(told: &mpsc::Receiver<Told>) -> RemoteError {
    loop {
        match told.recv_timeout(PATIENCE).unwrap() {
            Told::Reset(StreamError::Refused(error)) => return *error,
            Told::Detached => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_target_that_cannot_be_dialled_is_refused_with_its_errno() {
    let mut tunnel = Tunnel::with(|options, dir| {
        let mut targets = UnixTargets::new();
        targets.insert("gone", dir.join("gone.sock"));
        targets.insert("dead", dir.join("dead.sock"));
        closed_listener(&dir.join("dead.sock"));
        options.targets = Arc::new(targets);
    });
    for (target, errno) in [("gone", ENOENT), ("dead", ECONNREFUSED)] {
        let (handler, told) = Custom::new();
        tunnel.ask(target, handler.boxed());
        let error = refusal(&told);
        assert_eq!((error.code, error.int1, error.int2), (codes::SYSTEM_ERROR, errno, 0), "{target}");
        for reason in [tunnel.near.refused(), tunnel.far.refused()] {
            assert!(reason.contains(target) && reason.contains(&format!("os error {errno}")), "{reason}");
        }
        // Whoever connected here is let go.
        assert_eq!(to_eof(tunnel.ask_for(target)), []);
        tunnel.near.refused();
        tunnel.far.refused();
    }
}

#[test]
fn a_target_that_appears_after_a_refusal_can_be_asked_for_again() {
    let mut tunnel = Tunnel::with(|options, dir| {
        let mut targets = UnixTargets::new();
        targets.insert("later", dir.join("later.sock"));
        options.targets = Arc::new(targets);
    });
    let client = tunnel.ask_for("later");
    tunnel.near.refused();
    assert_eq!(to_eof(client), []);
    let later = UnixListener::bind(tunnel.path("later.sock")).unwrap();
    let mut client = tunnel.ask_for("later");
    client.write_all(b"hello").unwrap();
    accept(&later).read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn an_unknown_target_is_refused() {
    let mut tunnel = Tunnel::new();
    for target in ["sda", "DISK", "disk ", "../disk"] {
        let (handler, told) = Custom::new();
        tunnel.ask(target, handler.boxed());
        let error = refusal(&told);
        assert_eq!((error.code, error.int1), (codes::DEVICE_MISSING, 0), "{target}");
        for reason in [tunnel.near.refused(), tunnel.far.refused()] {
            assert!(reason.contains(target), "{reason}");
        }
    }
}

#[test]
fn a_name_that_is_none_is_never_asked_for() {
    let mut tunnel = Tunnel::new();
    for target in ["", "new\nline", &"x".repeat(256)] {
        let (handler, told) = Custom::new();
        tunnel.ask(target, handler.boxed());
        assert_eq!(tunnel.near.refused(), "not a target name");
        let told = all_told(&told);
        assert!(
            matches!(told[..], [Told::Detached, Told::Reset(StreamError::NotOpened(OpenError::TargetName))]),
            "{told:?}"
        );
    }
    let _carried = tunnel.carry();
    assert!(tunnel.far.unasked().is_empty());
}

#[test]
fn the_errno_of_a_refusal_stands_on_the_wire() {
    let mut far = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let mut targets = UnixTargets::new();
    targets.insert("gone", dir.path().join("gone.sock"));
    let mut peer =
        Raw::connect(&far.listen(SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() }));
    peer.hello();
    peer.open(1, "gone", 0);
    let error: RemoteError = peer.expect(Procedure::Open, PacketType::Reply, 1, Status::Error);
    assert_eq!((error.code, error.int1), (codes::SYSTEM_ERROR, ENOENT));
    assert!(error.message.contains("gone"), "{}", error.message);
    far.refused();
}

#[test]
fn a_target_with_a_full_backlog_is_tried_again_until_it_accepts() {
    let mut retries = None;
    let mut tunnel = Tunnel::with(|options, dir| retries = Some(with_full(options, dir)));
    let retries = retries.unwrap();
    let (full, fillers) = full_listener(&tunnel.path("full.sock"));
    let mut client = tunnel.ask_for("full");
    client.write_all(b"hello").unwrap();
    for _ in 0..3 {
        retries.recv_timeout(PATIENCE).unwrap();
    }
    // Meanwhile, others are dialled at once.
    let Carried { client: other, server, .. } = tunnel.carry();
    (&other).write_all(b"other").unwrap();
    (&server).read_exact(&mut [0; 5]).unwrap();
    for _ in &fillers {
        drop(accept(&full));
    }
    let mut server = accept(&full);
    let id = tunnel.near.opened(tunnel.near_key);
    assert_eq!(tunnel.far.opened(tunnel.far_key), id);
    let mut hello = [0; 5];
    server.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    drop((client, server));
    tunnel.ended_well(id);
}

#[test]
fn a_target_whose_backlog_stays_full_is_refused_at_the_deadline() {
    let patience = Duration::from_millis(150);
    let mut retries = None;
    let mut tunnel = Tunnel::with(|options, dir| {
        options.dial_timeout = patience;
        retries = Some(with_full(options, dir));
    });
    let (_full, _fillers) = full_listener(&tunnel.path("full.sock"));
    let asked = Instant::now();
    let (handler, told) = Custom::new();
    tunnel.ask("full", handler.boxed());
    let error = refusal(&told);
    assert!((patience..PATIENCE / 2).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    assert_eq!(error.code, codes::OPERATION_TIMEOUT);
    for reason in [tunnel.near.refused(), tunnel.far.refused()] {
        assert!(reason.contains("target `full` took no connection in time"), "{reason}");
    }
    assert!(retries.unwrap().try_iter().count() > 2);
    tunnel.carry();
}

#[test]
fn a_stream_whose_opener_leaves_is_dialled_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut far = Node::start();
    let mut options = SessionOptions::default();
    let retries = with_full(&mut options, dir.path());
    let (_full, _fillers) = full_listener(&dir.path().join("full.sock"));
    let address = far.listen(options);
    for dies in [false, true] {
        let mut peer = Raw::connect(&address);
        let key = far.link_accepted();
        peer.hello();
        peer.open(1, "full", 0);
        assert_eq!(retries.recv_timeout(PATIENCE).unwrap(), "full");
        if dies {
            drop(peer);
            far.session_ended(key).unwrap_err();
        } else {
            let error = RemoteError::new(codes::OPERATION_ABORTED, 0, "no longer wanted");
            peer.send(Procedure::Data, PacketType::Stream, 1, Status::Error, &error);
            peer.ping();
        }
        // Another is put off several times, and nobody but it.
        let mut peer = Raw::connect(&address);
        far.link_accepted();
        peer.hello();
        retries.try_iter().for_each(drop);
        peer.open(1, "again", 0);
        for _ in 0..5 {
            assert_eq!(retries.recv_timeout(PATIENCE).unwrap(), "again");
        }
        drop(peer);
    }
}

#[test]
fn who_waits_for_ever_is_no_fault_of_the_clock() {
    let (asked, asking) = mpsc::channel();
    let mut tunnel = Tunnel::with(move |options, _| {
        options.dial_timeout = Duration::MAX;
        options.targets = Arc::new(Offer(move |_: &Request<'_>| {
            let _ = asked.send(());
            Decision::RetryAfter(Duration::MAX)
        }));
    });
    let (handler, _told) = Custom::new();
    let stream = tunnel.ask("later", handler.boxed());
    asking.recv_timeout(PATIENCE).unwrap();
    tunnel.near.handle.reset(tunnel.near_key, stream, RemoteError::new(codes::OPERATION_ABORTED, 0, "no more"));
    assert_eq!(tunnel.near.refused(), "no more (libvirt error 78)");
}

#[test]
fn targets_are_told_who_asks_and_what() {
    let (ask, asked) = mpsc::channel();
    let tunnel = Tunnel::with(move |options, _| {
        options.targets = Arc::new(Offer(move |request: &Request<'_>| {
            let who = (request.peer.to_owned(), request.identity.clone());
            let _ = ask.send((who, request.kind, request.priority, request.extensions.to_vec()));
            Decision::Refuse(RemoteError::new(codes::ACCESS_DENIED, 0, "nothing is offered"))
        }));
    });
    let extensions = vec![Extension { kind: 77, needed: false, value: vec![1, 2, 3] }];
    let open = Open { target: "it".into(), kind: kind::MEMORY, priority: 1, extensions, ..Open::default() };
    tunnel.near.handle.open(tunnel.near_key, open.clone(), Custom::new().0.boxed());
    let ((peer, identity), kind, priority, extensions) = asked.recv_timeout(PATIENCE).unwrap();
    assert!(peer.starts_with("tcp://127.0.0.1:"), "{peer}");
    assert_eq!(identity, Identity::Loopback);
    assert_eq!((kind, priority, extensions), (open.kind, open.priority, open.extensions));
}

#[test]
fn a_handler_may_ask_for_time_and_then_accept() {
    let asked = Mutex::new(0);
    let mut tunnel = Tunnel::with(|options, _| {
        options.targets = Arc::new(Offer(move |_: &Request<'_>| {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            match *asked {
                1..=2 => Decision::RetryAfter(Duration::from_millis(1)),
                _ => Decision::Accept(Custom::new().0.boxed()),
            }
        }));
    });
    tunnel.ask("it", Custom::new().0.boxed());
    assert_eq!(tunnel.near.opened(tunnel.near_key), tunnel.far.opened(tunnel.far_key));
}
