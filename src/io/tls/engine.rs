//! One connection: rustls' state machine without its buffers, and ours around it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ProtocolVersion, ServerConfig};

use super::error::TlsError;
use super::name;
use crate::io::identity::Identity;

/// The most plaintext of one write: all of a link's buffer, so that one call of the system takes it.
const WRITE_MAX: usize = 320 * 1024;

/// The most ciphertext read at once, and kept. A record has at most 18 KiB; handshake messages of 64 KiB fit, in any sane pieces.
const READ_MAX: usize = 288 * 1024;

/// What a connection begins with: most have no more than this at a time, and half-open ones none.
const READ_FIRST: usize = 20 * 1024;

/// The least that a caller's buffer has: one record's plaintext fits with room.
pub(super) const LEAST_ROOM: usize = 32 * 1024;

/// Ciphertext beyond the plaintext: for each record of 16 KiB a header, a nonce and a tag.
const RECORD: usize = 16 * 1024;
const OVERHEAD: usize = 64;

/// Beyond what a write may leave, so much of TLS' own messages may wait; a peer that makes us owe more does not read.
const OWED_MAX: usize = 128 * 1024;

/// What a server of libvirt's says first, inside of TLS: your certificate is accepted.
const ACCEPTED: u8 = 1;

/// Without sockets of its own: what is read and written goes through the one that is lent for a call.
pub(in crate::io) struct Tls {
    connection: Connection,
    /// Ciphertext that came and is not whole. Between two calls no record in it is.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read took all the room that there was: more is worth having.
    was_filled: bool,
    /// Ciphertext on its way out.
    outgoing: Outgoing,
    stage: Stage,
    /// The peer's certificate is looked at. Otherwise nobody knows who it is.
    verifies: bool,
    peer_ended: bool,
    close_sent: bool,
    identity: Identity,
    /// It failed; whatever is asked gives this.
    failure: Option<TlsError>,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    /// Ours is over; the server's word that it accepts our certificate is awaited.
    AwaitsWord,
    Open,
}

#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outgoing {
    fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// At least so much room behind what waits.
    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        if self.bytes.len() < self.end + len {
            self.bytes.resize(self.end + len, 0);
        }
        &mut self.bytes[self.end..]
    }
}

/// What reading gave.
pub(in crate::io) struct Taken {
    pub(in crate::io) plain: usize,
    /// Bytes that the socket gave for it.
    pub(in crate::io) cost: usize,
    /// The peer has ended, in order.
    pub(in crate::io) has_ended: bool,
}

