//! What a seed is: the limits of both sides, the links, and what befalls them when.

use std::time::{Duration, Instant};

use virbistream::proto::{Config, MemoryBudget};

use crate::support::{End, Random};
use crate::way::Way;

/// In which all that is planned happens; what is left then is let go.
pub(crate) const HORIZON: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing moves from this end for a while.
    Stall(End, Duration),
    /// Nothing comes from this end any more, and nobody is told.
    HalfOpen(End),
    /// The link breaks within what is under way. The ends that are not told find it half open.
    Cut([bool; 2]),
    /// A process stands still: it reads nothing, writes nothing and sees no time pass.
    Freeze(End, Duration),
    /// The clock of an end jumps.
    Jump(End, Duration),
    /// Of all that an end sends.
    Limit(End, Option<u64>),
    ReceiveLimit(End, Option<u64>),
    Close(End),
    Shutdown(End),
}

/// One session of the two hosts.
#[derive(Debug)]
pub(crate) struct SessionPlan {
    pub(crate) ways: [Way; 2],
    /// When each end asks for streams.
    pub(crate) opens: [Vec<Duration>; 2],
    pub(crate) faults: Vec<(Duration, Fault)>,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) start: Instant,
    pub(crate) random: Random,
    /// Of the connecting and the accepting host.
    pub(crate) configs: [Config; 2],
    pub(crate) sessions: Vec<SessionPlan>,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let (mut random, start) = (Random::new(seed), Instant::now());
        let configs = [config(&mut random), config(&mut random)];
        // Most faults are rare, so that what they disturb has time to go on.
        let sessions = (0..*random.pick(&[1, 1, 2, 3])).map(|_| session(&mut random, start, &configs)).collect();
        Self { seed, start, random, configs, sessions }
    }
}

fn millis(random: &mut Random, least: u64, most: u64) -> Duration {
    Duration::from_millis(least + random.below(most - least + 1))
}

fn config(random: &mut Random) -> Config {
    let window = *random.pick(&[4096, 5000, 16 << 10, 64 << 10, 256 << 10]);
    let ping_interval = millis(random, 50, 3000);
    Config {
        max_data: *random.pick(&[4096, 10_000, 65_536, 262_120]),
        max_streams: *random.pick(&[1, 3, 8, 40]),
        window,
        window_max: window * random.pick(&[1, 2, 16, 64]),
        memory_budget: MemoryBudget::new(window * random.pick(&[1, 3, 10, 100])),
        hello_timeout: Some(Duration::from_secs(5)),
        open_timeout: millis(random, 200, 8000),
        ping_interval,
        silence_limit: ping_interval * (2 + random.below(4) as u32) + Duration::from_millis(700),
        ..Config::default()
    }
}

fn session(random: &mut Random, start: Instant, configs: &[Config; 2]) -> SessionPlan {
    let (rate, crumbles) = (*random.pick(&[300_000, 2_000_000, 20_000_000, 500_000_000]), random.one_in(3));
    let most = *random.pick(&[0, 2, 40, 150]);
    let delay = millis(random, 0, most);
    let capacity = *random.pick(&[600, 8 << 10, 64 << 10, 1 << 20]);
    let way = || Way::new(start, rate, delay, capacity, crumbles);
    let ways = [way(), way()];
    let opens = [opens(random), opens(random)];
    SessionPlan { ways, opens, faults: faults(random, configs) }
}

fn opens(random: &mut Random) -> Vec<Duration> {
    let count = *random.pick(&[0, 1, 3, 8]);
    let within = *random.pick(&[100, 1000, 9000]);
    let mut opens: Vec<_> = (0..count).map(|_| millis(random, 0, within)).collect();
    opens.sort();
    opens
}

fn faults(random: &mut Random, configs: &[Config; 2]) -> Vec<(Duration, Fault)> {
    let count = *random.pick(&[0, 1, 3, 6]);
    let mut faults: Vec<_> = (0..count).map(|_| (millis(random, 0, 11_000), fault(random, configs))).collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn fault(random: &mut Random, configs: &[Config; 2]) -> Fault {
    let end = *random.pick(&End::BOTH);
    // Some are borne and some are not.
    let silence = configs[end as usize].silence_limit;
    let time = silence.mul_f64(*random.pick(&[0.05, 0.3, 0.6, 1.5]));
    let rate = *random.pick(&[None, Some(0), Some(50_000), Some(1_000_000), Some(50_000_000)]);
    match random.below(23) {
        0..=5 => Fault::Stall(end, time),
        6..=9 => Fault::Freeze(end, time),
        10..=12 => Fault::Jump(end, time),
        13..=15 => Fault::Limit(end, rate),
        16..=18 => Fault::ReceiveLimit(end, rate),
        19 => Fault::HalfOpen(end),
        20 => Fault::Cut(*random.pick(&[[true, true], [true, false], [false, true], [false, false]])),
        21 => Fault::Close(end),
        _ if random.one_in(2) => Fault::Shutdown(end),
        _ => Fault::Close(end),
    }
}
