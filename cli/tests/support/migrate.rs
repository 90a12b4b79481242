//! A live migration with its disks between two QEMUs, step by step, as an operator's own tools
//! drive it.

use super::bytes::{MIB, Noise, sha256};
use super::guest::{Guest, RING_MIB, State, assert_ring_is_whole};
use super::net::Wire;
use super::process::Run;
use super::qmp::time_of;
use super::relay::Route;
use super::vm::{Disk, Vm, qemu_img};
use super::{PATIENCE, Scratch, need_root};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// More than any link has.
pub(crate) const UNLIMITED: u64 = 1 << 40;

const FORMATS: [&str; 2] = ["raw", "qcow2"];

/// The size of each disk, of which most is data: `VIRBISTREAM_TEST_DISK_MIB`, or 256 MiB.
#[track_caller]
pub(crate) fn disk_mib() -> u64 {
    let Ok(text) = std::env::var("VIRBISTREAM_TEST_DISK_MIB") else {
        return 256;
    };
    let mib = text.parse().expect("VIRBISTREAM_TEST_DISK_MIB is a number");
    assert!(mib >= 64, "VIRBISTREAM_TEST_DISK_MIB is 64 at least");
    mib
}

/// A guest that runs at the source, and a QEMU that waits for it at the destination.
pub(crate) struct Migration {
    pub(crate) source: Vm,
    pub(crate) destination: Vm,
    directory: PathBuf,
    disk_mib: u64,
    /// By disk, the bytes that its mirror has copied, by QEMU's word.
    pub(crate) mirrored: Vec<u64>,
}

/// How long it took.
#[derive(Debug)]
pub(crate) struct Times {
    /// Until the mirrors of all disks were in step with the guest.
    pub(crate) mirror: Duration,
    /// Until the guest's memory was over, and all.
    pub(crate) memory: Duration,
    /// While the guest stood still, without what the test itself did meanwhile.
    pub(crate) pause: Duration,
}

impl Migration {
    /// Makes the images, starts both QEMUs and waits until the guest writes.
    #[track_caller]
    pub(crate) fn prepare(scratch: &Scratch, wire: Option<&Wire>, disk_mib: u64) -> Self {
        Self::prepare_with(scratch, wire, disk_mib, None)
    }

    /// The same, with a destination whose images find room for so many MiB together. It takes root.
    #[track_caller]
    pub(crate) fn prepare_with(scratch: &Scratch, wire: Option<&Wire>, disk_mib: u64, room: Option<u64>) -> Self {
        let guest = Guest::build();
        let directory = scratch.path().to_owned();
        let mut disks = [Vec::new(), Vec::new()];
        for (index, format) in FORMATS.into_iter().enumerate() {
            for (side, disks) in ["source", "destination"].into_iter().zip(&mut disks) {
                disks.push(Disk {
                    node: format!("disk{index}"),
                    format,
                    image: directory.join(side).join(format!("disk{index}.{format}")),
                });
            }
        }
        let [at_source, at_destination] = disks;
        for side in ["source", "destination"] {
            std::fs::create_dir(directory.join(side)).expect("a new directory");
        }
        for (index, (from, to)) in (0..).zip(at_source.iter().zip(&at_destination)) {
            fill(from, disk_mib, index);
            qemu_img()
                .args(["create", "-q", "-f", to.format])
                .arg(&to.image)
                .arg(format!("{disk_mib}M"))
                .succeed(PATIENCE);
        }
        let (near, far) = (wire.map(|wire| wire.source.pid()), wire.map(|wire| wire.destination.pid()));
        let small = room.map(|mib| on_a_small_disk(&directory.join("destination"), mib));
        let mut source = Vm::start("source", &directory, &guest, at_source, near, false, None);
        let destination = Vm::start("dest", &directory, &guest, at_destination, far, true, small);
        source.said("vbs-ready", |_| true);
        source.said("vbs-at", |state| written(state, 50));
        Self { source, destination, directory, disk_mib, mirrored: Vec::new() }
    }

    /// The sockets that a migration needs carried.
    pub(crate) fn routes(&self) -> Vec<Route> {
        ["nbd", "memory"]
            .map(|name| Route {
                name,
                near: self.directory.join(format!("near.{name}")),
                far: self.directory.join(format!("far.{name}")),
            })
            .into()
    }

