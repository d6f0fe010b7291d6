//! Shared subscriptions.

use ferrule_mqtt::{AckType, QoS};

use crate::common::Broker;
use crate::frames::{PUBACK, PUBREC, Peer, ack, ack_with, next_ack, next_publish, peer, subscribe, unique};

clause!(mqtt_4_8_2_1, "MQTT-4.8.2-1", [v5], |broker| {
    let peer = peer(broker);
    let (group, topic) = (unique(), unique());
    let mut client = peer.clean(&unique());
    assert_eq!(subscribe(peer, &mut client, &[("$share//a", 0)]), [0x8F]);
    assert_eq!(subscribe(peer, &mut client, &[(&format!("$share/{group}/{topic}"), 1)]), [1]);
    peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
    assert_eq!(peer.texts(&mut client), ["x"]);
});
clause!(mqtt_4_8_2_2, "MQTT-4.8.2-2", [v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    for filter in ["$share/g", "$share/g/", "$share/g+/a", "$share/#/a", "$share/+/a", "$share/g/a#"] {
        assert_eq!(subscribe(peer, &mut client, &[(filter, 0)]), [0x8F], "{filter}");
    }
    let topic = format!("/{}", unique());
    assert_eq!(subscribe(peer, &mut client, &[(&format!("$share/{}/{topic}", unique()), 1)]), [1]);
    peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
    assert_eq!(peer.texts(&mut client), ["x"]);
});
clause!(mqtt_4_8_2_3, "MQTT-4.8.2-3", [v5], |broker| {
    let peer = peer(broker);
    let (filter, topic) = group();
    let mut members = [(peer.clean(&unique()), 0), (peer.clean(&unique()), 2)];
    for (member, qos) in &mut members {
        subscribe(peer, member, &[(&filter, *qos)]);
    }
    for n in 0..20 {
        peer.publish(&topic, n.to_string().as_bytes(), QoS::ExactlyOnce, false);
    }
    let mut count = 0;
    for (member, qos) in &mut members {
        let its = peer.rest(member);
        assert!(!its.is_empty(), "each in turn");
        assert!(its.iter().all(|message| message.qos as u8 == *qos));
        count += its.len();
    }
    assert_eq!(count, 20, "one for each message");
});
clause!(mqtt_4_8_2_4, "MQTT-4.8.2-4", [v5], |broker| {
    let peer = peer(broker);
    let (filter, topic) = group();
    let me = unique();
    let mut member = peer.persistent(&me);
    subscribe(peer, &mut member, &[(&filter, 2)]);
    peer.publish(&topic, b"x", QoS::ExactlyOnce, false);
    let id = next_publish(&mut member).packet_id;
    let mut other = peer.clean(&unique());
    subscribe(peer, &mut other, &[(&filter, 2)]);
    drop(member);
    assert_eq!(peer.rest(&mut other), []);
    let mut member = peer.back(&me);
    let again = next_publish(&mut member);
    assert_eq!((again.packet_id, again.dup), (id, true));
    member.send_raw(&ack(PUBREC, id)).unwrap();
    assert_eq!(next_ack(&mut member, AckType::Pubrel), (id, 0));
    assert_eq!(peer.rest(&mut other), []);
});
clause!(mqtt_4_8_2_5, "MQTT-4.8.2-5", [v5], |broker| {
    let peer = peer(broker);
    let (filter, topic) = group();
    let me = unique();
    let mut member = peer.persistent(&me);
    subscribe(peer, &mut member, &[(&filter, 2)]);
    peer.publish(&topic, b"x", QoS::ExactlyOnce, false);
    assert_eq!(next_publish(&mut member).text(), "x");
    let mut other = peer.clean(&unique());
    subscribe(peer, &mut other, &[(&filter, 2)]);
    drop(member);
    // Its session ends.
    let (mut member, present) = peer.connect_session(&me, true, &[]);
    assert!(!present);
    assert_eq!(peer.rest(&mut other), []);
    assert_eq!(peer.rest(&mut member), []);
});
clause!(mqtt_4_8_2_6, "MQTT-4.8.2-6", [v5], refused_by_one);

/// A shared filter of a group of its own, and the topic.
fn group() -> (String, String) {
    let topic = unique();
    (format!("$share/{}/{topic}", unique()), topic)
}

fn refused_by_one(broker: &Broker) {
    let peer: Peer = peer(broker);
    for (qos, kind) in [(QoS::AtLeastOnce, PUBACK), (QoS::ExactlyOnce, PUBREC)] {
        let (filter, topic) = group();
        let me = unique();
        let mut member = peer.persistent(&me);
        subscribe(peer, &mut member, &[(&filter, 2)]);
        peer.publish(&topic, b"x", qos, false);
        let id = next_publish(&mut member).packet_id;
        let mut other = peer.clean(&unique());
        subscribe(peer, &mut other, &[(&filter, 2)]);
        member.send_raw(&ack_with(kind, id, 0x80)).unwrap();
        member.ping();
        drop(member);
        let mut member = peer.back(&me);
        assert_eq!(peer.rest(&mut member), []);
        drop(member);
        peer.connect_session(&me, true, &[]).0.disconnect();
        assert_eq!(peer.rest(&mut other), []);
    }
}
