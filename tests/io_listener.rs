//! Listeners: connections that become streams, socket files, and addresses.

mod io_support;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{Address, AddressError, Listener, Permissions, Report, SessionOptions, Socket, UNIX_PATH_MAX};
use virbistream::proto::Side;
use virbistream::wire::Open;

fn bind(path: &Path) -> io::Result<Listener> {
    Listener::bind(&Address::Unix(path.into()), Permissions::default())
}

fn disk() -> Open {
    Open { target: "disk".into(), ..Open::default() }
}

/// Connects and says `words`.
fn client(path: &Path, words: &str) -> UnixStream {
    let mut client = patient(UnixStream::connect(path).unwrap());
    client.write_all(words.as_bytes()).unwrap();
    client
}

/// Connects until the listener takes nobody else; gives those who wait there.
fn fill(listener: &UnixListener, path: &Path) -> Vec<socket2::Socket> {
    socket2::SockRef::from(listener).listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        if socket.connect(&socket2::SockAddr::unix(path).unwrap()).is_err() {
            return waiting;
        }
        waiting.push(socket);
    }
}

/// The next connection to the target says `words`.
#[track_caller]
fn expect(listener: &UnixListener, words: &str) -> UnixStream {
    let mut server = accept(listener);
    let mut heard = vec![0; words.len()];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), words);
    server
}

#[test]
fn connections_wait_for_the_session_and_are_then_carried() {
    let mut tunnel = Tunnel::new();
    let path = tunnel.path("forward.sock");
    let mut near = Node::start();
    let forward = near.handle.forward(bind(&path).unwrap(), disk());
    // Before there is a session, before it is named, and before HELLO stands.
    let mut clients = vec![client(&path, "first")];
    let address = tunnel.far.listen(tunnel.options.clone());
    let Address::Tcp { host, port } = &address else { unreachable!() };
    let (ours, theirs) = tcp_link();
    let key = near.handle.attach(Socket::from_tcp(ours).unwrap(), Side::Connecting, SessionOptions::default());
    clients.push(client(&path, "second"));
    near.handle.route(forward, Some(key));
    let mut peer = Raw::from(theirs);
    let hello = peer.receive_bytes();
    clients.push(client(&path, "third"));
    assert!(near.unasked().is_empty(), "nothing was carried, nothing refused");
    // The far end is the dispatcher behind a relay of ours, which has held HELLO back until now.
    let behind = std::net::TcpStream::connect((host.as_str(), *port)).unwrap();
    peer.join(behind, &hello);
    near.established(key);
    let _servers = ["first", "second", "third"].map(|words| expect(&tunnel.listener, words));
    clients.push(client(&path, "fourth"));
    let _server = expect(&tunnel.listener, "fourth");
    tunnel.far.link_accepted();
}

#[test]
fn a_forward_without_a_session_lets_connections_wait_again() {
    let mut tunnel = Tunnel::new();
    let path = tunnel.path("forward.sock");
    let forward = tunnel.near.handle.forward(bind(&path).unwrap(), disk());
    tunnel.near.handle.route(forward, Some(tunnel.near_key));
    let _first = client(&path, "first");
    let _server = expect(&tunnel.listener, "first");
    tunnel.near.opened(tunnel.near_key);
    tunnel.near.handle.route(forward, None);
    let _second = client(&path, "second");
    // Others are carried meanwhile, and only they.
    for _ in 0..3 {
        tunnel.carry();
    }
    let carried = |report: &&Report| matches!(report, Report::StreamOpened { .. });
    assert_eq!(tunnel.near.unasked().iter().filter(carried).count(), 0);
    tunnel.near.handle.route(forward, Some(tunnel.near_key));
    let _server = expect(&tunnel.listener, "second");
}

#[test]
fn connections_wait_while_the_session_is_lost_and_go_to_the_next() {
    let (near, far) = tcp_link();
    let cut = near.try_clone().unwrap();
    let mut tunnel = Tunnel::over(Socket::from_tcp(near).unwrap(), Socket::from_tcp(far).unwrap(), |_, _| ());
    let path = tunnel.path("forward.sock");
    let forward = tunnel.near.handle.forward(bind(&path).unwrap(), disk());
    tunnel.near.handle.route(forward, Some(tunnel.near_key));
    cut.shutdown(std::net::Shutdown::Both).unwrap();
    tunnel.near.session_ended(tunnel.near_key).unwrap_err();
    let _client = client(&path, "patience");
    let address = tunnel.far.listen(tunnel.options.clone());
    let socket = Socket::connect(&address, PATIENCE).unwrap();
    let key = tunnel.near.handle.attach(socket, Side::Connecting, SessionOptions::default());
    tunnel.near.handle.route(forward, Some(key));
    let _server = expect(&tunnel.listener, "patience");
    assert!(!tunnel.near.unasked().iter().any(|report| matches!(report, Report::StreamRefused { .. })));
}

