//! Whatever is killed, stopped, cut or frozen while a guest moves: it runs at one side with whole disks, and nobody hangs.
//!
//! There is one fault for each process and each phase here, and all of them in `full_matrix`, which CONTRIBUTING.md tells how to run.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;
use support::fault::Fault;
use support::fault::Kind::{self, Kill, Stop};
use support::fault::Phase::{self, Handshake, Memory, Mirroring, Opening, Ready, Switchover};
use support::fault::Victim::{self, Destination, Forward, Link, Serve, Source};

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
