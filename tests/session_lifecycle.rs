//! Streams from OPEN to their end, on two sessions joined and on one against a script.

mod support;

use std::time::Duration;

use support::*;
use virbistream::proto::{
    Config, Event, MemoryBudget, Misuse, OpenError, SessionError, Side, StreamError, StreamStats,
};
use virbistream::wire::{Extension, Open, OpenReply, Rule, codes};

const MIB: u64 = 1 << 20;

/// Two sessions with room for what these tests open.
fn pair() -> Pair {
    let config = Config { max_streams: 64, memory_budget: MemoryBudget::new(64 * 8192), ..small() };
    Pair::established(config.clone(), config)
}

fn stats(of: &Event) -> StreamStats {
    match of {
        Event::Over { stats, .. } | Event::Failed { stats, .. } => *stats,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_is_opened_from_either_side() {
    for opener in End::BOTH {
        let mut pair = pair();
        for n in 0..3 {
            let id = pair.opened(opener, open("vda"));
            assert_eq!(id, 2 * n + if opener == End::Connecting { 1 } else { 2 });
            pair.write(opener, id, 20_000);
            pair.write(opener.other(), id, 30_000);
            pair.settle();
            assert_eq!((pair.flow(opener, id).given, pair.flow(opener.other(), id).given), (30_000, 20_000));
        }
    }
}

#[test]
fn what_is_asked_arrives_as_it_was_asked() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let request = Open {
            target: "ü".repeat(127) + "x",
            kind: 0xdead_beef,
            priority: 3,
            window: 77,
            extensions: vec![Extension { kind: 9, needed: false, value: vec![1, 2, 3] }; 16],
        };
        probe.news();
        let id = probe.theirs(5);
        probe.hear(&Packet::Open(id, request.clone()));
        let news = probe.news();
        assert!(matches!(&news[..], [Event::Incoming { request: told, .. }] if *told == request), "{news:?}");

        let id = probe.ask(request.clone());
        let said = Packet::Open(id, Open { window: 8192, ..request });
        assert_eq!(probe.said.last(), Some(&said), "with our own window");
        let extensions = vec![Extension { kind: 9, needed: false, value: Vec::new() }];
        probe.hear(&Packet::OpenReply(id, OpenReply { window: 5, extensions }));
        assert_eq!(probe.stream(id).credit(), 5);
    }
}

#[test]
fn what_cannot_be_asked_is_not_sent() {
    let mut probe = Probe::established(SIDES[0], small());
    let extension = |len| Extension { kind: 1, needed: false, value: vec![0; len] };
    let mut refuse = |request: Open, why| {
        assert_eq!(probe.session.open(probe.now, request), Err(why));
        assert_eq!(probe.speak(), []);
        assert_eq!(probe.session.granted(), 0);
    };
    refuse(open(""), OpenError::TargetName);
    refuse(open("a\nb"), OpenError::TargetName);
    refuse(open(&"x".repeat(256)), OpenError::TargetName);
    refuse(Open { priority: 4, ..open("vda") }, OpenError::Priority);
    refuse(Open { priority: u32::MAX, ..open("vda") }, OpenError::Priority);
    refuse(Open { extensions: vec![extension(1025)], ..open("vda") }, OpenError::Extensions);
    refuse(Open { extensions: vec![extension(0); 17], ..open("vda") }, OpenError::Extensions);
    let id = probe.ask(Open { priority: 3, extensions: vec![extension(1024); 16], ..open("vda") });
    assert_eq!(id, 1, "no id was spent");
}

#[test]
fn a_refusal_tells_the_opener_why_and_spends_the_id() {
    for opener in End::BOTH {
        let mut pair = pair();
        let other = pair.opened(opener, open("vda"));
        pair.at_mut(opener.other()).accepts = false;
        let id = pair.open(opener, open("vdb")).unwrap();
        pair.settle();
        pair.refuse(opener.other(), id);
        pair.settle();
        let StreamError::Refused(why) = pair.failure(opener, id) else { panic!("{:?}", pair.failure(opener, id)) };
        assert_eq!((why.code, &why.message[..]), (88, "not you"));
        let at = pair.at_mut(opener.other());
        at.accepts = true;
        assert_eq!((at.session.stream_count(), at.session.granted()), (1, 8192));
        assert_eq!(pair.opened(opener, open("vdc")), id + 2);
        pair.write(opener, other, 10_000);
        pair.settle();
        assert_eq!(pair.flow(opener.other(), other).given, 10_000);
    }
}

