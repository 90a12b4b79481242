//! Every rule of docs/protocol.md, §13, that an accepting side can be made to judge: broken.
//!
//! Not among them are 8 (choice), which a connecting side judges, and 12 (before-reply): whether the reply was out is the
//! acceptor's to know.

use virbistream::wire::{Close, Extension, Hello, Open, Rule};

use super::bistream::standing;
use super::case::{Case, Fault, Needs, Verdict};
use super::peer::{Came, Packet, Peer};
use super::session::{
    HELLO_SERIAL, Session, WINDOW, block, bytes, decoded, header, hello, judge, kind, raw, say_close, say_credit,
    say_data, say_finish, say_hello, say_open, say_ping, say_reset, say_stop,
};

const NEEDED: Extension = Extension { kind: 0x7fff_ffff, needed: true, value: Vec::new() };

pub(super) fn cases() -> Vec<Case> {
    [unsaid(), refused_hellos(), packets(), bodies(), ids(), streams(), calls(), floods()]
        .into_iter()
        .flatten()
        .collect()
}

/// What ends the session with CLOSE and this rule, sent on a session without streams.
fn ends(name: &'static str, what: &'static str, rule: Rule, sent: Vec<u8>) -> Case {
    standing(name, what, Needs::Nothing, move |session| {
        session.send(&sent)?;
        session.expect_violation(rule)
    })
}

/// The same, with stream 1 open and no credit of ours for what comes back.
fn ends_with_stream(name: &'static str, what: &'static str, rule: Rule, sent: Vec<u8>) -> Case {
    standing(name, what, Needs::Target, move |session| {
        session.open(1, 0)?;
        session.send(&sent)?;
        session.expect_violation(rule)
    })
}

/// Broken before HELLO stands: nothing of BiStream is said, and no HELLO is taken any more.
fn unsaid() -> Vec<Case> {
    let case = |name, what, sent: Vec<u8>| {
        Case::on_connection(name, what, Needs::Nothing, move |peer| {
            peer.expect_serves()?;
            peer.send(&sent)?;
            no_session(peer)
        })
    };
    let open = say_open(1, &Open { target: "x".into(), window: WINDOW, ..Open::default() });
    let reply = raw(block::HELLO, kind::REPLY, 1, 0, &[0; 24]);
    vec![
        case("bistream/hello-first-open", "OPEN before HELLO: no word, no session", open),
        case("bistream/hello-first-data", "DATA before HELLO: no word, no session", say_data(1, b"x")),
        case("bistream/hello-first-ping", "PING before HELLO: no word, no session", say_ping(1)),
        case("bistream/hello-first-close", "CLOSE before HELLO: no word, no session", say_close(0)),
        case("bistream/hello-first-resume", "RESUME before HELLO: no word, no session", raw(8, kind::CALL, 1, 0, &[])),
        case("bistream/reply-to-no-hello", "no word, no session", reply),
    ]
}

fn no_session(peer: &mut Peer) -> Verdict {
    peer.send(&say_hello(&hello()))?;
    match peer.receive() {
        Came::Closed => Ok(()),
        Came::Packet(packet) if packet.header == header(block::HELLO, kind::REPLY, HELLO_SERIAL, 1) => Ok(()),
        other => Err(Fault::new("nothing of BiStream but a refusal on a link that began badly", other)),
    }
}

fn refused_hellos() -> Vec<Case> {
    let refused = |name, what, code: i32, rule: Rule, body: Vec<u8>| {
        Case::on_connection(name, what, Needs::Nothing, move |peer| {
            peer.send(&raw(block::HELLO, kind::CALL, HELLO_SERIAL, 0, &body))?;
            let expected = format!("HELLO to be refused with code {code} for {rule}");
            match peer.receive() {
                Came::Packet(packet) if packet.header == header(block::HELLO, kind::REPLY, HELLO_SERIAL, 1) => {
                    judge(&packet, code, rule.number(), &expected)?;
                }
                other => return Err(Fault::new(expected, other)),
            }
            // The session is over; the link may serve legacy calls, or end.
            no_session(peer)
        })
    };
    let with = |change: fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        bytes(&hello)
    };
    let good = bytes(&hello());
    vec![
        refused(
            "bistream/version",
            "none in common",
            84,
            Rule::Version,
            with(|hello| {
                (hello.min_version, hello.max_version) = (2, 3);
            }),
        ),
        refused(
            "bistream/version-backwards",
            "the least above the greatest",
            84,
            Rule::Version,
            with(|hello| {
                (hello.min_version, hello.max_version) = (2, 0);
            }),
        ),
        refused(
            "bistream/feature-unknown",
            "one that is needed",
            84,
            Rule::Feature,
            with(|hello| {
                (hello.offered, hello.needed) = (1 << 63, 1 << 63);
            }),
        ),
        refused(
            "bistream/feature-not-offered",
            "needed and not offered",
            84,
            Rule::Feature,
            with(|hello| {
                hello.needed = 1 << 40;
            }),
        ),
        refused(
            "bistream/hello-extension-needed",
            "an unknown one",
            84,
            Rule::Extension,
            with(|hello| {
                hello.extensions = vec![NEEDED];
            }),
        ),
        refused(
            "bistream/limits-too-small",
            "max_data of 4095",
            8,
            Rule::Limits,
            with(|hello| {
                hello.limits.max_data = 4095;
            }),
        ),
        refused(
            "bistream/limits-too-great",
            "max_data of 16777217",
            8,
            Rule::Limits,
            with(|hello| {
                hello.limits.max_data = 16_777_217;
            }),
        ),
        refused("bistream/hello-short", "a body that ends too early", 8, Rule::Body, good[..good.len() - 4].to_vec()),
        refused("bistream/hello-and-more", "a body with more behind", 8, Rule::Body, [&good[..], &[0; 4]].concat()),
        refused("bistream/hello-huge", "70000 bytes more", 8, Rule::Body, [&good[..], &[0; 70_000]].concat()),
        refused("bistream/hello-of-nothing", "no body", 8, Rule::Body, vec![]),
    ]
}

