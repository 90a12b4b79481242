//! The targets that the administrator offers, and the way to their sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use virbistream::io::{Decision, Request, Targets, UnixTargets};
use virbistream::wire::is_valid_target;
use wildmatch::WildMatch;

use super::rule::glob;

/// Characters that may stand for a `*`.
const STAR_MAX: usize = 64;

/// Sockets by name, and folders of them.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    fixed: UnixTargets,
    /// Those of `fixed`.
    names: Vec<String>,
    patterns: Vec<Pattern>,
}

impl Offered {
    /// Gives false when the name is taken.
    pub(crate) fn insert(&mut self, name: &str, path: &Path) -> bool {
        let is_new = self.fixed.insert(name, path);
        self.names.extend(is_new.then(|| name.to_owned()));
        is_new
    }

    /// Gives false when there is one of this name.
    pub(crate) fn insert_pattern(&mut self, pattern: Pattern) -> bool {
        let is_new = !self.patterns.iter().any(|other| other.name == pattern.name);
        self.patterns.extend(is_new.then_some(pattern));
        is_new
    }

    /// Whether anything that is offered could be meant.
    pub(crate) fn has(&self, wanted: &WildMatch) -> bool {
        let wanted_of = |pattern: &Pattern| overlap(wanted.pattern_chars(), pattern.glob().pattern_chars());
        self.names.iter().any(|name| wanted.matches(name)) || self.patterns.iter().any(wanted_of)
    }
}

impl Targets for Offered {
    fn open(&self, request: &Request<'_>) -> Decision {
        let found = self.patterns.iter().find_map(|pattern| Some((pattern, pattern.star(request.target)?)));
        match found {
            Some((pattern, star)) if !self.fixed.contains(request.target) => {
                dial_below(&pattern.below, &pattern.path(star), request.target)
            }
            _ => self.fixed.open(request),
        }
    }
}

/// Targets whose names and paths have a `*`, which stands for the same in both.
#[derive(Debug)]
pub(crate) struct Pattern {
    /// What stands before and behind the `*` of the name.
    name: (String, String),
    below: OwnedFd,
    /// The same of the path, which begins below `below`.
    path: (String, String),
}

impl Pattern {
    /// # Errors
    /// A sentence: not one `*` in each, or the system's word on the folder.
    pub(crate) fn new(name: &str, below: &Path, path: &str) -> Result<Self, String> {
        let parts = |text: &str, what| match text.split_once('*') {
            Some((before, behind)) if !behind.contains('*') => Ok((before.to_owned(), behind.to_owned())),
            _ => Err(format!("{what} needs one `*`")),
        };
        if !is_valid_target(&name.replace('*', "x")) {
            return Err("a target's name has 1 to 255 bytes and no control characters".into());
        }
        if path.contains('\0') {
            return Err("a path has no NUL".into());
        }
        let is_inside = !path.starts_with('/') && !path.split('/').any(|part| matches!(part, "" | "." | ".."));
        if !is_inside {
            return Err("the path is one below the folder, without `.`, `..` or an empty part".into());
        }
        let (name, path) = (parts(name, "the name")?, parts(path, "the path")?);
        // Without DIRECTORY, opening a pipe would wait for somebody to write to it.
        let opened = open(below, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let below = opened.map_err(|error| format!("{}: {}", below.display(), io::Error::from(error)))?;
        Ok(Self { name, below, path })
    }

    /// What the name has for the `*`, if it is one of ours: one part of a path at most, and never a hidden one.
    fn star<'a>(&self, name: &'a str) -> Option<&'a str> {
        let star = name.strip_prefix(&*self.name.0)?.strip_suffix(&*self.name.1)?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let fits = (1..=STAR_MAX).contains(&star.len()) && star.bytes().all(is_plain) && !star.starts_with('.');
        fits.then_some(star)
    }

    fn glob(&self) -> WildMatch {
        glob(&format!("{}*{}", self.name.0, self.name.1))
    }

    fn path(&self, star: &str) -> String {
        format!("{}{star}{}", self.path.0, self.path.1)
    }
}

/// Whether a name could be meant by both. From their ends to their beginnings: `row` of one place in `one` and each in `other`,
/// whether what is behind both can be the same.
fn overlap(one: &[char], other: &[char]) -> bool {
    let mut behind = vec![false; other.len() + 1];
    for i in (0..=one.len()).rev() {
        let mut row = vec![false; other.len() + 1];
        for j in (0..=other.len()).rev() {
            row[j] = match (one.get(i), other.get(j)) {
                (None, None) => true,
                (Some('*'), next) => behind[j] || next.is_some() && row[j + 1],
                (next, Some('*')) => row[j + 1] || next.is_some() && behind[j],
                (Some(a), Some(b)) => (a == b || *a == '?' || *b == '?') && behind[j + 1],
                _ => false,
            };
        }
        behind = row;
    }
    behind[0]
}

