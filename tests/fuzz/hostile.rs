//! Whatever a peer sends and whenever its owner acts, a session does not panic, says nothing it may not say, gives every stream one
//! end and keeps its first cause.
//!
//! The input is a list of steps, [`Op`]: some are the peer's, honest or not, some the owner's.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use virbistream::proto::{CONTROL_MAX, Config, Data, Event, MemoryBudget, Session, SessionError, StreamId, StreamMut};
use virbistream::wire::{
    Body, Close, Credit, Decoder, Finish, HEADER_LEN, Header, Hello, HelloReply, Limits, Open, OpenReply, PACKET_MAX,
    PacketType, Piece, Ping, Procedure, ProgramId, RemoteError, Status, Stop, decode_body,
};

const WINDOW: u64 = 16 * 1024;
const WINDOW_MAX: u64 = 3 * WINDOW;
const BUDGET: u64 = 6 * WINDOW;
const MAX_STREAMS: u32 = 4;

/// Of both sides, those that were reset and not told yet, and refusals.
const MAX_KNOWN: usize = 3 * MAX_STREAMS as usize + 256;

/// The most control bytes that a stream, or the session for itself, may owe: each mark is one packet.
const MAX_OWED: usize = 1024;
const PEER_MAX_DATA: u32 = 4096;

/// Times that stand for a bound of what the peer may send, and for none: with operations for that, the seeds would say something else.
const LIMIT: u16 = u16::MAX;
const NO_LIMIT: u16 = u16::MAX - 1;

#[derive(Arbitrary, Debug)]
struct Input {
    accepting: bool,
    /// HELLO stands before the first step.
    established: bool,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// The peer sends bytes as they are.
    Bytes(Vec<u8>),
    /// It sends any packet of the block.
    Any {
        procedure: u8,
        kind: u8,
        status: u8,
        serial: u8,
        body: Vec<u8>,
    },
    /// It sends a packet of some sense; its payload comes in two parts.
    Say {
        what: Said,
        split: u8,
    },
    /// It begins DATA and the link is lost.
    Lost,
    Framing,
    Ask {
        name: String,
        priority: u8,
    },
    Accept(u8),
    Refuse(u8),
    Ready(u8),
    Blocked(u8),
    Finish(u8),
    Reset(u8),
    Stop(u8),
    Consume(u8, u16),
    Transmit {
        room: u16,
        send: u16,
    },
    Pass(u16),
    Close,
    Shutdown,
}

/// Offsets are told relative to the true ones: 0 is honest.
#[derive(Arbitrary, Debug)]
enum Said {
    Hello { needed: u8, max_data: u32, max_streams: u8 },
    HelloReply { features: u8, max_data: u32 },
    HelloRefused { code: u8 },
    Open { id: u8, name: String, priority: u8, window: u16 },
    OpenReply { id: u8, window: u16 },
    OpenRefused { id: u8 },
    Data { id: u8, len: u16 },
    Finish { id: u8, lie: i8 },
    Reset { id: u8 },
    Credit { id: u8, behind: u16, window: u16 },
    Stop { id: u8 },
    Ping { token: u64 },
    Pong { token: u64 },
    Close { code: u8, rule: u8 },
}

/// What is known of a stream from outside the session.
#[derive(Debug, Default)]
struct Seen {
    id: Option<StreamId>,
    /// The greatest limit that the peer told.
    limit: u64,
    sent: u64,
    finished: bool,
    was_reset: bool,
    given: u64,
    consumed: u64,
    /// What our last CREDIT said.
    told: (u64, u64),
    ended: bool,
    /// Its owner reset or refused it: no event tells of its end.
    dismissed: bool,
}

struct World {
    session: Session,
    accepting: bool,
    now: Instant,
    decoder: Decoder,
    seen: BTreeMap<u32, Seen>,
    established: bool,
    /// The reply to our HELLO came: a peer that took it may be told why we go, whatever the reply says.
    answered: bool,
    /// A fatal CLOSE was sent.
    said_last: bool,
    closed: Option<Result<(), SessionError>>,
    cause: Option<SessionError>,
}

