//! Reloads that add listeners and remove them, under traffic: nothing acknowledged is lost, and a mistake changes nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::{QoS, ReasonCode};
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Dial, Fleet, Node, Plan, node, port};
use ferrule_tests::{EDGE_RULES, PATIENCE, check_rows, cloud_rules, make_sqlite_table, sqlite_rows};
use serde_json::Value;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

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

fn listener(bind: impl std::fmt::Display) -> String {
    format!("\n[[listener]]\nbind = \"{bind}\"\nanonymous = true\nanonymous_anywhere = true\n")
}

fn binds(status: &Value) -> Vec<&str> {
    let listeners = status["listeners"].as_array().unwrap();
    listeners.iter().map(|listener| listener["bind"].as_str().unwrap()).collect()
}

fn is_refused(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn listeners_come_and_go_under_traffic() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
    let good = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    let plan = Plan { devices: 10, messages: 200, window: 8, per_second: Some(200.0), ..Plan::default() };
    let fleet = Fleet::start(edge.addr(), plan);
    let other = port::free_addr();
    let mut acknowledged = 0;
    for round in 0..8 {
        fleet.wait_acknowledged(150 * (round + 1), PATIENCE);
        edge.edit(|_| good.clone() + &listener(other));
        assert_eq!(reload(&edge), (vec![format!("listener {other} is new")], 0), "round {round}");
        let mut visitor = Client::connect(other, &Options::v5("visitor"));
        let mut ids = Vec::new();
        for n in 0..20 {
            let payload = format!(r#"{{"device":"visitor","n":{}}}"#, 100 * round + n);
            ids.push(visitor.publish_nowait("factory/visitor", payload.as_bytes(), QoS::AtLeastOnce, false));
        }
        ids.into_iter().for_each(|id| visitor.expect_ack(ferrule_mqtt::AckType::Puback, id));
        acknowledged += 20;
        edge.edit(|_| good.clone());
        assert_eq!(reload(&edge), (vec![format!("listener {other} is not there any more")], 1));
        assert_eq!(visitor.expect_closed(), Some(ReasonCode::ADMINISTRATIVE_ACTION));
        assert!(is_refused(other), "nobody listens there");
    }
    assert_eq!(fleet.connects(), 10, "who came by the other listener kept its connection");
    let ledger = fleet.finish(PATIENCE);
    edge.wait_drained(PATIENCE);
    cloud.wait_drained(PATIENCE);
    let (visitor, rows): (Vec<_>, Vec<_>) =
        sqlite_rows(&sqlite).into_iter().partition(|row| row.device == "visitor");
    check_rows("sqlite", &ledger, &rows, Copies::One);
    let mut numbers: Vec<u64> = visitor.iter().map(|row| row.n).collect();
    numbers.dedup();
    assert_eq!((numbers.len(), visitor.len()), (acknowledged, acknowledged));
    let status = edge.status();
    assert_eq!(binds(&status), [edge.addr().to_string()]);
    edge.assert_quiet_log();
}

#[test]
fn a_listener_moves_to_all_addresses_and_back() {
    let edge = Node::start(&Config::edge());
    let narrow = edge.addr();
    let wide = SocketAddr::from(([0, 0, 0, 0], narrow.port()));
    let mut clients = vec![Client::connect(narrow, &Options::v5("a"))];
    for (from, to) in [(narrow, wide), (wide, narrow)] {
        let line = |bind: SocketAddr| format!("bind = \"{bind}\"\nanonymous = true\n");
        edge.edit(|toml| {
            let open = if to == wide { "anonymous_anywhere = true\n" } else { "" };
            toml.replace("anonymous_anywhere = true\n", "").replace(&line(from), &(line(to) + open))
        });
        let (changed, gone) = reload(&edge);
        let said = [format!("listener {to} is new"), format!("listener {from} is not there any more")];
        assert_eq!((&changed[..], gone), (&said[..], 1));
        let mut before = clients.pop().unwrap();
        assert_eq!(before.expect_closed(), Some(ReasonCode::ADMINISTRATIVE_ACTION));
        clients.push(Client::connect(narrow, &Options::v5("a")));
        assert_eq!(binds(&edge.status()), [to.to_string()]);
    }
    let mut last = clients.pop().unwrap();
    last.publish("a", b"x", QoS::AtLeastOnce, false);
}

/// Sessions outlive the listener that their clients came by, with what waits for them.
#[test]
fn a_session_is_found_again_at_another_listener() {
    let other = port::free_addr();
    let edge = Node::start(&Config::edge().extra(&listener(other)));
    let options = Options::v5("keeper").persistent();
    let mut keeper = Client::connect(other, &options);
    keeper.subscribe("a", QoS::AtLeastOnce);
    edge.edit(|toml| toml.replace(&listener(other), ""));
    assert_eq!(reload(&edge).1, 1);
    let mut writer = Client::connect(edge.addr(), &Options::v5("writer"));
    writer.publish("a", b"meanwhile", QoS::AtLeastOnce, false);
    let (mut keeper, present) = Client::connect_session(edge.addr(), &options);
    assert!(present);
    assert_eq!(keeper.expect_message().text(), "meanwhile");
}

#[test]
fn a_new_listener_has_all_that_it_says_and_its_number_for_itself() {
    let edge = Node::start(&Config::edge().closed());
    let (first, second) = (port::free_addr(), port::free_addr());
    let good = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    let limited = |receive_max: u16| format!("[listener.limits]\nreceive_max = {receive_max}\n");
    edge.edit(|_| good.clone() + &listener(first) + &limited(7));
    reload(&edge);
    let receive_max = |addr| {
        let (client, frame) = Client::try_connect(addr, &Options::v5("c")).unwrap();
        match frame.packet() {
            ferrule_mqtt::Packet::Connack(connack) => {
                (client, connack.reason, connack.properties.receive_maximum())
            }
            other => panic!("{other:?}"),
        }
    };
    let (client, reason, most) = receive_max(first);
    assert_eq!((reason, most), (ReasonCode::SUCCESS, Some(7)));
    drop(client);
    // In the place of the first, and nobody without a name at the one that was always there.
    edge.edit(|_| good.clone() + &listener(second) + &limited(9));
    reload(&edge);
    let (_client, reason, most) = receive_max(second);
    assert_eq!((reason, most), (ReasonCode::SUCCESS, Some(9)));
    assert_eq!(receive_max(edge.addr()).1, ReasonCode::NOT_AUTHORIZED);
    let settings = edge.ask(&serde_json::json!({"do": "settings"})).unwrap();
    let settings = settings["settings"].as_array().unwrap();
    let named = |path: &str| settings.iter().find(|setting| setting["path"] == path).unwrap();
    assert_eq!(named("listener.1.bind")["value"], format!("\"{second}\""));
    let text = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    let line = text.lines().position(|line| line == "receive_max = 9").unwrap() + 1;
    assert_eq!(named("listener.1.limits.receive_max")["source"], format!("line {line}"));
}

#[test]
fn an_address_that_is_taken_changes_nothing() {
    let edge = Node::start(&Config::edge());
    let narrow = edge.addr();
    let good = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_addr = taken.local_addr().unwrap();
    let mut device = Client::connect(narrow, &Options::v5("device"));
    let unix = edge.folder().join("new.sock");
    let wide = SocketAddr::from(([0, 0, 0, 0], narrow.port()));
    let moved = good.replace(
        &format!("bind = \"{narrow}\"\n"),
        &format!("bind = \"{wide}\"\nanonymous_anywhere = true\n"),
    );
    for (name, toml) in [
        ("beside the others", good.clone()),
        // The old one has let go of its port by then, and has it again.
        ("in the place of another", moved),
    ] {
        let new = listener(format_args!("unix:{}", unix.display())) + &listener(taken_addr);
        edge.edit(|_| toml + &new + "[outbox]\nmax_bytes = \"2GiB\"\n");
        let error = edge.reload().unwrap_err();
        let told = [&format!("cannot listen on {taken_addr}"), "ss -ltnp"];
        assert!(told.iter().all(|part| error.contains(part)), "{name}: {error}");
        let status = edge.status();
        assert_eq!(binds(&status), [narrow.to_string()], "{name}");
        assert!(!unix.exists(), "{name}: the file of what was bound is gone");
        device.publish("a", b"x", QoS::AtLeastOnce, false);
        Client::connect(narrow, &Options::v5("new")).ping();
    }
    // A mistake in the rules is found behind the listeners.
    drop(taken);
    edge.edit(|_| good.clone() + &listener(taken_addr));
    edge.write_rules("CREATE RULE;");
    assert!(edge.reload().unwrap_err().contains("rules.sql:1:"));
    assert!(is_refused(taken_addr));
    edge.write_rules("");
    assert_eq!(reload(&edge), (vec![format!("listener {taken_addr} is new")], 0));
    Client::connect(taken_addr, &Options::v5("new")).ping();
    device.ping();
}

#[test]
fn unix_sockets_come_and_go_with_their_files() {
    let edge = Node::start(&Config::edge());
    let good = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    let path = edge.folder().join("mqtt.sock");
    let bind = format!("unix:{}", path.display());
    edge.edit(|_| good.clone() + &listener(&bind));
    assert_eq!(reload(&edge), (vec![format!("listener {bind} is new")], 0));
    let mut client = Dial::unix(&path).connect(&Options::v5("local"));
    let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o660);
    edge.edit(|_| good.clone() + &listener(&bind) + "unix_mode = \"0600\"\n");
    let (changed, gone) = reload(&edge);
    assert!(changed[0].starts_with(&format!("listener {bind}: unix_mode = \"0600\"")), "{changed:?}");
    assert_eq!((gone, mode()), (0, 0o600));
    client.ping();
    edge.edit(|_| good.clone());
    assert_eq!(reload(&edge), (vec![format!("listener {bind} is not there any more")], 1));
    assert_eq!(client.expect_closed(), Some(ReasonCode::ADMINISTRATIVE_ACTION));
    assert!(!path.exists());
    edge.edit(|_| good.clone() + &listener(&bind));
    reload(&edge);
    Dial::unix(&path).connect(&Options::v5("local")).ping();
}

