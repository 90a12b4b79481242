//! The sockets that links and relays run on.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use socket2::SockRef;

use super::address::Address;
use super::identity::Identity;
use super::places::Origin;
use super::tls::Tls;
#[cfg(feature = "tls")]
use super::tls::TlsClient;

/// Bytes that may wait unsent in the kernel before a TCP link stops being writable: what is sent next is decided late,
/// so that an urgent packet does not stand behind megabytes.
const NOTSENT_LOWAT: u32 = 256 * 1024;

/// How long until a UNIX socket with a full backlog is dialled again: the system does not tell when there is room.
const BACKLOG_RETRY: Duration = Duration::from_millis(20);

/// The most descriptors that libvirt sends with a packet.
pub(super) const DESCRIPTORS_MAX: usize = 32;

/// A connected stream socket, non-blocking.
pub struct Socket {
    kind: Kind,
    peer: String,
    /// What a link does on it first. Nothing else may read or write it.
    tls: Option<Box<Tls>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("kind", &self.kind).field("peer", &self.peer).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Kind {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

impl Socket {
    /// Dials an address. Blocks for at most `timeout` for each of a name's addresses, and before that for as long as the system
    /// takes to find them, which may be longer and has no limit here: who must stay awake dials on a thread of its own.
    ///
    /// # Errors
    /// The system's, of the last address tried; `TimedOut` when `timeout` has passed, as it does when a UNIX socket's
    /// backlog stays full; `InvalidInput` for an address with TLS, which `connect_tls` takes.
    pub fn connect(address: &Address, timeout: Duration) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Self::connect_unix(path, timeout),
            Address::Tcp { host, port } => Self::from_tcp(dial_tcp(host, *port, timeout)?),
            Address::Tls { .. } => Err(no_certificates()),
        }
    }

    /// The same for an address with TLS. The handshake is the dispatcher's, once a session is held on it; nothing is sent
    /// before it has ended well.
    ///
    /// # Errors
    /// As of `connect`; `InvalidInput` for an address without TLS.
    #[cfg(feature = "tls")]
    pub fn connect_tls(address: &Address, tls: &TlsClient, timeout: Duration) -> io::Result<Self> {
        let Address::Tls { host, port } = address else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is no address with TLS")));
        };
        // First, since it judges the name.
        let tls = tls.link(host)?;
        Self::from_tcp(dial_tcp(host, *port, timeout)?).map(|socket| socket.with_tls(tls))
    }

    #[cfg(feature = "tls")]
    pub(super) fn with_tls(mut self, tls: Box<Tls>) -> Self {
        self.peer = self.peer.replacen("tcp", "tls", 1);
        self.tls = Some(tls);
        self
    }

    /// What is to be done on it first; from then on it is read and written as it is.
    pub(super) fn take_tls(&mut self) -> Option<Box<Tls>> {
        self.tls.take()
    }

    fn connect_unix(path: &Path, timeout: Duration) -> io::Result<Self> {
        let begun = Instant::now();
        loop {
            match Self::dial_unix(path) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                dialled => return dialled,
            }
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the socket's backlog stays full"));
            }
            thread::sleep(left.min(BACKLOG_RETRY));
        }
    }

    /// Takes a connected TCP socket: without delay for small packets, with a short queue of unsent bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn from_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
        let peer = stream.peer_addr().map_or_else(|_| "tcp".into(), |peer| format!("tcp://{peer}"));
        Ok(Self { kind: Kind::Tcp(mio::net::TcpStream::from_std(stream)), peer, tls: None })
    }

    /// Takes a connected UNIX socket.
    ///
    /// # Errors
    /// The system's.
    pub fn from_unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let peer = match stream.peer_addr().ok().as_ref().and_then(|peer| peer.as_pathname()) {
            Some(path) => format!("unix:{}", path.display()),
            None => "unix".into(),
        };
        Ok(Self { kind: Kind::Unix(mio::net::UnixStream::from_std(stream)), peer, tls: None })
    }

    /// Dials a UNIX socket without blocking: `WouldBlock` when its backlog is full.
    pub(super) fn dial_unix(path: &Path) -> io::Result<Self> {
        // Through socket2 since std's connect waits for room in the backlog.
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM.nonblocking(), None)?;
        socket.connect(&socket2::SockAddr::unix(path)?)?;
        Self::from_unix(socket.into())
    }

    /// Who is at the other end, for people to read.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Who shares one allowance of links; `None` for a UNIX socket that the kernel knows nothing of.
    pub(super) fn origin(&self) -> Option<Origin> {
        match &self.kind {
            Kind::Tcp(stream) => stream.peer_addr().ok().map(|peer| peer.ip().into()),
            Kind::Unix(stream) => socket_peercred(stream).ok().map(|peer| Origin::User(peer.uid.as_raw())),
        }
    }

    /// Who is at the other end, as far as it can be proven now: over TLS not before the handshake is over.
    pub fn identity(&self) -> Identity {
        match &self.kind {
            Kind::Tcp(stream) => match stream.peer_addr() {
                Ok(peer) if peer.ip().to_canonical().is_loopback() => Identity::Loopback,
                _ => Identity::Unknown,
            },
            Kind::Unix(stream) => match socket_peercred(stream) {
                Ok(peer) => Identity::Local { uid: peer.uid.as_raw(), gid: peer.gid.as_raw() },
                Err(_) => Identity::Unknown,
            },
        }
    }

    pub(super) fn is_unix(&self) -> bool {
        matches!(self.kind, Kind::Unix(_))
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match &self.kind {
            Kind::Tcp(stream) => stream.shutdown(how),
            Kind::Unix(stream) => stream.shutdown(how),
        }
    }

    /// Has the peer see a reset instead of an end when the socket is closed, where its kind can tell them apart.
    pub(super) fn abort_on_close(&self) {
        if let Kind::Tcp(stream) = &self.kind {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Reads, and keeps the descriptors that come along, in their order. The last byte is the one that they came with.
    pub(super) fn read_with_descriptors(
        &mut self,
        buf: &mut [u8],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize> {
        let Kind::Unix(stream) = &self.kind else { return self.read(buf) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(stream, &mut [IoSliceMut::new(buf)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                descriptors.extend(came);
            }
        }
        Ok(received.bytes)
    }

    /// Writes one byte, and a descriptor with it.
    pub(super) fn write_with_descriptor(&mut self, byte: u8, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let Kind::Unix(stream) = &self.kind else {
            return Err(io::Error::other("descriptors do not pass over TCP"));
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(stream, &[IoSlice::new(&[byte])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// What is written past TLS could be read by anybody.
    fn assert_plain(&self) -> io::Result<()> {
        match self.tls {
            None => Ok(()),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "only a session can be held over TLS")),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.kind {
            Kind::Tcp(stream) => stream,
            Kind::Unix(stream) => stream,
        }
    }
}

fn dial_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// An address with TLS, and no certificates for it.
pub(super) fn no_certificates() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "TLS needs certificates, and none are given")
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.peer)
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.assert_plain()?;
        match &mut self.kind {
            Kind::Tcp(stream) => stream.read(buf),
            Kind::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.assert_plain()?;
        match &mut self.kind {
            Kind::Tcp(stream) => stream.write(buf),
            Kind::Unix(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.assert_plain()?;
        match &mut self.kind {
            Kind::Tcp(stream) => stream.write_vectored(bufs),
            Kind::Unix(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Socket {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}
