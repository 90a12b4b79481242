//! The programs at the ends of a way: started, measured, ended.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use rustix::process::{Pid, Signal, kill_process_group};

/// A program that was started; killed, with what it forked, when this is dropped or we die.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it and waits until it says where it listens, which it gives too.
    pub(crate) fn start(program: &str, arguments: &[&str]) -> io::Result<(Self, String)> {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let stderr = child.stderr.take();
        let process = Self(child);
        let mut stderr = BufReader::new(stderr.ok_or_else(|| io::Error::other("no stderr"))?);
        let mut said = String::new();
        while !said.contains("listening on") {
            let before = std::mem::take(&mut said);
            if stderr.read_line(&mut said)? == 0 {
                return Err(io::Error::other(format!("`{program}` did not start listening: {}", before.trim_end())));
            }
        }
        // It must not wait for somebody to read what else it says.
        thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        Ok((process, said))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Both ends of a way, and what they forked.
pub(crate) struct Ends {
    processes: [Process; 2],
    /// How many there are while nothing is carried.
    at_rest: usize,
}

impl Ends {
    /// The near end goes first when they are dropped.
    pub(crate) fn new(near: Process, far: Process) -> io::Result<Self> {
        let mut ends = Self { processes: [near, far], at_rest: 0 };
        ends.at_rest = ends.all()?.len();
        Ok(ends)
    }

    /// User and system time of all that are or were, once those that a connection brought have ended.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let mut all = self.all()?;
        while all.len() > self.at_rest {
            thread::sleep(Duration::from_millis(1));
            all = self.all()?;
        }
        let mut ticks = 0;
        for pid in all {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
            // utime, stime, and those of children that were waited for.
            ticks +=
                fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        }
        Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
    }

    /// Bytes that they have in memory now, what several of them share counted once (Pss).
    pub(crate) fn memory(&self) -> io::Result<u64> {
        let mut kib = 0;
        for pid in self.all()? {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let pss =
                rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.strip_suffix("kB")?.trim().parse().ok());
            kib += pss.unwrap_or(0_u64);
        }
        Ok(kib * 1024)
    }

    fn all(&self) -> io::Result<Vec<i32>> {
        let mut all: Vec<i32> = self.processes.iter().map(|process| process.pid().as_raw_nonzero().get()).collect();
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            // One that has just ended has none.
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
            next += 1;
        }
        Ok(all)
    }
}

/// Where a program is; those for root too, which not every PATH has.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Runs it to its end.
pub(crate) fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("`{}` failed: {}", command.get_program().display(), said.trim_end())))
}
