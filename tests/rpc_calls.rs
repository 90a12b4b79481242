//! Calls of libvirt's RPC: between a client and a server of ours, from a real virsh, and answered byte for byte as a real
//! libvirtd 9.0 does.

mod rpc_support;

use std::time::Duration;

use rpc_support::*;
use virbistream::rpc::{
    CallError, ClientEvent, Direction, LinkError, ProcedureId, Programs, ServerEvent, StreamEvent, StreamOptions,
    decode_arguments,
};
use virbistream::wire::{Header, RemoteError, codes, domains};

const OPEN: ProcedureId = remote(1);
const VERSION: ProcedureId = remote(4);

/// Answers all calls that have come, as a daemon with one procedure would.
fn answer(pair: &mut Pair, programs: &Programs<&'static [u8]>) {
    pair.server.take_events();
    for event in std::mem::take(&mut pair.server.events) {
        let ServerEvent::Call(call) = event else { panic!("{event:?}") };
        match programs.find(call.procedure) {
            Ok(body) => pair.server.rpc.answer(call.id, Ok(body)),
            Err(error) => pair.server.rpc.answer(call.id, Err(&error)),
        }
    }
}

fn programs() -> Programs<&'static [u8]> {
    let mut programs = Programs::new();
    assert_eq!(programs.add(VERSION, &[0, 0, 0, 0, 0, 106, 215, 166][..]), None);
    programs
}

fn answered(event: ClientEvent) -> (virbistream::rpc::CallId, Result<Vec<u8>, CallError>) {
    match event {
        ClientEvent::Answered { call, answer } => (call, answer),
        other => panic!("{other:?}"),
    }
}

#[test]
fn calls_are_matched_with_their_answers_in_whatever_order_they_come() {
    for piece in [1, 29, usize::MAX] {
        let mut pair = Pair::new(piece);
        let calls: Vec<_> =
            (0..5u8).map(|n| pair.client.rpc.call(pair.now, VERSION, &[n; 4], MINUTE).unwrap()).collect();
        pair.settle();
        let mut came: Vec<_> = std::mem::take(&mut pair.server.events);
        came.reverse();
        for event in came {
            let ServerEvent::Call(call) = event else { panic!() };
            pair.server.rpc.answer(call.id, Ok(&call.arguments));
            // A second time it is passed over.
            pair.server.rpc.answer(call.id, Ok(b"again"));
        }
        pair.settle();
        let answers: Vec<_> = std::mem::take(&mut pair.client.events).into_iter().map(answered).collect();
        let expected: Vec<_> = calls.iter().zip(0..5u8).rev().map(|(call, n)| (*call, Ok(vec![n; 4]))).collect();
        assert_eq!(answers, expected);
    }
}

#[test]
fn an_error_is_a_typed_value_and_bodies_may_be_long() {
    let mut pair = Pair::new(100_000);
    pair.client.rpc.call(pair.now, OPEN, &vec![7; 1 << 20], MINUTE).unwrap();
    pair.settle();
    let call = pair.call();
    assert_eq!(call.arguments, vec![7; 1 << 20]);
    let error = RemoteError::new(codes::AUTH_FAILED, domains::RPC, "who are you?");
    pair.server.rpc.answer(call.id, Err(&error));
    pair.settle();
    let (_, answer) = answered(pair.client.events.remove(0));
    assert_eq!(answer, Err(CallError::Remote(Box::new(error))));

    pair.client.rpc.call(pair.now, OPEN, b"", MINUTE).unwrap();
    pair.settle();
    let call = pair.call();
    let long = vec![9; 33_554_436 - 28];
    pair.server.rpc.answer(call.id, Ok(&long));
    pair.settle();
    assert_eq!(answered(pair.client.events.remove(0)).1, Ok(long));
    // One byte more is more than a packet.
    pair.client.rpc.call(pair.now, OPEN, b"", MINUTE).unwrap();
    pair.settle();
    let call = pair.call();
    pair.server.rpc.answer(call.id, Ok(&vec![9; 33_554_436 - 27]));
    pair.settle();
    assert!(matches!(answered(pair.client.events.remove(0)).1, Err(CallError::Remote(_))));
    let too_long = pair.client.rpc.call(pair.now, OPEN, &vec![9; 33_554_436 - 27], MINUTE);
    assert_eq!(too_long, Err(CallError::TooLong));
}

