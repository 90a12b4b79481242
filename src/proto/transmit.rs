//! What the peer is owed: control packets first, then data by turn.

use std::collections::VecDeque;
use std::time::Instant;

use super::hello;
use super::liveness::HELLO;
use super::rate::TokenBucket;
use super::schedule::QUANTUM;
use super::session::Session;
use super::stream::{State as StreamState, Stream, StreamId, owed};
use crate::wire::{
    Body, Close, Credit, Finish, HEADER_LEN, Header, OpenReply, PacketType, Ping, Procedure, ProgramId, RemoteError,
    Status, Stop, encode_packet,
};

/// Room that any one control packet fits into, in bytes.
pub const CONTROL_MAX: usize = 32 * 1024;

/// A stream's turn to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The stream.
    pub id: StreamId,
    /// The most bytes that it may send in its next packet.
    pub max: usize,
}

/// Control packets owed to the peer: marks, not packets, so that they coalesce.
#[derive(Debug, Default)]
pub(super) struct Owed {
    pub(super) hello: bool,
    pub(super) hello_reply: Option<(u32, Result<(), RemoteError>)>,
    /// The token of the latest PING.
    pub(super) pong: Option<u64>,
    pub(super) ping: bool,
    /// Streams whose `owed` is not 0, each once.
    pub(super) streams: VecDeque<u32>,
    /// Those that wait until more may be granted: not owed yet.
    pub(super) withheld: VecDeque<u32>,
    /// Code, rule, text. After all else.
    pub(super) close: Option<(u32, u32, String)>,
}

impl Owed {
    pub(super) fn is_empty(&self) -> bool {
        !self.hello
            && self.hello_reply.is_none()
            && self.pong.is_none()
            && !self.ping
            && self.streams.is_empty()
            && self.close.is_none()
    }
}

/// The front of what the caller offered, filled packet by packet.
struct Out<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl Out<'_> {
    /// False when it does not fit; nothing was written then.
    fn put<T: Body>(&mut self, header: &Header, body: &T) -> bool {
        let Some(room) = self.buf.get_mut(self.len..) else { return false };
        match encode_packet(header, body, room) {
            Some(len) => {
                self.len += len;
                true
            }
            None => false,
        }
    }
}

impl Session {
    /// Puts control packets that are owed into the front of `out`; gives how many bytes. They must go onto the link in
    /// this order, before anything that the session gives later.
    ///
    /// A stream may be over with what is sent: poll events afterwards. Call it before every `poll_grant` and until it gives 0. With [`CONTROL_MAX`] bytes of room at least one packet fits.
    pub fn poll_control(&mut self, now: Instant, out: &mut [u8]) -> usize {
        self.now = self.now.max(now);
        let mut out = Out { buf: out, len: 0 };
        if self.put_session(now, &mut out) && self.put_streams(now, &mut out) {
            self.put_close(&mut out);
        }
        out.len
    }

    /// Whether `poll_control` or `poll_grant` has something to give.
    pub fn wants_to_send(&mut self) -> bool {
        !self.owed.is_empty() || self.next_withheld().is_some() || self.poll_grant().is_some()
    }

    /// The stream whose turn it is to send data, if one is ready and has credit. Answer it by the stream's `send`,
    /// `blocked`, `finish` or `reset`: until then it stays the same, unless something is handed in or another stream becomes ready. It
    /// is asked for anew then.
    pub fn poll_grant(&mut self) -> Option<Grant> {
        if self.limit.as_mut().is_some_and(|limit| limit.poll(self.now) == 0) {
            return None;
        }
        self.resume_throttled();
        loop {
            let (class, id) = self.schedule.front()?;
            // A stream in the schedule is in the map.
            let stream = self.streams.get_mut(&id)?;
            if stream.can_send() {
                if let Some(limit) = &mut stream.limit
                    && limit.poll(self.now) == 0
                {
                    stream.throttled = true;
                    stream.throttled_until = limit.ready_at();
                    stream.is_active = false;
                    self.schedule.count(class, false);
                    self.throttled.extend(stream.throttled_until.map(|until| (until, id)));
                    continue;
                }
                if stream.turn == 0 {
                    stream.turn = QUANTUM;
                }
                let max = self.grant_for(StreamId(id))?;
                return Some(Grant { id: StreamId(id), max: usize::try_from(max).unwrap_or(usize::MAX) });
            }
            stream.in_schedule = false;
            if stream.turn > 0 {
                stream.last_turn = QUANTUM - std::mem::take(&mut stream.turn);
            }
            self.schedule.remove_front(class);
        }
    }

    /// Whether it is the stream's turn.
    pub(super) fn is_front(&self, id: StreamId) -> bool {
        self.schedule.front().is_some_and(|(_, front)| front == id.0)
    }

