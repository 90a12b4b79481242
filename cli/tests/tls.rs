//! TLS with the real programs: libvirtd, virsh, openssl; and our own ends with one another.

#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};

use pki::{Authority, Leaf, Wanted};
use rcgen::ExtendedKeyUsagePurpose;
use rustix::process::Signal;
use support::bytes::Noise;
use support::echo::{accept_on, assert_ends, connect, echo_on};
use support::libvirtd::Libvirtd;
use support::process::{Finished, Process, Run};
use support::tool::{assert_fails, forward, serve, tool};
use support::{PATIENCE, Scratch, alone};

const ANY_TLS_PORT: &str = "tls://127.0.0.1:0";

/// A directory with keys for both roles, in a scratch directory of its own.
struct Keys {
    authority: Authority,
    scratch: Scratch,
}

impl Keys {
    fn new() -> Self {
        let this = Self { authority: Authority::new("authority"), scratch: Scratch::new() };
        this.authority.fill(&this.path());
        this
    }

    fn path(&self) -> PathBuf {
        self.scratch.join("pki")
    }

    /// Another directory with the same authority, and this certificate for clients.
    fn with_client(&self, name: &str, leaf: &Leaf) -> PathBuf {
        let path = self.scratch.join(name);
        fs::create_dir(&path).expect("a new directory");
        fs::write(path.join("cacert.pem"), self.authority.pem()).expect("a new file");
        leaf.write(&path, "client");
        path
    }
}

fn with_pki(run: Run, directory: &Path) -> Run {
    run.arg("--pki").arg(directory)
}

/// A serve that lets in whoever has a certificate of the authority's.
fn serving<'a>(listen: &str, targets: impl IntoIterator<Item = (&'a str, &'a Path)>, directory: &Path) -> Run {
    with_pki(serve(listen, targets), directory).args(["--allow-dn", "*"])
}

/// What a URI has behind its question mark.
fn uri(host_and_port: &str, directory: &Path) -> String {
    format!("qemu+tls://{host_and_port}/system?pkipath={}", directory.display())
}

/// Where `serve` listens, without the scheme.
fn host_and_port(serve: &Process) -> String {
    serve.ready().strip_prefix("tls://").expect("it listens over TLS").to_owned()
}

/// libvirtd with TLS for those of `dn`, or for all that have a certificate.
fn libvirtd(directory: &Path, dn: Option<&str>) -> Libvirtd {
    let file = |name: &str| directory.join(name).display().to_string();
    // A name may have the quotes that are not these.
    let allowed = dn.map_or(String::new(), |dn| format!("tls_allowed_dn_list = ['{dn}']\n"));
    Libvirtd::start_with(&format!(
        "listen_tls = 1\nkey_file = \"{}\"\ncert_file = \"{}\"\nca_file = \"{}\"\n{allowed}",
        file("serverkey.pem"),
        file("servercert.pem"),
        file("cacert.pem")
    ))
}

fn virsh(uri: &str, arguments: &[&str]) -> Finished {
    Run::new("virsh", "libvirt-clients").args(["-c", uri]).args(arguments).finish(PATIENCE)
}

#[test]
fn libvirtd_answers_our_client_on_its_tls_port_and_passes_its_section_whole() {
    let keys = Keys::new();
    let libvirtd = libvirtd(&keys.path(), None);
    let uri = uri("127.0.0.1", &keys.path());
    let probe = tool().args(["probe", &uri]).in_namespace_of(Some(libvirtd.network())).finish(PATIENCE);
    assert_eq!(probe.status.code(), Some(3), "{probe}");
    assert!(probe.stdout.starts_with("legacy\ncode: 39\n"), "{probe}");
    let conformance = tool().args(["conformance", &uri, "--section", "legacy", "--pool", "disks", "--timeout", "30"]);
    let conformance = conformance.in_namespace_of(Some(libvirtd.network())).succeed(3 * PATIENCE);
    assert!(conformance.stdout.lines().filter(|line| line.starts_with("ok ")).count() > 20, "{conformance}");
    assert!(!conformance.stdout.contains("not ok"), "{conformance}");
}

