//! Rows: what INSERT makes of a rule's columns, its templates, and the row as JSON.
//!
//! All bodies of a message are written one behind the other into one buffer, and are given out as parts of one piece of memory
//! when the rule has ended ([`Rows::seal`]).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::check::forbidden_topic;
use crate::emqx;
use crate::events;
use crate::formats::{Codec, FormatError};
use crate::json;
use crate::machine::Machine;
use crate::program::{Base, InsertCode, Layout, Node, Part, Program, Target, Template};
use crate::properties::{self, PublishProperty};
use crate::value::{Value, write_json_text};
use crate::{Failure, Scratch, TargetKind};

/// Rows of one [`crate::step()`]; reuse it.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// In order of FOREACH's elements, and for each of the rule's inserts.
    pub rows: Vec<OutRow>,
    /// The row itself as a JSON object, when the scratch traces (`rules test` and `eval`).
    pub(crate) row: Vec<u8>,
    /// The bodies of the message in hand, one behind the other.
    pub(crate) text: Vec<u8>,
    /// Where in `text` the body of each row is; nowhere, if it is not.
    places: Vec<Range<usize>>,
}

/// More of [`Rows::text`] than this is given back with its message.
const KEPT_TEXT: usize = 64 << 10;

impl Rows {
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.row.clear();
        self.text.clear();
        self.text.shrink_to(KEPT_TEXT);
        self.places.clear();
    }

    /// Gives rows their bodies: of all rows of a message one piece of memory, which the last of them frees.
    pub(crate) fn seal(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let text = Bytes::copy_from_slice(&self.text);
        // The commonest case needs no count of those who share it.
        if let [OutRow { body: Body::Json(body) | Body::Text(body), .. }] = self.rows.as_mut_slice() {
            *body = text;
            return;
        }
        for (row, place) in self.rows.iter_mut().zip(&self.places).filter(|(_, place)| !place.is_empty()) {
            if let Body::Json(body) | Body::Text(body) = &mut row.body {
                *body = text.slice(place.clone());
            }
        }
    }
}

/// One row for one insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRow {
    /// Index into [`crate::Rule::inserts`].
    pub insert: usize,
    /// The element's index, counted across all of the rule's inserts into one sink.
    pub row: u32,
    /// The rendered target; the message's own topic when a topic sink has no other; empty when a sink has none.
    pub target: Arc<str>,
    /// The rendered key, from the INSERT or the sink.
    pub key: Option<String>,
    /// What to send.
    pub body: Body,
    /// QoS asked for by the INSERT.
    pub qos: Option<u8>,
    /// Retain flag asked for by the INSERT.
    pub retain: Option<bool>,
    /// The sink's other template options (headers, ...), rendered, in order of its declaration.
    pub options: Vec<(Arc<str>, String)>,
    /// Of a publish to a topic, in order of the options that made them.
    pub properties: Vec<PublishProperty>,
}

impl OutRow {
    /// About how many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::Payload => 0,
            Body::Json(bytes) | Body::Text(bytes) | Body::Encoded(bytes) => bytes.len(),
        };
        size_of::<OutRow>() + self.target.len() + body
    }
}

/// The body of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// `SELECT *`: the message's payload, untouched.
    Payload,
    /// An object with the row's columns in order, as JSON text.
    Json(Bytes),
    /// The INSERT's payload template, rendered.
    Text(Bytes),
    /// The row in the INSERT's format.
    Encoded(Bytes),
}

/// The row in hand for every insert; it is the `nth` that the message makes.
pub(crate) fn emit_all(m: &mut Machine<'_, '_>, nth: u32, out: &mut Rows) -> Result<(), Failure> {
    let inserts = &m.program.inserts;
    // The same row for several inserts is written once.
    let mut json = None;
    for (insert, code) in inserts.iter().enumerate() {
        let row = code.ordinal + nth * inserts.len() as u32;
        emit(m, insert, row, code, &mut json, out)?;
    }
    Ok(())
}

