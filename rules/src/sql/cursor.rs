//! A position in the tokens, and the diagnostics found on the way.

use super::lex::{Kind, Token};
use crate::{Diagnostic, Dialect, Severity, Source, Span};

/// The statement cannot be read further; the diagnostic is already in the cursor.
#[derive(Debug)]
pub(crate) struct Stop;

/// A parser's result.
pub(crate) type Parsed<T> = Result<T, Stop>;

/// Tokens with a position. The last token is [`Kind::End`] and is never passed.
pub(crate) struct Cursor<'s> {
    pub(crate) source: &'s Source<'s>,
    tokens: Vec<Token>,
    at: usize,
    /// The language of what is read.
    pub(crate) dialect: Dialect,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Sinks whose CREATE could not be read: rules that name them are not wrong for that.
    pub(crate) unread_sinks: Vec<String>,
}

impl<'s> Cursor<'s> {
    pub(crate) fn new(source: &'s Source<'s>, tokens: Vec<Token>) -> Self {
        Cursor {
            source,
            tokens,
            at: 0,
            dialect: Dialect::Ferrule,
            diagnostics: Vec::new(),
            unread_sinks: Vec::new(),
        }
    }

    pub(crate) fn peek(&self) -> Token {
        self.peek_at(0)
    }

    pub(crate) fn peek_at(&self, ahead: usize) -> Token {
        let end = Token { kind: Kind::End, span: Span::default() };
        self.tokens.get(self.at + ahead).or(self.tokens.last()).copied().unwrap_or(end)
    }

    pub(crate) fn next(&mut self) -> Token {
        let token = self.peek();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    /// The span of the token before the position.
    pub(crate) fn last(&self) -> Span {
        let before = self.at.saturating_sub(1);
        self.tokens.get(before).map_or(Span::default(), |t| t.span)
    }

    pub(crate) fn text(&self, token: Token) -> &'s str {
        token.span.of(self.source.text)
    }

    /// Whether the next token is this keyword, in any case.
    pub(crate) fn at_word(&self, word: &str) -> bool {
        self.at_word_ahead(0, word)
    }

    pub(crate) fn at_word_ahead(&self, ahead: usize, word: &str) -> bool {
        let token = self.peek_at(ahead);
        token.kind == Kind::Word && self.text(token).eq_ignore_ascii_case(word)
    }

    pub(crate) fn eat(&mut self, kind: Kind) -> bool {
        let found = self.peek().kind == kind;
        if found {
            self.next();
        }
        found
    }

    pub(crate) fn eat_word(&mut self, word: &str) -> bool {
        let found = self.at_word(word);
        if found {
            self.next();
        }
        found
    }

    pub(crate) fn expect(&mut self, kind: Kind, what: &str) -> Parsed<Span> {
        if self.peek().kind == kind { Ok(self.next().span) } else { Err(self.unexpected(what)) }
    }

    pub(crate) fn expect_word(&mut self, word: &str) -> Parsed<Span> {
        if self.at_word(word) { Ok(self.next().span) } else { Err(self.unexpected(&format!("`{word}`"))) }
    }

    /// Reports what was found where `what` was expected.
    pub(crate) fn unexpected(&mut self, what: &str) -> Stop {
        let token = self.peek();
        let found = match token.kind {
            Kind::End => "the end of the file".to_owned(),
            _ => format!("`{}`", shorten(self.text(token))),
        };
        self.stop(token.span, format!("expected {what}, found {found}"), None)
    }

    /// Reports an error and stops.
    pub(crate) fn stop(&mut self, span: Span, message: impl Into<String>, hint: Option<String>) -> Stop {
        self.error(span, message, hint);
        Stop
    }

    /// Reports an error and goes on.
    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>, hint: Option<String>) {
        let message = message.into();
        self.diagnostics.push(Diagnostic::new(self.source, span, Severity::Error, message, hint));
    }

    /// Whether EMQX's language is read.
    pub(crate) fn is_emqx(&self) -> bool {
        self.dialect == Dialect::Emqx
    }

    /// Goes past the next `;`.
    pub(crate) fn resync(&mut self) {
        loop {
            match self.next().kind {
                Kind::Semicolon | Kind::End => return,
                _ => {}
            }
        }
    }

    pub(crate) fn at_end(&self) -> bool {
        self.peek().kind == Kind::End
    }
}

/// At most 40 characters of a word of the source.
pub(crate) fn shorten(word: &str) -> String {
    match word.char_indices().nth(40) {
        Some((at, _)) => format!("{}...", &word[..at]),
        None => word.to_owned(),
    }
}
