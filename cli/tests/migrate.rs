//! `virbistream migrate` between two hosts with nothing but libvirt, QEMU and a guest that writes all the time.

mod moving;
#[allow(dead_code, reason = "certificates for the loopback are others'")]
#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use moving::Moving;
use rustix::process::Signal;
use serde_json::Value;
use support::bytes::MIB;
use support::host::Host;
use support::process::Process;
use support::{PATIENCE, alone, wait_for};

/// QEMU is another user's, to whom the sockets have to be open.
const OWNER: &str = "--socket-owner libvirt-qemu:kvm";

#[test]
fn a_guest_that_writes_goes_there_and_back_five_times_each_time_over_one_connection() {
    let _alone = alone();
    let moving = Moving::start();
    for turn in 1..=10 {
        let (from, to) = ((turn + 1) % 2, turn % 2);
        let before = moving.connections();
        let finished = moving.migrate(from, OWNER).finish(6 * PATIENCE);
        assert!(finished.status.success(), "turn {turn}: {finished}");
        let mut wanted = before;
        wanted[from][0] += 1;
        wanted[to][1] += 1;
        assert_eq!(moving.connections(), wanted, "connections that each host began and took, by turn {turn}");
        assert!(finished.stdout.contains("`web` runs at the destination: "), "{finished}");
        assert_eq!(finished.stderr, "", "{finished}");
        moving.assert_runs_at(to);
        moving.assert_answers_at(to, turn);
        assert_eq!(moving.links(to), turn.div_ceil(2), "links from one host to the other, by turn {turn}");
        moving.assert_nothing_is_left();
    }
    moving.end(0);
}

/// What a migration is slow enough with to be met on its way.
const SLOW: &str = "--socket-owner libvirt-qemu:kvm --bandwidth 5 --json";

