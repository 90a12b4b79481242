use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::access::Access;
use super::call::{Answer, OnAnswer, Procedures};
use super::channel::Opened;
use super::counters::{Counters, Tally};
use super::handler::{Handler, NoTargets, Targets};
use super::host_limit::HostLimit;
use super::listener::Listener;
use super::places::{LinkLimits, Place as Seat, Places};
use super::relay::Relay;
use super::socket::Socket;
use super::status::SessionStatus;
use super::tokens::Place;
use crate::proto::{Config, LONGEST, MemoryBudget, Side};
use crate::rpc::{CallError, IncomingId, Login, LoginError, ProcedureId, StreamOptions};
use crate::wire::{Open, RemoteError};

/// The name of a session among those of its handle; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub(super) u64);

impl SessionKey {
    /// The same as a number, which rises from 1.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a stream among those of its handle, from the moment that it is asked for; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(pub(super) u64);

/// The name of a listener among those of its handle; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey(pub(super) u64);

/// How a session is held. Set what you need and take the rest from `default`: later versions have more fields.
#[derive(Clone)]
pub struct SessionOptions {
    /// Its limits and times.
    pub config: Config,
    /// What the peer may open. Where `access` is given and we are the accepting side, its word counts instead.
    pub targets: Arc<dyn Targets>,
    /// Who may have a session with us as the accepting side, and what in it. `None`: everybody who reaches us may have all `targets` and
    /// the `daemon`.
    pub access: Option<Arc<dyn Access>>,
    /// What a client of libvirt's RPC can call here, where we are the accepting side. A daemon whose clients need not know
    /// BiStream sets `config.hello_timeout` to `None`. Whoever gets through the link's transport can call them, before HELLO and without it:
    /// `access` does not judge that. A procedure that is not for everybody judges by [`Call::identity`](super::Call::identity).
    pub programs: Arc<Procedures>,
    /// Bytes that arguments of calls without an answer, and what waits in legacy streams for handlers of ours, may hold: in all sessions
    /// whose options are clones of these. A call or stream beyond is refused.
    pub call_budget: MemoryBudget,
    /// Where a daemon listens that gets all packets of libvirt's RPC that come, instead of `programs`: untouched and in order, over
    /// a connection for each link, made with the first of them. Who may reach it has no `config.hello_timeout` from then on, since such
    /// clients need not know HELLO; who may not has that time once it is told so, or 10 s where it is `None`.
    pub daemon: Option<PathBuf>,
    /// A connecting side whose peer does not know BiStream keeps the link for calls, until `close`.
    pub keep_legacy: bool,
    /// How long a target that is not ready is tried again before the peer is refused; at most a hundred years.
    pub dial_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            config: Config::default(),
            targets: Arc::new(NoTargets),
            access: None,
            programs: Arc::default(),
            call_budget: MemoryBudget::new(2 << 30),
            daemon: None,
            keep_legacy: false,
            dial_timeout: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionOptions")
            .field("config", &self.config)
            .field("dial_timeout", &self.dial_timeout)
            .finish_non_exhaustive()
    }
}

/// Drives a [`Dispatcher`](super::Dispatcher), or several that work together, from other threads and from their own handlers. Cheap to
/// clone.
///
/// Calls are carried out on the dispatcher's thread, in their order, and come to nothing when what they name is gone. What
/// came of them is told by [`Report`](super::Report)s. Once the dispatcher is gone, they only drop what they were given.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// One for each dispatcher; sessions and listeners go round.
    pub(super) lanes: Box<[Lane]>,
    /// Of the data that all sessions send.
    pub(super) limit: HostLimit,
    /// Of those who connect to listeners.
    pub(super) places: Arc<Places>,
    pub(super) tally: Tally,
    /// Held while all lanes are told something.
    everywhere: Mutex<()>,
    /// Counted apart from other keys, so that sessions spread evenly.
    pub(super) next_session: AtomicU64,
    pub(super) next_key: AtomicU64,
}

/// The way to one dispatcher.
#[derive(Debug)]
pub(super) struct Lane {
    /// `None` once the dispatcher is gone: nobody would take them out.
    commands: Mutex<Option<VecDeque<Command>>>,
    waker: mio::Waker,
}

