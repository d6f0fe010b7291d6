//! Promise 7, leaving in order: clients are moved off before a node stops, and nobody else notices; a node leaves, and one that is dead is taken out.

use crate::load::Load;
use crate::{Cluster, is_whole, members};
use ferrule_mqtt::{Packet, QoS, ReasonCode};
use ferrule_testkit::node::{Ended, Role, count, run_to_exit};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, until};
use ferrule_tests::PATIENCE;
use serde_json::json;
use std::net::TcpStream;
use std::time::Duration;

/// `cluster WHAT` at a node, to its end.
fn cluster_command(node: &Node, what: &[&str]) -> Ended {
    let folder = node.data_dir().to_str().unwrap();
    run_to_exit(Role::Cloud, &[&["cluster"], what, &["--data-dir", folder]].concat())
}

fn succeeds(node: &Node, what: &[&str]) -> String {
    let ended = cluster_command(node, what);
    assert!(ended.status.success(), "{what:?}: {ended:?}");
    ended.output
}

/// With what it says.
fn is_refused(node: &Node, what: &[&str], wanted: &[&str]) {
    let ended = cluster_command(node, what);
    assert!(!ended.status.success(), "{what:?}: {ended:?}");
    for wanted in wanted {
        assert!(ended.output.contains(wanted), "{what:?}, no {wanted:?}: {}", ended.output);
    }
}

fn stored(name: &str) -> Options {
    Options { clean_start: false, session_expiry: Some(3_600), ..Options::v5(name) }
}

#[test]
fn a_drain_under_load_loses_nothing_and_every_client_is_elsewhere() {
    let cluster = Cluster::start(3);
    let mut watcher = Client::connect(cluster.nodes[1].addr(), &Options::v5("watcher"));
    watcher.subscribe("wills/#", QoS::AtLeastOnce);
    let load = Load::start(cluster.nodes.iter().map(Node::addr).collect());
    load.wait_acknowledged(50);
    for node in [0, 2] {
        let drained = &cluster.nodes[node];
        let told = load.told().get(&ReasonCode::USE_ANOTHER_SERVER.0).copied().unwrap_or(0);
        let output = succeeds(drained, &["drain", "--rate", "20"]);
        assert!(output.contains("no client is left"), "{output}");
        assert!(TcpStream::connect(drained.addr()).is_err(), "a load balancer sees that nobody is let in");
        load.wait_elsewhere(node);
        let status = drained.wait_status(PATIENCE, "all who have a will are elsewhere", |status| {
            status["drain"]["wills"] == 0 && status["drain"]["clients"] == 0
        });
        assert_eq!(status["drain"]["draining"], true);
        assert!(count(&status["drain"], "moved") >= 5, "{status:#}");
        assert_eq!(count(&status["counters"], "clients_moved_off"), count(&status["drain"], "moved"));
        // Of those with MQTT 5, three of the five that it had at first.
        until(PATIENCE, "they were told", || {
            (load.told().get(&ReasonCode::USE_ANOTHER_SERVER.0).copied() >= Some(told + 3)).then_some(())
        });
        load.wait_acknowledged(50);
        // A reload changes nothing of it.
        drained.reload().unwrap();
        assert!(TcpStream::connect(drained.addr()).is_err());
        assert!(succeeds(drained, &["status"]).contains("live, draining"));
        succeeds(drained, &["drain", "--undo"]);
        drop(Client::connect(drained.addr(), &Options::v5("let in again")));
        assert!(drained.status().get("drain").is_none());
    }
    // No will of theirs was published: those that are kept were given up before their time had come.
    watcher.ping();
    assert!(watcher.recv_where(Duration::ZERO, |packet| matches!(packet, Packet::Publish(_))).is_err());
    let sums = load.finish();
    assert!(sums.lost == 0 && sums.promised > 0, "{sums:?}");
    for node in &cluster.nodes {
        node.assert_quiet_log();
    }
}

/// The command can go, and clients go at the rate that was asked for last.
#[test]
fn a_drain_goes_on_by_itself_and_can_be_hurried() {
    let cluster = Cluster::start(2);
    let node = &cluster.nodes[0];
    let mut clients: Vec<Client> =
        (0..60).map(|n| Client::connect(node.addr(), &Options::v5(&format!("client-{n}")))).collect();
    let output = succeeds(node, &["drain", "--rate", "1", "--no-wait"]);
    assert!(output.contains("1 a second"), "{output}");
    let status = node.status();
    assert!(count(&status["drain"], "clients") > 30, "{:#}", status["drain"]);
    succeeds(node, &["drain", "--rate", "100"]);
    for client in &mut clients {
        assert_eq!(client.expect_closed(), Some(ReasonCode::USE_ANOTHER_SERVER));
    }
    assert_eq!(count(&node.status()["drain"], "moved"), 60);
}

