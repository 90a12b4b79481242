//! Lines that others can bring about as often as they like.

use std::time::{Duration, Instant};

/// Lines that may be said at once.
const AT_ONCE: u32 = 10;

/// How often one more may be said then.
const EACH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Sparing {
    /// When all lines so far would have been said at one in `EACH`.
    due: Option<Instant>,
    left_out: u64,
}

impl Sparing {
    /// Whether another line is said, and then how many were left out before it.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        let due = self.due.map_or(now, |due| due.max(now)) + EACH;
        if due > now + AT_ONCE * EACH {
            self.left_out += 1;
            return None;
        }
        self.due = Some(due);
        Some(std::mem::take(&mut self.left_out))
    }

    /// How many were left out since the last.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }
}
