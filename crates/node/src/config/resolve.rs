//! From the raw tree to [`BrokerConfig`] and [`UplinkConfig`]: which keys there are, and how they limit each other.

use super::cluster::{SPREAD_RULES_AFTER, read_cluster};
use super::document::{Document, Overrides, Place};
use super::error::{ConfigError, ConfigErrors, ErrorPlace};
use super::features::read_features;
use super::limits::{holds_a_packet, read_mqtt};
use super::listener::{self, ListenerConfig};
use super::reader::{Hidden, Reader, Section, Size};
use super::uplink::{read_downlinks, read_uplink};
use super::{
    AccessLists, Anonymous, BrokerConfig, Credential, DATA_DIR_DEFAULT, NodeConfig, OutboxConfig,
    PostgresConfig, Product, StoreConfig, UplinkConfig, User, UserRole, units,
};
use crate::auth::{PasswordHash, Secret};
use crate::scram::Verifier;
use crate::telemetry;
use ferrule_broker::Strategy;
use ferrule_outbox::{Full, Order};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest configuration file read, in bytes: far more than one that people write.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The longest password file read, in bytes: MQTT's longest password is 64 KiB.
const PASSWORD_FILE_BYTES_MAX: u64 = 65_536 + 2;

type Resolved = (BrokerConfig, Option<UplinkConfig>);

/// `[shared_subscriptions]`.
fn read_share(mut s: Section<'_>, r: &mut Reader<'_>) -> Strategy {
    let words = [
        ("round_robin", Strategy::RoundRobin),
        ("random", Strategy::Random),
        ("sticky", Strategy::Sticky),
        ("local", Strategy::Local),
        ("hash_clientid", Strategy::HashClientId),
        ("hash_topic", Strategy::HashTopic),
    ];
    let strategy = s.word(r, "strategy", &words, Strategy::default());
    s.end(r, &[]);
    strategy
}

/// The text of a configuration file.
pub(super) fn read_file(file: &Path) -> Result<String, ConfigErrors> {
    read_text(file, FILE_BYTES_MAX).map_err(|problem| {
        let message = format!("cannot read {}: {problem}", file.display());
        let error = ConfigError { message, hint: None, place: ErrorPlace::Whole };
        ConfigErrors::new(Some(file.to_string_lossy().into_owned()), vec![error])
    })
}

