//! UNIX socket -> one connection of the tunnel -> UNIX socket, both ends in this process, on a thread each.
//!
//! The load runs on threads of the same machine, so GiB/s are of everything together; the CPU time is the two ends' alone.

mod load;
#[cfg(feature = "tls")]
#[path = "../tests/io_support/pki.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod pki;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use load::{MIB, Way, end_after, gib, is_measured, median};
use virbistream::io::{Address, Dispatcher, Handle, Listener, Permissions, SessionOptions, Socket, UnixTargets};
use virbistream::proto::Side;
use virbistream::wire::Open;

const STREAMS: [usize; 3] = [1, 4, 64];

/// The run is given up after this: several times what it takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(180);

/// One end of the tunnel, on its thread.
struct End {
    handle: Handle,
    /// Where the kernel says how long its thread ran.
    schedstat: String,
    thread: JoinHandle<io::Result<()>>,
}

impl End {
    fn start() -> io::Result<Self> {
        let dispatcher = Dispatcher::new(|_| {})?;
        let handle = dispatcher.handle();
        let (sender, path) = mpsc::channel();
        let thread = thread::spawn(move || {
            let me = std::fs::read_link("/proc/thread-self")?;
            let _ = sender.send(format!("/proc/{}/schedstat", me.display()));
            dispatcher.run()
        });
        let schedstat = path.recv().map_err(io::Error::other)?;
        Ok(Self { handle, schedstat, thread })
    }

    fn cpu(&self) -> io::Result<Duration> {
        let text = std::fs::read_to_string(&self.schedstat)?;
        let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
        nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::Error::other("no time in schedstat"))
    }

    fn end(self) -> io::Result<()> {
        self.handle.drain();
        self.thread.join().map_err(|_| io::Error::other("a dispatcher panicked"))?
    }
}

/// What is between the ends.
enum Link {
    Plain(Address),
    #[cfg(feature = "tls")]
    Tls(virbistream::io::TlsServer, virbistream::io::TlsClient),
}

impl Link {
    #[cfg(feature = "tls")]
    fn tls() -> Self {
        use virbistream::io::{TlsClient, TlsKeys, TlsServer};
        let authority = pki::Authority::new("authority");
        let keys = |leaf: pki::Leaf| {
            TlsKeys::from_pem(authority.pem().as_bytes(), leaf.certificate.as_bytes(), leaf.key.as_bytes())
        };
        let server = keys(authority.server()).and_then(TlsServer::new).expect("a server's keys");
        let client = keys(authority.client("client")).and_then(TlsClient::new).expect("a client's keys");
        Self::Tls(server, client)
    }

    fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Plain(address) => Listener::bind(address, Permissions::default()),
            #[cfg(feature = "tls")]
            Self::Tls(server, _) => {
                Listener::bind_tls(&"tls://127.0.0.1:0".parse().expect("an address"), server.clone())
            }
        }
    }

    fn connect(&self, address: &Address) -> io::Result<Socket> {
        const PATIENCE: Duration = Duration::from_secs(10);
        match self {
            Self::Plain(_) => Socket::connect(address, PATIENCE),
            #[cfg(feature = "tls")]
            Self::Tls(_, client) => Socket::connect_tls(address, client, PATIENCE),
        }
    }
}

struct Tunnel {
    name: &'static str,
    way: Way,
    ends: [End; 2],
}

impl Tunnel {
    fn start(name: &'static str, link: &Link, folder: &Path) -> io::Result<Self> {
        let [near, far] = ["near", "far"].map(|end| folder.join(format!("{name}.{end}")));
        let way = Way::new(&near, &far)?;
        let ends = [End::start()?, End::start()?];

        let mut targets = UnixTargets::new();
        targets.insert("far", far);
        let listener = link.listen()?;
        let address = listener.address().clone();
        let options = SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() };
        ends[1].handle.listen(listener, options);

        let socket = link.connect(&address)?;
        let session = ends[0].handle.attach(socket, Side::Connecting, SessionOptions::default());
        let open = Open { target: "far".into(), ..Open::default() };
        let forward = ends[0].handle.forward(Listener::bind(&Address::Unix(near), Permissions::default())?, open);
        ends[0].handle.route(forward, Some(session));
        Ok(Self { name, way, ends })
    }

    fn cpu(&self) -> io::Result<Duration> {
        Ok(self.ends[0].cpu()? + self.ends[1].cpu()?)
    }
}

fn main() -> io::Result<()> {
    let (rounds, bytes) = if is_measured() { (7, 512 * MIB) } else { (1, 4 * MIB) };
    let folder = tempfile::Builder::new().prefix("vbs-").tempdir()?;
    let path = folder.path().to_owned();
    end_after(LIMIT, move || _ = std::fs::remove_dir_all(path));
    let tcp = Link::Plain("tcp://127.0.0.1:0".parse().expect("an address"));
    let unix = Link::Plain(Address::Unix(folder.path().join("link")));
    let tunnels = [
        Tunnel::start("tcp", &tcp, folder.path())?,
        Tunnel::start("unix", &unix, folder.path())?,
        #[cfg(feature = "tls")]
        Tunnel::start("tls", &Link::tls(), folder.path())?,
    ];

    let mut results = vec![Vec::new(); tunnels.len() * STREAMS.len()];
    for _ in 0..rounds {
        for (n, result) in results.iter_mut().enumerate() {
            let (tunnel, streams) = (&tunnels[n / STREAMS.len()], STREAMS[n % STREAMS.len()]);
            let before = tunnel.cpu()?;
            let bulk = tunnel.way.bulk(streams, bytes / streams)?;
            let cpu = tunnel.cpu()? - before;
            result.push((gib(bulk.bytes) / bulk.time.as_secs_f64(), cpu.as_secs_f64() / gib(bulk.bytes)));
        }
    }

    println!("{} MiB in all, {rounds} rounds of all cases; median (least to most)\n", bytes / MIB);
    println!("link  streams  GiB/s               CPU s/GiB, both ends");
    for (n, result) in results.iter().enumerate() {
        let (speeds, costs): (Vec<f64>, Vec<f64>) = result.iter().copied().unzip();
        println!(
            "{:4}  {:7}  {:19} {}",
            tunnels[n / STREAMS.len()].name,
            STREAMS[n % STREAMS.len()],
            spread(&speeds),
            spread(&costs)
        );
    }
    tunnels.into_iter().flat_map(|tunnel| tunnel.ends).try_for_each(End::end)
}

fn spread(values: &[f64]) -> String {
    let (least, most) = (load::percentile(values, 0), load::percentile(values, 100));
    format!("{:.2} ({least:.2} to {most:.2})", median(values))
}
