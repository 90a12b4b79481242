//! `virbistream migrate` where libvirt does not say how it ended.

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

/// Waits until so much of the memory has moved.
#[track_caller]
fn wait_for_memory(running: &Process, mib: u64) {
    running.line_on_stdout("bytes of the memory", |line| {
        let said: Value = serde_json::from_str(line).unwrap_or_default();
        said["memory"]["done"].as_u64().is_some_and(|done| done >= mib * MIB)
    });
}

fn state(host: &Host) -> String {
    host.succeed("virsh domstate web").stdout.trim().to_owned()
}

/// libvirt lets it go on at the source, and cannot know that it runs at the destination.
#[test]
fn when_the_destinations_last_word_is_lost_nobody_says_that_the_guest_is_only_at_the_source() {
    let _alone = alone();
    let moving = Moving::start();
    let [source, destination] = &moving.hosts;
    let running = moving.migrate(0, "--json --bandwidth 20").start();
    wait_for_memory(&running, 5);
    destination.succeed("pkill -STOP -x libvirtd");
    wait_for("the memory to be over", 2 * PATIENCE, || (moving.memory_streams(1) >= 1).then_some(()));
    wait_for("the guest to stand still", PATIENCE, || (state(source) == "paused").then_some(()));
    source.succeed("ip link set wire down");
    destination.succeed("pkill -CONT -x libvirtd");
    wait_for("the guest to run at the destination", PATIENCE, || (state(destination) == "running").then_some(()));
    let finished = running.finish(3 * PATIENCE);
    assert_eq!(finished.status.code(), Some(8), "{finished}");
    assert!(finished.stderr.contains("may run at the destination, too"), "{finished}");
    let last: Value = serde_json::from_str(finished.stdout.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(last["guest"], Value::Null, "{finished}");
    assert_eq!([source, destination].map(state), ["running", "running"], "what libvirt makes of it");
    source.succeed("ip link set wire up");
}

#[test]
fn a_second_signal_waits_for_no_libvirt_that_does_not_end_it() {
    let _alone = alone();
    let moving = Moving::start();
    let source = &moving.hosts[0];
    let hanging = moving.hanging_virsh(0, "*domjobabort*");
    let migrate = "exec virbistream migrate web tls://destination.example:16515 --json --bandwidth 5";
    let running = source.run(&format!("{hanging} {migrate}")).start();
    running.line_on_stdout("progress", |line| line.contains("\"progress\""));
    let owner = source.succeed("stat --format='%U %a' /run/virbistream/migrations/*/libvirt.sock").stdout;
    assert_eq!(owner.trim(), "root 600", "whoever opens it is root at the destination");
    Host::signal(&running, Signal::INT);
    moving.wait_for_hanging_virsh(0);
    Host::signal(&running, Signal::INT);
    let finished = running.finish(PATIENCE / 2);
    assert_eq!(finished.status.code(), Some(8), "{finished}");
    assert!(finished.stderr.contains("nobody waits any more"), "{finished}");
    assert_eq!(source.run("pgrep -x sleep").finish(PATIENCE).status.code(), Some(1), "the virsh that hangs is left");
    // virsh is gone, and with it what libvirt had begun for it.
    moving.assert_writes_on(0);
    moving.assert_nothing_is_left();
    moving.end(0);
}
