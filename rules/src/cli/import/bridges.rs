//! EMQX's connectors and actions (`connectors.TYPE.NAME`, `actions.TYPE.NAME`; before 5.4 `bridges.TYPE.NAME`) to sinks.
//!
//! An action is a sink of its own: in EMQX the topic, the table and the keys are an action's, the address is its
//! connector's. Passwords are not printed: a sink names an environment variable instead.

use serde_json::{Map, Value};

use super::draft::{Draft, InsertDraft, Lost, RuleDraft, SinkDraft, insert, string};
use super::emqx::{Made, Row, payload_option, shown, template};
use super::hocon::text_of;
use super::insert_sql;
use crate::Host;

/// An action, and what it refers to.
struct Bridge<'v> {
    kind: &'v str,
    name: &'v str,
    action: &'v Value,
    /// The action itself, when its address is in it.
    connector: &'v Value,
}

impl<'v> Bridge<'v> {
    fn find(id: &'v str, root: &'v Map<String, Value>) -> Option<Bridge<'v>> {
        let (kind, name) = id.split_once(':')?;
        let at = |group: &str, kind: &str, name: &str| root.get(group)?.get(kind)?.get(name);
        let old = match kind {
            "kafka_producer" => "kafka",
            "http" => "webhook",
            other => other,
        };
        let action = at("actions", kind, name)
            .or_else(|| at("bridges", kind, name))
            .or_else(|| at("bridges", old, name))?;
        let named = action.get("connector").map(text_of);
        let connector = named.and_then(|named| at("connectors", kind, &named)).unwrap_or(action);
        Some(Bridge { kind, name, action, connector })
    }

    /// What says where in the destination a row goes.
    fn parameters(&self) -> &'v Value {
        let action = self.action;
        let egress = || action.get("egress").and_then(|egress| egress.get("remote"));
        action.get("parameters").or_else(|| action.get("kafka")).or_else(egress).unwrap_or(action)
    }

    fn parameter(&self, name: &str) -> String {
        self.parameters().get(name).map(text_of).unwrap_or_default()
    }

    fn setting(&self, name: &str) -> String {
        self.connector.get(name).map(text_of).unwrap_or_default()
    }
}

/// An action as it was.
pub(super) fn original(id: &str, root: &Map<String, Value>) -> String {
    Bridge::find(id, root).map_or_else(String::new, |bridge| {
        let mut whole = Map::new();
        whole.insert("action".to_owned(), bridge.action.clone());
        if !std::ptr::eq(bridge.action, bridge.connector) {
            whole.insert("connector".to_owned(), bridge.connector.clone());
        }
        shown(&Value::Object(whole))
    })
}

/// What INSERT INTO says for an action; its sink is made when it is met first.
pub(super) fn insert_into(
    id: &str,
    root: &Map<String, Value>,
    host: &Host,
    row: &Row,
    made: &mut Made,
    draft: &mut Draft,
    rule: &mut RuleDraft,
) -> Result<InsertDraft, String> {
    let bridge =
        Bridge::find(id, root).ok_or("the files do not say what it is: give the whole export".to_owned())?;
    if bridge.action.get("enable") == Some(&Value::Bool(false)) {
        return Err("it is switched off".to_owned());
    }
    let original = original(id, root);
    let fallback = bridge.action.get("fallback_actions").and_then(Value::as_array);
    if let Some(fallback) = fallback.filter(|actions| !actions.is_empty()) {
        rule.lost.push(Lost {
            what: format!("action {id}: fallback_actions"),
            reason: "rows wait here until their destination takes them".to_owned(),
            original: shown(&Value::Array(fallback.clone())),
        });
    }
    if bridge.kind == "mqtt" {
        return uplink(&bridge, host, rule, original);
    }
    let sink = match made.get(id) {
        Some(&sink) => sink,
        None => {
            let name = draft.sink_name(host, bridge.name);
            let sink = match bridge.kind {
                "kafka_producer" | "kafka" | "confluent_producer" | "azure_event_hub_producer" => {
                    kafka(&bridge, name)?
                }
                "pgsql" | "timescale" | "matrix" | "alloydb" | "cockroachdb" => postgres(&bridge, name)?,
                "http" | "webhook" if host.connectors.iter().any(|c| c.name == "http") => {
                    return Err(format!(
                        "it is not read: write CREATE SINK {name} WITH (connector = 'http', url = '...') (docs/sinks.md)"
                    ));
                }
                other => {
                    let known: Vec<&str> = host.connectors.iter().map(|c| c.name).collect();
                    return Err(format!("there is no sink for `{other}` (connectors: {})", known.join(", ")));
                }
            };
            draft.sinks.push(sink);
            made.insert(id.to_owned(), draft.sinks.len() - 1);
            draft.sinks.len() - 1
        }
    };
    let mut options = Vec::new();
    if bridge.kind.contains("pgsql") || draft.sinks[sink].options.iter().any(|(name, _)| name == "url") {
        insert_sql::read(&bridge.parameter("sql"))?.fits(row)?;
    } else {
        let message = bridge.parameters().get("message");
        let value = message.and_then(|message| message.get("value")).map(text_of).unwrap_or_default();
        options.extend(payload_option(&value)?.map(|payload| ("payload", payload)));
    }
    let text = insert(&draft.sinks[sink].name, None, &options);
    Ok(InsertDraft { from: id.to_owned(), sink: Some(sink), text, original })
}

