//! Two hosts, the links between them and the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::plan::{Fault, HORIZON, Plan};
use crate::support::{End, Random};
use crate::verdict;
use crate::way::Way;

/// A session at both ends, and its link.
pub(crate) struct Link {
    pub(crate) hosts: [Host; 2],
    /// What each end sends.
    pub(crate) ways: [Way; 2],
    faults: VecDeque<(Instant, Fault)>,
    has_begun: bool,
    /// Whether an end's memory suffices for all streams that there may be.
    pub(crate) has_memory: [bool; 2],
    /// It broke or was half open.
    pub(crate) was_cut: bool,
}

pub(crate) struct World {
    now: Instant,
    start: Instant,
    links: Vec<Link>,
    random: Random,
    turns: u32,
    says: bool,
}

impl World {
    pub(crate) fn new(plan: Plan, says: bool) -> Self {
        let Plan { seed, start, mut random, configs, sessions } = plan;
        if says {
            println!("seed {seed}: {configs:#?}");
        }
        // Windows grow into one half of the budget alone.
        let streams: u32 = configs.iter().map(|config| config.max_streams).sum();
        let all = u64::from(streams) * sessions.len() as u64;
        let has_memory = configs.each_ref().map(|config| config.memory_budget.bytes() / 2 >= all * config.window);
        let mut host = |end: End, opens: &[Duration]| {
            let own = Random::new(random.word());
            Host::new(end, &configs[end as usize], start, opens, own, says)
        };
        let links = sessions
            .into_iter()
            .map(|session| {
                if says {
                    println!("{session:#?}");
                }
                let hosts = End::BOTH.map(|end| host(end, &session.opens[end as usize]));
                let faults = session.faults.into_iter().map(|(at, fault)| (start + at, fault)).collect();
                Link { hosts, ways: session.ways, faults, has_begun: false, has_memory, was_cut: false }
            })
            .collect();
        Self { now: start, start, links, random, turns: 0, says }
    }

    pub(crate) fn play(mut self) {
        self.run_until(self.start + HORIZON);
        self.let_go();
        let deadline = self.now + self.links.iter().map(|link| link.time_to_end(self.now)).max().unwrap_or_default();
        self.run_to_the_end(deadline);
        let budgets = self.links[0].hosts.each_ref().map(|host| host.config.memory_budget.clone());
        self.links.into_iter().for_each(|link| verdict::judge(&link));
        budgets.iter().for_each(|budget| assert_eq!(budget.taken(), 0, "memory was not given back"));
    }

    fn run_until(&mut self, until: Instant) {
        while let Some(next) = self.turn().filter(|next| *next <= until) {
            self.now = next;
        }
        self.now = until;
    }

    /// Until nothing more happens.
    fn run_to_the_end(&mut self, deadline: Instant) {
        while let Some(next) = self.turn() {
            assert!(next <= deadline, "it takes longer than it may");
            self.now = next;
        }
    }

    /// What happens now; gives when something happens next.
    fn turn(&mut self) -> Option<Instant> {
        for link in &mut self.links {
            link.turn(self.now, &mut self.random, self.says);
        }
        self.assert_memory();
        self.turns += 1;
        assert!(self.turns < 2_000_000, "it does not end");
        self.links.iter().filter_map(Link::next).min().map(|next| next.max(self.now))
    }

    /// Whatever is held back is let go, and the sessions end.
    fn let_go(&mut self) {
        let now = self.now;
        for link in &mut self.links {
            link.ways.iter_mut().for_each(|way| way.stalled_until = None);
            link.hosts.iter_mut().for_each(|host| host.let_go(now));
            let end = *self.random.pick(&End::BOTH);
            let ends: &[Fault] = match self.random.below(10) {
                0 => &[Fault::Shutdown(end)],
                1 => &[Fault::Cut([true, true])],
                2 => &[Fault::HalfOpen(end)],
                3 => &[Fault::Close(End::Connecting), Fault::Close(End::Accepting)],
                _ => &[Fault::Close(end)],
            };
            // Half open, it is found by its silence alone.
            link.faults = ends.iter().map(|fault| (now, *fault)).collect();
        }
    }

