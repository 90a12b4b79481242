//! What is known of a disk by what passes.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

/// Characters of an export's name that are kept: it is said again in every answer, for each stream.
const NAME_MAX: usize = 256;

/// One NBD connection's export and what was done on it. Counted by the thread that carries it, read by any.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    export: OnceLock<(String, u64)>,
    counts: Counts,
    silent: AtomicBool,
}

/// Bytes of requests that succeeded, and flushes.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    written: AtomicU64,
    zeroed: AtomicU64,
    trimmed: AtomicU64,
    read: AtomicU64,
    flushes: AtomicU64,
}

/// A request that succeeded, with its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Done {
    Read(u64),
    Written(u64),
    Zeroed(u64),
    Trimmed(u64),
    Flush,
    Nothing,
}

/// Its figures at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    /// The export's name, otherwise the client's choice: it may have control characters.
    pub(crate) export: String,
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Bytes of requests that the server has answered with success.
    pub(crate) written: u64,
    pub(crate) zeroed: u64,
    pub(crate) trimmed: u64,
    pub(crate) read: u64,
    pub(crate) flushes: u64,
}

impl Disk {
    /// The export, once that is known, even of one that was not understood behind that.
    pub(crate) fn export(&self) -> Option<&str> {
        self.export.get().map(|(name, _)| &**name)
    }

    /// Of one that is known, and of which all was understood.
    pub(crate) fn figures(&self) -> Option<Figures> {
        let (export, size) = self.export.get()?;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let figures = Figures {
            export: export.clone(),
            size: *size,
            written: self.counts.written(),
            zeroed: self.counts.zeroed(),
            trimmed: count(&self.counts.trimmed),
            read: count(&self.counts.read),
            flushes: count(&self.counts.flushes),
        };
        (!self.silent.load(Ordering::Relaxed)).then_some(figures)
    }

    pub(crate) fn begin(&self, mut export: String, size: u64) {
        if let Some((end, _)) = export.char_indices().nth(NAME_MAX) {
            export.truncate(end);
            export.push('…');
        }
        let _ = self.export.set((export, size));
    }

    pub(super) fn count(&self, done: Done) {
        self.counts.count(done);
    }

    pub(crate) fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

impl Counts {
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn zeroed(&self) -> u64 {
        self.zeroed.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, done: Done) {
        let (counter, more) = match done {
            Done::Read(bytes) => (&self.read, bytes),
            Done::Written(bytes) => (&self.written, bytes),
            Done::Zeroed(bytes) => (&self.zeroed, bytes),
            Done::Trimmed(bytes) => (&self.trimmed, bytes),
            Done::Flush => (&self.flushes, 1),
            Done::Nothing => return,
        };
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        let Self { export, size, written, zeroed, trimmed, read, flushes } = self;
        json!({
            "export": export, "size": size, "written": written, "zeroed": zeroed, "trimmed": trimmed, "read": read,
            "flushes": flushes,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { export, size, written, zeroed, trimmed, read, flushes } = self;
        write!(
            f,
            "disk {export:?} of {size} bytes: {written} written, {zeroed} zeroed, {trimmed} trimmed, {read} read, \
             {flushes} flushes"
        )
    }
}
