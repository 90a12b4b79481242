//! One session on its link: what the link brings goes to the session, what the session decides to handlers, and what is
//! owed onto the link.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use mio::Registry;

use super::call::Answer;
use super::channel::{Channel, Opened};
use super::front::{Front, Passing};
use super::handle::{Handle, OutgoingCall, SessionKey, SessionOptions, StreamKey};
use super::handler::{Attachment, Decision, Request, Waker};
use super::legacy::Legacy;
use super::link::{Link, Received};
use super::pool::Pool;
use super::report::Report;
use super::tokens::{Place, Tokens};
use crate::proto::{
    CONTROL_MAX, Event, Grant, LONGEST, Session, SessionError, Side, StreamError, StreamId, StreamStats,
};
use crate::rpc::{IncomingId, LegacyId, LinkError, ProcedureId};
use crate::wire::{Decoder, HEADER_LEN, Open, PACKET_MAX, Piece, RemoteError, codes, domains};

/// Bytes read from a link, or written to it, before others have their turn.
const TURN: usize = 1 << 20;

/// Room worth reading a source into, beside the header.
const LEAST_ROOM: usize = 4096;

/// Bytes of legacy packets before data of streams has its turn.
const LEGACY_TURN: usize = 64 * 1024;

/// A target that wants to be asked again at once is asked then.
const SHORTEST_RETRY: Duration = Duration::from_millis(1);

/// How long a link outlives its session, so that the peer gets our last packet before the socket is closed.
const LINGER: Duration = Duration::from_secs(2);

/// What a peer needs of its dispatcher, for the length of a call.
pub(super) struct Context<'a> {
    pub(super) registry: &'a Registry,
    pub(super) tokens: &'a mut Tokens,
    pub(super) pool: &'a mut Pool,
    /// Where links are read into; whatever is not taken at once is copied out.
    pub(super) scratch: &'a mut [u8],
    pub(super) handle: &'a Handle,
    pub(super) report: &'a mut dyn FnMut(Report),
    pub(super) now: Instant,
}

/// Whether a peer wants another turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// At once: it stopped at its budget.
    Again,
    /// When something happens.
    Wait,
    /// Never: it is over.
    Gone,
}

pub(super) struct Peer {
    key: SessionKey,
    session: Session,
    link: Link,
    decoder: Decoder,
    /// The packet whose payload arrives is the session's.
    ours: bool,
    legacy: Legacy,
    /// Who gets legacy packets instead of `legacy`, once one has come.
    front: Option<Front>,
    /// A legacy stream sends next, if one can.
    legacy_next: bool,
    channels: BTreeMap<StreamId, Channel>,
    dialling: Vec<Dialling>,
    options: SessionOptions,
    phase: Phase,
    /// The peer's side of the link has ended.
    peer_ended: bool,
    /// HELLO stood once.
    stood: bool,
    /// The session ended with a cause: CLOSE is the last packet.
    failed: bool,
}

/// A target that was not ready.
struct Dialling {
    id: StreamId,
    key: StreamKey,
    request: Open,
    again: Instant,
    deadline: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The session is over; its last packet is on its way out, until the deadline.
    Flushing(Instant),
    /// Our side is shut; the peer's is read until it is too, or the deadline.
    Lingering(Instant),
    Gone,
}

/// No wait that a user asks for makes the clock overflow.
fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(LONGEST)
}

impl Peer {
    pub(super) fn new(key: SessionKey, side: Side, link: Link, options: SessionOptions, now: Instant) -> Self {
        let session = match side {
            Side::Connecting => Session::connect(options.config.clone(), now),
            Side::Accepting => Session::accept(options.config.clone(), now),
        };
        Self {
            key,
            session,
            link,
            decoder: Decoder::new(PACKET_MAX),
            ours: false,
            legacy: Legacy::new(key, side, &options),
            front: None,
            legacy_next: false,
            channels: BTreeMap::new(),
            dialling: Vec::new(),
            options,
            phase: Phase::Running,
            peer_ended: false,
            stood: false,
            failed: false,
        }
    }

