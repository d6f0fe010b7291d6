//! What was published and what was acknowledged, by device and number: what the destinations are held to.
//!
//! Numbers of a device ascend from 1. Acknowledged ones are a floor (all up to it) and a set above it, so the ledger stays
//! as small as what is in flight, however long the demo runs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Latencies that are remembered: a median of the recent past.
const RECENT: usize = 2000;

/// Of one device.
#[derive(Debug, Default, Clone)]
pub struct Account {
    /// Its last number.
    pub published: u64,
    floor: u64,
    above: BTreeSet<u64>,
}

/// Of all devices.
#[derive(Debug, Default)]
pub struct Ledger {
    devices: BTreeMap<String, Account>,
    /// Publish to PUBACK.
    pub puback: Recent,
}

impl Account {
    fn acknowledge(&mut self, n: u64) {
        if n > self.floor {
            self.above.insert(n);
        }
        while self.above.remove(&(self.floor + 1)) {
            self.floor += 1;
        }
    }

    /// How many are acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.floor + self.above.len() as u64
    }

    /// Whether number `n` is.
    #[must_use]
    pub fn is_acknowledged(&self, n: u64) -> bool {
        (1..=self.floor).contains(&n) || self.above.contains(&n)
    }
}

impl Ledger {
    /// The next number of a device, which is now published.
    pub fn publish(&mut self, device: &str) -> u64 {
        let account = match self.devices.get_mut(device) {
            Some(account) => account,
            None => self.devices.entry(device.to_owned()).or_default(),
        };
        account.published += 1;
        account.published
    }

    /// Its number `n` is acknowledged, so long after it was published.
    pub fn acknowledge(&mut self, device: &str, n: u64, after: Duration) {
        if let Some(account) = self.devices.get_mut(device) {
            account.acknowledge(n);
            self.puback.push(after);
        }
    }

    /// How many devices have published.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Over all devices.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.devices.values().map(|account| account.published).sum()
    }

    /// Over all devices.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.devices.values().map(Account::acknowledged).sum()
    }

    /// The (device, number) that are acknowledged and not among `found`.
    #[must_use]
    pub fn missing(&self, found: &Keys) -> BTreeSet<(String, u64)> {
        let mut missing = BTreeSet::new();
        for (device, account) in &self.devices {
            let there = found.0.get(device);
            for n in (1..=account.published).filter(|&n| account.is_acknowledged(n)) {
                if there.is_none_or(|there| !there.contains(&n)) {
                    missing.insert((device.clone(), n));
                }
            }
        }
        missing
    }
}

/// The messages that stand at a destination, by device and number.
#[derive(Debug, Default, Clone)]
pub struct Keys(BTreeMap<String, BTreeSet<u64>>);

impl Keys {
    /// Takes one; whether it is the first of its key.
    pub fn insert(&mut self, device: &str, n: u64) -> bool {
        match self.0.get_mut(device) {
            Some(numbers) => numbers.insert(n),
            None => self.0.entry(device.to_owned()).or_default().insert(n),
        }
    }

    /// How many different ones there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// Takes the key of a payload of the demo's.
    pub fn insert_payload(&mut self, payload: &str) -> bool {
        let Ok(value) = serde_json::from_str::<serde_json::Value>(payload) else { return false };
        match (value["device"].as_str(), value["n"].as_u64()) {
            (Some(device), Some(n)) => self.insert(device, n),
            _ => false,
        }
    }
}

/// Latencies of the recent past.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<Duration>);

impl Recent {
    /// Takes one and forgets the oldest past the bound.
    pub fn push(&mut self, latency: Duration) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(latency);
    }

    /// Median, 99th percentile and maximum; `None` when there is nothing.
    #[must_use]
    pub fn summary(&self) -> Option<[Duration; 3]> {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        Some([sorted[last / 2], sorted[last * 99 / 100], sorted[last]])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn acknowledgements_in_any_order() {
        let mut ledger = Ledger::default();
        for _ in 0..5 {
            ledger.publish("a");
        }
        ledger.publish("b");
        for n in [2, 1, 2, 5, 1] {
            ledger.acknowledge("a", n, Duration::from_millis(n));
        }
        ledger.acknowledge("stranger", 1, Duration::ZERO);
        assert_eq!((ledger.devices(), ledger.published(), ledger.acknowledged()), (2, 6, 3));
        let account = &ledger.devices["a"];
        let is: Vec<bool> = (0..=6).map(|n| account.is_acknowledged(n)).collect();
        assert_eq!(is, [false, true, true, false, false, true, false]);
        assert_eq!(account.above.len(), 1, "the floor has risen");

        let mut found = Keys::default();
        assert!(
            found.insert("a", 1) && !found.insert("a", 1) && found.insert_payload(r#"{"device":"a","n":5}"#)
        );
        assert!(!found.insert_payload("{}") && !found.insert_payload("x"));
        assert_eq!(found.count(), 2);
        assert_eq!(ledger.missing(&found), BTreeSet::from([("a".to_owned(), 2)]));
        found.insert("a", 2);
        found.insert("b", 1);
        assert!(ledger.missing(&found).is_empty(), "more than acknowledged is no loss");
    }

    #[test]
    fn recent_latencies() {
        let mut recent = Recent::default();
        assert_eq!(recent.summary(), None);
        for ms in 0..=RECENT as u64 {
            recent.push(Duration::from_millis(ms));
        }
        assert_eq!(recent.0.len(), RECENT);
        assert_eq!(recent.summary().unwrap()[2], Duration::from_millis(RECENT as u64));
    }
}
