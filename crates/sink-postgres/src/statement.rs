//! The text of inserts, and their parameters.
//!
//! A batch is one statement whatever its number of rows: each column is one array parameter. All arrays are of text and
//! cast on the server, by the name of the column's type without its length: `character varying`, not `varchar(3)`, since
//! an explicit cast to the latter cuts silently (SQL-92), while the assignment into the column then refuses.

use ferrule_sinks::sql::{Insert, KEY_COLUMNS, Kind, Layout, Value, key_list, quote};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write as _;
use tokio_postgres::types::ToSql;

/// PostgreSQL's most dimensions of an array.
const DIMENSIONS_MAX: usize = 6;

/// The key columns' array types, in order.
const KEY_ARRAYS: [&str; 6] = ["text[]", "bigint[]", "smallint[]", "bigint[]", "bigint[]", "integer[]"];

/// The statement for rows with these columns of the table.
pub(crate) fn sql(layout: &Layout, columns: &[usize]) -> String {
    let table = layout.table.quoted();
    let names: Vec<String> = columns.iter().map(|&c| quote(&layout.columns[c].name)).collect();
    let casts: Vec<String> =
        columns.iter().enumerate().map(|(i, &c)| format!("u.c{i}::{}", layout.columns[c].sql_type)).collect();
    let aliases: Vec<String> =
        (0..columns.len()).map(|i| format!("c{i}")).chain((0..6).map(|i| format!("k{i}"))).collect();
    let mut arrays = String::new();
    for i in 0..columns.len() {
        let _ = write!(arrays, "${}::text[], ", i + 1);
    }
    for (i, array) in KEY_ARRAYS.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(arrays, "{comma}${}::{array}", columns.len() + i + 1);
    }
    let aliases = aliases.join(", ");
    let key = key_list();
    if layout.key_inside {
        let names: Vec<String> = names.into_iter().chain([key.clone()]).collect();
        let values: Vec<String> =
            casts.into_iter().chain(["u.k0, u.k1, u.k2, u.k3, u.k4, u.k5".to_owned()]).collect();
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM unnest({arrays}) AS u({aliases}) ON CONFLICT ({key}) DO NOTHING",
            names.join(", "),
            values.join(", ")
        )
    } else {
        let names = if names.is_empty() { String::new() } else { format!("({}) ", names.join(", ")) };
        let same: Vec<String> = KEY_COLUMNS
            .iter()
            .enumerate()
            .map(|(i, (name, _))| format!("s.{} = u.k{i}", quote(name)))
            .collect();
        format!(
            "WITH u AS MATERIALIZED (SELECT * FROM unnest({arrays}) WITH ORDINALITY AS u({aliases}, n)), s AS (INSERT INTO \
             {} ({key}, \"seen_at\") SELECT u.k0, u.k1, u.k2, u.k3, u.k4, u.k5, now() FROM u ON CONFLICT ({key}) DO NOTHING \
             RETURNING {key}) INSERT INTO {table} {names}SELECT {} FROM u JOIN s ON {} ORDER BY u.n",
            layout.table.seen().quoted(),
            casts.join(", "),
            same.join(" AND ")
        )
    }
}

/// The parameters of [`sql`].
pub(crate) struct Parameters<'a> {
    columns: Vec<Vec<Option<Cow<'a, str>>>>,
    origins: Vec<&'a str>,
    boots: Vec<i64>,
    classes: Vec<i16>,
    seqs: Vec<i64>,
    rules: Vec<i64>,
    rows: Vec<i32>,
}

impl<'a> Parameters<'a> {
    pub(crate) fn new(insert: Insert<'a>) -> Self {
        let rows = insert.rows.len();
        let mut p = Self {
            columns: insert.columns.iter().map(|_| Vec::with_capacity(rows)).collect(),
            origins: Vec::with_capacity(rows),
            boots: Vec::with_capacity(rows),
            classes: Vec::with_capacity(rows),
            seqs: Vec::with_capacity(rows),
            rules: Vec::with_capacity(rows),
            rows: Vec::with_capacity(rows),
        };
        // Beside a foreign table the same key twice in one statement would be joined twice.
        let mut once = (!insert.layout.key_inside).then(HashSet::new);
        for row in insert.rows {
            if once.as_mut().is_some_and(|keys| !keys.insert(row.key)) {
                continue;
            }
            for ((value, &column), array) in row.values.iter().zip(insert.columns).zip(&mut p.columns) {
                array.push(text(value, insert.layout.columns[column].kind));
            }
            p.origins.push(row.key.origin);
            p.boots.push(row.key.boot);
            p.classes.push(row.key.class);
            p.seqs.push(row.key.seq);
            p.rules.push(row.key.rule);
            p.rows.push(row.key.row);
        }
        p
    }

