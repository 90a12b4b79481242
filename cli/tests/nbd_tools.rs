//! NBD tools and servers that know nothing of the tunnel they talk through: libnbd's and nbdkit, and QEMU's.

mod support;

use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;
use support::bytes::{MIB, allocated, empty_file, noise_file, sha256, sha256_from, sparse_file};
use support::process::{Process, Run};
use support::relay::{Relay, Route, Tunnel};
use support::vm::qemu_img;
use support::{PATIENCE, Scratch, alone, wait_for};

/// How much is copied where much is copied.
const LARGE_MIB: u64 = 1024;

/// How long a copy may take: as slow as 4 MiB/s would do.
const COPY: Duration = Duration::from_secs(LARGE_MIB / 4);

/// A server of one image, and the tunnel to it.
struct Served {
    server: Process,
    tunnel: Tunnel,
    uri: String,
}

impl Served {
    #[track_caller]
    fn nbdkit(scratch: &Scratch, image: &Path) -> Self {
        let server = Run::new("nbdkit", "nbdkit")
            .args(["--foreground", "--exit-with-parent", "--threads", "8", "--filter", "log"])
            .arg("--unix")
            .arg(scratch.join("far"))
            .arg("--pidfile")
            .arg(scratch.join("pid"))
            .arg("file")
            .arg(image)
            .arg(format!("logfile={}", scratch.join("log").display()));
        Self::start(scratch, server)
    }

    #[track_caller]
    fn qemu_nbd(scratch: &Scratch, image: &Path) -> Self {
        let server = Run::new("qemu-nbd", "qemu-utils")
            .args(["--persistent", "--shared", "16", "--format", "raw"])
            .args(["--discard", "unmap", "--detect-zeroes", "unmap", "--socket"])
            .arg(scratch.join("far"))
            .arg("--pid-file")
            .arg(scratch.join("pid"))
            .arg(image);
        Self::start(scratch, server)
    }

    #[track_caller]
    fn start(scratch: &Scratch, server: Run) -> Self {
        let mut server = server.start();
        wait_for("the server to listen", PATIENCE, || {
            server.assert_alive();
            let pid = std::fs::read_to_string(scratch.join("pid"));
            pid.is_ok_and(|pid| !pid.is_empty()).then_some(())
        });
        let route = Route { name: "disk", near: scratch.join("near"), far: scratch.join("far") };
        let uri = format!("nbd+unix:///?socket={}", route.near.display());
        let tunnel = Relay::Tool.start(None, &[route]);
        Self { server, tunnel, uri }
    }

    /// Ends the tunnel, which must have been one connection, and the server.
    #[track_caller]
    fn end(self) {
        assert_eq!(self.tunnel.accepted(), 1, "links that serve has accepted");
        self.tunnel.end();
        self.server.signal(Signal::TERM);
        self.server.finish(PATIENCE);
    }
}

fn nbdcopy() -> Run {
    Run::new("nbdcopy", "libnbd-bin")
}

/// How many connections the server has had open at once, by its own log.
#[track_caller]
fn most_at_once(log: &Path) -> usize {
    let (mut open, mut most) = (0, 0);
    for line in std::fs::read_to_string(log).expect("nbdkit's log").lines() {
        if line.contains(" Connect ") {
            open += 1;
            most = most.max(open);
        } else if line.contains(" Disconnect ") {
            open -= 1;
        }
    }
    most
}

#[test]
fn nbdcopy_uploads_a_gibibyte_over_eight_connections_to_one_socket() {
    let _alone = alone();
    let scratch = Scratch::new();
    let (local, remote) = (scratch.join("local"), scratch.join("remote"));
    noise_file(&local, LARGE_MIB, 1);
    empty_file(&remote, LARGE_MIB);
    let served = Served::nbdkit(&scratch, &remote);
    nbdcopy().args(["--connections", "8", "--threads", "8", "--flush"]).arg(&local).arg(&served.uri).succeed(COPY);
    served.end();
    assert_eq!(sha256(&local), sha256(&remote));
    assert_eq!(most_at_once(&scratch.join("log")), 8);
}

#[test]
fn nbdcopy_downloads_a_gibibyte_over_eight_connections_to_one_socket() {
    let _alone = alone();
    let scratch = Scratch::new();
    let (local, remote) = (scratch.join("local"), scratch.join("remote"));
    noise_file(&remote, LARGE_MIB, 2);
    let served = Served::nbdkit(&scratch, &remote);
    nbdcopy().args(["--connections", "8", "--threads", "8"]).arg(&served.uri).arg(&local).succeed(COPY);
    served.end();
    assert_eq!(sha256(&local), sha256(&remote));
    assert_eq!(most_at_once(&scratch.join("log")), 8);
}

