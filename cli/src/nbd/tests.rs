use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::disk::{Disk, Figures};
use super::observer::{From, Observer};
use super::wire::*;

/// What both say, piece by piece.
type Dialogue = Vec<(From, Vec<u8>)>;

const SIZE: u64 = 1 << 30;

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn greeting(flags: u16) -> (From, Vec<u8>) {
    (From::Server, join(&[&GREETING.to_be_bytes(), &OPTION.to_be_bytes(), &flags.to_be_bytes()]))
}

fn option(option: u32, data: &[u8]) -> (From, Vec<u8>) {
    let len = data.len() as u32;
    (From::Client, join(&[&OPTION.to_be_bytes(), &option.to_be_bytes(), &len.to_be_bytes(), data]))
}

fn answer(option: u32, kind: u32, data: &[u8]) -> (From, Vec<u8>) {
    let head = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    (From::Server, join(&[&OPTION_REPLY.to_be_bytes(), &head, data]))
}

fn hello() -> Dialogue {
    vec![greeting(FIXED_NEWSTYLE | NO_ZEROES), (From::Client, vec![0, 0, 0, 3])]
}

fn go(name: &str) -> Dialogue {
    let asked = join(&[&(name.len() as u32).to_be_bytes(), name.as_bytes(), &1u16.to_be_bytes(), &3u16.to_be_bytes()]);
    let export = join(&[&INFO_EXPORT.to_be_bytes(), &SIZE.to_be_bytes(), &[0, 0]]);
    let block_sizes = join(&[&3u16.to_be_bytes(), &[0; 12]]);
    vec![
        option(OPT_GO, &asked),
        answer(OPT_GO, REP_INFO, &export),
        answer(OPT_GO, REP_INFO, &block_sizes),
        answer(OPT_GO, REP_ACK, &[]),
    ]
}

fn request(command: u16, cookie: u64, len: u32) -> (From, Vec<u8>) {
    let payload = if command == CMD_WRITE { len as usize } else { 0 };
    let head = join(&[&REQUEST.to_be_bytes(), &[0, 0], &command.to_be_bytes(), &cookie.to_be_bytes(), &[0; 8]]);
    // A payload that looks like requests and replies.
    let noise = REQUEST.to_be_bytes().into_iter().chain(SIMPLE_REPLY.to_be_bytes()).cycle().take(payload);
    (From::Client, join(&[&head, &len.to_be_bytes(), &noise.collect::<Vec<_>>()]))
}

fn simple(cookie: u64, error: u32, data: u32) -> (From, Vec<u8>) {
    let noise = SIMPLE_REPLY.to_be_bytes().into_iter().cycle().take(data as usize).collect::<Vec<_>>();
    (From::Server, join(&[&SIMPLE_REPLY.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes(), &noise]))
}

fn chunk(cookie: u64, flags: u16, kind: u16, len: u32) -> (From, Vec<u8>) {
    let head = join(&[&STRUCTURED_REPLY.to_be_bytes(), &flags.to_be_bytes(), &kind.to_be_bytes()]);
    (From::Server, join(&[&head, &cookie.to_be_bytes(), &len.to_be_bytes(), &vec![0x67; len as usize]]))
}

fn long_request(command: u16, flags: u16, cookie: u64, len: u64, payload: usize) -> (From, Vec<u8>) {
    let head =
        join(&[&LONG_REQUEST.to_be_bytes(), &flags.to_be_bytes(), &command.to_be_bytes(), &cookie.to_be_bytes()]);
    (From::Client, join(&[&head, &[0; 8], &len.to_be_bytes(), &vec![0x21; payload]]))
}

fn long_chunk(cookie: u64, flags: u16, kind: u16, len: u64) -> (From, Vec<u8>) {
    let head = join(&[&LONG_REPLY.to_be_bytes(), &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes()]);
    (From::Server, join(&[&head, &[0; 8], &len.to_be_bytes(), &vec![0x6e; len as usize]]))
}

/// Feeds it in pieces of these lengths, by turns.
fn observe(dialogue: &Dialogue, pieces: &[usize]) -> Option<Figures> {
    let disk = Arc::new(Disk::default());
    let mut observer = Observer::new(Arc::clone(&disk), Arc::default());
    let mut lens = pieces.iter().copied().cycle();
    for (from, bytes) in dialogue {
        let mut left = &bytes[..];
        while !left.is_empty() {
            let (piece, rest) = left.split_at(lens.next().unwrap_or(usize::MAX).clamp(1, left.len()));
            observer.feed(*from, piece);
            left = rest;
        }
    }
    disk.figures()
}

fn figures(export: &str) -> Figures {
    let export = export.to_owned();
    Figures { export, size: SIZE, written: 0, zeroed: 0, trimmed: 0, read: 0, flushes: 0 }
}

