//! Text: its parts, what is in it, how it is put together.

use super::*;

pub(super) const FUNCTIONS: &[Function] = &[
    strict("ascii", 1, 1, ascii),
    strict("btrim", 1, 2, trim),
    strict("char_length", 1, 1, char_length),
    strict("chr", 1, 1, chr),
    lenient("concat", 1, MANY, concat),
    lenient("concat_ws", 2, MANY, concat_ws),
    strict("ends_with", 2, 2, |args, _| two(args, |text, part| text.ends_with(part))),
    strict("format", 1, MANY, print::format),
    strict("initcap", 1, 1, initcap),
    strict("left", 2, 2, left),
    strict("lower", 1, 1, |args, around| cased(args, around, str::to_lowercase)),
    strict("lpad", 2, 3, |args, around| pad(args, around, true)),
    strict("ltrim", 1, 2, ltrim),
    strict("octet_length", 1, 1, |args, _| count_value(bytes_of(arg(args, 0))?.len())),
    strict("position", 2, 2, strpos),
    strict("repeat", 2, 2, repeat),
    strict("replace", 3, 3, replace),
    strict("reverse", 1, 1, reverse),
    strict("right", 2, 2, right),
    strict("rpad", 2, 3, |args, around| pad(args, around, false)),
    strict("rtrim", 1, 2, rtrim),
    strict("split", 2, 2, split),
    strict("split_part", 3, 3, split_part),
    strict("starts_with", 2, 2, |args, _| two(args, |text, part| text.starts_with(part))),
    strict("strpos", 2, 2, strpos),
    strict("substr", 2, 3, substr),
    strict("substring", 2, 3, substr),
    strict("translate", 3, 3, translate),
    strict("trim", 1, 2, trim),
    strict("upper", 1, 1, |args, around| cased(args, around, str::to_uppercase)),
];

/// Whether two texts are so to each other.
fn two<'a>(args: &[Value<'a>], so: fn(&str, &str) -> bool) -> Given<'a> {
    Ok(Value::Bool(so(text_of(arg(args, 0))?, text_of(arg(args, 1))?)))
}

// === characters ===

fn char_length<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    count_value(text_of(arg(args, 0))?.chars().count())
}

fn ascii<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let first = text_of(arg(args, 0))?.chars().next().ok_or(TypeError::BadArgument)?;
    Ok(Value::Int(i64::from(u32::from(first))))
}

fn chr<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let code = u32::try_from(int_of(arg(args, 0))?).ok().and_then(char::from_u32);
    code.map(owned).ok_or(TypeError::BadArgument)
}

/// `to_lowercase` or its opposite, which make at most three bytes of one.
fn cased<'a>(args: &[Value<'a>], around: &Surroundings, case: fn(&str) -> String) -> Given<'a> {
    let text = text_of(arg(args, 0))?;
    within(text.len(), around)?;
    let text = case(text);
    within(text.len(), around)?;
    Ok(owned(text))
}

fn initcap<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = text_of(arg(args, 0))?;
    within(text.len(), around)?;
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphanumeric();
    }
    within(out.len(), around)?;
    Ok(owned(out))
}

fn reverse<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = text_of(arg(args, 0))?;
    within(text.len(), around)?;
    Ok(owned(text.chars().rev().collect::<String>()))
}

// === parts ===

/// The byte at which so many characters end, or all of them.
pub(super) fn byte_at(text: &str, chars: usize) -> usize {
    text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
}

fn substr<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let start = int_of(arg(args, 1))?;
    let count = match args.get(2) {
        None => usize::MAX,
        Some(count) => usize::try_from(int_of(count)?).map_err(|_| TypeError::BadArgument)?,
    };
    let text = text_of(arg(args, 0))?;
    // Only a place from the end needs the whole text.
    let chars = if start < 0 { text.chars().count() } else { text.len() };
    let chars = span_of(chars, start, count)?;
    let from = byte_at(text, chars.start);
    let to = from + byte_at(text.get(from..).unwrap_or(""), chars.end.saturating_sub(chars.start));
    part_of(take(args, 0), from..to)
}

/// A negative number: all but so many at the other end.
fn left<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, count) = (text_of(arg(args, 0))?, int_of(arg(args, 1))?);
    let size = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    let end = if count >= 0 { byte_at(text, size) } else { byte_from_end(text, size) };
    part_of(take(args, 0), 0..end)
}

fn right<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, count) = (text_of(arg(args, 0))?, int_of(arg(args, 1))?);
    let size = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    let start = if count >= 0 { byte_from_end(text, size) } else { byte_at(text, size) };
    let end = text.len();
    part_of(take(args, 0), start..end)
}

