//! What the end-to-end tests share: the set-up device -> edge -> cloud -> Kafka, PostgreSQL, SQLite, and its rows read back.
//!
//! The tables are made beforehand, without the key columns: so the key goes to `<table>_ferrule_seen`, and no index on the
//! table itself can hide a second insert. `message_id` names the outbox entry that a row was made from, and `id` is the order
//! of insertion. Reading goes through clients that are not the product's: Kafka's own consumer, `psql`, a second SQLite
//! connection.
#![forbid(unsafe_code)]

pub mod mosquitto;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ferrule_testkit::node::{assert_accounts, count};
use ferrule_testkit::oracle::{Copies, Ledger, Report};
use ferrule_testkit::proc::output;
use ferrule_testkit::{Config, Fleet, Kafka, Node, Postgres, servers};
use tempfile::TempDir;

/// What an edge does with all that the devices say.
pub const EDGE_RULES: &str = "CREATE RULE everything AS INSERT INTO cloud SELECT * FROM \"factory/#\";\n";
/// Kafka's topic.
pub const TOPIC: &str = "telemetry";
/// How long a backlog may take to drain, and a fleet to finish, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Runs Paho's Python client through `scripts/paho_round.py` with these arguments, in which no blank is quoted.
///
/// # Panics
/// When something fails, with what it said.
pub fn paho_round(args: &str) {
    let mut command = Command::new(servers::python());
    let said = output(command.arg(script("paho_round.py")).args(args.split_whitespace()));
    assert_eq!(said.trim(), "ok");
}

/// Repeatable noise.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

/// A script of the tests.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// The columns that the rules fill.
const COLUMNS: &str = "message_id text, device text, n bigint";

/// The rules of a cloud that feeds the given sinks.
#[must_use]
pub fn cloud_rules(kafka: Option<&Kafka>, postgres: Option<&Postgres>, sqlite: Option<&Path>) -> String {
    let mut rules = String::new();
    let mut tables = Vec::new();
    if let Some(postgres) = postgres {
        let _ = writeln!(
            rules,
            "CREATE SINK p WITH (connector = 'postgres', url = '{}', table = 'readings', columns = '{COLUMNS}');",
            postgres.url()
        );
        tables.push("p");
    }
    if let Some(path) = sqlite {
        let _ = writeln!(
            rules,
            "CREATE SINK s WITH (connector = 'sqlite', path = '{}', table = 'readings', columns = '{COLUMNS}');",
            path.display()
        );
        tables.push("s");
    }
    if !tables.is_empty() {
        let _ = writeln!(
            rules,
            "CREATE RULE to_sql AS INSERT INTO {} SELECT message_id, payload.device AS device, payload.n AS n FROM \"factory/#\";",
            tables.join(", ")
        );
    }
    if let Some(kafka) = kafka {
        let _ = writeln!(
            rules,
            "CREATE SINK k WITH (connector = 'kafka', brokers = '{}', topic = '{TOPIC}');\nCREATE RULE to_kafka AS INSERT INTO k SELECT * FROM \"factory/#\";",
            kafka.brokers()
        );
    }
    rules
}

/// One row of a table, in the order of insertion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `origin.boot.class.seq` of the outbox entry.
    pub message_id: String,
    /// The device.
    pub device: String,
    /// Its sequence number.
    pub n: u64,
}

/// Makes the table `readings` without key columns in PostgreSQL.
pub fn make_postgres_table(postgres: &Postgres) {
    postgres.execute("create table readings (id bigserial, message_id text, device text, n bigint)");
}

/// Makes the table `readings` without key columns in a new SQLite file.
///
/// # Panics
/// When it cannot be made.
pub fn make_sqlite_table(path: &Path) {
    let db = rusqlite::Connection::open(path).expect("a new file can be made");
    // WAL, as whoever reads while a bridge writes has it.
    db.execute_batch(
        "pragma journal_mode = wal; create table readings (id integer primary key autoincrement, message_id text, device text, n bigint);",
    )
    .expect("a table can be made");
}

/// The rows of `readings` in PostgreSQL.
#[must_use]
pub fn postgres_rows(postgres: &Postgres) -> Vec<Row> {
    let rows = postgres.query("select message_id, device, n from readings order by id");
    rows.iter().map(|line| row(line.split('|'))).collect()
}

fn row<'a>(mut columns: impl Iterator<Item = &'a str>) -> Row {
    let mut next = || columns.next().unwrap_or_default().to_owned();
    let (message_id, device, n) = (next(), next(), next());
    let n = n.parse().unwrap_or_else(|error| panic!("n of {message_id} {device} is {n:?}: {error}"));
    Row { message_id, device, n }
}

/// A connection to a SQLite file that the cloud may be writing.
///
/// # Panics
/// When it cannot be opened: whoever writes there must let others read.
#[must_use]
pub fn open_sqlite(path: &Path) -> rusqlite::Connection {
    let db = rusqlite::Connection::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    db.busy_timeout(Duration::from_secs(10)).expect("a time-out can be set");
    db
}

