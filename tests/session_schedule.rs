//! Whose turn it is to send: priorities, equal shares inside a class, and control before data.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use support::*;
use virbistream::proto::{Config, Misuse, Side};
use virbistream::wire::{Hello, Limits, Open};

const MIB: u64 = 1 << 20;

/// What libvirt takes in one stream packet, and so the default of `max_data`.
const LIBVIRT: u32 = 262_120;

/// A session whose peer takes packets of so many bytes, and gives all the credit there is.
fn unlimited(max_data: u32) -> Probe {
    let mut probe = Probe::new(Side::Accepting, Config::default());
    let limits = Limits { max_data, max_streams: 1000 };
    probe.hear(&Packet::Hello(7, Hello { limits, ..hello() }));
    probe.speak();
    probe
}

/// A stream of this priority, ready to send for ever.
fn ready(probe: &mut Probe, priority: u32) -> u32 {
    let id = probe.ask(Open { priority, ..open("x") });
    probe.hear(&Packet::open_reply(id, u64::MAX));
    probe.stream(id).ready();
    id
}

/// Lets whose turn it is send until so many bytes went; gives how many of each stream. `packet` is the most that the
/// source of a stream puts into one packet.
fn run(probe: &mut Probe, bytes: u64, packet: impl Fn(u32) -> usize) -> BTreeMap<u32, u64> {
    let (mut sent, mut all) = (BTreeMap::new(), 0);
    while all < bytes {
        let grant = probe.session.poll_grant().expect("somebody is always ready");
        assert_eq!(probe.session.poll_grant(), Some(grant), "the same until it is answered");
        let len = grant.max.min(packet(grant.id.number()));
        probe.session.stream(grant.id).unwrap().send(len).unwrap();
        *sent.entry(grant.id.number()).or_default() += len as u64;
        all += len as u64;
    }
    sent
}

#[test]
fn the_first_class_gets_fifteen_sixteenths_and_the_last_one_sixteenth() {
    // However large the packets of either: what counts is bytes.
    for (max_data, first, last) in [
        (LIBVIRT, usize::MAX, usize::MAX),
        (LIBVIRT, usize::MAX, 4096),
        (LIBVIRT, 4096, usize::MAX),
        (LIBVIRT, 65_536, 1000),
        (4096, usize::MAX, usize::MAX),
        (16_777_216, usize::MAX, usize::MAX),
    ] {
        let mut probe = unlimited(max_data);
        let (low, high) = (ready(&mut probe, 3), ready(&mut probe, 0));
        let all = 160 * MIB;
        let sent = run(&mut probe, all, |id| if id == high { first } else { last });
        let share = sent[&low] as f64 / all as f64;
        assert!((0.055..0.0626).contains(&share), "{share} with packets of {max_data}, {first}, {last}: {sent:?}");
    }
}

#[test]
fn each_class_that_waits_gets_its_sixteenth_and_the_first_the_rest() {
    for packet in [LIBVIRT as usize, 10_000] {
        let mut probe = unlimited(LIBVIRT);
        let ids: Vec<u32> = (0..4).map(|priority| ready(&mut probe, priority)).collect();
        let all = 320 * MIB;
        let sent = run(&mut probe, all, |_| packet);
        for id in &ids[1..] {
            let share = sent[id] as f64 / all as f64;
            assert!((0.055..0.07).contains(&share), "{share} of {sent:?}");
        }
        assert!(sent[&ids[0]] as f64 / all as f64 > 0.8, "{sent:?}");
    }
}

#[test]
fn a_class_that_waits_is_not_kept_waiting_long() {
    let mut probe = unlimited(LIBVIRT);
    let (low, high) = (ready(&mut probe, 3), ready(&mut probe, 0));
    let mut since = 0u64;
    for _ in 0..1000 {
        let sent = run(&mut probe, 1, |_| usize::MAX);
        since = if sent.contains_key(&low) { 0 } else { since + sent[&high] };
        assert!(since <= 16 * u64::from(LIBVIRT), "{since} bytes of the first class went by");
    }
}

