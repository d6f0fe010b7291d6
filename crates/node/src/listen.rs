//! Listeners, from the configuration to their end: sockets bound, or taken from systemd; certificates loaded, and loaded again when their
//! files change.
//!
//! A certificate that cannot be loaded ends a start. Later the old one stays in force, the log and `status` say why, and the files are tried
//! again when they change. Connections that are open keep their layers, also when a reload asks something else of those that come.
//!
//! # A reload
//! - A listener goes by its number, which no other has in this process: what workers, shards and the gate know of it stays true, however
//!   many come and go.
//! - All that can fail comes first ([`Listeners::prepare`]): certificates are loaded, addresses bound. What was prepared and is dropped
//!   leaves all as it was.
//! - `0.0.0.0:1883` in the place of `127.0.0.1:1883` cannot be bound beside it: a listener that goes and is in the way stops listening for that
//!   moment, and listens again if the reload comes to nothing.
//! - A socket of systemd's that no listener wants any more is kept, and can be asked for again.
//!
//! # A drain
//! While clients are moved off ([`crate::drain`]) whoever connects is refused by the kernel: what a load balancer takes for a node that is down, and tries the next
//! one. It is so with a port that was asked for; one of systemd's is systemd's to close, a Unix socket that was closed cannot be opened again, and another
//! port would be no use to anybody. Those accept, and the CONNECT is refused.

use crate::config::{Bind, BrokerConfig, ListenerConfig};
use crate::control::{CertificateStatus, ListenerStatus};
use crate::run::RunError;
use ferrule_net::{Entrance, Inbox, Listener, Mail};
use ferrule_transport::files::Files;
use ferrule_transport::stack::ServerLayers;
use ferrule_transport::tls::{self, CertificateInfo, LoadError, ServerFiles};
use listenfd::ListenFd;
use std::fmt;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often files are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often an end of validity that comes near is told.
const WARNING_INTERVAL: Duration = Duration::from_secs(86_400);

/// All listeners of a node.
#[derive(Debug, Clone)]
pub struct Listeners(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// In the order of the configuration.
    list: Mutex<Vec<Arc<Listening>>>,
    inherited: Mutex<Inherited>,
    /// Nobody is let in: also not by a listener that a reload brings.
    draining: AtomicBool,
}

/// One that runs.
#[derive(Debug)]
struct Listening {
    number: u16,
    config: Mutex<ListenerConfig>,
    /// The workers have the same one.
    socket: Listener,
    certificates: Mutex<Certificates>,
    /// Its certificates' files, as they were when they were loaded.
    files: Mutex<Option<Files>>,
}

/// What a reload makes of the listeners, loaded and bound. Dropped, it is as if it had not been.
#[derive(Debug)]
pub struct Prepared {
    listeners: Listeners,
    next: Vec<Next>,
    gone: Vec<Arc<Listening>>,
    /// Those of them that were in the way.
    suspended: Vec<Arc<Listening>>,
}

/// What becomes of a listener of the new configuration.
#[derive(Debug)]
enum Next {
    Stays(Arc<Listening>),
    Changes(Arc<Listening>, Box<(ListenerConfig, Loaded)>),
    /// And one for each worker.
    Opens(Arc<Listening>, Vec<Listener>),
}

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
    let mut list = Vec::new();
    for listener in &config.listeners {
        let loaded = layers(listener).map_err(|error| RunError::Tls(error.to_string()))?;
        let listening = Listening::open(listener, loaded, &mut sockets)?;
        opened.push(listening.share()?);
        list.push(Arc::new(listening));
    }
    let draining = AtomicBool::new(false);
    let shared = Shared { list: Mutex::new(list), inherited: Mutex::new(sockets), draining };
    let listeners = Listeners(Arc::new(shared));
    listeners.warn();
    Ok((opened, listeners))
}

/// The files to be looked at.
fn files(listener: &ListenerConfig) -> Option<Files> {
    listener.tls.as_ref().map(|tls| Files::new(tls.paths()))
}

/// Loads what a listener's connections need: for a start, for a reload, and for `check`.
///
/// # Errors
/// Of the first file that cannot be used.
pub fn layers(listener: &ListenerConfig) -> Result<Loaded, LoadError> {
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
    /// Those that a listener had.
    back: Vec<(String, Listener)>,
    /// In their order; those that were taken are empty.
    names: Vec<Option<String>>,
}

