//! `virbistream migrate` between two hosts with nothing but libvirt, QEMU and a guest that writes all the time.

mod moving;
#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use moving::Moving;
use support::{PATIENCE, alone};

#[test]
fn one_command_moves_a_guest_with_its_disks_over_one_connection() {
    let _alone = alone();
    let moving = Moving::start();
    let finished = moving.migrate(0, "--socket-owner libvirt-qemu:kvm").finish(6 * PATIENCE);
    assert!(finished.status.success(), "{finished}");
    eprintln!("{finished}");
    moving.assert_runs_at(1);
    assert_eq!(moving.links(1), 1);
    moving.assert_nothing_is_left();
    moving.end(1);
}
