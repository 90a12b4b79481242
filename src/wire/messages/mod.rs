//! The bodies of control packets, one file a family.

mod control;
mod error;
mod extension;
mod hello;
mod open;

pub use control::{CLOSE_TEXT_MAX, Close, Credit, Finish, HOLE_CREDIT, HOLE_MAX, Hole, Ping, Stop, close};
pub use error::{ERROR_LEVEL, ERROR_NAME_MAX, ERROR_TEXT_MAX, Escaped, RemoteError, codes, domains};
pub use extension::{EXT_SESSION, EXT_TICKET, EXTENSION_LEN, EXTENSIONS_MAX, Extension};
pub use hello::{BISTREAM_1, DATA_MAX, DATA_MIN, Hello, HelloReply, Limits, feature};
pub use open::{Open, OpenReply, PRIORITY_MAX, TARGET_MAX, is_valid_target, kind};
