//! Our bytes against those of rpcgen and libtirpc, made from `xdr/bistream.x`, both ways and for every type.
//! Needs the packages rpcsvc-proto, libtirpc-dev and gcc.

mod oracle;

use std::fmt::Debug;

use oracle::{names, oracle, to_hex};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use virbistream::wire::*;

/// What can be told to the oracle.
trait Told: Body + Debug + PartialEq {
    const TYPE: &str;
    /// The fields, in the order of the `.x`.
    fn tell(&self) -> String;
}

/// All four ways: our bytes are the oracle's, it reads ours as what we meant, we read its as what it meant, and it writes
/// again what we wrote.
fn agree<T: Told>(value: &T) -> TestCaseResult {
    let mut ours = Vec::new();
    let length = value.encode(&mut ours).unwrap();
    prop_assert_eq!(length, ours.len());
    prop_assert!(length <= T::MAX_LEN as usize);

    let mut oracle = oracle();
    let theirs = oracle.encode(T::TYPE, &value.tell());
    prop_assert_eq!(to_hex(&ours), to_hex(&theirs), "our bytes, and the oracle's");
    let read = decode_body::<T>(&theirs);
    prop_assert_eq!(read.as_ref(), Ok(value), "what we read of the oracle's bytes");
    let (told, again) = oracle.decode(T::TYPE, &ours).map_err(TestCaseError::fail)?;
    prop_assert_eq!(told, value.tell(), "what the oracle read of our bytes");
    prop_assert_eq!(to_hex(&again), to_hex(&ours), "what the oracle wrote of what it read");
    Ok(())
}

fn bytes(bytes: &[u8]) -> String {
    format!("x{}", to_hex(bytes))
}

fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| format!("+ {}", bytes(text.as_bytes())))
}

fn extensions(list: &[Extension]) -> String {
    let told = list.iter().map(|one| format!(" {} {} {}", one.kind, u32::from(one.needed), bytes(&one.value)));
    list.len().to_string() + &told.collect::<String>()
}

fn limits(limits: Limits) -> String {
    format!("{} {}", limits.max_data, limits.max_streams)
}

impl Told for Hello {
    const TYPE: &str = "hello";
    fn tell(&self) -> String {
        let Self { min_version, max_version, offered, needed, .. } = self;
        let (limits, extensions) = (limits(self.limits), extensions(&self.extensions));
        format!("{min_version} {max_version} {offered} {needed} {limits} {extensions}")
    }
}

impl Told for HelloReply {
    const TYPE: &str = "hello_reply";
    fn tell(&self) -> String {
        format!("{} {} {} {}", self.version, self.features, limits(self.limits), extensions(&self.extensions))
    }
}

impl Told for Open {
    const TYPE: &str = "open";
    fn tell(&self) -> String {
        let (target, extensions) = (bytes(self.target.as_bytes()), extensions(&self.extensions));
        format!("{target} {} {} {} {extensions}", self.kind, self.priority, self.window)
    }
}

impl Told for OpenReply {
    const TYPE: &str = "open_reply";
    fn tell(&self) -> String {
        format!("{} {}", self.window, extensions(&self.extensions))
    }
}

impl Told for Finish {
    const TYPE: &str = "finish";
    fn tell(&self) -> String {
        self.offset.to_string()
    }
}

impl Told for Hole {
    const TYPE: &str = "hole";
    fn tell(&self) -> String {
        format!("{} {}", self.length, self.flags)
    }
}

impl Told for Credit {
    const TYPE: &str = "credit";
    fn tell(&self) -> String {
        format!("{} {} {}", self.stream, self.consumed, self.limit)
    }
}

impl Told for Stop {
    const TYPE: &str = "stop";
    fn tell(&self) -> String {
        self.stream.to_string()
    }
}

impl Told for Ping {
    const TYPE: &str = "ping";
    fn tell(&self) -> String {
        self.token.to_string()
    }
}

impl Told for Close {
    const TYPE: &str = "close";
    fn tell(&self) -> String {
        format!("{} {} {}", self.code, self.rule, bytes(self.text.as_bytes()))
    }
}

impl Told for RemoteError {
    const TYPE: &str = "error";
    fn tell(&self) -> String {
        tell_error(self, "-", "-")
    }
}

/// An error with what we pass over: a domain and a network.
fn tell_error(error: &RemoteError, domain: &str, network: &str) -> String {
    let RemoteError { code, domain: from, level, int1, int2, .. } = error;
    let message = optional(Some(&error.message));
    let [str1, str2, str3] = [&error.str1, &error.str2, &error.str3].map(|text| optional(text.as_deref()));
    format!("{code} {from} {message} {level} {domain} {str1} {str2} {str3} {int1} {int2} {network}")
}

