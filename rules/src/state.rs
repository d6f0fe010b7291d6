//! Tables of values by key that outlive a message: a rule's own (`state_put`, `lag`, ...), and those that EMQX's rules share
//! (`kv_store_put`, `proc_dict_put`).
//!
//! # Operation
//! A rule changes its table while it runs. When it failed, [`Table::roll_back`] undoes what it did; else [`Table::keep`] notes which keys
//! changed, and the host takes them ([`Table::take_changes`]) for its store and gives them back after a restart ([`Table::restore`]). Keys and values
//! are JSON there; bytes are `{"$bytes":"hex"}`.
//!
//! # Bounds
//! [`KEYS_MAX`] keys and [`BYTES_MAX`] bytes; what would be more is refused, and the table stays as it was.

use std::collections::{HashMap, HashSet};

use crate::TypeError;
use crate::value::Value;

/// The most keys of a table.
const KEYS_MAX: usize = 100_000;
/// The most bytes of a table: keys and values as JSON, and [`ENTRY`] for each.
pub(crate) const BYTES_MAX: usize = 16 << 20;
/// What an entry costs besides its key and value.
const ENTRY: usize = 64;

/// A table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    entries: HashMap<Vec<u8>, Entry>,
    bytes: usize,
    /// What the message in hand has replaced, the latest last.
    undo: Vec<(Vec<u8>, Option<Entry>)>,
    /// Keys that changed since the host last asked.
    changed: HashSet<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Entry {
    value: Value<'static>,
    bytes: usize,
}

/// All that functions remember for a rule: for `rules test`, which asks again what a message has changed already.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// The rule's own.
    pub(crate) own: Option<Box<Table>>,
    /// What all rules share.
    pub(crate) kv: Table,
    /// What all rules share until a restart.
    pub(crate) dict: Table,
}

impl Memory {
    /// What was done stays: nobody undoes it.
    pub(crate) fn settle(&mut self) {
        self.own.iter_mut().for_each(|own| own.settle());
        self.kv.settle();
        self.dict.settle();
    }
}

/// A key of any type; `1` and `'1'` are two.
fn key_of(key: &Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match key {
        // Unlike the text of this word, which has quotes.
        Value::Missing => out.extend_from_slice(b"undefined"),
        key => key.write_json(&mut out),
    }
    out
}

impl Table {
    /// Puts a value, and gives the one that was there.
    ///
    /// # Errors
    /// [`TypeError::BadArgument`]: the table is full; it stays as it was.
    pub(crate) fn put(
        &mut self,
        key: &Value<'_>,
        value: Value<'_>,
    ) -> Result<Option<Value<'static>>, TypeError> {
        let key = key_of(key);
        let mut json = Vec::new();
        value.write_json(&mut json);
        let bytes = key.len() + json.len() + ENTRY;
        let before = self.entries.get(&key).map(|entry| entry.bytes);
        let keys = self.entries.len() + usize::from(before.is_none());
        let all = self.bytes.saturating_sub(before.unwrap_or(0)).saturating_add(bytes);
        if keys > KEYS_MAX || all > BYTES_MAX {
            return Err(TypeError::BadArgument);
        }
        self.bytes = all;
        let entry = Entry { value: value.into_owned(), bytes };
        let before = self.entries.insert(key.clone(), entry);
        let value = before.as_ref().map(|entry| entry.value.clone());
        self.undo.push((key, before));
        Ok(value)
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &Value<'_>) -> Option<Value<'static>> {
        self.entries.get(&key_of(key)).map(|entry| entry.value.clone())
    }

