//! Two-way streams for libvirt's RPC: many over one connection, each with credit of its own.
//!
//! Three layers, each usable without those above it:
//!
//! - [`wire`]: bytes to packets and back, by `xdr/bistream.x`; no state.
//! - [`proto`]: [`proto::Session`], a state machine without sockets, clocks or threads, to embed in a loop of yours.
//! - [`io`]: a mio dispatcher that drives sessions over TCP, TLS (feature `tls`) and UNIX sockets, and relays streams to UNIX sockets.
//!
//! `docs/protocol.md` is normative; "§" in this documentation means its sections. Names in capitals, `HELLO` say, are its messages.

pub mod io;
pub mod proto;
pub mod rpc;
pub mod wire;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
