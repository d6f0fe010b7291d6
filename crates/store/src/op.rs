//! Ops: the changes that the store knows, and the names that they use.

use bytes::Bytes;

/// A place in the order of commits. Ascends with each submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// A session that outlives its connection. Drawn by the shard, never reused; below 2^60 ([`crate::Restored::first_session`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A queue: a session's, an outbox's, or a shard's delayed messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

impl QueueId {
    /// Outboxes have this bit, sessions do not. It leaves the sign bit free for SQL's signed integers.
    const OUTBOX: u64 = 1 << 62;

    /// Queues of delayed messages have this one.
    const DELAYED: u64 = 1 << 61;

    /// And those of other nodes this one.
    const INHERITED: u64 = 1 << 60;

    const KINDS: u64 = Self::OUTBOX | Self::DELAYED | Self::INHERITED;

    /// The queue of a session.
    #[must_use]
    pub fn session(session: SessionId) -> Self {
        Self(session.0)
    }

    /// The outbox of a sink and priority class. A fixed hash of the name: the same after any loss of the store.
    #[must_use]
    pub fn outbox(sink: &str, class: u16) -> Self {
        let mut hash = crate::path_hash(0, sink.as_bytes());
        hash = crate::path_hash(hash, &class.to_le_bytes());
        Self(Self::OUTBOX | (hash & (Self::OUTBOX - 1)))
    }

    /// The delayed messages of a shard.
    #[must_use]
    pub fn delayed(shard: u16) -> Self {
        Self(Self::DELAYED | u64::from(shard))
    }

    /// A queue of a node that is gone, as this node reads it and removes from it ([`crate::Inherited`]). The number is of this process life.
    #[must_use]
    pub fn inherited(number: u32) -> Self {
        Self(Self::INHERITED | u64::from(number))
    }

    /// The number of a queue that is inherited, if it is one.
    #[must_use]
    pub fn as_inherited(self) -> Option<u32> {
        (self.0 & Self::KINDS == Self::INHERITED).then_some(self.0 as u32)
    }

    /// The session that owns this queue, if one does.
    #[must_use]
    pub fn as_session(self) -> Option<SessionId> {
        (self.0 & Self::KINDS == 0).then_some(SessionId(self.0))
    }

    /// The shard whose delayed messages these are, if they are that.
    #[must_use]
    pub fn as_delayed(self) -> Option<u16> {
        (self.0 & (Self::OUTBOX | Self::DELAYED) == Self::DELAYED).then_some(self.0 as u16)
    }

    /// Whether it is an outbox's.
    #[must_use]
    pub fn is_outbox(self) -> bool {
        self.0 & Self::OUTBOX != 0
    }
}

/// A body that several queues hold. Drawn by the shard above [`crate::Restored::last_body`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyId(pub u64);

/// The body of a queue row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Held by this row alone.
    Inline(Bytes),
    /// Held by several rows: stored with the first append that names it, gone with the last row that does.
    Shared(BodyId, Bytes),
}

impl Body {
    /// The bytes, wherever they are kept.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Inline(bytes) | Self::Shared(_, bytes) => bytes,
        }
    }
}

/// Which end of a delivery a packet id belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The client published to us (QoS 2 packet ids until PUBREL).
    Inbound,
    /// We published to the client (packet ids until PUBACK or PUBCOMP).
    Outbound,
}

