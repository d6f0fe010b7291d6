//! The outbox's side of a sink, for tests: rows in, events out, every answer counted once.
#![allow(clippy::unwrap_used, reason = "a test's helper: what fails there is the test")]

use crate::{Connector, ConsumerEvent, Delivered, Options, OutRow, Reason, Running, SinkContext};
use ferrule_store::record::Entry;
use ferrule_store::{Boot, Identity, Stamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Ends a hang; nothing is measured by it.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The answer of a row that is there.
pub const YES: Delivered = Delivered::Yes;

/// The answer of a row that was refused.
pub const REFUSED: Delivered = Delivered::Discarded(Reason::Refused);

/// An entry of device `dev`, which came through `edge-1` on 2025-11-24.
#[must_use]
pub fn entry(seq: u64, target: &str, payload: impl Into<Vec<u8>>) -> Entry {
    Entry {
        identity: Identity { origin: "edge-1".into(), boot: Boot::new(7), class: 0, seq },
        rule: 11,
        row: 0,
        target: target.into(),
        key: "dev".into(),
        passthrough: false,
        qos: 1,
        retain: false,
        client_id: "dev".into(),
        username: None,
        topic: "a/b".into(),
        edge: Some("edge-1".into()),
        received: Stamp { wall_ms: 1_764_022_070_123, mono_us: 0, synced: true },
        hops: 1,
        properties: bytes::Bytes::new(),
        payload: bytes::Bytes::from(payload.into()),
    }
}

/// [`entry`] as the outbox hands it out.
#[must_use]
pub fn row(seq: u64, target: &str, payload: impl Into<Vec<u8>>) -> OutRow {
    OutRow { seq, entry: Arc::new(entry(seq, target, payload)), again: false, late: false }
}

/// A running sink, and what it has said.
#[derive(Debug)]
pub struct Harness {
    rows: Option<mpsc::Sender<Vec<OutRow>>>,
    events: mpsc::UnboundedReceiver<ConsumerEvent>,
    running: Running,
    /// Answers by row.
    pub answers: BTreeMap<u64, Delivered>,
    /// Errors of `Down`, in order.
    pub downs: Vec<String>,
    /// What it counted of its own.
    pub counted: BTreeMap<&'static str, u64>,
}

impl Harness {
    /// Starts a sink with these options, secrets as they are.
    ///
    /// # Panics
    /// When the options are wrong.
    #[must_use]
    pub fn start(connector: &dyn Connector, options: &[(&str, &str)]) -> Self {
        let given: Vec<_> = options.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        let options = Options::parse(connector.schema(), &given).unwrap();
        let (rows, receiver) = mpsc::channel(10_000);
        let (sender, events) = mpsc::unbounded_channel();
        let context = SinkContext {
            rows: receiver,
            events: Arc::new(move |event| drop(sender.send(event))),
            runtime: tokio::runtime::Handle::current(),
            finish_within: LIMIT,
        };
        let running = connector.start("s", &options, context).unwrap();
        Self {
            rows: Some(rows),
            events,
            running,
            answers: BTreeMap::new(),
            downs: Vec::new(),
            counted: BTreeMap::new(),
        }
    }

    /// Hands rows out.
    ///
    /// # Panics
    /// When the sink has ended.
    pub async fn send(&self, rows: Vec<OutRow>) {
        self.rows.as_ref().unwrap().send(rows).await.unwrap();
    }

    /// Batches that the sink has not taken.
    ///
    /// # Panics
    /// When the rows are closed.
    #[must_use]
    pub fn untaken(&self) -> usize {
        let rows = self.rows.as_ref().unwrap();
        rows.max_capacity() - rows.capacity()
    }

    /// The next event.
    ///
    /// # Panics
    /// When none comes, or it answers a row for the second time.
    pub async fn event(&mut self) -> ConsumerEvent {
        let event = tokio::time::timeout(LIMIT, self.events.recv()).await.expect("an event is due").unwrap();
        self.take(&event);
        event
    }

    fn take(&mut self, event: &ConsumerEvent) {
        match event {
            ConsumerEvent::Done(answers) => {
                for (seq, delivered) in answers {
                    assert_eq!(self.answers.insert(*seq, delivered.clone()), None, "{seq} is answered twice");
                }
            }
            ConsumerEvent::Down { error } => self.downs.push(error.clone()),
            ConsumerEvent::Counted { what, by } => *self.counted.entry(what).or_default() += by,
            ConsumerEvent::Up { .. } | ConsumerEvent::Holds { .. } | ConsumerEvent::Reset => {}
        }
    }

    /// Until this many rows are answered.
    pub async fn until_answered(&mut self, rows: usize) {
        while self.answers.len() < rows {
            self.event().await;
        }
    }

    /// Until the sink says that it is down: why.
    pub async fn until_down(&mut self) -> String {
        loop {
            if let ConsumerEvent::Down { error } = self.event().await {
                return error;
            }
        }
    }

    /// Until the sink says that it is up.
    pub async fn until_up(&mut self) {
        while !matches!(self.event().await, ConsumerEvent::Up { .. }) {}
    }

    /// The answers in the order of rows.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Delivered> {
        self.answers.values().cloned().collect()
    }

    /// Closes the rows and waits for the end: all answers.
    ///
    /// # Panics
    /// When the sink does not end, or crashed.
    pub async fn stop(mut self) -> BTreeMap<u64, Delivered> {
        self.rows = None;
        tokio::time::timeout(LIMIT, self.running.stopped()).await.unwrap().unwrap();
        while let Ok(event) = self.events.try_recv() {
            self.take(&event);
        }
        self.answers
    }

    /// Leaves the sink to itself, rows closed: as a process that is killed.
    pub fn abandon(mut self) {
        self.rows = None;
    }
}
