//! `rules import`: what EMQX and NanoMQ keep their rules in, as a rules file.
//!
//! # What is read
//! | file | told by | by |
//! |---|---|---|
//! | EMQX's data export, `emqx-export-....tar.gz` | gzip's first bytes | `archive`, then as below |
//! | `cluster.hocon`, `emqx.conf`, NanoMQ's `nanomq.conf` | else | `hocon` |
//! | NanoMQ's configuration before HOCON | `rule.x.y=` lines | `nanomq` |
//! | JSON of EMQX's `GET /api/v5/rules`, `/actions`, `/connectors` | it is JSON | `emqx` |
//!
//! Several files are laid over one another, so that the rules may be in one and the bridges in another.
//!
//! # What is printed
//! A file for EMQX's dialect: SQL as it was, sinks for bridges, and for all that has no counterpart a comment that says
//! `NOT IMPORTED`, why, and what it was. Every statement has been loaded before it is printed (`draft`). Passwords are
//! never printed. Exit code [`EXIT_INVALID`] when there is such a comment.
//!
//! # Bounds
//! A file has at most [`MAX_FILE`] bytes; what is nested deeper than 64 levels is refused; nothing is fetched or included.

mod archive;
mod bridges;
mod draft;
mod emqx;
mod hocon;
mod insert_sql;
mod nanomq;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{EXIT_INVALID, EXIT_OK, EXIT_UNREADABLE, count};
use crate::{Host, Severity, Source, load};
use draft::{Draft, Lost};

/// The largest file that is read.
const MAX_FILE: usize = 64 << 20;

/// `rules import FILE...`: a rules file on `out`, what was not imported on `told`.
///
/// # Errors
/// When `out` or `told` cannot be written.
pub fn import(files: &[PathBuf], host: &Host, out: &mut dyn Write, told: &mut dyn Write) -> io::Result<i32> {
    let mut root = Value::Object(Map::new());
    let mut draft = Draft::default();
    for file in files {
        match read(file) {
            Ok((read, includes)) => {
                hocon::merge(&mut root, read);
                draft.lost.extend(includes.into_iter().map(|name| Lost {
                    what: format!("include {name}"),
                    reason: "it is not followed: give that file as well".to_owned(),
                    original: String::new(),
                }));
            }
            Err(why) => {
                writeln!(told, "error: cannot read {}: {why}", file.display())?;
                return Ok(EXIT_UNREADABLE);
            }
        }
    }
    let Value::Object(root) = root else { return Ok(EXIT_UNREADABLE) };
    emqx::rules(&root, host, &mut draft);
    nanomq::rules(&root, host, &mut draft);
    if draft.rules.is_empty() {
        writeln!(told, "error: no rules are in {}", names(files))?;
        return Ok(EXIT_UNREADABLE);
    }
    draft.settle(host);
    let text = draft.file(&format!("Made by `rules import` from {}.", names(files)));
    out.write_all(text.as_bytes())?;
    let losses = draft.losses();
    for loss in &losses {
        writeln!(told, "not imported: {}", loss.replace(['\n', '\r'], " "))?;
    }
    let kept = draft.rules.iter().filter(|rule| rule.refused.is_none()).count();
    let sinks = draft.sinks.iter().filter(|sink| sink.refused.is_none()).count();
    let all = count(draft.rules.len(), "rule");
    writeln!(told, "{kept} of {all} imported, {} made", count(sinks, "sink"))?;
    // Each statement was loaded; together they could still clash.
    let mut clash = false;
    for d in load(&[Source { name: "(printed)", text: &text }], host).err().into_iter().flatten() {
        clash |= d.severity == Severity::Error;
        writeln!(told, "{d}")?;
    }
    Ok(if losses.is_empty() && !clash { EXIT_OK } else { EXIT_INVALID })
}

/// HOCON's members, and the names that it includes, none of which was read: for other parts of the same files.
///
/// # Errors
/// `LINE: what is wrong`, of the first place that is no HOCON.
pub fn hocon(text: &str) -> Result<(Map<String, Value>, Vec<String>), String> {
    let document = hocon::parse(text).map_err(|error| format!("{}: {}", error.line, error.message))?;
    Ok((document.root, document.includes))
}

/// Names of files without their folders.
fn names(files: &[PathBuf]) -> String {
    let name = |file: &PathBuf| file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
    files.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What a file holds, and what it includes.
fn read(file: &Path) -> Result<(Value, Vec<String>), String> {
    let length = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if length > MAX_FILE as u64 {
        return Err(format!("it has more than {} MiB", MAX_FILE >> 20));
    }
    let mut bytes = std::fs::read(file).map_err(|e| e.to_string())?;
    if bytes.starts_with(b"\x1f\x8b") {
        let found = archive::cluster_hocon(&bytes).map_err(|e| e.to_string())?;
        bytes = found.ok_or("no `cluster.hocon` is in it")?;
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    if text.trim_start().starts_with(['{', '['])
        && let Ok(value) = serde_json::from_str::<Value>(&text)
    {
        if value["rules"].get(0).is_some_and(|rule| rule.get("rawsql").is_some()) {
            return Err("it is an export of EMQX 4; emqx_data_converter makes one of EMQX 5 of it".to_owned());
        }
        return Ok(match emqx::from_api(&value) {
            Some(root) => (root, Vec::new()),
            None if value.is_object() => (value, Vec::new()),
            None => return Err("it is no list of rules, actions or connectors".to_owned()),
        });
    }
    if nanomq::has_lines(&text) {
        return Ok((Value::Object(nanomq::from_lines(&text)), Vec::new()));
    }
    let document = hocon::parse(&text).map_err(|e| format!("line {}: {}", e.line, e.message))?;
    Ok((Value::Object(document.root), document.includes))
}