#[test]
fn the_name_that_we_give_a_certificate_is_the_one_that_libvirtd_allows_and_who_is_not_on_its_list_is_told() {
    let keys = Keys::new();
    let odd = keys.with_client("odd", &keys.authority.client("a+b <c>; #e"));
    let serve = serving(ANY_TLS_PORT, [("disk", Path::new("/nowhere"))], &keys.path()).start();
    let address = host_and_port(&serve);
    tool().args(["probe", &uri(&address, &odd)]).succeed(PATIENCE);
    let line = serve.line_on_stderr("who it is", |line| line.contains("TLS 1.3 with "));
    let (_, dn) = line.split_once("TLS 1.3 with ").expect("it is there");
    assert_eq!(dn, r"C=GB,O=Red\, Hat,CN=a\+b \<c\>\; #e");
    let libvirtd = libvirtd(&keys.path(), Some(dn));
    let probe = |directory: &Path| {
        tool().args(["probe", &uri("127.0.0.1", directory)]).in_namespace_of(Some(libvirtd.network())).finish(PATIENCE)
    };
    let allowed = probe(&odd);
    assert_eq!(allowed.status.code(), Some(3), "{allowed}");
    probe(&keys.path()).assert_failed_saying(&["cannot connect to qemu+tls://127.0.0.1", "TLS"]);
}

/// The tool in front of a libvirtd, over TLS.
fn front(libvirtd: &Libvirtd, directory: &Path) -> Process {
    let front = tool()
        .named("virbistream serve --libvirt")
        .args(["serve", "-v", "--listen", ANY_TLS_PORT, "--libvirt"])
        .arg(format!("unix:{}", libvirtd.socket().display()));
    with_pki(front, directory).args(["--allow-dn", "*"]).start()
}

#[test]
fn virsh_works_through_our_tls_port_with_its_streams_and_nobody_else_does() {
    let _alone = alone();
    let (keys, files) = (Keys::new(), Scratch::new());
    let libvirtd = Libvirtd::start();
    let front = front(&libvirtd, &keys.path());
    let address = host_and_port(&front);
    let through = uri(&address, &keys.path());
    for arguments in [&["version"][..], &["pool-list"], &["list", "--all"]] {
        let (direct, through) = (libvirtd.virsh(arguments), virsh(&through, arguments));
        assert!(through.status.success() && through.stdout == direct, "{direct}, but {through}");
    }
    // Both ways, more than any buffer.
    let (up, down) = (files.join("up"), files.join("down"));
    let mut bytes = vec![0; 24 << 20];
    Noise::new(5).fill(&mut bytes);
    fs::write(&up, &bytes).expect("a new file");
    for arguments in [
        &["vol-create-as", "disks", "v", "24M", "--format", "raw"][..],
        &["vol-upload", "v", &up.to_string_lossy(), "--pool", "disks"],
        &["vol-download", "v", &down.to_string_lossy(), "--pool", "disks"],
    ] {
        let finished = virsh(&through, arguments);
        assert!(finished.status.success(), "{finished}");
    }
    assert!(fs::read(&down).expect("it was downloaded") == bytes, "other bytes");
    // virsh ends TLS without a word: that is no failure of a session.
    assert_eq!(front.stderr.count(|line| line.contains("was cut")), 0, "{}", front.stderr.text());
    // Our own client through the same port: a BiStream peer, and libvirtd behind it.
    let probe = tool().args(["probe", &through]).succeed(PATIENCE);
    assert!(probe.stdout.starts_with("bistream\n"), "{probe}");
    let conformance = tool().args(["conformance", &through, "--section", "legacy", "--no-write", "--timeout", "30"]);
    let conformance = conformance.succeed(3 * PATIENCE);
    assert!(!conformance.stdout.contains("not ok"), "{conformance}");
    // A stranger, whatever program.
    let stranger = Authority::new("stranger").client("stranger");
    let stranger = keys.with_client("stranger", &stranger);
    let stranger = uri(&address, &stranger);
    let finished = virsh(&stranger, &["version"]);
    assert!(!finished.status.success(), "{finished}");
    // virsh judged its own certificate and went nowhere; a program that does not is judged here.
    tool().args(["probe", &stranger]).finish(PATIENCE).assert_failed_saying(&["of no authority that it trusts"]);
    front.line_on_stderr("why", |line| line.contains("of no authority that is trusted here"));
    front.end_well(&[]);
}

