//! Configuration: one TOML file, environment variables and options over it, a value that exists is valid.
//!
//! # Design
//!
//! ```text
//! file ----------------> document (raw tree, each value knows its place) --reader--> EdgeConfig | CloudConfig
//! FERRULE__A__B, options ----^                                               |
//!                                                                            +--> every mistake at once
//! ```
//! - Raw and resolved are two types: nothing outside this module sees an unchecked value.
//! - An unknown key is refused, wherever it was written: a setting that is ignored is a lie.
//! - Defaults fail closed, and each has its reason where it is declared ([`LIMITS`], [`OutboxConfig`], ...). The
//!   files `edge.default.toml` and `cloud.default.toml` beside this one show them all; a test compares.
//! - What reads the environment is `main`; this module is handed [`Overrides`]. It reads the configuration file and the
//!   password files that it names; the uplink's certificates, only to warn of those that cannot be used; nothing else.

pub mod changes;
mod cluster;
mod document;
mod error;
mod features;
mod limits;
mod listener;
mod reader;
mod resolve;
mod units;
mod uplink;

#[cfg(test)]
mod tests;

pub use cluster::{ClusterConfig, ClusterTls};
pub use document::Overrides;
pub use error::{ConfigError, ConfigErrors, ErrorPlace};
pub use limits::{LIMITS, Limit, MqttLimits, Scope};
pub use listener::{Bind, ListenerConfig};
pub use units::{parse_duration, parse_size, show_duration, show_size};

use crate::auth::{PasswordHash, Secret};
use crate::scram::Verifier;
use ferrule_broker::{Features, Strategy};
use ferrule_link::{Downlink, IdentityMode, Metered, Preset, Proxy, Server, TlsConfig};
use ferrule_mqtt::Version;
use ferrule_outbox::{Full, Order};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The full default file of `ferrule-edge`, with comments.
pub const EDGE_DEFAULT_FILE: &str = include_str!("edge.default.toml");

/// The full default file of `ferrule-cloud`, with comments.
pub const CLOUD_DEFAULT_FILE: &str = include_str!("cloud.default.toml");

/// Where state is kept when a configuration file does not say.
pub const DATA_DIR_DEFAULT: &str = "/var/lib/ferrule";

/// What `ferrule-edge` runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeConfig {
    /// What both binaries have.
    pub broker: BrokerConfig,
    /// `[uplink]`; `None`: nothing is forwarded.
    pub uplink: Option<UplinkConfig>,
}

/// What `ferrule-cloud` runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct CloudConfig {
    /// What both binaries have.
    pub broker: BrokerConfig,
}

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum StoreConfig {
    /// In a file of the data folder.
    #[default]
    Sqlite,
    /// In PostgreSQL.
    Postgres(PostgresConfig),
}

/// `[store]` with `backend = "postgres"`. What is in it is read by who opens it.
#[derive(Debug, Clone, PartialEq)]
pub struct PostgresConfig {
    /// The server and the database.
    pub url: Secret,
    /// From `password_file`.
    pub password: Option<Secret>,
    /// The schema that holds the tables.
    pub schema: String,
    /// How long the server may take for a statement.
    pub timeout: Duration,
    /// The node's name there: its `id`.
    pub node: String,
    /// `spread_rules_after` of `[cluster]`.
    pub spread_rules_after: Duration,
}

/// What both binaries have.
#[derive(Debug, Clone, PartialEq)]
pub struct BrokerConfig {
    /// `[edge]` or `[node]`.
    pub node: NodeConfig,
    /// `[store]`; an edge's is SQLite.
    pub store: StoreConfig,
    /// `[cluster]`; an edge is in none.
    pub cluster: Option<ClusterConfig>,
    /// `[[listener]]`, at least one.
    pub listeners: Vec<ListenerConfig>,
    /// How many numbers of listeners this process has given out: the next one's.
    pub listener_numbers: u16,
    /// `[[user]]`, names unique.
    pub users: Vec<User>,
    /// `[anonymous]`: what clients without a name may do, where a listener lets them in.
    pub anonymous: AccessLists,
    /// `[certificate]`: what clients may do that a listener knows by their certificate and that are no `[[user]]`.
    pub certificate: AccessLists,
    /// `[mqtt]`.
    pub mqtt: MqttLimits,
    /// `[shared_subscriptions]`: how a member is chosen.
    pub share: Strategy,
    /// `[protocol]`, `[[rewrite]]` and `[[auto_subscribe]]`.
    pub features: Arc<Features>,
    /// `[outbox]`.
    pub outbox: OutboxConfig,
    /// What works, but probably not as meant; to be logged.
    pub warnings: Vec<String>,
    /// What was decided without being written, for people.
    pub notes: Vec<String>,
    /// Every setting that was looked for, in order of the file's documentation.
    pub settings: Vec<Setting>,
}

