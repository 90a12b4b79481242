//! libvirt's own streams between a client and a server of ours: both ways, holes, and every way to end.

mod rpc_support;

use rpc_support::*;
use virbistream::rpc::{
    CallError, CallId, ClientEvent, Direction, LegacyId, LinkError, StreamError, StreamEvent, StreamOptions,
};
use virbistream::wire::{Body, Header, RemoteError, codes, domains};

const DOWNLOAD: u32 = 209;
const UPLOAD: u32 = 208;
const PIECES: [usize; 4] = [1, 13, 4096, usize::MAX];

fn options(direction: Direction) -> StreamOptions {
    StreamOptions { sparse: true, limit: 10_000, ..StreamOptions::new(direction) }
}

fn flipped(direction: Direction) -> Direction {
    match direction {
        Direction::Sending => Direction::Receiving,
        Direction::Receiving => Direction::Sending,
    }
}

/// A call for a stream. `direction` is the client's.
fn begin(pair: &mut Pair, direction: Direction) -> (CallId, LegacyId) {
    let procedure = remote(if direction == Direction::Sending { UPLOAD } else { DOWNLOAD });
    pair.client.rpc.call_with_stream(pair.now, procedure, b"volume", MINUTE, options(direction)).expect("called")
}

/// A stream, and its names at the client and at the server. `direction` is the client's.
fn stream(pair: &mut Pair, direction: Direction) -> (LegacyId, LegacyId) {
    let procedure = remote(if direction == Direction::Sending { UPLOAD } else { DOWNLOAD });
    let (call, client) = begin(pair, direction);
    pair.settle();
    let incoming = pair.call();
    assert_eq!((incoming.procedure, &incoming.arguments[..]), (procedure, &b"volume"[..]));
    let server = pair.server.rpc.answer_with_stream(incoming.id, b"", options(flipped(direction))).expect("it waits");
    pair.settle();
    match pair.client.events.pop() {
        Some(ClientEvent::Answered { call: answered, answer: Ok(_) }) => {
            assert_eq!(answered, call);
            (client, server)
        }
        other => panic!("{other:?}"),
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31) >> 3) as u8).collect()
}

#[test]
fn a_download_arrives_whole_and_both_ends_say_their_last_word() {
    for piece in PIECES {
        let mut pair = Pair::new(piece);
        let (client, server) = stream(&mut pair, Direction::Receiving);
        let sent = pair.server.send(server, &bytes(50_000), 7000);
        pair.down(&sent);
        pair.server.rpc.stream(server).unwrap().finish();
        pair.settle();
        assert_eq!(pair.client.stream_news(), [StreamEvent::Finished(client)]);
        assert_eq!(pair.server.stream_news(), [], "not before the client has taken all");
        pair.client.rpc.stream(client).unwrap().finish();
        pair.settle();
        assert_eq!(pair.client.stream_news(), [StreamEvent::Over(client)]);
        assert_eq!(pair.server.stream_news(), [StreamEvent::Over(server)]);
        assert_eq!(pair.client.bytes(client), bytes(50_000));
        assert_eq!(pair.server.rpc.stream_count(), 0);
    }
}

#[test]
fn an_upload_arrives_whole_and_the_server_has_the_last_word() {
    for piece in PIECES {
        let mut pair = Pair::new(piece);
        let (client, server) = stream(&mut pair, Direction::Sending);
        let sent = pair.client.send(client, &bytes(50_000), 7000);
        pair.up(&sent);
        pair.client.rpc.stream(client).unwrap().finish();
        pair.settle();
        assert_eq!(pair.server.stream_news(), [StreamEvent::Finished(server)]);
        assert_eq!(pair.client.stream_news(), []);
        pair.server.rpc.stream(server).unwrap().finish();
        pair.settle();
        assert_eq!(pair.server.stream_news(), [StreamEvent::Over(server)]);
        assert_eq!(pair.client.stream_news(), [StreamEvent::Over(client)]);
        assert_eq!(pair.server.bytes(server), bytes(50_000));
        assert_eq!(pair.server.rpc.stream_count(), 0);
    }
}

