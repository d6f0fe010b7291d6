//! Other people's clients: each does the same things, by every version and transport that it has, with the same
//! assertions.
//!
//! [`matrix`] says which clients there are and what they lack, [`features`] what is done and what must come of it,
//! and `docs/clients.md` is made of both. A client is a [`Subject`]: a driver of `tests/clients` that hands us the
//! library's own calls ([`driver`]), or mosquitto's programs ([`mosquitto`]).
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;
mod features;
mod matrix;
mod mosquitto;
mod page;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ferrule_testkit::node::{EDGE_ID, EDGE_PASSWORD};
use ferrule_testkit::{Certs, Config, Node};
use serde_json::{Map, Value, json};

use features::Feature;
use matrix::Client;

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V3_1,
    V3_1_1,
    V5,
}

use Version::{V3_1, V3_1_1, V5};

impl Version {
    const ALL: [Self; 3] = [V3_1, V3_1_1, V5];

    fn text(self) -> &'static str {
        match self {
            V3_1 => "3.1",
            V3_1_1 => "3.1.1",
            V5 => "5",
        }
    }
}

/// How a client reaches the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Tcp,
    Tls,
    Ws,
    Wss,
}

use Transport::{Tcp, Tls, Ws, Wss};

impl Transport {
    const ALL: [Self; 4] = [Tcp, Tls, Ws, Wss];

    fn text(self) -> &'static str {
        match self {
            Tcp => "tcp",
            Tls => "tls",
            Ws => "ws",
            Wss => "wss",
        }
    }
}

/// A message, as it is published or as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Message {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
    // MQTT 5.
    user: Vec<(String, String)>,
    content_type: Option<String>,
    response_topic: Option<String>,
    correlation: Option<String>,
    expiry: Option<u32>,
    /// Published with this topic alias.
    alias: Option<u16>,
    /// Came for these subscription identifiers.
    subscriptions: Vec<u32>,
}

impl Message {
    fn new(topic: &str, payload: &str, qos: u8) -> Self {
        Self { topic: topic.to_owned(), payload: payload.to_owned(), qos, ..Self::default() }
    }

    fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    fn to_json(&self) -> Map<String, Value> {
        let all = [
            ("topic", json!(self.topic)),
            ("payload", json!(self.payload)),
            ("qos", json!(self.qos)),
            ("retain", json!(self.retain)),
            ("user", if self.user.is_empty() { Value::Null } else { json!(self.user) }),
            ("content_type", json!(self.content_type)),
            ("response_topic", json!(self.response_topic)),
            ("correlation", json!(self.correlation)),
            ("expiry", json!(self.expiry)),
            ("alias", json!(self.alias)),
        ];
        let there = all.into_iter().filter(|(_, value)| !value.is_null());
        there.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn from_json(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let number = |value: &Value| value.as_u64().map(|number| u32::try_from(number).unwrap());
        let list = |name: &str| value[name].as_array().cloned().unwrap_or_default();
        let pair =
            |pair: &Value| (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned());
        Self {
            topic: text("topic").unwrap_or_else(|| panic!("no topic in {value}")),
            payload: text("payload").unwrap_or_else(|| panic!("no payload in {value}")),
            qos: number(&value["qos"]).and_then(|qos| qos.try_into().ok()).unwrap(),
            retain: value["retain"].as_bool().unwrap(),
            user: list("user").iter().map(pair).collect(),
            content_type: text("content_type"),
            response_topic: text("response_topic"),
            correlation: text("correlation"),
            expiry: number(&value["expiry"]),
            alias: None,
            subscriptions: list("subscriptions").iter().filter_map(number).collect(),
        }
    }
}

/// How a client connects.
#[derive(Debug, Clone, Default)]
struct Connect {
    /// Goes on with its session, and leaves it for later.
    persistent: bool,
    will: Option<Message>,
    login: Option<(&'static str, &'static str)>,
    /// MQTT 5: the topic aliases that it takes.
    alias_max: Option<u16>,
}

/// Where a client connects, and by which version.
#[derive(Debug, Clone)]
struct Place {
    version: Version,
    transport: Transport,
    port: u16,
    /// The authority's certificate.
    ca: String,
}

/// Somebody's client library or program.
trait Subject {
    /// Connects a client; with whether it had a session, where the client tells, or the code of the refusal.
    fn connect(&mut self, who: &str, place: &Place, how: &Connect) -> Result<Option<bool>, u8>;

    /// Connects a client that [`Self::lose_them`] is about.
    fn connect_to_be_lost(&mut self, who: &str, place: &Place, how: &Connect);

    /// Ends all of those without a DISCONNECT.
    fn lose_them(&mut self);

