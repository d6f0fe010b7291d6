//! Expressions: precedence climbing over one table.
//!
//! | level | operators |
//! |---|---|
//! | 1 | OR |
//! | 2 | AND |
//! | 3 | NOT |
//! | 4 | `= <> != < <= > >=`, IS [NOT] NULL, [NOT] IN, [NOT] BETWEEN; not associative |
//! | 5 | `+ -` |
//! | 6 | `* / % div mod` |
//! | 7 | unary `-` `+` |
//! | 8 | `.key` `[index]` |

use super::MAX_DEPTH;
use super::ast::{Access, Binary, Expr, ExprKind, Name};
use super::cursor::{Cursor, Parsed, shorten};
use super::lex::Kind;
use crate::Span;

const OR: u8 = 1;
const AND: u8 = 2;
const NOT: u8 = 3;
const COMPARE: u8 = 4;
const SUM: u8 = 5;
const PRODUCT: u8 = 6;
const SIGN: u8 = 7;

/// Words that cannot be names unless they are quoted.
pub(crate) const RESERVED: [&str; 37] = [
    "AND", "AS", "BETWEEN", "BY", "CASE", "CREATE", "DO", "ELSE", "END", "FALSE", "FOREACH", "FROM", "GROUP",
    "HAVING", "IN", "INCASE", "INNER", "INSERT", "INTO", "IS", "JOIN", "LEFT", "LIKE", "LIMIT", "NOT",
    "NULL", "ON", "OR", "ORDER", "OVER", "SELECT", "SET", "THEN", "TRUE", "WHEN", "WHERE", "WITH",
];

/// Those of EMQX: `null` is a name there, one that nothing has.
pub(crate) const RESERVED_EMQX: [&str; 18] = [
    "AND", "AS", "CASE", "IF", "ELSE", "ELSIF", "FROM", "IN", "NOT", "OR", "SELECT", "WHEN", "THEN",
    "FOREACH", "INCASE", "END", "DO", "WHERE",
];

/// Whether a bare word is a keyword.
pub(crate) fn is_reserved(c: &Cursor<'_>, word: &str) -> bool {
    let words: &[&str] = if c.is_emqx() { &RESERVED_EMQX } else { &RESERVED };
    words.iter().any(|r| r.eq_ignore_ascii_case(word))
}

/// Whether a keyword is a function where an expression begins and `(` comes behind it.
fn is_also_function(word: &str) -> bool {
    ["LEFT", "JOIN"].iter().any(|w| w.eq_ignore_ascii_case(word))
}

/// Reads one expression.
pub(crate) fn expr(c: &mut Cursor<'_>) -> Parsed<Expr> {
    climb(c, 0, 0)
}

/// Reads operators that bind tighter than `floor`; `level` counts our own recursion.
fn climb(c: &mut Cursor<'_>, floor: u8, level: u16) -> Parsed<Expr> {
    if level >= MAX_DEPTH {
        let span = c.peek().span;
        return Err(too_deep(c, span));
    }
    let mut left = prefix(c, floor, level)?;
    loop {
        let token = c.peek();
        let word = if token.kind == Kind::Word { c.text(token) } else { "" };
        let is = |w: &str| word.eq_ignore_ascii_case(w);
        let next = if is("OR") {
            if floor >= OR {
                break;
            }
            chain(c, left, "OR", OR, level, ExprKind::Or)?
        } else if is("AND") {
            if floor >= AND {
                break;
            }
            chain(c, left, "AND", AND, level, ExprKind::And)?
        } else if let Some((op, binds)) = operator(c, word) {
            if floor >= binds {
                break;
            }
            c.next();
            if op == Binary::Match {
                c.next();
            }
            let right = climb(c, binds, level + 1)?;
            if op.is_comparison() {
                refuse_second_comparison(c)?;
            }
            let span = left.span.to(right.span);
            Expr::new(ExprKind::Binary(op, Box::new(left), Box::new(right)), span)
        } else if is("IN") || is("NOT") || !c.is_emqx() && (is("IS") || is("BETWEEN")) {
            if floor >= COMPARE {
                break;
            }
            let next = suffix(c, left, level)?;
            refuse_second_comparison(c)?;
            next
        } else if c.is_emqx() {
            break;
        } else if is("LIKE") || is("ILIKE") {
            return Err(no_like(c));
        } else if token.kind == Kind::Bars {
            let hint = Some("write `concat(a, b)`".to_owned());
            return Err(c.stop(token.span, "the operator `||` is not yet implemented", hint));
        } else if let Some(hint) = of_another_language(c.text(token)) {
            let message = format!("there is no operator `{}`", c.text(token));
            return Err(c.stop(token.span, message, Some(hint.to_owned())));
        } else {
            break;
        };
        if next.depth > MAX_DEPTH {
            return Err(too_deep(c, next.span));
        }
        left = next;
    }
    Ok(left)
}

