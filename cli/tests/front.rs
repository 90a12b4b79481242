//! `serve --libvirt`: virsh does not notice what stands between it and a real libvirtd.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use support::libvirtd::Libvirtd;
use support::machine;
use support::process::{Process, Run};
use support::tool::{assert_fails, forward, tool};
use support::{PATIENCE, Scratch, alone, wait_for};

/// The tool in front of a libvirtd, with a target beside it.
fn front(scratch: &Scratch, libvirtd: &Path) -> Process {
    let front = tool()
        .named("virbistream serve --libvirt")
        .args(["serve", "-v", "--listen"])
        .arg(format!("unix:{}", scratch.join("front").display()))
        .arg("--libvirt")
        .arg(format!("unix:{}", libvirtd.display()))
        .arg("--target")
        .arg(format!("bulk=unix:{}", scratch.join("bulk").display()))
        .start();
    front.ready();
    front
}

/// What virsh says and how it ends, with the names of this run taken out; `files` are where it puts what it downloads.
fn virsh(driver: &str, socket: &Path, files: &Path, command: &str) -> (bool, String) {
    let uri = format!("{driver}?socket={}", socket.display());
    let arguments = command.split(' ').map(|word| word.replace("FILES", &files.to_string_lossy()));
    let finished = Run::new("virsh", "libvirt-clients").args(["-c", &uri]).args(arguments).finish(PATIENCE);
    let said = format!("{}{}", finished.stdout, finished.stderr);
    let said = said.replace(&*files.to_string_lossy(), "FILES").replace(&*socket.to_string_lossy(), "SOCKET");
    (finished.status.success(), said)
}

/// The files that the commands need, and get.
fn files(scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let files = scratch.join(name);
    fs::create_dir(&files).expect("a new directory");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(files.join("up"), &bytes).expect("written");
    let sparse = fs::File::create(files.join("sparse")).expect("a new file");
    sparse.set_len(8 << 20).expect("room");
    sparse.write_all_at(b"head", 0).expect("written");
    sparse.write_all_at(&bytes[..65536], 4 << 20).expect("written");
    files
}

const COMMANDS: [(&str, &str); 17] = [
    ("test+unix:///default", "list --all"),
    ("test+unix:///default", "screenshot test FILES/shot"),
    ("test+unix:///default", "console test"),
    ("qemu+unix:///system", "version"),
    ("qemu+unix:///system", "vol-create-as disks v1 8M --format raw"),
    ("qemu+unix:///system", "vol-upload v1 FILES/up --pool disks"),
    ("qemu+unix:///system", "vol-download v1 FILES/down --pool disks"),
    ("qemu+unix:///system", "vol-upload v1 FILES/up --pool disks --offset 4096 --length 100000"),
    ("qemu+unix:///system", "vol-download v1 FILES/part --pool disks --offset 4096 --length 100000"),
    // Beyond the volume's end, which grows; and beyond the length asked for, which fails.
    ("qemu+unix:///system", "vol-upload v1 FILES/sparse --pool disks --offset 4194304"),
    ("qemu+unix:///system", "vol-upload v1 FILES/up --pool disks --length 4096"),
    ("qemu+unix:///system", "vol-download v1 FILES/x --pool disks --offset 99999999"),
    ("qemu+unix:///system", "vol-create-as disks v2 8M --format raw --allocation 0"),
    ("qemu+unix:///system", "vol-upload v2 FILES/sparse --pool disks --sparse"),
    ("qemu+unix:///system", "vol-download v2 FILES/sparse-down --pool disks --sparse"),
    ("qemu+unix:///system", "vol-download v2 FILES/no/such/file --pool disks"),
    ("qemu+unix:///system", "dominfo nobody"),
];

/// A stream of BiStream's at full rate, and how many bytes have come out of it.
struct Bulk {
    _forward: Process,
    moved: Arc<AtomicU64>,
}

impl Bulk {
    /// It goes on.
    #[track_caller]
    fn assert_moves(&self) {
        let before = self.moved.load(Ordering::Relaxed);
        wait_for("bytes of the stream", PATIENCE, || {
            (self.moved.load(Ordering::Relaxed) > before + (1 << 20)).then_some(())
        });
    }
}

/// Pumps bytes until what it gives is dropped.
fn bulk(scratch: &Scratch) -> Bulk {
    let listener = UnixListener::bind(scratch.join("bulk")).expect("a new socket");
    let near = scratch.join("near");
    let forward = forward(&format!("unix:{}", scratch.join("front").display()), [("bulk", &*near)]).start();
    forward.ready();
    let mut source = UnixStream::connect(near).expect("forward listens");
    let (mut sink, _) = listener.accept().expect("a connection");
    thread::spawn(move || {
        let bytes = vec![7; 1 << 20];
        while source.write_all(&bytes).is_ok() {}
    });
    let moved = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&moved);
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while let Ok(len @ 1..) = sink.read(&mut bytes) {
            count.fetch_add(len as u64, Ordering::Relaxed);
        }
    });
    Bulk { _forward: forward, moved }
}

