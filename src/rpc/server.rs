//! The daemon's end of libvirt's RPC on one link.

use std::collections::{BTreeMap, VecDeque};

use super::error::LinkError;
use super::outbox::Outbox;
use super::procedure::{KEEPALIVE, PING, ProcedureId, rpc_error};
use super::streams::{
    Arriving, Direction, LegacyId, LegacyStream, Role, StreamEvent, StreamOptions, StreamPiece, Streams,
};
use crate::proto::{MemoryBudget, Share};
use crate::wire::{Header, PACKET_MAX, PACKET_MIN, PacketType, RemoteError, Status, codes, domains};

/// Calls that may be without an answer at once; one beyond is refused.
const MAX_CALLS: usize = 256;

/// Bytes of arguments that such calls may hold.
const MAX_ARGUMENTS: usize = 64 << 20;

/// Legacy streams that the client may have at once; a call for one beyond is refused.
const MAX_STREAMS: usize = 256;

/// Bytes that may wait to be sent, before the link is read no further until some are gone.
const MAX_WAITING: usize = 256 << 10;

/// The name of a call that waits for its answer, on its link; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncomingId(u64);

/// A call of the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingCall {
    /// Its name.
    pub id: IncomingId,
    /// What is called.
    pub procedure: ProcedureId,
    /// The arguments, as they came.
    pub arguments: Vec<u8>,
}

/// What happened on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// Answer it, now or later, with [`Server::answer`] or [`Server::answer_with_stream`].
    Call(IncomingCall),
    /// Something of a legacy stream.
    Stream(StreamEvent),
}

#[derive(Debug)]
enum Incoming {
    Nothing,
    /// With the bytes that its arguments hold, those that have room to come among them.
    Call(Header, Vec<u8>, usize),
    /// A call that nobody takes, its answer, and how much of its number of descriptors is still to come.
    Refused(Header, RemoteError, usize),
    Stream(Arriving),
}

/// The daemon's end of libvirt's RPC on one link: calls to be answered in any order, events, legacy streams.
#[derive(Debug)]
pub struct Server {
    incoming: Incoming,
    /// With the bytes that their arguments hold.
    calls: BTreeMap<IncomingId, (Header, usize)>,
    /// All of them together.
    arguments: usize,
    budget: MemoryBudget,
    /// The same, with what the call that arrives holds, of the budget.
    share: Share,
    next: u64,
    streams: Streams,
    outbox: Outbox,
    events: VecDeque<ServerEvent>,
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// On a new link, with no other beside it.
    pub fn new() -> Self {
        Self::with_budget(MemoryBudget::new(u64::MAX))
    }

    /// On a new link, with bytes that arguments and streams of all links with a clone of the budget may hold.
    pub fn with_budget(budget: MemoryBudget) -> Self {
        Self {
            incoming: Incoming::Nothing,
            calls: BTreeMap::new(),
            arguments: 0,
            share: Share::new(budget.clone()),
            budget,
            next: 1,
            streams: Streams::new(Role::Daemon),
            outbox: Outbox::default(),
            events: VecDeque::new(),
        }
    }

    /// The header of a packet that is not BiStream's, with `payload_len` bytes to follow by `handle_payload`.
    ///
    /// # Errors
    /// [`LinkError`]: close the link, as libvirt does; there is no answer.
    pub fn handle_header(&mut self, header: &Header, payload_len: u32) -> Result<(), LinkError> {
        self.handle_header_judged(header, payload_len, |_| Ok(()))
    }

    /// The same, and a call is judged before anything of its arguments is kept: they are passed over where `judge` refuses it, and the error
    /// is its answer once they have come.
    ///
    /// # Errors
    /// As of `handle_header`.
    pub fn handle_header_judged(
        &mut self,
        header: &Header,
        payload_len: u32,
        judge: impl FnOnce(ProcedureId) -> Result<(), RemoteError>,
    ) -> Result<(), LinkError> {
        self.incoming = Incoming::Nothing;
        match header.packet_type() {
            Some(PacketType::Message) if header.program == KEEPALIVE => self.on_keepalive(header),
            Some(PacketType::Call) => self.on_call(header, payload_len, judge)?,
            // The number of descriptors stands before the arguments; without it, it is none that libvirt could make.
            Some(PacketType::CallWithFds) if payload_len < 4 => return Err(LinkError::Descriptors),
            Some(PacketType::CallWithFds) => self.on_call(header, payload_len, judge)?,
            Some(PacketType::Stream | PacketType::StreamHole) => {
                let arriving = self.streams.on_header(header, payload_len, &mut self.outbox)?;
                self.incoming = Incoming::Stream(arriving);
            }
            // To what is none of these, libvirt does not answer.
            _ => {}
        }
        Ok(())
    }

