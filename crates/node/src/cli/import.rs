//! `import`: mosquitto's or NanoMQ's configuration as one of this program's, with rules for its bridges.
//!
//! # What is printed
//! Without `--dir` a configuration on standard output, with the rules of bridges behind `#` at its end; it passes `check` as
//! it is. With `--dir` the two are files there, and the password of a bridge is a third one (mode 0600). On standard error a line
//! for everything that was not taken over, `FILE:LINE: what: what to do instead`. Passwords are never printed.
//!
//! # What is not
//! mosquitto's hashes of passwords: they are PBKDF2's, and say nothing to Argon2. Such a user is there with the hash of a random
//! password that nobody knows.
//!
//! # Bounds
//! Files of at most [`MAX_FILE`] bytes; `include_dir` and `include` are told, not followed.
//!
//! Exit codes: 0; 1 when something was not taken over; 2 when a file cannot be read.

mod draft;
mod mosquitto;
mod nanomq;

use super::{Failure, Flavor, Run, failed};
use crate::loader;
use clap::Args;
use draft::Draft;
use ferrule_rules::Source;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest file that is read.
const MAX_FILE: u64 = 8 << 20;

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// mosquitto.conf, or NanoMQ's nanomq.conf
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Write the files here instead; nothing is overwritten
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Something that was not taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    file: String,
    line: usize,
    text: String,
}

/// Prints or writes what came of the file.
pub(super) fn run(flavor: &Flavor, args: &ImportArgs) -> Result<u8, Failure> {
    let text = match read(&args.file) {
        Ok(text) => text,
        Err(error) => {
            writeln!(io::stderr(), "cannot read {}: {error}", args.file.display()).map_err(failed)?;
            return Ok(2);
        }
    };
    let name = args.file.display().to_string();
    let edge = matches!(flavor.run, Run::Edge(_));
    let draft = match is_hocon(&text) {
        true => nanomq::read(&name, &text).map_err(Failure::Text)?,
        false => mosquitto::read(&name, &text, &read),
    };
    let mut draft = draft;
    draft.finish(edge, &name, flavor.name);
    if let Some(rules) = draft.rules() {
        let sources = [Source { name: "rules.sql", text: &rules }];
        let checked = loader::check(&sources, &flavor.host(), &(flavor.connectors)());
        for mistake in checked.err().into_iter().flatten() {
            draft.tell("rules.sql", mistake.line as usize, mistake.message);
        }
    }
    match &args.dir {
        None => io::stdout().write_all(draft.one_file(edge, flavor.name).as_bytes()).map_err(failed)?,
        Some(dir) => write(&draft, dir, edge, flavor.name)?,
    }
    draft.told.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    let mut err = io::stderr().lock();
    for Told { file, line, text } in &draft.told {
        writeln!(err, "{file}:{line}: {text}").map_err(failed)?;
    }
    Ok(u8::from(!draft.told.is_empty()))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// NanoMQ's has braces or `key = value`; mosquitto's lines are `key value`.
fn is_hocon(text: &str) -> bool {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.into_iter().any(|line| {
        let key = line.split(|c: char| c.is_whitespace() || c == '=' || c == '{').next().unwrap_or_default();
        let rest = line[key.len()..].trim_start();
        rest.starts_with('=') || rest.starts_with('{')
    })
}

fn write(draft: &Draft, dir: &Path, edge: bool, program: &str) -> Result<(), Failure> {
    let config = if edge { "edge.toml" } else { "cloud.toml" };
    let mut files = vec![(config, draft.toml(edge, true, program), 0o644)];
    if let Some(rules) = draft.rules() {
        files.push(("rules.sql", rules, 0o644));
    }
    if let Some(password) = draft.uplink_password() {
        files.push(("uplink.pass", format!("{password}\n"), 0o600));
    }
    fs::create_dir_all(dir).map_err(|e| Failure::Text(format!("cannot make {}: {e}", dir.display())))?;
    if let Some((name, ..)) = files.iter().find(|(name, ..)| dir.join(name).exists()) {
        return Err(Failure::Text(format!("{} has {name} already: nothing was written", dir.display())));
    }
    for (name, text, mode) in &files {
        let path = dir.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|e| Failure::Text(format!("cannot write {}: {e}", path.display())))?;
    }
    let config = dir.join(config);
    let mut out = io::stdout().lock();
    writeln!(out, "{0} is written. Next:\n\n  {program} check --config {0}", config.display()).map_err(failed)
}

#[cfg(test)]
mod tests;