/// The byte at which the last so many characters begin, or all of them.
fn byte_from_end(text: &str, chars: usize) -> usize {
    match chars.checked_sub(1) {
        None => text.len(),
        Some(before) => text.char_indices().rev().nth(before).map_or(0, |(at, _)| at),
    }
}

/// What is taken off the ends: white space, or the characters that have been given.
fn trimmed<'a>(args: &mut [Value<'a>], start: bool, end: bool) -> Given<'a> {
    let (text, chars) = (text_of(arg(args, 0))?, args.get(1).map(text_of).transpose()?);
    let off = |c: char| chars.map_or_else(|| c.is_whitespace(), |chars| chars.contains(c));
    let kept = if start { text.trim_start_matches(off) } else { text };
    let from = text.len() - kept.len();
    let to = from + if end { kept.trim_end_matches(off).len() } else { kept.len() };
    part_of(take(args, 0), from..to)
}

fn trim<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    trimmed(args, true, true)
}

fn ltrim<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    trimmed(args, true, false)
}

fn rtrim<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    trimmed(args, false, true)
}

/// A separator; an empty one stands nowhere or everywhere.
fn separator<'v>(value: &'v Value<'_>) -> Result<&'v str, TypeError> {
    text_of(value).and_then(|text| if text.is_empty() { Err(TypeError::BadArgument) } else { Ok(text) })
}

fn split<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, by) = (text_of(arg(args, 0))?, separator(arg(args, 1))?);
    let mut out = Json::open(b'[', around);
    text.split(by).try_for_each(|part| out.text(part))?;
    Ok(out.close())
}

fn split_part<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, by, nth) = (text_of(arg(args, 0))?, separator(arg(args, 1))?, int_of(arg(args, 2))?);
    let skip = usize::try_from(nth.unsigned_abs()).unwrap_or(usize::MAX);
    let skip = skip.checked_sub(1).ok_or(TypeError::BadArgument)?;
    let mut bounds = (0, text.len());
    if nth > 0 {
        let mut ends = text.match_indices(by).map(|(at, _)| at);
        if skip > 0 {
            match ends.nth(skip - 1) {
                Some(before) => bounds.0 = before + by.len(),
                None => return Ok(Value::Text(Cow::Borrowed(""))),
            }
        }
        bounds.1 = ends.next().unwrap_or(text.len());
    } else {
        let mut starts = text.rmatch_indices(by).map(|(at, _)| at);
        if skip > 0 {
            match starts.nth(skip - 1) {
                Some(behind) => bounds.1 = behind,
                None => return Ok(Value::Text(Cow::Borrowed(""))),
            }
        }
        bounds.0 = starts.next().map_or(0, |at| at + by.len());
    }
    part_of(take(args, 0), bounds.0..bounds.1)
}

// === what is in it ===

fn strpos<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, part) = (text_of(arg(args, 0))?, text_of(arg(args, 1))?);
    match text.find(part) {
        Some(at) => count_value(text.get(..at).unwrap_or("").chars().count() + 1),
        None => Ok(Value::Int(0)),
    }
}

// === put together ===

/// The length of a text that is made of parts, if it may be made.
fn sized<'p>(parts: impl Iterator<Item = &'p str>, around: &Surroundings) -> Result<usize, TypeError> {
    let size = parts.fold(0_usize, |size, part| size.saturating_add(part.len()));
    within(size, around).map(|()| size)
}

/// Appends a value as text, bounded; bytes are none.
pub(super) fn append(value: &Value<'_>, out: &mut Vec<u8>, around: &Surroundings) -> Result<(), TypeError> {
    match value {
        Value::Bytes(_) => return Err(TypeError::TypeMismatch),
        Value::Text(text) | Value::Json(text) | Value::Big(text) => {
            within(out.len().saturating_add(text.len()), around)?;
        }
        _ => within(out.len().saturating_add(32), around)?,
    }
    value.write_text(out);
    Ok(())
}

/// Bytes that are text.
pub(super) fn made<'a>(bytes: Vec<u8>) -> Given<'a> {
    String::from_utf8(bytes).map(owned).map_err(|_| TypeError::TypeMismatch)
}

fn concat<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = Vec::new();
    args.iter().try_for_each(|arg| append(arg, &mut out, around))?;
    made(out)
}

fn concat_ws<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some((by, parts)) = args.split_first() else { return Ok(Value::Null) };
    if matches!(by, Value::Null) {
        return Ok(Value::Null);
    }
    joined(parts.iter().map(|part| Ok(part.share())), text_of(by)?, around)
}

