//! MQTT over WebSocket.

use std::io::{Read, Write};

use ferrule_mqtt::{QoS, Version};
use ferrule_testkit::dial::{Channel, Dial, upgrade_request, ws_close_code, ws_frame};
use ferrule_testkit::wire::{Options, PATIENCE};
use ferrule_testkit::{Config, Node};

use crate::frames;

clause!(mqtt_6_0_0_1, "MQTT-6.0.0-1", [v3_1_1, v5], |broker| {
    let node = node();
    // A text frame ends it, at any time, whatever is in it.
    let connect = frames::connect(broker.version, "id", true, &[]);
    for (binary, text) in [(&connect[..], &b"\xC0\0"[..]), (&[], &connect), (&connect, b"")] {
        let mut socket = upgraded(&node);
        if !binary.is_empty() {
            socket.write_all(&ws_frame(0x82, binary)).unwrap();
        }
        socket.write_all(&ws_frame(0x81, text)).unwrap();
        let said = rest(&mut socket);
        assert_eq!(ws_close_code(&said), Some(1003), "{said:02x?}");
    }
    // Ours are binary; pings, which are no data, are answered.
    let mut socket = upgraded(&node);
    socket.write_all(&ws_frame(0x82, &connect)).unwrap();
    let mut first = [0; 3];
    socket.read_exact(&mut first).unwrap();
    assert_eq!((first[0], first[2]), (0x82, 0x20), "a CONNACK in a binary frame");
    let mut connack = vec![0; usize::from(first[1]) - 1];
    socket.read_exact(&mut connack).unwrap();
    socket.write_all(&ws_frame(0x89, b"still there?")).unwrap();
    socket.write_all(&ws_frame(0x82, &[0xC0, 0])).unwrap();
    let mut pong = [0; 14 + 4];
    socket.read_exact(&mut pong).unwrap();
    assert_eq!(pong, *b"\x8A\x0Cstill there?\x82\x02\xD0\0");
});
clause!(mqtt_6_0_0_2, "MQTT-6.0.0-2", [v3_1_1, v5], |broker| {
    let node = node();
    let peer = frames::Peer { addr: node.addr(), version: broker.version };
    let mut reader = peer.clean("reader");
    reader.subscribe("t", QoS::AtMostOnce);
    let mut packets = frames::connect(broker.version, "id", true, &[]);
    for n in 0..20_u8 {
        packets.extend(peer.publish_bytes(0x30, b"t", 0, &[], &[b'a' + n]));
    }
    packets.extend([0xE0, 0]);
    // All in one frame, a byte a frame, cut anywhere, in fragments with empty ones among them.
    for size in [packets.len(), 1, 3, 13, 64] {
        let mut socket = upgraded(&node);
        for chunk in packets.chunks(size) {
            socket.write_all(&ws_frame(0x82, chunk)).unwrap();
        }
        rest(&mut socket);
        for n in 0..20_u8 {
            assert_eq!(frames::next_publish(&mut reader).payload, [b'a' + n], "{size}");
        }
    }
    let mut socket = upgraded(&node);
    socket.write_all(&ws_frame(0x02, &packets[..7])).unwrap();
    for chunk in packets[7..].chunks(5) {
        socket.write_all(&ws_frame(0x00, chunk)).unwrap();
        socket.write_all(&ws_frame(0x00, b"")).unwrap();
    }
    socket.write_all(&ws_frame(0x80, b"")).unwrap();
    rest(&mut socket);
    for n in 0..20_u8 {
        assert_eq!(frames::next_publish(&mut reader).payload, [b'a' + n], "fragments");
    }
});
clause!(mqtt_6_0_0_3, "MQTT-6.0.0-3", [v3_1_1, v5], |broker| {
    let node = node();
    // Whoever does not offer it is not taken for a client.
    for offered in [None, Some("soap"), Some("MQTT"), Some("mqttx")] {
        let head = answer(&node, offered);
        assert!(head.starts_with("HTTP/1.1 4"), "{offered:?}: {head}");
    }
    Dial::tcp(node.listener(1)).ws().connect(&options(broker.version)).ping();
});
clause!(mqtt_6_0_0_4, "MQTT-6.0.0-4", [v3_1_1, v5], |_broker| {
    let node = node();
    for offered in ["mqtt", "soap, mqtt", "mqtt,mqttv3.1", "x ,mqtt , y"] {
        let head = answer(&node, Some(offered));
        assert!(head.starts_with("HTTP/1.1 101 "), "{offered:?}: {head}");
        let selected: Vec<&str> = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-protocol"))
            .map(|(_, value)| value.trim())
            .collect();
        assert_eq!(selected, ["mqtt"], "{offered:?}");
    }
});

/// A node with a second listener, for WebSocket.
fn node() -> Node {
    Node::start(
        &Config::edge().extra("[[listener]]\nbind = \"127.0.0.1:0\"\nprotocol = \"ws\"\nanonymous = true\n"),
    )
}

fn options(version: Version) -> Options {
    if version == Version::V5 { Options::v5("id") } else { Options::v4("id") }
}

/// The head of the answer to a request for an upgrade that offers these subprotocols.
fn answer(node: &Node, offered: Option<&str>) -> String {
    let mut socket = Dial::tcp(node.listener(1)).open_socket().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = String::from_utf8(upgrade_request("")).unwrap();
    let line = "Sec-WebSocket-Protocol: mqtt\r\n";
    assert!(request.contains(line));
    let other = offered.map_or(String::new(), |offered| format!("Sec-WebSocket-Protocol: {offered}\r\n"));
    socket.write_all(request.replace(line, &other).as_bytes()).unwrap();
    head(&mut socket)
}

/// A socket behind its upgrade.
fn upgraded(node: &Node) -> Box<dyn Channel> {
    let mut socket = Dial::tcp(node.listener(1)).open_socket().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&upgrade_request("")).unwrap();
    assert!(head(&mut socket).starts_with("HTTP/1.1 101 "));
    socket
}

fn head(socket: &mut Box<dyn Channel>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// All that comes until the node closes.
fn rest(socket: &mut Box<dyn Channel>) -> Vec<u8> {
    let mut said = Vec::new();
    match socket.read_to_end(&mut said) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            panic!("it does not close: {error}")
        }
        _ => said,
    }
}

#[test]
fn a_frame_without_a_mask_or_with_an_extension_ends_it() {
    let node = node();
    for wrong in [vec![0x82, 2, 0xC0, 0], ws_frame(0xC2, &[0xC0, 0]), ws_frame(0x83, b"x")] {
        let mut socket = upgraded(&node);
        socket.write_all(&ws_frame(0x82, &frames::connect(Version::V5, "id", true, &[]))).unwrap();
        socket.write_all(&wrong).unwrap();
        assert_eq!(ws_close_code(&rest(&mut socket)), Some(1002), "{wrong:02x?}");
    }
}
