//! NBD's numbers and byte layouts, as far as the demo speaks them. All integers are big endian.

use super::error::Error;

pub(super) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// The most that one READ or WRITE may carry, and the most that the server says it takes.
pub(super) const MAX_PAYLOAD: u32 = 32 << 20;
/// The most that an option or its reply may carry: a name is at most 4096 bytes, the rest is a handful of integers.
pub(super) const MAX_OPTION: u32 = 16 << 10;

/// The server's flags of the greeting; the client's answer uses the same bits.
pub(super) mod handshake {
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1;
    pub(in super::super) const NO_ZEROES: u16 = 2;
}

pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
}

pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    /// Replies with this bit are errors.
    pub(in super::super) const ERROR: u32 = 1 << 31;
    pub(in super::super) const UNSUPPORTED: u32 = ERROR | 1;
    pub(in super::super) const INVALID: u32 = ERROR | 3;
    pub(in super::super) const UNKNOWN: u32 = ERROR | 6;
}

pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(super) mod can {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const FLUSH: u16 = 1 << 2;
    pub(in super::super) const FUA: u16 = 1 << 3;
    pub(in super::super) const WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const MULTI_CONN: u16 = 1 << 8;
}

pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISC: u16 = 2;
    pub(in super::super) const FLUSH: u16 = 3;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;

    /// On any command: it is on stable storage before the reply.
    pub(in super::super) const FLAG_FUA: u16 = 1;
    /// On WRITE_ZEROES: allocate the space, leave no hole.
    pub(in super::super) const FLAG_NO_HOLE: u16 = 2;
}

/// NBD's error numbers; Linux's, by no accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errno {
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
}

