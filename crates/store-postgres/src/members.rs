//! The view of a cluster's members: what `ferrule-cluster` takes for the one order of joining, going live and removing.
//!
//! # Constraints
//! Nodes that cannot reach each other decide here which of them goes on, so each change is one transaction that checks what it relies on while
//! it holds the view's row. It comes when something is wrong already: a server that is slow or away must not hold the caller up for longer than it said.
//!
//! # Data
//! `cluster_view` has one row, with the view's number, which every change counts up; whoever changes anything locks it first. `cluster_member`
//! has a row for each member, by the number that its node has in `node`. `seen` there is counted up by the member itself while it asks,
//! once in [`Config::seen_us`](ferrule_cluster::Config::seen_us).
//!
//! Whether the store has not seen a member for long is judged without the server's clock, which may be set, or after a failover be another one:
//! `seen` has to stay what it is for as long, by the clock of whoever looks, from an answer in which it was that to the removal, which
//! is bound to it. So who has just started waits for the whole of that time.
//!
//! # Operation
//! Each call is bounded by a limit. One whose answer did not come may have been done or not, or be done a moment later by a server that
//! was paused. That is harmless: its conditions are looked at when it is done, and a join is bound to the number that was read before it, so one that is
//! late finds another number. (It would otherwise put an incarnation that nobody has in the place of one that somebody has.)
//! Whoever stops while it holds the view's row, here or in its writer's transactions, is let go of by the server after a second.
//!
//! # Invariants
//! - A number is given to one view, and an incarnation is the number of the view that it came with.
//! - A node has at most one incarnation in the view.
//! - Who is live removes, and who is joining only those that the store has not seen for
//!   [`Config::store_us`](ferrule_cluster::Config::store_us) and `seen_us`, or for little more than `seen_us` when an operator vouches for it; nobody else. Of two that remove each other one is removed.
//! - An answer to a call of a member that is in it means that the store has seen it, at most `seen_us` before the call.
//! - Only the process that has this node's store open last joins under its name.

use crate::db::{BEGIN, Connection, IDENTITY, NOBODY, Who, connect};
use crate::error::{DbError, Kind};
use crate::{OpenError, Options};
use ferrule_cluster::{Member, NodeId, PeerId, State, View};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::{Client, Config, Error, Row};

/// The view, and where its members are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// Which store it is of: drawn when that was opened first, the same for all its nodes.
    pub store: Vec<u8>,
    /// Who is a member.
    pub view: View,
    /// Of each member.
    pub reach: BTreeMap<PeerId, Reach>,
    /// What its configuration calls it.
    pub names: BTreeMap<PeerId, String>,
}

/// How a member is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// How many shards it has.
    pub shards: u8,
    /// Where the others link to it: `host:port`.
    pub addresses: Vec<String>,
}

/// A call that came to nothing, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The server did not answer in time, or could not: try again.
    #[error("{0}")]
    Retry(String),
    /// Trying again does not help before somebody has done what it says.
    #[error("{0}")]
    Stop(String),
}

/// This node's hand on the view, with a connection of its own.
pub struct Members {
    config: Config,
    shown: String,
    schema: String,
    node: String,
    limit: Duration,
    /// How often a member lets itself be seen.
    seen_us: u64,
    /// Who has not been seen for so long may be removed by who joins.
    unseen_us: u64,
    /// Who this node is in the view, since it joined.
    me: Option<PeerId>,
    /// When the last call began that let it be seen.
    seen_at_us: Option<u64>,
    watched: BTreeMap<PeerId, Watched>,
    /// As the store was open when this node joined first.
    who: Option<Who>,
    /// Taken while it is used: what is dropped half way is not used again.
    connection: Option<Connection>,
}

/// What `seen` of a member has been.
#[derive(Debug, Clone, Copy)]
struct Watched {
    seen: i64,
    /// The beginning of the first call behind the answer that said so.
    since_us: Option<u64>,
}

/// A call on its way.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    ask: Ask<'a>,
    /// Its member is to be seen with it.
    sees: Option<PeerId>,
}

#[derive(Debug, Clone, Copy)]
enum Ask<'a> {
    Read,
    Join(&'a Reach),
    Change(Change<'a>),
}

/// What came of it.
struct Answer {
    rows: Rows,
    who: Option<Who>,
}

/// The view, with what `seen` of each member is.
#[derive(Default)]
struct Rows {
    known: Known,
    seen: BTreeMap<PeerId, i64>,
}

/// What is to be done with the view, if it can be.
#[derive(Debug, Clone, Copy)]
enum Change<'a> {
    /// If the number is this still.
    Join {
        seen: u64,
        who: Who,
        reach: &'a Reach,
    },
    GoLive {
        me: PeerId,
        view: u64,
    },
    Remove {
        me: PeerId,
        peer: PeerId,
        /// It may be removed by who joins if `seen` is this.
        unseen: Option<i64>,
    },
    Leave {
        me: PeerId,
    },
}

