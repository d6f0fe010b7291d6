//! Statements to a [`RuleSet`]: sinks and their options, rules and their inserts, names and types.

use std::collections::HashMap;
use std::sync::Arc;

use crate::diagnostic::nearest;
use crate::emqx;
use crate::events;
use crate::formats::{self, BUILTINS, Codec, Payload, Schemas};
use crate::jq::Jq;
use crate::paths::Paths;
use crate::plan::{Mistake, Planner, Plans};
use crate::program::{InsertCode, Part, Target, Template};
use crate::properties;
use crate::row::publishable;
use crate::shared;
use crate::sql::ast::{InsertInto, Literal, Name, Query, Setting, Statement, StatementKind};
use crate::sql::statement::statements;
use crate::template::{self, Piece};
use crate::{
    Ack, ConnectorSchema, Diagnostic, Dialect, Durability, Host, Insert, OptionKind, OptionSchema,
    OptionValue, Qos0, Rule, RuleSet, Severity, SinkDecl, Source, Span, TargetKind, TargetSchema, rule_id,
};

/// The most topic filters of one rule.
const MAX_FILTERS: usize = 256;
/// The most inserts of one rule.
const MAX_INSERTS: usize = 64;

/// Reads, checks and compiles all files together; a sink may be declared in any of them.
///
/// # Errors
/// Every mistake of every file, in order of files and text.
pub fn load(sources: &[Source<'_>], host: &Host) -> Result<RuleSet, Vec<Diagnostic>> {
    load_with(sources, host, None)
}

/// As [`load`]; with `bare`, a dialect, a SELECT alone is a rule called `query` that inserts into `log` (`rules eval`).
pub(crate) fn load_with(
    sources: &[Source<'_>],
    host: &Host,
    bare: Option<Dialect>,
) -> Result<RuleSet, Vec<Diagnostic>> {
    let mut checker = Checker {
        sources,
        host,
        bare: bare.is_some(),
        found: Vec::new(),
        sinks: Vec::new(),
        rules: Vec::new(),
        paths: Paths::default(),
        jq: Jq::default(),
        schemas: Schemas::default(),
        ids: HashMap::new(),
        names: Vec::new(),
        unread_sinks: Vec::new(),
    };
    let mut files: Vec<Vec<Statement>> = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        let read = statements(source, bare.unwrap_or_default());
        checker.found.extend(read.diagnostics.into_iter().map(|d| (file, d)));
        checker.unread_sinks.extend(read.unread_sinks);
        files.push(read.statements);
    }
    // Sinks and schemas first: a rule may use one that is declared after it.
    for (file, statements) in files.iter().enumerate() {
        for statement in statements {
            if let StatementKind::CreateSink { name, settings } = &statement.kind {
                checker.sink(file, statement.span, name, settings);
            }
            if let StatementKind::CreateSchema { name, settings } = &statement.kind {
                checker.schema(file, name, settings);
            }
        }
    }
    for (file, statements) in files.iter().enumerate() {
        for statement in statements {
            match &statement.kind {
                StatementKind::CreateSink { .. } | StatementKind::CreateSchema { .. } => {}
                StatementKind::CreateRule { name, settings, dialect, inserts, query } => {
                    checker.rule(file, statement.span, (name, *dialect), settings, inserts, query);
                }
                StatementKind::Query(query) if bare.is_some() => {
                    let span = Span { start: statement.span.start, end: statement.span.start };
                    let name = |text: &str| Name { text: text.to_owned(), span };
                    let insert = InsertInto { sink: name("log"), target: None, settings: Vec::new(), span };
                    let named = (&name("query"), bare.unwrap_or_default());
                    checker.rule(file, statement.span, named, &[], &[insert], query);
                }
                StatementKind::Query(_) => {
                    let message = "a query alone does nothing".to_owned();
                    let hint = "write `CREATE RULE name AS INSERT INTO sink SELECT ...`".to_owned();
                    checker.mistakes(file, vec![(statement.span, message, Some(hint))]);
                }
            }
        }
    }
    checker.finish()
}

struct Checker<'c> {
    sources: &'c [Source<'c>],
    host: &'c Host,
    bare: bool,
    found: Vec<(usize, Diagnostic)>,
    sinks: Vec<CheckedSink<'c>>,
    rules: Vec<Rule>,
    paths: Paths,
    schemas: Schemas,
    /// Says whether programs of `jq()` are some.
    jq: Jq,
    ids: HashMap<u64, String>,
    /// Where each of `rules` is named.
    names: Vec<Span>,
    unread_sinks: Vec<String>,
}

