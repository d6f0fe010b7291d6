//! SUBSCRIBE, SUBACK, and what a subscription then brings.

use ferrule_mqtt::{QoS, SubscribeOptions};

use crate::common::Broker;
use crate::frames::{
    self, EXPIRY, Peer, Will, next_publish, next_publish_frame, next_suback, next_unsuback, packet, peer,
    subscribe, unique,
};

/// A filter that nobody may subscribe to who has no list.
const FORBIDDEN: &str = "$closed/t";

clause!(mqtt_2_3_1_7, "MQTT-2.3.1-7", [v3_1_1], identifiers_are_echoed);
clause!(mqtt_2_2_1_6, "MQTT-2.2.1-6", [v5], identifiers_are_echoed);
clause!(mqtt_3_8_4_2, "MQTT-3.8.4-2", [v3_1_1, v5], identifiers_are_echoed);
clause!(mqtt_3_2_2_10, "MQTT-3.2.2-10", [v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    for options in 0..3 {
        let codes = subscribe(peer, &mut client, &[(&unique(), options)]);
        assert!(codes[0] <= options, "{codes:02x?}");
    }
});
clause!(mqtt_3_3_5_1, "MQTT-3.3.5-1", [v3_1_1], overlapping_come_at_the_highest);
clause!(mqtt_3_3_4_2, "MQTT-3.3.4-2", [v5], overlapping_come_at_the_highest);
clause!(mqtt_3_3_4_3, "MQTT-3.3.4-3", [v5], identifiers_come_along);
clause!(mqtt_3_3_4_4, "MQTT-3.3.4-4", [v5], identifiers_come_along);
clause!(mqtt_3_3_4_5, "MQTT-3.3.4-5", [v5], |broker| {
    // A shared subscription has a copy of its own beside that of a plain one.
    let peer = peer(broker);
    let topic = unique();
    let mut client = peer.clean(&unique());
    for (id, filter) in [(5, topic.clone()), (6, format!("$share/{}/{topic}", unique()))] {
        client.send_raw(&peer.subscribe_bytes(id.into(), &[0x0B, id], &[(&filter, 0)])).unwrap();
        next_suback(&mut client);
    }
    peer.publish(&topic, b"", QoS::AtMostOnce, false);
    let mut ids = [identifiers(&mut client), identifiers(&mut client)];
    ids.sort();
    assert_eq!(ids, [[5], [6]]);
});
clause!(mqtt_3_8_1_1, "MQTT-3.8.1-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let mut bytes = peer.subscribe_bytes(1, &[], &[("a", 0)]);
    for first in [0x80, 0x83] {
        bytes[0] = first;
        peer.refuses(&bytes, &[0x81]);
    }
});
clause!(mqtt_3_8_3_1, "MQTT-3.8.3-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let filters: &[u8] = &[0, 1, b'a', 0, 0, 2, 0xC3, 0x28, 0];
    peer.refuses(&packet(0x82, &[&[0, 1], &peer.properties(&[]), filters]), &[0x81]);
});
clause!(mqtt_3_8_3_2_of_3, "MQTT-3.8.3-2", [v3_1_1], |broker| {
    let peer = peer(broker);
    let filter = format!("{}/+", unique());
    assert_eq!(subscribe(peer, &mut peer.clean(&unique()), &[("#", 0), (&filter, 1)]), [0, 1]);
});
clause!(mqtt_3_8_3_2, "MQTT-3.8.3-2", [v5], no_filter);
clause!(mqtt_3_8_3_3_of_3, "MQTT-3.8.3-3", [v3_1_1], no_filter);
clause!(mqtt_3_8_3_3, "MQTT-3.8.3-3", [v5], |broker| {
    let peer = peer(broker);
    let (me, a, b) = (unique(), unique(), unique());
    let mut client = peer.persistent(&me);
    assert_eq!(subscribe(peer, &mut client, &[(&a, 0x05), (&b, 0x01)]), [1, 1]);
    client.publish(&a, b"own", QoS::AtLeastOnce, false);
    client.publish(&b, b"own to b", QoS::AtLeastOnce, false);
    peer.publish(&a, b"another's", QoS::AtLeastOnce, false);
    assert_eq!(peer.texts(&mut client), ["own to b", "another's"]);
    drop(client);
    // Over a new connection to the session it is the same client.
    let mut client = peer.back(&me);
    client.publish(&a, b"own", QoS::AtLeastOnce, false);
    assert_eq!(peer.rest(&mut client), []);
    // Its will is its own, too: queued while it is away, and when its next connection has taken over.
    let mut reader = peer.clean(&unique());
    subscribe(peer, &mut reader, &[(&a, 0)]);
    let will = Will { clean: false, connect: EXPIRY, qos: 1, ..Will::on(&a) };
    drop(will.connect(peer, &me));
    assert_eq!(reader.expect_message().text(), "will");
    let _first = will.connect(peer, &me);
    let mut client = peer.back(&me);
    assert_eq!(reader.expect_message().text(), "will");
    assert_eq!(peer.rest(&mut client), []);
});
clause!(mqtt_3_8_3_4, "MQTT-3.8.3-4", [v3_1_1], |broker| {
    let peer = peer(broker);
    for options in [0x03, 0x04, 0x80] {
        peer.refuses(&peer.subscribe_bytes(1, &[], &[("a", options)]), &[]);
    }
});
clause!(mqtt_3_8_3_4_of_5, "MQTT-3.8.3-4", [v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&peer.subscribe_bytes(1, &[], &[("$share/g/a", 0x05)]), &[0x82]);
});
clause!(mqtt_3_8_3_5, "MQTT-3.8.3-5", [v5], |broker| {
    let peer = peer(broker);
    for options in [0x40, 0x80] {
        peer.refuses(&peer.subscribe_bytes(1, &[], &[("a", options)]), &[0x81]);
    }
    for options in [0x03, 0x30] {
        peer.refuses(&peer.subscribe_bytes(1, &[], &[("a", options)]), &[0x81, 0x82]);
    }
});
clause!(mqtt_3_8_4_1, "MQTT-3.8.4-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    for filter in [unique().as_str(), FORBIDDEN] {
        client.send_raw(&peer.subscribe_bytes(300, &[], &[(filter, 0)])).unwrap();
        let frames = peer.frames(&mut client);
        assert_eq!(frames.iter().map(|frame| frame.bytes()[0]).collect::<Vec<_>>(), [0x90], "{filter}");
    }
});
clause!(mqtt_3_8_4_3_of_3, "MQTT-3.8.4-3", [v3_1_1], |broker| {
    replaces(broker);
    replacing_loses_nothing(broker);
});
clause!(mqtt_3_8_4_3, "MQTT-3.8.4-3", [v5], replaces);
clause!(mqtt_3_8_4_4, "MQTT-3.8.4-4", [v5], replacing_loses_nothing);
clause!(mqtt_3_8_4_4_of_3, "MQTT-3.8.4-4", [v3_1_1], several_filters);
clause!(mqtt_3_8_4_5, "MQTT-3.8.4-5", [v5], several_filters);
clause!(mqtt_3_8_4_5_of_3, "MQTT-3.8.4-5", [v3_1_1], a_code_for_each);
clause!(mqtt_3_8_4_6, "MQTT-3.8.4-6", [v5], a_code_for_each);
clause!(mqtt_3_8_4_7, "MQTT-3.8.4-7", [v5], a_code_for_each);
clause!(mqtt_3_9_3_1, "MQTT-3.9.3-1", [v3_1_1, v5], a_code_for_each);
clause!(mqtt_3_9_3_2, "MQTT-3.9.3-2", [v3_1_1, v5], codes_are_of_the_table);
clause!(mqtt_3_8_4_6_of_3, "MQTT-3.8.4-6", [v3_1_1], the_lower_qos);
clause!(mqtt_3_8_4_8, "MQTT-3.8.4-8", [v5], the_lower_qos);
clause!(mqtt_3_9_2_1, "MQTT-3.9.2-1", [v5], bare_refusal);
clause!(mqtt_3_9_2_2, "MQTT-3.9.2-2", [v5], bare_refusal);

