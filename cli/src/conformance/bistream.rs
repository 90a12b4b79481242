//! That a good peer is served, by docs/protocol.md.

use virbistream::wire::{Extension, Finish, Rule, close};

use super::case::{Case, Fault, Needs, Setting, Verdict};
use super::peer::{Came, Packet, Peer};
use super::session::{
    HELLO_SERIAL, Session, WINDOW, block, decoded, header, hello, hello_reply, judge_reply, kind, raw, say_close,
    say_credit, say_data, say_finish, say_hello, say_open, say_ping, say_reset, say_stop,
};

/// The one case of a peer that does not know HELLO.
pub(super) const LEGACY_PEER: &str = "bistream/legacy-peer";

pub(super) const HELLO: &str = "bistream/hello";

/// A peer without BiStream refuses HELLO as libvirt refuses any unknown procedure, and serves on.
pub(super) fn legacy_peer() -> Case {
    Case::on_connection(LEGACY_PEER, "HELLO is unknown, and the connection serves on", Needs::Nothing, |peer| {
        peer.send(&say_hello(&hello()))?;
        let payload = peer.expect(&header(block::HELLO, kind::REPLY, HELLO_SERIAL, 1))?;
        match payload.first_chunk().map(|code| i32::from_be_bytes(*code)) {
            Some(39 | 3) => peer.expect_serves(),
            other => Err(Fault::new("code 39 or 3", format!("{other:?}"))),
        }
    })
}

pub(super) fn cases() -> Vec<Case> {
    [hellos(), sessions(), streams(), ends()].into_iter().flatten().collect()
}

pub(super) fn standing(
    name: &'static str,
    what: &'static str,
    needs: Needs,
    test: impl Fn(&mut Session) -> Verdict + 'static,
) -> Case {
    Case::new(name, what, needs, move |setting: &Setting| test(&mut Session::begin(setting)?))
}

fn hellos() -> Vec<Case> {
    let greeted = |name, what, sent: Vec<u8>| {
        Case::on_connection(name, what, Needs::Nothing, move |peer| {
            peer.send(&sent)?;
            judge_reply(&hello_reply(peer)?)?;
            peer.expect_serves()
        })
    };
    let mut later = hello();
    later.max_version = 9;
    let mut features = hello();
    features.offered = u64::MAX;
    let mut extension = hello();
    extension.extensions = vec![Extension { kind: 0x7fff_ffff, needed: false, value: vec![1; 1024] }; 16];
    vec![
        greeted(HELLO, "it is answered, with limits in range", say_hello(&hello())),
        greeted("bistream/hello-later-versions", "the version in common is chosen", say_hello(&later)),
        greeted("bistream/hello-unknown-features", "what is not needed may be unknown", say_hello(&features)),
        greeted("bistream/hello-unknown-extensions", "what is not needed is passed over", say_hello(&extension)),
        Case::on_connection("bistream/hello-in-pieces", "byte by byte it is one packet", Needs::Nothing, |peer| {
            for byte in say_hello(&hello()) {
                peer.send(&[byte])?;
            }
            judge_reply(&hello_reply(peer)?)
        }),
        Case::on_connection(
            "bistream/silent-before-hello",
            "the accepting side says nothing first",
            Needs::Nothing,
            |peer| {
                // The call is answered, and whatever else came would have come before or behind.
                peer.expect_serves()
            },
        ),
    ]
}