    /// What a stream may send in its next packet; `None` for nothing.
    pub(super) fn grant_for(&self, id: StreamId) -> Option<u32> {
        let stream = self.stream_ref(id).filter(|stream| stream.can_send())?;
        let limits = [self.limit.as_ref(), stream.limit.as_deref()].into_iter().flatten().map(TokenBucket::left);
        let most = limits.fold(stream.sending.credit(), u64::min);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Some(most.min(self.peer.max_data).min(stream.turn)).filter(|max| *max > 0)
    }

    /// Counts a packet of the stream at the front of its class.
    pub(super) fn on_sent(&mut self, id: StreamId, len: u32) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        stream.sending.sent(len);
        stream.turn -= len;
        stream.had += u64::from(len);
        for limit in [self.limit.as_mut(), stream.limit.as_deref_mut()].into_iter().flatten() {
            limit.take(u64::from(len));
        }
        stream.stats.packets_sent += 1;
        stream.stats.stalls += u64::from(stream.sending.credit() == 0);
        if stream.is_active && !stream.can_send() {
            stream.is_active = false;
            self.schedule.count(usize::from(stream.priority), false);
        }
        let (class, had, turn_over) = (usize::from(stream.priority), stream.had, stream.turn == 0);
        if turn_over {
            stream.last_turn = QUANTUM;
        }
        self.schedule.charge(class, len);
        if turn_over {
            self.schedule.end_turn(class, had);
        }
    }

    /// Lets streams that have waited long enough for their limits have their turn.
    pub(super) fn resume_throttled(&mut self) {
        while let Some((until, id)) = self.throttled.first().copied()
            && until <= self.now
        {
            self.unthrottle(id);
        }
    }

    /// Lets a stream that waited for its limit have its turn.
    pub(super) fn unthrottle(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.throttled = false;
            if let Some(until) = stream.throttled_until.take() {
                self.throttled.remove(&(until, id));
            }
        }
        self.sync(id);
    }

    /// Until when the limit of the session holds up a stream that could send.
    pub(super) fn limited_until(&self) -> Option<Instant> {
        self.schedule.front()?;
        self.limit.as_ref()?.ready_at().filter(|until| *until > self.now)
    }

    /// When the next of those that wait may be granted what it owes.
    pub(super) fn withheld_until(&self) -> Option<Instant> {
        self.owed.withheld.front()?;
        self.pace.as_ref()?.ready_at().filter(|until| *until > self.now)
    }

    /// The first of those that wait, if more may be granted now.
    fn next_withheld(&self) -> Option<u32> {
        self.owed.withheld.front().copied().filter(|_| self.may_grant())
    }

    fn may_grant(&self) -> bool {
        self.pace.as_ref().is_none_or(|pace| pace.is_ready(self.now))
    }

    /// Whether what a stream owes waits until more may be granted: behind those that wait already, too.
    fn must_wait(&self, stream: &Stream) -> bool {
        stream.owes_grants_alone() && !(self.owed.withheld.is_empty() && self.may_grant())
    }

    fn put_session(&mut self, now: Instant, out: &mut Out<'_>) -> bool {
        let program = self.config.program;
        if self.owed.hello {
            let header = program.header(Procedure::Hello, PacketType::Call, hello::SERIAL, Status::Ok);
            if !out.put(&header, &self.hello()) {
                return false;
            }
            self.owed.hello = false;
            self.liveness.on_first_words(HELLO, now);
        }
        if let Some((serial, answer)) = &self.owed.hello_reply {
            let fits = match answer {
                Ok(()) => {
                    let header = program.header(Procedure::Hello, PacketType::Reply, *serial, Status::Ok);
                    out.put(&header, &self.hello_reply())
                }
                Err(refusal) => {
                    let header = program.header(Procedure::Hello, PacketType::Reply, *serial, Status::Error);
                    out.put(&header, refusal)
                }
            };
            if !fits {
                return false;
            }
            self.owed.hello_reply = None;
        }
        if let Some(token) = self.owed.pong {
            if !out.put(&message(&program, Procedure::Pong), &Ping { token }) {
                return false;
            }
            self.owed.pong = None;
        }
        if self.owed.ping {
            let token = self.liveness.ping(now);
            if !out.put(&message(&program, Procedure::Ping), &Ping { token }) {
                return false;
            }
            self.owed.ping = false;
        }
        true
    }

    fn put_streams(&mut self, now: Instant, out: &mut Out<'_>) -> bool {
        while let Some(id) = self.owed.streams.front().copied() {
            if self.pace.is_some() && self.stream_ref(StreamId(id)).is_some_and(|stream| self.must_wait(stream)) {
                self.withhold(id);
            } else if self.put_owed(now, id, out) {
                self.owed.streams.pop_front();
            } else {
                return false;
            }
            self.sync(id);
        }
        while let Some(id) = self.next_withheld() {
            let fits = self.put_owed(now, id, out);
            if fits {
                self.owed.withheld.pop_front();
            }
            // What did not fit may wait for no grant, now that one was made.
            self.sync(id);
            if !fits {
                return false;
            }
        }
        true
    }

    /// Puts what the stream at the front of its queue owes; false when the rest does not fit.
    fn put_owed(&mut self, now: Instant, id: u32, out: &mut Out<'_>) -> bool {
        self.tune_window(now, id);
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        if stream.owed & owed::REPLY != 0 {
            self.liveness.on_first_words(id, now);
        }
        let limit = stream.receiving.limit();
        let fits = put_stream(&self.config.program, id, stream, out);
        if let Some(pace) = &mut self.pace {
            pace.take(now, stream.receiving.limit() - limit);
        }
        if fits {
            (stream.in_owed_queue, stream.is_withheld) = (false, false);
        }
        fits
    }

    /// Has the stream at the front wait until more may be granted.
    fn withhold(&mut self, id: u32) {
        self.owed.streams.pop_front();
        self.owed.withheld.push_back(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.is_withheld = true;
        }
    }

    /// Before CREDIT: where the window holds the peer up it is widened, as far as half of the memory budget reaches.
    fn tune_window(&mut self, now: Instant, id: u32) {
        let wants = |stream: &&mut Stream| stream.owed & owed::CREDIT != 0 && stream.receiving.finished.is_none();
        let Some(stream) = self.streams.get_mut(&id).filter(wants) else { return };
        self.owed.ping |= self.liveness.wants_samples();
        let Some(round_trip) = self.liveness.least_round_trip() else { return };
        if let Some(wanted) = self.delivery.wanted_window(now, self.delivered, round_trip) {
            // It follows the link, and forgets slowly what the link could do.
            self.link_window = wanted.max(self.link_window - self.link_window / 8);
        }
        let Some(wanted) = stream.receiving.wanted_window(now, round_trip) else { return };
        let more = wanted.min(self.config.window_max).saturating_sub(stream.receiving.window());
        stream.receiving.widen(self.reserved.take_some(more));
    }

    fn put_close(&mut self, out: &mut Out<'_>) {
        // A graceful CLOSE may go at once; a fatal one comes alone, since `end` has cleared all else.
        let Some((code, rule, text)) = self.owed.close.take() else { return };
        let close = Close { code, rule, text };
        if !out.put(&message(&self.config.program, Procedure::Close), &close) {
            self.owed.close = Some((close.code, close.rule, close.text));
        }
    }
}

