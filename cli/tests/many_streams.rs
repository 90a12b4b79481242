//! Thousands of streams that do nothing are in nobody's way.

mod support;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use support::Scratch;
use support::bytes::{MIB, Noise};
use support::echo::{Accepted, accept_on, assert_ends, assert_reads, connect};
use support::tool::{ANY_PORT, Ends};

const IDLE: usize = 8000;

/// As an operator would have to say it: 8,000 windows fit into half of the memory, so that one that works can grow.
const OPTIONS: [&str; 6] = ["--max-streams", "8100", "--window", "64KiB", "--memory", "2GiB"];

/// Both ends of the tool, and a target that the test itself is.
struct Way {
    scratch: Scratch,
    ends: Ends,
    target: Accepted,
}

impl Way {
    #[track_caller]
    fn start() -> Self {
        let scratch = Scratch::new();
        let target = accept_on(&scratch.join("far.disk"));
        let ends = Ends::start_with(ANY_PORT, &scratch, &["disk"], &OPTIONS);
        Self { scratch, ends, target }
    }

    /// A stream: the client's socket and the target's.
    #[track_caller]
    fn stream(&self) -> (UnixStream, UnixStream) {
        let client = connect(&self.scratch.join("near.disk"));
        (client, self.target.next())
    }

    /// How long it takes a stream to carry all of the bytes.
    #[track_caller]
    fn carry(&self, bytes: &[u8]) -> Duration {
        let begun = Instant::now();
        let (mut client, target) = self.stream();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(bytes).expect("a target that reads");
                client.shutdown(Shutdown::Write).expect("an open socket");
            });
            assert_reads(&target, bytes);
        });
        begun.elapsed()
    }
}

fn set_soft_limit(descriptors: Option<u64>) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: descriptors, ..limit }).expect("no more than the hard limit");
}

#[test]
fn eight_thousand_idle_streams_leave_one_that_works_undisturbed() {
    let most = getrlimit(Resource::Nofile).maximum;
    let needed = 2 * IDLE as u64 + 100;
    assert!(most.is_none_or(|most| most >= needed), "{needed} descriptors are needed, and ulimit -Hn is {most:?}");
    // The tool gets what a process usually gets, and has to see to the rest.
    set_soft_limit(Some(1024));
    let (alone, crowded) = (Way::start(), Way::start());
    set_soft_limit(most);
    let had = crowded.ends.descriptors();
    let idle: Vec<_> = (0..IDLE).map(|_| crowded.stream()).collect();

    let bytes = Noise::new(1).bytes(64 * MIB as usize);
    // A busy machine may disturb a round, the idle streams would disturb them all.
    let mut rounds = Vec::new();
    while rounds.last().is_none_or(|(alone, crowded)| *crowded > *alone * 2) {
        assert!(rounds.len() < 7, "alone and beside {IDLE} idle streams: {rounds:?}");
        rounds.push((alone.carry(&bytes), crowded.carry(&bytes)));
    }

    let (client, target) = idle.last().expect("idle streams");
    target.shutdown(Shutdown::Write).expect("an open socket");
    assert_ends(client);
    drop(idle);
    crowded.ends.wait_for_descriptors(had);
    crowded.ends.end();
    alone.ends.end();
}
