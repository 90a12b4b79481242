//! The Test Anything Protocol, version 14.

use std::io::{self, Write};

use super::case::{Fault, Verdict};

/// Prints results as they come.
pub(super) struct Tap<W> {
    out: W,
    number: usize,
}

impl<W: Write> Tap<W> {
    pub(super) fn begin(mut out: W, cases: usize) -> io::Result<Self> {
        writeln!(out, "TAP version 14\n1..{cases}")?;
        Ok(Self { out, number: 0 })
    }

    pub(super) fn result(&mut self, name: &str, verdict: &Verdict) -> io::Result<()> {
        self.number += 1;
        match verdict {
            Ok(()) => writeln!(self.out, "ok {} - {name}", self.number)?,
            Err(Fault { expected, got }) => {
                writeln!(self.out, "not ok {} - {name}", self.number)?;
                writeln!(self.out, "  ---\n  expected: {}\n  got: {}\n  ...", quoted(expected), quoted(got))?;
            }
        }
        self.out.flush()
    }

    pub(super) fn passed_over(&mut self, name: &str, why: &str) -> io::Result<()> {
        self.number += 1;
        writeln!(self.out, "ok {} - {name} # SKIP {why}", self.number)?;
        self.out.flush()
    }
}

/// A double-quoted scalar of YAML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_numbered_and_faults_quoted() {
        let mut out = Vec::new();
        let mut tap = Tap::begin(&mut out, 3).expect("a writer");
        tap.result("a/b", &Ok(())).expect("a writer");
        tap.result("a/c", &Err(Fault::new("a \"b\"", "c\\d\n\u{7}"))).expect("a writer");
        tap.passed_over("a/d", "--no-write").expect("a writer");
        let text = "TAP version 14\n1..3\nok 1 - a/b\nnot ok 2 - a/c\n  ---\n  expected: \"a \\\"b\\\"\"\n  \
                    got: \"c\\\\d\\u000a\\u0007\"\n  ...\nok 3 - a/d # SKIP --no-write\n";
        assert_eq!(String::from_utf8_lossy(&out), text);
    }
}
