//! libvirt's own streams of one link: one way each, without a window.
//!
//! What a consumer does not take is held by whoever drives this, up to the stream's limit; beyond it that stream alone is
//! aborted. (libvirt itself stops reading the connection instead.)

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::error::{LinkError, StreamError};
use super::outbox::Outbox;
use crate::proto::Share;
use crate::wire::{Body, HEADER_LEN, Header, Hole, PacketType, RemoteError, Status, codes, decode_body, domains};

/// The most payload that a packet of ours carries: what every libvirt takes.
pub const STREAM_DATA_MAX: usize = 262_120;

/// What a hole counts against the limit of a stream, in bytes, since it must be remembered where it stands.
pub const HOLE_COST: u64 = crate::wire::HOLE_CREDIT;

/// Which end of libvirt's RPC we are: it is the client that begins streams, and the daemon that has the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Daemon,
    Client,
}

/// Which way a stream's bytes go, seen from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// We send: the daemon of a download, the client of an upload.
    Sending,
    /// We receive.
    Receiving,
}

/// How a stream is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Which way its bytes go.
    pub direction: Direction,
    /// Whether zeroes may travel as holes; the call that begins the stream says so to the peer.
    pub sparse: bool,
    /// Bytes received that may wait to be consumed before the stream is aborted. What one read of the link brings may
    /// come on top.
    pub limit: u64,
}

impl StreamOptions {
    /// Without holes, and with 4 MiB that may wait.
    pub fn new(direction: Direction) -> Self {
        Self { direction, sparse: false, limit: 4 << 20 }
    }
}

/// The name of a legacy stream on its link; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegacyId(pub(super) u64);

/// What came on a stream, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamPiece<'a> {
    /// At least one byte.
    Bytes(&'a [u8]),
    /// So many zero bytes, at least one. Whatever its length, it counts as [`HOLE_COST`] bytes that wait to be consumed.
    Hole(u64),
}

/// What happened to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The peer has sent all: say `finish` once it is delivered.
    Finished(LegacyId),
    /// It is over at both ends, all was taken.
    Over(LegacyId),
    /// It ended before its time; nothing more is said of it.
    Failed(LegacyId, StreamError),
}

/// The packet of a stream whose payload is arriving.
#[derive(Debug)]
pub(super) enum Arriving {
    Data(LegacyId),
    Hole(LegacyId, Vec<u8>),
    /// The error that ends it, as much of it as is worth keeping.
    Error(LegacyId, Vec<u8>),
    Discard,
}

/// What a stream's packets have in common, apart from their type and status.
type Key = (u32, u32, u32, u32);

fn key(header: &Header) -> Key {
    (header.program, header.version, header.procedure, header.serial)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Receiving: the peer has sent all, and we have not said yet that it was taken.
    Finishing,
    /// We have said our last word and wait for the peer's.
    Ending,
    /// It has failed here; what still comes is passed over, up to the peer's last word.
    Failed,
}

#[derive(Debug)]
struct Stream {
    /// The call that began it: its packets differ in type and status alone.
    call: Header,
    options: StreamOptions,
    state: State,
    /// The call that began it has its answer: before that the client sends nothing.
    answered: bool,
    /// What it sends next goes behind this mark of the outbox.
    behind: u64,
    /// Received and not consumed.
    held: u64,
    in_turn: bool,
    /// What it may hold, of the budget of all links.
    _share: Option<Share>,
}

#[derive(Debug)]
pub(super) struct Streams {
    role: Role,
    streams: BTreeMap<LegacyId, Stream>,
    ids: HashMap<Key, LegacyId>,
    next: u64,
    /// Those that may have something to send.
    turns: VecDeque<LegacyId>,
    events: VecDeque<StreamEvent>,
}

