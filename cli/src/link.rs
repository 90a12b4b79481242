//! A blocking connection for commands that ask a peer one thing after the other, each by a deadline.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use virbistream::io::{Address, TlsStream};

use crate::uri::Uri;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Link {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Link {
    /// Connects, and does TLS' handshake where the address has it.
    pub(crate) fn connect(uri: &Uri, until: Instant) -> io::Result<Self> {
        let client = uri.tls().map_err(io::Error::other)?;
        match (Self::connect_plain(&uri.address, until)?, &uri.address, client) {
            (Self::Tcp(stream), Address::Tls { host, .. }, Some(client)) => {
                let mut link = Self::Tls(Box::new(TlsStream::client(stream, &client, host)?));
                link.handshake(until)?;
                Ok(link)
            }
            (plain, _, _) => Ok(plain),
        }
    }

    /// On a thread of its own: neither a name that is looked up nor a backlog that is full knows a deadline. The
    /// thread is left to itself when time has passed.
    fn connect_plain(address: &Address, until: Instant) -> io::Result<Self> {
        let (sender, connected) = mpsc::channel();
        let address = address.clone();
        thread::Builder::new().spawn(move || drop(sender.send(Self::dial(&address))))?;
        connected.recv_timeout(left(until)?).map_err(|_| timed_out())?
    }

    fn dial(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } | Address::Tls { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    fn handshake(&mut self, until: Instant) -> io::Result<()> {
        loop {
            self.limit(until)?;
            let Self::Tls(stream) = self else { return Ok(()) };
            let done = stream.handshake();
            if !is_to_be_tried_again(&done) {
                return done;
            }
        }
    }

    /// No call of the system takes longer.
    fn limit(&self, until: Instant) -> io::Result<()> {
        let time = Some(left(until)?);
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(time).and_then(|()| stream.set_write_timeout(time)),
            Self::Tls(stream) => {
                stream.stream().set_read_timeout(time).and_then(|()| stream.stream().set_write_timeout(time))
            }
            Self::Unix(stream) => stream.set_read_timeout(time).and_then(|()| stream.set_write_timeout(time)),
        }
    }

    /// 0: the peer has ended its direction. `TimedOut`: nothing came until then.
    pub(crate) fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
        loop {
            self.limit(until)?;
            let read = match self {
                Self::Tcp(stream) => stream.read(buffer),
                Self::Tls(stream) => stream.read(buffer),
                Self::Unix(stream) => stream.read(buffer),
            };
            if !is_to_be_tried_again(&read) {
                return read;
            }
        }
    }

    /// `TimedOut`: the peer has not taken it until then.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.limit(until)?;
            let written = match self {
                Self::Tcp(stream) => stream.write(bytes),
                Self::Tls(stream) => stream.write(bytes),
                Self::Unix(stream) => stream.write(bytes),
            };
            if !is_to_be_tried_again(&written) {
                bytes = &bytes[written?..];
            }
        }
        self.flush(until)
    }

    /// What TLS has taken and not sent.
    fn flush(&mut self, until: Instant) -> io::Result<()> {
        loop {
            let Self::Tls(stream) = self else { return Ok(()) };
            let flushed = stream.flush();
            if !is_to_be_tried_again(&flushed) {
                return flushed;
            }
            self.limit(until)?;
        }
    }

    /// Ends our direction: the peer reads to its end, and may still answer.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Tls(stream) => stream.finish().and_then(|()| stream.stream().shutdown(Shutdown::Write)),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

/// Whether the deadline decides: the system's own timeouts may come a little early.
fn is_to_be_tried_again<T>(result: &io::Result<T>) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    result.as_ref().is_err_and(|error| matches!(error.kind(), Interrupted | TimedOut | WouldBlock))
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(timed_out()) } else { Ok(left) }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the time given has passed")
}
