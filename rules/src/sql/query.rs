//! SELECT.

use super::ast::{Alias, Item, Name, Query};
use super::cursor::{Cursor, Parsed, Stop};
use super::expr::{expr, is_reserved, unquote};
use super::lex::Kind;

/// The longest path of an alias.
const MAX_ALIAS: usize = 16;

/// `SELECT ... FROM ... [WHERE ...]`, up to the `;`.
pub(crate) fn query(c: &mut Cursor<'_>) -> Parsed<Query> {
    if c.at_word("FOREACH") {
        let span = c.peek().span;
        return Err(c.stop(span, "FOREACH is not yet implemented", None));
    }
    c.expect_word("SELECT")?;
    let mut items = Vec::new();
    loop {
        items.push(item(c)?);
        if !c.eat(Kind::Comma) {
            break;
        }
    }
    if !c.at_word("FROM") {
        return Err(c.unexpected("`,`, `AS` or `FROM`"));
    }
    c.next();
    let mut from = Vec::new();
    loop {
        let token = c.peek();
        let text = c.text(token);
        match token.kind {
            Kind::Quoted | Kind::Text => from.push(Name { text: unquote(text), span: token.span }),
            Kind::Word if !is_reserved(text) => from.push(Name { text: text.to_owned(), span: token.span }),
            _ => return Err(c.unexpected("a topic filter in double quotes")),
        }
        c.next();
        if !c.eat(Kind::Comma) {
            break;
        }
    }
    not_yet(c)?;
    let condition = if c.eat_word("WHERE") { Some(expr(c)?) } else { None };
    not_yet(c)?;
    match c.peek().kind {
        Kind::Semicolon | Kind::End => Ok(Query { items, from, condition }),
        _ if condition.is_some() => Err(c.unexpected("`;` or an operator")),
        _ => Err(c.unexpected("`,`, `WHERE` or `;`")),
    }
}

/// Answers at the word for what other SQL has here.
fn not_yet(c: &mut Cursor<'_>) -> Result<(), Stop> {
    const WORDS: [&str; 13] = [
        "GROUP", "HAVING", "JOIN", "LEFT", "RIGHT", "INNER", "FULL", "CROSS", "ORDER", "LIMIT", "DO",
        "INCASE", "UNION",
    ];
    let token = c.peek();
    let text = c.text(token);
    match WORDS.iter().find(|w| token.kind == Kind::Word && w.eq_ignore_ascii_case(text)) {
        Some(word) => {
            let what = match *word {
                "GROUP" => "GROUP BY (windows)",
                "LEFT" | "RIGHT" | "INNER" | "FULL" | "CROSS" => "JOIN",
                "ORDER" => "ORDER BY",
                other => other,
            };
            Err(c.stop(token.span, format!("{what} is not yet implemented"), None))
        }
        None => Ok(()),
    }
}

fn item(c: &mut Cursor<'_>) -> Parsed<Item> {
    let token = c.peek();
    if token.kind == Kind::Star {
        c.next();
        return Ok(Item::Star(token.span));
    }
    let expr = expr(c)?;
    let alias = if c.eat_word("AS") {
        Some(alias(c)?)
    } else {
        // `SELECT payload.a b`: AS may be left out.
        let next = c.peek();
        match next.kind {
            Kind::Quoted => Some(alias(c)?),
            Kind::Word if !is_reserved(c.text(next)) => Some(alias(c)?),
            _ => None,
        }
    };
    Ok(Item::Expr { expr, alias })
}

fn alias(c: &mut Cursor<'_>) -> Parsed<Alias> {
    let start = c.peek().span;
    let mut path = Vec::new();
    loop {
        let token = c.peek();
        let text = c.text(token);
        path.push(match token.kind {
            Kind::Quoted => unquote(text),
            Kind::Text if !path.is_empty() => unquote(text),
            Kind::Word if !path.is_empty() || !is_reserved(text) => text.to_owned(),
            Kind::Number if !path.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text.to_owned(),
            _ => return Err(c.unexpected("a name")),
        });
        c.next();
        if c.peek().kind == Kind::OpenBracket {
            let span = c.peek().span;
            return Err(c.stop(span, "putting into an array (`AS a[1]`) is not yet implemented", None));
        }
        if path.len() > MAX_ALIAS {
            return Err(c.stop(token.span, format!("an alias has at most {MAX_ALIAS} parts"), None));
        }
        if !c.eat(Kind::Dot) {
            break;
        }
    }
    Ok(Alias { path, span: start.to(c.last()) })
}
