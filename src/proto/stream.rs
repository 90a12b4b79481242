use std::fmt;
use std::time::Instant;

use super::credit::{Receiving, Sending};
use super::error::Misuse;
use super::rate::{TokenBucket, set_rate};
use super::session::Session;
use crate::wire::{HEADER_LEN, Open, PacketType, Procedure, RemoteError, Rule, Status, domains};

/// The name of a stream within its session: odd from the connecting side, even from the accepting side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(crate) u32);

impl StreamId {
    /// The number as it stands on the wire.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a stream stands (docs/protocol.md, §8). Both directions of an open one have states of their own:
/// [`Sending`] and [`Receiving`].
///
/// ```text
///  ours:      Opening --reply OK--> Open ----both directions done----> (over)
///  the peer's: Pending --accepted--> Open        \--reset, either way--> Reset --sent--> (over)
///                  \--refused--> Refused --sent--> (over)
/// ```
#[derive(Debug)]
pub(super) enum State {
    /// We asked; no reply yet. Holds what is asked until it is sent.
    Opening(Option<Box<Open>>),
    /// The peer asked; we have not answered.
    Pending,
    /// Data may flow.
    Open,
    /// The error reply is owed.
    Refused(Box<RemoteError>),
    /// The reset is owed.
    Reset(Box<RemoteError>),
}

/// Control packets that a stream owes the peer: bits, so that they coalesce and cost no memory. They are sent in the
/// order of their values.
pub(super) mod owed {
    pub(in crate::proto) const OPEN: u8 = 1;
    pub(in crate::proto) const REPLY: u8 = 2;
    pub(in crate::proto) const RESET: u8 = 4;
    pub(in crate::proto) const CREDIT: u8 = 8;
    pub(in crate::proto) const STOP: u8 = 16;
    pub(in crate::proto) const FINISH: u8 = 32;
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) state: State,
    pub(super) ours: bool,
    pub(super) priority: u8,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    /// Bits of [`owed`].
    pub(super) owed: u8,
    /// In one of the session's queues of those that owe.
    pub(super) in_owed_queue: bool,
    /// That queue is of those that wait until more may be granted.
    pub(super) is_withheld: bool,
    /// The source may have bytes.
    pub(super) ready: bool,
    pub(super) in_schedule: bool,
    /// Counted there as one that can send.
    pub(super) is_active: bool,
    /// Bytes left of its turn.
    pub(super) turn: u32,
    /// Bytes that it sent in its last turn, none if it has had none.
    pub(super) last_turn: u32,
    /// Bytes that the schedule counts as had.
    pub(super) had: u64,
    pub(super) limit: Option<Box<TokenBucket>>,
    /// Waits for its limit: as long as it is there, since at a rate of 0 it has no end.
    pub(super) throttled: bool,
    pub(super) throttled_until: Option<Instant>,
    pub(super) stats: StreamStats,
}

/// What a stream did so far. Bytes are payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// Bytes sent.
    pub sent: u64,
    /// Bytes sent that the peer's end delivered.
    pub delivered: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes received that our end delivered.
    pub consumed: u64,
    /// DATA packets sent.
    pub packets_sent: u64,
    /// DATA packets received.
    pub packets_received: u64,
    /// How often sending used up the peer's credit.
    pub stalls: u64,
}

