//! What the tool's integration tests share.
//!
//! The tests run real programs: the tool itself, NBD tools and servers, QEMU with a Linux guest, libvirtd.
//! Three rules hold for all of it. Nothing is skipped: a program or a right that is missing fails
//! the test and says what to install. Nothing waits by sleeping: every wait is for a condition
//! that is looked at, and ends at a deadline. Nothing is left behind: each process is killed and
//! reaped when its guard is dropped, and dies of itself when the test program does.
#![allow(dead_code)] // each test program uses its own part of it

mod aftermath;
pub(crate) mod bytes;
pub(crate) mod disks;
pub(crate) mod echo;
pub(crate) mod fault;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod libvirtd;
pub(crate) mod link;
pub(crate) mod machine;
pub(crate) mod migrate;
pub(crate) mod net;
pub(crate) mod process;
pub(crate) mod qmp;
pub(crate) mod relay;
pub(crate) mod said;
mod scene;
pub(crate) mod tool;
pub(crate) mod vm;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a single step may take before the test gives up on it: far above what it takes on a
/// busy machine, so that it is reached only by what hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at a condition until it holds, and fails the test when it does not within `within`.
///
/// `what` completes the sentence "gave up waiting for ...".
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what} after {within:?}");
        // The pause between two looks; nothing depends on its length.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fails the test unless `program` is in PATH, naming the Debian package that has it.
#[track_caller]
pub(crate) fn need(program: &str, package: &str) -> PathBuf {
    // Debian keeps ip and tcpdump where an ordinary user's PATH does not look.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("this test needs the program `{program}`: apt-get install {package}"))
}

/// Fails the test unless it runs as root; `why` completes "this test needs root to ...".
#[track_caller]
pub(crate) fn need_root(why: &str) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root to {why}");
}

/// A directory that is removed with everything in it.
///
/// Its path is short, whatever TMPDIR says, as a UNIX socket's name has 107 bytes at most.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    #[track_caller]
    pub(crate) fn new() -> Self {
        let base = std::env::temp_dir();
        let base = if base.as_os_str().len() > 40 { PathBuf::from("/tmp") } else { base };
        let directory = tempfile::Builder::new().prefix("vbs-").tempdir_in(base).expect("a temporary directory");
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

static HEAVY: Mutex<()> = Mutex::new(());

/// Held by tests that want the machine to themselves: two of them never run at once.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    // A test that failed while it held the lock says nothing about the next one.
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}
