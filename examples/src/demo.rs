//! The main job on real input: from devices over edge and cloud into SQLite and Kafka.
//!
//! # What it does
//! The figures of the machine it runs on (load, memory, CPUs, disks, network, from `/proc`) are published by a stock MQTT
//! client a device, QoS 1, to a `ferrule-edge`; one rule there passes everything on to a `ferrule-cloud`, two others
//! compute and filter; the cloud's rules put it into SQLite and, where java and mvn are present, into Kafka. Edge and
//! cloud are the released binaries, configured by the files in `examples/demo`. While it runs it shows what arrives.
//!
//! # How it ends
//! After `DEMO_SECONDS`, or by Ctrl-C: no more is published, the last acknowledgements come, every outbox empties (30 s at
//! most for all of that), and what stands at the destinations is read back and compared, by device and number, with what
//! was acknowledged. The last line is `demo: published N acknowledged N sqlite N kafka N lost N`, and the exit status is 0
//! only if nothing acknowledged is missing anywhere. A second Ctrl-C ends it at once.
//!
//! # Invariants
//! - Nothing outlives it: children die with their guards or, when this process is killed, by their parent-death signal.
//! - All its state is in one temporary folder, all its ports are free ones.
#![allow(clippy::print_stdout, reason = "what it shows is what it is for")]

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferrule_testkit::port;
use serde_json::Value;
use tempfile::TempDir;
use thiserror::Error;

use crate::devices::Fleet;
use crate::figures::Sampler;
use crate::kafka::Kafka;
use crate::node::{self, Node};
use crate::store::{self, Watch};
use crate::view::{self, Picture};

/// How often SQLite is looked at: the error of the row latency.
const LOOK: Duration = Duration::from_millis(20);
/// How often the screen is drawn.
const DRAW: Duration = Duration::from_millis(500);
/// How often a line is written when there is no screen.
const LINE: Duration = Duration::from_secs(5);
/// How long the orderly end may take until the destinations are read.
const END: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Between two readings of a device.
    pub interval: Duration,
    /// How long to publish; until a signal when absent.
    pub length: Option<Duration>,
    /// Start a Kafka where one can be started.
    pub kafka: bool,
    /// Keep the folder with data, logs and the SQLite file.
    pub keep: bool,
}

/// Why the demo cannot go on.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A binary is not built.
    #[error("{} is not there: run `make demo`, which builds it", .0.display())]
    NotBuilt(PathBuf),
    /// Something of the operating system's.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// Edge or cloud.
    #[error("{name} {what}; its last words:\n{said}")]
    Node {
        /// Which.
        name: &'static str,
        /// What it did.
        what: String,
        /// The end of its output.
        said: String,
    },
}

impl DemoError {
    pub(crate) fn new(what: &'static str, error: io::Error) -> Self {
        Self::System { what, error }
    }
}

/// The whole demo; whether nothing was lost.
///
/// # Errors
/// What keeps it from going on.
pub fn run(options: &Options) -> Result<bool, DemoError> {
    // Before anything is started.
    node::binary("ferrule-edge")?;
    node::binary("ferrule-cloud")?;
    let folder = tempfile::Builder::new().prefix("ferrule-demo-").tempdir();
    let mut folder = folder.map_err(|error| DemoError::new("make a folder", error))?;
    if options.keep {
        folder.disable_cleanup(true);
        println!("everything is kept in {}", folder.path().display());
    }
    let mut demo = Demo::start(options, folder)?;
    let stop = demo.on_signal();
    demo.publish(options, &stop)?;
    demo.end()
}

struct Demo {
    // Dropped in this order: devices, edge, cloud, Kafka, then the folder that they write into.
    fleet: Fleet,
    edge: Node,
    cloud: Node,
    kafka: Result<Kafka, String>,
    watch: Watch,
    edge_port: u16,
    cloud_port: u16,
    database: PathBuf,
    started: Instant,
    _folder: TempDir,
}

