//! Sessions: what is kept, for whom, how long; and what is sent again.

use ferrule_mqtt::{AckType, QoS, Version};
use ferrule_testkit::wire::Message;
use ferrule_testkit::{Client, Config, Node};

use crate::common::Broker;
use crate::frames::{
    self, ALL_QOS, EXPIRY, PUBACK, PUBCOMP, PUBREC, Peer, Will, ack, next_ack, next_publish,
    next_publish_frame, peer, unique,
};

clause!(mqtt_3_1_2_4_of_3, "MQTT-3.1.2-4", [v3_1_1], |broker| {
    let peer = peer(broker);
    made_and_resumed(peer, &unique());
    kept(broker);
});
clause!(mqtt_3_1_2_4, "MQTT-3.1.2-4", [v5], |broker| discarded(peer(broker)));
clause!(mqtt_3_1_2_5_of_3, "MQTT-3.1.2-5", [v3_1_1], |broker| {
    let peer = peer(broker);
    let (me, topic) = (unique(), unique());
    let mut away = peer.persistent(&me);
    away.subscribe(&topic, QoS::ExactlyOnce);
    away.disconnect();
    for (qos, text) in [(QoS::AtLeastOnce, "1"), (QoS::ExactlyOnce, "2")] {
        peer.publish(&topic, text.as_bytes(), qos, false);
    }
    let got: Vec<(String, QoS)> = peer
        .rest(&mut peer.back(&me))
        .iter()
        .map(|message| (message.text().to_owned(), message.qos))
        .collect();
    assert_eq!(got, [("1".to_owned(), QoS::AtLeastOnce), ("2".to_owned(), QoS::ExactlyOnce)]);
});
clause!(mqtt_3_1_2_5, "MQTT-3.1.2-5", [v5], |broker| made_and_resumed(peer(broker), &unique()));
clause!(mqtt_3_1_2_6_of_3, "MQTT-3.1.2-6", [v3_1_1], |broker| discarded(peer(broker)));
clause!(mqtt_3_1_2_6, "MQTT-3.1.2-6", [v5], |broker| {
    let peer = peer(broker);
    let me = unique();
    let (mut client, present) = peer.connect_session(&me, false, &[]);
    assert!(!present);
    works(peer, &mut client);
    made_and_resumed(peer, &unique());
});
clause!(mqtt_3_1_2_23, "MQTT-3.1.2-23", [v5], kept);
clause!(mqtt_3_1_3_2, "MQTT-3.1.3-2", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    // Ids that differ little, with a subscription each.
    let base = unique();
    let ids =
        [format!("{base}a"), format!("{base}A"), format!("{base}a "), format!("{base}/a"), base.clone()];
    for id in &ids {
        let (mut client, present) = peer.connect_session(id, false, EXPIRY);
        assert!(!present, "{id:?}");
        client.subscribe(&format!("of/{id}"), QoS::AtLeastOnce);
    }
    for id in &ids {
        peer.publish(&format!("of/{id}"), id.as_bytes(), QoS::AtLeastOnce, false);
    }
    for id in &ids {
        assert_eq!(peer.texts(&mut peer.back(id)), [id.as_str()]);
    }
});
clause!(mqtt_3_1_4_2, "MQTT-3.1.4-2", [v3_1_1], |broker| taken_over(peer(broker)));
clause!(mqtt_3_1_4_3, "MQTT-3.1.4-3", [v5], |broker| taken_over(peer(broker)));
clause!(mqtt_3_1_4_3_of_3, "MQTT-3.1.4-3", [v3_1_1], clean_or_not);
clause!(mqtt_3_1_4_4, "MQTT-3.1.4-4", [v5], clean_or_not);
clause!(mqtt_3_3_2_5, "MQTT-3.3.2-5", [v5], |broker| {
    let peer = peer(broker);
    let (me, topic) = (unique(), unique());
    let mut away = peer.persistent(&me);
    away.subscribe(&topic, QoS::AtLeastOnce);
    away.disconnect();
    let mut writer = peer.clean(&unique());
    for (text, retain, expiry_s) in [("gone", 0, 1), ("kept", 0, 100), ("gone", 1, 1)] {
        let properties = [0x02, 0, 0, 0, expiry_s];
        writer
            .send_raw(&peer.publish_bytes(0x32 | retain, topic.as_bytes(), 1, &properties, text.as_bytes()))
            .unwrap();
        writer.expect_ack(AckType::Puback, 1);
    }
    // The clock alone makes it expire.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(peer.texts(&mut peer.back(&me)), ["kept"]);
    let mut late = peer.clean(&unique());
    late.subscribe(&topic, QoS::AtLeastOnce);
    assert_eq!(peer.rest(&mut late), [], "retained");
});
clause!(mqtt_3_3_2_6, "MQTT-3.3.2-6", [v5], |broker| {
    let peer = peer(broker);
    let (me, topic) = (unique(), unique());
    let mut away = peer.persistent(&me);
    away.subscribe(&topic, QoS::AtLeastOnce);
    away.disconnect();
    let mut here = peer.clean(&unique());
    here.subscribe(&topic, QoS::AtLeastOnce);
    let mut writer = peer.clean(&unique());
    let properties = [0x02, 0, 0, 0x10, 0];
    writer.send_raw(&peer.publish_bytes(0x33, topic.as_bytes(), 1, &properties, b"x")).unwrap();
    writer.expect_ack(AckType::Puback, 1);
    let left = |reader: &mut Client| {
        let frame = next_publish_frame(reader);
        let left = frames::publish(&frame).properties.message_expiry_interval();
        left.expect("what is left of 4,096 s")
    };
    assert!(left(&mut here) > 4_000, "nothing has passed yet");
    // The clock alone takes from it.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mut late = peer.clean(&unique());
    late.subscribe(&topic, QoS::AtLeastOnce);
    for reader in [&mut peer.back(&me), &mut late] {
        assert!((3_000..4_096).contains(&left(reader)));
    }
});
clause!(mqtt_4_1_0_1_of_3, "MQTT-4.1.0-1", [v3_1_1], |broker| {
    kept_while_open(peer(broker));
    kept(broker);
});
clause!(mqtt_4_1_0_2_of_3, "MQTT-4.1.0-2", [v3_1_1], |broker| kept_while_open(peer(broker)));
clause!(mqtt_4_1_0_1, "MQTT-4.1.0-1", [v5], |broker| {
    let peer = peer(broker);
    kept_while_open(peer);
    // An expiry that passes while the connection is open means nothing; the clock alone makes it pass.
    let (me, topic, expiry) = (unique(), unique(), [0x11, 0, 0, 0, 1]);
    let mut client = peer.connect_session(&me, false, &expiry).0;
    client.subscribe(&topic, QoS::AtLeastOnce);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
    assert_eq!(next_publish(&mut client).text(), "x");
    let (mut again, present) = peer.connect_session(&me, false, &expiry);
    assert!(present);
    assert_eq!(next_publish(&mut again).text(), "x");
});
clause!(mqtt_4_1_0_2, "MQTT-4.1.0-2", [v5], |broker| {
    let peer = peer(broker);
    // A will that waits for the session's end says when that is.
    let (topic, base) = (unique(), unique());
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtLeastOnce);
    for (connect, leave) in [
        (&[0x11, 0, 0, 0, 1][..], &[0xE0, 1, 0x04][..]),
        (EXPIRY, &[0xE0, 7, 0x04, 5, 0x11, 0, 0, 0, 1]),
        (EXPIRY, &[0xE0, 7, 0x04, 5, 0x11, 0, 0, 0, 0]),
        (&[], &[0xE0, 1, 0x04]),
    ] {
        let me = unique();
        let will = Will { connect, properties: &[0x18, 0, 0, 0x0E, 0x10], ..Will::on(&topic) };
        let mut client = will.connect(peer, &me);
        client.subscribe(&base, QoS::AtLeastOnce);
        client.send_raw(leave).unwrap();
        assert_eq!(next_publish(&mut reader).text(), "will");
        peer.publish(&base, b"for nobody", QoS::AtLeastOnce, false);
        let (mut client, present) = peer.connect_session(&me, false, &[]);
        assert!(!present, "{connect:?} {leave:?}");
        assert_eq!(peer.rest(&mut client), []);
    }
});
clause!(mqtt_4_4_0_1, "MQTT-4.4.0-1", [v3_1_1, v5], |broker| sent_again(peer(broker)));
clause!(mqtt_4_5_0_1, "MQTT-4.5.0-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let base = unique();
    let topic = format!("{base}/t");
    let filters = [topic.clone(), format!("{base}/+"), format!("{base}/#"), format!("{base}/other")];
    let readers = || filters.iter().map(|filter| (filter.clone(), unique()));
    let (here, away): (Vec<_>, Vec<_>) = (readers().collect(), readers().collect());
    let mut here: Vec<Client> = here
        .into_iter()
        .map(|(filter, id)| {
            let mut client = peer.clean(&id);
            client.subscribe(&filter, QoS::ExactlyOnce);
            client
        })
        .collect();
    for (filter, id) in &away {
        let mut client = peer.persistent(id);
        client.subscribe(filter, QoS::ExactlyOnce);
        client.disconnect();
    }
    let mut writer = peer.clean(&unique());
    writer.subscribe(&topic, QoS::ExactlyOnce);
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        writer.publish(&topic, qos.to_string().as_bytes(), qos, false);
    }
    let wanted = [QoS::AtLeastOnce, QoS::ExactlyOnce].map(|qos| qos.to_string());
    assert_eq!(peer.texts(&mut writer), wanted, "the publisher itself");
    let other = here.pop().expect("the last one has another filter");
    for mut reader in here {
        assert_eq!(peer.texts(&mut reader), wanted);
    }
    for (filter, id) in &away[..3] {
        assert_eq!(peer.texts(&mut peer.back(id)), wanted, "{filter}");
    }
    for mut reader in [other, peer.back(&away[3].1)] {
        assert_eq!(peer.rest(&mut reader), []);
    }
});
clause!(mqtt_4_6_0_1, "MQTT-4.6.0-1", [v3_1_1], |broker| {
    let peer = peer(broker);
    let (me, topic) = (unique(), unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    for n in 0..30 {
        peer.publish(&topic, &[b'A' + n], ALL_QOS[1 + usize::from(n % 2)], false);
    }
    let mut first: Vec<Message> = (0..30).map(|_| next_publish(&mut reader)).collect();
    // Of all places some are acknowledged, in another order.
    for at in [29, 20, 11, 10, 3, 0] {
        let message = first.remove(at);
        let kind = if message.qos == QoS::AtLeastOnce { PUBACK } else { PUBREC };
        reader.send_raw(&ack(kind, message.packet_id)).unwrap();
    }
    reader.ping();
    for _ in 0..2 {
        drop(reader);
        reader = peer.back(&me);
        let again = frames::messages(&peer.frames(&mut reader));
        let key = |message: &Message| (message.packet_id, message.qos, message.payload.clone());
        assert_eq!(again.iter().map(key).collect::<Vec<_>>(), first.iter().map(key).collect::<Vec<_>>());
    }
});

/// The client is served.
fn works(peer: Peer, client: &mut Client) {
    let topic = unique();
    client.subscribe(&topic, QoS::AtLeastOnce);
    client.publish(&topic, b"own", QoS::AtLeastOnce, false);
    assert_eq!(peer.texts(client), ["own"]);
}

/// There is no session: one is made. There is one: its subscription and what waits are there, without a word from the client.
fn made_and_resumed(peer: Peer, me: &str) {
    let topic = unique();
    let (mut client, present) = peer.connect_session(me, false, EXPIRY);
    assert!(!present);
    client.subscribe(&topic, QoS::AtLeastOnce);
    peer.publish(&topic, b"not acknowledged", QoS::AtLeastOnce, false);
    next_publish(&mut client);
    drop(client);
    peer.publish(&topic, b"queued", QoS::AtLeastOnce, false);
    let mut client = peer.back(me);
    peer.publish(&topic, b"new", QoS::AtLeastOnce, false);
    assert_eq!(peer.texts(&mut client), ["not acknowledged", "queued", "new"]);
}

/// On a node of its own: kept beyond the connection's end, however it ends, and beyond a kill.
fn kept(broker: &Broker) {
    let mut node = Node::start(&Config::edge());
    let peer = Peer { addr: node.addr(), version: broker.version };
    let mut polite = peer.persistent("polite");
    let mut lost = peer.persistent("lost");
    for client in [&mut polite, &mut lost] {
        client.subscribe("t", QoS::AtLeastOnce);
    }
    polite.disconnect();
    drop(lost);
    peer.publish("t", b"1", QoS::AtLeastOnce, false);
    node.kill9();
    node.restart();
    peer.publish("t", b"2", QoS::AtLeastOnce, false);
    for id in ["polite", "lost"] {
        assert_eq!(peer.texts(&mut peer.back(id)), ["1", "2"], "{id}");
    }
}

/// A clean start finds nothing, and what it makes ends with its connection unless MQTT 5's expiry says otherwise.
fn discarded(peer: Peer) {
    let (me, topic) = (unique(), unique());
    let mut client = peer.persistent(&me);
    client.subscribe(&topic, QoS::ExactlyOnce);
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        peer.publish(&topic, b"not acknowledged", qos, false);
        next_publish(&mut client);
    }
    // An identifier in use, too.
    client.send_raw(&peer.publish_bytes(0x34, unique().as_bytes(), 7, &[], b"")).unwrap();
    client.expect_ack(AckType::Pubrec, 7);
    drop(client);
    peer.publish(&topic, b"queued", QoS::AtLeastOnce, false);
    let (mut client, present) = peer.connect_session(&me, true, &[]);
    assert!(!present);
    peer.publish(&topic, b"its subscription is gone", QoS::AtLeastOnce, false);
    assert!(peer.frames(&mut client).is_empty());
    let other = unique();
    client.subscribe(&other, QoS::AtMostOnce);
    client.send_raw(&peer.publish_bytes(0x34, other.as_bytes(), 7, &[], b"new")).unwrap();
    client.expect_ack(AckType::Pubrec, 7);
    assert_eq!(next_publish(&mut client).text(), "new");
    drop(client);
    let (mut client, present) = peer.connect_session(&me, false, EXPIRY);
    assert!(!present, "it ended with its connection");
    peer.publish(&other, b"x", QoS::AtLeastOnce, false);
    assert_eq!(peer.rest(&mut client), []);
}

