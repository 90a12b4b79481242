//! What the command line can say.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};
use virbistream::io::{Address, Permissions};
use virbistream::proto::{Config, MemoryBudget};
use virbistream::wire::{PRIORITY_MAX, kind};

use crate::config::is_open;
use crate::conformance::ConformanceArgs;
use crate::demo::DemoArgs;
use crate::help;
use crate::listen::{Kind, Listen};
use crate::logging::LogFormat;
use crate::migrate::{EXIT_STATUS, MigrateArgs};
use crate::pki::Pki;
use crate::uri::Uri;
use crate::values::{
    Owner, Rate, Upstream, parse_bandwidth, parse_kind, parse_metrics, parse_mode, parse_rate, parse_threads,
    parse_window,
};

/// Carries many two-way streams over one connection: the disks and the memory of a live migration.
#[derive(Debug, Parser)]
#[command(name = "virbistream", version, max_term_width = 100, after_long_help = help::TOOL)]
pub(crate) struct Cli {
    /// Say what happens on stderr
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// How what is said on stderr looks
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// What this process was started with; ends it with a sentence when that makes no sense.
    pub(crate) fn of_this_process() -> Self {
        let matches = Self::command().get_matches();
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut Self::command()).exit());
        if let Err(sentence) = cli.command.check() {
            let mut tool = Self::command();
            // It fills in what a command's usage begins with.
            tool.build();
            let command = matches.subcommand_name().and_then(|name| tool.find_subcommand_mut(name));
            command.expect("clap takes no line without one").error(ErrorKind::ValueValidation, sentence).exit();
        }
        cli
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Offer targets, UNIX sockets of this host, to who connects
    #[command(after_long_help = help::SERVE)]
    Serve(ServeArgs),
    /// Say what is wrong with a configuration file of serve, if anything is
    #[command(after_long_help = help::CHECK_CONFIG)]
    CheckConfig(CheckConfigArgs),
    /// Have a running serve make a secret that lets its bearer in, once
    #[command(after_long_help = help::TICKET)]
    Ticket(TicketArgs),
    /// Move a running guest and its disks to another host, through one connection, with libvirt as it is
    #[command(after_long_help = EXIT_STATUS)]
    Migrate(MigrateArgs),
    /// Show the sessions and streams of a running serve, forward or migrate
    #[command(after_long_help = help::STATUS)]
    Status(StatusArgs),
    /// Change how fast a running serve, forward or migrate sends
    #[command(after_long_help = help::LIMIT)]
    Limit(LimitArgs),
    /// Listen on UNIX sockets, and carry each connection to a target of the peer
    #[command(after_long_help = help::FORWARD)]
    Forward(ForwardArgs),
    /// Move disks and memory between two ends on this machine, and verify every byte
    #[command(after_long_help = help::DEMO)]
    Demo(DemoArgs),
    /// Tell what a peer is: exit code 0 for BiStream, 3 for one that speaks libvirt's RPC alone
    #[command(after_long_help = help::PROBE)]
    Probe(ProbeArgs),
    /// Ask a peer for all that the protocol and libvirt's RPC promise, case by case, and print TAP
    #[command(after_long_help = help::CONFORMANCE)]
    Conformance(ConformanceArgs),
    /// Write the man pages and the completions of shells to a directory, as /usr/share has them
    #[command(hide = true)]
    Generate(GenerateArgs),
}

