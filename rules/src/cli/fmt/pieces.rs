//! A statement as pieces: words with the comments around them, and which words are keywords.

use crate::Dialect;
use crate::Span;
use crate::sql::ast::{Access, Expr, ExprKind, Item, Statement, StatementKind};
use crate::sql::expr::{RESERVED, RESERVED_EMQX};
use crate::sql::lex::{Kind, Token};

/// A comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Comment<'t> {
    pub(super) text: &'t str,
    /// It begins its line.
    own_line: bool,
    /// An empty line is before it.
    after_gap: bool,
}

impl Comment<'_> {
    /// What follows it must be on another line.
    pub(super) fn ends_line(&self) -> bool {
        self.text.starts_with("--")
    }
}

/// What stands before each token: comments, and whether an empty line.
#[derive(Debug)]
pub(super) struct Comments<'t> {
    /// By the token after them: those on the line of the token before, those on lines of their own, whether an empty line
    /// is right before the token.
    gaps: Vec<(Vec<Comment<'t>>, Vec<Comment<'t>>, bool)>,
}

impl<'t> Comments<'t> {
    pub(super) fn of(text: &'t str, tokens: &[Token]) -> Comments<'t> {
        let mut end = 0;
        let mut gaps = Vec::with_capacity(tokens.len());
        for token in tokens {
            let gap = text.get(end..token.span.start as usize).unwrap_or("");
            gaps.push(read_gap(gap, end == 0));
            end = token.span.end as usize;
        }
        Comments { gaps }
    }

    /// Writes what is before token `at`, the first of a statement or the end of the file, on lines of its own.
    pub(super) fn lead(&self, at: usize, out: &mut String) {
        let Some((_, own, gap)) = self.gaps.get(at) else { return };
        let empty = |out: &mut String, wanted: bool| {
            if wanted && !out.is_empty() && !out.ends_with("\n\n") {
                out.push('\n');
            }
        };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        for comment in own {
            empty(out, comment.after_gap);
            out.push_str(comment.text);
            out.push('\n');
        }
        if at + 1 < self.gaps.len() {
            empty(out, *gap);
        }
    }

    /// Writes what is on the line of the token before `at`.
    pub(super) fn trail(&self, at: usize, out: &mut String) {
        for comment in self.after(at) {
            out.push(' ');
            out.push_str(comment.text);
        }
    }

    fn after(&self, at: usize) -> &[Comment<'t>] {
        self.gaps.get(at).map_or(&[], |(after, ..)| after)
    }

    fn own(&self, at: usize) -> &[Comment<'t>] {
        self.gaps.get(at).map_or(&[], |(_, own, _)| own)
    }

    /// All comments of a statement of `count` tokens from `first` on, those behind its last one among them.
    pub(super) fn inside(&self, first: usize, count: usize) -> impl Iterator<Item = &'t str> {
        let of = move |at: usize| {
            let after = if at > first { self.after(at) } else { &[] };
            let own = if at > first && at < first + count { self.own(at) } else { &[] };
            after.iter().chain(own).map(|c| c.text)
        };
        (first..=first + count).flat_map(of)
    }
}

/// Comments between two tokens. White space is all else that stands there.
fn read_gap(gap: &str, begins: bool) -> (Vec<Comment<'_>>, Vec<Comment<'_>>, bool) {
    let (mut after, mut own) = (Vec::new(), Vec::new());
    let mut rest = gap;
    let mut lines = usize::from(begins);
    loop {
        let trimmed = rest.trim_start();
        lines += rest.get(..rest.len() - trimmed.len()).unwrap_or("").matches('\n').count();
        let length = if trimmed.starts_with("--") {
            trimmed.find('\n').unwrap_or(trimmed.len())
        } else if trimmed.starts_with("/*") {
            trimmed.find("*/").map_or(trimmed.len(), |end| end + 2)
        } else {
            return (after, own, lines > 1);
        };
        let text = trimmed.get(..length).unwrap_or("").trim_end();
        let comment = Comment { text, own_line: lines > 0 || !own.is_empty(), after_gap: lines > 1 };
        if comment.own_line {
            own.push(comment)
        } else {
            after.push(comment)
        }
        rest = trimmed.get(length..).unwrap_or("");
        lines = 0;
    }
}

/// A word of a statement.
#[derive(Debug, Clone)]
pub(super) struct Piece<'t> {
    pub(super) kind: Kind,
    /// As it is to be written.
    pub(super) text: String,
    /// A keyword, in upper case; else empty.
    pub(super) keyword: String,
    /// No space was before it.
    pub(super) touching: bool,
    /// Comments before it, on lines of their own.
    pub(super) own: Vec<Comment<'t>>,
    /// Comments behind it, on its line.
    pub(super) after: Vec<Comment<'t>>,
}

