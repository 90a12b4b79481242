//! A blocking connection for commands that ask a peer one thing after the other, each by a deadline.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use virbistream::io::Address;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Link {
    /// Connects on a thread of its own: neither a name that is looked up nor a backlog that is full knows a deadline. The
    /// thread is left to itself when time has passed.
    pub(crate) fn connect(address: &Address, until: Instant) -> io::Result<Self> {
        let (sender, connected) = mpsc::channel();
        let address = address.clone();
        thread::Builder::new().spawn(move || drop(sender.send(Self::dial(&address))))?;
        connected.recv_timeout(left(until)?).map_err(|_| timed_out())?
    }

    fn dial(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    /// 0: the peer has ended its direction. `TimedOut`: nothing came until then.
    pub(crate) fn read(&mut self, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
        loop {
            let time = Some(left(until)?);
            let read = match self {
                Self::Tcp(stream) => stream.set_read_timeout(time).and_then(|()| stream.read(buffer)),
                Self::Unix(stream) => stream.set_read_timeout(time).and_then(|()| stream.read(buffer)),
            };
            if !is_to_be_tried_again(&read) {
                return read;
            }
        }
    }

    /// `TimedOut`: the peer has not taken it until then.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let time = Some(left(until)?);
            let written = match self {
                Self::Tcp(stream) => stream.set_write_timeout(time).and_then(|()| stream.write(bytes)),
                Self::Unix(stream) => stream.set_write_timeout(time).and_then(|()| stream.write(bytes)),
            };
            if !is_to_be_tried_again(&written) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }

    /// Ends our direction: the peer reads to its end, and may still answer.
    pub(crate) fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

/// Whether the deadline decides: the system's own timeouts may come a little early.
fn is_to_be_tried_again(result: &io::Result<usize>) -> bool {
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
