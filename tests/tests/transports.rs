//! Every transport with other people's clients (mosquitto's, Paho, rustls, tungstenite); certificates by name, renewed, revoked,
//! and as user names; sessions resumed; sockets from systemd; listeners side by side.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use ferrule_mqtt::{AckType, Packet, PropertyId, QoS, ReasonCode};
use ferrule_testkit::dial::{HandshakeKind, Trust};
use ferrule_testkit::node::{EDGE_PASSWORD, Role, run_to_exit};
use ferrule_testkit::wire::{Options, ack};
use ferrule_testkit::{Certs, Client, Config, Dial, Node, servers, until};
use ferrule_tests::mosquitto::{Reach, messages};
use ferrule_tests::{PATIENCE, paho_round, script};
use serde_json::Value;

// The listeners of `everywhere`, by number. 0 is plain MQTT.
const TLS: usize = 1;
const MUTUAL: usize = 2;
const TLS13: usize = 3;
const WS: usize = 4;
const WSS: usize = 5;

/// A listener on a free port of this machine, with these keys.
fn listener(keys: &str) -> String {
    format!("[[listener]]\nbind = \"127.0.0.1:0\"\n{keys}\n")
}

/// An edge with a listener for each transport, which lets everyone in.
fn everywhere(certs: &Certs) -> (Node, PathBuf) {
    let open = |keys: &str| listener(&format!("anonymous = true\n{keys}"));
    let node = Node::start(
        &Config::edge()
            .extra(&open(&certs.tls("")))
            .extra(&open(&certs.mutual_tls("")))
            .extra(&open(&certs.tls(", tls12 = false")))
            .extra(&open("protocol = \"ws\""))
            .extra(&open(&format!("protocol = \"ws\"\n{}", certs.tls(""))))
            .extra("[[listener]]\nbind = \"unix:mqtt.sock\"\nanonymous = true"),
    );
    let unix = node.folder().join("mqtt.sock");
    (node, unix)
}

// === other people's clients ===

#[test]
fn mosquittos_clients_on_every_transport() {
    let certs = Certs::local(&["press-7"]);
    let (node, unix) = everywhere(&certs);
    let folder = tempfile::tempdir().unwrap();
    let tls = |index: usize| Reach::tls(node.listener(index).port(), &certs);
    let tls12 = |index: usize| tls(index).at_most_tls12(folder.path());
    let mutual = tls(MUTUAL).identity(&certs, "press-7");
    for (name, reach) in [
        ("tcp", Reach::tcp(node.addr())),
        ("tls1.2", tls12(TLS)),
        ("tls1.3", tls(TLS13).option("--tls-version", "tlsv1.3")),
        ("alpn", tls(TLS).option("--tls-alpn", "mqtt")),
        ("mutual", mutual),
        ("unix", Reach::unix(&unix)),
    ] {
        for version in ["mqttv31", "mqttv311", "mqttv5"] {
            let topic = format!("t/{name}/{version}");
            let args = format!("-v -C 3 -W 15 -q 2 -t {topic}");
            let mut subscriber = reach.subscribe(folder.path(), version, &args);
            for qos in 0..3 {
                reach.publish(version, &format!("-q {qos} -t {topic} -m {qos}"));
            }
            // Three publishers: their order is nobody's promise.
            let mut got = messages(&mut subscriber);
            got.sort();
            assert_eq!(got, [0, 1, 2].map(|qos| format!("{topic} {qos}")));
        }
    }
    for (why, reach) in [
        ("TLS 1.2, where 1.3 alone is spoken", tls12(TLS13)),
        ("another protocol", tls(TLS).option("--tls-alpn", "h2")),
        ("no certificate, where one is required", tls12(MUTUAL)),
        ("no TLS, where it is spoken", Reach::tcp(node.listener(TLS))),
    ] {
        let refused = reach.publisher("mqttv5", "-q 1 -t t/refused -m x").output().unwrap();
        assert!(!refused.status.success(), "{why}");
    }
}

