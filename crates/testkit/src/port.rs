//! Free TCP ports that stay free until the process that gets them has started.
//!
//! Binding port 0 and closing it again yields a port of the kernel's ephemeral range, which any outgoing connection of
//! the whole machine may take in the meantime, and again between a kill -9 and the restart on the same port. So ports
//! come from below that range (32768 on Linux), each is handed out once per process, and processes start at different
//! places.
//!
//! Whether a port is free is asked with a socket that is bound and never listens. Another test may start a process at
//! that moment, and between its fork and its exec that process holds a copy of the socket: a copy that listened would
//! keep the port taken after this one is closed, one that does not is in nobody's way (every server here sets
//! `SO_REUSEADDR`).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};

const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A free port of 127.0.0.1.
///
/// # Panics
/// When none of the range is free.
#[must_use]
pub fn free() -> u16 {
    free_run(1)
}

/// The first of `count` free ports in a row (Kafka wants two).
///
/// # Panics
/// When none of the range is free.
#[must_use]
pub fn free_run(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // A step that is coprime to COUNT spreads processes whose ids are neighbours.
    let start = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(u32::from(count), Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("FIRST + COUNT is below 65536");
        if (port..port + count).all(is_free) {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// Whether nobody listens at `port` of 127.0.0.1.
fn is_free(port: u16) -> bool {
    let bind = || -> std::io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())
    };
    bind().is_ok()
}

/// 127.0.0.1 with a free port.
#[must_use]
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_port_that_is_listened_at_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free())).expect("it is free");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        assert!(!is_free(port));
    }

    #[test]
    fn processes_that_start_meanwhile_take_no_free_port() {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let status = Command::new("true").stdout(Stdio::null()).status();
                        assert!(status.is_ok_and(|status| status.success()));
                    }
                });
            }
            let taken: Vec<_> = (0..2000)
                .filter_map(|_| TcpListener::bind(free_addr()).err())
                .map(|error| error.to_string())
                .collect();
            done.store(true, Ordering::Relaxed);
            assert!(taken.is_empty(), "{} of 2,000: {}", taken.len(), taken[0]);
        });
    }
}
