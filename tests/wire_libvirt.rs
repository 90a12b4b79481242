//! Bytes as virsh 9.0 and a real libvirtd 9.0 put them on their UNIX socket.

use virbistream::wire::*;

/// `virsh version`, all that the client sent.
const CLIENT: &str = "
    0000001c200080860000000100000042000000000000000000000000000000202000808600000001
    0000003c0000000000000001000000000000000a0000003820008086000000010000000100000000
    0000000200000000000000010000000e71656d753a2f2f2f73797374656d00000000000000000020
    20008086000000010000003c0000000000000003000000000000000e000000202000808600000001
    0000003c0000000000000004000000000000000f0000001c20008086000000010000016800000000
    00000005000000000000001c2000808600000001000000030000000000000006000000000000001c
    2000808600000001000000040000000000000007000000000000001c200080860000000100000169
    0000000000000008000000000000001c200080860000000100000002000000000000000900000000";

/// And all that the server answered.
const SERVER: &str = "
    00000024200080860000000100000042000000010000000000000000000000010000000000000020
    20008086000000010000003c000000010000000100000000000000010000001c2000808600000001
    000000010000000100000002000000000000002020008086000000010000003c0000000100000003
    00000000000000010000002020008086000000010000003c00000001000000040000000000000001
    0000001c200080860000000100000168000000010000000500000000000000242000808600000001
    000000030000000100000006000000000000000451454d5500000024200080860000000100000004
    00000001000000070000000000000000006ad7a60000001c20008086000000010000016900000001
    00000008000000000000001c200080860000000100000002000000010000000900000000";

/// Procedure and payload length of each packet, in the client's order and in the server's.
const CALLS: [(u32, u32); 10] =
    [(66, 0), (60, 4), (1, 28), (60, 4), (60, 4), (360, 0), (3, 0), (4, 0), (361, 0), (2, 0)];
const REPLIES: [(u32, u32); 10] =
    [(66, 8), (60, 4), (1, 0), (60, 4), (60, 4), (360, 0), (3, 8), (4, 8), (361, 0), (2, 0)];

/// A packet of `virsh vol-download --sparse`: 4,190,208 bytes of zeroes.
const SPARSE: &str = "000000282000808600000001000000d1000000060000000a0000000200000000003ff00000000000";

/// The reply to procedure 9999 of the remote program, serial 3.
const UNKNOWN_PROCEDURE: &str = "
    00000088 20008086 00000001 0000270f 00000001 00000003 00000001
    00000027 00000007
    00000001 00000017 756e6b6e6f776e2070726f6365647572653a203939393900
    00000002
    00000000
    00000001 00000002 25730000
    00000001 00000017 756e6b6e6f776e2070726f6365647572653a203939393900
    00000000
    ffffffff ffffffff
    00000000";

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

fn packets(mut input: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut decoder = Decoder::new(PACKET_MAX);
    let mut packets = Vec::new();
    while let Some(piece) = decoder.decode(&mut input).unwrap() {
        match piece {
            Piece::Header { header, .. } => packets.push((header, Vec::new())),
            Piece::Payload { bytes, .. } => packets.last_mut().unwrap().1.extend_from_slice(bytes),
        }
    }
    assert!(decoder.at_boundary());
    packets
}

#[test]
fn a_conversation_of_virsh_is_cut_where_libvirt_cuts_it() {
    for (hex, expected, kind) in [(CLIENT, CALLS, PacketType::Call), (SERVER, REPLIES, PacketType::Reply)] {
        let packets = packets(&from_hex(hex));
        let cut: Vec<_> = packets.iter().map(|(header, payload)| (header.procedure, payload.len() as u32)).collect();
        assert_eq!(cut, expected);
        for (serial, (header, _)) in (0..).zip(&packets) {
            assert_eq!((header.program, header.version, header.serial), (PROGRAM, VERSION, serial));
            assert_eq!((header.packet_type(), header.packet_status()), (Some(kind), Some(Status::Ok)));
            assert!(!ProgramId::default().owns(header), "a legacy packet is none of ours");
        }
    }
}

#[test]
fn a_conversation_of_virsh_is_written_again_as_it_was() {
    for hex in [CLIENT, SERVER] {
        let bytes = from_hex(hex);
        let again = packets(&bytes)
            .into_iter()
            .flat_map(|(header, payload)| [header.encode(payload.len() as u32).to_vec(), payload].concat());
        assert_eq!(again.collect::<Vec<u8>>(), bytes);
    }
}

#[test]
fn a_hole_of_libvirts_is_a_hole() {
    let [(header, payload)] = &packets(&from_hex(SPARSE))[..] else { panic!() };
    assert_eq!((header.packet_type(), header.packet_status()), (Some(PacketType::StreamHole), Some(Status::Continue)));
    assert_eq!(decode_body::<Hole>(payload), Ok(Hole { length: 4_190_208, flags: 0 }));
}

#[test]
fn the_answer_to_an_unknown_procedure_is_libvirts_to_the_byte() {
    let answer = from_hex(UNKNOWN_PROCEDURE);
    let [(header, payload)] = &packets(&answer)[..] else { panic!() };
    let error = RemoteError::new(codes::RPC, domains::RPC, "unknown procedure: 9999").with_ints(-1, -1);
    assert_eq!(decode_body::<RemoteError>(payload).as_ref(), Ok(&error));
    let mut out = [0; 256];
    let length = encode_packet(header, &error, &mut out).unwrap();
    assert_eq!(out[..length], answer);
}
