//! Whatever comes over libvirt's RPC, from a client to a daemon's end or from a daemon to a client's, that end does not panic,
//! says whole packets only, holds no more than it may, and gives every call one answer and every stream one end.
//!
//! The input is which end we are and a list of steps, [`Op`]: some are the peer's, honest or not, some the owner's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use virbistream::rpc::{
    CallId, Client, ClientEvent, Direction, HOLE_COST, IncomingId, KEEPALIVE, LegacyId, LegacyStream, LinkError,
    ProcedureId, REMOTE, STREAM_DATA_MAX, Server, ServerEvent, StreamEvent, StreamOptions, StreamPiece,
};
use virbistream::wire::{Decoder, HEADER_LEN, Header, PACKET_MAX, Piece, RemoteError};

/// What a daemon's end may hold: calls without an answer, streams, and bytes to be sent, with one packet on top.
const MAX_CALLS: usize = 256;
const MAX_STREAMS: usize = 256;
const MAX_WAITING: usize = (256 << 10) + 4096;

#[derive(Arbitrary, Debug)]
struct Input {
    daemon: bool,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// The peer sends bytes as they are.
    Bytes(Vec<u8>),
    /// It sends a packet of some sense; its payload comes in two parts.
    Packet {
        program: u8,
        procedure: u8,
        kind: u8,
        serial: u8,
        status: u8,
        body: Vec<u8>,
        split: u8,
    },
    /// It sends so many bytes on a stream, or an honest hole.
    Data {
        procedure: u8,
        serial: u8,
        len: u16,
    },
    Hole {
        procedure: u8,
        serial: u8,
        length: u64,
    },
    /// A daemon answers one of the calls; a client makes one.
    Answer {
        pick: u8,
        len: u16,
        well: bool,
    },
    Call {
        procedure: u8,
        len: u16,
        seconds: u8,
    },
    /// With a stream.
    Begin {
        pick: u8,
        procedure: u8,
        sends: bool,
        sparse: bool,
        limit: u16,
    },
    Message(u16),
    Ready(u8),
    Blocked(u8),
    Send(u16),
    SendHole(u8, u64),
    Consume(u8, u16),
    Finish(u8),
    Fail(u8),
    Transmit {
        room: u16,
        budget: u16,
    },
    Pass(u16),
}

enum Rpc {
    Daemon(Server),
    Client(Client),
}

impl Rpc {
    fn handle_header(&mut self, header: &Header, len: u32) -> Result<(), LinkError> {
        match self {
            Self::Daemon(server) => server.handle_header(header, len),
            Self::Client(client) => client.handle_header(header, len),
        }
    }

    fn handle_payload<'a>(
        &mut self,
        bytes: &'a [u8],
        remaining: u32,
    ) -> Result<Option<(LegacyId, StreamPiece<'a>)>, LinkError> {
        match self {
            Self::Daemon(server) => server.handle_payload(bytes, remaining),
            Self::Client(client) => client.handle_payload(bytes, remaining),
        }
    }

    fn stream(&mut self, id: LegacyId) -> Option<LegacyStream<'_>> {
        match self {
            Self::Daemon(server) => server.stream(id),
            Self::Client(client) => client.stream(id),
        }
    }

    fn poll_grant(&mut self) -> Option<LegacyId> {
        match self {
            Self::Daemon(server) => server.poll_grant(),
            Self::Client(client) => client.poll_grant(),
        }
    }

    fn poll_packets(&mut self, out: &mut [u8], budget: usize) -> usize {
        match self {
            Self::Daemon(server) => server.poll_packets(out, budget),
            Self::Client(client) => client.poll_packets(out, budget),
        }
    }

    fn is_between_packets(&self) -> bool {
        match self {
            Self::Daemon(server) => server.is_between_packets(),
            Self::Client(client) => client.is_between_packets(),
        }
    }

    fn waiting(&self) -> usize {
        match self {
            Self::Daemon(server) => server.waiting(),
            Self::Client(client) => client.waiting(),
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Daemon(server) => server.is_idle(),
            Self::Client(client) => client.is_idle(),
        }
    }

    fn handle_link_lost(&mut self) {
        match self {
            Self::Daemon(server) => server.handle_link_lost(),
            Self::Client(client) => client.handle_link_lost(),
        }
    }
}

