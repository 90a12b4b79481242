//! A file as the server offers it: the part that touches the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::BLOCK;
use super::proto::{Errno, ExportInfo, MAX_PAYLOAD, Request, can, command};

/// What is written where a file cannot have a hole.
static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// A file under the name by which clients ask for it. `size` bytes of it are served, and it never grows beyond them.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) name: String,
    pub(crate) file: File,
    pub(crate) size: u64,
}

impl Export {
    /// Every connection writes straight to the one file, so a flush on any of them is a flush of all: MULTI_CONN.
    pub(super) fn info(&self) -> ExportInfo {
        let flags = can::HAS_FLAGS | can::FLUSH | can::FUA | can::WRITE_ZEROES | can::MULTI_CONN;
        ExportInfo { size: self.size, flags }
    }

    /// Fills `data` from the place that the request names.
    pub(super) fn read(&self, request: &Request, data: &mut [u8]) -> Result<(), Errno> {
        self.file.read_exact_at(data, request.offset).map_err(errno)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.file.write_all_at(data, offset).map_err(errno)
    }

    pub(super) fn zero(&self, request: &Request) -> Result<(), Errno> {
        self.check(request)?;
        let (offset, length) = (request.offset, u64::from(request.length));
        if request.flags & command::FLAG_NO_HOLE != 0 {
            write_zeroes(&self.file, offset, length).map_err(errno)?;
        } else {
            punch(&self.file, offset, length).map_err(errno)?;
        }
        self.commit(request)
    }

    pub(super) fn flush(&self, request: &Request) -> Result<(), Errno> {
        self.check(request)?;
        self.file.sync_data().map_err(errno)
    }

    /// Does what FUA asks for, after a request that wrote.
    pub(super) fn commit(&self, request: &Request) -> Result<(), Errno> {
        if request.flags & command::FLAG_FUA == 0 {
            return Ok(());
        }
        self.file.sync_data().map_err(errno)
    }

    /// Whether a request may be carried out at all: its flags, its length and its place.
    pub(super) fn check(&self, request: &Request) -> Result<(), Errno> {
        let (flags, payload, beyond) = match request.command {
            command::READ => (command::FLAG_FUA, true, Errno::Invalid),
            command::WRITE => (command::FLAG_FUA, true, Errno::NoSpace),
            command::WRITE_ZEROES => (command::FLAG_FUA | command::FLAG_NO_HOLE, false, Errno::NoSpace),
            // The offset and length of a FLUSH mean nothing.
            _ if request.flags & !command::FLAG_FUA == 0 => return Ok(()),
            _ => return Err(Errno::Invalid),
        };
        if request.flags & !flags != 0 || payload && request.length > MAX_PAYLOAD {
            return Err(Errno::Invalid);
        }
        match request.offset.checked_add(request.length.into()) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(beyond),
        }
    }
}

/// Frees the space where the file system can, which on a hole is nothing to do; writes zeroes elsewhere.
fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => write_zeroes(file, offset, length),
        other => Ok(other?),
    }
}

fn write_zeroes(file: &File, mut offset: u64, length: u64) -> io::Result<()> {
    let end = offset + length;
    while offset < end {
        let piece = (end - offset).min(BLOCK as u64);
        file.write_all_at(&ZEROES[..piece as usize], offset)?;
        offset += piece;
    }
    Ok(())
}

/// NBD has few errors; what it has no number for is EIO.
fn errno(error: io::Error) -> Errno {
    log::warn!("an export's file failed: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Errno::NoSpace,
        _ => Errno::Io,
    }
}
