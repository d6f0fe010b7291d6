//! The commands `rules check`, `test`, `eval` and `explain` of both binaries.
//!
//! Each takes its files, the [`Host`] and a writer, and gives the exit code; the binaries parse arguments. This is
//! the only part of the crate that reads files. What `test` and `eval` show comes from [`crate::step()`], the same
//! evaluator that runs live.

mod eval;

pub use eval::eval;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::check::filter_matches;
use crate::step::condition_parts;
use crate::{
    Body, Diagnostic, Files, Host, Message, Now, Rows, Rule, RuleSet, RuleState, Scratch, Severity, Source,
    Step, load, step,
};

/// Nothing is wrong.
pub const EXIT_OK: i32 = 0;
/// The rules have errors.
pub const EXIT_INVALID: i32 = 1;
/// A file cannot be read.
pub const EXIT_UNREADABLE: i32 = 2;

/// How [`check`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people: line, caret, help.
    #[default]
    Text,
    /// For editors: one JSON object a line.
    Json,
}

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
}

/// The files that a `rules = "..."` setting means: a file itself, or the `*.sql` of a folder in order of names.
///
/// # Errors
/// When the folder cannot be listed.
pub fn rule_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "sql") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads rules files (folders too): name and text of each.
///
/// # Errors
/// A sentence that names the file that cannot be read.
pub fn read_files(files: &[PathBuf]) -> Result<Vec<(String, String)>, String> {
    let mut texts = Vec::new();
    for path in files {
        let found = rule_files(path).map_err(|e| format!("cannot list {}: {e}", path.display()))?;
        for file in found {
            let text =
                std::fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            texts.push((file.display().to_string(), text));
        }
    }
    Ok(texts)
}

/// The largest file that a rules file may name.
const FILE_MAX: u64 = 16 << 20;

/// Files from disk: a relative path is relative to the folder of the rules file.
pub fn files() -> Files {
    Files(Arc::new(|rules, path| {
        let folder = Path::new(rules).parent().unwrap_or(Path::new(""));
        let file = std::fs::File::open(folder.join(path)).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(format!("it has more than {} MiB", FILE_MAX >> 20));
        }
        Ok(bytes)
    }))
}

/// The sources of what [`read_files`] gave.
pub fn sources(texts: &[(String, String)]) -> Vec<Source<'_>> {
    texts.iter().map(|(name, text)| Source { name, text }).collect()
}

