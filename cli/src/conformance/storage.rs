//! libvirt's one-way streams, up to and down from a volume that each case makes and deletes.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use virbistream::wire::{Header, PacketType, RemoteError, Status, domains};

use super::case::{Case, Fault, Needs, Setting, Verdict};
use super::peer::{Came, Peer, packet, procedures::*, remote, reply, string};

const CAPACITY: u64 = 2 << 20;
const SPARSE: u32 = 1;

/// The serial of the call that begins the stream, and so of its packets.
const STREAM: u32 = 40;

const ENOSPC: i32 = 28;

/// More than any stream here has.
const DOWNLOAD_MAX: usize = 256 << 20;

pub(super) fn cases() -> Vec<Case> {
    [transfers(), holes(), ends()].into_iter().flatten().collect()
}

/// A volume of `CAPACITY` bytes, and the connection that made it.
struct Volume<'a> {
    peer: &'a mut Peer,
    /// As libvirt's calls name it.
    name: Vec<u8>,
}

fn volume(name: &'static str, what: &'static str, test: fn(&mut Volume<'_>) -> Verdict) -> Case {
    Case::new(name, what, Needs::Pool, move |setting| {
        let mut peer = Peer::connect(setting)?;
        let name = make(&mut peer, setting)?;
        let verdict = test(&mut Volume { peer: &mut peer, name: name.clone() });
        drop(peer);
        verdict.and(delete(setting, &name))
    })
}

/// Like no other's, though process ids come again in containers.
fn volume_name() -> String {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("virbistream-conformance-{}-{time:x}", std::process::id())
}

fn make(peer: &mut Peer, setting: &Setting) -> Result<Vec<u8>, Fault> {
    peer.login()?;
    let pool = peer.call(STORAGE_POOL_LOOKUP_BY_NAME, 2, &string(setting.pool.as_deref().unwrap_or_default()))?;
    let xml = format!(
        "<volume><name>{}</name><capacity>{CAPACITY}</capacity><allocation>0</allocation>\
         <target><format type='raw'/></target></volume>",
        volume_name()
    );
    peer.call(STORAGE_VOL_CREATE_XML, 3, &[&pool[..], &string(&xml), &[0; 4]].concat())
}

/// The stream of a connection that has just ended may still have it in use.
fn delete(setting: &Setting, name: &[u8]) -> Verdict {
    let until = Instant::now() + setting.timeout;
    loop {
        let mut peer = Peer::connect(setting)?;
        peer.login()?;
        match peer.call(STORAGE_VOL_DELETE, 2, &[name, &[0; 4]].concat()) {
            Err(_) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            Err(fault) => return Err(Fault::new("the volume to be deleted", fault.got)),
            Ok(_) => return Ok(()),
        }
    }
}

impl Volume<'_> {
    /// Begins a stream, over `length` bytes from `offset`, 0 for all.
    fn begin(&mut self, procedure: u32, offset: u64, length: u64, flags: u32) -> Verdict {
        let arguments = [&self.name[..], &offset.to_be_bytes(), &length.to_be_bytes(), &flags.to_be_bytes()].concat();
        self.peer.call_for_stream(procedure, STREAM, &arguments).map(drop)
    }

    fn upload(&mut self, length: u64, flags: u32) -> Verdict {
        self.begin(STORAGE_VOL_UPLOAD, 0, length, flags)
    }

    fn send(&mut self, status: u32, bytes: &[u8]) -> Verdict {
        self.peer.send(&packet(&up(status), bytes))
    }

    fn hole(&mut self, length: i64, flags: u32) -> Verdict {
        let body = [&length.to_be_bytes()[..], &flags.to_be_bytes()].concat();
        self.peer.send(&packet(&hole(), &body))
    }

    /// Says that all was sent, which is confirmed.
    fn finish(&mut self) -> Verdict {
        self.send(0, &[])?;
        self.peer.expect(&up(0)).map(drop)
    }

    /// What the volume has, from `offset`.
    fn content(&mut self, offset: u64, length: u64, flags: u32) -> Result<Vec<u8>, Fault> {
        self.begin(STORAGE_VOL_DOWNLOAD, offset, length, flags)?;
        download(self.peer, STORAGE_VOL_DOWNLOAD, STREAM)
    }
}

fn up(status: u32) -> Header {
    Header { status, ..remote(STORAGE_VOL_UPLOAD, PacketType::Stream, STREAM, Status::Ok) }
}

fn down(status: Status) -> Header {
    remote(STORAGE_VOL_DOWNLOAD, PacketType::Stream, STREAM, status)
}

fn hole() -> Header {
    remote(STORAGE_VOL_UPLOAD, PacketType::StreamHole, STREAM, Status::Continue)
}

