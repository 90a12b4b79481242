//! `virbistream ticket`: has a running `serve` make one.

use serde_json::json;

use crate::args::TicketArgs;
use crate::control;

pub(crate) fn run(args: &TicketArgs) -> Result<(), String> {
    let question = json!({ "ticket": { "targets": args.target, "seconds": args.valid.as_secs() } });
    let answer = control::ask(&args.control, &question)?;
    println!("{}", answer.as_str().ok_or("the control socket gave no ticket")?);
    Ok(())
}
