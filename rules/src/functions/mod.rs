//! The functions of the default dialect; `functions.toml` says what they mean, and a test compares the two.

use std::borrow::Cow;
use std::sync::Arc;

use crate::TypeError;
use crate::formats::Schemas;
use crate::jq::Jq;
use crate::json;
use crate::program::MAX_TEXT;
use crate::value::{Value, finite};

pub(crate) mod emqx;
mod formats;
use emqx::kv::KvStore;

/// A function's place in [`FUNCTIONS`], or beyond them among those of EMQX's dialect.
pub(crate) type FunctionId = usize;

/// One function.
pub(crate) struct Function {
    pub(crate) name: &'static str,
    /// The fewest arguments.
    pub(crate) min: usize,
    /// The most arguments.
    pub(crate) max: usize,
    /// Whether a NULL argument makes NULL without a call.
    strict: bool,
    pub(crate) call: for<'a> fn(&mut [Value<'a>], &mut Surroundings) -> Result<Value<'a>, TypeError>,
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
    pub(crate) kv: KvStore,
    /// What `proc_dict_put` has put, for all rules.
    pub(crate) dict: KvStore,
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
            kv: KvStore::default(),
            dict: KvStore::default(),
            jq: Jq::default(),
            note: None,
        }
    }
}

/// The most arguments of any function.
const MANY: usize = 64;

const fn function(
    name: &'static str,
    min: usize,
    max: usize,
    strict: bool,
    call: for<'a> fn(&mut [Value<'a>], &mut Surroundings) -> Result<Value<'a>, TypeError>,
) -> Function {
    Function { name, min, max, strict, call }
}

/// All of them, by name.
pub(crate) static FUNCTIONS: [Function; 14] = [
    function("abs", 1, 1, true, abs),
    function("coalesce", 1, MANY, false, coalesce),
    function("concat", 1, MANY, false, concat),
    formats::DECODE,
    formats::ENCODE,
    function("length", 1, 1, true, length),
    function("lower", 1, 1, true, lower),
    function("now", 0, 0, true, now),
    function("round", 1, 2, true, round),
    function("substr", 2, 3, true, substr),
    function("timestamp_ms", 1, 1, true, timestamp_ms),
    function("to_string", 1, 1, true, to_string),
    function("upper", 1, 1, true, upper),
    function("uuid", 0, 0, true, uuid),
];

/// What each function means: name, signature, meaning, examples, as TOML. Documentation is made from it.
pub const FUNCTIONS_TOML: &str = include_str!("../functions.toml");

/// The names of all functions, ascending.
pub fn function_names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|f| f.name)
}

/// Finds a function by name, in any case.
pub(crate) fn function_id(name: &str) -> Option<FunctionId> {
    FUNCTIONS.iter().position(|f| f.name.eq_ignore_ascii_case(name))
}

/// The id of a function of EMQX's dialect.
pub(crate) fn emqx_id(name: &str) -> Option<FunctionId> {
    emqx::function_id(name).map(|id| FUNCTIONS.len() + id)
}

/// The function of an id.
pub(crate) fn function_of(id: FunctionId) -> Option<&'static Function> {
    match id.checked_sub(FUNCTIONS.len()) {
        None => FUNCTIONS.get(id),
        Some(id) => emqx::function(id),
    }
}

/// Calls a function.
pub(crate) fn call<'a>(
    function: &Function,
    args: &mut [Value<'a>],
    around: &mut Surroundings,
) -> Result<Value<'a>, TypeError> {
    if function.strict && args.iter().any(|a| matches!(a, Value::Null)) {
        return Ok(Value::Null);
    }
    (function.call)(args, around)
}

fn take<'a>(args: &mut [Value<'a>], index: usize) -> Value<'a> {
    args.get_mut(index).map(std::mem::take).unwrap_or_default()
}

fn abs<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    match take(args, 0) {
        Value::Int(i) => i.checked_abs().map(Value::Int).ok_or(TypeError::IntegerOverflow),
        Value::Float(f) => Ok(Value::Float(f.abs())),
        Value::Big(digits) => Ok(Value::Big(match digits {
            Cow::Borrowed(d) => Cow::Borrowed(d.trim_start_matches('-')),
            Cow::Owned(d) => Cow::Owned(d.trim_start_matches('-').to_owned()),
        })),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn coalesce<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    Ok(args.iter_mut().find(|a| !matches!(a, Value::Null)).map(std::mem::take).unwrap_or_default())
}

fn concat<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let mut out = Vec::new();
    for arg in args.iter() {
        if matches!(arg, Value::Bytes(_)) {
            return Err(TypeError::TypeMismatch);
        }
        arg.write_text(&mut out);
        if out.len() > around.max_text {
            return Err(TypeError::BadArgument);
        }
    }
    text(out)
}

fn text<'a>(bytes: Vec<u8>) -> Result<Value<'a>, TypeError> {
    String::from_utf8(bytes).map(|s| Value::Text(Cow::Owned(s))).map_err(|_| TypeError::TypeMismatch)
}

