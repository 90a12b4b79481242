//! What a client and a server of NBD say to each other, read along: a state machine fed with both directions, in any pieces.
//!
//! It judges nobody. What it does not understand, TLS above all, ends what it tells, and never what passes.

use std::collections::HashMap;
use std::sync::Arc;

use super::disk::{Counts, Disk, Done};
use super::wire::*;

/// Requests that may be under way; QEMU has 16 and libnbd 64.
const REQUESTS_MAX: usize = 1024;

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Client,
    Server,
}

/// Reads one connection along and counts for its disk.
#[derive(Debug)]
pub(crate) struct Observer {
    disk: Arc<Disk>,
    /// `None` once something was not understood.
    ends: Option<Box<Ends>>,
}

#[derive(Debug)]
struct Ends {
    client: Gather,
    server: Gather,
    dialogue: Dialogue,
}

/// One direction: bytes to pass over, then a piece to be understood as a whole.
#[derive(Debug)]
struct Gather {
    skip: u64,
    piece: Vec<u8>,
    want: usize,
    step: Step,
}

/// What the piece is.
#[derive(Clone, Copy, Debug)]
enum Step {
    Greeting,
    ClientFlags,
    OptionHeader,
    OptionName {
        option: u32,
        len: u32,
    },
    OptionReply,
    ExportInfo,
    OldExport,
    Request,
    Reply,
    LongRequest,
    LongReply,
    /// The rest of a structured one, which began with this.
    Chunk {
        kind: u16,
        is_last: bool,
        cookie: u64,
    },
    /// It is not this end's turn.
    Silence,
}

/// What both have said so far.
#[derive(Debug)]
struct Dialogue {
    disk: Arc<Disk>,
    /// Of all disks together.
    all: Arc<Counts>,
    name: Option<String>,
    size: Option<u64>,
    option: Option<u32>,
    no_zeroes: bool,
    structured: bool,
    /// Lengths have 64 bits, and all replies are chunks.
    extended: bool,
    requests: HashMap<u64, Pending>,
}

/// A request without an answer.
#[derive(Debug)]
struct Pending {
    done: Done,
    failed: bool,
}

/// The piece makes no sense to us.
#[derive(Debug)]
struct Unclear;

/// What comes next in a direction.
struct Next {
    skip: u64,
    step: Step,
}

impl Observer {
    pub(crate) fn new(disk: Arc<Disk>, all: Arc<Counts>) -> Self {
        let dialogue = Dialogue {
            disk: Arc::clone(&disk),
            all,
            name: None,
            size: None,
            option: None,
            no_zeroes: false,
            structured: false,
            extended: false,
            requests: HashMap::new(),
        };
        let ends = Ends { client: Gather::new(Step::Silence), server: Gather::new(Step::Greeting), dialogue };
        Self { disk, ends: Some(Box::new(ends)) }
    }

    /// What an end said. An answer comes after what it answers.
    pub(crate) fn feed(&mut self, from: From, bytes: &[u8]) {
        if let Some(ends) = &mut self.ends
            && ends.feed(from, bytes).is_err()
        {
            self.ends = None;
            self.disk.fall_silent();
        }
    }
}

impl Ends {
    fn feed(&mut self, from: From, mut bytes: &[u8]) -> Result<(), Unclear> {
        while !bytes.is_empty() {
            let (ours, other) = match from {
                From::Client => (&mut self.client, &mut self.server),
                From::Server => (&mut self.server, &mut self.client),
            };
            let Some(rest) = ours.take(bytes)? else { return Ok(()) };
            bytes = rest;
            if ours.is_whole() {
                let step = ours.step;
                let next = self.dialogue.on_piece(step, &ours.piece, other)?;
                ours.expect(next);
            }
        }
        Ok(())
    }
}

impl Gather {
    fn new(step: Step) -> Self {
        Self { skip: 0, piece: Vec::new(), want: step.len(), step }
    }

    fn expect(&mut self, next: Next) {
        self.skip = next.skip;
        self.step = next.step;
        self.want = next.step.len();
        self.piece.clear();
    }

    fn is_whole(&self) -> bool {
        self.skip == 0 && self.want > 0 && self.piece.len() == self.want
    }

    /// Gives what is left of the bytes, if any is.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, Unclear> {
        if self.skip > 0 {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skip -= skipped as u64;
            return Ok(bytes.get(skipped..));
        }
        if self.want == 0 {
            return Err(Unclear);
        }
        let taken = (self.want - self.piece.len()).min(bytes.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(bytes.get(taken..))
    }
}

impl Step {
    /// Bytes of its piece, never 0 but for `Silence`.
    fn len(self) -> usize {
        match self {
            Self::Greeting => 18,
            Self::ClientFlags => 4,
            Self::OptionHeader | Self::Reply => 16,
            Self::OptionName { len, .. } => len as usize,
            Self::OptionReply => 20,
            Self::ExportInfo => 12,
            Self::OldExport => 10,
            Self::Request => 28,
            Self::LongRequest | Self::LongReply => 32,
            Self::Chunk { .. } => 4,
            Self::Silence => 0,
        }
    }