/// What paths in a configuration file are relative to.
pub(super) fn base(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

fn read_text(file: &Path, bytes_max: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    let handle = std::fs::File::open(file).map_err(|e| e.to_string())?;
    handle.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("it is longer than {}", units::show_size(bytes_max)));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

/// The configuration of `product`, or every mistake.
pub(super) fn resolve(
    product: Product,
    name: Option<&str>,
    text: &str,
    base: &Path,
    overrides: &Overrides,
) -> Result<Resolved, ConfigErrors> {
    let name = name.map(str::to_owned);
    let errors_of = |errors| ConfigErrors::new(name.clone(), errors);
    let (document, errors) = Document::parse(text, overrides).map_err(errors_of)?;
    let mut reader = Reader { document: &document, base, errors, settings: Vec::new() };
    let resolved = read(product, None, &mut reader);
    if reader.errors.is_empty() { Ok(resolved) } else { Err(errors_of(reader.errors)) }
}

/// The configuration without a file.
pub(super) fn plain(
    product: Product,
    listen: SocketAddr,
    data_dir: PathBuf,
    overrides: &Overrides,
) -> Result<Resolved, ConfigErrors> {
    let errors_of = |errors| ConfigErrors::new(None, errors);
    let (document, errors) = Document::parse("", overrides).map_err(errors_of)?;
    let mut reader = Reader { document: &document, base: Path::new(""), errors, settings: Vec::new() };
    let resolved = read(product, Some((listen, data_dir)), &mut reader);
    if reader.errors.is_empty() { Ok(resolved) } else { Err(errors_of(reader.errors)) }
}

fn read(product: Product, plain: Option<(SocketAddr, PathBuf)>, r: &mut Reader<'_>) -> Resolved {
    let mut root = r.root();
    let (listen, data_dir) = plain.unzip();
    let head = match product {
        Product::Edge => "edge",
        Product::Cloud => "node",
    };
    let node = read_node(product, root.section(r, head), data_dir, r);
    let (mut warnings, mut notes) = (Vec::new(), Vec::new());
    let mut store = match product {
        Product::Edge => StoreConfig::Sqlite,
        Product::Cloud => read_store(root.section(r, "store"), node.id.as_deref(), &mut warnings, r),
    };
    let cluster = match product {
        Product::Edge => None,
        Product::Cloud => read_cluster(root.section(r, "cluster"), &store, r),
    };
    if let (StoreConfig::Postgres(store), Some(cluster)) = (&mut store, &cluster) {
        store.spread_rules_after = cluster.spread_rules_after;
    }
    // What a listener does not say itself is as `[mqtt]` says; settings are shown in the order of the file.
    let before = r.settings.len();
    let mqtt = read_mqtt(product, root.section(r, "mqtt"), r);
    let mqtt_settings = r.settings.split_off(before);
    let listeners = listener::read_all(&mut root, listen, &mqtt.clients, r);
    let by_certificate = listeners.iter().any(|l| l.username_from.is_some());
    let users = read_users(product, by_certificate, &mut root, r);
    check_listeners_users(&listeners, &users, r);
    let mut certificate = root.section(r, "certificate");
    let certificate_access = read_access(&mut certificate, r);
    if certificate.is_present() && !by_certificate {
        let help = "set `username_from = \"cn\"` on a [[listener]], or remove the section";
        r.fail(
            certificate.place(),
            "[certificate] is for nobody: no listener takes names from certificates",
            Some(help),
        );
    }
    certificate.end(r, &[]);
    let mut anonymous = root.section(r, "anonymous");
    let anonymous_access = read_access(&mut anonymous, r);
    if anonymous.is_present() && listeners.iter().all(|l| l.anonymous == Anonymous::Nobody) {
        let help = "set `anonymous = true` on a [[listener]], or remove the section";
        r.fail(
            anonymous.place(),
            "[anonymous] is for nobody: no listener lets clients in without a name",
            Some(help),
        );
    }
    anonymous.end(r, &[]);
    r.settings.extend(mqtt_settings);
    let share = read_share(root.section(r, "shared_subscriptions"), r);
    let features = read_features(&mut root, r);
    let packets = listeners.iter().map(|listener| listener.clients.packet_bytes);
    let largest = packets.max().unwrap_or(mqtt.clients.packet_bytes);
    let outbox = read_outbox(product, root.section(r, "outbox"), largest, r);
    let uplink = match product {
        Product::Edge => {
            let uplink = read_uplink(root.section(r, "uplink"), r, &mut warnings, &mut notes);
            read_downlinks(root.sections(r, "downlink"), uplink, r)
        }
        Product::Cloud => None,
    };
    if users.is_empty() && !by_certificate && listeners.iter().all(|l| l.anonymous == Anonymous::Nobody) {
        // No mistake of the file's: the default file is like this, and users may come from elsewhere later.
        warnings.push(
            "no client can connect: add a [[user]], or `anonymous = true` to a listener on 127.0.0.1"
                .to_owned(),
        );
    }
    let advice = match product {
        Product::Edge => ("node", "an edge's section is called [edge]"),
        Product::Cloud => ("edge", "a cloud node's section is called [node]"),
    };
    root.end(
        r,
        &[
            advice,
            ("uplink", "only ferrule-edge has an uplink"),
            ("downlink", "only ferrule-edge has an uplink, and what comes down it"),
            ("downlinks", "write [[downlink]] for each"),
            ("store", "an edge's store is a file in its data folder"),
            ("sink", "sinks are declared in the rules file: CREATE SINK"),
            ("cluster", "an edge is no node of a cluster: give its uplink the addresses of several nodes"),
            ("listeners", "write [[listener]] for each"),
            ("users", "write [[user]] for each"),
            ("rewrites", "write [[rewrite]] for each"),
            ("auto_subscriptions", "write [[auto_subscribe]] for each"),
        ],
    );
    let broker = BrokerConfig {
        node,
        store,
        cluster,
        // No file has so many.
        listener_numbers: u16::try_from(listeners.len()).unwrap_or(u16::MAX),
        listeners,
        users,
        anonymous: anonymous_access,
        certificate: certificate_access,
        mqtt,
        share,
        features: features.into(),
        outbox,
        warnings,
        notes,
        settings: std::mem::take(&mut r.settings),
    };
    (broker, uplink)
}

fn read_node(
    product: Product,
    mut s: Section<'_>,
    data_dir: Option<PathBuf>,
    r: &mut Reader<'_>,
) -> NodeConfig {
    let id: Option<String> = s.get(r, "id");
    if let Some(problem) = id.as_deref().and_then(bad_id) {
        s.fail(r, "id", problem, None);
    }
    let default = data_dir.unwrap_or_else(|| PathBuf::from(DATA_DIR_DEFAULT));
    let data_dir = s.or(r, "data_dir", default);
    let data_dir = r.resolve(data_dir, s.place_of("data_dir"));
    let rules: Option<PathBuf> = s.get(r, "rules");
    let rules = rules.map(|path| r.resolve(path, s.place_of("rules")));
    let workers = match product {
        // A gateway has better uses for its other cores.
        Product::Edge => 1,
        Product::Cloud => 0,
    };
    // Each knows the others' filters, and has a ring to each.
    let workers = s.number(r, "workers", workers, 0..=64) as u16;
    let worker_delay = s.or(r, "worker_delay", Duration::ZERO);
    let memory_max = s.or(r, "memory_max", Size(0)).0;
    // mosquitto's.
    let sys_interval = s.or(r, "sys_interval", Duration::from_secs(10));
    let log = s.or(r, "log", telemetry::LEVEL_DEFAULT.to_owned());
    if let Err(problem) = telemetry::check(&log) {
        let help = "a level like \"info\", or directives like \"info,ferrule_link=debug\"";
        s.fail(r, "log", format!("`log` = {log:?}: {problem}"), Some(help));
    }
    s.end(r, &[]);
    NodeConfig { id, data_dir, rules, workers, worker_delay, memory_max, sys_interval, log }
}

/// `[store]`.
fn read_store(
    mut s: Section<'_>,
    id: Option<&str>,
    warnings: &mut Vec<String>,
    r: &mut Reader<'_>,
) -> StoreConfig {
    let is_postgres = s.word(r, "backend", &[("sqlite", false), ("postgres", true)], false);
    let url: Option<Hidden> = s.get(r, "url");
    let file: Option<PathBuf> = s.get(r, "password_file");
    let schema = s.or(r, "schema", "ferrule".to_owned());
    let timeout = s.or(r, "timeout", Duration::from_secs(10));
    let place = s.place_of("password_file").clone();
    if is_postgres && url.is_none() && !s.has("url") {
        let help = "`url = \"postgres://user@host:5432/database\"`, and the password in a `password_file`";
        s.fail(r, "backend", "a store in PostgreSQL needs `url`", Some(help));
    }
    if is_postgres && id.is_none() {
        let help = "`id = \"cloud-1\"` in [node]: its own alone, and the same after each start";
        s.fail(
            r,
            "backend",
            "a store in PostgreSQL needs the node's `id`: its data is kept under that name",
            Some(help),
        );
    }
    if !is_postgres {
        let given: Vec<_> = ["url", "password_file"].into_iter().filter(|key| s.has(key)).collect();
        if !given.is_empty() {
            let given = given.join("`, `");
            warnings.push(format!("[store] `{given}` is not used: `backend` is \"sqlite\""));
        }
        s.end(r, &[]);
        return StoreConfig::Sqlite;
    }
    s.end(r, &[]);
    let password = file.and_then(|file| read_password_file(&file, &place, r)).map(Secret::new);
    let url = Secret::new(url.map_or_else(String::new, |url| url.0));
    StoreConfig::Postgres(PostgresConfig {
        url,
        password,
        schema,
        timeout,
        node: id.unwrap_or_default().to_owned(),
        spread_rules_after: SPREAD_RULES_AFTER,
    })
}

/// What is wrong with an edge's or a node's id. It becomes part of client ids, topics and keys.
fn bad_id(id: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.is_empty() || id.len() > 64 || !id.chars().all(allowed) {
        return Some(format!("an id has 1 to 64 letters, digits, `-`, `_` or `.`, found {id:?}"));
    }
    // Contract 3 (docs/contracts.md): the origin of rows that windows make.
    (id == "window").then(|| "the id \"window\" is taken: rows made by windows carry it".to_owned())
}

/// A listener's `users` are users.
fn check_listeners_users(listeners: &[ListenerConfig], users: &[User], r: &mut Reader<'_>) {
    for listener in listeners.iter().filter(|l| l.username_from.is_none()) {
        for name in listener.users.iter().flatten() {
            if !users.iter().any(|user| user.name == *name) {
                let message = format!(
                    "the listener on {} is for {name:?}, and there is no [[user]] of this name",
                    listener.bind
                );
                r.fail(&Place::Nowhere, message, None);
            }
        }
    }
}

/// `by_certificate`: some listener knows users by their certificates.
fn read_users(
    product: Product,
    by_certificate: bool,
    root: &mut Section<'_>,
    r: &mut Reader<'_>,
) -> Vec<User> {
    let mut users: Vec<User> = Vec::new();
    for mut s in root.sections(r, "user") {
        let name: Option<String> = s.get(r, "name");
        match &name {
            None if !s.has("name") => r.fail(s.place(), "a user needs `name`", None),
            Some(name) if name.is_empty() || name.len() > 65_535 || name.contains('\0') => {
                s.fail(r, "name", "a user's name has 1 to 65,535 bytes and no NUL", None);
            }
            Some(name) if users.iter().any(|u| u.name == *name) => {
                s.fail(r, "name", format!("two users are called {name:?}"), None);
            }
            _ => {}
        }
        let scram = s.get::<Hidden>(r, "scram").map(|text| read_scram(product, &text, &s, r));
        let credential = read_credential(product, by_certificate || scram.is_some(), &mut s, r);
        let access = read_access(&mut s, r);
        let role = s.word(r, "role", &[("device", false), ("edge", true)], false);
        let edge: Option<String> = s.get(r, "edge");
        let role = match (role, edge) {
            (true, _) if product == Product::Edge => {
                s.fail(r, "role", "role \"edge\" is for ferrule-cloud: an edge has no edges behind it", None);
                UserRole::Device
            }
            (true, edge) => {
                let id = edge.or_else(|| name.clone()).unwrap_or_default();
                if let Some(problem) = bad_id(&id).filter(|_| name.is_some()) {
                    let key = if s.has("edge") { "edge" } else { "name" };
                    let help = "`edge` says which edge the user speaks for; without it, the user's name does";
                    s.fail(r, key, problem, Some(help));
                }
                UserRole::Edge(id)
            }
            (false, Some(_)) => {
                s.fail(r, "edge", "`edge` needs `role = \"edge\"` beside it", None);
                UserRole::Device
            }
            (false, None) => UserRole::Device,
        };
        if let (Some(name), Some(credential)) = (name, credential) {
            users.push(User { name, credential, scram: scram.flatten(), access, role });
        }
        s.end(r, &[("username", "did you mean `name`?")]);
    }
    users
}

fn read_credential(
    product: Product,
    by_certificate: bool,
    s: &mut Section<'_>,
    r: &mut Reader<'_>,
) -> Option<Credential> {
    let command = match product {
        Product::Edge => "ferrule-edge passwd",
        Product::Cloud => "ferrule-cloud passwd",
    };
    let password: Option<Hidden> = s.get(r, "password");
    let file: Option<PathBuf> = s.get(r, "password_file");
    match (s.has("password"), s.has("password_file")) {
        (true, true) => {
            s.fail(
                r,
                "password_file",
                "`password` and `password_file` are both given",
                Some("keep one of them"),
            );
            return None;
        }
        (false, false) if by_certificate => return Some(Credential::None),
        (false, false) => {
            let help = format!("`{command}` makes a hash for `password`; or `password_file` names a file");
            r.fail(s.place(), "a user needs `password`, `password_file` or `scram`", Some(&help));
            return None;
        }
        _ => {}
    }
    if let Some(Hidden(text)) = password {
        if !text.starts_with('$') {
            let help =
                format!("`{command}` makes a hash to put here; or put the password into a `password_file`");
            s.fail(r, "password", "`password` takes a hash, not the password itself", Some(&help));
            return None;
        }
        return hash(&text, s.place_of("password"), r);
    }
    let place = s.place_of("password_file").clone();
    let line = read_password_file(&file?, &place, r)?;
    if line.starts_with("$argon2") {
        hash(&line, &place, r)
    } else {
        Some(Credential::Plain(Secret::new(line)))
    }
}

fn read_scram(product: Product, text: &Hidden, s: &Section<'_>, r: &mut Reader<'_>) -> Option<Verifier> {
    let help = match product {
        Product::Edge => "`ferrule-edge passwd --scram` makes one",
        Product::Cloud => "`ferrule-cloud passwd --scram` makes one",
    };
    let problem = match Verifier::parse(&text.0) {
        Ok(verifier) => return Some(verifier),
        Err(problem) => format!("the SCRAM verifier cannot be used: {problem}"),
    };
    s.fail(r, "scram", problem, Some(help));
    None
}

fn hash(text: &str, place: &Place, r: &mut Reader<'_>) -> Option<Credential> {
    match PasswordHash::parse(text) {
        Ok(hash) => Some(Credential::Hash(hash)),
        Err(problem) => {
            r.fail(place, format!("the password hash cannot be used: {problem}"), None);
            None
        }
    }
}

/// The one line of a password file.
pub(super) fn read_password_file(file: &Path, place: &Place, r: &mut Reader<'_>) -> Option<String> {
    let path = r.resolve(file.to_owned(), place);
    let text = match read_text(&path, PASSWORD_FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(problem) => {
            r.fail(place, format!("cannot read {}: {problem}", path.display()), None);
            return None;
        }
    };
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains('\n') {
        let found = if line.is_empty() { "nothing" } else { "several" };
        r.fail(place, format!("{} must hold one line, found {found}", path.display()), None);
        return None;
    }
    Some(line.to_owned())
}

fn read_access(s: &mut Section<'_>, r: &mut Reader<'_>) -> AccessLists {
    let mut filters = |s: &mut Section<'_>, key| {
        let list: Option<Vec<String>> = s.get(r, key);
        for filter in list.iter().flatten() {
            if let Err(problem) = crate::access::check_filter(filter) {
                let message = format!("`{key}`: {filter:?} {problem}");
                s.fail(r, key, message, None);
            }
        }
        list
    };
    let (publish, subscribe) = (filters(s, "publish"), filters(s, "subscribe"));
    AccessLists { publish, subscribe, deny: filters(s, "deny").unwrap_or_default() }
}