/// `serve` and `forward` over TLS, to the target `disk` on `far`; the socket `near` leads there.
fn ends(scratch: &Scratch, keys: &Keys) -> (Process, Process) {
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let serve = serving(ANY_TLS_PORT, [("disk", &*far)], &keys.path()).start();
    let address = serve.ready();
    let forward = with_pki(forward(&address, [("disk", &*near)]), &keys.path()).start();
    forward.ready();
    (serve, forward)
}

/// As the authority of the tests writes it.
fn dn(common_name: &str) -> String {
    format!(r"C=GB,O=Red\, Hat,CN={common_name}")
}

#[test]
fn a_name_that_is_not_allowed_has_no_session_even_where_plain_tcp_is_open() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    let [admin, mallory] = ["admin", "mallory"].map(|name| keys.with_client(name, &keys.authority.client(name)));
    let [near, far] = ["near", "far"].map(|name| scratch.join(name));
    echo_on(&far);
    let closed = with_pki(serve(ANY_TLS_PORT, [("disk", &*far)]), &keys.path()).args(["--allow-dn", &dn("admin")]);
    let open = with_pki(serve(ANY_TLS_PORT, [("disk", &*far)]), &keys.path()).args([
        "--allow-dn",
        &dn("admin"),
        "--listen",
        "tcp://0.0.0.0:0",
        "--insecure-tcp",
    ]);
    for run in [closed, open] {
        let serve = run.start();
        let addresses = serve.ready();
        let tls = addresses.split(' ').next().expect("an address");
        let reason = format!("no rule here lets {} in", dn("mallory"));
        let refused = with_pki(forward(tls, [("disk", &*near)]), &mallory).finish(PATIENCE);
        refused.assert_failed_saying(&[&reason]);
        serve.line_on_stderr("the refusal", |line| line.contains(&reason));
        let forward = with_pki(forward(tls, [("disk", &*near)]), &admin).start();
        forward.ready();
        support::echo::assert_echoes(&connect(&near), b"allowed");
        forward.end_well(&[&near]);
        serve.end_well(&[]);
    }
}

#[test]
fn a_name_that_is_not_allowed_has_each_call_to_libvirtd_refused() {
    let (keys, libvirtd) = (Keys::new(), Libvirtd::start());
    let [admin, mallory] = ["admin", "mallory"].map(|name| keys.with_client(name, &keys.authority.client(name)));
    let front = tool()
        .named("virbistream serve --libvirt")
        .args(["serve", "-v", "--listen", ANY_TLS_PORT, "--allow-dn", &dn("admin"), "--libvirt"])
        .arg(format!("unix:{}", libvirtd.socket().display()));
    let front = with_pki(front, &keys.path()).start();
    let address = host_and_port(&front);
    let refused = virsh(&uri(&address, &mallory), &["version"]);
    assert!(!refused.status.success(), "{refused}");
    let reason = format!("no rule here lets {} in", dn("mallory"));
    assert!(refused.stderr.contains(&reason), "{refused}");
    let allowed = virsh(&uri(&address, &admin), &["version"]);
    assert!(allowed.status.success(), "{allowed}");
    front.end_well(&[]);
}

