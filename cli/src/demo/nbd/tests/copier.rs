use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::tools::{Daemon, succeed, uri};
use super::{Bench, SIZE, allocated, assert_same, export, serve};
use crate::demo::nbd::proto::{
    ExportInfo, Greeting, OptionHeader, OptionReply, Reply, Request, can, command, option, reply,
};
use crate::demo::nbd::{BLOCK, Copied, Error, copy};

#[test]
fn every_byte_arrives_at_our_own_server_and_holes_stay_holes() {
    let bench = Bench::new();
    let done = AtomicU64::new(0);
    let copied = copy(&bench.source, SIZE, connect(&bench.socket()), "disk", &|bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    });
    let copied = copied.expect("copied");
    assert_same(&bench.source, &bench.copy);
    assert!(allocated(&bench.copy) <= allocated(&bench.source));
    assert!(copied.data <= allocated(&bench.source), "zeroes were sent as data: {copied:?}");
    assert_eq!(done.into_inner(), SIZE, "progress ends at the end");
}

#[test]
fn a_block_of_written_zeroes_is_not_sent_as_data() {
    let bench = Bench::new();
    let image = tempfile::tempfile_in(bench.dir.path()).expect("a file");
    image.set_len(SIZE).expect("a file can grow");
    for (block, byte) in [1, 0, 0, 2].into_iter().enumerate() {
        image.write_all_at(&vec![byte; BLOCK], (block * BLOCK) as u64).expect("written");
    }
    let copied = copy(&image, SIZE, connect(&bench.socket()), "disk", &|_| {}).expect("copied");
    assert_eq!(copied.data, 2 * BLOCK as u64);
    assert_same(&image, &bench.copy);
}

#[test]
fn every_byte_arrives_at_nbdkit() {
    let bench = Bench::new();
    let nbdkit = Daemon::nbdkit(bench.dir.path(), &["memory", &SIZE.to_string()]);
    copied(&bench, &nbdkit.socket, "").expect("copied");
    let path = bench.path("copy");
    succeed("nbdcopy", [uri(&nbdkit.socket, "").as_ref(), path.as_os_str()]);
    assert_same(&bench.source, &File::open(path).expect("nbdcopy wrote the file"));
}

#[test]
fn every_byte_arrives_at_an_nbdkit_that_knows_no_write_zeroes() {
    let bench = Bench::new();
    let nbdkit = Daemon::nbdkit(bench.dir.path(), &["--filter=nozero", "memory", &SIZE.to_string()]);
    let copied = copied(&bench, &nbdkit.socket, "").expect("copied");
    assert_eq!(copied.data, SIZE, "everything went as data");
    let path = bench.path("copy");
    succeed("nbdcopy", [uri(&nbdkit.socket, "").as_ref(), path.as_os_str()]);
    assert_same(&bench.source, &File::open(path).expect("nbdcopy wrote the file"));
}

#[test]
fn every_byte_arrives_at_qemu_nbd_and_holes_stay_holes() {
    let bench = Bench::new();
    let path = bench.path("copy");
    let file = File::create_new(&path).and_then(|file| file.set_len(SIZE).map(|()| file)).expect("a file");
    let qemu_nbd = Daemon::qemu_nbd(bench.dir.path(), &path);
    copied(&bench, &qemu_nbd.socket, "disk").expect("copied");
    let copy = File::open(path).expect("the file is there");
    assert_same(&bench.source, &copy);
    assert!(allocated(&file) <= allocated(&bench.source));
}

#[test]
fn a_read_only_export_is_refused() {
    let bench = Bench::new();
    let nbdkit = Daemon::nbdkit(bench.dir.path(), &["-r", "memory", &SIZE.to_string()]);
    let outcome = copied(&bench, &nbdkit.socket, "");
    assert!(matches!(outcome, Err(Error::ReadOnly)), "{outcome:?}");
}

#[test]
fn an_export_that_is_too_small_is_refused() {
    let bench = Bench::new();
    let socket = bench.path("small");
    let _server = serve(&socket, vec![export("disk", &bench.copy, SIZE - 1)]);
    let outcome = copied(&bench, &socket, "disk");
    assert!(matches!(outcome, Err(Error::TooSmall { image: SIZE, .. })), "{outcome:?}");
}

