//! The library's examples, as a user would run them: with virsh, with each other, and with a real libvirtd.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use support::bytes::{Noise, allocated, noise_file};
use support::echo::{accept_on, echo_on};
use support::libvirtd::Libvirtd;
use support::process::{Finished, Process, Run};
use support::tool::tool;
use support::{PATIENCE, Scratch, wait_for};

/// An example of the library's. `cargo test --workspace` builds them, and puts them beside the tool.
#[track_caller]
fn example(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_virbistream")).with_file_name("examples").join(name);
    assert!(path.is_file(), "this test needs {}: cargo build --examples, or test the whole workspace", path.display());
    path
}

struct Daemon {
    process: Process,
    scratch: Scratch,
}

impl Daemon {
    /// With a target `there`, at a socket that is called so.
    #[track_caller]
    fn start() -> Self {
        let scratch = Scratch::new();
        let process = Run::at("daemon", &example("daemon"))
            .with_stdin()
            .arg(unix(&scratch.join("daemon")))
            .arg(format!("there={}", unix(&scratch.join("there"))))
            .start();
        process.ready();
        Self { process, scratch }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// `FILES` are those of this daemon.
    #[track_caller]
    fn virsh(&self, command: &str) -> Finished {
        let uri = format!("test+unix:///default?socket={}", self.join("daemon").display());
        let files = self.scratch.path().to_string_lossy();
        let arguments = command.split(' ').map(|word| word.replace("FILES", &files));
        Run::new("virsh", "libvirt-clients").args(["-c", &uri]).args(arguments).finish(PATIENCE)
    }

    #[track_caller]
    fn virsh_succeeds(&self, command: &str) -> String {
        let finished = self.virsh(command);
        assert!(finished.status.success(), "{command}: {finished}");
        finished.stdout
    }

    /// Its standard input ends, so it does, in order.
    #[track_caller]
    fn end(mut self) {
        self.process.close_stdin();
        let finished = self.process.finish(PATIENCE);
        assert!(finished.status.success(), "{finished}");
        assert!(!self.scratch.join("daemon").exists(), "its socket is left");
    }
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// The client at `peer`, with these files for standard input and output.
#[track_caller]
fn client(peer: &Path, target: &str, stdin: &Path, stdout: &Path) -> Run {
    Run::new("sh", "dash")
        .named("client")
        .args(["-c", "stdin=$1 stdout=$2; shift 2; exec \"$@\" <\"$stdin\" >\"$stdout\"", "sh"])
        .args([stdin, stdout, &example("client")])
        .args([&*unix(peer), target])
}

/// What the daemon draws: red grows to the right, green downwards.
fn picture() -> Vec<u8> {
    let pixels = (0..48u8).flat_map(|y| (0..64u8).flat_map(move |x| [x * 4, y * 5, 128]));
    b"P6\n64 48\n255\n".iter().copied().chain(pixels).collect()
}

#[test]
fn virsh_asks_the_daemon_and_gets_its_picture() {
    let daemon = Daemon::start();
    let version = daemon.virsh_succeeds("version --daemon");
    for line in ["Using API: EXAMPLE 9.0.0", "Running hypervisor: EXAMPLE 1.2.3", "Running against daemon: 9.0.0"] {
        assert!(version.contains(line), "{version}");
    }
    let list = daemon.virsh_succeeds("list --all");
    assert!(list.lines().any(|line| line.split_whitespace().eq(["1", "test", "running"])), "{list}");
    assert!(daemon.virsh_succeeds("capabilities").contains("<arch>x86_64</arch>"));
    let said = daemon.virsh_succeeds("screenshot test FILES/shot");
    assert!(said.contains("with type of image/x-portable-pixmap"), "{said}");
    assert_eq!(fs::read(daemon.join("shot")).expect("a picture"), picture());
    daemon.end();
}

/// As it is shown of a libvirtd that is older than virsh.
#[test]
fn virsh_shows_what_the_daemon_does_not_know_as_libvirt_has_it() {
    let daemon = Daemon::start();
    for (command, said) in [
        ("nodeinfo", "error: failed to get node information\nerror: unknown procedure: 6\n"),
        ("vol-download volume FILES/x --pool nobody", "error: Storage pool not found: no pool nobody\n"),
    ] {
        let finished = daemon.virsh(command);
        assert_eq!(finished.status.code(), Some(1), "{finished}");
        assert!(finished.stderr.ends_with(said), "{finished}");
    }
    assert!(daemon.virsh_succeeds("version").contains("EXAMPLE"), "it serves on");
    daemon.end();
}

#[test]
fn virsh_fills_the_volume_and_reads_it_back_with_holes_and_without() {
    let daemon = Daemon::start();
    noise_file(&daemon.join("up"), 3, 1);
    daemon.virsh_succeeds("vol-upload volume FILES/up --pool disks --offset 4096");
    daemon.virsh_succeeds("vol-download volume FILES/down --pool disks --offset 4096 --length 3145728");
    assert_same(&daemon.join("up"), &daemon.join("down"));

    let sparse = fs::File::create(daemon.join("sparse")).expect("a new file");
    sparse.set_len(8 << 20).expect("a sparse file");
    sparse.write_all_at(b"head", 0).expect("room");
    sparse.write_all_at(&Noise::new(2).bytes(65536), 4 << 20).expect("room");
    daemon.virsh_succeeds("vol-upload volume FILES/sparse --pool disks --sparse");
    daemon.virsh_succeeds("vol-download volume FILES/sparse-down --pool disks --sparse");
    daemon.virsh_succeeds("vol-download volume FILES/whole --pool disks");
    assert_same(&daemon.join("sparse"), &daemon.join("sparse-down"));
    assert_same(&daemon.join("sparse"), &daemon.join("whole"));
    assert!(allocated(&daemon.join("sparse-down")) < 1 << 20, "holes came as holes");

    // Beyond the volume's end.
    let beyond = daemon.virsh("vol-upload volume FILES/up --pool disks --offset 8000000");
    assert!(!beyond.status.success() && beyond.stderr.contains("No space left on device"), "{beyond}");
    daemon.end();
}

#[test]
fn virsh_makes_volumes_and_deletes_them() {
    let daemon = Daemon::start();
    daemon.virsh_succeeds("vol-create-as disks new 1M");
    let again = daemon.virsh("vol-create-as disks new 1M");
    assert!(!again.status.success() && again.stderr.contains("exists already"), "{again}");
    noise_file(&daemon.join("up"), 1, 5);
    daemon.virsh_succeeds("vol-upload new FILES/up --pool disks");
    daemon.virsh_succeeds("vol-download new FILES/down --pool disks");
    assert_same(&daemon.join("up"), &daemon.join("down"));
    daemon.virsh_succeeds("vol-delete new --pool disks");
    let gone = daemon.virsh("vol-delete new --pool disks");
    assert!(!gone.status.success() && gone.stderr.contains("Storage volume not found: no volume new"), "{gone}");
    let giant = daemon.virsh("vol-create-as disks giant 1G");
    assert!(!giant.status.success() && giant.stderr.contains("there is room for"), "{giant}");
    daemon.end();
}

/// All that real libvirt peers and BiStream's are held to.
#[test]
fn the_daemon_passes_the_whole_conformance_battery() {
    let daemon = Daemon::start();
    echo_on(&daemon.join("there"));
    let uri = format!("test+unix:///default?socket={}", daemon.join("daemon").display());
    let run = tool().args(["conformance", &uri, "--pool", "disks", "--target", "there"]).succeed(PATIENCE);
    let listed = tool().args(["conformance", "--list"]).succeed(PATIENCE);
    let passed = run.stdout.lines().filter(|line| line.starts_with("ok ") && !line.contains("# SKIP")).count();
    // But for what a legacy peer is asked.
    assert_eq!(passed, listed.stdout.lines().count() - 1, "{run}");
    daemon.end();
}

#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    Run::new("cmp", "diffutils").args([one, other]).succeed(PATIENCE);
}

#[test]
fn the_client_moves_bytes_to_a_target_and_back_and_calls_beside_them() {
    let daemon = Daemon::start();
    echo_on(&daemon.join("there"));
    noise_file(&daemon.join("to"), 32, 3);
    let client = client(&daemon.join("daemon"), "there", &daemon.join("to"), &daemon.join("from")).succeed(PATIENCE);
    assert_same(&daemon.join("to"), &daemon.join("from"));
    for line in ["the peer speaks BiStream 1", "version 1.2.3"] {
        assert!(client.stderr.lines().any(|said| said == line), "{client}");
    }
    daemon.end();
}

#[test]
fn the_client_fails_when_not_all_could_be_read_or_written() {
    let daemon = Daemon::start();
    echo_on(&daemon.join("there"));
    noise_file(&daemon.join("to"), 1, 3);
    let unread = client(&daemon.join("daemon"), "there", daemon.scratch.path(), Path::new("/dev/null"));
    unread.finish(PATIENCE).assert_failed_saying(&["standard input", "directory"]);
    let unwritten = client(&daemon.join("daemon"), "there", &daemon.join("to"), Path::new("/dev/full"));
    unwritten.finish(PATIENCE).assert_failed_saying(&["standard output", "No space left"]);
    daemon.end();
}

#[test]
fn the_client_says_which_target_there_is_not() {
    let daemon = Daemon::start();
    let refused = client(&daemon.join("daemon"), "nowhere", Path::new("/dev/null"), Path::new("/dev/null"));
    refused.finish(PATIENCE).assert_failed_saying(&["refused", "nowhere"]);
    daemon.end();
}

#[test]
fn virsh_works_beside_a_stream_at_full_rate() {
    let daemon = Daemon::start();
    let there = accept_on(&daemon.join("there"));
    let mut client = client(&daemon.join("daemon"), "there", Path::new("/dev/zero"), Path::new("/dev/null")).start();
    let (mut stream, moved) = (there.next(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&moved);
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        // Until the client is gone.
        while let Ok(len @ 1..) = stream.read(&mut bytes)
            && stream.write_all(&bytes[..len]).is_ok()
        {
            count.fetch_add(len as u64, Ordering::Relaxed);
        }
    });
    noise_file(&daemon.join("up"), 8, 4);
    for round in 0..3 {
        let before = moved.load(Ordering::Relaxed);
        daemon.virsh_succeeds("screenshot test FILES/shot");
        assert_eq!(fs::read(daemon.join("shot")).expect("a picture"), picture());
        daemon.virsh_succeeds("vol-upload volume FILES/up --pool disks");
        daemon.virsh_succeeds("vol-download volume FILES/down --pool disks");
        assert_same(&daemon.join("up"), &daemon.join("down"));
        wait_for(&format!("bytes of the stream in round {round}"), PATIENCE, || {
            (moved.load(Ordering::Relaxed) > before + (1 << 20)).then_some(())
        });
        client.assert_alive();
    }
    drop(client);
    daemon.end();
}

#[test]
fn the_client_falls_back_to_calls_with_a_real_libvirtd() {
    let libvirtd = Libvirtd::start();
    let none = Path::new("/dev/null");
    let client = client(&libvirtd.socket(), "there", none, none).finish(PATIENCE);
    // The version is that of libvirt's test driver.
    let said = "the peer does not know BiStream: error 39, unknown procedure: 1112735745\nversion 0.0.2\n\
                client: nothing went to there\n";
    assert_eq!((client.status.code(), &*client.stderr), (Some(1), said), "{client}");
    assert!(libvirtd.virsh(&["pool-list"]).contains("disks"), "it serves on");
}
