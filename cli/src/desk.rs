//! What a running command answers at its control socket and for its metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use virbistream::io::{Counters, Handle, SessionStatus, StreamStatus};

use crate::nbd::{Disks, Figures};
use crate::policy::{Policy, Rights, glob};

/// The longest that a ticket may be valid, in seconds.
const TICKET_MAX: u64 = 24 * 3600;

/// How long event loops may take to say what they have.
const PATIENCE: Duration = Duration::from_secs(2);

/// Streams that one answer tells of.
pub(crate) const STREAMS_MAX: usize = 10_000;

/// All that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    handle: Handle,
    disks: Disks,
    /// Where who connects is judged.
    policy: Option<Arc<Policy>>,
}

impl Desk {
    pub(crate) fn new(handle: Handle, disks: Disks, policy: Option<Arc<Policy>>) -> Self {
        Self { handle, disks, policy }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.handle.counters()
    }

    pub(crate) fn sessions(&self) -> Vec<SessionStatus> {
        self.handle.sessions(PATIENCE)
    }

    /// All bytes so far, by name, and what they are: those of sessions and streams that are over, too.
    pub(crate) fn bytes(&self) -> [(&'static str, &'static str, u64); 4] {
        let (counters, disks) = (self.counters(), self.disks.all());
        [
            ("sent_bytes", "Bytes that links have taken, before TLS.", counters.sent_bytes),
            ("received_bytes", "Bytes that came over links, behind TLS.", counters.received_bytes),
            ("disk_written_bytes", "Bytes written to disks, by NBD's answers.", disks.written()),
            ("disk_zeroed_bytes", "Bytes of disks zeroed, by NBD's answers.", disks.zeroed()),
        ]
    }

    /// What is known of a stream's disk.
    pub(crate) fn disk(&self, stream: &StreamStatus) -> Option<Figures> {
        self.disks.of(stream.stream)?.figures()
    }

