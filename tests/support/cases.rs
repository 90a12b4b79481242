//! Every rule of docs/protocol.md, §13, broken in every way that is known.

use virbistream::proto::Side;
use virbistream::wire::{Extension, Hello, HelloReply, Limits, Open, OpenReply, Rule, close, codes};

use crate::support::{Packet, Probe, SIDES, error, hello, hello_reply, open, raw};

/// One way to break a rule.
pub(crate) struct Case {
    pub(crate) rule: Rule,
    pub(crate) what: &'static str,
    /// Of the session that judges.
    pub(crate) sides: &'static [Side],
    pub(crate) stage: Stage,
    pub(crate) ends: Ends,
    /// Prepares, and gives the bytes that break the rule.
    pub(crate) bytes: fn(&mut Probe) -> Vec<u8>,
}

#[derive(Clone, Copy)]
pub(crate) enum Stage {
    /// The connecting side has said HELLO, the accepting side has heard nothing.
    Fresh,
    /// HELLO stands; each side has opened two streams.
    Standing,
}

/// What ends, and what the peer hears of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ends {
    /// With CLOSE.
    Session,
    /// Without: HELLO did not stand.
    SessionUnsaid,
    /// The stream that this gives, by reset.
    Stream(fn(&Probe) -> u32),
    /// The OPEN, with this code.
    Call(i32),
    /// The HELLO and so the session, with this code.
    Hello(i32),
}

const BOTH: &[Side] = &SIDES;
const ACCEPTING: &[Side] = &[Side::Accepting];
const CONNECTING: &[Side] = &[Side::Connecting];
const NEEDED: Extension = Extension { kind: 1, needed: true, value: Vec::new() };

fn needed() -> Vec<Extension> {
    vec![NEEDED]
}

fn standing(rule: Rule, what: &'static str, ends: Ends, bytes: fn(&mut Probe) -> Vec<u8>) -> Case {
    Case { rule, what, sides: BOTH, stage: Stage::Standing, ends, bytes }
}

fn fresh(rule: Rule, what: &'static str, sides: &'static [Side], ends: Ends, bytes: fn(&mut Probe) -> Vec<u8>) -> Case {
    Case { rule, what, sides, stage: Stage::Fresh, ends, bytes }
}

/// The packet with its body cut, lengthened or changed.
fn spoilt(packet: &Packet, spoil: fn(&mut Vec<u8>)) -> Vec<u8> {
    let (header, mut body) = (packet.header(), packet.body());
    spoil(&mut body);
    raw(header.procedure - 0x4253_0001, header.kind, header.serial, header.status, &body)
}

fn short(body: &mut Vec<u8>) {
    body.pop();
}

