//! Whatever is killed, stopped, cut or frozen while a guest moves: it runs at one side with whole disks, and nobody hangs.
//!
//! There is one fault for each process and each phase here, and all of them in `full_matrix`, which CONTRIBUTING.md tells how to run.

mod support;

use serde_json::json;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;
use support::echo::{assert_ends, connect};
use support::fault::Fault;
use support::fault::Kind::{self, Kill, Stop};
use support::fault::Phase::{self, Acknowledged, Handshake, Memory, Mirroring, Opening, Ready, Switchover};
use support::fault::Victim::{self, Destination, Forward, Link, Serve, Source};
use support::migrate::{Migration, assert_disks_are_whole, is_job_event, newest, written};
use support::process::Run;
use support::relay::Relay;
use support::said::assert_same_causes;
use support::tool::{ANY_PORT, forward, serve};
use support::{PATIENCE, Scratch, need_root};

#[track_caller]
fn check(phase: Phase, victim: Victim, kind: Kind) {
    Fault { phase, victim, kind }.check();
}

#[test]
fn serve_stopped_in_the_handshake_is_given_up_on_and_serves_on_later() {
    check(Handshake, Serve, Stop);
}

#[test]
fn a_link_frozen_in_mid_mirror_is_given_up_on_at_both_ends() {
    check(Mirroring, Link, Stop);
}

#[test]
fn forward_killed_in_mid_mirror_leaves_the_guest_running_and_sockets_that_are_replaced() {
    check(Mirroring, Forward, Kill);
}

#[test]
fn a_destination_killed_behind_ready_mirrors_leaves_the_guest_running_and_the_tunnel_standing() {
    check(Ready, Destination, Kill);
}

#[test]
fn serve_killed_while_memory_moves_leaves_the_guest_running() {
    check(Memory, Serve, Kill);
}

#[test]
fn a_source_stopped_for_long_while_memory_moves_completes_its_migration() {
    check(Memory, Source, Stop);
}

#[test]
fn a_link_cut_at_the_switchover_has_the_guest_resume_at_the_source() {
    check(Switchover, Link, Kill);
}

#[test]
fn a_source_killed_at_the_switchover_takes_its_guest_along_and_nothing_else() {
    check(Switchover, Source, Kill);
}

#[test]
fn a_link_cut_while_open_is_under_way_refuses_the_connection_and_nothing_else() {
    check(Opening, Link, Kill);
}

#[test]
fn a_destination_without_room_ends_the_mirrors_with_that_cause_and_nothing_else() {
    let scratch = Scratch::new();
    let mut migration = Migration::prepare_with(&scratch, None, 64, Some(24));
    migration.listen();
    let mut tunnel = Relay::Tool.start(None, &migration.routes());
    let before = migration.source.last_said();
    migration.start_mirrors(0);
    for disk in &migration.source.disks {
        let event = migration.source.qmp.event("end of a mirror", PATIENCE, |event| is_job_event(event, &disk.node));
        assert_eq!(event["data"]["error"], "No space left on device", "{event}");
    }
    migration.source.said("vbs-at", |state| written(state, newest(&before) + 200));
    let status = migration.destination.qmp.call("query-status", json!({}));
    assert_eq!(status["running"], false, "{status}");
    let end = migration.source.stop_guest();
    assert_disks_are_whole(&migration.source.disks, &end, scratch.path());
    // What QEMU said of its disk it said within its own protocol: to the tunnel all is well.
    assert_same_causes(&tunnel.near[0], &tunnel.far[0], PATIENCE);
    for process in [&mut tunnel.near[0], &mut tunnel.far[0]] {
        process.assert_alive();
        assert_eq!(process.stderr.count(|line| line.contains("failed")), 0, "{}", process.stderr.text());
    }
    tunnel.end();
}

#[test]
fn a_target_that_serve_may_not_connect_to_is_refused_with_that_errno_at_both_ends() {
    need_root("own a socket that is another's");
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let _target = UnixListener::bind(&far).expect("a new socket");
    std::fs::set_permissions(&far, std::fs::Permissions::from_mode(0o600)).expect("our own socket");
    chown(&far, Some(65534), Some(65534)).expect("the right to give it away");
    // Root without what lets it pass by permissions.
    let bound = "--bounding-set=-dac_override,-dac_read_search";
    let unprivileged = Run::new("setpriv", "util-linux").arg(bound);
    let serve = serve(ANY_PORT, [("disk", &*far)]).under(unprivileged).start();
    let forward = forward(&serve.ready(), [("disk", &*near)]).start();
    forward.ready();
    assert_ends(&connect(&near));
    for end in [&serve, &forward] {
        end.line_on_stderr("refusal", |line| {
            line.contains("no stream to `disk`") && line.contains("Permission denied (os error 13)")
        });
    }
    // Who may later, is let in then.
    chown(&far, Some(0), Some(0)).expect("the right to take it back");
    let client = connect(&near);
    serve.line_on_stderr("stream", |line| line.ends_with("to `disk`") && line.contains(": stream "));
    drop(client);
    forward.end_well(&[&near]);
    serve.end_well(&[]);
}

#[test]
fn a_link_cut_before_the_source_hears_that_all_has_come_has_the_guest_resume_there_and_there_alone() {
    check(Acknowledged, Link, Kill);
}

/// Most of their time these wait, so that a few of them at once cost little.
const AT_ONCE: usize = 4;

/// Each kind of fault of each victim in each phase; those whose name has `VIRBISTREAM_FAULTS` in it, if that is set.
#[test]
#[ignore = "it takes a quarter of an hour"]
fn full_matrix() {
    let wanted = std::env::var("VIRBISTREAM_FAULTS").unwrap_or_default();
    let faults: Vec<_> = Fault::all().filter(|fault| fault.to_string().contains(&wanted)).collect();
    assert!(!faults.is_empty(), "no fault has {wanted:?} in its name");
    let (left, failed) = (Mutex::new(faults.iter()), Mutex::new(Vec::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let next = || left.lock().expect("no panic under this lock").next();
                while let Some(fault) = next() {
                    let begun = Instant::now();
                    let holds = catch_unwind(AssertUnwindSafe(|| fault.check())).is_ok();
                    eprintln!("{fault}: {} after {:.1?}", if holds { "holds" } else { "FAILS" }, begun.elapsed());
                    if !holds {
                        failed.lock().expect("no panic under this lock").push(fault.to_string());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic under this lock");
    eprintln!("{} faults, {} of them failed, in {:.1?}", faults.len(), failed.len(), begun.elapsed());
    assert!(failed.is_empty(), "what failed: {failed:#?}");
}
