//! How many links may come in.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::counters::Counters;

/// What of its rate an origin may have at once.
const BURST: Duration = Duration::from_secs(4);

/// Origins that are remembered beside those of links that are half open.
const ORIGINS_MAX: usize = 4096;

/// What a host takes of those who connect to its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// Links that have said HELLO, or called a daemon behind us. While there are so many, nobody else is let in; those who are on their way
    /// come on top.
    pub sessions: usize,
    /// Links that have said nothing whole yet. Each has `Config::hello_timeout`.
    pub half_open: usize,
    /// Those of them that come from one IPv4 address, from one /64 of IPv6, or by UNIX sockets from one user of this host: so that nobody can
    /// keep all others out.
    pub half_open_each: usize,
    /// Links that one of those may make in a second, and in four at once: each can cost a TLS handshake.
    pub per_second_each: u32,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { sessions: 1024, half_open: 1024, half_open_each: 256, per_second_each: 100 }
    }
}

/// Who shares one allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// What one owner has for certain: an IPv4 address, or the /64 that every IPv6 network gives out.
    Address(IpAddr),
    /// A user of this host.
    User(u32),
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address => address,
        })
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many links are open as may be.
    Links,
    /// Its origin makes too many in a second.
    Rate,
}

/// Counts that order nothing else.
#[derive(Debug)]
pub(super) struct Places {
    sessions_max: AtomicUsize,
    half_open_max: AtomicUsize,
    half_open_each: AtomicUsize,
    per_second_each: AtomicU32,
    sessions: AtomicUsize,
    half_open: AtomicUsize,
    origins: Mutex<HashMap<Origin, OfOrigin>>,
    refused: AtomicU64,
    over_rate: AtomicU64,
}

/// What comes from one origin. Without links and due in the past, it is as good as unknown.
#[derive(Clone, Copy, Debug)]
struct OfOrigin {
    half_open: usize,
    /// When all its links so far would have come at the rate that it may have.
    due: Instant,
}

/// The place of one link, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    /// Where it comes from, while it is half open.
    origin: Option<Origin>,
    stands: bool,
}

impl Places {
    pub(super) fn new(limits: LinkLimits) -> Self {
        Self {
            sessions_max: AtomicUsize::new(limits.sessions),
            half_open_max: AtomicUsize::new(limits.half_open),
            half_open_each: AtomicUsize::new(limits.half_open_each),
            per_second_each: AtomicU32::new(limits.per_second_each),
            sessions: AtomicUsize::default(),
            half_open: AtomicUsize::default(),
            origins: Mutex::default(),
            refused: AtomicU64::default(),
            over_rate: AtomicU64::default(),
        }
    }

    pub(super) fn limit(&self, limits: LinkLimits) {
        self.sessions_max.store(limits.sessions, Ordering::Relaxed);
        self.half_open_max.store(limits.half_open, Ordering::Relaxed);
        self.half_open_each.store(limits.half_open_each, Ordering::Relaxed);
        self.per_second_each.store(limits.per_second_each, Ordering::Relaxed);
    }

    /// Writes what there is, and what was refused, to where it belongs.
    pub(super) fn count(&self, counters: Counters) -> Counters {
        Counters {
            sessions_now: self.sessions.load(Ordering::Relaxed) as u64,
            half_open_now: self.half_open.load(Ordering::Relaxed) as u64,
            links_refused: self.refused.load(Ordering::Relaxed),
            links_over_rate: self.over_rate.load(Ordering::Relaxed),
            ..counters
        }
    }

    /// A place for a link that has just come.
    pub(super) fn enter(places: &Arc<Self>, origin: Option<Origin>, now: Instant) -> Result<Place, Full> {
        let entered = places.try_enter(origin, now);
        match entered {
            Ok(()) => {}
            Err(Full::Links) => _ = places.refused.fetch_add(1, Ordering::Relaxed),
            Err(Full::Rate) => _ = places.over_rate.fetch_add(1, Ordering::Relaxed),
        }
        entered.map(|()| Place { places: Arc::clone(places), origin, stands: false })
    }

