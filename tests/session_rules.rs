//! A peer that breaks a rule of docs/protocol.md, §13: what ends, what lives on, what the peer is told, and that it makes
//! no difference in what pieces its bytes come. And what looks broken and is not.

#[path = "support/cases.rs"]
mod cases;
mod support;

use std::collections::BTreeMap;

use cases::{Case, Ends, Stage, cases};
use support::*;
use virbistream::proto::{Event, SessionError, Side, StreamError};
use virbistream::wire::{Close, Rule, close, codes};

const DOCUMENT: &str = include_str!("../docs/protocol.md");

/// What came of a case: all that happened and all that was said.
type Outcome = (Vec<Event>, Vec<Packet>);

fn run(case: &Case, side: Side, piece: usize) -> Outcome {
    let mut probe = Probe::new(side, small());
    probe.piece = piece;
    match case.stage {
        Stage::Fresh => _ = probe.speak(),
        Stage::Standing => {
            probe.greet();
            for n in 0..2 {
                assert_eq!(probe.opened(), probe.ours(n));
                probe.accepted(probe.theirs(n));
            }
        }
    }
    let bytes = (case.bytes)(&mut probe);
    // What ends the session leaves unsaid what else is owed.
    if !matches!(case.ends, Ends::Session) {
        probe.speak();
    }
    let mut outcome = (probe.news(), std::mem::take(&mut probe.said));
    let streams = probe.session.stream_count();
    let result = probe.hear_bytes(&bytes);
    let (news, said) = (probe.news(), probe.speak());
    match case.ends {
        Ends::Session | Ends::SessionUnsaid => {
            session_ended(case, &mut probe, &result.unwrap_err(), &news, &said);
            let living = news.len() - 1;
            assert!(living == streams || case.rule == Rule::OpenFlood, "each stream has failed");
        }
        Ends::Hello(code) => hello_refused(case, code, &mut probe, &result.unwrap_err(), &news, &said),
        Ends::Stream(id) => {
            assert_eq!(result, Ok(()));
            stream_reset(case, id(&probe), &mut probe, &news, &said);
            assert_eq!(probe.session.stream_count(), streams - 1);
        }
        Ends::Call(code) => {
            assert_eq!(result, Ok(()));
            let id = u32::from_be_bytes(*bytes[20..].first_chunk().unwrap());
            call_refused(case, code, id, &mut probe, &news, &said);
            assert_eq!(probe.session.stream_count(), streams);
        }
    }
    outcome.0.extend(news);
    outcome.1.extend(said);
    outcome
}

fn session_ended(case: &Case, probe: &mut Probe, error: &SessionError, news: &[Event], said: &[Packet]) {
    let SessionError::PeerMisbehaved { rule, detail } = error else { panic!("{error:?}") };
    assert_eq!(*rule, case.rule);
    if matches!(case.ends, Ends::Session) {
        let close = Close { code: close::VIOLATION, rule: case.rule.number(), text: detail.clone() };
        assert_eq!(said, [Packet::Close(close)]);
    } else {
        assert_eq!(said, []);
    }
    let (last, streams) = news.split_last().unwrap();
    assert_eq!(*last, Event::Closed(Err(error.clone())));
    for event in streams {
        let Event::Failed { error: why, .. } = event else { panic!("{event:?}") };
        assert_eq!(*why, StreamError::Session(error.clone()));
    }
    assert_eq!((probe.session.stream_count(), probe.session.granted()), (0, 0));
    assert_eq!(probe.session.poll_timeout(), None);
    let later = probe.session.handle_packet(probe.now, &Packet::Ping(1).header(), &[0; 8]);
    assert_eq!(later, Err(error.clone()), "the same error ever after");
    assert_eq!((probe.news(), probe.speak()), (vec![], vec![]));
    assert!(probe.session.is_finished());
}