#[test]
fn the_errno_of_a_refusal_reaches_the_opener() {
    let mut probe = Probe::established(SIDES[1], small());
    let id = probe.asked(probe.theirs(0));
    let why = error(codes::SYSTEM_ERROR, "no such socket").with_ints(2, 0);
    probe.stream(id).refuse(why.clone()).unwrap();
    assert_eq!(probe.speak(), [Packet::OpenRefused(id, why)]);
}

#[test]
fn before_the_answer_a_stream_only_resets() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let asked = probe.theirs(0);
        for id in [probe.ask(open("vda")), probe.asked(asked)] {
            assert_eq!(probe.stream(id).send(1), Err(Misuse::BeyondGrant));
            assert_eq!(probe.stream(id).finish(), Err(Misuse::State));
            assert_eq!(probe.stream(id).stop(), Err(Misuse::State));
            assert_eq!(probe.stream(id).consumed(1), Err(Misuse::BeyondReceived));
            probe.stream(id).ready();
            assert_eq!(probe.session.poll_grant(), None);
        }
        let id = probe.ours(0);
        assert_eq!(probe.stream(id).accept(), Err(Misuse::State));
        assert_eq!(probe.stream(id).refuse(error(1, "")), Err(Misuse::State));
        assert_eq!(probe.speak(), []);
    }
}

#[test]
fn the_opener_may_reset_before_the_reply_which_is_then_discarded() {
    for opener in End::BOTH {
        for answer in [Pair::accept, Pair::refuse, |_: &mut Pair, _, _| {}] {
            let mut pair = pair();
            pair.at_mut(opener.other()).accepts = false;
            let id = pair.open(opener, open("vda")).unwrap();
            pair.settle();
            pair.reset(opener, id);
            answer(&mut pair, opener.other(), id);
            // Both are under way at once.
            pair.transmit(opener, 0);
            pair.transmit(opener.other(), 0);
            pair.settle();
            for end in End::BOTH {
                assert_eq!((pair.at(end).session.stream_count(), pair.at(end).session.granted()), (0, 0));
                assert!(pair.flow(end, id).ending.is_some());
            }
        }
    }
}

#[test]
fn a_stream_reset_before_it_was_asked_for_is_never_heard_of() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let id = probe.session.open(probe.now, open("vda")).unwrap();
        probe.session.stream(id).unwrap().reset(error(1, "never mind"));
        assert_eq!(probe.speak(), []);
        assert_eq!((probe.session.stream_count(), probe.session.granted()), (0, 0));
        let next = probe.opened();
        assert_eq!(next, id.number() + 2, "its id is a gap");
        probe.moves(next);
    }
}

#[test]
fn an_open_that_is_not_answered_has_its_time() {
    for side in SIDES {
        let config = Config { open_timeout: Duration::from_secs(3), ..small() };
        let mut probe = Probe::established(side, config);
        let living = probe.opened();
        let id = probe.ask(open("vda"));
        probe.news();
        assert_eq!(probe.session.poll_timeout(), Some(probe.now + Duration::from_secs(3)));
        probe.pass(Duration::from_millis(2999));
        assert_eq!(probe.news(), []);
        probe.pass(Duration::from_millis(1));
        let news = probe.news();
        let error = StreamError::OpenTimeout(Duration::from_secs(3));
        assert!(matches!(&news[..], [Event::Failed { error: why, .. }] if *why == error), "{news:?}");
        let said = probe.speak();
        assert!(matches!(&said[..], [Packet::Reset(n, why)] if *n == id && why.code == codes::OPERATION_TIMEOUT));
        probe.hear(&Packet::open_reply(id, MIB));
        probe.hear(&Packet::Data(id, vec![1]));
        assert_eq!(probe.news(), [], "the late reply, and what comes behind it, are discarded");
        probe.moves(living);
    }
}

#[test]
fn an_open_that_was_answered_has_no_time_any_more() {
    let config = Config { open_timeout: Duration::from_secs(3), ..small() };
    let mut probe = Probe::established(SIDES[0], config);
    let id = probe.opened();
    probe.pass(Duration::from_secs(4));
    probe.moves(id);
    assert!(probe.session.poll_timeout() > Some(probe.now), "no deadline is left behind");
}

