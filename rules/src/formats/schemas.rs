//! `CREATE SCHEMA name WITH (type = '...', ...)`, and how names of formats are found.
//!
//! A schema's file is read when the rules are loaded, by the host ([`crate::Files`]); the rule set holds what came
//! of it.

use std::sync::Arc;

use super::csv::{Kind, Layout};
use super::{BUILTINS, Codec, avro, protobuf};
use crate::Span;
use crate::diagnostic::nearest;
use crate::plan::Mistake;
use crate::sql::ast::{Expr, ExprKind, Literal, Setting};

/// What a schema of each type may say beside `type`.
const TYPES: [(&str, &[&str]); 3] = [
    ("protobuf", &["file", "message"]),
    ("avro", &["file", "definition", "registry_id", "registry"]),
    ("csv", &["columns", "delimiter", "header", "lines"]),
];

/// The schemas of a rule set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schemas {
    named: Vec<(String, Codec)>,
}

impl Schemas {
    /// The format of a name, and a number that is its own in the rule set.
    pub(crate) fn find(&self, name: &str) -> Option<(usize, Codec)> {
        if let Some(at) = BUILTINS.iter().position(|known| *known == name) {
            return Some((at, Codec::builtin(name)?));
        }
        let at = self.named.iter().position(|(known, _)| known == name)?;
        Some((BUILTINS.len() + at, self.named.get(at)?.1.clone()))
    }

    /// A declared schema.
    pub(crate) fn schema(&self, name: &str) -> Option<&Codec> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, codec)| codec)
    }

    pub(crate) fn add(&mut self, name: &str, codec: Codec) {
        self.named.push((name.to_owned(), codec));
    }

    /// The schemas that a registry knows, each with its name.
    fn registered(&self) -> impl Iterator<Item = (&str, &Arc<avro::Schema>, u32, Option<&str>)> {
        self.named.iter().filter_map(|(name, codec)| match codec {
            Codec::Avro(schema) => schema.registered().map(|(id, of)| (name.as_str(), schema, id, of)),
            _ => None,
        })
    }

    /// The schema that a registry calls `id`; one that names no registry is of every one.
    pub(crate) fn of_registry(&self, registry: &str, id: u32) -> Option<&Arc<avro::Schema>> {
        let mut found =
            self.registered().filter(|(.., known, of)| *known == id && of.is_none_or(|of| of == registry));
        found.next().map(|(_, schema, ..)| schema)
    }

    /// Which schema a registry calls as it would call this one.
    pub(crate) fn same_in_registry(&self, codec: &Codec) -> Option<&str> {
        let Codec::Avro(schema) = codec else { return None };
        let (id, registry) = schema.registered()?;
        let meet = |of: Option<&str>| of.is_none() || registry.is_none() || of == registry;
        self.registered().find(|(.., known, of)| *known == id && meet(*of)).map(|(name, ..)| name)
    }

    fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.named.iter().map(|(name, _)| name.as_str())
    }

    /// What to say of a name that is no format, or with `declared` no schema.
    pub(crate) fn unknown(&self, name: &str, declared: bool, span: Span) -> Mistake {
        let builtins = if declared { &[][..] } else { &BUILTINS[..] };
        let known = builtins.iter().copied().chain(self.names());
        let near = nearest(name, known.clone()).map(|near| format!("; did you mean '{near}'?"));
        let what = if declared { "schema" } else { "format" };
        let list: Vec<&str> = known.collect();
        let hint = match list.as_slice() {
            [] => "declare it: `CREATE SCHEMA name WITH (type = '...', ...)`".to_owned(),
            list => format!("{what}s: {}", list.join(", ")),
        };
        (span, format!("unknown {what} '{name}'{}", near.unwrap_or_default()), Some(hint))
    }

    /// What is wrong with a call whose first argument names a format, where that is certain.
    pub(crate) fn misnamed(&self, function: &str, args: &[Expr]) -> Option<Mistake> {
        if function == "schema_encode_and_tag" {
            return self.untaggable(args);
        }
        if matches!(function, "avro_decode" | "avro_encode" | "schema_decode_tagged") {
            return self.unregistered(args);
        }
        let declared = function.starts_with("schema_");
        let takes = declared || matches!(function, "decode" | "encode");
        let first = args.first().filter(|_| takes)?;
        let ExprKind::Text(name) = &first.kind else { return None };
        let found =
            if declared { self.schema(name).cloned() } else { self.find(name).map(|(_, codec)| codec) };
        let Some(codec) = found else { return Some(self.unknown(name, declared, first.span)) };
        match (&codec, args.get(2)) {
            (Codec::Protobuf(schema, _), Some(Expr { kind: ExprKind::Text(message), span, .. })) => {
                schema.message(message).is_none().then(|| no_message(schema, message, *span))
            }
            (Codec::Protobuf(_, None), None) => codec
                .incomplete()
                .map(|why| (first.span, format!("the schema '{name}' does not do: {why}"), None)),
            _ => None,
        }
    }
}

