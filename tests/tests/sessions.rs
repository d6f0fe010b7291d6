//! The broker's own promises, over kill -9 and restart: sessions, queues, retained messages, QoS 2, takeover, wills, wildcards.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;

use ferrule_mqtt::{AckType, Packet, QoS, ReasonCode, SubscribeOptions};
use ferrule_testkit::node::{Role, run_to_exit};
use ferrule_testkit::wire::{Options, Outgoing};
use ferrule_testkit::{Client, Config, Node};
use serde_json::{Value, json};

fn edge() -> Node {
    Node::start(&Config::edge().bare())
}

/// Makes the options of a client id.
type MakeOptions = fn(&str) -> Options;

/// Both versions by name.
const VERSIONS: [(&str, MakeOptions); 2] = [("v4", Options::v4), ("v5", Options::v5)];

/// Publishes the fence that ends `messages_until`, from a client of its own.
/// At QoS 2, so that it comes after all that was published before it, whatever the reader was granted.
fn fence(addr: SocketAddr, topic: &str) {
    Client::connect(addr, &Options::v4("")).publish(topic, b"", QoS::ExactlyOnce, false);
}

fn texts(client: &mut Client, addr: SocketAddr, topic: &str) -> Vec<String> {
    fence(addr, topic);
    client.messages_until(topic).iter().map(|message| message.text().to_owned()).collect()
}

#[test]
fn subscriptions_and_queues_survive_a_kill() {
    let mut edge = edge();
    for (name, options) in VERSIONS {
        let me = options(&format!("reader-{name}")).persistent();
        let (mut reader, present) = Client::connect_session(edge.addr(), &me);
        assert!(!present, "{name}: a session before the first connection");
        assert_eq!(reader.subscribe(&format!("{name}/#"), QoS::AtLeastOnce), 1);
        assert_eq!(reader.subscribe(&format!("fence/{name}"), QoS::AtLeastOnce), 1);
        drop(reader);

        // While the reader is away: acknowledged, so safe.
        let mut writer = Client::connect(edge.addr(), &options("writer"));
        for n in 0..300 {
            writer.publish(&format!("{name}/{n}"), n.to_string().as_bytes(), QoS::AtLeastOnce, false);
        }
        edge.kill9();
        edge.restart();

        let (mut reader, present) = Client::connect_session(edge.addr(), &me);
        assert!(present, "{name}: the session is gone");
        let expect: Vec<String> = (0..300).map(|n| n.to_string()).collect();
        assert_eq!(texts(&mut reader, edge.addr(), &format!("fence/{name}")), expect, "{name}");

        // The subscription still routes, and what was acknowledged does not come back.
        Client::connect(edge.addr(), &options("writer")).publish(
            &format!("{name}/x"),
            b"later",
            QoS::AtLeastOnce,
            false,
        );
        assert_eq!(texts(&mut reader, edge.addr(), &format!("fence/{name}")), ["later"], "{name}");
        reader.ping();
    }
}

#[test]
fn what_a_subscriber_did_not_acknowledge_comes_again() {
    let mut edge = edge();
    for (name, options) in VERSIONS {
        let me = options(&format!("silent-{name}")).persistent().manual_ack();
        let mut reader = Client::connect(edge.addr(), &me);
        reader.subscribe(&format!("{name}/+"), QoS::AtLeastOnce);
        let mut writer = Client::connect(edge.addr(), &options("writer"));
        for n in ["1", "2", "3"] {
            writer.publish(&format!("{name}/t"), n.as_bytes(), QoS::AtLeastOnce, false);
        }
        let first = reader.expect_message();
        assert_eq!((first.text(), first.dup), ("1", false));
        reader.expect_message();
        reader.expect_message();
        // A kill before any acknowledgement: all three come again, in their order.
        edge.kill9();
        edge.restart();
        let (mut reader, present) = Client::connect_session(edge.addr(), &me);
        assert!(present);
        for n in ["1", "2", "3"] {
            let message = reader.expect_message();
            assert_eq!(message.text(), n, "{name}");
            reader.send_ack(AckType::Puback, message.packet_id).unwrap();
        }
        reader.disconnect();
    }
}

