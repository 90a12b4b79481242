//! Whatever two honest peers do, and however the link carries it: every byte arrives once and in order, nobody goes beyond
//! a limit, and every stream ends once at both ends. What holds after each step is in [`Pair::assert_invariants`] and in
//! the books that the pair keeps of every packet.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use support::*;
use virbistream::proto::{Config, MemoryBudget, StreamError};
use virbistream::wire::{Open, Rule, codes};

#[derive(Clone, Debug)]
enum Operation {
    Open(End, u32),
    /// Accept or refuse one that was asked for.
    Answer(End, u8, bool),
    Write(End, u8, u16),
    /// How many bytes at most go into a packet.
    Packets(End, u8, u16),
    Finish(End, u8),
    Reset(End, u8),
    Stop(End, u8),
    Consume(End, u8, u16),
    /// How streams of later take what comes.
    Sinks(End, Sink),
    /// Whether streams of later are accepted at once.
    Accepts(End, bool),
    /// Control packets into little room.
    Control(End, u8),
    Transmit(End, u8),
    Carry(End, u16),
    /// Everything on the link, in pieces of so many bytes.
    CarryIn(End, u8),
    Advance(u16),
    Close(End),
}

/// How it all ends.
#[derive(Clone, Copy, Debug)]
enum Finale {
    /// All that is open is let finish, then one side closes.
    Agree(End),
    Shutdown(End),
    LinkLost,
    Silence,
}

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

fn pick(pair: &Pair, end: End, pick: u8) -> Option<u32> {
    let flows = &pair.at(end).flows;
    let living: Vec<u32> = flows.iter().filter(|(_, flow)| flow.ending.is_none()).map(|(id, _)| *id).collect();
    living.get(usize::from(pick) % living.len().max(1)).copied()
}

fn perform(pair: &mut Pair, operation: &Operation) {
    use Operation as O;
    let picked = |pair: &Pair, end: &End, n: &u8| pick(pair, *end, *n);
    match operation {
        O::Open(end, priority) => _ = pair.open(*end, Open { priority: *priority, ..open("vda") }),
        O::Answer(end, n, yes) => {
            if let Some(id) = picked(pair, end, n) {
                if *yes { pair.accept(*end, id) } else { pair.refuse(*end, id) }
            }
        }
        O::Write(end, n, bytes) => _ = picked(pair, end, n).map(|id| pair.write(*end, id, u64::from(*bytes))),
        O::Packets(end, n, bytes) => {
            if let Some(id) = picked(pair, end, n) {
                pair.at_mut(*end).flows.get_mut(&id).unwrap().packet = usize::from(*bytes).max(1);
            }
        }
        O::Finish(end, n) => _ = picked(pair, end, n).map(|id| pair.finish(*end, id)),
        O::Reset(end, n) => _ = picked(pair, end, n).map(|id| pair.reset(*end, id)),
        O::Stop(end, n) => _ = picked(pair, end, n).map(|id| pair.stop(*end, id)),
        O::Consume(end, n, bytes) => _ = picked(pair, end, n).map(|id| pair.consume(*end, id, u64::from(*bytes))),
        O::Sinks(end, sink) => pair.at_mut(*end).sink = *sink,
        O::Accepts(end, yes) => pair.at_mut(*end).accepts = *yes,
        O::Control(end, room) => _ = pair.transmit_control(*end, usize::from(*room)),
        O::Transmit(end, packets) => _ = pair.transmit(*end, usize::from(*packets)),
        O::Carry(end, bytes) => _ = pair.carry(*end, usize::from(*bytes)),
        O::CarryIn(end, piece) => while pair.carry(*end, usize::from(*piece)) > 0 {},
        O::Advance(time) => pair.advance(Duration::from_millis(u64::from(*time))),
        O::Close(end) => pair.close(*end),
    }
}

