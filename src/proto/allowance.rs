use std::time::{Duration, Instant};

/// What may come at once after a quiet time: so many seconds' worth.
const BURST: u32 = 4;

/// So many a second, and a burst of what four seconds bring.
#[derive(Debug)]
pub(super) struct Allowance {
    per_second: u32,
    left: u64,
    /// When `left` was right.
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(super) fn new(now: Instant, per_second: u32) -> Self {
        Self { per_second, left: Self::burst(per_second), at: now }
    }

    fn burst(per_second: u32) -> u64 {
        u64::from(per_second) * u64::from(BURST)
    }

    /// Takes one; false when there is none.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            self.refill(now);
        }
        let had = self.left > 0;
        self.left = self.left.saturating_sub(1);
        had
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).min(Duration::from_secs(u64::from(BURST)));
        let came = elapsed.as_nanos() * u128::from(self.per_second) / 1_000_000_000;
        let came = u64::try_from(came).unwrap_or(u64::MAX);
        if came > 0 {
            self.left = came.min(Self::burst(self.per_second));
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate_are_allowed() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(begin, 100);
        let taken = |allowance: &mut Allowance, now| (0..10_000).filter(|_| allowance.take(now)).count();
        assert_eq!(taken(&mut allowance, begin), 400);
        assert_eq!(taken(&mut allowance, begin + Duration::from_millis(9)), 0);
        assert_eq!(taken(&mut allowance, begin + Duration::from_millis(109)), 10);
        assert_eq!(taken(&mut allowance, begin + Duration::from_secs(3600)), 400);
        let mut nothing = Allowance::new(begin, 0);
        assert_eq!(taken(&mut nothing, begin + Duration::from_secs(9)), 0);
    }
}
