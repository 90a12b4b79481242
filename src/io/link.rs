//! The byte transport under one session.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::identity::Identity;
use super::pool::{Buffer, Pool};
use super::socket::Socket;
use super::tls::Tls;

/// What a byte that is no plaintext costs: in a whole record there are few, but with messages of TLS' own comes a change of keys.
const REST: usize = 16;

pub(super) struct Link {
    socket: Socket,
    tls: Option<Box<Tls>>,
    identity: Identity,
    pub(super) token: Token,
    can_read: bool,
    can_write: bool,
    /// What is on its way out. Nothing is encoded while some of it waits, so that what is most urgent then goes next.
    out: Option<Buffer>,
    /// Goes behind it.
    descriptor: Option<(u8, OwnedFd)>,
    /// Those that came with what was read last; `None` where none are looked for.
    descriptors: Option<VecDeque<OwnedFd>>,
}

/// What reading gave.
pub(super) enum Received {
    /// So many, none perhaps, which cost as much as `cost` bytes of a plain link.
    Bytes {
        len: usize,
        cost: usize,
    },
    Nothing,
    End,
}

/// What writing came to.
pub(super) struct Written {
    /// Bytes that were taken, over TLS to be encrypted.
    pub(super) len: usize,
    /// The peer has made room: for them, or for what was taken before.
    pub(super) has_moved: bool,
}

impl Link {
    pub(super) fn new(mut socket: Socket, registry: &Registry, token: Token) -> io::Result<Self> {
        socket.register(registry, token, Interest::READABLE | Interest::WRITABLE)?;
        let tls = socket.take_tls();
        // What its certificate says alone counts, wherever it connects from.
        let identity = if tls.is_some() { Identity::Unknown } else { socket.identity() };
        Ok(Self {
            socket,
            tls,
            identity,
            token,
            can_read: true,
            can_write: true,
            out: None,
            descriptor: None,
            descriptors: None,
        })
    }

    pub(super) fn on_event(&mut self, readable: bool, writable: bool) {
        self.can_read |= readable;
        self.can_write |= writable;
    }

    pub(super) fn peer(&self) -> &str {
        self.socket.peer()
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether a session may use it: over TLS not before each side has accepted the other.
    pub(super) fn is_open(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| tls.is_open())
    }

    /// What secures it, for people to read.
    pub(super) fn security(&self) -> Option<&'static str> {
        self.tls.as_ref().map(|tls| tls.version())
    }

    /// Whether reading was stopped before the socket was drained: no event will tell again.
    pub(super) fn is_readable(&self) -> bool {
        self.can_read
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<Received> {
        if !self.is_open() {
            self.flush()?;
        }
        while self.can_read {
            let plain = |read: io::Result<usize>| {
                read.map(|len| if len == 0 { Received::End } else { Received::Bytes { len, cost: len } })
            };
            let read = match (&mut self.tls, &mut self.descriptors) {
                (Some(tls), _) => tls.read(&mut self.socket, buf).map(|taken| match taken.has_ended {
                    true => Received::End,
                    false => {
                        let rest = taken.cost.saturating_sub(taken.plain);
                        Received::Bytes { len: taken.plain, cost: taken.plain + REST * rest }
                    }
                }),
                (None, Some(descriptors)) => plain(self.socket.read_with_descriptors(buf, descriptors)),
                (None, None) => plain(self.socket.read(buf)),
            };
            match read {
                Ok(Received::End) => {
                    self.can_read = false;
                    return Ok(Received::End);
                }
                Ok(received) => return Ok(received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_read = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Received::Nothing)
    }

    /// What its transport now proves.
    pub(super) fn learn_identity(&mut self) {
        if let Some(tls) = &self.tls {
            self.identity = tls.identity().clone();
        }
    }

    /// Whether something waits for the socket to take it.
    pub(super) fn is_writing(&self) -> bool {
        self.out.is_some() || self.descriptor.is_some() || self.tls.as_ref().is_some_and(|tls| tls.is_writing())
    }

    /// From now on descriptors are looked for.
    pub(super) fn keep_descriptors(&mut self) {
        self.descriptors.get_or_insert_default();
    }

    /// The next descriptor that came.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.as_mut()?.pop_front()
    }

    /// Drops descriptors that nobody asked for.
    pub(super) fn forget_descriptors(&mut self) {
        self.descriptors.iter_mut().for_each(VecDeque::clear);
    }

    /// Sends a byte with a descriptor behind what is on its way out, and before anything else.
    pub(super) fn send_descriptor(&mut self, byte: u8, descriptor: OwnedFd) {
        self.descriptor = Some((byte, descriptor));
    }

    pub(super) fn can_write(&self) -> bool {
        self.can_write && self.is_open()
    }

    /// Writes the buffer, or what is left of the one before.
    pub(super) fn write(&mut self, buffer: Option<Buffer>, pool: &mut Pool) -> io::Result<Written> {
        let mut written = Written { len: 0, has_moved: self.flush()? };
        let Some(mut out) = buffer.or_else(|| self.out.take()) else { return self.write_descriptor(written) };
        while self.can_write && !out.filled().is_empty() {
            let taken = match &mut self.tls {
                Some(tls) => tls.write(&mut self.socket, out.filled()),
                None => self.socket.write(out.filled()),
            };
            match taken {
                Ok(len) => {
                    out.advance(len);
                    written.len += len;
                    // It was taken, and stands encrypted before the socket.
                    self.can_write = self.tls.as_ref().is_none_or(|tls| !tls.is_writing());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_write = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    pool.give(out);
                    return Err(error);
                }
            }
        }
        if !out.filled().is_empty() {
            self.out = Some(out);
            written.has_moved |= written.len > 0;
            return Ok(written);
        }
        pool.give(out);
        self.write_descriptor(written)
    }

    /// Writes what TLS has encrypted. True when the socket took some.
    fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = self.tls.as_mut().filter(|tls| self.can_write && tls.is_writing()) else { return Ok(false) };
        let before = tls.waiting();
        self.can_write = tls.flush(&mut self.socket)?;
        Ok(tls.waiting() < before)
    }

    /// Behind what was written.
    fn write_descriptor(&mut self, mut written: Written) -> io::Result<Written> {
        while let Some((byte, descriptor)) = self.descriptor.as_ref().filter(|_| self.can_write) {
            match self.socket.write_with_descriptor(*byte, descriptor.as_fd()) {
                Ok(()) => {
                    self.descriptor = None;
                    written.len += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_write = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        written.has_moved |= written.len > 0;
        Ok(written)
    }

    pub(super) fn shutdown_write(&mut self) {
        if let Some(tls) = &mut self.tls {
            let _ = tls.finish(&mut self.socket);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    pub(super) fn close(mut self, registry: &Registry, pool: &mut Pool) {
        let _ = self.socket.deregister(registry);
        if let Some(out) = self.out.take() {
            pool.give(out);
        }
    }
}