impl Lane {
    pub(super) fn new(waker: mio::Waker) -> Self {
        Self { commands: Mutex::new(Some(VecDeque::new())), waker }
    }

    fn send(&self, command: Command) {
        let mut commands = self.commands.lock();
        let Some(queue) = &mut *commands else {
            // Not under the lock: what is dropped with it may come here.
            drop(commands);
            return;
        };
        queue.push_back(command);
        let was_empty = queue.len() == 1;
        drop(commands);
        if was_empty && let Err(error) = self.waker.wake() {
            log::error!("the dispatcher cannot be woken: {error}");
        }
    }

    /// What has been sent so far. A handler's call may add more; they come with the next turn, for which the waker stands.
    pub(super) fn take(&self) -> VecDeque<Command> {
        self.commands.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Nobody takes commands here any more.
    pub(super) fn close(&self) {
        // Not under the lock: what is dropped with them may call the handle.
        let commands = self.commands.lock().take();
        drop(commands);
    }
}

pub(super) enum Command {
    Attach {
        key: SessionKey,
        socket: Socket,
        side: Side,
        options: SessionOptions,
    },
    /// A link that somebody made to one of our listeners.
    Accepted {
        key: SessionKey,
        socket: Socket,
        place: Seat,
        options: SessionOptions,
    },
    Listen {
        key: ListenerKey,
        listener: Arc<Listener>,
        options: SessionOptions,
    },
    Forward {
        key: ListenerKey,
        listener: Arc<Listener>,
        open: Open,
        handler: Arc<MakeHandler>,
    },
    Route {
        key: ListenerKey,
        session: Option<SessionKey>,
    },
    StopListening {
        key: ListenerKey,
    },
    Open {
        session: SessionKey,
        open: Open,
        opened: Opened,
    },
    Reset {
        session: SessionKey,
        key: StreamKey,
        error: RemoteError,
    },
    Wake {
        place: Place,
        waking: Arc<AtomicBool>,
    },
    Answer {
        session: SessionKey,
        call: IncomingId,
        answer: Answer,
    },
    Message {
        session: SessionKey,
        procedure: ProcedureId,
        body: Vec<u8>,
    },
    Call {
        session: SessionKey,
        call: OutgoingCall,
    },
    LimitChanged,
    /// To be told of all sessions.
    Status {
        to: Sender<Vec<SessionStatus>>,
    },
    LimitSession {
        session: SessionKey,
        rate: Option<u64>,
    },
    LimitStream {
        session: SessionKey,
        key: StreamKey,
        rate: Option<u64>,
    },
    Close {
        session: SessionKey,
    },
    Drain,
    Shutdown {
        reason: String,
    },
}

/// What makes a handler for a connection that is forwarded.
pub(super) type MakeHandler = dyn Fn(Relay) -> Box<dyn Handler> + Send + Sync;

type OnLogin = Box<dyn FnOnce(Result<(), LoginError>) + Send>;

/// A call of a client of ours.
pub(super) struct OutgoingCall {
    pub(super) procedure: ProcedureId,
    pub(super) arguments: Vec<u8>,
    pub(super) timeout: Duration,
    pub(super) stream: Option<(StreamOptions, Box<dyn Handler>)>,
    pub(super) on_answer: OnAnswer,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Command")
    }
}

impl Handle {
    pub(super) fn new(lanes: Box<[Lane]>) -> Self {
        let [next_session, next_key] = [1, 1].map(AtomicU64::new);
        Self {
            shared: Arc::new(Shared {
                lanes,
                limit: HostLimit::default(),
                places: Arc::new(Places::new(LinkLimits::default())),
                tally: Tally::default(),
                everywhere: Mutex::new(()),
                next_session,
                next_key,
            }),
        }
    }

    /// Holds a session on a connected socket, as the side given. `Report::SessionEnded` tells its end, unless the dispatcher
    /// is over before it hears of it.
    pub fn attach(&self, socket: Socket, side: Side, options: SessionOptions) -> SessionKey {
        let key = self.next_session();
        self.send(key, Command::Attach { key, socket, side, options });
        key
    }

