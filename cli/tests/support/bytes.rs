//! Bytes to send through a tunnel, and what tells whether they arrived.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

pub(crate) const MIB: u64 = 1024 * 1024;

/// A reproducible sequence of bytes that does not compress: SplitMix64 from a seed.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }

    pub(crate) fn bytes(mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}

/// Makes a file of `mib` MiB of noise.
#[track_caller]
pub(crate) fn noise_file(path: &Path, mib: u64, seed: u64) {
    let mut noise = Noise::new(seed);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).expect("a new file"));
    let mut chunk = vec![0; 64 * 1024];
    for _ in 0..mib * 16 {
        noise.fill(&mut chunk);
        file.write_all(&chunk).expect("room for the file");
    }
    file.flush().expect("room for the file");
}

/// Makes a file of `mib` MiB that is a hole but for islands of 64 KiB of noise, one in each 16 MiB,
/// none of them at a round address. Gives how many bytes they are together.
#[track_caller]
pub(crate) fn sparse_file(path: &Path, mib: u64, seed: u64) -> u64 {
    let mut noise = Noise::new(seed);
    let file = File::create(path).expect("a new file");
    file.set_len(mib * MIB).expect("a sparse file");
    let mut island = vec![0; 64 * 1024];
    let count = mib / 16;
    for number in 0..count {
        noise.fill(&mut island);
        let offset = number * 16 * MIB + (noise.next() % 200) * 64 * 1024;
        file.write_all_at(&island, offset).expect("room for an island");
    }
    count * island.len() as u64
}

/// Makes a file of `mib` MiB that is one hole.
#[track_caller]
pub(crate) fn empty_file(path: &Path, mib: u64) {
    let file = File::create(path).expect("a new file");
    file.set_len(mib * MIB).expect("a sparse file");
}

/// The bytes that the file takes on its disk.
#[track_caller]
pub(crate) fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the file").blocks() * 512
}

/// The SHA-256 of a file, in hexadecimal.
#[track_caller]
pub(crate) fn sha256(path: &Path) -> String {
    sha256_from(path, 0)
}

/// The same, of what comes after the first so many bytes.
pub(crate) fn sha256_from(path: &Path, offset: u64) -> String {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.seek(SeekFrom::Start(offset)).expect("a file");
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).expect("a readable file") {
            0 => break,
            read => hash.update(&chunk[..read]),
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