#[test]
fn paho_on_every_transport() {
    let certs = Certs::local(&["press-7"]);
    let (node, unix) = everywhere(&certs);
    // Its certificate is for localhost.
    let addr = |index: usize| format!("localhost:{}", node.listener(index).port());
    let ca = format!("--ca {}", certs.path("ca.crt").display());
    let [cert, key] = ["press-7.crt", "press-7.key"].map(|name| certs.path(name));
    let identity = format!("--cert {} --key {}", cert.display(), key.display());
    let rounds = [
        format!("tcp {} {ca} --tls 1.2 --alpn mqtt", addr(TLS)),
        format!("tcp {} {ca} --tls 1.3", addr(TLS13)),
        format!("tcp {} {ca} {identity}", addr(MUTUAL)),
        format!("ws {}", addr(WS)),
        format!("ws {} {ca}", addr(WSS)),
        format!("unix {}", unix.display()),
    ];
    // Beside each other: each waits most of its time.
    std::thread::scope(|scope| {
        for args in &rounds {
            scope.spawn(|| paho_round(args));
        }
    });
}

#[test]
fn websockets_of_tungstenite_and_tls_of_rustls() {
    let certs = Certs::local(&[]);
    let (node, unix) = everywhere(&certs);
    let config = certs.trust().config();
    let (ws, wss) = (Dial::tcp(node.listener(WS)).ws(), Dial::tcp(node.listener(WSS)).ws());
    let dials = [
        ("tls", Dial::tcp(node.listener(TLS)).tls(&config, "localhost")),
        ("ws", ws),
        ("wss", wss.tls(&config, "127.0.0.1")),
        ("unix", Dial::unix(unix)),
    ];
    // Whoever comes by one transport hears those of all others.
    let mut readers: Vec<Client> =
        dials.iter().map(|(name, dial)| dial.connect(&Options::v5(&format!("{name}-r")))).collect();
    for reader in &mut readers {
        reader.subscribe("t/#", QoS::ExactlyOnce);
    }
    // Several frames and records.
    let payload = vec![b'x'; 200_000];
    for (name, dial) in &dials {
        let mut writer = dial.connect(&Options::v4(&format!("{name}-w")));
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            writer.publish(&format!("t/{name}"), &payload, qos, false);
            for reader in &mut readers {
                let message = reader.expect_message();
                assert_eq!((message.topic, message.qos), (format!("t/{name}"), qos));
                assert_eq!(message.payload.len(), payload.len());
            }
        }
        writer.disconnect();
    }
}

// === certificates ===

/// The certificate that a server shows.
fn shown(dial: &Dial) -> Vec<u8> {
    dial.open_tls().unwrap().conn.peer_certificates().unwrap()[0].to_vec()
}