#[test]
fn a_class_alone_has_the_link_to_itself_and_saves_up_nothing() {
    let mut probe = unlimited(LIBVIRT);
    let low = ready(&mut probe, 3);
    run(&mut probe, 100 * MIB, |_| usize::MAX);
    let high = ready(&mut probe, 0);
    let sent = run(&mut probe, MIB, |_| usize::MAX);
    assert_eq!(sent.get(&low), None, "what it had before does not count for it: {sent:?}");
    probe.stream(low).blocked();
    run(&mut probe, 100 * MIB, |_| usize::MAX);
    probe.stream(low).ready();
    let sent = run(&mut probe, MIB, |_| usize::MAX);
    assert!(!sent.contains_key(&low), "nor does what it did not want: {sent:?}");
    assert!(sent[&high] >= MIB);
}

#[test]
fn streams_of_a_class_get_equal_bytes_whatever_their_packets() {
    for max_data in [4096, LIBVIRT, 16_777_216] {
        let mut probe = unlimited(max_data);
        let ids: Vec<u32> = (0..4).map(|_| ready(&mut probe, 2)).collect();
        let sizes = BTreeMap::from([(ids[0], 100), (ids[1], 4096), (ids[2], 60_001), (ids[3], usize::MAX)]);
        let rounds = 8;
        let sent = run(&mut probe, rounds * 4 * u64::from(LIBVIRT), |id| sizes[&id]);
        for id in &ids {
            assert_eq!(sent[id], rounds * u64::from(LIBVIRT), "{sent:?} with {max_data}");
        }
    }
}

#[test]
fn turns_go_round_in_the_order_in_which_the_streams_became_ready() {
    let mut probe = unlimited(LIBVIRT);
    let ids: Vec<u32> = (0..3).map(|_| ready(&mut probe, 1)).collect();
    let mut turns = Vec::new();
    for _ in 0..6 {
        turns.extend(run(&mut probe, 1, |_| usize::MAX).into_keys());
    }
    assert_eq!(turns, [ids.clone(), ids].concat());
}

/// A stream that is ready late, or again, stands behind those that wait, and gets no more than they do.
#[test]
fn who_blocks_and_comes_back_gains_nothing() {
    let mut probe = unlimited(LIBVIRT);
    let (steady, fickle) = (ready(&mut probe, 1), ready(&mut probe, 1));
    let mut sent = BTreeMap::from([(steady, 0), (fickle, 0)]);
    for _ in 0..1000 {
        let grant = probe.session.poll_grant().unwrap();
        let len = grant.max.min(50_000);
        probe.session.stream(grant.id).unwrap().send(len).unwrap();
        *sent.get_mut(&grant.id.number()).unwrap() += len;
        if grant.id.number() == fickle {
            probe.stream(fickle).blocked();
            assert!(probe.session.poll_grant().is_some_and(|grant| grant.id.number() == steady));
            probe.stream(fickle).ready();
        }
    }
    assert!(sent[&fickle] <= sent[&steady], "{sent:?}");
}

/// Streams that send without end, and have sent a lot.
fn bulk(probe: &mut Probe, streams: usize) -> Vec<u32> {
    let ids: Vec<u32> = (0..streams).map(|_| ready(probe, 2)).collect();
    run(probe, streams as u64 * u64::from(LIBVIRT), |_| usize::MAX);
    ids
}

#[test]
fn small_writes_go_ahead_of_bulk() {
    let mut probe = unlimited(LIBVIRT);
    bulk(&mut probe, 64);
    let small = ready(&mut probe, 2);
    for _ in 0..1000 {
        let grant = probe.session.poll_grant().unwrap();
        assert_eq!(grant.id.number(), small);
        probe.session.stream(grant.id).unwrap().send(4096).unwrap();
        probe.stream(small).blocked();
        run(&mut probe, u64::from(LIBVIRT), |_| usize::MAX);
        probe.stream(small).ready();
    }
}

