//! TLS between nodes as it is configured: certificates from files, made by `ferrule-cloud cert --node`; who has another authority's, or one
//! that was revoked, is kept out and told why; certificates are replaced while the cluster serves.

use crate::{Cluster, members};
use ferrule_mqtt::QoS;
use ferrule_testkit::node::count;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Certs, Client, Config, Node, Postgres, until};
use ferrule_tests::PATIENCE;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Where the nodes are: an address each, since its certificate has it.
const HOSTS: [&str; 3] = ["127.0.0.11", "127.0.0.12", "127.0.0.13"];

/// An authority for nodes, and their certificates.
fn certs() -> Certs {
    Certs::make(&["--node", &HOSTS.join(",")])
}

/// The node at the address `host`, with its certificate from `folder`.
fn config(postgres: &Postgres, folder: &Path, host: &str) -> Config {
    let path = |name: &str| folder.join(name);
    Config::cloud().id(&format!("node-{host}")).extra(&format!(
        "[store]\nbackend = \"postgres\"\nurl = {:?}\n[cluster]\nbind = \"{host}:0\"\n\
         tls = {{ cert = {:?}, key = {:?}, ca = {:?}, crl = {:?} }}\n",
        postgres.url(),
        path(&format!("{host}.crt")),
        path(&format!("{host}.key")),
        path("ca.crt"),
        path("ca.crl"),
    ))
}

fn start(certs: &Certs) -> Cluster {
    let postgres = Postgres::start();
    let folder = tempfile::tempdir().unwrap();
    let nodes = HOSTS.map(|host| Node::start(&config(&postgres, certs.folder(), host)));
    let cluster = Cluster { nodes: nodes.into(), postgres, _folder: folder };
    cluster.wait_whole();
    cluster
}

/// From each node to each.
fn messages_pass(cluster: &Cluster, round: &str) {
    let mut clients: Vec<Client> = cluster
        .nodes
        .iter()
        .map(|node| {
            let name = format!("{round}-{}", node.addr());
            let mut client = Client::connect(node.addr(), &Options::v5(&name));
            client.subscribe(round, QoS::AtLeastOnce);
            client
        })
        .collect();
    for from in 0..clients.len() {
        clients[from].publish(round, from.to_string().as_bytes(), QoS::AtLeastOnce, false);
        for client in &mut clients {
            assert_eq!(client.expect_message().text(), from.to_string());
        }
    }
}

/// The node `stranger`, which tries to join, is kept out; both sides say `told`, each of the other.
fn kept_out(cluster: &Cluster, stranger: &Config, told: [&str; 2]) {
    let stranger = Node::start(stranger);
    // Those who were there first dial, and have it in their status.
    cluster.nodes[0].wait_status(PATIENCE, "a member says why there is no link", |status| {
        members(status).iter().any(|member| {
            member["trouble"].as_str().is_some_and(|why| why.contains(told[0])) && member["linked"] == false
        })
    });
    // And it knows what they did not like.
    until(PATIENCE, "it says why nobody links to it", || stranger.log().contains(told[1]).then_some(()));
    assert_eq!(stranger.status()["cluster"]["live"], false);
    // It may not acknowledge, and nobody waits for it.
    messages_pass(cluster, "without the stranger");
}

#[test]
fn nodes_with_certificates_of_one_authority_are_a_cluster() {
    let certs = certs();
    let cluster = start(&certs);
    messages_pass(&cluster, "all");
    for node in &cluster.nodes {
        node.assert_quiet_log();
    }
}

#[test]
fn a_certificate_of_another_authority_keeps_a_node_out() {
    let (certs, others) = (certs(), Certs::make(&["--node", "127.0.0.14"]));
    let cluster = start(&certs);
    let stranger = config(&cluster.postgres, others.folder(), "127.0.0.14");
    kept_out(
        &cluster,
        &stranger,
        ["of another authority than this node's `ca`", "another authority than its `ca`"],
    );
}

#[test]
fn a_revoked_certificate_keeps_a_node_out() {
    let certs = certs();
    certs.run(&["--node", "127.0.0.14"]);
    certs.run(&["--revoke", "127.0.0.14"]);
    let cluster = start(&certs);
    let stranger = config(&cluster.postgres, certs.folder(), "127.0.0.14");
    kept_out(&cluster, &stranger, ["it was revoked", "this node's certificate was revoked"]);
}

#[test]
fn a_node_without_tls_is_kept_out() {
    let certs = certs();
    let cluster = start(&certs);
    let folder = tempfile::tempdir().unwrap();
    let stranger = crate::config(&cluster.postgres, &folder, "stranger");
    // To it those who dial it are as any stranger that speaks something else: it says nothing.
    kept_out(&cluster, &stranger, ["it does not speak TLS", ""]);
}

