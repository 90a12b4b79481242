//! The tables, and what they say of our targets.

use crate::contenders::Kind;
use crate::load::{median, percentile};
use crate::measure::{Contender, Measured, Plan, Series};

/// Round trips, as in [`Measured::trips`].
pub(crate) const TRIPS: [&str; 6] =
    ["idle p50", "idle p99", "beside bulk p50", "beside bulk p99", "beside stalled p50", "beside stalled p99"];

/// The streams of each bulk, in words.
pub(crate) fn streams(plan: &Plan) -> [String; 3] {
    plan.bulk.map(|(n, _)| if n == 1 { "1 stream".into() } else { format!("{n} streams") })
}

pub(crate) fn print(plan: &Plan, contenders: &[Contender]) {
    println!("Medians of the rounds (least to most); in bold, virbistream's to the contender's.\n");
    let streams = streams(plan);
    let streams = streams.each_ref().map(String::as_str);
    section("GiB/s", &streams, 2, contenders, |measured| &measured.speed);
    section("CPU seconds for each GiB, both ends", &streams, 2, contenders, |measured| &measured.cost);
    section("us, 4 KiB there and back", &TRIPS, 0, contenders, |measured| &measured.trips);
    let memory = format!("{} connections open, data just carried", plan.open.0);
    section("MiB, both ends (Pss)", &[&memory], 1, contenders, |measured| &measured.memory);
    print_targets(&targets(&streams, contenders));
}

fn section(
    title: &str,
    columns: &[&str],
    digits: usize,
    contenders: &[Contender],
    of: fn(&Measured<Series>) -> &[Series],
) {
    let mut rows = vec![[&[title], columns].concat().into_iter().map(String::from).collect::<Vec<_>>()];
    let ours = contenders.iter().find(|contender| contender.kind == Kind::Virbistream);
    for contender in contenders {
        let mut row = vec![contender.kind.name().to_owned()];
        for (n, values) in of(&contender.measured).iter().enumerate() {
            let (least, middle, most) = (percentile(values, 0), median(values), percentile(values, 100));
            let ratio = match ours {
                Some(ours) if ours.kind != contender.kind => {
                    format!(" **{:.2}**", median(&of(&ours.measured)[n]) / middle)
                }
                _ => String::new(),
            };
            row.push(format!("{middle:.digits$} ({least:.digits$} to {most:.digits$}){ratio}"));
        }
        rows.push(row);
    }
    print_table(&rows);
}

/// What virbistream shall reach, as a ratio of its value to another.
struct Target {
    what: String,
    ratio: Option<f64>,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Bound::{AtLeast, AtMost};

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
            let relays = [Kind::Socat, Kind::SocatB, Kind::Tokio, Kind::Go];
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
    target("idle p50 to tokio's".into(), to_least(&[Kind::Tokio], &|medians| medians.trips[0]), AtMost(1.15));
    let busy = to_least(&[Kind::Tokio], &|medians| medians.trips[3]);
    target("p99 beside bulk to tokio's".into(), busy, AtMost(2.0));
    let stalled = ours(&|medians| medians.trips[4] / medians.trips[0]);
    target("p50 beside a stalled stream to its own idle".into(), stalled, AtMost(1.1));
    targets
}

fn print_targets(targets: &[Target]) {
    let mut rows = vec![["virbistream's", "ratio", "target", ""].map(String::from).to_vec()];
    for Target { what, ratio, bound } in targets {
        let Some(ratio) = ratio else { continue };
        let (limit, is_met) = match bound {
            AtLeast(limit) => (format!("at least {limit:.2}"), ratio >= limit),
            AtMost(limit) => (format!("at most {limit:.2}"), ratio <= limit),
        };
        rows.push(vec![what.clone(), format!("{ratio:.2}"), limit, if is_met { "met" } else { "missed" }.into()]);
    }
    print_table(&rows);
}

/// As markdown that can be read as it is; the first row is the head.
fn print_table(rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    for (n, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:width$} |")).collect::<String>();
        println!("|{cells}");
        if n == 0 {
            println!("|{}", widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect::<String>());
        }
    }
    println!();
}
