//! A host of its own: the programs of this machine, and nothing of what is configured or runs on it.

use super::guest::State;
use super::process::{Finished, Process, Run};
use super::{PATIENCE, Scratch, need, need_root, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// libvirtd's, where Debian's differs from what goes without systemd and polkit.
const LIBVIRTD: &str = r#"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:stderr"
"#;

/// QEMU is not root, as it is nowhere.
const QEMU: &str = r#"
user = "libvirt-qemu"
group = "kvm"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"#;

/// Makes the host, and runs libvirtd in it. What is written to the machine's files goes to a layer in memory; `$1/shared` is a directory
/// of both hosts, `$1/images` where libvirt's images are, `$2` the host's name, `$3` its libvirt's id.
const INSIDE: &str = r#"
set -e
at=$1
mkdir -p "$at/layer" "$at/root" "$at/images"
mount -t tmpfs -o mode=755 tmpfs "$at/layer"
mkdir "$at/layer/upper" "$at/layer/work"
mount -t overlay -o "lowerdir=/,upperdir=$at/layer/upper,workdir=$at/layer/work" overlay "$at/root"
cd "$at/root"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
for directory in run tmp root var/lib/libvirt var/cache/libvirt var/log/libvirt; do
  mkdir -p "$directory"
  mount -t tmpfs -o mode=755 tmpfs "$directory"
done
mkdir -p run/lock var/lib/libvirt/images mnt/shared
mount --bind "$at/images" var/lib/libvirt/images
mount --bind "$at/shared" mnt/shared
[ "$2" = source.example ] || mount --bind "$at/shared" root
rm -rf etc/libvirt etc/pki etc/virbistream
mkdir -p etc/libvirt/qemu
cp "$at/libvirtd.conf" "$at/qemu.conf" etc/libvirt/
cp "$at/systemctl" "$at/scp" usr/local/sbin/
printf '127.0.0.1 localhost\n10.77.77.1 source.example\n10.77.77.2 destination.example\n' >etc/hosts
echo "$3" | tr -d - >etc/machine-id
grep -q ^kvm: etc/group || echo kvm:x:64054: >>etc/group
grep -q ^libvirt-qemu: etc/passwd || echo libvirt-qemu:x:64055:64054::/var/lib/libvirt:/usr/sbin/nologin >>etc/passwd
hostname "$2"
ip link set lo up
# The first process reaps what libvirtd leaves, and libvirtd waits for that. The host outlives it.
exec chroot . sh -c 'cd /root; libvirtd & wait $!; exec sleep infinity'
"#;

/// What systemd would do with our two units, by its own program for sockets. Of systemctl it knows what the guide says, and as there, the
/// port is open when it returns.
const SYSTEMCTL: &str = r#"#!/bin/sh
set -e
[ "$*" = "enable --now virbistream.socket virbistream.service" ] || { echo "systemctl $*: not known to this test" >&2; exit 1; }
of() { sed -n "s/^$1=//p" "/usr/lib/systemd/system/virbistream.$2"; }
exec 3>&-
setsid -f systemd-socket-activate -l "$(of ListenStream socket)" --fdname="$(of FileDescriptorName socket)" $(of ExecStart service) -v \
  >/mnt/shared/serve.out 2>&1 </dev/null
for _ in $(seq 600); do
  grep -q '^Listening on' /mnt/shared/serve.out && exit
  sleep 0.05
done
cat /mnt/shared/serve.out >&2
exit 1
"#;

/// There is no ssh between the two: what is copied goes through a directory that both have, which is /root of the other.
const SCP: &str = r#"#!/bin/sh
set -e
for to in "$@"; do :; done
[ "$to" = root@destination.example:/root/ ] || { echo "scp to $to: not known to this test" >&2; exit 1; }
for file in "$@"; do [ "$file" = "$to" ] || cp "$file" /mnt/shared/; done
"#;

/// It goes with everything in it.
pub(crate) struct Host {
    name: String,
    init: Process,
    scratch: Scratch,
}

impl Host {
    /// One whose libvirtd answers. `shared` is seen as /mnt/shared.
    #[track_caller]
    pub(crate) fn start(name: &str, number: u8, shared: &Scratch) -> Self {
        need_root("make hosts of namespaces");
        for (program, package) in [("libvirtd", "libvirt-daemon"), ("ip", "iproute2"), ("hostname", "hostname")] {
            need(program, package);
        }
        let scratch = Scratch::new();
        let id = format!("4dea22b3-1d52-d8f3-2516-782e98ab3f{number:02x}");
        for (file, text) in [
            ("libvirtd.conf", format!("{LIBVIRTD}host_uuid = \"{id}\"\n")),
            ("qemu.conf", QEMU.to_owned()),
            ("systemctl", SYSTEMCTL.to_owned()),
            ("scp", SCP.to_owned()),
        ] {
            std::fs::write(scratch.join(file), text).expect("a new file");
        }
        for file in ["systemctl", "scp"] {
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(scratch.join(file), executable).expect("a mode");
        }
        std::os::unix::fs::symlink(shared.path(), scratch.join("shared")).expect("a link");
        let init = Run::new("unshare", "util-linux")
            .named(name)
            .args(["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"])
            .args(["sh", "-c", INSIDE, "sh"])
            .arg(scratch.path())
            .args([name, &id])
            .start();
        let mut this = Self { name: name.into(), init, scratch };
        wait_for("the libvirtd of a host", PATIENCE, || {
            this.init.assert_alive();
            this.inner()?;
            this.run("grep -q source.example /etc/hosts && virsh uri").finish(PATIENCE).status.success().then_some(())
        });
        this
    }

    /// `source.example` and `destination.example`, and the only wire between them.
    #[track_caller]
    pub(crate) fn pair(shared: &Scratch) -> [Self; 2] {
        let [source, destination] =
            [("source.example", 1), ("destination.example", 2)].map(|(name, number)| Self::start(name, number, shared));
        let peer = destination.pid().as_raw_nonzero();
        Run::new("ip", "iproute2")
            .args(format!("link add wire type veth peer name wire netns {peer}").split(' '))
            .in_namespace_of(Some(source.pid()))
            .succeed(PATIENCE);
        for (number, host) in (1..).zip([&source, &destination]) {
            host.succeed(&format!("ip addr add 10.77.77.{number}/30 dev wire; ip link set wire up"));
        }
        [source, destination]
    }

    /// A script on it, as root, in /root.
    pub(crate) fn run(&self, script: &str) -> Run {
        let pid = self.pid().as_raw_nonzero();
        Run::new("nsenter", "util-linux")
            .named(&format!("{}: {}", self.name, script.lines().next().unwrap_or_default()))
            .args([&format!("--target={pid}"), "--mount", "--net", "--ipc", "--uts", "--pid", "--root", "--wd"])
            .args([
                "env",
                "--unset=TMPDIR",
                "HOME=/root",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ])
            .args(["bash", "-euo", "pipefail", "-c", script])
    }

    #[track_caller]
    pub(crate) fn succeed(&self, script: &str) -> Finished {
        self.run(script).succeed(5 * PATIENCE)
    }

    /// Signals what [`run`](Self::run) has started: the last in the row of programs that start one another, or what `exec` has made of it.
    #[track_caller]
    pub(crate) fn signal(process: &Process, signal: Signal) {
        let mut last = process.pid();
        while let Some(child) = first_child(last).filter(|_| is_launcher(last)) {
            last = child;
        }
        kill_process(last, signal).expect("a signal to our own child");
    }

    /// Ends it by SIGTERM. It must succeed.
    #[track_caller]
    pub(crate) fn end(process: Process) {
        Self::signal(&process, Signal::TERM);
        let finished = process.finish(PATIENCE);
        assert!(finished.status.success(), "{finished}");
    }

    /// Does it on a thread of this process that is in the host's network.
    pub(crate) fn in_network<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.pid().as_raw_nonzero())).expect("the host's network");
        let enter = || move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
        let acting = || {
            enter().expect("root may enter");
            act()
        };
        thread::scope(|scope| scope.spawn(acting).join().expect("no panic"))
    }

    /// Waits until the guest `web` has said here that it wrote so many records to each disk, and gives how many. What it writes to its console
    /// goes to a file in libvirt's images.
    #[track_caller]
    pub(crate) fn wait_for_records(&self, at_least: i64) -> i64 {
        let deadline = Instant::now() + 3 * PATIENCE;
        loop {
            let console = std::fs::read(self.image("web.console")).expect("the guest's console");
            let console = String::from_utf8_lossy(&console);
            assert!(!console.contains("vbs-bad"), "the guest complains:\n{console}");
            let state = console.lines().rev().find_map(|line| State::parse("vbs-at", line));
            let last = state.and_then(|state| state.records.into_iter().min());
            if let Some(last) = last.filter(|last| *last >= at_least) {
                return last;
            }
            if Instant::now() >= deadline {
                let asked = "virsh domstate web --reason; virsh qemu-monitor-command web --hmp info registers";
                let state = self.run(asked).finish(PATIENCE);
                let tail: Vec<_> = console.lines().rev().take(20).collect();
                panic!(
                    "gave up waiting for record {at_least} at {}; its console, backwards: {tail:#?}\n{state}",
                    self.name
                );
            }
            // The pause between two looks; nothing depends on its length.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A file in libvirt's images, as seen from outside.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.scratch.join("images").join(name)
    }

    /// Its first process, by whose namespaces it is entered.
    #[track_caller]
    pub(crate) fn pid(&self) -> Pid {
        self.inner().expect("the first process of a host")
    }

    fn inner(&self) -> Option<Pid> {
        first_child(self.init.pid())
    }
}

/// Whether a process only waits for the one that it started.
fn is_launcher(process: Pid) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{}/comm", process.as_raw_nonzero())).unwrap_or_default();
    matches!(name.trim(), "nsenter" | "unshare" | "env" | "bash" | "sh")
}

pub(crate) fn first_child(parent: Pid) -> Option<Pid> {
    let parent = parent.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Pid::from_raw(children.split(' ').next()?.trim().parse().ok()?)
}

impl Drop for Host {
    /// The first process last of all, and before the directory is removed.
    fn drop(&mut self) {
        if let Some(inner) = self.inner() {
            _ = kill_process(inner, Signal::KILL);
            _ = self.init.try_end(PATIENCE);
        }
    }
}
