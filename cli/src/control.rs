//! The control socket of a running `serve`: its owner asks for tickets there, one line of JSON for each question and answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde_json::{Value, json};
use virbistream::io::{Address, Listener, Permissions};

use crate::policy::{Rights, Tickets, glob};

/// The longest question and answer, in bytes.
const LINE_MAX: u64 = 64 * 1024;

/// How long the other end may take for each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest that a ticket may be valid, in seconds.
const TICKET_MAX: u64 = 24 * 3600;

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
    pub(crate) fn start(path: &Path, tickets: Arc<Tickets>) -> io::Result<Self> {
        let permissions = Permissions { mode: Some(0o600), ..Permissions::default() };
        let listener = Listener::bind(&Address::Unix(path.into()), permissions)?;
        let accepting = listener.try_clone_unix()?;
        thread::Builder::new().name("control".into()).spawn(move || answer_all(&accepting, &tickets))?;
        Ok(Self { _listener: listener })
    }
}

fn answer_all(listener: &UnixListener, tickets: &Tickets) {
    for connection in listener.incoming() {
        match connection.and_then(|connection| answer(&connection, tickets)) {
            Ok(()) => {}
            Err(error) => log::warn!("the control socket: {error}"),
        }
    }
}

/// One question of one connection.
fn answer(connection: &UnixStream, tickets: &Tickets) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    // Read first, whoever asks: closed with bytes unread, the socket would lose the answer.
    let mut line = String::new();
    BufReader::new(connection.take(LINE_MAX)).read_line(&mut line)?;
    let peer = socket_peercred(connection)?.uid;
    let reply = match peer == geteuid() || peer.is_root() {
        true => reply(&line, tickets),
        false => Err("only who runs serve may ask here".into()),
    };
    let answer = match reply {
        Ok(value) => json!({ "ok": value }),
        Err(sentence) => json!({ "error": sentence }),
    };
    writeln!(&mut &*connection, "{answer}")
}

fn reply(line: &str, tickets: &Tickets) -> Result<Value, String> {
    let question: Value = serde_json::from_str(line).map_err(|error| format!("no question: {error}"))?;
    let asked = question.get("ticket").ok_or("asked for is `ticket`")?;
    let names = asked.get("targets").and_then(Value::as_array).ok_or("`targets` is a list of texts")?;
    let names: Option<Vec<_>> = names.iter().map(|name| name.as_str().map(glob)).collect();
    let targets = names.filter(|names| !names.is_empty()).ok_or("`targets` is a list of texts")?;
    let seconds = asked.get("seconds").and_then(Value::as_u64).filter(|seconds| (1..=TICKET_MAX).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("`seconds` is a number from 1 to {TICKET_MAX}"))?;
    let secret = tickets.make(Rights { targets, ..Rights::default() }, Duration::from_secs(seconds));
    secret.map(|secret| json!(secret.hex())).map_err(|error| error.to_string())
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
        BufReader::new((&connection).take(LINE_MAX)).read_line(&mut line)?;
        Ok(line)
    };
    let line = asked().map_err(|error| format!("the control socket {}: {error}", path.display()))?;
    let mut answer: Value = serde_json::from_str(&line).map_err(|_| "the control socket gave no answer".to_owned())?;
    match (answer.get_mut("ok").map(Value::take), answer.get("error").and_then(Value::as_str)) {
        (Some(value), _) => Ok(value),
        (None, error) => Err(error.unwrap_or("the control socket gave no answer").into()),
    }
}