#[test]
fn a_discarded_session_does_not_come_back() {
    let mut edge = edge();
    for (name, options) in VERSIONS {
        let client_id = format!("gone-{name}");
        let mut reader = Client::connect(edge.addr(), &options(&client_id).persistent());
        reader.subscribe(&format!("{name}/#"), QoS::AtLeastOnce);
        drop(reader);
        let (clean, present) = Client::connect_session(edge.addr(), &options(&client_id));
        assert!(!present, "{name}");
        drop(clean);
        edge.kill9();
        edge.restart();
        let (_, present) = Client::connect_session(edge.addr(), &options(&client_id).persistent());
        assert!(!present, "{name}: the discarded session is back");
    }
}

#[test]
fn retained_messages_survive_a_kill() {
    let mut edge = edge();
    let mut writer = Client::connect(edge.addr(), &Options::v5("writer"));
    writer.publish("kept/a", b"old", QoS::AtLeastOnce, true);
    writer.publish("kept/a", b"new", QoS::AtLeastOnce, true);
    writer.publish("kept/b", b"b", QoS::ExactlyOnce, true);
    writer.publish("kept/gone", b"x", QoS::AtLeastOnce, true);
    writer.publish("kept/gone", b"", QoS::AtLeastOnce, true);
    writer.publish("kept/plain", b"x", QoS::AtLeastOnce, false);
    edge.kill9();
    edge.restart();
    for (name, options) in VERSIONS {
        let mut reader = Client::connect(edge.addr(), &options("reader"));
        reader.subscribe("kept/#", QoS::AtLeastOnce);
        reader.subscribe("fence", QoS::AtLeastOnce);
        fence(edge.addr(), "fence");
        let mut kept = reader.messages_until("fence");
        kept.sort_by(|a, b| a.topic.cmp(&b.topic));
        let kept: Vec<_> = kept.iter().map(|m| (m.topic.as_str(), m.text(), m.retain)).collect();
        assert_eq!(kept, [("kept/a", "new", true), ("kept/b", "b", true)], "{name}");
    }
}

#[test]
fn a_qos_2_message_is_routed_once_over_a_kill() {
    let mut edge = edge();
    for (name, options) in VERSIONS {
        let reader_options = options(&format!("reader-{name}")).persistent();
        let mut reader = Client::connect(edge.addr(), &reader_options);
        reader.subscribe(&format!("{name}/#"), QoS::ExactlyOnce);
        reader.subscribe(&format!("fence/{name}"), QoS::ExactlyOnce);
        drop(reader);

        let me = options(&format!("writer-{name}")).persistent();
        let topic = format!("{name}/once");
        let message = |dup| Outgoing {
            topic: &topic,
            payload: b"once",
            qos: QoS::ExactlyOnce,
            retain: false,
            dup,
            packet_id: 7,
        };
        let mut writer = Client::connect(edge.addr(), &me);
        writer.send_publish(message(false)).unwrap();
        writer.expect_ack(AckType::Pubrec, 7);
        edge.kill9();
        edge.restart();
        // The PUBREC might have been lost on the way: so the client begins again, under the same id.
        let (mut writer, present) = Client::connect_session(edge.addr(), &me);
        assert!(present, "{name}");
        writer.send_publish(message(true)).unwrap();
        writer.expect_ack(AckType::Pubrec, 7);
        writer.send_ack(AckType::Pubrel, 7).unwrap();
        writer.expect_ack(AckType::Pubcomp, 7);

        let (mut reader, present) = Client::connect_session(edge.addr(), &reader_options);
        assert!(present, "{name}");
        assert_eq!(texts(&mut reader, edge.addr(), &format!("fence/{name}")), ["once"], "{name}");
    }
}

