//! SELECT.

use super::ast::{Alias, Foreach, Item, Name, Put, Query};
use super::cursor::{Cursor, Parsed, Stop};
use super::expr::{expr, is_reserved, unquote};
use super::lex::Kind;

/// The longest path of an alias.
const MAX_ALIAS: usize = 16;

/// `SELECT ... FROM ... [WHERE ...]` or `FOREACH ... [DO ...] [INCASE ...] FROM ... [WHERE ...]`, up to the `;`.
pub(crate) fn query(c: &mut Cursor<'_>) -> Parsed<Query> {
    let is_foreach = c.at_word("FOREACH");
    c.expect_word(if is_foreach { "FOREACH" } else { "SELECT" })?;
    let items = item_list(c)?;
    let foreach = if is_foreach {
        let make = if c.eat_word("DO") { Some(item_list(c)?) } else { None };
        let incase = if c.eat_word("INCASE") { Some(expr(c)?) } else { None };
        Some(Foreach { make, incase })
    } else {
        None
    };
    if !c.at_word("FROM") {
        let expected = match &foreach {
            None => "`,`, `AS` or `FROM`",
            Some(Foreach { incase: Some(_), .. }) => "`FROM` or an operator",
            Some(Foreach { make: Some(_), .. }) => "`,`, `AS`, `INCASE` or `FROM`",
            Some(_) => "`,`, `AS`, `DO`, `INCASE` or `FROM`",
        };
        return Err(c.unexpected(expected));
    }
    c.next();
    let mut from = Vec::new();
    loop {
        let token = c.peek();
        let text = c.text(token);
        match token.kind {
            Kind::Quoted | Kind::Text => from.push(Name { text: unquote(text), span: token.span }),
            Kind::Word if !is_reserved(c, text) => {
                from.push(Name { text: text.to_owned(), span: token.span })
            }
            _ => return Err(c.unexpected("a topic filter in double quotes")),
        }
        c.next();
        if !c.eat(Kind::Comma) {
            break;
        }
    }
    if !c.is_emqx() {
        not_yet(c)?;
    }
    let condition = if c.eat_word("WHERE") { Some(expr(c)?) } else { None };
    if !c.is_emqx() {
        not_yet(c)?;
    }
    match c.peek().kind {
        Kind::Semicolon | Kind::End => Ok(Query { items, foreach, from, condition }),
        _ if condition.is_some() => Err(c.unexpected("`;` or an operator")),
        _ => Err(c.unexpected("`,`, `WHERE` or `;`")),
    }
}

/// Answers at the word for what other SQL has here.
fn not_yet(c: &mut Cursor<'_>) -> Result<(), Stop> {
    const WORDS: [&str; 11] =
        ["GROUP", "HAVING", "JOIN", "LEFT", "RIGHT", "INNER", "FULL", "CROSS", "ORDER", "LIMIT", "UNION"];
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

fn item_list(c: &mut Cursor<'_>) -> Parsed<Vec<Item>> {
    let mut items = Vec::new();
    loop {
        items.push(item(c)?);
        if !c.eat(Kind::Comma) {
            return Ok(items);
        }
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
            Kind::Word if !is_reserved(c, c.text(next)) => Some(alias(c)?),
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
        path.push(Put::Key(match token.kind {
            Kind::Quoted => unquote(text),
            Kind::Text if !path.is_empty() => unquote(text),
            Kind::Word if !path.is_empty() || !is_reserved(c, text) => text.to_owned(),
            Kind::Number if !path.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text.to_owned(),
            _ => return Err(c.unexpected("a name")),
        }));
        c.next();
        while c.peek().kind == Kind::OpenBracket {
            path.push(element(c)?);
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

/// `[n]`, `[0]` or `[-0]` in an alias.
fn element(c: &mut Cursor<'_>) -> Parsed<Put> {
    let open = c.next().span;
    if !c.is_emqx() {
        return Err(c.stop(open, "putting into an array (`AS a[1]`) is not yet implemented", None));
    }
    let negative = c.eat(Kind::Minus);
    if !negative {
        c.eat(Kind::Plus);
    }
    let token = c.peek();
    let Some(index) = c.text(token).parse::<i64>().ok().filter(|_| token.kind == Kind::Number) else {
        return Err(c.unexpected("a number"));
    };
    c.next();
    c.expect(Kind::CloseBracket, "`]`")?;
    Ok(match (index, negative) {
        (0, true) => Put::Last,
        (0, false) => Put::First,
        (index, true) => Put::At(-index),
        (index, false) => Put::At(index),
    })
}