/// Dials the socket at `path`, which begins below a folder.
pub(super) fn dial_below(folder: &OwnedFd, path: &str, target: &str) -> Decision {
    match find(folder, path) {
        // A path of its own, so that nobody can put another socket into its place in between.
        Ok(found) => UnixTargets::dial(target, Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd()))),
        Err(error) => UnixTargets::refuse(target, &error),
    }
}

/// The kernel refuses every way that leads out of the folder, and links; the last part, too, since without NOFOLLOW it would be followed.
fn find(folder: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(folder, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_star_stands_for_one_plain_part_of_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let pattern = Pattern::new("vm-*.disk", dir.path(), "*/disk.sock").unwrap();
        assert_eq!(pattern.star("vm-7.disk"), Some("7"));
        assert_eq!(pattern.star(&format!("vm-{}.disk", "x".repeat(64))).map(str::len), Some(64));
        let long = format!("vm-{}.disk", "x".repeat(65));
        for wrong in [
            "vm-.disk",
            "vm-../x.disk",
            "vm-..disk",
            "vm-.x.disk",
            "vm-a/b.disk",
            "vm-a\0.disk",
            "vm-ä.disk",
            "vda",
            "vm-disk",
            &long,
        ] {
            assert_eq!(pattern.star(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_rule_names_is_found_among_what_is_offered() {
        let dir = tempfile::tempdir().unwrap();
        let mut offered = Offered::default();
        assert!(offered.insert("vda", Path::new("/a")) && !offered.insert("vda", Path::new("/b")));
        let pattern = |path| Pattern::new("vm-*.disk", dir.path(), path).unwrap();
        assert!(offered.insert_pattern(pattern("*/a")) && !offered.insert_pattern(pattern("*/b")));
        for (wanted, expected) in [
            ("vda", true),
            ("vd?", true),
            ("*", true),
            ("vm-7.disk", true),
            ("vm-*", true),
            ("*.disk", true),
            ("?m-*k*k", true),
            ("vdb", false),
            ("vm-7", false),
            ("*.disks", false),
            ("", false),
        ] {
            assert_eq!(offered.has(&glob(wanted)), expected, "{wanted}");
        }
        assert!(!Offered::default().has(&glob("*")));
    }

    #[test]
    fn no_link_and_no_way_out_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for folder in [&inside, &inside.join("real"), &outside, &outside.join("x")] {
            std::fs::create_dir(folder).unwrap();
        }
        let _sockets = ["in/real/s", "out/x/s", "out/s"].map(|path| UnixListener::bind(dir.path().join(path)).unwrap());
        std::os::unix::fs::symlink(outside.join("x"), inside.join("linked")).unwrap();
        std::os::unix::fs::symlink("real", inside.join("alias")).unwrap();
        std::fs::create_dir(inside.join("via")).unwrap();
        std::os::unix::fs::symlink(outside.join("s"), inside.join("via/s")).unwrap();
        let pattern = Pattern::new("vm-*", &inside, "*/s").unwrap();
        let find = |star| find(&pattern.below, &pattern.path(star));
        assert!(find("real").is_ok());
        for star in ["linked", "alias", "via", "..", "../out", "nothing"] {
            assert!(find(star).is_err(), "{star}");
        }
    }

    #[test]
    fn patterns_that_make_no_sense_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path();
        for (name, path) in [
            ("vm", "*/s"),
            ("vm-*", "s"),
            ("*-*", "*/s"),
            ("vm-*", "*/*"),
            ("vm-*", "/*/s"),
            ("vm-*", "../*/s"),
            ("vm-*", "a//*"),
            ("vm-*", "./*"),
            ("vm-*", "*/\0"),
            ("\u{7}*", "*/s"),
        ] {
            assert!(Pattern::new(name, below, path).is_err(), "{name} {path}");
        }
        assert!(Pattern::new("vm-*", &below.join("nothing"), "*/s").is_err());
        let fifo = below.join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR).unwrap();
        assert!(Pattern::new("vm-*", &fifo, "*/s").is_err(), "and nobody waits for its other end");
    }
}
