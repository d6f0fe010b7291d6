//! The hub under a real shard: identity of rows, failed rules, blocked and missing consumers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod homes;
mod inherited;
mod limits;

use super::*;
use ferrule_broker::hook::Everything;
use ferrule_broker::shard::Parts;
use ferrule_broker::{ConnId, ConnectRequest, Gate, Grant, Limits, Refusal, Role};
use ferrule_mqtt::{
    Connect, Packet, Properties, PropertiesBuf, Property, Publish, QoS, Subscribe, SubscribeFiltersBuf,
    SubscribeOptions, Version,
};
use ferrule_outbox::Delivered;
use ferrule_rules::extend_rule_path;
use ferrule_store::record::Entry;
use ferrule_store::{MemoryStore, Restored};

/// Everybody is let in: gateways by their user name.
struct Open;

impl Gate for Open {
    fn admit(&mut self, _: ConnId, request: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        let role = request.username.map_or(Role::Device, |edge| Role::Edge(edge.into()));
        let (access, properties) = (Arc::new(Everything), PropertiesBuf::new());
        Some(Ok(Grant { role, username: None, access, properties, life: None }))
    }
}

struct Bench {
    shard: Shard<Hub, MemoryStore>,
    rows: mpsc::Receiver<Vec<OutRow>>,
    now: Now,
    sink: &'static str,
}

fn node(edge: bool) -> Node {
    Node {
        origin: "me".into(),
        boot: Boot::new(7),
        edge,
        outboxes: if edge { Policy::EDGE } else { Policy::CLOUD }.into(),
        clustered: false,
        place: Place::ALONE,
    }
}

impl Bench {
    /// A node with `rules`, whose sink `s` takes rows.
    fn new(edge: bool, rules: &str) -> Self {
        Self::with(node(edge), "s", rules)
    }

    /// The same with a sink of another name.
    fn with(node: Node, sink: &'static str, rules: &str) -> Self {
        let now = Now { mono_us: 1_000, wall_ms: 1_700_000_000_000 };
        let policy = node.outboxes.policy;
        let hub = Hub::new(node, Vec::new(), &[], 1, now);
        let limits = Limits::default();
        let parts = Parts {
            hook: hub,
            store: MemoryStore::new(),
            gate: Box::new(Open),
            limits,
            features: Arc::default(),
            policy,
            seed: 1,
            place: Place::ALONE,
        };
        let mut shard = Shard::new(parts, &Restored::default(), now);
        let mut host = ferrule_rules::Host::cloud(Vec::new());
        let target = ferrule_rules::TargetSchema {
            kind: ferrule_rules::TargetKind::Name,
            option: None,
            required: false,
        };
        host.builtins.push(ferrule_rules::Builtin { name: sink, target, help: "a sink" });
        let set =
            ferrule_rules::load(&[ferrule_rules::Source { name: "r.sql", text: rules }], &host).unwrap();
        let (sender, rows) = mpsc::channel(BATCHES);
        let connected = Connected { name: sink.into(), generation: 1, rows: Some(sender) };
        let load = Load {
            rules: set.rules.into_iter().map(Arc::new).collect(),
            files: vec!["r.sql".into()],
            outboxes: vec![connected],
        };
        Hub::message(&mut shard, &WorkerStats::default(), HubMessage::Load(Box::new(load)), now);
        let mut bench = Self { shard, rows, now, sink };
        bench.consumer(ConsumerEvent::Up { window: 100 });
        bench
    }

    fn consumer(&mut self, event: ConsumerEvent) {
        let message = HubMessage::Consumer { outbox: self.sink.into(), generation: 1, event };
        Hub::message(&mut self.shard, &WorkerStats::default(), message, self.now);
        self.shard.end_turn(self.now);
    }

    fn connect(&mut self, client_id: &str, edge: Option<&str>) -> ConnId {
        let conn = self.shard.open("127.0.0.1".parse().unwrap(), 0, self.now).unwrap();
        let connect = Packet::Connect(Connect {
            version: Version::V5,
            clean_start: true,
            bridge: false,
            keep_alive: 0,
            properties: Properties::EMPTY,
            client_id,
            will: None,
            username: edge,
            password: None,
        });
        self.send(conn, &connect);
        conn
    }

