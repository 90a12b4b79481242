//! libvirt's own RPC on a link, beside BiStream: what comes goes to its state machine, what that decides to procedures,
//! callers and handlers.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use super::call::{Answer, Call, OnAnswer, Procedure, Procedures};
use super::channel::{Behind, Channel, Opened};
use super::handle::{OutgoingCall, SessionKey, SessionOptions, StreamKey};
use super::handler::{Attachment, Handler, Waker};
use super::link::Link;
use super::peer::Context;
use super::report::Report;
use super::tokens::Place;
use crate::proto::{SessionError, Side, StreamError};
use crate::rpc::{
    self, CallError, CallId, Client, ClientEvent, Direction, IncomingCall, IncomingId, LegacyId, LegacyStream,
    LinkError, ProcedureId, STREAM_DATA_MAX, Server, ServerEvent, StreamEvent, StreamPiece,
};
use crate::wire::{HEADER_LEN, Header, PacketType, RemoteError, codes, domains};

pub(super) struct Legacy {
    key: SessionKey,
    rpc: Rpc,
    pub(super) offer: Offer,
    channels: BTreeMap<LegacyId, Channel>,
    behind: Behind<LegacyId>,
    calls: BTreeMap<CallId, Waiting>,
    /// Since when so much waits to be sent that the link is not read, and none of it was taken.
    full_since: Option<Instant>,
    /// We were called: the peer is a client of libvirt's RPC, whether or not it will say HELLO.
    pub(super) is_called: bool,
}

/// What a client may call.
pub(super) struct Offer {
    /// BiStream's own program: known, though nothing else of it may be.
    program: (u32, u32),
    programs: Arc<Procedures>,
    /// What is under way ends, and no more calls are taken.
    pub(super) is_closing: bool,
    /// Why the client may not reach the daemon behind us: the answer to all its calls.
    pub(super) denied: Option<RemoteError>,
}

impl Offer {
    /// Who takes a call.
    fn find(&self, id: ProcedureId) -> Result<&Arc<dyn Procedure>, RemoteError> {
        if let Some(denied) = &self.denied {
            return Err(denied.clone());
        }
        if self.is_closing {
            let text = "the connection is about to be closed";
            return Err(RemoteError::new(codes::OPERATION_INVALID, domains::RPC, text));
        }
        let is_ours = (id.program, id.version) == self.program;
        self.programs.find(id).map_err(|error| if is_ours { rpc::unknown_procedure(id) } else { error })
    }
}

/// A call of ours.
struct Waiting {
    on_answer: OnAnswer,
    stream: Option<LegacyId>,
}

enum Rpc {
    Daemon(Server),
    Client(Client),
}

enum Event {
    Called(IncomingCall),
    Answered { call: CallId, answer: Result<Vec<u8>, CallError> },
    Message { procedure: ProcedureId, body: Vec<u8> },
    Stream(StreamEvent),
}

/// Calls the same method of whichever end it is.
macro_rules! either {
    ($rpc:expr, $end:ident => $call:expr) => {
        match $rpc {
            Rpc::Daemon($end) => $call,
            Rpc::Client($end) => $call,
        }
    };
}

impl Rpc {
    fn poll_event(&mut self) -> Option<Event> {
        Some(match self {
            Self::Daemon(server) => match server.poll_event()? {
                ServerEvent::Call(call) => Event::Called(call),
                ServerEvent::Stream(event) => Event::Stream(event),
            },
            Self::Client(client) => match client.poll_event()? {
                ClientEvent::Answered { call, answer } => Event::Answered { call, answer },
                ClientEvent::Message { procedure, body } => Event::Message { procedure, body },
                ClientEvent::Stream(event) => Event::Stream(event),
            },
        })
    }

    fn stream(&mut self, id: LegacyId) -> Option<LegacyStream<'_>> {
        either!(self, end => end.stream(id))
    }
}