impl Schemas {
    /// What is wrong with `schema_encode_and_tag('schema', 'registry', ...)`, where that is certain.
    fn untaggable(&self, args: &[Expr]) -> Option<Mistake> {
        let ExprKind::Text(name) = &args.first()?.kind else { return None };
        let span = args.first()?.span;
        let Some(codec) = self.schema(name) else { return Some(self.unknown(name, true, span)) };
        let schema = match codec {
            Codec::Avro(schema) => schema,
            // What could not be declared: that has been said.
            Codec::Text => return None,
            _ => return Some((span, format!("the schema '{name}' is not of type 'avro'"), None)),
        };
        let Some((_, of)) = schema.registered() else {
            let hint = "give CREATE SCHEMA `registry_id = ...`, what the registry calls it".to_owned();
            return Some((span, format!("the schema '{name}' is of no registry"), Some(hint)));
        };
        let ExprKind::Text(registry) = &args.get(1)?.kind else { return None };
        let of = of.filter(|of| of != registry)?;
        let message = format!("the schema '{name}' is of the registry '{of}'");
        Some((args.get(1)?.span, message, None))
    }

    /// What is wrong with the registry and the id in `avro_decode('registry', data, id)`, where that is certain.
    fn unregistered(&self, args: &[Expr]) -> Option<Mistake> {
        if self.named.iter().any(|(_, codec)| matches!(codec, Codec::Text)) {
            // It could not be declared, and might be the one.
            return None;
        }
        let ExprKind::Text(registry) = &args.first()?.kind else { return None };
        let known: Vec<u32> = self
            .registered()
            .filter(|(.., of)| of.is_none_or(|of| of == registry))
            .map(|(_, _, id, _)| id)
            .collect();
        let (span, message, id) = match args.get(2).map(|id| (&id.kind, id.span)) {
            Some((ExprKind::Int(id), span)) if !known.iter().any(|known| i64::from(*known) == *id) => {
                (span, format!("no schema is {id} in the registry '{registry}'"), id.to_string())
            }
            None if known.is_empty() => {
                (args.first()?.span, format!("no schema is of the registry '{registry}'"), "...".to_owned())
            }
            _ => return None,
        };
        let hint = format!(
            "registries are not asked: declare it by `CREATE SCHEMA name WITH (type = 'avro', file = '...', \
             registry_id = {id})`"
        );
        Some((span, message, Some(hint)))
    }
}