    fn send(&mut self, conn: ConnId, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(Version::V5, &mut bytes).unwrap();
        assert_eq!(self.shard.receive(conn, &bytes, self.now), bytes.len());
        self.shard.end_turn(self.now);
    }

    fn publish(&mut self, conn: ConnId, topic: &str, payload: &str, packet_id: u16, user: &[(&str, &str)]) {
        let mut properties = PropertiesBuf::new();
        for (name, value) in user {
            properties.push(Property::UserProperty(name, value)).unwrap();
        }
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic,
            packet_id,
            properties: properties.as_properties(),
            payload: payload.as_bytes(),
        };
        self.send(conn, &Packet::Publish(publish));
    }

    /// What has been written to a connection: topics of publishes, packet ids of acknowledgements.
    fn packets(&mut self, conn: ConnId) -> Vec<String> {
        let out = self.shard.output(conn).unwrap();
        let mut said = Vec::new();
        let mut at = 0;
        while let Some((packet, size)) = ferrule_mqtt::decode(&out[at..], Some(Version::V5), 1 << 20).unwrap()
        {
            match packet {
                Packet::Publish(publish) => said.push(publish.topic.to_owned()),
                Packet::Puback(ack) => said.push(ack.packet_id.to_string()),
                _ => {}
            }
            at += size;
        }
        out.clear();
        self.shard.wrote(conn, self.now);
        said
    }

    /// Rows handed out so far.
    fn take(&mut self) -> Vec<Arc<Entry>> {
        std::iter::from_fn(|| self.rows.try_recv().ok()).flatten().map(|row| row.entry).collect()
    }

    /// Whether a PUBACK of this packet id has left.
    fn acknowledged(&mut self, conn: ConnId, packet_id: u16) -> bool {
        let out = self.shard.output(conn).unwrap();
        let mut at = 0;
        let mut found = false;
        while let Some((packet, size)) = ferrule_mqtt::decode(&out[at..], Some(Version::V5), 1 << 20).unwrap()
        {
            found |= matches!(packet, Packet::Puback(ack) if ack.packet_id == packet_id);
            at += size;
        }
        found
    }
}

const ID: [(&str, &str); 3] = [("ferrule-id", "2a.0.9"), ("ferrule-client", "d1"), ("ferrule-hops", "1")];

#[test]
fn a_forwarded_message_keeps_its_identity_through_republishing() {
    let mut bench = Bench::new(
        false,
        "CREATE RULE direct AS INSERT INTO s SELECT * FROM \"a/#\";
         CREATE RULE again AS INSERT INTO local.\"b/x\" SELECT * FROM \"a/#\";
         CREATE RULE stored AS INSERT INTO s SELECT * FROM \"b/#\";",
    );
    let edge = bench.connect("ferrule-e1", Some("e1"));
    bench.publish(edge, "a/t", "{}", 1, &ID);
    let rows = bench.take();
    assert_eq!(rows.len(), 2);
    for row in &rows {
        assert_eq!(row.identity.to_string(), "e1.2a.0.9");
        assert_eq!((&*row.client_id, row.edge.as_deref(), &*row.key), ("d1", Some("e1"), "d1"));
    }
    assert_ne!(rows[0].rule, rows[1].rule, "or the second row would be taken for the first");
    assert_eq!(
        rows[1].rule,
        extend_rule_path(ferrule_rules::rule_id("again"), 0, ferrule_rules::rule_id("stored"))
    );
    // Sent again after a lost acknowledgement: the same keys, so that SQL keeps one row of each.
    bench.publish(edge, "a/t", "{}", 2, &ID);
    let again: Vec<_> = bench.take().iter().map(|r| (r.identity.clone(), r.rule, r.row)).collect();
    assert_eq!(again, rows.iter().map(|r| (r.identity.clone(), r.rule, r.row)).collect::<Vec<_>>());
}