fn packets() -> Vec<Case> {
    let length = |length: u32| [&length.to_be_bytes()[..], &[0; 24]].concat();
    vec![
        ends("bistream/length-0", "too short a length", Rule::Length, length(0)),
        ends("bistream/length-27", "too short a length", Rule::Length, length(27)),
        ends("bistream/length-33554437", "one more than the most", Rule::Length, length(33_554_437)),
        ends("bistream/length-4294967295", "a giant length", Rule::Length, length(u32::MAX)),
        ends("bistream/header-type", "PING as a call", Rule::Header, raw(block::PING, kind::CALL, 0, 0, &[0; 8])),
        ends("bistream/header-type-unknown", "no such type", Rule::Header, raw(block::PING, u32::MAX, 0, 0, &[0; 8])),
        ends("bistream/header-status", "DATA with status 3", Rule::Header, raw(block::DATA, kind::STREAM, 1, 3, b"x")),
        ends(
            "bistream/header-serial",
            "PING with a serial",
            Rule::Header,
            raw(block::PING, kind::MESSAGE, 1, 0, &[0; 8]),
        ),
        ends(
            "bistream/header-open-message",
            "OPEN as a message",
            Rule::Header,
            raw(block::OPEN, kind::MESSAGE, 1, 0, &[]),
        ),
        ends(
            "bistream/procedure-resume",
            "RESUME without its feature",
            Rule::Procedure,
            raw(block::RESUME, kind::CALL, 1, 0, &[]),
        ),
        ends("bistream/procedure-last", "the last of the block", Rule::Procedure, raw(255, kind::MESSAGE, 0, 0, &[])),
        ends("bistream/hello-twice", "a second HELLO", Rule::HelloOnce, say_hello(&hello())),
        ends(
            "bistream/hello-twice-bad",
            "a second one without a body",
            Rule::HelloOnce,
            raw(block::HELLO, kind::CALL, 9, 0, &[]),
        ),
        ends(
            "bistream/reply-to-hello",
            "a reply to HELLO from who said it",
            Rule::Reply,
            raw(block::HELLO, kind::REPLY, 1, 0, &[0; 24]),
        ),
        ends(
            "bistream/reply-to-open",
            "a reply to no OPEN",
            Rule::Reply,
            raw(block::OPEN, kind::REPLY, 2, 0, &[0; 12]),
        ),
        ends(
            "bistream/refusal-of-open",
            "a refusal of no OPEN",
            Rule::Reply,
            raw(block::OPEN, kind::REPLY, 2, 1, &[0; 44]),
        ),
    ]
}

