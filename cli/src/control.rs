//! The control socket of a running command: its owner asks there, one line of JSON for each question and answer.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde_json::{Value, json};
use virbistream::io::{Address, Listener, Permissions};

use crate::desk::Desk;
use crate::link::Link;

/// The longest question, in bytes.
const LINE_MAX: usize = 64 * 1024;

/// The longest answer.
const ANSWER_MAX: usize = 64 << 20;

/// How long a question and its answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long who asks waits: others may be answered first.
const ASKING: Duration = Duration::from_secs(10);

/// Questions at a time.
const THREADS: usize = 4;

/// The socket; it is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    _listener: Listener,
}

impl Control {
    /// Listens, with mode 0600, and answers on threads of its own.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn start(path: &Path, desk: Desk) -> io::Result<Self> {
        let permissions = Permissions { mode: Some(0o600), ..Permissions::default() };
        let listener = Listener::bind(&Address::Unix(path.into()), permissions)?;
        let accepting = Arc::new(listener.try_clone_unix()?);
        for _ in 0..THREADS {
            let (accepting, desk) = (Arc::clone(&accepting), desk.clone());
            thread::Builder::new().name("control".into()).spawn(move || answer_all(&accepting, &desk))?;
        }
        Ok(Self { _listener: listener })
    }
}

fn answer_all(listener: &UnixListener, desk: &Desk) {
    for connection in listener.incoming() {
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                log::warn!("the control socket: {error}");
                // For want of descriptors, say.
                thread::sleep(Duration::from_secs(1));
                continue;
            }
        };
        if let Err(error) = answer(connection, desk, Instant::now() + PATIENCE) {
            log::warn!("the control socket: {error}");
        }
    }
}

/// One question of one connection.
fn answer(connection: UnixStream, desk: &Desk, until: Instant) -> io::Result<()> {
    let peer = socket_peercred(&connection)?.uid;
    let mut link = Link::Unix(connection);
    // Read first, whoever asks: closed with bytes unread, the socket would lose the answer.
    let line = read_line(&mut link, LINE_MAX, until)?;
    let reply = match peer == geteuid() || peer.is_root() {
        true => reply(&line, desk),
        false => Err("only who runs serve may ask here".into()),
    };
    let answer = match reply {
        Ok(value) => json!({ "ok": value }),
        Err(sentence) => json!({ "error": sentence }),
    };
    link.write_all(format!("{answer}\n").as_bytes(), until)
}

/// One line, or what came of it before the end.
fn read_line(link: &mut Link, most: usize, until: Instant) -> io::Result<Vec<u8>> {
    let (mut line, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while line.len() < most && line.last() != Some(&b'\n') {
        let len = link.read(&mut buffer, until)?;
        if len == 0 {
            break;
        }
        line.extend_from_slice(&buffer[..len]);
    }
    Ok(line)
}

fn reply(line: &[u8], desk: &Desk) -> Result<Value, String> {
    let question = serde_json::from_slice(line).map_err(|error| format!("no question: {error}"))?;
    desk.answer(&question)
}

/// Asks the control socket at `path`.
///
/// # Errors
/// A sentence.
pub(crate) fn ask(path: &Path, question: &Value) -> Result<Value, String> {
    ask_within(path, question, ASKING)
}

fn ask_within(path: &Path, question: &Value, patience: Duration) -> Result<Value, String> {
    let until = Instant::now() + patience;
    let asked = || {
        let mut link = Link::Unix(UnixStream::connect(path)?);
        link.write_all(format!("{question}\n").as_bytes(), until)?;
        read_line(&mut link, ANSWER_MAX, until)
    };
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => format!("no answer in {} s: others are asking there, too", patience.as_secs()),
        _ => error.to_string(),
    };
    let line = asked().map_err(|error| format!("the control socket {}: {}", path.display(), failed(error)))?;
    let answer = serde_json::from_slice(&line);
    let mut answer: Value = answer.map_err(|_| "the control socket gave no answer".to_owned())?;
    match (answer.get_mut("ok").map(Value::take), answer.get("error").and_then(Value::as_str)) {
        (Some(value), _) => Ok(value),
        (None, error) => Err(error.unwrap_or("the control socket gave no answer").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_where_nobody_answers_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let _listening = UnixListener::bind(&path).unwrap();
        let said = ask_within(&path, &json!({ "status": null }), Duration::from_millis(20)).unwrap_err();
        assert!(said.contains("no answer in 0 s") && said.contains(&*path.to_string_lossy()), "{said}");
    }
}
