//! One end of a session: what a dispatcher does with it, and its handlers.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use virbistream::proto::{CONTROL_MAX, Config, Data, Event, Session, SessionError, StreamId};
use virbistream::wire::{Credit, Decoder, Open, PACKET_MAX, Piece};

use crate::handler::{Answer, Ending, Handler, Mood};
use crate::support::{End, Ledger, Packet, Random, byte, error};
use crate::way::{Tail, Way};

pub(crate) struct Host {
    pub(crate) end: End,
    pub(crate) session: Session,
    pub(crate) config: Config,
    pub(crate) handlers: BTreeMap<u32, Handler>,
    /// When streams are asked for.
    pub(crate) opens: VecDeque<Instant>,
    /// How far its clock has jumped.
    pub(crate) skew: Duration,
    pub(crate) frozen_until: Option<Instant>,
    pub(crate) has_let_go: bool,
    /// HELLO has stood.
    pub(crate) stood: bool,
    pub(crate) closed: Option<Result<(), SessionError>>,
    /// It has ended the link, from its side.
    pub(crate) shut: bool,
    link_over: bool,
    started: Instant,
    last_heard: Instant,
    ledger: Ledger,
    decoder: Decoder,
    room: Vec<u8>,
    /// Packets to be written, and how much of them is.
    pub(crate) out: Vec<u8>,
    written: usize,
    /// Bytes of data sent, and the limit: since when, how much a second, and what had been sent then.
    sent: u64,
    limit: Option<(Instant, u64, u64)>,
    /// The same of what the other end was let send.
    granted: u64,
    receive_limit: Option<(Instant, u64, u64)>,
    /// By the world's clock.
    pub(crate) receive_limit_since: Instant,
    random: Random,
    says: bool,
}

impl Host {
    pub(crate) fn new(end: End, config: &Config, now: Instant, opens: &[Duration], random: Random, says: bool) -> Self {
        let session = match end {
            End::Connecting => Session::connect(config.clone(), now),
            End::Accepting => Session::accept(config.clone(), now),
        };
        Self {
            end,
            session,
            config: config.clone(),
            handlers: BTreeMap::new(),
            opens: opens.iter().map(|at| now + *at).collect(),
            skew: Duration::ZERO,
            frozen_until: None,
            has_let_go: false,
            stood: false,
            closed: None,
            shut: false,
            link_over: false,
            started: now,
            last_heard: now,
            ledger: Ledger::new(end, config.window, config.window_max),
            decoder: Decoder::new(PACKET_MAX),
            room: vec![0; CONTROL_MAX],
            out: Vec::new(),
            written: 0,
            sent: 0,
            limit: None,
            granted: 0,
            receive_limit: None,
            receive_limit_since: now,
            random,
            says,
        }
    }

    pub(crate) fn local(&self, now: Instant) -> Instant {
        now + self.skew
    }

