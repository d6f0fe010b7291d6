//! Lines of comma-separated values, RFC 4180, with `\n` or `\r\n` at their ends.
//!
//! Without a schema a text is a list of lines, each a list of texts: nothing is guessed. A schema names the columns,
//! and may say their types; a line is then an object. Written are objects and lists of scalars as a line each,
//! separated by `\n`, the last one without.

use std::borrow::Cow;

use super::{Budget, FormatError, Input, Output, opened};
use crate::value::{Map, Value};

/// What a schema says of the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Empty: lines are lists.
    pub(crate) columns: Vec<(String, Kind)>,
    pub(crate) delimiter: u8,
    /// The first line has names: of the columns, if there are none here.
    pub(crate) header: bool,
    /// Lines are a list; else there is one line.
    pub(crate) many: bool,
}

/// The type of a column. A field that is empty is NULL, of texts the empty text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    /// An integer or a float.
    Number,
    Boolean,
}

impl Kind {
    /// Names in a schema.
    pub(crate) const ALL: [(&'static str, Kind); 4] = [
        ("text", Kind::Text),
        ("integer", Kind::Integer),
        ("number", Kind::Number),
        ("boolean", Kind::Boolean),
    ];

    fn value(self, text: Cow<'_, str>) -> Result<Value<'static>, FormatError> {
        if self == Kind::Text {
            return Ok(Value::Text(text.into_owned().into()));
        }
        let text = text.trim();
        let value = match self {
            _ if text.is_empty() => Some(Value::Null),
            Kind::Boolean => match text {
                "true" | "TRUE" | "1" => Some(Value::Bool(true)),
                "false" | "FALSE" | "0" => Some(Value::Bool(false)),
                _ => None,
            },
            _ => match text.parse() {
                Ok(n) => Some(Value::Int(n)),
                Err(_) if self == Kind::Number => {
                    text.parse().ok().filter(|f: &f64| f.is_finite()).map(Value::Float)
                }
                Err(_) => None,
            },
        };
        value.ok_or(FormatError::Malformed)
    }
}

impl Default for Layout {
    fn default() -> Self {
        Layout { columns: Vec::new(), delimiter: b',', header: false, many: true }
    }
}

pub(super) fn decode(layout: &Layout, bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed)?;
    let mut input = Input { rest: text.as_bytes(), budget };
    let mut columns = Cow::Borrowed(layout.columns.as_slice());
    if layout.header && !input.rest.is_empty() {
        let names = input.line(layout.delimiter)?;
        if columns.is_empty() {
            columns = names.into_iter().map(|name| (name.into_owned(), Kind::Text)).collect();
        }
    }
    let mut lines = Vec::new();
    while !input.rest.is_empty() {
        input.budget.node()?;
        let line = input.line(layout.delimiter)?;
        lines.push(if columns.is_empty() {
            Value::list(line.into_iter().map(|field| Value::Text(field.into_owned().into())).collect())
        } else {
            if line.len() > columns.len() {
                return Err(FormatError::Malformed);
            }
            let mut members = Map::new();
            for ((name, kind), field) in columns.iter().zip(line) {
                input.budget.spend(name.len())?;
                members.insert(name.clone(), kind.value(field)?);
            }
            Value::map(members)
        });
    }
    if layout.many {
        return Ok(Value::list(lines));
    }
    match (lines.pop(), lines.pop()) {
        (Some(line), None) => Ok(line),
        _ => Err(FormatError::Malformed),
    }
}

impl<'t> Input<'t> {
    /// The fields of a line, its end with it. The whole is UTF-8, and it is cut at ASCII only.
    fn line(&mut self, delimiter: u8) -> Result<Vec<Cow<'t, str>>, FormatError> {
        let mut fields = Vec::new();
        loop {
            self.budget.node()?;
            let field = if self.rest.first() == Some(&b'"') {
                self.quoted()?
            } else {
                let ends = |byte: &u8| *byte == delimiter || *byte == b'\n';
                let end = self.rest.iter().position(ends).unwrap_or(self.rest.len());
                let field = self.text(end)?;
                let is_last = self.rest.first() != Some(&delimiter);
                Cow::Borrowed(if is_last { field.strip_suffix('\r').unwrap_or(field) } else { field })
            };
            fields.push(field);
            match self.rest {
                [] => return Ok(fields),
                [b'\n', rest @ ..] | [b'\r', b'\n', rest @ ..] => {
                    self.rest = rest;
                    return Ok(fields);
                }
                [next, rest @ ..] if *next == delimiter => self.rest = rest,
                _ => return Err(FormatError::Malformed),
            }
        }
    }

