use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use super::address::Address;
use super::socket::{Socket, no_certificates};
#[cfg(feature = "tls")]
use super::tls::TlsServer;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Who may connect to a UNIX socket that we listen on. The default is what umask makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Its mode, as chmod takes it.
    pub mode: Option<u32>,
    /// Its owner's user id.
    pub user: Option<u32>,
    /// Its group id.
    pub group: Option<u32>,
}

/// A listening socket. One on a path removes its socket file when it is dropped.
#[derive(Debug)]
pub struct Listener {
    /// First, so that it is dropped first: as long as the socket listens nobody takes its place, nor can another file have its
    /// inode.
    _file: Option<SocketFile>,
    kind: Kind,
    address: Address,
}

#[derive(Debug)]
enum Kind {
    Tcp(mio::net::TcpListener),
    #[cfg(feature = "tls")]
    Tls(mio::net::TcpListener, TlsServer),
    Unix(mio::net::UnixListener),
}

impl Listener {
    /// Listens on an address. A socket file that nobody listens on any more is replaced; one in use is not, and of those who
    /// begin on a path at once, one has it.
    ///
    /// Nobody can connect before `permissions` hold; they are for UNIX sockets only. While a UNIX socket is made, a file
    /// `PATH.virbistream-lock` stands beside it.
    ///
    /// # Errors
    /// The system's; `AddrInUse` when somebody listens there or is about to, or the path is no socket; `InvalidInput` for an
    /// address with TLS, which `bind_tls` takes.
    pub fn bind(address: &Address, permissions: Permissions) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let (listener, port) = bind_tcp(host, *port)?;
                Ok(Self { _file: None, kind: Kind::Tcp(listener), address: Address::Tcp { host: host.clone(), port } })
            }
            Address::Tls { .. } => Err(no_certificates()),
            Address::Unix(path) => Self::bind_unix(path, permissions),
        }
    }

    /// Listens on an address with TLS: only who has a certificate of the server's authority gets through, clients of libvirt's, too.
    ///
    /// # Errors
    /// The system's; `InvalidInput` for an address without TLS.
    #[cfg(feature = "tls")]
    pub fn bind_tls(address: &Address, tls: TlsServer) -> io::Result<Self> {
        let Address::Tls { host, port } = address else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is no address with TLS")));
        };
        let (listener, port) = bind_tcp(host, *port)?;
        Ok(Self { _file: None, kind: Kind::Tls(listener, tls), address: Address::Tls { host: host.clone(), port } })
    }

    /// Takes over a socket that somebody else made to listen, a service manager say.
    ///
    /// # Errors
    /// The system's; `InvalidInput` when it does not listen.
    pub fn from_tcp(listener: TcpListener) -> io::Result<Self> {
        let (listener, host, port) = inherit_tcp(listener)?;
        Ok(Self { _file: None, kind: Kind::Tcp(listener), address: Address::Tcp { host, port } })
    }

    /// The same with TLS.
    ///
    /// # Errors
    /// As of `from_tcp`.
    #[cfg(feature = "tls")]
    pub fn from_tcp_with_tls(listener: TcpListener, tls: TlsServer) -> io::Result<Self> {
        let (listener, host, port) = inherit_tcp(listener)?;
        Ok(Self { _file: None, kind: Kind::Tls(listener, tls), address: Address::Tls { host, port } })
    }

    /// The same with a UNIX socket. Its file is left to who made it.
    ///
    /// # Errors
    /// As of `from_tcp`; `InvalidInput` for a socket without a path, too: anybody may connect to it.
    pub fn from_unix(listener: UnixListener) -> io::Result<Self> {
        must_listen(&listener)?;
        let address = listener.local_addr()?;
        let no_path = || io::Error::new(io::ErrorKind::InvalidInput, "the socket has no path");
        let address = Address::Unix(address.as_pathname().ok_or_else(no_path)?.into());
        listener.set_nonblocking(true)?;
        let kind = Kind::Unix(mio::net::UnixListener::from_std(listener));
        Ok(Self { _file: None, kind, address })
    }

    fn bind_unix(path: &Path, permissions: Permissions) -> io::Result<Self> {
        // First, since it judges the path's length.
        let name = socket2::SockAddr::unix(path)?;
        // Until it listens: between bind and listen a socket looks like a stale one.
        let _lock = Lock::take(path)?;
        remove_stale(path)?;
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&name)?;
        let file = SocketFile::new(path)?;
        // Before listen, so that nobody comes in under other permissions. The mode while the file is ours: CAP_CHOWN alone may not change it later.
        if let Some(mode) = permissions.mode {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        if permissions.user.is_some() || permissions.group.is_some() {
            chown(path, permissions.user, permissions.group)?;
        }
        socket.listen(BACKLOG)?;
        let listener = mio::net::UnixListener::from_std(UnixListener::from(socket));
        Ok(Self { _file: Some(file), kind: Kind::Unix(listener), address: Address::Unix(path.into()) })
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Another descriptor of a UNIX listener, which blocks in `accept`, for who answers it on a thread of their own. The socket file stays this
    /// listener's.
    ///
    /// # Errors
    /// The system's; `Unsupported` for TCP.
    pub fn try_clone_unix(&self) -> io::Result<UnixListener> {
        let Kind::Unix(listener) = &self.kind else { return Err(io::ErrorKind::Unsupported.into()) };
        let clone = UnixListener::from(listener.as_fd().try_clone_to_owned()?);
        clone.set_nonblocking(false)?;
        Ok(clone)
    }

    pub(super) fn accept(&self) -> io::Result<Socket> {
        match &self.kind {
            Kind::Tcp(listener) => Socket::from_tcp(listener.accept()?.0.into()),
            #[cfg(feature = "tls")]
            Kind::Tls(listener, tls) => Ok(Socket::from_tcp(listener.accept()?.0.into())?.with_tls(tls.link()?)),
            Kind::Unix(listener) => Socket::from_unix(listener.accept()?.0.into()),
        }
    }

    /// By its descriptor: several dispatchers may have it at once.
    pub(super) fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.as_raw_fd()), token, Interest::READABLE)
    }

    pub(super) fn deregister(&self, registry: &Registry) {
        let _ = registry.deregister(&mut SourceFd(&self.as_raw_fd()));
    }

    fn as_raw_fd(&self) -> RawFd {
        match &self.kind {
            Kind::Tcp(listener) => listener.as_raw_fd(),
            #[cfg(feature = "tls")]
            Kind::Tls(listener, _) => listener.as_raw_fd(),
            Kind::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

fn bind_tcp(host: &str, port: u16) -> io::Result<(mio::net::TcpListener, u16)> {
    let listener = TcpListener::bind(&(host, port).to_socket_addrs()?.collect::<Vec<_>>()[..])?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((mio::net::TcpListener::from_std(listener), port))
}

fn inherit_tcp(listener: TcpListener) -> io::Result<(mio::net::TcpListener, String, u16)> {
    must_listen(&listener)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((mio::net::TcpListener::from_std(listener), address.ip().to_string(), address.port()))
}

fn must_listen(socket: &impl AsFd) -> io::Result<()> {
    match SockRef::from(socket).is_listener()? {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket does not listen")),
    }
}

/// Removes the socket file of a process that is gone. Under the lock only: who looks without it may take a socket that is not
/// listening yet for a stale one, or remove what has just replaced the stale one that was seen.
fn remove_stale(path: &Path) -> io::Result<()> {
    let judged = match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(in_use("the path exists and is no socket")),
        Ok(_) => match Socket::dial_unix(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
            Ok(_) | Err(_) => Err(in_use("another process listens on it")),
        },
        Err(error) => Err(error),
    };
    match judged {
        // Its owner may remove it at any moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        judged => judged,
    }
}

fn in_use(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, why)
}

