//! Links over TLS: who is let in, what holds of the bytes, and what attackers get.

#[path = "io_support/pki.rs"]
mod pki;
#[path = "io_support/tls.rs"]
mod tls;

mod io_support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use io_support::{Node, PATIENCE, Pattern, to_eof};
use pki::{Authority, Leaf, Wanted};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tls::{Between, Far, LEAVE_OUT, REPEAT, SPOIL, Tunnel, assert_carries, client_of, keys, server_of};
use virbistream::io::{
    Address, Identity, Listener, Permissions, Report, SessionKey, SessionOptions, Socket, TlsClient, TlsConfigError,
    TlsError, TlsKeys, TlsServer, TlsStream,
};
use virbistream::proto::{Config, Side};
use virbistream::wire::Header;

/// The end of the certificates here.
fn the_year_2090() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(3_786_912_000)
}

#[test]
fn a_session_over_tls_carries_every_byte_both_ways_and_each_end_knows_the_other() {
    let mut tunnel = Tunnel::new();
    for (node, key, names) in [
        (&mut tunnel.near, tunnel.near_key, vec!["127.0.0.1".to_owned(), "localhost".to_owned()]),
        (&mut tunnel.far.node, tunnel.far_key, vec![]),
    ] {
        let (version, identity) = node.wait("a link secured", |report| match report {
            Report::LinkSecured { session, version, identity } if *session == key => Some((*version, identity.clone())),
            _ => None,
        });
        let common_name = if names.is_empty() { "client" } else { "host" };
        assert_eq!(version, "TLS 1.3");
        let dn = format!("C=GB,O=Red\\, Hat,CN={common_name}");
        assert_eq!(identity, Identity::Certificate { dn, names, expires: the_year_2090() });
    }
    let (client, server) = tunnel.carry();
    assert_carries(&client, &server, 64 << 20);
    // Half-closed: the other way goes on.
    assert_carries(&server, &client, (8 << 20) + 1);
    tunnel.near.handle.close(tunnel.near_key);
    assert_eq!(tunnel.near.session_ended(tunnel.near_key), Ok(()));
    assert_eq!(tunnel.far.node.session_ended(tunnel.far_key), Ok(()));
}

#[test]
fn a_stream_that_nobody_reads_holds_no_other_up_over_tls() {
    let tunnel = Tunnel::new();
    let (mut stalled, server) = tunnel.carry();
    stalled.set_nonblocking(true).unwrap();
    let block = vec![0; 1 << 20];
    // Until neither the sockets nor the window take more: which they say for a while.
    let mut full_since = Instant::now();
    while full_since.elapsed() < Duration::from_millis(300) {
        if stalled.write(&block).is_ok() {
            full_since = Instant::now();
        } else {
            thread::yield_now();
        }
    }
    let (client, other) = tunnel.carry();
    assert_carries(&client, &other, 16 << 20);
    drop(server);
}

#[test]
fn small_messages_go_to_and_fro_over_tls() {
    let tunnel = Tunnel::new();
    let (mut client, mut server) = tunnel.carry();
    let mut byte = [0];
    for n in 0..2000u32 {
        client.write_all(&[n as u8]).unwrap();
        server.read_exact(&mut byte).unwrap();
        server.write_all(&[byte[0].wrapping_add(1)]).unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], (n as u8).wrapping_add(1));
    }
}

/// Connects with this; gives what each end is told: ours, and the accepting one's.
#[track_caller]
fn refused(far: &mut Far, address: &Address, tls: &TlsClient) -> [String; 2] {
    let mut near = Node::start();
    let socket = Socket::connect_tls(address, tls, PATIENCE).unwrap();
    let key = near.handle.attach(socket, Side::Connecting, SessionOptions::default());
    let ours = near.session_ended(key).expect_err("it is refused").to_string();
    [ours, far.next_end().expect_err("it is refused").to_string()]
}

#[test]
fn who_has_no_certificate_of_the_authority_that_is_valid_now_for_this_purpose_is_not_let_in_and_both_ends_say_why() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let mut far = Far::new(&server_of(&authority));
    let address = far.address.clone();
    let with = |leaf: &Leaf| TlsClient::new(keys(&authority, leaf)).unwrap();
    for (leaf, ours, theirs) in [
        (stranger.client("client"), "of no authority that it trusts", "of no authority that is trusted here"),
        (authority.sign(&Wanted { until: 2001, ..Wanted::default() }), "our certificate has expired", "has expired"),
        (
            authority.sign(&Wanted { purpose: ExtendedKeyUsagePurpose::ServerAuth, ..Wanted::default() }),
            "does not accept our certificate",
            "is not for this purpose",
        ),
    ] {
        let [near, far] = refused(&mut far, &address, &with(&leaf));
        assert!(near.contains(ours), "{near}");
        assert!(far.contains(theirs), "{far}");
    }
    // Who is let in after all of that.
    Tunnel::by(far, &address, &client_of(&authority));
}