/// Its share is what it would have if it had everything at hand, as long as it comes back before others had theirs.
#[test]
fn a_stream_whose_bytes_come_in_pieces_gets_its_share_and_no_more() {
    let mut probe = unlimited(LIBVIRT);
    let steady = bulk(&mut probe, 1)[0];
    let fickle = ready(&mut probe, 2);
    let mut sent = BTreeMap::from([(steady, 0), (fickle, 0)]);
    for _ in 0..10_000 {
        let grant = probe.session.poll_grant().unwrap();
        let id = grant.id.number();
        let len = if id == steady { grant.max.min(60_000) } else { grant.max.min(30_000) };
        probe.session.stream(grant.id).unwrap().send(len).unwrap();
        *sent.get_mut(&id).unwrap() += len;
        // It has nothing left, and has again when the other has sent a packet.
        if id == fickle {
            probe.stream(fickle).blocked();
            probe.session.poll_grant().unwrap();
        } else {
            probe.stream(fickle).ready();
        }
    }
    assert!(sent[&fickle] <= sent[&steady], "{sent:?}");
    assert!(sent[&fickle] * 10 >= sent[&steady], "{sent:?}");
}

#[test]
fn however_many_come_and_go_nobody_starves() {
    let mut probe = unlimited(LIBVIRT);
    let bulk = bulk(&mut probe, 1)[0];
    for _ in 0..100 {
        ready(&mut probe, 2);
    }
    let (mut blocked, mut of_bulk, mut all) = (VecDeque::new(), 0, 0);
    for _ in 0..300_000 {
        let grant = probe.session.poll_grant().unwrap();
        let id = grant.id.number();
        let len = if id == bulk { grant.max } else { grant.max.min(1000) };
        probe.session.stream(grant.id).unwrap().send(len).unwrap();
        all += len;
        if id == bulk {
            of_bulk += len;
        } else {
            probe.stream(id).blocked();
            blocked.push_back(id);
        }
        // The one that has waited longest comes back.
        if blocked.len() > 10 {
            blocked.pop_front().into_iter().for_each(|id| probe.stream(id).ready());
        }
    }
    let (share, turn) = (all / 101, LIBVIRT as usize);
    assert!(of_bulk + 2 * turn >= share, "{of_bulk} of {all}, which is not a share and in turns");
}

#[test]
fn a_stream_that_waits_gets_its_share_beside_ever_new_ones() {
    let mut probe = unlimited(LIBVIRT);
    let bulk = bulk(&mut probe, 1)[0];
    let (mut of_bulk, mut all) = (0, 0);
    for _ in 0..60 {
        let new = ready(&mut probe, 2);
        let mut left = LIBVIRT as usize;
        while left > 0 {
            let grant = probe.session.poll_grant().unwrap();
            let len = if grant.id.number() == bulk { grant.max } else { grant.max.min(left) };
            probe.session.stream(grant.id).unwrap().send(len).unwrap();
            all += len;
            if grant.id.number() == bulk { of_bulk += len } else { left -= len }
        }
        probe.stream(new).blocked();
    }
    assert!(of_bulk * 4 > all, "{of_bulk} of {all}");
}

#[test]
fn a_stream_that_was_overtaken_within_its_turn_sends_nothing_until_it_is_its_turn_again() {
    let mut probe = unlimited(LIBVIRT);
    let bulk = bulk(&mut probe, 1)[0];
    let small = ready(&mut probe, 2);
    run(&mut probe, 4 * u64::from(LIBVIRT), |id| if id == small { 100 } else { 1000 });
    probe.stream(small).blocked();
    let grant = probe.session.poll_grant().unwrap();
    assert_eq!(grant.id.number(), bulk);
    probe.stream(bulk).send(1).unwrap();
    let urgent = ready(&mut probe, 0);
    assert_eq!(probe.stream(bulk).send(1), Err(Misuse::BeyondGrant));
    assert_eq!(probe.session.poll_grant().map(|grant| grant.id.number()), Some(urgent));
    probe.stream(urgent).send(1).unwrap();
    probe.stream(urgent).blocked();
    probe.session.poll_grant().unwrap();
    probe.stream(bulk).send(1).unwrap();
}