#[test]
fn a_reply_answers_the_call_that_it_names_and_no_other() {
    let mut pair = Pair::new(usize::MAX);
    pair.client.rpc.call(pair.now, VERSION, b"", MINUTE).unwrap();
    let reply = Header { program: 0x2000_8086, version: 1, procedure: 4, kind: 1, serial: 1, status: 0 };
    for other in [Header { procedure: 5, ..reply }, Header { program: 7, ..reply }, Header { serial: 2, ..reply }] {
        pair.down(&other.encode(0));
        assert!(pair.client.events.is_empty());
    }
    pair.down(&reply.encode(0));
    assert_eq!(pair.client.events.len(), 1);
}

#[test]
fn a_call_has_its_time_and_a_late_answer_is_passed_over() {
    let mut pair = Pair::new(usize::MAX);
    let late = pair.client.rpc.call(pair.now, VERSION, b"", Duration::from_secs(1)).unwrap();
    let patient = pair.client.rpc.call(pair.now, VERSION, b"", Duration::MAX).unwrap();
    pair.settle();
    assert_eq!(pair.client.rpc.poll_timeout(), Some(pair.now + Duration::from_secs(1)));
    pair.client.rpc.handle_timeout(pair.now + Duration::from_millis(999));
    assert_eq!(pair.client.rpc.poll_event(), None);
    pair.client.rpc.handle_timeout(pair.now + Duration::from_secs(1));
    pair.client.take_events();
    assert_eq!(answered(pair.client.events.remove(0)), (late, Err(CallError::Timeout)));
    answer(&mut pair, &programs());
    pair.settle();
    assert!(matches!(answered(pair.client.events.remove(0)), (call, Ok(_)) if call == patient));
    assert!(pair.client.events.is_empty());
}

#[test]
fn a_lost_link_answers_all_calls() {
    let mut pair = Pair::new(usize::MAX);
    let call = pair.client.rpc.call(pair.now, VERSION, b"", MINUTE).unwrap();
    pair.settle();
    let incoming = pair.call();
    pair.client.rpc.handle_link_lost();
    pair.server.rpc.handle_link_lost();
    pair.client.take_events();
    assert_eq!(answered(pair.client.events.remove(0)), (call, Err(CallError::LinkLost)));
    assert_eq!(pair.client.rpc.poll_timeout(), None);
    pair.server.rpc.answer(incoming.id, Ok(b"too late"));
    let options = StreamOptions::new(Direction::Sending);
    assert_eq!(pair.server.rpc.answer_with_stream(incoming.id, b"", options), None);
    assert!(pair.server.packets().is_empty());
}

#[test]
fn events_reach_the_client_unasked() {
    let mut pair = Pair::new(3);
    assert!(pair.server.rpc.message(remote(107), b"it happened!"));
    pair.settle();
    let expected = ClientEvent::Message { procedure: remote(107), body: b"it happened!".to_vec() };
    assert_eq!(pair.client.events, [expected]);
}

#[test]
fn keepalive_is_answered_at_both_ends() {
    let ping = Header { program: 0x6b65_6570, version: 1, procedure: 1, kind: 2, serial: 9, status: 0 };
    let pong = Header { procedure: 2, serial: 0, ..ping }.encode(0);
    let mut pair = Pair::new(1);
    // A PING of a bad status is one all the same, and its answer a good one.
    for status in [0, 3] {
        pair.up(&Header { status, ..ping }.encode(0));
        assert_eq!(pair.server.packets(), pong);
        pair.down(&Header { status, ..ping }.encode(0));
        assert_eq!(pair.client.packets(), pong);
    }
    for other in [Header { procedure: 2, ..ping }, Header { procedure: 7, ..ping }] {
        pair.up(&other.encode(0));
        pair.down(&other.encode(0));
    }
    assert!(pair.client.packets().is_empty() && pair.server.packets().is_empty());
}

