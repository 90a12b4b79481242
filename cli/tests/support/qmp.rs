//! QEMU's machine protocol.

use super::{PATIENCE, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to one QEMU. Replies are waited for; events are kept in the order they came.
pub(crate) struct Qmp {
    name: String,
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
    events: Vec<Value>,
    calls: u64,
}

/// A call that QEMU may not have answered yet.
pub(crate) struct Call {
    id: u64,
    command: String,
}

impl Qmp {
    /// Connects as soon as QEMU listens on `path`, and gets through the greeting.
    #[track_caller]
    pub(crate) fn connect(name: &str, path: &Path) -> Self {
        let stream = wait_for("QEMU's machine protocol", PATIENCE, || UnixStream::connect(path).ok());
        let mut this = Self {
            name: name.to_owned(),
            stream: BufReader::new(stream),
            line: Vec::new(),
            events: Vec::new(),
            calls: 0,
        };
        let greeting = this.receive(Instant::now() + PATIENCE);
        assert!(greeting.is_some_and(|greeting| greeting.get("QMP").is_some()), "{name} does not greet as QEMU does");
        this.call("qmp_capabilities", json!({}));
        this
    }

    /// Calls `command`, which must succeed.
    #[track_caller]
    pub(crate) fn call(&mut self, command: &str, arguments: Value) -> Value {
        let reply = self.try_call(command, arguments);
        reply.unwrap_or_else(|error| panic!("{}: {command}: {error}", self.name))
    }

    /// Calls `command` and gives what it returned, or its error.
    #[track_caller]
    pub(crate) fn try_call(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        let call = self.begin(command, arguments);
        self.outcome(call, PATIENCE)
    }

    /// Calls `command` and does not wait; the next that is asked for is its `outcome`.
    #[track_caller]
    pub(crate) fn begin(&mut self, command: &str, arguments: Value) -> Call {
        self.calls += 1;
        let call = json!({"execute": command, "arguments": arguments, "id": self.calls});
        // At once: QEMU does what an object says as soon as it closes, and after `quit` takes no line break any more.
        let sent = self.stream.get_mut().write_all(format!("{call}\n").as_bytes());
        sent.unwrap_or_else(|error| panic!("{} is gone at {command}: {error}", self.name));
        Call { id: self.calls, command: command.to_owned() }
    }

    /// What a call has returned, or its error.
    #[track_caller]
    pub(crate) fn outcome(&mut self, call: Call, within: Duration) -> Result<Value, Value> {
        let deadline = Instant::now() + within;
        loop {
            let Some(mut message) = self.receive(deadline) else {
                panic!("{} does not answer {} in {within:?}", self.name, call.command);
            };
            if message.get("event").is_some() {
                self.events.push(message);
            } else if message["id"] == call.id {
                return match message.get_mut("error") {
                    Some(error) => Err(error.take()),
                    None => Ok(message["return"].take()),
                };
            }
        }
    }

    /// The first event, of those that came and those to come, that is `wanted`.
    #[track_caller]
    pub(crate) fn event(&mut self, what: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + within;
        if let Some(event) = self.events.iter().find(|event| wanted(event)) {
            return event.clone();
        }
        while let Some(message) = self.receive(deadline) {
            if message.get("event").is_some() {
                self.events.push(message.clone());
                if wanted(&message) {
                    return message;
                }
            }
        }
        panic!("{}: no {what} within {within:?}; its events: {:#?}", self.name, self.events);
    }

    /// All events so far.
    pub(crate) fn events(&self) -> &[Value] {
        &self.events
    }

    #[track_caller]
    fn receive(&mut self, deadline: Instant) -> Option<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        let socket = self.stream.get_ref();
        socket.set_read_timeout(Some(left)).expect("a timeout");
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(0) => panic!("{} has closed its machine protocol", self.name),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return None;
            }
            Err(error) => panic!("{}: {error}", self.name),
        }
        let message = serde_json::from_slice(&self.line).expect("a line of JSON");
        self.line.clear();
        Some(message)
    }
}

/// When QEMU says that the event took place, in seconds since 1970.
pub(crate) fn time_of(event: &Value) -> f64 {
    let time = &event["timestamp"];
    let part = |name: &str| time[name].as_f64().expect("a time stamp");
    part("seconds") + part("microseconds") / 1e6
}
