//! Where connections come in, and what a listener asks of them before the protocol does.
//!
//! A [`Listener`] is one bound socket, shared by all workers; its [`Entrance`] is what they have in common: the layers of its
//! connections and its limits, which may be exchanged while it runs (a renewed certificate, a reload), and its counts.
//!
//! # Limits
//! | bound | past it |
//! |---|---|
//! | connections | the CONNECT is answered with a reason; [`REFUSED_WITH_ANSWER`] of those at a time, more are closed at once |
//! | connections of one address | the same, [`REFUSED_WITH_ANSWER_PER_ADDRESS`] at a time |
//! | connections a second | wait in the kernel's queue, which holds [`BACKLOG`] |
//! | an address that may not say PROXY | closed at once |

use ferrule_mqtt::ReasonCode;
use ferrule_transport::stack::ServerLayers;
use ipnet::IpNet;
use mio::net::{TcpListener, TcpStream, UnixListener};
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockRef, Socket as Socket2, Type};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections that the kernel keeps for us: all gateways may come back at once, and beyond it each waits a second. The kernel
/// cuts it to net.core.somaxconn, 4,096 as a rule.
pub(crate) const BACKLOG: i32 = 4_096;

/// Connections over the bound that are kept until their CONNECT is answered with the reason.
pub(crate) const REFUSED_WITH_ANSWER: usize = 64;

/// The same of one address.
pub(crate) const REFUSED_WITH_ANSWER_PER_ADDRESS: usize = 4;

/// Log lines about one listener's broken connections: one in this time.
const TOLD_EVERY_US: u64 = 60_000_000;

/// What a peer on a Unix socket counts as: this machine.
const UNIX_PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP, with the port that the system chose where 0 was asked for.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The TCP address.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listening socket.
#[derive(Debug)]
pub struct Listener {
    acceptor: Acceptor,
    address: Address,
    entrance: Arc<Entrance>,
}

