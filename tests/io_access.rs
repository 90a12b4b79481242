//! Who is let in, to what, and for how long it counts.

mod io_support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use io_support::*;
use parking_lot::Mutex;
use virbistream::io::{
    Access, Admission, Caller, Decision, Handle, Identity, Listener, NoTargets, Permissions, Permit, Report, Request,
    SessionOptions, Socket, Targets,
};
use virbistream::proto::{Config, SessionError, Side};
use virbistream::wire::{
    Close, EXT_TICKET, Extension, Open, PROGRAM, PacketType, Procedure, RemoteError, Status, close, codes,
};

/// What is asked of the judge, and what it says.
type Judge = Box<dyn Fn(&Caller<'_>) -> Result<Admission, RemoteError> + Send + Sync>;

struct Judged {
    hello: Judge,
    to_daemon: Judge,
}

impl Access for Judged {
    fn admit(&self, caller: &Caller<'_>) -> Result<Admission, RemoteError> {
        (self.hello)(caller)
    }

    fn admit_to_daemon(&self, caller: &Caller<'_>) -> Result<Permit, RemoteError> {
        (self.to_daemon)(caller).map(|admission| admission.permit)
    }
}

fn denied(text: &str) -> RemoteError {
    RemoteError::new(codes::AUTH_FAILED, 0, text)
}

/// Judges HELLO so, and lets nobody to a daemon.
fn judged(hello: impl Fn(&Caller<'_>) -> Result<Admission, RemoteError> + Send + Sync + 'static) -> SessionOptions {
    let access = Judged { hello: Box::new(hello), to_daemon: Box::new(|_| Err(denied("no daemon for you"))) };
    SessionOptions { access: Some(Arc::new(access)), ..SessionOptions::default() }
}

fn admission() -> Admission {
    Admission { targets: Arc::new(NoTargets), max_streams: 8, bandwidth: None, permit: None }
}

/// Tells when it is dropped.
struct Tell(mpsc::Sender<()>);

impl Drop for Tell {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// A session of `near` with a UNIX socket that `far` listens on.
fn attach(near: &Handle, far: &Node, options: SessionOptions, config: Config) -> virbistream::io::SessionKey {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", dir.path().join("link").display()).parse().unwrap();
    let listener = Listener::bind(&address, Permissions::default()).unwrap();
    far.handle.listen(listener, options);
    let socket = Socket::connect(&address, PATIENCE).unwrap();
    near.attach(socket, Side::Connecting, SessionOptions { config, ..SessionOptions::default() })
}

#[test]
fn a_judge_knows_the_user_at_a_unix_socket_and_what_hello_says() {
    let (ask, asked) = mpsc::channel();
    let options = judged(move |caller| {
        let _ = ask.send((caller.peer.to_owned(), caller.identity.clone(), caller.extensions.to_vec()));
        Ok(admission())
    });
    let (mut near, far) = (Node::start(), Node::start());
    let said = vec![Extension { kind: EXT_TICKET, needed: true, value: vec![1; 32] }];
    let key = attach(&near.handle, &far, options, Config { hello_extensions: said.clone(), ..Config::default() });
    near.established(key);
    let (peer, identity, extensions) = asked.recv_timeout(PATIENCE).unwrap();
    let uid = rustix::process::getuid().as_raw();
    assert!(matches!(identity, Identity::Local { uid: theirs, .. } if theirs == uid), "{identity:?}");
    assert_eq!((peer.as_str(), extensions), ("unix", said));
}

#[test]
fn who_is_denied_has_no_session_and_hears_why() {
    let (mut near, mut far) = (Node::start(), Node::start());
    let key = attach(&near.handle, &far, judged(|_| Err(denied("you are not on the list"))), Config::default());
    let Err(SessionError::Refused(error)) = near.session_ended(key) else { panic!("let in") };
    assert_eq!((error.code, error.message.as_str()), (codes::AUTH_FAILED, "you are not on the list"));
    let accepted = far.link_accepted();
    assert!(matches!(far.session_ended(accepted), Err(SessionError::RefusedPeer(_))));
}

#[test]
fn each_peer_has_the_targets_and_streams_of_its_own_admission_and_a_permit_until_its_session_ends() {
    let (gone, is_gone) = mpsc::channel();
    let options = judged(move |_| {
        let targets = Arc::new(Offer(|request: &Request<'_>| match request.target {
            "mine" => Decision::Accept(Custom::new().0.boxed()),
            _ => NoTargets.open(request),
        }));
        Ok(Admission { targets, max_streams: 1, permit: Some(Box::new(Tell(gone.clone()))), ..admission() })
    });
    let (mut near, far) = (Node::start(), Node::start());
    let key = attach(&near.handle, &far, options, Config::default());
    near.established(key);
    let open = |target: &str| Open { target: target.into(), ..Open::default() };
    near.handle.open(key, open("yours"), Custom::new().0.boxed());
    assert!(near.refused().contains("no target `yours`"));
    near.handle.open(key, open("mine"), Custom::new().0.boxed());
    near.opened(key);
    near.handle.open(key, open("mine"), Custom::new().0.boxed());
    assert_eq!(near.refused(), "the peer takes no more than 1 streams");
    assert!(is_gone.try_recv().is_err(), "it is still in");
    near.handle.shutdown("enough");
    is_gone.recv_timeout(PATIENCE).expect("the permit is given back");
}

#[test]
fn a_limit_of_the_admission_holds_for_what_the_peer_is_sent() {
    const RATE: u64 = 1 << 20;
    let options = judged(|_| {
        let targets = Arc::new(Offer(|_: &Request<'_>| {
            Decision::Accept(Box::new(Endless::new(Pattern::new(1), 1 << 19, mpsc::channel().0)))
        }));
        Ok(Admission { targets, bandwidth: Some(RATE), ..admission() })
    });
    let node = Node::start();
    let address = node.listen(options);
    let mut raw = Raw::connect(&address);
    raw.hello();
    let begun = std::time::Instant::now();
    raw.open(1, "it", 1 << 20);
    let mut received = 0;
    while received < 1 << 19 {
        let (header, payload) = raw.receive();
        received += if header.packet_type() == Some(PacketType::Stream) { payload.len() } else { 0 };
    }
    // Half a second's worth; a tenth of a second may come at once.
    assert!(begun.elapsed() > Duration::from_millis(250), "{:?}", begun.elapsed());
}

#[test]
fn a_limit_of_the_admission_holds_for_what_the_peer_sends() {
    let options = judged(|_| {
        let targets = Arc::new(Offer(|_: &Request<'_>| Decision::Accept(Custom::new().0.boxed())));
        Ok(Admission { targets, bandwidth: Some(1 << 20), ..admission() })
    });
    let (mut near, far) = (Node::start(), Node::start());
    let key = attach(&near.handle, &far, options, Config::default());
    near.established(key);
    let (sent, is_sent) = mpsc::channel();
    let begun = std::time::Instant::now();
    let open = Open { target: "it".into(), ..Open::default() };
    near.handle.open(key, open, Box::new(Endless::new(Pattern::new(1), 1 << 20, sent)));
    is_sent.recv_timeout(PATIENCE).expect("it goes on");
    // A second's worth; the first window, a quarter of that, came at once.
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
}

/// A call of libvirt's, CONNECT_GET_TYPE.
fn call(serial: u32) -> Vec<u8> {
    legacy_call(PROGRAM, 1, 2, serial).to_vec()
}

#[test]
fn who_may_not_reach_the_daemon_has_every_call_answered_with_the_reason_and_may_still_say_hello() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("daemon");
    let daemon = UnixListener::bind(&path).unwrap();
    daemon.set_nonblocking(true).unwrap();
    let node = Node::start();
    let mut options = judged(|_| Ok(admission()));
    options.daemon = Some(path);
    let mut raw = Raw::connect(&node.listen(options));
    for serial in 1..3 {
        raw.say(&call(serial));
        let (header, body) = raw.receive();
        assert_eq!((header.serial, header.packet_status()), (serial, Some(Status::Error)));
        let error: RemoteError = virbistream::wire::decode_body(&body).unwrap();
        assert_eq!((error.code, error.message.as_str()), (codes::AUTH_FAILED, "no daemon for you"));
    }
    raw.hello();
    raw.ping();
    assert!(daemon.accept().is_err(), "nobody came to the daemon");
}

#[test]
fn who_may_reach_the_daemon_is_asked_for_once_and_has_a_permit_until_its_link_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("daemon");
    let daemon = UnixListener::bind(&path).unwrap();
    let (node, (gone, is_gone)) = (Node::start(), mpsc::channel());
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let to_daemon = Box::new(move |caller: &Caller<'_>| {
        assert_eq!(caller.extensions, []);
        *count.lock() += 1;
        Ok(Admission { permit: Some(Box::new(Tell(gone.clone()))), ..admission() })
    });
    let access = Judged { hello: Box::new(|_| Err(denied("no HELLO"))), to_daemon };
    let options = SessionOptions { access: Some(Arc::new(access)), daemon: Some(path), ..SessionOptions::default() };
    let mut raw = Raw::connect(&node.listen(options));
    let mut daemon_end: Option<UnixStream> = None;
    for serial in 1..4 {
        raw.say(&call(serial));
        let end = daemon_end.get_or_insert_with(|| accept(&daemon));
        let mut came = vec![0; call(serial).len()];
        end.read_exact(&mut came).unwrap();
        assert_eq!(came, call(serial));
        end.write_all(&call(serial)).unwrap();
        raw.receive();
    }
    assert_eq!(*asked.lock(), 1);
    assert!(is_gone.try_recv().is_err(), "it is still in");
    drop((raw, daemon_end));
    is_gone.recv_timeout(PATIENCE).expect("the permit is given back");
}

