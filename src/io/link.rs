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

pub(super) struct Link {
    socket: Socket,
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
    Bytes(usize),
    Nothing,
    End,
}

impl Link {
    pub(super) fn new(mut socket: Socket, registry: &Registry, token: Token) -> io::Result<Self> {
        socket.register(registry, token, Interest::READABLE | Interest::WRITABLE)?;
        let identity = socket.identity();
        Ok(Self {
            socket,
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

    /// Whether reading was stopped before the socket was drained: no event will tell again.
    pub(super) fn is_readable(&self) -> bool {
        self.can_read
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<Received> {
        while self.can_read {
            let read = match &mut self.descriptors {
                Some(descriptors) => self.socket.read_with_descriptors(buf, descriptors),
                None => self.socket.read(buf),
            };
            match read {
                Ok(0) => {
                    self.can_read = false;
                    return Ok(Received::End);
                }
                Ok(len) => return Ok(Received::Bytes(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_read = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Received::Nothing)
    }

    /// Whether something waits for the socket to take it.
    pub(super) fn is_writing(&self) -> bool {
        self.out.is_some() || self.descriptor.is_some()
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
        self.can_write
    }

    /// Writes the buffer, or what is left of the one before. Gives how many bytes the socket took.
    pub(super) fn write(&mut self, buffer: Option<Buffer>, pool: &mut Pool) -> io::Result<usize> {
        let Some(mut out) = buffer.or_else(|| self.out.take()) else { return self.write_descriptor() };
        let mut written = 0;
        while self.can_write && !out.filled().is_empty() {
            match self.socket.write(out.filled()) {
                Ok(len) => {
                    out.advance(len);
                    written += len;
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
            return Ok(written);
        }
        pool.give(out);
        Ok(written + self.write_descriptor()?)
    }

    fn write_descriptor(&mut self) -> io::Result<usize> {
        while let Some((byte, descriptor)) = self.descriptor.as_ref().filter(|_| self.can_write) {
            match self.socket.write_with_descriptor(*byte, descriptor.as_fd()) {
                Ok(()) => {
                    self.descriptor = None;
                    return Ok(1);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_write = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    pub(super) fn shutdown_write(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    pub(super) fn close(mut self, registry: &Registry, pool: &mut Pool) {
        let _ = self.socket.deregister(registry);
        if let Some(out) = self.out.take() {
            pool.give(out);
        }
    }
}
