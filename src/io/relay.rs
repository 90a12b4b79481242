use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::event::{Event, Source};
use mio::{Interest, Registry};

use super::handler::{Attachment, Decision, Handler, Request, Targets, no_such_target};
use super::socket::Socket;
use crate::proto::StreamError;
use crate::wire::{RemoteError, codes, domains};

/// How long until a listener with a full backlog is tried again.
const BACKLOG_RETRY: Duration = Duration::from_millis(20);

/// A stream connected to a socket: bytes both ways, and the close rules of docs/architecture.md.
///
/// EOF becomes finish and finish `shutdown(WR)`; an error becomes reset and reset a close without shutdown; EPIPE becomes STOP,
/// and STOP `shutdown(RD)`.
#[derive(Debug)]
pub struct Relay {
    socket: Socket,
    /// A write failed: the other end closed with bytes unread.
    broken: bool,
}

impl Relay {
    /// Relays a connected socket.
    ///
    /// # Errors
    /// The system's.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self::from(Socket::from_unix(stream)?))
    }
}

impl From<Socket> for Relay {
    fn from(socket: Socket) -> Self {
        Self { socket, broken: false }
    }
}

impl Handler for Relay {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        self.socket.register(at.registry(), at.token(), Interest::READABLE | Interest::WRITABLE)
    }

    fn detach(&mut self, registry: &Registry) {
        let _ = self.socket.deregister(registry);
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.socket.read(buf) {
            // The other end closed before it took all that came, which STOP tells. What it wrote was read: a UNIX socket
            // says this behind the last byte, even when nothing more was written to it that could have failed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && (self.broken || self.socket.is_unix()) => {
                Ok(0)
            }
            result => result,
        }
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let result = self.socket.write_vectored(bufs);
        self.broken |= matches!(&result, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
        result
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.socket.shutdown(Shutdown::Write) {
            // Closed by the other end meanwhile: it has all that it wanted.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    fn stop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Read);
        if self.socket.is_unix() {
            // Nothing can follow what is queued. Left there, it would turn the orderly end of our own direction into
            // ECONNRESET when the socket is closed.
            let mut discard = [0; 16 * 1024];
            while matches!(self.socket.read(&mut discard), Ok(1..)) {}
        }
    }

    fn reset(&mut self, _cause: &StreamError) {
        self.socket.abort_on_close();
    }

    fn is_broken(&self, event: &Event) -> bool {
        event.is_write_closed()
    }
}

/// Targets that are UNIX sockets, dialled when they are asked for.
#[derive(Clone, Debug, Default)]
pub struct UnixTargets {
    paths: BTreeMap<String, PathBuf>,
}

impl UnixTargets {
    /// No targets yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers the socket at `path` under `name`; gives false, and changes nothing, when the name is taken.
    pub fn insert(&mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> bool {
        match self.paths.entry(name.into()) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(path.into());
                true
            }
            std::collections::btree_map::Entry::Occupied(_) => false,
        }
    }

    /// Whether the name is taken.
    pub fn contains(&self, name: &str) -> bool {
        self.paths.contains_key(name)
    }

    /// The answer to who asks for `target`, which is the socket at `path`: for [`Targets`] of your own that find the path otherwise.
    pub fn dial(target: &str, path: &Path) -> Decision {
        match Socket::dial_unix(path) {
            Ok(socket) => Decision::Accept(Box::new(Relay::from(socket))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Decision::RetryAfter(BACKLOG_RETRY),
            Err(error) => Self::refuse(target, &error),
        }
    }

    /// The answer when `target` could not be reached: the peer is told the system's word and errno.
    pub fn refuse(target: &str, error: &io::Error) -> Decision {
        let refusal = RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, format!("target `{target}`: {error}"));
        Decision::Refuse(refusal.with_ints(error.raw_os_error().unwrap_or_default(), 0))
    }
}

impl Targets for UnixTargets {
    fn open(&self, request: &Request<'_>) -> Decision {
        match self.paths.get(request.target) {
            Some(path) => Self::dial(request.target, path),
            None => Decision::Refuse(no_such_target(request.target)),
        }
    }
}
