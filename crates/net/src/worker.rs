//! The worker's loop.

use crate::abroad::Abroad;
use crate::inbox::Moved;
use crate::listener::{Admission, Listener};
use crate::socket::{self, Ending, Extra, Read, Socket, Wrote};
use crate::{Clock, Inbox, Links, Mail};
use ferrule_broker::{Command, ConnId, Hook, Shard};
use ferrule_store::{Now, Store};
use ferrule_transport::stack::{Peer, Scratch, Stack};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown};
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
/// Handshakes of TLS have so much of a turn, and one step of one at least: a key exchange with a signature costs some 200 us (P-256) and
/// up to 1 ms (RSA), which everybody else waits for. A storm of them is worked off a step a turn.
const HANDSHAKES_US: u64 = 200;
/// What layers have encoded and the socket has not taken: past it a client that asks and does not read is not heard.
const WIRE_BYTES: usize = 64 * 1024;
const LINGER_US: u64 = 1_000_000;
/// After the process ran out of files: accepting is tried again this much later.
const ACCEPT_PAUSE_US: u64 = 100_000;

const WAKER: Token = Token(usize::MAX);

/// Connections have their indices, from 0 on; listeners, which come and go, the tokens below the waker's.
fn listener_token(number: u16) -> Token {
    Token(usize::MAX - 1 - usize::from(number))
}

/// A listener's number.
fn listener_of(token: Token) -> Option<u16> {
    u16::try_from(usize::MAX - 1 - token.0).ok()
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
    /// Handshakes that waited for another turn, counted in each.
    pub handshakes_put_off: u64,
}

/// One thread's worth of connections.
pub struct Worker<H, S, M> {
    poll: Poll,
    inbox: Inbox<M>,
    links: Links<M>,
    /// Other nodes, if there are to be some.
    abroad: Option<Abroad>,
    clock: Clock,
    listeners: Vec<Entry>,
    /// The highest number among those that are here and were: numbers only grow.
    newest: u16,
    /// After the process ran out of files nothing is accepted until then.
    accept_after_us: u64,
    shard: Shard<H, S>,
    /// By the index of their connection.
    sockets: Vec<Option<Socket>>,
    again: Vec<usize>,
    /// Read, but for a handshake's next step: those that wait for it, and whether their peer has closed.
    handshakes: VecDeque<(usize, bool)>,
    /// Connections with something to write in this turn.
    dirty: Vec<ConnId>,
    scratch: Scratch,
    /// What layers made of what came, and of what goes: empty between two connections.
    plain: Vec<u8>,
    wire: Vec<u8>,
    /// Have more output than one turn writes: epoll has no edge for them.
    unwritten: Vec<ConnId>,
    /// Connections that the shard has closed, and until when their sockets are kept.
    lingering: VecDeque<(u64, ConnId)>,
    /// Batches for which a ring had no room. While there is one no client is read.
    refused: Vec<(usize, Vec<u8>)>,
    stats: WorkerStats,
}

struct Entry {
    number: u16,
    listener: Listener,
    /// There may be connections to accept.
    ready: bool,
    /// Its rate is used up until then.
    after_us: u64,
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

    /// A worker that serves `listeners`, whose numbers are their places; a listener's number is what the gate is told.
    ///
    /// # Errors
    /// When a listener cannot be registered.
    pub fn new(
        poll: Poll,
        inbox: Inbox<M>,
        links: Links<M>,
        clock: Clock,
        listeners: Vec<Listener>,
        shard: Shard<H, S>,
    ) -> io::Result<Self> {
        let mut worker = Self {
            poll,
            inbox,
            links,
            abroad: None,
            clock,
            listeners: Vec::new(),
            newest: 0,
            accept_after_us: 0,
            shard,
            sockets: Vec::new(),
            again: Vec::new(),
            handshakes: VecDeque::new(),
            dirty: Vec::new(),
            scratch: Scratch::default(),
            plain: Vec::new(),
            wire: Vec::new(),
            unwritten: Vec::new(),
            lingering: VecDeque::new(),
            refused: Vec::new(),
            stats: WorkerStats::default(),
        };
        for (number, listener) in (0..).zip(listeners) {
            worker.listen(number, listener)?;
        }
        Ok(worker)
    }