#[test]
fn a_publish_of_a_rule_has_the_properties_that_its_insert_asks_for() {
    let mut bench = Bench::new(
        true,
        "CREATE RULE again WITH (dialect = 'emqx') AS
         INSERT INTO local.\"b/x\" WITH (content_type = 'text/plain', message_expiry = '60s', user_properties = '${pub_props.User-Property}')
         SELECT payload FROM \"a/#\";
         CREATE RULE bare AS INSERT INTO local.\"b/y\" SELECT * FROM \"a/#\";
         CREATE RULE out AS INSERT INTO s SELECT * FROM \"b/#\";",
    );
    let device = bench.connect("d", None);
    bench.publish(device, "a/1", "1", 1, &[("k", "v"), ("ferrule-x", "0")]);
    let mut entries = bench.take();
    entries.sort_by(|a, b| a.topic.cmp(&b.topic));
    let mut asked = PropertiesBuf::new();
    asked.push(Property::ContentType("text/plain")).unwrap();
    asked.push(Property::MessageExpiryInterval(60)).unwrap();
    asked.push(Property::UserProperty("k", "v")).unwrap();
    let properties: Vec<&[u8]> = entries.iter().map(|entry| &*entry.properties).collect();
    assert_eq!(properties, [asked.as_properties().as_bytes(), &[]]);
}

#[test]
fn what_a_rule_publishes_twice_is_two_rows_of_the_rule_that_stores_it() {
    let mut bench = Bench::new(
        false,
        "CREATE RULE twice AS INSERT INTO local.\"b/x\", local.\"b/y\" SELECT * FROM \"a/#\";
         CREATE RULE each WITH (dialect = 'emqx') AS INSERT INTO local.\"b/z\" FOREACH payload.l FROM \"a/#\";
         CREATE RULE stored AS INSERT INTO s SELECT * FROM \"b/#\";",
    );
    let edge = bench.connect("ferrule-e1", Some("e1"));
    bench.publish(edge, "a/t", "{\"l\":[1,2,3]}", 1, &ID);
    let keys: Vec<_> = bench.take().iter().map(|r| (r.identity.to_string(), r.rule, r.row)).collect();
    assert_eq!(keys.len(), 5);
    let different: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(different.len(), 5, "a row with another's key would be taken for its repetition: {keys:?}");
}

#[test]
fn identity_is_believed_from_gateways_alone() {
    let mut bench = Bench::new(false, "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a/#\";");
    let device = bench.connect("sly", None);
    bench.publish(device, "a/t", "{}", 1, &ID);
    bench.publish(device, "a/t", "{}", 2, &ID);
    let ids: Vec<String> = bench.take().iter().map(|r| r.identity.to_string()).collect();
    assert_eq!(ids, ["me.7.0.1", "me.7.0.2"]);
}

#[test]
fn at_the_edge_each_row_has_a_number_of_its_own() {
    let mut bench = Bench::new(
        true,
        "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a/#\"; CREATE RULE q AS INSERT INTO s SELECT * FROM \"a/#\";",
    );
    let device = bench.connect("d", None);
    bench.publish(device, "a/t", "{}", 1, &[]);
    let ids: Vec<String> = bench.take().iter().map(|r| r.identity.to_string()).collect();
    assert_eq!(ids, ["me.7.0.1", "me.7.0.2"]);
}

#[test]
fn an_acknowledgement_waits_for_the_sink() {
    let mut bench = Bench::new(false, "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a/#\";");
    let device = bench.connect("d", None);
    bench.publish(device, "a/t", "{}", 1, &[]);
    assert!(!bench.acknowledged(device, 1));
    bench.consumer(ConsumerEvent::Done(vec![(1, Delivered::Yes)]));
    assert!(bench.acknowledged(device, 1));
}

#[test]
fn a_rule_that_fails_holds_nobody_up_and_is_counted() {
    let mut bench =
        Bench::new(false, "CREATE RULE r AS INSERT INTO s.\"${payload.gone}\" SELECT * FROM \"a/#\";");
    let device = bench.connect("d", None);
    bench.publish(device, "a/t", "{}", 1, &[]);
    assert!(bench.acknowledged(device, 1));
    assert_eq!(bench.shard.stats().acked_discarded, 1);
}

