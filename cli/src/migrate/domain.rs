//! A guest, as libvirt describes it.

use roxmltree::{Document, Node};

use super::virsh::{Virsh, VirshError};

#[derive(Debug)]
pub(super) struct Domain {
    pub(super) name: String,
    /// What virsh is asked with: a name may be another guest's id.
    pub(super) uuid: String,
    /// running, paused, shut off, …
    pub(super) state: String,
    /// kvm, qemu, …
    pub(super) kind: String,
    pub(super) arch: Option<String>,
    pub(super) machine: Option<String>,
    pub(super) emulator: Option<String>,
    pub(super) cpu: Cpu,
    pub(super) disks: Vec<Disk>,
}

/// What a guest asks of its host's CPU.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cpu {
    /// No model.
    Any,
    /// All that the host has, in libvirt's word for it.
    Host(String),
    /// The element `cpu`.
    Model(String),
}

/// A disk that libvirt can copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// vda
    pub(super) target: String,
    /// Where it is copied to: as at the source, if the definition for the destination says nothing else.
    pub(super) place: Place,
    /// Its copy is a file of bytes as they are, without a format.
    pub(super) is_raw: bool,
    /// It has a backing file.
    pub(super) is_layered: bool,
    /// What libvirt calls it where it is copied to, as far as it says.
    pub(super) export: Option<String>,
    /// It is copied where nobody chooses: it can be written, and is not shared.
    by_default: bool,
}

/// Where a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(String),
    Device(String),
    Volume {
        pool: String,
        volume: String,
    },
    /// Nothing of these: network, nvme, … in libvirt's words.
    Other(String),
}

impl Domain {
    /// What libvirt says of it now, with the disks that are copied: those chosen, by their targets with commas.
    pub(super) fn read(virsh: &Virsh, name: &str, chosen: Option<&str>) -> Result<Self, VirshError> {
        // What stands behind an option is none, whatever it begins with.
        let state = virsh.ask(&["domstate", "--domain", name])?;
        let xml = virsh.ask(&["dumpxml", "--migratable", "--domain", name])?;
        let domain = Self::parse(&state, &xml, chosen);
        let mut domain = domain.ok_or_else(|| VirshError::Failed("its definition is not understood".into()))?;
        // What moves is without the names that devices have while the guest runs, and without backing files that libvirt has found.
        domain.add_what_runs(&virsh.ask(&["dumpxml", "--domain", name])?);
        Ok(domain)
    }

    fn add_what_runs(&mut self, xml: &str) {
        let Ok(document) = Document::parse(xml) else { return };
        for node in document.descendants().filter(|node| node.has_tag_name("disk")) {
            let Some(disk) = self.disks.iter_mut().find(|disk| target(node) == Some(&disk.target)) else { continue };
            disk.is_layered = child(node, "backingStore").is_some_and(|backing| child(backing, "source").is_some());
            if let Some(alias) = child(node, "alias").and_then(|alias| alias.attribute("name")) {
                disk.export = Some(format!("drive-{alias}"));
            }
        }
    }

    /// Its disks are where a definition for the destination says. False if that is not understood.
    #[must_use]
    pub(super) fn place_as_in(&mut self, xml: &str) -> bool {
        let Ok(document) = Document::parse(xml) else { return false };
        for there in document.descendants().filter(|node| node.has_tag_name("disk")).filter_map(disk) {
            if let Some(disk) = self.disks.iter_mut().find(|disk| disk.target == there.target) {
                (disk.place, disk.is_raw) = (there.place, there.is_raw);
            }
        }
        true
    }

