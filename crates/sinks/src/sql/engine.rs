//! The consumer that both SQL sinks are: batches, poison rows, tables that wait, connections made anew.

use super::value::Refused;
use super::{Fault, Insert, Layout, Row, Settings, Table};
use crate::health::{Backoff, Discards, Health};
use crate::input::{Input, WINDOW};
use crate::{Delivered, OutRow, Reason, SinkContext};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Most bytes of payloads in one transaction: what a retry sends again, and what the database keeps in memory.
const BATCH_BYTES: usize = 1 << 20;

/// Tables whose layout is remembered; beyond it all are forgotten. Templates with a table per device can name any number.
const LAYOUTS_MAX: usize = 256;

/// A row with a column that the table has not makes us look at the table again, at most this often.
const FRESH: Duration = Duration::from_secs(5);

/// Old keys are looked for this often; at once again while there were some left.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// A connection that lasted so long was a good one, even if no row came.
const LASTING: Duration = Duration::from_secs(10);

/// What differs between SQLite and PostgreSQL. Methods return when the database has answered. None is cancellation-safe:
/// after a dropped future only [`Database::connect`] may follow.
pub trait Database: Send {
    /// Drops the connection, if any, and makes a new one.
    fn connect(&mut self) -> impl Future<Output = Result<(), String>> + Send;

    /// Returns when an idle connection has been lost. Cancellation-safe.
    fn lost(&mut self) -> impl Future<Output = String> + Send;

    /// Reads a table's layout; makes the table, and its table of keys, when they are not there.
    fn layout(&mut self, table: &Table) -> impl Future<Output = Result<Layout, Fault>> + Send;

