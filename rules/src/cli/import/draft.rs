//! What is to be printed: sinks and rules that were mapped, and what was not, with the reason.
//!
//! Each statement is loaded before it is printed, as a broker would: what is refused becomes a comment with the
//! diagnostic's words. So what comes out always passes `rules check`.

use std::fmt::Write as _;

use crate::sql::expr::RESERVED;
use crate::{Host, RuleSet, Severity, Source, load};

/// The longest original that is shown in a comment.
const MAX_ORIGINAL: usize = 4096;

/// Something that has no counterpart here.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lost {
    /// `action http:hook`.
    pub(super) what: String,
    pub(super) reason: String,
    /// As it was; secrets blotted out.
    pub(super) original: String,
}

/// A `CREATE SINK`.
#[derive(Debug, Default)]
pub(super) struct SinkDraft {
    /// Unique among the sinks.
    pub(super) name: String,
    /// What it comes from.
    pub(super) from: String,
    /// Names and values; a value is written as it stands in WITH.
    pub(super) options: Vec<(String, String)>,
    /// What is left for the reader to do.
    pub(super) todo: Vec<String>,
    pub(super) lost: Vec<Lost>,
    /// Why it is no sink after all.
    pub(super) refused: Option<String>,
}

/// One of a rule's destinations.
#[derive(Debug)]
pub(super) struct InsertDraft {
    /// The action it comes from.
    pub(super) from: String,
    /// The index among the sinks, if it is a declared one.
    pub(super) sink: Option<usize>,
    /// What stands after INSERT INTO.
    pub(super) text: String,
    pub(super) original: String,
}

/// A `CREATE RULE`.
#[derive(Debug, Default)]
pub(super) struct RuleDraft {
    pub(super) name: String,
    /// Names, descriptions: comments.
    pub(super) says: Vec<String>,
    pub(super) enabled: bool,
    pub(super) inserts: Vec<InsertDraft>,
    pub(super) sql: String,
    pub(super) todo: Vec<String>,
    pub(super) lost: Vec<Lost>,
    pub(super) refused: Option<String>,
}

/// All that an import makes.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) sinks: Vec<SinkDraft>,
    pub(super) rules: Vec<RuleDraft>,
    /// What belongs to the whole: includes, kinds of rules that are not read.
    pub(super) lost: Vec<Lost>,
}

impl Draft {
    /// A name for a sink that no other and no built-in has.
    pub(super) fn sink_name(&self, host: &Host, wanted: &str) -> String {
        let taken = |name: &str| {
            host.builtins.iter().any(|b| b.name == name) || self.sinks.iter().any(|sink| sink.name == name)
        };
        let mut name = wanted.to_owned();
        let mut number = 2;
        while taken(&name) {
            name = format!("{wanted}_{number}");
            number += 1;
        }
        name
    }

    /// Loads each statement by itself; what is refused is marked.
    pub(super) fn settle(&mut self, host: &Host) {
        for sink in &mut self.sinks {
            if let Err(why) = try_out(&sink.statement(), host, |set| set.sinks.len() == 1) {
                sink.refused = Some(why);
            }
        }
        for rule in &mut self.rules {
            let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut rule.inserts)
                .into_iter()
                .partition(|i| i.sink.is_none_or(|at| self.sinks[at].refused.is_none()));
            rule.inserts = kept;
            rule.lost.extend(gone.into_iter().map(|insert| Lost {
                reason: insert.sink.and_then(|at| self.sinks[at].refused.clone()).unwrap_or_default(),
                what: format!("action {}", insert.from),
                original: insert.original,
            }));
            if rule.inserts.is_empty() {
                let why = if rule.lost.is_empty() { "it has no action" } else { "none of its actions was" };
                rule.refused = Some(why.to_owned());
                continue;
            }
            let mut text = String::new();
            for sink in rule.inserts.iter().filter_map(|insert| insert.sink) {
                let statement = self.sinks[sink].statement();
                if !text.contains(&statement) {
                    text.push_str(&statement);
                    text.push('\n');
                }
            }
            text.push_str("SET dialect = 'emqx';\n");
            text.push_str(&rule.statement());
            if let Err(why) = try_out(&text, host, |set| set.rules.len() == 1) {
                rule.refused = Some(why);
            }
        }
    }

    /// The rules file.
    pub(super) fn file(&self, title: &str) -> String {
        let mut out = String::new();
        comment(&mut out, title);
        for lost in &self.lost {
            lost.write(&mut out);
        }
        out.push_str("SET dialect = 'emqx';\n");
        for sink in self.sinks.iter().filter(|sink| sink.refused.is_none()) {
            out.push('\n');
            comment(&mut out, &sink.from);
            sink.todo.iter().for_each(|todo| comment(&mut out, &format!("to do: {todo}")));
            sink.lost.iter().for_each(|lost| lost.write(&mut out));
            out.push_str(&sink.statement());
            out.push('\n');
        }
        for rule in &self.rules {
            out.push('\n');
            rule.says.iter().for_each(|says| comment(&mut out, says));
            rule.todo.iter().for_each(|todo| comment(&mut out, &format!("to do: {todo}")));
            rule.lost.iter().for_each(|lost| lost.write(&mut out));
            match &rule.refused {
                None => {
                    out.push_str(&rule.statement());
                    out.push('\n');
                }
                Some(why) => {
                    comment(&mut out, &format!("NOT IMPORTED: rule {}: {why}", rule.name));
                    let statement = rule.statement();
                    comment(&mut out, if rule.inserts.is_empty() { &rule.sql } else { &statement });
                }
            }
        }
        out
    }

    /// What was lost, a line each.
    pub(super) fn losses(&self) -> Vec<String> {
        let line = |place: &str, lost: &Lost| format!("{place}{}: {}", lost.what, lost.reason);
        let mut lines: Vec<String> = self.lost.iter().map(|lost| line("", lost)).collect();
        for sink in self.sinks.iter().filter(|sink| sink.refused.is_none()) {
            lines.extend(sink.lost.iter().map(|lost| line(&format!("{}: ", sink.from), lost)));
        }
        for rule in &self.rules {
            lines.extend(rule.lost.iter().map(|lost| line(&format!("rule {}: ", rule.name), lost)));
            lines.extend(rule.refused.iter().map(|why| format!("rule {}: {why}", rule.name)));
        }
        lines
    }
}