/// Reads a stream to its end and confirms it: all bytes, holes as zeroes.
pub(super) fn download(peer: &mut Peer, procedure: u32, serial: u32) -> Result<Vec<u8>, Fault> {
    let data = remote(procedure, PacketType::Stream, serial, Status::Continue);
    let hole = remote(procedure, PacketType::StreamHole, serial, Status::Continue);
    let mut bytes = Vec::new();
    loop {
        match peer.receive() {
            Came::Packet(packet) if packet.header == data && packet.payload.is_empty() => break,
            Came::Packet(_) if bytes.len() > DOWNLOAD_MAX => {
                return Err(Fault::new("an end of the stream", format!("{} bytes and more", bytes.len())));
            }
            Came::Packet(packet) if packet.header == data => bytes.extend(packet.payload),
            Came::Packet(packet) if packet.header == hole => {
                let length = zeroes(&packet.payload).filter(|length| *length <= DOWNLOAD_MAX);
                let length = length.ok_or_else(|| Fault::new("a hole", format!("{:02x?}", packet.payload)))?;
                bytes.resize(bytes.len() + length, 0);
            }
            other => return Err(Fault::new("data of the stream, or its end", other)),
        }
    }
    let finish = Header { status: 0, ..data };
    peer.send(&packet(&finish, &[]))?;
    peer.expect(&finish)?;
    Ok(bytes)
}

/// How many of them a hole stands for.
fn zeroes(body: &[u8]) -> Option<usize> {
    let (length, flags) = body.split_first_chunk()?;
    let length = usize::try_from(i64::from_be_bytes(*length)).ok()?;
    (flags == [0; 4] && length > 0).then_some(length)
}

fn same(expected: &[u8], got: &[u8]) -> Verdict {
    match expected.iter().zip(got).position(|(one, other)| one != other) {
        None if expected.len() == got.len() => Ok(()),
        None => Err(Fault::new(format!("{} bytes", expected.len()), format!("{} bytes", got.len()))),
        Some(at) => Err(Fault::new("the bytes that were sent", format!("others from byte {at} on"))),
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at) as u8 | 1).collect()
}

fn transfers() -> Vec<Case> {
    vec![
        volume("legacy/upload-and-download", "what is sent up comes down", |volume| {
            let bytes = pattern(CAPACITY as usize);
            volume.upload(0, 0)?;
            for piece in bytes.chunks(262_120) {
                volume.send(2, piece)?;
            }
            volume.finish()?;
            same(&bytes, &volume.content(0, 0, 0)?)?;
            same(&bytes[1000..101_000], &volume.content(1000, 100_000, 0)?)?;
            volume.peer.expect_serves()
        }),
        volume("legacy/upload-in-packets-of-1-mib", "they are taken", |volume| {
            let bytes = pattern(CAPACITY as usize);
            volume.upload(CAPACITY, 0)?;
            for piece in bytes.chunks(1 << 20) {
                volume.send(2, piece)?;
            }
            volume.finish()?;
            same(&bytes, &volume.content(0, 0, 0)?)?;
            volume.peer.expect_serves()
        }),
        volume("legacy/upload-of-nothing", "a finish at once is confirmed", |volume| {
            volume.upload(0, 0)?;
            volume.finish()?;
            volume.peer.expect_serves()
        }),
        volume("legacy/download-beyond-the-end", "the end comes at once", |volume| {
            same(&[], &volume.content(99_999_999, 0, 0)?)?;
            volume.peer.expect_serves()
        }),
        volume("legacy/sparse", "holes go up and come down", |volume| {
            let (head, tail) = (pattern(4096), pattern(65_536));
            let mut whole = [&head[..], &vec![0; 1 << 20], &tail].concat();
            let rest = CAPACITY as usize - whole.len();
            whole.resize(CAPACITY as usize, 0);
            volume.upload(0, SPARSE)?;
            volume.send(2, &head)?;
            volume.hole(1 << 20, 0)?;
            volume.send(2, &tail)?;
            // A hole cuts the volume behind it, so all of it is said.
            volume.hole(rest as i64, 0)?;
            volume.finish()?;
            same(&whole, &volume.content(0, 0, SPARSE)?)?;
            same(&whole, &volume.content(0, 0, 0)?)?;
            volume.peer.expect_serves()
        }),
    ]
}

fn holes() -> Vec<Case> {
    vec![
        volume("legacy/hole-without-sparse", "on a stream that is not sparse: closed", |volume| {
            volume.upload(0, 0)?;
            volume.hole(100, 0)?;
            volume.peer.expect_closed()
        }),
        volume("legacy/hole-with-short-body", "closed", |volume| {
            volume.upload(0, SPARSE)?;
            volume.peer.send(&packet(&hole(), &[0; 8]))?;
            volume.peer.expect_closed()
        }),
        volume("legacy/hole-of-negative-length", "a REPLY with an error, code 1", |volume| bad_hole(volume, -1, 0)),
        volume("legacy/hole-of-length-0", "a REPLY with an error, code 1", |volume| bad_hole(volume, 0, 0)),
        volume("legacy/hole-with-flags", "a REPLY with an error, code 1", |volume| bad_hole(volume, 100, 1)),
    ]
}

