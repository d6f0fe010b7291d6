//! nanomq.conf (HOCON, NanoMQ 0.15 and later): listeners, users, access, limits, one bridge. Its rules are `rules import`'s.

use super::draft::{Access, Draft, Forward, Listener, Uplink, User, quoted};
use ferrule_rules::cli::hocon;
use serde_json::{Map, Value};

/// What `name` comes to.
///
/// # Errors
/// When it is no HOCON.
pub(super) fn read(name: &str, text: &str) -> Result<Draft, String> {
    let (root, includes) = hocon(text).map_err(|error| format!("{name}:{error}"))?;
    let mut import = Import { draft: Draft::default(), name, text };
    for include in includes {
        import.tell(
            &["include"],
            format!("include {include}: it is not followed: put what stands there into this file"),
        );
    }
    import.root(&root);
    Ok(import.draft)
}

struct Import<'a> {
    draft: Draft,
    name: &'a str,
    text: &'a str,
}

fn text(object: &Value, key: &str) -> Option<String> {
    match object.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn flag(object: &Value, key: &str) -> Option<bool> {
    match object.get(key)? {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => Some(text == "true"),
        _ => None,
    }
}

/// `60s`, `10m`; seconds.
fn seconds(object: &Value, key: &str) -> Option<u64> {
    let text = text(object, key)?;
    crate::config::parse_duration(&text).map(|d| d.as_secs()).or_else(|| text.parse().ok())
}

impl Import<'_> {
    /// The line of a key, by the names on the way to it: the first place where they stand one after the other.
    fn line(&self, path: &[&str]) -> usize {
        let mut path = path.iter();
        let mut wanted = path.next();
        for (number, line) in (1..).zip(self.text.lines()) {
            let mut line = line.trim_start();
            if line.starts_with('#') {
                continue;
            }
            while let Some(name) = wanted {
                let Some(at) = line.find(name) else { break };
                line = &line[at + name.len()..];
                wanted = path.next();
                if wanted.is_none() {
                    return number;
                }
            }
        }
        1
    }

    fn tell(&mut self, path: &[&str], said: impl Into<String>) {
        let line = self.line(path);
        let name = self.name.to_owned();
        self.draft.tell(&name, line, said);
    }

    fn root(&mut self, root: &Map<String, Value>) {
        let auth = root.get("auth").cloned().unwrap_or(Value::Null);
        let anonymous = flag(&auth, "allow_anonymous").unwrap_or(true);
        let empty = Map::new();
        for (kind, listener) in root.get("listeners").and_then(Value::as_object).unwrap_or(&empty) {
            self.listener(kind, listener, anonymous);
        }
        if self.draft.listeners.is_empty() {
            self.draft.listeners.push(Listener {
                bind: "127.0.0.1:1883".to_owned(),
                is_local: true,
                anonymous,
                ..Listener::default()
            });
            self.tell(&["listeners"], "listeners: none could be taken over: 127.0.0.1:1883 stands for them");
        }
        for (key, value) in root {
            match key.as_str() {
                "listeners" => {}
                // Threads, files and log of NanoMQ's own.
                "system" | "sqlite" | "log" => {}
                "mqtt" => self.mqtt(value),
                "auth" => self.auth(value),
                "bridges" => self.bridges(value),
                "rules" => self.tell(&["rules"], "rules: `rules import` prints them as a rules file"),
                "http_server" => self.tell(
                    &["http_server"],
                    "http_server: there is no HTTP interface: `status --json` and the control socket tell",
                ),
                "webhook" => self.tell(
                    &["webhook"],
                    "webhook: rules hear of the same events ($events/...), see docs/rules.md",
                ),
                "websocket" => self.tell(&["websocket"], "websocket: write it as `listeners.ws`"),
                other => self.tell(&[other], format!("{other}: there is no counterpart")),
            }
        }
    }

    fn listener(&mut self, kind: &str, value: &Value, anonymous: bool) {
        let websocket = matches!(kind, "ws" | "wss");
        let tls = matches!(kind, "ssl" | "wss");
        if !matches!(kind, "tcp" | "ssl" | "ws" | "wss") {
            return self
                .tell(&["listeners", kind], format!("listeners.{kind}: there are TCP, TLS and WebSocket"));
        }
        if flag(value, "enable") == Some(false) {
            return;
        }
        let Some(bind) = text(value, "bind") else {
            return self.tell(&["listeners", kind], format!("listeners.{kind}: it has no `bind`"));
        };
        let (address, path) = match bind.split_once('/') {
            Some((address, path)) => (address.to_owned(), Some(format!("/{path}"))),
            None => (bind.clone(), None),
        };
        let address = if address.contains(':') { address } else { format!("0.0.0.0:{address}") };
        let Ok(bound) = address.parse::<std::net::SocketAddr>() else {
            return self.tell(
                &["listeners", kind],
                format!("listeners.{kind}: `bind` takes an address and a port, not {bind}"),
            );
        };
        let required =
            flag(value, "verify_peer") == Some(true) && flag(value, "fail_if_no_peer_cert") == Some(true);
        let asks = flag(value, "verify_peer") == Some(true);
        let listener = Listener {
            bind: bound.to_string(),
            is_local: bound.ip().is_loopback(),
            websocket,
            path: path.filter(|_| websocket),
            anonymous,
            cert: text(value, "certfile").filter(|_| tls),
            key: text(value, "keyfile").filter(|_| tls),
            client_ca: text(value, "cacertfile").filter(|_| asks),
            client_required: required,
            ..Listener::default()
        };
        if tls && (listener.cert.is_none() || listener.key.is_none()) {
            return self
                .tell(&["listeners", kind], format!("listeners.{kind}: TLS needs `certfile` and `keyfile`"));
        }
        if value.get("key_password").is_some() {
            self.tell(
                &["listeners", kind, "key_password"],
                "key_password: keys must not be encrypted: `openssl pkey` takes the password off",
            );
        }
        self.draft.listeners.push(listener);
    }

    fn mqtt(&mut self, value: &Value) {
        let size = |key: &str| {
            let text = text(value, key)?;
            crate::config::parse_size(&text).or_else(|| text.parse().ok()).filter(|bytes| *bytes > 0)
        };
        if let Some(bytes) = size("max_packet_size") {
            self.draft.mqtt.push(("max_packet_size", quoted(&format!("{bytes}B"))));
        }
        for (theirs, ours) in
            [("max_mqueue_len", "max_queued_messages"), ("max_inflight_window", "max_inflight")]
        {
            if let Some(most) =
                text(value, theirs).and_then(|text| text.parse::<u64>().ok()).filter(|most| *most > 0)
            {
                self.draft.mqtt.push((ours, most.to_string()));
            }
        }
        for key in [
            "retry_interval",
            "keepalive_multiplier",
            "property_size",
            "max_awaiting_rel",
            "await_rel_timeout",
        ] {
            if value.get(key).is_some() {
                self.tell(
                    &["mqtt", key],
                    format!("mqtt.{key}: there is no counterpart: the limits are in docs/limits.md"),
                );
            }
        }
    }

    fn auth(&mut self, auth: &Value) {
        if let Some(passwords) = auth.get("password").and_then(Value::as_object) {
            for (name, password) in passwords {
                let password = password.as_str().filter(|password| !password.is_empty()).map(str::to_owned);
                self.draft.users.push(User { name: name.clone(), password, access: Access::default() });
            }
        }
        for key in ["http_auth", "cache"] {
            if auth.get(key).is_some() {
                self.tell(
                    &["auth", key],
                    format!("auth.{key}: users are in the configuration, nobody else is asked"),
                );
            }
        }
        if auth.get("no_match").and_then(Value::as_str) == Some("deny") {
            // Before its rules, which open what they name.
            self.draft.users.iter_mut().for_each(|user| user.access = Access::closed());
            self.draft.anonymous = Some(Access::closed());
        }
        let empty = Vec::new();
        let rules =
            auth.get("acl").and_then(|acl| acl.get("rules")).and_then(Value::as_array).unwrap_or(&empty);
        for rule in rules {
            self.acl(rule);
        }
    }

    /// `{permit, username, action, topics}`.
    fn acl(&mut self, rule: &Value) {
        let allow = text(rule, "permit").as_deref() == Some("allow");
        let shown = rule.to_string();
        let Some(topics) = rule.get("topics").and_then(Value::as_array) else {
            // `{"permit": "allow"}` at the end is what is so without lists.
            if !allow || rule.as_object().is_some_and(|rule| rule.len() > 1) {
                self.tell(
                    &["acl", "rules"],
                    format!("{shown}: say which topics: `deny` of [[user]] and [anonymous] refuses them"),
                );
            }
            return;
        };
        if ["clientid", "ipaddr", "and", "or"].iter().any(|key| rule.get(key).is_some()) {
            return self.tell(
                &["acl", "rules"],
                format!(
                    "{shown}: lists belong to user names: write ${{clientid}} in the topics of a [[user]]"
                ),
            );
        }
        let filters: Vec<String> =
            topics.iter().filter_map(Value::as_str).map(|topic| topic.replacen("@", "", 1)).collect();
        if let Some(bad) = filters.iter().find(|filter| ferrule_mqtt::topic::validate_filter(filter).is_err())
        {
            return self.tell(&["acl", "rules"], format!("{shown}: {bad:?} is no topic filter"));
        }
        let action = text(rule, "action").unwrap_or_else(|| "pubsub".to_owned());
        let (publish, subscribe) = (action != "subscribe", action != "publish");
        let name = text(rule, "username").filter(|name| name != "#");
        let mut told = None;
        let mut apply = |access: &mut Access| {
            for filter in &filters {
                match (allow, publish && subscribe) {
                    (true, _) => access.add(publish, subscribe, filter),
                    (false, true) => access.deny.push(filter.clone()),
                    (false, false) => {
                        // Ours refuses both: wider than what was meant, and said so.
                        access.deny.push(filter.clone());
                        told = Some(format!("{shown}: `deny` refuses to publish and to subscribe"));
                    }
                }
            }
        };
        match &name {
            Some(name) => match self.draft.users.iter_mut().find(|user| user.name == *name) {
                Some(user) => apply(&mut user.access),
                None => {
                    told = Some(format!("{shown}: there is no user {name}: add a [[user]] with these topics"))
                }
            },
            None => {
                self.draft.users.iter_mut().for_each(|user| apply(&mut user.access));
                apply(self.draft.anonymous.get_or_insert_default());
            }
        }
        if let Some(told) = told {
            self.tell(&["acl", "rules"], told);
        }
    }

    fn bridges(&mut self, bridges: &Value) {
        let empty = Map::new();
        for (kind, named) in bridges.as_object().unwrap_or(&empty) {
            if kind != "mqtt" {
                self.tell(
                    &["bridges", kind],
                    format!(
                        "bridges.{kind}: the uplink is MQTT; another destination is a sink (docs/sinks.md)"
                    ),
                );
                continue;
            }
            for (name, bridge) in named.as_object().unwrap_or(&empty) {
                self.bridge(name, bridge);
            }
        }
    }

    fn bridge(&mut self, name: &str, bridge: &Value) {
        let path = ["bridges", name];
        if flag(bridge, "enable") == Some(false) {
            return;
        }
        if let Some(first) = self.draft.uplink.as_ref().map(|uplink| uplink.name.clone()) {
            return self.tell(
                &path,
                format!(
                    "bridge {name}: an edge has one uplink, and that is {first}'s: run another edge for it"
                ),
            );
        }
        let Some(server) = text(bridge, "server") else {
            return self.tell(&path, format!("bridge {name}: it has no `server`"));
        };
        let server = server.replacen("mqtt-tcp://", "mqtt://", 1).replacen("tls+mqtt-tcp://", "mqtts://", 1);
        if server.starts_with("mqtt-quic") {
            return self.tell(&path, format!("bridge {name}: QUIC is not there: use mqtts://"));
        }
        let ssl = bridge.get("ssl").cloned().unwrap_or(Value::Null);
        let server = match text(&ssl, "cacertfile") {
            Some(_) => server.replacen("mqtt://", "mqtts://", 1),
            None => server,
        };
        let mut uplink = Uplink {
            name: name.to_owned(),
            servers: vec![server],
            username: text(bridge, "username"),
            password: text(bridge, "password"),
            keep_alive_s: seconds(bridge, "keepalive"),
            v3: text(bridge, "proto_ver").is_none_or(|version| version != "5"),
            ca: text(&ssl, "cacertfile"),
            cert: text(&ssl, "certfile"),
            key: text(&ssl, "keyfile"),
            forwards: Vec::new(),
        };
        if uplink.password.is_some() {
            self.tell(
                &["bridges", name, "password"],
                "password: it is not printed: put it into uplink.pass (`--dir` does)",
            );
        }
        if let Some(id) = text(bridge, "clientid") {
            self.tell(
                &["bridges", name, "clientid"],
                format!("clientid {id}: the uplink's client id is `ferrule-` and the `id` of [edge]"),
            );
        }
        let empty = Vec::new();
        for forward in bridge.get("forwards").and_then(Value::as_array).unwrap_or(&empty) {
            self.forward(name, forward, &mut uplink);
        }
        if bridge.get("subscription").and_then(Value::as_array).is_some_and(|all| !all.is_empty()) {
            self.tell(
                &["bridges", name, "subscription"],
                "subscription: what comes from the other broker is not fetched: let that broker's bridge bring it here",
            );
        }
        self.draft.uplink = Some(uplink);
    }

    /// `{remote_topic, local_topic, prefix}`.
    fn forward(&mut self, bridge: &str, forward: &Value, uplink: &mut Uplink) {
        let local =
            text(forward, "local_topic").or_else(|| forward.as_str().map(str::to_owned)).unwrap_or_default();
        let remote = text(forward, "remote_topic").unwrap_or_default();
        let prefix = text(forward, "prefix").unwrap_or_default();
        let path = ["bridges", bridge, "forwards", &local];
        if ferrule_mqtt::topic::validate_filter(&local).is_err() {
            return self.tell(&path, format!("forward of {local:?}: that is no topic filter"));
        }
        if text(forward, "suffix").is_some_and(|suffix| !suffix.is_empty()) {
            self.tell(&path, format!("suffix of {local}: write it behind ${{topic}} in the rule's target"));
        }
        if remote.is_empty() || remote == local {
            uplink.forwards.push(Forward { pattern: local, local: String::new(), remote: prefix });
        } else if !ferrule_mqtt::topic::has_wildcards(&local) && !ferrule_mqtt::topic::has_wildcards(&remote)
        {
            // One topic, and its name there: all of it is the prefix.
            uplink.forwards.push(Forward {
                pattern: String::new(),
                local,
                remote: format!("{prefix}{remote}"),
            });
        } else {
            self.tell(
                &path,
                format!("forward of {local} to {remote}: write the target as a template of topic[1], topic[2], ... in a rule (docs/rules.md)"),
            );
        }
    }
}
