//! The strict glue over xdr-codec: what it does not check itself is checked here.

use std::io::{self, Read, Write};

use thiserror::Error;
use xdr_codec::{Error as XdrError, ErrorKind, Pack, Result as XdrResult, Unpack};

use super::header::{HEADER_LEN, Header};

/// The payload of a control packet: a struct of `xdr/bistream.x`.
pub trait Body: Sized {
    /// The longest legal encoding, in bytes.
    const MAX_LEN: u32;

    /// Reads a whole payload, strictly: every byte there, padding zero, every bound kept, nothing after the end.
    ///
    /// # Errors
    ///
    /// [`BodyError`] says what is wrong; a bound is checked before anything is allocated for what it bounds.
    fn decode(bytes: &[u8]) -> Result<Self, BodyError>;

    /// Writes the payload and returns its length in bytes, at most [`MAX_LEN`](Self::MAX_LEN).
    ///
    /// # Errors
    ///
    /// Those of `out`, and [`io::ErrorKind::InvalidInput`] for a list or string over its bound. The texts of
    /// [`RemoteError`](super::RemoteError) and [`Close`](super::Close) are cut at theirs instead.
    fn encode(&self, out: &mut impl Write) -> io::Result<usize>;
}

/// Why a payload is not what its packet's header says. The peer is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// It ends too early.
    #[error("the body ends too early")]
    Truncated,
    /// Bytes follow its end.
    #[error("{extra} bytes follow the end of the body")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// The bytes that fill up a word are not zero.
    #[error("padding is not zero")]
    Padding,
    /// A bool, or the mark of an optional value, is neither 0 nor 1.
    #[error("{0} is not a bool")]
    Bool(u32),
    /// A list or string is over its bound.
    #[error("{what} of length {len} is over the limit of {max}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its length: elements of a list, bytes of a string.
        len: u32,
        /// The bound, in the same unit.
        max: u32,
    },
    /// A name is not UTF-8.
    #[error("a name is not UTF-8")]
    Utf8,
    /// A value that the type does not have.
    #[error("{what} has no such value")]
    Value {
        /// Which.
        what: &'static str,
    },
}

/// Reads a whole payload; see [`Body::decode`].
///
/// # Errors
///
/// [`BodyError`] says what is wrong with it.
pub fn decode_body<T: Body>(bytes: &[u8]) -> Result<T, BodyError> {
    T::decode(bytes)
}

/// Puts a packet, header and body, into the front of `out` and returns its length in bytes.
///
/// `None`: it does not fit, or the body is over one of its bounds, which a caller rules out beforehand; what `out`
/// holds is then not specified. [`HEADER_LEN`] + [`Body::MAX_LEN`] bytes always do. Nothing is allocated.
pub fn encode_packet<T: Body>(header: &Header, body: &T, out: &mut [u8]) -> Option<usize> {
    let (head, mut room) = out.split_first_chunk_mut::<HEADER_LEN>()?;
    // xdr-codec's errors are dear (a backtrace), and a full buffer is nothing unusual: measure first.
    if room.len() < T::MAX_LEN as usize && body.encode(&mut io::sink()).ok()? > room.len() {
        return None;
    }
    let payload_len = body.encode(&mut room).ok()?;
    *head = header.encode(u32::try_from(payload_len).ok()?);
    Some(HEADER_LEN + payload_len)
}

/// Implements [`Body`] for a type that xdr-codec can pack and [`Reader`] unpack; `$max` is in bytes.
macro_rules! body {
    ($type:ty, $max:expr) => {
        impl $crate::wire::Body for $type {
            const MAX_LEN: u32 = $crate::wire::xdr::length_word($max);

            fn decode(bytes: &[u8]) -> Result<Self, $crate::wire::BodyError> {
                $crate::wire::xdr::decode_whole(bytes)
            }

            fn encode(&self, out: &mut impl std::io::Write) -> std::io::Result<usize> {
                $crate::wire::xdr::encode_whole(self, out)
            }
        }
    };
}
pub(super) use body;

/// What a body is unpacked from: a slice that notes its first fault and reads as zeroes from there on.
///
/// So a bad body costs no error of xdr-codec's, which takes a backtrace, megabytes of it the first time, wherever
/// `RUST_BACKTRACE` is set; whoever made it looks for the fault. After one, lists and strings are empty: there is no end
/// to run after.
///
/// Types of programs of your own implement xdr-codec's `Unpack<Reader<'_>>` and read strings, bytes and lists by the methods
/// here, which take a bound: xdr-codec's own reserve what the peer says. Integers and structs of them go as usual.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    fault: Option<BodyError>,
}

impl Read for Reader<'_> {
    /// Ends with an error where std's reader of slices says `Ok(0)`, with which xdr-codec loops without end (`opaque[16]`)
    /// or takes short data for whole (`opaque<N>`). What is here does not use it.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() && !buf.is_empty() {
            self.note(BodyError::Truncated);
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest.read(buf)
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        match self.rest.split_at_checked(buf.len()) {
            Some((bytes, rest)) => {
                buf.copy_from_slice(bytes);
                self.rest = rest;
            }
            None => {
                self.note(BodyError::Truncated);
                buf.fill(0);
            }
        }
        Ok(())
    }
}