#[test]
fn a_stream_without_credit_or_bytes_takes_no_turns() {
    let mut probe = unlimited(LIBVIRT);
    let stalled = probe.ask(open("x"));
    probe.hear(&Packet::open_reply(stalled, 10));
    let (blocked, finished) = (ready(&mut probe, 0), ready(&mut probe, 0));
    let living = ready(&mut probe, 3);
    probe.stream(stalled).ready();
    probe.stream(blocked).blocked();
    probe.stream(finished).finish().unwrap();
    assert_eq!(probe.send(stalled, &[0; 20]), 10);
    probe.stream(living).ready();
    let sent = run(&mut probe, 10 * MIB, |_| usize::MAX);
    assert_eq!(sent.keys().copied().collect::<Vec<_>>(), [living]);
    assert_eq!(probe.stream(stalled).stats().stalls, 1);
    // Both come back as soon as they can.
    probe.hear(&Packet::credit(stalled, 0, 25));
    probe.stream(stalled).ready();
    let grant = probe.session.poll_grant().unwrap();
    assert_eq!((grant.id.number(), grant.max), (stalled, 15));
    probe.stream(stalled).blocked();
    probe.stream(blocked).ready();
    assert_eq!(probe.session.poll_grant().unwrap().id.number(), blocked);
}

#[test]
fn credit_alone_brings_a_ready_stream_back() {
    let mut probe = unlimited(LIBVIRT);
    let id = probe.ask(open("x"));
    probe.hear(&Packet::open_reply(id, 0));
    probe.stream(id).ready();
    assert_eq!(probe.session.poll_grant(), None);
    assert!(!probe.session.wants_to_send());
    probe.hear(&Packet::credit(id, 0, 7));
    assert!(probe.session.wants_to_send());
    assert_eq!(probe.session.poll_grant().map(|grant| (grant.id.number(), grant.max)), Some((id, 7)));
}

#[test]
fn a_grant_is_bounded_by_credit_packet_and_turn() {
    let mut probe = unlimited(4096);
    let id = probe.ask(open("x"));
    probe.hear(&Packet::open_reply(id, 0));
    probe.stream(id).ready();
    for (limit, max) in [(1, 1), (4095, 4095), (4096, 4096), (4097, 4096), (u64::MAX, 4096)] {
        probe.hear(&Packet::credit(id, 0, limit));
        assert_eq!(probe.session.poll_grant().map(|grant| grant.max), Some(max));
    }
    let mut probe = unlimited(16_777_216);
    ready(&mut probe, 0);
    let grant = probe.session.poll_grant().unwrap();
    assert_eq!(grant.max, LIBVIRT as usize, "no turn is longer, so that an urgent stream does not wait for more");
    let stream = |probe: &mut Probe| probe.session.stream(grant.id).unwrap().send(LIBVIRT as usize - 10).unwrap();
    stream(&mut probe);
    assert_eq!(probe.session.poll_grant().unwrap().max, 10, "what is left of the turn");
}

#[test]
fn control_goes_before_data() {
    let mut probe = unlimited(LIBVIRT);
    let living = ready(&mut probe, 0);
    run(&mut probe, MIB, |_| usize::MAX);
    // In the middle of a turn the peer pings, a stream is asked for, and one is refused: all that goes first.
    probe.hear(&Packet::Ping(5));
    probe.hear(&Packet::Open(probe.theirs(0), open("")));
    probe.session.open(probe.now, open("y")).unwrap();
    probe.pass(Duration::from_secs(5));
    assert_eq!(probe.session.poll_grant().unwrap().id.number(), living);
    let said = probe.speak();
    assert!(
        matches!(said[..], [Packet::Pong(5), Packet::Ping(_), Packet::OpenRefused(..), Packet::Open(..)]),
        "{said:?}"
    );
}

#[test]
fn finish_follows_the_data_of_its_own_direction() {
    let mut probe = unlimited(LIBVIRT);
    let (id, other) = (ready(&mut probe, 2), ready(&mut probe, 2));
    let sent = run(&mut probe, 3 * u64::from(LIBVIRT), |_| usize::MAX);
    probe.stream(id).finish().unwrap();
    assert_eq!(probe.speak(), [Packet::Finish(id, sent[&id])]);
    assert_eq!(run(&mut probe, MIB, |_| usize::MAX).into_keys().collect::<Vec<_>>(), [other]);
}
