//! Who may join, and what is said of it.

use crate::{Cluster, config, config_at, is_whole, members};
use ferrule_mqtt::QoS;
use ferrule_testkit::node::{Role, run_to_exit, start_to_exit};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Node, Postgres, until};
use ferrule_tests::PATIENCE;
use serde_json::Value;
use std::fs;

/// A node alone in its cluster serves as one without.
#[test]
fn a_node_alone_is_live_and_leaves() {
    let mut cluster = Cluster::start(1);
    let node = &mut cluster.nodes[0];
    let mut client = Client::connect(node.addr(), &Options::v5("one"));
    client.subscribe("a", QoS::AtLeastOnce);
    client.publish("a", b"1", QoS::AtLeastOnce, false);
    client.expect_message();
    assert!(node.terminate().success());
    assert_eq!(cluster.postgres.query("SELECT count(*) FROM ferrule.cluster_member"), ["0"]);
    node.assert_quiet_log();
}

/// Behind a load balancer nobody knows at which node a client is: at each it hears of all.
#[test]
fn sys_topics_tell_of_all_nodes_at_each() {
    let (postgres, folder) = (Postgres::start(), tempfile::tempdir().unwrap());
    let nodes = (1..=2).map(|n| {
        let config = config(&postgres, &folder, &format!("node-{n}"));
        let config = config.extra("[anonymous]\nsubscribe = [\"#\", \"$SYS/#\"]\n");
        Node::start(&config.env("FERRULE__NODE__SYS_INTERVAL", "100ms"))
    });
    let cluster = Cluster { nodes: nodes.collect(), postgres, _folder: folder };
    cluster.wait_whole();
    for node in &cluster.nodes {
        let mut client = Client::connect(node.addr(), &Options::v5("monitor"));
        client.subscribe("$SYS/#", QoS::AtMostOnce);
        let mut missing = vec![
            ("$SYS/brokers", "node-1,node-2"),
            ("$SYS/brokers/node-1/version", env!("CARGO_PKG_VERSION")),
            ("$SYS/brokers/node-2/version", env!("CARGO_PKG_VERSION")),
        ];
        until(PATIENCE, "both nodes are heard of", || {
            let message = client.expect_message();
            missing.retain(|(topic, value)| message.topic != *topic || message.text() != *value);
            missing.is_empty().then_some(())
        });
    }
}

#[test]
fn another_token_or_cluster_keeps_a_node_out() {
    let cluster = Cluster::start(1);
    let folder = tempfile::tempdir().unwrap();
    for (id, change, wanted) in [("stranger", "a token of somebody else", "token"), ("other", "", "cluster")]
    {
        let mut config = config(&cluster.postgres, &folder, id);
        if change.is_empty() {
            config = config.extra("name = \"another\"\n");
        } else {
            fs::write(folder.path().join("token"), change).unwrap();
        }
        let node = Node::start(&config);
        let status = node.wait_status(PATIENCE, "it is told why", |status| {
            let mut all = members(status).iter();
            all.any(|member| member["trouble"].as_str().is_some_and(|why| why.contains(wanted)))
                || node.log().contains(wanted)
        });
        assert_eq!(status["cluster"]["live"], false, "{status:#}");
    }
    // Nobody waits for who is not live.
    let mut client = Client::connect(cluster.nodes[0].addr(), &Options::v5("one"));
    client.subscribe("a", QoS::AtLeastOnce);
    client.publish("a", b"1", QoS::AtLeastOnce, false);
    client.expect_message();
}

/// Two nodes with a database each serve well, each alone: seeds tell.
#[test]
fn a_node_with_another_store_than_its_seed_does_not_start() {
    let cluster = Cluster::start(1);
    let folder = tempfile::tempdir().unwrap();
    let status = cluster.nodes[0].status();
    let seed = members(&status)[0]["addresses"][0].as_str().unwrap().to_owned();
    let config = || config(&cluster.postgres, &folder, "node-2").extra(&format!("seeds = [{seed:?}]\n"));
    let ended = start_to_exit(&config().env("FERRULE__STORE__SCHEMA", "another"));
    assert!(!ended.status.success() && ended.output.contains("in another store than"), "{ended:?}");
    assert!(ended.output.contains(&seed), "{ended:?}");
    // It has left what it had joined.
    assert_eq!(cluster.postgres.query("SELECT count(*) FROM another.cluster_member"), ["0"]);
    let token = folder.path().join("another");
    fs::write(&token, "a token of somebody else\n").unwrap();
    let ended = start_to_exit(&config().env("FERRULE__CLUSTER__TOKEN_FILE", token.to_str().unwrap()));
    assert!(!ended.status.success() && ended.output.contains("does not have the join token"), "{ended:?}");

    // With the same it starts, and by the seed it knows how it is reached.
    let second = Node::start(&config().env("FERRULE__CLUSTER__BIND", "0.0.0.0:0"));
    for node in [&cluster.nodes[0], &second] {
        let status = node.wait_status(PATIENCE, "the cluster is whole", |status| is_whole(status, 2));
        assert_eq!(status["cluster"]["trouble"], Value::Null, "{status:#}");
        let addresses = members(&status).iter().map(|member| member["addresses"][0].as_str().unwrap());
        assert!(addresses.into_iter().all(|address| address.starts_with("127.0.0.1:")), "{status:#}");
    }
}