/// An MQTT bridge: the edge's uplink.
fn uplink(
    bridge: &Bridge<'_>,
    host: &Host,
    rule: &mut RuleDraft,
    original: String,
) -> Result<InsertDraft, String> {
    if !host.builtins.iter().any(|builtin| builtin.name == "cloud") {
        return Err("an MQTT bridge is the uplink of `ferrule-edge`".to_owned());
    }
    let topic = template(&bridge.parameter("topic"))?;
    let mut options = Vec::new();
    match bridge.parameter("qos").as_str() {
        "" | "1" => {}
        qos @ ("0" | "2") => options.push(("qos", qos.to_owned())),
        "${qos}" | "${.qos}" => {}
        other => return Err(format!("its QoS is `{other}`; a fixed one is needed here")),
    }
    if bridge.parameter("retain") == "true" {
        options.push(("retain", "TRUE".to_owned()));
    }
    options.extend(payload_option(&bridge.parameter("payload"))?.map(|payload| ("payload", payload)));
    rule.todo.push(format!(
        "`cloud` is the uplink: set `[uplink]` in the configuration to {}",
        shown(&Value::String(bridge.setting("server")))
    ));
    let text = insert("cloud", Some(&topic), &options);
    Ok(InsertDraft { from: format!("mqtt:{}", bridge.name), sink: None, text, original })
}

/// The name of the environment variable for a secret.
fn variable(sink: &str, what: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("{}_{what}", sink.chars().map(upper).collect::<String>())
}