    /// Holds a session, as the accepting side, with everyone who connects.
    pub fn listen(&self, listener: Listener, options: SessionOptions) -> ListenerKey {
        let key = ListenerKey(self.next_key());
        self.lane(key.0).send(Command::Listen { key, listener: Arc::new(listener), options });
        key
    }

    /// Turns everyone who connects into a stream, asked for as `open` says, of the session that `route` names;
    /// until then they wait in the listener's backlog.
    pub fn forward(&self, listener: Listener, open: Open) -> ListenerKey {
        self.forward_through(listener, open, |relay| Box::new(relay))
    }

    /// The same, with a handler of your own around each connection's [`Relay`]: to see what passes, say. It is made on the dispatcher's
    /// thread.
    pub fn forward_through(
        &self,
        listener: Listener,
        open: Open,
        handler: impl Fn(Relay) -> Box<dyn Handler> + Send + Sync + 'static,
    ) -> ListenerKey {
        let handler: Arc<MakeHandler> = Arc::new(handler);
        let key = ListenerKey(self.next_key());
        // On all: connections are accepted where the session is.
        let listener = Arc::new(listener);
        self.send_all(|| {
            let (listener, handler) = (Arc::clone(&listener), Arc::clone(&handler));
            Command::Forward { key, listener, open: open.clone(), handler }
        });
        key
    }

    /// Names the session of a forward; with `None`, connections wait again.
    pub fn route(&self, forward: ListenerKey, session: Option<SessionKey>) {
        self.send_all(|| Command::Route { key: forward, session });
    }

    /// Stops listening there. Who was accepted stays; connections that nobody has accepted yet are dropped.
    pub fn stop_listening(&self, listener: ListenerKey) {
        self.send_all(|| Command::StopListening { key: listener });
    }

    /// Opens a stream to the peer's target, connected to `handler`. `Report::StreamRefused` or `StreamEnded` is the last
    /// that is said of it.
    pub fn open(&self, session: SessionKey, open: Open, handler: Box<dyn Handler>) -> StreamKey {
        let key = StreamKey(self.next_key());
        let opened = Opened { key, target: open.target.clone(), handler };
        self.send(session, Command::Open { session, open, opened });
        key
    }

    /// Ends both directions of a stream at once; the peer is told this error.
    pub fn reset(&self, session: SessionKey, stream: StreamKey, error: RemoteError) {
        self.send(session, Command::Reset { session, key: stream, error });
    }

    /// Calls the daemon at the other end of a session's link, in libvirt's RPC, whether it knows BiStream or not. `on_answer` is
    /// called on the dispatcher's thread, at the latest after `timeout`.
    pub fn call(
        &self,
        session: SessionKey,
        procedure: ProcedureId,
        arguments: Vec<u8>,
        timeout: Duration,
        on_answer: impl FnOnce(Result<Vec<u8>, CallError>) + Send + 'static,
    ) {
        let call = OutgoingCall { procedure, arguments, timeout, stream: None, on_answer: Box::new(on_answer) };
        self.send(session, Command::Call { session, call });
    }

    /// Opens libvirt's connection at the daemon, `qemu:///system` say; see [`Login`]. Each of its calls may take `timeout`.
    pub fn login(
        &self,
        session: SessionKey,
        connection: &str,
        timeout: Duration,
        on_end: impl FnOnce(Result<(), LoginError>) + Send + 'static,
    ) {
        self.go_on(session, Login::new(connection), timeout, Box::new(on_end));
    }

    fn go_on(&self, session: SessionKey, mut login: Login, timeout: Duration, on_end: OnLogin) {
        let (procedure, arguments) = login.poll_call();
        let handle = self.clone();
        self.call(session, procedure, arguments, timeout, move |answer| match login.handle_answer(answer) {
            Some(ended) => on_end(ended),
            None => handle.go_on(session, login, timeout, on_end),
        });
    }

