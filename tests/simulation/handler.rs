//! What one end of a stream is connected to: a source and a sink, with their moods.

use std::time::{Duration, Instant};

use virbistream::proto::{StreamError, StreamId, StreamStats};

use crate::support::Random;

/// How a stream ended, in its owner's eyes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Over(StreamStats),
    Failed(StreamError),
    /// Its handler reset or refused it, in these words: no event tells.
    Dismissed(String),
}

/// What the acceptor's dialling comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accept,
    Refuse,
}

/// How a sink takes what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Eager,
    /// So many bytes a second.
    Slow(u64),
    /// Nothing until it is let go.
    Stuck,
    /// Stops at this offset.
    Stops(u64),
    /// Fails there.
    Fails(u64),
}

#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) id: StreamId,
    /// When the question is answered, and how; `None` once it is, or on the opener's side.
    pub(crate) dialling: Option<(Instant, Answer)>,
    pub(crate) open_since: Option<Instant>,
    /// All that the source will ever have, and how fast it has it.
    pub(crate) total: u64,
    rate: u64,
    /// The source fails behind its last byte instead of ending.
    pub(crate) breaks: bool,
    pub(crate) sent: u64,
    pub(crate) finish_said: bool,
    /// That is on its way.
    pub(crate) finish_sent: bool,
    pub(crate) mood: Mood,
    /// Verified, and taken by the far end.
    pub(crate) given: u64,
    pub(crate) consumed: u64,
    /// The peer was let send up to here.
    pub(crate) granted: u64,
    /// The peer's finish was told; we said STOP; the peer did.
    pub(crate) finished: bool,
    pub(crate) stopped: bool,
    pub(crate) was_stopped: bool,
    pub(crate) ending: Option<Ending>,
    /// When it looks again.
    pub(crate) wakes_at: Option<Instant>,
    /// Since when its source has bytes, its peer's sink takes all and the link moves, without a byte sent.
    pub(crate) waits_since: Option<Instant>,
}

impl Handler {
    pub(crate) fn new(id: StreamId, now: Instant, asked: bool, random: &mut Random) -> Self {
        let total = match random.below(8) {
            0 => 0,
            1 => 1,
            2..=4 => random.below(5000),
            5 | 6 => random.below(60_000),
            _ => random.below(500_000),
        };
        let dialling = match random.below(8) {
            0 => Duration::from_secs(3600),
            1 | 2 => Duration::from_millis(random.below(2000)),
            _ => Duration::ZERO,
        };
        let answer = if random.one_in(10) { Answer::Refuse } else { Answer::Accept };
        let mood = match random.below(10) {
            0 => Mood::Slow(1000 + random.below(100_000)),
            1 => Mood::Slow(1_000_000),
            2 => Mood::Stuck,
            3 => Mood::Stops(random.below(40_000)),
            4 if random.one_in(2) => Mood::Fails(random.below(20_000)),
            _ => Mood::Eager,
        };
        Self {
            id,
            dialling: asked.then_some((now + dialling, answer)),
            open_since: None,
            total,
            rate: *random.pick(&[20_000, 1_000_000, u64::MAX >> 40]),
            breaks: random.one_in(15),
            sent: 0,
            finish_said: false,
            finish_sent: false,
            mood,
            given: 0,
            consumed: 0,
            granted: 0,
            finished: false,
            stopped: false,
            was_stopped: false,
            ending: None,
            wakes_at: None,
            waits_since: None,
        }
    }

    /// Nothing is held back any more: the source ends where it is, the sink takes all.
    pub(crate) fn let_go(&mut self, now: Instant) {
        self.total = self.had(now).max(self.sent);
        self.breaks = false;
        if !matches!(self.mood, Mood::Stops(_)) {
            self.mood = Mood::Eager;
        }
        self.dialling = self.dialling.map(|(at, answer)| (at.min(now), answer));
        self.wakes_at = Some(now);
    }

    /// Bytes that the source has had by now.
    pub(crate) fn had(&self, now: Instant) -> u64 {
        let Some(since) = self.open_since else { return 0 };
        let time = now.saturating_duration_since(since).as_millis() as u64 + 1;
        self.total.min(self.rate.saturating_mul(time) / 1000)
    }

    /// Bytes that wait for the sink and that it takes now.
    pub(crate) fn takes(&self, now: Instant) -> u64 {
        let waits = self.given - self.consumed;
        match (self.mood, self.open_since) {
            (Mood::Stuck, _) | (_, None) => 0,
            (Mood::Slow(rate), Some(since)) => {
                let may = now.saturating_duration_since(since).as_millis() as u64 * rate / 1000;
                waits.min(may.saturating_sub(self.consumed))
            }
            _ => waits,
        }
    }

    pub(crate) fn is_living(&self) -> bool {
        self.ending.is_none()
    }

    /// Whether it is up to others that this source sends.
    pub(crate) fn could_send(&self, now: Instant) -> bool {
        self.is_living() && self.open_since.is_some() && !self.finish_said && self.had(now) > self.sent
    }

    /// When it has to look again, with nothing else happening.
    pub(crate) fn next(&self) -> Option<Instant> {
        if !self.is_living() {
            return None;
        }
        self.dialling.map(|(at, _)| at).into_iter().chain(self.wakes_at).min()
    }
}
