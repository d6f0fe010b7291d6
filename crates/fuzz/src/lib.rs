//! Bodies of the fuzz targets. Each is a plain function of bytes that panics when an invariant is broken.
//!
//! # Design
//! - **One body, two drivers.** `fuzz/fuzz_targets/*.rs` (libFuzzer, nightly, a workspace of its own) and
//!   `tests/seeded.rs` (stable, in `make test`) call the same functions: [`batch()`], [`codec()`], [`formats()`], [`http()`], [`proxy()`], [`rules()`], [`shard()`] and [`websocket()`]. What one of them finds, the other replays.
//! - **A crate of its own**, not a part of the test kit: libFuzzer instruments all that a target is built from, and the
//!   test kit brings processes, files and sockets that no body may touch. Only the pure crates are dependencies here, so that
//!   the same bytes always do the same.
//! - **Whatever the bytes are, they mean something**: a byte that names a choice is taken modulo the number of choices, and an
//!   input that ends early ends the run. So a mutation changes what happens, and seldom makes an input worthless.
//! - **The invariants are the peer's.** [`monitor`] sees a connection as its client does, and knows of the shard only what
//!   the standard lets it know; what stands in the store at the end is compared with what the shard says of itself.
//!
//! # Replaying
//! `FERRULE_FUZZ_INPUT=FILE cargo test --release -p ferrule-fuzz --test seeded FILE's target` runs one input without nightly;
//! `FERRULE_FUZZ_SHOW=1` prints what a script does, step by step.

#![forbid(unsafe_code)]

mod batch;
mod codec;
mod formats;
pub mod monitor;
mod packets;
mod rules;
pub mod seeds;
mod shard;
mod transport;

pub use batch::batch;
pub use codec::codec;
pub use formats::formats;
pub use rules::rules;
pub use shard::shard;
pub use transport::{http, proxy, websocket};

/// Bytes of an input, read one decision at a time. Past the end every decision is 0.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// At its first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// A number below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    /// One of a table.
    pub fn pick<T: Copy>(&mut self, table: &[T]) -> T {
        table[self.below(table.len())]
    }

    /// The next `len` bytes, or those that are left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
