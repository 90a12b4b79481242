//! Two-way streams for libvirt's RPC.
