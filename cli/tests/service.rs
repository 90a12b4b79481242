//! As a service: sockets that systemd made, and what systemd is told.

#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use pki::{Authority, Wanted};
use rcgen::ExtendedKeyUsagePurpose;
use rustix::process::Signal;
use support::echo::{assert_echoes, connect, echo_on};
use support::net::Wire;
use support::process::{Process, Run};
use support::tool::{forward, serve, tool};
use support::{PATIENCE, Scratch, wait_for};

/// systemd's own program, which makes sockets at these addresses and, when somebody comes to one, becomes `run`.
fn activated(sockets: &[(&str, &str)], run: Run) -> Run {
    let mut systemd = Run::new("systemd-socket-activate", "systemd");
    for (_, address) in sockets {
        systemd = systemd.args(["--listen", address]);
    }
    let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
    run.under(systemd.arg(format!("--fdname={}", names.join(":"))))
}

/// An address of the loopback that no other test has.
fn own_address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    format!("127.{a}.{b}.{c}:{}", 20_000 + COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until systemd listens there, and with that connection has it start the service.
fn knock(process: &mut Process, path: &Path) -> UnixStream {
    wait_for("a socket of systemd's", PATIENCE, || {
        process.assert_alive();
        UnixStream::connect(path).ok()
    })
}

/// `serve` of an echo, called `disk`.
fn serving(scratch: &Scratch, listen: &[&str]) -> Run {
    let far = scratch.join("far");
    let run = serve(listen[0], [("disk", &*far)]);
    listen[1..].iter().fold(run, |run, listen| run.args(["--listen", listen]))
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn every_socket_of_systemds_is_served_as_what_it_is_said_to_be() {
    let (scratch, keys) = (Scratch::new(), Scratch::new());
    let (link, plain, secure) = (scratch.join("link"), own_address(), own_address());
    let host = secure.split(':').next().expect("a host");
    let authority = Authority::new("authority");
    authority.fill(keys.path());
    let wanted = Wanted { names: &[host], purpose: ExtendedKeyUsagePurpose::ServerAuth, ..Wanted::default() };
    authority.sign(&wanted).write(keys.path(), "server");
    echo_on(&scratch.join("far"));
    let run = serving(&scratch, &["unix+systemd:local", "tls+systemd:secure", "tcp+systemd:plain"]);
    let run = run.args(["--allow-dn", "*", "--pki"]).arg(keys.path());
    let sockets = [("plain", &*plain), ("local", &*path(&link)), ("secure", &*secure)];
    let mut serve = activated(&sockets, run).named("serve").start();
    drop(knock(&mut serve, &link));
    let peers = [format!("unix:{}", path(&link)), format!("tls://{secure}"), format!("tcp://{plain}")];
    assert_eq!(serve.ready(), peers.join(" "));
    for (number, peer) in peers.iter().enumerate() {
        let near = scratch.join(&format!("near{number}"));
        let run = forward(peer, [("disk", &*near)]);
        let run = if peer.starts_with("tls:") { run.arg("--pki").arg(keys.path()) } else { run };
        let forward = run.start();
        forward.ready();
        assert_echoes(&connect(&near), b"through a socket of systemd's");
        forward.end_well(&[&near]);
    }
    assert_eq!(serve.stderr.count(|line| line.contains("TLS 1.3 with ")), 1);
    serve.end_well(&[]);
    assert!(link.exists(), "the file is systemd's");
}

#[test]
fn sockets_and_names_that_do_not_fit_each_other_are_told_apart() {
    let scratch = Scratch::new();
    let (link, plain) = (scratch.join("link"), own_address());
    let sockets = [("local", &*path(&link)), ("plain", &*plain)];
    for (listen, words) in [
        (&["unix+systemd:local"][..], &["gave a socket `plain`", "not listened on"][..]),
        (&["unix+systemd:local", "tcp+systemd:plain", "tcp+systemd:other"], &["gave no socket `other`"]),
        (&["tcp+systemd:local", "tcp+systemd:plain"], &["`local`", "none for tcp"]),
        (&["unix+systemd:local", "unix+systemd:plain"], &["`plain`", "none for unix"]),
        (&["tcp://127.0.0.1:0"], &["gave a socket `local`", "not listened on"]),
    ] {
        _ = std::fs::remove_file(&link);
        let mut serve = activated(&sockets, serving(&scratch, listen)).named("serve").start();
        drop(knock(&mut serve, &link));
        let finished = serve.finish(PATIENCE);
        finished.assert_failed_saying(words);
        assert_eq!(finished.stdout, "", "{finished}");
    }
    // Without systemd there is none.
    let alone = serving(&scratch, &["tcp+systemd:plain"]).finish(PATIENCE);
    alone.assert_failed_saying(&["gave no socket `plain`", "FileDescriptorName=plain"]);
}

/// The rules that hold for addresses hold for sockets that others made.
#[test]
fn a_plain_socket_beyond_the_loopback_is_served_only_when_anyone_may_have_the_targets() {
    let (scratch, wire) = (Scratch::new(), Wire::new());
    let open = format!("{}:20000", Wire::DESTINATION);
    let start = |options: &[&str]| {
        let link = scratch.join("link");
        _ = std::fs::remove_file(&link);
        let run = serving(&scratch, &["unix+systemd:local", "tcp+systemd:open"]).args(options);
        let run = activated(&[("local", &path(&link)), ("open", &open)], run).named("serve");
        let mut serve = run.in_namespace_of(Some(wire.destination.pid())).start();
        drop(knock(&mut serve, &link));
        serve
    };
    let refused = start(&[]).finish(PATIENCE);
    refused.assert_failed_saying(&[&open, "can be reached from other hosts", "--insecure-tcp"]);
    assert_eq!(refused.stdout, "", "{refused}");
    let serve = start(&["--insecure-tcp"]);
    serve.ready();
    let probe = tool().args(["probe", &format!("tcp://{open}")]).in_namespace_of(Some(wire.source.pid()));
    assert!(probe.succeed(PATIENCE).stdout.starts_with("bistream\n"));
    serve.end_well(&[]);
}

#[test]
fn libvirtd_is_behind_no_socket_of_systemds_without_a_rule_that_says_for_whom() {
    let finished = tool().args(["serve", "--listen", "unix+systemd:a", "--libvirt", "unix:/nowhere"]).finish(PATIENCE);
    assert_eq!(finished.status.code(), Some(2), "{finished}");
    assert!(finished.stderr.contains("unix+systemd:a needs --config"), "{finished}");
    let finished = tool().args(["serve", "--listen", "tcp+systemd:a", "--libvirt", "unix:/nowhere"]).finish(PATIENCE);
    assert_eq!(finished.status.code(), Some(2), "{finished}");
}

/// Where systemd would be told.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(scratch: &Scratch) -> Self {
        let path = scratch.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a new socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { socket, path }
    }

    fn started(&self, run: Run) -> Run {
        run.under(Run::new("env", "coreutils").arg(format!("NOTIFY_SOCKET={}", self.path.display())))
    }

    /// What is said next, a line each.
    #[track_caller]
    fn told(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("something that systemd is told");
        String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn assert_told_nothing(&self) {
        self.socket.set_nonblocking(true).expect("a socket");
        assert!(self.socket.recv(&mut [0; 4096]).is_err(), "systemd was told something");
    }
}

#[test]
fn systemd_is_told_of_ready_reloads_and_the_end() {
    let scratch = Scratch::new();
    let manager = Manager::new(&scratch);
    let link = scratch.join("link");
    let listen = format!("unix:{}", path(&link));
    let serve = manager.started(serving(&scratch, &[&listen])).args(["--drain", "7200"]).start();
    let listening = format!("STATUS=listening on {listen}");
    assert_eq!(manager.told(), ["READY=1", &listening]);
    UnixStream::connect(&link).expect("it listens");
    for _ in 0..2 {
        let before = monotonic();
        serve.signal(Signal::HUP);
        let told = manager.told();
        assert_eq!(told[0], "RELOADING=1", "{told:?}");
        let time = told[1].strip_prefix("MONOTONIC_USEC=").and_then(|time| time.parse().ok());
        let time: u128 = time.expect("the time of the reload");
        assert!((before..=monotonic()).contains(&time), "{told:?}");
        assert_eq!(manager.told(), ["READY=1", &listening]);
    }
    serve.signal(Signal::TERM);
    let told = manager.told();
    // systemd waits as long as streams may take.
    assert_eq!(told[..2], ["STOPPING=1", "EXTEND_TIMEOUT_USEC=7210000000"]);
    let finished = serve.finish(PATIENCE);
    assert!(finished.status.success(), "{finished}");
    manager.assert_told_nothing();
}

/// In microseconds.
fn monotonic() -> u128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    std::time::Duration::try_from(now).expect("after the start").as_micros()
}

#[test]
fn what_cannot_listen_everywhere_is_never_ready() {
    let scratch = Scratch::new();
    let manager = Manager::new(&scratch);
    let (free, taken) = (scratch.join("free"), scratch.join("taken"));
    let _listener = UnixListener::bind(&taken).expect("a new socket");
    let listen = [format!("unix:{}", path(&free)), format!("unix:{}", path(&taken))];
    let run = serving(&scratch, &[&listen[0], &listen[1]]);
    manager.started(run).finish(PATIENCE).assert_failed_saying(&["taken", "another process listens on it"]);
    manager.assert_told_nothing();
}

#[test]
fn a_manager_that_is_gone_ends_nothing() {
    let scratch = Scratch::new();
    let manager = Manager::new(&scratch);
    std::fs::remove_file(&manager.path).expect("it is there");
    let serve = manager.started(serving(&scratch, &["tcp://127.0.0.1:0"])).start();
    serve.ready();
    serve.line_on_stderr("a warning", |line| line.contains("systemd cannot be told"));
    serve.end_well(&[]);
}
