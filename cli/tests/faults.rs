//! What a migration comes to when a process of it is killed or stands still: the guest runs on one side, its disks are whole, who is
//! left says why, and nothing hangs.
//!
//! `cargo test` takes one fault for each process and each phase; all of them:
//! `cargo test --release -p virbistream-cli --test faults -- --ignored --test-threads=1`.

mod support;

use rustix::process::Signal;
use serde_json::json;
use support::bytes::MIB;
use support::migrate::{Migration, assert_disks_are_whole, is_job_event, newest, written};
use support::net::Wire;
use support::process::Process;
use support::relay::{Relay, Tunnel};
use support::tool::GIVING_UP;
use support::{PATIENCE, Scratch, alone, wait_for};

/// How far the migration is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The tunnel stands, and nothing was asked of it.
    Handshake,
    Mirroring,
    /// The mirrors are in step with the guest.
    Ready,
    Memory,
    /// The guest is paused, and all but its last pages is over.
    Switchover,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Source,
    Destination,
    Serve,
    Forward,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Killed,
    /// As a frozen host is, or a link that carries nothing any more.
    Stopped,
}

const PHASES: [Phase; 5] = [Phase::Handshake, Phase::Mirroring, Phase::Ready, Phase::Memory, Phase::Switchover];

struct Case {
    migration: Migration,
    tunnel: Tunnel,
    nodes: Vec<String>,
}

impl Case {
    fn start(scratch: &Scratch, wire: &Wire) -> Self {
        let mut migration = Migration::prepare(scratch, wire, 128);
        migration.listen();
        let tunnel = Relay::Tool.start(Some(wire), &migration.routes());
        let nodes = migration.source.disks.iter().map(|disk| disk.node.clone()).collect();
        Self { migration, tunnel, nodes }
    }

    fn reach(&mut self, phase: Phase) {
        match phase {
            Phase::Handshake => {}
            Phase::Mirroring => {
                self.migration.start_mirrors(4 * MIB);
                wait_for("mirrors that have begun", PATIENCE, || self.mirrored(MIB).then_some(()));
            }
            Phase::Ready => {
                self.migration.start_mirrors(0);
                self.migration.wait_for_mirrors();
            }
            Phase::Memory => {
                self.reach(Phase::Ready);
                self.migrate(4 * MIB);
                wait_for("memory that has begun", PATIENCE, || (self.memory_moved() > 2 * MIB).then_some(()));
            }
            Phase::Switchover => {
                self.reach(Phase::Ready);
                self.migrate(1 << 40);
                let qmp = &mut self.migration.source.qmp;
                let reached = |event: &serde_json::Value| event["data"]["status"] == "pre-switchover";
                qmp.event("the last turn of the migration", PATIENCE, reached);
            }
        }
    }

    fn mirrored(&mut self, least: u64) -> bool {
        let jobs = self.migration.source.qmp.call("query-block-jobs", json!({}));
        let jobs = jobs.as_array().expect("a list of jobs");
        jobs.len() == 2 && jobs.iter().all(|job| job["offset"].as_u64().is_some_and(|offset| offset > least))
    }

    fn migrate(&mut self, speed: u64) {
        let uri = self.migration.routes()[1].near.clone();
        let qmp = &mut self.migration.source.qmp;
        let capabilities = ["events", "pause-before-switchover"].map(|name| json!({"capability": name, "state": true}));
        qmp.call("migrate-set-capabilities", json!({"capabilities": capabilities}));
        qmp.call("migrate-set-parameters", json!({"max-bandwidth": speed, "downtime-limit": 300}));
        qmp.call("migrate", json!({"uri": format!("unix:{}", uri.display())}));
    }

    fn memory_moved(&mut self) -> u64 {
        let told = self.migration.source.qmp.call("query-migrate", json!({}));
        told["ram"]["transferred"].as_u64().unwrap_or_default()
    }

    fn process(&mut self, victim: Victim) -> &mut Process {
        match victim {
            Victim::Source => &mut self.migration.source.process,
            Victim::Destination => &mut self.migration.destination.process,
            Victim::Serve => &mut self.tunnel.far[0],
            Victim::Forward => &mut self.tunnel.near[0],
        }
    }

    fn strike(&mut self, victim: Victim, fault: Fault) {
        let process = self.process(victim);
        match fault {
            Fault::Killed => {
                process.signal(Signal::KILL);
                process.wait(PATIENCE);
            }
            Fault::Stopped => process.signal(Signal::STOP),
        }
    }

