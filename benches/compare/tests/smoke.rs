//! The whole comparison over little: every byte that goes through a contender is compared on the way, so it ends well only if all came.

use std::path::Path;
use std::process::Command;

#[test]
fn all_that_are_here_carry_every_byte() {
    let me = Path::new(env!("CARGO_BIN_EXE_virbistream-compare"));
    let folder = tempfile::tempdir().expect("a folder");
    let plot = folder.path().join("plots/compare.svg");
    let mut compare = Command::new(me);
    compare.arg("--smoke").arg("--plot").arg(&plot);
    // It lies there when all of the workspace is tested; otherwise the comparison builds one.
    let tool = me.with_file_name("virbistream");
    if tool.is_file() {
        compare.arg("--tool").arg(tool);
    }
    let output = compare.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for name in ["virbistream", "socat", "socat -b 262144", "ssh -L", "tokio", "tokio 256 KiB", "yamux"] {
        let rows = said.lines().filter(|line| line.starts_with(&format!("| {name} "))).count();
        assert!(rows >= 4, "{name} has {rows} tables:\n{said}");
    }
    assert!(said.contains("| Go ") || said.contains("Go is left out"), "Go is neither measured nor left out:\n{said}");
    let plot = std::fs::read_to_string(plot).expect("a plot");
    assert!(plot.starts_with("<svg") && plot.contains("GiB/s"), "{plot}");
}
