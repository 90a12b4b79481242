//! What the demo shows: bars on a terminal, plain lines elsewhere, and a table in the end.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use virbistream::proto::StreamStats;

/// Where there are no bars, a task has a line this often, and one in the end.
const LINES: Duration = Duration::from_secs(5);

const BAR: &str = "{prefix:<16} [{bar:20}] {bytes:>10} of {total_bytes:<10} {binary_bytes_per_sec:>12}";

/// Where the progress of the demo's tasks is shown.
#[derive(Debug)]
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Bars when standard error is a terminal.
    pub(crate) fn new() -> Progress {
        Progress { bars: io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// A task of so many bytes.
    pub(crate) fn task(&self, name: String, bytes: u64) -> Task {
        match &self.bars {
            Some(bars) => Task::Bar(bars.add(bar(name, bytes))),
            None => Task::Lines { name, bytes, done: Mutex::new((0, Instant::now())) },
        }
    }
}

fn bar(name: String, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style.progress_chars("=> ")).with_prefix(name)
}

/// One bar, or a line now and then.
#[derive(Debug)]
pub(crate) enum Task {
    Bar(ProgressBar),
    /// What is done, and when that was said the last time.
    Lines {
        name: String,
        bytes: u64,
        done: Mutex<(u64, Instant)>,
    },
}

impl Task {
    /// So many bytes more were done.
    pub(crate) fn advance(&self, more: u64) {
        match self {
            Task::Bar(bar) => bar.inc(more),
            Task::Lines { name, bytes, done } => {
                let mut guard = done.lock().unwrap_or_else(PoisonError::into_inner);
                let (done, said) = &mut *guard;
                *done += more;
                if *done == *bytes || said.elapsed() >= LINES {
                    *said = Instant::now();
                    // Nobody may be reading: the demo goes on.
                    let _ = writeln!(io::stderr(), "{name}: {} of {}", Bytes(*done), Bytes(*bytes));
                }
            }
        }
    }
}

impl Drop for Task {
    /// A bar that did not get to its end stays where it is, for all to see.
    fn drop(&mut self) {
        if let Task::Bar(bar) = self {
            bar.abandon();
        }
    }
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    bytes: u64,
    time: Duration,
    packets: u64,
    stalls: u64,
}

impl Row {
    /// Both directions' packets.
    pub(crate) fn new(name: &str, bytes: u64, time: Duration, stats: &StreamStats) -> Row {
        let packets = stats.packets_sent + stats.packets_received;
        Row { name: name.to_owned(), bytes, time, packets, stalls: stats.stalls }
    }

    /// All began together, so the longest time is the time of all.
    pub(crate) fn total(rows: &[Row]) -> Row {
        Row {
            name: "together".to_owned(),
            bytes: rows.iter().map(|row| row.bytes).sum(),
            time: rows.iter().map(|row| row.time).max().unwrap_or_default(),
            packets: rows.iter().map(|row| row.packets).sum(),
            stalls: rows.iter().map(|row| row.stalls).sum(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { name, bytes, time, packets, stalls } = self;
        let seconds = time.as_secs_f64();
        let rate = *bytes as f64 / f64::from(1 << 30) / seconds.max(1e-9);
        write!(f, "{name:<10} {bytes:>14} {seconds:>9.3} {rate:>7.2} {packets:>9} {stalls:>7}")
    }
}

/// The rows under their headings.
pub(crate) fn table(rows: &[Row]) -> String {
    let heading =
        format!("{:<10} {:>14} {:>9} {:>7} {:>9} {:>7}", "stream", "bytes", "seconds", "GiB/s", "packets", "stalls");
    let rows = rows.iter().map(Row::to_string);
    std::iter::once(heading).chain(rows).collect::<Vec<_>>().join("\n")
}

/// A number of bytes, for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        indicatif::BinaryBytes(self.0).fmt(f)
    }
}
