//! NanoMQ's rules: `rules.repub`, `rules.sqlite`, `rules.postgresql.NAME` and the like of its HOCON configuration, and the
//! `rule.sqlite.1.table=` lines of the one before it, which [`from_lines`] brings into the same form.
//!
//! Its SQL is a part of EMQX's, so it runs in that dialect.

use serde_json::{Map, Value, json};

use super::draft::{Draft, InsertDraft, Lost, RuleDraft, SinkDraft, insert, string};
use super::emqx::{Row, shown, template};
use super::hocon::text_of;
use crate::Host;

/// The kinds of rules.
const KINDS: [&str; 5] = ["repub", "sqlite", "mysql", "postgresql", "timescaledb"];

/// Adds the rules of a configuration to the draft.
pub(super) fn rules(root: &Map<String, Value>, host: &Host, draft: &mut Draft) {
    let Some(Value::Object(groups)) = root.get("rules") else { return };
    for kind in KINDS {
        let Some(group) = groups.get(kind) else { continue };
        // Databases with a connection have a name.
        let places = match group {
            Value::Object(members) if !members.contains_key("rules") => members.values().collect(),
            place => vec![place],
        };
        let mut number = 0;
        for place in places {
            let on = place.get("enabled").or_else(|| place.get("enable")) != Some(&Value::Bool(false));
            let Some(Value::Array(rules)) = place.get("rules") else { continue };
            for rule in rules {
                number += 1;
                one(&format!("{kind}_{number}"), kind, (place, on), rule, host, draft);
            }
        }
    }
}

fn one(name: &str, kind: &str, (place, on): (&Value, bool), rule: &Value, host: &Host, draft: &mut Draft) {
    let text = |key: &str| rule.get(key).map(text_of).unwrap_or_default();
    let sql = text("sql");
    let enabled = rule.get("enabled").or_else(|| rule.get("enable")) != Some(&Value::Bool(false));
    let row = Row::of(&sql, host);
    let mut drafted = RuleDraft {
        name: name.to_owned(),
        enabled: on && enabled,
        sql: if sql.trim().is_empty() { "(no SQL)".to_owned() } else { sql },
        ..RuleDraft::default()
    };
    if row.names("timestamp") {
        drafted.todo.push("`timestamp` is in milliseconds here, in NanoMQ in seconds".to_owned());
    }
    let found = match kind {
        "repub" => repub(rule, host, &mut drafted),
        _ => table(kind, place, rule, host, draft),
    };
    match found {
        Ok(insert) => drafted.inserts.push(insert),
        Err(reason) => {
            drafted.lost.push(Lost { what: format!("action {kind}"), reason, original: shown(rule) });
        }
    }
    draft.rules.push(drafted);
}

/// To a topic of a broker: this one, or the uplink's.
fn repub(rule: &Value, host: &Host, drafted: &mut RuleDraft) -> Result<InsertDraft, String> {
    let server = rule.get("server").or_else(|| rule.get("address")).map(text_of).unwrap_or_default();
    let topic = template(&rule.get("topic").map(text_of).unwrap_or_default())?;
    let address = server.split_once("://").map_or(server.as_str(), |(_, address)| address);
    let machine = address.rsplit_once(':').map_or(address, |(machine, _)| machine);
    let sink = if matches!(machine, "" | "localhost" | "127.0.0.1" | "[::1]") {
        "local"
    } else if host.builtins.iter().any(|builtin| builtin.name == "cloud") {
        drafted.todo.push(format!("`cloud` is the uplink: set `[uplink]` in the configuration to {server}"));
        "cloud"
    } else {
        return Err(format!("it goes to {server}; another broker is the uplink of `ferrule-edge`"));
    };
    let text = insert(sink, Some(&topic), &[]);
    Ok(InsertDraft { from: "repub".to_owned(), sink: None, text, original: shown(rule) })
}

