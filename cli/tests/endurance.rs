//! What many streams, and streams that stand still, leave behind or take.

mod support;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use support::bytes::{MIB, Noise};
use support::echo::{Accepted, accept_on, assert_echoes, assert_ends, connect, echo_on};
use support::process::{Process, Run};
use support::tool::{ANY_PORT, Ends, forward, links_accepted, serve};
use support::{PATIENCE, Scratch, alone, wait_for};

/// What the peer may be ahead with at the least, on each stream.
const WINDOW: u64 = MIB / 4;
/// What the windows of all streams may add up to at each end, however far they have grown.
const BUDGET: u64 = 48 * MIB;

#[test]
fn a_thousand_connections_leave_no_descriptor_and_no_memory_behind() {
    let _alone = alone();
    let scratch = Scratch::new();
    let near = scratch.join("near.echo");
    echo_on(&scratch.join("far.echo"));
    let ends = Ends::start(&scratch, &["echo"]);
    let message = Noise::new(1).bytes(100_000);
    let one = || assert_echoes(&connect(&near), &message);
    // What is allocated once and kept is there after the first hundred.
    (0..100).for_each(|_| one());
    let had = {
        let mut least = ends.descriptors();
        wait_for("the first connections to be closed", PATIENCE, || {
            let now = ends.descriptors();
            let steady = now == least && ended(&ends) == 100;
            least = now;
            steady.then_some(least)
        })
    };
    let memory = [ends.serve.resident(), ends.forward.resident()];
    (0..1000).for_each(|_| one());
    wait_for("all streams to be over", PATIENCE, || (ended(&ends) == 1100).then_some(()));
    ends.wait_for_descriptors(had);
    for (end, before) in [&ends.serve, &ends.forward].into_iter().zip(memory) {
        let grown = end.resident().saturating_sub(before);
        assert!(grown < 2 * MIB, "{} has grown by {grown} bytes", end.name());
    }
    assert_eq!(links_accepted(&ends.serve), 1);
    ends.end();
}

/// How many streams both ends say are over: the lesser of the two.
fn ended(ends: &Ends) -> usize {
    let over = |end: &Process| end.stderr.count(|line| line.contains("to `echo` done"));
    over(&ends.serve).min(over(&ends.forward))
}

#[test]
fn two_hundred_connections_at_once_each_get_their_own_bytes_back() {
    let _alone = alone();
    let scratch = Scratch::new();
    let near = scratch.join("near.echo");
    echo_on(&scratch.join("far.echo"));
    let ends = Ends::start(&scratch, &["echo"]);
    let had = ends.descriptors();
    std::thread::scope(|scope| {
        for seed in 0..200 {
            let near = &near;
            scope.spawn(move || {
                let stream = connect(near);
                let mut noise = Noise::new(seed);
                let mut message = vec![0; 10_000];
                for _ in 0..20 {
                    noise.fill(&mut message);
                    assert_echoes(&stream, &message);
                }
            });
        }
    });
    ends.wait_for_descriptors(had);
    ends.end();
}

/// Which end of a stream does not read.
#[derive(Clone, Copy, PartialEq)]
enum Stalled {
    Target,
    Client,
}

#[test]
fn sixty_three_stalled_targets_cost_no_more_than_the_budget_and_hold_nobody_up() {
    sixty_three_stalled(Stalled::Target);
}

#[test]
fn sixty_three_stalled_clients_cost_no_more_than_the_budget_and_hold_nobody_up() {
    sixty_three_stalled(Stalled::Client);
}

