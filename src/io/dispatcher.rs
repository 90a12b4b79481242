use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::channel::Opened;
use super::handle::{Command, Handle, Lane, ListenerKey, MakeHandler, SessionKey, SessionOptions, StreamKey};
use super::link::Link;
use super::listener::Listener;
use super::peer::{Context, Peer, Turn};
use super::places::{Full, Place as Seat, Places};
use super::pool::{BUFFER_LEN, Pool};
use super::relay::Relay;
use super::report::Report;
use super::socket::Socket;
use super::tokens::{Place, Tokens};
use crate::proto::{OpenError, SessionError, Side};
use crate::rpc::CallError;
use crate::wire::Open;

/// Connections taken from one listener before others have their turn.
const ACCEPTS: usize = 64;

/// Looks before a sleep: some 10 us of them.
const LOOKS: usize = 16;

/// How long until a listener that failed, for want of descriptors say, is tried again.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often links that are refused are told of.
const REFUSED_TOLD: Duration = Duration::from_secs(1);

/// The mio loop: reads links, hands packets to their sessions, wakes handlers, writes what is owed.
///
/// One thread runs it, by [`run`](Self::run) or [`turn`](Self::turn); others drive it through its [`Handle`]. A host with many sessions
/// has [several](Self::several) share them.
///
/// Dropped before it is [over](Self::is_over), it closes its links and drops its handlers without a word.
pub struct Dispatcher {
    common: Common,
    peers: BTreeMap<SessionKey, Held>,
    /// Peers that want a turn; each stands here once.
    ready: VecDeque<SessionKey>,
    timers: BTreeSet<(Instant, SessionKey)>,
    listeners: HashMap<ListenerKey, Listening>,
    /// Links refused since that was told, and when it was.
    refused: u64,
    /// Those of them that came too fast.
    over_rate: u64,
    refused_told: Option<Instant>,
    /// No listeners any more; it ends with its last session.
    ending: bool,
}

/// What peers work with, one at a time.
struct Common {
    poll: Poll,
    /// Its number among the dispatchers of the handle.
    lane: usize,
    handle: Handle,
    report: Box<dyn FnMut(Report) + Send>,
    tokens: Tokens,
    pool: Pool,
    scratch: Vec<u8>,
}

impl Common {
    fn lane(&self) -> &Lane {
        &self.handle.shared.lanes[self.lane]
    }

    fn forget(&mut self, listening: &Listening) {
        self.tokens.remove(listening.token);
        listening.listener.deregister(self.poll.registry());
    }

    fn context(&mut self, now: Instant) -> Context<'_> {
        Context {
            registry: self.poll.registry(),
            tokens: &mut self.tokens,
            pool: &mut self.pool,
            scratch: &mut self.scratch,
            handle: &self.handle,
            report: &mut *self.report,
            now,
        }
    }
}

/// What waits for events, and the way that commands take to it.
fn polled_lane() -> io::Result<((Poll, Tokens), Lane)> {
    let (poll, mut tokens) = (Poll::new()?, Tokens::default());
    let waker = mio::Waker::new(poll.registry(), tokens.add(Place::Waker))?;
    Ok(((poll, tokens), Lane::new(waker)))
}

struct Held {
    peer: Peer,
    is_ready: bool,
    timer: Option<Instant>,
}

struct Listening {
    listener: Arc<Listener>,
    token: Token,
    role: Role,
    /// Somebody may be waiting to be accepted.
    pending: bool,
    /// Not before this, after a failure.
    retry: Option<Instant>,
    /// It failed, which was reported, and nothing was accepted since.
    failing: bool,
}

#[derive(Clone)]
enum Role {
    Links(SessionOptions),
    Forward { open: Open, handler: Arc<MakeHandler>, session: Option<SessionKey> },
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("sessions", &self.peers.len()).finish_non_exhaustive()
    }
}

