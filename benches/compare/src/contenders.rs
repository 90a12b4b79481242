//! The ways that are compared, and how each is started.

use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

use clap::ValueEnum;

use crate::load::Way;
use crate::measure::Contender;
use crate::process::{Ends, Process, find, run};

/// Ways from a UNIX socket to another, over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// One connection for all streams
    Virbistream,
    /// A connection each, through 8 KiB at a time
    Socat,
    /// A connection each, through 256 KiB at a time
    SocatB,
    /// One connection for all, encrypted
    Ssh,
    /// copy_bidirectional, a connection each, through 8 KiB at a time
    Tokio,
    /// The same, through 256 KiB at a time
    TokioB,
    /// libp2p's yamux on tokio, one connection for all streams
    Yamux,
    /// io.Copy, a connection each
    Go,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Virbistream => "virbistream",
            Self::Socat => "socat",
            Self::SocatB => "socat -b 262144",
            Self::Ssh => "ssh -L",
            Self::Tokio => "tokio",
            Self::TokioB => "tokio 256 KiB",
            Self::Yamux => "yamux",
            Self::Go => "Go",
        }
    }

    /// Debian's package that it needs and that is not here.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let needs: &[_] = match self {
            Self::Virbistream | Self::Tokio | Self::TokioB | Self::Yamux => &[],
            Self::Socat | Self::SocatB => &[("socat", "socat")],
            Self::Ssh => &[("sshd", "openssh-server"), ("ssh", "openssh-client"), ("ssh-keygen", "openssh-client")],
            Self::Go => &[("go", "golang-go")],
        };
        needs.iter().find(|(program, _)| find(program).is_none()).map(|(_, package)| *package)
    }

    /// Starts both ends, with their sockets and files in `folder`.
    pub(crate) fn start(self, tool: &Path, folder: &Path) -> io::Result<Contender> {
        let folder = folder.join(format!("{self:?}"));
        fs::create_dir(&folder)?;
        let [near, far] = ["near", "far"].map(|end| folder.join(end));
        let way = Way::new(&near, &far)?;
        let [near, far] = [near, far].map(|path| path.display().to_string());
        let ends = match self {
            Self::Virbistream => virbistream(tool, &near, &far),
            Self::Socat => socat(&[], &near, &far),
            Self::SocatB => socat(&["-b", "262144"], &near, &far),
            Self::Ssh => ssh(&folder, &near, &far),
            Self::Tokio => relay(&env::current_exe()?, "tokio-near", "tokio-far", &near, &far),
            Self::TokioB => relay(&env::current_exe()?, "tokio-b-near", "tokio-b-far", &near, &far),
            Self::Yamux => relay(&env::current_exe()?, "yamux-near", "yamux-far", &near, &far),
            Self::Go => go(&folder, &near, &far),
        }?;
        Ok(Contender { kind: self, way, ends, measured: Default::default() })
    }
}

fn virbistream(tool: &Path, near: &str, far: &str) -> io::Result<Ends> {
    let tool = tool.display().to_string();
    let target = format!("x=unix:{far}");
    let (serve, said) = Process::start(&tool, &["serve", "-v", "--listen", "tcp://127.0.0.1:0", "--target", &target])?;
    let peer = format!("tcp://127.0.0.1:{}", port(&said)?);
    let (forward, _) = Process::start(&tool, &["forward", "-v", "--peer", &peer, "--socket", &format!("x={near}")])?;
    Ends::new(forward, serve)
}

fn socat(options: &[&str], near: &str, far: &str) -> io::Result<Ends> {
    let start = |from: &str, to: &str| Process::start("socat", &[&["-d", "-d"], options, &[from, to]].concat());
    // Its own backlog of 5 would have some of 64 connections wait a second for TCP to try again.
    let (accepting, said) = start("TCP-LISTEN:0,fork,bind=127.0.0.1,backlog=128", &format!("UNIX-CONNECT:{far}"))?;
    let peer = format!("TCP:127.0.0.1:{}", port(&said)?);
    let (connecting, _) = start(&format!("UNIX-LISTEN:{near},fork,backlog=128"), &peer)?;
    Ends::new(connecting, accepting)
}

/// A daemon of our own, with keys and configuration of this run alone.
fn ssh(folder: &Path, near: &str, far: &str) -> io::Result<Ends> {
    let file = |name: &str| folder.join(name).display().to_string();
    for key in ["host", "user"] {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]))?;
    }
    // It takes no port 0.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nAllowStreamLocalForwarding yes\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\n",
        file("host"),
        file("user.pub")
    );
    fs::write(file("config"), config)?;
    fs::write(file("known"), format!("[127.0.0.1]:{port} {}", fs::read_to_string(file("host.pub"))?))?;
    if rustix::process::geteuid().is_root() {
        // Debian's sshd does not start as root without it; there the service makes it.
        fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd")?;
    }
    let sshd = find("sshd").ok_or(io::ErrorKind::NotFound)?;
    let (sshd, _) = Process::start(&sshd.display().to_string(), &["-D", "-e", "-f", &file("config")])?;
    let (known, forward) = (format!("UserKnownHostsFile={}", file("known")), format!("{near}:{far}"));
    let settings =
        ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "ExitOnForwardFailure=yes", &known];
    let mut arguments = vec!["-v", "-N", "-F", "none"];
    arguments.extend(settings.into_iter().flat_map(|setting| ["-o", setting]));
    let (port, user) = (port.to_string(), file("user"));
    arguments.extend(["-i", &user, "-p", &port, "-L", &forward, "127.0.0.1"]);
    let (ssh, _) = Process::start("ssh", &arguments)?;
    Ends::new(ssh, sshd)
}

fn go(folder: &Path, near: &str, far: &str) -> io::Result<Ends> {
    let (source, program) = (folder.join("relay.go"), folder.join("relay"));
    fs::write(&source, include_str!("relay.go"))?;
    run(Command::new("go").args(["build", "-o"]).arg(&program).arg(&source).current_dir(folder))?;
    relay(&program, "near", "far", near, far)
}

/// A relay of ours, whose ends have the same command line in Rust and Go.
fn relay(program: &Path, near_mode: &str, far_mode: &str, near: &str, far: &str) -> io::Result<Ends> {
    let program = program.display().to_string();
    let (accepting, said) = Process::start(&program, &[far_mode, far])?;
    let (connecting, _) = Process::start(&program, &[near_mode, near, &format!("127.0.0.1:{}", port(&said)?)])?;
    Ends::new(connecting, accepting)
}

/// The port at the end of what a program said.
fn port(said: &str) -> io::Result<u16> {
    let digits = said.trim_end().rsplit(':').next().unwrap_or_default();
    digits.parse().map_err(|_| io::Error::other(format!("no port in `{}`", said.trim_end())))
}
