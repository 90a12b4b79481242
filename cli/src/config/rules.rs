//! `[[allow]]`: who may have what.

use bytesize::ByteSize;
use wildmatch::WildMatch;

use super::table::Table;
use crate::policy::{Rights, Rule, Who, glob};
use crate::values::{parse_bandwidth, parse_kind};

/// A rule, and where the file says what has to be judged with the rest of it.
pub(super) struct ReadRule {
    pub(super) rule: Rule,
    pub(super) who_at: usize,
    pub(super) targets: Vec<(usize, WildMatch)>,
    pub(super) daemon_at: usize,
    pub(super) migrate_at: usize,
}

impl ReadRule {
    /// Nothing, where it is not told whom it is for.
    pub(super) fn read(mut table: Table<'_, '_>) -> Option<Self> {
        let who = who(&mut table);
        let targets = table.list("targets", |text| Ok::<_, String>(glob(text)));
        let kinds = table.has("kinds").then(|| table.list("kinds", parse_kind));
        let rights = Rights {
            targets: targets.iter().map(|(_, glob)| glob.clone()).collect(),
            kinds: kinds.map(|kinds| kinds.into_iter().map(|(_, kind)| kind).collect()),
            daemon: table.flag("libvirt").unwrap_or(false),
            migrate: table.flag("migrate").unwrap_or(false),
            sessions: table.number("sessions", 0..1 << 32).map(|number| number as u32),
            streams: table.number("streams", 0..1 << 32).map(|number| number as u32),
            bandwidth: table.parsed_by("bandwidth", parse_bandwidth).map(|ByteSize(bytes)| bytes),
        };
        if !table.has("targets") && !rights.daemon && !rights.migrate {
            table.mistake("a rule that allows nothing: say `targets`, `libvirt = true` or `migrate = true`");
        }
        let (daemon_at, migrate_at) = (table.place("libvirt"), table.place("migrate"));
        let named = who.map(|(key, who)| (table.place(key), who));
        table.end();
        let (who_at, who) = named?;
        Some(Self { rule: Rule { who, rights }, who_at, targets, daemon_at, migrate_at })
    }
}

/// Whom it is for, and by which key.
fn who(table: &mut Table<'_, '_>) -> Option<(&'static str, Who)> {
    let named = ["dn", "name", "uid", "local", "anyone"].into_iter().filter(|key| table.has(key)).count();
    let dn = table.text("dn").map(|dn| ("dn", Who::Dn(glob(dn))));
    let name = table.text("name").map(|name| ("name", Who::Name(glob(name))));
    let uid = table.number("uid", 0..u64::from(u32::MAX)).map(|uid| ("uid", Who::Uid(uid as u32)));
    let mut by_flag = |key, who| match table.flag(key) {
        Some(false) => {
            table.mistake_at(key, format!("`{key}` can only be true: leave it out"));
            None
        }
        Some(true) => Some((key, who)),
        None => None,
    };
    let (local, anyone) = (by_flag("local", Who::Local), by_flag("anyone", Who::Anyone));
    if named != 1 {
        table.mistake("a rule is for one of `dn`, `name`, `uid`, `local = true` and `anyone = true`");
        return None;
    }
    dn.or(name).or(uid).or(local).or(anyone)
}
