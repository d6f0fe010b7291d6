//! What a table looks like: its name, its columns, where its key is.

use super::{Settings, quote};
use ferrule_store::path_hash;

/// The key of a row, in every table that Ferrule makes, all NOT NULL.
pub const KEY_COLUMNS: [(&str, &str); 6] = [
    ("_origin", "text"),
    ("_boot", "bigint"),
    ("_class", "smallint"),
    ("_seq", "bigint"),
    ("_rule", "bigint"),
    ("_row", "integer"),
];

/// The columns of a table that takes rows whole.
pub(super) const WHOLE_COLUMNS: [&str; 5] = ["received_at", "edge", "clientid", "topic", "row"];

/// Longest identifier in bytes: PostgreSQL's NAMEDATALEN - 1. It cuts longer ones off, which would make two names one.
pub(super) const IDENTIFIER_MAX: usize = 63;

const SEEN_SUFFIX: &str = "_ferrule_seen";

/// A table's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// Schema (SQLite: attached database); none for the connection's own.
    pub schema: Option<String>,
    /// Name within it.
    pub name: String,
}

impl Table {
    /// A name from the sink's options: `table` or `schema.table`.
    ///
    /// # Errors
    /// Why it cannot be a table's name.
    pub fn configured(text: &str) -> Result<Self, String> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        if let Some(schema) = schema {
            identifier(schema)?;
        }
        Ok(Self { schema: schema.map(str::to_owned), ..Self::rendered(name)? })
    }

    /// A name that a rule rendered, maybe from what a device sent: always one identifier in the connection's own schema, so
    /// that no device reaches another schema with a dot.
    ///
    /// # Errors
    /// Why it cannot be a table's name.
    pub fn rendered(text: &str) -> Result<Self, String> {
        identifier(text)?;
        if text.ends_with(SEEN_SUFFIX) {
            return Err(format!("names that end with {SEEN_SUFFIX} are Ferrule's own"));
        }
        // SQLite makes no such tables; here rather than there, so that both take the same rules.
        if text.get(..7).is_some_and(|p| p.eq_ignore_ascii_case("sqlite_")) {
            return Err("names that begin with sqlite_ are SQLite's own".into());
        }
        Ok(Self { schema: None, name: text.to_owned() })
    }

    /// As it stands in SQL.
    #[must_use]
    pub fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(&self.name)),
            None => quote(&self.name),
        }
    }

    /// `<table>_ferrule_seen`; of a name too long for that a beginning, and a hash of the whole.
    #[must_use]
    pub fn seen(&self) -> Self {
        let name = if self.name.len() + SEEN_SUFFIX.len() <= IDENTIFIER_MAX {
            format!("{}{SEEN_SUFFIX}", self.name)
        } else {
            let room = self.name.floor_char_boundary(IDENTIFIER_MAX - SEEN_SUFFIX.len() - 17);
            format!("{}_{:016x}{SEEN_SUFFIX}", &self.name[..room], path_hash(0, self.name.as_bytes()))
        };
        Self { schema: self.schema.clone(), name }
    }
}

fn identifier(text: &str) -> Result<(), String> {
    match text.len() {
        0 => Err("the name is empty".into()),
        len if len > IDENTIFIER_MAX => {
            Err(format!("the name has {len} bytes, {IDENTIFIER_MAX} are possible"))
        }
        _ if text.chars().any(char::is_control) => Err("the name has control characters".into()),
        _ => Ok(()),
    }
}

/// What a column's type means for values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers.
    Integer,
    /// Other numbers.
    Number,
    /// True and false.
    Boolean,
    /// Text.
    Text,
    /// A date, a time or both.
    Time,
    /// JSON.
    Json,
    /// An array of something.
    Array,
    /// Anything else: the text is the database's to understand.
    Other,
}

impl Kind {
    /// By the name of the type, as written in a SQLite schema or by PostgreSQL's `format_type`.
    #[must_use]
    pub fn of(sql_type: &str) -> Self {
        let name = sql_type.trim().to_ascii_lowercase();
        let starts = |words: &[&str]| words.iter().any(|w| name.starts_with(w));
        if name.ends_with("[]") {
            Self::Array
        } else if name.contains("json") {
            Self::Json
        } else if starts(&["bool"]) {
            Self::Boolean
        } else if starts(&["timestamp", "datetime", "date", "time"]) && !name.contains("range") {
            Self::Time
        } else if starts(&[
            "int",
            "bigint",
            "smallint",
            "tinyint",
            "mediumint",
            "serial",
            "bigserial",
            "smallserial",
        ]) && !starts(&["interval"])
            && !name.contains("range")
        {
            Self::Integer
        } else if starts(&["real", "double", "float", "numeric", "decimal"]) {
            Self::Number
        } else if starts(&[
            "text",
            "char",
            "varchar",
            "nvarchar",
            "nchar",
            "bpchar",
            "character",
            "clob",
            "citext",
            "string",
            "name",
        ]) {
            Self::Text
        } else {
            Self::Other
        }
    }
}

/// A column of an existing table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Type as the database tells it, without length or precision.
    pub sql_type: String,
    /// What that means for values.
    pub kind: Kind,
    /// Left out of the insert when the row has no value for it: it has a default, or refuses NULL, which is then the
    /// database's to say. Others get NULL, so that nearly all rows of a table have one set of columns.
    pub optional: bool,
}