/// What is known of a stream from outside.
#[derive(Debug)]
struct Seen {
    options: StreamOptions,
    /// Given out and not consumed.
    held: u64,
    ended: bool,
    /// Its owner failed it, or its call has no good answer: no event tells of its end.
    dismissed: bool,
}

struct World {
    rpc: Rpc,
    now: Instant,
    decoder: Decoder,
    /// Judges what is said.
    said: Decoder,
    streams: BTreeMap<LegacyId, Seen>,
    /// Calls of the peer's that wait, and ours that do, with their streams.
    incoming: Vec<IncomingId>,
    calls: BTreeMap<CallId, Option<LegacyId>>,
    /// Bytes that the owner said, which no bound of the library's is on.
    own: usize,
    lost: bool,
}

impl World {
    fn new(daemon: bool) -> Self {
        Self {
            rpc: if daemon { Rpc::Daemon(Server::new()) } else { Rpc::Client(Client::new()) },
            now: Instant::now(),
            decoder: Decoder::new(PACKET_MAX),
            said: Decoder::new(PACKET_MAX),
            streams: BTreeMap::new(),
            incoming: Vec::new(),
            calls: BTreeMap::new(),
            own: 0,
            lost: false,
        }
    }

    fn step(&mut self, op: Op) {
        if self.lost {
            return;
        }
        match op {
            Op::Bytes(bytes) => self.bytes(&bytes),
            Op::Packet { program, procedure, kind, serial, status, body, split } => {
                let program = [REMOTE, REMOTE, KEEPALIVE, 7][usize::from(program % 4)];
                let (kind, status) = ((kind % 8).into(), (status % 4).into());
                let header = Header { program, kind, status, ..header(procedure, serial) };
                self.packet(&header, &body, split);
            }
            Op::Data { procedure, serial, len } => {
                let header = Header { kind: 3, status: 2, ..header(procedure, serial) };
                self.packet(&header, &vec![serial; len.into()], 100);
            }
            Op::Hole { procedure, serial, length } => {
                let header = Header { kind: 5, status: 2, ..header(procedure, serial) };
                let body = [&length.to_be_bytes()[..], &[0; 4]].concat();
                self.packet(&header, &body, 5);
            }
            Op::Answer { pick, len, well } => self.answer(pick, &vec![0; len.into()], well),
            Op::Call { procedure, len, seconds } => self.call(procedure, &vec![0; len.into()], seconds),
            Op::Begin { pick, procedure, sends, sparse, limit } => {
                let direction = if sends { Direction::Sending } else { Direction::Receiving };
                self.begin(pick, procedure, StreamOptions { direction, sparse, limit: limit.into() });
            }
            Op::Message(len) => {
                if let Rpc::Daemon(server) = &mut self.rpc
                    && server.message(ProcedureId::remote(3), &vec![0; len.into()])
                {
                    self.own += HEADER_LEN + usize::from(len);
                }
            }
            Op::Ready(pick) => self.with(pick, |stream, _| stream.ready()),
            Op::Blocked(pick) => self.with(pick, |stream, _| stream.blocked()),
            Op::Send(len) => self.send(len.into()),
            Op::SendHole(pick, length) => self.with(pick, |stream, _| _ = stream.send_hole(length)),
            Op::Consume(pick, bytes) => self.with(pick, |stream, seen| {
                let bytes = seen.held.min(bytes.into());
                seen.held -= bytes;
                stream.consumed(bytes);
            }),
            Op::Finish(pick) => self.with(pick, |stream, _| stream.finish()),
            Op::Fail(pick) => self.with(pick, |stream, seen| {
                stream.fail(&error());
                seen.dismissed |= !seen.ended;
            }),
            Op::Transmit { room, budget } => self.transmit(room.into(), budget.into()),
            Op::Pass(ms) => {
                self.now += Duration::from_millis(ms.into());
                if let Rpc::Client(client) = &mut self.rpc {
                    client.handle_timeout(self.now);
                    assert!(
                        client.poll_timeout().is_none_or(|deadline| deadline > self.now),
                        "what is due was not done"
                    );
                }
            }
        }
        self.events();
        self.assert_bounds();
    }