#[test]
fn qemu_img_uploads_a_gibibyte_to_qemu_nbd() {
    let _alone = alone();
    let scratch = Scratch::new();
    let (local, remote) = (scratch.join("local"), scratch.join("remote"));
    noise_file(&local, LARGE_MIB, 3);
    empty_file(&remote, LARGE_MIB);
    let served = Served::qemu_nbd(&scratch, &remote);
    qemu_img().args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&local).arg(&served.uri).succeed(COPY);
    served.end();
    assert_eq!(sha256(&local), sha256(&remote));
}

#[test]
fn qemu_img_downloads_a_gibibyte_from_qemu_nbd() {
    let _alone = alone();
    let scratch = Scratch::new();
    let (local, remote) = (scratch.join("local"), scratch.join("remote"));
    noise_file(&remote, LARGE_MIB, 4);
    let served = Served::qemu_nbd(&scratch, &remote);
    qemu_img().args(["convert", "-f", "raw", "-O", "raw"]).arg(&served.uri).arg(&local).succeed(COPY);
    served.end();
    assert_eq!(sha256(&local), sha256(&remote));
}

#[test]
fn a_sparse_image_is_sparse_after_an_upload() {
    let _alone = alone();
    for (tool, server) in [
        (nbdcopy().args(["--connections", "4", "--threads", "4"]), Served::nbdkit as fn(&Scratch, &Path) -> Served),
        (nbdcopy(), Served::qemu_nbd),
        (qemu_img().args(["convert", "-n", "-f", "raw", "-O", "raw"]), Served::nbdkit),
        (qemu_img().args(["convert", "-n", "-f", "raw", "-O", "raw"]), Served::qemu_nbd),
    ] {
        let scratch = Scratch::new();
        let (local, remote) = (scratch.join("local"), scratch.join("remote"));
        let data = sparse_file(&local, LARGE_MIB, 5);
        // What was there before is overwritten with zeroes, and given back.
        noise_file(&remote, 32, 6);
        std::fs::File::options().write(true).open(&remote).unwrap().set_len(LARGE_MIB * MIB).unwrap();
        let served = server(&scratch, &remote);
        tool.arg(&local).arg(&served.uri).succeed(COPY);
        served.end();
        assert_eq!(sha256(&local), sha256(&remote));
        assert_sparse(&remote, data);
    }
}

#[test]
fn a_sparse_image_is_sparse_after_a_download() {
    let _alone = alone();
    for (tool, server) in [
        (nbdcopy().args(["--connections", "4", "--threads", "4"]), Served::nbdkit as fn(&Scratch, &Path) -> Served),
        (nbdcopy(), Served::qemu_nbd),
        (qemu_img().args(["convert", "-f", "raw", "-O", "raw"]), Served::nbdkit),
        (qemu_img().args(["convert", "-f", "raw", "-O", "raw"]), Served::qemu_nbd),
    ] {
        let scratch = Scratch::new();
        let (local, remote) = (scratch.join("local"), scratch.join("remote"));
        let data = sparse_file(&remote, LARGE_MIB, 7);
        let served = server(&scratch, &remote);
        tool.arg(&served.uri).arg(&local).succeed(COPY);
        served.end();
        assert_eq!(sha256(&local), sha256(&remote));
        assert_sparse(&local, data);
    }
}

/// Fails the test if the file takes much more room than its data.
#[track_caller]
fn assert_sparse(file: &Path, data: u64) {
    let room = allocated(file);
    assert!(room <= data + 8 * MIB, "{} takes {room} bytes for {data} of data", file.display());
}

#[test]
fn an_upload_and_a_download_share_the_tunnel_at_the_same_time() {
    let _alone = alone();
    let scratch = Scratch::new();
    let (old, new, remote) = (scratch.join("old"), scratch.join("new"), scratch.join("remote"));
    let half = LARGE_MIB / 2;
    // One image: its first half is read while its second half is written.
    noise_file(&remote, half, 8);
    let before = sha256(&remote);
    std::fs::File::options().write(true).open(&remote).unwrap().set_len(LARGE_MIB * MIB).unwrap();
    noise_file(&new, half, 9);
    let served = Served::qemu_nbd(&scratch, &remote);
    let part = |offset: u64| {
        let (size, offset) = (half * MIB, offset * MIB);
        format!(
            "json:{{\"driver\":\"raw\",\"size\":{size},\"offset\":{offset},\"file.driver\":\"nbd\",\"file.path\":\"{}\"}}",
            scratch.join("near").display()
        )
    };
    let download = qemu_img().args(["convert", "-O", "raw"]).arg(part(0)).arg(&old).start();
    let upload = qemu_img()
        .args(["convert", "-n", "--target-image-opts", "-f", "raw"])
        .arg(&new)
        .arg(format!(
            "driver=raw,size={},offset={},file.driver=nbd,file.path={}",
            half * MIB,
            half * MIB,
            scratch.join("near").display()
        ))
        .start();
    for copy in [download, upload] {
        let finished = copy.finish(COPY);
        assert!(finished.status.success(), "{finished}");
    }
    served.end();
    assert_eq!(sha256(&old), before);
    assert_eq!(sha256_from(&remote, half * MIB), sha256(&new));
}