    /// The same as `call`, and when it is answered well, a legacy stream begins that is connected to `handler`.
    pub fn call_with_stream(
        &self,
        session: SessionKey,
        procedure: ProcedureId,
        arguments: Vec<u8>,
        timeout: Duration,
        (options, handler): (StreamOptions, Box<dyn Handler>),
        on_answer: impl FnOnce(Result<Vec<u8>, CallError>) + Send + 'static,
    ) {
        let (stream, on_answer) = (Some((options, handler)), Box::new(on_answer));
        let call = OutgoingCall { procedure, arguments, timeout, stream, on_answer };
        self.send(session, Command::Call { session, call });
    }

    /// Tells the client at the other end of a session's link of an event. Dropped, and logged, while it does not read.
    pub fn message(&self, session: SessionKey, procedure: ProcedureId, body: Vec<u8>) {
        self.send(session, Command::Message { session, procedure, body });
    }

    /// Limits the data that all sessions send together to so many bytes a second, from now on; `None` lifts the limit. Control packets and what
    /// passes to a front's clients do not count. What 100 ms bring may go at once, at least 32 KiB; with 0 nothing goes, and as the end of
    /// a source is seen by reading it, no stream finishes either.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.shared.limit.set(Instant::now(), bytes_per_second);
        self.send_all(|| Command::LimitChanged);
    }

    /// Limits how many links come in over listeners, from now on; those that are in stay. What is beyond is closed at once, which
    /// [`Report::LinksRefused`](super::Report::LinksRefused) tells. In the beginning it is the default.
    pub fn limit_links(&self, limits: LinkLimits) {
        self.shared.places.limit(limits);
    }

    /// What there is of links, and what has happened, in numbers.
    pub fn counters(&self) -> Counters {
        self.shared.places.count(self.shared.tally.read())
    }

    /// What runs now, by rising key: each dispatcher is asked, and what has not come within `patience` is not there. It waits, so it is not
    /// for the dispatchers' own threads.
    pub fn sessions(&self, patience: Duration) -> Vec<SessionStatus> {
        let (sender, told) = mpsc::channel();
        let until = Instant::now() + patience.min(LONGEST);
        self.shared.lanes.iter().for_each(|lane| lane.send(Command::Status { to: sender.clone() }));
        drop(sender);
        let next = || told.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        let mut sessions: Vec<_> = std::iter::from_fn(next).flatten().collect();
        sessions.sort_by_key(|status: &SessionStatus| status.session);
        sessions
    }

    /// The same for the streams of a session.
    pub fn limit_session(&self, session: SessionKey, bytes_per_second: Option<u64>) {
        self.send(session, Command::LimitSession { session, rate: bytes_per_second });
    }

    /// The same for a stream.
    pub fn limit_stream(&self, session: SessionKey, stream: StreamKey, bytes_per_second: Option<u64>) {
        self.send(session, Command::LimitStream { session, key: stream, rate: bytes_per_second });
    }

    /// Lets the session's streams finish, takes no new ones, then ends it. Calls and legacy streams of libvirt's RPC finish, too; those
    /// that pass through to a daemon behind us do not count, and their link ends at once when there is no session on it.
    pub fn close(&self, session: SessionKey) {
        self.send(session, Command::Close { session });
    }

    /// Stops listening, lets all sessions finish as `close` does, then ends the dispatcher. Connections that nobody has
    /// accepted yet are dropped.
    pub fn drain(&self) {
        self.send_all(|| Command::Drain);
    }

    /// Ends everything at once; peers are told the reason.
    pub fn shutdown(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.send_all(|| Command::Shutdown { reason: reason.clone() });
    }

    pub(super) fn next_key(&self) -> u64 {
        self.shared.next_key.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn next_session(&self) -> SessionKey {
        SessionKey(self.shared.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// To the dispatcher that has the session.
    pub(super) fn send(&self, session: SessionKey, command: Command) {
        self.lane(session.0).send(command);
    }

    /// All dispatchers get what is said to all of them in one order.
    fn send_all(&self, command: impl Fn() -> Command) {
        let _one_by_one = self.shared.everywhere.lock();
        self.shared.lanes.iter().for_each(|lane| lane.send(command()));
    }

    fn lane(&self, key: u64) -> &Lane {
        let lanes = &self.shared.lanes;
        &lanes[(key % lanes.len() as u64) as usize]
    }
}