    /// What the windows of all sessions of a host take is what its budget counts.
    fn assert_memory(&self) {
        for end in End::BOTH {
            let hosts = || self.links.iter().map(|link| &link.hosts[end as usize]);
            let granted: u64 = hosts().map(|host| host.session.granted()).sum();
            let budget = &self.links[0].hosts[end as usize].config.memory_budget;
            assert_eq!(granted, budget.taken(), "what is granted is what is counted");
        }
    }
}

impl Link {
    fn turn(&mut self, now: Instant, random: &mut Random, says: bool) {
        if self.has_begun && self.next().is_none_or(|at| at > now) {
            return;
        }
        self.has_begun = true;
        while let Some((_, fault)) = self.faults.pop_front_if(|(at, _)| *at <= now) {
            if says {
                println!("{fault:?}");
            }
            self.befall(now, fault, random);
        }
        // What one reads makes room for what the other writes.
        loop {
            for n in 0..2 {
                let [first, second] = &mut self.ways;
                let (outgoing, incoming) = if n == 0 { (first, second) } else { (second, first) };
                self.hosts[n].turn(now, incoming, outgoing);
            }
            let writes =
                |n: usize| !self.hosts[n].out.is_empty() && !self.hosts[n].is_frozen(now) && self.ways[n].has_room();
            if !writes(0) && !writes(1) {
                break;
            }
        }
        self.assert_bytes(now);
        self.assert_progress(now);
    }

    fn befall(&mut self, now: Instant, fault: Fault, random: &mut Random) {
        match fault {
            Fault::Stall(end, time) => self.ways[end as usize].stalled_until = Some(now + time),
            Fault::HalfOpen(end) => self.ways[end as usize].is_dead = true,
            Fault::Cut(told) => {
                for (n, way) in self.ways.iter_mut().enumerate() {
                    way.break_off(now, random);
                    way.is_dead |= !told[n];
                }
            }
            Fault::Freeze(end, time) => self.hosts[end as usize].frozen_until = Some(now + time),
            Fault::Jump(end, time) => self.hosts[end as usize].skew += time,
            Fault::Limit(end, rate) => self.hosts[end as usize].set_limit(now, rate),
            Fault::ReceiveLimit(end, rate) => self.hosts[end as usize].set_receive_limit(now, rate),
            Fault::Close(end) => self.hosts[end as usize].session.close(),
            Fault::Shutdown(end) => self.hosts[end as usize].session.shutdown("enough"),
        }
        self.was_cut |= matches!(fault, Fault::HalfOpen(_) | Fault::Cut(_));
        for host in &mut self.hosts {
            let local = host.local(now);
            host.drain_events(local);
        }
    }

    fn is_over(&self) -> bool {
        self.hosts.iter().all(|host| host.closed.is_some() && (host.shut || !host.out.is_empty()))
    }

    fn next(&self) -> Option<Instant> {
        if self.is_over() && self.faults.is_empty() {
            return None;
        }
        let arrival = |n: usize| {
            let at = self.ways[1 - n].next().filter(|_| !self.hosts[n].has_read_all())?;
            Some(self.hosts[n].frozen_until.map_or(at, |until| until.max(at)))
        };
        let hosts = self.hosts.iter().filter_map(Host::next);
        let faults = self.faults.front().map(|(at, _)| *at);
        hosts.chain([arrival(0), arrival(1)].into_iter().flatten()).chain(faults).min()
    }

