use std::time::{Duration, Instant};

/// For how long a source that was idle may be ahead of its rate.
const BURST: Duration = Duration::from_millis(100);

/// The least that may go at once: a packet worth its header.
const LEAST: u64 = 16 * 1024;

/// A bandwidth limit: so many bytes a second, and at once what 100 ms bring, at least 32 KiB.
///
/// Without a clock of its own: the time is handed in, and may stand still but does not go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    bytes_per_second: u64,
    /// Bytes that may go now.
    tokens: u64,
    /// When `tokens` was right.
    at: Instant,
}

impl TokenBucket {
    /// A full one. At a rate of 0 nothing goes, after the first bytes.
    pub fn new(now: Instant, bytes_per_second: u64) -> Self {
        let mut bucket = Self { bytes_per_second, tokens: 0, at: now };
        bucket.tokens = bucket.depth();
        bucket
    }

    /// Goes on at another rate with what there is: who changes it often gives nothing away.
    pub fn set_rate(&mut self, now: Instant, bytes_per_second: u64) {
        self.poll(now);
        self.bytes_per_second = bytes_per_second;
        self.at = self.at.max(now);
        self.tokens = self.tokens.min(self.depth());
    }

    /// Bytes that were taken and did not go.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_add(bytes).min(self.depth());
    }

    /// What one of several may take at once.
    pub(crate) fn share(&self) -> u64 {
        (self.depth() / 4).max(LEAST)
    }

    fn depth(&self) -> u64 {
        bytes_in(BURST, self.bytes_per_second).max(2 * LEAST)
    }

    /// Bytes that may go now: 0, or at least 16 KiB.
    pub fn poll(&mut self, now: Instant) -> u64 {
        let came = bytes_in(now.saturating_duration_since(self.at), self.bytes_per_second);
        let tokens = self.tokens.saturating_add(came);
        if tokens >= self.depth() {
            (self.tokens, self.at) = (self.depth(), now.max(self.at));
        } else if let Some(time) = time_of(came, self.bytes_per_second).filter(|_| came > 0) {
            // Rounded up, the time of whole bytes might pass `now`.
            (self.tokens, self.at) = (tokens, (self.at + time).min(now));
        }
        if self.tokens >= LEAST { self.tokens } else { 0 }
    }

    /// What the last `poll` left.
    pub(super) fn left(&self) -> u64 {
        self.tokens
    }

    /// When `poll` will give something; `None` when it never will.
    pub fn ready_at(&self) -> Option<Instant> {
        let wait = time_of(LEAST.saturating_sub(self.tokens), self.bytes_per_second)?;
        self.at.checked_add(wait)
    }

    /// So many bytes go now.
    pub fn take(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(bytes);
    }
}

/// What a peer may be granted: so many bytes a second. What it was granted counts at once, used or not, and the next grant is made when that
/// has been paid for by the time that passed.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When all that was granted is paid for; `None` for never.
    paid_at: Option<Instant>,
}

impl Pace {
    /// With nothing to pay for.
    pub(super) fn new(now: Instant, bytes_per_second: u64) -> Self {
        Self { bytes_per_second, paid_at: Some(now) }
    }

    /// Goes on at another rate with what is to be paid for.
    pub(super) fn set_rate(&mut self, now: Instant, bytes_per_second: u64) {
        let left = self.paid_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let bytes = bytes_in(left, self.bytes_per_second);
        *self = Self::new(now, bytes_per_second);
        self.take(now, bytes);
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.paid_at.is_some_and(|at| at <= now)
    }

    /// When it will be; `None` for never.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        self.paid_at
    }

    /// So many bytes are granted now. Who was told late that it is ready has lost nothing, but who was idle has saved up no more than a burst.
    pub(super) fn take(&mut self, now: Instant, bytes: u64) {
        if bytes > 0 {
            let from = self.paid_at.map(|at| at.max(now.checked_sub(BURST).unwrap_or(now)));
            let time = time_of(bytes, self.bytes_per_second);
            self.paid_at = from.zip(time).and_then(|(from, time)| from.checked_add(time));
        }
    }
}

