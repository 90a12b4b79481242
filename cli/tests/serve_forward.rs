//! Streams as a user's programs see them: every byte, each end of the two directions in its place, and clear words
//! when a stream cannot be had.

mod support;

use rustix::process::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::bytes::{MIB, Noise};
use support::echo::{Accepted, accept_on, assert_echoes, assert_ends, assert_reads, connect, echo_on};
use support::tool::{ANY_PORT, Ends, forward, links_accepted, serve};
use support::{PATIENCE, Scratch, wait_for};

/// Both ends of the tool, and a target that the test itself is.
struct Setup {
    scratch: Scratch,
    ends: Ends,
    target: Accepted,
}

impl Setup {
    #[track_caller]
    fn new() -> Self {
        let scratch = Scratch::new();
        let target = accept_on(&scratch.join("far.disk"));
        let ends = Ends::start(&scratch, &["disk"]);
        Self { scratch, ends, target }
    }

    /// A stream: the client's socket and the target's.
    #[track_caller]
    fn stream(&self) -> (UnixStream, UnixStream) {
        let client = connect(&self.scratch.join("near.disk"));
        (client, self.target.next())
    }

    /// Ends both well: whatever the streams went through, nothing is left of them.
    #[track_caller]
    fn end(self, had: (usize, usize)) {
        self.ends.wait_for_descriptors(had);
        self.ends.end();
    }
}

/// As in the default configuration.
const WINDOW: usize = 256 * 1024;

/// More than the windows and socket buffers on the way can hold.
const MUCH: usize = 20 * MIB as usize;

/// Sends from one thread while the caller reads.
fn send(stream: &UnixStream, bytes: &[u8]) -> std::thread::JoinHandle<std::io::Result<()>> {
    let (mut stream, bytes) = (stream.try_clone().expect("a descriptor"), bytes.to_vec());
    std::thread::spawn(move || {
        stream.write_all(&bytes)?;
        stream.shutdown(Shutdown::Write)
    })
}

#[test]
fn the_client_finishes_first_and_reads_all_that_the_target_still_says() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    let (client, target) = setup.stream();
    let (asked, answered) = (Noise::new(1).bytes(MUCH), Noise::new(2).bytes(MUCH));
    let sender = send(&client, &asked);
    assert_reads(&target, &asked);
    sender.join().unwrap().expect("a target that reads");
    let sender = send(&target, &answered);
    assert_reads(&client, &answered);
    sender.join().unwrap().expect("a client that reads");
    drop((client, target));
    setup.end(had);
}

#[test]
fn the_target_finishes_first_and_reads_all_that_the_client_still_says() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    let (client, target) = setup.stream();
    let (said, answered) = (Noise::new(3).bytes(MUCH), Noise::new(4).bytes(MUCH));
    let sender = send(&target, &said);
    assert_reads(&client, &said);
    sender.join().unwrap().expect("a client that reads");
    let sender = send(&client, &answered);
    assert_reads(&target, &answered);
    sender.join().unwrap().expect("a target that reads");
    drop((client, target));
    setup.end(had);
}

#[test]
fn both_finish_at_once_and_every_byte_arrives() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    let (client, target) = setup.stream();
    let (there, back) = (Noise::new(5).bytes(MUCH), Noise::new(6).bytes(MUCH));
    let senders = [send(&client, &there), send(&target, &back)];
    std::thread::scope(|scope| {
        scope.spawn(|| assert_reads(&target, &there));
        assert_reads(&client, &back);
    });
    for sender in senders {
        sender.join().unwrap().expect("an end that reads");
    }
    drop((client, target));
    setup.end(had);
}

#[test]
fn what_was_written_before_a_close_arrives() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    // Little enough to be written in one go, by either end, that is then gone.
    let bytes = Noise::new(7).bytes(100_000);
    for client_closes in [true, false] {
        for _ in 0..20 {
            let (client, target) = setup.stream();
            let (mut closes, stays) = if client_closes { (client, target) } else { (target, client) };
            closes.write_all(&bytes).expect("room for it");
            drop(closes);
            assert_reads(&stays, &bytes);
        }
    }
    setup.end(had);
}

#[test]
fn a_half_close_leaves_the_other_direction_open_for_as_long_as_it_takes() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    let (client, mut target) = setup.stream();
    client.shutdown(Shutdown::Write).expect("an open socket");
    assert_ends(&target);
    for number in 0..100_u8 {
        target.write_all(&[number]).expect("an open direction");
        let mut byte = [0];
        (&client).read_exact(&mut byte).expect("an open direction");
        assert_eq!(byte, [number]);
    }
    drop(target);
    assert_ends(&client);
    drop(client);
    setup.end(had);
}