/// The first is told (MQTT 5) and its connection ends; the second has the session.
fn taken_over(peer: Peer) {
    for persistent in [false, true] {
        let (me, topic) = (unique(), unique());
        let connect = || if persistent { peer.persistent(&me) } else { peer.clean(&me) };
        let mut first = connect();
        first.subscribe(&topic, QoS::AtLeastOnce);
        first.ping();
        let mut second = connect();
        peer.closed(&mut first, &[0x8E], b"another's CONNECT");
        peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
        let wanted: &[&str] = if persistent { &["x"] } else { &[] };
        assert_eq!(peer.texts(&mut second), wanted);
        works(peer, &mut second);
    }
}

fn clean_or_not(broker: &Broker) {
    let peer = peer(broker);
    made_and_resumed(peer, &unique());
    discarded(peer);
    // Also while the other one is still connected.
    let (me, topic) = (unique(), unique());
    let mut first = peer.persistent(&me);
    first.subscribe(&topic, QoS::AtLeastOnce);
    let mut second = peer.clean(&me);
    peer.closed(&mut first, &[0x8E], b"another's CONNECT");
    peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
    assert_eq!(peer.rest(&mut second), []);
}

/// A session that ends with its connection has subscriptions, and exchanges in both directions, as long as that.
fn kept_while_open(peer: Peer) {
    let topic = unique();
    let mut client = peer.clean(&unique());
    client.subscribe(&topic, QoS::ExactlyOnce);
    client.send_raw(&peer.publish_bytes(0x34, topic.as_bytes(), 7, &[], b"own")).unwrap();
    client.expect_ack(AckType::Pubrec, 7);
    let own = next_publish(&mut client).packet_id;
    let mut other = peer.clean(&unique());
    for n in 0..500_u16 {
        other.publish(&topic, n.to_string().as_bytes(), QoS::AtMostOnce, false);
        assert_eq!(next_publish(&mut client).text(), n.to_string());
    }
    client.send_raw(&peer.publish_bytes(0x3C, topic.as_bytes(), 7, &[], b"own")).unwrap();
    client.expect_ack(AckType::Pubrec, 7);
    client.send_raw(&ack(PUBREC, own)).unwrap();
    assert_eq!(next_ack(&mut client, AckType::Pubrel), (own, 0));
    assert_eq!(peer.rest(&mut client), [], "its identifier is known: a repetition");
}

