//! The worker's loop.

use crate::inbox::Moved;
use crate::{Clock, Inbox, Links, Mail};
use ferrule_broker::{Command, ConnId, Hook, Shard};
use ferrule_store::{Now, Store};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket as Socket2, Type};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

const EVENTS: usize = 1_024;
const READ_BYTES: usize = 256 * 1024;
/// What a held connection may have sent ahead.
const HELD_BYTES: usize = 64 * 1024;
/// Bytes written to one connection in one turn.
const WRITE_BYTES: usize = 256 * 1024;
/// A turn reads for so long at most: others' answers, timers and output wait for its end.
const READ_US: u64 = 2_000;
/// Reads between two looks at the clock: a read costs some 500 ns, a look 50.
const READS_A_LOOK: u32 = 32;
/// While a ring has no room its shard's wish for a turn at once is granted this much later.
const REFUSED_US: u64 = 1_000;
/// Connections taken from one listener in one turn.
const ACCEPTS: usize = 256;
const LINGER_US: u64 = 1_000_000;
/// After the process ran out of files: accepting is tried again this much later.
const ACCEPT_PAUSE_US: u64 = 100_000;

/// Connections that the kernel keeps for us: all gateways may come back at once, and beyond it each waits a second. The kernel
/// cuts it to net.core.somaxconn, 4,096 as a rule.
const BACKLOG: i32 = 4_096;

const WAKER: Token = Token(usize::MAX);

/// A bound listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// As the system says: taken, not allowed, no such address.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket2::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart finds connections of the last life in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket.into());
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// The same listener for one more worker.
    ///
    /// # Errors
    /// When the system has no files left.
    pub fn share(&self) -> io::Result<Self> {
        let socket = std::net::TcpListener::from(self.socket.as_fd().try_clone_to_owned()?);
        Ok(Self { socket: TcpListener::from_std(socket), address: self.address })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Counts since the worker started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Turns.
    pub turns: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Times that accepting failed for want of files or memory.
    pub accept_failures: u64,
    /// The longest turn in microseconds.
    pub turn_us_max: u64,
    /// Turns that ended reading before all that was ready was read.
    pub turns_cut: u64,
    /// Connections that came from another worker.
    pub moved_in: u64,
    /// Batches for other workers.
    pub batches_out: u64,
    /// Times that one found its ring full.
    pub rings_full: u64,
}

/// As small as it can be: there are many.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    conn: ConnId,
    /// The front of a packet, or what a held connection sent ahead.
    partial: Option<Box<Partial>>,
    /// Has more to read than was read: in the list `again`.
    again: bool,
    /// Not read although there may be more, since it is held.
    paused: bool,
    /// The peer has closed its side: an edge that comes once, so it is read to its end.
    ended: bool,
    /// The shard has closed: its last packet is on its way.
    lingers: bool,
}

#[derive(Debug, Default)]
struct Partial(Vec<u8>);

/// One thread's worth of connections.
pub struct Worker<H, S, M> {
    poll: Poll,
    inbox: Inbox<M>,
    links: Links<M>,
    clock: Clock,
    listeners: Vec<(Listener, bool)>,
    accept_after_us: u64,
    shard: Shard<H, S>,
    /// By the index of their connection.
    sockets: Vec<Option<Socket>>,
    again: Vec<usize>,
    /// Have more output than one turn writes: epoll has no edge for them.
    unwritten: Vec<ConnId>,
    /// Connections that the shard has closed, and until when their sockets are kept.
    lingering: VecDeque<(u64, ConnId)>,
    /// Batches for which a ring had no room. While there is one no client is read.
    refused: Vec<(usize, Vec<u8>)>,
    stats: WorkerStats,
}

