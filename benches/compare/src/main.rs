//! One connection of virbistream beside other ways to carry streams between two hosts, all in one run.
//!
//! UNIX socket -> near end -> TCP over loopback -> far end -> UNIX socket. The rounds of the contenders alternate, so that what else
//! the machine does meets all of them; medians are compared. Needs setpriv (util-linux); contenders that are not here are left out.

mod contenders;
#[path = "../../load/mod.rs"]
mod load;
mod measure;
mod plot;
mod process;
mod relays;
mod report;
mod targets;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use clap::{Parser, ValueEnum};

use contenders::Kind;
use measure::{MEASURED, SMOKE};
use relays::Relay;

/// virbistream beside socat, ssh, tokio, yamux and Go: throughput, CPU time, round trips, memory
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Options {
    /// Rounds of all contenders; medians are compared
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Compare with these alone
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Where the plot goes, as SVG
    #[arg(long, value_name = "FILE", default_value = "target/compare.svg")]
    plot: PathBuf,
    /// The tool to measure, instead of the one that cargo builds here, optimised
    #[arg(long, value_name = "FILE")]
    tool: Option<PathBuf>,
    /// One round of little, to see that it works
    #[arg(long, hide = true)]
    smoke: bool,
    #[command(subcommand)]
    relay: Option<Relay>,
}

/// The run is given up after this for each round, and one more: several times what it takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.relay {
        Some(relay) => relay.run().map_err(Into::into),
        None => compare(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<(), Box<dyn Error>> {
    if process::find("setpriv").is_none() {
        return Err("`setpriv` is missing: apt-get install -y --no-install-recommends util-linux".into());
    }
    let tool = options.tool.clone().map_or_else(build_tool, Ok)?;
    let (rounds, plan) = if options.smoke { (1, &SMOKE) } else { (options.rounds, &MEASURED) };
    let folder = tempfile::Builder::new().prefix("vbs-").tempdir()?;
    clean_up_if_ended_early(folder.path(), LIMIT * (rounds + 1))?;

    let mut contenders = Vec::new();
    let chosen = |kind: &Kind| *kind == Kind::Virbistream || options.only.is_empty() || options.only.contains(kind);
    for kind in Kind::value_variants().iter().copied().filter(chosen) {
        match kind.missing() {
            Some(package) => println!(
                "{} is left out, as it is not here: apt-get install -y --no-install-recommends {package}\n",
                kind.name()
            ),
            None => {
                contenders.push(kind.start(&tool, folder.path()).map_err(|error| format!("{}: {error}", kind.name()))?)
            }
        }
    }
    let start = Instant::now();
    for round in 0..rounds as usize {
        // Nobody always comes behind the same one.
        for turn in 0..contenders.len() {
            let next = (round + turn) % contenders.len();
            let contender = &mut contenders[next];
            contender.round(plan).map_err(|error| format!("{}: {error}", contender.kind.name()))?;
        }
    }
    println!("{rounds} rounds of each by turns, {} s\n", start.elapsed().as_secs());
    report::print(plan, &contenders);
    if let Some(parent) = options.plot.parent() {
        fs::create_dir_all(parent)?;
    }
    plot::draw(&options.plot, plan, &contenders)?;
    println!("plot: {}", options.plot.display());
    Ok(())
}

/// Always asks cargo: what lies beside us may be older than the sources.
fn build_tool() -> io::Result<PathBuf> {
    let me = env::current_exe()?;
    let target = me.ancestors().nth(2).ok_or_else(|| io::Error::other("no target directory; give --tool"))?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "-p", "virbistream-cli", "--target-dir"])
        .arg(target)
        .current_dir(workspace)
        .status()?;
    if built.success() {
        Ok(target.join("release/virbistream"))
    } else {
        Err(io::Error::other("the tool was not built; --tool takes one that was"))
    }
}

/// The processes die with us; the folder does not.
fn clean_up_if_ended_early(folder: &Path, limit: Duration) -> io::Result<()> {
    let remove = |folder: &Path| _ = fs::remove_dir_all(folder);
    let slow = folder.to_owned();
    load::end_after(limit, move || remove(&slow));
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
