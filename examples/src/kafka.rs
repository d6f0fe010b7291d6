//! A real Kafka, where java and mvn are present: `tests/servers/kafka/kafka.sh` fetches and runs it.
//!
//! Read back by Kafka's own console consumer, which shares no code with the client that wrote.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use ferrule_testkit::port;
use ferrule_testkit::proc::{Launch, Process};

use crate::ledger::Keys;

/// The topic that `examples/demo/cloud-kafka.sql` writes to.
pub const TOPIC: &str = "telemetry";
/// Its partitions.
const PARTITIONS: &str = "3";
/// How long the console consumer waits for a record before it gives up.
const READ: Duration = Duration::from_secs(20);

/// A running broker with the demo's topic. Killed when dropped, or when this process ends.
#[derive(Debug)]
pub struct Kafka {
    _process: Process,
    port: u16,
}

impl Kafka {
    /// Fetches Kafka's jars if need be, starts a broker in `folder` and makes the topic.
    ///
    /// # Errors
    /// Why there is no Kafka, in one line: a reason to go on without it.
    pub fn start(folder: &Path) -> Result<Self, String> {
        for program in ["java", "mvn"] {
            if !on_path(program) {
                return Err(format!(
                    "no {program} here; to add it: apt-get install -y openjdk-17-jre-headless maven"
                ));
            }
        }
        if !script().is_file() {
            return Err(format!("{} is not there", script().display()));
        }
        run(["fetch"])?;
        let port = port::free_run(2);
        let data = folder.join("kafka");
        let process = Launch::new("kafka", "setsid", folder.join("kafka.log"))
            .arg("bash")
            .arg(script())
            .arg("run")
            .arg(&data)
            .arg(port.to_string())
            .start();
        let kafka = Self { _process: process, port };
        run([OsStr::new("wait"), data.as_os_str()])?;
        let port = port.to_string();
        run(["topics", &port, "create", "--topic", TOPIC, "--partitions", PARTITIONS])?;
        Ok(kafka)
    }

    /// `127.0.0.1:PORT`
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// All that stands in the topic: keys and the number of records.
    ///
    /// # Errors
    /// What the tools said.
    pub fn read(&self) -> Result<(Keys, u64), String> {
        let brokers = self.brokers();
        let offsets = run([
            "tool",
            "org.apache.kafka.tools.GetOffsetShell",
            "--bootstrap-server",
            &brokers,
            "--topic",
            TOPIC,
        ])?;
        let count = end_offsets(&offsets);
        let mut keys = Keys::default();
        if count == 0 {
            return Ok((keys, 0));
        }
        let records = run([
            "tool",
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            "--bootstrap-server",
            &brokers,
            "--topic",
            TOPIC,
            "--from-beginning",
            "--max-messages",
            &count.to_string(),
            "--timeout-ms",
            &READ.as_millis().to_string(),
        ])?;
        for record in records.lines() {
            keys.insert_payload(record);
        }
        Ok((keys, count))
    }
}

/// The sum of lines `topic:partition:offset`.
fn end_offsets(text: &str) -> u64 {
    text.lines().filter_map(|line| line.rsplit(':').next()?.trim().parse::<u64>().ok()).sum()
}

fn script() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/servers/kafka/kafka.sh"))
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs `kafka.sh` to its end; its standard output.
fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Result<String, String> {
    let output = Command::new("bash").arg(script()).args(args).output();
    let Output { status, stdout, stderr } = output.map_err(|error| format!("bash: {error}"))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&stderr);
    Err(stderr.lines().last().unwrap_or("kafka.sh failed without a word").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_summed() {
        assert_eq!(end_offsets("telemetry:0:5\ntelemetry:1:0\ntelemetry:2:37\n"), 42);
        assert_eq!(end_offsets(""), 0);
    }
}
