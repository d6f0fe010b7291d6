//! The SQLite writer of the store: one file, one thread, one commit for everything that was submitted meanwhile.
//!
//! # Constraints
//! A gateway keeps its store on flash. What wears flash is not bytes but pages times commits: appending a row to a
//! table and deleting it again rewrites leaf and index pages, the free list and its map, in 4,096-byte blocks, for a
//! row of 240 bytes that lives for a second. `locking_mode=EXCLUSIVE` (no shared memory, and no second writer by
//! mistake) means that this thread does every read too.
//!
//! # Data
//! - A **journal** inside the database: a ring of preallocated rows, each filling one page. A commit writes its ops as
//!   one entry: one page for a small group, no page allocated or freed, nothing else touched. SQLite's WAL makes it
//!   atomic and durable.
//! - The journal's **net** in memory: its ops folded onto each other. A row that was appended and removed meanwhile is in
//!   neither list.
//! - The **tables** hold the state as of the last *fold*. A fold applies the net to the tables and starts the journal
//!   anew, in one transaction; it happens when the journal is full, for groups of more than half of it (which go straight
//!   to the tables), when more than 8,192 rows of the tables are to be removed, at a start and at a shutdown.
//!   Where a fold has many small rows of one queue they go there as blocks, compressed (`block.rs`).
//!
//! Reads merge tables and net. Memory: page cache + about twice the journal + what was submitted and not committed
//! (bounded by the shards' back-pressure, which looks at `pending_bytes`).
//!
//! Measured (ext4, `write_bytes` of /proc, 240-byte rows at 20 messages a second, rows a commit), GB of flash a day:
//!
//! | | 1 | 2 | 16 | 50 |
//! |---|---|---|---|---|
//! | table with deletes, no journal | 20.6 | 14.3 | 5.0 | 2.5 |
//! | this, 1,024-byte pages, rows removed one commit later | 9.6 | 5.0 | 1.1 | 0.7 |
//! | this, 2,048-byte pages | 11.4 | 6.0 | 1.2 | 0.7 |
//! | this, 4,096-byte pages | 15.2 | 7.9 | 1.4 | 0.8 |
//! | this, 1,024-byte pages, only appended (the uplink is down) | 10.9 | 6.3 | 2.4 | 2.1 |
//!
//! With 1,024-byte pages one small commit is 1.25 file-system blocks and cannot be less than one. 1,000,000 rows: opened in
//! 30 ms (counts are kept per queue), drained in 29 s with 115 folds, 8 MB of resident memory at most.
//! `tests/it/wear.rs` measures both.
//!
//! # Invariants
//! - `Committed` is told after `COMMIT` returned under `synchronous=FULL`, that is after the WAL's fsync, and covers every
//!   ticket up to its own.
//! - After any error of the medium the connection is dropped without a checkpoint. The WAL is written over itself and synced, since
//!   the kernel may have marked clean what a failed fsync lost; then the file is opened anew, the WAL copied into it and synced,
//!   the journal folded, and only then is what was kept in memory (the old net, the waiting batches) applied once
//!   more. Ops are idempotent, so it does not matter which of them the file already has.
//! - Nothing submitted is refused or dropped. While the medium refuses, tickets do not resolve, reads are not answered,
//!   and the file is tried again after 100 ms, doubling to 5 s.
//! - A damaged file is moved aside and its readable rows kept (`salvage.rs`), at a start and, for damage first met by a
//!   read or a fold, while running; then at most once an hour.
//!
//! # Operation
//! [`open`] makes a [`Writer`]; [`Writer::handle`] one [`Handle`] a shard. When the disk is full the *ballast* file is
//! given up, whose room lets removals through; below `reserve_bytes` [`low_on_space`](ferrule_store::Store::low_on_space) asks for admission to
//! stop earlier. Idle time is used to take the ballast back and to return free pages to the file system.

#![forbid(unsafe_code)]

mod block;
mod db;
mod error;
mod fold;
mod journal;
mod look;
mod read;
mod salvage;
mod schema;
mod space;
mod sum;
mod wal;
mod writer;

pub use error::OpenError;
pub use ferrule_store_writer::{Handle, ShutdownError, State, Writing};
pub use look::{Cursor, Item, Key, Look, Page};
pub use salvage::Damage;
pub use schema::VERSION as SCHEMA_VERSION;
pub use writer::{Opened, Status, Writer, open};

use ferrule_store_writer::net;

use std::path::{Path, PathBuf};

/// Name of the file in the data folder.
pub const FILE: &str = "ferrule.db";

/// How the writer uses its medium. Every size is in bytes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the SQLite VFS; none: the platform's.
    pub vfs: Option<String>,
    /// Page size of a new file: a power of two, 512 to 65,536. A commit rewrites one page at least.
    pub page_bytes: u32,
    /// Size of the journal. What is appended and removed while the journal fills is never written to a table; about
    /// as much memory holds the same.
    pub journal_bytes: u32,
    /// SQLite's page cache.
    pub cache_bytes: u32,
    /// The WAL is copied into the file when about so much was written to it.
    pub wal_bytes: u32,
    /// Size of the file that is given up when the disk is full; 0: none.
    pub ballast_bytes: u64,
    /// Admission stops when less than this is free.
    pub reserve_bytes: u64,
}

impl Options {
    /// For a gateway with little memory and flash that wears.
    #[must_use]
    pub fn edge() -> Self {
        Self {
            vfs: None,
            page_bytes: 1024,
            journal_bytes: 256 << 10,
            cache_bytes: 1 << 20,
            wal_bytes: 4 << 20,
            ballast_bytes: 8 << 20,
            reserve_bytes: 16 << 20,
        }
    }

    /// For a server.
    #[must_use]
    pub fn cloud() -> Self {
        Self {
            page_bytes: 4096,
            journal_bytes: 8 << 20,
            cache_bytes: 32 << 20,
            wal_bytes: 64 << 20,
            ballast_bytes: 64 << 20,
            reserve_bytes: 256 << 20,
            ..Self::edge()
        }
    }
}

/// `file` with `suffix` appended to its name.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
