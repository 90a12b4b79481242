//! The demo's disk images: sparse files without a name, so that nothing of them outlives the process, however it ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::noise::Noise;

const BLOCK: usize = 1 << 20;
/// Runs of data and holes end on a multiple of this, as a guest's file system would have it.
const PAGE: u64 = 4096;
/// The longest run, in pages.
const LONGEST_RUN: u64 = 1024;

/// What a run of an image consists of.
#[derive(Debug, Clone, Copy)]
enum Run {
    Data,
    Hole,
    /// Zeroes that were written, and so take up space.
    Zeroes,
}

impl Run {
    /// About half of an image is data.
    fn pick(noise: &mut Noise) -> Run {
        match noise.next() % 16 {
            0..8 => Run::Data,
            8 => Run::Zeroes,
            _ => Run::Hole,
        }
    }
}

/// A sparse file of `size` bytes and nothing but a hole.
pub(crate) fn empty(dir: &Path, size: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(dir)?;
    file.set_len(size)?;
    Ok(file)
}

/// A sparse file of `size` bytes with data in about half of it; `progress` hears how many bytes came next.
pub(crate) fn generate(dir: &Path, size: u64, seed: u64, progress: impl Fn(u64)) -> io::Result<File> {
    let file = empty(dir, size)?;
    let mut noise = Noise::new(seed);
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while at < size {
        let run = Run::pick(&mut noise);
        let end = size.min(at + (1 + noise.next() % LONGEST_RUN) * PAGE);
        while at < end {
            let bytes = &mut block[..(end - at).min(BLOCK as u64) as usize];
            match run {
                Run::Data => noise.fill(bytes),
                Run::Hole | Run::Zeroes => bytes.fill(0),
            }
            if !matches!(run, Run::Hole) {
                file.write_all_at(bytes, at)?;
            }
            at += bytes.len() as u64;
            progress(bytes.len() as u64);
        }
    }
    Ok(file)
}

/// How many bytes of the disk a file takes up.
pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * 512)
}

/// Where two images part; None when every byte is the same and neither is longer.
pub(crate) fn first_difference(one: &File, other: &File, progress: impl Fn(u64)) -> io::Result<Option<u64>> {
    let (size, others) = (one.metadata()?.len(), other.metadata()?.len());
    let common = size.min(others);
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    while at < common {
        let length = (common - at).min(BLOCK as u64) as usize;
        let (left, right) = (&mut left[..length], &mut right[..length]);
        one.read_exact_at(left, at)?;
        other.read_exact_at(right, at)?;
        if left != right {
            let same = left.iter().zip(right.iter()).take_while(|(a, b)| a == b).count();
            return Ok(Some(at + same as u64));
        }
        at += length as u64;
        progress(length as u64);
    }
    Ok((size != others).then_some(common))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 24 << 20;

    fn generated(seed: u64) -> File {
        generate(&std::env::temp_dir(), SIZE, seed, |_| {}).expect("an image can be written")
    }

    #[test]
    fn an_image_is_sparse_and_about_half_data() {
        let file = generated(1);
        assert_eq!(file.metadata().expect("metadata").len(), SIZE);
        let allocated = allocated(&file).expect("metadata");
        assert!((SIZE / 4..SIZE * 3 / 4).contains(&allocated), "{allocated} of {SIZE} bytes are allocated");
    }

    #[test]
    fn the_same_seed_gives_the_same_image() {
        assert_eq!(first_difference(&generated(7), &generated(7), |_| {}).expect("readable"), None);
        assert!(first_difference(&generated(7), &generated(8), |_| {}).expect("readable").is_some());
    }

    #[test]
    fn one_changed_byte_is_found_where_it_is() {
        let (one, other) = (generated(3), generated(3));
        let place = SIZE - 5;
        let mut byte = [0];
        other.read_exact_at(&mut byte, place).expect("readable");
        other.write_all_at(&[byte[0] ^ 1], place).expect("writable");
        assert_eq!(first_difference(&one, &other, |_| {}).expect("readable"), Some(place));
    }

    #[test]
    fn a_longer_image_differs_where_the_shorter_ends() {
        let (one, other) = (generated(3), generated(3));
        other.set_len(SIZE + 1).expect("a file can grow");
        assert_eq!(first_difference(&one, &other, |_| {}).expect("readable"), Some(SIZE));
    }
}
