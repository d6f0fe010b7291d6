//! A node that is one of several.

use crate::options;
use ferrule_cluster::State;
use ferrule_cluster_link::{Tls, TlsFiles, Token, Trust};
use ferrule_cluster_member::{Member, Seen, Setup};
use ferrule_node::cluster::{Cluster, Membership, Seat};
use ferrule_node::config::{ClusterConfig, PostgresConfig};
use ferrule_node::control::{ClusterStatus, MemberStatus};
use std::net::TcpListener;
use std::pin::Pin;

/// What `[cluster]` needs.
pub(crate) const CLUSTER: Cluster = Cluster { check, join };

fn check(config: &ClusterConfig) -> Result<(), String> {
    trust(config).map(drop)
}

fn trust(config: &ClusterConfig) -> Result<Trust, String> {
    let token = config.token.as_ref().map(|token| Token::new(token.as_str()));
    let token = token.transpose().map_err(|error| format!("`cluster.token_file`: {error}"))?;
    let tls = config.tls.as_ref().map(|tls| -> Result<Tls, String> {
        let files = TlsFiles {
            cert: tls.cert.clone(),
            key: tls.key.clone(),
            ca: tls.ca.clone(),
            crl: tls.crl.clone(),
            name: tls.server_name.clone(),
        };
        let (tls, _) = files.load().map_err(|error| format!("[cluster] `tls`: {error}"))?;
        Ok(tls)
    });
    match (token, tls.transpose()?) {
        (Some(token), Some(tls)) => Ok(Trust::TokenAndTls(token, tls)),
        (Some(token), None) => Ok(Trust::Token(token)),
        (None, Some(tls)) => Ok(Trust::Tls(tls)),
        (None, None) => Err("[cluster] needs `token_file` or `tls`".into()),
    }
}

fn join(
    config: &ClusterConfig,
    store: &PostgresConfig,
    listener: TcpListener,
    seat: Seat,
) -> Result<Box<dyn Membership>, String> {
    let mut advertise = config.advertise.clone();
    if advertise.is_empty() {
        advertise.push(listener.local_addr().map_err(|error| error.to_string())?.to_string());
    }
    let member = Member::start(Setup {
        node: store.node.clone(),
        cluster: config.name.clone(),
        listener,
        advertise,
        trust: trust(config)?,
        store: options(store),
        posts: seat.posts,
        gate: seat.gate,
        words: seat.words,
    });
    let member = member.map_err(|error| error.to_string())?;
    Ok(Box::new(Joined { name: config.name.clone(), member }))
}

struct Joined {
    name: String,
    member: Member,
}

impl Membership for Joined {
    fn status(&self) -> Pin<Box<dyn Future<Output = Option<ClusterStatus>> + Send + '_>> {
        Box::pin(async {
            let status = self.member.status().await?;
            Some(ClusterStatus {
                name: self.name.clone(),
                node: status.me.node.0,
                incarnation: status.me.incarnation,
                view: status.view,
                live: status.live,
                acknowledges: status.acknowledges,
                joins: status.joins,
                links_up: status.links_up,
                links_down: status.links_down,
                trouble: status.trouble,
                members: status.members.into_iter().map(member).collect(),
            })
        })
    }

    fn stop(&self) {
        self.member.stop();
    }
}

fn member(seen: Seen) -> MemberStatus {
    let state = match seen.state {
        State::Joining => "joining",
        State::Live => "live",
    };
    MemberStatus {
        node: seen.id.node.0,
        incarnation: seen.id.incarnation,
        state: state.to_owned(),
        addresses: seen.addresses,
        linked: seen.linked,
        trouble: seen.trouble,
    }
}
