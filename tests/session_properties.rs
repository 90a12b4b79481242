//! Whatever two honest peers do, and however the link carries it: every byte arrives once and in order, nobody goes beyond
//! a limit, and every stream ends once at both ends. What holds after each step is in [`Pair::assert_invariants`] and in
//! the books that the pair keeps of every packet.

#[path = "support/settings.rs"]
mod settings;
mod support;

use std::time::Duration;

use proptest::prelude::*;
use settings::settings;
use support::*;
use virbistream::proto::{Config, MemoryBudget};

fn end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Connecting), Just(End::Accepting)]
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let sink = prop_oneof![Just(Sink::Eager), Just(Sink::Half), Just(Sink::Lazy)];
    let little = prop_oneof![0u16..20, any::<u16>()];
    let pick = any::<u8>;
    prop_oneof![
        6 => (end(), 0u32..4).prop_map(|(end, priority)| O::Open(end, priority)),
        3 => (end(), pick(), prop::bool::weighted(0.7)).prop_map(|(end, pick, yes)| O::Answer(end, pick, yes)),
        12 => (end(), pick(), little.clone()).prop_map(|(end, pick, bytes)| O::Write(end, pick, bytes)),
        2 => (end(), pick(), little.clone()).prop_map(|(end, pick, bytes)| O::Packets(end, pick, bytes)),
        5 => (end(), pick()).prop_map(|(end, pick)| O::Finish(end, pick)),
        2 => (end(), pick()).prop_map(|(end, pick)| O::Reset(end, pick)),
        2 => (end(), pick()).prop_map(|(end, pick)| O::Stop(end, pick)),
        8 => (end(), pick(), little.clone()).prop_map(|(end, pick, bytes)| O::Consume(end, pick, bytes)),
        2 => (end(), sink).prop_map(|(end, sink)| O::Sinks(end, sink)),
        1 => (end(), any::<bool>()).prop_map(|(end, yes)| O::Accepts(end, yes)),
        4 => (end(), pick()).prop_map(|(end, room)| O::Control(end, room)),
        20 => (end(), 0u8..8).prop_map(|(end, packets)| O::Transmit(end, packets)),
        20 => (end(), little).prop_map(|(end, bytes)| O::Carry(end, bytes)),
        3 => (end(), 1u8..60).prop_map(|(end, piece)| O::CarryIn(end, piece)),
        3 => (0u16..5000).prop_map(O::Advance),
        1 => prop::bool::weighted(0.2).prop_flat_map(|_| end()).prop_map(O::Close),
        1 => (end(), prop::option::of(any::<u16>())).prop_map(|(end, rate)| O::ReceiveLimit(end, rate)),
    ]
}

fn finale() -> impl Strategy<Value = Finale> {
    prop_oneof![
        6 => end().prop_map(Finale::Agree),
        1 => end().prop_map(Finale::Shutdown),
        1 => Just(Finale::LinkLost),
        1 => Just(Finale::Silence),
    ]
}

/// Small limits, so that they are met; `rich` has memory for all streams that both sides may open.
fn config(rich: bool) -> impl Strategy<Value = Config> {
    let window = prop_oneof![Just(4096u64), Just(8192), 4096u64..40_000];
    (4096u32..9000, 1u32..5, window, 1u64..8).prop_map(move |(max_data, max_streams, window, windows)| Config {
        max_data,
        max_streams,
        window,
        window_max: 4 * window,
        memory_budget: MemoryBudget::new(if rich { 100 * window } else { windows * window }),
        silence_limit: Duration::from_secs(3600),
        ..Config::default()
    })
}

proptest! {
    #![proptest_config(settings(500))]

    #[test]
    fn whatever_two_peers_do_every_byte_arrives_once_and_every_stream_ends(
        configs in [config(false), config(false)],
        operations in prop::collection::vec(operation(), 0..200),
        finale in finale(),
    ) {
        play(configs, &operations, finale, false);
    }

    #[test]
    fn a_side_with_memory_enough_refuses_no_stream_of_a_peer_that_keeps_to_its_limit(
        configs in [config(true), config(true)],
        operations in prop::collection::vec(operation(), 0..200),
        end in end(),
    ) {
        play(configs, &operations, Finale::Agree(end), true);
    }

    #[test]
    fn hello_stands_and_the_rest_follows_in_whatever_pieces(
        config in config(true),
        pieces in prop::collection::vec((end(), 1usize..30), 1..60),
        operations in prop::collection::vec(operation(), 0..60),
    ) {
        let mut pair = Pair::new(config.clone(), config);
        for (end, piece) in &pieces {
            pair.transmit(*end, 1);
            pair.carry(*end, *piece);
            pair.assert_invariants();
        }
        for operation in &operations {
            perform(&mut pair, operation);
            pair.assert_invariants();
        }
        End::BOTH.iter().for_each(|end| pair.set_receive_limit(*end, None));
        pair.settle();
    }
}
