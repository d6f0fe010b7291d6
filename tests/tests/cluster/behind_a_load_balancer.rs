//! Three nodes behind nginx and behind HAProxy, with the files of `examples/cluster` as they stand: clients are spread, what is published
//! by one way arrives by all of them, the client's address arrives where the proxy says it, and the death of a node sends its clients
//! through the proxy to the others.

use crate::is_whole;
use ferrule_mqtt::{Packet, QoS, ReasonCode};
use ferrule_testkit::node::count;
use ferrule_testkit::wire::{Message, Options, Outgoing};
use ferrule_testkit::{Certs, Client, Dial, Example, Node, Postgres, Proxy, until};
use ferrule_tests::PATIENCE;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

// The ports of the example: where the proxy listens...
const MQTT: u16 = 1883;
const MQTTS: u16 = 8883;
const MQTTS_THROUGH: u16 = 8884;
const WSS: u16 = 8443;
// ...where the nodes do, for it and for each other, and the database.
const NODES: [u16; 5] = [BEHIND, 1885, 8083, 8885, 7883];
const BEHIND: u16 = 1884;
const DATABASE: u16 = 5432;

/// The user of the example.
const LOGIN: (&str, &str) = ("press-7", "test-only-not-a-secret");
/// An address that a client comes from, which is not that of the proxy.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Nginx,
    Haproxy,
}

/// How the proxy passes a client on.
#[derive(Debug, Clone, Copy)]
enum Way {
    Plain,
    TlsEnded,
    TlsThrough,
    WebSocket,
}

const WAYS: [Way; 4] = [Way::Plain, Way::TlsEnded, Way::TlsThrough, Way::WebSocket];

/// What the example is a set-up of. (Fields are dropped in this order: the processes before their files.)
struct Setup {
    proxy: Proxy,
    nodes: Vec<Node>,
    _postgres: Postgres,
    example: Example,
    certs: Certs,
}

impl Setup {
    fn start(kind: Kind) -> Self {
        let certs = Certs::local(&["press-7"]);
        let postgres = Postgres::start();
        // What docs/postgres-store.md says to do there.
        postgres.execute("CREATE ROLE ferrule LOGIN PASSWORD 'test-only-not-a-secret'");
        postgres.execute("CREATE DATABASE ferrule OWNER ferrule ENCODING 'UTF8' TEMPLATE template0");
        let file = match kind {
            Kind::Nginx => "nginx.conf",
            Kind::Haproxy => "haproxy.cfg",
        };
        let ports = [&[MQTT, MQTTS, MQTTS_THROUGH, WSS][..], &NODES].concat();
        let there = [(DATABASE, postgres.port())];
        let example = Example::copy_beside("cluster", &[file, "ferrule.toml"], &ports, &there, &certs);
        // The other two nodes as the file itself says.
        let text = fs::read_to_string(example.path("ferrule.toml")).unwrap();
        let nodes = (1..=3_u8).map(|n| {
            let (id, host) = (format!("cloud-{n}"), Ipv4Addr::new(127, 0, 0, 10 + n));
            let file = if n == 1 { "ferrule.toml".to_owned() } else { format!("{id}.toml") };
            let own = text.replace("cloud-1", &id).replace("127.0.0.11", &host.to_string());
            fs::write(example.path(&file), own).unwrap();
            Node::start(&example.cloud(&file, &id, host, BEHIND))
        });
        let nodes: Vec<Node> = nodes.collect();
        let proxy = match kind {
            Kind::Nginx => Proxy::nginx(&example, file, MQTT),
            Kind::Haproxy => Proxy::haproxy(&example, file, MQTT),
        };
        let setup = Self { proxy, nodes, _postgres: postgres, example, certs };
        setup.wait_whole();
        setup
    }

    fn wait_whole(&self) {
        for node in &self.nodes {
            node.wait_status(PATIENCE, "the cluster is whole", |status| is_whole(status, self.nodes.len()));
        }
    }

    /// To the proxy.
    fn dial(&self, way: Way) -> Dial {
        let to = |port| Dial::tcp(self.example.addr(port));
        match way {
            Way::Plain => Dial::tcp(self.proxy.addr()),
            Way::TlsEnded => to(MQTTS).tls(&self.certs.trust().config(), "localhost"),
            Way::TlsThrough => to(MQTTS_THROUGH).tls(&self.certs.trust_as("press-7").config(), "localhost"),
            Way::WebSocket => to(WSS).tls(&self.certs.trust().config(), "localhost").ws(),
        }
    }

    fn connect(&self, way: Way, name: &str) -> Client {
        self.dial(way).connect(&options(way, name))
    }

    /// So many clients, which subscribe to a topic of their own and to one of their way.
    fn clients(&self, way: Way, names: std::ops::Range<usize>) -> Vec<Client> {
        let connect = |n| {
            let mut client = self.connect(way, &format!("{way:?}-{n}"));
            subscribe(&mut client, way, n);
            client
        };
        names.map(connect).collect()
    }

