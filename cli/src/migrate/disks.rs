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

    /// What all connections did to an export; `None` where none was understood.
    pub(super) fn of(&self, export: &str) -> Option<Figures> {
        let known = self.0.lock();
        let figures = known.iter().filter_map(|disk| disk.figures()).filter(|figures| figures.export == export);
        figures.reduce(|all, more| Figures {
            written: all.written + more.written,
            zeroed: all.zeroed + more.zeroed,
            trimmed: all.trimmed + more.trimmed,
            read: all.read + more.read,
            flushes: all.flushes + more.flushes,
            ..all
        })
    }
}
