//! HELLO: what is said before it stands, who refuses it and how, and peers that do not know it.

mod support;

use std::time::Duration;

use support::*;
use virbistream::proto::{Config, Event, MemoryBudget, OpenError, SessionError, Side};
use virbistream::wire::{
    Close, EXT_TICKET, Extension, Hello, HelloReply, Limits, PACKET_MAX, PACKET_MIN, Rule, close, codes,
};

const HOUR: Duration = Duration::from_secs(3600);

fn limits(max_data: u32, max_streams: u32) -> Limits {
    Limits { max_data, max_streams }
}

/// The header and the code of a refusal of HELLO, and whatever comes behind the code.
fn refusal(code: i32, rest: &[u8]) -> Vec<u8> {
    raw(0, 1, 1, 1, &[&code.to_be_bytes(), rest].concat())
}

#[test]
fn to_a_peer_not_known_hello_is_all_that_is_said() {
    let mut probe = Probe::new(Side::Connecting, Config { hello_timeout: None, ..small() });
    let said = probe.speak();
    let expected = Hello {
        min_version: 1,
        max_version: 1,
        offered: 0,
        needed: 0,
        limits: limits(4096, 4),
        extensions: Vec::new(),
    };
    assert_eq!(said, [Packet::Hello(1, expected)]);
    assert_eq!(probe.session.open(probe.now, open("vda")), Err(OpenError::NotEstablished));
    probe.pass(HOUR);
    assert_eq!(probe.speak(), []);
    assert_eq!(probe.news(), []);
}

#[test]
fn the_accepting_side_says_nothing_before_hello() {
    let mut probe = Probe::new(Side::Accepting, Config { hello_timeout: None, ..small() });
    assert_eq!(probe.session.open(probe.now, open("vda")), Err(OpenError::NotEstablished));
    probe.pass(HOUR);
    assert!(!probe.session.wants_to_send());
    assert_eq!(probe.speak(), []);
    assert_eq!(probe.news(), []);
}

#[test]
fn a_session_ended_before_hello_stands_says_no_close() {
    for side in SIDES {
        for end in [|probe: &mut Probe| probe.session.close(), |probe: &mut Probe| probe.session.shutdown("enough")] {
            let mut probe = Probe::new(side, small());
            if side == Side::Connecting {
                probe.speak();
            }
            end(&mut probe);
            assert_eq!(probe.speak(), [], "{side:?}");
            assert!(probe.session.is_finished());
            assert!(matches!(probe.news()[..], [Event::Closed(_)]));
        }
    }
}

#[test]
fn a_legacy_peer_hears_no_close_either() {
    let mut probe = Probe::new(Side::Connecting, small());
    probe.speak();
    probe.hear_bytes(&refusal(codes::RPC, b"")).unwrap();
    probe.session.shutdown("enough");
    assert_eq!(probe.speak(), []);
}

/// The peer has said HELLO and may hear CLOSE, but not before the reply.
#[test]
fn the_reply_to_hello_goes_before_any_close() {
    for end in [|probe: &mut Probe| probe.session.close(), |probe: &mut Probe| probe.session.shutdown("enough")] {
        let mut probe = Probe::new(Side::Accepting, small());
        probe.hear(&Packet::Hello(7, hello()));
        end(&mut probe);
        let said = probe.speak();
        assert!(matches!(said[..], [Packet::HelloReply(7, _), Packet::Close(_)]), "{said:?}");
    }
    let mut pair = Pair::new(small(), small());
    pair.transmit(End::Connecting, 0);
    pair.carry(End::Connecting, usize::MAX);
    pair.shutdown(End::Accepting);
    pair.settle();
    let Some(Err(SessionError::PeerClosed { code, .. })) = pair.at(End::Connecting).closed else {
        panic!("{:?}", pair.at(End::Connecting).closed)
    };
    assert_eq!(code, close::SHUTDOWN);
}

