//! Three nodes of a cluster, as processes, with a real PostgreSQL between them: each promise has a file.
#![allow(clippy::unwrap_used, reason = "tests")]

mod behind_a_load_balancer;
mod exclusive_has_one_holder;
mod faults_database;
mod faults_edges;
mod faults_sessions;
mod joining;
mod leaving;
mod load;
mod many_filters;
mod one_connection_per_client;
mod outboxes_are_inherited;
mod partition_heals;
mod retained_are_the_same_everywhere;
mod rolling_upgrade;
mod rounds;
mod rules_remember_together;
mod sessions_move;
mod subscribe_then_publish_anywhere;
mod tls_between_nodes;
mod wills_come_once;

use ferrule_testkit::{Config, Node, Postgres};
use ferrule_tests::PATIENCE;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use tempfile::TempDir;

/// Which of the gate's three runs this is.
fn share() -> usize {
    match (std::env::var("FERRULE_TEST_WORKERS"), std::env::var_os("FERRULE_TEST_WORKER_DELAY")) {
        (_, Some(_)) => 2,
        (Ok(workers), None) if workers != "1" => 1,
        _ => 0,
    }
}

/// What a node is configured with, beside the rest.
fn config(postgres: &Postgres, folder: &TempDir, id: &str) -> Config {
    config_at(&postgres.url(), folder, id, SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// The same, where the database is reached in another way than by the machine, or the others at a certain address.
fn config_at(url: &str, folder: &TempDir, id: &str, bind: SocketAddr) -> Config {
    let token = folder.path().join("token");
    fs::write(&token, "a token of the tests, long enough\n").unwrap();
    Config::cloud().id(id).extra(&format!(
        "[store]\nbackend = \"postgres\"\nurl = {url:?}\n[cluster]\nbind = \"{bind}\"\ntoken_file = {token:?}\n"
    ))
}

/// Nodes of one cluster, and what they share.
struct Cluster {
    nodes: Vec<Node>,
    postgres: Postgres,
    _folder: TempDir,
}

impl Cluster {
    /// So many nodes, all of them live and in touch.
    fn start(count: usize) -> Self {
        Self::start_with(count, "")
    }

    /// The same, with more of `[cluster]`.
    fn start_with(count: usize, cluster: &str) -> Self {
        let postgres = Postgres::start();
        let folder = tempfile::tempdir().unwrap();
        let config = |n: usize| config(&postgres, &folder, &format!("node-{n}")).extra(cluster);
        let nodes = (1..=count).map(|n| Node::start(&config(n)));
        let cluster = Self { nodes: nodes.collect(), postgres, _folder: folder };
        cluster.wait_whole();
        cluster
    }

    /// Until all nodes are live members that may acknowledge, and know it of each other.
    fn wait_whole(&self) {
        for node in &self.nodes {
            node.wait_status(PATIENCE, "the cluster is whole", |status| is_whole(status, self.nodes.len()));
        }
    }
}

fn members(status: &Value) -> &[Value] {
    status["cluster"]["members"].as_array().map_or(&[], Vec::as_slice)
}

fn is_whole(status: &Value, count: usize) -> bool {
    let cluster = &status["cluster"];
    let all = members(status);
    cluster["live"] == true
        && cluster["acknowledges"] == true
        && all.len() == count
        && all.iter().all(|member| member["linked"] == true && member["state"] == "live")
}