    fn try_enter(&self, origin: Option<Origin>, now: Instant) -> Result<(), Full> {
        let mut origins = self.origins.lock();
        let known = origin.and_then(|origin| origins.get(&origin)).copied();
        let known = known.unwrap_or(OfOrigin { half_open: 0, due: now });
        let each = Duration::from_secs(1) / self.per_second_each.load(Ordering::Relaxed).max(1);
        let due = known.due.max(now) + each;
        if origin.is_some() && due > now + BURST {
            return Err(Full::Rate);
        }
        let most = self.half_open_max.load(Ordering::Relaxed);
        let one_more = |count: usize| (count < most).then_some(count + 1);
        let is_room = self.sessions.load(Ordering::Relaxed) < self.sessions_max.load(Ordering::Relaxed)
            && known.half_open < self.half_open_each.load(Ordering::Relaxed)
            && self.half_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if !is_room {
            return Err(Full::Links);
        }
        if let Some(origin) = origin {
            self.forget_some(&mut origins, now);
            origins.insert(origin, OfOrigin { half_open: known.half_open + 1, due });
        }
        Ok(())
    }

    fn leave_origin(&self, origin: Origin) {
        if let Some(known) = self.origins.lock().get_mut(&origin) {
            known.half_open -= 1;
        }
    }

    /// Keeps the table small, and is seldom called for it: what it leaves is half of what it takes to be called.
    fn forget_some(&self, origins: &mut HashMap<Origin, OfOrigin>, now: Instant) {
        let most = ORIGINS_MAX + 2 * self.half_open.load(Ordering::Relaxed);
        if origins.len() < most {
            return;
        }
        origins.retain(|_, known| known.half_open > 0 || known.due > now);
        // Whose addresses are so many is not held up by what each may do.
        if origins.len() > most / 2 {
            origins.retain(|_, known| known.half_open > 0);
        }
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

    fn from(address: &str) -> Option<Origin> {
        Some(address.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn one_origin_has_no_more_than_its_share_until_one_of_its_links_stands_or_ends() {
        let limits = LinkLimits { sessions: 10, half_open: 10, half_open_each: 2, ..LinkLimits::default() };
        let places = Arc::new(Places::new(limits));
        let now = Instant::now();
        let enter = |origin| Places::enter(&places, origin, now).ok();
        let (first, mut second) = (enter(from("192.0.2.1")).unwrap(), enter(from("::ffff:192.0.2.1")).unwrap());
        assert!(enter(from("192.0.2.1")).is_none());
        assert!(enter(from("192.0.2.2")).is_some());
        second.stand();
        let third = enter(from("192.0.2.1")).unwrap();
        assert!(enter(from("192.0.2.1")).is_none());
        drop(first);
        assert!(enter(from("192.0.2.1")).is_some());
        drop((second, third));

        let held = [enter(from("2001:db8::1")).unwrap(), enter(from("2001:db8::ffff:1")).unwrap()];
        assert!(enter(from("2001:db8::2")).is_none(), "of the same /64");
        assert!(enter(from("2001:db8:0:1::1")).is_some());
        drop(held);

        let user = |uid| Some(Origin::User(uid));
        let _held = [enter(user(7)).unwrap(), enter(user(7)).unwrap()];
        assert!(enter(user(7)).is_none());
        assert!(enter(user(8)).is_some());
        assert!(enter(None).is_some());
        assert!(places.origins.lock().values().all(|known| known.half_open <= 2));
    }

    #[test]
    fn one_origin_makes_no_more_links_than_its_rate_and_a_burst() {
        let places = Arc::new(Places::new(LinkLimits { per_second_each: 10, ..LinkLimits::default() }));
        let begin = Instant::now();
        let made = |address, now| (0..100).filter(|_| Places::enter(&places, from(address), now).is_ok()).count();
        assert_eq!(made("192.0.2.1", begin), 40);
        assert_eq!(Places::enter(&places, from("192.0.2.1"), begin).err(), Some(Full::Rate));
        assert_eq!(made("192.0.2.2", begin), 40);
        assert_eq!(made("192.0.2.1", begin + Duration::from_secs(1)), 10);
        assert_eq!(made("192.0.2.1", begin + Duration::from_secs(3600)), 40);
    }

    #[test]
    fn any_number_of_origins_is_remembered_in_little_and_those_with_links_are_not_forgotten() {
        let places = Arc::new(Places::new(LinkLimits { half_open_each: 1, ..LinkLimits::default() }));
        let now = Instant::now();
        let _held = Places::enter(&places, Some(Origin::User(0)), now).unwrap();
        for uid in 1..100_000 {
            assert!(Places::enter(&places, Some(Origin::User(uid)), now).is_ok());
            assert!(places.origins.lock().len() <= ORIGINS_MAX + 4);
        }
        assert_eq!(Places::enter(&places, Some(Origin::User(0)), now).err(), Some(Full::Links));
    }
}
