//! Where the disks go at the destination: what is there already, who has it, and room for the rest.

use std::collections::BTreeMap;

use roxmltree::Document;

use super::args::MigrateArgs;
use super::checks::List;
use super::domain::{Disk, Domain, Place, places, state_at};
use super::virsh::{Virsh, VirshError};

/// What is asked about the disks, and of whom.
pub(super) struct Storage<'a> {
    source: &'a Virsh,
    destination: &'a Virsh,
    domain: &'a Domain,
    is_incremental: bool,
    /// The operator says that files which libvirt does not know are there.
    are_precreated: bool,
    pools: Vec<Pool>,
}

/// How much of a pool the disks take, in bytes.
#[derive(Debug, Default)]
struct Room {
    least: u64,
    /// `None` where nobody knows.
    most: Option<u64>,
}

impl<'a> Storage<'a> {
    pub(super) fn new(source: &'a Virsh, destination: &'a Virsh, domain: &'a Domain, args: &MigrateArgs) -> Self {
        Self {
            source,
            destination,
            domain,
            is_incremental: args.libvirt.has("copy-storage-inc"),
            are_precreated: args.precreated,
            pools: Vec::new(),
        }
    }

    pub(super) fn check(mut self, list: &mut List<'_>) {
        let found = pools(self.destination, list);
        match list.heard(found) {
            Ok(pools) => self.pools = pools,
            Err(error) => return list.fail("disks", format!("the destination's storage pools: {error}")),
        }
        self.look_again(list);
        let mut wanted = BTreeMap::new();
        let mut overwritten = Vec::new();
        for disk in &self.domain.disks {
            let made = self.disk(list, disk, &mut overwritten);
            let Some(pool) = made else { continue };
            let total = wanted.entry(pool).or_insert(Room { least: 0, most: Some(0) });
            let room = self.room(list, disk);
            total.least += room.least;
            total.most = total.most.zip(room.most).map(|(total, most)| total + most);
        }
        for (pool, room) in wanted {
            list.room(pool, &room);
        }
        if !overwritten.is_empty() {
            self.overwritten(list, &overwritten);
        }
    }

    /// libvirt knows what it saw when it looked last: files may have come since, and room gone.
    fn look_again(&mut self, list: &mut List<'_>) {
        let (destination, disks) = (self.destination, &self.domain.disks);
        for pool in self.pools.iter_mut().filter(|pool| disks.iter().any(|disk| pool.is_for(&disk.place))) {
            let refreshed = destination.ask(&["pool-refresh", "--pool", &pool.name]);
            match list.heard(refreshed.and_then(|_| Pool::read(destination, &pool.name))) {
                Ok(Some(now)) => *pool = now,
                Ok(None) => {}
                // Such a pool may be stopped now.
                Err(error) => list.fail(&pool.what(), format!("libvirt cannot look again what is in it: {error}")),
            }
        }
    }

    /// Says what becomes of a disk, and gives the pool in which it is made, if it is.
    fn disk(&self, list: &mut List<'_>, disk: &Disk, overwritten: &mut Vec<(String, String)>) -> Option<&Pool> {
        let what = format!("disk {}", disk.target);
        let pool = self.pools.iter().find(|pool| pool.is_for(&disk.place));
        let path = match (&disk.place, pool) {
            (Place::File(path) | Place::Device(path), _) => path.clone(),
            (Place::Volume { volume, .. }, Some(pool)) => pool.path_of(volume),
            (Place::Volume { pool, .. }, None) => {
                list.fail(&what, format!("the destination has no storage pool `{pool}`, or it does not run"));
                return None;
            }
            (Place::Other(kind), _) => {
                let on = if kind == "network" { "on the network".into() } else { format!("of the type {kind}") };
                list.fail(&what, format!("it is {on}: choose the others with --migrate-disks"));
                return None;
            }
        };
        let is_there = match list.heard(self.is_there(&disk.place)) {
            Ok(is_there) => is_there,
            Err(error) => {
                list.fail(&what, format!("whether {path} is at the destination is not known: {error}"));
                return None;
            }
        };
        match (&disk.place, pool) {
            _ if is_there => overwritten.push((what, path)),
            (Place::Device(_), _) => {
                list.warn(&what, format!("libvirt does not say whether the device {path} is at the destination"));
                overwritten.push((what, path));
            }
            (_, None) if self.are_precreated => overwritten.push((what, path)),
            (_, None) => list.fail(
                &what,
                format!(
                    "{path} is in the directory of no storage pool at the destination (--precreated if it is there)"
                ),
            ),
            (_, Some(_)) if self.is_incremental => {
                list.fail(
                    &what,
                    format!("{path} is not at the destination: for --copy-storage-inc libvirt makes none"),
                );
            }
            (_, Some(pool)) => {
                list.ok(&what, format!("{path} will be made in the pool `{}`", pool.name));
                return Some(pool);
            }
        }
        None
    }

