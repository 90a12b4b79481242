//! The streams of a session and what they are connected to.

use std::io;
use std::time::{Duration, Instant};

use super::{Context, Dialling, Peer, later};
use crate::io::channel::{Channel, Opened};
use crate::io::handle::StreamKey;
use crate::io::handler::{Attachment, Decision, Request, Waker};
use crate::io::report::Report;
use crate::io::tokens::Place;
use crate::proto::{OpenError, StreamError, StreamId, StreamStats, rule_error};
use crate::wire::{Open, RemoteError, Rule, codes, domains};

/// A target that wants to be asked again at once is asked then.
const SHORTEST_RETRY: Duration = Duration::from_millis(1);

impl Peer {
    /// A source of the stream's handler is ready for something.
    pub(in crate::io) fn on_stream_event(&mut self, cx: &mut Context<'_>, id: StreamId, event: &mio::event::Event) {
        let channel = self.channels.get_mut(&id).filter(|channel| channel.is_open());
        if channel.is_some_and(|channel| channel.is_receiving() && channel.handler.is_broken(event)) {
            self.stop(id);
        }
        self.on_ready(cx, id, event.is_writable());
    }

    /// The stream's handler asks to be asked again.
    pub(in crate::io) fn on_wake(&mut self, cx: &mut Context<'_>, id: StreamId) {
        self.on_ready(cx, id, true);
    }

