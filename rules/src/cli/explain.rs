//! `rules explain`: what each rule subscribes to, reads, keeps and writes.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;

use super::{EXIT_OK, Format, with_rules};
use crate::program::ConditionPart;
use crate::{Dialect, Host, Keeps, Rule, state};

/// `rules explain FILE`: topic filters, fields read, state kept, where rows go. As JSON one object a rule and line.
///
/// # Errors
/// When `out` cannot be written.
pub fn explain(files: &[PathBuf], host: &Host, format: Format, out: &mut dyn Write) -> io::Result<i32> {
    with_rules(files, host, format, out, |set, _, out| {
        for rule in &set.rules {
            match format {
                Format::Text => print(rule, out)?,
                Format::Json => writeln!(out, "{}", json(rule))?,
            }
        }
        Ok(EXIT_OK)
    })
}

/// What FOREACH goes through, and the parts of INCASE.
fn foreach(rule: &Rule) -> Option<(&str, &[ConditionPart])> {
    let each = rule.program.each.as_ref()?;
    Some((&each.text, &each.incase_parts))
}

fn print(rule: &Rule, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "rule {} (id {})", rule.name, rule.id)?;
    let filters = rule.filters.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", ");
    writeln!(out, "  from      {filters}")?;
    print_condition("where", &rule.program.condition_parts, out)?;
    if let Some((collection, incase)) = foreach(rule) {
        writeln!(out, "  foreach   {collection}")?;
        print_condition("incase", incase, out)?;
    }
    let fields = match rule.fields() {
        [] if rule.program.format.is_some() && rule.program.reads_payload() => "the whole payload".to_owned(),
        [] => "nothing: the payload is not parsed".to_owned(),
        fields => fields.join(", "),
    };
    match &rule.program.format {
        None => writeln!(out, "  reads     {fields}")?,
        Some(format) => writeln!(out, "  reads     {fields} ({:?})", format.codec)?,
    }
    for (insert, code) in rule.inserts.iter().zip(&rule.program.inserts) {
        let what = match &code.format {
            Some(codec) => format!("rows as {codec:?}"),
            None if rule.passes_payload() => "the payload untouched".to_owned(),
            None => "rows".to_owned(),
        };
        writeln!(out, "  writes    {what} to {}", insert.sink)?;
    }
    let state = match rule.keeps() {
        None => "none (0 bytes)".to_owned(),
        Some(Keeps::Own) => format!("its own (at most {} bytes)", state::BYTES_MAX),
        Some(Keeps::Shared) => format!("shared by all rules (at most {} bytes)", state::BYTES_MAX),
    };
    writeln!(out, "  state     {state}, {} operations", rule.program.ops.len())
}

fn print_condition(word: &str, parts: &[ConditionPart], out: &mut dyn Write) -> io::Result<()> {
    for (i, part) in parts.iter().enumerate() {
        let word = if i == 0 { word } else { "  and" };
        writeln!(out, "  {word:<9} {}", part.text)?;
    }
    Ok(())
}

fn json(rule: &Rule) -> serde_json::Value {
    let dialect = match rule.dialect {
        Dialect::Ferrule => "ferrule",
        Dialect::Emqx => "emqx",
        Dialect::Ekuiper => "ekuiper",
    };
    let texts = |parts: &[ConditionPart]| parts.iter().map(|part| part.text.clone()).collect::<Vec<_>>();
    let mut object = json!({
        "rule": rule.name, "id": rule.id, "dialect": dialect, "enabled": rule.enabled, "from": rule.filters,
        "where": texts(&rule.program.condition_parts),
    });
    if let Some((collection, incase)) = foreach(rule) {
        object["foreach"] = json!(collection);
        object["incase"] = json!(texts(incase));
    }
    object["reads"] = json!(rule.fields());
    object["passes_payload"] = json!(rule.passes_payload());
    object["writes"] = rule.inserts.iter().map(|insert| json!(insert.sink)).collect();
    object["state_bytes"] = json!(rule.keeps().map_or(0, |_| state::BYTES_MAX));
    object["operations"] = json!(rule.program.ops.len());
    object
}
