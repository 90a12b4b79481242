//! Buffers for what is on its way out of a link.

/// Room of a buffer: the default max_data packet, a control packet, and small packets of other streams behind them.
pub(super) const BUFFER_LEN: usize = 320 * 1024;

/// Spare buffers kept; links that hold one at the same time are rarely more.
const SPARE: usize = 8;

/// Bytes to be written, filled at the back and taken from the front.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// The first `len` spare bytes were filled.
    pub(super) fn extend(&mut self, len: usize) {
        self.end += len;
    }

    /// The first `len` filled bytes were written.
    pub(super) fn advance(&mut self, len: usize) {
        self.start += len;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    spare: Vec<Buffer>,
}

impl Pool {
    pub(super) fn take(&mut self) -> Buffer {
        self.spare.pop().unwrap_or_else(|| Buffer { bytes: vec![0; BUFFER_LEN].into(), start: 0, end: 0 })
    }

    pub(super) fn give(&mut self, buffer: Buffer) {
        if self.spare.len() < SPARE {
            self.spare.push(Buffer { start: 0, end: 0, ..buffer });
        }
    }
}