impl Command {
    /// What no option can judge by itself.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Serve(args) if args.session.max_streams == 0 => {
                Err("with --max-streams 0 no peer could open a stream".into())
            }
            Self::Serve(args) => args.check(),
            Self::Forward(args) => args.check(),
            Self::Migrate(args) => args.check(),
            Self::Conformance(args) => args.check(),
            Self::Demo(_)
            | Self::Probe(_)
            | Self::CheckConfig(_)
            | Self::Ticket(_)
            | Self::Status(_)
            | Self::Limit(_)
            | Self::Generate(_) => Ok(()),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where to listen: tls://HOST:PORT, tcp://HOST:PORT or unix:PATH; or on the sockets that systemd made and calls NAME, with
    /// tls+systemd:NAME, tcp+systemd:NAME or unix+systemd:NAME. Can be given more than once. Port 0 takes a free one, and `ready` is followed
    /// by the addresses, as it is with sockets of systemd's
    #[arg(long, value_name = "ADDRESS", required_unless_present = "config")]
    pub(crate) listen: Vec<Listen>,
    /// Take all that is asked for here from a file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = CONFIGURED)]
    pub(crate) config: Option<PathBuf>,
    /// A socket that peers may reach, and its name; it is dialled when a stream to it is opened
    #[arg(long, value_name = "NAME=unix:PATH", required_unless_present_any = ["libvirt", "config"])]
    pub(crate) target: Vec<Target>,
    /// Stand in front of an unmodified libvirtd: what of libvirt's RPC comes passes to it, over a connection for each client.
    /// All addresses must be tls:// or UNIX sockets; their mode is 0600
    #[arg(long, value_name = "unix:PATH")]
    pub(crate) libvirt: Option<Upstream>,
    /// Let migrations in, too, for which directories are made below this one: `virbistream migrate` at the other end. It goes with --libvirt
    #[arg(long, value_name = "DIRECTORY", requires = "libvirt")]
    pub(crate) migrations: Option<PathBuf>,
    /// The owner of those directories, by name or number: the user that runs QEMU, whose sockets are made there
    #[arg(long, value_name = "USER[:GROUP]", requires = "migrations")]
    pub(crate) migrations_owner: Option<Owner>,
    /// Let in over tls:// whose certificate has this name, written as in libvirt's tls_allowed_dn_list; `*` stands for any characters,
    /// `?` for one
    #[arg(long, value_name = "DN")]
    pub(crate) allow_dn: Vec<String>,
    /// Let everybody who reaches a plain TCP address have the targets, from other hosts too: nothing proves who they are, and nothing
    /// that passes is hidden. Without it such addresses are of the loopback. Who comes over tls:// needs --allow-dn all the same
    #[arg(long)]
    pub(crate) insecure_tcp: bool,
    /// A UNIX socket on which the user that runs serve can ask for tickets, see what runs and limit it
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Tell Prometheus what runs, at GET /metrics: tcp://127.0.0.1:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", value_parser = parse_metrics)]
    pub(crate) metrics: Option<Address>,
    /// Peers that may have a session at once; as many more may be on their way to one
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = value_parser!(u32).range(1..))]
    pub(crate) max_sessions: u32,
    /// Threads that share the sessions; as many as the machine has cores, if this is not given
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) pki: Pki,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// What a file says instead.
const CONFIGURED: [&str; 21] = [
    "migrations",
    "migrations_owner",
    "metrics",
    "allow_dn",
    "directory",
    "window_max",
    "max_sessions",
    "listen",
    "target",
    "libvirt",
    "insecure_tcp",
    "control",
    "threads",
    "socket_mode",
    "socket_owner",
    "window",
    "memory",
    "session_memory",
    "max_streams",
    "bandwidth",
    "drain",
];

#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// The file, as serve --config takes it
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The directory
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TicketArgs {
    /// The control socket of the serve
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,
    /// The targets that the bearer may open; `*` stands for any characters, `?` for one
    #[arg(long, value_name = "NAME", required_unless_present = "migrate")]
    pub(crate) target: Vec<String>,
    /// Let the bearer move guests to this host, with `virbistream migrate --ticket`; who may do that can do here what root can
    #[arg(long)]
    pub(crate) migrate: bool,
    /// How long the ticket can be used: a number with s, m or h, at most 24h
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = parse_valid)]
    pub(crate) valid: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The control socket of what runs
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,
    /// Show it once; without a terminal that is so anyhow
    #[arg(long)]
    pub(crate) once: bool,
    /// Print it once as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// The control socket of what runs
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,
    /// Only of this session, by its number in status; without it and --target, of all together
    #[arg(long, value_name = "N", conflicts_with = "target")]
    pub(crate) session: Option<u64>,
    /// Only of each stream that stands now to such a target: `*` stands for any characters, `?` for one
    #[arg(long, value_name = "NAME")]
    pub(crate) target: Option<String>,
    /// Bytes a second, at most; `none` for as much as goes
    #[arg(value_name = "RATE", value_parser = parse_rate)]
    pub(crate) rate: Rate,
}

