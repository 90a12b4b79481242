//! Peers that are none, and peers that break the rules, over real TCP: what they get, and that nobody else notices.

mod io_support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{
    Address, Decision, Dispatcher, Handler, Listener, NoTargets, Permissions, Report, Request, SessionOptions, Socket,
};
use virbistream::proto::{Config, SessionError, Side, StreamError};
use virbistream::wire::{
    BISTREAM_1, Close, Credit, Finish, HEADER_LEN, Header, Hello, Limits, OpenReply, PROGRAM, PacketType, Ping,
    Procedure, RemoteError, Rule, Status, Stop, close, codes,
};

/// A dispatcher that listens, and whatever is asked for is a handler of `make`'s.
fn far_with<H: Handler + 'static>(make: impl Fn() -> H + Send + Sync + 'static, config: Config) -> (Node, Address) {
    let far = Node::start();
    let targets = Arc::new(Offer(move |_: &Request<'_>| Decision::Accept(Box::new(make()))));
    let address = far.listen(SessionOptions { config, targets, ..SessionOptions::default() });
    (far, address)
}

/// One whose streams take everything and say nothing.
fn far() -> (Node, Address) {
    far_with(|| Custom::new().0, Config::default())
}

/// The rule that the session ended for, and what exactly was done.
#[track_caller]
fn rule_broken(far: &mut Node) -> (Rule, String) {
    let key = far.link_accepted();
    match far.session_ended(key) {
        Err(SessionError::PeerMisbehaved { rule, detail }) => (rule, detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_that_are_no_packets_are_answered_by_nothing() {
    let (mut far, address) = far();
    for (bytes, said) in [
        (&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], "\"GET \""),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "\"SSH-\""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "begin TLS"),
        (b"\0\0\0\x1b", "27 is under 28"),
        (&[0; 4096], "0 is under 28"),
        (b"\x02\x00\x00\x05", "33554437 is over"),
        (&[0xff; 4096], "4294967295 is over"),
    ] {
        let mut peer = Raw::connect(&address);
        peer.say(bytes);
        assert_eq!(peer.rest(), []);
        let (rule, detail) = rule_broken(&mut far);
        assert_eq!(rule, Rule::Length);
        assert!(detail.contains(said), "{detail}");
    }
}

#[test]
fn a_length_out_of_range_is_told_once_hello_stands() {
    let (mut far, address) = far();
    for length in [0, 27, 33_554_437, u32::MAX] {
        let mut peer = Raw::connect(&address);
        peer.hello();
        peer.say(&length.to_be_bytes());
        let Close { code, rule, text } = peer.closed();
        assert_eq!((code, rule), (close::VIOLATION, Rule::Length.number()));
        assert!(text.contains(&length.to_string()), "{text}");
        assert_eq!(rule_broken(&mut far), (Rule::Length, text));
    }
}

#[test]
fn a_packet_that_is_cut_short_is_a_lost_link() {
    let (mut far, address) = far();
    let data = data_packet(1, &[7; 1000]);
    for (whole, cut) in [(true, &[][..]), (false, &data[..1]), (false, &data[..27]), (false, &data[..500])] {
        let mut peer = Raw::connect(&address);
        let key = far.link_accepted();
        peer.hello();
        peer.open(1, "it", 0);
        let id = far.opened(key);
        peer.expect::<OpenReply>(Procedure::Open, PacketType::Reply, 1, Status::Ok);
        peer.say(&data);
        peer.say(cut);
        peer.shut();
        assert_eq!(peer.rest(), []);
        let Err(SessionError::LinkLost(how)) = far.session_ended(key) else { panic!() };
        assert_eq!(how.contains("in the middle of a packet"), !whole, "{how}");
        assert!(far.ended(key, id).1.received >= 1000);
    }
}

#[test]
fn one_who_does_not_say_hello_in_time_is_let_go() {
    let config = Config { hello_timeout: Some(Duration::from_millis(100)), ..Config::default() };
    let (mut far, address) = far_with(|| Custom::new().0, config);
    for bytes in [&[][..], &hello()[..14], &hello()[..40]] {
        let mut peer = Raw::connect(&address);
        peer.say(bytes);
        let key = far.link_accepted();
        assert_eq!(far.session_ended(key), Err(SessionError::HelloTimeout(Duration::from_millis(100))));
        assert_eq!(peer.rest(), []);
    }
    // The time is HELLO's alone.
    let mut peer = Raw::connect(&address);
    peer.hello();
    let key = far.link_accepted();
    let mut other = Raw::connect(&address);
    assert_eq!(other.rest(), []);
    peer.ping();
    assert!(
        !far.unasked().iter().any(|report| matches!(report, Report::SessionEnded { session, .. } if *session == key))
    );
}

#[test]
fn a_peer_that_falls_silent_is_pinged_and_told_and_let_go() {
    let limit = Duration::from_millis(200);
    let config = Config { ping_interval: Duration::from_millis(50), silence_limit: limit, ..Config::default() };
    let (mut far, address) = far_with(|| Custom::new().0, config);
    for half in [&[][..], &data_packet(1, &[7; 1000])[..500]] {
        let mut peer = Raw::connect(&address);
        let key = far.link_accepted();
        peer.hello();
        peer.open(1, "it", 0);
        peer.expect::<OpenReply>(Procedure::Open, PacketType::Reply, 1, Status::Ok);
        peer.say(half);
        peer.expect::<Ping>(Procedure::Ping, PacketType::Message, 0, Status::Ok);
        let Close { code, rule, .. } = peer.closed();
        assert_eq!((code, rule), (close::SILENT, 0));
        assert_eq!(far.session_ended(key), Err(SessionError::Silent(limit)));
        let id = far.opened(key);
        far.ended(key, id).0.unwrap_err();
    }
}

#[test]
fn bistream_packets_before_hello_end_the_link_and_nothing_is_sent() {
    use PacketType::{Call, Message, Reply, Stream};
    let (mut far, address) = far();
    let open = {
        let open = virbistream::wire::Open { target: "it".into(), ..Default::default() };
        packet(Procedure::Open, Call, 1, Status::Ok, &open)
    };
    let error = RemoteError::new(codes::RPC, 0, "no");
    for (bytes, broken) in [
        (open, Rule::HelloFirst),
        (data_packet(1, b"hello"), Rule::HelloFirst),
        (packet(Procedure::Data, Stream, 1, Status::Ok, &Finish { offset: 0 }), Rule::HelloFirst),
        (packet(Procedure::Data, Stream, 1, Status::Error, &error), Rule::HelloFirst),
        (
            packet(Procedure::Credit, Message, 0, Status::Ok, &Credit { stream: 1, consumed: 0, limit: 1 }),
            Rule::HelloFirst,
        ),
        (packet(Procedure::Stop, Message, 0, Status::Ok, &Stop { stream: 1 }), Rule::HelloFirst),
        (packet(Procedure::Ping, Message, 0, Status::Ok, &Ping { token: 1 }), Rule::HelloFirst),
        (
            packet(Procedure::Close, Message, 0, Status::Ok, &Close { code: 0, rule: 0, text: String::new() }),
            Rule::HelloFirst,
        ),
        (packet(Procedure::Hello, Reply, 1, Status::Error, &error), Rule::Reply),
        (ours(Procedure::Ping, Call, 1, Status::Ok).encode(0).to_vec(), Rule::Header),
        (legacy_call(PROGRAM, 1, 0x4253_0001 + 200, 1).to_vec(), Rule::Procedure),
    ] {
        let mut peer = Raw::connect(&address);
        peer.say(&bytes);
        // HELLO comes too late, and is not answered either.
        let _ = peer.stream.write_all(&hello());
        assert_eq!(peer.rest(), []);
        assert_eq!(rule_broken(&mut far).0, broken);
    }
}

#[test]
fn a_hello_that_is_refused_is_told_why() {
    let (mut far, address) = far();
    let good = Hello {
        min_version: BISTREAM_1,
        max_version: BISTREAM_1,
        offered: 0,
        needed: 0,
        limits: Limits { max_data: 65_536, max_streams: 1 },
        extensions: Vec::new(),
    };
    for (hello, code, rule) in [
        (Hello { min_version: 2, max_version: 3, ..good.clone() }, codes::OPERATION_UNSUPPORTED, Rule::Version),
        (Hello { offered: 4, needed: 4, ..good.clone() }, codes::OPERATION_UNSUPPORTED, Rule::Feature),
        (Hello { limits: Limits { max_data: 1, max_streams: 1 }, ..good }, codes::INVALID_ARG, Rule::Limits),
    ] {
        let mut peer = Raw::connect(&address);
        peer.send(Procedure::Hello, PacketType::Call, 9, Status::Ok, &hello);
        let error: RemoteError = peer.expect(Procedure::Hello, PacketType::Reply, 9, Status::Error);
        assert_eq!((error.code, error.int2), (code, rule.number() as i32));
        assert_eq!(peer.rest(), []);
        let key = far.link_accepted();
        assert_eq!(far.session_ended(key), Err(SessionError::RefusedPeer(Box::new(error))));
    }
}

#[test]
fn one_who_sends_beyond_its_credit_is_told_the_rule_and_others_go_on() {
    let mut tunnel = Tunnel::with(|options, dir| {
        with_stalled(options, dir);
        options.config.window = 65_536;
    });
    let address = tunnel.far.listen(tunnel.options.clone());
    let Carried { id, client, server } = tunnel.carry();
    Pattern::new(1).write_to(&client, 50_000).unwrap();
    let mut peer = Raw::connect(&address);
    let key = tunnel.far.link_accepted();
    peer.hello();
    peer.open(1, "stalled", 0);
    let reply: OpenReply = peer.expect(Procedure::Open, PacketType::Reply, 1, Status::Ok);
    assert_eq!(reply.window, 65_536);
    peer.data(1, &[7; 65_535]);
    peer.data(1, &[7]);
    // All that is its own; and now what is not.
    peer.ping();
    peer.data(1, &[7]);
    let Close { code, rule, text } = peer.closed();
    assert_eq!((code, rule), (close::VIOLATION, Rule::CreditOverrun.number()));
    assert!(text.contains("65536"), "{text}");
    let cause = SessionError::PeerMisbehaved { rule: Rule::CreditOverrun, detail: text };
    assert_eq!(tunnel.far.session_ended(key), Err(cause.clone()));
    let stalled = tunnel.far.opened(key);
    let (ended, stats) = tunnel.far.ended(key, stalled);
    assert_eq!((ended, stats.received), (Err(StreamError::Session(cause)), 65_536));
    Pattern::new(1).check_from(&server, 50_000);
    drop((client, server));
    tunnel.ended_well(id);
}

#[test]
fn the_last_word_reaches_one_who_goes_on_sending() {
    let (mut far, address) = far();
    let mut peer = Raw::connect(&address);
    peer.hello();
    // All of it is taken: a socket closed with bytes unread would answer with a TCP reset.
    peer.say(&data_packet(1, &[7; 1000]).repeat(8000));
    peer.shut();
    let Close { code, rule, .. } = peer.closed();
    assert_eq!((code, rule), (close::VIOLATION, Rule::IdUnknown.number()));
    assert_eq!(rule_broken(&mut far).0, Rule::IdUnknown);
}

#[test]
fn one_who_breaks_a_rule_while_others_move_bytes_disturbs_none_of_them() {
    let mut tunnel = Tunnel::new();
    let address = tunnel.far.listen(tunnel.options.clone());
    let Carried { id, client, server } = tunnel.carry();
    thread::scope(|scope| {
        scope.spawn(|| {
            Pattern::new(1).write_to(&client, 64 << 20).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            for n in 0..50 {
                let mut peer = Raw::connect(&address);
                peer.hello();
                peer.say([&data_packet(1, b"never opened")[..], b"GET / HTTP/1.1", &[0xff; 100]][n % 3]);
                assert_eq!(peer.closed().code, close::VIOLATION);
            }
        });
        Pattern::new(1).check_from(&server, 64 << 20);
        assert_eq!(to_eof(&server), []);
    });
    drop((client, server));
    tunnel.ended_well(id);
}

#[test]
fn what_a_peer_that_never_reads_can_make_us_hold_is_bounded() {
    const OPEN: u32 = 8;
    let (mark, marks) = mpsc::channel();
    let far = Node::without_reports();
    let targets = Offer(move |request: &Request<'_>| match request.target {
        "endless" => Decision::Accept(Box::new(Endless::new(Pattern::new(1), usize::MAX, mpsc::channel().0))),
        "mark" => {
            mark.send(()).unwrap();
            Decision::Accept(Custom::new().0.boxed())
        }
        "sink" => Decision::Accept(Custom::new().0.boxed()),
        _ => virbistream::io::Targets::open(&NoTargets, request),
    });
    let address = far.listen(SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() });
    let mut peer = Raw::narrow(&address);
    peer.hello();
    for n in 0..OPEN {
        peer.opened(2 * n + 1, "endless", 0);
    }
    let mut id = 2 * OPEN + 1;
    let mut next = || {
        id += 2;
        id
    };
    let gone = RemoteError::new(codes::OPERATION_ABORTED, 0, "x".repeat(1024));
    for _ in 0..1000 {
        for n in 0..OPEN {
            let credit = Credit { stream: 2 * n + 1, consumed: 0, limit: u64::MAX };
            peer.send(Procedure::Credit, PacketType::Message, 0, Status::Ok, &credit);
        }
        peer.send(Procedure::Ping, PacketType::Message, 0, Status::Ok, &Ping { token: 1 });
        let id = next();
        peer.open(id, "sink", 0);
        peer.send(Procedure::Data, PacketType::Stream, id, Status::Error, &gone);
        // Nor by what is none of ours.
        peer.say(&Header { program: 1, version: 1, procedure: 1, kind: 2, serial: 0, status: 0 }.encode(4096));
        peer.say(&[7; 4096]);
    }
    for _ in 0..250 {
        peer.open(next(), &"unknown ".repeat(30), 0);
    }
    peer.open(next(), "mark", 0);
    marks.recv_timeout(PATIENCE).expect("it is read to the end");
    drop(peer);
    let used = far.stop().bytes_max;
    assert!(used < 3 << 20, "{used} bytes held");
}

#[test]
fn a_link_that_takes_nothing_does_not_outlive_its_session() {
    let (reached, marks) = mpsc::channel();
    // More than the kernel takes for a peer that does not read: something of it is on its way out for good.
    let source = move || Endless::new(Pattern::new(1), 300_000, reached.clone());
    let (mut far, address) = far_with(source, Config::default());
    let mut peer = Raw::narrow(&address);
    let key = far.link_accepted();
    peer.hello();
    peer.open(1, "endless", u64::MAX);
    marks.recv_timeout(PATIENCE).unwrap();
    far.handle.shutdown("the end");
    assert_eq!(far.session_ended(key), Err(SessionError::Shutdown("the end".into())));
    far.join();
}

#[test]
fn a_peer_that_reads_nothing_is_given_up_whatever_it_sends() {
    let (reached, marks) = mpsc::channel();
    let source = move || Endless::new(Pattern::new(1), 300_000, reached.clone());
    let limit = Duration::from_millis(500);
    let (mut far, address) = far_with(source, Config { silence_limit: limit, ..Config::default() });
    let mut peer = Raw::narrow(&address);
    let key = far.link_accepted();
    peer.hello();
    peer.open(1, "endless", u64::MAX / 4);
    marks.recv_timeout(PATIENCE).unwrap();
    let (stream, until) = (peer.stream.try_clone().unwrap(), Arc::new(AtomicBool::new(false)));
    let saying = thread::spawn(move || say_on(stream, &until));
    assert_eq!(far.session_ended(key), Err(SessionError::Unread(limit)));
    saying.join().unwrap();
}

/// Anything but silent, until it is told to stop or nobody listens any more.
fn say_on(mut stream: TcpStream, stop: &AtomicBool) {
    let credit = |n| Credit { stream: 1, consumed: 0, limit: u64::MAX / 2 + n };
    let say = |n| packet(Procedure::Credit, PacketType::Message, 0, Status::Ok, &credit(n));
    (0..)
        .take_while(|n| !stop.load(Ordering::Relaxed) && stream.write_all(&say(*n)).is_ok())
        .for_each(|_| thread::yield_now());
}

#[test]
fn one_that_was_given_up_has_no_turns_while_it_does_not_take_what_waits_for_it() {
    let (reached, marks) = mpsc::channel();
    let targets = Offer(move |_: &Request<'_>| {
        Decision::Accept(Box::new(Endless::new(Pattern::new(1), 300_000, reached.clone())))
    });
    let (tell, told) = mpsc::channel();
    let mut dispatcher = Dispatcher::new(move |report| drop(tell.send(report))).unwrap();
    let listener = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), Permissions::default()).unwrap();
    let address = listener.address().clone();
    let config = Config { silence_limit: Duration::from_millis(500), ..Config::default() };
    dispatcher.handle().listen(listener, SessionOptions { targets: Arc::new(targets), config, ..Default::default() });
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let peer = thread::spawn(move || {
        let mut peer = Raw::narrow(&address);
        peer.hello();
        peer.open(1, "endless", u64::MAX / 4);
        marks.recv_timeout(PATIENCE).unwrap();
        say_on(peer.stream.try_clone().unwrap(), &stopped);
        peer
    });
    let mut events = mio::Events::with_capacity(8);
    let has_ended = |report| matches!(report, Report::SessionEnded { cause: Err(SessionError::Unread(_)), .. });
    while !told.try_iter().any(has_ended) {
        dispatcher.turn(&mut events, Some(PATIENCE)).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let _reading_nothing = peer.join().unwrap();
    dispatcher.handle().shutdown("the end");
    let mut turns = 0;
    while !dispatcher.is_over() {
        dispatcher.turn(&mut events, Some(PATIENCE)).unwrap();
        turns += 1;
    }
    assert!(turns < 100, "{turns} turns for nothing");
}

