//! What the tool says to its user, and what it makes of the command line and the sockets named there.

mod support;

use rustix::process::Signal;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use support::echo::{assert_echoes, connect, echo_on};
use support::tool::{ANY_PORT, Ends, assert_fails, forward, serve, tool};
use support::{PATIENCE, Scratch};

#[test]
fn version_and_help_are_on_stdout() {
    let version = tool().arg("--version").succeed(PATIENCE);
    assert_eq!(version.stdout.trim(), concat!("virbistream ", env!("CARGO_PKG_VERSION")));
    let help = tool().arg("--help").succeed(PATIENCE);
    for word in ["serve", "check-config", "ticket", "forward", "demo", "probe", "conformance"] {
        assert!(help.stdout.contains(word), "{help}");
    }
    for (subcommand, words) in [
        ("serve", &["--listen", "--target"][..]),
        ("forward", &["--peer", "--socket", "--socket-mode", "--socket-owner", "--reconnect"]),
    ] {
        let help = tool().args([subcommand, "--help"]).succeed(PATIENCE);
        for word in words {
            assert!(help.stdout.contains(word), "{help}");
        }
    }
}

#[test]
fn a_command_line_that_lacks_something_is_refused_with_its_usage() {
    let target = "disk=unix:/nowhere";
    for (arguments, missing) in [
        (&["serve", "--listen", ANY_PORT][..], "--target"),
        (&["serve", "--target", target], "--listen"),
        (&["check-config"], "<FILE>"),
        (&["ticket", "--control", "/nowhere"], "--target"),
        (&["forward", "--peer", "tcp://127.0.0.1:1"], "--socket"),
        (&["forward", "--socket", "disk=/nowhere"], "--peer"),
    ] {
        let finished = tool().args(arguments).finish(PATIENCE);
        assert_eq!(finished.status.code(), Some(2), "{finished}");
        assert!(finished.stderr.contains(missing), "{finished}");
        assert!(finished.stderr.contains("Usage:"), "{finished}");
        assert_eq!(finished.stdout, "", "{finished}");
    }
}

#[test]
fn an_argument_that_means_nothing_is_refused_and_named() {
    for (arguments, named) in [
        (&["serve", "--listen", "127.0.0.1", "--target", "disk=unix:/nowhere"][..], "127.0.0.1"),
        (&["serve", "--listen", "tcp://127.0.0.1:70000", "--target", "disk=unix:/nowhere"], "70000"),
        (&["serve", "--listen", ANY_PORT, "--target", "unix:/nowhere"], "unix:/nowhere"),
        (&["serve", "--listen", ANY_PORT, "--target", "=unix:/nowhere"], "=unix:/nowhere"),
        (&["serve", "--listen", ANY_PORT, "--target", "disk=tcp://127.0.0.1:1"], "disk=tcp://127.0.0.1:1"),
        (&["serve", "--listen", ANY_PORT, "--config", "/nowhere"], "--config"),
        (&["serve", "--listen", ANY_PORT, "--target", "disk=unix:/nowhere", "--bandwidth", "0"], "more than 0"),
        (&["serve", "--listen", ANY_PORT, "--target", "disk=unix:/nowhere", "--window-max", "1KiB"], "4096"),
        (&["ticket", "--control", "/nowhere", "--target", "x", "--for", "25h"], "25h"),
        (&["ticket", "--control", "/nowhere", "--target", "x", "--for", "60"], "60"),
        (&["forward", "--peer", "tcp://127.0.0.1:1", "--socket", "/nowhere"], "/nowhere"),
        (&["forward", "--peer", "tcp://127.0.0.1:1", "--socket", "disk=/x", "--socket-mode", "999"], "999"),
        (&["forward", "--peer", "tcp://127.0.0.1:1", "--socket", "disk=/x", "--socket-owner", "no-such"], "no-such"),
    ] {
        assert_refused(arguments, &[named]);
    }
}

