//! Reloads: what changes is in force, what does not is not touched, a mistake changes nothing, and devices notice none of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::{Connack, Packet, QoS, ReasonCode};
use ferrule_testkit::node;
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::random::Random;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Fleet, Node, Plan, port};
use ferrule_tests::{EDGE_RULES, PATIENCE, check_rows, cloud_rules, make_sqlite_table, sqlite_rows};
use serde_json::{Value, json};
use std::path::Path;

/// What a reload says, as lines.
fn lines(answer: &Value, key: &str) -> Vec<String> {
    answer[key].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

/// Reloads, and expects that to be in force and nothing to need a restart.
#[track_caller]
fn taken(node: &Node, expected: &[&str]) {
    let answer = node.reload().unwrap();
    assert_eq!((lines(&answer, "changed"), lines(&answer, "needs_restart")), (owned(expected), Vec::new()));
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// The edge's own table, without the identity that only a cloud knows: what was inserted, in order.
fn near_rules(sqlite: &Path) -> String {
    cloud_rules(None, None, Some(sqlite)).replace("SELECT message_id,", "SELECT '' AS message_id,")
}

fn cloud_with(sqlite: &Path) -> Node {
    Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(sqlite))))
}

/// From a cloud that cannot be reached to one, and under load from there to another: both write to one table, which thereby tells what
/// would have been inserted twice.
#[test]
fn the_uplink_moves_to_another_cloud_with_its_backlog() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    let nowhere = port::free_addr();
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(nowhere));
    let plan = Plan { devices: 10, messages: 300, window: 16, ..Plan::default() };
    let fleet = Fleet::start(edge.addr(), plan);
    fleet.wait_acknowledged(600, PATIENCE);
    let clouds = [cloud_with(&sqlite), cloud_with(&sqlite)];
    let mut from = nowhere;
    for (cloud, until) in clouds.iter().zip([1_200, 1_800]) {
        edge.edit(|toml| toml.replace(&from.to_string(), &cloud.addr().to_string()));
        let said = format!("uplink.url = [\"mqtt://{}\"], was [\"mqtt://{from}\"]", cloud.addr());
        taken(&edge, &[&said]);
        edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
        fleet.wait_acknowledged(until, PATIENCE);
        from = cloud.addr();
    }
    assert_eq!(fleet.connects(), 10, "devices kept their connections");
    let ledger = fleet.finish(PATIENCE);
    let status = edge.wait_drained(PATIENCE);
    node::assert_accounts(&status);
    assert_eq!(node::count(node::outbox(&status, "cloud"), "delivered"), 3_000);
    clouds.iter().for_each(|cloud| drop(cloud.wait_drained(PATIENCE)));
    check_rows("sqlite", &ledger, &sqlite_rows(&sqlite), Copies::One);
    clouds.iter().for_each(Node::assert_quiet_log);
}

#[test]
fn an_uplink_comes_and_goes_and_its_rows_stay() {
    let cloud = Node::start(&Config::cloud());
    let edge = Node::start(&Config::edge().rules(EDGE_RULES));
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    device.publish("factory/a", b"1", QoS::AtLeastOnce, false);
    let url = cloud.addr();
    let section = format!(
        "\n[uplink]\nurl = \"mqtt://{url}\"\nusername = \"press-7\"\npassword_file = \"edge.pass\"\n"
    );
    edge.edit(|toml| toml + &section);
    taken(&edge, &["[uplink] is new"]);
    edge.wait_drained(PATIENCE);
    edge.edit(|toml| toml.replace(&section, ""));
    taken(&edge, &["[uplink] is not there any more: its rows are kept"]);
    device.publish("factory/a", b"2", QoS::AtLeastOnce, false);
    let status = edge.status();
    let outbox = node::outbox(&status, "cloud");
    assert_eq!((node::count(outbox, "delivered"), node::count(outbox, "queued")), (1, 1));
    assert!(status["uplink"].is_null() && outbox["state"] == "unconnected", "{status:#}");
    edge.edit(|toml| toml + &section);
    taken(&edge, &["[uplink] is new"]);
    edge.wait_drained(PATIENCE);
    assert_eq!(node::count(&cloud.status()["counters"], "received"), 2);
}