#[test]
fn a_burst_of_connections_is_carried_to_the_last() {
    const BURST: usize = 200;
    let tunnel = Tunnel::new();
    let path = tunnel.path("forward.sock");
    let forward = tunnel.near.handle.forward(bind(&path).unwrap(), disk());
    let clients: Vec<_> = (0..BURST).map(|n| client(&path, &format!("{n:04}"))).collect();
    tunnel.near.handle.route(forward, Some(tunnel.near_key));
    let mut heard: Vec<_> = (0..BURST)
        .map(|_| {
            let mut server = accept(&tunnel.listener);
            let mut word = [0; 4];
            server.read_exact(&mut word).unwrap();
            String::from_utf8(word.into()).unwrap()
        })
        .collect();
    heard.sort();
    assert_eq!(heard, (0..BURST).map(|n| format!("{n:04}")).collect::<Vec<_>>());
    drop(clients);
}

#[test]
fn a_forward_listens_on_tcp_too() {
    let mut tunnel = Tunnel::new();
    let listener = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), Permissions::default()).unwrap();
    let Address::Tcp { host, port } = listener.address().clone() else { unreachable!() };
    assert_ne!(port, 0, "the real one");
    let forward = tunnel.near.handle.forward(listener, disk());
    tunnel.near.handle.route(forward, Some(tunnel.near_key));
    let mut client = std::net::TcpStream::connect((host.as_str(), port)).unwrap();
    client.write_all(b"over TCP").unwrap();
    let server = expect(&tunnel.listener, "over TCP");
    drop(client);
    assert_eq!(to_eof(&server), []);
    drop(server);
    let id = tunnel.near.opened(tunnel.near_key);
    tunnel.ended_well(id);
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.sock");
    closed_listener(&path);
    let listener = bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.sock");
    let other = UnixListener::bind(&path).unwrap();
    assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    // Even when it takes nobody just now.
    let _waiting = fill(&other, &path);
    assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    socket2::SockRef::from(&other).listen(16).unwrap();
    UnixStream::connect(&path).expect("it listens as before");
    assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn of_many_who_begin_on_a_path_at_once_one_has_it() {
    const MANY: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.sock");
    for round in 0..200 {
        if round % 2 == 0 {
            closed_listener(&path);
        }
        let start = Barrier::new(MANY);
        let begin = || {
            start.wait();
            bind(&path)
        };
        let begun: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..MANY).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), 1, "round {round}: {begun:?}");
        for error in begun.iter().filter_map(|begun| begun.as_ref().err()) {
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        }
        UnixStream::connect(&path).expect("the one that has it listens");
        drop(begun);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing is left, and no lock");
    }
}

