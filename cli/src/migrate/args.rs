//! What the command line says of a migration.

use std::path::{Path, PathBuf};

use clap::Args;
use virbistream::io::Address;

use super::libvirt::LibvirtOptions;
use crate::args::SocketArgs;
use crate::config::is_open;
use crate::uri::Uri;
use crate::values::parse_metrics;

/// Where directories of migrations are made, at both ends.
pub(crate) const BASE: &str = "/run/virbistream/migrations";

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// The guest: its name, id or UUID
    pub(crate) domain: String,
    /// The destination's `virbistream serve`: tls://HOST:PORT[?pkipath=DIR], qemu+tls://HOST[:PORT]/system[?pkipath=DIR], unix:///PATH or
    /// tcp://HOST:PORT
    pub(crate) desturi: Uri,
    /// The source's libvirtd, as virsh has it
    #[arg(long, value_name = "URI")]
    pub(crate) connect: Option<String>,
    /// Check whether it could be done, say so and end
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Say what happens in lines of JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Stop the guest while it moves, which takes less time than to move it running
    #[arg(long)]
    pub(crate) not_live: bool,
    /// Files that are in no storage pool of the destination's have been made there by hand: write over them
    #[arg(long)]
    pub(crate) precreated: bool,
    /// A file with the ticket that lets us in, `-` for stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) ticket: Option<PathBuf>,
    /// Where the directory for this migration's sockets is made; the destination's must be of the same name
    #[arg(long, value_name = "DIRECTORY", default_value = BASE)]
    pub(crate) base: PathBuf,
    /// A UNIX socket on which the user that runs migrate can see what runs, and limit it
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Tell Prometheus what runs, at GET /metrics: tcp://127.0.0.1:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", value_parser = parse_metrics)]
    pub(crate) metrics: Option<Address>,
    #[command(flatten)]
    pub(crate) sockets: SocketArgs,
    #[command(flatten)]
    pub(crate) libvirt: LibvirtOptions,
}

impl MigrateArgs {
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.desturi.is_verified() {
            return Err("no guest is moved to a host that proves nothing: no_verify=1 is not for migrate".into());
        }
        if self.ticket.is_some() && is_open(&self.desturi.address) {
            return Err(format!("a ticket is not said over {}: whoever reads along could use it", self.desturi));
        }
        check_base(&self.base)
    }
}

/// It becomes part of a URI of libvirt's, which takes nothing there that is escaped.
fn check_base(base: &Path) -> Result<(), String> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-~+@:,=".contains(letter);
    match base.to_string_lossy().chars().find(|letter| !is_plain(*letter)) {
        Some(letter) => {
            Err(format!("--base {} has `{}`, which a URI cannot have there", base.display(), letter.escape_debug()))
        }
        None if base.is_absolute() => Ok(()),
        None => Err(format!("--base {} does not begin with /", base.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_an_absolute_path_of_letters_that_a_uri_takes() {
        assert_eq!(check_base(Path::new(BASE)), Ok(()));
        assert_eq!(check_base(Path::new("/run/a-b_c.d")), Ok(()));
        for letter in ["&", "#", "%", "?", ";", " ", "ä", "\n"] {
            let error = check_base(Path::new(&format!("/run/a{letter}b"))).expect_err(letter);
            assert!(error.contains("which a URI cannot have there"), "{error}");
        }
        assert!(check_base(Path::new("run")).expect_err("relative").contains("does not begin with /"));
    }
}
