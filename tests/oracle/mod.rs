//! A C program made by rpcgen from `xdr/bistream.x`: a second opinion on every byte.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::{fs, io, process};

const SPEC: &str = include_str!("../../xdr/bistream.x");
const PROGRAM: &str = include_str!("oracle.c");
const LIBTIRPC: &str = "/usr/include/tirpc";

/// The program, running; it ends when the test process does.
pub(crate) struct Oracle {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    _process: Child,
}

/// The one oracle of this test process.
pub(crate) fn oracle() -> MutexGuard<'static, Oracle> {
    static ORACLE: LazyLock<Mutex<Oracle>> = LazyLock::new(|| Mutex::new(Oracle::start()));
    ORACLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every constant and enum member of the `.x`, in its order.
pub(crate) fn names() -> Vec<&'static str> {
    let definition = |line: &'static str| {
        let name = line.trim().trim_start_matches("const ").split_once(" = ")?.0;
        name.starts_with("BS_").then_some(name)
    };
    SPEC.lines().filter_map(definition).collect()
}

impl Oracle {
    fn start() -> Self {
        let folder = Folder::new();
        fs::write(folder.0.join("bistream.x"), SPEC).unwrap();
        fs::write(folder.0.join("oracle.c"), PROGRAM).unwrap();
        let constants: String = names().iter().map(|name| format!("CONSTANT({name})\n")).collect();
        fs::write(folder.0.join("constants.inc"), constants).unwrap();
        if !Path::new(LIBTIRPC).join("rpc/rpc.h").exists() {
            panic!("{LIBTIRPC}/rpc/rpc.h is missing: install the package libtirpc-dev");
        }
        folder.run("rpcsvc-proto", &["rpcgen", "-C", "-h", "-o", "bistream.h", "bistream.x"]);
        folder.run("rpcsvc-proto", &["rpcgen", "-C", "-c", "-o", "bistream_xdr.c", "bistream.x"]);
        folder.run("gcc", &["gcc", "-I", LIBTIRPC, "-o", "oracle", "oracle.c", "bistream_xdr.c", "-ltirpc"]);
        let mut process = Command::new(folder.0.join("oracle"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the oracle was just built");
        Self {
            to: process.stdin.take().unwrap(),
            from: BufReader::new(process.stdout.take().unwrap()),
            _process: process,
        }
    }

    /// What each constant of [`names`] is to rpcgen.
    pub(crate) fn constants(&mut self) -> Vec<(String, u64)> {
        self.ask("constants");
        let mut constants = Vec::new();
        loop {
            let line = self.answer();
            let Some((name, value)) = line.split_once(' ') else { return constants };
            constants.push((name.to_owned(), value.parse().unwrap()));
        }
    }

    /// The encoding of a value told field by field.
    pub(crate) fn encode(&mut self, kind: &str, fields: &str) -> Vec<u8> {
        self.ask(&format!("encode {kind} {fields}"));
        from_hex(&self.answer())
    }

    /// The fields of a value, and its encoding again; or why there is none.
    pub(crate) fn decode(&mut self, kind: &str, bytes: &[u8]) -> Result<(String, Vec<u8>), String> {
        self.ask(&format!("decode {kind} {}", to_hex(bytes)));
        let answer = self.answer();
        match answer.split_once(" | ") {
            Some((fields, hex)) => Ok((fields.to_owned(), from_hex(hex))),
            None => Err(answer),
        }
    }

    fn ask(&mut self, request: &str) {
        writeln!(self.to, "{request}").expect("the oracle is running");
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        let read = self.from.read_line(&mut line).expect("the oracle is running");
        assert_ne!(read, 0, "the oracle died: its last words are on stderr");
        line.trim_end().to_owned()
    }
}

/// A place to build in, taken away once the program runs.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("oracle-{}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn run(&self, package: &str, command: &[&str]) {
        let (program, arguments) = command.split_first().unwrap();
        match Command::new(program).args(arguments).current_dir(&self.0).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("{program} is missing: install the package {package}")
            }
            Err(error) => panic!("{command:?}: {error}"),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16).unwrap_or_else(|| panic!("{hex}"))).collect();
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}
