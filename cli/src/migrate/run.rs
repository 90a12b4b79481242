//! A migration from its checks to its end.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::MigrateArgs;
use super::checks::List;
use super::domain::{Disk, Domain, state_at};
use super::names::Part;
use super::outcome::{Failure, Guest};
use super::progress::{Monitor, Moved, Said, Snapshot, pairs};
use super::tunnel::Tunnel;
use super::virsh::{Asked, Virsh, VirshError};
use crate::events::Loudness;
use crate::nbd::Figures;
use crate::running::Running;
use crate::stderr::Stderr;

/// How often the migration is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How often libvirt is told to end it.
const RETELL: Duration = Duration::from_secs(1);

/// How long libvirt has to notice that the connection to the destination is gone.
const NOTICE: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &MigrateArgs, stderr: &Stderr) -> Result<(), Failure> {
    let said = Said::new(args.json, stderr);
    begin(args, &said).inspect_err(|failure| said.failed(failure))
}

fn begin(args: &MigrateArgs, said: &Said) -> Result<(), Failure> {
    // First of all: from now on a signal ends nothing at once.
    let running = Running::start(Loudness { session: log::Level::Info, stream: log::Level::Info }, NonZeroUsize::MIN)?;
    running.end_at_hangups()?;
    let signalled = running.signalled();
    let is_cancelled = || signalled.load(Ordering::Relaxed);
    let _control = running.control(args.control.as_deref(), None)?;
    let _metrics = running.metrics(args.metrics.as_ref())?;
    let source = Virsh::new(args.connect.clone());
    let asking = source.until(running.signalled());
    let mut list = List::new(said);
    let found = list.source(&asking, args);
    if is_cancelled() {
        return Err(Failure::Cancelled(Guest::Untouched));
    }
    list.result()?;
    let Some((host, domain)) = found else { return Ok(()) };
    let mut tunnel = Tunnel::open(running, args, args.sockets.permissions_or(host.qemu))?;
    let destination = tunnel.virsh().until(Arc::clone(&signalled));
    list.destination((&host, &asking), &destination, &tunnel, &domain, args);
    // What has come meanwhile.
    tunnel.wait(Duration::ZERO);
    let result = match (list.result(), tunnel.lost()) {
        _ if is_cancelled() => Err(Failure::Cancelled(Guest::Untouched)),
        (_, Some(lost)) => Err(Failure::Destination(format!("the connection to the destination was lost: {lost}"))),
        (Ok(()), None) if args.dry_run => {
            said.note("nothing speaks against the migration; it was not begun");
            Ok(())
        }
        (Ok(()), None) => migrate(&source, &mut tunnel, &domain, args, said),
        (failed, None) => failed,
    };
    tunnel.close();
    result
}

fn migrate(
    source: &Virsh,
    tunnel: &mut Tunnel,
    domain: &Domain,
    args: &MigrateArgs,
    said: &Said,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let words = words(tunnel, domain, args);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut asked = source.start(&words).map_err(|error| Failure::Local(error.to_string()))?;
    let mut cancelling = Cancelling::default();
    let watched = Monitor::start(source, domain, tunnel.passing.clone()).map_err(|error| error.to_string());
    let watched = watched.and_then(|monitor| {
        let answer = watch(source, tunnel, domain, said, &monitor, &mut asked, &mut cancelling)?;
        Ok((answer, monitor.latest()))
    });
    let (answer, snapshot) = match watched {
        Ok((Some(answer), snapshot)) => (answer, snapshot),
        Ok((None, _)) => {
            let why = "libvirt was told to end it, and nobody waits any more for it to do so";
            return Err(Failure::Cancelled(Guest::Unknown(why.into())));
        }
        Err(why) => return Err(Failure::Unwatched { why, guest: abandon(source, tunnel, domain, asked) }),
    };
    let why = match answer {
        Ok(_) => {
            if cancelling.is_asked {
                said.note("it was too late to cancel: the guest had moved");
            }
            let name = args.libvirt.value("dname").unwrap_or(&domain.name);
            summary(tunnel, name, domain, begun.elapsed(), &snapshot, said);
            return Ok(());
        }
        Err(error) => error.to_string(),
    };
    // What has come meanwhile.
    tunnel.wait(Duration::ZERO);
    let guest = guest(source, tunnel, &domain.uuid);
    Err(match tunnel.lost() {
        _ if cancelling.is_asked => Failure::Cancelled(guest),
        Some(lost) => Failure::Lost { why: lost.to_owned(), guest },
        None => Failure::Libvirt { why, guest },
    })
}

