//! The generator itself: connections, windows, due times (the design is in the module above).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::head::{self, Head};
use super::outcome::{LoadError, Outcome, SETUP, Watched};
use super::plan::{Plan, Shape};
use crate::carrier::Carrier;
use crate::procfs;
use crate::tally::{Arrival, Latency, Stream};
use crate::wire::{self, Ack, Hello, Incoming, Template};

/// Unsent bytes of one connection past which nothing more is published on it.
const OUT_MAX: usize = 256 * 1024;
/// Connections that are being made at once: below the accept backlog of 100 that mosquitto asks for.
const CONNECTING_MAX: usize = 64;
/// Stalls in a row after which a run ends: the broker withholds its acknowledgements for good.
const STALLS_MAX: u32 = 5;
/// The buffer that all sockets are read into, in bytes, beside room for one largest frame.
const READ_BUFFER: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Connected,
    Ready,
}

struct Conn {
    socket: TcpStream,
    carrier: Carrier,
    phase: Phase,
    /// The start of a frame whose rest has not come.
    partial: Vec<u8>,
    out: Vec<u8>,
    /// Of `out`, what is already written.
    out_at: usize,
    dirty: bool,
    /// The socket took less than it was given: wait for its next writable event.
    blocked: bool,
}

struct Publisher {
    template: Template,
    /// Messages sent; the next one's number.
    sent: u64,
    /// Sent and not acknowledged (QoS > 0).
    unacked: u32,
    /// Deliveries owed and not made, less those given up.
    undelivered: u64,
    window: u32,
    /// Packet ids not in use.
    ids: Vec<u16>,
    /// Send (or due) time by packet id - 1.
    at_ns: Vec<u64>,
    /// When its next message is due, in the open loop.
    due_ns: u64,
    /// It is due, and its window was full when it was looked at: the heap has it no longer.
    waiting: bool,
}

#[derive(Default)]
struct Counts {
    acknowledged: u64,
    refused: u64,
    delivered: u64,
    duplicates: u64,
    order_breaks: u64,
    strays: u64,
    stalls: u64,
    latency: Latency,
    ack_latency: Latency,
}

/// The moment at which the measured part began.
struct Mark {
    at_ns: u64,
    ends: u64,
    own_cpu_ns: u64,
    watched: Vec<u64>,
}

pub(super) struct Generator {
    plan: Plan,
    poll: Poll,
    epoch: Instant,
    /// Publishers first, then subscribers.
    conns: Vec<Conn>,
    publishers: Vec<Publisher>,
    /// By publisher, or with one publisher by subscriber.
    streams: Vec<Stream>,
    /// Of a pair's subscriber, its publisher.
    partner: Vec<usize>,
    /// Connections with output.
    dirty: Vec<usize>,
    /// Publishers whose window may have opened in this turn.
    opened: Vec<u32>,
    /// The open loop's publishers by due time.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    ready: usize,
    published: u64,
    publishing: bool,
    counts: Counts,
}