#[test]
fn a_limit_that_makes_no_sense_is_refused_and_named() {
    let serve = ["serve", "--listen", ANY_PORT, "--target", "disk=unix:/nowhere"];
    let forward = ["forward", "--peer", "tcp://127.0.0.1:1", "--socket", "disk=/nowhere"];
    let name = format!("{}=unix:/nowhere", "x".repeat(256));
    for (limits, words) in [
        (&["--window", "2GiB", "--memory", "1GiB"][..], &["--window 2.0 GiB", "--memory 1.0 GiB"][..]),
        (&["--window", "3GiB"], &["--window", "--memory"]),
        (&["--window", "4095"], &["--window", "4096"]),
        (&["--window", "-1"], &["-1"]),
        (&["--drain", "18446744073709551615"], &["--drain", "31536000"]),
        (&["--socket-owner", "4294967295"], &["4294967295"]),
        (&["-vv"], &["--verbose"]),
    ] {
        for command in [serve, forward] {
            assert_refused(&[&command, limits].concat(), words);
        }
    }
    assert_refused(&[&serve[..], &["--max-streams", "0"]].concat(), &["--max-streams 0"]);
    assert_refused(&[&serve[..], &["--threads", "0"]].concat(), &["--threads", "1024"]);
    assert_refused(&[&serve[..], &["--threads", "1025"]].concat(), &["--threads", "1024"]);
    assert_refused(&[&forward[..], &["--priority", "disk=4"]].concat(), &["disk=4", "0 to 3"]);
    assert_refused(&[&forward[..], &["--priority", "memory=1"]].concat(), &["memory", "--socket"]);
    assert_refused(&[&forward[..], &["--priority", "disk=1", "--priority", "disk=2"]].concat(), &["twice", "disk"]);
    assert_refused(
        &[&forward[..], &["--kind", "disk=tape"]].concat(),
        &["disk=tape", "bytes, control, memory and disk"],
    );
    assert_refused(&[&forward[..], &["--kind", "memory=disk"]].concat(), &["--kind memory", "--socket"]);
    assert_refused(&[&forward[..], &["--kind", "disk=disk", "--kind", "disk=disk"]].concat(), &["--kind", "twice"]);
    assert_refused(&[&serve[..], &["--max-sessions", "0"]].concat(), &["--max-sessions"]);
    let consent = "--insecure-tcp goes with a tcp:// address beyond the loopback";
    assert_refused(&[&serve[..], &["--insecure-tcp"]].concat(), &[consent]);
    for (listen, more) in [
        ("tls://[::]:1", &["--allow-dn", "CN=admin", "--libvirt", "unix:/nowhere"][..]),
        ("unix:/nowhere", &["--libvirt", "unix:/nowhere"]),
        ("unix:/nowhere", &["--libvirt", "unix:/nowhere", "--migrations", "/nowhere"]),
        ("tls://[::]:1", &["--allow-dn", "CN=admin", "--target", "disk=unix:/nowhere"]),
    ] {
        assert_refused(&[&["serve", "--listen", listen, "--insecure-tcp"], more].concat(), &[consent]);
    }
    assert_refused(&[&serve[..], &["--target", &name]].concat(), &["255"]);
    assert_refused(&["demo", "--size", "18446744073709551615"], &["--size", "1048576"]);
    assert_refused(&["demo", "--disks", "65535"], &["--disks", "64"]);
}

#[test]
fn the_extreme_limits_that_are_taken_work() {
    const HIGHEST: [&str; 8] =
        ["--window", "16EiB", "--memory", "16EiB", "--max-streams", "4294967295", "--drain", "31536000"];
    const LOWEST: [&str; 4] = ["--window", "4KiB", "--memory", "4KiB"];
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    echo_on(&far);
    for (serving, forwarding) in
        [(&HIGHEST[..], &HIGHEST[..]), (&LOWEST, &[&LOWEST[..], &["--max-streams", "0"]].concat())]
    {
        let serve = quiet_serve(ANY_PORT, &far).args(serving).start();
        let forward = quiet_forward(&serve.ready(), &near).args(forwarding).start();
        forward.ready();
        assert_echoes(&connect(&near), &[7; 10_000]);
        forward.end_well(&[&near]);
        serve.end_well(&[]);
    }
}

#[test]
fn two_targets_of_one_name_are_refused() {
    let (one, two) = (Path::new("/nowhere/1"), Path::new("/nowhere/2"));
    assert_fails(serve(ANY_PORT, [("disk", one), ("disk", two)]), &["disk"]);
}

