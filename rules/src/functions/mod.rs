//! Functions: of the default dialect ([`ferrule`]), of EMQX's ([`emqx`]), and what both are made of.
//!
//! A name is looked up when a rule is loaded and becomes a [`FunctionId`], a place in [`ALL`]; running a rule indexes. TOML beside each
//! file says what its functions mean: documentation is made of it and its examples are tests, which also compare the names.
//!
//! Where two dialects mean the same, one function stands in both tables.

use std::borrow::Cow;
use std::sync::Arc;

use crate::TypeError;
use crate::formats::Schemas;
use crate::jq::Jq;
use crate::program::MAX_TEXT;
use crate::value::Value;

pub(crate) mod emqx;
mod ferrule;
mod pattern;

use crate::state::{Memory, Table};
pub use ferrule::{FUNCTIONS_ELSEWHERE, FUNCTIONS_TOML, names as function_names};
pub(crate) use ferrule::{instead_of, is_own, is_placed, mistake, rfc3339_ms};

/// A function's place in [`ALL`].
pub(crate) type FunctionId = usize;

/// What a function gives.
type Given<'a> = Result<Value<'a>, TypeError>;

/// What calls a function: it may take its arguments.
type Call = for<'a> fn(&mut [Value<'a>], &mut Surroundings) -> Given<'a>;

/// One function.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    /// The fewest arguments.
    pub(crate) min: usize,
    /// The most arguments.
    pub(crate) max: usize,
    manner: Manner,
    pub(crate) call: Call,
}

/// How a function is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// A NULL argument makes NULL without a call; arrays and objects come and go as JSON text.
    Strict,
    /// As [`Manner::Strict`], but a NULL reaches it.
    Lenient,
    /// Of EMQX's dialect: every argument reaches it, arrays and objects come opened.
    Emqx,
}

/// What functions see besides their arguments.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Wall clock, ms since 1970.
    pub(crate) wall_ms: i64,
    /// State of the generator behind `uuid()`.
    pub(crate) random: [u64; 2],
    /// The largest text a function may make, in bytes.
    pub(crate) max_text: usize,
    /// What EMQX's dialect takes for local time: seconds east of UTC.
    pub(crate) utc_offset_s: i64,
    /// The formats that the rule set declares.
    pub(crate) schemas: Arc<Schemas>,
    /// What `kv_store_put` has put, for all rules.
    pub(crate) kv: Table,
    /// What `proc_dict_put` has put, for all rules.
    pub(crate) dict: Table,
    /// That of the rule in hand.
    pub(crate) state: Option<Box<Table>>,
    /// The worker of `jq()`.
    pub(crate) jq: Jq,
    /// Why the last function failed, in words, where it knows more than its error says.
    pub(crate) note: Option<String>,
}

impl Surroundings {
    /// With this seed of `uuid()` and its like.
    pub(crate) fn new(random: [u64; 2]) -> Self {
        Self {
            wall_ms: 0,
            random,
            max_text: MAX_TEXT,
            utc_offset_s: 0,
            schemas: Arc::default(),
            kv: Table::default(),
            dict: Table::default(),
            state: None,
            jq: Jq::default(),
            note: None,
        }
    }

    /// What functions remember now.
    pub(crate) fn memory(&self) -> Memory {
        let mut memory = Memory { own: self.state.clone(), kv: self.kv.clone(), dict: self.dict.clone() };
        memory.settle();
        memory
    }

    /// Functions remember this from here on; what they did until now.
    pub(crate) fn remember(&mut self, memory: Memory) -> Memory {
        Memory {
            own: std::mem::replace(&mut self.state, memory.own),
            kv: std::mem::replace(&mut self.kv, memory.kv),
            dict: std::mem::replace(&mut self.dict, memory.dict),
        }
    }
}

/// All functions: of each table one part. Those of one dialect have their own names.
static ALL: [Function; ferrule::COUNT + emqx::COUNT] = {
    let mut all = [ferrule::PARTS[0][0]; ferrule::COUNT + emqx::COUNT];
    let next = copy(&mut all, 0, &ferrule::PARTS);
    copy(&mut all, next, &emqx::PARTS);
    all
};

/// Puts the functions of parts from a place on; the place behind them.
const fn copy(all: &mut [Function], mut next: usize, parts: &[&[Function]]) -> usize {
    let mut part = 0;
    while part < parts.len() {
        let mut at = 0;
        while at < parts[part].len() {
            all[next] = parts[part][at];
            next += 1;
            at += 1;
        }
        part += 1;
    }
    next
}

/// How many functions parts have.
const fn count(parts: &[&[Function]]) -> usize {
    let (mut part, mut count) = (0, 0);
    while part < parts.len() {
        count += parts[part].len();
        part += 1;
    }
    count
}

/// The id of a function of the default dialect, in any case.
pub(crate) fn function_id(name: &str) -> Option<FunctionId> {
    ferrule::names().position(|known| known.eq_ignore_ascii_case(name))
}

/// The id of a function of EMQX's dialect.
pub(crate) fn emqx_id(name: &str) -> Option<FunctionId> {
    emqx::function_id(name).map(|id| ferrule::COUNT + id)
}

/// The function of an id.
pub(crate) fn function_of(id: FunctionId) -> Option<&'static Function> {
    ALL.get(id)
}

/// Calls a function.
pub(crate) fn call<'a>(function: &Function, args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    match function.manner {
        Manner::Emqx => (function.call)(args, around),
        Manner::Strict if args.iter().any(|a| matches!(a, Value::Null)) => Ok(Value::Null),
        Manner::Strict | Manner::Lenient => ferrule::closed((function.call)(args, around)?, around),
    }
}

// === what functions of all dialects do with arguments and results ===

/// Whether so many bytes may be made.
fn within(bytes: usize, around: &Surroundings) -> Result<(), TypeError> {
    if bytes <= around.max_text { Ok(()) } else { Err(TypeError::BadArgument) }
}

/// A number that counts or is a place.
fn int_of(value: &Value<'_>) -> Result<i64, TypeError> {
    match value {
        Value::Int(i) => Ok(*i),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The bytes of text or bytes.
fn bytes_of<'v>(value: &'v Value<'_>) -> Result<&'v [u8], TypeError> {
    value.as_bytes().ok_or(TypeError::TypeMismatch)
}

/// The value of a count.
fn count_value<'a>(count: usize) -> Given<'a> {
    i64::try_from(count).map(Value::Int).map_err(|_| TypeError::BadArgument)
}

/// Text.
fn owned<'a>(text: impl Into<String>) -> Value<'a> {
    Value::Text(Cow::Owned(text.into()))
}

// === identity and chance ===

/// A random UUID (version 4) as 32 digits.
fn uuid_hex(around: &mut Surroundings) -> String {
    let high = splitmix64(&mut around.random[0]);
    let low = splitmix64(&mut around.random[1]);
    let bits = (u128::from(high) << 64 | u128::from(low)) & !(0xf000 << 64) & !(0xc000 << 48)
        | 0x4000 << 64
        | 0x8000 << 48;
    format!("{bits:032x}")
}

/// The 32 digits of a UUID as it is written.
fn hyphens(hex: &str) -> String {
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

/// Steele, Lea and Flood's SplitMix64: one step of the state, one output.
pub(super) fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = *state;
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// At least 0 and below 1: 53 bits, as many as such a float has.
fn random_float(around: &mut Surroundings) -> f64 {
    (splitmix64(&mut around.random[0]) >> 11) as f64 / (1_u64 << 53) as f64
}
