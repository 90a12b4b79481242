//! What is looked at before a migration begins: all of it, in one list, and nothing is changed.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use roxmltree::Document;
use virbistream::wire::Escaped;

use super::args::MigrateArgs;
use super::domain::{Disk, Domain};
use super::host::Host;
use super::outcome::Failure;
use super::progress::Said;
use super::tunnel::Tunnel;
use super::virsh::{Virsh, VirshError};

/// Seconds that two clocks may differ before it is worth a word: certificates are valid from and until a time.
const CLOCKS: i64 = 60;

/// Days of a certificate that are few enough for a word.
const DAYS: u64 = 14;

/// Says the list, and counts what failed.
pub(super) struct List<'a> {
    said: &'a Said,
    failed: Vec<String>,
}

impl<'a> List<'a> {
    pub(super) fn new(said: &'a Said) -> Self {
        Self { said, failed: Vec::new() }
    }

    /// Nothing may be begun when something failed.
    pub(super) fn result(&self) -> Result<(), Failure> {
        if self.failed.is_empty() { Ok(()) } else { Err(Failure::Checks(self.failed.join("; "))) }
    }

    fn ok(&mut self, what: &str, text: impl AsRef<str>) {
        self.said.check(what, "ok", text.as_ref());
    }

    fn warn(&mut self, what: &str, text: impl AsRef<str>) {
        self.said.check(what, "warning", text.as_ref());
    }

    fn fail(&mut self, what: &str, text: impl AsRef<str>) {
        self.failed.push(Escaped(text.as_ref()).to_string());
        self.said.check(what, "failed", text.as_ref());
    }

    /// The source's libvirtd, and the guest there.
    pub(super) fn source(&mut self, virsh: &Virsh, args: &MigrateArgs) -> Option<(Host, Domain)> {
        self.daemon("source", virsh)?;
        let host = match Host::read(virsh) {
            Ok(host) => host,
            Err(error) => {
                self.fail("source", format!("the source's libvirtd: {error}"));
                return None;
            }
        };
        let domain = match Domain::read(virsh, &args.domain, args.libvirt.value("migrate-disks")) {
            Ok(domain) => domain,
            Err(error) => {
                self.fail("guest", error.to_string());
                return None;
            }
        };
        match domain.is_running() {
            true => self.ok("guest", format!("`{}` is {}", domain.name, domain.state)),
            false => {
                self.fail("guest", format!("`{}` is {}: only a running guest is moved", domain.name, domain.state))
            }
        }
        Some((host, domain))
    }

    /// All that is asked of the destination.
    pub(super) fn destination(
        &mut self,
        (host, source): (&Host, &Virsh),
        destination: &Virsh,
        tunnel: &Tunnel,
        domain: &Domain,
        args: &MigrateArgs,
    ) {
        let secured = tunnel.peer.secured.as_deref().unwrap_or("not encrypted");
        self.ok("connection", format!("BiStream {} to {}, {secured}", tunnel.peer.version, args.desturi));
        self.clocks(tunnel.clock());
        if let Some(certificates) = tunnel.peer.certificates {
            self.certificates(certificates);
        }
        if self.daemon("destination", destination).is_none() {
            return;
        }
        self.hosts(host, destination);
        self.name(destination, args.libvirt.value("dname").unwrap_or(&domain.name), &domain.uuid);
        self.disks(source, destination, domain, args);
        self.cpu(destination, domain);
    }

    fn clocks(&mut self, ahead: i64) {
        match ahead.abs() > CLOCKS {
            true => self.warn(
                "clocks",
                format!("the destination's is {ahead} s ahead of ours: certificates may not be valid at both"),
            ),
            false => self.ok("clocks", "they agree"),
        }
    }

    /// Both were valid when the connection began.
    fn certificates(&mut self, certificates: [SystemTime; 2]) {
        let days = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400;
        let [ours, theirs] = certificates.map(days);
        let text = format!("ours is valid for {ours} more days, the destination's for {theirs}");
        match ours.min(theirs) < DAYS {
            true => self.warn("certificates", text),
            false => self.ok("certificates", text),
        }
    }

    fn daemon(&mut self, what: &str, virsh: &Virsh) -> Option<()> {
        match virsh.ask(&["version", "--daemon"]) {
            Ok(said) => {
                let after =
                    |words: &str| said.lines().find_map(|line| line.strip_prefix(words)).unwrap_or("unknown").trim();
                let (daemon, hypervisor) = (after("Running against daemon:"), after("Running hypervisor:"));
                self.ok(what, format!("libvirtd {daemon}, {hypervisor}"));
                Some(())
            }
            Err(error) => {
                self.fail(what, format!("the {what}'s libvirtd: {error}"));
                None
            }
        }
    }

    fn hosts(&mut self, source: &Host, destination: &Virsh) {
        match Host::read(destination) {
            Ok(there) if there.uuid == source.uuid => self.fail("hosts", "source and destination are the same host"),
            Ok(_) => self.ok("hosts", "they are two"),
            Err(error) => self.warn("hosts", error.to_string()),
        }
    }

