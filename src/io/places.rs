//! How many links may come in.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::counters::Counters;

/// What a host takes of those who connect to its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// Links that have said HELLO, or called a daemon behind us. While there are so many, nobody else is let in; those who are on their way
    /// come on top.
    pub sessions: usize,
    /// Links that have said nothing whole yet. Each has `Config::hello_timeout`.
    pub half_open: usize,
    /// Those of them that come from one IPv4 address, or from one /64 of IPv6: so that nobody can keep all others out.
    pub half_open_each: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { sessions: 1024, half_open: 1024, half_open_each: 256 }
    }
}

/// Counts that order nothing else.
#[derive(Debug)]
pub(super) struct Places {
    sessions_max: AtomicUsize,
    half_open_max: AtomicUsize,
    half_open_each: AtomicUsize,
    sessions: AtomicUsize,
    half_open: AtomicUsize,
    /// How many of those that are half open come from where.
    origins: Mutex<HashMap<IpAddr, usize>>,
    refused: AtomicU64,
}

/// The place of one link, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    /// Where it comes from, while it is half open.
    origin: Option<IpAddr>,
    stands: bool,
}

impl Places {
    pub(super) fn new(limits: LinkLimits) -> Self {
        Self {
            sessions_max: AtomicUsize::new(limits.sessions),
            half_open_max: AtomicUsize::new(limits.half_open),
            half_open_each: AtomicUsize::new(limits.half_open_each),
            sessions: AtomicUsize::default(),
            half_open: AtomicUsize::default(),
            origins: Mutex::default(),
            refused: AtomicU64::default(),
        }
    }

    pub(super) fn limit(&self, limits: LinkLimits) {
        self.sessions_max.store(limits.sessions, Ordering::Relaxed);
        self.half_open_max.store(limits.half_open, Ordering::Relaxed);
        self.half_open_each.store(limits.half_open_each, Ordering::Relaxed);
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

    /// A place for a link that has just come, over IP from this address.
    pub(super) fn enter(places: &Arc<Self>, from: Option<IpAddr>) -> Option<Place> {
        let origin = from.map(origin);
        let place = places.try_enter(origin).then(|| Place { places: Arc::clone(places), origin, stands: false });
        if place.is_none() {
            places.refused.fetch_add(1, Ordering::Relaxed);
        }
        place
    }

    fn try_enter(&self, origin: Option<IpAddr>) -> bool {
        let mut origins = self.origins.lock();
        let of_origin = origin.and_then(|origin| origins.get(&origin)).copied().unwrap_or(0);
        let most = self.half_open_max.load(Ordering::Relaxed);
        let one_more = |count: usize| (count < most).then_some(count + 1);
        let is_room = self.sessions.load(Ordering::Relaxed) < self.sessions_max.load(Ordering::Relaxed)
            && of_origin < self.half_open_each.load(Ordering::Relaxed)
            && self.half_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if let Some(origin) = origin.filter(|_| is_room) {
            origins.insert(origin, of_origin + 1);
        }
        is_room
    }

    fn leave_origin(&self, origin: IpAddr) {
        let mut origins = self.origins.lock();
        if let Some(count) = origins.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                origins.remove(&origin);
            }
        }
    }
}

/// What one owner has for certain: an IPv4 address, or the /64 that every IPv6 network gives out.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

impl Place {
    /// Its link has said what it wants.
    pub(super) fn stand(&mut self) {
        if !std::mem::replace(&mut self.stands, true) {
            self.places.half_open.fetch_sub(1, Ordering::Relaxed);
            self.places.sessions.fetch_add(1, Ordering::Relaxed);
            self.leave_origin();
        }
    }

    fn leave_origin(&mut self) {
        if let Some(origin) = self.origin.take() {
            self.places.leave_origin(origin);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_origin();
        let count = if self.stands { &self.places.sessions } else { &self.places.half_open };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_origin_has_no_more_than_its_share_until_one_of_its_links_stands_or_ends() {
        let limits = LinkLimits { sessions: 10, half_open: 10, half_open_each: 2 };
        let places = Arc::new(Places::new(limits));
        let enter = |from: &str| Places::enter(&places, Some(from.parse().unwrap()));
        let (first, mut second) = (enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap());
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        second.stand();
        let third = enter("192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        drop((second, third));

        let _held = [enter("2001:db8::1").unwrap(), enter("2001:db8::ffff:1").unwrap()];
        assert!(enter("2001:db8::2").is_none(), "of the same /64");
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(_held);
        assert!(places.origins.lock().is_empty());
        assert!(Places::enter(&places, None).is_some());
    }
}
