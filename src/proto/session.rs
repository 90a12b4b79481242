use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::allowance::Allowance;
use super::config::{Config, LONGEST};
use super::credit::Delivery;
use super::error::{Misuse, OpenError, SessionError, StreamError};
use super::event::Event;
use super::liveness::Liveness;
use super::memory::Share;
use super::rate::{Pace, TokenBucket, set_rate};
use super::receive::Incoming;
use super::schedule::Schedule;
use super::stream::{State as StreamState, Stream, StreamId, StreamMut, owed};
use super::transmit::Owed;
use crate::wire::{
    EXTENSION_LEN, EXTENSIONS_MAX, Extension, Header, Limits, Open, PRIORITY_MAX, ProgramId, RemoteError, Rule, close,
    codes, domains, is_valid_target,
};

/// One peer relationship: its streams, their credit, and what is owed to the peer.
///
/// A state machine without sockets, clocks or threads; the [module documentation](super) shows the loop that drives it.
#[derive(Debug)]
pub struct Session {
    pub(super) config: Config,
    pub(super) side: Side,
    pub(super) state: State,
    /// What the peer takes from us; nothing until HELLO stands.
    pub(super) peer: Limits,
    pub(super) streams: BTreeMap<u32, Stream>,
    next_id: Option<u32>,
    /// The highest id the peer has opened.
    pub(super) peer_last_id: u32,
    /// The peer said CLOSE 0: it answers our OPENs or ends the link.
    pub(super) peer_draining: bool,
    pub(super) open_ours: u32,
    pub(super) open_theirs: u32,
    pub(super) refusals: u32,
    /// Windows of all streams.
    pub(super) reserved: Share,
    /// Bytes that all streams together delivered.
    pub(super) delivered: u64,
    pub(super) delivery: Delivery,
    /// The window that a stream takes which has the link to itself.
    pub(super) link_window: u64,
    pub(super) owed: Owed,
    pub(super) schedule: Schedule,

    /// Of all data that we send.
    pub(super) limit: Option<TokenBucket>,
    /// Of all that the peer may send.
    pub(super) pace: Option<Pace>,
    /// Streams that wait for their own limit, and until when.
    pub(super) throttled: BTreeSet<(Instant, u32)>,
    /// The latest that we were told.
    pub(super) now: Instant,
    pub(super) incoming: Incoming,
    pub(super) liveness: Liveness,
    pub(super) opens: Allowance,
    pub(super) refused_opens: RefusedOpens,
    pub(super) idle_control: Allowance,
    /// Our OPENs in the order of their deadlines; those answered since are passed over.
    opening: VecDeque<(Instant, u32)>,
    hello_deadline: Option<Instant>,
    events: VecDeque<Event>,
}

/// OPENs of a peer's that were refused by limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedOpens {
    /// By [`Config::max_opens`].
    pub over_rate: u64,
    /// By [`Config::max_streams`].
    pub over_streams: u64,
    /// Since no window was left of [`Config::memory_budget`] or [`Config::session_memory`].
    pub over_memory: u64,
}

/// Which end of the link we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that says HELLO; its stream ids are odd.
    Connecting,
    /// The other; its stream ids are even.
    Accepting,
}

impl Side {
    pub(super) fn owns_id(self, id: u32) -> bool {
        id % 2 == u32::from(self == Side::Connecting)
    }
}

/// Where a session stands (docs/protocol.md, §3).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    AwaitingHello,
    /// It has come, under this serial, and our owner judges it.
    Judging(u32, Limits),
    HelloSent,
    Legacy,
    Established,
    /// CLOSE 0 was said, by us or the peer: no new streams.
    Draining,
    Closed(Result<(), SessionError>),
}

impl Session {
    /// The connecting side: owes the peer a HELLO.
    pub fn connect(config: Config, now: Instant) -> Self {
        let mut session = Self::new(config, Side::Connecting, now);
        session.state = State::HelloSent;
        session.owed.hello = true;
        session
    }

    /// The accepting side: sends nothing until the peer's HELLO has come.
    pub fn accept(config: Config, now: Instant) -> Self {
        Self::new(config, Side::Accepting, now)
    }