struct CheckedSink<'c> {
    decl: SinkDecl,
    name_span: Span,
    /// `None` when the connector is unknown, which has been said.
    schema: Option<&'c ConnectorSchema>,
    /// Where each option was given.
    spans: Vec<(String, Span)>,
}

/// What a rule may know of the sink it names.
struct Destination<'d> {
    target: TargetSchema,
    sink: Option<&'d CheckedSink<'d>>,
}

impl Checker<'_> {
    fn mistakes(&mut self, file: usize, mistakes: Vec<Mistake>) {
        for (span, message, hint) in mistakes {
            let diagnostic = Diagnostic::new(&self.sources[file], span, Severity::Error, message, hint);
            self.found.push((file, diagnostic));
        }
    }

    fn mistake(&mut self, file: usize, span: Span, message: impl Into<String>, hint: Option<String>) {
        self.mistakes(file, vec![(span, message.into(), hint)]);
    }

    fn warn(&mut self, file: usize, span: Span, message: String, hint: Option<String>) {
        let diagnostic = Diagnostic::new(&self.sources[file], span, Severity::Warning, message, hint);
        self.found.push((file, diagnostic));
    }

    fn finish(mut self) -> Result<RuleSet, Vec<Diagnostic>> {
        self.warn_of_waiting();
        self.found.sort_by_key(|(file, d)| (*file, d.span.start));
        self.found.dedup();
        let diagnostics: Vec<Diagnostic> = self.found.into_iter().map(|(_, d)| d).collect();
        if diagnostics.iter().any(|d| d.severity == Severity::Error) {
            return Err(diagnostics);
        }
        let paths = Arc::new(self.paths);
        let schemas = Arc::new(self.schemas);
        let mut rules = self.rules;
        for rule in &mut rules {
            rule.program.paths = Arc::clone(&paths);
            rule.program.schemas = Arc::clone(&schemas);
        }
        shared::number(&mut rules);
        let sinks = self.sinks.into_iter().map(|s| s.decl).collect();
        Ok(RuleSet { sinks, rules, warnings: diagnostics })
    }

    /// `ack` has consequences beyond its rule: they are said here rather than found out in the field.
    fn warn_of_waiting(&mut self) {
        /// Pairs of rules to compare; beyond it nobody reads the warnings.
        const MAX_PAIRS: usize = 1 << 20;
        let mut warnings = Vec::new();
        let waiting: Vec<usize> = (0..self.rules.len()).filter(|&i| self.rules[i].ack == Ack::Sink).collect();
        let pairs = waiting.iter().flat_map(|&w| (0..self.rules.len()).map(move |o| (w, o))).take(MAX_PAIRS);
        let mut last = usize::MAX;
        for (w, o) in pairs {
            let (waits, other) = (&self.rules[w], &self.rules[o]);
            let meet = || waits.filters.iter().any(|a| other.filters.iter().any(|b| filters_meet(a, b)));
            if w != last && matches!(other.ack, Ack::Stored | Ack::Local) && meet() {
                last = w;
                let message = format!(
                    "`ack = 'sink'` makes messages that `{}` also takes wait for the sink of `{}`",
                    other.name, waits.name
                );
                let hint = "the slowest destination decides when a publisher is answered".to_owned();
                warnings.push((waits.file, self.names[w], message, hint));
            }
        }
        for (rule, span) in self.rules.iter().zip(&self.names).filter(|(r, _)| r.ack == Ack::Local) {
            let message = "`ack = 'local'` answers after this node's commit alone".to_owned();
            let hint = "in a cluster, what this node has acknowledged is lost with its disk".to_owned();
            warnings.push((rule.file, *span, message, hint));
        }
        for (file, span, message, hint) in warnings {
            self.warn(file, span, message, Some(hint));
        }
    }

    // === CREATE SINK ===

    fn sink(&mut self, file: usize, span: Span, name: &Name, settings: &[Setting]) {
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

    fn unknown_option<'k>(
        &mut self,
        file: usize,
        key: &Name,
        of: &str,
        known: impl Iterator<Item = &'k str> + Clone,
    ) {
        let near = nearest(&key.text, known.clone()).map(|n| format!("; did you mean `{n}`?"));
        let list = known.collect::<Vec<_>>().join(", ");
        let message = format!("{of} has no option `{}`{}", key.text, near.unwrap_or_default());
        self.mistake(file, key.span, message, Some(format!("options: {list}")));
    }

    fn duplicates(&mut self, file: usize, settings: &[Setting]) {
        for (i, setting) in settings.iter().enumerate() {
            if settings[..i].iter().any(|s| s.key.text == setting.key.text) {
                self.mistake(file, setting.span, format!("`{}` is given twice", setting.key.text), None);
            }
        }
    }

    fn place(&self, file: usize, span: Span) -> String {
        let d = Diagnostic::new(&self.sources[file], span, Severity::Error, String::new(), None);
        format!("{}:{}:{}", d.file, d.line, d.column)
    }

    // === CREATE SCHEMA ===

    fn schema(&mut self, file: usize, name: &Name, settings: &[Setting]) {
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

    // === CREATE RULE ===

    fn rule(
        &mut self,
        file: usize,
        span: Span,
        (name, dialect): (&Name, Dialect),
        settings: &[Setting],
        inserts: &[InsertInto],
        query: &Query,
    ) {
        let id = rule_id(&name.text);
        if let Some(other) = self.ids.insert(id, name.text.clone()) {
            let message = if other == name.text {
                format!("the rule `{}` exists already", name.text)
            } else {
                format!("the rules `{}` and `{other}` have the same hash; rename one", name.text)
            };
            self.mistake(file, name.span, message, None);
        }
        let filters = self.filters(file, query, dialect);
        let settings = self.rule_settings(file, settings);
        if inserts.len() > MAX_INSERTS {
            let message = format!("a rule has at most {MAX_INSERTS} inserts");
            self.mistake(file, inserts[MAX_INSERTS].span, message, None);
            return;
        }
        let text = self.sources[file].text;
        let mut paths = std::mem::take(&mut self.paths);
        let schemas = std::mem::take(&mut self.schemas);
        let mut jq = std::mem::take(&mut self.jq);
        let mut planner: Box<dyn Plans + '_> = match dialect {
            Dialect::Emqx => {
                Box::new(emqx::plan::Planner::new(&name.text, query, text, &schemas, &mut paths, &mut jq))
            }
            _ => Box::new(Planner::new(query, text, self.host, &schemas, &mut paths, &mut jq)),
        };
        let mut found: Vec<Mistake> = Vec::new();
        let mut codes: Vec<InsertCode> = Vec::new();
        let mut checked: Vec<Insert> = Vec::new();
        for (i, insert) in inserts.iter().enumerate() {
            let ordinal = inserts[..i].iter().filter(|other| other.sink.text == insert.sink.text).count();
            let ordinal = u32::try_from(ordinal).unwrap_or(u32::MAX);
            if let Some((insert, code)) = self.insert(insert, ordinal, &schemas, &mut *planner, &mut found) {
                checked.push(insert);
                codes.push(code);
            }
        }
        let (mut program, mut mistakes) = planner.finish();
        found.append(&mut mistakes);
        self.paths = paths;
        self.schemas = schemas;
        self.jq = jq;
        self.mistakes(file, found);
        for insert in inserts {
            self.duplicates(file, &insert.settings);
        }
        program.inserts = codes;
        program.format = settings.format;
        self.names.push(name.span);
        self.rules.push(Rule {
            name: name.text.clone(),
            id,
            dialect,
            filters,
            inserts: checked,
            ack: settings.ack,
            qos0: settings.qos0,
            durability: settings.durability,
            enabled: settings.enabled,
            file,
            span,
            text: span.of(text).to_owned(),
            program,
        });
    }

    fn filters(&mut self, file: usize, query: &Query, dialect: Dialect) -> Vec<String> {
        let mut filters: Vec<String> = Vec::new();
        if query.from.len() > MAX_FILTERS {
            let message = format!("a rule has at most {MAX_FILTERS} topic filters");
            self.mistake(file, query.from[MAX_FILTERS].span, message, None);
        }
        for source in query.from.iter().take(MAX_FILTERS) {
            let is_source = SOURCES.iter().any(|prefix| source.text.starts_with(prefix));
            // A case of `rules eval` may have any event.
            if is_source && self.bare && dialect == Dialect::Emqx {
                filters.push(source.text.clone());
            } else if let (Some((message, hint)), Dialect::Emqx) = (no_event(&source.text), dialect) {
                // EMQX takes any name: a rule that waits for nothing there does so here.
                self.warn(file, source.span, message, Some(hint));
                filters.push(source.text.clone());
            } else if let Some((message, hint)) = filter_problem(&source.text) {
                self.mistake(file, source.span, message, hint);
            } else if filters.contains(&source.text) {
                self.warn(file, source.span, "this filter stands here twice".to_owned(), None);
            } else {
                if source.text.starts_with(events::PREFIX) && events::raised(&source.text).next().is_none() {
                    let message = "this broker never raises this event".to_owned();
                    self.warn(file, source.span, message, None);
                }
                filters.push(source.text.clone());
            }
        }
        filters
    }

    fn rule_settings(&mut self, file: usize, settings: &[Setting]) -> RuleSettings {
        const KNOWN: [&str; 6] = ["dialect", "ack", "qos0", "durability", "enabled", "format"];
        const LATER: [&str; 4] = ["time", "timestamp", "late", "dedupe_for"];
        let mut out = RuleSettings { enabled: true, ..RuleSettings::default() };
        self.duplicates(file, settings);
        for setting in settings {
            let word = match &setting.value {
                Literal::Text(text) => text.as_str(),
                _ => "",
            };
            let fault = match setting.key.text.as_str() {
                // Others were refused before the body was read.
                "dialect" => None,
                "ack" => match word {
                    "stored" => set(&mut out.ack, Ack::Stored),
                    "sink" => set(&mut out.ack, Ack::Sink),
                    "local" => set(&mut out.ack, Ack::Local),
                    "none" => set(&mut out.ack, Ack::None),
                    _ => Some("'stored', 'sink', 'local' or 'none'"),
                },
                "qos0" => match word {
                    "memory" => set(&mut out.qos0, Qos0::Memory),
                    "spool" => set(&mut out.qos0, Qos0::Spool),
                    "drop" => set(&mut out.qos0, Qos0::Drop),
                    _ => Some("'memory', 'spool' or 'drop'"),
                },
                "durability" => match word {
                    "exact" => set(&mut out.durability, Some(Durability::Exact)),
                    "checkpoint" => set(&mut out.durability, Some(Durability::Checkpoint)),
                    _ => Some("'exact' or 'checkpoint'"),
                },
                "enabled" => match &setting.value {
                    Literal::Bool(enabled) => set(&mut out.enabled, *enabled),
                    _ => Some("TRUE or FALSE"),
                },
                "format" => match &setting.value {
                    Literal::Text(name) => match self.schemas.find(name) {
                        // As all payloads are read.
                        Some((_, Codec::Json)) => None,
                        Some((_, codec)) if codec.incomplete().is_some() => {
                            let why = codec.incomplete().unwrap_or_default();
                            let message = format!("the schema '{name}' does not do: {why}");
                            self.mistake(file, setting.span, message, None);
                            None
                        }
                        Some((id, codec)) => set(&mut out.format, Some(Payload { id, codec })),
                        None => {
                            self.mistakes(file, vec![self.schemas.unknown(name, false, setting.span)]);
                            None
                        }
                    },
                    _ => Some("the name of a format in quotes"),
                },
                later if LATER.contains(&later) => {
                    let message = format!("the option `{later}` is not yet implemented (windows)");
                    self.mistake(file, setting.key.span, message, None);
                    None
                }
                _ => {
                    self.unknown_option(file, &setting.key, "a rule", KNOWN.into_iter());
                    None
                }
            };
            if let Some(expected) = fault {
                self.mistake(file, setting.span, format!("`{}` takes {expected}", setting.key.text), None);
            }
        }
        out
    }

    /// Checks one insert and compiles its templates. Reads `self` only: mistakes go to `found`.
    fn insert(
        &self,
        insert: &InsertInto,
        ordinal: u32,
        schemas: &Schemas,
        planner: &mut dyn Plans,
        found: &mut Vec<Mistake>,
    ) -> Option<(Insert, InsertCode)> {
        let Some(to) = self.destination(&insert.sink.text) else {
            let known: Vec<&str> = self.host.builtins.iter().map(|b| b.name).collect();
            let known: Vec<&str> =
                known.into_iter().chain(self.sinks.iter().map(|s| s.decl.name.as_str())).collect();
            let near = nearest(&insert.sink.text, known.iter().copied());
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            let message = format!("unknown sink `{}`{near}", insert.sink.text);
            found.push((insert.sink.span, message, Some(format!("sinks: {}", known.join(", ")))));
            return None;
        };
        let mut out = Insert { sink: insert.sink.text.clone(), qos: None, retain: None };
        let mut code = InsertCode {
            kind: to.target.kind,
            qos: None,
            retain: None,
            target: None,
            key: None,
            payload: None,
            options: Vec::new(),
            format: None,
            properties: Vec::new(),
            ordinal,
        };
        for setting in &insert.settings {
            let span = setting.span;
            let fault = match (setting.key.text.as_str(), &setting.value) {
                ("qos", Literal::Int(qos @ 0..=2)) => {
                    out.qos = u8::try_from(*qos).ok();
                    None
                }
                ("qos", _) => Some("0, 1 or 2"),
                ("retain", Literal::Bool(retain)) => {
                    out.retain = Some(*retain);
                    None
                }
                ("retain", _) => Some("TRUE or FALSE"),
                ("payload", Literal::Text(text)) => {
                    code.payload = Some(planner.template(text, span, "the payload"));
                    None
                }
                ("key", Literal::Text(text)) => {
                    code.key = Some(planner.template(text, span, "the key"));
                    None
                }
                ("payload" | "key", _) => Some("a template in quotes"),
                // As EMQX's republish has it; it is so.
                ("direct_dispatch", Literal::Bool(false)) => None,
                ("direct_dispatch", _) => {
                    let message = "what a rule publishes goes to the other rules like any message".to_owned();
                    let hint =
                        "leave `direct_dispatch` out; rules that shall not see it name other topics in FROM";
                    found.push((span, message, Some(hint.to_owned())));
                    None
                }
                ("format", Literal::Text(name)) => {
                    match schemas.find(name) {
                        // As all rows are written.
                        Some((_, Codec::Json)) => {}
                        Some((_, codec)) => {
                            match codec.incomplete() {
                                Some(why) => {
                                    found.push((
                                        span,
                                        format!("the schema '{name}' does not do: {why}"),
                                        None,
                                    ));
                                }
                                None => left_out(&codec, name, planner, found),
                            }
                            code.format = Some(codec);
                        }
                        None => found.push(schemas.unknown(name, false, span)),
                    }
                    self.formatted(insert, to.sink, setting, found);
                    None
                }
                ("format", _) => Some("the name of a format in quotes"),
                (name, value) if properties::is_option(name) => {
                    if to.target.kind != TargetKind::Topic {
                        let message = format!("the sink `{}` publishes no MQTT message", insert.sink.text);
                        found.push((setting.key.span, message, None));
                    }
                    match properties::option(name, value, span, planner) {
                        Ok(property) => {
                            code.properties.push(property);
                            None
                        }
                        Err(expected) => Some(expected),
                    }
                }
                (unknown, _) => {
                    const OWN: [&str; 5] = ["qos", "retain", "payload", "key", "format"];
                    let known: Vec<&str> = OWN.into_iter().chain(properties::OPTIONS).collect();
                    let near =
                        nearest(unknown, known.iter().copied()).map(|n| format!("; did you mean `{n}`?"));
                    let message =
                        format!("INSERT INTO has no option `{unknown}`{}", near.unwrap_or_default());
                    let hint = format!("options: {}", known.join(", "));
                    found.push((setting.key.span, message, Some(hint)));
                    None
                }
            };
            if let Some(expected) = fault {
                found.push((span, format!("`{}` takes {expected}", setting.key.text), None));
            }
        }
        if let Some(target) = &insert.target {
            if to.target.kind == TargetKind::None {
                found.push((target.span, format!("the sink `{}` has no targets", insert.sink.text), None));
            }
            if let Ok(pieces) = planner.pieces(&target.text) {
                topic_target(&pieces, target.span, to.target.kind, found);
            }
            let template = planner.template(&target.text, target.span, "the target");
            code.target = Some(fixed(template, to.target.kind));
        }
        if let Some(sink) = to.sink {
            self.sink_templates(sink, insert, &to.target, &mut code, planner);
            self.table_columns(sink, code.payload.is_some(), planner, found);
        }
        if to.target.required && code.target.is_none() {
            let what = if to.target.kind == TargetKind::Topic { "topic" } else { "name" };
            let message = format!("the sink `{}` needs a target", insert.sink.text);
            let option =
                to.target.option.map(|o| format!(" or give the sink `{o} = '...'`")).unwrap_or_default();
            let hint = format!("write `{}.\"{what}\"`{option}", insert.sink.text);
            found.push((insert.sink.span, message, Some(hint)));
        }
        code.qos = out.qos;
        code.retain = out.retain;
        Some((out, code))
    }

    /// What else speaks against an INSERT's `format`.
    fn formatted(
        &self,
        insert: &InsertInto,
        sink: Option<&CheckedSink<'_>>,
        setting: &Setting,
        found: &mut Vec<Mistake>,
    ) {
        if insert.settings.iter().any(|s| s.key.text == "payload") {
            let message = "`format` and `payload` are two ways to write the body".to_owned();
            found.push((setting.key.span, message, Some("leave one of them out".to_owned())));
        }
        let schema = sink.and_then(|sink| sink.schema);
        if schema.is_some_and(|s| s.options.iter().any(|o| o.kind == OptionKind::Columns)) {
            let message = format!("the sink `{}` stores columns, not bytes", insert.sink.text);
            found.push((setting.key.span, message, None));
        }
    }

    fn destination(&self, name: &str) -> Option<Destination<'_>> {
        if let Some(builtin) = self.host.builtins.iter().find(|b| b.name == name) {
            return Some(Destination { target: builtin.target, sink: None });
        }
        if let Some(sink) = self.sinks.iter().find(|s| s.decl.name == name) {
            let unknown = TargetSchema { kind: TargetKind::Name, option: None, required: false };
            return Some(Destination { target: sink.schema.map_or(unknown, |s| s.target), sink: Some(sink) });
        }
        // A case of `rules eval` may insert where it likes.
        let lenient = self.bare || self.unread_sinks.iter().any(|s| s == name);
        let anything = TargetSchema { kind: TargetKind::Name, option: None, required: false };
        lenient.then_some(Destination { target: anything, sink: None })
    }

    /// Templates that the sink's options give where the insert gives none.
    fn sink_templates(
        &self,
        sink: &CheckedSink<'_>,
        insert: &InsertInto,
        target: &TargetSchema,
        code: &mut InsertCode,
        planner: &mut dyn Plans,
    ) {
        let Some(schema) = sink.schema else { return };
        for option in &schema.options {
            let is_target = target.option == Some(option.name);
            let text = match sink.decl.option(option.name) {
                Some(OptionValue::Template(text)) => text,
                Some(OptionValue::Text(text)) if is_target => text,
                _ => continue,
            };
            let given =
                if is_target { code.target.is_some() } else { option.name == "key" && code.key.is_some() };
            if given {
                continue;
            }
            let of = format!("`{}` of the sink `{}`", option.name, sink.decl.name);
            // A mistake is shown where the rule names the sink: other rules may have the column.
            let template = if option.kind == OptionKind::Template {
                planner.template(text, insert.sink.span, &of)
            } else {
                Template { parts: vec![Part::Text(text.clone())] }
            };
            if is_target {
                code.target = Some(fixed(template, target.kind));
            } else if option.name == "key" {
                code.key = Some(template);
            } else {
                code.options.push((option.name.into(), template));
            }
        }
    }

    /// A row's columns must be columns of the table, where those are listed.
    fn table_columns(
        &self,
        sink: &CheckedSink<'_>,
        has_payload: bool,
        planner: &dyn Plans,
        found: &mut Vec<Mistake>,
    ) {
        let Some(schema) = sink.schema else { return };
        let listed = schema.options.iter().find(|o| o.kind == OptionKind::Columns);
        let Some(OptionValue::Text(listed)) = listed.and_then(|o| sink.decl.option(o.name)) else { return };
        if has_payload || planner.has_star() {
            return;
        }
        let names = column_names(listed);
        for (column, span) in planner.row_columns() {
            if !names.iter().any(|n| n == column) {
                let near = nearest(column, names.iter().map(String::as_str));
                let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
                let message =
                    format!("the table of the sink `{}` has no column `{column}`{near}", sink.decl.name);
                let place = sink.spans.iter().find(|(name, _)| name == "columns");
                let place = place.map(|(_, span)| self.place(sink.decl.file, *span));
                let hint = place.map(|p| format!("columns: {} ({p})", names.join(", ")));
                found.push((span, message, hint));
            }
        }
    }
}

