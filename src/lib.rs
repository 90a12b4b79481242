//! Two-way streams for libvirt's RPC.

pub mod wire;
