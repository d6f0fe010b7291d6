//! The bounded tables behind `kv_store_put` and `proc_dict_put`: values by key, in memory only.

use std::collections::HashMap;

use crate::TypeError;
use crate::value::Value;

/// The most keys of a table.
const KEYS_MAX: usize = 10_000;
/// The most bytes of a table: keys and values as JSON, and [`ENTRY`] for each.
const BYTES_MAX: usize = 16 << 20;
/// What an entry costs besides its key and value.
const ENTRY: usize = 64;

/// A table.
#[derive(Debug, Default)]
pub(crate) struct KvStore {
    entries: HashMap<Vec<u8>, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    value: Value<'static>,
    bytes: usize,
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

impl KvStore {
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
        Ok(self.entries.insert(key, entry).map(|entry| entry.value))
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &Value<'_>) -> Option<Value<'static>> {
        self.entries.get(&key_of(key)).map(|entry| entry.value.clone())
    }

    /// Removes a key, and gives its value.
    pub(crate) fn remove(&mut self, key: &Value<'_>) -> Option<Value<'static>> {
        let entry = self.entries.remove(&key_of(key))?;
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        Some(entry.value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_bounds_hold_and_room_comes_back() {
        let mut store = KvStore::default();
        for key in 0..10_000 {
            store.put(&Value::Int(key), Value::Null).unwrap();
        }
        assert_eq!(store.put(&Value::Int(-1), Value::Null), Err(TypeError::BadArgument));
        assert_eq!(store.put(&Value::Int(1), Value::Int(7)), Ok(Some(Value::Null)), "a key that is there");
        assert_eq!(store.remove(&Value::Int(1)), Some(Value::Int(7)));
        store.put(&Value::Int(-1), Value::Null).unwrap();
        for key in -1..10_000 {
            store.remove(&Value::Int(key));
        }
        assert_eq!((store.entries.len(), store.bytes), (0, 0));
        let large = || Value::Text("x".repeat(9 << 20).into());
        store.put(&Value::Int(1), large()).unwrap();
        assert_eq!(store.put(&Value::Int(2), large()), Err(TypeError::BadArgument));
        store.put(&Value::Int(1), large()).unwrap();
    }
}
