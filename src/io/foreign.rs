//! What a link that carries nothing but BiStream answers to legacy calls: what libvirt answers to calls it does not know.

use std::collections::VecDeque;
use std::time::Instant;

use crate::wire::{Header, PacketType, ProgramId, RemoteError, Status, codes, domains, encode_packet};

/// Answers that may wait, before the link is read no further until some were taken.
const MAX_OWED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// The calls to be answered: a header each, and those of one read beyond the maximum.
    owed: VecDeque<Header>,
    full_since: Option<Instant>,
}

impl Foreign {
    /// A packet that is none of the session's has begun.
    pub(super) fn on_header(&mut self, now: Instant, header: &Header) {
        let is_call = matches!(header.packet_type(), Some(PacketType::Call | PacketType::CallWithFds));
        if is_call && header.packet_status() == Some(Status::Ok) {
            self.owed.push_back(*header);
        }
        if self.owed.len() >= MAX_OWED {
            self.full_since.get_or_insert(now);
        }
    }

    /// Since when as many answers wait as may, and none was taken.
    pub(super) fn full_since(&self) -> Option<Instant> {
        self.full_since
    }

    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Puts answers into the front of `out`; gives how many bytes.
    pub(super) fn poll(&mut self, now: Instant, ours: &ProgramId, out: &mut [u8]) -> usize {
        let (mut len, waiting) = (0, self.owed.len());
        while let Some(call) = self.owed.front() {
            let reply = Header { kind: PacketType::Reply.as_wire(), status: Status::Error.as_wire(), ..*call };
            match encode_packet(&reply, &unknown(ours, call), &mut out[len..]) {
                Some(written) => len += written,
                None => break,
            }
            self.owed.pop_front();
        }
        if self.owed.len() < waiting {
            self.full_since = (self.owed.len() >= MAX_OWED).then_some(now);
        }
        len
    }
}

fn unknown(ours: &ProgramId, call: &Header) -> RemoteError {
    // libvirt prints all three as signed.
    let text = if (call.program, call.version) == (ours.program, ours.version) {
        format!("unknown procedure: {}", call.procedure.cast_signed())
    } else {
        format!("Cannot find program {} version {}", call.program.cast_signed(), call.version.cast_signed())
    };
    RemoteError::new(codes::RPC, domains::RPC, text).with_ints(-1, -1)
}