#[test]
fn a_dialogue_with_refusals_and_errors_is_counted_by_its_successes() {
    let mut dialogue = hello();
    dialogue.extend([
        option(OPT_STARTTLS, &[]),
        answer(OPT_STARTTLS, REP_ERROR | 2, b"no"),
        option(OPT_STRUCTURED_REPLY, &[]),
        answer(OPT_STRUCTURED_REPLY, REP_ACK, &[]),
        option(3, &[]),
        answer(3, 2, b"\0\0\0\x03vdb"),
        answer(3, REP_ACK, &[]),
    ]);
    let mut refused = go("vdb");
    refused.truncate(1);
    dialogue.extend(refused);
    dialogue.push(answer(OPT_GO, REP_ERROR | 6, &[]));
    dialogue.extend(go("vda"));
    dialogue.extend([
        request(CMD_WRITE, 1, 5000),
        request(CMD_WRITE, 2, 700),
        request(CMD_READ, 3, 900),
        request(CMD_BLOCK_STATUS, 4, 1 << 20),
        simple(2, 28, 0),
        chunk(3, 0, 1, 408),
        simple(1, 0, 0),
        chunk(3, REPLY_DONE, 2, 12),
        chunk(4, REPLY_DONE, 5, 12),
        request(CMD_READ, 3, 900),
        chunk(3, 0, CHUNK_ERROR | 1, 6),
        chunk(3, REPLY_DONE, 0, 0),
        request(CMD_WRITE_ZEROES, 7, u32::MAX),
        request(CMD_TRIM, 8, 4096),
        request(CMD_FLUSH, 9, 0),
        simple(9, 0, 0),
        chunk(8, REPLY_DONE, 0, 0),
        simple(7, 0, 0),
        request(CMD_DISCONNECT, 0, 0),
    ]);
    let zeroed = u32::MAX.into();
    let expected = Figures { written: 5000, zeroed, trimmed: 4096, read: 900, flushes: 1, ..figures("vda") };
    for pieces in [&[][..], &[1], &[7, 1, 4096]] {
        assert_eq!(observe(&dialogue, pieces), Some(expected.clone()), "{pieces:?}");
    }
}

#[test]
fn the_older_way_to_an_export_is_known() {
    for (flags, zeroes) in [(0u8, 124), (2, 0)] {
        let export = join(&[&SIZE.to_be_bytes(), &[0, 0], &vec![0; zeroes]]);
        let mut dialogue = vec![greeting(FIXED_NEWSTYLE | NO_ZEROES), (From::Client, vec![0, 0, 0, 1 | flags])];
        dialogue.extend([option(OPT_EXPORT_NAME, b""), (From::Server, export)]);
        dialogue.extend([request(CMD_READ, 1, 600), simple(1, 0, 600), request(CMD_WRITE, 1, 6), simple(1, 0, 0)]);
        assert_eq!(observe(&dialogue, &[5]), Some(Figures { read: 600, written: 6, ..figures("") }));
    }
}

#[test]
fn lengths_of_64_bits_are_understood_where_they_were_agreed_upon() {
    let mut dialogue = hello();
    dialogue.extend([option(OPT_EXTENDED_HEADERS, &[]), answer(OPT_EXTENDED_HEADERS, REP_ACK, &[])]);
    dialogue.extend(go("vda"));
    dialogue.extend([
        long_request(CMD_WRITE, FLAG_PAYLOAD, 1, 5000, 5000),
        long_request(CMD_WRITE_ZEROES, 0, 2, 1 << 33, 0),
        long_request(CMD_READ, 0, 3, 700, 0),
        long_request(CMD_BLOCK_STATUS, FLAG_PAYLOAD, 4, 24, 24),
        long_request(CMD_TRIM, 0, 5, 4096, 0),
        long_chunk(2, REPLY_DONE, 0, 0),
        long_chunk(3, 0, 1, 708),
        long_chunk(1, REPLY_DONE, 0, 0),
        long_chunk(3, REPLY_DONE, 0, 0),
        long_chunk(4, REPLY_DONE, 6, 24),
        long_chunk(5, REPLY_DONE, CHUNK_ERROR | 1, 6),
        long_request(CMD_FLUSH, 0, 5, 0, 0),
        long_chunk(5, REPLY_DONE, 0, 0),
    ]);
    let expected = Figures { written: 5000, zeroed: 1 << 33, read: 700, flushes: 1, ..figures("vda") };
    for pieces in [&[][..], &[1], &[31, 33]] {
        assert_eq!(observe(&dialogue, pieces), Some(expected.clone()), "{pieces:?}");
    }
    for short in [request(CMD_FLUSH, 9, 0), simple(9, 0, 0)] {
        let padded = (short.0, [short.1, vec![0; 32]].concat());
        assert_eq!(observe(&[dialogue.clone(), vec![padded]].concat(), &[]), None);
    }
}

