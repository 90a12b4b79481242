//! The tool under test.

use super::process::{Process, Run};
use std::path::Path;

/// The tool, with the given subcommand.
pub(crate) fn tool(subcommand: &str) -> Run {
    Run::at(&format!("virbistream {subcommand}"), Path::new(env!("CARGO_BIN_EXE_virbistream"))).arg(subcommand)
}

/// Any port of this host that is free.
pub(crate) const ANY_PORT: &str = "tcp://127.0.0.1:0";

/// `virbistream serve -v` on `listen`, which offers the targets.
pub(crate) fn serve<'a>(listen: &str, targets: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Run {
    let mut run = tool("serve").args(["-v", "--listen", listen]);
    for (name, path) in targets {
        run = run.arg("--target").arg(format!("{name}=unix:{}", path.display()));
    }
    run
}

/// `virbistream forward -v` to `peer`, which listens on the sockets.
pub(crate) fn forward<'a>(peer: &str, sockets: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Run {
    let mut run = tool("forward").args(["-v", "--peer", peer]);
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
}

/// How many links `serve -v` has accepted.
pub(crate) fn links_accepted(serve: &Process) -> usize {
    serve.stderr.count(|line| line.contains("link accepted"))
}
