//! Text matched: regular expressions, topic filters.

use super::pattern::{self, Part};
use super::*;
use crate::check::filter_matches;

pub(super) const FUNCTIONS: &[Function] = &[
    strict("regexp_count", 2, 3, regexp_count),
    strict("regexp_like", 2, 3, regexp_like),
    strict("regexp_matches", 2, 3, regexp_matches),
    strict("regexp_replace", 3, 4, regexp_replace),
    strict("regexp_split", 2, 3, regexp_split),
    strict("regexp_substr", 2, 3, regexp_substr),
    strict("topic_matches", 2, 2, topic_matches),
];

fn topic_matches<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (topic, filter) = (text_of(arg(args, 0))?, text_of(arg(args, 1))?);
    if is_filter(filter) {
        Ok(Value::Bool(filter_matches(filter, topic)))
    } else {
        Err(TypeError::BadArgument)
    }
}

/// MQTT 5.0 section 4.7.1: wildcards are whole levels, `#` the last.
pub(super) fn is_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        if !matches!(level, "+") && level.contains(['+', '#']) && !(level == "#" && is_last) {
            return false;
        }
    }
    !filter.is_empty()
}

// === regular expressions ===

/// The pattern that is the argument `index`, with the flags behind it: i, m, s, x as in Perl; g, which PostgreSQL has, changes nothing.
fn regex(
    args: &[Value<'_>],
    index: usize,
    flags: usize,
) -> Result<std::rc::Rc<fancy_regex::Regex>, TypeError> {
    let (regex, flags) = (text_of(arg(args, index))?, text_or(args, flags, "")?);
    if flags.len() > 8 || flags.contains(|c| !"gimsx".contains(c)) {
        return Err(TypeError::BadArgument);
    }
    let flags = flags.replace('g', "");
    if flags.is_empty() { pattern::compiled(regex) } else { pattern::compiled(&format!("(?{flags}){regex}")) }
}

/// A pattern that had to go back too often.
fn endless(_: fancy_regex::Error) -> TypeError {
    TypeError::BadArgument
}

fn regexp_like<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    regex(args, 1, 2)?.is_match(text_of(arg(args, 0))?).map(Value::Bool).map_err(endless)
}

fn regexp_count<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let regex = regex(args, 1, 2)?;
    let mut count = 0;
    for found in regex.find_iter(text_of(arg(args, 0))?) {
        found.map_err(endless)?;
        count += 1;
    }
    count_value(count)
}

fn regexp_substr<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let group = usize::try_from(int_or(args, 2, 0)?).map_err(|_| TypeError::BadArgument)?;
    let regex = regex(args, 1, usize::MAX)?;
    let found = regex.captures(text_of(arg(args, 0))?).map_err(endless)?;
    let Some(found) = found else { return Ok(Value::Null) };
    if group >= found.len() {
        return Err(TypeError::BadArgument);
    }
    let range = found.get(group).map(|part| part.range());
    range.map_or(Ok(Value::Null), |range| part_of(take(args, 0), range))
}

/// The groups of the first match, or without groups the match.
fn regexp_matches<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let regex = regex(args, 1, 2)?;
    let found = regex.captures(text_of(arg(args, 0))?).map_err(endless)?;
    let Some(found) = found else { return Ok(Value::Null) };
    let mut out = Json::open(b'[', around);
    for group in found.iter().skip(usize::from(found.len() > 1)) {
        match group {
            Some(part) => out.text(part.as_str())?,
            None => out.raw("null")?,
        }
    }
    Ok(out.close())
}

/// In what takes the place of a match `\1` is its first group, `\&` the whole, `\\` a backslash.
fn regexp_replace<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, with) = (text_of(arg(args, 0))?, text_of(arg(args, 2))?);
    let parts = pattern::replacement(with, |c, next| match (c, next) {
        ('\\', Some(digit @ '0'..='9')) => Some((Part::group(digit), 2)),
        ('\\', Some('&')) => Some((Part::Group(0), 2)),
        ('\\', Some('\\')) => Some((Part::Literal('\\'), 2)),
        _ => None,
    });
    pattern::replace(text, &*regex(args, 1, 3)?, &parts, around).map(owned)
}

fn regexp_split<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, regex) = (text_of(arg(args, 0))?, regex(args, 1, 2)?);
    let mut out = Json::open(b'[', around);
    for part in regex.split(text) {
        out.text(part.map_err(endless)?)?;
    }
    Ok(out.close())
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn regular_expressions() {
        check(&[
            ("regexp_like", r#""", """#, "true"),
            ("regexp_like", r#""a\nb", "^b$", "m""#, "true"),
            ("regexp_like", r#""a", "A""#, "false"),
            ("regexp_like", r#""a", "A", "gi""#, "true"),
            ("regexp_like", r#""a", "a", "q""#, "bad_argument"),
            ("regexp_like", r#""a", "(""#, "bad_argument"),
            ("regexp_like", r#"5, "5""#, "type_mismatch"),
            ("regexp_like", r#""a", null"#, "null"),
            ("regexp_like", r#""foobar", "foo(?=bar)""#, "true"),
            (
                "regexp_like",
                r#""aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "^(?=a)(a|aa)+\\1$""#,
                "bad_argument",
            ),
            ("regexp_count", r#""aXbX", "x", "i""#, "2"),
            ("regexp_count", r#""ab", """#, "3"),
            ("regexp_substr", r#""a1b2", "[0-9]""#, r#""1""#),
            ("regexp_substr", r#""a1", "([a-z])([0-9])(x)?", 3"#, "null"),
            ("regexp_substr", r#""a1", "[0-9]", 1"#, "bad_argument"),
            ("regexp_substr", r#""a1", "[0-9]", -1"#, "bad_argument"),
            ("regexp_substr", r#""ab", "x", 1"#, "null"),
            ("regexp_matches", r#""a1", "([a-z])([0-9])(x)?""#, r#"["a","1",null]"#),
            ("regexp_replace", r#""abc", "(b)", "[\\&\\1\\\\$1]""#, r#""a[bb\\$1]c""#),
            ("regexp_replace", r#""abc", "", "-""#, r#""-a-b-c-""#),
            ("regexp_replace", r#""ABC", "b", "x", "i""#, r#""AxC""#),
            ("regexp_replace", r#""abc", "b", "\\9""#, r#""ac""#),
            ("regexp_split", r#""a1b", "[0-9]""#, r#"["a","b"]"#),
            ("regexp_split", r#""", ",""#, r#"[""]"#),
        ]);
    }

    #[test]
    fn topics() {
        check(&[
            ("topic_matches", r#""a/b", "a/b""#, "true"),
            ("topic_matches", r#""a/b/c", "a/+""#, "false"),
            ("topic_matches", r#""a", "a/#""#, "true"),
            ("topic_matches", r#""", """#, "bad_argument"),
            ("topic_matches", r#""a", "b/#/a""#, "bad_argument"),
            ("topic_matches", r#""$SYS/a", "$SYS/#""#, "true"),
            ("topic_matches", r#""a/b", "+/+/#""#, "true"),
            ("topic_matches", r#""a", 1"#, "type_mismatch"),
        ]);
    }
}
