//! Arrays, read and made as JSON text, and what is of texts, arrays and objects alike.
//!
//! What only looks goes through the text once. What must hold all elements holds at most [`ELEMENTS_MAX`] of them.

use std::collections::HashSet;

use super::equal::{Wanted, canonical};
use super::*;
use crate::sql::ast::Binary;
use crate::value::{arithmetic, finite, order};

/// The most elements that are held at once, 48 bytes each.
const ELEMENTS_MAX: usize = 1 << 16;

pub(super) const FUNCTIONS: &[Function] = &[
    lenient("array_append", 2, MANY, array_append),
    strict("array_avg", 1, 1, array_avg),
    strict("array_concat", 1, MANY, array_concat),
    strict("array_contains", 2, 2, |args, _| array_place(args).map(|at| Value::Bool(at.is_some()))),
    strict("array_distinct", 1, 1, array_distinct),
    strict("array_except", 2, 2, |args, around| array_of_both(args, around, false)),
    strict("array_first", 1, 1, |args, _| array_end(args, 1)),
    strict("array_flatten", 1, 1, array_flatten),
    strict("array_intersect", 2, 2, |args, around| array_of_both(args, around, true)),
    strict("array_last", 1, 1, |args, _| array_end(args, -1)),
    strict("array_max", 1, 1, |args, _| array_most(args, Ordering::Greater)),
    strict("array_median", 1, 1, array_median),
    strict("array_min", 1, 1, |args, _| array_most(args, Ordering::Less)),
    strict("array_position", 2, 2, |args, _| array_place(args)?.map_or(Ok(Value::Null), count_value)),
    lenient("array_prepend", 2, 2, array_prepend),
    strict("array_remove", 2, 2, array_remove),
    strict("array_reverse", 1, 1, array_reverse),
    strict("array_slice", 2, 3, array_slice),
    strict("array_sort", 1, 2, array_sort),
    strict("array_stddev", 1, 1, array_stddev),
    strict("array_sum", 1, 1, array_sum),
    strict("array_to_string", 2, 2, join),
    strict("array_union", 1, MANY, array_union),
    strict("cardinality", 1, 1, |args, _| count_value(elements(array_of(arg(args, 0))?).count())),
    strict("contains", 2, 2, contains),
    strict("join", 2, 2, join),
    strict("length", 1, 1, length),
    strict("sequence", 2, 3, sequence),
];

fn length<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match arg(args, 0) {
        Value::Text(text) => count_value(text.chars().count()),
        Value::Json(text) if text.starts_with('{') => count_value(members(text).count()),
        Value::Json(text) => count_value(json::items(text.as_bytes()).count()),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// Of text, whether a part is in it; of an array, an element.
fn contains<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match arg(args, 0) {
        Value::Text(text) => Ok(Value::Bool(text.contains(text_of(arg(args, 1))?))),
        _ => array_place(args).map(|at| Value::Bool(at.is_some())),
    }
}

// === looked into ===

/// Where in an array an element first is.
fn array_place(args: &[Value<'_>]) -> Result<Option<usize>, TypeError> {
    let wanted = Wanted::new(arg(args, 1));
    for (at, element) in elements(array_of(arg(args, 0))?).enumerate() {
        if wanted.is(&element?.0) {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

fn array_end<'a>(args: &mut [Value<'a>], index: i64) -> Given<'a> {
    array_of(arg(args, 0))?;
    take(args, 0).element(index)
}

/// The greatest or least; NULLs are left out.
fn array_most<'a>(args: &[Value<'a>], wanted: Ordering) -> Given<'a> {
    let mut best = Value::Null;
    for element in elements(array_of(arg(args, 0))?) {
        let (value, _) = element?;
        if matches!(value, Value::Null) {
            continue;
        }
        let is_first = matches!(best, Value::Null);
        let better = ordered(&value, if is_first { &value } else { &best })?;
        if better == wanted || is_first {
            best = value;
        }
    }
    Ok(best.into_owned())
}

/// The sum and how many numbers there are; NULLs are left out.
fn total(array: &str) -> Result<(Value<'static>, u32), TypeError> {
    let (mut sum, mut count) = (Value::Int(0), 0);
    for element in elements(array) {
        let (value, _) = element?;
        match value {
            Value::Null => continue,
            // As numbers only: `+` would join texts.
            Value::Int(_) | Value::Float(_) | Value::Big(_) => {
                sum = arithmetic(Binary::Add, &sum, &value)?;
            }
            _ => return Err(TypeError::TypeMismatch),
        }
        count += 1;
    }
    Ok((sum, count))
}

fn array_sum<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match total(array_of(arg(args, 0))?)? {
        (_, 0) => Ok(Value::Null),
        (sum, _) => Ok(sum),
    }
}