/// What is certainly wrong with a topic, before anything is rendered.
fn topic_target(pieces: &[Piece], span: Span, kind: TargetKind, found: &mut Vec<Mistake>) {
    if kind != TargetKind::Topic {
        return;
    }
    if pieces.is_empty() {
        found.push((span, "the target is empty".to_owned(), None));
    }
    if pieces.iter().any(|p| matches!(p, Piece::Text(t) if t.contains(['+', '#', '\0']))) {
        found.push((span, "a topic to publish to has no wildcards".to_owned(), None));
    }
    if let Some(Piece::Text(start)) = pieces.first()
        && forbidden_topic(start)
    {
        found.push((span, "rules may not publish to `$SYS/` or `$ferrule/`".to_owned(), None));
    }
}

/// A target without anything to fill in is made once.
fn fixed(template: Template, kind: TargetKind) -> Target {
    match template.parts.as_slice() {
        [Part::Text(text)] if kind != TargetKind::Topic || publishable(text) => {
            Target::Fixed(text.as_str().into())
        }
        _ => Target::Template(template),
    }
}

#[derive(Default)]
struct RuleSettings {
    ack: Ack,
    qos0: Qos0,
    durability: Option<Durability>,
    enabled: bool,
    format: Option<Payload>,
}

/// Columns of the row that its format would leave out.
fn left_out(codec: &Codec, name: &str, planner: &dyn Plans, found: &mut Vec<Mistake>) {
    let Some(members) = codec.members().filter(|_| !planner.has_star()) else { return };
    for (column, span) in planner.row_columns() {
        if !members.contains(&column) {
            let near = nearest(column, members.iter().copied()).map(|n| format!("; did you mean `{n}`?"));
            let message = format!("the schema '{name}' has no `{column}`{}", near.unwrap_or_default());
            found.push((span, message, Some(format!("it has: {}", members.join(", ")))));
        }
    }
}

