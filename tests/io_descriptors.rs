//! What happens when the process has no descriptors left. One test, since they are the whole process's.

mod io_support;

use std::fs::File;
use std::time::{Duration, Instant};

use io_support::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virbistream::io::{Address, Report};
use virbistream::proto::StreamError;
use virbistream::wire::codes;

const EMFILE: i32 = 24;

/// Longer than a listener waits until it tries again.
const A_WHILE: Duration = Duration::from_millis(300);

#[test]
fn without_descriptors_nothing_is_lost_but_what_was_asked_for() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();
    let mut tunnel = Tunnel::new();
    let Address::Tcp { port, .. } = tunnel.far.listen(tunnel.options.clone()) else { unreachable!() };
    let Carried { id, client, server } = tunnel.carry();
    let waiting = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let hogs: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    waiting.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    let reason = tunnel.far.wait("a failure to accept", |report| match report {
        Report::AcceptFailed { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("os error 24"), "{reason}");
    let since = Instant::now();
    while since.elapsed() < A_WHILE {
        let (handler, told) = Custom::new();
        tunnel.ask("disk", handler.boxed());
        let refusal = all_told(&told).iter().find_map(|told| match told {
            Told::Reset(StreamError::Refused(error)) => Some((error.code, error.int1)),
            _ => None,
        });
        assert_eq!(refusal, Some((codes::SYSTEM_ERROR, EMFILE)));
        Pattern::new(1).write_to(&client, 10_000).unwrap();
        Pattern::new(1).check_from(&server, 10_000);
    }
    let failures = |report: &&Report| matches!(report, Report::AcceptFailed { .. });
    assert_eq!(tunnel.far.unasked().iter().filter(failures).count(), 0, "it says so once");
    drop(hogs);
    tunnel.far.link_accepted();
    tunnel.carry();
    drop((client, server));
    tunnel.ended_well(id);
}