    /// How many clients each node has.
    fn counts(&self) -> Vec<u64> {
        // Sessions of clients, not connections: a health check is one of these, too.
        self.nodes.iter().map(|node| count(&node.status(), "sessions")).collect()
    }
}

fn options(way: Way, name: &str) -> Options {
    let options = Options::v5(name);
    // The certificate is the login of those whose TLS is with the node.
    if matches!(way, Way::TlsThrough) { options } else { options.login(LOGIN.0, LOGIN.1) }
}

fn own_topic(way: Way, n: usize) -> String {
    format!("devices/press-7/{way:?}/{n}")
}

fn subscribe(client: &mut Client, way: Way, n: usize) {
    for filter in [own_topic(way, n), "devices/press-7/all/#".to_owned()] {
        assert_eq!(client.subscribe(&filter, QoS::AtLeastOnce), 1, "{filter}");
    }
}

/// Whether the connection is still there: a dead node's is ended by the proxy.
fn answers(client: &mut Client) -> bool {
    client.send(&Packet::Pingreq).is_ok()
        && client.recv_where(PATIENCE, |packet| matches!(packet, Packet::Pingresp)).is_ok()
}

/// Publishes at QoS 1 until that is acknowledged, as clients do: one that is sent away connects again, and sends it again.
fn publish(setup: &Setup, client: &mut Client, way: Way, topic: &str, payload: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let packet_id = client.next_id();
        let (payload, qos) = (payload.as_bytes(), QoS::AtLeastOnce);
        let sent =
            client.send_publish(Outgoing { topic, payload, qos, retain: false, dup: false, packet_id });
        let answer = sent.and_then(|()| {
            let wanted = |packet: &Packet<'_>| matches!(packet, Packet::Puback(_) | Packet::Disconnect(_));
            client.recv_where(PATIENCE, wanted)
        });
        let acknowledged = answer
            .is_ok_and(|frame| matches!(frame.packet(), Packet::Puback(ack) if ack.packet_id == packet_id));
        if acknowledged {
            return;
        }
        assert!(Instant::now() < end, "{topic} is not acknowledged");
        *client = setup.connect(way, "publisher");
    }
}

/// All messages of a client up to one that says `payload`.
fn texts_until(client: &mut Client, payload: &str) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let text = client.expect_message().text().to_owned();
        if text == payload {
            return texts;
        }
        texts.push(text);
    }
}

fn spread_and_in_touch(kind: Kind) {
    let setup = Setup::start(kind);
    let mut all: Vec<Client> = Vec::new();
    for way in WAYS {
        let before = setup.counts();
        all.extend(setup.clients(way, 0..9));
        let new: Vec<u64> = setup.counts().iter().zip(before).map(|(now, before)| now - before).collect();
        assert!(new.iter().all(|count| *count >= 2) && new.iter().sum::<u64>() == 9, "{way:?}: {new:?}");
    }

    // Each publishes to all of them: everything arrives everywhere, once.
    let clients = all.len();
    for (n, client) in all.iter_mut().enumerate() {
        for text in ["1", "2", "end"] {
            let topic = format!("devices/press-7/all/{n}");
            client.publish(&topic, text.as_bytes(), QoS::AtLeastOnce, false);
        }
    }
    let wanted: HashSet<(String, String)> = (0..clients)
        .flat_map(|n| ["1", "2", "end"].map(|text| (format!("devices/press-7/all/{n}"), text.to_owned())))
        .collect();
    for client in &mut all {
        // What one client publishes comes in order: after the last "end" nothing is on its way.
        let mut got: Vec<(String, String)> = Vec::new();
        while got.iter().filter(|(_, text)| text == "end").count() < clients {
            let message: Message = client.expect_message();
            got.push((message.topic.clone(), message.text().to_owned()));
        }
        assert_eq!(got.len(), wanted.len());
        assert_eq!(got.into_iter().collect::<HashSet<_>>(), wanted);
    }

    // Who the node believes the client to be, told by a rule, to somebody on whichever node.
    let mut look = setup.connect(Way::Plain, "look");
    look.subscribe("who/#", QoS::AtLeastOnce);
    for (n, way) in WAYS.into_iter().enumerate() {
        let from_elsewhere = setup.dial(way).source(ELSEWHERE);
        let mut client = from_elsewhere.connect(&options(way, &format!("from-elsewhere-{n}")));
        client.publish("devices/press-7/seen", b"x", QoS::AtLeastOnce, false);
        let row: Value = serde_json::from_slice(&look.expect_message().payload).unwrap();
        let address = if matches!(way, Way::Plain) { Ipv4Addr::LOCALHOST } else { ELSEWHERE };
        assert_eq!(row["clientid"], format!("from-elsewhere-{n}"), "once each: {row}");
        assert_eq!(row["peerhost"], address.to_string(), "{way:?}");
        assert_eq!(row["username"], LOGIN.0, "{way:?}");
    }
    for node in &setup.nodes {
        node.assert_quiet_log();
    }
}

#[test]
fn nginx_spreads_clients_over_the_nodes() {
    spread_and_in_touch(Kind::Nginx);
}

