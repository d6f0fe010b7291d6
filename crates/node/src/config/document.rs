//! The raw configuration: one tree of untyped values, each knowing where it came from.
//!
//! The file is parsed once; environment variables and command line options are then laid over the tree, so that
//! reading (and refusing what is unknown) has one source of truth and one code path.

use super::error::ConfigError;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file: bytes of its text.
    File(Range<usize>),
    /// In this environment variable.
    Env(String),
    /// In this command line option.
    Flag(&'static str),
    /// Not written at all.
    Nowhere,
}

/// A value, where it is, and where its key is.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
    pub(super) key: Place,
}

/// An untyped value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A string of the file.
    Text(String),
    /// From the environment or an option: what the reader expects decides its type.
    Word(String),
    Integer(i64),
    Boolean(bool),
    /// A TOML type that no setting has; the name of it.
    Other(&'static str),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

/// The tree, and the text that its places index.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) text: String,
    pub(super) root: Node,
}

/// Settings from outside the file, in order of application: a later one wins.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    entries: Vec<Override>,
}

#[derive(Debug, Clone)]
struct Override {
    path: Vec<String>,
    value: Result<String, String>,
    place: Place,
}

/// What every variable starts with.
const PREFIX: &str = "FERRULE__";

// === impl Overrides ===

impl Overrides {
    /// The `FERRULE__SECTION__KEY` of an environment, in order of name; other variables are ignored. Arrays of
    /// tables go by index: `FERRULE__LISTENER__0__BIND`. Call it in `main` with [`std::env::vars_os`].
    pub fn from_env(
        vars: impl IntoIterator<Item = (impl AsRef<std::ffi::OsStr>, impl AsRef<std::ffi::OsStr>)>,
    ) -> Self {
        let mut entries: Vec<Override> = vars
            .into_iter()
            .filter_map(|(name, value)| {
                let name = name.as_ref().to_str()?.to_owned();
                let path = name.strip_prefix(PREFIX)?.split("__").map(str::to_ascii_lowercase).collect();
                let value = value.as_ref().to_str().map(str::to_owned);
                let value = value.ok_or_else(|| "its value is not UTF-8 text".to_owned());
                Some(Override { path, value, place: Place::Env(name) })
            })
            .collect();
        // LISTENER__10 after LISTENER__9: an element must exist before the next one is added.
        let key = |o: &Override| -> Vec<(usize, String)> {
            o.path.iter().map(|s| (s.parse().unwrap_or(usize::MAX), s.clone())).collect()
        };
        entries.sort_by_cached_key(key);
        Self { entries }
    }

    /// A setting from a command line option; `path` as in the file: `["listener", "0", "bind"]`.
    pub fn option(&mut self, option: &'static str, path: &[&str], value: impl Into<String>) {
        let path = path.iter().map(|&s| s.to_owned()).collect();
        self.entries.push(Override { path, value: Ok(value.into()), place: Place::Flag(option) });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

// === impl Document ===

impl Document {
    /// Parses `text` and lays `overrides` over it.
    ///
    /// # Errors
    /// Mistakes of syntax: reading on would report consequences of them as mistakes of their own.
    pub(super) fn parse(
        text: &str,
        overrides: &Overrides,
    ) -> Result<(Self, Vec<ConfigError>), Vec<ConfigError>> {
        let (table, syntax) = DeTable::parse_recoverable(text);
        let mut document = Self {
            text: text.to_owned(),
            root: Node { value: convert_table(table.get_ref()), place: Place::Nowhere, key: Place::Nowhere },
        };
        let mut errors: Vec<ConfigError> = syntax
            .iter()
            .map(|e| {
                let place = e.span().map_or(Place::Nowhere, Place::File);
                ConfigError::new(&document, &place, e.message().replace('\n', ", "), None)
            })
            .collect();
        if !errors.is_empty() {
            return Err(errors);
        }
        for o in &overrides.entries {
            let result = match &o.value {
                Ok(value) => set(&mut document.root, &o.path, value, &o.place),
                Err(message) => Err(message.clone()),
            };
            if let Err(message) = result {
                errors.push(ConfigError::new(&document, &o.place, message, None));
            }
        }
        Ok((document, errors))
    }

    /// The line of a place in the file, from 1.
    pub(super) fn line(&self, place: &Place) -> Option<usize> {
        match place {
            Place::File(span) => {
                let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
                Some(before.iter().filter(|&&b| b == b'\n').count() + 1)
            }
            _ => None,
        }
    }
}

/// Puts `value` at `path` below `node`. The recursion is as deep as the path, which `node`'s shape bounds.
fn set(node: &mut Node, path: &[String], value: &str, place: &Place) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *node = Node { value: Value::Word(value.to_owned()), place: place.clone(), key: place.clone() };
        return Ok(());
    };
    let new = || Node {
        value: match rest.first() {
            Some(next) if next.parse::<usize>().is_ok() => Value::Array(Vec::new()),
            _ => Value::Table(BTreeMap::new()),
        },
        place: place.clone(),
        key: place.clone(),
    };
    match &mut node.value {
        _ if first.is_empty() => {
            Err("two underscores part section and key, as in FERRULE__MQTT__RECEIVE_MAX".into())
        }
        Value::Table(table) => set(table.entry(first.clone()).or_insert_with(new), rest, value, place),
        Value::Array(items) => match first.parse::<usize>() {
            Ok(index) if index > items.len() => {
                Err(format!("there is no number {}: the next one to add is {}", index, items.len()))
            }
            Ok(index) => {
                if index == items.len() {
                    items.push(new());
                }
                set(&mut items[index], rest, value, place)
            }
            Err(_) => Err(format!("expected a number (0 is the first) where `{first}` is")),
        },
        _ => Err(format!("`{first}` is looked for inside a value that is no section")),
    }
}

/// A TOML value typed by the environment's text: `[...]` in TOML's notation.
pub(super) fn parse_list(text: &str) -> Option<Vec<String>> {
    let value = DeValue::parse(text).ok()?;
    match convert(value.get_ref()) {
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item.value {
                Value::Text(text) => Some(text),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn convert_table(table: &DeTable<'_>) -> Value {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        let node = Node {
            value: convert(value.get_ref()),
            place: Place::File(value.span()),
            key: Place::File(key.span()),
        };
        (key.get_ref().to_string(), node)
    };
    Value::Table(table.iter().map(entry).collect())
}

/// The TOML parser bounds its own nesting, and with it this recursion.
fn convert(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number beyond 64 bits"), Value::Integer),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| {
                    let place = Place::File(item.span());
                    Node { value: convert(item.get_ref()), place: place.clone(), key: place }
                })
                .collect(),
        ),
        DeValue::Table(table) => convert_table(table),
    }
}
