//! libvirt's own RPC, for daemons and for client libraries: calls, events and its one-way streams, on the links that
//! BiStream shares with it.
//!
//! As in [`proto`](crate::proto), nothing here opens a socket, reads a clock or starts a thread: `handle_…` takes what
//! came, `poll_…` gives what is to be done. Give a [`Server`] or a [`Client`] the packets of a link that
//! [`Session::owns`](crate::proto::Session::owns) does not claim.
//!
//! What numbers and layouts there are is said in `xdr/legacy.x`.
#![deny(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::unwrap_used, clippy::indexing_slicing)]

mod client;
mod error;
mod login;
mod outbox;
mod procedure;
mod programs;
mod server;
mod streams;

pub use client::{CallId, Client, ClientEvent};
pub use error::{CallError, LinkError, StreamError};
pub use login::{Login, LoginError};
pub(crate) use procedure::unknown_procedure;
pub use procedure::{KEEPALIVE, ProcedureId, REMOTE, decode_arguments};
pub use programs::Programs;
pub use server::{IncomingCall, IncomingId, Server, ServerEvent};
pub use streams::{
    Direction, HOLE_COST, LegacyId, LegacyStream, STREAM_DATA_MAX, StreamEvent, StreamOptions, StreamPiece,
};
