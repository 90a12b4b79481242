//! The bandwidth limit of all sessions of a handle, and whose turn it is under it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::handle::SessionKey;
use crate::proto::{TokenBucket, set_rate};

/// Who was to ask again and has not for so long has nothing to send any more.
const LATE: Duration = Duration::from_millis(20);

/// Sessions that find nothing left stand in a queue, so that each has its turn, whichever thread it is on.
#[derive(Debug, Default)]
pub(super) struct HostLimit {
    /// Most hosts have none: they take no lock.
    is_on: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bucket: Option<TokenBucket>,
    queue: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    session: SessionKey,
    /// When it was told to ask again.
    again: Instant,
}

/// What a session may do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// Send what it likes: there is no limit.
    Free,
    /// Send so many bytes, which are taken: what it does not send it gives back.
    Bytes(u64),
    /// Ask again then, or when the limit has changed.
    Wait(Option<Instant>),
}

impl HostLimit {
    pub(super) fn set(&self, now: Instant, bytes_per_second: Option<u64>) {
        let mut state = self.state.lock();
        set_rate(&mut state.bucket, now, bytes_per_second);
        state.queue.clear();
        self.is_on.store(bytes_per_second.is_some(), Ordering::Relaxed);
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// For a session that has something to send.
    pub(super) fn ask(&self, session: SessionKey, now: Instant) -> Leave {
        if !self.is_on() {
            return Leave::Free;
        }
        let State { bucket, queue } = &mut *self.state.lock();
        let Some(bucket) = bucket else { return Leave::Free };
        queue.retain(|waiting| waiting.session == session || now.saturating_duration_since(waiting.again) < LATE);
        let ahead = queue.iter().position(|waiting| waiting.session == session);
        let left = bucket.poll(now);
        if left > 0 && ahead.unwrap_or(queue.len()) == 0 {
            queue.pop_front();
            // Not all that has come together while others wait.
            let bytes = if queue.is_empty() { left } else { left.min(bucket.share()) };
            bucket.take(bytes);
            return Leave::Bytes(bytes);
        }
        let Some(again) = bucket.ready_at().map(|at| at.max(now)) else { return Leave::Wait(None) };
        match ahead.and_then(|ahead| queue.get_mut(ahead)) {
            Some(waiting) => waiting.again = again,
            None => queue.push_back(Waiting { session, again }),
        }
        Leave::Wait(Some(again))
    }

    /// Bytes that were taken and not sent.
    pub(super) fn give_back(&self, bytes: u64) {
        if let Some(bucket) = &mut self.state.lock().bucket {
            bucket.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Runs sessions that always have something to send, each asking when it was told to, and gives what each was given.
    fn run(limit: &HostLimit, sessions: u64, begin: Instant, time: Duration) -> Vec<u64> {
        let mut asks: Vec<Instant> = vec![begin; sessions as usize];
        let mut given = vec![0; sessions as usize];
        loop {
            // The lowest of those that are due goes first, as timers of one thread do.
            let next = (0..asks.len()).min_by_key(|n| asks[*n]).unwrap();
            let now = asks[next];
            if now > begin + time {
                return given;
            }
            match limit.ask(SessionKey(next as u64), now) {
                Leave::Bytes(bytes) => given[next] += bytes,
                Leave::Wait(Some(again)) => asks[next] = again.max(now + Duration::from_millis(1)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn sessions_under_one_limit_get_equal_bytes_and_all_that_it_allows() {
        for rate in [MIB, 20 * MIB, 1000 * MIB] {
            let (limit, now) = (HostLimit::default(), Instant::now());
            limit.set(now, Some(rate));
            let given = run(&limit, 3, now, Duration::from_secs(5));
            let all: u64 = given.iter().sum();
            assert!(all > 5 * rate * 95 / 100 && all < 5 * rate * 105 / 100, "{given:?} at {rate}");
            assert!(given.iter().all(|given| given * 3 > all * 9 / 10), "{given:?}");
        }
    }

    #[test]
    fn who_has_nothing_to_send_any_more_holds_nobody_up() {
        let (limit, begin) = (HostLimit::default(), Instant::now());
        limit.set(begin, Some(MIB));
        // It takes what there is, waits for more, and never asks again.
        assert!(matches!(limit.ask(SessionKey(7), begin), Leave::Bytes(_)));
        assert!(matches!(limit.ask(SessionKey(7), begin), Leave::Wait(Some(_))));
        let [given] = run(&limit, 1, begin, Duration::from_secs(10))[..] else { panic!("one session") };
        assert!(given > 10 * MIB * 95 / 100, "{given}");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_a_change_gives_nothing_away() {
        let (limit, now) = (HostLimit::default(), Instant::now());
        assert_eq!(limit.ask(SessionKey(1), now), Leave::Free);
        limit.set(now, Some(10 * MIB));
        assert_eq!(limit.ask(SessionKey(1), now), Leave::Bytes(MIB));
        limit.give_back(MIB);
        assert_eq!(limit.ask(SessionKey(1), now), Leave::Bytes(MIB));
        for _ in 0..100 {
            limit.set(now, Some(10 * MIB));
            assert!(matches!(limit.ask(SessionKey(1), now), Leave::Wait(Some(_))));
        }
        limit.set(now, Some(0));
        assert_eq!(limit.ask(SessionKey(1), now), Leave::Wait(None));
        limit.set(now, None);
        assert_eq!(limit.ask(SessionKey(1), now), Leave::Free);
    }
}