fn bodies() -> Vec<Case> {
    let message = |procedure, body: &[u8]| raw(procedure, kind::MESSAGE, 0, 0, body);
    let close = bytes(&Close { code: 3, rule: 0, text: "x".into() });
    let mut padding = close.clone();
    padding.pop();
    padding.push(1);
    let long = [&[0; 8][..], &1028u32.to_be_bytes(), &[b'x'; 1028]].concat();
    let end = |status, body: &[u8]| raw(block::DATA, kind::STREAM, 1, status, body);
    vec![
        ends("bistream/body-ping-short", "seven bytes", Rule::Body, message(block::PING, &[0; 7])),
        ends("bistream/body-ping-empty", "none", Rule::Body, message(block::PING, &[])),
        ends("bistream/body-pong-and-more", "twelve bytes", Rule::Body, message(block::PONG, &[0; 12])),
        ends("bistream/body-credit-short", "a byte is missing", Rule::Body, message(block::CREDIT, &[0; 19])),
        ends("bistream/body-credit-huge", "70000 bytes", Rule::Body, message(block::CREDIT, &[0; 70_000])),
        ends("bistream/body-stop-and-more", "eight bytes", Rule::Body, message(block::STOP, &[0; 8])),
        ends(
            "bistream/body-close-short",
            "a byte is missing",
            Rule::Body,
            message(block::CLOSE, &close[..close.len() - 1]),
        ),
        ends("bistream/body-close-padding", "not zero", Rule::Body, message(block::CLOSE, &padding)),
        ends("bistream/body-close-text", "over its bound", Rule::Body, message(block::CLOSE, &long)),
        ends_with_stream("bistream/body-finish-short", "a byte is missing", Rule::Body, end(0, &[0; 7])),
        ends_with_stream("bistream/body-finish-empty", "no offset", Rule::Body, end(0, &[])),
        ends_with_stream("bistream/body-reset-empty", "no error", Rule::Body, end(1, &[])),
        ends_with_stream(
            "bistream/body-reset-bool",
            "a bool of 2",
            Rule::Body,
            end(1, &[[0; 11].as_slice(), &[2], &[0; 32]].concat()),
        ),
    ]
}

fn ids() -> Vec<Case> {
    let open = |id| say_open(id, &Open { target: "x".into(), window: WINDOW, ..Open::default() });
    let twice = |name, what, first: u32, second: u32| {
        standing(name, what, Needs::Nothing, move |session| {
            session.send(&[open(first), open(second)].concat())?;
            session.expect_violation(Rule::IdReused)
        })
    };
    vec![
        ends("bistream/id-parity", "OPEN under an id of the peer's", Rule::IdParity, open(2)),
        ends("bistream/id-parity-0", "OPEN under 0", Rule::IdParity, open(0)),
        twice("bistream/id-reused", "the last id again", 1, 1),
        twice("bistream/id-falling", "an id below the last", 9, 7),
        ends("bistream/id-unknown-data", "never opened", Rule::IdUnknown, say_data(1, b"x")),
        ends("bistream/id-unknown-data-0", "the session's", Rule::IdUnknown, say_data(0, b"x")),
        ends("bistream/id-unknown-data-of-peer", "the peer's, never opened", Rule::IdUnknown, say_data(2, b"x")),
        ends("bistream/id-unknown-finish", "never opened", Rule::IdUnknown, say_finish(1, 0)),
        ends("bistream/id-unknown-reset", "never opened", Rule::IdUnknown, say_reset(1)),
        ends("bistream/id-unknown-credit", "never opened", Rule::IdUnknown, say_credit(1, 0, 1)),
        ends("bistream/id-unknown-stop", "never opened", Rule::IdUnknown, say_stop(1)),
    ]
}

