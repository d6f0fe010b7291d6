//! What is different between the configuration in force and another one, and what a reload makes of it.
//!
//! [`FIELDS`] is the one list of what a reload takes: docs/configuration.md is compared with it, and tests compare it with the
//! settings that the readers ask for and with what [`Changes::between`] says of each.
//!
//! # Invariants
//! - What is in force is always a whole configuration: the other one, but for what needs a restart, which stays as it is.
//! - A listener is known by its `bind`, a user by its name, whatever its place in the file. With another `bind` it is another listener. It
//!   keeps its number, which is what connections know of it, and no other gets that in the life of a process.

use super::{BrokerConfig, ListenerConfig, Setting, Source, UplinkConfig, User};

/// When another value is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// At once.
    AtOnce,
    /// For connections that come from then on; those that are open go on with what they began with.
    NextConnection,
    /// The uplink connects anew.
    Uplink,
    /// After a restart.
    Restart,
}

/// Every setting that there is: its section, what a reload makes of it, and its keys.
pub const FIELDS: &[(&str, Takes, &[&str])] = {
    use Takes::{AtOnce, NextConnection, Restart, Uplink};
    &[
        ("edge", Restart, &["id", "data_dir", "workers", "worker_delay"]),
        ("edge", AtOnce, &["rules", "memory_max", "sys_interval", "log"]),
        ("node", Restart, &["id", "data_dir", "workers", "worker_delay"]),
        ("node", AtOnce, &["rules", "memory_max", "sys_interval", "log"]),
        ("store", Restart, &["backend", "url", "password_file", "schema", "timeout"]),
        (
            "cluster",
            Restart,
            &["name", "bind", "advertise", "seeds", "will_copies", "token_file", "spread_rules_after"],
        ),
        ("cluster.tls", Restart, &["cert", "key", "ca", "crl", "server_name"]),
        (
            "listener",
            AtOnce,
            &["bind", "unix_mode", "username_from", "users", "anonymous", "anonymous_anywhere"],
        ),
        ("listener", NextConnection, &["protocol", "path", "proxy_protocol_from"]),
        ("listener.tls", NextConnection, &["cert", "key", "client_ca", "crl", "client", "tls12"]),
        (
            "listener.limits",
            NextConnection,
            &["max_connections", "max_connect_rate", "max_connections_per_address"],
        ),
        ("listener.limits", NextConnection, TOLD),
        ("listener.limits", AtOnce, CLIENT),
        ("mqtt", NextConnection, TOLD),
        ("mqtt", AtOnce, CLIENT),
        (
            "mqtt",
            AtOnce,
            &[
                "max_sessions",
                "subscriptions_max_bytes",
                "max_buffered_bytes",
                "retained_max_messages",
                "retained_max_bytes",
                "delayed_max_messages",
                "delayed_max_bytes",
            ],
        ),
        (
            "user",
            AtOnce,
            &["name", "password", "password_file", "scram", "publish", "subscribe", "deny", "role", "edge"],
        ),
        ("anonymous", AtOnce, &["publish", "subscribe", "deny"]),
        ("certificate", AtOnce, &["publish", "subscribe", "deny"]),
        ("shared_subscriptions", AtOnce, &["strategy"]),
        ("protocol", AtOnce, &["response_information", "server_reference", "check_payload_format"]),
        ("rewrite", AtOnce, &["action", "source_topic", "re", "dest_topic"]),
        (
            "auto_subscribe",
            NextConnection,
            &["topic", "qos", "no_local", "retain_as_published", "retain_handling"],
        ),
        (
            "outbox",
            AtOnce,
            &[
                "max_bytes",
                "mem_max",
                "offline_interval",
                "ack_deadline",
                "max_messages",
                "max_rate",
                "report_topic",
                "on_full",
                "order",
                "dead_letter",
            ],
        ),
        // The uplink tells the broker when a message is too old.
        ("outbox", Uplink, &["max_age"]),
        (
            "uplink",
            Uplink,
            &[
                "url",
                "preset",
                "client_id",
                "username",
                "password_file",
                "shared_key_file",
                "proxy",
                "proxy_username",
                "proxy_password_file",
                "interface",
                "keep_alive",
                "connect_timeout",
                "max_inflight",
                "version",
                "identity",
                "batch",
                "batch_delay",
                "session_expiry",
            ],
        ),
        ("uplink.tls", Uplink, &["ca", "cert", "key", "server_name"]),
        ("uplink.metered", Uplink, &["bytes", "time"]),
        ("downlink", Uplink, &["filter", "topic", "qos"]),
    ]
};

