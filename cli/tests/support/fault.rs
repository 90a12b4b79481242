//! The faults of a migration: what is struck, how, and when.

use super::scene::Scene;

/// Where the migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// HELLO is under way; where a QEMU is the victim, no stream is open yet.
    Handshake,
    /// OPEN is: the source's QEMU is about to connect to the destination's.
    Opening,
    /// Both disks are copied.
    Mirroring,
    /// Both mirrors are in step with the guest.
    Ready,
    /// So is memory, beside them.
    Memory,
    /// The guest is paused, and the last of its memory is about to pass.
    Switchover,
    /// The destination has all, and the source is about to hear of it.
    Acknowledged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Source,
    Destination,
    Serve,
    Forward,
    Link,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL; of a link, a reset at both ends.
    Kill,
    /// SIGSTOP, and SIGCONT when its peer has given up on it, or would have; of a link, silence.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) phase: Phase,
    pub(crate) victim: Victim,
    pub(crate) kind: Kind,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { phase, victim, kind } = self;
        write!(f, "{phase:?}.{victim:?}.{kind:?}")
    }
}

impl Phase {
    pub(crate) const ALL: [Self; 7] = [
        Self::Handshake,
        Self::Opening,
        Self::Mirroring,
        Self::Ready,
        Self::Memory,
        Self::Switchover,
        Self::Acknowledged,
    ];
}

impl Victim {
    pub(crate) const ALL: [Self; 5] = [Self::Source, Self::Destination, Self::Serve, Self::Forward, Self::Link];
}

impl Fault {
    /// Each fault of each victim in each phase.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let kinds = [Kind::Kill, Kind::Stop];
        let victims = Victim::ALL.into_iter().flat_map(move |victim| kinds.map(|kind| (victim, kind)));
        Phase::ALL
            .into_iter()
            .flat_map(move |phase| victims.clone().map(move |(victim, kind)| Self { phase, victim, kind }))
    }

    /// Lets it strike, and fails the test unless everything holds.
    #[track_caller]
    pub(crate) fn check(self) {
        let mut scene = Scene::set(self);
        scene.reach();
        let before = scene.migration.source.last_said();
        scene.strike();
        match (self.victim, self.kind) {
            (Victim::Source | Victim::Destination, Kind::Stop) => scene.assert_it_completes(),
            (Victim::Source, Kind::Kill) => scene.assert_guest_is_gone(&before),
            (Victim::Destination, Kind::Kill) => {
                scene.assert_streams_agree();
                scene.assert_source_goes_on(&before);
                scene.assert_tunnel_stands();
                scene.end();
            }
            (Victim::Serve | Victim::Forward | Victim::Link, _) => {
                scene.assert_tunnel_is_lost();
                scene.assert_source_goes_on(&before);
                scene.assert_tool_starts_again();
            }
        }
    }

    /// Whether memory was on its way: then the destination's QEMU ends by itself when the source's is lost.
    pub(super) fn is_with_memory(self) -> bool {
        matches!(self.phase, Phase::Memory | Phase::Switchover)
    }
}
