//! A running guest moves with its disks from one unmodified QEMU to another, each in a network
//! namespace of its own, through the tunnel.
//!
//! These tests need root, for the namespaces. The size of the disks is `VIRBISTREAM_TEST_DISK_MIB`.

mod support;

use serde_json::json;
use support::bytes::MIB;
use support::disks::disks;
use support::echo::{assert_echoes, connect, echo_on};
use support::migrate::{Migration, Times, assert_disks_are_whole, disk_mib, is_job_event, newest, written};
use support::net::{Seen, Wire};
use support::process::Process;
use support::relay::{Relay, Route};
use support::tool::forward;
use support::{PATIENCE, Scratch, alone, wait_for};

/// A whole migration through `relay`, checked to the end, and what passed on the wire.
#[track_caller]
fn migrate_through(relay: Relay) -> (usize, Seen) {
    let _alone = alone();
    let (scratch, wire) = (Scratch::new(), Wire::new());
    let watch = wire.watch();
    let mut migration = Migration::prepare(&scratch, Some(&wire), disk_mib());
    migration.listen();
    let tunnel = relay.start(Some(&wire), &migration.routes());
    let Times { mirror, memory, pause } = migration.run();
    let cpu = tunnel.processor_time();
    migration.assert_disks_are_equal();
    migration.assert_guest_goes_on();
    let accepted = tunnel.accepted();
    for end in tunnel.end().iter().filter(|_| relay == Relay::Tool) {
        let mut seen: Vec<_> = disks(&end.stderr).into_iter().filter(|disk| disk.written > 0).collect();
        seen.sort_by(|one, other| one.export.cmp(&other.export));
        let bytes: Vec<u64> = seen.iter().map(|disk| disk.written + disk.zeroed + disk.trimmed).collect();
        assert_eq!(bytes, migration.mirrored, "what {} saw of the disks, and what QEMU has copied: {seen:?}", end.name);
    }
    eprintln!(
        "{relay:?}: two disks of {} MiB mirrored in {mirror:.2?}, memory in {memory:.2?}, \
         guest paused {pause:.2?}; the relay used {cpu:.2?} of processor time",
        disk_mib()
    );
    (accepted, watch.end())
}

#[test]
fn a_running_guest_moves_with_two_disks_over_one_tcp_connection() {
    let (accepted, seen) = migrate_through(Relay::Tool);
    assert_eq!(accepted, 1, "links that serve has accepted");
    assert_eq!(seen.connections.len(), 1, "{seen:?}");
    assert!(seen.foreign.is_empty(), "{seen:?}");
}

/// Shows that the count of connections above counts: there are two for disks and one for memory.
#[test]
fn the_same_migration_takes_three_tcp_connections_without_the_tool() {
    let (accepted, seen) = migrate_through(Relay::Socat);
    assert_eq!(accepted, 3, "connections that socat has accepted");
    assert_eq!(seen.connections.len(), 3, "{seen:?}");
    assert!(seen.foreign.is_empty(), "{seen:?}");
}

#[test]
fn a_tunnel_cut_in_mid_mirror_ends_the_mirrors_and_nothing_else() {
    let _alone = alone();
    let (scratch, wire) = (Scratch::new(), Wire::new());
    let mut migration = Migration::prepare(&scratch, Some(&wire), 256);
    migration.listen();
    let other = Route { name: "echo", near: scratch.join("near.echo"), far: scratch.join("far.echo") };
    echo_on(&other.far);
    let mut routes = migration.routes();
    routes.push(other);
    let mut tunnel = Relay::Tool.start(Some(&wire), &routes);
    // A session beside the one that is cut, with a stream that stands.
    let beside = scratch.join("beside.echo");
    let mut other = forward(&tunnel.peer, [("echo", &*beside)]).in_namespace_of(Some(wire.source.pid())).start();
    other.ready();
    let standing = connect(&beside);
    assert_echoes(&standing, b"before");
    let descriptors = tunnel.far[0].descriptors();

    // Slow enough that it cannot be over.
    migration.start_mirrors(8 * MIB);
    wait_for("mirrors that have begun", PATIENCE, || {
        let jobs = migration.source.qmp.call("query-block-jobs", json!({}));
        let jobs = jobs.as_array().expect("a list of jobs");
        let offset = |job: &serde_json::Value| job["offset"].as_u64().expect("an offset");
        (jobs.len() == 2 && jobs.iter().all(|job| offset(job) > 4 * MIB)).then_some(())
    });
    let at_cut = migration.source.last_said();
    drop(tunnel.near.remove(0)); // by SIGKILL

    // The source: each mirror ends with an error, and the guest does not notice.
    let nodes: Vec<String> = migration.source.disks.iter().map(|disk| disk.node.clone()).collect();
    for node in &nodes {
        let qmp = &mut migration.source.qmp;
        let event = qmp.event("end of a mirror", PATIENCE, |event| is_job_event(event, node));
        assert_eq!(event["event"], "BLOCK_JOB_COMPLETED", "{event}");
        assert!(event["data"]["error"].is_string(), "{event}");
    }
    let status = migration.source.qmp.call("query-status", json!({}));
    assert_eq!(status["status"], "running");
    let further = newest(&at_cut) + 200;
    migration.source.said("vbs-at", |state| written(state, further));

    // The destination: QEMU's NBD server has no client any more, and serve no descriptor too many.
    for node in &nodes {
        let export = json!({"id": format!("export-{node}"), "mode": "safe"});
        wait_for("an export that nobody uses", PATIENCE, || {
            let qmp = &mut migration.destination.qmp;
            qmp.try_call("block-export-del", export.clone()).ok()
        });
    }
    // The session that was cut had a link, which the count before it included.
    let serve: &mut Process = &mut tunnel.far[0];
    wait_for("serve to close what the cut session had", PATIENCE, || (serve.descriptors() < descriptors).then_some(()));
    serve.assert_alive();
    other.assert_alive();
    assert_echoes(&standing, b"after");
    assert_echoes(&connect(&beside), b"and a new one");

    let end = migration.source.stop_guest();
    assert_disks_are_whole(&migration.source.disks, &end, scratch.path());
}
