//! `virbistream forward`: listens on UNIX sockets and carries each connection to a target of the peer.

use std::time::{Duration, Instant};

use virbistream::io::{ListenerKey, Report, SessionKey, SessionOptions, Socket};
use virbistream::proto::{SessionError, Side};
use virbistream::wire::Open;

use crate::args::ForwardArgs;
use crate::running::{Error, News, Running, bind, say_ready};

/// How long connecting to the peer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses between attempts to connect again: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What all streams are asked for with, behind streams that somebody calls urgent and before those called idle.
const PRIORITY: u32 = 2;

pub(crate) fn run(args: &ForwardArgs) -> Result<(), Error> {
    let running = Running::start(log::Level::Info)?;
    let permissions = args.permissions.permissions();
    let listeners =
        args.socket.iter().map(|source| bind(&source.address, permissions)).collect::<Result<Vec<_>, _>>()?;
    let forwards = args
        .socket
        .iter()
        .zip(listeners)
        .map(|(source, listener)| {
            let open = Open { target: source.name.clone(), priority: PRIORITY, ..Open::default() };
            running.handle().forward(listener, open)
        })
        .collect();
    let forward = Forward { args, running, forwards };
    forward.run()
}

struct Forward<'a> {
    args: &'a ForwardArgs,
    running: Running,
    forwards: Vec<ListenerKey>,
}

/// What a session, or waiting for one, came to.
enum Outcome {
    /// A signal, or the dispatcher's end.
    Stop(Result<(), Error>),
    /// The session could not be had, or was lost.
    Lost(Error),
}

impl Forward<'_> {
    fn run(self) -> Result<(), Error> {
        let mut said_ready = false;
        let mut pause = PAUSES.0;
        loop {
            let (outcome, stood) = self.hold_session(&mut said_ready);
            let lost = match outcome {
                Outcome::Stop(Ok(())) => return self.running.drain(Duration::from_secs(self.args.session.drain)),
                Outcome::Stop(Err(error)) => return Err(error),
                Outcome::Lost(error) if !self.args.reconnect => return self.stop(error),
                Outcome::Lost(error) => error,
            };
            pause = if stood { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            log::warn!("{lost}; connecting again");
            if self.is_stopped_within(pause) {
                return self.running.drain(Duration::from_secs(self.args.session.drain));
            }
        }
    }

    /// Connects, and stays with the session until it ends. Whether it stood, too.
    fn hold_session(&self, said_ready: &mut bool) -> (Outcome, bool) {
        let peer = &self.args.peer;
        let socket = match Socket::connect(peer, CONNECT_TIMEOUT) {
            Ok(socket) => socket,
            Err(source) => return (Outcome::Lost(Error::Connect { peer: peer.clone(), source }), false),
        };
        let options = SessionOptions { config: self.args.session.config(), ..SessionOptions::default() };
        let session = self.running.handle().attach(socket, Side::Connecting, options);
        let mut legacy = None;
        let mut stood = false;
        loop {
            match self.running.next(None) {
                News::Report(Report::Established { session: which, .. }) if which == session => {
                    stood = true;
                    self.route(Some(session));
                    if !std::mem::replace(said_ready, true) {
                        say_ready(&[]);
                    }
                }
                News::Report(Report::Legacy { error, .. }) => legacy = Some(error.to_string()),
                News::Report(Report::SessionEnded { session: which, cause }) if which == session => {
                    self.route(None);
                    return (Outcome::Lost(self.lost(legacy, cause)), stood);
                }
                News::Signal => return (Outcome::Stop(Ok(())), stood),
                News::Ended(result) => return (Outcome::Stop(result.map_err(Error::from)), stood),
                News::Report(_) | News::Nothing => {}
            }
        }
    }

    fn lost(&self, legacy: Option<String>, cause: Result<(), SessionError>) -> Error {
        let peer = self.args.peer.clone();
        match (legacy, cause) {
            (Some(answer), _) => Error::Legacy { peer, answer },
            (None, Ok(())) => Error::SessionEnded { peer, cause: "the peer closed it".into() },
            (None, Err(cause)) => Error::SessionEnded { peer, cause: cause.to_string() },
        }
    }

    fn route(&self, session: Option<SessionKey>) {
        for forward in &self.forwards {
            self.running.handle().route(*forward, session);
        }
    }

    /// Stops listening; the error is what the command ends with.
    fn stop(self, error: Error) -> Result<(), Error> {
        self.running.drain(Duration::ZERO)?;
        Err(error)
    }

    fn is_stopped_within(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            match self.running.next(Some(until)) {
                News::Signal | News::Ended(_) => return true,
                News::Nothing => return false,
                News::Report(_) => {}
            }
        }
    }
}
