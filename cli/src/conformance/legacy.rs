//! What a real libvirtd 9.0 answers to what it does not expect, and to keepalive, descriptors and a half-close.

use virbistream::wire::{Header, PacketType, RemoteError, Status};

use super::case::{Case, Fault, Needs, Verdict};
use super::peer::{Came, Peer, UNKNOWN_PROCEDURE, call, packet, procedures::*, remote, reply, rpc_error, string};

const SERIAL: u32 = 7;
const NO_PROGRAM: u32 = 0x2000_8084;
const KEEPALIVE: u32 = 0x6b65_6570;

/// The argument of CONNECT_SUPPORTS_FEATURE, and the reply: a feature that every libvirtd has.
const FEATURE: [u8; 4] = 10u32.to_be_bytes();
const YES: [u8; 4] = 1u32.to_be_bytes();

/// What has to come.
enum Answer {
    Nothing,
    Error(Header, RemoteError),
    Reply(Header, Vec<u8>),
}

pub(super) fn cases() -> Vec<Case> {
    [calls(), silent(), closed(), more()].into_iter().flatten().collect()
}

/// Sends, judges the answer, and the connection has to serve on.
fn asks(name: &'static str, what: &'static str, needs: Needs, sent: Vec<u8>, answer: Answer) -> Case {
    Case::on_connection(name, what, needs, move |peer| {
        if needs == Needs::Login {
            peer.login()?;
        }
        peer.send(&sent)?;
        match &answer {
            Answer::Nothing => {}
            Answer::Error(header, error) => peer.expect_error(header, error)?,
            Answer::Reply(header, body) => expect_body(peer, header, body)?,
        }
        peer.expect_serves()
    })
}

fn expect_body(peer: &mut Peer, header: &Header, body: &[u8]) -> Verdict {
    let got = peer.expect(header)?;
    if got == body { Ok(()) } else { Err(Fault::new(format!("{body:02x?}"), format!("{got:02x?}"))) }
}

/// A call that is answered by this error.
fn refused(name: &'static str, what: &'static str, needs: Needs, header: Header, body: &[u8], text: &str) -> Case {
    let answer = Answer::Error(reply(&header, Status::Error), rpc_error(text));
    asks(name, what, needs, packet(&header, body), answer)
}

fn calls() -> Vec<Case> {
    use Needs::{Login, Nothing};
    let program = |program| Header { program, ..call(1, SERIAL) };
    let version = Header { version: 2, ..call(1, SERIAL) };
    let feature = call(CONNECT_SUPPORTS_FEATURE, SERIAL);
    let status = |status| Header { status, ..feature };
    let with_fds = |header: Header| Header { kind: PacketType::CallWithFds.as_wire(), ..header };
    let unknown = format!("unknown procedure: {UNKNOWN_PROCEDURE}");
    let undecodable = "Unable to decode message payload";
    let no_program = "Cannot find program 536903812 version 1";
    vec![
        refused(
            "legacy/unknown-procedure",
            "refused, code 39",
            Nothing,
            call(UNKNOWN_PROCEDURE, SERIAL),
            &[],
            &unknown,
        ),
        refused(
            "legacy/unknown-procedure-after-login",
            "refused, code 39",
            Login,
            call(UNKNOWN_PROCEDURE, SERIAL),
            &[],
            &unknown,
        ),
        refused(
            "legacy/unknown-procedure-with-body",
            "refused, code 39",
            Nothing,
            call(UNKNOWN_PROCEDURE, SERIAL),
            &[0xff; 1001],
            &unknown,
        ),
        refused("legacy/procedure-0", "refused, code 39", Nothing, call(0, SERIAL), &[], "unknown procedure: 0"),
        refused(
            "legacy/procedure-is-signed",
            "refused, its number printed as signed",
            Nothing,
            call(u32::MAX, SERIAL),
            &[],
            "unknown procedure: -1",
        ),
        refused("legacy/unknown-program", "refused, code 39", Nothing, program(NO_PROGRAM), &[], no_program),
        refused("legacy/unknown-program-after-login", "refused, code 39", Login, program(NO_PROGRAM), &[], no_program),
        refused(
            "legacy/program-is-signed",
            "refused, its number printed as signed",
            Nothing,
            program(0xffff_fff0),
            &[],
            "Cannot find program -16 version 1",
        ),
        refused(
            "legacy/unknown-version",
            "refused, code 39",
            Nothing,
            version,
            &[],
            "Cannot find program 536903814 version 2",
        ),
        refused(
            "legacy/call-status-1",
            "refused, code 39",
            Nothing,
            status(1),
            &FEATURE,
            "Unexpected message status 1",
        ),
        refused(
            "legacy/call-status-2",
            "refused, code 39",
            Nothing,
            status(2),
            &FEATURE,
            "Unexpected message status 2",
        ),
        refused(
            "legacy/call-status-9",
            "refused, code 39",
            Nothing,
            status(9),
            &FEATURE,
            "Unexpected message status 9",
        ),
        refused("legacy/no-arguments", "refused, code 39", Login, feature, &[], undecodable),
        refused("legacy/short-arguments", "refused, code 39", Login, feature, &FEATURE[..2], undecodable),
        refused(
            "legacy/giant-string",
            "a string of 4 GiB in an empty body is refused, code 39",
            Login,
            call(DOMAIN_LOOKUP_BY_NAME, SERIAL),
            &[0xff; 4],
            undecodable,
        ),
        asks(
            "legacy/bytes-after-arguments",
            "ignored, and the call answered",
            Login,
            packet(&feature, &[FEATURE, [5; 4]].concat()),
            Answer::Reply(reply(&feature, Status::Ok), YES.into()),
        ),
        Case::on_connection(
            "legacy/before-login",
            "a call that needs an open connection is refused, code 1",
            Login,
            |peer| {
                let header = call(CONNECT_GET_VERSION, SERIAL);
                peer.send(&packet(&header, &[]))?;
                peer.expect_error(&reply(&header, Status::Error), &not_open())?;
                peer.expect_serves()
            },
        ),
        asks(
            "legacy/no-descriptors",
            "CALL_WITH_FDS with none of them is a call, its reply a REPLY",
            Login,
            packet(&with_fds(feature), &[[0; 4], FEATURE].concat()),
            Answer::Reply(reply(&feature, Status::Ok), YES.into()),
        ),
        refused(
            "legacy/no-descriptors-unknown-procedure",
            "CALL_WITH_FDS with none of them is refused as a call is",
            Nothing,
            with_fds(call(UNKNOWN_PROCEDURE, SERIAL)),
            &[0; 4],
            &unknown,
        ),
    ]
}