fn sessions() -> Vec<Case> {
    vec![
        standing("bistream/ping", "PONG returns the token", Needs::Nothing, |session| {
            for token in [0, 1, u64::MAX] {
                session.send(&say_ping(token))?;
                session.expect_pong(token)?;
            }
            Ok(())
        }),
        standing("bistream/pings-at-once", "the last of them is answered", Needs::Nothing, |session| {
            let pings: Vec<u8> = (1..=1000).flat_map(say_ping).collect();
            session.send(&pings)?;
            let last = 1000u64.to_be_bytes();
            let wanted = |packet: &Packet| packet.header == header(block::PONG, kind::MESSAGE, 0, 0);
            while session.next_of_all("PONG with the token 1000", wanted)?.payload != last {}
            Ok(())
        }),
        standing("bistream/pong-unasked", "a PONG that nobody awaits is ignored", Needs::Nothing, |session| {
            session.send(&raw(block::PONG, kind::MESSAGE, 0, 0, &[9; 8]))?;
            session.expect_lives()
        }),
        standing("bistream/legacy-call-beside", "a legacy call on the link is answered", Needs::Nothing, |session| {
            session.expect_lives()
        }),
        standing("bistream/target-missing", "refused with code 99", Needs::Nothing, |session| {
            let mut open = session.open_of(WINDOW);
            open.target = "virbistream-conformance-no-such-target".into();
            session.send(&say_open(1, &open))?;
            session.expect_refused(1, 99, 0)?;
            // The id is spent: what comes for it is discarded.
            session.send(&[say_data(1, b"data"), say_finish(1, 4), say_reset(1), say_stop(1)].concat())?;
            session.expect_lives()
        }),
    ]
}

fn streams() -> Vec<Case> {
    use Needs::Target;
    vec![
        standing("bistream/echo", "bytes come back, both directions finish, all is consumed", Target, |session| {
            session.expect_echo(1, b"hello")?;
            session.expect_lives()
        }),
        standing("bistream/echo-of-nothing", "a finish at once is answered by one", Target, |session| {
            session.expect_echo(1, b"")?;
            session.expect_lives()
        }),
        standing("bistream/echo-of-8-mib", "more than a window passes by credit", Target, |session| {
            let bytes: Vec<u8> = (0..8u32 << 20).map(|at| (at / 251 + at) as u8).collect();
            session.expect_echo(1, &bytes)
        }),
        standing("bistream/ids-with-gaps", "ids rise, and may leave some out", Target, |session| {
            for id in [1, 3, 101, u32::MAX] {
                session.expect_echo(id, b"hello")?;
            }
            session.expect_lives()
        }),
        standing("bistream/a-stalled-stream-blocks-no-other", "its window full, another passes", Target, |session| {
            // What comes back has no credit, so that all but the first bytes stay where they are.
            let window = session.open(1, 0)?;
            let most = session.limits.max_data.into();
            let mut left = window.min(4 << 20);
            while left > 0 {
                let bytes = vec![0; left.min(most).try_into().unwrap_or(4096)];
                session.send(&say_data(1, &bytes))?;
                left -= bytes.len() as u64;
            }
            session.expect_echo(3, &[7; 100_000])?;
            session.expect_lives()
        }),
        standing("bistream/credit-that-goes-back", "it is ignored", Target, |session| {
            session.open(1, 1)?;
            session.send(&[say_data(1, b"ab"), say_credit(1, 0, 0)].concat())?;
            next_data(session, 1, b"a")?;
            session.send(&say_credit(1, 1, WINDOW))?;
            next_data(session, 1, b"b")
        }),
        standing("bistream/stop", "the peer finishes, and our direction goes on", Target, |session| {
            session.open(1, WINDOW)?;
            session.send(&say_data(1, b"a"))?;
            next_data(session, 1, b"a")?;
            session.send(&[say_stop(1), say_stop(1)].concat())?;
            expect_finish(session, 1, 1)?;
            session.send(&say_data(1, b"b"))?;
            session.expect_lives()
        }),
        standing("bistream/reset", "the stream is over, what still comes is discarded", Target, |session| {
            session.open(1, WINDOW)?;
            session.send(&say_reset(1))?;
            let late = [say_data(1, b"late"), say_finish(1, 9), say_credit(1, 99, 99), say_stop(1), say_reset(1)];
            session.send(&late.concat())?;
            session.expect_echo(3, b"hello")
        }),
        standing("bistream/reset-before-the-reply", "the opener may", Target, |session| {
            session.send(&[say_open(1, &session.open_of(WINDOW)), say_reset(1)].concat())?;
            // Its reply may be under way: either way nothing else is said of it.
            let opened = header(block::OPEN, kind::REPLY, 1, 0);
            session.send(&say_ping(1))?;
            let pong = header(block::PONG, kind::MESSAGE, 0, 0);
            let wanted = |packet: &Packet| packet.header == opened || packet.header == pong;
            if session.next("the reply to OPEN or PONG", wanted)?.header == opened {
                session.expect_pong(1)?;
            }
            session.expect_echo(3, b"hello")
        }),
        standing(
            "bistream/stream-limit",
            "OPEN above max_streams is refused; a place that is free is given",
            Target,
            |session| {
                let most = session.limits.max_streams;
                if most > 4096 {
                    return Err(Fault::new("a peer that takes at most 4096 streams, to be judged", most));
                }
                for n in 0..most {
                    session.open(2 * n + 1, 0)?;
                }
                session.send(&say_open(2 * most + 1, &session.open_of(0)))?;
                session.expect_refused(2 * most + 1, 87, Rule::StreamLimit.number())?;
                if most > 0 {
                    session.send(&say_reset(1))?;
                    session.open(2 * most + 3, 0)?;
                }
                session.expect_lives()
            },
        ),
    ]
}

