//! The byte transport under one session.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::pool::{Buffer, Pool};
use super::socket::Socket;

pub(super) struct Link {
    socket: Socket,
    pub(super) token: Token,
    can_read: bool,
    can_write: bool,
    /// What is on its way out. Nothing is encoded while some of it waits, so that what is most urgent then goes next.
    out: Option<Buffer>,
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
        Ok(Self { socket, token, can_read: true, can_write: true, out: None })
    }

    pub(super) fn on_event(&mut self, readable: bool, writable: bool) {
        self.can_read |= readable;
        self.can_write |= writable;
    }

    pub(super) fn peer(&self) -> &str {
        self.socket.peer()
    }

    /// Whether reading was stopped before the socket was drained: no event will tell again.
    pub(super) fn is_readable(&self) -> bool {
        self.can_read
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<Received> {
        while self.can_read {
            match self.socket.read(buf) {
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
        self.out.is_some()
    }

    pub(super) fn can_write(&self) -> bool {
        self.can_write
    }

    /// Writes the buffer, or what is left of the one before. Gives how many bytes the socket took.
    pub(super) fn write(&mut self, buffer: Option<Buffer>, pool: &mut Pool) -> io::Result<usize> {
        let Some(mut out) = buffer.or_else(|| self.out.take()) else { return Ok(0) };
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
        if out.filled().is_empty() {
            pool.give(out);
        } else {
            self.out = Some(out);
        }
        Ok(written)
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
