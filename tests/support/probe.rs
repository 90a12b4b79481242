//! One session, and a peer that says what the test tells it to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use virbistream::proto::{CONTROL_MAX, Config, Event, Session, SessionError, Side, StreamId, StreamMut, StreamStats};
use virbistream::wire::{Decoder, HEADER_LEN, Hello, HelloReply, Limits, Open, PACKET_MAX, Piece};

use super::{Packet, open, split};

/// What the scripted peer lets the session send on each stream.
const CREDIT: u64 = 1 << 20;

/// The id of the stream that `side` opens after `n` others.
pub(crate) fn number(side: Side, n: u32) -> u32 {
    2 * n + if side == Side::Connecting { 1 } else { 2 }
}

pub(crate) fn hello() -> Hello {
    let limits = Limits { max_data: 8192, max_streams: 1024 };
    Hello { min_version: 1, max_version: 1, offered: 0, needed: 0, limits, extensions: Vec::new() }
}

pub(crate) fn hello_reply() -> HelloReply {
    HelloReply { version: 1, features: 0, limits: hello().limits, extensions: Vec::new() }
}

pub(crate) struct Probe {
    pub(crate) session: Session,
    pub(crate) side: Side,
    pub(crate) now: Instant,
    /// All that happened.
    pub(crate) events: Vec<Event>,
    /// All that the session said.
    pub(crate) said: Vec<Packet>,
    /// Data that was given out, by stream.
    pub(crate) given: BTreeMap<u32, Vec<u8>>,
    /// Whether data counts as consumed as soon as it was given out.
    pub(crate) consumes: bool,
    /// The peer's bytes come in pieces of so many.
    pub(crate) piece: usize,
    /// The packet that is arriving is not BiStream's.
    foreign: bool,
    decoder: Decoder,
    ids: BTreeMap<u32, StreamId>,
}

impl Probe {
    pub(crate) fn new(side: Side, config: Config) -> Self {
        let now = Instant::now();
        let session = match side {
            Side::Connecting => Session::connect(config, now),
            Side::Accepting => Session::accept(config, now),
        };
        Self {
            session,
            side,
            now,
            events: Vec::new(),
            said: Vec::new(),
            given: BTreeMap::new(),
            consumes: true,
            piece: usize::MAX,
            foreign: false,
            decoder: Decoder::new(PACKET_MAX),
            ids: BTreeMap::new(),
        }
    }

    /// HELLO stands.
    pub(crate) fn established(side: Side, config: Config) -> Self {
        let mut probe = Self::new(side, config);
        probe.greet();
        probe
    }

    pub(crate) fn greet(&mut self) {
        self.speak();
        self.hear(&match self.side {
            Side::Connecting => Packet::HelloReply(1, hello_reply()),
            Side::Accepting => Packet::Hello(7, hello()),
        });
        self.speak();
        assert!(self.session.is_established());
    }

    pub(crate) fn ours(&self, n: u32) -> u32 {
        number(self.side, n)
    }

    pub(crate) fn theirs(&self, n: u32) -> u32 {
        number(if self.side == Side::Connecting { Side::Accepting } else { Side::Connecting }, n)
    }

    /// The peer's packet, which the session must bear.
    #[track_caller]
    pub(crate) fn hear(&mut self, packet: &Packet) {
        self.try_hear(packet).unwrap_or_else(|error| panic!("{packet:?}: {error}"));
    }

    pub(crate) fn try_hear(&mut self, packet: &Packet) -> Result<(), SessionError> {
        self.hear_bytes(&packet.encode())
    }

    pub(crate) fn hear_bytes(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        bytes.chunks(self.piece).try_for_each(|piece| self.hear_piece(piece))
    }