/// `[edge]` or `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Letters, digits, `-`, `_`, `.`, at most 64. `None`: the caller draws one and keeps it in the data folder.
    pub id: Option<String>,
    /// Where all state is kept.
    pub data_dir: PathBuf,
    /// A file of rules or a folder of them.
    pub rules: Option<PathBuf>,
    /// Threads that serve clients, each with its share of them; 0: one a core.
    pub workers: u16,
    /// For tests: what passes between workers takes a random time up to this.
    pub worker_delay: Duration,
    /// Bytes of memory beyond which nobody new is let in. Zero: three quarters of the machine's.
    pub memory_max: u64,
    /// How often `$SYS` topics are published; zero: there are none.
    pub sys_interval: Duration,
    /// What is logged: a level, or `tracing`'s directives.
    pub log: String,
}

/// Who may come without a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anonymous {
    /// Nobody: the default.
    #[default]
    Nobody,
    /// Peers on this machine.
    Loopback,
    /// Anyone who reaches the port: written out as `anonymous_anywhere = true`.
    Anyone,
}

/// One `[[user]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// The name in CONNECT.
    pub name: String,
    /// What the password is compared with.
    pub credential: Credential,
    /// What its password is proved by in steps (SCRAM-SHA-256), if it may be.
    pub scram: Option<Verifier>,
    /// What it may do.
    pub access: AccessLists,
    /// Whether it speaks for devices behind it.
    pub role: UserRole,
}

/// What a password is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Credential {
    /// Argon2's hash of it.
    Hash(PasswordHash),
    /// The password itself, from a `password_file`.
    Plain(Secret),
    /// Nothing: it shows a certificate, on a listener that takes names from them, or proves its password in steps.
    None,
}

/// Whether a user speaks for devices behind it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum UserRole {
    /// No: properties that name a device are passed on and never believed.
    #[default]
    Device,
    /// Yes, as a gateway with this edge id.
    Edge(String),
}

/// Topic filters. `${clientid}` and `${username}` in them are filled in for each client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessLists {
    /// What may be published; `None`: everything but $-topics.
    pub publish: Option<Vec<String>>,
    /// What may be subscribed to; `None`: everything but $-topics.
    pub subscribe: Option<Vec<String>>,
    /// What may be neither, whatever the two above say.
    pub deny: Vec<String>,
}

/// `[uplink]`: the broker that an edge forwards to.
#[derive(Debug, Clone, PartialEq)]
pub struct UplinkConfig {
    /// Where it is; when one cannot be reached, the next. At least one.
    pub servers: Vec<Server>,
    /// Whose broker it is, when it is one that demands more than MQTT: the defaults are then its own.
    pub preset: Option<Preset>,
    /// The client id in CONNECT.
    ///
    /// Default `ferrule-<edge id>`, with a preset the edge id.
    pub client_id: Option<String>,
    /// The device's key at an IoT hub, in base64, from `shared_key_file`.
    pub shared_key: Option<Secret>,
    /// The name in CONNECT.
    pub username: Option<String>,
    /// The password in CONNECT, from `password_file`.
    pub password: Option<Secret>,
    /// `tls`: certificates, for URLs over TLS.
    ///
    /// Default: the system's authorities are trusted, and no certificate is shown.
    pub tls: TlsConfig,
    /// `proxy`, with `proxy_username` and `proxy_password_file`.
    pub proxy: Option<Proxy>,
    /// The network interface that its connections leave by.
    ///
    /// Default none: the routes decide. With two ways out only one of which is to be paid for, they are not always what decides.
    pub interface: Option<String>,
    /// Keep Alive, and how long a dead link goes unnoticed.
    ///
    /// Default 15 s: mobile networks forget an idle connection after 30 s and more; one ping is 4 bytes.
    pub keep_alive: Duration,
    /// How long each step to a connection may take (look-up, TCP, proxy, TLS, WebSocket, CONNACK) before the next URL is
    /// tried.
    ///
    /// Default 10 s: a lost SYN is sent again after 1, 3 and 7 s.
    pub connect_timeout: Duration,
    /// Publishes not yet acknowledged, at most; the broker's Receive Maximum may lower it.
    ///
    /// Default 1,024: fills a link of 200 ms at 5,000 messages a second.
    pub max_inflight: u16,
    /// 5 or 3.1.1.
    ///
    /// Default 5: identity needs user properties.
    pub version: Version,
    /// Whether messages carry their device's identity as user properties.
    pub identity: IdentityMode,
    /// Whether a Ferrule cloud is sent many messages in one PUBLISH, compressed.
    ///
    /// Default true: a tenth of the bytes, from some 100 messages a second on.
    pub batch: bool,
    /// How long a message may wait for others to be sent with it.
    ///
    /// Default 20 ms: 1,000 messages a second leave as 50 packets. It adds to the acknowledgement of a device that sends one message
    /// at a time.
    pub batch_delay: Duration,
    /// For a link that is paid for by volume: rows wait until so many bytes of them are there, or so long, and leave together.
    ///
    /// Default none; `metered = {}` is 16 KiB, at which a batch is a tenth of its messages, and 60 s.
    pub metered: Option<Metered>,
    /// `[[downlink]]`: what the broker is asked for, and what it is called here.
    pub downlinks: Vec<Downlink>,
    /// How long the broker keeps that while the edge is away.
    ///
    /// Default 7 days: a gateway is seldom away for longer, and a command is seldom meant then.
    pub session_expiry: Duration,
}

