//! What no key can tell by itself.

use std::path::PathBuf;

use virbistream::io::Address;

use super::rules::ReadRule;
use super::table::Table;
use super::{Settings, is_open, open};
use crate::listen::{Kind, Listen};
use crate::pki::Pki;
use crate::policy::Who;

/// What was read, and where it stands.
pub(super) struct Found<'a, 't, 'i> {
    pub(super) table: &'a Table<'t, 'i>,
    pub(super) listen: &'a [(usize, Listen)],
    /// Of the targets' sockets.
    pub(super) paths: &'a [(usize, PathBuf)],
    pub(super) targets_are_whole: bool,
    pub(super) rules: &'a [ReadRule],
}

/// What only one can have.
#[derive(PartialEq)]
enum Place {
    Path(PathBuf),
    Port(String, u16),
    Systemd(String),
}

impl Place {
    /// None where each who asks gets another.
    fn of(listen: &Listen) -> Option<Self> {
        match listen {
            Listen::Address(address) => Self::of_address(address),
            Listen::Systemd { name, .. } => Some(Self::Systemd(name.clone())),
        }
    }

    fn of_address(address: &Address) -> Option<Self> {
        match address {
            Address::Tcp { port: 0, .. } | Address::Tls { port: 0, .. } => None,
            Address::Tcp { host, port } | Address::Tls { host, port } => Some(Self::Port(host.clone(), *port)),
            Address::Unix(path) => Some(Self::Path(path.clone())),
        }
    }
}

