//! The one connection to the destination, and this migration's sockets at the source.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;
use virbistream::io::{
    Address, Attachment, Handler, Identity, Permissions, Report, SessionKey, SessionOptions, TlsClient, Waker,
};
use virbistream::proto::{Config, Side, StreamError};
use virbistream::wire::{Escaped, Open, kind};

use super::args::MigrateArgs;
use super::directory::{Base, Directory};
use super::disks::Passing;
use super::names::{Name, Part};
use super::outcome::{Failure, Guest};
use super::virsh::Virsh;
use crate::nbd;
use crate::running::{Error, News, Running, bind};
use crate::ticket;

/// How long connecting, and each answer of the destination's, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// The most that the destination says of a directory, in bytes.
const GREETING_MAX: usize = 8 * 1024;

/// Others than the sockets' owner see that there is a migration.
const MODE: u32 = 0o711;

pub(super) struct Tunnel {
    running: Running,
    pub(super) peer: Peer,
    place: Place,
    hold: Arc<Mutex<Hold>>,
    pub(super) passing: Passing,
    lost: Option<String>,
    /// A stream of the memory has ended in order: the destination may have all that it takes to run the guest.
    has_memory: bool,
    /// Its event loop is over.
    is_over: bool,
}

/// Who is at the other end.
pub(super) struct Peer {
    session: SessionKey,
    pub(super) version: u32,
    /// What the session is, in words, where it is encrypted.
    pub(super) secured: Option<String>,
    /// Until when our certificate and the destination's are valid.
    pub(super) certificates: Option<[SystemTime; 2]>,
}

/// Where this migration's sockets are.
struct Place {
    path: PathBuf,
    _directory: Directory,
    /// How far the destination's clock is ahead of ours, in seconds.
    clock: i64,
}

impl Tunnel {
    /// Connects, and has the directory made at both ends.
    pub(super) fn open(running: Running, args: &MigrateArgs, sockets: Permissions) -> Result<Self, Failure> {
        let peer = connect(&running, args)?;
        let (hold, passing) = (Arc::default(), Passing::default());
        match prepare(&running, peer.session, (args, sockets), &hold, &passing) {
            Ok(place) => {
                Ok(Self { running, peer, place, hold, passing, lost: None, has_memory: false, is_over: false })
            }
            Err(failure) => {
                end(running, &hold);
                Err(failure)
            }
        }
    }

    /// How far the destination's clock is ahead of ours, in seconds.
    pub(super) fn clock(&self) -> i64 {
        self.place.clock
    }

    pub(super) fn socket(&self, part: Part) -> PathBuf {
        self.place.path.join(part.socket())
    }

    /// The destination's libvirtd, as every libvirt here reaches it.
    pub(super) fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket(Part::Libvirt).display())
    }

    pub(super) fn virsh(&self) -> Virsh {
        Virsh::new(Some(self.uri()))
    }

    /// Waits for the operator's signal, for so long; true when it came.
    pub(super) fn wait(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            match self.running.next(Some(until)) {
                News::Signal => return true,
                News::Nothing => return false,
                News::Report(Report::SessionEnded { session, cause }) if session == self.peer.session => {
                    self.lost = Some(cause.map_or_else(|cause| cause.to_string(), |()| "the peer closed it".into()));
                }
                // libvirt connects before it is QEMU's turn.
                News::Report(Report::StreamEnded { target, cause: Ok(()), stats, .. }) if stats.sent > 0 => {
                    self.has_memory |= Name::parse(&target).is_some_and(|name| name.part == Part::Memory);
                }
                News::Ended(ended) => {
                    self.is_over = true;
                    self.lost.get_or_insert(ended.map_or_else(|error| error.to_string(), |()| "it has ended".into()));
                }
                News::Report(_) | News::Connected(_) | News::Hangup => {}
            }
        }
    }

    /// Whether the destination may have all of the guest.
    pub(super) fn has_memory(&self) -> bool {
        self.has_memory
    }

    /// Why the session is over, if it is.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Ends the session, once what its streams still carry has passed; the sockets and directories go with it.
    pub(super) fn close(self) {
        if !self.is_over {
            end(self.running, &self.hold);
        }
    }
}

