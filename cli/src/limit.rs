//! `virbistream limit`: changes how fast a running command sends.

use serde_json::json;

use crate::args::LimitArgs;
use crate::control;

pub(crate) fn run(args: &LimitArgs) -> Result<(), String> {
    let question = json!({ "limit": { "rate": args.rate.0, "session": args.session, "target": args.target } });
    control::ask(&args.control, &question).map(drop)
}
