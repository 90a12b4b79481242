//! Two dispatchers with one session between them, and UNIX sockets at both ends of its streams.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use virbistream::io::{Handler, Relay, Report, SessionKey, SessionOptions, Socket, StreamKey, UnixTargets};
use virbistream::proto::{Side, StreamError, StreamId, StreamStats};
use virbistream::wire::Open;

use super::{Node, accept, patient, tcp_link};

/// A session from `near` to `far`. The target `disk` at the far end is a UNIX socket of ours.
pub(crate) struct Tunnel {
    pub(crate) near: Node,
    pub(crate) far: Node,
    pub(crate) near_key: SessionKey,
    pub(crate) far_key: SessionKey,
    pub(crate) listener: UnixListener,
    /// Those of both sides.
    pub(crate) options: SessionOptions,
    dir: TempDir,
}

/// A stream that stands, and the sockets that it joins.
pub(crate) struct Carried {
    pub(crate) id: StreamId,
    pub(crate) client: UnixStream,
    pub(crate) server: UnixStream,
}

impl Tunnel {
    /// Over TCP.
    pub(crate) fn new() -> Self {
        Self::with(|_, _| ())
    }

    /// Over TCP, with options that `change` has seen, for both sides. It is given the folder of the sockets too.
    pub(crate) fn with(change: impl FnOnce(&mut SessionOptions, &Path)) -> Self {
        let (near, far) = tcp_link();
        Self::over(Socket::from_tcp(near).unwrap(), Socket::from_tcp(far).unwrap(), change)
    }

    /// Over a link of the caller's.
    pub(crate) fn over(
        near_socket: Socket,
        far_socket: Socket,
        change: impl FnOnce(&mut SessionOptions, &Path),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut targets = UnixTargets::new();
        targets.insert("disk", path);
        let mut options = SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() };
        change(&mut options, dir.path());
        let (mut near, mut far) = (Node::start(), Node::start());
        let near_key = near.handle.attach(near_socket, Side::Connecting, options.clone());
        let far_key = far.handle.attach(far_socket, Side::Accepting, options.clone());
        near.established(near_key);
        far.established(far_key);
        Self { near, far, near_key, far_key, listener, options, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks for a stream, without waiting.
    pub(crate) fn ask(&self, target: &str, handler: Box<dyn Handler>) -> StreamKey {
        self.near.handle.open(self.near_key, Open { target: target.into(), ..Open::default() }, handler)
    }

    /// Who was dialled for `disk`.
    pub(crate) fn accepted(&self) -> UnixStream {
        accept(&self.listener)
    }

    /// Asks for a stream to a UNIX socket; gives the client's end of it.
    pub(crate) fn ask_for(&self, target: &str) -> UnixStream {
        let (client, inner) = UnixStream::pair().unwrap();
        self.ask(target, Box::new(Relay::new(inner).unwrap()));
        patient(client)
    }

    /// A stream from a UNIX socket here to the target `disk`.
    #[track_caller]
    pub(crate) fn carry(&mut self) -> Carried {
        let client = self.ask_for("disk");
        let id = self.near.wait("the stream opened", |report| match report {
            Report::StreamOpened { session, id, target, .. } if *session == self.near_key && target == "disk" => {
                Some(*id)
            }
            _ => None,
        });
        self.far.opened_as(self.far_key, id);
        Carried { id, client, server: accept(&self.listener) }
    }

    /// How the stream ended, near and far.
    #[track_caller]
    pub(crate) fn ended(&mut self, id: StreamId) -> [(Result<(), StreamError>, StreamStats); 2] {
        [self.near.ended(self.near_key, id), self.far.ended(self.far_key, id)]
    }

    /// The stream is over at both ends, in order; gives what it did, near and far.
    #[track_caller]
    pub(crate) fn ended_well(&mut self, id: StreamId) -> [StreamStats; 2] {
        self.ended(id).map(|(cause, stats)| {
            assert_eq!(cause, Ok(()));
            stats
        })
    }
}