fn bad_hole(volume: &mut Volume<'_>, length: i64, flags: u32) -> Verdict {
    volume.upload(0, SPARSE)?;
    volume.hole(length, flags)?;
    let text = "Library function returned error but did not set virError";
    let error = RemoteError { str1: None, str2: None, ..RemoteError::new(1, domains::RPC, text) };
    volume.peer.expect_error(&reply(&hole(), Status::Error), &error)?;
    volume.peer.expect_serves()
}

fn ends() -> Vec<Case> {
    vec![
        volume("legacy/abort-upload", "STREAM OK", |volume| {
            volume.upload(0, 0)?;
            volume.send(2, &[7; 1000])?;
            volume.send(1, &[])?;
            volume.peer.expect(&up(0))?;
            volume.peer.expect_serves()
        }),
        volume("legacy/abort-download", "STREAM OK behind the data under way", |volume| {
            volume.begin(STORAGE_VOL_DOWNLOAD, 0, 0, 0)?;
            volume.peer.send(&packet(&down(Status::Error), &[]))?;
            finished_behind_data(volume.peer)?;
            volume.peer.expect_serves()
        }),
        volume("legacy/finish-download-early", "STREAM OK behind the data under way", |volume| {
            volume.begin(STORAGE_VOL_DOWNLOAD, 0, 0, 0)?;
            volume.peer.send(&packet(&down(Status::Ok), &[]))?;
            finished_behind_data(volume.peer)?;
            volume.peer.expect_serves()
        }),
        volume("legacy/stream-status-9", "a stream's error, code 39", |volume| {
            volume.upload(0, 0)?;
            volume.send(9, &[])?;
            let error = RemoteError::new(39, domains::STREAMS, "stream aborted with unexpected status 9");
            volume.peer.expect_error(&up(1), &error.with_ints(-1, -1))?;
            volume.peer.expect_serves()
        }),
        volume("legacy/upload-beyond-the-length", "a stream's error, code 38 with the errno", |volume| {
            volume.upload(4096, 0)?;
            volume.send(2, &[7; 8192])?;
            volume.peer.expect_error(&up(1), &no_space())?;
            volume.peer.expect_serves()
        }),
        volume(
            "legacy/upload-beyond-the-length-and-finish",
            "the error first; the finish may be confirmed",
            |volume| {
                volume.upload(4096, 0)?;
                volume.peer.send(&[packet(&up(2), &[7; 8192]), packet(&up(0), &[])].concat())?;
                volume.peer.expect_error(&up(1), &no_space())?;
                // The finish meets the stream or no longer does: libvirtd confirms it or says nothing.
                volume.peer.expect_serves_behind(&up(0))
            },
        ),
        volume("legacy/data-to-a-download", "a stream's error, code 39", |volume| {
            volume.begin(STORAGE_VOL_DOWNLOAD, 0, 0, 0)?;
            volume.peer.send(&packet(&down(Status::Continue), b"data"))?;
            let error = RemoteError::new(39, domains::STREAMS, "stream had unexpected termination");
            behind_data(volume.peer, |peer, packet| {
                let header = down(Status::Error);
                peer.judge_error(packet, &header, &error.clone().with_ints(-1, -1))
            })?;
            volume.peer.expect_serves()
        }),
        volume("legacy/data-after-finish", "the stream is over: no answer", |volume| {
            volume.upload(0, 0)?;
            volume.finish()?;
            volume.send(2, &[7; 100])?;
            volume.peer.expect_serves()
        }),
    ]
}

fn no_space() -> RemoteError {
    let text = "cannot write to stream: No space left on device";
    RemoteError::new(38, domains::STREAMS, text).with_ints(ENOSPC, -1)
}

fn finished_behind_data(peer: &mut Peer) -> Verdict {
    behind_data(peer, |_, packet| match packet {
        Came::Packet(packet) if packet.header == down(Status::Ok) => Ok(()),
        other => Err(Fault::new("STREAM OK behind the data", other)),
    })
}

/// What comes behind the data of a download.
fn behind_data(peer: &mut Peer, judge: impl Fn(&Peer, Came) -> Verdict) -> Verdict {
    loop {
        match peer.receive() {
            Came::Packet(packet) if packet.header == down(Status::Continue) => {}
            other => return judge(peer, other),
        }
    }
}
