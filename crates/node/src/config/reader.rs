//! The typed reader: from the raw tree to values, collecting every mistake on the way.
//!
//! A [`Section`] hands out the values of one table by name and remembers which names it was asked for; what is left
//! over when it ends is unknown, and refused with the nearest name. A value that cannot be read is reported and its
//! default handed out, so that reading goes on and finds the other mistakes; the result is then thrown away.

use super::document::{Document, Node, Place, Value, parse_list};
use super::error::{ConfigError, nearest};
use super::{Setting, Source, units};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A type that a setting can have.
pub(super) trait Kind: Sized {
    /// In "expected ...".
    const EXPECTED: &'static str;

    /// `None` when `value` is of another type or form.
    fn read(value: &Value) -> Option<Self>;

    /// As one would write it in the file.
    fn show(&self) -> String;
}

/// Bytes, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// Text that is not shown.
pub(super) struct Hidden(pub(super) String);

/// The state of one reading.
pub(super) struct Reader<'d> {
    pub(super) document: &'d Document,
    /// What paths written in the file are relative to.
    pub(super) base: &'d Path,
    pub(super) errors: Vec<ConfigError>,
    pub(super) settings: Vec<Setting>,
}

/// One table of the document, or its absence.
pub(super) struct Section<'d> {
    path: String,
    place: Place,
    table: Option<&'d BTreeMap<String, Node>>,
    known: Vec<&'static str>,
}

// === impl Reader ===

impl<'d> Reader<'d> {
    /// Reports a mistake.
    pub(super) fn fail(&mut self, place: &Place, message: impl Into<String>, hint: Option<&str>) {
        let error = ConfigError::new(self.document, place, message.into(), hint.map(str::to_owned));
        self.errors.push(error);
    }

    /// The document itself.
    pub(super) fn root(&self) -> Section<'d> {
        let table = match &self.document.root.value {
            Value::Table(table) => Some(table),
            _ => None,
        };
        Section { path: String::new(), place: Place::Nowhere, table, known: Vec::new() }
    }

    fn source(&self, place: &Place) -> Source {
        match place {
            Place::File(_) => Source::File { line: self.document.line(place).unwrap_or(0) },
            Place::Env(name) => Source::Env(name.clone()),
            Place::Flag(name) => Source::Option(name),
            Place::Nowhere => Source::Default,
        }
    }

    /// A path as its writer meant it: in the file relative to the file, elsewhere to where the process was started.
    pub(super) fn resolve(&self, path: PathBuf, place: &Place) -> PathBuf {
        match place {
            Place::File(_) => self.base.join(path),
            _ => path,
        }
    }
}

// === impl Section ===

impl<'d> Section<'d> {
    /// Where the section starts.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Where the value of `key` is, or else the section.
    pub(super) fn place_of(&self, key: &str) -> &Place {
        self.node(key).map_or(&self.place, |node| &node.place)
    }

