//! One fault in one migration: the migration up to a phase, the fault, and all that must hold afterwards.

use super::echo::{assert_echoes, connect, echo_on};
use super::guest::{State, assert_ring_is_whole, newest_in_ring};
use super::link::Link;
use super::migrate::{Migration, UNLIMITED, assert_disks_are_whole, is_job_event, newest, written};
use super::process::Process;
use super::qmp::Call;
use super::relay::Route;
use super::said::{assert_all_failed, assert_same_causes, session_cause};
use super::tool::{ANY_PORT, forward, serve};
use super::vm::assert_image_is_sound;
use super::{PATIENCE, Scratch, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DISK_MIB: u64 = 64;
/// So slow that neither disks nor memory can be over before the fault.
const SLOW: u64 = 4 << 20;
/// For how long the tool bears a peer's silence. HELLO has ten seconds.
const SILENCE: Duration = Duration::from_secs(30);
/// Within which everybody has noticed: twice the silence, as the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

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
    fn is_with_memory(self) -> bool {
        matches!(self.phase, Phase::Memory | Phase::Switchover)
    }
}

/// A migration through a tunnel whose link is the test's.
struct Scene {
    fault: Fault,
    migration: Migration,
    routes: Vec<Route>,
    serve: Process,
    forward: Process,
    link: Link,
    /// Between serve and the destination's QEMU: where the word that all has come can be held.
    word: Link,
    /// The connection that the source's QEMU is about to make.
    connecting: Option<Call>,
    /// Where serve listens: a port, and a socket.
    peer: String,
    door: PathBuf,
    /// What serve had before there was a session.
    descriptors: usize,
    scratch: Scratch,
}

impl Scene {
    #[track_caller]
    fn set(fault: Fault) -> Self {
        let scratch = Scratch::new();
        let mut migration = Migration::prepare(&scratch, None, DISK_MIB);
        migration.listen();
        let echo = Route { name: "echo", near: scratch.join("near.echo"), far: scratch.join("far.echo") };
        echo_on(&echo.far);
        let mut routes = migration.routes();
        routes.push(echo);
        let memory = routes.iter_mut().find(|route| route.name == "memory").expect("a route for memory");
        let word = scratch.join("word");
        let word = Link::between(&word, &std::mem::replace(&mut memory.far, word.clone()));
        let door = scratch.join("door");
        let serve = start_serve(ANY_PORT, &door, &routes);
        let ready = serve.ready();
        let peer = ready.split(' ').next().expect("an address").to_owned();
        let descriptors = serve.descriptors();
        let link = Link::to(&peer);
        link.freeze();
        let forward = forward(&link.address(), sockets(&routes)).start();
        link.wait_for_held();
        Self {
            fault,
            migration,
            routes,
            serve,
            forward,
            link,
            word,
            connecting: None,
            peer,
            door,
            descriptors,
            scratch,
        }
    }

    /// Brings the migration to where the fault strikes.
    #[track_caller]
    fn reach(&mut self) {
        let phase = self.fault.phase;
        let is_of_hello = !matches!(self.fault.victim, Victim::Source | Victim::Destination);
        if phase == Phase::Handshake && is_of_hello {
            return;
        }
        self.link.thaw();
        self.forward.ready();
        match phase {
            Phase::Handshake => {}
            Phase::Opening => self.begin_to_connect(),
            Phase::Mirroring => {
                self.migration.start_mirrors(SLOW);
                self.wait_for_progress();
            }
            Phase::Ready => self.mirror(),
            Phase::Memory => {
                self.mirror();
                self.migration.start_memory(SLOW);
                self.wait_for_memory();
            }
            Phase::Switchover => {
                self.mirror();
                self.pause();
            }
            Phase::Acknowledged => {
                self.mirror();
                self.pause();
                self.word.freeze_back();
                self.switch_over();
                let qmp = &mut self.migration.destination.qmp;
                qmp.event("end of the migration", PATIENCE, |event| event["data"]["status"] == "completed");
                self.word.wait_for_held();
            }
        }
    }

