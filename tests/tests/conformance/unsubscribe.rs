//! UNSUBSCRIBE and UNSUBACK.

use ferrule_mqtt::{AckType, QoS};

use crate::common::Broker;
use crate::frames::{
    PUBCOMP, PUBREC, Peer, ack, next_ack, next_publish, next_unsuback, packet, peer, subscribe, unique,
};

clause!(mqtt_3_10_1_1, "MQTT-3.10.1-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let mut bytes = peer.unsubscribe_bytes(1, &["a"]);
    for first in [0xA0, 0xA3] {
        bytes[0] = first;
        peer.refuses(&bytes, &[0x81]);
    }
});
clause!(mqtt_3_10_3_1, "MQTT-3.10.3-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&packet(0xA2, &[&[0, 1], &peer.properties(&[]), &[0, 2, 0xC3, 0x28]]), &[0x81]);
});
clause!(mqtt_3_10_3_2, "MQTT-3.10.3-2", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&peer.unsubscribe_bytes(1, &[]), &[0x81, 0x82]);
});
clause!(mqtt_3_10_4_1, "MQTT-3.10.4-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let base = unique();
    let name = |rest: &str| format!("{base}/{rest}");
    let mut client = peer.clean(&unique());
    subscribe(peer, &mut client, &[(&name("+"), 1), (&name("b"), 1)]);
    let got = |client: &mut ferrule_testkit::Client| {
        for topic in ["b", "c"] {
            peer.publish(&name(topic), topic.as_bytes(), QoS::AtLeastOnce, false);
        }
        peer.texts(client)
    };
    unsubscribe(peer, &mut client, &[&name("#"), &name("B"), &name("b/")], &[0x11; 3]);
    assert_eq!(got(&mut client), ["b", "c"]);
    unsubscribe(peer, &mut client, &[&name("+")], &[0]);
    assert_eq!(got(&mut client), ["b"]);
});
clause!(mqtt_3_10_4_2, "MQTT-3.10.4-2", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    let mut client = peer.clean(&unique());
    for round in 0..20 {
        subscribe(peer, &mut client, &[(&topic, 1)]);
        unsubscribe(peer, &mut client, &[&topic], &[0]);
        peer.publish(&topic, b"", QoS::AtLeastOnce, false);
        assert_eq!(peer.rest(&mut client), [], "{round}");
    }
});
clause!(mqtt_3_10_4_3, "MQTT-3.10.4-3", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (topic, me) = (unique(), unique());
    let mut client = peer.persistent(&me);
    subscribe(peer, &mut client, &[(&topic, 2)]);
    peer.publish(&topic, b"2", QoS::ExactlyOnce, false);
    peer.publish(&topic, b"1", QoS::AtLeastOnce, false);
    let (two, one) = (next_publish(&mut client), next_publish(&mut client));
    unsubscribe(peer, &mut client, &[&topic], &[0]);
    client.send_raw(&ack(PUBREC, two.packet_id)).unwrap();
    assert_eq!(next_ack(&mut client, AckType::Pubrel), (two.packet_id, 0));
    client.send_raw(&ack(PUBCOMP, two.packet_id)).unwrap();
    client.ping();
    drop(client);
    let mut client = peer.back(&me);
    let again = next_publish(&mut client);
    assert_eq!((again.packet_id, again.dup, again.text()), (one.packet_id, true, "1"));
});
clause!(mqtt_3_10_4_4, "MQTT-3.10.4-4", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    subscribe(peer, &mut client, &[("a", 0)]);
    client.send_raw(&peer.unsubscribe_bytes(0x0102, &["a"])).unwrap();
    let expected: &[u8] = if peer.is_v5() { &[0xB0, 4, 1, 2, 0, 0] } else { &[0xB0, 2, 1, 2] };
    assert_eq!(client.recv(ferrule_testkit::wire::PATIENCE).unwrap().bytes(), expected);
});
clause!(mqtt_3_10_4_5, "MQTT-3.10.4-5", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    unsubscribe(peer, &mut peer.clean(&unique()), &[&unique()], &[0x11]);
});
clause!(mqtt_3_10_4_6, "MQTT-3.10.4-6", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (a, b) = (unique(), unique());
    let mut client = peer.clean(&unique());
    subscribe(peer, &mut client, &[(&a, 1), (&b, 1)]);
    unsubscribe(peer, &mut client, &[&a, &b, &unique()], &[0, 0, 0x11]);
    for topic in [&a, &b] {
        peer.publish(topic, b"", QoS::AtLeastOnce, false);
    }
    assert!(peer.frames(&mut client).is_empty(), "neither a second UNSUBACK nor a message");
});
clause!(mqtt_3_11_2_1, "MQTT-3.11.2-1", [v5], bare);
clause!(mqtt_3_11_2_2, "MQTT-3.11.2-2", [v5], bare);
clause!(mqtt_3_11_3_1, "MQTT-3.11.3-1", [v5], codes);
clause!(mqtt_3_11_3_2, "MQTT-3.11.3-2", [v5], codes);

/// UNSUBSCRIBE and its UNSUBACK: with these codes in MQTT 5, without any before.
fn unsubscribe(peer: Peer, client: &mut ferrule_testkit::Client, filters: &[&str], codes: &[u8]) {
    let id = client.next_id();
    client.send_raw(&peer.unsubscribe_bytes(id, filters)).unwrap();
    let codes = if peer.is_v5() { codes.to_vec() } else { Vec::new() };
    assert_eq!(next_unsuback(client), (id, codes));
}

/// To a client that takes short packets alone: nothing but the codes.
fn bare(broker: &Broker) {
    let peer = peer(broker);
    let (mut client, _) = peer.connect_session(&unique(), true, &[0x27, 0, 0, 0, 32]);
    client.send_raw(&peer.unsubscribe_bytes(7, &["none"])).unwrap();
    assert_eq!(client.recv(ferrule_testkit::wire::PATIENCE).unwrap().bytes(), [0xB0, 4, 0, 7, 0, 0x11]);
}

fn codes(broker: &Broker) {
    let peer = peer(broker);
    let (a, b) = (unique(), unique());
    let mut client = peer.clean(&unique());
    subscribe(peer, &mut client, &[(&a, 0), (&b, 0)]);
    unsubscribe(peer, &mut client, &[&a, &unique(), &b, "$closed/t", &unique()], &[0, 0x11, 0, 0x11, 0x11]);
}
