//! Clients of libvirt's own RPC at a dispatcher that knows none of their programs: each gets libvirt's answer, and costs
//! nobody else anything.

mod io_support;

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{Address, Decision, Handler, Request, SessionOptions};
use virbistream::proto::{Config, SessionError};
use virbistream::wire::{
    Close, Decoder, Header, Hello, Limits, OpenReply, PACKET_MAX, PROGRAM, PacketType, Piece, Procedure, Status, close,
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

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

/// What libvirt answers to procedure 9999 of its remote program, to program 0x20001234 version 1, and to a program and
/// a version whose numbers are negative when they are signed.
const ANSWERS: [(u32, u32, u32, &str); 3] = [
    (
        PROGRAM,
        1,
        9999,
        "
        00000088 20008086 00000001 0000270f 00000001 00000003 00000001 00000027 00000007
        00000001 00000017 756e6b6e 6f776e20 70726f63 65647572 653a2039 39393900 00000002 00000000
        00000001 00000002 25730000 00000001 00000017 756e6b6e 6f776e20 70726f63 65647572 653a2039 39393900
        00000000 ffffffff ffffffff 00000000",
    ),
    (
        0x2000_1234,
        1,
        1,
        "
        000000a8 20001234 00000001 00000001 00000001 00000003 00000001 00000027 00000007
        00000001 00000027 43616e6e 6f742066 696e6420 70726f67 72616d20 35333638 37353537 32207665 7273696f 6e203100
        00000002 00000000 00000001 00000002 25730000
        00000001 00000027 43616e6e 6f742066 696e6420 70726f67 72616d20 35333638 37353537 32207665 7273696f 6e203100
        00000000 ffffffff ffffffff 00000000",
    ),
    (
        0xdead_beef,
        0xffff_ffff,
        1,
        "
        000000b0 deadbeef ffffffff 00000001 00000001 00000003 00000001 00000027 00000007
        00000001 00000029 43616e6e 6f742066 696e6420 70726f67 72616d20
        2d353539 30333837 33372076 65727369 6f6e202d 31000000
        00000002 00000000 00000001 00000002 25730000
        00000001 00000029 43616e6e 6f742066 696e6420 70726f67 72616d20
        2d353539 30333837 33372076 65727369 6f6e202d 31000000
        00000000 ffffffff ffffffff 00000000",
    ),
];

/// Calls in libvirt's way, and judges the answer byte by byte.
#[track_caller]
fn expect_libvirts_answers(peer: &mut Raw) {
    for (program, version, procedure, answer) in ANSWERS {
        peer.say(&legacy_call(program, version, procedure, 3));
        assert_eq!(peer.receive_bytes(), from_hex(answer));
    }
}

#[test]
fn legacy_calls_are_answered_as_libvirt_does_and_hello_is_taken_afterwards() {
    let (mut far, address) = far();
    let mut peer = Raw::connect(&address);
    expect_libvirts_answers(&mut peer);
    // With arguments, in pieces.
    let call = Header { program: PROGRAM, version: 1, procedure: 9999, kind: 0, serial: 3, status: 0 };
    let call = [&call.encode(100)[..], &[0; 100]].concat();
    for piece in call.chunks(33) {
        peer.say(piece);
    }
    assert_eq!(peer.receive_bytes(), from_hex(ANSWERS[0].3));
    peer.hello();
    let key = far.link_accepted();
    far.established(key);
    // And while the session stands.
    peer.open(1, "it", 0);
    peer.expect::<OpenReply>(Procedure::Open, PacketType::Reply, 1, Status::Ok);
    peer.data(1, b"between");
    expect_libvirts_answers(&mut peer);
    peer.data(1, b"calls");
    peer.ping();
    drop(peer);
    let id = far.opened(key);
    assert_eq!(far.ended(key, id).1.consumed, 12);
}

#[test]
fn legacy_packets_that_are_no_calls_are_passed_over_in_silence() {
    let (_far, address) = far();
    let mut peer = Raw::connect(&address);
    let call = Header { program: PROGRAM, version: 1, procedure: 9999, kind: 0, serial: 3, status: 0 };
    for kind in [1, 2, 3, 5, 6, 7, 0xffff_ffff] {
        for status in [0, 1, 2, 9] {
            for program in [PROGRAM, 0x6b65_6570, 0xdead_beef] {
                peer.say(&Header { program, kind, status, ..call }.encode(8));
                peer.say(&[0xff; 8]);
            }
        }
    }
    // Had one of them been answered, that would stand before the answer to this.
    expect_libvirts_answers(&mut peer);
    peer.hello();
    peer.ping();
}

#[test]
fn many_calls_at_once_are_all_answered() {
    let (_far, address) = far();
    let mut peer = Raw::connect(&address);
    let calls: Vec<u8> = (0..1000).flat_map(|serial| legacy_call(PROGRAM, 1, 9999, serial)).collect();
    let mut writer = peer.stream.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&calls).unwrap());
    for serial in 0..1000 {
        let (header, _) = peer.receive();
        assert_eq!((header.procedure, header.serial), (9999, serial));
    }
    writing.join().unwrap();
    peer.hello();
}

