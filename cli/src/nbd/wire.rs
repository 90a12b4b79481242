//! Numbers of the NBD protocol.

pub(super) const GREETING: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION: u64 = 0x4948_4156_454f_5054;
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

pub(super) const OPT_EXPORT_NAME: u32 = 1;
pub(super) const OPT_STARTTLS: u32 = 5;
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPT_EXTENDED_HEADERS: u32 = 11;
/// An export's name has 4,096 bytes at most; the rest is for what a client asks with it.
pub(super) const OPTION_MAX: u32 = 8192;

pub(super) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_ERROR: u32 = 1 << 31;
pub(super) const INFO_EXPORT: u16 = 0;

pub(super) const REQUEST: u32 = 0x2560_9513;
pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISCONNECT: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_TRIM: u16 = 4;
pub(super) const CMD_CACHE: u16 = 5;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;
pub(super) const CMD_BLOCK_STATUS: u16 = 7;

/// With a length of 64 bits, where that was agreed upon.
pub(super) const LONG_REQUEST: u32 = 0x21e4_1c71;
pub(super) const LONG_REPLY: u32 = 0x6e8a_278c;
/// The length is that of what follows the request.
pub(super) const FLAG_PAYLOAD: u16 = 1 << 5;

pub(super) const SIMPLE_REPLY: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY: u32 = 0x668e_33ef;
pub(super) const REPLY_DONE: u16 = 1 << 0;
pub(super) const CHUNK_ERROR: u16 = 1 << 15;
