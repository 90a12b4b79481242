//! Who may have what: the administrator's rules, and tickets. Who is not let in by one of them stays out.

mod migrations;
mod offered;
mod rule;
mod tickets;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use virbistream::io::{Access, Admission, Caller, Decision, Identity, Permit, Request, SessionKey, Targets};
use virbistream::wire::{EXT_TICKET, RemoteError, codes, domains};

use crate::migrate::Name;
use crate::nbd::{self, Disks};
use migrations::OfSession;
use tickets::Tickets;

pub(crate) use migrations::Migrations;
pub(crate) use offered::{Offered, Pattern};
pub(crate) use rule::{Rights, Rule, Who, glob};
pub(crate) use tickets::Secret;

/// What `serve` asks before it lets anybody in.
#[derive(Debug)]
pub(crate) struct Policy {
    rules: Vec<Arc<Rule>>,
    offered: Arc<Offered>,
    migrations: Option<Arc<Migrations>>,
    tickets: Tickets,
    sessions: Arc<Sessions>,
    disks: Disks,
}

impl Policy {
    pub(crate) fn new(rules: Vec<Rule>, offered: Offered, migrations: Option<Migrations>, disks: Disks) -> Self {
        let rules = rules.into_iter().map(Arc::new).collect();
        let (offered, migrations) = (Arc::new(offered), migrations.map(Arc::new));
        Self { rules, offered, migrations, tickets: Tickets::default(), sessions: Arc::default(), disks }
    }

    /// Makes a ticket that is valid for so long.
    ///
    /// # Errors
    /// A sentence: it would be worth nothing here, or none can be had.
    pub(crate) fn ticket(&self, rights: Rights, valid: Duration) -> Result<Secret, String> {
        if let Some(target) = rights.targets.iter().find(|target| !self.offered.has(target)) {
            return Err(format!("no target `{target}` is offered here"));
        }
        if rights.migrate && self.migrations.is_none() {
            return Err("no migration can come in here: neither [migration] nor --migrations is said".into());
        }
        self.tickets.make(rights, valid).map_err(|error| error.to_string())
    }

    /// The first rule that fits: those after it count no more.
    fn rule(&self, identity: &Identity) -> Result<&Arc<Rule>, RemoteError> {
        let rule = self.rules.iter().find(|rule| rule.who.is(identity));
        rule.ok_or_else(|| failed(format!("no rule here lets {identity} in")))
    }

    fn place(&self, rule: &Rule, caller: &Caller<'_>) -> Result<Permit, RemoteError> {
        let Some(most) = rule.rights.sessions else { return Ok(None) };
        match Sessions::take(&self.sessions, caller, most) {
            Some(place) => Ok(Some(Box::new(place))),
            None => Err(busy(format!("{} has as many sessions as it may: {most}", caller.identity))),
        }
    }

    fn admission(&self, rights: Rights, permit: Permit) -> Admission {
        Admission {
            max_streams: rights.streams.unwrap_or(u32::MAX),
            bandwidth: rights.bandwidth,
            targets: Arc::new(self.allowed(rights)),
            permit,
        }
    }

    fn allowed(&self, rights: Rights) -> Allowed {
        let migrations = self.migrations.as_ref().filter(|_| rights.migrate);
        let migrations = migrations.map(|migrations| OfSession::new(Arc::clone(migrations)));
        Allowed { rights, offered: Arc::clone(&self.offered), migrations, disks: self.disks.clone() }
    }

    /// The rule by which libvirtd may be reached.
    fn daemon_rule(&self, identity: &Identity) -> Result<&Arc<Rule>, RemoteError> {
        if !is_known(identity) {
            return Err(failed("nothing proves who is at this connection".into()));
        }
        let rule = self.rule(identity)?;
        match rule.rights.daemon {
            true => Ok(rule),
            false => Err(failed(format!("no rule here lets {identity} reach libvirtd"))),
        }
    }

    /// What the bearer of a ticket may have. It is spent even where it is of no use: it was said aloud.
    fn admit_bearer(&self, identity: &Identity, secret: &[u8]) -> Result<Admission, RemoteError> {
        let rights = self.tickets.spend(secret);
        if *identity == Identity::Unknown {
            return Err(failed("a ticket over plain TCP is everybody's".into()));
        }
        let rights = rights.ok_or_else(|| failed("the ticket is not valid, or not any more".into()))?;
        Ok(self.admission(rights, None))
    }
}