/// On several workers: each has the listener, and connections that are on their way from one to another are none of a listener that is gone.
#[test]
fn many_workers_many_clients_and_a_listener_that_goes() {
    let other = port::free_addr();
    let config = Config::edge().extra(&listener(other)).env("FERRULE__EDGE__WORKERS", "4");
    let edge = Node::start(&config.env("FERRULE__EDGE__WORKER_DELAY", "5ms"));
    let good = std::fs::read_to_string(edge.folder().join("edge.toml")).unwrap();
    for round in 0..5 {
        let connect = |n| Client::connect(other, &Options::v5(&format!("c{n}")));
        let mut clients: Vec<Client> = (0..40).map(connect).collect();
        edge.edit(|_| good.replace(&listener(other), ""));
        let come = |n| {
            let options = Options::v5(&format!("coming{n}"));
            let mut client = Client::open(other, options.version).unwrap();
            client.send_raw(&options.connect().unwrap()).unwrap();
            client
        };
        let mut coming: Vec<Client> = (0..40).map(come).collect();
        assert!(reload(&edge).1 >= 40, "round {round}");
        for client in &mut clients {
            assert_eq!(client.expect_closed(), Some(ReasonCode::ADMINISTRATIVE_ACTION));
        }
        // Those that were only coming are closed, too, whatever they were told.
        for client in &mut coming {
            client.expect_closed();
        }
        edge.edit(|_| good.clone());
        assert_eq!(reload(&edge), (vec![format!("listener {other} is new")], 0));
    }
    let status = edge.wait_status(PATIENCE, "all have gone", |status| status["connections"] == 0);
    node::assert_accounts(&status);
}