#[test]
fn arguments_of_unanswered_calls_are_bounded() {
    let mut pair = Pair::new(usize::MAX);
    let arguments = vec![0; 30 << 20];
    for _ in 0..3 {
        pair.client.rpc.call(pair.now, remote(5), &arguments, MINUTE).unwrap();
        pair.settle();
    }
    assert_eq!(pair.server.events.len(), 2, "the third is too much");
    assert!(matches!(&pair.client.events[..], [ClientEvent::Answered { answer: Err(CallError::Remote(error)), .. }]
        if error.code == codes::RESOURCE_BUSY));
    let call = pair.call();
    pair.server.rpc.answer(call.id, Ok(b""));
    pair.client.rpc.call(pair.now, remote(5), &arguments, MINUTE).unwrap();
    pair.settle();
    assert_eq!(pair.server.events.len(), 2, "and then there is room");
}

#[test]
fn one_pong_stands_for_all_that_are_owed() {
    let ping = Header { program: 0x6b65_6570, version: 1, procedure: 1, kind: 2, serial: 0, status: 0 };
    let mut pair = Pair::new(usize::MAX);
    for _ in 0..1000 {
        pair.up(&ping.encode(0));
        pair.down(&ping.encode(0));
    }
    let pong = Header { procedure: 2, ..ping }.encode(0);
    assert_eq!((pair.client.rpc.waiting(), pair.server.rpc.waiting()), (28, 28));
    // It goes between two packets, never within one.
    assert!(pair.server.rpc.message(remote(1), &[5; 100]));
    let mut room = [0; 50];
    assert_eq!(pair.server.rpc.poll_packets(&mut room, 40), 50);
    assert_eq!(room[..28], pong);
    pair.up(&ping.encode(0));
    let rest = pair.server.packets();
    assert_eq!(rest.len(), 128 - 22 + 28);
    assert_eq!(rest[rest.len() - 28..], pong);
    assert_eq!(pair.client.packets(), pong);
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

/// What a libvirtd 9.0 answers to a call that it cannot take: the text, where it stands in the error.
fn libvirts_error(header: &Header, text: &str) -> Vec<u8> {
    let padded = |text: &str| {
        let mut bytes = [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let body = [
        from_hex("00000027 00000007 00000001"),
        padded(text),
        from_hex("00000002 00000000 00000001"),
        padded("%s"),
        from_hex("00000001"),
        padded(text),
        from_hex("00000000 ffffffff ffffffff 00000000"),
    ]
    .concat();
    [&Header { kind: 1, status: 1, ..*header }.encode(body.len() as u32)[..], &body].concat()
}

#[test]
fn calls_that_cannot_be_taken_are_answered_as_libvirt_answers_them() {
    let call = Header { program: 0x2000_8086, version: 1, procedure: 4, kind: 0, serial: 3, status: 0 };
    let cases = [
        (Header { procedure: 9999, ..call }, "unknown procedure: 9999"),
        (Header { procedure: 0x4253_0001, ..call }, "unknown procedure: 1112735745"),
        (Header { procedure: u32::MAX, ..call }, "unknown procedure: -1"),
        (Header { version: 2, ..call }, "Cannot find program 536903814 version 2"),
        (Header { program: 0xdead_beef, ..call }, "Cannot find program -559038737 version 1"),
        (Header { program: 0x6b65_6570, procedure: 1, ..call }, "Cannot find program 1801807216 version 1"),
        (Header { status: 1, ..call }, "Unexpected message status 1"),
        (Header { status: 9, procedure: 9999, ..call }, "Unexpected message status 9"),
    ];
    for (header, text) in cases {
        for body in [&b""[..], &[0; 40]] {
            let mut pair = Pair::new(7);
            pair.up(&[&header.encode(body.len() as u32)[..], body].concat());
            answer(&mut pair, &programs());
            assert_eq!(pair.server.packets(), libvirts_error(&header, text), "{text}");
        }
    }
    // Arguments that do not decode, and those that others follow.
    let error = decode_arguments::<u64>(&[0; 7]).unwrap_err();
    let mut pair = Pair::new(7);
    pair.up(&call.encode(0));
    let incoming = pair.call();
    pair.server.rpc.answer(incoming.id, Err(&error));
    assert_eq!(pair.server.packets(), libvirts_error(&call, "Unable to decode message payload"));
    assert_eq!(decode_arguments::<u64>(&[0, 0, 0, 0, 0, 0, 0, 9, 1, 2, 3]), Ok(9));
}

#[test]
fn what_is_no_call_is_answered_by_nothing() {
    let call = Header { program: 0x2000_8086, version: 1, procedure: 4, kind: 0, serial: 3, status: 0 };
    for kind in [1, 2, 3, 5, 6, 7, u32::MAX] {
        for program in [0x2000_8086, 0xdead_beef] {
            for status in [0, 1, 2, 9] {
                let mut pair = Pair::new(5);
                pair.up(&[&Header { kind, program, status, ..call }.encode(8)[..], &[0xff; 8]].concat());
                pair.server.take_events();
                assert!(pair.server.packets().is_empty() && pair.server.events.is_empty());
            }
        }
    }
}

#[test]
fn a_call_with_descriptors_is_one_only_without_them() {
    let call = Header { program: 0x2000_8086, version: 1, procedure: 4, kind: 4, serial: 3, status: 0 };
    let with = |count: u32| [&call.encode(8)[..], &count.to_be_bytes(), b"args"].concat();
    let mut pair = Pair::new(1);
    pair.up(&with(0));
    let incoming = pair.call();
    assert_eq!(incoming.arguments, b"args");
    pair.server.rpc.answer(incoming.id, Ok(b""));
    assert_eq!(pair.server.packets(), Header { kind: 1, ..call }.encode(0));
    assert_eq!(pair.server.hear(&with(1), 1), Err(LinkError::Descriptors));
    let mut pair = Pair::new(1);
    assert_eq!(pair.server.hear(&call.encode(0), 1), Err(LinkError::Descriptors));
}

#[test]
fn a_client_that_is_called_closes_the_link() {
    let call = Header { program: 0x2000_8086, version: 1, procedure: 4, kind: 0, serial: 3, status: 0 };
    for (kind, error) in [(0, LinkError::CalledClient), (4, LinkError::CalledClient), (7, LinkError::PacketType(7))] {
        let mut pair = Pair::new(usize::MAX);
        assert_eq!(pair.client.hear(&Header { kind, ..call }.encode(0), 1), Err(error));
    }
}

/// What one read may bring comes on top of each bound.
#[test]
fn a_client_that_never_reads_makes_the_server_hold_no_more_than_its_bounds() {
    let mut pair = Pair::new(usize::MAX);
    let call = Header { program: 0x2000_8086, version: 1, procedure: 4, kind: 0, serial: 3, status: 0 };
    for _ in 0..256 {
        pair.up(&call.encode(0));
    }
    pair.server.take_events();
    assert_eq!(pair.server.events.len(), 256);
    pair.up(&call.encode(0));
    pair.server.take_events();
    assert_eq!(pair.server.events.len(), 256, "one more without an answer is refused");
    assert!(!pair.server.packets().is_empty());
    let mut pair = Pair::new(usize::MAX);
    let mut said = 0;
    while !pair.server.rpc.is_full() {
        pair.up(&Header { procedure: 9999, ..call }.encode(0));
        answer(&mut pair, &programs());
        said += 1;
        assert!(said < 100_000, "it is never full");
    }
    assert!(!pair.server.rpc.message(remote(107), b"not now"), "events wait with their maker");
    let held = pair.server.packets().len();
    assert!(held < (256 << 10) + 1000, "{held}");
    assert!(!pair.server.rpc.is_full());
}

const UPLOAD: &[u8] = include_bytes!("captures/vol-upload-sparse.c2s");
const DOWNLOAD: &[u8] = include_bytes!("captures/vol-download-sparse.s2c");

/// All that virsh 9.0 says for `vol-upload --sparse`.
#[test]
fn a_real_virsh_uploads_a_sparse_volume() {
    for piece in [1, 1000, usize::MAX] {
        let mut pair = Pair::new(piece);
        pair.up(UPLOAD);
        let calls: Vec<_> = std::mem::take(&mut pair.server.events)
            .into_iter()
            .map(|event| match event {
                ServerEvent::Call(call) => call,
                other => panic!("{other:?}"),
            })
            .collect();
        let procedures: Vec<u32> = calls.iter().map(|call| call.procedure.procedure).collect();
        assert_eq!(procedures, [66, 60, 1, 60, 60, 360, 84, 154, 95, 86, 208, 361, 2]);
        assert!(pair.server.came.is_empty(), "its stream was not accepted when its packets came");
        // Again, with the stream accepted in time.
        let mut pair = Pair::new(piece);
        let mut stream = None;
        for packet in packets(UPLOAD) {
            pair.up(packet);
            while let Some(ServerEvent::Call(call)) = pair.server.events.pop() {
                if call.procedure == remote(208) {
                    let options = StreamOptions { sparse: true, ..StreamOptions::new(Direction::Receiving) };
                    stream = pair.server.rpc.answer_with_stream(call.id, b"", options);
                } else {
                    pair.server.rpc.answer(call.id, Ok(b""));
                }
            }
        }
        let stream = stream.expect("it was called");
        assert_eq!(pair.server.stream_news(), [StreamEvent::Finished(stream)]);
        let came = &pair.server.came[&stream];
        assert!(
            matches!(&came[..], [Came::Bytes(head), Came::Hole(4_190_208), Came::Bytes(body), Came::Hole(4_128_768)]
            if head.starts_with(b"head") && head.len() == 4096 && body.len() == 65536)
        );
    }
}

/// All that libvirtd 9.0 says to `vol-download --sparse`, to the serials that virsh gave its calls.
#[test]
fn a_real_libvirtd_sends_a_sparse_volume() {
    for piece in [1, 1000, usize::MAX] {
        let mut pair = Pair::new(piece);
        // The tenth call of ours has the serial of virsh's.
        for n in 1..10 {
            pair.client.rpc.call(pair.now, remote(n), b"", MINUTE).unwrap();
        }
        let options = StreamOptions { sparse: true, ..StreamOptions::new(Direction::Receiving) };
        let (_, stream) = pair.client.rpc.call_with_stream(pair.now, remote(209), b"", MINUTE, options).unwrap();
        pair.client.packets();
        let mut done = false;
        for packet in packets(DOWNLOAD) {
            pair.down(packet);
            for event in pair.client.stream_news() {
                match event {
                    StreamEvent::Finished(id) => pair.client.rpc.stream(id).unwrap().finish(),
                    StreamEvent::Over(id) => {
                        assert_eq!(id, stream);
                        done = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(done);
        let came = &pair.client.came[&stream];
        assert!(matches!(&came[..], [Came::Bytes(head), Came::Hole(4_190_208), Came::Bytes(_), Came::Hole(4_128_768)]
            if head.starts_with(b"head")));
    }
}

/// The packets of a capture.
fn packets(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    while let Some(length) = bytes.first_chunk() {
        let (packet, rest) = bytes.split_at(u32::from_be_bytes(*length) as usize);
        packets.push(packet);
        bytes = rest;
    }
    packets
}