    fn parse(state: &str, xml: &str, chosen: Option<&str>) -> Option<Self> {
        let document = Document::parse(xml).ok()?;
        let domain = document.root_element();
        let os = child(domain, "os").and_then(|os| child(os, "type"));
        let devices = child(domain, "devices")?;
        let cpu = child(domain, "cpu").and_then(|cpu| {
            Some(match cpu.attribute("mode") {
                Some(mode @ ("host-passthrough" | "maximum")) => Cpu::Host(mode.into()),
                _ => Cpu::Model(xml.get(cpu.range())?.into()),
            })
        });
        let disks = devices.children().filter(|node| node.has_tag_name("disk")).filter_map(disk);
        let is_copied = |disk: &Disk| match chosen {
            Some(chosen) => chosen.split(',').any(|target| target == disk.target),
            None => disk.by_default,
        };
        Some(Self {
            name: child(domain, "name")?.text()?.into(),
            uuid: child(domain, "uuid")?.text()?.trim().into(),
            state: state.into(),
            kind: domain.attribute("type")?.into(),
            arch: os.and_then(|os| os.attribute("arch")).map(String::from),
            machine: os.and_then(|os| os.attribute("machine")).map(String::from),
            emulator: child(devices, "emulator").and_then(|emulator| emulator.text()).map(String::from),
            cpu: cpu.unwrap_or(Cpu::Any),
            disks: disks.filter(is_copied).collect(),
        })
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(&*self.state, "running" | "paused" | "idle" | "pmsuspended")
    }
}

/// What a guest is there; nothing where it is not. virsh says the same of a guest that is missing and of one that it could not look for: the
/// list of all, which comes whole or not at all, tells.
pub(super) fn state_at(virsh: &Virsh, uuid: &str) -> Result<Option<String>, VirshError> {
    match virsh.ask(&["domstate", "--domain", uuid]) {
        Ok(state) => Ok(Some(state)),
        Err(error @ VirshError::Failed(_)) => {
            let all = virsh.ask(&["list", "--all", "--uuid"])?;
            if all.lines().any(|other| other.trim() == uuid) { Err(error) } else { Ok(None) }
        }
        Err(error) => Err(error),
    }
}

