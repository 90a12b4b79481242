//! That `conformance` passes with real peers, and that a case fails when what it names is broken.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use support::echo::echo_on;
use support::libvirtd::Libvirtd;
use support::process::{Finished, Run};
use support::tool::{ANY_PORT, assert_fails, serve, tool};
use support::{PATIENCE, Scratch};
use virbistream::wire::{
    Body, Close, HEADER_LEN, Header, HelloReply, Limits, PROCEDURE_BASE, PROGRAM, Ping, RemoteError,
};

fn conformance(uri: &str) -> Run {
    tool().named("virbistream conformance").args(["conformance", uri])
}

/// The names of the cases that passed, of a report that is whole and has no failure.
#[track_caller]
fn assert_passes(run: Run) -> Vec<String> {
    // A real peer on a machine with other work may take a while.
    let finished = run.args(["--timeout", "30"]).finish(3 * PATIENCE);
    let (passed, failed) = report(&finished);
    assert!(failed.is_empty() && finished.status.success(), "{failed:?}: {finished}");
    passed
}

/// The names of the cases that passed and of those that failed.
#[track_caller]
fn report(finished: &Finished) -> (Vec<String>, Vec<String>) {
    let mut lines = finished.stdout.lines();
    assert_eq!(lines.next(), Some("TAP version 14"), "{finished}");
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    let plan = lines.next().and_then(|line| line.strip_prefix("1..")).and_then(|plan| plan.parse::<usize>().ok());
    for line in lines.filter(|line| !line.starts_with("  ")) {
        let (result, name) = line.split_once(" - ").unwrap_or_else(|| panic!("{line}: {finished}"));
        let number = format!(" {}", passed.len() + failed.len() + 1);
        match result.strip_suffix(&number) {
            Some("ok") => passed.push(name.to_owned()),
            Some("not ok") => failed.push(name.to_owned()),
            _ => panic!("{line}: {finished}"),
        }
    }
    assert_eq!(plan, Some(passed.len() + failed.len()), "{finished}");
    assert_eq!(finished.status.code(), Some(i32::from(!failed.is_empty())), "{finished}");
    (passed, failed)
}

/// All cases, and what each needs.
#[track_caller]
fn listed() -> Vec<(String, String)> {
    let list = tool().args(["conformance", "--list"]).succeed(PATIENCE);
    let line = |line: &str| {
        let (name, rest) = line.split_once(": ")?;
        let (_, needs) = rest.rsplit_once("(needs ")?;
        Some((name.to_owned(), needs.trim_end_matches(')').to_owned()))
    };
    list.stdout.lines().map(|text| line(text).unwrap_or_else(|| panic!("{text}"))).collect()
}

#[track_caller]
fn names(wanted: impl Fn(&str, &str) -> bool) -> Vec<String> {
    listed().into_iter().filter(|(name, needs)| wanted(name, needs)).map(|(name, _)| name).collect()
}

const LEGACY_PEER: &str = "bistream/legacy-peer";

#[test]
fn a_real_libvirtd_passes_the_whole_legacy_section_and_refuses_hello() {
    let libvirtd = Libvirtd::start();
    let expected = names(|name, _| name.starts_with("legacy/") || name == LEGACY_PEER);
    assert_eq!(assert_passes(conformance(&libvirtd.uri()).args(["--pool", "disks"])), expected);
    let volumes = libvirtd.virsh(&["vol-list", "disks"]);
    assert!(!volumes.contains("conformance"), "nothing is left of it: {volumes}");
    let tcp = conformance("qemu+tcp://127.0.0.1/system").args(["--pool", "disks"]);
    assert_eq!(assert_passes(tcp.in_namespace_of(Some(libvirtd.network()))), expected);
}

