//! Programs started by a test: their output as it comes, their end, and their certain death.

use super::{PATIENCE, need};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A program that is about to be started.
#[derive(Clone)]
pub(crate) struct Run {
    name: String,
    arguments: Vec<OsString>,
    namespace: Option<Pid>,
    keep_stdin: bool,
}

impl Run {
    /// A program out of PATH, which Debian has in `package`.
    #[track_caller]
    pub(crate) fn new(program: &str, package: &str) -> Self {
        Self::at(program, &need(program, package))
    }

    /// The program at `path`.
    pub(crate) fn at(name: &str, path: &Path) -> Self {
        Self { name: name.to_owned(), arguments: vec![path.into()], namespace: None, keep_stdin: false }
    }

    /// What the program is called in messages.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.arguments.push(argument.as_ref().to_owned());
        }
        self
    }

    /// Has `by`, which takes a command line of its own, start it.
    pub(crate) fn under(mut self, by: Self) -> Self {
        self.arguments.splice(..0, by.arguments);
        self
    }

    /// Runs it in the network namespace of the process `anchor`.
    pub(crate) fn in_namespace_of(mut self, anchor: Option<Pid>) -> Self {
        self.namespace = anchor;
        self
    }

    /// Gives it a pipe as standard input, which stays open as long as the [`Process`] is kept.
    pub(crate) fn with_stdin(mut self) -> Self {
        self.keep_stdin = true;
        self
    }

    /// Starts it.
    ///
    /// It is in a process group of its own, and the kernel kills it when the thread that started
    /// it ends: a test that is killed leaves nothing behind.
    #[track_caller]
    pub(crate) fn start(self) -> Process {
        let mut command = Command::new(need("setpriv", "util-linux"));
        command.args(["--pdeathsig", "KILL"]);
        if let Some(anchor) = self.namespace {
            command.arg(need("nsenter", "util-linux"));
            command.arg(format!("--net=/proc/{}/ns/net", anchor.as_raw_nonzero().get()));
        }
        command.args(&self.arguments);
        command.stdin(if self.keep_stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd of our own child");
        Process {
            name: self.name,
            pid,
            pidfd,
            stdin: child.stdin.take(),
            stdout: Output::of(child.stdout.take()),
            stderr: Output::of(child.stderr.take()),
            child,
            ended: None,
        }
    }

    /// Starts it, waits for its end and says what came of it.
    #[track_caller]
    pub(crate) fn finish(self, within: Duration) -> Finished {
        self.start().finish(within)
    }

    /// Runs it to its end, which must be a success.
    #[track_caller]
    pub(crate) fn succeed(self, within: Duration) -> Finished {
        let finished = self.finish(within);
        assert!(finished.status.success(), "{finished}");
        finished
    }
}

