//! One disk of the demo: its image on host A, the copy on host B, and the way from one to the other.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::report::Progress;
use super::scratch::Scratch;
use super::{Error, images, nbd};

/// A source with data in about half of it, and a copy that is all hole until it is copied to.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) name: String,
    size: u64,
    source: File,
    copy: File,
}

impl Disk {
    pub(crate) fn make(number: u16, size: u64, scratch: &Scratch, progress: &Progress) -> Result<Disk, Error> {
        let name = format!("disk{number}");
        let dir = scratch.path();
        let task = progress.task(format!("writing {name}"), size);
        let source = images::generate(dir, size, number.into(), |bytes| task.advance(bytes));
        let pair = source.and_then(|source| Ok((source, images::empty(dir, size)?)));
        match pair {
            Ok((source, copy)) => Ok(Disk { name, size, source, copy }),
            Err(source) => Err(Error::Image { disk: name, dir: dir.to_owned(), source }),
        }
    }

    /// The copy, as host B's NBD server offers it.
    pub(crate) fn export(&self) -> io::Result<nbd::Export> {
        Ok(nbd::Export { name: self.name.clone(), file: self.copy.try_clone()?, size: self.size })
    }

    /// A connection to copy over.
    pub(crate) fn connect(&self, socket: &Path) -> Result<UnixStream, Error> {
        UnixStream::connect(socket).map_err(|error| self.not_copied(error.into()))
    }

    /// Copies the source to the export behind the connection.
    pub(crate) fn copy(&self, connection: UnixStream, progress: &Progress) -> Result<nbd::Copied, Error> {
        let task = progress.task(self.name.clone(), self.size);
        nbd::copy(&self.source, self.size, connection, &self.name, &|bytes| task.advance(bytes))
            .map_err(|error| self.not_copied(error))
    }

    fn not_copied(&self, source: nbd::Error) -> Error {
        Error::Copy { disk: self.name.clone(), source }
    }

    /// Compares source and copy, byte for byte.
    pub(crate) fn verify(&self, progress: &Progress) -> Result<(), Error> {
        let task = progress.task(format!("verifying {}", self.name), self.size);
        let disk = || self.name.clone();
        match images::first_difference(&self.source, &self.copy, |bytes| task.advance(bytes)) {
            Ok(None) => Ok(()),
            Ok(Some(offset)) => Err(Error::Differs { disk: disk(), offset }),
            Err(source) => Err(Error::Verify { disk: disk(), source }),
        }
    }

    /// How many bytes the source and the copy take up.
    pub(crate) fn allocated(&self) -> io::Result<(u64, u64)> {
        Ok((images::allocated(&self.source)?, images::allocated(&self.copy)?))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const SIZE: u64 = 8 << 20;

    fn copied(scratch: &Scratch, progress: &Progress) -> Disk {
        let disk = Disk::make(0, SIZE, scratch, progress).expect("an image");
        let socket = scratch.join("socket");
        let server =
            nbd::Server::bind(&socket, vec![disk.export().expect("a descriptor")]).expect("the server listens");
        let connection = disk.connect(&socket).expect("the server listens");
        disk.copy(connection, progress).expect("copied");
        drop(server);
        disk
    }

    #[test]
    fn a_true_copy_is_verified() {
        let (scratch, progress) = (Scratch::new().expect("a directory"), Progress::new());
        copied(&scratch, &progress).verify(&progress).expect("nothing differs");
    }

    #[test]
    fn one_flipped_bit_fails_loudly() {
        let (scratch, progress) = (Scratch::new().expect("a directory"), Progress::new());
        let disk = copied(&scratch, &progress);
        let mut byte = [0];
        disk.copy.read_exact_at(&mut byte, 5_000_001).expect("readable");
        disk.copy.write_all_at(&[byte[0] ^ 0x80], 5_000_001).expect("writable");
        let error = disk.verify(&progress).expect_err("a bit was flipped");
        assert_eq!(error.to_string(), "disk0 was copied wrongly: source and copy differ at byte 5000001");
    }

    #[test]
    fn what_was_never_copied_fails_loudly() {
        let (scratch, progress) = (Scratch::new().expect("a directory"), Progress::new());
        let disk = Disk::make(0, SIZE, &scratch, &progress).expect("an image");
        assert!(matches!(disk.verify(&progress), Err(Error::Differs { .. })));
    }
}