/// In `cluster_member`.
pub(crate) const JOINING: i32 = 0;
pub(crate) const LIVE: i32 = 1;

impl Members {
    /// For the store that [`open`](crate::open) has opened with the same options. Asks nothing of the server yet. `limit`: how long a
    /// call may take.
    ///
    /// # Errors
    /// The options are wrong.
    pub fn new(
        options: &Options,
        cluster: &ferrule_cluster::Config,
        limit: Duration,
    ) -> Result<Self, OpenError> {
        let config = options.config()?;
        Ok(Self {
            shown: options.shown(&config),
            config,
            schema: options.schema.clone(),
            node: options.node.clone(),
            limit,
            seen_us: cluster.seen_us,
            unseen_us: cluster.store_us + cluster.seen_us,
            me: None,
            seen_at_us: None,
            watched: BTreeMap::new(),
            who: None,
            connection: None,
        })
    }

    /// Puts this node into the view as joining, in the place of what it was before. Returns who it is now.
    ///
    /// `now_us`, here and below: the time of the clock that also runs while the machine is suspended. All calls are cancellation-safe: dropped, it
    /// may have been done or not.
    ///
    /// # Errors
    /// [`MembersError::Stop`] also when another process has opened the store under this node's name.
    pub async fn join(&mut self, reach: &Reach, now_us: u64) -> Result<(PeerId, Known), MembersError> {
        self.me = None;
        let known = self.call(Ask::Join(reach), now_us).await?;
        let node = self.who.map(node_id);
        let me = known.view.members.iter().find(|member| Some(member.id.node) == node);
        let me = me.ok_or_else(|| self.error(&damaged("this node is not among them after it joined")))?.id;
        (self.me, self.seen_at_us) = (Some(me), Some(now_us));
        Ok((me, known))
    }

    /// The view as it is.
    ///
    /// # Errors
    /// The server.
    pub async fn read(&mut self, now_us: u64) -> Result<Known, MembersError> {
        self.call(Ask::Read, now_us).await
    }

    /// Makes this node live, if it is in the view as joining and the view's number is this. Returns the view as it then is.
    ///
    /// # Errors
    /// The server.
    pub async fn go_live(&mut self, me: PeerId, view: u64, now_us: u64) -> Result<Known, MembersError> {
        self.call(Ask::Change(Change::GoLive { me, view }), now_us).await
    }

    /// Takes `peer` out of the view, if this node is in it as live; or if it is joining, and has found `peer` unseen by the store for long enough.
    /// Returns the view as it then is.
    ///
    /// # Errors
    /// The server.
    pub async fn remove(&mut self, me: PeerId, peer: PeerId, now_us: u64) -> Result<Known, MembersError> {
        self.remove_unseen(me, peer, self.unseen_us, now_us).await
    }

    /// The same of a member that somebody who knows says is dead: whoever joins has to have found it unseen only for as long as a member that lives
    /// may take to be seen. It may acknowledge for longer than that, if it lives all the same and does not reach the store.
    ///
    /// # Errors
    /// The server.
    pub async fn remove_dead(
        &mut self,
        me: PeerId,
        peer: PeerId,
        now_us: u64,
    ) -> Result<Known, MembersError> {
        // Once in `seen_us`, with the next of the calls that each make after a pause, which may take a while.
        let unseen_us = self.seen_us + 2 * self.limit.as_micros() as u64;
        self.remove_unseen(me, peer, unseen_us.min(self.unseen_us), now_us).await
    }

    async fn remove_unseen(
        &mut self,
        me: PeerId,
        peer: PeerId,
        unseen_us: u64,
        now_us: u64,
    ) -> Result<Known, MembersError> {
        let watched = self.watched.get(&peer);
        let is_long = |since_us: u64| since_us.saturating_add(unseen_us) <= now_us;
        let unseen =
            watched.filter(|watched| watched.since_us.is_some_and(is_long)).map(|watched| watched.seen);
        self.call(Ask::Change(Change::Remove { me, peer, unseen }), now_us).await
    }

    /// Takes this node out of the view. Returns the view as it then is.
    ///
    /// # Errors
    /// The server.
    pub async fn leave(&mut self, me: PeerId, now_us: u64) -> Result<Known, MembersError> {
        self.call(Ask::Change(Change::Leave { me }), now_us).await
    }

