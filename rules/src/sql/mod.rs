//! Text to AST.
//!
//! `lex` gives tokens that are kinds and spans over the source (never decoded text), `cursor` walks them, `expr`,
//! `query` and `statement` build the AST of `ast`. A parser stops at its first error in a statement and goes on
//! after the next `;`, so that all statements of all files are reported at once.
//!
//! Bounds: a file at most [`MAX_FILE`] bytes, a statement [`MAX_STATEMENT`] bytes, an expression [`MAX_DEPTH`]
//! levels; chains of AND and OR are one level. Everything that recurses over an AST is bounded by that depth.

pub(crate) mod ast;
pub(crate) mod cursor;
#[cfg(test)]
mod editors;
pub(crate) mod expr;
pub(crate) mod lex;
pub(crate) mod query;
pub(crate) mod statement;

/// The largest file of rules, in bytes: thousands of rules.
pub(crate) const MAX_FILE: usize = 16 << 20;
/// The longest statement, in bytes.
pub(crate) const MAX_STATEMENT: usize = 64 << 10;
/// The deepest expression.
pub(crate) const MAX_DEPTH: u16 = 64;