fn hello_refused(case: &Case, code: i32, probe: &mut Probe, error: &SessionError, news: &[Event], said: &[Packet]) {
    let SessionError::RefusedPeer(why) = error else { panic!("{error:?}") };
    assert_eq!((why.code, why.int2), (code, case.rule.number() as i32));
    assert_eq!(said, [Packet::HelloRefused(7, (**why).clone())]);
    assert_eq!(news, [Event::Closed(Err(error.clone()))]);
    assert!(probe.session.is_finished());
}

fn stream_reset(case: &Case, id: u32, probe: &mut Probe, news: &[Event], said: &[Packet]) {
    let [Packet::Reset(reset, why)] = said else { panic!("{said:?}") };
    assert_eq!((*reset, why.code, why.int2), (id, codes::INVALID_ARG, case.rule.number() as i32));
    let [Event::Failed { id: failed, error, .. }] = news else { panic!("{news:?}") };
    assert_eq!((failed.number(), error), (id, &StreamError::PeerMisbehaved(case.rule)));
    discards(probe, id);
    others_live(probe);
}

fn call_refused(case: &Case, code: i32, id: u32, probe: &mut Probe, news: &[Event], said: &[Packet]) {
    let [Packet::OpenRefused(refused, why)] = said else { panic!("{said:?}") };
    assert_eq!((*refused, why.code, why.int2), (id, code, case.rule.number() as i32));
    assert_eq!(news, [], "its owner has not even heard of it");
    discards(probe, id);
    others_live(probe);
}

#[track_caller]
fn others_live(probe: &mut Probe) {
    probe.moves(probe.ours(1));
    probe.moves(probe.theirs(1));
}

/// Packets for a stream that was and is no more, as they may be under way, are passed over in silence.
#[track_caller]
fn discards(probe: &mut Probe, id: u32) {
    let sizes = [1, 4096];
    sizes.iter().for_each(|size| probe.hear(&Packet::Data(id, vec![0; *size])));
    for packet in [
        Packet::Finish(id, 4711),
        Packet::credit(id, u64::MAX, u64::MAX),
        Packet::Stop(id),
        Packet::Reset(id, error(1, "")),
        Packet::Finish(id, 0),
    ] {
        probe.hear(&packet);
    }
    // Judged no further than their headers.
    for status in [0, 1] {
        probe.hear_bytes(&raw(2, 3, id, status, &[0xff; 3])).unwrap();
    }
    assert_eq!((probe.news(), probe.speak()), (vec![], vec![]), "{id} is over");
    assert!(!probe.given.contains_key(&id) || !probe.has_stream(id));
}

#[test]
fn each_rule_ends_the_least_that_it_may_and_the_peer_is_told_which_it_broke() {
    for case in cases() {
        for side in case.sides {
            println!("{}: {} ({side:?})", case.rule, case.what);
            let whole = run(&case, *side, usize::MAX);
            for piece in [1, 27, 29] {
                assert_eq!(run(&case, *side, piece), whole, "in pieces of {piece}");
            }
        }
    }
}

/// The table of the document: number, name and scope.
fn rules_of_the_document() -> BTreeMap<u32, (&'static str, &'static str)> {
    let rows = DOCUMENT.lines().skip_while(|line| !line.starts_with("| no. | rule |")).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let mut cell = || cells.next().unwrap();
            let (number, name, _, scope) = (cell(), cell(), cell(), cell());
            (number.parse().unwrap(), (name, scope))
        })
        .collect()
}

#[test]
fn every_rule_of_the_document_has_its_cases_and_they_end_what_it_says() {
    let document = rules_of_the_document();
    let known: Vec<u32> = Rule::ALL.iter().map(|rule| rule.number()).collect();
    assert_eq!(known, document.keys().copied().collect::<Vec<_>>());
    let cases = cases();
    for rule in Rule::ALL {
        let (name, scope) = document[&rule.number()];
        assert_eq!(rule.name(), name);
        let scopes: Vec<_> = cases.iter().filter(|case| case.rule == *rule).map(|case| scope_of(case.ends)).collect();
        assert!(scopes.contains(&scope), "{rule} has no case that ends the {scope}");
        // What of a call or its answer is wrong ends what answers for it.
        let either = matches!(rule, Rule::Body | Rule::Extension);
        assert!(either || scopes.iter().all(|other| *other == scope), "{rule} ends the {scope}, not {scopes:?}");
    }
}