    /// Answers a question: an object of one key.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn answer(&self, question: &Value) -> Result<Value, String> {
        let asked = question.as_object().filter(|asked| asked.len() == 1).and_then(|asked| asked.iter().next());
        match asked.map(|(what, with)| (what.as_str(), with)) {
            Some(("ticket", with)) => self.ticket(with),
            Some(("status", _)) => Ok(self.status()),
            Some(("limit", with)) => self.limit(with),
            Some(("counters", _)) => Ok(self.counters_json()),
            _ => Err("asked for is `ticket`, `status`, `limit` or `counters`".into()),
        }
    }

    fn ticket(&self, asked: &Value) -> Result<Value, String> {
        let policy = self.policy.as_ref().ok_or("tickets are made by serve")?;
        let names = asked.get("targets").and_then(Value::as_array).ok_or("`targets` is a list of texts")?;
        let names: Option<Vec<_>> = names.iter().map(|name| name.as_str().map(glob)).collect();
        let targets = names.ok_or("`targets` is a list of texts")?;
        let migrate = asked.get("migrate").is_some_and(|migrate| *migrate == true);
        if targets.is_empty() && !migrate {
            return Err("a ticket is for targets, or to migrate".into());
        }
        let seconds = asked.get("seconds").and_then(Value::as_u64).filter(|seconds| (1..=TICKET_MAX).contains(seconds));
        let seconds = seconds.ok_or_else(|| format!("`seconds` is a number from 1 to {TICKET_MAX}"))?;
        let rights = Rights { targets, migrate, ..Rights::default() };
        policy.ticket(rights, Duration::from_secs(seconds)).map(|secret| json!(secret.hex()))
    }

    fn status(&self) -> Value {
        let asked = Instant::now();
        let sessions = self.sessions();
        // It waits for so long only where an event loop says nothing.
        let partial = asked.elapsed() >= PATIENCE;
        let all: usize = sessions.iter().map(|session| session.streams.len()).sum();
        let mut left = STREAMS_MAX;
        let sessions = sessions.iter().map(|session| {
            let told = session.streams.len().min(left);
            left -= told;
            let streams: Vec<_> = session.streams.iter().take(told).map(|stream| self.stream_json(stream)).collect();
            json!({
                "session": session.session.number(),
                "peer": session.peer,
                "identity": session.identity.to_string(),
                "version": session.version,
                "round_trip_us": session.round_trip.map(|time| time.as_micros() as u64),
                "sent": session.sent,
                "received": session.received,
                "streams": streams,
            })
        });
        let sessions: Vec<_> = sessions.collect();
        json!({ "sessions": sessions, "streams_left_out": all - (STREAMS_MAX - left), "partial": partial })
    }

    fn stream_json(&self, stream: &StreamStatus) -> Value {
        let stats = &stream.stats;
        json!({
            "stream": stream.id.number(),
            "target": stream.target,
            "priority": stream.priority,
            "sent": stats.sent,
            "delivered": stats.delivered,
            "received": stats.received,
            "consumed": stats.consumed,
            "credit": stream.credit,
            "window": stream.window,
            "stalls": stats.stalls,
            "stalled_us": stream.stalled.as_micros() as u64,
            "disk": self.disk(stream).map(|disk| disk.json()),
        })
    }

    fn counters_json(&self) -> Value {
        let counters = self.counters();
        let counted = counted(&counters).into_iter().chain(self.bytes()).map(|(name, _, count)| (name, count));
        let now = [("sessions_now", counters.sessions_now), ("half_open_now", counters.half_open_now)];
        let all = counted.chain(now).map(|(name, count)| (name.to_owned(), json!(count)));
        all.collect::<serde_json::Map<_, _>>().into()
    }

    /// Of everything, of a session, or of all streams to a target that stand now.
    fn limit(&self, asked: &Value) -> Result<Value, String> {
        let rate = match asked.get("rate") {
            Some(Value::Null) => None,
            rate => match rate.and_then(Value::as_u64) {
                Some(rate @ 1..) => Some(rate),
                _ => return Err("`rate` is a number of bytes a second, more than 0, or null".into()),
            },
        };
        match (asked.get("session").and_then(Value::as_u64), asked.get("target").and_then(Value::as_str)) {
            (None, None) => self.handle.limit(rate),
            (Some(number), _) => {
                let sessions = self.sessions();
                let session = sessions.iter().find(|session| session.session.number() == number);
                let session = session.ok_or_else(|| format!("there is no session {number}"))?;
                self.handle.limit_session(session.session, rate);
            }
            (None, Some(target)) => self.limit_target(target, rate)?,
        }
        Ok(Value::Null)
    }

    fn limit_target(&self, target: &str, rate: Option<u64>) -> Result<(), String> {
        let (mut found, chosen) = (false, glob(target));
        for session in self.sessions() {
            for stream in session.streams.iter().filter(|stream| chosen.matches(&stream.target)) {
                self.handle.limit_stream(session.session, stream.stream, rate);
                found = true;
            }
        }
        if found { Ok(()) } else { Err(format!("no stream to `{target}` stands now")) }
    }
}

/// What only rises, by its name, and what it is.
pub(crate) fn counted(counters: &Counters) -> [(&'static str, &'static str, u64); 19] {
    [
        ("links_accepted", "Links accepted.", counters.links_accepted),
        ("links_refused", "Links closed at once, since there were too many.", counters.links_refused),
        ("links_over_rate", "Links closed at once, since their origin made too many.", counters.links_over_rate),
        ("sessions_begun", "Sessions whose HELLO stood.", counters.sessions_begun),
        ("sessions_ended", "Sessions that are over, and links that never had one.", counters.sessions_ended),
        ("hello_timeouts", "Links whose HELLO did not come in time.", counters.hello_timeouts),
        ("silent_peers", "Sessions ended since nothing was heard.", counters.silent_peers),
        ("unread_links", "Sessions ended since the peer read nothing.", counters.unread_links),
        ("floods", "Sessions ended since the peer sent too many control packets.", counters.floods),
        ("violations", "Sessions ended by another rule that the peer broke.", counters.violations),
        ("links_lost", "Sessions lost with their link.", counters.links_lost),
        ("handshakes_failed", "Links whose TLS handshake failed or was not over in time.", counters.handshakes_failed),
        ("streams_opened", "Streams that stood.", counters.streams_opened),
        ("streams_refused", "Streams that did not come to be, but for limits.", counters.streams_refused),
        ("opens_over_rate", "Streams refused since too many were asked for in a second.", counters.opens_over_rate),
        ("opens_over_streams", "Streams refused since there were too many.", counters.opens_over_streams),
        ("opens_over_memory", "Streams refused since no memory was left.", counters.opens_over_memory),
        ("peers_refused", "Peers that were not let in.", counters.peers_refused),
        ("daemon_refused", "Clients that may not reach libvirtd.", counters.daemon_refused),
    ]
}