impl Legacy {
    pub(super) fn new(key: SessionKey, side: Side, options: &SessionOptions) -> Self {
        let rpc = match side {
            Side::Accepting => Rpc::Daemon(Server::with_budget(options.call_budget.clone())),
            Side::Connecting => Rpc::Client(Client::new()),
        };
        let program = (options.config.program.program, options.config.program.version);
        Self {
            key,
            rpc,
            offer: Offer { program, programs: Arc::clone(&options.programs), is_closing: false, denied: None },
            channels: BTreeMap::new(),
            behind: Behind::default(),
            calls: BTreeMap::new(),
            full_since: None,
            is_called: false,
        }
    }

    pub(super) fn on_header(
        &mut self,
        cx: &mut Context<'_>,
        link: &Link,
        header: &Header,
        payload_len: u32,
    ) -> Result<(), LinkError> {
        match &mut self.rpc {
            Rpc::Daemon(server) => {
                self.is_called |= matches!(header.packet_type(), Some(PacketType::Call | PacketType::CallWithFds));
                let offer = &self.offer;
                server.handle_header_judged(header, payload_len, |procedure| offer.find(procedure).map(drop))?;
            }
            Rpc::Client(client) => client.handle_header(header, payload_len)?,
        }
        self.on_events(cx, link);
        Ok(())
    }

    pub(super) fn on_payload(
        &mut self,
        cx: &mut Context<'_>,
        link: &Link,
        bytes: &[u8],
        remaining: u32,
    ) -> Result<(), LinkError> {
        let piece = either!(&mut self.rpc, end => end.handle_payload(bytes, remaining))?;
        if let Some((id, piece)) = piece
            && let Some(channel) = self.channels.get_mut(&id)
        {
            let delivered = match piece {
                StreamPiece::Bytes(bytes) => channel.deliver(&mut [IoSlice::new(bytes)]),
                StreamPiece::Hole(length) => channel.deliver_hole(length),
            };
            self.on_delivered(cx, id, delivered);
        }
        self.on_events(cx, link);
        Ok(())
    }

    /// Since when the link should not be read, if it should not.
    pub(super) fn full_since(&self) -> Option<Instant> {
        self.full_since
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.rpc {
            Rpc::Client(client) => client.poll_timeout(),
            Rpc::Daemon(_) => None,
        }
    }

    pub(super) fn on_time(&mut self, cx: &mut Context<'_>, link: &Link) {
        if let Rpc::Client(client) = &mut self.rpc {
            client.handle_timeout(cx.now);
            self.on_events(cx, link);
        }
    }

    /// Whether another's packet may follow what was given last.
    pub(super) fn is_between_packets(&self) -> bool {
        either!(&self.rpc, end => end.is_between_packets())
    }

    /// Whether calls of the client's wait for their answers.
    pub(super) fn owes_answers(&self) -> bool {
        matches!(&self.rpc, Rpc::Daemon(server) if server.unanswered() > 0)
    }