/// Values as text with a separator between them; NULLs are left out.
pub(super) fn joined<'a, 'v>(
    values: impl Iterator<Item = Result<Value<'v>, TypeError>>,
    by: &str,
    around: &Surroundings,
) -> Given<'a> {
    let mut out = Vec::new();
    let mut first = true;
    for value in values {
        let value = value?;
        if matches!(value, Value::Null) {
            continue;
        }
        if !std::mem::take(&mut first) {
            within(out.len().saturating_add(by.len()), around)?;
            out.extend_from_slice(by.as_bytes());
        }
        append(&value, &mut out, around)?;
    }
    made(out)
}

fn repeat<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, count) = (text_of(arg(args, 0))?, count_of(arg(args, 1))?);
    within(text.len().saturating_mul(count), around)?;
    Ok(owned(text.repeat(if text.is_empty() { 0 } else { count })))
}

fn replace<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, from, to) = (text_of(arg(args, 0))?, text_of(arg(args, 1))?, text_of(arg(args, 2))?);
    if from.is_empty() || !text.contains(from) {
        return Ok(take(args, 0));
    }
    let found = text.matches(from).count();
    let size = (text.len() - found * from.len()).saturating_add(found.saturating_mul(to.len()));
    within(size, around)?;
    Ok(owned(text.replace(from, to)))
}

/// Each character of the second text becomes the one in its place in the third; without one there it goes.
fn translate<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, from, to) = (text_of(arg(args, 0))?, text_of(arg(args, 1))?, text_of(arg(args, 2))?);
    // Each character of the text is looked for among those.
    if from.len() > 256 {
        return Err(TypeError::BadArgument);
    }
    within(text.len(), around)?;
    let becomes = |c: char| match from.chars().position(|from| from == c) {
        Some(place) => to.chars().nth(place),
        None => Some(c),
    };
    let out: String = text.chars().filter_map(becomes).collect();
    within(out.len(), around)?;
    Ok(owned(out))
}

