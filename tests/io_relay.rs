//! The close rules of a relay, over real sockets: UNIX to link to UNIX.

mod io_support;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;
use virbistream::io::{Relay, Socket};
use virbistream::proto::{SessionError, StreamError};

const MIB: usize = 1 << 20;

/// Both kinds of link.
fn tunnels() -> [Tunnel; 2] {
    let (near, far) = unix_link();
    [Tunnel::new(), Tunnel::over(near, far, |_, _| ())]
}

/// Windows so wide that nobody waits for a reader.
fn wide() -> Tunnel {
    Tunnel::with(|options, _| options.config.window = 8 << 20)
}

fn write_all(pattern: u64, sink: &UnixStream, len: usize) {
    Pattern::new(pattern).write_to(sink, len).unwrap();
}

/// Writes until the other end is known to take no more.
#[track_caller]
fn write_until_broken(mut sink: &UnixStream) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Err(error) = sink.write(&[0; 4096]) {
            return assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }
    panic!("somebody reads on");
}

/// Waits until nothing more can come from the stream, and reads nothing of it.
fn wait_for_eof(stream: &UnixStream) {
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut SourceFd(&stream.as_raw_fd()), Token(0), Interest::READABLE).unwrap();
    let mut events = Events::with_capacity(4);
    while !events.iter().any(mio::event::Event::is_read_closed) {
        poll.poll(&mut events, Some(PATIENCE)).unwrap();
        assert!(!events.is_empty(), "no end came");
    }
}

#[test]
fn a_finish_in_one_direction_leaves_the_other_running() {
    for mut tunnel in tunnels() {
        for client_first in [true, false] {
            let Carried { id, client, server } = tunnel.carry();
            let (first, second) = if client_first { (client, server) } else { (server, client) };
            write_all(1, &first, 100_000);
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(to_eof(&second), Pattern::new(1).bytes(100_000));
            thread::scope(|scope| {
                scope.spawn(|| {
                    write_all(2, &second, 3 * MIB);
                    second.shutdown(Shutdown::Write).unwrap();
                });
                Pattern::new(2).check_from(&first, 3 * MIB);
                assert_eq!(to_eof(&first), []);
            });
            let [mut near, mut far] = tunnel.ended_well(id);
            if !client_first {
                std::mem::swap(&mut near, &mut far);
            }
            let (little, much) = (100_000, 3 * MIB as u64);
            assert_eq!((near.sent, near.delivered, near.received, near.consumed), (little, little, much, much));
            assert_eq!((far.sent, far.delivered, far.received, far.consumed), (much, much, little, little));
        }
    }
}

#[test]
fn a_stream_that_carries_nothing_ends_in_order() {
    for mut tunnel in tunnels() {
        let Carried { id, client, server } = tunnel.carry();
        drop((client, server));
        let [near, far] = tunnel.ended_well(id);
        assert_eq!((near.sent, near.received, far.sent, far.received), (0, 0, 0, 0));
    }
}

#[test]
fn what_stands_in_the_windows_is_delivered_after_the_source_has_closed() {
    let mut tunnel = wide();
    for whole in [true, false] {
        let Carried { id, client, server } = tunnel.carry();
        // Nobody reads yet.
        write_all(1, &client, 4 * MIB);
        let rest = if whole {
            drop(client);
            None
        } else {
            client.shutdown(Shutdown::Write).unwrap();
            Some(client)
        };
        Pattern::new(1).check_from(&server, 4 * MIB);
        assert_eq!(to_eof(&server), []);
        drop((server, rest));
        let [near, far] = tunnel.ended_well(id);
        assert_eq!((near.delivered, far.consumed), (4 * MIB as u64, 4 * MIB as u64));
    }
}

#[test]
fn a_peer_that_closes_both_ways_with_replies_unread_loses_nothing_that_it_wrote() {
    let mut tunnel = wide();
    for client_closes in [true, false] {
        let Carried { id, client, server } = tunnel.carry();
        let (closes, stays) = if client_closes { (client, server) } else { (server, client) };
        (&stays).write_all(b"a late reply").unwrap();
        // The first byte has come, the others are there unread.
        (&closes).read_exact(&mut [0]).unwrap();
        write_all(1, &closes, 3 * MIB);
        drop(closes);
        Pattern::new(1).check_from(&stays, 3 * MIB);
        assert_eq!(to_eof(&stays), []);
        tunnel.ended_well(id);
    }
}

