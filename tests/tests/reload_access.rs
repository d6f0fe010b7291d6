//! Reloads that change who may come and what he may do, under clients that are connected.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::{Packet, QoS, ReasonCode};
use ferrule_testkit::node::{EDGE_PASSWORD, binary, count};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, until};
use ferrule_tests::PATIENCE;
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};

/// Reloads; what is said to be in force now, and how many clients had to go.
#[track_caller]
fn reload(node: &Node) -> (Vec<String>, u64) {
    let answer = node.reload().unwrap();
    let lines = |key: &str| -> Vec<String> {
        answer[key].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(lines("needs_restart"), Vec::<String>::new());
    (lines("changed"), answer["disconnected"].as_u64().unwrap())
}

fn user(name: &str, lists: &str) -> String {
    format!("[[user]]\nname = \"{name}\"\npassword_file = \"{name}.pass\"\n{lists}\n")
}

/// An edge whose users come from what a test writes, and their passwords.
struct Edge {
    node: Node,
    toml: String,
}

impl Edge {
    fn start() -> Self {
        let node = Node::start(&Config::edge());
        let toml = std::fs::read_to_string(node.folder().join("edge.toml")).unwrap();
        Self { node, toml }
    }

    fn password(&self, name: &str, password: &str) {
        std::fs::write(self.node.folder().join(format!("{name}.pass")), password).unwrap();
    }

    /// The users from now on, beside clients without a name.
    fn set(&self, users: &str) {
        self.node.edit(|_| self.toml.clone() + users);
    }

    fn ann(&self, client_id: &str) -> Client {
        Client::connect(self.node.addr(), &Options::v5(client_id).login("ann", EDGE_PASSWORD))
    }
}

/// What a publish at QoS 1 is answered with.
fn publish(client: &mut Client, topic: &str) -> ReasonCode {
    let id = client.publish_nowait(topic, b"x", QoS::AtLeastOnce, false);
    let is_its = |packet: &Packet<'_>| matches!(packet, Packet::Puback(ack) if ack.packet_id == id);
    match client.expect("PUBACK", is_its).packet() {
        Packet::Puback(ack) => ack.reason,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn who_may_not_come_any_more_goes() {
    let edge = Edge::start();
    edge.password("ann", EDGE_PASSWORD);
    edge.password("bob", "bob's");
    let node = &edge.node;
    let mut anonymous = Client::connect(node.addr(), &Options::v5("anonymous"));
    edge.set(&(user("ann", "") + &user("bob", "")));
    assert_eq!(reload(node), (vec!["user \"ann\" is new".into(), "user \"bob\" is new".into()], 0));
    let options = Options::v5("watches").login("bob", "bob's");
    let mut bob = Client::connect(node.addr(), &options);
    bob.subscribe("gone", QoS::AtLeastOnce);
    let mut ann = Client::connect(
        node.addr(),
        &Options::v5("ann").login("ann", EDGE_PASSWORD).will("gone", b"ann", QoS::AtLeastOnce, false),
    );
    let mut old = Client::connect(node.addr(), &Options::v4("old").login("ann", EDGE_PASSWORD));

    // No anonymous clients any more.
    node.edit(|toml| toml.replace("anonymous = true\n", ""));
    let (_, gone) = reload(node);
    assert_eq!((gone, anonymous.expect_closed()), (1, Some(ReasonCode::NOT_AUTHORIZED)));
    let answer = Client::try_connect(node.addr(), &Options::v5("anonymous")).unwrap().1.connack().0;
    assert_eq!(answer, ReasonCode::NOT_AUTHORIZED);

    // Another password: who proved the old one goes, with its will, as one who is cut off.
    edge.password("ann", "another");
    assert_eq!(reload(node), (vec!["user \"ann\"".into()], 2));
    assert_eq!(ann.expect_closed(), Some(ReasonCode::NOT_AUTHORIZED));
    // MQTT 3 has no word for it.
    assert_eq!(old.expect_closed(), None);
    assert_eq!(bob.expect_message().text(), "ann");
    let mut again = Client::connect(node.addr(), &Options::v5("ann").login("ann", "another"));

    // Nothing that concerns her, twice: and then she is no user any more.
    for size in ["100KiB", "200KiB"] {
        node.edit(|toml| {
            let toml = toml.split("[mqtt]").next().unwrap().to_owned();
            toml + &format!("[mqtt]\nmax_packet_size = \"{size}\"\n")
        });
        assert_eq!(reload(node).1, 0);
        again.ping();
    }
    node.edit(|toml| toml.replace(&user("ann", ""), ""));
    assert_eq!(reload(node), (vec!["user \"ann\" is not there any more".into()], 1));
    assert_eq!(again.expect_closed(), Some(ReasonCode::NOT_AUTHORIZED));
    bob.ping();
}

#[test]
fn the_users_of_a_listener_are_those_of_now() {
    let edge = Edge::start();
    edge.password("ann", EDGE_PASSWORD);
    edge.password("bob", EDGE_PASSWORD);
    let users = user("ann", "") + &user("bob", "");
    let only = "users = [\"bob\"]\n";
    edge.set(&users);
    reload(&edge.node);
    let mut ann = edge.ann("ann");
    let mut bob = Client::connect(edge.node.addr(), &Options::v5("bob").login("bob", EDGE_PASSWORD));
    edge.node.edit(|toml| toml.replace("anonymous = true\n", &format!("anonymous = true\n{only}")));
    assert_eq!(reload(&edge.node).1, 1);
    assert_eq!(ann.expect_closed(), Some(ReasonCode::NOT_AUTHORIZED));
    bob.ping();
}

/// By a signal, while a client publishes as fast as it is answered: from one publish to the next it is refused, and what was granted is
/// there.
#[test]
fn publishing_is_narrowed_while_it_goes_on() {
    let edge = Edge::start();
    edge.password("ann", EDGE_PASSWORD);
    edge.set(&user("ann", "publish = [\"a/#\", \"b/#\"]"));
    reload(&edge.node);
    let mut reader = Client::connect(edge.node.addr(), &Options::v5("reader"));
    reader.subscribe("a/#", QoS::AtLeastOnce);
    let mut ann = edge.ann("ann");
    for _ in 0..50 {
        assert_eq!(publish(&mut ann, "a/1"), ReasonCode::SUCCESS);
    }
    edge.set(&user("ann", "publish = [\"b/#\"]"));
    let mut edge = edge;
    edge.node.process().signal("HUP");
    let mut granted = 50;
    let refused = until(PATIENCE, "a refusal", || match publish(&mut ann, "a/1") {
        ReasonCode::SUCCESS => {
            granted += 1;
            None
        }
        refused => Some(refused),
    });
    assert_eq!(refused, ReasonCode::NOT_AUTHORIZED);
    edge.node.wait_status(PATIENCE, "the reload", |status| status["reload"]["reloads"] == 2);
    assert_eq!(publish(&mut ann, "a/1"), ReasonCode::NOT_AUTHORIZED);
    assert!(publish(&mut ann, "b/1").0 < 0x80);
    // What was granted has been delivered, and nothing else.
    let mut writer = Client::connect(edge.node.addr(), &Options::v5("writer"));
    writer.publish("a/end", b"end", QoS::AtLeastOnce, false);
    for _ in 0..granted {
        assert_eq!(reader.expect_message().topic, "a/1");
    }
    assert_eq!(reader.expect_message().topic, "a/end");
}

#[test]
fn subscriptions_are_narrowed_and_widened() {
    let edge = Edge::start();
    edge.password("ann", EDGE_PASSWORD);
    edge.set(&user("ann", "subscribe = [\"#\"]"));
    reload(&edge.node);
    let mut writer = Client::connect(edge.node.addr(), &Options::v5("writer"));
    let mut all = |end: &str| {
        for topic in ["a/1", "b/1", end] {
            let retain = topic == "b/1";
            writer.publish(topic, b"x", QoS::AtLeastOnce, retain);
        }
    };
    let options = Options::v5("ann").login("ann", EDGE_PASSWORD).persistent();
    let mut ann = Client::connect(edge.node.addr(), &options);
    assert!(ann.subscribe("a/#", QoS::AtLeastOnce) < 0x80);
    assert!(ann.subscribe("+/1", QoS::AtLeastOnce) < 0x80);
    assert!(ann.subscribe("end/#", QoS::AtLeastOnce) < 0x80);
    let got = |ann: &mut Client, end: &str| -> Vec<String> {
        let mut topics: Vec<String> = ann.messages_until(end).into_iter().map(|m| m.topic).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    };
    all("end/1");
    assert_eq!(got(&mut ann, "end/1"), ["a/1", "b/1"]);

    // `+/1` is lost, but what it brings of `a/#` is hers.
    edge.set(&user("ann", "subscribe = [\"a/#\", \"end/#\"]"));
    assert_eq!(reload(&edge.node).1, 0);
    all("end/2");
    assert_eq!(got(&mut ann, "end/2"), ["a/1"]);
    assert_eq!(ann.subscribe("b/#", QoS::AtLeastOnce), 0x87);

    // Also while she is away, and after a restart.
    drop(ann);
    let away = |status: &Value| count(status, "connections") == 1;
    edge.node.wait_status(PATIENCE, "ann's connection has ended", away);
    all("end/3");
    let (mut ann, present) = Client::connect_session(edge.node.addr(), &options);
    assert!(present);
    assert_eq!(got(&mut ann, "end/3"), ["a/1"]);

    // `deny` alone.
    edge.set(&user("ann", "subscribe = [\"#\"]\ndeny = [\"a/1\"]"));
    assert_eq!(reload(&edge.node).1, 0);
    all("end/4");
    assert_eq!(got(&mut ann, "end/4"), ["b/1"]);

    // What was lost is there again without her doing.
    edge.set(&user("ann", "subscribe = [\"#\"]"));
    assert_eq!(reload(&edge.node).1, 0);
    all("end/5");
    assert_eq!(got(&mut ann, "end/5"), ["a/1", "b/1"]);
}

/// What `passwd` makes of a password.
fn hash(password: &str) -> String {
    let mut passwd = Command::new(binary("ferrule-edge"));
    let mut child = passwd.arg("passwd").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// While others prove the old password, some of whom are through: each is told to come again, or has to go. Argon2 takes its time, so that they
/// are caught in all states.
#[test]
fn nobody_slips_in_by_the_old_password() {
    const CLIENTS: usize = 16;
    let edge = Edge::start();
    let user = |hash: &str| format!("[[user]]\nname = \"ann\"\npassword = \"{hash}\"\n");
    let (right, other) = (user(&hash("right")), user(&hash("other")));
    for round in 0..8 {
        edge.set(&right);
        reload(&edge.node);
        let come = |n| {
            let options = Options::v5(&format!("c{n}")).login("ann", "right");
            let mut client = Client::open(edge.node.addr(), options.version).unwrap();
            client.send_raw(&options.connect().unwrap()).unwrap();
            client
        };
        let mut clients: Vec<Client> = (0..CLIENTS).map(come).collect();
        edge.set(&other);
        for client in clients.iter_mut().take(2 * round) {
            let frame = client.recv(PATIENCE).unwrap();
            assert_eq!(frame.connack().0, ReasonCode::SUCCESS, "round {round}");
        }
        let (_, gone) = reload(&edge.node);
        assert!(gone >= 2 * round as u64, "round {round}: {gone}");
        for client in &mut clients {
            client.expect_closed();
        }
        let mut again = Client::connect(edge.node.addr(), &Options::v5("c0").login("ann", "other"));
        again.ping();
    }
}