/// The OPEN never left, so nothing is owed and the session ends in the same moment.
#[test]
fn the_last_stream_fails_before_the_session_it_ends() {
    let config = Config { open_timeout: Duration::from_secs(3), ..small() };
    let mut probe = Probe::established(SIDES[0], config);
    probe.session.open(probe.now, open("vda")).unwrap();
    probe.session.close();
    probe.news();
    probe.pass(Duration::from_secs(3));
    let news = probe.news();
    assert!(matches!(news[..], [Event::Failed { .. }, Event::Closed(Ok(()))]), "{news:?}");
}

#[test]
fn no_more_streams_are_asked_for_than_the_peer_takes() {
    for opener in End::BOTH {
        let mut pair = Pair::established(small(), small());
        let ids: Vec<u32> = (0..4).map(|_| pair.opened(opener, open("vda"))).collect();
        assert_eq!(pair.open(opener, open("vda")), Err(OpenError::StreamLimit(4)));
        // The other side's streams have places of their own.
        (0..4).for_each(|_| _ = pair.opened(opener.other(), open("vdb")));
        pair.finish(opener, ids[0]);
        pair.finish(opener.other(), ids[0]);
        assert_eq!(pair.open(opener, open("vda")), Err(OpenError::StreamLimit(4)), "it is not over yet");
        pair.settle();
        pair.assert_over(ids[0]);
        pair.opened(opener, open("vda"));
        pair.reset(opener, ids[1]);
        pair.settle();
        pair.opened(opener, open("vda"));
    }
}

#[test]
fn a_peer_that_takes_none_is_asked_for_none() {
    let mut pair = Pair::established(Config { max_streams: 0, ..small() }, small());
    assert_eq!(pair.open(End::Accepting, open("vda")), Err(OpenError::StreamLimit(0)));
    pair.opened(End::Connecting, open("vda"));
}

#[test]
fn opens_beyond_the_streams_or_the_memory_are_refused() {
    for side in SIDES {
        for (max_streams, budget) in [(2, 100), (100, 2)] {
            let config = Config { max_streams, memory_budget: MemoryBudget::new(budget * 8192 + 8191), ..small() };
            let mut probe = Probe::established(side, config);
            let ids = [probe.accepted(probe.theirs(0)), probe.accepted(probe.theirs(1))];
            let third = probe.theirs(2);
            probe.hear(&Packet::Open(third, open("ours")));
            let said = probe.speak();
            let [Packet::OpenRefused(id, why)] = &said[..] else { panic!("{said:?}") };
            assert_eq!((*id, why.code, why.int2), (third, codes::RESOURCE_BUSY, Rule::StreamLimit.number() as i32));
            assert_eq!(probe.session.granted(), 2 * 8192);
            ids.iter().for_each(|id| probe.moves(*id));
            probe.hear(&Packet::Reset(ids[0], error(1, "")));
            probe.accepted(probe.theirs(3));
        }
    }
}

#[test]
fn our_own_opens_keep_to_our_memory_too() {
    for side in SIDES {
        let mut probe = Probe::established(side, Config { memory_budget: MemoryBudget::new(2 * 8192), ..small() });
        probe.opened();
        let id = probe.accepted(probe.theirs(0));
        assert_eq!(probe.session.open(probe.now, open("vda")), Err(OpenError::MemoryBudget));
        assert_eq!(probe.session.granted(), 2 * 8192);
        probe.stream(id).reset(error(1, ""));
        probe.speak();
        probe.opened();
    }
}

#[test]
fn sessions_with_one_budget_share_it_and_give_back_what_they_had() {
    let config = Config { memory_budget: MemoryBudget::new(3 * 8192), ..small() };
    let [mut one, mut other] = [0, 1].map(|_| Probe::established(Side::Connecting, config.clone()));
    one.opened();
    other.opened();
    other.opened();
    for full in [&mut one, &mut other] {
        assert_eq!(full.session.open(full.now, open("vda")), Err(OpenError::MemoryBudget));
    }
    assert_eq!(
        (one.session.granted(), other.session.granted(), config.memory_budget.taken()),
        (8192, 2 * 8192, 3 * 8192)
    );
    other.session.shutdown("enough");
    one.opened();
    drop(other);
    drop(one);
    assert_eq!(config.memory_budget.taken(), 0);
}

