//! The targets of a migration, as both ends write them.

use std::fmt;

use uuid::Uuid;

/// What one migration needs of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    /// A directory for the others' sockets, which is there while this stream stands.
    Directory,
    /// libvirtd.
    Libvirt,
    /// Where the destination's QEMU takes the disks.
    Disks,
    /// Where it takes the memory.
    Memory,
}

impl Part {
    const ALL: [Self; 4] = [Self::Directory, Self::Libvirt, Self::Disks, Self::Memory];

    fn word(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Libvirt => "libvirt",
            Self::Disks => "disks",
            Self::Memory => "memory",
        }
    }

    /// The socket of that name in the directory, at both ends.
    pub(crate) fn socket(self) -> String {
        format!("{}.sock", self.word())
    }
}

/// `migration/UUID/PART`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) migration: Uuid,
    pub(crate) part: Part,
}

impl Name {
    /// What a target's name says, if it is one of these: the UUID in its canonical form, and nothing else.
    pub(crate) fn parse(target: &str) -> Option<Self> {
        let (uuid, word) = target.strip_prefix("migration/")?.split_once('/')?;
        let migration = Uuid::try_parse(uuid).ok().filter(|migration| migration.to_string() == uuid)?;
        let part = Part::ALL.into_iter().find(|part| part.word() == word)?;
        Some(Self { migration, part })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "migration/{}/{}", self.migration, self.part.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_canonical_uuid_and_a_part_and_nothing_else() {
        let migration = Uuid::new_v4();
        for part in Part::ALL {
            let name = Name { migration, part };
            assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
        let upper = migration.to_string().to_uppercase();
        for wrong in [
            "migration",
            "migration/",
            "migration//disks",
            "migration/../disks",
            &format!("migration/{migration}"),
            &format!("migration/{migration}/"),
            &format!("migration/{migration}/disk"),
            &format!("migration/{migration}/disks/"),
            &format!("migration/{}/disks", migration.simple()),
            &format!("migration/{}/disks", migration.braced()),
            &format!("migration/{upper}x/disks"),
            &format!("/migration/{migration}/disks"),
            &format!("migrations/{migration}/disks"),
        ] {
            assert_eq!(Name::parse(wrong), None, "{wrong}");
        }
        let shouted = Uuid::from_u128(0xabcd).to_string().to_uppercase();
        assert_eq!(Name::parse(&format!("migration/{shouted}/disks")), None);
    }
}
