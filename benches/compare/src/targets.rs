//! What virbistream shall reach beside the others.

use Bound::{AtLeast, AtMost};

use crate::contenders::Kind;
use crate::measure::{Contender, Measured};

/// The ratios that could be measured, and whether they are what they shall be.
pub(crate) fn table(streams: &[&str; 3], contenders: &[Contender]) -> Vec<Vec<String>> {
    let mut rows = vec![["virbistream's", "ratio", "target", ""].map(String::from).to_vec()];
    for Target { what, ratio, bound } in targets(streams, contenders) {
        let Some(ratio) = ratio else { continue };
        let (limit, is_met) = match bound {
            AtLeast(limit) => (format!("at least {limit:.2}"), ratio >= limit),
            AtMost(limit) => (format!("at most {limit:.2}"), ratio <= limit),
        };
        rows.push(vec![what, format!("{ratio:.2}"), limit, if is_met { "met" } else { "missed" }.into()]);
    }
    rows
}

/// A ratio that virbistream shall reach: that of its value to another.
struct Target {
    what: String,
    ratio: Option<f64>,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
fn targets(streams: &[&str; 3], contenders: &[Contender]) -> Vec<Target> {
    type Value<'a> = &'a dyn Fn(&Measured<f64>) -> f64;
    let medians: Vec<_> = contenders.iter().map(|contender| (contender.kind, contender.measured.medians())).collect();
    let values = |kinds: &[Kind], value: Value<'_>| -> Vec<f64> {
        medians.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, medians)| value(medians)).collect()
    };
    let ours = |value: Value<'_>| values(&[Kind::Virbistream], value).into_iter().next();
    let to_most =
        |kinds: &[Kind], value: Value<'_>| Some(ours(value)? / values(kinds, value).into_iter().reduce(f64::max)?);
    let to_least =
        |kinds: &[Kind], value: Value<'_>| Some(ours(value)? / values(kinds, value).into_iter().reduce(f64::min)?);
    let mut targets = Vec::new();
    let mut target = |what: String, ratio, bound| targets.push(Target { what, ratio, bound });

    for (n, streams) in streams.iter().enumerate() {
        let (speed, cost) = (|medians: &Measured<f64>| medians.speed[n], |medians: &Measured<f64>| medians.cost[n]);
        if n < 2 {
            let relays = [Kind::Socat, Kind::SocatB, Kind::Tokio, Kind::TokioB, Kind::Go];
            let what = format!("GiB/s, {streams}, to the best of socat, tokio and Go");
            target(what, to_most(&relays, &speed), AtLeast(1.0));
        }
        target(format!("GiB/s, {streams}, to yamux's"), to_most(&[Kind::Yamux], &speed), AtLeast(2.5));
        target(format!("GiB/s, {streams}, to ssh's"), to_most(&[Kind::Ssh], &speed), AtLeast(2.0));
        let socat = to_least(&[Kind::Socat, Kind::SocatB], &cost);
        target(format!("CPU, {streams}, to the better socat's"), socat, AtMost(1.0));
        target(format!("CPU, {streams}, to yamux's"), to_least(&[Kind::Yamux], &cost), AtMost(0.5));
    }
    let many = ours(&|medians| medians.speed[2] / medians.speed[1]);
    target(format!("GiB/s, {}, to its own {}", streams[2], streams[1]), many, AtLeast(0.95));
    let idle = to_least(&[Kind::Tokio, Kind::TokioB], &|medians| medians.trips[0]);
    target("idle p50 to the better tokio's".into(), idle, AtMost(1.15));
    for (kinds, whose) in [(&[Kind::Tokio, Kind::TokioB][..], "tokio's"), (&[Kind::Socat, Kind::SocatB], "socat's")] {
        let busy = to_least(kinds, &|medians| medians.trips[3]);
        target(format!("p99 beside bulk to the better {whose}"), busy, AtMost(2.0));
    }
    let stalled = ours(&|medians| medians.trips[4] / medians.trips[0]);
    target("p50 beside a stalled stream to its own idle".into(), stalled, AtMost(1.1));
    targets
}
