//! What the tool says of disks, beside what QEMU and nbdkit say themselves.

mod support;

use serde_json::json;
use std::path::Path;
use support::bytes::{MIB, empty_file, sha256, sparse_file};
use support::disks::{Disk, disks, sum};
use support::process::{Process, Run};
use support::qmp::Qmp;
use support::relay::{Relay, Route, Tunnel};
use support::{PATIENCE, Scratch, wait_for};

const SIZE_MIB: u64 = 128;

/// nbdkit with an image, and the tunnel to it; what it serves it logs.
#[track_caller]
fn serve(scratch: &Scratch, image: &Path) -> (Process, Tunnel) {
    let mut server = Run::new("nbdkit", "nbdkit")
        .args(["--foreground", "--exit-with-parent", "--filter", "log", "--unix"])
        .arg(scratch.join("far"))
        .arg("--pidfile")
        .arg(scratch.join("pid"))
        .arg("file")
        .arg(image)
        .arg(format!("logfile={}", scratch.join("log").display()))
        .start();
    wait_for("the server to listen", PATIENCE, || {
        server.assert_alive();
        std::fs::read_to_string(scratch.join("pid")).is_ok_and(|pid| !pid.is_empty()).then_some(())
    });
    let route = Route { name: "disk", near: scratch.join("near"), far: scratch.join("far") };
    (server, Relay::Tool.start(None, &[route]))
}

/// What nbdkit has done, by its own log.
#[track_caller]
fn served(scratch: &Scratch, export: &str) -> Disk {
    let log = std::fs::read_to_string(scratch.join("log")).expect("nbdkit's log");
    let mut disk = Disk { export: export.to_owned(), size: SIZE_MIB * MIB, ..Disk::default() };
    for line in log.lines() {
        assert!(!line.contains("return=-1"), "{line}");
        let bytes = || {
            let (_, count) = line.split_once(" count=0x").expect("a count");
            let digits = count.split(' ').next().expect("a number");
            u64::from_str_radix(digits, 16).expect("a number")
        };
        match line.split(' ').nth(3) {
            Some("Write") => disk.written += bytes(),
            Some("Zero") => disk.zeroed += bytes(),
            Some("Trim") => disk.trimmed += bytes(),
            Some("Read") => disk.read += bytes(),
            Some("Flush") => disk.flushes += 1,
            _ => {}
        }
    }
    disk
}

/// Ends the tunnel, whose ends must have seen the same. Gives what.
#[track_caller]
fn seen(tunnel: Tunnel) -> Disk {
    let [forward, serve] = &tunnel.end()[..] else { panic!("two ends") };
    let [forward, serve] = [forward, serve].map(|end| sum(&disks(&end.stderr)));
    assert_eq!(forward, serve);
    forward
}

#[test]
fn an_upload_and_a_download_are_seen_as_nbdkit_serves_them() {
    for up in [true, false] {
        let scratch = Scratch::new();
        let (local, remote) = (scratch.join("local"), scratch.join("remote"));
        let (full, empty) = if up { (&local, &remote) } else { (&remote, &local) };
        let data = sparse_file(full, SIZE_MIB, 1);
        empty_file(empty, SIZE_MIB);
        let (_server, tunnel) = serve(&scratch, &remote);
        let uri = format!("nbd+unix:///?socket={}", scratch.join("near").display());
        let (from, to) = if up { (local.to_str().unwrap(), &*uri) } else { (&*uri, local.to_str().unwrap()) };
        let copy = Run::new("nbdcopy", "libnbd-bin").args(["--connections", "4", "--threads", "4", "--flush"]);
        copy.args([from, to]).succeed(PATIENCE);
        let seen = seen(tunnel);
        assert_eq!(sha256(&local), sha256(&remote));
        assert_eq!(seen, served(&scratch, ""));
        assert!(if up { seen.written >= data && seen.zeroed > 0 } else { seen.read >= data }, "{seen:?}");
    }
}

/// QEMU without a machine: its block layer, jobs and NBD client are the same.
#[track_caller]
fn storage_daemon(scratch: &Scratch, image: &Path) -> (Process, Qmp) {
    let path = scratch.join("qmp");
    let daemon = Run::new("qemu-storage-daemon", "qemu-system-common")
        .arg("--chardev")
        .arg(format!("socket,path={},server=on,wait=off,id=qmp", path.display()))
        .args(["--monitor", "chardev=qmp", "--blockdev"])
        .arg(format!("driver=raw,node-name=vda,discard=unmap,file.driver=file,file.filename={}", image.display()))
        .start();
    let qmp = Qmp::connect("qemu-storage-daemon", &path);
    (daemon, qmp)
}

#[test]
fn a_mirror_is_seen_as_qemu_and_nbdkit_count_it() {
    let scratch = Scratch::new();
    let (local, remote) = (scratch.join("local"), scratch.join("remote"));
    sparse_file(&local, SIZE_MIB, 2);
    empty_file(&remote, SIZE_MIB);
    let (_server, tunnel) = serve(&scratch, &remote);
    let (_daemon, mut qmp) = storage_daemon(&scratch, &local);
    let target = json!({
        "driver": "nbd", "node-name": "target", "export": "vda",
        "server": {"type": "unix", "path": scratch.join("near")},
    });
    qmp.call("blockdev-add", target);
    qmp.call("blockdev-mirror", json!({"job-id": "job", "device": "vda", "target": "target", "sync": "full"}));
    qmp.event("a mirror in step", PATIENCE, |event| event["event"] == "BLOCK_JOB_READY");
    // A mirror that is ready and cancelled is complete.
    qmp.call("block-job-cancel", json!({"device": "job"}));
    let end = qmp.event("the end of a mirror", PATIENCE, |event| event["event"] == "BLOCK_JOB_COMPLETED");
    qmp.call("blockdev-del", json!({"node-name": "target"}));
    let seen = seen(tunnel);
    assert_eq!(sha256(&local), sha256(&remote));
    assert_eq!(seen, served(&scratch, "vda"));
    assert_eq!(json!(seen.written + seen.zeroed + seen.trimmed), end["data"]["offset"], "{seen:?}");
}