fn end(running: Running, hold: &Mutex<Hold>) {
    hold.lock().end();
    if let Err(error) = running.drain(PATIENCE) {
        log::info!("the connection to the destination: {error}");
    }
}

/// Has the directory made at both ends, and listens in ours.
fn prepare(
    running: &Running,
    session: SessionKey,
    (args, sockets): (&MigrateArgs, Permissions),
    hold: &Arc<Mutex<Hold>>,
    passing: &Passing,
) -> Result<Place, Failure> {
    let migration = Uuid::new_v4();
    let base = Base::open(&args.base).map_err(|error| local(&args.base, &error))?;
    let greeting = greet(running, session, migration, hold)?;
    let (path, clock) = understood(&greeting, &args.base, migration)?;
    let directory = base.make(migration, Permissions::default(), MODE).map_err(|error| match error.kind() {
        // Nobody but the destination has heard of it.
        io::ErrorKind::AlreadyExists => Failure::Checks("source and destination are the same host".into()),
        _ => local(&path, &error),
    })?;
    let qemus = Permissions { mode: sockets.mode.or(Some(0o600)), ..sockets };
    // Whoever opens it is root at the destination: never QEMU, which a guest may have broken into.
    let ours = Permissions { mode: Some(0o600), ..Permissions::default() };
    for (part, priority, kind) in
        [(Part::Libvirt, 0, kind::CONTROL), (Part::Memory, 1, kind::MEMORY), (Part::Disks, 2, kind::DISK)]
    {
        let permissions = if part == Part::Libvirt { ours } else { qemus };
        let listener = bind(&Address::Unix(path.join(part.socket())), permissions, None)?;
        let open = Open { target: Name { migration, part }.to_string(), kind, priority, ..Open::default() };
        let (disks, passing) = (running.disks().clone(), passing.clone());
        let observe = move |relay| disks.observe(nbd::From::Client, passing.add(), Box::new(relay));
        let forward = running.handle().forward_through(listener, open, observe);
        running.handle().route(forward, Some(session));
    }
    Ok(Place { path, _directory: directory, clock })
}

fn local(path: &Path, error: &io::Error) -> Failure {
    Failure::Local(format!("the directory {}: {error}", path.display()))
}

fn connect(running: &Running, args: &MigrateArgs) -> Result<Peer, Failure> {
    let peer = args.desturi.address.clone();
    let tls = args.desturi.tls().map_err(|error| Failure::Local(error.to_string()))?;
    let ticket = args.ticket.as_deref().map(ticket::read).transpose().map_err(Failure::Local)?;
    let ours = tls.as_ref().and_then(TlsClient::expires);
    let config = Config { hello_extensions: ticket.into_iter().collect(), ..Config::default() };
    running.connect(&peer, tls, PATIENCE);
    let mut session = None;
    let (mut legacy, mut secured, mut certificates) = (None, None, None);
    loop {
        match running.next(None) {
            News::Connected(Ok(socket)) => {
                let options = SessionOptions { config: config.clone(), ..SessionOptions::default() };
                session = Some(running.handle().attach(socket, Side::Connecting, options));
            }
            News::Connected(Err(source)) => return Err(Error::Connect { peer, source }.into()),
            News::Report(Report::LinkSecured { version, identity, .. }) => {
                secured = Some(format!("{version} with {identity}"));
                if let Identity::Certificate { expires, .. } = identity {
                    certificates = ours.map(|ours| [ours, expires]);
                }
            }
            News::Report(Report::Established { session, version, .. }) => {
                return Ok(Peer { session, version, secured, certificates });
            }
            News::Report(Report::Legacy { error, .. }) => legacy = Some(error.to_string()),
            News::Report(Report::SessionEnded { session: which, cause }) if Some(which) == session => {
                return Err(match (legacy, cause) {
                    (Some(answer), _) => Error::Legacy { peer, answer },
                    (None, Ok(())) => Error::SessionEnded { peer, cause: "the peer closed it".into() },
                    (None, Err(cause)) => Error::SessionEnded { peer, cause: cause.to_string() },
                }
                .into());
            }
            News::Signal => return Err(Failure::Cancelled(Guest::Untouched)),
            News::Ended(ended) => {
                return Err(ended.err().map_or(Failure::Local("the event loop ended".into()), Failure::from));
            }
            News::Report(_) | News::Hangup | News::Nothing => {}
        }
    }
}

