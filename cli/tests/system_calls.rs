//! How often the tool asks the kernel for something while it moves bulk: what small buffers, or a write for each header, would
//! show in.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Shutdown;
use std::path::Path;
use support::bytes::{MIB, Noise};
use support::echo::{accept_on, assert_reads, connect};
use support::process::Run;
use support::tool::{forward, serve};
use support::{PATIENCE, Scratch, wait_for};

const BULK: u64 = 64;

/// The calls of a process by their names: how many there were, and how many of them failed, with EAGAIN mostly.
type Calls = BTreeMap<String, (u64, u64)>;

/// Counts the calls of all threads of what it starts, which keeps the process id that it would have had.
fn strace(out: &Path) -> Run {
    Run::new("strace", "strace").args(["-D", "-f", "-c", "-o"]).arg(out)
}

/// What strace counted. It writes that when the process has ended.
#[track_caller]
fn counted(out: &Path) -> Calls {
    let text = wait_for("the word of strace", PATIENCE, || {
        std::fs::read_to_string(out).ok().filter(|text| text.trim_end().ends_with(" total"))
    });
    text.lines().filter_map(row).filter(|(name, _)| name != "total").collect()
}

/// `% time, seconds, usecs/call, calls, errors if there are any, syscall`
fn row(line: &str) -> Option<(String, (u64, u64))> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let failed = words.get(4)?.parse().unwrap_or_default();
    Some((words.last()?.to_string(), (words.get(3)?.parse().ok()?, failed)))
}

/// Moves the bulk over UNIX sockets alone, and gives the calls of forward, which sends, and of serve.
fn bulk() -> [Calls; 2] {
    let scratch = Scratch::new();
    let [near, far, link, sent, received] = ["near", "far", "link", "sent", "received"].map(|name| scratch.join(name));
    let target = accept_on(&far);
    let peer = format!("unix:{}", link.display());
    let serve = serve(&peer, [("disk", &*far)]).under(strace(&received)).start();
    serve.ready();
    let forward = forward(&peer, [("disk", &*near)]).under(strace(&sent)).start();
    forward.ready();

    let bytes = Noise::new(1).bytes((BULK * MIB) as usize);
    let mut client = connect(&near);
    let server = target.next();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&bytes).expect("a target that reads");
            client.shutdown(Shutdown::Write).expect("an open socket");
        });
        assert_reads(&server, &bytes);
    });
    drop((client, server));
    forward.end_well(&[&near]);
    serve.end_well(&[&link]);
    [counted(&sent), counted(&received)]
}

/// So many a MiB of those that succeeded.
fn each_mib(calls: &Calls, names: &[&str]) -> f64 {
    let calls = names.iter().filter_map(|name| calls.get(*name));
    calls.map(|(all, failed)| all - failed).sum::<u64>() as f64 / BULK as f64
}

/// Up to twice of what it takes. Packets have about 100 KiB here, so that a write more for each of them would make 18 of 8.
///
/// Not among the waits and calls is a look before a sleep that found nothing, of which there are 16 at the most: a wait, and a yield
/// after it.
#[test]
fn a_mib_takes_few_system_calls() {
    let ends = [("forward", [28.0, 14.0, 24.0, 80.0]), ("serve", [14.0, 22.0, 24.0, 80.0])];
    for ((end, limits), calls) in ends.into_iter().zip(bulk()) {
        let reads = each_mib(&calls, &["read", "readv", "recvfrom", "recvmsg"]);
        let writes = each_mib(&calls, &["write", "writev", "sendto", "sendmsg"]);
        let waits = each_mib(&calls, &["epoll_wait", "epoll_pwait", "poll"]);
        let looks = each_mib(&calls, &["sched_yield"]);
        let waits = waits - looks;
        let all = calls.values().map(|(all, _)| all).sum::<u64>() as f64 / BULK as f64 - 2.0 * looks;
        let figures =
            format!("{end}, a MiB: {reads:.1} reads, {writes:.1} writes, {waits:.1} waits, {all:.1} calls in all");
        let counted = [reads, writes, waits, all];
        assert!(reads > 1.0 && writes > 1.0 && waits >= 0.0, "strace missed some: {figures}; {calls:?}");
        assert!(looks <= 16.0 * (waits + 1.0), "{looks:.1} looks, {figures}; {calls:?}");
        assert!(counted.iter().zip(&limits).all(|(counted, limit)| counted <= limit), "{figures}; {calls:?}");
    }
}