/// The rows of `readings` in SQLite.
///
/// # Panics
/// When they cannot be read.
#[must_use]
pub fn sqlite_rows(path: &Path) -> Vec<Row> {
    let db = open_sqlite(path);
    let mut select =
        db.prepare("select message_id, device, n from readings order by id").expect("the table is there");
    let rows = select.query_map([], |row| {
        let n: i64 = row.get(2)?;
        let n = u64::try_from(n).unwrap_or_else(|_| panic!("n is {n}"));
        Ok(Row { message_id: row.get(0)?, device: row.get(1)?, n })
    });
    rows.and_then(Iterator::collect).expect("rows of three columns that are not NULL")
}

/// The (device, n) of Kafka's records, in the order of their offsets.
///
/// # Panics
/// When a value is not what a device published.
#[must_use]
pub fn kafka_rows(kafka: &Kafka) -> Vec<(String, u64)> {
    kafka.read(TOPIC).iter().map(|record| device_and_n(&record.value)).collect()
}

/// The device and sequence number in a device's payload.
///
/// # Panics
/// When it has none.
#[must_use]
pub fn device_and_n(payload: &str) -> (String, u64) {
    let value: serde_json::Value =
        serde_json::from_str(payload).unwrap_or_else(|error| panic!("{error} in {payload:?}"));
    let device = value["device"].as_str().unwrap_or_else(|| panic!("no device in {payload}"));
    (device.to_owned(), value["n"].as_u64().unwrap_or_else(|| panic!("no n in {payload}")))
}

/// One row for each outbox entry: whatever was sent twice on the way, no entry was inserted twice.
///
/// # Panics
/// When one was, or an identity is missing.
pub fn assert_one_row_an_entry(destination: &str, rows: &[Row]) {
    let mut ids: Vec<&str> = rows.iter().map(|row| row.message_id.as_str()).collect();
    ids.sort_unstable();
    assert!(ids.first().is_none_or(|id| !id.is_empty()), "{destination}: a row without message_id");
    let before = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), before, "{destination}: outbox entries inserted twice");
}

/// Checks a table's rows against what the devices did.
///
/// # Panics
/// When a promise is broken.
pub fn check_rows(destination: &str, ledger: &Ledger, rows: &[Row], copies: Copies) -> Report {
    assert_one_row_an_entry(destination, rows);
    let report = ledger.check(rows.iter().map(|row| (row.device.as_str(), row.n)), copies);
    report.assert_ok(destination);
    report
}

/// Edge, cloud and the three destinations.
#[derive(Debug)]
pub struct Rig {
    /// The edge; its uplink goes to the cloud.
    pub edge: Node,
    /// The cloud.
    pub cloud: Node,
    /// Kafka.
    pub kafka: Kafka,
    /// PostgreSQL.
    pub postgres: Postgres,
    /// SQLite's folder.
    folder: TempDir,
}

impl Rig {
    /// Starts all of it.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let kafka = Kafka::start();
        kafka.create_topic(TOPIC, 3);
        let postgres = Postgres::start();
        make_postgres_table(&postgres);
        let sqlite = folder.path().join("sink.db");
        make_sqlite_table(&sqlite);
        let rules = cloud_rules(Some(&kafka), Some(&postgres), Some(&sqlite));
        let cloud = Node::start(&Config::cloud().rules(rules));
        let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
        Self { edge, cloud, kafka, postgres, folder }
    }

    /// SQLite's file.
    #[must_use]
    pub fn sqlite(&self) -> PathBuf {
        self.folder.path().join("sink.db")
    }

    /// Waits until every message of `fleet` is acknowledged and nothing is on its way any more, and checks that no row is
    /// unaccounted for; returns what the devices did.
    ///
    /// # Panics
    /// When something hangs or does not add up.
    #[must_use]
    pub fn settle(&self, fleet: Fleet) -> Ledger {
        let ledger = fleet.finish(PATIENCE);
        let edge = self.edge.wait_drained(PATIENCE);
        let cloud = self.cloud.wait_drained(PATIENCE);
        assert_accounts(&edge);
        assert_accounts(&cloud);
        for status in [&edge, &cloud] {
            for outbox in ferrule_testkit::node::outboxes(status) {
                assert_eq!(count(outbox, "discarded") + count(outbox, "failed"), 0, "given up: {outbox:#}");
            }
        }
        ledger
    }

    /// Checks all three destinations. `tables` bounds a message's rows in SQL, `stream` its records in Kafka.
    ///
    /// # Panics
    /// When a promise is broken.
    pub fn check(&self, ledger: &Ledger, tables: Copies, stream: Copies) {
        check_rows("PostgreSQL", ledger, &postgres_rows(&self.postgres), tables);
        check_rows("SQLite", ledger, &sqlite_rows(&self.sqlite()), tables);
        let records = kafka_rows(&self.kafka);
        let records = records.iter().map(|(device, n)| (device.as_str(), *n));
        ledger.check(records, stream).assert_ok("Kafka");
    }
}

/// Says why a test of what `make cross` builds does nothing here: the gate has no ARM builds. With `FERRULE_CROSS` set, as
/// `make cross-test` sets it, that is a failure.
///
/// # Panics
/// Then.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("FERRULE_CROSS").is_none(), "{why}");
    eprintln!("skipped: {why}");
}