impl fmt::Debug for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inherited").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Inherited {
    fn take() -> Self {
        let sockets = ListenFd::from_env();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names: Vec<_> = names.split(':').map(|name| Some(name.to_owned())).collect();
        // systemd's own name for one without.
        names.resize(sockets.len(), Some("unknown".to_owned()));
        Self { sockets, back: Vec::new(), names }
    }

    fn listener(&mut self, name: &str, entrance: Arc<Entrance>) -> Result<Listener, RunError> {
        let failed = |reason: String| RunError::Listen { address: format!("systemd:{name}"), reason };
        if let Some(at) = self.back.iter().position(|(known, _)| known == name) {
            return Ok(self.back.swap_remove(at).1.with(entrance));
        }
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
        self.all().iter().map(|listening| listening.socket.address().to_string()).collect()
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self) -> Vec<ListenerStatus> {
        self.all().iter().map(|listening| listening.status()).collect()
    }

    fn all(&self) -> Vec<Arc<Listening>> {
        lock(&self.0.list).clone()
    }

    /// Loads certificates again when their files change, and warns of their end, for ever.
    pub async fn watch(self) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut warned = tokio::time::Instant::now();
        loop {
            ticks.tick().await;
            let mut listeners = self.all();
            listeners.retain(|listening| lock(&listening.files).is_some());
            if listeners.is_empty() {
                continue;
            }
            // Files may be slow; an end of the runtime ends this too.
            let look = move || {
                for listening in &listeners {
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

    /// Loads and binds what other listeners need, by their numbers, without changing those that are there; for so many workers.
    ///
    /// # Errors
    /// Of the first file that cannot be used, and of the first address.
    pub fn prepare(&self, listeners: &[ListenerConfig], workers: usize) -> Result<Prepared, String> {
        let load = |listener: &ListenerConfig| {
            layers(listener).map_err(|error| format!("listener {}: {error}", listener.bind))
        };
        let loaded = listeners.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let running = self.all();
        let is_gone = |listening: &&Arc<Listening>| listeners.iter().all(|l| l.number != listening.number);
        let gone = running.iter().filter(is_gone).cloned().collect();
        let mut prepared =
            Prepared { listeners: self.clone(), next: Vec::new(), gone, suspended: Vec::new() };
        for (listener, loaded) in listeners.iter().zip(loaded) {
            let next = match running.iter().find(|listening| listening.number == listener.number) {
                Some(known) if *lock(&known.config) == *listener => Next::Stays(Arc::clone(known)),
                Some(known) => Next::Changes(Arc::clone(known), Box::new((listener.clone(), loaded))),
                None => {
                    let listening = prepared.open(listener, loaded).map_err(|error| error.to_string())?;
                    Next::Opens(listening, Vec::new())
                }
            };
            prepared.next.push(next);
            // What was opened is among those that are closed again by now.
            if let Some(Next::Opens(listening, shares)) = prepared.next.last_mut() {
                let all = (0..workers).map(|_| listening.share()).collect::<Result<_, _>>();
                *shares = all.map_err(|error| error.to_string())?;
            }
        }
        Ok(prepared)
    }

    /// Puts in force what was prepared. Those that stay as they are are not touched; the numbers of those that are gone, whose connections
    /// are still there.
    pub fn exchange<M>(&self, mut prepared: Prepared, inboxes: &[Inbox<M>]) -> Vec<u16> {
        let mut list = Vec::new();
        for next in std::mem::take(&mut prepared.next) {
            list.push(match next {
                Next::Stays(listening) => listening,
                Next::Changes(listening, to) => {
                    listening.change(*to);
                    listening
                }
                Next::Opens(listening, shares) => {
                    listening.warn();
                    for (inbox, share) in inboxes.iter().zip(shares) {
                        inbox.post(Mail::Listen(listening.number, share));
                    }
                    listening
                }
            });
        }
        *lock(&self.0.list) = list;
        if self.0.draining.load(Ordering::SeqCst)
            && let Err(error) = self.suspend()
        {
            tracing::error!("{error}");
        }
        prepared.suspended.clear();
        let gone = std::mem::take(&mut prepared.gone);
        for listening in &gone {
            if !matches!(lock(&listening.config).bind, Bind::Systemd(_)) {
                // One that was in the way does not listen any more.
                let _ = listening.socket.suspend();
            }
            inboxes.iter().for_each(|inbox| inbox.post(Mail::Unlisten(listening.number)));
            self.leave(listening);
        }
        gone.iter().map(|listening| listening.number).collect()
    }

    /// Refuses whoever connects from now on, where the kernel can; those who are there stay.
    ///
    /// # Errors
    /// Of the first that cannot be stopped.
    pub fn suspend(&self) -> Result<(), String> {
        // Before the list is looked at: a reload looks at it after it has made another one.
        self.0.draining.store(true, Ordering::SeqCst);
        for listening in self.all().iter().filter(|listening| listening.can_pause()) {
            let suspended = listening.socket.suspend();
            suspended.map_err(|error| {
                format!("cannot stop listening on {}: {error}", listening.socket.address())
            })?;
        }
        Ok(())
    }

    /// Takes connections again.
    ///
    /// # Errors
    /// Of those that cannot listen again, with what to do; the others do.
    pub fn resume(&self) -> Result<(), String> {
        self.0.draining.store(false, Ordering::SeqCst);
        let mut wrong = Vec::new();
        for listening in self.all().iter().filter(|listening| listening.can_pause()) {
            if let Err(error) = listening.socket.resume() {
                let address = listening.socket.address();
                wrong.push(format!("cannot listen on {address} again: {error}; `ss -ltnp` shows who has it, and a restart tries again"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// A listener is not there any more: its file goes, or its socket is kept for another.
    fn leave(&self, listening: &Listening) {
        match &lock(&listening.config).bind {
            // Gone already: so much the better.
            Bind::Unix(path) => drop(std::fs::remove_file(path)),
            Bind::Systemd(name) => match listening.socket.share() {
                Ok(socket) => lock(&self.0.inherited).back.push((name.clone(), socket)),
                Err(error) => {
                    tracing::warn!(%error, "cannot keep the socket {name} of systemd's: it is there again after a restart");
                }
            },
            Bind::Tcp(_) => {}
        }
    }

    /// Of certificates that have ended or soon will.
    fn warn(&self) {
        self.all().iter().for_each(|listening| listening.warn());
    }

    /// Removes the files of Unix sockets: nobody listens on them any more.
    pub fn remove_files(&self) {
        for listening in self.all() {
            if let Bind::Unix(path) = &lock(&listening.config).bind {
                // Gone already: so much the better.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Prepared {
    /// Binds a listener; what goes and is in its way stops listening.
    fn open(&mut self, listener: &ListenerConfig, loaded: Loaded) -> Result<Arc<Listening>, RunError> {
        for listening in &self.gone {
            let is_suspended = self.suspended.iter().any(|known| Arc::ptr_eq(known, listening));
            if listening.is_in_the_way_of(&listener.bind) && !is_suspended {
                listening.socket.suspend().map_err(|error| RunError::System { what: "a listener", error })?;
                self.suspended.push(Arc::clone(listening));
            }
        }
        let mut inherited = lock(&self.listeners.0.inherited);
        Listening::open(listener, loaded, &mut inherited).map(Arc::new)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // The new ones first: the old ones may have to have their ports again.
        for next in std::mem::take(&mut self.next) {
            if let Next::Opens(listening, _) = next {
                self.listeners.leave(&listening);
            }
        }
        let draining = self.listeners.0.draining.load(Ordering::SeqCst);
        for listening in std::mem::take(&mut self.suspended).into_iter().filter(|_| !draining) {
            if let Err(error) = listening.socket.resume() {
                tracing::error!(listener = %listening.socket.address(), %error, "cannot listen again: restart");
            }
        }
    }
}

/// What a listener's connections need, and what it proves itself with.
type Loaded = (ServerLayers, Vec<CertificateInfo>);

impl Listening {
    fn open(
        listener: &ListenerConfig,
        (layers, infos): Loaded,
        sockets: &mut Inherited,
    ) -> Result<Self, RunError> {
        let entrance = Arc::new(Entrance::new(layers, listener.proxies.clone(), listener.entrance));
        Ok(Self {
            number: listener.number,
            config: Mutex::new(listener.clone()),
            socket: bind(listener, &entrance, sockets)?,
            certificates: Mutex::new(Certificates { infos, error: None }),
            files: Mutex::new(files(listener)),
        })
    }

    /// Whether that address cannot be bound while this one listens, and this one can leave it its port.
    fn is_in_the_way_of(&self, bind: &Bind) -> bool {
        let (Bind::Tcp(asked), Bind::Tcp(mine)) = (bind, &lock(&self.config).bind) else { return false };
        let is_wide = mine.ip().is_unspecified() || asked.ip().is_unspecified();
        let is_one = is_wide || mine.ip().to_canonical() == asked.ip().to_canonical();
        // A socket that was given any port is given another one when it listens again.
        is_one && mine.port() == asked.port() && mine.port() != 0
    }

    /// Whether it can stop listening and begin again where it was.
    fn can_pause(&self) -> bool {
        matches!(lock(&self.config).bind, Bind::Tcp(address) if address.port() != 0)
    }

    /// For one more worker.
    fn share(&self) -> Result<Listener, RunError> {
        self.socket.share().map_err(|error| RunError::System { what: "the listeners", error })
    }

    /// Asks something else of connections that come from now on.
    fn change(&self, (new, (layers, infos)): (ListenerConfig, Loaded)) {
        let mut config = lock(&self.config);
        *lock(&self.files) = files(&new);
        self.socket.entrance().set(layers, new.proxies.clone(), new.entrance);
        *lock(&self.certificates) = Certificates { infos, error: None };
        if let (Bind::Unix(path), true) = (&new.bind, new.unix_mode != config.unix_mode)
            && let Err(error) = std::fs::set_permissions(path, Permissions::from_mode(new.unix_mode))
        {
            tracing::warn!(%error, "cannot change the mode of {}", path.display());
        }
        *config = new;
    }

    fn warn(&self) {
        self.warnings().iter().for_each(|warning| {
            tracing::warn!(listener = %self.socket.address(), "{warning}");
        });
    }

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
                self.socket.entrance().set_layers(layers);
                *certificates = Certificates { infos, error: None };
                drop(certificates);
                tracing::info!(listener = %self.socket.address(), "new certificates are in force");
                self.warn();
            }
            Err(error) => {
                tracing::error!(listener = %self.socket.address(), "the old certificates stay: {error}");
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
        let stats = self.socket.entrance().stats();
        ListenerStatus {
            bind: self.socket.address().to_string(),
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