fn array_avg<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match total(array_of(arg(args, 0))?)? {
        (_, 0) => Ok(Value::Null),
        (sum, count) => finite(number::float_of(&sum)? / f64::from(count)),
    }
}

/// The numbers as floats; NULLs are left out.
fn floats(array: &str) -> impl Iterator<Item = Result<f64, TypeError>> {
    let float = |(value, _): (Value<'_>, &str)| match value {
        Value::Null => Ok(None),
        value => number::float_of(&value).map(Some),
    };
    elements(array).filter_map(move |element| element.and_then(float).transpose())
}

fn array_median<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let mut held = floats(array_of(arg(args, 0))?).take(ELEMENTS_MAX + 1).collect::<Result<Vec<f64>, _>>()?;
    if held.len() > ELEMENTS_MAX {
        return Err(TypeError::BadArgument);
    }
    held.sort_by(f64::total_cmp);
    let middle = held.len() / 2;
    match (held.get(middle), middle.checked_sub(1).and_then(|before| held.get(before))) {
        (None, _) => Ok(Value::Null),
        (Some(above), Some(below)) if held.len().is_multiple_of(2) => finite(below / 2.0 + above / 2.0),
        (Some(middle), _) => finite(*middle),
    }
}

/// Of a sample: divided by one less than there are. Welford's way, which keeps its digits where the mean is far from 0.
fn array_stddev<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for float in floats(array_of(arg(args, 0))?) {
        let float = float?;
        count += 1.0;
        let off = float - mean;
        mean += off / count;
        squares += off * (float - mean);
    }
    if count < 2.0 { Ok(Value::Null) } else { finite((squares / (count - 1.0)).sqrt()) }
}

fn join<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let values = elements(array_of(arg(args, 0))?).map(|element| element.map(|(value, _)| value));
    text::joined(values, text_of(arg(args, 1))?, around)
}

// === made ===

/// An element may be NULL, the array may not.
fn array_append<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    if matches!(arg(args, 0), Value::Null) {
        return Ok(Value::Null);
    }
    let mut out = Json::open(b'[', around);
    out.inner(array_of(arg(args, 0))?)?;
    args.iter().skip(1).try_for_each(|value| out.value(value, 1))?;
    Ok(out.close())
}

fn array_prepend<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    if matches!(arg(args, 0), Value::Null) {
        return Ok(Value::Null);
    }
    let mut out = Json::open(b'[', around);
    let array = array_of(arg(args, 0))?;
    out.value(arg(args, 1), 1)?;
    out.inner(array)?;
    Ok(out.close())
}

fn array_concat<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = Json::open(b'[', around);
    for array in args.iter() {
        out.inner(array_of(array)?)?;
    }
    Ok(out.close())
}

/// One level of arrays within is opened.
fn array_flatten<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let array = array_of(arg(args, 0))?;
    let mut out = Json::open(b'[', around);
    for (_, found) in json::items(array.as_bytes()) {
        let text = raw(array, found);
        if found.kind == json::Kind::Array { out.inner(text)? } else { out.raw(text)? }
    }
    Ok(out.close())
}

/// From a place on, at most so many.
fn array_slice<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let count = args.get(2).map_or(Ok(usize::MAX), count_of)?;
    let (array, from) = (array_of(arg(args, 0))?, int_of(arg(args, 1))?);
    let range = span_of(elements(array).count(), from, count)?;
    let mut out = Json::open(b'[', around);
    for (_, found) in json::items(array.as_bytes()).skip(range.start).take(range.len()) {
        out.raw(raw(array, found))?;
    }
    Ok(out.close())
}

fn array_remove<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let wanted = Wanted::new(arg(args, 1));
    let mut out = Json::open(b'[', around);
    for element in elements(array_of(arg(args, 0))?) {
        let (value, text) = element?;
        if !wanted.is(&value) {
            out.raw(text)?;
        }
    }
    Ok(out.close())
}

/// All elements, if they are not too many.
fn held(array: &str) -> Result<Vec<(Value<'_>, &str)>, TypeError> {
    let held: Vec<_> = elements(array).take(ELEMENTS_MAX + 1).collect::<Result<_, _>>()?;
    if held.len() > ELEMENTS_MAX { Err(TypeError::BadArgument) } else { Ok(held) }
}

fn array_reverse<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = Json::open(b'[', around);
    held(array_of(arg(args, 0))?)?.iter().rev().try_for_each(|(_, text)| out.raw(text))?;
    Ok(out.close())
}