    /// Lets the destination listen for disks and memory.
    #[track_caller]
    pub(crate) fn listen(&mut self) {
        let qmp = &mut self.destination.qmp;
        let path = self.directory.join("far.nbd");
        qmp.call("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": path}}, "max-connections": 0}));
        for disk in &self.destination.disks {
            let export = json!({
                "type": "nbd", "id": format!("export-{}", disk.node), "node-name": disk.node,
                "name": disk.node, "writable": true,
            });
            qmp.call("block-export-add", export);
        }
        let capabilities = json!({"capabilities": [{"capability": "events", "state": true}]});
        qmp.call("migrate-set-capabilities", capabilities);
        let uri = format!("unix:{}", self.directory.join("far.memory").display());
        qmp.call("migrate-incoming", json!({"uri": uri}));
    }

    /// Starts to mirror every disk, as fast as it goes or at most at `speed` bytes per second.
    #[track_caller]
    pub(crate) fn start_mirrors(&mut self, speed: u64) {
        for disk in &self.source.disks {
            let target = format!("mirror-{}", disk.node);
            self.source.qmp.call("blockdev-add", self.mirror_node(disk));
            let job = json!({
                "job-id": disk.node, "device": disk.node, "target": target, "sync": "full",
                "speed": speed,
            });
            self.source.qmp.call("blockdev-mirror", job);
        }
    }

    /// What a disk is mirrored to, as `blockdev-add` takes it.
    pub(crate) fn mirror_node(&self, disk: &Disk) -> Value {
        json!({
            "driver": "nbd", "node-name": format!("mirror-{}", disk.node), "export": disk.node,
            "server": {"type": "unix", "path": self.directory.join("near.nbd")},
        })
    }

    /// Waits until every mirror is in step with the guest.
    #[track_caller]
    pub(crate) fn wait_for_mirrors(&mut self) {
        // As slow as 4 MiB/s would still do.
        let patience = PATIENCE + Duration::from_secs(self.disk_mib / 2);
        for disk in &self.source.disks {
            let event = self.source.qmp.event("end of a mirror", patience, |event| is_job_event(event, &disk.node));
            assert_eq!(event["event"], "BLOCK_JOB_READY", "{event}");
        }
    }

    /// Moves the memory, pauses the guest, ends the mirrors and finishes, with the guest still
    /// paused. Gives how long it stood still until then.
    #[track_caller]
    pub(crate) fn switch_over(&mut self) -> Duration {
        self.start_memory(UNLIMITED);
        let stop = self.wait_for_pause();
        self.end_mirrors();
        self.source.qmp.call("migrate-continue", json!({"state": "pre-switchover"}));
        self.wait_for_end();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        let paused = now.expect("a clock after 1970").as_secs_f64() - time_of(&stop);
        Duration::from_secs_f64(paused.max(0.0))
    }

    /// Begins to move the memory, at most so many bytes per second.
    #[track_caller]
    pub(crate) fn start_memory(&mut self, bandwidth: u64) {
        let qmp = &mut self.source.qmp;
        // By the return path the source hears that the destination has all, or else goes on by itself.
        let capabilities =
            ["events", "pause-before-switchover", "return-path"].map(|name| json!({"capability": name, "state": true}));
        qmp.call("migrate-set-capabilities", json!({"capabilities": capabilities}));
        self.limit_memory(bandwidth);
        let uri = format!("unix:{}", self.directory.join("near.memory").display());
        self.source.qmp.call("migrate", json!({"uri": uri}));
    }

    /// Moves the memory with at most so many bytes per second from now on.
    #[track_caller]
    pub(crate) fn limit_memory(&mut self, bandwidth: u64) {
        let limits = json!({"max-bandwidth": bandwidth, "downtime-limit": 300});
        self.source.qmp.call("migrate-set-parameters", limits);
    }

    /// Waits until the guest is paused for the switchover; gives the event that tells of it.
    #[track_caller]
    pub(crate) fn wait_for_pause(&mut self) -> Value {
        let qmp = &mut self.source.qmp;
        let reached = wait_for_migration(qmp, "pre-switchover");
        assert_eq!(reached, "pre-switchover", "{:?}", qmp.events());
        qmp.event("pause", PATIENCE, |event| event["event"] == "STOP")
    }

    /// Ends the mirrors, in step with the paused guest.
    #[track_caller]
    pub(crate) fn end_mirrors(&mut self) {
        let qmp = &mut self.source.qmp;
        // A mirror that is ready and cancelled ends in step with the guest, and only then.
        for disk in &self.source.disks {
            qmp.call("block-job-cancel", json!({"device": disk.node}));
        }
        for disk in &self.source.disks {
            let event = qmp.event("end of a mirror", PATIENCE, |event| {
                is_job_event(event, &disk.node) && event["event"] != "BLOCK_JOB_READY"
            });
            assert_eq!(event["event"], "BLOCK_JOB_COMPLETED", "{event}");
            assert_eq!(event["data"]["error"], Value::Null, "{event}");
            self.mirrored.push(event["data"]["offset"].as_u64().expect("an offset"));
        }
        for disk in &self.source.disks {
            let name = format!("mirror-{}", disk.node);
            qmp.call("blockdev-del", json!({"node-name": name}));
        }
    }

    /// Waits until the migration is complete at both sides.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) {
        let qmp = &mut self.source.qmp;
        let ended = wait_for_migration(qmp, "completed");
        assert_eq!(ended, "completed", "{:?}", qmp.events());
        let qmp = &mut self.destination.qmp;
        assert_eq!(wait_for_migration(qmp, "completed"), "completed");
        for disk in &self.destination.disks {
            let id = format!("export-{}", disk.node);
            qmp.call("block-export-del", json!({"id": id, "mode": "hard"}));
        }
        qmp.call("nbd-server-stop", json!({}));
    }

    /// All of it; gives the times.
    #[track_caller]
    pub(crate) fn run(&mut self) -> Times {
        let start = Instant::now();
        self.start_mirrors(0);
        self.wait_for_mirrors();
        let mirror = start.elapsed();
        let pause = self.switch_over();
        Times { mirror, memory: start.elapsed() - mirror, pause }
    }

    /// Fails the test unless each disk has the same bytes at both sides. The guest is paused.
    #[track_caller]
    pub(crate) fn assert_disks_are_equal(&mut self) {
        for vm in [&mut self.source, &mut self.destination] {
            let running = &vm.qmp.call("query-status", json!({}))["running"];
            assert_eq!(running, false, "a comparison of a disk in use");
        }
        let raw = self.directory.join("compared.raw");
        for (from, to) in self.source.disks.iter().zip(&self.destination.disks) {
            let [sent, received] = [from, to].map(|disk| {
                disk.copy_raw(&raw);
                sha256(&raw)
            });
            assert_eq!(sent, received, "{} differs at switchover", from.node);
        }
        std::fs::remove_file(raw).expect("our own file");
    }

    /// Ends the source, lets the guest go on at the destination, and fails the test unless it works on from where it
    /// was, and every record and page is whole to its end.
    #[track_caller]
    pub(crate) fn assert_guest_goes_on(&mut self) {
        let before = self.source.last_said();
        self.source.qmp.call("quit", json!({}));
        self.source.process.wait(PATIENCE);
        self.source.assert_guest_is_well();
        self.assert_guest_goes_on_from(&before);
    }

    /// The same, where the source has ended after the guest said that.
    #[track_caller]
    pub(crate) fn assert_guest_goes_on_from(&mut self, before: &State) {
        self.destination.qmp.call("cont", json!({}));
        // Two laps later it has looked at each page that came over.
        let later = |state: &State| state.laps >= before.laps + 2 && written(state, newest(before) + 100);
        self.destination.said("vbs-at", later);
        let end = self.destination.stop_guest();
        assert_disks_are_whole(&self.destination.disks, &end, &self.directory);
    }
}

