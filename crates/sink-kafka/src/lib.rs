//! Rows into Kafka topics: idempotent, `acks=all`, in order per key.
//!
//! # Constraints
//! librdkafka keeps what it was given in memory and retries by itself, in order per partition, for as long as it takes
//! (`message.timeout.ms = 0`): a second retry above it would only reorder. It must be left to it as long as it can go on; what
//! it gives back is either a row's own fault, a topic's, or the end of that producer. All its bounds stand in [`bounds`].
//!
//! # Operation
//! One task per sink ([`producer`]). A row's record goes to the producer at once; a delivery report answers it. A report of
//! failure is judged by its code ([`verdict`]):
//! - the row's fault (too large, refused): it is sent once more alone, because a broker may blame a whole batch for one
//!   record, and then discarded;
//! - the topic's fault (not there, not permitted): its rows wait in order, the first of them tries again with back-off;
//! - a fatal error (the broker forgot or fenced the producer): a new producer, and all unanswered rows again, in order.
//!
//! # Invariants
//! - A row is answered `Yes` only by its delivery report.
//! - Rows of one topic that wait are sent in the order in which they came, and a row is discarded only after all earlier
//!   rows of its topic were answered. (Kafka's order is per partition, which holds per key; the topic is the stricter lane.)
//! - A record of a topic whose other partitions stand still is delivered all the same: order is kept per partition.

#![forbid(unsafe_code)]

pub mod bounds;
mod producer;
mod record;
mod verdict;

use ferrule_sinks::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext, Target,
};
use rdkafka::config::ClientConfig;

/// The connector `kafka`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kafka;

const fn option(
    name: &'static str,
    kind: OptionKind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionSchema {
    OptionSchema { name, kind, required: false, default, help }
}

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "kafka",
    summary: "Records into Kafka topics: idempotent, acks=all, in order per key.",
    options: &[
        OptionSchema {
            name: "brokers",
            kind: OptionKind::Text,
            required: true,
            default: None,
            help: "host:port, several with commas; the others are found through them.",
        },
        option(
            "topic",
            OptionKind::Template,
            None,
            "The topic of rows whose rule names none; may be a template.",
        ),
        option(
            "key",
            OptionKind::Template,
            Some("${clientid}"),
            "The record's key: rows of one key keep their order.",
        ),
        option(
            "compression",
            OptionKind::Enum(&["none", "gzip", "snappy", "lz4", "zstd"]),
            Some("lz4"),
            "Of batches. lz4 costs next to nothing (3.1 against 2.8 microseconds a record of 1 KiB) and halves the traffic.",
        ),
        option(
            "linger",
            OptionKind::Duration,
            Some("5ms"),
            "How long a batch waits to grow. At 20,000 records/s 5 ms make batches of a hundred, a fraction of the cost of \
             sending each.",
        ),
        option(
            "tls",
            OptionKind::Bool,
            Some("false"),
            "Encrypts, and verifies the brokers' certificates and names.",
        ),
        option("tls_ca", OptionKind::Text, None, "A file of CA certificates (PEM); without it the system's."),
        option(
            "sasl_mechanism",
            OptionKind::Enum(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
            None,
            "How to log in; needs username and password.",
        ),
        option("username", OptionKind::Secret, None, "For sasl_mechanism."),
        option("password", OptionKind::Secret, None, "For sasl_mechanism."),
    ],
    passthrough: Some("librdkafka."),
    target: Target::Name("topic"),
    key: Some("key"),
};

/// Settings that the promises of this sink rest on, by all their names.
const OURS: [&str; 14] = [
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "retries",
    "message.send.max.retries",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "transactional.id",
    "delivery.report.only.error",
    "enabled_events",
    "log.queue",
];

impl Connector for Kafka {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }

    fn check(&self, options: &Options) -> Result<Declared, Vec<String>> {
        let mut mistakes = Vec::new();
        let sasl = options.get("sasl_mechanism").is_some();
        for name in ["username", "password"] {
            match options.get(name) {
                None if sasl => mistakes.push(format!("option `sasl_mechanism` needs `{name}`")),
                Some(_) if !sasl => {
                    mistakes.push(format!("option `{name}` is of no use without `sasl_mechanism`"))
                }
                _ => {}
            }
        }
        if options.get("tls_ca").is_some() && options.flag("tls") != Some(true) {
            mistakes.push("option `tls_ca` is of no use without `tls = TRUE`".into());
        }
        if let Some(topic) = static_topic(options)
            && let Err(why) = record::check_topic(topic)
        {
            mistakes.push(format!("option `topic` = '{topic}': {why}"));
        }
        for (name, _) in options.passed_through() {
            if OURS.contains(&name) {
                mistakes.push(format!(
                    "option `librdkafka.{name}`: what this sink promises rests on it; it cannot be set"
                ));
            }
        }
        // Names and values of all the others are known to librdkafka alone.
        if let Err(error) = config(options).create_native_config() {
            mistakes.push(error.to_string());
        }
        if mistakes.is_empty() { Ok(Declared::default()) } else { Err(mistakes) }
    }

    fn start(&self, name: &str, options: &Options, context: SinkContext) -> Result<Running, Vec<String>> {
        self.check(options)?;
        let (running, ended) = Running::new();
        let settings = producer::Settings {
            config: config(options),
            brokers: options.text("brokers").to_owned(),
            topic: static_topic(options).map(str::to_owned),
        };
        let (name, runtime) = (name.to_owned(), context.runtime.clone());
        runtime.spawn(async move {
            producer::run(&name, settings, context).await;
            let _ = ended.send(());
        });
        Ok(running)
    }
}

