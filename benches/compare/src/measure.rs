//! What is measured of a contender in each round.

use std::io;
use std::time::Duration;

use crate::contenders::Kind;
use crate::load::{MIB, Way, gib, median, percentile};
use crate::process::Ends;

/// What one round takes of a contender.
pub(crate) struct Plan {
    /// Streams at once, and the bytes of each.
    pub(crate) bulk: [(usize, usize); 3],
    /// How long round trips are measured.
    idle: Duration,
    beside: Duration,
    /// Connections that are open while memory is measured, and what each has just carried.
    pub(crate) open: (usize, usize),
}

pub(crate) const MEASURED: Plan = Plan {
    bulk: [(1, 512 * MIB), (4, 128 * MIB), (64, 8 * MIB)],
    idle: Duration::from_millis(200),
    beside: Duration::from_millis(600),
    open: (64, MIB),
};

pub(crate) const SMOKE: Plan = Plan {
    bulk: [(1, MIB), (4, MIB), (64, MIB / 64)],
    idle: Duration::from_millis(10),
    beside: Duration::from_millis(10),
    open: (64, MIB / 64),
};

/// A value of each round.
pub(crate) type Series = Vec<f64>;

/// All that is measured of a contender: a series of each, or one value.
#[derive(Default)]
pub(crate) struct Measured<T> {
    /// GiB/s, as in [`Plan::bulk`].
    pub(crate) speed: [T; 3],
    /// CPU seconds for each GiB, of both ends, as in [`Plan::bulk`].
    pub(crate) cost: [T; 3],
    /// Microseconds of a round trip: p50 and p99 idle, beside bulk, beside a stalled stream.
    pub(crate) trips: [T; 6],
    /// MiB of both ends.
    pub(crate) memory: [T; 1],
}

impl Measured<Series> {
    pub(crate) fn medians(&self) -> Measured<f64> {
        let of = |series: &Series| median(series);
        Measured {
            speed: self.speed.each_ref().map(of),
            cost: self.cost.each_ref().map(of),
            trips: self.trips.each_ref().map(of),
            memory: self.memory.each_ref().map(of),
        }
    }
}

/// One way from a UNIX socket to another, and what was measured of it.
pub(crate) struct Contender {
    pub(crate) kind: Kind,
    pub(crate) way: Way,
    pub(crate) ends: Ends,
    pub(crate) measured: Measured<Series>,
}

impl Contender {
    pub(crate) fn round(&mut self, plan: &Plan) -> io::Result<()> {
        let Self { way, ends, measured, .. } = self;
        for (n, (connections, bytes)) in plan.bulk.into_iter().enumerate() {
            let before = ends.cpu()?;
            let bulk = way.bulk(connections, bytes)?;
            let used = ends.cpu()? - before;
            // With little to carry the clock may see none of it, and what is infinite cannot be drawn.
            measured.speed[n].push(gib(bulk.bytes) / bulk.time.as_secs_f64().max(1e-6));
            measured.cost[n].push(used.as_secs_f64() / gib(bulk.bytes));
        }
        let (connections, bytes) = plan.open;
        let memory = way.while_open(connections, bytes, || ends.memory())?;
        measured.memory[0].push(memory as f64 / MIB as f64);

        let trips = [
            way.round_trips(plan.idle)?,
            way.round_trips_beside_bulk(plan.beside)?,
            way.round_trips_beside_stalled(plan.beside)?,
        ];
        for (trips, all) in trips.iter().zip(measured.trips.chunks_exact_mut(2)) {
            for (series, hundredths) in all.iter_mut().zip([50, 99]) {
                series.push(percentile(trips, hundredths).as_secs_f64() * 1e6);
            }
        }
        Ok(())
    }
}
