//! Whatever a peer sends, packets or not, a session does not panic, says nothing that it may not say, holds no more than
//! it may, gives each stream one end and keeps its first cause.

#[path = "support/settings.rs"]
mod settings;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use settings::settings;
use support::*;
use virbistream::proto::{Config, Event, Misuse, SessionError, Side};
use virbistream::wire::{Close, Credit, Extension, Hello, HelloReply, Limits, Open, OpenReply};

const OURS_MAX: usize = 6;
const THEIRS_MAX: u32 = 3;

/// What the peer does, and what the owner does meanwhile.
#[derive(Clone, Debug)]
enum Step {
    Likely(Likely, u8),
    Packet(Packet),
    Raw {
        procedure: u32,
        kind: u32,
        serial: u32,
        status: u32,
        body: Vec<u8>,
    },
    Bytes(Vec<u8>),
    /// The packet cut short or its length word changed.
    Spoilt(Packet, u8, u8),
    Ask(u32),
    Accept(u32),
    Refuse(u32),
    Send(u32, u16),
    Consume(u32, u16),
    Finish(u32),
    Stop(u32),
    Reset(u32),
    Speak,
    Pass(u16),
    Close,
}

/// A packet that may well be legal for one of the streams there are, so that sessions live to hear more.
#[derive(Clone, Debug)]
enum Likely {
    Open(u16),
    Reply(u16),
    Refusal,
    Data(u16),
    Finish,
    Reset,
    /// How far behind what was sent, and how much more may be.
    Credit(u16, u16),
    Stop,
    Ping,
}

fn likely() -> impl Strategy<Value = Likely> {
    prop_oneof![
        4 => (0u16..9000).prop_map(Likely::Open),
        6 => (0u16..9000).prop_map(Likely::Reply),
        1 => Just(Likely::Refusal),
        10 => (1u16..4097).prop_map(Likely::Data),
        4 => Just(Likely::Finish),
        1 => Just(Likely::Reset),
        6 => (0u16..5000, 0u16..9000).prop_map(|(behind, more)| Likely::Credit(behind, more)),
        2 => Just(Likely::Stop),
        1 => Just(Likely::Ping),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0u64..3, 3 => 4000u64..9000, 1 => Just(u64::MAX), 1 => Just(1 << 32), 1 => any::<u64>()]
}

fn word() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..8, 1 => 4090u32..4100, 1 => any::<u32>()]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just("x".to_owned()), 1 => ".{0,20}"]
}

fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    let extension = (word(), prop::bool::weighted(0.2), prop::collection::vec(any::<u8>(), 0..20));
    let extension = extension.prop_map(|(kind, needed, value)| Extension { kind, needed, value });
    prop_oneof![6 => Just(Vec::new()), 1 => prop::collection::vec(extension, 0..3)]
}

fn limits() -> impl Strategy<Value = Limits> {
    let max_data = prop_oneof![6 => 4096u32..9000, 1 => any::<u32>()];
    (max_data, word()).prop_map(|(max_data, max_streams)| Limits { max_data, max_streams })
}

