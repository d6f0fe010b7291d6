//! `rules test`: messages through the rules, and why what came out of each did.
//!
//! A rule's outcome is gathered first ([`Outcome`]) and printed then, for people or as JSON: both say the same. Rules
//! remember from one message to the next; the time between two is that of the messages. What is asked again, to say
//! why, finds what the rule remembered before the message ([`crate::state::Memory`]).

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{EXIT_OK, Format, with_rules};
use crate::check::filter_matches;
use crate::events;
use crate::step::why;
use crate::why::{Each, PartResult, Why};
use crate::{
    Body, Diagnostic, Host, Message, Now, Rows, Rule, RuleState, Scratch, Severity, Source, Step, step,
};

/// The longest piece of a rule's text that is shown in a line.
const MAX_WORDS: usize = 120;

/// A message for [`test()`].
#[derive(Debug, Clone, Default)]
pub struct TestMessage {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
    /// QoS.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// Client id.
    pub clientid: String,
    /// User name.
    pub username: Option<String>,
    /// The gateway.
    pub edge: Option<String>,
    /// When it was received, ms since 1970.
    pub timestamp_ms: i64,
    /// User properties.
    pub user_properties: Vec<(String, String)>,
    /// Columns of an event, whose `topic` is `$events/...`.
    pub columns: Option<Map<String, Value>>,
}

/// `rules test FILE --topic T --payload P`: of each message each rule, matched or why not, its rows, its rendered
/// targets. As JSON one object for each of them, a line each, with `input`, the message's number from 0 as in [`super::eval()`].
///
/// # Errors
/// When `out` cannot be written.
pub fn test(
    files: &[PathBuf],
    host: &Host,
    messages: &[TestMessage],
    format: Format,
    out: &mut dyn Write,
) -> io::Result<i32> {
    with_rules(files, host, format, out, |set, sources, out| {
        let mut scratch = Scratch::new(0);
        scratch.be_patient();
        let mut states = vec![RuleState::default(); set.rules.len()];
        for (n, message) in messages.iter().enumerate() {
            let input = message.input();
            if format == Format::Text && messages.len() > 1 {
                let before = n.checked_sub(1).and_then(|before| messages.get(before));
                print_head(n + 1, message, before, out)?;
            }
            for (rule, state) in set.rules.iter().zip(&mut states) {
                let source = sources.get(rule.file).copied().unwrap_or(Source { name: "", text: "" });
                let outcome = Outcome::of(rule, &source, &input, state, &mut scratch);
                match format {
                    Format::Text => outcome.print(out)?,
                    Format::Json => {
                        let mut object = outcome.json();
                        object["input"] = json!(n);
                        writeln!(out, "{object}")?;
                    }
                }
            }
        }
        Ok(EXIT_OK)
    })
}

impl TestMessage {
    /// The message as rules see it. One whose topic is that of an event is that event.
    fn input(&self) -> Message<'_> {
        Message {
            topic: &self.topic,
            payload: &self.payload,
            qos: self.qos,
            retain: self.retain,
            clientid: &self.clientid,
            username: self.username.as_deref(),
            edge: self.edge.as_deref(),
            timestamp_ms: self.timestamp_ms,
            user_properties: Some(&self.user_properties),
            event: events::named(&self.topic),
            columns: self.columns.as_ref(),
            ..Message::default()
        }
    }
}

/// Which message the lines below are of: its number, the time since the one before, what it is.
fn print_head(
    number: usize,
    message: &TestMessage,
    before: Option<&TestMessage>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let wait = match before {
        None => String::new(),
        Some(before) => {
            let wait_ms = message.timestamp_ms.saturating_sub(before.timestamp_ms);
            format!(" +{}s", wait_ms as f64 / 1000.0)
        }
    };
    let gap = if before.is_some() { "\n" } else { "" };
    let payload = show(&message.payload);
    writeln!(out, "{gap}message {number}{wait}: {} of {}: {payload}", message.topic, message.clientid)
}