    fn next(self) -> Next {
        Next { skip: 0, step: self }
    }

    fn behind(self, skip: u64) -> Next {
        Next { skip, step: self }
    }
}

impl Dialogue {
    fn on_piece(&mut self, step: Step, piece: &[u8], other: &mut Gather) -> Result<Next, Unclear> {
        let mut fields = Fields(piece);
        match step {
            Step::Greeting => self.on_greeting(&mut fields, other),
            Step::ClientFlags => self.on_client_flags(&mut fields),
            Step::OptionHeader => self.on_option(&mut fields, other),
            Step::OptionName { option, .. } => self.on_name(option, piece),
            Step::OptionReply => self.on_option_reply(&mut fields, other),
            Step::ExportInfo => self.on_export_info(&mut fields),
            Step::OldExport => self.on_old_export(&mut fields, other),
            Step::Request | Step::LongRequest => self.on_request(&mut fields),
            Step::Reply => self.on_reply(&mut fields),
            Step::LongReply => self.on_long_reply(&mut fields),
            Step::Chunk { kind, is_last, cookie } => {
                let len = fields.u32()?;
                self.on_chunk(kind, is_last, cookie, len.into())
            }
            Step::Silence => Err(Unclear),
        }
    }

    fn on_greeting(&mut self, fields: &mut Fields<'_>, client: &mut Gather) -> Result<Next, Unclear> {
        let is_newstyle = fields.u64()? == GREETING && fields.u64()? == OPTION;
        let flags = fields.u16()?;
        if !is_newstyle || flags & FIXED_NEWSTYLE == 0 {
            return Err(Unclear);
        }
        self.no_zeroes = flags & NO_ZEROES != 0;
        client.expect(Step::ClientFlags.next());
        Ok(Step::OptionReply.next())
    }

    fn on_client_flags(&mut self, fields: &mut Fields<'_>) -> Result<Next, Unclear> {
        let flags = fields.u32()?;
        if flags & u32::from(FIXED_NEWSTYLE) == 0 {
            return Err(Unclear);
        }
        self.no_zeroes &= flags & u32::from(NO_ZEROES) != 0;
        Ok(Step::OptionHeader.next())
    }

    /// Who asks twice before there is an answer is legal, and not understood.
    fn on_option(&mut self, fields: &mut Fields<'_>, server: &mut Gather) -> Result<Next, Unclear> {
        let (magic, option, len) = (fields.u64()?, fields.u32()?, fields.u32()?);
        if magic != OPTION || self.option.replace(option).is_some() {
            return Err(Unclear);
        }
        if option == OPT_EXPORT_NAME {
            // Its answer has no header.
            server.expect(Step::OldExport.next());
            self.name = Some(String::new());
        }
        match option {
            OPT_EXPORT_NAME | OPT_GO if len > OPTION_MAX => Err(Unclear),
            OPT_EXPORT_NAME | OPT_GO if len > 0 => Ok(Step::OptionName { option, len }.next()),
            _ => Ok(Step::Silence.behind(len.into())),
        }
    }

    fn on_name(&mut self, option: u32, piece: &[u8]) -> Result<Next, Unclear> {
        let name = match option {
            OPT_EXPORT_NAME => piece,
            _ => {
                let mut fields = Fields(piece);
                let len = fields.u32()?;
                fields.bytes(len as usize)?
            }
        };
        self.name = Some(std::str::from_utf8(name).map_err(|_| Unclear)?.to_owned());
        Ok(Step::Silence.next())
    }

    fn on_option_reply(&mut self, fields: &mut Fields<'_>, client: &mut Gather) -> Result<Next, Unclear> {
        let (magic, option, kind, len) = (fields.u64()?, fields.u32()?, fields.u32()?, fields.u32()?);
        if magic != OPTION_REPLY || self.option != Some(option) {
            return Err(Unclear);
        }
        let is_final = kind == REP_ACK || kind & REP_ERROR != 0;
        if is_final && !client.is_silent() {
            return Err(Unclear);
        }
        match (option, kind) {
            (OPT_GO, REP_ACK) => {
                let next = self.begin(client)?;
                Ok(next.step.behind(len.into()))
            }
            (OPT_GO, REP_INFO) if len == Step::ExportInfo.len() as u32 => Ok(Step::ExportInfo.next()),
            // What follows is another language.
            (OPT_STARTTLS, REP_ACK) => Err(Unclear),
            _ => {
                if is_final {
                    self.structured |= option == OPT_STRUCTURED_REPLY && kind == REP_ACK;
                    self.extended |= option == OPT_EXTENDED_HEADERS && kind == REP_ACK;
                    self.option = None;
                    client.expect(Step::OptionHeader.next());
                }
                Ok(Step::OptionReply.behind(len.into()))
            }
        }
    }

    /// Another information of this length passes.
    fn on_export_info(&mut self, fields: &mut Fields<'_>) -> Result<Next, Unclear> {
        if fields.u16()? == INFO_EXPORT {
            self.size = Some(fields.u64()?);
        }
        Ok(Step::OptionReply.next())
    }