/// Text without NUL, which ends a string of C's, that is often just as long as it may be.
fn text(max: usize) -> impl Strategy<Value = String> {
    let character = prop_oneof![4 => proptest::char::range(' ', '~'), 1 => any::<char>()];
    let length = prop_oneof![8 => 0..=32_usize, 1 => Just(max)];
    length.prop_flat_map(move |length| {
        vec(character.clone(), length).prop_map(move |characters| {
            let mut text: String = characters.into_iter().filter(|&character| character != '\0').collect();
            text.truncate(text.floor_char_boundary(max));
            text
        })
    })
}

fn some_extensions() -> impl Strategy<Value = Vec<Extension>> {
    let value = prop_oneof![8 => vec(any::<u8>(), 0..=20), 1 => vec(any::<u8>(), EXTENSION_LEN)];
    let one = (any::<u32>(), any::<bool>(), value).prop_map(|(kind, needed, value)| Extension { kind, needed, value });
    prop_oneof![8 => vec(one.clone(), 0..=3), 1 => vec(one, EXTENSIONS_MAX)]
}

fn some_limits() -> impl Strategy<Value = Limits> {
    any::<(u32, u32)>().prop_map(|(max_data, max_streams)| Limits { max_data, max_streams })
}

fn some_error() -> impl Strategy<Value = RemoteError> {
    let optional = || proptest::option::of(text(ERROR_TEXT_MAX));
    let words = any::<(i32, i32, i32, i32, i32)>();
    (words, text(ERROR_TEXT_MAX), optional(), optional(), optional()).prop_map(
        |((code, domain, level, int1, int2), message, str1, str2, str3)| RemoteError {
            code,
            domain,
            message,
            level,
            str1,
            str2,
            str3,
            int1,
            int2,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hello(versions in any::<(u32, u32)>(), bits in any::<(u64, u64)>(), limits in some_limits(),
             extensions in some_extensions()) {
        let ((min_version, max_version), (offered, needed)) = (versions, bits);
        agree(&Hello { min_version, max_version, offered, needed, limits, extensions })?;
    }

    #[test]
    fn hello_reply(version: u32, features: u64, limits in some_limits(), extensions in some_extensions()) {
        agree(&HelloReply { version, features, limits, extensions })?;
    }

    #[test]
    fn open(target in text(TARGET_MAX), kind: u32, priority: u32, window: u64, extensions in some_extensions()) {
        agree(&Open { target, kind, priority, window, extensions })?;
    }

    #[test]
    fn open_reply(window: u64, extensions in some_extensions()) {
        agree(&OpenReply { window, extensions })?;
    }

    #[test]
    fn bodies_of_integers(small: u32, other: u64, more: u64) {
        agree(&Finish { offset: other })?;
        agree(&Hole { length: other, flags: small })?;
        agree(&Credit { stream: small, consumed: other, limit: more })?;
        agree(&Stop { stream: small })?;
        agree(&Ping { token: other })?;
    }

    #[test]
    fn close_packet(code: u32, rule: u32, text in text(CLOSE_TEXT_MAX)) {
        agree(&Close { code, rule, text })?;
    }

    #[test]
    fn error(error in some_error()) {
        agree(&error)?;
    }

    #[test]
    fn an_error_with_a_domain_and_a_network_reads_as_one_without(
        error in some_error(), name in text(ERROR_NAME_MAX), uuid: [u8; 16], id: i32,
    ) {
        let named = format!("+ {} {}", bytes(name.as_bytes()), bytes(&uuid));
        for (domain, network) in [(format!("{named} {id}"), "-"), ("-".to_owned(), &*named), (format!("{named} {id}"), &*named)] {
            let theirs = oracle().encode("error", &tell_error(&error, &domain, network));
            let read = decode_body::<RemoteError>(&theirs);
            prop_assert_eq!(read.as_ref(), Ok(&error));
        }
    }

    #[test]
    fn header(header in any::<(u32, u32, u32, u32, u32, u32)>(), payload_len in 0..=PACKET_MAX - PACKET_MIN) {
        let (program, version, procedure, kind, serial, status) = header;
        let header = Header { program, version, procedure, kind, serial, status };
        let ours = header.encode(payload_len);
        let told = format!("{program} {version} {procedure} {kind} {serial} {status}");
        let theirs = oracle().encode("header", &told);
        prop_assert_eq!(to_hex(&ours[4..]), to_hex(&theirs));
        prop_assert_eq!(oracle().decode("header", &ours[4..]), Ok((told, theirs)));
        prop_assert_eq!(ours[..4].to_vec(), (payload_len + 28).to_be_bytes());
        prop_assert_eq!(Header::decode(&ours), (payload_len + 28, header));
    }

    /// What we take libtirpc takes, and as the same; it is laxer about padding, bools and UTF-8, never about bounds.
    #[test]
    fn what_we_take_of_a_damaged_body_the_oracle_takes(
        error in some_error(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
    ) {
        let mut damaged = Vec::new();
        error.encode(&mut damaged).unwrap();
        let at = at.index(damaged.len());
        damaged[at] = byte;
        for bytes in [&damaged[..], &damaged[..cut.index(damaged.len())]] {
            if decode_body::<RemoteError>(bytes).is_ok() {
                prop_assert!(oracle().decode("error", bytes).is_ok());
            }
        }
    }
}

/// One row a constant of ours.
fn ours() -> Vec<(&'static str, u64)> {
    let packet = |kind: PacketType| u64::from(kind.as_wire());
    let status = |status: Status| u64::from(status.as_wire());
    let mut ours: Vec<(&'static str, u64)> = vec![
        ("BS_PROGRAM", PROGRAM.into()),
        ("BS_VERSION", VERSION.into()),
        ("BS_PROCEDURE_BASE", PROCEDURE_BASE.into()),
        ("BS_LENGTH_WORD", HEADER_LEN as u64 - 24),
        ("BS_HEADER_LEN", HEADER_LEN as u64 - 4),
        ("BS_PACKET_MIN", PACKET_MIN.into()),
        ("BS_PACKET_MAX", PACKET_MAX.into()),
        ("BS_CALL", packet(PacketType::Call)),
        ("BS_REPLY", packet(PacketType::Reply)),
        ("BS_MESSAGE", packet(PacketType::Message)),
        ("BS_STREAM", packet(PacketType::Stream)),
        ("BS_CALL_WITH_FDS", packet(PacketType::CallWithFds)),
        ("BS_REPLY_WITH_FDS", packet(PacketType::ReplyWithFds)),
        ("BS_STREAM_HOLE", packet(PacketType::StreamHole)),
        ("BS_OK", status(Status::Ok)),
        ("BS_ERROR", status(Status::Error)),
        ("BS_CONTINUE", status(Status::Continue)),
        ("BS_PROC_HELLO", Procedure::Hello as u64),
        ("BS_PROC_OPEN", Procedure::Open as u64),
        ("BS_PROC_DATA", Procedure::Data as u64),
        ("BS_PROC_CREDIT", Procedure::Credit as u64),
        ("BS_PROC_STOP", Procedure::Stop as u64),
        ("BS_PROC_PING", Procedure::Ping as u64),
        ("BS_PROC_PONG", Procedure::Pong as u64),
        ("BS_PROC_CLOSE", Procedure::Close as u64),
        ("BS_PROC_RESUME", 8), // reserved: no procedure of ours
        ("BS_PROC_COUNT", PROCEDURE_COUNT.into()),
        ("BS_ERROR_TEXT_MAX", ERROR_TEXT_MAX as u64),
        ("BS_ERROR_NAME_MAX", ERROR_NAME_MAX as u64),
        ("BS_EXTENSIONS_MAX", EXTENSIONS_MAX as u64),
        ("BS_EXTENSION_LEN", EXTENSION_LEN as u64),
        ("BS_EXT_SESSION", EXT_SESSION.into()),
        ("BS_EXT_TICKET", EXT_TICKET.into()),
        ("BS_BISTREAM_1", BISTREAM_1.into()),
        ("BS_FEATURE_HOLES", feature::HOLES),
        ("BS_FEATURE_RESUME", feature::RESUME),
        ("BS_FEATURE_STRIPE", feature::STRIPE),
        ("BS_DATA_MIN", DATA_MIN.into()),
        ("BS_DATA_MAX", DATA_MAX.into()),
        ("BS_TARGET_MAX", TARGET_MAX as u64),
        ("BS_PRIORITY_MAX", PRIORITY_MAX.into()),
        ("BS_KIND_BYTES", kind::BYTES.into()),
        ("BS_KIND_CONTROL", kind::CONTROL.into()),
        ("BS_KIND_MEMORY", kind::MEMORY.into()),
        ("BS_KIND_DISK", kind::DISK.into()),
        ("BS_HOLE_CREDIT", HOLE_CREDIT),
        ("BS_HOLE_MAX", HOLE_MAX),
        ("BS_CLOSE_DONE", close::DONE.into()),
        ("BS_CLOSE_VIOLATION", close::VIOLATION.into()),
        ("BS_CLOSE_SILENT", close::SILENT.into()),
        ("BS_CLOSE_SHUTDOWN", close::SHUTDOWN.into()),
        ("BS_CLOSE_OVERLOAD", close::OVERLOAD.into()),
        ("BS_CLOSE_INTERNAL", close::INTERNAL.into()),
        ("BS_CLOSE_TEXT_MAX", CLOSE_TEXT_MAX as u64),
    ];
    let rules = names().into_iter().filter(|name| name.starts_with("BS_RULE_")).zip(Rule::ALL);
    ours.extend(rules.map(|(name, rule)| {
        assert_eq!(name["BS_RULE_".len()..].to_lowercase().replace('_', "-"), rule.name());
        (name, u64::from(rule.number()))
    }));
    ours
}

#[test]
fn the_constants_are_those_of_the_x() {
    let theirs = oracle().constants();
    let ours: Vec<_> = ours().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(ours, theirs, "a constant is missing, or has another value");
}