/// As PostgreSQL's: what is longer is cut at its end.
fn pad<'a>(args: &mut [Value<'a>], around: &Surroundings, before: bool) -> Given<'a> {
    let (text, length, with) = (text_of(arg(args, 0))?, count_of(arg(args, 1))?, text_or(args, 2, " ")?);
    let missing = length.saturating_sub(text.chars().count());
    if missing == 0 || with.is_empty() {
        let end = byte_at(text, length);
        return part_of(take(args, 0), 0..end);
    }
    within(missing.saturating_add(text.len()), around)?;
    let fill: String = with.chars().cycle().take(missing).collect();
    let parts = if before { [&*fill, text] } else { [text, &*fill] };
    sized(parts.into_iter(), around)?;
    Ok(owned(parts.concat()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn characters() {
        check(&[
            ("char_length", r#""é""#, "2"),
            ("char_length", "null", "null"),
            ("char_length", "5", "type_mismatch"),
            ("char_length", r#"{"$bytes":"ff"}"#, "type_mismatch"),
            ("ascii", r#""""#, "bad_argument"),
            ("ascii", r#""€""#, "8364"),
            ("chr", "-1", "bad_argument"),
            ("chr", "1114112", "bad_argument"),
            ("chr", "128512", r#""😀""#),
            ("chr", r#""a""#, "type_mismatch"),
            ("lower", r#""""#, r#""""#),
            ("upper", "null", "null"),
            ("upper", "true", "type_mismatch"),
            ("initcap", r#""élan d'un OISEAU""#, r#""Élan D'Un Oiseau""#),
            ("initcap", r#""""#, r#""""#),
            ("reverse", r#""""#, r#""""#),
            ("octet_length", "[]", "type_mismatch"),
            ("octet_length", r#""""#, "0"),
        ]);
    }

    #[test]
    fn parts() {
        check(&[
            ("substr", r#""héllo", 2, 3"#, r#""éll""#),
            ("substr", r#""abc", 0"#, "bad_argument"),
            ("substr", r#""abc", -9, 2"#, r#""ab""#),
            ("substr", r#""abc", 2, -1"#, "bad_argument"),
            ("substr", r#""abc", -9223372036854775808"#, r#""abc""#),
            ("substr", r#""abc", 9223372036854775807, 9223372036854775807"#, r#""""#),
            ("substr", r#""abc", "1""#, "type_mismatch"),
            ("substr", r#""abc", 1, null"#, "null"),
            ("left", r#""héllo", 2"#, r#""hé""#),
            ("left", r#""abc", 0"#, r#""""#),
            ("left", r#""abc", -5"#, r#""""#),
            ("left", r#""", 3"#, r#""""#),
            ("left", r#""abc", 9223372036854775807"#, r#""abc""#),
            ("left", r#""abc", -9223372036854775808"#, r#""""#),
            ("right", r#""héllo", 4"#, r#""éllo""#),
            ("right", r#""abc", 0"#, r#""""#),
            ("right", r#""abc", -1"#, r#""bc""#),
            ("right", r#""abc", -9"#, r#""""#),
            ("right", r#""abc", 9"#, r#""abc""#),
            ("trim", r#""  a \n""#, r#""a""#),
            ("trim", r#""xyaxy", "yx""#, r#""a""#),
            ("trim", r#""aaa", "a""#, r#""""#),
            ("trim", r#"" a ", """#, r#"" a ""#),
            ("ltrim", r#""aab", "a""#, r#""b""#),
            ("rtrim", r#""baa", "a""#, r#""b""#),
            ("trim", "1", "type_mismatch"),
            ("split", r#""a", ",""#, r#"["a"]"#),
            ("split", r#""a\"b;c", ";""#, r#"["a\"b","c"]"#),
            ("split", r#"",", ",""#, r#"["",""]"#),
            ("split", r#"null, ",""#, "null"),
            ("split_part", r#""a,b,c", ",", 1"#, r#""a""#),
            ("split_part", r#""a,b,c", ",", -3"#, r#""a""#),
            ("split_part", r#""a,b,c", ",", -4"#, r#""""#),
            ("split_part", r#""a,b,c", ",", 0"#, "bad_argument"),
            ("split_part", r#""", ",", 1"#, r#""""#),
            ("split_part", r#""aXXbXX", "XX", -1"#, r#""""#),
            ("split_part", r#""a", "", 1"#, "bad_argument"),
            ("split_part", r#""a,b", ",", -9223372036854775808"#, r#""""#),
        ]);
    }

    #[test]
    fn what_is_in_it() {
        check(&[
            ("strpos", r#""héllo", "l""#, "3"),
            ("strpos", r#""a", """#, "1"),
            ("strpos", r#""", "a""#, "0"),
            ("position", r#""abc", "bc""#, "2"),
            ("starts_with", r#""a", """#, "true"),
            ("starts_with", r#""", "a""#, "false"),
            ("ends_with", r#""aé", "é""#, "true"),
            ("ends_with", r#"1, "1""#, "type_mismatch"),
            ("starts_with", r#"null, "a""#, "null"),
        ]);
    }

    #[test]
    fn put_together() {
        check(&[
            ("concat", "null", r#""""#),
            ("concat", r#"1, null, 2.5, [1], {"a":"b"}, false"#, r#""12.5[1]{\"a\":\"b\"}false""#),
            ("concat", r#"{"$bytes":"ff"}"#, "type_mismatch"),
            ("concat", "123456789012345678901", r#""123456789012345678901""#),
            ("concat_ws", r#"",", null, null"#, r#""""#),
            ("concat_ws", r#""", 1, 2"#, r#""12""#),
            ("concat_ws", r#"1, "a""#, "type_mismatch"),
            ("repeat", r#""ab", 0"#, r#""""#),
            ("repeat", r#""ab", 9223372036854775807"#, "bad_argument"),
            ("repeat", r#""", 9223372036854775807"#, r#""""#),
            ("repeat", r#""ab", 1.0"#, "type_mismatch"),
            ("replace", r#""aaa", "a", """#, r#""""#),
            ("replace", r#""abc", "", "x""#, r#""abc""#),
            ("replace", r#""abc", "x", "y""#, r#""abc""#),
            ("translate", r#""aébé", "éb", "E""#, r#""aEE""#),
            ("translate", r#""abc", "", "x""#, r#""abc""#),
            ("translate", r#""abc", "aa", "xy""#, r#""xbc""#),
            ("lpad", r#""abc", 5, "12""#, r#""12abc""#),
            ("lpad", r#""abc", 6, "12""#, r#""121abc""#),
            ("lpad", r#""abc", -1"#, r#""""#),
            ("lpad", r#""abc", 5, """#, r#""abc""#),
            ("lpad", r#""é", 3, "ü""#, r#""üüé""#),
            ("rpad", r#""abc", 4"#, r#""abc ""#),
            ("rpad", r#""abc", 2"#, r#""ab""#),
            ("rpad", r#""abc", 9223372036854775807"#, "bad_argument"),
            ("lpad", r#""abc", 1048577"#, "bad_argument"),
        ]);
    }

    #[test]
    fn nothing_is_made_that_is_too_large() {
        let long = format!("\"{}\"", "a,".repeat(500_000));
        for (name, rest) in [
            ("split", ", \",\""),
            ("replace", ", \",\", \"xxx\""),
            ("repeat", ", 2"),
            ("concat", ", \"a,\", \"{}\""),
            ("lpad", ", 1048577"),
        ] {
            let rest = rest.replace("{}", &"b".repeat(100_000));
            check(&[(name, &format!("{long}{rest}"), "bad_argument")]);
        }
    }
}
