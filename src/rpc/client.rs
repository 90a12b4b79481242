//! The client's end of libvirt's RPC on one link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::error::{CallError, LinkError};
use super::outbox::Outbox;
use super::procedure::{KEEPALIVE, PING, ProcedureId};
use super::streams::{
    Arriving, LegacyId, LegacyStream, Role, StreamEvent, StreamOptions, StreamPiece, Streams, remote,
};
use crate::proto::LONGEST;
use crate::wire::{Header, PACKET_MAX, PACKET_MIN, PacketType, RemoteError, Status, codes, domains};

/// The name of a call of ours on its link: the serial of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u32);

/// What happened on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// A call has its answer: the body of the reply. The stream that it was made with stands where it is a good one, and is no
    /// more where it is not.
    Answered {
        /// Which.
        call: CallId,
        /// What came of it.
        answer: Result<Vec<u8>, CallError>,
    },
    /// The daemon tells of an event, or whatever else needs no answer.
    Message {
        /// Of which procedure.
        procedure: ProcedureId,
        /// Its body.
        body: Vec<u8>,
    },
    /// Something of a legacy stream.
    Stream(StreamEvent),
}

#[derive(Debug)]
struct Waiting {
    procedure: ProcedureId,
    deadline: Instant,
    stream: Option<LegacyId>,
}

#[derive(Debug)]
enum Incoming {
    Nothing,
    Body(Header, Vec<u8>),
    Stream(Arriving),
}

/// The client's end of libvirt's RPC on one link: any number of calls at once, events, legacy streams.
#[derive(Debug)]
pub struct Client {
    incoming: Incoming,
    calls: BTreeMap<u32, Waiting>,
    deadlines: BTreeSet<(Instant, u32)>,
    serial: u32,
    streams: Streams,
    outbox: Outbox,
    events: VecDeque<ClientEvent>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// On a new link.
    pub fn new() -> Self {
        Self {
            incoming: Incoming::Nothing,
            calls: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            serial: 0,
            streams: Streams::new(Role::Client),
            outbox: Outbox::default(),
            events: VecDeque::new(),
        }
    }

    /// Calls. `ClientEvent::Answered` follows, at the latest after `timeout`.
    ///
    /// # Errors
    /// [`CallError::TooLong`]; nothing is sent then.
    pub fn call(
        &mut self,
        now: Instant,
        procedure: ProcedureId,
        arguments: &[u8],
        timeout: Duration,
    ) -> Result<CallId, CallError> {
        self.begin(now, procedure, arguments, timeout).map(|(call, _)| call)
    }

    /// Calls for a legacy stream. Its name is known from the call on, since a daemon may send data before the reply, and libvirtd
    /// does at times; our own goes behind the reply alone.
    ///
    /// # Errors
    /// [`CallError::TooLong`]; nothing is sent then.
    pub fn call_with_stream(
        &mut self,
        now: Instant,
        procedure: ProcedureId,
        arguments: &[u8],
        timeout: Duration,
        options: StreamOptions,
    ) -> Result<(CallId, LegacyId), CallError> {
        let (call, header) = self.begin(now, procedure, arguments, timeout)?;
        let stream = self.streams.open(&header, options, false, None);
        self.calls.entry(call.0).and_modify(|waiting| waiting.stream = Some(stream));
        Ok((call, stream))
    }

    fn begin(
        &mut self,
        now: Instant,
        procedure: ProcedureId,
        arguments: &[u8],
        timeout: Duration,
    ) -> Result<(CallId, Header), CallError> {
        if arguments.len() > (PACKET_MAX - PACKET_MIN) as usize {
            return Err(CallError::TooLong);
        }
        let serial = self.next_serial();
        let deadline = now + timeout.min(LONGEST);
        let header = procedure.header(PacketType::Call, serial, Status::Ok);
        self.outbox.push(&header, arguments);
        self.calls.insert(serial, Waiting { procedure, deadline, stream: None });
        self.deadlines.insert((deadline, serial));
        Ok((CallId(serial), header))
    }

    /// One that no call and no stream has. It comes round after 2³² calls.
    fn next_serial(&mut self) -> u32 {
        loop {
            self.serial = self.serial.wrapping_add(1);
            if !self.calls.contains_key(&self.serial) && !self.streams.has_serial(self.serial) {
                return self.serial;
            }
        }
    }

