//! Outboxes of a broker that does not run: read from the store, and written to only by `purge`.
//!
//! Nothing says there which names the numbers of outboxes have: the rules do, when `--config` names them.

use super::{Counts, Page};
use crate::backlog::{Line, Pick, queue_id, removals, show_id};
use crate::cli::{Failure, Flavor, Run, check, load, rule_files};
use crate::control::DataDirLock;
use crate::loader::UPLINK;
use ferrule_rules::cli::{read_files, sources};
use ferrule_store::QueueId;
use ferrule_store_sqlite::{Look, Options};
use serde_json::{Value, json};
use std::path::Path;

/// A store that nobody has open.
pub(super) struct Stopped {
    look: Look,
    lock: DataDirLock,
    names: Vec<String>,
}

impl Stopped {
    /// None: there is no store.
    pub(super) fn open(
        flavor: &Flavor,
        lock: DataDirLock,
        config: Option<&Path>,
    ) -> Result<Option<Self>, Failure> {
        let options = match flavor.run {
            Run::Edge(_) => Options::edge(),
            Run::Cloud(_) => Options::cloud(),
        };
        let mut names = vec![UPLINK.to_owned()];
        if let Some(rules) = config.map(|file| load(flavor, file)).transpose()?.and_then(|c| c.node.rules) {
            let files = rule_files(std::slice::from_ref(&rules))?;
            let texts = read_files(&files).map_err(Failure::Text)?;
            // Of rules that have mistakes the outboxes keep their numbers.
            names.extend(check::sink_names(flavor, &sources(&texts)));
        }
        let look = Look::open(lock.data_dir(), &options).map_err(|e| {
            Failure::Text(format!(
                "{e}\nA start moves a damaged file aside, keeps what can be read of it and says what was lost."
            ))
        })?;
        Ok(look.map(|look| Self { look, lock, names }))
    }

    fn name(&self, queue: QueueId) -> String {
        let known = self.names.iter().find(|name| queue_id(name) == queue);
        known.map_or_else(|| show_id(queue), Clone::clone)
    }

    pub(super) fn list(&self) -> Result<Value, Failure> {
        let now_ms = ferrule_clock::wall_ms();
        let mut outboxes = Vec::new();
        for summary in self.look.queues().map_err(Failure::Text)?.iter().filter(|s| s.queue.is_outbox()) {
            // The first that came is the oldest, but for rows of several gateways: near enough for a list.
            let first = self.rows(summary.queue, summary.first)?.into_iter().next();
            let at = first.and_then(|line| line.entry.ok()).map(|entry| entry.received.wall_ms);
            outboxes.push(json!({
                "name": self.name(summary.queue),
                "state": "not running",
                "queued": summary.rows,
                "stored": summary.rows,
                "bytes": summary.bytes,
                "oldest_ms": at.map(|at| now_ms.saturating_sub(at).max(0)),
            }));
        }
        Ok(json!({ "outboxes": outboxes }))
    }

    fn rows(&self, queue: QueueId, from: u64) -> Result<Vec<Line>, Failure> {
        let rows = self.look.rows(queue, from).map_err(Failure::Text)?;
        Ok(rows.into_iter().map(|row| Line::stored(row.seq, &row.head, Some(row.body))).collect())
    }

    /// The highest number that a row of it has.
    fn last(&self, name: &str) -> Result<(QueueId, u64), Failure> {
        let queue = queue_id(name);
        let queues = self.look.queues().map_err(Failure::Text)?;
        match queues.iter().find(|s| s.queue == queue) {
            Some(summary) => Ok((queue, summary.last)),
            // Known, and nothing waits in it.
            None if self.names.iter().any(|known| known == name) => Ok((queue, 0)),
            None => {
                Err(Failure::Text(format!("nothing waits in an outbox `{name}`: `outbox list` shows all")))
            }
        }
    }

    pub(super) fn page(&self, name: &str, after: u64) -> Result<Page, Failure> {
        let (queue, last) = self.last(name)?;
        let lines = self.rows(queue, after.saturating_add(1))?;
        let next = lines.last().map(|line| line.seq);
        Ok(Page { rows: lines.iter().map(Line::to_json).collect(), next, last })
    }

    /// Gives up rows, or only counts them; also says which was the last row.
    pub(super) fn give_up(
        &mut self,
        name: &str,
        before_ms: Option<i64>,
        until: Option<u64>,
        dry: bool,
    ) -> Result<(Counts, u64), Failure> {
        let (queue, last) = self.last(name)?;
        let until = until.unwrap_or(last);
        let (mut counts, mut after) = (Counts::default(), 0);
        loop {
            let lines = self.rows(queue, after + 1)?;
            let Some(reached) = lines.last().map(|line| line.seq).filter(|_| after < until) else {
                return Ok((counts, until));
            };
            let pick = Pick { before_ms, until };
            let picked: Vec<&Line> = lines.iter().filter(|line| line.is_picked(&pick)).collect();
            counts.rows += picked.len() as u64;
            counts.bytes += picked.iter().map(|line| line.size as u64).sum::<u64>();
            let removals = removals(queue, picked.iter().map(|line| line.seq));
            if !dry && !removals.is_empty() {
                self.look.commit(&removals).map_err(Failure::Text)?;
            }
            after = reached;
        }
    }

    /// Closes the store.
    pub(super) fn close(self) -> Result<(), Failure> {
        let closed = self.look.close().map_err(Failure::Text);
        drop(self.lock);
        closed
    }
}
