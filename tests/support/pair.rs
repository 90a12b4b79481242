//! Two sessions on a virtual clock, joined by two queues of bytes, with an owner at each end.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use virbistream::proto::{
    CONTROL_MAX, Config, Data, Event, OpenError, Session, SessionError, StreamError, StreamId, StreamMut, StreamStats,
};
use virbistream::wire::{Decoder, Open, PACKET_MAX, Piece};

use super::on_its_own;
use super::{Ledger, Packet, byte, error};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub(crate) enum End {
    Connecting,
    Accepting,
}

impl End {
    pub(crate) const BOTH: [Self; 2] = [Self::Connecting, Self::Accepting];

    pub(crate) fn other(self) -> Self {
        if self == Self::Connecting { Self::Accepting } else { Self::Connecting }
    }

    pub(crate) fn opened(self, id: u32) -> bool {
        (id % 2 == 1) == (self == Self::Connecting)
    }
}

/// How an end takes what comes on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub(crate) enum Sink {
    /// At once.
    Eager,
    /// Half of each piece at once, the rest when [`Pair::consume`] says so.
    Half,
    /// When [`Pair::consume`] says so, or never.
    Lazy,
}

/// How a stream ended, in its owner's eyes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Over(StreamStats),
    Failed(StreamError, StreamStats),
    /// Its owner refused or reset it: no event tells.
    Dismissed,
}

/// One end of a stream: a source, a sink and what became of them.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: StreamId,
    /// Accepted, by whichever side it was to be.
    pub(crate) open: bool,
    /// Bytes that the source has had so far, and those sent.
    pub(crate) written: u64,
    pub(crate) sent: u64,
    /// The most bytes in a packet of this source.
    pub(crate) packet: usize,
    /// The source has ended.
    pub(crate) ended: bool,
    pub(crate) sink: Sink,
    /// Bytes given out, each verified, and those consumed.
    pub(crate) given: u64,
    pub(crate) consumed: u64,
    /// The peer's finish was told.
    pub(crate) finished: bool,
    /// We said STOP; the peer did.
    pub(crate) stopped: bool,
    pub(crate) was_stopped: bool,
    pub(crate) ending: Option<Ending>,
}

pub(crate) struct Endpoint {
    pub(crate) session: Session,
    pub(crate) config: Config,
    pub(crate) flows: BTreeMap<u32, Flow>,
    pub(crate) events: Vec<Event>,
    /// Streams of the peer's are accepted as soon as they are asked for.
    pub(crate) accepts: bool,
    /// How new streams take what comes.
    pub(crate) sink: Sink,
    pub(crate) ledger: Ledger,
    pub(crate) closed: Option<Result<(), SessionError>>,
    decoder: Decoder,
    /// Bytes on their way to the other end.
    link: VecDeque<u8>,
    /// Bytes of control packets that may come before the next read: what is owed is bounded.
    owed_max: usize,
}

pub(crate) struct Pair {
    pub(crate) now: Instant,
    ends: [Endpoint; 2],
}

impl Pair {
    /// Nothing has been said.
    pub(crate) fn new(connecting: Config, accepting: Config) -> Self {
        let now = Instant::now();
        let end = |end, config: Config| Endpoint {
            session: match end {
                End::Connecting => Session::connect(on_its_own(&config), now),
                End::Accepting => Session::accept(on_its_own(&config), now),
            },
            ledger: Ledger::new(end, config.window, config.window_max),
            config,
            flows: BTreeMap::new(),
            events: Vec::new(),
            accepts: true,
            sink: Sink::Eager,
            closed: None,
            decoder: Decoder::new(PACKET_MAX),
            link: VecDeque::new(),
            owed_max: 4096,
        };
        Self { now, ends: [end(End::Connecting, connecting), end(End::Accepting, accepting)] }
    }

    /// HELLO stands.
    pub(crate) fn established(connecting: Config, accepting: Config) -> Self {
        let mut pair = Self::new(connecting, accepting);
        pair.settle();
        assert!(End::BOTH.iter().all(|end| pair.at(*end).session.is_established()));
        pair
    }