#[test]
fn a_flood_of_what_changes_nothing_ends_its_session_and_no_other() {
    let message = |procedure, body: &dyn Fn(Procedure) -> Vec<u8>| (format!("{procedure:?}"), body(procedure));
    let ping = |procedure| packet(procedure, PacketType::Message, 0, Status::Ok, &Ping { token: 1 });
    let credit = |stream| {
        packet(Procedure::Credit, PacketType::Message, 0, Status::Ok, &Credit { stream, consumed: 0, limit: 0 })
    };
    let stop = |stream| packet(Procedure::Stop, PacketType::Message, 0, Status::Ok, &Stop { stream });
    let (mut far, address) = far();
    let mut other = Raw::connect(&address);
    let _ = far.link_accepted();
    other.hello();
    for (what, one) in [
        message(Procedure::Ping, &ping),
        message(Procedure::Pong, &ping),
        ("CREDIT that raises nothing".into(), credit(3)),
        ("CREDIT for a stream that is over".into(), credit(1)),
        ("STOP said again".into(), stop(3)),
        ("STOP for a stream that is over".into(), stop(1)),
    ] {
        let mut peer = Raw::connect(&address);
        let key = far.link_accepted();
        peer.hello();
        peer.open(1, "it", 0);
        let _: OpenReply = peer.expect(Procedure::Open, PacketType::Reply, 1, Status::Ok);
        peer.send(Procedure::Data, PacketType::Stream, 1, Status::Error, &RemoteError::new(1, 1, "over"));
        peer.open(3, "it", 0);
        let _: OpenReply = peer.expect(Procedure::Open, PacketType::Reply, 3, Status::Ok);
        let flood = one.repeat(10_000);
        let mut writer = peer.stream.try_clone().unwrap();
        let saying = thread::spawn(move || while writer.write_all(&flood).is_ok() {});
        match far.session_ended(key) {
            Err(SessionError::PeerMisbehaved { rule, .. }) => assert_eq!(rule, Rule::Flood, "{what}"),
            ended => panic!("{what}: {ended:?}"),
        }
        saying.join().unwrap();
        other.ping();
    }
}