    /// Removes a key, and gives its value.
    pub(crate) fn remove(&mut self, key: &Value<'_>) -> Option<Value<'static>> {
        let key = key_of(key);
        let entry = self.entries.remove(&key)?;
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        let value = entry.value.clone();
        self.undo.push((key, Some(entry)));
        Some(value)
    }

    /// What the message did stays.
    pub(crate) fn keep(&mut self) {
        self.changed.extend(self.undo.drain(..).map(|(key, _)| key));
    }

    /// What was done stays, and nobody asks for it: a table that a restart forgets.
    pub(crate) fn settle(&mut self) {
        self.undo.clear();
    }

    /// What the message did is undone.
    pub(crate) fn roll_back(&mut self) {
        while let Some((key, before)) = self.undo.pop() {
            let now = match before {
                Some(entry) => {
                    self.bytes += entry.bytes;
                    self.entries.insert(key, entry)
                }
                None => self.entries.remove(&key),
            };
            self.bytes = self.bytes.saturating_sub(now.map_or(0, |entry| entry.bytes));
        }
    }

    /// Whether keys changed since the last [`Self::take_changes`].
    pub(crate) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Each key that changed, and its value; none: it was removed.
    pub(crate) fn take_changes(&mut self, mut each: impl FnMut(Vec<u8>, Option<Vec<u8>>)) {
        for key in self.changed.drain() {
            let value = self.entries.get(&key).map(|entry| {
                let mut json = Vec::new();
                entry.value.write_json(&mut json);
                json
            });
            each(key, value);
        }
    }

    /// Puts what [`Self::take_changes`] gave before a restart; what is damaged is left out.
    pub(crate) fn restore(&mut self, key: &[u8], value: &[u8]) {
        let read = crate::json::document(value).ok().and_then(|found| Value::found(value, found).ok());
        let Some(value) = read.map(crate::formats::untagged) else { return };
        let bytes = key.len() + value_len(&value) + ENTRY;
        self.bytes += bytes;
        let before = self.entries.insert(key.to_vec(), Entry { value: value.into_owned(), bytes });
        self.bytes -= before.map_or(0, |entry| entry.bytes);
    }

    /// Forgets everything; every key has changed then.
    pub(crate) fn clear(&mut self) {
        self.changed.extend(self.entries.drain().map(|(key, _)| key));
        self.undo.clear();
        self.bytes = 0;
    }

    /// Keys and bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

fn value_len(value: &Value<'_>) -> usize {
    let mut json = Vec::new();
    value.write_json(&mut json);
    json.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_bounds_hold_and_room_comes_back() {
        let mut table = Table::default();
        for key in 0..100_000 {
            table.put(&Value::Int(key), Value::Null).unwrap();
        }
        assert_eq!(table.put(&Value::Int(-1), Value::Null), Err(TypeError::BadArgument));
        assert_eq!(table.put(&Value::Int(1), Value::Int(7)), Ok(Some(Value::Null)), "a key that is there");
        assert_eq!(table.remove(&Value::Int(1)), Some(Value::Int(7)));
        table.put(&Value::Int(-1), Value::Null).unwrap();
        for key in -1..100_000 {
            table.remove(&Value::Int(key));
        }
        assert_eq!(table.size(), (0, 0));
        let large = || Value::Text("x".repeat(9 << 20).into());
        table.put(&Value::Int(1), large()).unwrap();
        assert_eq!(table.put(&Value::Int(2), large()), Err(TypeError::BadArgument));
        table.put(&Value::Int(1), large()).unwrap();
    }

    #[test]
    fn what_a_failed_message_did_is_undone_and_what_others_did_comes_back_after_a_restart() {
        let mut table = Table::default();
        let text = |text: &'static str| Value::Text(text.into());
        table.put(&text("a"), Value::Float(1.0)).unwrap();
        table.put(&text("b"), Value::Bytes(vec![0xff, 0].into())).unwrap();
        table.put(&text("gone"), Value::Null).unwrap();
        table.keep();
        table.remove(&text("gone"));
        table.keep();
        let before = table.size();
        table.put(&text("a"), Value::Int(2)).unwrap();
        table.put(&text("a"), Value::Int(3)).unwrap();
        table.put(&text("c"), text("new")).unwrap();
        table.remove(&text("b"));
        table.roll_back();
        assert_eq!(table.size(), before);
        let mut kept = Vec::new();
        table.take_changes(|key, value| kept.push((key, value)));
        assert!(!table.is_changed());
        kept.sort();
        let mut again = Table::default();
        for (key, value) in &kept {
            match value {
                Some(value) => again.restore(key, value),
                None => assert_eq!(key, b"\"gone\""),
            }
        }
        assert_eq!(kept.len(), 3);
        assert_eq!(again.size(), before);
        assert_eq!(again.get(&text("a")), Some(Value::Float(1.0)));
        assert_eq!(again.get(&text("b")), Some(Value::Bytes(vec![0xff, 0].into())));
        again.clear();
        assert_eq!((again.size(), again.is_changed()), ((0, 0), true));
    }
}