#[test]
fn the_target_speaks_first_as_an_nbd_server_does() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    let (client, mut target) = setup.stream();
    target.write_all(b"NBDMAGIC").expect("room for it");
    let mut greeting = [0; 8];
    (&client).read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGIC");
    drop((client, target));
    setup.end(had);
}

#[test]
fn who_closes_without_reading_stops_the_writer_and_what_it_said_arrives() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    let last_words = Noise::new(8).bytes(100_000);
    for client_closes in [true, false] {
        let (client, target) = setup.stream();
        let (mut closes, mut stays) = if client_closes { (client, target) } else { (target, client) };
        // The other end's first bytes lie unread in the socket of the one that closes.
        stays.write_all(b"never read").expect("room for it");
        assert_eq!(peek(&closes), b"never read".len());
        closes.write_all(&last_words).expect("room for it");
        drop(closes);
        let mut read = vec![0; last_words.len()];
        stays.read_exact(&mut read).expect("its last words");
        assert!(read == last_words, "its last words, as it said them");
        let chunk = vec![0; 64 * 1024];
        let error = wait_for("a write that fails", PATIENCE, || stays.write_all(&chunk).err());
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }
    setup.end(had);
}

#[test]
fn what_a_full_tunnel_holds_arrives_though_its_writer_is_gone() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    for (client_closes, leaves_unread) in [(true, false), (true, true), (false, false), (false, true)] {
        let (client, target) = setup.stream();
        let (closes, mut stays) = if client_closes { (client, target) } else { (target, client) };
        if leaves_unread {
            stays.write_all(b"never read").expect("room for it");
            assert_eq!(peek(&closes), b"never read".len());
        }
        let bytes = Noise::new(10).bytes(MUCH);
        let held = fill(&closes, &bytes);
        assert!(held >= WINDOW, "only {held} bytes went in");
        drop(closes);
        let mut read = vec![0; held];
        stays.read_exact(&mut read).expect("all that the tunnel held");
        assert!(read == bytes[..held], "the bytes as they went in");
        assert_ends(&stays);
    }
    setup.end(had);
}

/// Writes until nothing more goes in, and says how much did.
#[track_caller]
fn fill(mut stream: &UnixStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).expect("an open socket");
    let (mut held, mut last) = (0, Instant::now());
    wait_for("a stream that stands still", PATIENCE, || {
        match stream.write(&bytes[held..]) {
            Ok(written) => (held, last) = (held + written, Instant::now()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        // Standing still shows in nothing but time.
        (last.elapsed() > Duration::from_millis(300)).then_some(held)
    })
}

/// Waits until something can be read, and says how much, without taking it.
#[track_caller]
fn peek(stream: &UnixStream) -> usize {
    let mut buffer = [0; 100];
    wait_for("bytes that can be read", PATIENCE, || {
        let (_, length) = rustix::net::recv(stream, &mut buffer[..], rustix::net::RecvFlags::PEEK).ok()?;
        (length > 0).then_some(length)
    })
}

#[test]
fn many_streams_share_one_link_and_keep_their_bytes_apart() {
    let setup = Setup::new();
    let had = setup.ends.descriptors();
    std::thread::scope(|scope| {
        for seed in 0..20 {
            // One after the other, so that it is known which socket of the target's is whose.
            let (client, target) = setup.stream();
            scope.spawn(move || {
                let (there, back) = (Noise::new(seed).bytes(3_000_000), Noise::new(100 + seed).bytes(3_000_000));
                let senders = [send(&client, &there), send(&target, &back)];
                assert_reads(&target, &there);
                assert_reads(&client, &back);
                for sender in senders {
                    sender.join().unwrap().expect("an end that reads");
                }
            });
        }
    });
    assert_eq!(links_accepted(&setup.ends.serve), 1);
    setup.end(had);
}

#[test]
fn a_target_that_is_not_there_closes_the_client_and_both_ends_say_why() {
    let scratch = Scratch::new();
    let (absent, dead) = (scratch.join("far.absent"), scratch.join("far.dead"));
    drop(UnixListener::bind(&dead).expect("a new socket"));
    echo_on(&scratch.join("far.echo"));
    let ends = Ends::start(&scratch, &["absent", "dead", "echo"]);
    let had = ends.descriptors();
    for (name, cause) in [("absent", "No such file or directory"), ("dead", "Connection refused")] {
        assert_ends(&connect(&scratch.join(&format!("near.{name}"))));
        for end in [&ends.forward, &ends.serve] {
            end.line_on_stderr("cause", |line| line.contains(name) && line.contains(cause));
        }
    }
    assert!(!absent.exists());
    // It harms no other stream, and is tried anew each time.
    assert_echoes(&connect(&scratch.join("near.echo")), b"unharmed");
    echo_on(&absent);
    assert_echoes(&connect(&scratch.join("near.absent")), b"there at last");
    ends.wait_for_descriptors(had);
    ends.end();
}

#[test]
fn a_target_that_the_peer_does_not_offer_closes_the_client_and_forward_says_so() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let serve = serve(ANY_PORT, [("disk", &*far)]).start();
    let forward = forward(&serve.ready(), [("secret", &*near)]).start();
    forward.ready();
    assert_ends(&connect(&near));
    forward.line_on_stderr("cause", |line| line.contains("no target `secret`"));
    forward.end_well(&[&near]);
    serve.end_well(&[]);
}

