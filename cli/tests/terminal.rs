//! What is drawn on a terminal: the live table, and what migrate says of its progress.

mod support;

use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use support::echo::{connect, echo_on};
use support::process::{Process, Run};
use support::tool::{ANY_PORT, forward, serve};
use support::{PATIENCE, Scratch, need_root, wait_for};

/// A command on a terminal of its own, of 80 columns and 10 lines; what it writes there comes on stdout.
#[track_caller]
fn on_terminal(kind: &str, command: &str) -> Run {
    let command = format!("stty cols 80 rows 10; TERM={kind} exec {command}");
    Run::new("script", "bsdutils").args(["--quiet", "--return", "--command", &command, "/dev/null"])
}

const TOOL: &str = env!("CARGO_BIN_EXE_virbistream");

#[test]
fn a_live_table_has_room_on_its_terminal_and_gives_it_back() {
    let scratch = Scratch::new();
    let (far, control) = (scratch.join("far"), scratch.join("control"));
    echo_on(&far);
    let serve = serve(ANY_PORT, [("echo", &*far)]).arg("--control").arg(&control).start();
    let peer = serve.ready();
    let near = scratch.join("near");
    let forward = forward(&peer, [("echo", &*near)]).start();
    forward.ready();
    // A heading, titles, seven streams, and how many more.
    let streams = [(); 12].map(|()| connect(&near));
    let shown = on_terminal("xterm", &format!("{TOOL} status --control {}", control.display())).start();
    let frame = wait_for("a frame with all streams", PATIENCE, || {
        let text = shown.stdout.text();
        let mut whole = text.split("\u{1b}[H").filter_map(|begun| Some(begun.split_once("\u{1b}[J")?.0.to_owned()));
        whole.find(|frame| frame.contains("… 5 more"))
    });
    let lines: Vec<_> = frame.split("\u{1b}[K").map(str::trim_end).collect();
    assert_eq!(lines.len(), 10, "{frame:?}");
    assert!(lines.iter().all(|line| line.trim().chars().count() <= 80), "{frame:?}");
    end(shown);
    drop(streams);
    forward.end_well(&[&near]);
    serve.end_well(&[&control]);
}

/// Ctrl-C, as the terminal would have it; the screen and the cursor come back.
#[track_caller]
fn end(shown: Process) {
    interrupt(&shown);
    let finished = shown.finish(PATIENCE);
    assert!(finished.stdout.contains("\u{1b}[?1049h"), "{finished}");
    assert!(finished.stdout.ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{finished}");
}

/// A signal to what runs on the terminal, and not to who made it.
#[track_caller]
fn interrupt(script: &Process) {
    let pid = script.pid().as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    let child = children.split(' ').next().and_then(|child| child.parse().ok());
    let child = child.and_then(rustix::process::Pid::from_raw).expect("a command on the terminal");
    rustix::process::kill_process(child, Signal::INT).expect("a signal");
}

/// libvirt at both ends, as far as migrate asks: the source's `migrate` calls the destination once the file `call` is there, and ends with `end`.
const VIRSH: &str = r#"#!/bin/sh
there=; case "$*" in *socket=*) there=1;; esac
case "$*" in
*version*) echo "Running against daemon: 9.0.0"; echo "Running hypervisor: QEMU 7.2.0";;
*capabilities*) echo "<capabilities><host><uuid>host$there</uuid></host></capabilities>";;
*pool-list*) printf 'po\033[2Jol\n';;
*pool-dumpxml*) echo "<pool><target><path>DIR</path></target><available>99999999</available></pool>";;
*dumpxml*) echo "<domain type='qemu'><name>web</name><uuid>5d0fd4d4-0c3e-4a4c-b2f0-3f3d7d6f2b11</uuid><devices>
<disk type='file' device='disk'><source file='DIR/vda'/><target dev='vda'/></disk></devices></domain>";;
*domstate*) if [ -z "$there" ]; then echo running; elif [ -e DIR/end ]; then echo paused; else exit 1; fi;;
*list*) ;;
*vol-info*) echo "error: failed to get vol" >&2; exit 1;;
*domblkinfo*) printf 'Capacity: 4096\nAllocation: 1024\n';;
*domjobinfo*--completed*) echo "memory_processed: 7340032";;
*domjobinfo*--rawstats*) printf 'memory_processed: 5242880\nmemory_total: 10485760\nmemory_remaining: 5242880\nmemory_bps: 1048576\n';;
*domjobinfo*) echo "Job type: None";;
*blockjob*) printf 'cur=3145728\nend=4194304\n';;
*migrate*)
  until [ -e DIR/call ]; do sleep 0.05; done
  for word; do case "$word" in *socket=*) socat -u /dev/null "UNIX-CONNECT:${word#*socket=}";; esac; done
  until [ -e DIR/end ]; do sleep 0.05; done;;
esac
"#;

/// `virbistream migrate` on a terminal of this kind, or on none; and serve, which lets it in.
struct Migrating {
    scratch: Scratch,
    serve: Process,
    running: Process,
}