impl Piece<'_> {
    pub(super) fn is(&self, keyword: &str) -> bool {
        self.keyword == keyword
    }
}

/// The words of a statement.
#[derive(Debug)]
pub(super) struct Pieces<'t> {
    pub(super) list: Vec<Piece<'t>>,
}

impl<'t> Pieces<'t> {
    pub(super) fn of(
        text: &'t str,
        tokens: &[Token],
        first: usize,
        statement: Option<&Statement>,
        comments: &Comments<'t>,
    ) -> Pieces<'t> {
        let (dialect, kept) = match statement.map(|s| &s.kind) {
            Some(StatementKind::CreateRule { dialect, query, .. }) => {
                let make = query.foreach.iter().filter_map(|f| f.make.as_ref()).flatten();
                (*dialect, query.items.iter().chain(make).filter_map(named_by_its_text).collect())
            }
            _ => (Dialect::Ferrule, Vec::new()),
        };
        let kept = if dialect == Dialect::Emqx { kept } else { Vec::new() };
        let mut list: Vec<Piece<'t>> = Vec::with_capacity(tokens.len());
        let mut in_body = false;
        let mut options = 0_u32;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            // An item that is named by its text, or what is between the brackets of a range.
            let whole = kept.iter().find(|span: &&Span| span.start == token.span.start).copied();
            let whole = whole.or_else(|| range(text, tokens, at));
            let end = whole.map_or(token.span.end, |whole| whole.end);
            let next = tokens
                .iter()
                .skip(at + 1)
                .position(|t| t.span.start >= end)
                .map_or(tokens.len(), |n| at + 1 + n);
            let word = token.span.of(text);
            let dotted = list.last().is_some_and(|before| before.kind == Kind::Dot);
            let upper = word.to_ascii_uppercase();
            let is_keyword = token.kind == Kind::Word
                && whole.is_none()
                && !dotted
                && if options > 0 {
                    matches!(upper.as_str(), "TRUE" | "FALSE")
                        && list.last().is_some_and(|p| p.kind == Kind::Eq)
                } else if in_body && dialect == Dialect::Emqx {
                    RESERVED_EMQX.contains(&upper.as_str())
                } else {
                    RESERVED.contains(&upper.as_str())
                        || at == 1 && matches!(upper.as_str(), "RULE" | "SINK" | "SCHEMA")
                };
            in_body |= is_keyword && matches!(upper.as_str(), "SELECT" | "FOREACH");
            match token.kind {
                // The options of WITH.
                Kind::Open if !in_body => options += 1,
                Kind::Close if !in_body => options = options.saturating_sub(1),
                _ => {}
            }
            let words = if whole.is_some() { Span { start: token.span.start, end }.of(text) } else { word };
            list.push(Piece {
                // What is kept whole is to its neighbours what its first word is.
                kind: if whole.is_some() { Kind::Other } else { token.kind },
                text: if is_keyword { upper.clone() } else { words.to_owned() },
                keyword: if is_keyword { upper } else { String::new() },
                touching: at > 0
                    && tokens.get(at - 1).is_some_and(|before| before.span.end == token.span.start),
                own: if at == 0 { Vec::new() } else { comments.own(first + at).to_vec() },
                after: comments.after(first + next).to_vec(),
            });
            at = next;
        }
        Pieces { list }
    }
}

/// The span of an item of EMQX's dialect whose text is its name.
fn named_by_its_text(item: &Item) -> Option<Span> {
    let Item::Expr { expr, alias: None } = item else { return None };
    let plain = |expr: &Expr| matches!(expr.kind, ExprKind::Column(_) | ExprKind::Text(_));
    let walk = match &expr.kind {
        ExprKind::Access(base, steps) => {
            matches!(base.kind, ExprKind::Column(_))
                && !steps.iter().any(|s| matches!(s, Access::Computed(_)))
        }
        _ => false,
    };
    (!plain(expr) && !walk).then_some(expr.span)
}

/// `1..3` after a bracket: its dots and numbers are other tokens when they are parted.
fn range(text: &str, tokens: &[Token], at: usize) -> Option<Span> {
    let open = tokens.get(at.checked_sub(1)?)?;
    if open.kind != Kind::OpenBracket {
        return None;
    }
    let rest = tokens.get(at..)?;
    let close = rest.iter().take(8).position(|t| t.kind == Kind::CloseBracket).filter(|&n| n > 0)?;
    let span = rest.first()?.span.to(rest.get(close - 1)?.span);
    let numbers = |text: &str| text.trim().parse::<i64>().is_ok();
    span.of(text).split_once("..").is_some_and(|(a, b)| numbers(a) && numbers(b)).then_some(span)
}
