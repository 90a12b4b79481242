//! Who is let in, to which targets, and what the others are told.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use support::echo::{accept_on, assert_echoes, assert_ends, connect, echo_on};
use support::libvirtd::Libvirtd;
use support::process::{Process, Run};
use support::tool::{ANY_PORT, assert_fails, forward, serve, tool};
use support::{PATIENCE, Scratch, need_root, wait_for};
use virbistream::io::{Dispatcher, SessionOptions, Socket};
use virbistream::proto::Side;
use virbistream::rpc::{CallError, ProcedureId};

/// Nobody has this one.
const NOBODY: u32 = 65_534;

/// `serve --config` with this file, in which DIR stands for the scratch folder.
fn configured(scratch: &Scratch, config: &str) -> Run {
    let file = scratch.join("config.toml");
    fs::write(&file, config.replace("DIR", &scratch.path().to_string_lossy())).expect("written");
    tool().named("virbistream serve --config").args(["serve", "-v", "--config"]).arg(file)
}

fn link(scratch: &Scratch) -> String {
    format!("unix:{}", scratch.join("link").display())
}

/// A forward of one socket per target, which all are in by now.
fn forwarding(scratch: &Scratch, names: &[&str]) -> (Process, Vec<PathBuf>) {
    let near: Vec<_> = (0..names.len()).map(|n| scratch.join(&format!("near{n}"))).collect();
    let forward = forward(&link(scratch), names.iter().copied().zip(near.iter().map(|path| &**path))).start();
    forward.ready();
    (forward, near)
}

fn uid() -> u32 {
    fs::metadata("/proc/self").expect("/proc").uid()
}

#[test]
fn who_has_no_rule_is_told_so_at_both_ends() {
    let scratch = Scratch::new();
    let config = format!(
        "listen = ['unix:DIR/link']\n[[target]]\nname = 'disk'\npath = 'DIR/far'\n[[allow]]\nuid = {NOBODY}\ntargets = ['*']\n"
    );
    let serve = configured(&scratch, &config).start();
    serve.ready();
    let near = scratch.join("near");
    let finished = forward(&link(&scratch), [("disk", &*near)]).finish(PATIENCE);
    let reason = format!("no rule here lets uid {} in", uid());
    finished.assert_failed_saying(&[&reason]);
    serve.line_on_stderr("the refusal", |line| line.contains(&reason));
    serve.end_well(&[&scratch.join("link")]);
}

#[test]
fn a_rule_gives_the_targets_and_sessions_that_it_names() {
    let scratch = Scratch::new();
    let config = format!(
        "listen = ['unix:DIR/link']
[[target]]
name = 'disk'
path = 'DIR/far'
[[target]]
name = 'other'
path = 'DIR/far'
[[allow]]
uid = {}
targets = ['d*']
sessions = 1
",
        uid()
    );
    echo_on(&scratch.join("far"));
    let serve = configured(&scratch, &config).start();
    serve.ready();
    let (first, near) = forwarding(&scratch, &["disk", "other", "nothing"]);
    assert_echoes(&connect(&near[0]), b"allowed");
    for (near, name) in near[1..].iter().zip(["other", "nothing"]) {
        assert_ends(&connect(near));
        first.line_on_stderr("the refusal", |line| line.contains(&format!("no rule here lets you open `{name}`")));
    }
    let second = scratch.join("second");
    let finished = forward(&link(&scratch), [("disk", &*second)]).finish(PATIENCE);
    finished.assert_failed_saying(&["has as many sessions as it may: 1"]);
    first.end_well(&[]);
    // The place is free again once the first session is over at the other end, too.
    wait_for("a place", PATIENCE, || {
        let mut again = forward(&link(&scratch), [("disk", &*second)]).start();
        wait_for("its word", PATIENCE, || {
            (again.stdout.count(|line| line.starts_with("ready")) > 0 || !again.is_alive()).then_some(())
        });
        again.is_alive().then_some(())
    });
}

