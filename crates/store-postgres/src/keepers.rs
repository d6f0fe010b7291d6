//! Which node runs a rule that remembers something, and how what it remembers gets to the next one.
//!
//! # Constraints
//! An average over all devices is one average, on however many nodes they are: such a rule runs on one node, its *keeper*, to whom the others bring its messages.
//! Each of the nodes is to keep its share, also of those that were there before it came; and what a rule remembers has to change hands with it.
//!
//! # Data
//! A row of `rule_keeper` for each such rule. What it remembers is in the keeper's own part of `state`. Which rules a node names is in its row of
//! `cluster_member`, as long as it is that member: who joins has none there, nor has a node of an earlier release, to which nothing is handed.
//!
//! # Operation
//! A rule's *share* is one of the serving members that name it: the one that [`weight`] says, so that a member that comes gets its part of each other's
//! rules, and nothing else moves. A rule that nobody keeps, or whose keeper is no member any more, becomes the node's whose share it is, with what it
//! remembered. A keeper that does not name a rule any more gives it up. One that keeps what is another's share hands it over ([`Db::give`]), when the members
//! have stayed the same for a while (`writer.rs`).
//!
//! # Invariants
//! - A rule has one keeper: its row says so, and rows change in transactions that hold the members' view. What it remembers changes its part in the same one.
//! - Whoever's share a rule is finds it, whoever looks first: each member looks in each view, having named its rules in the same transaction; so the one of
//!   the greatest weight does, and another that does not know of it yet may, in its place.
//! - A node that was taken for gone and is not writes in its own part: nobody reads that any more, and it removes it when it finds that another keeps the
//!   rule; from then on it writes nothing of it, and not before does it name it: so nothing of that is written into what it is given. What it had
//!   acknowledged it had committed while it was a member, before its part was read.

use crate::db::{Db, blob};
use crate::error::DbError;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A rule, and what it remembers.
type Remembers = (u64, Vec<(Bytes, Bytes)>);

/// What became of a rule that was to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    /// It is another's.
    Yes,
    /// It is nobody else's share any more.
    No,
}

/// Who are members.
struct Members {
    all: BTreeSet<i32>,
    /// Those that are live, or all when none is, in the order of their numbers, and the rules that each names.
    serving: BTreeMap<i32, Option<BTreeSet<i64>>>,
}

impl Members {
    /// The member whose share a rule is, of those that name it.
    fn share(&self, rule: i64) -> Option<i32> {
        let names = |named: &Option<BTreeSet<i64>>| named.as_ref().is_some_and(|named| named.contains(&rule));
        let naming = self.serving.iter().filter(|(_, named)| names(named)).map(|(node, _)| *node);
        naming.max_by_key(|node| (weight(rule, *node), *node))
    }
}

