//! What is said of streams and of the session once they stand.

use xdr_codec::{Pack, Result as XdrResult, Unpack, Write, unpack};

use crate::wire::xdr::{Reader, body, flex_len, pack_cut};

/// What a hole costs of credit, and moves the offset by, whatever its length (`BS_HOLE_CREDIT`).
pub const HOLE_CREDIT: u64 = 16;

/// The most zero bytes that one hole stands for (`BS_HOLE_MAX`).
pub const HOLE_MAX: u64 = 1_073_741_824;

/// Bytes that the text of a [`Close`] may have (`BS_CLOSE_TEXT_MAX`).
pub const CLOSE_TEXT_MAX: usize = 1024;

/// Why a session ends (`BS_CLOSE_…`). All but [`DONE`](close::DONE), unknown ones too, are fatal.
pub mod close {
    /// No new streams; those open may finish (`BS_CLOSE_DONE`).
    pub const DONE: u32 = 0;
    /// The receiver broke the rule named (`BS_CLOSE_VIOLATION`).
    pub const VIOLATION: u32 = 1;
    /// Nothing was heard from the receiver for too long (`BS_CLOSE_SILENT`).
    pub const SILENT: u32 = 2;
    /// The sender's administrator ended it (`BS_CLOSE_SHUTDOWN`).
    pub const SHUTDOWN: u32 = 3;
    /// The receiver asked for more than the sender gives (`BS_CLOSE_OVERLOAD`).
    pub const OVERLOAD: u32 = 4;
    /// The fault is the sender's (`BS_CLOSE_INTERNAL`).
    pub const INTERNAL: u32 = 5;
}

/// A body of integers alone, in the order of their declaration.
macro_rules! integers {
    ($type:ident, $len:expr, { $($field:ident),* }) => {
        body!($type, $len);

        impl<Out: Write> Pack<Out> for $type {
            fn pack(&self, out: &mut Out) -> XdrResult<usize> {
                Ok(0 $(+ self.$field.pack(out)?)*)
            }
        }

        impl Unpack<Reader<'_>> for $type {
            fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
                input.counted(|input| Ok(Self { $($field: unpack(input)?),* }))
            }
        }
    };
}

/// The end of one direction of a stream: DATA, STREAM OK (`bs_finish`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Finish {
    /// The sum of all that was sent in this direction, in bytes.
    pub offset: u64,
}

integers!(Finish, 8, { offset });

/// Zeroes that are not sent: DATA, STREAM_HOLE CONTINUE (`bs_hole`, libvirt's `virNetStreamHole`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hole {
    /// How many bytes: 1 to [`HOLE_MAX`], which is not judged in decoding.
    pub length: u64,
    /// 0, which is not judged in decoding.
    pub flags: u32,
}

integers!(Hole, 8 + 4, { length, flags });

/// What the sender did with a direction of a stream, and what it still takes (`bs_credit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Credit {
    /// The stream's id.
    pub stream: u32,
    /// Delivered up to this offset, in bytes.
    pub consumed: u64,
    /// May be sent up to this offset, in bytes.
    pub limit: u64,
}

integers!(Credit, 4 + 8 + 8, { stream, consumed, limit });

/// What the receiver still sends on a stream is discarded (`bs_stop`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stop {
    /// The stream's id.
    pub stream: u32,
}

integers!(Stop, 4, { stream });

/// The body of PING and of PONG (`bs_ping`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ping {
    /// Any number; PONG returns PING's.
    pub token: u64,
}

integers!(Ping, 8, { token });

/// The end of a session, and why (`bs_close`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Close {
    /// One of [`close`], or one of a later peer's.
    pub code: u32,
    /// The number of the [`Rule`](crate::wire::Rule) broken; 0: none.
    pub rule: u32,
    /// For people. Bytes that are not UTF-8 are replaced in decoding; what is over [`CLOSE_TEXT_MAX`] bytes is cut off
    /// in encoding, between two characters.
    pub text: String,
}

body!(Close, 4 + 4 + flex_len(CLOSE_TEXT_MAX));

impl<Out: Write> Pack<Out> for Close {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(self.code.pack(out)? + self.rule.pack(out)? + pack_cut(&self.text, CLOSE_TEXT_MAX, out)?)
    }
}

impl Unpack<Reader<'_>> for Close {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| {
            Ok(Self {
                code: unpack(input)?,
                rule: unpack(input)?,
                text: String::from_utf8_lossy(input.flex("text", CLOSE_TEXT_MAX)?).into_owned(),
            })
        })
    }
}