fn kafka(bridge: &Bridge<'_>, name: String) -> Result<SinkDraft, String> {
    let mut sink = SinkDraft { from: format!("{}:{}", bridge.kind, bridge.name), ..SinkDraft::default() };
    let mut give = |key: &str, value: String| sink.options.push((key.to_owned(), value));
    give("connector", string("kafka"));
    let hosts = match bridge.connector.get("bootstrap_hosts") {
        Some(Value::Array(hosts)) => hosts.iter().map(text_of).collect::<Vec<_>>().join(","),
        other => other.map(text_of).unwrap_or_default(),
    };
    let port = |host: &str| if host.contains(':') { host.to_owned() } else { format!("{host}:9092") };
    let hosts: Vec<String> = hosts.split(',').map(str::trim).filter(|h| !h.is_empty()).map(port).collect();
    if hosts.is_empty() {
        return Err("its connector names no `bootstrap_hosts`".to_owned());
    }
    give("brokers", string(&hosts.join(",")));
    match bridge.parameter("topic") {
        topic if topic.is_empty() => return Err("it names no `topic`".to_owned()),
        topic => give("topic", string(&template(&topic)?)),
    }
    let message = bridge.parameters().get("message");
    let part = |name: &str| message.and_then(|message| message.get(name)).map(text_of);
    match part("key").as_deref() {
        // Without a key a device's records keep their order here: there they may not.
        None | Some("" | "${.clientid}" | "${clientid}") => {}
        Some(key) => give("key", string(&template(key)?)),
    }
    match bridge.parameter("compression").as_str() {
        "" => {}
        "no_compression" => give("compression", string("none")),
        other => give("compression", string(other)),
    }
    // Both hosted services speak Kafka's protocol with a login over TLS.
    let hosted = matches!(bridge.kind, "confluent_producer" | "azure_event_hub_producer");
    let ssl = bridge.connector.get("ssl");
    let of_ssl = |key: &str| ssl.and_then(|ssl| ssl.get(key)).map(text_of).unwrap_or_default();
    let tls = hosted || of_ssl("enable") == "true";
    let mut lost = Vec::new();
    let mut lose = |what: &str, reason: &str, original: String| {
        lost.push(Lost { what: what.to_owned(), reason: reason.to_owned(), original });
    };
    if tls {
        give("tls", "TRUE".to_owned());
        match of_ssl("cacertfile") {
            file if file.is_empty() => {}
            file if file.starts_with("-----") || file.contains('$') => {
                lose(
                    "ssl.cacertfile",
                    "put the certificate into a file and name it in `tls_ca`",
                    String::new(),
                );
            }
            file => give("tls_ca", string(&file)),
        }
        for (theirs, ours) in [("certfile", "ssl.certificate.location"), ("keyfile", "ssl.key.location")] {
            match of_ssl(theirs) {
                file if file.is_empty() => {}
                file if file.starts_with("-----") || file.contains('$') => {
                    let reason = format!("put it into a file and name it in `librdkafka.{ours}`");
                    lose(&format!("ssl.{theirs}"), &reason, String::new());
                }
                file => give(&format!("librdkafka.{ours}"), string(&file)),
            }
        }
        if of_ssl("verify") == "verify_none" {
            lose("ssl.verify", "the brokers' certificates are always verified here", String::new());
        }
    }
    let login = bridge.connector.get("authentication").filter(|login| login.is_object());
    let of_login = |key: &str| login.and_then(|login| login.get(key)).map(text_of).unwrap_or_default();
    let mechanism = match of_login("mechanism").as_str() {
        "plain" => Some("PLAIN"),
        "scram_sha_256" => Some("SCRAM-SHA-256"),
        "scram_sha_512" => Some("SCRAM-SHA-512"),
        _ if hosted => Some("PLAIN"),
        _ => None,
    };
    let mut todo = Vec::new();
    match (login, mechanism) {
        (_, Some(mechanism)) => {
            let user = match of_login("username") {
                user if user.is_empty() => "$ConnectionString".to_owned(),
                user => user,
            };
            let variable = variable(&name, "PASSWORD");
            give("sasl_mechanism", string(mechanism));
            give("username", string(&user));
            give("password", string(&format!("env:{variable}")));
            todo.push(format!("set {variable} in the broker's environment"));
        }
        (Some(login), None) => lose("authentication", "there is no such way to log in here", shown(login)),
        (None, None) => {}
    }
    for key in ["kafka_headers", "kafka_ext_headers"] {
        match bridge.parameters().get(key) {
            None | Some(Value::Null) => {}
            Some(headers) if matches!(shown(headers).as_str(), "\"\"" | "[]") => {}
            Some(headers) => {
                lose(key, "records carry headers of Ferrule's own and no others", shown(headers));
            }
        }
    }
    if let Some(timestamp) =
        part("timestamp").filter(|t| !matches!(t.as_str(), "" | "${.timestamp}" | "${timestamp}"))
    {
        lose("message.timestamp", "a record's time is that of sending", timestamp);
    }
    Ok(SinkDraft { name, todo, lost, ..sink })
}

fn postgres(bridge: &Bridge<'_>, name: String) -> Result<SinkDraft, String> {
    let into = insert_sql::read(&bridge.parameter("sql"))?;
    let variable = variable(&name, "URL");
    let server = match bridge.setting("server") {
        server if server.is_empty() => "HOST:5432".to_owned(),
        server => server,
    };
    let url =
        format!("postgres://{}:PASSWORD@{server}/{}", bridge.setting("username"), bridge.setting("database"));
    let mut lost = Vec::new();
    let ssl = bridge.connector.get("ssl").and_then(|ssl| ssl.get("enable")).map(text_of);
    if ssl.as_deref() == Some("true") {
        let reason = "TLS to PostgreSQL is not there; use a network that you trust, or a local proxy";
        lost.push(Lost { what: "ssl".to_owned(), reason: reason.to_owned(), original: String::new() });
    }
    if let Some(rest) = &into.rest {
        lost.push(Lost {
            what: "the end of its SQL".to_owned(),
            reason: "a row is inserted once; what is to happen on a conflict is not said here".to_owned(),
            original: rest.clone(),
        });
    }
    let option = |key: &str, value: &str| (key.to_owned(), string(value));
    Ok(SinkDraft {
        from: format!("{}:{}", bridge.kind, bridge.name),
        options: vec![
            option("connector", "postgres"),
            option("url", &format!("env:{variable}")),
            option("table", &into.table),
        ],
        todo: vec![format!("set {variable} in the broker's environment to {url}")],
        lost,
        name,
        refused: None,
    })
}
