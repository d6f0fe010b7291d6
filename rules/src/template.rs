//! `${...}` in targets, keys, payloads and options of sinks.
//!
//! ```text
//! template = { text | "${" "$" "}" | "${" "." "}" | "${" path "}" }
//! path     = name { "." (name | "'" text "'") | "[" int "]" }
//! ```
//! `${$}` is a dollar sign, `${.}` the whole row. A `$` that no `{` follows is text. In EMQX's dialect so is what is no
//! placeholder; all else is a mistake in the default one.

use crate::sql::ast::Access;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    /// `${.}`
    Row,
    Path {
        root: String,
        steps: Vec<Access>,
    },
}

/// Reads a template.
///
/// # Errors
/// What is wrong, as a sentence without a place.
pub(crate) fn parse(text: &str) -> Result<Vec<Piece>, String> {
    pieces(text, false)
}

/// Reads a template of EMQX's dialect, where what is no placeholder is text: `${a b}`, `${a`.
pub(crate) fn parse_lenient(text: &str) -> Vec<Piece> {
    pieces(text, true).unwrap_or_default()
}

fn pieces(text: &str, lenient: bool) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        plain.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let close = inner.find('}').ok_or_else(|| "`${` has no closing `}`".to_owned());
        let piece = close.and_then(|close| {
            let piece = match &inner[..close] {
                "$" => Piece::Text("$".to_owned()),
                "." | "" => Piece::Row,
                path => path_piece(path)?,
            };
            Ok((piece, &inner[close + 1..]))
        });
        match piece {
            Ok((Piece::Text(dollar), behind)) => {
                plain.push_str(&dollar);
                rest = behind;
            }
            Ok((piece, behind)) => {
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.push(piece);
                rest = behind;
            }
            // A placeholder may begin behind it.
            Err(_) if lenient => {
                plain.push_str("${");
                rest = inner;
            }
            Err(problem) => return Err(problem),
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

fn path_piece(path: &str) -> Result<Piece, String> {
    let bad = || format!("`${{{path}}}` is no path; expected `${{name}}`, `${{a.b}}` or `${{a[1]}}`");
    // EMQX also writes `${.a}`.
    let mut rest = path.strip_prefix('.').unwrap_or(path);
    let root = word(&mut rest).ok_or_else(bad)?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            let key = if let Some(after) = rest.strip_prefix('\'') {
                let end = after.find('\'').ok_or_else(bad)?;
                rest = &after[end + 1..];
                after[..end].to_owned()
            } else {
                word(&mut rest).ok_or_else(bad)?
            };
            steps.push(Access::Key(key));
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = after.find(']').ok_or_else(bad)?;
            let index = after[..end].trim().parse().ok().filter(|&n: &i64| n != 0).ok_or_else(|| {
                format!("`[{}]` in `${{{path}}}` is no index; arrays count from 1", &after[..end])
            })?;
            steps.push(Access::Index(index));
            rest = &after[end + 1..];
        } else {
            return Err(bad());
        }
    }
    Ok(Piece::Path { root, steps })
}

/// Takes a name off the front.
fn word(rest: &mut &str) -> Option<String> {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || "_-$@".contains(c))).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    (!word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_and_says_what_is_wrong() {
        let key = |s: &str| Access::Key(s.to_owned());
        let path = |root: &str, steps: Vec<Access>| Piece::Path { root: root.to_owned(), steps };
        let text = |s: &str| Piece::Text(s.to_owned());
        let cases = [
            ("a/${b}/c", Ok(vec![text("a/"), path("b", vec![]), text("/c")])),
            ("${topic[2]}", Ok(vec![path("topic", vec![Access::Index(2)])])),
            ("${a.'b c'.d[-1]}", Ok(vec![path("a", vec![key("b c"), key("d"), Access::Index(-1)])])),
            ("$5 ${$}{x} ${.}", Ok(vec![text("$5 ${x} "), Piece::Row])),
            ("", Ok(vec![])),
            ("${a", Err("`${` has no closing `}`")),
            ("${a b}", Err("`${a b}` is no path; expected `${name}`, `${a.b}` or `${a[1]}`")),
            ("${a[0]}", Err("`[0]` in `${a[0]}` is no index; arrays count from 1")),
        ];
        for (template, expected) in cases {
            if let Ok(expected) = &expected {
                assert_eq!(parse_lenient(template), *expected, "{template}");
            }
            assert_eq!(parse(template), expected.map_err(str::to_owned), "{template}");
        }
    }

    /// What EMQX's own tests say of incomplete placeholders, and the like.
    #[test]
    fn what_is_no_placeholder_is_text_in_emqx() {
        let path = |root: &str| Piece::Path { root: root.to_owned(), steps: Vec::new() };
        let text = |s: &str| Piece::Text(s.to_owned());
        let cases = [
            ("a:$a,b:b},c:{c},d:${d", vec![text("a:$a,b:b},c:{c},d:${d")]),
            (
                "a:${a},b:${$}{b},c:${$}{${c}},lit:${$}{$}",
                vec![text("a:"), path("a"), text(",b:${b},c:${"), path("c"), text("},lit:${$}")],
            ),
            ("${a b}", vec![text("${a b}")]),
            ("${ a ${b}}", vec![text("${ a "), path("b"), text("}")]),
            ("${a[0]}${}", vec![text("${a[0]}"), Piece::Row]),
        ];
        for (template, expected) in cases {
            assert_eq!(parse_lenient(template), expected, "{template}");
        }
    }
}