#[test]
fn ready_is_the_only_line_on_stdout_and_serve_adds_the_port_it_chose() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let serve = serve(ANY_PORT, [("disk", &*far)]).start();
    let peer = serve.ready();
    let port = peer.strip_prefix("tcp://127.0.0.1:").and_then(|port| port.parse::<u16>().ok());
    assert!(port.is_some_and(|port| port != 0), "ready {peer}");
    let forward = forward(&peer, [("disk", &*near)]).start();
    forward.ready();
    let forward = forward.end_well(&[&near]);
    assert_eq!(forward.stdout, "ready\n");
    let serve = serve.end_well(&[]);
    assert_eq!(serve.stdout, format!("ready {peer}\n"));
}

#[test]
fn without_v_nothing_is_said_on_stderr_while_all_is_well() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    echo_on(&far);
    let serve = tool().args(["serve", "--listen", ANY_PORT]);
    let serve = serve.arg("--target").arg(format!("echo=unix:{}", far.display())).start();
    let forward = tool().args(["forward", "--peer", &serve.ready()]);
    let forward = forward.arg("--socket").arg(format!("echo={}", near.display())).start();
    forward.ready();
    assert_echoes(&connect(&near), b"quiet");
    assert_eq!(forward.end_well(&[&near]).stderr, "");
    assert_eq!(serve.end_well(&[]).stderr, "");
}

#[test]
fn forward_is_ready_only_when_its_sockets_lead_somewhere() {
    let scratch = Scratch::new();
    echo_on(&scratch.join("far.echo"));
    // Every connection made as soon as the word is said works: ten of ten.
    for _ in 0..10 {
        let ends = Ends::start(&scratch, &["echo"]);
        assert_echoes(&connect(&scratch.join("near.echo")), b"at once");
        ends.end();
    }
}

#[test]
fn a_link_can_be_a_unix_socket_which_goes_with_serve() {
    let scratch = Scratch::new();
    echo_on(&scratch.join("far.echo"));
    for form in ["unix://", "unix:"] {
        let link = scratch.join("link");
        let ends = Ends::start_on(&format!("{form}{}", link.display()), &scratch, &["echo"]);
        assert_echoes(&connect(&scratch.join("near.echo")), b"through a link without TCP");
        ends.end();
        assert!(!link.exists());
    }
}

#[test]
fn several_addresses_are_listened_on_at_once() {
    let scratch = Scratch::new();
    let (far, link) = (scratch.join("far"), scratch.join("link"));
    echo_on(&far);
    let serve = serve(ANY_PORT, [("echo", &*far)]).arg("--listen").arg(format!("unix:{}", link.display())).start();
    let ready = serve.ready();
    let addresses: Vec<&str> = ready.split(' ').collect();
    assert_eq!(addresses.len(), 2, "ready {ready}");
    for address in addresses {
        let near = scratch.join("near");
        let forward = forward(address, [("echo", &*near)]).start();
        forward.ready();
        assert_echoes(&connect(&near), address.as_bytes());
        forward.end_well(&[&near]);
    }
    serve.end_well(&[&link]);
}

#[test]
fn an_address_in_use_is_refused() {
    let scratch = Scratch::new();
    let far = scratch.join("far");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = format!("tcp://{}", listener.local_addr().expect("its address"));
    assert_fails(quiet_serve(&taken, &far), &[&taken, "in use"]);
}

#[test]
fn a_socket_that_somebody_listens_on_is_left_to_them() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let listener = UnixListener::bind(&near).expect("a new socket");
    listener.set_nonblocking(true).expect("an open socket");
    let serve = quiet_serve(ANY_PORT, &far).start();
    let path = near.to_str().expect("a plain path");
    assert_fails(quiet_forward(&serve.ready(), &near), &[path, "listen"]);
    assert_fails(quiet_serve(&format!("unix:{path}"), &far), &[path, "listen"]);
    UnixStream::connect(&near).expect("the listener that was there");
    serve.end_well(&[]);
}

#[test]
fn a_socket_file_left_by_a_dead_process_is_replaced() {
    let scratch = Scratch::new();
    echo_on(&scratch.join("far.echo"));
    let near = scratch.join("near.echo");
    drop(UnixListener::bind(&near).expect("a new socket"));
    assert!(near.exists(), "a stale socket file to begin with");
    let ends = Ends::start(&scratch, &["echo"]);
    assert_echoes(&connect(&near), b"in its place");
    ends.end();
}

