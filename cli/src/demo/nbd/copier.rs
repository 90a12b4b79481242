//! Copies a local image to an NBD export, many requests in flight. One thread asks, one hears the answers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::BLOCK;
use super::client;
use super::error::Error;
use super::pieces::{Piece, Pieces};
use super::proto::{MAX_PAYLOAD, Reply, Request, can, command};
use super::send::send;

/// The most requests that wait for an answer; QEMU's mirror has as many.
const DEPTH: usize = 16;

static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// What a copy came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Copied {
    /// Bytes that went as data; the rest of the image went as zeroes by their length alone.
    pub(crate) data: u64,
    /// Until the last WRITE and WRITE_ZEROES were answered.
    pub(crate) transfer: Duration,
    /// How long the server's FLUSH took after that.
    pub(crate) flush: Duration,
}

/// Copies the first `size` bytes of `image` to the server's `export` over a fresh connection, and flushes them.
/// `progress` hears of each number of bytes that the server has acknowledged.
pub(crate) fn copy(
    image: &File,
    size: u64,
    mut stream: UnixStream,
    export: &str,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Copied, Error> {
    let info = client::open(&mut stream, export)?;
    if info.flags & can::READ_ONLY != 0 {
        return Err(Error::ReadOnly);
    }
    if info.size < size {
        return Err(Error::TooSmall { export: info.size, image: size });
    }
    let line = Line { stream: &stream, first: OnceLock::new() };
    let (asked, to_hear) = channel();
    let (heard, answered) = channel();
    let asker = Asker { stream: &stream, flags: info.flags, asked: Some(asked), answered, in_flight: 0, cookie: 0 };
    let copied = thread::scope(|scope| {
        let line = &line;
        let hearer = Hearer { to_hear, heard, unanswered: HashMap::new(), progress };
        scope.spawn(move || line.guard(hearer, |hearer| hearer.run(line.stream)));
        line.guard(asker, |asker| asker.run(image, size))
    });
    copied.ok_or_else(|| line.first.into_inner().expect("a half that failed has left its cause"))
}

/// The connection, and the first cause of its failure: what comes after is only its echo in the other half.
struct Line<'a> {
    stream: &'a UnixStream,
    first: OnceLock<Error>,
}

impl Line<'_> {
    /// Runs one half, and ends the other when it fails. The half is dropped only after its cause was noted, or the
    /// other would notice its channels closing and be the first to complain.
    fn guard<H, T>(&self, mut half: H, run: impl FnOnce(&mut H) -> Result<T, Error>) -> Option<T> {
        let error = match run(&mut half) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        // Taken when the other half has failed before.
        let _ = self.first.set(error);
        // Fails when the peer is gone, which is as good.
        let _ = self.stream.shutdown(Shutdown::Both);
        None
    }
}

/// The half that sends requests.
struct Asker<'a> {
    stream: &'a UnixStream,
    /// What the export can do.
    flags: u16,
    /// Tells the other half what to expect, always before the request is sent. Gone once nothing more is to come.
    asked: Option<Sender<Request>>,
    /// One for each answer that the other half has heard.
    answered: Receiver<()>,
    in_flight: usize,
    cookie: u64,
}

impl Asker<'_> {
    fn run(&mut self, image: &File, size: u64) -> Result<Copied, Error> {
        let begin = Instant::now();
        let data = self.send_image(image, size)?;
        self.await_answers(0)?;
        let transfer = begin.elapsed();
        if self.flags & can::FLUSH != 0 {
            self.ask(command::FLUSH, 0, 0, &[])?;
            self.await_answers(0)?;
        }
        let flush = begin.elapsed() - transfer;
        self.disconnect()?;
        Ok(Copied { data, transfer, flush })
    }

    /// Returns how many bytes went as data.
    fn send_image(&mut self, image: &File, size: u64) -> Result<u64, Error> {
        let can_zero = self.flags & can::WRITE_ZEROES != 0;
        let hole = if can_zero { MAX_PAYLOAD } else { BLOCK as u32 };
        let mut block = vec![0; BLOCK];
        let mut sent = 0;
        for piece in Pieces::new(image, size, hole) {
            let Piece { offset, length, data } = piece.map_err(Error::Image)?;
            if can_zero && !data {
                self.ask(command::WRITE_ZEROES, offset, length, &[])?;
                continue;
            }
            let bytes = &mut block[..length as usize];
            image.read_exact_at(bytes, offset).map_err(Error::Image)?;
            if can_zero && bytes == &ZEROES[..bytes.len()] {
                self.ask(command::WRITE_ZEROES, offset, length, &[])?;
            } else {
                self.ask(command::WRITE, offset, length, bytes)?;
                sent += u64::from(length);
            }
        }
        Ok(sent)
    }

    fn ask(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> Result<(), Error> {
        self.await_answers(DEPTH - 1)?;
        self.cookie += 1;
        let request = Request { flags: 0, command, cookie: self.cookie, offset, length };
        // Fails only when the other half has, and then its cause is the one that counts.
        let told = self.asked.as_ref().is_some_and(|asked| asked.send(request).is_ok());
        if !told {
            return Err(Error::Closed { unanswered: self.in_flight });
        }
        self.in_flight += 1;
        send(self.stream, &request.encode(), data)?;
        Ok(())
    }

    /// Waits until no more than `most` requests are unanswered.
    fn await_answers(&mut self, most: usize) -> Result<(), Error> {
        while self.in_flight > most {
            self.answered.recv().map_err(|_| Error::Closed { unanswered: self.in_flight })?;
            self.in_flight -= 1;
        }
        Ok(())
    }

    /// DISC has no answer but the end of the connection, which the other half waits for.
    fn disconnect(&mut self) -> Result<(), Error> {
        self.asked = None;
        let request = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
        send(self.stream, &request.encode(), &[])?;
        Ok(())
    }
}

/// The half that hears the answers, in whatever order they come.
struct Hearer<'a> {
    to_hear: Receiver<Request>,
    heard: Sender<()>,
    unanswered: HashMap<u64, Request>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Hearer<'_> {
    fn run(&mut self, stream: &UnixStream) -> Result<(), Error> {
        let mut input = BufReader::new(stream);
        while !input.fill_buf()?.is_empty() {
            let mut bytes = [0; Reply::LEN];
            input.read_exact(&mut bytes)?;
            self.on_reply(Reply::decode(&bytes)?)?;
        }
        let more_to_come = self.learn();
        let unanswered = self.unanswered.len();
        if more_to_come || unanswered > 0 { Err(Error::Closed { unanswered }) } else { Ok(()) }
    }

    fn on_reply(&mut self, reply: Reply) -> Result<(), Error> {
        self.learn();
        let request = self.unanswered.remove(&reply.cookie).ok_or(Error::UnknownCookie(reply.cookie))?;
        let Request { command, offset, length, .. } = request;
        if reply.errno != 0 {
            return Err(Error::Failed { command, offset, length, errno: reply.errno });
        }
        // The FLUSH has none.
        if length > 0 {
            (self.progress)(length.into());
        }
        // Fails only when the other half has, whose cause is noted by then.
        let _ = self.heard.send(());
        Ok(())
    }

    /// Takes note of what was asked meanwhile. False once the other half has said that this was all.
    fn learn(&mut self) -> bool {
        loop {
            match self.to_hear.try_recv() {
                Ok(request) => self.unanswered.insert(request.cookie, request),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
        }
    }
}
