//! A libvirtd of the test's own: Debian's program, without systemd, in namespaces of its own.

use super::process::{Process, Run};
use super::{PATIENCE, Scratch, need_root, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// What it finds in place of the system's. It listens on TCP too, on the loopback of its own network.
const CONFIG: &str = r#"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
listen_tcp = 1
auth_tcp = "none"
listen_addr = "127.0.0.1"
host_uuid = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
log_outputs = "3:stderr"
"#;

/// Of QEMU's driver, which opens as qemu:///system: nothing of the system's is needed or changed.
const QEMU_CONFIG: &str = r#"
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"#;

/// Runs libvirtd. `$1` is the directory of the test: what libvirtd writes goes to file systems that go with the namespace,
/// but for its sockets.
const INSIDE: &str = r#"
set -e
at=$1
mkdir "$at/etc" "$at/run" "$at/run/lock" "$at/disks"
for file in passwd group nsswitch.conf ld.so.cache hosts protocols services; do
  [ ! -e "/etc/$file" ] || cp "/etc/$file" "$at/etc/"
done
mkdir -p "$at/etc/libvirt/qemu"
mv "$at/libvirtd.conf" "$at/qemu.conf" "$at/etc/libvirt/"
echo 4dea22b31d52d8f32516782e98ab3fa0 >"$at/etc/machine-id"
mount --bind "$at/etc" /etc
mount --bind "$at/run" /run
for directory in /var/lib /var/cache /var/log; do
  mount -t tmpfs -o mode=755 tmpfs "$directory"
  mkdir "$directory/libvirt"
done
ip link set lo up
# Not in its place: the first process must reap what QEMU leaves when libvirtd asks it what it can do, or libvirtd waits for it.
libvirtd --listen &
wait $!
"#;

/// A running libvirtd with QEMU's driver, the test driver and a pool `disks`. It goes with everything of its own.
pub(crate) struct Libvirtd {
    process: Process,
    scratch: Scratch,
}

impl Libvirtd {
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::start_with("listen_tls = 0\n")
    }

    /// With more in its configuration: whether it listens for TLS, at the port 16514 of its own network.
    #[track_caller]
    pub(crate) fn start_with(more: &str) -> Self {
        need_root("run a libvirtd in namespaces of its own");
        super::need("libvirtd", "libvirt-daemon");
        super::need("ip", "iproute2");
        let scratch = Scratch::new();
        std::fs::write(scratch.join("libvirtd.conf"), format!("{CONFIG}{more}")).expect("a new file");
        std::fs::write(scratch.join("qemu.conf"), QEMU_CONFIG).expect("a new file");
        let process = Run::new("unshare", "util-linux")
            .named("libvirtd")
            .args(["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", INSIDE, "sh"])
            .arg(scratch.path())
            .start();
        let mut this = Self { process, scratch };
        wait_for("libvirtd's socket", PATIENCE, || {
            this.process.assert_alive();
            UnixStream::connect(this.socket()).ok()
        });
        let target = this.scratch.join("disks");
        this.virsh(&["pool-create-as", "disks", "dir", "--target", &target.to_string_lossy()]);
        this
    }

    /// Its socket, as seen from outside.
    pub(crate) fn socket(&self) -> PathBuf {
        self.scratch.join("run/libvirt/libvirt-sock")
    }

    /// A file of the pool `disks`.
    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        self.scratch.join("disks").join(name)
    }

    /// As libvirt writes it.
    pub(crate) fn uri(&self) -> String {
        self.uri_of("qemu", "/system")
    }

    pub(crate) fn uri_of(&self, driver: &str, path: &str) -> String {
        format!("{driver}+unix://{path}?socket={}", self.socket().display())
    }

    /// What is asked, over its UNIX socket; it must succeed.
    #[track_caller]
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        let virsh = Run::new("virsh", "libvirt-clients").args(["-c", &self.uri()]).args(arguments);
        virsh.succeed(PATIENCE).stdout
    }

    /// Where 127.0.0.1 is its own, and it listens at the port 16509: the network namespace of this process.
    #[track_caller]
    pub(crate) fn network(&self) -> Pid {
        self.inner().expect("the process in the namespaces")
    }

    /// unshare forks, and its only child runs libvirtd: all in its namespace goes with that one.
    fn inner(&self) -> Option<Pid> {
        let unshare = self.process.pid().as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
        Pid::from_raw(children.trim().parse().ok()?)
    }
}

impl Drop for Libvirtd {
    /// The inner one first: unshare reaps it, and nothing writes any more when the directory is removed.
    fn drop(&mut self) {
        if let Some(inner) = self.inner() {
            _ = kill_process(inner, Signal::KILL);
            _ = self.process.try_end(PATIENCE);
        }
    }
}