impl Generator {
    pub(super) fn new(plan: Plan) -> Result<Self, LoadError> {
        let publishers = (0..plan.publishers())
            .map(|index| Publisher {
                template: Template::new(
                    plan.version(),
                    &format!("{}/{index}", plan.prefix),
                    plan.qos,
                    plan.size as usize,
                    if plan.json { head::JSON_END } else { "" },
                ),
                sent: 0,
                unacked: 0,
                undelivered: 0,
                window: u32::from(plan.window),
                ids: (1..=plan.window).rev().collect(),
                at_ns: vec![0; usize::from(plan.window)],
                due_ns: 0,
                waiting: false,
            })
            .collect();
        Ok(Self {
            poll: Poll::new()?,
            epoch: Instant::now(),
            conns: Vec::new(),
            publishers,
            streams: vec![Stream::default(); plan.publishers().max(plan.subscribers())],
            partner: shuffled(plan.subscribers()),
            dirty: Vec::new(),
            opened: Vec::new(),
            due: BinaryHeap::new(),
            ready: 0,
            published: 0,
            publishing: false,
            counts: Counts::default(),
            plan,
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn client_id(&self, conn: usize) -> String {
        let publishers = self.publishers.len();
        let prefix = &self.plan.prefix;
        if conn < publishers {
            format!("{prefix}-p{conn}")
        } else {
            format!("{prefix}-s{}", conn - publishers)
        }
    }

    /// Connects and subscribes everyone.
    pub(super) fn set_up(&mut self) -> Result<(), LoadError> {
        let all = self.publishers.len() + self.plan.subscribers();
        let deadline = Instant::now() + SETUP;
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BUFFER + self.plan.size as usize];
        while self.ready < all {
            while self.conns.len() < all && self.conns.len() - self.ready < CONNECTING_MAX {
                self.connect()?;
            }
            self.turn(&mut events, &mut buffer, Some(Duration::from_millis(100)))?;
            if Instant::now() > deadline {
                return Err(LoadError::Setup { ready: self.ready, all });
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), LoadError> {
        let index = self.conns.len();
        let subscribers_at = self.plan.subscribers_at.filter(|_| index >= self.publishers.len());
        let mut socket = TcpStream::connect(subscribers_at.unwrap_or(self.plan.addr))?;
        self.poll.registry().register(&mut socket, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let mut out = Vec::new();
        let clean = !self.plan.persistent || index < self.publishers.len();
        let hello = Hello {
            version: self.plan.version(),
            client_id: &self.client_id(index),
            clean,
            keep_alive: 0, // nothing here idles
            user: self.plan.user(),
        };
        wire::connect(&mut out, &hello);
        // `blocked`: the first writable event says that the connection stands.
        self.conns.push(Conn {
            socket,
            carrier: Carrier::new(self.plan.over),
            phase: Phase::Connecting,
            partial: Vec::new(),
            out,
            out_at: 0,
            dirty: false,
            blocked: true,
        });
        Ok(())
    }

    /// Publishes, measures, drains.
    pub(super) fn measure(mut self) -> Result<Outcome, LoadError> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BUFFER + self.plan.size as usize];
        let stall_ns = seconds_ns(self.plan.stall);
        let start_ns = self.now_ns();
        let warm_ns = start_ns + if self.plan.messages.is_some() { 0 } else { seconds_ns(self.plan.warmup) };
        let end_ns = self.plan.messages.is_none().then(|| warm_ns + seconds_ns(self.plan.seconds));
        self.start_publishing(start_ns);
        let mut mark = self.plan.messages.is_some().then(|| self.mark(start_ns));
        let mut outcome = None;
        let (mut progress, mut progress_ns, mut stalls) = (self.progress(), start_ns, 0);
        loop {
            let timeout = self.next_due_in();
            self.turn(&mut events, &mut buffer, Some(timeout))?;
            let now_ns = self.now_ns();
            self.pace(now_ns)?;
            if mark.is_none() && now_ns >= warm_ns {
                self.counts.latency.clear();
                self.counts.ack_latency.clear();
                mark = Some(self.mark(now_ns));
            }
            let all_sent = self.plan.messages.is_some_and(|messages| self.published == messages);
            if self.publishing && (all_sent || end_ns.is_some_and(|end_ns| now_ns >= end_ns)) {
                self.publishing = false;
            }
            let done = !self.publishing && self.nothing_out();
            // By time the measured part ends with the publishing, by number with the last end.
            if outcome.is_none() && !self.publishing && (end_ns.is_some() || done) {
                outcome = mark.as_ref().map(|mark| self.outcome(mark, now_ns));
            }
            if done {
                break;
            }
            if self.progress() != progress {
                (progress, progress_ns, stalls) = (self.progress(), now_ns, 0);
            } else if now_ns - progress_ns > stall_ns && (!self.publishing || !self.nothing_out()) {
                self.counts.stalls += 1;
                stalls += 1;
                if !self.publishing || stalls == STALLS_MAX {
                    break;
                }
                progress_ns = now_ns;
                self.write_off();
            }
        }
        let now_ns = self.now_ns();
        let measured = outcome.or_else(|| mark.as_ref().map(|mark| self.outcome(mark, now_ns)));
        let mut outcome = measured.ok_or_else(|| LoadError::Plan("nothing was measured".to_owned()))?;
        self.whole_run(&mut outcome);
        self.part();
        Ok(outcome)
    }

    /// Says good-bye; what the sockets do not take at once is not waited for.
    fn part(&mut self) {
        for conn in &mut self.conns {
            wire::disconnect(&mut conn.out);
            let _ = conn.carrier.write(&mut conn.socket, &conn.out[conn.out_at..]);
        }
    }

    fn start_publishing(&mut self, now_ns: u64) {
        self.publishing = true;
        let publishers = self.publishers.len() as u32;
        match self.plan.rate {
            None => self.opened = (0..publishers).collect(),
            Some(rate) => {
                let gap_ns = 1e9 / rate;
                for (index, publisher) in self.publishers.iter_mut().enumerate() {
                    publisher.due_ns = now_ns + (index as f64 * gap_ns) as u64;
                    self.due.push(Reverse((publisher.due_ns, index as u32)));
                }
            }
        }
    }

    /// A number that changes whenever something ends.
    fn progress(&self) -> u64 {
        self.counts.acknowledged + self.counts.refused + self.counts.delivered
    }

    fn nothing_out(&self) -> bool {
        self.publishers.iter().all(|publisher| publisher.unacked == 0 && publisher.undelivered == 0)
            && self.conns.iter().all(|conn| conn.out.is_empty())
    }

    /// Gives up deliveries that are owed: the closed loop goes on, and the streams know what is missing.
    fn write_off(&mut self) {
        for (index, publisher) in self.publishers.iter_mut().enumerate() {
            publisher.undelivered = 0;
            self.opened.push(index as u32);
        }
    }

    /// Ends so far, in the sense of [`Outcome::ends`].
    fn ends(&self) -> u64 {
        if self.plan.fan() > 0 { self.counts.delivered } else { self.counts.acknowledged }
    }

    fn mark(&self, now_ns: u64) -> Mark {
        Mark {
            at_ns: now_ns,
            ends: self.ends(),
            own_cpu_ns: procfs::cpu_ns(std::process::id()),
            watched: self.plan.watch.iter().map(|&pid| procfs::tree_cpu_ns(pid)).collect(),
        }
    }

    fn outcome(&self, mark: &Mark, now_ns: u64) -> Outcome {
        let watched = self.plan.watch.iter().zip(&mark.watched).map(|(&pid, &cpu_ns_start)| Watched {
            pid,
            cpu_ns_start,
            cpu_ns_end: procfs::tree_cpu_ns(pid),
            rss_bytes: procfs::rss_bytes(pid),
        });
        Outcome {
            published: 0,
            acknowledged: 0,
            refused: 0,
            delivered: 0,
            lost: 0,
            duplicates: 0,
            order_breaks: 0,
            strays: 0,
            stalls: 0,
            seconds: (now_ns - mark.at_ns) as f64 / 1e9,
            ends: self.ends() - mark.ends,
            latency: self.counts.latency.summary(),
            ack_latency: self.counts.ack_latency.summary(),
            watched: watched.collect(),
            own_cpu_ns: procfs::cpu_ns(std::process::id()).saturating_sub(mark.own_cpu_ns),
        }
    }

    /// Fills in what counts over the whole run.
    fn whole_run(&self, outcome: &mut Outcome) {
        let counts = &self.counts;
        outcome.published = self.published;
        outcome.acknowledged = counts.acknowledged;
        outcome.refused = counts.refused;
        outcome.delivered = counts.delivered;
        outcome.duplicates = counts.duplicates;
        outcome.order_breaks = counts.order_breaks;
        outcome.strays = counts.strays;
        outcome.stalls = counts.stalls;
        if self.plan.fan() > 0 {
            let sent = |index: usize| self.publishers[index.min(self.publishers.len() - 1)].sent;
            outcome.lost =
                self.streams.iter().enumerate().map(|(index, stream)| stream.missing(sent(index))).sum();
        }
    }

    /// How long epoll may sleep: it counts in milliseconds, so close to a due time it does not sleep at all.
    fn next_due_in(&self) -> Duration {
        const LONGEST: Duration = Duration::from_millis(20);
        if !self.opened.is_empty() {
            return Duration::ZERO;
        }
        let Some(Reverse((due_ns, _))) = self.due.peek().filter(|_| self.publishing) else { return LONGEST };
        let wait = Duration::from_nanos(due_ns.saturating_sub(self.now_ns()));
        if wait < Duration::from_millis(2) {
            Duration::ZERO
        } else {
            (wait - Duration::from_millis(1)).min(LONGEST)
        }
    }

    /// Publishes what the windows and, in the open loop, the due times allow, and writes everything.
    fn pace(&mut self, now_ns: u64) -> Result<(), LoadError> {
        let mut opened = std::mem::take(&mut self.opened);
        if self.publishing {
            match self.plan.rate {
                None => {
                    for &index in &opened {
                        while self.publish(index, now_ns) {}
                    }
                }
                Some(rate) => {
                    for &index in &opened {
                        let publisher = &mut self.publishers[index as usize];
                        if publisher.waiting {
                            publisher.waiting = false;
                            self.due.push(Reverse((publisher.due_ns, index)));
                        }
                    }
                    let gap_ns = (1e9 / rate * self.publishers.len() as f64) as u64;
                    while let Some(&Reverse((due_ns, index))) =
                        self.due.peek().filter(|due| due.0.0 <= now_ns)
                    {
                        self.due.pop();
                        if self.publish(index, due_ns) {
                            self.publishers[index as usize].due_ns = due_ns + gap_ns;
                            self.due.push(Reverse((due_ns + gap_ns, index)));
                        } else {
                            self.publishers[index as usize].waiting = true;
                        }
                    }
                }
            }
        }
        opened.clear();
        if self.opened.is_empty() {
            self.opened = opened; // keeps the allocation
        }
        self.flush()
    }

    /// Appends one message of `index` to its connection's output; whether it could.
    fn publish(&mut self, index: u32, at_ns: u64) -> bool {
        let share = self.plan.messages.map(|messages| {
            let (all, index) = (self.publishers.len() as u64, u64::from(index));
            messages / all + u64::from(index < messages % all)
        });
        let publisher = &mut self.publishers[index as usize];
        let conn = &mut self.conns[index as usize];
        let window = u64::from(publisher.window);
        let fan = self.plan.fan();
        if publisher.unacked >= publisher.window
            || (fan > 0 && publisher.undelivered > (window - 1) * fan)
            || conn.out.len() > OUT_MAX
            || share.is_some_and(|share| publisher.sent >= share)
        {
            return false;
        }
        let packet_id = if self.plan.qos > 0 {
            let Some(id) = publisher.ids.pop() else { return false };
            publisher.at_ns[usize::from(id) - 1] = at_ns;
            publisher.unacked += 1;
            id
        } else {
            self.counts.acknowledged += 1;
            0
        };
        let head = Head { at_ns, seq: publisher.sent, publisher: index };
        let mut bytes = [0; head::JSON_LEN];
        let head = head.encode(self.plan.json, &mut bytes);
        publisher.template.write(&mut conn.out, packet_id, head);
        publisher.sent += 1;
        publisher.undelivered += fan;
        self.published += 1;
        self.mark_dirty(index as usize);
        true
    }

    fn mark_dirty(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(index);
        }
    }

    /// One wait, and all that it reported: sockets read, parsed and answered (into their output).
    fn turn(
        &mut self,
        events: &mut Events,
        buffer: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<(), LoadError> {
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in events.iter() {
            let index = event.token().0;
            if event.is_writable() && self.conns[index].blocked {
                self.conns[index].blocked = false;
                if self.conns[index].phase == Phase::Connecting {
                    // Best effort: without it the figures are slower, not wrong.
                    let _ = self.conns[index].socket.set_nodelay(true);
                }
                self.mark_dirty(index);
                if index < self.publishers.len() && self.conns[index].phase == Phase::Ready {
                    self.opened.push(index as u32);
                }
            }
            if event.is_readable() || event.is_error() || event.is_read_closed() {
                self.read(index, buffer)?;
            }
        }
        self.flush()
    }

    fn closed(&self, index: usize, why: impl ToString) -> LoadError {
        LoadError::Closed { client: self.client_id(index), why: why.to_string() }
    }

    /// Reads a socket until it is empty.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), LoadError> {
        loop {
            let conn = &mut self.conns[index];
            let kept = conn.partial.len();
            buffer[..kept].copy_from_slice(&conn.partial);
            conn.partial.clear();
            let read = conn.carrier.read(&mut conn.socket, &mut buffer[kept..]);
            // What a layer read may be what it waited for before it writes.
            if conn.carrier.is_layer() && (conn.carrier.wants_write() || conn.blocked) {
                conn.blocked = false;
                self.mark_dirty(index);
            }
            let conn = &mut self.conns[index];
            let got = match read {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    conn.partial.extend_from_slice(&buffer[..kept]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    conn.partial.extend_from_slice(&buffer[..kept]);
                    continue;
                }
                Err(error) => return Err(self.closed(index, error)),
            };
            self.take(index, &buffer[..kept + got.bytes])?;
            if got.emptied {
                return Ok(());
            }
        }
    }

    /// Takes all whole frames in `bytes` and keeps the rest.
    fn take(&mut self, index: usize, bytes: &[u8]) -> Result<(), LoadError> {
        let version = self.plan.version();
        let now_ns = self.now_ns();
        let mut at = 0;
        loop {
            match wire::next(&bytes[at..], version) {
                Ok(Some((packet, used))) => {
                    at += used;
                    self.packet(index, &packet, now_ns)?;
                }
                Ok(None) => break,
                Err(error) => return Err(LoadError::Wire { client: self.client_id(index), error }),
            }
        }
        self.conns[index].partial.extend_from_slice(&bytes[at..]);
        Ok(())
    }

    fn packet(&mut self, index: usize, packet: &Incoming<'_>, now_ns: u64) -> Result<(), LoadError> {
        match *packet {
            Incoming::Publish { qos, packet_id, payload } => {
                if qos > 0 {
                    let kind = if qos == 1 { Ack::Puback } else { Ack::Pubrec };
                    self.answer(index, kind, packet_id);
                }
                self.delivered(index, payload, now_ns);
            }
            Incoming::Ack { kind: Ack::Pubrel, packet_id, .. } => self.answer(index, Ack::Pubcomp, packet_id),
            Incoming::Ack { kind, packet_id, reason } => {
                if index < self.publishers.len() {
                    self.acknowledged(index, kind, packet_id, reason, now_ns);
                }
            }
            Incoming::Connack { reason, receive_max } => self.connected(index, reason, receive_max)?,
            Incoming::Suback { reason } => {
                if reason != self.plan.qos {
                    return Err(LoadError::Refused {
                        client: self.client_id(index),
                        packet: "SUBACK",
                        reason,
                    });
                }
                self.now_ready(index);
            }
            Incoming::Disconnect { reason } => {
                return Err(LoadError::Refused {
                    client: self.client_id(index),
                    packet: "DISCONNECT",
                    reason,
                });
            }
            Incoming::Pingresp | Incoming::Other => {}
        }
        Ok(())
    }

    fn answer(&mut self, index: usize, kind: Ack, packet_id: u16) {
        wire::ack(&mut self.conns[index].out, kind, packet_id);
        self.mark_dirty(index);
    }

    fn connected(&mut self, index: usize, reason: u8, receive_max: u16) -> Result<(), LoadError> {
        if reason != 0 {
            return Err(LoadError::Refused { client: self.client_id(index), packet: "CONNACK", reason });
        }
        self.conns[index].phase = Phase::Connected;
        if let Some(publisher) = self.publishers.get_mut(index) {
            publisher.window = publisher.window.min(u32::from(receive_max));
            self.now_ready(index);
        } else {
            let topic = match self.plan.shape {
                Shape::Pairs | Shape::Publish => {
                    format!("{}/{}", self.plan.prefix, self.partner[index - self.publishers.len()])
                }
                Shape::FanIn => format!("{}/+", self.plan.prefix),
                Shape::FanOut => match &self.plan.again {
                    Some(topic) if index > self.publishers.len() => topic.clone(),
                    _ => format!("{}/0", self.plan.prefix),
                },
            };
            wire::subscribe(&mut self.conns[index].out, self.plan.version(), &topic, self.plan.qos);
            self.mark_dirty(index);
        }
        Ok(())
    }

    fn now_ready(&mut self, index: usize) {
        if self.conns[index].phase != Phase::Ready {
            self.conns[index].phase = Phase::Ready;
            self.ready += 1;
        }
    }

    fn acknowledged(&mut self, index: usize, kind: Ack, packet_id: u16, reason: u8, now_ns: u64) {
        let publisher = &mut self.publishers[index];
        let slot = usize::from(packet_id).wrapping_sub(1);
        // An id that is not in use, or an acknowledgement that comes twice: nothing of ours.
        let Some(&at_ns) = publisher.at_ns.get(slot) else {
            self.counts.strays += 1;
            return;
        };
        if kind != Ack::Pubcomp {
            if reason < 0x80 {
                self.counts.acknowledged += 1;
                self.counts.ack_latency.record(now_ns.saturating_sub(at_ns));
            } else {
                self.counts.refused += 1;
            }
        }
        if kind == Ack::Pubrec && reason < 0x80 {
            self.answer(index, Ack::Pubrel, packet_id);
        } else {
            publisher.unacked = publisher.unacked.saturating_sub(1);
            publisher.ids.push(packet_id);
            self.opened.push(index as u32);
        }
    }

    fn delivered(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let subscriber = index.wrapping_sub(self.publishers.len());
        let head = Head::decode(payload, self.plan.json).filter(|head| match self.plan.shape {
            Shape::Pairs => self.partner.get(subscriber) == Some(&(head.publisher as usize)),
            _ => (head.publisher as usize) < self.publishers.len(),
        });
        let Some(head) = head.filter(|_| payload.len() == self.plan.size as usize) else {
            self.counts.strays += 1;
            return;
        };
        let stream = if self.plan.shape == Shape::FanOut { subscriber } else { head.publisher as usize };
        self.counts.delivered += 1;
        self.counts.latency.record(now_ns.saturating_sub(head.at_ns));
        match self.streams[stream].arrived(head.seq) {
            Arrival::InOrder => {}
            Arrival::Late => self.counts.order_breaks += 1,
            Arrival::Duplicate => {
                self.counts.duplicates += 1;
                return;
            }
        }
        let publisher = &mut self.publishers[head.publisher as usize];
        publisher.undelivered = publisher.undelivered.saturating_sub(1);
        if self.opened.last() != Some(&head.publisher) {
            self.opened.push(head.publisher);
        }
    }

    /// Writes each dirty connection once.
    fn flush(&mut self) -> Result<(), LoadError> {
        let mut dirty = std::mem::take(&mut self.dirty);
        for &index in &dirty {
            let conn = &mut self.conns[index];
            conn.dirty = false;
            while !conn.blocked && (conn.out_at < conn.out.len() || conn.carrier.wants_write()) {
                match conn.carrier.write(&mut conn.socket, &conn.out[conn.out_at..]) {
                    Ok(wrote) => conn.out_at += wrote,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => conn.blocked = true,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(self.closed(index, error)),
                }
            }
            if conn.out_at == conn.out.len() {
                conn.out.clear();
                conn.out_at = 0;
                // QoS 0 without receivers has no window: the socket paces it.
                if self.publishing && self.plan.fan() == 0 && self.plan.qos == 0 {
                    self.opened.push(index as u32);
                }
            } else if conn.out_at > OUT_MAX {
                conn.out.drain(..conn.out_at);
                conn.out_at = 0;
            }
        }
        dirty.clear();
        self.dirty = dirty;
        Ok(())
    }
}

/// The numbers below `count` in an order that looks random and is the same every time (Fisher-Yates, with the generator
/// of Knuth's MMIX).
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = 1_u64;
    for index in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(index, (state >> 33) as usize % (index + 1));
    }
    order
}

fn seconds_ns(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