    fn new(config: Config, side: Side, now: Instant) -> Self {
        let config = config.in_range();
        Self {
            side,
            state: State::AwaitingHello,
            peer: Limits { max_data: 0, max_streams: 0 },
            streams: BTreeMap::new(),
            next_id: Some(if side == Side::Connecting { 1 } else { 2 }),
            peer_last_id: 0,
            peer_draining: false,
            open_ours: 0,
            open_theirs: 0,
            refusals: 0,
            reserved: Share::up_to(config.session_memory, config.memory_budget.clone()),
            delivered: 0,
            delivery: Delivery::default(),
            link_window: config.window,
            owed: Owed::default(),
            schedule: Schedule::default(),
            limit: None,
            pace: None,
            throttled: BTreeSet::new(),
            now,
            incoming: Incoming::default(),
            liveness: Liveness::new(now, config.ping_interval, config.silence_limit),
            opens: Allowance::new(now, config.max_opens),
            refused_opens: RefusedOpens::default(),
            idle_control: Allowance::new(now, config.max_idle_control),
            opening: VecDeque::new(),
            hello_deadline: config.hello_timeout.map(|timeout| now + timeout),
            events: VecDeque::new(),
            config,
        }
    }

    /// Whether a packet with this header is BiStream's. Others on the link are legacy RPC: keep them from the session.
    pub fn owns(&self, header: &Header) -> bool {
        self.config.program.owns(header)
    }

