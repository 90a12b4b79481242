//! Two-way streams for libvirt's RPC.

pub mod io;
pub mod proto;
pub mod wire;
