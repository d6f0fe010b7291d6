//! The Kafka sink.

#![forbid(unsafe_code)]

use ferrule_sinks::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext,
};

/// Rows into Kafka.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kafka;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "kafka",
    summary: "Rows into Kafka.",
    options: &[OptionSchema {
        name: "brokers",
        kind: OptionKind::Secret,
        required: true,
        default: None,
        help: "Where.",
    }],
    passthrough: None,
    target: "topic",
    key: None,
};

impl Connector for Kafka {
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