fn message(program: &ProgramId, procedure: Procedure) -> Header {
    program.header(procedure, PacketType::Message, 0, Status::Ok)
}

/// Puts what one stream owes, lowest bit first; false when the rest does not fit.
fn put_stream(program: &ProgramId, id: u32, stream: &mut Stream, out: &mut Out<'_>) -> bool {
    while stream.owed != 0 {
        let bit = 1 << stream.owed.trailing_zeros();
        let data = |status| program.header(Procedure::Data, PacketType::Stream, id, status);
        let reply = |status| program.header(Procedure::Open, PacketType::Reply, id, status);
        let fits = match (bit, &mut stream.state) {
            (owed::OPEN, StreamState::Opening(request)) => match request {
                Some(open) => {
                    let fits = out.put(&program.header(Procedure::Open, PacketType::Call, id, Status::Ok), &**open);
                    if fits {
                        stream.receiving.tell_window();
                        *request = None;
                    }
                    fits
                }
                None => true,
            },
            (owed::REPLY, StreamState::Refused(error)) => out.put(&reply(Status::Error), &**error),
            (owed::REPLY, _) => {
                let window = stream.receiving.window();
                let fits = out.put(&reply(Status::Ok), &OpenReply { window, extensions: Vec::new() });
                if fits {
                    stream.receiving.tell_window();
                    stream.sending.accepted();
                }
                fits
            }
            (owed::RESET, StreamState::Reset(error)) => out.put(&data(Status::Error), &**error),
            (owed::CREDIT, _) => {
                // Room first: what CREDIT says counts as said.
                let fits = out.buf.len() - out.len >= HEADER_LEN + 20;
                if fits {
                    let (consumed, limit) = stream.receiving.take_credit();
                    out.put(&message(program, Procedure::Credit), &Credit { stream: id, consumed, limit });
                }
                fits
            }
            (owed::STOP, _) => out.put(&message(program, Procedure::Stop), &Stop { stream: id }),
            (owed::FINISH, _) => out.put(&data(Status::Ok), &Finish { offset: stream.sending.offset }),
            _ => true,
        };
        if !fits {
            return false;
        }
        stream.owed &= !bit;
    }
    true
}