fn length<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let n = match take(args, 0) {
        Value::Text(s) => s.chars().count(),
        Value::Json(s) => json::items(s.as_bytes()).count(),
        _ => return Err(TypeError::TypeMismatch),
    };
    Ok(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)))
}

fn lower<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    match take(args, 0) {
        Value::Text(s) => Ok(Value::Text(Cow::Owned(s.to_lowercase()))),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn upper<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    match take(args, 0) {
        Value::Text(s) => Ok(Value::Text(Cow::Owned(s.to_uppercase()))),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn now<'a>(_: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    Ok(Value::Int(around.wall_ms))
}

fn round<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let digits = match args.get(1) {
        None => None,
        Some(Value::Int(n)) => {
            Some(u8::try_from(*n).ok().filter(|&n| n <= 15).ok_or(TypeError::BadArgument)?)
        }
        Some(_) => return Err(TypeError::TypeMismatch),
    };
    match (take(args, 0), digits) {
        (Value::Int(i), None) => Ok(Value::Int(i)),
        (Value::Big(digits), None) => Ok(Value::Big(digits)),
        (Value::Int(i), Some(_)) => Ok(Value::Float(i as f64)),
        (Value::Float(f), None) => {
            let f = f.round();
            // Both bounds are exact floats; the upper one is excluded.
            if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&f) {
                Ok(Value::Int(f as i64))
            } else {
                Err(TypeError::IntegerOverflow)
            }
        }
        (Value::Float(f), Some(digits)) => {
            let scale = 10f64.powi(i32::from(digits));
            // 2.345 * 100 is 234.49999999999997: nudged by an ulp, decimal halves round as they are written.
            let scaled = f * scale;
            let nudged = if scaled < 0.0 { scaled.next_down() } else { scaled.next_up() };
            let rounded = nudged.round() / scale;
            // Beyond 2^53 a float has no decimals to round.
            if scaled.abs() < 9_007_199_254_740_992.0 { finite(rounded) } else { finite(f) }
        }
        _ => Err(TypeError::TypeMismatch),
    }
}

fn substr<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let Some(&Value::Int(start)) = args.get(1) else { return Err(TypeError::TypeMismatch) };
    let count = match args.get(2) {
        None => usize::MAX,
        Some(&Value::Int(n)) => usize::try_from(n).map_err(|_| TypeError::BadArgument)?,
        Some(_) => return Err(TypeError::TypeMismatch),
    };
    let Value::Text(s) = take(args, 0) else { return Err(TypeError::TypeMismatch) };
    let skip = match start {
        0 => return Err(TypeError::BadArgument),
        1.. => usize::try_from(start - 1).unwrap_or(usize::MAX),
        _ => {
            let back = usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX);
            s.chars().count().saturating_sub(back)
        }
    };
    let byte = |chars: usize, text: &str| text.char_indices().nth(chars).map_or(text.len(), |(i, _)| i);
    let from = byte(skip, &s);
    let to = from + byte(count, &s[from..]);
    Ok(Value::Text(match s {
        Cow::Borrowed(s) => Cow::Borrowed(&s[from..to]),
        Cow::Owned(s) => Cow::Owned(s[from..to].to_owned()),
    }))
}

fn timestamp_ms<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    match take(args, 0) {
        Value::Int(ms) => Ok(Value::Int(ms)),
        Value::Text(s) => rfc3339_ms(&s).map(Value::Int).ok_or(TypeError::BadArgument),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// RFC 3339, with a space or `t` for `T` allowed, the offset optional (UTC), fractions cut at milliseconds.
fn rfc3339_ms(text: &str) -> Option<i64> {
    let b = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        b.get(range)?.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
    };
    let is = |at: usize, any: &[u8]| b.get(at).is_some_and(|c| any.contains(c));
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let separated = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    // 60 is a leap second; it counts as the next minute's first.
    if !separated || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut ms = 0;
    if is(at, b".") {
        at += 1;
        let mut unit = 100;
        let first = at;
        while let Some(d @ b'0'..=b'9') = b.get(at) {
            ms += i64::from(d - b'0') * unit;
            unit /= 10;
            at += 1;
        }
        if at == first {
            return None;
        }
    }
    let offset = match b.get(at) {
        None => 0,
        Some(b'Z' | b'z') if b.len() == at + 1 => 0,
        Some(sign @ (b'+' | b'-')) if b.len() == at + 6 && is(at + 3, b":") => {
            let minutes = number(at + 1..at + 3)? * 60 + number(at + 4..at + 6)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        Some(_) => return None,
    };
    // Days since 1970 in the proleptic Gregorian calendar, years beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let day_of_year = (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + ms)
}

fn to_string<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    match take(args, 0) {
        Value::Text(s) | Value::Json(s) | Value::Big(s) => Ok(Value::Text(s)),
        Value::Bytes(_) => Err(TypeError::TypeMismatch),
        other => {
            let mut out = Vec::new();
            other.write_text(&mut out);
            text(out)
        }
    }
}

fn uuid<'a>(_: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let hex = uuid_hex(around);
    Ok(Value::Text(Cow::Owned(hyphens(&hex))))
}

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
