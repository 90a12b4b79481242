//! One stream's handler and what it could not take yet.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use mio::{Registry, Token};

use super::backlog::Backlog;
use super::handle::{SessionKey, StreamKey};
use super::handler::Handler;
use super::report::Report;
use crate::proto::{OpenError, StreamError};
use crate::rpc::HOLE_COST;

/// Slices of the backlog that one write takes.
const SLICES: usize = 64;

/// Bytes that a handler is given of its backlog before others have their turn: that of a long link may hold hundreds of MiB. More than
/// a link brings in a turn, so that it does catch up.
const BUDGET: u64 = 4 << 20;

/// What a stream is connected to, and what both are called.
pub(super) struct Opened {
    pub(super) key: StreamKey,
    pub(super) target: String,
    pub(super) handler: Box<dyn Handler>,
}

impl Opened {
    /// It could not even be asked for.
    pub(super) fn refuse(
        mut self,
        registry: &Registry,
        report: &mut dyn FnMut(Report),
        session: SessionKey,
        error: OpenError,
    ) {
        self.handler.detach(registry);
        self.handler.reset(&StreamError::NotOpened(error));
        report(Report::StreamRefused { session, stream: self.key, target: self.target, reason: error.to_string() });
    }
}

/// How long sending waited for the peer's credit.
#[derive(Debug, Default)]
pub(super) struct Stalled {
    since: Option<Instant>,
    total: Duration,
}

impl Stalled {
    /// The stream has its turn: whatever it waited for has come.
    pub(super) fn end(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.total += now.saturating_duration_since(since);
        }
    }

    /// Its credit is used up.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// All of it until now, where there is no credit now either.
    pub(super) fn until(&self, now: Instant) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Streams whose handlers would take more of what is held for them, and have had their budget: in the order of their turns.
#[derive(Debug)]
pub(super) struct Behind<Id>(VecDeque<Id>);

impl<Id> Default for Behind<Id> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<Id: Copy + Ord> Behind<Id> {
    /// To be told whenever a handler was given something.
    pub(super) fn look(&mut self, id: Id, channel: Option<&Channel>) {
        if channel.is_some_and(Channel::is_behind) && !self.0.contains(&id) {
            self.0.push_back(id);
        }
    }

    /// Gives the handler whose turn it is more of what is held for it; tells whose it was, and how many bytes were delivered.
    pub(super) fn catch_up(&mut self, channels: &mut BTreeMap<Id, Channel>) -> Option<(Id, io::Result<u64>)> {
        let id = self.0.pop_front()?;
        // It may be gone since, or have caught up by an event of its own.
        let channel = channels.get_mut(&id).filter(|channel| channel.is_behind())?;
        Some((id, channel.flush()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(super) struct Channel {
    pub(super) handler: Box<dyn Handler>,
    pub(super) token: Token,
    pub(super) key: StreamKey,
    pub(super) target: String,
    pub(super) stalled: Stalled,
    /// Stands: accepted by whoever was asked, and attached. What comes before waits.
    is_open: bool,
    can_write: bool,
    backlog: Backlog,
    /// The peer finished; to be told to the handler behind the backlog.
    finish_due: bool,
    /// Nobody takes bytes here any more.
    stopped: bool,
    /// The handler was told of the peer's finish, behind its last byte.
    finished: bool,
}

impl Channel {
    pub(super) fn new(opened: Opened, token: Token) -> Self {
        let Opened { key, target, handler } = opened;
        Self {
            handler,
            token,
            key,
            target,
            stalled: Stalled::default(),
            is_open: false,
            can_write: false,
            backlog: Backlog::default(),
            finish_due: false,
            stopped: false,
            finished: false,
        }
    }

    /// It stands, and its handler is attached. Gives how many bytes were delivered of those that came before.
    pub(super) fn open(&mut self) -> io::Result<u64> {
        self.is_open = true;
        self.flush()
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes bytes of the peer's: to the handler while it keeps up, the rest into the backlog. Gives how many were
    /// delivered now.
    pub(super) fn deliver(&mut self, mut bufs: &mut [IoSlice<'_>]) -> io::Result<u64> {
        let mut delivered = 0;
        if self.backlog.is_empty() {
            while !bufs.is_empty() && self.can_write {
                let taken = write(&mut *self.handler, &mut self.can_write, bufs)?;
                IoSlice::advance_slices(&mut bufs, taken);
                delivered += taken as u64;
            }
        }
        bufs.iter().for_each(|left| self.backlog.push(left));
        Ok(delivered)
    }

    /// Takes a hole of the peer's. Gives what it counts as delivered.
    pub(super) fn deliver_hole(&mut self, length: u64) -> io::Result<u64> {
        self.backlog.push_hole(length);
        if self.can_write { self.flush() } else { Ok(0) }
    }

    /// The handler may take bytes again. Gives how many were delivered, each hole as [`HOLE_COST`]. It may take more, at its
    /// next turn: [`Behind`].
    pub(super) fn flush(&mut self) -> io::Result<u64> {
        self.can_write = true;
        let mut delivered = 0;
        while self.is_behind() && delivered < BUDGET {
            if let Some(length) = self.backlog.front_hole() {
                if again(self.handler.write_hole(length), &mut self.can_write)?.is_some() {
                    self.backlog.pop_hole();
                    delivered += HOLE_COST;
                }
                continue;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let set = self.backlog.front(&mut slices);
            let taken = write(&mut *self.handler, &mut self.can_write, &slices[..set])?;
            self.backlog.advance(taken);
            delivered += taken as u64;
        }
        self.finish_if_due()?;
        Ok(delivered)
    }

    /// Whether it holds bytes that the handler may take.
    fn is_behind(&self) -> bool {
        self.can_write && !self.backlog.is_empty()
    }

    /// The peer's direction is over.
    pub(super) fn peer_finished(&mut self) -> io::Result<()> {
        self.finish_due = true;
        self.finish_if_due()
    }

    /// Whether bytes of the peer's are still wanted, or held.
    pub(super) fn is_receiving(&self) -> bool {
        !self.stopped
    }

    /// Whether the handler has taken all that the peer sent, and its end.
    pub(super) fn has_finished(&self) -> bool {
        self.finished
    }

    /// Drops what is held; nothing more is taken.
    pub(super) fn stop_receiving(&mut self) {
        self.stopped = true;
        self.finish_due = false;
        self.backlog = Backlog::default();
    }

    fn finish_if_due(&mut self) -> io::Result<()> {
        if self.finish_due && self.is_open && self.backlog.is_empty() {
            self.finish_due = false;
            self.stopped = true;
            self.handler.finish()?;
            self.finished = true;
        }
        Ok(())
    }
}

/// One write, with "not now" remembered instead of returned.
fn write(handler: &mut dyn Handler, can_write: &mut bool, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    match again(handler.write(bufs), can_write)? {
        // A handler that takes nothing without saying why would be asked for ever.
        Some(0) => Err(io::ErrorKind::WriteZero.into()),
        Some(taken) if taken > bufs.iter().map(|buf| buf.len()).sum() => {
            Err(io::Error::other("its handler claims to have taken more than it was given"))
        }
        taken => Ok(taken.unwrap_or(0)),
    }
}

/// `None` for what is to be tried again: at once, or when the handler can write.
fn again<T>(result: io::Result<T>, can_write: &mut bool) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            *can_write = false;
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        result => result.map(Some),
    }
}
