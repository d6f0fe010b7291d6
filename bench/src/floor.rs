//! The floor: the least that a broker on epoll can do. What it costs, nobody saves; what another costs more, its promises cost.
//!
//! # What it does
//! MQTT 3.1.1, QoS 0 and 1, exact filters in a hash map, filters with wildcards in a list. One thread, edge-triggered
//! epoll, sockets read into one buffer, each destination with output written once at the turn's end.
//!
//! # What it does not
//! No sessions, no retained messages, no wills, no checks, no keep alive, no limits, no redelivery: a PUBACK of a
//! subscriber is skipped, its packet ids just count. UNSUBSCRIBE, QoS 2 and anything malformed close the connection. Slots and
//! filters of closed connections are never used again: a floor lives for one row.
//!
//! # Why it is hard to be cheaper
//! - A PUBLISH leaves as it came: with the same QoS its layout for a subscriber is the publisher's, so a new packet id is written into the
//!   read buffer and the frame is forwarded. One id for all subscribers: nobody looks at it.
//! - Messages in a row of one topic are one *run* of the read buffer: matched once, and for each subscriber one copy of
//!   them all or, from [`DIRECT`] bytes on, one write straight out of the read buffer.
//! - Output buffers come from a pool and go back to it when written: few, so warm, and none for a connection that idles.
//!
//! Frame layout [MQTT 3.1.1, 2.2]: `type << 4 | flags`, remaining length (1 to 4 bytes, 7 bits each, low first), body.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;

use clap::Args;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// The buffer that all sockets are read into, in bytes: more in one call than a socket buffer holds as a rule.
const READ: usize = 256 * 1024;
/// From this many bytes on a run is written out of the read buffer: the copy then costs more than the system call.
const DIRECT: usize = 16 * 1024;
/// Output buffers that are kept for later.
const POOL: usize = 64;
/// A buffer above this is given back to the allocator.
const POOL_BYTES: usize = 1024 * 1024;
const LISTENER: Token = Token(usize::MAX);

/// The options of `ferrule-bench floor`.
#[derive(Debug, Args)]
pub struct FloorArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub listen: SocketAddr,
}

struct Conn {
    socket: TcpStream,
    /// The start of a frame whose rest has not come.
    partial: Vec<u8>,
    out: Vec<u8>,
    /// Of `out`, what is already written.
    out_at: usize,
    dirty: bool,
    /// The socket took less than it was given: wait for its next writable event.
    blocked: bool,
}

#[derive(Clone, Copy)]
struct Subscriber {
    conn: usize,
    qos: u8,
}

#[derive(Default)]
struct Floor {
    /// By token; none: closed.
    conns: Vec<Option<Conn>>,
    exact: HashMap<Box<[u8]>, Vec<Subscriber>, foldhash::fast::RandomState>,
    wild: Vec<(Box<[u8]>, Subscriber)>,
    dirty: Vec<usize>,
    pool: Vec<Vec<u8>>,
    /// The last one given, of all connections: nobody looks at it.
    packet_id: u16,
    run: Run,
}

/// Messages in a row of one topic and QoS, in the read buffer.
#[derive(Default)]
struct Run {
    /// Whose they are.
    to: Vec<Subscriber>,
    qos: u8,
    /// Where the topic of the first lies; empty: there is no run.
    topic: Range<usize>,
    /// Where the frames lie.
    bytes: Range<usize>,
}

/// Serves until it is killed.
///
/// # Errors
/// When the address is taken or epoll itself fails.
pub fn serve(args: &FloorArgs) -> io::Result<()> {
    let mut listener = TcpListener::bind(args.listen)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; READ];
    let mut floor = Floor::default();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                // Out of files: the rest waits for the next one that comes.
                while let Ok((socket, _)) = listener.accept() {
                    floor.add(socket, &poll)?;
                }
                continue;
            }
            let index = event.token().0;
            if event.is_writable()
                && let Some(conn) = floor.conns[index].as_mut().filter(|conn| conn.blocked)
            {
                conn.blocked = false;
                floor.mark_dirty(index);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                floor.read(index, event.is_read_closed() || event.is_error(), &mut buffer);
            }
        }
        let mut dirty = std::mem::take(&mut floor.dirty);
        dirty.drain(..).for_each(|index| floor.write(index));
        floor.dirty = dirty;
    }
}