#[test]
fn after_sigterm_a_stream_may_finish_and_no_new_one_begins() {
    for forward_first in [true, false] {
        let setup = Setup::new();
        let (client, mut target) = setup.stream();
        target.write_all(b"before").expect("room for it");
        let Ends { serve, forward, peer, .. } = setup.ends;
        let (first, second) = if forward_first { (forward, serve) } else { (serve, forward) };
        first.signal(Signal::TERM);
        // Nobody is let wait at a door that nobody will open again.
        let near = setup.scratch.join("near.disk");
        wait_for("the socket to go", PATIENCE, || (!near.exists()).then_some(()));
        if !forward_first {
            let address = peer.strip_prefix("tcp://").expect("a TCP address");
            wait_for("the port to be closed", PATIENCE, || TcpStream::connect(address).err());
        }
        let mut said = [0; 6];
        (&client).read_exact(&mut said).expect("an open stream");
        let bytes = Noise::new(9).bytes(MUCH);
        let sender = send(&client, &bytes);
        assert_reads(&target, &bytes);
        sender.join().unwrap().expect("a target that reads");
        target.write_all(b"the end").expect("an open stream");
        drop(target);
        assert_reads(&client, b"the end");
        drop(client);
        let finished = first.finish(PATIENCE);
        assert!(finished.status.success(), "{finished}");
        setup.target.assert_no_more();
        drop(second);
    }
}

#[test]
fn with_reconnect_who_comes_while_the_peer_drains_reaches_the_next_session() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let target = accept_on(&far);
    let server = serve(ANY_PORT, [("disk", &*far)]).start();
    let peer = server.ready();
    let forward = forward(&peer, [("disk", &*near)]).arg("--reconnect").start();
    forward.ready();
    let client = connect(&near);
    let standing = target.next();
    server.signal(Signal::TERM);
    forward.line_on_stderr("draining", |line| line.contains("takes no new streams"));
    let mut late = connect(&near);
    late.write_all(b"patience").expect("room for it");
    drop((client, standing));
    let finished = server.finish(PATIENCE);
    assert!(finished.status.success(), "{finished}");
    let server = serve(&peer, [("disk", &*far)]).start();
    let mut heard = [0; 8];
    target.next().read_exact(&mut heard).expect("a stream of the new session");
    assert_eq!(&heard, b"patience");
    drop(late);
    forward.end_well(&[&near]);
    server.end_well(&[]);
}

#[test]
fn a_second_signal_waits_no_more_for_streams() {
    let setup = Setup::new();
    let (mut client, mut target) = setup.stream();
    target.write_all(b"!").expect("room for it");
    client.read_exact(&mut [0]).expect("a stream that stands");
    let forward = setup.ends.forward;
    forward.signal(Signal::TERM);
    forward.line_on_stderr("draining", |line| line.contains("draining"));
    forward.signal(Signal::TERM);
    let finished = forward.finish(PATIENCE);
    finished.assert_failed_saying(&["cut"]);
    assert_ends(&client);
    assert_ends(&target);
    setup.ends.serve.end_well(&[]);
}