/// However full the link is when the calls come.
#[test]
fn one_who_calls_beside_bulk_and_reads_gets_every_answer() {
    const CALLS: u32 = 20_000;
    let (reached, full) = mpsc::channel();
    let (_far, address) = far_with(
        move || Endless::new(Pattern::new(1), 1, reached.clone()),
        Config { silence_limit: Duration::from_secs(3600), ..Config::default() },
    );
    let mut peer = Raw::connect(&address);
    peer.hello();
    peer.open(1, "it", u64::MAX);
    full.recv_timeout(PATIENCE).unwrap();
    let calls: Vec<u8> = (0..CALLS).flat_map(|serial| legacy_call(PROGRAM, 1, 9999, serial)).collect();
    let mut writer = peer.stream.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&calls).unwrap());
    let mut answered = 0;
    while answered < CALLS {
        let (header, _) = peer.receive();
        if header.procedure == 9999 {
            assert_eq!(header.serial, answered);
            answered += 1;
        }
    }
    writing.join().unwrap();
}

#[test]
fn what_the_last_packet_is_owed_reaches_one_who_has_finished_writing() {
    type Act<'a> = &'a dyn Fn(&mut Raw);
    let cases: [(&str, Act<'_>); 3] = [
        ("an answer", &|peer| peer.say(&legacy_call(PROGRAM, 1, 9999, 5))),
        ("a refusal of HELLO", &|peer| {
            let limits = Limits { max_data: 262_120, max_streams: 16 };
            let hello = Hello { min_version: 7, max_version: 9, offered: 0, needed: 0, limits, extensions: vec![] };
            peer.send(Procedure::Hello, PacketType::Call, 1, Status::Ok, &hello);
        }),
        ("CLOSE", &|peer| {
            peer.hello();
            peer.data(99, b"x");
        }),
    ];
    for (what, act) in cases {
        let (_far, address) = far();
        let mut peer = Raw::connect(&address);
        act(&mut peer);
        peer.shut();
        assert_ne!(peer.rest(), [], "{what}");
    }
}

/// A legacy packet and a header in pieces are no packets of the session's, and yet the peer lives.
#[test]
fn bytes_of_any_kind_are_a_sign_of_life() {
    let config = Config {
        ping_interval: Duration::from_millis(50),
        silence_limit: Duration::from_millis(1000),
        ..Config::default()
    };
    let (mut far, address) = far_with(|| Custom::new().0, config);
    let mut peer = Raw::connect(&address);
    peer.hello();
    let key = far.link_accepted();
    let upload = Header { program: PROGRAM, version: 1, procedure: 300, kind: 3, serial: 9, status: 2 }.encode(1 << 20);
    peer.say(&upload);
    // A piece for each PING, of which there are twenty in the time that silence may last.
    for _ in 0..60 {
        let (header, _) = peer.receive();
        assert_eq!(header, ours(Procedure::Ping, PacketType::Message, 0, Status::Ok));
        peer.say(&[0; 9]);
    }
    drop(peer);
    assert!(matches!(far.session_ended(key), Err(SessionError::LinkLost(_))));
}

#[test]
fn one_who_calls_on_and_never_reads_the_answers_is_dropped() {
    let config = Config { silence_limit: Duration::from_millis(300), ..Config::default() };
    let (mut far, address) = far_with(|| Custom::new().0, config);
    let mut peer = Raw::connect(&address);
    let calls: Vec<u8> = (0..1000).flat_map(|serial| legacy_call(PROGRAM, 1, 9999, serial)).collect();
    let key = far.link_accepted();
    // Far more than the answers' way through the kernel can hold, on both sides.
    let dropped = (0..10_000).find_map(|_| peer.stream.write_all(&calls).err()).expect("dropped");
    assert!(matches!(dropped.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{dropped}");
    let Err(SessionError::LinkLost(how)) = far.session_ended(key) else { panic!() };
    assert!(how.contains("without reading"), "{how}");
    drop(peer);
    assert!(far.stop().bytes_max < 4 << 20);
}

/// One that reads as slowly as this, and calls without a pause.
fn flood(peer: &Raw, read: impl Fn(&[u8]) -> bool) {
    let calls: Vec<u8> = (0..1000).flat_map(|serial| legacy_call(PROGRAM, 1, 9999, serial)).collect();
    let (mut writer, mut reader) = (peer.stream.try_clone().unwrap(), peer.stream.try_clone().unwrap());
    thread::scope(|scope| {
        scope.spawn(move || while writer.write_all(&calls).is_ok() {});
        let mut piece = vec![0; 20_000];
        while let Ok(len @ 1..) = reader.read(&mut piece) {
            if !read(&piece[..len]) {
                break;
            }
        }
        reader.shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn one_who_calls_on_and_reads_slowly_keeps_its_streams() {
    let (_far, address) = far_with(
        || Endless::new(Pattern::new(1), usize::MAX, mpsc::channel().0),
        Config { silence_limit: Duration::from_secs(3600), ..Config::default() },
    );
    let mut peer = Raw::connect(&address);
    peer.hello();
    peer.open(1, "it", u64::MAX);
    let (mut decoder, data, answers) = (Decoder::new(PACKET_MAX), Cell::new(0u64), Cell::new(0u64));
    let decoder = RefCell::new(&mut decoder);
    flood(&peer, |mut bytes| {
        while let Some(piece) = decoder.borrow_mut().decode(&mut bytes).unwrap() {
            if let Piece::Header { header, payload_len } = piece {
                let of = if header.procedure == 9999 { &answers } else { &data };
                of.set(of.get() + u64::from(payload_len));
            }
        }
        // The pace of a peer that is slower than what is sent to it.
        thread::sleep(Duration::from_millis(1));
        data.get() + answers.get() < 10 << 20
    });
    assert!(data.get() >= 3 << 20, "{} bytes of data beside {} of answers", data.get(), answers.get());
}

#[test]
fn behind_close_nothing_is_answered() {
    let (_far, address) = far();
    let mut peer = Raw::connect(&address);
    peer.hello();
    let calls: Vec<u8> = (0..100).flat_map(|serial| legacy_call(PROGRAM, 1, 9999, serial)).collect();
    peer.say(&[calls, data_packet(99, b"of no stream")].concat());
    assert_eq!(peer.closed().code, close::VIOLATION);
}

#[test]
fn hello_has_its_time_however_much_is_called() {
    let config = Config { hello_timeout: Some(Duration::from_millis(300)), ..Config::default() };
    let (mut far, address) = far_with(|| Custom::new().0, config);
    let peer = Raw::connect(&address);
    let key = far.link_accepted();
    let deadline = Instant::now() + PATIENCE;
    flood(&peer, |_| Instant::now() < deadline);
    assert!(matches!(far.session_ended(key), Err(SessionError::HelloTimeout(_))));
}

#[test]
fn calls_that_came_before_the_end_of_the_session_are_answered() {
    const CALLS: u32 = 7300;
    let (mut far, address) = far();
    let mut peer = Raw::connect(&address);
    let key = far.link_accepted();
    let calls: Vec<u8> = (0..CALLS).flat_map(|serial| legacy_call(PROGRAM, 1, 9999, serial)).collect();
    let done = Close { code: close::DONE, rule: 0, text: String::new() };
    let bytes = [hello(), calls, packet(Procedure::Close, PacketType::Message, 0, Status::Ok, &done)].concat();
    let mut writer = peer.stream.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&bytes).unwrap());
    let mut answers = 0;
    while answers < CALLS {
        answers += u32::from(peer.receive().0.procedure == 9999);
    }
    writing.join().unwrap();
    assert_eq!(far.session_ended(key), Ok(()));
}

#[test]
fn arguments_of_calls_that_nobody_takes_are_not_kept() {
    const LEN: usize = 4 << 20;
    let far = Node::without_reports();
    let address = far.listen(SessionOptions::default());
    for kind in [PacketType::Call, PacketType::CallWithFds] {
        let mut peer = Raw::connect(&address);
        let status = Status::Ok.as_wire();
        let header = Header { program: PROGRAM, version: 1, procedure: 9999, kind: kind.as_wire(), serial: 7, status };
        let call = [&header.encode(LEN as u32)[..], &vec![0; LEN]].concat();
        peer.say(&call[..LEN]);
        // Not before the whole call is there, as libvirt does.
        peer.stream.set_nonblocking(true).unwrap();
        assert_eq!(peer.stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        peer.stream.set_nonblocking(false).unwrap();
        peer.say(&call[LEN..]);
        let (answer, _) = peer.receive();
        let reply = PacketType::Reply.as_wire();
        assert_eq!(answer, Header { kind: reply, status: Status::Error.as_wire(), ..header });
        // And the next is understood.
        expect_libvirts_answers(&mut peer);
    }
    let used = far.stop().bytes_max;
    assert!(used < 2 << 20, "{used} bytes held for calls of {LEN}");
}

#[test]
fn a_call_that_nobody_takes_must_not_announce_descriptors_either() {
    let (mut far, address) = far();
    let mut peer = Raw::connect(&address);
    let (kind, status) = (PacketType::CallWithFds.as_wire(), Status::Ok.as_wire());
    let header = Header { program: PROGRAM, version: 1, procedure: 9999, kind, serial: 7, status };
    peer.say(&[&header.encode(8)[..], &1u32.to_be_bytes(), b"args"].concat());
    assert_eq!(peer.rest(), []);
    let key = far.link_accepted();
    assert!(matches!(far.session_ended(key), Err(SessionError::LinkLost(_))));
}
