//! Where an error is and how it is shown.

use std::fmt;

/// One file of rules.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The name shown in diagnostics, usually the path.
    pub name: &'a str,
    /// Its whole text.
    pub text: &'a str,
}

/// A half-open range of bytes of one source's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The span from the start of `self` to the end of `other`.
    pub(crate) fn to(self, other: Span) -> Span {
        Span { start: self.start, end: other.end.max(self.end) }
    }

    /// The text it covers; empty when it does not fit `text`.
    pub(crate) fn of(self, text: &str) -> &str {
        text.get(self.start as usize..self.end as usize).unwrap_or("")
    }
}

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file works, but probably not as meant.
    Warning,
}

/// One mistake in a rules file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// [`Source::name`] of the file.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The bytes it is about.
    pub span: Span,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do, where we know.
    pub hint: Option<String>,
    /// Error or warning.
    pub severity: Severity,
}

impl Diagnostic {
    /// A diagnostic about `span` of `source`.
    pub(crate) fn new(
        source: &Source<'_>,
        span: Span,
        severity: Severity,
        message: String,
        hint: Option<String>,
    ) -> Self {
        let (line, column) = position(source.text, span.start);
        Diagnostic { file: source.name.to_owned(), line, column, span, message, hint, severity }
    }

    /// The form for a terminal: place and message, the line with a caret under the word, the hint.
    pub fn render(&self, source: &Source<'_>) -> String {
        let mut out = format!("{self}\n");
        let text = source.text;
        let at = floor_char(text, self.span.start as usize);
        let line_start = text[..at].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[at..].find('\n').map_or(text.len(), |i| at + i);
        let line = text[line_start..line_end].trim_end_matches('\r');
        let number = self.line.to_string();
        let pad = " ".repeat(number.len());
        // A tab in the line is repeated under it, so that the caret stays below its word.
        let before: String =
            text[line_start..at].chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let until = floor_char(text, (self.span.end as usize).min(line_end)).max(at);
        let carets = "^".repeat(text[at..until].chars().count().max(1));
        out.push_str(&format!("{pad} |\n{number} | {line}\n{pad} | {before}{carets}\n"));
        if let Some(hint) = &self.hint {
            out.push_str(&format!("{pad} = help: {hint}\n"));
        }
        out
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}:{}:{}: {severity}: {}", self.file, self.line, self.column, self.message)
    }
}

/// Line and column (in characters), both from 1, of a byte of `text`.
fn position(text: &str, at: u32) -> (u32, u32) {
    let at = floor_char(text, at as usize);
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
    let column = before[line_start..].chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// The nearest character boundary at or before `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The name among `known` that `word` most likely meant: at most a third of its letters differ.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    nearest_few(word, known).first().copied()
}

/// As [`nearest`]: up to four, the nearest first.
pub(crate) fn nearest_few<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Vec<&'k str> {
    let word: Vec<char> = word.chars().take(64).flat_map(char::to_lowercase).collect();
    let allowed = (word.len() / 3).max(1);
    let near = known.into_iter().map(|name| (distance(&word, name), name)).filter(|&(d, _)| d <= allowed);
    let mut near: Vec<(usize, &str)> = near.collect();
    near.sort_by_key(|&(d, _)| d);
    near.into_iter().take(4).map(|(_, name)| name).collect()
}

/// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours cost 1.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).flat_map(char::to_lowercase).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substitute = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substitute.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}
