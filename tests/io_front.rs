//! A front: what of libvirt's RPC comes passes to a daemon behind it, and BiStream is served beside it.

mod io_support;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use virbistream::io::{Address, Decision, Listener, Permissions, Request, SessionOptions};
use virbistream::proto::{Config, SessionError};
use virbistream::wire::{Header, OpenReply, PROGRAM, PacketType, Procedure, Status};

const MIB: usize = 1 << 20;

/// A dispatcher with a daemon behind it, and an endless target.
struct Fronted {
    node: Node,
    address: Address,
    daemon: UnixListener,
    options: SessionOptions,
    dir: tempfile::TempDir,
}

impl Fronted {
    /// A client that has called, after HELLO if it shares its link, and the daemon's end of its connection.
    fn joined(&self, shared: bool) -> (Raw, UnixStream) {
        let mut client = Raw::connect(&self.address);
        if shared {
            client.hello();
        }
        client.say(&legacy(0, 1, 0));
        let daemon = accept(&self.daemon);
        assert_eq!(read(&daemon, 28), legacy(0, 1, 0));
        (client, daemon)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn fronted() -> Fronted {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libvirt-sock");
    let daemon = UnixListener::bind(&path).unwrap();
    let node = Node::start();
    let targets = Arc::new(Offer(|_: &Request<'_>| {
        Decision::Accept(Box::new(Endless::new(Pattern::new(1), usize::MAX, mpsc::channel().0)))
    }));
    let config = Config { hello_timeout: None, ..Config::default() };
    let options = SessionOptions { config, targets, daemon: Some(path), ..SessionOptions::default() };
    let address = node.listen(options.clone());
    Fronted { node, address, daemon, options, dir }
}

/// A legacy packet with as much payload, which tells it from others.
fn legacy(kind: u32, serial: u32, len: usize) -> Vec<u8> {
    let header = Header { program: PROGRAM, version: 1, procedure: 208, kind, serial, status: 2 };
    let mut payload = vec![0; len];
    Pattern::new(serial.into()).fill(&mut payload);
    [&header.encode(len as u32)[..], &payload].concat()
}

fn read(stream: &UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut stream = stream;
    stream.read_exact(&mut bytes).expect("it comes in time");
    bytes
}

#[test]
fn packets_pass_both_ways_untouched_in_whatever_pieces() {
    let packets = [
        legacy(0, 1, 0),
        legacy(4, 2, 3),
        legacy(3, 3, 100_000),
        legacy(6, 4, 12),
        legacy(99, 5, 1),
        // Another program, keepalive say.
        Header { program: 0x6b65_6570, version: 1, procedure: 1, kind: 2, serial: 0, status: 0 }.encode(0).to_vec(),
    ]
    .concat();
    for piece in [1000, 27, packets.len()] {
        let fronted = fronted();
        let mut client = Raw::connect(&fronted.address);
        let mut writer = client.stream.try_clone().unwrap();
        let said = packets.clone();
        let saying = thread::spawn(move || said.chunks(piece).for_each(|piece| writer.write_all(piece).unwrap()));
        let daemon = accept(&fronted.daemon);
        assert!(read(&daemon, packets.len()) == packets, "up in pieces of {piece}");
        saying.join().unwrap();
        let mut writer = daemon.try_clone().unwrap();
        let said = packets.clone();
        let saying = thread::spawn(move || said.chunks(piece).for_each(|piece| writer.write_all(piece).unwrap()));
        let mut got = vec![0; packets.len()];
        client.stream.read_exact(&mut got).unwrap();
        assert!(got == packets, "down in pieces of {piece}");
        saying.join().unwrap();
        // The daemon ends, and so does the client's link, in order.
        daemon.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.rest(), []);
    }
}

#[test]
fn a_header_in_pieces_passes_whole() {
    let fronted = fronted();
    let mut turns = Raw::connect(&fronted.address);
    turns.hello();
    for cut in [1, 4, 27] {
        let mut client = Raw::connect(&fronted.address);
        let packets = [legacy(3, 1, 5), legacy(3, 2, 0), legacy(3, 3, 9)].concat();
        client.say(&packets[..33 + cut]);
        // What was said is read by then.
        turns.ping();
        turns.ping();
        client.say(&packets[33 + cut..]);
        let daemon = accept(&fronted.daemon);
        assert_eq!(read(&daemon, packets.len()), packets);
    }
}