impl Floor {
    fn add(&mut self, mut socket: TcpStream, poll: &Poll) -> io::Result<()> {
        let _ = socket.set_nodelay(true);
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut socket, Token(self.conns.len()), interest)?;
        self.conns.push(Some(Conn {
            socket,
            partial: Vec::new(),
            out: Vec::new(),
            out_at: 0,
            dirty: false,
            blocked: false,
        }));
        Ok(())
    }

    /// Reads until the socket is empty; a read shorter than its buffer has emptied it (epoll(7)).
    fn read(&mut self, index: usize, ending: bool, buffer: &mut Vec<u8>) {
        loop {
            let Some(conn) = &mut self.conns[index] else { return };
            let kept = conn.partial.len();
            if buffer.len() < kept + READ {
                buffer.resize(kept + READ, 0); // a frame larger than the buffer
            }
            buffer[..kept].copy_from_slice(&conn.partial);
            let got = match conn.socket.read(&mut buffer[kept..kept + READ]) {
                Ok(0) => return self.conns[index] = None,
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.conns[index] = None,
            };
            conn.partial.clear();
            let Some(used) = self.frames(index, &mut buffer[..kept + got]) else {
                self.conns[index] = None;
                return;
            };
            if let Some(conn) = &mut self.conns[index] {
                conn.partial.extend_from_slice(&buffer[used..kept + got]);
            }
            if got < READ && !ending {
                return;
            }
        }
    }

    /// Takes all whole frames; how many bytes they had, or none when the connection is over.
    fn frames(&mut self, index: usize, bytes: &mut [u8]) -> Option<usize> {
        let mut at = 0;
        let mut open = true;
        while let Some(body) = body(&bytes[at..]).map(|body| at + body.start..at + body.end) {
            if body.end > bytes.len() {
                break;
            }
            let frame = at..body.end;
            at = body.end;
            let more = match bytes[frame.start] >> 4 {
                3 => self.publish(index, bytes, frame, body.start),
                kind => self.other(index, kind, &bytes[body]),
            };
            open = more.is_some();
            if !open {
                break;
            }
        }
        self.end_run(bytes);
        open.then_some(at)
    }

    /// Takes one PUBLISH, whose body begins at `topic_at`, into the run; none when it is malformed.
    fn publish(&mut self, from: usize, bytes: &mut [u8], frame: Range<usize>, topic_at: usize) -> Option<()> {
        let qos = (bytes[frame.start] >> 1) & 3;
        let topic = topic_at + 2..topic_at + 2 + usize::from(u16_at(bytes, topic_at, frame.end)?);
        if qos > 0 {
            let id = u16_at(bytes, topic.end, frame.end).filter(|_| qos == 1)?.to_be_bytes();
            self.output(from)?.extend_from_slice(&[0x40, 2, id[0], id[1]]);
            self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
            bytes[topic.end..topic.end + 2].copy_from_slice(&self.packet_id.to_be_bytes());
        }
        bytes[frame.start] &= 0xf6; // neither a duplicate nor retained
        let run = &self.run;
        if run.bytes.end != frame.start
            || run.qos != qos
            || bytes[run.topic.clone()] != *bytes.get(topic.clone())?
        {
            self.end_run(bytes);
            let mut to = std::mem::take(&mut self.run.to);
            to.clear();
            self.matching(&bytes[topic.clone()], &mut to);
            self.run = Run { to, qos, topic, bytes: frame.start..frame.start };
        }
        self.run.bytes.end = frame.end;
        Some(())
    }

    /// Forwards the run to everyone: straight to the socket when it is large and nothing waits there, else into the output.
    fn end_run(&mut self, bytes: &[u8]) {
        let run = std::mem::take(&mut self.run);
        for to in &run.to {
            let Some(conn) = &mut self.conns[to.conn] else { continue };
            let mut rest = &bytes[run.bytes.clone()];
            if to.qos < run.qos {
                if let Some(out) = self.output(to.conn) {
                    lower(out, rest);
                }
                continue;
            }
            if rest.len() >= DIRECT
                && conn.out.is_empty()
                && !conn.blocked
                // An error comes back when the rest is written.
                && let Ok(wrote) = conn.socket.write(rest)
            {
                rest = &rest[wrote..];
            }
            if !rest.is_empty()
                && let Some(out) = self.output(to.conn)
            {
                out.extend_from_slice(rest);
            }
        }
        self.run.to = run.to; // keeps the allocation
        self.run.to.clear();
    }

    /// Answers all but PUBLISH; none when the connection is over.
    fn other(&mut self, index: usize, kind: u8, body: &[u8]) -> Option<()> {
        match kind {
            1 => self.output(index)?.extend_from_slice(&[0x20, 2, 0, 0]),
            8 => {
                let mut at = 2;
                let mut granted = Vec::new();
                while at < body.len() {
                    let end = at + 2 + usize::from(u16_at(body, at, body.len())?);
                    let qos = (*body.get(end)?).min(1);
                    let (filter, subscriber) = (&body[at + 2..end], Subscriber { conn: index, qos });
                    if filter.iter().any(|byte| matches!(byte, b'+' | b'#')) {
                        self.wild.push((filter.into(), subscriber));
                    } else {
                        let list = self.exact.entry(filter.into()).or_insert_with(|| Vec::with_capacity(1));
                        list.push(subscriber);
                    }
                    granted.push(qos);
                    at = end + 1;
                }
                let out = self.output(index)?;
                header(out, 0x90, 2 + granted.len());
                out.extend_from_slice(body.get(..2)?);
                out.extend_from_slice(&granted);
            }
            4 => {}
            12 => self.output(index)?.extend_from_slice(&[0xd0, 0]),
            _ => return None, // DISCONNECT, and what is not served
        }
        Some(())
    }

    fn matching(&self, topic: &[u8], into: &mut Vec<Subscriber>) {
        if let Some(exact) = self.exact.get(topic) {
            into.extend_from_slice(exact);
        }
        into.extend(self.wild.iter().filter(|(filter, _)| matches(filter, topic)).map(|(_, to)| *to));
    }

    fn mark_dirty(&mut self, index: usize) {
        if let Some(conn) = self.conns[index].as_mut().filter(|conn| !conn.dirty) {
            conn.dirty = true;
            self.dirty.push(index);
        }
    }

    fn output(&mut self, index: usize) -> Option<&mut Vec<u8>> {
        self.mark_dirty(index);
        let conn = self.conns[index].as_mut()?;
        if conn.out.capacity() == 0 {
            conn.out = self.pool.pop().unwrap_or_default();
        }
        Some(&mut conn.out)
    }

    fn write(&mut self, index: usize) {
        let Some(conn) = &mut self.conns[index] else { return };
        conn.dirty = false;
        while !conn.blocked && conn.out_at < conn.out.len() {
            match conn.socket.write(&conn.out[conn.out_at..]) {
                Ok(wrote) => conn.out_at += wrote,
                Err(error) if error.kind() == ErrorKind::WouldBlock => conn.blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.conns[index] = None,
            }
        }
        if conn.out_at == conn.out.len() {
            conn.out_at = 0;
            let mut out = std::mem::take(&mut conn.out);
            if self.pool.len() < POOL && out.capacity() <= POOL_BYTES {
                out.clear();
                self.pool.push(out);
            }
        } else if conn.out_at >= POOL_BYTES {
            conn.out.drain(..conn.out_at);
            conn.out_at = 0;
        }
    }
}

