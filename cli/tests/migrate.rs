//! `virbistream migrate` between two hosts with nothing but libvirt, QEMU and a guest that writes all the time.

mod moving;
#[allow(dead_code, reason = "certificates for the loopback are others'")]
#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use moving::{DISK_MIB, Moving};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use support::bytes::MIB;
use support::host::Host;
use support::process::Process;
use support::{PATIENCE, alone, wait_for};

#[test]
fn a_guest_that_writes_goes_there_and_back_five_times_each_time_over_one_connection() {
    let _alone = alone();
    let moving = Moving::start();
    for turn in 1..=10 {
        let (from, to) = ((turn + 1) % 2, turn % 2);
        let before = moving.connections();
        let finished = moving.migrate(from, "").finish(6 * PATIENCE);
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

/// QEMU's events at a host, as they come.
#[track_caller]
fn events(host: &Host) -> Process {
    let events = host.run("exec stdbuf -oL virsh qemu-monitor-event web --loop").start();
    // It does not say when it begins to hear.
    wait_for("virsh to hear QEMU", PATIENCE, || {
        host.succeed("virsh suspend web && virsh resume web");
        (events.stdout.count(|line| line.contains("RESUME")) > 0).then_some(())
    });
    events
}

#[test]
fn what_is_said_to_have_been_written_to_each_disk_is_what_qemu_says_that_its_jobs_copied() {
    let _alone = alone();
    let moving = Moving::start();
    for turn in 1..=2 {
        let (from, to) = ((turn + 1) % 2, turn % 2);
        let events = events(&moving.hosts[from]);
        let finished = moving.migrate(from, "--json").finish(6 * PATIENCE);
        assert!(finished.status.success(), "{finished}");
        let done: Value = serde_json::from_str(finished.stdout.lines().last().unwrap_or_default()).expect("JSON");
        let figures = &done["figures"];
        let mut written = 0;
        for (target, alias) in [("vda", "virtio-disk0"), ("vdb", "virtio-disk1")] {
            let ended = events.line_on_stdout("the end of a disk's job", |line| {
                line.contains("BLOCK_JOB_COMPLETED") && line.contains(&format!("\"drive-{alias}\""))
            });
            let (_, job) = ended.split_once(": ").expect("an event's data");
            let job: Value = serde_json::from_str(job).expect("JSON");
            let disk = &figures["disks"][target];
            assert_eq!(disk["export"], format!("drive-{alias}"), "{finished}");
            assert_eq!(disk["size"], DISK_MIB * MIB, "{finished}");
            let [wrote, zeroed, trimmed] =
                ["written", "zeroed", "trimmed"].map(|key| disk[key].as_u64().expect("bytes"));
            assert_eq!(Some(wrote + zeroed + trimmed), job["offset"].as_u64(), "{target}: {job}, {disk}");
            written += wrote;
        }
        assert_eq!(figures["disk_bytes"], written, "{finished}");
        moving.assert_runs_at(to);
    }
    moving.end(0);
}

/// What a migration is slow enough with to be met on its way.
const SLOW: &str = "--bandwidth 5 --json";

/// Where a migration is cancelled.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// The guest has been looked at.
    Guest,
    /// The directory of its sockets is there.
    Directory,
    /// The destination has a QEMU for the guest.
    Prepared,
    /// So many MiB of a disk have been copied.
    Disk(&'static str, u64),
    /// So many of the memory: the disks are in step.
    Memory(u64),
    /// The guest stands still for what is left of its memory.
    Paused,
}

#[track_caller]
fn wait_until(point: Point, moving: &Moving, running: &Process) {
    let [source, destination] = &moving.hosts;
    match point {
        Point::Guest => {
            running.line_on_stdout("a check", |line| {
                let said: Value = serde_json::from_str(line).unwrap_or_default();
                said["event"] == "check" && said["what"] == "guest"
            });
        }
        Point::Directory => wait_for("the directory", PATIENCE, || {
            let there = source.succeed("ls /run/virbistream/migrations 2>/dev/null || true").stdout;
            (!there.trim().is_empty()).then_some(())
        }),
        Point::Prepared => wait_for("the guest's shell at the destination", PATIENCE, || {
            destination.run("virsh domstate web").finish(PATIENCE).status.success().then_some(())
        }),
        Point::Disk(disk, mib) => {
            running.line_on_stdout("bytes of a disk", |line| done(line, |said| &said["disks"][disk]) >= mib * MIB);
        }
        Point::Memory(mib) => {
            running.line_on_stdout("bytes of the memory", |line| done(line, |said| &said["memory"]) >= mib * MIB);
        }
        Point::Paused => {
            wait_until(Point::Memory(1), moving, running);
            // QEMU stops it for what goes in a minute, at the rate that it finds.
            source.succeed(
                "virbistream limit --control /run/moving.sock --target '*/memory' 1MiB
                 virsh migrate-setmaxdowntime web 60000",
            );
            wait_for("the guest to stand still", PATIENCE, || {
                (source.succeed("virsh domstate web").stdout.trim() == "paused").then_some(())
            });
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
    let options = format!("{SLOW} --control /run/moving.sock");
    for (point, more) in [
        (Point::Guest, ""),
        (Point::Directory, ""),
        (Point::Prepared, ""),
        (Point::Disk("vda", 1), ""),
        (Point::Disk("vdb", 20), ""),
        (Point::Disk("vdb", 20), "--p2p"),
        (Point::Disk("vda", 50), ""),
        (Point::Memory(1), ""),
        (Point::Memory(30), ""),
        (Point::Paused, ""),
    ] {
        let running = moving.migrate(0, &format!("{options} {more}")).start();
        wait_until(point, &moving, &running);
        // The end of the operator's terminal is a signal like Ctrl-C.
        Host::signal(&running, if let Point::Disk("vda", _) = point { Signal::HUP } else { Signal::INT });
        let finished = running.finish(3 * PATIENCE);
        assert_eq!(finished.status.code(), Some(6), "{point:?}: {finished}");
        assert_eq!(finished.stderr.lines().count(), 1, "{point:?}: {finished}");
        let is_begun = !matches!(point, Point::Guest | Point::Directory);
        let words = if is_begun { "the guest is running at the source" } else { "nothing was begun" };
        assert!(finished.stderr.contains(&format!("cancelled, and {words}")), "{point:?}: {finished}");
        let last: Value = serde_json::from_str(finished.stdout.lines().last().unwrap_or_default()).expect("JSON");
        assert_eq!((&last["event"], &last["code"]), (&json!("failed"), &json!(6)), "{point:?}: {finished}");
        assert_eq!(last["guest"], if is_begun { json!("running") } else { Value::Null }, "{point:?}: {finished}");
        moving.assert_runs_on(0);
        moving.assert_nothing_is_left();
    }

    // Behind the last byte of the memory only the destination's word is waited for.
    let [source, destination] = &moving.hosts;
    let before = moving.memory_streams(1);
    let running = moving.migrate(0, "--json --bandwidth 20").start();
    wait_until(Point::Memory(5), &moving, &running);
    destination.succeed("pkill -STOP -x libvirtd");
    wait_for("the memory to be over", 2 * PATIENCE, || (moving.memory_streams(1) > before).then_some(()));
    Host::signal(&running, Signal::INT);
    running.line_on_stdout("the cancel", |line| line.contains("cancelling"));
    assert_eq!(source.succeed("virsh domstate web").stdout.trim(), "paused");
    destination.succeed("pkill -CONT -x libvirtd");
    let finished = running.finish(3 * PATIENCE);
    assert!(finished.status.success(), "{finished}");
    assert!(finished.stdout.contains("it was too late to cancel: the guest had moved"), "{finished}");
    moving.assert_runs_at(1);
    moving.assert_nothing_is_left();
    moving.end(1);
}

#[test]
fn once_it_runs_at_the_destination_a_cancel_is_refused_in_words() {
    let _alone = alone();
    let _postcopy = PostcopyAllowed::now();
    let moving = Moving::start();
    let running = moving.migrate(0, &format!("{SLOW} --postcopy --postcopy-bandwidth 1")).start();
    wait_until(Point::Memory(1), &moving, &running);
    let source = &moving.hosts[0];
    source.succeed("virsh migrate-postcopy web");
    wait_for("post-copy to begin", PATIENCE, || {
        source.succeed("virsh domstate web --reason").stdout.contains("post-copy").then_some(())
    });
    Host::signal(&running, Signal::INT);
    let finished = running.finish(6 * PATIENCE);
    assert!(finished.status.success(), "{finished}");
    assert!(finished.stdout.contains("it cannot be cancelled any more"), "{finished}");
    moving.assert_runs_at(1);
    moving.assert_nothing_is_left();
    moving.end(1);
}

#[test]
fn a_migration_under_way_can_be_seen_and_slowed_down_and_a_virsh_that_hangs_holds_up_nobody() {
    let _alone = alone();
    let moving = Moving::start();
    let source = &moving.hosts[0];
    let running = moving.migrate(0, &format!("{SLOW} --control /run/moving.sock")).start();
    wait_until(Point::Disk("vdb", 4), &moving, &running);
    let status = source.succeed("virbistream status --control /run/moving.sock --once").stdout;
    for words in ["CN=destination.example", "/libvirt", "/disks", "drive-virtio-disk0", "drive-virtio-disk1"] {
        assert!(status.contains(words), "{words}: {status}");
    }
    let limit =
        |target: &str| source.run(&format!("virbistream limit --control /run/moving.sock --target '{target}' 64KiB"));
    limit("*/disks").succeed(PATIENCE);
    limit("*/nothing").finish(PATIENCE).assert_failed_saying(&["no stream to `*/nothing` stands now"]);
    running.line_on_stdout("disks slower than libvirt would have them", |line| {
        let said: Value = serde_json::from_str(line).unwrap_or_default();
        let rates = ["vda", "vdb"].map(|disk| said["disks"][disk]["bytes_per_second"].as_u64());
        // What QEMU has in its socket, and what is on its way, is told of a little later.
        rates.iter().all(|rate| rate.is_some_and(|rate| rate < 200 << 10))
    });
    Host::signal(&running, Signal::TERM);
    let finished = running.finish(3 * PATIENCE);
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    moving.assert_runs_on(0);

    let hanging = moving.hanging_virsh(0, "*domjobinfo*rawstats*");
    let running = source.run(&format!("{hanging} exec virbistream migrate web tls://destination.example:16515 {SLOW}"));
    let running = running.start();
    moving.wait_for_hanging_virsh(0);
    Host::signal(&running, Signal::INT);
    // It asks twice a second, and gives a virsh 30 s.
    let finished = running.finish(Duration::from_secs(25));
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    assert_eq!(source.run("pgrep -x sleep").finish(PATIENCE).status.code(), Some(1), "the virsh that hangs is left");
    moving.assert_runs_on(0);
    moving.assert_nothing_is_left();
    moving.end(0);
}

#[test]
fn a_destination_that_runs_full_under_way_leaves_the_guest_at_the_source() {
    let _alone = alone();
    let moving = Moving::start();
    let destination = &moving.hosts[1];
    destination.succeed(
        "cd /var/lib/libvirt/images && cp vmlinuz initrd /tmp && mount -t tmpfs -o size=200m tmpfs /var/lib/libvirt/images
         cd /var/lib/libvirt/images && mv /tmp/vmlinuz /tmp/initrd . && touch web.console && chmod 666 web.console",
    );
    let running = moving.migrate(0, SLOW).start();
    wait_until(Point::Disk("vdb", 4), &moving, &running);
    let filled = destination.run("dd if=/dev/zero of=/var/lib/libvirt/images/more bs=64k").finish(PATIENCE);
    assert!(filled.stderr.contains("No space left"), "{filled}");
    let finished = running.finish(3 * PATIENCE);
    assert_eq!(finished.status.code(), Some(5), "{finished}");
    assert!(finished.stderr.contains("No space left on device"), "{finished}");
    assert!(finished.stderr.contains("the guest is running at the source"), "{finished}");
    moving.assert_writes_on(0);
    moving.assert_nothing_is_left();
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
        .succeed("sed -e /migrate/d -e 's/^dn.*/&\\ntargets = [\"x\"]/' -e s/serve.sock/strict.sock/ -e s/16515/16516/ serve.toml >strict.toml
                  printf '[[target]]\nname = \"x\"\npath = \"/nowhere\"\n' >>strict.toml");
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
        (to("web", there, "--migrate-disks vda,vdx"), 3, "no disk `vdx`"),
        (to("web", there, "--bandwidth 5MiB"), 2, "whole number"),
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
    destination.succeed("mount -t tmpfs -o size=8m tmpfs /var/lib/libvirt/images");
    fails("umount /var/lib/libvirt/images", "bytes are needed at the destination");

    let dry = to("web", there, "--dry-run --json");
    assert!(dry.status.success(), "{dry}");
    let events = dry.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let events: Vec<_> = events.map(|said| (said["event"].clone(), said["result"].clone())).collect();
    assert!(events.iter().all(|(event, result)| event == "note" || event == "check" && result == "ok"), "{dry}");
    for what in
        ["source", "guest", "connection", "clocks", "certificates", "destination", "hosts", "name", "disk vda", "CPU"]
    {
        assert!(dry.stdout.contains(&format!("\"what\":\"{what}\"")), "{what}: {dry}");
    }
    moving.assert_nothing_is_left();

    // Who may not migrate there may with a ticket, once.
    destination.succeed("virbistream ticket --control /run/strict.sock --migrate --for 5m >/mnt/shared/ticket");
    let bearing = || to("web", "tls://destination.example:16516", "--dry-run --ticket /mnt/shared/ticket");
    let first = bearing();
    assert!(first.status.success(), "{first}");
    let second = bearing();
    assert_eq!(second.status.code(), Some(4), "{second}");
    assert!(second.stderr.contains("ticket"), "{second}");
    let open = to("web", "tcp://destination.example:16518", "--ticket /mnt/shared/ticket");
    assert_eq!(open.status.code(), Some(2), "{open}");
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
        // Whoever is not answered cannot know that its QEMU, which has all of the memory by then, still waits.
        ("libvirtd", 8, "it is running at the source, and may run at the destination, too"),
    ] {
        let running = moving.migrate(0, SLOW).start();
        wait_until(Point::Disk("vdb", 4), &moving, &running);
        moving.hosts[1].succeed(&format!("pkill -KILL -x {program}"));
        let finished = running.finish(6 * PATIENCE);
        assert_eq!(finished.status.code(), Some(code), "{program}: {finished}");
        assert!(finished.stderr.contains(words), "{program}: {finished}");
        assert!(code == 8 || finished.stderr.contains("the guest is running at the source"), "{program}: {finished}");
        moving.assert_writes_on(0);
        if program == "virbistream" {
            // What it left in its directory is removed now.
            moving.serve_again(1);
        }
        moving.assert_nothing_is_left();
    }
    moving.end(0);
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
        ("--p2p --persistent --undefinesource --socket-owner libvirt-qemu:kvm --socket-mode 0660", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let (from, to) = (turn % 2, 1 - turn % 2);
        let finished = moving.migrate(from, options).finish(6 * PATIENCE);
        assert!(finished.status.success(), "{options}: {finished}");
        moving.assert_runs_at(to);
        assert_eq!(moving.links(to), turn / 2 + 1, "{options}");
        assert!(moving.memory_streams(to) >= targets, "{options}");
        moving.assert_nothing_is_left();
    }
    moving.end(0);
}