impl Access for Policy {
    fn admit(&self, caller: &Caller<'_>) -> Result<Admission, RemoteError> {
        if let Some(ticket) = caller.extensions.iter().find(|extension| extension.kind == EXT_TICKET) {
            return self.admit_bearer(caller.identity, &ticket.value);
        }
        let rule = self.rule(caller.identity)?;
        let permit = self.place(rule, caller)?;
        Ok(self.admission(rule.rights.clone(), permit))
    }

    fn admit_to_daemon(&self, caller: &Caller<'_>) -> Result<Permit, RemoteError> {
        let rule = self.daemon_rule(caller.identity)?;
        self.place(rule, caller)
    }
}

/// Whoever reaches libvirtd can do what root can, so it has to be known who that is.
fn is_known(identity: &Identity) -> bool {
    !matches!(identity, Identity::Unknown | Identity::Loopback)
}

/// The targets of one session.
#[derive(Debug)]
struct Allowed {
    rights: Rights,
    offered: Arc<Offered>,
    migrations: Option<OfSession>,
    disks: Disks,
}

impl Allowed {
    fn observed(&self, decision: Decision) -> Decision {
        match decision {
            Decision::Accept(handler) => {
                Decision::Accept(self.disks.observe(nbd::From::Server, Arc::default(), handler))
            }
            other => other,
        }
    }

    /// The part of a migration that the target is, for somebody who may have it.
    fn part(&self, identity: &Identity, target: &str) -> Option<(&OfSession, Name)> {
        self.migrations.as_ref().filter(|_| is_known(identity)).zip(Name::parse(target))
    }
}

impl Targets for Allowed {
    fn open(&self, request: &Request<'_>) -> Decision {
        if let Some((migrations, name)) = self.part(request.identity, request.target) {
            return self.observed(migrations.open(name));
        }
        // Whether it is offered is nothing to tell somebody who may not have it.
        match self.rights.allow(request.target, request.kind) {
            Ok(()) => self.observed(self.offered.open(request)),
            Err(reason) => Decision::Refuse(RemoteError::new(codes::ACCESS_DENIED, domains::STREAMS, reason)),
        }
    }
}

/// The sessions of each, with how many places of each are held: one that calls libvirtd, too, has two.
#[derive(Debug, Default)]
struct Sessions(Mutex<BTreeMap<String, BTreeMap<SessionKey, u32>>>);

/// One of them, until it is dropped.
struct Place {
    sessions: Arc<Sessions>,
    who: String,
    session: SessionKey,
}

impl Sessions {
    fn take(sessions: &Arc<Self>, caller: &Caller<'_>, most: u32) -> Option<Place> {
        let (who, session) = (caller.identity.to_string(), caller.session);
        let mut all = sessions.0.lock();
        let theirs = all.entry(who.clone()).or_default();
        let is_room = theirs.contains_key(&session) || theirs.len() < most as usize;
        if is_room {
            *theirs.entry(session).or_default() += 1;
        } else if theirs.is_empty() {
            all.remove(&who);
        }
        is_room.then(|| Place { sessions: Arc::clone(sessions), who, session })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.sessions.0.lock();
        let Some(theirs) = all.get_mut(&self.who) else { return };
        if let Some(places) = theirs.get_mut(&self.session) {
            *places -= 1;
            if *places == 0 {
                theirs.remove(&self.session);
            }
        }
        if theirs.is_empty() {
            all.remove(&self.who);
        }
    }
}

fn failed(text: String) -> RemoteError {
    RemoteError::new(codes::AUTH_FAILED, domains::RPC, text)
}

