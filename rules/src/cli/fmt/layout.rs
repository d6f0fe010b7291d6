//! Where lines end.

use super::WIDTH;
use super::pieces::{Piece, Pieces};
use crate::sql::lex::Kind;

/// How far what belongs to a line above is moved.
const STEP: usize = 2;

/// Text that grows by words, with the comments around them.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: String,
    /// The next word begins a line: a comment ended the one before.
    broken: bool,
}

impl Writer {
    /// The statement.
    pub(super) fn finish(self) -> String {
        self.out
    }

    fn line(&mut self, indent: usize) {
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        self.out.extend(std::iter::repeat_n(' ', indent));
        self.broken = false;
    }

    /// A word; `space`: parted from the one before, when on its line. After a comment it goes on at `indent`.
    fn word(&mut self, piece: &Piece<'_>, space: bool, indent: usize) {
        let mut space = space;
        for comment in &piece.own {
            if !self.out.trim_end_matches(' ').ends_with('\n') {
                self.line(indent);
            }
            self.out.push_str(comment.text);
            self.broken = true;
        }
        if self.broken {
            self.line(indent);
            space = false;
        }
        if space {
            self.out.push(' ');
        }
        self.out.push_str(&piece.text);
        for comment in &piece.after {
            if self.broken {
                self.line(indent);
            } else {
                self.out.push(' ');
            }
            self.out.push_str(comment.text);
            self.broken |= comment.ends_line();
        }
    }

