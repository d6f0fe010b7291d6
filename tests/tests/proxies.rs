//! Ferrule behind nginx and HAProxy, with the set-ups of `examples/nginx` and `examples/haproxy` as they stand: TLS ended there or passed
//! through, several nodes, WebSocket beside a web site; who the client is; reloads, restarts, and nodes that are gone.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use ferrule_mqtt::{AckType, Packet, QoS, ReasonCode};
use ferrule_testkit::node::count;
use ferrule_testkit::wire::{Options, ack};
use ferrule_testkit::{Certs, Client, Config, Dial, Example, Node, Proxy, until};
use ferrule_tests::mosquitto::{Reach, messages};
use ferrule_tests::{PATIENCE, paho_round};
use serde_json::Value;

// The ports of the examples: where the proxy listens...
const MQTTS: u16 = 8883;
const WS: u16 = 8080;
const WSS: u16 = 8443;
// ...and Ferrule, for the proxy and to look.
const BEHIND: u16 = 1884;
const BEHIND_TLS: u16 = 8884;
const BEHIND_WS: u16 = 8083;
const LOOK: u16 = 1883;
const BEHIND_2: u16 = 2884;
const LOOK_2: u16 = 2883;
/// Where HAProxies tell each other of clients.
const PEERS: u16 = 10883;

/// The user of the examples.
const LOGIN: (&str, &str) = ("press-7", "test-only-not-a-secret");
/// An address that a client comes from, which is not that of the proxy.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Nginx,
    Haproxy,
}

impl Kind {
    fn example(self, name: &str, files: &[&str], ports: &[u16], certs: &Certs) -> Example {
        let file = self.file(name);
        let used: Vec<&str> = files.iter().copied().chain([file.as_str()]).collect();
        Example::copy(self.folder(), &used, ports, certs)
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    fn file(self, name: &str) -> String {
        match self {
            Self::Nginx => format!("{name}.conf"),
            Self::Haproxy => format!("{name}.cfg"),
        }
    }

    fn start(self, example: &Example, name: &str, port: u16) -> Proxy {
        match self {
            Self::Nginx => Proxy::nginx(example, &self.file(name), port),
            Self::Haproxy => Proxy::haproxy(example, &self.file(name), port),
        }
    }
}

/// A proxy and the edge behind it. (Fields are dropped in this order: the processes before their files.)
struct Setup {
    proxy: Proxy,
    edge: Node,
    example: Example,
    certs: Certs,
}

impl Setup {
    /// The example `name`: NAME.conf or NAME.cfg, and NAME.toml.
    fn start(kind: Kind, name: &str, ports: &[u16]) -> Self {
        Self::start_with(kind, name, ports, |edge| edge)
    }

    fn start_with(kind: Kind, name: &str, ports: &[u16], edge: impl FnOnce(Config) -> Config) -> Self {
        let certs = Certs::local(&["press-7", "press-8", "press-9"]);
        certs.run(&["--revoke", "press-9"]);
        let toml = format!("{name}.toml");
        let example = kind.example(name, &[&toml], ports, &certs);
        let edge = Node::start(&edge(example.edge(&toml, "edge-1", LOOK)));
        let proxy = kind.start(&example, name, ports[0]);
        Self { proxy, edge, example, certs }
    }

    /// mosquitto's clients, over TLS.
    fn reach(&self) -> Reach {
        Reach::tls(self.proxy.addr().port(), &self.certs)
    }

    /// The testkit's client, over TLS, without a certificate.
    fn dial(&self) -> Dial {
        Dial::tcp(self.proxy.addr()).tls(&self.certs.trust().config(), "localhost")
    }

    /// The same with the certificate of `client`.
    fn dial_as(&self, client: &str) -> Dial {
        Dial::tcp(self.proxy.addr()).tls(&self.certs.trust_as(client).config(), "localhost")
    }

