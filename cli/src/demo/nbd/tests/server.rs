use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::tools::{run, succeed, uri};
use super::{Bench, SIZE, allocated, assert_same, export, named, serve};
use crate::demo::images;
use crate::demo::nbd::client;
use crate::demo::nbd::proto::{
    Greeting, InfoRequest, MAX_OPTION, MAX_PAYLOAD, OptionHeader, OptionReply, Reply, Request, command, option, reply,
};

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

#[test]
fn nbdinfo_sees_what_an_export_can_do() {
    let bench = Bench::new();
    let text = succeed("nbdinfo", ["--json", &uri(&bench.socket(), "disk")]);
    let json: Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    assert_eq!(json["protocol"], "newstyle-fixed");
    let export = &json["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["is_read_only"], false);
    for ability in ["can_flush", "can_fua", "can_multi_conn", "can_zero"] {
        assert_eq!(export[ability], true, "{ability}");
    }
    for inability in ["can_cache", "can_df", "can_fast_zero", "can_trim", "is_rotational"] {
        assert_eq!(export[inability], false, "{inability}");
    }
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_maximum"], MAX_PAYLOAD);
}

#[test]
fn nbdinfo_lists_every_export_in_order() {
    let bench = Bench::new();
    let socket = bench.path("three");
    let sizes = [("disk0", 4096), ("disk1", 1 << 20), ("disk2", SIZE)];
    let _server = serve(&socket, sizes.map(|(name, size)| export(name, &bench.copy, size)).into());
    let text = succeed("nbdinfo", ["--list", "--json", &uri(&socket, "")]);
    let json: Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    let exports = json["exports"].as_array().expect("a list");
    let listed: Vec<_> = exports.iter().map(|export| (&export["export-name"], &export["export-size"])).collect();
    assert_eq!(listed.len(), sizes.len());
    for ((name, size), (wanted_name, wanted_size)) in listed.into_iter().zip(sizes) {
        assert_eq!((name, size), (&wanted_name.into(), &wanted_size.into()));
    }
}

#[test]
fn nbdinfo_is_told_that_there_is_no_such_export() {
    let bench = Bench::new();
    let output = run("nbdinfo", [uri(&bench.socket(), "other")]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(complaint.contains("No such file or directory for export: other"), "{complaint}");
}

#[test]
fn nbdcopy_writes_an_image_and_its_holes_stay_holes() {
    let bench = Bench::new();
    succeed("nbdcopy", [bench.source_path().as_os_str(), uri(&bench.socket(), "disk").as_ref()]);
    assert_same(&bench.source, &bench.copy);
    assert!(allocated(&bench.copy) <= allocated(&bench.source));
}

#[test]
fn nbdcopy_reads_an_image_back() {
    let bench = Bench::new();
    let socket = bench.path("source");
    let _server = serve(&socket, vec![export("source", &bench.source, SIZE)]);
    let path = bench.path("copy");
    succeed("nbdcopy", [uri(&socket, "source").as_ref(), path.as_os_str()]);
    assert_same(&bench.source, &File::open(path).expect("nbdcopy wrote the file"));
}

#[test]
fn nbdcopy_can_ask_for_zeroes_without_holes() {
    let bench = Bench::new();
    let arguments = [bench.source_path(), uri(&bench.socket(), "disk").into()];
    succeed("nbdcopy", ["--allocated".into()].into_iter().chain(arguments));
    assert_same(&bench.source, &bench.copy);
    assert!(allocated(&bench.copy) >= SIZE, "{} of {SIZE} bytes are allocated", allocated(&bench.copy));
}

#[test]
fn nbdcopy_copies_from_one_server_to_the_other() {
    let bench = Bench::new();
    let socket = bench.path("source");
    let _server = serve(&socket, vec![export("source", &bench.source, SIZE)]);
    succeed("nbdcopy", ["--flush", &uri(&socket, "source"), &uri(&bench.socket(), "disk")]);
    assert_same(&bench.source, &bench.copy);
}

#[test]
fn qemu_img_converts_to_and_from_the_server() {
    let bench = Bench::new();
    let (source, uri) = (bench.source_path(), uri(&bench.socket(), "disk"));
    let formats = ["-f", "raw", "-O", "raw"].map(String::from);
    let to = ["convert".to_owned(), "-n".to_owned()].into_iter().chain(formats.clone());
    succeed("qemu-img", to.chain([source.display().to_string(), uri.clone()]));
    assert_same(&bench.source, &bench.copy);
    assert!(allocated(&bench.copy) <= allocated(&bench.source));

    let path = bench.path("copy");
    let from = ["convert".to_owned()].into_iter().chain(formats);
    succeed("qemu-img", from.chain([uri, path.display().to_string()]));
    assert_same(&bench.source, &File::open(path).expect("qemu-img wrote the file"));
}

#[test]
fn a_client_of_the_oldest_newstyle_gets_its_export() {
    let bench = Bench::new();
    for (flags, padding) in [(0u32, 124), (3, 0)] {
        let mut client = connected(&bench.socket());
        client.write_all(&flags.to_be_bytes()).expect("written");
        client.write_all(&OptionHeader { option: option::EXPORT_NAME, length: 4 }.encode()).expect("written");
        client.write_all(b"disk").expect("written");
        let mut size = [0; 8];
        client.read_exact(&mut size).expect("the size");
        assert_eq!(u64::from_be_bytes(size), SIZE);
        client.read_exact(&mut vec![0; 2 + padding]).expect("the flags");
        assert_eq!(ask(&mut client, Request { command: command::FLUSH, ..READ }, &[]), 0);
    }
}

#[test]
fn an_unknown_option_is_refused_and_the_next_one_heard() {
    let bench = Bench::new();
    let mut client = greeted(&bench.socket());
    assert_eq!(negotiate(&mut client, 5, &[]), reply::UNSUPPORTED, "STARTTLS");
    assert_eq!(negotiate(&mut client, 10, b"whatever this is"), reply::UNSUPPORTED, "SET_META_CONTEXT");
    assert_eq!(negotiate(&mut client, option::INFO, b"too short"), reply::INVALID);
    assert_eq!(negotiate(&mut client, option::LIST, b"what for"), reply::INVALID);
    let other = InfoRequest { name: "other".to_owned() }.encode().expect("short");
    assert_eq!(negotiate(&mut client, option::GO, &other), reply::UNKNOWN);
    assert_eq!(negotiate(&mut client, option::ABORT, &[]), reply::ACK);
    assert_closed(client);
}

#[test]
fn an_option_longer_than_any_is_the_end() {
    let bench = Bench::new();
    let mut client = greeted(&bench.socket());
    client.write_all(&OptionHeader { option: option::GO, length: MAX_OPTION + 1 }.encode()).expect("written");
    assert_closed(client);
}

#[test]
fn what_is_not_nbd_is_the_end() {
    let bench = Bench::new();
    let mut client = greeted(&bench.socket());
    let mut bytes = OptionHeader { option: option::ABORT, length: 0 }.encode();
    bytes[0] ^= 1;
    client.write_all(&bytes).expect("written");
    assert_closed(client);
    let mut client = opened(&bench.socket());
    client.write_all(&[0; Request::LEN]).expect("written");
    assert_closed(client);
}

#[test]
fn a_request_beyond_the_end_is_refused_and_the_next_one_heard() {
    let bench = Bench::new();
    let mut client = opened(&bench.socket());
    let beyond = Request { offset: SIZE - 1, length: 2, ..READ };
    let overflow = Request { offset: u64::MAX, ..beyond };
    for request in [beyond, overflow] {
        assert_eq!(ask(&mut client, request, &[]), EINVAL);
        assert_eq!(ask(&mut client, Request { command: command::WRITE, ..request }, b"ab"), ENOSPC);
        assert_eq!(ask(&mut client, Request { command: command::WRITE_ZEROES, ..request }, &[]), ENOSPC);
    }
    assert_eq!(ask(&mut client, Request { command: command::WRITE, length: 1, ..beyond }, b"a"), 0);
    assert_eq!(bench.copy.metadata().expect("metadata").len(), SIZE, "the export did not grow");
}

#[test]
fn a_payload_longer_than_the_limit_is_refused_and_the_next_request_heard() {
    let bench = Bench::new();
    let socket = bench.path("large");
    let file = images::empty(bench.dir.path(), 1 << 30).expect("an image");
    let _server = serve(&socket, vec![export("disk", &file, 1 << 30)]);
    let mut client = opened(&socket);
    let request = Request { length: MAX_PAYLOAD + 1, ..READ };
    assert_eq!(ask(&mut client, request, &[]), EINVAL);
    let payload = vec![1; request.length as usize];
    assert_eq!(ask(&mut client, Request { command: command::WRITE, ..request }, &payload), EINVAL);
    assert_eq!(allocated(&file), 0, "nothing was written");
    let longest = Request { command: command::WRITE, length: MAX_PAYLOAD, ..READ };
    assert_eq!(ask(&mut client, longest, &payload[1..]), 0);
    let mut data = vec![0; MAX_PAYLOAD as usize];
    file.read_exact_at(&mut data, 0).expect("readable");
    assert!(data == payload[1..], "the longest WRITE was carried out");
}

#[test]
fn unknown_commands_and_flags_are_refused() {
    let bench = Bench::new();
    let mut client = opened(&bench.socket());
    let no_hole = command::FLAG_NO_HOLE;
    for (command, flags, wanted) in [
        (command::READ, no_hole, EINVAL),
        (command::FLUSH, no_hole, EINVAL),
        (command::WRITE_ZEROES, 1 << 4, EINVAL),
        (99, 0, EINVAL),
        (command::WRITE_ZEROES, no_hole | command::FLAG_FUA, 0),
        (command::FLUSH, command::FLAG_FUA, 0),
    ] {
        let request = Request { command, flags, length: 1, ..READ };
        assert_eq!(ask(&mut client, request, &[]), wanted, "{request:?}");
    }
}

#[test]
fn a_file_that_fails_is_an_error_of_the_request() {
    let bench = Bench::new();
    let full = File::options().write(true).open("/dev/full").expect("/dev/full is there");
    let socket = bench.path("full");
    let _server = serve(&socket, vec![export("disk", &full, SIZE)]);
    let mut client = opened(&socket);
    assert_eq!(ask(&mut client, Request { command: command::WRITE, length: 3, ..READ }, b"abc"), ENOSPC);
    assert_eq!(ask(&mut client, Request { length: 3, ..READ }, &[]), EIO);
    assert_eq!(ask(&mut client, Request { command: command::WRITE, length: 0, ..READ }, &[]), 0);
}

#[test]
fn write_zeroes_gives_back_the_space_of_data() {
    let bench = Bench::new();
    let socket = bench.path("source");
    let _server = serve(&socket, vec![export("disk", &bench.source, SIZE)]);
    let mut client = opened(&socket);
    let before = allocated(&bench.source);
    assert_eq!(ask(&mut client, Request { command: command::WRITE_ZEROES, length: SIZE as u32, ..READ }, &[]), 0);
    assert!(allocated(&bench.source) < before / 2, "{} of {before} bytes are left", allocated(&bench.source));
    assert_same(&bench.source, &bench.copy);
}

#[test]
fn a_dropped_server_ends_its_connections_and_takes_its_socket_away() {
    let bench = Bench::new();
    let socket = bench.socket();
    let idle = opened(&socket);
    let mut amid = opened(&socket);
    amid.write_all(&Request { command: command::WRITE, length: 100, ..READ }.encode()).expect("written");
    let (done, dropped) = channel();
    thread::spawn(move || {
        drop(bench.server);
        done.send(()).expect("somebody waits");
    });
    dropped.recv_timeout(Duration::from_secs(20)).expect("the server comes to its end");
    assert_closed(idle);
    assert_closed(amid);
    let refused = UnixStream::connect(&socket).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::NotFound);
}

const READ: Request = Request { flags: 0, command: command::READ, cookie: 7, offset: 0, length: 0 };

fn opened(socket: &Path) -> UnixStream {
    let mut client = UnixStream::connect(socket).expect("the server listens");
    client::open(&mut client, "disk").expect("the export is there");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    client
}

/// A connection that has heard the greeting.
fn connected(socket: &Path) -> UnixStream {
    let mut client = UnixStream::connect(socket).expect("the server listens");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    client.read_exact(&mut [0; Greeting::LEN]).expect("a greeting");
    client
}

fn greeted(socket: &Path) -> UnixStream {
    let mut client = connected(socket);
    client.write_all(&3u32.to_be_bytes()).expect("written");
    client
}

/// Sends an option and returns the kind of the reply to it.
fn negotiate(client: &mut UnixStream, option: u32, data: &[u8]) -> u32 {
    client.write_all(&OptionHeader { option, length: data.len() as u32 }.encode()).expect("written");
    client.write_all(data).expect("written");
    let mut bytes = [0; OptionReply::LEN];
    client.read_exact(&mut bytes).expect("a reply");
    let header = OptionReply::decode(&bytes).expect("a reply");
    assert_eq!(header.option, option);
    client.read_exact(&mut vec![0; header.length as usize]).expect("the reply's data");
    header.kind
}

/// Sends a request whose reply has no data, and returns the reply's error.
fn ask(client: &mut UnixStream, request: Request, payload: &[u8]) -> u32 {
    client.write_all(&request.encode()).expect("written");
    client.write_all(payload).expect("written");
    let mut bytes = [0; Reply::LEN];
    client.read_exact(&mut bytes).expect("a reply");
    let reply = Reply::decode(&bytes).expect("a reply");
    assert_eq!(reply.cookie, request.cookie);
    reply.errno
}

/// A server that leaves while bytes of ours are unread resets the connection; a tidy one just ends it.
fn assert_closed(mut client: UnixStream) {
    match client.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("the connection is still open: {other:?}"),
    }
}

#[test]
fn a_source_is_readable_for_other_programs() {
    let bench = Bench::new();
    assert_same(&bench.source, &File::open(named(&bench.source)).expect("by its descriptor"));
}