impl Demo {
    fn start(options: &Options, folder: TempDir) -> Result<Self, DemoError> {
        let kafka = if !options.kafka {
            Err("left out (--no-kafka)".to_owned())
        } else {
            println!("starting kafka (the first time its jars are fetched)");
            Kafka::start(folder.path())
        };
        if let Err(why) = &kafka {
            println!("kafka - ({why})");
        }
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let database = folder.path().join("demo.db");
        let rules = cloud_rules(&configs, &database, kafka.as_ref().ok())?;
        let rules_file = folder.path().join("cloud.sql");
        std::fs::write(&rules_file, rules)
            .map_err(|error| DemoError::new("write the cloud's rules", error))?;
        let (edge_port, cloud_port) = (port::free(), port::free());

        println!("starting ferrule-cloud and ferrule-edge");
        let cloud_data = folder.path().join("cloud");
        let cloud = Node::start(
            "ferrule-cloud",
            &configs.join("cloud.toml"),
            &cloud_data,
            &[
                ("FERRULE__NODE__DATA_DIR", &cloud_data.display().to_string()),
                ("FERRULE__NODE__RULES", &rules_file.display().to_string()),
                ("FERRULE__LISTENER__0__BIND", &format!("127.0.0.1:{cloud_port}")),
            ],
            &folder.path().join("cloud.log"),
        )?;
        let edge_data = folder.path().join("edge");
        let edge = Node::start(
            "ferrule-edge",
            &configs.join("edge.toml"),
            &edge_data,
            &[
                ("FERRULE__EDGE__DATA_DIR", &edge_data.display().to_string()),
                ("FERRULE__LISTENER__0__BIND", &format!("127.0.0.1:{edge_port}")),
                ("FERRULE__UPLINK__URL", &format!("mqtt://127.0.0.1:{cloud_port}")),
            ],
            &folder.path().join("edge.log"),
        )?;
        let fleet =
            Fleet::new(edge_port).map_err(|error| DemoError::new("start the devices' threads", error))?;
        let watch = Watch::new(&database);
        let started = Instant::now();
        Ok(Self {
            fleet,
            edge,
            cloud,
            kafka,
            watch,
            edge_port,
            cloud_port,
            database,
            started,
            _folder: folder,
        })
    }

    /// Set by the first SIGINT or SIGTERM; the second ends the process (its children go with it).
    fn on_signal(&self) -> Arc<AtomicBool> {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&stop);
        self.fleet.runtime().spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if shared.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
        stop
    }

    /// Publishes and shows until it is time to end.
    fn publish(&mut self, options: &Options, stop: &AtomicBool) -> Result<(), DemoError> {
        let mut sampler = Sampler::default();
        let interval = options.interval;
        let terminal = io::stdout().is_terminal();
        let (mut next_sample, mut next_draw) = (Instant::now(), Instant::now());
        if terminal {
            print!("\x1b[2J");
        }
        self.started = Instant::now();
        while !stop.load(Ordering::Relaxed)
            && options.length.is_none_or(|length| self.started.elapsed() < length)
        {
            if Instant::now() >= next_sample {
                next_sample += interval;
                for reading in sampler.sample() {
                    self.fleet.publish(&reading);
                }
            }
            self.watch.look();
            if Instant::now() >= next_draw {
                next_draw = Instant::now() + if terminal { DRAW } else { LINE };
                self.edge.check()?;
                self.cloud.check()?;
                self.draw(terminal);
            }
            std::thread::sleep(LOOK.min(interval));
        }
        Ok(())
    }

    fn draw(&self, terminal: bool) {
        let (edge, cloud) = (self.edge.status(), self.cloud.status());
        let ledger = self.fleet.ledger();
        let picture = Picture {
            running: self.started.elapsed(),
            devices: ledger.devices(),
            published: ledger.published(),
            acknowledged: ledger.acknowledged(),
            puback: &ledger.puback,
            row: &self.watch.latency,
            rows: self.watch.rows,
            last: &self.watch.last,
            kafka: self.kafka.as_ref().map(Kafka::brokers).map_err(String::as_str),
            rules: edge.as_ref().map(rules).unwrap_or_default(),
            uplink: edge
                .as_ref()
                .and_then(|status| Some(status["uplink"]["state"].as_str()?.to_owned()))
                .unwrap_or_else(|| "?".to_owned()),
            edge: edge.as_ref().map(node::outboxes),
            cloud: cloud.as_ref().map(node::outboxes),
            edge_port: self.edge_port,
            cloud_port: self.cloud_port,
            database: self.database.display().to_string(),
        };
        let text = if terminal {
            {
                let (width, height) = terminal_size();
                view::screen(&picture, width, height)
            }
        } else {
            format!("{}\n", view::line(&picture))
        };
        let mut out = io::stdout().lock();
        // A reader that has gone (`| head`) is no reason to fail.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Waits until everything has arrived, reads it back, and says so; whether nothing is lost.
    fn end(mut self) -> Result<bool, DemoError> {
        println!("\ndemo: ending: the last acknowledgements, then until every outbox is empty");
        let deadline = Instant::now() + END;
        let mut quiet = false;
        while !quiet && Instant::now() < deadline {
            self.edge.check()?;
            self.cloud.check()?;
            self.watch.look();
            let all = {
                let ledger = self.fleet.ledger();
                ledger.acknowledged() == ledger.published()
            };
            // The edge first: what it still holds has yet to enter the cloud's.
            let empty = |node: &Node| node.status().is_some_and(|status| node::is_empty(&status));
            quiet = all && empty(&self.edge) && empty(&self.cloud);
            std::thread::sleep(LOOK);
        }
        if !quiet {
            println!("demo: not everything is quiet after {} s", END.as_secs());
        }
        self.draw(false);
        let ledger = self.fleet.ledger();
        let mut missing = std::collections::BTreeSet::new();
        let mut unread = false;

        let sqlite = match store::read(&self.database) {
            Ok((keys, rows)) => {
                duplicates("sqlite", rows, keys.count());
                missing.extend(ledger.missing(&keys));
                keys.count().to_string()
            }
            Err(error) => {
                println!("demo: {}: {error}", self.database.display());
                unread = true;
                "?".to_owned()
            }
        };
        let kafka = match self.kafka.as_ref().map(Kafka::read) {
            Err(_) => "-".to_owned(),
            Ok(Ok((keys, records))) => {
                duplicates("kafka", records, keys.count());
                missing.extend(ledger.missing(&keys));
                keys.count().to_string()
            }
            Ok(Err(error)) => {
                println!("demo: kafka cannot be read back: {error}");
                unread = true;
                "?".to_owned()
            }
        };
        for (device, n) in missing.iter().take(10) {
            println!("demo: acknowledged and missing: {device} number {n}");
        }
        let (published, acknowledged) = (ledger.published(), ledger.acknowledged());
        let lost = if unread { acknowledged } else { missing.len() as u64 };
        drop(ledger);
        let Self { edge, cloud, .. } = self;
        edge.stop();
        cloud.stop();
        println!(
            "demo: published {published} acknowledged {acknowledged} sqlite {sqlite} kafka {kafka} lost {lost}"
        );
        Ok(lost == 0)
    }
}

