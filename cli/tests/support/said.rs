//! What the two ends of a tunnel say of their first session and its streams.

use super::process::Process;
use super::wait_for;
use std::collections::BTreeMap;
use std::time::Duration;

/// How a session's cause begins, whichever it is.
const CAUSES: [&str; 6] = [
    "the link was lost",
    "nothing was heard from the peer",
    "no HELLO came from the peer",
    "the peer closed the session",
    "the peer broke",
    "the session was shut down",
];

/// Waits until the tool says why its session is over.
#[track_caller]
pub(crate) fn session_cause(end: &Process, within: Duration) -> String {
    wait_for(&format!("the cause of the end of a session: {}", end.name()), within, || {
        let text = end.stderr.text();
        text.lines().find_map(|line| {
            let line = line.strip_prefix("virbistream: ")?;
            let of_forward = line.strip_prefix("the session with ").and_then(|line| line.split_once(" is over: "));
            let cause = of_forward.map_or_else(|| line.strip_prefix("session 1: "), |(_, cause)| Some(cause))?;
            CAUSES.iter().any(|known| cause.starts_with(known)).then(|| cause.to_owned())
        })
    })
}

/// How each stream has ended, by its number: well, or with a cause.
pub(crate) fn streams_ended(end: &Process) -> BTreeMap<u32, Option<String>> {
    let text = end.stderr.text();
    let ended = text.lines().filter_map(|line| {
        let (number, rest) = line.strip_prefix("virbistream: session 1: stream ")?.split_once(" to `")?;
        let number = number.parse().ok()?;
        if rest.contains("` done, ") {
            return Some((number, None));
        }
        let (_, rest) = rest.split_once("` failed, ")?;
        let (_, cause) = rest.split_once(" received: ")?;
        Some((number, Some(cause.to_owned())))
    });
    ended.collect()
}

/// How many streams there were.
pub(crate) fn streams_opened(end: &Process) -> usize {
    let is_opened = |line: &str| {
        let stream = line.strip_prefix("virbistream: session 1: stream ");
        stream.is_some_and(|stream| stream.ends_with('`'))
    };
    end.stderr.count(is_opened)
}

/// Waits until every stream has ended at both ends, and fails the test unless both give the same cause.
#[track_caller]
pub(crate) fn assert_same_causes(near: &Process, far: &Process, within: Duration) {
    wait_for("the end of all streams at both ends", within, || {
        let [near, far] = [near, far].map(|end| (streams_opened(end), streams_ended(end).len()));
        (near == far && near.0 == near.1).then_some(())
    });
    let (near, far) = (streams_ended(near), streams_ended(far));
    for (number, near) in &near {
        let far = &far[number];
        let same = match (near, far) {
            (None, None) => true,
            // The one that was told says by whom.
            (Some(near), Some(far)) => near.ends_with(far.as_str()) || far.ends_with(near.as_str()),
            _ => false,
        };
        assert!(same, "stream {number}: {near:?} at one end, {far:?} at the other");
    }
}

/// Fails the test unless every stream of the end has ended with that cause; or well, where some may have been done before.
#[track_caller]
pub(crate) fn assert_all_failed(end: &Process, cause: &str, some_were_done: bool) {
    let ended = streams_ended(end);
    assert_eq!(ended.len(), streams_opened(end), "{}: {ended:?}", end.name());
    for (number, ended) in ended {
        let was_done = some_were_done && ended.is_none();
        assert!(was_done || ended.as_deref() == Some(cause), "{}: stream {number}: {ended:?}", end.name());
    }
}