    /// Messages of each quality of service, in each version, by the way that `reach` is, to a subscriber on the same way.
    fn round_trips(&self, reach: &Reach) {
        for version in ["mqttv31", "mqttv311", "mqttv5"] {
            let topic = format!("devices/press-7/{version}");
            let args = format!("-F t/%t=%p -C 3 -W 15 -q 2 -t {topic}");
            let mut subscriber = reach.subscribe(self.example.folder(), version, &args);
            for qos in 0..3 {
                reach.publish(version, &format!("-q {qos} -t {topic} -m {qos}"));
            }
            let mut got = messages(&mut subscriber);
            got.sort();
            assert_eq!(got, [0, 1, 2].map(|qos| format!("t/{topic}={qos}")));
        }
    }

    /// What Ferrule knows of whoever publishes to devices/press-7 in `publish`: the address and the user name.
    fn seen_of(&self, publish: impl FnOnce()) -> (String, Option<String>) {
        let mut look = Client::connect(self.edge.addr(), &Options::v5("look"));
        look.subscribe("who/#", QoS::AtLeastOnce);
        publish();
        let row: Value = serde_json::from_slice(&look.expect_message().payload).unwrap();
        assert_eq!(row["topic"], "devices/press-7/seen", "{row}");
        (row["peerhost"].as_str().unwrap().to_owned(), row["username"].as_str().map(str::to_owned))
    }

    /// The count `name` of the listener behind the proxy.
    fn count(&self, name: &str) -> u64 {
        count(&self.edge.status()["listeners"][0], name)
    }
}

fn login(client_id: &str) -> Options {
    Options::v5(client_id).login(LOGIN.0, LOGIN.1)
}

/// How a publish at QoS 1 is answered.
fn publish_reason(client: &mut Client, topic: &str) -> ReasonCode {
    let id = client.publish_nowait(topic, b"x", QoS::AtLeastOnce, false);
    let is_ours = |packet: &Packet<'_>| {
        ack(packet).is_some_and(|(kind, ack)| kind == AckType::Puback && ack.packet_id == id)
    };
    let frame = client.expect("PUBACK", is_ours);
    ack(&frame.packet()).unwrap().1.reason
}

/// The name in a client's certificate may do what `[certificate]` says of it, and no more.
fn a_certificate_decides(setup: &Setup) {
    for name in ["press-7", "press-8"] {
        // Another user name in the CONNECT changes nothing.
        let options = Options::v5(&format!("c-{name}")).login("press-9", "whatever");
        let mut client = setup.dial_as(name).connect(&options);
        for owner in ["press-7", "press-8"] {
            let reason = publish_reason(&mut client, &format!("devices/{owner}/t"));
            assert_eq!(reason != ReasonCode(0x87), name == owner, "{name} to devices/{owner}: {reason:?}");
        }
    }
    // No certificate, and one that was revoked. (TLS 1.3 lets the client know with its first read.)
    for (why, dial) in [("none", setup.dial()), ("revoked", setup.dial_as("press-9"))] {
        assert!(dial.try_connect(&Options::v5("x")).is_err(), "{why}");
    }
}

// === TLS ends at the proxy ===

#[test]
fn nginx_ends_tls_and_tells_the_address() {
    let setup = Setup::start(Kind::Nginx, "tls", &[MQTTS, BEHIND, LOOK]);
    let reach = setup.reach().option("-u", LOGIN.0).option("-P", LOGIN.1);
    setup.round_trips(&reach);
    let elsewhere = reach.option("-A", ELSEWHERE.to_string());
    let seen = setup.seen_of(|| elsewhere.publish("mqttv5", "-q 1 -t devices/press-7/seen -m x"));
    assert_eq!(seen, (ELSEWHERE.to_string(), Some("press-7".into())));
    // The password is Ferrule's affair.
    let (_client, frame) = setup.dial().try_connect(&Options::v5("x").login("press-7", "wrong")).unwrap();
    assert_ne!(frame.connack().0, ReasonCode::SUCCESS);
    setup.edge.assert_quiet_log();
}