    /// The header of a packet that is not BiStream's, with `payload_len` bytes to follow by `handle_payload`.
    ///
    /// # Errors
    /// [`LinkError`]: close the link, as libvirt's own client does.
    pub fn handle_header(&mut self, header: &Header, payload_len: u32) -> Result<(), LinkError> {
        self.incoming = Incoming::Nothing;
        match header.packet_type() {
            Some(PacketType::Message) if header.program == KEEPALIVE => {
                if header.procedure == PING {
                    self.outbox.push_pong(header);
                }
            }
            Some(PacketType::Reply | PacketType::Message) => {
                self.incoming = Incoming::Body(*header, Vec::new());
                if payload_len == 0 {
                    self.body_is_whole();
                }
            }
            Some(PacketType::Stream | PacketType::StreamHole) => {
                let arriving = self.streams.on_header(header, payload_len, &mut self.outbox)?;
                self.incoming = Incoming::Stream(arriving);
            }
            Some(PacketType::Call | PacketType::CallWithFds) => return Err(LinkError::CalledClient),
            Some(PacketType::ReplyWithFds) => return Err(LinkError::Descriptors),
            None => return Err(LinkError::PacketType(header.kind)),
        }
        Ok(())
    }

    /// The next bytes of the payload, of which `remaining` are still to come after these. What it gives is to be
    /// delivered, and counted by the stream's `consumed` once it is.
    ///
    /// # Errors
    /// [`LinkError`]: close the link, as libvirt's own client does.
    pub fn handle_payload<'a>(
        &mut self,
        bytes: &'a [u8],
        remaining: u32,
    ) -> Result<Option<(LegacyId, StreamPiece<'a>)>, LinkError> {
        Ok(match &mut self.incoming {
            Incoming::Nothing => None,
            Incoming::Body(_, body) => {
                body.extend_from_slice(bytes);
                if remaining == 0 {
                    self.body_is_whole();
                }
                None
            }
            Incoming::Stream(arriving) => self.streams.on_payload(arriving, bytes, remaining, &mut self.outbox),
        })
    }

    fn body_is_whole(&mut self) {
        let Incoming::Body(header, body) = std::mem::replace(&mut self.incoming, Incoming::Nothing) else { return };
        let procedure = ProcedureId::of(&header);
        if header.packet_type() == Some(PacketType::Message) {
            self.events.push_back(ClientEvent::Message { procedure, body });
            return;
        }
        self.streams.on_answer(&header, &mut self.outbox);
        // One that came too late, or answers nothing of ours.
        if self.calls.get(&header.serial).is_none_or(|waiting| waiting.procedure != procedure) {
            return;
        }
        let Some(waiting) = self.calls.remove(&header.serial) else { return };
        self.deadlines.remove(&(waiting.deadline, header.serial));
        let answer = match header.packet_status() {
            Some(Status::Ok) => Ok(body),
            Some(Status::Error) => Err(CallError::Remote(Box::new(remote(&body)))),
            _ => {
                let text = format!("a reply of status {}", header.status);
                Err(CallError::Remote(Box::new(RemoteError::new(codes::RPC, domains::RPC, text))))
            }
        };
        self.events.push_back(ClientEvent::Answered { call: CallId(header.serial), answer });
    }

    /// What happened since; until `None`, after every `handle_…`.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front().or_else(|| self.streams.poll_event().map(ClientEvent::Stream))
    }

    /// When `handle_timeout` wants to be called, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Time has passed. Hand over what the link received first.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((deadline, serial)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            if let Some(stream) = self.calls.remove(&serial).and_then(|waiting| waiting.stream) {
                self.streams.give_up(stream);
            }
            let answer = Err(CallError::Timeout);
            self.events.push_back(ClientEvent::Answered { call: CallId(serial), answer });
        }
    }

    /// Whether no call waits for its answer, no stream is under way and nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.streams.is_idle() && self.outbox.len() == 0
    }

    /// The link is gone: calls and streams have failed.
    pub fn handle_link_lost(&mut self) {
        self.deadlines.clear();
        for (serial, _) in std::mem::take(&mut self.calls) {
            let answer = Err(CallError::LinkLost);
            self.events.push_back(ClientEvent::Answered { call: CallId(serial), answer });
        }
        self.outbox = Outbox::default();
        self.streams.lose();
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

    /// The stream whose turn it is to send at most [`STREAM_DATA_MAX`](super::STREAM_DATA_MAX) bytes. Answer it by the
    /// stream's `send`, `send_hole`, `blocked`, `finish` or `fail`: until then it stays the same.
    pub fn poll_grant(&mut self) -> Option<LegacyId> {
        self.streams.poll_grant(&self.outbox)
    }

    /// The stream, to act upon; `None` when it is over or never was.
    pub fn stream(&mut self, id: LegacyId) -> Option<LegacyStream<'_>> {
        self.streams.get(id, &mut self.outbox)
    }
}
