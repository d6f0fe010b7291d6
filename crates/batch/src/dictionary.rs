//! The dictionary that batches are compressed with: what gateways say, learned from generated data.
//!
//! `cargo run -p ferrule-batch --example train` makes it anew; a change is a new file and a new [`NUMBER`], and the old ones stay for
//! as long as edges have them.

use ferrule_store::path_hash;

/// Which dictionary this is.
pub const NUMBER: u8 = 1;

/// Its bytes, in zstd's format.
pub(crate) const BYTES: &[u8] = include_bytes!("../dictionaries/1.zdict");

/// The low 32 bits of FNV-1a over its bytes (a test compares).
pub const CHECK: u32 = 0xc55a_8778;

/// FNV-1a, as [`CHECK`] is made.
#[must_use]
pub fn check(bytes: &[u8]) -> u32 {
    // The low half is meant.
    (path_hash(0, bytes) & u64::from(u32::MAX)) as u32
}

/// What [`crate::DICTIONARY_NAME`] says of it.
#[must_use]
pub fn name() -> String {
    format!("{NUMBER}-{CHECK:08x}")
}
