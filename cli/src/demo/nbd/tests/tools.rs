//! Other people's NBD programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a program to its end.
pub(super) fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program} cannot be started ({error}): install the Debian package {}", package(program))
    })
}

/// Runs a program that has to succeed; gives back what it printed.
pub(super) fn succeed(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let output = run(program, args);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed ({}): {complaint}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn package(program: &str) -> &'static str {
    match program {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-img" | "qemu-nbd" => "qemu-utils",
        "nbdkit" => "nbdkit",
        _ => "procps",
    }
}

pub(super) fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// A server that went to the background once it listened; killed when dropped.
pub(super) struct Daemon {
    pub(super) socket: PathBuf,
    pid_file: PathBuf,
}

impl Daemon {
    /// `plugin` is everything after nbdkit's own options.
    pub(super) fn nbdkit(dir: &Path, plugin: &[&str]) -> Daemon {
        let daemon = Daemon { socket: dir.join("nbdkit"), pid_file: dir.join("nbdkit.pid") };
        let own = ["-U".as_ref(), daemon.socket.as_os_str(), "-P".as_ref(), daemon.pid_file.as_os_str()];
        succeed("nbdkit", own.into_iter().chain(plugin.iter().map(AsRef::as_ref)));
        daemon
    }

    /// Serves the raw image `file` under the name "disk".
    pub(super) fn qemu_nbd(dir: &Path, file: &Path) -> Daemon {
        let daemon = Daemon { socket: dir.join("qemu-nbd"), pid_file: dir.join("qemu-nbd.pid") };
        let words =
            ["--fork", "--persistent", "--discard=unmap", "-f", "raw", "-x", "disk", "-k"].map(AsRef::<OsStr>::as_ref);
        let paths = [daemon.socket.as_os_str(), "--pid-file".as_ref(), daemon.pid_file.as_os_str(), file.as_os_str()];
        succeed("qemu-nbd", words.into_iter().chain(paths));
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(&self.pid_file) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}
