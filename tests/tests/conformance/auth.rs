//! AUTH: authentication by steps, shown with SCRAM-SHA-256 (RFC 7677) and a client of the test's own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ferrule_mqtt::{Auth, Packet, PropertyId, QoS, Version};
use ferrule_testkit::node::EDGE_PASSWORD;
use ferrule_testkit::wire::{Frame, PATIENCE};
use ferrule_testkit::{Client, Config, Node};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::common::USER;
use crate::frames::{
    self, CLEAN, EXPIRY, NAME, PASSWORD, Peer, Will, bytes, connect_of, next_publish, packet, peer, property,
    unique,
};

clause!(mqtt_3_1_2_30, "MQTT-3.1.2-30", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    let mut reader = proved(peer, &unique(), "user", "pencil").0;
    reader.subscribe("#", QoS::AtMostOnce);
    for other in [
        peer.publish_bytes(0x31, b"t", 0, &[], b"x"),
        peer.subscribe_bytes(1, &[], &[("t", 0)]),
        vec![0xC0, 0],
        vec![0x40, 2, 0, 1],
        frames::connect(peer.version, "another", true, &[]),
    ] {
        let (mut client, _) = challenged(peer, "user");
        client.send_raw(&other).unwrap();
        refused(peer, &mut client, &[0x82]);
        // Nor at once.
        let connect = begin(peer, "user");
        let mut client = peer.open();
        client.send_raw(&[connect, other].concat()).unwrap();
        auth(&client.recv(PATIENCE).unwrap());
        refused(peer, &mut client, &[0x82]);
    }
    // It may leave.
    let (mut client, _) = challenged(peer, "user");
    client.send_raw(&[0xE0, 0]).unwrap();
    peer.closed_silently(&mut client);
    reader.publish("fence", b"", QoS::AtMostOnce, false);
    assert_eq!(next_publish(&mut reader).topic, "fence", "nothing was processed");
});
clause!(mqtt_3_15_1_1, "MQTT-3.15.1-1", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    for flags in 1..16 {
        let (mut client, exchange) = challenged(peer, "user");
        let mut last = say(peer, 0x18, METHOD, exchange.last("pencil").0.as_bytes());
        last[0] |= flags;
        client.send_raw(&last).unwrap();
        refused(peer, &mut client, &[0x81]);
        let mut client = proved(peer, &unique(), "user", "pencil").0;
        let mut again = say(peer, 0x19, METHOD, Exchange::first("user").as_bytes());
        again[0] |= flags;
        client.send_raw(&again).unwrap();
        peer.closed(&mut client, &[0x81], &again);
    }
});
clause!(mqtt_3_15_2_1, "MQTT-3.15.2-1", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    // The server's: `challenged` and `proves_again` want 0x18 and 0x00.
    let mut client = proved(peer, &unique(), "user", "pencil").0;
    proves_again(peer, &mut client);
    // The client's.
    for wrong in [0x01, 0x10, 0x17, 0x1A, 0x80, 0x87, 0xFF] {
        let (mut client, exchange) = challenged(peer, "user");
        client.send_raw(&say(peer, wrong, METHOD, exchange.last("pencil").0.as_bytes())).unwrap();
        refused(peer, &mut client, &[0x81, 0x82]);
        let mut client = proved(peer, &unique(), "user", "pencil").0;
        let again = say(peer, wrong, METHOD, Exchange::first("user").as_bytes());
        client.send_raw(&again).unwrap();
        peer.closed(&mut client, &[0x81, 0x82], &again);
    }
});
clause!(mqtt_3_15_2_2, "MQTT-3.15.2-2", [v5], |broker| short(broker.version, PropertyId::ReasonString));
clause!(mqtt_3_15_2_3, "MQTT-3.15.2-3", [v5], |broker| short(broker.version, PropertyId::UserProperty));
clause!(mqtt_4_12_0_1, "MQTT-4.12.0-1", [v5], |broker| {
    let (_node, with) = scram(broker.version);
    for peer in [with, peer(broker)] {
        for method in ["none", "SCRAM-SHA-1", "SCRAM-SHA-256-PLUS", "scram-sha-256", ""] {
            let asked = property(0x15, method.as_bytes());
            assert_eq!(
                peer.refusal(&frames::connect(peer.version, "id", true, &asked)),
                Some(0x8C),
                "{method}"
            );
        }
    }
    // Where no user has what it needs, it is not supported either.
    let asked = property(0x15, METHOD.as_bytes());
    assert_eq!(peer(broker).refusal(&frames::connect(Version::V5, "id", true, &asked)), Some(0x8C));
});
clause!(mqtt_4_12_0_2, "MQTT-4.12.0-2", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    let mut client = peer.open();
    client.send_raw(&begin(peer, "user")).unwrap();
    let frame = client.recv(PATIENCE).unwrap();
    assert_eq!((frame.bytes()[0], frame.bytes()[2]), (0xF0, 0x18));
    // Of one who is there, as well.
    let mut client = proved(peer, &unique(), "user", "pencil").0;
    client.send_raw(&say(peer, 0x19, METHOD, Exchange::first("user").as_bytes())).unwrap();
    assert_eq!(auth(&client.recv(PATIENCE).unwrap()).reason.0, 0x18);
});
clause!(mqtt_4_12_0_3, "MQTT-4.12.0-3", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    for wrong in [0x00, 0x19] {
        let (mut client, exchange) = challenged(peer, "user");
        client.send_raw(&say(peer, wrong, METHOD, exchange.last("pencil").0.as_bytes())).unwrap();
        refused(peer, &mut client, &[0x82]);
        let mut client = proved(peer, &unique(), "user", "pencil").0;
        let exchange = challenged_again(peer, &mut client, "user");
        let last = say(peer, wrong, METHOD, exchange.last("pencil").0.as_bytes());
        client.send_raw(&last).unwrap();
        peer.closed(&mut client, &[0x82], &last);
    }
});
clause!(mqtt_4_12_0_4, "MQTT-4.12.0-4", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    let topic = unique();
    let mut reader = proved(peer, &unique(), "user", "pencil").0;
    reader.subscribe(&topic, QoS::AtMostOnce);
    let attempt = |name: &str, last: &dyn Fn(&Exchange) -> String| {
        let (mut client, exchange) = challenged(peer, name);
        client.send_raw(&say(peer, 0x18, METHOD, last(&exchange).as_bytes())).unwrap();
        refused(peer, &mut client, &[0x86, 0x87]);
    };
    // A wrong password, a user without the method, nobody, another's nonce, no SCRAM at all.
    attempt("user", &|exchange| exchange.last("Pencil").0);
    attempt(USER, &|exchange| exchange.last(EDGE_PASSWORD).0);
    attempt("nobody", &|exchange| exchange.last("pencil").0);
    attempt("user", &|exchange| exchange.last("pencil").0.replace("r=", "r=x"));
    attempt("user", &|_| String::new());
    // At its first step.
    for first in
        ["", "n,,n=user", "p=tls-unique,,n=user,r=x", "n,a=other,n=user,r=x", "\u{FEFF}n,,n=user,r=x"]
    {
        let asked = method(METHOD, first.as_bytes());
        let code = peer.refusal(&frames::connect(peer.version, "id", true, &asked));
        assert!(matches!(code, Some(0x86 | 0x87)), "{first}: {code:?}");
    }
    // Name and password of the CONNECT do not help, nor is its will published.
    let will = Will { connect: &method(METHOD, Exchange::first("user").as_bytes()), ..Will::on(&topic) };
    let mut client = peer.open();
    client.send_raw(&will.bytes(peer.version, "id")).unwrap();
    auth(&client.recv(PATIENCE).unwrap());
    client.send_raw(&say(peer, 0x18, METHOD, b"")).unwrap();
    refused(peer, &mut client, &[0x86, 0x87]);
    reader.publish(&topic, b"fence", QoS::AtMostOnce, false);
    assert_eq!(next_publish(&mut reader).text(), "fence");
    let payload: [&[u8]; 3] = [&bytes(b"id"), &bytes(USER.as_bytes()), &bytes(EDGE_PASSWORD.as_bytes())];
    let login = connect_of(peer.version, CLEAN | NAME | PASSWORD, 0, &method(METHOD, b""), &payload);
    assert!(matches!(peer.refusal(&login), Some(0x86 | 0x87)));
});
clause!(mqtt_4_12_0_5, "MQTT-4.12.0-5", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    // Ours: `auth` and `proved` look at each.
    let mut client = proved(peer, &unique(), "user", "pencil").0;
    proves_again(peer, &mut client);
    // The client's: none, or another.
    for wrong in [None, Some("none"), Some("scram-sha-256"), Some("")] {
        let (mut client, exchange) = challenged(peer, "user");
        let data = property(0x16, exchange.last("pencil").0.as_bytes());
        let named = wrong.map_or(Vec::new(), |name| property(0x15, name.as_bytes()));
        client.send_raw(&packet(0xF0, &[&[0x18], &peer.properties(&[named, data].concat())])).unwrap();
        refused(peer, &mut client, &[0x82, 0x8C]);
    }
});
clause!(mqtt_4_12_0_6, "MQTT-4.12.0-6", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    let payload: [&[u8]; 3] = [&bytes(b"id"), &bytes(USER.as_bytes()), &bytes(EDGE_PASSWORD.as_bytes())];
    let login = connect_of(peer.version, CLEAN | NAME | PASSWORD, 0, &[], &payload);
    let (mut client, connack) = peer.accepted(&login);
    let told = crate::connack::properties(&connack);
    assert!(
        !told.contains(PropertyId::AuthenticationMethod) && !told.contains(PropertyId::AuthenticationData)
    );
    client.ping();
    // One who can prove itself by the method alone is refused, not asked.
    let payload: [&[u8]; 3] = [&bytes(b"id"), &bytes(b"user"), &bytes(b"pencil")];
    let login = connect_of(peer.version, CLEAN | NAME | PASSWORD, 0, &[], &payload);
    assert_eq!(peer.refusal(&login), Some(0x86));
});
clause!(mqtt_4_12_0_7, "MQTT-4.12.0-7", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    let payload: [&[u8]; 3] = [&bytes(b"id"), &bytes(USER.as_bytes()), &bytes(EDGE_PASSWORD.as_bytes())];
    let login = connect_of(peer.version, CLEAN | NAME | PASSWORD, 0, &[], &payload);
    let first = Exchange::first("user");
    for wrong in [
        vec![0xF0, 0],
        say(peer, 0x19, METHOD, first.as_bytes()),
        say(peer, 0x18, METHOD, first.as_bytes()),
        say(peer, 0x00, METHOD, b""),
    ] {
        let mut client = peer.accepted(&login).0;
        client.send_raw(&wrong).unwrap();
        peer.closed(&mut client, &[0x82], &wrong);
    }
});
clause!(mqtt_4_12_1_1, "MQTT-4.12.1-1", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    for wrong in ["none", "scram-sha-256", "SCRAM-SHA-256-PLUS", ""] {
        let mut client = proved(peer, &unique(), "user", "pencil").0;
        let again = say(peer, 0x19, wrong, Exchange::first("user").as_bytes());
        client.send_raw(&again).unwrap();
        peer.closed(&mut client, &[0x82, 0x8C], &again);
    }
    let mut client = proved(peer, &unique(), "user", "pencil").0;
    for _ in 0..3 {
        proves_again(peer, &mut client);
    }
    client.ping();
});
clause!(mqtt_4_12_1_2, "MQTT-4.12.1-2", [v5], |broker| {
    let (_node, peer) = scram(broker.version);
    let topic = unique();
    let mut reader = proved(peer, &unique(), "user", "pencil").0;
    reader.subscribe(&topic, QoS::AtMostOnce);
    for (name, password) in [("user", "Pencil"), ("nobody", "pencil"), ("other", "pencil")] {
        let mut connect = Exchange::begin(name);
        let me = unique();
        let will = Will { connect: &method(METHOD, Exchange::first("user").as_bytes()), ..Will::on(&topic) };
        let mut client = peer.open();
        client.send_raw(&will.bytes(peer.version, &me)).unwrap();
        finish(peer, &mut client, Exchange::begin("user"), "pencil");
        client.send_raw(&say(peer, 0x19, METHOD, Exchange::first(name).as_bytes())).unwrap();
        connect.hear(&client.recv(PATIENCE).unwrap());
        // A right password, but of someone else than the connection's, is no better than a wrong one.
        client.send_raw(&say(peer, 0x18, METHOD, connect.last(password).0.as_bytes())).unwrap();
        peer.closed(&mut client, &[0x86, 0x87], name.as_bytes());
        assert_eq!(next_publish(&mut reader).text(), "will", "it ends as an error does");
    }
    // In its first step.
    let mut client = proved(peer, &unique(), "user", "pencil").0;
    client.send_raw(&say(peer, 0x19, METHOD, b"nonsense")).unwrap();
    peer.closed(&mut client, &[0x86, 0x87], b"nonsense");
});

