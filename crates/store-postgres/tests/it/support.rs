//! A real server, and schemas on it as media of the tests that all writers pass.

use ferrule_store::Restored;
use ferrule_store_postgres::{Opened, Options, Writer};
use ferrule_store_writer::harness::Medium;
use ferrule_testkit::Postgres;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) use ferrule_store_writer::harness::{Client, append, own, queues, session};

/// A node's part of a schema.
#[derive(Clone)]
pub(crate) struct Place(pub(crate) Options);

impl Place {
    /// A schema that nobody has used, on a server that outlives it.
    pub(crate) fn new(url: &str) -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let schema = format!("s{}", LAST.fetch_add(1, Ordering::Relaxed));
        // A loaded machine is no dead server.
        Self(Options { schema, timeout: Duration::from_secs(20), ..Options::new(url, "a") })
    }

    pub(crate) fn node(&self, node: &str) -> Self {
        Self(Options { node: node.into(), ..self.0.clone() })
    }

    pub(crate) fn through(&self, relay: &ferrule_testkit::Relay) -> Self {
        let url = format!("postgres://postgres@{}/postgres", relay.addr());
        Self(Options { url, ..self.0.clone() })
    }

    /// For a server that is to be found out soon.
    pub(crate) fn impatient(&self) -> Self {
        Self(Options { timeout: Duration::from_secs(1), ..self.0.clone() })
    }
}

impl Medium for Place {
    type Writer = Writer;

    fn open(&self) -> (Writer, Restored) {
        let Opened { writer, restored } = ferrule_store_postgres::open(self.0.clone()).unwrap();
        (writer, restored)
    }
}

/// A server and a place on it.
pub(crate) fn server() -> (Postgres, Place) {
    let postgres = Postgres::start();
    let place = Place::new(&postgres.url());
    (postgres, place)
}

/// Numbers of the rows of a queue.
pub(crate) fn seqs(client: &mut Client, queue: ferrule_store::QueueId) -> Vec<u64> {
    client.rows(queue, 256, u32::MAX).iter().map(|row| row.seq).collect()
}
