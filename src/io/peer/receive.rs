//! What the link brings: to the session, to libvirt's RPC, or to the daemon behind us.

use std::io::{self, IoSlice};

use super::{Context, PATIENCE, Peer, Phase, TURN};
use crate::io::counters::add;
use crate::io::front::{Front, Passing};
use crate::io::link::Received;
use crate::io::places::Place as Seat;
use crate::io::report::Report;
use crate::io::tls::is_cut;
use crate::io::tokens::Place;
use crate::proto::{Data, SessionError, StreamId};
use crate::rpc::LinkError;
use crate::wire::{Header, PacketType, Piece, Status};

/// Data of one stream that came back to back: its handler takes it in one call.
struct Gathered<'a> {
    id: Option<StreamId>,
    slices: [IoSlice<'a>; 32],
    len: usize,
}

impl<'a> Gathered<'a> {
    fn new() -> Self {
        Self { id: None, slices: [IoSlice::new(&[]); 32], len: 0 }
    }

    fn is_full(&self) -> bool {
        self.len == self.slices.len()
    }

    fn push(&mut self, data: &Data<'a>) {
        self.id = Some(data.id);
        if let Some(slice) = self.slices.get_mut(self.len) {
            *slice = IoSlice::new(data.bytes);
            self.len += 1;
        }
    }

    /// Whether what this packet brings may wait for the next: it is data of the same stream.
    fn goes_on(&self, header: &Header) -> bool {
        let is_data =
            (header.packet_type(), header.packet_status()) == (Some(PacketType::Stream), Some(Status::Continue));
        is_data && self.id.is_some_and(|id| id.number() == header.serial)
    }
}

impl Peer {
    /// Whether the link is to be read. It always is, but where legacy packets have no place to go.
    pub(super) fn is_reading(&self) -> bool {
        self.legacy.full_since().is_none() && !self.front.as_ref().is_some_and(Front::is_full)
    }

