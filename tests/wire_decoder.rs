//! The framing decoder: however the bytes come, the packets are the same.

use proptest::collection::vec;
use proptest::prelude::*;
use virbistream::wire::{Decoder, FramingError, HEADER_LEN, Header, PACKET_MAX, PACKET_MIN, PacketType, Piece, Status};

type Packet = (Header, Vec<u8>);

const PLAIN: Header =
    Header { program: 0x2000_8086, version: 1, procedure: 0x4253_0003, kind: 3, serial: 7, status: 2 };

fn encode(packets: &[Packet]) -> Vec<u8> {
    let encoded = packets.iter().map(|(header, payload)| [&header.encode(payload.len() as u32), &payload[..]].concat());
    encoded.flatten().collect()
}

/// Three packets: one empty, one of 1 byte, one of 5.
fn three() -> Vec<Packet> {
    [0, 1, 5].map(|len: u8| (Header { serial: len.into(), ..PLAIN }, (0..len).collect())).to_vec()
}

/// Puts pieces together again, and checks on the way what they say of what is to come.
#[derive(Default)]
struct Collector {
    whole: Vec<Packet>,
    begun: Option<(Header, Vec<u8>, u32)>,
}

impl Collector {
    fn feed(&mut self, decoder: &mut Decoder, mut input: &[u8]) -> Result<(), FramingError> {
        while let Some(piece) = decoder.decode(&mut input)? {
            let (header, payload, left) = match piece {
                Piece::Header { header, payload_len } => {
                    assert!(self.begun.is_none(), "a header inside a payload");
                    (header, Vec::new(), payload_len)
                }
                Piece::Payload { bytes, remaining } => {
                    let (header, mut payload, left) = self.begun.take().expect("a payload without a header");
                    assert!(!bytes.is_empty());
                    payload.extend_from_slice(bytes);
                    assert_eq!(left, remaining + bytes.len() as u32);
                    (header, payload, remaining)
                }
            };
            if left == 0 {
                self.whole.push((header, payload));
            } else {
                self.begun = Some((header, payload, left));
            }
        }
        assert!(input.is_empty(), "None while there was input");
        Ok(())
    }
}

fn decode(portions: &[&[u8]]) -> Result<Vec<Packet>, FramingError> {
    let mut decoder = Decoder::new(PACKET_MAX);
    let mut collector = Collector::default();
    portions.iter().try_for_each(|portion| collector.feed(&mut decoder, portion))?;
    assert!(decoder.at_boundary(), "the bytes were whole packets");
    Ok(collector.whole)
}

#[test]
fn the_words_of_a_header_stand_in_libvirts_order() {
    let header = Header { program: 1, version: 2, procedure: 3, kind: 4, serial: 5, status: 6 };
    let bytes: Vec<u8> = [128_u32, 1, 2, 3, 4, 5, 6].into_iter().flat_map(u32::to_be_bytes).collect();
    assert_eq!(header.encode(100).to_vec(), bytes);
    assert_eq!(Header::decode(&bytes.try_into().unwrap()), (128, header));
}

#[test]
fn types_and_statuses_are_named_and_others_are_none() {
    for word in 0..=6 {
        let header = Header { kind: word, ..PLAIN };
        assert_eq!(header.packet_type().map(PacketType::as_wire), Some(word));
    }
    for word in 0..=2 {
        let header = Header { status: word, ..PLAIN };
        assert_eq!(header.packet_status().map(Status::as_wire), Some(word));
    }
    for word in [7, u32::MAX] {
        assert_eq!(Header { kind: word, ..PLAIN }.packet_type(), None);
    }
    for word in [3, 9, u32::MAX] {
        assert_eq!(Header { status: word, ..PLAIN }.packet_status(), None);
    }
}

#[test]
fn a_byte_at_a_time() {
    let bytes = encode(&three());
    let portions: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(decode(&portions), Ok(three()));
}

#[test]
fn many_packets_at_once() {
    let packets: Vec<Packet> = (0..1000).map(|serial| (Header { serial, ..PLAIN }, vec![1; serial as usize])).collect();
    assert_eq!(decode(&[&encode(&packets)]), Ok(packets));
}