impl Found<'_, '_, '_> {
    pub(super) fn check(&self, settings: &Settings, try_pki: fn(&Pki) -> Result<(), String>) {
        self.check_missing(settings);
        self.check_places(settings);
        self.check_openness(settings);
        self.check_tls(settings, try_pki);
        self.check_session(settings);
        self.check_migration(settings);
        self.rules.iter().for_each(|rule| self.check_rule(settings, rule));
        self.check_order();
    }

    fn check_missing(&self, settings: &Settings) {
        if !self.table.has("listen") {
            self.table.mistake("`listen` is missing: nobody could connect");
        }
        if settings.libvirt.is_none() && !self.table.has("target") {
            self.table.mistake("nothing is offered: neither [[target]] nor `libvirt`");
        }
        if !self.table.has("allow") {
            self.table.mistake("nobody is let in without a rule: [[allow]] is missing");
        }
    }

    /// What is listened on is nothing else's, and what is dialled is not our own.
    fn check_places(&self, settings: &Settings) {
        let control = settings.control.iter().map(|path| Some(Place::Path(path.clone())));
        let metrics = settings.metrics.iter().map(Place::of_address);
        let libvirt = settings.libvirt.iter().map(|path| Some(Place::Path(path.clone())));
        let at = |key| std::iter::repeat(self.table.place(key));
        let ours = self.listen.iter().map(|(at, listen)| (*at, Place::of(listen)));
        let ours = ours.chain(at("control").zip(control)).chain(at("metrics").zip(metrics));
        let targets = self.paths.iter().map(|(at, path)| (*at, Some(Place::Path(path.clone()))));
        let dialled = at("libvirt").zip(libvirt).chain(targets);
        let mut taken = Vec::new();
        for (at, place) in ours {
            self.check_place(at, place.as_ref(), &taken);
            taken.extend(place);
        }
        for (at, place) in dialled {
            self.check_place(at, place.as_ref(), &taken);
        }
    }

    fn check_place(&self, at: usize, place: Option<&Place>, taken: &[Place]) {
        match place {
            Some(Place::Path(path)) if path.as_os_str().as_encoded_bytes().contains(&0) => {
                self.table.mistake_in(at, "a path has no NUL");
            }
            Some(place) if taken.contains(place) => self.table.mistake_in(at, "this is listened on already"),
            _ => {}
        }
    }

    /// Plain TCP proves nothing.
    fn check_openness(&self, settings: &Settings) {
        let anyone = settings.rules.iter().any(|rule| rule.who.is_open());
        for (at, listen) in self.listen {
            if settings.libvirt.is_some() && listen.kind() == Kind::Tcp {
                let sentence = format!("with `libvirt` only UNIX sockets and tls:// can be listened on, not {listen}");
                self.table.mistake_in(*at, sentence);
            } else if let Some(address) = listen.address().filter(|address| is_open(address) && !anyone) {
                self.table.mistake_in(*at, format!("{}, and no [[allow]] is for `anyone`", open(address)));
            }
        }
    }

    fn check_tls(&self, settings: &Settings, try_pki: fn(&Pki) -> Result<(), String>) {
        let Some((at, _)) = self.listen.iter().find(|(_, listen)| listen.kind() == Kind::Tls) else {
            if settings.pki.directory.is_some() {
                self.table.mistake_at("pki", "`pki` goes with a tls:// address");
            }
            return;
        };
        let pki_at = if self.table.has("pki") { self.table.place("pki") } else { *at };
        if let Err(sentence) = try_pki(&settings.pki) {
            self.table.mistake_in(pki_at, sentence);
        }
        // Tickets, which are had at the control socket, need no rule.
        let anybody = settings.rules.iter().any(|rule| rule.who.has_certificate());
        if self.table.has("allow") && !anybody && !self.table.has("control") {
            self.table.mistake_in(*at, "no [[allow]] is for somebody with a certificate: `dn`, `name` or `anyone`");
        }
    }

    fn check_session(&self, settings: &Settings) {
        let session = &settings.session;
        if session.window > session.memory_budget.bytes() {
            self.table.mistake_at("memory", "`memory` has no room for one `window`");
        }
        // One that is not said grows with the window.
        if self.table.has("window_max") && session.window_max < session.window {
            self.table.mistake_at("window_max", "`window_max` is less than `window`");
        }
    }

    fn check_migration(&self, settings: &Settings) {
        if settings.libvirt.is_none() && settings.migrations.is_some() {
            self.table.mistake_at("migration", "a migration needs `libvirt`, which says where libvirtd is");
        }
    }

    fn check_rule(&self, settings: &Settings, read: &ReadRule) {
        let ReadRule { rule, who_at, targets, daemon_at, migrate_at } = read;
        let (rights, mistake) = (&rule.rights, |at, sentence: &str| self.table.mistake_in(at, sentence));
        if !self.listen.is_empty() && !self.listen.iter().any(|(_, listen)| comes(&rule.who, listen.kind())) {
            mistake(*who_at, "whom this rule is for cannot come: `listen` has no address for them");
        }
        if rights.daemon && settings.libvirt.is_none() {
            mistake(*daemon_at, "a rule lets somebody reach libvirtd, and `libvirt` says not where it is");
        }
        if rights.migrate && !self.table.has("migration") {
            mistake(*migrate_at, "a rule lets somebody migrate, and [migration] is missing");
        }
        for at in [(rights.daemon, daemon_at), (rights.migrate, migrate_at)] {
            if let (true, at) = at
                && rule.who == Who::Anyone
            {
                mistake(*at, "it has to be known who reaches libvirtd: `dn`, `name`, `uid` or `local`, not `anyone`");
            }
        }
        let known = targets.iter().filter(|_| self.targets_are_whole);
        for (at, _) in known.filter(|(_, wanted)| !settings.offered.has(wanted)) {
            mistake(*at, "no [[target]] has such a name");
        }
    }

    /// The first rule that fits counts.
    fn check_order(&self) {
        for (n, later) in self.rules.iter().enumerate() {
            if self.rules.iter().take(n).any(|earlier| earlier.rule.who.covers(&later.rule.who)) {
                let sentence = "this rule is never asked: an earlier one is for all whom it is for";
                self.table.mistake_in(later.who_at, sentence);
            }
        }
    }
}

/// Whether one of those can come so. What systemd's sockets of TCP are, is known only later.
fn comes(who: &Who, kind: Kind) -> bool {
    match who {
        Who::Dn(_) | Who::Name(_) => kind == Kind::Tls,
        Who::Uid(_) => kind == Kind::Unix,
        Who::Local => kind != Kind::Tls,
        Who::Unproven => kind == Kind::Tcp,
        Who::Anyone => true,
    }
}