#[test]
fn a_second_connection_takes_the_session_over() {
    let edge = edge();
    for (name, options) in VERSIONS {
        let me = options(&format!("twice-{name}")).persistent().will(
            "wills/taken",
            b"taken",
            QoS::AtLeastOnce,
            false,
        );
        let mut first = Client::connect(edge.addr(), &me);
        first.subscribe(&format!("{name}/#"), QoS::AtLeastOnce);
        first.subscribe("fence/take", QoS::AtLeastOnce);
        let (mut second, present) = Client::connect_session(edge.addr(), &me);
        assert!(present, "{name}");
        let reason = first.expect_closed();
        let expect = (name == "v5").then_some(ReasonCode(0x8E)); // Session taken over
        assert_eq!(reason, expect, "{name}");
        Client::connect(edge.addr(), &options("writer")).publish(
            &format!("{name}/t"),
            b"1",
            QoS::AtLeastOnce,
            false,
        );
        assert_eq!(texts(&mut second, edge.addr(), "fence/take"), ["1"], "{name}");
    }
}

#[test]
fn a_will_is_published_for_a_lost_client_alone() {
    let edge = edge();
    let mut reader = Client::connect(edge.addr(), &Options::v5("reader"));
    reader.subscribe("wills/#", QoS::AtLeastOnce);
    reader.subscribe("fence/wills", QoS::AtLeastOnce);
    for (name, options) in VERSIONS {
        let will = |client: &str| {
            options(client).will(&format!("wills/{name}/{client}"), client.as_bytes(), QoS::AtLeastOnce, true)
        };
        Client::connect(edge.addr(), &will("polite")).disconnect();
        drop(Client::connect(edge.addr(), &will("lost")));
        let message = reader.expect_message();
        assert_eq!((message.topic, message.retain), (format!("wills/{name}/lost"), false));

        // Rubbish ends a connection as a lost one.
        let mut rude = Client::connect(edge.addr(), &will("rude"));
        rude.send_raw(&[0xF0, 0x00, 0x00]).unwrap();
        rude.expect_closed();
        assert_eq!(reader.expect_message().topic, format!("wills/{name}/rude"));

        assert_eq!(texts(&mut reader, edge.addr(), "fence/wills"), Vec::<String>::new());
        // The will was to be retained.
        let mut late = Client::connect(edge.addr(), &options("late"));
        late.subscribe(&format!("wills/{name}/lost"), QoS::AtLeastOnce);
        assert!(late.expect_message().retain);
    }
}

#[test]
fn filters_match_as_the_standard_says() {
    // Without lists nobody may use a topic that begins with $.
    let lists = "[anonymous]\npublish = [\"#\", \"$x/#\"]\nsubscribe = [\"#\", \"$x/#\"]\n";
    let edge = Node::start(&Config::edge().extra(lists));
    let topics = ["a", "a/b", "a/b/c", "/a", "a/", "b", "$x/a"];
    let table: [(&str, &[&str]); 12] = [
        ("#", &["a", "a/b", "a/b/c", "/a", "a/", "b"]),
        ("+", &["a", "b"]),
        ("a/#", &["a", "a/b", "a/b/c", "a/"]),
        ("a/+", &["a/b", "a/"]),
        ("a/+/#", &["a/b", "a/b/c", "a/"]),
        ("+/b", &["a/b"]),
        ("+/+", &["a/b", "/a", "a/"]),
        ("/+", &["/a"]),
        ("+/a", &["/a"]),
        ("a/b/c", &["a/b/c"]),
        ("$x/#", &["$x/a"]),
        ("+/+/+", &["a/b/c"]),
    ];
    for (filter, expect) in table {
        for (name, options) in VERSIONS {
            let mut reader = Client::connect(edge.addr(), &options("reader"));
            assert!(reader.subscribe(filter, QoS::AtLeastOnce) < 0x80, "{filter}");
            // A second, overlapping subscription: a message still comes at least once, and the fence comes at all.
            reader.subscribe("fence/x/y/z", QoS::AtLeastOnce);
            let mut writer = Client::connect(edge.addr(), &options("writer"));
            for topic in topics {
                writer.publish(topic, topic.as_bytes(), QoS::AtLeastOnce, false);
            }
            fence(edge.addr(), "fence/x/y/z");
            let mut got: Vec<String> =
                reader.messages_until("fence/x/y/z").into_iter().map(|message| message.topic).collect();
            got.dedup();
            assert_eq!(got, expect, "{filter} {name}");
        }
    }
}