#[test]
fn a_node_leaves_with_its_clients_elsewhere_and_its_sessions_adopted() {
    let mut cluster = Cluster::start(3);
    let mut away = Client::connect(cluster.nodes[2].addr(), &stored("away"));
    away.subscribe("for/away", QoS::AtLeastOnce);
    away.disconnect();
    let mut there = Client::connect(cluster.nodes[2].addr(), &stored("there"));
    there.subscribe("for/there", QoS::AtLeastOnce);
    let output = succeeds(&cluster.nodes[2], &["leave", "--rate", "50"]);
    assert!(output.contains("node-3 has left the cluster"), "{output}");
    assert_eq!(there.expect_closed(), Some(ReasonCode::USE_ANOTHER_SERVER));
    assert_eq!(cluster.postgres.query("SELECT count(*) FROM ferrule.cluster_member"), ["2"]);
    let mut node = cluster.nodes.pop().unwrap();
    assert!(node.process().wait(PATIENCE).success());
    node.assert_quiet_log();
    cluster.wait_whole();
    let mut publisher = Client::connect(cluster.nodes[0].addr(), &Options::v5("publisher"));
    for (n, name) in ["away", "there"].into_iter().enumerate() {
        publisher.publish(&format!("for/{name}"), b"kept", QoS::AtLeastOnce, false);
        let (mut client, present) = Client::connect_session(cluster.nodes[n].addr(), &stored(name));
        assert!(present, "{name}");
        assert_eq!(client.expect_message().text(), "kept");
    }
    // It may come back, and takes clients.
    node.restart();
    cluster.nodes.push(node);
    cluster.wait_whole();
    drop(Client::connect(cluster.nodes[2].addr(), &Options::v5("new")));
    // Without a drain.
    let mut hurried = Client::connect(cluster.nodes[1].addr(), &stored("hurried"));
    succeeds(&cluster.nodes[1], &["leave", "--now"]);
    assert_eq!(hurried.expect_closed(), Some(ReasonCode::SERVER_SHUTTING_DOWN));
    assert_eq!(cluster.postgres.query("SELECT count(*) FROM ferrule.cluster_member"), ["2"]);
}

/// Two that were stopped together, one of which never comes back: the other one would wait a minute.
#[test]
fn a_dead_node_is_taken_out_by_another_one() {
    let mut cluster = Cluster::start(2);
    cluster.nodes.iter_mut().for_each(Node::kill9);
    let dead = cluster.nodes.pop().unwrap();
    cluster.nodes[0].restart();
    let node = &cluster.nodes[0];
    assert_eq!(members(&node.status()).len(), 2);
    is_refused(node, &["leave", "--node", "node-7"], &["node-7", "node-1", "node-2"]);
    until(PATIENCE, "it is known to be dead", || {
        let answer = node.ask(&json!({"do": "cluster.remove", "node": "node-2"})).unwrap();
        assert_eq!(answer["error"], serde_json::Value::Null);
        (answer["removed"] == true).then_some(())
    });
    node.wait_status(PATIENCE, "it serves", |status| is_whole(status, 1));
    assert!(node.log().contains("an operator says that it is dead"));
    // Not a word about who is none.
    is_refused(node, &["leave", "--node", "node-2"], &["no member of the cluster is called \"node-2\""]);
    drop(dead);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let cluster = Cluster::start(2);
    let node = &cluster.nodes[0];
    is_refused(node, &["leave", "--node", "node-2"], &["lives", "`cluster leave` there"]);
    is_refused(node, &["leave", "--node", "node-1"], &["this node itself", "without `--node`"]);
    is_refused(node, &["drain", "--rate", "0"], &["--rate"]);
    is_refused(node, &["leave", "--now", "--node", "node-2"], &["--now"]);
    let error = node.ask(&json!({"do": "cluster.drain", "rate": "many"})).unwrap();
    assert!(error["error"].as_str().unwrap().contains("clients a second"), "{error}");
    let table = succeeds(node, &["status"]);
    assert!(table.contains("node-1") && table.contains("node-2") && table.contains("this node"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&succeeds(node, &["status", "--json"])).unwrap();
    assert_eq!((&json["members"][0]["name"], &json["live"]), (&"node-1".into(), &true.into()));

    // Nowhere to go.
    let alone = Cluster::start(1);
    let mut client = Client::connect(alone.nodes[0].addr(), &Options::v5("client"));
    for what in ["drain", "leave"] {
        is_refused(&alone.nodes[0], &[what], &["no other member", "`cluster leave --now`"]);
    }
    client.ping();
    let single = Node::start(&Config::cloud());
    for what in ["drain", "leave", "status"] {
        is_refused(&single, &[what], &["in no cluster"]);
    }
    let ended = run_to_exit(Role::Edge, &["cluster", "status"]);
    assert!(!ended.status.success() && ended.output.contains("ferrule-cloud's"), "{ended:?}");
    // One that is not there.
    let folder = tempfile::tempdir().unwrap();
    let nobody =
        run_to_exit(Role::Cloud, &["cluster", "drain", "--data-dir", folder.path().to_str().unwrap()]);
    assert!(!nobody.status.success() && nobody.output.contains("no ferrule runs"), "{nobody:?}");
}
