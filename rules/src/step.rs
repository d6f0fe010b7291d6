//! One rule, one message: WHERE, the row, its inserts.
//!
//! Order: items that WHERE reads, WHERE, the other items, then for each insert its templates and body. Counters are
//! plain fields; the last message that went wrong is kept with its payload cut.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::elements::Elements;
use crate::emqx;
use crate::foreach::{self, Element};
use crate::formats::{Document, Documents};
use crate::functions::Surroundings;
use crate::guard::Guard;
use crate::json;
use crate::machine::Machine;
use crate::outcome::{Counters, Failure, LastFailure, TypeError};
use crate::paths::{Paths, Scan};
use crate::program::{Base, Program};
use crate::row::{Rows, emit_all, write_row};
use crate::ruleset::Keeps;
use crate::shared::Known;
use crate::state::{Memory, Table};
use crate::value::Value;
use crate::why::{self, Why};
use crate::{Message, Rule};

/// What time it is, by the host's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, ms since 1970.
    pub wall_ms: i64,
}

/// How a [`step`] ended. Lookups and slow functions will add their own endings (the rule then parks its key).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The rows are in [`Rows`]: one per insert, with FOREACH as many for each element that it took.
    Emit,
    /// WHERE was not true.
    NoMatch,
    /// The rule failed for this message; counted, and kept as [`RuleState::last_failure`].
    Failed(Failure),
    /// The fuel ran out before the end; nothing was emitted. Counted as a failure too.
    OutOfFuel,
}

/// What a rule keeps between messages; one per rule and shard.
#[derive(Debug, Clone, Default)]
pub struct RuleState {
    /// Counters.
    pub counters: Counters,
    /// The last message that went wrong.
    pub last_failure: Option<LastFailure>,
    /// What the rule remembers.
    pub(crate) table: Option<Box<Table>>,
    pub(crate) guard: Guard,
}

impl RuleState {
    /// Whether something that the rule remembers changed since [`Self::take_changes`].
    pub fn is_changed(&self) -> bool {
        self.table.as_ref().is_some_and(|table| table.is_changed())
    }

    /// Each key that changed since the last call, and its value, for a store; none: it is not remembered any more.
    pub fn take_changes(&mut self, each: impl FnMut(Vec<u8>, Option<Vec<u8>>)) {
        if let Some(table) = &mut self.table {
            table.take_changes(each);
        }
    }

    /// Gives back what [`Self::take_changes`] gave, after a restart.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) {
        self.table.get_or_insert_default().restore(key, value);
    }

    /// Why the rule gets no message now: `out_of_fuel` or `panicked`, again and again.
    pub fn suspended(&self, now: Now) -> Option<&'static str> {
        self.guard.suspended(now.wall_ms)
    }

    /// Counts from 0 again, and is suspended no more: it is another rule of the same name.
    pub fn start_counting(&mut self) {
        self.guard = Guard::default();
        self.counters = Counters::default();
        self.last_failure = None;
    }

    /// Forgets all that the rule remembers; [`Self::take_changes`] tells of it.
    pub fn forget(&mut self) {
        if let Some(table) = &mut self.table {
            table.clear();
        }
    }

    /// Drops all that the rule remembers, as if it had never been: nothing is told of it.
    pub fn drop_memory(&mut self) {
        self.table = None;
    }

    /// Keys that the rule remembers, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        self.table.as_ref().map_or((0, 0), |table| table.size())
    }
}

/// How much of a failed message's payload is kept.
const KEPT_PAYLOAD: usize = 1024;

/// Working memory of the evaluator, one per shard: the lazy scan of the current message and reusable buffers.
#[derive(Debug)]
pub struct Scratch {
    scan: Scan,
    /// The paths that `scan` is laid out for.
    paths: Arc<Paths>,
    documents: Documents,
    elements: Elements,
    known: Known,
    around: Surroundings,
    pub(crate) trace: Option<Vec<(TypeError, String)>>,
}

