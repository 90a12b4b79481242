//! The operator's tool: two-way streams over one connection, for migrations with unmodified libvirt and QEMU.

mod args;
mod config;
mod conformance;
mod control;
mod demo;
mod desk;
mod events;
mod forward;
mod generate;
mod help;
mod inherited;
mod limit;
mod link;
mod listen;
mod logging;
mod metrics;
mod migrate;
mod nbd;
mod notify;
mod pki;
mod policy;
mod probe;
mod running;
mod serve;
mod sparing;
mod status;
mod stderr;
mod ticket;
mod uri;
mod values;

use std::process::ExitCode;

use args::{Cli, Command};
use inherited::Inherited;
use stderr::Stderr;

/// What the binary `virbistream` does with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = Cli::of_this_process();
    // It changes the environment, which takes that there are no other threads yet.
    let inherited = Inherited::of_this_process();
    let stderr = match Stderr::new(cli.log_format) {
        Ok(stderr) => stderr,
        Err(error) => {
            eprintln!("virbistream: no thread can be had: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = run(&cli, inherited, &stderr);
    stderr.finish();
    code
}

fn run(cli: &Cli, inherited: Inherited, stderr: &Stderr) -> ExitCode {
    logging::start(cli.verbose, cli.log_format, stderr);
    let done = |()| ExitCode::SUCCESS;
    let result = match &cli.command {
        Command::Migrate(args) => migrate::run(args, stderr)
            .map(done)
            .map_err(|failure| (ExitCode::from(failure.code()), failure.to_string())),
        Command::Serve(args) => serve::run(args, inherited).map(done).map_err(failed),
        Command::CheckConfig(args) => serve::check(&args.file).map(done).map_err(failed),
        Command::Ticket(args) => ticket::run(args).map(done).map_err(failed),
        Command::Status(args) => status::run(args).map(done).map_err(failed),
        Command::Limit(args) => limit::run(args).map(done).map_err(failed),
        Command::Forward(args) => forward::run(args).map(done).map_err(failed),
        Command::Demo(args) => demo::run(args).map(done).map_err(failed),
        Command::Probe(args) => probe::run(args).map(|found| found.exit_code()).map_err(failed),
        Command::Conformance(args) => conformance::run(args).map_err(failed),
        Command::Generate(args) => generate::run(&args.directory).map(done).map_err(failed),
    };
    match result {
        Ok(code) => code,
        Err((code, sentence)) => {
            log::error!("{sentence}");
            code
        }
    }
}

/// What the fuzzer asserts of any text of a `serve --config`: it is read whole, or has at least one mistake, each on a line of it.
#[doc(hidden)]
pub fn bear_configuration(text: &str) {
    let Err(mistakes) = config::Settings::read(text, |_| Ok(())) else { return };
    let lines = 1 + text.matches('\n').count();
    assert!(!mistakes.is_empty() && mistakes.is_sorted(), "{mistakes:?}");
    for mistake in mistakes {
        assert!((1..=lines).contains(&mistake.line) && !mistake.sentence.is_empty(), "{mistake:?} of {lines} lines");
    }
}

fn failed(error: impl ToString) -> (ExitCode, String) {
    (ExitCode::FAILURE, error.to_string())
}