    /// No end has more than the other sent, and credit is neither lost nor made.
    fn assert_bytes(&self, now: Instant) {
        let quiet = self.is_quiet(now);
        for n in 0..2 {
            let (from, to) = (&self.hosts[n], &self.hosts[1 - n]);
            for (id, handler) in &from.handlers {
                let Some(far) = to.handlers.get(id) else { continue };
                assert!(far.consumed <= far.given && far.given <= handler.sent, "{handler:?}, {far:?}");
                let open = [handler, far].iter().all(|at| at.is_living() && at.open_since.is_some());
                if quiet && open && !to.is_receive_limited() && !far.stopped && !handler.finish_said {
                    let (Some(credit), Some(window)) = (from.credit(*id), to.window(*id)) else { continue };
                    let known = credit + handler.sent - far.consumed;
                    let least = window - window.div_ceil(4);
                    assert!(known <= window && known > least, "{known} of {window}: {handler:?}, {far:?}");
                }
            }
        }
    }

    /// Nothing is under way and nobody has anything to say.
    fn is_quiet(&self, now: Instant) -> bool {
        let hosts = || self.hosts.iter();
        self.ways.iter().all(|way| way.is_empty() && way.is_moving(now))
            && hosts().all(|host| host.out.is_empty() && host.closed.is_none() && !host.is_frozen(now))
    }

    /// A stream whose peer takes all sends, while the link moves.
    fn assert_progress(&mut self, now: Instant) {
        let bound = self.time_to_progress();
        let moves = self.ways.iter().all(|way| way.is_moving(now));
        let both = self.hosts.iter().all(|host| host.closed.is_none() && !host.is_frozen(now));
        for n in 0..2 {
            let (before, behind) = self.hosts.split_at_mut(1);
            let (host, peer) = if n == 0 { (&mut before[0], &behind[0]) } else { (&mut behind[0], &before[0]) };
            let (local, limited) = (host.local(now), host.is_limited());
            // For what it may send, and before that for its own reply.
            let bound = peer.grants_within().zip(host.grants_within()).map(|(peers, own)| bound + peers + own);
            let changed = peer.receive_limit_since.max(host.receive_limit_since);
            for (id, handler) in &mut host.handlers {
                if !(moves && both && !limited && bound.is_some() && handler.could_send(local) && peer.takes_all(*id)) {
                    handler.waits_since = None;
                    continue;
                }
                let since = (*handler.waits_since.get_or_insert(now)).max(changed);
                assert!(
                    bound.is_none_or(|bound| now - since <= bound),
                    "stream {id} waits since {:?}: {handler:?}",
                    now - since
                );
            }
        }
    }

    fn round_trip(&self) -> Duration {
        self.ways[0].delay + self.ways[1].delay
    }

    /// How long so many bytes may take: by rate, and by what may be under way at once.
    fn time_of(&self, bytes: u64) -> Duration {
        let way = &self.ways[0];
        let by_rate = Duration::from_nanos(bytes * 1_000_000_000 / way.bytes_per_second);
        let turns = bytes / way.capacity as u64 + 1;
        by_rate + (way.delay + Duration::from_millis(1)) * turns as u32
    }

    /// However unlucky: all that the other streams have goes first, control packets too.
    fn time_to_progress(&self) -> Duration {
        let handlers = || self.hosts.iter().flat_map(|host| host.handlers.values());
        let bytes: u64 = handlers().map(|handler| handler.total + 1000).sum();
        Duration::from_millis(500) + 6 * self.round_trip() + 2 * self.time_of(bytes)
    }

    /// Until all is sent and the session has ended, or its silence was noticed.
    fn time_to_end(&self, now: Instant) -> Duration {
        let left = |host: &Host| {
            let local = host.local(now);
            host.handlers
                .values()
                .map(|handler| handler.had(local) - handler.sent.min(handler.had(local)))
                .max()
                .unwrap_or(0)
        };
        let windows = self.hosts.iter().map(|host| left(host) / (host.config.window / 2) + 4).max().unwrap_or(0);
        let least = self.hosts.iter().map(|host| left(host) / 2000 + 4).max().unwrap_or(0);
        let silence: Duration = self.hosts.iter().map(|host| host.config.silence_limit).sum();
        2 * silence
            + 2 * self.time_to_progress()
            + self.round_trip() * windows.max(least) as u32
            + Duration::from_secs(5)
    }
}