    fn assert_bounds(&self) {
        let Rpc::Daemon(server) = &self.rpc else { return };
        assert!(server.unanswered() <= MAX_CALLS && server.unanswered() == self.incoming.len());
        assert!(server.stream_count() <= MAX_STREAMS);
        assert!(server.waiting() <= MAX_WAITING + self.own, "{} bytes wait", server.waiting());
    }

    fn with(&mut self, pick: u8, act: impl FnOnce(LegacyStream<'_>, &mut Seen)) {
        let count = self.streams.len().max(1);
        let Some((id, seen)) = self.streams.iter_mut().nth(usize::from(pick) % count) else { return };
        if let Some(stream) = self.rpc.stream(*id) {
            self.own += HEADER_LEN + 1024;
            act(stream, seen);
        }
    }

    fn answer(&mut self, pick: u8, body: &[u8], well: bool) {
        let Rpc::Daemon(server) = &mut self.rpc else { return };
        if self.incoming.is_empty() {
            return;
        }
        let call = self.incoming.swap_remove(usize::from(pick) % self.incoming.len());
        self.own += HEADER_LEN + body.len() + 1024;
        let error = error();
        server.answer(call, if well { Ok(body) } else { Err(&error) });
        // A second time it is passed over.
        server.answer(call, Ok(body));
    }

    fn call(&mut self, procedure: u8, arguments: &[u8], seconds: u8) {
        let Rpc::Client(client) = &mut self.rpc else { return };
        let timeout = Duration::from_secs(seconds.into());
        let call = client.call(self.now, ProcedureId::remote((procedure % 4).into()), arguments, timeout);
        assert!(self.calls.insert(call.expect("short enough"), None).is_none(), "a name used twice at once");
    }

    fn begin(&mut self, pick: u8, procedure: u8, options: StreamOptions) {
        let id = match &mut self.rpc {
            Rpc::Daemon(_) if self.incoming.is_empty() => None,
            Rpc::Daemon(server) => {
                let call = self.incoming.swap_remove(usize::from(pick) % self.incoming.len());
                self.own += HEADER_LEN + 1024;
                server.answer_with_stream(call, &[], options)
            }
            Rpc::Client(client) => {
                let (procedure, timeout) =
                    (ProcedureId::remote((procedure % 4).into()), Duration::from_secs(pick.into()));
                let (call, stream) =
                    client.call_with_stream(self.now, procedure, &[], timeout, options).expect("short enough");
                assert!(self.calls.insert(call, Some(stream)).is_none(), "a name used twice at once");
                Some(stream)
            }
        };
        if let Some(id) = id {
            let seen = Seen { options, held: 0, ended: false, dismissed: false };
            assert!(self.streams.insert(id, seen).is_none(), "a stream's name used twice");
        }
    }

    fn send(&mut self, len: u32) {
        let Some(id) = self.rpc.poll_grant().filter(|_| self.rpc.is_between_packets()) else { return };
        assert_eq!(self.rpc.poll_grant(), Some(id), "the same until it is answered");
        let seen = &self.streams[&id];
        assert!(!seen.ended && !seen.dismissed && seen.options.direction == Direction::Sending);
        let len = len.min(STREAM_DATA_MAX as u32);
        let header = self.rpc.stream(id).expect("whose turn it is").send(len).expect("its turn");
        self.said(&[&header[..], &vec![0; len as usize]].concat());
    }

    fn transmit(&mut self, room: usize, budget: usize) {
        let mut out = vec![0; room];
        let len = self.rpc.poll_packets(&mut out, budget);
        self.said(&out[..len]);
        assert_eq!(self.rpc.is_between_packets(), self.said.at_boundary());
    }

    /// Packets, by their length words at the least.
    fn said(&mut self, mut bytes: &[u8]) {
        self.own = self.own.saturating_sub(bytes.len()).max(self.rpc.waiting());
        while let Some(piece) = self.said.decode(&mut bytes).expect("packets") {
            if let Piece::Header { header, .. } = piece {
                assert!(header.packet_type().is_some() && header.packet_status().is_some(), "{header:?}");
            }
        }
    }

    fn bytes(&mut self, mut input: &[u8]) {
        while !self.lost && !self.is_full() {
            match self.decoder.decode(&mut input) {
                Ok(Some(Piece::Header { header, payload_len })) => self.header(&header, payload_len),
                Ok(Some(Piece::Payload { bytes, remaining })) => self.payload(bytes, remaining),
                Ok(None) => return,
                Err(_) => return self.lose(),
            }
        }
    }

    fn packet(&mut self, header: &Header, body: &[u8], split: u8) {
        // A packet that is begun is ended by bytes alone.
        if self.lost || self.is_full() || !self.decoder.at_boundary() {
            return;
        }
        self.header(header, body.len() as u32);
        let (first, second) = body.split_at(body.len().min(split.into()));
        for (part, remaining) in [(first, second.len() as u32), (second, 0)] {
            if !part.is_empty() && !self.lost {
                self.payload(part, remaining);
            }
        }
    }

    /// The link is read no further then.
    fn is_full(&self) -> bool {
        matches!(&self.rpc, Rpc::Daemon(server) if server.is_full())
    }

    fn header(&mut self, header: &Header, len: u32) {
        if self.rpc.handle_header(header, len).is_err() {
            self.lose();
        }
        self.events();
    }

    fn payload(&mut self, bytes: &[u8], remaining: u32) {
        let came = self.rpc.handle_payload(bytes, remaining).map(|came| {
            came.map(|(id, piece)| match piece {
                StreamPiece::Bytes(bytes) => (id, bytes.len() as u64, bytes.len() as u64),
                StreamPiece::Hole(length) => (id, HOLE_COST, length),
            })
        });
        match came {
            Ok(None) => {}
            Ok(Some((id, cost, bytes))) => {
                let seen = self.streams.get_mut(&id).expect("a stream that was begun");
                assert!(bytes > 0 && !seen.ended && !seen.dismissed && seen.options.direction == Direction::Receiving);
                assert!(seen.held <= seen.options.limit, "{} held, the limit is {}", seen.held, seen.options.limit);
                seen.held += cost;
            }
            Err(_) => self.lose(),
        }
        self.events();
    }

    fn lose(&mut self) {
        self.rpc.handle_link_lost();
        self.incoming.clear();
        self.events();
        assert!(self.rpc.is_idle() && self.calls.is_empty() && self.rpc.poll_grant().is_none());
        self.lost = true;
        self.said = Decoder::new(PACKET_MAX);
    }

    fn events(&mut self) {
        loop {
            let stream = match &mut self.rpc {
                Rpc::Daemon(server) => match server.poll_event() {
                    Some(ServerEvent::Call(call)) => {
                        self.incoming.push(call.id);
                        continue;
                    }
                    Some(ServerEvent::Stream(event)) => event,
                    None => return,
                },
                Rpc::Client(client) => match client.poll_event() {
                    Some(ClientEvent::Answered { call, answer }) => {
                        let stream = self.calls.remove(&call).expect("a call that waits");
                        if let (Some(stream), Err(_)) = (stream, answer) {
                            self.streams.get_mut(&stream).expect("begun").dismissed = true;
                        }
                        continue;
                    }
                    Some(ClientEvent::Message { .. }) => continue,
                    Some(ClientEvent::Stream(event)) => event,
                    None => return,
                },
            };
            self.stream_event(stream);
        }
    }

    fn stream_event(&mut self, event: StreamEvent) {
        let (id, ends) = match &event {
            StreamEvent::Finished(id) => (id, false),
            StreamEvent::Over(id) | StreamEvent::Failed(id, _) => (id, true),
        };
        let seen = self.streams.get_mut(id).expect("a stream that was begun");
        assert!(!seen.ended && !seen.dismissed, "{event:?} after its end");
        seen.ended = ends;
    }

    fn end(mut self) {
        if !self.lost {
            self.lose();
        }
        for (id, seen) in &self.streams {
            assert!(seen.ended || seen.dismissed, "{id:?} has no end: {seen:?}");
            assert!(self.rpc.stream(*id).is_none(), "{id:?} is left");
        }
        assert_eq!(self.rpc.waiting(), 0);
    }
}

fn header(procedure: u8, serial: u8) -> Header {
    let (procedure, serial) = ((procedure % 4).into(), (serial % 8).into());
    Header { program: REMOTE, version: 1, procedure, kind: 0, serial, status: 0 }
}

fn error() -> RemoteError {
    RemoteError::new(38, 7, "a reason")
}

pub(crate) fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut world = World::new(input.daemon);
    for op in input.ops {
        world.step(op);
    }
    world.end();
}
