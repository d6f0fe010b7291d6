//! What the receiving side counts: losses, duplicates, breaks of order, latencies.
//!
//! # Design
//! A [`Stream`] is what one subscriber gets of one publisher; its messages are numbered from 0. In the good case a
//! message costs one comparison. Numbers that were skipped are kept as ranges until they come (late: a break of order)
//! or the run ends (lost). A number below the next one that is in no range has come before (a duplicate).
//!
//! Bound: 4,096 ranges a stream; past it the oldest is given up as lost, and if it comes after all it is counted
//! as a duplicate.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Ranges of missing numbers that one stream remembers.
const GAPS_MAX: usize = 4096;

/// One subscriber's view of one publisher.
#[derive(Debug, Default, Clone)]
pub struct Stream {
    next: u64,
    /// Ascending, disjoint, not empty: `start..end`, all below `next`.
    gaps: Vec<(u64, u64)>,
    /// Numbers in ranges that were given up.
    given_up: u64,
}

/// What a message was to its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The first of its number, in order (skipped numbers before it are remembered).
    InOrder,
    /// The first of its number, after a later one.
    Late,
    /// Of a number that has come before.
    Duplicate,
}

impl Stream {
    /// Takes the message numbered `seq`.
    pub fn arrived(&mut self, seq: u64) -> Arrival {
        if seq == self.next {
            self.next += 1;
            return Arrival::InOrder;
        }
        if seq > self.next {
            if self.gaps.len() == GAPS_MAX {
                let (start, end) = self.gaps.remove(0);
                self.given_up += end - start;
            }
            self.gaps.push((self.next, seq));
            self.next = seq + 1;
            return Arrival::InOrder;
        }
        let index = self.gaps.partition_point(|&(_, end)| end <= seq);
        match self.gaps.get(index).copied() {
            Some((start, end)) if start <= seq => {
                let parts = [(start, seq), (seq + 1, end)].into_iter().filter(|(start, end)| start < end);
                self.gaps.splice(index..=index, parts);
                Arrival::Late
            }
            _ => Arrival::Duplicate,
        }
    }

    /// How many of the numbers below `sent` have not come.
    #[must_use]
    pub fn missing(&self, sent: u64) -> u64 {
        let gaps: u64 = self.gaps.iter().map(|(start, end)| end - start).sum();
        self.given_up + gaps + sent.saturating_sub(self.next)
    }
}

/// A latency histogram in nanoseconds: 1 ns to 10 min at three significant digits.
#[derive(Debug)]
pub struct Latency(Histogram<u64>);

/// The largest latency that is told apart: 10 min.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

impl Default for Latency {
    fn default() -> Self {
        Self(
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("constant bounds that the crate accepts"),
        )
    }
}

impl Latency {
    /// Takes `ns`.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// The summary; all zero when nothing was recorded.
    #[must_use]
    pub fn summary(&self) -> Summary {
        if self.0.is_empty() {
            return Summary::default();
        }
        let us = |ns: u64| ns as f64 / 1000.0;
        Summary {
            count: self.0.len(),
            p50_us: us(self.0.value_at_quantile(0.5)),
            p99_us: us(self.0.value_at_quantile(0.99)),
            max_us: us(self.0.max()),
        }
    }
}

/// A latency distribution in a result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many were measured.
    pub count: u64,
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// Maximum, in microseconds.
    pub max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::Arrival::{Duplicate, InOrder, Late};
    use super::*;

    #[test]
    fn arrivals() {
        let check = |seqs: &[u64], expect: &[Arrival], sent: u64, missing: u64| {
            let mut stream = Stream::default();
            let got: Vec<_> = seqs.iter().map(|&seq| stream.arrived(seq)).collect();
            assert_eq!(got, expect, "{seqs:?}");
            assert_eq!(stream.missing(sent), missing, "{seqs:?}");
        };
        check(&[0, 1, 2], &[InOrder; 3], 3, 0);
        check(&[0, 1, 2], &[InOrder; 3], 5, 2);
        check(&[], &[], 4, 4);
        check(&[0, 3], &[InOrder; 2], 4, 2);
        check(&[0, 3, 1, 1, 2, 4], &[InOrder, InOrder, Late, Duplicate, Late, InOrder], 5, 0);
        check(&[0, 5, 3, 3, 2, 0], &[InOrder, InOrder, Late, Duplicate, Late, Duplicate], 6, 2);
        check(&[9, 0, 9], &[InOrder, Late, Duplicate], 10, 8);
    }

    #[test]
    fn gaps_are_bounded() {
        let mut stream = Stream::default();
        let gaps = GAPS_MAX as u64 + 10;
        for n in 0..gaps {
            assert_eq!(stream.arrived(2 * n + 1), InOrder);
        }
        assert_eq!(stream.gaps.len(), GAPS_MAX);
        assert_eq!(stream.missing(2 * gaps), gaps);
        assert_eq!(stream.arrived(0), Duplicate, "given up");
        assert_eq!(stream.arrived(2 * gaps - 2), Late);
    }

    #[test]
    fn latency_is_in_microseconds() {
        let mut latency = Latency::default();
        assert_eq!(latency.summary(), Summary::default());
        for n in 1..=100 {
            latency.record(n * 1000);
        }
        let summary = latency.summary();
        assert_eq!(summary.count, 100);
        assert!((summary.p50_us - 50.0).abs() < 0.1, "{summary:?}");
        assert!((summary.max_us - 100.0).abs() < 0.2, "{summary:?}");
        latency.clear();
        assert_eq!(latency.summary().count, 0);
    }
}