/// Sends bytes, and these descriptors with the first of them.
fn send_with(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    assert_eq!(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()), Ok(bytes.len()));
}

/// One byte, and the descriptors that came with it.
fn receive_with(stream: &UnixStream) -> (u8, Vec<OwnedFd>) {
    let (mut byte, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    assert_eq!(recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty()).unwrap().bytes, 1);
    let came = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    (byte[0], came.collect())
}

/// A packet of this type that so many descriptors follow.
fn with_descriptors(kind: u32, count: u32) -> Vec<u8> {
    let header = Header { program: PROGRAM, version: 1, procedure: 350, kind, serial: 4, status: 0 };
    [&header.encode(8)[..], &count.to_be_bytes(), b"args"].concat()
}

/// As libvirt sends them: each with a byte of its own behind the packet. What comes out of the other end is the same pipe.
#[test]
fn descriptors_pass_both_ways_where_both_are_unix_sockets() {
    descriptors_pass_both_ways(|_| ());
}

#[test]
fn descriptors_pass_both_ways_beside_bistream() {
    descriptors_pass_both_ways(|mut client| {
        client.write_all(&hello()).unwrap();
        let len = u32::from_be_bytes(read(client, 4).try_into().unwrap());
        read(client, len as usize - 4);
    });
}

fn descriptors_pass_both_ways(begin: impl FnOnce(&UnixStream)) {
    let fronted = fronted();
    let path = fronted.path("front");
    let listener = Listener::bind(&Address::Unix(path.clone()), Permissions::default()).unwrap();
    fronted.node.handle.listen(listener, fronted.options.clone());
    let client = patient(UnixStream::connect(path).unwrap());
    begin(&client);
    (&client).write_all(&legacy(0, 1, 0)).unwrap();
    let daemon = patient(accept(&fronted.daemon));
    assert_eq!(read(&daemon, 28), legacy(0, 1, 0));
    for (from, to, kind) in [(&client, &daemon, 4), (&daemon, &client, 5)] {
        for count in [1u32, 3, 0] {
            let pipes: Vec<_> = (0..count).map(|_| rustix::pipe::pipe().unwrap()).collect();
            let mut from = from;
            from.write_all(&[legacy(3, 9, 70_000), with_descriptors(kind, count)].concat()).unwrap();
            for (n, (_, write)) in pipes.iter().enumerate() {
                send_with(from, &[n as u8], &[write.as_fd()]);
            }
            from.write_all(&legacy(3, 8, 100)).unwrap();
            assert!(read(to, 70_028) == legacy(3, 9, 70_000));
            assert_eq!(read(to, 36), with_descriptors(kind, count));
            for (n, (pipe, write)) in pipes.into_iter().enumerate() {
                drop(write);
                let (byte, mut came) = receive_with(to);
                assert_eq!((usize::from(byte), came.len()), (n, 1));
                std::fs::File::from(came.pop().unwrap()).write_all(b"it is this one").unwrap();
                let mut said = String::new();
                std::fs::File::from(pipe).read_to_string(&mut said).unwrap();
                assert_eq!(said, "it is this one", "and all other copies are closed");
            }
            assert_eq!(read(to, 128), legacy(3, 8, 100));
        }
    }
    // Those that nobody announced are dropped, and their bytes pass.
    let (pipe, write) = rustix::pipe::pipe().unwrap();
    send_with(&client, &legacy(3, 1, 5), &[write.as_fd()]);
    drop(write);
    let (byte, came) = receive_with(&daemon);
    assert_eq!((byte, came.len()), (0, 0));
    assert_eq!(read(&daemon, 32), legacy(3, 1, 5)[1..]);
    assert_eq!(std::fs::File::from(pipe).read(&mut [0]).unwrap(), 0);
}

#[test]
fn descriptors_that_were_announced_and_do_not_come_end_the_link_and_are_called_the_clients_fault() {
    for count in [1u32, 33, u32::MAX] {
        let mut fronted = fronted();
        let mut client = Raw::connect(&fronted.address);
        client.say(&[with_descriptors(4, count), vec![0; 5]].concat());
        assert_eq!(client.rest(), [], "{count}");
        let key = fronted.node.link_accepted();
        let Err(SessionError::LinkLost(reason)) = fronted.node.session_ended(key) else { panic!("{count}") };
        assert!(reason.starts_with("the client "), "{reason}");
    }
}

