//! INSERT INTO: where rows go, and the templates that are made for that.

use super::from::forbidden_topic;
use super::options::column_names;
use super::{CheckedSink, Checker};
use crate::diagnostic::nearest;
use crate::formats::{Codec, Schemas};
use crate::plan::{Mistake, Plans};
use crate::program::{InsertCode, Part, Target, Template};
use crate::properties;
use crate::row::publishable;
use crate::sql::ast::{InsertInto, Literal, Setting};
use crate::template::Piece;
use crate::{Insert, OptionKind, OptionValue, Span, TargetKind, TargetSchema};

/// What a rule may know of the sink it names.
struct Destination<'d> {
    target: TargetSchema,
    sink: Option<&'d CheckedSink<'d>>,
}

impl Checker<'_> {
    /// Checks one insert and compiles its templates. Reads `self` only: mistakes go to `found`.
    pub(super) fn insert(
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