/// `[outbox]`: what waits for a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxConfig {
    /// Bytes on disk of each outbox; then `on_full`.
    ///
    /// Default 1 GiB at an edge: nine days of 240-byte rows at 5 a second, and an eighth of a small SD card. 64 GiB in
    /// the cloud: a day and more of 3,000 such rows a second.
    pub max_bytes: u64,
    /// Bytes in memory of each outbox that have neither been acknowledged nor written; then they are written.
    ///
    /// Default 4 MiB at an edge: 17,000 rows of 240 bytes, what a power cut may take of those that nobody waits for.
    /// 16 MiB in the cloud, where as many rows are a shorter time.
    pub mem_max: u64,
    /// The time between commits while a destination is down.
    ///
    /// Default 400 ms at an edge, for the flash's sake: 20 messages a second are 5 GB of flash a day in commits of 16
    /// rows and 20 GB in commits of one. 0 in the cloud, whose disks bear it.
    pub offline_interval: Duration,
    /// How long a publisher may wait for its acknowledgement, at most, before its message is on disk.
    ///
    /// Default 800 ms: many device libraries send again after 1 s.
    pub ack_deadline: Duration,
    /// Messages on disk of each outbox; then `on_full`. None, the default: as many as `max_bytes` holds.
    pub max_messages: Option<u64>,
    /// How long a message may wait; then it is given up. None, the default: for ever.
    pub max_age: Option<Duration>,
    /// Messages a second that leave each outbox. None, the default: as fast as the destination takes them.
    pub max_rate: Option<u32>,
    /// Where the uplink's broker is told what limits gave up; `${edge}` is this edge's id. None: it is not told.
    ///
    /// Default `ferrule/${edge}/given_up`; a cloud has no uplink.
    pub report_topic: Option<String>,
    /// Under which topic rows are published here that their destination refuses. None, the default: they are not.
    pub dead_letter: Option<String>,
    /// What happens at `max_bytes` and `max_messages`.
    ///
    /// Default: withhold.
    pub on_full: Full,
    /// Which messages leave first.
    ///
    /// Default: in order, as they came.
    pub order: Order,
}

/// A setting and where its value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As in `mqtt.receive_max` or `listener.0.bind`.
    pub path: String,
    /// As one would write it in the file; secrets are not shown. `None`: not set and without a default.
    pub value: Option<String>,
    /// Who set it.
    pub source: Source,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: the default.
    Default,
    /// The file, at this line.
    File {
        /// From 1.
        line: usize,
    },
    /// This environment variable.
    Env(String),
    /// This command line option.
    Option(&'static str),
}

/// Which binary's file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Product {
    Edge,
    Cloud,
}

// === impl EdgeConfig ===

impl EdgeConfig {
    /// Reads `file` and lays `overrides` over it.
    ///
    /// # Errors
    /// Every mistake in all of them; also when the file cannot be read.
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self, ConfigErrors> {
        let text = resolve::read_file(file)?;
        Self::parse(&file.to_string_lossy(), &text, resolve::base(file), overrides)
    }