#[test]
fn each_client_has_a_connection_of_its_own_and_one_that_says_nothing_legacy_has_none() {
    let mut fronted = fronted();
    let mut bistream = Raw::connect(&fronted.address);
    bistream.hello();
    let mut clients = [Raw::connect(&fronted.address), Raw::connect(&fronted.address)];
    for (n, client) in clients.iter_mut().enumerate() {
        client.say(&legacy(0, n as u32, 9));
        let daemon = accept(&fronted.daemon);
        assert_eq!(read(&daemon, 37), legacy(0, n as u32, 9));
        (&daemon).write_all(&legacy(1, n as u32, 5)).unwrap();
        assert_eq!(client.receive().1.len(), 5);
        client.shut();
        // The client's end comes through, and the daemon's last word after it.
        assert_eq!(to_eof(&daemon), []);
        (&daemon).write_all(&legacy(1, 7, 70_000)).unwrap();
        drop(daemon);
        assert_eq!(client.rest(), legacy(1, 7, 70_000));
    }
    fronted.daemon.set_nonblocking(true).unwrap();
    assert!(fronted.daemon.accept().is_err(), "the one that says BiStream alone costs no connection");
    let first = fronted.node.link_accepted();
    let second = fronted.node.link_accepted();
    let third = fronted.node.link_accepted();
    assert_eq!(fronted.node.session_ended(second), Ok(()));
    assert_eq!(fronted.node.session_ended(third), Ok(()));
    bistream.ping();
    drop(bistream);
    assert!(fronted.node.session_ended(first).is_err());
}

#[test]
fn bistream_is_served_beside_and_never_reaches_the_daemon() {
    let fronted = fronted();
    let mut client = Raw::connect(&fronted.address);
    // One write, of both kinds.
    client.say(&[legacy(0, 1, 10), hello(), legacy(3, 1, 20)].concat());
    let daemon = accept(&fronted.daemon);
    assert_eq!(read(&daemon, 28 + 10 + 28 + 20), [legacy(0, 1, 10), legacy(3, 1, 20)].concat());
    assert_eq!(client.receive().0, ours(Procedure::Hello, PacketType::Reply, 1, Status::Ok));
    client.open(1, "it", u64::MAX);
    client.expect::<OpenReply>(Procedure::Open, PacketType::Reply, 1, Status::Ok);
    let mut writer = daemon.try_clone().unwrap();
    let saying = thread::spawn(move || (0..200).for_each(|n| writer.write_all(&legacy(3, n, 50_000)).unwrap()));
    let (mut serial, mut bulk) = (0, 0);
    while serial < 200 {
        let (header, payload) = client.receive();
        if header.procedure == 208 {
            assert_eq!(header.serial, serial);
            assert!([&header.encode(50_000)[..], &payload].concat() == legacy(3, serial, 50_000));
            serial += 1;
        } else {
            assert_eq!(header, ours(Procedure::Data, PacketType::Stream, 1, Status::Continue));
            bulk += payload.len();
        }
    }
    saying.join().unwrap();
    assert!(bulk > 3 * MIB, "{bulk} bytes of the stream beside 10 MB of the daemon's");
    // A daemon that stops in the middle of a packet holds nobody up.
    let last = legacy(3, 7, 100_000);
    (&daemon).write_all(&last[..50_000]).unwrap();
    let mut bulk = 0;
    while bulk < 20 * MIB {
        let (header, payload) = client.receive();
        assert_eq!(header, ours(Procedure::Data, PacketType::Stream, 1, Status::Continue));
        bulk += payload.len();
    }
    (&daemon).write_all(&last[50_000..]).unwrap();
    loop {
        let (header, payload) = client.receive();
        if header.procedure == 208 {
            assert!([&header.encode(100_000)[..], &payload].concat() == last);
            return;
        }
    }
}