#[test]
fn streams_that_are_opened_and_reset_in_turn_are_soon_refused_and_no_other_session_waits() {
    // Fewer than any machine takes.
    let (mut far, address) = far_with(|| Custom::new().0, Config { max_opens: 1000, ..Config::default() });
    let mut other = Raw::connect(&address);
    let _ = far.link_accepted();
    other.hello();
    let mut peer = Raw::connect(&address);
    let _ = far.link_accepted();
    peer.hello();
    let mut reader = peer.stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        for n in 0..60_000 {
            peer.open(2 * n + 1, "it", 0);
            peer.send(Procedure::Data, PacketType::Stream, 2 * n + 1, Status::Error, &RemoteError::new(1, 1, "over"));
        }
        peer
    });
    let refused = std::iter::repeat_with(|| {
        let mut head = [0; HEADER_LEN];
        reader.read_exact(&mut head).expect("a packet in time");
        let (length, header) = Header::decode(&head);
        let mut payload = vec![0; length as usize - HEADER_LEN];
        reader.read_exact(&mut payload).expect("a whole packet in time");
        (header, payload)
    });
    let code = refused
        .filter(|(header, _)| {
            header.packet_status() == Some(Status::Error) && header.packet_type() == Some(PacketType::Reply)
        })
        .map(|(_, payload)| virbistream::wire::decode_body::<RemoteError>(&payload).unwrap().code)
        .next();
    assert_eq!(code, Some(codes::RESOURCE_BUSY));
    other.ping();
    thread::spawn(move || while matches!(reader.read(&mut [0; 65_536]), Ok(1..)) {});
    let peer = writing.join().unwrap();
    peer.shut();
    other.ping();
}

