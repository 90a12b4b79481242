//! A link whose legacy packets pass to a daemon behind us, untouched and in order, by a connection of its own.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::backlog::Backlog;
use super::socket::{DESCRIPTORS_MAX, Socket};
use crate::wire::{Decoder, HEADER_LEN, PACKET_MAX, PacketType, Piece};

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
    /// Those that wait in it, each where a hole stands, with the byte that it comes with.
    up_descriptors: VecDeque<(u8, OwnedFd)>,
    takes: u64,
    /// The client has ended; to be told to the daemon behind what waits for it.
    finish_due: bool,
    /// Cuts what the daemon says into packets.
    decoder: Decoder,
    /// Where others share the link: what the daemon said, up to a packet that has not come whole yet.
    down: Backlog,
    down_descriptors: VecDeque<(u8, OwnedFd)>,
    /// The whole packets in it, the first without what is out already.
    whole: VecDeque<Extent>,
    /// Of the packet that has not come whole.
    partial: Extent,
    /// A packet is out by half.
    begun: bool,
    ended: bool,
    /// The daemon takes no more. What it says is still passed on: it may be why.
    deaf: bool,
    following: Following,
    /// Those that came with what was read last.
    descriptors: VecDeque<OwnedFd>,
    /// The next to be sent, behind what was given.
    descriptor: Option<(u8, OwnedFd)>,
}

/// What belongs to one packet.
#[derive(Default)]
struct Extent {
    len: usize,
    descriptors: usize,
}

/// How many descriptors follow a packet, each with a byte of its own behind it.
#[derive(Default)]
pub(super) struct Following {
    /// The number's bytes so far, which stand in front of the payload.
    number: Option<(usize, [u8; 4])>,
    due: u32,
}

impl Following {
    /// A piece of a packet. Gives an error for more than libvirt sends.
    pub(super) fn see(&mut self, piece: &Piece<'_>) -> io::Result<()> {
        match piece {
            Piece::Header { header, payload_len } => {
                let with = matches!(header.packet_type(), Some(PacketType::CallWithFds | PacketType::ReplyWithFds));
                self.number = (with && *payload_len > 0).then_some((0, [0; 4]));
            }
            Piece::Payload { bytes, remaining } => {
                let Some((came, number)) = &mut self.number else { return Ok(()) };
                for (to, from) in number[*came..].iter_mut().zip(*bytes) {
                    *to = *from;
                    *came += 1;
                }
                if *remaining == 0 {
                    self.due = if *came == 4 { u32::from_be_bytes(*number) } else { 0 };
                    self.number = None;
                }
            }
        }
        if self.due as usize > DESCRIPTORS_MAX {
            return Err(io::Error::other("a packet with more descriptors than there can be"));
        }
        Ok(())
    }

