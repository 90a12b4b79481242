//! Who may have what: the administrator's rules, and tickets. Who is not let in by one of them stays out.

mod migrations;
mod offered;
mod rule;
mod tickets;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use virbistream::io::{Access, Admission, Caller, Decision, Identity, Permit, Request, SessionKey, Targets};
use virbistream::wire::{EXT_TICKET, RemoteError, codes, domains};

use crate::migrate::Name;
use crate::nbd::{self, Disks};
use migrations::OfSession;

pub(crate) use migrations::Migrations;
pub(crate) use offered::{Offered, Pattern};
pub(crate) use rule::{Rights, Rule, Who, glob};
pub(crate) use tickets::{Secret, Tickets};

/// What `serve` asks before it lets anybody in.
#[derive(Debug)]
pub(crate) struct Policy {
    rules: Vec<Arc<Rule>>,
    offered: Arc<Offered>,
    migrations: Option<Arc<Migrations>>,
    tickets: Arc<Tickets>,
    sessions: Arc<Sessions>,
    disks: Disks,
}

impl Policy {
    pub(crate) fn new(
        rules: Vec<Rule>,
        offered: Offered,
        migrations: Option<Migrations>,
        tickets: Arc<Tickets>,
        disks: Disks,
    ) -> Self {
        let rules = rules.into_iter().map(Arc::new).collect();
        let (offered, migrations) = (Arc::new(offered), migrations.map(Arc::new));
        Self { rules, offered, migrations, tickets, sessions: Arc::default(), disks }
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
        let migrations = self.migrations.as_ref().filter(|_| rights.migrate);
        let migrations = migrations.map(|migrations| OfSession::new(Arc::clone(migrations)));
        Admission {
            max_streams: rights.streams.unwrap_or(u32::MAX),
            bandwidth: rights.bandwidth,
            targets: Arc::new(Allowed {
                rights,
                offered: Arc::clone(&self.offered),
                migrations,
                disks: self.disks.clone(),
            }),
            permit,
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
        // Whoever reaches libvirtd can do what root can, so it has to be known who that is.
        if matches!(caller.identity, Identity::Unknown | Identity::Loopback) {
            return Err(failed("nothing proves who is at this connection".into()));
        }
        let rule = self.rule(caller.identity)?;
        match rule.rights.daemon {
            true => self.place(rule, caller),
            false => Err(failed(format!("no rule here lets {} reach libvirtd", caller.identity))),
        }
    }
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
}

impl Targets for Allowed {
    fn open(&self, request: &Request<'_>) -> Decision {
        // Whoever reaches libvirtd can do what root can, so it has to be known who that is.
        let may_migrate = !matches!(request.identity, Identity::Unknown | Identity::Loopback);
        if let (Some(migrations), Some(name)) =
            (self.migrations.as_ref().filter(|_| may_migrate), Name::parse(request.target))
        {
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