/// A whole number of any width.
pub(super) fn int<T>(
    s: &mut Section<'_>,
    r: &mut Reader<'_>,
    key: &'static str,
    default: T,
    range: std::ops::RangeInclusive<u64>,
) -> T
where
    T: Copy + Into<u64> + TryFrom<u64>,
{
    s.number(r, key, default.into(), range).try_into().unwrap_or(default)
}

/// A time that MQTT carries in whole seconds.
pub(super) fn seconds(
    s: &mut Section<'_>,
    r: &mut Reader<'_>,
    key: &'static str,
    default: Duration,
    range: std::ops::RangeInclusive<u64>,
) -> Duration {
    let value = s.or(r, key, default);
    if range.contains(&value.as_secs()) && value.subsec_nanos() == 0 {
        return value;
    }
    let shown = units::show_duration(value);
    let message =
        format!("`{key}` is {shown}: it must be whole seconds from {} to {}", range.start(), range.end());
    s.fail(r, key, message, None);
    default
}

/// Messages a second that can be asked for at most: what no destination takes.
const RATE_MAX: u64 = 10_000_000;

fn report_topic(s: &mut Section<'_>, r: &mut Reader<'_>, default: String) -> Option<String> {
    let topic = s.or(r, "report_topic", default);
    if topic.is_empty() {
        return None;
    }
    let plain = topic.replace("${edge}", "e");
    if ferrule_mqtt::topic::validate_name(&plain).is_err() || plain.starts_with('$') {
        let message = format!("`report_topic` = {topic:?} is no topic that can be published to");
        s.fail(r, "report_topic", message, Some("\"\" tells nobody"));
    }
    Some(topic)
}

