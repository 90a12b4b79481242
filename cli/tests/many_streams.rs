//! Thousands of streams that do nothing are in nobody's way.

mod support;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;
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

    /// Carries all of the bytes over a stream.
    #[track_caller]
    fn carry(&self, bytes: &[u8]) {
        let (mut client, target) = self.stream();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(bytes).expect("a target that reads");
                client.shutdown(Shutdown::Write).expect("an open socket");
            });
            assert_reads(&target, bytes);
        });
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
    // By turns, and what it costs both ends: how long it takes says more of what else the machine does.
    let mut cost = [Duration::ZERO; 2];
    for way in std::iter::repeat_n([&alone, &crowded], 9).flatten() {
        let before = way.ends.processor_time();
        way.carry(&bytes);
        cost[usize::from(std::ptr::eq(way, &crowded))] += way.ends.processor_time() - before;
    }
    assert!(cost[1] <= cost[0] * 2, "alone and beside {IDLE} idle streams: {cost:?}");

    let (client, target) = idle.last().expect("idle streams");
    target.shutdown(Shutdown::Write).expect("an open socket");
    assert_ends(client);
    drop(idle);
    crowded.ends.wait_for_descriptors(had);
    crowded.ends.end();
    alone.ends.end();
}