#[test]
fn a_loop_of_rules_ends() {
    let mut bench = Bench::new(
        false,
        "CREATE RULE ab AS INSERT INTO local.\"b\" SELECT * FROM \"a\"; CREATE RULE ba AS INSERT INTO local.\"a\" SELECT * FROM \"b\";",
    );
    let device = bench.connect("d", None);
    bench.publish(device, "a", "{}", 1, &[]);
    bench.shard.end_turn(bench.now);
    assert!(bench.acknowledged(device, 1));
    assert_eq!(bench.shard.stats().acked_discarded, 1);
}

#[test]
fn while_a_sink_says_down_it_still_gets_rows() {
    let mut bench = Bench::new(false, "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a/#\";");
    bench.consumer(ConsumerEvent::Down { error: "one table is missing".into() });
    let device = bench.connect("d", None);
    bench.publish(device, "a/t", "{}", 1, &[]);
    assert_eq!(bench.take().len(), 1);
}

#[test]
fn rows_of_sinks_that_no_rule_names_are_told() {
    let stored =
        |name| QueueSummary { queue: QueueId::outbox(name, 0), first: 1, last: 9, rows: 7, bytes: 70 };
    let node = node(false);
    let mut hub = Hub::new(node, vec![stored("s"), stored("gone")], &[], 1, Now::default());
    assert_eq!(hub.unclaimed_rows(), 14);
    hub.outbox(&"s".into(), 0);
    assert_eq!(hub.unclaimed_rows(), 7);
}

impl Bench {
    fn subscribe(&mut self, conn: ConnId, filter: &str) {
        let mut filters = SubscribeFiltersBuf::new();
        let options = SubscribeOptions::new(QoS::AtLeastOnce);
        filters.push(filter, options).unwrap();
        let subscribe =
            Subscribe { packet_id: 9, properties: Properties::EMPTY, filters: filters.as_filters() };
        self.send(conn, &Packet::Subscribe(subscribe));
    }

    /// What the rules made, `topic payload`, when no turn is left to be had.
    fn made(&mut self) -> Vec<String> {
        for _ in 0..20 {
            self.shard.end_turn(self.now);
        }
        let rows = self.take();
        rows.iter().map(|r| format!("{} {}", r.target, String::from_utf8_lossy(&r.payload))).collect()
    }
}