#[test]
fn virsh_says_the_same_and_moves_the_same_bytes_beside_streams_at_full_rate() {
    let _alone = alone();
    let (libvirtd, scratch) = (Libvirtd::start(), Scratch::new());
    let direct = files(&scratch, "direct");
    let through = files(&scratch, "through");
    let front = front(&scratch, &libvirtd.socket());
    // libvirtd looks at its QEMU when it is first asked. Beside a load, Linux may leave that one without a processor for minutes.
    virsh("qemu+unix:///system", &libvirtd.socket(), &direct, "version");
    let bulk = bulk(&scratch);
    for (driver, command) in COMMANDS {
        let expected = virsh(driver, &libvirtd.socket(), &direct, command);
        if command.starts_with("vol-create-as") {
            // There is one pool: the volume is made anew.
            let name = command.split(' ').nth(2).expect("a name");
            libvirtd.virsh(&["vol-delete", name, "--pool", "disks"]);
        }
        assert_eq!(virsh(driver, &scratch.join("front"), &through, command), expected, "{command}");
        bulk.assert_moves();
    }
    for name in ["shot", "down", "part", "sparse-down"] {
        let [direct, through] = [&direct, &through].map(|files| fs::read(files.join(name)).expect(name));
        assert!(direct == through, "{name} differs");
    }
    assert!(fs::read(direct.join("sparse-down")).unwrap() == fs::read(direct.join("sparse")).unwrap());
    // A client that waits for an event through the front is told of it, and nothing is left behind.
    let uri = format!("test+unix:///default?socket={}", scratch.join("front").display());
    let event =
        Run::new("virsh", "libvirt-clients").args(["-c", &uri, "event", "--event", "lifecycle", "--loop"]).start();
    // When it has asked for events cannot be seen: the domain comes and goes until it says so.
    wait_for("an event", PATIENCE, || {
        for command in ["suspend test", "resume test"] {
            virsh("test+unix:///default", &scratch.join("front"), &through, command);
        }
        (event.stdout.count(|line| line.contains("lifecycle")) > 0).then_some(())
    });
    drop(event);
    drop(bulk);
    front.end_well(&[&scratch.join("front")]);
}

/// Talks to the machine's serial port as a user does, and leaves.
#[track_caller]
fn talk(uri: &str) {
    let command = format!("virsh -c '{uri}' console echo && echo left");
    let mut console = Run::new("script", "bsdutils").with_stdin().args(["-qec", &command, "/dev/null"]).start();
    console.line_on_stdout("the console", |line| line.contains("Escape character"));
    let mut asked_at = None::<Instant>;
    wait_for("the machine's answer", PATIENCE, || {
        // Until its program runs, nobody answers: it is asked again, but not so often that it could not take it all.
        if asked_at.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            asked_at = Some(Instant::now());
            console.say(machine::ASKED).expect("virsh reads");
        }
        (console.stdout.count(|line| line.contains(machine::ANSWER)) > 0).then_some(())
    });
    // The key that leaves counts when it comes alone, so it is pressed until it has.
    wait_for("virsh to leave", PATIENCE, || {
        let has_left = console.stdout.count(|line| line.ends_with("left")) > 0;
        // The terminal ends soon after virsh.
        let _ = console.say(b"\x1d");
        has_left.then_some(())
    });
    console.close_stdin();
    let finished = console.finish(PATIENCE);
    assert!(finished.status.success(), "{finished}");
}

#[test]
fn a_running_machine_shows_its_screen_and_answers_on_its_console_through_the_front() {
    let _alone = alone();
    let (libvirtd, scratch) = (Libvirtd::start(), Scratch::new());
    let front = front(&scratch, &libvirtd.socket());
    machine::start(&libvirtd);
    let bulk = bulk(&scratch);
    talk(&format!("qemu+unix:///system?socket={}", scratch.join("front").display()));
    talk(&libvirtd.uri());
    let shots = [("direct", libvirtd.socket()), ("through", scratch.join("front"))].map(|(name, socket)| {
        let (ended_well, said) =
            virsh("qemu+unix:///system", &socket, scratch.path(), &format!("screenshot echo FILES/{name}"));
        assert!(ended_well, "{said}");
        fs::read(scratch.join(name)).expect("a screenshot")
    });
    assert!(shots[0] == shots[1] && !shots[0].is_empty(), "{} and {} bytes", shots[0].len(), shots[1].len());
    drop(bulk);
    front.end_well(&[&scratch.join("front")]);
}