#[test]
fn a_rule_of_a_file_is_for_a_name_that_the_certificate_is_for() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    let client = |name: &'static str| {
        let names = &[name];
        keys.with_client(name, &keys.authority.sign(&Wanted { names, ..Wanted::default() }))
    };
    let [inside, outside] = [client("vm.example.org"), client("vm.example.net")];
    let [near, far, file] = ["near", "far", "serve.toml"].map(|name| scratch.join(name));
    echo_on(&far);
    let config = |directory: &Path| {
        format!(
            "listen = ['{ANY_TLS_PORT}']\npki = '{}'\n[[target]]\nname = 'disk'\npath = '{}'\n\
             [[allow]]\nname = '*.example.org'\ntargets = ['disk']\n",
            directory.display(),
            far.display()
        )
    };
    let check = || tool().arg("check-config").arg(&file);
    fs::write(&file, config(&scratch.join("nothing"))).expect("written");
    assert_fails(check(), &["serve.toml:2: ", "cannot read", "nothing/cacert.pem"]);
    fs::write(&file, config(&keys.path())).expect("written");
    check().succeed(PATIENCE);
    let serve = tool().named("virbistream serve").args(["serve", "-v", "--config"]).arg(&file).start();
    let address = serve.ready();
    let refused = with_pki(forward(&address, [("disk", &*near)]), &outside).finish(PATIENCE);
    refused.assert_failed_saying(&["no rule here lets", "CN=host in"]);
    let forward = with_pki(forward(&address, [("disk", &*near)]), &inside).start();
    forward.ready();
    support::echo::assert_echoes(&connect(&near), b"allowed");
    forward.end_well(&[&near]);
    serve.end_well(&[]);
}

#[test]
fn streams_over_tls_carry_every_byte_half_close_and_stall_alone() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    let (serve, forward) = ends(&scratch, &keys);
    let targets = accept_on(&scratch.join("far"));
    let near = scratch.join("near");
    // One that nobody reads, full to the brim.
    let stalled = connect(&near);
    let _unread = targets.next();
    stalled.set_nonblocking(true).expect("a socket");
    let block = vec![9; 1 << 20];
    // More than the target's socket holds: the rest is ours to hold.
    let mut taken = 0;
    while taken < 400_000 {
        taken += (&stalled).write(&block).unwrap_or(0);
    }
    // One beside it.
    let mut client = connect(&near);
    let mut target = targets.next();
    let mut sent = vec![0; 48 << 20];
    Noise::new(7).fill(&mut sent);
    let (written, read) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&client).write_all(&sent).expect("taken");
            client.shutdown(Shutdown::Write).expect("a half-close");
        });
        let mut read = Vec::new();
        target.read_to_end(&mut read).expect("an orderly end");
        (writer.join(), read)
    });
    written.expect("no panic");
    assert!(read == sent, "{} bytes came", read.len());
    // The other direction is still open.
    let mut back = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            target.write_all(&sent[..5_000_000]).expect("taken");
            target.shutdown(Shutdown::Write).expect("a half-close");
        });
        client.read_to_end(&mut back).expect("an orderly end");
    });
    assert!(back == sent[..5_000_000], "{} bytes came back", back.len());
    drop((client, target, stalled, _unread));
    forward.end_well(&[&near]);
    serve.end_well(&[]);
}

#[test]
fn forward_says_in_one_sentence_why_it_is_not_let_in_and_serve_why_it_lets_nobody_in() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    let serve = serving(ANY_TLS_PORT, [("disk", Path::new("/nowhere"))], &keys.path()).start();
    let address = host_and_port(&serve);
    let expired = keys.authority.sign(&Wanted { until: 2001, ..Wanted::default() });
    let stranger = Authority::new("stranger");
    stranger.fill(&scratch.join("other"));
    for (host, directory, ours, theirs) in [
        ("127.0.0.1", keys.with_client("expired", &expired), "our certificate has expired", "has expired"),
        (
            "127.0.0.1",
            keys.with_client("stranger", &stranger.client("stranger")),
            "of no authority that it trusts",
            "of no authority that is trusted here",
        ),
        ("127.0.0.1", scratch.join("other"), "of no authority that is trusted here", "of no authority that it trusts"),
        ("127.0.0.2", keys.path(), "is not for `127.0.0.2`", "does not accept our certificate"),
    ] {
        let port = address.rsplit_once(':').expect("a port").1;
        let peer = if host == "127.0.0.1" { address.clone() } else { format!("{host}:{port}") };
        // To another of the loopback's addresses a connection of its own is needed.
        let other = (host != "127.0.0.1")
            .then(|| serving("tls://127.0.0.2:0", [("disk", Path::new("/nowhere"))], &keys.path()).start());
        let peer = other.as_ref().map_or(peer, host_and_port);
        let serve = other.as_ref().unwrap_or(&serve);
        let forward = forward(&format!("tls://{peer}"), [("disk", &*scratch.join("near"))]);
        let finished = with_pki(forward, &directory).finish(PATIENCE);
        finished.assert_failed_saying(&["the session with tls://", "is over: the link could not be secured: ", ours]);
        serve.line_on_stderr("why", |line| line.contains("could not be secured") && line.contains(theirs));
    }
    serve.end_well(&[]);
}

