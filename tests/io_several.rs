//! Dispatchers that share the sessions of one handle.

mod io_support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{
    Address, Decision, Listener, ListenerKey, Permissions, Request, SessionKey, SessionOptions, Socket, UnixTargets,
};
use virbistream::proto::Side;
use virbistream::wire::Open;

fn open(target: &str) -> Open {
    Open { target: target.into(), ..Open::default() }
}

/// Sessions of `near` with whoever listens there.
fn sessions(near: &mut Node, peer: &Address, count: usize) -> Vec<SessionKey> {
    let attach = || {
        let socket = Socket::connect(peer, PATIENCE).unwrap();
        near.handle.attach(socket, Side::Connecting, SessionOptions::default())
    };
    let keys: Vec<SessionKey> = (0..count).map(|_| attach()).collect();
    keys.iter().for_each(|key| near.established(*key));
    keys
}

fn offering(accept: impl Fn(&Request<'_>) -> Decision + Send + Sync + 'static) -> SessionOptions {
    SessionOptions { targets: Arc::new(Offer(accept)), ..SessionOptions::default() }
}

#[test]
fn sessions_go_round_and_stay_where_they_are() {
    let (told, threads) = mpsc::channel();
    let (mut near, far) = (Node::start(), Node::several(3));
    let peer = far.listen(offering(move |request| {
        told.send((request.session, thread::current().id())).unwrap();
        Decision::Accept(Custom::new().0.boxed())
    }));
    let sessions = sessions(&mut near, &peer, 6);
    for _ in 0..2 {
        for session in &sessions {
            near.handle.open(*session, open("it"), Custom::new().0.boxed());
        }
    }
    let mut of = BTreeMap::new();
    let mut count = BTreeMap::new();
    for _ in 0..12 {
        let (session, thread) = threads.recv_timeout(PATIENCE).unwrap();
        let thread = format!("{thread:?}");
        assert_eq!(of.entry(session).or_insert(thread.clone()), &thread, "a session stays with its thread");
        *count.entry(thread).or_insert(0) += 1;
    }
    assert_eq!(count.into_values().collect::<Vec<_>>(), [4, 4, 4]);
}

/// A listener of `near` whose connections become streams to what listens in the folder at the far end.
struct Forwarding {
    near: Node,
    _far: Node,
    sessions: Vec<SessionKey>,
    forward: ListenerKey,
    front: std::path::PathBuf,
    targets: Vec<UnixListener>,
    _folder: tempfile::TempDir,
}

impl Forwarding {
    /// Each session reaches, by the same name, a target of its own.
    fn start(threads: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut near, far) = (Node::several(threads), Node::several(threads));
        let mut targets = Vec::new();
        let mut keys = Vec::new();
        for n in 0..threads {
            let path = folder.path().join(format!("target{n}"));
            targets.push(UnixListener::bind(&path).unwrap());
            let mut offered = UnixTargets::new();
            offered.insert("disk", path);
            let peer = far.listen(SessionOptions { targets: Arc::new(offered), ..SessionOptions::default() });
            keys.extend(sessions(&mut near, &peer, 1));
        }
        let front = folder.path().join("front");
        let listener = Listener::bind(&Address::Unix(front.clone()), Permissions::default()).unwrap();
        let forward = near.handle.forward(listener, open("disk"));
        Self { near, _far: far, sessions: keys, forward, front, targets, _folder: folder }
    }

    #[track_caller]
    fn reaches(&self, target: usize) {
        let mut client = patient(UnixStream::connect(&self.front).unwrap());
        client.write_all(b"hello").unwrap();
        self.is_carried(target);
    }

    #[track_caller]
    fn is_carried(&self, target: usize) {
        let mut heard = [0; 5];
        accept(&self.targets[target]).read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

#[test]
fn a_forward_takes_connections_wherever_its_session_is() {
    let forwarding = Forwarding::start(3);
    let Forwarding { near, sessions, forward, .. } = &forwarding;
    // Nobody takes it yet.
    let mut early = patient(UnixStream::connect(&forwarding.front).unwrap());
    early.write_all(b"hello").unwrap();
    near.handle.route(*forward, Some(sessions[2]));
    forwarding.is_carried(2);
    for target in [0, 1, 2, 0] {
        near.handle.route(*forward, Some(sessions[target]));
        // Carried out on all threads: the one before may take a connection until it has heard.
        settle(&forwarding.near, sessions);
        forwarding.reaches(target);
    }
}

/// Returns when all that was asked of each thread before is done.
fn settle(near: &Node, sessions: &[SessionKey]) {
    for session in sessions {
        let (kept, dropped) = mpsc::channel::<()>();
        let refused = Custom::new().0.reading(move |_| {
            let _ = kept.send(());
            Ok(0)
        });
        near.handle.open(*session, open("nowhere"), refused.boxed());
        assert_eq!(dropped.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}

#[test]
fn a_socket_listened_on_by_several_is_given_up_by_all() {
    let mut forwarding = Forwarding::start(2);
    forwarding.near.handle.route(forwarding.forward, Some(forwarding.sessions[1]));
    forwarding.reaches(1);
    forwarding.near.handle.stop_listening(forwarding.forward);
    let deadline = Instant::now() + PATIENCE;
    while Path::exists(&forwarding.front) {
        assert!(Instant::now() < deadline, "the socket's file is still there");
        thread::yield_now();
    }
    UnixStream::connect(&forwarding.front).unwrap_err();
    for session in forwarding.sessions.clone() {
        forwarding.near.handle.close(session);
        assert_eq!(forwarding.near.session_ended(session), Ok(()));
    }
}

#[test]
fn all_end_when_they_are_drained_and_when_they_are_shut_down() {
    for end in [|node: &Node| node.handle.drain(), |node: &Node| node.handle.shutdown("enough")] {
        let forwarding = Forwarding::start(3);
        end(&forwarding.near);
        forwarding.near.join();
        UnixStream::connect(&forwarding.front).unwrap_err();
    }
}

#[test]
fn a_limit_of_the_host_holds_for_the_sessions_of_all_together() {
    const LIMIT: u64 = 8 << 20;
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    let options = offering(move |_| {
        let count = Arc::clone(&count);
        let sink = Custom::new().0.writing(move |bufs| {
            let len = bufs.iter().map(|buf| buf.len()).sum();
            count.fetch_add(len as u64, Ordering::Relaxed);
            Ok(len)
        });
        Decision::Accept(sink.boxed())
    });
    let (mut near, far) = (Node::several(2), Node::start());
    near.handle.limit(Some(LIMIT));
    let peer = far.listen(options);
    for session in sessions(&mut near, &peer, 2) {
        near.handle.open(session, open("it"), Custom::new().0.reading(|buf| Ok(buf.len())).boxed());
    }
    let begin = Instant::now();
    while arrived.load(Ordering::Relaxed) < LIMIT {
        assert!(begin.elapsed() < PATIENCE, "{} bytes", arrived.load(Ordering::Relaxed));
        thread::yield_now();
    }
    // At once came what the limit lets pass in 100 ms.
    assert!(begin.elapsed() >= Duration::from_millis(850), "8 MiB took {:?}", begin.elapsed());
}