    /// Has OPEN stand in the link.
    #[track_caller]
    fn begin_to_connect(&mut self) {
        self.link.freeze();
        let mut node = self.migration.mirror_node(&self.migration.source.disks[0]);
        node["node-name"] = "early".into();
        self.connecting = Some(self.migration.source.qmp.begin("blockdev-add", node));
        self.link.wait_for_held();
    }

    /// What came of it.
    #[track_caller]
    fn connected(&mut self) -> Option<bool> {
        let call = self.connecting.take()?;
        Some(self.migration.source.qmp.outcome(call, DEADLINE).is_ok())
    }

    #[track_caller]
    fn mirror(&mut self) {
        self.migration.start_mirrors(0);
        self.migration.wait_for_mirrors();
    }

    #[track_caller]
    fn pause(&mut self) {
        self.migration.start_memory(UNLIMITED);
        self.migration.wait_for_pause();
        self.migration.end_mirrors();
    }

    #[track_caller]
    fn wait_for_progress(&mut self) {
        let qmp = &mut self.migration.source.qmp;
        wait_for("mirrors that have begun", PATIENCE, || {
            let jobs = qmp.call("query-block-jobs", json!({}));
            let jobs = jobs.as_array().expect("a list of jobs");
            let offset = |job: &Value| job["offset"].as_u64().expect("an offset");
            (jobs.len() == 2 && jobs.iter().all(|job| offset(job) > SLOW / 2)).then_some(())
        });
    }

    #[track_caller]
    fn wait_for_memory(&mut self) {
        let qmp = &mut self.migration.source.qmp;
        wait_for("memory on its way", PATIENCE, || {
            let migration = qmp.call("query-migrate", json!({}));
            (migration["ram"]["transferred"].as_u64() > Some(SLOW / 2)).then_some(())
        });
    }

    #[track_caller]
    fn strike(&mut self) {
        let Fault { phase, victim, kind } = self.fault;
        match (victim, kind) {
            (Victim::Link, Kind::Kill) => self.link.cut(),
            (Victim::Link, Kind::Stop) => self.link.freeze(),
            (_, Kind::Kill) => {
                self.victim().signal(Signal::KILL);
                self.victim().wait(PATIENCE);
            }
            (_, Kind::Stop) => self.victim().signal(Signal::STOP),
        }
        self.word.thaw();
        if matches!(phase, Phase::Handshake | Phase::Opening) && victim != Victim::Link {
            self.link.thaw();
        }
        if phase == Phase::Switchover && victim != Victim::Source {
            self.switch_over();
        }
    }

    #[track_caller]
    fn switch_over(&mut self) {
        let state = json!({"state": "pre-switchover"});
        self.migration.source.qmp.call("migrate-continue", state);
    }

    fn victim(&mut self) -> &mut Process {
        match self.fault.victim {
            Victim::Source => &mut self.migration.source.process,
            Victim::Destination => &mut self.migration.destination.process,
            Victim::Serve => &mut self.serve,
            Victim::Forward => &mut self.forward,
            Victim::Link => unreachable!("a link is no process"),
        }
    }

    /// A QEMU stands still for longer than the tool bears of its peer, and then all goes on as if nothing had been.
    #[track_caller]
    fn assert_it_completes(&mut self) {
        let stopped = Instant::now();
        let waiting = (self.fault.phase == Phase::Handshake).then(|| connect(&self.near("nbd")));
        let echo = connect(&self.near("echo"));
        assert_echoes(&echo, b"before");
        wait_for("the time of silence to pass", 2 * SILENCE, || {
            (stopped.elapsed() > SILENCE + Duration::from_secs(2)).then_some(())
        });
        assert_echoes(&echo, b"meanwhile");
        self.victim().signal(Signal::CONT);
        if let Some(mut nbd) = waiting {
            let mut greeting = [0; 8];
            nbd.read_exact(&mut greeting).expect("a server that speaks first");
            assert_eq!(&greeting, b"NBDMAGIC");
        }
        match self.connected() {
            Some(true) => {
                self.migration.source.qmp.call("blockdev-del", json!({"node-name": "early"}));
            }
            // QEMU's NBD server gives a client ten seconds to say its first word.
            Some(false) => assert_eq!(self.fault.victim, Victim::Source, "a connection that only took its time"),
            None => {}
        }
        self.complete();
        self.migration.assert_disks_are_equal();
        self.migration.assert_guest_goes_on();
        drop(echo);
        self.assert_streams_agree();
        self.end();
    }