    fn is_there(&self, place: &Place) -> Result<bool, VirshError> {
        let asked = match place {
            Place::File(path) | Place::Device(path) => self.destination.ask(&["vol-info", "--vol", path]),
            Place::Volume { pool, volume } => self.destination.ask(&["vol-path", "--pool", pool, "--vol", volume]),
            Place::Other(_) => return Ok(false),
        };
        match asked {
            Ok(_) => Ok(true),
            Err(VirshError::Failed(why)) if why.contains("failed to get vol") || why.contains("no storage vol") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What libvirt writes over must be no other guest's.
    fn overwritten(&self, list: &mut List<'_>, disks: &[(String, String)]) {
        let others = match list.heard(self.others()) {
            Ok(others) => others,
            Err(error) => {
                return list.fail("disks", format!("whose disks are at the destination is not known: {error}"));
            }
        };
        for (what, path) in disks {
            match others.iter().find(|(_, paths)| paths.contains(path)) {
                Some((name, _)) => {
                    list.fail(what, format!("{path} is a disk of the guest `{name}` at the destination"))
                }
                None => list.warn(what, format!("{path} is at the destination already, and is written over")),
            }
        }
    }

    /// The destination's other guests, running or not, and the paths of all that they have.
    fn others(&self) -> Result<Vec<(String, Vec<String>)>, VirshError> {
        let uuids = self.destination.ask(&["list", "--all", "--uuid"])?;
        let mut others = Vec::new();
        for uuid in uuids.lines().map(str::trim).filter(|uuid| !uuid.is_empty() && *uuid != self.domain.uuid) {
            let (name, places) = match self.destination.ask(&["dumpxml", "--domain", uuid]) {
                Ok(xml) => places(&xml).ok_or_else(|| VirshError::Failed(format!("{uuid} is not understood")))?,
                Err(error) => match state_at(self.destination, uuid)? {
                    // It has gone since.
                    None => continue,
                    Some(_) => return Err(error),
                },
            };
            others.push((name, places.into_iter().filter_map(|place| self.path(place)).collect()));
        }
        Ok(others)
    }

    fn path(&self, place: Place) -> Option<String> {
        let pool = self.pools.iter().find(|pool| pool.is_for(&place));
        match place {
            Place::File(path) | Place::Device(path) => Some(path),
            Place::Volume { volume, .. } => Some(pool?.path_of(&volume)),
            Place::Other(_) => None,
        }
    }

    /// What a disk takes that libvirt makes: a raw one is allocated whole, another one as it is written.
    fn room(&self, list: &mut List<'_>, disk: &Disk) -> Room {
        let said = match list.heard(self.source.ask(&["domblkinfo", &self.domain.uuid, &disk.target])) {
            Ok(said) => said,
            Err(error) => {
                list.warn(&format!("disk {}", disk.target), format!("how much room it takes is unknown: {error}"));
                return Room::default();
            }
        };
        let of = |words: &str| said.lines().find_map(|line| line.strip_prefix(words))?.trim().parse::<u64>().ok();
        let (capacity, allocation) = (of("Capacity:"), of("Allocation:"));
        match (disk.is_raw, disk.is_layered) {
            (true, _) => Room { least: capacity.unwrap_or(0), most: capacity },
            // What is in its backing files is copied, too.
            (false, true) => Room { least: allocation.unwrap_or(0), most: capacity.max(allocation) },
            (false, false) => Room { least: allocation.unwrap_or(0), most: allocation },
        }
    }
}

impl List<'_> {
    fn room(&mut self, pool: &Pool, room: &Room) {
        let (what, free, least) = (pool.what(), pool.available, room.least);
        match room.most {
            _ if least > free => {
                self.fail(&what, format!("{least} bytes are needed at the destination, and {free} are free"));
            }
            None => self.warn(&what, format!("how much is needed is unknown; {free} bytes are free")),
            Some(most) if most > free => {
                self.warn(&what, format!("{least} to {most} bytes are needed at the destination, and {free} are free"));
            }
            Some(_) => self.ok(&what, format!("{least} of {free} bytes free are needed")),
        }
    }
}

/// A directory for disks.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pool {
    name: String,
    folder: String,
    available: u64,
}

impl Pool {
    /// `None` for one that is no directory.
    fn read(virsh: &Virsh, name: &str) -> Result<Option<Self>, VirshError> {
        let xml = virsh.ask(&["pool-dumpxml", "--pool", name])?;
        let not_understood = |_| VirshError::Failed("its definition is not understood".into());
        let document = Document::parse(&xml).map_err(not_understood)?;
        let text = |tag: &str| document.descendants().find(|node| node.has_tag_name(tag))?.text().map(str::trim);
        let (Some(folder), Some(available)) = (text("path"), text("available")) else { return Ok(None) };
        let (folder, available) = (folder.trim_end_matches('/').into(), available.parse().unwrap_or(0));
        Ok(Some(Self { name: name.into(), folder, available }))
    }

    fn what(&self) -> String {
        format!("pool {}", self.name)
    }

    fn path_of(&self, volume: &str) -> String {
        format!("{}/{volume}", self.folder)
    }

    fn is_for(&self, place: &Place) -> bool {
        match place {
            Place::File(path) | Place::Device(path) => {
                path.rsplit_once('/').is_some_and(|(folder, _)| folder == self.folder)
            }
            Place::Volume { pool, .. } => *pool == self.name,
            Place::Other(_) => false,
        }
    }
}

/// Those that run. What cannot be read is said.
fn pools(virsh: &Virsh, list: &mut List<'_>) -> Result<Vec<Pool>, VirshError> {
    let names = virsh.ask(&["pool-list", "--name"])?;
    let mut pools = Vec::new();
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        match list.heard(Pool::read(virsh, name)) {
            Ok(pool) => pools.extend(pool),
            Err(error) => list.warn(&format!("pool {name}"), error.to_string()),
        }
    }
    Ok(pools)
}