#[test]
fn holes_keep_their_place_both_ways_and_cost_no_memory() {
    for piece in PIECES {
        let mut pair = Pair::new(piece);
        pair.client.consumes = false;
        pair.server.consumes = false;
        let whole = [Came::Bytes(b"head".to_vec()), Came::Hole(1 << 40), Came::Bytes(b"tail".to_vec()), Came::Hole(1)];
        let (client, server) = stream(&mut pair, Direction::Receiving);
        let mut sent = pair.server.send(server, b"head", 4);
        assert!(pair.server.rpc.stream(server).unwrap().send_hole(1 << 40));
        sent.extend(pair.server.send(server, b"tail", 4));
        assert!(pair.server.rpc.stream(server).unwrap().send_hole(1));
        pair.down(&sent);
        pair.settle();
        assert_eq!(pair.client.came[&client], whole);

        let (client, server) = stream(&mut pair, Direction::Sending);
        let mut sent = pair.client.send(client, b"head", 4);
        assert!(pair.client.rpc.stream(client).unwrap().send_hole(1 << 40));
        sent.extend(pair.client.send(client, b"tail", 4));
        assert!(pair.client.rpc.stream(client).unwrap().send_hole(1));
        pair.up(&sent);
        pair.settle();
        assert_eq!(pair.server.came[&server], whole);
    }
}

#[test]
fn a_client_that_has_had_enough_of_a_download_ends_it_in_order() {
    let mut pair = Pair::new(1);
    let (client, server) = stream(&mut pair, Direction::Receiving);
    pair.client.rpc.stream(client).unwrap().fail(&RemoteError::new(1, 0, "never said"));
    let sent = pair.server.send(server, &bytes(5000), 1000);
    pair.settle();
    pair.down(&sent);
    pair.settle();
    assert_eq!(pair.server.stream_news(), [StreamEvent::Failed(server, StreamError::Aborted)]);
    assert_eq!(pair.client.stream_news(), [], "of what we ended ourselves nothing is said");
    assert!(pair.client.rpc.stream(client).is_none() && pair.server.rpc.stream(server).is_none());
    assert_eq!(pair.client.bytes(client), [], "and what came behind it is passed over");
}

#[test]
fn the_servers_error_reaches_the_client_and_frees_the_stream_at_both_ends() {
    for direction in [Direction::Sending, Direction::Receiving] {
        let mut pair = Pair::new(1);
        let (client, server) = stream(&mut pair, direction);
        let error = RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, "no space left").with_ints(28, 0);
        pair.server.rpc.stream(server).unwrap().fail(&error);
        if direction == Direction::Sending {
            // The client has finished meanwhile, as libvirt's own would.
            let sent = pair.client.send(client, b"more", 4);
            pair.client.rpc.stream(client).unwrap().finish();
            pair.up(&sent);
        }
        pair.settle();
        assert_eq!(pair.client.stream_news(), [StreamEvent::Failed(client, StreamError::Remote(Box::new(error)))]);
        assert_eq!(pair.server.stream_news(), []);
        assert!(pair.client.rpc.stream(client).is_none());
        assert_eq!(pair.server.rpc.stream_count(), 0, "{direction:?}: the client had the last word");
    }
}

