//! Bytes to packets and back.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use virbistream::wire::{
    Credit, Decoder, HEADER_LEN, Header, Hello, Limits, Open, PACKET_MAX, PacketType, Piece, Procedure, ProgramId,
    RemoteError, Status, codes, decode_body, domains, encode_packet,
};

fn main() {
    divan::main();
}

/// Bytes of a link that one read gives.
const PORTION: usize = 320 * 1024;

fn data_header() -> Header {
    ProgramId::default().header(Procedure::Data, PacketType::Stream, 7, Status::Continue)
}

#[divan::bench]
fn header_encode(bencher: Bencher<'_, '_>) {
    let header = data_header();
    bencher.bench(|| black_box(&header).encode(black_box(262_120)));
}

#[divan::bench]
fn header_decode(bencher: Bencher<'_, '_>) {
    let bytes = data_header().encode(262_120);
    bencher.bench(|| Header::decode(black_box(&bytes)));
}

mod bodies {
    use super::*;

    fn credit() -> Credit {
        Credit { stream: 7, consumed: 1 << 40, limit: (1 << 40) + (1 << 20) }
    }

    fn hello() -> Hello {
        let limits = Limits { max_data: 262_120, max_streams: 1024 };
        Hello { min_version: 1, max_version: 1, offered: 0, needed: 0, limits, extensions: Vec::new() }
    }

    fn open() -> Open {
        Open { target: "disk-vda".into(), kind: 3, priority: 2, window: 1 << 20, extensions: Vec::new() }
    }

    fn error() -> RemoteError {
        RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, "target `vda`: Connection refused (os error 111)")
    }

    macro_rules! body {
        ($name:ident, $type:ty) => {
            mod $name {
                use super::*;

                #[divan::bench]
                fn encode(bencher: Bencher<'_, '_>) {
                    let (header, body, mut room) = (data_header(), super::$name(), vec![0; 32 * 1024]);
                    bencher.bench_local(|| encode_packet(black_box(&header), black_box(&body), &mut room));
                }

                #[divan::bench]
                fn decode(bencher: Bencher<'_, '_>) {
                    let mut room = vec![0; 32 * 1024];
                    let len = encode_packet(&data_header(), &super::$name(), &mut room).expect("room");
                    let bytes = &room[HEADER_LEN..len];
                    bencher.bench_local(|| decode_body::<$type>(black_box(bytes)));
                }
            }
        };
    }

    body!(credit, Credit);
    body!(hello, Hello);
    body!(open, Open);
    body!(error, RemoteError);
}

/// Cuts 16 MiB of packets with this much payload each, in portions as a link gives them. The payload is not touched, as
/// the decoder only borrows it: bytes a second are there to be compared with each other.
#[divan::bench(args = [262_120, 4096, 64, 1])]
fn decoder(bencher: Bencher<'_, '_>, payload: usize) {
    let mut packet = data_header().encode(u32::try_from(payload).expect("a payload's length")).to_vec();
    packet.resize(HEADER_LEN + payload, 0xa5);
    let packets = ((16 << 20) / packet.len()).min(10_000);
    let link = packet.repeat(packets);
    let bencher = bencher.counter(ItemsCount::new(packets)).counter(BytesCount::new(packets * payload));
    bencher.bench_local(|| {
        let mut decoder = Decoder::new(PACKET_MAX);
        let mut whole = 0;
        for mut input in black_box(&link).chunks(PORTION) {
            while let Some(piece) = decoder.decode(&mut input).expect("packets") {
                whole += usize::from(matches!(black_box(piece), Piece::Payload { remaining: 0, .. }));
            }
        }
        assert_eq!(whole, packets);
    });
}
