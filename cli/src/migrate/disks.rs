//! The guest's disks as they pass by.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::nbd::{Disk, Figures};

/// Every NBD connection of the migration, those that are over, too. QEMU makes one for each disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Passing(Arc<Mutex<Vec<Arc<Disk>>>>);

impl Passing {
    /// For one more connection.
    pub(super) fn add(&self) -> Arc<Disk> {
        let disk = Arc::new(Disk::default());
        self.0.lock().push(Arc::clone(&disk));
        disk
    }

    /// What all connections did to an export; `None` where there is none, or one was not understood.
    pub(super) fn of(&self, export: &str) -> Option<Figures> {
        let known = self.0.lock();
        let of_it = known.iter().filter(|disk| disk.export() == Some(export));
        let figures: Option<Vec<_>> = of_it.map(|disk| disk.figures()).collect();
        figures?.into_iter().reduce(|all, more| Figures {
            written: all.written + more.written,
            zeroed: all.zeroed + more.zeroed,
            trimmed: all.trimmed + more.trimmed,
            read: all.read + more.read,
            flushes: all.flushes + more.flushes,
            ..all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_of_which_one_connection_was_not_understood_has_no_figures() {
        let passing = Passing::default();
        assert_eq!(passing.of("vda"), None);
        let connections = ["vda", "vda", "vdb"].map(|export| {
            let disk = passing.add();
            disk.begin(export.into(), 4096);
            disk
        });
        assert_eq!(passing.of("vda").map(|all| all.size), Some(4096));
        connections[1].fall_silent();
        assert_eq!(passing.of("vda"), None);
        assert!(passing.of("vdb").is_some());
    }
}