pub(super) fn errno_name(errno: u32) -> String {
    let name = match errno {
        1 => "EPERM",
        5 => "EIO",
        12 => "ENOMEM",
        22 => "EINVAL",
        28 => "ENOSPC",
        75 => "EOVERFLOW",
        95 => "ENOTSUP",
        108 => "ESHUTDOWN",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

pub(super) fn command_name(number: u16) -> String {
    let name = match number {
        command::READ => "a READ",
        command::WRITE => "a WRITE",
        command::FLUSH => "a FLUSH",
        command::WRITE_ZEROES => "a WRITE_ZEROES",
        other => return format!("command {other}"),
    };
    name.to_owned()
}

/// The server's first 18 bytes.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) flags: u16,
}

impl Greeting {
    pub(super) const LEN: usize = 18;

    pub(super) fn encode(&self) -> Vec<u8> {
        [&NBD_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &self.flags.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Greeting, Error> {
        let mut fields = Fields::new(bytes, "greeting");
        fields.magic(NBD_MAGIC)?;
        fields.magic(OPTION_MAGIC)?;
        let flags = fields.u16()?;
        fields.end()?;
        Ok(Greeting { flags })
    }
}

/// The client's words before an option's data.
#[derive(Debug)]
pub(super) struct OptionHeader {
    pub(super) option: u32,
    pub(super) length: u32,
}

impl OptionHeader {
    pub(super) const LEN: usize = 16;

    pub(super) fn encode(&self) -> Vec<u8> {
        [&OPTION_MAGIC.to_be_bytes()[..], &self.option.to_be_bytes(), &self.length.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<OptionHeader, Error> {
        let mut fields = Fields::new(bytes, "option");
        fields.magic(OPTION_MAGIC)?;
        let (option, length) = (fields.u32()?, fields.u32()?);
        fields.end()?;
        Ok(OptionHeader { option, length })
    }
}

/// The server's words before the data of its reply to an option.
#[derive(Debug)]
pub(super) struct OptionReply {
    pub(super) option: u32,
    pub(super) kind: u32,
    pub(super) length: u32,
}

impl OptionReply {
    pub(super) const LEN: usize = 20;

    pub(super) fn encode(&self) -> Vec<u8> {
        let words = [self.option, self.kind, self.length].map(u32::to_be_bytes);
        [&OPTION_REPLY_MAGIC.to_be_bytes()[..], words.as_flattened()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<OptionReply, Error> {
        let mut fields = Fields::new(bytes, "reply to an option");
        fields.magic(OPTION_REPLY_MAGIC)?;
        let (option, kind, length) = (fields.u32()?, fields.u32()?, fields.u32()?);
        fields.end()?;
        Ok(OptionReply { option, kind, length })
    }
}

/// The data of INFO and GO: a name, then the kinds of information wished for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest {
    pub(super) name: String,
}

impl InfoRequest {
    pub(super) fn encode(&self) -> Result<Vec<u8>, Error> {
        let name = self.name.as_bytes();
        let length = u32::try_from(name.len()).map_err(|_| Error::Size("export's name"))?;
        Ok([&length.to_be_bytes()[..], name, &0u16.to_be_bytes()].concat())
    }

    /// The wishes are checked for their number only: the server tells all it has.
    pub(super) fn decode(bytes: &[u8]) -> Result<InfoRequest, Error> {
        let mut fields = Fields::new(bytes, "request for information");
        let length = fields.u32()?;
        let name = fields.text(length)?;
        for _ in 0..fields.u16()? {
            fields.u16()?;
        }
        fields.end()?;
        Ok(InfoRequest { name })
    }
}

/// An export's size in bytes and what it can do ([`can`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExportInfo {
    pub(super) size: u64,
    pub(super) flags: u16,
}

impl ExportInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.size.to_be_bytes()[..], &self.flags.to_be_bytes()].concat()
    }

    pub(super) fn encode_info(&self) -> Vec<u8> {
        [&info::EXPORT.to_be_bytes()[..], &self.encode()].concat()
    }

    /// None when the information is of another kind.
    pub(super) fn decode_info(bytes: &[u8]) -> Result<Option<ExportInfo>, Error> {
        let mut fields = Fields::new(bytes, "information about the export");
        if fields.u16()? != info::EXPORT {
            return Ok(None);
        }
        let (size, flags) = (fields.u64()?, fields.u16()?);
        fields.end()?;
        Ok(Some(ExportInfo { size, flags }))
    }
}

/// The server's block sizes: least, preferred and most bytes of a request.
pub(super) fn encode_block_sizes(least: u32, preferred: u32, most: u32) -> Vec<u8> {
    let words = [least, preferred, most].map(u32::to_be_bytes);
    [&info::BLOCK_SIZE.to_be_bytes()[..], words.as_flattened()].concat()
}

/// One request; the data of a WRITE follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    pub(super) const LEN: usize = 28;

    pub(super) fn encode(&self) -> Vec<u8> {
        [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ]
        .concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Request, Error> {
        let mut fields = Fields::new(bytes, "request");
        fields.magic32(REQUEST_MAGIC)?;
        let (flags, command) = (fields.u16()?, fields.u16()?);
        let (cookie, offset, length) = (fields.u64()?, fields.u64()?, fields.u32()?);
        fields.end()?;
        Ok(Request { flags, command, cookie, offset, length })
    }
}

/// A simple reply; the data of a READ that went well follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) errno: u32,
    pub(super) cookie: u64,
}

impl Reply {
    pub(super) const LEN: usize = 16;

    pub(super) fn encode(&self) -> Vec<u8> {
        [&REPLY_MAGIC.to_be_bytes()[..], &self.errno.to_be_bytes(), &self.cookie.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Reply, Error> {
        let mut fields = Fields::new(bytes, "reply");
        fields.magic32(REPLY_MAGIC)?;
        let (errno, cookie) = (fields.u32()?, fields.u64()?);
        fields.end()?;
        Ok(Reply { errno, cookie })
    }
}

/// Takes integers off the front of a message, and says which message was too short.
struct Fields<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn new(rest: &'a [u8], what: &'static str) -> Fields<'a> {
        Fields { rest, what }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(Error::Size(self.what))?;
        self.rest = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, length: u32) -> Result<String, Error> {
        let (text, rest) = self.rest.split_at_checked(length as usize).ok_or(Error::Size(self.what))?;
        self.rest = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn magic(&mut self, wanted: u64) -> Result<(), Error> {
        let got = self.u64()?;
        if got == wanted { Ok(()) } else { Err(Error::Magic { what: self.what, got }) }
    }

    fn magic32(&mut self, wanted: u32) -> Result<(), Error> {
        let got = self.u32()?;
        if got == wanted { Ok(()) } else { Err(Error::Magic { what: self.what, got: got.into() }) }
    }

    fn end(&self) -> Result<(), Error> {
        if self.rest.is_empty() { Ok(()) } else { Err(Error::Size(self.what)) }
    }
}