#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The `virbistream serve` to connect to: tls://HOST:PORT, tcp://HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) peer: Address,
    /// A socket to listen on, and the peer's target that its connections go to
    #[arg(long, value_name = "NAME=PATH", required = true)]
    pub(crate) socket: Vec<Source>,
    /// Who goes first: streams of a socket with 0 before those with 1, up to 3, in both directions; those that wait get a sixteenth. A
    /// socket that is not named has 2
    #[arg(long, value_name = "NAME=N")]
    priority: Vec<Priority>,
    /// What streams of a socket carry, which a rule at the peer may ask for: bytes, control, memory or disk. A socket that is not named
    /// has bytes
    #[arg(long, value_name = "NAME=KIND")]
    kind: Vec<StreamKind>,
    /// A file with the ticket that lets us in, `-` for stdin. It is worth nothing after the first connection
    #[arg(long, value_name = "FILE", conflicts_with = "reconnect")]
    pub(crate) ticket: Option<PathBuf>,
    /// A UNIX socket on which the user that runs forward can see what runs, and limit it
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Tell Prometheus what runs, at GET /metrics: tcp://127.0.0.1:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", value_parser = parse_metrics)]
    pub(crate) metrics: Option<Address>,
    /// When the session is lost, keep listening and connect again
    #[arg(long)]
    pub(crate) reconnect: bool,
    #[command(flatten)]
    pub(crate) pki: Pki,
    #[command(flatten)]
    pub(crate) permissions: SocketArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// The peer: qemu+unix:///system?socket=PATH, qemu+tls://HOST[:PORT]/system[?pkipath=DIR], qemu+tcp://HOST[:PORT]/system,
    /// tls://HOST:PORT[?pkipath=DIR], tcp://HOST:PORT or unix:///PATH
    pub(crate) uri: Uri,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct Patience {
    /// Seconds that connecting may take, and as many that each answer may
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_timeout)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// The mode of the UNIX sockets listened on, octal
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    socket_mode: Option<u32>,
    /// The owner of the UNIX sockets listened on, by name or number
    #[arg(long, value_name = "USER[:GROUP]")]
    socket_owner: Option<Owner>,
}

impl SocketArgs {
    pub(crate) fn permissions(&self) -> Permissions {
        self.permissions_or(None)
    }

    /// With another owner where none is given.
    pub(crate) fn permissions_or(&self, owner: Option<Owner>) -> Permissions {
        self.socket_owner.or(owner).unwrap_or_default().permissions(self.socket_mode)
    }
}

impl ForwardArgs {
    /// What streams to this name are asked for with.
    pub(crate) fn priority(&self, name: &str) -> u32 {
        self.priority.iter().find(|priority| priority.name == name).map_or(PRIORITY, |priority| priority.number)
    }

    /// And what they are said to carry.
    pub(crate) fn kind(&self, name: &str) -> u32 {
        self.kind.iter().find(|kind| kind.name == name).map_or(kind::BYTES, |kind| kind.number)
    }

    fn check(&self) -> Result<(), String> {
        self.check_names("--priority", self.priority.iter().map(|priority| &*priority.name))?;
        self.check_names("--kind", self.kind.iter().map(|kind| &*kind.name))?;
        self.pki.check(matches!(self.peer, Address::Tls { .. }))?;
        self.session.check()
    }

    /// Each is a socket's, and given once.
    fn check_names<'a>(&self, option: &str, names: impl Iterator<Item = &'a str> + Clone) -> Result<(), String> {
        if let Some(twice) = names.clone().find(|name| names.clone().filter(|other| other == name).count() > 1) {
            return Err(format!("{option} is given twice for {twice}"));
        }
        let is_socket = |name: &str| self.socket.iter().any(|socket| socket.name == name);
        match names.clone().find(|name| !is_socket(name)) {
            Some(name) => Err(format!("{option} {name}: no --socket has this name")),
            None => Ok(()),
        }
    }
}

impl ServeArgs {
    fn check(&self) -> Result<(), String> {
        self.check_libvirt()?;
        self.check_insecure_tcp()?;
        let is_tls = self.listen.iter().any(|listen| listen.kind() == Kind::Tls);
        self.pki.check(is_tls)?;
        match is_tls {
            true if self.allow_dn.is_empty() => Err(
                "nobody could have a session over tls:// without --allow-dn; '*' is for every certificate of the CA's"
                    .into(),
            ),
            false if !self.allow_dn.is_empty() => Err("--allow-dn goes with a tls:// address".into()),
            _ => self.session.check(),
        }
    }

    /// Said of nothing, it was meant for something else. What systemd's sockets are is known only later.
    fn check_insecure_tcp(&self) -> Result<(), String> {
        let is_open = |listen: &Listen| match listen.address() {
            Some(address) => is_open(address),
            None => listen.kind() == Kind::Tcp,
        };
        match self.insecure_tcp && !self.listen.iter().any(is_open) {
            true => Err("--insecure-tcp goes with a tcp:// address beyond the loopback: leave it out".into()),
            false => Ok(()),
        }
    }