fn dead_letter(s: &mut Section<'_>, r: &mut Reader<'_>) -> Option<String> {
    let under = Some(s.or(r, "dead_letter", String::new())).filter(|topic| !topic.is_empty())?;
    if ferrule_mqtt::topic::validate_name(&under).is_err() || under.starts_with('$') || under.ends_with('/') {
        let message = format!("`dead_letter` = {under:?} is not the beginning of a topic");
        s.fail(r, "dead_letter", message, Some("\"dead\" puts them under dead/OUTBOX/TOPIC; \"\" nowhere"));
    }
    Some(under)
}

fn on_full(s: &mut Section<'_>, r: &mut Reader<'_>) -> Full {
    match s.or(r, "on_full", "withhold".to_owned()).as_str() {
        "withhold" => Full::Withhold,
        "drop_oldest" => Full::DropOldest,
        "drop_newest" => Full::DropNewest,
        other => {
            let message =
                format!("expected on_full \"withhold\", \"drop_oldest\" or \"drop_newest\", found {other:?}");
            let help = "to most client libraries a negative acknowledgement means that the message is dropped: withhold keeps it";
            s.fail(r, "on_full", message, (other == "nack").then_some(help));
            Full::Withhold
        }
    }
}

fn order(s: &mut Section<'_>, r: &mut Reader<'_>) -> Order {
    match s.or(r, "order", "in_order".to_owned()).as_str() {
        "in_order" => Order::InOrder,
        "live_first" => Order::LiveFirst,
        other => {
            let message = format!("expected order \"in_order\" or \"live_first\", found {other:?}");
            s.fail(r, "order", message, None);
            Order::InOrder
        }
    }
}

