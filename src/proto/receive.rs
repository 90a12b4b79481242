//! What the peer sent: packets into changes of state, events and data.

use std::time::Instant;

use super::error::{SessionError, StreamError};
use super::event::Event;
use super::hello::needs_unknown;
use super::liveness::HELLO;
use super::session::{Session, State};
use super::stream::{State as StreamState, Stream, StreamId, broke, owed, rule_error};
use crate::wire::{
    Body, BodyError, Close, Credit, Finish, Header, Hello, HelloReply, Open, OpenReply, PRIORITY_MAX, PacketType, Ping,
    Procedure, RemoteError, Rule, Status, Stop, close, codes, decode_body, domains, is_valid_target,
};

/// Refusals of OPEN that may stand unsent before the peer is flooding.
const MAX_REFUSALS: u32 = 256;

/// Bytes of a stream, borrowed from what was handed to the session.
///
/// Deliver them in order; say [`consumed`](super::StreamMut::consumed) when their far end has taken them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// The stream.
    pub id: StreamId,
    /// At least one byte.
    pub bytes: &'a [u8],
}

/// The packet whose payload is arriving.
#[derive(Debug, Default)]
pub(super) enum Incoming {
    #[default]
    None,
    /// DATA for this stream.
    Data(u32),
    /// A body to be judged as a whole; what has come of it.
    Body(Message, Vec<u8>),
    Discard,
}

/// A control packet by its header.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    Hello { serial: u32 },
    HelloReply { serial: u32 },
    HelloRefused { serial: u32 },
    Open(u32),
    OpenReply(u32),
    OpenRefused(u32),
    Finish(u32),
    Reset(u32),
    Credit,
    Stop,
    Ping,
    Pong,
    Close,
}

impl Message {
    /// The longest legal body.
    fn max_len(self) -> u32 {
        match self {
            Self::Hello { .. } => Hello::MAX_LEN,
            Self::HelloReply { .. } => HelloReply::MAX_LEN,
            Self::Open(_) => Open::MAX_LEN,
            Self::OpenReply(_) => OpenReply::MAX_LEN,
            Self::HelloRefused { .. } | Self::OpenRefused(_) | Self::Reset(_) => RemoteError::MAX_LEN,
            Self::Finish(_) => Finish::MAX_LEN,
            Self::Credit => Credit::MAX_LEN,
            Self::Stop => Stop::MAX_LEN,
            Self::Ping | Self::Pong => Ping::MAX_LEN,
            Self::Close => Close::MAX_LEN,
        }
    }
}