const METHOD: &str = "SCRAM-SHA-256";

/// Of the password "pencil", from RFC 7677's exchange, as PostgreSQL keeps it.
const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                      wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// A node that "user" and "other" come into by the method, and [`USER`] by a password.
fn scram(version: Version) -> (Node, Peer) {
    let by_steps = |name: &str| format!("[[user]]\nname = \"{name}\"\nscram = \"{PENCIL}\"\n");
    let by_password = format!("[[user]]\nname = \"{USER}\"\npassword_file = \"edge.pass\"\n");
    let users = [by_steps("user"), by_steps("other"), by_password].concat();
    let node = Node::start(&Config::edge().closed().extra(&users));
    let peer = Peer { addr: node.addr(), version };
    (node, peer)
}

/// The client's side of one exchange.
struct Exchange {
    bare: String,
    challenge: String,
}

impl Exchange {
    const NONCE: &str = "fyko+d2lbbFgONRv9qkxdawL";

    fn begin(name: &str) -> Self {
        Self { bare: format!("n={name},r={}", Self::NONCE), challenge: String::new() }
    }

    /// The client's first message.
    fn first(name: &str) -> String {
        format!("n,,{}", Self::begin(name).bare)
    }

    /// The server's challenge.
    fn hear(&mut self, frame: &Frame) {
        let auth = auth(frame);
        assert_eq!(auth.reason.0, 0x18);
        let data = auth.properties.authentication_data().expect("a challenge");
        String::from_utf8(data.to_vec()).unwrap().clone_into(&mut self.challenge);
        assert!(self.challenge.starts_with(&format!("r={}", Self::NONCE)), "{}", self.challenge);
    }