#[test]
fn one_whose_consumer_takes_too_little_is_aborted_alone() {
    for piece in [100, 4096] {
        let mut pair = Pair::new(piece);
        pair.client.consumes = false;
        let (slow, slow_there) = stream(&mut pair, Direction::Receiving);
        let (other, other_there) = stream(&mut pair, Direction::Receiving);
        // Up to the limit it waits, and goes on whole.
        let sent = pair.server.send(slow_there, &bytes(10_000), 1000);
        pair.down(&sent);
        assert_eq!(pair.client.stream_news(), []);
        pair.client.rpc.stream(slow).unwrap().consumed(10_000);
        let sent = pair.server.send(slow_there, &bytes(10_000), 1000);
        pair.down(&sent);
        assert_eq!(pair.client.stream_news(), []);
        // Beyond it by one read it does not.
        let sent = pair.server.send(slow_there, &bytes(2 * piece.max(1000) + 1), 1000);
        pair.down(&sent);
        assert_eq!(
            pair.client.stream_news(),
            [StreamEvent::Failed(slow, StreamError::Overrun { limit: 10_000 })],
            "pieces of {piece}"
        );
        assert!(pair.client.bytes(slow).len() <= 20_000 + piece.max(1000));
        pair.settle();
        assert_eq!(pair.server.stream_news(), [StreamEvent::Failed(slow_there, StreamError::Aborted)]);
        let sent = pair.server.send(other_there, &bytes(5000), 1000);
        pair.down(&sent);
        assert_eq!(pair.client.bytes(other), bytes(5000));
    }
}

/// Each of them must be remembered.
#[test]
fn holes_that_nobody_takes_are_counted() {
    let mut pair = Pair::new(usize::MAX);
    pair.server.consumes = false;
    let (client, server) = stream(&mut pair, Direction::Sending);
    for _ in 0..10_000 / 16 + 2 {
        assert!(pair.client.rpc.stream(client).unwrap().send_hole(1 << 30));
    }
    let sent = pair.client.packets();
    pair.up(&sent);
    assert_eq!(pair.server.stream_news(), [StreamEvent::Failed(server, StreamError::Overrun { limit: 10_000 })]);
    assert_eq!(pair.server.came[&server].len(), 10_000 / 16 + 1);
}

#[test]
fn an_upload_that_nobody_takes_is_failed_with_words() {
    let mut pair = Pair::new(1000);
    pair.server.consumes = false;
    let (client, server) = stream(&mut pair, Direction::Sending);
    let sent = pair.client.send(client, &bytes(20_000), 1000);
    pair.up(&sent);
    assert_eq!(pair.server.stream_news(), [StreamEvent::Failed(server, StreamError::Overrun { limit: 10_000 })]);
    pair.settle();
    let news = pair.client.stream_news();
    assert!(
        matches!(&news[..], [StreamEvent::Failed(id, StreamError::Remote(error))]
        if *id == client && error.message.contains("10000 bytes waited")),
        "{news:?}"
    );
    assert_eq!(pair.server.rpc.stream_count(), 0);
}

#[test]
fn a_client_has_one_last_word() {
    let mut pair = Pair::new(1);
    let (client, server) = stream(&mut pair, Direction::Sending);
    pair.client.rpc.stream(client).unwrap().finish();
    assert!(!pair.client.packets().is_empty());
    pair.client.rpc.stream(client).unwrap().fail(&RemoteError::new(1, 0, ""));
    pair.client.rpc.stream(client).unwrap().finish();
    assert!(pair.client.packets().is_empty(), "it has said it");
    pair.server.rpc.stream(server).unwrap().fail(&RemoteError::new(1, 0, ""));
    pair.server.packets();
    pair.server.rpc.stream(server).unwrap().fail(&RemoteError::new(1, 0, ""));
    assert!(pair.server.packets().is_empty());
}

#[test]
fn streams_take_turns() {
    let mut pair = Pair::new(usize::MAX);
    let streams: Vec<_> = (0..3).map(|_| stream(&mut pair, Direction::Sending).0).collect();
    pair.client.packets();
    for id in &streams {
        pair.client.rpc.stream(*id).unwrap().ready();
        pair.client.rpc.stream(*id).unwrap().ready();
    }
    let mut turns = Vec::new();
    for _ in 0..6 {
        let id = pair.client.rpc.poll_grant().unwrap();
        for other in streams.iter().filter(|other| **other != id) {
            assert_eq!(pair.client.rpc.stream(*other).unwrap().send(1), None, "it is not its turn");
        }
        pair.client.rpc.stream(id).unwrap().send(1).unwrap();
        turns.push(id);
    }
    assert_eq!(turns, [&streams[..], &streams[..]].concat());
    pair.client.rpc.stream(streams[1]).unwrap().blocked();
    pair.client.rpc.stream(streams[0]).unwrap().finish();
    assert_eq!(pair.client.rpc.poll_grant(), Some(streams[2]));
}

