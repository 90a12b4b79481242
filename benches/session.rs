//! Two sessions and a link that is a buffer: what the state machine itself costs, without sockets.

mod pair;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use pair::{PACKETS, Pair, receive};
use virbistream::wire::{HEADER_LEN, Open};

fn main() {
    divan::main();
}

/// A round of 1,000 DATA packets with their CREDIT; one stream.
#[divan::bench(args = [65_530, 4096, 64])]
fn one_stream(bencher: Bencher<'_, '_>, payload: usize) {
    round(bencher, 1, payload);
}

/// The same over 64 streams.
#[divan::bench(args = [65_530, 4096, 64])]
fn streams_64(bencher: Bencher<'_, '_>, payload: usize) {
    round(bencher, 64, payload);
}

fn round(bencher: Bencher<'_, '_>, streams: usize, payload: usize) {
    let mut pair = Pair::new(streams);
    let bytes = pair.round(payload);
    let bencher = bencher.counter(ItemsCount::new(PACKETS)).counter(BytesCount::new(bytes));
    bencher.bench_local(|| pair.round(payload));
}

/// A stream's whole life: OPEN and its reply, one packet and finish each way, and all that is owed for them.
#[divan::bench]
fn life_of_a_stream(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(0);
    bencher.bench_local(|| {
        let now = pair.now;
        let id = pair.near.open(now, Open { target: "vda".into(), ..Open::default() }).expect("a stream");
        pair.control();
        for session in [&mut pair.near, &mut pair.far] {
            session.stream(id).expect("it stands").ready();
        }
        for near in [true, false] {
            let (from, to) = if near { (&mut pair.near, &mut pair.far) } else { (&mut pair.far, &mut pair.near) };
            let grant = from.poll_grant().expect("its turn");
            let header = from.stream(grant.id).expect("it stands").send(64).expect("granted");
            pair.link[..HEADER_LEN].copy_from_slice(&header);
            receive(now, to, &pair.link[..HEADER_LEN + 64]);
            from.stream(id).expect("it stands").finish().expect("it stands");
        }
        pair.control();
        assert_eq!((pair.near.stream_count(), pair.far.stream_count()), (0, 0));
    });
}