/// Equal elements stay in their order; NULLs come last.
fn array_sort<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let descending = match text_or(args, 1, "asc")? {
        way if way.eq_ignore_ascii_case("asc") => false,
        way if way.eq_ignore_ascii_case("desc") => true,
        _ => return Err(TypeError::BadArgument),
    };
    let mut held = held(array_of(arg(args, 0))?)?;
    let nulls = held.extract_if(.., |(value, _)| matches!(value, Value::Null)).count();
    // What can be ordered with the first can be with each other; so no comparison fails while it sorts.
    if let Some((first, _)) = held.first() {
        for (value, _) in &held {
            ordered(first, value)?;
        }
    }
    held.sort_by(|(a, _), (b, _)| {
        let order = order(a, b).ok().flatten().unwrap_or(Ordering::Equal);
        if descending { order.reverse() } else { order }
    });
    let mut out = Json::open(b'[', around);
    held.iter().try_for_each(|(_, text)| out.raw(text))?;
    (0..nulls).try_for_each(|_| out.raw("null"))?;
    Ok(out.close())
}

fn array_distinct<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    distinct(args, around, |_| true)
}

fn array_union<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    distinct(args, around, |_| true)
}

/// Elements of the first array that the second has, or has not.
fn array_of_both<'a>(args: &mut [Value<'a>], around: &mut Surroundings, both: bool) -> Given<'a> {
    let mut others = HashSet::new();
    for element in elements(array_of(arg(args, 1))?) {
        others.insert(canonical(&element?.0));
    }
    distinct(args.get(..1).unwrap_or(&[]), around, |element| others.contains(element) == both)
}

/// The first of equal elements of all arrays, if they are wanted.
fn distinct<'a>(args: &[Value<'_>], around: &Surroundings, wanted: impl Fn(&Vec<u8>) -> bool) -> Given<'a> {
    let mut out = Json::open(b'[', around);
    let mut kept = HashSet::new();
    for array in args {
        for element in elements(array_of(array)?) {
            let (value, text) = element?;
            let canonical = canonical(&value);
            if wanted(&canonical) && kept.insert(canonical) {
                out.raw(text)?;
            }
        }
    }
    Ok(out.close())
}