#[test]
fn hello_stands_at_both_ends_with_the_limits_of_the_other() {
    let theirs = Limits { max_data: 8192, max_streams: 1024 };
    for side in SIDES {
        let mut probe = Probe::new(side, small());
        probe.greet();
        assert_eq!(probe.news(), [Event::Established { version: 1, features: 0, limits: theirs }]);
        if side == Side::Accepting {
            let reply = HelloReply { version: 1, features: 0, limits: limits(4096, 4), extensions: Vec::new() };
            assert_eq!(probe.said, [Packet::HelloReply(7, reply)], "under the serial of the call");
        }
    }
}

#[test]
fn a_later_peer_that_speaks_version_1_too_is_met_there() {
    let mut probe = Probe::new(Side::Accepting, small());
    let extensions = vec![Extension { kind: 4711, needed: false, value: vec![1; 1024] }; 16];
    probe.hear(&Packet::Hello(
        7,
        Hello { min_version: 0, max_version: u32::MAX, offered: u64::MAX, extensions, ..hello() },
    ));
    let said = probe.speak();
    assert!(matches!(&said[..], [Packet::HelloReply(7, reply)] if reply.version == 1 && reply.features == 0));
}

#[test]
fn extensions_that_are_not_needed_are_passed_over_in_the_reply() {
    let mut probe = Probe::new(Side::Connecting, small());
    probe.speak();
    let extensions = vec![Extension { kind: 1, needed: false, value: Vec::new() }];
    probe.hear(&Packet::HelloReply(1, HelloReply { extensions, ..hello_reply() }));
    assert!(probe.session.is_established());
}

#[test]
fn codes_39_and_3_mean_a_legacy_peer_whatever_the_text() {
    let short = support::error(0, "").with_ints(-1, -1);
    let long = [&codes::RPC.to_be_bytes()[..], &1u32.to_be_bytes(), &5000u32.to_be_bytes(), &[b'x'; 5000]].concat();
    let longest = vec![b'x'; (PACKET_MAX - PACKET_MIN) as usize - 4];
    let texts = ["unknown procedure: 1112735745", "unbekannte Prozedur", "", "不明な手続き", "\u{fffd}\0"];
    for code in [codes::RPC, codes::NO_SUPPORT] {
        let decoded = texts.map(|text| Packet::HelloRefused(1, support::error(code, text)).encode());
        let not = [
            refusal(code, b""),
            refusal(code, &[0xff; 7]),
            refusal(code, &long),
            refusal(code, &longest),
            refusal(code, &short.code.to_be_bytes()),
        ];
        for bytes in decoded.into_iter().chain(not) {
            for piece in [if bytes.len() < 10_000 { 1 } else { 10_000 }, usize::MAX] {
                let mut probe = Probe::new(Side::Connecting, small());
                probe.piece = piece;
                probe.speak();
                probe.hear_bytes(&bytes).unwrap();
                let news = probe.news();
                assert!(matches!(&news[..], [Event::Legacy(error)] if error.code == code), "{news:?}");
            }
        }
    }
}

#[test]
fn the_link_to_a_legacy_peer_stays_usable_for_legacy_calls() {
    let mut probe = Probe::new(Side::Connecting, small());
    probe.speak();
    probe.hear(&Packet::HelloRefused(1, support::error(codes::RPC, "unknown procedure")));
    assert!(!probe.session.is_closed());
    assert_eq!(probe.session.poll_timeout(), None);
    probe.pass(HOUR);
    assert!(!probe.session.wants_to_send());
    assert_eq!(probe.speak(), []);
    assert_eq!(probe.session.open(probe.now, open("vda")), Err(OpenError::NotEstablished));
    assert!(matches!(probe.news()[..], [Event::Legacy(_)]), "and nothing after it");
}

