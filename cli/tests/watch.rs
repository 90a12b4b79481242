//! What runs is seen and limited from outside: `virbistream status` and `limit`.

mod support;

use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use support::bytes::MIB;
use support::echo::{assert_echoes, connect, echo_on};
use support::process::{Process, Run};
use support::qmp::Qmp;
use support::tool::{ANY_PORT, assert_fails, forward, serve, tool};
use support::{PATIENCE, Scratch, wait_for};

/// Both ends with control sockets, and an echo behind `echo`.
struct Ends {
    serve: Process,
    forward: Process,
    near: PathBuf,
    controls: [PathBuf; 2],
}

impl Ends {
    #[track_caller]
    fn start(scratch: &Scratch) -> Self {
        let controls = ["serve.control", "forward.control"].map(|name| scratch.join(name));
        let names = ["echo", "disk"];
        let paths = |end: &str| names.map(|name| scratch.join(&format!("{end}.{name}")));
        let (near, far) = (paths("near"), paths("far"));
        echo_on(&far[0]);
        let targets = names.iter().copied().zip(far.iter().map(PathBuf::as_path));
        let metrics = ["serve.metrics", "forward.metrics"].map(|name| format!("unix:{}", scratch.join(name).display()));
        let serve =
            serve(ANY_PORT, targets).arg("--control").arg(&controls[0]).args(["--metrics", &metrics[0]]).start();
        let sockets = names.iter().copied().zip(near.iter().map(PathBuf::as_path));
        let forward = forward(&serve.ready(), sockets).arg("--control").arg(&controls[1]);
        let forward = forward.args(["--metrics", &metrics[1]]).start();
        forward.ready();
        Self { serve, forward, near: near[0].clone(), controls }
    }

    #[track_caller]
    fn end(self) {
        self.forward.end_well(&[&self.near, &self.controls[1]]);
        self.serve.end_well(&[&self.controls[0]]);
    }
}

fn status(control: &Path) -> Run {
    tool().args(["status", "--control"]).arg(control)
}

#[track_caller]
fn seen(control: &Path) -> Value {
    let said = status(control).arg("--json").succeed(PATIENCE);
    serde_json::from_str(&said.stdout).expect("JSON")
}

#[track_caller]
fn limit(control: &Path, arguments: &[&str]) {
    tool().args(["limit", "--control"]).arg(control).args(arguments).succeed(PATIENCE);
}

/// The first stream to this target.
fn stream<'a>(status: &'a Value, target: &str) -> Option<&'a Value> {
    let streams = status["sessions"][0]["streams"].as_array()?;
    streams.iter().find(|stream| stream["target"] == target)
}

