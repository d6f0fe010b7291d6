//! The worker's loop.

use crate::{Clock, Inbox, Mail};
use ferrule_broker::{Command, ConnId, Hook, Shard};
use ferrule_store::{Now, Store};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

const EVENTS: usize = 1_024;
const READ_BYTES: usize = 256 * 1024;
/// What a held connection may have sent ahead.
const HELD_BYTES: usize = 64 * 1024;
/// Bytes written to one connection in one turn.
const WRITE_BYTES: usize = 256 * 1024;
/// Buffers above this are given back when they are empty.
const KEEP_BYTES: usize = 16 * 1024;
/// Connections taken from one listener in one turn.
const ACCEPTS: usize = 256;
const LINGER_US: u64 = 1_000_000;
/// After the process ran out of files: accepting is tried again this much later.
const ACCEPT_PAUSE_US: u64 = 100_000;

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
        let socket = TcpListener::bind(address)?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
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
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// None while it lingers.
    conn: Option<ConnId>,
    /// The front of a packet, or what a held connection sent ahead.
    partial: Vec<u8>,
    /// Has more to read than was read: in the list `again`.
    again: bool,
    /// Not read although there may be more, since it is held.
    paused: bool,
    /// The peer has closed its side: an edge that comes once, so it is read to its end.
    ended: bool,
    linger_until_us: u64,
}

/// One thread's worth of connections.
pub struct Worker<H, S, M> {
    poll: Poll,
    inbox: Inbox<M>,
    clock: Clock,
    listeners: Vec<(Listener, bool)>,
    accept_after_us: u64,
    shard: Shard<H, S>,
    sockets: Slab<Socket>,
    /// Index of a connection -> key of its socket.
    by_conn: Vec<usize>,
    again: Vec<usize>,
    /// Have more output than one turn writes: epoll has no edge for them.
    unwritten: Vec<ConnId>,
    lingering: usize,
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
            clock,
            listeners,
            accept_after_us: 0,
            shard,
            sockets: Slab::new(),
            by_conn: Vec::new(),
            again: Vec::new(),
            unwritten: Vec::new(),
            lingering: 0,
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
        let mut ready = Vec::new();
        let mut dirty = Vec::new();
        let mut stop = false;
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            let now = self.clock.now();
            self.stats.turns += 1;
            ready.extend(self.again.drain(..).map(|key| (key, false)));
            dirty.append(&mut self.unwritten);
            for event in &events {
                match event.token() {
                    WAKER => {}
                    Token(index) if index < self.listeners.len() => self.listeners[index].1 = true,
                    Token(key) => {
                        let key = key - self.listeners.len();
                        if event.is_writable()
                            && let Some(conn) = self.sockets.get(key).and_then(|s| s.conn)
                        {
                            dirty.push(conn);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            ready.push((key, event.is_read_closed() || event.is_error()));
                        }
                    }
                }
            }
            self.accept(now);
            for (key, ending) in ready.drain(..) {
                self.read(key, ending, &mut buffer, now);
            }
            self.inbox.take(&mut mail);
            for mail in mail.drain(..) {
                match mail {
                    Mail::Store(event) => self.shard.store_event(event, now),
                    Mail::Admitted(conn, verdict) => self.shard.admitted(conn, verdict, now),
                    Mail::App(message) => app(&mut self.shard, &self.stats, message, now),
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
            self.shard.take_dirty(&mut dirty);
            for conn in dirty.drain(..) {
                self.write(conn, now);
            }
            if self.lingering > 0 {
                self.end_lingering(now);
            }
            self.stats.turn_us_max = self.stats.turn_us_max.max(self.clock.now().since(now.mono_us));
        }
    }

