//! A pool of volumes in memory, and what libvirt says of those that there are not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virbistream::wire::{RemoteError, codes};

use crate::transfer::Disk;
use crate::types::{Pool, Text, Uuid, Volume};

// Numbers of libvirt's.
const NO_POOL: i32 = 49;
const NO_VOLUME: i32 = 50;
const EXISTS: i32 = 90;
const FROM_STORAGE: i32 = 18;

/// Bytes of all volumes together.
const CAPACITY_MAX: usize = 64 << 20;

const VOLUMES_MAX: usize = 64;
const NAME_MAX: usize = 255;

const POOL: &str = "disks";

/// The pool `disks`, with a volume `volume` from the start.
#[derive(Clone, Debug)]
pub(crate) struct Storage(Arc<Mutex<BTreeMap<String, Disk>>>);

impl Storage {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(BTreeMap::from([("volume".to_owned(), Disk::new(vec![0; 8 << 20]))]))))
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<String, Disk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, pool: &Text, name: &Text) -> Result<Disk, RemoteError> {
        known_pool(pool)?;
        self.volumes().get(&name.0).cloned().ok_or_else(|| no_volume(&name.0))
    }

    pub(crate) fn find_by_key(&self, key: &Text) -> Result<Volume, RemoteError> {
        let known = self.volumes().keys().map(|name| volume(name)).find(|volume| volume.key == *key);
        known.ok_or_else(|| no_volume(&key.0))
    }

    pub(crate) fn create(&self, pool: &Text, xml: &Text) -> Result<Volume, RemoteError> {
        known_pool(pool)?;
        let name = element(&xml.0, "name").filter(|name| name.len() <= NAME_MAX);
        let name = name.ok_or_else(|| invalid("not a name that a volume can have"))?;
        let capacity = element(&xml.0, "capacity").and_then(|text| text.parse::<usize>().ok());
        let mut volumes = self.volumes();
        if volumes.contains_key(name) {
            return Err(not_found(EXISTS, format!("storage volume '{name}' exists already")));
        }
        if volumes.len() >= VOLUMES_MAX {
            return Err(invalid("one volume more than there can be"));
        }
        let used: usize = volumes.values().map(Disk::len).sum();
        let capacity = capacity.filter(|capacity| *capacity <= CAPACITY_MAX - used);
        let capacity = capacity.ok_or_else(|| invalid("not a capacity in bytes that there is room for"))?;
        volumes.insert(name.to_owned(), Disk::new(vec![0; capacity]));
        Ok(volume(name))
    }

    pub(crate) fn delete(&self, pool: &Text, name: &Text) -> Result<(), RemoteError> {
        self.find(pool, name)?;
        self.volumes().remove(&name.0);
        Ok(())
    }
}

pub(crate) fn volume(name: &str) -> Volume {
    Volume { pool: POOL.into(), name: name.into(), key: format!("memory/{name}").as_str().into() }
}

pub(crate) fn known_pool(name: &Text) -> Result<Pool, RemoteError> {
    let pool = Pool { name: POOL.into(), uuid: Uuid([0x22; 16]) };
    let unknown = || not_found(NO_POOL, format!("Storage pool not found: no pool {}", name.0));
    Some(pool).filter(|pool| pool.name == *name).ok_or_else(unknown)
}

fn no_volume(name: &str) -> RemoteError {
    not_found(NO_VOLUME, format!("Storage volume not found: no volume {name}"))
}

fn not_found(code: i32, text: String) -> RemoteError {
    RemoteError::new(code, FROM_STORAGE, text)
}

fn invalid(text: &str) -> RemoteError {
    RemoteError::new(codes::INVALID_ARG, FROM_STORAGE, format!("invalid argument: {text}"))
}

/// What stands in the first element of this name: XML as virsh writes it, without attributes there.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim()).filter(|text| !text.is_empty())
}
