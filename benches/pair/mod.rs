//! Two sessions and a link that is a buffer.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::time::Instant;

use virbistream::proto::{Config, Event, Session, StreamId};
use virbistream::wire::{Decoder, HEADER_LEN, Open, PACKET_MAX, Piece};

/// DATA packets of one round, over all streams.
pub(crate) const PACKETS: usize = 1000;

/// What one side owes is put here and handed to the other before more is; as large as a link's buffer.
const BUFFER: usize = 320 * 1024;

pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) near: Session,
    pub(crate) far: Session,
    pub(crate) streams: Vec<StreamId>,
    pub(crate) link: Vec<u8>,
}

/// Windows that a round of small packets fits into.
fn config() -> Config {
    Config { window: 1 << 20, ..Config::default() }
}

impl Pair {
    pub(crate) fn new(streams: usize) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            near: Session::connect(config(), now),
            far: Session::accept(config(), now),
            streams: Vec::new(),
            link: vec![0; BUFFER],
        };
        pair.control();
        for _ in 0..streams {
            let open = Open { target: "vda".into(), ..Open::default() };
            pair.streams.push(pair.near.open(now, open).expect("a stream"));
            pair.control();
        }
        pair
    }

    /// Carries control packets both ways until nothing is owed.
    pub(crate) fn control(&mut self) {
        loop {
            let out = self.near.poll_control(self.now, &mut self.link);
            receive(self.now, &mut self.far, &self.link[..out]);
            let back = self.far.poll_control(self.now, &mut self.link);
            receive(self.now, &mut self.near, &self.link[..back]);
            if out + back == 0 {
                return;
            }
        }
    }

    /// One round: packets of at most `payload` bytes, by turns of the streams, each consumed at once and its credit returned.
    /// Gives the bytes of payload in all.
    ///
    /// The payload is neither read nor written, here or by the sessions: bytes a second are there to be compared.
    pub(crate) fn round(&mut self, payload: usize) -> usize {
        for id in &self.streams {
            self.near.stream(*id).expect("it stands").ready();
        }
        let (mut sent, mut total) = (0, 0);
        while sent < PACKETS {
            let mut len = self.near.poll_control(self.now, &mut self.link);
            while sent < PACKETS && self.link.len() - len >= HEADER_LEN + payload {
                let Some(grant) = self.near.poll_grant() else { break };
                let stream = self.near.stream(grant.id).expect("whose turn it is");
                let bytes = payload.min(grant.max);
                self.link[len..len + HEADER_LEN].copy_from_slice(&stream.send(bytes).expect("granted"));
                len += HEADER_LEN + bytes;
                total += bytes;
                sent += 1;
            }
            receive(self.now, &mut self.far, &self.link[..len]);
            let back = self.far.poll_control(self.now, &mut self.link);
            receive(self.now, &mut self.near, &self.link[..back]);
        }
        total
    }
}

pub(crate) fn receive(now: Instant, session: &mut Session, mut input: &[u8]) {
    let mut decoder = Decoder::new(PACKET_MAX);
    while let Some(piece) = decoder.decode(&mut input).expect("packets") {
        match piece {
            Piece::Header { header, payload_len } => {
                assert!(session.owns(&header));
                session.handle_header(now, &header, payload_len).expect("a packet");
            }
            Piece::Payload { bytes, remaining } => {
                if let Some(data) = session.handle_payload(now, bytes, remaining).expect("a packet") {
                    let stream = session.stream(data.id).expect("it stands");
                    stream.consumed(data.bytes.len() as u64).expect("no more than came");
                }
            }
        }
    }
    while let Some(event) = session.poll_event() {
        if let Event::Incoming { id, .. } = event {
            session.stream(id).expect("just asked for").accept().expect("not answered yet");
        }
    }
}