#[test]
fn haproxy_ends_tls_and_tells_the_address_and_the_certificates_name() {
    let setup = Setup::start(Kind::Haproxy, "tls", &[MQTTS, BEHIND, LOOK]);
    let reach = setup.reach().identity(&setup.certs, "press-7");
    setup.round_trips(&reach);
    let elsewhere = reach.option("-A", ELSEWHERE.to_string());
    let seen = setup.seen_of(|| elsewhere.publish("mqttv5", "-q 1 -t devices/press-7/seen -m x"));
    assert_eq!(seen, (ELSEWHERE.to_string(), Some("press-7".into())));
    a_certificate_decides(&setup);
    setup.edge.assert_quiet_log();
}

// === TLS goes through the proxy ===

fn tls_goes_through(kind: Kind) {
    let setup = Setup::start(kind, "passthrough", &[MQTTS, BEHIND_TLS, LOOK]);
    let reach = setup.reach().identity(&setup.certs, "press-7");
    setup.round_trips(&reach);
    let elsewhere = reach.option("-A", ELSEWHERE.to_string());
    let seen = setup.seen_of(|| elsewhere.publish("mqttv5", "-q 1 -t devices/press-7/seen -m x"));
    assert_eq!(seen, (ELSEWHERE.to_string(), Some("press-7".into())));
    a_certificate_decides(&setup);
    // It is Ferrule that refused them.
    assert!(setup.count("faults") >= 2, "{:#}", setup.edge.status()["listeners"]);
    // Whoever asks for no name does not get to Ferrule at all.
    let accepted = setup.count("accepted");
    let nameless = Dial::tcp(setup.proxy.addr()).tls(&setup.certs.trust_as("press-7").config(), "127.0.0.1");
    assert!(nameless.open_tls().is_err());
    assert_eq!(setup.count("accepted"), accepted);
    setup.edge.assert_quiet_log();
}

#[test]
fn tls_goes_through_nginx_by_name() {
    tls_goes_through(Kind::Nginx);
}

#[test]
fn tls_goes_through_haproxy_by_name() {
    tls_goes_through(Kind::Haproxy);
}

// === who is believed ===

#[test]
fn a_header_is_believed_from_the_proxy_alone() {
    let setup = Setup::start(Kind::Nginx, "tls", &[MQTTS, BEHIND, LOOK]);
    let header = |source: &str| format!("PROXY TCP4 {source} 127.0.0.1 40000 8883\r\n").into_bytes();
    let behind = setup.example.addr(BEHIND);
    let connect = |from: Ipv4Addr, first: &[u8]| {
        Dial::tcp(behind).source(from).preface(first).try_connect(&login("direct"))
    };
    // What the proxy itself would send is what is refused from elsewhere.
    assert!(connect(Ipv4Addr::LOCALHOST, &header("10.1.2.3")).is_ok());
    assert_eq!(setup.count("refused_untrusted"), 0);
    assert!(connect(ELSEWHERE, &header("10.1.2.3")).is_err());
    assert_eq!(setup.count("refused_untrusted"), 1);
    // And the proxy's address without a header is nobody.
    let faults = setup.count("faults");
    assert!(connect(Ipv4Addr::LOCALHOST, b"").is_err());
    assert_eq!(setup.count("faults"), faults + 1);
}

fn addresses_are_counted(kind: Kind) {
    let limit = |edge: Config| edge.env("FERRULE__LISTENER__0__LIMITS__MAX_CONNECTIONS_PER_ADDRESS", "2");
    let setup = Setup::start_with(kind, "tls", &[MQTTS, BEHIND, LOOK], limit);
    // Either way of proving who one is, with either proxy.
    let dial = |last: u8| setup.dial_as("press-7").source(Ipv4Addr::new(127, 0, 0, last));
    let reason = |last: u8, id: &str| {
        let (client, frame) = dial(last).try_connect(&login(id)).unwrap();
        (client, frame.connack().0)
    };
    let kept = [reason(2, "a"), reason(2, "b"), reason(3, "c")];
    assert!(kept.iter().all(|(_, reason)| *reason == ReasonCode::SUCCESS));
    // Quota exceeded.
    assert_eq!(reason(2, "d").1, ReasonCode(0x97));
    assert_eq!(reason(3, "e").1, ReasonCode::SUCCESS);
    assert_eq!(setup.count("refused_address"), 1);
}

