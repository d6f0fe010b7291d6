//! A TCP relay in the test's process: the network between two nodes, with its faults, for tests without root.
//!
//! | fault | what the two ends see |
//! |---|---|
//! | [`Relay::blackhole`] | nothing at all: no byte, no FIN, no RST; new connections are accepted and stay silent |
//! | [`Relay::blackhole_behind`] | the same, once certain words have come to the target: who sent them stops there |
//! | [`Relay::cut`] | every connection closed, in the middle of whatever it carried |
//! | [`Relay::refuse`] | every connection closed, new ones at once after they are accepted |
//! | [`Relay::delay`] | each direction's bytes come that much later, in order; the stream is not slowed |
//! | [`Relay::throttle`] | each direction of each connection carries at most that many bytes a second |
//! | [`Relay::half_open`] | the target sees its connections closed, who came here sees nothing: what it sends is taken and answered by nobody; new ones go through |
//! | [`Relay::answer`] | each PUBACK of the target (MQTT 5, [`Relay::start_mqtt`]) comes with that reason code instead of its own |
//!
//! A blackhole here keeps what the kernel's buffers had taken and delivers it after [`Relay::heal`], as TCP's own resends
//! would; what packets lost for good do to two kernels is tested in network namespaces ([`crate::netns`]).
//!
//! Bounds: a direction holds at most 256 chunks of 16 KiB; past that it stops reading, as a full link would.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks under way in one direction of one connection.
const QUEUE: usize = 256;

#[derive(Debug, Default)]
struct State {
    blackhole: bool,
    /// What brings it about.
    last_words: Option<&'static [u8]>,
    refuse: bool,
    closed: bool,
    delay: Duration,
    bytes_per_second: Option<u64>,
    /// (towards who came, towards the target).
    connections: Vec<(TcpStream, TcpStream)>,
    accepted: u64,
    /// Connections up to this number are half open.
    half_open_to: u64,
    /// The reason code of PUBACKs.
    reason: Option<u8>,
    /// PUBACKs that were changed.
    changed: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The target has got this.
    fn heard(&self, chunk: &[u8]) {
        let mut state = self.lock();
        if state.last_words.is_some_and(|words| chunk.windows(words.len()).any(|part| part == words)) {
            state.last_words = None;
            state.blackhole = true;
            self.changed.notify_all();
        }
    }

    /// Waits while the blackhole is open; false when the relay is closed.
    fn pass(&self) -> bool {
        let open = |state: &mut State| state.blackhole && !state.closed;
        let state = self.changed.wait_while(self.lock(), open).unwrap_or_else(PoisonError::into_inner);
        !state.closed
    }
}

/// A relay from a free port of 127.0.0.1 to `target`. Closed when dropped.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// Starts one.
    ///
    /// # Panics
    /// When no port can be bound.
    #[must_use]
    pub fn start(target: SocketAddr) -> Self {
        Self::start_as(target, false)
    }

    /// Starts one that knows the packets of MQTT that the target sends.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_mqtt(target: SocketAddr) -> Self {
        Self::start_as(target, true)
    }

    fn start_as(target: SocketAddr, mqtt: bool) -> Self {
        let listener = TcpListener::bind(crate::port::free_addr()).expect("a free port can be bound");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for inward in listener.incoming().flatten() {
                if own.lock().closed {
                    return;
                }
                accept(&own, inward, target, mqtt);
            }
        });
        Self { addr, shared }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections it has accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// Forwards nothing from now on, and says so to nobody.
    pub fn blackhole(&self) {
        self.set(|state| state.blackhole = true);
    }

    /// The same from when these words, in one chunk, have gone to the target.
    pub fn blackhole_behind(&self, words: &'static [u8]) {
        self.set(|state| state.last_words = Some(words));
    }

    /// Waits for those words.
    ///
    /// # Panics
    /// When they have not come within 20 s.
    pub fn wait_blackhole(&self) {
        let closed = |state: &mut State| !state.blackhole;
        let waited =
            self.shared.changed.wait_timeout_while(self.shared.lock(), Duration::from_secs(20), closed);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(state.blackhole, "the words never came");
    }

    /// Ends every fault.
    pub fn heal(&self) {
        self.set(|state| {
            state.blackhole = false;
            state.last_words = None;
            state.refuse = false;
            state.delay = Duration::ZERO;
            state.bytes_per_second = None;
            state.reason = None;
        });
    }

    /// The target's ends of all connections are closed, those of who came here stay open for ever (until [`Self::cut`]); new ones are forwarded.
    pub fn half_open(&self) {
        self.set(|state| {
            state.half_open_to = state.accepted;
            for (_, outward) in &state.connections {
                let _ = outward.shutdown(Shutdown::Both); // closed already: the same
            }
        });
    }

    /// From now on each PUBACK has this reason code, whatever the target thought of the message.
    pub fn answer(&self, reason: u8) {
        self.set(|state| state.reason = Some(reason));
    }

    /// How many PUBACKs were changed so far.
    #[must_use]
    pub fn answers_changed(&self) -> u64 {
        self.shared.lock().changed
    }

    /// Closes every connection; new ones are forwarded.
    pub fn cut(&self) {
        self.set(State::cut);
    }

    /// Closes every connection, and every new one too.
    pub fn refuse(&self) {
        self.set(|state| {
            state.refuse = true;
            state.cut();
        });
    }

    /// Delays each direction.
    pub fn delay(&self, by: Duration) {
        self.set(|state| state.delay = by);
    }

    /// Bounds the rate of each direction of each connection.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.set(|state| state.bytes_per_second = Some(bytes_per_second.max(1)));
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