/// What bounds one client and is told to it, or settled, when it connects.
const TOLD: &[&str] = &[
    "max_packet_size",
    "keep_alive_max",
    "session_expiry_max",
    "topic_alias_max",
    "receive_max",
    "max_inflight",
];

/// What else bounds one client.
const CLIENT: &[&str] = &[
    "connect_timeout",
    "max_connect_size",
    "packet_timeout",
    "max_topic_levels",
    "max_topic_length",
    "max_subscriptions",
    "max_waiting",
    "max_publish_rate",
    "max_publish_bytes",
    "max_queued_messages",
    "max_stored_bytes",
    "max_queued_bytes",
    "max_output_bytes",
    "stall_timeout",
];

/// Sections that are lists: their members are compared as a whole.
const LISTS: [&str; 5] = ["listener", "user", "rewrite", "auto_subscribe", "downlink"];

/// What a node runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Whole {
    /// What both binaries have.
    pub broker: BrokerConfig,
    /// `[uplink]` and `[[downlink]]`.
    pub uplink: Option<UplinkConfig>,
}

/// For people: what is different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What a reload takes.
    pub taken: Vec<String>,
    /// What needs a restart.
    pub restart: Vec<String>,
}

/// What a reload makes of a setting. One that nobody decided on needs a restart.
#[must_use]
pub fn takes(path: &str) -> Takes {
    let parts: Vec<&str> = path.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
    let (key, section) = parts.split_last().map_or(("", String::new()), |(key, rest)| (*key, rest.join(".")));
    let named = |field: &&(&str, Takes, &[&str])| field.0 == section && field.2.contains(&key);
    FIELDS.iter().find(named).map_or(Takes::Restart, |field| field.1)
}

impl Changes {
    /// What is in force once `wanted` has been taken over from `running` as far as it can be, and what is different.
    #[must_use]
    pub fn between(running: &Whole, wanted: Whole) -> (Whole, Self) {
        let mut changes = Self::default();
        let Whole { broker: old, uplink: old_uplink } = running;
        let Whole { broker: new, uplink } = wanted;
        let mut settings: Vec<Setting> = Vec::new();
        for setting in new.settings.iter().filter(|setting| !is_listed(&setting.path)) {
            let before = old.settings.iter().find(|s| s.path == setting.path);
            let is_same = is_same(before, setting);
            let needs_restart = !is_same && takes(&setting.path) == Takes::Restart;
            // An uplink that comes or goes is told as a whole.
            let is_whole = is_of("uplink", &setting.path) && old_uplink.is_some() != uplink.is_some();
            if !is_same && !is_whole {
                changes.tell(&setting.path, setting, before);
            }
            settings.push(before.filter(|_| needs_restart).unwrap_or(setting).clone());
        }
        let (listeners, listener_numbers) = changes.listeners(old, &new, &mut settings);
        changes.users(&old.users, &new.users);
        for (list, is_same) in [
            ("rewrite", old.features.rewrites == new.features.rewrites),
            ("auto_subscribe", old.features.auto_subscribe == new.features.auto_subscribe),
        ] {
            if !is_same {
                changes.taken.push(format!("[[{list}]]"));
            }
        }
        // Its URL is not shown, and what is in its file of a password neither.
        if old.store != new.store && !changes.restart.iter().any(|told| told.starts_with("store.")) {
            changes.restart.push("[store] needs a restart; until then it is as it was".into());
        }
        if old.cluster != new.cluster && !changes.restart.iter().any(|told| told.starts_with("cluster.")) {
            changes.restart.push("[cluster] needs a restart; until then it is as it was".into());
        }
        changes.uplink(old_uplink.as_ref(), uplink.as_ref());
        settings.extend(
            new.settings.iter().filter(|s| is_listed(&s.path) && !is_of("listener", &s.path)).cloned(),
        );
        let mut node = new.node.clone();
        node.id.clone_from(&old.node.id);
        node.data_dir.clone_from(&old.node.data_dir);
        (node.workers, node.worker_delay) = (old.node.workers, old.node.worker_delay);
        let (store, cluster) = (old.store.clone(), old.cluster.clone());
        let broker = BrokerConfig { node, store, cluster, listeners, listener_numbers, settings, ..new };
        (Whole { broker, uplink }, changes)
    }

    /// A setting, under the name that people know it by.
    fn tell(&mut self, name: &str, setting: &Setting, before: Option<&Setting>) {
        let show =
            |setting: Option<&Setting>| setting.and_then(|s| s.value.clone()).unwrap_or("(not set)".into());
        let (now, before) = (show(Some(setting)), show(before));
        match takes(&setting.path) {
            Takes::Restart => {
                self.restart.push(format!("{name} = {now} needs a restart; until then it is {before}"))
            }
            _ => self.taken.push(format!("{name} = {now}, was {before}")),
        }
    }

