//! Listeners, from the configuration to their end: sockets bound, or taken from systemd; certificates loaded, and loaded again when their
//! files change.
//!
//! A certificate that cannot be loaded ends a start. Later the old one stays in force, the log and `status` say why, and the files are tried
//! again when they change. Connections that are open keep what they began with, also when a reload asks something else of those that come.

use crate::config::{Bind, BrokerConfig, ListenerConfig};
use crate::control::{CertificateStatus, ListenerStatus};
use crate::run::RunError;
use ferrule_net::{Address, Entrance, Listener};
use ferrule_transport::files::Files;
use ferrule_transport::stack::ServerLayers;
use ferrule_transport::tls::{self, CertificateInfo, LoadError, ServerFiles};
use listenfd::ListenFd;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often files are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often an end of validity that comes near is told.
const WARNING_INTERVAL: Duration = Duration::from_secs(86_400);

/// All listeners of a node.
#[derive(Debug, Clone)]
pub struct Listeners(Arc<[Listening]>);

/// One that runs.
#[derive(Debug)]
struct Listening {
    config: Mutex<ListenerConfig>,
    address: Address,
    entrance: Arc<Entrance>,
    certificates: Mutex<Certificates>,
    /// Its certificates' files, as they were when they were loaded.
    files: Mutex<Option<Files>>,
}

/// What connections of listeners are to have, loaded; none of those that stay as they are, whatever their files are now.
pub struct Prepared(Vec<Option<(ServerLayers, Vec<CertificateInfo>)>>);

/// What a listener proves itself with.
#[derive(Debug, Default)]
struct Certificates {
    infos: Vec<CertificateInfo>,
    /// Why what is on disk is not in force.
    error: Option<String>,
}

/// Binds all of them.
///
/// # Errors
/// The first that cannot be, with what to do; nothing is listening then.
pub fn open(config: &BrokerConfig) -> Result<(Vec<Listener>, Listeners), RunError> {
    let mut sockets = Inherited::take();
    let mut opened = Vec::new();
    let mut listening = Vec::new();
    for listener in &config.listeners {
        let (layers, infos) = layers(listener).map_err(|error| RunError::Tls(error.to_string()))?;
        let entrance = Entrance::new(layers, listener.proxies.clone(), listener.entrance);
        let entrance = Arc::new(entrance);
        let socket = bind(listener, &entrance, &mut sockets)?;
        listening.push(Listening {
            config: Mutex::new(listener.clone()),
            address: socket.address().clone(),
            entrance,
            certificates: Mutex::new(Certificates { infos, error: None }),
            files: Mutex::new(files(listener)),
        });
        opened.push(socket);
    }
    let listeners = Listeners(listening.into());
    listeners.warn();
    Ok((opened, listeners))
}

/// The files to be looked at.
fn files(listener: &ListenerConfig) -> Option<Files> {
    listener.tls.as_ref().map(|tls| Files::new(tls.paths()))
}

/// Loads what the connections of listeners are to have next, but for those whose numbers are in `gone`.
///
/// # Errors
/// Of the first file that cannot be used.
pub fn prepare(listeners: &[ListenerConfig], gone: &[usize]) -> Result<Prepared, String> {
    let load = |(at, listener): (usize, &ListenerConfig)| {
        let loaded = (!gone.contains(&at)).then(|| layers(listener)).transpose();
        loaded.map_err(|error| format!("listener {}: {error}", listener.bind))
    };
    listeners.iter().enumerate().map(load).collect::<Result<_, _>>().map(Prepared)
}

/// Loads what a listener's connections need: for a start, for a reload, and for `check`.
///
/// # Errors
/// Of the first file that cannot be used.
pub fn layers(listener: &ListenerConfig) -> Result<(ServerLayers, Vec<CertificateInfo>), LoadError> {
    let (tls, infos) = listener.tls.as_ref().map(ServerFiles::load).transpose()?.unzip();
    let layers = ServerLayers {
        proxy: listener.proxies.is_some(),
        tls,
        name_from: listener.username_from,
        websocket: listener.websocket.as_deref().map(Into::into),
    };
    Ok((layers, infos.unwrap_or_default()))
}

fn bind(
    listener: &ListenerConfig,
    entrance: &Arc<Entrance>,
    sockets: &mut Inherited,
) -> Result<Listener, RunError> {
    let entrance = Arc::clone(entrance);
    let result = match &listener.bind {
        Bind::Tcp(address) => Listener::bind(*address, entrance),
        Bind::Unix(path) => Listener::bind_unix(path, listener.unix_mode, entrance),
        Bind::Systemd(name) => return sockets.listener(name, entrance),
    };
    result.map_err(|error| {
        let reason = match (&listener.bind, error.kind()) {
            (Bind::Tcp(address), ErrorKind::AddrInUse) => format!(
                "the port is in use: `ss -ltnp 'sport = :{}'` shows by whom; choose another in `bind`",
                address.port()
            ),
            (Bind::Tcp(_), ErrorKind::PermissionDenied) => {
                "ports under 1024 need root: choose another in `bind`".into()
            }
            (Bind::Unix(path), ErrorKind::AddrInUse) => {
                format!("another process listens there, or it is no socket: `ls -l {}`", path.display())
            }
            _ => error.to_string(),
        };
        RunError::Listen { address: listener.bind.to_string(), reason }
    })
}

/// Sockets that systemd has bound for us, by name.
struct Inherited {
    sockets: ListenFd,
    /// In their order; those that were taken are empty.
    names: Vec<Option<String>>,
}

