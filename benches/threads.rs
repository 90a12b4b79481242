//! Sessions on one dispatcher and on two: both ends of a session are on the same thread, so that two sessions can use two cores.

mod load;

use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use load::{MIB, end_after, gib, is_measured, median, percentile};
use virbistream::io::{
    Decision, Dispatcher, Handle, Handler, Report, Request, SessionKey, SessionOptions, Socket, Targets,
};
use virbistream::proto::Side;
use virbistream::wire::Open;

/// The run is given up after this: several times what it takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Gives so many bytes, whatever they are.
struct Source {
    left: usize,
}

impl Handler for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.left);
        self.left -= len;
        Ok(len)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what comes, and tells its end.
struct Sink(mpsc::Sender<()>);

impl Handler for Sink {
    fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.send(()).map_err(io::Error::other)
    }
}

struct Sinks(mpsc::Sender<()>);

impl Targets for Sinks {
    fn open(&self, _request: &Request<'_>) -> Decision {
        Decision::Accept(Box::new(Sink(self.0.clone())))
    }
}

/// Dispatchers that hold both ends of sessions.
struct Host {
    handle: Handle,
    sessions: Vec<SessionKey>,
    arrived: mpsc::Receiver<()>,
}

impl Host {
    /// With two sessions.
    fn start(threads: usize) -> io::Result<Self> {
        let (stands, standing) = mpsc::channel();
        let report = move |report| {
            if let Report::Established { session, .. } = report {
                let _ = stands.send(session);
            }
        };
        let dispatchers = Dispatcher::several(NonZeroUsize::new(threads).expect("one at least"), report)?;
        let handle = dispatchers[0].handle();
        for dispatcher in dispatchers {
            thread::spawn(move || dispatcher.run());
        }
        let (arrival, arrived) = mpsc::channel();
        let options = SessionOptions { targets: Arc::new(Sinks(arrival)), ..SessionOptions::default() };
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let links = (0..2).map(|_| Ok((TcpStream::connect(listener.local_addr()?)?, listener.accept()?.0)));
        let (near, far): (Vec<_>, Vec<_>) = links.collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
        let attach = |socket: TcpStream, side| Ok(handle.attach(Socket::from_tcp(socket)?, side, options.clone()));
        // They go round: the first near end and the first far end come to the same thread.
        let sessions = near.into_iter().map(|near| attach(near, Side::Connecting)).collect::<io::Result<_>>()?;
        far.into_iter().try_for_each(|far| attach(far, Side::Accepting).map(drop))?;
        for _ in 0..4 {
            standing.recv().map_err(io::Error::other)?;
        }
        Ok(Self { handle, sessions, arrived })
    }

    /// Moves so many bytes over the first so many sessions together; GiB/s.
    fn round(&self, sessions: usize, bytes: usize) -> io::Result<f64> {
        let begun = Instant::now();
        for session in &self.sessions[..sessions] {
            let open = Open { target: "sink".into(), ..Open::default() };
            self.handle.open(*session, open, Box::new(Source { left: bytes / sessions }));
        }
        for _ in 0..sessions {
            self.arrived.recv().map_err(io::Error::other)?;
        }
        Ok(gib(bytes) / begun.elapsed().as_secs_f64())
    }
}

fn main() -> io::Result<()> {
    let (rounds, bytes) = if is_measured() { (9, 2048 * MIB) } else { (1, 4 * MIB) };
    end_after(LIMIT, || ());
    let hosts = [(1, Host::start(1)?), (2, Host::start(2)?)];
    let cases: Vec<_> = hosts.iter().flat_map(|(threads, host)| [(*threads, host, 1), (*threads, host, 2)]).collect();
    let mut results = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for ((_, host, sessions), result) in cases.iter().zip(&mut results) {
            result.push(host.round(*sessions, bytes)?);
        }
    }
    println!("{} MiB in all, {rounds} rounds of all cases; median (least to most)\n", bytes / MIB);
    println!("threads  sessions  GiB/s");
    for ((threads, _, sessions), speeds) in cases.iter().zip(&results) {
        let (least, most) = (percentile(speeds, 0), percentile(speeds, 100));
        println!("{threads:7}  {sessions:8}  {:.2} ({least:.2} to {most:.2})", median(speeds));
    }
    hosts.iter().for_each(|(_, host)| host.handle.drain());
    Ok(())
}