/// Every event that a broker raises, in both spellings, with what EMQX's rules read of it.
#[test]
fn events_run_the_rules_that_ask_for_them() {
    let mut bench = Bench::new(
        false,
        "SET dialect = 'emqx';
         CREATE RULE a AS INSERT INTO s.\"connected\" SELECT event, clientid, peername, proto_ver, clean_start, reason
           FROM \"$events/client_connected\";
         CREATE RULE b AS INSERT INTO s.\"gone\" SELECT clientid, reason, disconnected_at FROM \"$events/client/disconnected\";
         CREATE RULE c AS INSERT INTO s.\"connack\" SELECT clientid, reason_code FROM \"$events/client/connack\";
         CREATE RULE d AS INSERT INTO s.\"authn\" SELECT reason_code, is_anonymous FROM \"$events/client_check_authn_complete\";
         CREATE RULE e AS INSERT INTO s.\"authz\" SELECT action, topic, result FROM \"$events/auth/+\" WHERE action = 'publish';
         CREATE RULE f AS INSERT INTO s.\"subscribed\" SELECT clientid, topic, qos FROM \"$events/session_subscribed\";
         CREATE RULE g AS INSERT INTO s.\"sent\" SELECT from_clientid, clientid, topic, payload.v as v FROM \"$events/message/delivered\";
         CREATE RULE h AS INSERT INTO s.\"acked\" SELECT from_clientid, clientid, topic, qos FROM \"$events/message_acked\";
         CREATE RULE i AS INSERT INTO s.\"dropped\" SELECT clientid, topic, reason FROM \"$events/message_dropped\";
         CREATE RULE j AS INSERT INTO s.\"unsubscribed\" SELECT clientid, topic FROM \"$events/session/unsubscribed\";
         SET dialect = 'ferrule';
         CREATE RULE k AS INSERT INTO s.\"own\" SELECT event, clientid, reason, topic FROM \"$events/client/#\" WHERE reason = 'normal';",
    );
    let device = bench.connect("d", None);
    assert_eq!(
        bench.made(),
        [
            r#"authn {"reason_code":"success","is_anonymous":true}"#,
            r#"connected {"event":"client.connected","clientid":"d","peername":"127.0.0.1","proto_ver":5,"clean_start":true,"reason":"undefined"}"#,
            r#"connack {"clientid":"d","reason_code":"success"}"#,
        ]
    );
    let other = bench.connect("o", None);
    bench.made();
    bench.subscribe(other, "a/+");
    assert_eq!(bench.made(), [r#"subscribed {"clientid":"o","topic":"a/+","qos":1}"#]);
    bench.publish(device, "a/t", r#"{"v":7}"#, 1, &[]);
    bench.send(
        other,
        &Packet::Puback(ferrule_mqtt::Ack {
            packet_id: 1,
            reason: ferrule_mqtt::ReasonCode::SUCCESS,
            properties: Properties::EMPTY,
        }),
    );
    assert_eq!(
        bench.made(),
        [
            r#"authz {"action":"publish","topic":"a/t","result":"allow"}"#,
            r#"sent {"from_clientid":"d","clientid":"o","topic":"a/t","v":7}"#,
            r#"acked {"from_clientid":"d","clientid":"o","topic":"a/t","qos":1}"#,
        ]
    );
    bench.publish(device, "nobody", "", 2, &[]);
    assert_eq!(bench.made()[1], r#"dropped {"clientid":"d","topic":"nobody","reason":"no_subscribers"}"#);
    let disconnect =
        ferrule_mqtt::Disconnect { reason: ferrule_mqtt::ReasonCode::SUCCESS, properties: Properties::EMPTY };
    bench.send(device, &Packet::Disconnect(disconnect));
    assert_eq!(
        bench.made(),
        [
            r#"gone {"clientid":"d","reason":"normal","disconnected_at":1700000000000}"#,
            r#"own {"event":"client.disconnected","clientid":"d","reason":"normal","topic":null}"#,
        ]
    );
}

#[test]
fn a_rule_on_deliveries_that_makes_deliveries_ends() {
    let mut bench = Bench::new(
        false,
        "CREATE RULE again AS INSERT INTO local.\"again\" SELECT clientid FROM \"$events/message/delivered\";",
    );
    let device = bench.connect("d", None);
    bench.subscribe(device, "#");
    bench.publish(device, "first", "", 1, &[]);
    for _ in 0..100 {
        bench.shard.end_turn(bench.now);
    }
    let (asked, mut told) = oneshot::channel();
    Hub::message(&mut bench.shard, &WorkerStats::default(), HubMessage::Status(asked), bench.now);
    let status = told.try_recv().unwrap();
    assert_eq!(status.counters.get("loops"), Some(&1.into()));
    assert_eq!(status.rules[0].passed, 8, "as many as a message may pass");
}

#[test]
fn what_a_rule_publishes_comes_before_the_next_message_and_nothing_waits() {
    let mut bench = Bench::new(false, "CREATE RULE again AS INSERT INTO local.\"b\" SELECT * FROM \"a/#\";");
    let (device, reader) = (bench.connect("d", None), bench.connect("r", None));
    bench.subscribe(reader, "#");
    bench.packets(reader);
    let mut bytes = Vec::new();
    for (packet_id, topic) in [(1, "a/1"), (2, "a/2")] {
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic,
            packet_id,
            properties: Properties::EMPTY,
            payload: b"{}",
        };
        Packet::Publish(publish).encode(Version::V5, &mut bytes).unwrap();
    }
    bench.packets(device);
    // Before the turn's end.
    assert_eq!(bench.shard.receive(device, &bytes, bench.now), bytes.len());
    assert_eq!(bench.packets(device), ["1", "2"]);
    assert_eq!(bench.packets(reader), ["a/1", "b", "a/2", "b"]);
}

#[test]
fn a_turn_routes_so_many_publishes_of_rules_and_the_next_one_the_rest() {
    let mut bench = Bench::new(
        false,
        "CREATE RULE each WITH (dialect = 'emqx') AS INSERT INTO local.\"b\" WITH (qos = 0) FOREACH payload.l FROM \"a\";
         CREATE RULE again WITH (dialect = 'emqx') AS INSERT INTO local.\"b\" WITH (qos = 0) FOREACH payload.l FROM \"a\";",
    );
    let (device, reader) = (bench.connect("d", None), bench.connect("r", None));
    bench.subscribe(reader, "b");
    bench.packets(reader);
    let list = vec!["1"; 750].join(",");
    bench.publish(device, "a", &format!("{{\"l\":[{list}]}}"), 1, &[]);
    assert_eq!(bench.packets(reader).len(), 1_024);
    assert!(!bench.acknowledged(device, 1), "the rest has not gone where it must");
    assert_eq!(bench.shard.next_wake_us(), Some(0), "a turn is due");
    bench.shard.end_turn(bench.now);
    assert_eq!(bench.packets(reader).len(), 1_500 - 1_024);
    assert!(bench.acknowledged(device, 1));
}

/// Rows that an operator gives up while their consumer has them stay part of its window until it answers, and count once, as
/// discarded; a publisher that waited is acknowledged as of any message that is discarded, and counted so.
#[test]
fn rows_given_up_in_the_consumers_hands_stay_in_its_window() {
    let mut bench =
        Bench::new(true, "CREATE RULE out WITH (ack = 'sink') AS INSERT INTO s SELECT * FROM \"a/#\";");
    bench.consumer(ConsumerEvent::Up { window: 2 });
    let device = bench.connect("d", None);
    for id in 1..=3 {
        bench.publish(device, "a/t", "{}", id, &[]);
    }
    assert_eq!(bench.take().len(), 2);
    let give_up = |bench: &mut Bench| {
        let (reply, mut answer) = oneshot::channel();
        let ask = backlog::Ask::Page { name: "s".into(), after: 0, reply };
        Hub::message(
            &mut bench.shard,
            &WorkerStats::default(),
            HubMessage::Backlog(Box::new(ask)),
            bench.now,
        );
        let rows = answer.try_recv().unwrap().unwrap().rows;
        let rows = rows.iter().map(|(seq, entry, _)| (*seq, ferrule_outbox::Row::size(entry))).collect();
        let (reply, mut answer) = oneshot::channel();
        let ask = backlog::Ask::GiveUp { name: "s".into(), rows, reply };
        Hub::message(
            &mut bench.shard,
            &WorkerStats::default(),
            HubMessage::Backlog(Box::new(ask)),
            bench.now,
        );
        bench.shard.end_turn(bench.now);
        answer.try_recv().unwrap().unwrap()
    };
    // While the destination is up, what it has stays: the third alone goes.
    let gave = give_up(&mut bench);
    assert_eq!((gave.rows, gave.in_flight), (1, 0));
    // Acknowledgements leave in the order of their publishes.
    assert!(!bench.acknowledged(device, 1) && !bench.acknowledged(device, 3));
    bench.consumer(ConsumerEvent::Down { error: "away".into() });
    let gave = give_up(&mut bench);
    assert_eq!((gave.rows, gave.in_flight), (2, 2));
    assert!((1..=3).all(|id| bench.acknowledged(device, id)));
    // The window is still full.
    bench.publish(device, "a/t", "{}", 4, &[]);
    assert_eq!(bench.take().len(), 0);
    bench.consumer(ConsumerEvent::Done(vec![(1, Delivered::Yes), (2, Delivered::Yes)]));
    assert_eq!(bench.take().len(), 1);

    let (asked, mut told) = oneshot::channel();
    Hub::message(&mut bench.shard, &WorkerStats::default(), HubMessage::Status(asked), bench.now);
    let status = told.try_recv().unwrap();
    let s = &status.outboxes[0];
    assert_eq!((s.entered, s.delivered, s.discarded, s.in_flight, s.queued), (4, 0, 3, 1, 0));
    assert_eq!(s.discarded_by.get("purged"), Some(&3.into()));
    assert_eq!(status.counters.get("acked_discarded"), Some(&3.into()));
    assert_eq!(status.counters.get("lost_ends"), Some(&0.into()));
    // Another shard's outbox, and one that is not there, are nobody's here.
    let (reply, mut answer) = oneshot::channel();
    let ask = backlog::Ask::Page { name: "t".into(), after: 0, reply };
    Hub::message(&mut bench.shard, &WorkerStats::default(), HubMessage::Backlog(Box::new(ask)), bench.now);
    assert!(answer.try_recv().unwrap().is_none());
}
