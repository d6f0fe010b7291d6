//! Tokens: what they are and where.
//!
//! sqlparser's tokenizer does the work, its parser is not used (it has none of our forms). A token here keeps its
//! kind and its span in the source; text is read from the source when it is needed. So nothing depends on the
//! tokenizer's unescaping, which differs between its dialects, and every error can point at its word.
//!
//! One `Dialect` a language: Ferrule and EMQX share one (`"` delimits identifiers, no backslash escapes); eKuiper
//! brings its own (backtick delimits identifiers, backslash escapes), and a rule's body is then lexed again from
//! its offset.

use sqlparser::dialect::Dialect as Quoting;
use sqlparser::tokenizer::{Location, Token as Raw, Tokenizer, Whitespace};

use crate::Span;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A bare word: a keyword or a name.
    Word,
    /// `"x"`.
    Quoted,
    /// `'x'`.
    Text,
    /// A number; its text decides whether it is an integer.
    Number,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// `.`
    Dot,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `[`
    OpenBracket,
    /// `]`
    CloseBracket,
    /// `=`
    Eq,
    /// `<>` or `!=`
    NotEq,
    /// `<`
    Less,
    /// `<=`
    LessEq,
    /// `>`
    Greater,
    /// `>=`
    GreaterEq,
    /// `+`
    Plus,
    /// `-`
    Minus,
    /// `*`
    Star,
    /// `/`
    Slash,
    /// `%`
    Percent,
    /// `||`
    Bars,
    /// `~`, after `=`
    Tilde,
    /// Anything that the language does not use.
    Other,
    /// The end of the file.
    End,
}

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: Kind,
    /// Where it is.
    pub(crate) span: Span,
}

/// Quoting of Ferrule's and EMQX's languages.
#[derive(Debug)]
struct DoubleQuoteNames;

impl Quoting for DoubleQuoteNames {
    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        ch == '"'
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        ch.is_alphabetic() || ch == '_'
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        ch.is_alphanumeric() || matches!(ch, '_' | '$' | '@')
    }

    // `a.1` is a path, not the number `.1`.
    fn supports_tuple_element_access(&self) -> bool {
        true
    }
}

/// The tokens of `text`, comments and white space dropped, ending with [`Kind::End`]; and the tokenizer's
/// complaint, after which there are no more tokens.
pub(crate) fn lex(text: &str) -> (Vec<Token>, Option<(Span, &'static str)>) {
    let mut raw = Vec::new();
    let failed = Tokenizer::new(&DoubleQuoteNames, text)
        .with_unescape(false)
        .tokenize_with_location_into_buf(&mut raw)
        .err();
    let mut places = Places::new(text);
    let mut tokens = Vec::with_capacity(raw.len() / 2);
    for token in &raw {
        let start = places.offset(token.span.start);
        let Some(kind) = kind(&token.token) else { continue };
        let end = places.offset(token.span.end);
        tokens.push(Token { kind, span: Span { start, end } });
    }
    let end = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let failed = failed.map(|error| {
        // The tokenizer names the place where the token began, or, for a comment, the end of the file.
        let at = Places::new(text).offset(error.location).min(end);
        let span = Span { start: at, end: (at + 1).min(end) };
        let message = match text.as_bytes().get(at as usize) {
            Some(b'\'') => "this string has no closing `'`",
            Some(b'"') => "this name has no closing `\"`",
            None => "a comment has no closing `*/`",
            Some(_) => "this cannot be read",
        };
        (span, message)
    });
    tokens.push(Token { kind: Kind::End, span: Span { start: end, end } });
    (tokens, failed)
}

fn kind(raw: &Raw) -> Option<Kind> {
    Some(match raw {
        Raw::Whitespace(
            Whitespace::Space
            | Whitespace::Tab
            | Whitespace::Newline
            | Whitespace::SingleLineComment { .. }
            | Whitespace::MultiLineComment(_),
        ) => return None,
        Raw::Word(word) if word.quote_style.is_some() => Kind::Quoted,
        Raw::Word(_) => Kind::Word,
        Raw::SingleQuotedString(_) => Kind::Text,
        Raw::Number(..) => Kind::Number,
        Raw::Comma => Kind::Comma,
        Raw::SemiColon => Kind::Semicolon,
        Raw::Period => Kind::Dot,
        Raw::LParen => Kind::Open,
        Raw::RParen => Kind::Close,
        Raw::LBracket => Kind::OpenBracket,
        Raw::RBracket => Kind::CloseBracket,
        Raw::Eq => Kind::Eq,
        Raw::Neq => Kind::NotEq,
        Raw::Lt => Kind::Less,
        Raw::LtEq => Kind::LessEq,
        Raw::Gt => Kind::Greater,
        Raw::GtEq => Kind::GreaterEq,
        Raw::Plus => Kind::Plus,
        Raw::Minus => Kind::Minus,
        Raw::Mul => Kind::Star,
        Raw::Div => Kind::Slash,
        Raw::Mod => Kind::Percent,
        Raw::StringConcat => Kind::Bars,
        Raw::Tilde => Kind::Tilde,
        _ => Kind::Other,
    })
}

/// Turns the tokenizer's (line, column in characters) into bytes; places must come in ascending order.
struct Places<'t> {
    rest: std::str::CharIndices<'t>,
    at: u32,
    line: u64,
    column: u64,
}

impl<'t> Places<'t> {
    fn new(text: &'t str) -> Self {
        Places { rest: text.char_indices(), at: 0, line: 1, column: 1 }
    }

    fn offset(&mut self, place: Location) -> u32 {
        while (self.line, self.column) < (place.line, place.column) {
            let Some((_, ch)) = self.rest.next() else { break };
            self.at = u32::try_from(self.rest.offset()).unwrap_or(u32::MAX);
            if ch == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_their_words() {
        let text = "SELECT \"ä b\".1 , 'it''s' -- note\n/* x */ <> 1.5e3 ü;";
        let (tokens, failed) = lex(text);
        assert_eq!(failed, None);
        let words: Vec<(Kind, &str)> = tokens.iter().map(|t| (t.kind, t.span.of(text))).collect();
        assert_eq!(
            words,
            [
                (Kind::Word, "SELECT"),
                (Kind::Quoted, "\"ä b\""),
                (Kind::Dot, "."),
                (Kind::Number, "1"),
                (Kind::Comma, ","),
                (Kind::Text, "'it''s'"),
                (Kind::NotEq, "<>"),
                (Kind::Number, "1.5e3"),
                (Kind::Word, "ü"),
                (Kind::Semicolon, ";"),
                (Kind::End, ""),
            ]
        );
    }

    #[test]
    fn unclosed_things_are_named_where_they_open() {
        for (text, at, message) in [
            ("a\n 'b", 3, "this string has no closing `'`"),
            ("a \"b", 2, "this name has no closing `\"`"),
            ("a /* b", 6, "a comment has no closing `*/`"),
        ] {
            let (_, failed) = lex(text);
            let (span, said) = failed.expect("an error");
            assert_eq!((span.start, said), (at, message), "{text}");
        }
    }
}