#[test]
fn streams_asked_for_too_often_are_refused_and_the_session_goes_on() {
    let far = Node::start();
    let config = Config { max_opens: 5, ..Config::default() };
    let address = far.listen(SessionOptions { config, ..SessionOptions::default() });
    let mut peer = Raw::connect(&address);
    peer.hello();
    let mut refused = Vec::new();
    for n in 0..100 {
        peer.open(2 * n + 1, "it", 0);
        let error: RemoteError = peer.expect(Procedure::Open, PacketType::Reply, 2 * n + 1, Status::Error);
        refused.push(error.code);
    }
    assert_eq!(refused[..20], [codes::DEVICE_MISSING; 20]);
    assert!(refused.iter().filter(|code| **code == codes::RESOURCE_BUSY).count() > 50, "{refused:?}");
    peer.ping();
}

#[test]
fn refusals_that_are_never_read_end_the_session() {
    let mut far = Node::start();
    let address = far.listen(SessionOptions::default());
    let mut peer = Raw::narrow(&address);
    let key = far.link_accepted();
    peer.hello();
    // Until the kernel holds no more, and 256 of ours; and until the link is closed, soon after.
    let target = "x".repeat(255);
    let mut writer = peer.stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        let deadline = Instant::now() + PATIENCE;
        (0..).take_while(|_| Instant::now() < deadline).any(|n| {
            let open = virbistream::wire::Open { target: target.clone(), ..Default::default() };
            writer.write_all(&packet(Procedure::Open, PacketType::Call, 2 * n + 1, Status::Ok, &open)).is_err()
        })
    });
    let Err(SessionError::PeerMisbehaved { rule, .. }) = far.session_ended(key) else { panic!() };
    assert_eq!(rule, Rule::OpenFlood);
    assert!(writing.join().unwrap(), "the link is not closed");
}

