//! Instructions, counted by callgrind: the same on a busy machine and on an idle one, so that there can be limits.
//!
//! Each bench is a loop over packets, and its limit that of the loop: instructions a packet, a few percent above what they were
//! when it was set. docs/performance.md has the figures and the targets.
#![allow(missing_docs, reason = "of what the macros make")]

mod pair;

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use pair::{PACKETS, Pair};
use virbistream::wire::{HEADER_LEN, Header, PacketType, Procedure, ProgramId, Status};

/// Payload of a packet: little enough for all of a loop to fit into the credit that a round leaves.
const PAYLOAD: usize = 512;

/// At most so many instructions for each packet of a loop, and what the loop itself takes.
fn at_most(each: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, each * PACKETS as u64)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn data_header() -> Header {
    ProgramId::default().header(Procedure::Data, PacketType::Stream, 7, Status::Continue)
}

fn encoded() -> [u8; HEADER_LEN] {
    data_header().encode(262_120)
}

#[library_benchmark(config = at_most(27))]
#[bench::default(data_header())]
fn header_encode(header: Header) {
    for len in 0..PACKETS as u32 {
        black_box(&black_box(&header).encode(len));
    }
}

#[library_benchmark(config = at_most(26))]
#[bench::default(encoded())]
fn header_decode(bytes: [u8; HEADER_LEN]) {
    for _ in 0..PACKETS {
        black_box(&Header::decode(black_box(&bytes)));
    }
}

/// A pair whose first stream has its turn.
fn ready() -> Pair {
    let mut pair = warm(1);
    pair.near.stream(pair.streams[0]).expect("it stands").ready();
    pair
}

/// A pair that has had its first packets, over so many streams.
fn warm(streams: usize) -> Pair {
    let mut pair = Pair::new(streams);
    pair.round(4096);
    pair
}

fn send(pair: &mut Pair) -> [u8; HEADER_LEN] {
    let grant = pair.near.poll_grant().expect("its turn");
    pair.near.stream(grant.id).expect("whose turn it is").send(PAYLOAD.min(grant.max)).expect("granted")
}

#[library_benchmark(config = at_most(490))]
#[bench::default(ready())]
fn session_data_out(mut pair: Pair) -> Pair {
    for _ in 0..PACKETS {
        black_box(&send(&mut pair));
    }
    pair
}

/// The headers of packets that the far session is to get.
fn sent() -> (Pair, Vec<(u32, Header)>) {
    let mut pair = ready();
    let headers = (0..PACKETS).map(|_| Header::decode(&send(&mut pair))).collect();
    (pair, headers)
}

#[library_benchmark(config = at_most(480))]
#[bench::default(sent())]
fn session_data_in((mut pair, headers): (Pair, Vec<(u32, Header)>)) -> (Pair, Vec<(u32, Header)>) {
    for (len, header) in &headers {
        let payload = &pair.link[HEADER_LEN..*len as usize];
        pair.far.handle_header(pair.now, header, payload.len() as u32).expect("a packet");
        let data = pair.far.handle_payload(pair.now, payload, 0).expect("a packet").expect("its bytes");
        pair.far.stream(data.id).expect("it stands").consumed(data.bytes.len() as u64).expect("no more than came");
    }
    (pair, headers)
}

// A round of 1,000 DATA packets with their CREDIT, through the decoder, by so many streams.
#[library_benchmark]
#[bench::one_stream(args = (warm(1)), config = at_most(1140))]
#[bench::streams_64(args = (warm(64)), config = at_most(1840))]
fn session_round(mut pair: Pair) -> Pair {
    black_box(pair.round(4096));
    pair
}

library_benchmark_group!(
    name = instructions,
    benchmarks = [header_encode, header_decode, session_data_out, session_data_in, session_round]
);
main!(library_benchmark_groups = instructions);
