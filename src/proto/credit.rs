//! Offsets and limits of the two directions of a stream (docs/protocol.md, §6). All of them only rise.

use std::time::{Duration, Instant};

/// Bytes delivered that are always worth a CREDIT.
const CREDIT_MAX: u64 = 1 << 20;

/// The rate of delivery is that over so long at the least: processes are stopped and go on in bursts.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// The direction that we send.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Sent so far.
    pub(super) offset: u64,
    /// The peer lets us send up to here.
    limit: u64,
    /// The limit that its OPEN gave, which holds from our reply on: before that it takes no data.
    offered: u64,
    /// The peer delivered up to here.
    consumed: u64,
    pub(super) finished: bool,
    /// The peer said STOP: what we sent beyond `consumed` it may discard.
    pub(super) stopped: bool,
}

impl Sending {
    pub(super) fn credit(&self) -> u64 {
        self.limit - self.offset
    }

    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The peer's OPEN has come.
    pub(super) fn offered(&mut self, limit: u64) {
        self.offered = limit;
    }

    /// The reply to it is sent.
    pub(super) fn accepted(&mut self) {
        self.limit = self.offered;
    }

    pub(super) fn sent(&mut self, bytes: u32) {
        self.offset += u64::from(bytes);
        debug_assert!(self.offset <= self.limit, "sent beyond the peer's limit");
    }

    /// Whether a CREDIT with these says anything new.
    pub(super) fn is_raised_by(&self, consumed: u64, limit: u64) -> bool {
        consumed > self.consumed || limit > self.limit
    }

    /// False when the peer claims to have consumed what was never sent.
    pub(super) fn on_credit(&mut self, consumed: u64, limit: u64) -> bool {
        if consumed > self.offset {
            return false;
        }
        self.consumed = self.consumed.max(consumed);
        self.limit = self.limit.max(limit);
        true
    }

    pub(super) fn is_done(&self) -> bool {
        self.finished && (self.stopped || self.consumed == self.offset)
    }
}

/// How fast bytes are delivered.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Since when it is measured, and how many bytes had been delivered then.
    since: Option<(Instant, u64)>,
}

impl Delivery {
    /// The window that it takes: twice of what is delivered in a round trip. Once a round trip it has an answer, and not so often that
    /// a burst would pass for the rate.
    pub(super) fn wanted_window(&mut self, now: Instant, delivered: u64, round_trip: Duration) -> Option<u64> {
        let (since, before) = *self.since.get_or_insert((now, delivered));
        let elapsed = now.saturating_duration_since(since);
        if elapsed < round_trip.max(LEAST_INTERVAL) {
            return None;
        }
        self.since = Some((now, delivered));
        let wanted = 2 * u128::from(delivered - before) * round_trip.as_nanos() / elapsed.as_nanos();
        u64::try_from(wanted).ok()
    }
}

/// The direction that we receive.
#[derive(Debug)]
pub(super) struct Receiving {
    window: u64,
    /// Received so far, discarded bytes too.
    pub(super) offset: u64,
    /// Delivered so far.
    consumed: u64,
    /// What `consumed` was in the last CREDIT.
    credited: u64,
    /// The peer may send up to here: what it was last told, in OPEN, its reply or CREDIT.
    limit: u64,
    delivery: Delivery,
    /// Where the peer finished.
    pub(super) finished: Option<u64>,
    /// We said STOP, and discard what comes.
    pub(super) stopped: bool,
}

impl Receiving {
    pub(super) fn new(window: u64) -> Self {
        Self {
            window,
            offset: 0,
            consumed: 0,
            credited: 0,
            limit: 0,
            delivery: Delivery::default(),
            finished: None,
            stopped: false,
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.window
    }

    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The peer is told the first window now.
    pub(super) fn tell_window(&mut self) {
        self.limit = self.window;
    }

    /// False when it goes beyond the limit; nothing is counted then.
    pub(super) fn on_data(&mut self, bytes: u32) -> bool {
        match self.offset.checked_add(u64::from(bytes)) {
            Some(offset) if offset <= self.limit => {
                self.offset = offset;
                true
            }
            _ => false,
        }
    }

    /// False when that is more than was received.
    pub(super) fn consume(&mut self, bytes: u64) -> bool {
        match self.consumed.checked_add(bytes) {
            Some(consumed) if consumed <= self.offset => {
                self.consumed = consumed;
                true
            }
            _ => false,
        }
    }

    /// Whether a CREDIT is worth its packet now: an eighth of the window, however large at most 1 MiB, or all there will be.
    pub(super) fn is_credit_due(&self) -> bool {
        if self.stopped || self.consumed == self.credited {
            return false;
        }
        self.consumed - self.credited >= (self.window / 8).min(CREDIT_MAX) || self.finished == Some(self.consumed)
    }

    /// What the CREDIT that is sent now says.
    pub(super) fn take_credit(&mut self) -> (u64, u64) {
        self.credited = self.consumed;
        self.limit = self.consumed.saturating_add(self.window);
        (self.consumed, self.limit)
    }

    /// The window that would not hold the peer up, where this one does. To be asked when CREDIT is due.
    pub(super) fn wanted_window(&mut self, now: Instant, round_trip: Duration) -> Option<u64> {
        self.delivery.wanted_window(now, self.consumed, round_trip).filter(|wanted| *wanted > self.window)
    }

    pub(super) fn widen(&mut self, bytes: u64) {
        self.window += bytes;
    }

    pub(super) fn is_done(&self) -> bool {
        match self.finished {
            Some(last) => self.stopped || self.credited == last,
            None => false,
        }
    }
}