impl Stream {
    pub(super) fn new(state: State, ours: bool, priority: u8, window: u64) -> Self {
        Self {
            state,
            ours,
            priority,
            sending: Sending::default(),
            receiving: Receiving::new(window),
            owed: 0,
            in_owed_queue: false,
            is_withheld: false,
            ready: false,
            in_schedule: false,
            is_active: false,
            turn: 0,
            last_turn: 0,
            had: 0,
            limit: None,
            throttled: false,
            throttled_until: None,
            stats: StreamStats::default(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Ended already, by a refusal or a reset.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state, State::Refused(_) | State::Reset(_))
    }

    pub(super) fn can_send(&self) -> bool {
        self.is_open() && self.ready && !self.throttled && !self.sending.finished && self.sending.credit() > 0
    }

    /// Its OPEN was accepted, and the reply has come or is sent.
    pub(super) fn is_answered(&self) -> bool {
        self.is_open() && self.owed & owed::REPLY == 0
    }

    /// What it owes lets the peer send more, and that is all: until then it may wait. Behind a reply everything waits.
    pub(super) fn owes_grants_alone(&self) -> bool {
        let accepts = self.is_open() && self.owed & owed::REPLY != 0;
        accepts || self.owed == owed::CREDIT && self.receiving.finished.is_none()
    }

    /// Both directions done and nothing owed: the id can be forgotten.
    pub(super) fn is_over(&self) -> bool {
        self.owed == 0
            && match self.state {
                State::Opening(_) | State::Pending => false,
                State::Open => self.sending.is_done() && self.receiving.is_done(),
                State::Refused(_) | State::Reset(_) => true,
            }
    }

    /// Ends both directions; all that is owed from now on is the reset, or the refusal if the peer still waits for a reply.
    pub(super) fn reset(&mut self, error: RemoteError) {
        let unasked = self.owed & owed::OPEN != 0;
        let unanswered = matches!(self.state, State::Pending) || self.owed & owed::REPLY != 0;
        if unanswered {
            self.state = State::Refused(Box::new(error));
            self.owed = owed::REPLY;
        } else {
            self.state = State::Reset(Box::new(error));
            self.owed = if unasked { 0 } else { owed::RESET };
        }
    }

    pub(super) fn stats(&self) -> StreamStats {
        StreamStats {
            sent: self.sending.offset,
            delivered: self.sending.consumed(),
            received: self.receiving.offset,
            consumed: self.receiving.consumed(),
            ..self.stats
        }
    }
}

/// A stream of a session, borrowed to act upon: what [`Session::stream`] gives.
///
/// Every call leaves the session consistent; what it causes to be sent comes out of `poll_control` and `poll_grant`.
#[derive(Debug)]
pub struct StreamMut<'a> {
    pub(super) session: &'a mut Session,
    pub(super) id: StreamId,
}