impl Streams {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            streams: BTreeMap::new(),
            ids: HashMap::new(),
            next: 1,
            turns: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether nobody here has anything more to do with any of them.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.values().all(|stream| stream.state == State::Failed)
    }

    pub(super) fn has_serial(&self, serial: u32) -> bool {
        self.streams.values().any(|stream| stream.call.serial == serial)
    }

    /// A stream begun by this call, or to be begun with its answer.
    pub(super) fn open(
        &mut self,
        call: &Header,
        options: StreamOptions,
        answered: bool,
        share: Option<Share>,
    ) -> LegacyId {
        let id = LegacyId(self.next);
        self.next += 1;
        self.ids.insert(key(call), id);
        self.streams.insert(
            id,
            Stream {
                call: *call,
                options,
                state: State::Open,
                answered,
                behind: 0,
                held: 0,
                in_turn: false,
                _share: share,
            },
        );
        id
    }

    /// Whether a stream was begun by a call of this name and is not over.
    pub(super) fn is_known(&self, call: &Header) -> bool {
        self.ids.contains_key(&key(call))
    }

    pub(super) fn send_behind(&mut self, id: LegacyId, mark: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.behind = mark;
        }
    }

    /// The daemon's answer to a call, which may be one that begins a stream.
    pub(super) fn on_answer(&mut self, reply: &Header, out: &mut Outbox) {
        let Some(id) = self.ids.get(&key(reply)).copied() else { return };
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.answered) else { return };
        stream.answered = true;
        match (reply.packet_status(), stream.state) {
            // Ended here before it stood there.
            (Some(Status::Ok), State::Failed) => self.say(id, Status::Error, out),
            (Some(Status::Ok), _) => {}
            _ => self.forget(id, None),
        }
    }

    /// Nobody waits for the answer to its call any more. The stream is ended as soon as it is known to stand.
    pub(super) fn give_up(&mut self, id: LegacyId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.state = State::Failed;
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    /// The link is gone.
    pub(super) fn lose(&mut self) {
        self.ids.clear();
        self.turns.clear();
        for (id, stream) in std::mem::take(&mut self.streams) {
            // Of one whose call has failed as well, that says it.
            if stream.state != State::Failed && stream.answered {
                self.events.push_back(StreamEvent::Failed(id, StreamError::LinkLost));
            }
        }
    }

    /// A packet of type STREAM or STREAM_HOLE has begun.
    pub(super) fn on_header(
        &mut self,
        header: &Header,
        payload_len: u32,
        out: &mut Outbox,
    ) -> Result<Arriving, LinkError> {
        // One that is over, or never was: libvirt is silent too.
        let Some(id) = self.ids.get(&key(header)).copied() else { return Ok(Arriving::Discard) };
        let Some(stream) = self.streams.get(&id) else { return Ok(Arriving::Discard) };
        let arriving = match (header.packet_type(), header.packet_status()) {
            (Some(PacketType::StreamHole), Some(Status::Continue)) => {
                if !stream.options.sparse {
                    return Err(LinkError::HoleUnasked);
                }
                if payload_len != Hole::MAX_LEN {
                    return Err(LinkError::HoleLength(payload_len));
                }
                Arriving::Hole(id, Vec::new())
            }
            (Some(PacketType::Stream), Some(Status::Continue)) if payload_len > 0 => Arriving::Data(id),
            (Some(PacketType::Stream), Some(Status::Continue)) => {
                self.on_empty(id);
                Arriving::Discard
            }
            (Some(PacketType::Stream), Some(Status::Ok)) => {
                self.on_ok(id, out);
                Arriving::Discard
            }
            (Some(PacketType::Stream), Some(Status::Error)) if payload_len > 0 => Arriving::Error(id, Vec::new()),
            (Some(PacketType::Stream), Some(Status::Error)) => {
                self.on_error(id, None, out);
                Arriving::Discard
            }
            _ => {
                self.fail_as_wrong(id, format!("stream aborted with unexpected status {}", header.status), out);
                Arriving::Discard
            }
        };
        if let Arriving::Data(id) | Arriving::Hole(id, _) = arriving {
            return Ok(if self.takes_data(id, out) { arriving } else { Arriving::Discard });
        }
        Ok(arriving)
    }

    /// Whether the stream takes bytes. One that only sends fails of it.
    fn takes_data(&mut self, id: LegacyId, out: &mut Outbox) -> bool {
        match self.streams.get(&id).map(|stream| (stream.options.direction, stream.state)) {
            Some((Direction::Receiving, State::Open)) => true,
            Some((Direction::Sending, State::Open)) => {
                self.fail_as_wrong(id, "stream had unexpected termination".into(), out);
                false
            }
            _ => false,
        }
    }

    /// The next bytes of the payload. Gives those to be delivered.
    pub(super) fn on_payload<'a>(
        &mut self,
        arriving: &mut Arriving,
        bytes: &'a [u8],
        remaining: u32,
        out: &mut Outbox,
    ) -> Option<(LegacyId, StreamPiece<'a>)> {
        match arriving {
            Arriving::Discard => None,
            Arriving::Data(id) => self.hold(*id, bytes.len() as u64, out).then_some((*id, StreamPiece::Bytes(bytes))),
            Arriving::Hole(id, body) => {
                body.extend_from_slice(bytes);
                let id = *id;
                (remaining == 0).then(|| self.on_hole(id, body, out)).flatten()
            }
            Arriving::Error(id, body) => {
                let room = (RemoteError::MAX_LEN as usize).saturating_sub(body.len());
                body.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                if remaining == 0 {
                    self.on_error(*id, Some(body), out);
                }
                None
            }
        }
    }

    /// Counts what is given out. False where the stream takes no more: its consumer has left too much waiting.
    fn hold(&mut self, id: LegacyId, cost: u64, out: &mut Outbox) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.state == State::Open) else { return false };
        let limit = stream.options.limit;
        if stream.held > limit {
            self.fail_here(id, StreamError::Overrun { limit }, out);
            return false;
        }
        stream.held += cost;
        true
    }

    fn on_hole(&mut self, id: LegacyId, body: &[u8], out: &mut Outbox) -> Option<(LegacyId, StreamPiece<'static>)> {
        let hole: Result<Hole, _> = decode_body(body);
        let length = hole.ok().filter(|hole| hole.flags == 0 && hole.length.cast_signed() > 0).map(|hole| hole.length);
        match length {
            Some(length) => self.hold(id, HOLE_COST, out).then_some((id, StreamPiece::Hole(length))),
            None => {
                self.fail_of_hole(id, out);
                None
            }
        }
    }

    /// To a hole that is none libvirt answers with a REPLY, though there was no call, and in these words.
    fn fail_of_hole(&mut self, id: LegacyId, out: &mut Outbox) {
        let text = "not the length or the flags of a hole".to_owned();
        match self.streams.get_mut(&id).filter(|stream| stream.state == State::Open) {
            Some(stream) if self.role == Role::Daemon => {
                stream.state = State::Failed;
                let error = RemoteError {
                    str1: None,
                    str2: None,
                    ..RemoteError::new(
                        codes::INTERNAL_ERROR,
                        domains::RPC,
                        "Library function returned error but did not set virError",
                    )
                };
                out.push_error(&Header { kind: PacketType::Reply.as_wire(), ..stream.call }, &error);
                self.events.push_back(StreamEvent::Failed(id, StreamError::Misbehaved(text)));
            }
            _ => self.fail_as_wrong(id, text, out),
        }
    }

    /// The daemon's mark behind the last byte of a download.
    fn on_empty(&mut self, id: LegacyId) {
        if self.role == Role::Client
            && let Some(stream) = self.streams.get_mut(&id)
            && (stream.options.direction, stream.state) == (Direction::Receiving, State::Open)
        {
            stream.state = State::Finishing;
            self.events.push_back(StreamEvent::Finished(id));
        }
    }

    fn on_ok(&mut self, id: LegacyId, out: &mut Outbox) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match (self.role, stream.options.direction, stream.state) {
            (Role::Daemon, Direction::Receiving, State::Open) => {
                stream.state = State::Finishing;
                self.events.push_back(StreamEvent::Finished(id));
            }
            (Role::Daemon, _, State::Finishing) => {}
            // The client wants no more, or has had all, or answers our error.
            (Role::Daemon, _, state) => {
                self.say(id, Status::Ok, out);
                self.forget(id, (state != State::Failed).then_some(StreamEvent::Over(id)));
            }
            (Role::Client, _, State::Ending) => self.forget(id, Some(StreamEvent::Over(id))),
            (Role::Client, _, State::Failed) => self.forget(id, None),
            // The daemon's word, and not the last: ours comes before that.
            (Role::Client, _, State::Open | State::Finishing) => {
                self.forget(id, Some(StreamEvent::Failed(id, StreamError::CutShort)))
            }
        }
    }

    fn on_error(&mut self, id: LegacyId, body: Option<&[u8]>, out: &mut Outbox) {
        let Some(stream) = self.streams.get(&id) else { return };
        let state = stream.state;
        let error = match (self.role, body) {
            (Role::Daemon, _) => StreamError::Aborted,
            (Role::Client, body) => StreamError::Remote(Box::new(remote(body.unwrap_or_default()))),
        };
        match self.role {
            Role::Daemon => self.say(id, Status::Ok, out),
            // The daemon keeps a failed stream until the client has its last word.
            Role::Client if matches!(state, State::Open | State::Finishing) => self.say(id, Status::Error, out),
            Role::Client => {}
        }
        self.forget(id, (state != State::Failed).then_some(StreamEvent::Failed(id, error)));
    }

    pub(super) fn get<'a>(&'a mut self, id: LegacyId, outbox: &'a mut Outbox) -> Option<LegacyStream<'a>> {
        let options = self.streams.get(&id)?.options;
        Some(LegacyStream { streams: self, outbox, id, options })
    }

    fn fail_here(&mut self, id: LegacyId, error: StreamError, out: &mut Outbox) {
        let told = RemoteError::new(codes::RPC, domains::STREAMS, error.to_string()).with_ints(-1, -1);
        if let Some(stream) = self.get(id, out) {
            stream.fail(&told);
        }
        self.events.push_back(StreamEvent::Failed(id, error));
    }

    fn fail_as_wrong(&mut self, id: LegacyId, text: String, out: &mut Outbox) {
        if self.streams.get(&id).is_some_and(|stream| stream.state != State::Failed) {
            self.fail_here(id, StreamError::Misbehaved(text), out);
        }
    }

    /// Whose turn it is to send. The same again, until it has sent or is blocked or over. Nobody's while what must go before, a hole or the
    /// reply, is not out.
    pub(super) fn poll_grant(&mut self, out: &Outbox) -> Option<LegacyId> {
        while let Some(id) = self.turns.front().copied() {
            match self.streams.get_mut(&id) {
                Some(stream) if stream.state == State::Open => {
                    return Some(id).filter(|_| out.has_passed(stream.behind));
                }
                Some(stream) => stream.in_turn = false,
                None => {}
            }
            self.turns.pop_front();
        }
        None
    }

    /// What needs no words.
    fn say(&mut self, id: LegacyId, status: Status, out: &mut Outbox) {
        if let Some(stream) = self.streams.get(&id) {
            let header = Header { kind: PacketType::Stream.as_wire(), status: status.as_wire(), ..stream.call };
            out.push(&header, &[]);
        }
    }

    fn forget(&mut self, id: LegacyId, event: Option<StreamEvent>) {
        if let Some(stream) = self.streams.remove(&id) {
            self.ids.remove(&key(&stream.call));
            if stream.in_turn {
                self.turns.retain(|turn| *turn != id);
            }
        }
        self.events.extend(event);
    }
}

