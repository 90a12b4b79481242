use std::time::{Duration, Instant};

/// Stands for HELLO where streams have their numbers.
pub(super) const HELLO: u32 = 0;

/// How many PINGs tell well enough how far the peer is.
const SAMPLES: u64 = 8;

/// Is the peer there, and how far away (docs/protocol.md, §10).
#[derive(Debug)]
pub(super) struct Liveness {
    interval: Duration,
    limit: Duration,
    last_heard: Instant,
    next_ping: Instant,
    /// The token of the PING that waits for its PONG, and when it was sent.
    awaited: Option<(u64, Instant)>,
    last_token: u64,
    /// [`HELLO`], or the reply to OPEN, by the stream's number, and when it was sent: what the peer sends upon it shows
    /// how far away it is before any bulk stands in the way.
    first_words: Option<(u32, Instant)>,
    round_trip: Option<Duration>,
    /// How many PINGs were answered.
    samples: u64,
    least_round_trip: Option<Duration>,
}

impl Liveness {
    pub(super) fn new(now: Instant, interval: Duration, limit: Duration) -> Self {
        Self {
            interval,
            limit,
            last_heard: now,
            next_ping: now + interval,
            awaited: None,
            last_token: 0,
            first_words: None,
            round_trip: None,
            samples: 0,
            least_round_trip: None,
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = self.last_heard.max(now);
    }

    pub(super) fn deadline(&self) -> Instant {
        self.next_ping.min(self.last_heard + self.limit)
    }

    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_heard) >= self.limit
    }

    /// Whether a PING is to be sent; true once an interval.
    pub(super) fn is_ping_due(&mut self, now: Instant) -> bool {
        let due = self.next_ping <= now;
        if due {
            self.next_ping = now + self.interval;
        }
        due
    }

    /// The token of the PING that is sent now.
    pub(super) fn ping(&mut self, now: Instant) -> u64 {
        self.last_token += 1;
        self.awaited = Some((self.last_token, now));
        self.last_token
    }

    /// False when it answers no PING of ours.
    pub(super) fn on_pong(&mut self, token: u64, now: Instant) -> bool {
        let answered = self.awaited.take_if(|(awaited, _)| *awaited == token);
        if let Some((_, sent)) = answered {
            let round_trip = now.saturating_duration_since(sent);
            self.round_trip = Some(round_trip);
            self.samples += 1;
            self.bound(round_trip);
        }
        answered.is_some()
    }

    /// HELLO is sent now, or the reply to a stream's OPEN.
    pub(super) fn on_first_words(&mut self, number: u32, now: Instant) {
        self.first_words = Some((number, now));
    }

    /// The reply to HELLO has come, or data of a stream. At the least a round trip has passed, as a rule not much more.
    pub(super) fn on_answer(&mut self, number: u32, now: Instant) {
        if let Some((_, sent)) = self.first_words.take_if(|(asked, _)| *asked == number) {
            self.bound(now.saturating_duration_since(sent));
        }
    }

    fn bound(&mut self, round_trip: Duration) {
        self.least_round_trip = Some(self.least_round_trip.map_or(round_trip, |least| least.min(round_trip)));
    }

    /// Whether a PING is worth its packet to learn how far the peer is: the least of a few, since any may have waited behind bulk.
    pub(super) fn wants_samples(&self) -> bool {
        self.samples < SAMPLES && self.awaited.is_none()
    }

    /// The one that had least to wait behind: what the link itself takes.
    pub(super) fn least_round_trip(&self) -> Option<Duration> {
        self.least_round_trip
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }
}