#[test]
fn both_ends_show_their_session_its_streams_and_the_disk_of_one() {
    let scratch = Scratch::new();
    let image = scratch.join("image");
    std::fs::File::create(&image).and_then(|file| file.set_len(8 * MIB)).expect("an image");
    let mut disk = Run::new("nbdkit", "nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(scratch.join("far.disk"))
        .arg("--pidfile")
        .arg(scratch.join("pid"))
        .arg("file")
        .arg(&image)
        .start();
    wait_for("nbdkit to listen", PATIENCE, || {
        disk.assert_alive();
        std::fs::read_to_string(scratch.join("pid")).is_ok_and(|pid| !pid.is_empty()).then_some(())
    });
    let ends = Ends::start(&scratch);
    let echo = connect(&ends.near);
    assert_echoes(&echo, b"twelve bytes");
    let path = scratch.join("qmp");
    let _client = Run::new("qemu-storage-daemon", "qemu-system-common")
        .arg("--chardev")
        .arg(format!("socket,path={},server=on,wait=off,id=qmp", path.display()))
        .args(["--monitor", "chardev=qmp"])
        .start();
    let mut qmp = Qmp::connect("qemu-storage-daemon", &path);
    let server = json!({"type": "unix", "path": scratch.join("near.disk")});
    qmp.call("blockdev-add", json!({"driver": "nbd", "node-name": "it", "export": "vda", "server": server}));

    for control in &ends.controls {
        let status = wait_for("what both streams did", PATIENCE, || {
            let status = seen(control);
            let echoed = stream(&status, "echo")?["received"] == 12 && !stream(&status, "disk")?["disk"].is_null();
            echoed.then_some(status)
        });
        let session = &status["sessions"][0];
        assert_eq!(status["sessions"].as_array().map(Vec::len), Some(1), "{status}");
        assert_eq!((&session["session"], &session["version"]), (&json!(1), &json!(1)));
        assert!(session["peer"].as_str().is_some_and(|text| text.starts_with("tcp://127.0.0.1:")), "{status}");
        assert!(session["sent"].as_u64() > Some(12) && session["received"].as_u64() > Some(12), "{status}");
        let echo = stream(&status, "echo").expect("it stands");
        assert_eq!((&echo["sent"], &echo["received"], &echo["consumed"]), (&json!(12), &json!(12), &json!(12)));
        assert_eq!(echo["disk"], Value::Null);
        let disk = &stream(&status, "disk").expect("it stands")["disk"];
        assert_eq!((&disk["export"], &disk["size"], &disk["written"]), (&json!("vda"), &json!(8 * MIB), &json!(0)));
        let table = self::status(control).succeed(PATIENCE).stdout;
        for word in ["session 1 with tcp://127.0.0.1:", "BiStream 1", "echo", "vda", "of 8.0 MiB", "256.0 KiB"] {
            assert!(table.contains(word), "no {word:?} in {table}");
        }
    }
    for end in ["serve", "forward"] {
        let body = metrics(&scratch, end);
        let size =
            "virbistream_stream_disk_size_bytes{session=\"1\",stream=\"3\",target=\"disk\",export=\"vda\"} 8388608";
        assert!(body.lines().any(|line| line == size), "{body}");
    }
    drop(echo);
    qmp.call("blockdev-del", json!({"node-name": "it"}));
    let uri = format!("nbd+unix:///vda?socket={}", scratch.join("near.disk").display());
    Run::new("qemu-io", "qemu-utils").args(["-f", "raw", "-c", "write 0 64k", &uri]).succeed(PATIENCE);
    for end in ["serve", "forward"] {
        // What was done stays when the streams are gone.
        let body = wait_for("the end of both streams", PATIENCE, || {
            let body = metrics(&scratch, end);
            (!body.contains("stream=")).then_some(body)
        });
        for (name, least) in [
            ("sent_bytes_total", 12),
            ("received_bytes_total", 12),
            ("disk_written_bytes_total", 65_536),
            ("disk_zeroed_bytes_total", 0),
        ] {
            assert!(sum(&body, name) >= least, "{name}: {body}");
        }
    }
    ends.end();
}

#[test]
fn a_limit_of_all_of_a_session_and_of_a_target_holds_until_it_is_lifted() {
    let scratch = Scratch::new();
    let ends = Ends::start(&scratch);
    let control = &ends.controls[1];
    for of in [&[][..], &["--session", "1"], &["--target", "echo"]] {
        let mut echo = connect(&ends.near);
        assert_echoes(&echo, b"before");
        limit(control, &[of, &["1"]].concat());
        let mut sending = echo.try_clone().expect("a second descriptor");
        let sender =
            std::thread::spawn(move || sending.write_all(&vec![7; MIB as usize]).expect("the other end reads"));
        let sent = || seen(control)["sessions"][0]["streams"][0]["sent"].as_u64().expect("a number");
        // What may go at once has gone; the rest would take days.
        wait_for("the first bytes", PATIENCE, || (sent() > 6).then_some(()));
        for _ in 0..5 {
            assert!(sent() < MIB / 4, "{of:?}: {} bytes sent", sent());
        }
        limit(control, &[of, &["none"]].concat());
        let mut back = vec![0; MIB as usize];
        echo.read_exact(&mut back).expect("the echo");
        sender.join().expect("no panic");
        drop(echo);
        wait_for("the stream's end", PATIENCE, || {
            (seen(control)["sessions"][0]["streams"].as_array().map(Vec::len) == Some(0)).then_some(())
        });
    }
    ends.end();
}

/// An answer to this first line of a request.
#[track_caller]
fn ask(mut connection: impl Read + Write, line: &str) -> String {
    write!(connection, "{line} HTTP/1.1\r\nHost: here\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer that ends");
    answer
}

/// What an end tells Prometheus, whose own parser has nothing against it.
#[track_caller]
fn metrics(scratch: &Scratch, end: &str) -> String {
    let answer = ask(connect(&scratch.join(&format!("{end}.metrics"))), "GET /metrics");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let mut checked = Run::new("promtool", "prometheus").args(["check", "metrics"]).with_stdin().start();
    checked.say(body.as_bytes()).expect("promtool reads");
    let checked = checked.finish(PATIENCE);
    assert!(checked.status.success(), "{checked}\n{body}");
    body.to_owned()
}

/// One that has no labels.
#[track_caller]
fn sum(body: &str, name: &str) -> u64 {
    let line = body.lines().find_map(|line| line.strip_prefix(&format!("virbistream_{name} ")));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {body}"))
}

#[test]
fn prometheus_own_parser_takes_the_metrics_of_both_ends() {
    let scratch = Scratch::new();
    let ends = Ends::start(&scratch);
    let echo = connect(&ends.near);
    assert_echoes(&echo, b"twelve bytes");
    for end in ["serve", "forward"] {
        let body = metrics(&scratch, end);
        let labels = "{session=\"1\",stream=\"1\",target=\"echo\"}";
        for sample in [
            "virbistream_sessions_begun_total 1",
            "virbistream_streams_opened_total 1",
            &format!("virbistream_stream_sent_bytes_total{labels} 12"),
            &format!("virbistream_stream_received_bytes_total{labels} 12"),
        ] {
            assert!(body.lines().any(|line| line == sample), "no {sample} in {body}");
        }
        let socket = scratch.join(&format!("{end}.metrics"));
        assert!(ask(connect(&socket), "GET /").starts_with("HTTP/1.1 404 "));
        assert!(ask(connect(&socket), "GET /metrics?x=1").starts_with("HTTP/1.1 200 "));
        let refused = ask(connect(&socket), "POST /metrics");
        assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("\r\nAllow: GET\r\n"), "{refused}");
        // A peer's port is nobody's counter.
        let of_peers: Vec<_> = body.lines().filter(|line| line.contains("peer=")).collect();
        assert!(
            of_peers.len() == 1 && of_peers[0].starts_with("virbistream_session_info{session=\"1\",peer=\"tcp://"),
            "{body}"
        );
    }
    drop(echo);
    wait_for("the end of the stream", PATIENCE, || (!metrics(&scratch, "serve").contains("stream=")).then_some(()));
    assert!(sum(&metrics(&scratch, "serve"), "sent_bytes_total") > 12);
    ends.end();
}