    /// The migration from the phase that it is in to its end.
    #[track_caller]
    fn complete(&mut self) {
        match self.fault.phase {
            Phase::Handshake | Phase::Opening => self.mirror(),
            Phase::Mirroring => {
                for disk in &self.migration.source.disks {
                    let unlimited = json!({"device": disk.node, "speed": 0});
                    self.migration.source.qmp.call("block-job-set-speed", unlimited);
                }
                self.migration.wait_for_mirrors();
            }
            Phase::Ready | Phase::Memory | Phase::Switchover | Phase::Acknowledged => {}
        }
        match self.fault.phase {
            Phase::Memory => {
                self.migration.limit_memory(UNLIMITED);
                self.migration.wait_for_pause();
                self.migration.end_mirrors();
            }
            Phase::Switchover | Phase::Acknowledged => {}
            Phase::Handshake | Phase::Opening | Phase::Mirroring | Phase::Ready => self.pause(),
        }
        match (self.fault.phase, self.fault.victim) {
            (Phase::Acknowledged, _) | (Phase::Switchover, Victim::Destination) => {}
            _ => self.switch_over(),
        }
        self.migration.wait_for_end();
    }

    /// Its own QEMU was killed: the guest runs nowhere, and what it had written is there. Where the destination had all, it can go on
    /// there.
    #[track_caller]
    fn assert_guest_is_gone(mut self, before: &State) {
        if self.fault.phase == Phase::Acknowledged {
            self.migration.assert_guest_goes_on_from(before);
            self.assert_streams_agree();
            self.assert_tunnel_stands();
            return self.end();
        }
        self.assert_destination_gives_up();
        self.assert_streams_agree();
        self.assert_tunnel_stands();
        let raw = self.scratch.join("checked.raw");
        for (index, (disk, said)) in (0..).zip(self.migration.source.disks.iter().zip(&before.records)) {
            assert_image_is_sound(disk);
            // What qcow2 has of new clusters in memory alone is the guest's to flush, which it does at its end.
            if disk.format == "raw" {
                disk.copy_raw(&raw);
                let newest = newest_in_ring(&raw);
                assert!(newest >= *said, "the guest had written record {said}, and {newest} is the newest");
                assert_ring_is_whole(&raw, index, newest);
            }
        }
        self.end();
    }

    /// The guest runs at the source, its disks are whole, and it never runs at the destination.
    #[track_caller]
    fn assert_source_goes_on(&mut self, before: &State) {
        match self.fault.phase {
            Phase::Handshake => self.assert_no_mirror_begins(),
            Phase::Opening => assert_eq!(self.connected(), Some(false), "a connection through what is not there"),
            _ => {}
        }
        if matches!(self.fault.phase, Phase::Handshake | Phase::Opening) && self.fault.victim == Victim::Destination {
            self.assert_refusal_is_told();
        }
        let source = &mut self.migration.source;
        if matches!(self.fault.phase, Phase::Mirroring | Phase::Ready | Phase::Memory) {
            for disk in &source.disks {
                let event = source.qmp.event("end of a mirror", DEADLINE, |event| {
                    is_job_event(event, &disk.node) && event["event"] != "BLOCK_JOB_READY"
                });
                assert!(event["data"]["error"].is_string(), "{event}");
            }
        }
        if self.fault.is_with_memory() {
            source.qmp.event("end of the migration", DEADLINE, |event| event["data"]["status"] == "failed");
        }
        if self.fault.phase == Phase::Acknowledged {
            let event = source.qmp.event("end of the migration", DEADLINE, |event| {
                event["data"]["status"] == "completed" || event["data"]["status"] == "failed"
            });
            if event["data"]["status"] == "completed" {
                // It is for who moves the guest to say where it runs.
                if self.fault.victim != Victim::Destination {
                    self.migration.assert_disks_are_equal();
                    return self.migration.assert_guest_goes_on();
                }
                source.qmp.call("cont", json!({}));
            }
        }
        wait_for("the guest to run at the source", DEADLINE, || {
            let status = source.qmp.call("query-status", json!({}));
            (status["status"] == "running").then_some(())
        });
        self.assert_destination_gives_up();
        let source = &mut self.migration.source;
        source.said("vbs-at", |state| written(state, newest(before) + 200));
        let end = source.stop_guest();
        assert_disks_are_whole(&source.disks, &end, self.scratch.path());
        source.disks.iter().for_each(assert_image_is_sound);
    }

