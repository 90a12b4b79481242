//! Where one packet ends and the next begins.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};
use thiserror::Error;

use super::header::{HEADER_LEN, Header, PACKET_MAX, PACKET_MIN};

const LENGTH_WORD: usize = 4;

/// Cuts the bytes of one link, in whatever portions they come, into headers and pieces of payload.
///
/// It keeps at most the 28 bytes of a header that has not wholly come; payload is handed through, borrowed from the input.
/// It allocates nothing.
#[derive(Clone, Debug)]
pub struct Decoder {
    max_packet: u32,
    state: State,
    partial: [u8; HEADER_LEN],
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of a header are in `partial`.
    Header { have: usize },
    /// So many bytes of the packet's payload are to come, one at least.
    Payload { remaining: u32 },
    /// The bytes cannot be cut any more.
    Failed(FramingError),
}

/// What [`Decoder::decode`] took from the front of its input.
///
/// A packet is complete at a header with `payload_len` 0, or at a payload with `remaining` 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A packet begins.
    Header {
        /// Its header, not judged.
        header: Header,
        /// Bytes of payload that follow: 0 to the decoder's bound less 28.
        payload_len: u32,
    },
    /// A part of the payload of the packet whose header came last.
    Payload {
        /// At least one byte, in place in the input.
        bytes: &'a [u8],
        /// Bytes of this packet's payload still to come after these.
        remaining: u32,
    },
}

/// The length word of a packet is out of range: nothing after it can be understood. Close the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FramingError {
    /// The length word is under [`PACKET_MIN`]: it cannot even hold the header.
    #[error("packet length {length} is under {PACKET_MIN}, the least there is")]
    TooShort {
        /// The length word, in bytes.
        length: u32,
    },
    /// The length word is over the decoder's bound.
    #[error("packet length {length} is over the limit of {max}{}", Guess(*length))]
    TooLong {
        /// The length word, in bytes.
        length: u32,
        /// The bound, in bytes.
        max: u32,
    },
}

impl Decoder {
    /// A decoder at the beginning of a link, for packets of at most `max_packet` bytes, length word and header included.
    ///
    /// The bound is brought into [`PACKET_MIN`]..=[`PACKET_MAX`]; programs without one of their own pass [`PACKET_MAX`].
    pub fn new(max_packet: u32) -> Self {
        Self {
            max_packet: max_packet.clamp(PACKET_MIN, PACKET_MAX),
            state: State::Header { have: 0 },
            partial: [0; HEADER_LEN],
        }
    }

    /// Takes the next piece from the front of `input`; `None`: the input is used up.
    ///
    /// A payload piece is as long as the input allows. The length word is judged as soon as its four bytes have come.
    ///
    /// # Errors
    ///
    /// [`FramingError`] when a length word is out of range, and the same one at every later call. What is left of the
    /// input then means nothing.
    pub fn decode<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FramingError> {
        match self.state {
            State::Header { have: 0 } => match input.split_first_chunk::<HEADER_LEN>() {
                Some((bytes, rest)) => {
                    *input = rest;
                    self.begin(bytes).map(Some)
                }
                None => self.collect(0, input),
            },
            State::Header { have } => self.collect(have, input),
            State::Payload { .. } if input.is_empty() => Ok(None),
            State::Payload { remaining } => {
                let taken = u32::try_from(input.len()).map_or(remaining, |len| len.min(remaining));
                let (bytes, rest) = input.split_at(taken as usize);
                *input = rest;
                let remaining = remaining - taken;
                self.state = after(remaining);
                Ok(Some(Piece::Payload { bytes, remaining }))
            }
            State::Failed(error) => Err(error),
        }
    }

    /// Whether no packet has begun: the end of the link would cut nothing here.
    pub fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { have: 0 })
    }

    /// Bytes up to the end of the header, or of the payload, that is expected next: who reads no more than these never reads into the next
    /// packet. None after an error.
    pub fn missing(&self) -> usize {
        match self.state {
            State::Header { have } => HEADER_LEN - have,
            State::Payload { remaining } => remaining as usize,
            State::Failed(_) => 0,
        }
    }

    /// A header that does not come in one portion.
    fn collect<'a>(&mut self, have: usize, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FramingError> {
        let taken = input.len().min(HEADER_LEN - have);
        let (bytes, rest) = input.split_at(taken);
        *input = rest;
        for (to, from) in self.partial.iter_mut().skip(have).zip(bytes) {
            *to = *from;
        }
        let now = have + taken;
        if now == HEADER_LEN {
            let bytes = self.partial;
            return self.begin(&bytes).map(Some);
        }
        self.state = State::Header { have: now };
        if now >= LENGTH_WORD {
            self.judge(BigEndian::read_u32(&self.partial))?;
        }
        Ok(None)
    }

    fn begin<'a>(&mut self, bytes: &[u8; HEADER_LEN]) -> Result<Piece<'a>, FramingError> {
        let (length, header) = Header::decode(bytes);
        let payload_len = self.judge(length)?;
        self.state = after(payload_len);
        Ok(Piece::Header { header, payload_len })
    }

    /// How much payload the length word announces.
    fn judge(&mut self, length: u32) -> Result<u32, FramingError> {
        let error = match length.checked_sub(PACKET_MIN) {
            Some(payload_len) if length <= self.max_packet => return Ok(payload_len),
            Some(_) => FramingError::TooLong { length, max: self.max_packet },
            None => FramingError::TooShort { length },
        };
        self.state = State::Failed(error);
        Err(error)
    }
}

fn after(remaining: u32) -> State {
    if remaining == 0 { State::Header { have: 0 } } else { State::Payload { remaining } }
}

/// What a length word says of a peer that speaks something else.
struct Guess(u32);

impl fmt::Display for Guess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_be_bytes();
        if bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t')) {
            write!(f, ": the peer does not speak libvirt's RPC, it sent \"{}\"", bytes.escape_ascii())
        } else if let [0x16, 3, ..] = bytes {
            f.write_str(": the peer does not speak libvirt's RPC, it seems to begin TLS")
        } else {
            Ok(())
        }
    }
}