#[test]
fn a_peer_that_closes_with_replies_and_their_end_unread_loses_nothing_that_it_wrote() {
    let mut tunnel = wide();
    for client_closes in [true, false] {
        let Carried { id, client, server } = tunnel.carry();
        let (closes, stays) = if client_closes { (client, server) } else { (server, client) };
        (&stays).write_all(b"the last reply").unwrap();
        stays.shutdown(Shutdown::Write).unwrap();
        wait_for_eof(&closes);
        write_all(1, &closes, 3 * MIB);
        drop(closes);
        Pattern::new(1).check_from(&stays, 3 * MIB);
        assert_eq!(to_eof(&stays), []);
        tunnel.ended_well(id);
    }
}

#[test]
fn one_who_writes_to_a_peer_that_has_closed_gets_epipe_and_all_that_it_said() {
    let mut tunnel = wide();
    for client_closes in [true, false] {
        let Carried { id, client, server } = tunnel.carry();
        let (closes, stays) = if client_closes { (client, server) } else { (server, client) };
        write_all(1, &closes, 3 * MIB);
        drop(closes);
        write_until_broken(&stays);
        Pattern::new(1).check_from(&stays, 3 * MIB);
        assert_eq!(to_eof(&stays), []);
        drop(stays);
        tunnel.ended_well(id);
    }
}

#[test]
fn a_reader_that_stops_breaks_its_writers_pipe_and_goes_on_writing() {
    for mut tunnel in tunnels() {
        for client_stops in [true, false] {
            let Carried { id, client, server } = tunnel.carry();
            let (stops, other) = if client_stops { (client, server) } else { (server, client) };
            stops.shutdown(Shutdown::Read).unwrap();
            write_until_broken(&other);
            thread::scope(|scope| {
                scope.spawn(|| {
                    write_all(1, &stops, 3 * MIB);
                    stops.shutdown(Shutdown::Write).unwrap();
                });
                Pattern::new(1).check_from(&other, 3 * MIB);
                assert_eq!(to_eof(&other), []);
            });
            tunnel.ended_well(id);
        }
    }
}