    pub(super) fn on_ready(&mut self, cx: &mut Context<'_>, id: StreamId, writable: bool) {
        if let Some(stream) = self.session.stream(id) {
            stream.ready();
        }
        if writable && let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.is_open()) {
            let flushed = channel.flush();
            self.on_delivered(cx, id, flushed);
        }
    }

    /// Gives one of the handlers that have had their budget more of what is held for them.
    pub(super) fn catch_up(&mut self, cx: &mut Context<'_>) {
        if let Some((id, flushed)) = self.behind.catch_up(&mut self.channels) {
            self.on_delivered(cx, id, flushed);
        }
    }

    /// Opens a stream of our own side.
    pub(in crate::io) fn open(&mut self, cx: &mut Context<'_>, open: Open, opened: Opened) {
        let id = if self.close_due { Err(OpenError::Closing) } else { self.session.open(cx.now, open) };
        match id {
            Ok(id) => self.add_channel(cx, id, opened),
            Err(error) => opened.refuse(cx.registry, cx.report, self.key, error),
        }
    }

    /// Ends a stream by our user's word.
    pub(in crate::io) fn reset(&mut self, cx: &mut Context<'_>, key: StreamKey, error: RemoteError) {
        if let Some(id) = self.id_of(key) {
            self.reset_stream(cx, id, error);
        }
    }

    /// Limits the data that is sent on a stream.
    pub(in crate::io) fn set_stream_limit(&mut self, now: Instant, key: StreamKey, rate: Option<u64>) {
        if let Some(stream) = self.id_of(key).and_then(|id| self.session.stream(id)) {
            stream.set_limit(now, rate);
        }
    }

    fn id_of(&self, key: StreamKey) -> Option<StreamId> {
        self.channels.iter().find(|(_, channel)| channel.key == key).map(|(id, _)| *id)
    }

    pub(super) fn add_channel(&mut self, cx: &mut Context<'_>, id: StreamId, opened: Opened) {
        let token = cx.tokens.add(Place::Stream(self.key, id));
        self.channels.insert(id, Channel::new(opened, token));
    }

    /// What came of handing bytes, or the end of them, to a handler.
    pub(super) fn on_delivered(&mut self, cx: &mut Context<'_>, id: StreamId, delivered: io::Result<u64>) {
        match delivered {
            Ok(bytes) => {
                if let Some(stream) = self.session.stream(id) {
                    let counted = stream.consumed(bytes);
                    debug_assert!(counted.is_ok(), "delivered more than came");
                }
                self.behind.look(id, self.channels.get(&id));
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.stop(id),
            Err(error) => self.fail(cx, id, &error),
        }
    }

    /// Nobody takes the peer's bytes any more; our direction goes on.
    pub(super) fn stop(&mut self, id: StreamId) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.stop_receiving();
        }
        if let Some(stream) = self.session.stream(id) {
            let _ = stream.stop();
        }
    }

    /// The handler failed: both ends hear of it.
    pub(super) fn fail(&mut self, cx: &mut Context<'_>, id: StreamId, error: &io::Error) {
        let target = self.channels.get(&id).map_or("", |channel| channel.target.as_str());
        let remote = RemoteError::new(codes::SYSTEM_ERROR, domains::STREAMS, format!("`{target}`: {error}"))
            .with_ints(error.raw_os_error().unwrap_or_default(), 0);
        self.reset_stream(cx, id, remote);
    }

    pub(super) fn reset_stream(&mut self, cx: &mut Context<'_>, id: StreamId, error: RemoteError) {
        // One that has ended has its cause already, in an event that is still to be taken.
        let Some(stream) = self.session.stream(id) else { return };
        let stats = stream.stats();
        stream.reset(error.clone());
        self.end_channel(cx, id, Err(StreamError::Local(Box::new(error))), stats);
    }

    pub(super) fn on_incoming(&mut self, cx: &mut Context<'_>, id: StreamId, request: Open) {
        let deadline = later(cx.now, self.options.dial_timeout);
        let key = StreamKey(cx.handle.next_key());
        if self.close_due {
            let error = rule_error(codes::OPERATION_INVALID, Rule::Closing);
            return self.refuse(cx, id, key, request.target, error);
        }
        self.dial(cx, Dialling { id, key, request, again: cx.now, deadline });
    }

    pub(super) fn dial(&mut self, cx: &mut Context<'_>, dialling: Dialling) {
        let Dialling { id, key, request, deadline, .. } = dialling;
        let asked = Request {
            session: self.key,
            peer: self.link.peer(),
            identity: self.link.identity(),
            target: &request.target,
            kind: request.kind,
            priority: request.priority,
            extensions: &request.extensions,
        };
        match self.options.targets.open(&asked) {
            Decision::Accept(handler) => {
                self.add_channel(cx, id, Opened { key, target: request.target, handler });
                self.attach(cx, id);
            }
            Decision::Refuse(error) => self.refuse(cx, id, key, request.target, error),
            Decision::RetryAfter(_) if cx.now >= deadline => {
                let text = format!("target `{}` took no connection in time", request.target);
                let error = RemoteError::new(codes::OPERATION_TIMEOUT, domains::STREAMS, text);
                self.refuse(cx, id, key, request.target, error);
            }
            Decision::RetryAfter(wait) => {
                let again = later(cx.now, wait.max(SHORTEST_RETRY)).min(deadline);
                self.dialling.push(Dialling { id, key, request, again, deadline });
            }
        }
    }

    pub(super) fn dial_again(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        for dialling in self.dialling.extract_if(.., |dialling| dialling.again <= now).collect::<Vec<_>>() {
            self.dial(cx, dialling);
        }
    }

    pub(super) fn refuse(
        &mut self,
        cx: &mut Context<'_>,
        id: StreamId,
        key: StreamKey,
        target: String,
        error: RemoteError,
    ) {
        (cx.report)(Report::StreamRefused { session: self.key, stream: key, target, reason: error.to_string() });
        if let Some(stream) = self.session.stream(id) {
            let _ = stream.refuse(error);
        }
    }

    /// Connects a stream that stands with its handler.
    pub(super) fn attach(&mut self, cx: &mut Context<'_>, id: StreamId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let waker = Waker::new(cx.handle, self.key, Place::Stream(self.key, id));
        let at = Attachment { registry: cx.registry, token: channel.token, stream: channel.key, waker };
        let attached = channel.handler.attach(&at);
        if let Err(error) = attached {
            self.fail(cx, id, &error);
            return;
        }
        let delivered = channel.open();
        let (stream, target) = (channel.key, channel.target.clone());
        (cx.report)(Report::StreamOpened { session: self.key, stream, id, target });
        if let Some(stream) = self.session.stream(id) {
            // Of our own streams nothing is left to accept.
            let _ = stream.accept();
        }
        if let Some(stream) = self.session.stream(id) {
            stream.ready();
        }
        self.on_delivered(cx, id, delivered);
    }

    pub(super) fn end_channel(
        &mut self,
        cx: &mut Context<'_>,
        id: StreamId,
        cause: Result<(), StreamError>,
        stats: StreamStats,
    ) {
        let Some(mut channel) = self.channels.remove(&id) else { return };
        cx.tokens.remove(channel.token);
        channel.handler.detach(cx.registry);
        if let Err(error) = &cause {
            channel.handler.reset(error);
        }
        let is_open = channel.is_open();
        let (session, stream, target) = (self.key, channel.key, channel.target);
        (cx.report)(match cause {
            Err(error) if !is_open => Report::StreamRefused { session, stream, target, reason: error.to_string() },
            cause => Report::StreamEnded { session, stream, id, target, cause, stats },
        });
    }
}
