//! The answer to `{"do":"status"}`: what every reader of the control socket agrees on.
//!
//! Field names are the wire's. A reader takes what is missing as zero and passes over what it does not know, so that a
//! newer `status` can look at an older process and the other way round.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A snapshot of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `"edge"` or `"cloud"`.
    pub role: String,
    /// Of the program.
    pub version: String,
    /// The edge's or the node's id.
    pub id: String,
    /// Of the process.
    pub pid: u32,
    /// Since the start, in milliseconds.
    pub uptime_ms: u64,
    /// Where state is kept.
    pub data_dir: String,
    /// One for each `[[listener]]`.
    pub listeners: Vec<ListenerStatus>,
    /// Open connections, of all listeners.
    pub connections: u64,
    /// Sessions, connected or not.
    pub sessions: u64,
    /// Subscriptions and the filters of rules.
    pub subscriptions: u64,
    /// Retained messages.
    pub retained: u64,
    /// Publishes whose acknowledgement waits.
    pub waiting: u64,
    /// The uplink, if one is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkStatus>,
    /// One for each destination.
    pub outboxes: Vec<OutboxStatus>,
    /// One for each rule.
    pub rules: Vec<RuleStatus>,
    /// Why the rules on disk are not those in force, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules_error: Option<String>,
    /// What came of reloads.
    pub reload: ReloadStatus,
    /// The store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
    /// What the node knows of its cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
    /// Its clients are moved off, or were a moment ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// Counters of the broker, by name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub counters: Map<String, Value>,
}

impl Status {
    /// Adds what another worker of the same node says of itself.
    pub(crate) fn add(&mut self, worker: Self) {
        self.uptime_ms = self.uptime_ms.max(worker.uptime_ms);
        self.connections += worker.connections;
        self.sessions += worker.sessions;
        self.subscriptions += worker.subscriptions;
        // Each has all of them.
        self.retained = self.retained.max(worker.retained);
        self.waiting += worker.waiting;
        self.outboxes.extend(worker.outboxes);
        self.outboxes.sort_by(|a, b| a.name.cmp(&b.name));
        for rule in worker.rules {
            match self.rules.iter_mut().find(|known| known.name == rule.name) {
                Some(known) => known.add(rule),
                None => self.rules.push(rule),
            }
        }
        for (name, count) in worker.counters {
            let longest = name.ends_with("_max");
            let known = self.counters.get(&name).and_then(Value::as_u64).unwrap_or_default();
            let count = count.as_u64().unwrap_or_default();
            let count = if longest { known.max(count) } else { known + count };
            self.counters.insert(name, count.into());
        }
    }
}

/// Clients that are moved off to other nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainStatus {
    /// Nobody is let in; else the drain was undone, and only `wills` are left of it.
    pub draining: bool,
    /// How many are moved off in a second.
    pub rate: u64,
    /// Clients that are still here.
    pub clients: u64,
    /// Clients that were moved off since the drain began.
    pub moved: u64,
    /// Wills of those among them that have not come to any node yet; each is published half a minute after its client was moved off, if that stays so.
    pub wills: u64,
}

/// What came of reloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadStatus {
    /// Since the start: those that took the configuration on disk over.
    pub reloads: u64,
    /// Those that changed nothing, because of a mistake.
    pub failed: u64,
    /// The last one's mistakes, if it had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the configuration of the last that succeeded asks for, and is not so before a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
}

/// A listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerStatus {
    /// The address it is bound to: with the real port where 0 was configured.
    pub bind: String,
    /// `"mqtt"`, `"mqtts"`, `"ws"` or `"wss"`.
    pub protocol: String,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections refused over `max_connections`.
    pub refused_full: u64,
    /// Connections refused over `max_connections_per_address`.
    pub refused_address: u64,
    /// Connections refused that `proxy_protocol_from` does not name.
    pub refused_untrusted: u64,
    /// Times that accepting waited for `max_connect_rate`.
    pub delayed: u64,
    /// Connections ended under MQTT: PROXY, TLS, HTTP, WebSocket.
    pub faults: u64,
    /// What it proves itself with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// Why the certificates on disk are not those in force, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A certificate in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateStatus {
    /// Where it is from.
    pub file: String,
    /// Its subject.
    pub subject: String,
    /// The names it is for.
    pub names: Vec<String>,
    /// Days until it ends; negative: since.
    pub days_left: i64,
}

/// The uplink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UplinkStatus {
    /// The one in use or tried last.
    pub url: String,
    /// `"up"`, `"connecting"`, `"waiting"`, ...: the link's names.
    pub state: String,
    /// In this state since, in milliseconds.
    pub since_ms: u64,
    /// Connections made since the start.
    pub connects: u64,
    /// Connections that failed or ended since the start.
    pub failures: u64,
    /// Messages that came down.
    pub received: u64,
    /// Those that no `[[downlink]]` asks for (any more), or that have no topic here.
    pub received_unmatched: u64,
    /// Messages sent.
    pub sent: u64,
    /// Batches sent; their messages are among those.
    pub batches: u64,
    /// Publishes acknowledged.
    pub acknowledged: u64,
    /// Publishes sent and not acknowledged.
    pub in_flight: u64,
    /// Messages that it has still to bring, those in flight included.
    pub backlog: u64,
    /// Their bytes, in memory and on disk.
    pub backlog_bytes: u64,
    /// How long ago the oldest of them was received, in milliseconds; 0 when there is none.
    pub lag_ms: u64,
    /// Smoothed time from sending to acknowledgement, in microseconds.
    pub answer_us: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Why the last connection ended or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What it shows, from the next connection on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// Why the certificates on disk are not those in force, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_error: Option<String>,
}

