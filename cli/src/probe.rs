//! What a peer is: HELLO alone, and what is answered to it.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use thiserror::Error;
use virbistream::proto::{CONTROL_MAX, Config, Event, Session, SessionError};
use virbistream::wire::{Decoder, Escaped, Limits, PACKET_MAX, Piece, RemoteError, feature};

use crate::args::ProbeArgs;
use crate::link::Link;
use crate::uri::Uri;

/// What HELLO found.
#[derive(Debug)]
pub(crate) enum Found {
    BiStream {
        version: u32,
        features: u64,
        limits: Limits,
    },
    /// The link serves on, for libvirt's own calls.
    Legacy(RemoteError),
}

impl Found {
    /// 1 is a failure and 2 a command line that makes no sense.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::BiStream { .. } => ExitCode::SUCCESS,
            Self::Legacy(_) => ExitCode::from(3),
        }
    }
}

/// Why nothing was found, in one sentence.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("cannot connect to {uri}: {source}")]
    Connect { uri: String, source: io::Error },
    #[error("{uri} answered nothing to HELLO within {} s", .within.as_secs_f32())]
    Silent { uri: String, within: Duration },
    #[error("the connection to {uri} failed: {source}")]
    Link { uri: String, source: io::Error },
    #[error("{uri} is no peer: {cause}")]
    Session { uri: String, cause: SessionError },
    #[error("cannot write what was found: {0}")]
    Print(io::Error),
}

/// Prints what was found.
pub(crate) fn run(args: &ProbeArgs) -> Result<Found, Error> {
    let found = find(&args.uri, args.patience.timeout)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{found}").and_then(|()| out.flush()).map_err(Error::Print)?;
    Ok(found)
}

/// Asks; an answer has come within `timeout` after connecting, which has as much time.
pub(crate) fn find(uri: &Uri, timeout: Duration) -> Result<Found, Error> {
    let mut link = Link::connect(uri, Instant::now() + timeout)
        .map_err(|source| Error::Connect { uri: uri.to_string(), source })?;
    let config = Config { max_streams: 0, hello_timeout: None, ..Config::default() };
    let mut probe = Probe { session: Session::connect(config, Instant::now()), until: Instant::now() + timeout };
    probe.ask(&mut link).map_err(|failure| match failure {
        Failure::Session(cause) => Error::Session { uri: uri.to_string(), cause },
        Failure::Link(error) if error.kind() == io::ErrorKind::TimedOut => {
            Error::Silent { uri: uri.to_string(), within: timeout }
        }
        Failure::Link(source) => Error::Link { uri: uri.to_string(), source },
    })
}

struct Probe {
    session: Session,
    until: Instant,
}

enum Failure {
    Session(SessionError),
    Link(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Link(error)
    }
}

impl Probe {
    fn ask(&mut self, link: &mut Link) -> Result<Found, Failure> {
        let mut decoder = Decoder::new(PACKET_MAX);
        let mut buffer = vec![0; 64 * 1024];
        self.say(link)?;
        loop {
            match link.read(&mut buffer, self.until)? {
                0 => self.session.handle_link_lost("the peer ended it"),
                read => self.hear(&mut decoder, &buffer[..read]),
            }
            match self.found() {
                Some(Ok(found)) => {
                    self.leave(link, &found);
                    return Ok(found);
                }
                Some(Err(cause)) => return Err(Failure::Session(cause)),
                None => self.say(link)?,
            }
        }
    }

    /// Sends what the session owes.
    fn say(&mut self, link: &mut Link) -> io::Result<()> {
        let mut packets = vec![0; CONTROL_MAX];
        let length = self.session.poll_control(Instant::now(), &mut packets);
        match link.write_all(&packets[..length], self.until) {
            // What it said before it closed tells more.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            written => written,
        }
    }

    /// An error is the session's own cause of end, which `found` gives.
    fn hear(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) {
        let mut ours = false;
        let now = Instant::now();
        loop {
            let heard = match decoder.decode(&mut bytes) {
                Ok(None) => return,
                Ok(Some(Piece::Header { header, payload_len })) => {
                    ours = self.session.owns(&header);
                    if ours { self.session.handle_header(now, &header, payload_len) } else { Ok(()) }
                }
                Ok(Some(Piece::Payload { bytes, remaining })) if ours => {
                    self.session.handle_payload(now, bytes, remaining).map(|_| ())
                }
                Ok(Some(Piece::Payload { .. })) => Ok(()),
                Err(error) => Err(self.session.handle_framing_error(error)),
            };
            if heard.is_err() {
                return;
            }
        }
    }

    fn found(&mut self) -> Option<Result<Found, SessionError>> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Established { version, features, limits } => {
                    return Some(Ok(Found::BiStream { version, features, limits }));
                }
                Event::Legacy(error) => return Some(Ok(Found::Legacy(error))),
                Event::Closed(ended) => return Some(Err(ended.err().unwrap_or(SessionError::Closed))),
                _ => {}
            }
        }
        None
    }

    /// Ends the session by agreement. What the peer is was found: that it ends the link badly makes no difference.
    fn leave(&mut self, link: &mut Link, found: &Found) {
        if let Found::BiStream { .. } = found {
            self.session.close();
            let _ = self.say(link);
        }
        let _ = link.finish();
        let mut rest = [0; 4096];
        while link.read(&mut rest, self.until).is_ok_and(|read| read > 0) {}
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BiStream { version, features, limits } => {
                writeln!(f, "bistream")?;
                writeln!(f, "version: {version}")?;
                writeln!(f, "features: {}", Features(*features))?;
                writeln!(f, "max-data: {}", limits.max_data)?;
                write!(f, "max-streams: {}", limits.max_streams)
            }
            Self::Legacy(error) => {
                writeln!(f, "legacy")?;
                writeln!(f, "code: {}", error.code)?;
                write!(f, "text: {}", Escaped(&error.message))
            }
        }
    }
}

struct Features(u64);

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = [(feature::HOLES, "holes"), (feature::RESUME, "resume"), (feature::STRIPE, "stripe")];
        let mut names: Vec<_> =
            known.iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
        let unknown = known.iter().fold(self.0, |rest, (bit, _)| rest & !bit);
        if unknown != 0 {
            names.push(format!("{unknown:#x}"));
        }
        f.write_str(if names.is_empty() { "none".to_owned() } else { names.join(" ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names_and_unknown_ones_their_bits() {
        for (bits, text) in [(0, "none"), (1, "holes"), (7, "holes resume stripe"), (0x101, "holes 0x100")] {
            assert_eq!(Features(bits).to_string(), text);
        }
    }
}