#[test]
fn bad_filters_are_refused_in_their_place() {
    let edge = edge();
    for filter in ["a#", "a/#/b", "a+/b", "#/a"] {
        for (name, options) in VERSIONS {
            let mut client = Client::connect(edge.addr(), &options("reader"));
            let code = client.subscribe(filter, QoS::AtLeastOnce);
            assert_eq!(code, if name == "v5" { 0x8F } else { 0x80 }, "{filter} {name}");
            client.ping();
        }
    }
}

#[test]
fn no_local_and_retain_handling_are_heeded() {
    let edge = edge();
    let mut me = Client::connect(edge.addr(), &Options::v5("me"));
    me.publish("o/kept", b"kept", QoS::AtLeastOnce, true);
    let no_local =
        SubscribeOptions { no_local: true, retain_handling: 2, ..SubscribeOptions::new(QoS::AtLeastOnce) };
    assert_eq!(me.subscribe_with("o/#", no_local), 1);
    me.subscribe("fence/o", QoS::AtLeastOnce);
    me.publish("o/own", b"own", QoS::AtLeastOnce, false);
    Client::connect(edge.addr(), &Options::v5("other")).publish("o/other", b"other", QoS::AtLeastOnce, false);
    assert_eq!(texts(&mut me, edge.addr(), "fence/o"), ["other"]);
}

#[test]
fn a_shared_subscription_gives_each_message_to_one_member() {
    let edge = edge();
    let mut members = [
        Client::connect(edge.addr(), &Options::v5("m5")),
        Client::connect(edge.addr(), &Options::v4("m4")),
        Client::connect(edge.addr(), &Options::v5("m5-more")),
    ];
    for member in &mut members {
        assert_eq!(member.subscribe("$share/g/jobs/#", QoS::AtLeastOnce), 1);
        member.subscribe("fence/jobs", QoS::AtLeastOnce);
    }
    let mut sender = Client::connect(edge.addr(), &Options::v5("sender"));
    let expected: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    for n in &expected {
        sender.publish("jobs/a", n.as_bytes(), QoS::AtLeastOnce, false);
    }
    fence(edge.addr(), "fence/jobs");
    let mut got: Vec<String> = Vec::new();
    for member in &mut members {
        let its = member.messages_until("fence/jobs");
        assert_eq!(its.len(), 10, "in turn");
        got.extend(its.iter().map(|message| message.text().to_owned()));
    }
    got.sort_by_key(|n| n.parse::<u32>().unwrap());
    assert_eq!(got, expected);
}

#[test]
fn what_a_lost_member_had_not_acknowledged_goes_to_another() {
    let edge = edge();
    let mut lost = Client::connect(edge.addr(), &Options::v5("lost").manual_ack());
    lost.subscribe("$share/g/jobs", QoS::AtLeastOnce);
    let mut sender = Client::connect(edge.addr(), &Options::v5("sender"));
    for n in 0..20 {
        sender.publish("jobs", n.to_string().as_bytes(), QoS::AtLeastOnce, false);
    }
    for n in 0..20 {
        assert_eq!(lost.expect_message().text(), n.to_string());
    }
    let mut other = Client::connect(edge.addr(), &Options::v4("other"));
    other.subscribe("$share/g/jobs", QoS::AtLeastOnce);
    drop(lost);
    for n in 0..20 {
        assert_eq!(other.expect_message().text(), n.to_string());
    }
}

#[test]
fn a_group_is_there_again_after_a_kill() {
    let mut edge = edge();
    let me = Options::v5("worker").persistent();
    let mut worker = Client::connect(edge.addr(), &me);
    worker.subscribe("$share/g/jobs/+", QoS::AtLeastOnce);
    drop(worker);
    edge.kill9();
    edge.restart();
    Client::connect(edge.addr(), &Options::v4("sender")).publish("jobs/1", b"one", QoS::AtLeastOnce, false);
    edge.kill9();
    edge.restart();
    let (mut worker, present) = Client::connect_session(edge.addr(), &me);
    assert!(present);
    assert_eq!(worker.expect_message().text(), "one");
}

