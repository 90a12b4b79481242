//! The directory of a migration, at either end: made below a base of the administrator's, and removed with the sockets in it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Uid, chmodat, chownat, flock, fstat, mkdirat, open,
    openat, unlinkat,
};
use uuid::Uuid;
use virbistream::io::Permissions;

/// Others than the owner of a directory see that it is there.
const MODE: u32 = 0o711;

/// Where directories are made.
#[derive(Clone, Debug)]
pub(crate) struct Base(Arc<OwnedFd>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    base: Base,
    name: String,
    /// Locked: who finds it unlocked knows that its owner was killed.
    _lock: OwnedFd,
}

impl Base {
    /// Makes it where it is not there, and removes what is in it of owners that were killed.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        make_path(path)?;
        let base = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for entry in Dir::read_from(&base)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if Uuid::try_parse(&name).is_ok() {
                sweep(&base, &name);
            }
        }
        Ok(Self(Arc::new(base)))
    }

    /// Makes a directory that was not there before.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn make(&self, migration: Uuid, permissions: Permissions, mode: u32) -> io::Result<Directory> {
        let name = migration.to_string();
        loop {
            mkdirat(&self.0, &name, Mode::RWXU)?;
            // Before it was locked, somebody who opened the base may have taken it for one that was left.
            let lock = match open_directory(&self.0, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            flock(&lock, FlockOperation::LockExclusive)?;
            if fstat(&lock)?.st_nlink == 0 {
                continue;
            }
            let directory = Directory { base: self.clone(), name, _lock: lock };
            let (user, group) = (permissions.user.map(Uid::from_raw), permissions.group.map(Gid::from_raw));
            // In this order, it takes no right over other users' files.
            let mode = Mode::from_raw_mode(permissions.mode.unwrap_or(mode));
            chmodat(&self.0, &directory.name, mode, AtFlags::empty())?;
            chownat(&self.0, &directory.name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(directory);
        }
    }

    pub(crate) fn as_fd(&self) -> &OwnedFd {
        &self.0
    }
}

impl Directory {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn base(&self) -> &Base {
        &self.base
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.base.0, &self.name) {
            log::warn!("the directory of migration {} stays: {error}", self.name);
        }
    }
}

/// Whatever the umask is: other users must come through.
fn make_path(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(MODE)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => match path.parent().filter(|_| error.kind() == io::ErrorKind::NotFound) {
            Some(parent) => make_path(parent).and_then(|()| make_path(path)),
            None => Err(error),
        },
    }
}

fn open_directory(base: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(base, name, flags, Mode::empty())?)
}

/// Removes what nobody has locked.
fn sweep(base: &OwnedFd, name: &str) {
    let swept = open_directory(base, name).and_then(|directory| {
        flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        log::info!("migration {name} was left by a process that was killed: its directory is removed");
        remove(base, name)
    });
    if let Err(error) = swept.or_else(|error| (error.kind() == io::ErrorKind::WouldBlock).then_some(()).ok_or(error)) {
        log::warn!("the directory of migration {name} stays: {error}");
    }
}

/// Sockets alone are removed with it, and their locks: nothing else belongs there.
fn remove(base: &OwnedFd, name: &str) -> io::Result<()> {
    let directory = open_directory(base, name)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let is_lock = entry.file_name().to_bytes().ends_with(b".virbistream-lock");
        if entry.file_type() == FileType::Socket || is_lock {
            unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(unlinkat(base, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_directory_is_there_until_it_is_dropped_and_its_sockets_with_it() {
        let scratch = tempfile::tempdir().unwrap();
        let base = Base::open(scratch.path()).unwrap();
        let migration = Uuid::new_v4();
        let directory = base.make(migration, Permissions::default(), 0o711).unwrap();
        let path = scratch.path().join(migration.to_string());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o711);
        assert!(base.make(migration, Permissions::default(), 0o711).is_err(), "it is another's");
        UnixListener::bind(path.join("disks.sock")).unwrap();
        Base::open(scratch.path()).unwrap();
        assert!(path.join("disks.sock").exists(), "it has an owner");
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_owner_left_is_removed_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let (left, other, full) = (Uuid::new_v4().to_string(), "other", Uuid::new_v4().to_string());
        for name in [&*left, other, &full] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        UnixListener::bind(scratch.path().join(&left).join("memory.sock")).unwrap();
        fs::write(scratch.path().join(&full).join("precious"), "").unwrap();
        std::os::unix::fs::symlink(other, scratch.path().join(Uuid::new_v4().to_string())).unwrap();
        Base::open(scratch.path()).unwrap();
        assert!(!scratch.path().join(&left).exists());
        assert!(scratch.path().join(other).exists());
        assert!(scratch.path().join(&full).join("precious").exists());
    }
}
