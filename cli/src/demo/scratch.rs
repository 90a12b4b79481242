//! The demo's directory, which goes when the demo does: in the end, on failure, and on Ctrl-C.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;
use tempfile::TempDir;

/// A directory that only this user can enter; only sockets have names in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
    signals: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Scratch {
    /// Makes the directory below `TMPDIR`, or /tmp, and watches for signals that end the process.
    pub(crate) fn new() -> io::Result<Scratch> {
        // Before the directory: from here on a signal waits for the thread below.
        let signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        let dir = tempfile::Builder::new().prefix("virbistream-demo-").tempdir()?;
        let handle = signals.handle();
        let path = dir.path().to_owned();
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(move || watch(signals, &path))?;
        Ok(Scratch { dir, signals: handle, thread: Some(thread) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of something inside.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell, and a panic of it was printed.
            let _ = thread.join();
        }
    }
}

/// Ends the process on the first signal, in the way its sender expects.
fn watch(mut signals: Signals, dir: &Path) {
    if let Some(signal) = signals.forever().next() {
        if let Err(error) = std::fs::remove_dir_all(dir) {
            log::warn!("{} was left behind: {error}", dir.display());
        }
        // Does not come back for these signals.
        let _ = emulate_default_handler(signal);
    }
}
