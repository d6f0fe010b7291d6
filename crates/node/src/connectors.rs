//! Between the rules, which know a sink by name and options, and the sinks, which know no rules.

use ferrule_rules as rules;
use ferrule_sinks::{Connector, OptionKind, Options, Target};
use std::path::Path;
use std::sync::Arc;

/// The connectors of a binary.
pub type Connectors = Vec<Arc<dyn Connector>>;

/// What `rules check` and the live engine check names against.
#[must_use]
pub fn host(edge: bool, connectors: &Connectors) -> rules::Host {
    let schemas = connectors.iter().map(|c| schema(&**c)).collect();
    let host = if edge { rules::Host::edge(schemas) } else { rules::Host::cloud(schemas) };
    rules::Host { files: Some(rules::cli::files()), ..host }
}

fn schema(connector: &dyn Connector) -> rules::ConnectorSchema {
    let schema = connector.schema();
    rules::ConnectorSchema {
        name: schema.name,
        target: target(schema.target),
        options: (schema.options.iter())
            .map(|option| rules::OptionSchema {
                name: option.name,
                kind: match option.kind {
                    OptionKind::Text if option.name == "columns" => rules::OptionKind::Columns,
                    OptionKind::Text => rules::OptionKind::Text,
                    OptionKind::Int => rules::OptionKind::Int,
                    OptionKind::Bool => rules::OptionKind::Bool,
                    OptionKind::Duration => rules::OptionKind::Duration,
                    OptionKind::Size => rules::OptionKind::Size,
                    OptionKind::Template => rules::OptionKind::Template,
                    OptionKind::Secret => rules::OptionKind::Secret,
                    OptionKind::Enum(words) => rules::OptionKind::Word(words),
                },
                required: option.required,
                default: option.default,
                help: option.help,
            })
            .collect(),
        passthrough: schema.passthrough,
        help: schema.summary,
    }
}

fn target(target: Target) -> rules::TargetSchema {
    let (kind, option, required) = match target {
        Target::Name(option) => (rules::TargetKind::Name, Some(option), true),
        Target::OptionalName(option) => (rules::TargetKind::Name, Some(option), false),
        Target::Topic(option) => (rules::TargetKind::Topic, Some(option), false),
        Target::None => (rules::TargetKind::None, None, false),
    };
    rules::TargetSchema { kind, option, required }
}

/// Options that name files.
const PATHS: [&str; 4] = ["path", "tls_ca", "tls_cert", "tls_key"];

/// A declared sink's options as text, as they were written, but for paths: those are relative to the folder of `file`, the
/// rules file, as a configuration's are to the configuration file.
#[must_use]
pub fn given(sink: &rules::SinkDecl, file: &str) -> Vec<(String, String)> {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    // An absolute path stays what it is. A rules file's name and its text are UTF-8, so nothing is lost.
    let path = |path: &str| folder.join(path).to_string_lossy().into_owned();
    let text = |name: &str, value: &rules::OptionValue| match value {
        // The schema knows no paths: these are their names among all connectors. What is no file's path is left to the
        // connector to refuse.
        rules::OptionValue::Text(text)
            if PATHS.contains(&name)
                && !text.is_empty()
                && !text.starts_with(":memory:")
                && !text.starts_with("file:") =>
        {
            path(text)
        }
        rules::OptionValue::Secret(text) => match text.strip_prefix("file:") {
            Some(file) => format!("file:{}", path(file)),
            None => text.clone(),
        },
        rules::OptionValue::Text(text) | rules::OptionValue::Template(text) => text.clone(),
        rules::OptionValue::Int(number) => number.to_string(),
        rules::OptionValue::Bool(flag) => flag.to_string(),
        rules::OptionValue::DurationMs(ms) => format!("{ms}ms"),
        rules::OptionValue::SizeBytes(bytes) => bytes.to_string(),
    };
    sink.options.iter().map(|(name, value)| (name.clone(), text(name, value))).collect()
}

/// The connector of a declared sink.
#[must_use]
pub fn find<'a>(connectors: &'a Connectors, name: &str) -> Option<&'a Arc<dyn Connector>> {
    connectors.iter().find(|c| c.schema().name == name)
}

/// Checks what the connectors know and the rules do not, of a sink declared in `file`.
#[must_use]
pub fn mistakes(connectors: &Connectors, sink: &rules::SinkDecl, file: &str) -> Vec<String> {
    let Some(connector) = find(connectors, &sink.connector) else {
        return vec![format!("there is no connector `{}`", sink.connector)];
    };
    match Options::parse(connector.schema(), &given(sink, file)) {
        Ok(options) => connector.check(&options).err().unwrap_or_default(),
        Err(mistakes) => mistakes,
    }
}

/// Reads secrets from this process's environment and files.
#[derive(Debug, Clone, Copy)]
pub struct ProcessSecrets;

impl ferrule_sinks::options::Secrets for ProcessSecrets {
    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(path)
    }
}