    /// Those of the new configuration under their numbers, and how many of those have been given out by then.
    fn listeners(
        &mut self,
        old: &BrokerConfig,
        new: &BrokerConfig,
        settings: &mut Vec<Setting>,
    ) -> (Vec<ListenerConfig>, u16) {
        let mut left: Vec<usize> = (0..old.listeners.len()).collect();
        let mut numbers = old.listener_numbers;
        let mut listeners: Vec<ListenerConfig> = Vec::new();
        for (at, listener) in new.listeners.iter().enumerate() {
            let bind = &listener.bind;
            let number = match left.iter().position(|other| old.listeners[*other].bind == *bind) {
                Some(found) => {
                    let known = left.remove(found);
                    self.listener(&format!("listener {bind}"), (old, known), (new, at));
                    old.listeners[known].number
                }
                None if numbers == u16::MAX => {
                    let most = "this process has had as many listeners as it can tell apart";
                    self.restart.push(format!("listener {bind} is new and needs a restart: {most}"));
                    continue;
                }
                None => {
                    self.taken.push(format!("listener {bind} is new"));
                    numbers += 1;
                    numbers - 1
                }
            };
            let path = |key: &str| format!("listener.{}.{key}", listeners.len());
            settings.extend(
                of_listener(new, at).map(|(key, setting)| Setting { path: path(key), ..setting.clone() }),
            );
            listeners.push(ListenerConfig { number, ..listener.clone() });
        }
        for gone in left {
            self.taken.push(format!("listener {} is not there any more", old.listeners[gone].bind));
        }
        (listeners, numbers)
    }

    /// One that was there, and is.
    fn listener(
        &mut self,
        name: &str,
        (old, known): (&BrokerConfig, usize),
        (new, at): (&BrokerConfig, usize),
    ) {
        for (key, setting) in of_listener(new, at) {
            let before = of_listener(old, known).find(|(known, _)| *known == key).map(|(_, setting)| setting);
            if !is_same(before, setting) {
                self.tell(&format!("{name}: {key}"), setting, before);
            }
        }
        for (key, setting) in of_listener(old, known).filter(|(_, setting)| setting.source != Source::Default)
        {
            if !of_listener(new, at).any(|(known, _)| known == key) {
                let value = setting.value.as_deref().unwrap_or_default();
                self.taken.push(format!("{name}: {key} is not there any more, was {value}"));
            }
        }
    }

    fn users(&mut self, old: &[User], new: &[User]) {
        for user in new {
            match old.iter().find(|known| known.name == user.name) {
                None => self.taken.push(format!("user {:?} is new", user.name)),
                Some(known) if known != user => self.taken.push(format!("user {:?}", user.name)),
                Some(_) => {}
            }
        }
        let gone = old.iter().filter(|user| !new.iter().any(|known| known.name == user.name));
        self.taken.extend(gone.map(|user| format!("user {:?} is not there any more", user.name)));
    }

    fn uplink(&mut self, old: Option<&UplinkConfig>, new: Option<&UplinkConfig>) {
        match (old, new) {
            (None, Some(_)) => self.taken.push("[uplink] is new".into()),
            (Some(_), None) => self.taken.push("[uplink] is not there any more: its rows are kept".into()),
            (Some(old), Some(new)) if old != new => {
                if old.downlinks != new.downlinks {
                    self.taken.push("[[downlink]]".into());
                } else if !self.taken.iter().any(|told| told.starts_with("uplink.")) {
                    // What is in a file of passwords or keys, or what is not written any more.
                    self.taken.push("[uplink]".into());
                }
            }
            _ => {}
        }
    }
}

/// Whether a setting says what it said before. The defaults of a section that was not there are nothing new.
fn is_same(before: Option<&Setting>, setting: &Setting) -> bool {
    before.map_or(setting.source == Source::Default, |before| before.value == setting.value)
}

fn is_of(section: &str, path: &str) -> bool {
    path.split('.').next() == Some(section)
}

fn is_listed(path: &str) -> bool {
    LISTS.iter().any(|list| is_of(list, path))
}

/// The settings of a listener, by their keys in its section.
fn of_listener(config: &BrokerConfig, at: usize) -> impl Iterator<Item = (&str, &Setting)> {
    let section = format!("listener.{at}.");
    config.settings.iter().filter_map(move |setting| {
        let key = setting.path.strip_prefix(&section)?;
        Some((key, setting))
    })
}