#[test]
fn who_gives_no_pool_or_target_is_told_by_name_unless_it_was_meant_so() {
    let libvirtd = Libvirtd::start();
    let (_, failed) = report(&conformance(&libvirtd.uri()).args(["--section", "legacy"]).finish(PATIENCE));
    assert_eq!(failed, names(|_, needs| needs == "--pool"));
    let passed = assert_passes(conformance(&libvirtd.uri()).args(["--section", "legacy", "--no-write"]));
    let skipped: Vec<_> = passed.iter().filter_map(|name| name.strip_suffix(" # SKIP --no-write")).collect();
    assert_eq!(skipped, names(|_, needs| needs == "--pool"));
    let missing = conformance(&libvirtd.uri()).args(["--pool", "no-such", "--case", "legacy/sparse"]).finish(PATIENCE);
    assert!(missing.stdout.contains("no storage pool"), "{missing}");
    let serve = serve(ANY_PORT, [("disk", Path::new("/nowhere"))]).start();
    let (_, failed) = report(&conformance(&serve.ready()).args(["--section", "bistream"]).finish(PATIENCE));
    assert_eq!(failed, names(|_, needs| needs == "--target"));
}

#[test]
fn serve_passes_the_whole_bistream_section_and_of_legacy_what_needs_no_program() {
    let scratch = Scratch::new();
    echo_on(&scratch.join("echo"));
    let serve = serve(ANY_PORT, [("echo", &*scratch.join("echo"))]).args(["--max-streams", "16"]).start();
    let uri = serve.ready();
    let bistream = names(|name, _| name.starts_with("bistream/") && name != LEGACY_PEER);
    assert_eq!(assert_passes(conformance(&uri).args(["--section", "bistream", "--target", "echo"])), bistream);
    let legacy = names(|name, needs| name.starts_with("legacy/") && needs == "nothing");
    assert_eq!(assert_passes(conformance(&uri).args(legacy.iter().flat_map(|name| ["--case", name]))), legacy);
    serve.end_well(&[]);
}

#[test]
fn a_front_of_a_real_libvirtd_passes_both_sections_whole() {
    let libvirtd = Libvirtd::start();
    let scratch = Scratch::new();
    echo_on(&scratch.join("echo"));
    let address = format!("unix:{}", scratch.join("front").display());
    let front = serve(&address, [("echo", &*scratch.join("echo"))])
        .arg("--libvirt")
        .arg(format!("unix:{}", libvirtd.socket().display()))
        .args(["--max-streams", "16"])
        .start();
    front.ready();
    let run = conformance(&address).args(["--pool", "disks", "--target", "echo"]);
    assert_eq!(assert_passes(run), names(|name, _| name != LEGACY_PEER));
    front.end_well(&[&scratch.join("front")]);
}

#[test]
fn what_cannot_be_asked_is_refused_in_a_sentence() {
    assert_fails(conformance("unix:/nowhere"), &["cannot connect", "/nowhere"]);
    for (arguments, word) in [
        (&["unix:/nowhere", "--case", "legacy/no-such"][..], "`legacy/no-such`"),
        (&["unix:/nowhere", "--section", "other"], "other"),
        (&["unix:/nowhere", "--pool", "x", "--no-write"], "--no-write"),
        (&["unix:/nowhere", "--section", "legacy", "--case", "bistream/ping"], "another section"),
        (&["--section", "legacy"], "<URI>"),
    ] {
        let finished = tool().arg("conformance").args(arguments).finish(PATIENCE);
        assert_eq!((finished.status.code(), &*finished.stdout), (Some(2), ""), "{finished}");
        assert!(finished.stderr.contains(word), "{finished}");
    }
    for section in ["legacy", "bistream"] {
        assert_fails(conformance("unix:/nowhere").args(["--section", section]), &["cannot connect", "/nowhere"]);
    }
    // A report that cannot be written is no success.
    let command = "exec \"$@\" conformance --list >/dev/full";
    let full = Run::new("sh", "dash").args(["-c", command, "sh", env!("CARGO_BIN_EXE_virbistream")]);
    full.finish(PATIENCE).assert_failed_saying(&["cannot write", "No space left"]);
    let all = listed();
    let mut unique: Vec<_> = all.iter().map(|(name, _)| name).collect();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), all.len(), "each name is given once");
}

