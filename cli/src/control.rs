//! The control socket of a running command: its owner asks there, one line of JSON for each question and answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde_json::{Value, json};
use virbistream::io::{Address, Listener, Permissions};

use crate::desk::Desk;

/// The longest question, in bytes.
const LINE_MAX: u64 = 64 * 1024;

/// The longest answer.
const ANSWER_MAX: u64 = 64 << 20;

/// How long the other end may take for each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket; it is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    _listener: Listener,
}

impl Control {
    /// Listens, with mode 0600, and answers on a thread of its own, one after the other.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn start(path: &Path, desk: Desk) -> io::Result<Self> {
        let permissions = Permissions { mode: Some(0o600), ..Permissions::default() };
        let listener = Listener::bind(&Address::Unix(path.into()), permissions)?;
        let accepting = listener.try_clone_unix()?;
        thread::Builder::new().name("control".into()).spawn(move || answer_all(&accepting, &desk))?;
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
        if let Err(error) = answer(&connection, desk) {
            log::warn!("the control socket: {error}");
        }
    }
}

/// One question of one connection.
fn answer(connection: &UnixStream, desk: &Desk) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    // Read first, whoever asks: closed with bytes unread, the socket would lose the answer.
    let mut line = String::new();
    BufReader::new(connection.take(LINE_MAX)).read_line(&mut line)?;
    let peer = socket_peercred(connection)?.uid;
    let reply = match peer == geteuid() || peer.is_root() {
        true => reply(&line, desk),
        false => Err("only who runs serve may ask here".into()),
    };
    let answer = match reply {
        Ok(value) => json!({ "ok": value }),
        Err(sentence) => json!({ "error": sentence }),
    };
    writeln!(&mut &*connection, "{answer}")
}

fn reply(line: &str, desk: &Desk) -> Result<Value, String> {
    let question = serde_json::from_str(line).map_err(|error| format!("no question: {error}"))?;
    desk.answer(&question)
}

/// Asks the control socket at `path`.
///
/// # Errors
/// A sentence.
pub(crate) fn ask(path: &Path, question: &Value) -> Result<Value, String> {
    let asked = || -> io::Result<String> {
        let connection = UnixStream::connect(path)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        writeln!(&mut &connection, "{question}")?;
        let mut line = String::new();
        BufReader::new((&connection).take(ANSWER_MAX)).read_line(&mut line)?;
        Ok(line)
    };
    let line = asked().map_err(|error| format!("the control socket {}: {error}", path.display()))?;
    let mut answer: Value = serde_json::from_str(&line).map_err(|_| "the control socket gave no answer".to_owned())?;
    match (answer.get_mut("ok").map(Value::take), answer.get("error").and_then(Value::as_str)) {
        (Some(value), _) => Ok(value),
        (None, error) => Err(error.unwrap_or("the control socket gave no answer").into()),
    }
}