/// What virsh is asked.
fn words(tunnel: &Tunnel, domain: &Domain, args: &MigrateArgs) -> Vec<String> {
    let mut words = vec!["migrate".to_owned(), "--domain".to_owned(), domain.uuid.clone()];
    words.extend(["--desturi".into(), tunnel.uri()]);
    for (option, part) in [("--migrateuri", Part::Memory), ("--disks-uri", Part::Disks)] {
        words.extend([option.into(), format!("unix://{}", tunnel.socket(part).display())]);
    }
    if !args.not_live {
        words.push("--live".into());
    }
    if !args.libvirt.has("copy-storage-inc") {
        words.push("--copy-storage-all".into());
    }
    words.extend(args.libvirt.words().map(String::from));
    words
}

/// Whether the operator wants it to end, and how libvirt is told.
#[derive(Debug, Default)]
struct Cancelling {
    is_asked: bool,
    telling: Option<(Asked, Instant)>,
}

impl Cancelling {
    /// There may be no job yet, and one that begins may forget it: libvirt is told until it has ended. Nobody waits for its answer, which a
    /// libvirt that hangs does not give.
    fn tell(&mut self, source: &Virsh, domain: &Domain) {
        let is_due = self.telling.as_mut().is_none_or(|(asked, since)| {
            let is_told = !matches!(asked.answer(), Ok(None));
            since.elapsed() >= if is_told { RETELL } else { NOTICE }
        });
        if is_due {
            let asked = source.start(&["domjobabort", &domain.uuid]);
            self.telling = asked.ok().map(|asked| (asked, Instant::now()));
        }
    }
}

/// Until virsh has ended. Nothing where the operator waits for it no longer.
fn watch(
    source: &Virsh,
    tunnel: &mut Tunnel,
    domain: &Domain,
    said: &Said,
    monitor: &Monitor,
    asked: &mut Asked,
    cancelling: &mut Cancelling,
) -> Result<Option<Result<String, VirshError>>, String> {
    let mut lost_since: Option<Instant> = None;
    let mut shown = None;
    loop {
        if tunnel.wait(LOOK) {
            match (is_postcopy(source, &domain.uuid), cancelling.is_asked) {
                // It may have come to that since it was asked for the first time.
                (true, _) => {
                    cancelling.is_asked = false;
                    said.note(
                        "the guest runs at the destination and its memory follows: it cannot be cancelled any more, and goes on",
                    );
                }
                (false, false) => {
                    said.note("cancelling");
                    cancelling.is_asked = true;
                }
                (false, true) => return Ok(None),
            }
        }
        if let Some(answer) = asked.answer().map_err(|error| error.to_string())? {
            return Ok(Some(answer));
        }
        let is_lost = tunnel.lost().is_some() && lost_since.get_or_insert_with(Instant::now).elapsed() >= NOTICE;
        if is_lost || cancelling.is_asked {
            cancelling.tell(source, domain);
        }
        let snapshot = monitor.latest();
        if said.is_lines() || shown.as_ref() != Some(&snapshot) {
            said.progress(&snapshot);
            shown = Some(snapshot);
        }
    }
}

fn is_postcopy(source: &Virsh, domain: &str) -> bool {
    source.ask(&["domstate", domain, "--reason"]).is_ok_and(|state| state.contains("post-copy"))
}

/// Has libvirt end a migration that nobody can watch, since it may go on without virsh. Where the guest is then.
fn abandon(source: &Virsh, tunnel: &mut Tunnel, domain: &Domain, asked: Asked) -> Guest {
    let until = Instant::now() + NOTICE;
    // Until there is no job.
    while source.ask(&["domjobabort", &domain.uuid]).is_ok() && Instant::now() < until {
        tunnel.wait(LOOK);
    }
    drop(asked);
    tunnel.wait(Duration::ZERO);
    guest(source, tunnel, &domain.uuid)
}