#[test]
fn connections_of_an_address_are_counted_behind_nginx() {
    addresses_are_counted(Kind::Nginx);
}

#[test]
fn connections_of_an_address_are_counted_behind_haproxy() {
    addresses_are_counted(Kind::Haproxy);
}

// === WebSocket ===

fn websocket_beside_a_web_site(kind: Kind) -> String {
    let setup = Setup::start(kind, "websocket", &[WSS, WS, BEHIND_WS, LOOK]);
    let (ws, wss) = (setup.example.addr(WS), setup.example.addr(WSS));
    let secure = format!("localhost:{} --ca {}", wss.port(), setup.certs.path("ca.crt").display());
    // Beside each other: each waits most of its time.
    std::thread::scope(|scope| {
        for address in [ws.to_string(), secure] {
            scope.spawn(move || paho_round(&format!("ws {address} --login {} {}", LOGIN.0, LOGIN.1)));
        }
    });
    // What is not /mqtt is not Ferrule's.
    let accepted = setup.count("accepted");
    let mut socket = TcpStream::connect(ws).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    socket.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("web site"), "{page}");
    assert_eq!(setup.count("accepted"), accepted);

    let dial = Dial::tcp(wss).tls(&setup.certs.trust().config(), "localhost").ws().source(ELSEWHERE);
    let (seen, name) = setup.seen_of(|| {
        let mut client = dial.connect(&login("w"));
        client.publish("devices/press-7/seen", b"x", QoS::AtLeastOnce, false);
    });
    assert_eq!(name.as_deref(), Some("press-7"));
    setup.edge.assert_quiet_log();
    seen
}

#[test]
fn websocket_through_nginx_comes_from_nginx() {
    // Over HTTP it sends no PROXY header: what docs/proxies.md warns of.
    assert_eq!(websocket_beside_a_web_site(Kind::Nginx), "127.0.0.1");
}

#[test]
fn websocket_through_haproxy_comes_from_the_client() {
    assert_eq!(websocket_beside_a_web_site(Kind::Haproxy), ELSEWHERE.to_string());
}

// === several nodes ===

/// A proxy and two nodes that know nothing of each other.
struct Nodes {
    proxy: Proxy,
    nodes: [Node; 2],
    example: Example,
    certs: Certs,
}

impl Nodes {
    fn start(kind: Kind) -> Self {
        let certs = Certs::local(&[]);
        let mut ports = vec![MQTTS, BEHIND, BEHIND_2, LOOK, LOOK_2];
        ports.extend(matches!(kind, Kind::Haproxy).then_some(PEERS));
        let example = kind.example("nodes", &["node-1.toml", "node-2.toml"], &ports, &certs);
        let node = |name: &str, look| Node::start(&example.edge(&format!("{name}.toml"), name, look));
        let nodes = [node("node-1", LOOK), node("node-2", LOOK_2)];
        let proxy = kind.start(&example, "nodes", MQTTS);
        Self { proxy, nodes, example, certs }
    }

    fn connect(&self, options: &Options) -> (Client, bool) {
        let dial = Dial::tcp(self.proxy.addr()).tls(&self.certs.trust().config(), "localhost");
        let (client, frame) = dial.try_connect(options).unwrap();
        let (reason, session_present) = frame.connack();
        assert_eq!(reason, ReasonCode::SUCCESS);
        (client, session_present)
    }

    fn clients(&self, ids: std::ops::Range<usize>) -> Vec<Client> {
        ids.map(|n| self.connect(&login(&format!("c{n}"))).0).collect()
    }