#[test]
fn a_file_that_is_no_socket_is_never_replaced() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    std::fs::write(&near, "precious").expect("a new file");
    let serve = quiet_serve(ANY_PORT, &far).start();
    assert_fails(quiet_forward(&serve.ready(), &near), &[near.to_str().expect("a plain path"), "no socket"]);
    assert_eq!(std::fs::read_to_string(&near).expect("the file"), "precious");
    serve.end_well(&[]);
}

#[test]
fn a_path_longer_than_a_socket_can_have_is_refused_with_the_limit() {
    let scratch = Scratch::new();
    let base = format!("{}/", scratch.path().display());
    let path = |length: usize| format!("{base}{}", "x".repeat(length - base.len()));
    let far = scratch.join("far");
    echo_on(&far);
    let serve = quiet_serve(ANY_PORT, &far).start();
    let peer = serve.ready();
    let longest = path(107);
    let forward = quiet_forward(&peer, Path::new(&longest)).start();
    forward.ready();
    assert_echoes(&connect(Path::new(&longest)), b"107 bytes");
    forward.end_well(&[Path::new(&longest)]);
    let too_long = path(108);
    for run in [
        quiet_forward(&peer, Path::new(&too_long)),
        quiet_serve(ANY_PORT, Path::new(&too_long)),
        quiet_serve(&format!("unix:{too_long}"), &far),
    ] {
        let finished = run.finish(PATIENCE);
        assert!(!finished.status.success(), "{finished}");
        assert!(finished.stderr.contains("107"), "{finished}");
        assert!(!Path::new(&too_long).exists());
    }
    serve.end_well(&[]);
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("none/near"), scratch.join("far"));
    let serve = quiet_serve(ANY_PORT, &far).start();
    let path = near.to_str().expect("a plain path");
    assert_fails(quiet_forward(&serve.ready(), &near), &[path, "No such file"]);
    serve.end_well(&[]);
}

#[test]
fn sockets_have_the_mode_and_the_owner_asked_for() {
    support::need_root("give files to another user");
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let serve = quiet_serve(ANY_PORT, &far).start();
    for (owner, user, group) in [("daemon:sys", 1, 3), ("12:34", 12, 34), ("daemon", 1, 0)] {
        let forward = quiet_forward(&serve.ready(), &near);
        let forward = forward.args(["--socket-mode", "0640", "--socket-owner", owner]).start();
        forward.ready();
        let meta = std::fs::metadata(&near).expect("the socket");
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o640);
        assert_eq!((meta.uid(), meta.gid()), (user, group), "{owner}");
        forward.end_well(&[&near]);
    }
    serve.end_well(&[]);
}

#[test]
fn sigterm_and_sigint_end_both_ends_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let scratch = Scratch::new();
        let ends = Ends::start(&scratch, &["a", "b"]);
        for end in [ends.forward, ends.serve] {
            end.signal(signal);
            let finished = end.finish(PATIENCE);
            assert!(finished.status.success(), "{finished}");
        }
        let left: Vec<_> = std::fs::read_dir(scratch.path()).expect("the directory").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// `serve` without -v, with a target `disk` at `far`.
fn quiet_serve(listen: &str, far: &Path) -> support::process::Run {
    tool().args(["serve", "--listen", listen, "--target"]).arg(format!("disk=unix:{}", far.display()))
}

/// `forward` without -v of `near` to the target `disk`.
fn quiet_forward(peer: &str, near: &Path) -> support::process::Run {
    tool().args(["forward", "--peer", peer, "--socket"]).arg(format!("disk={}", near.display()))
}

/// The command line is refused with a sentence that has all the words.
#[track_caller]
fn assert_refused(arguments: &[&str], words: &[&str]) {
    let finished = tool().args(arguments).finish(PATIENCE);
    assert_eq!(finished.status.code(), Some(2), "{finished}");
    let sentence = finished.stderr.lines().next().unwrap_or_default();
    for word in words {
        assert!(sentence.contains(word), "no {word:?}: {finished}");
    }
}
