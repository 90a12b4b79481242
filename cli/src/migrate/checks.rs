//! What is looked at before a migration begins: all of it, in one list, and nothing is changed: libvirt looks again what is in its pools.

use std::io::Write;
use std::time::SystemTime;

use virbistream::wire::Escaped;

use super::args::MigrateArgs;
use super::domain::{Cpu, Domain, state_at};
use super::host::Host;
use super::outcome::Failure;
use super::progress::Said;
use super::storage::Storage;
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
    /// Nobody waits for an answer any more.
    is_over: bool,
}

impl<'a> List<'a> {
    pub(super) fn new(said: &'a Said) -> Self {
        Self { said, failed: Vec::new(), is_over: false }
    }

    /// Nothing may be begun when something failed.
    pub(super) fn result(&self) -> Result<(), Failure> {
        if self.failed.is_empty() { Ok(()) } else { Err(Failure::Checks(self.failed.join("; "))) }
    }

    /// What comes of a question that was cancelled is no finding: with it the list ends, and says nothing more.
    pub(super) fn heard<T>(&mut self, answer: Result<T, VirshError>) -> Result<T, VirshError> {
        self.is_over |= matches!(answer, Err(VirshError::Cancelled));
        answer
    }

    pub(super) fn ok(&mut self, what: &str, text: impl AsRef<str>) {
        self.say(what, "ok", text.as_ref());
    }

    pub(super) fn warn(&mut self, what: &str, text: impl AsRef<str>) {
        self.say(what, "warning", text.as_ref());
    }

    pub(super) fn fail(&mut self, what: &str, text: impl AsRef<str>) {
        if !self.is_over {
            self.failed.push(Escaped(text.as_ref()).to_string());
        }
        self.say(what, "failed", text.as_ref());
    }

    fn say(&self, what: &str, result: &str, text: &str) {
        if !self.is_over {
            self.said.check(what, result, text);
        }
    }

    /// The source's libvirtd, and the guest there.
    pub(super) fn source(&mut self, virsh: &Virsh, args: &MigrateArgs) -> Option<(Host, Domain)> {
        self.daemon("source", virsh)?;
        let host = match self.heard(Host::read(virsh)) {
            Ok(host) => host,
            Err(error) => {
                self.fail("source", format!("the source's libvirtd: {error}"));
                return None;
            }
        };
        let mut domain = match self.heard(Domain::read(virsh, &args.domain, args.libvirt.value("migrate-disks"))) {
            Ok(domain) => domain,
            Err(error) => {
                self.fail("guest", error.to_string());
                return None;
            }
        };
        match domain.is_running() {
            true => {
                self.ok("guest", format!("`{}` is {}", domain.name, domain.state));
                self.job(virsh, &domain.uuid);
            }
            false => {
                self.fail("guest", format!("`{}` is {}: only a running guest is moved", domain.name, domain.state))
            }
        }
        if let Some(path) = args.libvirt.value("xml") {
            match std::fs::read_to_string(path).map(|xml| domain.place_as_in(&xml)) {
                Ok(true) => {}
                Ok(false) => self.fail("XML", format!("the definition in {path} is not understood")),
                Err(error) => self.fail("XML", format!("cannot read {path}: {error}")),
            }
        }
        if args.libvirt.has("undefinesource") && !args.libvirt.has("persistent") {
            self.warn(
                "definition",
                "--undefinesource without --persistent: once it has moved, the guest is defined nowhere",
            );
        }
        Some((host, domain))
    }

    /// libvirt would let a migration wait for it, and who cancels that ends the other one.
    fn job(&mut self, virsh: &Virsh, uuid: &str) {
        match self.heard(virsh.ask(&["domjobinfo", uuid])) {
            Ok(said) => {
                let after = |words: &str| said.lines().find_map(|line| line.strip_prefix(words)).map(str::trim);
                if after("Job type:").is_some_and(|kind| kind != "None") {
                    let operation = after("Operation:").unwrap_or("libvirt does not say which");
                    self.fail("job", format!("a job is under way ({operation})"));
                }
            }
            Err(error) => self.fail("job", format!("whether a job is under way is not known: {error}")),
        }
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
        match valid(SystemTime::now(), certificates) {
            (true, text) => self.ok("certificates", text),
            (false, text) => self.warn("certificates", text),
        }
    }