impl Session {
    /// A whole packet of which `owns` is true. What it gives is to be delivered at once: it is borrowed.
    ///
    /// # Errors
    /// The session's cause of end, from the packet that broke it on.
    pub fn handle_packet<'a>(
        &mut self,
        now: Instant,
        header: &Header,
        payload: &'a [u8],
    ) -> Result<Option<Data<'a>>, SessionError> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.handle_header(now, header, len)?;
        if payload.is_empty() { Ok(None) } else { self.handle_payload(now, payload, 0) }
    }

    /// The header of a packet of which `owns` is true, with `payload_len` bytes to follow by `handle_payload`.
    ///
    /// # Errors
    /// The session's cause of end, from the packet that broke it on.
    pub fn handle_header(&mut self, now: Instant, header: &Header, payload_len: u32) -> Result<(), SessionError> {
        self.check_open()?;
        self.liveness.heard(now);
        let incoming = self.on_header(header, payload_len)?;
        if let Incoming::Data(id) = &incoming {
            self.liveness.on_answer(*id, now);
        }
        match incoming {
            Incoming::Body(message, _) if payload_len == 0 => self.on_message(now, message, &[]),
            incoming => {
                self.incoming = if payload_len == 0 { Incoming::None } else { incoming };
                Ok(())
            }
        }
    }

    /// The next bytes of a packet's payload, of which `remaining` are still to come after these.
    ///
    /// # Errors
    /// The session's cause of end, from the packet that broke it on.
    pub fn handle_payload<'a>(
        &mut self,
        now: Instant,
        bytes: &'a [u8],
        remaining: u32,
    ) -> Result<Option<Data<'a>>, SessionError> {
        self.check_open()?;
        self.liveness.heard(now);
        match &mut self.incoming {
            Incoming::Data(id) => {
                let id = *id;
                if remaining == 0 {
                    self.incoming = Incoming::None;
                }
                let wanted = self.streams.get(&id).is_some_and(|stream| stream.is_open() && !stream.receiving.stopped);
                Ok((wanted && !bytes.is_empty()).then_some(Data { id: StreamId(id), bytes }))
            }
            Incoming::Body(message, begun) => {
                let message = *message;
                let room = (message.max_len() as usize).saturating_sub(begun.len());
                let bytes = bytes.get(..room).unwrap_or(bytes);
                if remaining > 0 {
                    begun.extend_from_slice(bytes);
                } else if begun.is_empty() {
                    self.incoming = Incoming::None;
                    self.on_message(now, message, bytes)?;
                } else {
                    let mut body = std::mem::take(begun);
                    body.extend_from_slice(bytes);
                    self.incoming = Incoming::None;
                    self.on_message(now, message, &body)?;
                }
                Ok(None)
            }
            Incoming::Discard | Incoming::None => Ok(None),
        }
    }

    /// The link brought bytes, of whatever kind: a sign of life. For those that no other call tells the session of, legacy
    /// packets and headers in pieces.
    pub fn handle_heard(&mut self, now: Instant) {
        self.liveness.heard(now);
    }

    /// The bytes on the link are no packets: what the decoder said of them.
    pub fn handle_framing_error(&mut self, error: crate::wire::FramingError) -> SessionError {
        match self.closed() {
            Some(cause) => cause,
            None => self.misbehaved(Rule::Length, error.to_string()),
        }
    }

    fn check_open(&self) -> Result<(), SessionError> {
        self.closed().map_or(Ok(()), Err)
    }

    fn on_header(&mut self, header: &Header, payload_len: u32) -> Result<Incoming, SessionError> {
        let message = self.classify(header)?;
        let Some(message) = message else {
            return self.on_data(header.serial, payload_len);
        };
        let hello =
            matches!(message, Message::Hello { .. } | Message::HelloReply { .. } | Message::HelloRefused { .. });
        let stands = matches!(self.state, State::Established | State::Draining);
        if !hello && !stands {
            return Err(self.misbehaved(Rule::HelloFirst, format!("procedure {:#x} before HELLO", header.procedure)));
        }
        let max = message.max_len();
        if payload_len <= max {
            return Ok(Incoming::Body(message, Vec::new()));
        }
        let error = BodyError::TooLong { what: "a body", len: payload_len, max };
        match message {
            // The call is refused; what comes of it is passed over.
            Message::Hello { serial } => self.on_hello(serial, Err(error))?,
            Message::Open(id) => self.on_open(self.now, id, Err(error))?,
            // A legacy peer keeps to no bound of ours: what fits of its error is kept.
            Message::HelloRefused { .. } => return Ok(Incoming::Body(message, Vec::new())),
            _ => return Err(self.misbehaved(Rule::Body, error.to_string())),
        }
        Ok(Incoming::Discard)
    }

    /// What the header says this is; `None` is DATA.
    fn classify(&mut self, header: &Header) -> Result<Option<Message>, SessionError> {
        use Message as M;
        use PacketType::{Call, Message as Msg, Reply, Stream};
        let Some(procedure) = Procedure::from_offset(self.config.program.offset(header)) else {
            return Err(self.misbehaved(Rule::Procedure, format!("procedure {:#x}", header.procedure)));
        };
        let id = header.serial;
        let message = match (procedure, header.packet_type(), header.packet_status()) {
            (Procedure::Data, Some(Stream), Some(Status::Continue)) => return Ok(None),
            (Procedure::Hello, Some(Call), Some(Status::Ok)) => Some(M::Hello { serial: id }),
            (Procedure::Hello, Some(Reply), Some(Status::Ok)) => Some(M::HelloReply { serial: id }),
            (Procedure::Hello, Some(Reply), Some(Status::Error)) => Some(M::HelloRefused { serial: id }),
            (Procedure::Open, Some(Call), Some(Status::Ok)) => Some(M::Open(id)),
            (Procedure::Open, Some(Reply), Some(Status::Ok)) => Some(M::OpenReply(id)),
            (Procedure::Open, Some(Reply), Some(Status::Error)) => Some(M::OpenRefused(id)),
            (Procedure::Data, Some(Stream), Some(Status::Ok)) => Some(M::Finish(id)),
            (Procedure::Data, Some(Stream), Some(Status::Error)) => Some(M::Reset(id)),
            (Procedure::Data, Some(PacketType::StreamHole), Some(Status::Continue)) => {
                return Err(self.misbehaved(Rule::Hole, "a hole without the feature".into()));
            }
            (Procedure::Credit, Some(Msg), Some(Status::Ok)) if id == 0 => Some(M::Credit),
            (Procedure::Stop, Some(Msg), Some(Status::Ok)) if id == 0 => Some(M::Stop),
            (Procedure::Ping, Some(Msg), Some(Status::Ok)) if id == 0 => Some(M::Ping),
            (Procedure::Pong, Some(Msg), Some(Status::Ok)) if id == 0 => Some(M::Pong),
            (Procedure::Close, Some(Msg), Some(Status::Ok)) if id == 0 => Some(M::Close),
            _ => None,
        };
        if message.is_none() {
            let detail = format!("{procedure:?} with type {}, status {}, serial {id}", header.kind, header.status);
            return Err(self.misbehaved(Rule::Header, detail));
        }
        Ok(message)
    }

    fn on_data(&mut self, id: u32, len: u32) -> Result<Incoming, SessionError> {
        if !matches!(self.state, State::Established | State::Draining) {
            return Err(self.misbehaved(Rule::HelloFirst, "DATA before HELLO".into()));
        }
        if len == 0 || len > self.config.max_data {
            return Err(self.misbehaved(Rule::DataSize, format!("DATA of {len} bytes on stream {id}")));
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            self.check_known(id)?;
            return Ok(Incoming::Discard);
        };
        match stream.state {
            StreamState::Open => {}
            StreamState::Opening(_) | StreamState::Pending => {
                return Err(self.misbehaved(Rule::BeforeReply, format!("DATA on stream {id}")));
            }
            StreamState::Refused(_) | StreamState::Reset(_) => return Ok(Incoming::Discard),
        }
        if stream.receiving.finished.is_some() {
            self.stream_misbehaved(id, Rule::AfterFinish);
            return Ok(Incoming::Discard);
        }
        if !stream.receiving.on_data(len) {
            if !stream.is_answered() {
                return Err(self.misbehaved(Rule::BeforeReply, format!("DATA on stream {id}")));
            }
            let (offset, limit) = (stream.receiving.offset, stream.receiving.limit());
            let detail = format!("{len} bytes at offset {offset} of stream {id}, whose limit is {limit}");
            return Err(self.misbehaved(Rule::CreditOverrun, detail));
        }
        stream.stats.packets_received += 1;
        Ok(Incoming::Data(id))
    }

    fn on_message(&mut self, now: Instant, message: Message, body: &[u8]) -> Result<(), SessionError> {
        match message {
            Message::Hello { serial } => self.on_hello(serial, decode_body(body)),
            Message::HelloReply { serial } => {
                self.liveness.on_answer(HELLO, now);
                self.on_hello_reply(serial, body)
            }
            Message::HelloRefused { serial } => self.on_hello_refused(serial, body),
            Message::Open(id) => self.on_open(now, id, decode_body(body)),
            Message::OpenReply(id) => self.on_open_reply(id, body),
            Message::OpenRefused(id) => self.on_open_refused(id, body),
            Message::Finish(id) => self.on_finish(id, body),
            Message::Reset(id) => self.on_reset(id, body),
            Message::Credit => self.on_credit(now, body),
            Message::Stop => self.on_stop(now, body),
            Message::Ping => {
                self.owed.pong = Some(self.body::<Ping>(body)?.token);
                self.on_idle_control(now)
            }
            Message::Pong => {
                let token = self.body::<Ping>(body)?.token;
                match self.liveness.on_pong(token, now) {
                    true => Ok(()),
                    false => self.on_idle_control(now),
                }
            }
            Message::Close => self.on_close(body),
        }
    }

    pub(super) fn body<T: Body>(&mut self, body: &[u8]) -> Result<T, SessionError> {
        decode_body(body).map_err(|error| self.misbehaved(Rule::Body, error.to_string()))
    }

    fn on_open(&mut self, now: Instant, id: u32, request: Result<Open, BodyError>) -> Result<(), SessionError> {
        if id == 0 || self.side.owns_id(id) {
            return Err(self.misbehaved(Rule::IdParity, format!("OPEN with id {id}")));
        }
        if id <= self.peer_last_id {
            return Err(self.misbehaved(Rule::IdReused, format!("OPEN with id {id} after {}", self.peer_last_id)));
        }
        self.peer_last_id = id;
        let judged = match self.opens.take(now) {
            true => self.judge_open(request),
            false => {
                self.refused_opens.over_rate += 1;
                Err(rule_error(codes::RESOURCE_BUSY, Rule::StreamLimit))
            }
        };
        match judged {
            Ok((request, window)) => {
                let priority = u8::try_from(request.priority).unwrap_or_default();
                let mut stream = Stream::new(StreamState::Pending, false, priority, window);
                stream.sending.offered(request.window);
                self.streams.insert(id, stream);
                self.open_theirs += 1;
                self.event(Event::Incoming { id: StreamId(id), request });
                Ok(())
            }
            Err(_) if self.refusals >= MAX_REFUSALS => {
                Err(self.misbehaved(Rule::OpenFlood, format!("{MAX_REFUSALS} refusals of OPEN stand unsent")))
            }
            Err(refusal) => {
                self.refusals += 1;
                let mut stream = Stream::new(StreamState::Refused(Box::new(refusal)), false, 0, 0);
                stream.owed = owed::REPLY;
                self.streams.insert(id, stream);
                self.sync(id);
                Ok(())
            }
        }
    }

    /// The request and a window reserved for it; or what the peer is told.
    fn judge_open(&mut self, request: Result<Open, BodyError>) -> Result<(Open, u64), RemoteError> {
        let request =
            request.map_err(|error| broke(Rule::Body, codes::INVALID_ARG, domains::STREAMS, error.to_string()))?;
        if self.state == State::Draining {
            return Err(rule_error(codes::OPERATION_INVALID, Rule::Closing));
        }
        if !is_valid_target(&request.target) {
            return Err(rule_error(codes::INVALID_ARG, Rule::TargetName));
        }
        if request.priority > PRIORITY_MAX {
            return Err(rule_error(codes::INVALID_ARG, Rule::Priority));
        }
        if needs_unknown(&request.extensions) {
            return Err(rule_error(codes::OPERATION_UNSUPPORTED, Rule::Extension));
        }
        if self.has_all_streams() {
            self.refused_opens.over_streams += 1;
            return Err(rule_error(codes::RESOURCE_BUSY, Rule::StreamLimit));
        }
        let window = self.reserve_window().ok_or_else(|| {
            self.refused_opens.over_memory += 1;
            broke(
                Rule::StreamLimit,
                codes::RESOURCE_BUSY,
                domains::STREAMS,
                "no memory is left for another stream".into(),
            )
        })?;
        Ok((request, window))
    }

    /// Whether the peer has as many streams as it may. Those that we have reset do not count, since it may have forgotten them. They are at
    /// most as many again: replies are sent behind resets, and a stream whose reply is not sent is refused instead.
    fn has_all_streams(&self) -> bool {
        let reset = |stream: &&Stream| !stream.ours && matches!(stream.state, StreamState::Reset(_));
        let (open, all) = (self.open_theirs as usize, self.config.max_streams as usize);
        open >= all && open - self.streams.values().filter(reset).count() >= all
    }

    /// Whether the reply is to an OPEN of ours that is unanswered; one that we reset since is answered into the void.
    fn is_reply_awaited(&mut self, id: u32) -> Result<bool, SessionError> {
        if !self.side.owns_id(id) || !self.is_known(id) {
            return Err(self.misbehaved(Rule::Reply, format!("a reply to no OPEN, id {id}")));
        }
        match self.stream_state(id) {
            Some(StreamState::Opening(None)) => Ok(true),
            Some(StreamState::Opening(Some(_))) => {
                Err(self.misbehaved(Rule::Reply, format!("a reply to OPEN {id}, which was not sent yet")))
            }
            Some(StreamState::Open) => Err(self.misbehaved(Rule::Reply, format!("a second reply to OPEN {id}"))),
            _ => Ok(false),
        }
    }

    fn on_open_reply(&mut self, id: u32, body: &[u8]) -> Result<(), SessionError> {
        if !self.is_reply_awaited(id)? {
            return Ok(());
        }
        let reply: OpenReply = self.body(body)?;
        if needs_unknown(&reply.extensions) {
            self.stream_misbehaved(id, Rule::Extension);
            return Ok(());
        }
        let _ = self.change(StreamId(id), |stream| {
            stream.state = StreamState::Open;
            stream.sending.on_credit(0, reply.window);
            Ok(())
        });
        self.event(Event::Accepted(StreamId(id)));
        Ok(())
    }

    fn on_open_refused(&mut self, id: u32, body: &[u8]) -> Result<(), SessionError> {
        if self.is_reply_awaited(id)? {
            let error: RemoteError = self.body(body)?;
            self.ended_by_peer(id, StreamError::Refused(Box::new(error)));
        }
        Ok(())
    }

    fn on_finish(&mut self, id: u32, body: &[u8]) -> Result<(), SessionError> {
        let Some(stream) = self.standing(id, "finish")? else { return Ok(()) };
        let (finished, received) = (stream.receiving.finished, stream.receiving.offset);
        let Finish { offset } = self.body(body)?;
        if finished.is_some() {
            self.stream_misbehaved(id, Rule::AfterFinish);
        } else if offset != received {
            self.stream_misbehaved(id, Rule::FinalOffset);
        } else {
            self.event(Event::Finished(StreamId(id)));
            let _ = self.change(StreamId(id), |stream| {
                stream.receiving.finished = Some(offset);
                if stream.receiving.is_credit_due() {
                    stream.owed |= owed::CREDIT;
                }
                Ok(())
            });
        }
        Ok(())
    }

    fn on_reset(&mut self, id: u32, body: &[u8]) -> Result<(), SessionError> {
        match self.stream_state(id) {
            None => self.check_known(id),
            Some(StreamState::Opening(Some(_))) => {
                Err(self.misbehaved(Rule::IdUnknown, format!("a reset of stream {id}, which it was not asked for yet")))
            }
            Some(StreamState::Refused(_) | StreamState::Reset(_)) => {
                // The peer has forgotten it and counts on its place: what we owe of it would only be discarded.
                let _ = self.change(StreamId(id), |stream| {
                    stream.owed = 0;
                    Ok(())
                });
                Ok(())
            }
            Some(_) => {
                let error: RemoteError = self.body(body)?;
                self.ended_by_peer(id, StreamError::Reset(Box::new(error)));
                Ok(())
            }
        }
    }

    /// A control packet that changes nothing: some come in good faith, on their way while a stream ends.
    fn on_idle_control(&mut self, now: Instant) -> Result<(), SessionError> {
        match self.idle_control.take(now) {
            true => Ok(()),
            false => Err(self.misbehaved(Rule::Flood, "too many control packets that change nothing".into())),
        }
    }

    fn on_credit(&mut self, now: Instant, body: &[u8]) -> Result<(), SessionError> {
        let Credit { stream: id, consumed, limit } = self.body(body)?;
        let Some(stream) = self.standing(id, "CREDIT")? else { return self.on_idle_control(now) };
        let raises = stream.sending.is_raised_by(consumed, limit);
        if !stream.sending.on_credit(consumed, limit) {
            let detail = format!("{consumed} consumed of stream {id}, {} were sent", stream.sending.offset);
            return Err(self.misbehaved(Rule::Consumed, detail));
        }
        self.sync(id);
        if raises { Ok(()) } else { self.on_idle_control(now) }
    }

    fn on_stop(&mut self, now: Instant, body: &[u8]) -> Result<(), SessionError> {
        let Stop { stream: id } = self.body(body)?;
        let Some(stream) = self.standing(id, "STOP")? else { return self.on_idle_control(now) };
        if stream.sending.stopped {
            return self.on_idle_control(now);
        }
        self.event(Event::Stopped(StreamId(id)));
        let _ = self.change(StreamId(id), |stream| {
            stream.sending.stopped = true;
            if !stream.sending.finished {
                stream.sending.finished = true;
                stream.owed |= owed::FINISH;
            }
            Ok(())
        });
        Ok(())
    }

    fn on_close(&mut self, body: &[u8]) -> Result<(), SessionError> {
        let Close { code, rule, text } = self.body(body)?;
        if code == close::DONE {
            self.peer_draining = true;
            if self.state == State::Established {
                self.state = State::Draining;
                self.event(Event::Draining);
            }
            self.end_if_drained();
            return Ok(());
        }
        let error = SessionError::PeerClosed { code, rule, text };
        self.end(Err(error.clone()), None);
        Err(error)
    }

    /// The open stream that a packet is for; `None` when it is over and the packet is to be passed over.
    fn standing(&mut self, id: u32, what: &str) -> Result<Option<&mut Stream>, SessionError> {
        match self.stream_state(id) {
            None => self.check_known(id).map(|()| None),
            Some(StreamState::Refused(_) | StreamState::Reset(_)) => Ok(None),
            Some(_) if !self.streams.get(&id).is_some_and(Stream::is_answered) => {
                Err(self.misbehaved(Rule::BeforeReply, format!("{what} on stream {id}")))
            }
            Some(_) => Ok(self.streams.get_mut(&id)),
        }
    }

    fn check_known(&mut self, id: u32) -> Result<(), SessionError> {
        if self.is_known(id) {
            return Ok(());
        }
        Err(self.misbehaved(Rule::IdUnknown, format!("stream {id} was never opened")))
    }

    fn stream_misbehaved(&mut self, id: u32, rule: Rule) {
        let tell = rule_error(codes::INVALID_ARG, rule);
        self.fail(StreamId(id), tell, StreamError::PeerMisbehaved(rule));
    }

    /// The peer ended the stream: nothing is owed to it any more.
    fn ended_by_peer(&mut self, id: u32, error: StreamError) {
        if let Some(stats) = self.streams.get(&id).map(Stream::stats) {
            self.event(Event::Failed { id: StreamId(id), error, stats });
        }
        let _ = self.change(StreamId(id), |stream| {
            stream.state =
                StreamState::Reset(Box::new(RemoteError::new(codes::OPERATION_ABORTED, domains::STREAMS, "")));
            stream.owed = 0;
            Ok(())
        });
    }
}
