use std::fmt;
use std::io::{self, Read, Write};

use super::config::{TlsClient, TlsServer};
use super::engine::{LEAST_ROOM, Tls};
use crate::io::identity::Identity;

/// Plaintext that is decrypted ahead of who reads it, at most.
const AHEAD: usize = 2 * LEAST_ROOM;

/// TLS as libvirt has it over a stream of yours, for programs with a loop of their own, or none. The dispatcher needs it not.
///
/// The first read or write does the handshake, as far as the stream lets it: over one that does not block, or that has a
/// timeout, they give what it gives, `WouldBlock` say, and go on where they stopped. A read of 0 bytes is the end by the peer's
/// word; a connection that was cut gives [`TlsError::Truncated`](super::TlsError::Truncated).
pub struct TlsStream<S> {
    tls: Tls,
    stream: S,
    plain: Vec<u8>,
    start: usize,
    end: usize,
}

impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl<S: Read + Write> TlsStream<S> {
    /// As the side that connected, to the host `dialled`.
    ///
    /// # Errors
    /// [`TlsError`](super::TlsError), when there can be no certificate for such a name.
    pub fn client(stream: S, client: &TlsClient, dialled: &str) -> io::Result<Self> {
        Ok(Self::new(client.begin(dialled)?, stream))
    }

    /// As the side that accepted.
    ///
    /// # Errors
    /// [`TlsError`](super::TlsError), when the system has no random numbers.
    pub fn server(stream: S, server: &TlsServer) -> io::Result<Self> {
        Ok(Self::new(server.begin()?, stream))
    }

    fn new(tls: Tls, stream: S) -> Self {
        Self { tls, stream, plain: Vec::new(), start: 0, end: 0 }
    }

    /// The stream underneath: what is written to it directly breaks the connection.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Who the peer is; unknown before the handshake is over.
    pub fn identity(&self) -> &Identity {
        self.tls.identity()
    }

    /// Goes on with the handshake until it is over. What is written before waits for it, too.
    ///
    /// # Errors
    /// The stream's, and [`TlsError`](super::TlsError).
    pub fn handshake(&mut self) -> io::Result<()> {
        if !self.tls.is_open() {
            self.plain.resize(AHEAD, 0);
            self.end = self.tls.handshake(&mut self.stream, &mut self.plain)?;
        }
        Ok(())
    }

    /// Tells the peer that nothing more comes from here; it may still send. The stream's own direction stays open.
    ///
    /// # Errors
    /// The stream's, and [`TlsError`](super::TlsError).
    pub fn finish(&mut self) -> io::Result<()> {
        self.handshake()?;
        self.tls.finish(&mut self.stream)
    }

    /// True unless the peer has ended.
    fn read_ahead(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            self.plain.resize(AHEAD, 0);
            (self.start, self.end) = (0, 0);
            while self.end == 0 {
                let taken = self.tls.read(&mut self.stream, &mut self.plain)?;
                if taken.has_ended {
                    return Ok(false);
                }
                self.end = taken.plain;
            }
        }
        Ok(true)
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.read_ahead()? {
            return Ok(0);
        }
        let len = (self.end - self.start).min(buf.len());
        buf[..len].copy_from_slice(&self.plain[self.start..self.start + len]);
        self.start += len;
        Ok(len)
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.handshake()?;
        self.tls.write(&mut self.stream, buf)
    }

    /// `WouldBlock` while something waits that the stream does not take.
    fn flush(&mut self) -> io::Result<()> {
        match self.tls.flush(&mut self.stream)? {
            true => self.stream.flush(),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
