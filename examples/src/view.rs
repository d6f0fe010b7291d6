//! What the demo shows: a screen that is drawn again, or a line now and then when nobody looks at a screen.

use std::fmt::Write as _;
use std::time::Duration;

use crate::ledger::Recent;
use crate::node::Outbox;
use crate::store::Row;

/// Everything that one drawing needs.
#[derive(Debug)]
pub struct Picture<'a> {
    /// Since the first message.
    pub running: Duration,
    /// Devices, messages published, messages acknowledged.
    pub devices: usize,
    /// See `devices`.
    pub published: u64,
    /// See `devices`.
    pub acknowledged: u64,
    /// Publish to PUBACK.
    pub puback: &'a Recent,
    /// Publish to row.
    pub row: &'a Recent,
    /// Rows in SQLite.
    pub rows: u64,
    /// The last of them.
    pub last: &'a [Row],
    /// Whether there is a Kafka, and why not.
    pub kafka: Result<String, &'a str>,
    /// Outboxes of the edge; `None` when it does not answer.
    pub edge: Option<Vec<Outbox>>,
    /// Outboxes of the cloud.
    pub cloud: Option<Vec<Outbox>>,
    /// Rules of the edge: name, matched, passed, filtered, failed, rows.
    pub rules: Vec<(String, [u64; 5])>,
    /// Whether the uplink is up.
    pub uplink: String,
    /// Ports of edge and cloud, and the file.
    pub edge_port: u16,
    /// See `edge_port`.
    pub cloud_port: u16,
    /// See `edge_port`.
    pub database: String,
}

fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}

fn latency(recent: &Recent) -> String {
    recent.summary().map_or_else(
        || format!("{:>9} {:>9} {:>9}", "-", "-", "-"),
        |[p50, p99, max]| format!("{:>9} {:>9} {:>9}", ms(p50), ms(p99), ms(max)),
    )
}

/// One line, for logs.
#[must_use]
pub fn line(picture: &Picture<'_>) -> String {
    let waiting = |outboxes: &Option<Vec<Outbox>>| {
        outboxes.as_ref().map_or("-".to_owned(), |outboxes| {
            outboxes.iter().map(|outbox| outbox.queued + outbox.in_flight).sum::<u64>().to_string()
        })
    };
    let p50 =
        |recent: &Recent| recent.summary().map_or("-".to_owned(), |[p50, ..]| format!("{} ms", ms(p50)));
    let delivered =
        picture.cloud.iter().flatten().find(|outbox| outbox.name == "bus").map(|outbox| outbox.delivered);
    format!(
        "demo: {:>4} s  {} devices  published {}  acknowledged {}  sqlite {}  kafka {}  waiting at edge {}, cloud {}  PUBACK p50 {}  row p50 {}",
        picture.running.as_secs(),
        picture.devices,
        picture.published,
        picture.acknowledged,
        picture.rows,
        delivered.map_or("-".to_owned(), |delivered| delivered.to_string()),
        waiting(&picture.edge),
        waiting(&picture.cloud),
        p50(picture.puback),
        p50(picture.row),
    )
}

/// A whole screen: escape sequences put the cursor home, clear each line's rest and what is below.
///
/// It never fills the last of `height` lines, or a redraw would scroll. Lines are cut at `width` columns, but for the
/// commands, which are there to be copied whole: they wrap. Where there is not room for all, commands go first, then rows.
#[must_use]
pub fn screen(picture: &Picture<'_>, width: usize, height: usize) -> String {
    let width = width.max(1);
    let cut = |line: &String| line.chars().take(width).collect::<String>();
    let high = |line: &String| line.chars().count().div_ceil(width).max(1);
    let (figures, rows, commands) = (figures(picture), rows(picture), commands(picture));
    let mut shown: Vec<String> = figures.iter().map(cut).collect();
    let mut room = height.saturating_sub(1 + shown.len());
    let for_commands: usize = commands.iter().map(high).sum();
    // A heading and two rows are worth more than the commands.
    let for_rows = room.saturating_sub(for_commands).max(room.min(4)).min(rows.len());
    shown.extend(rows.iter().take(for_rows).map(cut));
    room -= for_rows;
    for command in commands {
        let lines = high(&command);
        if lines > room {
            break;
        }
        room -= lines;
        shown.push(command);
    }
    let mut text = String::from("\x1b[H");
    for line in shown.iter().take(height.saturating_sub(1)) {
        let _ = write!(text, "{line}\x1b[K\r\n");
    }
    text.push_str("\x1b[J");
    text
}