    /// Nobody is behind the near socket, or nobody behind the far one.
    #[track_caller]
    fn assert_no_mirror_begins(&mut self) {
        let node = self.migration.mirror_node(&self.migration.source.disks[0]);
        let refused = self.migration.source.qmp.try_call("blockdev-add", node);
        assert!(refused.is_err(), "a mirror through a tunnel that is not there");
    }

    /// By both ends, with the errno of who dialled.
    #[track_caller]
    fn assert_refusal_is_told(&self) {
        for end in [&self.forward, &self.serve] {
            end.line_on_stderr("refusal", |line| {
                line.contains("no stream to `nbd`") && line.contains("Connection refused (os error 111)")
            });
        }
    }

    /// The destination's QEMU does not run the guest, and ends: by itself when memory was on its way, or when it is told to, with
    /// no client left.
    #[track_caller]
    fn assert_destination_gives_up(&mut self) {
        let destination = &mut self.migration.destination;
        if self.fault.victim == Victim::Destination {
            return;
        }
        if self.fault.is_with_memory() {
            let status = destination.process.wait(DEADLINE);
            assert_eq!(status.code(), Some(1), "{}", destination.process.stderr.text());
            return;
        }
        let status = destination.qmp.call("query-status", json!({}));
        assert_eq!(status["running"], false, "{status}");
        for disk in &destination.disks {
            let export = json!({"id": format!("export-{}", disk.node), "mode": "safe"});
            wait_for("an export that nobody uses", DEADLINE, || {
                destination.qmp.try_call("block-export-del", export.clone()).ok()
            });
        }
        destination.qmp.call("quit", json!({}));
        assert!(destination.process.wait(PATIENCE).success());
    }

    /// Every end that can says why, and which streams that took along. One that was stopped does when it goes on.
    #[track_caller]
    fn assert_tunnel_is_lost(&mut self) {
        let Fault { phase, victim, kind } = self.fault;
        let silent = |end: &Process, hears_hello: bool| {
            let cause = session_cause(end, DEADLINE);
            let limit = if hears_hello {
                "nothing was heard from the peer for 30 s"
            } else {
                "no HELLO came from the peer within 10 s"
            };
            assert_eq!(cause, limit, "{}", end.name());
            cause
        };
        let hears_hello = phase != Phase::Handshake;
        let causes = match (victim, kind) {
            (Victim::Link, Kind::Kill) => {
                [&self.forward, &self.serve].map(|end| (end, assert_link_is_lost(end))).into()
            }
            (Victim::Serve, Kind::Kill) => vec![(&self.forward, assert_link_is_lost(&self.forward))],
            (Victim::Forward, Kind::Kill) => vec![(&self.serve, assert_link_is_lost(&self.serve))],
            (Victim::Link, Kind::Stop) => {
                [&self.forward, &self.serve].map(|end| (end, silent(end, hears_hello))).into()
            }
            (Victim::Serve, Kind::Stop) => {
                let cause = silent(&self.forward, hears_hello);
                self.serve.signal(Signal::CONT);
                vec![(&self.serve, assert_heard_of(&self.serve, &cause)), (&self.forward, cause)]
            }
            (Victim::Forward, Kind::Stop) => {
                let cause = silent(&self.serve, true);
                self.forward.signal(Signal::CONT);
                vec![(&self.forward, assert_heard_of(&self.forward, &cause)), (&self.serve, cause)]
            }
            (Victim::Source | Victim::Destination, _) => unreachable!("the tunnel stands"),
        };
        for (end, cause) in causes {
            // Both mirrors are, at the switchover.
            let some_were_done = matches!(phase, Phase::Switchover | Phase::Acknowledged);
            assert_all_failed(end, &cause, some_were_done);
        }
    }

