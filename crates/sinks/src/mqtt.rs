//! Rows as messages to another MQTT broker.
//!
//! # Constraints
//! At QoS 1 a row is answered by its PUBACK, at QoS 0 when its bytes have left. The protocol, its window (the broker's
//! Receive
//! Maximum), order, back-off and what becomes of a message that the broker refuses are the uplink's ([`ferrule_link`]):
//! this
//! is the same client under another name. What differs: it shows no identity of an edge, so a Ferrule at the other end
//! takes it
//! for a device like any other, and the messages for that device's.
//!
//! # Operation
//! [`ferrule_link::run`] is the task. QoS, retain flag and properties are the rule's (`INSERT INTO ... WITH (qos = 0,
//! retain = TRUE)`).
//! With `version = 'auto'` MQTT 5 is spoken until the broker refuses it by its version, from then on 3.1.1.

use crate::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext, Target,
};
use ferrule_link::config::TlsConfig;
use ferrule_link::{IdentityMode, Server, UplinkConfig};
use ferrule_mqtt::Version;
use ferrule_store::{Boot, Stamp};
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument as _;

/// The connector `mqtt`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mqtt;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "mqtt",
    summary: "Messages to another MQTT broker, at QoS 1 each until it is acknowledged.",
    options: &[
        OptionSchema::required(
            "url",
            OptionKind::Text,
            "mqtts://host, mqtt://host, wss://host/mqtt or ws://host/mqtt; several with commas, tried in this order.",
        ),
        OptionSchema::optional(
            "topic",
            OptionKind::Template,
            None,
            "The topic of rows whose rule names none; may be a template. Without it the message's own.",
        ),
        OptionSchema::optional(
            "client_id",
            OptionKind::Text,
            None,
            "By default ferrule- and the sink's name with a random end: two nodes with one client id would end each other's \
             connections.",
        ),
        OptionSchema::optional("username", OptionKind::Secret, None, "How to log in."),
        OptionSchema::optional("password", OptionKind::Secret, None, "For username."),
        OptionSchema::optional(
            "version",
            OptionKind::Enum(&["auto", "5", "3.1.1"]),
            Some("auto"),
            "Of MQTT. auto: 5, and 3.1.1 when the broker says that it does not speak 5.",
        ),
        OptionSchema::optional(
            "window",
            OptionKind::Int,
            Some("1024"),
            "Most messages that wait for an acknowledgement; the broker's Receive Maximum lowers it.",
        ),
        OptionSchema::optional(
            "keep_alive",
            OptionKind::Duration,
            Some("15s"),
            "A silent loss is noticed within 1.5 of it.",
        ),
        OptionSchema::optional(
            "timeout",
            OptionKind::Duration,
            Some("10s"),
            "Bound of each step of connecting.",
        ),
        OptionSchema::optional(
            "key",
            OptionKind::Template,
            Some("${clientid}"),
            "Rows of one key keep their order.",
        ),
        OptionSchema::optional(
            "tls_ca",
            OptionKind::Text,
            None,
            "A file of CA certificates (PEM); without it the system's.",
        ),
        OptionSchema::optional(
            "tls_cert",
            OptionKind::Text,
            None,
            "A certificate to show (PEM), with tls_key.",
        ),
        OptionSchema::optional("tls_key", OptionKind::Text, None, "Its key (PEM)."),
        OptionSchema::optional(
            "tls_name",
            OptionKind::Text,
            None,
            "The name that the broker's certificate must be for, instead of the url's host.",
        ),
    ],
    passthrough: None,
    target: Target::Topic("topic"),
    key: Some("key"),
};

/// Longest back-off between two tries, as of all sinks: what a recovered destination waits for us.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The longest client id that MQTT 3.1.1 asks every broker to take, in bytes, and of characters that it does
/// [MQTT-3.1.3-5].
const CLIENT_ID_BYTES: usize = 23;

