//! Man pages, completions, units and the Debian package: made, installed into a fresh Debian, used there, and removed.

#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use pki::Authority;
use rustix::process::{Signal, kill_process};
use support::echo::{assert_echoes, connect, echo_on};
use support::host::{Host, first_child};
use support::process::{Finished, Process, Run};
use support::tool::{forward, tool};
use support::{PATIENCE, Scratch, need, need_root, wait_for};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");

/// Those that `--help` shows.
fn subcommands() -> Vec<String> {
    let help = tool().arg("--help").succeed(PATIENCE).stdout;
    let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list of commands");
    let is_entry = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let names = list.lines().filter(is_entry).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_subcommand_has_a_man_page_and_is_completed() {
    let scratch = Scratch::new();
    tool().arg("generate").arg(scratch.path()).succeed(PATIENCE);
    let read = |file: &str| fs::read_to_string(scratch.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let bash = read("bash-completion/completions/virbistream");
    let (zsh, fish) = (read("zsh/vendor-completions/_virbistream"), read("fish/vendor_completions.d/virbistream.fish"));
    let commands = subcommands();
    assert!(commands.len() >= 7 && !commands.contains(&"generate".to_owned()), "{commands:?}");
    for command in &commands {
        let page = read(&format!("man/man1/virbistream-{command}.1"));
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"] {
            let heading =
                |line: &str| line.strip_prefix(".SH ").is_some_and(|title| title.trim_matches('"') == section);
            assert!(page.lines().any(heading), "virbistream-{command}.1 has no section {section}:\n{page}");
        }
        for (shell, text) in [("bash", &bash), ("zsh", &zsh), ("fish", &fish)] {
            assert!(text.contains(command), "{shell} does not complete {command}");
        }
    }
    let of_migrate = read("man/man1/virbistream-migrate.1");
    for words in ["nothing was begun", "it was cancelled", "the guest is not where it was"] {
        assert!(of_migrate.contains(words), "{words}: {of_migrate}");
    }
    let pages = fs::read_dir(scratch.join("man/man1")).expect("pages").count();
    assert_eq!(pages, commands.len() + 1, "a page for each command, and one for all");
    assert!(!bash.contains("generate"), "what is hidden is completed");
}

/// Whether the configuration is right, but for the certificates that its reader has to make.
fn is_without_certificates(checked: &Finished) -> bool {
    checked.stderr.lines().count() == 1 && checked.stderr.contains("cannot read /etc/pki/CA/cacert.pem")
}

#[test]
fn the_example_of_a_configuration_is_right_and_lets_nobody_in_yet() {
    let checked = tool().arg("check-config").arg(format!("{PACKAGING}/serve.toml")).finish(PATIENCE);
    // This host may have no certificates.
    assert!(checked.status.success() || is_without_certificates(&checked), "{checked}");
    let text = fs::read_to_string(format!("{PACKAGING}/serve.toml")).expect("the example");
    let rules: Vec<_> = text.lines().filter(|line| line.starts_with("dn =") || line.starts_with("[[allow]]")).collect();
    assert_eq!(rules, ["[[allow]]", "dn = \"O=virbistream-example,CN=source.example\""]);
}

/// The calls that a filter of systemd's names, with those of the groups in it.
fn in_filter(names: &str) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for name in names.split_whitespace() {
        if !name.starts_with('@') {
            calls.insert(name.to_owned());
            continue;
        }
        let list = Run::new("systemd-analyze", "systemd").args(["syscall-filter", name]).succeed(PATIENCE).stdout;
        let entries = list.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
        calls.append(&mut in_filter(&entries.collect::<Vec<_>>().join(" ")));
    }
    calls
}

/// The calls that the unit lets serve make.
fn allowed_by(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        match filter.strip_prefix('~') {
            Some(names) => allowed = &allowed - &in_filter(names),
            None => allowed.append(&mut in_filter(filter)),
        }
    }
    allowed
}

/// What takes from root all but the capabilities that the unit leaves it.
fn limited_by(unit: &str) -> Run {
    let names = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("capabilities");
    let names: String = names.split(' ').map(|name| name.replace("CAP_", ",+").to_lowercase()).collect();
    Run::new("setpriv", "util-linux").arg(format!("--bounding-set=-all{names}")).arg("--no-new-privs")
}