fn identifiers_are_echoed(broker: &Broker) {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    let two =
        [peer.subscribe_bytes(0xABCD, &[], &[("a", 0)]), peer.subscribe_bytes(1, &[], &[(FORBIDDEN, 0)])];
    client.send_raw(&two.concat()).unwrap();
    assert_eq!((next_suback(&mut client).0, next_suback(&mut client).0), (0xABCD, 1));
    client
        .send_raw(&[peer.unsubscribe_bytes(2, &["a"]), peer.unsubscribe_bytes(0xFFFF, &["b"])].concat())
        .unwrap();
    assert_eq!((next_unsuback(&mut client).0, next_unsuback(&mut client).0), (2, 0xFFFF));
}

fn overlapping_come_at_the_highest(broker: &Broker) {
    let peer = peer(broker);
    let base = unique();
    let mut client = peer.clean(&unique());
    let filters = [format!("{base}/#"), format!("{base}/+"), format!("{base}/b")];
    subscribe(peer, &mut client, &[(&filters[0], 0), (&filters[1], 2), (&filters[2], 1)]);
    peer.publish(&filters[2], b"", QoS::ExactlyOnce, false);
    let got = peer.rest(&mut client);
    assert_eq!(got.iter().map(|message| message.qos).max(), Some(QoS::ExactlyOnce));
    assert_eq!(got.len(), 1, "one copy");
}