/// What to write instead of an operator that other languages have.
fn of_another_language(operator: &str) -> Option<&'static str> {
    match operator {
        "==" => Some("write `=`"),
        "&&" => Some("write `AND`"),
        "::" => Some("write a function: `to_integer(x)`, `to_number(x)`, `to_string(x)`"),
        _ => None,
    }
}

fn too_deep(c: &mut Cursor<'_>, span: Span) -> super::cursor::Stop {
    c.stop(span, format!("this expression is nested deeper than {MAX_DEPTH} levels"), None)
}

/// `a AND b AND c` as one node.
fn chain(
    c: &mut Cursor<'_>,
    first: Expr,
    word: &str,
    binds: u8,
    level: u16,
    make: fn(Vec<Expr>) -> ExprKind,
) -> Parsed<Expr> {
    let start = first.span;
    let mut parts = vec![first];
    while c.eat_word(word) {
        parts.push(climb(c, binds, level + 1)?);
    }
    let span = start.to(parts.last().map_or(start, |e| e.span));
    Ok(Expr::new(make(parts), span))
}

fn operator(c: &Cursor<'_>, word: &str) -> Option<(Binary, u8)> {
    let (token, next) = (c.peek(), c.peek_at(1));
    Some(match token.kind {
        Kind::Eq if next.kind == Kind::Tilde && next.span.start == token.span.end && c.is_emqx() => {
            (Binary::Match, COMPARE)
        }
        Kind::Eq => (Binary::Eq, COMPARE),
        Kind::NotEq => (Binary::NotEq, COMPARE),
        Kind::Less => (Binary::Less, COMPARE),
        Kind::LessEq => (Binary::LessEq, COMPARE),
        Kind::Greater => (Binary::Greater, COMPARE),
        Kind::GreaterEq => (Binary::GreaterEq, COMPARE),
        Kind::Plus => (Binary::Add, SUM),
        Kind::Minus => (Binary::Subtract, SUM),
        Kind::Star => (Binary::Multiply, PRODUCT),
        Kind::Slash => (Binary::Divide, PRODUCT),
        Kind::Percent if !c.is_emqx() => (Binary::Modulo, PRODUCT),
        Kind::Word if word.eq_ignore_ascii_case("div") => (Binary::IntDivide, PRODUCT),
        Kind::Word if word.eq_ignore_ascii_case("mod") => (Binary::Modulo, PRODUCT),
        _ => return None,
    })
}

/// `a < b < c` reads as a range in mathematics and as nonsense in SQL.
fn refuse_second_comparison(c: &mut Cursor<'_>) -> Parsed<()> {
    let token = c.peek();
    match operator(c, "") {
        Some((op, COMPARE)) => Err(c.stop(
            token.span,
            format!("`{}` cannot follow another comparison", op.symbol()),
            Some("join the two with AND, or put one in parentheses".to_owned()),
        )),
        _ => Ok(()),
    }
}

/// IS, IN, BETWEEN and their negations after `left`.
fn suffix(c: &mut Cursor<'_>, left: Expr, level: u16) -> Parsed<Expr> {
    let start = left.span;
    let of = Box::new(left);
    if c.eat_word("IS") {
        let negated = c.eat_word("NOT");
        let end = c.expect_word("NULL")?;
        return Ok(Expr::new(ExprKind::IsNull { of, negated }, start.to(end)));
    }
    let negated = c.eat_word("NOT");
    if c.eat_word("IN") {
        c.expect(Kind::Open, "`(` and the list of values")?;
        let mut items = Vec::new();
        loop {
            items.push(climb(c, 0, level + 1)?);
            if !c.eat(Kind::Comma) {
                break;
            }
        }
        let end = c.expect(Kind::Close, "`,` or `)`")?;
        return Ok(Expr::new(ExprKind::In { of, items, negated }, start.to(end)));
    }
    if c.eat_word("BETWEEN") {
        let low = Box::new(climb(c, COMPARE, level + 1)?);
        c.expect_word("AND")?;
        let high = Box::new(climb(c, COMPARE, level + 1)?);
        let span = start.to(high.span);
        return Ok(Expr::new(ExprKind::Between { of, low, high, negated }, span));
    }
    if c.at_word("LIKE") || c.at_word("ILIKE") {
        return Err(no_like(c));
    }
    Err(c.unexpected("`IN` or `BETWEEN` after NOT"))
}