#[test]
fn a_legacy_peer_is_known_by_its_answer_to_hello() {
    let mut near = Node::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    for code in [codes::RPC, codes::NO_SUPPORT] {
        let socket = Socket::connect(&address, PATIENCE).unwrap();
        let key = near.handle.attach(socket, Side::Connecting, SessionOptions::default());
        let mut peer = Raw::from(listener.accept().unwrap().0);
        let (header, _) = peer.receive();
        assert_eq!((header.packet_type(), header.packet_status()), (Some(PacketType::Call), Some(Status::Ok)));
        let error = RemoteError::new(code, 7, "Prozedur nicht bekannt").with_ints(-1, -1);
        peer.send(Procedure::Hello, PacketType::Reply, header.serial, Status::Error, &error);
        assert_eq!(peer.rest(), [], "HELLO was all");
        let told = near.wait("a legacy peer", |report| match report {
            Report::Legacy { session, error } if *session == key => Some(error.clone()),
            _ => None,
        });
        assert_eq!(told, error);
        assert_eq!(near.session_ended(key), Ok(()));
    }
}

#[test]
fn a_peer_that_does_not_answer_hello_is_given_up() {
    let mut near = Node::start();
    let (ours, mut theirs) = tcp_link();
    let config = Config { hello_timeout: Some(Duration::from_millis(100)), ..Config::default() };
    let options = SessionOptions { config, ..SessionOptions::default() };
    let key = near.handle.attach(Socket::from_tcp(ours).unwrap(), Side::Connecting, options);
    assert_eq!(near.session_ended(key), Err(SessionError::HelloTimeout(Duration::from_millis(100))));
    let mut said = Vec::new();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.read_to_end(&mut said).unwrap();
    assert_eq!(said.len(), HEADER_LEN + 36, "HELLO was all");
}