#[test]
fn a_lost_link_fails_every_stream() {
    let mut pair = Pair::new(usize::MAX);
    let (up, up_there) = stream(&mut pair, Direction::Sending);
    let (down, down_there) = stream(&mut pair, Direction::Receiving);
    pair.client.rpc.handle_link_lost();
    pair.server.rpc.handle_link_lost();
    let lost = |id| StreamEvent::Failed(id, StreamError::LinkLost);
    assert_eq!(pair.client.stream_news(), [lost(up), lost(down)]);
    assert_eq!(pair.server.stream_news(), [lost(up_there), lost(down_there)]);
    assert!(pair.client.packets().is_empty() && pair.server.packets().is_empty());
}

/// A packet of the client's for the stream that its first call began.
fn packet(kind: u32, status: u32, procedure: u32, body: &[u8]) -> Vec<u8> {
    let header = Header { program: 0x2000_8086, version: 1, procedure, kind, serial: 1, status };
    [&header.encode(body.len() as u32)[..], body].concat()
}

#[test]
fn what_libvirt_closes_the_link_for_closes_it_here() {
    let hole = |length: i64, flags: u32| [&length.to_be_bytes()[..], &flags.to_be_bytes()].concat();
    let mut pair = Pair::new(usize::MAX);
    stream(&mut pair, Direction::Sending);
    let short = packet(6, 2, UPLOAD, &[0; 8]);
    assert_eq!(pair.server.hear(&short, usize::MAX), Err(LinkError::HoleLength(8)));

    let mut pair = Pair::new(usize::MAX);
    let call = pair.client.rpc.call(pair.now, remote(UPLOAD), b"", MINUTE).unwrap();
    pair.settle();
    let incoming = pair.call();
    let plain = StreamOptions::new(Direction::Receiving);
    pair.server.rpc.answer_with_stream(incoming.id, b"", plain).unwrap();
    assert_eq!(pair.server.hear(&packet(6, 2, UPLOAD, &hole(5, 0)), usize::MAX), Err(LinkError::HoleUnasked));
    let _ = call;
}

/// libvirtd 9.0 answers with a REPLY, to which there was no call.
#[test]
fn a_hole_that_is_none_is_answered_as_libvirtd_does() {
    let hole = |length: i64, flags: u32| [&length.to_be_bytes()[..], &flags.to_be_bytes()].concat();
    let text = "Library function returned error but did not set virError";
    let error = RemoteError { str1: None, str2: None, ..RemoteError::new(1, 7, text) };
    for (length, flags) in [(-1, 0), (0, 0), (1, 1), (i64::MIN, 0)] {
        let mut pair = Pair::new(1);
        let (_, server) = stream(&mut pair, Direction::Sending);
        pair.up(&packet(6, CONTINUE, UPLOAD, &hole(length, flags)));
        assert_eq!(pair.server.packets(), packet(1, ERROR, UPLOAD, &encoded(&error)));
        let news = pair.server.stream_news();
        assert!(
            matches!(&news[..], [StreamEvent::Failed(id, StreamError::Misbehaved(_))] if *id == server),
            "{news:?}"
        );
        // What follows is passed over, up to the client's last word.
        pair.up(&packet(6, CONTINUE, UPLOAD, &hole(length, flags)));
        pair.up(&packet(3, CONTINUE, UPLOAD, b"data"));
        assert_eq!(pair.server.packets(), []);
        pair.up(&packet(3, ERROR, UPLOAD, &[]));
        assert_eq!(pair.server.rpc.stream_count(), 0);
    }
}