    pub(crate) fn is_frozen(&self, now: Instant) -> bool {
        self.frozen_until.is_some_and(|until| until > now)
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// One turn of its loop: what came is handled before time is judged.
    pub(crate) fn turn(&mut self, now: Instant, incoming: &mut Way, outgoing: &mut Way) {
        if self.is_frozen(now) {
            return;
        }
        let local = self.local(now);
        self.read(now, incoming);
        self.open_streams(now);
        self.act_on_all(local);
        if self.session.poll_timeout().is_some_and(|at| at <= local) {
            self.session.handle_timeout(local);
            self.drain_events(local);
            assert!(self.session.poll_timeout().is_none_or(|at| at > local), "what is due was not done");
        }
        self.write(now, outgoing);
        self.assert_alone(local);
    }

    /// When it has something to do of itself.
    pub(crate) fn next(&self) -> Option<Instant> {
        let local =
            self.session.poll_timeout().into_iter().chain(self.handlers.values().filter_map(Handler::next)).min();
        let at = local
            .map(|at| at.checked_sub(self.skew).unwrap_or(at))
            .into_iter()
            .chain(self.opens.front().copied())
            .min();
        at.map(|at| self.frozen_until.map_or(at, |until| until.max(at)))
    }

    pub(crate) fn set_limit(&mut self, now: Instant, rate: Option<u64>) {
        let local = self.local(now);
        self.session.set_limit(local, rate);
        self.limit = rate.map(|rate| (local, rate, self.sent));
    }

    pub(crate) fn is_receive_limited(&self) -> bool {
        self.receive_limit.is_some()
    }

    /// How long a grant may wait, behind all others twice; nothing if for ever.
    pub(crate) fn grants_within(&self) -> Option<Duration> {
        let Some((_, rate, _)) = self.receive_limit else { return Some(Duration::ZERO) };
        let all = 2 * (self.session.granted() + self.config.window_max);
        (rate > 0).then(|| Duration::from_secs_f64(all as f64 / rate as f64))
    }

    pub(crate) fn set_receive_limit(&mut self, now: Instant, rate: Option<u64>) {
        let local = self.local(now);
        self.session.set_receive_limit(local, rate);
        self.receive_limit_since = now;
        self.receive_limit = rate.map(|rate| (local, rate, self.granted));
    }

    pub(crate) fn let_go(&mut self, now: Instant) {
        let local = self.local(now);
        (self.has_let_go, self.frozen_until) = (true, None);
        self.opens.clear();
        self.set_limit(now, None);
        self.set_receive_limit(now, None);
        self.handlers.values_mut().for_each(|handler| handler.let_go(local));
    }

    fn note(&self, local: Instant, what: impl FnOnce() -> String) {
        if self.says {
            println!("{:>10.3?} {:?}: {}", local - self.started, self.end, what());
        }
    }

    fn open_streams(&mut self, now: Instant) {
        while self.opens.front().is_some_and(|at| *at <= now) {
            self.opens.pop_front();
            let (local, priority) = (self.local(now), self.random.below(4) as u32);
            let request = Open { target: "vda".into(), priority, ..Open::default() };
            match self.session.open(local, request) {
                Ok(id) => self.appears(id, local, false),
                // It asks again, as long as there is hope.
                Err(error) if self.closed.is_none() => {
                    self.note(local, || format!("opens nothing: {error}"));
                    self.opens.push_back(now + Duration::from_millis(50 + self.random.below(400)));
                }
                Err(_) => self.opens.clear(),
            }
        }
    }

    fn appears(&mut self, id: StreamId, local: Instant, asked: bool) {
        let mut handler = Handler::new(id, local, asked, &mut self.random);
        self.note(local, || format!("{handler:?}"));
        if self.has_let_go {
            handler.let_go(local);
        }
        assert!(self.handlers.insert(id.number(), handler).is_none(), "{id} was used before");
    }

    fn read(&mut self, now: Instant, incoming: &mut Way) {
        let local = self.local(now);
        while let Some(bytes) = incoming.read(now, &mut self.random) {
            self.last_heard = local;
            if self.closed.is_none() {
                self.session.handle_heard(local);
                self.hear(local, &bytes);
            }
        }
        let Some(tail) = incoming.read_tail(now).filter(|_| !self.link_over) else { return };
        self.link_over = true;
        self.note(local, || format!("reads the link's end: {tail:?}"));
        match tail {
            Tail::Ended if self.decoder.at_boundary() => self.session.handle_link_ended("it ended"),
            _ => self.session.handle_link_lost("it broke"),
        }
        self.drain_events(local);
    }

    fn hear(&mut self, local: Instant, bytes: &[u8]) {
        self.ledger.hear(bytes);
        let mut input = bytes;
        while let Some(piece) = self.decoder.decode(&mut input).expect("packets") {
            let result = match piece {
                Piece::Header { header, payload_len } => {
                    self.session.handle_header(local, &header, payload_len).map(|()| None)
                }
                Piece::Payload { bytes, remaining } => self.session.handle_payload(local, bytes, remaining),
            };
            let (came, result) = match result {
                Ok(data) => (data, Ok(())),
                Err(error) => (None, Err(error)),
            };
            if let Some(data) = came {
                self.take(&data);
            }
            self.drain_events(local);
            if let Some(data) = came {
                self.act(data.id.number(), local);
            }
            if let Err(error) = result {
                let cause = self.closed.clone().expect("an error is the session's end");
                assert_eq!(cause.err().unwrap_or(SessionError::Closed), error, "the first cause stays");
                return;
            }
        }
    }

    /// Verifies what comes, byte by byte.
    fn take(&mut self, data: &Data<'_>) {
        let odd = self.end == End::Accepting;
        let handler = self.living(data.id);
        assert!(!handler.stopped && !handler.finished && !data.bytes.is_empty(), "{handler:?}");
        for got in data.bytes {
            let wanted = byte(data.id.number(), odd, handler.given);
            assert_eq!(*got, wanted, "stream {} at offset {}", data.id, handler.given);
            handler.given += 1;
        }
    }

    fn act_on_all(&mut self, local: Instant) {
        let ids: Vec<u32> =
            self.handlers.values().filter(|handler| handler.is_living()).map(|handler| handler.id.number()).collect();
        ids.into_iter().for_each(|id| self.act(id, local));
    }

    /// Lets a handler do what is up to it now.
    fn act(&mut self, id: u32, local: Instant) {
        self.answer(id, local);
        self.sink(id, local);
        self.source(id, local);
        self.drain_events(local);
        let Some(handler) = self.handlers.get_mut(&id) else { return };
        let starved = handler.open_since.is_some() && !handler.finish_said && handler.had(local) < handler.total;
        let backlog = matches!(handler.mood, Mood::Slow(_)) && handler.given > handler.consumed;
        let wait = if backlog { 20 } else { 1 + self.random.below(30) };
        handler.wakes_at = (starved || backlog).then(|| local + Duration::from_millis(wait));
    }

    fn answer(&mut self, id: u32, local: Instant) {
        let Some(handler) = self.handlers.get_mut(&id).filter(|handler| handler.is_living()) else { return };
        let Some((_, answer)) = handler.dialling.take_if(|(at, _)| *at <= local) else { return };
        let stream = self.session.stream(handler.id).expect("a question");
        match answer {
            Answer::Accept => {
                stream.accept().expect("a question");
                handler.open_since = Some(local);
            }
            Answer::Refuse => {
                let words = format!("{:?} refuses {id}", self.end);
                stream.refuse(error(88, &words)).expect("a question");
                handler.ending = Some(Ending::Dismissed(words));
            }
        }
    }

    fn sink(&mut self, id: u32, local: Instant) {
        let Some(handler) = self.handlers.get_mut(&id) else { return };
        if !handler.is_living() || handler.open_since.is_none() || handler.stopped {
            return;
        }
        let stream = self.session.stream(handler.id).expect("it lives");
        match handler.mood {
            Mood::Stops(at) if handler.given >= at => {
                stream.stop().expect("it is open");
                handler.stopped = true;
            }
            Mood::Fails(at) if handler.given > at => self.dismiss(id, "sink"),
            _ => {
                let bytes = handler.takes(local);
                if bytes > 0 {
                    stream.consumed(bytes).expect("it came");
                    handler.consumed += bytes;
                }
            }
        }
        self.drain_events(local);
    }

    fn source(&mut self, id: u32, local: Instant) {
        let Some(handler) = self.handlers.get_mut(&id) else { return };
        if !handler.is_living() || handler.open_since.is_none() || handler.finish_said {
            return;
        }
        if handler.sent < handler.had(local) {
            return self.session.stream(handler.id).expect("it lives").ready();
        }
        if handler.sent < handler.total {
            return;
        }
        if handler.breaks {
            return self.dismiss(id, "source");
        }
        handler.finish_said = true;
        self.session.stream(handler.id).expect("it lives").finish().expect("it is open");
    }

    /// A handler fails.
    fn dismiss(&mut self, id: u32, what: &str) {
        let words = format!("{:?}'s {what} of {id} fails", self.end);
        let handler = self.handlers.get_mut(&id).expect("a stream");
        self.session.stream(handler.id).expect("it lives").reset(error(38, &words));
        handler.ending = Some(Ending::Dismissed(words));
    }

    fn write(&mut self, now: Instant, outgoing: &mut Way) {
        loop {
            if self.out.is_empty() && !self.refill(self.local(now)) {
                break;
            }
            let taken = outgoing.write(now, &self.out[self.written..], &mut self.random);
            self.written += taken;
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
            }
            if taken == 0 {
                return;
            }
        }
        if self.session.is_finished() && !self.shut {
            self.shut = true;
            outgoing.end(now);
        }
    }