#[test]
fn each_direction_finishes_by_itself_in_either_order() {
    for opener in End::BOTH {
        for first in End::BOTH {
            for bytes in [0, 1, 50_000] {
                let mut pair = pair();
                let id = pair.opened(opener, open("vda"));
                pair.write(first, id, bytes);
                pair.finish(first, id);
                pair.settle();
                assert!(pair.flow(first.other(), id).finished);
                assert_eq!(pair.flow(first, id).ending, None, "the other direction goes on");
                pair.write(first.other(), id, 40_000);
                pair.settle();
                assert_eq!(pair.flow(first, id).given, 40_000);
                pair.finish(first.other(), id);
                pair.settle();
                pair.assert_over(id);
                let over = pair.at(first).events.last().map(stats).unwrap();
                assert_eq!((over.sent, over.delivered, over.received, over.consumed), (bytes, bytes, 40_000, 40_000));
            }
        }
    }
}

#[test]
fn both_directions_finish_at_once() {
    let mut pair = pair();
    let id = pair.opened(End::Accepting, open("vda"));
    for end in End::BOTH {
        pair.write(end, id, 5000);
        pair.finish(end, id);
        pair.transmit(end, 64);
    }
    pair.settle();
    pair.assert_over(id);
}

#[test]
fn finish_needs_no_credit() {
    let mut pair = pair();
    let id = pair.opened(End::Connecting, open("vda"));
    pair.at_mut(End::Accepting).flows.get_mut(&id).unwrap().sink = Sink::Lazy;
    pair.write(End::Connecting, id, 8192);
    pair.settle();
    pair.finish(End::Connecting, id);
    pair.settle();
    assert!(pair.flow(End::Accepting, id).finished);
    assert_eq!(pair.flow(End::Accepting, id).consumed, 0);
}

#[test]
fn a_stream_is_over_when_the_far_end_has_taken_the_last_byte() {
    let mut pair = pair();
    let id = pair.opened(End::Connecting, open("vda"));
    pair.at_mut(End::Accepting).flows.get_mut(&id).unwrap().sink = Sink::Lazy;
    pair.write(End::Connecting, id, 5000);
    pair.finish(End::Connecting, id);
    pair.finish(End::Accepting, id);
    pair.settle();
    for bytes in [4000, 999] {
        pair.consume(End::Accepting, id, bytes);
        pair.settle();
        assert_eq!(pair.flow(End::Connecting, id).ending, None);
        assert_eq!(pair.flow(End::Accepting, id).ending, None);
    }
    pair.consume(End::Accepting, id, 1);
    pair.settle();
    pair.assert_over(id);
}

#[test]
fn after_finish_nothing_is_sent_and_a_second_one_does_nothing() {
    let mut probe = Probe::established(SIDES[0], small());
    let id = probe.opened();
    assert_eq!(probe.send(id, b"abc"), 3);
    probe.stream(id).ready();
    probe.stream(id).finish().unwrap();
    probe.stream(id).finish().unwrap();
    assert_eq!(probe.stream(id).send(1), Err(Misuse::BeyondGrant));
    assert_eq!(probe.session.poll_grant(), None);
    assert_eq!(probe.speak(), [Packet::Finish(id, 3)]);
}

#[test]
fn stop_ends_one_direction_at_its_present_offset() {
    for opener in End::BOTH {
        for stopper in End::BOTH {
            let mut pair = pair();
            let id = pair.opened(opener, open("vda"));
            let source = stopper.other();
            pair.at_mut(stopper).flows.get_mut(&id).unwrap().sink = Sink::Lazy;
            pair.write(source, id, MIB);
            pair.transmit(source, 1);
            pair.carry(source, usize::MAX);
            pair.transmit(source, 1); // under way when STOP is said
            pair.stop(stopper, id);
            pair.settle();
            let flow = pair.flow(source, id);
            assert!(flow.was_stopped && flow.sent == 8192 && pair.flow(stopper, id).given == 4096, "{flow:?}");
            assert_eq!((flow.ending.clone(), pair.flow(stopper, id).finished), (None, true));
            pair.write(stopper, id, 30_000);
            pair.settle();
            assert_eq!(pair.flow(source, id).given, 30_000, "the stopper's own direction goes on");
            pair.finish(stopper, id);
            pair.settle();
            pair.assert_over(id);
        }
    }
}

