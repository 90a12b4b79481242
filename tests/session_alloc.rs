//! What a session allocates: nothing for a packet, once it is warm, and no more than a bound whatever its peer does.

mod support;

use std::time::{Duration, Instant};

use allocation_counter::{AllocationInfo, measure, opt_out};
use support::*;
use virbistream::proto::{Config, Event, Session, Side, StreamId};
use virbistream::wire::{Decoder, HEADER_LEN, PACKET_MAX, Piece};

/// Two sessions and the buffer between them; nothing in here allocates once it is made.
struct Bare {
    ends: [Session; 2],
    ids: Vec<StreamId>,
    link: Vec<u8>,
    now: Instant,
    packet: usize,
    data: u64,
    credits: u64,
}

impl Bare {
    /// With so many streams open, each sending in both directions.
    fn new(streams: u32, packet: usize) -> Self {
        let now = Instant::now();
        let config = Config { window: 65_536, ..Config::default() };
        let ends = [Session::connect(config.clone(), now), Session::accept(config, now)];
        let link = vec![0; 1 << 20];
        let mut bare = Self { ends, ids: Vec::new(), link, now, packet, data: 0, credits: 0 };
        bare.round();
        for n in 0..streams {
            let end = n as usize % 2;
            let id = bare.ends[end].open(now, open("vda")).unwrap();
            bare.ids.push(id);
        }
        bare.round();
        bare.round();
        for end in 0..2 {
            for id in &bare.ids {
                bare.ends[end].stream(*id).unwrap().ready();
            }
        }
        bare
    }

    /// Each end sends what it can, up to 16 packets and as far as the link reaches, and the other takes it.
    fn round(&mut self) {
        for end in 0..2 {
            let len = self.transmit(end);
            self.deliver(1 - end, len);
        }
        self.now += Duration::from_millis(1);
        self.ends.iter_mut().for_each(|end| end.handle_timeout(self.now));
    }

    fn transmit(&mut self, end: usize) -> usize {
        let session = &mut self.ends[end];
        let mut len = session.poll_control(self.now, &mut self.link);
        for _ in 0..16 {
            let Some(grant) = session.poll_grant() else { break };
            let bytes = grant.max.min(self.packet);
            if self.link.len() - len < HEADER_LEN + bytes {
                break;
            }
            let header = session.stream(grant.id).unwrap().send(bytes).unwrap();
            self.link[len..len + HEADER_LEN].copy_from_slice(&header);
            len += HEADER_LEN + bytes;
            self.data += 1;
        }
        len
    }

    fn deliver(&mut self, end: usize, len: usize) {
        let session = &mut self.ends[end];
        let mut input = &self.link[..len];
        let mut decoder = Decoder::new(PACKET_MAX);
        while let Some(piece) = decoder.decode(&mut input).unwrap() {
            match piece {
                Piece::Header { header, payload_len } => {
                    self.credits += u64::from(header.procedure == Packet::credit(0, 0, 0).header().procedure);
                    session.handle_header(self.now, &header, payload_len).unwrap();
                }
                Piece::Payload { bytes, remaining } => {
                    if let Some(data) = session.handle_payload(self.now, bytes, remaining).unwrap() {
                        session.stream(data.id).unwrap().consumed(data.bytes.len() as u64).unwrap();
                    }
                }
            }
            while let Some(event) = session.poll_event() {
                if let Event::Incoming { id, .. } = event {
                    session.stream(id).unwrap().accept().unwrap();
                }
            }
        }
    }
}

#[test]
fn a_packet_costs_no_allocation() {
    for (streams, packet) in [(1, 262_120), (2, 4096), (8, 1), (64, 20_000)] {
        let mut bare = Bare::new(streams, packet);
        (0..200).for_each(|_| bare.round());
        (bare.data, bare.credits) = (0, 0);
        // An hour of PINGs is among them, on the clock of the sessions.
        let used = measure(|| (0..2000).for_each(|_| bare.round()));
        assert!(bare.data > 1000, "{} packets of data", bare.data);
        assert!(bare.credits > 10 || packet == 1, "{} of credit", bare.credits);
        assert_eq!(used.count_total, 0, "{streams} streams, packets of {packet}: {used:?}");
    }
}

/// Payload is passed through in pieces, as the reads cut it; so is the body of a small packet, which is put together again.
#[test]
fn a_packet_in_pieces_is_held_only_as_far_as_it_is_control() {
    let mut probe = Probe::established(Side::Accepting, Config::default());
    let id = probe.opened();
    let data = Packet::Data(id, vec![1; 200_000]);
    let (header, body) = (data.header(), data.body());
    let session = &mut probe.session;
    let used = measure(|| {
        session.handle_header(probe.now, &header, body.len() as u32).unwrap();
        let mut remaining = body.len();
        for piece in body.chunks(1000) {
            remaining -= piece.len();
            let data = session.handle_payload(probe.now, piece, remaining as u32).unwrap().unwrap();
            assert_eq!(data.bytes.as_ptr(), piece.as_ptr(), "in place");
            session.stream(data.id).unwrap().consumed(piece.len() as u64).unwrap();
        }
    });
    // The queue of those who owe has its first member.
    assert!(used.count_total <= 1, "{used:?}");
    let credit = Packet::credit(id, 0, 1 << 40);
    let (header, body) = (credit.header(), credit.body());
    let used = measure(|| {
        session.handle_header(probe.now, &header, body.len() as u32).unwrap();
        for (n, byte) in body.iter().enumerate() {
            session.handle_payload(probe.now, std::slice::from_ref(byte), (body.len() - n - 1) as u32).unwrap();
        }
    });
    assert!(used.bytes_total < 200 && used.bytes_current == 0, "{used:?}");
}