    fn daemon(&mut self, what: &str, virsh: &Virsh) -> Option<()> {
        match self.heard(virsh.ask(&["version", "--daemon"])) {
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
        match self.heard(Host::read(destination)) {
            Ok(there) if there.uuid == source.uuid => self.fail("hosts", "source and destination are the same host"),
            Ok(_) => self.ok("hosts", "they are two"),
            Err(error) => self.warn("hosts", error.to_string()),
        }
    }

    fn name(&mut self, destination: &Virsh, name: &str, uuid: &str) {
        match self.heard(state_at(destination, uuid)) {
            Ok(Some(state)) if state == "shut off" => return self.defined(destination, name, uuid),
            Ok(Some(state)) => return self.fail("name", format!("the guest is {state} at the destination already")),
            Ok(None) => {}
            Err(error) => {
                return self.fail("name", format!("whether the guest is at the destination is not known: {error}"));
            }
        }
        match self.heard(destination.ask(&["list", "--all", "--name"])) {
            Ok(names) if names.lines().any(|other| other.trim() == name) => {
                self.fail("name", format!("another guest is named `{name}` at the destination"));
            }
            Ok(_) => self.ok("name", format!("`{name}` is free at the destination")),
            Err(error) => {
                self.fail("name", format!("whether `{name}` is free at the destination is not known: {error}"))
            }
        }
    }

    /// The same guest, shut off at the destination.
    fn defined(&mut self, destination: &Virsh, name: &str, uuid: &str) {
        match self.heard(destination.ask(&["domname", uuid])) {
            Ok(there) if there == name => {
                self.warn("name", "the guest is defined at the destination, too: libvirt replaces that");
            }
            Ok(there) => {
                self.fail("name", format!("the guest is defined at the destination as `{there}`: see --dname"))
            }
            Err(error) => {
                self.fail("name", format!("what the guest is named at the destination is not known: {error}"))
            }
        }
    }

    fn disks(&mut self, source: &Virsh, destination: &Virsh, domain: &Domain, args: &MigrateArgs) {
        if let Some(chosen) = args.libvirt.value("migrate-disks") {
            let is_there = |target: &&str| domain.disks.iter().any(|disk| disk.target == *target);
            if let Some(target) = chosen.split(',').find(|target| !is_there(target)) {
                return self.fail("disks", format!("the guest has no disk `{target}` that could be copied"));
            }
        }
        match domain.disks.is_empty() {
            true => self.fail("disks", "the guest has none that would be copied: virsh migrate moves it alone"),
            false => Storage::new(source, destination, domain, args).check(self),
        }
    }

    /// libvirt's own comparison, where a model is asked for.
    fn cpu(&mut self, destination: &Virsh, domain: &Domain) {
        let cpu = match &domain.cpu {
            Cpu::Any => return self.ok("CPU", "the guest asks for no model"),
            Cpu::Host(mode) => {
                let text = format!("libvirt cannot compare {mode}: both hosts need the same CPU");
                return self.warn("CPU", text);
            }
            Cpu::Model(cpu) => cpu,
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
        match self.heard(compared) {
            Ok(_) => self.ok("CPU", "the destination has what the guest asks for"),
            Err(VirshError::Failed(why)) if why.contains("incompatible") => self.fail("CPU", why),
            Err(error) => self.warn("CPU", format!("libvirt cannot compare it: {error}")),
        }
    }
}

/// Whether our certificate and the destination's are valid for long, in words too.
fn valid(now: SystemTime, ends: [SystemTime; 2]) -> (bool, String) {
    let [ours, theirs] = ends.map(|end| end.duration_since(now).unwrap_or_default().as_secs() / 86_400);
    let text = format!("ours is valid for {ours} more days, the destination's for {theirs}");
    (ours.min(theirs) >= DAYS, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_that_ends_soon_is_worth_a_word() {
        let now = SystemTime::now();
        for (days, is_long) in [([100, 14], true), ([10, 100], false), ([100, 10], false), ([0, 100], false)] {
            let (long, text) = valid(now, days.map(|days| now + Duration::from_secs(days * 86_400)));
            assert_eq!(long, is_long, "{text}");
            let [ours, theirs] = days;
            assert_eq!(text, format!("ours is valid for {ours} more days, the destination's for {theirs}"));
        }
    }
}