#[track_caller]
fn sixty_three_stalled(which: Stalled) {
    let _alone = alone();
    let scratch = Scratch::new();
    let target = accept_on(&scratch.join("far.disk"));
    let mut ends = Ends::start_with(ANY_PORT, &scratch, &["disk"], &["--memory", "48MiB"]);
    let stream = || -> (UnixStream, UnixStream) { writer_and_reader(&scratch, &target, which) };
    let unhindered = (0..2).map(|_| time_to_move(stream())).min().expect("two times");
    let had = ends.descriptors();
    let stalled: Vec<_> = (0..63).map(|_| stream()).collect();
    stall(&stalled);
    let hindered = (0..2).map(|_| time_to_move(stream())).min().expect("two times");
    eprintln!("256 MiB in {unhindered:.2?}, beside 63 stalled streams in {hindered:.2?}");
    assert!(hindered < 2 * unhindered + Duration::from_millis(500), "{unhindered:?} became {hindered:?}");
    for end in [&mut ends.serve, &mut ends.forward] {
        let peak = end.resident_peak();
        eprintln!("{}: {} MiB at most", end.name(), peak / MIB);
        assert!(peak < BUDGET + 32 * MIB, "{} took {peak} bytes", end.name());
        end.assert_alive();
    }
    drop(stalled);
    ends.wait_for_descriptors(had);
    ends.end();
}

/// A stream: the socket that is written to, and the one at the other end that is read, or not.
#[track_caller]
fn writer_and_reader(scratch: &Scratch, target: &Accepted, which: Stalled) -> (UnixStream, UnixStream) {
    let client = connect(&scratch.join("near.disk"));
    let accepted = target.next();
    match which {
        Stalled::Target => (client, accepted),
        Stalled::Client => (accepted, client),
    }
}

/// Writes to each stream until nothing more goes into any of them.
#[track_caller]
fn stall(streams: &[(UnixStream, UnixStream)]) {
    for (writer, _) in streams {
        writer.set_nonblocking(true).expect("an open socket");
    }
    let chunk = Noise::new(2).bytes(64 * 1024);
    let (mut total, mut last) = (0, Instant::now());
    wait_for("63 streams that stand still", PATIENCE, || {
        for (writer, _) in streams {
            let mut writer = writer;
            loop {
                match writer.write(&chunk) {
                    Ok(written) => {
                        total += written as u64;
                        last = Instant::now();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("a stalled stream: {error}"),
                }
            }
        }
        // Standing still shows in nothing but time.
        (last.elapsed() > Duration::from_secs(1)).then_some(())
    });
    assert!(total >= 63 * WINDOW, "only {total} bytes went into 63 streams");
}

/// Moves 256 MiB through a stream, each byte checked, and gives the time that it took.
#[track_caller]
fn time_to_move((mut writer, mut reader): (UnixStream, UnixStream)) -> Duration {
    const BLOCK: usize = 256 * 1024;
    const BLOCKS: u64 = 256 * MIB / BLOCK as u64;
    let noise = Noise::new(3).bytes(BLOCK);
    let mut outgoing = noise.clone();
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        for number in 0..BLOCKS {
            outgoing[..8].copy_from_slice(&number.to_le_bytes());
            writer.write_all(&outgoing).expect("a stream that moves");
        }
    });
    let mut block = vec![0; BLOCK];
    for number in 0..BLOCKS {
        reader.read_exact(&mut block).expect("a stream that moves");
        assert!(block[..8] == number.to_le_bytes() && block[8..] == noise[8..], "block {number} is another");
    }
    let time = start.elapsed();
    sender.join().expect("the sender");
    assert_eq!(reader.read(&mut block).expect("its end"), 0);
    time
}

#[test]
fn a_stderr_that_nobody_reads_holds_nobody_up() {
    let scratch = Scratch::new();
    let fifo = scratch.join("stderr");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
    // Open for reading too, so that opening it for writing does not wait; but nothing is read.
    let _unread = OpenOptions::new().read(true).write(true).open(&fifo).expect("the FIFO");
    let to_fifo = Run::new("sh", "dash").args(["-c", r#"exec "$@" 2>"$0""#]).arg(&fifo);
    let [near, far, gone, nothing] = ["near", "far", "gone", "nothing"].map(|name| scratch.join(name));
    echo_on(&far);
    let serve = serve(ANY_PORT, [("echo", &*far), ("gone", &*nothing)]).under(to_fifo).start();
    let forward = forward(&serve.ready(), [("echo", &*near), ("gone", &*gone)]).start();
    forward.ready();
    // A pipe holds 64 KiB, which is some 500 of the lines that each of them makes.
    for _ in 0..2000 {
        assert_ends(&connect(&gone));
    }
    assert_echoes(&connect(&near), b"whole");
    forward.end_well(&[&near, &gone]);
    serve.end_well(&[]);
}
