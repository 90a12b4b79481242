//! What a fuzzer does to its seeds, without looking at what comes of it.

use crate::support::Random;

/// Longer ones say nothing new.
const MAX_LEN: usize = 4096;

/// Inputs made of seeds, the same ones each time.
pub(crate) struct Mutations<'a> {
    seeds: &'a [Vec<u8>],
    random: Random,
}

impl<'a> Mutations<'a> {
    pub(crate) fn new(seeds: &'a [Vec<u8>]) -> Self {
        Self { seeds, random: Random::new(1) }
    }

    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.random.pick(self.seeds).clone();
        for _ in 0..=self.random.below(8) {
            self.mutate(&mut input);
        }
        input.truncate(MAX_LEN);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.below(input.len() as u64 + 1) as usize;
        let to = at + random.below((input.len() - at) as u64 + 1) as usize;
        match random.below(7) {
            0 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            1 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = *random.pick(&[0, 1, 28, 0x7f, 0x80, 0xff])),
            2 => input.iter_mut().skip(at).take(4).for_each(|byte| *byte = random.word() as u8),
            3 => _ = input.drain(at..to),
            4 => {
                let copy = input[at..to].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                let fresh: Vec<u8> = (0..random.below(40)).map(|_| random.word() as u8).collect();
                input.splice(at..at, fresh);
            }
            _ => {
                let other = random.pick(self.seeds);
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len() as u64 + 1) as usize..]);
            }
        }
    }
}