impl Inherited {
    fn take() -> Self {
        let sockets = ListenFd::from_env();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names: Vec<_> = names.split(':').map(|name| Some(name.to_owned())).collect();
        // systemd's own name for one without.
        names.resize(sockets.len(), Some("unknown".to_owned()));
        Self { sockets, names }
    }

    fn listener(&mut self, name: &str, entrance: Arc<Entrance>) -> Result<Listener, RunError> {
        let failed = |reason: String| RunError::Listen { address: format!("systemd:{name}"), reason };
        let Some(index) = self.names.iter().position(|n| n.as_deref() == Some(name)) else {
            let there: Vec<&str> = self.names.iter().flatten().map(String::as_str).collect();
            return Err(failed(match there[..] {
                [] => {
                    "systemd has passed no socket: start it by a socket unit with FileDescriptorName=".into()
                }
                _ => format!("the sockets that systemd has passed are called {}", there.join(", ")),
            }));
        };
        self.names[index] = None;
        let listener = match self.sockets.take_tcp_listener(index) {
            Ok(Some(socket)) => Listener::tcp(socket, entrance),
            Ok(None) => return Err(failed("it was taken already".into())),
            Err(_) => match self.sockets.take_unix_listener(index) {
                Ok(Some(socket)) => Listener::unix(socket, entrance),
                Ok(None) => return Err(failed("it was taken already".into())),
                Err(error) => Err(error),
            },
        };
        listener.map_err(|error| failed(format!("it is no listening stream socket: {error}")))
    }
}

impl Listeners {
    /// Where they listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.0.iter().map(|listening| listening.address.to_string()).collect()
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self) -> Vec<ListenerStatus> {
        self.0.iter().map(Listening::status).collect()
    }

    /// Loads certificates again when their files change, and warns of their end, for ever.
    pub async fn watch(self) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut warned = tokio::time::Instant::now();
        loop {
            ticks.tick().await;
            let has_files = |listening: &Listening| lock(&listening.files).is_some();
            if !self.0.iter().any(has_files) {
                continue;
            }
            let listeners = self.clone();
            // Files may be slow; an end of the runtime ends this too.
            let look = move || {
                for listening in &*listeners.0 {
                    if lock(&listening.files).as_mut().is_some_and(Files::have_changed) {
                        listening.load_again();
                    }
                }
            };
            if tokio::task::spawn_blocking(look).await.is_err() {
                return;
            }
            if warned.elapsed() >= WARNING_INTERVAL {
                warned = tokio::time::Instant::now();
                self.warn();
            }
        }
    }

    /// Other listeners, with the same addresses and in the same order, from now on. Those that stay as they are are not touched.
    pub fn exchange(&self, listeners: &[ListenerConfig], prepared: Prepared) {
        for ((listening, new), loaded) in self.0.iter().zip(listeners).zip(prepared.0) {
            let mut config = lock(&listening.config);
            let Some((layers, infos)) = loaded.filter(|_| *config != *new) else { continue };
            *lock(&listening.files) = files(new);
            listening.entrance.set(layers, new.proxies.clone(), new.entrance);
            *lock(&listening.certificates) = Certificates { infos, error: None };
            *config = new.clone();
        }
    }

    /// Of certificates that have ended or soon will.
    fn warn(&self) {
        for listening in &*self.0 {
            listening.warnings().iter().for_each(|warning| {
                tracing::warn!(listener = %listening.address, "{warning}");
            });
        }
    }

    /// Removes the files of Unix sockets: nobody listens on them any more.
    pub fn remove_files(&self) {
        for listening in &*self.0 {
            if let Bind::Unix(path) = &lock(&listening.config).bind {
                // Gone already: so much the better.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Listening {
    fn load_again(&self) {
        let config = lock(&self.config).clone();
        let loaded = layers(&config);
        let current = lock(&self.config);
        if *current != config {
            return; // Another listener's files by now.
        }
        let mut certificates = lock(&self.certificates);
        match loaded {
            Ok((layers, infos)) => {
                self.entrance.set_layers(layers);
                *certificates = Certificates { infos, error: None };
                drop(certificates);
                tracing::info!(listener = %self.address, "new certificates are in force");
                self.warnings()
                    .iter()
                    .for_each(|warning| tracing::warn!(listener = %self.address, "{warning}"));
            }
            Err(error) => {
                tracing::error!(listener = %self.address, "the old certificates stay: {error}");
                certificates.error = Some(error.to_string());
            }
        }
    }

    fn warnings(&self) -> Vec<String> {
        warnings(&lock(&self.certificates).infos)
    }

    fn status(&self) -> ListenerStatus {
        let protocol = lock(&self.config).protocol().to_owned();
        let certificates = lock(&self.certificates);
        let stats = self.entrance.stats();
        ListenerStatus {
            bind: self.address.to_string(),
            protocol,
            accepted: stats.accepted,
            refused_full: stats.full,
            refused_address: stats.address_full,
            refused_untrusted: stats.untrusted,
            delayed: stats.delayed,
            faults: stats.faults,
            certificates: certificates.infos.iter().map(certificate_status).collect(),
            error: certificates.error.clone(),
        }
    }
}

/// Of certificates that have ended or soon will.
#[must_use]
pub fn warnings(certificates: &[CertificateInfo]) -> Vec<String> {
    tls::warnings(certificates, ferrule_clock::wall_s())
}

/// A certificate as `status` shows it.
pub(crate) fn certificate_status(info: &CertificateInfo) -> CertificateStatus {
    CertificateStatus {
        file: info.file.display().to_string(),
        subject: info.subject.clone(),
        names: info.names.clone(),
        days_left: (info.not_after_s - ferrule_clock::wall_s()).div_euclid(86_400),
    }
}

/// What it guards is whole whatever happened to whoever held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
