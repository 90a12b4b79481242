//! How many links come in, and what becomes of those that are too many.

mod io_support;

use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{Address, Decision, Handle, LinkLimits, Report, Request, SessionOptions};
use virbistream::wire::Open;

/// An error is that of a link that was closed before this end had it.
fn connect(address: &Address) -> io::Result<TcpStream> {
    let Address::Tcp { host, port } = address else { panic!("{address} is not TCP") };
    let connected = TcpStream::connect((host.as_str(), *port));
    assert!(
        connected.as_ref().err().is_none_or(|error| error.kind() == io::ErrorKind::ConnectionReset),
        "{connected:?}"
    );
    connected
}

/// Whether the other end has closed it, with a reset or without.
fn is_refused(link: io::Result<TcpStream>) -> bool {
    let Ok(mut stream) = link else { return true };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    !matches!(stream.read(&mut [0]), Ok(1))
}

#[track_caller]
fn wait_for(what: &str, handle: &Handle, sessions: u64, half_open: u64) {
    let deadline = Instant::now() + PATIENCE;
    while (handle.counters().sessions_now, handle.counters().half_open_now) != (sessions, half_open) {
        assert!(Instant::now() < deadline, "{what}: {:?}", handle.counters());
        std::thread::yield_now();
    }
}

#[test]
fn links_beyond_the_limit_are_closed_at_once_and_there_is_room_again_when_one_has_ended() {
    let mut node = Node::start();
    node.handle.limit_links(LinkLimits { sessions: 2, half_open: 10, ..LinkLimits::default() });
    let address = node.listen(SessionOptions::default());
    let mut first = Raw::connect(&address);
    let mut second = Raw::connect(&address);
    first.hello();
    second.hello();
    wait_for("two sessions", &node.handle, 2, 0);
    assert!(is_refused(connect(&address)));
    node.wait("the refusal", |report| matches!(report, Report::LinksRefused { count: 1, .. }).then_some(()));
    assert!(is_refused(connect(&address)));
    assert_eq!(node.handle.counters().links_refused, 2);
    second.ping();
    drop(first);
    wait_for("one session", &node.handle, 1, 0);
    Raw::connect(&address).hello();
}

#[test]
fn links_that_say_nothing_take_no_places_of_those_that_speak() {
    let node = Node::start();
    node.handle.limit_links(LinkLimits { sessions: 2, half_open: 3, ..LinkLimits::default() });
    let address = node.listen(SessionOptions::default());
    let mut speaking = Raw::connect(&address);
    speaking.hello();
    let silent: Vec<_> = (0..3).map(|_| connect(&address).unwrap()).collect();
    wait_for("three silent links", &node.handle, 1, 3);
    assert!(is_refused(connect(&address)));
    speaking.ping();
    drop(silent);
    wait_for("their end", &node.handle, 1, 0);
    Raw::connect(&address).hello();
}

#[test]
fn one_address_keeps_no_other_out() {
    let node = Node::start();
    node.handle.limit_links(LinkLimits { half_open_each: 2, ..LinkLimits::default() });
    let address = node.listen(SessionOptions::default());
    let _silent: Vec<_> = (0..2).map(|_| connect(&address).unwrap()).collect();
    wait_for("two silent links", &node.handle, 0, 2);
    assert!(is_refused(connect(&address)));
    let Address::Tcp { port, .. } = &address else { panic!("{address} is not TCP") };
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    other.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], *port)).into()).unwrap();
    wait_for("a link from elsewhere", &node.handle, 0, 3);
}

#[test]
fn links_that_come_too_fast_are_closed_at_once_and_told_of() {
    let mut node = Node::start();
    node.handle.limit_links(LinkLimits { per_second_each: 1, ..LinkLimits::default() });
    let address = node.listen(SessionOptions::default());
    let mut speaking = Raw::connect(&address);
    speaking.hello();
    // Three are left of the burst, and one more comes each second.
    let deadline = Instant::now() + PATIENCE;
    while node.handle.counters().links_over_rate == 0 {
        assert!(Instant::now() < deadline, "none is refused: {:?}", node.handle.counters());
        drop(connect(&address));
    }
    assert_eq!(node.handle.counters().links_refused, 0);
    node.wait("the refusal", |report| matches!(report, Report::LinksRefused { over_rate: 1.., .. }).then_some(()));
    speaking.ping();
}

#[test]
fn a_thousand_half_open_links_hold_up_no_stream() {
    let (mut near, mut far) = (Node::start(), Node::start());
    far.handle.limit_links(LinkLimits {
        sessions: 10,
        half_open: 1000,
        half_open_each: 1000,
        per_second_each: u32::MAX,
    });
    let mut options = SessionOptions::default();
    options.config.hello_timeout = None;
    options.targets = std::sync::Arc::new(Offer(|_: &Request<'_>| Decision::Accept(Custom::new().0.boxed())));
    let address = far.listen(options);
    let socket = virbistream::io::Socket::connect(&address, PATIENCE).unwrap();
    let key = near.handle.attach(socket, virbistream::proto::Side::Connecting, SessionOptions::default());
    near.established(key);
    let time = |near: &mut Node| {
        let begun = Instant::now();
        let (sent, all_sent) = mpsc::channel();
        let mut left = 256 << 20;
        let source = Custom::new().0.reading(move |buf: &mut [u8]| {
            let len = buf.len().min(left);
            left -= len;
            if len == 0 {
                let _ = sent.send(());
            }
            Ok(len)
        });
        near.handle.open(key, Open { target: "it".into(), ..Open::default() }, source.boxed());
        all_sent.recv_timeout(PATIENCE).unwrap();
        begun.elapsed()
    };
    let alone = time(&mut near);
    let _silent: Vec<_> = (0..1000).map(|_| connect(&address).unwrap()).collect();
    wait_for("a thousand silent links", &far.handle, 1, 1000);
    let (stop, stopped) = mpsc::channel::<()>();
    // And ever more, which there is no place for.
    let flood = std::thread::spawn(move || {
        let mut count = 0;
        while matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
            count += u32::from(connect(&address).is_ok());
        }
        count
    });
    let beside = time(&mut near);
    drop(stop);
    assert!(flood.join().unwrap() > 0);
    let counters = far.handle.counters();
    assert_eq!((counters.sessions_now, counters.half_open_now), (1, 1000));
    assert!(beside < 8 * alone + Duration::from_secs(1), "{alone:?} became {beside:?}");
    far.wait("a refusal", |report| matches!(report, Report::LinksRefused { .. }).then_some(()));
}