/// More records than keys are no loss, and no secret.
fn duplicates(destination: &str, records: u64, keys: usize) {
    let more = records.saturating_sub(keys as u64);
    if more > 0 {
        println!("demo: {destination} has {more} beyond the first of their key");
    }
}

/// `cloud.sql` with this run's file and, where there is a Kafka, `cloud-kafka.sql` with its address.
fn cloud_rules(configs: &Path, database: &Path, kafka: Option<&Kafka>) -> Result<String, DemoError> {
    let read = |name: &str| {
        std::fs::read_to_string(configs.join(name))
            .map_err(|error| DemoError::new("read the demo's rules", error))
    };
    let mut rules = read("cloud.sql")?.replace(".demo/demo.db", &database.display().to_string());
    if let Some(kafka) = kafka {
        rules.push('\n');
        rules.push_str(&read("cloud-kafka.sql")?.replace("127.0.0.1:9092", &kafka.brokers()));
    }
    Ok(rules)
}

/// Rules of a status: name, then matched, passed, filtered, failed, rows.
fn rules(status: &Value) -> Vec<(String, [u64; 5])> {
    let list = status["rules"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|rule| {
            let counts = ["matched", "passed", "filtered", "failed", "rows_out"];
            (
                rule["name"].as_str().unwrap_or_default().to_owned(),
                counts.map(|name| rule[name].as_u64().unwrap_or_default()),
            )
        })
        .collect()
}

/// The terminal's columns and lines; 100 and 40 when it does not say.
fn terminal_size() -> (usize, usize) {
    let stty = std::process::Command::new("stty").arg("size").stdin(std::process::Stdio::inherit()).output();
    let text = stty.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let numbers: Vec<usize> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [lines, columns] if lines > 0 && columns > 0 => (columns, lines),
        _ => (100, 40),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_files_say_what_the_demo_replaces() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let rules = cloud_rules(&configs, Path::new("/x/y.db"), None).unwrap();
        assert!(rules.contains("path = '/x/y.db'") && !rules.contains("kafka"), "{rules}");
        let kafka = std::fs::read_to_string(configs.join("cloud-kafka.sql")).unwrap();
        assert!(
            kafka.contains("brokers = '127.0.0.1:9092'")
                && kafka.contains(&format!("topic = '{}'", crate::kafka::TOPIC))
        );
    }

    #[test]
    fn rules_of_a_status() {
        let status = serde_json::json!({"rules": [{"name": "a", "matched": 3, "passed": 2, "filtered": 1, "rows_out": 2}]});
        assert_eq!(rules(&status), [("a".to_owned(), [3, 2, 1, 0, 2])]);
        assert_eq!(rules(&Value::Null), []);
    }
}
