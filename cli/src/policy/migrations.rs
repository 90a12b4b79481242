//! The targets of migrations: a directory for each below the administrator's, for as long as its session holds it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::json;
use uuid::Uuid;
use virbistream::io::{Attachment, Decision, Handler, Permissions, UnixTargets, Waker};
use virbistream::wire::{RemoteError, codes, domains};

use super::offered::dial_below;
use crate::migrate::{Base, Directory, Name, Part};

/// Directories that one session may hold.
const MOST: usize = 16;

/// Mode of a directory where nothing is configured.
const MODE: u32 = 0o700;

/// Where directories of migrations are made, and what they lead to.
#[derive(Debug)]
pub(crate) struct Migrations {
    base: Base,
    path: PathBuf,
    permissions: Permissions,
    daemon: PathBuf,
}

impl Migrations {
    /// # Errors
    /// The system's, on the directory.
    pub(crate) fn new(path: &Path, permissions: Permissions, daemon: &Path) -> io::Result<Self> {
        Ok(Self { base: Base::open(path)?, path: path.into(), permissions, daemon: daemon.into() })
    }

    /// What the one who migrates must know: where it is, and what time it is here.
    fn greeting(&self, migration: Uuid) -> Vec<u8> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = self.path.join(migration.to_string());
        format!("{}\n", json!({ "path": path.to_string_lossy(), "time": now.as_secs() })).into_bytes()
    }
}

/// The migrations of one session.
#[derive(Debug)]
pub(super) struct OfSession {
    migrations: Arc<Migrations>,
    held: Mutex<BTreeMap<Uuid, Weak<Directory>>>,
}

impl OfSession {
    pub(super) fn new(migrations: Arc<Migrations>) -> Self {
        Self { migrations, held: Mutex::default() }
    }

    pub(super) fn open(&self, name: Name) -> Decision {
        let target = name.to_string();
        let held = self.held.lock().get(&name.migration).and_then(Weak::upgrade);
        match (name.part, held) {
            (Part::Directory, None) => self.make(&target, name.migration),
            (Part::Directory, Some(_)) => refuse(codes::OPERATION_INVALID, format!("`{target}` is open already")),
            (_, None) => refuse(codes::OPERATION_INVALID, format!("`{target}` comes behind the migration's directory")),
            (Part::Libvirt, Some(_)) => UnixTargets::dial(&target, &self.migrations.daemon),
            (part @ (Part::Disks | Part::Memory), Some(directory)) => {
                dial_below(directory.base().as_fd(), &format!("{}/{}", directory.name(), part.socket()), &target)
            }
        }
    }

    fn make(&self, target: &str, migration: Uuid) -> Decision {
        let mut held = self.held.lock();
        held.retain(|_, directory| directory.strong_count() > 0);
        if held.len() >= MOST {
            return refuse(codes::RESOURCE_BUSY, format!("this session has {MOST} migrations under way"));
        }
        let made = self.migrations.base.make(migration, self.migrations.permissions, MODE).map(Arc::new);
        match made {
            Ok(directory) => {
                held.insert(migration, Arc::downgrade(&directory));
                let greeting = self.migrations.greeting(migration);
                Decision::Accept(Box::new(Held { _directory: directory, greeting, said: 0, over: false, waker: None }))
            }
            Err(error) => UnixTargets::refuse(target, &error),
        }
    }
}

/// A stream that says where its directory is, and keeps it until it ends.
struct Held {
    _directory: Arc<Directory>,
    greeting: Vec<u8>,
    said: usize,
    /// The peer has finished.
    over: bool,
    waker: Option<Waker>,
}

impl Handler for Held {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        self.waker = Some(at.waker());
        Ok(())
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = &self.greeting[self.said..];
        let len = left.len().min(buf.len());
        buf[..len].copy_from_slice(&left[..len]);
        self.said += len;
        if len == 0 && !self.over { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len) }
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.over = true;
        self.waker.iter().for_each(Waker::wake);
        Ok(())
    }
}

fn refuse(code: i32, text: String) -> Decision {
    Decision::Refuse(RemoteError::new(code, domains::STREAMS, text))
}