fn scope_of(ends: Ends) -> &'static str {
    match ends {
        Ends::Session | Ends::SessionUnsaid => "session",
        Ends::Stream(_) => "stream",
        Ends::Call(_) | Ends::Hello(_) => "call",
    }
}

/// What docs/protocol.md, §2 lists; `true` stands for a serial that is not 0.
const HEADERS: [(u32, u32, u32, bool); 13] = [
    (0, 0, 0, true),
    (0, 1, 0, true),
    (0, 1, 1, true),
    (1, 0, 0, true),
    (1, 1, 0, true),
    (1, 1, 1, true),
    (2, 3, 2, true),
    (2, 3, 0, true),
    (2, 3, 1, true),
    (3, 2, 0, false),
    (4, 2, 0, false),
    (5, 2, 0, false),
    (6, 2, 0, false),
];

#[test]
fn every_header_that_the_document_does_not_list_is_an_error() {
    for procedure in 0..256 {
        for kind in (0..9).chain([u32::MAX]) {
            for status in (0..5).chain([u32::MAX]) {
                for serial in [0, 1] {
                    let listed = HEADERS
                        .iter()
                        .any(|(p, k, s, any)| (*p, *k, *s) == (procedure, kind, status) && (*any || serial == 0));
                    let close = (procedure, kind, status, serial) == (7, 2, 0, 0);
                    let rule = match (procedure, kind, status) {
                        _ if listed || close => continue,
                        (8.., _, _) => Rule::Procedure,
                        (2, 6, 2) => Rule::Hole,
                        _ => Rule::Header,
                    };
                    let mut probe = Probe::established(Side::Accepting, small());
                    let error = probe.hear_bytes(&raw(procedure, kind, serial, status, &[0; 12])).unwrap_err();
                    let SessionError::PeerMisbehaved { rule: broken, .. } = error else { panic!("{error:?}") };
                    assert_eq!(broken, rule, "{procedure}, {kind}, {serial}, {status}");
                }
            }
        }
    }
}

#[test]
fn packets_for_a_stream_that_is_over_are_passed_over_however_it_ended() {
    type End = fn(&mut Probe, u32);
    let ends: [(&str, End); 5] = [
        ("over", |probe, id| {
            probe.stream(id).finish().unwrap();
            probe.speak();
            probe.hear(&Packet::Finish(id, 0));
        }),
        ("we reset it", |probe, id| probe.stream(id).reset(error(1, ""))),
        ("we reset it and have not said so", |probe, id| {
            probe.stream(id).reset(error(1, ""));
            // Discarding goes on before the reset is said.
            probe.hear(&Packet::Data(id, vec![0; 4096]));
            probe.hear(&Packet::Finish(id, 9));
            probe.hear(&Packet::credit(id, 99, 99));
            probe.hear(&Packet::Stop(id));
        }),
        ("the peer reset it", |probe, id| probe.hear(&Packet::Reset(id, error(1, "")))),
        ("both stopped", |probe, id| {
            probe.hear(&Packet::Stop(id));
            probe.stream(id).stop().unwrap();
            probe.speak();
            probe.hear(&Packet::Finish(id, 0));
        }),
    ];
    for side in SIDES {
        for (what, end) in &ends {
            println!("{what}");
            let mut probe = Probe::established(side, small());
            for n in 0..2 {
                probe.opened();
                probe.accepted(probe.theirs(n));
            }
            for id in [probe.ours(0), probe.theirs(0)] {
                end(&mut probe, id);
                probe.speak();
                probe.news();
                assert!(!probe.has_stream(id), "{what}");
                discards(&mut probe, id);
            }
            let ours = probe.ours(0);
            probe.hear(&Packet::open_reply(ours, 9));
            probe.hear(&Packet::OpenRefused(ours, error(1, "")));
            others_live(&mut probe);
        }
    }
}