#[test]
fn a_path_that_comes_and_goes_is_always_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.sock");
    let come_and_go = || {
        for _ in 0..2000 {
            match bind(&path) {
                // The one before may be going yet: it must not take our file with it.
                Ok(_listener) => drop(UnixStream::connect(&path).expect("we listen there")),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}"),
            }
        }
    };
    thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(come_and_go))));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn a_path_that_somebody_is_about_to_listen_on_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.sock");
    // What is between bind and listen looks like this from outside.
    closed_listener(&path);
    let before = fs::metadata(&path).unwrap().ino();
    let lock = fs::File::create(dir.path().join("it.sock.virbistream-lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
    // Its process dies, and leaves the file.
    drop(lock);
    let listener = bind(&path).unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    drop(listener);
}

#[test]
fn what_stands_in_the_place_of_the_lock_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lock) = (dir.path().join("s"), dir.path().join("s.virbistream-lock"));
    let elsewhere = dir.path().join("elsewhere");
    for there in [false, true] {
        if there {
            std::fs::write(&elsewhere, "mine").unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, &lock).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(elsewhere.exists(), there);
        std::fs::remove_file(&lock).unwrap();
    }
    std::fs::create_dir(&lock).unwrap();
    assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let nowhere = bind(&dir.path().join("no/such/s")).unwrap_err();
    assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "precious").unwrap();
    fs::create_dir(path("folder")).unwrap();
    closed_listener(&path("dead.sock"));
    symlink(path("dead.sock"), path("link")).unwrap();
    symlink(path("nowhere"), path("dangling")).unwrap();
    for name in ["file", "folder", "link", "dangling"] {
        assert_eq!(bind(&path(name)).unwrap_err().kind(), io::ErrorKind::AddrInUse, "{name}");
    }
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "precious");
    assert!(path("folder").is_dir() && path("link").is_symlink() && path("dangling").is_symlink());
    assert_eq!(bind(&path("none/it.sock")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn the_socket_file_goes_with_its_listener_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.sock");
    let listener = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(listener);
    UnixStream::connect(&path).expect("the other's file is there");
    accept(&other);
    fs::remove_file(&path).unwrap();

    let listener = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    drop(listener);

    // Dispatchers drop their listeners when they drain.
    let node = Node::start();
    node.handle.forward(bind(&path).unwrap(), disk());
    node.handle.listen(bind(&dir.path().join("links.sock")).unwrap(), SessionOptions::default());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    node.handle.drain();
    node.join();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn permissions_are_applied_to_the_socket_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.sock");
    let address = Address::Unix(path.clone());
    let folder = fs::metadata(dir.path()).unwrap();
    for mode in [0o600, 0o660, 0o777] {
        let permissions = Permissions { mode: Some(mode), user: Some(folder.uid()), group: Some(folder.gid()) };
        let _listener = Listener::bind(&address, permissions).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, mode);
        assert_eq!((meta.uid(), meta.gid()), (folder.uid(), folder.gid()));
    }
    // What others may own needs privileges; without them nothing is left behind.
    let theirs = Permissions { user: Some(folder.uid() + 1), group: Some(folder.gid() + 1), mode: None };
    match Listener::bind(&address, theirs) {
        Ok(_listener) => {
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (folder.uid() + 1, folder.gid() + 1));
        }
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
    }
    assert!(!path.exists());
}

