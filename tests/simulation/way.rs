//! One direction of a link: what the writing kernel took, the wire, and what waits for the reader.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::support::Random;

/// What stands at the end of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The writer has shut it, in order.
    Ended,
    /// The link broke, and the reader is told.
    Broken,
}

#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) bytes_per_second: u64,
    pub(crate) delay: Duration,
    /// Bytes that may be on their way and unread before a write takes none.
    pub(crate) capacity: usize,
    /// Small pieces: both what a write takes and what a read gives.
    pub(crate) crumbles: bool,
    free_at: Instant,
    under_way: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    pub(crate) stalled_until: Option<Instant>,
    /// Nothing arrives any more and nobody is told.
    pub(crate) is_dead: bool,
    tail: Option<(Instant, Tail)>,
}

impl Way {
    pub(crate) fn new(now: Instant, bytes_per_second: u64, delay: Duration, capacity: usize, crumbles: bool) -> Self {
        Self {
            bytes_per_second,
            delay,
            capacity,
            crumbles,
            free_at: now,
            under_way: VecDeque::new(),
            queued: 0,
            stalled_until: None,
            is_dead: false,
            tail: None,
        }
    }

    /// How much of it is taken: perhaps a part, perhaps nothing.
    pub(crate) fn write(&mut self, now: Instant, bytes: &[u8], random: &mut Random) -> usize {
        if matches!(self.tail, Some((_, Tail::Broken))) {
            return bytes.len();
        }
        let most = if self.crumbles && random.one_in(3) { 1 + random.below(40) as usize } else { usize::MAX };
        let taken = bytes.len().min(self.capacity.saturating_sub(self.queued)).min(most);
        if taken > 0 {
            let time = Duration::from_nanos(taken as u64 * 1_000_000_000 / self.bytes_per_second);
            self.free_at = self.free_at.max(now) + time;
            self.queued += taken;
            self.under_way.push_back((self.free_at + self.delay, bytes[..taken].to_vec()));
        }
        taken
    }

    /// The writer shuts its direction, behind all that it wrote.
    pub(crate) fn end(&mut self, now: Instant) {
        if self.tail.is_none() {
            self.tail = Some((self.free_at.max(now) + self.delay, Tail::Ended));
        }
    }

    /// It breaks somewhere in what is under way.
    pub(crate) fn break_off(&mut self, now: Instant, random: &mut Random) {
        let mut kept = random.below(self.queued as u64 + 1) as usize;
        for (_, bytes) in &mut self.under_way {
            bytes.truncate(kept);
            kept -= bytes.len();
        }
        self.under_way.retain(|(_, bytes)| !bytes.is_empty());
        self.tail = Some((now, Tail::Broken));
    }

    /// What has arrived, as much of it as one read gives.
    pub(crate) fn read(&mut self, now: Instant, random: &mut Random) -> Option<Vec<u8>> {
        let most = if self.crumbles && random.one_in(2) { 1 + random.below(60) as usize } else { 1 << 18 };
        let mut got = Vec::new();
        while got.len() < most && self.next_bytes().is_some_and(|at| at <= now) {
            let (at, mut bytes) = self.under_way.pop_front().expect("it is there");
            if bytes.len() > most - got.len() {
                self.under_way.push_front((at, bytes.split_off(most - got.len())));
            }
            got.extend_from_slice(&bytes);
        }
        self.queued -= got.len();
        Some(got).filter(|got| !got.is_empty())
    }

    /// What stands behind all that was read.
    pub(crate) fn read_tail(&self, now: Instant) -> Option<Tail> {
        let stalled = self.is_dead || self.stalled_until.is_some_and(|until| until > now);
        self.tail.filter(|(at, _)| !stalled && self.under_way.is_empty() && *at <= now).map(|(_, tail)| tail)
    }

    fn next_bytes(&self) -> Option<Instant> {
        let (at, _) = self.under_way.front().filter(|_| !self.is_dead)?;
        Some(self.stalled_until.map_or(*at, |until| until.max(*at)))
    }

    /// When the reader has something to read.
    pub(crate) fn next(&self) -> Option<Instant> {
        let tail =
            self.tail.filter(|_| !self.is_dead).map(|(at, _)| self.stalled_until.map_or(at, |until| until.max(at)));
        self.next_bytes().or(tail)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.queued < self.capacity
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(crate) fn is_moving(&self, now: Instant) -> bool {
        !self.is_dead && self.tail.is_none() && self.stalled_until.is_none_or(|until| until <= now)
    }
}
