//! How many links may come in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::counters::Counters;

/// What a host takes of those who connect to its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// Links that have said HELLO, or called a daemon behind us. While there are so many, nobody else is let in; those who are on their way
    /// come on top.
    pub sessions: usize,
    /// Links that have said nothing whole yet. Each has `Config::hello_timeout`.
    pub half_open: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { sessions: 1024, half_open: 1024 }
    }
}

/// Counts that order nothing else.
#[derive(Debug)]
pub(super) struct Places {
    sessions_max: AtomicUsize,
    half_open_max: AtomicUsize,
    sessions: AtomicUsize,
    half_open: AtomicUsize,
    refused: AtomicU64,
}

/// The place of one link, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    stands: bool,
}

impl Places {
    pub(super) fn new(limits: LinkLimits) -> Self {
        Self {
            sessions_max: AtomicUsize::new(limits.sessions),
            half_open_max: AtomicUsize::new(limits.half_open),
            sessions: AtomicUsize::default(),
            half_open: AtomicUsize::default(),
            refused: AtomicU64::default(),
        }
    }

    pub(super) fn limit(&self, limits: LinkLimits) {
        self.sessions_max.store(limits.sessions, Ordering::Relaxed);
        self.half_open_max.store(limits.half_open, Ordering::Relaxed);
    }

    /// Writes what there is, and what was refused, to where it belongs.
    pub(super) fn count(&self, counters: Counters) -> Counters {
        Counters {
            sessions_now: self.sessions.load(Ordering::Relaxed) as u64,
            half_open_now: self.half_open.load(Ordering::Relaxed) as u64,
            links_refused: self.refused.load(Ordering::Relaxed),
            ..counters
        }
    }

    /// A place for a link that has just come.
    pub(super) fn enter(places: &Arc<Self>) -> Option<Place> {
        let most = places.half_open_max.load(Ordering::Relaxed);
        let one_more = |count: usize| (count < most).then_some(count + 1);
        let is_room = places.sessions.load(Ordering::Relaxed) < places.sessions_max.load(Ordering::Relaxed)
            && places.half_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if !is_room {
            places.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Place { places: Arc::clone(places), stands: false })
    }
}

impl Place {
    /// Its link has said what it wants.
    pub(super) fn stand(&mut self) {
        if !std::mem::replace(&mut self.stands, true) {
            self.places.half_open.fetch_sub(1, Ordering::Relaxed);
            self.places.sessions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let count = if self.stands { &self.places.sessions } else { &self.places.half_open };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}
