//! virsh as a child: all that is said to libvirt.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// libvirt at one end.
#[derive(Clone, Debug)]
pub(super) struct Virsh {
    uri: Option<String>,
    /// Set when nobody waits for an answer any more.
    cancelled: Option<Arc<AtomicBool>>,
}

/// Why virsh gave no answer.
#[derive(Debug, Error)]
pub(super) enum VirshError {
    #[error("virsh cannot be started: {0}")]
    Start(io::Error),
    #[error("virsh gave no answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("cancelled")]
    Cancelled,
    /// In libvirt's words.
    #[error("{0}")]
    Failed(String),
}

impl Virsh {
    /// With libvirt's own choice of a URI where there is none.
    pub(super) fn new(uri: Option<String>) -> Self {
        Self { uri, cancelled: None }
    }

    /// The same, which gives up asking once that is set.
    pub(super) fn until(&self, cancelled: Arc<AtomicBool>) -> Self {
        Self { cancelled: Some(cancelled), ..self.clone() }
    }

    /// Starts it; what it is asked goes without an answer to read until it has ended.
    pub(super) fn start(&self, words: &[&str]) -> Result<Asked, VirshError> {
        let mut command = Command::new("virsh");
        command.env("LC_ALL", "C").args(["--quiet"]);
        if let Some(uri) = &self.uri {
            command.args(["--connect", uri]);
        }
        // A group of its own: Ctrl-C is for us, who know how a migration is ended.
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(VirshError::Start)?;
        let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
        Ok(Asked { child, stdout, stderr })
    }

    /// The answer, without the line's end.
    pub(super) fn ask(&self, words: &[&str]) -> Result<String, VirshError> {
        let mut asked = self.start(words)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = asked.answer()? {
                return answer;
            }
            if self.cancelled.as_ref().is_some_and(|cancelled| cancelled.load(Ordering::Relaxed)) {
                return Err(VirshError::Cancelled);
            }
            if Instant::now() >= deadline {
                return Err(VirshError::Late);
            }
            thread::sleep(LOOK);
        }
    }
}

/// A child that has been asked something. Dropped without an answer, it is killed.
#[derive(Debug)]
pub(super) struct Asked {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Asked {
    /// What it came to, once it has ended.
    pub(super) fn answer(&mut self) -> Result<Option<Result<String, VirshError>>, VirshError> {
        let Some(status) = self.child.try_wait().map_err(VirshError::Start)? else { return Ok(None) };
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        Ok(Some(match status.success() {
            true => Ok(stdout.trim_end().to_owned()),
            false => Err(VirshError::Failed(reason(&stderr))),
        }))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read(from: Option<impl Read + Send + 'static>) -> Option<JoinHandle<String>> {
    from.map(|mut from| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    })
}

fn text(reading: Option<JoinHandle<String>>) -> String {
    reading.and_then(|reading| reading.join().ok()).unwrap_or_default()
}

/// libvirt's sentence: the last of its errors is the cause, those before say where it came from.
fn reason(stderr: &str) -> String {
    let mut lines = stderr.lines().map(|line| line.trim_start_matches("error:").trim()).filter(|line| !line.is_empty());
    let last = lines.next_back().unwrap_or("virsh failed and said nothing");
    last.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error() {
        assert_eq!(reason("error: Failed to do it\nerror: no room\n\n"), "no room");
        assert_eq!(reason(""), "virsh failed and said nothing");
    }
}
