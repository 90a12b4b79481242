//! What two peers may say to each other, judged from the packets alone.

use std::collections::{BTreeMap, BTreeSet};

use virbistream::wire::{Credit, Limits};

use super::{End, Packet, split};

/// One end's book: what it said and what it has heard. Says that break docs/protocol.md panic.
#[derive(Debug)]
pub(crate) struct Ledger {
    end: End,
    window: u64,
    window_max: u64,
    stands: bool,
    ours: Option<Limits>,
    peers: Option<Limits>,
    last_id: u32,
    streams: BTreeMap<u32, Entry>,
    pings: BTreeSet<u64>,
    said_close: Option<u32>,
    pub(crate) heard_close: Option<u32>,
    said: Vec<u8>,
    heard: Vec<u8>,
}

/// A stream, from the end whose book it stands in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    mine: bool,
    replied: bool,
    pub(crate) stands: bool,
    pub(crate) sent: u64,
    /// What was heard of how far we may send, and how much of it was delivered.
    pub(crate) limit: u64,
    /// What OPEN said of that, for when the reply is said.
    offered: u64,
    pub(crate) consumed: u64,
    finish_said: bool,
    reset_said: bool,
    stop_said: bool,
    pub(crate) received: u64,
    /// What the peer was told last: consumed and limit.
    pub(crate) told: (u64, u64),
    /// What was left to the peer then.
    pub(crate) window: u64,
    pub(crate) finish_heard: Option<u64>,
    pub(crate) reset_heard: bool,
    pub(crate) stop_heard: bool,
    pub(crate) refused: bool,
}

impl Ledger {
    /// A first window, or what the link was found to need.
    #[track_caller]
    fn assert_window(&self, window: u64) {
        assert!((self.window..=self.window_max).contains(&window), "a window of {window}");
    }

    pub(crate) fn new(end: End, window: u64, window_max: u64) -> Self {
        Self {
            end,
            window,
            window_max,
            stands: false,
            ours: None,
            peers: None,
            last_id: 0,
            streams: BTreeMap::new(),
            pings: BTreeSet::new(),
            said_close: None,
            heard_close: None,
            said: Vec::new(),
            heard: Vec::new(),
        }
    }

    pub(crate) fn entry(&self, id: u32) -> Option<&Entry> {
        self.streams.get(&id)
    }

