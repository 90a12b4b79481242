//! What a stream costs on which nothing moves.

mod io_support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use io_support::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virbistream::io::{Address, Listener, Permissions, SessionOptions, Socket, UnixTargets};
use virbistream::proto::Side;
use virbistream::wire::Open;

/// A stream needs four descriptors here, a socket at each end and the two that they are connected to.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// The most bytes that the near and the far end held for so many streams, each of which has carried a byte each way and then
/// nothing.
fn held(streams: usize) -> [i64; 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.sock");
    let server = UnixListener::bind(&path).unwrap();
    let mut targets = UnixTargets::new();
    targets.insert("disk", path);
    let mut options = SessionOptions { targets: Arc::new(targets), ..SessionOptions::default() };
    options.config.max_streams = 2000;

    let (near, far) = (Node::without_reports(), Node::without_reports());
    let peer = Socket::connect(&far.listen(options), PATIENCE).unwrap();
    let session = near.handle.attach(peer, Side::Connecting, SessionOptions::default());
    let path = dir.path().join("near.sock");
    let listener = Listener::bind(&Address::Unix(path.clone()), Permissions::default()).unwrap();
    let forward = near.handle.forward(listener, Open { target: "disk".into(), ..Open::default() });
    near.handle.route(forward, Some(session));

    let open: Vec<[UnixStream; 2]> = (0..streams)
        .map(|_| {
            let client = patient(UnixStream::connect(&path).unwrap());
            let ends = [client, accept(&server)];
            for (mut from, mut to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                from.write_all(b"x").unwrap();
                to.read_exact(&mut [0]).unwrap();
            }
            ends
        })
        .collect();
    // One after the other, so that ending them holds no more than they did.
    for [client, server] in open {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(to_eof(&server), []);
        drop(server);
        assert_eq!(to_eof(&client), []);
    }
    [near, far].map(|node| i64::try_from(node.stop().bytes_max).unwrap())
}

#[test]
fn an_idle_stream_costs_at_most_a_kib_at_each_end() {
    allow_descriptors();
    let (few, many) = (held(100), held(1100));
    let each = [0, 1].map(|end| (many[end] - few[end]) / 1000);
    assert!(each.iter().all(|bytes| (1..=1024).contains(bytes)), "{each:?} bytes for each idle stream, near and far");
}