    pub(crate) fn at(&self, end: End) -> &Endpoint {
        &self.ends[end as usize]
    }

    pub(crate) fn at_mut(&mut self, end: End) -> &mut Endpoint {
        &mut self.ends[end as usize]
    }

    pub(crate) fn flow(&self, end: End, id: u32) -> &Flow {
        &self.at(end).flows[&id]
    }

    /// Acts upon a stream; `None` when its session has forgotten it.
    fn with<T>(&mut self, end: End, id: u32, act: impl FnOnce(StreamMut<'_>, &mut Flow) -> T) -> Option<T> {
        let at = self.at_mut(end);
        let flow = at.flows.get_mut(&id)?;
        let done = at.session.stream(flow.id).map(|stream| act(stream, flow));
        at.owed_max += 512;
        self.drain_events(end);
        done
    }

    pub(crate) fn open(&mut self, end: End, request: Open) -> Result<u32, OpenError> {
        let now = self.now;
        let at = self.at_mut(end);
        let id = at.session.open(now, request)?;
        at.owed_max += 512;
        at.appears(id, false);
        Ok(id.number())
    }

    /// Opens a stream and lets the other end accept it.
    pub(crate) fn opened(&mut self, end: End, request: Open) -> u32 {
        let id = self.open(end, request).unwrap();
        self.settle();
        assert!(self.flow(end, id).open && self.flow(end.other(), id).open);
        id
    }

    pub(crate) fn accept(&mut self, end: End, id: u32) {
        self.with(end, id, |stream, flow| flow.open |= stream.accept().is_ok());
    }

    pub(crate) fn refuse(&mut self, end: End, id: u32) {
        self.with(end, id, |stream, flow| {
            if stream.refuse(error(88, "not you")).is_ok() {
                flow.ending = Some(Ending::Dismissed);
            }
        });
    }

    pub(crate) fn write(&mut self, end: End, id: u32, bytes: u64) {
        self.with(end, id, |stream, flow| {
            if !flow.ended && flow.ending.is_none() {
                flow.written += bytes;
                stream.ready();
            }
        });
    }

    /// The source ends behind what was written.
    pub(crate) fn finish(&mut self, end: End, id: u32) {
        self.with(end, id, |stream, flow| {
            if flow.ending.is_some() {
                return;
            }
            flow.ended = true;
            if flow.open && flow.sent == flow.written {
                stream.finish().unwrap();
            } else {
                stream.ready();
            }
        });
    }

    pub(crate) fn reset(&mut self, end: End, id: u32) {
        self.with(end, id, |stream, flow| {
            stream.reset(error(38, "broken"));
            flow.ending.get_or_insert(Ending::Dismissed);
        });
    }

    pub(crate) fn stop(&mut self, end: End, id: u32) {
        self.with(end, id, |stream, flow| {
            if stream.stop().is_ok() {
                flow.stopped = true;
            }
        });
    }

    /// The far end takes up to so many of the bytes that wait.
    pub(crate) fn consume(&mut self, end: End, id: u32, bytes: u64) {
        self.with(end, id, |stream, flow| {
            let bytes = bytes.min(flow.given - flow.consumed);
            if flow.ending.is_none() && !flow.stopped {
                stream.consumed(bytes).unwrap();
                flow.consumed += bytes;
            }
        });
    }

    pub(crate) fn close(&mut self, end: End) {
        self.at_mut(end).session.close();
        self.at_mut(end).owed_max += 512;
        self.drain_events(end);
    }

    pub(crate) fn set_receive_limit(&mut self, end: End, rate: Option<u64>) {
        let now = self.now;
        self.at_mut(end).session.set_receive_limit(now, rate);
    }

    pub(crate) fn shutdown(&mut self, end: End) {
        self.at_mut(end).session.shutdown("enough");
        self.at_mut(end).owed_max += 512;
        self.drain_events(end);
    }

    pub(crate) fn lose_link(&mut self) {
        for end in End::BOTH {
            self.at_mut(end).session.handle_link_lost("gone");
            self.at_mut(end).link.clear();
            self.drain_events(end);
        }
    }

    /// The other end has nothing left and closes the link in order.
    pub(crate) fn end_link(&mut self, end: End) {
        self.at_mut(end).session.handle_link_ended("closed");
        self.drain_events(end);
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        for end in End::BOTH {
            self.at_mut(end).session.handle_timeout(now);
            self.at_mut(end).owed_max += 512;
            self.drain_events(end);
        }
    }

    /// Lets an end put control packets into `room` bytes on the link.
    pub(crate) fn transmit_control(&mut self, end: End, room: usize) -> usize {
        let now = self.now;
        let at = self.at_mut(end);
        let mut out = vec![0; room];
        let len = at.session.poll_control(now, &mut out);
        assert!(len <= at.owed_max, "{len} bytes of control, {} could be owed", at.owed_max);
        at.owed_max -= len;
        at.put(&out[..len]);
        self.drain_events(end);
        len
    }

    /// Lets an end put all its control packets on the link, then up to so many DATA packets.
    pub(crate) fn transmit(&mut self, end: End, packets: usize) -> usize {
        let mut put = 0;
        for n in 0..=packets {
            while let len @ 1.. = self.transmit_control(end, CONTROL_MAX) {
                put += len;
            }
            put += if n < packets { self.transmit_data(end) } else { 0 };
        }
        put
    }

    /// One turn of a stream, whatever comes of it.
    fn transmit_data(&mut self, end: End) -> usize {
        let at = self.at_mut(end);
        let Some(grant) = at.session.poll_grant() else { return 0 };
        assert_eq!(at.session.poll_grant(), Some(grant), "the same until it is answered");
        let flow = at.flows.get_mut(&grant.id.number()).unwrap();
        let stream = at.session.stream(grant.id).unwrap();
        let bytes = (flow.written - flow.sent).min(grant.max as u64).min(flow.packet as u64);
        let mut packet = Vec::new();
        if bytes > 0 {
            assert!(bytes <= stream.credit());
            packet.extend_from_slice(&stream.send(bytes as usize).unwrap());
            let odd = end == End::Connecting;
            packet.extend((flow.sent..flow.sent + bytes).map(|offset| byte(grant.id.number(), odd, offset)));
            flow.sent += bytes;
            at.put(&packet);
        } else if flow.ended {
            stream.finish().unwrap();
        } else {
            stream.blocked();
        }
        let (sent, id) = (bytes as usize, grant.id.number());
        // A source that ends says so behind its last byte, credit or not.
        if self.flow(end, id).ended && self.flow(end, id).sent == self.flow(end, id).written {
            self.with(end, id, |stream, _| stream.finish().unwrap());
        }
        sent
    }

    /// Hands up to so many of the bytes that `end` put on the link to the other end, in one piece.
    pub(crate) fn carry(&mut self, end: End, bytes: usize) -> usize {
        let link = &mut self.at_mut(end).link;
        let bytes: Vec<u8> = link.drain(..bytes.min(link.len())).collect();
        let (to, now) = (end.other(), self.now);
        let at = self.at_mut(to);
        if bytes.is_empty() || at.closed.is_some() {
            return 0;
        }
        at.ledger.hear(&bytes);
        at.owed_max = 4096 + 1024 * at.session.stream_count();
        at.owed_max += 1024 * bytes.len() / 28;
        let mut input = &bytes[..];
        loop {
            let at = self.at_mut(to);
            let result = match at.decoder.decode(&mut input).unwrap() {
                None => return bytes.len(),
                Some(Piece::Header { header, payload_len }) => {
                    assert!(at.session.owns(&header));
                    at.session.handle_header(now, &header, payload_len)
                }
                Some(Piece::Payload { bytes, remaining }) => match at.session.handle_payload(now, bytes, remaining) {
                    Ok(Some(data)) => {
                        let flow = at.flows.get_mut(&data.id.number()).unwrap();
                        if let eaten @ 1.. = flow.take(&data, to) {
                            at.session.stream(data.id).unwrap().consumed(eaten).unwrap();
                        }
                        Ok(())
                    }
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                },
            };
            self.drain_events(to);
            if let Err(error) = result {
                match self.at(to).closed.as_ref().expect("an error is the session's end") {
                    Err(cause) => assert_eq!(*cause, error),
                    Ok(()) => assert_eq!(error, SessionError::Closed),
                }
                return bytes.len();
            }
        }
    }

    /// Carries all that can be said until both ends have nothing more to say.
    pub(crate) fn settle(&mut self) {
        loop {
            let mut moved = 0;
            for end in End::BOTH {
                moved += self.transmit(end, 64);
                moved += self.carry(end, usize::MAX);
            }
            self.assert_invariants();
            if moved == 0 && End::BOTH.iter().all(|end| !self.at_mut(*end).session.wants_to_send()) {
                return self.assert_credit_is_conserved();
            }
        }
    }

    /// When nothing is under way, what was consumed can be sent again, but for what is not worth a CREDIT.
    fn assert_credit_is_conserved(&self) {
        for end in End::BOTH {
            let (at, to) = (self.at(end), self.at(end.other()));
            let both = at.closed.is_none() && to.closed.is_none();
            for (id, flow) in at.flows.iter().filter(|(_, flow)| both && flow.open && flow.ending.is_none()) {
                let (far, entry) = (&to.flows[id], at.ledger.entry(*id).unwrap());
                if far.open && far.ending.is_none() && !far.stopped {
                    let (credit, held) = (entry.limit - entry.sent, flow.sent - far.consumed);
                    let window = to.ledger.entry(*id).unwrap().window.max(to.config.window);
                    assert!(
                        credit + held <= window && credit + held > window - window.div_ceil(4),
                        "{flow:?}, {far:?}"
                    );
                }
            }
        }
    }

    fn drain_events(&mut self, end: End) {
        let at = self.at_mut(end);
        while let Some(event) = at.session.poll_event() {
            at.on_event(end, event);
        }
    }

    /// What holds after every step.
    pub(crate) fn assert_invariants(&mut self) {
        for end in End::BOTH {
            self.at_mut(end).assert_invariants();
            for (id, flow) in &self.at(end).flows {
                if let (Some(Ending::Over(_)), false) = (&flow.ending, flow.was_stopped) {
                    assert_eq!(self.flow(end.other(), *id).consumed, flow.sent, "all that was sent was delivered");
                }
            }
        }
    }

    /// Both ends of a stream came to an end of their own accord.
    #[track_caller]
    pub(crate) fn assert_over(&self, id: u32) {
        for end in End::BOTH {
            assert!(matches!(self.flow(end, id).ending, Some(Ending::Over(_))), "{:?}", self.flow(end, id));
        }
    }

    /// Why the stream failed at this end.
    #[track_caller]
    pub(crate) fn failure(&self, end: End, id: u32) -> &StreamError {
        match &self.flow(end, id).ending {
            Some(Ending::Failed(error, _)) => error,
            other => panic!("{other:?}"),
        }
    }
}

impl Endpoint {
    fn put(&mut self, packets: &[u8]) {
        for packet in self.ledger.say(packets) {
            if let Packet::Credit(credit) = packet {
                // As much as has been consumed, and no other.
                assert_eq!(credit.consumed, self.flows[&credit.stream].consumed);
            }
        }
        self.link.extend(packets);
    }

