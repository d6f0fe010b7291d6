//! SQLite as a medium of the tests that all writers pass, and options small enough that every test folds and checkpoints.

use bytes::Bytes;
use ferrule_store::{Body, Op, QueueId, Restored};
use ferrule_store_sqlite::{Opened, Options, Writer};
use ferrule_store_writer::harness::Medium;
use std::path::{Path, PathBuf};

pub(crate) use ferrule_store_writer::harness::{Client, Rng, append};

/// As [`append`], of bytes that no compressor makes fewer; the first is that of `append`.
pub(crate) fn append_noise(queue: QueueId, seq: u64, size: usize) -> Op {
    let mut rng = Rng(seq);
    let body: Bytes = (0..size).map(|i| if i == 0 { seq } else { rng.draw() } as u8).collect();
    Op::Append { queue, seq, head: Bytes::copy_from_slice(&seq.to_le_bytes()), body: Body::Inline(body) }
}

pub(crate) fn small() -> Options {
    Options {
        journal_bytes: 4096,
        wal_bytes: 64 << 10,
        cache_bytes: 64 << 10,
        ballast_bytes: 0,
        reserve_bytes: 0,
        ..Options::edge()
    }
}

pub(crate) fn open(folder: &Path) -> (Writer, Restored) {
    let Opened { writer, restored, damage } = ferrule_store_sqlite::open(folder, small()).unwrap();
    assert_eq!(damage, None);
    (writer, restored)
}

/// A folder.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Medium for Folder {
    type Writer = Writer;

    fn open(&self) -> (Writer, Restored) {
        open(&self.0)
    }
}

/// Runs a test of all writers on a folder of its own.
pub(crate) fn on_a_folder(test: impl FnOnce(&Folder)) {
    let folder = tempfile::tempdir().unwrap();
    test(&Folder(folder.path().to_owned()));
}
