//! A link in the hands of the test: it can be frozen, thawed and cut.

use super::PATIENCE;
use rustix::io::{Errno, read, write};
use rustix::net::Shutdown;
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How often a side that waits for its socket looks whether the link was cut.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Moving,
    Frozen,
    /// What comes from `serve` is held, what goes there passes.
    FrozenBack,
    Cut,
}

struct State {
    flow: Flow,
    /// Bytes that came and are held.
    held: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A relay of connections to one address, which keeps half-closes, and of TCP resets.
pub(crate) struct Link {
    place: Place,
    shared: Arc<Shared>,
}

#[derive(Clone)]
enum Place {
    Tcp(String),
    Unix(PathBuf),
}

impl Place {
    fn dial(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Self::Unix(path) => Ok(UnixStream::connect(path)?.into()),
        }
    }
}

impl Link {
    /// Everyone who connects to it reaches `peer`, a `tcp://` address.
    #[track_caller]
    pub(crate) fn to(peer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let place = Place::Tcp(listener.local_addr().expect("its address").to_string());
        let peer = Place::Tcp(peer.strip_prefix("tcp://").expect("a TCP address").to_owned());
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            Ok(stream.into())
        };
        Self::start(place, peer, accept)
    }

    /// Everyone who connects to the socket `near` reaches the socket `far`.
    #[track_caller]
    pub(crate) fn between(near: &Path, far: &Path) -> Self {
        let listener = UnixListener::bind(near).expect("a new socket");
        let accept = move || Ok(listener.accept()?.0.into());
        Self::start(Place::Unix(near.to_owned()), Place::Unix(far.to_owned()), accept)
    }

    fn start(place: Place, peer: Place, accept: impl Fn() -> io::Result<OwnedFd> + Send + 'static) -> Self {
        let state = Mutex::new(State { flow: Flow::Moving, held: 0 });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok(near) = accept() {
                if theirs.state().flow == Flow::Cut {
                    break;
                }
                if let Ok(far) = peer.dial() {
                    carry(&theirs, near, far);
                }
            }
        });
        Self { place, shared }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        match &self.place {
            Place::Tcp(address) => format!("tcp://{address}"),
            Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// No byte passes from now on, and no end of a connection either.
    pub(crate) fn freeze(&self) {
        self.shared.set(Flow::Frozen);
    }

    /// The same for what comes from the peer alone.
    pub(crate) fn freeze_back(&self) {
        self.shared.set(Flow::FrozenBack);
    }

    pub(crate) fn thaw(&self) {
        self.shared.set(Flow::Moving);
    }

    /// Both ends see a reset, and nobody is accepted any more.
    pub(crate) fn cut(&self) {
        self.shared.set(Flow::Cut);
    }

    /// Waits until bytes stand in the frozen link.
    #[track_caller]
    pub(crate) fn wait_for_held(&self) {
        let state = self.shared.state();
        let waited = self.shared.changed.wait_timeout_while(state, PATIENCE, |state| state.held == 0);
        assert!(!waited.expect("no panic under this lock").1.timed_out(), "nothing came over the frozen link");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        // Its listener looks up only when somebody comes.
        _ = self.place.dial();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn set(&self, flow: Flow) {
        self.state().flow = flow;
        self.changed.notify_all();
    }

    /// Holds so many bytes, on their way up to the peer or back, while that way is frozen; false when the link is cut.
    fn pass(&self, bytes: usize, up: bool) -> bool {
        let mut state = self.state();
        state.held += bytes;
        self.changed.notify_all();
        let is_held = |state: &mut State| match state.flow {
            Flow::Frozen => true,
            Flow::FrozenBack => !up,
            Flow::Moving | Flow::Cut => false,
        };
        let mut state = self.changed.wait_while(state, is_held).expect("no panic under this lock");
        state.held -= bytes;
        state.flow != Flow::Cut
    }
}

/// One connection. Its last user closes both sockets, those of TCP with a reset unless both ways had ended.
struct Carried {
    shared: Arc<Shared>,
    sockets: [OwnedFd; 2],
    broken: AtomicBool,
}

fn carry(shared: &Arc<Shared>, near: OwnedFd, far: OwnedFd) {
    for socket in [&near, &far] {
        for which in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(socket, which, Some(LOOK)).expect("a timeout");
        }
    }
    let (shared, sockets) = (Arc::clone(shared), [near, far]);
    let carried = Arc::new(Carried { shared, sockets, broken: AtomicBool::new(false) });
    for up in [true, false] {
        let carried = Arc::clone(&carried);
        std::thread::spawn(move || {
            if !carried.pump(up) {
                carried.broken.store(true, Ordering::Release);
                for socket in &carried.sockets {
                    _ = set_socket_linger(socket, Some(Duration::ZERO));
                }
            }
        });
    }
}

impl Carried {
    fn is_over(&self) -> bool {
        self.broken.load(Ordering::Acquire) || self.shared.state().flow == Flow::Cut
    }

    /// Moves bytes one way until they end, and passes the end on. False when it breaks.
    fn pump(&self, up: bool) -> bool {
        let [near, far] = &self.sockets;
        let (from, to) = if up { (near, far) } else { (far, near) };
        let mut chunk = vec![0; 64 * 1024];
        while !self.is_over() {
            let came = match read(from, &mut chunk[..]) {
                Ok(came) => came,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(_) => return false,
            };
            if !self.shared.pass(came, up) {
                return false;
            }
            if came == 0 {
                _ = rustix::net::shutdown(to, Shutdown::Write);
                return true;
            }
            let mut rest = &chunk[..came];
            while !rest.is_empty() && !self.is_over() {
                match write(to, rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
        }
        false
    }
}