/// What a scripted peer does with a packet: what it says, and whether it closes then.
type Script = dyn Fn(&Header, &[u8]) -> (Vec<u8>, bool) + Send + Sync;

/// A peer that takes packets of every length and does with each what the script says. It closes for nothing else: a connection
/// whose client has ended its direction stays open.
fn scripted(path: &Path, script: impl Fn(&Header, &[u8]) -> (Vec<u8>, bool) + Send + Sync + 'static) {
    let listener = UnixListener::bind(path).expect("a new socket");
    let script: Arc<Script> = Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let script = Arc::clone(&script);
            std::thread::spawn(move || serve_script(stream, &*script));
        }
    });
}

fn serve_script(mut stream: UnixStream, script: &Script) {
    let mut head = [0; HEADER_LEN];
    while stream.read_exact(&mut head).is_ok() {
        let (length, header) = Header::decode(&head);
        let mut body = vec![0; (length as usize).saturating_sub(HEADER_LEN).min(1 << 20)];
        if stream.read_exact(&mut body).is_err() {
            break;
        }
        let (answer, closes) = script(&header, &body);
        if stream.write_all(&answer).is_err() || closes {
            return;
        }
    }
    std::mem::forget(stream);
}

fn packet(header: Header, body: &impl Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.encode(&mut bytes).expect("a body within its bounds");
    [&header.encode(bytes.len() as u32)[..], &bytes].concat()
}

fn answer(call: &Header, status: u32) -> Header {
    Header { kind: 1, status, ..*call }
}

type Change = fn(&mut RemoteError);

/// As libvirt refuses calls, but for what the change makes of it. Everything else is passed over.
fn legacy(call: &Header, change: Change) -> Vec<u8> {
    if call.kind != 0 {
        return Vec::new();
    }
    let text = match call.program {
        PROGRAM => format!("unknown procedure: {}", call.procedure.cast_signed()),
        other => format!("Cannot find program {other} version {}", call.version),
    };
    let mut error = RemoteError::new(39, 7, text).with_ints(-1, -1);
    change(&mut error);
    packet(answer(call, 1), &error)
}

/// Fails the test unless this case fails with the peer, and says what was expected and what came.
#[track_caller]
fn assert_case_fails(
    case: &str,
    words: &[&str],
    script: impl Fn(&Header, &[u8]) -> (Vec<u8>, bool) + Send + Sync + 'static,
) {
    let scratch = Scratch::new();
    let path = scratch.join("peer");
    scripted(&path, script);
    let run = conformance(&format!("unix:{}", path.display()));
    let finished = run.args(["--timeout", "0.5", "--case", case]).finish(PATIENCE);
    assert_eq!(report(&finished).1, [case], "{finished}");
    for word in ["expected: ", "got: "].iter().chain(words) {
        assert!(finished.stdout.contains(word), "{word}: {finished}");
    }
}

const IS_HELLO: u32 = PROCEDURE_BASE;

