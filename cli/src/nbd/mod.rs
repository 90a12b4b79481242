//! Disks are seen by what passes: a handler that reads NBD along, and never changes or holds up a byte.

mod disk;
mod observed;
mod observer;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use disk::{Disk, Figures};
pub(crate) use observed::Disks;
pub(crate) use observer::From;