    /// How many clients each node has.
    fn counts(&self) -> [u64; 2] {
        // Sessions of clients, not connections: a health check is one of these, too.
        [0, 1].map(|index: usize| count(&self.nodes[index].status(), "sessions"))
    }

    fn wait_counts(&self, wanted: [u64; 2]) {
        let what = format!("the nodes have {wanted:?} clients");
        until(PATIENCE, &what, || (self.counts() == wanted).then_some(()));
    }
}

fn clients_are_spread_and_dead_nodes_skipped(kind: Kind) {
    let mut nodes = Nodes::start(kind);
    let clients = nodes.clients(0..8);
    assert_eq!(nodes.counts(), [4, 4]);
    // Each new one goes where the fewest are, and not by turns: after four have left the first node, there.
    let mut look = Client::connect(nodes.nodes[0].addr(), &Options::v5("look"));
    look.subscribe("who/#", QoS::AtLeastOnce);
    let mut on_first = HashSet::new();
    let mut clients: Vec<(usize, Client)> = clients.into_iter().enumerate().collect();
    for (_, client) in &mut clients {
        client.publish("devices/x", b"x", QoS::AtLeastOnce, false);
    }
    while on_first.len() < 4 {
        let row: Value = serde_json::from_slice(&look.expect_message().payload).unwrap();
        on_first.insert(row["clientid"].as_str().unwrap().to_owned());
    }
    look.disconnect();
    clients.retain(|(n, _)| !on_first.contains(&format!("c{n}")));
    nodes.wait_counts([0, 4]);
    // That the proxy has seen them go, too, is not known from here: but it cannot see a close later than the node it passes it to.
    let mut more = nodes.clients(8..12);
    assert_eq!(nodes.counts(), [4, 4]);

    // A node that is killed: whoever was there comes back to the other one, at once.
    nodes.nodes[0].kill9();
    for client in &mut more {
        until(PATIENCE, "the connection is ended", || client.recv(Duration::from_secs(1)).err().map(drop));
    }
    more = nodes.clients(8..12);
    let second = |nodes: &Nodes| count(&nodes.nodes[1].status(), "sessions");
    assert_eq!(second(&nodes), 8);
    // And when it is there again, it is used again.
    nodes.nodes[0].restart();
    let mut n = 12;
    until(PATIENCE, "a client comes to the first node", || {
        more.extend(nodes.clients(n..n + 1));
        n += 1;
        (nodes.counts()[0] > 0).then_some(())
    });
    nodes.nodes.iter().for_each(Node::assert_quiet_log);
}

#[test]
fn nginx_spreads_clients_and_skips_a_dead_node() {
    clients_are_spread_and_dead_nodes_skipped(Kind::Nginx);
}

#[test]
fn haproxy_spreads_clients_and_skips_a_dead_node() {
    clients_are_spread_and_dead_nodes_skipped(Kind::Haproxy);
}

