//! Bytes to packets and back: the shapes of `xdr/bistream.x`, and nothing of what they mean.
//!
//! A [`Decoder`] cuts the bytes of a link into [`Header`]s and borrowed pieces of payload. Payloads of
//! control packets are [`Body`]s: [`decode_body`] reads one strictly, [`encode_packet`] puts one behind its header.
//! Nothing here opens a socket, keeps a payload, or allocates on a peer's word alone.
//!
//! ```
//! use virbistream::wire::{
//!     Credit, Decoder, PACKET_MAX, PacketType, Piece, Procedure, ProgramId, Status, decode_body, encode_packet,
//! };
//!
//! let header = ProgramId::default().header(Procedure::Credit, PacketType::Message, 0, Status::Ok);
//! let credit = Credit { stream: 1, consumed: 65_536, limit: 1 << 20 };
//! let mut packet = [0; 64];
//! let length = encode_packet(&header, &credit, &mut packet).expect("room for 48 bytes");
//! assert_eq!(length, 48);
//!
//! let mut decoder = Decoder::new(PACKET_MAX);
//! let mut input = &packet[..length];
//! assert_eq!(decoder.decode(&mut input)?, Some(Piece::Header { header, payload_len: 20 }));
//! let Some(Piece::Payload { bytes, remaining: 0 }) = decoder.decode(&mut input)? else { unreachable!() };
//! assert_eq!(decode_body::<Credit>(bytes)?, credit);
//! assert_eq!(decoder.decode(&mut input)?, None);
//! assert!(decoder.at_boundary());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::unwrap_used, clippy::indexing_slicing)]

mod decoder;
mod header;
mod messages;
mod procedure;
mod rule;
mod xdr;

pub use decoder::{Decoder, FramingError, Piece};
pub use header::{HEADER_LEN, Header, PACKET_MAX, PACKET_MIN, PacketType, Status};
pub use messages::{
    BISTREAM_1, CLOSE_TEXT_MAX, Close, Credit, DATA_MAX, DATA_MIN, ERROR_LEVEL, ERROR_NAME_MAX, ERROR_TEXT_MAX,
    EXT_SESSION, EXT_TICKET, EXTENSION_LEN, EXTENSIONS_MAX, Escaped, Extension, Finish, HOLE_CREDIT, HOLE_MAX, Hello,
    HelloReply, Hole, Limits, Open, OpenReply, PRIORITY_MAX, Ping, RemoteError, Stop, TARGET_MAX, close, codes,
    domains, feature, is_valid_target, kind,
};
pub use procedure::{PROCEDURE_BASE, PROCEDURE_COUNT, PROGRAM, Procedure, ProgramId, VERSION};
pub use rule::Rule;
pub use xdr::{Body, BodyError, Reader, decode_body, decode_legacy, encode_packet};
