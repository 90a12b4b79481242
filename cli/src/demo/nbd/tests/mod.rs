//! The server and the copier against other people's programs, and against peers that misbehave.

mod copier;
mod server;
mod tools;

use std::fs::File;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Export, Server};
use crate::demo::images;

const SIZE: u64 = 24 << 20;

/// A directory with one source image, by name since programs read it, and one server of an empty export "disk".
struct Bench {
    dir: TempDir,
    source: File,
    /// The file behind the export.
    copy: File,
    server: Server,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let source = images::generate(dir.path(), SIZE, 42, |_| {}).expect("an image");
        let copy = images::empty(dir.path(), SIZE).expect("an image");
        let server = serve(&dir.path().join("socket"), vec![export("disk", &copy, SIZE)]);
        Bench { dir, source, copy, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// The source under a name.
    fn source_path(&self) -> PathBuf {
        named(&self.source)
    }
}

/// A file without a name, as another process can open it while this one has it.
fn named(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

fn export(name: &str, file: &File, size: u64) -> Export {
    Export { name: name.to_owned(), file: file.try_clone().expect("a descriptor"), size }
}

fn serve(socket: &Path, exports: Vec<Export>) -> Server {
    Server::bind(socket, exports).expect("the server listens")
}

fn assert_same(one: &File, other: &File) {
    let difference = images::first_difference(one, other, |_| {}).expect("both images can be read");
    assert_eq!(difference, None, "the images differ at this byte");
}

fn allocated(file: &File) -> u64 {
    images::allocated(file).expect("metadata")
}
