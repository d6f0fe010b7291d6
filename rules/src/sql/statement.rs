//! CREATE SINK, CREATE SCHEMA, CREATE RULE, SET, and bare queries (`rules eval`).

use super::ast::{InsertInto, Literal, Name, Setting, Statement, StatementKind};
use super::cursor::{Cursor, Parsed};
use super::expr::{is_reserved, unquote};
use super::lex::{Kind, lex};
use super::query::query;
use super::{MAX_FILE, MAX_STATEMENT};
use crate::diagnostic::nearest;
use crate::{Diagnostic, Dialect, Source, Span};

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) statements: Vec<Statement>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// See [`Cursor::unread_sinks`].
    pub(crate) unread_sinks: Vec<String>,
}

/// Reads all statements of a file, and every mistake in them.
pub(crate) fn statements(source: &Source<'_>, dialect: Dialect) -> File {
    if source.text.len() > MAX_FILE {
        let mut c = Cursor::new(source, Vec::new());
        c.error(Span::default(), format!("a file of rules has at most {} MiB", MAX_FILE >> 20), None);
        return File { diagnostics: c.diagnostics, ..File::default() };
    }
    let (tokens, unread) = lex(source.text);
    let mut c = Cursor::new(source, tokens);
    // Until a `SET dialect`.
    let mut dialect = dialect;
    let mut statements = Vec::new();
    while !c.at_end() {
        if c.eat(Kind::Semicolon) {
            continue;
        }
        let start = c.peek().span;
        let before = c.diagnostics.len();
        let sets = c.at_word("SET");
        c.dialect = Dialect::Ferrule;
        match statement(&mut c, &mut dialect) {
            Ok(None) => {}
            Ok(Some(kind)) => {
                let span = start.to(c.last());
                if (span.end - span.start) as usize > MAX_STATEMENT {
                    c.error(start, format!("a statement has at most {} KiB", MAX_STATEMENT >> 10), None);
                }
                statements.push(Statement { kind, span });
            }
            Err(_) => {
                // What follows from an unclosed quote says nothing about the statement it cut off.
                if unread.is_some() && c.at_end() {
                    c.diagnostics.truncate(before);
                }
                // After a dialect that cannot be read, the rest of the file would be noise.
                if sets {
                    break;
                }
                c.resync();
                continue;
            }
        }
        if !c.at_end() && !c.eat(Kind::Semicolon) {
            c.unexpected("`;` at the end of the statement");
            c.resync();
        }
    }
    if let Some((span, message)) = unread {
        c.error(span, message, None);
    }
    File { statements, diagnostics: c.diagnostics, unread_sinks: c.unread_sinks }
}

fn statement(c: &mut Cursor<'_>, dialect: &mut Dialect) -> Parsed<Option<StatementKind>> {
    if c.eat_word("CREATE") {
        return create(c, *dialect).map(Some);
    }
    if c.eat_word("SET") {
        *dialect = set(c)?;
        return Ok(None);
    }
    if c.at_word("SELECT") || c.at_word("FOREACH") {
        c.dialect = *dialect;
        return query(c).map(|q| Some(StatementKind::Query(q)));
    }
    let token = c.peek();
    let hint = nearest(c.text(token), ["CREATE", "SET"]).map(|word| format!("did you mean `{word}`?"));
    let stop = c.unexpected("`CREATE RULE`, `CREATE SINK`, `CREATE SCHEMA` or `SET`");
    if let (Some(last), Some(hint)) = (c.diagnostics.last_mut(), hint) {
        last.hint = Some(hint);
    }
    Err(stop)
}

/// `SET dialect = '...'`.
fn set(c: &mut Cursor<'_>) -> Parsed<Dialect> {
    let setting = setting(c)?;
    if !setting.key.text.eq_ignore_ascii_case("dialect") {
        let text = format!("unknown setting `{}`; expected `dialect`", setting.key.text);
        return Err(c.stop(setting.key.span, text, None));
    }
    dialect_of(&setting.value).map_err(|(message, hint)| c.stop(setting.span, message, hint))
}

/// The dialect that a setting names; what is wrong with it, and a hint.
fn dialect_of(value: &Literal) -> Result<Dialect, (String, Option<String>)> {
    const KNOWN: [&str; 3] = ["ferrule", "emqx", "ekuiper"];
    match value {
        Literal::Text(name) if name == "ferrule" => Ok(Dialect::Ferrule),
        Literal::Text(name) if name == "emqx" => Ok(Dialect::Emqx),
        Literal::Text(name) if name == "ekuiper" => Err((
            format!("the dialect `{name}` is not yet implemented"),
            Some("write the rule in the default dialect, 'ferrule'".to_owned()),
        )),
        Literal::Text(name) => Err((
            format!("unknown dialect `{name}`; expected 'ferrule', 'emqx' or 'ekuiper'"),
            nearest(name, KNOWN).map(|n| format!("did you mean '{n}'?")),
        )),
        _ => Err(("expected 'ferrule', 'emqx' or 'ekuiper'".to_owned(), None)),
    }
}

