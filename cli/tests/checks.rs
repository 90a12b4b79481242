//! What `virbistream migrate` finds before it begins: all that speaks against it, and nothing that libvirt would do.

mod moving;
#[allow(dead_code, reason = "certificates for the loopback are others'")]
#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use moving::Moving;
use rustix::process::Signal;
use support::host::Host;
use support::process::Finished;
use support::{PATIENCE, alone, wait_for};

/// Commands that make guests: `guest NAME` with the elements behind it, `disk TYPE SOURCE [FORMAT [MORE]]` for one of them, `begin` to have
/// it run, but not go.
const GUESTS: &str = r#"
images=/var/lib/libvirt/images
guest() { name=$1; shift; echo "<domain type='qemu'><name>$name</name><memory>65536</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>$CPU
  <devices>$*</devices></domain>" >"/tmp/$name.xml"; }
disk() { echo "<disk type='$1' device='${DEVICE:-disk}'><driver name='qemu' type='${3:-raw}'/><source $2/><target dev='${TARGET:-vda}' bus='${BUS:-virtio}'/></disk>"; }
file() { disk file "file='$1'" "${2:-raw}"; }
begin() { virsh create --paused "/tmp/$1.xml"; }
CPU=
"#;

struct Checking(Moving);

impl Checking {
    fn source(&self, script: &str) -> Finished {
        self.0.hosts[0].succeed(&format!("{GUESTS}{script}"))
    }

    fn destination(&self, script: &str) -> Finished {
        self.0.hosts[1].succeed(&format!("{GUESTS}{script}"))
    }

    fn migrate(&self, guest: &str, options: &str) -> Finished {
        let command = format!("exec virbistream migrate {options} -- {guest} tls://destination.example:16515");
        self.0.hosts[0].run(&command).finish(6 * PATIENCE)
    }

    /// The checks say all that, each in a line, and the last word is theirs.
    #[track_caller]
    fn fails(&self, guest: &str, options: &str, lines: &[&str]) {
        let finished = self.migrate(guest, &format!("--dry-run {options}"));
        assert_eq!(finished.status.code(), Some(3), "{guest}: {finished}");
        assert_said(&finished, lines);
    }

    #[track_caller]
    fn passes(&self, guest: &str, options: &str, lines: &[&str]) {
        let finished = self.migrate(guest, &format!("--dry-run {options}"));
        assert!(finished.status.success(), "{guest}: {finished}");
        assert_said(&finished, lines);
    }

    /// libvirt does it, too.
    #[track_caller]
    fn moves(&self, guest: &str, options: &str, lines: &[&str]) {
        let finished = self.migrate(guest, options);
        assert!(finished.status.success(), "{guest}: {finished}");
        assert_said(&finished, lines);
        self.destination(&format!("virsh destroy '{guest}'"));
    }
}

#[track_caller]
fn assert_said(finished: &Finished, lines: &[&str]) {
    for line in lines {
        let (result, words) = line.split_once(' ').expect("a result and words");
        let is_it = |line: &str| line.starts_with(result) && line.contains(words.trim());
        assert!(finished.stdout.lines().any(is_it), "`{line}` is not said: {finished}");
    }
}

#[test]
fn who_is_in_the_way_is_named_before_anything_begins() {
    let _alone = alone();
    let checking = Checking(Moving::start());
    // A job of somebody else's, which goes on.
    checking.source(
        "chmod 777 $images
         echo \"<domainbackup mode='pull'><server transport='unix' socket='$images/b.sock'/></domainbackup>\" >backup.xml
         virsh backup-begin web backup.xml",
    );
    checking.fails("web", "", &["failed job: a job is under way (Backup)"]);
    assert!(checking.source("virsh domjobinfo web").stdout.contains("Backup"));
    checking.source("virsh domjobabort web");
    wait_for("the backup to end", PATIENCE, || {
        checking.source("virsh domjobinfo web").stdout.contains("None").then_some(())
    });

    names(&checking);
    cpus(&checking);
    cancelled(&checking);
    checking.0.assert_nothing_is_left();
    checking.0.end(0);
}

fn names(checking: &Checking) {
    checking.destination("guest web; virsh define /tmp/web.xml");
    checking.fails("web", "", &["failed another guest is named `web` at the destination"]);
    checking.passes("web", "--dname other", &["ok name: `other` is free"]);
    checking.destination("virsh undefine web");

    let uuid = checking.source("virsh domuuid web").stdout.trim().to_owned();
    let same = format!("guest web; sed -i 's,<memory>,<uuid>{uuid}</uuid>&,' /tmp/web.xml");
    checking.destination(&format!("{same}; virsh define /tmp/web.xml"));
    checking.passes("web", "--undefinesource", &["warning name: the guest is defined", "warning defined nowhere"]);
    checking.fails("web", "--dname other", &["failed name: the guest is defined at the destination as `web`"]);
    checking.destination("virsh start --paused web");
    checking.fails("web", "", &["failed name: the guest is paused at the destination already"]);
    checking.destination("virsh destroy web; virsh undefine web");
    checking.passes("web", "--undefinesource --persistent", &["ok name"]);

    checking.source("truncate -s 1M $images/dash.raw; guest -dash \"$(file $images/dash.raw)\"; begin -dash");
    checking.passes("-dash", "", &["ok guest: `-dash` is paused", "ok name: `-dash` is free"]);
    checking.fails("--help", "", &["failed guest: failed to get domain '--help'"]);
    checking.source("virsh destroy --domain -dash");
}

fn cpus(checking: &Checking) {
    let disk = "truncate -s 1M $images/cpu.raw; guest cpu \"$(file $images/cpu.raw)\"; begin cpu";
    let model = "<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>EPYC-Milan</model></cpu>";
    checking.source(&format!("CPU=\"{model}\"; {disk}"));
    checking.fails("cpu", "", &["failed CPU: the CPU is incompatible"]);
    checking.source(&format!("virsh destroy cpu; CPU=\"<cpu mode='maximum'/>\"; {disk}"));
    checking.passes("cpu", "", &["warning CPU: libvirt cannot compare maximum: both hosts need the same CPU"]);
    checking.source("virsh destroy cpu");
}

/// A question that hangs is cancelled, and nothing is said to have failed.
fn cancelled(checking: &Checking) {
    let source = &checking.0.hosts[0];
    for hanging in ["*domjobinfo*", "*pool-list*"] {
        let hanging = checking.0.hanging_virsh(0, hanging);
        let migrate = "exec virbistream migrate web tls://destination.example:16515 --dry-run";
        let running = source.run(&format!("{hanging} {migrate}")).start();
        checking.0.wait_for_hanging_virsh(0);
        Host::signal(&running, Signal::INT);
        let finished = running.finish(PATIENCE);
        assert_eq!(finished.status.code(), Some(6), "{finished}");
        assert!(!finished.stdout.contains("failed") && !finished.stdout.contains("cancelled"), "{finished}");
    }
}

#[test]
fn what_becomes_of_each_disk_is_said_as_libvirt_does_it() {
    let _alone = alone();
    let checking = Checking(Moving::start());
    elsewhere(&checking);
    made_by_hand(&checking);
    room(&checking);
    others(&checking);
    checking.0.assert_nothing_is_left();
    checking.0.end(0);
}

/// `--xml`, and volumes of pools.
fn elsewhere(checking: &Checking) {
    checking.destination(
        "virsh pool-destroy images; mkdir -m 777 /var/lib/libvirt/other
         virsh pool-create-as other dir --target /var/lib/libvirt/other",
    );
    checking.source(
        "truncate -s 1M $images/small.raw $images/volume.raw; virsh pool-refresh images
         guest small \"$(file $images/small.raw)\"; begin small
         guest volume \"$(disk volume \"pool='images' volume='volume.raw'\")\"; begin volume
         virsh dumpxml --migratable small | sed s,/images/,/other/, >other.xml",
    );
    checking.fails(
        "small",
        "",
        &["failed disk vda: /var/lib/libvirt/images/small.raw is in the directory of no storage pool"],
    );
    checking.fails("small", "--xml nowhere.xml", &["failed XML: cannot read nowhere.xml"]);
    checking.moves(
        "small",
        "--xml other.xml",
        &["ok disk vda: /var/lib/libvirt/other/small.raw will be made in the pool `other`"],
    );
    checking.fails("volume", "", &["failed disk vda: the destination has no storage pool `images`"]);
    checking.destination("virsh pool-create-as images dir --target /var/lib/libvirt/images");
    checking.moves(
        "volume",
        "",
        &["ok disk vda: /var/lib/libvirt/images/volume.raw will be made in the pool `images`"],
    );
    checking.source("virsh pool-refresh images; guest volume \"$(disk volume \"pool='images' volume='volume.raw'\")\"; begin volume");
    checking.passes(
        "volume",
        "",
        &["warning disk vda: /var/lib/libvirt/images/volume.raw is at the destination already"],
    );
    checking.source("virsh destroy volume");
}

/// Disks that libvirt does not make.
fn made_by_hand(checking: &Checking) {
    let make = "mkdir -p /data; chmod 777 /data; truncate -s 1M /data/pre.raw; chmod 666 /data/pre.raw";
    let begin = "guest pre \"$(file /data/pre.raw)\"; begin pre";
    checking.source(&format!("{make}; {begin}"));
    checking.fails("pre", "", &["failed disk vda: /data/pre.raw is in the directory of no storage pool"]);
    checking.destination(make);
    checking.moves(
        "pre",
        "--precreated",
        &["warning disk vda: /data/pre.raw is at the destination already, and is written over"],
    );
    checking.source(
        "truncate -s 1M $images/inc.raw /data/floppy.raw
         guest inc \"$(file $images/inc.raw)$(DEVICE=floppy BUS=fdc TARGET=fda file /data/floppy.raw)\"; begin inc",
    );
    checking.fails(
        "inc",
        "--copy-storage-inc",
        &[
            "failed disk vda: /var/lib/libvirt/images/inc.raw is not at the destination",
            "failed disk fda: /data/floppy.raw is in the directory of no storage pool",
        ],
    );
    checking.source("virsh destroy inc");
    let network = "guest net \"<disk type='network' device='disk'><driver name='qemu' type='raw'/>
        <source protocol='nbd' name='x'><host transport='unix' socket='/tmp/nbd.sock'/></source><target dev='vda' bus='virtio'/></disk>\"";
    checking.source(&format!(
        "truncate -s 1M net.raw; qemu-nbd --fork --persistent --shared=5 -f raw -x x -k /tmp/nbd.sock net.raw; chmod 777 /tmp/nbd.sock
         {network}; begin net"
    ));
    checking.fails("net", "", &["failed disk vda: it is on the network"]);
    checking.source("virsh destroy net; pkill -x qemu-nbd");
}

fn room(checking: &Checking) {
    checking.source(
        "truncate -s 2G $images/sparse.raw; qemu-img create -q -f qcow2 $images/base.qcow2 2G
         qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $images/top.qcow2; qemu-img create -q -f qcow2 $images/flat.qcow2 2G
         guest sparse \"$(file $images/sparse.raw)\"; begin sparse
         guest layered \"$(file $images/top.qcow2 qcow2)\"; begin layered
         guest flat \"$(file $images/flat.qcow2 qcow2)\"; begin flat",
    );
    // Nobody tells libvirt that it is another file system now.
    checking.destination("mount -t tmpfs -o size=1g tmpfs $images");
    checking.fails("sparse", "", &["failed pool images: 2147483648 bytes are needed at the destination"]);
    checking.passes("layered", "", &["warning pool images: "]);
    checking.passes("flat", "", &["ok pool images: "]);
    let source = &checking.0.hosts[0];
    source.succeed(
        "mkdir -p deaf; cat >deaf/virsh <<'END OF FILE'
#!/bin/sh
case \"$*\" in *domblkinfo*) echo 'error: no' >&2; exit 1;; esac
exec /usr/bin/virsh \"$@\"
END OF FILE
         chmod +x deaf/virsh",
    );
    let deaf =
        source.run("PATH=/root/deaf:$PATH exec virbistream migrate flat tls://destination.example:16515 --dry-run");
    let deaf = deaf.finish(6 * PATIENCE);
    assert_said(
        &deaf,
        &["warning disk vda: how much room it takes is unknown", "warning pool images: how much is needed is unknown"],
    );
    checking.destination("umount $images");
    checking.source("for guest in sparse layered flat; do virsh destroy $guest; done");
}

/// Files that are there: nobody's, or another guest's, which does not run.
fn others(checking: &Checking) {
    checking.destination("echo precious >$images/web.raw");
    checking.passes("web", "", &["warning disk vda: /var/lib/libvirt/images/web.raw is at the destination already"]);
    checking.destination("guest another \"$(file $images/web.raw)\"; virsh define /tmp/another.xml");
    checking.fails("web", "", &["failed disk vda: /var/lib/libvirt/images/web.raw is a disk of the guest `another`"]);
    checking.destination("virsh undefine another; guest another \"$(disk volume \"pool='images' volume='web.raw'\")\"; virsh define /tmp/another.xml");
    checking.fails("web", "", &["failed disk vda: /var/lib/libvirt/images/web.raw is a disk of the guest `another`"]);
    checking.destination("virsh undefine another; rm $images/web.raw");
}
