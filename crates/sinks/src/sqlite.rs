//! The SQLite sink.
use crate::{Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext};

/// Rows into a SQLite file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sqlite;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "sqlite",
    summary: "Rows into tables of a SQLite file, each exactly once.",
    options: &[
        OptionSchema {
            name: "path",
            kind: OptionKind::Text,
            required: true,
            default: None,
            help: "The file; made when it is not there.",
        },
        OptionSchema {
            name: "table",
            kind: OptionKind::Template,
            required: false,
            default: None,
            help: "The table.",
        },
    ],
    passthrough: None,
    target: "table",
    key: None,
};

impl Connector for Sqlite {
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