    /// The client's last message, and the server's that it then wants.
    fn last(&self, password: &str) -> (String, String) {
        let [nonce, salt, rounds] = self.challenge.splitn(3, ',').collect::<Vec<_>>()[..] else {
            panic!("{}", self.challenge)
        };
        let salt = BASE64.decode(salt.strip_prefix("s=").unwrap()).unwrap();
        let rounds = rounds.strip_prefix("i=").unwrap().parse().unwrap();
        let salted: [u8; 32] = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, rounds);
        let client_key = hmac(&salted, b"Client Key");
        let unproved = format!("c=biws,{nonce}");
        let signed = format!("{},{},{unproved}", self.bare, self.challenge);
        let signature = hmac(&Sha256::digest(client_key), signed.as_bytes());
        let proof: [u8; 32] = std::array::from_fn(|at| client_key[at] ^ signature[at]);
        let server = hmac(&hmac(&salted, b"Server Key"), signed.as_bytes());
        (format!("{unproved},p={}", BASE64.encode(proof)), format!("v={}", BASE64.encode(server)))
    }
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// The properties Authentication Method and Authentication Data.
fn method(name: &str, data: &[u8]) -> Vec<u8> {
    [property(0x15, name.as_bytes()), property(0x16, data)].concat()
}

/// AUTH.
fn say(peer: Peer, reason: u8, name: &str, data: &[u8]) -> Vec<u8> {
    packet(0xF0, &[&[reason], &peer.properties(&method(name, data))])
}