/// One durable change. Heads and records are opaque here; [`crate::record`] has their formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Adds row `seq` to a queue. Does nothing when the row is there.
    Append {
        /// The queue.
        queue: QueueId,
        /// Ascends within the queue; drawn by its owner.
        seq: u64,
        /// What the owner keeps beside the body.
        head: Bytes,
        /// The body.
        body: Body,
    },
    /// Removes rows `first..=last`, those that are there.
    Remove {
        /// The queue.
        queue: QueueId,
        /// Lowest number.
        first: u64,
        /// Highest number.
        last: u64,
    },
    /// Creates or replaces a session.
    SessionPut {
        /// The session.
        session: SessionId,
        /// [`crate::record::Session`].
        record: Bytes,
    },
    /// Removes a session with its subscriptions, in-flight packet ids and queue.
    SessionDelete {
        /// The session.
        session: SessionId,
    },
    /// Creates or replaces a subscription.
    SubscriptionPut {
        /// The session.
        session: SessionId,
        /// The topic filter as the client wrote it.
        filter: Box<str>,
        /// [`crate::record::Subscription`].
        record: Bytes,
    },
    /// Removes a subscription.
    SubscriptionDelete {
        /// The session.
        session: SessionId,
        /// The topic filter as the client wrote it.
        filter: Box<str>,
    },
    /// Creates or replaces the state of a packet id.
    InflightPut {
        /// The session.
        session: SessionId,
        /// Whose packet id.
        side: Side,
        /// The packet id.
        packet_id: u16,
        /// [`crate::record::Inflight`].
        record: Bytes,
    },
    /// Frees a packet id.
    InflightDelete {
        /// The session.
        session: SessionId,
        /// Whose packet id.
        side: Side,
        /// The packet id.
        packet_id: u16,
    },
    /// Sets the retained message of a topic.
    RetainPut {
        /// Topic name.
        topic: Box<str>,
        /// Where several nodes share a store the highest stamp of a topic wins, and of two that are equal the record that compares higher: an
        /// op that comes late does nothing. A store that is one node's may leave them out.
        stamp: u64,
        /// [`crate::record::Retained`]; not empty.
        record: Bytes,
    },
    /// Clears the retained message of a topic.
    RetainDelete {
        /// Topic name.
        topic: Box<str>,
        /// As above; a shared store remembers it, so that an older message that comes late does not bring the topic back.
        stamp: u64,
    },
    /// Sets a rule's state for a key.
    StatePut {
        /// The rule's id.
        rule: u64,
        /// Group or partition key; empty for the rule itself.
        key: Bytes,
        /// A serialised state.
        value: Bytes,
    },
    /// Clears a rule's state for a key.
    StateDelete {
        /// The rule's id.
        rule: u64,
        /// As in `StatePut`.
        key: Bytes,
    },
    /// Sets a fact or run-time setting.
    MetaPut {
        /// Name.
        key: Box<str>,
        /// Value.
        value: Bytes,
    },
}

impl Op {
    /// The session that it changes, or whose queue.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Self::Append { queue, .. } | Self::Remove { queue, .. } => queue.as_session(),
            Self::SessionPut { session, .. }
            | Self::SessionDelete { session }
            | Self::SubscriptionPut { session, .. }
            | Self::SubscriptionDelete { session, .. }
            | Self::InflightPut { session, .. }
            | Self::InflightDelete { session, .. } => Some(*session),
            Self::RetainPut { .. }
            | Self::RetainDelete { .. }
            | Self::StatePut { .. }
            | Self::StateDelete { .. }
            | Self::MetaPut { .. } => None,
        }
    }

    /// About how many bytes the op holds: what pending bytes are counted in.
    #[must_use]
    pub fn size(&self) -> usize {
        const FIXED: usize = 48;
        FIXED
            + match self {
                Self::Append { head, body, .. } => head.len() + body.bytes().len(),
                Self::SessionPut { record, .. } | Self::InflightPut { record, .. } => record.len(),
                Self::SubscriptionPut { filter, record, .. } => filter.len() + record.len(),
                Self::SubscriptionDelete { filter, .. } => filter.len(),
                Self::RetainPut { topic, record, .. } => topic.len() + record.len(),
                Self::RetainDelete { topic, .. } => topic.len(),
                Self::StatePut { key, value, .. } => key.len() + value.len(),
                Self::StateDelete { key, .. } => key.len(),
                Self::MetaPut { key, value } => key.len() + value.len(),
                Self::Remove { .. } | Self::SessionDelete { .. } | Self::InflightDelete { .. } => 0,
            }
    }
}