#[test]
fn a_stream_that_is_misused_fails_and_its_link_lives() {
    for wrong in [packet(3, 9, UPLOAD, b"x"), packet(3, 0xffff_ffff, UPLOAD, b"")] {
        let mut pair = Pair::new(1);
        let (client, server) = stream(&mut pair, Direction::Sending);
        pair.up(&wrong);
        let news = pair.server.stream_news();
        assert!(
            matches!(&news[..], [StreamEvent::Failed(id, StreamError::Misbehaved(_))] if *id == server),
            "{news:?}"
        );
        pair.settle();
        assert!(matches!(&pair.client.stream_news()[..], [StreamEvent::Failed(id, _)] if *id == client));
        assert_eq!(pair.server.rpc.stream_count(), 0);
        stream(&mut pair, Direction::Receiving);
    }
}

const OK: u32 = 0;
const ERROR: u32 = 1;
const CONTINUE: u32 = 2;

fn reply(status: u32) -> Vec<u8> {
    let body = if status == OK { Vec::new() } else { encoded(&RemoteError::new(1, 2, "refused")) };
    packet(1, status, DOWNLOAD, &body)
}

fn encoded(error: &RemoteError) -> Vec<u8> {
    let mut body = Vec::new();
    error.encode(&mut body).unwrap();
    body
}

/// As libvirtd does at times: the stream's own thread is faster than the call's.
#[test]
fn what_a_daemon_sends_before_the_reply_is_not_lost() {
    let data = packet(3, CONTINUE, DOWNLOAD, b"data");
    let hole = packet(6, CONTINUE, DOWNLOAD, &[&9u64.to_be_bytes()[..], &[0; 4]].concat());
    let end = packet(3, CONTINUE, DOWNLOAD, &[]);
    for place in 0..4 {
        for piece in PIECES {
            let mut pair = Pair::new(piece);
            let (call, stream) = begin(&mut pair, Direction::Receiving);
            pair.client.packets();
            let mut packets = vec![data.clone(), hole.clone(), end.clone()];
            packets.insert(place, reply(OK));
            pair.down(&packets.concat());
            assert_eq!(pair.client.events, [ClientEvent::Answered { call, answer: Ok(vec![]) }]);
            assert_eq!(pair.client.stream_news(), [StreamEvent::Finished(stream)]);
            assert_eq!(pair.client.came[&stream], [Came::Bytes(b"data".to_vec()), Came::Hole(9)]);
            pair.client.rpc.stream(stream).unwrap().finish();
            assert_eq!(pair.client.packets(), packet(3, OK, DOWNLOAD, &[]));
            pair.down(&packet(3, OK, DOWNLOAD, &[]));
            assert_eq!(pair.client.stream_news(), [StreamEvent::Over(stream)]);
        }
    }
    // And its error.
    let mut pair = Pair::new(1);
    let (call, stream) = begin(&mut pair, Direction::Receiving);
    pair.client.packets();
    let error = RemoteError::new(38, 38, "it broke");
    pair.down(&packet(3, ERROR, DOWNLOAD, &encoded(&error)));
    assert_eq!(pair.client.stream_news(), [StreamEvent::Failed(stream, StreamError::Remote(Box::new(error)))]);
    pair.down(&reply(OK));
    assert_eq!(pair.client.events, [ClientEvent::Answered { call, answer: Ok(vec![]) }]);
    assert!(pair.client.rpc.stream(stream).is_none());
}

#[test]
fn a_call_that_is_refused_begins_no_stream() {
    let mut pair = Pair::new(1);
    let (_, stream) = begin(&mut pair, Direction::Receiving);
    pair.client.packets();
    pair.down(&packet(3, CONTINUE, DOWNLOAD, b"too soon"));
    pair.down(&reply(ERROR));
    assert!(matches!(pair.client.events[..], [ClientEvent::Answered { answer: Err(CallError::Remote(_)), .. }]));
    assert!(pair.client.rpc.stream(stream).is_none());
    pair.down(&packet(3, CONTINUE, DOWNLOAD, b"of no stream"));
    assert_eq!(pair.client.stream_news(), []);
    assert_eq!(pair.client.packets(), []);
    // A second answer ends no stream that stands.
    let mut pair = Pair::new(1);
    let (_, stream) = begin(&mut pair, Direction::Receiving);
    pair.client.packets();
    pair.down(&[reply(OK), reply(ERROR), reply(OK), packet(3, CONTINUE, DOWNLOAD, b"data")].concat());
    assert_eq!(pair.client.bytes(stream), b"data");
    assert_eq!(pair.client.packets(), []);
}