    pub(super) fn is_established(&self) -> bool {
        self.session.is_established()
    }

    /// When it wants a turn if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let dialling = self.dialling.iter().map(|dialling| dialling.again);
        let linger = match self.phase {
            Phase::Flushing(deadline) | Phase::Lingering(deadline) => Some(deadline),
            Phase::Running | Phase::Gone => None,
        };
        let unread = self.legacy.full_since().map(|since| self.unread_limit(since));
        let legacy = self.legacy.deadline().into_iter().chain(unread);
        self.session.poll_timeout().into_iter().chain(legacy).chain(dialling).chain(linger).min()
    }

    /// How long a peer may leave legacy answers unread, where they keep the link from being read.
    fn unread_limit(&self, since: Instant) -> Instant {
        later(since, self.options.config.silence_limit)
    }

    pub(super) fn on_link_event(&mut self, readable: bool, writable: bool) {
        self.link.on_event(readable, writable);
    }

    /// A source of the stream's handler is ready for something.
    pub(super) fn on_stream_event(&mut self, cx: &mut Context<'_>, id: StreamId, event: &mio::event::Event) {
        let channel = self.channels.get_mut(&id).filter(|channel| channel.is_open);
        if channel.is_some_and(|channel| channel.is_receiving() && channel.handler.is_broken(event)) {
            self.stop(id);
        }
        self.on_ready(cx, id, event.is_writable());
    }

    /// The stream's handler asks to be asked again.
    pub(super) fn on_wake(&mut self, cx: &mut Context<'_>, id: StreamId) {
        self.on_ready(cx, id, true);
    }

    /// The same of a legacy stream's handler, by an event or because it asks.
    pub(super) fn on_legacy(&mut self, cx: &mut Context<'_>, id: LegacyId, event: Option<&mio::event::Event>) {
        self.legacy.on_ready(cx, self.link.peer(), id, event);
    }

    /// A daemon of ours answers a call.
    pub(super) fn answer(&mut self, cx: &mut Context<'_>, call: IncomingId, answer: Answer) {
        self.legacy.answer(cx, call, answer);
    }

    /// A daemon of ours tells its client of an event.
    pub(super) fn message(&mut self, procedure: ProcedureId, body: &[u8]) {
        self.legacy.message(procedure, body);
    }

    /// A client of ours calls.
    pub(super) fn call(&mut self, now: Instant, call: OutgoingCall) {
        self.legacy.call(now, call);
    }

    fn on_ready(&mut self, cx: &mut Context<'_>, id: StreamId, writable: bool) {
        if let Some(stream) = self.session.stream(id) {
            stream.ready();
        }
        if writable && let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.is_open) {
            let flushed = channel.flush();
            self.on_delivered(cx, id, flushed);
        }
    }

    /// Reads, answers and writes what there is, up to a budget.
    pub(super) fn turn(&mut self, cx: &mut Context<'_>) -> Turn {
        let received = self.receive(cx);
        self.on_time(cx.now);
        self.legacy.on_time(cx, self.link.peer());
        self.on_events(cx);
        self.dial_again(cx);
        let sent = self.transmit(cx);
        self.end_with_daemon();
        self.on_events(cx);
        self.end_if_finished(cx.now);
        match self.phase {
            Phase::Gone => Turn::Gone,
            _ if sent || received && self.is_reading() => Turn::Again,
            _ => Turn::Wait,
        }
    }

    fn on_time(&mut self, now: Instant) {
        if self.legacy.full_since().is_some_and(|since| self.unread_limit(since) <= now) {
            self.on_link_end("a legacy client calls on without reading the answers");
            return;
        }
        if !self.is_reading() {
            // What the peer sends is not read, so it cannot be called silent.
            self.session.handle_heard(now);
        }
        if self.session.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.session.handle_timeout(now);
        }
    }

    /// Lets it end by agreement.
    pub(super) fn close(&mut self) {
        self.session.close();
    }

    /// Ends it at once.
    pub(super) fn shutdown(&mut self, reason: &str) {
        self.session.shutdown(reason);
    }

    /// Opens a stream of our own side.
    pub(super) fn open(&mut self, cx: &mut Context<'_>, open: Open, opened: Opened) {
        match self.session.open(cx.now, open) {
            Ok(id) => self.add_channel(cx, id, opened),
            Err(error) => opened.refuse(cx.registry, cx.report, self.key, error),
        }
    }

    /// Ends a stream by our user's word.
    pub(super) fn reset(&mut self, cx: &mut Context<'_>, key: StreamKey, error: RemoteError) {
        let id = self.channels.iter().find(|(_, channel)| channel.key == key).map(|(id, _)| *id);
        if let Some(id) = id {
            self.reset_stream(cx, id, error);
        }
    }

    fn add_channel(&mut self, cx: &mut Context<'_>, id: StreamId, opened: Opened) {
        let token = cx.tokens.add(Place::Stream(self.key, id));
        self.channels.insert(id, Channel::new(opened, token));
    }

    /// Whether the link is to be read. It always is, but where legacy packets have no place to go.
    fn is_reading(&self) -> bool {
        self.legacy.full_since().is_none() && !self.front.as_ref().is_some_and(Front::is_full)
    }

    /// True when it stopped at its budget.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let mut budget = TURN;
        while budget > 0 && self.is_reading() {
            // Taken out for the call: what is read is borrowed from it while the context is lent on.
            let scratch = std::mem::take(&mut cx.scratch);
            let received = self.link.read(scratch);
            let more = match received {
                Ok(Received::Bytes(len)) => {
                    budget = budget.saturating_sub(len);
                    self.on_bytes(cx, &scratch[..len]);
                    true
                }
                Ok(Received::Nothing) => false,
                Ok(Received::End) => {
                    cx.scratch = scratch;
                    let cut = if self.decoder.at_boundary() { "" } else { " in the middle of a packet" };
                    self.on_peer_end(cx, &format!("the peer closed the connection{cut}"));
                    return false;
                }
                Err(error) => {
                    self.on_link_end(&error.to_string());
                    false
                }
            };
            cx.scratch = scratch;
            if !more {
                return false;
            }
        }
        self.link.is_readable()
    }

    fn on_link_end(&mut self, reason: &str) {
        self.session.handle_link_lost(reason);
        self.phase = Phase::Gone;
    }

    /// The peer sends no more; what its last packets are owed may still reach it.
    fn on_peer_end(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.peer_ended = true;
        if let Some(front) = self.front.as_mut().filter(|_| !self.stood) {
            // The daemon's last words still go to the client; the link ends with the daemon's connection.
            let finished = front.finish();
            self.on_daemon(finished);
            return;
        }
        self.transmit(cx);
        match self.decoder.at_boundary() {
            // What a session that is closed still owes is sent all the same.
            _ if self.session.is_closed() => {}
            true => self.session.handle_link_ended(reason),
            false => self.session.handle_link_lost(reason),
        }
        if self.is_flushed() {
            self.phase = Phase::Gone;
        }
    }

    /// Whether all is out that was owed.
    fn is_flushed(&self) -> bool {
        let daemons = self.front.as_ref().is_none_or(Front::is_empty);
        let legacy = if self.failed { self.is_between_packets() } else { daemons && self.legacy.is_empty() };
        legacy && self.session.is_finished() && !self.link.is_writing()
    }

    fn on_bytes(&mut self, cx: &mut Context<'_>, mut input: &[u8]) {
        self.session.handle_heard(cx.now);
        let (read, mut passing) = (input, Passing::default());
        while !self.session.is_closed() {
            let before = input.len();
            match self.decoder.decode(&mut input) {
                Ok(Some(piece)) if self.is_passed_on(&piece) => {
                    let begun_before = passing.add(&piece, before - input.len(), read.len() - input.len());
                    begun_before.into_iter().for_each(|header| self.pass_on(cx, &header));
                }
                Ok(Some(piece)) => {
                    self.pass_on(cx, passing.take(read));
                    // The session keeps its error and gives it as an event.
                    let _ = self.on_piece(cx, piece);
                    self.on_events(cx);
                }
                Ok(None) => break,
                Err(error) => {
                    self.session.handle_framing_error(error);
                }
            }
        }
        self.pass_on(cx, passing.take(read));
    }

    fn is_passed_on(&mut self, piece: &Piece<'_>) -> bool {
        if let Piece::Header { header, .. } = piece {
            self.ours = self.session.owns(header);
        }
        !self.ours && self.options.daemon.is_some()
    }

    /// Bytes of the client's for the daemon behind us.
    fn pass_on(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        if bytes.is_empty() || self.phase == Phase::Gone {
            return;
        }
        let passed = self.front(cx).and_then(|front| front.write(bytes));
        self.on_daemon(passed);
    }

    /// What came of dealing with the daemon behind us. Without it the client's link has no purpose; a BiStream peer is told.
    fn on_daemon(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        let reason = format!("the daemon behind this address: {error}");
        if let Some(front) = &mut self.front {
            front.break_off();
        }
        if self.stood {
            self.session.shutdown(&reason);
        } else {
            self.on_link_end(&reason);
        }
    }

    fn front(&mut self, cx: &mut Context<'_>) -> io::Result<&mut Front> {
        let front = match (self.front.take(), &self.options.daemon) {
            (Some(front), _) => front,
            (None, Some(path)) => {
                let token = cx.tokens.add(Place::Daemon(self.key));
                Front::connect(path, cx.registry, token).inspect_err(|_| cx.tokens.remove(token))?
            }
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(self.front.insert(front))
    }

    /// The socket to the daemon behind us is ready.
    pub(super) fn on_daemon_event(&mut self, readable: bool, writable: bool) {
        let result = self.front.as_mut().map_or(Ok(()), |front| front.on_event(readable, writable));
        self.on_daemon(result);
    }

    /// Where the daemon behind us has ended its connection, the client's ends, too: what it waits for will not come.
    fn end_with_daemon(&mut self) {
        if !self.session.is_closed() && self.front.as_ref().is_some_and(Front::is_over) {
            if self.stood {
                self.session.shutdown("the daemon behind this address closed its connection");
            } else {
                self.session.close();
            }
        }
    }

    fn on_piece(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), SessionError> {
        match piece {
            Piece::Header { header, payload_len } => {
                self.ours = self.session.owns(&header);
                if self.ours {
                    self.session.handle_header(cx.now, &header, payload_len)?;
                } else {
                    let taken = self.legacy.on_header(cx, self.link.peer(), &header, payload_len);
                    self.on_legacy_taken(taken);
                }
            }
            Piece::Payload { bytes, remaining } if self.ours => {
                if let Some(data) = self.session.handle_payload(cx.now, bytes, remaining)?
                    && let Some(channel) = self.channels.get_mut(&data.id)
                {
                    let delivered = channel.deliver(data.bytes);
                    self.on_delivered(cx, data.id, delivered);
                }
            }
            Piece::Payload { bytes, remaining } => {
                let taken = self.legacy.on_payload(cx, self.link.peer(), bytes, remaining);
                self.on_legacy_taken(taken);
            }
        }
        Ok(())
    }

    /// What libvirt, too, closes a link for.
    fn on_legacy_taken(&mut self, taken: Result<(), LinkError>) {
        if let Err(error) = taken {
            self.on_link_end(&error.to_string());
        }
    }

    /// What came of handing bytes, or the end of them, to a handler.
    fn on_delivered(&mut self, cx: &mut Context<'_>, id: StreamId, delivered: io::Result<u64>) {
        match delivered {
            Ok(bytes) => {
                if let Some(stream) = self.session.stream(id) {
                    let counted = stream.consumed(bytes);
                    debug_assert!(counted.is_ok(), "delivered more than came");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.stop(id),
            Err(error) => self.fail(cx, id, &error),
        }
    }

    /// Nobody takes the peer's bytes any more; our direction goes on.
    fn stop(&mut self, id: StreamId) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.stop_receiving();
        }
        if let Some(stream) = self.session.stream(id) {
            let _ = stream.stop();
        }
    }

    /// The handler failed: both ends hear of it.
    fn fail(&mut self, cx: &mut Context<'_>, id: StreamId, error: &io::Error) {
        let target = self.channels.get(&id).map_or("", |channel| channel.target.as_str());
        let remote = RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, format!("`{target}`: {error}"))
            .with_ints(error.raw_os_error().unwrap_or_default(), 0);
        self.reset_stream(cx, id, remote);
    }

    fn reset_stream(&mut self, cx: &mut Context<'_>, id: StreamId, error: RemoteError) {
        // One that has ended has its cause already, in an event that is still to be taken.
        let Some(stream) = self.session.stream(id) else { return };
        let stats = stream.stats();
        stream.reset(error.clone());
        self.end_channel(cx, id, Err(StreamError::Local(Box::new(error))), stats);
    }

    fn on_events(&mut self, cx: &mut Context<'_>) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Established { version, limits, .. } => {
                    self.stood = true;
                    (cx.report)(Report::Established { session: self.key, version, limits });
                }
                Event::Legacy(error) => {
                    (cx.report)(Report::Legacy { session: self.key, error });
                    if !self.options.keep_legacy {
                        self.session.close();
                    }
                }
                Event::Incoming { id, request } => self.on_incoming(cx, id, request),
                Event::Accepted(id) => self.attach(cx, id),
                Event::Finished(id) => {
                    if let Some(channel) = self.channels.get_mut(&id) {
                        let finished = channel.peer_finished().map(|()| 0);
                        self.on_delivered(cx, id, finished);
                    }
                }
                Event::Stopped(id) => {
                    if let Some(channel) = self.channels.get_mut(&id) {
                        channel.handler.stop();
                    }
                }
                Event::Failed { id, error, stats } => {
                    self.dialling.retain(|dialling| dialling.id != id);
                    self.end_channel(cx, id, Err(error), stats);
                }
                Event::Over { id, stats } => self.end_channel(cx, id, Ok(()), stats),
                Event::Draining => (cx.report)(Report::Draining { session: self.key }),
                Event::Closed(cause) => {
                    self.failed = cause.is_err();
                    let cause = cause.or_else(|error| if self.is_legacy_end(&error) { Ok(()) } else { Err(error) });
                    (cx.report)(Report::SessionEnded { session: self.key, cause });
                }
            }
        }
    }

    /// A client of libvirt's RPC that never says HELLO goes when it has had its answers, as it always did.
    fn is_legacy_end(&self, error: &SessionError) -> bool {
        let has_ended = matches!(error, SessionError::LinkLost(_)) && self.peer_ended && self.decoder.at_boundary();
        has_ended && (self.legacy.is_called || self.front.is_some()) && !self.stood
    }

    fn on_incoming(&mut self, cx: &mut Context<'_>, id: StreamId, request: Open) {
        let deadline = later(cx.now, self.options.dial_timeout);
        let key = StreamKey(cx.handle.next_key());
        self.dial(cx, Dialling { id, key, request, again: cx.now, deadline });
    }

    fn dial(&mut self, cx: &mut Context<'_>, dialling: Dialling) {
        let Dialling { id, key, request, deadline, .. } = dialling;
        let asked = Request {
            session: self.key,
            peer: self.link.peer(),
            target: &request.target,
            kind: request.kind,
            priority: request.priority,
            extensions: &request.extensions,
        };
        match self.options.targets.open(&asked) {
            Decision::Accept(handler) => {
                self.add_channel(cx, id, Opened { key, target: request.target, handler });
                self.attach(cx, id);
            }
            Decision::Refuse(error) => self.refuse(cx, id, key, request.target, error),
            Decision::RetryAfter(_) if cx.now >= deadline => {
                let text = format!("target `{}` took no connection in time", request.target);
                let error = RemoteError::new(codes::OPERATION_TIMEOUT, domains::STREAMS, text);
                self.refuse(cx, id, key, request.target, error);
            }
            Decision::RetryAfter(wait) => {
                let again = later(cx.now, wait.max(SHORTEST_RETRY)).min(deadline);
                self.dialling.push(Dialling { id, key, request, again, deadline });
            }
        }
    }

    fn dial_again(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        for dialling in self.dialling.extract_if(.., |dialling| dialling.again <= now).collect::<Vec<_>>() {
            self.dial(cx, dialling);
        }
    }

    fn refuse(&mut self, cx: &mut Context<'_>, id: StreamId, key: StreamKey, target: String, error: RemoteError) {
        (cx.report)(Report::StreamRefused { session: self.key, stream: key, target, reason: error.to_string() });
        if let Some(stream) = self.session.stream(id) {
            let _ = stream.refuse(error);
        }
    }

    /// Connects a stream that stands with its handler.
    fn attach(&mut self, cx: &mut Context<'_>, id: StreamId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let waker = Waker::new(cx.handle, Place::Stream(self.key, id));
        let attached = channel.handler.attach(&Attachment { registry: cx.registry, token: channel.token, waker });
        if let Err(error) = attached {
            self.fail(cx, id, &error);
            return;
        }
        channel.is_open = true;
        let (stream, target) = (channel.key, channel.target.clone());
        (cx.report)(Report::StreamOpened { session: self.key, stream, id, target });
        if let Some(stream) = self.session.stream(id) {
            // Of our own streams nothing is left to accept.
            let _ = stream.accept();
        }
        if let Some(stream) = self.session.stream(id) {
            stream.ready();
        }
    }

    fn end_channel(&mut self, cx: &mut Context<'_>, id: StreamId, cause: Result<(), StreamError>, stats: StreamStats) {
        let Some(mut channel) = self.channels.remove(&id) else { return };
        cx.tokens.remove(channel.token);
        channel.handler.detach(cx.registry);
        if let Err(error) = &cause {
            channel.handler.reset(error);
        }
        let (session, stream, target) = (self.key, channel.key, channel.target);
        (cx.report)(match cause {
            Err(error) if !channel.is_open => {
                Report::StreamRefused { session, stream, target, reason: error.to_string() }
            }
            cause => Report::StreamEnded { session, stream, id, target, cause, stats },
        });
    }

    /// True when it stopped at its budget.
    fn transmit(&mut self, cx: &mut Context<'_>) -> bool {
        if matches!(self.phase, Phase::Lingering(_) | Phase::Gone) {
            return false;
        }
        let mut budget = TURN;
        while self.link.can_write() {
            let buffer = if self.link.is_writing() {
                None
            } else {
                if budget == 0 {
                    return true;
                }
                let mut buffer = cx.pool.take();
                self.fill(cx, &mut buffer);
                if buffer.filled().is_empty() {
                    cx.pool.give(buffer);
                    return false;
                }
                Some(buffer)
            };
            match self.link.write(buffer, cx.pool) {
                Ok(written) => {
                    budget = budget.saturating_sub(written);
                    if written > 0 {
                        self.legacy.on_progress(cx.now);
                    }
                }
                Err(error) => {
                    self.on_link_end(&error.to_string());
                    return false;
                }
            }
        }
        false
    }

    /// Encodes what is owed, then what streams have to send, as far as the buffer reaches.
    fn fill(&mut self, cx: &mut Context<'_>, buffer: &mut super::pool::Buffer) {
        loop {
            let before = buffer.filled().len();
            if self.is_between_packets() {
                let len = self.session.poll_control(cx.now, buffer.spare());
                buffer.extend(len);
            }
            let budget = if self.failed { 0 } else { LEGACY_TURN };
            let polled = match &mut self.front {
                Some(front) => front.poll(buffer.spare(), cx.scratch, self.stood, budget),
                None => Ok(self.legacy.poll_packets(cx.now, buffer.spare(), budget)),
            };
            match polled {
                Ok(len) => buffer.extend(len),
                Err(error) => return self.on_daemon(Err(error)),
            }
            let is_full = buffer.spare().len() < CONTROL_MAX.max(HEADER_LEN + LEAST_ROOM);
            if is_full || !self.is_between_packets() {
                return;
            }
            let sends = !self.session.is_closed() && self.fill_next(cx, buffer);
            if !sends && buffer.filled().len() == before {
                return;
            }
        }
    }

    /// Whether BiStream's packets may follow what is out.
    fn is_between_packets(&self) -> bool {
        self.legacy.is_between_packets() && self.front.as_ref().is_none_or(Front::is_between_packets)
    }

    /// One packet of data, of BiStream and legacy streams by turns; false when nobody has any.
    fn fill_next(&mut self, cx: &mut Context<'_>, buffer: &mut super::pool::Buffer) -> bool {
        let grant = if self.legacy_next { None } else { self.session.poll_grant() };
        if grant.is_none()
            && let Some(len) = self.legacy.poll_data(cx, self.link.peer(), buffer.spare())
        {
            buffer.extend(len);
            self.legacy_next = false;
            return true;
        }
        let Some(grant) = grant.or_else(|| self.session.poll_grant()) else { return false };
        self.fill_data(cx, grant, buffer);
        self.legacy_next = true;
        true
    }

    fn fill_data(&mut self, cx: &mut Context<'_>, grant: Grant, buffer: &mut super::pool::Buffer) {
        let Some(channel) = self.channels.get_mut(&grant.id) else {
            self.session.stream(grant.id).into_iter().for_each(crate::proto::StreamMut::blocked);
            return;
        };
        // The payload is read to where it will be sent from, its header goes in front: one write, no copy.
        let room = buffer.spare();
        let max = grant.max.min(room.len() - HEADER_LEN);
        let read = channel.handler.read(&mut room[HEADER_LEN..HEADER_LEN + max]);
        let Some(stream) = self.session.stream(grant.id) else { return };
        match read {
            Ok(0) => {
                let _ = stream.finish();
            }
            Ok(len) if len > max => {
                self.fail(cx, grant.id, &io::Error::other("its handler claims to have read more than there was room"));
            }
            Ok(len) => match stream.send(len) {
                Ok(header) => {
                    room[..HEADER_LEN].copy_from_slice(&header);
                    buffer.extend(HEADER_LEN + len);
                }
                Err(misuse) => self.fail(cx, grant.id, &io::Error::other(misuse)),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.blocked(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.fail(cx, grant.id, &error),
        }
    }

    /// Once the session is over: get its last packet out, shut our side, wait for the peer's.
    fn end_if_finished(&mut self, now: Instant) {
        if self.phase == Phase::Running && self.session.is_closed() {
            self.phase = Phase::Flushing(now + LINGER);
        }
        match self.phase {
            Phase::Flushing(deadline) | Phase::Lingering(deadline) if deadline <= now => self.phase = Phase::Gone,
            Phase::Flushing(deadline) if self.is_flushed() => {
                self.link.shutdown_write();
                self.phase = if self.peer_ended { Phase::Gone } else { Phase::Lingering(deadline) };
            }
            _ => {}
        }
    }

    /// Takes it apart; its session has ended.
    pub(super) fn dispose(mut self, cx: &mut Context<'_>) {
        self.legacy.end(cx);
        if let Some(front) = self.front.take() {
            cx.tokens.remove(front.token);
            front.close(cx.registry);
        }
        cx.tokens.remove(self.link.token);
        self.link.close(cx.registry, cx.pool);
    }
}
