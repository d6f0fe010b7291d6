//! Free TCP ports that stay free until the process that gets them has started.
//!
//! Binding port 0 and closing it again yields a port of the kernel's ephemeral range, which any outgoing connection of
//! the whole machine may take in the meantime, and again between a kill -9 and the restart on the same port. So ports
//! come from below that range (32768 on Linux), each is handed out once per process, and processes start at different
//! places.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

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
        if (port..port + count).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// 127.0.0.1 with a free port.
#[must_use]
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free()))
}