    /// Whether no call and no stream is under way, and nothing waits to be sent.
    pub(super) fn is_idle(&self) -> bool {
        either!(&self.rpc, end => end.is_idle())
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_empty(&self) -> bool {
        either!(&self.rpc, end => end.waiting()) == 0
    }

    /// Puts packets that wait into the front of `out`, beginning none beyond `budget` bytes; gives how many bytes.
    pub(super) fn poll_packets(&mut self, now: Instant, out: &mut [u8], budget: usize) -> usize {
        let len = either!(&mut self.rpc, end => end.poll_packets(out, budget));
        self.look_whether_full(now);
        len
    }

    /// The link took bytes: who reads, however slowly, is not one who does not.
    pub(super) fn on_progress(&mut self, now: Instant) {
        if let Some(since) = &mut self.full_since {
            *since = now;
        }
    }

    fn look_whether_full(&mut self, now: Instant) {
        let is_full = matches!(&self.rpc, Rpc::Daemon(server) if server.is_full());
        self.full_since = is_full.then(|| self.full_since.unwrap_or(now));
    }

    /// Puts one packet of a stream's bytes into the front of `room`, which has space for its header and more; gives its
    /// length. `None` when no stream has anything to send.
    /// Whether a stream of its may have data to send.
    pub(super) fn has_data(&mut self) -> bool {
        either!(&mut self.rpc, end => end.poll_grant()).is_some()
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>, link: &Link, room: &mut [u8]) -> Option<usize> {
        let id = either!(&mut self.rpc, end => end.poll_grant())?;
        let len = self.fill(cx, id, room);
        self.on_events(cx, link);
        Some(len)
    }

    fn fill(&mut self, cx: &mut Context<'_>, id: LegacyId, room: &mut [u8]) -> usize {
        let Some(channel) = self.channels.get_mut(&id) else { return 0 };
        let max = (room.len() - HEADER_LEN).min(STREAM_DATA_MAX);
        let is_sparse = self.rpc.stream(id).is_some_and(|stream| stream.options().sparse);
        let hole = if is_sparse { channel.handler.read_hole() } else { Ok(None) };
        let read = match hole {
            Ok(None) => channel.handler.read(&mut room[HEADER_LEN..HEADER_LEN + max]),
            Ok(Some(length)) => {
                let sent = self.rpc.stream(id).is_none_or(|stream| stream.send_hole(length));
                if !sent {
                    self.fail(cx, id, &io::Error::other(format!("its handler gives a hole of {length} bytes")));
                }
                return 0;
            }
            Err(error) => Err(error),
        };
        let Some(stream) = self.rpc.stream(id) else { return 0 };
        match read {
            Ok(0) => stream.finish(),
            Ok(len) if len <= max => {
                // At most STREAM_DATA_MAX.
                if let Some(header) = stream.send(len as u32) {
                    room[..HEADER_LEN].copy_from_slice(&header);
                    return HEADER_LEN + len;
                }
            }
            Ok(_) => self.fail(cx, id, &io::Error::other("its handler claims to have read more than there was room")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.blocked(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.fail(cx, id, &error),
        }
        0
    }

    /// A source of a stream's handler is ready, or it asks to be asked again.
    pub(super) fn on_ready(
        &mut self,
        cx: &mut Context<'_>,
        link: &Link,
        id: LegacyId,
        event: Option<&mio::event::Event>,
    ) {
        if let Some(stream) = self.rpc.stream(id) {
            stream.ready();
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if event.is_some_and(|event| channel.is_receiving() && channel.handler.is_broken(event)) {
            self.fail(cx, id, &io::ErrorKind::BrokenPipe.into());
        } else if event.is_none_or(mio::event::Event::is_writable) {
            let flushed = channel.flush();
            self.on_delivered(cx, id, flushed);
        }
        self.on_events(cx, link);
    }

    fn on_delivered(&mut self, cx: &mut Context<'_>, id: LegacyId, delivered: io::Result<u64>) {
        match delivered {
            Ok(bytes) => {
                if let Some(stream) = self.rpc.stream(id) {
                    stream.consumed(bytes);
                }
                if self.channels.get(&id).is_some_and(Channel::has_finished)
                    && let Some(stream) = self.rpc.stream(id)
                {
                    stream.finish();
                }
                self.behind.look(id, self.channels.get(&id));
            }
            Err(error) => self.fail(cx, id, &error),
        }
    }

    /// Whether a stream's handler would take more of what is held for it.
    pub(super) fn is_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Gives one of those more.
    pub(super) fn catch_up(&mut self, cx: &mut Context<'_>, link: &Link) {
        if let Some((id, flushed)) = self.behind.catch_up(&mut self.channels) {
            self.on_delivered(cx, id, flushed);
            self.on_events(cx, link);
        }
    }

    /// The handler failed.
    fn fail(&mut self, cx: &mut Context<'_>, id: LegacyId, error: &io::Error) {
        let sends = self.rpc.stream(id).is_some_and(|stream| stream.options().direction == Direction::Sending);
        let done = if sends { "read from" } else { "write to" };
        let text = error.to_string();
        // The number is told beside it.
        let text = text.split(" (os error").next().unwrap_or_default();
        let told = RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, format!("cannot {done} stream: {text}"))
            .with_ints(error.raw_os_error().unwrap_or_default(), -1);
        if let Some(stream) = self.rpc.stream(id) {
            stream.fail(&told);
        }
        self.end_channel(cx, id, Err(rpc::StreamError::Handler(Box::new(told))));
    }

    fn on_events(&mut self, cx: &mut Context<'_>, link: &Link) {
        self.look_whether_full(cx.now);
        while let Some(event) = self.rpc.poll_event() {
            match event {
                Event::Called(call) => self.on_call(cx, link, call),
                Event::Answered { call, answer } => self.on_answered(cx, call, answer),
                Event::Message { procedure, body } => {
                    (cx.report)(Report::Message { session: self.key, procedure, body });
                }
                Event::Stream(StreamEvent::Finished(id)) => {
                    if let Some(channel) = self.channels.get_mut(&id) {
                        let finished = channel.peer_finished().map(|()| 0);
                        self.on_delivered(cx, id, finished);
                    }
                }
                Event::Stream(StreamEvent::Over(id)) => self.end_channel(cx, id, Ok(())),
                Event::Stream(StreamEvent::Failed(id, error)) => self.end_channel(cx, id, Err(error)),
            }
        }
    }

    fn on_call(&mut self, cx: &mut Context<'_>, link: &Link, call: IncomingCall) {
        let found = self.offer.find(call.procedure).cloned();
        match (found, &mut self.rpc) {
            (Ok(procedure), _) => procedure.call(Call::new(cx.handle, self.key, link, call)),
            // The connection began to close since its header came.
            (Err(error), Rpc::Daemon(server)) => server.answer(call.id, Err(&error)),
            (Err(_), Rpc::Client(_)) => {}
        }
    }

    fn on_answered(&mut self, cx: &mut Context<'_>, call: CallId, answer: Result<Vec<u8>, CallError>) {
        let Some(waiting) = self.calls.remove(&call) else { return };
        match (waiting.stream, &answer) {
            (Some(id), Ok(_)) => self.attach(cx, id),
            (Some(id), Err(error)) => {
                if let Some(mut channel) = self.channels.remove(&id) {
                    cx.tokens.remove(channel.token);
                    never_begins(cx, &mut *channel.handler, error);
                }
            }
            (None, _) => {}
        }
        (waiting.on_answer)(answer);
    }

    /// A daemon's answer, from whichever thread.
    pub(super) fn answer(&mut self, cx: &mut Context<'_>, call: IncomingId, answer: Answer) {
        self.give_answer(cx, call, answer);
        self.look_whether_full(cx.now);
    }

    fn give_answer(&mut self, cx: &mut Context<'_>, call: IncomingId, answer: Answer) {
        let Rpc::Daemon(server) = &mut self.rpc else { return };
        match answer {
            Answer::Body(answer) => server.answer(call, answer.as_deref()),
            Answer::Stream { procedure, body, options, handler } => {
                // Where nobody waits for the answer any more, or one more stream is too many, the handler is dropped unused.
                if let Some(id) = server.answer_with_stream(call, &body, options) {
                    self.add_channel(cx, id, procedure, handler);
                    self.attach(cx, id);
                }
            }
        }
    }

    /// Tells the client of an event.
    pub(super) fn message(&mut self, procedure: ProcedureId, body: &[u8]) {
        if let Rpc::Daemon(server) = &mut self.rpc
            && !server.message(procedure, body)
        {
            log::warn!("session {}: an event of {procedure} was dropped: its client does not read", self.key);
        }
    }

    /// Calls the daemon.
    pub(super) fn call(&mut self, cx: &mut Context<'_>, call: OutgoingCall) {
        let OutgoingCall { procedure, arguments, timeout, stream, on_answer } = call;
        let Rpc::Client(client) = &mut self.rpc else {
            on_answer(Err(CallError::Accepting));
            return;
        };
        let (options, handler) = stream.unzip();
        let called = match options {
            Some(options) => {
                let called = client.call_with_stream(cx.now, procedure, &arguments, timeout, options);
                called.map(|(call, stream)| (call, Some(stream)))
            }
            None => client.call(cx.now, procedure, &arguments, timeout).map(|call| (call, None)),
        };
        match called {
            Err(error) => {
                if let Some(mut handler) = handler {
                    never_begins(cx, &mut *handler, &error);
                }
                on_answer(Err(error));
            }
            Ok((call, stream)) => {
                if let Some((id, handler)) = stream.zip(handler) {
                    self.add_channel(cx, id, procedure, handler);
                }
                self.calls.insert(call, Waiting { on_answer, stream });
            }
        }
    }

    /// What comes before it is attached waits.
    fn add_channel(&mut self, cx: &mut Context<'_>, id: LegacyId, procedure: ProcedureId, handler: Box<dyn Handler>) {
        let token = cx.tokens.add(Place::Legacy(self.key, id));
        let opened = Opened { key: StreamKey(cx.handle.next_key()), target: procedure.to_string(), handler };
        let mut channel = Channel::new(opened, token);
        if self.rpc.stream(id).is_some_and(|stream| stream.options().direction == Direction::Sending) {
            // That its handler takes no bytes is nothing to fail of.
            channel.stop_receiving();
        }
        self.channels.insert(id, channel);
    }

    /// The stream stands, unless it was over before it was known to stand.
    fn attach(&mut self, cx: &mut Context<'_>, id: LegacyId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let waker = Waker::new(cx.handle, self.key, Place::Legacy(self.key, id));
        let at = Attachment { registry: cx.registry, token: channel.token, stream: channel.key, waker };
        let attached = channel.handler.attach(&at);
        if let Err(error) = attached {
            return self.fail(cx, id, &error);
        }
        let delivered = channel.open();
        if let Some(stream) = self.rpc.stream(id) {
            stream.ready();
        }
        self.on_delivered(cx, id, delivered);
    }

    fn end_channel(&mut self, cx: &mut Context<'_>, id: LegacyId, cause: Result<(), rpc::StreamError>) {
        let Some(mut channel) = self.channels.remove(&id) else { return };
        cx.tokens.remove(channel.token);
        channel.handler.detach(cx.registry);
        if let Err(error) = &cause {
            channel.handler.reset(&as_stream_error(error));
        }
        let (session, stream, procedure) = (self.key, channel.key, channel.target);
        (cx.report)(Report::LegacyStreamEnded { session, stream, procedure, cause });
    }

    /// The link is gone.
    pub(super) fn end(&mut self, cx: &mut Context<'_>, link: &Link) {
        either!(&mut self.rpc, end => end.handle_link_lost());
        self.on_events(cx, link);
    }
}

/// Tells the handler of a stream that its call failed.
fn never_begins(cx: &Context<'_>, handler: &mut dyn Handler, error: &CallError) {
    handler.detach(cx.registry);
    handler.reset(&StreamError::Local(Box::new(RemoteError::new(codes::RPC, domains::RPC, error.to_string()))));
}

/// What a handler is told: it may serve both kinds of streams.
fn as_stream_error(error: &rpc::StreamError) -> StreamError {
    let told = |error: &rpc::StreamError| Box::new(RemoteError::new(codes::RPC, domains::STREAMS, error.to_string()));
    match error {
        rpc::StreamError::Remote(error) => StreamError::Reset(error.clone()),
        rpc::StreamError::Handler(error) => StreamError::Local(error.clone()),
        rpc::StreamError::Aborted | rpc::StreamError::CutShort => StreamError::Reset(told(error)),
        rpc::StreamError::LinkLost => StreamError::Session(SessionError::LinkLost("the link was lost".into())),
        other => StreamError::Local(told(other)),
    }
}