    /// Subscribes, and returns the code of the SUBACK.
    fn subscribe(&mut self, who: &str, filter: &str, qos: u8, identifier: Option<u32>) -> u8;

    /// Publishes, and returns the code of the acknowledgement, 0 where there is none.
    fn publish(&mut self, who: &str, message: &Message) -> u8;

    /// The next messages that came for any of these clients, with whose they are: `count` of them.
    fn take(&mut self, whose: &[&str], count: usize) -> Vec<(String, Message)>;

    /// Disconnects.
    fn disconnect(&mut self, who: &str);
}

/// A broker with a listener for each transport, and one for known users only.
struct Broker {
    node: Node,
    certs: Certs,
}

impl Broker {
    fn start() -> Self {
        let certs = Certs::local(&[]);
        let listener = |keys: &str| format!("[[listener]]\nbind = \"127.0.0.1:0\"\n{keys}\n");
        let open = |keys: &str| listener(&format!("anonymous = true\n{keys}"));
        let config = Config::edge()
            .extra(&open(&certs.tls("")))
            .extra(&open("protocol = \"ws\""))
            .extra(&open(&format!("protocol = \"ws\"\n{}", certs.tls(""))))
            .extra(&listener(""))
            .extra(&format!(
                "[[user]]\nname = {EDGE_ID:?}\npassword_file = \"edge.pass\"\n\
                 publish = [\"t/#\"]\nsubscribe = [\"t/#\"]"
            ));
        Self { node: Node::start(&config), certs }
    }

    fn place(&self, version: Version, transport: Transport) -> Place {
        self.at(version, transport, transport as usize)
    }

    /// Where known users alone are let in.
    fn closed(&self, version: Version) -> Place {
        self.at(version, Tcp, Transport::ALL.len())
    }

    fn at(&self, version: Version, transport: Transport, listener: usize) -> Place {
        let port = self.node.listener(listener).port();
        Place { version, transport, port, ca: self.certs.path("ca.crt").to_str().unwrap().to_owned() }
    }
}

/// The login that [`Broker::closed`] knows.
const LOGIN: (&str, &str) = (EDGE_ID, EDGE_PASSWORD);

/// Walks through all that `client` has of `version`.
fn walk(client: &Client, version: Version) {
    let broker = Broker::start();
    let mut subject = client.start();
    let mut failed = Vec::new();
    let mut step = |name: String, run: &mut dyn FnMut()| {
        // All that is wrong with a client is told at once, with the reason: of a long log only the end may be left.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            let why = panic.downcast_ref::<String>().cloned();
            failed.push(format!("{name}: {}", why.unwrap_or_default()));
        }
    };
    for feature in Feature::ALL {
        if client.lacks(feature, version).is_some() {
            continue;
        }
        match feature {
            Feature::Wills => step("wills".to_owned(), &mut || {
                let places: Vec<Place> = client.transports().map(|at| broker.place(version, at)).collect();
                features::wills(subject.as_mut(), &places);
            }),
            Feature::Refusals => step("refusals".to_owned(), &mut || {
                features::refusals(subject.as_mut(), &broker.closed(version));
            }),
            _ => {
                for at in client.transports() {
                    if at != Tcp && !client.thorough && feature != Feature::Qos {
                        continue;
                    }
                    let place = broker.place(version, at);
                    step(format!("{feature:?} over {}", at.text()), &mut || {
                        feature.run(subject.as_mut(), &place)
                    });
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} by MQTT {}: {:?}", client.name, version.text(), failed);
    broker.node.assert_quiet_log();
}

/// Each client's tests, one a version.
macro_rules! clients {
    ($($client:ident: $($test:ident = $version:ident),+;)+) => {
        $(mod $client {
            $(#[test]
            fn $test() {
                crate::walk(crate::matrix::client(stringify!($client)), crate::$version);
            })+
        })+

        /// (client, version, test).
        const TESTS: &[(&str, Version, &str)] =
            &[$($((stringify!($client), $version, concat!(stringify!($client), "::", stringify!($test)))),+),+];
    };
}

clients! {
    mosquitto_clients: v3_1 = V3_1, v3_1_1 = V3_1_1, v5 = V5;
    paho_python: v3_1 = V3_1, v3_1_1 = V3_1_1, v5 = V5;
    mqttjs: v3_1 = V3_1, v3_1_1 = V3_1_1, v5 = V5;
    paho_go: v3_1 = V3_1, v3_1_1 = V3_1_1;
    paho_golang: v5 = V5;
    rumqttc: v3_1_1 = V3_1_1, v5 = V5;
    paho_java: v3_1 = V3_1, v3_1_1 = V3_1_1, v5 = V5;
    hivemq: v3_1_1 = V3_1_1, v5 = V5;
}
