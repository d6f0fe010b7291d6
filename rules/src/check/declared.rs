//! CREATE SINK and CREATE SCHEMA.

use super::options::{default_value, option_value};
use super::{CheckedSink, Checker};
use crate::diagnostic::nearest;
use crate::formats::{self, BUILTINS, Codec};
use crate::sql::ast::{Literal, Name, Setting};
use crate::{OptionValue, SinkDecl, Span};

impl Checker<'_> {
    pub(super) fn sink(&mut self, file: usize, span: Span, name: &Name, settings: &[Setting]) {
        if self.host.builtins.iter().any(|b| b.name == name.text) {
            self.mistake(file, name.span, format!("`{}` is a built-in sink", name.text), None);
            return;
        }
        if let Some(other) = self.sinks.iter().find(|s| s.decl.name == name.text) {
            let place = self.place(other.decl.file, other.name_span);
            self.mistake(file, name.span, format!("the sink `{}` exists already ({place})", name.text), None);
            return;
        }
        self.duplicates(file, settings);
        let connector = settings.iter().find(|s| s.key.text == "connector");
        let known = || self.host.connectors.iter().map(|c| c.name);
        let schema = match connector.map(|s| (&s.value, s.span)) {
            None => {
                let list = known().collect::<Vec<_>>().join(", ");
                let hint = (!list.is_empty()).then(|| format!("connectors: {list}"));
                self.mistake(file, name.span, "a sink needs `connector = '...'`", hint);
                None
            }
            Some((Literal::Text(wanted), span)) => {
                let schema = self.host.connectors.iter().find(|c| c.name == wanted);
                if schema.is_none() {
                    let near = nearest(wanted, known()).map(|n| format!("; did you mean '{n}'?"));
                    let list = known().collect::<Vec<_>>().join(", ");
                    let hint = if list.is_empty() {
                        "this program has no connectors".to_owned()
                    } else {
                        format!("connectors: {list}")
                    };
                    let message = format!("unknown connector `{wanted}`{}", near.unwrap_or_default());
                    self.mistake(file, span, message, Some(hint));
                }
                schema
            }
            Some((_, span)) => {
                self.mistake(file, span, "expected the name of a connector in quotes", None);
                None
            }
        };
        let mut options = Vec::new();
        let mut spans = Vec::new();
        if let Some(schema) = schema {
            for setting in settings.iter().filter(|s| s.key.text != "connector") {
                let key = &setting.key.text;
                if schema.passthrough.is_some_and(|p| key.len() > p.len() && key.starts_with(p)) {
                    let value = match &setting.value {
                        Literal::Text(text) => text.clone(),
                        Literal::Int(n) => n.to_string(),
                        Literal::Float(x) => x.to_string(),
                        Literal::Bool(b) => b.to_string(),
                    };
                    options.push((key.clone(), OptionValue::Text(value)));
                    spans.push((key.clone(), setting.span));
                    continue;
                }
                let Some(option) = schema.options.iter().find(|o| o.name == *key) else {
                    self.unknown_option(
                        file,
                        &setting.key,
                        &format!("connector `{}`", schema.name),
                        schema.options.iter().map(|o| o.name),
                    );
                    continue;
                };
                match option_value(option.kind, &setting.value) {
                    Ok(value) => {
                        options.push((option.name.to_owned(), value));
                        spans.push((option.name.to_owned(), setting.span));
                    }
                    Err(expected) => {
                        let message = format!("`{}` takes {expected}", option.name);
                        self.mistake(file, setting.span, message, Some(option.help.to_owned()));
                    }
                }
            }
            for option in &schema.options {
                if settings.iter().any(|s| s.key.text == option.name) {
                    continue;
                }
                if option.required {
                    let message = format!(
                        "the sink `{}` needs `{} = ...` for connector `{}`",
                        name.text, option.name, schema.name
                    );
                    self.mistake(file, name.span, message, Some(option.help.to_owned()));
                } else if let Some(value) = option.default.and_then(|d| default_value(option, d)) {
                    options.push((option.name.to_owned(), value));
                }
            }
        }
        let decl = SinkDecl {
            name: name.text.clone(),
            connector: schema.map_or("", |s| s.name).to_owned(),
            options,
            file,
            span,
        };
        self.sinks.push(CheckedSink { decl, name_span: name.span, schema, spans });
    }

    pub(super) fn schema(&mut self, file: usize, name: &Name, settings: &[Setting]) {
        if BUILTINS.contains(&name.text.as_str()) {
            self.mistake(file, name.span, format!("`{}` is a built-in format", name.text), None);
            return;
        }
        if self.schemas.schema(&name.text).is_some() {
            self.mistake(file, name.span, format!("the schema `{}` exists already", name.text), None);
            return;
        }
        self.duplicates(file, settings);
        let source = self.sources.get(file).map_or("", |s| s.name);
        let read = |path: &str| match &self.host.files {
            Some(files) => (files.0)(source, path),
            None => Err("files cannot be read here".to_owned()),
        };
        let codec = formats::declare(settings, name.span, &read).unwrap_or_else(|mistakes| {
            self.mistakes(file, mistakes);
            // What uses it is not to blame.
            Codec::Text
        });
        if let Some(other) = self.schemas.same_in_registry(&codec) {
            let message = format!("the schema `{other}` has the same `registry_id`");
            let hint = "those of two registries are told apart by `registry = '...'`".to_owned();
            let at = settings.iter().find(|s| s.key.text == "registry_id").map_or(name.span, |s| s.span);
            self.mistake(file, at, message, Some(hint));
        }
        self.schemas.add(&name.text, codec);
    }
}
