//! What is said on stderr, written by a thread of its own: who started us may not read it, and neither an event loop nor the end
//! waits for them.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use indicatif::MultiProgress;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::logging::LogFormat;

/// Lines that wait to be read; what is said beyond them is lost, and counted.
const MOST: usize = 1000;
/// How long the end waits for what was said to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// Never blocks. As a [`Write`] it takes a line with each call.
#[derive(Debug, Clone)]
pub(crate) struct Stderr {
    messages: Sender<Message>,
    counts: Arc<Counts>,
    bars: Bars,
}

/// What is drawn at the terminal's end now, if anything is.
type Bars = Arc<Mutex<Option<MultiProgress>>>;

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// To be answered when all before it is written.
    Finish(Sender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    lost: AtomicUsize,
}

impl Stderr {
    pub(crate) fn new(format: LogFormat) -> io::Result<Self> {
        Self::to(io::stderr(), format)
    }

    fn to(out: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let (messages, received) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let bars = Bars::default();
        let theirs = (Arc::clone(&counts), Arc::clone(&bars));
        let write = move || write_all(out, &received, (&theirs.0, &theirs.1), format);
        thread::Builder::new().name("stderr".into()).spawn(write)?;
        Ok(Self { messages, counts, bars })
    }

    /// From now on lines go above these, if there are some.
    pub(crate) fn write_above(&self, bars: Option<MultiProgress>) {
        *self.bars.lock() = bars;
    }

    pub(crate) fn say(&self, line: Vec<u8>) {
        if self.counts.waiting.fetch_add(1, Ordering::Relaxed) < MOST {
            let _ = self.messages.send(Message::Line(line));
        } else {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all is written, but not long.
    pub(crate) fn finish(&self) {
        let (done, finished) = mpsc::channel();
        let _ = self.messages.send(Message::Finish(done));
        let _ = finished.recv_timeout(PATIENCE);
    }
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.say(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// That stderr fails can be said nowhere.
fn write_all(mut out: impl Write, messages: &Receiver<Message>, (counts, bars): (&Counts, &Bars), format: LogFormat) {
    let mut last = Vec::new();
    for message in messages {
        match message {
            Message::Line(line) => {
                let _ = match &*bars.lock() {
                    Some(bars) => bars.println(String::from_utf8_lossy(&line).trim_end_matches('\n')),
                    None => out.write_all(&line),
                };
                counts.waiting.fetch_sub(1, Ordering::Relaxed);
                last = line;
            }
            Message::Finish(done) => drop(done.send(())),
        }
        let lost = counts.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = format!("lines lost, since nobody read them: {lost}");
            let _ = match format {
                LogFormat::Text => writeln!(out, "virbistream: {text}"),
                LogFormat::Json => {
                    let line = json!({ "time": time(&last), "level": "warn", "message": text, "lost": lost });
                    writeln!(out, "{line}")
                }
            };
        }
    }
}

/// When this line was said: what is lost was said later.
fn time(line: &[u8]) -> Value {
    serde_json::from_slice::<Value>(line).unwrap_or_default()["time"].take()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written waits for `let_through`.
    struct Slow {
        let_through: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Everything passes once the other end is gone.
            let _ = self.let_through.recv();
            self.written.lock().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_does_not_read_loses_lines_and_is_told_how_many() {
        let (go, let_through) = mpsc::channel();
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let stderr =
            Stderr::to(Slow { let_through, written: Arc::clone(&written) }, LogFormat::Text).expect("a thread");
        for line in 0..MOST + 7 {
            stderr.say(format!("{line}\n").into());
        }
        drop(go);
        stderr.finish();
        let written = String::from_utf8(written.lock().clone()).expect("UTF-8");
        let lines: Vec<_> = written.lines().collect();
        assert_eq!(lines.len(), MOST + 1);
        assert_eq!(lines.iter().filter(|line| line.ends_with("nobody read them: 7")).count(), 1);
        assert_eq!(lines[MOST], (MOST - 1).to_string());
    }

    #[test]
    fn a_program_is_told_since_when_lines_are_lost() {
        let (go, let_through) = mpsc::channel();
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let stderr =
            Stderr::to(Slow { let_through, written: Arc::clone(&written) }, LogFormat::Json).expect("a thread");
        for line in 0..=MOST {
            stderr.say(format!("{{\"time\":\"{line}\"}}\n").into());
        }
        drop(go);
        stderr.finish();
        let written = String::from_utf8(written.lock().clone()).expect("UTF-8");
        let lines = written.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let lost: Vec<_> = lines.filter(|line| line["lost"] == 1).collect();
        assert_eq!(lost.len(), 1, "{written}");
        assert!(lost[0]["time"].is_string(), "{written}");
    }
}