    /// What streams were lost, both ends say, with the same causes.
    #[track_caller]
    fn assert_streams_agree(&self) {
        assert_same_causes(&self.forward, &self.serve, DEADLINE);
    }

    #[track_caller]
    fn assert_tunnel_stands(&mut self) {
        assert_echoes(&connect(&self.near("echo")), b"as before");
        self.serve.assert_alive();
        self.forward.assert_alive();
    }

    /// `forward` has ended and `serve` has not, unless it was killed; started again, they work, whatever is left of before.
    #[track_caller]
    fn assert_tool_starts_again(mut self) {
        let (was_serve, was_forward) = match (self.fault.victim, self.fault.kind) {
            (Victim::Serve, Kind::Kill) => (true, false),
            (Victim::Forward, Kind::Kill) => (false, true),
            _ => (false, false),
        };
        if !was_forward {
            let status = self.forward.wait(DEADLINE);
            assert_eq!(status.code(), Some(1), "{}", self.forward.stderr.text());
        }
        for (_, near) in sockets(&self.routes) {
            assert_eq!(near.exists(), was_forward, "{}", near.display());
        }
        let doors = [self.door.clone(), control(&self.door)];
        assert!(doors.iter().all(|door| door.exists()));
        if was_serve {
            self.serve = start_serve(&self.peer, &self.door, &self.routes);
            self.serve.ready();
        } else {
            self.serve.assert_alive();
            wait_for("serve to close what the session had", DEADLINE, || {
                (self.serve.descriptors() <= self.descriptors).then_some(())
            });
        }
        let peer = format!("unix:{}", self.door.display());
        self.forward = forward(&peer, sockets(&self.routes)).start();
        self.forward.ready();
        self.assert_tunnel_stands();
        self.end();
    }

    /// Both ends of the tool end well, and take their sockets along.
    #[track_caller]
    fn end(&mut self) {
        let doors = [self.door.clone(), control(&self.door)];
        for (process, sockets) in [
            (&mut self.forward, sockets(&self.routes).map(|(_, near)| near.to_owned()).collect()),
            (&mut self.serve, Vec::from(doors)),
        ] {
            process.signal(Signal::TERM);
            let status = process.wait(DEADLINE);
            assert!(status.success(), "{}: {}", process.name(), process.stderr.text());
            for socket in sockets {
                assert!(!socket.exists(), "{} is left", socket.display());
            }
        }
    }

    fn near(&self, name: &str) -> PathBuf {
        self.scratch.join(&format!("near.{name}"))
    }
}

/// The control socket of the serve that has this door.
fn control(door: &Path) -> PathBuf {
    door.with_extension("control")
}

fn sockets(routes: &[Route]) -> impl Iterator<Item = (&str, &Path)> {
    routes.iter().map(|route| (route.name, &*route.near))
}

#[track_caller]
fn start_serve(listen: &str, door: &Path, routes: &[Route]) -> Process {
    let targets = routes.iter().map(|route| (route.name, &*route.far));
    let run = serve(listen, targets).arg("--listen").arg(format!("unix:{}", door.display()));
    run.arg("--control").arg(control(door)).start()
}

#[track_caller]
fn assert_link_is_lost(end: &Process) -> String {
    let cause = session_cause(end, DEADLINE);
    assert!(cause.starts_with("the link was lost"), "{}: {cause}", end.name());
    cause
}

/// An end that was stopped hears why the other gave up, or where that did not come through, that the link is lost.
#[track_caller]
fn assert_heard_of(end: &Process, others: &str) -> String {
    let cause = session_cause(end, DEADLINE);
    assert!(cause.starts_with("the link was lost") || cause.ends_with(others), "{}: {cause}", end.name());
    cause
}