/// Why a dial fails, however late.
fn refusal(dial: &Dial) -> String {
    match dial.try_connect(&Options::v5("refused")) {
        Ok((_, frame)) => panic!("let in: {:?}", frame.packet()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_certificate_is_chosen_by_the_name_asked_for() {
    let [a, b] = ["a.example", "b.example"].map(|name| Certs::make(&["--server", name]));
    let list = |file: &str| format!("[{:?}, {:?}]", a.path(file), b.path(file));
    let (cert, key) = (list("server.crt"), list("server.key"));
    let tls = format!("tls = {{ cert = {cert}, key = {key} }}\nanonymous = true");
    let node = Node::start(&Config::edge().extra(&listener(&tls)));
    let dial = |config: &_, name: &str| Dial::tcp(node.listener(1)).tls(config, name);

    let both = a.trust().and_in(b.path("ca.crt")).config();
    for name in ["a.example", "b.example"] {
        dial(&both, name).connect(&Options::v5(name)).ping();
    }
    // A name that none is for: the first, which the client may like or not.
    let why = refusal(&dial(&both, "c.example"));
    assert!(why.contains("a.example") && !why.contains("b.example"), "{why}");
    // The same for an address, which is not asked for.
    let why = refusal(&dial(&both, "127.0.0.1"));
    assert!(why.contains("a.example"), "{why}");
    // The client believes another authority.
    let why = refusal(&dial(&a.trust().config(), "b.example"));
    assert!(why.contains("UnknownIssuer"), "{why}");
    dial(&a.trust().config(), "a.example").connect(&Options::v5("a")).ping();
}

#[test]
fn certificates_are_replaced_while_running() {
    let certs = Certs::make(&["--server", "localhost", "--days", "10"]);
    let keys = format!("{}\nanonymous = true", certs.tls(""));
    let node = Node::start(&Config::edge().extra(&listener(&keys)));
    let dial = Dial::tcp(node.listener(1)).tls(&certs.trust().config(), "localhost");
    let ends = |status: &Value| status["listeners"][1]["certificates"][0]["days_left"].as_i64().unwrap();
    assert!((9..=10).contains(&ends(&node.status())), "{:#}", node.status());
    until(PATIENCE, "its end is warned of", || node.log().contains("WARN").then_some(()));
    let data_dir = node.data_dir().to_str().unwrap();
    let said = run_to_exit(Role::Edge, &["status", "--data-dir", data_dir]);
    assert!(said.output.contains("days"), "{}", said.output);

    let first = shown(&dial);
    let mut open = dial.connect(&Options::v5("open"));
    certs.run(&["--renew", "--days", "100"]);
    let second = until(PATIENCE, "new connections get the new certificate", || {
        Some(shown(&dial)).filter(|shown| *shown != first)
    });
    node.wait_status(PATIENCE, "status tells of the new one", |status| (99..=100).contains(&ends(status)));
    open.ping();

    // One that is broken is not taken, and `status` says why.
    let good = std::fs::read(certs.path("server.crt")).unwrap();
    std::fs::write(certs.path("server.crt"), &good[..good.len() / 2]).unwrap();
    let status = node.wait_status(PATIENCE, "status says what is wrong", |status| {
        status["listeners"][1]["error"].is_string()
    });
    let why = status["listeners"][1]["error"].as_str().unwrap();
    assert!(why.contains("server.crt"), "{why}");
    let said = run_to_exit(Role::Edge, &["status", "--data-dir", data_dir]);
    assert!(said.output.contains("server.crt"), "{}", said.output);
    assert!(node.log().contains("the old certificates stay"));
    assert_eq!(shown(&dial), second, "the old one is in force");
    open.ping();

    std::fs::write(certs.path("server.crt"), &good).unwrap();
    node.wait_status(PATIENCE, "it is mended", |status| status["listeners"][1]["error"].is_null());
    assert_eq!(shown(&dial), second);
    dial.connect(&Options::v5("new")).ping();
    open.ping();
}

#[test]
fn clients_show_certificates_and_revoked_ones_are_refused() {
    let certs = Certs::local(&["press-7", "press-8"]);
    let stranger = Certs::local(&["press-7"]);
    let keys = |more: &str| listener(&format!("{}\nanonymous = true", certs.mutual_tls(more)));
    let node = Node::start(&Config::edge().extra(&keys("")).extra(&keys(", client = \"optional\"")));
    let [required, optional] = [1, 2].map(|index| node.listener(index));
    let dial = |to, trust: &Trust| Dial::tcp(to).tls(&trust.config(), "localhost");
    let ([seven, eight], nobody) = (["press-7", "press-8"].map(|name| certs.trust_as(name)), certs.trust());
    // A certificate of another authority, although the client believes this one.
    let forged = nobody.clone().identity(stranger.path("press-7.crt"), stranger.path("press-7.key"));

    for trust in [&seven, &eight] {
        dial(required, trust).connect(&Options::v5("c")).ping();
        dial(required, &trust.clone().tls12()).connect(&Options::v5("c")).ping();
        dial(optional, trust).connect(&Options::v5("c")).ping();
    }
    dial(optional, &nobody).connect(&Options::v5("c")).ping();
    for trust in [&nobody, &nobody.clone().tls12()] {
        let why = refusal(&dial(required, trust));
        assert!(why.contains("alert"), "{why}");
    }
    for to in [required, optional] {
        let why = refusal(&dial(to, &forged));
        assert!(why.contains("alert"), "{why}");
    }

    // Revoked while it is connected: it stays, and does not come back, neither by a session that it could resume.
    let resumes = Dial::tcp(required).tls(&seven.config(), "localhost");
    let mut open = resumes.connect(&Options::v5("open"));
    assert_eq!(resumes.open_tls().unwrap().conn.handshake_kind(), Some(HandshakeKind::Resumed));
    certs.run(&["--revoke", "press-7"]);
    until(PATIENCE, "the revoked client is refused", || {
        dial(required, &seven).try_connect(&Options::v5("c")).err()
    });
    let why = refusal(&resumes);
    assert!(why.contains("CertificateRevoked"), "{why}");
    let refused = until(PATIENCE, "also where none is needed", || {
        dial(optional, &seven).try_connect(&Options::v5("c")).err()
    });
    assert!(refused.to_string().contains("CertificateRevoked"), "{refused}");
    open.ping();
    for to in [required, optional] {
        dial(to, &eight).connect(&Options::v5("c")).ping();
    }
    dial(optional, &nobody).connect(&Options::v5("c")).ping();
}

#[test]
fn the_name_in_a_certificate_is_the_user_name() {
    let certs = Certs::local(&["press-7", "guest"]);
    let keys = |from: &str| listener(&format!("{}\nusername_from = {from:?}", certs.mutual_tls("")));
    let node = Node::start(&Config::edge().extra(&keys("cn")).extra(&keys("san")).extra(
        "[[user]]\nname = \"press-7\"\npublish = [\"press/#\"]\n\n\
         [[user]]\nname = \"chief\"\npassword_file = \"edge.pass\"\n\n\
         [certificate]\npublish = [\"guests/${username}/#\"]\n",
    ));
    for index in [1, 2] {
        let connect = |name: &str, options: &Options| {
            let dial = Dial::tcp(node.listener(index)).tls(&certs.trust_as(name).config(), "localhost");
            dial.connect(options)
        };
        // What CONNECT says does not count, not even a name and password that are right.
        for login in [None, Some(("chief", EDGE_PASSWORD)), Some(("chief", "wrong")), Some(("guest", ""))] {
            let options = Options::v5("c");
            let options = login.map_or(options.clone(), |(name, password)| options.login(name, password));
            let mut press = connect("press-7", &options);
            assert!(puback(&mut press, "press/a").0 < 0x80, "{login:?}");
            assert_eq!(puback(&mut press, "guests/press-7/a"), ReasonCode::NOT_AUTHORIZED, "{login:?}");
            let mut guest = connect("guest", &options);
            assert!(puback(&mut guest, "guests/guest/a").0 < 0x80, "{login:?}");
            assert_eq!(puback(&mut guest, "press/a"), ReasonCode::NOT_AUTHORIZED, "{login:?}");
        }
    }
}

/// Publishes at QoS 1: the answer.
fn puback(client: &mut Client, topic: &str) -> ReasonCode {
    let id = client.publish_nowait(topic, b"x", QoS::AtLeastOnce, false);
    let frame = client.expect("PUBACK", |packet| {
        ack(packet).is_some_and(|(kind, ack)| kind == AckType::Puback && ack.packet_id == id)
    });
    ack(&frame.packet()).unwrap().1.reason
}

#[test]
fn sessions_of_tls_are_resumed() {
    let certs = Certs::local(&["press-7"]);
    let node = Node::start(
        &Config::edge().extra(&listener(&format!("{}\nusername_from = \"cn\"", certs.mutual_tls("")))),
    );
    for (version, trust) in
        [("1.2", certs.trust_as("press-7").tls12()), ("1.3", certs.trust_as("press-7").tls13())]
    {
        let dial = Dial::tcp(node.listener(1)).tls(&trust.config(), "localhost");
        let stream = dial.open_tls().unwrap();
        assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Full), "{version}");
        // With TLS 1.3 the ticket comes behind the handshake: an answer of MQTT's is behind it.
        let mut client = Client::over(Box::new(stream), Options::v5("c").version).unwrap();
        client = client.login(&Options::v5("c"));
        client.disconnect();
        for _ in 0..3 {
            let stream = dial.open_tls().unwrap();
            assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed), "{version}");
            // The certificate's name is known of a resumed session, too.
            let mut client = Client::over(Box::new(stream), Options::v5("c").version).unwrap();
            client = client.login(&Options::v5("c"));
            client.publish("any/topic", b"x", QoS::AtLeastOnce, false);
        }
        // Another client's memory is empty.
        let other = Dial::tcp(node.listener(1)).tls(&trust.config(), "localhost");
        assert_eq!(other.open_tls().unwrap().conn.handshake_kind(), Some(HandshakeKind::Full), "{version}");
    }
}