/// Where a migration is cancelled: a word of its JSON lines, or of what libvirt says at the source.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// A check that has just been said.
    Check(&'static str),
    /// The directory of its sockets is there.
    Directory,
    /// So many MiB of a disk have been copied.
    Disk(&'static str, u64),
    /// So many of the memory.
    Memory(u64),
}

const POINTS: [Point; 10] = [
    Point::Check("guest"),
    Point::Directory,
    Point::Check("connection"),
    Point::Check("disk vdb"),
    Point::Check("CPU"),
    Point::Disk("vda", 1),
    Point::Disk("vdb", 20),
    Point::Disk("vda", 50),
    Point::Memory(1),
    Point::Memory(30),
];

#[track_caller]
fn wait_until(point: Point, moving: &Moving, running: &Process) {
    match point {
        Point::Check(what) => {
            running.line_on_stdout("a check", |line| {
                let said: Value = serde_json::from_str(line).unwrap_or_default();
                said["event"] == "check" && said["what"] == what
            });
        }
        Point::Directory => wait_for("the directory", PATIENCE, || {
            let there = moving.hosts[0].succeed("ls /run/virbistream/migrations 2>/dev/null || true").stdout;
            (!there.trim().is_empty()).then_some(())
        }),
        Point::Disk(disk, mib) => {
            running.line_on_stdout("bytes of a disk", |line| done(line, |said| &said["disks"][disk]) >= mib * MIB);
        }
        Point::Memory(mib) => {
            running.line_on_stdout("bytes of the memory", |line| done(line, |said| &said["memory"]) >= mib * MIB);
        }
    }
}

/// What a line says of progress.
fn done(line: &str, of: impl Fn(&Value) -> &Value) -> u64 {
    let said: Value = serde_json::from_str(line).unwrap_or_default();
    of(&said)["done"].as_u64().unwrap_or_default()
}

#[test]
fn cancelled_anywhere_the_guest_runs_on_at_the_source_and_nothing_is_left() {
    let _alone = alone();
    let moving = Moving::start();
    for point in POINTS {
        let running = moving.migrate(0, SLOW).start();
        wait_until(point, &moving, &running);
        Host::signal(&running, Signal::INT);
        let finished = running.finish(3 * PATIENCE);
        assert_eq!(finished.status.code(), Some(6), "{point:?}: {finished}");
        assert_eq!(finished.stderr.lines().count(), 1, "{point:?}: {finished}");
        assert!(finished.stderr.contains("cancelled, and the guest is running at the source"), "{point:?}: {finished}");
        moving.assert_runs_on(0);
        moving.assert_nothing_is_left();
    }
    moving.end(0);
}

#[test]
fn what_speaks_against_a_migration_is_said_in_one_sentence_before_it_begins() {
    let _alone = alone();
    let moving = Moving::start();
    let [source, destination] = &moving.hosts;
    source.succeed(
        "empty() { echo \"<domain type='qemu'><name>$1</name><memory>65536</memory><os><type arch='x86_64'>hvm</type></os></domain>\"; }
         empty off >off.xml; virsh define off.xml
         empty diskless >diskless.xml; virsh create --paused diskless.xml",
    );
    destination
        .succeed("sed -e /migrate/d -e 's/^dn.*/&\\ntargets = [\"x\"]/' -e s/16515/16516/ serve.toml >strict.toml");
    let strict = destination.run("exec virbistream serve -v --config strict.toml").start();
    strict.ready();
    let to = |domain: &str, target: &str, options: &str| {
        source.run(&format!("exec virbistream migrate {domain} {target} {options}")).finish(6 * PATIENCE)
    };
    let there = "tls://destination.example:16515";
    for (finished, code, words) in [
        (to("nobody", there, ""), 3, "nobody"),
        (to("off", there, ""), 3, "only a running guest is moved"),
        (to("diskless", there, ""), 3, "none that would be copied"),
        (to("web", "tls://source.example:16515", ""), 3, "the same host"),
        (to("web", "tls://destination.example:16516", ""), 4, "no rule here lets you open"),
        (to("web", "tls://destination.example:16517", ""), 4, "Connection refused"),
        (to("web", there, "--base /run/elsewhere"), 4, "both must have the same"),
        (to("web", there, "--connect qemu+unix:///system?socket=/nowhere"), 3, "/nowhere"),
        (to("web", "tls://destination.example:16515?no_verify=1", ""), 2, "no_verify"),
    ] {
        assert_eq!(finished.status.code(), Some(code), "{words}: {finished}");
        assert!(finished.stderr.contains(words), "{words}: {finished}");
        assert!(code == 2 || finished.stderr.lines().count() == 1, "{finished}");
        moving.assert_nothing_is_left();
    }
    let fails = |undo: &str, words: &str| {
        let finished = to("web", there, "");
        assert_eq!(finished.status.code(), Some(3), "{finished}");
        assert!(finished.stderr.contains(words), "{finished}");
        destination.succeed(undo);
        moving.assert_nothing_is_left();
    };
    destination.succeed("virsh pool-destroy images");
    fails("virsh pool-create-as images dir --target /var/lib/libvirt/images", "in the directory of no storage pool");
    destination.succeed("mount -t tmpfs -o size=8m tmpfs /var/lib/libvirt/images && virsh pool-refresh images");
    fails("umount /var/lib/libvirt/images && virsh pool-refresh images", "bytes are needed at the destination");

    let dry = to("web", there, "--dry-run --json");
    assert!(dry.status.success(), "{dry}");
    let events = dry.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let events: Vec<_> = events.map(|said| (said["event"].clone(), said["result"].clone())).collect();
    assert!(events.iter().all(|(event, result)| event == "note" || event == "check" && result == "ok"), "{dry}");
    moving.assert_nothing_is_left();
    moving.assert_runs_on(0);
    Host::end(strict);
    source.succeed("virsh destroy diskless");
    moving.end(0);
}

#[test]
fn when_the_destination_is_lost_the_guest_runs_on_at_the_source() {
    let _alone = alone();
    let mut moving = Moving::start();
    for (program, code, words) in [
        ("qemu-system-x86", 5, "libvirt gave the migration up"),
        ("virbistream", 7, "the connection to the destination was lost"),
        ("libvirtd", 5, "libvirt gave the migration up"),
    ] {
        let running = moving.migrate(0, SLOW).start();
        wait_until(Point::Disk("vdb", 4), &moving, &running);
        moving.hosts[1].succeed(&format!("pkill -KILL -x {program}"));
        let finished = running.finish(6 * PATIENCE);
        assert_eq!(finished.status.code(), Some(code), "{program}: {finished}");
        assert!(finished.stderr.contains(words), "{program}: {finished}");
        assert!(finished.stderr.contains("the guest is running at the source"), "{program}: {finished}");
        moving.assert_writes_on(0);
        if program == "virbistream" {
            // What it left in its directory is removed now.
            moving.serve_again(1);
        }
        moving.assert_nothing_is_left();
    }
}

/// QEMU that is not root may have the page faults that post-copy takes, while this is there.
struct PostcopyAllowed(String);

const USERFAULTFD: &str = "/proc/sys/vm/unprivileged_userfaultfd";

impl PostcopyAllowed {
    fn now() -> Self {
        let before = std::fs::read_to_string(USERFAULTFD).expect("a kernel that has it");
        std::fs::write(USERFAULTFD, "1").expect("root sets it");
        Self(before)
    }
}

impl Drop for PostcopyAllowed {
    fn drop(&mut self) {
        _ = std::fs::write(USERFAULTFD, &self.0);
    }
}

/// What libvirt's own tunnel refuses.
#[test]
fn memory_over_several_streams_in_post_copy_and_with_synchronous_writes_goes_through_too() {
    let _alone = alone();
    let _postcopy = PostcopyAllowed::now();
    let moving = Moving::start();
    for (turn, (options, targets)) in [
        ("--parallel --parallel-connections 3", 3),
        ("--copy-storage-synchronous-writes", 1),
        ("--postcopy --postcopy-after-precopy", 1),
        ("--p2p --persistent --undefinesource", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let (from, to) = (turn % 2, 1 - turn % 2);
        let finished = moving.migrate(from, &format!("{OWNER} {options}")).finish(6 * PATIENCE);
        assert!(finished.status.success(), "{options}: {finished}");
        moving.assert_runs_at(to);
        assert_eq!(moving.links(to), turn / 2 + 1, "{options}");
        assert!(moving.memory_streams(to) >= targets, "{options}");
        moving.assert_nothing_is_left();
    }
    moving.end(0);
}
