//! PING, PONG and silence; and that what is owed to a peer that does not listen stays small.

mod support;

use std::time::Duration;

use support::*;
use virbistream::proto::{CONTROL_MAX, Config, Event, SessionError};
use virbistream::wire::{Close, HEADER_LEN, close};

const SECOND: Duration = Duration::from_secs(1);

/// A PING each 5 s, and 30 s of silence are the end.
fn config() -> Config {
    Config { ping_interval: 5 * SECOND, silence_limit: 30 * SECOND, max_idle_control: 1 << 20, ..small() }
}

fn last_ping(said: &[Packet]) -> u64 {
    match said {
        [Packet::Ping(token)] => *token,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ping_is_said_once_an_interval_and_tokens_differ() {
    for side in SIDES {
        let mut probe = Probe::established(side, config());
        let mut tokens = Vec::new();
        for _ in 0..5 {
            assert_eq!(probe.session.poll_timeout(), Some(probe.now + 5 * SECOND));
            probe.pass(5 * SECOND - Duration::from_nanos(1));
            assert_eq!(probe.speak(), []);
            probe.pass(Duration::from_nanos(1));
            tokens.push(last_ping(&probe.speak()));
            probe.hear(&Packet::Ping(0));
            probe.speak();
        }
        tokens.dedup();
        assert_eq!(tokens.len(), 5);
    }
}

#[test]
fn ping_is_said_however_busy_the_link_is() {
    let mut probe = Probe::established(SIDES[0], config());
    let id = probe.opened();
    probe.moves(id);
    probe.pass(5 * SECOND);
    probe.moves(id);
    assert!(probe.said.iter().any(|said| matches!(said, Packet::Ping(_))));
}

#[test]
fn the_round_trip_is_from_ping_to_its_pong() {
    for side in SIDES {
        let mut probe = Probe::established(side, config());
        assert_eq!(probe.session.round_trip(), None);
        probe.pass(5 * SECOND);
        let token = last_ping(&probe.speak());
        probe.now += Duration::from_millis(7);
        probe.hear(&Packet::Pong(token + 1));
        assert_eq!(probe.session.round_trip(), None, "not the one awaited");
        probe.hear(&Packet::Pong(token));
        assert_eq!(probe.session.round_trip(), Some(Duration::from_millis(7)));
        probe.now += Duration::from_millis(7);
        probe.hear(&Packet::Pong(token));
        assert_eq!(probe.session.round_trip(), Some(Duration::from_millis(7)), "it was answered before");
    }
}

#[test]
fn a_late_pong_is_not_taken_for_the_latest() {
    let mut probe = Probe::established(SIDES[0], config());
    probe.pass(5 * SECOND);
    let old = last_ping(&probe.speak());
    probe.pass(5 * SECOND);
    let new = last_ping(&probe.speak());
    probe.hear(&Packet::Pong(old));
    assert_eq!(probe.session.round_trip(), None);
    probe.now += SECOND;
    probe.hear(&Packet::Pong(new));
    assert_eq!(probe.session.round_trip(), Some(SECOND));
}

/// The clock runs from when it was put on the link, not from when it was due.
#[test]
fn a_ping_that_finds_no_room_is_timed_when_it_goes() {
    let mut probe = Probe::established(SIDES[0], config());
    probe.pass(5 * SECOND);
    assert_eq!(probe.session.poll_control(probe.now, &mut [0; HEADER_LEN]), 0);
    assert!(probe.session.wants_to_send());
    probe.now += SECOND;
    let token = last_ping(&probe.speak());
    probe.now += SECOND;
    probe.hear(&Packet::Pong(token));
    assert_eq!(probe.session.round_trip(), Some(SECOND));
}

#[test]
fn two_peers_measure_their_round_trip() {
    let mut pair = Pair::established(config(), config());
    pair.advance(5 * SECOND);
    for end in End::BOTH {
        pair.transmit(end, 0);
    }
    pair.advance(Duration::from_millis(3));
    pair.settle();
    for end in End::BOTH {
        assert_eq!(pair.at(end).session.round_trip(), Some(Duration::from_millis(3)));
    }
}

#[test]
fn a_flood_of_pings_gets_one_pong_for_the_latest() {
    for side in SIDES {
        let mut probe = Probe::established(side, config());
        for token in 0..10_000 {
            probe.hear(&Packet::Ping(token));
        }
        assert_eq!(probe.speak(), [Packet::Pong(9999)]);
        assert!(!probe.session.wants_to_send());
    }
}

#[test]
fn silence_ends_the_session_and_the_peer_is_told() {
    for side in SIDES {
        let mut probe = Probe::established(side, config());
        let id = probe.opened();
        for _ in 0..6 {
            probe.pass(5 * SECOND - Duration::from_nanos(1));
        }
        assert!(probe.session.is_established());
        probe.speak();
        probe.news();
        probe.pass(SECOND);
        let cause = SessionError::Silent(30 * SECOND);
        let news = probe.news();
        assert!(matches!(&news[..], [Event::Failed { .. }, Event::Closed(Err(why))] if *why == cause), "{news:?}");
        let said = probe.speak();
        assert!(matches!(said[..], [Packet::Close(Close { code: close::SILENT, rule: 0, .. })]), "{said:?}");
        assert!(!probe.has_stream(id));
    }
}

#[test]
fn silence_has_its_deadline() {
    let config = Config { ping_interval: 3600 * SECOND, silence_limit: 30 * SECOND, ..small() };
    let mut probe = Probe::established(SIDES[0], config);
    assert_eq!(probe.session.poll_timeout(), Some(probe.now + 30 * SECOND));
    probe.now += 10 * SECOND;
    probe.hear(&Packet::Ping(1));
    assert_eq!(probe.session.poll_timeout(), Some(probe.now + 30 * SECOND));
}

#[test]
fn any_packet_and_any_piece_of_one_is_a_sign_of_life() {
    let mut probe = Probe::established(SIDES[0], config());
    let id = probe.opened();
    let packets = [Packet::Data(id, vec![0; 100]), Packet::Pong(77), Packet::credit(id, 0, 5), Packet::Stop(id)];
    for packet in packets {
        let bytes = packet.encode();
        // Behind the header, which is a sign when it is whole.
        let (mut from, mut to) = (0, HEADER_LEN);
        while from < bytes.len() {
            probe.pass(29 * SECOND);
            probe.hear_bytes(&bytes[from..to]).unwrap();
            (from, to) = (to, (to + 40).min(bytes.len()));
        }
    }
    assert!(probe.session.is_established());
    probe.pass(30 * SECOND);
    assert!(probe.session.is_closed());
}

#[test]
fn bytes_that_are_no_packet_of_ours_are_a_sign_of_life() {
    let mut probe = Probe::established(SIDES[0], config());
    for _ in 0..10 {
        probe.now += 20 * SECOND;
        probe.session.handle_heard(probe.now);
        probe.pass(9 * SECOND);
        assert!(!probe.session.is_closed());
    }
    probe.pass(21 * SECOND);
    assert!(probe.session.is_closed());
}

#[test]
fn an_idle_stream_is_never_closed_for_being_idle() {
    let mut pair = Pair::established(config(), config());
    let id = pair.opened(End::Connecting, open("vda"));
    for _ in 0..1000 {
        pair.advance(5 * SECOND);
        pair.settle();
    }
    pair.write(End::Accepting, id, 10_000);
    pair.settle();
    assert_eq!(pair.flow(End::Connecting, id).given, 10_000);
}

#[test]
fn a_clock_that_stands_or_steps_back_does_no_harm() {
    let mut probe = Probe::established(SIDES[0], config());
    let id = probe.opened();
    probe.pass(29 * SECOND);
    probe.hear(&Packet::Ping(1));
    probe.now -= 29 * SECOND;
    probe.hear(&Packet::Ping(2));
    probe.pass(Duration::ZERO);
    probe.moves(id);
    probe.pass(58 * SECOND);
    assert!(probe.session.is_established(), "the latest sign counts");
}

/// The peer says all that it may, again and again, and never reads.
#[test]
fn what_is_owed_to_a_peer_that_does_not_read_stays_small() {
    for side in SIDES {
        let mut probe = Probe::established(side, config());
        let ids = [probe.opened(), probe.accepted(probe.theirs(0))];
        for round in 1..2000 {
            for id in ids {
                probe.hear(&Packet::Data(id, vec![0; 1]));
                probe.hear(&Packet::credit(id, 0, (1 << 20) + round));
                probe.hear(&Packet::Stop(id));
            }
            probe.hear(&Packet::Ping(round));
            probe.hear(&Packet::Pong(round));
            let id = probe.theirs(round as u32);
            probe.hear(&Packet::Open(id, open("ours")));
            probe.hear(&Packet::Reset(id, error(1, "")));
            probe.pass(SECOND / 1000);
        }
        let mut room = vec![0; 10 * CONTROL_MAX];
        // The second time a PING that the first CREDIT made worth asking, if it was one.
        let len = [0; 2].map(|_| probe.session.poll_control(probe.now, &mut room)).into_iter().sum::<usize>();
        assert!(len < 500, "{len} bytes");
        assert_eq!(probe.session.stream_count(), 2);
        assert_eq!(probe.session.poll_control(probe.now, &mut room), 0);
    }
}

#[test]
fn control_that_does_not_fit_goes_later_and_nothing_twice() {
    for room in 0..120 {
        let mut probe = Probe::established(SIDES[0], config());
        let ids = [probe.opened(), probe.accepted(probe.theirs(0))];
        let asked = probe.session.open(probe.now, open("vda")).unwrap().number();
        let refused = probe.asked(probe.theirs(1));
        probe.stream(refused).refuse(error(1, "")).unwrap();
        for id in ids {
            probe.hear(&Packet::Data(id, vec![0; 4096]));
            probe.stream(id).finish().unwrap();
        }
        probe.stream(ids[1]).stop().unwrap();
        probe.pass(5 * SECOND);
        probe.hear(&Packet::Ping(3));
        let before = probe.said.len();
        let mut some = vec![0; room];
        let mut bytes = Vec::new();
        while let len @ 1.. = probe.session.poll_control(probe.now, &mut some) {
            assert!(len <= room);
            bytes.extend_from_slice(&some[..len]);
        }
        let mut said = split(&mut bytes);
        assert!(bytes.is_empty());
        said.extend(probe.speak());
        assert!(probe.said.len() >= before);
        said.sort_by_key(Packet::encode);
        let mut expected = vec![
            Packet::Pong(3),
            Packet::Ping(
                said.iter().find_map(|said| if let Packet::Ping(token) = said { Some(*token) } else { None }).unwrap(),
            ),
            Packet::Open(asked, virbistream::wire::Open { window: 8192, ..open("vda") }),
            Packet::OpenRefused(refused, error(1, "")),
            Packet::credit(ids[0], 4096, 4096 + 8192),
            Packet::Finish(ids[0], 0),
            Packet::Stop(ids[1]),
            Packet::Finish(ids[1], 0),
        ];
        expected.sort_by_key(Packet::encode);
        assert_eq!(said, expected, "with {room} bytes of room");
    }
}