    /// The next bytes of the payload, of which `remaining` are still to come after these. What it gives is to be
    /// delivered, and counted by the stream's `consumed` once it is.
    ///
    /// # Errors
    /// [`LinkError`]: close the link, as libvirt does; there is no answer.
    pub fn handle_payload<'a>(
        &mut self,
        bytes: &'a [u8],
        remaining: u32,
    ) -> Result<Option<(LegacyId, StreamPiece<'a>)>, LinkError> {
        Ok(match &mut self.incoming {
            Incoming::Nothing => None,
            Incoming::Call(header, arguments, held) => {
                let capacity = capacity_for(arguments.len() + bytes.len(), *held, remaining as usize);
                if !self.share.take((capacity - *held) as u64) {
                    let (header, held) = (*header, *held);
                    self.incoming = Incoming::Nothing;
                    self.share.give(held as u64);
                    self.refuse(&header, &busy(domains::RPC, "the calls of all clients hold too much memory"));
                    return Ok(None);
                }
                *held = capacity;
                arguments.reserve_exact(capacity - arguments.len());
                arguments.extend_from_slice(bytes);
                if remaining == 0 {
                    self.call_is_whole()?;
                }
                None
            }
            Incoming::Refused(_, _, number) => {
                let of_number = bytes.len().min(*number);
                *number -= of_number;
                if bytes.iter().take(of_number).any(|byte| *byte != 0) {
                    return Err(LinkError::Descriptors);
                }
                if remaining == 0 {
                    self.refused_is_whole();
                }
                None
            }
            Incoming::Stream(arriving) => self.streams.on_payload(arriving, bytes, remaining, &mut self.outbox),
        })
    }

    fn on_keepalive(&mut self, header: &Header) {
        if header.procedure == PING {
            self.outbox.push_pong(header);
        }
    }

    fn on_call(
        &mut self,
        header: &Header,
        payload_len: u32,
        judge: impl FnOnce(ProcedureId) -> Result<(), RemoteError>,
    ) -> Result<(), LinkError> {
        let length = payload_len as usize;
        if header.packet_status() != Some(Status::Ok) {
            self.refuse(header, &rpc_error(format!("Unexpected message status {}", header.status)));
        } else if self.calls.len() >= MAX_CALLS || self.arguments + length > MAX_ARGUMENTS {
            self.refuse(header, &busy(domains::RPC, "too many calls without an answer"));
        } else if let Err(error) = judge(ProcedureId::of(header)) {
            let has_number = header.packet_type() == Some(PacketType::CallWithFds);
            self.incoming = Incoming::Refused(*header, error, if has_number { 4 } else { 0 });
            if payload_len == 0 {
                self.refused_is_whole();
            }
        } else {
            self.incoming = Incoming::Call(*header, Vec::new(), 0);
            if payload_len == 0 {
                self.call_is_whole()?;
            }
        }
        Ok(())
    }

    fn refused_is_whole(&mut self) {
        let Incoming::Refused(mut header, error, _) = std::mem::replace(&mut self.incoming, Incoming::Nothing) else {
            return;
        };
        header.kind = PacketType::Call.as_wire();
        self.refuse(&header, &error);
    }

    fn call_is_whole(&mut self) -> Result<(), LinkError> {
        let incoming = std::mem::replace(&mut self.incoming, Incoming::Nothing);
        let Incoming::Call(mut header, mut arguments, held) = incoming else {
            return Ok(());
        };
        if header.packet_type() == Some(PacketType::CallWithFds) {
            if arguments.drain(..4).any(|byte| byte != 0) {
                return Err(LinkError::Descriptors);
            }
            header.kind = PacketType::Call.as_wire();
        }
        let id = IncomingId(self.next);
        self.next += 1;
        self.arguments += held;
        self.calls.insert(id, (header, held));
        let procedure = ProcedureId::of(&header);
        self.events.push_back(ServerEvent::Call(IncomingCall { id, procedure, arguments }));
        Ok(())
    }

    /// What happened since; until `None`, after every `handle_…`.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front().or_else(|| self.streams.poll_event().map(ServerEvent::Stream))
    }

    /// Answers a call. One that is answered already, or whose link is gone, is passed over.
    ///
    /// An answer longer than a packet can be is answered by an error instead.
    pub fn answer(&mut self, call: IncomingId, answer: Result<&[u8], &RemoteError>) {
        if let Some(header) = self.end_call(call) {
            self.put_answer(&header, answer);
        }
    }

    /// Answers a call well and begins a legacy stream with it; `None` when nobody waits for the answer any more, or when the client has
    /// 256 of them already, or one of the same serial, or when its limit does not fit into the budget, and is told so instead.
    pub fn answer_with_stream(&mut self, call: IncomingId, answer: &[u8], options: StreamOptions) -> Option<LegacyId> {
        let header = self.end_call(call)?;
        if self.streams.len() >= MAX_STREAMS || self.streams.is_known(&header) {
            let text = "too many legacy streams, or one of this serial is under way";
            self.refuse(&header, &busy(domains::STREAMS, text));
            return None;
        }
        let mut share = Share::new(self.budget.clone());
        if options.direction == Direction::Receiving && !share.take(options.limit) {
            self.refuse(&header, &busy(domains::STREAMS, "the streams of all clients hold too much memory"));
            return None;
        }
        self.put_answer(&header, Ok(answer));
        let stream = self.streams.open(&header, options, true, Some(share));
        self.streams.send_behind(stream, self.outbox.mark());
        Some(stream)
    }

    fn end_call(&mut self, call: IncomingId) -> Option<Header> {
        let (header, arguments) = self.calls.remove(&call)?;
        self.arguments -= arguments;
        self.share.give(arguments as u64);
        Some(header)
    }

    fn put_answer(&mut self, call: &Header, answer: Result<&[u8], &RemoteError>) {
        let reply = |status: Status| Header { kind: PacketType::Reply.as_wire(), status: status.as_wire(), ..*call };
        match answer {
            Ok(body) if body.len() <= (PACKET_MAX - PACKET_MIN) as usize => self.outbox.push(&reply(Status::Ok), body),
            Ok(body) => {
                let text = format!("the answer of {} bytes is longer than a packet", body.len());
                self.refuse(call, &RemoteError::new(codes::RPC, domains::RPC, text));
            }
            Err(error) => self.refuse(call, error),
        }
    }

    fn refuse(&mut self, call: &Header, error: &RemoteError) {
        self.outbox.push_error(&Header { kind: PacketType::Reply.as_wire(), ..*call }, error);
    }

    /// Tells the client of an event. False, and nothing is sent, while too much waits to be sent already, or when the body is
    /// longer than a packet can be.
    pub fn message(&mut self, procedure: ProcedureId, body: &[u8]) -> bool {
        let takes = !self.is_full() && body.len() <= (PACKET_MAX - PACKET_MIN) as usize;
        if takes {
            self.outbox.push(&procedure.header(PacketType::Message, 0, Status::Ok), body);
        }
        takes
    }

    /// Moves packets into the front of `out`; gives how many bytes. Until [`is_between_packets`](Self::is_between_packets)
    /// nobody else's bytes may follow. It begins a packet only while it gave less than `budget` bytes, so that what
    /// else shares the link has its turn: with 0 it only ends the one that is begun.
    pub fn poll_packets(&mut self, out: &mut [u8], budget: usize) -> usize {
        self.outbox.poll(out, budget)
    }

    /// Bytes of packets that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Whether the last packet that `poll_packets` gave was given whole.
    pub fn is_between_packets(&self) -> bool {
        self.outbox.is_between_packets()
    }

    /// Whether so much waits to be sent that the link should not be read until some is gone.
    pub fn is_full(&self) -> bool {
        self.outbox.len() > MAX_WAITING
    }

    /// The stream whose turn it is to send at most [`STREAM_DATA_MAX`](super::STREAM_DATA_MAX) bytes. Answer it by the
    /// stream's `send`, `send_hole`, `blocked`, `finish` or `fail`: until then it stays the same.
    pub fn poll_grant(&mut self) -> Option<LegacyId> {
        self.streams.poll_grant(&self.outbox)
    }

    /// The stream, to act upon; `None` when it is over or never was.
    pub fn stream(&mut self, id: LegacyId) -> Option<LegacyStream<'_>> {
        self.streams.get(id, &mut self.outbox)
    }

    /// Streams that the client has not had the last word of.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Calls that wait for their answers.
    pub fn unanswered(&self) -> usize {
        self.calls.len()
    }

    /// Whether no call waits for its answer, no stream is under way and nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.streams.is_idle() && self.outbox.len() == 0
    }

    /// The link is gone: streams have failed, and answers are passed over.
    pub fn handle_link_lost(&mut self) {
        self.calls.clear();
        self.arguments = 0;
        self.incoming = Incoming::Nothing;
        self.share.give(self.share.taken());
        self.outbox = Outbox::default();
        self.streams.lose();
    }
}

/// What arguments hold once `len` bytes of them have come: by doubling, room for some of those to come, but never for more.
fn capacity_for(len: usize, held: usize, to_come: usize) -> usize {
    if len <= held { held } else { len.max(2 * held).min(len + to_come) }
}

fn busy(domain: i32, text: &str) -> RemoteError {
    RemoteError::new(codes::RESOURCE_BUSY, domain, text)
}