    /// The guest works on at the source, and does not run at the destination.
    fn assert_goes_on_at_the_source(&mut self, phase: Phase) {
        let begun = self.migration.source.last_said();
        match phase {
            // What the operator does now comes to nothing, and says so.
            Phase::Handshake => drop(self.try_mirror()),
            Phase::Switchover => {
                let on = json!({"state": "pre-switchover"});
                let _ = self.migration.source.qmp.try_call("migrate-continue", on);
            }
            Phase::Mirroring | Phase::Ready | Phase::Memory => {}
        }
        if matches!(phase, Phase::Memory | Phase::Switchover) {
            let qmp = &mut self.migration.source.qmp;
            let over = |event: &serde_json::Value| event["event"] == "MIGRATION" && event["data"]["status"] == "failed";
            qmp.event("the end of the migration", GIVING_UP + 2 * PATIENCE, over);
        }
        if matches!(phase, Phase::Mirroring | Phase::Ready) {
            for node in self.nodes.clone() {
                let qmp = &mut self.migration.source.qmp;
                let over =
                    |event: &serde_json::Value| is_job_event(event, &node) && event["event"] != "BLOCK_JOB_READY";
                let event = qmp.event("the end of a mirror", GIVING_UP + 2 * PATIENCE, over);
                assert!(event["data"]["error"].is_string(), "{event}");
            }
        }
        wait_for("a source that runs", PATIENCE, || {
            let status = self.migration.source.qmp.call("query-status", json!({}));
            (status["running"] == true).then_some(())
        });
        let further = newest(&begun) + 200;
        self.migration.source.said("vbs-at", |state| written(state, further));
    }

    /// Half a guest is none: the destination ends, or waits on for one.
    fn assert_stays_out_of_the_destination(&mut self, phase: Phase) {
        let destination = &mut self.migration.destination;
        if matches!(phase, Phase::Memory | Phase::Switchover) {
            destination.process.wait(GIVING_UP + PATIENCE);
        } else {
            let status = destination.qmp.call("query-status", json!({}));
            assert_eq!(status["status"], "inmigrate", "{status}");
        }
    }

    /// Adding the destination's disk fails, since nobody takes the connection.
    fn try_mirror(&mut self) -> Result<serde_json::Value, serde_json::Value> {
        let path = self.migration.routes()[0].near.clone();
        let node = json!({
            "driver": "nbd", "node-name": "never", "export": self.nodes[0],
            "server": {"type": "unix", "path": path},
        });
        self.migration.source.qmp.try_call("blockdev-add", node)
    }
}

/// What holds after every fault.
fn suffer(phase: Phase, victim: Victim, fault: Fault) {
    eprintln!("{victim:?} {fault:?} at {phase:?}");
    let _alone = alone();
    let (scratch, wire) = (Scratch::new(), Wire::new());
    let mut case = Case::start(&scratch, &wire);
    case.reach(phase);
    case.strike(victim, fault);
    if victim != Victim::Source {
        case.assert_goes_on_at_the_source(phase);
    }
    if fault == Fault::Stopped {
        case.process(victim).signal(Signal::CONT);
    }
    assert_ends_are_well(&mut case, victim, fault);
    if victim != Victim::Destination {
        case.assert_stays_out_of_the_destination(phase);
    }
    if victim != Victim::Source {
        let end = case.migration.source.stop_guest();
        assert_disks_are_whole(&case.migration.source.disks, &end, scratch.path());
    }
}

/// Each end of the tunnel that is left serves on, or has ended with the reason.
fn assert_ends_are_well(case: &mut Case, victim: Victim, fault: Fault) {
    match (victim, fault) {
        (Victim::Serve, _) => {
            let forward = &mut case.tunnel.near[0];
            forward.wait(GIVING_UP + PATIENCE);
            let reason = if fault == Fault::Killed { "lost" } else { "nothing was heard" };
            forward.line_on_stderr("the reason", |line| line.contains("the session with") && line.contains(reason));
        }
        (Victim::Forward, _) => {
            let serve = &mut case.tunnel.far[0];
            let reason = if fault == Fault::Killed { "lost" } else { "nothing was heard" };
            serve.line_on_stderr("the reason", |line| line.contains("session") && line.contains(reason));
            serve.assert_alive();
        }
        (Victim::Source | Victim::Destination, _) => {
            case.tunnel.near[0].assert_alive();
            case.tunnel.far[0].assert_alive();
        }
    }
}

#[test]
fn serve_killed_before_anything_is_asked_of_it() {
    suffer(Phase::Handshake, Victim::Serve, Fault::Killed);
}

#[test]
fn the_destination_killed_while_disks_are_mirrored() {
    suffer(Phase::Mirroring, Victim::Destination, Fault::Killed);
}

#[test]
fn serve_frozen_while_mirrors_are_in_step() {
    suffer(Phase::Ready, Victim::Serve, Fault::Stopped);
}

#[test]
fn forward_killed_while_memory_moves() {
    suffer(Phase::Memory, Victim::Forward, Fault::Killed);
}

#[test]
fn the_source_killed_while_memory_moves() {
    suffer(Phase::Memory, Victim::Source, Fault::Killed);
}

#[test]
fn serve_killed_at_the_switchover() {
    suffer(Phase::Switchover, Victim::Serve, Fault::Killed);
}

#[test]
#[ignore = "the whole matrix takes half an hour"]
fn every_process_killed_and_frozen_in_every_phase() {
    for phase in PHASES {
        for victim in [Victim::Source, Victim::Destination, Victim::Serve, Victim::Forward] {
            suffer(phase, victim, Fault::Killed);
        }
        for victim in [Victim::Serve, Victim::Forward] {
            suffer(phase, victim, Fault::Stopped);
        }
    }
}