fn trailing(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

fn huge(body: &mut Vec<u8>) {
    body.extend([0; 70_000]);
}

fn hello_with(change: fn(&mut Hello)) -> Vec<u8> {
    let mut hello = hello();
    change(&mut hello);
    Packet::Hello(7, hello).encode()
}

fn reply_with(change: fn(&mut HelloReply)) -> Vec<u8> {
    let mut reply = hello_reply();
    change(&mut reply);
    Packet::HelloReply(1, reply).encode()
}

fn open_with(probe: &Probe, change: fn(&mut Open)) -> Vec<u8> {
    let mut request = open("ours");
    change(&mut request);
    Packet::Open(probe.theirs(2), request).encode()
}

fn session_cases() -> Vec<Case> {
    use Ends::{Session, SessionUnsaid};
    vec![
        standing(Rule::Length, "0", Session, |_| vec![0; 28]),
        standing(Rule::Length, "27", Session, |_| [&27u32.to_be_bytes()[..], &[0; 24]].concat()),
        standing(Rule::Length, "one more than libvirt takes", Session, |_| 33_554_437u32.to_be_bytes().to_vec()),
        fresh(Rule::Length, "no RPC at all", BOTH, SessionUnsaid, |_| b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        standing(Rule::Header, "CREDIT with a serial", Session, |p| raw(3, 2, p.theirs(0), 0, &[0; 20])),
        standing(Rule::Header, "OPEN as a message", Session, |p| raw(1, 2, p.theirs(2), 0, &[])),
        standing(Rule::Header, "DATA with a status of 3", Session, |p| raw(2, 3, p.theirs(0), 3, &[1])),
        standing(Rule::Header, "a type that nobody has", Session, |_| raw(5, u32::MAX, 0, 0, &[0; 8])),
        standing(Rule::Procedure, "RESUME", Session, |_| raw(8, 0, 1, 0, &[])),
        standing(Rule::Procedure, "the last of the block", Session, |_| raw(255, 2, 0, 0, &[])),
        standing(Rule::Body, "CREDIT, short", Session, |p| spoilt(&Packet::credit(p.ours(0), 0, 9), short)),
        standing(Rule::Body, "STOP and more", Session, |p| spoilt(&Packet::Stop(p.ours(0)), trailing)),
        standing(Rule::Body, "PING, short", Session, |_| spoilt(&Packet::Ping(1), short)),
        standing(Rule::Body, "PING of nothing", Session, |_| raw(5, 2, 0, 0, &[])),
        standing(Rule::Body, "PONG and more", Session, |_| spoilt(&Packet::Pong(1), trailing)),
        standing(Rule::Body, "CLOSE, short", Session, |_| spoilt(&Packet::close(0, 0, ""), short)),
        standing(Rule::Body, "CLOSE, its padding not zero", Session, |_| {
            spoilt(&Packet::close(3, 0, "x"), |body| *body.last_mut().unwrap() = 1)
        }),
        standing(Rule::Body, "CLOSE with a text over its bound", Session, |_| {
            raw(7, 2, 0, 0, &[&[0; 3][..], &[3, 0, 0, 0, 0, 0, 0, 4, 4], &[0; 1028]].concat())
        }),
        standing(Rule::Body, "finish, short", Session, |p| spoilt(&Packet::Finish(p.theirs(0), 0), short)),
        standing(Rule::Body, "finish of nothing", Session, |p| raw(2, 3, p.theirs(0), 0, &[])),
        standing(Rule::Body, "reset and more", Session, |p| spoilt(&Packet::Reset(p.ours(0), error(1, "")), trailing)),
        standing(Rule::Body, "reset with a bool of 2", Session, |p| {
            spoilt(&Packet::Reset(p.ours(0), error(1, "")), |body| body[11] = 2)
        }),
        standing(Rule::Body, "CREDIT, huge", Session, |p| spoilt(&Packet::credit(p.ours(0), 0, 9), huge)),
        standing(Rule::Body, "the reply to OPEN, short", Session, |p| {
            let id = p.ask(open("x"));
            spoilt(&Packet::open_reply(id, 9), short)
        }),
        standing(Rule::Body, "the refusal of OPEN, and more", Session, |p| {
            let id = p.ask(open("x"));
            spoilt(&Packet::OpenRefused(id, error(1, "")), trailing)
        }),
        fresh(Rule::Body, "the reply to HELLO, short", CONNECTING, Session, |_| {
            spoilt(&Packet::HelloReply(1, hello_reply()), short)
        }),
        fresh(Rule::Body, "a refusal of HELLO without even a code", CONNECTING, SessionUnsaid, |_| {
            raw(0, 1, 1, 1, &[0, 0, 39])
        }),
        fresh(Rule::HelloFirst, "OPEN", BOTH, SessionUnsaid, |p| Packet::Open(p.theirs(0), open("x")).encode()),
        fresh(Rule::HelloFirst, "DATA", BOTH, SessionUnsaid, |p| Packet::Data(p.theirs(0), vec![1]).encode()),
        fresh(Rule::HelloFirst, "PING", BOTH, SessionUnsaid, |_| Packet::Ping(1).encode()),
        fresh(Rule::HelloFirst, "CLOSE 0", BOTH, SessionUnsaid, |_| Packet::close(0, 0, "").encode()),
        fresh(Rule::HelloFirst, "CLOSE 3", BOTH, SessionUnsaid, |_| Packet::close(3, 0, "").encode()),
        fresh(Rule::HelloOnce, "from the accepting side", CONNECTING, SessionUnsaid, |_| hello_with(|_| ())),
        standing(Rule::HelloOnce, "a second one, or from the accepting side", Session, |_| hello_with(|_| ())),
        standing(Rule::HelloOnce, "a second one, which does not decode", Session, |_| raw(0, 0, 8, 0, &[1])),
        fresh(Rule::Reply, "to no HELLO", ACCEPTING, SessionUnsaid, |_| reply_with(|_| ())),
        fresh(Rule::Reply, "a refusal of no HELLO", ACCEPTING, SessionUnsaid, |_| {
            Packet::HelloRefused(1, error(39, "")).encode()
        }),
        standing(Rule::Reply, "a second one to HELLO", Session, |_| reply_with(|_| ())),
        standing(Rule::Reply, "a late refusal of HELLO", Session, |_| Packet::HelloRefused(1, error(39, "")).encode()),
        standing(Rule::Reply, "to an OPEN that we did not say", Session, |p| Packet::open_reply(p.ours(9), 9).encode()),
        standing(Rule::Reply, "to an OPEN of the peer's", Session, |p| Packet::open_reply(p.theirs(0), 9).encode()),
        standing(Rule::Reply, "to OPEN 0", Session, |_| Packet::open_reply(0, 9).encode()),
        standing(Rule::Reply, "a second one to OPEN", Session, |p| Packet::open_reply(p.ours(0), 9).encode()),
        standing(Rule::Reply, "a refusal of what stands", Session, |p| {
            Packet::OpenRefused(p.ours(0), error(1, "")).encode()
        }),
        standing(Rule::Reply, "to an OPEN that was not sent yet", Session, |p| {
            let id = p.session.open(p.now, open("x")).unwrap();
            Packet::open_reply(id.number(), 9).encode()
        }),
        fresh(Rule::Choice, "version 0", CONNECTING, Session, |_| reply_with(|reply| reply.version = 0)),
        fresh(Rule::Choice, "version 2", CONNECTING, Session, |_| reply_with(|reply| reply.version = 2)),
        fresh(Rule::Choice, "a feature", CONNECTING, Session, |_| reply_with(|reply| reply.features = 1)),
        fresh(Rule::Choice, "an unknown feature", CONNECTING, Session, |_| reply_with(|r| r.features = 1 << 63)),
        fresh(Rule::Choice, "max_data too small", CONNECTING, Session, |_| {
            reply_with(|reply| reply.limits = Limits { max_data: 4095, max_streams: 1 })
        }),
        fresh(Rule::Choice, "max_data too great", CONNECTING, Session, |_| {
            reply_with(|reply| reply.limits = Limits { max_data: 16_777_217, max_streams: 1 })
        }),
        fresh(Rule::Extension, "in the reply to HELLO", CONNECTING, Session, |_| {
            reply_with(|reply| reply.extensions = needed())
        }),
        standing(Rule::IdParity, "one of ours", Session, |p| Packet::Open(p.ours(9), open("x")).encode()),
        standing(Rule::IdParity, "0", Session, |_| Packet::Open(0, open("x")).encode()),
        standing(Rule::IdParity, "one of ours, undecodable", Session, |p| raw(1, 0, p.ours(9), 0, &[])),
        standing(Rule::IdReused, "the last", Session, |p| Packet::Open(p.theirs(1), open("x")).encode()),
        standing(Rule::IdReused, "one before", Session, |p| Packet::Open(p.theirs(0), open("x")).encode()),
        standing(Rule::IdReused, "a gap", Session, |p| {
            p.hear(&Packet::Open(p.theirs(9), open("x")));
            Packet::Open(p.theirs(8), open("x")).encode()
        }),
        standing(Rule::IdReused, "one that was refused", Session, |p| {
            p.hear(&Packet::Open(p.theirs(2), open("")));
            p.speak();
            Packet::Open(p.theirs(2), open("x")).encode()
        }),
        standing(Rule::IdUnknown, "DATA", Session, |p| Packet::Data(p.theirs(2), vec![1]).encode()),
        standing(Rule::IdUnknown, "DATA for one of ours", Session, |p| Packet::Data(p.ours(2), vec![1]).encode()),
        standing(Rule::IdUnknown, "DATA for 0", Session, |_| Packet::Data(0, vec![1]).encode()),
        standing(Rule::IdUnknown, "finish", Session, |p| Packet::Finish(p.theirs(2), 0).encode()),
        standing(Rule::IdUnknown, "finish of 0", Session, |_| Packet::Finish(0, 0).encode()),
        standing(Rule::IdUnknown, "reset", Session, |p| Packet::Reset(p.theirs(2), error(1, "")).encode()),
        standing(Rule::IdUnknown, "reset of one of ours that was not asked for yet", Session, |p| {
            let id = p.session.open(p.now, open("x")).unwrap();
            Packet::Reset(id.number(), error(1, "")).encode()
        }),
        standing(Rule::IdUnknown, "reset of 0", Session, |_| Packet::Reset(0, error(1, "")).encode()),
        standing(Rule::IdUnknown, "CREDIT", Session, |p| Packet::credit(p.ours(2), 0, 1).encode()),
        standing(Rule::IdUnknown, "CREDIT for 0", Session, |_| Packet::credit(0, 0, 1).encode()),
        standing(Rule::IdUnknown, "STOP", Session, |p| Packet::Stop(p.theirs(2)).encode()),
        standing(Rule::IdUnknown, "STOP of 0", Session, |_| Packet::Stop(0).encode()),
        standing(Rule::BeforeReply, "DATA of the acceptor", Session, |p| {
            Packet::Data(p.ask(open("x")), vec![1]).encode()
        }),
        standing(Rule::BeforeReply, "finish of the acceptor", Session, |p| {
            Packet::Finish(p.ask(open("x")), 0).encode()
        }),
        standing(Rule::BeforeReply, "CREDIT of the acceptor", Session, |p| {
            Packet::credit(p.ask(open("x")), 0, 9).encode()
        }),
        standing(Rule::BeforeReply, "STOP of the acceptor", Session, |p| Packet::Stop(p.ask(open("x"))).encode()),
        standing(Rule::BeforeReply, "DATA of the opener", Session, |p| {
            Packet::Data(p.asked(p.theirs(2)), vec![1]).encode()
        }),
        standing(Rule::BeforeReply, "finish of the opener", Session, |p| {
            Packet::Finish(p.asked(p.theirs(2)), 0).encode()
        }),
        standing(Rule::BeforeReply, "CREDIT of the opener", Session, |p| {
            Packet::credit(p.asked(p.theirs(2)), 0, 9).encode()
        }),
        standing(Rule::BeforeReply, "STOP of the opener", Session, |p| Packet::Stop(p.asked(p.theirs(2))).encode()),
        standing(Rule::BeforeReply, "DATA ahead of the reply", Session, |p| {
            Packet::Data(p.accepted_in_silence(), vec![1]).encode()
        }),
        standing(Rule::BeforeReply, "finish ahead of the reply", Session, |p| {
            Packet::Finish(p.accepted_in_silence(), 0).encode()
        }),
        standing(Rule::BeforeReply, "CREDIT ahead of the reply", Session, |p| {
            Packet::credit(p.accepted_in_silence(), 0, 9).encode()
        }),
        standing(Rule::BeforeReply, "STOP ahead of the reply", Session, |p| {
            Packet::Stop(p.accepted_in_silence()).encode()
        }),
        standing(Rule::DataSize, "no byte", Session, |p| Packet::Data(p.theirs(0), vec![]).encode()),
        standing(Rule::DataSize, "one byte too many", Session, |p| Packet::Data(p.ours(0), vec![0; 4097]).encode()),
        standing(Rule::CreditOverrun, "at once", Session, |p| {
            p.consumes = false;
            p.hear(&Packet::Data(p.theirs(0), vec![0; 4096]));
            p.hear(&Packet::Data(p.theirs(0), vec![0; 4095]));
            Packet::Data(p.theirs(0), vec![0; 2]).encode()
        }),
        standing(Rule::CreditOverrun, "behind what was consumed and not yet told", Session, |p| {
            p.hear(&Packet::Data(p.ours(0), vec![0; 4096]));
            p.hear(&Packet::Data(p.ours(0), vec![0; 4096]));
            Packet::Data(p.ours(0), vec![0; 1]).encode()
        }),
        standing(Rule::CreditOverrun, "on a stopped stream too", Session, |p| {
            p.stream(p.ours(0)).stop().unwrap();
            p.hear(&Packet::Data(p.ours(0), vec![0; 4096]));
            p.hear(&Packet::Data(p.ours(0), vec![0; 4096]));
            Packet::Data(p.ours(0), vec![0; 1]).encode()
        }),
        standing(Rule::Consumed, "one of none", Session, |p| Packet::credit(p.ours(0), 1, 9).encode()),
        standing(Rule::Consumed, "all there could be", Session, |p| Packet::credit(p.theirs(0), u64::MAX, 9).encode()),
        standing(Rule::Consumed, "one more than was sent", Session, |p| {
            p.send(p.ours(0), b"abc");
            Packet::credit(p.ours(0), 4, 9).encode()
        }),
        standing(Rule::Hole, "without the feature", Session, |p| {
            raw(2, 6, p.theirs(0), 2, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
        }),
        standing(Rule::OpenFlood, "the 257th refusal that stands", Session, |p| {
            for n in 0..256 {
                p.hear(&Packet::Open(p.theirs(2 + n), open("")));
            }
            Packet::Open(p.theirs(258), open("")).encode()
        }),
        standing(Rule::Flood, "one PING more than is borne", Session, |p| {
            idle(p, &Packet::Ping(7));
            Packet::Ping(7).encode()
        }),
        standing(Rule::Flood, "CREDIT that raises nothing", Session, |p| {
            idle(p, &Packet::credit(p.ours(0), 0, 0));
            Packet::credit(p.ours(0), 0, 0).encode()
        }),
        standing(Rule::Flood, "STOP again and again", Session, |p| {
            p.hear(&Packet::Stop(p.ours(0)));
            idle(p, &Packet::Stop(p.ours(0)));
            Packet::Stop(p.ours(0)).encode()
        }),
        standing(Rule::Flood, "PONG for no PING", Session, |p| {
            idle(p, &Packet::Pong(99));
            Packet::Pong(99).encode()
        }),
    ]
}

/// As many of them as are borne at once.
fn idle(probe: &mut Probe, packet: &Packet) {
    for _ in 0..4 * super::small().max_idle_control {
        probe.hear(packet);
        probe.speak();
    }
}

fn stream_cases() -> Vec<Case> {
    let theirs = Ends::Stream(|probe| probe.theirs(0));
    let ours = Ends::Stream(|probe| probe.ours(0));
    vec![
        standing(Rule::AfterFinish, "DATA", theirs, |p| {
            p.hear(&Packet::Finish(p.theirs(0), 0));
            Packet::Data(p.theirs(0), vec![1]).encode()
        }),
        standing(Rule::AfterFinish, "DATA beyond any limit", ours, |p| {
            p.consumes = false;
            p.hear(&Packet::Data(p.ours(0), vec![0; 4096]));
            p.hear(&Packet::Data(p.ours(0), vec![0; 4096]));
            p.hear(&Packet::Finish(p.ours(0), 8192));
            p.consumes = true;
            Packet::Data(p.ours(0), vec![0; 4096]).encode()
        }),
        standing(Rule::AfterFinish, "finish", ours, |p| {
            p.hear(&Packet::Finish(p.ours(0), 0));
            Packet::Finish(p.ours(0), 0).encode()
        }),
        standing(Rule::AfterFinish, "finish, and the other direction over", theirs, |p| {
            p.stream(p.theirs(0)).finish().unwrap();
            p.hear(&Packet::Data(p.theirs(0), vec![0; 4096]));
            p.consumes = false;
            p.hear(&Packet::Data(p.theirs(0), vec![0; 1]));
            p.consumes = true;
            p.hear(&Packet::Finish(p.theirs(0), 4097));
            Packet::Finish(p.theirs(0), 4097).encode()
        }),
        standing(Rule::FinalOffset, "too great", theirs, |p| Packet::Finish(p.theirs(0), 1).encode()),
        standing(Rule::FinalOffset, "too small", ours, |p| {
            p.hear(&Packet::Data(p.ours(0), vec![0; 100]));
            Packet::Finish(p.ours(0), 99).encode()
        }),
        standing(Rule::FinalOffset, "as great as can be", ours, |p| Packet::Finish(p.ours(0), u64::MAX).encode()),
        standing(Rule::FinalOffset, "on a stopped stream", theirs, |p| {
            p.stream(p.theirs(0)).stop().unwrap();
            p.speak();
            p.hear(&Packet::Data(p.theirs(0), vec![0; 100]));
            Packet::Finish(p.theirs(0), 0).encode()
        }),
        standing(Rule::Extension, "in the reply to OPEN", Ends::Stream(|probe| probe.ours(2)), |p| {
            let id = p.ask(open("x"));
            Packet::OpenReply(id, OpenReply { window: 9, extensions: needed() }).encode()
        }),
    ]
}

fn call_cases() -> Vec<Case> {
    let invalid = Ends::Call(codes::INVALID_ARG);
    let busy = Ends::Call(codes::RESOURCE_BUSY);
    let wrong = Ends::Hello(codes::INVALID_ARG);
    let unsupported = Ends::Hello(codes::OPERATION_UNSUPPORTED);
    vec![
        standing(Rule::Body, "OPEN, short", invalid, |p| spoilt(&Packet::Open(p.theirs(2), open("x")), short)),
        standing(Rule::Body, "OPEN and more", invalid, |p| spoilt(&Packet::Open(p.theirs(2), open("x")), trailing)),
        standing(Rule::Body, "OPEN, huge", invalid, |p| spoilt(&Packet::Open(p.theirs(2), open("x")), huge)),
        standing(Rule::Body, "OPEN of nothing", invalid, |p| raw(1, 0, p.theirs(2), 0, &[])),
        standing(Rule::Body, "OPEN, its padding not zero", invalid, |p| {
            spoilt(&Packet::Open(p.theirs(2), open("x")), |body| body[7] = 1)
        }),
        standing(Rule::Body, "OPEN, its name not UTF-8", invalid, |p| {
            spoilt(&Packet::Open(p.theirs(2), open("x")), |body| body[4] = 0xff)
        }),
        standing(Rule::TargetName, "empty", invalid, |p| open_with(p, |open| open.target.clear())),
        standing(Rule::TargetName, "NUL", invalid, |p| open_with(p, |open| open.target = "a\0b".into())),
        standing(Rule::TargetName, "DEL", invalid, |p| open_with(p, |open| open.target = "\u{7f}".into())),
        standing(Rule::TargetName, "a control of Latin-1", invalid, |p| {
            open_with(p, |open| open.target = "a\u{85}".into())
        }),
        standing(Rule::Priority, "4", invalid, |p| open_with(p, |open| open.priority = 4)),
        standing(Rule::Priority, "the greatest", invalid, |p| open_with(p, |open| open.priority = u32::MAX)),
        standing(Rule::Extension, "in OPEN", Ends::Call(codes::OPERATION_UNSUPPORTED), |p| {
            open_with(p, |open| open.extensions = needed())
        }),
        standing(Rule::StreamLimit, "streams", busy, |p| {
            p.accepted(p.theirs(2));
            p.accepted(p.theirs(3));
            Packet::Open(p.theirs(4), open("x")).encode()
        }),
        standing(Rule::StreamLimit, "memory", busy, |p| {
            while p.session.open(p.now, open("peers")).is_ok() {}
            p.speak();
            open_with(p, |_| ())
        }),
        standing(Rule::Closing, "we have said CLOSE 0", Ends::Call(codes::OPERATION_INVALID), |p| {
            p.session.close();
            p.speak();
            open_with(p, |_| ())
        }),
        standing(Rule::Closing, "the peer has", Ends::Call(codes::OPERATION_INVALID), |p| {
            p.hear(&Packet::close(close::DONE, 0, ""));
            open_with(p, |_| ())
        }),
        fresh(Rule::Body, "HELLO, short", ACCEPTING, wrong, |_| spoilt(&Packet::Hello(7, hello()), short)),
        fresh(Rule::Body, "HELLO and more", ACCEPTING, wrong, |_| spoilt(&Packet::Hello(7, hello()), trailing)),
        fresh(Rule::Body, "HELLO, huge", ACCEPTING, wrong, |_| spoilt(&Packet::Hello(7, hello()), huge)),
        fresh(Rule::Version, "later ones", ACCEPTING, unsupported, |_| {
            hello_with(|hello| (hello.min_version, hello.max_version) = (2, 3))
        }),
        fresh(Rule::Feature, "one that is not there", ACCEPTING, unsupported, |_| {
            hello_with(|hello| (hello.offered, hello.needed) = (1, 1))
        }),
        fresh(Rule::Feature, "one that it does not offer", ACCEPTING, unsupported, |_| {
            hello_with(|hello| hello.needed = 1 << 40)
        }),
        fresh(Rule::Extension, "in HELLO", ACCEPTING, unsupported, |_| hello_with(|hello| hello.extensions = needed())),
        fresh(Rule::Limits, "max_data too small", ACCEPTING, wrong, |_| {
            hello_with(|hello| hello.limits.max_data = 4095)
        }),
        fresh(Rule::Limits, "max_data too great", ACCEPTING, wrong, |_| {
            hello_with(|hello| hello.limits.max_data = 16_777_217)
        }),
    ]
}

pub(crate) fn cases() -> Vec<Case> {
    [session_cases(), stream_cases(), call_cases()].into_iter().flatten().collect()
}
