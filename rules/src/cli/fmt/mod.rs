//! `rules fmt`: a rules file in one shape.
//!
//! # The shape
//! Keywords in upper case, a clause a line (INSERT INTO, SELECT or FOREACH, DO, INCASE, FROM, WHERE). A clause of more than
//! [`WIDTH`] columns has an item a line, WHERE and INCASE a line for each part that AND or OR joins, CASE one for each WHEN.
//! At most one empty line between statements. Names, strings and numbers are never touched.
//!
//! # How nothing is lost
//! It works on tokens with spans, not on the AST: what the parser does not keep cannot get lost. Comments are what stands
//! between tokens, and go with the token before them (on its line) or the one after (on lines of their own). Before a
//! statement is written, its tokens and comments are compared with those of the source: were they others, it would stay
//! as it was. A statement with a mistake stays as it is, too, and the mistake is told.
//!
//! In EMQX's dialect an item without AS is named by its own text, so the spaces in it are kept (`Pieces`).

mod layout;
mod pieces;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{EXIT_INVALID, EXIT_OK, EXIT_UNREADABLE, Format, print_diagnostics, rule_files};
use crate::sql::ast::{Statement, StatementKind};
use crate::sql::lex::{Kind, Token, lex};
use crate::sql::statement::statements;
use crate::{Diagnostic, Dialect, Source};
use layout::Writer;
use pieces::{Comments, Pieces};

/// The longest line, where there is a place to break it.
const WIDTH: usize = 100;

/// A formatted file.
#[derive(Debug, PartialEq)]
pub(super) struct Formatted {
    pub(super) text: String,
    /// Mistakes of the statements that were left as they are.
    pub(super) mistakes: Vec<Diagnostic>,
}

/// `rules fmt FILE...`: writes each file anew; with `check` it only tells which would change. `-` is standard input, whose
/// text goes to `out`.
///
/// # Errors
/// When `out` or `told` cannot be written.
pub fn fmt(
    files: &[PathBuf],
    check: bool,
    input: &mut dyn Read,
    out: &mut dyn Write,
    told: &mut dyn Write,
) -> io::Result<i32> {
    let mut code = EXIT_OK;
    let mut all = Vec::new();
    for file in files {
        match rule_files(file) {
            Ok(found) => all.extend(found),
            Err(error) => {
                writeln!(told, "error: cannot list {}: {error}", file.display())?;
                return Ok(EXIT_UNREADABLE);
            }
        }
    }
    for file in &all {
        let stdin = file.as_os_str() == "-";
        let text = if stdin { io::read_to_string(&mut *input) } else { std::fs::read_to_string(file) };
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                writeln!(told, "error: cannot read {}: {error}", file.display())?;
                return Ok(EXIT_UNREADABLE);
            }
        };
        let name = file.display().to_string();
        let source = Source { name: &name, text: &text };
        let formatted = format(&source);
        if !formatted.mistakes.is_empty() {
            print_diagnostics(&[source], &formatted.mistakes, Format::Text, told)?;
            writeln!(told, "{name}: statements with mistakes are left as they are")?;
            code = EXIT_INVALID;
        }
        if check {
            if formatted.text != text {
                writeln!(told, "{name}: not formatted")?;
                code = EXIT_INVALID;
            }
        } else if stdin {
            out.write_all(formatted.text.as_bytes())?;
        } else if formatted.text != text {
            if let Err(error) = replace(file, &formatted.text) {
                writeln!(told, "error: cannot write {name}: {error}")?;
                return Ok(EXIT_UNREADABLE);
            }
            writeln!(told, "{name}: formatted")?;
        }
    }
    Ok(code)
}

/// Writes a file anew: there is always a whole one, whatever happens on the way.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    // The file that a link points to, not the link.
    let file = file.canonicalize()?;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = file.with_file_name(name);
    let written = std::fs::write(&fresh, text)
        .and_then(|()| std::fs::set_permissions(&fresh, std::fs::metadata(&file)?.permissions()))
        .and_then(|()| std::fs::rename(&fresh, &file));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

