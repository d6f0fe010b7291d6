//! Where the node's store is: in a file of its own, or in what its program brings ([`Backend`]).

use crate::config::{PostgresConfig, StoreConfig};
use crate::control::StoreStatus;
use crate::run::RunError;
use ferrule_store::{Restored, Store, StoreEvent};
use ferrule_store_sqlite::{Cursor, Options, Page};
use ferrule_store_writer::{Figures, Handle, Notify, ShutdownError, State, Writing};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// A store in PostgreSQL: a program that can keep it there brings this, and others need not be linked with it.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    /// What is wrong with a configuration, as far as that is known without a server: option and reason.
    pub check: fn(&PostgresConfig) -> Vec<(&'static str, String)>,
    /// Opens it.
    pub open: fn(&PostgresConfig) -> Result<Elsewhere, String>,
}

/// What a [`Backend`] has opened.
#[derive(Debug)]
pub struct Elsewhere {
    /// It runs.
    pub writer: Box<dyn Writing>,
    /// What the shards need in memory.
    pub restored: Restored,
    /// Where it is, for people.
    pub place: String,
}

/// What was opened.
pub struct Opened {
    /// It runs.
    pub writer: Writer,
    /// What the shards need in memory.
    pub restored: Restored,
}

/// The running writer of the store.
#[derive(Debug)]
pub enum Writer {
    /// Of a file in the data folder.
    Sqlite(ferrule_store_sqlite::Writer),
    /// Elsewhere.
    Other {
        /// It runs.
        writer: Box<dyn Writing>,
        /// Where it is, for people.
        place: String,
    },
}

/// Opens the store that the configuration names.
///
/// # Errors
/// When it cannot be opened.
pub fn open(
    edge: bool,
    backend: Option<Backend>,
    config: &StoreConfig,
    data_dir: &Path,
) -> Result<Opened, RunError> {
    match config {
        StoreConfig::Sqlite => {
            let options = if edge { Options::edge() } else { Options::cloud() };
            let opened =
                ferrule_store_sqlite::open(data_dir, options).map_err(|e| RunError::Store(e.to_string()))?;
            Ok(Opened { writer: Writer::Sqlite(opened.writer), restored: opened.restored })
        }
        StoreConfig::Postgres(config) => {
            let file = data_dir.join(ferrule_store_sqlite::FILE);
            if file.exists() {
                tracing::warn!("{} is not used: the store is in PostgreSQL", file.display());
            }
            let missing = || RunError::Store("this program cannot keep its store in PostgreSQL".into());
            let Elsewhere { writer, restored, place } =
                (backend.ok_or_else(missing)?.open)(config).map_err(RunError::Store)?;
            Ok(Opened { writer: Writer::Other { writer, place }, restored })
        }
    }
}

impl Writer {
    /// A handle for one shard.
    #[must_use]
    pub fn handle(&self, notify: Notify) -> Handle {
        match self {
            Self::Sqlite(writer) => writer.handle(notify),
            Self::Other { writer, .. } => writer.handle(notify),
        }
    }

    /// Waits until what was submitted is stored, at most so long.
    pub fn flush(&self, limit: Duration) {
        let (committed, wait) = channel();
        let mut store = self.handle(Box::new(move |event| {
            if let StoreEvent::Committed { .. } = event {
                // Nobody waits after the first.
                let _ = committed.send(());
            }
        }));
        store.submit(Vec::new());
        let _ = wait.recv_timeout(limit);
    }

    /// Commits what waits and closes it.
    ///
    /// # Errors
    /// When the medium still refuses: what was not acknowledged is not stored.
    pub fn stop(&mut self) -> Result<(), ShutdownError> {
        match self {
            Self::Sqlite(writer) => writer.stop(),
            Self::Other { writer, .. } => writer.stop(),
        }
    }

    /// Asks for a page of what is in it.
    #[must_use]
    pub fn look(&self, after: Option<Cursor>) -> Receiver<Result<Page, String>> {
        match self {
            Self::Sqlite(writer) => writer.look(after),
            Self::Other { place, .. } => {
                let (reply, answer) = channel();
                let _ = reply
                    .send(Err(format!("the store is not in the data folder but in {place}: look there")));
                answer
            }
        }
    }

    /// For people.
    #[must_use]
    pub fn status(&self, data_dir: &Path) -> StoreStatus {
        let told = |Figures { state, commits, last_commit, .. }: Figures| {
            let (state, last_error) = match state {
                State::Running => ("ok", None),
                State::Failing(message) => ("failing", Some(message)),
                State::Stopped => ("stopped", None),
            };
            StoreStatus {
                state: state.to_owned(),
                commits,
                commit_us: last_commit.as_micros() as u64,
                last_error,
                ..StoreStatus::default()
            }
        };
        match self {
            Self::Sqlite(writer) => {
                let s = writer.status();
                StoreStatus {
                    backend: "sqlite".to_owned(),
                    path: data_dir.join(ferrule_store_sqlite::FILE).display().to_string(),
                    bytes: s.file_bytes,
                    wal_bytes: s.wal_bytes,
                    free_bytes: s.free_bytes.unwrap_or_default(),
                    low_on_space: s.low_on_space,
                    damage: s.damage.as_ref().map(ToString::to_string),
                    ..told(writer.figures())
                }
            }
            Self::Other { writer, place } => {
                StoreStatus { backend: "postgres".to_owned(), path: place.clone(), ..told(writer.figures()) }
            }
        }
    }
}
