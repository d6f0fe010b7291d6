//! Mistakes in a configuration, all of them, as people read them.

use super::document::{Document, Place};
use std::fmt;

/// Where a mistake is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorPlace {
    /// In the file.
    File {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The text of the line.
        text: String,
        /// How many characters it is about, at least 1.
        width: usize,
    },
    /// In an environment variable.
    Env(String),
    /// In a command line option.
    Flag(&'static str),
    /// Nowhere in particular: something is missing.
    Whole,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do, where we know.
    pub hint: Option<String>,
    /// Where.
    pub place: ErrorPlace,
}

/// Every mistake in a configuration: those of the file by line, then those of variables and options. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file as it was named, if there is one.
    pub file: Option<String>,
    /// The mistakes.
    pub errors: Vec<ConfigError>,
}

// === impl ConfigError ===

impl ConfigError {
    /// At `place` of `document`.
    pub(super) fn new(document: &Document, place: &Place, message: String, hint: Option<String>) -> Self {
        let place = match place {
            Place::File(span) => {
                let text = &document.text;
                let start = floor_char(text, span.start);
                let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
                let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
                let end = floor_char(text, span.end.clamp(start, line_end));
                ErrorPlace::File {
                    line: text[..start].bytes().filter(|&b| b == b'\n').count() + 1,
                    column: text[line_start..start].chars().count() + 1,
                    text: text[line_start..line_end].trim_end_matches('\r').to_owned(),
                    width: text[start..end].trim_end().chars().count().max(1),
                }
            }
            Place::Env(name) => ErrorPlace::Env(name.clone()),
            Place::Flag(name) => ErrorPlace::Flag(name),
            Place::Nowhere => ErrorPlace::Whole,
        };
        Self { message, hint, place }
    }

    /// Files first and by line: the order in which a person mends them.
    fn order(&self) -> (u8, usize, usize, &str) {
        match &self.place {
            ErrorPlace::File { line, column, .. } => (0, *line, *column, ""),
            ErrorPlace::Whole => (1, 0, 0, ""),
            ErrorPlace::Env(name) => (2, 0, 0, name),
            ErrorPlace::Flag(name) => (3, 0, 0, name),
        }
    }

    /// The form for a terminal, the same as for mistakes in rules.
    fn render(&self, file: Option<&str>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = file.unwrap_or("configuration");
        let mut pad = String::new();
        match &self.place {
            ErrorPlace::File { line, column, text, width } => {
                pad = " ".repeat(line.to_string().len());
                // A tab in the line is repeated under it, so that the caret stays below its word.
                let before: String =
                    text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                writeln!(f, "{file}:{line}:{column}: error: {}", self.message)?;
                writeln!(f, "{pad} |\n{line} | {text}\n{pad} | {before}{}", "^".repeat(*width))?;
            }
            ErrorPlace::Env(name) => writeln!(f, "environment {name}: error: {}", self.message)?,
            ErrorPlace::Flag(name) => writeln!(f, "option {name}: error: {}", self.message)?,
            ErrorPlace::Whole => writeln!(f, "{file}: error: {}", self.message)?,
        }
        match &self.hint {
            Some(hint) => writeln!(f, "{pad} = help: {hint}"),
            None => Ok(()),
        }
    }
}

// === impl ConfigErrors ===

impl ConfigErrors {
    /// Sorted, without repeats.
    pub(super) fn new(file: Option<String>, mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by(|a, b| a.order().cmp(&b.order()));
        errors.dedup();
        Self { file, errors }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            error.render(self.file.as_deref(), f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The nearest character boundary at or before `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The name among `known` that `word` most likely meant: at most a third of its letters differ.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (distance(word, name), name))
        .filter(|(d, name)| *d <= allowed || (word.len() >= 4 && name.starts_with(word)))
        .min_by_key(|(d, _)| *d)
        .map(|(_, name)| name)
}

/// Edits between two short words; both are cut at 64 characters, so that a hostile key costs nothing.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let substitute = above[j] + usize::from(ca != cb);
            row.push(substitute.min(above[j + 1] + 1).min(row[j] + 1));
        }
        above = row;
    }
    above[b.len()]
}