/// The AUTH in a frame, which names the method.
fn auth(frame: &Frame) -> Auth<'_> {
    let Packet::Auth(auth) = frame.packet() else { panic!("wanted an AUTH, got {frame:?}") };
    assert_eq!(auth.properties.authentication_method(), Some(METHOD));
    auth
}

/// CONNECT with the first message.
fn begin(peer: Peer, name: &str) -> Vec<u8> {
    frames::connect(peer.version, &unique(), true, &method(METHOD, Exchange::first(name).as_bytes()))
}

/// A client that has its challenge.
fn challenged(peer: Peer, name: &str) -> (Client, Exchange) {
    let mut client = peer.open();
    client.send_raw(&begin(peer, name)).unwrap();
    let mut exchange = Exchange::begin(name);
    exchange.hear(&client.recv(PATIENCE).unwrap());
    (client, exchange)
}

/// A connected client that has another one.
fn challenged_again(peer: Peer, client: &mut Client, name: &str) -> Exchange {
    client.send_raw(&say(peer, 0x19, METHOD, Exchange::first(name).as_bytes())).unwrap();
    let mut exchange = Exchange::begin(name);
    exchange.hear(&client.recv(PATIENCE).unwrap());
    exchange
}

/// From the challenge, which comes next, to the CONNACK, which is returned.
fn finish(peer: Peer, client: &mut Client, mut exchange: Exchange, password: &str) -> Frame {
    exchange.hear(&client.recv(PATIENCE).unwrap());
    let (last, wanted) = exchange.last(password);
    client.send_raw(&say(peer, 0x18, METHOD, last.as_bytes())).unwrap();
    let connack = client.recv(PATIENCE).unwrap();
    assert_eq!(connack.connack().0.0, 0, "refused");
    let told = crate::connack::properties(&connack);
    assert_eq!(told.authentication_method(), Some(METHOD));
    assert_eq!(told.authentication_data(), Some(wanted.as_bytes()), "the server knows the password, too");
    connack
}

