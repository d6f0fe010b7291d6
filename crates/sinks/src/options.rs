//! Options of a sink: what a connector takes, and the checked values of one `CREATE SINK ... WITH (...)`.

use std::fmt;
use std::time::Duration;

/// A kind of destination, for checks and for the reference documentation.
#[derive(Debug)]
pub struct ConnectorSchema {
    /// What stands in `connector = '...'`.
    pub name: &'static str,
    /// One sentence for people.
    pub summary: &'static str,
    /// What it takes.
    pub options: &'static [OptionSchema],
    /// Names that begin with this are passed through unchecked (`librdkafka.`).
    pub passthrough: Option<&'static str>,
    /// What a target of `INSERT INTO` means.
    pub target: Target,
    /// The option whose template gives a row's order key; without one, and when it is not set, `${clientid}`.
    pub key: Option<&'static str>,
}

/// What `INSERT INTO sink."target"` means for a connector, and the option whose template gives it where none is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A name in the destination's own space (a table, a Kafka topic); a row must have one.
    Name(&'static str),
    /// The same, and a row may do without.
    OptionalName(&'static str),
    /// An MQTT topic; without one the message's own. Rules may also set `qos`, `retain` and properties.
    Topic(&'static str),
    /// There are no targets.
    None,
}

/// One option.
#[derive(Debug)]
pub struct OptionSchema {
    /// Its name.
    pub name: &'static str,
    /// What its value must look like.
    pub kind: OptionKind,
    /// Whether a sink without it is refused.
    pub required: bool,
    /// The value when it is not given.
    pub default: Option<&'static str>,
    /// For people: meaning, unit, and the reason of the default.
    pub help: &'static str,
}

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// Any text.
    Text,
    /// A whole number, not negative.
    Int,
    /// `true` or `false`.
    Bool,
    /// A number with `ms`, `s`, `m`, `h` or `d`.
    Duration,
    /// A number with `B`, `KiB`, `MiB`, `GiB`, or none for bytes.
    Size,
    /// Text with `${...}`, rendered by the rules before the row enters the outbox.
    Template,
    /// Text, or `env:NAME` or `file:PATH`; never shown.
    Secret,
    /// One of these words.
    Enum(&'static [&'static str]),
}

impl OptionSchema {
    /// An option that need not be given.
    #[must_use]
    pub const fn optional(
        name: &'static str,
        kind: OptionKind,
        default: Option<&'static str>,
        help: &'static str,
    ) -> Self {
        Self { name, kind, required: false, default, help }
    }

    /// An option that must be given.
    #[must_use]
    pub const fn required(name: &'static str, kind: OptionKind, help: &'static str) -> Self {
        Self { name, kind, required: true, default: None, help }
    }
}

impl ConnectorSchema {
    /// Checks names and forms of `given`, without resolving secrets. The option `connector` itself is not among them.
    #[must_use]
    pub fn check(&self, given: &[(String, String)]) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (i, (name, value)) in given.iter().enumerate() {
            if given[..i].iter().any(|(earlier, _)| earlier == name) {
                mistakes.push(format!("option `{name}` is given twice"));
                continue;
            }
            match self.option(name) {
                Some(option) => {
                    if let Err(wanted) = option.kind.check(value) {
                        let shown = if option.kind == OptionKind::Secret { "..." } else { value };
                        mistakes.push(format!("option `{name}` = '{shown}': {wanted}"));
                    }
                }
                None if self.passthrough.is_some_and(|p| name.len() > p.len() && name.starts_with(p)) => {}
                None => mistakes.push(self.unknown(name)),
            }
        }
        for option in self.options.iter().filter(|o| o.required) {
            if !given.iter().any(|(name, _)| name == option.name) {
                mistakes.push(format!("option `{}` is missing: {}", option.name, option.help));
            }
        }
        mistakes
    }

    fn option(&self, name: &str) -> Option<&OptionSchema> {
        self.options.iter().find(|o| o.name == name)
    }

    fn unknown(&self, name: &str) -> String {
        let nearest = self
            .options
            .iter()
            .map(|o| (distance(name, o.name), o.name))
            .min()
            .filter(|&(distance, _)| distance <= 1 + name.len() / 3);
        match nearest {
            Some((_, nearest)) => {
                format!("connector `{}` has no option `{name}`; did you mean `{nearest}`?", self.name)
            }
            None => {
                let names: Vec<_> = self.options.iter().map(|o| o.name).collect();
                format!("connector `{}` has no option `{name}`; it has {}", self.name, names.join(", "))
            }
        }
    }
}

