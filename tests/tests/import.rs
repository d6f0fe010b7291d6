//! `import`: mosquitto's own example and a bridge, which then brings messages to a real mosquitto under the same topics.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::QoS;
use ferrule_testkit::node::{Role, outbox, run_to_exit};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Mosquitto, Node, port};
use ferrule_tests::PATIENCE;
use std::fs;

#[test]
fn a_bridge_brings_the_same_topics() {
    let remote = Mosquitto::start();
    let folder = tempfile::tempdir().unwrap();
    let addr = port::free_addr();
    let conf = folder.path().join("mosquitto.conf");
    fs::write(
        &conf,
        format!(
            "listener {} 127.0.0.1\nallow_anonymous true\nconnection far\naddress 127.0.0.1:{}\nkeepalive_interval 10\n\
             topic same/# out 1\ntopic state/# out 1 \"\" plant7/\ntopic # out 1 here/ there/\ntopic \"\" out 1 one its/name\n",
            addr.port(),
            remote.addr().port()
        ),
    )
    .unwrap();
    let dir = folder.path().join("gw");
    let args = ["import", conf.to_str().unwrap(), "--dir", dir.to_str().unwrap()];
    let ended = run_to_exit(Role::Edge, &args);
    // One topic is told: its payloads must be text.
    assert_eq!(ended.status.code(), Some(1), "{}", ended.output);
    assert!(ended.output.contains("mosquitto.conf:8: topic # out 1 here/ there/"), "{}", ended.output);
    let config = dir.join("edge.toml");
    let ended = run_to_exit(Role::Edge, &["check", "--config", config.to_str().unwrap()]);
    assert!(ended.status.success(), "{}", ended.output);

    let edge = Node::start(&Config::edge().file(config).listen(addr).data_dir(dir.join("data")));
    let mut reader = Client::connect(remote.addr(), &Options::v4("reader"));
    reader.subscribe("#", QoS::AtLeastOnce);
    let mut device = Client::connect(addr, &Options::v4("device"));
    for (topic, there) in
        [("same/a", "same/a"), ("state/b", "plant7/state/b"), ("here/c/d", "there/c/d"), ("one", "its/name")]
    {
        device.publish(topic, b"{\"x\": 1}", QoS::AtLeastOnce, false);
        let message = reader.expect_message();
        assert_eq!((message.topic.as_str(), message.text()), (there, "{\"x\": 1}"));
    }
    let status = edge.wait_drained(PATIENCE);
    assert_eq!(outbox(&status, "cloud")["delivered"], 4);
    assert_eq!((&status["uplink"]["backlog"], &status["uplink"]["lag_ms"]), (&0.into(), &0.into()));
}

#[test]
fn what_is_printed_passes_check() {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("mosquitto.conf");
    fs::write(&conf, "pid_file /run/mosquitto.pid\npersistence true\nlistener 1883\nplugin /x.so\n").unwrap();
    let ended = run_to_exit(Role::Edge, &["import", conf.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.output);
    let (told, printed): (Vec<&str>, Vec<&str>) =
        ended.output.lines().partition(|line| line.contains(".conf:"));
    assert!(told.iter().any(|line| line.contains("mosquitto.conf:4: plugin: ")), "{told:?}");
    let config = folder.path().join("edge.toml");
    fs::write(&config, printed.join("\n")).unwrap();
    let ended = run_to_exit(Role::Edge, &["check", "--config", config.to_str().unwrap()]);
    assert!(ended.status.success(), "{}", ended.output);
    let ended = run_to_exit(Role::Edge, &["import", "/nowhere.conf"]);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.output);
}