fn next_data(session: &mut Session, id: u32, expected: &[u8]) -> Verdict {
    let wanted = header(block::DATA, kind::STREAM, id, 2);
    let packet = session.next("DATA", |packet| packet.header == wanted)?;
    match packet.payload == expected {
        true => Ok(()),
        false => Err(Fault::new(format!("DATA {expected:02x?}"), format!("{:02x?}", packet.payload))),
    }
}

fn expect_finish(session: &mut Session, id: u32, offset: u64) -> Verdict {
    let wanted = header(block::DATA, kind::STREAM, id, 0);
    let packet = session.next("a finish", |packet| packet.header == wanted)?;
    let finish = decoded::<Finish>(&packet)?;
    if finish.offset == offset { Ok(()) } else { Err(Fault::new(format!("a finish at {offset}"), finish.offset)) }
}

fn ends() -> Vec<Case> {
    use Needs::{Nothing, Target};
    vec![
        standing("bistream/close-0", "without streams the link ends", Nothing, |session| {
            session.send(&say_close(close::DONE))?;
            expect_end(&mut session.peer)
        }),
        standing(
            "bistream/close-0-drains",
            "streams go on, new ones are refused, then the link ends",
            Target,
            |session| {
                session.open(1, WINDOW)?;
                session.send(
                    &[say_close(close::DONE), say_open(3, &session.open_of(WINDOW)), say_data(1, b"a")].concat(),
                )?;
                session.expect_refused(3, 55, Rule::Closing.number())?;
                next_data(session, 1, b"a")?;
                session.send(&[say_credit(1, 1, WINDOW), say_finish(1, 1)].concat())?;
                expect_finish(session, 1, 1)?;
                expect_end(&mut session.peer)
            },
        ),
        standing("bistream/close-3", "the link ends, streams and all", Target, |session| {
            session.open(1, WINDOW)?;
            session.send(&say_close(close::SHUTDOWN))?;
            session.peer.expect_closed()
        }),
        standing("bistream/close-unknown", "a code that there is not is fatal, too", Nothing, |session| {
            session.send(&say_close(4711))?;
            session.peer.expect_closed()
        }),
        standing("bistream/half-close", "a link that ends ends the session", Nothing, |session| {
            session.peer.finish();
            expect_end(&mut session.peer)
        }),
    ]
}

/// The end of the link; CREDIT for what was finished, and the peer's own CLOSE 0, may come before.
fn expect_end(peer: &mut Peer) -> Verdict {
    loop {
        match peer.receive() {
            Came::Closed => return Ok(()),
            Came::Packet(packet) if packet.header == header(block::CREDIT, kind::MESSAGE, 0, 0) => {}
            Came::Packet(packet) if packet.header == header(block::PING, kind::MESSAGE, 0, 0) => {}
            Came::Packet(packet)
                if packet.header == header(block::CLOSE, kind::MESSAGE, 0, 0)
                    && packet.payload.starts_with(&[0; 4]) => {}
            other => return Err(Fault::new("the end of the link", other)),
        }
    }
}
