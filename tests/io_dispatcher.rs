//! Dispatchers: sessions, streams from both sides, handlers of one's own, and how it all ends.

mod io_support;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use virbistream::io::{
    Address, Attachment, Dispatcher, Handler, Listener, NoTargets, Permissions, Relay, Report, SessionOptions, Socket,
};
use virbistream::proto::{SessionError, Side, StreamError};
use virbistream::wire::{Open, close};

const MIB: usize = 1 << 20;

/// Writes a pattern to the stream and expects it back.
fn expect_echo(stream: UnixStream, seed: u64, len: usize) {
    thread::scope(|scope| {
        scope.spawn(|| {
            Pattern::new(seed).write_to(&stream, len).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        Pattern::new(seed).check_from(&stream, len);
        assert_eq!(to_eof(&stream), []);
    });
}

/// Sends all back that comes, to the end.
fn echo(stream: UnixStream) {
    io::copy(&mut &stream, &mut &stream).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

fn expect_echo_between(client: UnixStream, server: UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| expect_echo(client, 1, 3 * MIB));
        scope.spawn(|| echo(server));
    });
}

#[test]
fn many_sessions_share_a_dispatcher() {
    const SESSIONS: usize = 8;
    const STREAMS: usize = 3;
    let tunnel = Tunnel::new();
    let tcp = tunnel.far.listen(tunnel.options.clone());
    let unix = Address::Unix(tunnel.path("links.sock"));
    tunnel.far.handle.listen(Listener::bind(&unix, Permissions::default()).unwrap(), tunnel.options.clone());
    let mut near = Node::start();
    let keys: Vec<_> = [&tcp, &unix]
        .into_iter()
        .cycle()
        .take(SESSIONS)
        .map(|address| {
            let socket = Socket::connect(address, PATIENCE).unwrap();
            near.handle.attach(socket, Side::Connecting, SessionOptions::default())
        })
        .collect();
    thread::scope(|scope| {
        let mut seed = 0;
        for key in &keys {
            near.established(*key);
            for _ in 0..STREAMS {
                let (client, inner) = UnixStream::pair().unwrap();
                let handler = Box::new(Relay::new(inner).unwrap());
                near.handle.open(*key, Open { target: "disk".into(), ..Open::default() }, handler);
                seed += 1;
                scope.spawn(move || expect_echo(patient(client), seed, MIB));
            }
        }
        for _ in 0..SESSIONS * STREAMS {
            let server = accept(&tunnel.listener);
            scope.spawn(|| echo(server));
        }
    });
    for key in keys {
        for _ in 0..STREAMS {
            let id = near.opened(key);
            assert_eq!(near.ended(key, id).0, Ok(()));
        }
    }
}

#[test]
fn streams_are_opened_by_both_sides() {
    let (near, far) = unix_link();
    for mut tunnel in [Tunnel::new(), Tunnel::over(near, far, |_, _| ())] {
        thread::scope(|scope| {
            for seed in [1, 2] {
                let Carried { id, client, server } = tunnel.carry();
                assert_eq!(id.number() % 2, 1);
                scope.spawn(move || expect_echo(client, seed, MIB));
                scope.spawn(|| echo(server));

                let (client, inner) = UnixStream::pair().unwrap();
                let open = Open { target: "disk".into(), ..Open::default() };
                tunnel.far.handle.open(tunnel.far_key, open, Box::new(Relay::new(inner).unwrap()));
                let id = tunnel.far.opened(tunnel.far_key);
                tunnel.near.opened_as(tunnel.near_key, id);
                assert_eq!(id.number() % 2, 0);
                let server = accept(&tunnel.listener);
                scope.spawn(move || expect_echo(patient(client), seed + 10, MIB));
                scope.spawn(|| echo(server));
            }
        });
        for _ in 0..4 {
            let cause = tunnel.near.wait("the end of a stream", |report| match report {
                Report::StreamEnded { cause, .. } => Some(cause.clone()),
                _ => None,
            });
            assert_eq!(cause, Ok(()));
        }
    }
}

