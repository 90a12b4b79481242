//! `virbistream migrate`: moves a running guest and its disks to another host, through one connection, with the libvirt and the QEMU
//! that are there.

mod args;
mod checks;
mod directory;
mod disks;
mod domain;
mod host;
mod libvirt;
mod names;
mod outcome;
mod progress;
mod run;
mod storage;
mod tunnel;
mod virsh;

pub(crate) use args::MigrateArgs;
pub(crate) use directory::{Base, Directory};
pub(crate) use names::{Name, Part};
pub(crate) use outcome::EXIT_STATUS;
pub(crate) use run::run;