/// What the options of a `CREATE SCHEMA` declare; `at` is where its name stands.
///
/// # Errors
/// Every mistake in them.
pub(crate) fn declare(
    settings: &[Setting],
    at: Span,
    read: &dyn Fn(&str) -> Result<Vec<u8>, String>,
) -> Result<Codec, Vec<Mistake>> {
    let list = || TYPES.map(|(name, _)| format!("'{name}'")).join(", ");
    let kind = match setting(settings, "type") {
        None => {
            let hint = format!("types: {}", list());
            return Err(vec![(at, "a schema needs `type = '...'`".to_owned(), Some(hint))]);
        }
        Some(Setting { value: Literal::Text(kind), span, .. }) => {
            let Some(known) = TYPES.iter().find(|(name, _)| name == kind) else {
                let near =
                    nearest(kind, TYPES.map(|(name, _)| name)).map(|n| format!("; did you mean '{n}'?"));
                let message = format!("unknown type of schema '{kind}'{}", near.unwrap_or_default());
                return Err(vec![(*span, message, Some(format!("types: {}", list())))]);
            };
            known
        }
        Some(other) => return Err(vec![(other.span, format!("`type` takes one of {}", list()), None)]),
    };
    let mut mistakes = Vec::new();
    for setting in settings.iter().filter(|s| s.key.text != "type" && !kind.1.contains(&s.key.text.as_str()))
    {
        let near =
            nearest(&setting.key.text, kind.1.iter().copied()).map(|n| format!("; did you mean `{n}`?"));
        let message = format!(
            "a schema of type '{}' has no option `{}`{}",
            kind.0,
            setting.key.text,
            near.unwrap_or_default()
        );
        mistakes.push((setting.key.span, message, Some(format!("options: {}", kind.1.join(", ")))));
    }
    let codec = match kind.0 {
        "protobuf" => protobuf(settings, at, read, &mut mistakes),
        "avro" => avro(settings, at, read, &mut mistakes),
        _ => csv(settings, &mut mistakes),
    };
    match codec {
        Some(codec) if mistakes.is_empty() => Ok(codec),
        _ => Err(mistakes),
    }
}

fn setting<'s>(settings: &'s [Setting], name: &str) -> Option<&'s Setting> {
    settings.iter().find(|setting| setting.key.text == name)
}

/// The text of an option; none where it is not given.
fn text_of<'s>(settings: &'s [Setting], name: &str, mistakes: &mut Vec<Mistake>) -> Option<(&'s str, Span)> {
    match setting(settings, name)? {
        Setting { value: Literal::Text(text), span, .. } => Some((text, *span)),
        other => {
            mistakes.push((other.span, format!("`{name}` takes text in single quotes"), None));
            None
        }
    }
}

