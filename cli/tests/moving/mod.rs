//! Two hosts between which a guest is moved by `virbistream migrate`, there and back.

#![allow(dead_code)] // each test program uses its own part of it

use crate::pki::{Authority, Wanted};
use crate::support::bytes::{MIB, Noise};
use crate::support::guest::{Guest, RING_MIB, assert_ring_is_whole, newest_in_ring};
use crate::support::host::Host;
use crate::support::process::{Process, Run};
use crate::support::{PATIENCE, Scratch, wait_for};
use rcgen::ExtendedKeyUsagePurpose;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(crate) const DISK_MIB: u64 = 64;

/// What serve has at the source; the other host may come.
const CONFIG: &str = r#"
listen = ["tls://[::]:16515"]
libvirt = "unix:/run/libvirt/libvirt-sock"
control = "/run/serve.sock"

[migration]
base = "/run/virbistream/migrations"
owner = "libvirt-qemu:kvm"
mode = "0770"

[[allow]]
dn = "*CN=source.example"
migrate = true

[[allow]]
dn = "*CN=destination.example"
migrate = true
"#;

/// How serve is run at the destination, word by word, but for the name that the certificates here have.
fn by_readme() -> String {
    let readme = include_str!("../../../README.md");
    let (_, behind) =
        readme.split_once("virbistream serve --listen tls://destination.example:16515").expect("a command");
    let options =
        behind.split("```").next().unwrap_or_default().replace("'O=Example,CN=source.example'", "'*CN=source.example'");
    format!("virbistream serve -v --listen tls://destination.example:16515{options}")
}

pub(crate) struct Moving {
    pub(crate) hosts: [Host; 2],
    serving: [Process; 2],
    _shared: Scratch,
    _guest: Guest,
}

impl Moving {
    /// Serve runs at both hosts, the guest `web` at the first.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (shared, guest) = (Scratch::new(), Guest::build());
        let hosts = Host::pair(&shared);
        fs::copy(env!("CARGO_BIN_EXE_virbistream"), shared.join("virbistream")).expect("copied");
        let authority = Authority::new("authority");
        for (host, name) in hosts.iter().zip(["source.example", "destination.example"]) {
            prepare(host, name, &authority, &shared, &guest);
        }
        let serving = [0, 1].map(|at| serve(&hosts, at));
        let this = Self { hosts, serving, _shared: shared, _guest: guest };
        this.boot();
        this
    }

    /// Where it was killed.
    #[track_caller]
    pub(crate) fn serve_again(&mut self, host: usize) {
        self.serving[host] = serve(&self.hosts, host);
    }

    fn boot(&self) {
        let source = &self.hosts[0];
        let mut rest = vec![0; ((DISK_MIB - RING_MIB) * MIB) as usize];
        Noise::new(3).fill(&mut rest);
        let raw = fs::File::create(source.image("web.raw")).expect("a new file");
        raw.set_len(DISK_MIB * MIB).expect("its length");
        raw.write_all_at(&rest, RING_MIB * MIB).expect("written");
        source.succeed("cd /var/lib/libvirt/images && qemu-img convert -O qcow2 web.raw web.qcow2");
        source.succeed(&format!("cat >web.xml <<'END OF FILE'\n{}\nEND OF FILE\nvirsh create web.xml", xml()));
        source.wait_for_records(20);
    }

    /// `virbistream migrate`, at a host, to the other one.
    pub(crate) fn migrate(&self, from: usize, options: &str) -> Run {
        let to = ["destination.example", "source.example"][from];
        self.hosts[from].run(&format!("exec virbistream migrate web tls://{to}:16515 {options}"))
    }

    /// Makes a virsh that hangs when it is asked what this pattern of a shell's fits, for commands at a host that begin with what is given.
    #[track_caller]
    pub(crate) fn hanging_virsh(&self, host: usize, pattern: &str) -> &'static str {
        self.hosts[host].succeed(&format!(
            "mkdir -p hanging; rm -f asked; cat >hanging/virsh <<'END OF FILE'
#!/bin/sh
case \"$*\" in {pattern}) echo >/root/asked; exec sleep infinity;; esac
exec /usr/bin/virsh \"$@\"
END OF FILE
             chmod +x hanging/virsh"
        ));
        "PATH=/root/hanging:$PATH"
    }

    /// Waits until it hangs.
    #[track_caller]
    pub(crate) fn wait_for_hanging_virsh(&self, host: usize) {
        let is_asked = || self.hosts[host].run("test -e asked").finish(PATIENCE).status.success();
        wait_for("virsh to hang", PATIENCE, || is_asked().then_some(()));
    }

    /// The guest runs there, writes on, and the other host has no guest.
    #[track_caller]
    pub(crate) fn assert_runs_at(&self, host: usize) {
        let left_at = newest_in_ring(&self.hosts[1 - host].image("web.raw"));
        self.hosts[host].wait_for_records(left_at + 20);
        assert_eq!(self.hosts[host].succeed("virsh domstate web").stdout.trim(), "running");
        self.hosts[1 - host].run("virsh domstate web").finish(PATIENCE).assert_failed_saying(&[]);
    }

    /// It goes on writing there, where it was, and the other host has none.
    #[track_caller]
    pub(crate) fn assert_runs_on(&self, host: usize) {
        self.assert_writes_on(host);
        self.hosts[1 - host].run("virsh domstate web").finish(PATIENCE).assert_failed_saying(&[]);
    }

    #[track_caller]
    pub(crate) fn assert_writes_on(&self, host: usize) {
        let at = newest_in_ring(&self.hosts[host].image("web.raw"));
        self.hosts[host].wait_for_records(at + 5);
        assert_eq!(self.hosts[host].succeed("virsh domstate web").stdout.trim(), "running");
    }

    /// Neither host has a directory of a migration left.
    #[track_caller]
    pub(crate) fn assert_nothing_is_left(&self) {
        for host in &self.hosts {
            let left = || host.succeed("ls -A /run/virbistream/migrations 2>/dev/null || true").stdout;
            wait_for("the directories to go", PATIENCE, || left().trim().is_empty().then_some(()));
        }
    }

    /// By the network's own count, so far: the TCP connections that each host began, and those that it took.
    #[track_caller]
    pub(crate) fn connections(&self) -> [[u64; 2]; 2] {
        self.hosts.each_ref().map(|host| {
            let said = host.succeed("grep ^Tcp: /proc/net/snmp").stdout;
            let mut lines = said.lines().map(|line| line.split(' '));
            let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
            let counts: BTreeMap<_, _> = names.zip(values).collect();
            ["ActiveOpens", "PassiveOpens"].map(|name| counts[name].parse().expect("a count"))
        })
    }

    /// The guest hears what is typed at its console there, and answers.
    #[track_caller]
    pub(crate) fn assert_answers_at(&self, host: usize, question: usize) {
        // QEMU hears a console while it is open, and looks each second.
        let ask =
            format!("echo 'ask {question}' >&3; timeout 60 grep --quiet --max-count=1 'vbs-answer {question}' <&3");
        self.hosts[host].succeed(&format!("exec 3<>$(virsh ttyconsole web) && {{ {ask}; }}"));
    }

    /// How many links serve has accepted at a host.
    pub(crate) fn links(&self, host: usize) -> usize {
        self.serving[host].stderr.count(|line| line.contains("link accepted"))
    }

    /// How many streams have carried memory to a host.
    pub(crate) fn memory_streams(&self, host: usize) -> usize {
        self.serving[host].stderr.count(|line| line.contains("/memory` done"))
    }

    /// Ends the guest, and looks at its disks at that host.
    #[track_caller]
    pub(crate) fn end(self, host: usize) {
        self.hosts[host]
            .succeed("virsh destroy web; cd /var/lib/libvirt/images && qemu-img convert -O raw web.qcow2 copy.raw");
        for (disk, image) in (0..).zip(["web.raw", "copy.raw"]) {
            let image = self.hosts[host].image(image);
            assert_ring_is_whole(&image, disk, newest_in_ring(&image));
            assert_rest_is_whole(&image);
        }
        self.serving.into_iter().for_each(Host::end);
    }
}