fn set<T>(to: &mut T, value: T) -> Option<&'static str> {
    *to = value;
    None
}

/// Topics that only Ferrule itself publishes to, also behind a delay (`$delayed/60/$SYS/x`).
pub(crate) fn forbidden_topic(mut topic: &str) -> bool {
    while let Some((_, delayed)) = topic.strip_prefix("$delayed/").and_then(|rest| rest.split_once('/')) {
        topic = delayed;
    }
    ["$SYS", "$ferrule"]
        .iter()
        .any(|name| topic.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('/')))
}

/// What to say of an event in FROM that is none.
fn no_event(filter: &str) -> Option<(String, String)> {
    if !filter.starts_with(events::PREFIX) || events::is_known(filter) {
        return None;
    }
    let near = nearest(filter, events::topics()).map(|near| format!("did you mean `{near}`?"));
    let all = || "docs/rules.md has the list: `$events/client/connected`, ...".to_owned();
    Some((format!("there is no event `{filter}`"), near.unwrap_or_else(all)))
}

/// Other sources than topics that EMQX has.
const SOURCES: [&str; 2] = ["$bridges/", "$sources/"];

/// What is wrong with a topic filter in FROM: MQTT 5.0 section 4.7.
fn filter_problem(filter: &str) -> Option<(String, Option<String>)> {
    let wrong = |message: &str| Some((message.to_owned(), None));
    if filter.is_empty() || filter.len() > 65_535 {
        return wrong("a topic filter has 1 to 65,535 bytes");
    }
    if filter.contains('\0') {
        return wrong("a topic filter cannot hold NUL");
    }
    for source in SOURCES {
        if filter.starts_with(source) {
            let name = filter.strip_prefix(source).unwrap_or_default().replace(':', "/");
            let hint = format!(
                "let that broker or connector publish to this one, say below `from/{name}`, and write FROM \"from/{name}/#\""
            );
            let message = format!("`{source}...` is not there: no connector brings messages in");
            return Some((message, Some(hint)));
        }
    }
    if filter.starts_with(events::PREFIX) {
        return no_event(filter).map(|(message, hint)| (message, Some(hint)));
    }
    if filter.starts_with("$share/") || filter.starts_with("$exclusive/") {
        let hint = "write the filter alone; a rule sees every message once".to_owned();
        return Some(("a rule cannot share a subscription".to_owned(), Some(hint)));
    }
    let last = filter.split('/').count() - 1;
    for (i, level) in filter.split('/').enumerate() {
        if level.contains('#') && (level != "#" || i != last) {
            let hint = "`#` stands alone in the last level".to_owned();
            return Some((format!("`{filter}` is no topic filter"), Some(hint)));
        }
        if level.contains('+') && level != "+" {
            let hint = "`+` stands alone in its level".to_owned();
            return Some((format!("`{filter}` is no topic filter"), Some(hint)));
        }
    }
    None
}

