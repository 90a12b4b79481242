//! A connection to the peer that is judged: whatever bytes are wanted go out, and packets come in as they are.

use std::collections::VecDeque;
use std::fmt;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use virbistream::wire::{
    HEADER_LEN, Header, PACKET_MAX, PACKET_MIN, PROGRAM, PacketType, RemoteError, Status, codes, decode_legacy, domains,
};

use super::case::{Fault, Setting, Verdict};
use crate::link::Link;

/// How long it takes to believe that nothing more comes: silence shows in nothing but time.
const QUIET: Duration = Duration::from_millis(100);

/// A procedure that no program has; every peer says so.
pub(super) const UNKNOWN_PROCEDURE: u32 = 9999;

/// A call that every peer answers, by an error.
pub(super) const ARE_YOU_THERE: Header =
    Header { program: PROGRAM, version: 1, procedure: UNKNOWN_PROCEDURE, kind: 0, serial: 0x4c49_5645, status: 0 };

/// A packet, judged in nothing but its length.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

/// What came next.
pub(super) enum Came {
    Packet(Packet),
    /// The end, or a reset.
    Closed,
    /// Nothing, in all the time given.
    Nothing,
}

/// So many times what one answer may take is what a whole case may: a peer that never stops cannot keep it.
const CASE: u32 = 10;

pub(super) struct Peer {
    link: Link,
    timeout: Duration,
    /// By when the case is over.
    end: Instant,
    connection: String,
    received: Vec<u8>,
    /// What came before its turn, and is next.
    early: VecDeque<Packet>,
}

/// A packet of libvirt's remote program.
pub(super) fn remote(procedure: u32, kind: PacketType, serial: u32, status: Status) -> Header {
    Header { program: PROGRAM, version: 1, procedure, kind: kind.as_wire(), serial, status: status.as_wire() }
}

pub(super) fn call(procedure: u32, serial: u32) -> Header {
    remote(procedure, PacketType::Call, serial, Status::Ok)
}

pub(super) fn packet(header: &Header, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a payload of a few MiB");
    [&header.encode(length)[..], payload].concat()
}

/// The answer to a call, well or badly.
pub(super) fn reply(call: &Header, status: Status) -> Header {
    Header { kind: PacketType::Reply.as_wire(), status: status.as_wire(), ..*call }
}

/// What libvirt's RPC itself says is wrong.
pub(super) fn rpc_error(text: impl Into<String>) -> RemoteError {
    RemoteError::new(codes::RPC, domains::RPC, text).with_ints(-1, -1)
}

impl Peer {
    pub(super) fn connect(setting: &Setting) -> Result<Self, Fault> {
        let link = Link::connect(&setting.uri, Instant::now() + setting.timeout)
            .map_err(|error| Fault::new("a connection", error))?;
        let (connection, timeout) = (setting.uri.connection.clone(), setting.timeout);
        let end = Instant::now() + CASE * timeout;
        Ok(Self { link, timeout, end, connection, received: Vec::new(), early: VecDeque::new() })
    }

    /// As a client begins: asks how to authenticate, and opens what the URI names.
    pub(super) fn login(&mut self) -> Verdict {
        let connection = self.connection.clone();
        self.login_to(&connection)
    }

    pub(super) fn login_to(&mut self, connection: &str) -> Verdict {
        self.call(procedures::AUTH_LIST, 0, &[])?;
        let name = [&1u32.to_be_bytes()[..], &string(connection), &[0; 4]].concat();
        self.call(procedures::CONNECT_OPEN, 1, &name).map(drop)
    }

    /// A call that has to go well; its reply's body.
    pub(super) fn call(&mut self, procedure: u32, serial: u32, arguments: &[u8]) -> Result<Vec<u8>, Fault> {
        let header = call(procedure, serial);
        self.send(&packet(&header, arguments))?;
        self.expect(&reply(&header, Status::Ok))
    }

    /// A call that begins a stream. libvirtd may send of the stream before it has answered the call.
    pub(super) fn call_for_stream(&mut self, procedure: u32, serial: u32, arguments: &[u8]) -> Result<Vec<u8>, Fault> {
        let header = call(procedure, serial);
        self.send(&packet(&header, arguments))?;
        let mut early = VecDeque::new();
        let until = self.deadline();
        loop {
            match self.receive_until(until) {
                Came::Packet(packet) if packet.header == reply(&header, Status::Ok) => {
                    self.early = early;
                    return Ok(packet.payload);
                }
                Came::Packet(packet)
                    if (packet.header.procedure, packet.header.serial) == (procedure, serial)
                        && matches!(packet.header.packet_type(), Some(PacketType::Stream | PacketType::StreamHole)) =>
                {
                    early.push_back(packet);
                }
                other => return Err(Fault::new(Described(&reply(&header, Status::Ok), &[]), other)),
            }
        }
    }