    /// The next packets to write; false when there are none.
    fn refill(&mut self, local: Instant) -> bool {
        let wants = self.session.wants_to_send();
        let room = if self.random.one_in(6) { 28 + self.random.below(200) as usize } else { CONTROL_MAX };
        let mut len = self.session.poll_control(local, &mut self.room[..room]);
        if len == 0 && room < CONTROL_MAX {
            len = self.session.poll_control(local, &mut self.room);
        }
        self.out.extend_from_slice(&self.room[..len]);
        if len == 0 {
            while self.out.is_empty() && self.send(local) {}
        }
        for packet in self.ledger.say(&self.out) {
            match packet {
                Packet::Credit(Credit { stream, consumed, limit }) => {
                    assert_eq!(consumed, self.handlers[&stream].consumed, "as much as was consumed, no other");
                    self.grant(local, stream, limit);
                }
                Packet::OpenReply(stream, reply) => self.grant(local, stream, reply.window),
                Packet::Open(stream, open) => {
                    // That waits for nothing, but counts.
                    self.handlers.get_mut(&stream).expect("a stream").granted = open.window;
                    self.granted += open.window;
                }
                Packet::Finish(stream, _) => self.handlers.get_mut(&stream).expect("a stream").finish_sent = true,
                _ => {}
            }
        }
        self.drain_events(local);
        assert!(wants || self.out.is_empty(), "it sends and did not want to");
        !self.out.is_empty()
    }