#[test]
fn acknowledgements_leave_in_the_order_of_the_publishes() {
    // To a persistent session that is away (stored) and to nobody (not stored), in turns.
    let edge = edge();
    let mut reader = Client::connect(edge.addr(), &Options::v4("away").persistent());
    reader.subscribe("stored/#", QoS::AtLeastOnce);
    drop(reader);
    for (name, options) in VERSIONS {
        let mut writer = Client::connect(edge.addr(), &options("writer"));
        let ids: Vec<u16> = (0..60)
            .map(|n| {
                let topic = if n % 3 == 0 { "stored/t" } else { "nobody/t" };
                writer.publish_nowait(topic, b"x", QoS::AtLeastOnce, false)
            })
            .collect();
        let acknowledged: Vec<u16> = (0..60)
            .map(|_| match writer.expect("PUBACK", |p| matches!(p, Packet::Puback(_))).packet() {
                Packet::Puback(ack) => ack.packet_id,
                other => unreachable!("{other:?}"),
            })
            .collect();
        assert_eq!(acknowledged, ids, "{name}");
    }
}

#[test]
fn sys_topics_say_what_the_node_counts() {
    let config = Config::edge()
        .extra("[anonymous]\nsubscribe = [\"#\", \"$SYS/#\"]")
        .env("FERRULE__EDGE__SYS_INTERVAL", "100ms");
    let edge = Node::start(&config);
    let mut reader = Client::connect(edge.addr(), &Options::v5("reader"));
    let mut wild = Client::connect(edge.addr(), &Options::v4("wild"));
    wild.subscribe("#", QoS::AtMostOnce);
    assert_eq!(reader.subscribe("$SYS/broker/clients/connected", QoS::AtMostOnce), 0);
    ferrule_testkit::until(std::time::Duration::from_secs(10), "two are counted", || {
        (reader.expect_message().text() == "2").then_some(())
    });
    // Whoever comes later gets the last values at once; and nobody else may say so.
    let mut late = Client::connect(edge.addr(), &Options::v5("late"));
    late.subscribe("$SYS/brokers/+/version", QoS::AtMostOnce);
    let version = late.expect_message();
    assert_eq!((version.text(), version.retain), (env!("CARGO_PKG_VERSION"), true));
    let id = late.publish_nowait("$SYS/broker/version", b"mine", QoS::AtLeastOnce, true);
    let refused =
        late.expect("PUBACK", |packet| matches!(packet, Packet::Puback(ack) if ack.packet_id == id));
    let Packet::Puback(ack) = refused.packet() else { unreachable!("selected") };
    assert_eq!(ack.reason, ReasonCode::NOT_AUTHORIZED);
    // `#` sees none of it [MQTT-4.7.2-1].
    assert_eq!(texts(&mut wild, edge.addr(), "fence"), [""; 0]);
}

#[test]
fn a_delayed_message_comes_over_a_kill_and_an_exclusive_subscription_stays_one() {
    let mut edge = edge();
    let me = Options::v5("reader-delayed").persistent();
    let mut reader = Client::connect(edge.addr(), &me);
    assert_eq!(reader.subscribe("$exclusive/later/+", QoS::ExactlyOnce), 2);
    drop(reader);
    let mut writer = Client::connect(edge.addr(), &Options::v5("writer"));
    writer.publish("$delayed/2/later/a", b"one", QoS::AtLeastOnce, false);
    writer.publish("$delayed/2/later/b", b"two", QoS::ExactlyOnce, true);
    // Far away: it must not come.
    writer.publish("$delayed/3600/later/c", b"three", QoS::AtLeastOnce, false);
    let mut other = Client::connect(edge.addr(), &Options::v5("other"));
    assert_eq!(other.subscribe("$exclusive/later/+", QoS::AtMostOnce), 0x97, "somebody has it");
    edge.kill9();
    edge.restart();

    let mut other = Client::connect(edge.addr(), &Options::v5("other"));
    assert_eq!(other.subscribe("$exclusive/later/+", QoS::AtMostOnce), 0x97, "after a kill, too");
    let (mut reader, present) = Client::connect_session(edge.addr(), &me);
    assert!(present);
    let mut got = [reader.expect_message(), reader.expect_message()].map(|m| m.text().to_owned());
    got.sort();
    assert_eq!(got, ["one", "two"]);
    let mut late = Client::connect(edge.addr(), &Options::v5("late"));
    late.subscribe("later/#", QoS::AtMostOnce);
    assert_eq!(late.expect_message().text(), "two", "retained from then on");
    fence(edge.addr(), "later/fence");
    assert_eq!(late.messages_until("later/fence").len(), 0);
}