#[test]
fn packets_for_a_stream_that_was_refused_are_passed_over() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        for n in 0..2 {
            probe.opened();
            probe.accepted(probe.theirs(n));
        }
        let by_peer = probe.ask(open("x"));
        probe.hear(&Packet::OpenRefused(by_peer, error(1, "")));
        let refused = probe.asked(probe.theirs(2));
        probe.stream(refused).refuse(error(1, "")).unwrap();
        probe.news();
        assert_eq!(probe.speak(), [Packet::OpenRefused(refused, error(1, ""))]);
        discards(&mut probe, refused);
        discards(&mut probe, by_peer);
        others_live(&mut probe);
    }
}

#[test]
fn an_id_in_a_gap_counts_as_one_that_is_over() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        probe.opened();
        probe.opened();
        probe.accepted(probe.theirs(1));
        probe.news();
        let gap = probe.theirs(0);
        discards(&mut probe, gap);
        others_live(&mut probe);
    }
}

#[test]
fn credit_that_goes_back_is_ignored_in_that_field() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let id = probe.ask(open("x"));
        probe.hear(&Packet::open_reply(id, 1000));
        assert_eq!(probe.send(id, &[0; 600]), 600);
        let steps = [((0, 500), 400, 0), ((600, 900), 400, 600), ((100, 2000), 1400, 600), ((0, 0), 1400, 600)];
        for ((consumed, limit), credit, delivered) in steps {
            probe.hear(&Packet::credit(id, consumed, limit));
            assert_eq!(probe.stream(id).credit(), credit);
            assert_eq!(probe.stream(id).stats().delivered, delivered);
        }
        probe.hear(&Packet::credit(id, 0, u64::MAX));
        assert_eq!(probe.stream(id).credit(), u64::MAX - 600);
        assert_eq!(probe.send(id, &[0; 20_000]), 20_000);
    }
}

#[test]
fn data_up_to_the_limit_and_of_the_greatest_size_is_taken() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        probe.consumes = false;
        let id = probe.accepted(probe.theirs(0));
        probe.hear(&Packet::Data(id, vec![7; 4096]));
        probe.hear(&Packet::Data(id, vec![7; 4095]));
        probe.hear(&Packet::Data(id, vec![7; 1]));
        assert_eq!(probe.given[&id].len(), 8192);
        probe.stream(id).consumed(2048).unwrap();
        let said = probe.speak();
        let credit = Packet::credit(id, 2048, 2048 + 8192);
        assert_eq!(said, [credit, Packet::Ping(1)], "it is due; and how far is the peer?");
        probe.hear(&Packet::Data(id, vec![7; 2048]));
        probe.hear(&Packet::Finish(id, 8192 + 2048));
    }
}

#[test]
fn two_hundred_and_fifty_six_refusals_may_stand() {
    for side in SIDES {
        let mut probe = Probe::established(side, small());
        let living = probe.accepted(probe.theirs(0));
        for round in 0..3 {
            for n in 0..256 {
                probe.hear(&Packet::Open(probe.theirs(1 + 256 * round + n), open("")));
            }
            assert_eq!(probe.session.stream_count(), 257);
            assert_eq!(probe.speak().len(), 256);
            assert_eq!(probe.session.stream_count(), 1);
        }
        probe.moves(living);
    }
}

#[test]
fn a_peer_of_another_program_is_not_ours() {
    let probe = Probe::new(Side::Accepting, small());
    let ours = Packet::Ping(1).header();
    assert!(probe.session.owns(&ours));
    for header in [
        virbistream::wire::Header { program: 1, ..ours },
        virbistream::wire::Header { version: 2, ..ours },
        virbistream::wire::Header { procedure: 0x4253_0000, ..ours },
        virbistream::wire::Header { procedure: 0x4253_0101, ..ours },
    ] {
        assert!(!probe.session.owns(&header), "{header:?}");
    }
}
