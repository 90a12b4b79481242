//! Two sessions and a link that is a buffer: what the state machine itself costs, without sockets.

use std::time::Instant;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use virbistream::proto::{Config, Event, Session, StreamId};
use virbistream::wire::{Decoder, HEADER_LEN, Open, PACKET_MAX, Piece};

fn main() {
    divan::main();
}

/// DATA packets of one round, over all streams.
const PACKETS: usize = 1000;

/// What one side owes is put here and handed to the other before more is; as large as a link's buffer.
const BUFFER: usize = 320 * 1024;

struct Pair {
    now: Instant,
    near: Session,
    far: Session,
    streams: Vec<StreamId>,
    link: Vec<u8>,
}

impl Pair {
    fn new(streams: usize) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            near: Session::connect(Config::default(), now),
            far: Session::accept(Config::default(), now),
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
    fn control(&mut self) {
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
    fn round(&mut self, payload: usize) -> usize {
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

fn receive(now: Instant, session: &mut Session, mut input: &[u8]) {
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

/// A round of 1,000 DATA packets with their CREDIT; one stream.
#[divan::bench(args = [65_530, 4096, 64])]
fn one_stream(bencher: Bencher<'_, '_>, payload: usize) {
    round(bencher, 1, payload);
}

/// The same over 64 streams.
#[divan::bench(args = [65_530, 4096, 64])]
fn streams_64(bencher: Bencher<'_, '_>, payload: usize) {
    round(bencher, 64, payload);
}

fn round(bencher: Bencher<'_, '_>, streams: usize, payload: usize) {
    let mut pair = Pair::new(streams);
    let bytes = pair.round(payload);
    let bencher = bencher.counter(ItemsCount::new(PACKETS)).counter(BytesCount::new(bytes));
    bencher.bench_local(|| pair.round(payload));
}

/// A stream's whole life: OPEN and its reply, one packet and finish each way, and all that is owed for them.
#[divan::bench]
fn life_of_a_stream(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(0);
    bencher.bench_local(|| {
        let now = pair.now;
        let id = pair.near.open(now, Open { target: "vda".into(), ..Open::default() }).expect("a stream");
        pair.control();
        for session in [&mut pair.near, &mut pair.far] {
            session.stream(id).expect("it stands").ready();
        }
        for near in [true, false] {
            let (from, to) = if near { (&mut pair.near, &mut pair.far) } else { (&mut pair.far, &mut pair.near) };
            let grant = from.poll_grant().expect("its turn");
            let header = from.stream(grant.id).expect("it stands").send(64).expect("granted");
            pair.link[..HEADER_LEN].copy_from_slice(&header);
            receive(now, to, &pair.link[..HEADER_LEN + 64]);
            from.stream(id).expect("it stands").finish().expect("it stands");
        }
        pair.control();
        assert_eq!((pair.near.stream_count(), pair.far.stream_count()), (0, 0));
    });
}