    pub(crate) fn list(&self) -> Vec<&(dyn ToSql + Sync)> {
        let columns = self.columns.iter().map(|c| c as &(dyn ToSql + Sync));
        let key: [&(dyn ToSql + Sync); 6] =
            [&self.origins, &self.boots, &self.classes, &self.seqs, &self.rules, &self.rows];
        columns.chain(key).collect()
    }
}

fn text<'a>(value: &'a Value<'_>, kind: Kind) -> Option<Cow<'a, str>> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(true) => Cow::Borrowed("true"),
        Value::Bool(false) => Cow::Borrowed("false"),
        Value::Json(json) if kind == Kind::Array => array(json).map_or(Cow::Borrowed(&**json), Cow::Owned),
        Value::Number(t) | Value::Text(t) | Value::Json(t) => Cow::Borrowed(&**t),
    })
}

/// A JSON array as PostgreSQL writes arrays; none when it is not one, or too deep.
fn array(json: &str) -> Option<String> {
    let mut out = String::with_capacity(json.len());
    write_array(json, DIMENSIONS_MAX, &mut out)?;
    Some(out)
}

/// Recursion is bounded by `depth`.
fn write_array(json: &str, depth: usize, out: &mut String) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    out.push('{');
    for (i, item) in items.iter().map(|item| item.get()).enumerate() {
        if i > 0 {
            out.push(',');
        }
        match item.as_bytes().first() {
            Some(b'[') => write_array(item, depth, out)?,
            Some(b'n') => out.push_str("NULL"),
            Some(b'"') => write_element(&serde_json::from_str::<String>(item).ok()?, out),
            Some(b'{') => write_element(item, out),
            _ => out.push_str(item),
        }
    }
    out.push('}');
    Some(())
}

fn write_element(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use ferrule_sinks::sql::{Column, Table};

    fn layout(key_inside: bool) -> Layout {
        let column = |name: &str, sql_type: &str| Column {
            name: name.into(),
            sql_type: sql_type.into(),
            kind: Kind::of(sql_type),
            optional: false,
        };
        Layout {
            table: Table::rendered("t").unwrap(),
            columns: vec![column("a\"", "timestamp with time zone"), column("b", "integer")],
            whole: false,
            key_inside,
        }
    }

    #[test]
    fn statements_are_text_but_for_values() {
        assert_eq!(
            sql(&layout(true), &[0, 1]),
            "INSERT INTO \"t\" (\"a\"\"\", \"b\", \"_origin\", \"_boot\", \"_class\", \"_seq\", \"_rule\", \"_row\") \
             SELECT u.c0::timestamp with time zone, u.c1::integer, u.k0, u.k1, u.k2, u.k3, u.k4, u.k5 FROM \
             unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::smallint[], $6::bigint[], $7::bigint[], \
             $8::integer[]) AS u(c0, c1, k0, k1, k2, k3, k4, k5) ON CONFLICT (\"_origin\", \"_boot\", \"_class\", \"_seq\", \
             \"_rule\", \"_row\") DO NOTHING"
        );
        let seen = sql(&layout(false), &[1]);
        assert!(
            seen.contains("INSERT INTO \"t_ferrule_seen\"")
                && seen.contains("INSERT INTO \"t\" (\"b\") SELECT u.c0::integer")
        );
        assert!(sql(&layout(false), &[]).contains("INSERT INTO \"t\" SELECT  FROM u"));
    }

    #[test]
    fn arrays_are_written_as_postgres_reads_them() {
        for (json, wanted) in [
            ("[]", Some("{}")),
            ("[1, 2.5,null]", Some("{1,2.5,NULL}")),
            (r#"["a\"\\,{"]"#, Some(r#"{"a\"\\,{"}"#)),
            ("[[true],[false]]", Some("{{true},{false}}")),
            (r#"[{"a":1}]"#, Some(r#"{"{\"a\":1}"}"#)),
            ("[[[[[[[1]]]]]]]", None),
            ("{}", None),
        ] {
            assert_eq!(array(json).as_deref(), wanted, "{json}");
        }
    }
}