    /// The other end may send up to there: not before all that it was granted before is paid for.
    fn grant(&mut self, local: Instant, id: u32, limit: u64) {
        let handler = self.handlers.get_mut(&id).expect("a stream");
        let more = limit - std::mem::replace(&mut handler.granted, limit);
        // With what ends a stream's direction nothing waits.
        let waits = !handler.finished && handler.finish_said == handler.finish_sent;
        if let Some((since, rate, before)) = self.receive_limit.filter(|_| waits) {
            let may = u128::from(rate) * (local - since).as_nanos() / 1_000_000_000 + u128::from(rate / 10);
            assert!(u128::from(self.granted - before) <= may + 1, "{} bytes in {:?}", self.granted, local - since);
        }
        self.granted += more;
    }

    /// One turn of a stream, whatever comes of it; false when nobody has one.
    fn send(&mut self, local: Instant) -> bool {
        let Some(grant) = self.session.poll_grant() else { return false };
        assert_eq!(self.session.poll_grant(), Some(grant), "the same until it is answered");
        let handler = self.handlers.get_mut(&grant.id.number()).expect("a stream");
        let stream = self.session.stream(grant.id).expect("whose turn it is");
        let mut bytes = (handler.had(local) - handler.sent).min(grant.max as u64);
        if bytes == 0 {
            stream.blocked();
            return true;
        }
        if self.random.one_in(4) {
            bytes = 1 + self.random.below(bytes);
        }
        assert!(bytes <= stream.credit());
        self.out.extend_from_slice(&stream.send(bytes as usize).expect("within the grant"));
        let (id, odd) = (grant.id.number(), self.end == End::Connecting);
        self.out.extend((handler.sent..handler.sent + bytes).map(|offset| byte(id, odd, offset)));
        handler.sent += bytes;
        handler.waits_since = None;
        self.sent += bytes;
        self.assert_limit(local);
        self.source(id, local);
        true
    }

    fn assert_limit(&self, local: Instant) {
        let Some((since, rate, before)) = self.limit else { return };
        let may = u128::from(rate) * (local - since).as_nanos() / 1_000_000_000 + u128::from((rate / 10).max(32 << 10));
        assert!(u128::from(self.sent - before) <= may, "{} bytes in {:?}", self.sent - before, local - since);
    }

    pub(crate) fn drain_events(&mut self, local: Instant) {
        while let Some(event) = self.session.poll_event() {
            self.note(local, || format!("{event:?}"));
            assert!(self.closed.is_none(), "{event:?} after the end");
            self.on_event(local, event);
        }
    }

