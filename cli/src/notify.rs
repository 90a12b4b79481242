//! What systemd is told of a service that it waits for (sd_notify). Without systemd these do nothing.

use std::env;
use std::time::Duration;

use sd_notify::NotifyState;

/// What ending takes beyond the time to drain.
const MARGIN: Duration = Duration::from_secs(10);

/// Whether somebody listens: then SIGHUP asks for a reload, and never means that a terminal is gone.
pub(crate) fn is_wanted() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the certificates anew")]),
        Err(error) => log::warn!("systemd cannot be told of the reload, since there is no clock: {error}"),
    }
}

/// systemd would kill us after TimeoutStopSec=, which knows nothing of `drain`.
pub(crate) fn stopping(drain: Duration) {
    // sd_notify's own variant of this has 32 bits, and an hour does not fit.
    let time = format!("EXTEND_TIMEOUT_USEC={}", (drain + MARGIN).as_micros());
    tell(&[NotifyState::Stopping, NotifyState::Custom(&time), NotifyState::Status("letting streams finish")]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::warn!("systemd cannot be told of our state: {error}");
    }
}