    /// True when it stopped at its budget.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let mut budget = TURN;
        while budget > 0 && self.is_reading() {
            // Taken out for the call: what is read is borrowed from it while the context is lent on.
            let scratch = std::mem::take(&mut cx.scratch);
            let received = self.link.read(scratch);
            if self.handshake.is_some() && self.link.is_open() {
                self.on_secured(cx);
            }
            let more = match received {
                Ok(Received::Bytes { len, cost }) => {
                    budget = budget.saturating_sub(cost);
                    self.received += len as u64;
                    add(&cx.handle.shared.tally.received_bytes, len as u64);
                    if len > 0 {
                        self.on_bytes(cx, &scratch[..len]);
                    }
                    true
                }
                Ok(Received::Nothing) => false,
                Ok(Received::End) => {
                    cx.scratch = scratch;
                    let cut = if self.decoder.at_boundary() { "" } else { " in the middle of a packet" };
                    self.on_peer_end(cx, &format!("the peer closed the connection{cut}"));
                    return false;
                }
                // libvirt's own programs end TLS by ending the connection. What their users lack then, their packets tell.
                Err(error) if is_cut(&error) && self.is_libvirts() => {
                    cx.scratch = scratch;
                    self.on_peer_end(cx, &error.to_string());
                    return false;
                }
                Err(error) => {
                    self.on_link_end(&error.to_string());
                    false
                }
            };
            cx.scratch = scratch;
            if !more {
                return false;
            }
        }
        self.link.is_readable()
    }

    /// A client of libvirt's RPC, between two packets, which has not said HELLO.
    fn is_libvirts(&self) -> bool {
        !self.stood && self.decoder.at_boundary() && (self.legacy.is_called || self.front.is_some())
    }

    /// The peer sends no more; what its last packets are owed may still reach it.
    pub(super) fn on_peer_end(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.peer_ended = true;
        if let Some(front) = self.front.as_mut().filter(|_| !self.stood) {
            // The daemon's last words still go to the client; the link ends with the daemon's connection.
            let finished = front.finish();
            self.on_daemon(finished);
            return;
        }
        self.transmit(cx);
        if !self.decoder.at_boundary() && !self.session.is_closed() {
            self.session.handle_link_lost(reason);
        }
        self.end_after_peer();
    }

    /// Where the peer sends no more, ends what that leaves; but not before a client of libvirt's that knows no BiStream has the answers to
    /// its calls.
    pub(super) fn end_after_peer(&mut self) {
        let waits = !self.stood && self.legacy.owes_answers();
        if !self.peer_ended || waits || self.front.is_some() && !self.stood {
            return;
        }
        // What a session that is closed still owes is sent all the same.
        if !self.session.is_closed() {
            self.session.handle_link_ended("the peer closed the connection");
        }
        if self.is_flushed() {
            self.phase = Phase::Gone;
        }
    }

    pub(super) fn on_bytes(&mut self, cx: &mut Context<'_>, mut input: &[u8]) {
        self.session.handle_heard(cx.now);
        let (read, mut passing, mut gathered) = (input, Passing::default(), Gathered::new());
        while !self.session.is_closed() {
            if let Some((byte, rest)) = input.split_first()
                && self.following.is_next()
            {
                input = rest;
                self.pass_on(cx, passing.take(read));
                self.pass_descriptor(cx, *byte);
                continue;
            }
            let before = input.len();
            match self.decoder.decode(&mut input) {
                Ok(Some(piece)) if self.is_passed_on(cx, &piece) => {
                    let begun_before = passing.add(&piece, before - input.len(), read.len() - input.len());
                    begun_before.into_iter().for_each(|header| self.pass_on(cx, &header));
                    if let Err(error) = self.following.see(&piece) {
                        self.end_front(&format!("the client sent {error}"));
                    }
                }
                Ok(Some(piece)) => {
                    self.pass_on(cx, passing.take(read));
                    if matches!(&piece, Piece::Header { header, .. } if !gathered.goes_on(header)) {
                        self.deliver(cx, &mut gathered);
                    }
                    // The session keeps its error and gives it as an event.
                    if self.on_piece(cx, piece, &mut gathered).is_err() {
                        self.deliver(cx, &mut gathered);
                    }
                    self.on_events(cx);
                }
                Ok(None) => break,
                Err(error) => {
                    self.session.handle_framing_error(error);
                }
            }
        }
        self.deliver(cx, &mut gathered);
        self.on_events(cx);
        self.pass_on(cx, passing.take(read));
        self.link.forget_descriptors();
    }

    fn deliver(&mut self, cx: &mut Context<'_>, gathered: &mut Gathered<'_>) {
        let len = std::mem::take(&mut gathered.len);
        if let Some(id) = gathered.id.take()
            && let Some(channel) = self.channels.get_mut(&id)
        {
            let delivered = channel.deliver(&mut gathered.slices[..len]);
            self.on_delivered(cx, id, delivered);
        }
    }

    fn pass_descriptor(&mut self, cx: &mut Context<'_>, byte: u8) {
        let Some(descriptor) = self.link.take_descriptor() else {
            return self.on_link_end("the client announced a descriptor and sent none");
        };
        let passed = self.front(cx).and_then(|front| front.write_descriptor(byte, descriptor));
        self.on_daemon(passed);
    }

    fn is_passed_on(&mut self, cx: &mut Context<'_>, piece: &Piece<'_>) -> bool {
        if let Piece::Header { header, .. } = piece {
            self.ours = self.session.owns(header);
        }
        !self.ours && self.options.daemon.is_some() && self.may_reach_daemon(cx)
    }

    /// Asked once, before anything goes there. Who may not has all its calls answered with the reason.
    fn may_reach_daemon(&mut self, cx: &mut Context<'_>) -> bool {
        if !std::mem::replace(&mut self.daemon_judged, true) {
            let judged = self.options.access.as_ref().map(|access| access.admit_to_daemon(&self.caller(&[])));
            // It need not know HELLO, and may be silent for as long as the daemon lets it.
            let mut timeout = None;
            match judged {
                Some(Ok(permit)) => self.permits[1] = permit,
                Some(Err(error)) => {
                    (cx.report)(Report::DaemonRefused { session: self.key, reason: error.to_string() });
                    self.legacy.offer.denied = Some(error);
                    timeout = Some(self.options.config.hello_timeout.unwrap_or(PATIENCE));
                }
                None => {}
            }
            self.session.set_hello_timeout(cx.now, timeout);
        }
        self.legacy.offer.denied.is_none()
    }

    /// Bytes of the client's for the daemon behind us.
    pub(super) fn pass_on(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        if bytes.is_empty() || self.phase == Phase::Gone {
            return;
        }
        let passed = self.front(cx).and_then(|front| front.write(bytes));
        self.on_daemon(passed);
    }

    /// What came of dealing with the daemon behind us. Without it the client's link has no purpose; a BiStream peer is told.
    pub(super) fn on_daemon(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        self.end_front(&format!("the daemon behind this address: {error}"));
    }

    /// Nothing more passes between the client and the daemon behind us.
    fn end_front(&mut self, reason: &str) {
        if let Some(front) = &mut self.front {
            front.break_off();
        }
        if self.stood {
            self.session.shutdown(reason);
        } else {
            self.on_link_end(reason);
        }
    }

    pub(super) fn front(&mut self, cx: &mut Context<'_>) -> io::Result<&mut Front> {
        let front = match (self.front.take(), &self.options.daemon) {
            (Some(front), _) => front,
            (None, Some(path)) => {
                self.seat.iter_mut().for_each(Seat::stand);
                let token = cx.tokens.add(Place::Daemon(self.key));
                Front::connect(path, cx.registry, token).inspect_err(|_| cx.tokens.remove(token))?
            }
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(self.front.insert(front))
    }

    fn on_piece<'a>(
        &mut self,
        cx: &mut Context<'_>,
        piece: Piece<'a>,
        gathered: &mut Gathered<'a>,
    ) -> Result<(), SessionError> {
        match piece {
            Piece::Header { header, payload_len } => {
                self.ours = self.session.owns(&header);
                if self.ours {
                    self.session.handle_header(cx.now, &header, payload_len)?;
                } else {
                    let taken = self.legacy.on_header(cx, &self.link, &header, payload_len);
                    self.on_legacy_taken(taken);
                }
            }
            Piece::Payload { bytes, remaining } if self.ours => {
                if let Some(data) = self.session.handle_payload(cx.now, bytes, remaining)? {
                    if gathered.is_full() {
                        self.deliver(cx, gathered);
                    }
                    gathered.push(&data);
                }
            }
            Piece::Payload { bytes, remaining } => {
                let taken = self.legacy.on_payload(cx, &self.link, bytes, remaining);
                self.on_legacy_taken(taken);
            }
        }
        Ok(())
    }

    /// What libvirt, too, closes a link for.
    pub(super) fn on_legacy_taken(&mut self, taken: Result<(), LinkError>) {
        if let Err(error) = taken {
            self.on_link_end(&error.to_string());
        }
    }
}