/// Every source ends, every sink takes all, every question is answered.
fn let_finish(pair: &mut Pair) {
    for end in End::BOTH {
        pair.at_mut(end).accepts = true;
    }
    loop {
        for end in End::BOTH {
            let ids: Vec<u32> = pair.at(end).flows.keys().copied().collect();
            for id in ids {
                pair.at_mut(end).flows.get_mut(&id).unwrap().sink = Sink::Eager;
                pair.accept(end, id);
                pair.consume(end, id, u64::MAX);
                pair.finish(end, id);
            }
        }
        pair.settle();
        let waits = |flow: &Flow| flow.ending.is_none() && flow.open && (!flow.ended || flow.consumed < flow.given);
        if !End::BOTH.iter().any(|end| pair.at(*end).flows.values().any(|flow| waits(flow) && !flow.stopped)) {
            return;
        }
    }
}

/// After CLOSE 0 a side without streams has gone; the other one's question, if it crossed, is never answered, and it
/// finds the link ended.
fn link_ends(pair: &mut Pair) {
    for end in End::BOTH {
        if pair.at(end).closed == Some(Ok(())) && pair.at(end.other()).closed.is_none() {
            let unanswered =
                |flow: &Flow| flow.ending.is_some() || (end.other().opened(flow.id.number()) && !flow.open);
            assert!(pair.at(end.other()).flows.values().all(unanswered));
            assert!(pair.at(end.other()).session.stream_count() > 0);
            pair.end_link(end.other());
        }
    }
}

fn assert_no_leftovers(pair: &mut Pair) {
    for end in End::BOTH {
        let at = pair.at_mut(end);
        assert_eq!((at.session.stream_count(), at.session.granted()), (0, 0));
        assert!(!at.session.wants_to_send());
        assert!(at.flows.values().all(|flow| flow.ending.is_some()), "every stream has had its end");
    }
}

/// Nothing fails of itself.
fn assert_failures_have_causes(pair: &Pair, rich: bool) {
    for end in End::BOTH {
        for (id, flow) in &pair.at(end).flows {
            let Some(Ending::Failed(error, _)) = &flow.ending else { continue };
            let peers = pair.at(end.other()).flows.get(id).and_then(|flow| flow.ending.as_ref());
            let timed_out = matches!(peers, Some(Ending::Failed(StreamError::OpenTimeout(_), _)));
            let why = match error {
                StreamError::Refused(why) | StreamError::Reset(why) => why,
                StreamError::OpenTimeout(_) => continue,
                StreamError::Closing if !flow.open => continue,
                other => panic!("{other:?}"),
            };
            match why.code {
                codes::OPERATION_TIMEOUT => assert!(timed_out),
                codes::OPERATION_INVALID => assert_eq!(why.int2, Rule::Closing.number() as i32),
                // An opener that counts well is refused for want of memory, never for too many streams.
                codes::RESOURCE_BUSY => assert!(peers.is_none() && !rich),
                _ => assert_eq!(peers, Some(&Ending::Dismissed)),
            }
        }
    }
}

fn finish_all(pair: &mut Pair, finale: Finale, rich: bool) {
    match finale {
        Finale::Agree(end) => {
            let_finish(pair);
            let closing = End::BOTH.iter().any(|end| !pair.at(*end).session.is_established());
            if !closing {
                assert_no_leftovers(pair);
                pair.close(end);
                pair.settle();
                assert!(End::BOTH.iter().all(|end| pair.at(*end).closed == Some(Ok(()))));
            }
            link_ends(pair);
            assert_failures_have_causes(pair, rich);
        }
        Finale::Shutdown(end) => {
            pair.shutdown(end);
            pair.settle();
            if pair.at(end.other()).closed.is_none() {
                link_ends(pair);
            }
        }
        Finale::LinkLost => pair.lose_link(),
        Finale::Silence => pair.advance(Duration::from_secs(2 * 3600)),
    }
    assert!(End::BOTH.iter().all(|end| pair.at(*end).session.is_closed()));
    for end in End::BOTH {
        pair.transmit(end, 1);
    }
    assert_no_leftovers(pair);
}

fn play(configs: [Config; 2], operations: &[Operation], finale: Finale, rich: bool) -> Pair {
    let [connecting, accepting] = configs;
    let mut pair = Pair::established(connecting, accepting);
    for operation in operations {
        perform(&mut pair, operation);
        pair.assert_invariants();
    }
    finish_all(&mut pair, finale, rich);
    pair
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
        pair.settle();
    }
}
