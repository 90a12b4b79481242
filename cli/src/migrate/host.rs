//! A host, as its libvirt describes it.

use roxmltree::Document;

use super::virsh::{Virsh, VirshError};
use crate::values::Owner;

#[derive(Debug)]
pub(super) struct Host {
    pub(super) uuid: String,
    /// Whom QEMU runs as here, where libvirt says it.
    pub(super) qemu: Option<Owner>,
}

impl Host {
    pub(super) fn read(virsh: &Virsh) -> Result<Self, VirshError> {
        let host = Self::parse(&virsh.ask(&["capabilities"])?);
        host.ok_or_else(|| VirshError::Failed("libvirt does not say which host it is on".into()))
    }

    fn parse(capabilities: &str) -> Option<Self> {
        let document = Document::parse(capabilities).ok()?;
        let host = document.root_element().children().find(|node| node.has_tag_name("host"))?;
        let text = |name| host.children().find(|node| node.has_tag_name(name))?.text();
        let models = host.children().filter(|node| node.has_tag_name("secmodel"));
        let labels = models.flat_map(|model| model.children().filter(|node| node.has_tag_name("baselabel")));
        // That of discretionary access control alone is numbers, each with a plus.
        let mut owners = labels.filter_map(|label| label.text()?.replace('+', "").parse().ok());
        Some(Self { uuid: text("uuid")?.into(), qemu: owners.next() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_uuid_and_the_user_of_its_qemu_are_found() {
        let xml = "<capabilities><host><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3f01</uuid>
<secmodel><model>apparmor</model><doi>0</doi></secmodel>
<secmodel><model>selinux</model><baselabel type='kvm'>system_u:system_r:svirt_t:s0</baselabel></secmodel>
<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+109</baselabel></secmodel></host></capabilities>";
        let host = Host::parse(xml).unwrap();
        assert_eq!(host.uuid, "4dea22b3-1d52-d8f3-2516-782e98ab3f01");
        let owner = host.qemu.unwrap();
        assert_eq!((owner.user, owner.group), (Some(64_055), Some(109)));
        assert!(Host::parse("<capabilities><host/></capabilities>").is_none());
        assert!(Host::parse("<capabilities><host><uuid>x</uuid></host></capabilities>").unwrap().qemu.is_none());
    }
}