#[test]
fn a_rule_bounds_what_a_peer_sends_and_what_it_is_sent() {
    const BYTES: usize = 2 << 20;
    let scratch = Scratch::new();
    let config = format!(
        "listen = ['unix:DIR/link']
[[target]]
name = 'disk'
path = 'DIR/far'
[[allow]]
uid = {}
targets = ['*']
bandwidth = '1MiB'
",
        uid()
    );
    let far = accept_on(&scratch.join("far"));
    let serve = configured(&scratch, &config).start();
    serve.ready();
    let (forward, near) = forwarding(&scratch, &["disk"]);
    for sends in [true, false] {
        let near = connect(&near[0]);
        let far = far.next();
        let (mut from, mut to) = if sends { (near, far) } else { (far, near) };
        let begun = Instant::now();
        let writing = thread::spawn(move || from.write_all(&vec![7; BYTES]));
        let mut received = Vec::new();
        to.read_to_end(&mut received).expect("all");
        writing.join().expect("no panic").expect("taken");
        assert_eq!(received.len(), BYTES);
        // At once comes a window at most, a quarter of a second's worth.
        assert!(begun.elapsed() > Duration::from_millis(1500), "{sends}: {:?}", begun.elapsed());
    }
    forward.end_well(&near.iter().map(|path| &**path).collect::<Vec<_>>());
    serve.end_well(&[&scratch.join("link")]);
}

#[test]
fn who_says_hello_and_calls_libvirtd_has_one_place_for_both() {
    let scratch = Scratch::new();
    let daemon = UnixListener::bind(scratch.join("daemon")).expect("a socket");
    let config = format!(
        "listen = ['unix:DIR/link']
libvirt = 'unix:DIR/daemon'
[[allow]]
uid = {}
libvirt = true
sessions = 1
",
        uid()
    );
    let serve = configured(&scratch, &config).start();
    serve.ready();
    let dispatcher = Dispatcher::new(drop).expect("a dispatcher");
    let handle = dispatcher.handle();
    std::thread::spawn(move || dispatcher.run());
    let socket = Socket::connect(&link(&scratch).parse().expect("an address"), PATIENCE).expect("a link");
    let session = handle.attach(socket, Side::Connecting, SessionOptions::default());
    let (answer, answered) = mpsc::channel();
    let told = move |came: Result<Vec<u8>, CallError>| drop(answer.send(came));
    handle.call(session, ProcedureId::remote(2), Vec::new(), PATIENCE, told);
    // As libvirtd would: the header back as a reply.
    std::thread::spawn(move || {
        let (mut end, _) = daemon.accept().expect("the call comes to the daemon");
        let mut call = [0; 28];
        end.read_exact(&mut call).expect("the call");
        call[19] = 1;
        end.write_all(&call).expect("the answer is taken");
        // Until the client goes.
        let _ = end.read(&mut call);
    });
    assert_eq!(answered.recv_timeout(PATIENCE).expect("an answer"), Ok(Vec::new()));
    handle.shutdown("the test is over");
}

#[test]
fn a_rule_bounds_the_kinds_and_the_number_of_streams() {
    let scratch = Scratch::new();
    let config = "listen = ['unix:DIR/link']
[[target]]
name = 'disk'
path = 'DIR/far'
[[target]]
name = 'plain'
path = 'DIR/far'
[[allow]]
local = true
targets = ['*']
kinds = ['memory', 'disk']
streams = 2
";
    echo_on(&scratch.join("far"));
    let serve = configured(&scratch, config).start();
    serve.ready();
    let [disk, plain] = ["near.disk", "near.plain"].map(|name| scratch.join(name));
    let forward =
        forward(&link(&scratch), [("disk", &*disk), ("plain", &*plain)]).args(["--kind", "disk=disk"]).start();
    forward.ready();
    assert_ends(&connect(&plain));
    for end in [&forward, &serve] {
        end.line_on_stderr("the refusal", |line| line.contains("open `plain` for streams of kind 0"));
    }
    let mut standing = vec![connect(&disk), connect(&disk)];
    standing.iter().for_each(|stream| assert_echoes(stream, b"one of two"));
    assert_ends(&connect(&disk));
    // A place is free again when a stream is over at both ends.
    drop(standing.remove(0));
    wait_for("a place", PATIENCE, || {
        let mut next = connect(&disk);
        next.write_all(b"x").ok()?;
        (next.read(&mut [0]).ok()? == 1).then_some(())
    });
    assert_echoes(&standing[0], b"and the other goes on");
}