#[derive(Debug)]
enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds a TCP port.
    ///
    /// # Errors
    /// As the system says: taken, not allowed, no such address.
    pub fn bind(address: SocketAddr, entrance: Arc<Entrance>) -> io::Result<Self> {
        let socket = Socket2::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart finds connections of the last life in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::tcp(socket.into(), entrance)
    }

    /// Binds a Unix socket with this mode. A socket file on which nobody listens any more is replaced.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::AddrInUse`] when somebody listens, or another kind of file is there.
    pub fn bind_unix(path: &Path, mode: u32, entrance: Arc<Entrance>) -> io::Result<Self> {
        use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
        let is_dead = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if StdStream::connect(path).is_err_and(|error| is_dead(&error)) {
            std::fs::remove_file(path)?;
        }
        let listener = StdListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Self::unix(listener, entrance)
    }

    /// Takes a listening TCP socket that somebody else bound (socket activation).
    ///
    /// # Errors
    /// When it is none.
    pub fn tcp(listener: std::net::TcpListener, entrance: Arc<Entrance>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = Address::Tcp(listener.local_addr()?);
        Ok(Self { acceptor: Acceptor::Tcp(TcpListener::from_std(listener)), address, entrance })
    }

    /// Takes a listening Unix socket that somebody else bound.
    ///
    /// # Errors
    /// When it is none.
    pub fn unix(listener: std::os::unix::net::UnixListener, entrance: Arc<Entrance>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
        let acceptor = Acceptor::Unix(UnixListener::from_std(listener));
        Ok(Self { acceptor, address: Address::Unix(path), entrance })
    }

    /// The same listener for one more worker.
    ///
    /// # Errors
    /// When the system has no files left.
    pub fn share(&self) -> io::Result<Self> {
        let acceptor = match &self.acceptor {
            Acceptor::Tcp(socket) => {
                Acceptor::Tcp(TcpListener::from_std(socket.as_fd().try_clone_to_owned()?.into()))
            }
            Acceptor::Unix(socket) => {
                Acceptor::Unix(UnixListener::from_std(socket.as_fd().try_clone_to_owned()?.into()))
            }
        };
        Ok(Self { acceptor, address: self.address.clone(), entrance: Arc::clone(&self.entrance) })
    }

    /// Takes no connections from now on, in whatever worker, and leaves its port to others; those that nobody has accepted are reset. One that takes none
    /// already stays as it is.
    ///
    /// # Errors
    /// As the system says.
    pub fn suspend(&self) -> io::Result<()> {
        let socket = match &self.acceptor {
            Acceptor::Tcp(socket) => SockRef::from(socket),
            Acceptor::Unix(socket) => SockRef::from(socket),
        };
        // Shut down twice, it would hand its state on to all connections that it takes later: they would be at their end.
        if socket.is_listener()? { socket.shutdown(Shutdown::Both) } else { Ok(()) }
    }

    /// Takes connections again, in all workers, where it did before; one that asked for any port gets another.
    ///
    /// # Errors
    /// As the system says.
    pub fn resume(&self) -> io::Result<()> {
        match &self.acceptor {
            Acceptor::Tcp(socket) => SockRef::from(socket).listen(BACKLOG),
            Acceptor::Unix(socket) => SockRef::from(socket).listen(BACKLOG),
        }
    }

    /// The same socket with another entrance.
    #[must_use]
    pub fn with(self, entrance: Arc<Entrance>) -> Self {
        Self { entrance, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What all its connections pass.
    #[must_use]
    pub fn entrance(&self) -> &Arc<Entrance> {
        &self.entrance
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.acceptor {
            Acceptor::Tcp(socket) => registry.register(socket, token, Interest::READABLE),
            Acceptor::Unix(socket) => registry.register(socket, token, Interest::READABLE),
        }
    }

    pub(crate) fn deregister(&mut self, registry: &Registry) {
        // Once all its files are closed epoll has forgotten it anyhow.
        let _ = match &mut self.acceptor {
            Acceptor::Tcp(socket) => registry.deregister(socket),
            Acceptor::Unix(socket) => registry.deregister(socket),
        };
    }

    pub(crate) fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let accepted = match &self.acceptor {
            Acceptor::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                // Small packets leave when they are written: the turn has gathered them already.
                let _ = stream.set_nodelay(true);
                (stream, peer.ip())
            }
            Acceptor::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                // Reading, writing and shutting down are the same calls for every stream socket.
                let stream = std::net::TcpStream::from(OwnedFd::from(stream));
                (TcpStream::from_std(stream), UNIX_PEER)
            }
        };
        self.entrance.counts.accepted.fetch_add(1, Relaxed);
        Ok(accepted)
    }
}

/// Bounds of one listener, of all workers together; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntranceLimits {
    /// Connections.
    pub connections: usize,
    /// Connections accepted a second.
    pub connect_rate: u32,
    /// Connections of one address.
    pub connections_per_address: usize,
}

/// What the connections of one listener pass, whichever worker accepts them.
#[derive(Debug)]
pub struct Entrance {
    terms: Mutex<Arc<Terms>>,
    /// Connections that may be accepted now, and when that was counted.
    allowed: Mutex<(u32, u64)>,
    open: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    told_us: AtomicU64,
    counts: Counts,
}

/// What is asked of those who come now.
#[derive(Debug)]
struct Terms {
    layers: Arc<ServerLayers>,
    /// Who may say where a connection comes from; none: nobody is asked.
    proxies: Option<Vec<IpNet>>,
    limits: EntranceLimits,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    delayed: AtomicU64,
    full: AtomicU64,
    address_full: AtomicU64,
    untrusted: AtomicU64,
    faults: AtomicU64,
}

/// Counts of a listener since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntranceStats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open, where a bound counts them.
    pub open: usize,
    /// Times that accepting was put off, since a second's connections had come.
    pub delayed: u64,
    /// Refused: over the bound of the listener.
    pub full: u64,
    /// Refused: over the bound of their address.
    pub address_full: u64,
    /// Refused: may not say PROXY.
    pub untrusted: u64,
    /// Ended by a layer under MQTT: PROXY, TLS, HTTP or WebSocket.
    pub faults: u64,
}

/// A connection's place at a listener that counts them. Dropping it makes room.
#[derive(Debug)]
pub(crate) struct Seat {
    entrance: Arc<Entrance>,
    address: Option<IpAddr>,
}