fn figures(picture: &Picture<'_>) -> Vec<String> {
    let seconds = picture.running.as_secs();
    let way = if picture.kafka.is_ok() { "SQLite, Kafka" } else { "SQLite" };
    let mut lines = vec![
        format!(
            "Ferrule demo, {}:{:02}    devices -> edge -> cloud -> {way}    Ctrl-C ends it",
            seconds / 60,
            seconds % 60
        ),
        String::new(),
        format!(
            "{} devices   published {}   acknowledged {}   rows in SQLite {}   uplink {}",
            picture.devices, picture.published, picture.acknowledged, picture.rows, picture.uplink
        ),
        String::new(),
        format!("{:<22} {:>9} {:>9} {:>9}", "latency, ms", "p50", "p99", "max"),
        format!("{:<22} {}", "device: PUBACK", latency(picture.puback)),
        format!("{:<22} {}", "device: row in SQLite", latency(picture.row)),
        String::new(),
        format!(
            "{:<14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  {}",
            "outbox", "entered", "delivered", "in flight", "queued", "on disk", "given up", "state"
        ),
    ];
    for (node, outboxes) in [("edge", &picture.edge), ("cloud", &picture.cloud)] {
        match outboxes {
            Some(outboxes) => lines.extend(outboxes.iter().map(|outbox| outbox_line(node, outbox))),
            None => lines.push(format!("{node} does not answer")),
        }
    }
    if let Err(why) = picture.kafka {
        lines.push(format!("{:<14} {why}", "kafka -"));
    }
    lines.push(String::new());
    lines.push(format!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "edge's rule", "matched", "passed", "filtered", "failed", "rows"
    ));
    for (name, counts) in &picture.rules {
        let counts: Vec<String> = counts.iter().map(|count| format!("{count:>9}")).collect();
        lines.push(format!("{name:<14} {}", counts.join(" ")));
    }
    lines
}

fn rows(picture: &Picture<'_>) -> Vec<String> {
    let mut lines = vec![String::new(), "last rows in SQLite, newest first".to_owned()];
    lines.extend(picture.last.iter().rev().map(|row| format!("  {:<18} {}", row.topic, row.row)));
    lines
}

fn commands(picture: &Picture<'_>) -> Vec<String> {
    let database = &picture.database;
    let mut lines = vec![
        String::new(),
        "look further".to_owned(),
        format!("  sqlite3 {database} 'SELECT * FROM readings ORDER BY rowid DESC LIMIT 10'"),
        format!("  sqlite3 {database} 'SELECT topic, row FROM alerts LIMIT 10'"),
        format!("  mosquitto_sub -p {} -v -t 'host/#'       (at the edge)", picture.edge_port),
        format!("  mosquitto_sub -p {} -v -t 'alerts/#'     (at the cloud)", picture.cloud_port),
    ];
    if let Ok(brokers) = &picture.kafka {
        lines.push(format!(
            "  tests/servers/kafka/kafka.sh tool org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server {brokers} --topic telemetry"
        ));
    }
    lines
}

fn outbox_line(node: &str, outbox: &Outbox) -> String {
    let mut line = format!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  {}",
        format!("{node}: {}", outbox.name),
        outbox.entered + outbox.recovered,
        outbox.delivered,
        outbox.in_flight,
        outbox.queued,
        outbox.stored,
        outbox.failed + outbox.discarded,
        outbox.state
    );
    if let Some(error) = outbox.last_error.as_ref().filter(|_| outbox.state != "up") {
        let _ = write!(line, " ({error})");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let mut recent = Recent::default();
        recent.push(Duration::from_micros(1500));
        let outbox = |name: &str| Outbox {
            name: name.to_owned(),
            entered: 5,
            delivered: 4,
            queued: 1,
            state: "down".to_owned(),
            last_error: Some("refused".to_owned()),
            ..Outbox::default()
        };
        let row = Row { clientid: "c".to_owned(), topic: "host/load".to_owned(), row: "{}".to_owned() };
        let picture = Picture {
            running: Duration::from_secs(65),
            devices: 3,
            published: 5,
            acknowledged: 4,
            puback: &recent,
            row: &Recent::default(),
            rows: 4,
            last: &[row],
            kafka: Err("no java"),
            edge: Some(vec![outbox("cloud")]),
            cloud: None,
            rules: vec![("everything".to_owned(), [5, 5, 0, 0, 5])],
            uplink: "up".to_owned(),
            edge_port: 1,
            cloud_port: 2,
            database: "demo.db".to_owned(),
        };
        let line = line(&picture);
        assert!(
            line.contains("published 5  acknowledged 4  sqlite 4  kafka -  waiting at edge 1, cloud -"),
            "{line}"
        );
        assert!(line.ends_with("PUBACK p50 1.5 ms  row p50 -"), "{line}");
        let full = screen(&picture, 100, 50);
        for part in [
            "1:05",
            "edge: cloud",
            "down (refused)",
            "cloud does not answer",
            "kafka -        no java",
            "host/load",
        ] {
            assert!(full.contains(part), "{part} in {full}");
        }
        for (width, height) in [(100, 50), (80, 24), (20, 10), (1, 1), (0, 0)] {
            let screen = screen(&picture, width, height);
            let lines: Vec<&str> = screen.split("\x1b[K\r\n").collect();
            let high =
                |line: &&str| line.trim_start_matches("\x1b[H").chars().count().div_ceil(width.max(1)).max(1);
            let used: usize = lines[..lines.len() - 1].iter().map(high).sum();
            assert!(used <= height.saturating_sub(1), "{used} lines of {height}: {screen}");
        }
    }
}