#[test]
fn what_is_wrong_with_the_files_is_said_before_anything_listens() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    let run = |directory: &Path| serving(ANY_TLS_PORT, [("disk", Path::new("/nowhere"))], directory);
    assert_fails(run(&scratch.join("nothing")), &["cannot read", "nothing/cacert.pem"]);
    let broken = scratch.join("broken");
    keys.authority.fill(&broken);
    fs::write(broken.join("serverkey.pem"), "junk").expect("written");
    assert_fails(run(&broken), &["broken/serverkey.pem", "no private key"]);
    keys.authority.client("other").write(&broken, "server");
    fs::copy(keys.path().join("serverkey.pem"), broken.join("serverkey.pem")).expect("copied");
    assert_fails(run(&broken), &["broken/servercert.pem", "broken/serverkey.pem", "another key"]);
    let near = scratch.join("near");
    let client = with_pki(forward("tls://127.0.0.1:1", [("disk", &*near)]), &scratch.join("nothing"));
    assert_fails(client, &["cannot read", "nothing/cacert.pem"]);
    assert_fails(tool().args(["probe", &uri("127.0.0.1:1", &scratch.join("nothing"))]), &["cannot read", "cacert.pem"]);
    let plain = with_pki(serve("tcp://127.0.0.1:0", [("disk", Path::new("/nowhere"))]), &keys.path()).finish(PATIENCE);
    assert_eq!(plain.status.code(), Some(2), "{plain}");
    assert!(plain.stderr.contains("--pki goes with a tls:// address"), "{plain}");
}

#[test]
fn sighup_takes_new_certificates_and_keeps_the_old_where_the_new_are_wrong() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    echo_on(&scratch.join("far"));
    let (serve, forward) = ends(&scratch, &keys);
    let address = serve.stdout.text().trim().trim_start_matches("ready tls://").to_owned();
    let standing = connect(&scratch.join("near"));
    let old = keys.scratch.join("old");
    keys.authority.fill(&old);
    let probe = |directory: &Path| tool().args(["probe", &uri(&address, directory)]).finish(PATIENCE);
    // Half of a new set.
    let certificate = fs::read(keys.path().join("servercert.pem")).expect("it is there");
    fs::write(keys.path().join("servercert.pem"), "junk").expect("written");
    serve.signal(Signal::HUP);
    serve.line_on_stderr("that they stay", |line| {
        line.contains("the certificates stay as they were") && line.contains("servercert.pem")
    });
    assert!(probe(&old).status.success());
    fs::write(keys.path().join("servercert.pem"), certificate).expect("written");
    // A whole one, of another authority.
    let next = Authority::new("next");
    next.fill(&keys.path());
    serve.signal(Signal::HUP);
    serve.line_on_stderr("that they are read", |line| line.contains("the certificates were read anew"));
    assert!(probe(&keys.path()).status.success());
    probe(&old).assert_failed_saying(&["of no authority that is trusted here"]);
    // Who was in stays.
    support::echo::assert_echoes(&standing, b"still here");
    drop(standing);
    forward.end_well(&[&scratch.join("near")]);
    serve.end_well(&[]);
}

/// openssl's client, which says what it is sent; it ends with the connection.
fn openssl(address: &str, more: &[&str]) -> Finished {
    let client = Run::new("openssl", "openssl").args(["s_client", "-connect", address, "-ign_eof"]).args(more);
    client.finish(PATIENCE)
}