    /// Whether the next byte comes with a descriptor; then it is counted.
    pub(super) fn is_next(&mut self) -> bool {
        let is_next = self.due > 0;
        self.due -= u32::from(is_next);
        is_next
    }
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
            partial: Extent::default(),
            down_descriptors: VecDeque::new(),
            begun: false,
            ended: false,
            deaf: false,
            following: Following::default(),
            descriptors: VecDeque::new(),
            descriptor: None,
            up_descriptors: VecDeque::new(),
            takes: 0,
        })
    }

    /// The daemon's socket is ready.
    pub(super) fn on_event(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        self.can_read |= readable && !self.ended;
        self.can_write |= writable && !self.deaf;
        self.flush()
    }

    /// Passes on what the client said.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.up.is_empty() && self.can_write && !bytes.is_empty() {
            match self.daemon.write_vectored(&[IoSlice::new(bytes)]) {
                Ok(taken) => bytes = &bytes[taken..],
                Err(error) => self.on_write_error(error)?,
            }
        }
        if !self.deaf {
            self.up.push(bytes);
        }
        Ok(())
    }

    /// Passes on a descriptor of the client's, and the byte that it came with.
    pub(super) fn write_descriptor(&mut self, byte: u8, descriptor: OwnedFd) -> io::Result<()> {
        if !self.deaf {
            self.up.push_hole(0);
            self.up_descriptors.push_back((byte, descriptor));
        }
        self.flush()
    }

    /// The client says no more.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.finish_due = true;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.up.is_empty() && self.can_write {
            if self.up.front_hole().is_some() {
                self.flush_descriptor()?;
                continue;
            }
            let mut slices = [IoSlice::new(&[]); 16];
            let set = self.up.front(&mut slices);
            match self.daemon.write_vectored(&slices[..set]) {
                Ok(taken) => {
                    self.up.advance(taken);
                    self.takes += 1;
                }
                Err(error) => self.on_write_error(error)?,
            }
        }
        if self.up.is_empty() && std::mem::take(&mut self.finish_due) && !self.deaf {
            self.daemon.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn on_write_error(&mut self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.can_write = false,
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                (self.deaf, self.can_write) = (true, false);
                self.up = Backlog::default();
                self.up_descriptors.clear();
            }
            _ => return Err(error),
        }
        Ok(())
    }

    fn flush_descriptor(&mut self) -> io::Result<()> {
        let waiting = self.up_descriptors.front();
        let written =
            waiting.map_or(Ok(()), |(byte, descriptor)| self.daemon.write_with_descriptor(*byte, descriptor.as_fd()));
        match written {
            Ok(()) => {
                self.up_descriptors.pop_front();
                self.up.pop_hole();
                self.takes += 1;
            }
            Err(error) => self.on_write_error(error)?,
        }
        Ok(())
    }

    /// How often the daemon took something of what waited for it.
    pub(super) fn takes(&self) -> u64 {
        self.takes
    }

    /// Whether the daemon takes so little that the link should not be read.
    pub(super) fn is_full(&self) -> bool {
        self.up.len() > MAX_UP || self.up_descriptors.len() > DESCRIPTORS_MAX
    }

    /// Whether the daemon has ended and all that it said is out, but for a packet that it ended within.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.is_empty()
    }

    /// Whether all is out that came whole.
    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.descriptor.is_none()
    }

    /// Whether another's packet may follow what was given last.
    pub(super) fn is_between_packets(&self) -> bool {
        !self.begun && self.descriptor.is_none()
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
        if !shared {
            return self.read_through(out);
        }
        // What was begun without others is ended without them, and nothing beyond it.
        if self.begun && self.whole.is_empty() {
            let missing = if self.following.due > 0 { 1 } else { self.decoder.missing() };
            let room = out.len().min(missing);
            return self.read_through(&mut out[..room]);
        }
        while self.can_read && (self.whole.is_empty() || !self.is_ahead()) {
            let len = self.read(scratch)?;
            self.keep(&scratch[..len])?;
        }
        Ok(self.take_whole(out, budget))
    }

    /// Whether so much of the daemon's waits for the link that more should not be read, once a packet is whole.
    fn is_ahead(&self) -> bool {
        self.down.len() >= MAX_DOWN || self.down_descriptors.len() >= DESCRIPTORS_MAX
    }

    fn read_through(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.read(out)?;
        let mut input = &out[..len];
        while !input.is_empty() {
            if self.following.is_next() {
                self.descriptor = Some(self.descriptor_of(input)?);
                self.begun = self.following.due > 0;
                return Ok(len - 1);
            }
            if let Some(piece) = self.decoder.decode(&mut input).map_err(io::Error::other)? {
                self.following.see(&piece)?;
            }
        }
        self.begun = !self.decoder.at_boundary() || self.following.due > 0;
        self.descriptors.clear();
        Ok(len)
    }

    /// A descriptor that is to be sent behind what was given, with its byte.
    pub(super) fn take_descriptor(&mut self) -> Option<(u8, OwnedFd)> {
        self.descriptor.take()
    }

    /// The descriptor that the byte in front of `input` came with.
    fn descriptor_of(&mut self, input: &[u8]) -> io::Result<(u8, OwnedFd)> {
        // It is the last byte of what was read: the kernel gives none beyond the one that a descriptor comes with.
        let descriptor = self.descriptors.pop_front().filter(|_| input.len() == 1);
        let descriptor = descriptor.ok_or_else(|| io::Error::other("it announced a descriptor and sent none"))?;
        Ok((input[0], descriptor))
    }

    fn keep(&mut self, mut input: &[u8]) -> io::Result<()> {
        while !input.is_empty() {
            if self.following.is_next() {
                let came = self.descriptor_of(input)?;
                self.down_descriptors.push_back(came);
                self.partial.descriptors += 1;
                input = &[];
            } else {
                let before = input;
                let piece = self.decoder.decode(&mut input).map_err(io::Error::other)?;
                let taken = &before[..before.len() - input.len()];
                self.down.push(taken);
                self.partial.len += taken.len();
                piece.iter().try_for_each(|piece| self.following.see(piece))?;
            }
            if self.decoder.at_boundary() && self.following.due == 0 {
                self.whole.push_back(std::mem::take(&mut self.partial));
            }
        }
        self.descriptors.clear();
        Ok(())
    }

    fn take_whole(&mut self, out: &mut [u8], budget: usize) -> usize {
        let mut len = 0;
        while let Some(packet) = self.whole.front_mut() {
            if self.descriptor.is_some() || out.len() == len || !self.begun && len >= budget {
                break;
            }
            let taken = self.down.take(&mut out[len..], packet.len);
            len += taken;
            packet.len -= taken;
            if packet.len == 0 && packet.descriptors > 0 {
                packet.descriptors -= 1;
                self.descriptor = self.down_descriptors.pop_front();
            }
            self.begun = packet.len > 0 || packet.descriptors > 0;
            if !self.begun {
                self.whole.pop_front();
            }
        }
        len
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.can_read && !self.ended {
            match self.daemon.read_with_descriptors(buf, &mut self.descriptors) {
                Ok(len @ 1..) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_read = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // After a reset, too: it closed with some of what it was sent unread.
                Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error),
                Ok(_) | Err(_) => (self.ended, self.can_read) = (true, false),
            }
        }
        Ok(0)
    }

    /// It failed: nothing more is taken or given.
    pub(super) fn break_off(&mut self) {
        self.ended = true;
        (self.can_read, self.can_write) = (false, false);
        (self.up, self.down) = (Backlog::default(), Backlog::default());
        self.up_descriptors.clear();
        self.down_descriptors.clear();
        self.whole.clear();
    }

    pub(super) fn close(mut self, registry: &Registry) {
        let _ = self.daemon.deregister(registry);
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
