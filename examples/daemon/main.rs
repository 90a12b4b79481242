//! A small daemon with programs of its own, which real libvirt clients can call, and with BiStream's targets on the same socket.
//!
//! ```sh
//! cargo run --example daemon -- unix:/run/example.sock vda=unix:/run/vm/vda.sock
//! virsh -c 'test+unix:///default?socket=/run/example.sock' list --all
//! ```
//!
//! It prints `ready` when it listens, tells on standard error what happens, and ends when its standard input does.

mod remote;
mod storage;
mod transfer;
mod types;

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use virbistream::io::{Address, Dispatcher, Listener, Permissions, Report, SessionOptions, UnixTargets};
use virbistream::proto::Config;

const USAGE: &str = "usage: daemon unix:PATH [NAME=unix:PATH ...]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let opened = remote::Opened::default();
    let (address, targets) = arguments.split_first().ok_or(USAGE)?;
    let options = SessionOptions {
        // virsh never says HELLO.
        config: Config { hello_timeout: None, ..Config::default() },
        targets: Arc::new(unix_targets(targets)?),
        programs: Arc::new(remote::programs(&opened)),
        ..SessionOptions::default()
    };

    let dispatcher = Dispatcher::new(move |report| {
        eprintln!("{report:?}");
        if let Report::SessionEnded { session, .. } = report {
            opened.close(session);
        }
    })?;
    let listener = Listener::bind(&address.parse()?, Permissions::default())?;
    let handle = dispatcher.handle();
    handle.listen(listener, options);
    println!("ready");

    thread::spawn(move || {
        // Whatever ends it, there is nobody left to end us.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        handle.shutdown("the daemon ends");
    });
    dispatcher.run()?;
    Ok(())
}

fn unix_targets(arguments: &[String]) -> Result<UnixTargets, Box<dyn Error>> {
    let mut targets = UnixTargets::new();
    for argument in arguments {
        let (name, address) = argument.split_once('=').ok_or(USAGE)?;
        let Address::Unix(path) = address.parse()? else { return Err(USAGE.into()) };
        if !targets.insert(name, path) {
            return Err(format!("the target {name} is named twice").into());
        }
    }
    Ok(targets)
}