/// The right to change what stands at a path, among all who begin to listen there: an flock on a file beside it.
///
/// Not on the directory, which everybody who may read it could hold, and which has many sockets. Nor a socket moved into place
/// when it is ready: a rename cannot tell a stale one from one that replaced it a moment ago.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Makes the file where there is none, which follows no link; one that is there is only locked.
    fn open(path: &Path) -> io::Result<File> {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
        if !fs::symlink_metadata(path)?.is_file() {
            return Err(in_use("what stands in the place of its lock is no file"));
        }
        File::open(path)
    }

    /// Never waits: whoever has the lock is about to listen.
    fn take(socket: &Path) -> io::Result<Self> {
        let mut path = OsString::from(socket);
        path.push(".virbistream-lock");
        let path = PathBuf::from(path);
        loop {
            let file = match Self::open(&path) {
                // Removed by its last owner while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound && has_directory(&path) => continue,
                file => file?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use("another process begins to listen on it")),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Its last owner may have removed it after we opened it: then another has, or makes, the file that counts.
            let ours = inode(&file.metadata()?);
            match fs::metadata(&path) {
                Ok(meta) if inode(&meta) == ours => return Ok(Self { path, _file: file }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn has_directory(path: &Path) -> bool {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).is_none_or(Path::is_dir)
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked, so that nobody has it. One left by a process that was killed is locked by the next, and removed.
        let _ = fs::remove_file(&self.path);
    }
}

/// Which file it is, for as long as somebody has it open.
fn inode(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// The file of a socket that we bound: removed with us, unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), inode: inode(&fs::symlink_metadata(path)?) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| inode(&meta) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