#[test]
fn a_server_that_is_another_than_the_one_dialled_hears_nothing_of_the_session() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let server = |leaf: &Leaf| TlsServer::new(keys(&authority, leaf)).unwrap();
    let serving = ExtendedKeyUsagePurpose::ServerAuth;
    let named = |names| Wanted { names, purpose: serving.clone(), ..Wanted::default() };
    for (leaf, ours, theirs) in [
        (authority.sign(&named(&["elsewhere"])), "is not for `127.0.0.1`, which was dialled", "BadCertificate"),
        (authority.sign(&named(&[])), "is not for `127.0.0.1`", "BadCertificate"),
        (stranger.sign(&named(&["127.0.0.1"])), "of no authority that is trusted here", "trusts"),
        (authority.sign(&Wanted { until: 2001, ..named(&["127.0.0.1"]) }), "has expired", "has expired"),
        (
            authority.sign(&Wanted { names: &["127.0.0.1"], ..Wanted::default() }),
            "not for this purpose",
            "our certificate",
        ),
    ] {
        let mut far = Far::new(&server(&leaf));
        let address = far.address.clone();
        let [near, far] = refused(&mut far, &address, &client_of(&authority));
        assert!(near.contains(ours), "{near}");
        assert!(far.contains(theirs), "{far}");
    }
    // The same server, expected by the name that it has.
    let far = Far::new(&server(&authority.sign(&named(&["elsewhere"]))));
    let address = far.address.clone();
    Tunnel::by(far, &address, &client_of(&authority).expecting("elsewhere").unwrap());
}

#[test]
fn without_verification_anybody_may_answer_and_nobody_is_known() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let serving = ExtendedKeyUsagePurpose::ServerAuth;
    let leaf = stranger.sign(&Wanted { purpose: serving, ..Wanted::default() });
    let far = Far::new(&TlsServer::new(keys(&authority, &leaf)).unwrap());
    let address = far.address.clone();
    let client = TlsClient::without_verification(keys(&authority, &authority.client("client"))).unwrap();
    let mut tunnel = Tunnel::by(far, &address, &client);
    let identity = tunnel.near.wait("a link secured", |report| match report {
        Report::LinkSecured { identity, .. } => Some(identity.clone()),
        _ => None,
    });
    assert_eq!(identity, Identity::Unknown);
}

#[test]
fn what_is_no_tls_is_ended_at_once_with_a_sentence() {
    let authority = Authority::new("authority");
    let mut far = Far::new(&server_of(&authority));
    for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0; 28], &[0xff; 100_000], &io_support::hello()] {
        let mut stream = far.dial();
        // It may end the link before all is written.
        let _ = stream.write_all(bytes);
        let end = far.next_end().expect_err("no TLS").to_string();
        assert!(end.contains("the peer broke TLS"), "{end}");
    }
    let stream = far.dial();
    stream.shutdown(Shutdown::Write).unwrap();
    let end = far.next_end().expect_err("no TLS").to_string();
    assert!(end.contains("during the TLS handshake"), "{end}");
}

