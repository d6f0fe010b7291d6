//! DISCONNECT, from either side.

use ferrule_mqtt::{Packet, PacketType, QoS};
use ferrule_testkit::wire::{Frame, PATIENCE};
use ferrule_testkit::{Client, Config, Node};

use crate::common::Broker;
use crate::frames::{self, CLEAN, EXPIRY, Peer, Will, bytes, connect_of, packet, peer, property, unique};

clause!(mqtt_3_14_0_1, "MQTT-3.14.0-1", [v5], |broker| {
    let peer = peer(broker);
    let id = unique();
    // `refusal` takes a CONNACK and nothing else: neither for what is no CONNECT, nor for one that is refused, nor behind one.
    for first in [
        vec![0xC0, 0],
        vec![0xF0, 0],
        vec![0x00, 0],
        vec![0x10, 0xFF, 0xFF, 0xFF, 0xFF],
        connect_of(peer.version, CLEAN | 1, 0, &[], &[&bytes(b"id")]),
        frames::connect(peer.version, &id, true, &property(0x15, b"no such method")),
        [frames::connect(peer.version, &id, true, &[0x27, 0, 0, 0, 5]), vec![0x00, 0]].concat(),
        [frames::connect(peer.version, &id, true, &[0x21, 0, 0]), vec![0x00, 0]].concat(),
    ] {
        peer.refusal(&first);
    }
});
clause!(mqtt_3_14_1_1, "MQTT-3.14.1-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtLeastOnce);
    for flags in 1..16 {
        // It is no DISCONNECT: the will stands.
        let mut client = Will::on(&topic).connect(peer, &unique());
        client.send_raw(&[0xE0 | flags, 0]).unwrap();
        peer.closed(&mut client, &[0x81], &[0xE0 | flags, 0]);
        assert_eq!(frames::next_publish(&mut reader).text(), "will");
    }
});
clause!(mqtt_3_14_2_1, "MQTT-3.14.2-1", [v5], |broker| {
    let peer = peer(broker);
    for (frame, code) in reasons(peer) {
        assert_eq!(disconnect(&frame).reason.0, code);
        assert!(disconnect(&frame).reason.allowed_in(PacketType::Disconnect));
    }
    // And the client's.
    for code in [0x01, 0x10, 0x18, 0x85, 0x91, 0xA3, 0xFF] {
        peer.refuses(&packet(0xE0, &[&[code]]), &[0x81, 0x82]);
    }
    for code in [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99] {
        let mut client = peer.clean(&unique());
        client.send_raw(&packet(0xE0, &[&[code, 0]])).unwrap();
        peer.closed_silently(&mut client);
    }
});
clause!(mqtt_3_14_2_2, "MQTT-3.14.2-2", [v5], |broker| {
    for (frame, _) in reasons(peer(broker)) {
        assert_eq!(disconnect(&frame).properties.session_expiry_interval(), None);
    }
});
clause!(mqtt_3_14_2_3, "MQTT-3.14.2-3", [v5], |broker| short(peer(broker)));
clause!(mqtt_3_14_2_4, "MQTT-3.14.2-4", [v5], |broker| short(peer(broker)));
clause!(mqtt_3_14_4_2_of_3, "MQTT-3.14.4-2", [v3_1_1], |broker| nothing_after(peer(broker)));
clause!(mqtt_3_14_4_1, "MQTT-3.14.4-1", [v5], |broker| {
    let peer = peer(broker);
    nothing_after(peer);
    // Nor after the server's: answers that were due are before it.
    for ask in [
        vec![0x00, 0],
        frames::connect(peer.version, "x", true, &[]),
        peer.subscribe_bytes(0, &[], &[("t", 0)]),
    ] {
        let mut client = peer.clean(&unique());
        client.send_raw(&[&[0xC0, 0][..], &ask, &[0xC0, 0]].concat()).unwrap();
        assert_eq!(client.recv(PATIENCE).unwrap().bytes(), [0xD0, 0]);
        disconnect(&client.recv(PATIENCE).unwrap());
        peer.closed_silently(&mut client);
    }
});
clause!(mqtt_3_14_4_2, "MQTT-3.14.4-2", [v5], |broker| {
    // `reasons` waits for the end behind each.
    assert!(reasons(peer(broker)).len() > 5);
});
clause!(mqtt_3_14_4_3, "MQTT-3.14.4-3", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtLeastOnce);
    let mut leaves = vec![vec![0xE0, 0]];
    if peer.is_v5() {
        leaves.extend([vec![0xE0, 1, 0], vec![0xE0, 2, 0, 0], packet(0xE0, &[&[0, 5, 0x11, 0, 0, 0, 9]])]);
    }
    for leave in leaves {
        let will = Will { clean: false, connect: EXPIRY, ..Will::on(&topic) };
        let me = unique();
        let mut client = will.connect(peer, &me);
        client.send_raw(&leave).unwrap();
        peer.closed_silently(&mut client);
        // Nor when its session ends.
        peer.clean(&me);
    }
    assert_eq!(peer.rest(&mut reader), []);
});

