//! What words mean, on the command line and in a configuration file.

use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;
use virbistream::io::{Address, Permissions};
use virbistream::wire::{DATA_MIN, kind};

use crate::config::is_open;

/// `unix:PATH`
#[derive(Clone, Debug)]
pub(crate) struct Upstream(pub(crate) PathBuf);

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse().map_err(|error| format!("{error}"))? {
            Address::Unix(path) => Ok(Self(path)),
            Address::Tcp { .. } | Address::Tls { .. } => {
                Err("libvirtd is reached over its UNIX socket: write unix:PATH".into())
            }
        }
    }
}

/// `USER[:GROUP]`, each a name or a number.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owner {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl Owner {
    pub(crate) fn permissions(self, mode: Option<u32>) -> Permissions {
        Permissions { mode, user: self.user, group: self.group }
    }
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if user.is_empty() { None } else { Some(user_id(user)?) };
        Ok(Self { user, group: group.map(group_id).transpose()? })
    }
}

fn user_id(user: &str) -> Result<u32, String> {
    if let Some(number) = number(user) {
        return Ok(number);
    }
    match nix::unistd::User::from_name(user) {
        Ok(Some(found)) => Ok(found.uid.as_raw()),
        Ok(None) => Err(format!("no user `{user}`")),
        Err(error) => Err(format!("user `{user}`: {error}")),
    }
}

fn group_id(group: &str) -> Result<u32, String> {
    if let Some(number) = number(group) {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        Ok(None) => Err(format!("no group `{group}`")),
        Err(error) => Err(format!("group `{group}`: {error}")),
    }
}

/// The highest number is nobody's: chown takes it for "leave it as it is".
fn number(id: &str) -> Option<u32> {
    id.parse().ok().filter(|number| *number != u32::MAX)
}

pub(crate) fn parse_window(text: &str) -> Result<ByteSize, String> {
    let window: ByteSize = text.parse()?;
    match window.as_u64() >= DATA_MIN.into() {
        true => Ok(window),
        false => Err(format!("a window has at least {DATA_MIN} bytes")),
    }
}

/// More would only take turns on the cores there are.
pub(crate) const THREADS_MAX: u16 = 1024;

pub(crate) fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse::<NonZeroU16>().ok().filter(|number| number.get() <= THREADS_MAX);
    number.map(NonZeroUsize::from).ok_or_else(|| format!("a number from 1 to {THREADS_MAX}"))
}

/// `tcp://` of the loopback, or `unix:`.
pub(crate) fn parse_metrics(text: &str) -> Result<Address, String> {
    match text.parse().map_err(|error| format!("{error}"))? {
        Address::Tls { .. } => Err("metrics are at tcp://127.0.0.1:PORT or unix:PATH".into()),
        address if is_open(&address) => {
            Err("metrics are for this host alone: tcp://127.0.0.1:PORT or unix:PATH".into())
        }
        address => Ok(address),
    }
}

/// With 0 nothing would ever go.
pub(crate) fn parse_bandwidth(text: &str) -> Result<ByteSize, String> {
    let bandwidth: ByteSize = text.parse()?;
    match bandwidth.as_u64() > 0 {
        true => Ok(bandwidth),
        false => Err("a bandwidth is more than 0: leave it out for as much as goes".into()),
    }
}

/// A bandwidth, or none to keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate(pub(crate) Option<u64>);

pub(crate) fn parse_rate(text: &str) -> Result<Rate, String> {
    match text {
        "none" => Ok(Rate(None)),
        _ => match text.parse()? {
            ByteSize(0) => Err("a rate is more than 0, or `none` for as much as goes".into()),
            ByteSize(bytes) => Ok(Rate(Some(bytes))),
        },
    }
}

pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "write an octal mode, 0600 say".into())
}

/// The number of a kind of streams.
pub(crate) fn parse_kind(text: &str) -> Result<u32, String> {
    match text {
        "bytes" => Ok(kind::BYTES),
        "control" => Ok(kind::CONTROL),
        "memory" => Ok(kind::MEMORY),
        "disk" => Ok(kind::DISK),
        _ => Err(format!("`{text}` is none of bytes, control, memory and disk")),
    }
}