#[test]
fn a_fronts_socket_from_a_file_is_its_own_users_alone() {
    let scratch = Scratch::new();
    let config = "listen = ['unix:DIR/link']\nlibvirt = 'unix:/nowhere'\n[[allow]]\nlocal = true\nlibvirt = true\n";
    let front = configured(&scratch, config).start();
    front.ready();
    let mode = fs::metadata(scratch.join("link")).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    front.end_well(&[&scratch.join("link")]);
}

#[test]
fn a_pattern_reaches_sockets_below_its_folder_and_nothing_else() {
    let scratch = Scratch::new();
    for folder in ["vms", "vms/7", "vms/.hidden", "elsewhere", "vms/linked"] {
        fs::create_dir(scratch.join(folder)).expect("a new folder");
    }
    echo_on(&scratch.join("vms/7/nbd"));
    let forbidden = [scratch.join("elsewhere/nbd"), scratch.join("nbd"), scratch.join("vms/.hidden/nbd")];
    let forbidden: Vec<_> = forbidden.iter().map(|path| accept_on(path)).collect();
    symlink(scratch.join("elsewhere"), scratch.join("vms/out")).expect("a link");
    symlink(scratch.join("elsewhere/nbd"), scratch.join("vms/linked/nbd")).expect("a link");
    let config = "listen = ['unix:DIR/link']
[[target]]
name = 'vm-*'
below = 'DIR/vms'
path = '*/nbd'
[[allow]]
local = true
targets = ['vm-*']
";
    let serve = configured(&scratch, config).start();
    serve.ready();
    let long = format!("vm-{}", "x".repeat(250));
    let names = [
        "vm-7",
        "vm-out",
        "vm-linked",
        "vm-..",
        "vm-../elsewhere",
        "vm-.hidden",
        "vm-",
        "vm-/",
        "vm-7/../../elsewhere",
        &long,
    ];
    let (_forward, near) = forwarding(&scratch, &names);
    assert_echoes(&connect(&near[0]), b"below");
    for (near, name) in near.iter().zip(names).skip(1) {
        assert_ends(&connect(near));
        serve.line_on_stderr("the refusal", |line| line.contains(&format!("no stream to `{name}`")));
    }
    forbidden.iter().for_each(support::echo::Accepted::assert_no_more);
    assert_echoes(&connect(&near[0]), b"and it goes on");
}

#[test]
fn every_mistake_in_a_configuration_is_told_before_anything_listens() {
    let scratch = Scratch::new();
    let config = "listen = ['unix:DIR/link', 'tcp://0.0.0.0:0']\nwindow = 'wide'\n[[target]]\nname = 'x'\n";
    let finished = configured(&scratch, config).finish(PATIENCE);
    assert!(!finished.status.success(), "{finished}");
    assert!(!scratch.join("link").exists(), "it listened");
    let file = scratch.join("config.toml");
    let checked = tool().arg("check-config").arg(&file).finish(PATIENCE);
    assert_eq!(checked.status.code(), Some(1), "{checked}");
    for (line, words) in [(1, "other hosts"), (1, "nobody is let in"), (2, "`window`"), (3, "`name` and `path`")] {
        let named = format!("{}:{line}: ", file.display());
        let told = |text: &str| text.lines().any(|line| line.contains(&named) && line.contains(words));
        assert!(told(&finished.stderr) && told(&checked.stderr), "{line}: {words}: {finished}{checked}");
    }
    fs::write(
        &file,
        "listen = ['unix:/x']\n[[target]]\nname = 'x'\npath = '/y'\n[[allow]]\nlocal = true\ntargets = ['x']\n",
    )
    .expect("written");
    tool().arg("check-config").arg(&file).succeed(PATIENCE);
    assert_fails(tool().args(["check-config", "/no/such/file"]), &["/no/such/file"]);
}

