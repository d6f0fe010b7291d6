//! Reads HOCON as EMQX and NanoMQ write it, into JSON values.
//!
//! ```text
//! file    = [ "{" ] { member } [ "}" ]
//! member  = key [ "=" | ":" | "+=" ] value        -- the sign may be left out before `{`
//! key     = part { "." part }                     -- "a.b" in quotes is one part
//! value   = piece { piece }                       -- on one line; objects are merged, text is joined
//! piece   = object | array | "text" | """text""" | """~text~""" | bare words
//! ```
//! Members and elements are parted by commas or line ends; `#` and `//` begin comments. A later member of the same name
//! is merged into an earlier object, or takes its place.
//!
//! Not the `hocon` crate: it follows `include`s to files and URLs, knows neither EMQX's `"""~` (which takes the indentation
//! away) nor its escapes inside `"""`, and recurses without a bound. What is not done here, deliberately: no file is
//! included (its name is given back, so that it can be told), `${x}` outside of quotes stays text: in these files it is
//! a template.
//!
//! Bounds: [`MAX_DEPTH`] levels; the length is the caller's to bound.

use serde_json::{Map, Value};

/// The deepest nesting that is read; exports have eight.
const MAX_DEPTH: u16 = 64;

/// What cannot be read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HoconError {
    /// From 1.
    pub(super) line: usize,
    pub(super) message: &'static str,
}

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Document {
    pub(super) root: Map<String, Value>,
    /// What `include` names; none of it was read.
    pub(super) includes: Vec<String>,
}

/// Reads a file.
///
/// # Errors
/// The first place that is no HOCON.
pub(super) fn parse(text: &str) -> Result<Document, HoconError> {
    let mut reader = Reader { text, at: 0, includes: Vec::new() };
    reader.skip_all();
    let braced = reader.eat('{');
    let root = reader.members(0, braced)?;
    reader.skip_all();
    if reader.peek().is_some() {
        return Err(reader.error("expected the end of the file"));
    }
    Ok(Document { root, includes: reader.includes })
}

/// Puts `value` into `into` as a later member does.
pub(super) fn merge(into: &mut Value, value: Value) {
    match (into, value) {
        // Bounded by the depth of what was read.
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                match into.get_mut(&key) {
                    Some(there) => merge(there, value),
                    None => drop(into.insert(key, value)),
                }
            }
        }
        (into, value) => *into = value,
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    includes: Vec<String>,
}

impl<'t> Reader<'t> {
    fn error(&self, message: &'static str) -> HoconError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        HoconError { line: before.bytes().filter(|&b| b == b'\n').count() + 1, message }
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn eat_text(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.at += wanted.len();
        }
        found
    }

    /// Takes what is before the first character that `ends` names.
    fn take_until(&mut self, ends: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(ends).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or("")
    }

    fn at_comment(&self) -> bool {
        self.rest().starts_with('#') || self.rest().starts_with("//")
    }

    /// White space, not line ends, and a comment up to one.
    fn skip_line(&mut self) {
        self.take_until(|c| c == '\n' || !(c.is_whitespace() || c == '\u{feff}'));
        if self.at_comment() {
            self.take_until(|c| c == '\n');
        }
    }

    /// White space, comments, line ends.
    fn skip_all(&mut self) {
        loop {
            self.skip_line();
            if !self.eat('\n') {
                return;
            }
        }
    }

    /// What parts members and elements.
    fn skip_separator(&mut self) {
        self.skip_all();
        if self.eat(',') {
            self.skip_all();
        }
    }

    fn members(&mut self, depth: u16, braced: bool) -> Result<Map<String, Value>, HoconError> {
        if depth >= MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let mut members = Value::Object(Map::new());
        loop {
            self.skip_separator();
            match self.peek() {
                None if !braced => break,
                None => return Err(self.error("a `{` has no closing `}`")),
                Some('}') if braced => {
                    self.at += 1;
                    break;
                }
                Some(_) => self.member(depth, &mut members)?,
            }
        }
        match members {
            Value::Object(members) => Ok(members),
            _ => Ok(Map::new()),
        }
    }

    fn member(&mut self, depth: u16, into: &mut Value) -> Result<(), HoconError> {
        let path = self.key()?;
        self.skip_all();
        if let [word] = path.as_slice()
            && word == "include"
            && !matches!(self.peek(), Some('=' | ':' | '{' | '+'))
        {
            let name = self.take_until(|c| c == '\n').trim();
            self.includes.push(name.trim_matches(['"', '(', ')']).to_owned());
            return Ok(());
        }
        let appends = self.eat_text("+=");
        if !appends && !self.eat('=') && !self.eat(':') && self.peek() != Some('{') {
            return Err(self.error("expected `=` and a value after this name"));
        }
        self.skip_all();
        let value = self.value(depth.saturating_add(u16::try_from(path.len()).unwrap_or(MAX_DEPTH)))?;
        let mut place = into;
        for part in path {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(members) = place else { return Ok(()) };
            place = members.entry(part).or_insert(Value::Null);
        }
        match place {
            Value::Array(items) if appends => items.push(value),
            place if appends => *place = Value::Array(vec![value]),
            place => merge(place, value),
        }
        Ok(())
    }