/// Whether a rule takes a message by this filter of its FROM.
fn takes(filter: &str, input: &Message<'_>) -> bool {
    match input.event {
        Some(event) => events::filter_matches(filter, event),
        None => filter_matches(filter, input.topic),
    }
}

/// What became of a message in a rule.
struct Outcome<'r> {
    rule: &'r Rule,
    file: &'r str,
    line: u32,
    topic: &'r str,
    /// The filter that matched; nothing else is there without one.
    filter: Option<&'r str>,
    ended: Step,
    rows: Rows,
    why: Why,
    /// Where an exception happened, its words there, what it was.
    fault: Option<(u32, u32, String, String)>,
    /// Type errors that ended nothing.
    notes: Vec<(&'static str, String)>,
}

impl<'r> Outcome<'r> {
    fn of(
        rule: &'r Rule,
        source: &Source<'r>,
        input: &Message<'r>,
        state: &mut RuleState,
        scratch: &mut Scratch,
    ) -> Outcome<'r> {
        let place = |span| Diagnostic::new(source, span, Severity::Error, String::new(), None);
        let matched = |filter: &&String| takes(filter, input);
        let mut outcome = Outcome {
            rule,
            file: source.name,
            line: place(rule.span).line,
            topic: input.topic,
            filter: rule.filters.iter().find(matched).map(String::as_str),
            ended: Step::NoMatch,
            rows: Rows::default(),
            why: Why::default(),
            fault: None,
            notes: Vec::new(),
        };
        if outcome.filter.is_none() {
            return outcome;
        }
        let now = Now { wall_ms: input.timestamp_ms };
        let mut fuel = u64::MAX;
        scratch.begin();
        scratch.trace = Some(Vec::new());
        let before = scratch.memory(state);
        outcome.ended = step(rule, state, input, scratch, now, &mut fuel, &mut outcome.rows);
        let errors = scratch.trace.take().unwrap_or_default();
        let loops = rule.program.each.is_some();
        let ask = match outcome.ended {
            Step::NoMatch => true,
            Step::Failed(_) => rule.program.emqx.is_some(),
            Step::Emit => loops,
            Step::OutOfFuel => false,
        };
        if ask {
            outcome.why = why(rule, input, before, scratch, now).unwrap_or_default();
        }
        if let Some(fault) = &outcome.why.fault {
            let at = place(fault.span);
            let text = words(fault.span.of(source.text));
            let text = match fault.element {
                Some(element) => format!("{text}` of element {element}"),
                None => format!("{text}`"),
            };
            outcome.fault = Some((at.line, at.column, text, fault.words.clone()));
        } else {
            outcome.notes = errors.into_iter().map(|(kind, what)| (kind.name(), what)).collect();
        }
        outcome
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "rule {} ({}:{}): ", self.rule.name, self.file, self.line)?;
        let Some(filter) = self.filter else {
            let filters = self.rule.filters.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", ");
            return writeln!(out, "not matched\n  the topic `{}` matches none of {filters}", self.topic);
        };
        if !self.rule.enabled {
            write!(out, "(disabled) ")?;
        }
        match self.ended {
            Step::Emit => {
                writeln!(out, "matched by \"{filter}\"")?;
                self.print_rows(out)?;
            }
            Step::NoMatch => {
                writeln!(out, "not matched")?;
                print_parts(&self.why.parts, "  ", out)?;
            }
            Step::Failed(failure) => writeln!(out, "failed: {}", failure.name())?,
            Step::OutOfFuel => writeln!(out, "failed: out_of_fuel")?,
        }
        if let Some((line, column, text, what)) = &self.fault {
            writeln!(out, "  {}:{line}:{column}: `{text} fails: {what}", self.file)?;
            for (text, value) in self.why.fault.iter().flat_map(|fault| &fault.reads) {
                writeln!(out, "    {} = {}", words(text), show(value.as_bytes()))?;
            }
        }
        match &self.why.each {
            None => {}
            Some(Each::NoArray { text, value }) => {
                writeln!(out, "  FOREACH: `{}` is no array: {}", words(text), show(value.as_bytes()))?;
            }
            Some(Each::Elements { count: 0, .. }) => writeln!(out, "  FOREACH: the array is empty")?,
            Some(Each::Elements { rejected: 0, .. }) => {}
            Some(Each::Elements { count, rejected, first }) => {
                // The default dialect has NULL as well.
                let what = if self.rule.program.emqx.is_some() { "FALSE" } else { "not TRUE" };
                writeln!(
                    out,
                    "  INCASE was {what} for {rejected} of {}; for the first:",
                    super::count(*count, "element")
                )?;
                print_parts(first, "    ", out)?;
            }
        }
        for (kind, what) in &self.notes {
            let null = if self.rule.program.emqx.is_some() { "" } else { "NULL by " };
            writeln!(out, "  note: {null}{kind}: {what}")?;
        }
        Ok(())
    }

    fn print_rows(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.rule.program.payload_only {
            for row in self.rows() {
                writeln!(out, "  row {}", show(row.as_bytes()))?;
            }
        }
        for row in &self.rows.rows {
            if let Some(insert) = self.rule.inserts.get(row.insert) {
                write!(out, "  -> {}", insert.sink)?;
            }
            if !row.target.is_empty() {
                write!(out, " \"{}\"", show(row.target.as_bytes()))?;
            }
            if let Some(key) = &row.key {
                write!(out, " key \"{}\"", show(key.as_bytes()))?;
            }
            if let Some(qos) = row.qos {
                write!(out, " qos {qos}")?;
            }
            if let Some(retain) = row.retain {
                write!(out, " retain {retain}")?;
            }
            for (name, value) in &row.options {
                write!(out, " {name} \"{}\"", show(value.as_bytes()))?;
            }
            for property in &row.properties {
                write!(out, " {}", show(property.to_string().as_bytes()))?;
            }
            match &row.body {
                Body::Payload => writeln!(out, ": the payload, untouched")?,
                // What was decoded, which is no row.
                Body::Json(text) if self.rule.program.payload_only => writeln!(out, ": {}", show(text))?,
                Body::Json(_) => writeln!(out, ": the row")?,
                Body::Text(text) => writeln!(out, ": {}", show(text))?,
                Body::Encoded(bytes) => {
                    writeln!(
                        out,
                        ": {} bytes of {}: {}",
                        bytes.len(),
                        self.encoding(row.insert),
                        hex(bytes)
                    )?;
                }
            }
        }
        Ok(())
    }

    fn encoding(&self, insert: usize) -> String {
        let format = self.rule.program.inserts.get(insert).and_then(|insert| insert.format.as_ref());
        format.map(|format| format!("{format:?}")).unwrap_or_default()
    }

    /// The rows, each as JSON; of FOREACH there are many.
    fn rows(&self) -> Vec<String> {
        let all = String::from_utf8_lossy(&self.rows.row);
        match serde_json::from_str::<Vec<Box<RawValue>>>(&format!("[{all}]")) {
            Ok(rows) => rows.iter().map(|row| row.get().to_owned()).collect(),
            // A number of a device's that serde_json does not take.
            Err(_) => vec![all.into_owned()],
        }
    }

    fn json(&self) -> Value {
        let mut object = json!({ "rule": self.rule.name, "file": self.file, "line": self.line });
        let outcome = match (self.filter, self.ended) {
            (None, _) | (_, Step::NoMatch) => "not_matched",
            (_, Step::Emit) => "matched",
            (_, Step::Failed(_) | Step::OutOfFuel) => "failed",
        };
        object["outcome"] = json!(outcome);
        object["filter"] = json!(self.filter);
        if !self.rule.enabled {
            object["enabled"] = json!(false);
        }
        match self.ended {
            Step::Failed(failure) => object["failure"] = json!(failure.name()),
            Step::OutOfFuel => object["failure"] = json!("out_of_fuel"),
            Step::Emit | Step::NoMatch => {}
        }
        if self.ended == Step::Emit {
            let row = |row: String| serde_json::from_str::<Value>(&row).unwrap_or(Value::String(row));
            object["rows"] = self.rows().into_iter().map(row).collect();
            object["inserts"] = self.rows.rows.iter().map(|row| self.insert_json(row)).collect();
        }
        if !self.why.parts.is_empty() {
            object["where"] = parts_json(&self.why.parts);
        }
        if let (Some((line, column, text, what)), Some(fault)) = (&self.fault, &self.why.fault) {
            let text = text.split_once('`').map_or(text.as_str(), |(text, _)| text);
            let mut at = json!({ "line": line, "column": column, "text": text, "message": what });
            at["reads"] = reads_json(&fault.reads);
            if let Some(element) = fault.element {
                at["element"] = json!(element);
            }
            object["fault"] = at;
        }
        match &self.why.each {
            None => {}
            Some(Each::NoArray { text, value }) => {
                object["foreach"] = json!({ "text": text, "value": value })
            }
            Some(Each::Elements { count, rejected, first }) => {
                object["foreach"] =
                    json!({ "elements": count, "rejected": rejected, "first_rejected": parts_json(first) });
            }
        }
        let note = |(kind, what): &(&str, String)| json!({ "kind": kind, "message": what });
        object["notes"] = self.notes.iter().map(note).collect();
        object
    }

    fn insert_json(&self, row: &crate::OutRow) -> Value {
        let sink = self.rule.inserts.get(row.insert).map(|insert| insert.sink.as_str());
        let options: Map<String, Value> =
            row.options.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        let body = match &row.body {
            Body::Payload => json!({ "payload": true }),
            Body::Json(text) if self.rule.program.payload_only => {
                json!({ "text": String::from_utf8_lossy(text) })
            }
            Body::Json(_) => json!({ "row": true }),
            Body::Text(text) => json!({ "text": String::from_utf8_lossy(text) }),
            Body::Encoded(bytes) => {
                let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({ "format": self.encoding(row.insert), "bytes": digits })
            }
        };
        json!({
            "sink": sink, "target": &*row.target, "key": row.key, "qos": row.qos, "retain": row.retain,
            "options": options, "body": body,
        })
    }
}

