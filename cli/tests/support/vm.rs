//! A QEMU as anybody runs it: emulating, unmodified, with the guest of the tests.

use super::PATIENCE;
use super::guest::{Guest, State};
use super::process::{Process, Run};
use super::qmp::Qmp;
use rustix::process::Pid;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// 8 KiB more than 128 MiB, on purpose: the emulator of QEMU 7.2 loses dirty pages in a migration of more
/// than one pass, whatever carries it, when the guest's memory is a multiple of 256 KiB.
const MEMORY: &str = "131080K";

/// What the guest does, each second.
const WORK: &str = "vbs.rate=100 vbs.ram=1500 vbs.pages=2500 vbs.life=1200";

/// An image that QEMU has open.
pub(crate) struct Disk {
    pub(crate) node: String,
    pub(crate) format: &'static str,
    pub(crate) image: PathBuf,
}

impl Disk {
    /// Copies what the guest sees to a raw file. QEMU may have the image open, but paused.
    #[track_caller]
    pub(crate) fn copy_raw(&self, raw: &Path) {
        qemu_img()
            .args(["convert", "-U", "-O", "raw", "-f", self.format])
            .args([&self.image, raw])
            .succeed(10 * PATIENCE);
    }
}

/// Fails the test unless QEMU finds its own part of the image in order; clusters that nobody uses are no error after a SIGKILL.
#[track_caller]
pub(crate) fn assert_image_is_sound(disk: &Disk) {
    if disk.format == "qcow2" {
        let finished = qemu_img().args(["check", "-q", "-f", disk.format]).arg(&disk.image).finish(PATIENCE);
        assert!(matches!(finished.status.code(), Some(0 | 3)), "{finished}");
    }
}

pub(crate) fn qemu_img() -> Run {
    Run::new("qemu-img", "qemu-utils")
}

/// A virtual machine.
pub(crate) struct Vm {
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    pub(crate) disks: Vec<Disk>,
    console: PathBuf,
    log: PathBuf,
}

impl Vm {
    /// Starts it with its files in `directory`: to run at once, or to wait for an `incoming`
    /// migration, paused. With `by` somebody else starts it, in the place that it shall have.
    #[track_caller]
    pub(crate) fn start(
        name: &str,
        directory: &Path,
        guest: &Guest,
        disks: Vec<Disk>,
        namespace: Option<Pid>,
        incoming: bool,
        by: Option<Run>,
    ) -> Self {
        let file = |suffix: &str| directory.join(format!("{name}.{suffix}"));
        let (machine, console, log) = (file("qmp"), file("console"), file("log"));
        let mut run = Run::new("qemu-system-x86_64", "qemu-system-x86")
            .named(&format!("QEMU ({name})"))
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-machine", "pc", "-cpu", "qemu64"])
            .args(["-accel", "tcg,tb-size=64", "-smp", "1", "-m", MEMORY])
            .arg("-kernel")
            .arg(&guest.kernel)
            .arg("-initrd")
            .arg(&guest.initrd)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off \
                 nokaslr vbs.disks={} {WORK}",
                disks.len()
            ))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", machine.display()))
            .arg("-chardev")
            .arg(format!("socket,id=console,path={},server=on,wait=off,logfile={}", console.display(), log.display()))
            .args(["-serial", "chardev:console"]);
        for disk in &disks {
            let node = json!({
                "driver": disk.format,
                "node-name": disk.node,
                "file": {"driver": "file", "filename": disk.image},
            });
            run = run
                .args(["-blockdev", &node.to_string(), "-device"])
                .arg(format!("virtio-blk-pci,drive={}", disk.node));
        }
        if incoming {
            run = run.args(["-S", "-incoming", "defer"]);
        }
        if let Some(by) = by {
            run = run.under(by);
        }
        let process = run.in_namespace_of(namespace).start();
        let qmp = Qmp::connect(process.name(), &machine);
        Self { process, qmp, disks, console, log }
    }

    /// Waits until the guest says `word` with a state that is `wanted`.
    #[track_caller]
    pub(crate) fn said(&mut self, word: &str, wanted: impl Fn(&State) -> bool) -> State {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            // What comes after the last line break may be half a line.
            let whole = &log[..log.rfind('\n').unwrap_or(0)];
            let mut states = whole.lines().filter_map(|line| State::parse(word, line));
            if let Some(state) = states.find(&wanted) {
                return state;
            }
            assert!(Instant::now() < deadline, "the guest does not say {word} as wanted; its console:\n{log}");
            // QEMU's end is the end of the wait, except for what it wrote last.
            if word != "vbs-end" {
                self.process.assert_alive();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The last state that the guest has reported.
    #[track_caller]
    pub(crate) fn last_said(&self) -> State {
        let log = self.log();
        let whole = &log[..log.rfind('\n').unwrap_or(0)];
        let mut states = whole
            .lines()
            .rev()
            .filter_map(|line| State::parse("vbs-at", line).or_else(|| State::parse("vbs-ready", line)));
        states.next().expect("a guest that has said something")
    }

    /// Ends the guest, and QEMU with it. Gives the state that the guest ended with, which must be
    /// without errors.
    #[track_caller]
    pub(crate) fn stop_guest(&mut self) -> State {
        let mut console = UnixStream::connect(&self.console).expect("the guest's console");
        console.write_all(b"stop\n").expect("the guest's console");
        let end = self.said("vbs-end", |_| true);
        self.process.wait(PATIENCE);
        self.assert_guest_is_well();
        assert_eq!(end.errors, 0);
        end
    }

    /// Fails the test if the guest has found a bad record or page, or could not write.
    #[track_caller]
    pub(crate) fn assert_guest_is_well(&self) {
        let log = self.log();
        assert!(!log.contains("vbs-bad"), "the guest complains:\n{log}");
    }

    fn log(&self) -> String {
        // The log is there from the first byte on the console.
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