#[test]
fn who_may_not_reach_the_daemon_has_the_time_for_hello_from_the_denial_on_and_who_may_has_no_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("daemon");
    let daemon = UnixListener::bind(&path).unwrap();
    let mut node = Node::start();
    let to_daemon = Box::new(|caller: &Caller<'_>| match caller.identity {
        Identity::Local { .. } => Ok(admission()),
        _ => Err(denied("no daemon for you")),
    });
    let access = Judged { hello: Box::new(|_| Ok(admission())), to_daemon };
    let mut options =
        SessionOptions { access: Some(Arc::new(access)), daemon: Some(path), ..SessionOptions::default() };
    options.config.hello_timeout = Some(Duration::from_millis(300));
    let address = format!("unix:{}", dir.path().join("link").display()).parse().unwrap();
    node.handle.listen(Listener::bind(&address, Permissions::default()).unwrap(), options.clone());
    let mut admitted = UnixStream::connect(dir.path().join("link")).unwrap();
    admitted.write_all(&call(1)).unwrap();
    let mut end = accept(&daemon);
    let admitted_key = node.link_accepted();

    let address = node.listen(options);
    let (mut refused, _silent) = (Raw::connect(&address), Raw::connect(&address));
    refused.say(&call(1));
    refused.receive();
    for _ in 0..2 {
        let key = node.link_accepted();
        assert!(matches!(node.session_ended(key), Err(SessionError::HelloTimeout(_))));
    }
    assert_eq!(refused.rest(), []);
    assert_eq!(node.handle.counters().hello_timeouts, 2);

    // It came first, and is silent for longer than they.
    admitted.write_all(&call(2)).unwrap();
    let mut came = [0; 56];
    end.read_exact(&mut came).unwrap();
    let ended = |report: &Report| matches!(report, Report::SessionEnded { session, .. } if *session == admitted_key);
    assert!(!node.unasked().iter().any(ended));
}

#[test]
fn a_permit_is_given_back_with_its_session_though_the_peer_keeps_the_link() {
    let (gone, is_gone) = mpsc::channel();
    let options = judged(move |_| Ok(Admission { permit: Some(Box::new(Tell(gone.clone()))), ..admission() }));
    let mut node = Node::start();
    let mut raw = Raw::connect(&node.listen(options));
    raw.hello();
    let key = node.link_accepted();
    let done = Close { code: close::DONE, rule: 0, text: String::new() };
    raw.send(Procedure::Close, PacketType::Message, 0, Status::Ok, &done);
    assert_eq!(node.session_ended(key), Ok(()));
    is_gone.try_recv().expect("the permit is given back before the end is told");
}