fn identifiers_come_along(broker: &Broker) {
    let peer = peer(broker);
    let (me, base) = (unique(), unique());
    let mut client = peer.persistent(&me);
    for (id, filter) in [(1, "#"), (2, "b"), (0, "+"), (3, "c")] {
        let (own, with) = (format!("{base}/{filter}"), [0x0B, id]);
        let properties = if id == 0 { &[][..] } else { &with };
        client.send_raw(&peer.subscribe_bytes(9, properties, &[(&own, 1)])).unwrap();
        next_suback(&mut client);
    }
    let plain = unique();
    client.subscribe(&plain, QoS::AtLeastOnce);
    let publish = || {
        for topic in [&format!("{base}/b"), &plain] {
            peer.publish(topic, b"", QoS::AtLeastOnce, false);
        }
    };
    publish();
    assert_eq!(identifiers(&mut client), [1, 2]);
    assert!(identifiers(&mut client).is_empty());
    client.disconnect();
    publish();
    // The first two were not acknowledged: they come again, as they were.
    let mut client = peer.back(&me);
    for _ in 0..2 {
        assert_eq!(identifiers(&mut client), [1, 2]);
        assert!(identifiers(&mut client).is_empty());
    }
}

/// The subscription identifiers of the next PUBLISH, in order of their number.
fn identifiers(client: &mut ferrule_testkit::Client) -> Vec<u32> {
    let frame = next_publish_frame(client);
    let mut ids: Vec<u32> = frames::publish(&frame).properties.subscription_identifiers().collect();
    ids.sort_unstable();
    ids
}

fn no_filter(broker: &Broker) {
    let peer = peer(broker);
    peer.refuses(&peer.subscribe_bytes(1, &[], &[]), &[0x81, 0x82]);
}

fn replaces(broker: &Broker) {
    let peer = peer(broker);
    let topic = unique();
    let mut client = peer.clean(&unique());
    let options = if peer.is_v5() { 0x0A } else { 0x02 }; // retain as published
    for (id, options) in [(1, 0), (2, options)] {
        client.send_raw(&peer.subscribe_bytes(id.into(), &[0x0B, id], &[(&topic, options)])).unwrap();
        next_suback(&mut client);
    }
    peer.publish(&topic, b"x", QoS::ExactlyOnce, true);
    let frame = next_publish_frame(&mut client);
    let publish = frames::publish(&frame);
    assert_eq!((publish.qos, publish.retain), (QoS::ExactlyOnce, peer.is_v5()));
    if peer.is_v5() {
        assert!(publish.properties.subscription_identifiers().eq([2]));
    }
    client.send_raw(&frames::ack(frames::PUBREC, publish.packet_id)).unwrap();
    assert_eq!(peer.rest(&mut client), [], "one copy");
}