#[test]
fn every_split_in_three() {
    let bytes = encode(&three());
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let portions = [&bytes[..first], &bytes[first..second], &bytes[second..]];
            assert_eq!(decode(&portions), Ok(three()), "cut at {first} and {second}");
        }
    }
}

#[test]
fn empty_input_changes_nothing() {
    let bytes = encode(&three());
    let portions: Vec<&[u8]> = bytes.chunks(1).flat_map(|byte| [&[], byte, &[]]).collect();
    assert_eq!(decode(&portions), Ok(three()));
}

#[test]
fn a_payload_is_borrowed_in_place_and_as_long_as_the_input_allows() {
    let bytes = encode(&[(PLAIN, vec![9; 1000]), (PLAIN, vec![])]);
    let (first, second) = bytes.split_at(HEADER_LEN + 400);
    let mut decoder = Decoder::new(PACKET_MAX);

    let mut input = first;
    assert_eq!(decoder.decode(&mut input), Ok(Some(Piece::Header { header: PLAIN, payload_len: 1000 })));
    let Ok(Some(Piece::Payload { bytes, remaining: 600 })) = decoder.decode(&mut input) else { panic!() };
    assert!(std::ptr::eq(bytes, &first[HEADER_LEN..]));
    assert_eq!(decoder.decode(&mut input), Ok(None));

    let mut input = second;
    let Ok(Some(Piece::Payload { bytes, remaining: 0 })) = decoder.decode(&mut input) else { panic!() };
    assert!(std::ptr::eq(bytes, &second[..600]));
    assert_eq!(decoder.decode(&mut input), Ok(Some(Piece::Header { header: PLAIN, payload_len: 0 })));
    assert_eq!(decoder.decode(&mut input), Ok(None));
}

#[test]
fn lengths_under_a_header_are_refused() {
    for length in 0..PACKET_MIN {
        let error = decode(&[&length.to_be_bytes()]).unwrap_err();
        assert_eq!(error, FramingError::TooShort { length });
        assert_eq!(error.to_string(), format!("packet length {length} is under 28, the least there is"));
    }
    assert_eq!(judge(PACKET_MAX, PACKET_MIN), Ok(()));
}

/// What a decoder with that bound makes of that length word: nothing, or an error.
fn judge(max: u32, length: u32) -> Result<(), FramingError> {
    let word = length.to_be_bytes();
    let piece = Decoder::new(max).decode(&mut &word[..])?;
    assert_eq!(piece, None);
    Ok(())
}

#[test]
fn lengths_over_the_bound_are_refused_and_the_bound_itself_is_not() {
    for max in [28, 29, 4096, PACKET_MAX] {
        assert_eq!(judge(max, max), Ok(()));
        assert_eq!(judge(max, max + 1), Err(FramingError::TooLong { length: max + 1, max }));
        assert_eq!(judge(max, u32::MAX), Err(FramingError::TooLong { length: u32::MAX, max }));
    }
    assert_eq!(judge(100, 0x8000_0000).unwrap_err().to_string(), "packet length 2147483648 is over the limit of 100");
}

#[test]
fn a_bound_out_of_range_is_brought_into_it() {
    assert_eq!(judge(0, 28), Ok(()));
    assert_eq!(judge(0, 29), Err(FramingError::TooLong { length: 29, max: 28 }));
    assert_eq!(judge(u32::MAX, PACKET_MAX), Ok(()));
    let error = FramingError::TooLong { length: PACKET_MAX + 1, max: PACKET_MAX };
    assert_eq!(judge(u32::MAX, PACKET_MAX + 1), Err(error));
}

#[test]
fn the_bound_holds_for_a_header_in_one_piece_too() {
    let bytes = PLAIN.encode(73);
    let error = FramingError::TooLong { length: 101, max: 100 };
    assert_eq!(Decoder::new(100).decode(&mut &bytes[..]), Err(error));
}

#[test]
fn a_length_word_is_judged_with_its_fourth_byte() {
    let mut decoder = Decoder::new(PACKET_MAX);
    for _ in 0..3 {
        assert_eq!(decoder.decode(&mut &[0xff][..]), Ok(None));
    }
    let error = FramingError::TooLong { length: u32::MAX, max: PACKET_MAX };
    assert_eq!(decoder.decode(&mut &[0xff][..]), Err(error));
}

