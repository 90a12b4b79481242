//! `virbistream demo`: the main job on a fresh machine without any other program. Two hosts in one process, over real
//! sockets: disks are copied over NBD and memory is streamed beside them, all through one connection, and then every
//! byte is verified.

mod acceptor;
mod disk;
mod images;
mod nbd;
mod noise;
mod ram;
mod report;
mod scratch;
mod tunnel;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use disk::Disk;
use report::{Bytes, Progress, Row};
use scratch::Scratch;
use tunnel::{Carried, Switch, Tunnel};

/// How long anyone waits for a peer that says nothing; a flush of slow disks takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to move in the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// How many disks to copy
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    disks: u16,
    /// The size of each disk, and of the memory streamed beside them
    #[arg(long, value_name = "MiB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    size: u64,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no temporary directory could be made: {0}")]
    Scratch(io::Error),
    #[error("{disk} could not be written in {}: {source}; TMPDIR can name another place", dir.display())]
    Image { disk: String, dir: PathBuf, source: io::Error },
    #[error("the destination could not be started in {}: {source}", dir.display())]
    Destination { dir: PathBuf, source: io::Error },
    #[error("the tunnel failed: {0}")]
    Tunnel(#[from] tunnel::Error),
    #[error("{disk} was not copied: {source}")]
    Copy { disk: String, source: nbd::Error },
    #[error(transparent)]
    Memory(#[from] ram::Error),
    #[error("{disk} could not be verified: {source}")]
    Verify { disk: String, source: io::Error },
    #[error("{disk} was copied wrongly: source and copy differ at byte {offset}")]
    Differs { disk: String, offset: u64 },
    #[error("the result could not be printed: {0}")]
    Print(io::Error),
}

/// Moves everything, verifies it, and prints what it took. Any difference is an error.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Error> {
    run_to(args, &mut io::stdout().lock())
}

fn run_to(args: &DemoArgs, out: &mut dyn Write) -> Result<(), Error> {
    let scratch = Scratch::new().map_err(Error::Scratch)?;
    let progress = Progress::new();
    let size = args.size << 20;
    let disks: Vec<Disk> =
        (0..args.disks).map(|number| Disk::make(number, size, &scratch, &progress)).collect::<Result<_, _>>()?;

    let (disks_path, memory_path) = (scratch.join("b-disks"), scratch.join("b-memory"));
    let destination = || {
        let exports = disks.iter().map(Disk::export).collect::<io::Result<_>>()?;
        Ok((nbd::Server::bind(&disks_path, exports)?, ram::receive(&memory_path)?))
    };
    let destination = destination().map_err(|source| Error::Destination { dir: scratch.path().to_owned(), source })?;
    let tunnel = Tunnel::start(&scratch, &disks_path, &memory_path)?;

    let moved = migrate(&disks, size, &tunnel, &progress)?;
    let carried = tunnel.finish(disks.len())?;
    drop(destination);

    for disk in &disks {
        disk.verify(&progress)?;
    }
    print(out, &disks, size, &moved, &carried).map_err(Error::Print)
}

/// What each stream took; the disks in their order.
struct Moved {
    disks: Vec<nbd::Copied>,
    memory: Duration,
}

/// Everything at once: a thread for each disk and one for the memory. The disks' connections are made in their order.
fn migrate(disks: &[Disk], size: u64, tunnel: &Tunnel, progress: &Progress) -> Result<Moved, Error> {
    let attempt = Attempt { switch: tunnel.switch(), first: OnceLock::new() };
    let moved = thread::scope(|scope| {
        let copies: Vec<_> = disks
            .iter()
            .map(|disk| {
                let connection = disk.connect(tunnel.disks());
                let copy = || attempt.guard(connection.and_then(|connection| disk.copy(connection, progress)));
                scope.spawn(copy)
            })
            .collect();
        let task = progress.task("memory".to_owned(), size);
        let memory = ram::send(tunnel.memory(), size, u64::MAX, |bytes| task.advance(bytes));
        let memory = attempt.guard(memory.map_err(Error::from));
        let disks = copies.into_iter().map(joined).collect::<Option<_>>();
        disks.zip(memory).map(|(disks, memory)| Moved { disks, memory })
    });
    moved.ok_or_else(|| attempt.first.into_inner().expect("a transfer that failed has left its cause"))
}

/// What all transfers share: the first failure ends the others, and is the one that counts.
struct Attempt {
    switch: Switch,
    first: OnceLock<Error>,
}

impl Attempt {
    fn guard<T>(&self, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                // Taken when another has failed before.
                let _ = self.first.set(error);
                self.switch.off();
                None
            }
        }
    }
}

/// A thread's result, or its panic.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The table, and what was verified.
fn print(out: &mut dyn Write, disks: &[Disk], size: u64, moved: &Moved, carried: &Carried) -> io::Result<()> {
    let mut rows = Vec::new();
    for ((disk, copied), stats) in disks.iter().zip(&moved.disks).zip(&carried.disks) {
        rows.push(Row::new(&disk.name, copied.data, copied.transfer, stats));
    }
    rows.push(Row::new("memory", size, moved.memory, &carried.memory));
    rows.push(Row::total(&rows));
    let flush = moved.disks.iter().map(|copied| copied.flush).max().unwrap_or_default();
    let (source, copy) = allocated(disks)?;
    let size = Bytes(size);
    writeln!(out, "{}", report::table(&rows))?;
    writeln!(out, "Flushing the copies took {:.3} seconds more.", flush.as_secs_f64())?;
    writeln!(out, "The disks' images take up {}, their copies {}.", Bytes(source), Bytes(copy))?;
    writeln!(out, "Every byte is the same: {} disks of {size}, and {size} of memory.", disks.len())
}

/// How many bytes all images and all copies take up.
fn allocated(disks: &[Disk]) -> io::Result<(u64, u64)> {
    disks.iter().try_fold((0, 0), |(sources, copies), disk| {
        let (source, copy) = disk.allocated()?;
        Ok((sources + source, copies + copy))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::demo::acceptor::Acceptor;

    #[test]
    fn the_first_failure_ends_the_others_and_is_the_one_that_counts() {
        let scratch = Scratch::new().expect("a directory");
        let path = scratch.join("b-memory");
        let greet = |mut stream: &UnixStream| {
            stream.write_all(b"!").expect("written");
            // Until the end, which its peer never comes to by itself.
            assert!(io::copy(&mut stream, &mut io::sink()).is_ok());
        };
        let _greeter = Acceptor::bind(&path, greet).expect("bound");
        let tunnel = Tunnel::start(&scratch, &scratch.join("b-disks"), &path).expect("it stands");
        let mut waiting = UnixStream::connect(tunnel.memory()).expect("connected");
        waiting.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        waiting.read_exact(&mut [0]).expect("the stream stands");

        let attempt = Attempt { switch: tunnel.switch(), first: OnceLock::new() };
        for offset in [1, 2] {
            let failure = Error::Differs { disk: "disk0".to_owned(), offset };
            assert!(attempt.guard(Err::<(), _>(failure)).is_none());
        }
        assert!(matches!(attempt.first.into_inner(), Some(Error::Differs { offset: 1, .. })));
        assert_eq!(waiting.read(&mut [0]).expect("closed, not silent"), 0);
    }

    #[test]
    fn the_whole_demo_runs() {
        let mut out = Vec::new();
        run_to(&DemoArgs { disks: 2, size: 8 }, &mut out).expect("every byte is the same");
        let text = String::from_utf8(out).expect("text");
        let names: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["stream", "disk0", "disk1", "memory", "together", "Flushing", "The", "Every"], "{text}");
    }
}
