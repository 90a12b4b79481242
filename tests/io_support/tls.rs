//! Links over TLS: ends, a session between two, and one in the middle who meddles.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use tempfile::TempDir;
use virbistream::io::{
    Address, Listener, Relay, SessionKey, SessionOptions, Socket, TlsClient, TlsKeys, TlsServer, UnixTargets,
};
use virbistream::proto::{SessionError, Side};
use virbistream::wire::Open;

use crate::io_support::{Node, PATIENCE, Pattern, accept, patient};
use crate::pki::{Authority, Leaf};

pub(crate) fn keys(authority: &Authority, leaf: &Leaf) -> TlsKeys {
    TlsKeys::from_pem(authority.pem().as_bytes(), leaf.certificate.as_bytes(), leaf.key.as_bytes()).unwrap()
}

pub(crate) fn client_of(authority: &Authority) -> TlsClient {
    TlsClient::new(keys(authority, &authority.client("client"))).unwrap()
}

pub(crate) fn server_of(authority: &Authority) -> TlsServer {
    TlsServer::new(keys(authority, &authority.server())).unwrap()
}

/// A dispatcher that accepts over TLS. Its target `disk` is a UNIX socket.
pub(crate) struct Far {
    pub(crate) node: Node,
    pub(crate) address: Address,
    pub(crate) disk: UnixListener,
    _dir: TempDir,
}

impl Far {
    pub(crate) fn new(tls: &TlsServer) -> Self {
        Self::with(tls, |_| ())
    }

    pub(crate) fn with(tls: &TlsServer, change: impl FnOnce(&mut SessionOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let disk = UnixListener::bind(&path).unwrap();
        let mut targets = UnixTargets::new();
        targets.insert("disk", path);
        let mut options = SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() };
        change(&mut options);
        let node = Node::start();
        let listener = Listener::bind_tls(&"tls://127.0.0.1:0".parse().unwrap(), tls.clone()).unwrap();
        let address = listener.address().clone();
        node.handle.listen(listener, options);
        Self { node, address, disk, _dir: dir }
    }

    pub(crate) fn port(&self) -> u16 {
        let Address::Tls { port, .. } = self.address else { unreachable!() };
        port
    }

    pub(crate) fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// How the next link ends.
    #[track_caller]
    pub(crate) fn next_end(&mut self) -> Result<(), SessionError> {
        let key = self.node.link_accepted();
        self.node.session_ended(key)
    }
}

/// A session that stands, from `near` to `far`.
pub(crate) struct Tunnel {
    pub(crate) near: Node,
    pub(crate) near_key: SessionKey,
    pub(crate) far: Far,
    pub(crate) far_key: SessionKey,
}

impl Tunnel {
    pub(crate) fn new() -> Self {
        let authority = Authority::new("authority");
        let far = Far::new(&server_of(&authority));
        let address = far.address.clone();
        Self::by(far, &address, &client_of(&authority))
    }

    pub(crate) fn by(mut far: Far, address: &Address, tls: &TlsClient) -> Self {
        let mut near = Node::start();
        let socket = Socket::connect_tls(address, tls, PATIENCE).unwrap();
        let near_key = near.handle.attach(socket, Side::Connecting, SessionOptions::default());
        let far_key = far.node.link_accepted();
        near.established(near_key);
        far.node.established(far_key);
        Self { near, near_key, far, far_key }
    }

    /// A stream to `disk`: its two ends.
    pub(crate) fn carry(&self) -> (UnixStream, UnixStream) {
        let (client, inner) = UnixStream::pair().unwrap();
        let open = Open { target: "disk".into(), ..Open::default() };
        self.near.handle.open(self.near_key, open, Box::new(Relay::new(inner).unwrap()));
        (patient(client), accept(&self.far.disk))
    }
}

/// Sends `len` bytes of a pattern from one end while the other reads them.
#[track_caller]
pub(crate) fn assert_carries(mut from: &UnixStream, mut to: &UnixStream, len: usize) {
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut pattern, mut block) = (Pattern::new(1), vec![0; 100_000]);
            let mut left = len;
            while left > 0 {
                let now = block.len().min(left);
                pattern.fill(&mut block[..now]);
                from.write_all(&block[..now]).unwrap();
                left -= now;
            }
            from.shutdown(Shutdown::Write).unwrap();
        });
        let (mut pattern, mut block, mut expected) = (Pattern::new(1), vec![0; 300_000], vec![0; 300_000]);
        let mut came = 0;
        loop {
            let read = to.read(&mut block).unwrap();
            if read == 0 {
                break;
            }
            pattern.fill(&mut expected[..read]);
            assert!(block[..read] == expected[..read], "other bytes at {came}");
            came += read;
        }
        assert_eq!(came, len);
    });
}

/// Passes bytes on between a client and `port`, until it is told what to do to them.
pub(crate) struct Between {
    pub(crate) address: Address,
    pub(crate) mode: Arc<AtomicU8>,
    pub(crate) links: mpsc::Receiver<[TcpStream; 2]>,
}

pub(crate) const PASS: u8 = 0;
pub(crate) const SPOIL: u8 = 1;
/// What the client says.
pub(crate) const REPEAT: u8 = 2;
/// Once, of what the client says.
pub(crate) const LEAVE_OUT: u8 = 3;

impl Between {
    pub(crate) fn new(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tls { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let mode = Arc::new(AtomicU8::new(PASS));
        let (sender, links) = mpsc::channel();
        let shared = Arc::clone(&mode);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                for (mut from, mut to, is_clients) in [(&client, &server, true), (&server, &client, false)]
                    .map(|(from, to, is_clients)| (from.try_clone().unwrap(), to.try_clone().unwrap(), is_clients))
                {
                    let mode = Arc::clone(&shared);
                    thread::spawn(move || {
                        let mut block = [0; 4096];
                        while let Ok(len @ 1..) = from.read(&mut block) {
                            let now = mode.load(Ordering::Relaxed);
                            block[len - 1] ^= u8::from(now == SPOIL);
                            if now == LEAVE_OUT && is_clients {
                                mode.store(PASS, Ordering::Relaxed);
                                continue;
                            }
                            let times = if now == REPEAT && is_clients { 2 } else { 1 };
                            if (0..times).any(|_| to.write_all(&block[..len]).is_err()) {
                                break;
                            }
                        }
                    });
                }
                if sender.send([client, server]).is_err() {
                    break;
                }
            }
        });
        Self { address, mode, links }
    }
}
