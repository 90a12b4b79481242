//! What runs, as Prometheus' text at `GET /metrics`: for who is on this host.

use std::fmt::Write;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use virbistream::io::{Address, Listener, Permissions, SessionStatus, StreamStatus};

use crate::desk::{Desk, STREAMS_MAX, counted};
use crate::link::Link;

/// The longest request, in bytes.
const REQUEST_MAX: usize = 8 * 1024;

/// How long a request may take to come, and its answer to go.
const PATIENCE: Duration = Duration::from_secs(1);

/// Requests at a time. On TCP every user of this host may hold some up; who minds has a UNIX socket.
const THREADS: usize = 4;

/// The socket; where it is a file, that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Metrics {
    _listener: Option<Listener>,
}

impl Metrics {
    /// Answers on threads of its own. A UNIX socket has mode 0600.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn start(address: &Address, desk: Desk) -> io::Result<Self> {
        let (listener, accepting) = match address {
            Address::Tcp { host, port } | Address::Tls { host, port } => {
                (None, Accepting::Tcp(TcpListener::bind((host.as_str(), *port))?))
            }
            Address::Unix(_) => {
                let permissions = Permissions { mode: Some(0o600), ..Permissions::default() };
                let listener = Listener::bind(address, permissions)?;
                let accepting = Accepting::Unix(listener.try_clone_unix()?);
                (Some(listener), accepting)
            }
        };
        match &accepting {
            Accepting::Tcp(listener) => log::info!("metrics on tcp://{}", listener.local_addr()?),
            Accepting::Unix(_) => log::info!("metrics on {address}"),
        }
        let accepting = Arc::new(accepting);
        for _ in 0..THREADS {
            let (accepting, desk) = (Arc::clone(&accepting), desk.clone());
            thread::Builder::new().name("metrics".into()).spawn(move || accepting.answer_all(&desk))?;
        }
        Ok(Self { _listener: listener })
    }
}

enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accepting {
    fn answer_all(&self, desk: &Desk) {
        loop {
            let link = match self {
                Self::Tcp(listener) => listener.accept().map(|(stream, _)| Link::Tcp(stream)),
                Self::Unix(listener) => listener.accept().map(|(stream, _)| Link::Unix(stream)),
            };
            match link {
                // Who asks and goes, or is slow, is nobody's concern.
                Ok(mut link) => {
                    let _ = answer(&mut link, desk);
                }
                Err(error) => {
                    log::warn!("the metrics: {error}");
                    // For want of descriptors, say.
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }
}

fn answer(link: &mut Link, desk: &Desk) -> io::Result<()> {
    let head = read_head(link, Instant::now() + PATIENCE)?;
    let (method, target) = head.split_once(' ').unwrap_or_default();
    let path = target.split([' ', '?']).next().unwrap_or_default();
    let (status, body) = match (method, path) {
        ("GET", "/metrics") => ("200 OK", text(desk)),
        ("GET", _) => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed\r\nAllow: GET", "GET alone is understood\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    // Event loops that are busy have taken their time for it.
    link.write_all((head + &body).as_bytes(), Instant::now() + PATIENCE)?;
    link.finish()
}

fn read_head(link: &mut Link, until: Instant) -> io::Result<String> {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = link.read(&mut buffer, until)?;
        if len == 0 || head.len() + len > REQUEST_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(&buffer[..len]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// One family after the other, as the format wants it.
fn text(desk: &Desk) -> String {
    let (counters, sessions) = (desk.counters(), desk.sessions());
    let mut out = String::new();
    for (name, help, count) in counted(&counters).into_iter().chain(desk.bytes()) {
        family(&mut out, &format!("{name}_total"), help, "counter", [(String::new(), count as f64)]);
    }
    let now = [
        ("sessions", "Sessions and connections to libvirtd now, of those who connected here.", counters.sessions_now),
        ("half_open_links", "Links now that have said nothing whole yet.", counters.half_open_now),
    ];
    for (name, help, count) in now {
        family(&mut out, name, help, "gauge", [(String::new(), count as f64)]);
    }
    of_sessions(&mut out, &sessions);
    let streams: Vec<_> =
        sessions.iter().flat_map(|session| session.streams.iter().map(move |stream| (session, stream))).collect();
    of_streams(&mut out, &streams[..streams.len().min(STREAMS_MAX)]);
    of_disks(&mut out, desk, &streams[..streams.len().min(STREAMS_MAX)]);
    out
}

fn of_sessions(out: &mut String, sessions: &[SessionStatus]) {
    let labels = |session: &SessionStatus, peer: Option<&str>| {
        let number = session.session.to_string();
        let named = [Some(("session", &*number)), peer.map(|peer| ("peer", peer))];
        labels(&named.into_iter().flatten().collect::<Vec<_>>())
    };
    let infos = sessions.iter().map(|session| (labels(session, Some(&session.peer)), 1.0));
    family(out, "session_info", "Whom it is with: always 1.", "gauge", infos);
    let labels = |session| labels(session, None);
    let round_trips = sessions.iter().filter_map(|session| Some((labels(session), session.round_trip?.as_secs_f64())));
    family(out, "session_round_trip_seconds", "The last round trip measured.", "gauge", round_trips);
    let sent = sessions.iter().map(|session| (labels(session), session.sent as f64));
    family(out, "session_sent_bytes_total", "Bytes that the link has taken, before TLS.", "counter", sent);
    let received = sessions.iter().map(|session| (labels(session), session.received as f64));
    family(out, "session_received_bytes_total", "Bytes that came over the link, behind TLS.", "counter", received);
}

type Standing<'a> = (&'a SessionStatus, &'a StreamStatus);

fn of_streams(out: &mut String, streams: &[Standing<'_>]) {
    type Figure = fn(&StreamStatus) -> f64;
    let figures: [(&str, &str, &str, Figure); 8] = [
        ("stream_sent_bytes_total", "Bytes sent.", "counter", |stream| stream.stats.sent as f64),
        ("stream_delivered_bytes_total", "Bytes sent that the peer has delivered.", "counter", |stream| {
            stream.stats.delivered as f64
        }),
        ("stream_received_bytes_total", "Bytes received.", "counter", |stream| stream.stats.received as f64),
        ("stream_consumed_bytes_total", "Bytes received that were delivered here.", "counter", |stream| {
            stream.stats.consumed as f64
        }),
        ("stream_stalls_total", "How often sending used up the peer's credit.", "counter", |stream| {
            stream.stats.stalls as f64
        }),
        ("stream_stalled_seconds_total", "How long sending waited for the peer's credit.", "counter", |stream| {
            stream.stalled.as_secs_f64()
        }),
        ("stream_credit_bytes", "Bytes that the peer lets us send now.", "gauge", |stream| stream.credit as f64),
        ("stream_window_bytes", "Bytes that the peer may be ahead of delivery.", "gauge", |stream| {
            stream.window as f64
        }),
    ];
    for (name, help, kind, figure) in figures {
        let samples = streams.iter().map(|standing| (stream_labels(standing, &[]), figure(standing.1)));
        family(out, name, help, kind, samples);
    }
}

fn of_disks(out: &mut String, desk: &Desk, streams: &[Standing<'_>]) {
    let disks: Vec<_> = streams.iter().filter_map(|standing| Some((standing, desk.disk(standing.1)?))).collect();
    type Figure = fn(&crate::nbd::Figures) -> u64;
    let figures: [(&str, &str, &str, Figure); 6] = [
        ("stream_disk_size_bytes", "The disk's size.", "gauge", |disk| disk.size),
        ("stream_disk_written_bytes_total", "Bytes written, by NBD's answers.", "counter", |disk| disk.written),
        ("stream_disk_zeroed_bytes_total", "Bytes zeroed, by NBD's answers.", "counter", |disk| disk.zeroed),
        ("stream_disk_trimmed_bytes_total", "Bytes trimmed, by NBD's answers.", "counter", |disk| disk.trimmed),
        ("stream_disk_read_bytes_total", "Bytes read, by NBD's answers.", "counter", |disk| disk.read),
        ("stream_disk_flushes_total", "Flushes, by NBD's answers.", "counter", |disk| disk.flushes),
    ];
    for (name, help, kind, figure) in figures {
        let samples = disks
            .iter()
            .map(|(standing, disk)| (stream_labels(standing, &[("export", &disk.export)]), figure(disk) as f64));
        family(out, name, help, kind, samples);
    }
}

fn stream_labels((session, stream): &Standing<'_>, more: &[(&str, &str)]) -> String {
    let (session, id) = (session.session.to_string(), stream.id.to_string());
    labels(&[&[("session", &*session), ("stream", &id), ("target", &stream.target)], more].concat())
}

/// Values are others' choice; the format escapes three characters of them.
fn labels(labels: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", labels.join(","))
}

/// Nothing of what has no sample. Writing to a text cannot fail.
fn family(out: &mut String, name: &str, help: &str, kind: &str, samples: impl IntoIterator<Item = (String, f64)>) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_some() {
        let _ = writeln!(out, "# HELP virbistream_{name} {help}\n# TYPE virbistream_{name} {kind}");
    }
    for (labels, value) in samples {
        let _ = writeln!(out, "virbistream_{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use virbistream::io::Dispatcher;

    use super::*;
    use crate::nbd::Disks;

    #[test]
    fn an_event_loop_that_is_busy_keeps_no_answer_back() {
        // It never runs.
        let dispatcher = Dispatcher::new(drop).expect("a dispatcher");
        let desk = Desk::new(dispatcher.handle(), Disks::default(), None);
        let (mut ours, theirs) = UnixStream::pair().expect("two sockets");
        ours.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("room");
        answer(&mut Link::Unix(theirs), &desk).expect("an answer");
        let mut said = String::new();
        ours.read_to_string(&mut said).expect("text");
        assert!(said.contains("virbistream_sessions 0\n"), "{said}");
        assert_eq!(desk.answer(&serde_json::json!({ "status": {} })).expect("an answer")["partial"], true);
    }

    #[test]
    fn values_of_labels_are_escaped() {
        assert_eq!(labels(&[("export", "a\\b\"c\nd"), ("x", "é")]), "{export=\"a\\\\b\\\"c\\nd\",x=\"é\"}");
    }
}