/// A client that is connected, with a session that outlives its connection, and its CONNACK.
fn proved(peer: Peer, id: &str, name: &str, password: &str) -> (Client, Frame) {
    let properties = [EXPIRY, &method(METHOD, Exchange::first(name).as_bytes())].concat();
    let mut client = peer.open();
    client.send_raw(&frames::connect(peer.version, id, false, &properties)).unwrap();
    let connack = finish(peer, &mut client, Exchange::begin(name), password);
    (client, connack)
}

/// A client that is connected as "user" proves it again: it is served meanwhile, and told when it is done.
fn proves_again(peer: Peer, client: &mut Client) {
    let exchange = challenged_again(peer, client, "user");
    client.ping();
    client.publish(&unique(), b"meanwhile", QoS::AtLeastOnce, false);
    let (last, wanted) = exchange.last("pencil");
    client.send_raw(&say(peer, 0x18, METHOD, last.as_bytes())).unwrap();
    let frame = client.recv(PATIENCE).unwrap();
    let done = auth(&frame);
    assert_eq!(done.reason.0, 0x00);
    assert_eq!(done.properties.authentication_data(), Some(wanted.as_bytes()));
}

/// Before the CONNACK: one that refuses, and the end.
fn refused(peer: Peer, client: &mut Client, reasons: &[u8]) {
    let frame = client.recv(PATIENCE).unwrap();
    let (reason, present) = frame.connack();
    assert!(reasons.contains(&reason.0), "{reason:?}");
    assert!(!present);
    peer.closed_silently(client);
}

/// To a client that takes packets just long enough, or none that is.
fn short(version: Version, left_out: PropertyId) {
    let (_node, peer) = scram(version);
    let (mut client, exchange) = challenged(peer, "user");
    drop(client);
    let longest = 1 + 1 + 1 + 1 + method(METHOD, exchange.challenge.as_bytes()).len();
    let connect = |maximum: usize| {
        let maximum = [&[0x27, 0, 0], &u16::try_from(maximum).unwrap().to_be_bytes()[..]].concat();
        let properties = [maximum, method(METHOD, Exchange::first("user").as_bytes())].concat();
        frames::connect(peer.version, &unique(), true, &properties)
    };
    client = peer.open();
    client.send_raw(&connect(longest)).unwrap();
    let frame = client.recv(PATIENCE).unwrap();
    assert_eq!(frame.bytes().len(), longest);
    assert!(!auth(&frame).properties.contains(left_out));
    assert_eq!(peer.refusal(&connect(longest - 1)), None, "it cannot be asked");
}

// === what the numbers do not cover ===

#[test]
fn a_session_is_its_user_s_however_that_user_has_come_in() {
    let (_node, peer) = scram(Version::V5);
    let me = unique();
    assert!(!proved(peer, &me, "user", "pencil").1.connack().1);
    assert!(proved(peer, &me, "user", "pencil").1.connack().1);
    assert!(!proved(peer, &me, "other", "pencil").1.connack().1, "another user's");
}

#[test]
fn an_authentication_that_is_not_finished_is_refused_in_time() {
    let users =
        format!("[mqtt]\nconnect_timeout = \"1s\"\n[[user]]\nname = \"user\"\nscram = \"{PENCIL}\"\n");
    let node = Node::start(&Config::edge().closed().extra(&users));
    let peer = Peer { addr: node.addr(), version: Version::V5 };
    let (mut client, _) = challenged(peer, "user");
    refused(peer, &mut client, &[0x87]);
    // One that is done has all the time it wants.
    let mut client = proved(peer, &unique(), "user", "pencil").0;
    challenged_again(peer, &mut client, "user");
    let (mut late, _) = challenged(peer, "user");
    refused(peer, &mut late, &[0x87]);
    client.ping();
}