    fn on_event(&mut self, local: Instant, event: Event) {
        match event {
            Event::Established { .. } => self.stood = true,
            Event::Incoming { id, .. } => self.appears(id, local, true),
            Event::Accepted(id) => self.living(id).open_since = Some(local),
            Event::Finished(id) => {
                let last = self.ledger.entry(id.number()).expect("a stream").finish_heard;
                let handler = self.living(id);
                assert!(!handler.finished && (handler.stopped || Some(handler.given) == last), "{handler:?}, {last:?}");
                handler.finished = true;
            }
            Event::Stopped(id) => {
                let handler = self.living(id);
                assert!(!handler.was_stopped);
                (handler.was_stopped, handler.finish_said, handler.total) = (true, true, handler.sent);
            }
            Event::Over { id, stats } => {
                let handler = self.living(id);
                assert!(
                    handler.finished && handler.finish_said && stats.sent == handler.sent,
                    "{stats:?}, {handler:?}"
                );
                assert!(handler.was_stopped || stats.delivered == handler.sent, "{stats:?}");
                assert!(
                    handler.stopped || (stats.received, stats.consumed) == (handler.given, handler.given),
                    "{stats:?}"
                );
                handler.ending = Some(Ending::Over(stats));
            }
            Event::Failed { id, error, stats } => {
                let handler = self.living(id);
                assert_eq!(stats.sent, handler.sent);
                handler.ending = Some(Ending::Failed(error));
            }
            Event::Closed(cause) => self.on_closed(local, cause),
            Event::Draining => {}
            other => panic!("{other:?}"),
        }
    }

    /// A cause of our own has a reason.
    fn on_closed(&mut self, local: Instant, cause: Result<(), SessionError>) {
        match &cause {
            Err(SessionError::Silent(limit)) => assert!(local - self.last_heard >= *limit, "it was not silent"),
            Err(SessionError::HelloTimeout(limit)) => assert!(!self.stood && local - self.started >= *limit),
            _ => {}
        }
        self.closed = Some(cause);
    }

    fn living(&mut self, id: StreamId) -> &mut Handler {
        let handler = self.handlers.get_mut(&id.number()).expect("a stream that was told of");
        assert_eq!(handler.ending, None, "{id} has ended before");
        handler
    }

    /// What holds after each turn, whatever the other end does.
    fn assert_alone(&mut self, local: Instant) {
        assert_eq!(self.session.is_closed(), self.closed.is_some());
        if self.stood && self.closed.is_none() {
            let silent = local - self.last_heard;
            assert!(silent < self.config.silence_limit, "silent for {silent:?}");
        }
        for (number, handler) in &self.handlers {
            let Some(stream) = self.session.stream(handler.id) else {
                assert!(handler.ending.is_some(), "{number} was forgotten without a word");
                continue;
            };
            let (stats, credit) = (stream.stats(), stream.credit());
            assert_eq!(stats.sent, handler.sent);
            assert!(stats.consumed <= stats.received && handler.given <= stats.received, "{stats:?}");
            assert!(handler.stopped || !handler.is_living() || stats.consumed == handler.consumed, "{stats:?}");
            if let (true, Some(entry)) =
                (handler.is_living() && handler.open_since.is_some(), self.ledger.entry(*number))
            {
                assert_eq!((credit, stats.delivered), (entry.limit - entry.sent, entry.consumed), "{entry:?}");
            }
        }
        let (streams, budget) = (self.session.stream_count() as u64, &self.config.memory_budget);
        assert!(self.session.granted() <= budget.bytes().min(streams * self.config.window_max));
        assert!(budget.taken() <= budget.bytes());
        // Both sides' streams, those of the peer's that were reset and not told yet, and refusals.
        assert!(streams <= 3 * 40 + 256, "{streams} streams");
    }

    /// Whether this stream's bytes can be taken as soon as they come.
    pub(crate) fn takes_all(&self, id: u32) -> bool {
        self.handlers.get(&id).is_some_and(|handler| {
            handler.is_living() && handler.mood == Mood::Eager && !handler.stopped && handler.given == handler.consumed
        })
    }

    /// The window that this end gives, and what the other may use of it now.
    pub(crate) fn window(&self, id: u32) -> Option<u64> {
        self.ledger.entry(id).map(|entry| entry.window.max(self.config.window))
    }

    pub(crate) fn credit(&self, id: u32) -> Option<u64> {
        self.ledger.entry(id).map(|entry| entry.limit - entry.sent)
    }

    /// It has read the link's end: nothing more will come.
    pub(crate) fn has_read_all(&self) -> bool {
        self.link_over
    }
}