fn create(c: &mut Cursor<'_>, mut dialect: Dialect) -> Parsed<StatementKind> {
    if c.at_word("STREAM") || c.at_word("TABLE") {
        let token = c.peek();
        let word = c.text(token).to_uppercase();
        return Err(c.stop(token.span, format!("CREATE {word} is not yet implemented"), None));
    }
    if c.eat_word("SINK") {
        let name = name(c, "the sink's name")?;
        let settings = if c.eat_word("WITH") { settings(c) } else { Ok(Vec::new()) };
        if settings.is_err() {
            c.unread_sinks.push(name.text.clone());
        }
        return Ok(StatementKind::CreateSink { name, settings: settings? });
    }
    if c.eat_word("SCHEMA") {
        let name = name(c, "the schema's name")?;
        let settings = if c.eat_word("WITH") { settings(c)? } else { Vec::new() };
        return Ok(StatementKind::CreateSchema { name, settings });
    }
    if !c.eat_word("RULE") {
        return Err(c.unexpected("`RULE`, `SINK` or `SCHEMA`"));
    }
    let name = name(c, "the rule's name")?;
    let with = if c.eat_word("WITH") { settings(c)? } else { Vec::new() };
    // The body of a rule in another dialect cannot be read with this one's quotes: say so before reading it.
    for setting in with.iter().filter(|s| s.key.text.eq_ignore_ascii_case("dialect")) {
        dialect =
            dialect_of(&setting.value).map_err(|(message, hint)| c.stop(setting.span, message, hint))?;
    }
    if !c.eat_word("AS") {
        return Err(c.unexpected(if with.is_empty() { "`WITH` or `AS`" } else { "`AS`" }));
    }
    c.expect_word("INSERT")?;
    c.expect_word("INTO")?;
    let mut inserts = Vec::new();
    loop {
        inserts.push(insert(c)?);
        if !c.eat(Kind::Comma) {
            break;
        }
    }
    if !c.at_word("SELECT") && !c.at_word("FOREACH") {
        return Err(c.unexpected("`,`, `WITH` or `SELECT`"));
    }
    c.dialect = dialect;
    let query = query(c)?;
    Ok(StatementKind::CreateRule { name, settings: with, dialect, inserts, query })
}

fn insert(c: &mut Cursor<'_>) -> Parsed<InsertInto> {
    let sink = name(c, "the name of a sink")?;
    let start = sink.span;
    let target = if c.eat(Kind::Dot) {
        let token = c.peek();
        let text = c.text(token);
        let text = match token.kind {
            Kind::Quoted | Kind::Text => unquote(text),
            Kind::Word => text.to_owned(),
            _ => return Err(c.unexpected("a target in double quotes after `.`")),
        };
        c.next();
        Some(Name { text, span: token.span })
    } else {
        None
    };
    let settings = if c.eat_word("WITH") { settings(c)? } else { Vec::new() };
    Ok(InsertInto { sink, target, settings, span: start.to(c.last()) })
}

fn name(c: &mut Cursor<'_>, what: &str) -> Parsed<Name> {
    let token = c.peek();
    let text = c.text(token);
    let text = match token.kind {
        Kind::Word if !is_reserved(c, text) => text.to_owned(),
        Kind::Quoted => unquote(text),
        _ => return Err(c.unexpected(what)),
    };
    if text.is_empty() || text.len() > 255 {
        return Err(c.stop(token.span, "a name has 1 to 255 bytes", None));
    }
    c.next();
    Ok(Name { text, span: token.span })
}

fn settings(c: &mut Cursor<'_>) -> Parsed<Vec<Setting>> {
    c.expect(Kind::Open, "`(` and options")?;
    let mut all = Vec::new();
    while c.peek().kind != Kind::Close {
        all.push(setting(c)?);
        if !c.eat(Kind::Comma) {
            break;
        }
    }
    c.expect(Kind::Close, "`,` or `)`")?;
    Ok(all)
}

fn setting(c: &mut Cursor<'_>) -> Parsed<Setting> {
    let token = c.peek();
    let text = c.text(token);
    let mut key = match token.kind {
        Kind::Word => text.to_owned(),
        Kind::Quoted => unquote(text),
        _ => return Err(c.unexpected("the name of an option")),
    };
    c.next();
    // `librdkafka.batch.size`: an option that a connector passes on.
    while c.eat(Kind::Dot) {
        let part = c.peek();
        if !matches!(part.kind, Kind::Word | Kind::Number) {
            return Err(c.unexpected("the rest of the option's name after `.`"));
        }
        key.push('.');
        key.push_str(c.text(part));
        c.next();
    }
    let key_span = token.span.to(c.last());
    c.expect(Kind::Eq, "`=` and a value")?;
    let minus = c.peek().kind == Kind::Minus;
    let start = c.peek().span;
    if minus {
        c.next();
    }
    let value = c.peek();
    let text = c.text(value);
    let literal = match value.kind {
        Kind::Text if !minus => Some(Literal::Text(unquote(text))),
        Kind::Number => {
            let text = if minus { format!("-{text}") } else { text.to_owned() };
            text.parse().map(Literal::Int).or_else(|_| text.parse().map(Literal::Float)).ok()
        }
        Kind::Word if !minus && text.eq_ignore_ascii_case("TRUE") => Some(Literal::Bool(true)),
        Kind::Word if !minus && text.eq_ignore_ascii_case("FALSE") => Some(Literal::Bool(false)),
        _ => None,
    };
    let Some(literal) = literal else {
        let stop = c.unexpected("a value: 'text', a number, TRUE or FALSE");
        if let (Some(last), Kind::Word | Kind::Quoted) = (c.diagnostics.last_mut(), value.kind) {
            last.hint = Some(format!("text stands in single quotes: '{}'", text.trim_matches('"')));
        }
        return Err(stop);
    };
    c.next();
    Ok(Setting { key: Name { text: key, span: key_span }, value: literal, span: start.to(value.span) })
}
