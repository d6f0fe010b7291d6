//! The Postgres sink.

#![forbid(unsafe_code)]

use ferrule_sinks::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext,
};

/// Rows into Postgres.
#[derive(Debug, Clone, Copy, Default)]
pub struct Postgres;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "postgres",
    summary: "Rows into Postgres.",
    options: &[OptionSchema {
        name: "url",
        kind: OptionKind::Secret,
        required: true,
        default: None,
        help: "Where.",
    }],
    passthrough: None,
    target: "topic",
    key: None,
};

impl Connector for Postgres {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }
    fn check(&self, _options: &Options) -> Result<Declared, Vec<String>> {
        Ok(Declared::default())
    }
    fn start(&self, _name: &str, _options: &Options, _context: SinkContext) -> Result<Running, Vec<String>> {
        Err(vec!["not there yet".into()])
    }
}
