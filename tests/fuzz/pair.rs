//! Whatever two honest peers do, in whatever order and however the link cuts it, keeps all that [`Pair`] and its books
//! assert: every byte once and in order, nobody beyond a limit, one end for every stream, nothing left.
//!
//! The input is two configurations, a list of operations and how it all ends.

use arbitrary::{Arbitrary, Unstructured};
use virbistream::proto::{Config, MemoryBudget};

use crate::support::{Finale, Operation, play};

/// More say nothing new, and all the time that passes stays below the silence limit.
const MAX_OPERATIONS: usize = 400;

/// In milliseconds.
const MAX_ADVANCE: u16 = 5000;

#[derive(Arbitrary, Debug)]
struct Input {
    limits: [Limits; 2],
    finale: Finale,
    operations: Vec<Operation>,
}

/// Small, so that they are met.
#[derive(Arbitrary, Debug)]
struct Limits {
    max_data: u16,
    max_streams: u8,
    window: u16,
    windows: u8,
}

impl Limits {
    fn config(&self) -> Config {
        let window = 4096 + u64::from(self.window % 36_000);
        Config {
            max_data: 4096 + u32::from(self.max_data % 5000),
            max_streams: 1 + u32::from(self.max_streams % 4),
            window,
            window_max: 4 * window,
            memory_budget: MemoryBudget::new((1 + u64::from(self.windows % 7)) * window),
            silence_limit: std::time::Duration::from_secs(3600),
            ..Config::default()
        }
    }
}

pub(crate) fn run(data: &[u8]) {
    let Ok(mut input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    input.operations.truncate(MAX_OPERATIONS);
    for operation in &mut input.operations {
        if let Operation::Advance(time) = operation {
            *time %= MAX_ADVANCE;
        }
    }
    play([input.limits[0].config(), input.limits[1].config()], &input.operations, input.finale, false);
}
