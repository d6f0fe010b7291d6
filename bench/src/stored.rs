//! Opening a store with many sessions: how long a node takes until it serves, and what each session costs in memory.
//!
//! # Design
//! The store is written by this process through the node's own writer: sessions with one subscription each to a topic of its own, and
//! for every tenth a message of 1 KiB that waits. Then `ferrule-edge` is started on it as a user would. It serves when a client
//! that has a session is told so in its CONNACK. Memory is against that of the same program on an empty store: bodies stay on
//! disk, so it must not have those of the messages that wait.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_store::record::{Delivery, Record, Session, Subscription};
use ferrule_store::{Body, Op, QueueId, SessionId, Store, StoreEvent};
use ferrule_store_sqlite::Options as StoreOptions;
use ferrule_testkit::port;
use ferrule_testkit::proc::Launch;
use ferrule_testkit::wire::{Client, Options as ClientOptions};
use serde::{Deserialize, Serialize};

use crate::procfs;
use crate::run::{Options, wanted};

/// Seconds until it serves that are aimed at, at most.
pub const OPEN_MAX: f64 = 10.0;
/// One session in so many has a message waiting.
const WITH_MESSAGE: u64 = 10;
const MESSAGE_BYTES: usize = 1024;
/// Sessions of one batch.
const BATCH: u64 = 10_000;
/// A start that takes longer has failed.
const START: Duration = Duration::from_secs(300);

/// What a start on a full store took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// From the start of the process to the CONNACK that knows a session, in seconds.
    pub open_seconds: f64,
    /// The same on an empty store.
    pub empty_seconds: f64,
    /// Resident memory then, in bytes.
    pub rss_bytes: u64,
    /// That of the same program on an empty store.
    pub empty_rss_bytes: u64,
    /// Bytes of the store's file.
    pub file_bytes: u64,
    /// Bytes of messages that wait in it.
    pub waiting_bytes: u64,
}

/// A row, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredResult {
    /// How many.
    pub sessions: u64,
    /// What was found.
    pub found: Option<Stored>,
    /// Why nothing.
    pub error: Option<String>,
}

impl StoredResult {
    /// Resident memory of one session, in bytes.
    #[must_use]
    pub fn bytes_each(&self) -> Option<f64> {
        let found = self.found.as_ref()?;
        Some(found.rss_bytes.saturating_sub(found.empty_rss_bytes) as f64 / self.sessions as f64)
    }
}

/// The rows that are asked for.
pub fn run(options: &Options, edge: &Path, mut said: impl FnMut(&str)) -> Vec<StoredResult> {
    let sizes: &[u64] = if options.quick { &[1_000] } else { &[100_000, 1_000_000] };
    let rows = sizes.iter().filter(|_| wanted(options, "stored sessions")).map(|&sessions| {
        said(&format!("{sessions} stored sessions"));
        let (found, error) = match one(edge, sessions) {
            Ok(found) => (Some(found), None),
            Err(error) => (None, Some(error.to_string())),
        };
        StoredResult { sessions, found, error }
    });
    rows.collect()
}

fn one(edge: &Path, sessions: u64) -> io::Result<Stored> {
    let (full, empty) = (tempfile::tempdir()?, tempfile::tempdir()?);
    write(full.path(), sessions)?;
    let file_bytes = std::fs::metadata(full.path().join(ferrule_store_sqlite::FILE))?.len();
    let (empty_seconds, empty_rss_bytes) = start(edge, empty.path(), None)?;
    let (open_seconds, rss_bytes) = start(edge, full.path(), Some(&client_id(sessions / 2)))?;
    let waiting_bytes = sessions / WITH_MESSAGE * MESSAGE_BYTES as u64;
    Ok(Stored { open_seconds, empty_seconds, rss_bytes, empty_rss_bytes, file_bytes, waiting_bytes })
}

fn client_id(n: u64) -> String {
    format!("device-{n:07}")
}

fn write(folder: &Path, sessions: u64) -> io::Result<()> {
    let opened = ferrule_store_sqlite::open(folder, StoreOptions::edge()).map_err(io::Error::other)?;
    let (told, committed) = std::sync::mpsc::channel();
    let mut store = opened.writer.handle(Box::new(move |event| {
        if let StoreEvent::Committed { ticket, .. } = event {
            // Nobody listens any more once all were counted.
            let _ = told.send(ticket);
        }
    }));
    let subscription =
        Subscription { qos: 1, no_local: false, retain_as_published: false, retain_handling: 0, id: None };
    for first in (1..=sessions).step_by(BATCH as usize) {
        let mut ops = Vec::new();
        for n in first..(first + BATCH).min(sessions + 1) {
            let session = SessionId(n);
            let record = Session {
                client_id: client_id(n).into(),
                username: None,
                expiry_s: u32::MAX,
                ended_wall_ms: None,
                handed_to: None,
                will: None,
            };
            let filter: Arc<str> = format!("devices/{}/in", client_id(n)).into();
            ops.push(Op::SessionPut { session, record: record.to_bytes() });
            ops.push(Op::SubscriptionPut {
                session,
                filter: (&*filter).into(),
                record: subscription.to_bytes(),
            });
            if n % WITH_MESSAGE == 0 {
                let payload = bytes::Bytes::from(vec![b'x'; MESSAGE_BYTES]);
                let delivery = Delivery {
                    topic: filter,
                    qos: 1,
                    retain: false,
                    expires_wall_ms: None,
                    subscription_ids: Vec::new(),
                    properties: bytes::Bytes::new(),
                    payload: payload.clone(),
                    share: None,
                    source: None,
                };
                let (queue, head) = (QueueId::session(session), delivery.to_bytes());
                ops.push(Op::Append { queue, seq: 1, head, body: Body::Inline(payload) });
            }
        }
        let ticket = store.submit(ops);
        // One batch at a time: memory is not what is measured here.
        while committed.recv().map_err(io::Error::other)? < ticket {}
    }
    opened.writer.shutdown().map_err(io::Error::other)
}

/// Seconds until a client is served, and resident memory then. `knows`: whose session must be there.
fn start(edge: &Path, folder: &Path, knows: Option<&str>) -> io::Result<(f64, u64)> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
    let log = folder.join("output.log");
    let launch = Launch::new("ferrule-edge", edge, log)
        .args(["run", "--listen", &addr.to_string(), "--data-dir"])
        .arg(folder);
    let started = Instant::now();
    let mut process = launch.start();
    let options = match knows {
        Some(client_id) => ClientOptions::v5(client_id).persistent(),
        None => ClientOptions::v5("nobody"),
    };
    while started.elapsed() < START {
        if process.exited().is_some() {
            return Err(io::Error::other(process.tail(10)));
        }
        let Ok((client, connack)) = Client::try_connect(addr, &options) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let seconds = started.elapsed().as_secs_f64();
        let (_, present) = connack.connack();
        drop(client);
        if present != knows.is_some() {
            return Err(io::Error::other("a session that was stored is not there"));
        }
        return Ok((seconds, procfs::rss_bytes(process.pid())));
    }
    Err(io::Error::other(format!("it does not serve after {START:?}: {}", process.tail(10))))
}