    fn key(&mut self) -> Result<Vec<String>, HoconError> {
        let mut path = Vec::new();
        loop {
            let part = if self.peek() == Some('"') {
                self.quoted()?
            } else {
                let part = self.take_until(|c| ".=:{}[],+\"#\n".contains(c) || c.is_whitespace());
                part.to_owned()
            };
            if part.is_empty() {
                return Err(self.error("expected a name"));
            }
            path.push(part);
            if !self.eat('.') {
                return Ok(path);
            }
        }
    }

    fn value(&mut self, depth: u16) -> Result<Value, HoconError> {
        if depth >= MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let mut whole: Option<Value> = None;
        let mut space = "";
        loop {
            let (piece, quoted) = match self.peek() {
                None | Some('\n' | ',' | '}' | ']') => break,
                Some(_) if self.at_comment() => break,
                Some('{') => {
                    self.at += 1;
                    (Value::Object(self.members(depth, true)?), true)
                }
                Some('[') => {
                    self.at += 1;
                    (Value::Array(self.elements(depth)?), true)
                }
                Some('"') => (Value::String(self.quoted()?), true),
                Some(_) => (Value::String(self.bare().to_owned()), false),
            };
            whole = Some(match (whole, piece) {
                (None, Value::String(bare)) if !quoted => scalar(bare),
                (None, piece) => piece,
                (Some(mut there @ Value::Object(_)), piece @ Value::Object(_)) => {
                    merge(&mut there, piece);
                    there
                }
                (Some(Value::Array(mut there)), Value::Array(more)) => {
                    there.extend(more);
                    Value::Array(there)
                }
                (Some(there), Value::String(more)) if !there.is_object() && !there.is_array() => {
                    Value::String(format!("{}{space}{more}", text_of(&there)))
                }
                _ => return Err(self.error("text, objects and arrays cannot be joined")),
            });
            let before = self.at;
            self.take_until(|c| c == '\n' || !c.is_whitespace());
            space = self.text.get(before..self.at).unwrap_or("");
        }
        whole.ok_or_else(|| self.error("expected a value"))
    }

    fn elements(&mut self, depth: u16) -> Result<Vec<Value>, HoconError> {
        let mut elements = Vec::new();
        loop {
            self.skip_separator();
            match self.peek() {
                None => return Err(self.error("a `[` has no closing `]`")),
                Some(']') => {
                    self.at += 1;
                    return Ok(elements);
                }
                Some(_) => elements.push(self.value(depth + 1)?),
            }
        }
    }

    /// Words without quotes, up to the end of the line or what parts values. `//` in an address is no comment.
    fn bare(&mut self) -> &'t str {
        let rest = self.rest();
        let mut end = rest.len();
        let mut inside = 0_usize;
        let mut before = ' ';
        for (at, c) in rest.char_indices() {
            match c {
                '{' if before == '$' => inside += 1,
                '}' if inside > 0 => inside -= 1,
                '\n' | ',' | '{' | '}' | '[' | ']' | '"' => {
                    end = at;
                    break;
                }
                '#' if before.is_whitespace() => {
                    end = at;
                    break;
                }
                '/' if before.is_whitespace() && rest.get(at..).is_some_and(|r| r.starts_with("//")) => {
                    end = at;
                    break;
                }
                _ => {}
            }
            before = c;
        }
        let words = rest.get(..end).unwrap_or("").trim_end();
        // A lone character that begins no value: the loop around must get on.
        self.at += words.len().max(if end == 0 { self.peek().map_or(0, char::len_utf8) } else { 0 });
        words
    }

    fn quoted(&mut self) -> Result<String, HoconError> {
        if self.rest().starts_with("\"\"\"") {
            return self.multiline();
        }
        let begin = self.at;
        self.at += 1;
        let mut raw_end = None;
        let mut escaped = false;
        for (at, c) in self.rest().char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    raw_end = Some(at);
                    break;
                }
                _ => {}
            }
        }
        let Some(end) = raw_end else {
            self.at = begin;
            return Err(self.error("a `\"` has no closing `\"`"));
        };
        let raw = self.rest().get(..end).unwrap_or("");
        self.at += end + 1;
        Ok(unescape(raw))
    }

    fn multiline(&mut self) -> Result<String, HoconError> {
        let begin = self.at;
        self.at += 3;
        let Some(mut end) = self.rest().find("\"\"\"") else {
            self.at = begin;
            return Err(self.error("a `\"\"\"` has no closing `\"\"\"`"));
        };
        // Of more than three quotes the last three close.
        while self.rest().get(end + 3..).is_some_and(|r| r.starts_with('"')) {
            end += 1;
        }
        let raw = self.rest().get(..end).unwrap_or("");
        self.at += end + 3;
        Ok(match raw.strip_prefix('~').and_then(|r| r.strip_suffix('~')) {
            Some(indented) => unescape(&without_indent(indented)),
            None => unescape(raw),
        })
    }
}

