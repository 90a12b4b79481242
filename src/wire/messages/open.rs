//! OPEN and its reply. The stream's id is the header's serial.

use xdr_codec::{Pack, Result as XdrResult, Unpack, Write, pack_string, unpack};

use super::extension::{Extension, LIST_LEN, pack_list, unpack_list};
use crate::wire::BodyError;
use crate::wire::xdr::{Reader, body, flex_len};

/// Bytes that a target name may have (`BS_TARGET_MAX`).
pub const TARGET_MAX: usize = 255;

/// The last priority class (`BS_PRIORITY_MAX`); 0 is the first.
pub const PRIORITY_MAX: u32 = 3;

/// What a stream carries, as far as its opener says: a hint (`BS_KIND_…`).
pub mod kind {
    /// Nothing is said of it (`BS_KIND_BYTES`); unknown kinds are treated as this one.
    pub const BYTES: u32 = 0;
    /// A management connection (`BS_KIND_CONTROL`).
    pub const CONTROL: u32 = 1;
    /// A guest's RAM (`BS_KIND_MEMORY`).
    pub const MEMORY: u32 = 2;
    /// A disk (`BS_KIND_DISK`).
    pub const DISK: u32 = 3;
}

/// Whether a target may have this name: 1 to [`TARGET_MAX`] bytes, no control character.
pub fn is_valid_target(name: &str) -> bool {
    (1..=TARGET_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// The call for a new stream (`bs_open`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Open {
    /// What the acceptor shall connect it to: UTF-8 of at most [`TARGET_MAX`] bytes. The rest of the
    /// rule is [`is_valid_target`]'s and not judged in decoding.
    pub target: String,
    /// A [`kind`], known or not.
    pub kind: u32,
    /// 0 first to [`PRIORITY_MAX`] last, which is not judged in decoding.
    pub priority: u32,
    /// The offset, in bytes, up to which the acceptor may send.
    pub window: u64,
    /// At most [`EXTENSIONS_MAX`](super::EXTENSIONS_MAX).
    pub extensions: Vec<Extension>,
}

body!(Open, flex_len(TARGET_MAX) + 4 + 4 + 8 + LIST_LEN);

impl<Out: Write> Pack<Out> for Open {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(pack_string(&self.target, Some(TARGET_MAX), out)?
            + self.kind.pack(out)?
            + self.priority.pack(out)?
            + self.window.pack(out)?
            + pack_list(&self.extensions, out)?)
    }
}

impl Unpack<Reader<'_>> for Open {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| {
            let target = std::str::from_utf8(input.flex("target name", TARGET_MAX)?).unwrap_or_else(|_| {
                input.note(BodyError::Utf8);
                ""
            });
            Ok(Self {
                target: target.to_owned(),
                kind: unpack(input)?,
                priority: unpack(input)?,
                window: unpack(input)?,
                extensions: unpack_list(input)?,
            })
        })
    }
}

/// The acceptor's answer (`bs_open_reply`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OpenReply {
    /// The offset, in bytes, up to which the opener may send.
    pub window: u64,
    /// At most [`EXTENSIONS_MAX`](super::EXTENSIONS_MAX).
    pub extensions: Vec<Extension>,
}

body!(OpenReply, 8 + LIST_LEN);

impl<Out: Write> Pack<Out> for OpenReply {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(self.window.pack(out)? + pack_list(&self.extensions, out)?)
    }
}

impl Unpack<Reader<'_>> for OpenReply {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| Ok(Self { window: unpack(input)?, extensions: unpack_list(input)? }))
    }
}