/// Of rendezvous hashing: the same at all nodes, and of all releases of which some run side by side. A rule's number is a hash of its name, but also the
/// small ones of tests and 0 have to be spread: twice the last step of SplitMix64 (its authors' constants).
fn weight(rule: i64, node: i32) -> u64 {
    fn mix(x: u64) -> u64 {
        let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    mix(mix(u64::from(node.unsigned_abs())) ^ rule as u64)
}

impl Db {
    /// Becomes the keeper of those of these rules that are this node's share and have none, and gives up all others. The rules that it keeps; of those that it did
    /// not keep before, what they remember. None of them, if it is no live member and others are.
    pub(crate) async fn keep(
        &self,
        rules: &[u64],
        kept: &BTreeSet<u64>,
    ) -> Result<(BTreeSet<u64>, Vec<Remembers>), DbError> {
        let (s, me) = (self.schema(), self.number());
        let named: Vec<i64> = rules.iter().map(|rule| *rule as i64).collect();
        self.hold_view().await?;
        let mut members = self.members().await?;
        if !members.serving.contains_key(&me) {
            self.commit().await?;
            return Ok(Default::default());
        }
        self.hold().await?;
        let own = Some(named.iter().copied().collect::<BTreeSet<i64>>());
        if members.serving.get(&me) != Some(&own) {
            let sql = format!("UPDATE {s}.cluster_member SET rules = $2::INT8[] WHERE node = $1::INT4");
            self.client().execute(&sql, &[&me, &named]).await?;
            members.serving.insert(me, own);
        }
        let sql = format!("DELETE FROM {s}.rule_keeper WHERE node = $1::INT4 AND rule <> ALL($2::INT8[])");
        self.client().execute(&sql, &[&me, &named]).await?;
        let share: Vec<i64> = named.iter().copied().filter(|rule| members.share(*rule) == Some(me)).collect();
        let sql = format!(
            "INSERT INTO {s}.rule_keeper SELECT u.rule, $1::INT4 FROM unnest($2::INT8[]) AS u(rule) ON CONFLICT (rule) DO NOTHING"
        );
        self.client().execute(&sql, &[&me, &share]).await?;
        let sql = format!("SELECT rule, node FROM {s}.rule_keeper WHERE rule = ANY($1::INT8[])");
        let mut keepers = BTreeMap::<i64, i32>::new();
        for row in self.client().query(&sql, &[&named]).await? {
            keepers.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let others: Vec<i64> =
            keepers.iter().filter(|(_, node)| **node != me).map(|(rule, _)| *rule).collect();
        // What is left of an earlier time. In one statement: another may just be giving some of these to this node.
        let sql = format!(
            "DELETE FROM {s}.state WHERE node = $1::INT4 AND rule = ANY($2::INT8[]) AND rule NOT IN (
                 SELECT k.rule FROM {s}.rule_keeper AS k WHERE k.node = $1::INT4)"
        );
        if !others.is_empty() {
            self.client().execute(&sql, &[&me, &others]).await?;
        }
        for rule in others {
            let Some(&of) = keepers.get(&rule) else { continue };
            let is_ours = !members.all.contains(&of) && members.share(rule) == Some(me);
            if is_ours && self.hand(rule, of, me).await? {
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

    /// Those of these rules, which this node keeps, that are another's share.
    pub(crate) async fn misplaced(&self, kept: &BTreeSet<u64>) -> Result<Vec<u64>, DbError> {
        let members = self.members().await?;
        let me = self.number();
        if !members.serving.contains_key(&me) {
            return Ok(Vec::new());
        }
        let is_anothers = |rule: &u64| members.share(*rule as i64).is_some_and(|node| node != me);
        Ok(kept.iter().copied().filter(is_anothers).collect())
    }

    /// Hands a rule that this node does not run any more, and of which all is committed, to the one whose share it is. May be done twice.
    pub(crate) async fn give(&self, rule: u64) -> Result<Given, DbError> {
        let (rule, me) = (rule as i64, self.number());
        self.hold_view().await?;
        let members = self.members().await?;
        self.hold().await?;
        let sql = format!("SELECT node FROM {}.rule_keeper WHERE rule = $1::INT8", self.schema());
        let row = self.client().query_opt(&sql, &[&rule]).await?;
        let keeper = row.map(|row| row.try_get::<_, i32>(0)).transpose()?;
        let given = match (keeper, members.share(rule)) {
            (Some(keeper), _) if keeper != me => true,
            (Some(_), Some(to)) if to != me && members.serving.contains_key(&me) => {
                let sql =
                    format!("DELETE FROM {}.state WHERE node = $1::INT4 AND rule = $2::INT8", self.schema());
                self.client().execute(&sql, &[&to, &rule]).await?;
                self.hand(rule, me, to).await?
            }
            _ => false,
        };
        self.commit().await?;
        Ok(if given { Given::Yes } else { Given::No })
    }

    /// In a transaction that holds the view: the keeper is `to`, if it was `of`, and has what the rule remembers.
    async fn hand(&self, rule: i64, of: i32, to: i32) -> Result<bool, DbError> {
        let s = self.schema();
        let sql =
            format!("UPDATE {s}.rule_keeper SET node = $1::INT4 WHERE rule = $2::INT8 AND node = $3::INT4");
        let is_so = self.client().execute(&sql, &[&to, &rule, &of]).await? == 1;
        if is_so {
            let sql =
                format!("UPDATE {s}.state SET node = $1::INT4 WHERE rule = $2::INT8 AND node = $3::INT4");
            self.client().execute(&sql, &[&to, &rule, &of]).await?;
        }
        Ok(is_so)
    }

    /// Begins a transaction during which the members stay who they are.
    async fn hold_view(&self) -> Result<(), DbError> {
        self.begin().await?;
        let sql = format!("SELECT number FROM {}.cluster_view WHERE id = 0 FOR SHARE", self.schema());
        self.client().query(&sql, &[]).await?;
        Ok(())
    }

    async fn members(&self) -> Result<Members, DbError> {
        let sql = format!("SELECT node, state, rules FROM {}.cluster_member", self.schema());
        let mut members: Vec<(i32, i32, Option<BTreeSet<i64>>)> = Vec::new();
        for row in self.client().query(&sql, &[]).await? {
            let named: Option<Vec<i64>> = row.try_get(2)?;
            members.push((row.try_get(0)?, row.try_get(1)?, named.map(|named| named.into_iter().collect())));
        }
        let none_is_live = members.iter().all(|(_, state, _)| *state != crate::members::LIVE);
        let all = members.iter().map(|(node, ..)| *node).collect();
        let serves = |state: i32| none_is_live || state == crate::members::LIVE;
        let serving = members.into_iter().filter(|(_, state, _)| serves(*state));
        Ok(Members { all, serving: serving.map(|(node, _, named)| (node, named)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(nodes: &[i32], rules: i64) -> Members {
        let named: BTreeSet<i64> = (0..rules).collect();
        Members {
            all: nodes.iter().copied().collect(),
            serving: nodes.iter().map(|node| (*node, Some(named.clone()))).collect(),
        }
    }

    #[test]
    fn each_has_its_part_and_one_that_comes_takes_of_each_other() {
        const RULES: i64 = 3_000;
        for nodes in [&[1, 2][..], &[1, 2, 3], &[4, 90, 91, 92, 1_000_000]] {
            let before = members(nodes, RULES);
            let after = members(&[nodes, &[7]].concat(), RULES);
            let mut counts = BTreeMap::<i32, i64>::new();
            for rule in 0..RULES {
                let (was, is) = (before.share(rule).unwrap_or(0), after.share(rule).unwrap_or(0));
                assert!(is == was || is == 7, "rule {rule} goes from {was} to {is}, and neither has come");
                *counts.entry(is).or_default() += 1;
            }
            let even = RULES / (nodes.len() as i64 + 1);
            assert_eq!(counts.len(), nodes.len() + 1);
            assert!(counts.values().all(|n| (even * 8 / 10..=even * 12 / 10).contains(n)), "{counts:?}");
        }
    }

    #[test]
    fn who_does_not_name_a_rule_has_no_share_in_it() {
        let mut members = members(&[1, 2, 3], 10);
        members.serving.insert(2, None);
        members.serving.insert(3, Some([9].into()));
        assert!((0..9).all(|rule| members.share(rule) == Some(1)));
        assert!(members.share(9).is_some_and(|node| node != 2));
        assert_eq!(members.share(10), None);
    }
}