#[test]
fn an_answer_to_hello_that_was_not_said_or_has_another_serial_is_none() {
    for (said, serial) in [(false, 1), (true, 0), (true, 2)] {
        for answer in
            [Packet::HelloReply(serial, hello_reply()), Packet::HelloRefused(serial, support::error(codes::RPC, ""))]
        {
            let mut probe = Probe::new(Side::Connecting, small());
            if said {
                probe.speak();
            }
            let error = probe.try_hear(&answer).unwrap_err();
            assert!(matches!(error, SessionError::PeerMisbehaved { rule: Rule::Reply, .. }), "{error:?}");
            assert_eq!(probe.speak(), [], "and no CLOSE, since HELLO does not stand");
        }
    }
}

#[test]
fn any_other_code_is_a_refusal() {
    let unreadable = refusal(codes::AUTH_FAILED, &[0xff; 9]);
    let readable = Packet::HelloRefused(1, support::error(codes::AUTH_FAILED, "who are you?")).encode();
    for bytes in [unreadable, readable] {
        let mut probe = Probe::new(Side::Connecting, small());
        probe.speak();
        let error = probe.hear_bytes(&bytes).unwrap_err();
        assert!(matches!(&error, SessionError::Refused(why) if why.code == codes::AUTH_FAILED));
        assert_eq!(probe.news(), [Event::Closed(Err(error))]);
        assert_eq!(probe.speak(), [], "no CLOSE for a refused HELLO");
        assert!(probe.session.is_finished());
    }
}

#[test]
fn hello_is_refused_with_the_code_and_the_rule() {
    let needed = |needed| vec![Extension { kind: 9, needed, value: vec![7] }];
    let cases = [
        (codes::OPERATION_UNSUPPORTED, Rule::Version, Hello { min_version: 2, max_version: 9, ..hello() }),
        (codes::OPERATION_UNSUPPORTED, Rule::Version, Hello { min_version: 0, max_version: 0, ..hello() }),
        (codes::OPERATION_UNSUPPORTED, Rule::Version, Hello { min_version: 2, max_version: 0, ..hello() }),
        (codes::OPERATION_UNSUPPORTED, Rule::Feature, Hello { offered: 1, needed: 1, ..hello() }),
        (codes::OPERATION_UNSUPPORTED, Rule::Feature, Hello { offered: 0, needed: 1 << 63, ..hello() }),
        (codes::OPERATION_UNSUPPORTED, Rule::Extension, Hello { extensions: needed(true), ..hello() }),
        (codes::INVALID_ARG, Rule::Limits, Hello { limits: limits(4095, 1), ..hello() }),
        (codes::INVALID_ARG, Rule::Limits, Hello { limits: limits(16_777_217, 1), ..hello() }),
    ];
    for (code, rule, hello) in cases {
        refused(&Packet::Hello(7, hello).encode(), code, rule);
    }
    let good = Packet::Hello(7, hello()).body();
    let trailing = [&good[..], &[0; 4]].concat();
    let huge = [&good[..], &[0; 100_000]].concat();
    for body in [&b""[..], &good[..good.len() - 1], &trailing, &huge] {
        refused(&raw(0, 0, 7, 0, body), codes::INVALID_ARG, Rule::Body);
    }
}

#[track_caller]
fn refused(bytes: &[u8], code: i32, rule: Rule) {
    for piece in [1, usize::MAX] {
        let mut probe = Probe::new(Side::Accepting, small());
        probe.piece = piece;
        let cause = probe.hear_bytes(bytes).unwrap_err();
        let SessionError::RefusedPeer(error) = &cause else { panic!("{cause:?}") };
        assert_eq!((error.code, error.int2), (code, rule.number() as i32));
        assert_eq!(probe.speak(), [Packet::HelloRefused(7, (**error).clone())], "and no CLOSE");
        assert_eq!(probe.news(), [Event::Closed(Err(cause.clone()))]);
        assert!(probe.session.is_finished());
        assert_eq!(probe.try_hear(&Packet::Hello(8, hello())), Err(cause));
        assert_eq!(probe.speak(), []);
    }
}