impl<'a> Reader<'a> {
    /// Unpacks what `fields` takes, and counts its bytes, as [`Unpack::unpack`] must.
    ///
    /// # Errors
    /// Those of `fields`.
    pub fn counted<T>(&mut self, fields: impl FnOnce(&mut Self) -> XdrResult<T>) -> XdrResult<(T, usize)> {
        let before = self.rest.len();
        let value = fields(self)?;
        Ok((value, before - self.rest.len()))
    }

    /// Notes what is wrong, where nothing was before.
    #[cold]
    pub fn note(&mut self, fault: BodyError) {
        self.fault.get_or_insert(fault);
        self.rest = &[];
    }

    /// A bool, or the mark of an optional value: 0 or 1. Another number is noted, and false.
    ///
    /// # Errors
    /// None; it is what `?` wants.
    pub fn flag(&mut self) -> XdrResult<bool> {
        let word: u32 = xdr_codec::unpack(self)?;
        if word > 1 {
            self.note(BodyError::Bool(word));
        }
        Ok(word == 1)
    }

    /// `len` bytes and their padding, of a length that is known (`opaque[len]`), in place.
    pub fn fixed(&mut self, len: usize) -> &'a [u8] {
        let padded = self.rest.split_at_checked(len).and_then(|(bytes, rest)| {
            let (padding, rest) = rest.split_at_checked(xdr_codec::padding(len).len())?;
            Some((bytes, padding, rest))
        });
        match padded {
            Some((bytes, padding, rest)) if padding.iter().all(|&byte| byte == 0) => {
                self.rest = rest;
                return bytes;
            }
            Some(_) => self.note(BodyError::Padding),
            None => self.note(BodyError::Truncated),
        }
        &[]
    }

    /// At most `max` bytes and their padding (`opaque<max>`, `string<max>`), in place.
    ///
    /// # Errors
    /// None; it is what `?` wants.
    pub fn flex(&mut self, what: &'static str, max: usize) -> XdrResult<&'a [u8]> {
        let len = self.length(what, max)?;
        Ok(self.fixed(len))
    }

    /// At most `max` elements (`T<max>`).
    ///
    /// # Errors
    /// Those of the elements.
    pub fn list<T: Unpack<Self>>(&mut self, what: &'static str, max: usize) -> XdrResult<Vec<T>> {
        let len = self.length(what, max)?;
        let mut list = Vec::with_capacity(len);
        for _ in 0..len {
            list.push(xdr_codec::unpack(self)?);
        }
        Ok(list)
    }

    fn length(&mut self, what: &'static str, max: usize) -> XdrResult<usize> {
        let len: u32 = xdr_codec::unpack(self)?;
        if len as usize > max {
            self.note(BodyError::TooLong { what, len, max: length_word(max) });
            return Ok(0);
        }
        Ok(len as usize)
    }
}

/// Packs `text`, cut at `max` bytes or at the last character that ends before.
pub(super) fn pack_cut(text: &str, max: usize, out: &mut impl Write) -> XdrResult<usize> {
    let cut = text.get(..text.floor_char_boundary(max)).unwrap_or(text);
    xdr_codec::pack_string(cut, Some(max), out)
}

/// The longest encoding of `opaque<max>` or `string<max>`, in bytes.
pub(super) const fn flex_len(max: usize) -> usize {
    4 + max.next_multiple_of(4)
}

/// A bound of `xdr/bistream.x`, as a length word.
pub(super) const fn length_word(bound: usize) -> u32 {
    assert!(bound <= u32::MAX as usize);
    #[allow(clippy::cast_possible_truncation, reason = "asserted")]
    {
        bound as u32
    }
}

/// Reads arguments or a reply of libvirt's programs: strictly, but that bytes may follow, as libvirt takes it.
///
/// # Errors
///
/// [`BodyError`] says what is wrong with it.
pub fn decode_legacy<'a, T: Unpack<Reader<'a>>>(bytes: &'a [u8]) -> Result<T, BodyError> {
    decode_front(bytes).0
}

pub(super) fn decode_whole<'a, T: Unpack<Reader<'a>>>(bytes: &'a [u8]) -> Result<T, BodyError> {
    match decode_front(bytes) {
        (Ok(_), rest) if !rest.is_empty() => Err(BodyError::Trailing { extra: rest.len() }),
        (value, _) => value,
    }
}

/// The value in front, and what follows it.
fn decode_front<'a, T: Unpack<Reader<'a>>>(bytes: &'a [u8]) -> (Result<T, BodyError>, &'a [u8]) {
    let mut input = Reader { rest: bytes, fault: None };
    let value = xdr_codec::unpack(&mut input);
    let Reader { rest, fault } = input;
    let value = match (value, fault) {
        (_, Some(fault)) => Err(fault),
        (Ok(value), None) => Ok(value),
        // No field of ours makes an error of xdr-codec's own.
        (Err(_), None) => Err(BodyError::Value { what: "a field" }),
    };
    (value, rest)
}

pub(super) fn encode_whole<W: Write, T: Pack<W>>(body: &T, out: &mut W) -> io::Result<usize> {
    body.pack(out).map_err(|XdrError(kind, _)| match kind {
        ErrorKind::IOError(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidInput, other.to_string()),
    })
}