    fn on_old_export(&mut self, fields: &mut Fields<'_>, client: &mut Gather) -> Result<Next, Unclear> {
        self.size = Some(fields.u64()?);
        let next = self.begin(client)?;
        Ok(next.step.behind(if self.no_zeroes { 0 } else { 124 }))
    }

    /// The disk is known: requests and replies follow.
    fn begin(&mut self, client: &mut Gather) -> Result<Next, Unclear> {
        let (Some(name), Some(size)) = (self.name.take(), self.size) else { return Err(Unclear) };
        if !client.is_silent() {
            return Err(Unclear);
        }
        self.disk.begin(name, size);
        client.expect(self.request().next());
        Ok(self.reply().next())
    }

    fn request(&self) -> Step {
        if self.extended { Step::LongRequest } else { Step::Request }
    }

    fn reply(&self) -> Step {
        if self.extended { Step::LongReply } else { Step::Reply }
    }

    fn on_request(&mut self, fields: &mut Fields<'_>) -> Result<Next, Unclear> {
        let magic = fields.u32()?;
        let (flags, command, cookie, _offset) = (fields.u16()?, fields.u16()?, fields.u64()?, fields.u64()?);
        let (expected, bytes) = match self.extended {
            true => (LONG_REQUEST, fields.u64()?),
            false => (REQUEST, fields.u32()?.into()),
        };
        if magic != expected || self.requests.len() >= REQUESTS_MAX {
            return Err(Unclear);
        }
        let done = match command {
            CMD_READ => Done::Read(bytes),
            CMD_WRITE => Done::Written(bytes),
            CMD_TRIM => Done::Trimmed(bytes),
            CMD_WRITE_ZEROES => Done::Zeroed(bytes),
            CMD_FLUSH => Done::Flush,
            CMD_CACHE | CMD_BLOCK_STATUS => Done::Nothing,
            // It has no answer, and ends what is said.
            CMD_DISCONNECT => return Ok(Step::Silence.next()),
            _ => return Err(Unclear),
        };
        let has_payload = command == CMD_WRITE || (self.extended && flags & FLAG_PAYLOAD != 0);
        match self.requests.insert(cookie, Pending { done, failed: false }) {
            Some(_) => Err(Unclear),
            None => Ok(self.request().behind(if has_payload { bytes } else { 0 })),
        }
    }

    fn count(&self, done: Done) {
        self.disk.count(done);
        self.all.count(done);
    }

    fn on_reply(&mut self, fields: &mut Fields<'_>) -> Result<Next, Unclear> {
        match fields.u32()? {
            SIMPLE_REPLY => {
                let (error, cookie) = (fields.u32()?, fields.u64()?);
                let Pending { done, failed } = self.requests.remove(&cookie).ok_or(Unclear)?;
                let has_data = error == 0 && matches!(done, Done::Read(_));
                // Data comes in chunks where chunks were agreed upon.
                if failed || (has_data && self.structured) {
                    return Err(Unclear);
                }
                if error == 0 {
                    self.count(done);
                }
                Ok(Step::Reply.behind(if let (true, Done::Read(bytes)) = (has_data, done) { bytes } else { 0 }))
            }
            STRUCTURED_REPLY if self.structured => {
                let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
                Ok(Step::Chunk { kind, is_last: flags & REPLY_DONE != 0, cookie }.next())
            }
            _ => Err(Unclear),
        }
    }

    fn on_long_reply(&mut self, fields: &mut Fields<'_>) -> Result<Next, Unclear> {
        if fields.u32()? != LONG_REPLY {
            return Err(Unclear);
        }
        let (flags, kind, cookie, _offset) = (fields.u16()?, fields.u16()?, fields.u64()?, fields.u64()?);
        self.on_chunk(kind, flags & REPLY_DONE != 0, cookie, fields.u64()?)
    }

    fn on_chunk(&mut self, kind: u16, is_last: bool, cookie: u64, len: u64) -> Result<Next, Unclear> {
        let pending = self.requests.get_mut(&cookie).ok_or(Unclear)?;
        pending.failed |= kind & CHUNK_ERROR != 0;
        if is_last && let Some(Pending { done, failed: false }) = self.requests.remove(&cookie) {
            self.count(done);
        }
        Ok(self.reply().behind(len))
    }
}

impl Gather {
    /// Whether this end has nothing to say until it is answered, and has said all before.
    fn is_silent(&self) -> bool {
        matches!(self.step, Step::Silence) && self.skip == 0
    }
}

/// Numbers of a piece, from its front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Unclear> {
        let (front, rest) = self.0.split_at_checked(len).ok_or(Unclear)?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unclear> {
        let (front, rest) = self.0.split_first_chunk().ok_or(Unclear)?;
        self.0 = rest;
        Ok(*front)
    }

    fn u16(&mut self) -> Result<u16, Unclear> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Unclear> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Unclear> {
        self.array().map(u64::from_be_bytes)
    }
}
