//! The packet header: libvirt's `virNetMessageHeader`, `bs_header` in `xdr/bistream.x`, with the length word before it.

use byteorder::{BigEndian, ByteOrder};

/// Bytes before the payload of every packet: the length word and the six words of the header
/// (`BS_LENGTH_WORD` + `BS_HEADER_LEN`).
pub const HEADER_LEN: usize = 28;

/// The least value of a length word, in bytes: a packet without payload (`BS_PACKET_MIN`).
pub const PACKET_MIN: u32 = 28;

/// The greatest value of a length word, in bytes: the longest packet libvirt accepts (`BS_PACKET_MAX`).
pub const PACKET_MAX: u32 = 33_554_436;

/// The header of a packet (`bs_header`), word by word as on the wire.
///
/// The words are not judged, so that packets of libvirt's own programs pass through unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// The program (`prog`).
    pub program: u32,
    /// The program's version (`vers`).
    pub version: u32,
    /// The procedure (`proc`).
    pub procedure: u32,
    /// What libvirt calls `type`; [`packet_type`](Self::packet_type) names it.
    pub kind: u32,
    /// Which call or stream it belongs to; 0 in messages.
    pub serial: u32,
    /// What [`packet_status`](Self::packet_status) names.
    pub status: u32,
}

impl Header {
    /// The bytes before a payload of `payload_len` bytes: the length word and the header.
    ///
    /// A payload over [`PACKET_MAX`] − [`PACKET_MIN`] makes a packet that no peer accepts; it is not judged here.
    #[inline]
    pub fn encode(&self, payload_len: u32) -> [u8; HEADER_LEN] {
        let words = [
            PACKET_MIN.saturating_add(payload_len),
            self.program,
            self.version,
            self.procedure,
            self.kind,
            self.serial,
            self.status,
        ];
        let mut bytes = [0; HEADER_LEN];
        BigEndian::write_u32_into(&words, &mut bytes);
        bytes
    }

    /// The length word, in bytes and itself included, and the header behind it. Neither is judged.
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> (u32, Self) {
        let mut words = [0; HEADER_LEN / 4];
        BigEndian::read_u32_into(bytes, &mut words);
        let [length, program, version, procedure, kind, serial, status] = words;
        (length, Self { program, version, procedure, kind, serial, status })
    }

    /// The packet's type; `None`: one that libvirt does not know either.
    pub fn packet_type(&self) -> Option<PacketType> {
        PacketType::from_wire(self.kind)
    }

    /// The packet's status; `None`: one that libvirt does not know either.
    pub fn packet_status(&self) -> Option<Status> {
        Status::from_wire(self.status)
    }
}

/// What kind of packet it is (`bs_type`, libvirt's `virNetMessageType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum PacketType {
    /// A call, which is answered (`BS_CALL`).
    Call = 0,
    /// The answer to a call (`BS_REPLY`).
    Reply = 1,
    /// What is not answered (`BS_MESSAGE`).
    Message = 2,
    /// A piece of a stream, or its end (`BS_STREAM`).
    Stream = 3,
    /// A call with file descriptors (`BS_CALL_WITH_FDS`); libvirt's, BiStream sends none.
    CallWithFds = 4,
    /// A reply with file descriptors (`BS_REPLY_WITH_FDS`); libvirt's, BiStream sends none.
    ReplyWithFds = 5,
    /// Zeroes of a stream that are not sent (`BS_STREAM_HOLE`).
    StreamHole = 6,
}

impl PacketType {
    /// The type that the word names, if any.
    pub fn from_wire(word: u32) -> Option<Self> {
        Some(match word {
            0 => Self::Call,
            1 => Self::Reply,
            2 => Self::Message,
            3 => Self::Stream,
            4 => Self::CallWithFds,
            5 => Self::ReplyWithFds,
            6 => Self::StreamHole,
            _ => return None,
        })
    }

    /// Its word on the wire.
    pub fn as_wire(self) -> u32 {
        self as u32
    }
}

/// How it went (`bs_status`, libvirt's `virNetMessageStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// Well; in a stream: this direction is over (`BS_OK`).
    Ok = 0,
    /// Badly: the payload is a [`RemoteError`](super::RemoteError) (`BS_ERROR`).
    Error = 1,
    /// In a stream: more may come (`BS_CONTINUE`).
    Continue = 2,
}

impl Status {
    /// The status that the word names, if any.
    pub fn from_wire(word: u32) -> Option<Self> {
        Some(match word {
            0 => Self::Ok,
            1 => Self::Error,
            2 => Self::Continue,
            _ => return None,
        })
    }

    /// Its word on the wire.
    pub fn as_wire(self) -> u32 {
        self as u32
    }
}