    fn name(&mut self, destination: &Virsh, name: &str, uuid: &str) {
        match destination.ask(&["domstate", uuid]) {
            Ok(state) if state == "shut off" => {
                return self.warn("name", "the guest is defined at the destination, too: libvirt replaces that");
            }
            Ok(state) => return self.fail("name", format!("the guest is {state} at the destination already")),
            Err(_) => {}
        }
        match destination.ask(&["list", "--all", "--name"]) {
            Ok(names) if names.lines().any(|other| other == name) => {
                self.fail("name", format!("another guest is named `{name}` at the destination"));
            }
            Ok(_) => self.ok("name", format!("`{name}` is free at the destination")),
            Err(error) => self.warn("name", error.to_string()),
        }
    }

    fn disks(&mut self, source: &Virsh, destination: &Virsh, domain: &Domain, args: &MigrateArgs) {
        if let Some(chosen) = args.libvirt.value("migrate-disks") {
            let is_there = |target: &&str| domain.disks.iter().any(|disk| disk.target == *target);
            if let Some(target) = chosen.split(',').find(|target| !is_there(target)) {
                return self.fail("disks", format!("the guest has no disk `{target}` that could be copied"));
            }
        }
        if domain.disks.is_empty() {
            return self.fail("disks", "the guest has none that would be copied: virsh migrate moves it alone");
        }
        let pools = match pools(destination) {
            Ok(pools) => pools,
            Err(error) => return self.fail("disks", error.to_string()),
        };
        let mut wanted = BTreeMap::new();
        for disk in &domain.disks {
            self.disk(source, destination, domain, disk, &pools, &mut wanted);
        }
        for (pool, bytes) in wanted {
            let what = format!("pool {}", pool.name);
            match bytes <= pool.available {
                true => self.ok(&what, format!("{} of {} bytes free are needed", bytes, pool.available)),
                false => self.fail(
                    &what,
                    format!("{} bytes are needed at the destination, and {} are free", bytes, pool.available),
                ),
            }
        }
    }

    fn disk<'p>(
        &mut self,
        source: &Virsh,
        destination: &Virsh,
        domain: &Domain,
        disk: &Disk,
        pools: &'p [Pool],
        wanted: &mut BTreeMap<&'p Pool, u64>,
    ) {
        let what = format!("disk {}", disk.target);
        let Some(path) = disk.source.as_deref() else {
            return self.fail(&what, "it is on the network: choose the others with --migrate-disks");
        };
        let folder = Path::new(path).parent().and_then(Path::to_str);
        if destination.ask(&["vol-info", path]).is_ok() {
            return self.warn(&what, format!("{path} is at the destination already, and is written over"));
        }
        match pools.iter().find(|pool| folder == Some(&*pool.folder)) {
            Some(pool) => {
                let size = allocated(source, &domain.uuid, &disk.target);
                *wanted.entry(pool).or_default() += size.unwrap_or(0);
                self.ok(&what, format!("{path} will be made in the pool `{}`", pool.name));
            }
            None => self.fail(&what, format!("{path} is in the directory of no storage pool at the destination")),
        }
    }

    /// libvirt's own comparison, where a model is asked for.
    fn cpu(&mut self, destination: &Virsh, domain: &Domain) {
        let Some(cpu) = domain.cpu.as_deref() else {
            return self.ok("CPU", "the guest asks for no model");
        };
        let compared = (|| {
            let no_file = |error| VirshError::Failed(format!("no file can be made to ask with: {error}"));
            let mut file = tempfile::NamedTempFile::new().map_err(no_file)?;
            file.write_all(cpu.as_bytes()).map_err(no_file)?;
            let path = file.path().to_string_lossy().into_owned();
            let mut words = vec!["hypervisor-cpu-compare", &*path, "--error", "--virttype", &*domain.kind];
            let named = [("--arch", &domain.arch), ("--machine", &domain.machine), ("--emulator", &domain.emulator)];
            named
                .iter()
                .filter_map(|(name, value)| Some([*name, value.as_deref()?]))
                .for_each(|pair| words.extend(pair));
            destination.ask(&words)
        })();
        match compared {
            Ok(_) => self.ok("CPU", "the destination has what the guest asks for"),
            Err(VirshError::Failed(why)) if why.contains("incompatible") => self.fail("CPU", why),
            Err(error) => self.warn("CPU", format!("libvirt cannot compare it: {error}")),
        }
    }
}

/// A directory for disks.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pool {
    name: String,
    folder: String,
    available: u64,
}

fn pools(virsh: &Virsh) -> Result<Vec<Pool>, VirshError> {
    let names = virsh.ask(&["pool-list", "--name"])?;
    let pool = |name: &str| {
        let xml = virsh.ask(&["pool-dumpxml", name]).ok()?;
        let document = Document::parse(&xml).ok()?;
        let text = |tag: &str| document.descendants().find(|node| node.has_tag_name(tag))?.text().map(str::trim);
        let (folder, available) = (text("path")?, text("available")?.parse().ok()?);
        Some(Pool { name: name.into(), folder: folder.trim_end_matches('/').into(), available })
    };
    Ok(names.lines().map(str::trim).filter(|name| !name.is_empty()).filter_map(pool).collect())
}

/// Bytes that a disk takes at the source: its copy takes about as much.
fn allocated(virsh: &Virsh, domain: &str, disk: &str) -> Option<u64> {
    let said = virsh.ask(&["domblkinfo", domain, disk]).ok()?;
    said.lines().find_map(|line| line.strip_prefix("Allocation:"))?.trim().parse().ok()
}