impl Scratch {
    /// The most bytes of all rows of a message, and of a rendered template.
    pub const MAX_OUTPUT: usize = 4 << 20;
    /// The deepest nesting of a payload that is read.
    pub const MAX_DEPTH: usize = json::MAX_DEPTH;

    /// Fresh memory. `seed` must be random in production: `uuid()` is drawn from it.
    pub fn new(seed: u128) -> Scratch {
        let paths = Arc::new(Paths::default());
        let mut scan = Scan::default();
        scan.begin(&paths);
        let random = [(seed >> 64) as u64, seed as u64];
        let around = Surroundings::new(random);
        Scratch {
            scan,
            paths,
            documents: Documents::default(),
            elements: Elements::default(),
            known: Known::default(),
            around,
            trace: None,
        }
    }

    /// As [`RuleState::is_changed`], of what all rules share.
    pub fn is_shared_changed(&self) -> bool {
        self.around.kv.is_changed()
    }

    /// As [`RuleState::take_changes`], of what all rules share.
    pub fn take_shared_changes(&mut self, each: impl FnMut(Vec<u8>, Option<Vec<u8>>)) {
        self.around.kv.take_changes(each);
    }

    /// Drops what all rules share, as if it had never been: nothing is told of it.
    pub fn drop_shared(&mut self) {
        self.around.kv = Default::default();
    }

    /// As [`RuleState::restore`], of what all rules share.
    pub fn restore_shared(&mut self, key: &[u8], value: &[u8]) {
        self.around.kv.restore(key, value);
    }

    /// What functions remember before a message, for [`why`].
    pub(crate) fn memory(&self, state: &RuleState) -> Memory {
        Memory { own: state.table.clone(), ..self.around.memory() }
    }

    /// For commands, where no connection waits for a slow function.
    pub(crate) fn be_patient(&mut self) {
        self.around.jq.be_patient();
    }

    /// Must be called when a new message comes, before the first [`step`] on it.
    #[inline]
    pub fn begin(&mut self) {
        self.scan.begin(&self.paths);
        self.documents.forget();
        self.known.forget();
    }

    /// Rules of another set come, after a reload: their paths and formats have other numbers.
    #[cold]
    fn adopt(&mut self, program: &Program) {
        self.paths = Arc::clone(&program.paths);
        self.around.schemas = Arc::clone(&program.schemas);
        self.begin();
    }

    /// The decoded payload takes the place of the message's scan, until it is [closed](Self::close).
    fn open(&mut self, program: &Program, input: &Message<'_>) -> Option<Document> {
        let format = program.format.as_ref()?;
        // Most events have no payload, and to some formats nothing is something.
        if !program.reads_payload() || (input.event.is_some() && input.payload.is_empty()) {
            return None;
        }
        if !Arc::ptr_eq(&self.paths, &program.paths) {
            self.adopt(program);
        }
        let mut document = self.documents.take(format, input.payload, &self.paths);
        std::mem::swap(&mut self.scan, &mut document.scan);
        Some(document)
    }

    fn close(&mut self, mut document: Document) {
        std::mem::swap(&mut self.scan, &mut document.scan);
        self.documents.give_back(document);
    }

    /// A machine for one program and one message.
    fn machine<'a, 's>(
        &'s mut self,
        program: &'a Program,
        input: &'a Message<'a>,
        raw: Option<&'a [u8]>,
        now: Now,
        fuel: &'s mut u64,
    ) -> Machine<'a, 's> {
        if !Arc::ptr_eq(&self.paths, &program.paths) {
            self.adopt(program);
        }
        self.around.wall_ms = now.wall_ms;
        let mut registers = SmallVec::new();
        if !program.before.is_empty() {
            registers.resize_with(program.items.len(), Value::default);
        }
        Machine {
            program,
            input,
            raw,
            element: Element::None,
            elements: &mut self.elements,
            known: &mut self.known,
            topic: None,
            scan: &mut self.scan,
            around: &mut self.around,
            fuel,
            stack: SmallVec::new(),
            registers,
            copies: SmallVec::new(),
            errors: [0; TypeError::ALL.len()],
            first_error: None,
            trace: self.trace.as_mut(),
        }
    }
}

