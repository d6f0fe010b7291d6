//! What `init` writes passes `check` and runs, as it says: an edge, and an edge that brings its messages to a cloud.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::{QoS, ReasonCode};
use ferrule_testkit::node::{Role, count, outbox, run_to_exit};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, port};
use ferrule_tests::{PATIENCE, open_sqlite};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

fn init(role: Role, dir: &Path, listen: SocketAddr, more: &[&str]) {
    let (dir, listen) = (dir.to_str().unwrap(), listen.to_string());
    let mut args = vec!["init", dir, "--listen", &listen];
    args.extend(more);
    let ended = run_to_exit(role, &args);
    assert!(ended.status.success(), "{}", ended.output);
    let config = format!("{dir}/{}", if role == Role::Edge { "edge.toml" } else { "cloud.toml" });
    let ended = run_to_exit(role, &["check", "--config", &config]);
    assert!(ended.status.success(), "{}", ended.output);
}

fn user(dir: &Path, name: &str, id: &str) -> Options {
    let password = fs::read_to_string(dir.join(format!("{name}.pass"))).unwrap();
    Options::v5(id).login(name, password.trim())
}

#[test]
fn a_gateway_and_a_cloud_from_init_work_together() {
    let folder = tempfile::tempdir().unwrap();
    let (edge_dir, cloud_dir) = (folder.path().join("edge"), folder.path().join("cloud"));
    let (edge_addr, cloud_addr) = (port::free_addr(), port::free_addr());
    init(Role::Cloud, &cloud_dir, cloud_addr, &[]);
    init(Role::Edge, &edge_dir, edge_addr, &["--uplink", &format!("mqtt://{cloud_addr}")]);
    fs::copy(cloud_dir.join("edge-1.pass"), edge_dir.join("uplink.pass")).unwrap();

    let cloud = Config::cloud().file(cloud_dir.join("cloud.toml")).listen(cloud_addr);
    let _cloud = Node::start(&cloud.data_dir(cloud_dir.join("data")));
    let edge = Config::edge().file(edge_dir.join("edge.toml")).listen(edge_addr);
    let edge = Node::start(&edge.data_dir(edge_dir.join("data")));

    let mut operator = Client::connect(edge_addr, &user(&edge_dir, "operator", "o"));
    operator.subscribe("#", QoS::AtLeastOnce);
    let mut device = Client::connect(edge_addr, &user(&edge_dir, "device", "press-7"));
    device.publish("devices/press-7/state", br#"{"temp":81.5}"#, QoS::AtLeastOnce, false);
    let mut topics = [operator.expect_message().topic, operator.expect_message().topic];
    topics.sort();
    assert_eq!(topics, ["alerts/press-7", "devices/press-7/state"]);

    let status = edge.wait_drained(PATIENCE);
    assert_eq!(count(outbox(&status, "cloud"), "delivered"), 1);
    let row: (String, String) = {
        let db = open_sqlite(&cloud_dir.join("readings.db"));
        db.query_row("select clientid, topic from readings", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap()
    };
    assert_eq!((row.0.as_str(), row.1.as_str()), ("press-7", "devices/press-7/state"));
}

#[test]
fn nobody_comes_in_without_a_name_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("gw");
    let addr = port::free_addr();
    init(Role::Edge, &dir, addr, &[]);
    let ended = run_to_exit(Role::Edge, &["init", dir.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.output);
    let config = Config::edge().file(dir.join("edge.toml")).listen(addr).data_dir(dir.join("data"));
    let _edge = Node::start(&config);
    let (_, answer) = Client::try_connect(addr, &Options::v5("nobody")).unwrap();
    assert_eq!(answer.connack().0, ReasonCode::NOT_AUTHORIZED);
}