impl State {
    fn cut(&mut self) {
        for (inward, outward) in self.connections.drain(..) {
            let _ = (inward.shutdown(Shutdown::Both), outward.shutdown(Shutdown::Both)); // closed already: nothing to cut
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.set(|state| {
            state.closed = true;
            state.cut();
        });
        // Wakes the accepting thread, which then sees that it is closed.
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_secs(1));
    }
}

/// Connects one accepted connection onwards; a target that is down closes it, as a port without a listener would.
fn accept(shared: &Arc<Shared>, inward: TcpStream, target: SocketAddr, mqtt: bool) {
    let number = {
        let mut state = shared.lock();
        state.accepted += 1;
        if state.refuse {
            return;
        }
        state.accepted
    };
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        if !shared.pass() {
            return;
        }
        let Ok(outward) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else { return };
        let _ = inward.set_nodelay(true).and(outward.set_nodelay(true)); // the peer has gone: the first read says so
        let ends = (inward.try_clone(), outward.try_clone(), inward.try_clone(), outward.try_clone());
        let (Ok(inward_kept), Ok(outward_kept), Ok(inward_copy), Ok(outward_copy)) = ends else { return };
        shared.lock().connections.push((inward_kept, outward_kept));
        let back = Arc::clone(&shared);
        let packets = mqtt.then(Packets::default);
        std::thread::spawn(move || direction(&back, number, outward_copy, inward_copy, Way::Back(packets)));
        direction(&shared, number, inward, outward, Way::There);
    });
}

/// Writes a chunk; at a bounded rate in pieces of a tenth of a second, so that [`Relay::heal`] is felt at once. False when that direction has ended.
fn carry(shared: &Shared, mut chunk: &[u8], to: &mut TcpStream) -> bool {
    while !chunk.is_empty() {
        if !shared.pass() {
            return false;
        }
        let rate = shared.lock().bytes_per_second;
        let most = rate.map_or(usize::MAX, |rate| usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1));
        let (piece, rest) = chunk.split_at(most.min(chunk.len()));
        if to.write_all(piece).is_err() {
            return false;
        }
        if let Some(rate) = rate {
            std::thread::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64));
        }
        chunk = rest;
    }
    true
}

/// A stream of MQTT packets, taken apart.
#[derive(Debug, Default)]
struct Packets {
    /// The beginning of a packet.
    rest: Vec<u8>,
}

impl Packets {
    /// The whole packets of what came, with PUBACKs changed to `reason`, if there is one; and how many were.
    fn pass(&mut self, chunk: &[u8], reason: Option<u8>) -> (Vec<u8>, u64) {
        self.rest.extend_from_slice(chunk);
        let (mut out, mut at, mut changed) = (Vec::with_capacity(self.rest.len()), 0, 0);
        while let Some(whole) = packet_length(&self.rest[at..]) {
            let packet = &self.rest[at..at + whole];
            match (packet[0] >> 4, reason) {
                // The packet id is behind one byte of length (a PUBACK with properties may have two).
                (4, Some(reason)) => {
                    let id = if packet[1] < 0x80 { &packet[2..4] } else { &packet[3..5] };
                    out.extend_from_slice(&[0x40, 3, id[0], id[1], reason]);
                    changed += 1;
                }
                _ => out.extend_from_slice(packet),
            }
            at += whole;
        }
        self.rest.drain(..at);
        (out, changed)
    }
}

/// Bytes of the packet that `bytes` begin with; None while it is not whole.
fn packet_length(bytes: &[u8]) -> Option<usize> {
    let mut length = 0;
    for (n, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * n);
        if byte & 0x80 == 0 {
            let whole = 2 + n + length;
            return (bytes.len() >= whole).then_some(whole);
        }
    }
    None
}

/// Which direction.
enum Way {
    /// To the target.
    There,
    /// From it.
    Back(Option<Packets>),
}

