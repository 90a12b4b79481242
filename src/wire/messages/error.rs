//! Errors as they travel: libvirt's `virNetMessageError`, with bounds.

use std::fmt::{self, Write as _};

use xdr_codec::{Pack, Result as XdrResult, Unpack, Write, unpack};

use crate::wire::xdr::{Reader, body, flex_len, pack_cut};

/// Bytes that each text of an error may have (`BS_ERROR_TEXT_MAX`).
pub const ERROR_TEXT_MAX: usize = 1024;

/// Bytes that the name of a domain or network in an error may have (`BS_ERROR_NAME_MAX`).
pub const ERROR_NAME_MAX: usize = 256;

/// The level of an error that is an error, and no warning (libvirt's `VIR_ERR_ERROR`).
pub const ERROR_LEVEL: i32 = 2;

/// libvirt's error numbers (`virErrorNumber`) that BiStream uses.
pub mod codes {
    /// The fault is the sender's (`VIR_ERR_INTERNAL_ERROR`).
    pub const INTERNAL_ERROR: i32 = 1;
    /// Not known to the peer (`VIR_ERR_NO_SUPPORT`); in a refusal of HELLO: a legacy peer.
    pub const NO_SUPPORT: i32 = 3;
    /// The call is wrong (`VIR_ERR_INVALID_ARG`).
    pub const INVALID_ARG: i32 = 8;
    /// Policy forbids it (`VIR_ERR_OPERATION_DENIED`).
    pub const OPERATION_DENIED: i32 = 29;
    /// A system call failed; `int1` is its errno (`VIR_ERR_SYSTEM_ERROR`).
    pub const SYSTEM_ERROR: i32 = 38;
    /// No such program or procedure, or it was called badly (`VIR_ERR_RPC`); in a refusal of HELLO: a legacy peer.
    pub const RPC: i32 = 39;
    /// Not authenticated (`VIR_ERR_AUTH_FAILED`).
    pub const AUTH_FAILED: i32 = 45;
    /// Not now (`VIR_ERR_OPERATION_INVALID`).
    pub const OPERATION_INVALID: i32 = 55;
    /// It took too long (`VIR_ERR_OPERATION_TIMEOUT`).
    pub const OPERATION_TIMEOUT: i32 = 68;
    /// It was given up (`VIR_ERR_OPERATION_ABORTED`).
    pub const OPERATION_ABORTED: i32 = 78;
    /// Not known here, or not in common (`VIR_ERR_OPERATION_UNSUPPORTED`).
    pub const OPERATION_UNSUPPORTED: i32 = 84;
    /// What it takes is used up (`VIR_ERR_RESOURCE_BUSY`).
    pub const RESOURCE_BUSY: i32 = 87;
    /// This caller may not (`VIR_ERR_ACCESS_DENIED`).
    pub const ACCESS_DENIED: i32 = 88;
    /// No such target (`VIR_ERR_DEVICE_MISSING`).
    pub const DEVICE_MISSING: i32 = 99;
}

/// libvirt's error domains (`virErrorDomain`) that BiStream uses.
pub mod domains {
    /// Calls and their answers (`VIR_FROM_RPC`).
    pub const RPC: i32 = 7;
    /// Streams (`VIR_FROM_STREAMS`).
    pub const STREAMS: i32 = 38;
}

/// What a peer says went wrong (`bs_error`, libvirt's `virNetMessageError`).
///
/// Texts are read as whatever they are: bytes that are not UTF-8 are replaced. In encoding, what is over
/// [`ERROR_TEXT_MAX`] bytes is cut off between two characters. The domain and the network that libvirt may name are passed
/// over in decoding and absent in encoding.
///
/// This is what libvirt answers to an unknown procedure:
///
/// ```
/// use virbistream::wire::{RemoteError, codes, domains};
///
/// let error = RemoteError::new(codes::RPC, domains::RPC, "unknown procedure: 9999").with_ints(-1, -1);
/// assert_eq!(error.to_string(), "unknown procedure: 9999 (libvirt error 39)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteError {
    /// One of [`codes`], or another of libvirt's.
    pub code: i32,
    /// One of [`domains`], or another of libvirt's.
    pub domain: i32,
    /// What happened, for people; perhaps translated. Absent on the wire reads as empty.
    pub message: String,
    /// [`ERROR_LEVEL`], or 1 for a warning.
    pub level: i32,
    /// By libvirt's habit the format of the message, `%s`.
    pub str1: Option<String>,
    /// By libvirt's habit what the format is filled with: the message.
    pub str2: Option<String>,
    /// By libvirt's habit more for the format.
    pub str3: Option<String>,
    /// The sender's errno, or 0 or -1.
    pub int1: i32,
    /// In BiStream the number of the [`Rule`](crate::wire::Rule) broken, or 0; libvirt sends -1.
    pub int2: i32,
}

