//! Sockets that give up in time, and bytes that are known again.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use socket2::SockRef;
use virbistream::io::Socket;

use super::PATIENCE;

/// The stream, with a deadline for each read and write.
pub(crate) fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The next connection, within a deadline.
#[track_caller]
pub(crate) fn accept(listener: &UnixListener) -> UnixStream {
    SockRef::from(listener).set_read_timeout(Some(PATIENCE)).unwrap();
    patient(listener.accept().expect("somebody connects").0)
}

/// Leaves a socket file that nobody listens on.
pub(crate) fn closed_listener(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

pub(crate) fn tcp_link() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

pub(crate) fn unix_link() -> (Socket, Socket) {
    let (near, far) = UnixStream::pair().unwrap();
    (Socket::from_unix(near).unwrap(), Socket::from_unix(far).unwrap())
}

/// All that comes until the end.
#[track_caller]
pub(crate) fn to_eof(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an orderly end");
    bytes
}

/// Bytes without a short period, the same for the same seed, known at any offset.
#[derive(Clone)]
pub(crate) struct Pattern {
    block: Vec<u8>,
    offset: usize,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let block = (0..65_521)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        Self { block, offset: 0 }
    }

    /// How many bytes were given or judged.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) fn bytes(mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }

    pub(crate) fn fill(&mut self, buf: &mut [u8]) {
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = self.next(rest.len());
            let (now, later) = rest.split_at_mut(piece.len());
            now.copy_from_slice(piece);
            rest = later;
        }
    }

    #[track_caller]
    pub(crate) fn check(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = self.offset;
            let piece = self.next(rest.len());
            let (now, later) = rest.split_at(piece.len());
            assert!(now == piece, "wrong bytes between offsets {at} and {}", at + now.len());
            rest = later;
        }
    }

    fn next(&mut self, most: usize) -> &[u8] {
        let at = self.offset % self.block.len();
        let end = self.block.len().min(at + most);
        self.offset += end - at;
        &self.block[at..end]
    }

    pub(crate) fn write_to(&mut self, mut sink: impl Write, len: usize) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            let piece = self.next(left);
            sink.write_all(piece)?;
            left -= piece.len();
        }
        Ok(())
    }

    /// Reads `len` bytes and judges them.
    #[track_caller]
    pub(crate) fn check_from(&mut self, mut source: impl Read, len: usize) {
        let mut buf = vec![0; len.min(256 * 1024)];
        let mut left = len;
        while left > 0 {
            let most = left.min(buf.len());
            let got = source.read(&mut buf[..most]).expect("bytes in time");
            assert_ne!(got, 0, "an end at offset {}, with {left} bytes to come", self.offset);
            self.check(&buf[..got]);
            left -= got;
        }
    }
}
