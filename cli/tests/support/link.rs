//! The link between `forward` and `serve`, in the hands of the test: it can be frozen, thawed and cut.

use super::PATIENCE;
use rustix::net::sockopt::set_socket_linger;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How often a side that waits for its socket looks whether the link was cut.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Moving,
    Frozen,
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

/// A relay of TCP connections to one address, which keeps half-closes and resets.
pub(crate) struct Link {
    address: String,
    shared: Arc<Shared>,
}

impl Link {
    /// Everyone who connects to it reaches `peer`, a `tcp://` address.
    #[track_caller]
    pub(crate) fn to(peer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let state = Mutex::new(State { flow: Flow::Moving, held: 0 });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let (peer, theirs) = (peer.strip_prefix("tcp://").expect("a TCP address").to_owned(), Arc::clone(&shared));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if theirs.state().flow == Flow::Cut {
                    break;
                }
                if let Ok(far) = TcpStream::connect(&peer) {
                    carry(&theirs, near, far);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// No byte passes from now on, and no end of a connection either.
    pub(crate) fn freeze(&self) {
        self.shared.set(Flow::Frozen);
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
        _ = TcpStream::connect(&self.address);
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

    /// Holds so many bytes while the link is frozen; false when it is cut.
    fn pass(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.held += bytes;
        self.changed.notify_all();
        let mut state =
            self.changed.wait_while(state, |state| state.flow == Flow::Frozen).expect("no panic under this lock");
        state.held -= bytes;
        state.flow != Flow::Cut
    }
}

/// One connection, whose last user closes both its sockets: with a reset, unless both sides had ended.
struct Carried {
    shared: Arc<Shared>,
    broken: AtomicBool,
}

fn carry(shared: &Arc<Shared>, near: TcpStream, far: TcpStream) {
    for socket in [&near, &far] {
        socket.set_nodelay(true).expect("a TCP socket");
        socket.set_read_timeout(Some(LOOK)).expect("a timeout");
        socket.set_write_timeout(Some(LOOK)).expect("a timeout");
    }
    let carried = Arc::new(Carried { shared: Arc::clone(shared), broken: AtomicBool::new(false) });
    let sockets = Arc::new((near, far));
    for up in [true, false] {
        let (carried, sockets) = (Arc::clone(&carried), Arc::clone(&sockets));
        std::thread::spawn(move || {
            let (from, to) = if up { (&sockets.0, &sockets.1) } else { (&sockets.1, &sockets.0) };
            if !carried.pump(from, to) {
                carried.broken.store(true, Ordering::Release);
                for socket in [from, to] {
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
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream) -> bool {
        let mut chunk = vec![0; 64 * 1024];
        while !self.is_over() {
            let read = match from.read(&mut chunk) {
                Ok(read) => read,
                Err(error) if is_soon(&error) => continue,
                Err(_) => return false,
            };
            if !self.shared.pass(read) {
                return false;
            }
            if read == 0 {
                _ = to.shutdown(Shutdown::Write);
                return true;
            }
            let mut rest = &chunk[..read];
            while !rest.is_empty() && !self.is_over() {
                match to.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if is_soon(&error) => {}
                    Err(_) => return false,
                }
            }
        }
        false
    }
}

fn is_soon(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