#[test]
fn plain_tcp_beyond_this_host_needs_the_administrators_word() {
    let target = ["--target", "disk=unix:/nowhere"];
    for listen in ["tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:1"] {
        let run = tool().args(["serve", "--listen", listen]).args(target);
        assert_fails(run, &[listen, "--insecure-tcp"]);
    }
    let serve = tool().args(["serve", "--listen", "tcp://0.0.0.0:0", "--insecure-tcp"]).args(target).start();
    serve.ready();
    serve.end_well(&[]);
}

/// A serve that lets nobody in but by ticket, and a way to have one.
fn by_ticket(scratch: &Scratch) -> Process {
    let config = format!(
        "listen = ['unix:DIR/link']
control = 'DIR/control'
[[target]]
name = 'disk'
path = 'DIR/far'
[[target]]
name = 'other'
path = 'DIR/far'
[[allow]]
uid = {NOBODY}
targets = ['disk']
"
    );
    echo_on(&scratch.join("far"));
    let serve = configured(scratch, &config).start();
    serve.ready();
    serve
}

fn ticket(scratch: &Scratch, valid: &str) -> PathBuf {
    let made = tool()
        .args(["ticket", "--target", "disk", "--for", valid, "--control"])
        .arg(scratch.join("control"))
        .succeed(PATIENCE);
    let file = scratch.join("ticket");
    fs::write(&file, made.stdout).expect("written");
    file
}

#[test]
fn a_ticket_lets_its_bearer_in_once_and_to_its_targets_alone() {
    let scratch = Scratch::new();
    let serve = by_ticket(&scratch);
    let ticket = ticket(&scratch, "60s");
    let [disk, other] = ["near.disk", "near.other"].map(|name| scratch.join(name));
    let with_ticket = || forward(&link(&scratch), [("disk", &*disk), ("other", &*other)]).arg("--ticket").arg(&ticket);
    let first = with_ticket().start();
    first.ready();
    assert_echoes(&connect(&disk), b"let in");
    assert_ends(&connect(&other));
    first.line_on_stderr("the refusal", |line| line.contains("no rule here lets you open `other`"));
    first.end_well(&[&disk]);
    with_ticket().finish(PATIENCE).assert_failed_saying(&["the ticket is not valid"]);
    serve.line_on_stderr("the refusal", |line| line.contains("the ticket is not valid"));
}

#[test]
fn no_ticket_is_printed_that_would_open_nothing() {
    let scratch = Scratch::new();
    let serve = by_ticket(&scratch);
    let ask = |more: &[&str]| tool().args(["ticket", "--control"]).arg(scratch.join("control")).args(more);
    assert_fails(ask(&["--target", ""]), &["no target `` is offered here"]);
    assert_fails(ask(&["--target", "disk", "--target", "nosuch"]), &["no target `nosuch` is offered here"]);
    assert_fails(ask(&["--migrate"]), &["no migration can come in here"]);
    serve.end_well(&[]);
}

#[test]
fn a_ticket_is_worth_nothing_after_its_time() {
    let scratch = Scratch::new();
    let _serve = by_ticket(&scratch);
    let begun = std::time::Instant::now();
    let ticket = ticket(&scratch, "1s");
    wait_for("its time to pass", PATIENCE, || (begun.elapsed() > Duration::from_millis(2500)).then_some(()));
    let near = scratch.join("near");
    let run = forward(&link(&scratch), [("disk", &*near)]).arg("--ticket").arg(ticket);
    run.finish(PATIENCE).assert_failed_saying(&["the ticket is not valid"]);
}

#[test]
fn what_is_no_ticket_and_a_ticket_in_the_open_are_not_said() {
    let scratch = Scratch::new();
    let file = scratch.join("ticket");
    fs::write(&file, "00ff").expect("written");
    let near = scratch.join("near");
    let run = |peer: &str| forward(peer, [("disk", &*near)]).arg("--ticket").arg(&file);
    run("unix:/nowhere").finish(PATIENCE).assert_failed_saying(&["64 hexadecimal digits"]);
    fs::write(&file, "00".repeat(32)).expect("written");
    run("tcp://192.0.2.1:1").finish(PATIENCE).assert_failed_saying(&["a ticket is not said over tcp://192.0.2.1:1"]);
}

