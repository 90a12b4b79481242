//! What goes onto the link, and in which order.

use std::io;

use super::{Context, Peer, Phase, TURN};
use crate::io::counters::add;
use crate::io::front::Front;
use crate::io::host_limit::Leave;
use crate::io::pool::Buffer;
use crate::proto::{CONTROL_MAX, Grant, StreamMut};
use crate::wire::HEADER_LEN;

/// Room worth reading a source into, beside the header.
const LEAST_ROOM: usize = 4096;

/// Bytes of legacy packets before data of streams has its turn.
const LEGACY_TURN: usize = 64 * 1024;

impl Peer {
    /// Whether all is out that was owed.
    pub(super) fn is_flushed(&self) -> bool {
        let daemons = self.front.as_ref().is_none_or(Front::is_empty);
        let legacy = if self.failed { self.is_between_packets() } else { daemons && self.legacy.is_empty() };
        legacy && self.session.is_finished() && !self.link.is_writing()
    }

    /// True when it stopped at its budget.
    pub(super) fn transmit(&mut self, cx: &mut Context<'_>) -> bool {
        if matches!(self.phase, Phase::Lingering(_) | Phase::Gone) {
            return false;
        }
        let sent = self.write(cx);
        // A client of libvirt's RPC alone may stop reading for as long as libvirt lets it.
        let waits = self.stood && !self.session.is_closed() && self.link.is_writing();
        self.unread_since = if waits { self.unread_since.or(Some(cx.now)) } else { None };
        // Without a session the client alone waits, as it would with the daemon itself.
        let full = self.front.as_ref().filter(|front| self.stood && front.is_full()).map(Front::takes);
        self.daemon_full_since = full.map(|takes| match self.daemon_full_since {
            Some((since, before)) if before == takes => (since, takes),
            _ => (cx.now, takes),
        });
        sent
    }

    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        let mut budget = TURN;
        while self.link.can_write() {
            let buffer = if self.link.is_writing() {
                None
            } else {
                if budget == 0 {
                    return true;
                }
                let mut buffer = cx.pool.take();
                self.fill(cx, &mut buffer);
                if buffer.filled().is_empty() && !self.link.is_writing() {
                    cx.pool.give(buffer);
                    return false;
                }
                Some(buffer)
            };
            match self.link.write(buffer, cx.pool) {
                Ok(written) => {
                    budget = budget.saturating_sub(written.len);
                    self.sent += written.len as u64;
                    add(&cx.handle.shared.tally.sent_bytes, written.len as u64);
                    if written.has_moved {
                        self.unread_since = None;
                        self.legacy.on_progress(cx.now);
                    }
                }
                Err(error) => {
                    self.on_link_end(&error.to_string());
                    return false;
                }
            }
        }
        false
    }

    /// Encodes what is owed, then what streams have to send, as far as the buffer reaches.
    pub(super) fn fill(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) {
        loop {
            let before = buffer.filled().len();
            if self.is_between_packets() {
                let len = self.session.poll_control(cx.now, buffer.spare());
                buffer.extend(len);
            }
            let budget = if self.failed { 0 } else { LEGACY_TURN };
            let polled = match &mut self.front {
                Some(front) => front.poll(buffer.spare(), cx.scratch, self.stood, budget),
                None => Ok(self.legacy.poll_packets(cx.now, buffer.spare(), budget)),
            };
            match polled {
                Ok(len) => buffer.extend(len),
                Err(error) => return self.on_daemon(Err(error)),
            }
            if let Some((byte, descriptor)) = self.front.as_mut().and_then(Front::take_descriptor) {
                return self.link.send_descriptor(byte, descriptor);
            }
            let is_full = buffer.spare().len() < CONTROL_MAX.max(HEADER_LEN + LEAST_ROOM);
            if is_full || !self.is_between_packets() {
                return;
            }
            let sends = !self.session.is_closed() && self.fill_next(cx, buffer);
            if !sends && buffer.filled().len() == before {
                return;
            }
        }
    }

    /// Whether BiStream's packets may follow what is out.
    pub(super) fn is_between_packets(&self) -> bool {
        self.legacy.is_between_packets() && self.front.as_ref().is_none_or(Front::is_between_packets)
    }

    /// One packet of data, of BiStream and legacy streams by turns; false when nobody has any.
    pub(super) fn fill_next(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> bool {
        let room = buffer.spare().len();
        let limit = &cx.handle.shared.limit;
        if limit.is_on() && self.session.poll_grant().is_none() && !self.legacy.has_data() {
            return false;
        }
        let bytes = match limit.ask(self.key, cx.now) {
            Leave::Free => return self.fill_from(cx, buffer, room),
            Leave::Wait(until) => {
                self.limited_until = until;
                return false;
            }
            Leave::Bytes(bytes) => bytes,
        };
        // Taken before the source is read, by a handler that may change the limit.
        let before = buffer.filled().len();
        let filled = self.fill_from(cx, buffer, room.min(HEADER_LEN.saturating_add(bytes as usize)));
        let sent = (buffer.filled().len() - before).saturating_sub(HEADER_LEN) as u64;
        cx.handle.shared.limit.give_back(bytes.saturating_sub(sent));
        filled
    }

    fn fill_from(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer, room: usize) -> bool {
        let grant = if self.legacy_next { None } else { self.session.poll_grant() };
        if grant.is_none()
            && let Some(len) = self.legacy.poll_data(cx, &self.link, &mut buffer.spare()[..room])
        {
            buffer.extend(len);
            self.legacy_next = false;
            return true;
        }
        let Some(grant) = grant.or_else(|| self.session.poll_grant()) else { return false };
        self.fill_data(cx, grant, buffer, room);
        self.legacy_next = true;
        true
    }

    fn fill_data(&mut self, cx: &mut Context<'_>, grant: Grant, buffer: &mut Buffer, room: usize) {
        let Some(channel) = self.channels.get_mut(&grant.id) else {
            self.session.stream(grant.id).into_iter().for_each(StreamMut::blocked);
            return;
        };
        channel.stalled.end(cx.now);
        // The payload is read to where it will be sent from, its header goes in front: one write, no copy.
        let room = &mut buffer.spare()[..room];
        let max = grant.max.min(room.len() - HEADER_LEN);
        let read = channel.handler.read(&mut room[HEADER_LEN..HEADER_LEN + max]);
        let Some(stream) = self.session.stream(grant.id) else { return };
        match read {
            Ok(0) => {
                let _ = stream.finish();
            }
            Ok(len) if len > max => {
                self.fail(cx, grant.id, &io::Error::other("its handler claims to have read more than there was room"));
            }
            Ok(len) => match stream.send(len) {
                Ok(header) => {
                    if self.session.stream(grant.id).is_some_and(|stream| stream.credit() == 0) {
                        channel.stalled.begin(cx.now);
                    }
                    room[..HEADER_LEN].copy_from_slice(&header);
                    buffer.extend(HEADER_LEN + len);
                }
                Err(misuse) => self.fail(cx, grant.id, &io::Error::other(misuse)),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.blocked(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.fail(cx, grant.id, &error),
        }
    }
}