/// Whether a connection may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Stays,
    /// Until its CONNECT has been answered with this.
    Answered(ReasonCode),
    Closed,
}

impl Default for Entrance {
    /// Plain MQTT for everybody.
    fn default() -> Self {
        Self::new(ServerLayers::default(), None, EntranceLimits::default())
    }
}

impl Entrance {
    /// An entrance; `proxies` are those who may, and must, begin with a PROXY header.
    #[must_use]
    pub fn new(layers: ServerLayers, proxies: Option<Vec<IpNet>>, limits: EntranceLimits) -> Self {
        Self {
            terms: Mutex::new(Arc::new(Terms { layers: Arc::new(layers), proxies, limits })),
            allowed: Mutex::new((limits.connect_rate, 0)),
            open: AtomicUsize::new(0),
            addresses: Mutex::default(),
            told_us: AtomicU64::new(0),
            counts: Counts::default(),
        }
    }

    /// For connections from now on.
    pub fn set_layers(&self, layers: ServerLayers) {
        let mut terms = lock(&self.terms);
        let (proxies, limits) = (terms.proxies.clone(), terms.limits);
        *terms = Arc::new(Terms { layers: Arc::new(layers), proxies, limits });
    }

    /// All that is asked of connections from now on. A bound where there was none counts those that come after it.
    pub fn set(&self, layers: ServerLayers, proxies: Option<Vec<IpNet>>, limits: EntranceLimits) {
        *lock(&self.terms) = Arc::new(Terms { layers: Arc::new(layers), proxies, limits });
    }

    fn terms(&self) -> Arc<Terms> {
        Arc::clone(&lock(&self.terms))
    }

    /// What connections have from now on.
    #[must_use]
    pub fn layers(&self) -> Arc<ServerLayers> {
        Arc::clone(&lock(&self.terms).layers)
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> EntranceStats {
        let counts = &self.counts;
        EntranceStats {
            accepted: counts.accepted.load(Relaxed),
            open: self.open.load(Relaxed),
            delayed: counts.delayed.load(Relaxed),
            full: counts.full.load(Relaxed),
            address_full: counts.address_full.load(Relaxed),
            untrusted: counts.untrusted.load(Relaxed),
            faults: counts.faults.load(Relaxed),
        }
    }

    /// Takes the right to accept one more, or says when to ask again, in microseconds.
    pub(crate) fn may_accept(&self, now_us: u64) -> Result<(), u64> {
        let rate = self.terms().limits.connect_rate;
        if rate == 0 {
            return Ok(());
        }
        let mut allowed = lock(&self.allowed);
        let (left, since_us) = &mut *allowed;
        // At most a second's worth is saved up.
        let more = (now_us.saturating_sub(*since_us)).saturating_mul(rate.into()) / 1_000_000;
        if more > 0 {
            let whole = u32::try_from(more).unwrap_or(u32::MAX);
            *left = left.saturating_add(whole).min(rate);
            // What is less than one stays.
            *since_us = if *left == rate { now_us } else { *since_us + more * 1_000_000 / u64::from(rate) };
        }
        if *left == 0 {
            self.counts.delayed.fetch_add(1, Relaxed);
            return Err(*since_us + 1_000_000 / u64::from(rate) + 1);
        }
        *left -= 1;
        Ok(())
    }

    /// Nothing was there to accept: the right is another's.
    pub(crate) fn gives_back(&self) {
        let rate = self.terms().limits.connect_rate;
        if rate > 0 {
            let mut allowed = lock(&self.allowed);
            allowed.0 = (allowed.0 + 1).min(rate);
        }
    }

    /// Whether a peer may begin; where a PROXY header comes first, this asks about the proxy.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        let terms = self.terms();
        let Some(proxies) = &terms.proxies else { return true };
        let peer = peer.to_canonical();
        let trusted = proxies.iter().any(|network| network.contains(&peer));
        self.counts.untrusted.fetch_add(u64::from(!trusted), Relaxed);
        trusted
    }

