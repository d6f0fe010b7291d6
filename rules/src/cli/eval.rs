//! `rules eval`: cases in, results out, JSON Lines, under a virtual clock.
//!
//! A case is loaded as its `setup` and its `sql`, each a source of its own, with every sink allowed and the columns
//! of its inputs known. A line that is no case gives `invalid` with line 1, column 1, like a rule that is none.

use std::io::{self, BufRead, Write};

use serde_json::{Map, Value, json};

use crate::check::{filter_matches, load_with};
use crate::events;
use crate::value::unhex;
use crate::{Dialect, Failure, Host, Message, Now, Rows, RuleState, Scratch, Source, Step, step};

/// Operations of one rule on one message; far above what any statement of bounded length can use.
const FUEL: u64 = 1 << 22;

/// The longest line, in bytes; a longer one is answered with `invalid`.
const MAX_LINE: usize = 64 << 20;

/// Runs cases to the end of the input. The exit code is 0 when every line was read, whatever the results.
///
/// # Errors
/// When `input` cannot be read or `out` cannot be written.
pub fn eval(input: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<i32> {
    let mut line = Vec::new();
    let mut scratch = Scratch::new(0x5eed);
    scratch.be_patient();
    loop {
        line.clear();
        if io::Read::take(&mut *input, MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            return Ok(super::EXIT_OK);
        }
        if line.len() > MAX_LINE {
            while !line.ends_with(b"\n") {
                line.clear();
                if io::Read::take(&mut *input, MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
                    break;
                }
            }
            writeln!(out, "{}", invalid(&Value::Null, 1, 1, "this line is longer than 64 MiB"))?;
        } else if !line.trim_ascii().is_empty() {
            out.write_all(&case(&line, &mut scratch))?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
}

fn invalid(id: &Value, line: u32, column: u32, message: &str) -> Value {
    json!({"id": id, "invalid": {"line": line, "column": column, "message": message}})
}

/// One case to one line, without its end.
fn case(line: &[u8], scratch: &mut Scratch) -> Vec<u8> {
    let case: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(case) => case,
        Err(error) => {
            return invalid(&Value::Null, 1, 1, &format!("this line is no case: {error}"))
                .to_string()
                .into_bytes();
        }
    };
    let id = case.get("id").unwrap_or(&Value::Null);
    let refuse = |line, column, message: &str| invalid(id, line, column, message).to_string().into_bytes();
    let dialect = match case.get("dialect").and_then(Value::as_str).unwrap_or("ferrule") {
        "ferrule" => Dialect::Ferrule,
        "emqx" => Dialect::Emqx,
        "ekuiper" => return refuse(1, 1, "the dialect `ekuiper` is not yet implemented"),
        other => return refuse(1, 1, &format!("unknown dialect `{other}`")),
    };
    let Some(sql) = case.get("sql").and_then(Value::as_str) else {
        return refuse(1, 1, "a case needs `sql`");
    };
    let inputs = case.get("input").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut host = Host::edge(Vec::new());
    host.columns_given = true;
    // What an input brings beyond the message's own columns; EMQX's dialect finds all columns when it runs.
    for columns in inputs.iter().filter_map(|i| i.get("columns")?.as_object()) {
        for name in columns.keys() {
            if !host.extra_columns.contains(name) {
                host.extra_columns.push(name.clone());
            }
        }
    }
    let setup = case.get("setup").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut sources: Vec<Source<'_>> =
        setup.iter().filter_map(Value::as_str).map(|text| Source { name: "setup", text }).collect();
    sources.push(Source { name: "sql", text: sql });
    let set = match load_with(&sources, &host, Some(dialect)) {
        Ok(set) => set,
        Err(diagnostics) => {
            let first = diagnostics.iter().find(|d| d.severity == crate::Severity::Error);
            return match first {
                Some(d) if d.file == "setup" => refuse(d.line, d.column, &format!("setup: {}", d.message)),
                Some(d) => refuse(d.line, d.column, &d.message),
                None => refuse(1, 1, "the statement cannot be loaded"),
            };
        }
    };
    if set.rules.is_empty() {
        return refuse(1, 1, "a case needs a query or a rule");
    }
    let mut states = vec![RuleState::default(); set.rules.len()];
    let mut rows = Rows::default();
    let mut clock_ms = case.get("clock_ms").and_then(Value::as_i64).unwrap_or(0);
    let mut results: Vec<u8> = Vec::new();
    let mut errors: Vec<Value> = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        clock_ms = clock_ms.max(input.get("at_ms").and_then(Value::as_i64).unwrap_or(clock_ms));
        if let Some(stream) = input.get("stream") {
            let message = format!("the stream {stream} is not declared");
            errors.push(json!({"input": index, "kind": "unknown_stream", "message": message}));
            continue;
        }
        let Some(sample) = Sample::new(input, clock_ms) else { continue };
        let message = sample.message();
        scratch.begin();
        for (rule, state) in set.rules.iter().zip(&mut states) {
            let takes = |filter: &String| match message.event {
                Some(event) => events::filter_matches(filter, event),
                None => !filter.starts_with(events::PREFIX) && filter_matches(filter, message.topic),
            };
            if !rule.filters.iter().any(takes) {
                continue;
            }
            scratch.trace = Some(Vec::new());
            let mut fuel = FUEL;
            let now = Now { wall_ms: clock_ms };
            let ended = step(rule, state, &message, scratch, now, &mut fuel, &mut rows);
            for (kind, what) in scratch.trace.take().unwrap_or_default() {
                errors.push(json!({"input": index, "kind": kind.name(), "message": what}));
            }
            match ended {
                Step::Emit => {
                    if !results.is_empty() {
                        results.push(b',');
                    }
                    results.extend_from_slice(format!("{{\"input\":{index},\"rows\":[").as_bytes());
                    compact(&rows.row, &mut results);
                    results.extend_from_slice(b"]}");
                }
                // Nothing came of FOREACH: counted as EMQX does, and no error of the rule.
                Step::NoMatch | Step::Failed(Failure::NoResult) => {}
                Step::Failed(Failure::Exception) => {}
                Step::Failed(failure) => {
                    let message = format!("the rule `{}` failed for this message", rule.name);
                    errors.push(json!({"input": index, "kind": failure.name(), "message": message}));
                }
                Step::OutOfFuel => {
                    let message = format!("the rule `{}` ran out of fuel", rule.name);
                    errors.push(json!({"input": index, "kind": "out_of_fuel", "message": message}));
                }
            }
        }
    }
    let mut out = format!("{{\"id\":{id},\"results\":[").into_bytes();
    out.append(&mut results);
    out.push(b']');
    if !errors.is_empty() {
        out.extend_from_slice(format!(",\"errors\":{}", Value::Array(errors)).as_bytes());
    }
    out.push(b'}');
    out
}

/// The sample message of a case's input, its columns put in.
struct Sample<'c> {
    topic: &'c str,
    event: Option<&'c str>,
    payload: std::borrow::Cow<'c, [u8]>,
    columns: Option<std::borrow::Cow<'c, Map<String, Value>>>,
    user_properties: Vec<(String, String)>,
    timestamp_ms: i64,
}

