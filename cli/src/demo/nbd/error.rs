//! What can go wrong on an NBD connection.

use std::io;

use super::PATIENCE;
use super::proto::{command_name, errno_name};

/// Why an NBD connection, or a copy over one, was given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the connection failed: {0}")]
    Connection(io::Error),
    #[error("the peer was silent for {0} seconds")]
    Silent(u64),
    #[error("the peer closed the connection")]
    Ended,
    #[error("the peer closed the connection with {unanswered} requests unanswered")]
    Closed { unanswered: usize },
    #[error("the {what} begins with {got:#x}, which is not NBD")]
    Magic { what: &'static str, got: u64 },
    #[error("the {0} is shorter or longer than it has to be")]
    Size(&'static str),
    #[error("the {what} of {length} bytes is longer than the {max} allowed")]
    TooLong { what: &'static str, length: u64, max: u64 },
    #[error("the server does not speak fixed newstyle")]
    NotFixedNewstyle,
    #[error("the client set handshake flags {0:#x}, which nobody offered")]
    ClientFlags(u32),
    #[error("there is no export named {0:?}")]
    NoSuchExport(String),
    #[error("the server refused the export: {text} (reply {code:#x})")]
    Refused { code: u32, text: String },
    #[error("the server answered option {asked} with a reply to option {got}")]
    OtherOption { asked: u32, got: u32 },
    #[error("the server acknowledged the export without saying its size")]
    NoExportInfo,
    #[error("the export is read-only")]
    ReadOnly,
    #[error("the export has {export} bytes, the image {image}")]
    TooSmall { export: u64, image: u64 },
    #[error("the server answered a request that nobody made (cookie {0:#x})")]
    UnknownCookie(u64),
    #[error("the server answered {} of {length} bytes at {offset} with {}", command_name(*.command), errno_name(*.errno))]
    Failed { command: u16, offset: u64, length: u32, errno: u32 },
    #[error("the image could not be read: {0}")]
    Image(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Silent(PATIENCE.as_secs()),
            io::ErrorKind::UnexpectedEof => Error::Ended,
            _ => Error::Connection(error),
        }
    }
}
