//! Who gets how much of a link: bandwidth limits and priorities, by the clock.

mod support;

use std::time::Duration;

use support::Probe;
use support::link::Link;
use virbistream::proto::{Config, Side};

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// 1 Gbit/s over 10 ms.
fn link() -> Link {
    Link::new(&Config::default(), Duration::from_millis(10), 125_000_000)
}

/// What arrives of each in a second.
fn in_a_second(link: &mut Link, streams: &[virbistream::proto::StreamId]) -> Vec<u64> {
    let before: Vec<u64> = streams.iter().map(|id| link.delivered(*id)).collect();
    link.run(SECOND);
    streams.iter().zip(before).map(|(id, before)| link.delivered(*id) - before).collect()
}

/// Never above. Somewhat below where another stream's data makes round trips longer: this one's window is twice of what it needs without.
#[track_caller]
fn assert_about(got: u64, wanted: u64) {
    assert!((wanted * 80 / 100..=wanted * 105 / 100).contains(&got), "{got}, not about {wanted}");
}

#[test]
fn a_stream_keeps_to_its_limit_and_leaves_the_rest_to_others() {
    let mut link = link();
    let (slow, other) = (link.open(1), link.open(1));
    let now = link.now;
    link.sender().stream(slow).unwrap().set_limit(now, Some(5 * MIB));
    link.run(SECOND);
    let [slow_got, other_got] = in_a_second(&mut link, &[slow, other])[..] else { panic!() };
    assert_about(slow_got, 5 * MIB);
    assert_about(other_got, 125_000_000 - 5 * MIB);
    // While it runs: to another one, to none at all, and away.
    for (limit, wanted) in [(Some(20 * MIB), 20 * MIB), (Some(0), 0), (Some(MIB), MIB), (None, 125_000_000 / 2)] {
        let now = link.now;
        link.sender().stream(slow).unwrap().set_limit(now, limit);
        link.run(SECOND);
        assert_about(in_a_second(&mut link, &[slow])[0], wanted);
    }
}

#[test]
fn a_session_keeps_to_its_limit_whatever_its_streams() {
    let mut link = link();
    let streams = [link.open(1), link.open(1), link.open(1)];
    for (limit, wanted) in [(Some(30 * MIB), 30 * MIB), (Some(0), 0), (None, 125_000_000), (Some(MIB), MIB)] {
        let now = link.now;
        link.sender().set_limit(now, limit);
        link.run(SECOND);
        let got = in_a_second(&mut link, &streams);
        assert_about(got.iter().sum(), wanted);
        got.iter().for_each(|got| assert!((wanted / 3).abs_diff(*got) <= wanted / 20 + 262_120, "{got} of {wanted}"));
    }
}

#[test]
fn the_limit_of_a_stream_is_within_that_of_the_session() {
    let mut link = link();
    let (slow, other) = (link.open(1), link.open(1));
    let now = link.now;
    link.sender().set_limit(now, Some(10 * MIB));
    link.sender().stream(slow).unwrap().set_limit(now, Some(2 * MIB));
    link.run(SECOND);
    let [slow_got, other_got] = in_a_second(&mut link, &[slow, other])[..] else { panic!() };
    assert_about(slow_got, 2 * MIB);
    assert_about(other_got, 8 * MIB);
}

/// The memory of a guest goes before its disks, and has its share two round trips after it asked for it.
#[test]
fn what_is_more_urgent_has_its_share_within_two_round_trips() {
    let mut link = link();
    let disks = [link.open(2), link.open(2), link.open(2)];
    link.run(SECOND);
    let memory = link.open(1);
    link.run(Duration::from_millis(20));
    let before = (link.delivered(memory), link.delivered_in_all());
    // Its first window takes a round trip to be widened: it is by then the only one.
    link.run(Duration::from_millis(100));
    let (got, all) = (link.delivered(memory) - before.0, link.delivered_in_all() - before.1);
    assert!(got * 100 / all >= 60, "{got} of {all}");
    let of_disks = in_a_second(&mut link, &disks).iter().sum::<u64>();
    assert!(of_disks > 125_000_000 / 20, "they do not starve: {of_disks}");
    assert!(of_disks < 125_000_000 / 10, "they leave it to the memory: {of_disks}");
}

#[test]
fn a_peer_that_may_send_so_much_sends_so_much_whatever_its_streams() {
    let mut link = link();
    let streams = [link.open(1), link.open(1), link.open(1)];
    for (limit, wanted) in [(Some(30 * MIB), 30 * MIB), (Some(0), 0), (None, 125_000_000), (Some(3 * MIB), 3 * MIB)] {
        let now = link.now;
        link.receiver().set_receive_limit(now, limit);
        // What was granted before may still come, at whatever rate.
        link.run(5 * SECOND);
        let before = streams.map(|id| link.delivered(id));
        link.run(10 * SECOND);
        let got = streams
            .map(|id| link.delivered(id))
            .iter()
            .zip(before)
            .map(|(now, before)| now - before)
            .collect::<Vec<_>>();
        assert_about(got.iter().sum(), 10 * wanted);
        // A CREDIT is for 1 MiB, here.
        got.iter().for_each(|got| assert!((10 * wanted / 3).abs_diff(*got) <= wanted / 3 + MIB, "{got} of {wanted}"));
    }
}

/// Their first windows count: with a stream for every few bytes nobody gets more.
#[test]
fn who_opens_streams_all_the_time_may_send_no_more() {
    let mut link = link();
    let now = link.now;
    link.receiver().set_receive_limit(now, Some(5 * MIB));
    for _ in 0..800 {
        link.open(1);
        link.run(10 * SECOND / 800);
    }
    let got = link.delivered_in_all();
    assert!((40 * MIB..=50 * MIB + Config::default().window).contains(&got), "{got}");
}

/// A reply that waited takes the finish behind it along, however little room there is.
#[test]
fn what_follows_a_reply_that_waited_for_its_turn_goes_at_once() {
    let mut probe = Probe::established(Side::Accepting, Config::default());
    let now = probe.now;
    probe.session.set_receive_limit(now, Some(1 << 20));
    for n in 0..2 {
        let id = probe.asked(probe.theirs(n));
        probe.stream(id).accept().unwrap();
        probe.stream(id).finish().unwrap();
    }
    let mut room = [0; 1024];
    let first = probe.session.poll_control(now, &mut room);
    assert!(first > 0 && probe.session.poll_control(now, &mut room) == 0, "the second waits");
    let then = probe.session.poll_timeout().expect("a turn");
    probe.session.handle_timeout(then);
    assert!(probe.session.wants_to_send());
    assert_eq!(probe.session.poll_control(then, &mut room[..60]), 40, "the reply alone fits");
    assert!(probe.session.wants_to_send());
    assert_eq!(probe.session.poll_control(then, &mut room), 36, "the finish");
    assert!(!probe.session.wants_to_send());
}