fn busy(text: String) -> RemoteError {
    RemoteError::new(codes::OPERATION_DENIED, domains::RPC, text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use virbistream::io::Permissions;

    use super::*;

    const MIGRATION: &str = "migration/0e0b5c1c-8a5f-4d4b-9d0a-3f0f2b1f9c11/directory";

    fn certificate(dn: &str) -> Identity {
        Identity::Certificate { dn: dn.into(), names: vec!["a.example.org".into()], expires: SystemTime::UNIX_EPOCH }
    }

    /// A place where `vda` is offered, libvirtd can be reached and migrations can come in.
    fn policy(base: &Path, rules: Vec<Rule>) -> Policy {
        let mut offered = Offered::default();
        offered.insert("vda", Path::new("/nowhere"));
        let migrations = Migrations::new(base, Permissions::default(), Path::new("/nowhere")).unwrap();
        Policy::new(rules, offered, Some(migrations), Disks::default())
    }

    fn everything() -> Rights {
        Rights { targets: vec![glob("vda")], daemon: true, migrate: true, ..Rights::default() }
    }

    /// Whether somebody has a session, may use a ticket, reaches libvirtd, may migrate, by that rule and by that ticket.
    fn what(policy: &Policy, identity: &Identity) -> [bool; 5] {
        let secret = policy.ticket(everything(), Duration::from_secs(60)).unwrap();
        let migrates = |rights: &Rights| policy.allowed(rights.clone()).part(identity, MIGRATION).is_some();
        let rule = policy.rule(identity);
        [
            rule.is_ok(),
            policy.admit_bearer(identity, &secret.0).is_ok(),
            policy.daemon_rule(identity).is_ok(),
            rule.is_ok_and(|rule| migrates(&rule.rights)),
            migrates(&everything()),
        ]
    }

    #[test]
    fn what_a_rule_gives_is_had_by_those_alone_of_whom_enough_is_known() {
        let base = tempfile::tempdir().unwrap();
        let rule = |who| Rule { who, rights: everything() };
        let (local, known) = (Identity::Local { uid: 7, gid: 7 }, certificate("O=x,CN=a"));
        let other = certificate("O=x,CN=b");
        let [yes, no] = [[true; 5], [false, true, false, false, true]];
        let in_the_open = [true, false, false, false, false];
        let loopback = [true, true, false, false, false];
        for (who, expected) in [
            (Who::Anyone, [in_the_open, loopback, yes, yes, yes]),
            (Who::Unproven, [in_the_open, loopback, no, no, no]),
            (Who::Local, [[false; 5], loopback, yes, no, no]),
            (Who::Uid(7), [[false; 5], [false, true, false, false, false], yes, no, no]),
            (Who::Dn(glob("O=x,CN=a")), [[false; 5], [false, true, false, false, false], no, yes, no]),
            (Who::Name(glob("*.example.org")), [[false; 5], [false, true, false, false, false], no, yes, yes]),
        ] {
            let policy = policy(base.path(), vec![rule(who.clone())]);
            for (identity, expected) in
                [&Identity::Unknown, &Identity::Loopback, &local, &known, &other].into_iter().zip(expected)
            {
                assert_eq!(what(&policy, identity), expected, "{who:?} for {identity:?}");
            }
        }
    }

    #[test]
    fn the_first_rule_that_fits_counts_and_those_behind_it_give_nothing_more() {
        let base = tempfile::tempdir().unwrap();
        let targets =
            |names: &[&str]| Rights { targets: names.iter().copied().map(glob).collect(), ..Rights::default() };
        let rules = vec![
            Rule { who: Who::Dn(glob("O=x,*")), rights: targets(&["vda"]) },
            Rule { who: Who::Anyone, rights: everything() },
        ];
        let policy = policy(base.path(), rules);
        let identity = certificate("O=x,CN=a");
        assert!(policy.daemon_rule(&identity).is_err());
        let allowed = policy.allowed(policy.rule(&identity).unwrap().rights.clone());
        assert!(allowed.part(&identity, MIGRATION).is_none());
        assert!(allowed.rights.allow("vda", 0).is_ok() && allowed.rights.allow("vdb", 0).is_err());
        assert!(policy.daemon_rule(&certificate("O=y,CN=a")).is_ok());
    }

    #[test]
    fn no_ticket_is_made_that_would_be_worth_nothing() {
        let base = tempfile::tempdir().unwrap();
        let ticket = |policy: &Policy, target: &str, migrate| {
            let targets = vec![glob(target)];
            policy.ticket(Rights { targets, migrate, ..Rights::default() }, Duration::from_secs(60))
        };
        let whole = policy(base.path(), Vec::new());
        for target in ["", "vdb", "x*"] {
            let said = ticket(&whole, target, true).unwrap_err();
            assert!(said.contains(&format!("no target `{target}` is offered")), "{said}");
        }
        assert!(ticket(&whole, "vd?", true).is_ok());
        let without = Policy { migrations: None, ..whole };
        assert!(ticket(&without, "vda", true).unwrap_err().contains("no migration can come in"));
        assert!(ticket(&without, "vda", false).is_ok());
    }
}
