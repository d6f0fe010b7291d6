//! Device -> edge -> cloud -> Kafka, SQLite, PostgreSQL, with nothing going wrong: all there, once, in order.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::QoS;
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Fleet, Kafka, Node, Plan, Postgres, node, until};
use ferrule_tests::{
    EDGE_RULES, PATIENCE, Rig, TOPIC, cloud_rules, make_sqlite_table, open_sqlite, postgres_rows, sqlite_rows,
};

#[test]
fn ten_thousand_messages_arrive_once_and_in_order_everywhere() {
    let rig = Rig::start();
    let plan = Plan { devices: 20, messages: 500, window: 16, ..Plan::default() };
    let ledger = rig.settle(Fleet::start(rig.edge.addr(), plan));
    assert_eq!(ledger.acknowledged(), 10_000);
    assert_eq!(ledger.sent(), 10_000, "nothing went wrong, so no device sent again");
    rig.check(&ledger, Copies::One, Copies::One);

    // The table has no key columns, so the key stands beside it: one for each row.
    let seen = "select count(*) from readings_ferrule_seen";
    assert_eq!(rig.postgres.query(seen), ["10000"]);
    let seen: i64 = open_sqlite(&rig.sqlite()).query_row(seen, [], |row| row.get(0)).unwrap();
    assert_eq!(seen, 10_000);

    // What the nodes say of themselves agrees with what stands at the destinations.
    let edge = rig.edge.status();
    let uplink = node::outbox(&edge, "cloud");
    assert_eq!((node::count(uplink, "entered"), node::count(uplink, "delivered")), (10_000, 10_000));
    let cloud = rig.cloud.status();
    for sink in ["k", "p", "s"] {
        assert_eq!(node::count(node::outbox(&cloud, sink), "delivered"), 10_000, "{sink}");
    }
    rig.edge.assert_quiet_log();
    rig.cloud.assert_quiet_log();
}

#[test]
fn missing_tables_are_made_and_records_carry_their_identity() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("made.db");
    let postgres = Postgres::start();
    let kafka = Kafka::start();
    kafka.create_topic(TOPIC, 2);
    let rules = cloud_rules(Some(&kafka), Some(&postgres), Some(&sqlite));
    let cloud = Node::start(&Config::cloud().rules(rules));
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));

    let mut device = Client::connect(edge.addr(), &Options::v5("press 1"));
    for n in 0..5 {
        let payload = format!(r#"{{"device":"d","n":{n}}}"#);
        device.publish("factory/d", payload.as_bytes(), QoS::AtLeastOnce, false);
    }
    edge.wait_drained(PATIENCE);
    cloud.wait_drained(PATIENCE);

    let columns = "select column_name from information_schema.columns where table_name = 'readings' and is_nullable = 'NO' order by 1";
    let keys = ["_boot", "_class", "_origin", "_row", "_rule", "_seq"];
    assert_eq!(postgres.query(columns), keys);
    assert_eq!(postgres.query("select n from readings order by n"), ["0", "1", "2", "3", "4"]);
    assert_eq!(
        postgres.query("select distinct _origin, _class from readings"),
        [format!("{}|0", node::EDGE_ID)]
    );
    let db = open_sqlite(&sqlite);
    let of_sqlite: Vec<String> = db
        .prepare(r#"select name from pragma_table_info('readings') where "notnull" and name like '\_%' escape '\' order by 1"#)
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(of_sqlite, keys);
    let count: i64 = db.query_row("select count(distinct n) from readings", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 5);

    let records = kafka.read(TOPIC);
    assert_eq!(records.len(), 5);
    for record in &records {
        assert_eq!(
            record.key.as_deref(),
            Some("press 1"),
            "the key is the device, not the gateway: {record:?}"
        );
        let origin = format!("ferrule-origin:{}", node::EDGE_ID);
        assert!(record.headers.contains(&origin), "{record:?}");
        for name in ["ferrule-id:", "ferrule-rule:", "ferrule-row:", "ferrule-client:", "ferrule-at:"] {
            assert!(record.headers.contains(name), "no {name} in {record:?}");
        }
    }
}

#[test]
fn a_direct_client_of_the_cloud_gets_an_identity_there() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let mut device = Client::connect(cloud.addr(), &Options::v4("direct"));
    for (n, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().enumerate() {
        let payload = format!(r#"{{"device":"direct","n":{n}}}"#);
        device.publish("factory/direct", payload.as_bytes(), qos, false);
    }
    let rows = until(PATIENCE, "three rows", || {
        let rows = sqlite_rows(&sqlite);
        (rows.len() >= 3).then_some(rows)
    });
    assert_eq!(rows.iter().map(|row| row.n).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(rows.iter().all(|row| row.message_id.starts_with("cloud-1.")), "{rows:?}");
}

#[test]
fn a_payload_passes_untouched_and_a_rule_takes_what_it_matches() {
    let postgres = Postgres::start();
    postgres.execute("create table readings (id bigserial, message_id text, device text, n bigint)");
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, Some(&postgres), None)));
    // Only what is hot goes up, under a topic of its own.
    let rules = "CREATE RULE hot AS INSERT INTO cloud.\"factory/hot/${payload.device}\" SELECT * FROM \"line/+\" WHERE payload.n > 10;";
    let edge = Node::start(&Config::edge().rules(rules).uplink(cloud.addr()));
    let mut reader = Client::connect(cloud.addr(), &Options::v5("reader"));
    reader.subscribe("factory/#", QoS::AtLeastOnce);

    let mut device = Client::connect(edge.addr(), &Options::v4("d"));
    // Spaces and the order of keys show whether the payload was taken apart on the way.
    let hot = r#"{ "n":11,  "device":"a" , "x":1.50}"#;
    for payload in [r#"{"device":"a","n":10}"#, hot, "not JSON at all"] {
        device.publish("line/1", payload.as_bytes(), QoS::AtLeastOnce, false);
    }
    let message = reader.expect_message();
    assert_eq!((message.topic.as_str(), message.text()), ("factory/hot/a", hot));
    edge.wait_drained(PATIENCE);
    cloud.wait_drained(PATIENCE);
    assert_eq!(postgres_rows(&postgres).iter().map(|row| row.n).collect::<Vec<_>>(), [11]);
    let status = edge.status();
    let rule = status["rules"].as_array().unwrap().iter().find(|rule| rule["name"] == "hot").unwrap();
    assert_eq!((node::count(rule, "matched"), node::count(rule, "passed")), (3, 1));
}