/// PUBLISH and PUBREL that are not acknowledged come again, as they were, on a new connection to the session and at no other time.
fn sent_again(peer: Peer) {
    let (me, topic) = (unique(), unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    for (qos, text) in [
        (QoS::AtLeastOnce, "1"),
        (QoS::ExactlyOnce, "2"),
        (QoS::ExactlyOnce, "released"),
        (QoS::AtLeastOnce, "over"),
    ] {
        peer.publish(&topic, text.as_bytes(), qos, false);
    }
    let ids = [(); 4].map(|()| next_publish(&mut reader).packet_id);
    reader.send_raw(&[ack(PUBREC, ids[2]), ack(PUBACK, ids[3])].concat()).unwrap();
    assert_eq!(next_ack(&mut reader, AckType::Pubrel).0, ids[2]);
    // Whatever else is said on this connection.
    reader.ping();
    reader.publish(&topic, b"", QoS::AtMostOnce, false);
    next_publish(&mut reader);
    assert!(peer.frames(&mut reader).is_empty(), "sent again on the same connection");
    for _ in 0..2 {
        drop(reader);
        reader = peer.back(&me);
        let again = peer.frames(&mut reader);
        let publishes: Vec<_> = frames::messages(&again)
            .iter()
            .map(|message| (message.text().to_owned(), message.packet_id, message.dup))
            .collect();
        assert_eq!(publishes, [("1".to_owned(), ids[0], true), ("2".to_owned(), ids[1], true)]);
        let releases: Vec<_> =
            again.iter().map(|frame| frame.bytes()).filter(|bytes| bytes[0] == 0x62).collect();
        let [high, low] = ids[2].to_be_bytes();
        assert_eq!(releases, [[0x62, 2, high, low]]);
    }
    reader.send_raw(&[ack(PUBACK, ids[0]), ack(PUBREC, ids[1]), ack(PUBCOMP, ids[2])].concat()).unwrap();
    assert_eq!(next_ack(&mut reader, AckType::Pubrel).0, ids[1]);
    reader.send_raw(&ack(PUBCOMP, ids[1])).unwrap();
    reader.ping();
    drop(reader);
    assert!(peer.frames(&mut peer.back(&me)).is_empty());
    // A clean start has nothing to be sent again.
    let mut reader = peer.back(&me);
    peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
    next_publish(&mut reader);
    assert!(peer.frames(&mut peer.clean(&me)).is_empty());
}

// === what the numbers do not cover ===

#[test]
fn a_session_is_found_again_in_another_version() {
    let brokers = [Broker::v3_1_1(), Broker::v5()];
    let [old, new] = [peer(&brokers[0]), peer(&brokers[1])];
    for (first, second) in [(old, new), (new, old)] {
        let (me, topic) = (unique(), unique());
        let mut client = first.persistent(&me);
        client.subscribe(&topic, QoS::ExactlyOnce);
        first.publish(&topic, b"not acknowledged", QoS::ExactlyOnce, false);
        let id = next_publish(&mut client).packet_id;
        drop(client);
        first.publish(&topic, b"queued", QoS::AtLeastOnce, false);
        let mut client = second.back(&me);
        let again = next_publish(&mut client);
        assert_eq!((again.text(), again.packet_id, again.dup), ("not acknowledged", id, true));
        assert_eq!(next_publish(&mut client).text(), "queued");
    }
}

#[test]
fn a_new_expiry_holds_from_the_next_connection_on() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    let me = unique();
    peer.persistent(&me).disconnect();
    // Resumed without an expiry, it ends with that connection.
    let (mut client, present) = peer.connect_session(&me, false, &[]);
    assert!(present);
    client.send_raw(&[0xE0, 0]).unwrap();
    peer.closed_silently(&mut client);
    assert!(!peer.connect_session(&me, false, EXPIRY).1);
    peer.back(&me);
}