/// Runs one rule on one message whose topic matches one of its filters.
///
/// `scratch.begin()` must have been called for this message. `fuel` goes down by one per operation of the program.
/// `out` is cleared first. Allocates nothing unless the rule matches.
pub fn step(
    rule: &Rule,
    state: &mut RuleState,
    input: &Message<'_>,
    scratch: &mut Scratch,
    now: Now,
    fuel: &mut u64,
    out: &mut Rows,
) -> Step {
    if state.guard.suspended(now.wall_ms).is_some() {
        out.clear();
        state.counters.matched += 1;
        state.counters.failed[Failure::Suspended as usize] += 1;
        return Step::Failed(Failure::Suspended);
    }
    let guarded = || match rule.program.keeps {
        None => stateless(rule, state, input, scratch, now, fuel, out),
        Some(keeps) => remembering(keeps, rule, state, input, scratch, now, fuel, out),
    };
    // What it leaves half done is made whole below.
    match catch_unwind(AssertUnwindSafe(guarded)) {
        Ok(ended) => {
            match ended {
                Step::Emit | Step::NoMatch => state.guard.clear(),
                Step::OutOfFuel => state.guard.strike(now.wall_ms),
                Step::Failed(_) => {}
            }
            ended
        }
        Err(_) => panicked(state, input, scratch, now, out),
    }
}

/// After a panic: the message's other rules find everything as they left it.
#[cold]
fn panicked(
    state: &mut RuleState,
    input: &Message<'_>,
    scratch: &mut Scratch,
    now: Now,
    out: &mut Rows,
) -> Step {
    out.clear();
    if let Some(mut table) = scratch.around.state.take() {
        table.roll_back();
        state.table = Some(table);
    }
    scratch.around.kv.keep();
    scratch.begin();
    state.counters.matched += 1;
    state.counters.failed[Failure::Panicked as usize] += 1;
    state.guard.panicked(now.wall_ms);
    keep(state, Failure::Panicked.name(), input, None, now);
    Step::Failed(Failure::Panicked)
}

#[inline]
fn stateless(
    rule: &Rule,
    state: &mut RuleState,
    input: &Message<'_>,
    scratch: &mut Scratch,
    now: Now,
    fuel: &mut u64,
    out: &mut Rows,
) -> Step {
    match rule.program.format {
        None => run(rule, state, input, None, scratch, now, fuel, out),
        Some(_) => step_decoded(rule, state, input, scratch, now, fuel, out),
    }
}

/// As [`step()`], of a rule that remembers: what a failed message changed is undone.
#[expect(clippy::too_many_arguments, reason = "those of `step`, and one")]
fn remembering(
    keeps: Keeps,
    rule: &Rule,
    state: &mut RuleState,
    input: &Message<'_>,
    scratch: &mut Scratch,
    now: Now,
    fuel: &mut u64,
    out: &mut Rows,
) -> Step {
    if keeps == Keeps::Own {
        scratch.around.state = state.table.take();
    }
    let ended = stateless(rule, state, input, scratch, now, fuel, out);
    match keeps {
        Keeps::Own => {
            let mut table = scratch.around.state.take().unwrap_or_default();
            match ended {
                Step::Emit | Step::NoMatch => table.keep(),
                Step::Failed(_) | Step::OutOfFuel => table.roll_back(),
            }
            state.table = Some(table);
        }
        // As EMQX has it: what was put stays.
        Keeps::Shared => scratch.around.kv.keep(),
    }
    ended
}

