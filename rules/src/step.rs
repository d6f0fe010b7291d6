//! One rule, one message: WHERE, the row, its inserts.
//!
//! Order: items that WHERE reads, WHERE, the other items, then for each insert its templates and body. Counters are
//! plain fields; the last message that went wrong is kept with its payload cut.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use smallvec::SmallVec;

use bytes::Bytes;

use crate::check::forbidden_topic;
use crate::emqx;
use crate::events;
use crate::foreach::{self, Element};
use crate::formats::{Codec, Document, Documents, FormatError};
use crate::functions::Surroundings;
use crate::guard::Guard;
use crate::json;
use crate::paths::{Paths, Scan};
use crate::program::{Base, InsertCode, Layout, Machine, Node, Part, Program, Target, Template};
use crate::properties::{self, PublishProperty};
use crate::ruleset::Keeps;
use crate::shared::Known;
use crate::state::Table;
use crate::value::{Value, write_json_text};
use crate::why::{self, Why};
use crate::{Message, Rule, TargetKind};

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

/// Why a rule gave up on a message. Other rules and the message's other destinations are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A template of a target was NULL.
    NullInTarget,
    /// A rendered topic is no valid topic name, or is one that rules may not publish to.
    BadTarget,
    /// The rows made of the message, or a rendered template, are larger than [`Scratch::MAX_OUTPUT`].
    TooLarge,
    /// The payload is nested deeper than [`Scratch::MAX_DEPTH`].
    TooDeep,
    /// The fuel ran out.
    OutOfFuel,
    /// An error that ends a rule of EMQX's dialect; [`Counters::type_errors`] says which.
    Exception,
    /// FOREACH made no row (EMQX's `failed.no_result`).
    NoResult,
    /// The format of an INSERT has no place for the row.
    Unencodable,
    /// The rule is suspended ([`RuleState::suspended`]): it has not seen the message.
    Suspended,
    /// The rule panicked: a bug of the engine.
    Panicked,
}

/// Why an expression became NULL. The message goes on; the counter tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeError {
    /// A payload path was asked and the payload is not JSON.
    InvalidJson,
    /// An operator or function met a type that it does not take.
    TypeMismatch,
    /// An integer result does not fit 64 bits.
    IntegerOverflow,
    /// A divisor was zero.
    DivisionByZero,
    /// A float result is infinite or not a number.
    NotFinite,
    /// An argument of a function was out of its range.
    BadArgument,
    /// A jq program raised an error.
    JqError,
    /// A jq program did not end in time, needed too much, or is not run for a while because of that.
    JqStopped,
    /// A payload or an argument is not of the format that was named for it.
    InvalidFormat,
}

/// Counts since the rule was loaded. `matched = passed + filtered + failed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that [`step`] was called for.
    pub matched: u64,
    /// Messages that became rows.
    pub passed: u64,
    /// Messages that WHERE rejected.
    pub filtered: u64,
    /// Rows emitted, over all inserts.
    pub rows_out: u64,
    /// Failed messages by [`Failure`].
    pub failed: [u64; Failure::ALL.len()],
    /// NULLs made by [`TypeError`], occurrences.
    pub type_errors: [u64; TypeError::ALL.len()],
}

impl Failure {
    /// All of them, in the order of [`Counters::failed`].
    pub const ALL: [Failure; 10] = [
        Failure::NullInTarget,
        Failure::BadTarget,
        Failure::TooLarge,
        Failure::TooDeep,
        Failure::OutOfFuel,
        Failure::Exception,
        Failure::NoResult,
        Failure::Unencodable,
        Failure::Suspended,
        Failure::Panicked,
    ];

    /// The stable name in metrics and results.
    pub fn name(self) -> &'static str {
        match self {
            Failure::NullInTarget => "null_in_target",
            Failure::BadTarget => "bad_target",
            Failure::TooLarge => "too_large",
            Failure::TooDeep => "too_deep",
            Failure::OutOfFuel => "out_of_fuel",
            Failure::Exception => "exception",
            Failure::NoResult => "no_result",
            Failure::Suspended => "suspended",
            Failure::Panicked => "panicked",
            Failure::Unencodable => "unencodable",
        }
    }
}

impl TypeError {
    /// All of them, in the order of [`Counters::type_errors`].
    pub const ALL: [TypeError; 9] = [
        TypeError::InvalidJson,
        TypeError::TypeMismatch,
        TypeError::IntegerOverflow,
        TypeError::DivisionByZero,
        TypeError::NotFinite,
        TypeError::BadArgument,
        TypeError::JqError,
        TypeError::JqStopped,
        TypeError::InvalidFormat,
    ];