/// At `LIKE`: what to write instead.
fn no_like(c: &mut Cursor<'_>) -> super::cursor::Stop {
    let token = c.peek();
    let word = c.text(token).to_uppercase();
    let hint = "compare a part: `substr(x, 1, 3) = 'abc'`; topics are chosen by a filter in FROM";
    c.stop(token.span, format!("{word} is not yet implemented"), Some(hint.to_owned()))
}

/// The dots of a range, when `[` was just read and `]` closes one: `1..3`, `..3`, `a..b`. The tokenizer makes `1.` or
/// `.3` of them, which as numbers would only confuse.
fn range_dots(c: &Cursor<'_>) -> Option<Span> {
    // An index is short; the bound keeps brackets in brackets from costing their square.
    const AHEAD: usize = 32;
    let mut depth = 0_u32;
    for ahead in 0..AHEAD {
        let (token, next) = (c.peek_at(ahead), c.peek_at(ahead + 1));
        match token.kind {
            Kind::End | Kind::Semicolon => return None,
            Kind::Open | Kind::OpenBracket => depth += 1,
            Kind::Close | Kind::CloseBracket => depth = depth.checked_sub(1)?,
            Kind::Dot | Kind::Number if depth == 0 => {
                let start = token.span.start;
                if let Some(at) = c.text(token).find("..") {
                    let at = start + u32::try_from(at).unwrap_or(0);
                    return Some(Span { start: at, end: at + 2 });
                }
                let touching = token.span.end == next.span.start;
                if touching && c.text(token).ends_with('.') && c.text(next).starts_with('.') {
                    return Some(Span { start: token.span.end - 1, end: next.span.start + 1 });
                }
            }
            _ => {}
        }
    }
    None
}

fn prefix(c: &mut Cursor<'_>, floor: u8, level: u16) -> Parsed<Expr> {
    let token = c.peek();
    match token.kind {
        Kind::Minus | Kind::Plus => {
            c.next();
            // -9223372036854775808 has no positive counterpart, so the sign belongs to the literal.
            if token.kind == Kind::Minus && c.peek().kind == Kind::Number {
                let number = c.next();
                let text = format!("-{}", c.text(number));
                let literal = number_literal(c, &text, token.span.to(number.span))?;
                return postfix(c, literal, level);
            }
            let of = climb(c, SIGN, level + 1)?;
            let span = token.span.to(of.span);
            Ok(if token.kind == Kind::Plus { of } else { Expr::new(ExprKind::Negate(Box::new(of)), span) })
        }
        // NOT binds looser than a comparison, so `1 = NOT x` needs parentheses.
        Kind::Word if c.at_word("NOT") && floor < COMPARE => {
            c.next();
            let of = climb(c, NOT, level + 1)?;
            let span = token.span.to(of.span);
            Ok(Expr::new(ExprKind::Not(Box::new(of)), span))
        }
        _ => {
            let base = primary(c, level)?;
            // In EMQX's grammar only names have paths.
            if c.is_emqx() && !matches!(base.kind, ExprKind::Column(_)) {
                return Ok(base);
            }
            postfix(c, base, level)
        }
    }
}

fn primary(c: &mut Cursor<'_>, level: u16) -> Parsed<Expr> {
    let token = c.peek();
    let text = c.text(token);
    let kind = match token.kind {
        Kind::Number => {
            c.next();
            return number_literal(c, text, token.span);
        }
        Kind::Text => {
            c.next();
            ExprKind::Text(string(c, text))
        }
        Kind::Quoted => {
            c.next();
            ExprKind::Column(unquote(text))
        }
        Kind::Open => {
            c.next();
            let mut inner = climb(c, 0, level + 1)?;
            let end = c.expect(Kind::Close, "`)`")?;
            inner.span = token.span.to(end);
            return Ok(inner);
        }
        Kind::OpenBracket => {
            c.next();
            if let Some((from, to)) = range(c)? {
                return Ok(Expr::new(ExprKind::Range(from, to), token.span.to(c.last())));
            }
            let mut items = Vec::new();
            if c.peek().kind != Kind::CloseBracket {
                loop {
                    items.push(climb(c, 0, level + 1)?);
                    if !c.eat(Kind::Comma) {
                        break;
                    }
                }
            }
            let end = c.expect(Kind::CloseBracket, "`,` or `]`")?;
            return Ok(Expr::new(ExprKind::Array(items), token.span.to(end)));
        }
        Kind::Word if text.eq_ignore_ascii_case("CASE") => return case(c, level),
        Kind::Word if text.eq_ignore_ascii_case("NULL") && !c.is_emqx() => {
            c.next();
            ExprKind::Null
        }
        Kind::Word if text.eq_ignore_ascii_case("TRUE") || text.eq_ignore_ascii_case("FALSE") => {
            c.next();
            ExprKind::Bool(text.eq_ignore_ascii_case("TRUE"))
        }
        // Functions whose names are keywords elsewhere.
        Kind::Word if !c.is_emqx() && c.peek_at(1).kind == Kind::Open && is_also_function(text) => {
            return call(c, level);
        }
        Kind::Word if is_reserved(c, text) => {
            return Err(c.unexpected("an expression"));
        }
        Kind::Word if c.peek_at(1).kind == Kind::Open => return call(c, level),
        Kind::Word => {
            c.next();
            ExprKind::Column(text.to_owned())
        }
        _ => return Err(c.unexpected("an expression")),
    };
    Ok(Expr::new(kind, token.span))
}