    /// The same from a text; `name` is what errors call it, `base` what paths in it are relative to.
    ///
    /// # Errors
    /// As [`EdgeConfig::load`].
    pub fn parse(name: &str, text: &str, base: &Path, overrides: &Overrides) -> Result<Self, ConfigErrors> {
        let (broker, uplink) = resolve::resolve(Product::Edge, Some(name), text, base, overrides)?;
        Ok(Self { broker, uplink })
    }

    /// Without a file: a plain local broker on `listen`, for clients without a name on this machine alone, whatever
    /// `listen` is bound to.
    #[must_use]
    pub fn plain(listen: SocketAddr, data_dir: impl Into<PathBuf>) -> Self {
        let broker = resolve::plain(Product::Edge, listen, data_dir.into(), &Overrides::default());
        let (broker, uplink) = broker.expect("no input, so no mistake");
        Self { broker, uplink }
    }

    /// [`EdgeConfig::plain`] with `overrides` over it.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn plain_with(
        listen: SocketAddr,
        data_dir: &Path,
        overrides: &Overrides,
    ) -> Result<Self, ConfigErrors> {
        let (broker, uplink) = resolve::plain(Product::Edge, listen, data_dir.to_owned(), overrides)?;
        Ok(Self { broker, uplink })
    }
}

// === impl CloudConfig ===

impl CloudConfig {
    /// Reads `file` and lays `overrides` over it.
    ///
    /// # Errors
    /// Every mistake in all of them; also when the file cannot be read.
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self, ConfigErrors> {
        let text = resolve::read_file(file)?;
        Self::parse(&file.to_string_lossy(), &text, resolve::base(file), overrides)
    }

    /// The same from a text; `name` is what errors call it, `base` what paths in it are relative to.
    ///
    /// # Errors
    /// As [`CloudConfig::load`].
    pub fn parse(name: &str, text: &str, base: &Path, overrides: &Overrides) -> Result<Self, ConfigErrors> {
        let (broker, _) = resolve::resolve(Product::Cloud, Some(name), text, base, overrides)?;
        Ok(Self { broker })
    }

    /// As [`EdgeConfig::plain`].
    #[must_use]
    pub fn plain(listen: SocketAddr, data_dir: impl Into<PathBuf>) -> Self {
        let broker = resolve::plain(Product::Cloud, listen, data_dir.into(), &Overrides::default());
        Self { broker: broker.expect("no input, so no mistake").0 }
    }

    /// As [`EdgeConfig::plain_with`].
    ///
    /// # Errors
    /// Every mistake in `overrides`.
    pub fn plain_with(
        listen: SocketAddr,
        data_dir: &Path,
        overrides: &Overrides,
    ) -> Result<Self, ConfigErrors> {
        let (broker, _) = resolve::plain(Product::Cloud, listen, data_dir.to_owned(), overrides)?;
        Ok(Self { broker })
    }
}

// === impl Anonymous ===

impl Anonymous {
    /// Whether a client from `peer` may come without a name.
    #[must_use]
    pub fn admits(self, peer: IpAddr) -> bool {
        match self {
            Self::Nobody => false,
            // A socket bound to [::] shows IPv4 peers as ::ffff:127.0.0.1.
            Self::Loopback => peer.to_canonical().is_loopback(),
            Self::Anyone => true,
        }
    }
}

// === impl OutboxConfig ===

/// Below what a gateway's devices use, and named for who speaks.
const REPORT_TOPIC: &str = "ferrule/${edge}/given_up";

impl OutboxConfig {
    /// `ferrule-edge`'s defaults.
    #[must_use]
    pub fn edge() -> Self {
        Self {
            max_bytes: 1 << 30,
            mem_max: 4 << 20,
            offline_interval: Duration::from_millis(400),
            ack_deadline: Duration::from_millis(800),
            max_messages: None,
            max_age: None,
            max_rate: None,
            report_topic: Some(REPORT_TOPIC.to_owned()),
            dead_letter: None,
            on_full: Full::Withhold,
            order: Order::InOrder,
        }
    }

    /// `ferrule-cloud`'s defaults.
    #[must_use]
    pub fn cloud() -> Self {
        Self {
            max_bytes: 64 << 30,
            mem_max: 16 << 20,
            offline_interval: Duration::ZERO,
            report_topic: None,
            ..Self::edge()
        }
    }
}

// === impl Source ===

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { line } => write!(f, "line {line}"),
            Self::Env(name) => f.write_str(name),
            Self::Option(name) => f.write_str(name),
        }
    }
}