    /// The stable name in metrics and results.
    pub fn name(self) -> &'static str {
        match self {
            TypeError::InvalidJson => "invalid_json",
            TypeError::TypeMismatch => "type_mismatch",
            TypeError::IntegerOverflow => "integer_overflow",
            TypeError::DivisionByZero => "division_by_zero",
            TypeError::NotFinite => "not_finite",
            TypeError::BadArgument => "bad_argument",
            TypeError::JqError => "jq_error",
            TypeError::JqStopped => "jq_stopped",
            TypeError::InvalidFormat => "invalid_format",
        }
    }
}

/// The last message that a rule failed on or met a type error in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFailure {
    /// The stable name of the first reason.
    pub reason: &'static str,
    /// When, ms since 1970.
    pub at_ms: i64,
    /// The message's topic.
    pub topic: String,
    /// The device.
    pub clientid: String,
    /// The payload, cut at 1 KiB.
    pub payload: Vec<u8>,
    /// Whether it was cut.
    pub cut: bool,
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
    /// Of FOREACH's elements.
    elements: Scan,
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
            elements: Scan::default(),
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

    /// As [`RuleState::restore`], of what all rules share.
    pub fn restore_shared(&mut self, key: &[u8], value: &[u8]) {
        self.around.kv.restore(key, value);
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
            errors: [0; TypeError::ALL.len()],
            first_error: None,
            trace: self.trace.as_mut(),
        }
    }
}

/// Rows of one [`step`]; reuse it.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// In order of FOREACH's elements, and for each of the rule's inserts.
    pub rows: Vec<OutRow>,
    /// The row itself as a JSON object, when the scratch traces (`rules test` and `eval`).
    pub(crate) row: Vec<u8>,
    /// The bodies of the message in hand, one behind the other.
    pub(crate) text: Vec<u8>,
    /// Where in `text` the body of each row is; nowhere, if it is not.
    places: Vec<Range<usize>>,
}

/// More of [`Rows::text`] than this is given back with its message.
const KEPT_TEXT: usize = 64 << 10;

impl Rows {
    fn clear(&mut self) {
        self.rows.clear();
        self.row.clear();
        self.text.clear();
        self.text.shrink_to(KEPT_TEXT);
        self.places.clear();
    }

    /// Gives rows their bodies: of all rows of a message one piece of memory, which the last of them frees.
    fn seal(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let text = Bytes::copy_from_slice(&self.text);
        // The commonest case needs no count of those who share it.
        if let [OutRow { body: Body::Json(body) | Body::Text(body), .. }] = self.rows.as_mut_slice() {
            *body = text;
            return;
        }
        for (row, place) in self.rows.iter_mut().zip(&self.places).filter(|(_, place)| !place.is_empty()) {
            if let Body::Json(body) | Body::Text(body) = &mut row.body {
                *body = text.slice(place.clone());
            }
        }
    }
}

/// One row for one insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRow {
    /// Index into [`Rule::inserts`].
    pub insert: usize,
    /// The element's index, counted across all of the rule's inserts into one sink.
    pub row: u32,
    /// The rendered target; the message's own topic when a topic sink has no other; empty when a sink has none.
    pub target: Arc<str>,
    /// The rendered key, from the INSERT or the sink.
    pub key: Option<String>,
    /// What to send.
    pub body: Body,
    /// QoS asked for by the INSERT.
    pub qos: Option<u8>,
    /// Retain flag asked for by the INSERT.
    pub retain: Option<bool>,
    /// The sink's other template options (headers, ...), rendered, in order of its declaration.
    pub options: Vec<(Arc<str>, String)>,
    /// Of a publish to a topic, in order of the options that made them.
    pub properties: Vec<PublishProperty>,
}

impl OutRow {
    /// About how many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::Payload => 0,
            Body::Json(bytes) | Body::Text(bytes) | Body::Encoded(bytes) => bytes.len(),
        };
        size_of::<OutRow>() + self.target.len() + body
    }
}

