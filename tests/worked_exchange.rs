//! docs/protocol.md, §14 shows what two sessions really say to each other.

use std::fmt::Write;
use std::time::Instant;

use virbistream::proto::{Config, Event, Session};
use virbistream::wire::{Decoder, Header, Open, PACKET_MAX, Piece, Procedure};

const DOCUMENT: &str = include_str!("../docs/protocol.md");

/// Takes one step: everything `from` owes, written down, then handed to `to`.
fn say(who: &str, from: &mut Session, to: &mut Session, data: &[u8], book: &mut String) {
    let now = Instant::now();
    let mut link = vec![0; 64 * 1024];
    let mut len = from.poll_control(now, &mut link);
    while let Some(grant) = from.poll_grant() {
        let stream = from.stream(grant.id).unwrap();
        if stream.stats().sent > 0 || data.is_empty() {
            stream.finish().unwrap();
        } else {
            let header = stream.send(data.len()).unwrap();
            link[len..len + 28].copy_from_slice(&header);
            link[len + 28..len + 28 + data.len()].copy_from_slice(data);
            len += 28 + data.len();
        }
        len += from.poll_control(now, &mut link[len..]);
    }
    let mut input = &link[..len];
    let mut decoder = Decoder::new(PACKET_MAX);
    while let Some(piece) = decoder.decode(&mut input).unwrap() {
        let Piece::Header { header, payload_len } = piece else { panic!("a payload without a header") };
        let (payload, rest) = input.split_at(payload_len as usize);
        if !payload.is_empty() {
            let end = decoder.decode(&mut input).unwrap();
            assert!(matches!(end, Some(Piece::Payload { remaining: 0, .. })));
        }
        assert_eq!(input, rest);
        write_down(who, &header, payload, book);
        if let Some(data) = to.handle_packet(now, &header, payload).unwrap() {
            to.stream(data.id).unwrap().consumed(data.bytes.len() as u64).unwrap();
        }
    }
}

fn write_down(who: &str, header: &Header, payload: &[u8], book: &mut String) {
    let procedure = Procedure::from_offset(header.procedure - 0x4253_0001).unwrap();
    let name = match (procedure, header.kind, header.status) {
        (Procedure::Data, _, 0) => "finish".to_owned(),
        (other, 1, _) => format!("{} reply", format!("{other:?}").to_uppercase()),
        (other, _, _) => format!("{other:?}").to_uppercase(),
    };
    writeln!(book, "{who} {name}").unwrap();
    let packet = [&header.encode(payload.len() as u32)[..], payload].concat();
    for line in packet.chunks(28) {
        let words: Vec<String> = line.chunks(4).map(|word| word.iter().map(|b| format!("{b:02x}")).collect()).collect();
        writeln!(book, "    {}", words.join(" ")).unwrap();
    }
}

#[test]
fn the_worked_exchange_of_the_document_is_what_two_sessions_say() {
    let now = Instant::now();
    let (mut a, mut b) = (Session::connect(Config::default(), now), Session::accept(Config::default(), now));
    let mut book = String::new();
    say("->", &mut a, &mut b, b"", &mut book);
    say("<-", &mut b, &mut a, b"", &mut book);
    let id = a.open(now, Open { target: "vda".into(), kind: 3, priority: 2, ..Open::default() }).unwrap();
    say("->", &mut a, &mut b, b"", &mut book);
    while let Some(event) = b.poll_event() {
        if let Event::Incoming { id, .. } = event {
            b.stream(id).unwrap().accept().unwrap();
        }
    }
    say("<-", &mut b, &mut a, b"", &mut book);
    a.stream(id).unwrap().ready();
    say("->", &mut a, &mut b, b"hello", &mut book);
    b.stream(id).unwrap().ready();
    say("<-", &mut b, &mut a, b"", &mut book);
    assert_eq!((a.stream_count(), b.stream_count()), (0, 0), "the stream is over at both ends");
    a.close();
    say("->", &mut a, &mut b, b"", &mut book);

    let shown =
        DOCUMENT.split("```text\n").find(|block| block.starts_with("-> HELLO")).and_then(|b| b.split("```").next());
    assert_eq!(shown, Some(book.as_str()), "docs/protocol.md, §14 should show:\n{book}");
}