    /// Words on one line, but for comments; the first is where the line stands.
    fn words(&mut self, pieces: &[Piece<'_>], indent: usize) {
        for (at, piece) in pieces.iter().enumerate() {
            let space = at
                .checked_sub(1)
                .and_then(|b| pieces.get(b))
                .is_some_and(|before| spaced(pieces.get(at.wrapping_sub(2)), before, piece));
            self.word(piece, space, indent);
        }
    }
}

/// A statement, its `;` and the comments behind that.
pub(super) fn statement(pieces: &Pieces<'_>, out: &mut Writer) {
    let starts = clause_starts(&pieces.list);
    for (n, &start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(pieces.list.len());
        if let Some(clause) = pieces.list.get(start..end) {
            self::clause(clause, n > 0, out);
        }
    }
}

/// Indices of the words that begin a line.
fn clause_starts(list: &[Piece<'_>]) -> Vec<usize> {
    let mut starts = vec![0];
    let mut inside = 0_u32;
    for (at, piece) in list.iter().enumerate() {
        inside = depth(inside, piece);
        let begins = ["INSERT", "SELECT", "FOREACH", "DO", "INCASE", "FROM", "WHERE"];
        if at > 0 && inside == 0 && begins.iter().any(|word| piece.is(word)) {
            starts.push(at);
        }
    }
    starts
}

/// Levels of brackets and CASE behind a word.
fn depth(inside: u32, piece: &Piece<'_>) -> u32 {
    match piece.kind {
        Kind::Open | Kind::OpenBracket => inside + 1,
        Kind::Close | Kind::CloseBracket => inside.saturating_sub(1),
        _ if piece.is("CASE") => inside + 1,
        _ if piece.is("END") => inside.saturating_sub(1),
        _ => inside,
    }
}

fn clause(clause: &[Piece<'_>], next: bool, out: &mut Writer) {
    let Some(first) = clause.first() else { return };
    // Comments before a clause stand over it.
    for comment in &first.own {
        out.line(0);
        out.out.push_str(comment.text);
    }
    if next {
        out.line(0);
    }
    let mut first = first.clone();
    first.own.clear();
    let mut clause = clause.to_vec();
    if let Some(place) = clause.first_mut() {
        *place = first;
    }
    if !has_comments(&clause) && width(&clause) <= WIDTH {
        return out.words(&clause, STEP);
    }
    let is = |word: &str| clause.first().is_some_and(|p| p.is(word));
    let second_is = |word: &str| clause.get(1).is_some_and(|p| p.is(word));
    if is("CREATE") && (second_is("SINK") || second_is("SCHEMA")) {
        options(&clause, out);
    } else if is("WHERE") || is("INCASE") {
        out.words(&clause[..1], STEP);
        let parts = parts(&clause[1..]);
        for (n, part) in parts.iter().enumerate() {
            if n == 0 && !out.broken && part.first().is_none_or(|p| p.own.is_empty()) {
                out.out.push(' ');
            } else {
                start_line(out, part, STEP);
            }
            item(part, 2 * STEP, STEP + width(part) > WIDTH, out);
        }
    } else {
        let head = match is("INSERT") {
            true => 2,
            false if is("CREATE") || is("SET") => clause.len(),
            false => 1,
        };
        out.words(&clause[..head.min(clause.len())], STEP);
        for element in elements(&clause[head.min(clause.len())..]) {
            start_line(out, element, STEP);
            item(element, 2 * STEP, STEP + width(element) > WIDTH, out);
        }
    }
}

/// A new line for what comes next, unless its comments begin one.
fn start_line(out: &mut Writer, part: &[Piece<'_>], indent: usize) {
    match part.first() {
        Some(first) if !first.own.is_empty() => {
            for comment in &first.own {
                out.line(indent);
                out.out.push_str(comment.text);
            }
            out.line(indent);
        }
        _ => out.line(indent),
    }
}

/// One item of a list or part of a condition, its own comments written already. A CASE that is too `long` has a line for
/// each WHEN.
fn item(pieces: &[Piece<'_>], indent: usize, long: bool, out: &mut Writer) {
    let mut inside = 0_u32;
    for (at, piece) in pieces.iter().enumerate() {
        let mut piece = piece.clone();
        if at == 0 {
            piece.own.clear();
        }
        let breaks = long && inside == 1 && ["WHEN", "ELSE", "END"].iter().any(|word| piece.is(word));
        inside = depth(inside, &piece);
        let before = at.checked_sub(1).and_then(|b| pieces.get(b));
        let space = before.is_some_and(|before| spaced(pieces.get(at.wrapping_sub(2)), before, &piece));
        if breaks && piece.own.is_empty() {
            // END stands under CASE.
            out.line(if piece.is("END") { indent.saturating_sub(STEP) } else { indent });
            out.word(&piece, false, indent);
        } else {
            out.word(&piece, space, indent);
        }
    }
}

/// `CREATE SINK name WITH (` or that of a schema, an option a line.
fn options(clause: &[Piece<'_>], out: &mut Writer) {
    let open = clause.iter().position(|p| p.kind == Kind::Open).map_or(clause.len(), |at| at + 1);
    let close =
        clause.iter().rposition(|p| p.kind == Kind::Close).filter(|&at| at >= open).unwrap_or(clause.len());
    out.words(&clause[..open], STEP);
    for element in elements(&clause[open..close]) {
        start_line(out, element, STEP);
        item(element, 2 * STEP, false, out);
    }
    out.words(&clause[close..], STEP);
}

/// Split behind the commas of the outermost level.
fn elements<'p, 't>(list: &'p [Piece<'t>]) -> Vec<&'p [Piece<'t>]> {
    let mut inside = 0_u32;
    list.split_inclusive(|piece| {
        inside = depth(inside, piece);
        inside == 0 && piece.kind == Kind::Comma
    })
    .collect()
}

/// Split before the ANDs and ORs of the outermost level.
fn parts<'p, 't>(condition: &'p [Piece<'t>]) -> Vec<&'p [Piece<'t>]> {
    let mut parts = Vec::new();
    let (mut inside, mut between, mut start) = (0_u32, false, 0);
    for (at, piece) in condition.iter().enumerate() {
        inside = depth(inside, piece);
        if inside > 0 {
            continue;
        }
        if piece.is("BETWEEN") {
            between = true;
        } else if piece.is("AND") && between {
            between = false;
        } else if at > start && (piece.is("AND") || piece.is("OR")) {
            parts.push(&condition[start..at]);
            start = at;
        }
    }
    parts.push(&condition[start..]);
    parts
}

/// Whether comments are inside, not only behind.
fn has_comments(pieces: &[Piece<'_>]) -> bool {
    let last = pieces.len().saturating_sub(1);
    pieces.iter().enumerate().any(|(at, p)| !p.own.is_empty() || at < last && !p.after.is_empty())
}

/// The longest line of these words on one, without comments behind.
fn width(pieces: &[Piece<'_>]) -> usize {
    let mut line = Writer::default();
    let bare: Vec<Piece<'_>> =
        pieces.iter().map(|p| Piece { own: Vec::new(), after: Vec::new(), ..p.clone() }).collect();
    line.words(&bare, 0);
    line.out.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Whether two words are parted by a space.
fn spaced(before_left: Option<&Piece<'_>>, left: &Piece<'_>, right: &Piece<'_>) -> bool {
    use Kind::*;
    let name = |p: &Piece<'_>| p.keyword.is_empty();
    match (left.kind, right.kind) {
        // What the language does not use, and what is an operator only when it touches, stays.
        (Eq, Tilde) => !right.touching,
        (Number, Number) => !right.touching,
        (_, Number) if right.touching && right.text.starts_with('.') => false,
        (Open | OpenBracket | Dot, _) | (_, Comma | Semicolon | Close | CloseBracket | Dot) => false,
        // A call; an index.
        (Word, Open) => !name(left),
        (Word | Quoted | CloseBracket, OpenBracket) => !name(left),
        (Minus | Plus, Minus | Plus) => true,
        (Minus | Plus, _) => !is_sign(before_left),
        _ => true,
    }
}

/// Whether a `-` or `+` behind this is a sign.
fn is_sign(before: Option<&Piece<'_>>) -> bool {
    use Kind::*;
    let operand = |p: &Piece<'_>| match p.kind {
        Word => p.keyword.is_empty() || matches!(p.keyword.as_str(), "END" | "NULL" | "TRUE" | "FALSE"),
        Quoted | Text | Number | Close | CloseBracket | Other => true,
        _ => false,
    };
    !before.is_some_and(|p| operand(p) && !matches!(p.text.to_ascii_lowercase().as_str(), "div" | "mod"))
}