fn disconnect(frame: &Frame) -> ferrule_mqtt::Disconnect<'_> {
    match frame.packet() {
        Packet::Disconnect(disconnect) => disconnect,
        other => panic!("wanted a DISCONNECT, got {other:?}"),
    }
}

/// What the server says when it ends a connection: DISCONNECT, and nothing after it.
fn said(peer: Peer, client: &mut Client) -> Frame {
    let frame = client.expect("DISCONNECT", |packet| matches!(packet, Packet::Disconnect(_)));
    peer.closed_silently(client);
    frame
}

/// Every reason that the server has here to end a connection, its DISCONNECT, and the code that it should have.
fn reasons(peer: Peer) -> Vec<(Frame, u8)> {
    let mut said_for = Vec::new();
    for (ask, code) in [
        (vec![0x00, 0], 0x81),
        (vec![0xC1, 0], 0x81),
        (vec![0x20, 3, 0, 0, 0], 0x82),
        (vec![0xF0, 0], 0x82),
        (peer.publish_bytes(0x32, b"t", 0, &[], b""), 0x82),
        (frames::connect(peer.version, "x", true, &[]), 0x82),
        (peer.publish_bytes(0x30, b"t", 0, &[0x23, 0xFF, 0xFF], b""), 0x94),
        (vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F], 0x95),
    ] {
        let mut client = peer.clean(&unique());
        client.send_raw(&ask).unwrap();
        said_for.push((said(peer, &mut client), code));
    }
    let me = unique();
    let mut first = peer.clean(&me);
    let _second = peer.clean(&me);
    said_for.push((said(peer, &mut first), 0x8E));
    let mut node = Node::start(&Config::edge());
    let other = Peer { addr: node.addr(), ..peer };
    let mut client = other.clean("id");
    node.process().terminate(PATIENCE);
    said_for.push((said(peer, &mut client), 0x8B));
    said_for
}

/// To a client that takes short packets alone: why is said where it fits to the byte, and else the code alone.
fn short(peer: Peer) {
    let told = |maximum: usize| {
        let maximum = u32::try_from(maximum).unwrap().to_be_bytes();
        let connect = [&[0x27][..], &maximum].concat();
        let mut client = peer.connect_session(&unique(), true, &connect).0;
        client.send_raw(&peer.subscribe_bytes(0, &[], &[("t", 0)])).unwrap();
        said(peer, &mut client).bytes().to_vec()
    };
    let whole = told(1000);
    assert!(whole.len() > 5 && whole[4] == 0x1F, "a Reason String: {whole:02x?}");
    assert_eq!(told(whole.len()), whole);
    assert_eq!(told(whole.len() - 1), [0xE0, 1, 0x82]);
}

/// What a client sends behind its DISCONNECT is not processed, and the server closes.
fn nothing_after(peer: Peer) {
    let (topic, me) = (unique(), unique());
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let mut client = peer.persistent(&me);
    let mut sent = vec![0xE0, 0];
    sent.extend(peer.publish_bytes(0x30, topic.as_bytes(), 0, &[], b"x"));
    sent.extend(peer.subscribe_bytes(1, &[], &[(&topic, 1)]));
    sent.extend([0xC0, 0]);
    client.send_raw(&sent).unwrap();
    peer.closed_silently(&mut client);
    peer.publish(&topic, b"fence", QoS::AtLeastOnce, false);
    assert_eq!(peer.texts(&mut reader), ["fence"]);
    assert_eq!(peer.rest(&mut peer.back(&me)), [], "subscribed after its DISCONNECT");
}

// === what the numbers do not cover ===

#[test]
fn the_expiry_is_changed_by_disconnect() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    let leave = |id: &str, connect: &[u8], expiry: [u8; 4]| {
        let mut client = peer.connect_session(id, false, connect).0;
        client.send_raw(&packet(0xE0, &[&[0, 5, 0x11], &expiry])).unwrap();
        client
    };
    // To nothing: it ends at once. Longer: it lasts. From nothing it cannot be made longer, but nothing stays nothing.
    let (ended, lasting, none) = (unique(), unique(), unique());
    peer.closed_silently(&mut leave(&ended, EXPIRY, [0; 4]));
    assert!(!peer.connect_session(&ended, false, &[]).1);
    peer.closed_silently(&mut leave(&lasting, &[0x11, 0, 0, 0, 1], [0, 0, 0x0E, 0x10]));
    peer.closed_silently(&mut leave(&none, &[], [0; 4]));
    peer.closed(&mut leave(&none, &[], [0, 0, 0, 1]), &[0x82], b"DISCONNECT with an expiry");
    assert!(!peer.connect_session(&none, false, &[]).1);
    // The clock alone makes what it was before pass.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    peer.back(&lasting);
}

#[test]
fn a_disconnect_that_is_wrong_ends_the_connection_as_an_error() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    for (wrong, reasons) in [
        (packet(0xE0, &[&[0, 5, 0x11, 0]]), &[0x81][..]),
        (packet(0xE0, &[&[0, 0, 0]]), &[0x81]),
        (packet(0xE0, &[&[0, 10, 0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1]]), &[0x82]),
        (packet(0xE0, &[&[0, 3, 0x23, 0, 1]]), &[0x81, 0x82]),
    ] {
        peer.refuses(&wrong, reasons);
    }
}