/// The calls in what strace has written.
fn called_in(trace: &Path) -> BTreeSet<String> {
    let trace = fs::read_to_string(trace).expect("what strace has seen");
    let calls = trace.lines().filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('));
    let is_name = |call: &&str| call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    calls.map(|(call, _)| call).filter(is_name).map(str::to_owned).collect()
}

/// What the service does: listens on TLS and UNIX sockets, passes to libvirtd, lets migrations in, tells systemd.
const CONFIG: &str = "
listen = ['unix:DIR/link', 'tls://127.0.0.1:0']
libvirt = 'unix:DIR/far'
control = 'DIR/control'
metrics = 'unix:DIR/metrics'
pki = 'DIR/pki'
socket_mode = '0600'
socket_owner = '65534'
[[target]]
name = 'disk'
path = 'DIR/far'
[migration]
base = 'DIR/migrations'
owner = '65534:65534'
mode = '0750'
[[allow]]
local = true
targets = ['*']
libvirt = true
migrate = true
";

/// An echo whose socket is like QEMU's: open to another user alone.
#[track_caller]
fn echo_of_nobody(path: &Path) {
    echo_on(path);
    chown(path, Some(65_534), Some(65_534)).expect("another owner");
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("a mode");
}

/// No systemd runs here: the capabilities are taken away by another program, and the calls of the system written down, from start to end.
#[test]
fn serve_needs_nothing_that_the_unit_forbids() {
    need_root("take capabilities away");
    let unit = fs::read_to_string(format!("{PACKAGING}/virbistream.service")).expect("the unit");
    let scratch = Scratch::new();
    let path = |name: &str| scratch.join(name);
    let (link, control, notify) = (path("link"), path("control"), path("notify"));
    Authority::new("authority").fill(&path("pki"));
    fs::write(path("serve.toml"), CONFIG.replace("DIR", &scratch.path().to_string_lossy())).expect("a new file");
    let systemd = UnixDatagram::bind(&notify).expect("a new socket");
    systemd.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let assert_told = |word: &str| {
        let mut told = [0; 1024];
        let len = systemd.recv(&mut told).expect("what systemd is told");
        assert!(told[..len].starts_with(word.as_bytes()), "not {word}: {}", String::from_utf8_lossy(&told[..len]));
    };
    echo_of_nobody(&path("far"));

    let strace = Run::new("strace", "strace").args(["-D", "-f", "-qq", "--signal=none", "-o"]).arg(path("trace"));
    let serve = tool().args(["serve", "--config"]).arg(path("serve.toml")).under(strace).under(limited_by(&unit));
    let environment = Run::new("env", "coreutils").arg(format!("NOTIFY_SOCKET={}", notify.display()));
    let serve = serve.under(environment).named("serve").start();
    serve.ready();
    assert_told("READY=1");
    let migration = "migration/7d5bd8b9-2d43-4f4f-9d1f-0a1c3f1f9c55";
    let targets = ["directory", "libvirt", "disks"].map(|part| format!("{migration}/{part}"));
    let near = ["near-directory", "near-libvirt", "near-disks", "near"].map(path);
    let names = targets.iter().map(String::as_str).chain(["disk"]);
    let forward = forward(&format!("unix:{}", link.display()), names.zip(near.iter().map(PathBuf::as_path))).start();
    forward.ready();
    let mut directory = String::new();
    let mut held = BufReader::new(connect(&near[0]));
    held.read_line(&mut directory).expect("where the directory is");
    let made = path("migrations").join(&migration["migration/".len()..]);
    let found = fs::metadata(&made).expect("the directory");
    assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (0o750, 65_534, 65_534));
    echo_of_nobody(&made.join("disks.sock"));
    for near in &near[1..] {
        assert_echoes(&connect(near), b"seen by strace");
    }
    drop(held);
    wait_for("the directory to go", PATIENCE, || (!made.exists()).then_some(()));
    tool().args(["ticket", "--target", "disk", "--control"]).arg(&control).succeed(PATIENCE);
    tool().args(["status", "--once", "--control"]).arg(&control).succeed(PATIENCE);
    serve.signal(Signal::HUP);
    assert_told("RELOADING=1");
    assert_told("READY=1");
    forward.end_well(&near.each_ref().map(PathBuf::as_path));
    serve.end_well(&[&link, &control]);
    assert_told("STOPPING=1");

    let (allowed, called) = (allowed_by(&unit), called_in(&path("trace")));
    assert!(called.contains("epoll_wait") && called.contains("accept4"), "{called:?}");
    let beyond: Vec<_> = called.difference(&allowed).collect();
    assert!(beyond.is_empty(), "the unit's SystemCallFilter= forbids {beyond:?}");
    // It cannot see what modes the call asks for, and so has it answer that there is no such call.
    assert!(
        called.contains("openat2") && !unit.contains("\nRestrictSUIDSGID=yes"),
        "RestrictSUIDSGID= forbids openat2"
    );
}

