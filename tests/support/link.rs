//! Two sessions on a virtual clock, joined by a link with a rate and a delay: one end has endless bytes to send.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::on_its_own;
use virbistream::proto::{CONTROL_MAX, Config, Event, Session, StreamId};
use virbistream::wire::{Decoder, HEADER_LEN, Header, Open, PACKET_MAX, Piece};

/// Bytes that the sending host's kernel takes beyond what the link carries away at once.
const UNSENT: u64 = 256 * 1024;

/// What a DATA packet carries; nobody looks.
static ZEROES: [u8; 262_120] = [0; 262_120];

enum Packet {
    /// Control packets, back to back.
    Control(Vec<u8>),
    Data([u8; HEADER_LEN], usize),
}

/// One direction.
struct Way {
    bytes_per_second: u64,
    delay: Duration,
    free_at: Instant,
    under_way: VecDeque<(Instant, Packet)>,
}

impl Way {
    fn push(&mut self, now: Instant, packet: Packet) {
        let len = match &packet {
            Packet::Control(bytes) => bytes.len(),
            Packet::Data(_, len) => HEADER_LEN + len,
        };
        self.free_at = self.free_at.max(now) + self.time_of(len as u64);
        self.under_way.push_back((self.free_at + self.delay, packet));
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_nanos(bytes * 1_000_000_000 / self.bytes_per_second)
    }

    /// When it takes the next packet.
    fn takes_at(&self) -> Instant {
        self.free_at.checked_sub(self.time_of(UNSENT)).unwrap_or(self.free_at)
    }
}

struct Side {
    session: Session,
    out: Way,
}

impl Side {
    fn take(&mut self, now: Instant, packet: &Packet) -> Option<(StreamId, u64)> {
        match packet {
            Packet::Control(bytes) => {
                let (mut decoder, mut input) = (Decoder::new(PACKET_MAX), &bytes[..]);
                while let Some(piece) = decoder.decode(&mut input).expect("packets") {
                    match piece {
                        Piece::Header { header, payload_len } => {
                            self.session.handle_header(now, &header, payload_len).expect("by the rules");
                        }
                        Piece::Payload { bytes, remaining } => {
                            let data = self.session.handle_payload(now, bytes, remaining).expect("by the rules");
                            assert!(data.is_none(), "it is control");
                        }
                    }
                }
                None
            }
            Packet::Data(header, len) => {
                let (_, header) = Header::decode(header);
                self.session.handle_header(now, &header, *len as u32).expect("by the rules");
                let data = self.session.handle_payload(now, &ZEROES[..*len], 0).expect("by the rules");
                let id = data.expect("wanted").id;
                self.session.stream(id).expect("open").consumed(*len as u64).expect("it came");
                Some((id, *len as u64))
            }
        }
    }
}

/// Two sessions and the link between them.
pub(crate) struct Link {
    pub(crate) now: Instant,
    /// The connecting one, which sends, and the accepting one, which takes all at once.
    sides: [Side; 2],
    delivered: BTreeMap<StreamId, u64>,
    open: Vec<StreamId>,
}

impl Link {
    /// HELLO stands.
    pub(crate) fn new(config: &Config, round_trip: Duration, bytes_per_second: u64) -> Self {
        let now = Instant::now();
        let way = || Way { bytes_per_second, delay: round_trip / 2, free_at: now, under_way: VecDeque::new() };
        let sides = [Session::connect(on_its_own(config), now), Session::accept(on_its_own(config), now)]
            .map(|session| Side { session, out: way() });
        let mut link = Self { now, sides, delivered: BTreeMap::new(), open: Vec::new() };
        link.give();
        while !link.sender().is_established() {
            link.step();
        }
        link
    }

    pub(crate) fn sender(&mut self) -> &mut Session {
        &mut self.sides[0].session
    }

    pub(crate) fn receiver(&mut self) -> &mut Session {
        &mut self.sides[1].session
    }

    /// Bytes of the windows that the receiver has granted.
    pub(crate) fn windows(&self) -> u64 {
        self.sides[1].session.granted()
    }

    /// A stream that sends from when it is accepted.
    pub(crate) fn open(&mut self, priority: u32) -> StreamId {
        let (now, request) = (self.now, Open { target: "vda".into(), priority, ..Open::default() });
        let id = self.sender().open(now, request).expect("room");
        // What is owed goes at once where there is room for it.
        self.give();
        id
    }

    /// What has arrived so far, of one stream and of all.
    pub(crate) fn delivered(&self, id: StreamId) -> u64 {
        self.delivered.get(&id).copied().unwrap_or_default()
    }

    pub(crate) fn delivered_in_all(&self) -> u64 {
        self.delivered.values().sum()
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.next() <= until {
            self.step();
        }
        self.now = until;
    }

    /// Goes to when something happens next.
    fn step(&mut self) {
        self.now = self.next();
        for n in 0..2 {
            while let Some((at, _)) = self.sides[1 - n].out.under_way.front()
                && *at <= self.now
            {
                let (_, packet) = self.sides[1 - n].out.under_way.pop_front().expect("it is there");
                let came = self.sides[n].take(self.now, &packet);
                came.into_iter().for_each(|(id, bytes)| *self.delivered.entry(id).or_default() += bytes);
                self.on_events(n);
            }
            let side = &mut self.sides[n];
            if side.session.poll_timeout().is_some_and(|at| at <= self.now) {
                side.session.handle_timeout(self.now);
            }
        }
        self.give();
    }

    fn on_events(&mut self, n: usize) {
        let session = &mut self.sides[n].session;
        while let Some(event) = session.poll_event() {
            match event {
                Event::Incoming { id, .. } => session.stream(id).expect("asked").accept().expect("asked"),
                Event::Accepted(id) => self.open.push(id),
                Event::Established { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if n == 0 {
            self.open.iter().for_each(|id| session.stream(*id).expect("open").ready());
        }
    }

    fn give(&mut self) {
        for Side { session, out } in &mut self.sides {
            while out.takes_at() <= self.now {
                let mut control = vec![0; CONTROL_MAX];
                let len = session.poll_control(self.now, &mut control);
                control.truncate(len);
                if len > 0 {
                    out.push(self.now, Packet::Control(control));
                    continue;
                }
                let Some(grant) = session.poll_grant() else { break };
                let header = session.stream(grant.id).expect("granted").send(grant.max).expect("granted");
                out.push(self.now, Packet::Data(header, grant.max));
            }
        }
    }

    fn next(&self) -> Instant {
        let arrivals = self.sides.iter().filter_map(|side| side.out.under_way.front().map(|(at, _)| *at));
        let timers = self.sides.iter().filter_map(|side| side.session.poll_timeout());
        let room = self.sides.iter().map(|side| side.out.takes_at()).filter(|at| *at > self.now);
        arrivals.chain(timers).chain(room).min().expect("something happens").max(self.now)
    }
}