/// `"""~` text: its lines without the indentation that all have.
fn without_indent(text: &str) -> String {
    let text = text.strip_prefix('\r').unwrap_or(text);
    let text = text.strip_prefix('\n').unwrap_or(text);
    let blank = |line: &str| line.trim_matches([' ', '\t', '\r']).is_empty();
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let least = text.split('\n').filter(|line| !blank(line)).map(indent).min().unwrap_or(0);
    let lines = text.split('\n').map(|line| if blank(line) { "" } else { line.get(least..).unwrap_or("") });
    lines.collect::<Vec<_>>().join("\n")
}

/// Escapes as EMQX's scanner reads them; a backslash before anything else stays one.
fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut after = rest[at + 1..].chars();
        let (c, length) = match after.next() {
            Some('n') => ('\n', 1),
            Some('t') => ('\t', 1),
            Some('r') => ('\r', 1),
            Some('b') => ('\u{8}', 1),
            Some('f') => ('\u{c}', 1),
            Some(c @ ('"' | '\\' | '/')) => (c, 1),
            Some('u') => {
                let digits = after.as_str().get(..4);
                match digits.and_then(|d| u32::from_str_radix(d, 16).ok()).and_then(char::from_u32) {
                    Some(c) => (c, 5),
                    None => ('\\', 0),
                }
            }
            _ => ('\\', 0),
        };
        out.push(c);
        rest = rest.get(at + 1 + length..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// What bare words mean.
fn scalar(words: String) -> Value {
    match words.as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        _ => match words.parse::<i64>() {
            Ok(int) => Value::from(int),
            Err(_) => Value::String(words),
        },
    }
}

/// A scalar as text.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(text: &str, expected: Value) {
        let document = parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        assert_eq!(Value::Object(document.root), expected, "{text}");
    }

    #[test]
    fn members_of_all_forms() {
        check(
            "a = 1, b : \"x\" # note\nc { d.e = true }\n// end",
            json!({"a":1,"b":"x","c":{"d":{"e":true}}}),
        );
        check("{\"a\": [1, 2\n 3], \"b.c\": null}", json!({"a":[1,2,3],"b.c":null}));
        check("a { x = 1 }\na { y = 2 }\na.x = 3\nb += 1\nb += 2", json!({"a":{"x":3,"y":2},"b":[1,2]}));
        check(
            "url = mqtt-tcp://h:1883 # there\nt = 15s\ne = \"\"",
            json!({"url":"mqtt-tcp://h:1883","t":"15s","e":""}),
        );
        check("a = ${x} and \"more\"\nb = {p = 1} {q = 2}", json!({"a":"${x} and more","b":{"p":1,"q":2}}));
        check("", json!({}));
    }

    #[test]
    fn texts_of_all_forms() {
        check(r#"a = "q\"\\\n\d""#, json!({"a":"q\"\\\n\\d"}));
        check("a = \"\"\"SELECT \"x\" \\\\ y\"\"\"", json!({"a":"SELECT \"x\" \\ y"}));
        check("a = \"\"\"x\"\"\"\"", json!({"a":"x\""}));
        check(
            "a = \"\"\"~\n    SELECT\n      *\n\n    FROM \"t\"~\"\"\"",
            json!({"a":"SELECT\n  *\n\nFROM \"t\""}),
        );
        check("a = \"\"\"~\n    x\n  ~\"\"\"", json!({"a":"x\n"}));
    }

    #[test]
    fn includes_are_told_and_not_followed() {
        let document = parse("include \"/etc/other.conf\"\na = 1").expect("a document");
        assert_eq!(document.includes, ["/etc/other.conf"]);
        assert_eq!(Value::Object(document.root), json!({"a":1}));
    }

    #[test]
    fn mistakes_have_a_line() {
        for (text, line) in [
            ("a = 1\nb", 2),
            ("a = \"x", 1),
            ("a {\nb = 1", 2),
            ("a = [1", 1),
            ("a = ", 1),
            ("}", 1),
            ("a = {} x", 1),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text}: {}", error.message);
        }
        let deep = "a = ".to_owned() + &"[".repeat(100_000);
        assert_eq!(parse(&deep).expect_err("too deep").message, "nested too deeply");
        assert_eq!(parse(&"{a".repeat(100_000)).expect_err("too deep").message, "nested too deeply");
    }
}
