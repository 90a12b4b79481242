//! HELLO and its reply: judging the peer's, and saying ours (docs/protocol.md, §3).

use super::error::SessionError;
use super::event::Event;
use super::session::{Session, Side, State};
use super::stream::broke;
use crate::wire::{
    BISTREAM_1, BodyError, DATA_MAX, DATA_MIN, EXT_TICKET, Extension, Hello, HelloReply, Limits, RemoteError, Rule,
    codes, decode_body, domains,
};

/// Feature bits that this library can do.
const FEATURES: u64 = 0;

/// The serial of our HELLO.
pub(super) const SERIAL: u32 = 1;

impl Session {
    pub(super) fn on_hello(&mut self, serial: u32, hello: Result<Hello, BodyError>) -> Result<(), SessionError> {
        if self.side == Side::Connecting || self.state != State::AwaitingHello {
            return Err(self.misbehaved(Rule::HelloOnce, "a second HELLO, or one from the accepting side".into()));
        }
        match judge_hello(hello, self.config.judge_hello) {
            Ok(hello) => {
                self.state = State::Judging(serial, hello.limits);
                match self.config.judge_hello {
                    true => self.event(Event::Hello { extensions: hello.extensions }),
                    false => self.admit(u32::MAX),
                }
                Ok(())
            }
            Err(refusal) => Err(self.refuse_hello(serial, refusal)),
        }
    }

    /// Lets the peer in whose HELLO is judged, with at most so many streams of its open at once, and no more than `Config` has. Without
    /// such a HELLO it does nothing.
    pub fn admit(&mut self, max_streams: u32) {
        let State::Judging(serial, limits) = self.state else { return };
        self.config.max_streams = self.config.max_streams.min(max_streams);
        self.peer = limits;
        self.owed.hello_reply = Some((serial, Ok(())));
        self.hello_stands();
        self.event(Event::Established { version: BISTREAM_1, features: FEATURES, limits });
    }

    /// Refuses the peer whose HELLO is judged, and ends the session. A code that would have it take us for a legacy peer becomes
    /// `OPERATION_DENIED`. Without such a HELLO it does nothing.
    pub fn deny(&mut self, mut refusal: RemoteError) {
        let State::Judging(serial, _) = self.state else { return };
        if matches!(refusal.code, codes::RPC | codes::NO_SUPPORT) {
            refusal.code = codes::OPERATION_DENIED;
        }
        self.refuse_hello(serial, refusal);
    }

    fn refuse_hello(&mut self, serial: u32, refusal: RemoteError) -> SessionError {
        let error = SessionError::RefusedPeer(Box::new(refusal.clone()));
        self.end(Err(error.clone()), None);
        self.owed.hello_reply = Some((serial, Err(refusal)));
        error
    }

    pub(super) fn on_hello_reply(&mut self, serial: u32, body: &[u8]) -> Result<(), SessionError> {
        self.check_hello_sent(serial)?;
        // It took our HELLO, so it is told why we go if we do.
        self.hello_stands();
        let reply: HelloReply = self.body(body)?;
        if reply.version != BISTREAM_1 || reply.features & !FEATURES != 0 || !in_range(reply.limits) {
            let detail = format!("version {}, features {:#x}, {:?}", reply.version, reply.features, reply.limits);
            return Err(self.misbehaved(Rule::Choice, detail));
        }
        if needs_unknown(&reply.extensions) {
            return Err(self.misbehaved(Rule::Extension, "the reply to HELLO needs an extension".into()));
        }
        self.peer = reply.limits;
        self.event(Event::Established { version: reply.version, features: reply.features, limits: reply.limits });
        Ok(())
    }

    pub(super) fn on_hello_refused(&mut self, serial: u32, body: &[u8]) -> Result<(), SessionError> {
        self.check_hello_sent(serial)?;
        let error = self.refusal(body)?;
        if matches!(error.code, codes::RPC | codes::NO_SUPPORT) {
            self.state = State::Legacy;
            self.event(Event::Legacy(error));
            return Ok(());
        }
        let error = SessionError::Refused(Box::new(error));
        self.end(Err(error.clone()), None);
        Err(error)
    }

    /// What the peer answered to HELLO. A legacy peer keeps to no bound of ours: of an error that does not decode the code,
    /// its first word, is enough.
    fn refusal(&mut self, body: &[u8]) -> Result<RemoteError, SessionError> {
        match (decode_body(body), body.first_chunk()) {
            (Ok(error), _) => Ok(error),
            (Err(_), Some(code)) => {
                Ok(RemoteError::new(i32::from_be_bytes(*code), domains::RPC, "its error cannot be read"))
            }
            (Err(error), None) => Err(self.misbehaved(Rule::Body, error.to_string())),
        }
    }

    fn check_hello_sent(&mut self, serial: u32) -> Result<(), SessionError> {
        if self.state == State::HelloSent && !self.owed.hello && serial == SERIAL {
            return Ok(());
        }
        Err(self.misbehaved(Rule::Reply, format!("a reply with serial {serial} to no HELLO")))
    }

    fn limits(&self) -> Limits {
        Limits { max_data: self.config.max_data, max_streams: self.config.max_streams }
    }

    pub(super) fn hello(&self) -> Hello {
        Hello {
            min_version: BISTREAM_1,
            max_version: BISTREAM_1,
            offered: FEATURES,
            needed: 0,
            limits: self.limits(),
            extensions: self.config.hello_extensions.clone(),
        }
    }

    pub(super) fn hello_reply(&self) -> HelloReply {
        HelloReply { version: BISTREAM_1, features: FEATURES, limits: self.limits(), extensions: Vec::new() }
    }
}

/// `knows_tickets`: somebody judges what HELLO says besides.
fn judge_hello(hello: Result<Hello, BodyError>, knows_tickets: bool) -> Result<Hello, RemoteError> {
    let refuse = |code, rule, text| broke(rule, code, domains::RPC, text);
    let hello = hello.map_err(|error| refuse(codes::INVALID_ARG, Rule::Body, error.to_string()))?;
    if !(hello.min_version..=hello.max_version).contains(&BISTREAM_1) {
        let text = format!("versions {} to {} offered, {BISTREAM_1} spoken", hello.min_version, hello.max_version);
        return Err(refuse(codes::OPERATION_UNSUPPORTED, Rule::Version, text));
    }
    if hello.needed & !(FEATURES & hello.offered) != 0 {
        let text = format!("features {:#x} needed, {FEATURES:#x} known", hello.needed);
        return Err(refuse(codes::OPERATION_UNSUPPORTED, Rule::Feature, text));
    }
    let is_known = |extension: &Extension| knows_tickets && extension.kind == EXT_TICKET;
    if hello.extensions.iter().any(|extension| extension.needed && !is_known(extension)) {
        return Err(refuse(codes::OPERATION_UNSUPPORTED, Rule::Extension, "an unknown extension is needed".into()));
    }
    if !in_range(hello.limits) {
        return Err(refuse(codes::INVALID_ARG, Rule::Limits, format!("max_data of {}", hello.limits.max_data)));
    }
    Ok(hello)
}

fn in_range(limits: Limits) -> bool {
    (DATA_MIN..=DATA_MAX).contains(&limits.max_data)
}

/// In a reply to HELLO, in OPEN and in its reply, no extension is known yet.
pub(super) fn needs_unknown(extensions: &[Extension]) -> bool {
    extensions.iter().any(|extension| extension.needed)
}
