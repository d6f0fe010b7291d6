//! EMQX's rules: `rule_engine.rules` of its configuration, or what its API gives for `GET /rules`.
//!
//! A rule's SQL stays as it is. Its actions become what INSERT INTO names: `republish` the built-in `local`, `console` the
//! built-in `log`, `type:name` a sink of its own ([`super::bridges`]).

use serde_json::{Map, Value};

use super::bridges;
use super::draft::{Draft, InsertDraft, Lost, RuleDraft, insert, string};
use super::hocon::{merge, text_of};
use crate::{Host, Source, load};

/// Adds the rules of a configuration to the draft.
pub(super) fn rules(root: &Map<String, Value>, host: &Host, draft: &mut Draft) {
    let Some(Value::Object(rules)) = root.get("rule_engine").and_then(|engine| engine.get("rules")) else {
        return;
    };
    let mut made = Made::default();
    for (id, rule) in rules {
        one(id, rule, root, host, &mut made, draft);
    }
}

/// What `GET /rules`, `GET /actions` and `GET /connectors` give, arrays or pages with `data`, as the configuration has it.
pub(super) fn from_api(value: &Value) -> Option<Value> {
    let list = match value {
        Value::Array(list) => list,
        Value::Object(page) => page.get("data")?.as_array()?,
        _ => return None,
    };
    let mut root = Value::Object(Map::new());
    for entry in list {
        let text = |key: &str| entry.get(key).map(text_of).filter(|text| !text.is_empty());
        let place = if entry.get("sql").is_some() {
            vec!["rule_engine".to_owned(), "rules".to_owned(), text("id")?]
        } else {
            let group = if entry.get("parameters").is_some() { "actions" } else { "connectors" };
            vec![group.to_owned(), text("type")?, text("name")?]
        };
        let nested = place
            .into_iter()
            .rev()
            .fold(entry.clone(), |inner, key| Value::Object(Map::from_iter([(key, inner)])));
        merge(&mut root, nested);
    }
    Some(root)
}

/// The sinks that actions have become; two rules may have the same.
pub(super) type Made = std::collections::HashMap<String, usize>;

fn one(id: &str, rule: &Value, root: &Map<String, Value>, host: &Host, made: &mut Made, draft: &mut Draft) {
    let text = |key: &str| rule.get(key).map(text_of).unwrap_or_default();
    let mut says = Vec::new();
    for note in [text("name"), text("description")] {
        if !note.trim().is_empty() && note != id {
            says.push(note);
        }
    }
    let sql = text("sql");
    let mut drafted = RuleDraft {
        name: id.to_owned(),
        says,
        enabled: rule.get("enable") != Some(&Value::Bool(false)),
        sql: if sql.trim().is_empty() { "(no SQL)".to_owned() } else { sql },
        ..RuleDraft::default()
    };
    let row = Row::of(&drafted.sql, host);
    let actions = match rule.get("actions") {
        Some(Value::Array(actions)) => actions.as_slice(),
        _ => &[],
    };
    for action in actions {
        let name = match action {
            Value::String(name) => name.clone(),
            other => other.get("function").map(text_of).unwrap_or_default(),
        };
        let found = match (name.as_str(), action) {
            ("republish", Value::Object(_)) => {
                let args = action.get("args").cloned().unwrap_or_default();
                republish(&args, &row, &mut drafted)
            }
            ("console", Value::Object(_)) => Ok(to_log()),
            (_, Value::String(name)) => {
                bridges::insert_into(name, root, host, &row, made, draft, &mut drafted)
            }
            _ => Err("functions of EMQX's own code have no counterpart".to_owned()),
        };
        match found {
            Ok(insert) => drafted.inserts.push(insert),
            Err(reason) => drafted.lost.push(Lost {
                what: format!("action {name}"),
                reason,
                original: match action {
                    Value::String(name) => bridges::original(name, root),
                    other => shown(other),
                },
            }),
        }
    }
    draft.rules.push(drafted);
}

fn to_log() -> InsertDraft {
    let from = "console".to_owned();
    InsertDraft { from, sink: None, text: "log".to_owned(), original: String::new() }
}

/// `republish`: a message to this broker.
fn republish(args: &Value, row: &Row, rule: &mut RuleDraft) -> Result<InsertDraft, String> {
    let topic = args.get("topic").map(text_of).unwrap_or_default();
    let target = template(&topic)?;
    let mut options = Vec::new();
    let lose = |rule: &mut RuleDraft, what: &str, reason: &str| {
        let original = args.get(what).map(shown).unwrap_or_default();
        let what = format!("action republish: {what}");
        rule.lost.push(Lost { what, reason: reason.to_owned(), original });
    };
    match args.get("qos") {
        // The row's; one that has none is sent with 0.
        None if !row.has("qos") => options.push(("qos", "0".to_owned())),
        Some(Value::String(qos)) if qos == "${qos}" && !row.has("qos") => {
            options.push(("qos", "0".to_owned()));
        }
        None => {}
        Some(qos) => match text_of(qos).as_str() {
            qos @ ("0" | "1" | "2") => options.push(("qos", qos.to_owned())),
            "${qos}" | "${.qos}" => {}
            _ => lose(rule, "qos", "a fixed one is needed here; the message's own is used"),
        },
    }
    match args.get("retain").map(text_of).as_deref() {
        None | Some("false" | "") => {}
        Some("true") => options.push(("retain", "TRUE".to_owned())),
        // No message has this column.
        Some("${retain}" | "${.retain}") if !row.names("retain") => {}
        Some(_) => lose(rule, "retain", "TRUE or FALSE is needed here; it is FALSE"),
    }
    let payload = args.get("payload").map_or_else(|| "${payload}".to_owned(), text_of);
    if let Some(payload) = payload_option(&payload)? {
        options.push(("payload", payload));
    }
    let empty = |value: &Value| match value {
        Value::Object(members) => members.values().all(|value| text_of(value).is_empty()),
        other => text_of(other).is_empty(),
    };
    let asked = args.get("mqtt_properties").and_then(Value::as_object);
    for (name, value) in asked.into_iter().flatten().filter(|(_, value)| !text_of(value).is_empty()) {
        match property(name, &text_of(value)) {
            Some(option) => options.push(option),
            None => lose(rule, "mqtt_properties", "one of these has no form here"),
        }
    }
    // The default names a column that a row seldom has.
    let user = args.get("user_properties").filter(|user| !empty(user)).map(text_of);
    match user.as_deref() {
        None | Some("${user_properties}") => {}
        Some("${pub_props.'User-Property'}" | "${pub_props.User-Property}") => {
            options.push(("user_properties", string("${pub_props.User-Property}")));
        }
        Some(user) => match template(user) {
            Ok(user) => options.push(("user_properties", string(&user))),
            Err(_) => lose(rule, "user_properties", "this is no template here"),
        },
    }
    if args.get("direct_dispatch").map(text_of).is_some_and(|direct| direct != "false") {
        lose(rule, "direct_dispatch", "what is republished goes through the rules like any message");
    }
    let text = insert("local", Some(&target), &options);
    Ok(InsertDraft { from: "republish".to_owned(), sink: None, text, original: shown(args) })
}

