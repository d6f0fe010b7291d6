//! One rule, one message.

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
    /// The rows are in [`Rows`], one per insert.
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
    /// A template of a target or a key was NULL.
    NullInTarget,
    /// A rendered topic is no valid topic name, or is one that rules may not publish to.
    BadTarget,
    /// The row or a rendered template is larger than [`Scratch::MAX_OUTPUT`].
    TooLarge,
    /// The payload is nested deeper than [`Scratch::MAX_DEPTH`].
    TooDeep,
    /// The fuel ran out.
    OutOfFuel,
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
    pub const ALL: [Failure; 5] =
        [Failure::NullInTarget, Failure::BadTarget, Failure::TooLarge, Failure::TooDeep, Failure::OutOfFuel];

    /// The stable name in metrics and results.
    pub fn name(self) -> &'static str {
        match self {
            Failure::NullInTarget => "null_in_target",
            Failure::BadTarget => "bad_target",
            Failure::TooLarge => "too_large",
            Failure::TooDeep => "too_deep",
            Failure::OutOfFuel => "out_of_fuel",
        }
    }
}

impl TypeError {
    /// All of them, in the order of [`Counters::type_errors`].
    pub const ALL: [TypeError; 6] = [
        TypeError::InvalidJson,
        TypeError::TypeMismatch,
        TypeError::IntegerOverflow,
        TypeError::DivisionByZero,
        TypeError::NotFinite,
        TypeError::BadArgument,
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
}

/// Working memory of the evaluator, one per shard: the lazy scan of the current message and reusable buffers.
#[derive(Debug)]
pub struct Scratch {
    _seed: u128,
}

impl Scratch {
    /// The largest row or rendered template, in bytes.
    pub const MAX_OUTPUT: usize = 4 << 20;
    /// The deepest nesting of a payload that is read.
    pub const MAX_DEPTH: usize = 128;

    /// Fresh memory. `seed` must be random in production: `uuid()` is drawn from it.
    pub fn new(seed: u128) -> Scratch {
        Scratch { _seed: seed }
    }

    /// Must be called when a new message comes, before the first [`step`] on it.
    pub fn begin(&mut self) {}
}

/// Rows of one [`step`]; reuse it.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// In order of the rule's inserts.
    pub rows: Vec<OutRow>,
}

/// One row for one insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRow {
    /// Index into [`Rule::inserts`].
    pub insert: usize,
    /// The element's index, counted across all of the rule's inserts into one sink.
    pub row: u32,
    /// The rendered target; the message's own topic when a topic sink has no other; empty when a sink has none.
    pub target: String,
    /// The rendered key, from the INSERT or the sink.
    pub key: Option<String>,
    /// What to send.
    pub body: Body,
    /// QoS asked for by the INSERT.
    pub qos: Option<u8>,
    /// Retain flag asked for by the INSERT.
    pub retain: Option<bool>,
    /// The sink's other template options (headers, ...), rendered, in order of its declaration.
    pub options: Vec<(std::sync::Arc<str>, String)>,
}

/// The body of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// `SELECT *`: the message's payload, untouched.
    Payload,
    /// An object with the row's columns in order, as JSON text.
    Json(Vec<u8>),
    /// The INSERT's payload template, rendered.
    Text(Vec<u8>),
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
    let _ = (rule, input, scratch, now, fuel);
    out.rows.clear();
    state.counters.matched += 1;
    state.counters.filtered += 1;
    Step::NoMatch
}