fn not_open() -> RemoteError {
    let text = "hypervisor connection not open";
    RemoteError {
        str1: Some("internal error: %s".into()),
        str2: Some(text.into()),
        ..RemoteError::new(1, 7, format!("internal error: {text}")).with_ints(-1, -1)
    }
}

/// What is passed over: without a word, and the connection serves on.
fn silent() -> Vec<Case> {
    let quiet = |name, what, header: Header, body: &[u8]| {
        asks(name, what, Needs::Nothing, packet(&header, body), Answer::Nothing)
    };
    let feature = call(CONNECT_SUPPORTS_FEATURE, SERIAL);
    let kind = |kind| Header { kind, ..feature };
    let foreign = |kind| Header { program: NO_PROGRAM, kind, ..feature };
    let stream = |status| Header { kind: 3, status, ..call(STORAGE_VOL_UPLOAD, SERIAL) };
    let hole = remote(STORAGE_VOL_UPLOAD, PacketType::StreamHole, SERIAL, Status::Continue);
    let one_byte = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    vec![
        quiet("legacy/unknown-program-reply", "no answer", foreign(1), &[]),
        quiet("legacy/unknown-program-message", "no answer", foreign(2), &[]),
        quiet("legacy/unknown-program-stream", "no answer", foreign(3), &[]),
        quiet("legacy/unknown-program-hole", "no answer", foreign(6), &one_byte),
        quiet("legacy/stray-reply", "no answer", kind(1), &FEATURE),
        quiet("legacy/stray-message", "no answer", kind(2), &FEATURE),
        quiet("legacy/stray-reply-with-fds", "no answer", kind(5), &[0; 4]),
        quiet("legacy/type-7", "a type that there is not: no answer", kind(7), &FEATURE),
        quiet("legacy/type-4294967295", "a type that there is not: no answer", kind(u32::MAX), &FEATURE),
        quiet("legacy/stray-stream-finish", "no such stream: no answer", stream(0), &[]),
        quiet("legacy/stray-stream-abort", "no such stream: no answer", stream(1), &[]),
        quiet("legacy/stray-stream-data", "no such stream: no answer", stream(2), b"data"),
        quiet("legacy/stray-stream-status-9", "no such stream: no answer", stream(9), &[]),
        quiet("legacy/stray-hole", "no such stream: no answer", hole, &one_byte),
        quiet("legacy/keepalive-pong", "no answer", keepalive(2, 2), &[]),
        quiet("legacy/keepalive-unknown", "no answer", keepalive(9, 2), &[]),
    ]
}

fn keepalive(procedure: u32, kind: u32) -> Header {
    Header { program: KEEPALIVE, kind, ..call(procedure, 0) }
}

