//! Which cases are run, and how it ends.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use super::case::{Case, Fault, Needs, Setting};
use super::tap::Tap;
use super::{ConformanceArgs, Section, bistream, legacy, rules, storage};
use crate::link::Link;
use crate::probe::{self, Found};

/// Every case there is.
pub(super) fn all() -> Vec<Case> {
    let bistream = [vec![bistream::legacy_peer()], bistream::cases(), rules::cases()];
    [legacy::cases(), storage::cases()].into_iter().chain(bistream).flatten().collect()
}

/// Success: every case was.
pub(crate) fn run(args: &ConformanceArgs) -> Result<ExitCode, String> {
    let chosen: Vec<Case> = all().into_iter().filter(|case| is_chosen(case, args)).collect();
    let uri = match &args.uri {
        Some(uri) if !args.list => uri.clone(),
        _ => {
            let listed = list(&chosen).map_err(|error| format!("cannot write the list: {error}"));
            return listed.map(|()| ExitCode::SUCCESS);
        }
    };
    let setting = Setting { uri, timeout: args.patience.timeout, pool: args.pool.clone(), target: args.target.clone() };
    // Where nobody is, that is said once and not by every case.
    Link::connect(&setting.uri, Instant::now() + setting.timeout)
        .map_err(|error| format!("cannot connect to {}: {error}", setting.uri))?;
    let cases = match chosen.iter().any(is_bistream) {
        true => fitting(chosen, &setting, !args.case.is_empty())?,
        false => chosen,
    };
    report(&cases, &setting, args.no_write).map_err(|error| format!("cannot write the report: {error}"))
}

fn list(cases: &[Case]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    cases.iter().try_for_each(|case| writeln!(out, "{}: {} (needs {})", case.name, case.what, case.needs))?;
    out.flush()
}

fn is_chosen(case: &Case, args: &ConformanceArgs) -> bool {
    is_in(case.name, args.section) && (args.case.is_empty() || args.case.iter().any(|name| name == case.name))
}

/// Whether the case of this name is of the section, if one is wanted.
pub(super) fn is_in(name: &str, wanted: Option<Section>) -> bool {
    let section = if name.starts_with("bistream/") { Section::Bistream } else { Section::Legacy };
    wanted.is_none_or(|wanted| wanted == section)
}

fn is_bistream(case: &Case) -> bool {
    case.name.starts_with("bistream/")
}

/// A peer that does not know HELLO has one case of BiStream's, and a BiStream peer has all others. Who names cases has them.
fn fitting(mut chosen: Vec<Case>, setting: &Setting, by_name: bool) -> Result<Vec<Case>, String> {
    if by_name {
        return Ok(chosen);
    }
    let is_legacy_case = |case: &Case| case.name == bistream::LEGACY_PEER;
    match probe::find(&setting.uri, setting.timeout) {
        Ok(Found::BiStream { .. }) => chosen.retain(|case| !is_legacy_case(case)),
        Ok(Found::Legacy(_)) => chosen.retain(|case| !is_bistream(case) || is_legacy_case(case)),
        Err(error @ probe::Error::Connect { .. }) => return Err(error.to_string()),
        // One that answers HELLO in no way that there is fails in one case, not in all.
        Err(error) => {
            chosen.retain(|case| !is_bistream(case));
            let got = error.to_string();
            let fault = move |_: &Setting| Err(Fault::new("an answer to HELLO", &got));
            chosen.push(Case::new(bistream::HELLO, "HELLO is answered", Needs::Nothing, fault));
        }
    }
    Ok(chosen)
}

fn report(cases: &[Case], setting: &Setting, no_write: bool) -> io::Result<ExitCode> {
    let mut tap = Tap::begin(io::stdout(), cases.len())?;
    let mut failed = false;
    for case in cases {
        if no_write && case.needs == Needs::Pool {
            tap.passed_over(case.name, "--no-write")?;
            continue;
        }
        let verdict = case.run(setting);
        failed |= verdict.is_err();
        tap.result(case.name, &verdict)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
