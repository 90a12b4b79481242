//! The operator's tool: two-way streams over one connection, for migrations with unmodified libvirt and QEMU.

mod args;
mod config;
mod conformance;
mod control;
mod demo;
mod desk;
mod forward;
mod limit;
mod link;
mod metrics;
mod nbd;
mod pki;
mod policy;
mod probe;
mod running;
mod serve;
mod status;
mod stderr;
mod ticket;
mod uri;
mod values;

use std::io::Write;
use std::process::ExitCode;

use env_logger::Target;

use args::{Cli, Command};
use stderr::Stderr;

fn main() -> ExitCode {
    let cli = Cli::of_this_process();
    let stderr = match Stderr::new() {
        Ok(stderr) => stderr,
        Err(error) => {
            eprintln!("virbistream: no thread can be had: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = run(&cli, &stderr);
    stderr.finish();
    code
}

fn run(cli: &Cli, stderr: &Stderr) -> ExitCode {
    let level = if cli.verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn };
    env_logger::Builder::new()
        .filter_level(level)
        .target(Target::Pipe(Box::new(stderr.clone())))
        .format(|out, record| writeln!(out, "virbistream: {}", record.args()))
        .init();
    let done = |()| ExitCode::SUCCESS;
    let result = match &cli.command {
        Command::Serve(args) => serve::run(args).map(done).map_err(|error| error.to_string()),
        Command::CheckConfig(args) => serve::check(&args.file).map(done).map_err(|error| error.to_string()),
        Command::Ticket(args) => ticket::run(args).map(done),
        Command::Status(args) => status::run(args).map(done),
        Command::Limit(args) => limit::run(args).map(done),
        Command::Forward(args) => forward::run(args).map(done).map_err(|error| error.to_string()),
        Command::Demo(args) => demo::run(args).map(done).map_err(|error| error.to_string()),
        Command::Probe(args) => probe::run(args).map(|found| found.exit_code()).map_err(|error| error.to_string()),
        Command::Conformance(args) => conformance::run(args),
    };
    match result {
        Ok(code) => code,
        Err(sentence) => {
            stderr.say(format!("virbistream: {sentence}\n").into());
            ExitCode::FAILURE
        }
    }
}