fn call(c: &mut Cursor<'_>, level: u16) -> Parsed<Expr> {
    let word = c.next();
    let name = Name { text: c.text(word).to_owned(), span: word.span };
    c.expect(Kind::Open, "`(`")?;
    let mut args = Vec::new();
    if c.peek().kind == Kind::Star && c.peek_at(1).kind == Kind::Close {
        let span = c.peek().span;
        return Err(c.stop(
            span,
            format!("`{}(*)` counts rows of a window; windows are not yet implemented", name.text),
            None,
        ));
    }
    if c.peek().kind != Kind::Close {
        loop {
            args.push(climb(c, 0, level + 1)?);
            if !c.eat(Kind::Comma) {
                break;
            }
        }
    }
    let end = c.expect(Kind::Close, "`,` or `)`")?;
    if c.at_word("OVER") || c.at_word("FILTER") {
        let token = c.peek();
        let word = c.text(token).to_uppercase();
        return Err(c.stop(token.span, format!("{word} is not yet implemented"), None));
    }
    Ok(Expr::new(ExprKind::Call { name, args }, word.span.to(end)))
}

fn case(c: &mut Cursor<'_>, level: u16) -> Parsed<Expr> {
    let start = c.next().span;
    let of = if c.at_word("WHEN") { None } else { Some(Box::new(climb(c, 0, level + 1)?)) };
    let mut whens = Vec::new();
    while c.eat_word("WHEN") {
        let when = climb(c, 0, level + 1)?;
        c.expect_word("THEN")?;
        let then = climb(c, 0, level + 1)?;
        whens.push((when, then));
    }
    if whens.is_empty() {
        return Err(c.unexpected("`WHEN`"));
    }
    let otherwise = if c.eat_word("ELSE") { Some(Box::new(climb(c, 0, level + 1)?)) } else { None };
    if !c.at_word("END") {
        return Err(c.unexpected("`WHEN`, `ELSE` or `END`"));
    }
    let end = c.next().span;
    Ok(Expr::new(ExprKind::Case { of, whens, otherwise }, start.to(end)))
}