/// Into a table of a database.
fn table(
    kind: &str,
    place: &Value,
    rule: &Value,
    host: &Host,
    draft: &mut Draft,
) -> Result<InsertDraft, String> {
    let table = rule.get("table").map(text_of).filter(|table| !table.is_empty());
    let table = table.ok_or("it names no `table`")?;
    let from = format!("{kind}: {table}");
    let option = |key: &str, value: &str| (key.to_owned(), string(value));
    // In the old form the connection stands among the rule's own settings.
    let conn = |key: &str| {
        let conn = place.get("conn").and_then(|conn| conn.get(key)).or_else(|| rule.get(key));
        conn.map(text_of).unwrap_or_default()
    };
    let mut todo = Vec::new();
    let options = match kind {
        "sqlite" => {
            let path = place.get("path").map_or_else(|| "/tmp/rule_engine.db".to_owned(), text_of);
            vec![option("connector", "sqlite"), option("path", &path), option("table", &table)]
        }
        "postgresql" | "timescaledb" => {
            let upper: String = table
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                .collect();
            todo.push(format!(
                "set {upper}_URL in the broker's environment to postgres://{}:PASSWORD@{}/{}",
                conn("username"),
                conn("host"),
                conn("database")
            ));
            vec![
                option("connector", "postgres"),
                option("url", &format!("env:{upper}_URL")),
                option("table", &table),
            ]
        }
        other => {
            let known: Vec<&str> = host.connectors.iter().map(|c| c.name).collect();
            return Err(format!("there is no sink for `{other}` (connectors: {})", known.join(", ")));
        }
    };
    let there = draft.sinks.iter().position(|sink| sink.from == from && sink.options == options);
    let sink = there.unwrap_or_else(|| {
        let name = draft.sink_name(host, &table);
        draft.sinks.push(SinkDraft { name, from: from.clone(), options, todo, ..SinkDraft::default() });
        draft.sinks.len() - 1
    });
    let text = insert(&draft.sinks[sink].name, None, &[]);
    Ok(InsertDraft { from, sink: Some(sink), text, original: shown(rule) })
}

/// Whether a text is of the form before HOCON: `name=value` lines alone, rules among them.
pub(super) fn has_lines(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    text.lines().any(|line| line.trim_start().starts_with("rule.")) && lines.all(|line| line.contains('='))
}

/// The rules of such a text, in HOCON's form. A value is the rest of its line: quotes inside it have no escapes.
pub(super) fn from_lines(text: &str) -> Map<String, Value> {
    let mut groups: Map<String, Value> = Map::new();
    // By kind and number.
    let mut rules: Vec<(String, String, Map<String, Value>)> = Vec::new();
    // `rule.event.publish.N.sql` names no kind.
    let mut queries: Vec<(String, String)> = Vec::new();
    let mut off: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let path: Vec<&str> = key.trim().split('.').collect();
        let mut put = |kind: &str, number: &str, key: &str| {
            let at = rules.iter().position(|(k, n, _)| k == kind && n == number).unwrap_or_else(|| {
                rules.push((kind.to_owned(), number.to_owned(), Map::new()));
                rules.len() - 1
            });
            if let Some((_, _, rule)) = rules.get_mut(at) {
                rule.insert(key.to_owned(), Value::from(value));
            }
        };
        match path.as_slice() {
            ["rule_option"] if value.eq_ignore_ascii_case("off") => off.extend(KINDS.map(str::to_owned)),
            ["rule_option", kind] if value.eq_ignore_ascii_case("disable") => off.push((*kind).to_owned()),
            ["rule", "event", "publish", number, "sql"] => {
                queries.push(((*number).to_owned(), value.to_owned()))
            }
            ["rule", kind, "event", "publish", number, "sql"] => put(kind, number, "sql"),
            ["rule", kind, key] => {
                let group = groups.entry(*kind).or_insert_with(|| json!({}));
                group[*key] = Value::from(value);
            }
            ["rule", kind, number, key] => put(kind, number, key),
            _ => {}
        }
    }
    for (kind, number, mut rule) in rules {
        if let Some((_, sql)) = queries.iter().find(|(n, _)| *n == number)
            && !rule.contains_key("sql")
        {
            rule.insert("sql".to_owned(), Value::from(sql.as_str()));
        }
        let group = groups.entry(kind.as_str()).or_insert_with(|| json!({}));
        if off.contains(&kind) {
            group["enabled"] = Value::Bool(false);
        }
        match group.get_mut("rules") {
            Some(Value::Array(rules)) => rules.push(Value::Object(rule)),
            _ => group["rules"] = json!([rule]),
        }
    }
    let mut root = Map::new();
    root.insert("rules".to_owned(), Value::Object(groups));
    root
}
