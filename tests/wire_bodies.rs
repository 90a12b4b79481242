//! Bodies are judged strictly: every trap of a lax XDR codec has a test here that says it is shut.

use std::fmt::Debug;

use virbistream::wire::*;

const HEADER: Header = Header { program: PROGRAM, version: VERSION, procedure: 1, kind: 0, serial: 1, status: 0 };

fn bytes<T: Body>(body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = body.encode(&mut bytes).unwrap();
    assert_eq!(length, bytes.len());
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn extension(len: usize) -> Extension {
    Extension { kind: 1, needed: true, value: vec![0xff; len] }
}

fn hello(extensions: Vec<Extension>) -> Hello {
    let limits = Limits { max_data: 262_120, max_streams: 64 };
    Hello { min_version: 1, max_version: 1, offered: 1, needed: 0, limits, extensions }
}

fn hello_reply(extensions: Vec<Extension>) -> HelloReply {
    HelloReply { version: 1, features: 1, limits: Limits { max_data: 4096, max_streams: 1 }, extensions }
}

fn open(target: &str, extensions: Vec<Extension>) -> Open {
    Open { target: target.to_owned(), kind: kind::DISK, priority: 1, window: 1 << 20, extensions }
}

fn close(text: &str) -> Close {
    Close { code: close::VIOLATION, rule: Rule::Body.number(), text: text.to_owned() }
}

fn error(text: &str) -> RemoteError {
    let text = || text.to_owned();
    RemoteError { str1: Some(text()), str3: Some(text()), ..RemoteError::new(38, 38, text()) }
}

/// `error("a")` as libvirt could send it: with a domain and a network.
fn error_with_names() -> Vec<u8> {
    let text = [1, 1, 0x6100_0000];
    let uuid = [0xffff_ffff; 4];
    let name = [2, 0x6162_0000];
    [&[38, 38][..], &text, &[2, 1], &name, &uuid, &[u32::MAX], &text, &text, &text, &[0, 0, 1], &name, &uuid]
        .iter()
        .flat_map(|part| words(part))
        .collect()
}

/// Whatever is cut off, it is missed: no length of what is left reads as a whole, and none hangs.
fn every_cut_is_missed<T: Body + Debug + PartialEq>(whole: &[u8]) {
    decode_body::<T>(whole).unwrap();
    for len in 0..whole.len() {
        assert_eq!(decode_body::<T>(&whole[..len]), Err(BodyError::Truncated), "{len} of {} bytes", whole.len());
    }
}

#[test]
fn a_cut_body_is_truncated_wherever_it_is_cut() {
    every_cut_is_missed::<Hello>(&bytes(&hello(vec![extension(3), extension(0)])));
    every_cut_is_missed::<HelloReply>(&bytes(&hello_reply(vec![extension(5)])));
    every_cut_is_missed::<Open>(&bytes(&open("vda", vec![extension(1)])));
    every_cut_is_missed::<OpenReply>(&bytes(&OpenReply { window: 1, extensions: vec![extension(4)] }));
    every_cut_is_missed::<Finish>(&bytes(&Finish { offset: 1 }));
    every_cut_is_missed::<Hole>(&bytes(&Hole { length: 1, flags: 0 }));
    every_cut_is_missed::<Credit>(&bytes(&Credit { stream: 1, consumed: 2, limit: 3 }));
    every_cut_is_missed::<Stop>(&bytes(&Stop { stream: 1 }));
    every_cut_is_missed::<Ping>(&bytes(&Ping { token: 1 }));
    every_cut_is_missed::<Close>(&bytes(&close("why")));
    every_cut_is_missed::<RemoteError>(&bytes(&error("why")));
}

/// xdr-codec reads a cut `opaque[16]` in a loop that does not end.
#[test]
fn a_cut_uuid_ends_the_decoding() {
    every_cut_is_missed::<RemoteError>(&error_with_names());
}

/// xdr-codec gives the short data as if it were whole.
#[test]
fn opaque_data_shorter_than_its_length_says_is_truncated() {
    // The bytes end just where a value of 4 would: nothing after it is missing, and no padding.
    let reply = words(&[0, 0, 1, 7, 0, 8, 0x0102_0304]);
    assert_eq!(decode_body::<OpenReply>(&reply), Err(BodyError::Truncated));
    let text = words(&[1, 4, 5, 0x6162_6364]);
    assert_eq!(decode_body::<Close>(&text), Err(BodyError::Truncated));
}

#[test]
fn padding_must_be_there_and_zero() {
    for (len, last) in [(1, 0x6100_0001_u32), (2, 0x6161_0001), (3, 0x6161_6101), (1, 0x6101_0000)] {
        let mut text = words(&[1, 4, len, last]);
        assert_eq!(decode_body::<Close>(&text), Err(BodyError::Padding));
        text.truncate(12 + len as usize);
        assert_eq!(decode_body::<Close>(&text), Err(BodyError::Truncated));
    }
    let value = words(&[0, 0, 1, 7, 0, 1, 0xff00_0080]);
    assert_eq!(decode_body::<OpenReply>(&value), Err(BodyError::Padding));
    // Of what is passed over too: the domain's name begins at 32, its padding at 34.
    let mut names = error_with_names();
    names[35] = 1;
    assert_eq!(decode_body::<RemoteError>(&names), Err(BodyError::Padding));
}

#[test]
fn bytes_after_the_end_are_trailing() {
    fn judge<T: Body + Debug + PartialEq>(body: &T) {
        let mut bytes = bytes(body);
        for extra in 1..=8 {
            bytes.push(0);
            assert_eq!(decode_body::<T>(&bytes), Err(BodyError::Trailing { extra }));
        }
    }
    judge(&hello(vec![]));
    judge(&hello_reply(vec![extension(0)]));
    judge(&open("vda", vec![]));
    judge(&OpenReply { window: 1, extensions: vec![] });
    judge(&Finish { offset: 1 });
    judge(&Hole { length: 1, flags: 0 });
    judge(&Credit { stream: 1, consumed: 2, limit: 3 });
    judge(&Stop { stream: 1 });
    judge(&Ping { token: 1 });
    judge(&close(""));
    judge(&error("why"));
}

#[test]
fn a_bool_is_0_or_1() {
    let needed = |word| decode_body::<OpenReply>(&words(&[0, 0, 1, 7, word, 0]));
    for (word, expected) in [(0, false), (1, true)] {
        assert_eq!(needed(word).unwrap().extensions[0].needed, expected);
    }
    for word in [2, 0x0100_0000, u32::MAX] {
        assert_eq!(needed(word), Err(BodyError::Bool(word)));
    }
    let present = words(&[38, 38, 2]);
    assert_eq!(decode_body::<RemoteError>(&present), Err(BodyError::Bool(2)));
}

#[test]
fn seventeen_extensions_are_too_many() {
    let list = |len| bytes(&OpenReply { window: 0, extensions: vec![extension(0); len] });
    assert_eq!(decode_body::<OpenReply>(&list(16)).unwrap().extensions.len(), 16);
    let mut more = list(16);
    more[11] = 17;
    more.extend(words(&[7, 0, 0]));
    let too_long = BodyError::TooLong { what: "list of extensions", len: 17, max: 16 };
    assert_eq!(decode_body::<OpenReply>(&more), Err(too_long));
}

#[test]
fn an_extension_of_1025_bytes_is_too_long() {
    let mut value = bytes(&OpenReply { window: 0, extensions: vec![extension(1024)] });
    assert_eq!(decode_body::<OpenReply>(&value).unwrap().extensions[0].value.len(), 1024);
    value.splice(20..24, words(&[1025]));
    value.extend([0xff, 0, 0, 0]);
    let too_long = BodyError::TooLong { what: "extension", len: 1025, max: 1024 };
    assert_eq!(decode_body::<OpenReply>(&value), Err(too_long));
}

#[test]
fn a_target_of_256_bytes_is_too_long() {
    let mut long = bytes(&open(&"a".repeat(252), vec![]));
    long.splice(0..4, words(&[256]));
    long.splice(256..256, *b"aaaa");
    let too_long = BodyError::TooLong { what: "target name", len: 256, max: 255 };
    assert_eq!(decode_body::<Open>(&long), Err(too_long));
}

#[test]
fn texts_over_their_bound_are_too_long() {
    let text = [words(&[1, 0, 1025]), vec![b'a'; 1028]].concat();
    let too_long = |what, max| BodyError::TooLong { what, len: max + 1, max };
    assert_eq!(decode_body::<Close>(&text), Err(too_long("text", 1024)));
    let message = [words(&[1, 0, 1, 1025]), vec![b'a'; 1028]].concat();
    assert_eq!(decode_body::<RemoteError>(&message), Err(too_long("error text", 1024)));
    let name = [words(&[1, 0, 0, 2, 1, 257]), vec![b'a'; 280]].concat();
    assert_eq!(decode_body::<RemoteError>(&name), Err(too_long("name", 256)));
}

#[test]
fn a_target_that_is_not_utf_8_is_refused() {
    let target = words(&[2, 0xc328_0000, 0, 0, 0, 0, 0]);
    assert_eq!(decode_body::<Open>(&target), Err(BodyError::Utf8));
}

#[test]
fn a_text_that_is_not_utf_8_is_taken_lossily() {
    let text = decode_body::<Close>(&words(&[1, 4, 3, 0x61ff_6200])).unwrap().text;
    assert_eq!(text, "a\u{fffd}b");
    let latin = words(&[39, 7, 1, 1, 0xe900_0000, 2, 0, 1, 1, 0xe900_0000, 0, 0, 0, 0, 0]);
    let error = decode_body::<RemoteError>(&latin).unwrap();
    assert_eq!((error.message.as_str(), error.str1.as_deref()), ("\u{fffd}", Some("\u{fffd}")));
    let cut = bytes(&RemoteError::new(1, 1, "\u{fffd}".repeat(1024)));
    assert!(decode_body::<RemoteError>(&cut).is_ok(), "what was replaced goes on as it can");
}

#[test]
fn an_error_with_a_domain_and_a_network_reads_as_one_without() {
    assert_eq!(decode_body::<RemoteError>(&error_with_names()), Ok(error("a")));
}

#[test]
fn an_error_without_a_message_has_an_empty_one() {
    let bare = words(&[1, 7, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let error = decode_body::<RemoteError>(&bare).unwrap();
    assert_eq!((error.message.as_str(), error.str1, error.str2), ("", None, None));
}

#[test]
fn texts_are_cut_between_characters_in_encoding() {
    let sent = bytes(&close(&"é".repeat(600)));
    assert_eq!(decode_body::<Close>(&sent).unwrap().text, "é".repeat(512));
    let shifted = format!("a{}", "é".repeat(600));
    let sent = bytes(&error(&shifted));
    let read = decode_body::<RemoteError>(&sent).unwrap();
    let expected = format!("a{}", "é".repeat(511));
    for text in [Some(read.message), read.str1, read.str2, read.str3] {
        assert_eq!(text.as_ref(), Some(&expected));
    }
}

#[test]
fn an_error_shows_its_message_and_code_and_no_control_characters() {
    let error = RemoteError::new(codes::RPC, domains::RPC, "évil\u{1b}[2J\r\n\u{9b}");
    assert_eq!(error.to_string(), r"évil\u{1b}[2J\r\n\u{9b} (libvirt error 39)");
}

#[test]
fn target_names() {
    for good in ["vda", "a", "ünï/cödé x", &"a".repeat(255)] {
        assert!(is_valid_target(good), "{good}");
    }
    for bad in ["", "a\0", "\n", "a\u{7f}", "\u{85}", &"a".repeat(256), &"é".repeat(128)] {
        assert!(!is_valid_target(bad), "{bad:?}");
    }
}

/// `longest` is the longest legal body of its type.
fn is_longest<T: Body + Debug + PartialEq>(longest: &[u8]) {
    assert_eq!(longest.len(), T::MAX_LEN as usize);
    decode_body::<T>(longest).unwrap();
}

#[test]
fn the_greatest_lengths_are_true() {
    let full = || vec![extension(EXTENSION_LEN); EXTENSIONS_MAX];
    is_longest::<Hello>(&bytes(&hello(full())));
    is_longest::<HelloReply>(&bytes(&hello_reply(full())));
    is_longest::<Open>(&bytes(&open(&"a".repeat(255), full())));
    is_longest::<OpenReply>(&bytes(&OpenReply { window: u64::MAX, extensions: full() }));
    is_longest::<Finish>(&bytes(&Finish { offset: u64::MAX }));
    is_longest::<Hole>(&bytes(&Hole { length: u64::MAX, flags: u32::MAX }));
    is_longest::<Credit>(&bytes(&Credit { stream: u32::MAX, consumed: u64::MAX, limit: u64::MAX }));
    is_longest::<Stop>(&bytes(&Stop { stream: u32::MAX }));
    is_longest::<Ping>(&bytes(&Ping { token: u64::MAX }));
    is_longest::<Close>(&bytes(&close(&"a".repeat(2000))));

    let text = [words(&[1, 1024]), vec![b'a'; 1024]].concat();
    let named = [words(&[1, 256]), vec![b'a'; 256 + 16]].concat();
    let parts: [&[u8]; _] = [&[0; 8], &text, &[0; 4], &named, &[0; 4], &text, &text, &text, &[0; 8], &named];
    is_longest::<RemoteError>(&parts.concat());
}

#[test]
fn a_packet_is_its_header_and_its_body() {
    let mut out = [0xaa; 64];
    let ping = Ping { token: 0x0102_0304_0506_0708 };
    assert_eq!(encode_packet(&HEADER, &ping, &mut out), Some(36));
    assert_eq!(out[..28], HEADER.encode(8));
    assert_eq!(out[28..36], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(out[36..], [0xaa; 28], "nothing behind the packet is touched");
}

#[test]
fn a_packet_fits_exactly_or_not_at_all() {
    fn judge<T: Body>(body: &T) {
        let exact = HEADER_LEN + bytes(body).len();
        let mut out = vec![0; exact + 8];
        for room in 0..exact {
            assert_eq!(encode_packet(&HEADER, body, &mut out[..room]), None, "{room} of {exact}");
        }
        for room in exact..=out.len() {
            assert_eq!(encode_packet(&HEADER, body, &mut out[..room]), Some(exact));
        }
    }
    judge(&hello(vec![extension(3)]));
    judge(&hello_reply(vec![]));
    judge(&open("vda", vec![extension(1)]));
    judge(&OpenReply { window: 1, extensions: vec![] });
    judge(&Finish { offset: 1 });
    judge(&Hole { length: 1, flags: 0 });
    judge(&Credit { stream: 1, consumed: 2, limit: 3 });
    judge(&Stop { stream: 1 });
    judge(&Ping { token: 1 });
    judge(&close("why"));
    judge(&error("why"));
}

#[test]
fn a_body_over_its_bounds_is_not_encoded() {
    fn judge<T: Body>(body: &T) {
        let mut out = vec![0; 64 * 1024];
        assert_eq!(encode_packet(&HEADER, body, &mut out), None);
        let kind = body.encode(&mut Vec::new()).unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::InvalidInput);
    }
    judge(&hello(vec![extension(0); 17]));
    judge(&hello_reply(vec![extension(1025)]));
    judge(&open(&"a".repeat(256), vec![]));
    judge(&OpenReply { window: 1, extensions: vec![extension(0); 17] });
}

#[test]
fn errors_say_what_is_wrong() {
    let said = |error: BodyError| error.to_string();
    assert_eq!(said(BodyError::Truncated), "the body ends too early");
    assert_eq!(said(BodyError::Trailing { extra: 3 }), "3 bytes follow the end of the body");
    assert_eq!(said(BodyError::Bool(2)), "2 is not a bool");
    let too_long = BodyError::TooLong { what: "extension", len: 1025, max: 1024 };
    assert_eq!(said(too_long), "extension of length 1025 is over the limit of 1024");
}
