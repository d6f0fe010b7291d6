//! One real Kafka broker (KRaft) by `tests/servers/kafka/kafka.sh`, and its topics read back.
//!
//! Reading goes through Kafka's own console consumer (the Java client): an oracle that shares no code with the librdkafka
//! that wrote. It stops at the end offset asked for before, so it never waits for a time-out.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::{INSTALL, scripts};
use crate::port;
use crate::proc::{Launch, Process, output};

/// A running broker. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    folder: TempDir,
    port: u16,
}

/// A record read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its partition.
    pub partition: u32,
    /// Its place in the partition.
    pub offset: u64,
    /// `name:value` pairs as the console consumer prints them, or `NO_HEADERS`.
    pub headers: String,
    /// Its key; None for a null key.
    pub key: Option<String>,
    /// Its value, as text.
    pub value: String,
}

/// Separates the fields of a printed record: not part of any JSON, key or header in a test.
const SEPARATOR: &str = "\u{1f}";

impl Kafka {
    /// Starts a broker without topics.
    ///
    /// # Panics
    /// When it does not serve within a minute, or Kafka is not installed.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // The broker and, on the port behind it, its controller.
        let port = port::free_run(2);
        let process = Launch::new("kafka", "bash", folder.path().join("output.log"))
            .arg(script())
            .arg("run")
            .arg(folder.path().join("k"))
            .arg(port.to_string())
            .start();
        let kafka = Self { process, folder, port };
        kafka.wait_ready();
        kafka
    }

    /// Until ApiVersions is answered and Metadata shows the broker.
    fn wait_ready(&self) {
        let status = Command::new("bash").arg(script()).arg("wait").arg(self.data()).status();
        assert!(
            status.as_ref().is_ok_and(std::process::ExitStatus::success),
            "kafka is not ready ({status:?}); not installed? {INSTALL}\n{}",
            self.process.tail(40)
        );
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("k")
    }

    /// `127.0.0.1:PORT`, for `brokers = '...'`.
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Makes a topic.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create_topic(&self, name: &str, partitions: u32) {
        let partitions = partitions.to_string();
        self.tool("TopicCommand", &["--create", "--topic", name, "--partitions", &partitions]);
    }

    /// How many records the topic has held so far, over all partitions.
    ///
    /// # Panics
    /// When the broker does not answer.
    #[must_use]
    pub fn record_count(&self, topic: &str) -> u64 {
        // Lines of `topic:partition:end offset`.
        let offsets = self.tool("GetOffsetShell", &["--topic", topic]);
        offsets.lines().filter_map(|line| line.rsplit(':').next()?.trim().parse::<u64>().ok()).sum()
    }

    /// All records of a topic, from the beginning, in the order of their offsets within each partition.
    ///
    /// # Panics
    /// When the broker does not answer, or a record holds what this cannot print apart.
    #[must_use]
    pub fn read(&self, topic: &str) -> Vec<Record> {
        let count = self.record_count(topic);
        if count == 0 {
            return Vec::new();
        }
        let separator = format!("key.separator={SEPARATOR}");
        let count = count.to_string();
        let mut args =
            vec!["--topic", topic, "--from-beginning", "--max-messages", &count, "--timeout-ms", "30000"];
        for property in [
            "print.partition=true",
            "print.offset=true",
            "print.headers=true",
            "print.key=true",
            "null.literal=\u{1e}",
            &separator,
        ] {
            args.extend(["--formatter-property", property]);
        }
        self.tool("consumer.ConsoleConsumer", &args).lines().map(parse).collect()
    }

    /// A tool of Kafka's, in a small JVM of its own (about a second).
    fn tool(&self, class: &str, args: &[&str]) -> String {
        let class = format!("org.apache.kafka.tools.{class}");
        let brokers = self.brokers();
        output(
            Command::new("bash")
                .arg(script())
                .args(["tool", &class, "--bootstrap-server", &brokers])
                .args(args),
        )
    }

    /// SIGKILL. What it has acknowledged is with the kernel, and so survives this (a power cut it might not).
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// The same broker again, same port and data; kills it first if it runs. Takes some 6 s after a kill: Kafka waits for
    /// the old registration to expire.
    ///
    /// # Panics
    /// When it does not serve within a minute.
    pub fn restart(&mut self) {
        self.process.restart();
        self.wait_ready();
    }

    /// SIGSTOP: connections are still accepted by the kernel, requests hang.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Waits until a topic holds at least `count` records.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub fn wait_records(&self, topic: &str, count: u64, limit: Duration) {
        crate::until(limit, &format!("{count} records in {topic}"), || {
            (self.record_count(topic) >= count).then_some(())
        });
    }
}

fn script() -> PathBuf {
    scripts().join("kafka/kafka.sh")
}

/// One line of the console consumer: `Partition:0 Offset:7 headers key value`, in that order.
fn parse(line: &str) -> Record {
    let fields: Vec<&str> = line.splitn(5, SEPARATOR).collect();
    let [partition, offset, headers, key, value] = fields[..] else {
        panic!("not a record of five fields: {line:?}");
    };
    let number = |field: &str, name: &str| -> u64 {
        field
            .strip_prefix(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {line:?}"))
    };
    Record {
        partition: u32::try_from(number(partition, "Partition:")).expect("a partition number is small"),
        offset: number(offset, "Offset:"),
        headers: headers.to_owned(),
        key: (key != "\u{1e}").then(|| key.to_owned()),
        value: value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_read_back_after_a_kill() {
        let mut kafka = Kafka::start();
        kafka.create_topic("t", 2);
        assert_eq!(kafka.read("t"), []);
        let produce = |lines: &str| {
            let mut command = Command::new("bash");
            command.arg("-c").arg(format!(
                "printf '{lines}' | bash {} tool org.apache.kafka.tools.ConsoleProducer --bootstrap-server {} --topic t --reader-property parse.key=true --reader-property key.separator==",
                script().display(),
                kafka.brokers()
            ));
            output(&mut command);
        };
        produce("a=1\\nb=2\\na=3\\n");
        kafka.kill9();
        kafka.restart();
        kafka.wait_records("t", 3, Duration::from_secs(20));
        let records = kafka.read("t");
        assert_eq!(records.len(), 3);
        let of = |key: &str| -> Vec<String> {
            records.iter().filter(|r| r.key.as_deref() == Some(key)).map(|r| r.value.clone()).collect()
        };
        assert_eq!((of("a"), of("b")), (vec!["1".to_owned(), "3".to_owned()], vec!["2".to_owned()]));
    }
}