fn streams() -> Vec<Case> {
    // Its last byte is not consumed, so that the stream cannot be over before it is judged.
    let resets = |name, what, rule: Rule, sent: Vec<u8>| {
        standing(name, what, Needs::Target, move |session| {
            session.open(1, WINDOW)?;
            session.send(&say_data(1, b"x"))?;
            let data = header(block::DATA, kind::STREAM, 1, 2);
            session.next("the byte back", |packet| packet.header == data)?;
            session.send(&sent)?;
            session.expect_reset(1, rule)?;
            session.send(&[say_data(1, b"late"), say_finish(1, 9)].concat())?;
            session.expect_echo(3, b"hello")?;
            session.expect_lives()
        })
    };
    vec![
        ends_with_stream("bistream/data-empty", "DATA of no byte", Rule::DataSize, say_data(1, &[])),
        standing("bistream/data-too-long", "DATA of more than max_data", Needs::Target, |session| {
            session.open(1, 0)?;
            let bytes = vec![0; session.limits.max_data as usize + 1];
            session.send(&say_data(1, &bytes))?;
            session.expect_violation(Rule::DataSize)
        }),
        standing("bistream/credit-overrun", "DATA beyond the limit", Needs::Target, overrun),
        ends_with_stream("bistream/consumed", "CREDIT for what was not sent", Rule::Consumed, say_credit(1, 1, 9)),
        ends_with_stream(
            "bistream/consumed-all",
            "CREDIT for all there could be",
            Rule::Consumed,
            say_credit(1, u64::MAX, 9),
        ),
        ends_with_stream(
            "bistream/hole",
            "a hole without the feature",
            Rule::Hole,
            raw(block::DATA, kind::HOLE, 1, 2, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        ),
        resets(
            "bistream/data-after-finish",
            "the stream is reset, others live",
            Rule::AfterFinish,
            [say_finish(1, 1), say_data(1, b"y")].concat(),
        ),
        resets(
            "bistream/finish-after-finish",
            "the stream is reset, others live",
            Rule::AfterFinish,
            [say_finish(1, 1), say_finish(1, 1)].concat(),
        ),
        resets(
            "bistream/final-offset-too-great",
            "the stream is reset, others live",
            Rule::FinalOffset,
            say_finish(1, 2),
        ),
        resets(
            "bistream/final-offset-too-small",
            "the stream is reset, others live",
            Rule::FinalOffset,
            say_finish(1, 0),
        ),
    ]
}

/// The echo has no credit of ours, so the peer can consume no more than what lies between it and the target.
fn overrun(session: &mut Session) -> Verdict {
    const BETWEEN: u64 = 16 << 20;
    let window = session.open(1, 0)?;
    if window > 64 << 20 {
        return Err(Fault::new("a window of at most 64 MiB, to be judged", window));
    }
    let most = u64::from(session.limits.max_data);
    let packet = say_data(1, &vec![0; usize::try_from(most).unwrap_or(4096)]);
    for _ in 0..=(window + BETWEEN) / most {
        session.send(&packet)?;
    }
    session.expect_violation(Rule::CreditOverrun)
}

fn calls() -> Vec<Case> {
    let refused = |name, what, code: i32, rule: Rule, body: Vec<u8>| {
        standing(name, what, Needs::Nothing, move |session| {
            session.send(&raw(block::OPEN, kind::CALL, 1, 0, &body))?;
            session.expect_refused(1, code, rule.number())?;
            session.expect_lives()
        })
    };
    let with = |change: fn(&mut Open)| {
        let mut open = Open { target: "x".into(), window: WINDOW, ..Open::default() };
        change(&mut open);
        bytes(&open)
    };
    let good = with(|_| ());
    let changed = |at: usize, byte: u8| {
        let mut body = good.clone();
        body[at] = byte;
        body
    };
    vec![
        refused("bistream/target-empty", "no name", 8, Rule::TargetName, with(|open| open.target.clear())),
        refused(
            "bistream/target-nul",
            "a control character",
            8,
            Rule::TargetName,
            with(|open| open.target = "a\0b".into()),
        ),
        refused(
            "bistream/target-control",
            "one of Latin-1",
            8,
            Rule::TargetName,
            with(|open| open.target = "\u{85}".into()),
        ),
        refused("bistream/priority", "4", 8, Rule::Priority, with(|open| open.priority = 4)),
        refused("bistream/priority-greatest", "4294967295", 8, Rule::Priority, with(|open| open.priority = u32::MAX)),
        refused(
            "bistream/open-extension-needed",
            "an unknown one",
            84,
            Rule::Extension,
            with(|open| open.extensions = vec![NEEDED]),
        ),
        refused("bistream/open-short", "a body that ends too early", 8, Rule::Body, good[..good.len() - 1].to_vec()),
        refused("bistream/open-and-more", "a body with more behind", 8, Rule::Body, [&good[..], &[0; 4]].concat()),
        refused("bistream/open-huge", "70000 bytes more", 8, Rule::Body, [&good[..], &[0; 70_000]].concat()),
        refused("bistream/open-of-nothing", "no body", 8, Rule::Body, vec![]),
        refused("bistream/open-padding", "not zero", 8, Rule::Body, changed(7, 1)),
        refused("bistream/open-utf8", "a name that is not UTF-8", 8, Rule::Body, changed(4, 0xff)),
    ]
}

fn floods() -> Vec<Case> {
    vec![standing(
        "bistream/open-flood",
        "100000 bad OPENs at once: each is refused, or the session ends for it",
        Needs::Nothing,
        |session| {
            let bad = Open { window: WINDOW, ..Open::default() };
            let flood: Vec<u8> = (0..100_000).flat_map(|n| say_open(2 * n + 1, &bad)).collect();
            session.send(&flood)?;
            for n in 0..100_000 {
                let refusal = header(block::OPEN, kind::REPLY, 2 * n + 1, 1);
                let end = header(block::CLOSE, kind::MESSAGE, 0, 0);
                let wanted = |packet: &Packet| packet.header == refusal || packet.header == end;
                let packet = session.next("a refusal, or CLOSE", wanted)?;
                if packet.header == refusal {
                    judge(&packet, 8, Rule::TargetName.number(), "a refusal for the target's name")?;
                    continue;
                }
                let close = decoded::<Close>(&packet)?;
                return match close.rule == Rule::OpenFlood.number() {
                    true => session.peer.expect_closed(),
                    false => Err(Fault::new("CLOSE for an OPEN flood", format!("{close:?}"))),
                };
            }
            session.expect_lives()
        },
    )]
}
