//! The uplink's certificates, loaded again when their files change.
//!
//! # Design
//! - One task looks at the files once a second ([`Files`]), and loads them when they have changed.
//! - What cannot be loaded leaves in force what is, and is told: in the log once, in the status until it is mended. With nothing in
//!   force it is tried again every [`RETRY_LOOKS`] looks, since the system's authorities have no file to look at.
//! - A connection keeps the certificate it was made with; moving it is [`crate::uplink`]'s.
//! - Looking and loading run on tokio's blocking threads: a dying SD card stalls them, not the uplink.

use crate::config::{Alpn, Clock, TlsConfig};
use crate::stats::UplinkStats;
use ferrule_transport::files::Files;
use ferrule_transport::tls::{ALPN_HTTP, ALPN_MQTT, CertificateInfo, warnings};
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks between two tries to load what has not changed, while nothing is in force.
const RETRY_LOOKS: u64 = 10;

/// Looks between two warnings of a certificate that is about to end: a day.
const WARN_LOOKS: u64 = 86_400;

/// What there is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    /// In force for the next connection.
    pub(crate) current: Option<Current>,
    /// Why the files on disk are not in force.
    pub(crate) problem: Option<String>,
}

/// Certificates in force.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    /// For MQTT in TLS.
    pub(crate) mqtt: Arc<ClientConfig>,
    /// For WebSocket in TLS.
    pub(crate) websocket: Arc<ClientConfig>,
    /// When our own certificate, or one of its chain, ends, in seconds since 1970; none: none is shown.
    pub(crate) expires_s: Option<i64>,
}

/// The task that looks; ends with this.
pub(crate) struct Watcher {
    task: JoinHandle<()>,
    /// None until the files were loaded, or could not be.
    credentials: watch::Receiver<Option<Credentials>>,
}

// === impl Watcher ===

impl Watcher {
    /// Loads the files and looks at them from then on.
    pub(crate) fn start(config: TlsConfig, clock: Clock, stats: Arc<UplinkStats>) -> Self {
        let (tell, credentials) = watch::channel(None);
        Self { task: tokio::spawn(watch(config, clock, stats, tell)), credentials }
    }

    /// Waits for the first load. Cancel-safe.
    pub(crate) async fn loaded(&mut self) {
        // An error is the end of the task, which only a panic in it brings about: then there are no credentials.
        let _ = self.credentials.wait_for(Option::is_some).await;
    }

    /// Waits for other ones. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        if self.credentials.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What there is now.
    pub(crate) fn get(&self) -> Option<Credentials> {
        self.credentials.borrow().clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(
    config: TlsConfig,
    clock: Clock,
    stats: Arc<UplinkStats>,
    tell: watch::Sender<Option<Credentials>>,
) {
    let paths = config.files().paths();
    let Ok(mut files) = spawn_blocking(|| Files::new(paths)).await else { return };
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut credentials = Credentials::default();
    let mut infos: Vec<CertificateInfo> = Vec::new();
    let mut warn_at = 0;
    for tick in 0u64.. {
        ticks.tick().await;
        let retry = credentials.current.is_none() && tick.is_multiple_of(RETRY_LOOKS);
        let alpn = config.alpn;
        let config = config.clone();
        let work = spawn_blocking(move || {
            let loaded = (files.have_changed() || retry).then(|| config.files().load());
            (files, loaded)
        });
        // It fails when the runtime ends.
        let Ok((looked, loaded)) = work.await else { return };
        files = looked;
        if let Some(loaded) = loaded {
            match loaded {
                Ok((config, found)) => {
                    if credentials.current.is_some() {
                        tracing::info!("the uplink's certificates are loaded anew");
                    }
                    (infos, warn_at) = (found, tick);
                    credentials =
                        Credentials { current: Some(Current::new(&config, &infos, alpn)), problem: None };
                }
                Err(error) => {
                    let problem = error.to_string();
                    if credentials.problem.as_ref() != Some(&problem) {
                        tracing::warn!("the uplink's certificates cannot be used: {problem}");
                    }
                    credentials.problem = Some(problem);
                }
            }
            stats.set_certificates(&infos, credentials.problem.clone());
            tell.send_replace(Some(credentials.clone()));
        }
        let now = clock();
        if tick >= warn_at && now.synced {
            warnings(&infos, now.wall_ms / 1000).iter().for_each(|warning| tracing::warn!("{warning}"));
            warn_at = tick + WARN_LOOKS;
        }
    }
}

// === impl Current ===

impl Current {
    fn new(config: &Arc<ClientConfig>, infos: &[CertificateInfo], alpn: Alpn) -> Self {
        // A listener that speaks several protocols tells them by their registered names (RFC 7301, 6).
        let speaking = |protocol: Option<&[u8]>| {
            let mut config = ClientConfig::clone(config);
            config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
            Arc::new(config)
        };
        let expires_s = infos.iter().map(|info| info.not_after_s).min();
        let mqtt = match alpn {
            Alpn::Mqtt => Some(ALPN_MQTT),
            Alpn::Named(name) => Some(name),
            Alpn::Off => None,
        };
        Self { mqtt: speaking(mqtt), websocket: speaking(Some(ALPN_HTTP)), expires_s }
    }
}