    /// Who reaches libvirtd can do what root can: on TCP without TLS nobody is asked who he is.
    fn check_libvirt(&self) -> Result<(), String> {
        if self.libvirt.is_none() {
            return Ok(());
        }
        if let Some(listen) = self.listen.iter().find(|listen| listen.kind() == Kind::Tcp) {
            return Err(format!("with --libvirt only UNIX sockets and tls:// can be listened on, not {listen}"));
        }
        if let Some(listen) = self.listen.iter().find(|listen| listen.is_unix_of_systemd()) {
            return Err(format!("with --libvirt {listen} needs --config, and a rule for who may reach libvirtd"));
        }
        match self.socket.socket_mode {
            Some(mode) if mode & 0o177 != 0 => Err("with --libvirt the mode of the sockets is 0600".into()),
            _ if self.socket.socket_owner.is_some() => {
                Err("with --libvirt the sockets are of the user that runs serve".into())
            }
            _ => Ok(()),
        }
    }
}

/// Behind streams that somebody calls urgent, and before those called idle.
const PRIORITY: u32 = 2;

const YEAR: u64 = 365 * 24 * 3600;

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    /// Bytes of each stream that the peer may be ahead of delivery at first, at least 4KiB. On a long link it becomes more
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = parse_window)]
    window: ByteSize,
    /// The most that it becomes, as long as all streams together have half of --memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_window)]
    window_max: ByteSize,
    /// Bytes that the windows of all sessions may add up to, at least one window
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    memory: ByteSize,
    /// Bytes that those of one session may have of it, at least one window
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    session_memory: ByteSize,
    /// Streams that the peer may have open at once
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_streams: u32,
    /// Bytes that all streams together send each second, at most; what is received is limited at the other end
    #[arg(long, value_name = "SIZE", value_parser = parse_bandwidth)]
    bandwidth: Option<ByteSize>,
    /// Seconds that streams have to finish after SIGTERM or SIGINT, at most a year; a second signal waits no more
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u64).range(..=YEAR))]
    drain: u64,
}

impl SessionArgs {
    fn check(&self) -> Result<(), String> {
        match self.window <= self.memory {
            true => Ok(()),
            false => Err(format!("--window {} does not fit into --memory {}", self.window, self.memory)),
        }
    }

    pub(crate) fn bandwidth(&self) -> Option<u64> {
        self.bandwidth.map(|bandwidth| bandwidth.as_u64())
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain)
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            window: self.window.as_u64(),
            window_max: self.window_max.as_u64(),
            memory_budget: MemoryBudget::new(self.memory.as_u64()),
            session_memory: self.session_memory.as_u64(),
            max_streams: self.max_streams,
            ..Config::default()
        }
    }
}

/// `NAME=unix:PATH`
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// `NAME=PATH`
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) address: Address,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = named(text, "NAME=unix:PATH")?;
        match address.parse().map_err(|error| format!("{error}"))? {
            Address::Unix(path) => Ok(Self { name, path }),
            Address::Tcp { .. } | Address::Tls { .. } => Err("a target is a UNIX socket: write NAME=unix:PATH".into()),
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = named(text, "NAME=PATH")?;
        let path = path.strip_prefix("unix:").unwrap_or(path);
        let address = format!("unix:{path}").parse().map_err(|error| format!("{error}"))?;
        Ok(Self { name, address })
    }
}

/// `NAME=N`
#[derive(Clone, Debug)]
struct Priority {
    name: String,
    number: u32,
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = named(text, "NAME=N")?;
        let number = number.parse().ok().filter(|number| *number <= PRIORITY_MAX);
        let number = number.ok_or_else(|| format!("a priority is a number from 0 to {PRIORITY_MAX}"))?;
        Ok(Self { name, number })
    }
}

/// `NAME=KIND`
#[derive(Clone, Debug)]
struct StreamKind {
    name: String,
    number: u32,
}

impl FromStr for StreamKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, kind) = named(text, "NAME=KIND")?;
        Ok(Self { name, number: parse_kind(kind)? })
    }
}

fn named<'a>(text: &'a str, form: &str) -> Result<(String, &'a str), String> {
    let (name, rest) = text.split_once('=').ok_or_else(|| format!("write {form}"))?;
    if !virbistream::wire::is_valid_target(name) {
        return Err("a target's name has 1 to 255 bytes and no control characters".into());
    }
    Ok((name.into(), rest))
}

fn parse_valid(text: &str) -> Result<Duration, String> {
    let time = text.strip_suffix(['s', 'm', 'h']).and_then(|number| number.parse::<u64>().ok());
    let seconds = match text.as_bytes().last() {
        Some(b's') => time,
        Some(b'm') => time.and_then(|time| time.checked_mul(60)),
        _ => time.and_then(|time| time.checked_mul(3600)),
    };
    match seconds.filter(|seconds| (1..=24 * 3600).contains(seconds)) {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err("write a time from 1s to 24h: 60s, 5m".into()),
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    match (0.01..=3600.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("from 0.01 to 3600 seconds are possible".into()),
    }
}
