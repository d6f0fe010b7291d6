//! The three nodes and what lies between them.
//!
//! For root each node has a network namespace: a cable to the machine, where its clients come from, and one to a switch, where the other nodes and the database
//! are. What is lost there are packets, and nothing says so. Without root the last node is behind relays that can be turned into holes.

use super::world::NODES;
use crate::{Cluster, config_at};
use ferrule_testkit::netns::{NetNs, Plug, Switch};
use ferrule_testkit::{Config, Node, Postgres, Relay, port};
use std::net::SocketAddr;

/// What a node hears no more, or is heard no more by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hole {
    /// It neither hears the other nodes nor is heard.
    Nodes,
    /// It does not hear them.
    FromNodes,
    /// They do not hear it.
    ToNodes,
    /// Neither nodes nor database.
    All,
}

enum Between {
    Switch {
        plugs: Vec<Plug>,
        machine: Plug,
        _switch: Switch,
        _namespaces: Vec<NetNs>,
    },
    /// In front of the last node, and between it and the database.
    Relays(Relay, Relay),
}

pub(super) struct Site {
    pub(super) cluster: Cluster,
    between: Between,
}

/// Half of the nodes have one worker, half three, unless the whole run has a number.
fn workers(config: Config, n: usize) -> Config {
    match std::env::var_os("FERRULE_TEST_WORKERS") {
        Some(_) => config,
        None => config.env("FERRULE__NODE__WORKERS", if n.is_multiple_of(2) { "3" } else { "1" }),
    }
}

impl Site {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let id = |n: usize| format!("node-{n}");
        let Some(switch) = Switch::new() else {
            let postgres = Postgres::start();
            let to_postgres = Relay::start(SocketAddr::from(([127, 0, 0, 1], postgres.port())));
            let bind = port::free_addr();
            let relay = Relay::start(bind);
            let nodes = (1..=NODES).map(|n| {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let config = if n < NODES {
                    config_at(&postgres.url(), &folder, &id(n), any)
                } else {
                    let advertise = format!("[\"{}\"]", relay.addr());
                    config_at(&postgres.url_at(to_postgres.addr()), &folder, &id(n), bind)
                        .env("FERRULE__CLUSTER__ADVERTISE", &advertise)
                };
                Node::start(&workers(config, n))
            });
            let cluster = Cluster { nodes: nodes.collect(), postgres, _folder: folder };
            cluster.wait_whole();
            return Self { cluster, between: Between::Relays(relay, to_postgres) };
        };
        let machine = switch.machine();
        let postgres = Postgres::start_at(&[machine.addr()]);
        let url = postgres.url_at(SocketAddr::new(machine.addr(), postgres.port()));
        let (mut nodes, mut plugs, mut namespaces) = (Vec::new(), Vec::new(), Vec::new());
        for n in 1..=NODES {
            let netns = NetNs::new().expect("root, as a moment ago");
            let plug = switch.plug(&netns);
            let config = config_at(&url, &folder, &id(n), SocketAddr::new(plug.addr(), 7_883))
                .listen(SocketAddr::new(netns.addr(), 1_883))
                .anyone()
                .netns(netns.name());
            nodes.push(Node::start(&workers(config, n)));
            plugs.push(plug);
            namespaces.push(netns);
        }
        let cluster = Cluster { nodes, postgres, _folder: folder };
        cluster.wait_whole();
        let between = Between::Switch { plugs, machine, _switch: switch, _namespaces: namespaces };
        Self { cluster, between }
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.cluster.nodes.iter().map(Node::addr).collect()
    }

    /// Opens a hole around `node`; which one it became.
    pub(super) fn open(&self, node: usize, hole: Hole) -> usize {
        match &self.between {
            Between::Switch { .. } => {
                self.each_way(node, hole, Plug::lose_to);
                node
            }
            Between::Relays(nodes, postgres) => {
                nodes.blackhole();
                if hole == Hole::All {
                    postgres.blackhole();
                }
                NODES - 1
            }
        }
    }

    /// Closes it.
    pub(super) fn close(&self, node: usize, hole: Hole) {
        match &self.between {
            Between::Switch { .. } => self.each_way(node, hole, Plug::reach),
            Between::Relays(nodes, postgres) => {
                nodes.heal();
                postgres.heal();
            }
        }
    }

    fn each_way(&self, node: usize, hole: Hole, change: impl Fn(&Plug, &Plug)) {
        let Between::Switch { plugs, machine, .. } = &self.between else { return };
        let here = &plugs[node];
        let others = plugs.iter().filter(|plug| *plug != here);
        for there in others.chain((hole == Hole::All).then_some(machine)) {
            if hole != Hole::FromNodes {
                change(here, there);
            }
            if hole != Hole::ToNodes {
                change(there, here);
            }
        }
    }
}