#[test]
fn commands_come_down_by_what_is_asked_for_now() {
    let cloud = Node::start(&Config::cloud());
    let down = |to: &str| format!("[[downlink]]\nfilter = \"commands/#\"\ntopic = \"{to}/$1\"\n");
    let edge = Node::start(&Config::edge().uplink(cloud.addr()).extra(&down("a")));
    edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    device.subscribe("#", QoS::AtLeastOnce);
    let mut operator = Client::connect(cloud.addr(), &Options::v5("operator"));
    for to in ["a", "b"] {
        operator.publish("commands/start", b"", QoS::AtLeastOnce, false);
        assert_eq!(device.expect_message().topic, format!("{to}/start"));
        if to == "a" {
            edge.edit(|toml| toml.replace(&down("a"), &down("b")));
            taken(&edge, &["[[downlink]]"]);
        }
    }
}

#[test]
fn bounds_of_outboxes_change_while_rows_wait() {
    let bounds = |rows: u32| format!("[outbox]\nmax_messages = {rows}\non_full = \"drop_oldest\"\n");
    let edge = Config::edge().rules(EDGE_RULES).uplink(port::free_addr()).extra(&bounds(10));
    let edge = Node::start(&edge);
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    let mut publish = |count: usize| {
        for _ in 0..count {
            device.publish("factory/a", b"x", QoS::AtLeastOnce, false);
        }
        let status = edge.status();
        let outbox = node::outbox(&status, "cloud");
        (node::count(outbox, "queued") + node::count(outbox, "in_flight"), node::count(outbox, "discarded"))
    };
    assert_eq!(publish(30), (10, 20));
    edge.edit(|toml| toml.replace(&bounds(10), &bounds(50)));
    taken(&edge, &["outbox.max_messages = 50, was 10"]);
    assert_eq!(publish(30), (40, 20));
    edge.edit(|toml| toml.replace(&bounds(50), &bounds(20)));
    taken(&edge, &["outbox.max_messages = 20, was 50"]);
    assert_eq!(publish(1), (20, 41));
}

#[test]
fn sinks_come_and_go_with_the_rest_and_others_are_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Node::start(&Config::cloud());
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
    edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    let mut device = Client::connect(edge.addr(), &Options::v5("d"));
    let mut publish = |n: u32| {
        let payload = format!(r#"{{"device":"d","n":{n}}}"#);
        device.publish("factory/d", payload.as_bytes(), QoS::AtLeastOnce, false);
    };
    publish(1);
    // The sink comes with the bounds it has.
    edge.write_rules(&(EDGE_RULES.to_owned() + &near_rules(&sqlite)));
    edge.edit(|toml| toml + "[outbox]\nmax_rate = 1000\n");
    taken(&edge, &["outbox.max_rate = 1000, was 0"]);
    publish(2);
    edge.write_rules(EDGE_RULES);
    taken(&edge, &[]);
    publish(3);
    let status = edge.wait_status(PATIENCE, "all but what the sink left", |status| {
        node::count(node::outbox(status, "cloud"), "delivered") == 3
    });
    assert_eq!(node::outbox(&status, "s")["state"], "unconnected");
    assert_eq!(node::count(&status["uplink"], "connects"), 1, "the uplink was not touched");
    // What it did not get to is still its own.
    edge.write_rules(&(EDGE_RULES.to_owned() + &near_rules(&sqlite)));
    taken(&edge, &[]);
    edge.wait_drained(PATIENCE);
    let rows: Vec<u64> = sqlite_rows(&sqlite).iter().map(|row| row.n).collect();
    assert_eq!(rows, [2]);
}