/// Carries one direction of connection `number`: a reader that stamps chunks, a writer that lets each go when it is due.
fn direction(shared: &Arc<Shared>, number: u64, mut from: TcpStream, mut to: TcpStream, mut way: Way) {
    let (queue, chunks) = mpsc::sync_channel::<(Instant, Vec<u8>)>(QUEUE);
    let there = matches!(way, Way::There);
    let writer = {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            for (read_at, chunk) in chunks {
                let delay = shared.lock().delay;
                std::thread::sleep((read_at + delay).saturating_duration_since(Instant::now()));
                if !carry(&shared, &chunk, &mut to) {
                    break;
                }
                if there {
                    shared.heard(&chunk);
                }
            }
            // A half-close goes through as one; of a connection that is half open nobody hears anything.
            if shared.lock().half_open_to < number {
                let _ = to.shutdown(Shutdown::Write); // closed already: the same
            }
        })
    };
    let mut buffer = vec![0; CHUNK];
    while shared.pass() {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let chunk = match &mut way {
                    Way::There | Way::Back(None) => buffer[..count].to_vec(),
                    Way::Back(Some(packets)) => {
                        let mut state = shared.lock();
                        let (chunk, changed) = packets.pass(&buffer[..count], state.reason);
                        state.changed += changed;
                        chunk
                    }
                };
                if queue.send((Instant::now(), chunk)).is_err() && shared.lock().half_open_to < number {
                    break; // (what comes on one that is half open is taken, and goes nowhere)
                }
            }
        }
    }
    drop(queue);
    let _ = writer.join();
    if shared.lock().half_open_to < number {
        let _ = from.shutdown(Shutdown::Read); // closed already: the same
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// An echo server on a free port.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream);
                    let _ = stream.shutdown(Shutdown::Write);
                });
            }
        });
        addr
    }

    fn connect(relay: &Relay) -> TcpStream {
        let stream = TcpStream::connect(relay.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    #[test]
    fn forwards_and_passes_a_half_close_on() {
        let relay = Relay::start(echo());
        let mut stream = connect(&relay);
        let data: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let mut writing = stream.try_clone().unwrap();
        let sent = data.clone();
        let writer = std::thread::spawn(move || {
            writing.write_all(&sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        writer.join().unwrap();
        assert_eq!(back, data);
        assert_eq!(relay.accepted(), 1);
    }

    #[test]
    fn a_blackhole_is_silent_and_loses_nothing() {
        let relay = Relay::start(echo());
        let mut stream = connect(&relay);
        let mut one = [0; 1];
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut one).unwrap();
        relay.blackhole();
        stream.write_all(b"b").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let silent = stream.read(&mut one).unwrap_err();
        assert!(matches!(silent.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
        relay.heal();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.read_exact(&mut one).unwrap();
        assert_eq!(&one, b"b");
    }

    #[test]
    fn pubacks_get_another_reason_and_all_else_passes() {
        let mut packets = Packets::default();
        // CONNACK, a PUBACK of two bytes, PINGRESP, a PUBACK with a reason and properties, cut anywhere.
        let bytes = [0x20, 3, 0, 0, 0, 0x40, 2, 0, 7, 0xD0, 0, 0x40, 5, 1, 8, 0, 1, 9];
        for cut in 0..bytes.len() {
            let (mut out, before) = packets.pass(&bytes[..cut], Some(0x97));
            let (rest, after) = packets.pass(&bytes[cut..], Some(0x97));
            out.extend(rest);
            assert_eq!(
                out,
                [0x20, 3, 0, 0, 0, 0x40, 3, 0, 7, 0x97, 0xD0, 0, 0x40, 3, 1, 8, 0x97],
                "cut at {cut}"
            );
            assert_eq!(before + after, 2);
        }
        assert_eq!(packets.pass(&bytes, None), (bytes.to_vec(), 0));
    }

    #[test]
    fn a_cut_ends_connections_and_lets_new_ones_through() {
        let relay = Relay::start(echo());
        let mut stream = connect(&relay);
        let mut one = [0; 1];
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut one).unwrap();
        relay.cut();
        assert_eq!(stream.read(&mut one).unwrap_or(0), 0, "cut");
        let mut again = connect(&relay);
        again.write_all(b"c").unwrap();
        again.read_exact(&mut one).unwrap();
        relay.half_open();
        again.write_all(b"d").unwrap();
        again.write_all(b"e").unwrap();
        again.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let silent = again.read(&mut one).unwrap_err();
        assert!(matches!(silent.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
        let mut third = connect(&relay);
        third.write_all(b"f").unwrap();
        third.read_exact(&mut one).unwrap();
        relay.refuse();
        let mut refused = connect(&relay);
        assert_eq!(refused.read(&mut one).unwrap_or(0), 0, "refused");
    }
}