    /// Whether `key` is written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.node(key).is_some()
    }

    /// Whether the section is written.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    fn node(&self, key: &str) -> Option<&'d Node> {
        self.table?.get(key)
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reports a mistake about the value of `key`.
    pub(super) fn fail(&self, r: &mut Reader<'_>, key: &str, message: impl Into<String>, hint: Option<&str>) {
        r.fail(self.place_of(key), message, hint);
    }

    fn mark(&mut self, key: &'static str) {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
    }

    /// The value of `key`; `None` when it is absent, or wrong and reported.
    pub(super) fn get<K: Kind>(&mut self, r: &mut Reader<'_>, key: &'static str) -> Option<K> {
        self.mark(key);
        let Some(node) = self.node(key) else {
            r.settings.push(Setting { path: self.full(key), value: None, source: Source::Default });
            return None;
        };
        let Some(value) = K::read(&node.value) else {
            let message =
                format!("`{}`: expected {}, found {}", self.full(key), K::EXPECTED, describe(&node.value));
            r.fail(&node.place, message, hint(&node.value, K::EXPECTED));
            return None;
        };
        let source = r.source(&node.place);
        r.settings.push(Setting { path: self.full(key), value: Some(value.show()), source });
        Some(value)
    }

    /// The value of `key` or its default.
    pub(super) fn or<K: Kind>(&mut self, r: &mut Reader<'_>, key: &'static str, default: K) -> K {
        let shown = default.show();
        let value = self.get(r, key);
        if !self.has(key)
            && let Some(setting) = r.settings.last_mut()
        {
            setting.value = Some(shown);
        }
        value.unwrap_or(default)
    }

    /// A whole number in `range` or its default.
    pub(super) fn number(
        &mut self,
        r: &mut Reader<'_>,
        key: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let value = self.or(r, key, default);
        if range.contains(&value) {
            return value;
        }
        let message =
            format!("`{}` is {value}: it must be from {} to {}", self.full(key), range.start(), range.end());
        self.fail(r, key, message, None);
        default
    }

    /// One of `words` (the first of a pair, for the second) or its default.
    pub(super) fn word<T: Copy + PartialEq>(
        &mut self,
        r: &mut Reader<'_>,
        key: &'static str,
        words: &[(&'static str, T)],
        default: T,
    ) -> T {
        let shown = words.iter().find(|(_, t)| *t == default).map_or("", |(word, _)| word);
        let word = self.or(r, key, shown.to_owned());
        if let Some((_, value)) = words.iter().find(|(name, _)| *name == word) {
            return *value;
        }
        let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let message = format!("`{}`: expected {}, found \"{word}\"", self.full(key), all.join(" or "));
        self.fail(r, key, message, None);
        default
    }

    /// The table of `key`; absent, an empty one.
    pub(super) fn section(&mut self, r: &mut Reader<'_>, key: &'static str) -> Section<'d> {
        self.mark(key);
        let mut section =
            Section { path: self.full(key), place: Place::Nowhere, table: None, known: Vec::new() };
        if let Some(node) = self.node(key) {
            section.place = node.key.clone();
            match &node.value {
                Value::Table(table) => section.table = Some(table),
                other => {
                    let message = format!("`{key}`: expected a section, found {}", describe(other));
                    let help = format!("write [{key}] on a line of its own, its keys below");
                    r.fail(&node.place, message, Some(&help));
                }
            }
        }
        section
    }

    /// The tables of the array `key`, in order.
    pub(super) fn sections(&mut self, r: &mut Reader<'_>, key: &'static str) -> Vec<Section<'d>> {
        self.mark(key);
        let Some(node) = self.node(key) else { return Vec::new() };
        let help = format!("write [[{key}]] on a line of its own for each, its keys below");
        let Value::Array(items) = &node.value else {
            let message = format!("`{key}`: expected a list of sections, found {}", describe(&node.value));
            r.fail(&node.key, message, Some(&help));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match &item.value {
                Value::Table(table) => sections.push(Section {
                    path: format!("{}.{i}", self.full(key)),
                    place: item.place.clone(),
                    table: Some(table),
                    known: Vec::new(),
                }),
                other => {
                    let message = format!("`{key}`: expected a section, found {}", describe(other));
                    r.fail(&item.place, message, Some(&help));
                }
            }
        }
        sections
    }

    /// Refuses what nobody asked for. `advice` has a hint for names that one might rightly expect.
    pub(super) fn end(self, r: &mut Reader<'_>, advice: &[(&str, &str)]) {
        for (key, node) in self.table.into_iter().flatten() {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let what = match node.value {
                Value::Table(_) | Value::Array(_) if self.path.is_empty() => "section",
                _ => "key",
            };
            let message = match self.path.as_str() {
                "" => format!("unknown {what} `{key}`"),
                path => format!("unknown {what} `{key}` in `{}`", path.split('.').next().unwrap_or(path)),
            };
            let hint = match advice.iter().find(|(name, _)| name == key) {
                Some((_, hint)) => (*hint).to_owned(),
                None => match nearest(key, self.known.iter().copied()) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("known here: {}", self.known.join(", ")),
                },
            };
            r.fail(&node.key, message, Some(&hint));
        }
    }
}