#[test]
fn a_legacy_case_fails_by_each_way_to_break_it() {
    let good = |header: &Header, _: &[u8]| (legacy(header, |_| ()), false);
    let scratch = Scratch::new();
    scripted(&scratch.join("good"), good);
    assert_passes(
        conformance(&format!("unix:{}", scratch.join("good").display())).args(["--case", "legacy/unknown-procedure"]),
    );
    // No answer, and one where there should be none.
    assert_case_fails("legacy/unknown-procedure", &["got: \"nothing\""], |_, _| (vec![], false));
    assert_case_fails("legacy/stray-message", &["Message Error"], |header, _| {
        let stray = packet(Header { status: 1, ..*header }, &RemoteError::new(1, 7, "what?"));
        (if header.kind == 2 { stray } else { legacy(header, |_| ()) }, false)
    });
    // The right answer, and then one more.
    assert_case_fails("legacy/unknown-procedure", &["nothing more"], |header, _| {
        let mut twice = legacy(header, |_| ());
        if header.serial != 7 {
            twice.extend(legacy(header, |_| ()));
        }
        (twice, false)
    });
    // One field is wrong.
    let changes: [(&str, Change); 8] = [
        ("code: 38", |error| error.code = 38),
        ("domain: 8", |error| error.domain = 8),
        ("level: 1", |error| error.level = 1),
        ("message: \\\"other", |error| error.message = "other".into()),
        ("str1: None", |error| error.str1 = None),
        ("str2: Some(\\\"x", |error| error.str2 = Some("x".into())),
        ("int1: 0", |error| error.int1 = 0),
        ("int2: 0", |error| error.int2 = 0),
    ];
    for (word, change) in changes {
        assert_case_fails("legacy/unknown-procedure", &[word], move |header, _| (legacy(header, change), false));
    }
    // The header is wrong.
    assert_case_fails("legacy/unknown-procedure", &["serial 8"], |header, _| {
        (legacy(&Header { serial: header.serial + 1, ..*header }, |_| ()), false)
    });
    // Closed where it should live, and alive where it should close.
    assert_case_fails("legacy/unknown-procedure", &["end of the connection"], |header, _| {
        (legacy(header, |_| ()), true)
    });
    assert_case_fails("legacy/length-27", &["expected: \"the end of the connection\"", "procedure: 66"], good);
    assert_case_fails("legacy/descriptors-too-many", &["unknown procedure"], |header, _| {
        (legacy(&Header { kind: 0, ..*header }, |_| ()), false)
    });
    assert_case_fails("legacy/half-a-packet", &["nothing"], |_, _| (vec![], false));
}

/// A BiStream peer that answers HELLO well, PING too, and everything else as the script says.
fn bistream(
    script: impl Fn(&Header) -> (Vec<u8>, bool) + Send + Sync + 'static,
) -> impl Fn(&Header, &[u8]) -> (Vec<u8>, bool) + Send + Sync + 'static {
    move |header, body| {
        let limits = Limits { max_data: 4096, max_streams: 4 };
        let reply = HelloReply { version: 1, features: 0, limits, extensions: vec![] };
        match header.procedure.wrapping_sub(PROCEDURE_BASE) {
            0 if header.serial == 3 => (packet(answer(header, 0), &reply), false),
            5 if header.kind == 2 && body.len() == 8 => {
                let pong = Header { procedure: header.procedure + 1, ..*header };
                ([&pong.encode(8)[..], body].concat(), false)
            }
            _ => script(header),
        }
    }
}

fn close(rule: u32) -> Vec<u8> {
    let header = Header { program: PROGRAM, version: 1, procedure: PROCEDURE_BASE + 7, kind: 2, serial: 0, status: 0 };
    packet(header, &Close { code: 1, rule, text: String::new() })
}

fn refused(open: &Header, code: i32, rule: i32) -> Vec<u8> {
    packet(answer(open, 1), &RemoteError::new(code, 38, "no").with_ints(0, rule))
}

