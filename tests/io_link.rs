//! Packets of any legal size, in any pieces, and what ends in the middle of one.

mod io_support;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use io_support::*;
use virbistream::io::{Dispatcher, Handle, Relay, Report, SessionOptions, Socket};
use virbistream::proto::{Config, MemoryBudget, Side, StreamError};
use virbistream::wire::{
    DATA_MAX, DATA_MIN, Finish, HelloReply, Limits, Open, OpenReply, PacketType, Procedure, RemoteError, Status, Stop,
};

const MIB: usize = 1 << 20;

/// A peer with a stream to the target `it`, which is connected to `handler` at the far end.
fn raw_stream(handler: Custom, config: Config) -> (Node, Raw) {
    let far = Node::start();
    let mut peer = Raw::connect(&far.listen(SessionOptions { config, targets: once(handler), ..Default::default() }));
    peer.hello();
    peer.open(1, "it", MIB as u64);
    peer.expect::<OpenReply>(Procedure::Open, PacketType::Reply, 1, Status::Ok);
    (far, peer)
}

#[test]
fn streams_are_carried_whatever_the_largest_packet_may_be() {
    for (max_data, window) in [(DATA_MIN, 4096), (DATA_MIN, MIB), (100_003, 65_536), (DATA_MAX, 32 * MIB)] {
        let mut tunnel = Tunnel::with(|options, _| {
            options.config.max_data = max_data;
            options.config.window = window as u64;
        });
        let Carried { id, client, server } = tunnel.carry();
        thread::scope(|scope| {
            scope.spawn(|| {
                Pattern::new(1).write_to(&client, 5 * MIB + 1).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            Pattern::new(1).check_from(&server, 5 * MIB + 1);
            assert_eq!(to_eof(&server), []);
        });
        drop((client, server));
        let [near, _] = tunnel.ended_well(id);
        assert!(near.packets_sent >= near.sent / u64::from(max_data), "{near:?}");
    }
}

#[test]
fn a_packet_larger_than_any_buffer_is_delivered_piece_by_piece() {
    let config = Config { max_data: DATA_MAX, window: 16 << 20, ..Config::default() };
    let (taken, pieces) = mpsc::channel();
    let handler = Custom::new().0.writing(move |bufs| {
        bufs.iter().for_each(|buf| taken.send(buf.to_vec()).unwrap());
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    });
    let (_far, mut peer) = raw_stream(handler, config);
    let packet = data_packet(1, &Pattern::new(1).bytes(DATA_MAX as usize));
    let (first, second) = packet.split_at(5 * MIB);
    peer.say(first);
    let mut pattern = Pattern::new(1);
    // What has come is delivered before the rest of the packet has.
    while pattern.offset() < 5 * MIB - 28 {
        pattern.check(&pieces.recv_timeout(PATIENCE).unwrap());
    }
    peer.say(second);
    while pattern.offset() < DATA_MAX as usize {
        pattern.check(&pieces.recv_timeout(PATIENCE).unwrap());
    }
}

#[test]
fn one_direction_alone_goes_on_beyond_its_turn() {
    // Nothing but the link wakes the dispatcher: no credit, no PING.
    let quiet = Duration::from_secs(3600);
    let config = Config {
        window: 1 << 40,
        memory_budget: MemoryBudget::new(1 << 50),
        ping_interval: quiet,
        ..Config::default()
    };
    const MUCH: usize = 128 * MIB;
    let (handler, told) = Custom::new();
    let (mut source, mut left) = (Pattern::new(1), MUCH);
    let handler = handler.reading(move |buf| {
        let len = buf.len().min(left);
        left -= len;
        source.fill(&mut buf[..len]);
        Ok(len)
    });
    let mut sink = Pattern::new(2);
    let handler = handler.writing(move |bufs| {
        bufs.iter().for_each(|buf| sink.check(buf));
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    });
    let far = Node::start();
    let mut peer = Raw::connect(&far.listen(SessionOptions { config, targets: once(handler), ..Default::default() }));
    peer.hello();
    peer.open(1, "it", 1 << 40);
    peer.expect::<OpenReply>(Procedure::Open, PacketType::Reply, 1, Status::Ok);
    let mut judge = Pattern::new(1);
    while judge.offset() < MUCH {
        let (header, payload) = peer.receive();
        assert_eq!(header, ours(Procedure::Data, PacketType::Stream, 1, Status::Continue));
        judge.check(&payload);
    }
    assert_eq!(peer.expect::<Finish>(Procedure::Data, PacketType::Stream, 1, Status::Ok).offset, MUCH as u64);
    let mut pattern = Pattern::new(2);
    let mut bytes = vec![0; 128 * 1024];
    for _ in 0..MUCH / bytes.len() {
        pattern.fill(&mut bytes);
        peer.data(1, &bytes);
    }
    let finish = Finish { offset: MUCH as u64 };
    peer.send(Procedure::Data, PacketType::Stream, 1, Status::Ok, &finish);
    assert!(matches!(told.recv_timeout(PATIENCE), Ok(Told::Attached(_))));
    let next = told.recv_timeout(PATIENCE);
    assert!(matches!(next, Ok(Told::Finished)), "{next:?}");
}

#[test]
fn packets_that_come_byte_by_byte_are_packets() {
    let (handler, told) = Custom::new();
    let far = Node::start();
    let mut peer = Raw::connect(&far.listen(SessionOptions { targets: once(handler), ..Default::default() }));
    let open = Open { target: "it".into(), ..Open::default() };
    let bytes =
        [legacy_call(1, 1, 1, 1).to_vec(), hello(), packet(Procedure::Open, PacketType::Call, 1, Status::Ok, &open)];
    bytes.concat().iter().for_each(|byte| peer.say(&[*byte]));
    // What is answered first among what came at once means nothing.
    let mut answers: Vec<_> = (0..3).map(|_| peer.receive().0).collect();
    let legacy = answers.iter().position(|answer| answer.program == 1).expect("the call is answered");
    answers.remove(legacy);
    let reply = |procedure| ours(procedure, PacketType::Reply, 1, Status::Ok);
    assert_eq!(answers, [reply(Procedure::Hello), reply(Procedure::Open)]);
    let bytes =
        [data_packet(1, b"hello"), packet(Procedure::Data, PacketType::Stream, 1, Status::Ok, &Finish { offset: 5 })];
    bytes.concat().iter().for_each(|byte| peer.say(&[*byte]));
    assert!(matches!(told.recv_timeout(PATIENCE), Ok(Told::Attached(_))));
    assert!(matches!(told.recv_timeout(PATIENCE), Ok(Told::Finished)));
}

#[test]
fn a_stream_that_ends_in_the_middle_of_a_packet_leaves_the_link_in_step() {
    let config = || Config { max_data: DATA_MAX, window: 16 << 20, ..Config::default() };
    let packet_of_4_mib = data_packet(1, &vec![7; 4 * MIB]);
    let (first, second) = packet_of_4_mib.split_at(MIB);

    let failing = Custom::new().0.writing(|_| Err(io::Error::from_raw_os_error(5)));
    let (_far, mut peer) = raw_stream(failing, config());
    peer.say(first);
    let error: RemoteError = peer.expect(Procedure::Data, PacketType::Stream, 1, Status::Error);
    assert_eq!(error.int1, 5);
    peer.say(second);
    peer.ping();

    let broken = Custom::new().0.writing(|_| Err(io::ErrorKind::BrokenPipe.into()));
    let (mut far, mut peer) = raw_stream(broken.reading(|_| Ok(0)), config());
    let Finish { offset } = peer.expect(Procedure::Data, PacketType::Stream, 1, Status::Ok);
    assert_eq!(offset, 0);
    peer.say(first);
    assert_eq!(peer.expect::<Stop>(Procedure::Stop, PacketType::Message, 0, Status::Ok), Stop { stream: 1 });
    peer.say(second);
    peer.send(Procedure::Data, PacketType::Stream, 1, Status::Ok, &Finish { offset: 4 * MIB as u64 });
    peer.ping();
    let (cause, stats) = far.wait("the end of the stream", |report| match report {
        Report::StreamEnded { cause, stats, .. } => Some((cause.clone(), *stats)),
        _ => None,
    });
    assert_eq!((cause, stats.received, stats.consumed), (Ok(()), 4 * MIB as u64, 0));
}

#[test]
fn an_open_that_is_not_answered_is_given_up() {
    let mut near = Node::start();
    let (ours, theirs) = tcp_link();
    let config = Config { open_timeout: Duration::from_millis(100), ..Config::default() };
    let options = SessionOptions { config, ..SessionOptions::default() };
    let key = near.handle.attach(Socket::from_tcp(ours).unwrap(), Side::Connecting, options);
    let mut peer = Raw::from(theirs);
    peer.receive();
    let limits = Limits { max_data: 65_536, max_streams: 2 };
    let reply = HelloReply { version: 1, features: 0, limits, extensions: Vec::new() };
    peer.send(Procedure::Hello, PacketType::Reply, 1, Status::Ok, &reply);
    near.established(key);
    let (client, inner) = UnixStream::pair().unwrap();
    near.handle.open(key, Open { target: "it".into(), ..Open::default() }, Box::new(Relay::new(inner).unwrap()));
    peer.expect::<Open>(Procedure::Open, PacketType::Call, 1, Status::Ok);
    let reason = near.refused();
    assert!(reason.starts_with("the peer did not answer OPEN"), "{reason}");
    assert_eq!(to_eof(patient(client)), []);
    peer.expect::<RemoteError>(Procedure::Data, PacketType::Stream, 1, Status::Error);
    // A late answer is to nobody.
    let reply = OpenReply { window: 1, extensions: Vec::new() };
    peer.send(Procedure::Open, PacketType::Reply, 1, Status::Ok, &reply);
    // And places are free again: two at once, not three.
    for _ in 0..3 {
        let (handler, _told) = Custom::new();
        near.handle.open(key, Open { target: "it".into(), ..Open::default() }, handler.boxed());
    }
    for id in [3, 5] {
        peer.expect::<Open>(Procedure::Open, PacketType::Call, id, Status::Ok);
        peer.send(Procedure::Open, PacketType::Reply, id, Status::Ok, &reply);
        assert_eq!(near.opened(key).number(), id);
    }
    assert_eq!(near.refused(), "the peer takes no more than 2 streams");
}

#[test]
fn a_client_that_leaves_before_the_answer_is_an_empty_stream() {
    let mut tunnel = Tunnel::new();
    for _ in 0..20 {
        drop(tunnel.ask_for("disk"));
        assert_eq!(to_eof(accept(&tunnel.listener)), []);
        let id = tunnel.near.opened(tunnel.near_key);
        tunnel.ended_well(id);
    }
}

#[test]
fn reports_may_act_through_the_handle() {
    let mut tunnel = Tunnel::new();
    let address = tunnel.far.listen(tunnel.options.clone());
    let handle = Arc::new(OnceLock::<Handle>::new());
    let (ended, ends) = mpsc::channel();
    let dispatcher = Dispatcher::new({
        let handle = handle.clone();
        move |report| {
            let handle = handle.get().unwrap();
            match report {
                Report::Established { session, .. } => {
                    let open = Open { target: "disk".into(), ..Open::default() };
                    handle.open(session, open, Custom::new().0.reading(|_| Ok(0)).boxed());
                }
                Report::StreamEnded { session, cause, .. } => {
                    ended.send(cause).unwrap();
                    handle.close(session);
                }
                Report::SessionEnded { .. } => handle.drain(),
                _ => {}
            }
        }
    })
    .unwrap();
    handle.set(dispatcher.handle()).unwrap();
    let socket = Socket::connect(&address, PATIENCE).unwrap();
    dispatcher.handle().attach(socket, Side::Connecting, SessionOptions::default());
    let running = thread::spawn(move || dispatcher.run().unwrap());
    assert_eq!(to_eof(accept(&tunnel.listener)), []);
    assert_eq!(ends.recv_timeout(PATIENCE), Ok(Ok::<(), StreamError>(())));
    let key = tunnel.far.link_accepted();
    assert_eq!(tunnel.far.session_ended(key), Ok(()));
    running.join().unwrap();
}