    /// A place for a connection, where this listener counts them.
    pub(crate) fn seat(self: &Arc<Self>, peer: IpAddr) -> (Option<Seat>, Admission) {
        let terms = self.terms();
        let EntranceLimits { connections, connections_per_address, .. } = terms.limits;
        if connections == 0 && connections_per_address == 0 {
            return (None, Admission::Stays);
        }
        let before = self.open.fetch_add(1, Relaxed);
        let mut seat = Seat { entrance: Arc::clone(self), address: None };
        let mut admission = Admission::Stays;
        if connections > 0 && before >= connections {
            self.counts.full.fetch_add(1, Relaxed);
            admission = answered(before - connections, REFUSED_WITH_ANSWER, ReasonCode::QUOTA_EXCEEDED);
        }
        // Behind a PROXY header the address is not known yet.
        if terms.proxies.is_none() && admission == Admission::Stays {
            admission = seat.take_address(peer);
        }
        (Some(seat), admission)
    }

    /// A connection was ended by a layer under MQTT.
    pub(crate) fn fault(&self, peer: Option<IpAddr>, fault: &dyn fmt::Display, now_us: u64) {
        let faults = self.counts.faults.fetch_add(1, Relaxed) + 1;
        let told_us = self.told_us.load(Relaxed);
        if (told_us == 0 || now_us >= told_us + TOLD_EVERY_US)
            && self.told_us.compare_exchange(told_us, now_us.max(1), Relaxed, Relaxed).is_ok()
        {
            tracing::info!(peer = %Peer(peer), faults, "a connection was ended: {fault}");
        } else {
            tracing::debug!(peer = %Peer(peer), "a connection was ended: {fault}");
        }
    }
}

impl Seat {
    /// Counts the connection for an address, once.
    pub(crate) fn take_address(&mut self, address: IpAddr) -> Admission {
        let limit = self.entrance.terms().limits.connections_per_address;
        if limit == 0 || self.address.is_some() {
            return Admission::Stays;
        }
        let address = address.to_canonical();
        self.address = Some(address);
        let mut addresses = lock(&self.entrance.addresses);
        let open = addresses.entry(address).or_default();
        let before = *open;
        *open += 1;
        if before < limit {
            return Admission::Stays;
        }
        self.entrance.counts.address_full.fetch_add(1, Relaxed);
        answered(before - limit, REFUSED_WITH_ANSWER_PER_ADDRESS, ReasonCode::QUOTA_EXCEEDED)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.entrance.open.fetch_sub(1, Relaxed);
        if let Some(address) = self.address {
            let mut addresses = lock(&self.entrance.addresses);
            if let Some(open) = addresses.get_mut(&address) {
                *open -= 1;
                if *open == 0 {
                    addresses.remove(&address);
                }
            }
        }
    }
}

fn answered(over: usize, most: usize, reason: ReasonCode) -> Admission {
    if over < most { Admission::Answered(reason) } else { Admission::Closed }
}

/// For the log.
struct Peer(Option<IpAddr>);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => peer.to_canonical().fmt(f),
            None => f.write_str("unknown"),
        }
    }
}

