//! One session on its link: what the link brings goes to the session, what the session decides to handlers, and what is
//! owed onto the link.

mod receive;
mod streams;
mod transmit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mio::Registry;

use super::access::{Caller, Permit};
use super::call::Answer;
use super::channel::{Behind, Channel};
use super::counters::add;
use super::front::{Following, Front};
use super::handle::{Handle, OutgoingCall, SessionKey, SessionOptions, StreamKey};
use super::legacy::Legacy;
use super::link::Link;
use super::places::Place as Seat;
use super::pool::Pool;
use super::report::Report;
use super::status::{SessionStatus, StreamStatus};
use super::tokens::Tokens;
use crate::proto::{Config, Event, LONGEST, RefusedOpens, Session, SessionError, Side, StreamId};
use crate::rpc::{IncomingId, LegacyId, ProcedureId};
use crate::wire::{Decoder, Extension, Open, PACKET_MAX};

/// Bytes read from a link, or written to it, before others have their turn.
const TURN: usize = 1 << 20;

/// How often refused OPENs are told of.
const REFUSED_TOLD: Duration = Duration::from_secs(1);

/// How long a link outlives its session, so that the peer gets our last packet before the socket is closed.
const LINGER: Duration = Duration::from_secs(2);

/// Where HELLO may take for ever, how long a TLS handshake may, and who may not reach the daemon behind us.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// By when the link must be open, and how long it had; `None` once it is.
    handshake: Option<(Instant, Duration)>,
    decoder: Decoder,
    /// The packet whose payload arrives is the session's.
    ours: bool,
    legacy: Legacy,
    /// Who gets legacy packets instead of `legacy`, once one has come.
    front: Option<Front>,
    /// Descriptors that are to come behind a packet for it.
    following: Following,
    /// A legacy stream sends next, if one can.
    legacy_next: bool,
    channels: BTreeMap<StreamId, Channel>,
    behind: Behind<StreamId>,
    dialling: Vec<Dialling>,
    options: SessionOptions,
    phase: Phase,
    /// The peer's side of the link has ended.
    peer_ended: bool,
    /// HELLO stood once.
    stood: bool,
    /// The version in force, since then.
    version: Option<u32>,
    /// Bytes that the link has taken, and given.
    sent: u64,
    received: u64,
    /// Of the OPENs that the session refused by its limits, those that are counted.
    refused_opens: RefusedOpens,
    /// How many since that was told, and when it was.
    refused_untold: u64,
    refused_told: Option<Instant>,
    /// Since when what is on its way out waits for the link to take some of it.
    unread_since: Option<Instant>,
    /// Where the daemon behind us takes so little that the link of a session is not read: since when it took nothing at all, and how often it
    /// had taken something before.
    daemon_full_since: Option<(Instant, u64)>,
    /// Until when the limit of all sessions holds up what could be sent.
    limited_until: Option<Instant>,
    /// It is to be closed when libvirt's calls and streams are over.
    close_due: bool,
    /// The session ended with a cause: CLOSE is the last packet.
    failed: bool,
    /// Whether the peer may go to the daemon behind us was asked.
    daemon_judged: bool,
    /// Its place among those who connected to our listeners.
    seat: Option<Seat>,
    /// Held until its session ends: for that, and for the daemon.
    permits: [Permit; 2],
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
    pub(super) fn new(
        key: SessionKey,
        side: Side,
        mut link: Link,
        seat: Option<Seat>,
        options: SessionOptions,
        now: Instant,
    ) -> Self {
        if options.daemon.is_some() {
            link.keep_descriptors();
        }
        let config = Config { judge_hello: options.access.is_some(), ..options.config.clone() };
        let session = match side {
            Side::Connecting => Session::connect(config, now),
            Side::Accepting => Session::accept(config, now),
        };
        let patience = options.config.hello_timeout.unwrap_or(PATIENCE);
        Self {
            key,
            session,
            handshake: (!link.is_open()).then(|| (later(now, patience), patience)),
            link,
            decoder: Decoder::new(PACKET_MAX),
            ours: false,
            legacy: Legacy::new(key, side, &options),
            front: None,
            following: Following::default(),
            legacy_next: false,
            channels: BTreeMap::new(),
            behind: Behind::default(),
            dialling: Vec::new(),
            options,
            phase: Phase::Running,
            peer_ended: false,
            stood: false,
            version: None,
            sent: 0,
            received: 0,
            refused_opens: RefusedOpens::default(),
            refused_untold: 0,
            refused_told: None,
            unread_since: None,
            daemon_full_since: None,
            limited_until: None,
            close_due: false,
            failed: false,
            daemon_judged: false,
            seat,
            permits: [None, None],
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
        let full = self.legacy.full_since().into_iter().chain(self.daemon_full_since.map(|(since, _)| since));
        let legacy = self.legacy.deadline().into_iter().chain(full.map(|since| self.unread_limit(since)));
        self.session
            .poll_timeout()
            .into_iter()
            .chain(self.limited_until)
            .chain(self.unread_since.map(|since| self.unread_limit(since)))
            .chain(legacy)
            .chain(dialling)
            .chain(linger)
            .chain(self.handshake.map(|(deadline, _)| deadline))
            .min()
    }

    /// How long a peer may leave unread what waits for it, and legacy answers that keep the link from being read.
    fn unread_limit(&self, since: Instant) -> Instant {
        later(since, self.options.config.silence_limit)
    }

    pub(super) fn on_link_event(&mut self, readable: bool, writable: bool) {
        self.link.on_event(readable, writable);
    }

    /// The same of a legacy stream's handler, by an event or because it asks.
    pub(super) fn on_legacy(&mut self, cx: &mut Context<'_>, id: LegacyId, event: Option<&mio::event::Event>) {
        self.legacy.on_ready(cx, &self.link, id, event);
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
    pub(super) fn call(&mut self, cx: &mut Context<'_>, call: OutgoingCall) {
        self.legacy.call(cx, call);
    }

    /// Reads, answers and writes what there is, up to a budget.
    pub(super) fn turn(&mut self, cx: &mut Context<'_>) -> Turn {
        let was_closed = self.session.is_closed();
        self.limited_until = None;
        let received = self.receive(cx);
        self.catch_up(cx);
        self.legacy.catch_up(cx, &self.link);
        self.on_time(cx.now);
        self.legacy.on_time(cx, &self.link);
        self.on_events(cx);
        self.dial_again(cx);
        let sent = self.transmit(cx) | self.end_with_daemon() | self.close_if_idle();
        self.end_after_peer();
        self.on_events(cx);
        self.end_if_finished(cx.now);
        self.count_refused(cx);
        // What it says last may have come up behind all that was sent.
        let sent = sent || !was_closed && self.session.is_closed() && !self.session.is_finished();
        match self.phase {
            Phase::Gone => Turn::Gone,
            _ if sent || !self.behind.is_empty() || self.legacy.is_behind() || received && self.is_reading() => {
                Turn::Again
            }
            _ => Turn::Wait,
        }
    }

    /// What it is and does, and its streams that stand.
    pub(super) fn status(&mut self, now: Instant) -> SessionStatus {
        let streams = self.channels.iter().filter(|(_, channel)| channel.is_open()).filter_map(|(id, channel)| {
            let stream = self.session.stream(*id)?;
            Some(StreamStatus {
                stream: channel.key,
                id: *id,
                target: channel.target.clone(),
                priority: stream.priority(),
                stats: stream.stats(),
                stalled: channel.stalled.until(now),
                credit: stream.credit(),
                window: stream.window(),
            })
        });
        let streams = streams.collect();
        SessionStatus {
            session: self.key,
            peer: self.link.peer().to_owned(),
            identity: self.link.identity().clone(),
            version: self.version,
            round_trip: self.session.round_trip(),
            sent: self.sent,
            received: self.received,
            streams,
        }
    }

    fn count_refused(&mut self, cx: &mut Context<'_>) {
        let now = self.session.refused_opens();
        let before = std::mem::replace(&mut self.refused_opens, now);
        if now != before {
            let tally = &cx.handle.shared.tally;
            for (counter, more) in [
                (&tally.opens_over_rate, now.over_rate - before.over_rate),
                (&tally.opens_over_streams, now.over_streams - before.over_streams),
                (&tally.opens_over_memory, now.over_memory - before.over_memory),
            ] {
                add(counter, more);
                self.refused_untold += more;
            }
        }
        // A flood of OPENs is none of lines.
        let is_time = |told: Instant| cx.now.saturating_duration_since(told) >= REFUSED_TOLD;
        if self.refused_untold > 0 && self.refused_told.is_none_or(is_time) {
            self.refused_told = Some(cx.now);
            let count = std::mem::take(&mut self.refused_untold);
            (cx.report)(Report::OpensRefused { session: self.key, count });
        }
    }

    fn on_time(&mut self, now: Instant) {
        if let Some((_, patience)) = self.handshake.filter(|(deadline, _)| *deadline <= now) {
            self.on_link_end(&format!("the TLS handshake was not over within {} s", patience.as_secs_f32()));
            return;
        }
        if self.legacy.full_since().is_some_and(|since| self.unread_limit(since) <= now) {
            self.on_link_end("a legacy client calls on without reading the answers");
            return;
        }
        // Not where it has taken something since: we may have stood still ourselves.
        let is_stuck = |before| self.front.as_ref().is_some_and(|front| front.is_full() && front.takes() == before);
        if self.daemon_full_since.is_some_and(|(since, before)| self.unread_limit(since) <= now && is_stuck(before)) {
            self.on_link_end("the daemon behind this address takes nothing");
            return;
        }
        let unread = self.unread_since.filter(|since| self.unread_limit(*since) <= now);
        // Not before the link was tried once more: we may have stood still ourselves.
        if unread.is_some() && !self.link.can_write() {
            self.session.handle_unread(self.options.config.silence_limit);
        }
        if !self.is_reading() {
            // What the peer sends is not read, so it cannot be called silent.
            self.session.handle_heard(now);
        }
        if self.session.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.session.handle_timeout(now);
        }
    }

    /// Lets it end by agreement, once libvirt's calls and streams on the link are over.
    pub(super) fn close(&mut self) {
        self.close_due = true;
        self.legacy.offer.is_closing = true;
        self.close_if_idle();
    }

    /// True when it closes now, and there is something to be said of it.
    fn close_if_idle(&mut self) -> bool {
        let closes = self.close_due && self.legacy.is_idle();
        if closes {
            self.close_due = false;
            self.session.close();
        }
        closes
    }

    /// Limits the data that it sends.
    pub(super) fn set_limit(&mut self, now: Instant, rate: Option<u64>) {
        self.session.set_limit(now, rate);
    }

    /// Ends it at once.
    pub(super) fn shutdown(&mut self, reason: &str) {
        self.session.shutdown(reason);
    }

    /// The link is open: from now on the session may use it.
    fn on_secured(&mut self, cx: &mut Context<'_>) {
        self.handshake = None;
        self.link.learn_identity();
        if let Some(version) = self.link.security() {
            let identity = self.link.identity().clone();
            (cx.report)(Report::LinkSecured { session: self.key, version, identity });
        }
    }

    fn on_link_end(&mut self, reason: &str) {
        match self.handshake.take() {
            Some(_) => self.session.handle_handshake_failed(reason),
            None => self.session.handle_link_lost(reason),
        }
        self.phase = Phase::Gone;
    }

    /// The socket to the daemon behind us is ready.
    pub(super) fn on_daemon_event(&mut self, readable: bool, writable: bool) {
        let result = self.front.as_mut().map_or(Ok(()), |front| front.on_event(readable, writable));
        self.on_daemon(result);
    }

    /// Where the daemon behind us has ended its connection, the client's ends, too: what it waits for will not come.
    /// True when that has happened, and there is something to be said of it.
    fn end_with_daemon(&mut self) -> bool {
        let ends = !self.session.is_closed() && self.front.as_ref().is_some_and(Front::is_over);
        if ends {
            if self.stood {
                self.session.shutdown("the daemon behind this address closed its connection");
            } else {
                self.session.close();
            }
        }
        ends
    }

    fn on_events(&mut self, cx: &mut Context<'_>) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Hello { extensions } => self.judge_hello(cx.now, &extensions),
                Event::Established { version, limits, .. } => {
                    self.stood = true;
                    self.version = Some(version);
                    self.seat.iter_mut().for_each(Seat::stand);
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
                    // Not with the link, which waits for the peer to read its last packet.
                    self.permits = [None, None];
                    (cx.report)(Report::SessionEnded { session: self.key, cause });
                }
            }
        }
    }

    fn judge_hello(&mut self, now: Instant, extensions: &[Extension]) {
        let Some(access) = &self.options.access else { return };
        match access.admit(&self.caller(extensions)) {
            Ok(admission) => {
                self.options.targets = admission.targets;
                self.permits[0] = admission.permit;
                if admission.bandwidth.is_some() {
                    self.session.set_limit(now, admission.bandwidth);
                    self.session.set_receive_limit(now, admission.bandwidth);
                }
                self.session.admit(admission.max_streams);
            }
            Err(error) => self.session.deny(error),
        }
    }

    fn caller<'a>(&'a self, extensions: &'a [Extension]) -> Caller<'a> {
        Caller { session: self.key, peer: self.link.peer(), identity: self.link.identity(), extensions }
    }

    /// A client of libvirt's RPC that never says HELLO goes when it has had its answers, as it always did.
    fn is_legacy_end(&self, error: &SessionError) -> bool {
        let has_ended = matches!(error, SessionError::LinkLost(_)) && self.peer_ended && self.decoder.at_boundary();
        has_ended && (self.legacy.is_called || self.front.is_some()) && !self.stood
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
        self.legacy.end(cx, &self.link);
        if let Some(front) = self.front.take() {
            cx.tokens.remove(front.token);
            front.close(cx.registry);
        }
        cx.tokens.remove(self.link.token);
        self.link.close(cx.registry, cx.pool);
    }
}