impl Migrating {
    #[track_caller]
    fn start(terminal: Option<&str>, options: &str) -> Self {
        need_root("mount file systems, so that both ends have a directory of the same name");
        let scratch = Scratch::new();
        let (bin, base, command) = (scratch.join("bin"), scratch.join("base"), scratch.join("command"));
        fs::create_dir(&bin).and_then(|()| fs::create_dir(&base)).expect("new directories");
        fs::write(bin.join("virsh"), VIRSH.replace("DIR", &bin.display().to_string())).expect("a new file");
        fs::set_permissions(bin.join("virsh"), PermissionsExt::from_mode(0o755)).expect("a mode");
        let socket = scratch.join("serve").display().to_string();
        let serve = serve(&format!("unix:{socket}"), []).args(["--libvirt", "unix:/nowhere", "--migrations"]);
        let serve = serve.arg(&base).start();
        serve.ready();
        let (bin, base) = (bin.display(), base.display());
        let script = format!(
            "mount -t tmpfs tmpfs {base} && PATH={bin}:$PATH exec {TOOL} migrate web unix://{socket} --base {base} {options}"
        );
        fs::write(&command, script).expect("a new file");
        let separate = format!("unshare --mount sh {}", command.display());
        let run = match terminal {
            Some(kind) => on_terminal(kind, &separate),
            None => Run::new("sh", "dash").args(["-c", &format!("exec {separate}")]),
        };
        Self { scratch, serve, running: run.start() }
    }

    /// A file that virsh waits for.
    #[track_caller]
    fn make(&self, name: &str) {
        fs::write(self.scratch.join("bin").join(name), "").expect("a new file");
    }

    /// Has virsh end, and gives all that was said.
    #[track_caller]
    fn end(self) -> String {
        self.make("call");
        self.make("end");
        let finished = self.running.finish(PATIENCE);
        assert!(finished.status.success(), "{finished}");
        self.serve.end_well(&[]);
        finished.stdout
    }
}

#[test]
fn bars_fit_their_terminal_below_the_log_and_end_full() {
    let migrating = Migrating::start(Some("xterm"), "-v");
    wait_for("the memory's bar", PATIENCE, || migrating.running.stdout.text().contains(" 50 %").then_some(()));
    migrating.make("call");
    let refused = "virbistream: session 1: no stream to `migration/";
    wait_for("a line of the log", PATIENCE, || migrating.running.stdout.text().contains(refused).then_some(()));
    let said = migrating.end();
    // The bars are cleared for it, and drawn again below.
    let (before, behind) = said.split_once(refused).expect("the line");
    assert!(before.ends_with("\u{1b}[2K\u{1b}[1A") && behind.contains("memory "), "{said:?}");
    for bar in ["disk vda ", "memory "] {
        let drawn = said.rsplit(['\r', '\n', '\u{1b}']).find(|piece| piece.contains(bar) && piece.contains(" %"));
        assert!(drawn.is_some_and(|drawn| drawn.contains("100 %")), "{bar}: {said:?}");
    }
    assert!(said.contains(r"in the pool `po\u{1b}[2Jol`"), "{said:?}");
    // It moves up no more where the sentence is, which stays.
    let (_, end) = said.split_once("`web` is paused at the destination: ").expect("the sentence");
    assert!(end.contains("\r\nvirbistream: draining\r\n") && !end.contains('\u{1b}'), "{said:?}");
    // What is known of each bar is on its one line.
    assert!(said.contains("5.00 MiB, 1.00 MiB/s"), "{said:?}");
}

#[test]
fn a_terminal_that_cannot_draw_has_lines_and_a_migration_that_stands_still_says_so() {
    for terminal in [Some("dumb"), None] {
        let migrating = Migrating::start(terminal, "");
        // Nothing moves; the first line comes after 5 s.
        wait_for("two lines", PATIENCE, || {
            let said = migrating.running.stdout.text();
            (said.matches("disk vda 75 % (3.00 MiB, 0 B/s), memory 50 %").count() >= 2).then_some(())
        });
        assert!(!migrating.end().contains('\u{1b}'));
    }
}

#[test]
fn programs_are_told_of_the_whole_at_last_and_of_what_is_not_known() {
    let migrating = Migrating::start(None, "--json");
    wait_for("progress", PATIENCE, || migrating.running.stdout.text().contains("3145728").then_some(()));
    let said = migrating.end();
    let said: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [.., progress, done] = &said[..] else { panic!("{said:?}") };
    assert_eq!((&progress["event"], &done["event"]), (&json!("progress"), &json!("done")));
    for moved in [&progress["disks"]["vda"], &progress["memory"]] {
        assert_eq!((&moved["done"], moved["total"].is_u64()), (&moved["total"], true), "{progress}");
    }
    // No NBD connection was seen: it is what the job had done.
    let figures = &done["figures"];
    assert_eq!(
        json!([figures["disk_bytes"], figures["partial"], figures["disks"]["vda"]]),
        json!([3_145_728, true, null])
    );
    assert_eq!(figures["guest"], "paused");
}