/// What the file of the option `file` holds, and where the option stands.
fn file(
    settings: &[Setting],
    read: &dyn Fn(&str) -> Result<Vec<u8>, String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<(Vec<u8>, Span)> {
    let (path, span) = text_of(settings, "file", mistakes)?;
    match read(path) {
        Ok(bytes) => Some((bytes, span)),
        Err(error) => {
            let hint = "the path is relative to the folder of the rules file".to_owned();
            mistakes.push((span, format!("cannot read `{path}`: {error}"), Some(hint)));
            None
        }
    }
}

fn protobuf(
    settings: &[Setting],
    at: Span,
    read: &dyn Fn(&str) -> Result<Vec<u8>, String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<Codec> {
    let message = text_of(settings, "message", mistakes);
    if setting(settings, "file").is_none() {
        let hint = "make it with `protoc --include_imports --descriptor_set_out=FILE`".to_owned();
        mistakes.push((at, "a schema of type 'protobuf' needs `file = '...'`".to_owned(), Some(hint)));
    }
    let (bytes, span) = file(settings, read, mistakes)?;
    let schema = match protobuf::Schema::new(&bytes) {
        Ok(schema) => schema,
        Err(error) => {
            mistakes.push((span, format!("the file is of no use: {error}"), None));
            return None;
        }
    };
    let message = match message {
        None => schema.only(),
        Some((name, span)) => match schema.message(name) {
            Some(message) => Some(message),
            None => {
                mistakes.push(no_message(&schema, name, span));
                return None;
            }
        },
    };
    Some(Codec::Protobuf(Arc::new(schema), message))
}

/// What to say of a name that is no message.
fn no_message(schema: &protobuf::Schema, name: &str, span: Span) -> Mistake {
    let near = nearest(name, schema.names()).map(|near| format!("; did you mean '{near}'?"));
    let mut names: Vec<&str> = schema.names().take(20).collect();
    names.sort_unstable();
    let hint = format!("messages: {}", names.join(", "));
    (span, format!("the schema has no message '{name}'{}", near.unwrap_or_default()), Some(hint))
}

fn avro(
    settings: &[Setting],
    at: Span,
    read: &dyn Fn(&str) -> Result<Vec<u8>, String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<Codec> {
    let definition = text_of(settings, "definition", mistakes);
    let (text, span) = match (definition, setting(settings, "file")) {
        (Some((_, span)), Some(_)) => {
            mistakes.push((span, "`definition` and `file` are two ways to give the schema".to_owned(), None));
            return None;
        }
        (Some((text, span)), None) => (text.as_bytes().to_vec(), span),
        (None, Some(_)) => file(settings, read, mistakes)?,
        (None, None) => {
            let message = "a schema of type 'avro' needs `file = '...'` or `definition = '...'`";
            mistakes.push((at, message.to_owned(), None));
            return None;
        }
    };
    let registry_id = match setting(settings, "registry_id") {
        None => None,
        Some(Setting { value: Literal::Int(id), span, .. }) => match u32::try_from(*id) {
            Ok(id) => Some(id),
            Err(_) => {
                mistakes.push((*span, "`registry_id` takes a number of 32 bits".to_owned(), None));
                None
            }
        },
        Some(other) => {
            mistakes.push((other.span, "`registry_id` takes a whole number".to_owned(), None));
            None
        }
    };
    let registry = text_of(settings, "registry", mistakes);
    if let (Some((_, span)), None) = (registry, setting(settings, "registry_id")) {
        let hint = "`registry_id = ...` is what that registry calls the schema".to_owned();
        mistakes.push((span, "`registry` needs `registry_id` beside it".to_owned(), Some(hint)));
    }
    match avro::Schema::new(&text, registry_id) {
        Ok(schema) => Some(Codec::Avro(Arc::new(schema.of_registry(registry.map(|(name, _)| name))))),
        Err(error) => {
            mistakes.push((span, format!("the schema is of no use: {error}"), None));
            None
        }
    }
}

fn csv(settings: &[Setting], mistakes: &mut Vec<Mistake>) -> Option<Codec> {
    let mut layout = Layout { many: false, ..Layout::default() };
    for setting in settings {
        let fault = match (setting.key.text.as_str(), &setting.value) {
            ("columns", Literal::Text(text)) => match columns(text) {
                Ok(columns) => {
                    layout.columns = columns;
                    None
                }
                Err(message) => {
                    mistakes.push((
                        setting.span,
                        message,
                        Some("columns = 'ts integer, temp number, unit'".to_owned()),
                    ));
                    None
                }
            },
            ("columns", _) => Some("columns as 'name type, name type'"),
            ("delimiter", Literal::Text(text)) => match text.as_bytes() {
                [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => {
                    layout.delimiter = *byte;
                    None
                }
                _ => Some("one character of ASCII, no quote"),
            },
            ("delimiter", _) => Some("one character of ASCII, no quote"),
            ("header", Literal::Bool(header)) => {
                layout.header = *header;
                None
            }
            ("header", _) => Some("TRUE or FALSE"),
            ("lines", Literal::Text(lines)) if lines == "one" || lines == "many" => {
                layout.many = lines == "many";
                None
            }
            ("lines", _) => Some("'one' or 'many'"),
            _ => None,
        };
        if let Some(expected) = fault {
            mistakes.push((setting.span, format!("`{}` takes {expected}", setting.key.text), None));
        }
    }
    Some(Codec::Csv(Arc::new(layout)))
}

/// The columns of `'ts integer, temp number, unit'`.
pub(super) fn columns(text: &str) -> Result<Vec<(String, Kind)>, String> {
    let mut columns: Vec<(String, Kind)> = Vec::new();
    for column in text.split(',') {
        let mut words = column.split_whitespace();
        let (name, kind) = match (words.next(), words.next(), words.next()) {
            (Some(name), None, None) => (name, Kind::Text),
            (Some(name), Some(kind), None) => {
                let known = Kind::ALL.iter().find(|(word, _)| *word == kind);
                let list = || Kind::ALL.map(|(word, _)| word).join(", ");
                (name, known.ok_or_else(|| format!("`{kind}` is no type of a column; types: {}", list()))?.1)
            }
            _ => return Err("`columns` takes columns as 'name type, name type'".to_owned()),
        };
        if columns.iter().any(|(known, _)| known == name) {
            return Err(format!("two columns are called `{name}`"));
        }
        columns.push((name.to_owned(), kind));
    }
    Ok(columns)
}