/// The body of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// `SELECT *`: the message's payload, untouched.
    Payload,
    /// An object with the row's columns in order, as JSON text.
    Json(Bytes),
    /// The INSERT's payload template, rendered.
    Text(Bytes),
    /// The row in the INSERT's format.
    Encoded(Bytes),
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
    m.registers.resize_with(program.items.len(), Value::default);
    if let Some(each) = &program.each {
        let collection = m.eval(&each.collection)?;
        let (is_null, type_name) = (collection == Value::Null, collection.type_name());
        let made = foreach::each(m, &each.paths, collection, out, |m, out| {
            if let Some(incase) = &each.incase
                && !m.holds(incase)?
            {
                return Ok(false);
            }
            for &item in &program.after {
                m.registers[item] = m.eval(&program.items[item])?;
            }
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
    for &item in &program.after {
        m.registers[item] = m.eval(&program.items[item])?;
    }
    if traced {
        write_row(m, &mut out.row)?;
    }
    emit_all(m, 0, out)?;
    Ok(true)
}

/// The row in hand for every insert; it is the `nth` that the message makes.
pub(crate) fn emit_all(m: &mut Machine<'_, '_>, nth: u32, out: &mut Rows) -> Result<(), Failure> {
    let inserts = &m.program.inserts;
    // The same row for several inserts is written once.
    let mut json = None;
    for (insert, code) in inserts.iter().enumerate() {
        let row = code.ordinal + nth * inserts.len() as u32;
        emit(m, insert, row, code, &mut json, out)?;
    }
    Ok(())
}

fn emit(
    m: &mut Machine<'_, '_>,
    insert: usize,
    row: u32,
    code: &InsertCode,
    json: &mut Option<Range<usize>>,
    out: &mut Rows,
) -> Result<(), Failure> {
    let target = match &code.target {
        Some(Target::Fixed(target)) => Arc::clone(target),
        Some(Target::Template(template)) => {
            let target = text(m, template)?.ok_or(Failure::NullInTarget)?;
            if code.kind == TargetKind::Topic && !publishable(&target) {
                return Err(Failure::BadTarget);
            }
            target.into()
        }
        None if code.kind == TargetKind::Topic => {
            Arc::clone(m.topic.get_or_insert_with(|| m.input.topic.into()))
        }
        None => Arc::default(),
    };
    let key = match &code.key {
        Some(template) => text(m, template)?,
        None => None,
    };
    let mut options = Vec::with_capacity(code.options.len());
    for (name, template) in &code.options {
        if let Some(value) = text(m, template)? {
            options.push((Arc::clone(name), value));
        }
    }
    let properties = properties::render(m, &code.properties)?;
    let start = out.text.len();
    let mut range = start..start;
    let body = match &code.payload {
        Some(template) => {
            render(m, template, &mut out.text)?;
            range.end = out.text.len();
            Body::Text(Bytes::new())
        }
        None if code.format.is_some() => Body::Encoded(encoded(m, code.format.as_ref())?.into()),
        None if m.program.payload_only && m.raw.is_some() => {
            Body::Json(Bytes::copy_from_slice(m.input.payload))
        }
        None if m.program.payload_only && m.input.event.is_none() => Body::Payload,
        None => {
            match json {
                Some(written) => range = written.clone(),
                None => {
                    write_row(m, &mut out.text)?;
                    range.end = out.text.len();
                    *json = Some(range.clone());
                }
            }
            Body::Json(Bytes::new())
        }
    };
    out.rows.push(OutRow {
        insert,
        row,
        target,
        key,
        body,
        qos: code.qos,
        retain: code.retain,
        options,
        properties,
    });
    out.places.push(range);
    Ok(())
}

/// The row in a format; of `SELECT *` alone the payload, which may be no object and no JSON.
fn encoded(m: &mut Machine<'_, '_>, format: Option<&Codec>) -> Result<Vec<u8>, Failure> {
    let Some(codec) = format else { return Err(Failure::Unencodable) };
    let mut text = Vec::new();
    let value = if m.program.payload_only && m.input.event.is_none() {
        let payload = m.input.payload;
        match json::document(payload).ok().and_then(|found| Value::found(payload, found).ok()) {
            Some(value) => value,
            None => Value::binary(payload.to_vec()),
        }
    } else {
        write_row(m, &mut text)?;
        std::str::from_utf8(&text).map_or(Value::Null, |text| Value::Json(text.into()))
    };
    codec.encode(&value, Scratch::MAX_OUTPUT).map_err(|error| match error {
        FormatError::TooDeep => Failure::TooDeep,
        FormatError::TooLarge => Failure::TooLarge,
        FormatError::Malformed | FormatError::Unfit => Failure::Unencodable,
    })
}

/// A topic that a rule may publish to: MQTT 5.0 section 4.7, and not Ferrule's own.
pub(crate) fn publishable(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= 65_535 && !topic.contains(['+', '#', '\0']) && !forbidden_topic(topic)
}

// === templates ===

/// A template as text; `None` when a value in it was NULL or is no text.
pub(crate) fn text(m: &mut Machine<'_, '_>, template: &Template) -> Result<Option<String>, Failure> {
    let mut bytes = Vec::new();
    let whole = render(m, template, &mut bytes)?;
    Ok(String::from_utf8(bytes).ok().filter(|_| whole))
}

/// Appends a rendered template, NULL as `null` (most payloads are JSON); `false` when a value in it was NULL.
fn render(m: &mut Machine<'_, '_>, template: &Template, out: &mut Vec<u8>) -> Result<bool, Failure> {
    let mut whole = true;
    for part in &template.parts {
        match part {
            Part::Text(text) => out.extend_from_slice(text.as_bytes()),
            Part::Value(code) => match m.eval(code)? {
                Value::Null => {
                    whole = false;
                    out.extend_from_slice(b"null");
                }
                // EMQX's word.
                Value::Missing => {
                    whole = false;
                    out.extend_from_slice(b"undefined");
                }
                value => value.write_text(out),
            },
            Part::Row if m.program.payload_only && m.input.event.is_none() => {
                out.extend_from_slice(m.input.payload)
            }
            Part::Row => write_row(m, out)?,
            Part::Object(path) => {
                let mut layout = &m.program.row;
                for name in path {
                    match layout.children.iter().find(|(n, _)| n == name) {
                        Some((_, Node::Object(inner))) => layout = inner,
                        _ => break,
                    }
                }
                write_layout(m, layout, None, out)?;
            }
        }
        bounded(out)?;
    }
    Ok(whole)
}

pub(crate) fn bounded(out: &[u8]) -> Result<(), Failure> {
    if out.len() > Scratch::MAX_OUTPUT { Err(Failure::TooLarge) } else { Ok(()) }
}

// === the row as JSON ===

fn write_row(m: &mut Machine<'_, '_>, out: &mut Vec<u8>) -> Result<(), Failure> {
    if let Some(plan) = &m.program.emqx {
        return emqx::run::write_row(m, &plan.row, out);
    }
    write_layout(m, &m.program.row, None, out)
}

/// Writes an object: what `around` (a member of the object around it) or its base holds, with its children put in.
/// Recursion is bounded by the length of an alias.
fn write_layout(
    m: &Machine<'_, '_>,
    layout: &Layout,
    around: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    out.push(b'{');
    let mut first = true;
    let event;
    let base = match layout.base {
        // An event has no payload of its own: its columns are it.
        Base::Payload if m.input.event.is_some() => {
            event = serde_json::to_vec(&events::all_columns(m.input)).ok();
            event.as_deref()
        }
        Base::Nothing => around,
        Base::Payload => match json::document(m.input.payload) {
            Ok(found) if found.kind == json::Kind::Object => Some(found.of(m.input.payload)),
            document => {
                // A payload that is no object becomes a column, as JSON if it is that, unless there is one.
                if layout.children.iter().all(|(name, _)| name != "payload") {
                    out.extend_from_slice(b"\"payload\":");
                    match (document, std::str::from_utf8(m.input.payload)) {
                        (Ok(found), _) => out.extend_from_slice(found.of(m.input.payload)),
                        (Err(_), Ok(text)) => write_json_text(text, out),
                        (Err(_), Err(_)) => Value::Bytes(m.input.payload.into()).write_json(out),
                    }
                    first = false;
                }
                None
            }
        },
        Base::Register { item, decode } => {
            m.registers.get(item).and_then(|value| Program::object_text(value, decode))
        }
    };
    let mut written = Vec::new();
    if let Some(base) = base {
        written.resize(layout.children.len(), false);
        for (key, value) in json::items(base) {
            let Some(key) = key else { break };
            let child = layout.children.iter().position(|(name, _)| json::key_is(base, key, name));
            let inner = match child.map(|i| (i, &layout.children[i].1)) {
                None => None,
                Some((i, Node::Object(inner))) if inner.base == Base::Nothing && !written[i] => {
                    written[i] = true;
                    Some(inner)
                }
                // Replaced: written below.
                Some(_) => continue,
            };
            separate(&mut first, out);
            out.extend_from_slice(key.of(base));
            out.push(b':');
            match inner {
                None => out.extend_from_slice(value.of(base)),
                Some(inner) => {
                    let around = (value.kind == json::Kind::Object).then(|| value.of(base));
                    write_layout(m, inner, around, out)?;
                }
            }
            bounded(out)?;
        }
    }
    for (i, ((_, node), label)) in layout.children.iter().zip(&layout.labels).enumerate() {
        if written.get(i) == Some(&true) {
            continue;
        }
        separate(&mut first, out);
        out.extend_from_slice(label);
        match node {
            Node::Register(item) => m.registers.get(*item).unwrap_or(&Value::Null).write_json(out),
            Node::Object(inner) => write_layout(m, inner, None, out)?,
        }
        bounded(out)?;
    }
    out.push(b'}');
    Ok(())
}

fn separate(first: &mut bool, out: &mut Vec<u8>) {
    if !std::mem::take(first) {
        out.push(b',');
    }
}

// === why not ===

/// Evaluates each part of WHERE alone, and what comes after it, with the program that [`step`] runs.
pub(crate) fn why(rule: &Rule, input: &Message<'_>, scratch: &mut Scratch, now: Now) -> Result<Why, Failure> {
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