/// Loads a text; the first mistake, if there is one, or if `whole` does not hold.
fn try_out(text: &str, host: &Host, whole: impl Fn(&RuleSet) -> bool) -> Result<(), String> {
    match load(&[Source { name: "import", text }], host) {
        Ok(set) if whole(&set) => Ok(()),
        Ok(_) => Err("it is more than one statement".to_owned()),
        Err(found) => {
            let first = found.into_iter().find(|d| d.severity == Severity::Error);
            Err(first.map_or_else(String::new, |d| match d.hint {
                Some(hint) if !hint.starts_with("functions: ") => format!("{} ({hint})", d.message),
                _ => d.message,
            }))
        }
    }
}

impl SinkDraft {
    fn statement(&self) -> String {
        let options: Vec<String> =
            self.options.iter().map(|(name, value)| format!("  {name} = {value}")).collect();
        format!("CREATE SINK {} WITH (\n{});", name(&self.name), options.join(",\n"))
    }
}

impl RuleDraft {
    fn statement(&self) -> String {
        let with = if self.enabled { "" } else { " WITH (enabled = FALSE)" };
        let inserts: Vec<&str> = self.inserts.iter().map(|insert| insert.text.as_str()).collect();
        let sql = self.sql.trim().trim_end_matches(';').trim_end();
        // Behind a comment the semicolon would be part of it.
        let end = if sql.lines().last().is_some_and(|line| line.contains("--")) { "\n;" } else { ";" };
        format!(
            "CREATE RULE {}{with} AS\nINSERT INTO {}\n{sql}{end}",
            name(&self.name),
            inserts.join(",\n  ")
        )
    }
}

impl Lost {
    fn write(&self, out: &mut String) {
        comment(out, &format!("NOT IMPORTED: {}: {}", self.what, self.reason));
        if !self.original.is_empty() {
            let end = self.original.floor_char_boundary(MAX_ORIGINAL);
            let more = if end < self.original.len() { "..." } else { "" };
            comment(out, &format!("  {}{more}", &self.original[..end]));
        }
    }
}

/// Each line of a text as a comment.
fn comment(out: &mut String, text: &str) {
    for line in text.trim_end().split(['\n', '\r']) {
        let _ = writeln!(out, "{}", format!("-- {line}").trim_end());
    }
}

/// A name as a rules file writes it.
pub(super) fn name(text: &str) -> String {
    let reserved = RESERVED.iter().any(|word| word.eq_ignore_ascii_case(text));
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if plain && !reserved { text.to_owned() } else { quoted(text) }
}

/// Text in double quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Text in single quotes.
pub(super) fn string(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `sink."target" WITH (...)`.
pub(super) fn insert(sink: &str, target: Option<&str>, options: &[(&str, String)]) -> String {
    let mut text = name(sink);
    if let Some(target) = target {
        text.push('.');
        text.push_str(&quoted(target));
    }
    if !options.is_empty() {
        let options: Vec<String> = options.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let _ = write!(text, " WITH ({})", options.join(", "));
    }
    text
}
