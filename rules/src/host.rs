//! What the program around the rules offers: which sinks there are and which options they take.
//!
//! The crate knows nothing else about sinks. A schema is data, so that an unknown sink, connector or option is a
//! diagnostic with the nearest name, and so that documentation can be printed from it.

use std::fmt;
use std::sync::Arc;

/// What [`crate::load`] checks names against.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Sinks that exist without a `CREATE SINK`.
    pub builtins: Vec<Builtin>,
    /// What `connector = '...'` may name.
    pub connectors: Vec<ConnectorSchema>,
    /// Names of further columns that [`crate::Message::columns`] brings (`rules eval`, tests).
    pub extra_columns: Vec<String>,
    /// How files that rules name are read; without it they cannot name any.
    pub files: Option<Files>,
    /// Whether [`crate::Message::columns`] may stand in for the message's own columns.
    pub columns_given: bool,
}

/// Reads a file that a rules file names: the rules file's own name and the path as it stands there to what the file holds.
///
/// Errors are sentences without the path. [`crate::cli::files`] reads from disk.
#[derive(Clone)]
pub struct Files(pub Arc<ReadFile>);

/// See [`Files`].
pub type ReadFile = dyn Fn(&str, &str) -> Result<Vec<u8>, String> + Send + Sync;

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

/// A sink that exists by name.
#[derive(Debug, Clone)]
pub struct Builtin {
    /// Its name in INSERT INTO.
    pub name: &'static str,
    /// What its target means. The options of a built-in are those of INSERT INTO alone.
    pub target: TargetSchema,
    /// One line for documentation and errors.
    pub help: &'static str,
}

/// What a connector takes in `CREATE SINK ... WITH (...)`.
#[derive(Debug, Clone)]
pub struct ConnectorSchema {
    /// The name in `connector = '...'`.
    pub name: &'static str,
    /// What INSERT INTO's target means for its sinks.
    pub target: TargetSchema,
    /// Its options, `connector` itself not among them.
    pub options: Vec<OptionSchema>,
    /// Options whose names begin with this (`librdkafka.`) are taken as text, whatever they are called.
    pub passthrough: Option<&'static str>,
    /// One line for documentation and errors.
    pub help: &'static str,
}

/// What `INSERT INTO sink."target"` means for a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetSchema {
    /// What a target names.
    pub kind: TargetKind,
    /// The option of the sink that gives the target where INSERT INTO gives none: `topic`, `table`.
    pub option: Option<&'static str>,
    /// Whether INSERT INTO or that option must give one.
    pub required: bool,
}

/// What a target names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// An MQTT topic; by default the message's own. Wildcards, NUL, `$SYS/` and `$ferrule/` are refused.
    Topic,
    /// A name in the sink's own space: a table, a Kafka topic. Empty when nobody gives one.
    Name,
    /// The sink has no targets (`log`).
    None,
}

/// One option of a connector.
#[derive(Debug, Clone)]
pub struct OptionSchema {
    /// Its key in WITH.
    pub name: &'static str,
    /// The type of its value.
    pub kind: OptionKind,
    /// Whether it must be given.
    pub required: bool,
    /// What it is when not given, written as in a rules file; [`crate::SinkDecl::options`] has it filled in.
    pub default: Option<&'static str>,
    /// One line for documentation and errors.
    pub help: &'static str,
}

/// The type of an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number.
    Int,
    /// TRUE or FALSE.
    Bool,
    /// A number with a unit: `'250ms'`, `'5s'`, `'10m'`, `'2h'`, `'30d'`.
    Duration,
    /// Bytes, a number with or without a unit: `'64KiB'`, `'4MiB'`, `'1GB'`.
    Size,
    /// Text with `${...}`, rendered for every row.
    Template,
    /// Text that may be `'env:NAME'` or `'file:PATH'`; the host reads it.
    Secret,
    /// Columns of a table, `'ts timestamptz, temp double precision'`; the columns of a row are checked against them.
    Columns,
}

impl Host {
    /// The edge's built-in sinks: `cloud`, `local` and `log`.
    pub fn edge(connectors: Vec<ConnectorSchema>) -> Host {
        let mut host = Host::cloud(connectors);
        let target = TargetSchema { kind: TargetKind::Topic, option: None, required: false };
        let help = "the uplink: the target is the topic there, by default the message's own";
        host.builtins.insert(0, Builtin { name: "cloud", target, help });
        host
    }

    /// The cloud's built-in sinks: `local` and `log`.
    pub fn cloud(connectors: Vec<ConnectorSchema>) -> Host {
        // Without a target a rule would publish to the topic that it reads: a loop.
        let local = TargetSchema { kind: TargetKind::Topic, option: None, required: true };
        let log = TargetSchema { kind: TargetKind::None, option: None, required: false };
        Host {
            builtins: vec![
                Builtin {
                    name: "local",
                    target: local,
                    help: "publishes in this broker; the target is the topic",
                },
                Builtin { name: "log", target: log, help: "the log of this process" },
            ],
            connectors,
            ..Host::default()
        }
    }
}
