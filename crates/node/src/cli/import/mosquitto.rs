//! mosquitto.conf (2.x; man mosquitto.conf(5)): listeners, access, limits, one bridge.
//!
//! A line is `key value...`; `listener` and `connection` begin what the lines behind them are of. Without `listener` and `port`
//! mosquitto listens on this machine alone and lets everybody in; with one it lets in nobody without `allow_anonymous`.

use super::draft::{Access, Draft, Forward, Listener, Uplink, User, quoted};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Needs no counterpart: what it does is so here anyway, or is the system's.
const NEEDLESS: [&str; 22] = [
    "allow_zero_length_clientid",
    "autosave_interval",
    "autosave_on_changes",
    "connection_messages",
    "log_dest",
    "log_facility",
    "log_timestamp",
    "log_timestamp_format",
    "log_type",
    "persistence",
    "persistence_file",
    "pid_file",
    "set_tcp_nodelay",
    "user",
    "socket_domain",
    "websockets_log_level",
    "tls_version",
    "per_listener_settings",
    "check_retain_source",
    "websockets_headers_size",
    "persistence_location",
    "max_topic_alias",
];

/// What to do instead.
const INSTEAD: [(&str, &str); 20] = [
    ("include_dir", "it is not followed: import each of its files, or put them together first"),
    ("plugin", "plugins are not loaded: users, `deny` and rules are in the configuration"),
    ("auth_plugin", "plugins are not loaded: users and access lists are in the configuration"),
    ("psk_file", "TLS with shared keys is not there: `cert` makes certificates"),
    ("psk_hint", "TLS with shared keys is not there: `cert` makes certificates"),
    ("mount_point", "write [[rewrite]] for the topics, which holds for all listeners"),
    (
        "clientid_prefixes",
        "client ids are not checked: give each client a [[user]] and ${clientid} in its lists",
    ),
    ("use_username_as_clientid", "write ${username} in access lists: the client id stays the client's"),
    ("use_subject_as_username", "`username_from` takes \"cn\" or \"san\", not the whole subject"),
    ("bind_interface", "give the interface's address as `bind`"),
    ("http_dir", "no files are served: put a web server in front (docs/proxies.md)"),
    ("capath", "put the certificates into one file and name it as `client_ca`"),
    (
        "ciphers",
        "the ciphers are TLS 1.2's and 1.3's good ones and cannot be chosen; `tls12 = false` leaves TLS 1.3 alone",
    ),
    ("max_qos", "QoS cannot be bounded"),
    ("memory_limit", "`memory_max` of [edge] bounds the process: set it"),
    ("auto_id_prefix", "ids that the broker makes have no prefix"),
    ("retain_available", "retained messages cannot be turned off: `retained_max_messages` bounds them"),
    ("upgrade_outgoing_qos", "a message never leaves with a higher QoS than it came with"),
    ("max_queued_bytes", "set `max_stored_bytes` of [mqtt]"),
    ("max_inflight_bytes", "set `max_inflight` of [mqtt]"),
];

/// Reads a file, or says why not.
type Reader<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// What the lines are of.
enum Scope {
    /// Index of the listener; none: the default one.
    Listener(Option<usize>),
    /// The bridge that is read; none: one too many.
    Bridge(Option<Uplink>),
}

struct Import<'a> {
    draft: Draft,
    file: &'a str,
    read: Reader<'a>,
    /// `port` and `bind_address`.
    port: Option<u16>,
    address: Option<String>,
    anonymous: Option<bool>,
    /// By listener; `usize::MAX` is the default one and, unless it says otherwise, each.
    anonymous_of: BTreeMap<usize, bool>,
    users: BTreeMap<String, Access>,
    known: Vec<String>,
    has_acl: bool,
    patterns: Access,
    nameless: Access,
    default_listener: Listener,
}

/// What `name` comes to.
pub(super) fn read(name: &str, text: &str, read: Reader<'_>) -> Draft {
    let mut import = Import {
        draft: Draft::default(),
        file: name,
        read,
        port: None,
        address: None,
        anonymous: None,
        anonymous_of: BTreeMap::new(),
        users: BTreeMap::new(),
        known: Vec::new(),
        has_acl: false,
        patterns: Access::default(),
        nameless: Access::closed(),
        default_listener: Listener::default(),
    };
    let mut scope = Scope::Listener(None);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        scope = import.line(scope, number, key, value.trim());
    }
    import.end_bridge(scope);
    import.finish()
}

