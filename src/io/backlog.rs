//! Bytes that a handler could not take yet.

use std::collections::VecDeque;
use std::io::IoSlice;

/// The largest chunk: what a stalled stream may waste is at most this, and less while it holds less.
const CHUNK: usize = 16 * 1024;

/// A queue of bytes, copied out of the read buffer so that it holds nothing else.
///
/// Its length is bounded by the stream's window: the session ends a peer that sends more.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were taken already.
    taken: usize,
    len: usize,
    /// Zeroes that came as holes: how many bytes stand between each and what is before it, and its length.
    holes: VecDeque<(usize, u64)>,
    /// Bytes behind the last hole.
    behind: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0 && self.holes.is_empty()
    }

    /// Bytes that are held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Moves at most `max` bytes into the front of `out`; gives how many.
    pub(super) fn take(&mut self, out: &mut [u8], max: usize) -> usize {
        let mut taken = 0;
        while taken < out.len().min(max) {
            let mut slices = [IoSlice::new(&[])];
            if self.front(&mut slices) == 0 {
                break;
            }
            let now = slices[0].len().min(out.len().min(max) - taken);
            out[taken..taken + now].copy_from_slice(&slices[0][..now]);
            self.advance(now);
            taken += now;
        }
        taken
    }

    /// A hole, behind what came before.
    pub(super) fn push_hole(&mut self, length: u64) {
        self.holes.push_back((std::mem::take(&mut self.behind), length));
    }

    /// The hole that stands at the front.
    pub(super) fn front_hole(&self) -> Option<u64> {
        self.holes.front().filter(|(before, _)| *before == 0).map(|(_, length)| *length)
    }

    pub(super) fn pop_hole(&mut self) {
        self.holes.pop_front();
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        self.behind += bytes.len();
        while !bytes.is_empty() {
            let last = match self.chunks.back_mut() {
                Some(last) if last.len() < CHUNK => last,
                _ => {
                    self.chunks.push_back(Vec::new());
                    continue;
                }
            };
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - last.len()));
            let needed = last.len() + now.len();
            if needed > last.capacity() {
                // By doubling, as it would by itself, but never beyond a chunk.
                last.reserve_exact(needed.max(2 * last.capacity()).min(CHUNK) - last.len());
            }
            last.extend_from_slice(now);
            bytes = rest;
        }
    }

    /// The bytes from the front, up to a hole and as far as `slices` reaches; gives how many slices were set.
    pub(super) fn front<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut room = self.holes.front().map_or(self.len, |(before, _)| *before);
        let mut skip = self.taken;
        let mut set = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            let bytes = &chunk[skip..];
            let bytes = &bytes[..bytes.len().min(room)];
            if bytes.is_empty() {
                break;
            }
            *slice = IoSlice::new(bytes);
            room -= bytes.len();
            skip = 0;
            set += 1;
        }
        set
    }

    pub(super) fn advance(&mut self, bytes: usize) {
        self.len -= bytes;
        match self.holes.front_mut() {
            Some((before, _)) => *before -= bytes,
            None => self.behind -= bytes,
        }
        self.taken += bytes;
        while let Some(first) = self.chunks.front() {
            if self.taken < first.len() {
                return;
            }
            self.taken -= first.len();
            self.chunks.pop_front();
        }
        // Only an idle stream's memory is worth returning.
        self.chunks.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(backlog: &mut Backlog, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !backlog.is_empty() {
            let mut slices = [IoSlice::new(&[]); 4];
            let set = backlog.front(&mut slices);
            let bytes: Vec<u8> = slices[..set].iter().flat_map(|slice| slice.iter().copied()).take(step).collect();
            backlog.advance(bytes.len());
            out.extend(bytes);
        }
        out
    }

    #[test]
    fn bytes_come_out_as_they_went_in_whatever_the_pieces() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        for step in [1, 7, 4096, CHUNK, CHUNK + 1, 1 << 20] {
            for piece in [1, 1000, CHUNK, 50_000] {
                let mut backlog = Backlog::default();
                bytes.chunks(piece).for_each(|piece| backlog.push(piece));
                assert_eq!(drain(&mut backlog, step), bytes, "pieces of {piece}, steps of {step}");
            }
        }
    }

    #[test]
    fn holes_keep_their_place_among_the_bytes() {
        for step in [1, 3, CHUNK, 1 << 20] {
            let mut backlog = Backlog::default();
            backlog.push_hole(7);
            backlog.push(&[1; 20_000]);
            backlog.push_hole(8);
            backlog.push_hole(9);
            backlog.push(&[2; 5]);
            let mut seen = Vec::new();
            while !backlog.is_empty() {
                if let Some(length) = backlog.front_hole() {
                    backlog.pop_hole();
                    seen.push((true, length));
                    continue;
                }
                let mut slices = [IoSlice::new(&[]); 4];
                let set = backlog.front(&mut slices);
                let taken = slices[..set].iter().map(|slice| slice.len()).sum::<usize>().min(step);
                backlog.advance(taken);
                match seen.last_mut() {
                    Some((false, bytes)) => *bytes += taken as u64,
                    _ => seen.push((false, taken as u64)),
                }
            }
            assert_eq!(seen, [(true, 7), (false, 20_000), (true, 8), (true, 9), (false, 5)], "steps of {step}");
        }
    }

    #[test]
    fn packets_of_any_size_waste_less_than_a_chunk() {
        for piece in [1, 1000, 10_000, CHUNK - 1, CHUNK, CHUNK + 1, 65_483, 262_120] {
            let mut backlog = Backlog::default();
            while backlog.len < 1 << 20 {
                backlog.push(&vec![7; piece]);
            }
            let held: usize = backlog.chunks.iter().map(Vec::capacity).sum();
            assert!(held < backlog.len + CHUNK, "{held} bytes held for {} in pieces of {piece}", backlog.len);
        }
    }

    #[test]
    fn one_byte_packets_hold_their_bytes_and_a_small_overhead() {
        let mut backlog = Backlog::default();
        for _ in 0..1 << 20 {
            backlog.push(&[7]);
        }
        let held: usize = backlog.chunks.iter().map(Vec::capacity).sum();
        assert!(held <= (1 << 20) + CHUNK, "{held} bytes held for 1 MiB");
        let mut one = Backlog::default();
        one.push(&[7]);
        assert!(one.chunks[0].capacity() <= 64, "{} bytes held for 1", one.chunks[0].capacity());
    }
}