/// Whether a valid filter matches a topic: MQTT 5.0 sections 4.7.1 and 4.7.2.
pub(crate) fn filter_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether some topic matches both of two valid filters.
fn filters_meet(a: &str, b: &str) -> bool {
    let wild = |f: &str| f.starts_with(['+', '#']);
    if (wild(a) && b.starts_with('$')) || (wild(b) && a.starts_with('$')) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

/// The names in `'ts timestamptz, temp numeric(10, 2)'`.
fn column_names(columns: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut start, mut quoted) = (0u32, 0, false);
    let ends = columns.char_indices().chain([(columns.len(), ',')]);
    for (at, ch) in ends {
        match ch {
            '"' => quoted = !quoted,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if (depth == 0 && !quoted) || at == columns.len() => {
                let column = columns[start..at].trim();
                let name = match column.strip_prefix('"').and_then(|c| c.split_once('"')) {
                    Some((name, _)) => name,
                    None => column.split_whitespace().next().unwrap_or(""),
                };
                if !name.is_empty() {
                    names.push(name.to_owned());
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

/// A schema's default; one that does not fit its own kind is as good as none (a test of the host's finds it).
fn default_value(option: &OptionSchema, default: &str) -> Option<OptionValue> {
    let literal = match option.kind {
        OptionKind::Int => Literal::Int(default.parse().ok()?),
        OptionKind::Bool => Literal::Bool(default.eq_ignore_ascii_case("true")),
        _ => Literal::Text(default.to_owned()),
    };
    option_value(option.kind, &literal).ok()
}

/// A value of its kind.
///
/// # Errors
/// What was expected instead.
pub(crate) fn option_value(kind: OptionKind, value: &Literal) -> Result<OptionValue, String> {
    Ok(match (kind, value) {
        (OptionKind::Text, Literal::Text(text)) => OptionValue::Text(text.clone()),
        (OptionKind::Text, _) => return Err("text in single quotes".to_owned()),
        (OptionKind::Columns, Literal::Text(text)) if !column_names(text).is_empty() => {
            OptionValue::Text(text.clone())
        }
        (OptionKind::Columns, _) => return Err("columns as 'name type, name type'".to_owned()),
        (OptionKind::Word(words), Literal::Text(text)) if words.contains(&text.as_str()) => {
            OptionValue::Text(text.clone())
        }
        (OptionKind::Word(words), value) => {
            let list = words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(", ");
            let near = match value {
                Literal::Text(text) => nearest(text, words.iter().copied()),
                _ => None,
            };
            let near = near.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
            return Err(format!("one of {list}{near}"));
        }
        (OptionKind::Int, Literal::Int(n)) => OptionValue::Int(*n),
        (OptionKind::Int, _) => return Err("a whole number".to_owned()),
        (OptionKind::Bool, Literal::Bool(b)) => OptionValue::Bool(*b),
        (OptionKind::Bool, _) => return Err("TRUE or FALSE".to_owned()),
        (OptionKind::Duration, Literal::Text(text)) => {
            let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
            OptionValue::DurationMs(with_unit(text, &units).ok_or_else(duration_expected)?)
        }
        (OptionKind::Duration, _) => return Err(duration_expected()),
        (OptionKind::Size, Literal::Text(text)) => {
            let units = [
                ("", 1),
                ("B", 1),
                ("kB", 1000),
                ("KB", 1000),
                ("MB", 1_000_000),
                ("GB", 1_000_000_000),
                ("KiB", 1 << 10),
                ("MiB", 1 << 20),
                ("GiB", 1 << 30),
            ];
            OptionValue::SizeBytes(with_unit(text, &units).ok_or_else(size_expected)?)
        }
        (OptionKind::Size, Literal::Int(n)) => {
            OptionValue::SizeBytes(u64::try_from(*n).map_err(|_| size_expected())?)
        }
        (OptionKind::Size, _) => return Err(size_expected()),
        (OptionKind::Template, Literal::Text(text)) => {
            template::parse(text).map_err(|problem| format!("a template, and {problem}"))?;
            OptionValue::Template(text.clone())
        }
        (OptionKind::Template, _) => return Err("a template in single quotes".to_owned()),
        (OptionKind::Secret, Literal::Text(text)) => OptionValue::Secret(text.clone()),
        (OptionKind::Secret, _) => return Err("'env:NAME', 'file:PATH' or text in single quotes".to_owned()),
    })
}

fn duration_expected() -> String {
    "a duration with a unit: '250ms', '5s', '10m', '2h' or '30d'".to_owned()
}

fn size_expected() -> String {
    "a size: bytes, or '64KiB', '4MiB', '1GB'".to_owned()
}

/// `12s` by a table of units; whole numbers only, so that nothing is rounded.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_and_meet() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("+", "/a", false),
            ("/+", "/a", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
        ] {
            assert_eq!(filter_matches(filter, topic), expected, "{filter} {topic}");
        }
        for (a, b, expected) in [
            ("a/+/c", "a/b/+", true),
            ("a/#", "a", true),
            ("a/#", "+/b/c", true),
            ("a/b", "a/b/c", false),
            ("a/+", "b/+", false),
            ("#", "$SYS/x", false),
            ("$SYS/#", "$SYS/+", true),
        ] {
            assert_eq!(filters_meet(a, b), expected, "{a} {b}");
            assert_eq!(filters_meet(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn durations_and_sizes() {
        let value = |kind, text: &str| option_value(kind, &Literal::Text(text.to_owned())).ok();
        for (text, ms) in
            [("250ms", 250), ("5s", 5000), ("10 m", 600_000), ("2h", 7_200_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(value(OptionKind::Duration, text), Some(OptionValue::DurationMs(ms)), "{text}");
        }
        for (text, bytes) in [("17", 17), ("64KiB", 65_536), ("4 MiB", 4 << 20), ("1GB", 1_000_000_000)] {
            assert_eq!(value(OptionKind::Size, text), Some(OptionValue::SizeBytes(bytes)), "{text}");
        }
        for text in ["", "5", "s", "1.5s", "-1s", "99999999999999999999s", "9999999999999999d", "5x"] {
            assert_eq!(value(OptionKind::Duration, text), None, "{text}");
        }
    }

    #[test]
    fn names_of_columns() {
        assert_eq!(
            column_names("ts timestamptz, temp numeric(10, 2),\"a, b\" text ,, x"),
            ["ts", "temp", "a, b", "x"]
        );
    }
}