/// `.key` and `[index]` after `base`.
fn postfix(c: &mut Cursor<'_>, base: Expr, level: u16) -> Parsed<Expr> {
    let mut steps = Vec::new();
    let mut span = base.span;
    loop {
        let after_number = c.last().of(c.source.text).bytes().all(|b| b.is_ascii_digit());
        if c.eat(Kind::Dot) {
            let token = c.peek();
            let text = c.text(token);
            // `a.1.100` is the number 1.100 behind a dot there.
            if c.is_emqx() && after_number && token.kind == Kind::Number {
                return Err(c.unexpected("a field name after `.`"));
            }
            let key = match token.kind {
                Kind::Word => text.to_owned(),
                Kind::Text => string(c, text),
                Kind::Quoted => unquote(text),
                Kind::Number if text.bytes().all(|b| b.is_ascii_digit()) => text.to_owned(),
                _ => return Err(c.unexpected("a field name after `.`")),
            };
            c.next();
            steps.push(Access::Key(key));
        } else if let Some(key) = digits_key(c) {
            steps.push(Access::Key(key));
        } else if c.eat(Kind::OpenBracket) {
            if let Some((from, to)) = range(c)? {
                steps.push(Access::Range(from, to));
                span = span.to(c.last());
                continue;
            }
            if let Some(dots) = range_dots(c) {
                let hint = Some(
                    "name the elements one by one: `x[1]`, `x[2]`; of text `substr(x, 1, 3)`".to_owned(),
                );
                return Err(c.stop(dots, "ranges `[a..b]` are not yet implemented", hint));
            }
            let index = climb(c, 0, level + 1)?;
            steps.push(match index.kind {
                ExprKind::Int(0) if !c.is_emqx() => {
                    let hint = Some("the first element is `[1]`, the last `[-1]`".to_owned());
                    return Err(c.stop(index.span, "arrays count from 1", hint));
                }
                ExprKind::Int(n) => Access::Index(n),
                _ => Access::Computed(index),
            });
            c.expect(Kind::CloseBracket, "`]`")?;
        } else {
            break;
        }
        span = span.to(c.last());
    }
    if steps.is_empty() {
        return Ok(base);
    }
    if c.is_emqx() && c.peek().kind == Kind::Open {
        let message =
            format!("`{}` would be a function of a module of EMQX's own code", span.of(c.source.text));
        let hint = "all functions: docs/rules-emqx.md; for what they cannot do there is jq('program', value)";
        return Err(c.stop(span, message, Some(hint.to_owned())));
    }
    Ok(Expr::new(ExprKind::Access(Box::new(base), steps), span))
}

fn number_literal(c: &mut Cursor<'_>, text: &str, span: Span) -> Parsed<Expr> {
    let digits = text.trim_start_matches('-');
    let kind = if digits.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok().map(ExprKind::Int)
    } else if digits.ends_with(|ch: char| ch.is_ascii_digit()) && !digits.starts_with('.') {
        text.parse().ok().filter(|f: &f64| f.is_finite()).map(ExprKind::Float)
    } else {
        return Err(c.stop(span, format!("`{}` is no number", shorten(text)), None));
    };
    match kind {
        None if c.is_emqx() && digits.len() <= 1_233 && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Expr::new(ExprKind::Big(text.to_owned()), span))
        }
        Some(kind) => Ok(Expr::new(kind, span)),
        None => Err(c.stop(span, format!("`{}` does not fit a 64-bit number", shorten(text)), None)),
    }
}

/// `.100` after a key in quotes, which the tokenizer takes for a number. After a number it is a part of that.
fn digits_key(c: &mut Cursor<'_>) -> Option<String> {
    let (token, last) = (c.peek(), c.last());
    let is_number = last.of(c.source.text).ends_with(|ch: char| ch.is_ascii_digit());
    if !c.is_emqx() || token.kind != Kind::Number || token.span.start != last.end || is_number {
        return None;
    }
    let key = c.text(token).strip_prefix('.')?;
    let key = Some(key).filter(|key| key.bytes().all(|b| b.is_ascii_digit()))?.to_owned();
    c.next();
    Some(key)
}

/// `1..3]`, after `[`: both ends and the bracket, if it is that. EMQX's alone; both are literals.
fn range(c: &mut Cursor<'_>) -> Parsed<Option<(i64, i64)>> {
    // `[`, two signs, two numbers and the dots in at most four tokens.
    const AHEAD: usize = 8;
    if !c.is_emqx() {
        return Ok(None);
    }
    let Some(close) = (0..AHEAD).find(|&at| c.peek_at(at).kind == Kind::CloseBracket) else {
        return Ok(None);
    };
    let inside = Span { start: c.peek().span.start, end: c.peek_at(close).span.start };
    let Some((from, to)) = inside.of(c.source.text).split_once("..") else { return Ok(None) };
    let number = |text: &str| text.trim().parse::<i64>().ok();
    let (Some(from), Some(to)) = (number(from), number(to)) else {
        let hint = Some("both ends are numbers: `[1..3]`".to_owned());
        return Err(c.stop(inside, "this is no range", hint));
    };
    for _ in 0..=close {
        c.next();
    }
    Ok(Some((from, to)))
}

/// The content of a string. EMQX's `''` inside one stays two quotes.
fn string(c: &Cursor<'_>, text: &str) -> String {
    if c.is_emqx() {
        return text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')).unwrap_or("").to_owned();
    }
    unquote(text)
}

/// The content of a quoted token: the outer quotes off, doubled ones single.
pub(crate) fn unquote(text: &str) -> String {
    let Some(quote) = text.chars().next() else { return String::new() };
    let inner = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)).unwrap_or("");
    let (twice, once) = (format!("{quote}{quote}"), quote.to_string());
    inner.replace(&twice, &once)
}