/// What comes in that time.
fn bytes_in(time: Duration, bytes_per_second: u64) -> u64 {
    u64::try_from(u128::from(bytes_per_second) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

/// How long so many bytes take; `None` for ever.
fn time_of(bytes: u64, bytes_per_second: u64) -> Option<Duration> {
    let nanoseconds = u128::from(bytes) * 1_000_000_000;
    let time = nanoseconds.div_ceil(u128::from(bytes_per_second.max(1)));
    u64::try_from(time).ok().map(Duration::from_nanos).filter(|_| bytes_per_second > 0)
}

/// Puts a limit in force, changes it or lifts it.
pub(crate) fn set_rate(limit: &mut Option<TokenBucket>, now: Instant, bytes_per_second: Option<u64>) {
    match (&mut *limit, bytes_per_second) {
        (Some(bucket), Some(rate)) => bucket.set_rate(now, rate),
        (_, rate) => *limit = rate.map(|rate| TokenBucket::new(now, rate)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all that is given, in packets of at most `packet`, for this long, and looks again when it is told to.
    fn taken(bucket: &mut TokenBucket, start: Instant, time: Duration, packet: u64) -> u64 {
        let (mut now, mut taken) = (start, 0);
        while now <= start + time {
            match bucket.poll(now).min(packet) {
                0 => now = bucket.ready_at().expect("a rate"),
                bytes => {
                    bucket.take(bytes);
                    taken += bytes;
                }
            }
        }
        taken
    }

    #[test]
    fn the_rate_is_kept_to_whatever_the_packets() {
        for rate in [1000, 1 << 20, 100 << 20, 10_000_000_000, u64::MAX / 4] {
            for packet in [16 * 1024, 262_120] {
                let now = Instant::now();
                let mut bucket = TokenBucket::new(now, rate);
                let depth = bucket.depth();
                let time = if rate > 1 << 40 { Duration::from_micros(1) } else { Duration::from_secs(60) };
                if rate > 1 << 40 {
                    assert!(bucket.poll(now) > rate / 20);
                    continue;
                }
                let taken = taken(&mut bucket, now, time, packet);
                let all = rate * time.as_secs();
                assert!((all..=all + depth + LEAST).contains(&taken), "{rate}, {packet}: {taken} of {all}");
            }
        }
    }

    #[test]
    fn an_idle_time_saves_up_no_more_than_a_burst() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(now, 100 << 20);
        assert_eq!(bucket.poll(now + Duration::from_secs(3600)), 10 << 20);
        // A clock that stands still gives nothing, and one that goes back does no harm.
        bucket.take(u64::MAX);
        assert_eq!(bucket.poll(now + Duration::from_secs(3600)), 0);
        assert_eq!(bucket.poll(now), 0);
    }

    #[test]
    fn who_changes_the_rate_all_the_time_gets_no_more() {
        let begin = Instant::now();
        let mut bucket = TokenBucket::new(begin, 100 << 20);
        let mut taken = 0;
        for millisecond in 0..1000 {
            let now = begin + Duration::from_millis(millisecond);
            bucket.set_rate(now, (100 << 20) - millisecond % 2);
            let bytes = bucket.poll(now);
            bucket.take(bytes);
            taken += bytes;
        }
        assert!(taken < 111 << 20, "{taken}");
    }

    /// Grants so many bytes whenever it may, told each time so late.
    fn granted(pace: &mut Pace, start: Instant, time: Duration, bytes: u64, late: Duration) -> u64 {
        let (mut now, mut granted) = (start, 0);
        while now <= start + time {
            while pace.is_ready(now) {
                pace.take(now, bytes);
                granted += bytes;
            }
            now = pace.ready_at().expect("a rate") + late;
        }
        granted
    }

    #[test]
    fn what_is_granted_keeps_to_the_rate_however_late_it_is_told() {
        const SECONDS: u64 = 10;
        for rate in [1000, 1 << 20, 1 << 30] {
            for (bytes, late) in [(4096, 0), (256 << 10, 0), (256 << 10, 1), (256 << 10, 50), (256 << 20, 3)] {
                let now = Instant::now();
                let mut pace = Pace::new(now, rate);
                let got = granted(&mut pace, now, Duration::from_secs(SECONDS), bytes, Duration::from_millis(late));
                let least = (rate * SECONDS).saturating_sub(rate / 10);
                let most = rate * SECONDS + rate / 10 + bytes;
                assert!((least..=most).contains(&got), "{rate}, {bytes}, {late}: {got}");
            }
        }
    }

    #[test]
    fn an_idle_time_saves_up_a_burst_of_grants_and_a_new_rate_forgives_nothing() {
        let now = Instant::now();
        let mut pace = Pace::new(now, 100 << 20);
        let later = now + Duration::from_secs(3600);
        let mut granted = 0;
        while pace.is_ready(later) {
            pace.take(later, 1 << 20);
            granted += 1;
        }
        assert_eq!(granted, 11, "MiB: a tenth of a second, and one that begins in time");
        pace.take(later, 99 << 20);
        pace.set_rate(later, 50 << 20);
        let wait = pace.ready_at().expect("a rate") - later;
        assert!((wait.as_secs_f64() - 2.0).abs() < 0.01, "{wait:?}");
        // What can never be paid for is not: nothing overflows.
        for (rate, bytes) in [(0, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
            let mut pace = Pace::new(now, rate);
            pace.take(now, 0);
            assert!(pace.is_ready(now), "nothing was granted");
            pace.take(now, bytes);
            assert!(!pace.is_ready(now) || rate == u64::MAX);
            pace.set_rate(now, u64::MAX);
            pace.take(now, u64::MAX);
        }
    }

    #[test]
    fn at_rate_0_nothing_goes_and_nobody_waits_for_it() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(now, 0);
        let first = bucket.poll(now);
        bucket.take(first);
        assert_eq!((bucket.poll(now + Duration::from_secs(1 << 20)), bucket.ready_at()), (0, None));
    }
}
