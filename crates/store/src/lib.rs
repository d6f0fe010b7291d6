//! The store: what Ferrule itself must not forget, behind **one writer and one commit**.
//!
//! # Constraints
//! Sessions, subscriptions, queues, in-flight packet ids, retained messages, outboxes, rule state and run-time
//! settings change together or not at all: two stores would be two fsyncs and a race between them. So every
//! change is an [`Op`], ops travel in batches, and one writer thread commits all batches that were submitted
//! while the last commit ran (group commit).
//!
//! # Operation
//! [`Store::submit`] returns a [`Ticket`] at once. Tickets of one store ascend in commit order, so that a commit
//! is told by one number: `Committed(t)` means that every ticket `<= t` is on stable storage. A batch is never
//! refused and never fails half: while the medium fails (full disk, failed fsync, read-only remount) the writer
//! keeps the batch, says [`StoreEvent::Failing`], and goes on trying; tickets simply do not resolve, and what
//! waits for them is withheld.
//!
//! # Invariants
//! - Ops are idempotent: an append carries its number, and applying a batch twice is applying it once.
//! - Of one handle, ops take effect in the order in which they were submitted; batches of different handles that are parts of a
//!   joint commit ([`Store::submit_joint`]) take effect together.
//! - A message body that several queues hold is stored once ([`Body::Shared`]).
//! - Reads go to the writer too (SQLite under `locking_mode=EXCLUSIVE` admits no second connection) and are
//!   bounded; an answer holds what was committed when it was made.
//!
//! # A store that several nodes share
//! A session has one owner, a node, and an epoch that is counted up each time that it gets another one. Only its owner writes it: what another
//! node had submitted and not committed is handed back ([`StoreEvent::Fenced`]). A node takes the session of a client that connects to it, once its owner
//! has given it up ([`Store::take`]), and those of nodes that are no members of the cluster any more ([`Store::adopt`]). Sessions have numbers of their
//! node's ([`Restored::first_session`]) and keep them.
//!
//! This crate is pure: types, record formats, and [`MemoryStore`], the reference model that tests compare with.

#![forbid(unsafe_code)]

mod identity;
mod memory;
mod op;
pub mod record;
mod time;

pub use identity::{Boot, Identity, MessageId, Origin, path_hash};
pub use memory::{MemoryStore, MemoryTable};
pub use op::{Body, BodyId, Op, QueueId, SessionId, Side, Ticket};
pub use time::{Now, Stamp};

use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Where a shard sends its durable changes. One handle belongs to one shard; the writer behind it is shared.
pub trait Store {
    /// Hands `ops` to the writer and returns at once. An empty batch is allowed: its ticket resolves with the
    /// next commit and is a barrier.
    fn submit(&mut self, ops: Vec<Op>) -> Ticket;

    /// As [`Store::submit`]; the batch is part of joint commits. A batch that opens one and the batch, of another
    /// handle, that closes it are in one transaction or in none.
    fn submit_joint(&mut self, ops: Vec<Op>, parts: Vec<JointPart>) -> Ticket {
        let _ = parts;
        self.submit(ops)
    }

    /// Asks for rows of `queue` with numbers `>= from`, ascending, at most `max_rows` of them and about
    /// `max_bytes` of heads and bodies (the row that reaches it is the last; at least one row when there is one).
    /// The answer is a [`StoreEvent::Rows`] and may be shorter than asked for; only an empty one is the end.
    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32);

    /// Bytes submitted and not committed yet: what back-pressure looks at.
    fn pending_bytes(&self) -> usize;

    /// Makes this node the owner of a client's session, of a store that several nodes share, if it is its owner, or its owner gave up this
    /// session with this epoch (a client's next one begins with the epochs of the first), and if this node is a live member of the cluster (nobody waits for who joins and has no sessions). With `new` a session is made when there is none, of this number and with this
    /// record. The answer is [`StoreEvent::Taken`], behind what was submitted before.
    fn take(&mut self, client_id: &str, given_up: Option<(SessionId, u64)>, new: Option<(SessionId, Bytes)>) {
        let _ = (client_id, given_up, new);
    }

    /// Looks after sessions in the view of the cluster with this number, unless it has another by now: which of this node's own have been taken
    /// ([`StoreEvent::Lost`]), and this node's share of those whose owners are no members ([`StoreEvent::Adopted`]). A node that joins reads what is
    /// retained, too. All handles of the node are told.
    fn adopt(&mut self, view: u64) {
        let _ = view;
    }

    /// The rules of this node that remember something, all of them (0: what they share): in a store that several nodes share, each has one keeper, who runs it
    /// on the messages of all. Those that have none, or whose keeper is gone, become this node's if they are its share; those that it keeps and does not name are
    /// given up. Looked at again with each [`Store::adopt`]; what changes is told to all handles ([`StoreEvent::Kept`]). When the members have stayed the
    /// same for a while, rules that are another's share are to be handed to it, one after the other ([`StoreEvent::Giving`]).
    fn keep(&mut self, rules: Vec<u64>) {
        let _ = rules;
    }

    /// The answer to [`StoreEvent::Giving`], from the shard that has the rule: all that it remembers has been submitted before, and nothing of it will be.
    /// The answer to that is [`StoreEvent::Kept`]: the rule has been given, or is this node's still.
    fn give(&mut self, rule: u64, round: u64) {
        let _ = (rule, round);
    }

    /// Less than the medium's reserve is free: admit nothing new, so that removals still find room.
    fn low_on_space(&self) -> bool {
        false
    }
}

/// Names a joint commit: of two shards, who must not forget what they made of one message, or know it twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Joint {
    /// The shard that closes it.
    pub shard: u16,
    /// Its number there.
    pub number: u64,
}

