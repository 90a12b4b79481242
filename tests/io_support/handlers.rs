//! Handlers made of closures, and what they were told.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use mio::Registry;
use virbistream::io::{Attachment, Decision, Handler, Request, SessionOptions, Targets, UnixTargets, Waker};
use virbistream::proto::StreamError;
use virbistream::wire::RemoteError;

use super::{PATIENCE, Pattern};

/// What a handler was told.
#[derive(Debug)]
pub(crate) enum Told {
    Attached(Waker),
    Detached,
    Finished,
    Stopped,
    Reset(StreamError),
}

/// All that a handler was told until it was dropped.
#[track_caller]
pub(crate) fn all_told(told: &mpsc::Receiver<Told>) -> Vec<Told> {
    let mut all = Vec::new();
    loop {
        match told.recv_timeout(PATIENCE) {
            Ok(told) => all.push(told),
            Err(mpsc::RecvTimeoutError::Disconnected) => return all,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the handler is kept; it was told {all:?}"),
        }
    }
}

type Reading = Box<dyn FnMut(&mut [u8]) -> io::Result<usize> + Send>;
type Writing = Box<dyn FnMut(&[IoSlice<'_>]) -> io::Result<usize> + Send>;
type Deciding = Box<dyn FnMut() -> io::Result<()> + Send>;

/// A handler that is silent and takes everything, unless told otherwise.
pub(crate) struct Custom {
    tell: mpsc::Sender<Told>,
    attaching: Deciding,
    reading: Reading,
    writing: Writing,
    finishing: Deciding,
}

impl Custom {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Told>) {
        let (tell, told) = mpsc::channel();
        let custom = Self {
            tell,
            attaching: Box::new(|| Ok(())),
            reading: Box::new(|_| Err(io::ErrorKind::WouldBlock.into())),
            writing: Box::new(|bufs| Ok(bufs.iter().map(|buf| buf.len()).sum())),
            finishing: Box::new(|| Ok(())),
        };
        (custom, told)
    }

    pub(crate) fn attaching(mut self, attaching: impl FnMut() -> io::Result<()> + Send + 'static) -> Self {
        self.attaching = Box::new(attaching);
        self
    }

    pub(crate) fn reading(mut self, reading: impl FnMut(&mut [u8]) -> io::Result<usize> + Send + 'static) -> Self {
        self.reading = Box::new(reading);
        self
    }

    pub(crate) fn writing(mut self, writing: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize> + Send + 'static) -> Self {
        self.writing = Box::new(writing);
        self
    }

    pub(crate) fn finishing(mut self, finishing: impl FnMut() -> io::Result<()> + Send + 'static) -> Self {
        self.finishing = Box::new(finishing);
        self
    }

    pub(crate) fn boxed(self) -> Box<dyn Handler> {
        Box::new(self)
    }

    fn tell(&self, told: Told) {
        let _ = self.tell.send(told);
    }
}

impl Handler for Custom {
    fn attach(&mut self, at: &Attachment<'_>) -> io::Result<()> {
        (self.attaching)()?;
        self.tell(Told::Attached(at.waker()));
        Ok(())
    }

    fn detach(&mut self, _registry: &Registry) {
        self.tell(Told::Detached);
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (self.reading)(buf)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (self.writing)(bufs)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.tell(Told::Finished);
        (self.finishing)()
    }

    fn stop(&mut self) {
        self.tell(Told::Stopped);
    }

    fn reset(&mut self, cause: &StreamError) {
        self.tell(Told::Reset(cause.clone()));
    }
}

/// A source without end that takes nothing; it says when it has given `mark` bytes.
pub(crate) struct Endless {
    pattern: Pattern,
    mark: usize,
    reached: Option<mpsc::Sender<()>>,
}

impl Endless {
    pub(crate) fn new(pattern: Pattern, mark: usize, reached: mpsc::Sender<()>) -> Self {
        Self { pattern, mark, reached: Some(reached) }
    }
}

impl Handler for Endless {
    fn attach(&mut self, _at: &Attachment<'_>) -> io::Result<()> {
        Ok(())
    }

    fn detach(&mut self, _registry: &Registry) {}

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.pattern.fill(buf);
        if self.pattern.offset() >= self.mark
            && let Some(reached) = self.reached.take()
        {
            let _ = reached.send(());
        }
        Ok(buf.len())
    }

    fn write(&mut self, _bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn reset(&mut self, _cause: &StreamError) {}
}

/// Targets made of a closure.
pub(crate) struct Offer<F>(pub(crate) F);

impl<F: Fn(&Request<'_>) -> Decision + Send + Sync> Targets for Offer<F> {
    fn open(&self, request: &Request<'_>) -> Decision {
        (self.0)(request)
    }
}

/// A target for one stream, whatever its name.
pub(crate) fn once(handler: impl Handler + 'static) -> Arc<dyn Targets> {
    let handler = Mutex::new(Some(Box::new(handler)));
    Arc::new(Offer(move |_: &Request<'_>| Decision::Accept(handler.lock().unwrap().take().expect("asked for once"))))
}

/// The UNIX socket `disk`, and `stalled`, which never takes a byte.
pub(crate) fn with_stalled(options: &mut SessionOptions, dir: &Path) {
    let mut targets = UnixTargets::new();
    targets.insert("disk", dir.join("disk.sock"));
    options.targets = Arc::new(Offer(move |request: &Request<'_>| match request.target {
        "stalled" => {
            let sink = Custom::new().0.writing(|_| Err(io::ErrorKind::WouldBlock.into()));
            Decision::Accept(sink.boxed())
        }
        _ => targets.open(request),
    }));
}

/// What the peer was told, at whichever end this is.
#[track_caller]
pub(crate) fn remote_error(error: &StreamError) -> &RemoteError {
    match error {
        StreamError::Refused(error) | StreamError::Reset(error) | StreamError::Local(error) => error,
        other => panic!("{other}"),
    }
}