/// As [`step()`] for a payload in a format of its own; apart, so that rules on JSON carry nothing of it.
#[cold]
#[inline(never)]
fn step_decoded(
    rule: &Rule,
    state: &mut RuleState,
    input: &Message<'_>,
    scratch: &mut Scratch,
    now: Now,
    fuel: &mut u64,
    out: &mut Rows,
) -> Step {
    let Some(document) = scratch.open(&rule.program, input) else {
        return run(rule, state, input, None, scratch, now, fuel, out);
    };
    let step = match document.text() {
        Some(text) => {
            let decoded = Message { payload: text, ..*input };
            run(rule, state, &decoded, Some(input.payload), scratch, now, fuel, out)
        }
        None => run(rule, state, input, None, scratch, now, fuel, out),
    };
    scratch.close(document);
    step
}

/// As [`step()`]; `raw` is the payload as it came, where the one of `input` is what was decoded.
#[expect(clippy::too_many_arguments, reason = "those of `step`, and one")]
#[inline]
fn run(
    rule: &Rule,
    state: &mut RuleState,
    input: &Message<'_>,
    raw: Option<&[u8]>,
    scratch: &mut Scratch,
    now: Now,
    fuel: &mut u64,
    out: &mut Rows,
) -> Step {
    out.clear();
    let traced = scratch.trace.is_some();
    let mut machine = scratch.machine(&rule.program, input, raw, now, fuel);
    let ended = evaluate(&mut machine, traced, out);
    let Machine { errors, first_error, .. } = machine;
    let counters = &mut state.counters;
    counters.matched += 1;
    let step = match ended {
        Ok(true) => {
            out.seal();
            counters.passed += 1;
            counters.rows_out += out.rows.len() as u64;
            Step::Emit
        }
        Ok(false) => {
            counters.filtered += 1;
            Step::NoMatch
        }
        Err(failure) => {
            out.clear();
            counters.failed[failure as usize] += 1;
            if failure == Failure::OutOfFuel { Step::OutOfFuel } else { Step::Failed(failure) }
        }
    };
    if let Some(error) = first_error {
        for (total, new) in counters.type_errors.iter_mut().zip(errors) {
            *total += u64::from(new);
        }
        if ended.is_ok() {
            keep(state, error.name(), input, raw, now);
        }
    }
    if let Err(failure) = ended {
        keep(state, failure.name(), input, raw, now);
    }
    step
}

/// Keeps the message that went wrong, in the memory of the one before.
#[cold]
fn keep(state: &mut RuleState, reason: &'static str, input: &Message<'_>, raw: Option<&[u8]>, now: Now) {
    let payload = raw.unwrap_or(input.payload);
    let last = state.last_failure.get_or_insert_with(|| LastFailure {
        reason,
        at_ms: 0,
        topic: String::new(),
        clientid: String::new(),
        payload: Vec::new(),
        cut: false,
    });
    last.reason = reason;
    last.at_ms = now.wall_ms;
    last.topic.clear();
    last.topic.push_str(input.topic);
    last.clientid.clear();
    last.clientid.push_str(input.clientid);
    last.payload.clear();
    last.payload.extend_from_slice(&payload[..payload.len().min(KEPT_PAYLOAD)]);
    last.cut = payload.len() > KEPT_PAYLOAD;
}

/// Whether WHERE is true.
#[inline]
fn where_holds(m: &mut Machine<'_, '_>) -> Result<bool, Failure> {
    let program = m.program;
    match &program.condition {
        None => Ok(true),
        Some(condition) if program.shared.is_empty() => m.holds(condition),
        Some(_) => parts_hold(m),
    }
}

/// The same of a WHERE some of whose parts other rules have: as AND, so that what is counted is the same.
fn parts_hold(m: &mut Machine<'_, '_>) -> Result<bool, Failure> {
    let program = m.program;
    let mut all = true;
    for (at, part) in program.condition_parts.iter().enumerate() {
        let number = program.shared.get(at).copied().flatten();
        let truth = m.part(number, |m| {
            let value = m.eval(&part.code)?;
            Ok(m.truth(&value, "WHERE"))
        })?;
        match truth {
            Some(true) => {}
            Some(false) => return Ok(false),
            None => all = false,
        }
    }
    Ok(all)
}

