//! A TCP relay in the test's process: the network between two nodes, with its faults, for tests without root.
//!
//! | fault | what the two ends see |
//! |---|---|
//! | [`Relay::blackhole`] | nothing at all: no byte, no FIN, no RST; new connections are accepted and stay silent |
//! | [`Relay::cut`] | every connection closed, in the middle of whatever it carried |
//! | [`Relay::refuse`] | every connection closed, new ones at once after they are accepted |
//! | [`Relay::delay`] | each direction's bytes come that much later, in order; the stream is not slowed |
//! | [`Relay::throttle`] | each direction of each connection carries at most that many bytes a second |
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
    refuse: bool,
    closed: bool,
    delay: Duration,
    bytes_per_second: Option<u64>,
    connections: Vec<TcpStream>,
    accepted: u64,
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
        let listener = TcpListener::bind(crate::port::free_addr()).expect("a free port can be bound");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for inward in listener.incoming().flatten() {
                if own.lock().closed {
                    return;
                }
                accept(&own, inward, target);
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

    /// Ends every fault.
    pub fn heal(&self) {
        self.set(|state| {
            state.blackhole = false;
            state.refuse = false;
            state.delay = Duration::ZERO;
            state.bytes_per_second = None;
        });
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
        for stream in self.connections.drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // closed already: nothing to cut
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
fn accept(shared: &Arc<Shared>, inward: TcpStream, target: SocketAddr) {
    {
        let mut state = shared.lock();
        state.accepted += 1;
        if state.refuse {
            return;
        }
    }
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        if !shared.pass() {
            return;
        }
        let Ok(outward) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else { return };
        let _ = inward.set_nodelay(true).and(outward.set_nodelay(true)); // the peer has gone: the first read says so
        let ends = (inward.try_clone(), outward.try_clone(), inward.try_clone(), outward.try_clone());
        let (Ok(inward_kept), Ok(outward_kept), Ok(inward_copy), Ok(outward_copy)) = ends else { return };
        shared.lock().connections.extend([inward_kept, outward_kept]);
        let back = Arc::clone(&shared);
        std::thread::spawn(move || direction(&back, outward_copy, inward_copy));
        direction(&shared, inward, outward);
    });
}

/// Carries one direction: a reader that stamps chunks, a writer that lets each go when it is due.
fn direction(shared: &Arc<Shared>, mut from: TcpStream, mut to: TcpStream) {
    let (queue, chunks) = mpsc::sync_channel::<(Instant, Vec<u8>)>(QUEUE);
    let writer = {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let mut free_at = Instant::now();
            for (read_at, chunk) in chunks {
                let (delay, rate) = {
                    let state = shared.lock();
                    (state.delay, state.bytes_per_second)
                };
                let due = (read_at + delay).max(free_at);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if let Some(rate) = rate {
                    free_at = Instant::now() + Duration::from_secs_f64(chunk.len() as f64 / rate as f64);
                }
                if !shared.pass() || to.write_all(&chunk).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write); // half-close goes through as one
        })
    };
    let mut buffer = vec![0; CHUNK];
    while shared.pass() {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if queue.send((Instant::now(), buffer[..count].to_vec())).is_err() {
                    break;
                }
            }
        }
    }
    drop(queue);
    let _ = writer.join();
    let _ = from.shutdown(Shutdown::Read);
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
        relay.refuse();
        let mut refused = connect(&relay);
        assert_eq!(refused.read(&mut one).unwrap_or(0), 0, "refused");
    }
}