/// The reason code with which a CONNECT is answered, and its Receive Maximum.
fn answer(node: &Node, options: &Options) -> (ReasonCode, Option<u16>) {
    let (_client, frame) = Client::try_connect(node.addr(), options).unwrap();
    match frame.packet() {
        Packet::Connack(Connack { reason, properties, .. }) => (reason, properties.receive_maximum()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn clients_keep_the_limits_that_they_were_told() {
    let edge = Node::start(&Config::edge().rules(EDGE_RULES));
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    edge.edit(|toml| toml + "[mqtt]\nreceive_max = 2\nmax_packet_size = \"100KiB\"\n");
    taken(&edge, &["mqtt.max_packet_size = \"100KiB\", was \"1MiB\"", "mqtt.receive_max = 2, was 256"]);
    assert_eq!(answer(&edge, &Options::v5("another")), (ReasonCode::SUCCESS, Some(2)));
    // More at once, and longer, than those may send who come now. Without an uplink they wait for the disk.
    let payload = vec![b'x'; 200 << 10];
    let ids: Vec<u16> =
        (0..20).map(|_| device.publish_nowait("factory/a", &payload, QoS::AtLeastOnce, false)).collect();
    ids.into_iter().for_each(|id| device.expect_ack(ferrule_mqtt::AckType::Puback, id));
    edge.edit(|toml| toml.replace("receive_max = 2\n", "receive_max = 3\n"));
    taken(&edge, &["mqtt.receive_max = 3, was 2"]);
    assert_eq!(answer(&edge, &Options::v5("another")), (ReasonCode::SUCCESS, Some(3)));
    device.ping();
}

/// For who is connected, and for the session of one who is not.
#[test]
fn limits_that_clients_are_not_told_hold_at_once() {
    let edge = Node::start(&Config::edge());
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    let keeper = Options::v5("keeper").persistent();
    let mut away = Client::connect(edge.addr(), &keeper);
    away.subscribe("kept/#", QoS::AtLeastOnce);
    away.disconnect();
    edge.wait_status(PATIENCE, "it is away", |status| status["connections"] == 1);
    let mut publish = |topic: &str| {
        let id = device.publish_nowait(topic, b"x", QoS::AtLeastOnce, false);
        let is_its = |packet: &Packet<'_>| matches!(packet, Packet::Puback(ack) if ack.packet_id == id);
        match device.expect("PUBACK", is_its).packet() {
            Packet::Puback(ack) => ack.reason,
            other => unreachable!("{other:?}"),
        }
    };
    assert!(publish("a/b/c").0 < 0x80);
    for n in 0..5 {
        publish(&format!("kept/{n}"));
    }
    edge.edit(|toml| toml + "[mqtt]\nmax_topic_levels = 2\nmax_queued_messages = 3\n");
    taken(&edge, &["mqtt.max_topic_levels = 2, was 128", "mqtt.max_queued_messages = 3, was 100000"]);
    assert_eq!(publish("a/b/c"), ReasonCode::TOPIC_NAME_INVALID);
    publish("kept/5");
    edge.edit(|toml| toml.replace("max_topic_levels = 2\nmax_queued_messages = 3\n", ""));
    taken(&edge, &["mqtt.max_topic_levels = 128, was 2", "mqtt.max_queued_messages = 100000, was 3"]);
    assert!(publish("a/b/c").0 < 0x80);
    publish("kept/6");
    let (mut away, _) = Client::connect_session(edge.addr(), &keeper);
    // What was there beyond the bound stayed, and what came then did not come to it.
    for n in [0, 1, 2, 3, 4, 6] {
        assert_eq!(away.expect_message().topic, format!("kept/{n}"));
    }
}

#[test]
fn a_listener_takes_what_is_not_its_address() {
    let extra = "[listener.limits]\nmax_connections = 1\n";
    let cloud = Node::start(&Config::cloud());
    let mut first = Client::connect(cloud.addr(), &Options::v5("first"));
    cloud.edit(|toml| toml.replace("\n[[user]]", &format!("\n{extra}\n[[user]]")));
    let said = format!("listener {}: limits.max_connections = 1, was (not set)", cloud.addr());
    taken(&cloud, &[&said]);
    let mut second = Client::connect(cloud.addr(), &Options::v5("second"));
    assert_eq!(answer(&cloud, &Options::v5("third")).0, ReasonCode::QUOTA_EXCEEDED);
    // PROXY from now on; who is there need not say it.
    cloud.edit(|toml| {
        toml.replace("anonymous = true\n", "anonymous = true\nproxy_protocol_from = [\"127.0.0.1\"]\n")
            .replace(extra, "")
    });
    cloud.reload().unwrap();
    let mut proxied = Client::open(cloud.addr(), ferrule_mqtt::Version::V5).unwrap();
    proxied.send_raw(b"PROXY TCP4 10.1.2.3 10.0.0.1 1 1883\r\n").unwrap();
    // Not of this machine.
    let (_, frame) = proxied.try_login(&Options::v5("proxied")).unwrap();
    assert_eq!(frame.connack().0, ReasonCode::NOT_AUTHORIZED);
    for client in [&mut first, &mut second] {
        client.ping();
    }
}

#[test]
fn a_mistake_changes_nothing_and_is_told_with_its_place() {
    let cloud = Node::start(&Config::cloud());
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
    edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    let good = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    let line = good.lines().count() + 3;
    let valid = "[outbox]\nmax_bytes = \"2GiB\"\n";
    for (file, text, told) in [
        (
            "edge.toml",
            format!("{good}{valid}mem_max = \"lots\"\n"),
            vec![format!("edge.toml:{line}:"), "^^^^".into()],
        ),
        (
            "edge.pass",
            "two\nlines\n".into(),
            vec!["must hold one line, found several".into(), "edge.pass".into()],
        ),
        (
            "rules.sql",
            "CREATE RULE x AS INSERT INTO nowhere SELECT * FROM \"a\";\n".into(),
            vec!["rules.sql:1:".into(), "nowhere".into()],
        ),
    ] {
        let path = edge.folder().join(file);
        let before = std::fs::read_to_string(&path).unwrap();
        if file != "edge.toml" {
            std::fs::write(edge.folder().join("edge.toml"), format!("{good}{valid}")).unwrap();
        }
        std::fs::write(&path, text).unwrap();
        let error = edge.reload().unwrap_err();
        assert!(told.iter().all(|part| error.contains(part)), "{told:?} in {error}");
        let status = edge.status();
        assert_eq!(status["reload"]["error"].as_str(), Some(error.as_str()));
        let settings = edge.ask(&json!({"do": "settings"})).unwrap();
        let settings = settings["settings"].as_array().unwrap();
        let bytes = settings.iter().find(|setting| setting["path"] == "outbox.max_bytes").unwrap();
        assert_eq!((&bytes["value"], &bytes["source"]), (&json!("\"1GiB\""), &json!("default")));
        device.publish("factory/a", b"x", QoS::AtLeastOnce, false);
        std::fs::write(&path, before).unwrap();
        std::fs::write(edge.folder().join("edge.toml"), &good).unwrap();
    }
    taken(&edge, &[]);
    let status = edge.wait_drained(PATIENCE);
    assert!(status["reload"]["error"].is_null() && status["rules_error"].is_null(), "{status:#}");
    assert_eq!((&status["reload"]["reloads"], &status["reload"]["failed"]), (&json!(1), &json!(3)));
    assert_eq!(node::count(&status["uplink"], "connects"), 1);
    assert_eq!(node::count(node::outbox(&status, "cloud"), "delivered"), 3);
}

#[test]
fn what_needs_a_restart_is_told_until_it_is_so() {
    let mut edge = Node::start(&Config::edge());
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    edge.edit(|toml| toml.replace("id = \"press-7\"", "id = \"press-8\""));
    let told = owned(&["edge.id = \"press-8\" needs a restart; until then it is \"press-7\""]);
    // By a signal, as systemd does.
    edge.process().signal("HUP");
    let status = edge.wait_status(PATIENCE, "the reload", |status| status["reload"]["reloads"] == 1);
    assert_eq!(lines(&status["reload"], "needs_restart"), told);
    let answer = edge.reload().unwrap();
    assert_eq!((lines(&answer, "changed"), lines(&answer, "needs_restart")), (Vec::new(), told.clone()));
    let text = node::run_to_exit(
        node::Role::Edge,
        &["reload", "--config", edge.folder().join("edge.toml").to_str().unwrap()],
    );
    assert!(
        text.status.success() && text.output.contains(&format!("not in force: {}", told[0])),
        "{}",
        text.output
    );
    device.ping();
    edge.restart();
    Client::connect(edge.addr(), &Options::v5("device")).ping();
    assert!(edge.status()["reload"]["needs_restart"].is_null());
}

#[test]
fn the_log_says_more_and_less() {
    let edge = Node::start(&Config::edge());
    let told = || edge.log().lines().filter(|line| line.contains(" reloaded")).count();
    edge.edit(|toml| toml.replace("[edge]\n", "[edge]\nlog = \"warn\"\n"));
    taken(&edge, &["edge.log = \"warn\", was \"info\""]);
    assert_eq!(told(), 0, "{}", edge.log());
    edge.edit(|toml| toml.replace("log = \"warn\"", "log = \"info\""));
    taken(&edge, &["edge.log = \"info\", was \"warn\""]);
    assert_eq!(told(), 1, "{}", edge.log());
}

#[test]
fn sys_topics_begin_and_end() {
    const INTERVAL: &str = "[anonymous]\nsubscribe = [\"$SYS/#\"]\n";
    let edge = Node::start(&Config::edge().extra(INTERVAL));
    edge.edit(|toml| toml.replace("[edge]\n", "[edge]\nsys_interval = \"0s\"\n"));
    taken(&edge, &["edge.sys_interval = \"0s\", was \"10s\""]);
    let mut client = Client::connect(edge.addr(), &Options::v5("client"));
    client.subscribe("$SYS/broker/uptime", QoS::AtMostOnce);
    edge.edit(|toml| toml.replace("sys_interval = \"0s\"", "sys_interval = \"100ms\""));
    taken(&edge, &["edge.sys_interval = \"100ms\", was \"0s\""]);
    for _ in 0..3 {
        assert_eq!(client.expect_message().topic, "$SYS/broker/uptime");
    }
}

/// Many reloads of everything at once, under load: each message that was acknowledged is one row, and no device is cut off.
#[test]
fn many_reloads_under_load() {
    let seeds = std::env::var("FERRULE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2);
    for seed in 1..=seeds {
        many_reloads(seed);
    }
}

fn many_reloads(seed: u64) {
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let tables = ["far.db", "near.db"].map(|name| folder.path().join(name));
    tables.iter().for_each(|table| make_sqlite_table(table));
    let clouds = [cloud_with(&tables[0]), cloud_with(&tables[0])];
    let near = near_rules(&tables[1]);
    let edge = Node::start(&Config::edge().rules(EDGE_RULES.to_owned() + &near).uplink(clouds[0].addr()));
    let good = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    let plan = Plan { devices: 10, messages: 400, window: 8, per_second: Some(100.0), ..Plan::default() };
    let fleet = Fleet::start(edge.addr(), plan);
    let mut failed = 0;
    let other = port::free_addr();
    for round in 0..20 {
        fleet.wait_acknowledged(150 * (round + 1), PATIENCE);
        let to = match random.below(4) {
            0 => port::free_addr(),
            at => clouds[at as usize % 2].addr(),
        };
        let [rate, age, window, keep_alive] = [3, 2, 3, 2].map(|of| random.below(of));
        let mut toml = good.replace(&clouds[0].addr().to_string(), &to.to_string());
        if window > 0 {
            toml = toml.replace("[uplink]\n", &format!("[uplink]\nmax_inflight = {}\n", 16 * window));
        }
        if keep_alive > 0 {
            toml = toml.replace("keep_alive = \"5s\"", "keep_alive = \"7s\"");
        }
        if random.below(2) == 0 {
            toml = toml.replace("\n[uplink]\n", &format!("\n[[listener]]\nbind = \"{other}\"\n\n[uplink]\n"));
        }
        let limits = ["0", "3000", "20000"][rate as usize];
        toml += &format!(
            "[outbox]\nmax_rate = {limits}\nmax_age = \"{age}h\"\n[mqtt]\nmax_waiting = {}\n",
            100 + rate
        );
        // The sink near by comes and goes in its options; a mistake now and then.
        let batch = format!("table = 'readings', batch = {},", 10 + random.below(3));
        let options = near.replace("table = 'readings',", &batch);
        let mistake = random.below(5) == 0;
        edge.write_rules(&(EDGE_RULES.to_owned() + &options + if mistake { "CREATE RULE;" } else { "" }));
        edge.edit(|_| toml);
        let result = edge.reload();
        assert_eq!(result.is_err(), mistake, "seed {seed}, round {round}: {result:?}");
        failed += u64::from(mistake);
    }
    edge.write_rules(&(EDGE_RULES.to_owned() + &near));
    edge.edit(|_| good);
    edge.reload().unwrap();
    assert_eq!(fleet.connects(), 10, "seed {seed}: devices kept their connections");
    let ledger = fleet.finish(PATIENCE);
    let status = edge.wait_drained(PATIENCE);
    node::assert_accounts(&status);
    assert_eq!(
        (&status["reload"]["reloads"], &status["reload"]["failed"]),
        (&json!(21 - failed), &json!(failed))
    );
    clouds.iter().for_each(|cloud| drop(cloud.wait_drained(PATIENCE)));
    check_rows(&format!("seed {seed}, far"), &ledger, &sqlite_rows(&tables[0]), Copies::One);
    let near = sqlite_rows(&tables[1]);
    let near = ledger.check(near.iter().map(|row| (row.device.as_str(), row.n)), Copies::One);
    near.assert_ok(&format!("seed {seed}, near"));
}
