//! The cookbook: rule files of `examples/rules` that say themselves which messages come and what must become of them.
//!
//! ```text
//! -- try: TOPIC [as CLIENTID] [+SECONDSs] PAYLOAD      the payload is the rest of the line; x'01ff' are bytes
//! -- try: $events/...              [+SECONDSs] COLUMNS      an event, its columns as an object
//! -- => SINK ["TARGET"]: BODY                          a row of it; without such lines nothing comes
//! ```
//! A file's messages go through its rules in order, with one state a rule: they remember. `+60s` is when a message comes, behind the one
//! before. Files whose `-- try:` is a command are tried in `examples/tests/rules.rs`.
//!
//! `FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test cookbook` writes docs/cookbook.md, which is these files.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use ferrule_rules::*;

#[path = "common/worker.rs"]
mod worker;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Name and text of each file of rules, in order.
fn all_files() -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = fs::read_dir(root().join("examples/rules"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Those whose messages are tried here.
fn files() -> Vec<(String, String)> {
    let files: Vec<_> = all_files().into_iter().filter(|(_, text)| tries(text).next().is_some()).collect();
    assert!(files.len() >= 20, "{}", files.len());
    files
}

/// A message of a file, and the lines that must come of it.
#[derive(Debug, Default)]
struct Try<'a> {
    topic: &'a str,
    clientid: Option<&'a str>,
    wait_s: i64,
    payload: Vec<u8>,
    expected: Vec<&'a str>,
}

fn tries(text: &str) -> impl Iterator<Item = Try<'_>> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        let line = lines
            .by_ref()
            .filter_map(|line| line.strip_prefix("-- try: "))
            .find(|line| !line.starts_with("ferrule-"))?;
        let (topic, mut rest) = line.split_once(' ').unwrap_or_else(|| panic!("no payload: {line}"));
        let mut made = Try { topic, ..Try::default() };
        loop {
            if let Some((clientid, behind)) = rest.strip_prefix("as ").and_then(|rest| rest.split_once(' ')) {
                (made.clientid, rest) = (Some(clientid), behind);
            } else if let Some((seconds, behind)) =
                rest.strip_prefix('+').and_then(|rest| rest.split_once("s "))
            {
                (made.wait_s, rest) = (seconds.parse().unwrap(), behind);
            } else {
                break;
            }
        }
        made.payload = match rest.strip_prefix("x'").and_then(|rest| rest.strip_suffix('\'')) {
            Some(hex) => bytes_of(hex),
            None => rest.replace("\\n", "\n").into_bytes(),
        };
        while let Some(expected) = lines.peek().and_then(|line| line.strip_prefix("-- => ")) {
            made.expected.push(expected);
            lines.next();
        }
        Some(made)
    })
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        hex.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

fn shown(row: &OutRow, rule: &Rule) -> String {
    let insert = &rule.inserts[row.insert];
    let body = match &row.body {
        Body::Payload => "the payload".to_owned(),
        Body::Json(text) | Body::Text(text) => String::from_utf8_lossy(text).into_owned(),
        Body::Encoded(bytes) => {
            format!("x'{}'", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    };
    let sink = &insert.sink;
    if row.target.is_empty() {
        format!("{sink}: {body}")
    } else {
        format!("{sink} \"{}\": {body}", row.target)
    }
}

/// FROM's `+` and `#`, as far as the cookbook needs them.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') != filter.starts_with('$') {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some(level), Some(name)) if level == "+" || level == name => {}
            _ => return false,
        }
    }
}

