//! What the session tests share: packets as a peer sees them, a scripted peer, and two sessions joined.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod ledger;
pub(crate) mod link;
mod packet;
mod pair;
mod play;
mod probe;
mod random;

use virbistream::proto::{Config, MemoryBudget, Side};
use virbistream::wire::{Open, RemoteError, domains};

pub(crate) use ledger::Ledger;
pub(crate) use packet::{Packet, raw, split};
pub(crate) use pair::{End, Ending, Flow, Pair, Sink};
pub(crate) use play::{Finale, Operation, perform, play};
pub(crate) use probe::{Probe, hello, hello_reply, number};
pub(crate) use random::Random;

pub(crate) const SIDES: [Side; 2] = [Side::Connecting, Side::Accepting];

/// As on a host that has no other sessions.
pub(crate) fn on_its_own(config: &Config) -> Config {
    Config { memory_budget: MemoryBudget::new(config.memory_budget.bytes()), ..config.clone() }
}

/// Small enough that every limit is soon met.
pub(crate) fn small() -> Config {
    Config {
        max_data: 4096,
        max_streams: 4,
        window: 8192,
        memory_budget: MemoryBudget::new(8 * 8192),
        max_idle_control: 100,
        ..Config::default()
    }
}

pub(crate) fn open(target: &str) -> Open {
    Open { target: target.into(), ..Open::default() }
}

pub(crate) fn error(code: i32, text: &str) -> RemoteError {
    RemoteError::new(code, domains::STREAMS, text)
}

/// The byte at an offset of one direction of a stream: `odd` says that the connecting side sends it.
pub(crate) fn byte(id: u32, odd: bool, offset: u64) -> u8 {
    let mixed = (offset ^ (u64::from(id) << 40) ^ (u64::from(odd) << 39)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}