/// The integers from one to another, both included.
fn sequence<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (from, to) = (int_of(arg(args, 0))?, int_of(arg(args, 1))?);
    let step = int_or(args, 2, if from <= to { 1 } else { -1 })?;
    if step == 0 {
        return Err(TypeError::BadArgument);
    }
    let mut out = Json::open(b'[', around);
    let mut next = Some(from);
    while let Some(int) = next.filter(|int| if step > 0 { *int <= to } else { *int >= to }) {
        out.value(&Value::Int(int), 1)?;
        next = int.checked_add(step);
    }
    Ok(out.close())
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn looked_into() {
        check(&[
            ("length", r#"{"a":1,"b":2}"#, "2"),
            ("length", "5", "type_mismatch"),
            ("length", r#"{"$bytes":"ff"}"#, "type_mismatch"),
            ("cardinality", "{}", "type_mismatch"),
            ("cardinality", "[]", "0"),
            ("contains", r#""abc", """#, "true"),
            ("contains", r#""abc", 1"#, "type_mismatch"),
            ("contains", r#"{"a":1}, "a""#, "type_mismatch"),
            ("array_contains", "[null], null", "null"),
            ("array_contains", r#"[[1],{"a":1.0}], {"a":1}"#, "true"),
            ("array_contains", r#""a", "a""#, "type_mismatch"),
            ("array_position", "[], 1", "null"),
            ("array_position", r#"["1",1], 1"#, "2"),
            ("array_first", "5", "type_mismatch"),
            ("array_first", "[null]", "null"),
            ("array_last", "[]", "null"),
            ("array_last", "[1,[2]]", "[2]"),
            ("array_max", "[null]", "null"),
            ("array_max", "[[1]]", "type_mismatch"),
            ("array_max", r#"["a","é"]"#, r#""é""#),
            ("array_min", "[true,false]", "false"),
            ("array_max", r#"[1,"a"]"#, "type_mismatch"),
            ("array_min", "[1e999]", "not_finite"),
            ("array_sum", "[]", "null"),
            ("array_sum", "[null]", "null"),
            ("array_sum", r#"["a"]"#, "type_mismatch"),
            ("array_sum", "[9223372036854775807,1]", "integer_overflow"),
            ("array_sum", "[123456789012345678901]", "integer_overflow"),
            ("array_sum", "[1e308,1e308]", "not_finite"),
            ("array_sum", "[[1]]", "type_mismatch"),
            ("array_median", "[3,1,2]", "2.0"),
            ("array_median", "[4,1,null,2,3]", "2.5"),
            ("array_median", "[]", "null"),
            ("array_median", r#"["a"]"#, "type_mismatch"),
            ("array_median", "[1e308,1.7e308]", "1.35e+308"),
            ("array_stddev", "[1]", "null"),
            ("array_stddev", "[1000000000001,1000000000002,1000000000003]", "1.0"),
            ("array_stddev", "[true,1]", "type_mismatch"),
            ("array_avg", "[1,2]", "1.5"),
            ("array_avg", "[9223372036854775807,1]", "integer_overflow"),
            ("join", r#"[1,null,"b",[2]], "-""#, r#""1-b-[2]""#),
            ("join", r#"{}, "-""#, "type_mismatch"),
            ("join", r#"["a"], 1"#, "type_mismatch"),
        ]);
    }

    #[test]
    fn arrays_made() {
        check(&[
            ("array_append", "[], null", "[null]"),
            ("array_append", "null, 1", "null"),
            ("array_prepend", "[1], null", "[null,1]"),
            ("array_prepend", "null, 1", "null"),
            ("array_append", r#"[], 1, "é""#, r#"[1,"é"]"#),
            ("array_append", "[ ], 1", "[1]"),
            ("array_prepend", r#"[], {"a":1}"#, r#"[{"a":1}]"#),
            ("array_append", "{}, 1", "type_mismatch"),
            ("array_append", r#"[1], {"$bytes":"ff"}"#, r#"[1,{"$bytes":"ff"}]"#),
            ("array_concat", "[], []", "[]"),
            ("array_concat", "[1], {}", "type_mismatch"),
            ("array_slice", "[1,2,3], 0", "bad_argument"),
            ("array_slice", "[1,2,3], 2, -1", "[]"),
            ("array_slice", "[1,2,3], -9, 9", "[1,2,3]"),
            ("array_slice", "[1,2,3], 9223372036854775807", "[]"),
            ("array_slice", "[1,2,3], -9223372036854775808, 1", "[1]"),
            ("array_remove", r#"["a",1,"a"], "a""#, "[1]"),
            ("array_remove", "[], 1", "[]"),
            ("array_reverse", "[]", "[]"),
            ("array_reverse", "[1,[2,3]]", "[[2,3],1]"),
            ("array_sort", "[]", "[]"),
            ("array_sort", "[null]", "[null]"),
            ("array_sort", r#"[2,1,null,1.0], "DESC""#, "[2,1,1.0,null]"),
            ("array_sort", r#"[1], "up""#, "bad_argument"),
            ("array_sort", "[[1]]", "type_mismatch"),
            ("array_sort", r#"[1,"a"]"#, "type_mismatch"),
            ("array_sort", "[true,false]", "[false,true]"),
            ("array_distinct", r#"[null,null,1,"1",1.0,[1],[1.0]]"#, r#"[null,1,"1",[1]]"#),
            ("array_flatten", "[1,[2,[3]],[],{}]", "[1,2,[3],{}]"),
            ("array_flatten", "[]", "[]"),
            ("array_union", "[1,null,[1]], [1.0,null,[1.0],2]", "[1,null,[1],2]"),
            ("array_union", "[1], 1", "type_mismatch"),
            ("array_intersect", "[1,2,2,null], [2.0,null,3]", "[2,null]"),
            ("array_except", r#"[1,2,2,"1"], [2.0]"#, r#"[1,"1"]"#),
            ("array_except", "[], []", "[]"),
            ("array_except", "[1], {}", "type_mismatch"),
            ("sequence", "1, 1", "[1]"),
            ("sequence", "3, 1", "[3,2,1]"),
            ("sequence", "1, 2, 0", "bad_argument"),
            ("sequence", "1, 3, -1", "[]"),
            (
                "sequence",
                "9223372036854775806, 9223372036854775807",
                "[9223372036854775806,9223372036854775807]",
            ),
            ("sequence", "-9223372036854775808, 9223372036854775807", "bad_argument"),
            ("sequence", "1, 2.0", "type_mismatch"),
        ]);
    }

    #[test]
    fn nothing_is_made_that_is_too_large() {
        let long = format!("[{}]", vec!["1"; 500_000].join(","));
        check(&[
            ("array_concat", &format!("{long}, {long}"), "bad_argument"),
            ("array_sort", &long, "bad_argument"),
            ("array_reverse", &long, "bad_argument"),
            ("array_distinct", &long, "[1]"),
            ("array_sum", &long, "500000"),
        ]);
        // All comparisons with each other would take minutes.
        let many: Vec<String> = (0..40_000).map(|n| format!("{{\"a\":{n}}}")).collect();
        let many = format!("[{}]", many.join(","));
        check(&[
            ("array_distinct", &many, &many),
            ("array_position", &format!("{many}, {{\"a\":39999}}"), "40000"),
            ("array_remove", &format!("{many}, {{\"b\":{many}}}"), &many),
        ]);
    }
}