/// What one step of rustls' is to do, when it can.
enum Wish<'a> {
    /// Put plaintext here.
    Decrypt(&'a mut [u8]),
    Encrypt(&'a [u8]),
    CloseNotify,
}

/// What it did.
enum Step {
    /// Something of its own: another step.
    Own,
    /// So much plaintext.
    Plain(usize),
    /// No whole record is left; so much was encrypted.
    Quiet(usize),
    PeerEnded,
}

impl Tls {
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        verifies: bool,
    ) -> Result<Self, TlsError> {
        Ok(Self::new(Connection::Client(UnbufferedClientConnection::new(config, name)?), verifies))
    }

    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        Ok(Self::new(Connection::Server(UnbufferedServerConnection::new(config)?), true))
    }

    fn new(connection: Connection, verifies: bool) -> Self {
        Self {
            connection,
            incoming: Vec::new(),
            start: 0,
            end: 0,
            was_filled: false,
            outgoing: Outgoing::default(),
            stage: Stage::Handshake,
            verifies,
            peer_ended: false,
            close_sent: false,
            identity: Identity::Unknown,
            failure: None,
        }
    }

    /// Whether the handshake is over and each side has accepted the other.
    pub(in crate::io) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Who the peer is, once it is open.
    pub(in crate::io) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The version in force, for people to read.
    pub(in crate::io) fn version(&self) -> &'static str {
        match self.connection.state().protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS",
        }
    }

    /// Whether ciphertext waits for the socket to take it.
    pub(in crate::io) fn is_writing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// How much of it, in bytes.
    pub(in crate::io) fn waiting(&self) -> usize {
        self.outgoing.waiting().len()
    }

    /// Reads what has come, goes on with the handshake, and gives plaintext. A buffer has at least [`LEAST_ROOM`]; nothing is kept back that
    /// would fit into it.
    ///
    /// The socket is read once at most, since a peer can send for ever what is no plaintext: messages of TLS' own, empty records, padding.
    /// Once there is nothing, `WouldBlock`, or whatever the socket says.
    pub(in crate::io) fn read<S: Read + Write>(&mut self, socket: &mut S, buf: &mut [u8]) -> io::Result<Taken> {
        let mut taken = Taken { plain: self.take(socket, buf)?, cost: 0, has_ended: false };
        if taken.plain == 0 && !self.peer_ended {
            taken.cost = self.receive(socket, buf.len())?;
            taken.plain = self.take(socket, buf)?;
        }
        taken.has_ended = taken.plain == 0 && self.peer_ended;
        Ok(taken)
    }

    /// Goes on with the handshake until it is over. Gives plaintext that came with its end.
    pub(super) fn handshake<S: Read + Write>(&mut self, socket: &mut S, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = self.take(socket, buf)?;
            if self.is_open() || self.peer_ended {
                return Ok(len);
            }
            self.receive(socket, buf.len())?;
        }
    }

    /// Takes what was received, and answers.
    fn take<S: Write>(&mut self, socket: &mut S, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone().into());
        }
        let decrypted = self.decrypt(buf);
        // Its own messages, and the alert that says what is wrong. Whether they go shows when they are written again.
        let flushed = self.flush(socket);
        match decrypted {
            Ok(0) => flushed.map(|_| 0),
            Ok(len) => Ok(len),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Takes plaintext, unless ciphertext still waits that the socket does not take: then `WouldBlock`.
    pub(in crate::io) fn write<S: Write>(&mut self, socket: &mut S, bytes: &[u8]) -> io::Result<usize> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone().into());
        }
        if !self.is_open() || !self.flush(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = match self.encrypt(&bytes[..bytes.len().min(WRITE_MAX)]) {
            Ok(taken) => taken,
            Err(error) => return Err(self.fail(error)),
        };
        if taken == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.flush(socket)?;
        Ok(taken)
    }

    /// True when nothing is left to be written.
    pub(in crate::io) fn flush<S: Write>(&mut self, socket: &mut S) -> io::Result<bool> {
        while !self.outgoing.is_empty() {
            match socket.write(self.outgoing.waiting()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.outgoing.start += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Tells the peer that nothing more comes, as far as the socket takes it at once.
    pub(in crate::io) fn finish<S: Write>(&mut self, socket: &mut S) -> io::Result<()> {
        if self.stage != Stage::Handshake && self.failure.is_none() && !std::mem::replace(&mut self.close_sent, true) {
            self.step_until_quiet(|| Wish::CloseNotify)?;
        }
        self.flush(socket).map(drop)
    }

    fn fail(&mut self, error: TlsError) -> io::Error {
        self.failure.get_or_insert(error).clone().into()
    }

    /// Reads the socket once, and gives how many bytes came.
    fn receive<S: Read>(&mut self, socket: &mut S, room: usize) -> io::Result<usize> {
        // What is left of the last read: a part of a record, or of a handshake message.
        self.incoming.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        // No more than the caller has room for: what was decrypted is handed over in the same call.
        let most = READ_MAX.min(room);
        if self.end == self.incoming.len() && self.end < most || self.was_filled {
            let len = (2 * self.incoming.len()).clamp(READ_FIRST, READ_MAX);
            self.incoming.resize(len, 0);
        }
        let Some(free) = self.incoming.get_mut(self.end..).filter(|free| !free.is_empty() && self.end < most) else {
            // Only a handshake message in many little pieces, or without an end, comes to this.
            return Err(self.fail(TlsError::Misbehaved("a handshake message that is too long".into())));
        };
        let len = free.len().min(most - self.end);
        let read = socket.read(&mut free[..len])?;
        self.was_filled = read == len;
        self.end += read;
        match (read, self.stage) {
            (0, Stage::Open) => Err(self.fail(TlsError::Truncated)),
            (0, _) => Err(self.fail(TlsError::HandshakeCut)),
            _ => Ok(read),
        }
    }

    /// All whole records that are there.
    fn decrypt(&mut self, buf: &mut [u8]) -> Result<usize, TlsError> {
        let mut filled = 0;
        while !self.peer_ended {
            match self.step(Wish::Decrypt(&mut buf[filled..])) {
                Ok(Step::Own) => {}
                Ok(Step::Plain(len)) => filled += len,
                Ok(Step::PeerEnded) => self.peer_ended = true,
                Ok(Step::Quiet(_)) => break,
                // What came before it is good.
                Err(error) if filled > 0 && self.is_open() => {
                    self.failure = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if self.stage == Stage::Handshake && !self.connection.state().is_handshaking() {
            self.end_handshake()?;
        }
        if self.stage == Stage::AwaitsWord && filled > 0 {
            if buf.first() != Some(&ACCEPTED) {
                return Err(TlsError::NotAccepted);
            }
            self.stage = Stage::Open;
            buf.copy_within(1..filled, 0);
            filled -= 1;
        }
        Ok(filled)
    }

    fn end_handshake(&mut self) -> Result<(), TlsError> {
        let state = self.connection.state();
        let Some(certificate) = state.peer_certificates().and_then(<[_]>::first) else {
            return Err(TlsError::NoCertificate);
        };
        if self.verifies {
            self.identity = name::identity(certificate)?;
        }
        self.stage = Stage::AwaitsWord;
        if matches!(self.connection, Connection::Server(_)) {
            self.stage = Stage::Open;
            self.encrypt(&[ACCEPTED])?;
        }
        Ok(())
    }

    fn encrypt(&mut self, bytes: &[u8]) -> Result<usize, TlsError> {
        self.step_until_quiet(|| Wish::Encrypt(bytes))
    }

    /// No whole record is there, so no step gives plaintext.
    fn step_until_quiet<'a>(&mut self, wish: impl Fn() -> Wish<'a>) -> Result<usize, TlsError> {
        loop {
            match self.step(wish())? {
                Step::Own | Step::Plain(_) => {}
                Step::Quiet(taken) => return Ok(taken),
                Step::PeerEnded => self.peer_ended = true,
            }
        }
    }

    fn step(&mut self, wish: Wish<'_>) -> Result<Step, TlsError> {
        if self.outgoing.waiting().len() > WRITE_MAX + OWED_MAX {
            return Err(TlsError::Misbehaved("it makes us answer and does not read".into()));
        }
        let stepped = self.step_once(wish);
        if stepped.is_err() {
            // The alert that tells the peer. No further than that: rustls has failed, and what it would look at is undefined.
            while self.connection.state().wants_write() {
                if self.step_once(Wish::Encrypt(&[])).is_err() {
                    break;
                }
            }
        }
        stepped
    }

    fn step_once(&mut self, wish: Wish<'_>) -> Result<Step, TlsError> {
        let records = &mut self.incoming[self.start..self.end];
        let (discard, step) = match &mut self.connection {
            Connection::Client(client) => handle(client.process_tls_records(records), wish, &mut self.outgoing),
            Connection::Server(server) => handle(server.process_tls_records(records), wish, &mut self.outgoing),
        };
        self.start += discard;
        step
    }
}

impl Connection {
    fn state(&self) -> &CommonState {
        match self {
            Self::Client(client) => client,
            Self::Server(server) => server,
        }
    }
}

fn handle<Data>(
    UnbufferedStatus { discard, state }: UnbufferedStatus<'_, '_, Data>,
    wish: Wish<'_>,
    outgoing: &mut Outgoing,
) -> (usize, Result<Step, TlsError>) {
    let step = match (state, wish) {
        (Err(error), _) => Err(error.into()),
        (Ok(ConnectionState::ReadTraffic(mut traffic)), Wish::Decrypt(buf)) => {
            let mut filled = 0;
            let mut taken = Ok(());
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => match buf.get_mut(filled..filled + record.payload.len()) {
                        Some(room) => {
                            room.copy_from_slice(record.payload);
                            filled += record.payload.len();
                        }
                        None => taken = Err(TlsError::Local("more plaintext than ciphertext".into())),
                    },
                    Err(error) => taken = Err(error.into()),
                }
            }
            taken.map(|()| Step::Plain(filled))
        }
        (Ok(ConnectionState::ReadTraffic(_)), _) => Err(TlsError::Local("plaintext that nobody asked for".into())),
        (Ok(ConnectionState::EncodeTlsData(mut data)), _) => {
            let mut encoded = data.encode(outgoing.room(0));
            if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = encoded {
                encoded = data.encode(outgoing.room(required_size));
            }
            encoded
                .map(|len| outgoing.end += len)
                .map(|()| Step::Own)
                .map_err(|error| TlsError::Local(error.to_string()))
        }
        (Ok(ConnectionState::TransmitTlsData(data)), _) => {
            // It stands in order in what goes out.
            data.done();
            Ok(Step::Own)
        }
        (Ok(ConnectionState::WriteTraffic(mut traffic)), wish) => {
            let len = if let Wish::Encrypt(bytes) = &wish { bytes.len() } else { 0 };
            let room = outgoing.room(len + (len / RECORD + 2) * OVERHEAD);
            let encrypted = match wish {
                Wish::Encrypt(bytes) => traffic.encrypt(bytes, room),
                Wish::CloseNotify => traffic.queue_close_notify(room),
                Wish::Decrypt(_) => Ok(0),
            };
            encrypted.map(|written| outgoing.end += written).map(|()| Step::Quiet(len)).map_err(exhausted)
        }
        (Ok(ConnectionState::PeerClosed), _) => Ok(Step::PeerEnded),
        // `Closed`, `BlockedHandshake`, and early data, which no configuration of ours lets in.
        (Ok(_), _) => Ok(Step::Quiet(0)),
    };
    (discard, step)
}

fn exhausted(error: EncryptError) -> TlsError {
    match error {
        // TLS 1.2 has no new keys to change to.
        EncryptError::EncryptExhausted => TlsError::Local("its keys have encrypted as much as they may".into()),
        other => TlsError::Local(other.to_string()),
    }
}
