//! A node that is one of several.

use crate::options;
use ferrule_cluster::State;
use ferrule_cluster_link::{Tls, TlsFiles, Token, Trust};
use ferrule_cluster_member::{Member, RemoveError, Seen, Setup};
use ferrule_node::cluster::{Asking, Cluster, Exchange, Membership, Seat};
use ferrule_node::config::{ClusterConfig, ClusterTls, PostgresConfig};
use ferrule_node::control::{ClusterStatus, MemberStatus};
use ferrule_transport::files::Files;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What `[cluster]` needs.
pub(crate) const CLUSTER: Cluster = Cluster { check, join };

fn check(config: &ClusterConfig) -> Result<(), String> {
    trust(config).map(drop)
}

fn trust(config: &ClusterConfig) -> Result<Trust, String> {
    let token = config.token.as_ref().map(|token| Token::new(token.as_str()));
    let token = token.transpose().map_err(|error| format!("`cluster.token_file`: {error}"))?;
    let tls = config.tls.as_ref().map(|tls| read(&files(tls)));
    match (token, tls.transpose()?) {
        (Some(token), Some(tls)) => Ok(Trust::TokenAndTls(token, tls)),
        (Some(token), None) => Ok(Trust::Token(token)),
        (None, Some(tls)) => Ok(Trust::Tls(tls)),
        (None, None) => Err("[cluster] needs `token_file` or `tls`".into()),
    }
}

fn files(tls: &ClusterTls) -> TlsFiles {
    TlsFiles {
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        ca: tls.ca.clone(),
        crl: tls.crl.clone(),
        name: tls.server_name.clone(),
    }
}

fn read(files: &TlsFiles) -> Result<Tls, String> {
    let (tls, _) = files.load().map_err(|error| format!("[cluster] `tls`: {error}"))?;
    Ok(tls)
}

fn join(
    config: &ClusterConfig,
    store: &PostgresConfig,
    listener: TcpListener,
    seat: Seat,
) -> Result<Box<dyn Membership>, String> {
    // Before they are read: what changes in between is seen.
    let certificates = config.tls.as_ref().map(files).map(|files| Certificates {
        seen: Mutex::new(Files::new(files.paths())),
        files,
        error: Mutex::default(),
    });
    let member = Member::start(Setup {
        node: store.node.clone(),
        cluster: config.name.clone(),
        listener,
        advertise: config.advertise.clone(),
        seeds: config.seeds.clone(),
        trust: trust(config)?,
        store: options(store),
        posts: seat.posts,
        gate: seat.gate,
        words: seat.words,
    });
    let member = member.map_err(|error| error.to_string())?;
    let certificates = certificates.map(Arc::new);
    Ok(Box::new(Joined { name: config.name.clone(), member: Arc::new(member), certificates }))
}

struct Joined {
    name: String,
    member: Arc<Member>,
    /// What links show; none: there is no TLS.
    certificates: Option<Arc<Certificates>>,
}

struct Certificates {
    files: TlsFiles,
    /// As they were when they were read last.
    seen: Mutex<Files>,
    /// Why what is on disk is not in force.
    error: Mutex<Option<String>>,
}

/// What it guards is whole whatever happened to whoever held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Membership for Joined {
    fn status(&self) -> Asking<'_, Option<ClusterStatus>> {
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
                certificate_error: self.certificates.as_ref().and_then(|known| lock(&known.error).clone()),
                trouble: status.trouble,
                members: status.members.into_iter().map(member).collect(),
            })
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> Asking<'a, Result<bool, String>> {
        Box::pin(async {
            match self.member.remove(name).await {
                Ok(()) => Ok(true),
                Err(RemoveError::Seen) => Ok(false),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn read_certificates(&self) -> Result<Exchange, String> {
        let Some(certificates) = self.certificates.clone() else { return Ok(Box::new(|| {})) };
        let tls = read(&certificates.files)?;
        let member = Arc::clone(&self.member);
        Ok(Box::new(move || {
            *lock(&certificates.error) = None;
            member.set_tls(tls);
            tracing::info!("new certificates between nodes are in force, for links from now on");
        }))
    }

    fn look_at_certificates(&self) {
        let Some(certificates) = &self.certificates else { return };
        if !lock(&certificates.seen).have_changed() {
            return;
        }
        match self.read_certificates() {
            Ok(exchange) => exchange(),
            Err(error) => {
                tracing::error!("the old certificates between nodes stay: {error}");
                *lock(&certificates.error) = Some(error);
            }
        }
    }

    fn stop(&self) -> bool {
        self.member.stop()
    }
}

fn member(seen: Seen) -> MemberStatus {
    let state = match seen.state {
        State::Joining => "joining",
        State::Live => "live",
    };
    MemberStatus {
        name: seen.name,
        node: seen.id.node.0,
        incarnation: seen.id.incarnation,
        state: state.to_owned(),
        addresses: seen.addresses,
        linked: seen.linked,
        trouble: seen.trouble,
    }
}