    /// What happened since; until `None`, after every `handle_…` and every change of a stream.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` wants to be called, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Closed(_) | State::Legacy => None,
            State::AwaitingHello | State::Judging(..) | State::HelloSent => self.hello_deadline,
            State::Established | State::Draining => {
                let opening = self.opening.front().map(|(deadline, _)| *deadline);
                let throttled = self.throttled.first().map(|(until, _)| *until);
                let limited = self.limited_until();
                let others = [opening, throttled, limited, self.withheld_until()].into_iter().flatten();
                others.chain([self.liveness.deadline()]).min()
            }
        }
    }

    /// Time has passed. Hand over what the link received first: it may be what was waited for.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        match self.state {
            State::Closed(_) | State::Legacy => {}
            State::AwaitingHello | State::Judging(..) | State::HelloSent => {
                if self.hello_deadline.is_some_and(|deadline| deadline <= now) {
                    self.end(Err(SessionError::HelloTimeout(self.config.hello_timeout.unwrap_or_default())), None);
                }
            }
            State::Established | State::Draining => {
                if self.liveness.is_silent(now) {
                    let error = SessionError::Silent(self.config.silence_limit);
                    self.end(Err(error), Some((close::SILENT, 0)));
                    return;
                }
                self.owed.ping |= self.liveness.is_ping_due(now);
                self.resume_throttled();
                self.expire_opening(now);
            }
        }
    }

    fn forget_answered(&mut self) {
        while let Some((_, id)) = self.opening.front()
            && !matches!(self.stream_state(*id), Some(StreamState::Opening(_)))
        {
            self.opening.pop_front();
        }
    }

    fn expire_opening(&mut self, now: Instant) {
        loop {
            self.forget_answered();
            match self.opening.front().copied() {
                Some((deadline, id)) if deadline <= now => {
                    let text = "OPEN was not answered in time";
                    let error = RemoteError::new(codes::OPERATION_TIMEOUT, domains::STREAMS, text);
                    self.fail(StreamId(id), error, StreamError::OpenTimeout(self.config.open_timeout));
                }
                _ => return,
            }
        }
    }

    /// The link broke, or was broken off; `reason` is how, in the words of whoever saw it.
    pub fn handle_link_lost(&mut self, reason: &str) {
        self.owed = Owed::default();
        self.end(Err(SessionError::LinkLost(reason.to_owned())), None);
    }

    /// The link ended, or was ended, before its transport let anything of the session through; `reason` is how.
    pub fn handle_handshake_failed(&mut self, reason: &str) {
        self.owed = Owed::default();
        self.end(Err(SessionError::Handshake(reason.to_owned())), None);
    }

    /// The link has taken nothing for so long, though something was to be sent: its peer does not read, whatever it sends.
    pub fn handle_unread(&mut self, waited: Duration) {
        self.owed = Owed::default();
        self.end(Err(SessionError::Unread(waited)), None);
    }

    /// The peer ended the link in order, behind a whole packet: that is a loss, unless it was to be expected.
    pub fn handle_link_ended(&mut self, reason: &str) {
        self.owed = Owed::default();
        // The peer had no stream left when it ended the link behind its CLOSE 0: our OPENs crossed that.
        let crossed = self.peer_draining
            && self
                .streams
                .values()
                .all(|stream| matches!(stream.state, StreamState::Opening(_)) || stream.has_failed());
        let cause = if crossed { Ok(()) } else { Err(SessionError::LinkLost(reason.to_owned())) };
        self.end(cause, None);
    }

    /// Asks the peer for a stream to `request.target`; `Event::Accepted` or `Event::Failed` follows.
    ///
    /// `request.window` is set to the first window of a stream, which is the configured one or more; what it says is not looked at.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was sent then.
    pub fn open(&mut self, now: Instant, mut request: Open) -> Result<StreamId, OpenError> {
        match self.state {
            State::Established => {}
            State::Draining => return Err(OpenError::Closing),
            _ => return Err(OpenError::NotEstablished),
        }
        if !is_valid_target(&request.target) {
            return Err(OpenError::TargetName);
        }
        let priority = u8::try_from(request.priority).ok().filter(|_| request.priority <= PRIORITY_MAX);
        let priority = priority.ok_or(OpenError::Priority)?;
        if !fit(&request.extensions) {
            return Err(OpenError::Extensions);
        }
        if self.open_ours >= self.peer.max_streams {
            return Err(OpenError::StreamLimit(self.peer.max_streams));
        }
        let id = self.next_id.ok_or(OpenError::IdsExhausted)?;
        let window = self.reserve_window().ok_or(OpenError::MemoryBudget)?;
        self.next_id = id.checked_add(2);
        self.open_ours += 1;
        self.forget_answered();
        request.window = window;
        let mut stream = Stream::new(StreamState::Opening(Some(Box::new(request))), true, priority, window);
        stream.owed = owed::OPEN;
        self.streams.insert(id, stream);
        self.opening.push_back((now + self.config.open_timeout, id));
        self.sync(id);
        Ok(StreamId(id))
    }

    /// The stream `id`, to act upon; `None` when it is over or never was.
    pub fn stream(&mut self, id: StreamId) -> Option<StreamMut<'_>> {
        self.streams.contains_key(&id.0).then_some(StreamMut { session: self, id })
    }

    /// Says that no new streams will be opened or taken; the session ends when those open are over.
    pub fn close(&mut self) {
        match self.state {
            State::Established => {
                self.state = State::Draining;
                self.owed.close = Some((close::DONE, 0, String::new()));
                self.end_if_drained();
            }
            State::Draining | State::Closed(_) => {}
            State::AwaitingHello | State::Judging(..) | State::HelloSent | State::Legacy => self.end(Ok(()), None),
        }
    }

    /// Ends the session at once, streams and all; `reason` is told to the peer.
    pub fn shutdown(&mut self, reason: &str) {
        self.end(Err(SessionError::Shutdown(reason.to_owned())), Some((close::SHUTDOWN, 0)));
    }

    /// HELLO may take so long from now on, where it has not come; `None` lets it take for ever. For a peer whose link has another use, too.
    pub fn set_hello_timeout(&mut self, now: Instant, timeout: Option<Duration>) {
        self.config.hello_timeout = timeout.map(|timeout| timeout.min(LONGEST));
        self.hello_deadline = self.config.hello_timeout.map(|timeout| now + timeout);
    }

    /// Limits the data that we send to so many payload bytes a second, all streams together; `None` lifts the limit.
    pub fn set_limit(&mut self, now: Instant, bytes_per_second: Option<u64>) {
        set_rate(&mut self.limit, now, bytes_per_second);
    }

    /// Limits the data that the peer may send to so many payload bytes a second, all streams together, by granting no more; `None` lifts the
    /// limit. What was granted before may still come, and what is granted counts whether it is used or not, the first window of a stream too: at most
    /// so many windows' worth of streams are accepted a second, and those beyond wait, as long as their opener has patience for its OPEN. What
    /// 100 ms bring may be granted at once. With 0 nothing is granted after the first.
    pub fn set_receive_limit(&mut self, now: Instant, bytes_per_second: Option<u64>) {
        let now = self.now.max(now);
        match (&mut self.pace, bytes_per_second) {
            (Some(pace), Some(rate)) => pace.set_rate(now, rate),
            (pace, rate) => *pace = rate.map(|rate| Pace::new(now, rate)),
        }
    }

    /// Whether streams can be opened.
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// Whether the session has ended, and nothing is left to be sent: the link can be closed.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Closed(_)) && self.owed.is_empty()
    }

    /// Whether the session has ended. Its last packet may still be owed: see [`Session::is_finished`].
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// Open streams, asked for or standing, of both sides.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Bytes: the windows of all streams, asked for or standing. The most that delivery can be behind.
    pub fn granted(&self) -> u64 {
        self.reserved.taken()
    }

    /// How many OPENs of the peer's were refused by limits so far.
    pub fn refused_opens(&self) -> RefusedOpens {
        self.refused_opens
    }

    /// The last round trip measured by PING.
    pub fn round_trip(&self) -> Option<Duration> {
        self.liveness.round_trip()
    }

    /// The program whose procedures this session speaks.
    pub fn program(&self) -> &ProgramId {
        &self.config.program
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(super) fn stream_ref(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(&id.0)
    }

    pub(super) fn stream_state(&self, id: u32) -> Option<&StreamState> {
        self.streams.get(&id).map(|stream| &stream.state)
    }

    /// Whether the id was ever opened, by whichever side it belongs to.
    pub(super) fn is_known(&self, id: u32) -> bool {
        if id == 0 {
            false
        } else if self.side.owns_id(id) {
            self.next_id.is_none_or(|next| id < next)
        } else {
            id <= self.peer_last_id
        }
    }

    /// The first window of a stream: what the whole link takes, within a quarter of the memory that is left to grow into, since it
    /// may never be used.
    pub(super) fn reserve_window(&mut self) -> Option<u64> {
        let least = self.config.window;
        let more =
            self.link_window.min(self.config.window_max).saturating_sub(least).min(self.reserved.left_to_grow() / 4);
        self.reserved.take(least).then(|| least + self.reserved.take_some(more))
    }

    /// Every change of a stream goes through here, so that queues and counts follow it.
    pub(super) fn change(
        &mut self,
        id: StreamId,
        change: impl FnOnce(&mut Stream) -> Result<(), Misuse>,
    ) -> Option<Result<(), Misuse>> {
        let result = change(self.streams.get_mut(&id.0)?);
        self.sync(id.0);
        Some(result)
    }

    /// Brings the queues in line with what the stream owes and can send, and forgets it when it is over.
    pub(super) fn sync(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.owed != 0 && !stream.in_owed_queue {
            stream.in_owed_queue = true;
            self.owed.streams.push_back(id);
        } else if stream.is_withheld && !stream.owes_grants_alone() {
            stream.is_withheld = false;
            self.owed.withheld.retain(|queued| *queued != id);
            self.owed.streams.push_back(id);
        }
        let can_send = stream.can_send();
        if can_send != stream.is_active {
            stream.is_active = can_send;
            self.schedule.count(usize::from(stream.priority), can_send);
        }
        if can_send && !stream.in_schedule {
            stream.in_schedule = true;
            stream.had = self.schedule.push(usize::from(stream.priority), id, stream.had, stream.last_turn);
        }
        if stream.is_over() {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        // Nothing of it may stay behind: a peer that opens and resets while our link is blocked would fill the queues.
        if stream.in_owed_queue {
            let queue = if stream.is_withheld { &mut self.owed.withheld } else { &mut self.owed.streams };
            queue.retain(|queued| *queued != id);
        }
        if stream.is_active {
            self.schedule.count(usize::from(stream.priority), false);
        }
        if stream.in_schedule {
            self.schedule.remove(usize::from(stream.priority), id);
        }
        match stream.state {
            StreamState::Refused(_) if stream.receiving.window() == 0 => self.refusals -= 1,
            _ if stream.ours => self.open_ours -= 1,
            _ => self.open_theirs -= 1,
        }
        if let Some(until) = stream.throttled_until {
            self.throttled.remove(&(until, id));
        }
        self.reserved.give(stream.receiving.window());
        if stream.is_open() {
            self.event(Event::Over { id: StreamId(id), stats: stream.stats() });
        }
        self.end_if_drained();
    }

    /// Ends a stream by our own decision: tells the peer and the owner.
    pub(super) fn fail(&mut self, id: StreamId, tell_peer: RemoteError, error: StreamError) {
        let stats = self.stream_ref(id).map(Stream::stats).unwrap_or_default();
        // The event first: the session may end with this stream.
        self.event(Event::Failed { id, error, stats });
        let _ = self.change(id, |stream| {
            stream.reset(tell_peer);
            Ok(())
        });
    }

    /// The peer broke a rule whose scope is the session.
    pub(super) fn misbehaved(&mut self, rule: Rule, detail: String) -> SessionError {
        let error = SessionError::PeerMisbehaved { rule, detail };
        self.end(Err(error.clone()), Some((close::VIOLATION, rule.number())));
        error
    }

    pub(super) fn end_if_drained(&mut self) {
        if self.state == State::Draining && self.streams.is_empty() {
            self.state = State::Closed(Ok(()));
            self.event(Event::Closed(Ok(())));
        }
    }

    /// Ends the session, once: the first cause stays. `say` is the code and rule of the CLOSE that tells the peer, if HELLO
    /// stands: otherwise it is told nothing.
    pub(super) fn end(&mut self, cause: Result<(), SessionError>, say: Option<(u32, u32)>) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        let lost = match &cause {
            Ok(()) => StreamError::Closing,
            Err(error) => StreamError::Session(error.clone()),
        };
        for (id, stream) in std::mem::take(&mut self.streams) {
            if !stream.has_failed() {
                self.event(Event::Failed { id: StreamId(id), error: lost.clone(), stats: stream.stats() });
            }
        }
        self.opening.clear();
        self.schedule.clear();
        self.throttled.clear();
        self.reserved.give(self.reserved.taken());
        let text = cause.as_ref().err().map(|error| match error {
            SessionError::PeerMisbehaved { detail, .. } => detail.clone(),
            other => other.to_string(),
        });
        let stands = matches!(self.state, State::Established | State::Draining);
        let close = say.filter(|_| stands).map(|(code, rule)| (code, rule, text.unwrap_or_default()));
        // To a peer that waits for the reply to its HELLO, CLOSE means nothing without it.
        let hello_reply = self.owed.hello_reply.take().filter(|_| close.is_some());
        self.owed = Owed { hello_reply, close, ..Owed::default() };
        self.state = State::Closed(cause.clone());
        self.event(Event::Closed(cause));
    }

    /// The cause for ever after.
    pub(super) fn closed(&self) -> Option<SessionError> {
        match &self.state {
            State::Closed(Err(error)) => Some(error.clone()),
            State::Closed(Ok(())) => Some(SessionError::Closed),
            _ => None,
        }
    }

    pub(super) fn hello_stands(&mut self) {
        self.state = State::Established;
        self.hello_deadline = None;
    }
}

pub(super) fn fit(extensions: &[Extension]) -> bool {
    extensions.len() <= EXTENSIONS_MAX && extensions.iter().all(|extension| extension.value.len() <= EXTENSION_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No test has the time to use up 2³¹ ids.
    #[test]
    fn a_session_without_ids_opens_no_stream_and_reserves_nothing() {
        let now = Instant::now();
        let mut session = Session::connect(Config::default(), now);
        session.hello_stands();
        session.peer.max_streams = 2;
        session.next_id = Some(u32::MAX);
        let request = || Open { target: "vda".into(), ..Open::default() };
        assert_eq!(session.open(now, request()), Ok(StreamId(u32::MAX)));
        let granted = session.granted();
        assert_eq!(session.open(now, request()), Err(OpenError::IdsExhausted));
        assert_eq!(session.granted(), granted);
        assert!(session.is_known(u32::MAX) && session.is_known(1), "those it has used are known");
        assert!(session.stream(StreamId(u32::MAX)).is_some(), "and what it has is unharmed");
    }
}