#[track_caller]
fn serve(hosts: &[Host; 2], at: usize) -> Process {
    let command = ["virbistream serve -v --config serve.toml".to_owned(), by_readme()];
    let process = hosts[at].run(&command[at]).start();
    process.ready();
    process
}

#[track_caller]
fn assert_rest_is_whole(image: &Path) {
    let mut rest = vec![0; ((DISK_MIB - RING_MIB) * MIB) as usize];
    Noise::new(3).fill(&mut rest);
    let found = fs::read(image).expect("the image").split_off((RING_MIB * MIB) as usize);
    assert!(found == rest, "{} has other bytes", image.display());
}

#[track_caller]
fn prepare(host: &Host, name: &str, authority: &Authority, shared: &Scratch, guest: &Guest) {
    let keys: PathBuf = shared.join("pki");
    fs::create_dir_all(&keys).expect("a directory");
    fs::write(keys.join("cacert.pem"), authority.pem()).expect("a new file");
    for (role, purpose) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        authority.sign(&Wanted { common_name: name, names: &[name], purpose, ..Wanted::default() }).write(&keys, role);
    }
    host.succeed(&format!(
        "install -m 755 /mnt/shared/virbistream /usr/bin/virbistream
         install -D -m 644 /mnt/shared/pki/cacert.pem /etc/pki/CA/cacert.pem
         for role in server client; do
           install -D -m 644 /mnt/shared/pki/${{role}}cert.pem /etc/pki/libvirt/${{role}}cert.pem
           install -D -m 600 /mnt/shared/pki/${{role}}key.pem /etc/pki/libvirt/private/${{role}}key.pem
         done
         cat >serve.toml <<'END OF FILE'\n{CONFIG}\nEND OF FILE
         virsh pool-create-as images dir --target /var/lib/libvirt/images"
    ));
    fs::copy(&guest.kernel, host.image("vmlinuz")).expect("copied");
    fs::copy(&guest.initrd, host.image("initrd")).expect("copied");
    fs::write(host.image("web.console"), "").expect("a new file");
    fs::set_permissions(host.image("web.console"), PermissionsExt::from_mode(0o666)).expect("a mode");
}

fn xml() -> String {
    let disk = |kind: &str, target: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{kind}'/>
             <source file='/var/lib/libvirt/images/web.{kind}'/><target dev='{target}' bus='virtio'/></disk>"
        )
    };
    format!(
        "<domain type='qemu'>
        <name>web</name><memory unit='MiB'>129</memory>
        <os>
          <type arch='x86_64' machine='pc'>hvm</type>
          <kernel>/var/lib/libvirt/images/vmlinuz</kernel><initrd>/var/lib/libvirt/images/initrd</initrd>
          <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr
            vbs.disks=2 vbs.rate=50 vbs.ram=50 vbs.pages=500 vbs.life=3600</cmdline>
        </os>
        <devices>
          <emulator>/usr/bin/qemu-system-x86_64</emulator>
          {}{}
          <controller type='usb' model='none'/>
          <serial type='pty'><log file='/var/lib/libvirt/images/web.console' append='on'/></serial>
          <memballoon model='none'/>
        </devices>
      </domain>",
        disk("raw", "vda"),
        disk("qcow2", "vdb")
    )
}