    fn obey(&mut self, now: Now) {
        for command in self.shard.take_commands() {
            match command {
                Command::Resume(conn) => self.resume(conn, now),
                Command::Close(conn) => self.close(conn, now),
            }
        }
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

    fn timeout(&self) -> Option<Duration> {
        let accepting = self.listeners.iter().any(|(_, ready)| *ready);
        if !self.again.is_empty() || !self.unwritten.is_empty() || (accepting && self.accept_after_us == 0) {
            return Some(Duration::ZERO);
        }
        let mut wake = self.shard.next_wake_us();
        if accepting {
            wake = Some(wake.map_or(self.accept_after_us, |w| w.min(self.accept_after_us)));
        }
        let now = self.clock.now().mono_us;
        let mut timeout = wake.map(|w| Duration::from_micros(w.saturating_sub(now)));
        if self.lingering > 0 {
            let linger = Duration::from_micros(LINGER_US / 4);
            timeout = Some(timeout.map_or(linger, |t| t.min(linger)));
        }
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
                    Ok((stream, peer)) => self.add(stream, peer, index, now),
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

    fn add(&mut self, mut stream: TcpStream, peer: SocketAddr, listener: usize, now: Now) {
        // Small packets leave when they are written: the turn has gathered them already.
        let _ = stream.set_nodelay(true);
        let key = self.sockets.vacant_key();
        let token = Token(key + self.listeners.len());
        if self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_err()
        {
            return;
        }
        let Some(conn) = self.shard.open(peer, listener, now) else { return };
        if self.by_conn.len() <= conn.index() {
            self.by_conn.resize(conn.index() + 1, usize::MAX);
        }
        self.by_conn[conn.index()] = key;
        self.sockets.insert(Socket {
            stream,
            conn: Some(conn),
            partial: Vec::new(),
            again: false,
            paused: false,
            ended: false,
            linger_until_us: 0,
        });
    }

    /// One read, or to the end when the peer has closed.
    fn read(&mut self, key: usize, ending: bool, buffer: &mut [u8], now: Now) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        socket.again = false;
        socket.ended |= ending;
        let Some(conn) = socket.conn else {
            self.discard_input(key, buffer);
            return;
        };
        if socket.partial.len() >= HELD_BYTES && self.shard.is_held(conn) {
            socket.paused = true;
            return;
        }
        match socket.stream.read(buffer) {
            Ok(0) => self.gone(key, conn, now),
            Ok(size) => {
                self.stats.bytes_in += size as u64;
                offer(&mut self.shard, socket, conn, &buffer[..size], now);
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
        if let Some(socket) = self.sockets.get_mut(key)
            && !socket.again
        {
            socket.again = true;
            self.again.push(key);
        }
    }

    fn resume(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.key_of(conn) else { return };
        let socket = &mut self.sockets[key];
        offer(&mut self.shard, socket, conn, &[], now);
        if std::mem::take(&mut socket.paused) {
            self.read_on(key);
        }
    }

    fn write(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.key_of(conn) else { return };
        let Some(out) = self.shard.output(conn) else { return };
        let socket = &mut self.sockets[key];
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
            if out.capacity() > KEEP_BYTES {
                *out = Vec::new();
            }
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
        self.shard.closed(conn, now);
        let socket = &mut self.sockets[key];
        socket.conn = None;
        socket.partial = Vec::new();
        socket.linger_until_us = now.mono_us + LINGER_US;
        self.lingering += 1;
        if socket.stream.shutdown(Shutdown::Write).is_err() {
            self.remove(key);
        } else {
            self.read_on(key);
        }
    }

    fn discard_input(&mut self, key: usize, buffer: &mut [u8]) {
        match self.sockets[key].stream.read(buffer) {
            Ok(0) => self.remove(key),
            Ok(_) => self.read_on(key),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => self.read_on(key),
            Err(_) => self.remove(key),
        }
    }

    fn end_lingering(&mut self, now: Now) {
        let over: Vec<usize> = (self.sockets.iter())
            .filter(|(_, s)| s.conn.is_none() && s.linger_until_us <= now.mono_us)
            .map(|(key, _)| key)
            .collect();
        over.into_iter().for_each(|key| self.remove(key));
    }

    /// The socket ended.
    fn gone(&mut self, key: usize, conn: ConnId, now: Now) {
        self.shard.closed(conn, now);
        self.remove(key);
    }

    fn remove(&mut self, key: usize) {
        if let Some(mut socket) = self.sockets.try_remove(key) {
            self.lingering -= usize::from(socket.conn.is_none());
            let _ = self.poll.registry().deregister(&mut socket.stream);
        }
    }

    fn key_of(&self, conn: ConnId) -> Option<usize> {
        let key = *self.by_conn.get(conn.index())?;
        (self.sockets.get(key)?.conn == Some(conn)).then_some(key)
    }
}

/// Offers what was left over and what came; keeps what the shard leaves.
fn offer<H: Hook, S: Store>(
    shard: &mut Shard<H, S>,
    socket: &mut Socket,
    conn: ConnId,
    bytes: &[u8],
    now: Now,
) {
    if socket.partial.is_empty() {
        let taken = shard.receive(conn, bytes, now);
        socket.partial.extend_from_slice(&bytes[taken..]);
    } else {
        socket.partial.extend_from_slice(bytes);
        let taken = shard.receive(conn, &socket.partial, now);
        if taken == socket.partial.len() {
            socket.partial.clear();
            if socket.partial.capacity() > KEEP_BYTES {
                socket.partial = Vec::new();
            }
        } else {
            socket.partial.drain(..taken);
        }
    }
}
