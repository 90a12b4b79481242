//! `virbistream ticket`: has a running `serve` make one. And how one is said.

use std::path::Path;

use serde_json::json;
use virbistream::wire::{EXT_TICKET, Extension};

use crate::args::TicketArgs;
use crate::control;
use crate::policy::Secret;

pub(crate) fn run(args: &TicketArgs) -> Result<(), String> {
    let asked = json!({ "targets": args.target, "migrate": args.migrate, "seconds": args.valid.as_secs() });
    let answer = control::ask(&args.control, &json!({ "ticket": asked }))?;
    println!("{}", answer.as_str().ok_or("the control socket gave no ticket")?);
    Ok(())
}

/// What HELLO says of the ticket in a file, or on stdin where that is `-`.
///
/// # Errors
/// A sentence.
pub(crate) fn read(path: &Path) -> Result<Extension, String> {
    let text = match path == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(path),
    };
    let failed = |error: String| format!("{}: {error}", path.display());
    let secret: Secret = text.map_err(|error| failed(error.to_string()))?.parse().map_err(failed)?;
    Ok(Extension { kind: EXT_TICKET, needed: true, value: secret.0.to_vec() })
}
