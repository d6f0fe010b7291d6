//! The SQLite writer of the store.