impl<'c> Sample<'c> {
    fn new(input: &'c Value, clock_ms: i64) -> Option<Sample<'c>> {
        let columns = input.get("columns").and_then(Value::as_object);
        let column = |name: &str| columns.and_then(|c| c.get(name));
        let event = input.get("event").and_then(Value::as_str).filter(|event| *event != "message.publish");
        let topic = input.get("topic").or_else(|| column("topic")).and_then(Value::as_str);
        let topic = topic.or(event.map(|_| ""))?;
        let payload = match input.get("payload").or_else(|| column("payload")) {
            None => Vec::new().into(),
            Some(Value::String(text)) => text.as_bytes().into(),
            Some(other) => match other.get("$bytes").and_then(Value::as_str).and_then(unhex) {
                Some(bytes) => bytes.into(),
                None => other.to_string().into_bytes().into(),
            },
        };
        let properties = column("user_properties").and_then(Value::as_object);
        let user_properties = properties
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        let columns = match (event, columns) {
            (None, columns) => columns.map(std::borrow::Cow::Borrowed),
            (Some(event), columns) => {
                let mut sample = events::samples(event, clock_ms);
                sample
                    .extend(columns.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
                Some(std::borrow::Cow::Owned(sample))
            }
        };
        Some(Sample { topic, event, payload, columns, user_properties, timestamp_ms: clock_ms })
    }

    fn message(&'c self) -> Message<'c> {
        Message {
            topic: self.topic,
            payload: &self.payload,
            qos: 1,
            clientid: "c_ferrule",
            username: Some("u_ferrule"),
            peerhost: Some("127.0.0.1"),
            timestamp_ms: self.timestamp_ms,
            user_properties: Some(&self.user_properties),
            node: Some("ferrule"),
            event: self.event,
            columns: self.columns.as_deref(),
            ..Message::default()
        }
    }
}

/// JSON without white space between its tokens: a payload's own line ends must not end ours.
fn compact(json: &[u8], out: &mut Vec<u8>) {
    let (mut inside, mut escaped) = (false, false);
    for &byte in json {
        if inside {
            inside = escaped || byte != b'"';
            escaped = byte == b'\\' && !escaped;
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            inside = byte == b'"';
        }
        out.push(byte);
    }
}