#[test]
fn a_stop_is_told_once_and_the_source_is_read_no_more() {
    let (broken, _told) = Custom::new();
    let mut left = 100_000;
    let broken = broken.writing(|_| Err(io::ErrorKind::BrokenPipe.into())).reading(move |buf| {
        let len = buf.len().min(left);
        left -= len;
        Ok(len)
    });
    let mut tunnel = Tunnel::with(|options, _| options.targets = once(broken));
    let (source, told) = Custom::new();
    let (read, reads) = mpsc::channel();
    let source = source.reading(move |buf| {
        let _ = read.send(());
        Ok(buf.len())
    });
    tunnel.ask("it", source.boxed());
    let id = tunnel.near.opened(tunnel.near_key);
    assert!(matches!(told.recv_timeout(PATIENCE), Ok(Told::Attached(_))));
    let (mut finished, mut stopped) = (0, 0);
    loop {
        match told.recv_timeout(PATIENCE).unwrap() {
            Told::Finished => finished += 1,
            Told::Stopped => {
                stopped += 1;
                reads.try_iter().for_each(drop);
            }
            Told::Detached => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((finished, stopped, reads.try_iter().count()), (1, 1, 0));
    let [near, far] = tunnel.ended_well(id);
    assert_eq!((near.received, near.consumed, near.delivered, far.consumed), (100_000, 100_000, 0, 0));
}

#[test]
fn a_handlers_error_resets_the_stream_and_is_what_both_ends_report() {
    let eio = || io::Error::from_raw_os_error(5);
    let failing: [fn(Custom) -> Custom; 3] = [
        |custom| custom.reading(|_| Err(io::Error::from_raw_os_error(5))),
        |custom| custom.writing(|_| Err(io::Error::from_raw_os_error(5))),
        |custom| custom.finishing(|| Err(io::Error::from_raw_os_error(5))),
    ];
    for (n, fail) in failing.into_iter().enumerate() {
        let (target, target_told) = Custom::new();
        let mut tunnel = Tunnel::with(|options, _| options.targets = once(fail(target)));
        let client = tunnel.ask_for("it");
        // Too late for the first of them, perhaps.
        let _ = (&client).write_all(b"hello").and_then(|()| client.shutdown(Shutdown::Write));
        let id = tunnel.near.opened(tunnel.near_key);
        let [near, far] = tunnel.ended(id).map(|(cause, _)| cause.unwrap_err());
        assert!(matches!((&near, &far), (StreamError::Reset(_), StreamError::Local(_))), "{n}: {near:?}, {far:?}");
        assert_eq!(remote_error(&near), remote_error(&far));
        assert_eq!(remote_error(&near).int1, 5);
        assert_eq!(remote_error(&near).message, format!("`it`: {}", eio()));
        assert!(all_told(&target_told).iter().any(|told| matches!(told, Told::Reset(cause) if *cause == far)));
        // A plain end, unless the relay had bytes of its unread.
        assert!(!matches!((&client).read(&mut [0]), Ok(1)));
    }
}

#[test]
fn a_reset_reaches_a_tcp_client_as_a_reset() {
    let (target, _told) = Custom::new();
    let target = target.writing(|_| Err(io::Error::other("the disk is gone")));
    let mut tunnel = Tunnel::with(|options, _| options.targets = once(target));
    let (client, inner) = tcp_link();
    tunnel.ask("it", Box::new(Relay::from(Socket::from_tcp(inner).unwrap())));
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (&client).write_all(b"hello").unwrap();
    let id = tunnel.near.opened(tunnel.near_key);
    assert!(tunnel.ended(id).iter().all(|(cause, _)| cause.is_err()));
    assert_eq!((&client).read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_of_a_tcp_client_reaches_the_other_end() {
    let mut tunnel = Tunnel::new();
    let (client, inner) = tcp_link();
    tunnel.ask("disk", Box::new(Relay::from(Socket::from_tcp(inner).unwrap())));
    let id = tunnel.near.opened(tunnel.near_key);
    let server = accept(&tunnel.listener);
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let [near, far] = tunnel.ended(id).map(|(cause, _)| cause.unwrap_err());
    assert_eq!(remote_error(&near), remote_error(&far));
    assert_eq!(remote_error(&near).int1, 104, "ECONNRESET");
    assert_eq!(to_eof(&server), []);
}

#[test]
fn a_handler_that_cannot_be_attached_is_a_refusal_at_both_ends() {
    let (target, _told) = Custom::new();
    let target = target.attaching(|| Err(io::Error::from_raw_os_error(5)));
    let mut tunnel = Tunnel::with(|options, _| options.targets = once(target));
    let (client, told) = Custom::new();
    tunnel.ask("it", client.boxed());
    let reason = tunnel.near.refused();
    assert!(reason.contains("os error 5"), "{reason}");
    let reason = tunnel.far.refused();
    assert!(reason.contains("os error 5"), "{reason}");
    assert!(
        all_told(&told).iter().any(|told| matches!(told, Told::Reset(StreamError::Refused(error)) if error.int1 == 5))
    );
}

#[test]
fn a_link_that_is_cut_resets_its_streams_at_both_ends() {
    let (near, far) = tcp_link();
    let cut = near.try_clone().unwrap();
    let mut tunnel = Tunnel::over(Socket::from_tcp(near).unwrap(), Socket::from_tcp(far).unwrap(), |_, _| ());
    let carried: Vec<Carried> = (0..3).map(|_| tunnel.carry()).collect();
    for Carried { client, server, .. } in &carried {
        let (mut client, mut server) = (client, server);
        client.write_all(b"to and").unwrap();
        server.read_exact(&mut [0; 6]).unwrap();
        server.write_all(b"fro").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
    }
    cut.shutdown(Shutdown::Both).unwrap();
    let near = tunnel.near.session_ended(tunnel.near_key).unwrap_err();
    let far = tunnel.far.session_ended(tunnel.far_key).unwrap_err();
    assert!(matches!((&near, &far), (SessionError::LinkLost(_), SessionError::LinkLost(_))), "{near}, {far}");
    for Carried { id, client, server } in carried {
        let [near_cause, far_cause] = tunnel.ended(id).map(|(cause, _)| cause.unwrap_err());
        assert_eq!((near_cause, far_cause), (StreamError::Session(near.clone()), StreamError::Session(far.clone())));
        assert_eq!((to_eof(client), to_eof(server)), (vec![], vec![]));
    }
}

#[test]
fn a_peer_that_dies_resets_its_streams() {
    for abort in [false, true] {
        let mut tunnel = Tunnel::new();
        let options = tunnel.options.clone();
        let mut peer = Raw::connect(&tunnel.far.listen(options));
        let key = tunnel.far.link_accepted();
        peer.hello();
        peer.open(1, "disk", 0);
        let id = tunnel.far.opened(key);
        let server = accept(&tunnel.listener);
        if abort {
            SockRef::from(&peer.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(peer);
        let (cause, _) = tunnel.far.ended(key, id);
        assert!(matches!(cause, Err(StreamError::Session(SessionError::LinkLost(_)))), "{cause:?}");
        assert_eq!(to_eof(server), []);
        // The other session of that dispatcher is unharmed.
        let Carried { client, server, .. } = tunnel.carry();
        drop(client);
        assert_eq!(to_eof(server), []);
    }
}
