use std::fs;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::address::Address;
use super::socket::Socket;

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
    kind: Kind,
    address: Address,
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Kind {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

impl Listener {
    /// Listens on an address. A socket file that nobody listens on any more is replaced; one in use is not.
    ///
    /// Nobody can connect before `permissions` hold; they are for UNIX sockets only.
    ///
    /// # Errors
    /// The system's; `AddrInUse` when somebody listens there, or the path is no socket.
    pub fn bind(address: &Address, permissions: Permissions) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let listener = TcpListener::bind(&(host.as_str(), *port).to_socket_addrs()?.collect::<Vec<_>>()[..])?;
                listener.set_nonblocking(true)?;
                let port = listener.local_addr()?.port();
                let kind = Kind::Tcp(mio::net::TcpListener::from_std(listener));
                Ok(Self { kind, address: Address::Tcp { host: host.clone(), port }, _file: None })
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                socket.bind(&socket2::SockAddr::unix(path)?)?;
                let file = SocketFile::new(path)?;
                // Before listen, so that nobody comes in under other permissions.
                if permissions.user.is_some() || permissions.group.is_some() {
                    chown(path, permissions.user, permissions.group)?;
                }
                if let Some(mode) = permissions.mode {
                    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
                }
                socket.listen(BACKLOG)?;
                let listener = mio::net::UnixListener::from_std(UnixListener::from(socket));
                Ok(Self { kind: Kind::Unix(listener), address: address.clone(), _file: Some(file) })
            }
        }
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn accept(&self) -> io::Result<Socket> {
        match &self.kind {
            Kind::Tcp(listener) => Socket::from_tcp(listener.accept()?.0.into()),
            Kind::Unix(listener) => Socket::from_unix(listener.accept()?.0.into()),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.kind {
            Kind::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Kind::Unix(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

/// Removes the socket file of a process that is gone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |why| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if !meta.file_type().is_socket() => in_use("the path exists and is no socket"),
        Ok(_) => match Socket::dial_unix(path).map_err(|error| error.kind()) {
            Err(io::ErrorKind::ConnectionRefused) => fs::remove_file(path),
            Err(io::ErrorKind::NotFound) => Ok(()),
            Ok(_) | Err(_) => in_use("another process listens on it"),
        },
    }
}

/// The file of a socket that we bound: removed with us, unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), device: meta.dev(), inode: meta.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.dev() == self.device && meta.ino() == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}
