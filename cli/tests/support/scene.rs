//! The migration of one fault: up to its phase, the strike, and on from there.

use super::echo::echo_on;
use super::fault::{Fault, Kind, Phase, Victim};
use super::link::Link;
use super::migrate::{Migration, UNLIMITED};
use super::process::Process;
use super::qmp::Call;
use super::relay::Route;
use super::tool::{ANY_PORT, forward, serve};
use super::{PATIENCE, Scratch, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DISK_MIB: u64 = 64;
/// So slow that neither disks nor memory can be over before the fault.
const SLOW: u64 = 4 << 20;
/// Within which everybody has noticed: twice the silence that the tool bears, as the machine may be busy.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// A migration through a tunnel whose link is the test's.
pub(super) struct Scene {
    pub(super) fault: Fault,
    pub(super) migration: Migration,
    pub(super) routes: Vec<Route>,
    pub(super) serve: Process,
    pub(super) forward: Process,
    pub(super) link: Link,
    /// Between serve and the destination's QEMU: where the word that all has come can be held.
    pub(super) word: Link,
    /// The connection that the source's QEMU is about to make.
    pub(super) connecting: Option<Call>,
    /// Where serve listens: a port, and a socket.
    pub(super) peer: String,
    pub(super) door: PathBuf,
    /// What serve had before there was a session.
    pub(super) descriptors: usize,
    pub(super) scratch: Scratch,
}

impl Scene {
    #[track_caller]
    pub(super) fn set(fault: Fault) -> Self {
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
    pub(super) fn reach(&mut self) {
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
    pub(super) fn begin_to_connect(&mut self) {
        self.link.freeze();
        let mut node = self.migration.mirror_node(&self.migration.source.disks[0]);
        node["node-name"] = "early".into();
        self.connecting = Some(self.migration.source.qmp.begin("blockdev-add", node));
        self.link.wait_for_held();
    }

    /// What came of it.
    #[track_caller]
    pub(super) fn connected(&mut self) -> Option<bool> {
        let call = self.connecting.take()?;
        Some(self.migration.source.qmp.outcome(call, DEADLINE).is_ok())
    }

    #[track_caller]
    pub(super) fn mirror(&mut self) {
        self.migration.start_mirrors(0);
        self.migration.wait_for_mirrors();
    }

    #[track_caller]
    pub(super) fn pause(&mut self) {
        self.migration.start_memory(UNLIMITED);
        self.migration.wait_for_pause();
        self.migration.end_mirrors();
    }

    #[track_caller]
    pub(super) fn wait_for_progress(&mut self) {
        let qmp = &mut self.migration.source.qmp;
        wait_for("mirrors that have begun", PATIENCE, || {
            let jobs = qmp.call("query-block-jobs", json!({}));
            let jobs = jobs.as_array().expect("a list of jobs");
            let offset = |job: &Value| job["offset"].as_u64().expect("an offset");
            (jobs.len() == 2 && jobs.iter().all(|job| offset(job) > SLOW / 2)).then_some(())
        });
    }

    #[track_caller]
    pub(super) fn wait_for_memory(&mut self) {
        let qmp = &mut self.migration.source.qmp;
        wait_for("memory on its way", PATIENCE, || {
            let migration = qmp.call("query-migrate", json!({}));
            (migration["ram"]["transferred"].as_u64() > Some(SLOW / 2)).then_some(())
        });
    }

    #[track_caller]
    pub(super) fn strike(&mut self) {
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
    pub(super) fn switch_over(&mut self) {
        let state = json!({"state": "pre-switchover"});
        self.migration.source.qmp.call("migrate-continue", state);
    }

    pub(super) fn victim(&mut self) -> &mut Process {
        match self.fault.victim {
            Victim::Source => &mut self.migration.source.process,
            Victim::Destination => &mut self.migration.destination.process,
            Victim::Serve => &mut self.serve,
            Victim::Forward => &mut self.forward,
            Victim::Link => unreachable!("a link is no process"),
        }
    }

    /// The migration from the phase that it is in to its end.
    #[track_caller]
    pub(super) fn complete(&mut self) {
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

    /// Both ends of the tool end well, and take their sockets along.
    #[track_caller]
    pub(super) fn end(&mut self) {
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

    pub(super) fn near(&self, name: &str) -> PathBuf {
        self.scratch.join(&format!("near.{name}"))
    }
}

/// The control socket of the serve that has this door.
pub(super) fn control(door: &Path) -> PathBuf {
    door.with_extension("control")
}

pub(super) fn sockets(routes: &[Route]) -> impl Iterator<Item = (&str, &Path)> {
    routes.iter().map(|route| (route.name, &*route.near))
}

#[track_caller]
pub(super) fn start_serve(listen: &str, door: &Path, routes: &[Route]) -> Process {
    let targets = routes.iter().map(|route| (route.name, &*route.far));
    let run = serve(listen, targets).arg("--listen").arg(format!("unix:{}", door.display()));
    run.arg("--control").arg(control(door)).start()
}
