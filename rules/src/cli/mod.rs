//! The commands `rules check`, `test`, `eval`, `explain`, `fmt` and `import` of both binaries.
//!
//! Each takes its files, the [`Host`] and a writer, and gives the exit code; the binaries parse arguments. This is
//! the only part of the crate that reads files. What `test` and `eval` show comes from [`crate::step()`], the same
//! evaluator that runs live.

mod eval;
mod explain;
mod fmt;
mod import;
mod messages;
mod test;

pub use eval::eval;
pub use explain::explain;
pub use fmt::fmt;
pub use import::import;
pub use messages::messages;
pub use test::{TestMessage, test};

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::{Diagnostic, Files, Host, RuleSet, Severity, Source, load};

/// Nothing is wrong.
pub const EXIT_OK: i32 = 0;
/// The rules have errors.
pub const EXIT_INVALID: i32 = 1;
/// A file cannot be read.
pub const EXIT_UNREADABLE: i32 = 2;

/// How [`check`], [`test()`] and [`explain()`] print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people: line, caret, help.
    #[default]
    Text,
    /// For editors: one JSON object a line.
    Json,
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
