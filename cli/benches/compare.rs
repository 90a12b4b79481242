//! One connection of virbistream against one TCP connection each through socat, in the same run.
//!
//! UNIX socket -> relay -> TCP over loopback -> relay -> UNIX socket. The rounds of the contenders alternate, so that what else the
//! machine does meets all of them; medians are compared. Needs socat and setpriv (util-linux).

#[path = "../../benches/load/mod.rs"]
mod load;

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use load::{MIB, Way, end_after, gib, is_measured, median, percentile};
use rustix::process::{Pid, Signal, kill_process_group};

/// What one run takes: rounds of all contenders.
struct Plan {
    rounds: usize,
    /// Connections at once, and the bytes of each.
    bulk: [(usize, usize); 2],
    /// How long round trips are measured.
    idle: Duration,
    beside_bulk: Duration,
}

const MEASURED: Plan = Plan {
    rounds: 7,
    bulk: [(4, 256 * MIB), (1, 512 * MIB)],
    idle: Duration::from_millis(200),
    beside_bulk: Duration::from_millis(800),
};

const SMOKE: Plan = Plan {
    rounds: 1,
    bulk: [(4, MIB), (1, MIB)],
    idle: Duration::from_millis(10),
    beside_bulk: Duration::from_millis(10),
};

/// The run is given up after this: several times what it takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match compare(if is_measured() { &MEASURED } else { &SMOKE }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(plan: &Plan) -> io::Result<()> {
    for (program, package) in [("socat", "socat"), ("setpriv", "util-linux")] {
        if !is_in_path(program) {
            return Err(io::Error::other(format!("`{program}` is missing: apt-get install {package}")));
        }
    }
    let folder = tempfile::Builder::new().prefix("vbs-").tempdir()?;
    clean_up_if_ended_early(folder.path())?;

    let mut contenders = [
        virbistream(folder.path())?,
        socat(folder.path(), "socat", &[])?,
        socat(folder.path(), "socat -b 262144", &["-b", "262144"])?,
    ];
    let start = Instant::now();
    for _ in 0..plan.rounds {
        for contender in &mut contenders {
            contender.round(plan)?;
        }
    }
    println!("{} rounds of each by turns, {} s; medians (least to most)", plan.rounds, start.elapsed().as_secs());
    for (n, (connections, bytes)) in plan.bulk.iter().enumerate() {
        println!("\n{connections} x {} MiB", bytes / MIB);
        print_bulk(&contenders, n);
    }
    println!("\n4 KiB there and back, us: p50, p99 of all rounds, and p50 to the better socat's");
    print_trips(&contenders);
    Ok(())
}

fn print_bulk(contenders: &[Contender; 3], n: usize) {
    println!("{:16} {:19} {:>8}  {:19} {:>8}", "", "GiB/s", "to socat", "CPU s/GiB", "to socat");
    let speeds = contenders.each_ref().map(|contender| median(&contender.bulk[n].speed));
    let costs = contenders.each_ref().map(|contender| median(&contender.bulk[n].cost));
    let (fastest, cheapest) = (speeds[1].max(speeds[2]), costs[1].min(costs[2]));
    for (contender, (speed, cost)) in contenders.iter().zip(speeds.iter().zip(costs)) {
        let Bulk { speed: all_speeds, cost: all_costs } = &contender.bulk[n];
        let (speeds, costs) = (spread(all_speeds), spread(all_costs));
        println!("{:16} {speeds:19} {:8.2}  {costs:19} {:8.2}", contender.name, speed / fastest, cost / cheapest);
    }
}

fn print_trips(contenders: &[Contender; 3]) {
    println!("{:16} {:>22}  {:>22}", "", "idle", "beside bulk");
    let best = [0, 1].map(|n| median(&contenders[1].trips[n]).min(median(&contenders[2].trips[n])));
    for contender in contenders {
        let [idle, busy] = [0, 1].map(|n| {
            let (p50, p99) = (median(&contender.trips[n]), percentile(&contender.trips[n], 99));
            format!("{p50:6.0} {p99:6.0} {:8.2}", p50 / best[n])
        });
        println!("{:16} {idle}  {busy}", contender.name);
    }
}

/// One way from a UNIX socket to another, and what was measured of it.
struct Contender {
    name: &'static str,
    way: Way,
    ends: [Process; 2],
    /// As in [`Plan::bulk`].
    bulk: [Bulk; 2],
    /// In microseconds: idle, beside bulk.
    trips: [Vec<f64>; 2],
}

