//! A legacy stream from or to bytes in memory.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virbistream::io::Handler;

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

    pub(crate) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// A stream of `length` bytes from `offset` on, of all that follow if it is 0; of no more than there are.
    pub(crate) fn transfer(&self, offset: u64, length: u64) -> Transfer {
        let len = self.len();
        let at = usize::try_from(offset).unwrap_or(len).min(len);
        let asked = usize::try_from(length).ok().filter(|length| *length > 0);
        let end = at.saturating_add(asked.unwrap_or(len)).min(len);
        Transfer { disk: self.clone(), at, end, data: None }
    }
}

/// One way through a part of a disk. The stream's options say which.
#[derive(Debug)]
pub(crate) struct Transfer {
    disk: Disk,
    at: usize,
    end: usize,
    /// Up to the next hole, where holes are asked for.
    data: Option<usize>,
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
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.data.take().unwrap_or(self.end - self.at));
        let at = self.advance(len)?;
        buf[..len].copy_from_slice(&self.disk.bytes()[at..at + len]);
        Ok(len)
    }

    fn read_hole(&mut self) -> io::Result<Option<u64>> {
        let zeroes = self.run(true);
        self.at += zeroes;
        self.data = Some(self.run(false));
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
}