impl StreamMut<'_> {
    /// Accepts a stream that the peer asked for; data may flow at once.
    ///
    /// # Errors
    /// [`Misuse::State`] when there is no question open.
    pub fn accept(self) -> Result<(), Misuse> {
        self.change(|stream| {
            if !matches!(stream.state, State::Pending) {
                return Err(Misuse::State);
            }
            stream.state = State::Open;
            stream.owed |= owed::REPLY;
            Ok(())
        })
    }

    /// Refuses a stream that the peer asked for; no event of it follows. The codes that fit are in docs/protocol.md, §5.
    ///
    /// # Errors
    /// [`Misuse::State`] when there is no question open.
    pub fn refuse(self, error: RemoteError) -> Result<(), Misuse> {
        self.change(|stream| {
            if !matches!(stream.state, State::Pending) {
                return Err(Misuse::State);
            }
            stream.reset(error);
            Ok(())
        })
    }

    /// The source may have bytes to send: `poll_grant` will ask for them when there is credit and it is this stream's turn.
    pub fn ready(self) {
        let _ = self.change(|stream| {
            stream.ready = true;
            Ok(())
        });
    }

    /// The source has nothing to send now: no more grants until `ready`.
    pub fn blocked(self) {
        let _ = self.change(|stream| {
            stream.ready = false;
            Ok(())
        });
    }

    /// Counts `len` bytes of the grant just polled as sent and gives the header that goes in front of them.
    ///
    /// The caller must put header and payload on the link before anything else that the session gives it.
    ///
    /// # Errors
    /// [`Misuse::BeyondGrant`] for 0 bytes, more than the grant's, or a stream whose turn it is not.
    pub fn send(self, len: usize) -> Result<[u8; HEADER_LEN], Misuse> {
        let id = self.id;
        let max = self.session.grant_for(id).filter(|_| self.session.is_front(id)).ok_or(Misuse::BeyondGrant)?;
        let len = u32::try_from(len).ok().filter(|len| (1..=max).contains(len)).ok_or(Misuse::BeyondGrant)?;
        self.session.on_sent(id, len);
        let header = self.session.program().header(Procedure::Data, PacketType::Stream, id.0, Status::Continue);
        Ok(header.encode(len))
    }

    /// Finishes our direction at its present offset; a second time does nothing.
    ///
    /// # Errors
    /// [`Misuse::State`] before the stream is open.
    pub fn finish(self) -> Result<(), Misuse> {
        self.change(|stream| {
            if !stream.is_open() {
                return Err(Misuse::State);
            }
            if !stream.sending.finished {
                stream.sending.finished = true;
                stream.owed |= owed::FINISH;
            }
            Ok(())
        })
    }

    /// Ends both directions; no event of it follows. `error` is what the peer is told; of our own streams, asked for and
    /// not answered, too.
    pub fn reset(self, error: RemoteError) {
        let _ = self.change(|stream| {
            if !stream.has_failed() {
                stream.reset(error);
            }
            Ok(())
        });
    }

    /// Tells the peer that we discard what it still sends; our own direction goes on. No more data is given out.
    ///
    /// # Errors
    /// [`Misuse::State`] before the stream is open.
    pub fn stop(self) -> Result<(), Misuse> {
        self.change(|stream| {
            if !stream.is_open() {
                return Err(Misuse::State);
            }
            if !stream.receiving.stopped {
                // Even when its finish has come: the peer waits for CREDIT or STOP before it forgets the stream.
                if !stream.receiving.is_done() {
                    stream.owed |= owed::STOP;
                }
                stream.owed &= !owed::CREDIT;
                stream.receiving.stopped = true;
            }
            Ok(())
        })
    }

    /// `bytes` more of what was received have been delivered to the stream's far end, or kept from it for good.
    ///
    /// # Errors
    /// [`Misuse::BeyondReceived`] when that is more than was received.
    pub fn consumed(self, bytes: u64) -> Result<(), Misuse> {
        let Self { session, id } = self;
        let counted = session.change(id, |stream| {
            // Behind STOP or a reset nothing is said of what was delivered.
            if stream.receiving.stopped || stream.has_failed() {
                return Ok(());
            }
            if !stream.receiving.consume(bytes) {
                return Err(Misuse::BeyondReceived);
            }
            if stream.receiving.is_credit_due() {
                stream.owed |= owed::CREDIT;
            }
            Ok(())
        });
        let counted = counted.unwrap_or(Err(Misuse::State));
        if counted.is_ok() {
            session.delivered = session.delivered.saturating_add(bytes);
        }
        counted
    }

    /// Limits the data that we send on it to so many bytes a second; `None` lifts the limit.
    pub fn set_limit(self, now: Instant, bytes_per_second: Option<u64>) {
        let Self { session, id } = self;
        session.unthrottle(id.0);
        let _ = session.change(id, |stream| {
            let mut limit = stream.limit.take().map(|limit| *limit);
            set_rate(&mut limit, now, bytes_per_second);
            stream.limit = limit.map(Box::new);
            Ok(())
        });
    }

    /// What it did so far.
    pub fn stats(&self) -> StreamStats {
        self.session.stream_ref(self.id).map(Stream::stats).unwrap_or_default()
    }

    /// Bytes that may be sent now by the peer's credit.
    pub fn credit(&self) -> u64 {
        self.session.stream_ref(self.id).map_or(0, |stream| stream.sending.credit())
    }

    /// Bytes that the peer may be ahead of delivery.
    pub fn window(&self) -> u64 {
        self.session.stream_ref(self.id).map_or(0, |stream| stream.receiving.window())
    }

    /// 0 first to 3 last.
    pub fn priority(&self) -> u32 {
        self.session.stream_ref(self.id).map_or(0, |stream| stream.priority.into())
    }

    fn change(self, change: impl FnOnce(&mut Stream) -> Result<(), Misuse>) -> Result<(), Misuse> {
        self.session.change(self.id, change).unwrap_or(Err(Misuse::State))
    }
}

/// The error that tells the peer which stream or call rule it broke.
pub(crate) fn rule_error(code: i32, rule: Rule) -> RemoteError {
    broke(rule, code, domains::STREAMS, format!("broke {rule}"))
}

/// The same with a domain and text of its own.
pub(super) fn broke(rule: Rule, code: i32, domain: i32, text: String) -> RemoteError {
    RemoteError::new(code, domain, text).with_ints(0, i32::try_from(rule.number()).unwrap_or_default())
}