/// A guest's name, and where all is that its disks consist of, backing files too.
pub(super) fn places(xml: &str) -> Option<(String, Vec<Place>)> {
    let document = Document::parse(xml).ok()?;
    let name = child(document.root_element(), "name")?.text()?.to_owned();
    let layers =
        document.descendants().filter(|node| ["disk", "backingStore"].map(|tag| node.has_tag_name(tag)) != [false; 2]);
    Some((name, layers.filter_map(place).collect()))
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn target<'a>(node: Node<'a, '_>) -> Option<&'a str> {
    child(node, "target")?.attribute("dev")
}

fn place(node: Node<'_, '_>) -> Option<Place> {
    let source = child(node, "source")?;
    let said = |name| source.attribute(name).map(String::from);
    let place = said("file").map(Place::File).or_else(|| said("dev").map(Place::Device));
    let volume = || Some(Place::Volume { pool: said("pool")?, volume: said("volume")? });
    Some(place.or_else(volume).unwrap_or_else(|| Place::Other(node.attribute("type").unwrap_or_default().into())))
}

/// As libvirt has it: what is no CD, be it a LUN or a floppy.
fn disk(node: Node<'_, '_>) -> Option<Disk> {
    let is = |name| child(node, name).is_some();
    if node.attribute("device") == Some("cdrom") {
        return None;
    }
    let format = child(node, "driver").and_then(|driver| driver.attribute("type"));
    Some(Disk {
        target: target(node)?.into(),
        place: place(node)?,
        is_raw: matches!(format, None | Some("raw")),
        is_layered: false,
        export: None,
        by_default: !is("readonly") && !is("shareable"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "<domain type='qemu'><name>g1</name><uuid>5d0fd4d4-0c3e-4a4c-b2f0-3f3d7d6f2b11</uuid><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
<cpu mode='custom' match='exact'><model>qemu64</model></cpu><devices><emulator>/usr/bin/qemu</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/d/a.raw'/><target dev='vda'/></disk>
<disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdb'/></disk>
<disk type='network' device='disk'><source protocol='rbd'/><target dev='vdc'/></disk>
<disk type='file' device='disk'><source file='/d/s'/><target dev='vdd'/><shareable/></disk>
<disk type='file' device='disk'><source file='/d/r'/><target dev='vde'/><readonly/></disk>
<disk type='volume'><source pool='p' volume='v'/><target dev='vdf'/></disk>
<disk type='block' device='lun'><source dev='/dev/y'/><target dev='sda'/></disk>
<disk type='file' device='floppy'><source file='/d/f'/><target dev='fda'/></disk>
<disk type='file' device='floppy'><target dev='fdb'/></disk>
<disk type='file' device='cdrom'><source file='/d/c'/><target dev='hda'/></disk>
<disk type='file' device='cdrom'><target dev='hdb'/></disk></devices></domain>";

    fn file(path: &str) -> Place {
        Place::File(path.into())
    }

    fn device(path: &str) -> Place {
        Place::Device(path.into())
    }

    fn volume(pool: &str, volume: &str) -> Place {
        Place::Volume { pool: pool.into(), volume: volume.into() }
    }

    #[test]
    fn what_matters_of_a_definition_is_found() {
        let mut domain = Domain::parse("running", GUEST, None).unwrap();
        assert_eq!((&*domain.name, &*domain.kind, domain.arch.as_deref()), ("g1", "qemu", Some("x86_64")));
        assert_eq!(domain.cpu, Cpu::Model("<cpu mode='custom' match='exact'><model>qemu64</model></cpu>".into()));
        let disks: Vec<_> = domain.disks.iter().map(|disk| (&*disk.target, disk.place.clone(), disk.is_raw)).collect();
        let wanted = [
            ("vda", file("/d/a.raw"), false),
            ("vdb", device("/dev/x"), true),
            ("vdc", Place::Other("network".into()), true),
            ("vdf", volume("p", "v"), true),
            ("sda", device("/dev/y"), true),
            ("fda", file("/d/f"), true),
        ];
        assert_eq!(disks, wanted);
        assert!(domain.is_running());
        let running = "<alias name='virtio-disk0'/><backingStore type='file'><source file='/d/base'/></backingStore>";
        let running = GUEST.replacen("<target dev='vda'/>", &format!("<target dev='vda'/>{running}"), 1);
        domain.add_what_runs(&running);
        let added = domain.disks.iter().map(|disk| (disk.export.as_deref(), disk.is_layered));
        assert_eq!(added.take(2).collect::<Vec<_>>(), [(Some("drive-virtio-disk0"), true), (None, false)]);
        let chosen = Domain::parse("running", GUEST, Some("vdb,vdd,vdx,hda")).unwrap();
        assert_eq!(chosen.disks.iter().map(|disk| &*disk.target).collect::<Vec<_>>(), ["vdb", "vdd"]);
        assert!(Domain::parse("running", "<domain", None).is_none());
        assert!(Domain::parse("running", "<domain type='qemu'/>", None).is_none());
    }

    #[test]
    fn disks_are_where_the_definition_for_the_destination_has_them() {
        let mut domain = Domain::parse("running", GUEST, Some("vda,vdb")).unwrap();
        let there =
            GUEST.replace("/d/a.raw", "/e/a.raw").replace("type='qcow2'", "type='raw'").replace("/dev/x", "/dev/z");
        assert!(domain.place_as_in(&there));
        let places: Vec<_> = domain.disks.iter().map(|disk| (disk.place.clone(), disk.is_raw)).collect();
        assert_eq!(places, [(file("/e/a.raw"), true), (device("/dev/z"), true)]);
        assert!(!domain.place_as_in("<domain"));
    }

    #[test]
    fn a_cpu_that_is_the_hosts_is_no_model() {
        for mode in ["host-passthrough", "maximum"] {
            let guest = GUEST.replace("mode='custom'", &format!("mode='{mode}'"));
            assert_eq!(Domain::parse("running", &guest, None).unwrap().cpu, Cpu::Host(mode.into()));
        }
        let (before, after) = GUEST.split_once("<cpu").unwrap();
        let without = format!("{before}{}", after.split_once("</cpu>").unwrap().1);
        assert_eq!(Domain::parse("running", &without, None).unwrap().cpu, Cpu::Any);
    }

    #[test]
    fn a_guest_has_its_backing_files_too() {
        let xml = "<domain><name>g</name><devices><disk type='file'><source file='/d/top'/><backingStore type='block'>
<source dev='/dev/base'/><backingStore/></backingStore></disk><disk type='volume'><source pool='p' volume='v'/></disk></devices></domain>";
        let wanted = vec![file("/d/top"), device("/dev/base"), volume("p", "v")];
        assert_eq!(places(xml), Some(("g".into(), wanted)));
        assert_eq!(places("<domain"), None);
    }
}
