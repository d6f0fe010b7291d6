//! The demo's SQLite file, seen from outside: which rows came, and when; at the end, all of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::devices::now_ms;
use crate::ledger::{Keys, Recent};

/// Rows that the view shows.
const LAST: usize = 8;
/// How long a reader waits for the writer.
const BUSY: Duration = Duration::from_secs(1);

/// A row as the view shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The device.
    pub clientid: String,
    /// The topic.
    pub topic: String,
    /// The message.
    pub row: String,
}

/// Watches the table `readings`.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    connection: Option<Connection>,
    seen: i64,
    /// Rows seen so far.
    pub rows: u64,
    /// The last ones, oldest first.
    pub last: Vec<Row>,
    /// From the device's clock to the moment the row was seen here: at most one look later than it was there.
    pub latency: Recent,
}

impl Watch {
    /// Nothing is opened yet: the file appears with its first row.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            connection: None,
            seen: 0,
            rows: 0,
            last: Vec::new(),
            latency: Recent::default(),
        }
    }

    /// Takes the rows that came since the last look. A file or table that is not there yet, or is busy, is looked at
    /// again the next time.
    pub fn look(&mut self) {
        if self.connection.is_none() {
            self.connection = open(&self.path).ok();
        }
        if self.fetch().is_err() {
            self.connection = None;
        }
    }

    fn fetch(&mut self) -> rusqlite::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT rowid, clientid, topic, row FROM readings WHERE rowid > ? ORDER BY rowid",
        )?;
        let mut rows = statement.query([self.seen])?;
        let now = now_ms();
        while let Some(row) = rows.next()? {
            self.seen = row.get(0)?;
            self.rows += 1;
            let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            let found = Row { clientid: text(row.get(1)?), topic: text(row.get(2)?), row: text(row.get(3)?) };
            let at =
                serde_json::from_str::<serde_json::Value>(&found.row).ok().and_then(|row| row["at"].as_u64());
            if let Some(at) = at {
                self.latency.push(Duration::from_millis(now.saturating_sub(at)));
            }
            if self.last.len() == LAST {
                self.last.remove(0);
            }
            self.last.push(found);
        }
        Ok(())
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// All that stands in `readings`: keys and the number of rows.
///
/// # Errors
/// SQLite's.
pub fn read(path: &Path) -> rusqlite::Result<(Keys, u64)> {
    let connection = open(path)?;
    let mut statement = connection.prepare("SELECT row FROM readings")?;
    let mut rows = statement.query([])?;
    let (mut keys, mut count) = (Keys::default(), 0);
    while let Some(row) = rows.next()? {
        count += 1;
        if let Some(text) = row.get::<_, Option<String>>(0)? {
            keys.insert_payload(&text);
        }
    }
    Ok((keys, count))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn rows_are_seen_once_and_counted_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo.db");
        let mut watch = Watch::new(&path);
        watch.look();
        assert_eq!(watch.rows, 0, "no file yet");
        let writer = Connection::open(&path).unwrap();
        watch.look();
        writer.execute_batch("CREATE TABLE readings (clientid TEXT, topic TEXT, row TEXT)").unwrap();
        let insert = |row: String| {
            writer.execute("INSERT INTO readings VALUES ('c', 'host/x', ?)", [row]).unwrap();
        };
        for n in 1..=10 {
            insert(format!("{{\"device\":\"c\",\"n\":{n},\"at\":{}}}", now_ms()));
        }
        watch.look();
        insert(r#"{"device":"c","n":10}"#.to_owned());
        watch.look();
        assert_eq!((watch.rows, watch.last.len()), (11, LAST));
        assert_eq!(watch.last[LAST - 1].row, r#"{"device":"c","n":10}"#);
        assert!(watch.latency.summary().unwrap()[2] < Duration::from_secs(60));
        let (keys, count) = read(&path).unwrap();
        assert_eq!((keys.count(), count), (10, 11));
    }
}
