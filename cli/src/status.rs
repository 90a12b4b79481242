//! `virbistream status`: what a running command has and does, as a table.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use rustix::termios::tcgetwinsize;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::args::StatusArgs;
use crate::control;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

const TITLES: [&str; COLUMNS] =
    ["STREAM", "TARGET", "DISK", "DONE", "RATE", "SENT", "DELIVERED", "RECEIVED", "WINDOW", "STALLS"];

const COLUMNS: usize = 10;

/// The most characters of a name.
const NAME_MAX: usize = 40;

pub(crate) fn run(args: &StatusArgs) -> Result<(), String> {
    let ask = || control::ask(&args.control, &json!({ "status": {} }));
    if args.json {
        return print(&format!("{}\n", ask()?));
    }
    if args.once || !io::stdout().is_terminal() {
        return print(&table(&ask()?, &Rates::default()));
    }
    let ended = ended().map_err(|error| format!("signals: {error}"))?;
    // A screen of its own: what was there before comes back.
    print("\x1b[?1049h\x1b[?25l")?;
    let shown = watch(ask, &ended);
    print("\x1b[?25h\x1b[?1049l")?;
    if let Some(signal) = shown? {
        // Who started us sees what ended us.
        return emulate_default_handler(signal).map_err(|error| format!("signals: {error}"));
    }
    Ok(())
}

/// Shows it each second anew, until a signal ends it.
fn watch(ask: impl Fn() -> Result<Value, String>, ended: &Receiver<c_int>) -> Result<Option<c_int>, String> {
    let mut rates = Rates::default();
    loop {
        let status = ask()?;
        rates.learn(&status, Instant::now());
        // From the top, each line to its end, and what was below.
        let lines = framed(&table(&status, &rates), size()).join("\x1b[K\r\n");
        print(&format!("\x1b[H{lines}\x1b[J"))?;
        match ended.recv_timeout(PAUSE) {
            Ok(signal) => return Ok(Some(signal)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// Signals that would leave the terminal as it is.
fn ended() -> io::Result<Receiver<c_int>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])?;
    let (tell, told) = mpsc::channel();
    thread::Builder::new()
        .spawn(move || signals.forever().take_while(|signal| tell.send(*signal).is_ok()).for_each(drop))?;
    Ok(told)
}

/// Columns and lines of the terminal; one that does not know has 80 and 24.
fn size() -> (usize, usize) {
    let known = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    known.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// What of a text has room: no line wraps, and none scrolls.
fn framed(text: &str, (columns, rows): (usize, usize)) -> Vec<String> {
    let lines: Vec<_> = text.lines().map(|line| cut(line, columns)).collect();
    if lines.len() <= rows {
        return lines;
    }
    let (shown, left) = lines.split_at(rows.saturating_sub(1));
    let more = cut(&format!("… {} more", left.len()), columns);
    shown.iter().cloned().chain([more]).collect()
}

/// At most so many characters.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).take(most).collect(),
        None => text.to_owned(),
    }
}

fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| format!("stdout: {error}"))
}

/// Bytes a second of each stream, between the last two looks.
#[derive(Debug, Default)]
struct Rates {
    at: Option<Instant>,
    bytes: BTreeMap<(u64, u64), u64>,
    rates: BTreeMap<(u64, u64), u64>,
}

impl Rates {
    fn learn(&mut self, status: &Value, now: Instant) {
        let mut bytes = BTreeMap::new();
        for session in list(status, "sessions") {
            for stream in list(session, "streams") {
                bytes.insert(key(session, stream), number(stream, "sent") + number(stream, "received"));
            }
        }
        let elapsed = self.at.replace(now).map(|at| now.saturating_duration_since(at).as_secs_f64());
        let rate = |(key, now): (&_, &u64)| {
            let before = self.bytes.get(key)?;
            Some((*key, (now.saturating_sub(*before) as f64 / elapsed?.max(0.001)) as u64))
        };
        self.rates = bytes.iter().filter_map(rate).collect();
        self.bytes = bytes;
    }
}

