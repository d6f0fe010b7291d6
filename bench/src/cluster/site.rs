//! Nodes and their database, as they are measured.

use std::net::SocketAddr;
use std::time::Duration;

use ferrule_testkit::netns::{NetNs, Plug, Switch};
use ferrule_testkit::{Config, Node, Postgres};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster. (Fields are dropped in this order: the nodes before what they stand on.)
pub(super) struct Site {
    pub(super) nodes: Vec<Node>,
    /// Each node's own, when they are in namespaces.
    pub(super) plugs: Vec<Plug>,
    _postgres: Postgres,
    _folder: TempDir,
    _namespaces: (Vec<NetNs>, Option<Switch>),
}

/// One worker, and on this core alone when one is given.
pub(super) fn pinned(config: Config, core: Option<usize>) -> Config {
    with_workers(config, core, 1)
}

fn with_workers(config: Config, core: Option<usize>, workers: usize) -> Config {
    let config = config.env("FERRULE__NODE__WORKERS", &workers.to_string());
    match core {
        Some(core) => config.through(["taskset", "-c", &core.to_string()]),
        None => config,
    }
}

fn clustered(url: &str, folder: &TempDir, n: usize, bind: SocketAddr) -> Config {
    let token = folder.path().join("token");
    std::fs::write(&token, "a token of the benchmarks, long enough\n").expect("a file can be written");
    Config::cloud().id(&format!("node-{n}")).extra(&format!(
        "[store]\nbackend = \"postgres\"\nurl = {url:?}\n[cluster]\nbind = \"{bind}\"\ntoken_file = {token:?}\n"
    ))
}

impl Site {
    /// So many nodes on the machine itself.
    pub(super) fn start(count: usize, core: Option<usize>) -> Self {
        Self::start_with(count, core, 1)
    }

    pub(super) fn start_with(count: usize, core: Option<usize>, workers: usize) -> Self {
        let (postgres, folder) = (Postgres::start(), tempfile::tempdir().expect("a temporary folder"));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let nodes = (1..=count)
            .map(|n| Node::start(&with_workers(clustered(&postgres.url(), &folder, n, any), core, workers)))
            .collect();
        let site = Self {
            nodes,
            plugs: Vec::new(),
            _postgres: postgres,
            _folder: folder,
            _namespaces: (Vec::new(), None),
        };
        site.wait_whole();
        site
    }

    /// So many in namespaces of their own, on a switch that carries nothing but what is between them; None without root.
    pub(super) fn apart(count: usize) -> Option<Self> {
        let switch = Switch::new()?;
        let namespaces: Vec<NetNs> = (0..count).map(|_| NetNs::new()).collect::<Option<_>>()?;
        let machine: Vec<_> = namespaces.iter().map(NetNs::machine).collect();
        let postgres = Postgres::start_at(&machine);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut nodes, mut plugs) = (Vec::new(), Vec::new());
        for (n, netns) in namespaces.iter().enumerate() {
            let plug = switch.plug(netns);
            let url = postgres.url_at(SocketAddr::new(netns.machine(), postgres.port()));
            let config = clustered(&url, &folder, n + 1, SocketAddr::new(plug.addr(), 7_883));
            let config = config.listen(SocketAddr::new(netns.addr(), 1_883)).anyone().netns(netns.name());
            nodes.push(Node::start(&pinned(config, None)));
            plugs.push(plug);
        }
        let namespaces = (namespaces, Some(switch));
        let site = Self { nodes, plugs, _postgres: postgres, _folder: folder, _namespaces: namespaces };
        site.wait_whole();
        Some(site)
    }

    fn wait_whole(&self) {
        for node in &self.nodes {
            node.wait_status(PATIENCE, "the cluster is whole", |status| {
                let cluster = &status["cluster"];
                let members = cluster["members"].as_array().map_or(&[][..], Vec::as_slice);
                cluster["acknowledges"] == true
                    && members.len() == self.nodes.len()
                    && members.iter().all(|member| member["linked"] == true && member["state"] == "live")
            });
        }
    }

    pub(super) fn addrs(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::addr).collect()
    }

    pub(super) fn pids(&mut self) -> Vec<u32> {
        self.nodes.iter_mut().map(|node| node.process().pid()).collect()
    }
}