/// The peer took our HELLO and has a session, which it would otherwise call lost.
#[test]
fn a_peer_whose_reply_is_wrong_is_told_so() {
    let wrong = HelloReply { version: 2, ..hello_reply() };
    let mut probe = Probe::new(Side::Connecting, small());
    probe.speak();
    probe.try_hear(&Packet::HelloReply(1, wrong)).unwrap_err();
    let said = probe.speak();
    assert!(matches!(&said[..], [Packet::Close(Close { code: close::VIOLATION, rule: 8, .. })]), "{said:?}");
}

#[test]
fn hello_has_its_time_on_both_sides() {
    for side in SIDES {
        let config = Config { hello_timeout: Some(Duration::from_secs(3)), ..small() };
        let mut probe = Probe::new(side, config);
        probe.speak();
        assert_eq!(probe.session.poll_timeout(), Some(probe.now + Duration::from_secs(3)));
        probe.pass(Duration::from_millis(2999));
        assert_eq!(probe.news(), []);
        probe.pass(Duration::from_millis(1));
        let cause = SessionError::HelloTimeout(Duration::from_secs(3));
        assert_eq!(probe.news(), [Event::Closed(Err(cause.clone()))]);
        assert_eq!(probe.speak(), []);
        assert_eq!(probe.session.poll_timeout(), None);
        assert_eq!(probe.try_hear(&Packet::Hello(7, hello())), Err(cause));
    }
}

#[test]
fn hello_that_came_has_no_time_any_more() {
    for side in SIDES {
        let config = Config { hello_timeout: Some(Duration::from_secs(3)), ..small() };
        let mut probe = Probe::established(side, config);
        probe.pass(Duration::from_secs(4));
        assert!(probe.session.is_established());
    }
}

#[test]
fn without_a_limit_hello_is_waited_for_for_ever() {
    for side in SIDES {
        let mut probe = Probe::new(side, Config { hello_timeout: None, ..small() });
        assert_eq!(probe.session.poll_timeout(), None);
        probe.pass(1000 * HOUR);
        assert!(!probe.session.is_closed());
        probe.greet();
    }
}

#[test]
fn what_a_configuration_says_out_of_range_is_brought_into_it() {
    for (asked, said) in [(0, 4096), (u32::MAX, 16_777_216)] {
        let mut probe = Probe::new(Side::Connecting, Config { max_data: asked, ..small() });
        let hello = probe.speak();
        assert!(matches!(&hello[..], [Packet::Hello(_, hello)] if hello.limits.max_data == said));
    }
    let never = Duration::MAX;
    let config = Config {
        window: 0,
        hello_timeout: Some(never),
        open_timeout: never,
        ping_interval: never,
        silence_limit: never,
        ..small()
    };
    for side in SIDES {
        let mut probe = Probe::established(side, config.clone());
        probe.ask(open("vda"));
        assert_eq!(probe.session.granted(), 4096, "the least window there is");
        assert!(probe.session.poll_timeout().is_none_or(|deadline| deadline > probe.now + 1000 * HOUR));
        probe.pass(1000 * HOUR);
        assert!(probe.session.is_established());
    }
    let mut restless = Probe::established(Side::Accepting, Config { ping_interval: Duration::ZERO, ..small() });
    restless.pass(Duration::from_millis(1));
    assert!(restless.session.poll_timeout().is_some_and(|deadline| deadline > restless.now), "it has time for more");
    let endless = Config { window: u64::MAX, memory_budget: MemoryBudget::new(u64::MAX), ..small() };
    let mut probe = Probe::established(Side::Accepting, endless);
    for n in 0..2 {
        probe.hear(&Packet::Open(probe.theirs(n), open("vda")));
    }
    for n in 0..2 {
        probe.hear(&Packet::Reset(probe.theirs(n), support::error(1, "")));
    }
    assert_eq!(probe.session.granted(), 0);
}

fn ticket(needed: bool) -> Extension {
    Extension { kind: EXT_TICKET, needed, value: vec![9; 32] }
}