impl OptionKind {
    /// Says what was wanted when `value` is not of this kind.
    fn check(self, value: &str) -> Result<(), String> {
        match self {
            Self::Text | Self::Template => Ok(()),
            Self::Secret => match value {
                "env:" | "file:" => Err("a name must follow the colon".into()),
                _ => Ok(()),
            },
            Self::Int => match value.parse::<u64>() {
                Ok(n) if i64::try_from(n).is_ok() => Ok(()),
                _ => Err("a whole number is wanted".into()),
            },
            Self::Bool => match value {
                "true" | "false" => Ok(()),
                _ => Err("true or false is wanted".into()),
            },
            Self::Duration => {
                parse_duration(value).map(drop).ok_or_else(|| "a time like 500ms, 5s, 30d is wanted".into())
            }
            Self::Size => {
                parse_size(value).map(drop).ok_or_else(|| "a size like 4096, 64KiB, 1MiB is wanted".into())
            }
            Self::Enum(words) if words.contains(&value) => Ok(()),
            Self::Enum(words) => Err(format!("one of {} is wanted", words.join(", "))),
        }
    }
}

/// The checked values of one sink, defaults filled in.
#[derive(Clone)]
pub struct Options {
    schema: &'static ConnectorSchema,
    values: Vec<(String, String)>,
}

/// Names only: values may be secrets.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.values.iter().map(|(name, _)| name).collect();
        f.debug_struct("Options").field("connector", &self.schema.name).field("names", &names).finish()
    }
}

/// How a secret that is written `env:NAME` or `file:PATH` is read.
pub trait Secrets {
    /// The environment variable.
    fn env(&self, name: &str) -> Option<String>;
    /// The file's text.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn file(&self, path: &str) -> std::io::Result<String>;
}

impl Options {
    /// Takes what stands in `WITH (...)` (without `connector`) and leaves secrets as they are written: for checks.
    ///
    /// # Errors
    /// All of [`ConnectorSchema::check`].
    pub fn parse(schema: &'static ConnectorSchema, given: &[(String, String)]) -> Result<Self, Vec<String>> {
        let mistakes = schema.check(given);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let defaults = schema.options.iter().filter_map(|o| Some((o.name.to_owned(), o.default?.to_owned())));
        let absent = defaults.filter(|(name, _)| !given.iter().any(|(n, _)| n == name));
        Ok(Self { schema, values: given.iter().cloned().chain(absent).collect() })
    }

    /// As [`Options::parse`], with secrets resolved: for a start.
    ///
    /// # Errors
    /// Also each secret that is not there, by its name, never by its value.
    pub fn resolve(
        schema: &'static ConnectorSchema,
        given: &[(String, String)],
        secrets: &dyn Secrets,
    ) -> Result<Self, Vec<String>> {
        let mut options = Self::parse(schema, given)?;
        let mut mistakes = Vec::new();
        for (name, value) in &mut options.values {
            if schema.option(name).is_none_or(|o| o.kind != OptionKind::Secret) {
                continue;
            }
            let found = if let Some(variable) = value.strip_prefix("env:") {
                secrets.env(variable).ok_or_else(|| format!("the environment variable {variable} is not set"))
            } else if let Some(path) = value.strip_prefix("file:") {
                // An editor's last newline is no part of a password.
                let text = secrets.file(path).map_err(|e| format!("the file {path} cannot be read: {e}"));
                text.map(|t| t.trim_end_matches(['\n', '\r']).to_owned())
            } else {
                continue;
            };
            match found {
                Ok(secret) => *value = secret,
                Err(why) => mistakes.push(format!("option `{name}`: {why}")),
            }
        }
        if mistakes.is_empty() { Ok(options) } else { Err(mistakes) }
    }

    /// The value, or its default.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of an option that has a default or is required; empty when it has neither.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// A value of kind `Int`.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// A value of kind `Bool`.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.parse().ok()
    }

    /// A value of kind `Duration`.
    #[must_use]
    pub fn duration(&self, name: &str) -> Option<Duration> {
        parse_duration(self.get(name)?)
    }

    /// A value of kind `Size`, in bytes.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        parse_size(self.get(name)?)
    }

    /// Whether the value is still written `env:` or `file:`.
    #[must_use]
    pub fn is_unresolved(&self, name: &str) -> bool {
        let secret = self.schema.option(name).is_some_and(|o| o.kind == OptionKind::Secret);
        secret && self.get(name).is_some_and(|v| v.starts_with("env:") || v.starts_with("file:"))
    }

    /// Options that begin with the schema's `passthrough`, without that beginning.
    pub fn passed_through(&self) -> impl Iterator<Item = (&str, &str)> {
        let prefix = self.schema.passthrough;
        self.values
            .iter()
            .filter_map(move |(name, value)| Some((name.strip_prefix(prefix?)?, value.as_str())))
    }
}

