use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that windows may take: one for all sessions whose [`Config`](super::Config)s have clones of it.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    bytes: u64,
    taken: AtomicU64,
}

impl MemoryBudget {
    /// One of its own.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(Budget { bytes, taken: AtomicU64::new(0) }))
    }

    /// All there is, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Bytes that windows of sessions have now.
    pub fn taken(&self) -> u64 {
        // A count that orders nothing else, here and below.
        self.0.taken.load(Ordering::Relaxed)
    }
}

/// The same one, not another of that size.
impl PartialEq for MemoryBudget {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MemoryBudget {}

/// What one session has of a budget; given back with it.
#[derive(Debug)]
pub(crate) struct Share {
    budget: MemoryBudget,
    taken: u64,
    /// What this session may have of it.
    most: u64,
}

impl Share {
    pub(crate) fn new(budget: MemoryBudget) -> Self {
        Self::up_to(u64::MAX, budget)
    }

    /// So much at the most, however much there is.
    pub(super) fn up_to(most: u64, budget: MemoryBudget) -> Self {
        Self { budget, taken: 0, most }
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// All of it, or false.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        if bytes > self.most - self.taken {
            return false;
        }
        let sum = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.budget.bytes());
        let fits = self.budget.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok();
        self.taken += if fits { bytes } else { 0 };
        fits
    }

    /// What is left of half of the budget, and of half of what this session may have: the other halves are for streams to come.
    pub(super) fn left_to_grow(&self) -> u64 {
        (self.budget.bytes() / 2).saturating_sub(self.budget.taken()).min(self.own_left_to_grow())
    }

    fn own_left_to_grow(&self) -> u64 {
        (self.most / 2).saturating_sub(self.taken)
    }

    /// As much of it as is left to grow.
    pub(super) fn take_some(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.min(self.own_left_to_grow());
        let some = |taken: u64| bytes.min((self.budget.bytes() / 2).saturating_sub(taken));
        let more = |taken: u64| taken.checked_add(some(taken));
        let before = self.budget.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        let got = before.map_or(0, some);
        self.taken += got;
        got
    }

    pub(crate) fn give(&mut self, bytes: u64) {
        self.taken -= bytes;
        self.budget.0.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_together_keep_to_the_budget_and_give_back_what_they_had() {
        let budget = MemoryBudget::new(100);
        let mut one = Share::new(budget.clone());
        let mut other = Share::new(budget.clone());
        assert!(one.take(60) && !other.take(41) && other.take(40));
        assert_eq!((one.taken(), other.taken(), budget.taken()), (60, 40, 100));
        one.give(50);
        assert!(!other.take(u64::MAX));
        assert_eq!(other.take_some(10), 0, "half is taken");
        drop(other);
        assert_eq!(one.take_some(100), 40);
        drop(one);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn one_share_takes_no_more_than_it_may_of_what_there_is() {
        let budget = MemoryBudget::new(1000);
        let mut one = Share::up_to(100, budget.clone());
        assert!(one.take(10) && !one.take(91));
        assert_eq!(
            (one.left_to_grow(), one.take_some(50), one.take_some(1)),
            (40, 40, 0),
            "half is for streams to come"
        );
        assert!(one.take(50) && !one.take(1) && !one.take(u64::MAX));
        assert_eq!(budget.taken(), 100);
    }
}
