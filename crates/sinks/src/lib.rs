//! The sink contract, option schemas and the light sinks.
//!
//! # Constraints
//! A sink is the consumer of one outbox ([`ferrule_outbox::consumer`]): it gets rows in order, answers each exactly
//! once, keeps order within a lane, and owns its retries. It must never acknowledge what its destination could still lose,
//! never let one poison row block the rows behind it, and never hold up another sink. Whoever writes
//! `CREATE SINK ... WITH (...)` must hear of every mistake in it at once, before it is deployed, from `rules check`.
//!
//! # Data
//! - A [`Connector`] is a kind of destination: its [`ConnectorSchema`] lists the options, from which come the checks and
//!   the reference documentation. [`Options`] are the values of one declared sink.
//! - [`Connector::start`] makes a running sink from a [`SinkContext`]: rows come in through a channel, [`ConsumerEvent`]s
//!   go out through a callback.
//!
//! # Operation
//! The sink ends when its `rows` channel is closed: it finishes what it can within [`SinkContext::finish_within`], drops
//! the rest (the outbox has it), and [`Running::stopped`] returns. [`health`] has what all sinks share: back-off
//! with jitter, and saying `Up` and `Down` once per change.
//!
//! # Invariants
//! - Memory is bounded by the window that the sink announces in `Up`; the outbox never has more rows unanswered.
//! - A connector reads no environment and no clock for its decisions but the monotonic one of its runtime; secrets are
//!   resolved by [`Options::resolve`] with look-ups handed in.

#![forbid(unsafe_code)]

pub mod file;
#[cfg(feature = "harness")]
pub mod harness;
pub mod health;
pub mod http;
mod input;
pub mod mqtt;
pub mod options;
pub mod sql;
pub mod sqlite;
mod text;

pub use ferrule_outbox::{ConsumerEvent, Delivered, OutRow, Reason};
pub use file::File;
pub use http::Http;
pub use mqtt::Mqtt;
pub use options::{ConnectorSchema, OptionKind, OptionSchema, Options, Target};
pub use sqlite::Sqlite;

use std::sync::Arc;
use std::time::Duration;

/// A kind of destination, named by `connector = '...'` in `CREATE SINK`.
pub trait Connector: Send + Sync {
    /// Name, options and their documentation.
    fn schema(&self) -> &'static ConnectorSchema;

    /// Checks what the schema alone cannot: relations between options, the text of `columns`, an address. Secrets may be
    /// unresolved (`env:NAME`) here, since `rules check` also runs where they are not known.
    ///
    /// # Errors
    /// Every mistake, a sentence each.
    fn check(&self, options: &Options) -> Result<Declared, Vec<String>>;

    /// Starts the sink `name`. It connects in the background: a destination that is away is not an error but a
    /// [`ConsumerEvent::Down`].
    ///
    /// # Errors
    /// As [`Connector::check`], and secrets that are not resolved.
    fn start(&self, name: &str, options: &Options, context: SinkContext) -> Result<Running, Vec<String>>;
}

/// The sinks that every program has.
#[must_use]
pub fn light() -> Vec<Arc<dyn Connector>> {
    vec![Arc::new(Sqlite), Arc::new(File), Arc::new(Http), Arc::new(Mqtt)]
}

/// What a sink's options say that rules are checked against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// The only columns a row may have; none when any may come.
    pub columns: Option<Vec<String>>,
    /// How long the destination knows rows again. An outbox that keeps rows longer may bring them twice.
    pub dedupe_for: Option<Duration>,
}

/// What a sink lives on.
pub struct SinkContext {
    /// Rows from the outbox, in order. Closing it ends the sink.
    pub rows: tokio::sync::mpsc::Receiver<Vec<OutRow>>,
    /// Takes answers and changes of health. Called from the sink's own task or thread; must not block.
    pub events: Arc<dyn Fn(ConsumerEvent) + Send + Sync>,
    /// Where tasks are spawned. It needs its time and I/O drivers.
    pub runtime: tokio::runtime::Handle,
    /// How long a sink may go on with rows at hand after `rows` was closed.
    pub finish_within: Duration,
}

impl std::fmt::Debug for SinkContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SinkContext").field("finish_within", &self.finish_within).finish_non_exhaustive()
    }
}

/// A sink that was started. Dropping this does not end it; closing its rows does.
#[derive(Debug)]
pub struct Running {
    stopped: tokio::sync::oneshot::Receiver<()>,
}

/// A sink ended without having been told to: it panicked, which is a bug. Its unanswered rows are the outbox's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crashed;

impl Running {
    /// A running sink, and the sender its task sends on when it has ended in order.
    #[must_use]
    pub fn new() -> (Self, tokio::sync::oneshot::Sender<()>) {
        let (sender, stopped) = tokio::sync::oneshot::channel();
        (Self { stopped }, sender)
    }

    /// Waits until the sink has ended. Cancellation-safe.
    ///
    /// # Errors
    /// When it crashed.
    pub async fn stopped(&mut self) -> Result<(), Crashed> {
        (&mut self.stopped).await.map_err(|_| Crashed)
    }
}
