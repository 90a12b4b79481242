//! Peers that are not what the tool hoped for, and peers that go away.

mod support;

use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use support::echo::{accept_on, assert_echoes, assert_ends, connect, echo_on};
use support::process::Finished;
use support::tool::{ANY_PORT, Ends, GIVING_UP, forward, links_accepted, serve, tool};
use support::{PATIENCE, Scratch, wait_for};

/// Runs `forward` to a peer that the test is: `answer` is called with each connection.
#[track_caller]
fn forward_to(answer: impl Fn(TcpStream) + Send + 'static) -> (Finished, String) {
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peer = format!("tcp://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(answer));
    let near = scratch.join("near");
    let run = tool().args(["forward", "--peer", &peer, "--socket"]).arg(format!("disk={}", near.display()));
    let finished = run.finish(GIVING_UP);
    assert_eq!(finished.stdout, "", "{finished}");
    assert!(!near.exists(), "the socket is left");
    (finished, peer)
}

#[test]
fn a_peer_that_speaks_another_protocol_ends_forward_with_a_sentence() {
    for greeting in ["SSH-2.0-x\r\n", "HTTP/1.0 400 Bad Request\r\n\r\n", "220 mail.example.org ESMTP\r\n"] {
        let (finished, peer) = forward_to(move |mut stream| {
            _ = stream.write_all(greeting.as_bytes());
            // It waits for an answer that it understands.
            _ = stream.read_to_end(&mut Vec::new());
        });
        finished.assert_failed_saying(&[&peer]);
    }
}

#[test]
fn a_peer_that_closes_at_once_ends_forward_with_a_sentence() {
    let (finished, peer) = forward_to(drop);
    finished.assert_failed_saying(&[&peer, "lost"]);
}

#[test]
fn a_peer_that_says_nothing_ends_forward_with_a_sentence_in_good_time() {
    let (finished, peer) = forward_to(|mut stream| {
        _ = stream.read_to_end(&mut Vec::new());
    });
    finished.assert_failed_saying(&[&peer, "HELLO"]);
}

#[test]
fn a_peer_that_drips_bytes_does_not_hold_forward_for_ever() {
    let (finished, peer) = forward_to(|mut stream| {
        // The length of a packet of a mebibyte, and then a byte of it now and then.
        _ = stream.write_all(&0x0010_0000_u32.to_be_bytes());
        while stream.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    finished.assert_failed_saying(&[&peer]);
}

#[test]
fn a_peer_that_is_not_there_ends_forward_with_a_sentence() {
    let scratch = Scratch::new();
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port();
    let near = scratch.join("near");
    let link = scratch.join("link");
    for (peer, cause) in
        [(format!("tcp://127.0.0.1:{port}"), "refused"), (format!("unix:{}", link.display()), "No such file")]
    {
        let run = tool().args(["forward", "--peer", &peer, "--socket"]).arg(format!("disk={}", near.display()));
        run.finish(GIVING_UP).assert_failed_saying(&[&peer, cause]);
        assert!(!near.exists(), "the socket is left");
    }
}

#[test]
fn a_peer_that_accepts_nobody_ends_forward_with_a_sentence_in_good_time() {
    let scratch = Scratch::new();
    let (near, link) = (scratch.join("near"), scratch.join("link"));
    let _full = full_unix(&link);
    let peer = format!("unix:{}", link.display());
    forward_disk(&peer, &near).finish(GIVING_UP).assert_failed_saying(&[&peer, "backlog"]);
    assert!(!near.exists(), "the socket is left");
}

#[test]
fn a_signal_ends_forward_at_once_while_it_connects() {
    let scratch = Scratch::new();
    let (near, link) = (scratch.join("near"), scratch.join("link"));
    let (_unix, (_tcp, address)) = (full_unix(&link), full_tcp());
    for peer in [format!("unix:{}", link.display()), address] {
        let forward = forward_disk(&peer, &near).start();
        forward.line_on_stderr("socket", |line| line.contains("listening on"));
        let asked = Instant::now();
        forward.end_well(&[&near]);
        assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    }
}

#[test]
fn clients_that_are_no_bistream_peers_harm_no_session_of_serve() {
    let scratch = Scratch::new();
    echo_on(&scratch.join("far.echo"));
    let mut ends = Ends::start(&scratch, &["echo"]);
    let standing = connect(&scratch.join("near.echo"));
    assert_echoes(&standing, b"before");
    let had = ends.descriptors();
    let address = ends.peer.strip_prefix("tcp://").expect("a TCP address");
    let greetings: [&[u8]; 6] = [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\0\x1c\x20\0\x80\x86\0\0\0\x01\x42\x53\0\x02\0\0\0\x03\0\0\0\x01\0\0\0\x02",
    ];
    let say = |greeting: &[u8]| {
        let mut stream = TcpStream::connect(address).expect("serve");
        stream.write_all(greeting).expect("room for it");
        stream
    };
    greetings.iter().for_each(|greeting| drop(say(greeting)));
    assert_echoes(&standing, b"unharmed by those who went");
    let staying = greetings.map(say);
    assert_echoes(&standing, b"unharmed by those who stay");
    // serve gives up on them, at once or when nothing more has come for a while.
    for (mut stream, greeting) in staying.into_iter().zip(greetings) {
        stream.set_read_timeout(Some(GIVING_UP)).expect("a timeout");
        if let Err(error) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{greeting:?}: {error}");
        }
    }
    assert_eq!(links_accepted(&ends.serve), 1 + 2 * greetings.len());
    ends.wait_for_descriptors(had);
    ends.serve.assert_alive();
    assert_echoes(&connect(&scratch.join("near.echo")), b"and new streams as before");
    drop(standing);
    ends.end();
}

#[test]
fn when_serve_dies_forward_closes_its_streams_says_why_and_fails() {
    let scratch = Scratch::new();
    echo_on(&scratch.join("far.echo"));
    let Ends { serve, forward, peer, .. } = Ends::start(&scratch, &["echo"]);
    let near = scratch.join("near.echo");
    let clients = [connect(&near), connect(&near)];
    clients.iter().for_each(|client| assert_echoes(client, b"before"));
    drop(serve); // by SIGKILL
    clients.iter().for_each(assert_ends);
    let finished = forward.finish(PATIENCE);
    finished.assert_failed_saying(&[&peer, "lost"]);
    assert_eq!(finished.stderr.matches("`echo` failed").count(), 2, "{finished}");
    assert!(!near.exists(), "the socket is left");
}

#[test]
fn when_forward_dies_serve_closes_its_streams_and_serves_on() {
    let scratch = Scratch::new();
    let targets = accept_on(&scratch.join("far.disk"));
    let Ends { serve, forward, peer, .. } = Ends::start(&scratch, &["disk"]);
    let near = scratch.join("near.disk");
    let clients = [connect(&near), connect(&near)];
    let accepted = [targets.next(), targets.next()];
    drop(forward); // by SIGKILL
    accepted.iter().for_each(assert_ends);
    clients.iter().for_each(assert_ends);
    serve.line_on_stderr("cause", |line| line.contains("lost"));
    // Its socket file is there, with nobody behind it.
    assert!(near.exists());
    let forward = forward_disk(&peer, &near).start();
    forward.ready();
    let client = connect(&near);
    drop(targets.next());
    assert_ends(&client);
    forward.end_well(&[&near]);
    serve.end_well(&[]);
}

#[test]
fn forward_with_reconnect_outlives_its_peer_and_finds_it_again() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    echo_on(&far);
    let mut server = serve(ANY_PORT, [("disk", &*far)]).start();
    let peer = server.ready();
    let mut forward = forward_disk(&peer, &near).arg("--reconnect").start();
    forward.ready();
    for _ in 0..3 {
        let client = connect(&near);
        assert_echoes(&client, b"before");
        drop(server); // by SIGKILL
        assert_ends(&client);
        forward.assert_alive();
        assert!(near.exists(), "the socket is gone");
        server = serve(&peer, [("disk", &*far)]).start();
        server.ready();
        wait_for("a stream through the new session", PATIENCE, || echoes(&near));
    }
    assert_eq!(forward.stdout.text(), "ready\n", "it was ready once");
    forward.end_well(&[&near]);
    server.end_well(&[]);
}

#[test]
fn forward_with_reconnect_waits_for_a_peer_that_is_not_there_yet() {
    let scratch = Scratch::new();
    let (near, far, link) = (scratch.join("near"), scratch.join("far"), scratch.join("link"));
    echo_on(&far);
    let peer = format!("unix:{}", link.display());
    let forward = forward_disk(&peer, &near).arg("--reconnect").start();
    forward.line_on_stderr("attempt", |line| line.contains("cannot connect"));
    let serve = serve(&peer, [("disk", &*far)]).start();
    serve.ready();
    forward.ready();
    assert_echoes(&connect(&near), b"at last");
    forward.end_well(&[&near]);
    serve.end_well(&[&link]);
}

#[test]
fn forward_with_reconnect_ends_well_while_it_has_no_peer() {
    let scratch = Scratch::new();
    let (near, link) = (scratch.join("near"), scratch.join("link"));
    let forward = forward_disk(&format!("unix:{}", link.display()), &near).arg("--reconnect").start();
    forward.line_on_stderr("attempt", |line| line.contains("cannot connect"));
    let asked = Instant::now();
    forward.end_well(&[&near]);
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
}

#[test]
fn a_frozen_peer_is_given_up_on_in_good_time() {
    let scratch = Scratch::new();
    echo_on(&scratch.join("far.echo"));
    let Ends { serve, forward, peer, .. } = Ends::start(&scratch, &["echo"]);
    let client = connect(&scratch.join("near.echo"));
    assert_echoes(&client, b"before");
    serve.signal(Signal::STOP);
    let finished = forward.finish(PATIENCE);
    finished.assert_failed_saying(&[&peer, "nothing was heard"]);
    assert_ends(&client);
}

/// `forward -v` of `near` to the target `disk`.
fn forward_disk(peer: &str, near: &Path) -> support::process::Run {
    forward(peer, [("disk", near)])
}

/// A UNIX socket whose backlog is full.
#[track_caller]
fn full_unix(path: &Path) -> (UnixListener, UnixStream) {
    let listener = UnixListener::bind(path).expect("a new socket");
    rustix::net::listen(&listener, 0).expect("a backlog of one");
    (listener, UnixStream::connect(path).expect("room for one"))
}

/// A TCP port that answers nobody, as its backlog is full; and its address.
#[track_caller]
fn full_tcp() -> ((TcpListener, Vec<TcpStream>), String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    rustix::net::listen(&listener, 0).expect("a backlog of one");
    let address = listener.local_addr().expect("its address");
    let dial = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let waiting = std::iter::from_fn(dial).collect();
    ((listener, waiting), format!("tcp://{address}"))
}

/// Whether a stream can be had, and works.
fn echoes(near: &Path) -> Option<()> {
    let mut stream = UnixStream::connect(near).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"there?").ok()?;
    let mut echoed = [0; 6];
    stream.read_exact(&mut echoed).ok()?;
    (&echoed == b"there?").then_some(())
}