/// A table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Its name.
    pub table: Table,
    /// Its columns that can be written, without those of the key.
    pub columns: Vec<Column>,
    /// True: the columns are [`WHOLE_COLUMNS`], and a row goes in whole.
    pub whole: bool,
    /// True: the key is in the table. False: in [`Table::seen`].
    pub key_inside: bool,
}

impl Layout {
    /// Makes sense of the columns that were `found`, those of the key included.
    ///
    /// # Errors
    /// When a column that the option `columns` names is not there.
    pub fn new(table: Table, found: Vec<Column>, settings: &Settings) -> Result<Self, String> {
        let is_key = |name: &str| KEY_COLUMNS.iter().any(|(key, _)| *key == name);
        let key_inside = KEY_COLUMNS.iter().all(|(key, _)| found.iter().any(|c| c.name == *key));
        let columns: Vec<Column> = found.into_iter().filter(|c| !(key_inside && is_key(&c.name))).collect();
        if let Some(wanted) = &settings.columns {
            let has = |name: &str| columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
            let missing: Vec<_> = wanted.iter().map(|w| &*w.name).filter(|name| !has(name)).collect();
            if !missing.is_empty() {
                let table = table.quoted();
                return Err(format!(
                    "table {table} is there without the column {}: add it",
                    missing.join(", ")
                ));
            }
        }
        let whole = settings.columns.is_none()
            && columns.len() == WHOLE_COLUMNS.len()
            && WHOLE_COLUMNS.iter().all(|w| columns.iter().any(|c| c.name == *w));
        Ok(Self { table, columns, whole, key_inside })
    }

    /// The column of this name: the very name, else without regard to ASCII case, as SQL's unquoted names go.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<usize> {
        let exact = self.columns.iter().position(|c| c.name == name);
        exact.or_else(|| self.columns.iter().position(|c| c.name.eq_ignore_ascii_case(name)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_that_devices_choose_stay_harmless() {
        assert_eq!(Table::rendered("dev_10.0.0.1").unwrap().quoted(), "\"dev_10.0.0.1\"");
        assert_eq!(Table::rendered("x\"; DROP").unwrap().quoted(), "\"x\"\"; DROP\"");
        for name in ["", "a\0b", "a\nb", "x_ferrule_seen", "SQLite_x", &"x".repeat(64)] {
            assert!(Table::rendered(name).is_err(), "{name}");
        }
        assert_eq!(Table::configured("lab.t").unwrap().quoted(), "\"lab\".\"t\"");
        assert!(Table::configured("lab.").is_err());
    }

    #[test]
    fn the_table_of_keys_has_its_own_name() {
        assert_eq!(Table::rendered("t").unwrap().seen().name, "t_ferrule_seen");
        let (a, b) = (format!("{}a", "ü".repeat(31)), format!("{}b", "ü".repeat(31)));
        let seen = |t: &str| Table::rendered(t).unwrap().seen().name;
        assert!(seen(&a).len() <= IDENTIFIER_MAX && seen(&a) != seen(&b));
    }

    #[test]
    fn types_have_kinds() {
        for (sql_type, kind) in [
            ("integer", Kind::Integer),
            ("BIGINT", Kind::Integer),
            ("interval", Kind::Other),
            ("int4range", Kind::Other),
            ("double precision", Kind::Number),
            ("NUMERIC(5,2)", Kind::Number),
            ("timestamp with time zone", Kind::Time),
            ("date", Kind::Time),
            ("daterange", Kind::Other),
            ("jsonb", Kind::Json),
            ("integer[]", Kind::Array),
            ("character varying", Kind::Text),
            ("boolean", Kind::Boolean),
            ("bytea", Kind::Other),
            ("", Kind::Other),
            ("uuid", Kind::Other),
            ("point", Kind::Other),
        ] {
            assert_eq!(Kind::of(sql_type), kind, "{sql_type}");
        }
    }

    #[test]
    fn layouts_are_recognised() {
        let settings =
            |columns| Settings { table: None, columns, dedupe_for: std::time::Duration::ZERO, batch_rows: 1 };
        let found = |names: &[&str]| -> Vec<Column> {
            names
                .iter()
                .map(|n| Column {
                    name: (*n).into(),
                    sql_type: "text".into(),
                    kind: Kind::Text,
                    optional: false,
                })
                .collect()
        };
        let key = KEY_COLUMNS.map(|(n, _)| n);
        let table = || Table::rendered("t").unwrap();
        let all: Vec<&str> = WHOLE_COLUMNS.into_iter().chain(key).collect();
        let layout = Layout::new(table(), found(&all), &settings(None)).unwrap();
        assert!(layout.whole && layout.key_inside && layout.columns.len() == 5);
        let layout = Layout::new(table(), found(&["temp", "_seq"]), &settings(None)).unwrap();
        assert!(!layout.whole && !layout.key_inside && layout.columns.len() == 2);
        assert_eq!((layout.column("TEMP"), layout.column("x")), (Some(0), None));
        let wanted = Some(super::super::columns::parse("temp int, hum int").unwrap());
        assert!(Layout::new(table(), found(&["temp"]), &settings(wanted)).unwrap_err().contains("hum"));
    }
}
