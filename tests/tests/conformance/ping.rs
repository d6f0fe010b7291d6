//! PINGREQ and keep alive.

use ferrule_mqtt::QoS;
use ferrule_testkit::wire::PATIENCE;
use ferrule_testkit::{Client, Config, Node};

use crate::frames::{CLEAN, Peer, Will, bytes, connect_of, next_publish, peer, unique};

clause!(mqtt_3_12_4_1, "MQTT-3.12.4-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.clean(&unique());
    client.send_raw(&[0xC0, 0, 0xC0, 0, 0xC0, 0]).unwrap();
    for _ in 0..3 {
        assert_eq!(client.recv(PATIENCE).unwrap().bytes(), [0xD0, 0]);
    }
    // It has no body.
    peer.refuses(&[0xC0, 1, 0], &[0x81]);
});
clause!(mqtt_3_1_2_24_of_3, "MQTT-3.1.2-24", [v3_1_1], |broker| silence(peer(broker)));
clause!(mqtt_3_1_2_22, "MQTT-3.1.2-22", [v5], |broker| silence(peer(broker)));
clause!(mqtt_3_2_2_21, "MQTT-3.2.2-21", [v5], |broker| {
    let node = Node::start(&Config::edge().extra("[mqtt]\nkeep_alive_max = \"1s\"\n"));
    let peer = Peer { addr: node.addr(), version: broker.version };
    // Who wanted none or a long one is told, and cut off by what it was told.
    for (mut client, told) in [0, 600, 0xFFFF].map(|asked| with_keep_alive(peer, asked)) {
        assert_eq!(told, Some(1));
        peer.closed(&mut client, &[0x8D], b"silence");
    }
});
clause!(mqtt_3_2_2_22, "MQTT-3.2.2-22", [v5], |broker| {
    let peer = peer(broker);
    let (mut long, told) = with_keep_alive(peer, 600);
    assert_eq!(told, None);
    let (mut none, told) = with_keep_alive(peer, 0);
    assert_eq!(told, None);
    let (mut short, told) = with_keep_alive(peer, 1);
    assert_eq!(told, None);
    peer.closed(&mut short, &[0x8D], b"silence");
    // In the same time nobody else was.
    long.ping();
    none.ping();
});

/// A client of this keep alive, and the Server Keep Alive that it is told.
fn with_keep_alive(peer: Peer, seconds: u16) -> (Client, Option<u16>) {
    let connect = connect_of(peer.version, CLEAN, seconds, &[], &[&bytes(unique().as_bytes())]);
    let (client, connack) = peer.accepted(&connect);
    let told = crate::connack::properties(&connack).server_keep_alive();
    (client, told)
}

/// It ends the connection, with the will. What the client says puts it off, whatever that is; what it is told does not.
fn silence(peer: Peer) {
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtLeastOnce);
    let will = Will { keep_alive: 1, ..Will::on(&topic) };
    let fed = unique();
    let mut silent = will.connect(peer, &unique());
    silent.subscribe(&fed, QoS::AtMostOnce);
    let mut talking = Will { keep_alive: 2, ..will }.connect(peer, &unique());
    let mut feeder = peer.clean(&unique());
    // Longer than the talking one may be silent: the clock alone shows that it stays.
    for n in 0..8_u16 {
        match n % 3 {
            0 => talking.send_raw(&[0xC0, 0]).unwrap(),
            1 => talking.publish(&unique(), b"", QoS::AtMostOnce, false),
            _ => drop(talking.subscribe(&unique(), QoS::AtMostOnce)),
        }
        feeder.publish(&fed, b"", QoS::AtMostOnce, false);
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    talking.ping();
    assert_eq!(next_publish(&mut reader).text(), "will");
    peer.closed(&mut silent, &[0x8D], b"silence");
    assert_eq!(peer.rest(&mut reader), [], "the will of the one that talks");
    talking.disconnect();
}