/// An outbox; counts in rows of this process life. On a quiet snapshot
/// `entered + recovered = delivered + failed + in_flight + queued + discarded`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutboxStatus {
    /// The destination: a sink's name, or `cloud`.
    pub name: String,
    /// `"up"`, `"down"`, or a word of the sink's.
    pub state: String,
    /// Put in since the start.
    pub entered: u64,
    /// Found on disk at the start.
    pub recovered: u64,
    /// Acknowledged by the destination.
    pub delivered: u64,
    /// Given up without a reason of the rule's or the sink's: a bug when not zero.
    pub failed: u64,
    /// Sent, not yet acknowledged.
    pub in_flight: u64,
    /// Waiting.
    pub queued: u64,
    /// Refused for good, by the destination or by limits.
    pub discarded: u64,
    /// The same by reason.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub discarded_by: Map<String, Value>,
    /// What its sink counts of its own (docs/sinks.md).
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub counted: Map<String, Value>,
    /// Of the waiting, on disk.
    pub stored: u64,
    /// Ever written to disk.
    pub written: u64,
    /// Sent again.
    pub again: u64,
    /// Sent before others that had come earlier (`order = "live_first"`).
    #[serde(default)]
    pub ahead: u64,
    /// Not taken, since memory was full of rows that could not be written: their publishers keep the messages.
    pub refused: u64,
    /// Rows that may be unanswered at a time.
    pub window: u64,
    /// Smoothed time from sending to answer, in microseconds.
    pub answer_us: u64,
    /// Bytes waiting, in memory and on disk.
    pub bytes: u64,
    /// Age of the oldest waiting row, in milliseconds.
    pub oldest_ms: u64,
    /// The last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// A rule; counts of this process life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleStatus {
    /// Its name.
    pub name: String,
    /// The file it is from.
    pub file: String,
    /// `"running"`, `"disabled"`, or `"suspended"`: it went wrong again and again.
    pub state: String,
    /// Messages of its topics.
    pub matched: u64,
    /// Messages that became rows.
    pub passed: u64,
    /// Messages that WHERE rejected.
    pub filtered: u64,
    /// Messages that it failed on.
    pub failed: u64,
    /// The same by reason.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub failed_by: Map<String, Value>,
    /// Rows out.
    pub rows_out: u64,
    /// Bytes of what it remembers.
    pub state_bytes: u64,
    /// The last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl RuleStatus {
    /// The same rule on another worker.
    fn add(&mut self, other: Self) {
        self.matched += other.matched;
        self.passed += other.passed;
        self.filtered += other.filtered;
        self.failed += other.failed;
        for (reason, count) in other.failed_by {
            let known = self.failed_by.get(&reason).and_then(Value::as_u64).unwrap_or_default();
            self.failed_by.insert(reason, (known + count.as_u64().unwrap_or_default()).into());
        }
        self.rows_out += other.rows_out;
        self.state_bytes += other.state_bytes;
        if other.state == "suspended" {
            self.state = other.state;
        }
        self.last_error = other.last_error.or(self.last_error.take());
    }
}

/// A node of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// Its cluster's name.
    pub name: String,
    /// The node's number there.
    pub node: u64,
    /// Which of its lives this is: the number of the view that it joined with.
    pub incarnation: u64,
    /// The number of the view of the members that it has.
    pub view: u64,
    /// It is a live member: its subscribers are told that they have subscribed.
    pub live: bool,
    /// Publishes of QoS 1 and 2 are acknowledged; else they wait.
    pub acknowledges: bool,
    /// How often it joined since the start: 1, and once more each time that it had been removed.
    pub joins: u64,
    /// Links that came up, and that ended.
    pub links_up: u64,
    /// See `links_up`.
    pub links_down: u64,
    /// Why the certificates on disk that links show are not those in force, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_error: Option<String>,
    /// Why the members cannot be read from the store, when they cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// All members, this one among them.
    pub members: Vec<MemberStatus>,
}

/// A member of a cluster, as another one sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberStatus {
    /// Its `id`.
    pub name: String,
    /// Its number.
    pub node: u64,
    /// Which of its lives.
    pub incarnation: u64,
    /// `"joining"` or `"live"`.
    pub state: String,
    /// Where others connect to it.
    pub addresses: Vec<String>,
    /// There is a link.
    pub linked: bool,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStatus {
    /// `"ok"`, or what is wrong.
    pub state: String,
    /// `"sqlite"` or `"postgres"`; sizes and free space are SQLite's alone.
    pub backend: String,
    /// The file, or the server.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Commits since the start.
    pub commits: u64,
    /// Time of the last commit, in microseconds.
    pub commit_us: u64,
    /// Bytes of its write-ahead log.
    pub wal_bytes: u64,
    /// Free on its file system, in bytes.
    pub free_bytes: u64,
    /// Less than the reserve is free.
    pub low_on_space: bool,
    /// What had to be salvaged, at the start or since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// The last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