fn read_outbox(
    product: Product,
    mut s: Section<'_>,
    packet_bytes: usize,
    r: &mut Reader<'_>,
) -> OutboxConfig {
    let d = match product {
        Product::Edge => OutboxConfig::edge(),
        Product::Cloud => OutboxConfig::cloud(),
    };
    let outbox = OutboxConfig {
        max_bytes: s.or(r, "max_bytes", Size(d.max_bytes)).0,
        mem_max: s.or(r, "mem_max", Size(d.mem_max)).0,
        offline_interval: s.or(r, "offline_interval", d.offline_interval),
        ack_deadline: s.or(r, "ack_deadline", d.ack_deadline),
        // 0 in the file: no limit.
        max_messages: Some(s.or(r, "max_messages", d.max_messages.unwrap_or(0))).filter(|n| *n > 0),
        max_age: Some(s.or(r, "max_age", d.max_age.unwrap_or_default())).filter(|age| !age.is_zero()),
        max_rate: u32::try_from(s.number(r, "max_rate", d.max_rate.unwrap_or(0).into(), 0..=RATE_MAX))
            .ok()
            .filter(|rate| *rate > 0),
        report_topic: d.report_topic.and_then(|default| report_topic(&mut s, r, default)),
        dead_letter: dead_letter(&mut s, r),
        on_full: on_full(&mut s, r),
        order: order(&mut s, r),
    };
    holds_a_packet(&s, r, "max_bytes", outbox.max_bytes, packet_bytes);
    if outbox.mem_max > outbox.max_bytes {
        let (mem, max) = (units::show_size(outbox.mem_max), units::show_size(outbox.max_bytes));
        let message = format!("`mem_max` = {mem} is more than `max_bytes` = {max}, which counts it in");
        s.fail(r, "mem_max", message, None);
    }
    if outbox.offline_interval > outbox.ack_deadline {
        let (interval, deadline) =
            (units::show_duration(outbox.offline_interval), units::show_duration(outbox.ack_deadline));
        let message = format!(
            "`offline_interval` = {interval} is more than `ack_deadline` = {deadline}: an acknowledgement waits for the next commit"
        );
        let key = if s.has("offline_interval") { "offline_interval" } else { "ack_deadline" };
        s.fail(r, key, message, None);
    }
    s.end(r, &[]);
    outbox
}
