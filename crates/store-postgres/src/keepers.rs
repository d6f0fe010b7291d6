//! Which node runs a rule that remembers something, and what it remembers when that node is gone.
//!
//! # Constraints
//! An average over all devices is one average, on however many nodes they are: such a rule runs on one node, its *keeper*, to whom the others bring its messages. It
//! must not change while that node is a member: what it remembers would have to change hands with it.
//!
//! # Data
//! A row of `rule_keeper` for each such rule. What it remembers is in the keeper's own part of `state`.
//!
//! # Operation
//! Who names a rule that nobody keeps becomes its keeper. When a keeper is no member any more, the live member whose rank is the rule's number modulo
//! their count takes its place, and what it remembered into its own part. A keeper that does not name a rule any more gives it up.
//!
//! # Invariants
//! - A rule has one keeper: its row says so, and rows change in transactions that hold the members' view.
//! - A node that was taken for gone and is not writes in its own part: nobody reads that any more, and it removes it when it finds that another keeps the rule. What it
//!   had acknowledged it had committed while it was a member, before its part was read.

use crate::db::{Db, blob};
use crate::error::DbError;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A rule, and what it remembers.
type Remembers = (u64, Vec<(Bytes, Bytes)>);

impl Db {
    /// Becomes the keeper of those of these rules that are this node's share, and gives up all others. The rules that it keeps; of those that it did
    /// not keep before, what they remember. None of them, if it is no live member and others are.
    pub(crate) async fn keep(
        &self,
        rules: &[u64],
        kept: &BTreeSet<u64>,
    ) -> Result<(BTreeSet<u64>, Vec<Remembers>), DbError> {
        let (s, me) = (self.schema(), self.number());
        let named: Vec<i64> = rules.iter().map(|rule| *rule as i64).collect();
        self.begin().await?;
        self.client()
            .query(&format!("SELECT number FROM {s}.cluster_view WHERE id = 0 FOR SHARE"), &[])
            .await?;
        let (members, serving) = self.serving().await?;
        let Some(rank) = serving.iter().position(|node| *node == me) else {
            self.commit().await?;
            return Ok(Default::default());
        };
        self.hold().await?;
        let sql = format!("DELETE FROM {s}.rule_keeper WHERE node = $1::INT4 AND rule <> ALL($2::INT8[])");
        self.client().execute(&sql, &[&me, &named]).await?;
        let sql = format!(
            "INSERT INTO {s}.rule_keeper SELECT u.rule, $1::INT4 FROM unnest($2::INT8[]) AS u(rule) ON CONFLICT (rule) DO NOTHING"
        );
        self.client().execute(&sql, &[&me, &named]).await?;
        let sql = format!("SELECT rule, node FROM {s}.rule_keeper WHERE rule = ANY($1::INT8[])");
        let mut keepers = BTreeMap::<i64, i32>::new();
        for row in self.client().query(&sql, &[&named]).await? {
            keepers.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let others: Vec<i64> =
            keepers.iter().filter(|(_, node)| **node != me).map(|(rule, _)| *rule).collect();
        // What is left of an earlier time.
        let sql = format!("DELETE FROM {s}.state WHERE node = $1::INT4 AND rule = ANY($2::INT8[])");
        if !others.is_empty() {
            self.client().execute(&sql, &[&me, &others]).await?;
        }
        for rule in others {
            let Some(&of) = keepers.get(&rule) else { continue };
            if members.contains(&of) || rule.rem_euclid(serving.len() as i64) != rank as i64 {
                continue;
            }
            let sql = format!(
                "UPDATE {s}.rule_keeper SET node = $1::INT4 WHERE rule = $2::INT8 AND node = $3::INT4"
            );
            if self.client().execute(&sql, &[&me, &rule, &of]).await? == 1 {
                let sql =
                    format!("UPDATE {s}.state SET node = $1::INT4 WHERE rule = $2::INT8 AND node = $3::INT4");
                self.client().execute(&sql, &[&me, &rule, &of]).await?;
                keepers.insert(rule, me);
            }
        }
        let mine: BTreeSet<u64> =
            keepers.iter().filter(|(_, node)| **node == me).map(|(rule, _)| *rule as u64).collect();
        let mut new: BTreeMap<u64, Vec<(Bytes, Bytes)>> =
            mine.difference(kept).map(|rule| (*rule, Vec::new())).collect();
        let numbers: Vec<i64> = new.keys().map(|rule| *rule as i64).collect();
        let sql = format!(
            "SELECT rule, key, value FROM {s}.state WHERE node = $1::INT4 AND rule = ANY($2::INT8[])"
        );
        for row in self.client().query(&sql, &[&me, &numbers]).await? {
            let rule = row.try_get::<_, i64>(0)? as u64;
            new.entry(rule).or_default().push((blob(&row, 1)?, blob(&row, 2)?));
        }
        self.commit().await?;
        Ok((mine, new.into_iter().collect()))
    }

    /// All members, and those that serve, in the order of their numbers: those that are live, or all when none is.
    async fn serving(&self) -> Result<(BTreeSet<i32>, Vec<i32>), DbError> {
        let sql = format!("SELECT node, state FROM {}.cluster_member ORDER BY node", self.schema());
        let mut members: Vec<(i32, i32)> = Vec::new();
        for row in self.client().query(&sql, &[]).await? {
            members.push((row.try_get(0)?, row.try_get(1)?));
        }
        let none_is_live = members.iter().all(|(_, state)| *state != crate::members::LIVE);
        let serves = |state: i32| none_is_live || state == crate::members::LIVE;
        let serving = members.iter().filter(|(_, state)| serves(*state)).map(|(node, _)| *node).collect();
        Ok((members.into_iter().map(|(node, _)| node).collect(), serving))
    }
}