/// In "found ...".
fn describe(value: &Value) -> String {
    match value {
        Value::Text(text) | Value::Word(text) => {
            let shown: String = text.chars().take(40).collect();
            let dots = if shown.len() < text.len() { "..." } else { "" };
            format!("\"{}{dots}\"", shown.escape_debug())
        }
        Value::Integer(number) => format!("the number {number}"),
        Value::Boolean(value) => format!("{value}"),
        Value::Other(name) => (*name).to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a section".to_owned(),
    }
}

fn hint(value: &Value, expected: &str) -> Option<&'static str> {
    let number = |text: &str| text.parse::<u64>().is_ok();
    match value {
        Value::Text(text) if expected == u64::EXPECTED && number(text) => Some("write it without quotes"),
        Value::Text(text) if expected == bool::EXPECTED && (text == "true" || text == "false") => {
            Some("write it without quotes")
        }
        Value::Integer(_) if expected == Duration::EXPECTED => Some("units are ms, s, m, h and d"),
        Value::Text(_) | Value::Word(_) if expected == Duration::EXPECTED => {
            Some("units are ms, s, m, h and d")
        }
        Value::Integer(_) | Value::Text(_) | Value::Word(_) if expected == Size::EXPECTED => {
            Some("units are B, KiB, MiB, GiB, and KB, MB, GB, TB for powers of 1,000")
        }
        Value::Text(_) | Value::Word(_) if expected == SocketAddr::EXPECTED => {
            Some("127.0.0.1 is this machine alone, 0.0.0.0 every IPv4 network, [::] every network")
        }
        _ => None,
    }
}

// === impl Kind ===

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) | Value::Word(text) => Some(text),
        _ => None,
    }
}

pub(super) fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Kind for String {
    const EXPECTED: &'static str = "text";

    fn read(value: &Value) -> Option<Self> {
        text(value).map(str::to_owned)
    }

    fn show(&self) -> String {
        quote(self)
    }
}

impl Kind for Hidden {
    const EXPECTED: &'static str = "text";

    fn read(value: &Value) -> Option<Self> {
        text(value).map(|text| Self(text.to_owned()))
    }

    fn show(&self) -> String {
        "(set)".to_owned()
    }
}

impl Kind for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn read(value: &Value) -> Option<Self> {
        text(value).filter(|text| !text.is_empty() && !text.contains('\0')).map(PathBuf::from)
    }

    fn show(&self) -> String {
        quote(&self.to_string_lossy())
    }
}

impl Kind for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Boolean(value) => Some(*value),
            Value::Word(word) => word.parse().ok(),
            _ => None,
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Kind for u64 {
    const EXPECTED: &'static str = "a whole number";

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Word(word) => word.parse().ok(),
            _ => None,
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Kind for Duration {
    const EXPECTED: &'static str = "a time with its unit like \"15s\"";

    fn read(value: &Value) -> Option<Self> {
        units::parse_duration(text(value)?)
    }

    fn show(&self) -> String {
        quote(&units::show_duration(*self))
    }
}

impl Kind for Size {
    const EXPECTED: &'static str = "a size with its unit like \"4MiB\"";

    fn read(value: &Value) -> Option<Self> {
        units::parse_size(text(value)?).map(Self)
    }

    fn show(&self) -> String {
        quote(&units::show_size(self.0))
    }
}

impl Kind for SocketAddr {
    const EXPECTED: &'static str = "an address and a port like \"127.0.0.1:1883\"";

    fn read(value: &Value) -> Option<Self> {
        text(value)?.parse().ok()
    }

    fn show(&self) -> String {
        quote(&self.to_string())
    }
}

/// A list of texts; one text stands for a list of one.
impl Kind for Vec<String> {
    const EXPECTED: &'static str = "a list of texts like [\"a/#\", \"b\"]";

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Array(items) => items.iter().map(|item| String::read(&item.value)).collect(),
            Value::Word(word) if word.trim_start().starts_with('[') => parse_list(word.trim()),
            other => text(other).map(|text| vec![text.to_owned()]),
        }
    }

    fn show(&self) -> String {
        format!("[{}]", self.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", "))
    }
}