#[test]
fn a_taken_tcp_port_is_an_error() {
    let taken = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), Permissions::default()).unwrap();
    let error = Listener::bind(taken.address(), Permissions::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn addresses_that_are_some() {
    let tcp = |host: &str, port| Address::Tcp { host: host.into(), port };
    let unix = |path: &str| Address::Unix(path.into());
    let longest = format!("/{}", "x".repeat(UNIX_PATH_MAX - 1));
    for (text, address, shown) in [
        ("tcp://localhost:0", tcp("localhost", 0), "tcp://localhost:0"),
        ("tcp://192.0.2.1:65535", tcp("192.0.2.1", 65535), "tcp://192.0.2.1:65535"),
        ("tcp://[::1]:16599", tcp("::1", 16599), "tcp://[::1]:16599"),
        ("tcp://::1:16599", tcp("::1", 16599), "tcp://[::1]:16599"),
        ("unix:///run/it.sock", unix("/run/it.sock"), "unix:/run/it.sock"),
        ("unix:/run/it.sock", unix("/run/it.sock"), "unix:/run/it.sock"),
        ("unix:it.sock", unix("it.sock"), "unix:it.sock"),
        ("unix:a:b", unix("a:b"), "unix:a:b"),
        (&format!("unix:{longest}"), unix(&longest), &format!("unix:{longest}")),
        (&format!("unix://{longest}"), unix(&longest), &format!("unix:{longest}")),
    ] {
        assert_eq!(text.parse(), Ok(address.clone()), "{text}");
        assert_eq!(address.to_string(), shown);
        assert_eq!(shown.parse(), Ok(address), "{shown}");
    }
}

#[test]
fn addresses_that_are_none() {
    use AddressError as E;
    let too_long = format!("/{}", "x".repeat(UNIX_PATH_MAX));
    let wide = "é".repeat(54);
    for (text, error) in [
        ("", E::Scheme("".into())),
        ("localhost:80", E::Scheme("localhost:80".into())),
        ("http://localhost:80", E::Scheme("http://localhost:80".into())),
        ("TCP://localhost:80", E::Scheme("TCP://localhost:80".into())),
        ("/run/it.sock", E::Scheme("/run/it.sock".into())),
        ("tcp://localhost", E::Port("tcp://localhost".into())),
        ("tcp://localhost:", E::Port("tcp://localhost:".into())),
        ("tcp://localhost:65536", E::Port("tcp://localhost:65536".into())),
        ("tcp://localhost:-1", E::Port("tcp://localhost:-1".into())),
        ("tcp://localhost:http", E::Port("tcp://localhost:http".into())),
        ("tcp://localhost:80/", E::Port("tcp://localhost:80/".into())),
        ("tcp://[::1]", E::Port("tcp://[::1]".into())),
        ("tcp://:80", E::Host("tcp://:80".into())),
        ("tcp://[]:80", E::Host("tcp://[]:80".into())),
        ("unix:", E::NoPath("unix:".into())),
        (&format!("unix:{too_long}"), E::PathTooLong { path: too_long.clone() }),
        (&format!("unix://{too_long}"), E::PathTooLong { path: too_long.clone() }),
        (&format!("unix:{wide}"), E::PathTooLong { path: wide.clone() }),
    ] {
        assert_eq!(text.parse::<Address>(), Err(error), "{text}");
    }
    let told = format!("unix:{wide}").parse::<Address>().unwrap_err().to_string();
    assert!(told.contains("has 108 bytes; at most 107"), "{told}");
}

#[test]
fn the_longest_path_can_be_listened_on_and_dialled_and_a_longer_one_not() {
    let dir = tempfile::tempdir().unwrap();
    let room = UNIX_PATH_MAX - dir.path().as_os_str().len() - 1;
    let path = dir.path().join("x".repeat(room));
    let address: Address = format!("unix:{}", path.display()).parse().unwrap();
    let _listener = Listener::bind(&address, Permissions::default()).unwrap();
    Socket::connect(&address, PATIENCE).unwrap();
    let longer = Address::Unix(dir.path().join("x".repeat(room + 1)));
    assert_eq!(Listener::bind(&longer, Permissions::default()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(Socket::connect(&longer, PATIENCE).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_name_without_an_address_cannot_be_dialled() {
    let refused = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap(), Permissions::default()).unwrap();
    let address = refused.address().clone();
    drop(refused);
    assert_eq!(Socket::connect(&address, PATIENCE).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let dir = tempfile::tempdir().unwrap();
    let nowhere = Address::Unix(dir.path().join("nowhere.sock"));
    assert_eq!(Socket::connect(&nowhere, PATIENCE).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_socket_whose_backlog_is_full_is_dialled_until_the_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut waiting = fill(&listener, &path);
    let dial = |timeout| {
        let (done, dialled) = mpsc::channel();
        let address = Address::Unix(path.clone());
        thread::spawn(move || done.send((Instant::now(), Socket::connect(&address, timeout), Instant::now())));
        dialled
    };
    let short = Duration::from_millis(50);
    let (begun, dialled, ended) = dial(short).recv_timeout(PATIENCE).expect("it gives up");
    assert_eq!(dialled.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(ended - begun >= short);
    // And is reached as soon as somebody is accepted, whatever the timeout.
    let dialled = dial(Duration::MAX);
    waiting.drain(..).for_each(|_| drop(accept(&listener)));
    dialled.recv_timeout(PATIENCE).expect("there is room").1.unwrap();
}

/// As a service manager makes them: with a path, or without one, or not yet listening.
#[test]
fn a_socket_that_somebody_else_made_is_taken_over_if_it_listens_and_has_a_path() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("socket");
    let listener = Listener::from_unix(UnixListener::bind(&path).unwrap()).unwrap();
    assert_eq!(listener.address(), &Address::Unix(path.clone()));
    drop(listener);
    assert!(path.exists(), "the file is of who made it");

    let abstract_name = socket2::SockAddr::unix(format!("\0{}", path.display())).unwrap();
    for (name, listens, words) in [(Some(abstract_name), true, "no path"), (None, false, "does not listen")] {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        name.iter().for_each(|name| socket.bind(name).unwrap());
        if listens {
            socket.listen(1).unwrap();
        }
        let error = Listener::from_unix(socket.into()).unwrap_err();
        assert!(error.kind() == io::ErrorKind::InvalidInput && error.to_string().contains(words), "{error}");
    }

    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    assert_eq!(Listener::from_tcp(tcp).unwrap().address(), &Address::Tcp { host: "127.0.0.1".into(), port });
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    assert_eq!(Listener::from_tcp(silent.into()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}