/// A Debian in a folder, as its installer would make it.
struct Debian(Scratch);

impl Debian {
    #[track_caller]
    fn new() -> Self {
        need_root("make a Debian in a folder");
        need("debootstrap", "debootstrap");
        let scratch = Scratch::new();
        // Whose Debian this is, that one; what it mounts goes with its namespace.
        let script = ". /etc/os-release; exec debootstrap --variant=minbase --include=systemd,man-db,bash-completion \"$VERSION_CODENAME\" \"$1\"";
        let made = Run::new("unshare", "util-linux").named("debootstrap").args(["--mount", "sh", "-c", script, "sh"]);
        made.arg(scratch.path()).succeed(10 * PATIENCE);
        Self(scratch)
    }

    fn run(&self, script: &str) -> Finished {
        Run::new("unshare", "util-linux")
            .named(script)
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .arg(format!("--root={}", self.0.path().display()))
            .args([
                "--mount-proc",
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL=C.UTF-8",
                "bash",
                "-c",
                script,
            ])
            .finish(5 * PATIENCE)
    }

    #[track_caller]
    fn succeed(&self, script: &str) -> String {
        let finished = self.run(script);
        assert!(finished.status.success(), "{finished}");
        finished.stdout
    }
}

/// A Debian in which systemd runs, with all of the unit's limits.
struct Booted {
    nspawn: Process,
    _debian: Debian,
}

/// With its first process goes all that runs in it, which the end of nspawn itself does not see to.
impl Drop for Booted {
    fn drop(&mut self) {
        if let Some(init) = first_child(self.nspawn.pid()) {
            _ = kill_process(init, Signal::KILL);
        }
    }
}

