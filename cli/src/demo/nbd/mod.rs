//! A small NBD server and a small NBD copier, so that the demo needs no other program. They speak the public NBD
//! protocol (fixed newstyle, simple replies), and the tests hold them against nbdinfo, nbdcopy, qemu-img, nbdkit and qemu-nbd.

mod client;
mod copier;
mod error;
mod export;
mod pieces;
mod proto;
mod send;
mod server;
#[cfg(test)]
mod tests;

use crate::demo::PATIENCE;
pub(crate) use copier::{Copied, copy};
pub(crate) use error::Error;
pub(crate) use export::Export;
pub(crate) use server::Server;

/// The unit of the copier's requests, and of the server's work on a file, in bytes.
const BLOCK: usize = 1 << 20;