#[test]
fn stop_releases_a_finished_direction_that_nobody_takes() {
    let mut pair = pair();
    let id = pair.opened(End::Connecting, open("vda"));
    pair.at_mut(End::Accepting).flows.get_mut(&id).unwrap().sink = Sink::Lazy;
    pair.write(End::Connecting, id, 5000);
    pair.finish(End::Connecting, id);
    pair.finish(End::Accepting, id);
    pair.settle();
    assert_eq!(pair.flow(End::Connecting, id).ending, None);
    pair.stop(End::Accepting, id);
    pair.settle();
    pair.assert_over(id);
}

#[test]
fn both_stop_at_once() {
    let mut pair = pair();
    let id = pair.opened(End::Connecting, open("vda"));
    for end in End::BOTH {
        pair.write(end, id, MIB);
        pair.transmit(end, 1);
        pair.stop(end, id);
    }
    pair.settle();
    pair.assert_over(id);
}

#[test]
fn a_second_stop_is_ignored() {
    let mut probe = Probe::established(SIDES[0], small());
    let id = probe.opened();
    probe.news();
    for _ in 0..3 {
        probe.hear(&Packet::Stop(id));
    }
    assert!(matches!(probe.news()[..], [Event::Stopped(_)]));
    assert_eq!(probe.speak(), [Packet::Finish(id, 0)]);
    probe.hear(&Packet::Stop(id));
    assert_eq!((probe.news(), probe.speak()), (vec![], vec![]));
    probe.stream(id).stop().unwrap();
    probe.stream(id).stop().unwrap();
    assert_eq!(probe.speak(), [Packet::Stop(id)]);
}

/// What is consumed of a stopped direction is the owner's affair: the peer hears nothing of it.
#[test]
fn a_stopped_direction_is_neither_counted_nor_granted() {
    let mut probe = Probe::established(SIDES[0], small());
    probe.consumes = false;
    let id = probe.opened();
    probe.hear(&Packet::Data(id, vec![0; 4096]));
    probe.stream(id).consumed(4096).unwrap();
    probe.stream(id).stop().unwrap();
    probe.hear(&Packet::Data(id, vec![0; 4096]));
    probe.stream(id).consumed(4096).unwrap();
    assert_eq!(probe.given[&id].len(), 4096, "what comes after STOP is not given out");
    assert_eq!(probe.speak(), [Packet::Stop(id)], "the CREDIT that was owed is not said either");
}

#[test]
fn reset_ends_both_directions_and_what_is_under_way_is_discarded() {
    for opener in End::BOTH {
        for resetter in End::BOTH {
            let mut pair = pair();
            let other = pair.opened(opener, open("vda"));
            let id = pair.opened(opener, open("vdb"));
            for end in End::BOTH {
                pair.write(end, id, MIB);
                pair.transmit(end, 2);
            }
            pair.reset(resetter, id);
            pair.settle();
            let StreamError::Reset(why) = pair.failure(resetter.other(), id) else { panic!() };
            assert_eq!((why.code, &why.message[..]), (38, "broken"));
            assert_eq!(pair.flow(resetter, id).ending, Some(Ending::Dismissed), "its owner knows");
            for end in End::BOTH {
                assert_eq!((pair.at(end).session.stream_count(), pair.at(end).session.granted()), (1, 8192));
                pair.write(end, other, 20_000);
            }
            pair.settle();
            assert_eq!((pair.flow(opener, other).given, pair.flow(opener.other(), other).given), (20_000, 20_000));
        }
    }
}

#[test]
fn behind_a_reset_nothing_is_said_of_the_stream() {
    let mut probe = Probe::established(SIDES[0], small());
    probe.consumes = false;
    let id = probe.opened();
    probe.hear(&Packet::Data(id, vec![0; 4096]));
    probe.stream(id).reset(error(1, ""));
    probe.stream(id).consumed(4096).unwrap();
    assert_eq!(probe.stream(id).finish(), Err(Misuse::State));
    assert_eq!(probe.stream(id).stop(), Err(Misuse::State));
    probe.stream(id).ready();
    probe.stream(id).reset(error(2, ""));
    assert_eq!(probe.session.poll_grant(), None);
    assert_eq!(probe.speak(), [Packet::Reset(id, error(1, ""))]);
}

