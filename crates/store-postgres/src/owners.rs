//! Whose sessions are: taking that of a client, and adopting those of nodes that are no members any more; and who looks after the outboxes of such nodes.
//!
//! # Invariants
//! - A transaction that gives sessions another owner holds the row of the members' view, so that who is a member does not change meanwhile; then the rows of the
//!   nodes concerned, in the order of their numbers: its own, as each commit does, and those of former owners, whose fence it raises. So it waits
//!   for their commits under way, and later ones look again whose the sessions are that they write. Rows of sessions come last. Nothing locks in
//!   another order.
//! - What was looked up before the locks is compared behind them: a session that has changed hands since is left alone.
//! - Of an outbox whose node is gone rows are read and removed where they are, by one member, and only while its node has not started again: the statement
//!   that removes looks at the node's incarnation, so that it never removes a row of its next life, which may have the same number. Two may
//!   deliver a row (that node was only cut off, or was back sooner than it was told): rows of an outbox are delivered at least once.

use crate::db::{Db, Epochs, blob, damaged, digest, text};
use crate::error::DbError;
use ferrule_store::record::{self, Record};
use ferrule_store::{Found, Inherited, QueueId, QueueSummary, Restored, SessionId, Side, Taken};
use ferrule_store_writer::Take;
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Row;

/// Sessions that are adopted in one transaction: commits wait for it.
const ADOPTED: i64 = 1_000;

/// Rows of a queue that are counted for who inherits it.
const COUNTED: u64 = 10_000;

/// What adopting came to.
pub(crate) enum Adopted {
    /// The view has another number.
    Past,
    /// These; there may be more.
    Some(Box<Restored>),
    /// These, and no more; and outboxes of nodes that are gone.
    Last(Box<Restored>, Vec<Orphan>),
}

/// An outbox, or a shard's delayed messages, of a node that is gone.
pub(crate) struct Orphan {
    key: OrphanKey,
    node: Box<str>,
    summary: QueueSummary,
}

/// How it is found in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrphanKey {
    /// The node's number.
    pub(crate) node: i32,
    /// As the node was when it was gone. In its next life it has numbers of rows again that this one used.
    pub(crate) incarnation: i64,
    pub(crate) queue: i64,
}

/// The outboxes that this node has inherited, by the numbers that they have here. A number is not used again: what was asked for of one that is another's
/// by now finds nothing.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    last: u32,
    known: BTreeMap<u32, OrphanKey>,
}

impl Orphans {
    /// All there are from now on; those that were there keep their numbers.
    pub(crate) fn set(&mut self, orphans: Vec<Orphan>) -> Vec<Inherited> {
        let mut known = BTreeMap::new();
        let mut inherited = Vec::with_capacity(orphans.len());
        for Orphan { key, node, summary } in orphans {
            let before = self.known.iter().find(|(_, is)| **is == key).map(|(number, _)| *number);
            let number = before.unwrap_or_else(|| {
                self.last += 1;
                self.last
            });
            known.insert(number, key);
            let of = summary.queue;
            let summary = QueueSummary { queue: QueueId::inherited(number), ..summary };
            inherited.push(Inherited { summary, of, node });
        }
        self.known = known;
        inherited
    }

    pub(crate) fn get(&self, number: u32) -> Option<OrphanKey> {
        self.known.get(&number).copied()
    }
}

/// By epoch and key; what else is there of them is [`gather`]ed.
fn sessions_of(rows: &[Row]) -> Result<Restored, DbError> {
    let mut restored = Restored::default();
    for row in rows {
        let session = SessionId(row.try_get::<_, i64>(0)? as u64);
        restored.epochs.push((session, row.try_get::<_, i64>(1)? as u64));
        restored.sessions.push((session, blob(row, 2)?));
    }
    restored.sessions.sort_unstable_by_key(|s| s.0);
    restored.epochs.sort_unstable();
    Ok(restored)
}

