//! Statements to a [`RuleSet`]: sinks and their options, rules and their inserts, names and types.
//!
//! One [`Checker`] goes through all files twice: first what is declared (`declared`), then the rules (here; FROM is
//! `from`, INSERT INTO `insert`). It goes on behind every mistake, so that all of them are told.

mod declared;
mod from;
mod insert;
mod options;

use std::collections::HashMap;
use std::sync::Arc;

use crate::diagnostic::nearest;
use crate::emqx;
use crate::events;
use crate::formats::{Codec, Payload, Schemas};
use crate::jq::Jq;
use crate::paths::Paths;
use crate::plan::{Mistake, Planner, Plans};
use crate::program::InsertCode;
use crate::shared;
use crate::sql::ast::{InsertInto, Literal, Name, Query, Setting, Statement, StatementKind};
use crate::sql::statement::statements;
use crate::{
    Ack, ConnectorSchema, Diagnostic, Dialect, Durability, Host, Insert, Priority, Qos0, Rule, RuleSet,
    Severity, SinkDecl, Source, Span, rule_id,
};
use from::{SOURCES, filter_problem, filters_meet, no_event};
pub(crate) use from::{filter_matches, forbidden_topic};
pub(crate) use options::option_value;

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
            priority: settings.priority,
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
        const KNOWN: [&str; 7] = ["dialect", "ack", "qos0", "priority", "durability", "enabled", "format"];
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
                "priority" => match word {
                    "high" => set(&mut out.priority, Priority::High),
                    "normal" => set(&mut out.priority, Priority::Normal),
                    "low" => set(&mut out.priority, Priority::Low),
                    _ => Some("'high', 'normal' or 'low'"),
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
}

#[derive(Default)]
struct RuleSettings {
    ack: Ack,
    qos0: Qos0,
    priority: Priority,
    durability: Option<Durability>,
    enabled: bool,
    format: Option<Payload>,
}

fn set<T>(to: &mut T, value: T) -> Option<&'static str> {
    *to = value;
    None
}
