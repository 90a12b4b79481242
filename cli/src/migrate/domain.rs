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
    /// The element `cpu`, if a model is asked for.
    pub(super) cpu: Option<String>,
    pub(super) disks: Vec<Disk>,
}

/// A disk that libvirt can copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// vda
    pub(super) target: String,
    /// The file or device.
    pub(super) source: Option<String>,
    /// What libvirt calls it where it is copied to, as far as it says.
    pub(super) export: Option<String>,
    /// It is copied where nobody chooses: it can be written, and is not shared.
    by_default: bool,
}

impl Domain {
    /// What libvirt says of it now, with the disks that are copied: those chosen, by their targets with commas.
    pub(super) fn read(virsh: &Virsh, name: &str, chosen: Option<&str>) -> Result<Self, VirshError> {
        let (state, xml) = (virsh.ask(&["domstate", name])?, virsh.ask(&["dumpxml", "--migratable", name])?);
        let domain = Self::parse(&state, &xml, chosen);
        let mut domain = domain.ok_or_else(|| VirshError::Failed("its definition is not understood".into()))?;
        // What moves is without the names that devices have while the guest runs.
        domain.name_exports(&virsh.ask(&["dumpxml", name])?);
        Ok(domain)
    }

    fn name_exports(&mut self, xml: &str) {
        let Ok(document) = Document::parse(xml) else { return };
        for node in document.descendants().filter(|node| node.has_tag_name("disk")) {
            let of = |name, attribute| child(node, name).and_then(|child| child.attribute(attribute));
            let disk = self.disks.iter_mut().find(|disk| of("target", "dev") == Some(&disk.target));
            if let (Some(disk), Some(alias)) = (disk, of("alias", "name")) {
                disk.export = Some(format!("drive-{alias}"));
            }
        }
    }

    fn parse(state: &str, xml: &str, chosen: Option<&str>) -> Option<Self> {
        let document = Document::parse(xml).ok()?;
        let domain = document.root_element();
        let os = child(domain, "os").and_then(|os| child(os, "type"));
        let devices = child(domain, "devices")?;
        let cpu = child(domain, "cpu").filter(|cpu| cpu.attribute("mode") != Some("host-passthrough"));
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
            cpu: cpu.and_then(|cpu| xml.get(cpu.range())).map(String::from),
            disks: disks.filter(is_copied).collect(),
        })
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(&*self.state, "running" | "paused" | "idle" | "pmsuspended")
    }
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn disk(node: Node<'_, '_>) -> Option<Disk> {
    let is = |name| node.children().any(|child| child.has_tag_name(name));
    let named = |name: &str| node.children().find(|child| child.has_tag_name(name));
    let source = named("source").and_then(|source| source.attribute("file").or_else(|| source.attribute("dev")));
    let is_disk = matches!(node.attribute("device"), None | Some("disk")) && named("source").is_some();
    let target = named("target").and_then(|target| target.attribute("dev"))?;
    let by_default = !is("readonly") && !is("shareable");
    is_disk.then(|| Disk { target: target.into(), source: source.map(String::from), export: None, by_default })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_of_a_definition_is_found() {
        let xml = "<domain type='qemu'><name>g1</name><uuid>5d0fd4d4-0c3e-4a4c-b2f0-3f3d7d6f2b11</uuid><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
<cpu mode='custom' match='exact'><model>qemu64</model></cpu><devices><emulator>/usr/bin/qemu</emulator>
<disk type='file' device='disk'><source file='/d/a.raw'/><target dev='vda'/></disk>
<disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdb'/></disk>
<disk type='network' device='disk'><source protocol='rbd'/><target dev='vdc'/></disk>
<disk type='file' device='disk'><source file='/d/s'/><target dev='vdd'/><shareable/></disk>
<disk type='file' device='disk'><source file='/d/r'/><target dev='vde'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/d/c'/><target dev='hda'/></disk>
<disk type='file' device='cdrom'><target dev='hdb'/></disk></devices></domain>";
        let mut domain = Domain::parse("running", xml, None).unwrap();
        assert_eq!((&*domain.name, &*domain.kind, domain.arch.as_deref()), ("g1", "qemu", Some("x86_64")));
        assert_eq!(domain.cpu.as_deref().map(|cpu| &cpu[..18]), Some("<cpu mode='custom'"));
        let disks: Vec<_> = domain.disks.iter().map(|disk| (&*disk.target, disk.source.as_deref())).collect();
        assert_eq!(disks, [("vda", Some("/d/a.raw")), ("vdb", Some("/dev/x")), ("vdc", None)]);
        assert!(domain.is_running());
        domain.name_exports(&xml.replacen("<target dev='vda'/>", "<target dev='vda'/><alias name='virtio-disk0'/>", 1));
        let exports: Vec<_> = domain.disks.iter().map(|disk| disk.export.as_deref()).collect();
        assert_eq!(exports, [Some("drive-virtio-disk0"), None, None]);
        let chosen = Domain::parse("running", xml, Some("vdb,vdd,vdx,hda")).unwrap();
        assert_eq!(chosen.disks.iter().map(|disk| &*disk.target).collect::<Vec<_>>(), ["vdb", "vdd"]);
        assert!(Domain::parse("running", "<domain", None).is_none());
        assert!(Domain::parse("running", "<domain type='qemu'/>", None).is_none());
    }
}
