//! Targets that the test itself is: they run in threads, which end with their listener's test.

use super::PATIENCE;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

/// Listens on `path` and gives each connection that is accepted.
#[track_caller]
pub(crate) fn accept_on(path: &Path) -> Accepted {
    let listener = UnixListener::bind(path).expect("a new socket");
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if sender.send(stream).is_err() {
                break;
            }
        }
    });
    Accepted(receiver)
}

/// The connections that a listener accepts, in their order.
pub(crate) struct Accepted(Receiver<UnixStream>);

impl Accepted {
    /// The next connection, on which reads and writes do not wait for ever.
    #[track_caller]
    pub(crate) fn next(&self) -> UnixStream {
        let stream = self.0.recv_timeout(PATIENCE).expect("a connection to the target");
        patient(stream)
    }

    /// Fails the test if there was another connection.
    #[track_caller]
    pub(crate) fn assert_no_more(&self) {
        assert!(self.0.try_recv().is_err(), "a connection to the target that nobody should have made");
    }
}

/// Sends back what each connection to `path` sends, and finishes when it does.
#[track_caller]
pub(crate) fn echo_on(path: &Path) {
    let listener = UnixListener::bind(path).expect("a new socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut writer = &stream;
                _ = std::io::copy(&mut &stream, &mut writer);
                _ = stream.shutdown(std::net::Shutdown::Write);
            });
        }
    });
}

/// A connection to `path` on which reads and writes do not wait for ever.
#[track_caller]
pub(crate) fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path);
    patient(stream.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The same stream, on which reads and writes do not wait for ever.
#[track_caller]
pub(crate) fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Fails the test unless what is sent on `stream` is echoed.
#[track_caller]
pub(crate) fn assert_echoes(mut stream: &UnixStream, message: &[u8]) {
    stream.write_all(message).expect("a stream that stands");
    let mut echoed = vec![0; message.len()];
    stream.read_exact(&mut echoed).expect("an echo");
    assert_eq!(echoed, message);
}

/// Fails the test unless the next thing that comes on `stream` is its end.
#[track_caller]
pub(crate) fn assert_ends(mut stream: &UnixStream) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("not the end of the connection, but {other:?}"),
    }
}

/// Reads to the end, and fails the test unless it is what was sent.
#[track_caller]
pub(crate) fn assert_reads(mut stream: &UnixStream, sent: &[u8]) {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).expect("a stream that ends");
    assert!(read == sent, "{} bytes were read, {} sent, and they differ", read.len(), sent.len());
}