#[test]
fn a_daemon_that_takes_nothing_makes_its_client_wait_and_loses_nothing() {
    let fronted = fronted();
    let client = Raw::connect(&fronted.address);
    let mut writer = client.stream.try_clone().unwrap();
    let said: Arc<Vec<u8>> = Arc::new((0..400).flat_map(|n| legacy(3, n, 50_000)).collect());
    let says = Arc::clone(&said);
    let saying = thread::spawn(move || writer.write_all(&says).unwrap());
    let daemon = accept(&fronted.daemon);
    // Others are served meanwhile; and in all these turns what the client says is not taken in.
    let mut other = Raw::connect(&fronted.address);
    other.hello();
    (0..2000).for_each(|_| other.ping());
    assert!(!saying.is_finished(), "20 MB were taken that nobody takes");
    assert!(read(&daemon, said.len()) == *said);
    saying.join().unwrap();
    drop(daemon);
    assert!(fronted.node.stop().bytes_max < 8 << 20);
}

#[test]
fn beside_streams_a_daemon_that_takes_nothing_has_the_time_of_one_who_does_not_read() {
    let limit = Duration::from_millis(500);
    let mut fronted = fronted();
    fronted.options.config.silence_limit = limit;
    fronted.address = fronted.node.listen(fronted.options.clone());
    let (client, _daemon) = fronted.joined(true);
    let key = fronted.node.link_accepted();
    let mut writer = client.stream.try_clone().unwrap();
    let saying = thread::spawn(move || (1..).all(|n| writer.write_all(&legacy(3, n, 50_000)).is_ok()));
    match fronted.node.session_ended(key) {
        Err(SessionError::LinkLost(why)) => {
            assert!(why.contains("the daemon behind this address takes nothing"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    assert!(!saying.join().unwrap());
}

#[test]
fn beside_streams_a_daemon_that_is_slow_has_all_the_time_that_it_takes() {
    let limit = Duration::from_millis(500);
    let mut fronted = fronted();
    fronted.options.config.silence_limit = limit;
    fronted.address = fronted.node.listen(fronted.options.clone());
    let said: Arc<Vec<u8>> = Arc::new((1..400).flat_map(|n| legacy(3, n, 50_000)).collect());
    let says = Arc::clone(&said);
    let (mut client, daemon) = fronted.joined(true);
    let mut writer = client.stream.try_clone().unwrap();
    let saying = thread::spawn(move || writer.write_all(&says).unwrap());
    let (begun, mut taken) = (Instant::now(), 0);
    while begun.elapsed() < 4 * limit {
        assert!(read(&daemon, 60_000) == said[taken..taken + 60_000]);
        taken += 60_000;
        // The pace of a slow daemon.
        thread::sleep(limit / 10);
    }
    assert!(!saying.is_finished(), "more than anybody keeps is still to come");
    assert!(read(&daemon, said.len() - taken) == said[taken..]);
    saying.join().unwrap();
    client.ping();
}

#[test]
fn without_the_daemon_only_its_clients_lose_their_links() {
    let mut fronted = fronted();
    let mut bistream = Raw::connect(&fronted.address);
    bistream.hello();
    let key = fronted.node.link_accepted();
    std::fs::remove_file(fronted.daemon.local_addr().unwrap().as_pathname().unwrap()).unwrap();
    let mut client = Raw::connect(&fronted.address);
    client.say(&legacy(0, 1, 0));
    assert_eq!(client.rest(), []);
    let lost = fronted.node.link_accepted();
    let Err(SessionError::LinkLost(how)) = fronted.node.session_ended(lost) else { panic!() };
    assert!(how.contains("daemon behind") && how.contains("No such file"), "{how}");
    bistream.ping();
    // A daemon that goes while both share a link is told to the BiStream peer.
    let mut fronted = self::fronted();
    let mut both = Raw::connect(&fronted.address);
    both.hello();
    both.say(&legacy(0, 1, 0));
    drop(accept(&fronted.daemon));
    assert!(both.closed().text.contains("daemon behind"));
    let shared = fronted.node.link_accepted();
    assert!(matches!(fronted.node.session_ended(shared), Err(SessionError::Shutdown(_))));
    let _ = key;
}

#[test]
fn what_is_no_packet_ends_the_link_that_it_came_on() {
    let fronted = fronted();
    let mut client = Raw::connect(&fronted.address);
    client.say(&legacy(0, 1, 4));
    let daemon = accept(&fronted.daemon);
    read(&daemon, 32);
    client.say(&[0; 28]);
    assert_eq!(client.rest(), []);
    assert_eq!(to_eof(&daemon), []);
    let mut client = Raw::connect(&fronted.address);
    client.say(&legacy(0, 1, 4));
    let daemon = accept(&fronted.daemon);
    (&daemon).write_all(b"this is no packet of libvirt's").unwrap();
    client.rest();
}

#[test]
fn half_a_packet_and_silence_is_the_daemons_to_judge_and_holds_up_nobody() {
    let fronted = fronted();
    let mut client = Raw::connect(&fronted.address);
    client.say(&legacy(3, 1, 100)[..50]);
    let daemon = accept(&fronted.daemon);
    assert_eq!(read(&daemon, 50), legacy(3, 1, 100)[..50]);
    let mut other = Raw::connect(&fronted.address);
    other.hello();
    other.ping();
    client.shut();
    assert_eq!(to_eof(&daemon), [], "the end comes where it came");
    drop(daemon);
    assert_eq!(client.rest(), []);
}

/// The link is shared, so it is kept until it is whole, however long it is.
#[test]
fn a_long_packet_passes_beside_bistream() {
    for len in [300_000, 4 * MIB] {
        let fronted = fronted();
        let (mut client, daemon) = fronted.joined(true);
        let saying = thread::spawn(move || (&daemon).write_all(&legacy(1, 1, len)).unwrap());
        assert!(client.receive_bytes() == legacy(1, 1, len));
        saying.join().unwrap();
    }
}

/// Where reads of the daemon end within packets, and always would.
#[test]
fn hello_in_the_middle_of_a_daemons_bulk_is_answered_behind_its_packet() {
    let fronted = fronted();
    let (mut client, daemon) = fronted.joined(false);
    thread::spawn(move || {
        let packet = legacy(3, 1, 262_120);
        while (&daemon).write_all(&packet).is_ok() {}
    });
    (0..16).for_each(|_| assert_eq!(client.receive().0.procedure, 208));
    client.say(&hello());
    // What the kernel holds of the bulk comes first.
    let behind = (0..200).find(|_| client.receive().0 == ours(Procedure::Hello, PacketType::Reply, 1, Status::Ok));
    assert!(behind.is_some(), "50 MB later it is not answered");
}

/// It says why, and takes no more; what is on its way to it is of no use.
#[test]
fn the_last_words_of_a_daemon_that_takes_no_more_reach_the_client() {
    for _ in 0..3 {
        let fronted = fronted();
        let mut client = Raw::connect(&fronted.address);
        let mut writer = client.stream.try_clone().unwrap();
        let saying = thread::spawn(move || while writer.write_all(&legacy(3, 1, 50_000)).is_ok() {});
        let daemon = accept(&fronted.daemon);
        read(&daemon, 28);
        (&daemon).write_all(&legacy(1, 7, 1000)).unwrap();
        drop(daemon);
        assert!(client.receive_bytes() == legacy(1, 7, 1000));
        drop(client);
        saying.join().unwrap();
    }
}

/// Its end may be told more than once.
#[test]
fn a_daemon_that_goes_beside_bistream_ends_that_session_at_once_and_holds_up_no_other() {
    for answers in [false, true] {
        for _ in 0..20 {
            let fronted = fronted();
            let mut other = Raw::connect(&fronted.address);
            other.hello();
            let mut both = Raw::connect(&fronted.address);
            both.hello();
            both.say(&legacy(0, 1, 70_000));
            let daemon = accept(&fronted.daemon);
            read(&daemon, 28);
            if answers {
                (&daemon).write_all(&legacy(1, 1, 1000)).unwrap();
            }
            let begun = Instant::now();
            drop(daemon);
            if answers {
                assert!(both.receive_bytes() == legacy(1, 1, 1000), "its last words come first");
            }
            assert!(both.closed().text.contains("daemon behind"));
            other.ping();
            assert!(begun.elapsed() < Duration::from_secs(1), "CLOSE came after {:?}", begun.elapsed());
        }
    }
}

/// What came of the packet is of no use to anybody.
#[test]
fn a_daemon_that_ends_within_a_packet_ends_the_session_beside_it() {
    let fronted = fronted();
    let (mut both, daemon) = fronted.joined(true);
    (&daemon).write_all(&legacy(1, 1, 1000)[..500]).unwrap();
    drop(daemon);
    assert!(both.closed().text.contains("daemon behind"));
}