#[test]
fn a_stream_that_never_finishes_has_the_time_to_drain_and_no_more() {
    let scratch = Scratch::new();
    let target = accept_on(&scratch.join("far"));
    let serve = serve(ANY_PORT, [("it", &*scratch.join("far"))]).args(["--drain", "1"]).start();
    let (near, peer) = (scratch.join("near"), serve.ready());
    let forward = forward(&peer, [("it", &*near)]).start();
    forward.ready();
    let client = connect(&near);
    let stream = target.next();
    serve.signal(Signal::TERM);
    serve.finish(PATIENCE).assert_failed_saying(&["the time to drain had passed", "streams cut: 1"]);
    assert_ends(&client);
    assert_ends(&stream);
    forward.finish(PATIENCE).assert_failed_saying(&["is over"]);
}

/// At either end, each for what it sends.
#[test]
fn bandwidth_limits_what_an_end_sends_and_not_what_it_receives() {
    let scratch = Scratch::new();
    let target = accept_on(&scratch.join("far.disk"));
    let serve = serve(ANY_PORT, [("disk", &*scratch.join("far.disk"))]).start();
    let near = scratch.join("near.disk");
    let forward = forward(&serve.ready(), [("disk", &*near)]).args(["--bandwidth", "4MiB"]).start();
    forward.ready();
    let (client, stream) = (connect(&near), target.next());
    let carry = |from: &UnixStream, to: &UnixStream, mib: u64| {
        let bytes = Noise::new(9).bytes((mib * MIB) as usize);
        let begun = Instant::now();
        let sending = send(from, &bytes);
        assert_reads(to, &bytes);
        sending.join().expect("no panic").expect("all is sent");
        begun.elapsed()
    };
    // It would take eight seconds if it were limited, too.
    let received = carry(&stream, &client, 32);
    assert!(received < Duration::from_secs(4), "{received:?}");
    // What goes at once is a tenth of a second's worth.
    let sent = carry(&client, &stream, 4);
    assert!((Duration::from_millis(800)..Duration::from_secs(10)).contains(&sent), "{sent:?}");
    drop((client, stream));
    forward.end_well(&[&near]);
    serve.end_well(&[]);
}

#[test]
fn what_has_priority_goes_first_and_leaves_a_sixteenth() {
    let scratch = Scratch::new();
    let [disk, memory] = ["disk", "memory"].map(|name| accept_on(&scratch.join(&format!("far.{name}"))));
    let far = ["disk", "memory"].map(|name| (name, scratch.join(&format!("far.{name}"))));
    let near = ["disk", "memory"].map(|name| (name, scratch.join(&format!("near.{name}"))));
    // The memory always has credit, however late a reader's turn comes on a busy machine: what it cannot use the disk gets.
    let serve =
        serve(ANY_PORT, far.each_ref().map(|(name, path)| (*name, &**path))).args(["--window", "16MiB"]).start();
    let forward = forward(&serve.ready(), near.each_ref().map(|(name, path)| (*name, &**path)))
        .args(["--bandwidth", "16MiB", "--priority", "memory=1"])
        .start();
    forward.ready();
    let bytes = Noise::new(9).bytes(64 * MIB as usize);
    let [to_disk, to_memory] = near.each_ref().map(|(_, path)| connect(path));
    let [from_disk, mut from_memory] = [&disk, &memory].map(|target| target.next());
    let sending = [send(&to_disk, &bytes), send(&to_memory, &bytes)];
    let disk_read = Arc::new(AtomicUsize::new(0));
    let counting = thread::spawn({
        let disk_read = Arc::clone(&disk_read);
        move || {
            let mut chunk = vec![0; 65_536];
            while let Ok(len @ 1..) = (&from_disk).read(&mut chunk) {
                disk_read.fetch_add(len, Ordering::Relaxed);
            }
        }
    });
    // Both are under way.
    from_memory.read_exact(&mut vec![0; MIB as usize]).expect("bytes of memory");
    wait_for("bytes of the disk", PATIENCE, || (disk_read.load(Ordering::Relaxed) > 0).then_some(()));
    let before = disk_read.load(Ordering::Relaxed);
    from_memory.read_exact(&mut vec![0; 24 * MIB as usize]).expect("bytes of memory");
    let meanwhile = disk_read.load(Ordering::Relaxed) - before;
    let sixteenth = 24 * MIB as usize / 15;
    assert!((sixteenth / 2..sixteenth * 3).contains(&meanwhile), "{meanwhile} bytes of the disk");
    forward.signal(Signal::KILL);
    serve.signal(Signal::KILL);
    drop((to_disk, to_memory, from_memory));
    sending.into_iter().for_each(|sending| drop(sending.join().expect("no panic")));
    counting.join().expect("no panic");
}
