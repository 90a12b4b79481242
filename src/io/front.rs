//! A link whose legacy packets pass to a daemon behind us, untouched and in order, by a connection of its own.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::path::Path;

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::backlog::Backlog;
use super::socket::Socket;
use crate::wire::{Decoder, HEADER_LEN, PACKET_MAX, Piece};

/// Bytes that may wait for the daemon, before the link is read no further.
const MAX_UP: usize = 1 << 20;

/// Bytes of the daemon's that may wait for the link, beyond the packet that is arriving.
const MAX_DOWN: usize = 256 * 1024;

pub(super) struct Front {
    daemon: Socket,
    pub(super) token: Token,
    can_read: bool,
    can_write: bool,
    up: Backlog,
    /// The client has ended; to be told to the daemon behind what waits for it.
    finish_due: bool,
    /// Cuts what the daemon says into packets.
    decoder: Decoder,
    /// Where others share the link: what the daemon said, up to a packet that has not come whole yet.
    down: Backlog,
    /// The lengths of the whole packets in it, the first without what is out already.
    whole: VecDeque<usize>,
    /// Bytes of the packet that has not come whole.
    partial: usize,
    /// A packet is out by half.
    begun: bool,
    ended: bool,
}

impl Front {
    pub(super) fn connect(path: &Path, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut daemon = Socket::dial_unix(path)?;
        daemon.register(registry, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            daemon,
            token,
            can_read: true,
            can_write: true,
            up: Backlog::default(),
            finish_due: false,
            decoder: Decoder::new(PACKET_MAX),
            down: Backlog::default(),
            whole: VecDeque::new(),
            partial: 0,
            begun: false,
            ended: false,
        })
    }

    /// The daemon's socket is ready.
    pub(super) fn on_event(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        self.can_read |= readable;
        self.can_write |= writable;
        self.flush()
    }

    /// Passes on what the client said.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.up.is_empty() && self.can_write && !bytes.is_empty() {
            let taken = self.write_some(&[IoSlice::new(bytes)])?;
            bytes = &bytes[taken..];
        }
        self.up.push(bytes);
        Ok(())
    }

    /// The client says no more.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.finish_due = true;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.up.is_empty() && self.can_write {
            let mut slices = [IoSlice::new(&[]); 16];
            let set = self.up.front(&mut slices);
            let taken = write_some(&mut self.daemon, &mut self.can_write, &slices[..set])?;
            self.up.advance(taken);
        }
        if self.up.is_empty() && std::mem::take(&mut self.finish_due) {
            self.daemon.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn write_some(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        write_some(&mut self.daemon, &mut self.can_write, slices)
    }

    /// Whether the daemon takes so little that the link should not be read.
    pub(super) fn is_full(&self) -> bool {
        self.up.len() > MAX_UP
    }

    /// Whether the daemon has ended and all that it said is out.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.down.is_empty()
    }

    /// Whether all is out that came.
    pub(super) fn is_empty(&self) -> bool {
        self.down.is_empty()
    }

    /// Whether another's packet may follow what was given last.
    pub(super) fn is_between_packets(&self) -> bool {
        !self.begun
    }

    /// Puts what the daemon says into the front of `out`; gives how many bytes. Where nobody else is on the link, it is read to
    /// where it will be sent from. Where the link is `shared`, only packets that came whole are given, so that a daemon
    /// that stops in the middle of one holds nobody up; none is begun beyond `budget` bytes.
    pub(super) fn poll(
        &mut self,
        out: &mut [u8],
        scratch: &mut [u8],
        shared: bool,
        budget: usize,
    ) -> io::Result<usize> {
        // What was begun without others is ended without them.
        if !shared || self.begun && self.whole.is_empty() {
            return self.read_through(out);
        }
        while self.can_read && self.down.len() < MAX_DOWN {
            let len = self.read(scratch)?;
            self.keep(&scratch[..len])?;
        }
        Ok(self.take_whole(out, budget))
    }

    fn read_through(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.read(out)?;
        let mut input = &out[..len];
        while self.decoder.decode(&mut input).map_err(io::Error::other)?.is_some() {}
        self.begun = !self.decoder.at_boundary();
        Ok(len)
    }

    fn keep(&mut self, mut input: &[u8]) -> io::Result<()> {
        self.down.push(input);
        loop {
            let before = input.len();
            let piece = self.decoder.decode(&mut input).map_err(io::Error::other)?;
            self.partial += before - input.len();
            let ends = match piece {
                None => return Ok(()),
                Some(Piece::Header { payload_len, .. }) => payload_len == 0,
                Some(Piece::Payload { remaining, .. }) => remaining == 0,
            };
            if ends {
                self.whole.push_back(std::mem::take(&mut self.partial));
            }
        }
    }

    fn take_whole(&mut self, out: &mut [u8], budget: usize) -> usize {
        let mut len = 0;
        while let Some(left) = self.whole.front_mut() {
            if out.len() == len || !self.begun && len >= budget {
                break;
            }
            let taken = self.down.take(&mut out[len..], *left);
            len += taken;
            *left -= taken;
            self.begun = *left > 0;
            if !self.begun {
                self.whole.pop_front();
            }
        }
        len
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.can_read && !self.ended {
            match self.daemon.read(buf) {
                Ok(0) => {
                    self.ended = true;
                    self.can_read = false;
                }
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_read = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    /// It failed: nothing more is taken or given.
    pub(super) fn break_off(&mut self) {
        self.ended = true;
        (self.can_read, self.can_write) = (false, false);
        (self.up, self.down) = (Backlog::default(), Backlog::default());
        self.whole.clear();
    }

    pub(super) fn close(mut self, registry: &Registry) {
        let _ = self.daemon.deregister(registry);
    }
}

fn write_some(daemon: &mut Socket, can_write: &mut bool, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match daemon.write_vectored(slices) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            *can_write = false;
            Ok(0)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}

/// What of one read passes to the daemon: as much at once as stands together.
#[derive(Default)]
pub(super) struct Passing {
    /// Where it begins and ends in what was read.
    range: std::ops::Range<usize>,
}

impl Passing {
    /// A piece of a legacy packet, of which `came` bytes end at `end` in what was read. Gives a header whose beginning came
    /// before, to be passed on first.
    pub(super) fn add(&mut self, piece: &Piece<'_>, came: usize, end: usize) -> Option<[u8; HEADER_LEN]> {
        if let Piece::Header { header, payload_len } = piece
            && came < HEADER_LEN
        {
            self.range = end..end;
            return Some(header.encode(*payload_len));
        }
        if self.range.is_empty() {
            self.range.start = end - came;
        }
        self.range.end = end;
        None
    }

    /// What has been gathered; then it begins anew.
    pub(super) fn take<'a>(&mut self, read: &'a [u8]) -> &'a [u8] {
        &read[std::mem::take(&mut self.range)]
    }
}