/// Parts of a condition that were not true, and what they read.
fn print_parts(parts: &[PartResult], indent: &str, out: &mut dyn Write) -> io::Result<()> {
    for part in parts.iter().filter(|part| part.value != "true") {
        let value = match part.value.as_str() {
            "false" => "FALSE",
            "null" => "NULL",
            other => other,
        };
        writeln!(out, "{indent}`{}` is {value}", part.text)?;
        for (text, value) in part.reads.iter().filter(|(text, _)| *text != part.text) {
            let value = if value == "null" { "NULL" } else { value };
            writeln!(out, "{indent}  {text} = {}", show(value.as_bytes()))?;
        }
    }
    Ok(())
}

fn parts_json(parts: &[PartResult]) -> Value {
    let part = |part: &PartResult| json!({ "text": part.text, "value": part.value, "reads": reads_json(&part.reads) });
    parts.iter().map(part).collect()
}

/// Values as they are shown: JSON, `missing`, or what failed.
fn reads_json(reads: &[(String, String)]) -> Value {
    Value::Object(reads.iter().map(|(text, value)| (text.clone(), json!(value))).collect())
}

/// A piece of a rule in one line.
fn words(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_WORDS) {
        Some((at, _)) => format!("{}...", line.get(..at).unwrap_or("")),
        None => line,
    }
}

/// Bytes for a terminal in hexadecimal, at most 64 of them.
fn hex(bytes: &[u8]) -> String {
    const MAX: usize = 64;
    let digits: String = bytes.iter().take(MAX).map(|byte| format!("{byte:02x}")).collect();
    digits + if bytes.len() > MAX { "..." } else { "" }
}

/// Bytes for a terminal: text, at most 1 KiB of it.
fn show(bytes: &[u8]) -> String {
    const MAX: usize = 1024;
    let cut = &bytes[..bytes.len().min(MAX)];
    let more = if bytes.len() > MAX { "..." } else { "" };
    // What devices send must not move the cursor or colour the terminal.
    let text = String::from_utf8_lossy(cut);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out + more
}

#[cfg(test)]
mod tests;