/// A program that was started. Dropping it kills and reaps it and its process group.
pub(crate) struct Process {
    name: String,
    pid: Pid,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    child: Child,
    ended: Option<ExitStatus>,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) name: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, status, stdout, stderr } = self;
        write!(f, "{name} ended with {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

impl Process {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            kill_process(self.pid, signal).expect("a signal to our own child");
        }
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.try_end(Duration::ZERO).is_none()
    }

    /// Fails the test if it has ended.
    #[track_caller]
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.try_end(Duration::ZERO) {
            panic!("{} ended early, {status}:\n{}", self.name, self.stderr.text());
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        self.try_end(within)
            .unwrap_or_else(|| panic!("{} still runs after {within:?}; on stderr:\n{}", self.name, self.stderr.text()))
    }

    /// Waits for its end and for all of its output.
    #[track_caller]
    pub(crate) fn finish(mut self, within: Duration) -> Finished {
        drop(self.stdin.take());
        let status = self.wait(within);
        Finished {
            name: self.name.clone(),
            status,
            stdout: self.stdout.all(PATIENCE),
            stderr: self.stderr.all(PATIENCE),
        }
    }

    /// Writes to its standard input; fails when it has closed that, as its end does.
    #[track_caller]
    pub(crate) fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stdin.as_mut().expect("started with_stdin").write_all(bytes)
    }

    /// Closes its standard input.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.stdin.take());
    }

    /// Waits for a line on its standard output; fails if the output ends without.
    #[track_caller]
    pub(crate) fn line_on_stdout(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.stdout.line(wanted, PATIENCE).unwrap_or_else(|| self.no_line(what, "stdout"))
    }

    /// Waits for a line on its standard error; fails if the output ends without.
    #[track_caller]
    pub(crate) fn line_on_stderr(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.stderr.line(wanted, PATIENCE).unwrap_or_else(|| self.no_line(what, "stderr"))
    }

    #[track_caller]
    fn no_line(&self, what: &str, stream: &str) -> ! {
        panic!(
            "{}: no {what} on {stream}\n--- stdout\n{}\n--- stderr\n{}",
            self.name,
            self.stdout.text(),
            self.stderr.text()
        )
    }

    /// How many descriptors it has open.
    #[track_caller]
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).expect("its descriptors").count()
    }

    /// How many threads it has.
    #[track_caller]
    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(self.proc("task")).expect("its threads").count()
    }

    /// Its resident memory in bytes.
    #[track_caller]
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most its resident memory ever was, in bytes.
    #[track_caller]
    pub(crate) fn resident_peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The processor time that it has used, and those of its children that have ended.
    #[track_caller]
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(self.proc("stat")).expect("its statistics");
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(4)
            .map(|field| field.parse::<u64>().expect("a number of ticks"))
            .sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    #[track_caller]
    fn memory(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("its status");
        let line = status.lines().find(|line| line.starts_with(key));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.expect("its memory") * 1024
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid.as_raw_nonzero().get())
    }

    /// Waits for its end; `None` when it still runs then.
    pub(crate) fn try_end(&mut self, within: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            let deadline = Instant::now() + within;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = Timespec::try_from(left).expect("a short time");
                let mut ready = [PollFd::new(&self.pidfd, PollFlags::IN)];
                match poll(&mut ready, Some(&left)) {
                    Err(rustix::io::Errno::INTR) => continue,
                    Ok(0) => return None,
                    _ => break,
                }
            }
            self.ended = Some(self.child.wait().expect("our own child"));
        }
        self.ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group outlives its leader when the program has children of its own.
        _ = kill_process_group(self.pid, Signal::KILL);
        if self.ended.is_none() {
            _ = self.child.kill();
            _ = self.child.wait();
        }
        if std::thread::panicking() {
            let stderr = self.stderr.text();
            let tail: Vec<&str> = stderr.lines().rev().take(15).collect();
            eprintln!("--- the last lines of {} on stderr", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// What a program has written to one of its outputs so far.
#[derive(Clone)]
pub(crate) struct Output(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    ended: bool,
}

impl Output {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let output = Self(Arc::default());
        let shared = Arc::clone(&output.0);
        let mut pipe = pipe.expect("a pipe");
        std::thread::spawn(move || {
            let mut chunk = [0; 16 * 1024];
            loop {
                let read = pipe.read(&mut chunk).unwrap_or(0);
                let mut written = shared.0.lock().expect("no panic under this lock");
                written.bytes.extend_from_slice(&chunk[..read]);
                written.ended = read == 0;
                shared.1.notify_all();
                if written.ended {
                    break;
                }
            }
        });
        output
    }

    /// All that was written until now.
    pub(crate) fn text(&self) -> String {
        let written = self.0.0.lock().expect("no panic under this lock");
        String::from_utf8_lossy(&written.bytes).into_owned()
    }

    /// How many of the whole lines written until now are `wanted`.
    pub(crate) fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.text().lines().filter(|line| wanted(line)).count()
    }

    /// Waits for the first line that is `wanted`; `None` if the output ends or time runs out.
    fn line(&self, wanted: impl Fn(&str) -> bool, within: Duration) -> Option<String> {
        self.look(within, |written| {
            let text = String::from_utf8_lossy(&written.bytes);
            let whole = match text.rfind('\n') {
                _ if written.ended => &*text,
                Some(end) => &text[..end],
                None => "",
            };
            whole.lines().find(|line| wanted(line)).map(str::to_owned)
        })
    }

    /// Waits for the output's end and gives all of it.
    #[track_caller]
    fn all(&self, within: Duration) -> String {
        self.look(within, |written| {
            let text = String::from_utf8_lossy(&written.bytes);
            written.ended.then(|| text.into_owned())
        })
        .expect("the end of the output of a program that has ended")
    }

    fn look<T>(&self, within: Duration, find: impl Fn(&Written) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + within;
        let mut written = self.0.0.lock().expect("no panic under this lock");
        loop {
            let found = find(&written);
            let left = deadline.saturating_duration_since(Instant::now());
            if found.is_some() || written.ended || left.is_zero() {
                return found;
            }
            let waited = self.0.1.wait_timeout(written, left);
            written = waited.expect("no panic under this lock").0;
        }
    }
}