/// A borrowed stream of a [`Server`](super::Server) or [`Client`](super::Client). The state machine moves with every call:
/// poll events and packets afterwards.
#[derive(Debug)]
pub struct LegacyStream<'a> {
    streams: &'a mut Streams,
    outbox: &'a mut Outbox,
    id: LegacyId,
    options: StreamOptions,
}

impl LegacyStream<'_> {
    /// How it was begun.
    pub fn options(&self) -> StreamOptions {
        self.options
    }

    /// The stream's source may have bytes: `poll_grant` will ask for them.
    pub fn ready(self) {
        let LegacyStream { streams, id, .. } = self;
        if let Some(stream) = streams.streams.get_mut(&id)
            && (stream.options.direction, stream.state) == (Direction::Sending, State::Open)
            && stream.answered
            && !stream.in_turn
        {
            stream.in_turn = true;
            streams.turns.push_back(id);
        }
    }

    /// The stream's source has no bytes now: no more grants until `ready`.
    pub fn blocked(self) {
        let LegacyStream { streams, id, .. } = self;
        if let Some(stream) = streams.streams.get_mut(&id)
            && std::mem::take(&mut stream.in_turn)
        {
            streams.turns.retain(|turn| *turn != id);
        }
    }

    /// The header for `len` bytes that are sent now: both must go onto the link before anything that is given later.
    /// `None` when it is not the stream's turn.
    pub fn send(self, len: u32) -> Option<[u8; HEADER_LEN]> {
        let LegacyStream { streams, id, .. } = self;
        let stream = streams.streams.get(&id).filter(|_| streams.turns.front() == Some(&id))?;
        let header = Header { kind: PacketType::Stream.as_wire(), status: Status::Continue.as_wire(), ..stream.call };
        streams.turns.rotate_left(1);
        Some(header.encode(len))
    }

    /// Sends `length` zeroes as a hole; false, and nothing was sent, on a stream that is not sparse or takes nothing, and for a
    /// length that a hole cannot have: 0, or more than 2⁶³ - 1.
    pub fn send_hole(self, length: u64) -> bool {
        let Some(stream) = self.streams.streams.get(&self.id) else { return false };
        let sends = (stream.options.direction, stream.state) == (Direction::Sending, State::Open);
        if !sends || !stream.options.sparse || !stream.answered || length.cast_signed() <= 0 {
            return false;
        }
        let header =
            Header { kind: PacketType::StreamHole.as_wire(), status: Status::Continue.as_wire(), ..stream.call };
        let mut body = Vec::new();
        // Into memory: it cannot fail.
        let _ = Hole { length, flags: 0 }.encode(&mut body);
        self.outbox.push(&header, &body);
        self.streams.send_behind(self.id, self.outbox.mark());
        if self.streams.turns.front() == Some(&self.id) {
            self.streams.turns.rotate_left(1);
        }
        true
    }

    /// So many bytes more have been delivered.
    pub fn consumed(self, bytes: u64) {
        if let Some(stream) = self.streams.streams.get_mut(&self.id) {
            debug_assert!(bytes <= stream.held, "delivered more than came");
            stream.held = stream.held.saturating_sub(bytes);
        }
    }

    /// Receiving: all was delivered, after `StreamEvent::Finished`. Sending: that was all; a client says so once its call has
    /// its answer.
    pub fn finish(self) {
        let LegacyStream { streams, outbox, id, .. } = self;
        let Some(stream) = streams.streams.get_mut(&id) else { return };
        match (streams.role, stream.options.direction, stream.state) {
            (Role::Daemon, Direction::Receiving, State::Finishing) => {
                streams.say(id, Status::Ok, outbox);
                streams.forget(id, Some(StreamEvent::Over(id)));
            }
            (Role::Client, Direction::Sending, State::Open) if !stream.answered => {}
            (Role::Client, Direction::Receiving, State::Finishing)
            | (Role::Client, Direction::Sending, State::Open) => {
                stream.state = State::Ending;
                streams.say(id, Status::Ok, outbox);
            }
            (Role::Daemon, Direction::Sending, State::Open) => {
                stream.state = State::Ending;
                streams.say(id, Status::Continue, outbox);
            }
            _ => {}
        }
    }

    /// Ends it before its time; no event of it follows. The daemon's error is told to the client; the client's abort has
    /// no words.
    pub fn fail(self, error: &RemoteError) {
        let LegacyStream { streams, outbox, id, .. } = self;
        let role = streams.role;
        let Some(stream) = streams.streams.get_mut(&id).filter(|stream| stream.state != State::Failed) else { return };
        let was = std::mem::replace(&mut stream.state, State::Failed);
        // The client has had its last word: none will come.
        let is_over = role == Role::Daemon && was == State::Finishing;
        if role == Role::Client && (was == State::Ending || !stream.answered) {
            return;
        }
        match role {
            Role::Daemon => outbox.push_error(&Header { kind: PacketType::Stream.as_wire(), ..stream.call }, error),
            Role::Client => streams.say(id, Status::Error, outbox),
        }
        if is_over {
            streams.forget(id, None);
        }
    }
}

/// An error as it came; one that cannot be read is still one.
pub(super) fn remote(body: &[u8]) -> RemoteError {
    let code = body.first_chunk().map_or(codes::RPC, |code| i32::from_be_bytes(*code));
    decode_body(body).unwrap_or_else(|_| RemoteError::new(code, domains::RPC, "its error cannot be read"))
}
