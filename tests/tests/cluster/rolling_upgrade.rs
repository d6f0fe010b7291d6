//! Promise 7, an upgrade without a pause: nodes are replaced one after the other while clients publish and subscribe.
//!
//! With `FERRULE_OLD_CLOUD=path` the cluster begins with that binary, of an earlier version, and each node is replaced by today's; in the middle one goes
//! back to the earlier one and forth again. (One that does not know today's tables refuses to start, and says so: then that node goes forth at once.)
//! Without, both are today's: what is looked at then is the way of it. `make upgrade` builds an earlier version and does the former; with
//! `FERRULE_FAULT_RESULTS=folder` the counts go there.

use crate::load::{Load, Sums};
use crate::{Cluster, config};
use ferrule_testkit::node::{Role, binary, run_to_exit};
use ferrule_testkit::{Node, Postgres, soak, until};
use ferrule_tests::PATIENCE;
use serde_json::json;
use std::path::{Path, PathBuf};

const NODES: usize = 3;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Old,
    New,
}

struct Upgrade {
    cluster: Cluster,
    load: Load,
    old: Option<PathBuf>,
    /// What runs at each node.
    runs: [Version; NODES],
}

impl Upgrade {
    fn program(&self, version: Version) -> PathBuf {
        match (&self.old, version) {
            (Some(old), Version::Old) => old.clone(),
            _ => binary("ferrule-cloud"),
        }
    }

    /// Moves its clients off, where its version can, stops it, and starts the other one in its place; false: that one does not run with tables that a
    /// later one has changed.
    fn replace(&mut self, node: usize, version: Version) -> bool {
        self.stop(node);
        let program = self.program(version);
        let old = self.old.is_some() && version == Version::Old;
        let replaced = &mut self.cluster.nodes[node];
        replaced.run_instead(&program);
        replaced.relaunch();
        let runs = until(PATIENCE, "it runs, or has ended", || match replaced.process().exited() {
            Some(_) => Some(false),
            None => replaced.try_status().is_ok().then_some(true),
        });
        if !runs {
            let log = replaced.log();
            assert!(old && log.contains("was written by a newer ferrule"), "{log}");
            let new = binary("ferrule-cloud");
            replaced.run_instead(&new);
            self.cluster.nodes[node].restart();
        }
        self.runs[node] = if runs { version } else { Version::New };
        self.cluster.wait_whole();
        self.load.wait_acknowledged(50);
        runs
    }

    fn stop(&mut self, node: usize) {
        let can_drain = self.old.is_none() || self.runs[node] == Version::New;
        let folder = self.cluster.nodes[node].data_dir().to_str().unwrap().to_owned();
        if can_drain {
            let ended =
                run_to_exit(Role::Cloud, &["cluster", "drain", "--rate", "20", "--data-dir", &folder]);
            assert!(ended.status.success(), "{ended:?}");
        } else {
            self.load.cut(node);
        }
        self.load.wait_acknowledged(20);
        assert!(self.cluster.nodes[node].terminate().success());
        self.load.wait_elsewhere(node);
        self.load.wait_acknowledged(20);
    }
}

#[test]
fn nodes_are_replaced_one_after_the_other_and_nothing_is_lost() {
    let old = std::env::var_os("FERRULE_OLD_CLOUD").map(PathBuf::from);
    let (postgres, folder) = (Postgres::start(), tempfile::tempdir().unwrap());
    let start = |n: usize| {
        let config = config(&postgres, &folder, &format!("node-{n}"));
        Node::start(&match &old {
            Some(old) => config.program(old),
            None => config,
        })
    };
    let nodes: Vec<Node> = (1..=NODES).map(start).collect();
    let cluster = Cluster { nodes, postgres, _folder: folder };
    cluster.wait_whole();
    let load = Load::start(cluster.nodes.iter().map(Node::addr).collect());
    load.wait_acknowledged(50);
    let mut upgrade = Upgrade { cluster, load, old, runs: [Version::Old; NODES] };
    assert!(upgrade.replace(0, Version::New));
    assert!(upgrade.replace(1, Version::New));
    // Somebody is not content, and then is.
    let back = upgrade.replace(1, Version::Old);
    assert!(upgrade.replace(1, Version::New));
    assert!(upgrade.replace(2, Version::New));
    let Upgrade { cluster, load, old, .. } = upgrade;
    let sums = load.finish();
    tell(&sums, old.as_deref(), back);
    assert!(sums.lost == 0 && sums.promised > 0, "{sums:?}");
    for node in &cluster.nodes {
        let log = node.log();
        assert!(!log.contains(" ERROR "), "{log}");
    }
}

fn tell(sums: &Sums, old: Option<&Path>, back: bool) {
    let row = json!({
        "fault": "nodes are replaced one after the other, one of them there and back",
        "times": 5,
        "acknowledged": sums.acknowledged,
        "promised": sums.promised,
        "lost": sums.lost,
        "duplicated": sums.twice,
        "withheld": sums.withheld,
        "connections": sums.connections,
        "runs_with_newer_tables": back,
        "from": std::env::var("FERRULE_OLD_COMMIT").ok().filter(|_| old.is_some()),
    });
    eprintln!("{row:#}");
    let (Some(folder), Some(_)) = (std::env::var_os("FERRULE_FAULT_RESULTS"), old) else { return };
    let (day, commit) = soak::day_and_commit(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    let result = json!({"date": day, "commit": commit, "machine": soak::machine(), "rows": [row]});
    std::fs::create_dir_all(&folder).unwrap();
    let file = Path::new(&folder).join(format!("upgrade-{day}-{commit}.json"));
    std::fs::write(&file, format!("{result:#}\n")).unwrap();
}