/// `500ms`, `5s`, `10m`, `2h`, `30d`, `0`.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let ms_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number == 0 => 0,
        _ => return None,
    };
    number.checked_mul(ms_per_unit).map(Duration::from_millis)
}

/// `4096`, `64KiB`, `1MiB`.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let bytes_per_unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes_per_unit)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// Edit distance (insert, delete, replace) of two short names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    static SCHEMA: ConnectorSchema = ConnectorSchema {
        name: "test",
        summary: "A test.",
        options: &[
            OptionSchema {
                name: "url",
                kind: OptionKind::Secret,
                required: true,
                default: None,
                help: "where",
            },
            OptionSchema {
                name: "batch",
                kind: OptionKind::Int,
                required: false,
                default: Some("500"),
                help: "rows",
            },
            OptionSchema {
                name: "keep",
                kind: OptionKind::Duration,
                required: false,
                default: None,
                help: "time",
            },
            OptionSchema {
                name: "mode",
                kind: OptionKind::Enum(&["a", "b"]),
                required: false,
                default: None,
                help: "",
            },
        ],
        passthrough: Some("lib."),
        target: Target::Name("url"),
        key: None,
    };

    fn given(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn mistakes_are_reported_all_at_once() {
        let mistakes =
            SCHEMA.check(&given(&[("bach", "1"), ("keep", "5 weeks"), ("mode", "c"), ("batch", "-1")]));
        assert_eq!(
            mistakes,
            [
                "connector `test` has no option `bach`; did you mean `batch`?",
                "option `keep` = '5 weeks': a time like 500ms, 5s, 30d is wanted",
                "option `mode` = 'c': one of a, b is wanted",
                "option `batch` = '-1': a whole number is wanted",
                "option `url` is missing: where",
            ]
        );
        assert_eq!(SCHEMA.check(&given(&[("url", "x"), ("url", "y")])), ["option `url` is given twice"]);
        assert_eq!(SCHEMA.check(&given(&[("url", "x"), ("lib.linger", "1")])), Vec::<String>::new());
    }

    struct Fixed;
    impl Secrets for Fixed {
        fn env(&self, name: &str) -> Option<String> {
            (name == "URL").then(|| "from env".into())
        }
        fn file(&self, path: &str) -> std::io::Result<String> {
            if path == "/p" { Ok("from file\n".into()) } else { Err(std::io::ErrorKind::NotFound.into()) }
        }
    }

    #[test]
    fn secrets_are_resolved_and_never_shown() {
        let resolve = |v: &str| Options::resolve(&SCHEMA, &given(&[("url", v)]), &Fixed);
        assert_eq!(resolve("env:URL").unwrap().text("url"), "from env");
        assert_eq!(resolve("file:/p").unwrap().text("url"), "from file");
        assert_eq!(resolve("plain").unwrap().text("url"), "plain");
        assert_eq!(resolve("env:NO").unwrap_err(), ["option `url`: the environment variable NO is not set"]);
        assert!(resolve("file:/q").unwrap_err()[0].starts_with("option `url`: the file /q cannot be read"));
        assert!(!format!("{:?}", resolve("hunter2").unwrap()).contains("hunter2"));
        assert!(Options::parse(&SCHEMA, &given(&[("url", "env:NO")])).unwrap().is_unresolved("url"));
    }

    #[test]
    fn values_and_defaults() {
        let options =
            Options::parse(&SCHEMA, &given(&[("url", "x"), ("keep", "30d"), ("lib.a.b", "1")])).unwrap();
        assert_eq!(options.int("batch"), Some(500));
        assert_eq!(options.duration("keep"), Some(Duration::from_secs(30 * 86_400)));
        assert_eq!(options.passed_through().collect::<Vec<_>>(), [("a.b", "1")]);
    }

    #[test]
    fn times_and_sizes() {
        for (text, ms) in [
            ("500ms", Some(500)),
            ("5s", Some(5_000)),
            ("2 h", Some(7_200_000)),
            ("0", Some(0)),
            ("5", None),
            ("s", None),
            ("", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(parse_duration(text), ms.map(Duration::from_millis), "{text}");
        }
        for (text, bytes) in
            [("4096", Some(4096)), ("64KiB", Some(65_536)), ("1MiB", Some(1 << 20)), ("1MB", None)]
        {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