    /// A field in quotes: a quote in it is there twice.
    fn quoted(&mut self) -> Result<Cow<'t, str>, FormatError> {
        self.take(1)?;
        let mut whole = Cow::Borrowed("");
        loop {
            let end = self.rest.iter().position(|byte| *byte == b'"').ok_or(FormatError::Malformed)?;
            let piece = self.text(end)?;
            self.take(1)?;
            if whole.is_empty() {
                whole = Cow::Borrowed(piece);
            } else {
                whole.to_mut().push_str(piece);
            }
            if self.rest.first() != Some(&b'"') {
                return Ok(whole);
            }
            self.take(1)?;
            whole.to_mut().push('"');
        }
    }
}

pub(super) fn encode(layout: &Layout, value: &Value<'_>, out: &mut Output) -> Result<(), FormatError> {
    let value = opened(value);
    let lines: Vec<Value<'_>> = match &value {
        Value::List(items) if !items.is_empty() => {
            let lines: Vec<Value<'_>> = items.iter().map(opened).collect();
            let is_line = |line: &Value<'_>| matches!(line, Value::List(_) | Value::Map(_));
            if lines.iter().all(is_line) { lines } else { vec![value.share()] }
        }
        Value::List(_) | Value::Map(_) => vec![value.share()],
        _ => return Err(FormatError::Unfit),
    };
    if !layout.many && lines.len() > 1 {
        return Err(FormatError::Unfit);
    }
    let mut first = true;
    if layout.header {
        let named = layout.columns.iter().map(|(name, _)| Value::Text(name.as_str().into()));
        let names: Vec<Value<'_>> = match lines.first() {
            Some(Value::Map(members)) if layout.columns.is_empty() => {
                members.keys().map(|name| Value::Text(name.as_str().into())).collect()
            }
            _ => named.collect(),
        };
        put_line(layout.delimiter, &[], names.iter(), &mut first, out)?;
    }
    for line in &lines {
        match line {
            Value::List(fields) => {
                put_line(layout.delimiter, &layout.columns, fields.iter(), &mut first, out)?
            }
            Value::Map(members) if layout.columns.is_empty() => {
                put_line(layout.delimiter, &layout.columns, members.values(), &mut first, out)?;
            }
            Value::Map(members) => {
                let field = |(name, _): &(String, Kind)| members.get(name).unwrap_or(&Value::Null);
                put_line(
                    layout.delimiter,
                    &layout.columns,
                    layout.columns.iter().map(field),
                    &mut first,
                    out,
                )?;
            }
            _ => return Err(FormatError::Unfit),
        }
    }
    Ok(())
}

/// One line, by the types of `columns` if there are any.
fn put_line<'v, 'a: 'v>(
    delimiter: u8,
    columns: &[(String, Kind)],
    fields: impl Iterator<Item = &'v Value<'a>>,
    first: &mut bool,
    out: &mut Output,
) -> Result<(), FormatError> {
    if !std::mem::take(first) {
        out.put(b"\n")?;
    }
    let (start, mut count) = (out.bytes.len(), 0);
    for (at, field) in fields.enumerate() {
        count = at + 1;
        if at > 0 {
            out.put(&[delimiter])?;
        }
        let mut text = Vec::new();
        match opened(field) {
            Value::Missing => {}
            field => field.write_text(&mut text),
        }
        let plain = std::str::from_utf8(&text).map_err(|_| FormatError::Unfit)?;
        if !columns.is_empty() {
            // What could not be read again is no value of this column.
            let (_, kind) = columns.get(at).ok_or(FormatError::Unfit)?;
            kind.value(Cow::Borrowed(plain)).map_err(|_| FormatError::Unfit)?;
        }
        if text.iter().any(|byte| matches!(byte, b'"' | b'\n' | b'\r') || *byte == delimiter) {
            out.put(b"\"")?;
            for piece in text.split_inclusive(|byte| *byte == b'"') {
                out.put(piece)?;
                if piece.ends_with(b"\"") {
                    out.put(b"\"")?;
                }
            }
            out.put(b"\"")?;
        } else {
            out.put(&text)?;
        }
    }
    // Nothing at all would be no line.
    if count == 1 && out.bytes.len() == start {
        out.put(b"\"\"")?;
    }
    Ok(())
}