impl AsRawFd for Dispatcher {
    /// Readable when [`turn`](Dispatcher::turn) has something to do: for a host's own epoll.
    fn as_raw_fd(&self) -> RawFd {
        self.common.poll.as_raw_fd()
    }
}

impl Dispatcher {
    /// `report` is called on the thread that runs the dispatcher; it must not block.
    ///
    /// # Errors
    /// The system's, when it gives no epoll or eventfd.
    pub fn new(report: impl FnMut(Report) + Send + 'static) -> io::Result<Self> {
        let (poll, lane) = polled_lane()?;
        Ok(Self::on_lane(0, Handle::new([lane].into()), poll, report))
    }

    /// So many that have one [`Handle`], each to be run on a thread of its own. A session stays with one of them, and its handlers are
    /// called there; they take the sessions in turn. Reports of one session keep their order.
    ///
    /// # Errors
    /// The system's, when it gives no epoll or eventfd.
    pub fn several(count: NonZeroUsize, report: impl FnMut(Report) + Clone + Send + 'static) -> io::Result<Vec<Self>> {
        let polled = (0..count.get()).map(|_| polled_lane()).collect::<io::Result<Vec<_>>>()?;
        let (polls, lanes): (Vec<_>, Vec<_>) = polled.into_iter().unzip();
        let handle = Handle::new(lanes.into());
        let on_lane = |(lane, poll)| Self::on_lane(lane, handle.clone(), poll, report.clone());
        Ok(polls.into_iter().enumerate().map(on_lane).collect())
    }

    fn on_lane(
        lane: usize,
        handle: Handle,
        (poll, tokens): (Poll, Tokens),
        mut report: impl FnMut(Report) + Send + 'static,
    ) -> Self {
        let shared = Arc::clone(&handle.shared);
        let report = Box::new(move |what| {
            shared.tally.count(&what);
            report(what);
        });
        let common = Common { poll, lane, handle, report, tokens, pool: Pool::default(), scratch: vec![0; BUFFER_LEN] };
        Self {
            common,
            peers: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            listeners: HashMap::new(),
            refused: 0,
            over_rate: 0,
            refused_told: None,
            ending: false,
        }
    }

    /// What drives it from elsewhere.
    pub fn handle(&self) -> Handle {
        self.common.handle.clone()
    }