/// What ends the connection, without a word.
fn closed() -> Vec<Case> {
    let ends = |name, what, sent: Vec<u8>| {
        Case::on_connection(name, what, Needs::Nothing, move |peer| {
            // Not that it closes anyway.
            peer.expect_serves()?;
            peer.send(&sent)?;
            peer.expect_closed()
        })
    };
    let length = |length: u32| [&length.to_be_bytes()[..], &packet(&call(AUTH_LIST, SERIAL), &[])[4..]].concat();
    let with_fds = |count: u32| {
        let header = Header { kind: PacketType::CallWithFds.as_wire(), ..call(CONNECT_SUPPORTS_FEATURE, SERIAL) };
        packet(&header, &[count.to_be_bytes(), FEATURE].concat())
    };
    let no_count = Header { kind: PacketType::CallWithFds.as_wire(), ..call(AUTH_LIST, SERIAL) };
    // Descriptors come with bytes of their own, which those of another call are taken for.
    let descriptor = [with_fds(1), packet(&call(AUTH_LIST, SERIAL), &[])].concat();
    vec![
        ends("legacy/text", "no packets: closed", b"GET / HTTP/1.0\r\nHost: libvirt\r\n\r\n".into()),
        ends("legacy/length-0", "closed", length(0)),
        ends("legacy/length-4", "closed", length(4)),
        ends("legacy/length-27", "closed", length(27)),
        ends("legacy/length-33554437", "one more than the most: closed", length(33_554_437)),
        ends("legacy/length-4294967295", "closed", length(u32::MAX)),
        ends("legacy/descriptor-that-does-not-come", "CALL_WITH_FDS with 1: closed", descriptor),
        ends("legacy/descriptors-too-many", "CALL_WITH_FDS with 33: closed", with_fds(33)),
        ends("legacy/descriptors-without-count", "CALL_WITH_FDS without a body: closed", packet(&no_count, &[])),
    ]
}

fn more() -> Vec<Case> {
    let ping = keepalive(1, 2);
    let pong = keepalive(2, 2);
    let as_call = keepalive(1, 0);
    vec![
        asks(
            "legacy/keepalive",
            "PING is answered by PONG",
            Needs::Nothing,
            packet(&ping, &[]),
            Answer::Reply(pong, vec![]),
        ),
        asks(
            "legacy/keepalive-serial",
            "PONG has serial 0, whatever PING had",
            Needs::Nothing,
            packet(&Header { serial: 9, ..ping }, &[]),
            Answer::Reply(pong, vec![]),
        ),
        refused(
            "legacy/keepalive-call",
            "as a call the program is unknown",
            Needs::Nothing,
            as_call,
            &[],
            "Cannot find program 1801807216 version 1",
        ),
        Case::on_connection("legacy/longest-packet", "33554436 bytes are taken", Needs::Login, |peer| {
            peer.login()?;
            let header = call(CONNECT_SUPPORTS_FEATURE, SERIAL);
            let mut body = vec![0; 33_554_436 - 28];
            body[..4].copy_from_slice(&FEATURE);
            peer.send(&packet(&header, &body))?;
            expect_body(peer, &reply(&header, Status::Ok), &YES)?;
            peer.expect_serves()
        }),
        Case::on_connection("legacy/in-pieces", "a packet that comes byte by byte is one", Needs::Nothing, |peer| {
            let header = call(UNKNOWN_PROCEDURE, SERIAL);
            for byte in packet(&header, &[]) {
                peer.send(&[byte])?;
            }
            let unknown = rpc_error(format!("unknown procedure: {UNKNOWN_PROCEDURE}"));
            peer.expect_error(&reply(&header, Status::Error), &unknown)?;
            peer.expect_serves()
        }),
        Case::on_connection(
            "legacy/half-close",
            "what is answered is answered well, then the end",
            Needs::Nothing,
            |peer| {
                let header = call(UNKNOWN_PROCEDURE, SERIAL);
                peer.send(&packet(&header, &[]))?;
                peer.finish();
                // libvirtd may see the end before it has answered, and then does not.
                match peer.receive() {
                    Came::Closed => Ok(()),
                    Came::Packet(answer) if answer.header == reply(&header, Status::Error) => peer.expect_closed(),
                    other => Err(Fault::new("the answer or the end of the connection", other)),
                }
            },
        ),
        Case::on_connection(
            "legacy/half-a-packet",
            "an end in the middle of a packet: closed",
            Needs::Nothing,
            |peer| {
                peer.send(&packet(&call(AUTH_LIST, SERIAL), &[])[..20])?;
                peer.finish();
                peer.expect_closed()
            },
        ),
        Case::on_connection(
            "legacy/screenshot",
            "of the domain `test`: a stream of the image that the reply names, to its end",
            Needs::Login,
            screenshot,
        ),
    ]
}

fn screenshot(peer: &mut Peer) -> Verdict {
    peer.login_to("test:///default")?;
    let domain = peer.call(DOMAIN_LOOKUP_BY_NAME, 2, &string("test"))?;
    let kind = peer.call_for_stream(DOMAIN_SCREENSHOT, 3, &[&domain[..], &[0; 8]].concat())?;
    // Of libvirt's test driver it is the first, of QEMU the second.
    let images = [("image/png", &b"\x89PNG\r\n\x1a\n"[..]), ("image/x-portable-pixmap", b"P6")];
    let Some((_, magic)) = images.iter().find(|(name, _)| kind.ends_with(&string(name))) else {
        return Err(Fault::new("the type of an image", format!("{kind:02x?}")));
    };
    let image = super::storage::download(peer, DOMAIN_SCREENSHOT, 3)?;
    if !image.starts_with(magic) {
        return Err(Fault::new("such an image", format!("{} bytes that are none", image.len())));
    }
    peer.expect_serves()
}