fn read(name: &str, options: &Options) -> Result<UplinkConfig, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut servers: Vec<Server> = Vec::new();
    for url in options.text("url").split(',').map(str::trim) {
        match url.parse() {
            Ok(server) => servers.push(server),
            Err(why) => mistakes.push(format!("option `url`: {why}")),
        }
    }
    let client_id = options.get("client_id").map(str::to_owned);
    if client_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > usize::from(u16::MAX)) {
        mistakes
            .push("option `client_id`: 1 to 65535 bytes are wanted; leave it out for one of its own".into());
    }
    if options.get("password").is_some() && options.get("username").is_none() {
        mistakes.push("option `password` is of no use without `username`".into());
    }
    let tls = servers.iter().any(|server| server.scheme().is_tls());
    for name in ["tls_ca", "tls_cert", "tls_key", "tls_name"] {
        if !tls && !servers.is_empty() && options.get(name).is_some() {
            mistakes
                .push(format!("option `{name}` is of no use without TLS: write mqtts:// or wss:// in `url`"));
        }
    }
    let certificate = match (options.get("tls_cert"), options.get("tls_key")) {
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        (None, None) => None,
        _ => {
            mistakes.push("options `tls_cert` and `tls_key` need each other".into());
            None
        }
    };
    let server_name = options.get("tls_name").and_then(|name| {
        let read = TlsConfig::server_name(name);
        if read.is_none() {
            mistakes.push(format!("option `tls_name` = '{name}': a host's name or an address is wanted"));
        }
        read
    });
    let window = options.int("window").unwrap_or(1024);
    if !(1..=65_535).contains(&window) {
        mistakes.push(format!("option `window` = '{window}': 1 to 65535 is wanted"));
    }
    let keep_alive = options.duration("keep_alive").unwrap_or(Duration::from_secs(15));
    if keep_alive < Duration::from_secs(1) || keep_alive > Duration::from_secs(65_535) {
        mistakes.push("option `keep_alive`: '1s' to '65535s' is wanted".into());
    }
    let timeout = options.duration("timeout").unwrap_or(Duration::from_secs(10));
    if timeout < Duration::from_millis(100) || timeout > Duration::from_secs(600) {
        mistakes.push("option `timeout`: '100ms' to '10m' is wanted".into());
    }
    let mut random = [0; 8];
    if let Err(error) = getrandom::fill(&mut random) {
        mistakes.push(format!("the system has no random numbers: {error}"));
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let random = u64::from_le_bytes(random);
    let mut config = UplinkConfig::new(servers, name.into(), Boot::new(random), Arc::new(clock));
    config.username = options.get("username").map(str::to_owned);
    config.password = options.get("password").map(|password| password.as_bytes().to_vec());
    config.tls = TlsConfig {
        ca: options.get("tls_ca").map(Into::into),
        certificate,
        server_name,
        ..TlsConfig::default()
    };
    config.keep_alive = keep_alive;
    config.connect_timeout = timeout;
    config.backoff_max = BACKOFF_MAX;
    config.window_max = u16::try_from(window).unwrap_or(u16::MAX);
    config.client_id = Some(client_id.unwrap_or_else(|| own_client_id(name, random)));
    config.identity = IdentityMode::Never;
    config.version = if options.text("version") == "3.1.1" { Version::V3_1_1 } else { Version::V5 };
    config.falls_back = options.text("version") == "auto";
    Ok(config)
}

/// `ferrule-NAME-1a2b3c`, as every broker takes it.
fn own_client_id(name: &str, random: u64) -> String {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let mut id = format!("ferrule-{name}");
    id.truncate(CLIENT_ID_BYTES - 9);
    id.push_str(&format!("-{:08x}", random >> 32));
    id
}

/// The wall clock alone: of rows of an earlier life and of this one a sink knows no more than when they were received.
/// Where that
/// clock was not set, they count as new, so that none expires too early.
fn clock() -> Stamp {
    Stamp { wall_ms: ferrule_clock::wall_ms(), mono_us: 0, synced: true }
}

impl Connector for Mqtt {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }

    fn check(&self, options: &Options) -> Result<Declared, Vec<String>> {
        read("check", options).map(|_| Declared::default())
    }

    fn start(&self, name: &str, options: &Options, context: SinkContext) -> Result<Running, Vec<String>> {
        let mut config = read(name, options)?;
        config.drain = context.finish_within;
        let (running, ended) = Running::new();
        // What the link says of itself is said of this sink.
        let span = tracing::info_span!("sink", name);
        let task = async move {
            ferrule_link::run(config, context.rows, context.events, Arc::default()).await;
            let _ = ended.send(());
        };
        context.runtime.spawn(task.instrument(span));
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn options_are_checked() {
        for (pairs, wanted) in [
            (&[("url", "mqtt://h")][..], None),
            (&[("url", "mqtts://a, wss://b/mqtt"), ("tls_ca", "ca.pem"), ("tls_name", "h")][..], None),
            (
                &[("url", "mqtt://h"), ("username", "env:U"), ("password", "file:p"), ("version", "3.1.1")][..],
                None,
            ),
            (&[("url", "h:1883")][..], Some("mqtt://host")),
            (&[("url", "ssl://h")][..], Some("mqtts://")),
            (&[("url", "mqtt://u:p@h")][..], Some("`username`")),
            (&[("url", "mqtt://h"), ("tls_ca", "ca.pem")][..], Some("of no use without TLS")),
            (&[("url", "mqtts://h"), ("tls_key", "k.pem")][..], Some("need each other")),
            (&[("url", "mqtt://h"), ("password", "p")][..], Some("without `username`")),
            (&[("url", "mqtt://h"), ("window", "0")][..], Some("1 to 65535")),
            (&[("url", "mqtt://h"), ("client_id", "")][..], Some("leave it out")),
            (&[("url", "mqtt://h"), ("version", "4")][..], Some("auto, 5, 3.1.1")),
        ] {
            let given: Vec<_> = pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
            match (Options::parse(&SCHEMA, &given).and_then(|o| Mqtt.check(&o)), wanted) {
                (Ok(_), None) => {}
                (Err(mistakes), Some(wanted)) => assert!(mistakes[0].contains(wanted), "{mistakes:?}"),
                other => panic!("{pairs:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn client_ids_are_taken_by_every_broker() {
        for name in ["out", "a_very_long_name_of_a_sink", "ä"] {
            let id = own_client_id(name, 0x1234_5678_9abc_def0);
            assert!(id.len() <= CLIENT_ID_BYTES && id.ends_with("-12345678"), "{id}");
        }
    }
}
