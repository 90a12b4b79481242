//! HELLO and its reply.

use xdr_codec::{Pack, Result as XdrResult, Unpack, Write, unpack};

use super::extension::{Extension, LIST_LEN, pack_list, unpack_list};
use crate::wire::xdr::{Reader, body};

/// The version of BiStream that this library speaks (`BS_BISTREAM_1`).
pub const BISTREAM_1: u32 = 1;

/// The least `max_data` that a peer may state, in bytes (`BS_DATA_MIN`).
pub const DATA_MIN: u32 = 4096;

/// The greatest `max_data` that a peer may state, in bytes (`BS_DATA_MAX`).
pub const DATA_MAX: u32 = 16_777_216;

/// Feature bits, as HELLO offers them and its reply picks them (`BS_FEATURE_…`).
pub mod feature {
    /// Zeroes travel as STREAM_HOLE (`BS_FEATURE_HOLES`).
    pub const HOLES: u64 = 1;
    /// Reserved: a session outlives its link (`BS_FEATURE_RESUME`).
    pub const RESUME: u64 = 2;
    /// Reserved: a session has several links at once (`BS_FEATURE_STRIPE`).
    pub const STRIPE: u64 = 4;
}

/// What its sender takes from the receiver (`bs_limits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Payload bytes of one DATA packet: [`DATA_MIN`] to [`DATA_MAX`], which is not judged here.
    pub max_data: u32,
    /// Streams that the receiver may have open at the sender at once; 0: none.
    pub max_streams: u32,
}

impl<Out: Write> Pack<Out> for Limits {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(self.max_data.pack(out)? + self.max_streams.pack(out)?)
    }
}

impl Unpack<Reader<'_>> for Limits {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| Ok(Self { max_data: unpack(input)?, max_streams: unpack(input)? }))
    }
}

/// The connecting side's call (`bs_hello`). Its layout is the same in every version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The least version that the caller speaks.
    pub min_version: u32,
    /// The greatest.
    pub max_version: u32,
    /// [`feature`] bits that the caller can do; they include those it needs.
    pub offered: u64,
    /// Feature bits that the caller does not go without.
    pub needed: u64,
    /// What the caller takes.
    pub limits: Limits,
    /// At most [`EXTENSIONS_MAX`](super::EXTENSIONS_MAX).
    pub extensions: Vec<Extension>,
}

body!(Hello, 4 + 4 + 8 + 8 + 8 + LIST_LEN);

impl<Out: Write> Pack<Out> for Hello {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(self.min_version.pack(out)?
            + self.max_version.pack(out)?
            + self.offered.pack(out)?
            + self.needed.pack(out)?
            + self.limits.pack(out)?
            + pack_list(&self.extensions, out)?)
    }
}

impl Unpack<Reader<'_>> for Hello {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| {
            Ok(Self {
                min_version: unpack(input)?,
                max_version: unpack(input)?,
                offered: unpack(input)?,
                needed: unpack(input)?,
                limits: unpack(input)?,
                extensions: unpack_list(input)?,
            })
        })
    }
}

/// The accepting side's answer (`bs_hello_reply`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HelloReply {
    /// The version in force; `chosen` in the `.x`.
    pub version: u32,
    /// The [`feature`] bits in force.
    pub features: u64,
    /// What the accepting side takes.
    pub limits: Limits,
    /// At most [`EXTENSIONS_MAX`](super::EXTENSIONS_MAX).
    pub extensions: Vec<Extension>,
}

body!(HelloReply, 4 + 8 + 8 + LIST_LEN);

impl<Out: Write> Pack<Out> for HelloReply {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(self.version.pack(out)?
            + self.features.pack(out)?
            + self.limits.pack(out)?
            + pack_list(&self.extensions, out)?)
    }
}

impl Unpack<Reader<'_>> for HelloReply {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| {
            Ok(Self {
                version: unpack(input)?,
                features: unpack(input)?,
                limits: unpack(input)?,
                extensions: unpack_list(input)?,
            })
        })
    }
}