#[test]
fn another_program_gets_in_with_a_certificate_alone_over_tls_1_2_and_1_3_and_no_older() {
    let keys = Keys::new();
    let run = serve(ANY_TLS_PORT, [("disk", Path::new("/nowhere"))]);
    let serve = with_pki(run, &keys.path()).args(["--allow-dn", "*"]).start();
    let address = host_and_port(&serve);
    let file = |name: &str| keys.path().join(name).display().to_string();
    let (certificate, key) = (file("clientcert.pem"), file("clientkey.pem"));
    let with_certificate = ["-cert", &certificate, "-key", &key];
    for (version, said) in [("-tls1_2", "TLS 1.2 with "), ("-tls1_3", "TLS 1.3 with ")] {
        let run = Run::new("openssl", "openssl").args(["s_client", "-connect", &address, version, "-quiet"]);
        let client = run.args(with_certificate).with_stdin().start();
        serve.line_on_stderr("who it is", |line| line.contains(said) && line.ends_with("CN=somebody"));
        // libvirt's word.
        client.line_on_stdout("the word that it is accepted", |line| line.as_bytes() == [1]);
        drop(client);
        // Without one, whatever the version.
        let finished = openssl(&address, &[version]);
        assert!(!finished.stdout.contains('\u{1}'), "{finished}");
        serve.line_on_stderr("why", |line| line.contains("the peer showed no certificate"));
    }
    let old = openssl(&address, &[&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..], &with_certificate].concat());
    assert!(!old.status.success(), "{old}");
    serve.line_on_stderr("why", |line| line.contains("neither TLS 1.3 nor a TLS 1.2 of today"));
    // No TLS at all.
    let mut plain = TcpStream::connect(&address).expect("somebody listens");
    plain.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("taken");
    plain.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.len() < 16, "an alert at the most: {answer:?}");
    serve.line_on_stderr("why", |line| line.contains("the peer broke TLS"));
    // Each link shows its certificates anew, whatever it was told by one before. Without -ign_eof it ends at once.
    let again = |more: &[&str]| {
        let client = Run::new("openssl", "openssl").args(["s_client", "-connect", &address]).args(more);
        client.args(with_certificate).finish(PATIENCE)
    };
    let reconnected = again(&["-tls1_2", "-reconnect"]);
    assert!(reconnected.stdout.matches("New, TLSv1.2").count() > 1, "{reconnected}");
    assert!(!reconnected.stdout.contains("Reused"), "{reconnected}");
    // No ticket comes, and so there is neither a session to resume nor early data.
    let session = keys.path().join("session");
    let first = again(&["-tls1_3", "-sess_out", &session.display().to_string()]);
    assert!(first.stdout.contains("New, TLSv1.3") && !first.stdout.contains("New Session Ticket arrived"), "{first}");
    serve.end_well(&[]);
}

#[test]
fn a_server_that_openssl_plays_must_be_the_one_that_was_dialled() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    let serving = ExtendedKeyUsagePurpose::ServerAuth;
    let other = keys.authority.sign(&Wanted { names: &["elsewhere"], purpose: serving, ..Wanted::default() });
    other.write(scratch.path(), "server");
    let file = |name: &str| scratch.join(name).display().to_string();
    let server = Run::new("openssl", "openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-cert", &file("servercert.pem"), "-key", &file("serverkey.pem")])
        .with_stdin()
        .start();
    let line = server.line_on_stdout("its port", |line| line.starts_with("ACCEPT "));
    let address = line.trim_start_matches("ACCEPT ").to_owned();
    let probe =
        |more: &str| tool().args(["probe", "--timeout", "3"]).arg(format!("{}{more}", uri(&address, &keys.path())));
    assert_fails(probe(""), &["is not for `127.0.0.1`, which was dialled, but for", "elsewhere"]);
    // Anybody will do: but this one never says libvirt's word.
    assert_fails(probe("&no_verify=1"), &["the time given has passed"]);
}

#[test]
fn a_lost_tls_connection_is_no_end_of_a_stream() {
    let (keys, scratch) = (Keys::new(), Scratch::new());
    let targets = accept_on(&scratch.join("far"));
    let (serve, mut forward) = ends(&scratch, &keys);
    let client = connect(&scratch.join("near"));
    let target = targets.next();
    serve.signal(Signal::KILL);
    assert_ends(&client);
    assert_ends(&target);
    let status = forward.wait(PATIENCE);
    assert!(!status.success());
    let stderr = forward.stderr.text();
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains("the TLS connection was cut") || last.contains("reset"), "{stderr}");
}