/// All nodes take over what is in their files; links that there are stay.
fn reload(cluster: &Cluster, round: &str) {
    let links = |node: &Node| count(&node.status()["cluster"], "links_up");
    let before: Vec<u64> = cluster.nodes.iter().map(links).collect();
    for node in &cluster.nodes {
        node.reload().unwrap();
        cluster.wait_whole();
    }
    messages_pass(cluster, round);
    let after: Vec<u64> = cluster.nodes.iter().map(links).collect();
    assert_eq!(before, after, "{round}: links were made anew");
}

/// Links are made anew: with what is in force now.
fn link_anew(cluster: &mut Cluster, round: &str) {
    for n in 0..cluster.nodes.len() {
        cluster.nodes[n].kill9();
        cluster.nodes[n].restart();
        cluster.wait_whole();
    }
    messages_pass(cluster, round);
}

#[test]
fn certificates_are_renewed_and_the_authority_is_replaced_without_a_pause() {
    let certs = certs();
    let mut cluster = start(&certs);
    // With new files and the old processes: links stay, and so do those that are made anew with what was read before.
    certs.run(&["--node", &HOSTS.join(","), "--renew"]);
    messages_pass(&cluster, "new files");
    reload(&cluster, "renewed");

    // Another authority: first all nodes know both, then their certificates are of the new one, then the old one goes.
    let next = self::certs();
    let read = |certs: &Certs, name: &str| fs::read_to_string(certs.path(name)).unwrap();
    let new = ["ca.crt", "ca.crl"].map(|name| read(&next, name));
    for (name, new) in ["ca.crt", "ca.crl"].iter().zip(&new) {
        fs::write(certs.path(name), format!("{}{new}", read(&certs, name))).unwrap();
    }
    reload(&cluster, "both");
    for host in HOSTS {
        for name in [format!("{host}.key"), format!("{host}.crt")] {
            fs::write(certs.path(&name), read(&next, &name)).unwrap();
        }
    }
    reload(&cluster, "certificates of the new one");
    // Those that were linked by the old one's are linked by the new one's, before it goes.
    link_anew(&mut cluster, "linked by the new one's");
    for (name, new) in ["ca.crt", "ca.crl"].iter().zip(&new) {
        fs::write(certs.path(name), new).unwrap();
    }
    reload(&cluster, "the new one alone");
    link_anew(&mut cluster, "linked by the new one alone");
    for node in &cluster.nodes {
        let log = node.log();
        assert!(!log.contains("invalid peer certificate") && !log.contains("fatal alert"), "{log}");
    }
}

/// Without a word from anybody: the files are looked at.
#[test]
fn a_certificate_that_is_revoked_loses_its_links() {
    let certs = certs();
    let mut cluster = start(&certs);
    certs.run(&["--revoke", HOSTS[2]]);
    for node in &cluster.nodes[..2] {
        until(PATIENCE, "the reason is told", || {
            node.log().contains("the peer's certificate is not good any more").then_some(())
        });
    }
    // A partition like any other: whoever reaches the database first stays, so the one that was revoked is to be stopped.
    cluster.nodes[2].kill9();
    for node in &cluster.nodes[..2] {
        node.wait_status(PATIENCE, "the one that was revoked is no member", |status| {
            let live = members(status).iter().filter(|member| member["state"] == "live").count();
            live == 2 && members(status).len() == 2 && status["cluster"]["acknowledges"] == true
        });
    }
    // And does not get in again.
    cluster.nodes[2].relaunch();
    cluster.nodes[0].wait_status(PATIENCE, "it waits outside", |status| {
        let waits = |member: &Value| member["state"] == "joining" && member["linked"] == false;
        members(status).iter().any(|member| waits(member) && member["trouble"].is_string())
    });
    assert_eq!(cluster.nodes[2].status()["cluster"]["acknowledges"], false);
}

#[test]
fn files_that_cannot_be_used_change_nothing() {
    let certs = certs();
    let cluster = start(&certs);
    let whole = fs::read_to_string(certs.path("ca.crt")).unwrap();
    fs::write(certs.path("ca.crt"), "no certificate").unwrap();
    let error = cluster.nodes[0].reload().unwrap_err();
    assert!(error.contains("[cluster] `tls`") && error.contains("ca.crt"), "{error}");
    cluster.nodes[0].wait_status(PATIENCE, "its status says so", |status| {
        status["cluster"]["certificate_error"].as_str().is_some_and(|error| error.contains("ca.crt"))
    });
    messages_pass(&cluster, "as before");
    fs::write(certs.path("ca.crt"), whole).unwrap();
    cluster.nodes[0].reload().unwrap();
    assert!(cluster.nodes[0].status()["cluster"].get("certificate_error").is_none());
    cluster.wait_whole();
}