/// Appends QoS 1 frames as QoS 0: another layout, without the packet id.
fn lower(out: &mut Vec<u8>, mut frames: &[u8]) {
    while let Some(body) = body(frames) {
        let topic_len = usize::from(u16_at(frames, body.start, body.end).unwrap_or_default());
        let id_at = body.start + 2 + topic_len;
        header(out, 0x30, body.len() - 2);
        out.extend_from_slice(&frames[body.start..id_at]);
        out.extend_from_slice(&frames[id_at + 2..body.end]);
        frames = &frames[body.end..];
    }
}

/// Where the body of the first frame lies, whole or not; none when its length is not whole. A length of more than four bytes
/// is read as four: there are no checks here.
fn body(bytes: &[u8]) -> Option<Range<usize>> {
    let mut length = 0;
    for index in 0..4 {
        let byte = *bytes.get(1 + index)?;
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(2 + index..2 + index + length);
        }
    }
    Some(5..5 + length)
}

fn header(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    while length > 0x7f {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// The number at `at`, if it ends before `end`.
fn u16_at(bytes: &[u8], at: usize, end: usize) -> Option<u16> {
    (at + 2 <= end).then(|| u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Whether `filter`, level by level, matches `topic` [MQTT 3.1.1, 4.7]; `$` is a letter like others.
fn matches(filter: &[u8], topic: &[u8]) -> bool {
    let mut levels = topic.split(|&byte| byte == b'/');
    for part in filter.split(|&byte| byte == b'/') {
        match (part, levels.next()) {
            (b"#", _) => return true,
            (b"+", Some(_)) => {}
            (part, Some(level)) if part == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::load::{self, Plan};
    use crate::rows::base;

    /// Starts one on a free port; its thread ends with the test process.
    pub(crate) fn start() -> SocketAddr {
        let listen = ferrule_testkit::port::free_addr();
        std::thread::spawn(move || serve(&FloorArgs { listen }).unwrap());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::net::TcpStream::connect(listen).is_err() {
            assert!(std::time::Instant::now() < deadline, "it does not listen");
            std::thread::yield_now();
        }
        listen
    }

    #[test]
    fn filters() {
        for (filter, topic, expect) in [
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("+/b/#", "a/b", true),
            ("#", "a/b", true),
            ("a/+/c", "a/b/d", false),
        ] {
            assert_eq!(matches(filter.as_bytes(), topic.as_bytes()), expect, "{filter} {topic}");
        }
    }

    #[test]
    fn every_shape_loses_nothing() {
        use load::Shape::{FanIn, FanOut, Pairs, Publish};
        for (shape, size) in
            [(Pairs, 64), (Pairs, 40_000), (Pairs, 400_000), (FanIn, 64), (FanOut, 64), (Publish, 64)]
        {
            for qos in 0..=1 {
                let plan =
                    Plan { addr: start(), shape, size, qos, clients: 7, messages: Some(300), ..base(true) };
                let outcome = load::run(&plan).unwrap();
                let bad =
                    [outcome.lost, outcome.duplicates, outcome.order_breaks, outcome.strays, outcome.stalls];
                assert_eq!(bad, [0; 5], "{plan:?}");
                assert_eq!((outcome.published, outcome.acknowledged), (300, 300), "{plan:?}");
            }
        }
    }

    #[test]
    fn two_subscribers_of_one_topic_with_different_qos() {
        let mut socket = std::net::TcpStream::connect(start()).unwrap();
        let mut other = socket.try_clone().unwrap();
        // One connection subscribes twice: exactly with QoS 0, with a wildcard and QoS 1; pings; then publishes, retained, as 7.
        let input = b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01p\x82\x0a\0\x09\0\x01a\0\0\x01+\x01\xc0\0\x33\x06\0\x01a\0\x07x";
        socket.write_all(input).unwrap();
        let expect =
            b"\x20\x02\0\0\x90\x04\0\x09\0\x01\xd0\0\x40\x02\0\x07\x30\x04\0\x01ax\x32\x06\0\x01a\0\x01x";
        let mut got = vec![0; expect.len()];
        other.read_exact(&mut got).unwrap();
        assert_eq!(got, expect);
        socket.write_all(b"\xe0\0").unwrap();
        assert_eq!(other.read(&mut got).unwrap(), 0, "closed after DISCONNECT");
    }
}