#[test]
fn the_same_error_for_ever() {
    let good = encode(&three());
    for bad in [27_u32, 40_000_000] {
        let mut decoder = Decoder::new(PACKET_MAX);
        let first = decoder.decode(&mut &bad.to_be_bytes()[..]).unwrap_err();
        for input in [&[][..], &[0], &good, &bad.to_be_bytes()] {
            assert_eq!(decoder.decode(&mut &*input), Err(first));
        }
        assert!(!decoder.at_boundary());
    }
}

#[test]
fn packets_before_a_bad_length_are_whole() {
    let mut bytes = encode(&three());
    bytes.extend([0; 28]);
    let (mut decoder, mut collector) = (Decoder::new(PACKET_MAX), Collector::default());
    assert_eq!(collector.feed(&mut decoder, &bytes), Err(FramingError::TooShort { length: 0 }));
    assert_eq!(collector.whole, three());
}

#[test]
fn a_boundary_is_before_the_first_byte_and_after_the_last() {
    let bytes = encode(&[(PLAIN, vec![1, 2])]);
    let mut decoder = Decoder::new(PACKET_MAX);
    let mut collector = Collector::default();
    for byte in bytes.chunks(1) {
        assert_eq!(decoder.at_boundary(), collector.whole.len() == 1 || byte.as_ptr() == bytes.as_ptr());
        collector.feed(&mut decoder, byte).unwrap();
    }
    assert!(decoder.at_boundary());
}

#[test]
fn a_peer_that_speaks_something_else_is_told_so() {
    let message = |bytes: &[u8]| decode(&[bytes]).unwrap_err().to_string();
    let foreign = ": the peer does not speak libvirt's RPC, it ";
    let expected = format!("packet length 1195725856 is over the limit of 33554436{foreign}sent \"GET \"");
    assert_eq!(message(b"GET / HTTP/1.1\r\n"), expected);
    assert!(message(b"SSH-2.0-OpenSSH").ends_with("it sent \"SSH-\""));
    assert!(message(b"\r\n\r\n").ends_with(r#"it sent "\r\n\r\n""#));
    assert!(message(&[0x16, 3, 1, 2, 0]).ends_with("it seems to begin TLS"));
    assert!(!message(&[0x7f, b'E', b'L', b'F']).contains("speak"));
}

fn some_packets() -> impl Strategy<Value = Vec<Packet>> {
    let header =
        any::<(u32, u32, u32, u32, u32, u32)>().prop_map(|(program, version, procedure, kind, serial, status)| {
            Header { program, version, procedure, kind, serial, status }
        });
    let payload = prop_oneof![4 => vec(any::<u8>(), 0..=64), 1 => vec(any::<u8>(), 0..=8192)];
    vec((header, payload), 0..=8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_fragmentation_gives_the_same_packets(packets in some_packets(), cuts in vec(any::<prop::sample::Index>(), 0..=32)) {
        let bytes = encode(&packets);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let portions: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        prop_assert_eq!(decode(&portions), Ok(packets));
    }

    #[test]
    fn any_bytes_are_cut_or_refused_alike_in_one_portion_and_in_many(
        lengths in vec(prop_oneof![20..=120_u32, any::<u32>()], 1..=6), filler: u8, max in 28..=120_u32,
    ) {
        let bytes: Vec<u8> = lengths
            .iter()
            .flat_map(|length| {
                let mut packet = length.to_be_bytes().to_vec();
                packet.resize((*length as usize).clamp(4, 200), filler);
                packet
            })
            .collect();
        let run = |portions: &mut dyn Iterator<Item = &[u8]>| {
            let (mut decoder, mut collector) = (Decoder::new(max), Collector::default());
            let mut end = Ok(());
            for portion in portions {
                end = collector.feed(&mut decoder, portion);
            }
            (end, collector.whole, decoder.at_boundary())
        };
        prop_assert_eq!(run(&mut [&bytes[..]].into_iter()), run(&mut bytes.chunks(1)));
    }
}
