//! An exclusive subscription is one client's, on whichever node, and wherever its session goes.

use crate::Cluster;
use ferrule_mqtt::QoS;
use ferrule_testkit::Client;
use ferrule_testkit::wire::Options;
use ferrule_tests::PATIENCE;
use std::time::Instant;

const FILTER: &str = "$exclusive/line/1";
const TAKEN: u8 = 0x97;

fn stored(name: &str, clean: bool) -> Options {
    Options { clean_start: clean, session_expiry: Some(600), ..Options::v5(name) }
}

#[test]
fn one_client_has_it_whichever_node_it_asks() {
    let cluster = Cluster::start(3);
    for round in 0..5 {
        let names: Vec<String> = (0..9).map(|n| format!("client-{round}-{n}")).collect();
        let asked: Vec<(Client, u8)> = std::thread::scope(|scope| {
            let ask = |n: usize| {
                let mut client = Client::connect(cluster.nodes[n % 3].addr(), &Options::v5(&names[n]));
                let code = client.subscribe(FILTER, QoS::AtLeastOnce);
                (client, code)
            };
            let threads: Vec<_> = (0..names.len()).map(|n| scope.spawn(move || ask(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let codes: Vec<u8> = asked.iter().map(|(_, code)| *code).collect();
        assert_eq!(codes.iter().filter(|code| **code != TAKEN).count(), 1, "round {round}: {codes:?}");
        let (mut holder, _) = asked.into_iter().find(|(_, code)| *code != TAKEN).unwrap();
        let mut publisher = Client::connect(cluster.nodes[round % 3].addr(), &Options::v5("publisher"));
        publisher.publish("line/1", b"", QoS::AtLeastOnce, false);
        holder.expect_message();
        holder.unsubscribe(FILTER);
    }
}

#[test]
fn a_session_keeps_it_wherever_it_is() {
    let mut cluster = Cluster::start(3);
    let mut holder = Client::connect(cluster.nodes[0].addr(), &stored("holder", true));
    assert_eq!(holder.subscribe(FILTER, QoS::AtLeastOnce), 1);
    let mut others: Vec<Client> =
        [1, 2].map(|n| Client::connect(cluster.nodes[n].addr(), &Options::v5(&format!("other-{n}")))).into();
    let mut refused = |when: &str| {
        for other in &mut others {
            assert_eq!(other.subscribe(FILTER, QoS::AtLeastOnce), TAKEN, "{when}");
        }
    };
    refused("it is connected");
    drop(holder);
    refused("it is away");
    let (holder, is_present) = Client::connect_session(cluster.nodes[1].addr(), &stored("holder", false));
    assert!(is_present);
    refused("it is at another node");
    drop(holder);
    let (holder, is_present) = Client::connect_session(cluster.nodes[0].addr(), &stored("holder", false));
    assert!(is_present);
    drop(holder);
    // Its node is gone, and another one adopts it.
    cluster.nodes[0].kill9();
    refused("its node was killed");
    cluster.nodes[0].restart();
    cluster.wait_whole();
    refused("its node is back");
    let (mut holder, is_present) = Client::connect_session(cluster.nodes[0].addr(), &stored("holder", false));
    assert!(is_present);
    holder.unsubscribe(FILTER);
    let deadline = Instant::now() + PATIENCE;
    while others[0].subscribe(FILTER, QoS::AtLeastOnce) == TAKEN {
        assert!(Instant::now() < deadline, "it has been given back, and nobody gets it");
    }
}
