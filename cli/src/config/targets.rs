//! `[[target]]`: what is offered.

use std::path::{Path, PathBuf};

use virbistream::io::Address;
use virbistream::wire::is_valid_target;

use super::table::Table;
use crate::policy::{Offered, Pattern};

/// What the tables say, and what else has to be judged of them.
pub(super) struct Targets {
    pub(super) offered: Offered,
    /// Paths of sockets, and where they are said.
    pub(super) paths: Vec<(usize, PathBuf)>,
    /// Whether each was understood.
    pub(super) whole: bool,
}

impl Targets {
    pub(super) fn read(tables: Vec<Table<'_, '_>>) -> Self {
        let mut targets = Self { offered: Offered::default(), paths: Vec::new(), whole: true };
        for mut table in tables {
            let is_read = targets.read_one(&mut table);
            targets.whole &= is_read.is_some();
            table.end();
        }
        targets
    }

    /// Nothing, where there was a mistake.
    fn read_one(&mut self, table: &mut Table<'_, '_>) -> Option<()> {
        let (name, path, below) = (table.text("name"), table.text("path"), table.text("below"));
        let (Some(name), Some(path)) = (name, path) else {
            if !table.has("name") || !table.has("path") {
                table.mistake("a [[target]] has `name` and `path`");
            }
            return None;
        };
        let is_new = match below {
            Some(below) => self.offered.insert_pattern(pattern(table, name, below, path)?),
            None if table.has("below") => return None,
            None => {
                let path = fixed(table, name, path)?;
                self.paths.push((table.place("path"), path.clone()));
                self.offered.insert(name, &path)
            }
        };
        if !is_new {
            table.mistake_at("name", format!("two targets are named `{name}`"));
        }
        is_new.then_some(())
    }
}

fn pattern(table: &Table<'_, '_>, name: &str, below: &str, path: &str) -> Option<Pattern> {
    if !below.starts_with('/') {
        table.mistake_at("below", "the path of a folder begins with /");
        return None;
    }
    Pattern::new(name, Path::new(below), path).map_err(|sentence| table.mistake(sentence)).ok()
}

fn fixed(table: &Table<'_, '_>, name: &str, path: &str) -> Option<PathBuf> {
    if !is_valid_target(name) || name.contains('*') {
        let sentence = "a target's name has 1 to 255 bytes, no control characters, and `*` only with `below`";
        table.mistake_at("name", sentence);
        return None;
    }
    if !path.starts_with('/') {
        table.mistake_at("path", "without `below` the path begins with /");
        return None;
    }
    socket(path).map_err(|sentence| table.mistake_at("path", sentence)).ok()
}

/// The path of a UNIX socket.
///
/// # Errors
/// A sentence: it is empty, or longer than such a path can be.
pub(super) fn socket(path: &str) -> Result<PathBuf, String> {
    match format!("unix:{path}").parse() {
        Ok(Address::Unix(path)) => Ok(path),
        Ok(Address::Tcp { .. } | Address::Tls { .. }) => Err("this is no path".into()),
        Err(error) => Err(error.to_string()),
    }
}