#[test]
fn it_falls_silent_where_another_language_begins() {
    let mut dialogue = hello();
    dialogue.extend([option(OPT_STARTTLS, &[]), answer(OPT_STARTTLS, REP_ACK, &[])]);
    dialogue.extend(go("vda"));
    assert_eq!(observe(&dialogue, &[]), None);
    let written = [request(CMD_WRITE, 1, 6), simple(1, 0, 0)];
    let unknown = [
        simple(77, 0, 0),
        request(99, 5, 0),
        chunk(1, REPLY_DONE, 0, 0),
        (From::Server, vec![0; 16]),
        (From::Client, vec![0; 28]),
    ];
    for unknown in unknown {
        let dialogue = [hello(), go("vda"), written.to_vec(), vec![unknown.clone()]].concat();
        assert_eq!(observe(&dialogue, &[]), None, "{unknown:?}");
    }
    // Twice the same cookie, and requests that nobody answers.
    let twice = [hello(), go("vda"), vec![request(CMD_FLUSH, 5, 0); 2]].concat();
    assert_eq!(observe(&twice, &[]), None);
    let many = (0..2000).map(|cookie| request(CMD_FLUSH, cookie, 0)).collect();
    assert_eq!(observe(&[hello(), go("vda"), many].concat(), &[]), None);
    // A stream of memory, and of libvirt: the client speaks first.
    assert_eq!(observe(&vec![(From::Client, b"QEVM".to_vec())], &[]), None);
}

/// What is asked, and what comes of it.
#[derive(Clone, Debug)]
struct Asked {
    command: u16,
    len: u32,
    fails: bool,
}

fn asked() -> impl Strategy<Value = Asked> {
    let command = prop::sample::select(vec![
        CMD_READ,
        CMD_WRITE,
        CMD_FLUSH,
        CMD_TRIM,
        CMD_CACHE,
        CMD_WRITE_ZEROES,
        CMD_BLOCK_STATUS,
    ]);
    (command, 1..3000u32, prop::bool::weighted(0.2)).prop_map(|(command, len, fails)| Asked { command, len, fails })
}

/// Requests in batches, which are answered in the opposite order.
fn transmit(batches: &[Vec<Asked>], structured: bool) -> (Dialogue, Figures) {
    let (mut dialogue, mut sum) = (Dialogue::new(), figures("vda"));
    for batch in batches {
        let numbered = || batch.iter().zip(1u64..);
        dialogue.extend(numbered().map(|(asked, cookie)| request(asked.command, cookie, asked.len)));
        for (&Asked { command, len, fails }, cookie) in numbered().collect::<Vec<_>>().into_iter().rev() {
            let is_read = command == CMD_READ;
            match (structured, fails) {
                (false, fails) => {
                    dialogue.push(simple(cookie, u32::from(fails), if is_read && !fails { len } else { 0 }));
                }
                (true, false) if is_read => {
                    dialogue.extend([chunk(cookie, 0, 1, len + 8), chunk(cookie, REPLY_DONE, 0, 0)]);
                }
                (true, true) => dialogue.push(chunk(cookie, REPLY_DONE, CHUNK_ERROR | 1, 6)),
                (true, false) => dialogue.push(simple(cookie, 0, 0)),
            }
            if !fails {
                match command {
                    CMD_READ => sum.read += u64::from(len),
                    CMD_WRITE => sum.written += u64::from(len),
                    CMD_TRIM => sum.trimmed += u64::from(len),
                    CMD_WRITE_ZEROES => sum.zeroed += u64::from(len),
                    CMD_FLUSH => sum.flushes += 1,
                    _ => {}
                }
            }
        }
    }
    (dialogue, sum)
}

fn with_options(structured: bool, transmission: Dialogue) -> Dialogue {
    let mut dialogue = hello();
    if structured {
        dialogue.extend([option(OPT_STRUCTURED_REPLY, &[]), answer(OPT_STRUCTURED_REPLY, REP_ACK, &[])]);
    }
    [dialogue, go("vda"), transmission].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_is_counted_in_whatever_pieces_it_comes(
        batches in vec(vec(asked(), 0..8), 0..6),
        structured: bool,
        pieces in vec(1..2000usize, 1..20),
    ) {
        let (transmission, expected) = transmit(&batches, structured);
        prop_assert_eq!(observe(&with_options(structured, transmission), &pieces), Some(expected));
    }

    /// Bytes that are wrong make it silent, or are data; it never panics.
    #[test]
    fn it_bears_whatever_comes(
        batches in vec(vec(asked(), 0..4), 0..3),
        structured: bool,
        pieces in vec(1..200usize, 1..5),
        flips in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..4),
        tail in vec((any::<bool>(), vec(any::<u8>(), 0..300)), 0..8),
    ) {
        let mut dialogue = with_options(structured, transmit(&batches, structured).0);
        for (which, byte, value) in flips {
            let bytes = &mut which.get_mut(&mut dialogue).1;
            if !bytes.is_empty() {
                *byte.get_mut(bytes) = value;
            }
        }
        dialogue.extend(tail.into_iter().map(|(client, bytes)| (if client { From::Client } else { From::Server }, bytes)));
        observe(&dialogue, &pieces);
    }
}