#[test]
fn haproxy_brings_a_client_back_to_its_session() {
    let mut nodes = Nodes::start(Kind::Haproxy);
    let options = [Options::v4, Options::v5].into_iter().cycle().take(6).enumerate();
    let options: Vec<Options> =
        options.map(|(n, options)| options(&format!("s{n}")).login(LOGIN.0, LOGIN.1).persistent()).collect();
    // All at once, so that there are some on either node.
    let first: Vec<(Client, bool)> = options.iter().map(|options| nodes.connect(options)).collect();
    assert!(first.iter().all(|(_, session_present)| !session_present));
    drop(first);
    // However many others there are on its node, and after a reload.
    let others = nodes.clients(0..5);
    for options in &options {
        assert!(nodes.connect(options).1, "{options:?}");
    }
    drop(others);
    nodes.proxy.wait_peers(&nodes.example);
    let before = nodes.proxy.workers().len();
    nodes.proxy.reload();
    until(PATIENCE, "the old process has told the new one and ended", || {
        (nodes.proxy.workers().len() == before).then_some(())
    });
    let others = nodes.clients(5..10);
    for options in &options {
        assert!(nodes.connect(options).1, "{options:?}, after a reload");
    }
    // When its node is gone it begins anew on the other one, and stays there.
    nodes.nodes[0].kill9();
    let moved: Vec<&Options> = options.iter().filter(|options| !nodes.connect(options).1).collect();
    assert!(!moved.is_empty() && moved.len() < options.len(), "all sessions were on one node");
    nodes.nodes[0].restart();
    for options in moved {
        assert!(nodes.connect(options).1, "{options:?}");
    }
    drop(others);

    // What is no MQTT does not get through.
    let dial = Dial::tcp(nodes.proxy.addr()).tls(&nodes.certs.trust().config(), "localhost");
    let mut stranger = dial.client(Options::v5("").version).unwrap();
    stranger.send_raw(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(stranger.recv(Duration::from_secs(5)).is_err());
    // Nor has a health check, which is a connection without MQTT, been taken for a fault.
    for node in &nodes.nodes {
        let listener = || node.status()["listeners"][0].clone();
        let before = count(&listener(), "accepted");
        let now = until(PATIENCE, "a health check", || {
            Some(listener()).filter(|listener| count(listener, "accepted") > before + 1)
        });
        assert_eq!(count(&now, "faults"), 0, "{now:#}");
        node.assert_quiet_log();
    }
}

// === the proxy itself ===

fn a_reload_and_a_restart(kind: Kind) {
    let mut setup = Setup::start(kind, "tls", &[MQTTS, BEHIND, LOOK]);
    let options = |id: &str| login(id).persistent();
    let mut reader = setup.dial_as("press-7").connect(&options("reader"));
    reader.subscribe("devices/press-7/#", QoS::AtLeastOnce);
    let mut plain = Client::connect(setup.edge.addr(), &Options::v5("plain"));
    let mut said = 0..;
    let mut pass = |plain: &mut Client, reader: &mut Client| {
        let text = said.next().unwrap().to_string();
        plain.publish("devices/press-7/t", text.as_bytes(), QoS::AtLeastOnce, false);
        assert_eq!(reader.expect_message().text(), text);
    };
    pass(&mut plain, &mut reader);

    // A reload ends nothing: the old processes serve what they have, the new ones what comes.
    let before = setup.proxy.workers().len();
    setup.proxy.reload();
    let mut late = setup.dial_as("press-7").connect(&login("late"));
    pass(&mut plain, &mut reader);
    late.publish("devices/press-7/t", b"late", QoS::AtLeastOnce, false);
    assert_eq!(reader.expect_message().text(), "late");
    // Which of them `late` came to is not known: an old one accepts until it is told of the new ones.
    reader.disconnect();
    late.disconnect();
    until(PATIENCE, "the old workers end with their last client", || {
        (setup.proxy.workers().len() == before).then_some(())
    });

    // A restart ends connections, not sessions.
    let mut reader = setup.dial_as("press-7").connect(&options("reader"));
    setup.proxy.kill9();
    until(PATIENCE, "the connection is ended", || reader.recv(Duration::from_secs(1)).err().map(drop));
    assert!(TcpStream::connect(setup.proxy.addr()).is_err(), "the proxy is still there");
    plain.publish("devices/press-7/t", b"meanwhile", QoS::AtLeastOnce, false);
    setup.proxy.restart();
    let (mut reader, frame) = setup.dial_as("press-7").try_connect(&options("reader")).unwrap();
    assert_eq!(frame.connack(), (ReasonCode::SUCCESS, true));
    assert_eq!(reader.expect_message().text(), "meanwhile");
    pass(&mut plain, &mut reader);
    setup.edge.assert_quiet_log();
}

#[test]
fn a_reload_of_nginx_ends_no_connection_and_a_restart_no_session() {
    a_reload_and_a_restart(Kind::Nginx);
}

#[test]
fn a_reload_of_haproxy_ends_no_connection_and_a_restart_no_session() {
    a_reload_and_a_restart(Kind::Haproxy);
}