fn replacing_loses_nothing(broker: &Broker) {
    let peer = peer(broker);
    let topic = unique();
    let filter = format!("{topic}/#");
    peer.publish(&format!("{topic}/kept"), b"kept", QoS::AtLeastOnce, true);
    let mut client = peer.clean(&unique());
    let mut writer = peer.clean(&unique());
    let mut acknowledged = 1;
    for round in 0..50_u16 {
        subscribe(peer, &mut client, &[(&filter, 1)]);
        for n in 0..20 {
            writer.publish_nowait(&topic, (round * 20 + n).to_string().as_bytes(), QoS::AtLeastOnce, false);
        }
        // A hundred out at most: fewer than Receive Maximum.
        let (sent, out) = (20 * (round + 1), if round == 49 { 0 } else { 100 });
        while acknowledged <= sent.saturating_sub(out) {
            writer.expect_ack(ferrule_mqtt::AckType::Puback, acknowledged);
            acknowledged += 1;
        }
    }
    let (kept, numbered): (Vec<_>, Vec<_>) =
        peer.rest(&mut client).into_iter().partition(|message| message.text() == "kept");
    assert_eq!(kept.len(), 50, "the retained message comes with each");
    assert!(kept.iter().all(|message| message.retain));
    let numbers: Vec<_> = numbered.iter().map(|message| message.text().to_owned()).collect();
    assert_eq!(numbers, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
}

fn several_filters(broker: &Broker) {
    let peer = peer(broker);
    let (a, b) = (unique(), unique());
    let mut client = peer.clean(&unique());
    client.send_raw(&peer.subscribe_bytes(4, &[], &[(&a, 0), (&format!("{b}/+"), 1), (&a, 2)])).unwrap();
    peer.publish(&unique(), b"", QoS::AtMostOnce, false);
    assert_eq!(next_suback(&mut client), (4, vec![0, 1, 2]));
    for topic in [&a, &format!("{b}/x")] {
        peer.publish(topic, b"", QoS::ExactlyOnce, false);
    }
    let frames = peer.frames(&mut client);
    assert!(frames.iter().all(|frame| frame.bytes()[0] != 0x90), "one SUBACK");
    let got: Vec<_> =
        frames::messages(&frames).into_iter().map(|message| (message.topic, message.qos)).collect();
    assert_eq!(got, [(a, QoS::ExactlyOnce), (format!("{b}/x"), QoS::AtLeastOnce)]);
}

/// A refusal's code in this version.
fn refusal(peer: Peer, code: u8) -> u8 {
    if peer.is_v5() { code } else { 0x80 }
}

fn a_code_for_each(broker: &Broker) {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    let filters: Vec<String> =
        (0..100).map(|n| if n % 4 == 3 { FORBIDDEN.to_owned() } else { format!("c/{n}") }).collect();
    let asked: Vec<(&str, u8)> = filters
        .iter()
        .zip([0, 2, 1, 0].iter().cycle())
        .map(|(filter, qos)| (filter.as_str(), *qos))
        .collect();
    let expected: Vec<u8> = [0, 2, 1, refusal(peer, 0x87)].iter().copied().cycle().take(100).collect();
    assert_eq!(subscribe(peer, &mut client, &asked), expected);
}

fn codes_are_of_the_table(broker: &Broker) {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    let long = "l".repeat(2000);
    let asked = [("a", 0), ("a", 1), ("a", 2), (FORBIDDEN, 0), (&long, 0), ("$share/g/a", 1)];
    let expected = [0, 1, 2, refusal(peer, 0x87), refusal(peer, 0x8F), 1];
    assert_eq!(subscribe(peer, &mut client, &asked), expected);
    // Over the bound of subscriptions (1000).
    let filters: Vec<String> = (0..1001).map(|n| format!("bound/{n}")).collect();
    let many: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 0)).collect();
    assert_eq!(subscribe(peer, &mut client, &many)[1000], refusal(peer, 0x97));
}

fn the_lower_qos(broker: &Broker) {
    let peer = peer(broker);
    for granted in frames::ALL_QOS {
        let topic = unique();
        let mut client = peer.clean(&unique());
        client.subscribe_with(&topic, SubscribeOptions::new(granted));
        for published in frames::ALL_QOS {
            peer.publish(&topic, b"", published, false);
            assert_eq!(next_publish(&mut client).qos, published.min(granted));
        }
    }
}

fn bare_refusal(broker: &Broker) {
    let peer = peer(broker);
    let (mut client, _) = peer.connect_session(&unique(), true, &[0x27, 0, 0, 0, 32]);
    client.send_raw(&peer.subscribe_bytes(7, &[], &[(FORBIDDEN, 0)])).unwrap();
    assert_eq!(client.recv(ferrule_testkit::wire::PATIENCE).unwrap().bytes(), [0x90, 4, 0, 7, 0, 0x87]);
}