#[test]
fn a_stream_that_nobody_waits_for_any_more_is_ended_when_it_stands() {
    let abort = packet(3, ERROR, DOWNLOAD, &[]);
    for timed_out in [false, true] {
        for status in [OK, ERROR] {
            let mut pair = Pair::new(1);
            let (call, stream) = begin(&mut pair, Direction::Receiving);
            pair.client.packets();
            if timed_out {
                pair.client.rpc.handle_timeout(pair.now + MINUTE);
                pair.client.take_events();
                assert_eq!(pair.client.events, [ClientEvent::Answered { call, answer: Err(CallError::Timeout) }]);
            } else {
                pair.client.rpc.stream(stream).unwrap().fail(&RemoteError::new(1, 0, ""));
            }
            assert_eq!(pair.client.packets(), [], "the daemon may not know the stream yet");
            pair.down(&[packet(3, CONTINUE, DOWNLOAD, b"data"), reply(status)].concat());
            assert_eq!(pair.client.packets(), if status == OK { abort.clone() } else { vec![] });
            pair.down(&packet(3, OK, DOWNLOAD, &[]));
            assert!(pair.client.rpc.stream(stream).is_none());
            assert_eq!((pair.client.stream_news(), pair.client.bytes(stream)), (vec![], vec![]));
        }
    }
}

#[test]
fn a_client_sends_nothing_on_a_stream_before_its_call_is_answered() {
    let mut pair = Pair::new(1);
    let (_, stream) = begin(&mut pair, Direction::Sending);
    let incoming = {
        pair.settle();
        pair.call()
    };
    pair.client.rpc.stream(stream).unwrap().ready();
    assert_eq!(pair.client.rpc.poll_grant(), None);
    assert!(!pair.client.rpc.stream(stream).unwrap().send_hole(5));
    pair.client.rpc.stream(stream).unwrap().finish();
    assert_eq!(pair.client.packets(), []);
    pair.server.rpc.answer_with_stream(incoming.id, b"", options(Direction::Receiving)).unwrap();
    pair.settle();
    pair.client.rpc.stream(stream).unwrap().ready();
    assert_eq!(pair.client.rpc.poll_grant(), Some(stream));
    for length in [0, 1 << 63, u64::MAX] {
        assert!(!pair.client.rpc.stream(stream).unwrap().send_hole(length), "{length}");
    }
}

#[test]
fn the_link_of_a_stream_whose_call_is_not_answered_is_lost_once() {
    let mut pair = Pair::new(1);
    let (call, _) = begin(&mut pair, Direction::Receiving);
    pair.client.rpc.handle_link_lost();
    assert_eq!(pair.client.stream_news(), []);
    assert_eq!(pair.client.events, [ClientEvent::Answered { call, answer: Err(CallError::LinkLost) }]);
}

#[test]
fn streams_beyond_the_most_are_refused_until_one_is_over() {
    let mut pair = Pair::new(usize::MAX);
    let streams: Vec<_> = (0..256).map(|_| stream(&mut pair, Direction::Sending)).collect();
    for _ in 0..2 {
        let (call, _) = begin(&mut pair, Direction::Sending);
        pair.settle();
        let incoming = pair.call();
        assert_eq!(pair.server.rpc.answer_with_stream(incoming.id, b"", options(Direction::Receiving)), None);
        pair.settle();
        let answer = pair.client.events.pop();
        let Some(ClientEvent::Answered { call: answered, answer: Err(CallError::Remote(error)) }) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((answered, error.code), (call, codes::RESOURCE_BUSY));
    }
    pair.client.rpc.stream(streams[0].0).unwrap().fail(&RemoteError::new(1, 0, ""));
    pair.settle();
    stream(&mut pair, Direction::Sending);
}

