//! What two peers may do, and how it all ends.

use std::time::Duration;

use arbitrary::Arbitrary;
use virbistream::proto::{Config, StreamError};
use virbistream::wire::{Open, Rule, codes};

use super::{End, Ending, Flow, Pair, Sink, open};

#[derive(Clone, Debug, Arbitrary)]
pub(crate) enum Operation {
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
    /// What the other one may send in a second.
    ReceiveLimit(End, Option<u16>),
}

/// How it all ends.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub(crate) enum Finale {
    /// All that is open is let finish, then one side closes.
    Agree(End),
    Shutdown(End),
    LinkLost,
    Silence,
}

fn pick(pair: &Pair, end: End, pick: u8) -> Option<u32> {
    let flows = &pair.at(end).flows;
    let living: Vec<u32> = flows.iter().filter(|(_, flow)| flow.ending.is_none()).map(|(id, _)| *id).collect();
    living.get(usize::from(pick) % living.len().max(1)).copied()
}

pub(crate) fn perform(pair: &mut Pair, operation: &Operation) {
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
        O::ReceiveLimit(end, rate) => pair.set_receive_limit(*end, rate.map(u64::from)),
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
    End::BOTH.iter().for_each(|end| pair.set_receive_limit(*end, None));
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

pub(crate) fn play(configs: [Config; 2], operations: &[Operation], finale: Finale, rich: bool) -> Pair {
    let [connecting, accepting] = configs;
    let mut pair = Pair::established(connecting, accepting);
    for operation in operations {
        perform(&mut pair, operation);
        pair.assert_invariants();
    }
    finish_all(&mut pair, finale, rich);
    pair
}