fn key(session: &Value, stream: &Value) -> (u64, u64) {
    (number(session, "session"), number(stream, "stream"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

/// Names are others' choice: nothing of theirs steers the terminal.
fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().escape_debug().to_string()
}

/// With its beginning and its end, if it is long: names of migrations differ in both.
fn name(value: &Value, key: &str) -> String {
    let text: Vec<char> = text(value, key).chars().collect();
    if text.len() <= NAME_MAX {
        return text.into_iter().collect();
    }
    let head = NAME_MAX / 2;
    let tail = text.len() - (NAME_MAX - head - 1);
    text[..head].iter().chain(&['…']).chain(&text[tail..]).collect()
}

fn table(status: &Value, rates: &Rates) -> String {
    let mut out = String::new();
    for session in list(status, "sessions") {
        out += &heading(session);
        let row = |stream| row(stream, rates.rates.get(&key(session, stream)).copied());
        let rows: Vec<_> = list(session, "streams").iter().map(row).collect();
        if !rows.is_empty() {
            let titles = TITLES.map(str::to_owned);
            out += &aligned(&[&[titles], &rows[..]].concat());
        }
    }
    if status["partial"] == true {
        out += "not all is shown: an event loop is too busy to answer\n";
    }
    if out.is_empty() {
        out += "no session\n";
    }
    match number(status, "streams_left_out") {
        0 => out,
        more => out + &format!("streams not shown: {more}\n"),
    }
}

fn heading(session: &Value) -> String {
    let kind = match session["version"].as_u64() {
        Some(version) => format!("BiStream {version}"),
        None => "no BiStream yet".into(),
    };
    let round_trip = match session["round_trip_us"].as_u64() {
        Some(time) => format!(", round trip {:.1} ms", time as f64 / 1000.0),
        None => String::new(),
    };
    let [sent, received] = ["sent", "received"].map(|key| ByteSize(number(session, key)));
    let (number, peer, identity) = (number(session, "session"), text(session, "peer"), text(session, "identity"));
    format!("session {number} with {peer} ({identity}), {kind}{round_trip}, {sent} sent, {received} received\n")
}

fn row(stream: &Value, rate: Option<u64>) -> [String; COLUMNS] {
    let size = |key| ByteSize(number(stream, key)).to_string();
    let disk = &stream["disk"];
    let (export, done) = match disk.is_null() {
        true => ("-".into(), "-".into()),
        false => {
            let done = ["written", "zeroed", "trimmed", "read"].map(|key| number(disk, key)).iter().sum();
            (name(disk, "export"), format!("{} of {}", ByteSize(done), ByteSize(number(disk, "size"))))
        }
    };
    [
        number(stream, "stream").to_string(),
        name(stream, "target"),
        export,
        done,
        rate.map_or("-".into(), |rate| format!("{}/s", ByteSize(rate))),
        size("sent"),
        size("delivered"),
        size("received"),
        size("window"),
        format!("{} in {:.1} s", number(stream, "stalls"), number(stream, "stalled_us") as f64 / 1e6),
    ]
}

/// Columns as wide as their widest.
fn aligned(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("  {cell:width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(sent: u64) -> Value {
        let stream = json!({
            "stream": 1, "target": "disk", "sent": sent, "received": 5, "window": 262_144, "stalls": 3,
            "disk": { "export": "vda\u{1b}[31m", "size": 2048, "written": 1024, "zeroed": 512, "trimmed": 0, "read": 0 },
        });
        json!({ "sessions": [{
            "session": 7, "peer": "tcp://h:1", "identity": "nobody known", "version": 1, "round_trip_us": 1500,
            "sent": 10, "received": 20, "streams": [stream],
        }], "streams_left_out": 0 })
    }

    #[test]
    fn a_rate_is_what_came_and_went_between_two_looks_and_names_steer_no_terminal() {
        let mut rates = Rates::default();
        let begin = Instant::now();
        rates.learn(&status(1000), begin);
        assert!(rates.rates.is_empty());
        rates.learn(&status(1000 + 4096), begin + Duration::from_secs(2));
        assert_eq!(rates.rates[&(7, 1)], 2048);
        let table = table(&status(1000), &rates);
        assert!(!table.contains('\x1b') && table.contains(r"vda\u{1b}[31m"), "{table}");
        assert!(table.contains("1.5 KiB of 2.0 KiB  2.0 KiB/s"), "{table}");
        assert!(table.starts_with("session 7 with tcp://h:1 (nobody known), BiStream 1, round trip 1.5 ms"), "{table}");
    }

    #[test]
    fn nothing_is_said_to_be_nothing_and_a_part_to_be_a_part() {
        assert_eq!(table(&json!({ "sessions": [] }), &Rates::default()), "no session\n");
        let partial = table(&json!({ "sessions": [], "partial": true }), &Rates::default());
        assert!(partial.contains("too busy to answer") && !partial.contains("no session"), "{partial}");
    }

    #[test]
    fn what_has_no_room_is_cut_and_counted() {
        assert_eq!(framed("12345\nab\n", (5, 2)), ["12345", "ab"]);
        assert_eq!(framed("123456\nab\ncd\n", (5, 2)), ["1234…", "… 2 …"]);
        assert_eq!(framed("ab\ncd\nef\n", (80, 2)), ["ab", "… 2 more"]);
        let long = json!({ "name": "é".repeat(99) });
        assert_eq!(name(&long, "name").chars().count(), NAME_MAX);
        let target = json!({ "name": "migration/3f3d7d6f-0c3e-4a4c-b2f0-5d0fd4d42b11/disks" });
        assert_eq!(name(&target, "name"), "migration/3f3d7d6f-0…-5d0fd4d42b11/disks");
    }
}