/// Where the guest is, when virsh says that it has not moved. That is no news of the destination, which may run it though its last word was
/// lost: libvirt lets it go on at the source, too, then.
fn guest(source: &Virsh, tunnel: &Tunnel, domain: &str) -> Guest {
    let here = guest_here(source, domain);
    match here {
        Guest::Here(state) if tunnel.has_memory() => match there(tunnel, domain) {
            Ok(None) => Guest::Here(state),
            Ok(Some(there)) => Guest::Unknown(format!("it is {state} at the source, and {there} at the destination")),
            Err(why) => Guest::Unknown(format!(
                "it is {state} at the source, and may run at the destination, too, which does not say: {why}"
            )),
        },
        other => other,
    }
}

/// What the guest is at the destination; nothing where it is not.
fn there(tunnel: &Tunnel, domain: &str) -> Result<Option<String>, String> {
    if let Some(lost) = tunnel.lost() {
        return Err(lost.to_owned());
    }
    let state = state_at(&tunnel.virsh(), domain).map_err(|error| error.to_string())?;
    Ok(state.filter(|state| state != "shut off"))
}

fn guest_here(source: &Virsh, domain: &str) -> Guest {
    let Ok(said) = source.ask(&["domstate", domain, "--reason"]) else {
        return Guest::Unknown("the source's libvirtd does not say".into());
    };
    match said.split_once(" (").unwrap_or((&said, "")) {
        // It ran at the destination already, and what is here is its shell.
        (_, reason) if reason.contains("post-copy") => Guest::Unknown(format!("it is {said} at the source")),
        (state @ ("running" | "paused" | "idle" | "pmsuspended"), _) => Guest::Here(state.into()),
        _ => Guest::Unknown(format!("it is {said} at the source")),
    }
}

/// What passed, and what libvirt counted, at the end.
fn summary(tunnel: &Tunnel, name: &str, domain: &Domain, time: Duration, last: &Snapshot, said: &Said) {
    let destination = tunnel.virsh();
    let job = destination.ask(&["domjobinfo", &domain.uuid, "--completed", "--rawstats"]);
    let job = job.map(|said| pairs(&said, ':')).unwrap_or_default();
    let memory = job.get("memory_processed").copied().unwrap_or(0);
    let figures = |disk: &Disk| disk.export.as_deref().and_then(|export| tunnel.passing.of(export));
    let disks: Vec<_> = domain.disks.iter().map(figures).collect();
    // Where the observer understood nothing, libvirt's job tells what it had done when it was looked at last.
    let written =
        |(disk, (_, moved)): (&Option<Figures>, &(_, Moved))| disk.as_ref().map_or(moved.done, |it| it.written);
    let written: u64 = disks.iter().zip(&last.disks).map(written).sum();
    let is_partial = disks.iter().any(Option::is_none);
    let bytes = written + memory;
    let rate = bytes as f64 / time.as_secs_f64() / f64::from(1 << 20);
    let downtime = job.get("downtime").map_or_else(String::new, |downtime| format!(", stood still for {downtime} ms"));
    let state = destination.ask(&["domstate", &domain.uuid]).ok();
    let text = format!(
        "`{name}` {} at the destination: {}{} MiB in {:.1} s, {rate:.1} MiB/s{downtime}",
        is(state.as_deref()),
        if is_partial { "at least " } else { "" },
        bytes >> 20,
        time.as_secs_f64()
    );
    let each =
        last.disks.iter().zip(disks).map(|((target, _), disk)| (target.clone(), json!(disk.map(|it| it.json()))));
    let figures = json!({
        "seconds": time.as_secs_f64(),
        "disk_bytes": written,
        "partial": is_partial,
        "memory_bytes": memory,
        "bytes_per_second": bytes as f64 / time.as_secs_f64(),
        "downtime_ms": job.get("downtime"),
        "guest": state,
        "disks": each.collect::<serde_json::Map<_, _>>(),
    });
    said.done(&text, figures, last);
}

/// libvirt's word for a state, in a sentence.
fn is(state: Option<&str>) -> String {
    match state {
        Some("running") => "runs".into(),
        Some(state) => format!("is {state}"),
        None => "is".into(),
    }
}