    fn listen(&mut self, number: u16, mut listener: Listener) -> io::Result<()> {
        listener.register(self.poll.registry(), listener_token(number))?;
        self.newest = self.newest.max(number);
        self.listeners.push(Entry { number, listener, ready: true, after_us: 0 });
        Ok(())
    }

    /// Its connections are the shard's to close.
    fn unlisten(&mut self, number: u16) {
        let Some(at) = self.listeners.iter().position(|entry| entry.number == number) else { return };
        self.listeners.swap_remove(at).listener.deregister(self.poll.registry());
    }

    /// Whether a listener was there and is not any more: of the newest another worker may know first.
    fn is_gone(&self, number: u16) -> bool {
        number <= self.newest && self.listener(number).is_none()
    }

    fn listener(&self, number: u16) -> Option<&Listener> {
        self.listeners.iter().find(|entry| entry.number == number).map(|entry| &entry.listener)
    }

    /// It is one of a node in a cluster.
    #[must_use]
    pub fn with_abroad(mut self, abroad: Abroad) -> Self {
        self.shard.set_live(false, self.clock.now());
        self.abroad = Some(abroad);
        self
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
        let mut stop = false;
        let mut ended_us = self.clock.mono_us();
        loop {
            match self.sleep(&mut events, ended_us) {
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
            self.dirty.append(&mut self.unwritten);
            for event in &events {
                match event.token() {
                    WAKER => {}
                    token if let Some(number) = listener_of(token) => {
                        let entry = self.listeners.iter_mut().find(|entry| entry.number == number);
                        entry.into_iter().for_each(|entry| entry.ready = true);
                    }
                    Token(key) => {
                        if event.is_writable()
                            && let Some(Some(socket)) = self.sockets.get(key)
                            && socket.ending < Ending::Shut
                        {
                            self.dirty.push(socket.conn);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            ready.push_back((key, event.is_read_closed() || event.is_error()));
                        }
                    }
                }
            }
            if let Some(abroad) = &mut self.abroad {
                abroad.begin(&mut self.shard, now);
            }
            self.hear(now);
            if let Some(abroad) = &mut self.abroad {
                abroad.hear(&mut self.shard, now);
            }
            self.accept(now);
            self.read_ready(&mut ready, &mut buffer, now);
            self.inbox.take(&mut mail);
            for mail in mail.drain(..) {
                match mail {
                    Mail::Store(event) => self.shard.store_event(event, now),
                    Mail::Admitted(conn, verdict) => self.shard.admitted(conn, verdict, now),
                    Mail::Listen(number, listener) => {
                        if let Err(error) = self.listen(number, listener) {
                            tracing::error!(%error, "cannot accept connections of a new listener here");
                        }
                    }
                    Mail::Unlisten(number) => self.unlisten(number),
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
            self.end_turn(now);
            self.tell(now);
            self.write_dirty(now);
            self.end_lingering(now);
            ended_us = self.clock.mono_us();
            self.stats.turn_us_max = self.stats.turn_us_max.max(ended_us - now.mono_us);
        }
    }

    /// Until there is something to do. What turns said to other nodes leaves when the worker has nothing more to do at once, or has gathered it for long enough: their
    /// threads are woken once for many turns, and nobody waits for a worker that sleeps.
    fn sleep(&mut self, events: &mut Events, ended_us: u64) -> io::Result<()> {
        let timeout = self.timeout(ended_us);
        let Some(abroad) = &mut self.abroad else { return self.poll.poll(events, timeout) };
        if abroad.may_gather(ended_us) {
            self.poll.poll(events, Some(Duration::ZERO))?;
            let more = !events.is_empty() || timeout == Some(Duration::ZERO) || abroad.has_letters();
            abroad.gathers(more);
            if more {
                return Ok(());
            }
        }
        abroad.hand_over(self.links.index() as u16);
        let timeout = if abroad.rest() { timeout } else { Some(Duration::ZERO) };
        self.poll.poll(events, timeout)
    }

    /// A turn's end, but for what is written.
    fn end_turn(&mut self, now: Now) {
        let Some(abroad) = &self.abroad else {
            self.shard.end_turn(now);
            // What comes up only now and makes new work has the next turn, which the shard then wants at once.
            self.obey(now);
            return;
        };
        self.shard.end_turn_if(now, || abroad.may());
        self.obey(now);
        // Clients may have spoken once more, and again in there: nothing is written that was not asked for.
        while self.shard.has_unjudged()
            && let Some(abroad) = &self.abroad
        {
            self.shard.judge(abroad.may());
            self.obey(now);
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
        if let Some(abroad) = &mut self.abroad {
            abroad.tell(&mut self.shard, self.links.index() as u16, now);
        }
    }

    /// Reads what is ready, unless others cannot take what comes of it; for at most so long.
    fn read_ready(&mut self, ready: &mut VecDeque<(usize, bool)>, buffer: &mut [u8], now: Now) {
        if self.refused.is_empty() {
            let mut read = 0;
            while let Some((key, ending)) = ready.pop_front() {
                if self.sockets.get(key).is_some_and(|s| s.as_ref().is_some_and(Socket::is_handshaking)) {
                    self.handshakes.push_back((key, ending));
                    continue;
                }
                self.read(key, ending, buffer, now);
                read += 1;
                if read % READS_A_LOOK == 0 && self.clock.mono_us() - now.mono_us >= READ_US {
                    self.stats.turns_cut += u64::from(!ready.is_empty());
                    break;
                }
            }
        }
        // An edge comes once: what was not read is remembered.
        self.shake_hands(buffer, now);
        for (key, ending) in ready.drain(..) {
            if let Some(Some(socket)) = self.sockets.get_mut(key) {
                socket.ended |= ending;
                self.read_on(key);
            }
        }
    }

    /// Steps of handshakes, in the order in which they came, as far as a turn has time for them.
    fn shake_hands(&mut self, buffer: &mut [u8], now: Now) {
        if self.handshakes.is_empty() || !self.refused.is_empty() {
            return;
        }
        let start_us = self.clock.mono_us();
        while let Some((key, ending)) = self.handshakes.pop_front() {
            self.read(key, ending, buffer, now);
            if self.clock.mono_us() - start_us >= HANDSHAKES_US {
                self.stats.handshakes_put_off += self.handshakes.len() as u64;
                break;
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
        let (Some((peer, listener, certificate)), Some(inbox)) = (described, self.links.inboxes.get(to))
        else {
            return;
        };
        let bytes = socket.partial.map(|partial| partial.0).unwrap_or_default();
        let Socket { stream, extra, .. } = socket;
        inbox.post(Mail::Moved(Moved { stream, peer, listener, certificate, extra, bytes }));
    }

    /// Leaves nothing in memory that the store can have, and tells clients that we stop, as far as their sockets take it at
    /// once.
    fn goodbye(&mut self, now: Now) {
        // What a connection sent ahead of a held packet was read: it may hold messages that nobody will send again.
        self.obey(now);
        if let Some(abroad) = &mut self.abroad {
            abroad.hand_over(self.links.index() as u16);
        }
        self.shard.write_all_if(now, || self.abroad.as_ref().is_none_or(Abroad::may));
        self.shard.goodbye(now);
        self.write_dirty(now);
    }

    fn write_dirty(&mut self, now: Now) {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.shard.take_dirty(&mut dirty);
        for conn in dirty.drain(..) {
            self.write(conn, now);
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    fn timeout(&self, now_us: u64) -> Option<Duration> {
        // A ring that is full wakes us when it has room.
        let reading = (!self.again.is_empty() || !self.handshakes.is_empty()) && self.refused.is_empty();
        let after_us = self.accept_after_us;
        let accept = self.listeners.iter().filter(|l| l.ready).map(|l| l.after_us.max(after_us)).min();
        if reading || !self.unwritten.is_empty() || accept == Some(0) {
            return Some(Duration::ZERO);
        }
        let mut wake = self.shard.next_wake_us();
        if !self.refused.is_empty() {
            // The shard may keep what it has to say for the ring that has no room.
            wake = wake.map(|w| w.max(now_us + REFUSED_US));
        }
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
                let entry = &mut self.listeners[index];
                if !entry.ready || now.mono_us < entry.after_us {
                    break;
                }
                entry.after_us = 0;
                if let Err(after_us) = entry.listener.entrance().may_accept(now.mono_us) {
                    entry.after_us = after_us;
                    break;
                }
                let accepted = entry.listener.accept();
                if accepted.is_err() {
                    entry.listener.entrance().gives_back();
                }
                match accepted {
                    Ok((stream, peer)) => self.welcome(stream, peer, index, now),
                    // Or it does not listen any more, which is told by mail.
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::InvalidInput) => {
                        entry.ready = false;
                    }
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

    /// A connection that was just accepted: what its listener asks of it.
    fn welcome(&mut self, stream: TcpStream, peer: IpAddr, index: usize, now: Now) {
        let entry = &self.listeners[index];
        let (listener, entrance) = (entry.number, entry.listener.entrance());
        if !entrance.trusts(peer) {
            let why =
                "it may not say PROXY: `proxy_protocol_from` of this listener does not name its address";
            entrance.fault(Some(peer), &why, now.mono_us);
            return;
        }
        let (seat, admission) = entrance.seat(peer);
        let stack = match Stack::server(&entrance.layers()) {
            Ok(stack) => stack,
            Err(error) => {
                entrance.fault(Some(peer), &error, now.mono_us);
                return;
            }
        };
        let extra =
            (stack.is_some() || seat.is_some()).then(|| Box::new(Extra { stack, wire: Vec::new(), seat }));
        let came = Moved { stream, peer, listener, certificate: None, extra, bytes: Vec::new() };
        if admission != Admission::Closed
            && let Some(conn) = self.add(came, now)
            && let Admission::Answered(reason) = admission
        {
            self.shard.refuse_on_connect(conn, reason);
        }
    }

    fn add(&mut self, came: Moved, now: Now) -> Option<ConnId> {
        let Moved { mut stream, peer, listener, certificate, extra, bytes } = came;
        if self.is_gone(listener) {
            return None;
        }
        let conn = self.shard.open(peer, listener, now)?;
        self.shard.identify(conn, None, certificate);
        let key = conn.index();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, Token(key), interest).is_err() {
            self.shard.closed(conn, now);
            return None;
        }
        if self.sockets.len() <= key {
            self.sockets.resize_with(key + 1, || None);
        }
        let socket = self.sockets[key].insert(Socket::new(stream, conn, extra));
        socket.offer(&mut self.shard, &bytes, now);
        Some(conn)
    }

    /// One read, or to the end when the peer has closed.
    fn read(&mut self, key: usize, ending: bool, buffer: &mut [u8], now: Now) {
        let Some(Some(socket)) = self.sockets.get_mut(key) else { return };
        socket.ended |= ending;
        if socket.ending > Ending::No {
            self.discard_input(key, buffer, now);
            return;
        }
        let conn = socket.conn;
        if socket.partial.as_ref().is_some_and(|p| p.0.len() >= HELD_BYTES) && self.shard.is_held(conn) {
            socket.paused = true;
            return;
        }
        if socket.wire_len() >= WIRE_BYTES {
            socket.paused = true;
            return;
        }
        match socket::read(&mut socket.stream, buffer) {
            Read::Bytes(size) => {
                self.stats.bytes_in += size as u64;
                let ended = socket.ended;
                if !socket.is_plain() {
                    self.receive_layered(key, &mut buffer[..size], now);
                } else {
                    socket.offer(&mut self.shard, &buffer[..size], now);
                }
                // A short read has drained a stream socket; an end is seen by reading on.
                if size == buffer.len() || ended {
                    self.read_on(key);
                }
            }
            Read::Ended => self.gone(key, conn, now),
            Read::Nothing => {}
            Read::Interrupted => self.read_on(key),
        }
    }

    /// What came passes the layers, and what is MQTT's goes to the shard.
    fn receive_layered(&mut self, key: usize, bytes: &mut [u8], now: Now) {
        let Some(Some(socket)) = self.sockets.get_mut(key) else { return };
        let conn = socket.conn;
        let was_open = socket.stack().is_none_or(|stack| stack.is_open());
        let mut plain = std::mem::take(&mut self.plain);
        let result = socket.receive_layered(bytes, &mut self.scratch, &mut plain);
        let (mut opened, mut ended) = (None, false);
        if let Some(stack) = socket.stack() {
            opened = (!was_open && stack.is_open()).then(|| stack.peer().clone());
            ended = stack.is_ended();
        }
        if let Some(peer) = opened {
            self.identified(key, peer, now);
        }
        if let Some(Some(socket)) = self.sockets.get_mut(key) {
            socket.offer(&mut self.shard, &plain, now);
            if socket.wire_len() > 0 {
                self.dirty.push(conn);
            }
            socket.shed();
        }
        plain.clear();
        self.plain = plain;
        match result {
            Err(fault) => {
                let described = self.shard.describe(conn);
                if let Some((peer, number, _)) = described
                    && let Some(listener) = self.listener(number)
                {
                    listener.entrance().fault(Some(peer), &fault, now.mono_us);
                }
                self.shard.abort(conn, now);
            }
            // Its answer to the end is on its way.
            Ok(()) if ended => self.shard.abort(conn, now),
            Ok(()) => {}
        }
    }

    /// The layers stand: they have said who is there.
    fn identified(&mut self, key: usize, peer: Peer, now: Now) {
        let Some(Some(socket)) = self.sockets.get_mut(key) else { return };
        let conn = socket.conn;
        self.shard.identify(conn, peer.address, peer.certificate);
        let seat = socket.extra.as_mut().and_then(|extra| extra.seat.as_mut());
        let Some((address, ..)) = self.shard.describe(conn) else { return };
        match seat.map_or(Admission::Stays, |seat| seat.take_address(address)) {
            Admission::Stays => {}
            Admission::Answered(reason) => self.shard.refuse_on_connect(conn, reason),
            Admission::Closed => self.shard.abort(conn, now),
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
        socket.offer(&mut self.shard, &[], now);
        if std::mem::take(&mut socket.paused) {
            self.read_on(key);
        }
    }

    fn write(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.key_of(conn) else { return };
        let Some(out) = self.shard.output(conn) else { return };
        let Some(socket) = &mut self.sockets[key] else { return };
        let (taken, sent, wrote) = if socket.is_plain() {
            let (written, wrote) = socket.write_plain(out, WRITE_BYTES);
            (written, written, wrote)
        } else {
            socket.write_layered(out, WRITE_BYTES, &mut self.scratch, &mut self.wire)
        };
        if taken == out.len() {
            out.clear();
        } else {
            out.drain(..taken);
            if wrote == Wrote::Some {
                self.unwritten.push(conn);
            }
        }
        let ending = socket.ending > Ending::No;
        let resumes = socket.paused && socket.wire_len() == 0;
        if resumes {
            socket.paused = false;
        }
        self.stats.bytes_out += sent as u64;
        if wrote == Wrote::Failed {
            self.gone(key, conn, now);
            return;
        }
        if sent > 0 || taken > 0 {
            self.shard.wrote(conn, now);
        }
        if resumes {
            self.read_on(key);
        }
        if ending {
            self.shut(key, conn, now);
        }
    }

    /// The shard closes: the peer has a second to read what it has to be told, last of all why.
    fn close(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.key_of(conn) else { return };
        let Some(socket) = &mut self.sockets[key] else { return };
        if socket.ending > Ending::No {
            return;
        }
        socket.ending = Ending::Writing;
        socket.partial = None;
        self.lingering.push_back((now.mono_us + LINGER_US, conn));
        self.write(conn, now);
    }

    /// Ends our direction of a connection that closes, when its socket has taken all.
    fn shut(&mut self, key: usize, conn: ConnId, now: Now) {
        let is_written = self.shard.output(conn).is_none_or(|out| out.is_empty());
        let Some(Some(socket)) = self.sockets.get_mut(key) else { return };
        if !is_written || socket.ending == Ending::Shut {
            return;
        }
        if socket.ending == Ending::Writing {
            socket.ending = Ending::Written;
            socket.end_layers(&mut self.scratch);
            socket.write_layered(&[], WRITE_BYTES, &mut self.scratch, &mut self.wire);
        }
        if socket.wire_len() > 0 {
            return;
        }
        socket.ending = Ending::Shut;
        if socket.stream.shutdown(Shutdown::Write).is_err() {
            self.gone(key, conn, now);
        } else {
            self.read_on(key);
        }
    }

    fn discard_input(&mut self, key: usize, buffer: &mut [u8], now: Now) {
        let Some(socket) = &mut self.sockets[key] else { return };
        let conn = socket.conn;
        match socket::read(&mut socket.stream, buffer) {
            Read::Bytes(_) | Read::Interrupted => self.read_on(key),
            Read::Ended => self.gone(key, conn, now),
            Read::Nothing => {}
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
