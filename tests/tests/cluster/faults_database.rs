//! The database is away for a while: what needs storing waits for it, everything else goes on, and in the end nothing is missing.
//!
//! For 3 s, and for 30 s when `FERRULE_CLUSTER_ROUNDS` says that it is a campaign.

use crate::Cluster;
use ferrule_mqtt::{Packet, QoS};
use ferrule_testkit::Client;
use ferrule_testkit::wire::Options;
use ferrule_tests::PATIENCE;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MESSAGES: usize = 5;
/// How long a client waits before it looks whether the database is there again.
const LOOK: Duration = Duration::from_millis(100);

/// Publishes one that has to be stored, on a new connection whenever it is sent away. It must not be acknowledged while the database is away.
fn publish_stored(address: SocketAddr, payload: &str, is_away: &AtomicBool) -> u32 {
    let (end, mut sent_away) = (Instant::now() + PATIENCE, 0);
    while Instant::now() < end {
        let name = format!("{payload}-publisher");
        let Ok((mut client, _)) = Client::try_connect(address, &Options::v5(&name)) else { continue };
        client.publish_nowait("stored", payload.as_bytes(), QoS::AtLeastOnce, false);
        loop {
            // Looked at before the answer is: what comes after it may be of a database that is there.
            let was_away = is_away.load(Ordering::SeqCst);
            match client.recv(LOOK) {
                Ok(frame) if matches!(frame.packet(), Packet::Puback(_)) => {
                    let is_false = was_away && is_away.load(Ordering::SeqCst);
                    assert!(!is_false, "{payload} was acknowledged without a database");
                    return sent_away;
                }
                Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < end => {}
                _ => break,
            }
        }
        sent_away += 1;
    }
    panic!("{payload} is not acknowledged within {PATIENCE:?}");
}

#[test]
fn without_the_database_what_must_be_stored_waits_and_the_rest_goes_on() {
    let away = Duration::from_secs(if std::env::var_os("FERRULE_CLUSTER_ROUNDS").is_some() { 30 } else { 3 });
    let mut cluster = Cluster::start(3);
    let [one, two, three] = [0, 1, 2].map(|n| cluster.nodes[n].addr());
    let mut here = Client::connect(one, &Options::v5("here").persistent());
    let mut gone = Client::connect(two, &Options::v5("gone").persistent());
    for client in [&mut here, &mut gone] {
        client.subscribe("stored", QoS::AtLeastOnce);
    }
    gone.disconnect();
    let mut clean = Client::connect(two, &Options::v5("clean"));
    clean.subscribe("clean", QoS::AtLeastOnce);
    let mut publisher = Client::connect(three, &Options::v5("publisher"));
    cluster.postgres.stop_immediately();
    let (stopped, is_away) = (Instant::now(), AtomicBool::new(true));
    std::thread::scope(|scope| {
        let is_away = &is_away;
        let nodes = [one, two, three];
        let waiting: Vec<_> = (0..MESSAGES)
            .map(|n| scope.spawn(move || publish_stored(nodes[n % 3], &format!("m{n}"), is_away)))
            .collect();
        let mut rounds = 0;
        while stopped.elapsed() < away {
            publisher.publish("clean", format!("{rounds}").as_bytes(), QoS::AtLeastOnce, false);
            assert_eq!(clean.expect_message().text(), rounds.to_string());
            // A route that is new.
            let mut newcomer = Client::connect(one, &Options::v5("newcomer"));
            let topic = format!("new/{rounds}");
            newcomer.subscribe(&topic, QoS::AtLeastOnce);
            publisher.publish(&topic, b"", QoS::AtLeastOnce, false);
            newcomer.expect_message();
            rounds += 1;
            std::thread::sleep(LOOK);
        }
        assert!(rounds > 3, "it went on {rounds} times in {away:?}");
        is_away.store(false, Ordering::SeqCst);
        cluster.postgres.restart();
        let sent_away: u32 = waiting.into_iter().map(|waiting| waiting.join().unwrap()).sum();
        eprintln!(
            "the rest went on {rounds} times in {away:?}; {sent_away} times a waiting publisher was sent away"
        );
    });
    let receives = |client: &mut Client| {
        let mut due: BTreeSet<String> = (0..MESSAGES).map(|n| format!("m{n}")).collect();
        while !due.is_empty() {
            due.remove(client.expect_message().text());
        }
    };
    receives(&mut here);
    let (mut gone, is_present) = Client::connect_session(three, &Options::v5("gone").persistent());
    assert!(is_present);
    receives(&mut gone);
    cluster.wait_whole();
    for node in &cluster.nodes {
        assert_eq!(node.status()["cluster"]["joins"], 1, "nobody had to join again");
    }
}
