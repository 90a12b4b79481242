//! A handler that is read along.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use mio::Registry;
use mio::event::Event;
use parking_lot::Mutex;
use virbistream::io::{Attachment, Handler, SessionKey, StreamKey};
use virbistream::proto::StreamError;

use super::disk::{Counts, Disk};
use super::observer::{From, Observer};

/// The disks of the streams that stand, and what was done on all that ever did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disks {
    standing: Arc<Mutex<BTreeMap<StreamKey, Arc<Disk>>>>,
    all: Arc<Counts>,
}

impl Disks {
    /// Has what a handler reads and writes read along. `near` is at its end: a client of NBD where somebody connected to us, a server
    /// where we dialled. What is known of it stands in `disk`, and here while the stream does.
    pub(crate) fn observe(&self, near: From, disk: Arc<Disk>, handler: Box<dyn Handler>) -> Box<dyn Handler> {
        Box::new(Observed {
            handler,
            observer: Observer::new(Arc::clone(&disk), Arc::clone(&self.all)),
            near,
            disk,
            disks: self.clone(),
            key: None,
        })
    }

    /// What is known of a stream's disk, if it is one.
    pub(crate) fn of(&self, stream: StreamKey) -> Option<Arc<Disk>> {
        self.standing.lock().get(&stream).cloned()
    }

    /// What was done on all disks, those whose streams are over, too.
    pub(crate) fn all(&self) -> &Counts {
        &self.all
    }
}

pub(crate) struct Observed {
    handler: Box<dyn Handler>,
    observer: Observer,
    near: From,
    disk: Arc<Disk>,
    disks: Disks,
    /// Its session and stream, once that stands.
    key: Option<(SessionKey, StreamKey)>,
}

impl Observed {
    fn far(&self) -> From {
        match self.near {
            From::Client => From::Server,
            From::Server => From::Client,
        }
    }
}

impl Handler for Observed {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        self.handler.attach(at)?;
        self.disks.standing.lock().insert(at.stream(), Arc::clone(&self.disk));
        self.key = Some((at.session(), at.stream()));
        Ok(())
    }

    fn detach(&mut self, registry: &Registry) {
        self.handler.detach(registry);
        if let (Some((session, _)), Some(figures)) = (self.key, self.disk.figures()) {
            log::info!(
                event = "disk", session = session.number(), export = figures.export.as_str(), size = figures.size,
                written = figures.written, zeroed = figures.zeroed, trimmed = figures.trimmed, read = figures.read,
                flushes = figures.flushes;
                "session {session}: {figures}"
            );
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.handler.read(buf)?;
        self.observer.feed(self.near, buf.get(..len).unwrap_or_default());
        Ok(len)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.handler.write(bufs)?;
        let (far, mut left) = (self.far(), taken);
        for buf in bufs {
            let len = left.min(buf.len());
            self.observer.feed(far, &buf[..len]);
            left -= len;
        }
        Ok(taken)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.handler.finish()
    }

    fn stop(&mut self) {
        self.handler.stop();
    }

    fn reset(&mut self, cause: &StreamError) {
        self.handler.reset(cause);
    }

    fn write_hole(&mut self, length: u64) -> io::Result<()> {
        self.handler.write_hole(length)
    }

    fn read_hole(&mut self) -> io::Result<Option<u64>> {
        self.handler.read_hole()
    }

    fn is_broken(&self, event: &Event) -> bool {
        self.handler.is_broken(event)
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if let Some((_, key)) = self.key {
            self.disks.standing.lock().remove(&key);
        }
    }
}
