use virbistream::io::Identity;
use virbistream::wire::kind;
use wildmatch::WildMatch;

/// Who may have what.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) who: Who,
    pub(crate) rights: Rights,
}

/// Whom a rule is for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Who {
    /// Whose certificate has this distinguished name.
    Dn(WildMatch),
    /// Whose certificate is for a host or address of this name.
    Name(WildMatch),
    /// A user of this host, over a UNIX socket.
    Uid(u32),
    /// Every user of this host, over a UNIX socket or the loopback.
    Local,
    /// Who comes over plain TCP, from anywhere: nothing proves who that is.
    Unproven,
    /// Everybody: plain TCP from anywhere, and whoever has a certificate.
    Anyone,
}

impl Who {
    pub(crate) fn is(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Dn(glob), Identity::Certificate { dn, .. }) => glob.matches(dn),
            (Self::Name(glob), Identity::Certificate { names, .. }) => names.iter().any(|name| glob.matches(name)),
            (Self::Uid(uid), Identity::Local { uid: theirs, .. }) => uid == theirs,
            (Self::Local, Identity::Local { .. } | Identity::Loopback)
            | (Self::Unproven, Identity::Unknown | Identity::Loopback)
            | (Self::Anyone, _) => true,
            _ => false,
        }
    }

    /// Whether the other is never asked behind this one, as far as the two tell by themselves.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anyone, _) | (Self::Local, Self::Uid(_)) => true,
            (Self::Dn(glob), Self::Name(_)) => glob.pattern() == "*",
            (Self::Dn(glob), Self::Dn(other)) | (Self::Name(glob), Self::Name(other)) => includes(glob, other),
            _ => self == other,
        }
    }

    /// Whether plain TCP beyond the loopback is let in.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Anyone | Self::Unproven)
    }

    /// Whether a certificate can be let in.
    pub(crate) fn has_certificate(&self) -> bool {
        matches!(self, Self::Anyone | Self::Dn(_) | Self::Name(_))
    }
}

/// What somebody may have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rights {
    /// Names, in which `*` stands for any characters and `?` for one.
    pub(crate) targets: Vec<WildMatch>,
    /// Numbers of kinds; `None`: all.
    pub(crate) kinds: Option<Vec<u32>>,
    /// Whether libvirtd may be reached.
    pub(crate) daemon: bool,
    /// Whether a migration may come in, and with it everything that libvirtd can do.
    pub(crate) migrate: bool,
    /// Of each identity at once.
    pub(crate) sessions: Option<u32>,
    /// In each session at once.
    pub(crate) streams: Option<u32>,
    /// Bytes that each session carries every second, in each direction.
    pub(crate) bandwidth: Option<u64>,
}

impl Rights {
    pub(crate) fn allow(&self, target: &str, kind: u32) -> Result<(), String> {
        if !self.targets.iter().any(|glob| glob.matches(target)) {
            return Err(format!("no rule here lets you open `{target}`"));
        }
        let known = [kind::BYTES, kind::CONTROL, kind::MEMORY, kind::DISK].contains(&kind);
        // docs/protocol.md, OPEN.
        let kind = if known { kind } else { kind::BYTES };
        match &self.kinds {
            Some(kinds) if !kinds.contains(&kind) => {
                Err(format!("no rule here lets you open `{target}` for streams of kind {kind}"))
            }
            _ => Ok(()),
        }
    }
}

/// A name, or several by `*` and `?`.
pub(crate) fn glob(text: &str) -> WildMatch {
    WildMatch::new(text)
}

/// Whether all that `other` fits is fitted by `glob`. Where `glob` has a `?`, that is known of equal ones alone.
fn includes(glob: &WildMatch, other: &WildMatch) -> bool {
    let text = other.pattern();
    glob == other || (!glob.pattern().contains('?') || !text.contains(['*', '?'])) && glob.matches(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_for_whom_it_names_and_nobody_else() {
        let uid = |uid| Identity::Local { uid, gid: 0 };
        let certificate = || Identity::Certificate {
            dn: "C=GB,O=x,CN=a".into(),
            names: vec!["a.example.org".into(), "192.0.2.1".into()],
            expires: std::time::SystemTime::UNIX_EPOCH,
        };
        let cases = [
            (Who::Uid(107), uid(107), true),
            (Who::Uid(107), uid(108), false),
            (Who::Uid(0), Identity::Loopback, false),
            (Who::Uid(0), Identity::Unknown, false),
            (Who::Local, uid(0), true),
            (Who::Local, Identity::Loopback, true),
            (Who::Local, Identity::Unknown, false),
            (Who::Anyone, Identity::Unknown, true),
            (Who::Anyone, certificate(), true),
            (Who::Unproven, Identity::Unknown, true),
            (Who::Unproven, Identity::Loopback, true),
            (Who::Unproven, uid(0), false),
            (Who::Unproven, certificate(), false),
            (Who::Dn(glob("C=GB,*CN=a")), certificate(), true),
            (Who::Dn(glob("CN=a")), certificate(), false),
            (Who::Name(glob("*.example.org")), certificate(), true),
            (Who::Name(glob("b.*")), certificate(), false),
            (Who::Dn(glob("*")), uid(0), false),
            (Who::Local, certificate(), false),
        ];
        for (who, identity, expected) in cases {
            assert_eq!(who.is(&identity), expected, "{who:?}, {identity:?}");
        }
    }

    #[test]
    fn a_rule_covers_another_that_it_leaves_nobody_for() {
        let (dn, name) = (|text| Who::Dn(glob(text)), |text| Who::Name(glob(text)));
        for (first, second, expected) in [
            (Who::Anyone, dn("CN=a"), true),
            (Who::Anyone, Who::Local, true),
            (Who::Local, Who::Uid(7), true),
            (Who::Uid(7), Who::Uid(7), true),
            (dn("*"), name("a.example.org"), true),
            (dn("O=x,*"), dn("O=x,CN=a"), true),
            (dn("O=x,*"), dn("O=x,CN=a*b"), true),
            (dn("CN=?"), dn("CN=a"), true),
            (dn("CN=?"), dn("CN=*"), false),
            (dn("CN=a"), dn("CN=*"), false),
            (dn("O=x,*"), name("a.example.org"), false),
            (name("*"), dn("CN=a"), false),
            (Who::Uid(7), Who::Local, false),
            (Who::Local, Who::Anyone, false),
        ] {
            assert_eq!(first.covers(&second), expected, "{first:?}, then {second:?}");
        }
    }

    #[test]
    fn rights_are_for_targets_and_kinds_that_they_name() {
        let rights = Rights { targets: vec![glob("vda"), glob("vm-*")], kinds: Some(vec![3]), ..Rights::default() };
        for (target, kind, expected) in [
            ("vda", 3, true),
            ("vm-7", 3, true),
            ("vm-7", 2, false),
            ("vdb", 3, false),
            ("xvda", 3, false),
            ("", 3, false),
        ] {
            assert_eq!(rights.allow(target, kind).is_ok(), expected, "{target} of kind {kind}");
        }
        let bytes = Rights { kinds: Some(vec![kind::BYTES]), ..rights };
        assert!(bytes.allow("vda", 77).is_ok(), "a kind that nobody knows is bytes");
        assert!(Rights { kinds: Some(vec![kind::DISK]), ..bytes }.allow("vda", 77).is_err());
        assert!(Rights::default().allow("vda", 0).is_err(), "who has no targets has none");
    }
}
