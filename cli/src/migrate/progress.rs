//! How far it is: read from libvirt now and then, and said as bars, as lines or as JSON.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::{Value, json};
use virbistream::wire::Escaped;

use super::disks::Passing;
use super::domain::{Disk, Domain};
use super::outcome::Failure;
use super::virsh::Virsh;
use crate::stderr::Stderr;

/// How often libvirt is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// How often a line is said where there are no bars.
const LINES: Duration = Duration::from_secs(5);

/// How far something is, by libvirt's word, and what that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) done: u64,
    pub(super) total: u64,
    /// Bytes that passed for it.
    pub(super) bytes: u64,
    /// Of them, in a second.
    pub(super) rate: u64,
}

/// What libvirt said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) disks: Vec<(String, Moved)>,
    pub(super) memory: Moved,
}

/// Asks libvirt on a thread of its own, which a libvirt that does not answer holds up alone.
pub(super) struct Monitor {
    latest: Arc<Mutex<Snapshot>>,
    over: Arc<AtomicBool>,
    asking: Option<JoinHandle<()>>,
}

impl Monitor {
    pub(super) fn start(virsh: &Virsh, domain: &Domain, passing: Passing) -> io::Result<Self> {
        let disk = |disk: &Disk| (disk.target.clone(), Moved::default());
        let first = Snapshot { disks: domain.disks.iter().map(disk).collect(), memory: Moved::default() };
        let (latest, over) = (Arc::new(Mutex::new(first)), Arc::new(AtomicBool::new(false)));
        let (writing, ending) = (Arc::clone(&latest), Arc::clone(&over));
        let (uuid, disks) = (domain.uuid.clone(), domain.disks.clone());
        let virsh = virsh.until(Arc::clone(&over));
        let asking = thread::Builder::new().name("monitor".into()).spawn(move || {
            let mut sampled = vec![None; disks.len()];
            while !ending.load(Ordering::Relaxed) {
                let before = writing.lock().clone();
                let snapshot = look(&virsh, &uuid, &disks, &passing, &before, &mut sampled);
                *writing.lock() = snapshot;
                thread::park_timeout(INTERVAL);
            }
        })?;
        Ok(Self { latest, over, asking: Some(asking) })
    }

    pub(super) fn latest(&self) -> Snapshot {
        self.latest.lock().clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(asking) = self.asking.take() {
            asking.thread().unpark();
            // It asks nobody any more.
            let _ = asking.join();
        }
    }
}

impl Moved {
    /// What is found now. Bytes are not taken back where they are told by another from now on; the first that are have no rate.
    fn next(self, sampled: &mut Option<Instant>, now: Instant, (done, total): (u64, u64), bytes: u64) -> Self {
        let bytes = bytes.max(self.bytes);
        let since = sampled.replace(now).map(|before| now.saturating_duration_since(before).as_secs_f64());
        let rate = since.map_or(0.0, |since| (bytes - self.bytes) as f64 / since.max(0.001));
        Self { done, total, bytes, rate: rate as u64 }
    }

    /// It was moved as a whole.
    fn whole(self) -> Self {
        Self { done: self.total, ..self }
    }
}

/// What cannot be asked now is as it was: the jobs of disks are over before the memory is.
fn look(
    virsh: &Virsh,
    domain: &str,
    disks: &[Disk],
    passing: &Passing,
    before: &Snapshot,
    sampled: &mut [Option<Instant>],
) -> Snapshot {
    let job = virsh.ask(&["domjobinfo", domain, "--rawstats"]).map(|said| pairs(&said, ':')).unwrap_or_default();
    let memory = match (job.get("memory_processed"), job.get("memory_total"), job.get("memory_remaining")) {
        (Some(bytes), Some(total), Some(remaining)) => {
            let rate = job.get("memory_bps").copied().unwrap_or_default();
            Moved { done: total.saturating_sub(*remaining), total: *total, bytes: *bytes, rate }
        }
        _ => before.memory,
    };
    let disk = |((disk, (target, before)), sampled): ((&Disk, &(String, Moved)), &mut Option<Instant>)| {
        let job = virsh.ask(&["blockjob", domain, target, "--raw"]).map(|said| pairs(&said, '=')).unwrap_or_default();
        let (done, total) = match (job.get("cur"), job.get("end")) {
            (Some(done), Some(total)) => (*done, *total),
            _ => (before.done, before.total),
        };
        let figures = disk.export.as_deref().and_then(|export| passing.of(export));
        let bytes = figures.map_or(done, |figures| figures.written);
        (target.clone(), before.next(sampled, Instant::now(), (done, total), bytes))
    };
    Snapshot { disks: disks.iter().zip(&before.disks).zip(sampled).map(disk).collect(), memory }
}

/// `name: number` or `name=number` in each line; what is none is passed over.
pub(super) fn pairs(said: &str, between: char) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(between)?;
        Some((name.trim().to_owned(), value.trim().parse().ok()?))
    };
    said.lines().filter_map(pair).collect()
}

/// How it is said.
pub(super) enum Said {
    Bars(Bars),
    Lines(Mutex<Instant>),
    Json,
}

/// On a terminal, where the log goes, too.
pub(super) struct Bars {
    all: MultiProgress,
    shown: Mutex<BTreeMap<String, ProgressBar>>,
    log: Stderr,
}

impl Bars {
    fn show(&self, name: String, moved: Moved) {
        let mut shown = self.shown.lock();
        let bar = shown.entry(name.clone()).or_insert_with(|| {
            self.log.write_above(Some(self.all.clone()));
            self.all.add(bar(&name))
        });
        bar.set_length(moved.total);
        bar.set_position(moved.done);
        bar.set_message(passed(moved));
    }