#[test]
fn metrics_are_for_this_host_alone() {
    let scratch = Scratch::new();
    let near = scratch.join("near");
    let run = |address: &str| forward("unix:/nowhere", [("disk", &*near)]).args(["--metrics", address]);
    for address in ["tcp://0.0.0.0:0", "tcp://192.0.2.1:9100", "tls://127.0.0.1:9100"] {
        let finished = run(address).finish(PATIENCE);
        assert_eq!(finished.status.code(), Some(2), "{finished}");
        assert!(finished.stderr.contains("tcp://127.0.0.1:PORT or unix:PATH"), "{finished}");
    }
    let far = scratch.join("far");
    let serve = serve(ANY_PORT, [("disk", &*far)]).args(["--metrics", "tcp://127.0.0.1:0"]).start();
    serve.ready();
    let line = serve.line_on_stderr("where the metrics are", |line| line.contains("metrics on tcp://"));
    let (_, address) = line.split_once("tcp://").expect("an address");
    let connect = || TcpStream::connect(address).expect("it listens");
    // Who says nothing has a second: on a machine that is slow he may be gone before another is answered, but not each time.
    let others_are_answered_meanwhile = (0..10).any(|_| {
        let mut silent = [(); 3].map(|()| connect());
        assert!(ask(connect(), "GET /metrics").contains("virbistream_sessions 0"));
        silent.iter_mut().all(|silent| {
            silent.set_nonblocking(true).expect("a socket");
            silent.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        })
    });
    assert!(others_are_answered_meanwhile);
    serve.end_well(&[]);
}

#[test]
fn what_cannot_be_shown_or_limited_is_said() {
    let scratch = Scratch::new();
    let nothing = scratch.join("nothing");
    assert_fails(status(&nothing).arg("--once"), &["the control socket", "No such file or directory"]);
    let ends = Ends::start(&scratch);
    let limit = |arguments: &[&str]| tool().args(["limit", "--control"]).arg(&ends.controls[1]).args(arguments);
    assert_fails(limit(&["--session", "77", "1MiB"]), &["there is no session 77"]);
    assert_fails(limit(&["--target", "vda", "1MiB"]), &["no stream to `vda` stands now"]);
    let ticket = tool().args(["ticket", "--target", "echo", "--control"]).arg(&ends.controls[1]);
    assert_fails(ticket, &["tickets are made by serve"]);
    ends.end();
}

/// What was said, a JSON object on each line.
#[track_caller]
fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

#[test]
fn each_line_is_an_object_with_its_fields_where_that_is_asked_for() {
    let scratch = Scratch::new();
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    echo_on(&far);
    let json = ["--log-format", "json"];
    let serve = serve(ANY_PORT, [("echo", &*far)]).args(json).start();
    let forward = forward(&serve.ready(), [("echo", &*near)]).args(json).start();
    forward.ready();
    let echo = connect(&near);
    assert_echoes(&echo, b"twelve bytes");
    drop(echo);
    for end in [&forward, &serve] {
        end.line_on_stderr("the end of a stream", |line| line.contains("stream_ended"));
    }
    for ended in [forward.end_well(&[&near]), serve.end_well(&[])] {
        let events = events(&ended.stderr);
        assert!(events.iter().all(|event| event["time"].is_string() && event["message"].is_string()), "{events:?}");
        let end = events.iter().find(|event| event["event"] == "stream_ended").expect("the end of a stream");
        let fields = ["level", "session", "stream", "target", "sent", "received"].map(|key| &end[key]);
        assert_eq!(json!(fields), json!(["info", 1, 1, "echo", 12, 12]));
    }
    let nothing = scratch.join("nothing");
    let failed = status(&nothing).arg("--once").args(json).finish(PATIENCE);
    let [event] = &events(&failed.stderr)[..] else { panic!("{failed}") };
    assert_eq!(event["level"], "error");
    assert!(event["message"].as_str().is_some_and(|text| text.starts_with("the control socket")), "{event}");
}