#[test]
fn resets_that_cross_end_the_stream_once() {
    let mut pair = pair();
    let id = pair.opened(End::Connecting, open("vda"));
    for end in End::BOTH {
        pair.reset(end, id);
        pair.transmit(end, 0);
    }
    pair.settle();
    for end in End::BOTH {
        assert_eq!(pair.at(end).session.stream_count(), 0);
        assert_eq!(pair.flow(end, id).ending, Some(Ending::Dismissed));
    }
}

/// The peer counts on the place of a stream that it has reset, whatever we still had to say of it.
#[test]
fn a_reset_by_the_peer_frees_the_place_of_what_we_had_ended_and_not_yet_said() {
    type End = fn(&mut Probe, u32);
    let ends: [End; 3] = [
        |probe, id| probe.stream(id).refuse(error(1, "")).unwrap(),
        |probe, id| probe.stream(id).reset(error(1, "")),
        |probe, id| {
            probe.stream(id).accept().unwrap();
            probe.speak();
            probe.stream(id).reset(error(1, ""));
        },
    ];
    for side in SIDES {
        for end in ends {
            let mut probe = Probe::established(side, Config { max_streams: 1, ..small() });
            let id = probe.asked(probe.theirs(0));
            end(&mut probe, id);
            probe.hear(&Packet::Reset(id, error(2, "")));
            assert_eq!((probe.session.stream_count(), probe.session.granted()), (0, 0));
            assert_eq!(probe.speak(), [], "and of the old one nothing more is said");
            let next = probe.accepted(probe.theirs(1));
            probe.moves(next);
        }
    }
}

#[test]
fn a_reset_by_the_peer_leaves_nothing_owed() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let id = probe.accepted(probe.theirs(0));
        probe.consumes = false;
        probe.hear(&Packet::Data(id, vec![0; 4096]));
        probe.stream(id).consumed(4096).unwrap();
        probe.stream(id).stop().unwrap();
        probe.stream(id).finish().unwrap();
        probe.hear(&Packet::Reset(id, error(1, "")));
        assert!(!probe.session.wants_to_send());
        assert_eq!(probe.speak(), []);
        let news = probe.news();
        let failed = news.iter().filter(|event| matches!(event, Event::Failed { error: StreamError::Reset(_), .. }));
        assert_eq!(failed.count(), 1);
    }
}

#[test]
fn the_session_ends_under_its_streams_with_the_cause() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let ids = [probe.opened(), probe.accepted(probe.theirs(0)), probe.ask(open("x")), probe.asked(probe.theirs(1))];
        let dead = probe.opened();
        probe.stream(dead).reset(error(1, ""));
        probe.news();
        probe.session.handle_link_lost("cut");
        let cause = SessionError::LinkLost("cut".into());
        let mut news = probe.news();
        assert_eq!(news.pop(), Some(Event::Closed(Err(cause.clone()))));
        assert_eq!(news.len(), ids.len(), "the one that was reset has had its end");
        for event in news {
            let Event::Failed { error, .. } = event else { panic!("{event:?}") };
            assert_eq!(error, StreamError::Session(cause.clone()));
        }
    }
}

/// Its reset crosses the opener's finish, behind which the opener has forgotten the stream and opens the next.
#[test]
fn a_stream_that_was_reset_gives_its_place_back_though_the_reset_is_not_out() {
    for opener in End::BOTH {
        let config = Config { max_streams: 1, ..small() };
        let mut pair = Pair::established(config.clone(), config);
        let acceptor = opener.other();
        let id = pair.opened(opener, open("vda"));
        pair.settle();
        // The opener's last word is under way, so for it the stream is over.
        pair.stop(acceptor, id);
        pair.finish(acceptor, id);
        pair.transmit_control(acceptor, 1 << 16);
        pair.carry(acceptor, usize::MAX);
        pair.transmit_control(opener, 1 << 16);
        let next = pair.open(opener, open("vdb")).expect("there is room");
        pair.reset(acceptor, id);
        pair.settle();
        assert!(pair.flow(opener, next).open, "{:?}", pair.flow(opener, next));
    }
}