#[test]
fn a_handshake_that_does_not_end_is_ended_with_the_time_for_hello_however_it_trickles() {
    let authority = Authority::new("authority");
    for hello_timeout in [Some(Duration::from_millis(500)), None] {
        let mut far = Far::with(&server_of(&authority), |options| {
            options.config = Config { hello_timeout, ..Config::default() };
        });
        let begun = Instant::now();
        // One is silent, the other sends a record that seems to go on.
        let silent = far.dial();
        let mut slow = far.dial();
        slow.set_nodelay(true).unwrap();
        let trickle = thread::spawn(move || {
            let record = [&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 0x3000]].concat();
            for byte in record {
                // The pace of the attack; nothing is waited for.
                thread::sleep(Duration::from_millis(20));
                if slow.write_all(&[byte]).is_err() {
                    break;
                }
            }
        });
        for _ in 0..2 {
            let end = far.next_end().expect_err("it is ended").to_string();
            assert!(end.contains("the TLS handshake was not over within"), "{end}");
        }
        let patience = hello_timeout.unwrap_or(Duration::from_secs(10));
        assert!((patience..patience + Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert_eq!(far.node.handle.counters().handshakes_failed, 2);
        drop(silent);
        trickle.join().unwrap();
    }
}

#[test]
fn a_handshake_in_a_thousand_pieces_takes_a_bounded_buffer_and_ends() {
    let authority = Authority::new("authority");
    let mut far = Far::new(&server_of(&authority));
    let mut stream = far.dial();
    // A ClientHello of 65,535 bytes, one byte in each record.
    let header = [1, 0, 0xff, 0xff];
    for n in 0..65_535usize {
        let byte = header.get(n).copied().unwrap_or(0);
        if stream.write_all(&[0x16, 3, 1, 0, 1, byte]).is_err() {
            break;
        }
    }
    let end = far.next_end().expect_err("it is ended").to_string();
    assert!(end.contains("the peer broke TLS"), "{end}");
}

#[test]
fn a_stream_moves_on_while_two_hundred_handshakes_hang_and_they_are_ended() {
    let authority = Authority::new("authority");
    let far = Far::with(&server_of(&authority), |options| {
        options.config = Config { hello_timeout: Some(Duration::from_secs(3)), ..Config::default() };
    });
    let address = far.address.clone();
    let mut tunnel = Tunnel::by(far, &address, &client_of(&authority));
    let half_open: Vec<TcpStream> = (0..200).map(|_| tunnel.far.dial()).collect();
    for mut stream in &half_open {
        stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).unwrap();
    }
    let keys: Vec<SessionKey> = half_open.iter().map(|_| tunnel.far.node.link_accepted()).collect();
    let (client, server) = tunnel.carry();
    let begun = Instant::now();
    assert_carries(&client, &server, 32 << 20);
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    for key in keys {
        let end = tunnel.far.node.session_ended(key).expect_err("it is ended").to_string();
        assert!(end.contains("the TLS handshake was not over within 3 s"), "{end}");
    }
    let (client, server) = tunnel.carry();
    assert_carries(&client, &server, 1 << 20);
}

/// A client of rustls' own, with a certificate, whose handshake over a link is over.
fn client_without_us(mut link: TcpStream, authority: &Authority) -> (ClientConnection, TcpStream) {
    let leaf = authority.client("other");
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&authority.pem())).unwrap();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = config.with_client_auth_cert(vec![certificate(&leaf.certificate)], key).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut link).unwrap();
    }
    (connection, link)
}

#[test]
fn keys_that_the_peer_asks_to_renew_are_renewed_and_bytes_go_on() {
    const LEN: usize = 327_680;
    let authority = Authority::new("authority");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut stream = TlsStream::server(listener.accept().unwrap().0, &server_of(&authority)).unwrap();
    let answering = thread::spawn(move || {
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            stream.write_all(&[byte[0]; LEN]).unwrap();
            stream.flush().unwrap();
        }
        stream.finish().unwrap();
    });
    let (mut connection, mut link) = client_without_us(link, &authority);
    let mut stream = rustls::Stream::new(&mut connection, &mut link);
    // libvirt's word.
    stream.read_exact(&mut [0]).unwrap();
    for byte in 0..5 {
        stream.conn.refresh_traffic_keys().unwrap();
        stream.write_all(&[byte]).unwrap();
        let mut came = vec![0; LEN];
        stream.read_exact(&mut came).unwrap();
        assert!(came.iter().all(|it| *it == byte));
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    answering.join().unwrap();
}