    /// They stay as they are, and what is said from now on comes below them.
    fn leave(&self) {
        self.shown.lock().values().for_each(ProgressBar::abandon);
        self.log.write_above(None);
    }
}

impl Said {
    pub(super) fn new(json: bool, stderr: &Stderr) -> Self {
        if json {
            return Self::Json;
        }
        let bars = MultiProgress::new();
        // On no terminal, or one that cannot draw.
        if !io::stderr().is_terminal() || bars.is_hidden() {
            return Self::Lines(Mutex::new(Instant::now()));
        }
        Self::Bars(Bars { all: bars, shown: Mutex::default(), log: stderr.clone() })
    }

    /// Whether it is to be told of progress where there is none, too.
    pub(super) fn is_lines(&self) -> bool {
        matches!(self, Self::Lines(_))
    }

    pub(super) fn check(&self, what: &str, result: &str, text: &str) {
        match self {
            Self::Json => say(&json!({ "event": "check", "what": what, "result": result, "text": text }).to_string()),
            _ => say(&format!("{result:8} {}: {}", Escaped(what), Escaped(text))),
        }
    }

    pub(super) fn note(&self, text: &str) {
        match self {
            Self::Json => say(&json!({ "event": "note", "text": text }).to_string()),
            Self::Bars(bars) => drop(bars.all.println(Escaped(text).to_string())),
            Self::Lines(_) => say(&Escaped(text).to_string()),
        }
    }

    pub(super) fn progress(&self, snapshot: &Snapshot) {
        let all = || {
            let disks = snapshot.disks.iter().map(|(name, moved)| (format!("disk {name}"), *moved));
            disks.chain([("memory".to_owned(), snapshot.memory)])
        };
        match self {
            Self::Json => {
                let moved = |moved: &Moved| json!({ "done": moved.done, "total": moved.total, "bytes": moved.bytes, "bytes_per_second": moved.rate });
                let disks = snapshot.disks.iter().map(|(name, disk)| (name.clone(), moved(disk)));
                let disks: serde_json::Map<String, Value> = disks.collect();
                say(&json!({ "event": "progress", "disks": disks, "memory": moved(&snapshot.memory) }).to_string());
            }
            Self::Bars(bars) => {
                all().filter(|(_, moved)| moved.total > 0).for_each(|(name, moved)| bars.show(name, moved));
            }
            Self::Lines(last) => {
                let mut last = last.lock();
                if last.elapsed() >= LINES {
                    *last = Instant::now();
                    let part =
                        |(name, moved): (String, Moved)| format!("{name} {} ({})", percent(moved), passed(moved));
                    say(&all().map(part).collect::<Vec<_>>().join(", "));
                }
            }
        }
    }

    /// For programs; to others the sentence alone is said, on stderr.
    pub(super) fn failed(&self, failure: &Failure) {
        match self {
            Self::Json => {
                let (code, guest, text) = (failure.code(), failure.state(), failure.to_string());
                say(&json!({ "event": "failed", "code": code, "text": text, "guest": guest }).to_string());
            }
            Self::Bars(bars) => bars.leave(),
            Self::Lines(_) => {}
        }
    }

    /// With what was moved, as it was known last.
    pub(super) fn done(&self, text: &str, figures: Value, last: &Snapshot) {
        let disks = last.disks.iter().map(|(name, disk)| (name.clone(), disk.whole())).collect();
        let whole = Snapshot { disks, memory: last.memory.whole() };
        let text = &Escaped(text).to_string();
        match self {
            Self::Json => {
                self.progress(&whole);
                say(&json!({ "event": "done", "text": text, "figures": figures }).to_string());
            }
            Self::Bars(bars) => {
                self.progress(&whole);
                bars.leave();
                say(text);
            }
            Self::Lines(_) => say(text),
        }
    }
}

fn percent(moved: Moved) -> String {
    match moved.total {
        0 => "not begun".into(),
        total => format!("{} %", u128::from(moved.done) * 100 / u128::from(total)),
    }
}

fn passed(moved: Moved) -> String {
    format!("{}, {}/s", HumanBytes(moved.bytes), HumanBytes(moved.rate))
}

fn bar(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:10!} [{bar:24}] {percent:>3} % {wide_msg}");
    let bar = ProgressBar::new(0).with_prefix(name.to_owned());
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Nobody may read it: no reason to stop.
fn say(line: &str) {
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_have_no_rate_and_none_are_taken_back() {
        let (mut sampled, begin) = (None, Instant::now());
        let first = Moved::default().next(&mut sampled, begin, (1, 9), 3000);
        assert_eq!((first.bytes, first.rate), (3000, 0));
        let second = first.next(&mut sampled, begin + Duration::from_secs(2), (5, 9), 7000);
        assert_eq!((second.bytes, second.rate), (7000, 2000));
        let third = second.next(&mut sampled, begin + Duration::from_secs(3), (6, 9), 4000);
        assert_eq!((third.done, third.bytes, third.rate), (6, 7000, 0));
    }

    #[test]
    fn numbers_are_found_in_what_virsh_says_and_the_rest_is_passed_over() {
        let said = "operation: 5\nmemory_total: 134\nnothing\nerror: words\ncur=9";
        assert_eq!(pairs(said, ':'), BTreeMap::from([("operation".into(), 5), ("memory_total".into(), 134)]));
        assert_eq!(pairs("type=Copy\ncur=9\nend=10", '='), BTreeMap::from([("cur".into(), 9), ("end".into(), 10)]));
    }
}