    async fn call(&mut self, ask: Ask<'_>, now_us: u64) -> Result<Known, MembersError> {
        // What they were, they were in an answer before this call.
        for watched in self.watched.values_mut() {
            watched.since_us.get_or_insert(now_us);
        }
        let is_due = |seen_at_us: u64| seen_at_us.saturating_add(self.seen_us) <= now_us;
        let sees = self.me.filter(|_| self.seen_at_us.is_none_or(is_due));
        let limit = self.limit;
        let answer = match tokio::time::timeout(limit, self.ask(Call { ask, sees })).await {
            Ok(answer) => answer,
            Err(_) => Err(DbError::lost(format!("no answer within {limit:?}"))),
        };
        let Answer { rows, who } = answer.map_err(|error| self.error(&error))?;
        self.who = who;
        if sees.is_some() {
            self.seen_at_us = Some(now_us);
        }
        self.watch(&rows.seen);
        Ok(rows.known)
    }

    fn watch(&mut self, found: &BTreeMap<PeerId, i64>) {
        self.watched.retain(|id, watched| found.get(id) == Some(&watched.seen));
        for (&id, &seen) in found {
            self.watched.entry(id).or_insert(Watched { seen, since_us: None });
        }
    }

    async fn ask(&mut self, call: Call<'_>) -> Result<Answer, DbError> {
        loop {
            let kept = self.connection.take();
            let is_kept = kept.is_some();
            let connection = match kept {
                Some(connection) => connection,
                None => connect(&self.config, self.limit).await?,
            };
            match self.ask_on(&connection.client, call).await {
                Ok(answer) => {
                    self.connection = Some(connection);
                    return Ok(answer);
                }
                // Lost while nobody looked. Anything here may be done twice.
                Err(error) if error.kind == Kind::Lost && is_kept => {}
                Err(error) if error.kind == Kind::Again => {
                    connection.client.batch_execute("ROLLBACK").await?;
                    self.connection = Some(connection);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask_on(&self, client: &Client, call: Call<'_>) -> Result<Answer, DbError> {
        if let Some(me) = call.sees {
            let (node, incarnation) = sql(me);
            let update = format!(
                "UPDATE {}.cluster_member SET seen = seen + 1
                 WHERE node = $1::INT4 AND incarnation = $2::INT8",
                self.schema
            );
            client.execute(&update, &[&node, &incarnation]).await?;
        }
        let rows = match call.ask {
            Ask::Read => self.look(client).await?,
            Ask::Change(change) => self.change(client, change).await?.1,
            Ask::Join(reach) => {
                let who = self.who(client).await?;
                loop {
                    let seen = self.look(client).await?.known.view.number;
                    if let (true, rows) = self.change(client, Change::Join { seen, who, reach }).await? {
                        return Ok(Answer { rows, who: Some(who) });
                    }
                }
            }
        };
        Ok(Answer { rows, who: self.who })
    }

    /// This node in the tables.
    async fn who(&self, client: &Client) -> Result<Who, DbError> {
        let query = format!("SELECT number, incarnation FROM {}.node WHERE node = $1::TEXT", self.schema);
        let row = client.query_opt(&query, &[&self.node]).await?;
        let row = row.ok_or_else(|| DbError {
            kind: Kind::Missing,
            text: format!("the store has not been opened as node '{}' yet", self.node),
        })?;
        let found = Who { number: row.try_get(0)?, incarnation: row.try_get(1)? };
        match self.who {
            Some(who) if who != found => Err(DbError {
                kind: Kind::Taken,
                text: format!("another ferrule has opened the store as node '{}'", self.node),
            }),
            _ => Ok(found),
        }
    }

    /// The view, as of one moment: one statement.
    async fn look(&self, client: &Client) -> Result<Rows, DbError> {
        let query = format!(
            "SELECT v.number, m.node, m.incarnation, m.state, m.seen, m.shards, m.addresses,
                 EXISTS (SELECT 1 FROM {s}.session AS t WHERE t.owner = m.node), n.node,
                 (SELECT value FROM {s}.meta WHERE node = {NOBODY} AND key = '{IDENTITY}')
             FROM {s}.cluster_view AS v LEFT JOIN {s}.cluster_member AS m ON TRUE
             LEFT JOIN {s}.node AS n ON n.number = m.node
             WHERE v.id = 0 ORDER BY m.node",
            s = self.schema
        );
        rows(&client.query(&query, &[]).await?)
    }

    /// One transaction. Whether anything has changed, and the view behind it.
    async fn change(&self, client: &Client, change: Change<'_>) -> Result<(bool, Rows), DbError> {
        client.batch_execute(BEGIN).await?;
        let lock = format!("SELECT number FROM {}.cluster_view WHERE id = 0 FOR UPDATE", self.schema);
        let row = client.query_opt(&lock, &[]).await?;
        let number: i64 = row.ok_or_else(|| damaged("the row of cluster_view is gone"))?.try_get(0)?;
        let changed = self.try_change(client, change, number).await? > 0;
        if changed {
            let next =
                format!("UPDATE {}.cluster_view SET number = {} WHERE id = 0", self.schema, number + 1);
            client.batch_execute(&next).await?;
        }
        let rows = self.look(client).await?;
        client.batch_execute("COMMIT").await?;
        Ok((changed, rows))
    }

    /// How many rows it changed: one or none.
    async fn try_change(&self, client: &Client, change: Change<'_>, number: i64) -> Result<u64, Error> {
        let member = format!("{}.cluster_member", self.schema);
        match change {
            Change::Join { seen, .. } if seen != number as u64 => Ok(0),
            Change::Join { who, reach, .. } => {
                let delete = format!("DELETE FROM {member} WHERE node = $1::INT4");
                client.execute(&delete, &[&who.number]).await?;
                let insert = format!(
                    "INSERT INTO {member} (node, incarnation, state, seen, shards, addresses)
                     VALUES ($1::INT4, $2::INT8, {JOINING}, 0, $3::INT4, $4::TEXT[])"
                );
                let shards = i32::from(reach.shards);
                client.execute(&insert, &[&who.number, &(number + 1), &shards, &reach.addresses]).await
            }
            Change::GoLive { view, .. } if view != number as u64 => Ok(0),
            Change::GoLive { me, .. } => {
                let update = format!(
                    "UPDATE {member} SET state = {LIVE}
                     WHERE node = $1::INT4 AND incarnation = $2::INT8 AND state = {JOINING}"
                );
                let (node, incarnation) = sql(me);
                client.execute(&update, &[&node, &incarnation]).await
            }
            Change::Remove { me, peer, unseen } => {
                let delete = format!(
                    "DELETE FROM {member} AS peer
                     WHERE peer.node = $1::INT4 AND peer.incarnation = $2::INT8 AND EXISTS (
                         SELECT 1 FROM {member} AS me WHERE me.node = $3::INT4 AND me.incarnation = $4::INT8
                         AND (me.state = {LIVE} OR peer.seen = $5::INT8))"
                );
                let ((me, my_incarnation), (peer, incarnation)) = (sql(me), sql(peer));
                client.execute(&delete, &[&peer, &incarnation, &me, &my_incarnation, &unseen]).await
            }
            Change::Leave { me } => {
                let delete = format!("DELETE FROM {member} WHERE node = $1::INT4 AND incarnation = $2::INT8");
                let (node, incarnation) = sql(me);
                client.execute(&delete, &[&node, &incarnation]).await
            }
        }
    }

    fn error(&self, error: &DbError) -> MembersError {
        let text =
            format!("cannot ask for the members of the cluster, {}: {}", self.shown, error.with_advice());
        match error.kind {
            Kind::Lost | Kind::Again | Kind::Fence | Kind::Slow | Kind::Full | Kind::ReadOnly => {
                MembersError::Retry(text)
            }
            Kind::Taken | Kind::Login | Kind::Permission | Kind::Missing | Kind::Other => {
                MembersError::Stop(text)
            }
        }
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The configuration holds a password.
        f.debug_struct("Members")
            .field("shown", &self.shown)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

fn damaged(what: &str) -> DbError {
    DbError { kind: Kind::Other, text: format!("{what}: somebody else has written there") }
}

fn node_id(who: Who) -> NodeId {
    NodeId(u64::from(who.number.unsigned_abs()))
}

/// In the tables. What is in none of them cannot be found there either.
fn sql(id: PeerId) -> (i32, i64) {
    (i32::try_from(id.node.0).unwrap_or(-1), i64::try_from(id.incarnation).unwrap_or(-1))
}

fn rows(rows: &[Row]) -> Result<Rows, DbError> {
    let first = rows.first().ok_or_else(|| damaged("the row of cluster_view is gone"))?;
    let mut found = Rows::default();
    let known = &mut found.known;
    known.view.number = first.try_get::<_, i64>(0)? as u64;
    known.store = first.try_get::<_, Option<Vec<u8>>>(9)?.unwrap_or_default();
    for row in rows {
        let Some(node) = row.try_get::<_, Option<i32>>(1)? else { continue };
        let incarnation: i64 = row.try_get(2)?;
        let id = PeerId { node: NodeId(u64::from(node.unsigned_abs())), incarnation: incarnation as u64 };
        let state = match row.try_get(3)? {
            JOINING => State::Joining,
            LIVE => State::Live,
            other => return Err(damaged(&format!("a member has the state {other}"))),
        };
        found.seen.insert(id, row.try_get(4)?);
        let shards: i32 = row.try_get(5)?;
        let shards = u8::try_from(shards).map_err(|_| damaged("a member has too many shards"))?;
        known.view.members.push(Member { id, state, owns: row.try_get(7)? });
        known.reach.insert(id, Reach { shards, addresses: row.try_get(6)? });
        known.names.extend(row.try_get::<_, Option<String>>(8)?.map(|name| (id, name)));
    }
    Ok(found)
}