impl Db {
    /// Takes sessions as they are asked for; answers in that order.
    pub(crate) async fn take(&self, takes: &[Take]) -> Result<Vec<Taken>, DbError> {
        let (s, me) = (self.schema(), self.number());
        let digests: Vec<Vec<u8>> = takes.iter().map(|take| digest(take.client_id.as_bytes())).collect();
        let sql =
            format!("SELECT client, session, owner, epoch FROM {s}.session WHERE client = ANY($1::BYTEA[])");
        let mut known = BTreeMap::new();
        for row in self.client().query(&sql, &[&digests]).await? {
            let at: (i64, i32, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            known.insert(row.try_get::<_, Vec<u8>>(0)?, at);
        }
        let (mut wanted, mut made) = (Vec::new(), Vec::new());
        for (take, digest) in takes.iter().zip(&digests) {
            match (known.get(digest), &take.new) {
                (Some(&(session, owner, epoch)), _) => {
                    if owner == me || take.given_up == Some((SessionId(session as u64), epoch as u64)) {
                        wanted.push((session, owner, epoch));
                    }
                }
                (None, Some((session, record))) => made.push((session.0 as i64, &record[..], digest)),
                (None, None) => {}
            }
        }
        let owners: BTreeSet<i32> = wanted.iter().map(|(_, owner, _)| *owner).chain([me]).collect();
        self.begin().await?;
        let member = format!(
            "SELECT 1 FROM {s}.cluster_view AS v JOIN {s}.cluster_member AS m ON m.node = $1::INT4
             WHERE v.id = 0 AND m.state = {} FOR SHARE OF v",
            crate::members::LIVE
        );
        let is_member = self.client().query_opt(&member, &[&me]).await?.is_some();
        let mut restored = Restored::default();
        let mut new = BTreeSet::new();
        if is_member {
            self.fence_off(&owners).await?;
            let sql = format!(
                "INSERT INTO {s}.session (session, owner, epoch, record, client)
                 SELECT u.session, $1::INT4, 1, u.record, u.client
                 FROM unnest($2::INT8[], $3::BYTEA[], $4::BYTEA[]) AS u(session, record, client)
                 ON CONFLICT (client) DO NOTHING RETURNING session"
            );
            if !made.is_empty() {
                let sessions: Vec<i64> = made.iter().map(|made| made.0).collect();
                let records: Vec<&[u8]> = made.iter().map(|made| made.1).collect();
                let clients: Vec<&[u8]> = made.iter().map(|made| &made.2[..]).collect();
                for row in self.client().query(&sql, &[&me, &sessions, &records, &clients]).await? {
                    new.insert(row.try_get::<_, i64>(0)?);
                }
            }
            let sql = format!(
                "UPDATE {s}.session AS t SET owner = $1::INT4, epoch = t.epoch + 1
                 FROM unnest($2::INT8[], $3::INT8[]) AS u(session, epoch)
                 WHERE t.session = u.session AND t.epoch = u.epoch RETURNING t.session, t.epoch, t.record"
            );
            if !wanted.is_empty() {
                let sessions: Vec<i64> = wanted.iter().map(|wanted| wanted.0).collect();
                let epochs: Vec<i64> = wanted.iter().map(|wanted| wanted.2).collect();
                let rows = self.client().query(&sql, &[&me, &sessions, &epochs]).await?;
                restored = sessions_of(&rows)?;
                self.gather(&mut restored).await?;
            }
        }
        self.commit().await?;
        let answer = |(take, digest): (&Take, &Vec<u8>)| {
            let known =
                known.get(digest).map(|(session, _, epoch)| (SessionId(*session as u64), *epoch as u64));
            let has = |session: SessionId| restored.sessions.binary_search_by_key(&session, |s| s.0).is_ok();
            let found = match (known, &take.new) {
                _ if !is_member => Found::Refused(None),
                (Some((session, _)), _) if has(session) => Found::Session(session),
                (Some(known), _) => Found::Refused(Some(known)),
                (None, Some((session, _))) if new.contains(&(session.0 as i64)) => Found::Made(*session),
                // Another node has made one in the same moment.
                (None, Some(_)) => Found::Refused(None),
                (None, None) => Found::Nothing,
            };
            let restored = match found {
                Found::Session(session) => only(&restored, session),
                _ => Restored::default(),
            };
            Taken { client_id: take.client_id.clone(), found, restored }
        };
        Ok(takes.iter().zip(&digests).map(answer).collect())
    }

    /// Adopts some of this node's share of the sessions whose owners are no members, in the view of this number. Live members share them; when there are none,
    /// all members.
    pub(crate) async fn adopt(&self, view: u64) -> Result<Adopted, DbError> {
        let (s, me) = (self.schema(), self.number());
        self.begin().await?;
        let sql = format!("SELECT number FROM {s}.cluster_view WHERE id = 0 FOR SHARE");
        let number =
            self.client().query_opt(&sql, &[]).await?.map(|row| row.try_get::<_, i64>(0)).transpose()?;
        if number != i64::try_from(view).ok() {
            self.commit().await?;
            return Ok(Adopted::Past);
        }
        let sql = format!("SELECT node, state FROM {s}.cluster_member ORDER BY node");
        let mut members: Vec<(i32, i32)> = Vec::new();
        for row in self.client().query(&sql, &[]).await? {
            members.push((row.try_get(0)?, row.try_get(1)?));
        }
        let joins = members.contains(&(me, crate::members::JOINING));
        if members.iter().any(|(_, state)| *state == crate::members::LIVE) {
            members.retain(|(_, state)| *state == crate::members::LIVE);
        }
        let rank = members.iter().position(|(node, _)| *node == me);
        // Owners with sessions are found by the index; nodes are few.
        let sql = format!(
            "SELECT n.number FROM {s}.node AS n WHERE NOT EXISTS (SELECT 1 FROM {s}.cluster_member AS m WHERE m.node = n.number)
             AND EXISTS (SELECT 1 FROM {s}.session AS t WHERE t.owner = n.number)"
        );
        let mut gone = Vec::<i32>::new();
        for row in self.client().query(&sql, &[]).await? {
            gone.push(row.try_get(0)?);
        }
        let of = members.len() as i64;
        let (Some(rank), false) = (rank, gone.is_empty()) else {
            let restored = self.known_to_members(joins).await?;
            let orphans = self.orphans(rank, of).await?;
            self.commit().await?;
            return Ok(Adopted::Last(Box::new(restored), orphans));
        };
        self.fence_off(&gone.iter().copied().chain([me]).collect()).await?;
        let sql = format!(
            "UPDATE {s}.session AS t SET owner = $1::INT4, epoch = t.epoch + 1 WHERE t.session IN (
                 SELECT session FROM {s}.session
                 WHERE owner = ANY($2::INT4[]) AND mod(session, $3::INT8) = $4::INT8 ORDER BY session LIMIT {ADOPTED}
             ) AND t.owner = ANY($2::INT4[]) RETURNING t.session, t.epoch, t.record"
        );
        let rows = self.client().query(&sql, &[&me, &gone, &of, &(rank as i64)]).await?;
        let mut restored = sessions_of(&rows)?;
        self.gather(&mut restored).await?;
        if rows.len() as i64 == ADOPTED {
            self.commit().await?;
            return Ok(Adopted::Some(Box::new(restored)));
        }
        restored.retained = self.known_to_members(joins).await?.retained;
        let orphans = self.orphans(Some(rank), of).await?;
        self.commit().await?;
        Ok(Adopted::Last(Box::new(restored), orphans))
    }

