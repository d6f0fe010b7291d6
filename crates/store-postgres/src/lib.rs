//! The PostgreSQL writer of the store: one connection, one thread, one transaction for everything that was submitted
//! meanwhile.
//!
//! # Constraints
//! Plain SQL that CockroachDB and YugabyteDB speak too: no LISTEN, no advisory locks, no extensions, no unlogged tables.
//! The server may be killed, paused, moved or cut off between any two packets. A commit costs a round trip, so it is one:
//! BEGIN, the fence, every statement and COMMIT are on their way before the first answer comes. A statement takes arrays: a
//! thousand appends are one.
//!
//! # Data
//! One schema holds several nodes. `node` has a number for each: rows that belong to a node (its settings, outboxes, delayed
//! messages, rules' state, bodies) have it in their key; those of sessions do not, since sessions move. A session's number
//! is that of the node that made it times 2^32 and one more for each, so that nodes need not ask each other for numbers; `owner` and `epoch`
//! say whose it is (`owners.rs`), and `client`, a digest of its client id, whose client's. Retained messages are everyone's. (`schema.rs` has the tables.)
//!
//! Bodies that several rows hold have a count of them, as in SQLite. To look instead whether any row is left would need
//! an index over all rows, and would not see the row that another node is just adding; the count is a row lock that both meet.
//!
//! # Invariants
//! - **The fence.** A transaction begins by locking its node's row `FOR SHARE` and comparing three numbers. *incarnation*: raised by
//!   whoever opens the store under this node's name; another one stops this writer for good. *connection*: raised by each connection
//!   of this writer. *fence*: raised by whoever takes a session from this node; then the epochs of the sessions that a
//!   commit writes are read again, each once for each value of the fence, and ops of a session that is not ours any more are not written
//!   but handed back ([`StoreEvent::Fenced`](ferrule_store::StoreEvent::Fenced)).
//! - **A commit whose answer did not come** is made again. That is safe because applying a batch twice is applying it once,
//!   and because nothing else comes between: the new connection raised *connection* first, which waits for the old
//!   transaction's lock. So the old one is in front of everything that follows, or it fails. (Without it a COMMIT that lies in a paused server's
//!   socket could bring back rows that were removed meanwhile.)
//! - Nothing submitted is refused or dropped. While the server refuses, tickets do not resolve, reads are not answered, and it is tried
//!   again after 100 ms, doubling to 5 s, each drawn between half and whole. No value that a client chooses can make the server
//!   refuse a batch: names are bytes, and keyed by a digest, since an index takes no more than 2,700 bytes.
//! - `synchronous_commit` is never off.
//!
//! # Operation
//! [`open`] makes a [`Writer`]; [`Writer::handle`] one [`Handle`] a shard. A connection that was lost while nothing was
//! wrong is made anew without a word.

#![forbid(unsafe_code)]

mod db;
mod error;
mod keepers;
mod members;
mod owners;
mod schema;
mod writer;

pub use error::OpenError;
pub use ferrule_store_writer::{Handle, ShutdownError, State, Writing};
pub use members::{Known, Members, MembersError, Reach};
pub use schema::VERSION as SCHEMA_VERSION;
pub use writer::{Opened, Status, Writer, open};

use std::time::Duration;

/// Which server, and how it is used.
#[derive(Clone)]
pub struct Options {
    /// `postgres://user:password@host:5432/database`, or libpq's form with `=`.
    pub url: String,
    /// Instead of one in `url`, where others might read it.
    pub password: Option<String>,
    /// Name of the schema: lower-case letters, digits and `_`. Made when it is not there.
    pub schema: String,
    /// Name of this node there: its own alone, and the same after each start.
    pub node: String,
    /// How long the server may take for a statement.
    pub timeout: Duration,
    /// How long [`open`] waits for a server that does not answer yet.
    pub patience: Duration,
    /// How long the members of the cluster must have stayed the same before a rule that remembers something is handed from one that lives to another.
    pub settle: Duration,
}

/// Of [`Options::settle`]. Nodes that are started anew one after the other come and go every few seconds, and clients connect anew for about as long: nothing
/// is to move meanwhile, and then each rule once. Each looks as often whether one of its rules has become another's share, which is one statement. It is also
/// how long a publisher is kept waiting at most, so none waits for a move and for what led to it.
pub const SETTLE: Duration = Duration::from_secs(10);

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL holds a password.
        f.debug_struct("Options")
            .field("schema", &self.schema)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// With what is usual beside them.
    #[must_use]
    pub fn new(url: &str, node: &str) -> Self {
        Self {
            url: url.to_owned(),
            password: None,
            schema: "ferrule".to_owned(),
            node: node.to_owned(),
            timeout: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            settle: SETTLE,
        }
    }

    /// What is wrong with them, as far as that is known without a server: option and reason.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn check(&self) -> Result<(), Vec<(&'static str, String)>> {
        let mut wrong = Vec::new();
        if let Err(why) = ferrule_postgres::config(&self.url, self.timeout) {
            wrong.push(("url", why));
        }
        if !schema::is_name(&self.schema) {
            wrong.push(("schema", "use 1 to 48 lower-case letters, digits and `_`, a letter first".into()));
        }
        if self.node.is_empty() || self.node.len() > 255 || self.node.contains(char::is_control) {
            wrong.push(("node", "name this node: 1 to 255 characters, its own alone".into()));
        }
        if self.timeout < Duration::from_millis(100) {
            wrong.push(("timeout", "a server needs some time to answer: '100ms' at least".into()));
        }
        if self.settle < Duration::from_millis(100) {
            let text = "rules would move with each node that comes and goes: '100ms' at least".to_owned();
            wrong.push(("settle", text));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// For a connection; checked.
    pub(crate) fn config(&self) -> Result<tokio_postgres::Config, OpenError> {
        self.check().map_err(|wrong| {
            let wrong: Vec<_> = wrong.iter().map(|(name, why)| format!("`{name}`: {why}")).collect();
            OpenError::Options(wrong.join("; "))
        })?;
        let mut config = ferrule_postgres::config(&self.url, self.timeout).map_err(OpenError::Options)?;
        if let Some(password) = &self.password {
            config.password(password);
        }
        Ok(config)
    }

    /// The server and the schema, for people.
    pub(crate) fn shown(&self, config: &tokio_postgres::Config) -> String {
        format!("{}, schema {}", ferrule_postgres::shown(config), self.schema)
    }
}