#[test]
fn a_serve_that_judges_no_tickets_does_not_let_in_by_another_rule() {
    // A ticket that nobody made, where the loopback has a rule: it is no rule's business.
    let scratch = Scratch::new();
    let [far, near, file] = ["far", "near", "ticket"].map(|name| scratch.join(name));
    echo_on(&far);
    fs::write(&file, "00".repeat(32)).expect("written");
    let serve = serve(ANY_PORT, [("disk", &*far)]).start();
    let run = forward(&serve.ready(), [("disk", &*near)]).arg("--ticket").arg(&file);
    run.finish(PATIENCE).assert_failed_saying(&["the ticket is not valid"]);
}

#[test]
fn the_control_socket_is_its_owners_alone_and_survives_nonsense() {
    need_root("to ask as another user");
    let scratch = Scratch::new();
    let serve = by_ticket(&scratch);
    let control = scratch.join("control");
    assert_eq!(fs::metadata(&control).expect("the socket").permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&control, fs::Permissions::from_mode(0o666)).expect("changed");
    for folder in scratch.path().ancestors().take(2) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("changed");
    }
    let tool_for_all = scratch.join("tool");
    fs::copy(env!("CARGO_BIN_EXE_virbistream"), &tool_for_all).expect("copied");
    let as_nobody = Run::new("setpriv", "util-linux")
        .args(["--reuid", &NOBODY.to_string(), "--clear-groups"])
        .arg(&tool_for_all)
        .args(["ticket", "--target", "disk", "--control"])
        .arg(&control);
    as_nobody.finish(PATIENCE).assert_failed_saying(&["only who runs serve may ask here"]);
    for nonsense in
        ["", "\n", "{}\n", "{\"ticket\":{\"targets\":[],\"seconds\":1}}\n", "{\"ticket\":", &"x".repeat(100_000)]
    {
        let stream = connect(&control);
        let _ = std::io::Write::write_all(&mut &stream, nonsense.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = std::io::Read::read_to_string(&mut &stream, &mut answer);
        assert!(!answer.contains("ok"), "{nonsense}: {answer}");
    }
    ticket(&scratch, "60s");
    serve.end_well(&[&control, &scratch.join("link")]);
}

/// A byte at a time, until the other end has enough.
fn drip(path: &Path) {
    let mut stream = connect(path);
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match stream.read(&mut [0]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => return,
        }
        if stream.write_all(b" ").is_err() {
            return;
        }
    }
    panic!("it was listened to for {PATIENCE:?}");
}

#[test]
fn one_who_drips_at_the_control_socket_holds_up_nobody_and_is_not_heard_for_long() {
    let scratch = Scratch::new();
    let serve = by_ticket(&scratch);
    let control = scratch.join("control");
    thread::scope(|scope| {
        let dripping = scope.spawn(|| drip(&control));
        for _ in 0..3 {
            tool().args(["status", "--once", "--control"]).arg(&control).succeed(PATIENCE);
        }
        assert!(!dripping.is_finished(), "others waited for it");
    });
    serve.line_on_stderr("that its time was up", |line| line.contains("the control socket: the time given has passed"));
    serve.end_well(&[]);
}

#[test]
fn virsh_is_told_who_may_not_reach_libvirtd() {
    let scratch = Scratch::new();
    let libvirtd = Libvirtd::start();
    let config = format!(
        "listen = ['unix:DIR/link']\nlibvirt = 'unix:{}'\n[[target]]\nname = 'x'\npath = '/x'\n[[allow]]\nuid = {NOBODY}\nlibvirt = true\n[[allow]]\nuid = {}\ntargets = ['x']\n",
        libvirtd.socket().display(),
        uid()
    );
    let front = configured(&scratch, &config).start();
    front.ready();
    let uri = format!("test+unix:///default?socket={}", scratch.join("link").display());
    let finished = Run::new("virsh", "libvirt-clients").args(["-c", &uri, "list"]).finish(PATIENCE);
    assert!(!finished.status.success(), "{finished}");
    assert!(finished.stderr.contains(&format!("no rule here lets uid {} reach libvirtd", uid())), "{finished}");
}
