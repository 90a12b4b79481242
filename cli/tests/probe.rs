//! What `probe` says of real peers and of those that are none.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;
use support::libvirtd::Libvirtd;
use support::process::{Finished, Run};
use support::tool::{ANY_PORT, assert_fails, serve, tool};
use support::{PATIENCE, Scratch};
use virbistream::wire::{HEADER_LEN, Header, PacketType, Procedure, ProgramId, RemoteError, Status, encode_packet};

fn probe(uri: &str) -> Run {
    tool().named("virbistream probe").args(["probe", uri])
}

fn probe_at(path: &Path) -> Run {
    probe(&format!("unix:{}", path.display()))
}

#[test]
fn a_real_libvirtd_is_legacy_and_serves_on_over_unix_and_tcp() {
    // HELLO's procedure, in the words of a real libvirtd.
    let unknown = "legacy\ncode: 39\ntext: unknown procedure: 1112735745\n";
    let libvirtd = Libvirtd::start();
    let percent = libvirtd.uri().replace("libvirt-sock", "libvirt%2Dsock");
    let plain = format!("unix:{}", libvirtd.socket().display());
    for uri in [libvirtd.uri(), percent, libvirtd.uri_of("test", "/default"), plain] {
        assert_legacy(&probe(&uri).finish(PATIENCE), unknown);
    }
    for uri in ["qemu+tcp://127.0.0.1/system", "qemu+tcp://127.0.0.1:16509/system", "tcp://127.0.0.1:16509"] {
        let within = probe(uri).in_namespace_of(Some(libvirtd.network()));
        assert_legacy(&within.finish(PATIENCE), unknown);
    }
    assert!(libvirtd.virsh(&["pool-list"]).contains("disks"));
}

#[track_caller]
fn assert_legacy(finished: &Finished, text: &str) {
    assert_eq!(finished.status.code(), Some(3), "{finished}");
    assert_eq!((&*finished.stdout, &*finished.stderr), (text, ""), "{finished}");
}

#[test]
fn serve_is_bistream_with_its_limits_and_its_session_ends_by_agreement() {
    let serve = serve(ANY_PORT, [("disk", Path::new("/nowhere"))]).args(["--max-streams", "7"]).start();
    let finished = probe(&serve.ready()).succeed(PATIENCE);
    let text = "bistream\nversion: 1\nfeatures: none\nmax-data: 262120\nmax-streams: 7\n";
    assert_eq!((&*finished.stdout, &*finished.stderr), (text, ""), "{finished}");
    serve.line_on_stderr("session that is closed", |line| line.ends_with(": closed"));
    serve.end_well(&[]);
}

/// A peer that takes HELLO, sends this and ends its direction; what it heard, to the end.
fn scripted(path: &Path, answer: Vec<u8>) -> JoinHandle<Vec<u8>> {
    let listener = UnixListener::bind(path).expect("a new socket");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut heard = vec![0; HEADER_LEN + 36];
        stream.read_exact(&mut heard).expect("HELLO");
        stream.write_all(&answer).expect("a peer that reads");
        stream.shutdown(std::net::Shutdown::Write).expect("an open socket");
        stream.read_to_end(&mut heard).expect("its end");
        heard
    })
}

/// The answer to the HELLO of a session: an error.
fn refusal(code: i32, text: &str) -> Vec<u8> {
    let header = ProgramId::default().header(Procedure::Hello, PacketType::Reply, 1, Status::Error);
    let mut packet = vec![0; 4096];
    let length = encode_packet(&header, &RemoteError::new(code, 7, text), &mut packet).expect("room");
    packet.truncate(length);
    packet
}

#[test]
fn a_legacy_peer_hears_hello_and_nothing_else() {
    for (code, name) in [(39, "rpc"), (3, "no-support")] {
        let scratch = Scratch::new();
        let path = scratch.join(name);
        let peer = scripted(&path, refusal(code, "wie bitte?\u{7}"));
        let finished = probe_at(&path).finish(PATIENCE);
        assert_legacy(&finished, &format!("legacy\ncode: {code}\ntext: wie bitte?\\u{{7}}\n"));
        let heard = peer.join().expect("no panic");
        let (length, header) = Header::decode(heard.first_chunk().expect("a header"));
        assert_eq!((length as usize, header.procedure), (heard.len(), 0x4253_0001));
    }
}

#[test]
fn what_is_no_peer_fails_with_its_reason() {
    for (answer, words) in [
        (refusal(45, "who are you?"), &["refused", "who are you?", "45"][..]),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n\r\n\r\n".to_vec(), &["does not speak libvirt's RPC", "HTTP"]),
        (vec![], &["lost"]),
        (refusal(39, "cut")[..40].to_vec(), &["lost"]),
    ] {
        let scratch = Scratch::new();
        let path = scratch.join("peer");
        let peer = scripted(&path, answer);
        assert_fails(probe_at(&path), &[&[&*path.to_string_lossy()], words].concat());
        drop(peer);
    }
}

#[test]
fn a_peer_that_is_not_there_or_says_nothing_fails_in_time() {
    let scratch = Scratch::new();
    let path = scratch.join("peer");
    assert_fails(probe_at(&path), &["cannot connect", "No such file"]);
    assert_fails(probe("tcp://127.0.0.1:1"), &["cannot connect", "Connection refused"]);
    let listener = UnixListener::bind(&path).expect("a new socket");
    assert_fails(probe_at(&path).args(["--timeout", "0.2"]), &["nothing to HELLO within 0.2 s"]);
    // The one above was never accepted: there is no room for who comes next.
    rustix::net::listen(&listener, 0).expect("a listener");
    assert_fails(probe_at(&path).args(["--timeout", "0.2"]), &["cannot connect", "time given has passed"]);
}

#[test]
fn a_uri_that_means_nothing_is_refused_and_named() {
    for (uri, word) in [("qemu+ssh://host/system", "ssh"), ("qemu+unix:///system?no_verify=1", "no_verify")] {
        let finished = probe(uri).finish(PATIENCE);
        assert_eq!(finished.status.code(), Some(2), "{finished}");
        assert!(finished.stderr.contains(word), "{finished}");
    }
}