/// What the session itself holds while a peer says this again and again, and its owner takes the events but the link
/// takes nothing.
fn flood(mut say: impl FnMut(&mut Probe, u32)) -> AllocationInfo {
    // As if it all came within its rate.
    let config = Config { max_idle_control: u32::MAX, max_opens: u32::MAX, ..small() };
    let mut probe = opt_out_of(|| Probe::established(Side::Accepting, config));
    measure(|| {
        for n in 0..20_000 {
            say(&mut probe, n);
            while probe.session.poll_event().is_some() {}
        }
    })
}

fn opt_out_of<T>(make: impl FnOnce() -> T) -> T {
    let mut made = None;
    opt_out(|| made = Some(make()));
    made.unwrap()
}

/// Packets are made outside of the count.
fn hear(probe: &mut Probe, packet: impl FnOnce() -> Packet) {
    let packet = opt_out_of(packet);
    let (header, body) = opt_out_of(|| (packet.header(), packet.body()));
    let _ = probe.session.handle_packet(probe.now, &header, &body);
    opt_out(|| drop((packet, body)));
}

#[test]
fn no_flood_makes_a_session_grow() {
    type Flood = fn(&mut Probe, u32);
    let floods: [(&str, u64, Flood); 5] = [
        ("PING", 0, |probe, n| hear(probe, || Packet::Ping(u64::from(n)))),
        ("OPEN and reset", 4096, |probe, n| {
            let id = probe.theirs(n);
            hear(probe, || Packet::Open(id, open("x")));
            hear(probe, || Packet::Reset(id, error(1, "")));
        }),
        ("refused OPEN and reset", 4096, |probe, n| {
            let id = probe.theirs(n);
            hear(probe, || Packet::Open(id, open("")));
            hear(probe, || Packet::Reset(id, error(1, "")));
        }),
        ("refused OPEN, until that is too much", 200_000, |probe, n| {
            let id = probe.theirs(n);
            hear(probe, || Packet::Open(id, open(&"\n".repeat(255))));
        }),
        ("CREDIT, STOP, PONG and finish of what is over", 4096, |probe, n| {
            let id = probe.theirs(0);
            if n == 0 {
                hear(probe, || Packet::Open(id, open("x")));
                hear(probe, || Packet::Reset(id, error(1, "")));
            }
            hear(probe, || Packet::credit(id, u64::from(n), u64::from(n)));
            hear(probe, || Packet::Stop(id));
            hear(probe, || Packet::Pong(u64::from(n)));
            hear(probe, || Packet::Finish(id, 0));
        }),
    ];
    for (what, bytes, say) in floods {
        let used = flood(say);
        assert!(used.bytes_max <= bytes, "{what}: {used:?}");
    }
}

/// A body's length is its sender's word: nothing is reserved for what has not come.
#[test]
fn the_announced_length_of_a_body_reserves_nothing() {
    let mut probe = Probe::established(Side::Accepting, Config::default());
    for packet in [Packet::Open(probe.theirs(0), open("x")), Packet::close(3, 0, "x")] {
        let (header, now) = (packet.header(), probe.now);
        let session = &mut probe.session;
        let used = measure(|| _ = session.handle_header(now, &header, 1000));
        assert_eq!(used.bytes_total, 0, "{used:?}");
        let used = measure(|| _ = session.handle_payload(now, &[0; 10], 990));
        assert!(used.bytes_max < 100, "{used:?}");
    }
}

#[test]
fn a_stream_costs_little_and_leaves_nothing() {
    let mut probe = Probe::established(Side::Accepting, Config::default());
    let open_and_reset = |probe: &mut Probe| {
        let ids: Vec<u32> = (0..100).map(|_| probe.opened()).collect();
        ids.iter().for_each(|id| probe.stream(*id).reset(error(1, "")));
        probe.speak();
        probe.said.clear();
        probe.news();
    };
    // Queues and maps grow to what they need, and keep it.
    open_and_reset(&mut probe);
    let used = measure(|| {
        for _ in 0..100 {
            let now = probe.now;
            let id = probe.session.open(now, opt_out_of(|| open("x"))).unwrap();
            let mut room = [0; 512];
            probe.session.poll_control(now, &mut room);
            hear(&mut probe, || Packet::open_reply(id.number(), 9));
            hear(&mut probe, || Packet::Reset(id.number(), error(1, "")));
            while probe.session.poll_event().is_some() {}
        }
    });
    assert!(used.bytes_current <= 0 && used.bytes_max < 1000, "{used:?}");
    assert!(used.count_total <= 100 * 6, "{used:?}");
}
