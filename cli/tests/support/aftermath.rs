//! What must hold behind a fault.

use super::echo::{assert_echoes, connect};
use super::fault::{Fault, Kind, Phase, Victim};
use super::guest::{State, assert_ring_is_whole, newest_in_ring};
use super::migrate::{assert_disks_are_whole, is_job_event, newest, written};
use super::process::Process;
use super::said::{assert_all_failed, assert_same_causes, session_cause};
use super::scene::{DEADLINE, Scene, control, sockets, start_serve};
use super::tool::forward;
use super::vm::assert_image_is_sound;
use super::{PATIENCE, wait_for};
use rustix::process::Signal;
use serde_json::json;
use std::io::Read;
use std::time::{Duration, Instant};

/// For how long the tool bears a peer's silence. HELLO has ten seconds.
const SILENCE: Duration = Duration::from_secs(30);

impl Scene {
    /// A QEMU stands still for longer than the tool bears of its peer, and then all goes on as if nothing had been.
    #[track_caller]
    pub(super) fn assert_it_completes(&mut self) {
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

    /// Its own QEMU was killed: the guest runs nowhere, and what it had written is there. Where the destination had all, it can go on
    /// there.
    #[track_caller]
    pub(super) fn assert_guest_is_gone(mut self, before: &State) {
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
    pub(super) fn assert_source_goes_on(&mut self, before: &State) {
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
    pub(super) fn assert_no_mirror_begins(&mut self) {
        let node = self.migration.mirror_node(&self.migration.source.disks[0]);
        let refused = self.migration.source.qmp.try_call("blockdev-add", node);
        assert!(refused.is_err(), "a mirror through a tunnel that is not there");
    }

    /// By both ends, with the errno of who dialled.
    #[track_caller]
    pub(super) fn assert_refusal_is_told(&self) {
        for end in [&self.forward, &self.serve] {
            end.line_on_stderr("refusal", |line| {
                line.contains("no stream to `nbd`") && line.contains("Connection refused (os error 111)")
            });
        }
    }

    /// The destination's QEMU does not run the guest, and ends: by itself when memory was on its way, or when it is told to, with
    /// no client left.
    #[track_caller]
    pub(super) fn assert_destination_gives_up(&mut self) {
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
    pub(super) fn assert_tunnel_is_lost(&mut self) {
        let Fault { phase, victim, kind } = self.fault;
        let hears_hello = phase != Phase::Handshake;
        let causes = match (victim, kind) {
            (Victim::Link, Kind::Kill) => {
                [&self.forward, &self.serve].map(|end| (end, assert_link_is_lost(end))).into()
            }
            (Victim::Serve, Kind::Kill) => vec![(&self.forward, assert_link_is_lost(&self.forward))],
            (Victim::Forward, Kind::Kill) => vec![(&self.serve, assert_link_is_lost(&self.serve))],
            (Victim::Link, Kind::Stop) => {
                [&self.forward, &self.serve].map(|end| (end, assert_silent(end, hears_hello))).into()
            }
            (Victim::Serve, Kind::Stop) => {
                let cause = assert_silent(&self.forward, hears_hello);
                self.serve.signal(Signal::CONT);
                vec![(&self.serve, assert_heard_of(&self.serve, &cause)), (&self.forward, cause)]
            }
            (Victim::Forward, Kind::Stop) => {
                let cause = assert_silent(&self.serve, true);
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
    pub(super) fn assert_streams_agree(&self) {
        assert_same_causes(&self.forward, &self.serve, DEADLINE);
    }

    #[track_caller]
    pub(super) fn assert_tunnel_stands(&mut self) {
        assert_echoes(&connect(&self.near("echo")), b"as before");
        self.serve.assert_alive();
        self.forward.assert_alive();
    }

    /// `forward` has ended and `serve` has not, unless it was killed; started again, they work, whatever is left of before.
    #[track_caller]
    pub(super) fn assert_tool_starts_again(mut self) {
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

/// An end gives up on a peer of which nothing comes, in its time.
#[track_caller]
fn assert_silent(end: &Process, hears_hello: bool) -> String {
    let cause = session_cause(end, DEADLINE);
    let limit = if hears_hello {
        "nothing was heard from the peer for 30 s"
    } else {
        "no HELLO came from the peer within 10 s"
    };
    assert_eq!(cause, limit, "{}", end.name());
    cause
}