#[test]
fn packets_of_no_stream_are_answered_by_nothing() {
    let mut pair = Pair::new(1);
    for kind in [3, 6] {
        for status in [0, 1, 2, 9] {
            pair.up(&packet(kind, status, UPLOAD, &[0; 40]));
            pair.down(&packet(kind, status, UPLOAD, &[0; 40]));
        }
    }
    assert!(pair.client.packets().is_empty() && pair.server.packets().is_empty());
    assert!(pair.client.stream_news().is_empty() && pair.server.stream_news().is_empty());
}

#[test]
fn an_upload_that_fails_behind_its_last_byte_is_over_at_both_ends() {
    let mut pair = Pair::new(1);
    let (client, server) = stream(&mut pair, Direction::Sending);
    pair.client.rpc.stream(client).unwrap().finish();
    pair.settle();
    assert_eq!(pair.server.stream_news(), [StreamEvent::Finished(server)]);
    let error = RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, "cannot sync");
    pair.server.rpc.stream(server).unwrap().fail(&error);
    pair.settle();
    assert_eq!(pair.client.stream_news(), [StreamEvent::Failed(client, StreamError::Remote(Box::new(error)))]);
    assert_eq!(pair.server.rpc.stream_count(), 0, "the client had had its last word");
}

#[test]
fn data_overtakes_neither_a_hole_nor_the_reply() {
    let mut pair = Pair::new(usize::MAX);
    let (_, client) = begin(&mut pair, Direction::Receiving);
    pair.settle();
    let incoming = pair.call();
    let rpc = &mut pair.server.rpc;
    // More waits than goes at once.
    assert!(rpc.message(remote(100), &[0; 500]) && rpc.message(remote(100), &[0; 500]));
    let server = rpc.answer_with_stream(incoming.id, b"", options(Direction::Sending)).unwrap();
    rpc.stream(server).unwrap().ready();
    let (mut sent, mut room) = (Vec::new(), [0; 200]);
    for (hole, data) in [(0, "a"), (7, "b"), (0, "c"), (9, "d")] {
        if hole > 0 {
            assert!(rpc.message(remote(100), &[0; 500]) && rpc.stream(server).unwrap().send_hole(hole));
        }
        while rpc.poll_grant().is_none() {
            let len = rpc.poll_packets(&mut room, 100);
            assert!(len > 0, "what must go before is on its way");
            sent.extend_from_slice(&room[..len]);
        }
        sent.extend_from_slice(&rpc.stream(server).unwrap().send(1).unwrap());
        sent.extend_from_slice(data.as_bytes());
    }
    pair.down(&sent);
    let bytes = |text: &str| Came::Bytes(text.into());
    assert_eq!(pair.client.came[&client], [bytes("a"), Came::Hole(7), bytes("bc"), Came::Hole(9), bytes("d")]);
    assert!(pair.client.events.iter().any(|event| matches!(event, ClientEvent::Answered { answer: Ok(_), .. })));
}

/// The names of its packets would be those of the first.
#[test]
fn a_serial_that_has_a_stream_under_way_begins_no_other() {
    let mut pair = Pair::new(1);
    let (_, server) = stream(&mut pair, Direction::Sending);
    pair.up(&packet(0, OK, UPLOAD, b"volume"));
    let incoming = pair.call();
    assert_eq!(pair.server.rpc.answer_with_stream(incoming.id, b"", options(Direction::Receiving)), None);
    let refusal = pair.server.packets();
    assert_eq!(refusal[20..28], [0, 0, 0, 1, 0, 0, 0, 1], "the call's serial, and an error");
    assert!(pair.server.rpc.stream(server).is_some());
}