#[test]
fn an_expired_session_costs_its_publishers_nothing() {
    // One that waits for a session's end and one for whom it has ended: both are acknowledged.
    let broker = Broker::v5();
    let peer = peer(&broker);
    let (topic, me) = (unique(), unique());
    let mut client = peer.connect_session(&me, false, &[0x11, 0, 0, 0, 1]).0;
    client.subscribe(&topic, QoS::AtLeastOnce);
    client.send_raw(&[0xE0, 0]).unwrap();
    peer.closed_silently(&mut client);
    let mut writer = peer.clean(&unique());
    let mut matched = Vec::new();
    ferrule_testkit::until(ferrule_testkit::wire::PATIENCE, "nobody is subscribed", || {
        writer.send_raw(&peer.publish_bytes(0x32, topic.as_bytes(), 1, &[], b"x")).unwrap();
        let (_, reason) = next_ack(&mut writer, AckType::Puback);
        matched.push(reason);
        (reason == 0x10).then_some(())
    });
    assert_eq!(matched[0], 0, "it was there for a second");
}

#[test]
fn what_was_in_flight_is_in_flight_after_an_orderly_restart() {
    let mut node = Node::start(&Config::edge());
    for version in [Version::V3_1_1, Version::V5] {
        let peer = Peer { addr: node.addr(), version };
        let (me, topic) = (unique(), unique());
        let mut reader = peer.persistent(&me);
        reader.subscribe(&topic, QoS::ExactlyOnce);
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::ExactlyOnce] {
            peer.publish(&topic, qos.to_string().as_bytes(), qos, false);
        }
        let first = [(); 3].map(|()| next_publish(&mut reader));
        reader.send_raw(&ack(PUBREC, first[2].packet_id)).unwrap();
        next_ack(&mut reader, AckType::Pubrel);
        node.process().terminate(ferrule_testkit::wire::PATIENCE);
        node.restart();
        let mut reader = peer.back(&me);
        let again = peer.frames(&mut reader);
        let publishes: Vec<_> = frames::messages(&again)
            .into_iter()
            .map(|message| (message.payload, message.packet_id, message.dup))
            .collect();
        let [one, two, released] = first;
        assert_eq!(publishes, [(one.payload, one.packet_id, true), (two.payload, two.packet_id, true)]);
        let [high, low] = released.packet_id.to_be_bytes();
        assert!(again.iter().any(|frame| frame.bytes() == [0x62, 2, high, low]));
    }
}
