//! How a rule ended with a message, and what is counted of it.

/// Why a rule gave up on a message. Other rules and the message's other destinations are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A template of a target was NULL.
    NullInTarget,
    /// A rendered topic is no valid topic name, or is one that rules may not publish to.
    BadTarget,
    /// The rows made of the message, or a rendered template, are larger than [`crate::Scratch::MAX_OUTPUT`].
    TooLarge,
    /// The payload is nested deeper than [`crate::Scratch::MAX_DEPTH`].
    TooDeep,
    /// The fuel ran out.
    OutOfFuel,
    /// An error that ends a rule of EMQX's dialect; [`Counters::type_errors`] says which.
    Exception,
    /// FOREACH made no row (EMQX's `failed.no_result`).
    NoResult,
    /// The format of an INSERT has no place for the row.
    Unencodable,
    /// The rule is suspended ([`crate::RuleState::suspended`]): it has not seen the message.
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
    /// Messages that [`crate::step()`] was called for.
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