// === systemd ===

#[test]
fn sockets_come_from_systemd() {
    let folder = tempfile::tempdir().unwrap();
    let unix = folder.path().join("mqtt.sock");
    let named = format!("local={}", unix.display());
    let python = servers::python();
    let script = script("socket_activation.py");
    let through = [python.to_str().unwrap(), script.to_str().unwrap(), "spare=tcp", &named, "net=tcp", "--"];
    let open = |name: &str| {
        format!(
            "[[listener]]\nbind = \"systemd:{name}\"\nanonymous = true\nanonymous_anywhere = true\nprotocol = \"mqtt\""
        )
    };
    let config = Config::edge().extra(&open("net")).extra(&open("local")).through(through);
    let mut node = Node::start(&config);
    let net = node.listener(1);
    let mut reader = Client::connect(net, &Options::v5("reader"));
    reader.subscribe("t", QoS::AtLeastOnce);
    let mut writer = Dial::unix(&unix).connect(&Options::v5("writer"));
    writer.publish("t", b"from systemd's sockets", QoS::AtLeastOnce, false);
    assert_eq!(reader.expect_message().text(), "from systemd's sockets");
    // A reload gives one back, which is still systemd's, takes it again, and takes the one that nobody had wanted.
    let given_back = open("net");
    node.edit(|toml| toml.replace(&given_back, ""));
    assert_eq!(node.reload().unwrap()["disconnected"], 1);
    assert_eq!(reader.expect_closed(), Some(ReasonCode::ADMINISTRATIVE_ACTION));
    node.edit(|toml| toml + &open("net") + "\n" + &open("spare"));
    node.reload().unwrap();
    assert_eq!(node.listener(2), net, "behind the one that stayed");
    let mut reader = Client::connect(net, &Options::v5("reader"));
    reader.subscribe("t", QoS::AtLeastOnce);
    let mut spare = Client::connect(node.listener(3), &Options::v5("spare"));
    spare.publish("t", b"spare", QoS::AtLeastOnce, false);
    assert_eq!(reader.expect_message().text(), "spare");
    writer.ping();
    assert!(node.terminate().success());
    assert!(unix.exists(), "the socket's file is systemd's");

    // A name that was not passed, and none at all.
    let wrong = Config::edge().extra(&open("other")).through([
        python.to_str().unwrap(),
        script.to_str().unwrap(),
        "net=tcp",
        "--",
    ]);
    let ended = ferrule_testkit::node::start_to_exit(&wrong);
    assert!(!ended.status.success() && ended.output.contains("called net"), "{}", ended.output);
    let ended = ferrule_testkit::node::start_to_exit(&Config::edge().extra(&open("net")));
    assert!(!ended.status.success() && ended.output.contains("no socket"), "{}", ended.output);
}