#[test]
fn a_handler_without_descriptors_is_woken_to_read_from_another_thread() {
    let (handler, told) = Custom::new();
    let queue = Arc::new(Mutex::new((VecDeque::new(), false)));
    let source = queue.clone();
    let handler = handler.reading(move |mut buf| {
        let (bytes, over) = &mut *source.lock().unwrap();
        if bytes.is_empty() && !*over {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = bytes.len().min(buf.len());
        bytes.drain(..len).try_for_each(|byte: u8| buf.write_all(&[byte]))?;
        Ok(len)
    });
    let mut tunnel = Tunnel::new();
    tunnel.ask("disk", handler.boxed());
    let id = tunnel.near.opened(tunnel.near_key);
    let Told::Attached(waker) = told.recv_timeout(PATIENCE).unwrap() else { panic!("not attached first") };
    let server = accept(&tunnel.listener);
    for round in 0..50 {
        let bytes = Pattern::new(round).bytes(1000);
        queue.lock().unwrap().0.extend(&bytes);
        let waker = waker.clone();
        thread::spawn(move || waker.wake());
        Pattern::new(round).check_from(&server, bytes.len());
    }
    queue.lock().unwrap().1 = true;
    waker.wake();
    assert_eq!(to_eof(&server), []);
    drop(server);
    tunnel.ended_well(id);
    waker.wake();
    tunnel.carry();
}

#[test]
fn a_handler_that_takes_nothing_is_woken_to_take_it() {
    let (handler, told) = Custom::new();
    let (refused, refusals) = mpsc::channel();
    let gate = Arc::new(AtomicBool::new(false));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (is_open, sink) = (gate.clone(), taken.clone());
    let handler = handler.writing(move |bufs| {
        if !is_open.load(Ordering::SeqCst) {
            let _ = refused.send(());
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut sink = sink.lock().unwrap();
        bufs.iter().for_each(|buf| sink.extend_from_slice(buf));
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    });
    let mut tunnel = Tunnel::new();
    tunnel.ask("disk", handler.boxed());
    tunnel.near.opened(tunnel.near_key);
    let Told::Attached(waker) = told.recv_timeout(PATIENCE).unwrap() else { panic!("not attached first") };
    let server = accept(&tunnel.listener);
    // It is asked once, and not again before it is woken.
    Pattern::new(1).write_to(&server, 100_000).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    refusals.recv_timeout(PATIENCE).unwrap();
    waker.wake();
    refusals.recv_timeout(PATIENCE).unwrap();
    tunnel.carry();
    assert_eq!(refusals.try_iter().count(), 0);
    gate.store(true, Ordering::SeqCst);
    waker.wake();
    assert!(matches!(told.recv_timeout(PATIENCE), Ok(Told::Finished)));
    assert!(*taken.lock().unwrap() == Pattern::new(1).bytes(100_000));
}

#[test]
fn a_handler_may_be_interrupted_and_fail_after_all() {
    let (handler, told) = Custom::new();
    let mut results = VecDeque::from([
        Err(io::ErrorKind::Interrupted.into()),
        Ok(5),
        Err(io::ErrorKind::Interrupted.into()),
        Err(io::Error::from_raw_os_error(28)),
    ]);
    let handler = handler.reading(move |buf| {
        buf[..5].copy_from_slice(b"hello");
        results.pop_front().expect("asked no more after an error")
    });
    let mut tunnel = Tunnel::new();
    tunnel.ask("disk", handler.boxed());
    let id = tunnel.near.opened(tunnel.near_key);
    let [near, far] = tunnel.ended(id).map(|(cause, stats)| (cause.unwrap_err(), stats));
    assert!(matches!((&near.0, &far.0), (StreamError::Local(_), StreamError::Reset(_))));
    assert_eq!(remote_error(&near.0), remote_error(&far.0));
    assert_eq!(remote_error(&near.0).int1, 28);
    assert_eq!((near.1.sent, far.1.received), (5, 5));
    let told = all_told(&told);
    assert!(matches!(&told[..], [Told::Attached(_), Told::Detached, Told::Reset(StreamError::Local(_))]), "{told:?}");
}

#[test]
fn a_write_that_takes_nothing_is_an_error_and_no_loop() {
    let mut tunnel = Tunnel::with(|options, _| options.targets = once(Custom::new().0.writing(|_| Ok(0))));
    let client = tunnel.ask_for("it");
    (&client).write_all(b"hello").unwrap();
    let id = tunnel.near.opened(tunnel.near_key);
    for (cause, _) in tunnel.ended(id) {
        assert!(remote_error(&cause.unwrap_err()).message.starts_with("`it`: "));
    }
}

#[test]
fn a_handler_that_claims_more_than_there_is_fails_its_stream() {
    let reading = |buf: &mut [u8]| Ok(buf.len() + 1);
    let writing = |bufs: &[io::IoSlice<'_>]| Ok(bufs.iter().map(|buf| buf.len()).sum::<usize>() + 1);
    for handler in [Custom::new().0.reading(reading), Custom::new().0.writing(writing)] {
        let mut tunnel = Tunnel::new();
        tunnel.ask("disk", handler.boxed());
        let mut server = tunnel.accepted();
        // It comes too late where the stream has failed by reading.
        let _ = server.write_all(b"it");
        let id = tunnel.near.opened(tunnel.near_key);
        for (cause, _) in tunnel.ended(id) {
            assert!(remote_error(&cause.unwrap_err()).message.contains("claims"));
        }
    }
}

/// A source of its own and a sink of its own: that the first ends says nothing of the second.
struct Pipes {
    source: mio::unix::pipe::Receiver,
    sink: mpsc::Sender<Vec<u8>>,
}

impl Handler for Pipes {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        at.registry().register(&mut self.source, at.token(), Interest::READABLE)
    }

    fn detach(&mut self, registry: &Registry) {
        registry.deregister(&mut self.source).unwrap();
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.source.read(buf)
    }

    fn write(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.sink.send(bufs[0].to_vec()).unwrap();
        Ok(bufs[0].len())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn reset(&mut self, _cause: &StreamError) {}
}

#[test]
fn a_source_that_ends_takes_nothing_from_the_other_direction() {
    let (mut source, receiver) = mio::unix::pipe::new().unwrap();
    let (sink, sunk) = mpsc::channel();
    let mut tunnel = Tunnel::new();
    tunnel.ask("disk", Box::new(Pipes { source: receiver, sink }));
    let mut server = tunnel.accepted();
    source.write_all(b"fro").unwrap();
    drop(source);
    assert_eq!(to_eof(&server), b"fro");
    server.write_all(b"to").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let id = tunnel.near.opened(tunnel.near_key);
    tunnel.ended_well(id);
    assert_eq!(sunk.iter().flatten().collect::<Vec<_>>(), b"to");
}

#[test]
fn close_lets_streams_finish_and_takes_no_new_ones() {
    for near_closes in [true, false] {
        let mut tunnel = Tunnel::new();
        let Carried { id, client, server } = tunnel.carry();
        let second = tunnel.carry();
        if near_closes {
            tunnel.near.handle.close(tunnel.near_key);
        } else {
            tunnel.far.handle.close(tunnel.far_key);
        }
        // Through the stream, so CLOSE has come too.
        (&client).write_all(b"to").unwrap();
        (&server).read_exact(&mut [0; 2]).unwrap();
        (&server).write_all(b"fro").unwrap();
        (&client).read_exact(&mut [0; 3]).unwrap();
        for _ in 0..2 {
            assert_eq!(to_eof(tunnel.ask_for("disk")), []);
            assert_eq!(tunnel.near.refused(), "the session is closing");
            let open = Open { target: "disk".into(), ..Open::default() };
            tunnel.far.handle.open(tunnel.far_key, open, Custom::new().0.boxed());
            assert_eq!(tunnel.far.refused(), "the session is closing");
        }
        expect_echo_between(client, server);
        tunnel.ended_well(id);
        let asked = if near_closes { &mut tunnel.far } else { &mut tunnel.near };
        asked.wait("draining", |report| matches!(report, Report::Draining { .. }).then_some(()));
        assert!(tunnel.near.unasked().is_empty() && tunnel.far.unasked().is_empty(), "one stream is left");
        let Carried { id, client, server } = second;
        drop((client, server));
        tunnel.ended_well(id);
        assert_eq!(tunnel.near.session_ended(tunnel.near_key), Ok(()));
        assert_eq!(tunnel.far.session_ended(tunnel.far_key), Ok(()));
    }
}

#[test]
fn close_of_a_session_that_does_not_stand_ends_it() {
    let mut near = Node::start();
    let (ours, theirs) = tcp_link();
    let key = near.handle.attach(Socket::from_tcp(ours).unwrap(), Side::Connecting, SessionOptions::default());
    near.handle.close(key);
    assert_eq!(near.session_ended(key), Ok(()));
    Raw::from(theirs).rest();
}

#[test]
fn drain_stops_listening_and_ends_the_dispatcher_with_its_last_stream() {
    let mut tunnel = Tunnel::new();
    let address = tunnel.far.listen(tunnel.options.clone());
    let Carried { id, client, server } = tunnel.carry();
    tunnel.far.handle.drain();
    (&client).write_all(b"to").unwrap();
    (&server).read_exact(&mut [0; 2]).unwrap();
    let Address::Tcp { host, port } = &address else { unreachable!() };
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((host.as_str(), *port)).is_ok() {
        assert!(Instant::now() < deadline, "it listens on");
    }
    expect_echo_between(client, server);
    tunnel.ended_well(id);
    assert_eq!(tunnel.near.session_ended(tunnel.near_key), Ok(()));
    assert_eq!(tunnel.far.session_ended(tunnel.far_key), Ok(()));
    tunnel.far.join();
}

#[test]
fn drain_ends_a_dispatcher_that_has_nothing_to_do() {
    let idle = Node::start();
    idle.handle.drain();
    idle.join();

    let waiting = Node::start();
    let (near, far) = unix_link();
    let key = waiting.handle.attach(near, Side::Accepting, SessionOptions::default());
    waiting.handle.drain();
    waiting.handle.route(waiting.handle.forward(listener(), Open::default()), Some(key));
    drop(far);
    waiting.join();
}

fn listener() -> Listener {
    Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), Permissions::default()).unwrap()
}

#[test]
fn shutdown_tells_the_peer_the_reason_and_both_ends_of_each_stream() {
    let mut tunnel = Tunnel::new();
    let carried = [tunnel.carry(), tunnel.carry()];
    tunnel.far.handle.shutdown("maintenance at noon");
    let far = tunnel.far.session_ended(tunnel.far_key).unwrap_err();
    assert_eq!(far, SessionError::Shutdown("maintenance at noon".into()));
    let near = tunnel.near.session_ended(tunnel.near_key).unwrap_err();
    let SessionError::PeerClosed { code, rule, text } = &near else { panic!("{near:?}") };
    assert_eq!((*code, *rule), (close::SHUTDOWN, 0));
    assert!(text.contains("maintenance at noon"), "{text}");
    for Carried { id, client, server } in carried {
        let [near_cause, far_cause] = tunnel.ended(id).map(|(cause, _)| cause.unwrap_err());
        assert_eq!((near_cause, far_cause), (StreamError::Session(near.clone()), StreamError::Session(far.clone())));
        assert_eq!((to_eof(client), to_eof(server)), (vec![], vec![]));
    }
    tunnel.far.join();
}

#[test]
fn a_session_that_is_gone_refuses_streams() {
    let mut tunnel = Tunnel::new();
    tunnel.near.handle.close(tunnel.near_key);
    tunnel.near.session_ended(tunnel.near_key).unwrap();
    // Whether or not its link still lingers: the handler is told, and dropped.
    assert_eq!(to_eof(tunnel.ask_for("disk")), []);
    for session in [tunnel.near_key, tunnel.far_key] {
        let (handler, told) = Custom::new();
        let open = Open { target: "disk".into(), ..Open::default() };
        let stream = tunnel.near.handle.open(session, open, handler.boxed());
        let told = all_told(&told);
        assert!(matches!(told[..], [Told::Detached, Told::Reset(StreamError::NotOpened(_))]), "{told:?}");
        tunnel.near.wait("that it was refused", |report| {
            matches!(report, Report::StreamRefused { stream: refused, .. } if *refused == stream).then_some(())
        });
    }
}

#[test]
fn a_hosts_own_loop_drives_a_dispatcher_by_its_descriptor() {
    let far = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.sock");
    let target = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut targets = virbistream::io::UnixTargets::new();
    targets.insert("disk", path);
    let address = far.listen(SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() });

    let (report, reports) = mpsc::channel();
    let mut dispatcher = Dispatcher::new(move |what| drop(report.send(what))).unwrap();
    let handle = dispatcher.handle();
    let socket = Socket::connect(&address, PATIENCE).unwrap();
    let options = SessionOptions { targets: Arc::new(NoTargets), ..SessionOptions::default() };
    let key = handle.attach(socket, Side::Connecting, options);
    // It waits in the backlog of a forward.
    let door = Address::Unix(dir.path().join("door.sock"));
    let listener = Listener::bind(&door, Permissions::default()).unwrap();
    let forward = handle.forward(listener, Open { target: "disk".into(), ..Open::default() });
    let client = UnixStream::connect(dir.path().join("door.sock")).unwrap();

    let mut host = Poll::new().unwrap();
    host.registry().register(&mut SourceFd(&dispatcher.as_raw_fd()), Token(0), Interest::READABLE).unwrap();
    let (mut host_events, mut events) = (Events::with_capacity(4), Events::with_capacity(256));
    let carried = thread::scope(|scope| {
        scope.spawn(|| expect_echo_between(patient(client), accept(&target)));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let wait = dispatcher.next_turn().map_or(PATIENCE, |due| due.saturating_duration_since(Instant::now()));
            host.poll(&mut host_events, Some(wait.min(PATIENCE))).unwrap();
            let due = dispatcher.next_turn().is_some_and(|due| due <= Instant::now());
            if due || !host_events.is_empty() {
                dispatcher.turn(&mut events, Some(Duration::ZERO)).unwrap();
            }
            for report in reports.try_iter() {
                match report {
                    Report::Established { .. } => handle.route(forward, Some(key)),
                    Report::StreamEnded { cause, stats, .. } => {
                        assert_eq!(cause, Ok(()));
                        return stats;
                    }
                    _ => {}
                }
            }
        }
        panic!("the stream did not end");
    });
    assert_eq!((carried.sent, carried.received), (3 * MIB as u64, 3 * MIB as u64));
    // With nothing to do, neither the descriptor nor the clock calls for a turn at once.
    let deadline = Instant::now() + PATIENCE;
    while dispatcher.next_turn().is_some_and(|due| due <= Instant::now())
        || host.poll(&mut host_events, Some(Duration::ZERO)).is_ok_and(|()| !host_events.is_empty())
    {
        dispatcher.turn(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(Instant::now() < deadline, "it wants turn after turn");
    }
    handle.drain();
    while !dispatcher.is_over() {
        dispatcher.turn(&mut events, Some(PATIENCE)).unwrap();
        assert!(Instant::now() < deadline, "it does not end");
    }
}
