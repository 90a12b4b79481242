//! Two hosts on one machine: network namespaces joined by a pair of virtual interfaces.

use super::process::{Process, Run};
use super::{PATIENCE, need_root};
use rustix::process::{Pid, Signal};

/// A network namespace.
///
/// It has no name. The process in it waits for the end of its standard input, which the test
/// holds: whatever becomes of the test, the namespace goes with it, its interfaces included.
pub(crate) struct Namespace {
    anchor: Process,
}

impl Namespace {
    #[track_caller]
    fn new(name: &str) -> Self {
        let anchor = Run::new("unshare", "util-linux")
            .named(name)
            .args(["--net", "sh", "-c", "echo made; exec cat"])
            .with_stdin()
            .start();
        anchor.line_on_stdout("namespace", |line| line == "made");
        let this = Self { anchor };
        // Nothing but what the test starts shall speak: no neighbour or router discovery of IPv6.
        this.sh("f=/proc/sys/net/ipv6/conf; for d in all default; do \
                 [ ! -e $f/$d/disable_ipv6 ] || echo 1 >$f/$d/disable_ipv6; done");
        this.ip("link set lo up");
        this
    }

    /// The process that stands for the namespace.
    pub(crate) fn pid(&self) -> Pid {
        self.anchor.pid()
    }

    #[track_caller]
    fn ip(&self, arguments: &str) {
        self.run(Run::new("ip", "iproute2").args(arguments.split(' ')));
    }

    #[track_caller]
    fn sh(&self, script: &str) {
        self.run(Run::new("sh", "dash").args(["-c", script]));
    }

    #[track_caller]
    fn run(&self, run: Run) {
        run.in_namespace_of(Some(self.pid())).succeed(PATIENCE);
    }
}

/// Two namespaces and the only wire between them.
pub(crate) struct Wire {
    pub(crate) source: Namespace,
    pub(crate) destination: Namespace,
}

impl Wire {
    /// The destination's address.
    pub(crate) const DESTINATION: &str = "10.77.77.2";

    #[track_caller]
    pub(crate) fn new() -> Self {
        need_root("make network namespaces");
        let source = Namespace::new("source's namespace");
        let destination = Namespace::new("destination's namespace");
        let peer = destination.pid().as_raw_nonzero();
        source.ip(&format!("link add wire type veth peer name wire netns {peer}"));
        source.ip("addr add 10.77.77.1/30 dev wire");
        destination.ip("addr add 10.77.77.2/30 dev wire");
        source.ip("link set wire up");
        destination.ip("link set wire up");
        Self { source, destination }
    }

    /// Starts to watch the wire.
    #[track_caller]
    pub(crate) fn watch(&self) -> Watch {
        // Everything but address resolution, and of TCP over IPv4 the packets that open a
        // connection: the payload of gigabytes need not come through here.
        let tcpdump = Run::new("tcpdump", "tcpdump")
            .args("-n -l -i wire --immediate-mode --buffer-size 8192".split(' '))
            .arg("not arp and (ip6 or not tcp or tcp[tcpflags] & tcp-syn != 0)")
            .in_namespace_of(Some(self.destination.pid()))
            .start();
        tcpdump.line_on_stderr("capture", |line| line.contains("listening on"));
        Watch { tcpdump }
    }
}

/// A capture of what opens connections on a wire.
pub(crate) struct Watch {
    tcpdump: Process,
}

/// What was seen on a wire.
#[derive(Debug)]
pub(crate) struct Seen {
    /// SYNs without ACK: one for each TCP connection that somebody tried to open.
    pub(crate) connections: Vec<String>,
    /// What is neither TCP over IPv4 nor ARP.
    pub(crate) foreign: Vec<String>,
}

impl Watch {
    /// Ends the capture, which must have lost nothing.
    #[track_caller]
    pub(crate) fn end(self) -> Seen {
        self.tcpdump.signal(Signal::INT);
        let finished = self.tcpdump.finish(PATIENCE);
        assert!(finished.stderr.contains("\n0 packets dropped by kernel"), "{finished}");
        let (mut connections, mut foreign) = (Vec::new(), Vec::new());
        for line in finished.stdout.lines().filter(|line| !line.is_empty()) {
            if line.contains("Flags [S]") || line.contains("Flags [SEW]") {
                connections.push(line.to_owned());
            } else if !line.contains("Flags [S.]") && !line.contains("Flags [S.E]") {
                foreign.push(line.to_owned());
            }
        }
        Seen { connections, foreign }
    }
}
