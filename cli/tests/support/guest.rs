//! The guest of the migrations: Debian's kernel and one program (`guest/writer.c`), and what that
//! program leaves on its disks.

use super::bytes::Noise;
use super::process::Run;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const RECORD: usize = 4096;
const SLOTS: u64 = 4096;

/// The ring of records takes the first bytes of a disk.
pub(crate) const RING_MIB: u64 = RECORD as u64 * SLOTS / (1024 * 1024);

/// The modules that the cloud kernel needs for a virtio disk, each after those it stands on.
const MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];

/// What QEMU boots.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl Guest {
    /// Builds the guest, or finds it built: the kernel is fetched once and kept with the other
    /// files that tests keep under `target/`; the program is always compiled.
    #[track_caller]
    pub(crate) fn build() -> Self {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        std::fs::create_dir_all(&cache).expect("a directory for the guest");
        let lock = File::create(cache.join("lock")).expect("a lock file");
        lock.lock().expect("the lock"); // it ends with the file
        let kernel = cache.join("vmlinuz");
        if !kernel.exists() {
            fetch_kernel(&cache);
        }
        let (init, initrd) = (cache.join("init"), cache.join("initrd"));
        Run::new("gcc", "gcc")
            .args(["-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&init)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/writer.c"))
            .succeed(Duration::from_secs(60));
        // A QEMU that is about to boot must not see half a file.
        let unfinished = cache.join("initrd.new");
        std::fs::write(&unfinished, initramfs(&cache, &init)).expect("an initial file system");
        std::fs::rename(&unfinished, &initrd).expect("an initial file system");
        Self { kernel, initrd }
    }
}

/// Takes the kernel and its virtio modules out of Debian's package, without installing it.
#[track_caller]
fn fetch_kernel(cache: &Path) {
    let fetched = tempfile::tempdir_in(cache).expect("a temporary directory");
    let script = r#"
        set -eu
        cd "$1"
        package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image.*\)/\1/p')
        apt-get -q download $package
        dpkg-deb -x linux-image-*.deb .
        for module in $2; do find . -name $module.ko -exec mv {} .. \; ; done
        mv boot/vmlinuz-* ../vmlinuz
    "#;
    let finished = Run::new("sh", "dash")
        .named("the script that fetches the guest's kernel")
        .args(["-c", script, "sh"])
        .arg(fetched.path())
        .arg(MODULES.join(" "))
        .finish(Duration::from_secs(300));
    assert!(finished.status.success(), "{finished}\nIs apt-get up to date? Then: apt-get update");
}

/// An archive in cpio's "newc" format with what the guest needs: a console, the program, modules.
#[track_caller]
fn initramfs(cache: &Path, init: &Path) -> Vec<u8> {
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut archive = Archive::default();
    archive.entry("dev", 0o040_755, 0, &[]);
    archive.entry("dev/console", 0o020_600, 5 << 8 | 1, &[]);
    archive.entry("init", 0o100_755, 0, &read(init));
    archive.entry("modules", 0o040_755, 0, &[]);
    let mut list = String::new();
    for module in MODULES {
        let file = format!("{module}.ko");
        archive.entry(&format!("modules/{file}"), 0o100_644, 0, &read(&cache.join(&file)));
        list += &file;
        list += "\n";
    }
    archive.entry("modules/list", 0o100_644, 0, list.as_bytes());
    archive.entry("TRAILER!!!", 0, 0, &[]);
    archive.0
}

#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    /// `device` is its major and minor number, in one byte each.
    fn entry(&mut self, name: &str, mode: u32, device: u32, content: &[u8]) {
        let inode = u32::try_from(self.0.len()).expect("a small archive");
        let length = u32::try_from(content.len()).expect("a small file");
        let name_length = u32::try_from(name.len()).expect("a short name") + 1;
        let (major, minor) = (device >> 8, device & 0xff);
        let fields = [inode, mode, 0, 0, 1, 0, length, 0, 0, major, minor, name_length, 0];
        self.0.extend(b"070701");
        for field in fields {
            write!(self.0, "{field:08x}").expect("a Vec takes all");
        }
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// What the guest said of itself on its console: the last record on each disk, errors, and how
/// often it went through its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) records: Vec<i64>,
    pub(crate) errors: u64,
    pub(crate) laps: u64,
}

impl State {
    /// The state in a line of the console that begins with `word`.
    pub(crate) fn parse(word: &str, line: &str) -> Option<Self> {
        let mut state = Self { records: Vec::new(), errors: 0, laps: 0 };
        for field in line.trim().strip_prefix(word)?.split_whitespace() {
            let (name, value) = field.split_once('=')?;
            match name {
                "errors" => state.errors = value.parse().ok()?,
                "laps" => state.laps = value.parse().ok()?,
                _ => state.records.push(value.parse().ok()?),
            }
        }
        Some(state)
    }
}

/// Makes the record as the guest does.
fn record(disk: u64, number: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(b"VBSRING1");
    record[8..16].copy_from_slice(&number.to_le_bytes());
    record[16..24].copy_from_slice(&disk.to_le_bytes());
    Noise::new(number * 0x100 + disk).fill(&mut record[32..]);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (index, word) in record.chunks_exact(8).enumerate() {
        if index != 3 {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        }
    }
    record[24..32].copy_from_slice(&hash.to_le_bytes());
    record
}

/// Fails the test unless the ring in a raw image holds, whole, the record `last` and all before
/// it that were not overwritten, and nothing newer.
#[track_caller]
pub(crate) fn assert_ring_is_whole(image: &Path, disk: u64, last: i64) {
    let last = u64::try_from(last).expect("a guest that wrote records");
    let file = File::open(image).expect("the image");
    let mut found = [0; RECORD];
    for slot in 0..SLOTS {
        file.read_exact_at(&mut found, slot * RECORD as u64).expect("an image that has a ring");
        let turn = last / SLOTS * SLOTS + slot;
        let number = if turn <= last { Some(turn) } else { turn.checked_sub(SLOTS) };
        let wanted = number.map_or([0; RECORD], |number| record(disk, number));
        assert!(
            found == wanted,
            "disk {disk}, slot {slot}: not record {number:?}, but {:02x?}; the last is {last}",
            &found[..32]
        );
    }
}

/// The newest record in the ring of a raw image, of a guest that had no time to say which it wrote last.
#[track_caller]
pub(crate) fn newest_in_ring(image: &Path) -> i64 {
    let file = File::open(image).expect("the image");
    let mut head = [0; 16];
    let numbers = (0..SLOTS).filter_map(|slot| {
        file.read_exact_at(&mut head, slot * RECORD as u64).expect("an image that has a ring");
        let number = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        (&head[..8] == b"VBSRING1").then_some(number)
    });
    numbers.max().and_then(|number| i64::try_from(number).ok()).expect("a guest that wrote records")
}