    /// The share of the member with this rank, of so many, of the queues whose nodes are no members.
    async fn orphans(&self, rank: Option<usize>, of: i64) -> Result<Vec<Orphan>, DbError> {
        let Some(rank) = rank else { return Ok(Vec::new()) };
        let s = self.schema();
        let sql = format!(
            "SELECT n.number, n.incarnation, n.node FROM {s}.node AS n
             WHERE NOT EXISTS (SELECT 1 FROM {s}.cluster_member AS m WHERE m.node = n.number) ORDER BY n.number"
        );
        // From queue to queue by the index: nodes have few, which may have many rows.
        let next = format!(
            "SELECT queue FROM {s}.queue_row WHERE node = $1::INT4 AND queue > $2::INT8 ORDER BY queue LIMIT 1"
        );
        let mut orphans = Vec::new();
        for row in self.client().query(&sql, &[]).await? {
            let (node, incarnation): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
            let mut last = -1;
            while let Some(found) = self.client().query_opt(&next, &[&node, &last]).await? {
                last = found.try_get(0)?;
                let queue = QueueId(last as u64);
                let turn = (last % of + i64::from(node) % of) % of;
                if turn == rank as i64 && (queue.is_outbox() || queue.as_delayed().is_some()) {
                    // Its node, which was only cut off, may have removed all by now.
                    let Some(summary) = self.orphaned(node, last).await? else { continue };
                    let key = OrphanKey { node, incarnation, queue: last };
                    orphans.push(Orphan { key, node: row.try_get::<_, String>(2)?.into(), summary });
                }
            }
        }
        Ok(orphans)
    }

    /// What such a queue holds. Commits wait for it, so the rows of a long one are not counted: there may be fewer, of which the first ones tell
    /// the size.
    async fn orphaned(&self, node: i32, queue: i64) -> Result<Option<QueueSummary>, DbError> {
        let s = self.schema();
        let sql = format!(
            "SELECT CAST($2::INT8 AS INT8), min(seq), (SELECT max(seq) FROM {s}.queue_row WHERE node = $1::INT4 AND queue = $2::INT8),
                 count(*), CAST(sum(size) AS INT8)
             FROM (SELECT seq, size FROM {s}.queue_row WHERE node = $1::INT4 AND queue = $2::INT8 ORDER BY seq LIMIT {COUNTED}) AS few
             HAVING count(*) > 0"
        );
        let Some(row) = self.client().query_opt(&sql, &[&node, &queue]).await? else { return Ok(None) };
        let mut summary = summary(&row)?;
        if summary.rows == COUNTED {
            let rows = summary.last - summary.first + 1;
            summary.bytes = summary.bytes / COUNTED * rows;
            summary.rows = rows;
        }
        Ok(Some(summary))
    }

