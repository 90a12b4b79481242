//! Packets on their way to the peer, whole and in order.

use std::collections::VecDeque;

use super::procedure::PONG;
use crate::wire::{Body, HEADER_LEN, Header, RemoteError, Status};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    packets: VecDeque<Vec<u8>>,
    /// Bytes of the first packet that are out already.
    begun: usize,
    bytes: usize,
    /// How many packets came in, and went out.
    pushed: u64,
    gone: u64,
    /// One PONG stands for all that are owed: a peer that asks and does not read makes nothing grow.
    pong: Option<[u8; HEADER_LEN]>,
}

impl Outbox {
    pub(super) fn push(&mut self, header: &Header, payload: &[u8]) {
        // A payload over what a length word can say is refused before it comes here.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let packet = [&header.encode(len)[..], payload].concat();
        self.bytes += packet.len();
        self.pushed += 1;
        self.packets.push_back(packet);
    }

    /// The packet with this header, but of status ERROR, and this error.
    pub(super) fn push_error(&mut self, header: &Header, error: &RemoteError) {
        let mut body = Vec::new();
        // Into memory, with texts that are cut where they are too long: it cannot fail.
        let _ = error.encode(&mut body);
        self.push(&Header { status: Status::Error.as_wire(), ..*header }, &body);
    }

    /// The answer to a PING, which has status OK whatever the PING had.
    pub(super) fn push_pong(&mut self, ping: &Header) {
        let pong = Header { procedure: PONG, serial: 0, status: Status::Ok.as_wire(), ..*ping };
        self.pong = Some(pong.encode(0));
    }

    /// A mark behind the last packet.
    pub(super) fn mark(&self) -> u64 {
        self.pushed
    }

    /// Whether all is out that was in front of the mark.
    pub(super) fn has_passed(&self, mark: u64) -> bool {
        self.gone >= mark
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes + self.pong.map_or(0, |pong| pong.len())
    }

    /// Whether what comes next may be another's packet: nothing is out by half.
    pub(super) fn is_between_packets(&self) -> bool {
        self.begun == 0
    }

    /// Moves bytes into the front of `out`; gives how many. A packet is begun while less than `budget` bytes were given.
    pub(super) fn poll(&mut self, out: &mut [u8], budget: usize) -> usize {
        let mut len = 0;
        if self.begun == 0 && budget > 0 {
            len = self.poll_pong(out);
        }
        while let (Some(packet), Some(room)) = (self.packets.front(), out.get_mut(len..)) {
            if self.begun == 0 && (len >= budget || room.is_empty()) {
                break;
            }
            let rest = packet.get(self.begun..).unwrap_or_default();
            let now = rest.len().min(room.len());
            if let (Some(to), Some(from)) = (room.get_mut(..now), rest.get(..now)) {
                to.copy_from_slice(from);
            }
            len += now;
            self.bytes -= now;
            self.begun += now;
            if self.begun < packet.len() {
                break;
            }
            self.begun = 0;
            self.gone += 1;
            self.packets.pop_front();
        }
        len
    }

    /// Whole, or not yet.
    fn poll_pong(&mut self, out: &mut [u8]) -> usize {
        match (self.pong, out.first_chunk_mut()) {
            (Some(pong), Some(room)) => {
                *room = pong;
                self.pong = None;
                pong.len()
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_whole_and_in_order_through_any_room() {
        let header = Header { program: 1, version: 2, procedure: 3, kind: 4, serial: 5, status: 6 };
        for room in [1, 7, 28, 29, 1000] {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for len in [0u32, 1, 100, 33] {
                let payload = vec![7; len as usize];
                outbox.push(&header, &payload);
                expected.extend([&header.encode(len)[..], &payload].concat());
            }
            assert_eq!(outbox.len(), expected.len());
            let (mut got, mut out) = (Vec::<u8>::new(), vec![0; room]);
            loop {
                assert_eq!(outbox.is_between_packets(), [0, 28, 57, 185, 246].contains(&got.len()));
                match outbox.poll(&mut out, 40) {
                    0 => break,
                    len => got.extend(out.iter().take(len)),
                }
            }
            assert_eq!(got, expected);
            assert_eq!(outbox.len(), 0);
        }
    }
}