#[derive(Default)]
struct Bulk {
    /// GiB/s
    speed: Vec<f64>,
    /// CPU seconds for each GiB, of both ends.
    cost: Vec<f64>,
}

fn virbistream(folder: &Path) -> io::Result<Contender> {
    let [near, far] = ["v.near", "v.far"].map(|name| folder.join(name));
    let way = Way::new(&near, &far)?;
    let tool = env!("CARGO_BIN_EXE_virbistream");
    let target = format!("x=unix:{}", far.display());
    let (serve, said) = Process::start(tool, &["serve", "-v", "--listen", "tcp://127.0.0.1:0", "--target", &target])?;
    let peer = format!("tcp://127.0.0.1:{}", port(&said)?);
    let socket = format!("x={}", near.display());
    let (forward, _) = Process::start(tool, &["forward", "-v", "--peer", &peer, "--socket", &socket])?;
    Ok(Contender::new("virbistream", way, [forward, serve]))
}

fn socat(folder: &Path, name: &'static str, options: &[&str]) -> io::Result<Contender> {
    let [near, far] = ["near", "far"].map(|end| folder.join(format!("s{}.{end}", options.len())));
    let way = Way::new(&near, &far)?;
    let start = |from: &str, to: &str| Process::start("socat", &[&["-d", "-d"], options, &[from, to]].concat());
    let (accepting, said) = start("TCP-LISTEN:0,fork,bind=127.0.0.1", &format!("UNIX-CONNECT:{}", far.display()))?;
    let connecting = format!("TCP:127.0.0.1:{}", port(&said)?);
    let (connecting, _) = start(&format!("UNIX-LISTEN:{},fork", near.display()), &connecting)?;
    Ok(Contender::new(name, way, [connecting, accepting]))
}

impl Contender {
    fn new(name: &'static str, way: Way, ends: [Process; 2]) -> Self {
        Self { name, way, ends, bulk: Default::default(), trips: Default::default() }
    }

    fn round(&mut self, plan: &Plan) -> io::Result<()> {
        for ((connections, bytes), result) in plan.bulk.into_iter().zip(&mut self.bulk) {
            let before = cpu(&self.ends)?;
            let bulk = self.way.bulk(connections, bytes)?;
            let used = cpu(&self.ends)? - before;
            result.speed.push(gib(bulk.bytes) / bulk.time.as_secs_f64());
            result.cost.push(used.as_secs_f64() / gib(bulk.bytes));
        }
        let trips = [self.way.round_trips(plan.idle)?, self.way.round_trips_beside_bulk(plan.beside_bulk)?];
        for (all, new) in self.trips.iter_mut().zip(trips) {
            all.extend(new.iter().map(|trip| trip.as_secs_f64() * 1e6));
        }
        Ok(())
    }
}

/// A program that was started; killed, with what it forked, when this is dropped or we die.
struct Process(Child);

impl Process {
    /// Starts it and waits until it says where it listens, which it gives too.
    fn start(program: &str, arguments: &[&str]) -> io::Result<(Self, String)> {
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
            said.clear();
            if stderr.read_line(&mut said)? == 0 {
                return Err(io::Error::other(format!("`{program}` did not start listening")));
            }
        }
        // It must not wait for somebody to read what else it says.
        thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        Ok((process, said))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// User and system time of it and its children, once those have ended.
    fn cpu(&self) -> io::Result<Duration> {
        let pid = self.pid().as_raw_nonzero();
        while !std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let ticks: u64 = fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.0.wait();
    }
}

fn cpu(ends: &[Process; 2]) -> io::Result<Duration> {
    Ok(ends[0].cpu()? + ends[1].cpu()?)
}

/// The port at the end of what a program said.
fn port(said: &str) -> io::Result<u16> {
    let digits = said.trim_end().rsplit(':').next().unwrap_or_default();
    digits.parse().map_err(|_| io::Error::other(format!("no port in `{}`", said.trim_end())))
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The processes die with us; the folder does not.
fn clean_up_if_ended_early(folder: &Path) -> io::Result<()> {
    let remove = |folder: &Path| _ = std::fs::remove_dir_all(folder);
    let slow = folder.to_owned();
    end_after(LIMIT, move || remove(&slow));
    let folder = folder.to_owned();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            remove(&folder);
            std::process::exit(1);
        }
    });
    Ok(())
}

fn spread(values: &[f64]) -> String {
    let (least, most) = (percentile(values, 0), percentile(values, 100));
    format!("{:.2} ({least:.2} to {most:.2})", median(values))
}