/// Formats a file.
pub(super) fn format(source: &Source<'_>) -> Formatted {
    let read = statements(source, Dialect::Ferrule);
    let (tokens, failed) = lex(source.text);
    // Where quotes do not close, nobody knows where statements end.
    if failed.is_some() || tokens.len() == 1 && read.statements.is_empty() && !read.diagnostics.is_empty() {
        return Formatted { text: source.text.to_owned(), mistakes: read.diagnostics };
    }
    let comments = Comments::of(source.text, &tokens);
    let mut out = String::with_capacity(source.text.len() + 64);
    let mut at = 0;
    let mut mistakes: Vec<u32> = read.diagnostics.iter().map(|d| d.span.start).collect();
    mistakes.sort_unstable();
    let mistake_from = |offset: u32| mistakes.get(mistakes.partition_point(|&at| at < offset)).copied();
    // After a dialect that cannot be read nothing was parsed.
    let mut readable = true;
    while let Some(first) = tokens.get(at).filter(|token| token.kind != Kind::End) {
        let end = tokens[at..]
            .iter()
            .position(|t| t.kind == Kind::Semicolon)
            .map_or(tokens.len() - 1, |n| at + n + 1);
        let last = tokens[end - 1];
        comments.lead(at, &mut out);
        // A mistake at the end of the file is the last statement's.
        let is_last = tokens.get(end).is_none_or(|t| t.kind == Kind::End);
        let wrong = mistake_from(first.span.start).is_some_and(|at| at < last.span.end || is_last);
        let found = read.statements.binary_search_by_key(&first.span.start, |s| s.span.start);
        let statement = found.ok().and_then(|at| read.statements.get(at));
        let sets = first.span.of(source.text).eq_ignore_ascii_case("SET");
        readable &= !(sets && wrong);
        let formatted = (readable && !wrong && (sets || statement.is_some_and(has_shape)))
            .then(|| one(source.text, &tokens[at..end], at, statement, &comments))
            .flatten();
        match formatted {
            Some(text) => out.push_str(&text),
            None => {
                out.push_str(
                    source.text.get(first.span.start as usize..last.span.end as usize).unwrap_or(""),
                );
                comments.trail(end, &mut out);
            }
        }
        at = end;
    }
    comments.lead(at, &mut out);
    Formatted { text: out, mistakes: read.diagnostics }
}

/// A bare query is a mistake in a file, though it can be read.
fn has_shape(statement: &Statement) -> bool {
    !matches!(statement.kind, StatementKind::Query(_))
}

/// One statement with the comments in it; `None`: the result would not be the same statement.
fn one(
    text: &str,
    tokens: &[Token],
    first: usize,
    statement: Option<&Statement>,
    comments: &Comments<'_>,
) -> Option<String> {
    let pieces = Pieces::of(text, tokens, first, statement, comments);
    let mut writer = Writer::default();
    layout::statement(&pieces, &mut writer);
    let fresh = writer.finish();
    same(text, tokens, first, comments, &fresh).then_some(fresh)
}

/// Whether `fresh` has the tokens and comments of the source, but for the case of words.
fn same(text: &str, tokens: &[Token], first: usize, comments: &Comments<'_>, fresh: &str) -> bool {
    let (again, failed) = lex(fresh);
    let words = |text: &str, tokens: &[Token]| -> Vec<(Kind, String)> {
        let word = |t: &Token| {
            let word = t.span.of(text);
            (t.kind, if t.kind == Kind::Word { word.to_ascii_lowercase() } else { word.to_owned() })
        };
        tokens.iter().filter(|t| t.kind != Kind::End).map(word).collect()
    };
    let inside = comments.inside(first, tokens.len());
    let there = Comments::of(fresh, &again);
    failed.is_none()
        && words(text, tokens) == words(fresh, &again)
        && inside.eq(there.inside(0, again.len() - 1))
}

#[cfg(test)]
mod tests;