/// One that has heard a HELLO with a ticket, which its owner has to judge.
fn judging() -> Probe {
    let mut probe = Probe::new(Side::Accepting, Config { judge_hello: true, ..small() });
    probe.hear(&Packet::Hello(7, Hello { extensions: vec![ticket(true)], ..hello() }));
    assert_eq!(probe.news(), [Event::Hello { extensions: vec![ticket(true)] }]);
    assert_eq!(probe.speak(), [], "nothing before its owner's word");
    assert!(!probe.session.is_established());
    probe
}

#[test]
fn who_is_admitted_has_the_streams_that_its_judge_allows_and_no_more_than_configured() {
    for (allowed, has) in [(2, 2), (100, 4)] {
        let mut probe = judging();
        probe.session.admit(allowed);
        assert_eq!(probe.news(), [Event::Established { version: 1, features: 0, limits: hello().limits }]);
        let reply = HelloReply { version: 1, features: 0, limits: limits(4096, has), extensions: Vec::new() };
        assert_eq!(probe.speak(), [Packet::HelloReply(7, reply)]);
        for n in 0..=has {
            probe.hear(&Packet::Open(probe.theirs(n), open("vda")));
        }
        assert!(matches!(probe.speak()[..], [Packet::OpenRefused(..)]), "of one more than {has}");
    }
}

#[test]
fn who_is_denied_is_told_why_and_never_taken_for_a_guest_of_a_legacy_peer() {
    for (code, told) in [(codes::AUTH_FAILED, codes::AUTH_FAILED), (codes::RPC, codes::OPERATION_DENIED)] {
        let mut probe = judging();
        probe.session.deny(support::error(code, "not you"));
        let error = support::error(told, "not you");
        assert_eq!(probe.news(), [Event::Closed(Err(SessionError::RefusedPeer(Box::new(error.clone()))))]);
        assert_eq!(probe.speak(), [Packet::HelloRefused(7, error)]);
        assert!(probe.session.is_finished());
        probe.session.admit(4);
        assert!(!probe.session.is_established(), "it is too late to think again");
    }
}

#[test]
fn nothing_may_be_said_while_hello_is_judged_and_judging_has_hellos_time() {
    let mut probe = judging();
    let error = probe.try_hear(&Packet::Open(1, open("vda"))).unwrap_err();
    assert!(matches!(error, SessionError::PeerMisbehaved { rule: Rule::HelloFirst, .. }), "{error}");
    let mut probe = judging();
    let error = probe.try_hear(&Packet::Hello(8, hello())).unwrap_err();
    assert!(matches!(error, SessionError::PeerMisbehaved { rule: Rule::HelloOnce, .. }), "{error}");
    let mut probe = judging();
    probe.pass(HOUR);
    assert!(matches!(probe.news()[..], [Event::Closed(Err(SessionError::HelloTimeout(_)))]));
}

#[test]
fn a_ticket_that_is_needed_is_refused_where_nobody_judges_it() {
    let with_ticket = |needed| Packet::Hello(7, Hello { extensions: vec![ticket(needed)], ..hello() });
    refused(&with_ticket(true).encode(), codes::OPERATION_UNSUPPORTED, Rule::Extension);
    let mut probe = Probe::new(Side::Accepting, small());
    probe.hear(&with_ticket(false));
    assert!(probe.session.is_established());
}

#[test]
fn our_hello_says_what_is_configured_within_the_bounds() {
    let too_long = Extension { kind: 5, needed: false, value: vec![0; 1025] };
    let many = std::iter::once(too_long).chain(std::iter::repeat_n(ticket(true), 20)).collect();
    let mut probe = Probe::new(Side::Connecting, Config { hello_extensions: many, ..small() });
    let said = probe.speak();
    assert!(matches!(&said[..], [Packet::Hello(1, hello)] if hello.extensions == vec![ticket(true); 16]), "{said:?}");
}
