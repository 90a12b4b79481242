use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::handler::{Handler, NoTargets, Targets};
use super::listener::Listener;
use super::socket::Socket;
use crate::proto::{Config, Side, StreamId};
use crate::wire::Open;

/// The name of a session within its dispatcher; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub(super) u64);

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a forward: a listener whose connections become streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardKey(pub(super) u64);

/// How a session is held.
#[derive(Clone)]
pub struct SessionOptions {
    /// Its limits and times.
    pub config: Config,
    /// What the peer may open.
    pub targets: Arc<dyn Targets>,
    /// How long a target that is not ready is tried again before the peer is refused.
    pub dial_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { config: Config::default(), targets: Arc::new(NoTargets), dial_timeout: Duration::from_secs(10) }
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

/// Drives a [`Dispatcher`](super::Dispatcher) from other threads, and from its own handlers. Cheap to clone.
///
/// Calls are carried out on the dispatcher's thread, in their order, and come to nothing when what they name is gone or
/// the dispatcher is. What came of them is told by [`Report`](super::Report)s.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) commands: Mutex<VecDeque<Command>>,
    pub(super) waker: mio::Waker,
    pub(super) next_key: AtomicU64,
}

pub(super) enum Command {
    Attach { key: SessionKey, socket: Socket, side: Side, options: SessionOptions },
    Listen { listener: Listener, options: SessionOptions },
    Forward { key: ForwardKey, listener: Listener, open: Open },
    Route { key: ForwardKey, session: Option<SessionKey> },
    Open { session: SessionKey, open: Open, handler: Box<dyn Handler> },
    Wake { session: SessionKey, id: StreamId },
    Close { session: SessionKey },
    Drain,
    Shutdown { reason: String },
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Command")
    }
}

impl Handle {
    /// Holds a session on a connected socket, as the side given.
    pub fn attach(&self, socket: Socket, side: Side, options: SessionOptions) -> SessionKey {
        let key = SessionKey(self.next_key());
        self.send(Command::Attach { key, socket, side, options });
        key
    }

    /// Holds a session, as the accepting side, with everyone who connects.
    pub fn listen(&self, listener: Listener, options: SessionOptions) {
        self.send(Command::Listen { listener, options });
    }

    /// Turns everyone who connects into a stream, asked for as `open` says, of the session that `route` names;
    /// until then they wait in the listener's backlog.
    pub fn forward(&self, listener: Listener, open: Open) -> ForwardKey {
        let key = ForwardKey(self.next_key());
        self.send(Command::Forward { key, listener, open });
        key
    }

    /// Names the session of a forward; with `None`, connections wait again.
    pub fn route(&self, forward: ForwardKey, session: Option<SessionKey>) {
        self.send(Command::Route { key: forward, session });
    }

    /// Opens a stream to the peer's target, connected to `handler`.
    pub fn open(&self, session: SessionKey, open: Open, handler: Box<dyn Handler>) {
        self.send(Command::Open { session, open, handler });
    }

    /// Lets the session's streams finish, takes no new ones, then ends it.
    pub fn close(&self, session: SessionKey) {
        self.send(Command::Close { session });
    }

    /// Stops listening, lets all sessions finish as `close` does, then ends the dispatcher. Connections that nobody has
    /// accepted yet are dropped.
    pub fn drain(&self) {
        self.send(Command::Drain);
    }

    /// Ends everything at once; peers are told the reason.
    pub fn shutdown(&self, reason: impl Into<String>) {
        self.send(Command::Shutdown { reason: reason.into() });
    }

    pub(super) fn wake(&self, session: SessionKey, id: StreamId) {
        self.send(Command::Wake { session, id });
    }

    pub(super) fn next_key(&self) -> u64 {
        self.shared.next_key.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, command: Command) {
        let was_empty = {
            let mut commands = self.shared.commands.lock();
            commands.push_back(command);
            commands.len() == 1
        };
        if was_empty && let Err(error) = self.shared.waker.wake() {
            log::error!("the dispatcher cannot be woken: {error}");
        }
    }
}