    fn appears(&mut self, id: StreamId, open: bool) {
        let flow = Flow {
            id,
            open,
            written: 0,
            sent: 0,
            packet: usize::MAX,
            ended: false,
            sink: self.sink,
            given: 0,
            consumed: 0,
            finished: false,
            stopped: false,
            was_stopped: false,
            ending: None,
        };
        assert!(self.flows.insert(id.number(), flow).is_none(), "{id} was used before");
    }

    fn on_event(&mut self, end: End, event: Event) {
        assert!(self.closed.is_none(), "{event:?} after the end");
        self.events.push(event.clone());
        match event {
            Event::Incoming { id, .. } => {
                assert!(end.other().opened(id.number()));
                let accepts = self.accepts;
                self.appears(id, accepts);
                if accepts {
                    self.session.stream(id).unwrap().accept().unwrap();
                }
            }
            Event::Accepted(id) => {
                let flow = self.living(id);
                assert!(end.opened(id.number()) && !flow.open);
                flow.open = true;
                if flow.ended && flow.written == 0 {
                    self.session.stream(id).unwrap().finish().unwrap();
                }
            }
            Event::Finished(id) => {
                let offset = self.ledger.entry(id.number()).unwrap().finish_heard;
                let flow = self.living(id);
                assert!(!flow.finished && (flow.stopped || Some(flow.given) == offset), "{flow:?}, {offset:?}");
                flow.finished = true;
            }
            Event::Stopped(id) => {
                let flow = self.living(id);
                assert!(!flow.was_stopped);
                (flow.was_stopped, flow.ended, flow.written) = (true, true, flow.sent);
            }
            Event::Over { id, stats } => {
                let flow = self.living(id);
                assert!(flow.finished && flow.ended && flow.sent == flow.written && stats.sent == flow.sent);
                assert!(flow.was_stopped || stats.delivered == flow.sent, "{stats:?}");
                assert!(flow.stopped || (stats.received == flow.given && stats.consumed == flow.given), "{stats:?}");
                flow.ending = Some(Ending::Over(stats));
            }
            Event::Failed { id, error, stats } => {
                let flow = self.living(id);
                assert_eq!(stats.sent, flow.sent);
                flow.ending = Some(Ending::Failed(error, stats));
            }
            Event::Closed(cause) => self.closed = Some(cause),
            Event::Established { .. } | Event::Draining => {}
            other => panic!("{other:?}"),
        }
    }

