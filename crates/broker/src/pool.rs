//! What clients have waiting in memory, together ([`crate::config`]), and the pace at which one may publish.

use crate::config::{ClientLimits, FLOOR};

/// The bytes that all clients of a shard share.
#[derive(Debug)]
pub(crate) struct Pool {
    bytes: usize,
    used: usize,
    /// The process has too little memory, whoever uses it: nobody gets more than the floor.
    pub(crate) overloaded: bool,
}

impl Pool {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, used: 0, overloaded: false }
    }

    /// Another bound from now on.
    pub(crate) fn set_bytes(&mut self, bytes: usize) {
        self.bytes = bytes;
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// A client had so much waiting, and now has so much.
    pub(crate) fn change(&mut self, before: usize, after: usize) {
        self.used = (self.used + after).saturating_sub(before);
    }

    pub(crate) fn free(&self) -> usize {
        self.bytes.saturating_sub(self.used)
    }

    /// What each may have: as much as is free.
    fn share(&self) -> usize {
        if self.overloaded { FLOOR } else { self.free().max(FLOOR) }
    }

    /// The bound of a client that has one of its own.
    pub(crate) fn bound(&self, own: usize) -> usize {
        own.min(self.share())
    }

    /// Whether a client that has `waiting` bytes may have `more`. Its own bound is a mark that one packet may pass, since the largest
    /// must have a way; the pool's is not.
    pub(crate) fn fits(&self, own: usize, waiting: usize, more: usize) -> bool {
        waiting < own && waiting + more <= self.share()
    }
}

/// When what a client has published is paid for, at its rates: the generic cell rate algorithm (ITU-T I.371) in nanoseconds.
///
/// What was quiet may be [`BURST_NS`] ahead: so a client that was not heard for less than that loses nothing of its rate,
/// however coarse the clock is that wakes it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    messages_ns: u64,
    bytes_ns: u64,
    /// Not heard until then, in microseconds; 0: it is.
    pub(crate) due_us: u64,
}

const BURST_NS: u64 = 1_000_000_000;

impl Pace {
    /// Takes a packet, unless what went before is not paid for: then says when it will be.
    pub(crate) fn take(&mut self, limits: &ClientLimits, bytes: usize, now_us: u64) -> Result<(), u64> {
        let now_ns = now_us * 1_000;
        let paid_ns = self.messages_ns.max(self.bytes_ns);
        if paid_ns > now_ns + BURST_NS {
            return Err((paid_ns - BURST_NS).div_ceil(1_000));
        }
        let charge = |paid_ns: &mut u64, amount: u64, rate: u64| {
            // The largest packet in nanoseconds at 1 byte/s fits 64 bits.
            if let Some(cost_ns) = (amount * 1_000_000_000).checked_div(rate) {
                *paid_ns = (*paid_ns).max(now_ns).saturating_add(cost_ns);
            }
        };
        charge(&mut self.messages_ns, 1, limits.publish_rate.into());
        charge(&mut self.bytes_ns, bytes as u64, limits.publish_bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn as_the_pool_fills_those_with_most_are_first_to_get_nothing_more() {
        let mut pool = Pool::new(1 << 20);
        assert!(pool.fits(1 << 19, 0, 1 << 20), "the largest has a way while nobody waits");
        assert!(!pool.fits(1 << 19, 1 << 19, 1));
        pool.change(0, 900 << 10);
        assert_eq!((pool.free(), pool.bound(1 << 19)), (124 << 10, 124 << 10));
        assert!(pool.fits(1 << 19, 100 << 10, 1_000) && !pool.fits(1 << 19, 124 << 10, 1_000));
        pool.change(0, 200 << 10);
        assert_eq!((pool.free(), pool.bound(1 << 19)), (0, FLOOR));
        assert!(pool.fits(1 << 19, 0, FLOOR) && !pool.fits(1 << 19, 1, FLOOR));
        pool.change(1_100 << 10, 0);
        pool.overloaded = true;
        assert_eq!((pool.used(), pool.bound(1 << 19)), (0, FLOOR));
    }

    #[test]
    fn a_rate_is_kept_exactly_however_late_it_is_looked_at() {
        let limits = ClientLimits { publish_rate: 10, publish_bytes: 1_000, ..ClientLimits::default() };
        for (bytes, expected) in [(1, 10 * 60), (500, 2 * 60), (5_000, 12)] {
            let mut pace = Pace::default();
            let (mut now_us, mut taken) = (7_000_000, 0);
            while now_us < 67_000_000 {
                match pace.take(&limits, bytes, now_us) {
                    Ok(()) => taken += 1,
                    // The wheel's quarter of a second.
                    Err(due_us) => now_us = now_us.max(due_us) + 250_000,
                }
            }
            // What a second of quiet and one packet bring on top.
            assert!((expected..=expected + expected / 60 + 2).contains(&taken), "{bytes}: {taken}");
        }
    }
}