#[test]
fn an_export_that_is_not_there_is_an_error_with_the_servers_words() {
    let bench = Bench::new();
    let outcome = copied(&bench, &bench.socket(), "other");
    let Err(Error::Refused { code: reply::UNKNOWN, text }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(text, "there is no such export");
}

#[test]
fn an_error_of_the_server_is_the_cause_of_the_failure() {
    let bench = Bench::new();
    let full = File::options().write(true).open("/dev/full").expect("/dev/full is there");
    let socket = bench.path("full");
    let _server = serve(&socket, vec![export("disk", &full, SIZE)]);
    let outcome = copied(&bench, &socket, "disk");
    assert!(matches!(outcome, Err(Error::Failed { errno: 28, .. })), "{outcome:?}");
}

#[test]
fn sixteen_requests_wait_for_answers_that_come_in_any_order() {
    let outcome = against(|peer| {
        let mut waiting = Vec::new();
        let mut replies = 0;
        loop {
            while waiting.len() < 16 {
                match request(peer) {
                    Request { command: command::DISC, .. } => return replies,
                    Request { command: command::FLUSH, cookie, .. } => waiting.push(cookie),
                    Request { cookie, .. } => {
                        waiting.push(cookie);
                        if waiting.len() + replies < BLOCKS {
                            continue;
                        }
                    }
                }
                break;
            }
            assert_nothing_to_read(peer);
            replies += waiting.len();
            for cookie in waiting.drain(..).rev() {
                answer(peer, 0, cookie);
            }
        }
    });
    outcome.0.expect("copied");
    assert_eq!(outcome.1, BLOCKS + 1, "each block and the FLUSH");
}

#[test]
fn a_peer_that_will_answer_no_more_is_noticed_though_it_leaves_the_requests_unread() {
    let (outcome, _peer) = against(|peer| {
        peer.shutdown(Shutdown::Write).expect("shut down");
        peer.try_clone().expect("a descriptor")
    });
    assert!(matches!(outcome, Err(Error::Closed { .. })), "{outcome:?}");
}

#[test]
fn a_connection_that_ends_early_is_an_error() {
    let (outcome, _) = against(|peer| {
        let cookie = request(peer).cookie;
        answer(peer, 0, cookie);
    });
    assert!(matches!(outcome, Err(Error::Closed { .. } | Error::Connection(_))), "{outcome:?}");
}

#[test]
fn an_answer_to_nothing_is_an_error() {
    let (outcome, _) = against(|peer| {
        request(peer);
        answer(peer, 0, 0xdead);
        drain(peer);
    });
    assert!(matches!(outcome, Err(Error::UnknownCookie(0xdead))), "{outcome:?}");
}

#[test]
fn a_second_answer_is_an_error() {
    let (outcome, _) = against(|peer| {
        let cookie = request(peer).cookie;
        answer(peer, 0, cookie);
        answer(peer, 0, cookie);
        drain(peer);
    });
    assert!(matches!(outcome, Err(Error::UnknownCookie(_))), "{outcome:?}");
}

#[test]
fn an_answer_that_is_not_nbd_is_an_error() {
    let (outcome, _) = against(|peer| {
        request(peer);
        peer.write_all(&[0; Reply::LEN]).expect("written");
        drain(peer);
    });
    assert!(matches!(outcome, Err(Error::Magic { .. })), "{outcome:?}");
}

fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).expect("the server listens")
}

fn copied(bench: &Bench, socket: &Path, export: &str) -> Result<Copied, Error> {
    copy(&bench.source, SIZE, connect(socket), export, &|_| {})
}

const BLOCKS: usize = 40;

/// Copies an image of [`BLOCKS`] blocks of data to a peer that shakes hands as it should, and then follows the script.
fn against<T: Send>(script: impl FnOnce(&mut UnixStream) -> T + Send) -> (Result<Copied, Error>, T) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut image = tempfile::tempfile_in(dir.path()).expect("a file");
    image.write_all(&vec![7; BLOCKS * BLOCK]).expect("written");
    let socket = dir.path().join("peer");
    let listener = UnixListener::bind(&socket).expect("bound");
    thread::scope(|scope| {
        let peer = scope.spawn(move || {
            let (mut peer, _) = listener.accept().expect("the copier connects");
            peer.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
            shake_hands(&mut peer);
            script(&mut peer)
        });
        let outcome = copy(&image, (BLOCKS * BLOCK) as u64, connect(&socket), "disk", &|_| {});
        (outcome, peer.join().expect("the script is followed"))
    })
}

fn shake_hands(peer: &mut UnixStream) {
    peer.write_all(&Greeting { flags: 3 }.encode()).expect("written");
    let mut bytes = [0; 4 + OptionHeader::LEN];
    peer.read_exact(&mut bytes).expect("flags and an option");
    let header = OptionHeader::decode(&bytes[4..]).expect("an option");
    peer.read_exact(&mut vec![0; header.length as usize]).expect("the option's data");
    let flags = can::HAS_FLAGS | can::FLUSH | can::WRITE_ZEROES;
    let data = ExportInfo { size: (BLOCKS * BLOCK) as u64, flags }.encode_info();
    for (kind, data) in [(reply::INFO, &data[..]), (reply::ACK, &[])] {
        let header = OptionReply { option: option::GO, kind, length: data.len() as u32 };
        peer.write_all(&[&header.encode(), data].concat()).expect("written");
    }
}

/// The next request; its payload is read and forgotten.
fn request(peer: &mut UnixStream) -> Request {
    let mut bytes = [0; Request::LEN];
    peer.read_exact(&mut bytes).expect("a request");
    let request = Request::decode(&bytes).expect("a request");
    if request.command == command::WRITE {
        peer.read_exact(&mut vec![0; request.length as usize]).expect("the payload");
    }
    request
}

fn answer(peer: &mut UnixStream, errno: u32, cookie: u64) {
    peer.write_all(&Reply { errno, cookie }.encode()).expect("written");
}

/// Reads until the copier has hung up, so that what ends the connection is its doing.
fn drain(peer: &mut UnixStream) {
    std::io::copy(peer, &mut std::io::sink()).expect("the copier hangs up");
}

fn assert_nothing_to_read(peer: &mut UnixStream) {
    peer.set_nonblocking(true).expect("set");
    let read = peer.read(&mut [0]);
    assert!(matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock), "too much was asked: {read:?}");
    peer.set_nonblocking(false).expect("set");
}