    fn hear_piece(&mut self, mut input: &[u8]) -> Result<(), SessionError> {
        loop {
            let result = match self.decoder.decode(&mut input) {
                Ok(None) => return Ok(()),
                Ok(Some(Piece::Header { header, payload_len })) => {
                    self.foreign = !self.session.owns(&header);
                    if self.foreign {
                        continue;
                    }
                    self.session.handle_header(self.now, &header, payload_len).map(|()| None)
                }
                Ok(Some(Piece::Payload { .. })) if self.foreign => continue,
                Ok(Some(Piece::Payload { bytes, remaining })) => {
                    self.session.handle_payload(self.now, bytes, remaining)
                }
                Err(error) => Err(self.session.handle_framing_error(error)),
            };
            match result {
                Ok(None) => {}
                Ok(Some(data)) => {
                    let (id, len) = (data.id, data.bytes.len());
                    assert!(len > 0);
                    self.given.entry(id.number()).or_default().extend_from_slice(data.bytes);
                    if self.consumes {
                        self.session.stream(id).unwrap().consumed(len as u64).unwrap();
                    }
                }
                Err(error) => {
                    self.drain_events();
                    return Err(error);
                }
            }
            self.drain_events();
        }
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            if let Event::Incoming { id, .. } = &event {
                self.ids.insert(id.number(), *id);
            }
            self.events.push(event);
        }
    }

    /// What happened since the last call.
    pub(crate) fn news(&mut self) -> Vec<Event> {
        self.drain_events();
        std::mem::take(&mut self.events)
    }

    /// Everything but data that the session has to say now.
    pub(crate) fn speak(&mut self) -> Vec<Packet> {
        let mut bytes = Vec::new();
        let mut room = vec![0; CONTROL_MAX];
        loop {
            match self.session.poll_control(self.now, &mut room) {
                0 => break,
                len => bytes.extend_from_slice(&room[..len]),
            }
        }
        self.drain_events();
        let said = split(&mut bytes);
        assert!(bytes.is_empty(), "whole packets only");
        self.said.extend_from_slice(&said);
        said
    }

    /// Lets the session send these bytes, as far as there is credit; gives how many went.
    pub(crate) fn send(&mut self, id: u32, bytes: &[u8]) -> usize {
        self.stream(id).ready();
        let mut sent = 0;
        self.speak();
        while let Some(grant) = self.session.poll_grant() {
            let stream = self.session.stream(grant.id).unwrap();
            if grant.id.number() != id || sent == bytes.len() {
                stream.blocked();
                continue;
            }
            let part = &bytes[sent..][..grant.max.min(bytes.len() - sent)];
            let header = stream.send(part.len()).unwrap();
            let packet = Packet::Data(id, part.to_vec());
            assert_eq!(packet.encode()[..HEADER_LEN], header);
            self.said.push(packet);
            sent += part.len();
        }
        sent
    }

    #[track_caller]
    pub(crate) fn stream(&mut self, id: u32) -> StreamMut<'_> {
        let id = self.ids[&id];
        self.session.stream(id).unwrap_or_else(|| panic!("stream {id} is over"))
    }

    /// A stream that was opened by hand.
    pub(crate) fn know(&mut self, id: StreamId) {
        self.ids.insert(id.number(), id);
    }

    pub(crate) fn stream_stats(&mut self, id: u32) -> Option<StreamStats> {
        Some(self.session.stream(*self.ids.get(&id)?)?.stats())
    }

    pub(crate) fn has_stream(&mut self, id: u32) -> bool {
        self.ids.get(&id).is_some_and(|id| self.session.stream(*id).is_some())
    }

    /// The session asks for a stream, and says so.
    pub(crate) fn ask(&mut self, request: Open) -> u32 {
        let id = self.session.open(self.now, request).unwrap();
        self.know(id);
        self.speak();
        id.number()
    }

    /// A stream that the session opened and the peer accepted.
    pub(crate) fn opened(&mut self) -> u32 {
        let id = self.ask(open("peers"));
        self.hear(&Packet::open_reply(id, CREDIT));
        id
    }

    /// A stream that the peer asks for.
    pub(crate) fn asked(&mut self, id: u32) -> u32 {
        self.hear(&Packet::Open(id, Open { window: CREDIT, ..open("ours") }));
        id
    }

    /// A stream that the peer opened and the session accepted.
    pub(crate) fn accepted(&mut self, id: u32) -> u32 {
        self.asked(id);
        self.stream(id).accept().unwrap();
        self.speak();
        id
    }

    /// Another, whose reply is not sent.
    pub(crate) fn accepted_in_silence(&mut self) -> u32 {
        let id = self.asked(self.theirs(2));
        self.stream(id).accept().unwrap();
        id
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.session.handle_timeout(self.now);
        self.drain_events();
    }

    /// Moves bytes in both directions of a stream: it lives.
    #[track_caller]
    pub(crate) fn moves(&mut self, id: u32) {
        let before = self.given.get(&id).map_or(0, Vec::len);
        self.hear(&Packet::Data(id, b"to and".to_vec()));
        assert_eq!(self.given[&id][before..], *b"to and", "stream {id} receives");
        assert_eq!(self.send(id, b"fro"), 3, "stream {id} sends");
        assert_eq!(self.said.last(), Some(&Packet::Data(id, b"fro".to_vec())));
    }
}