/// Asks for the directory at the destination, and gives what is said of it.
fn greet(running: &Running, session: SessionKey, migration: Uuid, hold: &Arc<Mutex<Hold>>) -> Result<String, Failure> {
    let (tell, told) = mpsc::channel();
    let target = Name { migration, part: Part::Directory }.to_string();
    let open = Open { target, kind: kind::CONTROL, priority: 0, ..Open::default() };
    running.handle().open(session, open, Box::new(Greeting { tell, line: Vec::new(), hold: Arc::clone(hold) }));
    let (signalled, deadline) = (running.signalled(), Instant::now() + PATIENCE);
    loop {
        match told.recv_timeout(LOOK) {
            Ok(Ok(line)) => return Ok(line),
            Ok(Err(cause)) => {
                return Err(Failure::Destination(format!("the destination takes no migration from us: {cause}")));
            }
            Err(RecvTimeoutError::Timeout) if signalled.load(Ordering::Relaxed) => {
                return Err(Failure::Cancelled(Guest::Untouched));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => {
                let silent = "the destination says nothing of a directory for the migration";
                return Err(Failure::Destination(silent.into()));
            }
        }
    }
}

/// Whether the destination's directory is still wanted.
#[derive(Debug, Default)]
struct Hold {
    over: bool,
    waker: Option<Waker>,
}

impl Hold {
    fn end(&mut self) {
        self.over = true;
        self.waker.iter().for_each(Waker::wake);
    }
}

/// The stream that holds the destination's directory: the peer says one line, and it stays until we finish.
struct Greeting {
    tell: Sender<Result<String, String>>,
    line: Vec<u8>,
    hold: Arc<Mutex<Hold>>,
}

impl Handler for Greeting {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        self.hold.lock().waker = Some(at.waker());
        Ok(())
    }

    fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        if self.hold.lock().over { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.line.len() + taken > GREETING_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it says too much"));
        }
        bufs.iter().for_each(|buf| self.line.extend_from_slice(buf));
        if self.line.ends_with(b"\n") {
            let _ = self.tell.send(Ok(String::from_utf8_lossy(&self.line).into_owned()));
        }
        Ok(taken)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self, cause: &StreamError) {
        let _ = self.tell.send(Err(cause.to_string()));
    }
}

/// Where the directory is, and how far that host's clock is ahead of ours.
///
/// libvirt opens each socket by the same path at both hosts: it has to be one below our own base, too.
fn understood(greeting: &str, base: &Path, migration: Uuid) -> Result<(PathBuf, i64), Failure> {
    let said: Value = serde_json::from_str(greeting).unwrap_or_default();
    let path = said.get("path").and_then(Value::as_str).map(PathBuf::from);
    let time = said.get("time").and_then(Value::as_i64);
    let (Some(path), Some(time)) = (path, time) else {
        return Err(Failure::Destination("what the destination says of its directory is not understood".into()));
    };
    let ours = base.join(migration.to_string());
    if path != ours {
        let theirs = path.parent().unwrap_or(&path).to_string_lossy();
        let theirs = Escaped(&theirs);
        return Err(Failure::Destination(format!(
            "the destination makes directories of migrations in {theirs}, we in {}: both must have the same; see --base",
            base.display()
        )));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok((ours, time - now.as_secs() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_destination_says_of_its_directory_forges_no_line() {
        let greeting = r#"{"path":"/x\r\nok everything: fine\u001b[2J/y","time":0}"#;
        let refused = understood(greeting, Path::new("/run/base"), Uuid::nil()).expect_err("another directory");
        let sentence = refused.to_string();
        assert!(!sentence.contains(char::is_control) && sentence.contains(r"/x\r\nok everything"), "{sentence}");
    }
}
