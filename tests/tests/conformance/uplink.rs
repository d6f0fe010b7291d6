//! What an edge is to another broker: a client like any other.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use ferrule_mqtt::QoS;
use ferrule_testkit::node::{EDGE_ID, EDGE_PASSWORD};
use ferrule_testkit::wire::{Options, PATIENCE};
use ferrule_testkit::{Client, Config, Mosquitto, Node};
use ferrule_tests::EDGE_RULES;

use crate::frames::{PUBACK, ack, bytes, packet, peer, unique};

clause!(mqtt_7_0_0_1, "MQTT-7.0.0-1", [v3_1_1], |_broker| {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut edge = edge(server.local_addr().unwrap());
    let (mut socket, _) = server.accept().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // CONNECT comes first, and is one: no will, so none of its flags; fields in their order, and nothing behind them.
    let (first, body) = frame(&mut socket);
    let id = bytes(format!("ferrule-{EDGE_ID}").as_bytes());
    let fields = [&id[..], &bytes(EDGE_ID.as_bytes()), &bytes(EDGE_PASSWORD.as_bytes())].concat();
    assert_eq!((first, &body[..7], &body[10..]), (0x10, &b"\0\x04MQTT\x04"[..], &fields[..]));
    assert_eq!((body[7], &body[8..10]), (0xC2, &[0, 5][..]), "flags and keep alive");
    socket.write_all(&[0x20, 2, 0, 0]).unwrap();
    // Messages in their order, each under an identifier that is not in use.
    let mut device = Client::connect(edge.addr(), &Options::v4("d"));
    let mut open = HashSet::new();
    for n in 0..20_u8 {
        device.publish_nowait("factory/d", &[n], QoS::AtLeastOnce, false);
        let (first, body) = frame(&mut socket);
        assert_eq!(first, 0x32);
        let head = packet(0, &[&bytes(b"factory/d")]);
        let (topic, rest) = body.split_at(head.len() - 2);
        assert_eq!((topic, &rest[2..]), (&head[2..], &[n][..]));
        let id = u16::from_be_bytes([rest[0], rest[1]]);
        assert!(id != 0 && open.insert(id), "{id} of {open:?}");
        if n % 3 != 0 {
            socket.write_all(&ack(PUBACK, id)).unwrap();
            open.remove(&id);
        }
    }
    // A server that is gone is connected to again: with a new session what it did not acknowledge is a new message.
    drop(socket);
    let (mut socket, _) = server.accept().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(frame(&mut socket), (0x10, body));
    socket.write_all(&[0x20, 2, 0, 0]).unwrap();
    for n in (0..20_u8).step_by(3) {
        let (first, body) = frame(&mut socket);
        assert_eq!((first, body.last()), (0x32, Some(&n)));
        socket.write_all(&ack(PUBACK, u16::from_be_bytes([body[11], body[12]]))).unwrap();
    }
    // It leaves with DISCONNECT, and says nothing after it.
    edge.wait_drained(PATIENCE);
    edge.process().terminate(PATIENCE);
    assert_eq!(frame(&mut socket), (0xE0, Vec::new()));
    let end = socket.read(&mut [0]);
    assert!(matches!(&end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
});
clause!(mqtt_7_0_0_2, "MQTT-7.0.0-2", [v3_1_1], |broker| {
    // With a broker that knows nothing of us.
    let mosquitto = Mosquitto::start();
    let mut reader = Client::connect(mosquitto.addr(), &Options::v4("reader"));
    reader.subscribe("factory/#", QoS::AtLeastOnce);
    let edge = edge(mosquitto.addr());
    Client::connect(edge.addr(), &Options::v4("d")).publish("factory/d", b"x", QoS::AtLeastOnce, false);
    assert_eq!(reader.expect_message().text(), "x");
    // And with a client that says no more than it must.
    let peer = peer(broker);
    let topic = unique();
    let mut client = peer.clean("");
    client.subscribe(&topic, QoS::AtMostOnce);
    client.publish(&topic, b"", QoS::AtMostOnce, false);
    assert_eq!(client.expect_message().topic, topic);
});

/// An edge whose uplink speaks 3.1.1.
fn edge(to: SocketAddr) -> Node {
    Node::start(&Config::edge().rules(EDGE_RULES).uplink(to).env("FERRULE__UPLINK__VERSION", "4"))
}

/// The next packet's first byte, and what follows its length.
fn frame(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    socket.read_exact(&mut head).unwrap();
    assert!(head[1] < 0x80, "a short packet");
    let mut body = vec![0; usize::from(head[1])];
    socket.read_exact(&mut body).unwrap();
    (head[0], body)
}