    /// That the peer takes no more is no fault: what comes next says what it made of it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Verdict {
        match self.link.write_all(bytes, self.deadline()) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(Fault::new("a peer that reads", "it takes no more bytes"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn finish(&mut self) {
        // Fails when the peer has closed, which is seen when it is read.
        let _ = self.link.finish();
    }

    /// By when an answer has to come that is asked for now.
    pub(super) fn deadline(&self) -> Instant {
        self.end.min(Instant::now() + self.timeout)
    }

    pub(super) fn receive(&mut self) -> Came {
        self.receive_until(self.deadline())
    }

    pub(super) fn receive_until(&mut self, until: Instant) -> Came {
        if let Some(packet) = self.early.pop_front() {
            return Came::Packet(packet);
        }
        let mut buffer = [0; 64 * 1024];
        loop {
            if Instant::now() >= self.end {
                return Came::Nothing;
            }
            if let Some(packet) = self.take_packet() {
                return Came::Packet(packet);
            }
            match self.link.read(&mut buffer, until) {
                Ok(read) if read > 0 => self.received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::TimedOut => return Came::Nothing,
                _ => return Came::Closed,
            }
        }
    }

    /// A length that there is not is never whole: nothing comes.
    fn take_packet(&mut self) -> Option<Packet> {
        let (length, header) = Header::decode(self.received.first_chunk()?);
        if !(PACKET_MIN..=PACKET_MAX).contains(&length) || self.received.len() < length as usize {
            return None;
        }
        let payload = self.received[HEADER_LEN..length as usize].to_vec();
        self.received.drain(..length as usize);
        Some(Packet { header, payload })
    }

    /// The packet with this header is next; its payload.
    pub(super) fn expect(&mut self, header: &Header) -> Result<Vec<u8>, Fault> {
        match self.receive() {
            Came::Packet(packet) if packet.header == *header => Ok(packet.payload),
            other => Err(Fault::new(Described(header, &[]), other)),
        }
    }

    /// The error with this header and these fields is next.
    pub(super) fn expect_error(&mut self, header: &Header, error: &RemoteError) -> Verdict {
        let came = self.receive();
        self.judge_error(came, header, error)
    }

    pub(super) fn judge_error(&self, came: Came, header: &Header, error: &RemoteError) -> Verdict {
        let payload = match came {
            Came::Packet(packet) if packet.header == *header => packet.payload,
            other => return Err(Fault::new(format!("{}: {error:?}", Described(header, &[])), other)),
        };
        match decode_legacy::<RemoteError>(&payload) {
            Ok(got) if got == *error => Ok(()),
            Ok(got) => Err(Fault::new(format!("{error:?}"), format!("{got:?}"))),
            Err(bad) => Err(Fault::new(format!("{error:?}"), bad)),
        }
    }

    pub(super) fn expect_closed(&mut self) -> Verdict {
        match self.receive() {
            Came::Closed => Ok(()),
            other => Err(Fault::new("the end of the connection", other)),
        }
    }

    /// The connection answers a call, and nothing else has come or comes.
    pub(super) fn expect_serves(&mut self) -> Verdict {
        self.ask_whether_it_serves()?;
        let came = self.receive();
        self.judge_that_it_serves(came)
    }

    /// The same, and one packet with this header may come before.
    pub(super) fn expect_serves_behind(&mut self, header: &Header) -> Verdict {
        self.ask_whether_it_serves()?;
        let came = match self.receive() {
            Came::Packet(packet) if packet.header == *header => self.receive(),
            other => other,
        };
        self.judge_that_it_serves(came)
    }

    pub(super) fn ask_whether_it_serves(&mut self) -> Verdict {
        self.send(&packet(&ARE_YOU_THERE, &[]))
    }

    fn judge_that_it_serves(&mut self, came: Came) -> Verdict {
        self.judge_error(came, &reply(&ARE_YOU_THERE, Status::Error), &unknown())?;
        match self.receive_until(Instant::now() + QUIET) {
            Came::Nothing => Ok(()),
            other => Err(Fault::new("nothing more", other)),
        }
    }
}

/// What a call of [`UNKNOWN_PROCEDURE`] is answered.
pub(super) fn unknown() -> RemoteError {
    rpc_error(format!("unknown procedure: {UNKNOWN_PROCEDURE}"))
}

/// Procedures of libvirt's remote program.
pub(super) mod procedures {
    pub(crate) const CONNECT_OPEN: u32 = 1;
    pub(crate) const CONNECT_GET_VERSION: u32 = 4;
    pub(crate) const DOMAIN_LOOKUP_BY_NAME: u32 = 23;
    pub(crate) const CONNECT_SUPPORTS_FEATURE: u32 = 60;
    pub(crate) const AUTH_LIST: u32 = 66;
    pub(crate) const STORAGE_POOL_LOOKUP_BY_NAME: u32 = 84;
    pub(crate) const STORAGE_VOL_CREATE_XML: u32 = 93;
    pub(crate) const STORAGE_VOL_DELETE: u32 = 94;
    pub(crate) const STORAGE_VOL_UPLOAD: u32 = 208;
    pub(crate) const STORAGE_VOL_DOWNLOAD: u32 = 209;
    pub(crate) const DOMAIN_SCREENSHOT: u32 = 211;
}

/// A string of XDR's.
pub(super) fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a short text");
    let padding = text.len().next_multiple_of(4) - text.len();
    [&length.to_be_bytes()[..], text.as_bytes(), &vec![0; padding]].concat()
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet(Packet { header, payload }) => Described(header, payload).fmt(f),
            Self::Closed => f.write_str("the end of the connection"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// A packet for people to read; what an error says with it.
struct Described<'a>(&'a Header, &'a [u8]);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Header { program, version, procedure, serial, .. }, payload) = self;
        let word = |named: Option<String>, number: u32| named.unwrap_or_else(|| number.to_string());
        let kind = word(self.0.packet_type().map(|kind| format!("{kind:?}")), self.0.kind);
        let status = word(self.0.packet_status().map(|status| format!("{status:?}")), self.0.status);
        write!(f, "{kind} {status} of {program:#x}/{version}/{procedure:#x}, serial {serial}")?;
        match decode_legacy::<RemoteError>(payload) {
            Ok(error) if self.0.packet_status() == Some(Status::Error) => write!(f, ": {error:?}"),
            _ if payload.is_empty() => Ok(()),
            _ => write!(f, ", {} bytes", payload.len()),
        }
    }
}