fn emit(
    m: &mut Machine<'_, '_>,
    insert: usize,
    row: u32,
    code: &InsertCode,
    json: &mut Option<Range<usize>>,
    out: &mut Rows,
) -> Result<(), Failure> {
    let target = match &code.target {
        Some(Target::Fixed(target)) => Arc::clone(target),
        Some(Target::Template(template)) => {
            let target = text(m, template)?.ok_or(Failure::NullInTarget)?;
            if code.kind == TargetKind::Topic && !publishable(&target) {
                return Err(Failure::BadTarget);
            }
            target.into()
        }
        None if code.kind == TargetKind::Topic => {
            Arc::clone(m.topic.get_or_insert_with(|| m.input.topic.into()))
        }
        None => Arc::default(),
    };
    let key = match &code.key {
        Some(template) => text(m, template)?,
        None => None,
    };
    let mut options = Vec::with_capacity(code.options.len());
    for (name, template) in &code.options {
        if let Some(value) = text(m, template)? {
            options.push((Arc::clone(name), value));
        }
    }
    let properties = properties::render(m, &code.properties)?;
    let start = out.text.len();
    let mut range = start..start;
    let body = match &code.payload {
        Some(template) => {
            render(m, template, &mut out.text)?;
            range.end = out.text.len();
            Body::Text(Bytes::new())
        }
        None if code.format.is_some() => Body::Encoded(encoded(m, code.format.as_ref())?.into()),
        None if m.program.payload_only && m.raw.is_some() => {
            Body::Json(Bytes::copy_from_slice(m.input.payload))
        }
        None if m.program.payload_only && m.input.event.is_none() => Body::Payload,
        None => {
            match json {
                Some(written) => range = written.clone(),
                None => {
                    write_row(m, &mut out.text)?;
                    range.end = out.text.len();
                    *json = Some(range.clone());
                }
            }
            Body::Json(Bytes::new())
        }
    };
    out.rows.push(OutRow {
        insert,
        row,
        target,
        key,
        body,
        qos: code.qos,
        retain: code.retain,
        options,
        properties,
    });
    out.places.push(range);
    Ok(())
}

/// The row in a format; of `SELECT *` alone the payload, which may be no object and no JSON.
fn encoded(m: &mut Machine<'_, '_>, format: Option<&Codec>) -> Result<Vec<u8>, Failure> {
    let Some(codec) = format else { return Err(Failure::Unencodable) };
    let mut text = Vec::new();
    let value = if m.program.payload_only && m.input.event.is_none() {
        let payload = m.input.payload;
        match json::document(payload).ok().and_then(|found| Value::found(payload, found).ok()) {
            Some(value) => value,
            None => Value::binary(payload.to_vec()),
        }
    } else {
        write_row(m, &mut text)?;
        std::str::from_utf8(&text).map_or(Value::Null, |text| Value::Json(text.into()))
    };
    codec.encode(&value, Scratch::MAX_OUTPUT).map_err(|error| match error {
        FormatError::TooDeep => Failure::TooDeep,
        FormatError::TooLarge => Failure::TooLarge,
        FormatError::Malformed | FormatError::Unfit => Failure::Unencodable,
    })
}

/// A topic that a rule may publish to: MQTT 5.0 section 4.7, and not Ferrule's own.
pub(crate) fn publishable(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= 65_535 && !topic.contains(['+', '#', '\0']) && !forbidden_topic(topic)
}

// === templates ===

/// A template as text; `None` when a value in it was NULL or is no text.
pub(crate) fn text(m: &mut Machine<'_, '_>, template: &Template) -> Result<Option<String>, Failure> {
    let mut bytes = Vec::new();
    let whole = render(m, template, &mut bytes)?;
    Ok(String::from_utf8(bytes).ok().filter(|_| whole))
}

/// Appends a rendered template, NULL as `null` (most payloads are JSON); `false` when a value in it was NULL.
fn render(m: &mut Machine<'_, '_>, template: &Template, out: &mut Vec<u8>) -> Result<bool, Failure> {
    let mut whole = true;
    for part in &template.parts {
        match part {
            Part::Text(text) => out.extend_from_slice(text.as_bytes()),
            Part::Value(code) => match m.eval(code)? {
                Value::Null => {
                    whole = false;
                    out.extend_from_slice(b"null");
                }
                // EMQX's word.
                Value::Missing => {
                    whole = false;
                    out.extend_from_slice(b"undefined");
                }
                value => value.write_text(out),
            },
            Part::Row if m.program.payload_only && m.input.event.is_none() => {
                out.extend_from_slice(m.input.payload)
            }
            Part::Row => write_row(m, out)?,
            Part::Object(path) => {
                let mut layout = &m.program.row;
                for name in path {
                    match layout.children.iter().find(|(n, _)| n == name) {
                        Some((_, Node::Object(inner))) => layout = inner,
                        _ => break,
                    }
                }
                write_layout(m, layout, None, out)?;
            }
        }
        bounded(out)?;
    }
    Ok(whole)
}