#[test]
fn systemd_is_told_of_start_watchdog_and_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let config = Config::edge()
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        // Half a second: told twice as often.
        .env("WATCHDOG_USEC", "500000");
    let mut node = Node::start(&config);
    let wait_for = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let size = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let said = std::str::from_utf8(&buffer[..size]).unwrap();
            if said.lines().any(|line| line == wanted) {
                return;
            }
            assert!(said.lines().all(|line| line == "WATCHDOG=1"), "{said:?} before {wanted}");
        }
    };
    wait_for("READY=1");
    // Ready is who serves.
    Client::connect(node.addr(), &Options::v5("c")).ping();
    wait_for("WATCHDOG=1");
    wait_for("WATCHDOG=1");
    assert!(node.terminate().success());
    wait_for("STOPPING=1");
}

// === listeners side by side ===

#[test]
fn listeners_have_users_and_limits_of_their_own() {
    let users = "[[user]]\nname = \"inside\"\npassword_file = \"edge.pass\"\n\n[[user]]\nname = \"outside\"\npassword_file = \"edge.pass\"\n";
    let limits = "[mqtt]\nmax_packet_size = \"8KiB\"\ntopic_alias_max = 7\n";
    let first = listener("users = [\"inside\"]\n\n[listener.limits]\nmax_packet_size = \"16KiB\"");
    let second = listener("[listener.limits]\nmax_packet_size = \"1KiB\"\nmax_connections = 2");
    let third = listener("anonymous = true\nprotocol = \"ws\"");
    let config = Config::edge().closed().extra(&first).extra(&second).extra(&third);
    let node = Node::start(&config.extra(users).extra(limits));
    let [closed, any, small, open] = [0, 1, 2, 3]
        .map(|index| (Dial::tcp(node.listener(index)), index))
        .map(|(dial, index)| if index == 3 { dial.ws() } else { dial });
    let (plain, inside) = (Options::v5("c"), Options::v5("c").login("inside", EDGE_PASSWORD));
    let outside = Options::v5("c").login("outside", EDGE_PASSWORD);
    let answers: Vec<_> = [&closed, &any, &small, &open]
        .iter()
        .map(|dial| {
            [&plain, &inside, &outside].map(|options| dial.try_connect(options).unwrap().1.connack().0.0)
        })
        .collect();
    assert_eq!(answers, [[0x87, 0, 0], [0x87, 0, 0x87], [0x87, 0, 0], [0, 0, 0]]);

    // The largest packet is told by each, what it does not say is as `[mqtt]` says, and it is kept.
    for (dial, largest) in [(&closed, 8), (&any, 16), (&small, 1), (&open, 8)] {
        let (mut client, frame) = dial.try_connect(&inside).unwrap();
        let Packet::Connack(connack) = frame.packet() else { unreachable!("try_connect returns one") };
        let told = connack.properties.get(PropertyId::MaximumPacketSize).map(|p| format!("{p:?}"));
        assert_eq!(told, Some(format!("MaximumPacketSize({})", largest * 1024)));
        let told = connack.properties.get(PropertyId::TopicAliasMaximum).map(|p| format!("{p:?}"));
        assert_eq!(told.as_deref(), Some("TopicAliasMaximum(7)"));
        client.publish("t", &vec![0; largest * 1024 - 100], QoS::AtLeastOnce, false);
        client.publish_nowait("t", &vec![0; largest * 1024], QoS::AtLeastOnce, false);
        assert_eq!(client.expect_closed(), Some(ReasonCode::PACKET_TOO_LARGE));
    }
    // Two may be there at a time; the other listeners have no such bound.
    node.wait_status(PATIENCE, "all have gone", |status| status["connections"] == 0);
    let two = ["a", "b"].map(|id| small.connect(&Options { client_id: id.into(), ..inside.clone() }));
    let third = Options { client_id: "third".into(), ..inside.clone() };
    assert_eq!(small.try_connect(&third).unwrap().1.connack().0, ReasonCode::QUOTA_EXCEEDED);
    any.connect(&third).ping();
    let refused: Vec<_> =
        node.status()["listeners"].as_array().unwrap().iter().map(|l| l["refused_full"].clone()).collect();
    assert_eq!(refused, [0, 0, 1, 0]);
    drop(two);
    until(PATIENCE, "there is room again", || {
        let (_, frame) = small.try_connect(&third).ok()?;
        (frame.connack().0 == ReasonCode::SUCCESS).then_some(())
    });
}