    /// What a node that joins may have missed while it was no member, and others acknowledged without it.
    async fn known_to_members(&self, joins: bool) -> Result<Restored, DbError> {
        let retained = if joins { self.retained().await? } else { Vec::new() };
        Ok(Restored { retained, ..Restored::default() })
    }

    /// The sessions that are this node's.
    pub(crate) async fn own(&self) -> Result<Epochs, DbError> {
        let sql = format!("SELECT session, epoch FROM {}.session WHERE owner = $1::INT4", self.schema());
        let me = self.number();
        let mut own = Epochs::new();
        for row in self.client().query(&sql, &[&me]).await? {
            own.insert(SessionId(row.try_get::<_, i64>(0)? as u64), (me, row.try_get(1)?));
        }
        Ok(own)
    }

    /// Locks the rows of these nodes: this one's as each commit does, and of the others the fence is raised.
    async fn fence_off(&self, nodes: &BTreeSet<i32>) -> Result<(), DbError> {
        for &node in nodes {
            if node == self.number() {
                self.hold().await?;
            } else {
                let sql =
                    format!("UPDATE {}.node SET fence = fence + 1 WHERE number = $1::INT4", self.schema());
                self.client().execute(&sql, &[&node]).await?;
            }
        }
        Ok(())
    }

    /// Adds what belongs to the sessions that are there.
    pub(crate) async fn gather(&self, restored: &mut Restored) -> Result<(), DbError> {
        let s = self.schema();
        let sessions: Vec<i64> = restored.sessions.iter().map(|(session, _)| session.0 as i64).collect();
        if sessions.is_empty() {
            return Ok(());
        }
        let sql =
            format!("SELECT session, filter, record FROM {s}.subscription WHERE session = ANY($1::INT8[])");
        for row in self.client().query(&sql, &[&sessions]).await? {
            restored.subscriptions.push(subscription(&row)?);
        }
        let sql = format!(
            "SELECT session, side, packet_id, record FROM {s}.inflight WHERE session = ANY($1::INT8[])"
        );
        for row in self.client().query(&sql, &[&sessions]).await? {
            restored.inflight.push(inflight(&row)?);
        }
        let sql = format!(
            "SELECT queue, min(seq), max(seq), count(*), CAST(sum(size) AS INT8) FROM {s}.queue_row
             WHERE node = 0 AND queue = ANY($1::INT8[]) GROUP BY queue"
        );
        for row in self.client().query(&sql, &[&sessions]).await? {
            restored.queues.push(summary(&row)?);
        }
        restored.subscriptions.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        restored.inflight.sort_unstable_by_key(|i| (i.0, i.1, i.2));
        restored.queues.sort_unstable_by_key(|q| q.queue);
        Ok(())
    }
}

/// A row of session, filter and record.
pub(crate) fn subscription(row: &Row) -> Result<(SessionId, Box<str>, bytes::Bytes), DbError> {
    Ok((SessionId(row.try_get::<_, i64>(0)? as u64), text(row, 1)?, blob(row, 2)?))
}

/// A row of session, side, packet id and record.
pub(crate) fn inflight(row: &Row) -> Result<(SessionId, Side, u16, bytes::Bytes), DbError> {
    let side = match row.try_get::<_, i32>(1)? {
        0 => Side::Inbound,
        1 => Side::Outbound,
        _ => return Err(damaged("the side of a packet id")),
    };
    let id = u16::try_from(row.try_get::<_, i32>(2)?).map_err(|_| damaged("a packet id"))?;
    Ok((SessionId(row.try_get::<_, i64>(0)? as u64), side, id, blob(row, 3)?))
}

/// A row of queue, lowest and highest number, rows and bytes.
pub(crate) fn summary(row: &Row) -> Result<QueueSummary, DbError> {
    let number = |i: usize| row.try_get::<_, i64>(i).map(|n| n as u64);
    let queue = QueueId(number(0)?);
    Ok(QueueSummary { queue, first: number(1)?, last: number(2)?, rows: number(3)?, bytes: number(4)? })
}

/// What there is of one session.
fn only(all: &Restored, session: SessionId) -> Restored {
    Restored {
        sessions: all.sessions.iter().filter(|s| s.0 == session).cloned().collect(),
        epochs: all.epochs.iter().filter(|s| s.0 == session).copied().collect(),
        subscriptions: all.subscriptions.iter().filter(|s| s.0 == session).cloned().collect(),
        inflight: all.inflight.iter().filter(|s| s.0 == session).cloned().collect(),
        queues: all.queues.iter().filter(|q| q.queue == QueueId::session(session)).copied().collect(),
        ..Restored::default()
    }
}

/// What the session of a record is found by; none: it cannot be read.
pub(crate) fn client_digest(record: &[u8]) -> Option<Vec<u8>> {
    let session = record::Session::from_bytes(record).ok()?;
    Some(digest(session.client_id.as_bytes()))
}