#[test]
fn tls_own_messages_without_end_hold_no_other_session_up() {
    let authority = Authority::new("authority");
    let far = Far::with(&server_of(&authority), |options| options.config.hello_timeout = None);
    let address = far.address.clone();
    let tunnel = Tunnel::by(far, &address, &client_of(&authority));
    let (mut here, mut there) = tunnel.carry();
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while there.read_exact(&mut byte).is_ok() {
            there.write_all(&byte).unwrap();
        }
    });
    let (mut connection, mut link) = client_without_us(tunnel.far.dial(), &authority);
    connection.set_buffer_limit(None);
    // What makes it more than the messages that rustls lets pass in a row are bytes of a long packet.
    let packet = Header { program: 1, version: 1, procedure: 1, kind: 2, serial: 0, status: 0 };
    connection.writer().write_all(&packet.encode(1 << 20)).unwrap();
    let mut flood = Vec::new();
    while flood.len() < 24 << 20 {
        (0..31).for_each(|_| connection.refresh_traffic_keys().unwrap());
        connection.writer().write_all(&[7]).unwrap();
        connection.write_tls(&mut flood).unwrap();
    }
    let begun = Instant::now();
    let flooding = thread::spawn(move || link.write_all(&flood).unwrap());
    let mut longest = Duration::ZERO;
    while !flooding.is_finished() {
        let asked = Instant::now();
        here.write_all(&[1]).unwrap();
        here.read_exact(&mut [0]).unwrap();
        longest = longest.max(asked.elapsed());
    }
    flooding.join().unwrap();
    assert!(longest < begun.elapsed() / 4, "{longest:?} of {:?}", begun.elapsed());
    drop(here);
    echo.join().unwrap();
}

#[test]
fn a_link_that_is_cut_without_close_notify_is_told_from_one_that_ended() {
    let authority = Authority::new("authority");
    let far = Far::new(&server_of(&authority));
    let between = Between::new(far.port());
    let mut tunnel = Tunnel::by(far, &between.address, &client_of(&authority));
    let (client, _server) = tunnel.carry();
    for link in between.links.recv().unwrap() {
        link.shutdown(Shutdown::Both).unwrap();
    }
    let near = tunnel.near.session_ended(tunnel.near_key).expect_err("it is cut").to_string();
    let far = tunnel.far.node.session_ended(tunnel.far_key).expect_err("it is cut").to_string();
    for end in [near, far] {
        assert!(end.contains("the TLS connection was cut"), "{end}");
    }
    assert_eq!(to_eof(client), b"");
}

#[test]
fn a_record_that_is_changed_repeated_or_left_out_ends_the_session_before_a_wrong_byte_is_delivered() {
    let said = b"what nobody may change";
    for (mode, delivered) in [(SPOIL, &b""[..]), (REPEAT, said), (LEAVE_OUT, b"")] {
        let authority = Authority::new("authority");
        let far = Far::new(&server_of(&authority));
        let between = Between::new(far.port());
        let mut tunnel = Tunnel::by(far, &between.address, &client_of(&authority));
        let (mut client, server) = tunnel.carry();
        between.mode.store(mode, Ordering::Relaxed);
        client.write_all(said).unwrap();
        if mode == LEAVE_OUT {
            let deadline = Instant::now() + PATIENCE;
            while between.mode.load(Ordering::Relaxed) == LEAVE_OUT {
                assert!(Instant::now() < deadline, "nothing passed");
                thread::yield_now();
            }
            client.write_all(b"and more").unwrap();
        }
        assert_eq!(to_eof(server), delivered, "{mode}");
        let far = tunnel.far.node.session_ended(tunnel.far_key).expect_err("it is broken").to_string();
        assert!(far.contains("the peer broke TLS"), "{mode}: {far}");
        // The alert that tells us comes as everything does.
        let near = tunnel.near.session_ended(tunnel.near_key).expect_err("it is broken").to_string();
        assert!(near.contains("TLS"), "{mode}: {near}");
    }
}