/// Prints diagnostics, each with its line.
///
/// # Errors
/// When `out` cannot be written.
pub fn print_diagnostics(
    sources: &[Source<'_>],
    diagnostics: &[Diagnostic],
    format: Format,
    out: &mut dyn Write,
) -> io::Result<()> {
    for d in diagnostics {
        match format {
            Format::Text => match sources.iter().find(|s| s.name == d.file) {
                Some(source) => writeln!(out, "{}", d.render(source))?,
                None => writeln!(out, "{d}")?,
            },
            Format::Json => {
                let severity = if d.severity == Severity::Error { "error" } else { "warning" };
                let object = json!({
                    "file": d.file, "line": d.line, "column": d.column, "start": d.span.start, "end": d.span.end,
                    "severity": severity, "message": d.message, "hint": d.hint,
                });
                writeln!(out, "{object}")?;
            }
        }
    }
    Ok(())
}

/// `rules check FILE...`: prints every mistake. [`EXIT_OK`] when there is no error.
///
/// # Errors
/// When `out` cannot be written.
pub fn check(files: &[PathBuf], host: &Host, format: Format, out: &mut dyn Write) -> io::Result<i32> {
    with_rules(files, host, format, out, |set, sources, out| {
        print_diagnostics(sources, &set.warnings, format, out)?;
        if format == Format::Text {
            writeln!(
                out,
                "{}, {}, {}: no errors",
                count(sources.len(), "file"),
                count(set.rules.len(), "rule"),
                count(set.sinks.len(), "sink")
            )?;
        }
        Ok(EXIT_OK)
    })
}

/// Loads the files and goes on with `run`, or prints why not.
fn with_rules(
    files: &[PathBuf],
    host: &Host,
    format: Format,
    out: &mut dyn Write,
    run: impl FnOnce(&RuleSet, &[Source<'_>], &mut dyn Write) -> io::Result<i32>,
) -> io::Result<i32> {
    let texts = match read_files(files) {
        Ok(texts) => texts,
        Err(message) => {
            match format {
                Format::Text => writeln!(out, "error: {message}")?,
                Format::Json => writeln!(out, "{}", json!({"severity": "error", "message": message}))?,
            }
            return Ok(EXIT_UNREADABLE);
        }
    };
    let sources = sources(&texts);
    match load(&sources, host) {
        Ok(set) => run(&set, &sources, out),
        Err(diagnostics) => {
            print_diagnostics(&sources, &diagnostics, format, out)?;
            if format == Format::Text {
                let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
                writeln!(out, "{} in {}", count(errors, "error"), count(sources.len(), "file"))?;
            }
            Ok(EXIT_INVALID)
        }
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `rules test FILE --topic T --payload P`: each rule, matched or why not, its rows, its rendered targets.
///
/// # Errors
/// When `out` cannot be written.
pub fn test(files: &[PathBuf], host: &Host, message: &TestMessage, out: &mut dyn Write) -> io::Result<i32> {
    with_rules(files, host, Format::Text, out, |set, sources, out| {
        let input = Message {
            topic: &message.topic,
            payload: &message.payload,
            qos: message.qos,
            retain: message.retain,
            clientid: &message.clientid,
            username: message.username.as_deref(),
            edge: message.edge.as_deref(),
            timestamp_ms: message.timestamp_ms,
            user_properties: Some(&message.user_properties),
            ..Message::default()
        };
        let mut scratch = Scratch::new(0);
        scratch.trace = Some(Vec::new());
        for rule in &set.rules {
            test_rule(rule, sources, &input, &mut scratch, out)?;
        }
        Ok(EXIT_OK)
    })
}

fn test_rule(
    rule: &Rule,
    sources: &[Source<'_>],
    input: &Message<'_>,
    scratch: &mut Scratch,
    out: &mut dyn Write,
) -> io::Result<()> {
    let file = sources.get(rule.file).map_or("", |s| s.name);
    let line = sources
        .get(rule.file)
        .map_or(0, |s| s.text.bytes().take(rule.span.start as usize).filter(|&b| b == b'\n').count() + 1);
    write!(out, "rule {} ({file}:{line}): ", rule.name)?;
    let Some(filter) = rule.filters.iter().find(|f| filter_matches(f, input.topic)) else {
        let filters = rule.filters.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", ");
        return writeln!(out, "not matched\n  the topic `{}` matches none of {filters}", input.topic);
    };
    if !rule.enabled {
        write!(out, "(disabled) ")?;
    }
    let now = Now { wall_ms: input.timestamp_ms };
    let mut state = RuleState::default();
    let mut rows = Rows::default();
    let mut fuel = u64::MAX;
    scratch.begin();
    scratch.trace = Some(Vec::new());
    let ended = step(rule, &mut state, input, scratch, now, &mut fuel, &mut rows);
    let errors = scratch.trace.take().unwrap_or_default();
    match ended {
        Step::Emit => {
            writeln!(out, "matched by \"{filter}\"")?;
            if !rule.program.payload_only {
                writeln!(out, "  row {}", show(&rows.row))?;
            }
            for row in &rows.rows {
                let insert = &rule.inserts[row.insert];
                write!(out, "  -> {}", insert.sink)?;
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
                match &row.body {
                    Body::Payload => writeln!(out, ": the payload, untouched")?,
                    Body::Json(_) => writeln!(out, ": the row")?,
                    Body::Text(text) => writeln!(out, ": {}", show(text))?,
                    Body::Encoded(bytes) => {
                        let format = rule.program.inserts.get(row.insert).and_then(|i| i.format.as_ref());
                        let format = format.map(|f| format!("{f:?}")).unwrap_or_default();
                        writeln!(out, ": {} bytes of {format}: {}", bytes.len(), hex(bytes))?;
                    }
                }
            }
        }
        Step::NoMatch => {
            writeln!(out, "not matched")?;
            match condition_parts(rule, input, scratch, now) {
                Err(failure) => writeln!(out, "  failed: {}", failure.name())?,
                Ok(parts) => {
                    for part in parts.iter().filter(|p| p.value != "true") {
                        let value = match part.value.as_str() {
                            "false" => "FALSE",
                            "null" => "NULL",
                            other => other,
                        };
                        writeln!(out, "  `{}` is {value}", part.text)?;
                        for (text, value) in part.reads.iter().filter(|(text, _)| *text != part.text) {
                            let value = if value == "null" { "NULL" } else { value };
                            writeln!(out, "    {text} = {}", show(value.as_bytes()))?;
                        }
                    }
                }
            }
        }
        Step::Failed(failure) => writeln!(out, "failed: {}", failure.name())?,
        Step::OutOfFuel => writeln!(out, "failed: out_of_fuel")?,
    }
    for (kind, what) in errors {
        writeln!(out, "  note: NULL by {}: {what}", kind.name())?;
    }
    Ok(())
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

/// `rules explain FILE`: topic filters, fields read, state kept, where rows go.
///
/// # Errors
/// When `out` cannot be written.
pub fn explain(files: &[PathBuf], host: &Host, out: &mut dyn Write) -> io::Result<i32> {
    with_rules(files, host, Format::Text, out, |set, _, out| {
        for rule in &set.rules {
            writeln!(out, "rule {} (id {})", rule.name, rule.id)?;
            let filters = rule.filters.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", ");
            writeln!(out, "  from      {filters}")?;
            for (i, part) in rule.program.condition_parts.iter().enumerate() {
                writeln!(out, "  {} {}", if i == 0 { "where    " } else { "  and    " }, part.text)?;
            }
            let fields = match rule.fields() {
                [] => "nothing: the payload is not parsed".to_owned(),
                fields => fields.join(", "),
            };
            writeln!(out, "  reads     {fields}")?;
            for insert in &rule.inserts {
                let what = if rule.passes_payload() { "the payload untouched" } else { "rows" };
                writeln!(out, "  writes    {what} to {}", insert.sink)?;
            }
            writeln!(out, "  state     none (0 bytes), {} operations", rule.program.ops.len())?;
        }
        Ok(EXIT_OK)
    })
}