    /// What the end puts on the link: whole packets.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> Vec<Packet> {
        self.said.extend_from_slice(bytes);
        let packets = split(&mut self.said);
        assert!(self.said.is_empty(), "whole packets only");
        packets.iter().for_each(|packet| self.on_said(packet));
        packets
    }

    /// What comes to the end, in whatever pieces.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        for packet in split(&mut self.heard) {
            self.on_heard(packet);
        }
    }

    fn on_said(&mut self, packet: &Packet) {
        assert!(self.said_close.unwrap_or(0) == 0, "{packet:?} behind a fatal CLOSE");
        let connecting = self.end == End::Connecting;
        match packet {
            Packet::Hello(_, hello) => {
                assert!(connecting && self.ours.is_none(), "{packet:?}");
                self.ours = Some(hello.limits);
                return;
            }
            Packet::HelloReply(_, reply) => {
                assert!(!connecting && self.ours.is_none() && self.peers.is_some(), "{packet:?}");
                self.ours = Some(reply.limits);
                self.stands = true;
                return;
            }
            Packet::HelloRefused(..) => panic!("{packet:?}"),
            _ => assert!(self.stands, "{packet:?} before HELLO stands"),
        }
        match packet {
            Packet::Open(id, open) => {
                assert!(*id > self.last_id && id % 2 == u32::from(connecting), "{packet:?} after {}", self.last_id);
                assert!(self.said_close.is_none(), "{packet:?} behind CLOSE");
                self.last_id = *id;
                self.assert_window(open.window);
                let (told, window) = ((0, open.window), open.window);
                let before = self.streams.insert(*id, Entry { mine: true, told, window, ..Entry::default() });
                assert!(before.is_none());
                let stand =
                    self.streams.iter().filter(|(id, entry)| *id % 2 == u32::from(connecting) && entry.counts());
                assert!(stand.count() <= self.peers.unwrap().max_streams as usize, "{packet:?} above the limit");
            }
            Packet::OpenReply(id, reply) => {
                self.assert_window(reply.window);
                let entry = self.at(*id);
                entry.window = reply.window;
                assert!(!entry.mine && !entry.replied && !entry.reset_said && !entry.reset_heard, "{packet:?}");
                (entry.replied, entry.stands, entry.told) = (true, true, (0, reply.window));
                entry.limit = entry.offered;
            }
            Packet::OpenRefused(id, _) => {
                let entry = self.at(*id);
                assert!(!entry.mine && !entry.replied && !entry.reset_said && !entry.reset_heard, "{packet:?}");
                (entry.replied, entry.refused) = (true, true);
            }
            Packet::Data(id, bytes) => {
                let max = self.peers.unwrap().max_data as usize;
                assert!((1..=max).contains(&bytes.len()), "DATA of {}", bytes.len());
                let entry = self.living(*id, packet);
                assert!(!entry.finish_said, "DATA after finish");
                entry.sent += bytes.len() as u64;
                assert!(entry.sent <= entry.limit, "sent up to {} of {}", entry.sent, entry.limit);
            }
            Packet::Finish(id, offset) => {
                let entry = self.living(*id, packet);
                assert!(!entry.finish_said && *offset == entry.sent, "{packet:?}, {entry:?}");
                entry.finish_said = true;
            }
            Packet::Reset(id, _) => {
                let entry = self.at(*id);
                // One that crosses a refusal is of no use and does no harm.
                let asked = entry.mine || (entry.replied && !entry.refused);
                assert!(asked && !entry.reset_said && !entry.reset_heard, "{packet:?}, {entry:?}");
                entry.reset_said = true;
            }
            Packet::Credit(Credit { stream, consumed, limit }) => {
                let (first, most) = (self.window, self.window_max);
                let entry = self.living(*stream, packet);
                let window = entry.window.max(first);
                assert!(!entry.stop_said, "CREDIT after STOP");
                let all = entry.finish_heard == Some(*consumed);
                assert!(
                    *consumed >= entry.told.0 + window / 8 || (all && *consumed > entry.told.0),
                    "{packet:?}: not due"
                );
                // It may have been widened, and is never narrowed.
                entry.window = limit - consumed;
                assert!((window..=most).contains(&entry.window), "{packet:?}: a window of {} to {most}", window);
                entry.told = (*consumed, *limit);
            }
            Packet::Stop(id) => {
                let entry = self.living(*id, packet);
                assert!(!entry.stop_said, "a second STOP");
                entry.stop_said = true;
            }
            Packet::Ping(_) => {}
            Packet::Pong(token) => {
                assert!(self.pings.remove(token), "a PONG to no PING");
                // The answer to the latest is the answer to all before.
                self.pings = self.pings.split_off(token);
            }
            Packet::Close(close) => {
                assert!(self.said_close.is_none() || close.code != 0, "a second CLOSE 0");
                self.said_close = Some(close.code);
            }
            Packet::Hello(..) | Packet::HelloReply(..) | Packet::HelloRefused(..) => unreachable!(),
        }
    }

    fn on_heard(&mut self, packet: Packet) {
        match packet {
            Packet::Hello(_, hello) => self.peers = Some(hello.limits),
            Packet::HelloReply(_, reply) => {
                self.peers = Some(reply.limits);
                self.stands = true;
            }
            Packet::HelloRefused(..) => {}
            Packet::Open(id, open) => {
                self.streams.insert(id, Entry { offered: open.window, ..Entry::default() });
            }
            Packet::OpenReply(id, reply) => {
                let entry = self.at(id);
                (entry.replied, entry.limit) = (true, reply.window);
                entry.stands = !entry.reset_said;
            }
            Packet::OpenRefused(id, _) => {
                let entry = self.at(id);
                (entry.replied, entry.refused) = (true, true);
            }
            Packet::Data(id, bytes) => {
                let entry = self.at(id);
                entry.received += bytes.len() as u64;
                assert!(entry.reset_said || entry.received <= entry.told.1, "received beyond what was told");
            }
            Packet::Finish(id, offset) => self.at(id).finish_heard = Some(offset),
            Packet::Reset(id, _) => self.at(id).reset_heard = true,
            Packet::Credit(Credit { stream, consumed, limit }) => {
                let entry = self.at(stream);
                entry.limit = entry.limit.max(limit);
                entry.consumed = entry.consumed.max(consumed);
                assert!(entry.consumed <= entry.sent);
            }
            Packet::Stop(id) => self.at(id).stop_heard = true,
            Packet::Ping(token) => _ = self.pings.insert(token),
            Packet::Pong(_) => {}
            Packet::Close(close) => self.heard_close = Some(close.code),
        }
    }

    fn at(&mut self, id: u32) -> &mut Entry {
        self.streams.get_mut(&id).unwrap_or_else(|| panic!("{id} was never opened"))
    }

    /// The stream of a packet that only an accepted one may have.
    fn living(&mut self, id: u32, packet: &Packet) -> &mut Entry {
        let entry = self.at(id);
        assert!(entry.stands && !entry.reset_said && !entry.reset_heard, "{packet:?}, {entry:?}");
        entry
    }
}

impl Entry {
    /// Whether it holds one of the acceptor's places, as far as its opener can know.
    fn counts(&self) -> bool {
        let sent = self.finish_said && (self.stop_heard || self.consumed == self.sent);
        let received = self.finish_heard.is_some_and(|last| self.stop_said || self.told.0 == last);
        !(self.refused || self.reset_said || self.reset_heard || (sent && received))
    }
}