pub(crate) fn bounded(out: &[u8]) -> Result<(), Failure> {
    if out.len() > Scratch::MAX_OUTPUT { Err(Failure::TooLarge) } else { Ok(()) }
}

// === the row as JSON ===

pub(crate) fn write_row(m: &mut Machine<'_, '_>, out: &mut Vec<u8>) -> Result<(), Failure> {
    if let Some(plan) = &m.program.emqx {
        return emqx::run::write_row(m, &plan.row, out);
    }
    write_layout(m, &m.program.row, None, out)
}

/// Writes an object: what `around` (a member of the object around it) or its base holds, with its children put in.
/// Recursion is bounded by the length of an alias.
fn write_layout(
    m: &Machine<'_, '_>,
    layout: &Layout,
    around: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    out.push(b'{');
    // Most rows are their columns and nothing else.
    if layout.base == Base::Nothing && around.is_none() {
        return write_children(m, layout, &[], true, out);
    }
    let mut first = true;
    let event;
    let base = match layout.base {
        // An event has no payload of its own: its columns are it.
        Base::Payload if m.input.event.is_some() => {
            event = serde_json::to_vec(&events::all_columns(m.input)).ok();
            event.as_deref()
        }
        Base::Nothing => around,
        Base::Payload => match json::document(m.input.payload) {
            Ok(found) if found.kind == json::Kind::Object => Some(found.of(m.input.payload)),
            document => {
                // A payload that is no object becomes a column, as JSON if it is that, unless there is one.
                if layout.children.iter().all(|(name, _)| name != "payload") {
                    out.extend_from_slice(b"\"payload\":");
                    match (document, std::str::from_utf8(m.input.payload)) {
                        (Ok(found), _) => out.extend_from_slice(found.of(m.input.payload)),
                        (Err(_), Ok(text)) => write_json_text(text, out),
                        (Err(_), Err(_)) => Value::Bytes(m.input.payload.into()).write_json(out),
                    }
                    first = false;
                }
                None
            }
        },
        Base::Register { item, decode } => {
            m.registers.get(item).and_then(|value| Program::object_text(value, decode))
        }
    };
    let mut written = Vec::new();
    if let Some(base) = base {
        written.resize(layout.children.len(), false);
        for (key, value) in json::items(base) {
            let Some(key) = key else { break };
            let child = layout.children.iter().position(|(name, _)| json::key_is(base, key, name));
            let inner = match child.map(|i| (i, &layout.children[i].1)) {
                None => None,
                Some((i, Node::Object(inner))) if inner.base == Base::Nothing && !written[i] => {
                    written[i] = true;
                    Some(inner)
                }
                // Replaced: written below.
                Some(_) => continue,
            };
            separate(&mut first, out);
            out.extend_from_slice(key.of(base));
            out.push(b':');
            match inner {
                None => out.extend_from_slice(value.of(base)),
                Some(inner) => {
                    let around = (value.kind == json::Kind::Object).then(|| value.of(base));
                    write_layout(m, inner, around, out)?;
                }
            }
            bounded(out)?;
        }
    }
    write_children(m, layout, &written, first, out)
}

/// Writes those children of an object that are not written yet, and its end. `first`: it has no members so far.
#[inline]
fn write_children(
    m: &Machine<'_, '_>,
    layout: &Layout,
    written: &[bool],
    mut first: bool,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    for (i, ((_, node), label)) in layout.children.iter().zip(&layout.labels).enumerate() {
        if written.get(i) == Some(&true) {
            continue;
        }
        separate(&mut first, out);
        out.extend_from_slice(label);
        match node {
            Node::Register(item) => m.write_column(*item, &Value::Null, out),
            Node::Object(inner) => write_layout(m, inner, None, out)?,
        }
        bounded(out)?;
    }
    out.push(b'}');
    Ok(())
}

#[inline]
fn separate(first: &mut bool, out: &mut Vec<u8>) {
    if !std::mem::take(first) {
        out.push(b',');
    }
}