#[test]
fn a_bistream_case_fails_by_each_way_to_break_it() {
    // CLOSE: none, for another rule, and without the end of the link.
    assert_case_fails("bistream/id-parity", &["rule 9 (id-parity)", "got: \"nothing\""], bistream(|_| (vec![], false)));
    assert_case_fails("bistream/id-parity", &["rule: 10"], bistream(|_| (close(10), true)));
    let unended = ["expected: \"the end of the connection\"", "got: \"nothing\""];
    assert_case_fails("bistream/id-parity", &unended, bistream(|_| (close(9), false)));
    assert_case_fails("bistream/id-parity", &["end of the connection"], bistream(|_| (vec![], true)));
    // Refusals: another code, another rule, none, and the session ended for it.
    for (code, rule) in [(9, 49), (8, 48)] {
        let script = bistream(move |header| (refused(header, code, rule), false));
        assert_case_fails("bistream/priority", &[&format!("code: {code}"), &format!("int2: {rule}")], script);
    }
    assert_case_fails("bistream/priority", &["nothing"], bistream(|_| (vec![], false)));
    assert_case_fails("bistream/priority", &["rule: 49"], bistream(|_| (close(49), true)));
    // The refusal is right, and the link serves no legacy call any more.
    let open_only = |header: &Header| match header.procedure == PROCEDURE_BASE + 1 {
        true => (refused(header, 8, 49), false),
        false => (vec![], false),
    };
    assert_case_fails("bistream/priority", &["legacy call", "nothing"], bistream(open_only));
    // HELLO: refused with the code of a legacy peer, answered though it should be refused, and an unanswered one.
    assert_case_fails("bistream/version", &["code: 39"], |header, _| (refused(header, 39, 53), false));
    assert_case_fails("bistream/version", &["Reply Ok"], bistream(|_| (vec![], false)));
    assert_case_fails("bistream/hello", &["nothing"], |_, _| (vec![], false));
    // Something of BiStream on a link whose peer began badly.
    assert_case_fails("bistream/hello-first-data", &["nothing of BiStream"], |header, _| match header.kind {
        0 => (legacy(header, |_| ()), false),
        _ => (close(5), false),
    });
    // PONG: another token.
    assert_case_fails("bistream/ping", &["token"], |header, body| {
        let good = bistream(|_| (vec![], false))(header, body);
        let pong = Header { procedure: PROCEDURE_BASE + 6, ..*header };
        if header.kind == 2 { (packet(pong, &Ping { token: 77 }), false) } else { good }
    });
    // A legacy peer that closes on HELLO, or has another code for it.
    assert_case_fails(LEGACY_PEER, &["end of the connection"], |header, _| {
        (legacy(header, |_| ()), header.procedure == IS_HELLO)
    });
    assert_case_fails(LEGACY_PEER, &["Some(1)"], |header, _| (legacy(header, |error| error.code = 1), false));
}

/// Every case ends, whatever the peer does, and few can be passed by one that does nothing right.
#[test]
fn no_wrong_peer_passes_keeps_or_breaks_the_battery() {
    let scratch = Scratch::new();
    scripted(&scratch.join("silent"), |_, _| (vec![], false));
    scripted(&scratch.join("closing"), |_, _| (vec![], true));
    scripted(&scratch.join("refusing"), |header, _| (legacy(header, |_| ()), false));
    for name in ["silent", "closing", "refusing"] {
        let bistream = names(|name, needs| name.starts_with("bistream/") && needs == "nothing");
        let run = conformance(&format!("unix:{}", scratch.join(name).display()))
            .args(["--timeout", "0.1"])
            .args(bistream.iter().filter(|name| *name != LEGACY_PEER).flat_map(|name| ["--case", name]));
        let (passed, _) = report(&run.finish(PATIENCE));
        // Those that ask for nothing but silence.
        let innocent = |name: &String| {
            ["hello-first", "reply-to-no-hello", "silent-before-hello"].iter().any(|part| name.contains(part))
        };
        assert!(passed.iter().all(|case| name == "refusing" && innocent(case)), "{name}: {passed:?}");
    }
    // Limits that there cannot be.
    for max_data in [0, 4095, u32::MAX] {
        let path = scratch.join(&format!("limits-{max_data}"));
        scripted(&path, move |header, _| {
            let reply =
                HelloReply { version: 1, features: 0, limits: Limits { max_data, max_streams: 4 }, extensions: vec![] };
            (if header.procedure == IS_HELLO { packet(answer(header, 0), &reply) } else { vec![] }, false)
        });
        let run = conformance(&format!("unix:{}", path.display())).args(["--timeout", "0.2", "--target", "x"]);
        let finished = run.args(["--case", "bistream/echo", "--case", "bistream/data-too-long"]).finish(PATIENCE);
        assert_eq!(report(&finished).1.len(), 2, "{finished}");
    }
}

#[test]
fn a_peer_that_never_answers_hello_fails_in_one_case() {
    let scratch = Scratch::new();
    let path = scratch.join("peer");
    scripted(&path, |_, _| (vec![], false));
    let run = conformance(&format!("unix:{}", path.display())).args(["--timeout", "0.3", "--section", "bistream"]);
    assert_eq!(report(&run.finish(PATIENCE)), (vec![], vec!["bistream/hello".to_owned()]));
}
