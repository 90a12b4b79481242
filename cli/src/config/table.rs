//! Reading a table of TOML key by key. Every mistake is kept, with its line, and reading goes on.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mistake {
    /// From 1.
    pub(crate) line: usize,
    pub(crate) sentence: String,
}

/// The text of a file, and the mistakes found in it.
#[derive(Debug)]
pub(super) struct Source<'a> {
    text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, mistakes: RefCell::default() }
    }

    pub(super) fn mistake(&self, at: usize, sentence: impl Into<String>) {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        self.mistakes.borrow_mut().push(Mistake { line, sentence: sentence.into() });
    }

    /// In the order of their lines.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort();
        mistakes
    }
}

type Value<'i> = Spanned<DeValue<'i>>;

/// A table of which each key is taken once; [`end`](Self::end) tells those that nobody asked for.
pub(super) struct Table<'t, 'i> {
    source: &'t Source<'i>,
    table: &'t DeTable<'i>,
    /// Where it begins.
    at: usize,
    taken: Vec<&'static str>,
}

impl<'t, 'i> Table<'t, 'i> {
    pub(super) fn new(source: &'t Source<'i>, table: &'t DeTable<'i>, at: usize) -> Self {
        Self { source, table, at, taken: Vec::new() }
    }

    /// A mistake of the whole table.
    pub(super) fn mistake(&self, sentence: impl Into<String>) {
        self.source.mistake(self.at, sentence);
    }

    /// A mistake where the key's value stands.
    pub(super) fn mistake_at(&self, key: &'static str, sentence: impl Into<String>) {
        self.source.mistake(self.place(key), sentence);
    }

    /// A mistake at a place that was given.
    pub(super) fn mistake_in(&self, at: usize, sentence: impl Into<String>) {
        self.source.mistake(at, sentence);
    }

    /// Where the key's value stands; where there is none, where the table does.
    pub(super) fn place(&self, key: &'static str) -> usize {
        self.table.get(key).map_or(self.at, |value| value.span().start)
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<&'t str> {
        let value = self.take(key)?;
        self.str_of(key, value)
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => self.wrong(value.span(), format!("`{key}` is true or false")),
        }
    }

    pub(super) fn number(&mut self, key: &'static str, range: Range<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                let sentence = format!("`{key}` is a number from {} to {}", range.start, range.end - 1);
                self.wrong(value.span(), sentence)
            }
        }
    }

    /// A text that says something.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<T> {
        self.parsed_by(key, str::parse)
    }

    pub(super) fn parsed_by<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let text = self.str_of(key, value)?;
        parse(text).map_err(|error| self.source.mistake(value.span().start, format!("`{key}`: {error}"))).ok()
    }

    /// Texts that say something, each with its place, one at least; nothing where the key is absent.
    pub(super) fn list<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<(usize, T)> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let DeValue::Array(values) = value.get_ref() else {
            self.source.mistake(value.span().start, format!("`{key}` is a list of texts: [\"...\"]"));
            return Vec::new();
        };
        if values.is_empty() {
            self.source.mistake(value.span().start, format!("`{key}` is an empty list"));
        }
        let mut list = Vec::new();
        for value in values.iter() {
            let Some(text) = self.str_of(key, value) else { continue };
            match parse(text) {
                Ok(parsed) => list.push((value.span().start, parsed)),
                Err(error) => self.source.mistake(value.span().start, format!("`{key}`: {error}")),
            }
        }
        list
    }

    /// The table of `[key]`.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'t, 'i>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Self::new(self.source, table, value.span().start)),
            _ => self.wrong(value.span(), format!("write [{key}]")),
        }
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'t, 'i>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let values = match value.get_ref() {
            DeValue::Array(values) => values,
            _ => {
                self.source.mistake(value.span().start, format!("write [[{key}]], as often as there are some"));
                return Vec::new();
            }
        };
        let mut tables = Vec::new();
        for value in values.iter() {
            match value.get_ref() {
                DeValue::Table(table) => tables.push(Self::new(self.source, table, value.span().start)),
                _ => self.source.mistake(value.span().start, format!("write [[{key}]], as often as there are some")),
            }
        }
        tables
    }

    /// Nothing more is asked of it: what is left in it is unknown.
    pub(super) fn end(self) {
        for key in self.table.keys().filter(|key| !self.taken.contains(&key.get_ref().as_ref())) {
            self.source.mistake(key.span().start, format!("`{}` is not known here", key.get_ref()));
        }
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Value<'i>> {
        self.taken.push(key);
        self.table.get(key)
    }

    fn str_of(&self, key: &str, value: &'t Value<'i>) -> Option<&'t str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => self.wrong(value.span(), format!("`{key}` is a text: \"...\"")),
        }
    }

    fn wrong<T>(&self, span: Range<usize>, sentence: String) -> Option<T> {
        self.source.mistake(span.start, sentence);
        None
    }
}
