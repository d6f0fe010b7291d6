//! What a rules file says once it is checked: sinks and compiled rules.

use crate::program::Program;
use crate::{Diagnostic, Span, events};

/// Everything that the loaded files declare.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    /// Declared sinks, in order of the text; built-in ones are not among them.
    pub sinks: Vec<SinkDecl>,
    /// Rules, in order of the text.
    pub rules: Vec<Rule>,
    /// Warnings; errors would have kept the set from being made.
    pub warnings: Vec<Diagnostic>,
}

impl RuleSet {
    /// A declared sink.
    pub fn sink(&self, name: &str) -> Option<&SinkDecl> {
        self.sinks.iter().find(|s| s.name == name)
    }

    /// A rule.
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|r| r.name == name)
    }
}

/// `CREATE SINK name WITH (connector = '...', ...)`.
#[derive(Debug, Clone, PartialEq)]
pub struct SinkDecl {
    /// Its name.
    pub name: String,
    /// The connector, one of [`crate::Host::connectors`].
    pub connector: String,
    /// The options given, and the schema's defaults of those not given; types as the schema says.
    pub options: Vec<(String, OptionValue)>,
    /// Index of its file among the sources.
    pub file: usize,
    /// The whole statement.
    pub span: Span,
}

impl SinkDecl {
    /// The value of an option, if it was given or has a default.
    pub fn option(&self, name: &str) -> Option<&OptionValue> {
        self.options.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

/// A checked value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionValue {
    /// [`crate::OptionKind::Text`], `Word` and `Columns`.
    Text(String),
    /// A whole number.
    Int(i64),
    /// TRUE or FALSE.
    Bool(bool),
    /// A duration in milliseconds.
    DurationMs(u64),
    /// A size in bytes.
    SizeBytes(u64),
    /// The text of a template; its rendering comes with each [`crate::OutRow`].
    Template(String),
    /// The text as written: a literal, `env:NAME` or `file:PATH`.
    Secret(String),
}

/// Which language a rule is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dialect {
    /// The default.
    #[default]
    Ferrule,
    /// EMQX rule SQL (not yet).
    Emqx,
    /// eKuiper SQL (not yet).
    Ekuiper,
}

/// `ack = '...'`: what an acknowledgement to the publisher waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// The destination's acknowledgement or the store's commit.
    #[default]
    Stored,
    /// The destination's acknowledgement.
    Sink,
    /// The commit of this node alone.
    Local,
    /// Nothing.
    None,
}

/// `qos0 = '...'`: where rows made from QoS 0 messages wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Qos0 {
    /// In the outbox's memory.
    #[default]
    Memory,
    /// In the store, like the others, though nobody waits for the commit.
    Spool,
    /// Nowhere: given up when the sink cannot take them at once.
    Drop,
}

/// `priority = '...'`: which of a sink's rows leave first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Before the others.
    High,
    /// After high, before low.
    #[default]
    Normal,
    /// After the others.
    Low,
}

/// `durability = '...'` of a rule with state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// State changes in the commit that everything else waits for.
    Exact,
    /// State is saved now and then.
    Checkpoint,
}

/// Whose table a rule keeps what it remembers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Its own.
    Own,
    /// One that all rules share (`kv_store_put` of EMQX's dialect); it is in the [`crate::Scratch`].
    Shared,
}

/// A compiled rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name, unique in the set.
    pub name: String,
    /// [`rule_id`] of its name.
    pub id: u64,
    /// Its dialect.
    pub dialect: Dialect,
    /// Topic filters of FROM: valid MQTT filters, no duplicates. A message that matches several runs once.
    pub filters: Vec<String>,
    /// Where rows go, at least one.
    pub inserts: Vec<Insert>,
    /// `WITH (ack = ...)`.
    pub ack: Ack,
    /// `WITH (qos0 = ...)`.
    pub qos0: Qos0,
    /// `WITH (priority = ...)`.
    pub priority: Priority,
    /// `WITH (durability = ...)`; `None`: the host's default.
    pub durability: Option<Durability>,
    /// `WITH (enabled = FALSE)` keeps the rule but gives it no messages; default true.
    pub enabled: bool,
    /// Index of its file among the sources.
    pub file: usize,
    /// The whole statement.
    pub span: Span,
    /// The statement as written, for the API and the dashboard.
    pub text: String,
    pub(crate) program: Program,
}

impl Rule {
    /// The payload fields that the rule reads, as written.
    pub fn fields(&self) -> &[String] {
        &self.program.fields
    }

    /// The topic filters of FROM: its filters without events.
    pub fn topic_filters(&self) -> impl Iterator<Item = &str> {
        self.filters.iter().map(String::as_str).filter(|filter| !filter.starts_with(events::PREFIX))
    }

    /// The events of FROM that the broker raises, by the name that the column `event` has. One may come twice.
    pub fn events(&self) -> impl Iterator<Item = &'static str> {
        self.filters.iter().flat_map(|filter| events::raised(filter))
    }

    /// What it remembers between messages, if anything: all its messages must be stepped with one [`crate::RuleState`].
    pub fn keeps(&self) -> Option<Keeps> {
        self.program.keeps
    }

    /// Whether the payload passes through untouched (`SELECT *`).
    pub fn passes_payload(&self) -> bool {
        self.program.payload_only && self.program.format.is_none()
    }
}

/// One target of `INSERT INTO`.
#[derive(Debug, Clone)]
pub struct Insert {
    /// A declared or built-in sink.
    pub sink: String,
    /// `WITH (qos = ...)`; `None`: the sink's own default.
    pub qos: Option<u8>,
    /// `WITH (retain = ...)`; `None`: the sink's own default.
    pub retain: Option<bool>,
}

/// The identity of a rule in every exactly-once key (63 bits): FNV-1a 64 of the name's bytes, shifted right by one.
///
/// Fixed for ever: the keys in users' tables hold it. Offset basis and prime are those of the FNV reference
/// (RFC 9923); golden values are in the tests.
pub fn rule_id(name: &str) -> u64 {
    fnv1a(FNV_OFFSET, name.as_bytes()) >> 1
}

/// The identity of what rule `rule` makes from row `row` of the message that already carries `path` (63 bits):
/// the hash over all (rule, row) steps behind it, so that rows republished and stored by a second rule stay apart.
///
/// FNV-1a 64 over `path`, `row` and `rule`, each little-endian (8, 4 and 8 bytes), shifted right by one.
pub fn extend_rule_path(path: u64, row: u32, rule: u64) -> u64 {
    let hash = fnv1a(FNV_OFFSET, &path.to_le_bytes());
    let hash = fnv1a(hash, &row.to_le_bytes());
    fnv1a(hash, &rule.to_le_bytes()) >> 1
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}
