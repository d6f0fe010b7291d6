//! `rules check`, and the rules' part of `check`: what `run` finds at its start, connectors' own checks included.

use super::Flavor;
use crate::loader;
use ferrule_rules::Severity;
use ferrule_rules::cli::{
    EXIT_INVALID, EXIT_OK, EXIT_UNREADABLE, Format, print_diagnostics, read_files, sources,
};
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;

/// Prints every mistake and gives the exit code, and how many sinks there are.
///
/// # Errors
/// When `out` cannot be written.
pub(super) fn rules(
    flavor: &Flavor,
    files: &[PathBuf],
    format: Format,
    out: &mut dyn Write,
) -> io::Result<(i32, usize)> {
    let texts = match read_files(files) {
        Ok(texts) => texts,
        Err(message) => {
            match format {
                Format::Text => writeln!(out, "error: {message}")?,
                Format::Json => writeln!(out, "{}", json!({"severity": "error", "message": message}))?,
            }
            return Ok((EXIT_UNREADABLE, 0));
        }
    };
    let sources = sources(&texts);
    let checked = loader::check(&sources, &flavor.host(), &(flavor.connectors)());
    let (code, sinks, diagnostics, summary) = match checked {
        Ok(set) => {
            let [files, rules, sinks] =
                [(sources.len(), "file"), (set.rules.len(), "rule"), (set.sinks.len(), "sink")].map(count);
            (EXIT_OK, set.sinks.len(), set.warnings, format!("{files}, {rules}, {sinks}: no errors"))
        }
        Err(diagnostics) => {
            let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
            let summary = format!("{} in {}", count((errors, "error")), count((sources.len(), "file")));
            (EXIT_INVALID, 0, diagnostics, summary)
        }
    };
    print_diagnostics(&sources, &diagnostics, format, out)?;
    if format == Format::Text {
        writeln!(out, "{summary}")?;
    }
    Ok((code, sinks))
}

/// Names of the sinks that rules declare, as far as the rules can be read.
pub(super) fn sink_names(flavor: &Flavor, sources: &[ferrule_rules::Source<'_>]) -> Vec<String> {
    let checked = loader::check(sources, &flavor.host(), &(flavor.connectors)());
    checked.map(|set| set.sinks.into_iter().map(|sink| sink.name).collect()).unwrap_or_default()
}

fn count((n, what): (usize, &str)) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