/// What it guards is whole whatever happened to whoever held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrance(limits: EntranceLimits) -> Arc<Entrance> {
        Arc::new(Entrance::new(ServerLayers::default(), None, limits))
    }

    #[test]
    fn a_rate_lets_through_a_second_of_it_at_once_and_then_one_at_a_time() {
        let entrance = entrance(EntranceLimits { connect_rate: 10, ..EntranceLimits::default() });
        let start = 5_000_000;
        let at_once = (0..20).filter(|_| entrance.may_accept(start).is_ok()).count();
        assert_eq!(at_once, 10);
        let next = entrance.may_accept(start).err().unwrap_or_default();
        assert_eq!(next, start + 100_001);
        assert_eq!(entrance.may_accept(next), Ok(()));
        assert!(entrance.may_accept(next).is_err());
        // A day without anybody saves up no more than a second.
        let later = start + 86_400_000_000;
        assert_eq!((0..20).filter(|_| entrance.may_accept(later).is_ok()).count(), 10);
        let over_ten_seconds =
            (1..=1_000).filter(|i| entrance.may_accept(later + i * 10_000).is_ok()).count();
        assert_eq!(over_ten_seconds, 100);
        assert!(entrance.stats().delayed > 900);
    }

    #[test]
    fn looking_in_vain_costs_nothing_of_the_rate() {
        let entrance = entrance(EntranceLimits { connect_rate: 10, ..EntranceLimits::default() });
        for _ in 0..100 {
            assert_eq!(entrance.may_accept(5_000_000), Ok(()));
            entrance.gives_back();
        }
        assert_eq!((0..20).filter(|_| entrance.may_accept(5_000_000).is_ok()).count(), 10);
    }

    #[test]
    fn seats_are_counted_and_given_back() {
        let entrance = entrance(EntranceLimits { connections: 3, ..EntranceLimits::default() });
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut seats: Vec<_> = (0..3).map(|_| entrance.seat(peer)).collect();
        assert!(seats.iter().all(|(_, admission)| *admission == Admission::Stays));
        let answered = Admission::Answered(ReasonCode::QUOTA_EXCEEDED);
        let refused: Vec<_> = (0..REFUSED_WITH_ANSWER).map(|_| entrance.seat(peer)).collect();
        assert!(refused.iter().all(|(_, admission)| *admission == answered));
        assert_eq!(entrance.seat(peer).1, Admission::Closed);
        drop(refused);
        seats.pop();
        assert_eq!(entrance.seat(peer).1, Admission::Stays);
        drop(seats);
        assert_eq!(entrance.stats().open, 0);
    }

    #[test]
    fn addresses_are_counted_each_on_its_own() {
        let entrance = entrance(EntranceLimits { connections_per_address: 1, ..EntranceLimits::default() });
        let [a, b] = [1, 2].map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
        let first = entrance.seat(a);
        let mapped: IpAddr = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into();
        assert_eq!(entrance.seat(mapped).1, Admission::Answered(ReasonCode::QUOTA_EXCEEDED));
        assert_eq!(entrance.seat(b).1, Admission::Stays);
        drop(first);
        assert_eq!(entrance.seat(a).1, Admission::Stays);
        assert!(lock(&entrance.addresses).is_empty());
    }

    #[test]
    fn only_proxies_may_speak_for_others() {
        let proxies = vec!["10.0.0.0/8".parse().unwrap_or_default(), "::1/128".parse().unwrap_or_default()];
        let entrance = Entrance::new(ServerLayers::default(), Some(proxies), EntranceLimits::default());
        let trusted = ["10.1.2.3", "::1", "::ffff:10.1.2.3", "11.0.0.1", "::2"]
            .map(|peer| peer.parse().is_ok_and(|peer| entrance.trusts(peer)));
        assert_eq!(trusted, [true, true, true, false, false]);
        assert_eq!(entrance.stats().untrusted, 2);
    }
    /// All the system's affair, and what a reload relies on.
    #[test]
    fn a_listener_that_is_suspended_leaves_its_port_and_gets_it_back() {
        let bind = |address: &str, port: u16| {
            let address = SocketAddr::new(address.parse().unwrap_or(UNIX_PEER), port);
            Listener::bind(address, Arc::default())
        };
        // One that it asks for: another test may be faster.
        let free = || bind("127.0.0.1", 0).ok()?.address().tcp().map(|address| address.port());
        let found =
            (0..100).find_map(|_| free().and_then(|port| Some((bind("127.0.0.1", port).ok()?, port))));
        let Some((old, port)) = found else { panic!("no port is free") };
        let Ok(shared) = old.share() else { panic!("no files are left") };
        let in_use = |result: io::Result<Listener>| {
            result.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        assert!(in_use(bind("0.0.0.0", port)), "both listen");
        assert!(old.suspend().is_ok() && old.suspend().is_ok() && shared.suspend().is_ok());
        let waits = |listener: &Listener| {
            listener.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let ended = |listener: &Listener| {
            listener.accept().is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput)
        };
        assert!(ended(&old) && ended(&shared));
        let Ok(wide) = bind("0.0.0.0", port) else { panic!("its port is free") };
        drop(wide);
        assert!(old.resume().is_ok() && waits(&old) && waits(&shared));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let Ok(_stream) = std::net::TcpStream::connect(address) else { panic!("it listens") };
        let Ok((mut stream, _)) = shared.accept() else { panic!("somebody is there") };
        let read = io::Read::read(&mut stream, &mut [0]);
        assert!(read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock), "it is at its end");
    }
}
