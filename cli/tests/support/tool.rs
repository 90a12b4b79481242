//! The tool under test.

use super::process::{Finished, Process, Run};
use super::{PATIENCE, Scratch};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The tool.
pub(crate) fn tool() -> Run {
    Run::at("virbistream", Path::new(env!("CARGO_BIN_EXE_virbistream")))
}

/// Any port of this host that is free.
pub(crate) const ANY_PORT: &str = "tcp://127.0.0.1:0";

/// `virbistream serve -v` on `listen`, which offers the targets.
pub(crate) fn serve<'a>(listen: &str, targets: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Run {
    let mut run = tool().named("virbistream serve").args(["serve", "-v", "--listen", listen]);
    for (name, path) in targets {
        run = run.arg("--target").arg(format!("{name}=unix:{}", path.display()));
    }
    run
}

/// `virbistream forward -v` to `peer`, which listens on the sockets.
pub(crate) fn forward<'a>(peer: &str, sockets: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Run {
    let mut run = tool().named("virbistream forward").args(["forward", "-v", "--peer", peer]);
    for (name, path) in sockets {
        run = run.arg("--socket").arg(format!("{name}={}", path.display()));
    }
    run
}

impl Process {
    /// Waits until the tool says that it is ready, and gives what it says after that word.
    #[track_caller]
    pub(crate) fn ready(&self) -> String {
        let line = self.line_on_stdout("ready", |line| line.split(' ').next() == Some("ready"));
        line.strip_prefix("ready").unwrap_or_default().trim().to_owned()
    }

    /// Ends the tool by SIGTERM, which must succeed and leave none of the sockets.
    #[track_caller]
    pub(crate) fn end_well(self, sockets: &[&Path]) -> Finished {
        self.signal(Signal::TERM);
        let finished = self.finish(PATIENCE);
        assert!(finished.status.success(), "{finished}");
        for socket in sockets {
            assert!(!socket.exists(), "{} is left", socket.display());
        }
        finished
    }
}

impl Finished {
    /// Fails the test unless the tool failed and said why in one line that has all the words.
    #[track_caller]
    pub(crate) fn assert_failed_saying(&self, words: &[&str]) {
        assert!(!self.status.success(), "{self}");
        assert!(self.status.code().is_some(), "killed by a signal: {self}");
        assert!(!self.stderr.contains("panicked"), "{self}");
        let last = self.stderr.lines().last().unwrap_or_default();
        for word in words {
            assert!(last.contains(word), "no {word:?} in the last line: {self}");
        }
    }
}

/// Runs the tool, which must fail at once with one line on stderr that has all the words, and nothing on stdout.
#[track_caller]
pub(crate) fn assert_fails(run: Run, words: &[&str]) {
    let finished = run.finish(PATIENCE);
    finished.assert_failed_saying(words);
    assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
    assert_eq!(finished.stdout, "", "{finished}");
}

/// How many links `serve -v` has accepted.
pub(crate) fn links_accepted(serve: &Process) -> usize {
    serve.stderr.count(|line| line.contains("link accepted"))
}

/// `serve` and `forward` on loopback, and a socket `near.NAME` that leads to `far.NAME` for each name.
pub(crate) struct Ends {
    pub(crate) serve: Process,
    pub(crate) forward: Process,
    /// Where serve listens.
    pub(crate) peer: String,
    near: Vec<PathBuf>,
}

impl Ends {
    #[track_caller]
    pub(crate) fn start(scratch: &Scratch, names: &[&str]) -> Self {
        Self::start_on(ANY_PORT, scratch, names)
    }

    #[track_caller]
    pub(crate) fn start_on(listen: &str, scratch: &Scratch, names: &[&str]) -> Self {
        Self::start_with(listen, scratch, names, &[])
    }

    /// Both with these options.
    #[track_caller]
    pub(crate) fn start_with(listen: &str, scratch: &Scratch, names: &[&str], options: &[&str]) -> Self {
        let paths =
            |end: &str| -> Vec<PathBuf> { names.iter().map(|name| scratch.join(&format!("{end}.{name}"))).collect() };
        let (near, far) = (paths("near"), paths("far"));
        let named = |paths| names.iter().copied().zip(paths);
        let serve = serve(listen, named(far.iter().map(PathBuf::as_path).collect::<Vec<_>>())).args(options).start();
        // It says what it chose, and nothing where there was nothing to choose.
        let chosen = serve.ready();
        let peer = if chosen.is_empty() { listen.to_owned() } else { chosen };
        let forward = forward(&peer, named(near.iter().map(PathBuf::as_path).collect())).args(options).start();
        forward.ready();
        Self { serve, forward, peer, near }
    }

    /// Waits until each end has no more descriptors than it had.
    #[track_caller]
    pub(crate) fn wait_for_descriptors(&self, had: (usize, usize)) {
        super::wait_for("the descriptors of closed streams", PATIENCE, || {
            let have = self.descriptors();
            (have.0 <= had.0 && have.1 <= had.1).then_some(())
        });
    }

    /// The processor time that both have used.
    #[track_caller]
    pub(crate) fn processor_time(&self) -> Duration {
        self.serve.processor_time() + self.forward.processor_time()
    }

    pub(crate) fn descriptors(&self) -> (usize, usize) {
        (self.serve.descriptors(), self.forward.descriptors())
    }

    /// Ends both by SIGTERM, which must succeed and leave no socket.
    #[track_caller]
    pub(crate) fn end(self) {
        let near: Vec<&Path> = self.near.iter().map(PathBuf::as_path).collect();
        self.forward.end_well(&near);
        self.serve.end_well(&[]);
    }
}

/// How long it takes the tool to give up on a peer that says nothing, with a margin.
pub(crate) const GIVING_UP: Duration = Duration::from_secs(25);