/// The items that WHERE does not need.
#[inline]
fn items_after(m: &mut Machine<'_, '_>) -> Result<(), Failure> {
    let program = m.program;
    for &item in &program.after {
        if let Some(source) = program.sources[item]
            && m.copy(source, item)?
        {
            continue;
        }
        m.registers[item] = m.eval(&program.items[item])?;
    }
    Ok(())
}

/// `Ok(false)`: WHERE was not true.
fn evaluate(m: &mut Machine<'_, '_>, traced: bool, out: &mut Rows) -> Result<bool, Failure> {
    let program = m.program;
    if let Some(plan) = &program.emqx {
        return emqx::run::evaluate(m, plan, traced, out);
    }
    for &item in &program.before {
        m.registers[item] = m.eval(&program.items[item])?;
    }
    if !where_holds(m)? {
        return Ok(false);
    }
    m.make_room(program.items.len(), &Value::Null);
    if let Some(each) = &program.each {
        let collection = m.eval(&each.collection)?;
        let (is_null, type_name) = (collection == Value::Null, collection.type_name());
        let made = foreach::each(m, &each.paths, collection, out, |m, out| {
            if let Some(incase) = &each.incase
                && !m.holds(incase)?
            {
                return Ok(false);
            }
            items_after(m)?;
            if traced {
                if !out.row.is_empty() {
                    out.row.push(b',');
                }
                write_row(m, &mut out.row)?;
            }
            Ok(true)
        })?;
        if made.is_none() && !is_null {
            m.error(TypeError::TypeMismatch, || format!("FOREACH of {type_name}"));
        }
        return Ok(made.is_some_and(|rows| rows > 0));
    }
    if program.format.is_some()
        && m.raw.is_none()
        && program.row.base == Base::Payload
        && m.input.event.is_none()
    {
        m.unreadable();
    }
    items_after(m)?;
    if traced {
        write_row(m, &mut out.row)?;
    }
    emit_all(m, 0, out)?;
    Ok(true)
}

// === why not ===

/// Evaluates each part of WHERE alone, and what comes after it, with the program that [`step`] runs. Functions remember
/// what they did `before` the message; what they do now is forgotten.
pub(crate) fn why(
    rule: &Rule,
    input: &Message<'_>,
    before: Memory,
    scratch: &mut Scratch,
    now: Now,
) -> Result<Why, Failure> {
    let after = scratch.around.remember(before);
    let why = why_decoded(rule, input, scratch, now);
    scratch.around.remember(after);
    why
}

fn why_decoded(rule: &Rule, input: &Message<'_>, scratch: &mut Scratch, now: Now) -> Result<Why, Failure> {
    let Some(document) = scratch.open(&rule.program, input) else {
        return why_of(rule, input, None, scratch, now);
    };
    let results = match document.text() {
        Some(text) => why_of(rule, &Message { payload: text, ..*input }, Some(input.payload), scratch, now),
        None => why_of(rule, input, None, scratch, now),
    };
    scratch.close(document);
    results
}

fn why_of(
    rule: &Rule,
    input: &Message<'_>,
    raw: Option<&[u8]>,
    scratch: &mut Scratch,
    now: Now,
) -> Result<Why, Failure> {
    let mut fuel = u64::MAX;
    // What fails says so in words.
    scratch.trace = Some(Vec::new());
    let mut m = scratch.machine(&rule.program, input, raw, now, &mut fuel);
    if let Some(plan) = &m.program.emqx {
        return Ok(emqx::why::why(&mut m, plan));
    }
    for &item in &m.program.before {
        m.registers[item] = m.eval(&m.program.items[item])?;
    }
    why::of_conditions(&mut m)
}