body!(
    RemoteError,
    // code, domain, message; level, dom; str1, str2, str3; int1, int2; net
    8 + TEXT_LEN + 4 + (4 + NAME_LEN + UUID_LEN + 4) + 3 * TEXT_LEN + 8 + (4 + NAME_LEN + UUID_LEN)
);

const TEXT_LEN: usize = 4 + flex_len(ERROR_TEXT_MAX);
const NAME_LEN: usize = flex_len(ERROR_NAME_MAX);
const UUID_LEN: usize = 16;

impl RemoteError {
    /// An error in libvirt's shape: level 2, `str1` "%s", `str2` the message, no `str3`, both ints 0.
    pub fn new(code: i32, domain: i32, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            domain,
            level: ERROR_LEVEL,
            str1: Some("%s".to_owned()),
            str2: Some(message.clone()),
            str3: None,
            int1: 0,
            int2: 0,
            message,
        }
    }

    /// The same with these ints: an errno and a rule's number, where there are such.
    #[must_use]
    pub fn with_ints(self, int1: i32, int2: i32) -> Self {
        Self { int1, int2, ..self }
    }
}

/// The message, escaped, and the code.
impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (libvirt error {})", Escaped(&self.message), self.code)
    }
}

/// A peer's words as they can be shown: control characters, which could speak to a terminal, are escaped.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character.is_control() {
            true => write!(f, "{}", character.escape_default()),
            false => f.write_char(character),
        })
    }
}

impl std::error::Error for RemoteError {}

impl<Out: Write> Pack<Out> for RemoteError {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        Ok(self.code.pack(out)?
            + self.domain.pack(out)?
            + Some(Cut(&self.message)).pack(out)?
            + self.level.pack(out)?
            + false.pack(out)?
            + self.str1.as_deref().map(Cut).pack(out)?
            + self.str2.as_deref().map(Cut).pack(out)?
            + self.str3.as_deref().map(Cut).pack(out)?
            + self.int1.pack(out)?
            + self.int2.pack(out)?
            + false.pack(out)?)
    }
}

impl Unpack<Reader<'_>> for RemoteError {
    fn unpack(input: &mut Reader<'_>) -> XdrResult<(Self, usize)> {
        input.counted(|input| {
            let code = unpack(input)?;
            let domain = unpack(input)?;
            let message = optional_text(input)?.unwrap_or_default();
            let level = unpack(input)?;
            if input.flag()? {
                named(input)?;
                let _id: i32 = unpack(input)?;
            }
            let error = Self {
                code,
                domain,
                message,
                level,
                str1: optional_text(input)?,
                str2: optional_text(input)?,
                str3: optional_text(input)?,
                int1: unpack(input)?,
                int2: unpack(input)?,
            };
            if input.flag()? {
                named(input)?;
            }
            Ok(error)
        })
    }
}

/// A text that is cut where its bound is.
struct Cut<'a>(&'a str);

impl<Out: Write> Pack<Out> for Cut<'_> {
    fn pack(&self, out: &mut Out) -> XdrResult<usize> {
        pack_cut(self.0, ERROR_TEXT_MAX, out)
    }
}

fn optional_text(input: &mut Reader<'_>) -> XdrResult<Option<String>> {
    if !input.flag()? {
        return Ok(None);
    }
    let bytes = input.flex("error text", ERROR_TEXT_MAX)?;
    Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
}

/// The name and UUID of a domain or network, passed over.
fn named(input: &mut Reader<'_>) -> XdrResult<()> {
    input.flex("name", ERROR_NAME_MAX)?;
    input.fixed(UUID_LEN);
    Ok(())
}