#[test]
fn certificates_are_replaced_for_those_who_come_later() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let server = server_of(&first);
    let far = Far::new(&server);
    let address = far.address.clone();
    let tunnel = Tunnel::by(far, &address, &client_of(&first));
    // What is wrong changes nothing.
    let mismatched = Leaf { key: second.server().key, ..second.server() };
    server.reload(keys(&second, &mismatched)).unwrap_err();
    let Tunnel { far, near: _first, .. } = tunnel;
    let tunnel = Tunnel::by(far, &address, &client_of(&first));
    server.reload(keys(&second, &second.server())).unwrap();
    // Who is in stays.
    let (client, other) = tunnel.carry();
    assert_carries(&client, &other, 1 << 20);
    let Tunnel { mut far, near: _near, .. } = tunnel;
    let [ours, _] = refused(&mut far, &address, &client_of(&first));
    assert!(ours.contains("of no authority that is trusted here"), "{ours}");
    let tunnel = Tunnel::by(far, &address, &client_of(&second));
    let (client, other) = tunnel.carry();
    assert_carries(&client, &other, 1 << 20);
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let authority = Authority::new("authority");
    let dir = tempfile::tempdir().unwrap();
    authority.fill(dir.path());
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("junk"), "no PEM at all").unwrap();
    std::fs::write(path("torn"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    std::fs::write(path("noise"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let made = |authority: &str, certificate: &str, key: &str| {
        TlsKeys::read(&path(authority), &path(certificate), &path(key)).and_then(TlsServer::new)
    };
    made("cacert.pem", "servercert.pem", "serverkey.pem").unwrap();
    for (files, named, words) in [
        (["nothing", "servercert.pem", "serverkey.pem"], "nothing", "cannot read"),
        (["cacert.pem", "nothing", "serverkey.pem"], "nothing", "cannot read"),
        (["junk", "servercert.pem", "serverkey.pem"], "junk", "no certificate in PEM"),
        (["cacert.pem", "torn", "serverkey.pem"], "torn", "no certificate in PEM"),
        (["cacert.pem", "servercert.pem", "servercert.pem"], "servercert.pem", "no private key in PEM"),
        (["noise", "servercert.pem", "serverkey.pem"], "noise", "no certificate of an authority"),
        (["cacert.pem", "servercert.pem", "clientkey.pem"], "clientkey.pem", "it is of another key"),
    ] {
        let error = made(files[0], files[1], files[2]).expect_err(named).to_string();
        assert!(error.contains(named) && error.contains(words), "{error}");
    }
    let error = client_of(&authority).expecting("no name!").unwrap_err();
    assert!(matches!(error, TlsConfigError::Name(_)), "{error}");
}

#[test]
fn an_address_with_tls_is_never_used_without() {
    let authority = Authority::new("authority");
    let (tls, tcp): (Address, Address) = ("tls://127.0.0.1:0".parse().unwrap(), "tcp://127.0.0.1:0".parse().unwrap());
    let errors = [
        Listener::bind(&tls, Permissions::default()).map(drop),
        Listener::bind_tls(&tcp, server_of(&authority)).map(drop),
        Socket::connect(&tls, PATIENCE).map(drop),
        Socket::connect_tls(&tcp, &client_of(&authority), PATIENCE).map(drop),
    ];
    for error in errors {
        assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
    // Nor can it be a relay's.
    let far = Far::new(&server_of(&authority));
    let mut socket = Socket::connect_tls(&far.address, &client_of(&authority), PATIENCE).unwrap();
    assert_eq!(socket.write(b"secret").unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    assert_eq!(socket.read(&mut [0; 9]).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn a_stream_of_ones_own_has_tls_too_both_ways_to_its_orderly_end() {
    let authority = Authority::new("authority");
    let (near, far) = io_support::tcp_link();
    let (client, server) = (client_of(&authority), server_of(&authority));
    let served = thread::spawn(move || {
        let mut stream = TlsStream::server(far, &server).unwrap();
        stream.handshake().unwrap();
        // The server may be first.
        stream.write_all(b"welcome").unwrap();
        let came = to_eof(&mut stream);
        stream.write_all(&came).unwrap();
        stream.finish().unwrap();
        (came.len(), stream.identity().clone())
    });
    let mut stream = TlsStream::client(near, &client, "localhost").unwrap();
    let mut welcome = [0; 7];
    stream.read_exact(&mut welcome).unwrap();
    assert_eq!(&welcome, b"welcome");
    let (mut pattern, mut sent) = (Pattern::new(3), vec![0; 200_000]);
    pattern.fill(&mut sent);
    stream.write_all(&sent).unwrap();
    stream.finish().unwrap();
    assert!(to_eof(&mut stream) == sent);
    let (len, identity) = served.join().unwrap();
    assert_eq!(len, sent.len());
    let dn = "C=GB,O=Red\\, Hat,CN=client".into();
    assert_eq!(identity, Identity::Certificate { dn, names: vec![], expires: the_year_2090() });
}

#[test]
fn a_stream_that_is_cut_gives_a_typed_error_and_the_same_again() {
    let authority = Authority::new("authority");
    let (near, far) = io_support::tcp_link();
    let (client, server) = (client_of(&authority), server_of(&authority));
    let served = thread::spawn(move || {
        let mut stream = TlsStream::server(far, &server).unwrap();
        stream.handshake().unwrap();
        stream.write_all(b"half of it").unwrap();
        // And no word that this is the end.
    });
    let mut stream = TlsStream::client(near, &client, "localhost").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    served.join().unwrap();
    for _ in 0..2 {
        let error = stream.read(&mut [0; 10]).unwrap_err();
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsError>());
        assert_eq!(cause, Some(&TlsError::Truncated));
    }
}
