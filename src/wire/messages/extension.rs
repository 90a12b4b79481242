//! Extensions: how a later peer says more without a new version.

use xdr_codec::{Pack, Result as XdrResult, Unpack, Write, pack_flex, pack_opaque_flex, unpack};

use crate::wire::xdr::{Reader, flex_len};

/// Extensions that one body may have (`BS_EXTENSIONS_MAX`).
pub const EXTENSIONS_MAX: usize = 16;

/// Bytes that one extension's value may have (`BS_EXTENSION_LEN`).
pub const EXTENSION_LEN: usize = 1024;

/// Reserved for resuming and striping: the session's secret, 16 bytes (`BS_EXT_SESSION`).
pub const EXT_SESSION: u32 = 1;

/// In HELLO: the secret of a ticket that the accepting side's administrator gave out, 32 bytes (`BS_EXT_TICKET`).
pub const EXT_TICKET: u32 = 2;

/// The longest list of extensions, in bytes.
pub(super) const LIST_LEN: usize = 4 + EXTENSIONS_MAX * (4 + 4 + flex_len(EXTENSION_LEN));

/// Something a peer adds to HELLO, OPEN or a reply to them (`bs_extension`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Extension {
    /// Which it is; `type` in the `.x`.
    pub kind: u32,
    /// Whether a receiver that does not know it must refuse.
    pub needed: bool,
    /// At most [`EXTENSION_LEN`] bytes, whose meaning goes with `kind`.
    pub value: Vec<u8>,
}

impl<Out: Write> Pack<Out> for Extension {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(self.kind.pack(out)? + self.needed.pack(out)? + pack_opaque_flex(&self.value, Some(EXTENSION_LEN), out)?)
    }
}

impl Unpack<Reader<'_>> for Extension {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| {
            Ok(Self {
                kind: unpack(input)?,
                needed: input.flag()?,
                value: input.flex("extension", EXTENSION_LEN)?.to_vec(),
            })
        })
    }
}

pub(super) fn pack_list(list: &[Extension], out: &mut impl Write) -> XdrResult<usize> {
    pack_flex(list, Some(EXTENSIONS_MAX), out)
}

pub(super) fn unpack_list(input: &mut Reader<'_>) -> XdrResult<Vec<Extension>> {
    input.list("list of extensions", EXTENSIONS_MAX)
}