fn flag(value: &str) -> bool {
    value == "true" || value == "1"
}

impl Import<'_> {
    fn tell(&mut self, line: usize, text: impl Into<String>) {
        let file = self.file.to_owned();
        self.draft.tell(&file, line, text);
    }

    fn number<T: std::str::FromStr>(&mut self, line: usize, key: &str, value: &str) -> Option<T> {
        let number = value.parse().ok();
        if number.is_none() {
            self.tell(line, format!("{key}: {value:?} is no number"));
        }
        number
    }

    fn end_bridge(&mut self, scope: Scope) {
        if let Scope::Bridge(Some(uplink)) = scope {
            self.draft.uplink = Some(uplink);
        }
    }

    fn line(&mut self, scope: Scope, number: usize, key: &str, value: &str) -> Scope {
        match key {
            "listener" => {
                self.end_bridge(scope);
                let words: Vec<&str> = value.split_whitespace().collect();
                let Some(bind) = self.bind(number, &words) else { return Scope::Listener(None) };
                self.draft.listeners.push(bind);
                return Scope::Listener(Some(self.draft.listeners.len() - 1));
            }
            "connection" => {
                self.end_bridge(scope);
                if let Some(first) = self.draft.uplink.as_ref().map(|uplink| uplink.name.clone()) {
                    self.tell(
                        number,
                        format!(
                            "connection {value}: an edge has one uplink, and that is {first}'s: run another edge for it, \
                             or give `address` of one of them both brokers"
                        ),
                    );
                    return Scope::Bridge(None);
                }
                return Scope::Bridge(Some(Uplink { name: value.to_owned(), v3: true, ..Uplink::default() }));
            }
            _ => {}
        }
        match scope {
            Scope::Bridge(None) => Scope::Bridge(None),
            Scope::Bridge(Some(mut uplink)) => {
                // General settings may stand anywhere.
                if !self.bridge(&mut uplink, number, key, value) {
                    self.setting(None, number, key, value);
                }
                Scope::Bridge(Some(uplink))
            }
            Scope::Listener(index) => {
                self.setting(index, number, key, value);
                Scope::Listener(index)
            }
        }
    }

    fn bind(&mut self, line: usize, words: &[&str]) -> Option<Listener> {
        let (port, address) = match words {
            [port] => (*port, None),
            [port, address, ..] => (*port, Some(*address)),
            [] => ("", None),
        };
        let port: u16 = self.number(line, "listener", port)?;
        if port == 0
            && let Some(path) = address
        {
            return Some(Listener { bind: format!("unix:{path}"), is_local: true, ..Listener::default() });
        }
        let host = address.unwrap_or("0.0.0.0");
        let bind = address_of(host, port);
        if bind.parse::<std::net::SocketAddr>().is_err() {
            self.tell(
                line,
                format!("listener {port} {host}: `bind` takes an address, not a name: write it for this one"),
            );
            return None;
        }
        Some(Listener { is_local: is_local(host), bind, ..Listener::default() })
    }

    fn listener(&mut self, index: Option<usize>) -> &mut Listener {
        match index {
            Some(index) => &mut self.draft.listeners[index],
            None => &mut self.default_listener,
        }
    }

    /// Of a listener, or of all.
    fn setting(&mut self, index: Option<usize>, line: usize, key: &str, value: &str) {
        match key {
            "port" => self.port = self.number(line, key, value).or(self.port),
            "bind_address" => self.address = Some(value.to_owned()),
            "protocol" => {
                match value {
                    "websockets" => {
                        self.listener(index).websocket = true;
                        self.tell(line, "protocol websockets: clients must ask for the path /mqtt, or write another `path`");
                    }
                    "mqtt" => {}
                    other => self.tell(line, format!("protocol {other}: there are mqtt and websockets")),
                }
            }
            "allow_anonymous" => {
                self.anonymous = Some(flag(value));
                self.anonymous_of.insert(index.unwrap_or(usize::MAX), flag(value));
            }
            "password_file" => self.passwords(line, value),
            "acl_file" => self.acl(line, value),
            "certfile" => self.listener(index).cert = Some(value.to_owned()),
            "keyfile" => self.listener(index).key = Some(value.to_owned()),
            "cafile" => self.listener(index).client_ca = Some(value.to_owned()),
            "crlfile" => self.listener(index).crl = Some(value.to_owned()),
            "require_certificate" => self.listener(index).client_required = flag(value),
            "use_identity_as_username" => self.listener(index).name_from_certificate = flag(value),
            "max_connections" => {
                // -1 is no bound, as 0 is here.
                if let Some(most) = self.number::<i64>(line, key, value).filter(|most| *most > 0) {
                    self.listener(index).limits.push(("max_connections", most.to_string()));
                }
            }
            "max_packet_size" | "message_size_limit" => {
                if let Some(bytes) = self.number::<u64>(line, key, value).filter(|bytes| *bytes > 0) {
                    self.mqtt("max_packet_size", quoted(&format!("{bytes}B")));
                }
            }
            "max_queued_messages" => {
                if let Some(most) = self.number::<u64>(line, key, value).filter(|most| *most > 0) {
                    self.mqtt("max_queued_messages", most.to_string());
                }
            }
            "max_inflight_messages" => {
                if let Some(most) = self.number::<u16>(line, key, value).filter(|most| *most > 0) {
                    self.mqtt("max_inflight", most.to_string());
                }
            }
            "max_keepalive" => {
                if let Some(seconds) = self.number::<u16>(line, key, value) {
                    self.mqtt("keep_alive_max", quoted(&format!("{seconds}s")));
                }
            }
            "persistent_client_expiration" => self.expiration(line, value),
            "sys_interval" => self.draft.sys_interval_s = self.number(line, key, value),
            _ if NEEDLESS.contains(&key) => {}
            _ => {
                let instead = INSTEAD.iter().find(|(known, _)| *known == key).map(|(_, instead)| *instead);
                let instead = instead.unwrap_or("there is no counterpart");
                self.tell(line, format!("{key}: {instead}"));
            }
        }
    }

    fn mqtt(&mut self, key: &'static str, value: String) {
        self.draft.mqtt.retain(|(known, _)| *known != key);
        self.draft.mqtt.push((key, value));
    }

    /// `14d`, `2w`, `1m`, `1y`.
    fn expiration(&mut self, line: usize, value: &str) {
        let (digits, unit) = value.split_at(value.trim_end_matches(char::is_alphabetic).len());
        let hours = match unit {
            "h" => 1,
            "d" => 24,
            "w" => 24 * 7,
            "m" => 24 * 30,
            "y" => 24 * 365,
            _ => 0,
        };
        match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(hours)).filter(|hours| *hours > 0) {
            Some(hours) => self.mqtt("session_expiry_max", quoted(&format!("{hours}h"))),
            None => self.tell(
                line,
                format!("persistent_client_expiration {value}: write `session_expiry_max` of [mqtt]"),
            ),
        }
    }

    fn passwords(&mut self, line: usize, path: &str) {
        let text = match (self.read)(Path::new(path)) {
            Ok(text) => text,
            Err(error) => {
                return self.tell(
                    line,
                    format!("password_file {path} cannot be read: {error}: its users are missing"),
                );
            }
        };
        for (number, entry) in (1..).zip(text.lines()) {
            let Some((name, _)) =
                entry.split_once(':').filter(|(name, _)| !name.is_empty() && !name.starts_with('#'))
            else {
                continue;
            };
            self.draft.tell(
                path,
                number,
                format!("the password of {name}: mosquitto's hash is of another kind: set it anew (`passwd` makes the hash)"),
            );
            self.known.push(name.to_owned());
        }
    }

    fn acl(&mut self, line: usize, path: &str) {
        self.has_acl = true;
        let text = match (self.read)(Path::new(path)) {
            Ok(text) => text,
            Err(error) => {
                return self.tell(
                    line,
                    format!("acl_file {path} cannot be read: {error}: nobody may do anything then"),
                );
            }
        };
        let mut user: Option<String> = None;
        for (number, entry) in (1..).zip(text.lines()) {
            let entry = entry.trim();
            let (key, rest) = entry.split_once(char::is_whitespace).unwrap_or((entry, ""));
            let rest = rest.trim();
            match key {
                "" => {}
                key if key.starts_with('#') => {}
                "user" => {
                    self.users.entry(rest.to_owned()).or_insert_with(Access::closed);
                    user = Some(rest.to_owned());
                }
                "topic" | "pattern" => {
                    let (access, filter) = match rest.split_once(char::is_whitespace) {
                        Some((access @ ("read" | "write" | "readwrite" | "deny"), filter)) => {
                            (access, filter.trim())
                        }
                        _ => ("readwrite", rest),
                    };
                    let filter = match key {
                        "pattern" => filter.replace("%c", "${clientid}").replace("%u", "${username}"),
                        _ => filter.to_owned(),
                    };
                    if ferrule_mqtt::topic::validate_filter(&filter).is_err() {
                        self.draft.tell(path, number, format!("{entry}: that is no topic filter"));
                        continue;
                    }
                    let list = match (key, &user) {
                        ("pattern", _) => &mut self.patterns,
                        (_, Some(user)) => self.users.entry(user.clone()).or_insert_with(Access::closed),
                        (_, None) => &mut self.nameless,
                    };
                    match access {
                        "deny" => list.deny.push(filter),
                        access => list.add(access != "read", access != "write", &filter),
                    }
                }
                _ => self.draft.tell(path, number, format!("{entry}: there are user, topic and pattern")),
            }
        }
    }

    /// Whether the line was the bridge's.
    fn bridge(&mut self, uplink: &mut Uplink, line: usize, key: &str, value: &str) -> bool {
        match key {
            "address" | "addresses" => uplink.servers = value.split_whitespace().map(str::to_owned).collect(),
            "remote_username" | "username" => uplink.username = Some(value.to_owned()),
            "remote_password" | "password" => {
                uplink.password = Some(value.to_owned());
                self.tell(line, format!("{key}: it is not printed: put it into uplink.pass (`--dir` does)"));
            }
            "remote_clientid" | "clientid" | "local_clientid" => {
                self.tell(
                    line,
                    format!("{key} {value}: the uplink's client id is `ferrule-` and the `id` of [edge]"),
                );
            }
            "keepalive_interval" => uplink.keep_alive_s = self.number(line, key, value),
            "bridge_protocol_version" => uplink.v3 = value != "mqttv50",
            "bridge_cafile" => uplink.ca = Some(value.to_owned()),
            "bridge_certfile" => uplink.cert = Some(value.to_owned()),
            "bridge_keyfile" => uplink.key = Some(value.to_owned()),
            "bridge_insecure" if flag(value) => {
                self.tell(
                    line,
                    "bridge_insecure: the name is checked always: write `server_name` in `tls` of [uplink]",
                );
            }
            "topic" => self.topic(uplink, line, value),
            // The uplink keeps what is not acknowledged, connects again by itself, and says nothing about itself.
            "cleansession"
            | "local_cleansession"
            | "start_type"
            | "restart_timeout"
            | "idle_timeout"
            | "threshold"
            | "try_private"
            | "round_robin"
            | "bridge_attempt_unsubscribe"
            | "bridge_outgoing_retain"
            | "bridge_insecure"
            | "bridge_tls_version"
            | "local_username"
            | "local_password"
            | "notifications_local_only"
            | "bridge_max_packet_size"
            | "bridge_require_ocsp" => {}
            "notifications" if !flag(value) => {}
            "notifications" | "notification_topic" => {
                self.tell(line, format!("{key}: no topic tells of the uplink: `status` and $SYS do"));
            }
            "bridge_capath" => self
                .tell(line, "bridge_capath: put the certificates into one file: `ca` in `tls` of [uplink]"),
            "bridge_alpn" => {
                self.tell(line, "bridge_alpn: the uplink asks for `mqtt`, and that cannot be changed")
            }
            "bridge_bind_address" => {
                self.tell(line, "bridge_bind_address: the system's routes say where the uplink goes out")
            }
            "bridge_identity" | "bridge_psk" => {
                self.tell(
                    line,
                    format!("{key}: TLS with shared keys is not there: use certificates (`tls` of [uplink])"),
                );
            }
            _ => return false,
        }
        true
    }

    /// `topic PATTERN [DIRECTION [QOS [LOCAL [REMOTE]]]]`.
    fn topic(&mut self, uplink: &mut Uplink, line: usize, value: &str) {
        let words: Vec<&str> =
            value.split_whitespace().map(|word| if word == "\"\"" { "" } else { word }).collect();
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let direction = if word(1).is_empty() { "out" } else { word(1) };
        let forward =
            Forward { pattern: word(0).to_owned(), local: word(3).to_owned(), remote: word(4).to_owned() };
        if direction == "in" || direction == "both" {
            self.tell(
                line,
                format!(
                    "topic {value}: what comes from the other broker is not fetched: let that broker's bridge bring \
                     it here (`topic {} out` there)",
                    word(0)
                ),
            );
        }
        let from = format!("{}{}", forward.local, forward.pattern);
        if ferrule_mqtt::topic::validate_filter(&from).is_err() {
            self.tell(line, format!("topic {value}: {from:?} is no topic filter"));
        } else if direction == "out" || direction == "both" {
            if !forward.local.is_empty() && !forward.pattern.is_empty() && forward.local != forward.remote {
                self.tell(
                    line,
                    format!("topic {value}: under another prefix only payloads that are text go on as they are: keep the prefix"),
                );
            }
            uplink.forwards.push(forward);
        }
    }

    fn finish(mut self) -> Draft {
        if self.port.is_some() || self.draft.listeners.is_empty() {
            let port = self.port.unwrap_or(1883);
            // By itself mosquitto 2 stays on this machine.
            let default = if self.port.is_some() { "0.0.0.0" } else { "127.0.0.1" };
            let host = self.address.clone().unwrap_or_else(|| default.to_owned());
            if self.port.is_none() {
                self.anonymous.get_or_insert(true);
            }
            let listener = std::mem::take(&mut self.default_listener);
            let bind = address_of(&host, port);
            if bind.parse::<std::net::SocketAddr>().is_ok() {
                self.draft.listeners.insert(0, Listener { bind, is_local: is_local(&host), ..listener });
                self.anonymous_of =
                    self.anonymous_of.into_iter().map(|(at, yes)| (at.saturating_add(1), yes)).collect();
            } else {
                self.tell(1, format!("bind_address {host}: `bind` takes an address, not a name"));
            }
        }
        let all = self.anonymous_of.get(&usize::MAX).copied().or(self.anonymous).unwrap_or(false);
        let mut incomplete = Vec::new();
        for (index, listener) in self.draft.listeners.iter_mut().enumerate() {
            listener.anonymous = self.anonymous_of.get(&index).copied().unwrap_or(all);
            if listener.cert.is_none() || listener.key.is_none() {
                listener.name_from_certificate = false;
                if listener.client_ca.is_some() || listener.cert.is_some() {
                    incomplete.push(listener.bind.clone());
                }
            } else if !listener.client_required && !listener.name_from_certificate {
                // mosquitto asks for no certificate then.
                listener.client_ca = None;
            }
        }
        for bind in incomplete {
            self.tell(1, format!("listener {bind}: TLS needs certfile and keyfile: it is plain here"));
        }
        for name in std::mem::take(&mut self.known) {
            let access = if self.has_acl {
                self.users.remove(&name).unwrap_or_else(Access::closed)
            } else {
                Access::default()
            };
            self.draft.users.push(User { name, password: None, access });
        }
        for (name, access) in std::mem::take(&mut self.users) {
            self.draft.users.push(User { name, password: None, access });
        }
        if self.has_acl {
            self.draft.users.iter_mut().for_each(|user| user.access.merge(&self.patterns));
            let mut nameless = self.nameless;
            nameless.merge(&self.patterns);
            self.draft.anonymous = Some(nameless);
        }
        // An address of a bridge has no scheme.
        if let Some(uplink) = &mut self.draft.uplink {
            let scheme = if uplink.ca.is_some() || uplink.cert.is_some() { "mqtts" } else { "mqtt" };
            for server in &mut uplink.servers {
                let port = if server.contains(':') { "" } else { ":1883" };
                *server = format!("{scheme}://{server}{port}");
            }
        }
        self.draft
    }
}

fn address_of(host: &str, port: u16) -> String {
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn is_local(host: &str) -> bool {
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}
