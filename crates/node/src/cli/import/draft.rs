//! What an imported configuration comes to, and how it is written.

use super::Told;
use crate::auth::PasswordHash;
use ferrule_link::Server;
use std::fmt::Write as _;

/// A listener.
#[derive(Debug, Default, Clone)]
pub(super) struct Listener {
    /// As `bind`.
    pub(super) bind: String,
    /// Whether other machines reach it.
    pub(super) is_local: bool,
    pub(super) websocket: bool,
    pub(super) path: Option<String>,
    pub(super) anonymous: bool,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) client_ca: Option<String>,
    pub(super) client_required: bool,
    pub(super) crl: Option<String>,
    pub(super) name_from_certificate: bool,
    /// Of `[listener.limits]`: key and value in TOML's notation.
    pub(super) limits: Vec<(&'static str, String)>,
}

/// Access lists. None: everything but `$`-topics.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) publish: Option<Vec<String>>,
    pub(super) subscribe: Option<Vec<String>>,
    pub(super) deny: Vec<String>,
}

impl Access {
    /// Nothing is allowed that is not named.
    pub(super) fn closed() -> Self {
        Self { publish: Some(Vec::new()), subscribe: Some(Vec::new()), deny: Vec::new() }
    }

    pub(super) fn add(&mut self, publish: bool, subscribe: bool, filter: &str) {
        for (wanted, list) in [(publish, &mut self.publish), (subscribe, &mut self.subscribe)] {
            if wanted {
                let list = list.get_or_insert_default();
                if !list.iter().any(|known| known == filter) {
                    list.push(filter.to_owned());
                }
            }
        }
    }

    /// What another allows is allowed too.
    pub(super) fn merge(&mut self, other: &Self) {
        for filter in other.publish.iter().flatten() {
            self.add(true, false, filter);
        }
        for filter in other.subscribe.iter().flatten() {
            self.add(false, true, filter);
        }
        self.deny.extend(other.deny.iter().cloned());
    }
}

/// A user.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) name: String,
    /// The password itself, if the file has it.
    pub(super) password: Option<String>,
    pub(super) access: Access,
}

/// The way to another broker.
#[derive(Debug, Default, Clone)]
pub(super) struct Uplink {
    pub(super) name: String,
    pub(super) servers: Vec<String>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) keep_alive_s: Option<u64>,
    pub(super) v3: bool,
    pub(super) ca: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) forwards: Vec<Forward>,
}

/// What goes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forward {
    /// What is taken, without the prefix.
    pub(super) pattern: String,
    /// Before it here, and there.
    pub(super) local: String,
    pub(super) remote: String,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) listeners: Vec<Listener>,
    pub(super) users: Vec<User>,
    pub(super) anonymous: Option<Access>,
    /// Of `[mqtt]`: key and value in TOML's notation.
    pub(super) mqtt: Vec<(&'static str, String)>,
    pub(super) sys_interval_s: Option<u64>,
    pub(super) uplink: Option<Uplink>,
    pub(super) told: Vec<Told>,
    /// Where from.
    source: String,
}

/// In TOML's notation.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list(filters: &[String]) -> String {
    toml::Value::Array(filters.iter().map(|filter| toml::Value::String(filter.clone())).collect()).to_string()
}

/// In SQL's quotation marks for names.
fn sql_name(text: &str) -> String {
    text.replace('"', "\"\"")
}

impl Draft {
    pub(super) fn tell(&mut self, file: &str, line: usize, text: impl Into<String>) {
        self.told.push(Told { file: file.to_owned(), line, text: text.into() });
    }