fn config() -> Config {
    Config {
        max_data: 8192,
        max_streams: MAX_STREAMS,
        window: WINDOW,
        window_max: WINDOW_MAX,
        memory_budget: MemoryBudget::new(BUDGET),
        hello_timeout: Some(Duration::from_secs(10)),
        ..Config::default()
    }
}

fn body<T: Body>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes).expect("within its bounds");
    bytes
}

fn header(procedure: Procedure, kind: PacketType, serial: u32, status: Status) -> Header {
    ProgramId::default().header(procedure, kind, serial, status)
}

fn error(code: i32) -> RemoteError {
    RemoteError::new(code, 38, "a reason")
}

impl World {
    fn new(accepting: bool) -> Self {
        let now = Instant::now();
        let session = if accepting { Session::accept(config(), now) } else { Session::connect(config(), now) };
        Self {
            session,
            accepting,
            now,
            decoder: Decoder::new(PACKET_MAX),
            seen: BTreeMap::new(),
            established: false,
            answered: false,
            said_last: false,
            closed: None,
            cause: None,
        }
    }

    fn establish(&mut self) {
        let said = if self.accepting {
            Said::Hello { needed: 0, max_data: PEER_MAX_DATA, max_streams: 4 }
        } else {
            Said::HelloReply { features: 0, max_data: PEER_MAX_DATA }
        };
        self.transmit(CONTROL_MAX, 0);
        self.say(said, 0);
        self.events();
        self.transmit(CONTROL_MAX, 0);
        assert!(self.session.is_established());
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Bytes(bytes) => self.bytes(&bytes),
            Op::Any { procedure, kind, status, serial, body } => {
                let base = ProgramId::default();
                let header = Header {
                    program: base.program,
                    version: base.version,
                    procedure: base.base.wrapping_add(procedure.into()),
                    kind: (kind % 8).into(),
                    serial: serial.into(),
                    status: (status % 4).into(),
                };
                self.packet(&header, &body, 0);
            }
            Op::Say { what, split } => self.say(what, split),
            Op::Lost => self.session.handle_link_lost("gone"),
            Op::Framing => {
                let error = Decoder::new(28).decode(&mut &[0; HEADER_LEN][..]).expect_err("a length of 0");
                let cause = self.session.handle_framing_error(error);
                self.is_cause(cause);
            }
            Op::Ask { name, priority } => {
                let open = Open { target: name, priority: priority.into(), ..Open::default() };
                if let Ok(id) = self.session.open(self.now, open) {
                    self.appears(id, !self.accepting);
                }
            }
            Op::Accept(pick) => _ = self.with(pick, |stream, _| stream.accept()),
            Op::Refuse(pick) => {
                _ = self.with(pick, |stream, seen| {
                    let refused = stream.refuse(error(88));
                    seen.dismissed |= refused.is_ok();
                });
            }
            Op::Ready(pick) => _ = self.with(pick, |stream, _| stream.ready()),
            Op::Blocked(pick) => _ = self.with(pick, |stream, _| stream.blocked()),
            Op::Finish(pick) => _ = self.with(pick, |stream, _| stream.finish()),
            Op::Reset(pick) => {
                _ = self.with(pick, |stream, seen| {
                    stream.reset(error(38));
                    seen.dismissed |= !seen.ended;
                });
            }
            Op::Stop(pick) => _ = self.with(pick, |stream, _| stream.stop()),
            Op::Consume(pick, bytes) => {
                _ = self.with(pick, |stream, seen| {
                    if stream.consumed(bytes.into()).is_ok() {
                        seen.consumed += u64::from(bytes);
                    }
                });
            }
            Op::Transmit { room, send } => self.transmit(room.into(), send.into()),
            Op::Pass(LIMIT) => self.session.set_receive_limit(self.now, Some(10_000)),
            Op::Pass(NO_LIMIT) => self.session.set_receive_limit(self.now, None),
            Op::Pass(ms) => {
                self.now += Duration::from_millis(ms.into());
                self.session.handle_timeout(self.now);
                if let Some(deadline) = self.session.poll_timeout() {
                    assert!(deadline > self.now, "what is due was not done");
                }
            }
            Op::Close => self.session.close(),
            Op::Shutdown => self.session.shutdown("no more"),
        }
        self.events();
        assert!(self.session.granted() <= BUDGET);
        assert!(self.session.stream_count() <= MAX_KNOWN, "{} streams", self.session.stream_count());
        assert_eq!(self.session.is_closed(), self.closed.is_some(), "the end is an event");
    }

    fn with<T>(&mut self, pick: u8, act: impl FnOnce(StreamMut<'_>, &mut Seen) -> T) -> Option<T> {
        let mut appeared: Vec<&mut Seen> = self.seen.values_mut().filter(|seen| seen.id.is_some()).collect();
        let count = appeared.len().max(1);
        let seen = appeared.get_mut(usize::from(pick) % count)?;
        let stream = self.session.stream(seen.id?)?;
        Some(act(stream, seen))
    }

    fn appears(&mut self, id: StreamId, odd: bool) {
        assert_eq!(id.number() % 2 == 1, odd, "{id} is the other side's");
        let seen = self.seen.entry(id.number()).or_default();
        assert_eq!(seen.id, None, "{id} appears twice");
        seen.id = Some(id);
    }

    fn say(&mut self, what: Said, split: u8) {
        use PacketType::{Call, Message, Reply, Stream};
        let limits = |max_data, max_streams| Limits { max_data, max_streams };
        let (header, body) = match what {
            Said::Hello { needed, max_data, max_streams } => {
                let hello = Hello {
                    min_version: 1,
                    max_version: 1,
                    offered: needed.into(),
                    needed: needed.into(),
                    limits: limits(max_data, max_streams.into()),
                    extensions: Vec::new(),
                };
                (header(Procedure::Hello, Call, 7, Status::Ok), body(&hello))
            }
            Said::HelloReply { features, max_data } => {
                let (features, limits) = (features.into(), limits(max_data, 4));
                let reply = HelloReply { version: 1, features, limits, extensions: Vec::new() };
                (header(Procedure::Hello, Reply, 1, Status::Ok), body(&reply))
            }
            Said::HelloRefused { code } => {
                (header(Procedure::Hello, Reply, 1, Status::Error), body(&error(code.into())))
            }
            Said::Open { id, name, priority, window } => {
                let target = name.chars().take(60).collect();
                let window = u64::from(window);
                let seen = self.seen.entry(id.into()).or_default();
                seen.limit = seen.limit.max(window);
                let open = Open { target, kind: 0, priority: priority.into(), window, extensions: Vec::new() };
                (header(Procedure::Open, Call, id.into(), Status::Ok), body(&open))
            }
            Said::OpenReply { id, window } => {
                let window = u64::from(window);
                let seen = self.seen.entry(id.into()).or_default();
                seen.limit = seen.limit.max(window);
                let reply = OpenReply { window, extensions: Vec::new() };
                (header(Procedure::Open, Reply, id.into(), Status::Ok), body(&reply))
            }
            Said::OpenRefused { id } => (header(Procedure::Open, Reply, id.into(), Status::Error), body(&error(99))),
            Said::Data { id, len } => {
                (header(Procedure::Data, Stream, id.into(), Status::Continue), vec![id; len.into()])
            }
            Said::Finish { id, lie } => {
                let given = self.seen.get(&id.into()).map_or(0, |seen| seen.given);
                let offset = given.wrapping_add_signed(lie.into());
                (header(Procedure::Data, Stream, id.into(), Status::Ok), body(&Finish { offset }))
            }
            Said::Reset { id } => (header(Procedure::Data, Stream, id.into(), Status::Error), body(&error(38))),
            Said::Credit { id, behind, window } => {
                let seen = self.seen.entry(id.into()).or_default();
                // One more than was sent is the lie.
                let consumed = (seen.sent + 1).saturating_sub(behind.into());
                let limit = consumed + u64::from(window);
                seen.limit = seen.limit.max(limit);
                let credit = Credit { stream: id.into(), consumed, limit };
                (header(Procedure::Credit, Message, 0, Status::Ok), body(&credit))
            }
            Said::Stop { id } => (header(Procedure::Stop, Message, 0, Status::Ok), body(&Stop { stream: id.into() })),
            Said::Ping { token } => (header(Procedure::Ping, Message, 0, Status::Ok), body(&Ping { token })),
            Said::Pong { token } => (header(Procedure::Pong, Message, 0, Status::Ok), body(&Ping { token })),
            Said::Close { code, rule } => {
                let close = Close { code: code.into(), rule: rule.into(), text: "enough".into() };
                (header(Procedure::Close, Message, 0, Status::Ok), body(&close))
            }
        };
        self.packet(&header, &body, split);
    }

    /// Hands over a packet, at once or its payload in two parts.
    fn packet(&mut self, header: &Header, body: &[u8], split: u8) {
        self.comes(header);
        let (first, second) = body.split_at(body.len().min(split.into()));
        let (now, len) = (self.now, body.len() as u32);
        if first.is_empty() || second.is_empty() {
            let result = self.session.handle_packet(now, header, body);
            return received(result, &mut self.seen).unwrap_or_else(|cause| self.is_cause(cause));
        }
        if let Err(cause) = self.session.handle_header(now, header, len) {
            return self.is_cause(cause);
        }
        for (part, remaining) in [(first, second.len() as u32), (second, 0)] {
            let result = self.session.handle_payload(now, part, remaining);
            if let Err(cause) = received(result, &mut self.seen) {
                return self.is_cause(cause);
            }
        }
    }

    fn bytes(&mut self, mut input: &[u8]) {
        let now = self.now;
        loop {
            let result = match self.decoder.decode(&mut input) {
                Ok(None) => return,
                Ok(Some(Piece::Header { header, .. })) if !self.session.owns(&header) => return,
                Ok(Some(Piece::Header { header, payload_len })) => {
                    self.comes(&header);
                    self.session.handle_header(now, &header, payload_len)
                }
                Ok(Some(Piece::Payload { bytes, remaining })) => {
                    let result = self.session.handle_payload(now, bytes, remaining);
                    received(result, &mut self.seen)
                }
                Err(error) => Err(self.session.handle_framing_error(error)),
            };
            if let Err(cause) = result {
                return self.is_cause(cause);
            }
        }
    }

    fn comes(&mut self, heard: &Header) {
        self.answered |=
            !self.accepting && *heard == header(Procedure::Hello, PacketType::Reply, heard.serial, Status::Ok);
    }

    /// The first stays the first.
    fn is_cause(&mut self, cause: SessionError) {
        assert!(self.session.is_closed());
        if !matches!(self.closed, Some(Ok(()))) {
            assert_eq!(*self.cause.get_or_insert_with(|| cause.clone()), cause);
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            assert!(self.closed.is_none(), "{event:?} after the end");
            match event {
                Event::Established { .. } => {
                    assert!(!self.established);
                    self.established = true;
                }
                Event::Incoming { id, .. } => self.appears(id, self.accepting),
                Event::Accepted(id) | Event::Finished(id) | Event::Stopped(id) => {
                    assert!(!self.seen[&id.number()].ended, "{event:?} after its end");
                }
                Event::Failed { id, stats, .. } | Event::Over { id, stats } => {
                    let seen = self.seen.get_mut(&id.number()).expect("a stream that appeared");
                    assert!(seen.id.is_some() && !seen.ended && !seen.dismissed, "a second end of {id}");
                    seen.ended = true;
                    assert!(
                        stats.sent == seen.sent && stats.consumed <= stats.received && stats.delivered <= stats.sent
                    );
                }
                Event::Closed(result) => {
                    if let (Err(now), Some(before)) = (&result, &self.cause) {
                        assert_eq!(now, before);
                    }
                    self.cause = self.cause.take().or(result.as_ref().err().cloned());
                    self.closed = Some(result);
                }
                Event::Legacy(_) | Event::Draining => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Lets the session send: control packets into so much room, then up to so many bytes of data.
    fn transmit(&mut self, room: usize, send: usize) {
        let mut out = vec![0; room];
        let len = self.session.poll_control(self.now, &mut out);
        self.said(&out[..len]);
        if room >= CONTROL_MAX && len == 0 {
            assert_eq!(self.session.wants_to_send(), self.session.poll_grant().is_some());
        }
        let Some(grant) = self.session.poll_grant() else { return };
        assert_eq!(self.session.poll_grant(), Some(grant), "the same until it is answered");
        assert!(grant.max > 0);
        let stream = self.session.stream(grant.id).expect("whose turn it is");
        match send.min(grant.max) {
            0 => stream.blocked(),
            len => {
                assert!(len as u64 <= stream.credit());
                let header = stream.send(len).expect("within the grant");
                let mut packet = header.to_vec();
                packet.resize(HEADER_LEN + len, 0);
                self.said(&packet);
            }
        }
    }

    /// All that is owed goes out at last, and it is not much.
    fn drain(&mut self) {
        let (mut room, mut owed) = (vec![0; CONTROL_MAX], 0);
        let most = MAX_OWED * (1 + self.session.stream_count());
        while let len @ 1.. = self.session.poll_control(self.now, &mut room) {
            self.said(&room[..len]);
            self.events();
            owed += len;
            assert!(owed <= most, "{owed} bytes of control, {most} could be owed");
        }
    }

    /// Judges what the session sends.
    fn said(&mut self, mut bytes: &[u8]) {
        let mut decoder = Decoder::new(PACKET_MAX);
        while let Some(piece) = decoder.decode(&mut bytes).expect("packets") {
            let Piece::Header { header, payload_len } = piece else { panic!("a payload without a header") };
            let payload = match payload_len {
                0 => &[][..],
                len => match decoder.decode(&mut bytes) {
                    Ok(Some(Piece::Payload { bytes, remaining: 0 })) if bytes.len() == len as usize => bytes,
                    other => panic!("{other:?} for a payload"),
                },
            };
            self.said_packet(&header, payload);
        }
        assert!(decoder.at_boundary(), "whole packets only");
    }

    fn said_packet(&mut self, header: &Header, payload: &[u8]) {
        let id = header.serial;
        let procedure = Procedure::from_offset(ProgramId::default().offset(header)).expect("of the block");
        assert!(!self.said_last, "{procedure:?} behind a fatal CLOSE");
        let stands = self.established || self.answered && procedure == Procedure::Close;
        assert!(stands || procedure == Procedure::Hello, "{procedure:?} before HELLO stands");
        match (procedure, header.packet_type(), header.packet_status()) {
            (Procedure::Hello, Some(PacketType::Call), Some(Status::Ok)) => {
                assert!(!self.accepting);
                decode_body::<Hello>(payload).expect("HELLO");
            }
            (Procedure::Hello, Some(PacketType::Reply), Some(Status::Ok)) => {
                assert!(self.accepting);
                decode_body::<HelloReply>(payload).expect("its reply");
            }
            (Procedure::Hello, Some(PacketType::Reply), Some(Status::Error)) => {
                let error = decode_body::<RemoteError>(payload).expect("a refusal");
                assert!(![39, 3].contains(&error.code), "we are no legacy peer");
            }
            (Procedure::Open, Some(PacketType::Call), Some(Status::Ok)) => {
                decode_body::<Open>(payload).expect("OPEN");
                assert_eq!(id % 2 == 1, !self.accepting);
            }
            (Procedure::Open, Some(PacketType::Reply), Some(Status::Ok)) => {
                decode_body::<OpenReply>(payload).expect("its reply");
                assert_eq!(id % 2 == 1, self.accepting);
            }
            (Procedure::Open, Some(PacketType::Reply), Some(Status::Error)) => {
                decode_body::<RemoteError>(payload).expect("a refusal");
                assert_eq!(id % 2 == 1, self.accepting);
            }
            (Procedure::Data, Some(PacketType::Stream), Some(status)) => self.said_data(id, status, payload),
            (Procedure::Credit, Some(PacketType::Message), Some(Status::Ok)) => {
                let Credit { stream, consumed, limit } = decode_body(payload).expect("CREDIT");
                let seen = self.seen.get_mut(&stream).expect("of a stream that appeared");
                assert!(!seen.was_reset && consumed > seen.told.0 && limit >= seen.told.1);
                assert!(consumed <= seen.consumed && seen.consumed <= seen.given);
                assert!((WINDOW..=WINDOW_MAX).contains(&(limit - consumed)), "a window of {}", limit - consumed);
                seen.told = (consumed, limit);
            }
            (Procedure::Stop, Some(PacketType::Message), Some(Status::Ok)) => {
                let Stop { stream } = decode_body(payload).expect("STOP");
                assert!(!self.seen[&stream].was_reset);
            }
            (Procedure::Ping | Procedure::Pong, Some(PacketType::Message), Some(Status::Ok)) => {
                decode_body::<Ping>(payload).expect("PING or PONG");
            }
            (Procedure::Close, Some(PacketType::Message), Some(Status::Ok)) => {
                self.said_last = decode_body::<Close>(payload).expect("CLOSE").code != 0;
            }
            _ => panic!("{procedure:?} {header:?}"),
        }
    }

    fn said_data(&mut self, id: u32, status: Status, payload: &[u8]) {
        let seen = self.seen.get_mut(&id).expect("of a stream that appeared");
        assert!(!seen.was_reset, "behind a reset");
        match status {
            Status::Continue => {
                assert!(!seen.finished, "DATA behind finish");
                seen.sent += payload.len() as u64;
                assert!(!payload.is_empty() && seen.sent <= seen.limit, "{} sent of {}", seen.sent, seen.limit);
            }
            Status::Ok => {
                let Finish { offset } = decode_body(payload).expect("finish");
                assert!(!seen.finished && offset == seen.sent);
                seen.finished = true;
            }
            Status::Error => {
                decode_body::<RemoteError>(payload).expect("reset");
                seen.was_reset = true;
            }
        }
    }

    fn end(mut self) {
        let first = self.cause.clone();
        self.drain();
        self.session.handle_link_lost("the end");
        self.events();
        if first.is_some() {
            assert_eq!(self.cause, first);
        }
        for (id, seen) in &self.seen {
            assert!(seen.id.is_none() || seen.ended != seen.dismissed, "stream {id} has no end: {seen:?}");
        }
        assert!(self.session.is_finished() && self.session.stream_count() == 0 && self.session.granted() == 0);
        assert_eq!(self.session.poll_timeout(), None);
    }
}

/// Counts data that was given out.
fn received(
    result: Result<Option<Data<'_>>, SessionError>,
    seen: &mut BTreeMap<u32, Seen>,
) -> Result<(), SessionError> {
    if let Some(data) = result? {
        let seen = seen.get_mut(&data.id.number()).expect("a stream that appeared");
        assert!(!data.bytes.is_empty() && !seen.ended && !seen.dismissed);
        seen.given += data.bytes.len() as u64;
        assert!(seen.given <= seen.told.1.max(WINDOW_MAX), "{} given, {:?} told", seen.given, seen.told);
    }
    Ok(())
}

pub(crate) fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut world = World::new(input.accepting);
    if input.established {
        world.establish();
    }
    for op in input.ops {
        world.step(op);
    }
    world.end();
}