/// A list of all nodes, the same at each; whoever is first finds nobody.
#[test]
fn who_is_first_finds_nobody_at_its_seeds_and_serves() {
    let (postgres, folder) = (Postgres::start(), tempfile::tempdir().unwrap());
    let [one, two] = [(), ()].map(|()| ferrule_testkit::port::free_addr());
    let start = |id: &str, bind| {
        let seeds = format!("seeds = [\"{one}\", \"localhost:{}\"]\n", two.port());
        Node::start(&config_at(&postgres.url(), &folder, id, bind).extra(&seeds))
    };
    let trouble = |status: &Value| status["cluster"]["trouble"].as_str().map(str::to_owned);
    let first = start("node-1", one);
    first.wait_status(PATIENCE, "it is told that nobody is there", |status| {
        trouble(status).is_some_and(|why| why.contains("nobody answers at a seed: localhost"))
            && is_whole(status, 1)
    });
    let second = start("node-2", two);
    for node in [&first, &second] {
        node.wait_status(PATIENCE, "all seeds have answered", |status| {
            trouble(status).is_none() && is_whole(status, 2)
        });
    }
}

#[test]
fn check_and_start_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloud.toml");
    fs::write(folder.path().join("short"), "short\n").unwrap();
    fs::write(folder.path().join("token"), "a token of the tests, long enough\n").unwrap();
    let store = "[node]\nid = \"a\"\n[store]\nbackend = \"postgres\"\nurl = \"postgres://u@h/d\"\n";
    for (text, wanted) in [
        ("[cluster]\ntoken_file = \"token\"".to_owned(), "a store that its nodes share"),
        (format!("{store}[cluster]"), "could join"),
        (format!("{store}[cluster]\ntoken_file = \"token\"\nbind = \"0.0.0.0:7883\""), "advertise"),
        (format!("{store}[cluster]\ntoken_file = \"token\"\nadvertise = [\"here\"]"), "with a port"),
        (format!("{store}[cluster]\ntoken_file = \"short\""), "token"),
        (format!("{store}[cluster]\nseeds = [\"a\"]\ntoken_file = \"token\""), "with a port"),
        (format!("{store}[cluster]\ntoken_file = \"token\"\nwill_copies = 3"), "from 1 to 2"),
        (format!("{store}[cluster]\ntls = {{ cert = \"a.crt\" }}"), "needs `key`"),
    ] {
        fs::write(&file, format!("{text}\n[[listener]]\nbind = \"127.0.0.1:1883\"\n")).unwrap();
        let ended = run_to_exit(Role::Cloud, &["check", "--config", file.to_str().unwrap(), "--all"]);
        assert!(!ended.status.success() && ended.output.contains(wanted), "{text}: {ended:?}");
    }
    let edge = folder.path().join("edge.toml");
    fs::write(&edge, "[cluster]\nname = \"a\"\n[[listener]]\nbind = \"127.0.0.1:1883\"\n").unwrap();
    let ended = run_to_exit(Role::Edge, &["check", "--config", edge.to_str().unwrap()]);
    assert!(!ended.status.success() && ended.output.contains("several nodes"), "{ended:?}");

    // The port of another process.
    let postgres = Postgres::start();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("bind = \"{}\"", taken.local_addr().unwrap());
    let config = config(&postgres, &folder, "a").extra("");
    let ended = start_to_exit(&config.env("FERRULE__CLUSTER__BIND", taken.split('"').nth(1).unwrap()));
    assert!(!ended.status.success() && ended.output.contains("`bind` in [cluster]"), "{ended:?}");
}