    /// Leaves out what the program refuses, and says so.
    pub(super) fn finish(&mut self, edge: bool, source: &str, program: &str) {
        source.clone_into(&mut self.source);
        if !edge && let Some(uplink) = self.uplink.take() {
            let name = uplink.name;
            self.tell(
                source,
                1,
                format!("bridge {name}: only an edge has an uplink: import it with ferrule-edge"),
            );
        }
        if let Some(uplink) = &mut self.uplink {
            let mut wrong = Vec::new();
            uplink.servers.retain(|server| match server.parse::<Server>() {
                Ok(_) => true,
                Err(error) => {
                    wrong.push(format!("bridge {}: {error}", uplink.name));
                    false
                }
            });
            if uplink.servers.is_empty() {
                self.uplink = None;
            }
            for text in wrong {
                self.tell(source, 1, text);
            }
        }
        if self.listeners.iter().all(|listener| !listener.anonymous) {
            self.anonymous = None;
            let by_certificate = self.listeners.iter().any(|listener| listener.name_from_certificate);
            if self.users.is_empty() && !by_certificate {
                self.tell(
                    source,
                    1,
                    format!(
                        "no client could connect: user `operator` was added, with a password that nobody knows; \
                         set `password` to what `{program} passwd` prints"
                    ),
                );
                let name = "operator".to_owned();
                self.users.push(User { name, password: None, access: Access::default() });
            }
        }
    }

    pub(super) fn uplink_password(&self) -> Option<&str> {
        self.uplink.as_ref()?.password.as_deref()
    }

    /// The rules of the bridge.
    pub(super) fn rules(&self) -> Option<String> {
        let uplink = self.uplink.as_ref().filter(|uplink| !uplink.forwards.is_empty())?;
        let mut out = format!("-- Bridge {} of {}.\n", one_line(&uplink.name), one_line(&self.source));
        for (number, forward) in (1..).zip(&uplink.forwards) {
            let Forward { pattern, local, remote } = forward;
            let from = sql_name(&format!("{local}{pattern}"));
            // A name of a rule is one of SQL's.
            let _ = writeln!(out, "\nCREATE RULE bridge_{number} AS");
            let template = sql_name(&remote.replace('$', "${$}"));
            if pattern.is_empty() && local != remote {
                // One topic, whatever its name there.
                let _ = writeln!(out, "INSERT INTO cloud.\"{template}\"\nSELECT * FROM \"{from}\";");
            } else if local == remote {
                let _ = writeln!(out, "INSERT INTO cloud\nSELECT * FROM \"{from}\";");
            } else if local.is_empty() {
                let _ =
                    writeln!(out, "INSERT INTO cloud.\"{template}${{topic}}\"\nSELECT * FROM \"{from}\";");
            } else {
                // The payload goes as it is, the topic without what stood before it here.
                let after = local.chars().count() + 1;
                let _ = writeln!(
                    out,
                    "INSERT INTO cloud.\"{template}${{rest}}\" WITH (payload = '${{payload}}')\n\
                     SELECT substr(topic, {after}) AS rest, payload FROM \"{from}\";"
                );
            }
        }
        Some(out)
    }

    /// Configuration and rules in one.
    pub(super) fn one_file(&self, edge: bool, program: &str) -> String {
        let mut out = self.toml(edge, false, program);
        if let Some(rules) = self.rules() {
            out.push_str("\n# What follows is for rules.sql, without the `#`.\n#\n");
            for line in rules.lines() {
                let _ = writeln!(out, "{}", format!("# {line}").trim_end());
            }
        }
        out
    }

    /// The configuration. `whole`: the other files are beside it.
    pub(super) fn toml(&self, edge: bool, whole: bool, program: &str) -> String {
        let mut out = format!("# From {}, by `{program} import`.\n\n", one_line(&self.source));
        let _ = writeln!(out, "[{}]", if edge { "edge" } else { "node" });
        out.push_str("data_dir = \"data\"            # a new one: what the other broker has stored is not taken over\n");
        if self.rules().is_some() {
            out.push_str(if whole {
                "rules = \"rules.sql\"\n"
            } else {
                "# rules = \"rules.sql\"       # what stands at the end\n"
            });
        }
        if let Some(seconds) = self.sys_interval_s {
            let _ = writeln!(out, "sys_interval = \"{seconds}s\"");
        }
        self.listeners.iter().for_each(|listener| write_listener(&mut out, listener));
        for user in &self.users {
            let _ = writeln!(out, "\n[[user]]\nname = {}", quoted(&user.name));
            let password = user.password.clone().or_else(random_password);
            if let Some(hash) = password.and_then(|password| PasswordHash::of(password.as_bytes()).ok()) {
                let _ = writeln!(out, "password = {}", quoted(&hash.reveal()));
            }
            if user.password.is_none() {
                let _ = writeln!(out, "# nobody knows this password: `{program} passwd` makes another one");
            }
            write_access(&mut out, &user.access);
        }
        if let Some(access) = self.anonymous.as_ref().filter(|access| **access != Access::default()) {
            out.push_str("\n[anonymous]\n");
            write_access(&mut out, access);
        }
        if !self.mqtt.is_empty() {
            out.push_str("\n[mqtt]\n");
            write_pairs(&mut out, &self.mqtt);
        }
        if let Some(uplink) = &self.uplink {
            write_uplink(&mut out, uplink, whole);
        }
        out
    }
}

