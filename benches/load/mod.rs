//! What the benches of whole tunnels carry, and how it is measured: connections from one UNIX socket to another.

#![allow(dead_code, reason = "each bench uses its own part of it")]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One MiB, in bytes.
pub(crate) const MIB: usize = 1 << 20;

/// Bytes that one write or read of the load asks for.
const CHUNK: usize = 256 * 1024;

/// A connection whose writer has been held up for so long is full.
const HELD_UP: Duration = Duration::from_millis(50);

/// Bytes of one message whose round trip is measured.
const MESSAGE: usize = 4096;

/// A way from connections to `near`, through whatever is measured, to the listener at `far`.
#[derive(Debug)]
pub(crate) struct Way {
    near: PathBuf,
    far: UnixListener,
    noise: Vec<u8>,
}

/// What a bulk transfer came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    /// From before the first connection until the last byte was verified.
    pub(crate) time: Duration,
    /// Over all connections.
    pub(crate) bytes: usize,
}

impl Way {
    /// Listens at `far`; connections are made to `near`.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new(near: &Path, far: &Path) -> io::Result<Self> {
        // SplitMix64, so that nothing can be compressed. Longer than any buffer on the way.
        let mut seed = 0x5eed_u64;
        let words = (0..4 * MIB / 8).flat_map(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (word ^ (word >> 31)).to_le_bytes()
        });
        Ok(Self { near: near.to_owned(), far: UnixListener::bind(far)?, noise: words.collect() })
    }

    /// Carries `bytes` over each of so many connections at once, and compares every one of them.
    ///
    /// # Errors
    /// The system's; `InvalidData` when something else came out than went in.
    pub(crate) fn bulk(&self, connections: usize, bytes: usize) -> io::Result<Bulk> {
        let open = || -> io::Result<_> { Ok((UnixStream::connect(&self.near)?, self.far.accept()?.0)) };
        let pairs = (0..connections).map(|_| open()).collect::<io::Result<Vec<_>>>()?;
        // Neither connections nor threads are what is measured.
        let ready = Barrier::new(connections + 1);
        let (start, ends) = thread::scope(|scope| {
            let receivers: Vec<_> = pairs
                .into_iter()
                .enumerate()
                .map(|(connection, (near, far))| {
                    let ready = &ready;
                    scope.spawn(move || {
                        ready.wait();
                        self.send(near, connection, bytes)
                    });
                    scope.spawn(move || self.receive(far, bytes))
                })
                .collect();
            ready.wait();
            let start = Instant::now();
            let ends = receivers.into_iter().map(|receiver| joined(receiver.join()));
            ends.collect::<io::Result<Vec<Instant>>>().map(|ends| (start, ends))
        })?;
        let end = ends.into_iter().max().unwrap_or(start);
        Ok(Bulk { time: end - start, bytes: connections * bytes })
    }

    /// Round trips of 4 KiB over one connection, one after the other for so long; their times.
    ///
    /// # Errors
    /// The system's, or `InvalidData`.
    pub(crate) fn round_trips(&self, how_long: Duration) -> io::Result<Vec<Duration>> {
        thread::scope(|scope| {
            let mut stream = UnixStream::connect(&self.near)?;
            let (mut echo, _) = self.far.accept()?;
            let echoing = scope.spawn(move || -> io::Result<()> {
                let mut message = [0; MESSAGE];
                while echo.read(&mut message[..1])? == 1 {
                    echo.read_exact(&mut message[1..])?;
                    echo.write_all(&message)?;
                }
                Ok(())
            });
            let mut times = Vec::new();
            let mut answer = [0; MESSAGE];
            let begin = Instant::now();
            for message in self.noise.chunks_exact(MESSAGE).cycle() {
                let start = Instant::now();
                if start - begin >= how_long {
                    break;
                }
                stream.write_all(message)?;
                stream.read_exact(&mut answer)?;
                times.push(start.elapsed());
                if answer != message {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "another message came back"));
                }
            }
            stream.shutdown(Shutdown::Write)?;
            joined(echoing.join())?;
            Ok(times)
        })
    }

    /// The same while another connection carries bulk, which begins before and ends after.
    ///
    /// # Errors
    /// The system's, or `InvalidData`.
    pub(crate) fn round_trips_beside_bulk(&self, how_long: Duration) -> io::Result<Vec<Duration>> {
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            let mut bulk = UnixStream::connect(&self.near)?;
            let (mut sink, _) = self.far.accept()?;
            let sending = scope.spawn({
                let enough = &enough;
                move || -> io::Result<()> {
                    while !enough.load(Ordering::Relaxed) {
                        bulk.write_all(&self.noise[..CHUNK])?;
                    }
                    bulk.shutdown(Shutdown::Write)?;
                    at_end(&mut bulk)
                }
            });
            let mut chunk = vec![0; CHUNK];
            sink.read_exact(&mut chunk)?;
            let receiving = scope.spawn(move || -> io::Result<()> {
                while sink.read(&mut chunk)? > 0 {}
                Ok(())
            });
            let times = self.round_trips(how_long);
            enough.store(true, Ordering::Relaxed);
            joined(sending.join())?;
            joined(receiving.join())?;
            times
        })
    }

    /// The same beside a connection whose receiver reads nothing, and into which nothing more goes.
    ///
    /// # Errors
    /// The system's, or `InvalidData`.
    pub(crate) fn round_trips_beside_stalled(&self, how_long: Duration) -> io::Result<Vec<Duration>> {
        let mut stalled = UnixStream::connect(&self.near)?;
        let (_unread, _) = self.far.accept()?;
        stalled.set_write_timeout(Some(HELD_UP))?;
        loop {
            match stalled.write(&self.noise[..CHUNK]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.round_trips(how_long)
    }

    /// What `look` gives while so many connections are open, all of which have just carried `bytes` each.
    ///
    /// # Errors
    /// The system's, `InvalidData`, or those of `look`.
    pub(crate) fn while_open<T>(
        &self,
        connections: usize,
        bytes: usize,
        look: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let sent = &self.noise[..bytes];
        let open = || -> io::Result<_> { Ok((UnixStream::connect(&self.near)?, self.far.accept()?.0)) };
        let mut pairs = (0..connections).map(|_| open()).collect::<io::Result<Vec<_>>>()?;
        thread::scope(|scope| -> io::Result<()> {
            let mut threads = Vec::new();
            for (near, far) in &mut pairs {
                threads.push(scope.spawn(|| near.write_all(sent)));
                threads.push(scope.spawn(|| {
                    let mut came = vec![0; bytes];
                    far.read_exact(&mut came)?;
                    if came == sent { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
                }));
            }
            threads.into_iter().try_for_each(|thread| joined(thread.join()))
        })?;
        let seen = look()?;
        for (near, far) in &mut pairs {
            near.shutdown(Shutdown::Write)?;
            at_end(far)?;
        }
        Ok(seen)
    }

    fn send(&self, mut stream: UnixStream, connection: usize, bytes: usize) -> io::Result<()> {
        // Each connection begins elsewhere in the noise, and says where.
        let mut at = connection * 1_048_573 % self.noise.len();
        stream.write_all(&at.to_le_bytes())?;
        let mut left = bytes;
        while left > 0 {
            let chunk = &self.noise[at..self.noise.len().min(at + left.min(CHUNK))];
            stream.write_all(chunk)?;
            left -= chunk.len();
            at = (at + chunk.len()) % self.noise.len();
        }
        stream.shutdown(Shutdown::Write)?;
        at_end(&mut stream)
    }

    fn receive(&self, mut stream: UnixStream, bytes: usize) -> io::Result<Instant> {
        let mut at = [0; size_of::<usize>()];
        stream.read_exact(&mut at)?;
        let mut at = usize::from_le_bytes(at);
        let mut chunk = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let len = stream.read(&mut chunk[..left.min(CHUNK)])?;
            if len == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{left} bytes are missing")));
            }
            let mut came = &chunk[..len];
            while !came.is_empty() {
                let wanted = &self.noise[at..];
                let (now, rest) = came.split_at(came.len().min(wanted.len()));
                if now != &wanted[..now.len()] {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes came out than went in"));
                }
                at = (at + now.len()) % self.noise.len();
                came = rest;
            }
            left -= len;
        }
        let end = Instant::now();
        at_end(&mut stream)?;
        Ok(end)
    }
}

fn at_end(stream: &mut UnixStream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "more came out than went in")),
    }
}

fn joined<T>(result: thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::Error::other("a thread of the load panicked")))
}

/// Ends the process when it has not ended of itself in time; `clean` removes what would be left.
pub(crate) fn end_after(limit: Duration, clean: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        thread::sleep(limit);
        clean();
        eprintln!("gave up after {} s", limit.as_secs());
        std::process::exit(1);
    });
}

/// The value that so many hundredths of the others do not exceed.
pub(crate) fn percentile<T: Copy + PartialOrd>(values: &[T], hundredths: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
    sorted[(sorted.len() - 1) * hundredths / 100]
}

/// The one in the middle.
pub(crate) fn median<T: Copy + PartialOrd>(values: &[T]) -> T {
    percentile(values, 50)
}

/// So many GiB.
pub(crate) fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1024 * MIB) as f64
}

/// Whether cargo bench runs us; otherwise, in `cargo test --benches` say, once over little shows that it works.
pub(crate) fn is_measured() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}
