//! A stream like that of a guest's memory: pages one way, and on the return path what the receiver made of them.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::PATIENCE;
use super::acceptor::Acceptor;
use super::noise::Noise;

const PAGE: usize = 4096;
/// What is generated, sent and hashed at a time.
const CHUNK: usize = 256 * PAGE;

/// Why the stream of memory failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the stream of memory failed: {0}")]
    Io(#[from] io::Error),
    #[error("{sent} bytes of memory were sent, {received} received")]
    Length { sent: u64, received: u64 },
    #[error("the memory received is not the memory sent: SHA-256 {received}, not {sent}")]
    Checksum { sent: String, received: String },
}

/// What a stream held, told by each end for itself.
struct Summary {
    bytes: u64,
    digest: [u8; 32],
}

impl Summary {
    fn encode(&self) -> Vec<u8> {
        [&self.bytes.to_be_bytes()[..], &self.digest].concat()
    }

    fn read(mut stream: &UnixStream) -> io::Result<Summary> {
        let (mut bytes, mut digest) = ([0; 8], [0; 32]);
        stream.read_exact(&mut bytes)?;
        stream.read_exact(&mut digest)?;
        Ok(Summary { bytes: u64::from_be_bytes(bytes), digest })
    }

    fn hex(&self) -> String {
        self.digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Listens at `path`. Each connection is read to its end, and told what it held.
pub(crate) fn receive(path: &Path) -> io::Result<Acceptor> {
    Acceptor::bind(path, |stream| {
        if let Err(error) = receive_one(stream) {
            log::info!("a stream of memory was not received: {error}");
        }
    })
}

fn receive_one(mut stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            read => {
                hash.update(&chunk[..read]);
                bytes += read as u64;
            }
        }
    }
    stream.write_all(&Summary { bytes, digest: hash.finalize().into() }.encode())
}

/// Sends `size` bytes of made-up memory to the UNIX socket `path`, and compares what the other end says it received.
/// Returns how long it took until that was known.
pub(crate) fn send(path: &Path, size: u64, seed: u64, progress: impl Fn(u64)) -> Result<Duration, Error> {
    let begin = Instant::now();
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut memory = Memory { noise: Noise::new(seed), address: 0 };
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    while memory.address < size {
        let bytes = &mut chunk[..(size - memory.address).min(CHUNK as u64) as usize];
        memory.fill(bytes);
        hash.update(&*bytes);
        stream.write_all(bytes)?;
        progress(bytes.len() as u64);
    }
    stream.shutdown(Shutdown::Write)?;
    let received = Summary::read(&stream)?;
    compare(&Summary { bytes: size, digest: hash.finalize().into() }, &received)?;
    Ok(begin.elapsed())
}

fn compare(sent: &Summary, received: &Summary) -> Result<(), Error> {
    if sent.bytes != received.bytes {
        return Err(Error::Length { sent: sent.bytes, received: received.bytes });
    }
    if sent.digest != received.digest {
        return Err(Error::Checksum { sent: sent.hex(), received: received.hex() });
    }
    Ok(())
}

/// A guest's memory, page after page: each begins with its own address, so that none can be taken for another.
struct Memory {
    noise: Noise,
    address: u64,
}

impl Memory {
    /// Three pages in four are in use, one holds nothing but its address.
    fn fill(&mut self, bytes: &mut [u8]) {
        for page in bytes.chunks_mut(PAGE) {
            if self.noise.next().is_multiple_of(4) {
                page.fill(0);
            } else {
                self.noise.fill(page);
            }
            if let Some(head) = page.first_chunk_mut() {
                *head = self.address.to_be_bytes();
            }
            self.address += page.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = (3 << 20) + 4096;

    /// A relay that gives every chunk to `change` with its number, and carries the answer back.
    fn through(change: impl Fn(usize, &mut Vec<u8>) + Send + Sync + 'static) -> Result<Duration, Error> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (near, far) = (dir.path().join("near"), dir.path().join("far"));
        let receiver = receive(&far).expect("the receiver listens");
        let relay = Acceptor::bind(&near, move |near| relay(near, &far, &change).expect("the relay works"));
        let outcome = send(&near, SIZE, 1, |_| {});
        drop((relay, receiver));
        outcome
    }

    fn relay(mut near: &UnixStream, far: &Path, change: &dyn Fn(usize, &mut Vec<u8>)) -> io::Result<()> {
        let mut far = UnixStream::connect(far)?;
        let mut bytes = Vec::new();
        near.read_to_end(&mut bytes)?;
        for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
            let mut chunk = chunk.to_vec();
            change(number, &mut chunk);
            far.write_all(&chunk)?;
        }
        far.shutdown(Shutdown::Write)?;
        io::copy(&mut far, &mut near).map(drop)
    }

    #[test]
    fn what_arrives_whole_is_accepted() {
        through(|_, _| {}).expect("nothing was changed");
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let outcome = through(|number, chunk| chunk[100] ^= u8::from(number == 2));
        assert!(matches!(outcome, Err(Error::Checksum { .. })), "{outcome:?}");
    }

    #[test]
    fn a_lost_byte_is_noticed() {
        let outcome = through(|number, chunk| chunk.truncate(chunk.len() - usize::from(number == 3)));
        assert!(matches!(outcome, Err(Error::Length { sent: SIZE, received }) if received == SIZE - 1), "{outcome:?}");
    }
}
