//! However the bytes of a link are cut, the decoder gives the packets that stand in them, or the same error.
//!
//! Input: the decoder's bound (u16, in words of four bytes; 0 is the greatest), how many portions (u8), a length for each (u8), and
//! the bytes of the link, which the portions cut again and again.
use virbistream::wire::{Decoder, FramingError, HEADER_LEN, Header, PACKET_MAX, PACKET_MIN, Piece};

type Packet = (Header, Vec<u8>);

/// What stands in the bytes: whole packets, the payload of one that is cut off, an error.
#[derive(Debug, Default, PartialEq)]
struct Found {
    packets: Vec<Packet>,
    begun: Option<Packet>,
    error: Option<FramingError>,
}

/// By the book: one length word after the other.
fn expected(mut link: &[u8], max: u32) -> Found {
    let mut found = Found::default();
    while let Some(word) = link.first_chunk::<4>() {
        let length = u32::from_be_bytes(*word);
        if length < PACKET_MIN {
            found.error = Some(FramingError::TooShort { length });
            break;
        }
        if length > max {
            found.error = Some(FramingError::TooLong { length, max });
            break;
        }
        let Some((head, rest)) = link.split_first_chunk::<HEADER_LEN>() else { break };
        let header = Header::decode(head).1;
        let payload_len = length as usize - HEADER_LEN;
        if rest.len() < payload_len {
            found.begun = Some((header, rest.to_vec()));
            break;
        }
        found.packets.push((header, rest[..payload_len].to_vec()));
        link = &rest[payload_len..];
    }
    found
}

fn decoded<'a>(portions: impl Iterator<Item = &'a [u8]>, max: u32) -> (Found, Decoder) {
    let mut decoder = Decoder::new(max);
    let mut found = Found::default();
    for mut input in portions {
        loop {
            match decoder.decode(&mut input) {
                Ok(None) => {
                    assert!(input.is_empty(), "it stopped before the end");
                    break;
                }
                Ok(Some(Piece::Header { header, payload_len })) => {
                    assert!(found.begun.is_none(), "a header inside a packet");
                    assert!(payload_len <= max - PACKET_MIN);
                    match payload_len {
                        0 => found.packets.push((header, Vec::new())),
                        len => found.begun = Some((header, Vec::with_capacity(len.min(1 << 16) as usize))),
                    }
                }
                Ok(Some(Piece::Payload { bytes, remaining })) => {
                    assert!(!bytes.is_empty());
                    found.begun.as_mut().expect("a payload has a header").1.extend_from_slice(bytes);
                    if remaining == 0 {
                        found.packets.extend(found.begun.take());
                    }
                }
                Err(error) => {
                    assert_eq!(decoder.decode(&mut &[0; HEADER_LEN][..]), Err(error), "the same error ever after");
                    found.error = Some(error);
                    return (found, decoder);
                }
            }
        }
    }
    (found, decoder)
}

pub(crate) fn run(data: &[u8]) {
    let [high, low, cuts, rest @ ..] = data else { return };
    let max = match u16::from_be_bytes([*high, *low]) {
        0 => PACKET_MAX,
        words => u32::from(words) * 4,
    };
    let bound = max.clamp(PACKET_MIN, PACKET_MAX);
    let (cuts, link) = rest.split_at(rest.len().min(usize::from(*cuts)));
    let mut lengths = cuts.iter().map(|cut| usize::from(*cut)).cycle();
    let mut left = link;
    let portions = std::iter::from_fn(|| {
        let len = lengths.next().filter(|_| cuts.iter().any(|cut| *cut > 0)).unwrap_or(usize::MAX);
        let (now, later) = left.split_at(left.len().min(len));
        left = later;
        (!now.is_empty() || !later.is_empty()).then_some(now)
    });
    let (found, decoder) = decoded(portions, bound);
    let wanted = expected(link, bound);
    assert_eq!(found, wanted);
    let whole: usize = found.packets.iter().map(|(_, payload)| HEADER_LEN + payload.len()).sum();
    assert_eq!(decoder.at_boundary(), found.error.is_none() && whole == link.len());
}