    /// Runs until `drain` or `shutdown` was called and the last session is over.
    ///
    /// # Errors
    /// The system's, when epoll fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        while !self.is_over() {
            self.turn(&mut events, None)?;
        }
        Ok(())
    }

    /// Whether `drain` or `shutdown` was called and the last session is over.
    pub fn is_over(&self) -> bool {
        self.ending && self.peers.is_empty()
    }

    /// Waits for something to happen, at most `max_wait`, and does what there is to do, up to a budget.
    ///
    /// For a host with a loop of its own: call it when the descriptor is readable, and with `max_wait` 0 after
    /// [`next_turn`](Self::next_turn) is due.
    ///
    /// # Errors
    /// The system's, when epoll fails.
    pub fn turn(&mut self, events: &mut Events, max_wait: Option<Duration>) -> io::Result<()> {
        let due = self.next_turn().map(|due| due.saturating_duration_since(Instant::now()));
        let wait = due.into_iter().chain(max_wait).min();
        match self.wait(events, wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        let now = Instant::now();
        self.on_commands(now);
        for event in events.iter() {
            match self.common.tokens.get(event.token()) {
                Some(Place::Link(key)) => {
                    if let Some(held) = self.peers.get_mut(&key) {
                        held.peer.on_link_event(event.is_readable(), event.is_writable());
                    }
                    self.wants_turn(key);
                }
                Some(Place::Stream(key, id)) => {
                    self.with(key, now, |peer, cx| peer.on_stream_event(cx, id, event));
                }
                Some(Place::Daemon(key)) => {
                    self.with(key, now, |peer, _| peer.on_daemon_event(event.is_readable(), event.is_writable()));
                }
                Some(Place::Legacy(key, id)) => {
                    self.with(key, now, |peer, cx| peer.on_legacy(cx, id, Some(event)));
                }
                Some(Place::Listener(key)) => {
                    if let Some(listening) = self.listeners.get_mut(&key) {
                        listening.pending = true;
                    }
                }
                Some(Place::Waker) | None => {}
            }
        }
        self.on_timers(now);
        self.turns(now);
        // Last: a session that stands since this turn takes the connections that waited for it.
        self.accept(now);
        Ok(())
    }

    /// Looks again a few times before it sleeps, if something happened just now: who was heard of often has more to say, and on a
    /// virtual machine going to sleep and being woken takes longer than an answer does.
    fn wait(&mut self, events: &mut Events, wait: Option<Duration>) -> io::Result<()> {
        if !events.is_empty() && wait != Some(Duration::ZERO) {
            for _ in 0..LOOKS {
                self.common.poll.poll(events, Some(Duration::ZERO))?;
                if !events.is_empty() {
                    return Ok(());
                }
                thread::yield_now();
            }
        }
        self.common.poll.poll(events, wait)
    }

    /// When `turn` wants to be called if its descriptor does not become readable before.
    pub fn next_turn(&self) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(Instant::now());
        }
        let retries =
            self.listeners.values().filter(|listening| listening.pending).filter_map(|listening| listening.retry);
        self.timers.first().map(|(deadline, _)| *deadline).into_iter().chain(retries).min()
    }

    /// Calls a peer with what it needs, and gives it a turn afterwards.
    fn with(&mut self, key: SessionKey, now: Instant, call: impl FnOnce(&mut Peer, &mut Context<'_>)) {
        let Some(held) = self.peers.get_mut(&key) else { return };
        call(&mut held.peer, &mut self.common.context(now));
        self.wants_turn(key);
    }

    fn wants_turn(&mut self, key: SessionKey) {
        if let Some(held) = self.peers.get_mut(&key)
            && !held.is_ready
        {
            held.is_ready = true;
            self.ready.push_back(key);
        }
    }

    /// Gives each peer that wants one a turn; those that stopped at their budget come again after the others.
    fn turns(&mut self, now: Instant) {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { return };
            let Some(held) = self.peers.get_mut(&key) else { continue };
            held.is_ready = false;
            let turn = held.peer.turn(&mut self.common.context(now));
            let timer = if turn == Turn::Gone { None } else { held.peer.deadline() };
            if timer != held.timer {
                if let Some(old) = std::mem::replace(&mut held.timer, timer) {
                    self.timers.remove(&(old, key));
                }
                self.timers.extend(timer.map(|timer| (timer, key)));
            }
            match turn {
                Turn::Again => self.wants_turn(key),
                Turn::Wait => {}
                Turn::Gone => {
                    if let Some(held) = self.peers.remove(&key) {
                        held.peer.dispose(&mut self.common.context(now));
                    }
                }
            }
        }
    }

    fn on_timers(&mut self, now: Instant) {
        while let Some((deadline, key)) = self.timers.first().copied()
            && deadline <= now
        {
            self.timers.pop_first();
            if let Some(held) = self.peers.get_mut(&key) {
                held.timer = None;
            }
            self.wants_turn(key);
        }
    }

    fn on_commands(&mut self, now: Instant) {
        let commands = self.common.lane().take();
        for command in commands {
            self.on_command(command, now);
        }
    }

    fn on_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Attach { key, socket, side, options } => self.hold(key, socket, side, None, options, now),
            Command::Accepted { key, socket, place, options } => {
                // Here, so that what is asked for by who hears of it comes behind.
                (self.common.report)(Report::LinkAccepted { session: key, peer: socket.peer().to_owned() });
                self.hold(key, socket, Side::Accepting, Some(place), options, now);
            }
            Command::Listen { key, listener, options } => self.listen(key, listener, Role::Links(options)),
            Command::Forward { key, listener, open, handler } => {
                self.listen(key, listener, Role::Forward { open, handler, session: None });
            }
            Command::Route { key, session } => self.route(key, session),
            Command::StopListening { key } => {
                if let Some(listening) = self.listeners.remove(&key) {
                    self.common.forget(&listening);
                }
            }
            Command::Open { session, open, opened } => self.open(session, open, opened, now),
            Command::Reset { session, key, error } => {
                self.with(session, now, |peer, cx| peer.reset(cx, key, error));
            }
            Command::Wake { place, waking } => {
                // Before the handler is asked: a call from then on is another one. What made the waker wake must be seen by the
                // handler, so this reads, too.
                waking.swap(false, Ordering::AcqRel);
                match place {
                    Place::Stream(session, id) => self.with(session, now, |peer, cx| peer.on_wake(cx, id)),
                    Place::Legacy(session, id) => self.with(session, now, |peer, cx| peer.on_legacy(cx, id, None)),
                    Place::Waker | Place::Listener(_) | Place::Link(_) | Place::Daemon(_) => {}
                }
            }
            Command::Answer { session, call, answer } => {
                self.with(session, now, |peer, cx| peer.answer(cx, call, answer));
            }
            Command::Message { session, procedure, body } => {
                self.with(session, now, |peer, _| peer.message(procedure, &body));
            }
            Command::Call { session, call } if self.peers.contains_key(&session) => {
                self.with(session, now, |peer, cx| peer.call(cx, call));
            }
            Command::Call { call, .. } => (call.on_answer)(Err(CallError::LinkLost)),
            Command::LimitChanged => {
                self.peers.keys().copied().collect::<Vec<_>>().into_iter().for_each(|key| self.wants_turn(key));
            }
            // Who asked may not wait any more.
            Command::Status { to } => {
                drop(to.send(self.peers.values_mut().map(|held| held.peer.status(now)).collect()));
            }
            Command::LimitSession { session, rate } => {
                self.with(session, now, |peer, cx| peer.set_limit(cx.now, rate));
            }
            Command::LimitStream { session, key, rate } => {
                self.with(session, now, |peer, cx| peer.set_stream_limit(cx.now, key, rate));
            }
            Command::Close { session } => self.with(session, now, |peer, _| peer.close()),
            Command::Drain => self.end_all(now, Peer::close),
            Command::Shutdown { reason } => self.end_all(now, |peer| peer.shutdown(&reason)),
        }
    }

    fn end_all(&mut self, now: Instant, end: impl Fn(&mut Peer)) {
        self.ending = true;
        for (_, listening) in self.listeners.drain() {
            self.common.forget(&listening);
        }
        for key in self.peers.keys().copied().collect::<Vec<_>>() {
            self.with(key, now, |peer, _| end(peer));
        }
    }

    fn hold(
        &mut self,
        key: SessionKey,
        socket: Socket,
        side: Side,
        place: Option<Seat>,
        options: SessionOptions,
        now: Instant,
    ) {
        let token = self.common.tokens.add(Place::Link(key));
        let link = match self.ending {
            true => Err(SessionError::Shutdown("its dispatcher takes no new sessions".into())),
            false => Link::new(socket, self.common.poll.registry(), token)
                .map_err(|error| SessionError::LinkLost(error.to_string())),
        };
        let link = match link {
            Ok(link) => link,
            Err(cause) => {
                self.common.tokens.remove(token);
                (self.common.report)(Report::SessionEnded { session: key, cause: Err(cause) });
                return;
            }
        };
        let peer = Peer::new(key, side, link, place, options, now);
        self.peers.insert(key, Held { peer, is_ready: false, timer: None });
        self.wants_turn(key);
    }

    /// Opens a stream. Where there is no session, its handler hears of it all the same.
    fn open(&mut self, session: SessionKey, open: Open, opened: Opened, now: Instant) {
        if self.peers.contains_key(&session) {
            self.with(session, now, |peer, cx| peer.open(cx, open, opened));
        } else {
            let cx = self.common.context(now);
            opened.refuse(cx.registry, cx.report, session, OpenError::NotEstablished);
        }
    }

    fn listen(&mut self, key: ListenerKey, listener: Arc<Listener>, role: Role) {
        if self.ending {
            return;
        }
        let token = self.common.tokens.add(Place::Listener(key));
        if let Err(error) = listener.register(self.common.poll.registry(), token) {
            self.common.tokens.remove(token);
            (self.common.report)(Report::AcceptFailed { listener: key, reason: error.to_string() });
            return;
        }
        self.listeners.insert(key, Listening { listener, token, role, pending: true, retry: None, failing: false });
    }

    fn route(&mut self, forward: ListenerKey, to: Option<SessionKey>) {
        if let Some(Listening { role: Role::Forward { session, .. }, .. }) = self.listeners.get_mut(&forward) {
            *session = to;
        }
    }

    fn refuse_link(&mut self, socket: &Socket, full: Full, now: Instant) {
        socket.abort_on_close();
        self.refused += 1;
        self.over_rate += u64::from(full == Full::Rate);
        // A flood of connections is none of lines.
        if self.refused_told.is_none_or(|told| now.saturating_duration_since(told) >= REFUSED_TOLD) {
            self.refused_told = Some(now);
            let (count, over_rate) = (std::mem::take(&mut self.refused), std::mem::take(&mut self.over_rate));
            (self.common.report)(Report::LinksRefused { peer: socket.peer().to_owned(), count, over_rate });
        }
    }

    fn accept(&mut self, now: Instant) {
        let pending: Vec<ListenerKey> = self
            .listeners
            .iter()
            .filter(|(_, listening)| listening.pending && listening.retry.is_none_or(|retry| retry <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in pending {
            self.accept_from(key, now);
        }
    }

    fn accept_from(&mut self, key: ListenerKey, now: Instant) {
        for _ in 0..ACCEPTS {
            let Some(listening) = self.listeners.get_mut(&key) else { return };
            listening.retry = None;
            if let Role::Forward { session, .. } = &listening.role {
                let stands =
                    session.and_then(|session| self.peers.get(&session)).is_some_and(|held| held.peer.is_established());
                if !stands {
                    // They wait in the backlog; `route` and HELLO bring a turn of the loop.
                    return;
                }
            }
            match listening.listener.accept() {
                Ok(socket) => {
                    listening.failing = false;
                    let role = listening.role.clone();
                    self.on_accepted(socket, role, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    listening.pending = false;
                    return;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(error) => {
                    listening.retry = Some(now + ACCEPT_RETRY);
                    if !std::mem::replace(&mut listening.failing, true) {
                        (self.common.report)(Report::AcceptFailed { listener: key, reason: error.to_string() });
                    }
                    return;
                }
            }
        }
        if let Some(listening) = self.listeners.get_mut(&key) {
            listening.retry = Some(now);
        }
    }

    fn on_accepted(&mut self, socket: Socket, role: Role, now: Instant) {
        match role {
            Role::Links(options) => {
                let place = match Places::enter(&self.common.handle.shared.places, socket.origin(), now) {
                    Ok(place) => place,
                    Err(full) => return self.refuse_link(&socket, full, now),
                };
                let key = self.common.handle.next_session();
                // Most often it is another's.
                self.common.handle.send(key, Command::Accepted { key, socket, place, options });
            }
            Role::Forward { open, handler, session } => {
                if let Some(session) = session {
                    let key = StreamKey(self.common.handle.next_key());
                    let handler = handler(Relay::from(socket));
                    let opened = Opened { key, target: open.target.clone(), handler };
                    self.open(session, open, opened, now);
                }
            }
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.common.lane().close();
    }
}
