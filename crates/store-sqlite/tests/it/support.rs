//! A handle whose events can be waited for, and options small enough that every test folds and checkpoints.

use bytes::Bytes;
use ferrule_store::{Body, Op, QueueId, Restored, Store, StoreEvent, StoredRow, Ticket};
use ferrule_store_sqlite::{Opened, Options, SqliteStore, Writer};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Far beyond what anything here takes; reached only by a hang.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

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

pub(crate) struct Client {
    pub(crate) store: SqliteStore,
    pub(crate) events: Receiver<StoreEvent>,
}

impl Client {
    pub(crate) fn new(writer: &Writer) -> Self {
        let (send, events) = channel();
        let store = writer.handle(Box::new(move |event| drop(send.send(event))));
        Self { store, events }
    }

    pub(crate) fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        self.store.submit(ops)
    }

    /// The next event that `pick` takes; others are passed over.
    pub(crate) fn wait_for<T>(&self, mut pick: impl FnMut(StoreEvent) -> Option<T>) -> T {
        loop {
            let event = self.events.recv_timeout(DEADLINE).expect("the event never came");
            if let Some(value) = pick(event) {
                return value;
            }
        }
    }

    pub(crate) fn wait(&self, ticket: Ticket) {
        self.wait_for(|event| match event {
            StoreEvent::Committed { ticket: at, .. } if at >= ticket => Some(()),
            _ => None,
        });
    }

    pub(crate) fn wait_failing(&self) -> String {
        self.wait_for(|event| match event {
            StoreEvent::Failing { message } => Some(message),
            _ => None,
        })
    }

    pub(crate) fn wait_recovered(&self) {
        self.wait_for(|event| matches!(event, StoreEvent::Recovered).then_some(()));
    }

    pub(crate) fn commit(&mut self, ops: Vec<Op>) {
        let ticket = self.submit(ops);
        self.wait(ticket);
    }

    pub(crate) fn read(
        &mut self,
        queue: QueueId,
        from: u64,
        max_rows: u32,
        max_bytes: u32,
    ) -> Vec<StoredRow> {
        self.store.read(queue, from, max_rows, max_bytes);
        self.wait_for(|event| match event {
            StoreEvent::Rows { queue: of, rows } if of == queue => Some(rows),
            _ => None,
        })
    }

    /// Pages through a queue.
    pub(crate) fn rows(&mut self, queue: QueueId, max_rows: u32, max_bytes: u32) -> Vec<StoredRow> {
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            let rows = self.read(queue, from, max_rows, max_bytes);
            let Some(last) = rows.last() else { return all };
            assert!(rows.len() <= max_rows.max(1) as usize);
            from = last.seq + 1;
            all.extend(rows);
        }
    }
}

pub(crate) fn append(queue: QueueId, seq: u64, size: usize) -> Op {
    let body = Body::Inline(vec![seq as u8; size].into());
    Op::Append { queue, seq, head: Bytes::copy_from_slice(&seq.to_le_bytes()), body }
}

/// As [`append`], of bytes that no compressor makes fewer; the first is that of `append`.
pub(crate) fn append_noise(queue: QueueId, seq: u64, size: usize) -> Op {
    let mut rng = Rng(seq);
    let body: Bytes = (0..size).map(|i| if i == 0 { seq } else { rng.next() } as u8).collect();
    Op::Append { queue, seq, head: Bytes::copy_from_slice(&seq.to_le_bytes()), body: Body::Inline(body) }
}

/// Splitmix64: the same numbers for the same seed everywhere.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