/// Starts a program that alone sees `directory` on a file system of so many MiB, with what was in it before.
fn on_a_small_disk(directory: &Path, mib: u64) -> Run {
    need_root("mount a file system");
    let script = r#"
        set -e
        mkdir "$0.small"
        mount -t tmpfs -o size="$1" small "$0.small"
        cp --sparse=always "$0"/* "$0.small"
        mount --bind "$0.small" "$0"
        shift
        exec "$@"
    "#;
    let run = Run::new("unshare", "util-linux").args(["--mount", "--propagation", "private", "sh", "-c", script]);
    run.arg(directory).arg(format!("{mib}m"))
}

/// Whether the guest has written so many records to each disk.
pub(crate) fn written(state: &State, records: i64) -> bool {
    state.records.iter().all(|record| *record >= records)
}

/// The last record on the disk that has most.
pub(crate) fn newest(state: &State) -> i64 {
    *state.records.iter().max().expect("a guest with disks")
}

/// Fails the test unless every disk holds what the guest says that it wrote last. QEMU has ended.
#[track_caller]
pub(crate) fn assert_disks_are_whole(disks: &[Disk], end: &State, directory: &Path) {
    let raw = directory.join("checked.raw");
    assert_eq!(disks.len(), end.records.len());
    for (index, (disk, last)) in (0..).zip(disks.iter().zip(&end.records)) {
        disk.copy_raw(&raw);
        assert_ring_is_whole(&raw, index, *last);
    }
    std::fs::remove_file(raw).expect("our own file");
}

/// Makes a disk: an empty ring, then noise, and a hole at the end.
#[track_caller]
fn fill(disk: &Disk, mib: u64, seed: u64) {
    let raw = disk.image.with_extension("filled");
    let file = File::create(&raw).expect("a new image");
    file.set_len(mib * MIB).expect("a sparse file");
    let mut noise = Noise::new(seed);
    let mut chunk = vec![0; 1 << 20];
    for number in RING_MIB..mib - mib / 16 {
        noise.fill(&mut chunk);
        file.write_all_at(&chunk, number * MIB).expect("room for an image");
    }
    qemu_img().args(["convert", "-q", "-f", "raw", "-O", disk.format]).args([&raw, &disk.image]).succeed(10 * PATIENCE);
    std::fs::remove_file(raw).expect("our own file");
}

/// Whether the event tells that a mirror is ready, or its end.
pub(crate) fn is_job_event(event: &Value, node: &str) -> bool {
    let names = ["BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"];
    names.iter().any(|name| event["event"] == *name) && event["data"]["device"] == node
}

/// Waits until the migration has reached `status`, or failed, and says which.
#[track_caller]
fn wait_for_migration(qmp: &mut super::qmp::Qmp, status: &str) -> Value {
    let event = qmp.event("turn of the migration", 2 * PATIENCE, |event| {
        let reached = &event["data"]["status"];
        event["event"] == "MIGRATION" && (reached == status || reached == "failed")
    });
    event["data"]["status"].clone()
}