impl Booted {
    #[track_caller]
    fn new(debian: Debian) -> Self {
        let nspawn = Run::new("systemd-nspawn", "systemd-container")
            .args(["--boot", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--directory"])
            .arg(debian.0.path())
            .start();
        let this = Self { nspawn, _debian: debian };
        wait_for("systemd in its folder", 2 * PATIENCE, || {
            let state = this.run("systemctl is-system-running")?.stdout;
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        this
    }

    fn inside(&self, script: &str) -> Option<Run> {
        let target = format!("--target={}", first_child(self.nspawn.pid())?.as_raw_nonzero());
        let nsenter = Run::new("nsenter", "util-linux").named(script).arg(target);
        let inside = nsenter.args(
            "--mount --net --ipc --uts --pid --root --wd env PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -c".split(' '),
        );
        Some(inside.arg(script))
    }

    fn run(&self, script: &str) -> Option<Finished> {
        Some(self.inside(script)?.finish(PATIENCE))
    }

    /// A path in it, as seen from outside, with what is mounted there.
    #[track_caller]
    fn path(&self, path: &str) -> PathBuf {
        let init = first_child(self.nspawn.pid()).expect("a systemd").as_raw_nonzero();
        PathBuf::from(format!("/proc/{init}/root{path}"))
    }

    /// Whether serve, behind all that the unit hides, sees a file made there.
    #[track_caller]
    fn is_seen_below(&self, directory: &str) -> bool {
        self.succeed(&format!("mkdir -p {directory} && touch {directory}/of-a-test"));
        let serve = "nsenter --mount --root --target $(systemctl show -P MainPID virbistream.service)";
        let said = self.succeed(&format!("{serve} test -e {directory}/of-a-test && echo seen || echo hidden"));
        self.succeed(&format!("rm {directory}/of-a-test"));
        said == "seen\n"
    }

    #[track_caller]
    fn succeed(&self, script: &str) -> String {
        let finished = self.run(script).expect("a systemd");
        assert!(finished.status.success(), "{finished}");
        finished.stdout
    }
}

fn packaging(script: &Path, directory: &Path) -> Run {
    need("dpkg-shlibdeps", "dpkg-dev");
    Run::at("packaging/debian", script).arg(env!("CARGO_BIN_EXE_virbistream")).arg(directory)
}

#[track_caller]
fn package(directory: &Path) -> PathBuf {
    let made = packaging(&Path::new(PACKAGING).join("debian"), directory);
    made.succeed(5 * PATIENCE).stdout.trim().into()
}

#[track_caller]
fn unpack(package: &Path, into: &Path) {
    Run::new("dpkg-deb", "dpkg").arg("-x").arg(package).arg(into).succeed(PATIENCE);
}

#[test]
fn the_package_has_its_units_below_usr_and_the_notices_of_all_that_is_linked_in() {
    let scratch = Scratch::new();
    unpack(&package(scratch.path()), &scratch.join("root"));
    let path = |path: &str| scratch.join("root").join(path);
    for unit in ["virbistream.service", "virbistream.socket"] {
        assert!(path("usr/lib/systemd/system").join(unit).exists(), "{unit}");
    }
    assert!(!path("lib").exists(), "Debian's /lib is a link to /usr/lib");
    let document = path("usr/share/doc/virbistream");
    let copyright = fs::read_to_string(document.join("copyright")).expect("the licence");
    assert!(copyright.contains("third-party.gz"), "{copyright}");
    let notices = Run::new("gzip", "gzip").arg("-dc").arg(document.join("third-party.gz")).succeed(PATIENCE).stdout;
    let texts: Vec<_> = notices.split("\n====").collect();
    for (owner, words) in [
        ("ring 0.", "Brian Smith"),
        ("ring 0.", "fiat-crypto"),
        ("rustls 0.", "Joseph Birr-Pixton"),
        ("rustls-webpki 0.", "Brian Smith"),
        ("subtle 2.", "Isis Agora Lovecruft"),
    ] {
        let has = |text: &str| text.contains(&format!("\n{owner}")) && text.contains(words);
        assert!(texts[1..].iter().any(|text| has(text)), "no text of {owner} has {words}");
    }
    assert!(texts.last().is_some_and(|text| text.contains("The Rust Standard Library")), "Rust's own is missing");
    let crates = texts[0].lines().filter(|line| line.contains(": ")).count();
    assert!(crates > 50 && !texts[0].contains("virbistream 0."), "{}", texts[0]);
}

/// The sources of this workspace elsewhere, of which packaging and changelog can be changed.
#[track_caller]
fn elsewhere(root: &Path) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for entry in fs::read_dir(&sources).expect("the sources").map(|entry| entry.expect("an entry")) {
        let (from, to) = (entry.path(), root.join(entry.file_name()));
        match entry.file_name().to_str() {
            Some("packaging" | "CHANGELOG.md") => {
                Run::new("cp", "coreutils").arg("-r").arg(from).arg(to).succeed(PATIENCE);
            }
            Some(".git" | "target") => {}
            _ => symlink(from.canonicalize().expect("a path"), to).expect("a link"),
        }
    }
}

/// The time of what is in a package that is made there.
#[track_caller]
fn time_of_package_from(root: &Path) -> i64 {
    let into = Scratch::new();
    let unsaid = Run::new("env", "coreutils").arg("--unset=SOURCE_DATE_EPOCH");
    let made = packaging(&root.join("packaging/debian"), into.path()).under(unsaid).succeed(5 * PATIENCE);
    unpack(Path::new(made.stdout.trim()), &into.join("root"));
    fs::metadata(into.join("root/usr/bin/virbistream")).expect("the binary").mtime()
}

#[test]
fn the_time_of_what_is_in_the_package_is_that_of_the_commit_or_of_the_changelog() {
    let sources = Scratch::new();
    elsewhere(sources.path());
    Run::new("touch", "coreutils").arg("--date=@1500000000").arg(sources.join("CHANGELOG.md")).succeed(PATIENCE);
    assert_eq!(time_of_package_from(sources.path()), 1_500_000_000);
    let git = || Run::new("git", "git").arg("-C").arg(sources.path());
    git().args(["init", "--quiet"]).succeed(PATIENCE);
    let who = ["-c", "user.name=A Test", "-c", "user.email=test@virbistream.invalid", "-c", "commit.gpgsign=false"];
    let commit = git().args(who).args(["commit", "--quiet", "--allow-empty", "--message=empty"]);
    let at = Run::new("env", "coreutils").arg("GIT_COMMITTER_DATE=@1600000000 +0000");
    commit.under(at).succeed(PATIENCE);
    assert_eq!(time_of_package_from(sources.path()), 1_600_000_000);
}

#[test]
fn no_package_is_made_without_the_notices_of_what_is_linked_in() {
    let scratch = Scratch::new();
    let empty = Run::new("env", "coreutils").arg(format!("CARGO_HOME={}", scratch.path().display()));
    let run = packaging(&Path::new(PACKAGING).join("debian"), scratch.path()).under(empty);
    run.finish(PATIENCE).assert_failed_saying(&["the sources of the crates are not here"]);
    let left: Vec<_> = fs::read_dir(scratch.path()).expect("a directory").flatten().map(|entry| entry.path()).collect();
    assert!(!left.iter().any(|path| path.extension().is_some_and(|extension| extension == "deb")), "{left:?}");
}

/// systemd bears five starts in ten seconds, and a sixth is the last.
#[test]
fn systemd_never_gives_the_service_up() {
    let unit = fs::read_to_string(format!("{PACKAGING}/virbistream.service")).expect("the unit");
    let pause = unit.lines().find_map(|line| line.strip_prefix("RestartSec=")?.parse().ok());
    assert!(pause.is_some_and(|seconds: u32| 5 * seconds > 10), "{pause:?}");
    assert!(!unit.contains("StartLimit"), "other limits than systemd's own");
}

/// The directory of a migration is made, for QEMU, and what QEMU listens on in it is reached.
#[track_caller]
fn assert_migration_reaches_another_users_socket(booted: &Booted) {
    let migration = "7d5bd8b9-2d43-4f4f-9d1f-0a1c3f1f9c55";
    let script = format!(
        "exec virbistream forward --peer tls://127.0.0.1:16515 --pki /pki \
         --socket migration/{migration}/directory=/run/near-directory --socket migration/{migration}/disks=/run/near-disks"
    );
    let forward = booted.inside(&script).expect("a systemd").start();
    forward.ready();
    let mut said = String::new();
    let mut held = BufReader::new(connect(&booted.path("/run/near-directory")));
    held.read_line(&mut said).expect("where the directory is");
    let inside = format!("/run/virbistream/migrations/{migration}");
    assert!(said.contains(&inside), "{said}");
    let made = booted.path(&inside);
    let found = fs::metadata(&made).expect("the directory");
    assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (0o700, 65_534, 65_534));
    echo_of_nobody(&made.join("disks.sock"));
    assert_echoes(&connect(&booted.path("/run/near-disks")), b"through the unit's limits");
    drop(held);
    wait_for("the directory to go", PATIENCE, || (!made.exists()).then_some(()));
    Host::end(forward);
}

/// By hand: it takes rights that a container may not give.
#[test]
#[ignore = "boots a systemd in a folder"]
fn systemd_starts_reloads_and_stops_the_service() {
    let (scratch, debian) = (Scratch::new(), Debian::new());
    fs::copy(package(scratch.path()), debian.0.join("package.deb")).expect("copied");
    debian.succeed("dpkg -i /package.deb && sed -i 's/^dn = .*/dn = \"*\"/' /etc/virbistream/serve.toml");
    Authority::new("authority").fill(&debian.0.join("pki"));
    let booted = Booted::new(debian);
    booted.succeed(
        "install -D /pki/cacert.pem /etc/pki/CA/cacert.pem && install -D -t /etc/pki/libvirt /pki/servercert.pem && \
         install -D -m 600 -t /etc/pki/libvirt/private /pki/serverkey.pem",
    );
    // As guides have it, in which QEMU is not root.
    booted.succeed("sed -i 's/^owner = .*/owner = \"65534:65534\"/' /etc/virbistream/serve.toml");
    let status = || booted.succeed("systemctl show -P ActiveState -P StatusText virbistream.service");
    let probe = || booted.succeed("virbistream probe 'tls://127.0.0.1:16515?pkipath=/pki'");
    booted.succeed("systemctl enable --now virbistream.socket virbistream.service");
    assert_eq!(status(), "listening on tls://[::]:16515\nactive\n");
    assert!(probe().starts_with("bistream\n"));
    assert_migration_reaches_another_users_socket(&booted);
    for hidden in ["/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev"] {
        assert!(!booted.is_seen_below(hidden), "{hidden} is seen");
    }
    for seen in ["/srv", "/run/qemu", "/var/lib/libvirt", "/dev/shm"] {
        assert!(booted.is_seen_below(seen), "{seen} is hidden");
    }
    let restart =
        booted.succeed("systemctl show -P RestartUSec -P StartLimitIntervalUSec -P StartLimitBurst virbistream");
    assert_eq!(restart, "5s\n10s\n5\n", "it may be given up");
    assert_eq!(booted.succeed("virbistream ticket --control /run/virbistream/control --target disks").trim().len(), 64);
    booted.succeed("systemctl reload virbistream.service || { journalctl -u virbistream | cat; exit 1; }");
    booted.succeed("echo wrong >>/etc/virbistream/serve.toml; ! systemctl reload virbistream.service");
    assert_eq!(status(), "listening on tls://[::]:16515\nactive\n");
    // Whoever comes while serve is away waits, and is served.
    booted.succeed("sed -i '$d' /etc/virbistream/serve.toml; systemctl stop virbistream.service");
    assert!(status().ends_with("\ninactive\n"));
    assert!(probe().starts_with("bistream\n"));
    assert!(status().ends_with("\nactive\n"));
    booted.succeed("dpkg --purge virbistream; ! systemctl is-active virbistream.service virbistream.socket");
}

#[test]
fn the_package_installs_into_a_fresh_debian_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let package = package(scratch.path());
    let debian = Debian::new();
    fs::copy(&package, debian.0.join("package.deb")).expect("copied");
    // Fails if it depends on what is not there.
    debian.succeed("dpkg -i /package.deb");

    assert_eq!(debian.succeed("virbistream --version"), tool().arg("--version").succeed(PATIENCE).stdout);
    let checked = debian.run("virbistream check-config /etc/virbistream/serve.toml");
    assert!(is_without_certificates(&checked), "{checked}");
    assert_eq!(debian.succeed("stat -c '%a %U' /run/virbistream"), "755 root\n");
    for command in subcommands() {
        let page = debian.run(&format!("MANWIDTH=200 man --warnings=all virbistream-{command} | cat"));
        assert!(page.stdout.contains("EXIT STATUS") && page.stderr.is_empty(), "{page}");
    }
    let completed = "source /usr/share/bash-completion/bash_completion && _completion_loader virbistream; \
                     COMP_WORDS=(virbistream ser) COMP_CWORD=1; _virbistream virbistream ser virbistream; echo \"${COMPREPLY[@]}\"";
    assert_eq!(debian.succeed(completed), "serve\n");

    let enabled = debian.run("systemctl is-enabled virbistream.service virbistream.socket");
    assert_eq!(enabled.stdout, "disabled\ndisabled\n", "{enabled}");
    let verified = debian.run("systemd-analyze verify --man=no virbistream.service virbistream.socket");
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified}");
    // Of 100; what is left is root, the network, and UNIX sockets.
    debian.succeed("systemd-analyze security --offline=yes --threshold=25 --no-pager virbistream.service");

    debian.succeed(
        "systemctl enable virbistream.socket virbistream.service && echo '# mine' >>/etc/virbistream/serve.toml",
    );
    debian.succeed("dpkg --remove virbistream");
    assert_eq!(debian.succeed("tail -n 1 /etc/virbistream/serve.toml"), "# mine\n");
    debian.succeed("dpkg --purge virbistream");
    let left = debian.succeed("find / -xdev -name '*virbistream*' -not -path '/proc/*'");
    assert_eq!(left, "", "what the package has left");
}
