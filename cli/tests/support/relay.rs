//! What carries UNIX sockets from one namespace to the other.

use super::PATIENCE;
use super::net::Wire;
use super::process::{Finished, Process, Run};
use super::tool::{forward, links_accepted, serve};
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::Duration;

/// A socket at the source that leads to a socket at the destination.
pub(crate) struct Route {
    pub(crate) name: &'static str,
    pub(crate) near: PathBuf,
    pub(crate) far: PathBuf,
}

/// Which relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relay {
    /// The tool: one connection for all.
    Tool,
    /// socat: a connection for each, to compare with, and to see that the tests see connections.
    Socat,
}

/// A relay at work.
pub(crate) struct Tunnel {
    pub(crate) relay: Relay,
    /// What runs at the source.
    pub(crate) near: Vec<Process>,
    /// What runs at the destination.
    pub(crate) far: Vec<Process>,
    /// Where the far end listens, if it is one.
    pub(crate) peer: String,
    sockets: Vec<PathBuf>,
}

impl Relay {
    /// Starts it, from one end of the wire to the other, or on loopback; when this returns, the near sockets can be
    /// connected to.
    #[track_caller]
    pub(crate) fn start(self, wire: Option<&Wire>, routes: &[Route]) -> Tunnel {
        let source = wire.map(|wire| wire.source.pid());
        let destination = wire.map(|wire| wire.destination.pid());
        let host = if wire.is_some() { Wire::DESTINATION } else { "127.0.0.1" };
        let (mut near, mut far) = (Vec::new(), Vec::new());
        let mut peer = String::new();
        match self {
            Self::Tool => {
                let targets = routes.iter().map(|route| (route.name, &*route.far));
                let listen = format!("tcp://{host}:0");
                // Their own network, which nobody else is on.
                let consent = wire.map(|_| "--insecure-tcp");
                let serve = serve(&listen, targets).args(consent).in_namespace_of(destination).start();
                let sockets = routes.iter().map(|route| (route.name, &*route.near));
                peer = serve.ready();
                let forward = forward(&peer, sockets).in_namespace_of(source).start();
                forward.ready();
                near.push(forward);
                far.push(serve);
            }
            Self::Socat => {
                for (port, route) in (7001..).zip(routes) {
                    let (listen, connect) = (
                        format!("TCP-LISTEN:{port},bind={host},reuseaddr,fork,nodelay"),
                        format!("TCP:{host}:{port},nodelay"),
                    );
                    let at_far = format!("UNIX-CONNECT:{}", route.far.display());
                    let at_near = format!("UNIX-LISTEN:{},fork", route.near.display());
                    far.push(socat(&listen, &at_far).in_namespace_of(destination).start());
                    near.push(socat(&at_near, &connect).in_namespace_of(source).start());
                }
                for socat in near.iter().chain(&far) {
                    socat.line_on_stderr("listening", |line| line.contains("listening on"));
                }
            }
        }
        Tunnel { relay: self, near, far, peer, sockets: routes.iter().map(|route| route.near.clone()).collect() }
    }
}

fn socat(from: &str, to: &str) -> Run {
    Run::new("socat", "socat").args(["-d", "-d", "-t", "30", "-b", "262144"]).args([from, to])
}

impl Tunnel {
    /// How many connections the accepting end says that it has accepted.
    #[track_caller]
    pub(crate) fn accepted(&self) -> usize {
        match self.relay {
            Relay::Tool => links_accepted(&self.far[0]),
            Relay::Socat => {
                let accepted = |line: &str| line.contains("accepting connection from");
                let counts = self.far.iter().map(|socat| socat.stderr.count(accepted));
                counts.sum()
            }
        }
    }

    /// The processor time of both ends.
    pub(crate) fn processor_time(&self) -> Duration {
        let times = self.near.iter().chain(&self.far).map(Process::processor_time);
        times.sum()
    }

    /// Ends it by SIGTERM. The tool must end well and take its sockets along.
    #[track_caller]
    pub(crate) fn end(self) -> Vec<Finished> {
        let mut ended = Vec::new();
        for process in self.near.into_iter().chain(self.far) {
            process.signal(Signal::TERM);
            let finished = process.finish(PATIENCE);
            if self.relay == Relay::Tool {
                assert!(finished.status.success(), "{finished}");
            }
            ended.push(finished);
        }
        if self.relay == Relay::Tool {
            for socket in &self.sockets {
                assert!(!socket.exists(), "{} is left", socket.display());
            }
        }
        ended
    }
}
