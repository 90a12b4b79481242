//! The operator's tool; what it does is in the library beside.

use std::process::ExitCode;

fn main() -> ExitCode {
    virbistream_cli::main()
}
