//! Whatever is killed, stopped, cut or frozen while a guest moves: it runs at one side with whole disks, and nobody hangs.
//!
//! `VIRBISTREAM_FAULTS=all` runs each fault in each phase, which takes half an hour; else there is one for each process and
//! each phase.

mod support;

use support::fault::Fault;
use support::fault::Kind::{self, Kill, Stop};
use support::fault::Phase::{self, Handshake, Memory, Mirroring, Ready, Switchover};
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