#[test]
fn each_file_does_what_it_says() {
    worker::offer();
    let mut wrong = String::new();
    for (name, text) in files() {
        let path = root().join("examples/rules").join(&name).display().to_string();
        let source = Source { name: &path, text: &text };
        let host = Host { files: Some(cli::files()), ..Host::edge(Vec::new()) };
        let set = match load(&[source], &host) {
            Ok(set) => set,
            Err(errors) => {
                errors.iter().for_each(|error| wrong.push_str(&error.render(&source)));
                continue;
            }
        };
        let (mut scratch, mut rows) = (Scratch::new(1), Rows::default());
        let mut states = vec![RuleState::default(); set.rules.len()];
        let mut wall_ms = 1_795_558_634_000;
        let mut emitted = vec![false; set.rules.len()];
        for (number, tried) in tries(&text).enumerate() {
            wall_ms += tried.wait_s * 1000;
            let event = tried.topic.strip_prefix("$events/").map(|event| event.replace('/', "."));
            let columns = event.as_ref().map(|_| serde_json::from_slice(&tried.payload).unwrap());
            let message = Message {
                event: event.as_deref(),
                columns: columns.as_ref(),
                topic: tried.topic,
                payload: &tried.payload,
                clientid: tried.clientid.unwrap_or("press-7"),
                qos: 1,
                timestamp_ms: wall_ms,
                ..Message::default()
            };
            let mut came = Vec::new();
            scratch.begin();
            for (index, rule) in set.rules.iter().enumerate() {
                if !rule.filters.iter().any(|filter| matches(filter, tried.topic)) {
                    continue;
                }
                let now = Now { wall_ms };
                let state = &mut states[index];
                match step(rule, state, &message, &mut scratch, now, &mut 100_000, &mut rows) {
                    Step::Emit => {
                        emitted[index] = true;
                        came.extend(rows.rows.iter().map(|row| shown(row, rule)));
                    }
                    Step::NoMatch | Step::Failed(Failure::NoResult) => {}
                    other => came.push(format!("{}: {other:?}", rule.name)),
                }
            }
            if came != tried.expected {
                writeln!(wrong, "{name}: try {number}: {}", tried.topic).unwrap();
                came.iter().for_each(|line| writeln!(wrong, "-- => {line}").unwrap());
            }
        }
        for (index, rule) in set.rules.iter().enumerate() {
            if !emitted[index] {
                writeln!(wrong, "{name}: rule {} never made a row", rule.name).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The rules files of all examples, but for one that is there as it was pasted.
fn formatted_files() -> Vec<PathBuf> {
    let folders = ["rules", "demo", "edge-to-cloud", "nginx", "haproxy"];
    let folders = folders.map(|folder| root().join("examples").join(folder));
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    let all = files.len();
    files.retain(|file| !file.ends_with("33-emqx-pasted.sql"));
    assert_eq!(files.len(), all - 1);
    files.sort();
    files
}

/// Files look as `rules fmt` writes them; `UPDATE_EXPECT=1` lets it.
#[test]
fn each_file_is_formatted() {
    let (mut out, mut told) = (Vec::new(), Vec::new());
    let check = std::env::var_os("UPDATE_EXPECT").is_none();
    let code = cli::fmt(&formatted_files(), check, &mut std::io::empty(), &mut out, &mut told).unwrap();
    let told = String::from_utf8_lossy(&told) + String::from_utf8_lossy(&out);
    assert_eq!(
        code, 0,
        "mend: UPDATE_EXPECT=1 cargo test -p ferrule-rules --test cookbook formatted\n{told}"
    );
}

/// The descriptor beside a `.proto` file is that file's.
#[test]
fn descriptors_are_fresh() {
    let folder = root().join("examples/rules");
    let set = protox::compile(["25-reading.proto"], [&folder]).unwrap();
    let mut fresh = set;
    fresh.file.iter_mut().for_each(|file| file.source_code_info = None);
    let fresh = prost_reflect::prost::Message::encode_to_vec(&fresh);
    let path = folder.join("25-reading.desc");
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    assert!(
        fs::read(&path).unwrap() == fresh,
        "type: FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test cookbook"
    );
}

/// The page of all files: a table of their first sentences, then each as it is.
fn page() -> String {
    let mut contents = String::new();
    let mut chapters = String::new();
    for (name, text) in all_files() {
        let title = name.trim_end_matches(".sql").replace('-', " ");
        let comment: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix("-- "))
            .take_while(|line| !line.starts_with("try:"))
            .collect();
        let comment = comment.join(" ");
        let problem = comment.split_once(". ").map_or(comment.trim_end_matches('.'), |(first, _)| first);
        writeln!(contents, "| [{title}](#{}) | {problem} |", title.replace(' ', "-")).unwrap();
        write!(chapters, "\n## {title}\n[{name}](../examples/rules/{name})\n```sql\n{text}```\n").unwrap();
    }
    format!("{HEAD}\n| | |\n|---|---|\n{contents}{chapters}")
}

const HEAD: &str = "# Cookbook

Rules that run: copy one and change its names. They are the files of [`examples/rules`](../examples/rules), and this page is made of them by
`FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test cookbook`; tests run each with the messages that it names.

`-- try:` is a message: its topic and payload (`x'01ff'` are bytes, `\\n` a new line, `+60s` how long after the one before); `-- =>` is what comes of it: the sink, its target, the row. A
message without such a line makes no row. The language is in [rules.md](rules.md), the functions are in [rules-functions.md](rules-functions.md).
";

#[test]
fn the_page_is_fresh() {
    let path = root().join("docs/cookbook.md");
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        fs::write(&path, page()).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap() == page(),
        "type: FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test cookbook"
    );
}
