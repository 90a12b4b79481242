//! How much of a long link a session fills, by windows that tune themselves.

mod support;

use std::time::Duration;

use support::link::Link;
use virbistream::proto::{Config, MemoryBudget};

/// What a link has carried.
struct Carried {
    /// Of the rate, in the second half of the time.
    per_cent: u64,
    /// When it first carried 90 % of the rate for a while.
    filled_after: Option<Duration>,
    /// Windows of all streams at the end, in bytes.
    windows: u64,
}

fn carry(config: &Config, round_trip: Duration, bytes_per_second: u64, streams: u32) -> Carried {
    let mut link = Link::new(config, round_trip, bytes_per_second);
    for _ in 0..streams {
        link.open(0);
    }
    // What was delivered in each of these.
    let interval = Duration::from_millis(20).max(round_trip);
    let intervals = (Duration::from_secs(2).max(60 * round_trip)).as_micros() / interval.as_micros();
    let mut delivered = Vec::new();
    for _ in 0..intervals {
        let before = link.delivered_in_all();
        link.run(interval);
        delivered.push(link.delivered_in_all() - before);
    }
    let per_cent = |bytes: u64, time: Duration| {
        (u128::from(bytes) * 100_000_000_000 / time.as_nanos() / u128::from(bytes_per_second)) as u64
    };
    let half = &delivered[delivered.len() / 2..];
    let filled = delivered.iter().position(|bytes| per_cent(*bytes, interval) >= 90);
    Carried {
        per_cent: per_cent(half.iter().sum(), interval * half.len() as u32),
        filled_after: filled.map(|n| interval * n as u32),
        windows: link.windows(),
    }
}

fn table(config: &Config, round_trips: &[u64]) -> String {
    let mut table = String::from("round trip  Mbit/s  streams  carried  90 % after     windows\n");
    for round_trip in round_trips.iter().copied().map(Duration::from_micros) {
        for mbit in [100, 1000, 10_000] {
            for streams in [1, 4, 64] {
                let Carried { per_cent, filled_after, windows } = carry(config, round_trip, mbit * 125_000, streams);
                let round_trip = format!("{round_trip:?}");
                let filled = filled_after.map_or("never".into(), |time| format!("{time:?}"));
                let windows = format!("{} KiB", windows >> 10);
                table += &format!(
                    "{round_trip:>10}  {mbit:>6}  {streams:>7}  {per_cent:>5} %  {filled:>10}  {windows:>10}\n"
                );
            }
        }
    }
    table
}

/// Compares with the table kept in the file, which the test prints when it is another.
#[track_caller]
fn assert_kept(name: &str, table: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/long_links").join(name);
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == table, "{} has:\n{kept}\nbut now it is:\n{table}", path.display());
}

/// A field of a line that is a number.
#[track_caller]
fn number(line: &str, field: usize) -> u64 {
    line.split_whitespace().nth(field).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn windows_tune_themselves_until_the_link_is_full() {
    let table = table(&Config::default(), &[200, 10_000, 50_000, 200_000]);
    assert_kept("default.txt", &table);
    for line in table.lines().skip(1) {
        assert!(number(line, 3) >= 90, "{line}");
    }
}

/// Memory is the bound: what it does not suffice for is slower, and windows grow to half of the budget alone.
#[test]
fn windows_stay_within_the_memory_budget() {
    let config = Config { memory_budget: MemoryBudget::new(64 << 20), ..Config::default() };
    let table = table(&config, &[10_000, 200_000]);
    assert_kept("budget_64_mib.txt", &table);
    for line in table.lines().skip(1) {
        let (streams, windows) = (number(line, 2), number(line, line.split_whitespace().count() - 2));
        assert!(windows <= streams.max(32) << 10, "{line}");
    }
}
