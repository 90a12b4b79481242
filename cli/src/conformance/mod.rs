//! `virbistream conformance`: whether a peer keeps to what libvirt's RPC and BiStream promise, case by case.
//!
//! `legacy` and `storage` have the cases of libvirt's RPC, as a real libvirtd answers them, `bistream` and `rules` those of
//! docs/protocol.md. A case has a connection of its own, a [`Peer`](peer::Peer), and is judged by what comes and by whether
//! the connection serves afterwards.

mod bistream;
mod case;
mod legacy;
mod peer;
mod rules;
mod runner;
mod session;
mod storage;
mod tap;

use clap::{Args, ValueEnum};

use crate::args::Patience;
use crate::uri::Uri;

pub(crate) use runner::run;

#[derive(Debug, Args)]
pub(crate) struct ConformanceArgs {
    /// The peer: qemu+unix:///system?socket=PATH, qemu+tls://HOST[:PORT]/system[?pkipath=DIR], qemu+tcp://HOST[:PORT]/system,
    /// tls://HOST:PORT[?pkipath=DIR], tcp://HOST:PORT or unix:///PATH
    #[arg(required_unless_present = "list")]
    uri: Option<Uri>,
    /// Only the cases of this section
    #[arg(long, value_name = "SECTION")]
    section: Option<Section>,
    /// Only this case; can be given more than once
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// Say which cases there are and what each needs, and ask nobody
    #[arg(long)]
    list: bool,
    /// A storage pool of the peer's for volumes that the cases make, write to and delete
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Pass over the cases that write to storage
    #[arg(long, conflicts_with = "pool")]
    no_write: bool,
    /// A target of the peer's that gives back what it is sent
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// libvirt's own RPC
    Legacy,
    /// docs/protocol.md
    Bistream,
}

impl ConformanceArgs {
    /// What no option can judge by itself.
    pub(crate) fn check(&self) -> Result<(), String> {
        let unknown = self.case.iter().find(|name| runner::all().iter().all(|case| case.name != **name));
        if let Some(name) = unknown {
            return Err(format!("there is no case `{name}`; --list says which there are"));
        }
        match self.case.iter().find(|name| !runner::is_in(name, self.section)) {
            Some(name) => Err(format!("the case `{name}` is of another section than --section says")),
            None => Ok(()),
        }
    }
}