fn packet() -> impl Strategy<Value = Packet> {
    let error = || (-1i32..100, text()).prop_map(|(code, text)| error(code, &text));
    let version = || prop_oneof![5 => Just(1u32), 1 => word()];
    let features = || prop_oneof![5 => Just(0u64), 1 => any::<u64>()];
    let hello = (version(), version(), features(), limits(), extensions()).prop_map(
        |(min, max, needed, limits, extensions)| Hello {
            min_version: min,
            max_version: max,
            offered: needed,
            needed,
            limits,
            extensions,
        },
    );
    let reply = (version(), features(), limits(), extensions())
        .prop_map(|(version, features, limits, extensions)| HelloReply { version, features, limits, extensions });
    let open = (text(), word(), word(), offset(), extensions())
        .prop_map(|(target, kind, priority, window, extensions)| Open { target, kind, priority, window, extensions });
    let data = prop_oneof![0usize..20, 4090usize..4100].prop_map(|len| vec![7; len]);
    prop_oneof![
        1 => (word(), hello).prop_map(|(serial, hello)| Packet::Hello(serial, hello)),
        1 => (word(), reply).prop_map(|(serial, reply)| Packet::HelloReply(serial, reply)),
        1 => (word(), error()).prop_map(|(serial, error)| Packet::HelloRefused(serial, error)),
        8 => (word(), open).prop_map(|(id, open)| Packet::Open(id, open)),
        6 => (word(), offset(), extensions())
            .prop_map(|(id, window, extensions)| Packet::OpenReply(id, OpenReply { window, extensions })),
        2 => (word(), error()).prop_map(|(id, error)| Packet::OpenRefused(id, error)),
        8 => (word(), data).prop_map(|(id, data)| Packet::Data(id, data)),
        4 => (word(), offset()).prop_map(|(id, offset)| Packet::Finish(id, offset)),
        2 => (word(), error()).prop_map(|(id, error)| Packet::Reset(id, error)),
        6 => (word(), offset(), offset()).prop_map(|(id, consumed, limit)| Packet::credit(id, consumed, limit)),
        3 => word().prop_map(Packet::Stop),
        1 => any::<u64>().prop_map(Packet::Ping),
        1 => offset().prop_map(Packet::Pong),
        1 => (word(), word(), text()).prop_map(|(code, rule, text)| Packet::close(code, rule, &text)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1u32..9;
    let bytes = || prop::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        120 => (likely(), any::<u8>()).prop_map(|(likely, pick)| Step::Likely(likely, pick)),
        2 => packet().prop_map(Step::Packet),
        1 => (0u32..10, 0u32..8, word(), 0u32..4, bytes())
            .prop_map(|(procedure, kind, serial, status, body)| Step::Raw { procedure, kind, serial, status, body }),
        1 => bytes().prop_map(Step::Bytes),
        1 => (packet(), any::<u8>(), any::<u8>()).prop_map(|(packet, at, byte)| Step::Spoilt(packet, at, byte)),
        12 => (0u32..5).prop_map(Step::Ask),
        20 => id().prop_map(Step::Accept),
        2 => id().prop_map(Step::Refuse),
        20 => (id(), 0u16..9000).prop_map(|(id, bytes)| Step::Send(id, bytes)),
        15 => (id(), 0u16..5000).prop_map(|(id, bytes)| Step::Consume(id, bytes)),
        3 => id().prop_map(Step::Finish),
        2 => id().prop_map(Step::Stop),
        2 => id().prop_map(Step::Reset),
        20 => Just(Step::Speak),
        2 => (0u16..20_000).prop_map(Step::Pass),
        1 => Just(Step::Close),
    ]
}

/// What the test knows of the session, from outside.
struct World {
    probe: Probe,
    /// Told of and not ended; whether it stands.
    streams: BTreeMap<u32, bool>,
    /// The greatest limit that the peer named for an id, honest or not, and how much was sent.
    limits: BTreeMap<u32, u64>,
    sent: BTreeMap<u32, u64>,
    /// How far the peer may send, where it was told so by CREDIT.
    told: BTreeMap<u32, u64>,
    /// Behind these nothing more is said.
    finished: BTreeMap<u32, bool>,
    judged: usize,
    /// OPENs that were said.
    asked: BTreeSet<u32>,
    /// The highest id that the peer opened by a likely packet.
    opened: u32,
    cause: Option<Result<(), SessionError>>,
    said_last: bool,
}

impl World {
    fn new(side: Side, greeted: bool) -> Self {
        let config = Config { max_streams: THEIRS_MAX, ..small() };
        let mut probe = Probe::new(side, config);
        probe.consumes = false;
        probe.speak();
        if greeted {
            probe.greet();
        }
        let mut world = Self {
            probe,
            streams: BTreeMap::new(),
            limits: BTreeMap::new(),
            sent: BTreeMap::new(),
            told: BTreeMap::new(),
            finished: BTreeMap::new(),
            judged: 0,
            asked: BTreeSet::new(),
            opened: 0,
            cause: None,
            said_last: false,
        };
        world.judge();
        world
    }

    fn step(&mut self, step: Step) {
        let step = match step {
            Step::Likely(likely, pick) => match self.packet(likely, pick) {
                Some(packet) => Step::Packet(packet),
                None => return,
            },
            other => other,
        };
        let probe = &mut self.probe;
        match step {
            Step::Packet(packet) => {
                if let Packet::Open(id, Open { window: limit, .. })
                | Packet::OpenReply(id, OpenReply { window: limit, .. })
                | Packet::Credit(Credit { stream: id, limit, .. }) = &packet
                {
                    let greatest = self.limits.entry(*id).or_default();
                    *greatest = (*limit).max(*greatest);
                }
                self.hear(&packet.encode());
            }
            // OPEN and CREDIT that are well formed by chance would move limits that the test knows nothing of.
            Step::Raw { procedure: 1 | 3, .. } => {}
            Step::Spoilt(Packet::Open(..) | Packet::OpenReply(..) | Packet::Credit(_), ..) => {}
            Step::Raw { procedure, kind, serial, status, body } => {
                self.hear(&raw(procedure, kind, serial, status, &body));
            }
            Step::Bytes(bytes) => self.hear(&bytes),
            Step::Spoilt(packet, at, byte) => {
                let mut bytes = packet.encode();
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
                self.hear(&bytes);
            }
            Step::Ask(priority) => {
                let ours = self.streams.keys().filter(|id| **id % 2 == probe.ours(0) % 2).count();
                if ours < OURS_MAX
                    && let Ok(id) = probe.session.open(probe.now, Open { priority, ..open("x") })
                {
                    probe.know(id);
                    assert!(self.streams.insert(id.number(), false).is_none());
                }
            }
            Step::Accept(id) if probe.has_stream(id) => {
                let accepted = probe.stream(id).accept().is_ok();
                self.streams.entry(id).and_modify(|stands| *stands |= accepted);
            }
            Step::Refuse(id) if probe.has_stream(id) => {
                let refused = probe.stream(id).refuse(error(88, "")).is_ok();
                self.streams.retain(|other, _| *other != id || !refused);
            }
            Step::Send(id, bytes) if probe.has_stream(id) => _ = probe.send(id, &vec![1; usize::from(bytes)]),
            Step::Consume(id, bytes) if probe.has_stream(id) => {
                let stats = probe.stream(id).stats();
                let result = probe.stream(id).consumed(u64::from(bytes));
                assert!(result.is_ok() || result == Err(Misuse::BeyondReceived));
                assert!(result.is_err() || probe.stream_stats(id).is_none_or(|now| now.consumed <= stats.received));
            }
            Step::Finish(id) if probe.has_stream(id) => _ = probe.stream(id).finish(),
            Step::Stop(id) if probe.has_stream(id) => _ = probe.stream(id).stop(),
            Step::Reset(id) if probe.has_stream(id) => {
                probe.stream(id).reset(error(1, ""));
                self.streams.remove(&id);
            }
            Step::Speak => _ = probe.speak(),
            Step::Pass(time) => probe.pass(Duration::from_millis(u64::from(time))),
            Step::Close => probe.session.close(),
            _ => {}
        }
        self.judge();
    }

    fn packet(&mut self, likely: Likely, pick: u8) -> Option<Packet> {
        let ours = self.probe.ours(0) % 2;
        let any = |ids: Vec<u32>| ids.get(usize::from(pick) % ids.len().max(1)).copied();
        let ids = |wanted: &dyn Fn(u32, bool) -> bool| {
            any(self.streams.iter().filter(|(id, stands)| wanted(**id, **stands)).map(|(id, _)| *id).collect())
        };
        let standing = ids(&|_, stands| stands);
        let asked = ids(&|id, stands| !stands && id % 2 == ours && self.asked.contains(&id));
        Some(match likely {
            Likely::Open(window) => {
                self.opened = if self.opened == 0 { self.probe.theirs(0) } else { self.opened + 2 };
                Packet::Open(self.opened, Open { window: window.into(), ..open("x") })
            }
            Likely::Reply(window) => Packet::open_reply(asked?, window.into()),
            Likely::Refusal => Packet::OpenRefused(asked?, error(1, "")),
            Likely::Data(len) => {
                let limit = self.told.get(&standing?).copied().unwrap_or(8192);
                let room = limit - self.probe.stream_stats(standing?)?.received;
                let len = u64::from(len).min(room);
                Packet::Data(standing?, vec![9; usize::try_from(len).ok().filter(|len| *len > 0)?])
            }
            Likely::Finish => Packet::Finish(standing?, self.probe.stream_stats(standing?)?.received),
            Likely::Reset => Packet::Reset(ids(&|_, _| true)?, error(1, "")),
            Likely::Credit(behind, more) => {
                let consumed = self.probe.stream_stats(standing?)?.sent.saturating_sub(behind.into());
                Packet::credit(standing?, consumed, consumed + u64::from(more))
            }
            Likely::Stop => Packet::Stop(standing?),
            Likely::Ping => Packet::Ping(pick.into()),
        })
    }

    fn hear(&mut self, bytes: &[u8]) {
        if let Err(error) = self.probe.hear_bytes(bytes) {
            self.judge();
            match self.cause.as_ref().expect("an error is the end") {
                Err(cause) => assert_eq!(error, *cause, "the first cause stays"),
                Ok(()) => assert_eq!(error, SessionError::Closed),
            }
        }
    }

    /// Everything that happened and was said since.
    fn judge(&mut self) {
        let news = self.probe.news();
        assert!(news.len() <= 3 + self.streams.len(), "{news:?}");
        news.into_iter().for_each(|event| self.on_event(event));
        let said = self.probe.said.split_off(self.judged);
        for packet in &said {
            self.on_said(packet);
        }
        let session = &self.probe.session;
        assert_eq!(session.is_closed(), self.cause.is_some());
        assert!(session.granted() <= small().memory_budget.bytes());
        assert!(session.stream_count() <= THEIRS_MAX as usize + 2 * OURS_MAX + 256);
        assert!(session.poll_timeout().is_none() || self.cause.is_none());
    }

    fn on_event(&mut self, event: Event) {
        assert!(self.cause.is_none(), "{event:?} after the end");
        match event {
            Event::Incoming { id, .. } => assert!(self.streams.insert(id.number(), false).is_none()),
            Event::Accepted(id) => assert_eq!(self.streams.insert(id.number(), true), Some(false)),
            Event::Finished(id) | Event::Stopped(id) => assert_eq!(self.streams.get(&id.number()), Some(&true)),
            Event::Failed { id, stats, .. } | Event::Over { id, stats } => {
                assert!(self.streams.remove(&id.number()).is_some(), "{id} has ended before");
                assert!(stats.delivered <= stats.sent && stats.consumed <= stats.received);
            }
            Event::Closed(cause) => {
                assert_eq!(self.streams, BTreeMap::new(), "streams without an end");
                self.cause = Some(cause);
            }
            Event::Established { .. } | Event::Legacy(_) | Event::Draining => {}
            other => panic!("{other:?}"),
        }
    }

    fn on_said(&mut self, packet: &Packet) {
        assert!(!self.said_last, "{packet:?} behind a fatal CLOSE");
        match packet {
            Packet::Data(id, bytes) => {
                let (sent, limit) = (self.sent.entry(*id).or_default(), self.limits.get(id).copied().unwrap_or(0));
                *sent += bytes.len() as u64;
                assert!(*sent <= limit, "{sent} sent of {limit}");
                assert!(!self.finished.contains_key(id), "{packet:?} behind its finish");
            }
            Packet::Finish(id, offset) => {
                assert_eq!(*offset, self.sent.get(id).copied().unwrap_or(0));
                assert!(self.finished.insert(*id, false).is_none(), "{packet:?} again");
            }
            Packet::Reset(id, _) => {
                assert!(self.finished.insert(*id, true) != Some(true), "{packet:?} again");
            }
            Packet::Credit(Credit { stream, limit, .. }) => {
                assert!(self.finished.get(stream) != Some(&true), "{packet:?} behind a reset");
                assert!(self.told.insert(*stream, *limit) < Some(*limit), "{packet:?} grants no more");
            }
            Packet::Stop(stream) => assert!(self.finished.get(stream) != Some(&true), "{packet:?} behind a reset"),
            Packet::Close(Close { code, .. }) => self.said_last = *code != 0,
            Packet::Open(id, _) => assert!(self.asked.insert(*id), "{packet:?} again"),
            Packet::HelloRefused(_, error) => assert!(![39, 3].contains(&error.code), "we are no legacy peer"),
            _ => {}
        }
    }

    fn end(mut self) {
        self.probe.session.handle_link_lost("the end");
        self.judge();
        let session = &mut self.probe.session;
        assert!(session.is_finished() && !session.wants_to_send());
        assert_eq!((session.stream_count(), session.granted(), session.poll_timeout()), (0, 0, None));
    }
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Connecting), Just(Side::Accepting)]
}

proptest! {
    #![proptest_config(settings(4000))]

    #[test]
    fn a_session_bears_any_packets(
        side in side(),
        greeted in prop::bool::weighted(0.9),
        piece in prop_oneof![3 => Just(usize::MAX), 1 => 1usize..40],
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new(side, greeted);
        world.probe.piece = piece;
        for step in steps {
            world.step(step);
        }
        world.end();
    }

    #[test]
    fn a_session_bears_any_bytes(
        side in side(),
        greeted in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut world = World::new(side, greeted);
        world.hear(&bytes);
        world.hear(&bytes);
        world.end();
    }
}