#[test]
fn haproxy_spreads_clients_over_the_nodes() {
    spread_and_in_touch(Kind::Haproxy);
}

fn a_node_dies(kind: Kind) {
    let mut setup = Setup::start(kind);
    let mut publisher = setup.connect(Way::TlsEnded, "publisher");
    let mut all: Vec<(Way, Vec<Client>)> =
        WAYS.into_iter().map(|way| (way, setup.clients(way, 0..6))).collect();
    setup.nodes[1].kill9();
    // At once, before anybody can know.
    publish(&setup, &mut publisher, Way::TlsEnded, "devices/press-7/all/x", "acknowledged");
    for (way, clients) in &mut all {
        let mut lost = 0;
        for (n, client) in clients.iter_mut().enumerate() {
            if answers(client) {
                // Whoever stays gets what was acknowledged.
                assert_eq!(client.expect_message().text(), "acknowledged", "{way:?} {n}");
            } else {
                lost += 1;
                *client = setup.connect(*way, &format!("{way:?}-{n}"));
                subscribe(client, *way, n);
            }
        }
        assert!((1..6).contains(&lost), "{way:?}: {lost} clients were on the node that is gone");
    }
    // All of them get on, each with what it has subscribed to, and nobody waits for the dead.
    publish(&setup, &mut publisher, Way::TlsEnded, "devices/press-7/all/x", "after");
    for (way, clients) in &mut all {
        for (n, client) in clients.iter_mut().enumerate() {
            publish(&setup, &mut publisher, Way::TlsEnded, &own_topic(*way, n), "own");
            let got = texts_until(client, "own");
            // The first may have been sent twice, the second not have been acknowledged the first time.
            assert!(got.contains(&"after".to_owned()), "{way:?} {n}: {got:?}");
        }
    }
    // When it is there again, it is used again.
    setup.nodes[1].restart();
    setup.wait_whole();
    let mut more = Vec::new();
    until(PATIENCE, "clients come to the node that was gone", || {
        more.extend(setup.clients(WAYS[more.len() % WAYS.len()], 6 + more.len()..7 + more.len()));
        (setup.counts()[1] > 0).then_some(())
    });
    publish(&setup, &mut publisher, Way::TlsEnded, "devices/press-7/all/x", "again");
    for client in &mut more {
        assert!(texts_until(client, "again").is_empty());
    }
}

#[test]
fn clients_of_a_dead_node_get_on_through_nginx() {
    a_node_dies(Kind::Nginx);
}

#[test]
fn clients_of_a_dead_node_get_on_through_haproxy() {
    a_node_dies(Kind::Haproxy);
}

/// No new ones come to it, and those who are there are moved off one after the other: the proxy does not end their connections for it.
fn a_node_is_drained(kind: Kind) {
    let setup = Setup::start(kind);
    let mut publisher = setup.connect(Way::TlsEnded, "publisher");
    let mut all: Vec<(Way, Vec<Client>)> =
        WAYS.into_iter().map(|way| (way, setup.clients(way, 0..6))).collect();
    let node = &setup.nodes[1];
    let clients = setup.counts()[1];
    // For longer than a proxy takes to find that it is down.
    let began = node.ask(&json!({"do": "cluster.drain", "rate": 2})).unwrap();
    assert!(began.get("error").is_none(), "{began}");
    let mut moved = 0;
    until(PATIENCE, "all of its clients are elsewhere", || {
        for (way, clients) in &mut all {
            for (n, client) in clients.iter_mut().enumerate() {
                let told =
                    client.recv_where(Duration::ZERO, |packet| matches!(packet, Packet::Disconnect(_)));
                match told {
                    Err(error) if error.kind() == ErrorKind::TimedOut => continue,
                    Err(error) => panic!("{way:?} {n} was cut off without a word: {error}"),
                    Ok(frame) => {
                        let Packet::Disconnect(disconnect) = frame.packet() else { continue };
                        assert_eq!(disconnect.reason, ReasonCode::USE_ANOTHER_SERVER, "{way:?} {n}");
                    }
                }
                moved += 1;
                *client = setup.connect(*way, &format!("{way:?}-{n}"));
                subscribe(client, *way, n);
            }
        }
        let left = node.status()["drain"]["clients"].as_u64();
        // The publisher may be one of them, and has not been looked at.
        (left == Some(0) && moved + 1 >= clients).then_some(())
    });
    assert_eq!(setup.counts()[1], 0);
    for (way, clients) in &mut all {
        for (n, client) in clients.iter_mut().enumerate() {
            publish(&setup, &mut publisher, Way::TlsEnded, &own_topic(*way, n), "own");
            assert!(texts_until(client, "own").is_empty(), "{way:?} {n}");
        }
    }
}

#[test]
fn a_node_is_drained_behind_nginx() {
    a_node_is_drained(Kind::Nginx);
}

#[test]
fn a_node_is_drained_behind_haproxy() {
    a_node_is_drained(Kind::Haproxy);
}