fn write_pairs(out: &mut String, pairs: &[(&str, String)]) {
    for (key, value) in pairs {
        let _ = writeln!(out, "{key} = {value}");
    }
}

fn write_listener(out: &mut String, listener: &Listener) {
    let _ = writeln!(out, "\n[[listener]]\nbind = {}", quoted(&listener.bind));
    if listener.websocket {
        let _ = writeln!(out, "protocol = \"ws\"");
    }
    if let Some(path) = &listener.path {
        let _ = writeln!(out, "path = {}", quoted(path));
    }
    if let (Some(cert), Some(key)) = (&listener.cert, &listener.key) {
        let _ = write!(out, "tls = {{ cert = {}, key = {}", quoted(cert), quoted(key));
        if let Some(ca) = &listener.client_ca {
            let client = if listener.client_required { "required" } else { "optional" };
            let _ = write!(out, ", client_ca = {}, client = \"{client}\"", quoted(ca));
        }
        if let Some(crl) = &listener.crl {
            let _ = write!(out, ", crl = {}", quoted(crl));
        }
        out.push_str(" }\n");
        if listener.name_from_certificate {
            out.push_str("username_from = \"cn\"\n");
        }
    }
    if listener.anonymous {
        out.push_str("anonymous = true\n");
        if !listener.is_local {
            out.push_str(
                "anonymous_anywhere = true     # as it was: everyone who reaches the port may come in\n",
            );
        }
    }
    if !listener.limits.is_empty() {
        out.push_str("\n[listener.limits]\n");
        write_pairs(out, &listener.limits);
    }
}

fn write_access(out: &mut String, access: &Access) {
    for (key, filters) in [("publish", &access.publish), ("subscribe", &access.subscribe)] {
        if let Some(filters) = filters {
            let _ = writeln!(out, "{key} = {}", list(filters));
        }
    }
    if !access.deny.is_empty() {
        let _ = writeln!(out, "deny = {}", list(&access.deny));
    }
}

fn write_uplink(out: &mut String, uplink: &Uplink, whole: bool) {
    let servers = match &uplink.servers[..] {
        [server] => quoted(server),
        servers => list(servers),
    };
    let _ = writeln!(out, "\n# Bridge {}.\n[uplink]\nurl = {servers}", one_line(&uplink.name));
    if let Some(name) = &uplink.username {
        let _ = writeln!(out, "username = {}", quoted(name));
    }
    if uplink.password.is_some() {
        out.push_str(if whole { "" } else { "# " });
        out.push_str("password_file = \"uplink.pass\"\n");
    }
    if let Some(seconds) = uplink.keep_alive_s {
        let _ = writeln!(out, "keep_alive = \"{seconds}s\"");
    }
    if uplink.v3 {
        out.push_str("version = 4\n");
    }
    let tls: Vec<String> = [("ca", &uplink.ca), ("cert", &uplink.cert), ("key", &uplink.key)]
        .iter()
        .filter_map(|(key, file)| file.as_ref().map(|file| format!("{key} = {}", quoted(file))))
        .collect();
    if !tls.is_empty() {
        let _ = writeln!(out, "tls = {{ {} }}", tls.join(", "));
    }
}

/// For a comment: what would end it is left out.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn random_password() -> Option<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