/// What a batch is to a joint commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JointPart {
    /// Waits for the batch that closes it.
    Opens(Joint),
    /// Submitted after the one that opens it, which waits for it.
    Closes(Joint),
}

/// What a store tells the shard that owns the handle.
#[derive(Debug, Clone)]
pub enum StoreEvent {
    /// Every ticket of this handle up to and including this one is on stable storage.
    Committed {
        /// The watermark.
        ticket: Ticket,
        /// How long this commit took: the outbox subtracts it from its deadlines.
        took: Duration,
    },
    /// The answer to a read. `rows` is empty when the queue has none from there on.
    Rows {
        /// The queue that was asked for.
        queue: QueueId,
        /// Rows, ascending by number.
        rows: Vec<StoredRow>,
    },
    /// The medium refuses; nothing is lost, nothing resolves, the writer tries again by itself.
    Failing {
        /// For people: what failed, on which file, and what to do.
        message: String,
    },
    /// Commits work again.
    Recovered,
    /// Ops of this handle that were not written, since another node has taken their session: of a store that several nodes
    /// share. Told before the ticket of their batch resolves.
    Fenced {
        /// In the order in which they were submitted.
        ops: Vec<Op>,
    },
    /// The answer to [`Store::take`].
    Taken(Box<Taken>),
    /// Sessions that this node had are another's, or no more. Whoever hears it calls [`Store::adopt`] behind the last ops that it has of them:
    /// nothing is adopted before.
    Lost {
        /// In no order.
        sessions: Arc<[SessionId]>,
    },
    /// What has changed of what was asked for with [`Store::keep`].
    Kept(Arc<Kept>),
    /// A rule that this node keeps is to be another living node's: nothing more is taken in for it, and whoever has it answers with [`Store::give`] once what
    /// it remembers is submitted.
    Giving {
        /// The rule.
        rule: u64,
        /// The answer names it: one to an earlier question says nothing.
        round: u64,
    },
    /// Sessions of nodes that are no members are this node's.
    Adopted {
        /// Of the view in which they were adopted.
        view: u64,
        /// With all that belongs to them. With the last of them come the outboxes that this node has inherited.
        restored: Arc<Restored>,
        /// That was this node's whole share of what there was in that view.
        done: bool,
    },
}

/// What has changed of the rules that this node keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// They are its from now on, with what they remember: key and value.
    pub rules: Vec<(u64, Vec<(Bytes, Bytes)>)>,
    /// They are not any more. What was submitted of them may not be another's to read.
    pub lost: Vec<u64>,
    /// They are another's, with all that they remembered: this node has given them up ([`Store::give`]).
    pub given: Vec<u64>,
}

/// A client's session, with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Whose.
    pub client_id: Box<str>,
    /// What there was.
    pub found: Found,
    /// The session that there was, and no other.
    pub restored: Restored,
}

/// What there was of a session that was to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// None, and none was to be made.
    Nothing,
    /// None: it was made.
    Made(SessionId),
    /// One, which is this node's now.
    Session(SessionId),
    /// This one, with this epoch, which is not this node's to take; none: this node is no live member, or another has made one just now.
    Refused(Option<(SessionId, u64)>),
}

/// One row of a queue as it was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// Its number in the queue.
    pub seq: u64,
    /// What the appender wrote beside the body.
    pub head: Bytes,
    /// The message body.
    pub body: Bytes,
}

/// Everything that a shard needs in memory when it starts. Queue rows stay in the store: they may be many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Sessions that outlive their connection, with their record.
    pub sessions: Vec<(SessionId, Bytes)>,
    /// Subscriptions of those sessions: (session, filter, record).
    pub subscriptions: Vec<(SessionId, Box<str>, Bytes)>,
    /// In-flight packet ids of those sessions.
    pub inflight: Vec<(SessionId, Side, u16, Bytes)>,
    /// Retained messages: (topic, stamp, record). Of a store that is one node's alone the stamp is 0. An empty record: the topic was cleared.
    pub retained: Vec<(Box<str>, u64, Bytes)>,
    /// What each non-empty queue holds.
    pub queues: Vec<QueueSummary>,
    /// Rules' state: (rule, key, value).
    pub state: Vec<(u64, Bytes, Bytes)>,
    /// Settings made at run time and facts drawn once (the node's id).
    pub meta: Vec<(Box<str>, Bytes)>,
    /// The highest body id in use; new ones go on from there.
    pub last_body: u64,
    /// The epoch of each session, of a store that several nodes share; one that is made has epoch 1.
    pub epochs: Vec<(SessionId, u64)>,
    /// New sessions get numbers above this one, and below [`SESSIONS`] more: of a store that several nodes share, each has its own.
    pub first_session: u64,
    /// The highest of them in use, whoever's the session is now; 0: those of this node's own sessions tell.
    pub last_session: u64,
    /// Outboxes and delayed messages of nodes that are gone: all that this node looks after, of those that are not empty.
    pub inherited: Vec<Inherited>,
}

/// An outbox, or the delayed messages of a shard, of a node that is no member of the cluster any more, which this node looks after until that one is a member again. It reads rows and
/// removes them; it adds none. Once that node has started again both do nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// What it holds, by the name that it has here.
    pub summary: QueueSummary,
    /// What that node calls it.
    pub of: QueueId,
    /// That node's name.
    pub node: Box<str>,
}

/// How many numbers a node has for its sessions.
pub const SESSIONS: u64 = 1 << 32;

/// What a queue holds, without its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSummary {
    /// The queue.
    pub queue: QueueId,
    /// Lowest number.
    pub first: u64,
    /// Highest number.
    pub last: u64,
    /// Number of rows: at most `last - first + 1`, since rows leave out of order.
    pub rows: u64,
    /// Bytes of heads and bodies.
    pub bytes: u64,
}
