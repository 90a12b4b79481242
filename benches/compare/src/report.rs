//! The tables.

use crate::contenders::Kind;
use crate::load::{median, percentile};
use crate::measure::{Contender, Measured, Plan, Series};
use crate::targets;

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
    print_table(&targets::table(&streams, contenders));
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
