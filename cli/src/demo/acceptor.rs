//! A UNIX socket that is listened to by a thread, with one more thread for each connection; dropping it ends them all.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Serves every connection to a UNIX socket with the same function.
#[derive(Debug)]
pub(crate) struct Acceptor {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    listener: UnixListener,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    stopping: bool,
    next: u64,
    connections: HashMap<u64, UnixStream>,
}

impl Acceptor {
    /// Binds `path`, which must not exist, and hands each connection to `serve`.
    pub(crate) fn bind<F>(path: &Path, serve: F) -> io::Result<Acceptor>
    where
        F: Fn(&UnixStream) + Send + Sync + 'static,
    {
        let shared = Arc::new(Shared { listener: UnixListener::bind(path)?, open: Mutex::default() });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("acceptor".to_owned()).spawn(move || theirs.accept_all(&serve))?;
        Ok(Acceptor { path: path.to_owned(), shared, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a thread that served {} panicked", self.path.display());
        }
        // A path that is gone already is what was wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    /// Ends when the listener is shut down; the scope then waits for every connection's thread.
    fn accept_all(&self, serve: &(impl Fn(&UnixStream) + Sync)) {
        thread::scope(|scope| {
            loop {
                match self.listener.accept() {
                    Ok((stream, _)) => {
                        let Some(key) = self.register(&stream) else { continue };
                        let connection = move || {
                            serve(&stream);
                            self.forget(key);
                        };
                        if let Err(error) = thread::Builder::new().spawn_scoped(scope, connection) {
                            log::error!("no thread for a connection: {error}");
                            self.forget(key);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        if !self.open().stopping {
                            log::error!("accepting connections failed: {error}");
                            // Refuse whoever comes now, rather than let it wait in the backlog.
                            self.close_listener();
                        }
                        return;
                    }
                }
            }
        });
    }

    /// None when this connection came too late or cannot be kept track of.
    fn register(&self, stream: &UnixStream) -> Option<u64> {
        let clone = stream.try_clone().inspect_err(|error| log::error!("a connection was lost: {error}")).ok()?;
        let mut open = self.open();
        if open.stopping {
            return None;
        }
        open.next += 1;
        let key = open.next;
        open.connections.insert(key, clone);
        Some(key)
    }

    fn forget(&self, key: u64) {
        self.open().connections.remove(&key);
    }

    /// A shut down listener or stream wakes the thread that waits for it.
    fn stop(&self) {
        let mut open = self.open();
        open.stopping = true;
        for stream in open.connections.values() {
            // One that its peer has closed is down already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.close_listener();
    }

    fn close_listener(&self) {
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            log::error!("the listener cannot be stopped: {error}");
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
