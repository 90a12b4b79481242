use std::fmt;

use xdr_codec::Unpack;

use crate::wire::{Header, PacketType, Reader, RemoteError, Status, codes, decode_legacy, domains};

/// libvirt's remote program (`LV_REMOTE_PROGRAM`).
pub const REMOTE: u32 = 0x2000_8086;

/// libvirt's keepalive program (`LV_KEEPALIVE_PROGRAM`).
pub const KEEPALIVE: u32 = 0x6b65_6570;

/// The keepalive program's messages (`LV_KEEPALIVE_PING`, `LV_KEEPALIVE_PONG`).
pub(super) const PING: u32 = 1;
pub(super) const PONG: u32 = 2;

/// A procedure of a version of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcedureId {
    /// The program.
    pub program: u32,
    /// The program's version.
    pub version: u32,
    /// The procedure's number in it.
    pub procedure: u32,
}

impl ProcedureId {
    /// A procedure of libvirt's remote program.
    pub const fn remote(procedure: u32) -> Self {
        Self { program: REMOTE, version: 1, procedure }
    }

    pub(super) fn of(header: &Header) -> Self {
        Self { program: header.program, version: header.version, procedure: header.procedure }
    }

    pub(super) fn header(self, kind: PacketType, serial: u32, status: Status) -> Header {
        Header {
            program: self.program,
            version: self.version,
            procedure: self.procedure,
            kind: kind.as_wire(),
            serial,
            status: status.as_wire(),
        }
    }
}

/// `20008086/1/66`
impl fmt::Display for ProcedureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}/{}/{}", self.program, self.version, self.procedure)
    }
}

/// The answer to a call of what there is not, as libvirt gives it: with `%s` for the text and no ints.
pub(super) fn rpc_error(text: String) -> RemoteError {
    RemoteError::new(codes::RPC, domains::RPC, text).with_ints(-1, -1)
}

/// libvirt prints the numbers as signed.
pub(crate) fn unknown_program(id: ProcedureId) -> RemoteError {
    rpc_error(format!("Cannot find program {} version {}", id.program.cast_signed(), id.version.cast_signed()))
}

/// The answer to a call of a procedure that a known program has not.
pub(crate) fn unknown_procedure(id: ProcedureId) -> RemoteError {
    rpc_error(format!("unknown procedure: {}", id.procedure.cast_signed()))
}

/// The arguments of a call.
///
/// # Errors
/// What libvirt answers to arguments that do not decode.
pub fn decode_arguments<'a, T: Unpack<Reader<'a>>>(arguments: &'a [u8]) -> Result<T, RemoteError> {
    decode_legacy(arguments).map_err(|_| rpc_error("Unable to decode message payload".into()))
}