    /// Writes all in one transaction of its own, and commits. After a fault nothing of it stands (after
    /// [`Fault::Lost`]: all or nothing).
    fn write(&mut self, inserts: &[Insert<'_>]) -> impl Future<Output = Result<(), Fault>> + Send;

    /// `BEGIN`.
    fn begin(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Writes within the transaction, under a savepoint: after a fault other than [`Fault::Lost`] nothing of it stands and
    /// the transaction goes on.
    fn insert(&mut self, insert: Insert<'_>) -> impl Future<Output = Result<(), Fault>> + Send;

    /// `COMMIT`.
    fn commit(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Deletes some keys that are older than `dedupe_for` from the table's table of keys; true when there may be more.
    fn sweep(
        &mut self,
        table: &Table,
        dedupe_for: Duration,
    ) -> impl Future<Output = Result<bool, Fault>> + Send;
}

/// A table that waits after a fault of its own.
struct Held {
    until: Instant,
    backoff: Backoff,
    error: String,
}

struct Known {
    layout: Arc<Layout>,
    read_at: Instant,
}

/// What became of a row in a flush. None: it stays.
type Outcomes = Vec<Option<Delivered>>;

struct Engine<D> {
    db: D,
    sink: Arc<str>,
    settings: Settings,
    health: Health,
    /// In order; nothing is taken from the channel while it is at [`WINDOW`], whatever the outbox hands out.
    waiting: VecDeque<OutRow>,
    layouts: HashMap<Table, Known>,
    held: HashMap<Table, Held>,
    sweep_at: Instant,
    discards: Discards,
    /// Rows were answered since the last connection was lost.
    progress: bool,
}

/// Runs until the context's rows are closed and what was at hand is written, or until its time is over.
pub async fn run<D: Database>(db: D, sink: &str, settings: Settings, mut context: SinkContext) {
    let mut engine = Engine {
        db,
        sink: sink.into(),
        settings,
        health: Health::new(sink, WINDOW, Arc::clone(&context.events)),
        waiting: VecDeque::new(),
        layouts: HashMap::new(),
        held: HashMap::new(),
        sweep_at: Instant::now() + SWEEP_EVERY,
        discards: Discards::default(),
        progress: false,
    };
    let mut input = Input::new(&mut context);
    let mut backoff = Backoff::default();
    while !engine.ended(&mut input) {
        let wait = match engine.connect(&mut input).await {
            Ok(()) => {
                let connected_at = Instant::now();
                let Some(error) = engine.work(&mut input).await else { break };
                if engine.ended(&mut input) {
                    break;
                }
                // The first attempt after a loss is made soon: most losses are a server's restart. But one that connects and
                // then fails each time (a full disk) is left more and more in peace.
                if std::mem::take(&mut engine.progress) || connected_at.elapsed() >= LASTING {
                    backoff.reset();
                }
                engine.health.down(error);
                backoff.next_wait()
            }
            Err(error) => {
                engine.health.down(error);
                if input.deadline.is_some() {
                    break; // Stopping, and the destination is away: the rows are the outbox's.
                }
                backoff.next_wait()
            }
        };
        let until = Instant::now() + wait;
        // Being told to stop ends the wait: one more attempt is made at once.
        while Instant::now() < until && !engine.ended(&mut input) && input.deadline.is_none() {
            input.more(&mut engine.waiting, until).await;
        }
    }
}

impl<D: Database> Engine<D> {
    fn ended(&mut self, input: &mut Input<'_>) -> bool {
        input.take(&mut self.waiting);
        input.deadline.is_some_and(|deadline| self.waiting.is_empty() || Instant::now() >= deadline)
    }

    /// Connects, and looks at (or makes) the configured table, so that a mistake shows before the first row.
    async fn connect(&mut self, input: &mut Input<'_>) -> Result<(), String> {
        self.layouts.clear();
        self.held.clear();
        let late = || "the sink was stopped".to_owned();
        input.in_time(self.db.connect()).await.ok_or_else(late)??;
        if let Some(name) = &self.settings.table {
            let table = Table::configured(name)?;
            match input.in_time(self.layout(&table)).await.ok_or_else(late)? {
                Ok(_) => {}
                // Of no use itself, but rows may be for other tables.
                Err(fault) => {
                    let error = fault.message().to_owned();
                    self.hold(table, fault)?;
                    self.health.blocked(error);
                    return Ok(());
                }
            }
        }
        // With rows at hand the first commit tells: a full disk connects well.
        if self.waiting.is_empty() {
            self.health.up();
        }
        Ok(())
    }

    /// Works on one connection, until it is lost (why) or the sink has ended (none).
    async fn work(&mut self, input: &mut Input<'_>) -> Option<String> {
        loop {
            if self.ended(input) {
                return None;
            }
            let now = Instant::now();
            let batch = self.batch(now);
            if !batch.is_empty() {
                match input.in_time(self.flush(&batch)).await {
                    Some(Ok(outcomes)) => self.answer(&batch, outcomes),
                    Some(Err(error)) => return Some(error),
                    None => return None,
                }
            } else if input.deadline.is_some() {
                return None; // Only tables that wait are left: the rows are the outbox's.
            } else if let Some(table) = self.configured_to_try(now) {
                match input.in_time(self.layout(&table)).await {
                    Some(Ok(_)) => {
                        self.held.remove(&table);
                        self.health.up();
                    }
                    Some(Err(fault)) => {
                        let error = fault.message().to_owned();
                        if let Err(lost) = self.hold(table, fault) {
                            return Some(lost);
                        }
                        self.health.blocked(error);
                    }
                    None => return None,
                }
                continue;
            } else if now < self.sweep_at {
                let wake = self.held.values().map(|h| h.until).fold(self.sweep_at, Instant::min);
                tokio::select! {
                    error = self.db.lost() => return Some(error),
                    () = input.more(&mut self.waiting, wake) => {}
                }
                continue;
            }
            if now >= self.sweep_at {
                match input.in_time(self.sweep()).await {
                    Some(Err(Fault::Lost(error))) => return Some(error),
                    Some(Err(fault)) => {
                        tracing::warn!(sink = &*self.sink, error = fault.message(), "cannot delete old keys")
                    }
                    Some(Ok(())) | None => {}
                }
            }
        }
    }

    /// The configured table, when it waits, its time has come, and no row is there to try it with.
    fn configured_to_try(&self, now: Instant) -> Option<Table> {
        let table = Table::configured(self.settings.table.as_deref()?).ok()?;
        self.held.get(&table).is_some_and(|held| held.until <= now).then_some(table)
    }

    /// Places in `waiting` of the rows to write now: the first ones whose table does not wait.
    fn batch(&mut self, now: Instant) -> Vec<usize> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (place, row) in self.waiting.iter().enumerate() {
            if batch.len() >= self.settings.batch_rows || (bytes >= BATCH_BYTES && !batch.is_empty()) {
                break;
            }
            if !self.held.is_empty()
                && table_of(row, &self.settings)
                    .is_ok_and(|t| self.held.get(&t).is_some_and(|h| h.until > now))
            {
                continue;
            }
            bytes += row.entry.payload.len();
            batch.push(place);
        }
        batch
    }

    /// Writes the batch. An error means that the connection is lost, and that nothing was answered.
    async fn flush(&mut self, batch: &[usize]) -> Result<Outcomes, String> {
        // The rows stay where they are until they are answered; entries are shared, so this copies pointers.
        let rows: Vec<OutRow> = batch.iter().map(|&place| self.waiting[place].clone()).collect();
        let mut outcomes: Outcomes = vec![None; rows.len()];
        let mut tables: Vec<(Table, Vec<usize>)> = Vec::new();
        let mut index: HashMap<Table, usize> = HashMap::new();
        for (place, row) in rows.iter().enumerate() {
            match table_of(row, &self.settings) {
                Ok(table) => {
                    let i = *index.entry(table).or_insert_with_key(|table| {
                        tables.push((table.clone(), Vec::new()));
                        tables.len() - 1
                    });
                    tables[i].1.push(place);
                }
                Err(why) => outcomes[place] = Some(self.discards.add(&self.sink, Reason::Target, &why)),
            }
        }
        let mut groups: Vec<Group<'_>> = Vec::new();
        let mut lanes: Vec<Vec<usize>> = Vec::with_capacity(tables.len());
        for (table, places) in tables {
            match self.layout(&table).await {
                Ok(layout) => {
                    let own = groups.len();
                    let mut refused = group(&layout, &rows, &places, &mut groups);
                    if refused.iter().any(|(_, refused)| refused.unknown_column) && self.is_old(&table) {
                        // Somebody may have added the column.
                        self.layouts.remove(&table);
                        groups.truncate(own);
                        match self.layout(&table).await {
                            Ok(fresh) => refused = group(&fresh, &rows, &places, &mut groups),
                            Err(fault) => {
                                self.hold(table, fault)?;
                                lanes.push(places);
                                continue;
                            }
                        }
                    }
                    for (place, refused) in refused {
                        outcomes[place] = Some(self.discards.add(&self.sink, refused.reason, &refused.why));
                    }
                }
                Err(fault) => self.hold(table, fault)?,
            }
            lanes.push(places);
        }
        let inserts: Vec<Insert<'_>> = groups.iter().map(Group::insert).collect();
        let written = if inserts.is_empty() { Ok(()) } else { self.db.write(&inserts).await };
        match written {
            Ok(()) => {
                for row in inserts.iter().flat_map(|insert| insert.rows) {
                    outcomes[row.place] = Some(Delivered::Yes);
                }
                self.held.retain(|table, _| inserts.iter().all(|i| i.layout.table != *table));
            }
            Err(Fault::Lost(error)) => return Err(error),
            Err(_) => self.write_carefully(&inserts, &mut outcomes).await?,
        }
        // Results of a lane are a prefix: behind a row that stays, one that was found unfit stays too.
        for lane in lanes {
            let stays = lane.iter().skip_while(|&&place| outcomes[place].is_some());
            for place in stays.copied().collect::<Vec<_>>() {
                outcomes[place].take_if(|outcome| *outcome != Delivered::Yes);
            }
        }
        Ok(outcomes)
    }

    /// The batch again, with savepoints, so that only what is to blame is left out.
    async fn write_carefully(
        &mut self,
        inserts: &[Insert<'_>],
        outcomes: &mut Outcomes,
    ) -> Result<(), String> {
        let lost = |fault: Fault| fault.message().to_owned();
        self.db.begin().await.map_err(lost)?;
        let mut bad_tables: Vec<(Table, Fault)> = Vec::new();
        let mut verdicts: Vec<(usize, Delivered)> = Vec::new();
        for insert in inserts {
            let table = &insert.layout.table;
            if bad_tables.iter().any(|(bad, _)| bad == table) {
                continue;
            }
            // Halves still to be written, the next one last. At most log2(rows) + 1 of them.
            let mut parts = vec![*insert];
            while let Some(part) = parts.pop() {
                match self.db.insert(part).await {
                    Ok(()) => verdicts.extend(part.rows.iter().map(|row| (row.place, Delivered::Yes))),
                    Err(Fault::Lost(error)) => return Err(error),
                    Err(fault @ Fault::Table(_)) => {
                        bad_tables.push((table.clone(), fault));
                        break;
                    }
                    Err(_) if part.rows.len() > 1 => {
                        let (first, second) = part.rows.split_at(part.rows.len() / 2);
                        parts.push(Insert { rows: second, ..part });
                        parts.push(Insert { rows: first, ..part });
                    }
                    Err(fault) => verdicts.extend(self.write_alone(part, fault).await?),
                }
            }
        }
        self.db.commit().await.map_err(lost)?;
        for (place, verdict) in verdicts {
            outcomes[place] = Some(verdict);
        }
        for insert in inserts {
            if !bad_tables.iter().any(|(bad, _)| *bad == insert.layout.table) {
                self.held.remove(&insert.layout.table);
            }
        }
        for (table, fault) in bad_tables {
            self.hold(table, fault)?;
        }
        Ok(())
    }

    /// A single row that was refused: as bytes if that is a way out, else discarded.
    async fn write_alone(
        &mut self,
        part: Insert<'_>,
        fault: Fault,
    ) -> Result<Option<(usize, Delivered)>, String> {
        let Some(row) = part.rows.first() else { return Ok(None) };
        if let Some(bytes) = row.as_bytes(part.layout) {
            let rows = [bytes];
            match self.db.insert(Insert { rows: &rows, ..part }).await {
                Ok(()) => return Ok(Some((row.place, Delivered::Yes))),
                Err(Fault::Lost(error)) => return Err(error),
                Err(_) => {}
            }
        }
        let reason = if matches!(fault, Fault::TooLarge(_)) { Reason::TooLarge } else { Reason::Refused };
        Ok(Some((row.place, self.discards.add(&self.sink, reason, fault.message()))))
    }

    async fn layout(&mut self, table: &Table) -> Result<Arc<Layout>, Fault> {
        if let Some(known) = self.layouts.get(table) {
            return Ok(Arc::clone(&known.layout));
        }
        let layout = Arc::new(self.db.layout(table).await?);
        if self.layouts.len() >= LAYOUTS_MAX {
            self.layouts.clear();
        }
        self.layouts.insert(table.clone(), Known { layout: Arc::clone(&layout), read_at: Instant::now() });
        Ok(layout)
    }

    /// Whether a table was last looked at so long ago that another look is worth it.
    fn is_old(&self, table: &Table) -> bool {
        self.layouts.get(table).is_none_or(|known| known.read_at.elapsed() >= FRESH)
    }

    /// Lets a table wait. A lost connection is passed on.
    fn hold(&mut self, table: Table, fault: Fault) -> Result<(), String> {
        let error = match fault {
            Fault::Lost(error) => return Err(error),
            Fault::Table(m) | Fault::Row(m) | Fault::TooLarge(m) => m,
        };
        self.layouts.remove(&table);
        let now = Instant::now();
        let held = self.held.entry(table.clone()).or_insert_with(|| Held {
            until: now,
            backoff: Backoff::default(),
            error: String::new(),
        });
        held.until = now + held.backoff.next_wait();
        if held.error != error {
            tracing::warn!(
                sink = &*self.sink,
                table = table.quoted(),
                error,
                "table cannot be written, its rows wait"
            );
            held.error = error;
        }
        Ok(())
    }

    /// Hands out answers, forgets answered rows, and says how it goes: down when all that happened is that tables wait.
    fn answer(&mut self, batch: &[usize], outcomes: Outcomes) {
        let mut answers = Vec::with_capacity(batch.len());
        let mut stay: VecDeque<OutRow> = VecDeque::new();
        // A batch's places ascend, so that walking both together keeps the order of what stays.
        let end = batch.last().map_or(0, |last| last + 1);
        let mut due = batch.iter().zip(outcomes).peekable();
        for (place, row) in self.waiting.drain(..end).enumerate() {
            match due.next_if(|(p, _)| **p == place) {
                Some((_, Some(delivered))) => answers.push((row.seq, delivered)),
                _ => stay.push_back(row),
            }
        }
        while let Some(row) = stay.pop_back() {
            self.waiting.push_front(row);
        }
        if !answers.is_empty() {
            self.progress = true;
            self.health.up();
        } else if let Some(held) = self.held.values().next() {
            self.health.down(held.error.clone());
        }
        self.health.done(answers);
    }

    async fn sweep(&mut self) -> Result<(), Fault> {
        self.sweep_at = Instant::now() + SWEEP_EVERY;
        let mut more = false;
        for known in self.layouts.values().filter(|known| !known.layout.key_inside) {
            more |= self.db.sweep(&known.layout.table, self.settings.dedupe_for).await?;
        }
        if more {
            self.sweep_at = Instant::now();
        }
        Ok(())
    }
}

/// The table that a row is for.
fn table_of(row: &OutRow, settings: &Settings) -> Result<Table, String> {
    match (&*row.entry.target, &settings.table) {
        ("", None) => Err("the rule names no table, and the sink has none".into()),
        ("", Some(own)) => Table::configured(own),
        (target, Some(own)) if target == own => Table::configured(own),
        (target, _) => Table::rendered(target),
    }
}

/// Rows of one table and one set of columns.
struct Group<'a> {
    layout: Arc<Layout>,
    columns: Vec<usize>,
    rows: Vec<Row<'a>>,
}

impl Group<'_> {
    fn insert(&self) -> Insert<'_> {
        Insert { layout: &self.layout, columns: &self.columns, rows: &self.rows }
    }
}

/// Makes rows of entries and puts them into groups; returns those that cannot be rows.
fn group<'a>(
    layout: &Arc<Layout>,
    rows: &'a [OutRow],
    places: &[usize],
    groups: &mut Vec<Group<'a>>,
) -> Vec<(usize, Refused)> {
    let own = groups.len();
    let mut unfit = Vec::new();
    for &place in places {
        match Row::new(place, &rows[place].entry, layout) {
            Ok((row, columns)) => match groups[own..].iter_mut().find(|g| g.columns == columns) {
                Some(group) => group.rows.push(row),
                None => groups.push(Group { layout: Arc::clone(layout), columns, rows: vec![row] }),
            },
            Err(refused) => unfit.push((place, refused)),
        }
    }
    unfit
}
