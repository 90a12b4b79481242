//! A sparse image cut into pieces: what is data, and what is nothing but zeroes.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};

use super::BLOCK;

/// A run of the image that is all data or all hole, and that lies within one aligned block of the size asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) data: bool,
}

/// Every byte of an image, once and in order.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    file: &'a File,
    size: u64,
    /// The most bytes of a hole in one piece; of data it is [`BLOCK`].
    hole: u32,
    at: u64,
    /// Where the present extent ends, and whether it is data.
    end: u64,
    data: bool,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(file: &'a File, size: u64, hole: u32) -> Pieces<'a> {
        Pieces { file, size, hole, at: 0, end: 0, data: false }
    }

    /// Finds the extent that begins at `at`. A file system that knows nothing of holes calls everything data.
    fn next_extent(&mut self) -> io::Result<()> {
        let data = match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(offset) => offset,
            Err(rustix::io::Errno::NXIO) => self.size,
            Err(error) => return Err(error.into()),
        };
        self.data = data == self.at;
        self.end = if self.data { seek(self.file, SeekFrom::Hole(self.at))? } else { data };
        self.end = self.end.min(self.size);
        Ok(())
    }
}

impl Iterator for Pieces<'_> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<io::Result<Piece>> {
        if self.at == self.size {
            return None;
        }
        if self.at == self.end
            && let Err(error) = self.next_extent()
        {
            self.at = self.size;
            return Some(Err(error));
        }
        let block = if self.data { BLOCK as u64 } else { self.hole.into() };
        let boundary = (self.at / block + 1) * block;
        let offset = self.at;
        self.at = boundary.min(self.end);
        Some(Ok(Piece { offset, length: (self.at - offset) as u32, data: self.data }))
    }
}