/// A property of a republished message as an option of INSERT INTO.
fn property(name: &str, value: &str) -> Option<(&'static str, String)> {
    let rendered = |option| Some((option, string(&template(value).ok()?)));
    match name {
        "Payload-Format-Indicator" => match value {
            "1" | "true" => Some(("payload_format", "TRUE".to_owned())),
            "0" | "false" => Some(("payload_format", "FALSE".to_owned())),
            _ => None,
        },
        "Message-Expiry-Interval" => match value.parse::<u32>() {
            Ok(seconds) => Some(("message_expiry", string(&format!("{seconds}s")))),
            Err(_) if value.contains("${") => rendered("message_expiry"),
            Err(_) => None,
        },
        "Content-Type" => rendered("content_type"),
        "Response-Topic" => rendered("response_topic"),
        "Correlation-Data" => rendered("correlation_data"),
        _ => None,
    }
}

/// The option `payload`; the whole row needs none.
pub(super) fn payload_option(text: &str) -> Result<Option<String>, String> {
    match text.trim() {
        "" | "${.}" | "${}" => Ok(None),
        _ => Ok(Some(string(&template(text)?))),
    }
}

/// A template of EMQX as one of ours: what is no placeholder there is text.
pub(super) fn template(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let path = inner.find('}').map(|end| &inner[..end]);
        let is_path = |path: &&str| path.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_');
        match path {
            Some("$") => {
                out.push_str("${$}");
                rest = &inner[2..];
            }
            Some(path) if is_path(&path) => {
                let bare = path.strip_prefix('.').unwrap_or(path);
                if bare.split('.').any(str::is_empty) && !bare.is_empty() {
                    return Err(format!("the template `${{{path}}}` has an empty name"));
                }
                let bare = if bare.is_empty() { "." } else { bare };
                out.push_str("${");
                out.push_str(bare);
                out.push('}');
                rest = &inner[path.len() + 1..];
            }
            _ => {
                out.push_str("${$}{");
                rest = inner;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What a rule's row has.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// All columns of the message.
    pub(super) message: bool,
    pub(super) columns: Vec<String>,
}

impl Row {
    /// Compiles the rule to see; of what cannot be compiled nothing is known, nor does it matter.
    pub(super) fn of(sql: &str, host: &Host) -> Row {
        let sql = sql.trim().trim_end_matches(';');
        let text = format!("SET dialect = 'emqx'; CREATE RULE r AS INSERT INTO log {sql}\n;");
        let Ok(set) = load(&[Source { name: "import", text: &text }], host) else { return Row::default() };
        let plan = set.rules.first().and_then(|rule| rule.program.emqx.as_ref());
        plan.map_or_else(Row::default, |plan| Row {
            message: plan.row.message,
            columns: plan.row.names.iter().map(|(name, _)| name.clone()).collect(),
        })
    }

    /// Whether it names this column.
    pub(super) fn names(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    /// Whether it has this column of the message.
    fn has(&self, column: &str) -> bool {
        self.message || self.names(column)
    }
}

/// A value as JSON, secrets blotted out.
pub(super) fn shown(value: &Value) -> String {
    blotted(value).to_string()
}

/// Bounded by the depth of what was read.
fn blotted(value: &Value) -> Value {
    const SECRET: [&str; 7] =
        ["password", "secret", "token", "passphrase", "authorization", "credential", "private"];
    match value {
        Value::Array(items) => Value::Array(items.iter().map(blotted).collect()),
        Value::Object(members) => {
            let member = |(key, value): (&String, &Value)| {
                let lower = key.to_ascii_lowercase();
                let secret = SECRET.iter().any(|word| lower.contains(word)) || lower.ends_with("key_id");
                let empty = text_of(value).is_empty();
                let value = if secret && !empty { Value::from("***") } else { blotted(value) };
                (key.clone(), value)
            };
            Value::Object(members.iter().map(member).collect())
        }
        // `scheme://user:password@host`
        Value::String(text) => Value::String(match text.split_once("://") {
            Some((scheme, rest)) => match rest.split_once('@') {
                Some((user, host)) if user.contains(':') && !user.contains('/') => {
                    format!("{scheme}://***@{host}")
                }
                _ => text.clone(),
            },
            None => text.clone(),
        }),
        other => other.clone(),
    }
}
