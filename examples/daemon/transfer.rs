//! A legacy stream from or to bytes in memory.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Registry;
use virbistream::io::{Attachment, Handler};
use virbistream::proto::StreamError;

/// Zeroes are looked for in blocks of this many bytes.
const BLOCK: usize = 4096;

/// Bytes that streams read and write, several at once if need be.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<Vec<u8>>>);

impl Disk {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of `length` bytes from `offset` on, of all that follow if it is 0; with holes where it is `sparse`. `None` when
    /// they are not all there.
    pub(crate) fn transfer(&self, offset: u64, length: u64, sparse: bool) -> Option<Transfer> {
        let len = self.bytes().len();
        let at = usize::try_from(offset).ok().filter(|at| *at <= len)?;
        let end = if length == 0 { len } else { at.checked_add(usize::try_from(length).ok()?)? };
        (end <= len).then(|| Transfer { disk: self.clone(), at, end, sparse })
    }
}

/// One way through a part of a disk. The stream's options say which.
#[derive(Debug)]
pub(crate) struct Transfer {
    disk: Disk,
    at: usize,
    end: usize,
    sparse: bool,
}

impl Transfer {
    /// How many of the bytes that come next are zeroes, or are none.
    fn run(&self, of_zeroes: bool) -> usize {
        let is_zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
        let bytes = self.disk.bytes();
        let blocks = bytes[self.at..self.end].chunks(BLOCK);
        blocks.take_while(|block| is_zero(block) == of_zeroes).map(<[u8]>::len).sum()
    }

    /// Where so many bytes are to be written.
    fn advance(&mut self, len: usize) -> io::Result<usize> {
        let at = self.at;
        if len > self.end - at {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        self.at += len;
        Ok(at)
    }
}

impl Handler for Transfer {
    fn attach(&mut self, _at: &Attachment<'_>) -> io::Result<()> {
        Ok(())
    }

    fn detach(&mut self, _registry: &Registry) {}

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A sparse one goes as far as the next hole.
        let rest = if self.sparse { self.run(false) } else { self.end - self.at };
        let len = buf.len().min(rest);
        let at = self.advance(len)?;
        buf[..len].copy_from_slice(&self.disk.bytes()[at..at + len]);
        Ok(len)
    }

    fn read_hole(&mut self) -> io::Result<Option<u64>> {
        let zeroes = if self.sparse { self.run(true) } else { 0 };
        self.at += zeroes;
        Ok((zeroes > 0).then_some(zeroes as u64))
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = 0;
        for buf in bufs {
            let at = self.advance(buf.len())?;
            self.disk.bytes()[at..at + buf.len()].copy_from_slice(buf);
            taken += buf.len();
        }
        Ok(taken)
    }

    fn write_hole(&mut self, length: u64) -> io::Result<()> {
        let len = usize::try_from(length).unwrap_or(usize::MAX);
        let at = self.advance(len)?;
        self.disk.bytes()[at..at + len].fill(0);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn reset(&mut self, _cause: &StreamError) {}
}