/// What `ferrule-edge store ...` says of a node's folder.
fn store(edge: &Node, command: &str) -> (i32, String) {
    let folder = edge.data_dir().to_str().unwrap().to_owned();
    let ended = run_to_exit(Role::Edge, &["store", command, "--data-dir", &folder]);
    (ended.status.code().unwrap_or(-1), ended.output)
}

#[test]
fn a_store_is_looked_through_while_its_node_runs_and_when_it_does_not() {
    let mut edge = edge();
    let me = Options::v5("reader-store").persistent();
    let mut reader = Client::connect(edge.addr(), &me);
    reader.subscribe("s/#", QoS::AtLeastOnce);
    drop(reader);
    let mut writer = Client::connect(edge.addr(), &Options::v5("writer"));
    // More than a page.
    for n in 0..400 {
        writer.publish("s/a", format!("message {n}").as_bytes(), QoS::AtLeastOnce, false);
    }
    writer.publish("s/kept", &[0xff, 0x00], QoS::AtLeastOnce, true);
    writer.publish("$delayed/3600/s/later", b"later", QoS::AtLeastOnce, false);

    let counts = |told: &str| {
        for line in [
            "1 sessions",
            "1 subscriptions",
            "1 retained messages",
            "401 messages waiting for sessions",
            "1 delayed messages",
        ] {
            assert!(told.contains(&format!(" {line}\n")), "{line}:\n{told}");
        }
        assert!(told.contains("no faults"), "{told}");
    };
    let dumped = |told: &str| {
        let items: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let rows = items.iter().filter(|i| i["is"] == "row" && i["topic"] == "s/a");
        let payloads: Vec<&str> = rows.map(|row| row["payload"].as_str().unwrap()).collect();
        let expect: Vec<String> = (0..400).map(|n| format!("message {n}")).collect();
        assert_eq!(payloads, expect);
        let kept = items.iter().find(|i| i["is"] == "retained").unwrap();
        assert_eq!((&kept["topic"], &kept["payload_hex"]), (&json!("s/kept"), &json!("ff00")));
        assert!(items.iter().any(|i| i["is"] == "session" && i["client_id"] == "reader-store"));
        assert!(items.iter().any(|i| i["is"] == "subscription" && i["filter"] == "s/#"));
        assert!(items.iter().any(|i| i["is"] == "row" && i["delayed"].is_u64() && i["topic"] == "s/later"));
    };
    // Running: through its socket, and it goes on meanwhile.
    let (code, told) = store(&edge, "check");
    assert_eq!(code, 0, "{told}");
    counts(&told);
    assert!(told.contains("it runs"), "{told}");
    dumped(&store(&edge, "dump").1);
    writer.ping();
    // Not running, after a kill: the journal and the WAL are as they were left.
    edge.kill9();
    let (code, told) = store(&edge, "check");
    assert_eq!(code, 0, "{told}");
    counts(&told);
    dumped(&store(&edge, "dump").1);
    // And nothing was changed by it.
    edge.restart();
    let (mut reader, present) = Client::connect_session(edge.addr(), &me);
    assert!(present);
    assert_eq!(reader.expect_message().text(), "message 0");
    drop(reader);

    // A folder without a store, and a file that is damaged.
    let folder = tempfile::tempdir().unwrap();
    let ended = run_to_exit(Role::Edge, &["store", "check", "--data-dir", folder.path().to_str().unwrap()]);
    assert!(ended.output.contains("there is no store in"), "{}", ended.output);
    edge.terminate();
    let file = edge.data_dir().join("ferrule.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xa5);
    bytes[4096..8192].fill(0xa5);
    std::fs::write(&file, bytes).unwrap();
    let (code, told) = store(&edge, "check");
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("fault: ") || told.contains("A start moves a damaged file aside"), "{told}");
    assert!(file.exists(), "a look moves nothing");
}