/// The topic of rows without a target, when it is the same for all.
fn static_topic(options: &Options) -> Option<&str> {
    options.get("topic").filter(|topic| !topic.contains("${"))
}

/// librdkafka's settings: [`bounds`], then the options, then what is passed through.
fn config(options: &Options) -> ClientConfig {
    let mut config = ClientConfig::new();
    for bound in bounds::BOUNDS {
        config.set(bound.name, bound.value);
    }
    config.set("bootstrap.servers", options.text("brokers"));
    config.set("compression.type", options.text("compression"));
    config.set("linger.ms", options.duration("linger").map_or(5, |d| d.as_millis()).to_string());
    let (tls, sasl) = (options.flag("tls") == Some(true), options.get("sasl_mechanism"));
    config.set(
        "security.protocol",
        match (tls, sasl.is_some()) {
            (false, false) => "plaintext",
            (false, true) => "sasl_plaintext",
            (true, false) => "ssl",
            (true, true) => "sasl_ssl",
        },
    );
    if let Some(ca) = options.get("tls_ca") {
        config.set("ssl.ca.location", ca);
    }
    if let Some(mechanism) = sasl {
        config.set("sasl.mechanism", mechanism);
        config.set("sasl.username", options.text("username"));
        config.set("sasl.password", options.text("password"));
    }
    for (name, value) in options.passed_through() {
        config.set(name, value);
    }
    config
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(pairs: &[(&str, &str)]) -> Result<Declared, Vec<String>> {
        let given = [("brokers", "b:9092")];
        let given = given.iter().chain(pairs);
        let given: Vec<_> = given.map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        Kafka.check(&Options::parse(&SCHEMA, &given)?)
    }

    #[test]
    fn options_are_checked() {
        for (pairs, wanted) in [
            (&[][..], None),
            (&[("topic", "a.${topic[2]}"), ("librdkafka.batch.size", "16384")][..], None),
            (&[("topic", "a b")][..], Some("`topic`")),
            (&[("librdkafka.acks", "1")][..], Some("cannot be set")),
            (&[("librdkafka.btch.size", "1")][..], Some("btch.size")),
            (&[("librdkafka.batch.size", "x")][..], Some("batch.size")),
            (&[("sasl_mechanism", "PLAIN"), ("username", "u")][..], Some("needs `password`")),
            (&[("password", "p")][..], Some("no use")),
            (&[("tls_ca", "/ca")][..], Some("no use")),
            (
                &[
                    ("sasl_mechanism", "SCRAM-SHA-512"),
                    ("username", "u"),
                    ("password", "env:P"),
                    ("tls", "true"),
                ][..],
                None,
            ),
        ] {
            match (check(pairs), wanted) {
                (Ok(_), None) => {}
                (Err(mistakes), Some(wanted)) => assert!(mistakes[0].contains(wanted), "{mistakes:?}"),
                other => panic!("{pairs:?}: {other:?}"),
            }
        }
    }
}
