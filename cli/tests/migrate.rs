//! `virbistream migrate` between two hosts with nothing but libvirt, QEMU and a guest that writes all the time.

mod moving;
#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use moving::Moving;
use support::{PATIENCE, alone};

/// QEMU is another user's, to whom the sockets have to be open.
const OWNER: &str = "--socket-owner libvirt-qemu:kvm";

#[test]
fn a_guest_that_writes_goes_there_and_back_five_times_each_time_over_one_connection() {
    let _alone = alone();
    let moving = Moving::start();
    for turn in 1..=10 {
        let (from, to) = ((turn + 1) % 2, turn % 2);
        let finished = moving.migrate(from, OWNER).finish(6 * PATIENCE);
        assert!(finished.status.success(), "turn {turn}: {finished}");
        assert!(finished.stdout.contains("`web` runs at the destination: "), "{finished}");
        assert_eq!(finished.stderr, "", "{finished}");
        moving.assert_runs_at(to);
        assert_eq!(moving.links(to), turn.div_ceil(2), "links from one host to the other, by turn {turn}");
        moving.assert_nothing_is_left();
    }
    moving.end(0);
}
