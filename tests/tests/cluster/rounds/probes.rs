//! Faults at a certain moment of one client: what it was told just before or just after must hold.

use super::Probes;
use super::site::Site;
use super::world::{NODES, connected_to, is_acknowledged, subscribed};
use ferrule_mqtt::{Packet, QoS};
use ferrule_testkit::random::Random;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, until};
use ferrule_tests::PATIENCE;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Longer than a lease: the node is removed meanwhile.
const STOPPED: Duration = Duration::from_secs(3);

/// `node` is stopped; somebody subscribes elsewhere; it goes on, and the first thing that it sees is a publish to that subscriber.
pub(super) fn resumed(site: &mut Site, node: usize, name: &str, random: &mut Random) -> Probes {
    let addresses = site.addresses();
    let elsewhere = addresses[other(node, random)];
    let topic = format!("probe/{name}");
    let publisher = format!("{name}-publisher");
    let mut publisher = until(PATIENCE, "a client connects", || {
        connected_to(addresses[node], &Options::v5(&publisher)).map(|(client, _)| client)
    });
    site.cluster.nodes[node].pause();
    let stopped = Instant::now();
    let mut subscriber = until(PATIENCE, "somebody subscribes at a node that goes on", || {
        let (client, _) = connected_to(elsewhere, &Options::v5(&format!("{name}-subscriber")))?;
        subscribed(client, &topic)
    });
    std::thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
    // In its socket before it goes on, or right afterwards.
    let is_before = random.one_in(2);
    if !is_before {
        site.cluster.nodes[node].resume();
    }
    publisher.publish_nowait(&topic, name.as_bytes(), QoS::AtLeastOnce, false);
    if is_before {
        site.cluster.nodes[node].resume();
    }
    let answer = publisher.recv_where(PATIENCE, |packet| matches!(packet, Packet::Puback(_)));
    let mut probes = Probes::default();
    if answer.is_ok_and(|frame| is_acknowledged(&frame.packet())) {
        probes.checked = 1;
        if subscriber.recv_message(PATIENCE).is_err() {
            eprintln!(
                "{name}: acknowledged by the node that had stood still, and never came (sent before it went on: {is_before})"
            );
            probes.lost = 1;
        }
    } else {
        probes.withheld = 1;
    }
    probes
}

/// Clients whose sessions live on connect to `node`, and within 100 ms of the CONNACK it is killed: one that has a session elsewhere, one that is new and subscribes, and one with a
/// will, which stays away until that has come.
pub(super) fn connack(site: &mut Site, node: usize, name: &str, random: &mut Random) -> Probes {
    let addresses = site.addresses();
    let first = other(node, random);
    let second = NODES - node - first;
    let persistent = |what: &str| Options::v5(&format!("{name}-{what}")).persistent();
    let topic = |what: &str| format!("probe/{name}/{what}");
    let connect = |address: SocketAddr, options: &Options| {
        until(PATIENCE, "a client connects", || connected_to(address, options))
    };
    let mut heir = until(PATIENCE, "somebody waits for wills", || {
        let (client, _) = connected_to(addresses[second], &Options::v5(&format!("{name}-heir")))?;
        subscribed(client, &topic("wills"))
    });
    let roamer = until(PATIENCE, "a client has a session", || {
        let (client, _) = connected_to(addresses[first], &persistent("roamer"))?;
        subscribed(client, &topic("roamer"))
    });
    // It leaves before, or is taken over.
    let roamer = random.one_in(2).then_some(roamer);
    let will = persistent("mortal").will(&topic("wills"), b"gone", QoS::AtLeastOnce, false);
    let _mortal = connect(addresses[node], &will);
    let (_there, is_present) = connect(addresses[node], &persistent("roamer"));
    let mut probes = Probes { checked: 1, lost: u64::from(!is_present), ..Probes::default() };
    let (mut fresh, _) = connect(addresses[node], &persistent("fresh"));
    let killed_at = Instant::now() + Duration::from_millis(random.below(100));
    let asks = random.one_in(2);
    let mut has_suback = false;
    if asks {
        (fresh, has_suback) = subscribed_until(fresh, &topic("fresh"), killed_at);
    }
    std::thread::sleep(killed_at.saturating_duration_since(Instant::now()));
    site.cluster.nodes[node].kill9();
    drop((roamer, fresh));
    let back = |what: &str| connect(addresses[first], &persistent(what));
    let ((mut roamer, has_roamer), (mut fresh, has_fresh)) = (back("roamer"), back("fresh"));
    for (what, is_present) in [("roamer", has_roamer), ("fresh", has_fresh)] {
        probes.checked += 1;
        if !is_present {
            eprintln!("{name}: {what}'s session is gone, node {node} had sent its CONNACK");
            probes.forgotten += 1;
        }
    }
    for (what, client, is_due) in [("roamer", &mut roamer, true), ("fresh", &mut fresh, has_suback)] {
        publish(addresses[second], &format!("{name}-publisher"), &topic(what), what);
        probes.checked += u64::from(is_due);
        if is_due && client.recv_message(PATIENCE).is_err() {
            eprintln!("{name}: what was acknowledged for {what} never came");
            probes.lost += 1;
        }
    }
    probes.checked += 1;
    match heir.recv_message(PATIENCE) {
        Ok(_) if heir.recv_message(Duration::from_millis(300)).is_ok() => {
            eprintln!("{name}: the will came twice");
            probes.twice += 1;
        }
        Ok(_) => {}
        Err(error) => {
            eprintln!("{name}: the will never came: {error}");
            probes.lost += 1;
        }
    }
    site.cluster.nodes[node].restart();
    probes
}

fn other(node: usize, random: &mut Random) -> usize {
    (node + 1 + random.below(NODES as u64 - 1) as usize) % NODES
}

/// Subscribes, and says whether the SUBACK came in time.
fn subscribed_until(mut client: Client, filter: &str, end: Instant) -> (Client, bool) {
    let mut filters = ferrule_mqtt::SubscribeFiltersBuf::new();
    filters.push(filter, ferrule_mqtt::SubscribeOptions::new(QoS::AtLeastOnce)).unwrap();
    let (properties, filters) = (ferrule_mqtt::Properties::EMPTY, filters.as_filters());
    let packet = Packet::Subscribe(ferrule_mqtt::Subscribe { packet_id: 1, properties, filters });
    let left = |end: Instant| end.saturating_duration_since(Instant::now());
    let done = client.send(&packet).is_ok()
        && client.recv_where(left(end), |packet| matches!(packet, Packet::Suback(_))).is_ok();
    (client, done)
}

/// Publishes until it is acknowledged.
pub(super) fn publish(address: SocketAddr, client: &str, topic: &str, payload: &str) {
    until(PATIENCE, "it is acknowledged", || {
        let (mut client, _) = connected_to(address, &Options::v5(client))?;
        client.publish_nowait(topic, payload.as_bytes(), QoS::AtLeastOnce, false);
        let answer = client.recv_where(PATIENCE, |packet| !matches!(packet, Packet::Publish(_))).ok()?;
        is_acknowledged(&answer.packet()).then_some(())
    });
}
