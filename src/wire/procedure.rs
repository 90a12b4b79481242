//! The procedures of BiStream and the numbers that mark its packets.

use super::header::{Header, PacketType, Status};

/// The default program, libvirt's own remote one (`BS_PROGRAM`).
pub const PROGRAM: u32 = 0x2000_8086;

/// The default version of the program, not of BiStream (`BS_VERSION`).
pub const VERSION: u32 = 1;

/// The default first procedure of the block (`BS_PROCEDURE_BASE`).
pub const PROCEDURE_BASE: u32 = 0x4253_0001;

/// Procedures that the block holds, whether or not they mean something yet (`BS_PROC_COUNT`).
pub const PROCEDURE_COUNT: u32 = 256;

/// A procedure, as its offset from the base (`BS_PROC_…`).
///
/// The reserved `BS_PROC_RESUME` is not among them until its feature is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Procedure {
    /// Call: the connecting side's first word (`BS_PROC_HELLO`).
    Hello = 0,
    /// Call: a new stream (`BS_PROC_OPEN`).
    Open = 1,
    /// Stream: bytes, holes, finish and reset (`BS_PROC_DATA`).
    Data = 2,
    /// Message: what was delivered, and what may be sent (`BS_PROC_CREDIT`).
    Credit = 3,
    /// Message: what is still sent is discarded (`BS_PROC_STOP`).
    Stop = 4,
    /// Message: are you there? (`BS_PROC_PING`)
    Ping = 5,
    /// Message: I am (`BS_PROC_PONG`).
    Pong = 6,
    /// Message: the session ends (`BS_PROC_CLOSE`).
    Close = 7,
}

impl Procedure {
    /// The procedure at this offset from the base; `None`: one that BiStream 1 does not define.
    pub fn from_offset(offset: u32) -> Option<Self> {
        Some(match offset {
            0 => Self::Hello,
            1 => Self::Open,
            2 => Self::Data,
            3 => Self::Credit,
            4 => Self::Stop,
            5 => Self::Ping,
            6 => Self::Pong,
            7 => Self::Close,
            _ => return None,
        })
    }
}

/// The three numbers that tell BiStream packets from all others; both peers must have the same.
///
/// The default is that of `xdr/bistream.x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramId {
    /// The program.
    pub program: u32,
    /// The program's version.
    pub version: u32,
    /// The first of [`PROCEDURE_COUNT`] procedures, HELLO's. One so high that the block passes 2³² goes on at 0.
    pub base: u32,
}

impl Default for ProgramId {
    fn default() -> Self {
        Self { program: PROGRAM, version: VERSION, base: PROCEDURE_BASE }
    }
}

impl ProgramId {
    /// Whether a packet is BiStream's: it has the program and version, and a procedure of the block, known or not.
    pub fn owns(&self, header: &Header) -> bool {
        header.program == self.program && header.version == self.version && self.offset(header) < PROCEDURE_COUNT
    }

    /// The procedure's offset from the base; it means something only for packets that are [owned](Self::owns).
    pub fn offset(&self, header: &Header) -> u32 {
        header.procedure.wrapping_sub(self.base)
    }

    /// The header of a packet of BiStream's.
    pub fn header(&self, procedure: Procedure, kind: PacketType, serial: u32, status: Status) -> Header {
        Header {
            program: self.program,
            version: self.version,
            procedure: self.base.wrapping_add(procedure as u32),
            kind: kind.as_wire(),
            serial,
            status: status.as_wire(),
        }
    }
}