#[test]
fn libvirtd_that_goes_takes_its_clients_along_and_the_next_serves_again() {
    let _alone = alone();
    let scratch = Scratch::new();
    let socket = scratch.join("libvirt-sock");
    let front = front(&scratch, &socket);
    // Nobody is there: virsh is told what it is told of a libvirtd that closes the connection.
    let (ended_well, said) = virsh("qemu+unix:///system", &scratch.join("front"), scratch.path(), "version");
    assert!(!ended_well && said.contains("failed to connect to the hypervisor"), "{said}");
    let first = Libvirtd::start();
    std::os::unix::fs::symlink(first.socket(), &socket).expect("a new link");
    let events = Run::new("virsh", "libvirt-clients")
        .args(["-c", &format!("test+unix:///default?socket={}", scratch.join("front").display())])
        .args(["event", "--event", "lifecycle", "--loop"])
        .start();
    // It waits for events when it has told of one.
    wait_for("an event", PATIENCE, || {
        for command in ["suspend test", "resume test"] {
            virsh("test+unix:///default", &scratch.join("front"), scratch.path(), command);
        }
        (events.stdout.count(|line| line.contains("lifecycle")) > 0).then_some(())
    });
    let (ended_well, said) = virsh("test+unix:///default", &scratch.join("front"), scratch.path(), "list");
    assert!(ended_well && said.contains("test"), "{said}");
    drop(first);
    let finished = events.finish(PATIENCE);
    assert!(!finished.status.success(), "{finished}");
    fs::remove_file(&socket).expect("removed");
    let second = Libvirtd::start();
    std::os::unix::fs::symlink(second.socket(), &socket).expect("a new link");
    let (ended_well, said) = virsh("qemu+unix:///system", &scratch.join("front"), scratch.path(), "pool-list");
    assert!(ended_well && said.contains("disks"), "{said}");
    front.end_well(&[&scratch.join("front")]);
}

#[test]
fn a_stream_under_way_fails_with_its_libvirtd_and_no_other() {
    let _alone = alone();
    let (libvirtd, scratch) = (Libvirtd::start(), Scratch::new());
    let front = front(&scratch, &libvirtd.socket());
    let bulk = bulk(&scratch);
    libvirtd.virsh(&["vol-create-as", "disks", "v", "8M", "--format", "raw"]);
    let source = scratch.join("source");
    rustix::fs::mknodat(rustix::fs::CWD, &source, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .expect("a new pipe");
    let uri = format!("qemu+unix:///system?socket={}", scratch.join("front").display());
    let upload = Run::new("virsh", "libvirt-clients")
        .args(["-c", &uri, "vol-upload", "v"])
        .arg(&source)
        .args(["--pool", "disks"])
        .start();
    let mut source = fs::File::create(source).expect("virsh reads it");
    source.write_all(&[7; 1 << 20]).expect("virsh reads it");
    let volume = fs::File::open(libvirtd.disk("v")).expect("the volume");
    let mut first = [0];
    wait_for("what is uploaded", PATIENCE, || volume.read_exact_at(&mut first, 0).ok().filter(|()| first == [7]));
    drop(libvirtd);
    drop(source);
    let finished = upload.finish(PATIENCE);
    // By what it says, or by SIGPIPE when it was about to send.
    assert!(!finished.status.success(), "{finished}");
    bulk.assert_moves();
    drop(bulk);
    front.line_on_stderr("the stream's end", |line| line.contains("`bulk`") && !line.ends_with("`bulk`"));
    front.end_well(&[&scratch.join("front")]);
}

#[test]
fn a_front_is_for_those_who_may_reach_libvirtd_and_nobody_else() {
    let scratch = Scratch::new();
    let serve = |listen: &str, more: &[&str]| {
        tool().args(["serve", "--listen", listen, "--libvirt", "unix:/run/libvirt/libvirt-sock"]).args(more)
    };
    let path = format!("unix:{}", scratch.join("front").display());
    assert_fails_at_once(serve("tcp://127.0.0.1:0", &[]), "only UNIX sockets");
    assert_fails_at_once(serve(&path, &["--socket-mode", "0660"]), "0600");
    assert_fails_at_once(serve(&path, &["--socket-owner", "nobody"]), "of the user that runs serve");
    let front = serve(&path, &[]).start();
    front.ready();
    let mode = fs::metadata(scratch.join("front")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    front.end_well(&[&scratch.join("front")]);
    assert_fails(
        tool()
            .args(["serve", "--listen", &format!("unix:{}", scratch.join("no/such").display())])
            .args(["--libvirt", &path]),
        &["cannot listen on"],
    );
}

#[track_caller]
fn assert_fails_at_once(run: Run, words: &str) {
    let finished = run.finish(PATIENCE);
    assert_eq!(finished.status.code(), Some(2), "{finished}");
    assert!(finished.stderr.contains(words), "{finished}");
}