    fn living(&mut self, id: StreamId) -> &mut Flow {
        let flow = self.flows.get_mut(&id.number()).expect("a stream that was told of");
        assert_eq!(flow.ending, None, "{id} has ended before");
        flow
    }

    fn assert_invariants(&mut self) {
        assert_eq!(self.session.is_closed(), self.closed.is_some());
        let mut living = 0;
        for (number, flow) in &self.flows {
            let Some(stream) = self.session.stream(flow.id) else {
                assert!(flow.ending.is_some(), "{number} was forgotten without a word");
                continue;
            };
            living += 1;
            let (stats, credit) = (stream.stats(), stream.credit());
            assert_eq!(stats.sent, flow.sent);
            assert!(flow.stopped || stats.consumed == flow.consumed, "{stats:?}, {flow:?}");
            assert!(stats.consumed <= stats.received && flow.given <= stats.received);
            // The other end is judged by the same book, so this is the credit that it gave.
            if let (true, None, Some(entry)) = (flow.open, &flow.ending, self.ledger.entry(*number)) {
                assert!(stats.received <= entry.told.1.max(self.config.window));
                assert_eq!(credit, entry.limit - entry.sent, "{entry:?}");
                assert_eq!(stats.delivered, entry.consumed);
            }
        }
        let granted = self.session.granted();
        assert!(
            granted <= self.config.memory_budget.bytes()
                && granted >= living * self.config.window * u64::from(self.closed.is_none())
        );
        // Beyond the first windows they grow within half of the budget.
        let streams = self.session.stream_count() as u64;
        let grown = self.config.memory_budget.bytes() / 2 + streams * self.config.window;
        assert!(granted <= grown.min(streams * self.config.window_max), "{granted}");
        let theirs = self.session.stream_count() - self.flows.values().filter(|flow| flow.ending.is_none()).count();
        assert!(theirs <= 256 + self.flows.len());
    }
}

impl Flow {
    /// Verifies what comes, byte by byte; gives how much of it is consumed at once.
    fn take(&mut self, data: &Data<'_>, end: End) -> u64 {
        assert!(self.ending.is_none() && !self.stopped && !self.finished && !data.bytes.is_empty());
        for got in data.bytes {
            assert_eq!(*got, byte(data.id.number(), end == End::Accepting, self.given), "at offset {}", self.given);
            self.given += 1;
        }
        let eaten = match self.sink {
            Sink::Eager => self.given - self.consumed,
            Sink::Half => data.bytes.len() as u64 / 2,
            Sink::Lazy => 0,
        };
        self.consumed += eaten;
        eaten
    }
}
