//! `virbistream forward`: listens on UNIX sockets and carries each connection to a target of the peer.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virbistream::io::{ListenerKey, Report, SessionKey, SessionOptions, Socket};
use virbistream::proto::{Config, SessionError, Side};
use virbistream::wire::{Extension, Open};

use crate::args::ForwardArgs;
use crate::config::is_open;
use crate::events::Loudness;
use crate::nbd;
use crate::running::{Error, News, Running, bind, say_ready};
use crate::ticket;

/// How long connecting to the peer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &ForwardArgs) -> Result<(), Error> {
    let ticket = args.ticket.as_deref().map(ticket::read).transpose().map_err(Error::Config)?;
    if ticket.is_some() && is_open(&args.peer) {
        return Err(Error::Config(format!(
            "a ticket is not said over {}: whoever reads along could use it",
            args.peer
        )));
    }
    // Read again for each connection; what is wrong from the beginning is told before anything listens.
    args.pki.client(&args.peer)?;
    let running = Running::start(Loudness { session: log::Level::Info, stream: log::Level::Warn }, NonZeroUsize::MIN)?;
    running.handle().limit(args.session.bandwidth());
    let _metrics = running.metrics(args.metrics.as_ref())?;
    let _control = running.control(args.control.as_deref(), None)?;
    let permissions = args.permissions.permissions();
    let listeners =
        args.socket.iter().map(|source| bind(&source.address, permissions, None)).collect::<Result<Vec<_>, _>>()?;
    let forwards = args
        .socket
        .iter()
        .zip(listeners)
        .map(|(source, listener)| {
            let (priority, kind) = (args.priority(&source.name), args.kind(&source.name));
            let open = Open { target: source.name.clone(), kind, priority, ..Open::default() };
            let disks = running.disks().clone();
            let observe = move |relay| disks.observe(nbd::From::Client, Arc::default(), Box::new(relay));
            running.handle().forward_through(listener, open, observe)
        })
        .collect();
    let ticket = ticket.into_iter().collect();
    let forward = Forward { args, ticket, running, forwards, pauses: Pauses::default(), said_ready: false };
    forward.run()
}

struct Forward<'a> {
    args: &'a ForwardArgs,
    ticket: Vec<Extension>,
    running: Running,
    forwards: Vec<ListenerKey>,
    pauses: Pauses,
    said_ready: bool,
}

/// Why there is no session, or no longer one.
#[derive(Debug)]
enum Over {
    /// The operator wants it.
    Signal,
    /// The dispatcher ended.
    Ended(Result<(), Error>),
    /// It could not be had, or was lost.
    Lost(Error),
}

impl Forward<'_> {
    fn run(mut self) -> Result<(), Error> {
        match self.hold_sessions() {
            Over::Signal => self.running.drain(self.args.session.drain()),
            Over::Ended(ended) => ended,
            Over::Lost(error) => {
                self.running.drain(Duration::ZERO)?;
                Err(error)
            }
        }
    }

    /// One session, or one after another.
    fn hold_sessions(&mut self) -> Over {
        loop {
            let over = match self.connect() {
                Ok(socket) => self.hold_session(socket),
                Err(over) => over,
            };
            match over {
                Over::Lost(error) if self.args.reconnect => log::warn!("{error}; connecting again"),
                over => return over,
            }
            if let Some(over) = self.pause() {
                return over;
            }
        }
    }

    fn connect(&self) -> Result<Socket, Over> {
        let peer = &self.args.peer;
        let tls = self.args.pki.client(peer).map_err(|error| Over::Lost(error.into()))?;
        self.running.connect(peer, tls, CONNECT_TIMEOUT);
        loop {
            match self.running.next(None) {
                News::Connected(Ok(socket)) => return Ok(socket),
                News::Connected(Err(source)) => return Err(Over::Lost(Error::Connect { peer: peer.clone(), source })),
                News::Signal => return Err(Over::Signal),
                News::Ended(ended) => return Err(Over::Ended(ended)),
                News::Report(_) | News::Hangup | News::Nothing => {}
            }
        }
    }

    /// Stays with the session until it ends.
    fn hold_session(&mut self, socket: Socket) -> Over {
        let config = Config { hello_extensions: self.ticket.clone(), ..self.args.session.config() };
        let options = SessionOptions { config, ..SessionOptions::default() };
        let session = self.running.handle().attach(socket, Side::Connecting, options);
        let mut legacy = None;
        loop {
            match self.running.next(None) {
                News::Report(Report::Established { session: which, .. }) if which == session => {
                    self.pauses = Pauses::default();
                    self.route(Some(session));
                    if !std::mem::replace(&mut self.said_ready, true) {
                        say_ready(&[]);
                    }
                }
                News::Report(Report::Draining { session: which }) if which == session => self.on_draining(),
                News::Report(Report::Legacy { error, .. }) => legacy = Some(error.to_string()),
                News::Report(Report::SessionEnded { session: which, cause }) if which == session => {
                    self.route(None);
                    return Over::Lost(self.lost(legacy, cause));
                }
                News::Signal => return Over::Signal,
                News::Ended(ended) => return Over::Ended(ended),
                News::Report(_) | News::Connected(_) | News::Hangup | News::Nothing => {}
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

    /// Who comes now waits for the next session. Where there will be none, nobody is let wait.
    fn on_draining(&self) {
        if !self.args.reconnect {
            self.forwards.iter().for_each(|forward| self.running.handle().stop_listening(*forward));
        }
    }

    /// Waits until it is time to connect again, unless all is over before.
    fn pause(&mut self) -> Option<Over> {
        let until = Instant::now() + self.pauses.next();
        loop {
            match self.running.next(Some(until)) {
                News::Signal => return Some(Over::Signal),
                News::Ended(ended) => return Some(Over::Ended(ended)),
                News::Nothing => return None,
                News::Report(_) | News::Connected(_) | News::Hangup => {}
            }
        }
    }
}

/// Pauses between attempts to connect again, each twice the one before.
#[derive(Debug)]
struct Pauses(Duration);

impl Pauses {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    fn next(&mut self) -> Duration {
        let next = (self.0 * 2).min(Self::LONGEST);
        std::mem::replace(&mut self.0, next)
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn pauses_begin_with_the_first_and_stay_at_the_longest() {
        let mut pauses = Pauses::default();
        let all: Vec<_> = (0..8).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(all, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn an_event_loop_that_fails_while_there_is_no_session_fails_the_command() {
        let words = "virbistream forward --peer unix:/nowhere --socket disk=/nowhere --reconnect";
        let Command::Forward(args) = Cli::parse_from(words.split(' ')).command else { unreachable!() };
        let running = Running::of(vec![|| Err(io::Error::other("no epoll"))]);
        let pauses = Pauses(Duration::from_secs(20));
        let mut forward =
            Forward { args: &args, ticket: Vec::new(), running, forwards: Vec::new(), pauses, said_ready: false };
        let over = forward.pause();
        assert!(matches!(over, Some(Over::Ended(Err(Error::System(_))))), "{over:?}");
    }
}