impl<H: Hook, S: Store, M> Worker<H, S, M> {
    /// An epoll instance and the inbox that wakes it: the shard's store needs the inbox first.
    ///
    /// # Errors
    /// When the system has no files left.
    pub fn poll() -> io::Result<(Poll, Inbox<M>)> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        Ok((poll, Inbox::new(waker)))
    }

    /// A worker that serves `listeners`; the index of a listener is what the gate is told.
    ///
    /// # Errors
    /// When a listener cannot be registered.
    pub fn new(
        poll: Poll,
        inbox: Inbox<M>,
        links: Links<M>,
        clock: Clock,
        mut listeners: Vec<Listener>,
        shard: Shard<H, S>,
    ) -> io::Result<Self> {
        for (index, listener) in listeners.iter_mut().enumerate() {
            poll.registry().register(&mut listener.socket, Token(index), Interest::READABLE)?;
        }
        let listeners = listeners.into_iter().map(|l| (l, true)).collect();
        Ok(Self {
            poll,
            inbox,
            links,
            clock,
            listeners,
            accept_after_us: 0,
            shard,
            sockets: Vec::new(),
            again: Vec::new(),
            unwritten: Vec::new(),
            lingering: VecDeque::new(),
            refused: Vec::new(),
            stats: WorkerStats::default(),
        })
    }

    /// Turns until [`Mail::Stop`] arrives. `app` handles the messages that are not the shard's.
    ///
    /// # Errors
    /// When epoll itself fails, which nothing can mend.
    pub fn run(mut self, mut app: impl FnMut(&mut Shard<H, S>, &WorkerStats, M, Now)) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; READ_BYTES];
        let mut mail = Vec::new();
        let mut ready = VecDeque::new();
        let mut dirty = Vec::new();
        let mut stop = false;
        let mut ended_us = self.clock.mono_us();
        loop {
            match self.poll.poll(&mut events, self.timeout(ended_us)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            let now = self.clock.now();
            self.stats.turns += 1;
            for key in self.again.drain(..) {
                if let Some(Some(socket)) = self.sockets.get_mut(key) {
                    socket.again = false;
                    ready.push_back((key, false));
                }
            }
            dirty.append(&mut self.unwritten);
            for event in &events {
                match event.token() {
                    WAKER => {}
                    Token(index) if index < self.listeners.len() => self.listeners[index].1 = true,
                    Token(key) => {
                        let key = key - self.listeners.len();
                        if event.is_writable()
                            && let Some(Some(socket)) = self.sockets.get(key)
                            && !socket.lingers
                        {
                            dirty.push(socket.conn);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            ready.push_back((key, event.is_read_closed() || event.is_error()));
                        }
                    }
                }
            }
            self.hear(now);
            self.accept(now);
            self.read_ready(&mut ready, &mut buffer, now);
            self.inbox.take(&mut mail);
            for mail in mail.drain(..) {
                match mail {
                    Mail::Store(event) => self.shard.store_event(event, now),
                    Mail::Admitted(conn, verdict) => self.shard.admitted(conn, verdict, now),
                    Mail::App(message) => app(&mut self.shard, &self.stats, message, now),
                    Mail::Moved(moved) => {
                        self.stats.moved_in += 1;
                        self.add(moved, now);
                    }
                    // The mail behind it is still read: a destination's answers spare their rows the way to the disk.
                    Mail::Stop => stop = true,
                }
            }
            if stop {
                self.goodbye(now);
                return Ok(());
            }
            // What a connection sent ahead belongs to this turn's batch.
            self.obey(now);
            self.shard.end_turn(now);
            // What comes up only now and makes new work has the next turn, which the shard then wants at once.
            self.obey(now);
            self.tell(now);
            self.shard.take_dirty(&mut dirty);
            for conn in dirty.drain(..) {
                self.write(conn, now);
            }
            self.end_lingering(now);
            ended_us = self.clock.mono_us();
            self.stats.turn_us_max = self.stats.turn_us_max.max(ended_us - now.mono_us);
        }
    }

    /// What other workers sent.
    fn hear(&mut self, now: Now) {
        for from in self.links.others() {
            while let Some(batch) = self.links.take(from, now.mono_us) {
                // Indices are 16 bits wide: there are at most 256 shards.
                if let Err(error) = self.shard.parcels(from as u16, &batch, now) {
                    // Both ends are this binary: a bug. The rest of the batch is lost, and its publishers are not
                    // acknowledged.
                    tracing::error!(from, %error, "this is a bug");
                }
            }
        }
    }

    /// To other workers: what the turn said, or what a ring had no room for, first.
    fn tell(&mut self, now: Now) {
        for (to, batch) in std::mem::take(&mut self.refused) {
            if let Err(batch) = self.links.push(to, batch, now.mono_us) {
                self.refused.push((to, batch));
            }
        }
        for to in self.links.others() {
            if self.refused.iter().any(|(of, _)| *of == to) {
                continue; // The shard keeps what it says until then.
            }
            let Some(batch) = self.shard.take_parcels(to as u16) else { continue };
            self.stats.batches_out += 1;
            if let Err(batch) = self.links.push(to, batch, now.mono_us) {
                self.stats.rings_full += 1;
                self.refused.push((to, batch));
            }
        }
    }

    /// Reads what is ready, unless others cannot take what comes of it; for at most so long.
    fn read_ready(&mut self, ready: &mut VecDeque<(usize, bool)>, buffer: &mut [u8], now: Now) {
        if self.refused.is_empty() {
            let mut read = 0;
            while let Some((key, ending)) = ready.pop_front() {
                self.read(key, ending, buffer, now);
                read += 1;
                if read % READS_A_LOOK == 0 && self.clock.mono_us() - now.mono_us >= READ_US {
                    self.stats.turns_cut += u64::from(!ready.is_empty());
                    break;
                }
            }
        }
        // An edge comes once: what was not read is remembered.
        for (key, ending) in ready.drain(..) {
            if let Some(Some(socket)) = self.sockets.get_mut(key) {
                socket.ended |= ending;
                self.read_on(key);
            }
        }
    }

    fn obey(&mut self, now: Now) {
        for command in self.shard.take_commands() {
            match command {
                Command::Resume(conn) => self.resume(conn, now),
                Command::Close(conn) => self.close(conn, now),
                Command::Move(conn, to) => self.hand_over(conn, usize::from(to), now),
            }
        }
    }

    /// The connection's shard is another worker's.
    fn hand_over(&mut self, conn: ConnId, to: usize, now: Now) {
        let Some(key) = self.key_of(conn) else { return };
        let Some(mut socket) = self.sockets[key].take() else { return };
        let described = self.shard.describe(conn);
        self.shard.closed(conn, now);
        let _ = self.poll.registry().deregister(&mut socket.stream);
        let (Some((peer, listener)), Some(inbox)) = (described, self.links.inboxes.get(to)) else { return };
        let bytes = socket.partial.map(|partial| partial.0).unwrap_or_default();
        inbox.post(Mail::Moved(Moved { stream: socket.stream, peer, listener, bytes }));
    }

    /// Leaves nothing in memory that the store can have, and tells clients that we stop, as far as their sockets take it at
    /// once.
    fn goodbye(&mut self, now: Now) {
        // What a connection sent ahead of a held packet was read: it may hold messages that nobody will send again.
        self.obey(now);
        self.shard.write_all(now);
        self.shard.goodbye(now);
        let mut dirty = Vec::new();
        self.shard.take_dirty(&mut dirty);
        dirty.into_iter().for_each(|conn| self.write(conn, now));
    }

    fn timeout(&self, now_us: u64) -> Option<Duration> {
        let accepting = self.listeners.iter().any(|(_, ready)| *ready);
        // A ring that is full wakes us when it has room.
        let reading = !self.again.is_empty() && self.refused.is_empty();
        if reading || !self.unwritten.is_empty() || (accepting && self.accept_after_us == 0) {
            return Some(Duration::ZERO);
        }
        let mut wake = self.shard.next_wake_us();
        if !self.refused.is_empty() {
            // The shard may keep what it has to say for the ring that has no room.
            wake = wake.map(|w| w.max(now_us + REFUSED_US));
        }
        let accept = accepting.then_some(self.accept_after_us);
        let linger = self.lingering.front().map(|(until_us, _)| *until_us);
        let wake = [wake, accept, linger, self.links.next_us()].into_iter().flatten().min();
        let timeout = wake.map(|w| Duration::from_micros(w.saturating_sub(now_us)));
        // epoll counts milliseconds: rounding up would not be early, rounding down would spin.
        timeout.map(|t| Duration::from_millis(t.as_micros().div_ceil(1_000) as u64))
    }

    fn accept(&mut self, now: Now) {
        if now.mono_us < self.accept_after_us {
            return;
        }
        self.accept_after_us = 0;
        for index in 0..self.listeners.len() {
            for _ in 0..ACCEPTS {
                if !self.listeners[index].1 {
                    break;
                }
                match self.listeners[index].0.socket.accept() {
                    Ok((stream, peer)) => {
                        // Small packets leave when they are written: the turn has gathered them already.
                        let _ = stream.set_nodelay(true);
                        // A configuration has far fewer than 65,536 listeners.
                        let listener = index as u16;
                        self.add(Moved { stream, peer: peer.ip(), listener, bytes: Vec::new() }, now);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.listeners[index].1 = false,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // The peer gave up before it was accepted.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        if self.stats.accept_failures == 0 {
                            tracing::warn!(%error, "cannot accept connections: going on with those that are there");
                        }
                        self.stats.accept_failures += 1;
                        self.accept_after_us = now.mono_us + ACCEPT_PAUSE_US;
                        return;
                    }
                }
            }
        }
    }

    fn add(&mut self, came: Moved, now: Now) {
        let Moved { mut stream, peer, listener, bytes } = came;
        let Some(conn) = self.shard.open(peer, listener, now) else { return };
        let key = conn.index();
        let token = Token(key + self.listeners.len());
        if self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_err()
        {
            self.shard.closed(conn, now);
            return;
        }
        if self.sockets.len() <= key {
            self.sockets.resize_with(key + 1, || None);
        }
        let socket = self.sockets[key].insert(Socket {
            stream,
            conn,
            partial: None,
            again: false,
            paused: false,
            ended: false,
            lingers: false,
        });
        offer(&mut self.shard, socket, &bytes, now);
    }

    /// One read, or to the end when the peer has closed.
    fn read(&mut self, key: usize, ending: bool, buffer: &mut [u8], now: Now) {
        let Some(Some(socket)) = self.sockets.get_mut(key) else { return };
        socket.ended |= ending;
        if socket.lingers {
            self.discard_input(key, buffer, now);
            return;
        }
        let conn = socket.conn;
        if socket.partial.as_ref().is_some_and(|p| p.0.len() >= HELD_BYTES) && self.shard.is_held(conn) {
            socket.paused = true;
            return;
        }
        match socket.stream.read(buffer) {
            Ok(0) => self.gone(key, conn, now),
            Ok(size) => {
                self.stats.bytes_in += size as u64;
                offer(&mut self.shard, socket, &buffer[..size], now);
                // A short read has drained a stream socket; an end is seen by reading on.
                if size == buffer.len() || socket.ended {
                    self.read_on(key);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => self.read_on(key),
            Err(_) => self.gone(key, conn, now),
        }
    }

    fn read_on(&mut self, key: usize) {
        if let Some(Some(socket)) = self.sockets.get_mut(key)
            && !socket.again
        {
            socket.again = true;
            self.again.push(key);
        }
    }

    fn resume(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.key_of(conn) else { return };
        let Some(socket) = &mut self.sockets[key] else { return };
        offer(&mut self.shard, socket, &[], now);
        if std::mem::take(&mut socket.paused) {
            self.read_on(key);
        }
    }

    fn write(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.key_of(conn) else { return };
        let Some(out) = self.shard.output(conn) else { return };
        let Some(socket) = &mut self.sockets[key] else { return };
        let mut written = 0;
        let mut blocked = false;
        let failed = loop {
            if written == out.len() || written >= WRITE_BYTES {
                break false;
            }
            let end = out.len().min(written + WRITE_BYTES);
            match socket.stream.write(&out[written..end]) {
                Ok(0) => break true,
                Ok(size) => written += size,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    blocked = true;
                    break false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        if written == out.len() {
            out.clear();
        } else {
            out.drain(..written);
            if !blocked && !failed {
                self.unwritten.push(conn);
            }
        }
        self.stats.bytes_out += written as u64;
        if failed {
            self.gone(key, conn, now);
        } else if written > 0 {
            self.shard.wrote(conn, now);
        }
    }

    /// The shard closes: what is left is written once, and the peer has a second to read it.
    fn close(&mut self, conn: ConnId, now: Now) {
        self.write(conn, now);
        let Some(key) = self.key_of(conn) else { return };
        let Some(socket) = &mut self.sockets[key] else { return };
        if socket.lingers {
            return;
        }
        socket.lingers = true;
        socket.partial = None;
        self.lingering.push_back((now.mono_us + LINGER_US, conn));
        if socket.stream.shutdown(Shutdown::Write).is_err() {
            self.gone(key, conn, now);
        } else {
            self.read_on(key);
        }
    }

    fn discard_input(&mut self, key: usize, buffer: &mut [u8], now: Now) {
        let Some(socket) = &mut self.sockets[key] else { return };
        let conn = socket.conn;
        match socket.stream.read(buffer) {
            Ok(0) => self.gone(key, conn, now),
            Ok(_) => self.read_on(key),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => self.read_on(key),
            Err(_) => self.gone(key, conn, now),
        }
    }

    fn end_lingering(&mut self, now: Now) {
        while let Some(&(until_us, conn)) = self.lingering.front() {
            if until_us > now.mono_us {
                return;
            }
            self.lingering.pop_front();
            if let Some(key) = self.key_of(conn) {
                self.gone(key, conn, now);
            }
        }
    }

    /// The socket ended.
    fn gone(&mut self, key: usize, conn: ConnId, now: Now) {
        self.shard.closed(conn, now);
        if let Some(mut socket) = self.sockets.get_mut(key).and_then(Option::take) {
            let _ = self.poll.registry().deregister(&mut socket.stream);
        }
    }

    fn key_of(&self, conn: ConnId) -> Option<usize> {
        let key = conn.index();
        (self.sockets.get(key)?.as_ref()?.conn == conn).then_some(key)
    }
}

/// Offers what was left over and what came; keeps what the shard leaves.
fn offer<H: Hook, S: Store>(shard: &mut Shard<H, S>, socket: &mut Socket, bytes: &[u8], now: Now) {
    match &mut socket.partial {
        None => {
            let taken = shard.receive(socket.conn, bytes, now);
            if taken < bytes.len() {
                socket.partial = Some(Box::new(Partial(bytes[taken..].to_vec())));
            }
        }
        Some(partial) => {
            partial.0.extend_from_slice(bytes);
            let taken = shard.receive(socket.conn, &partial.0, now);
            if taken == partial.0.len() {
                socket.partial = None;
            } else {
                partial.0.drain(..taken);
            }
        }
    }
}
