//! `[cluster]`: the node is one of several.

use super::reader::{Reader, Section};
use super::resolve::read_password_file;
use super::{Secret, StoreConfig};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterConfig {
    /// Nodes of another one are refused.
    pub name: String,
    /// Where the other nodes connect.
    pub bind: SocketAddr,
    /// How they reach that: `host:port`; none: by the address that it is bound to, or from which it reaches the seeds.
    pub advertise: Vec<String>,
    /// Where nodes of this cluster may be: `host:port`.
    pub seeds: Vec<String>,
    /// Other nodes that have a copy of a will: 1 or 2.
    pub will_copies: u8,
    /// From `token_file`.
    pub token: Option<Secret>,
    /// How long the members must have stayed the same before rules that remember something are spread over them anew.
    pub spread_rules_after: Duration,
    /// `[cluster.tls]`.
    pub tls: Option<ClusterTls>,
}

/// `[cluster.tls]`: files in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterTls {
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of all nodes' certificates.
    pub ca: PathBuf,
    /// Its revoked ones.
    pub crl: Option<PathBuf>,
    /// A name that all nodes' certificates have; none: each has its host.
    pub server_name: Option<String>,
}

/// The port that other nodes connect to unless something else is said.
const PORT: u16 = 7883;
/// Each is asked at every start.
const SEEDS_MAX: usize = 64;

/// The store's `SETTLE` says why.
pub(super) const SPREAD_RULES_AFTER: Duration = Duration::from_secs(10);

pub(super) fn read_cluster(
    mut s: Section<'_>,
    store: &StoreConfig,
    r: &mut Reader<'_>,
) -> Option<ClusterConfig> {
    let is_present = s.is_present();
    let name = s.or(r, "name", "ferrule".to_owned());
    let bind = s.or(r, "bind", SocketAddr::from(([127, 0, 0, 1], PORT)));
    let advertise: Option<Vec<String>> = s.get(r, "advertise");
    let seeds: Vec<String> = s.get(r, "seeds").unwrap_or_default();
    let will_copies = s.number(r, "will_copies", 1, 1..=2) as u8;
    let file: Option<PathBuf> = s.get(r, "token_file");
    let spread_rules_after = s.or(r, "spread_rules_after", SPREAD_RULES_AFTER);
    let place = s.place_of("token_file").clone();
    let tls = s.section(r, "tls");
    let tls = if tls.is_present() { read_tls(tls, r) } else { None };
    if !is_present {
        s.end(r, &[]);
        return None;
    }
    let token = file.and_then(|file| read_password_file(&file, &place, r)).map(Secret::new);
    if *store == StoreConfig::Sqlite {
        let help = "`backend = \"postgres\"` in [store], the same database and schema for all nodes";
        r.fail(s.place(), "a cluster needs a store that its nodes share", Some(help));
    }
    if !s.has("token_file") && tls.is_none() {
        let help = "`token_file = \"cluster.token\"`: one line, the same at all nodes; `openssl rand -hex 32` makes one. Or `tls = { cert, key, ca }`, or both";
        r.fail(s.place(), "whoever reaches the port could join this cluster", Some(help));
    }
    if spread_rules_after < Duration::from_millis(100) {
        let message = "rules would move with each node that comes and goes: \"100ms\" at least";
        s.fail(r, "spread_rules_after", message, Some("\"10s\" is usual"));
    }
    if name.is_empty() || name.len() > 64 {
        s.fail(r, "name", "a cluster's name has 1 to 64 characters", None);
    }
    check_addresses(&s, r, "seeds", &seeds, "seeds = [\"ferrule-nodes.default.svc:7883\"]");
    if seeds.len() > SEEDS_MAX {
        let help = "a few are enough; a name stands for all its addresses";
        s.fail(r, "seeds", format!("{} seeds, and {SEEDS_MAX} are the most", seeds.len()), Some(help));
    }
    let advertise = match advertise {
        Some(list) => {
            check_addresses(&s, r, "advertise", &list, "advertise = [\"10.0.0.5:7883\"]");
            if list.is_empty() {
                s.fail(
                    r,
                    "advertise",
                    "nobody could reach this node",
                    Some("leave it out, or name an address"),
                );
            }
            list
        }
        None if bind.ip().is_unspecified() && seeds.is_empty() => {
            let help = "advertise = [\"10.0.0.5:7883\"]; or `bind` to one address; or `seeds`, by which it finds out";
            s.fail(r, "bind", "say by which address the other nodes reach this one", Some(help));
            Vec::new()
        }
        None => Vec::new(),
    };
    s.end(r, &[("token", "put it into a file, alone in its one line: token_file = \"cluster.token\"")]);
    Some(ClusterConfig { name, bind, advertise, seeds, will_copies, token, spread_rules_after, tls })
}

fn check_addresses(s: &Section<'_>, r: &mut Reader<'_>, field: &'static str, list: &[String], help: &str) {
    for address in list.iter().filter(|address| !is_address(address)) {
        s.fail(r, field, format!("{address:?} is not an address with a port"), Some(help));
    }
}

/// `host:port`.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && port.parse::<u16>().is_ok_and(|port| port != 0)
            && !host.contains(char::is_whitespace)
    })
}

fn read_tls(mut s: Section<'_>, r: &mut Reader<'_>) -> Option<ClusterTls> {
    let [cert, key, ca, crl] = ["cert", "key", "ca", "crl"].map(|name| {
        let file: Option<PathBuf> = s.get(r, name);
        let place = s.place_of(name).clone();
        file.map(|file| r.resolve(file, &place))
    });
    let server_name = s.get(r, "server_name");
    for (name, file) in [("cert", &cert), ("key", &key), ("ca", &ca)] {
        if file.is_none() && !s.has(name) {
            let help = "tls = { cert = \"node.crt\", key = \"node.key\", ca = \"cluster-ca.crt\" }";
            r.fail(s.place(), format!("TLS between nodes needs `{name}`"), Some(help));
        }
    }
    s.end(r, &[]);
    Some(ClusterTls { cert: cert?, key: key?, ca: ca?, crl, server_name })
}
