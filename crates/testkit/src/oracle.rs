//! What was published, against what stands at the destination.
//!
//! The publisher's [`Ledger`] knows per device and sequence number how often a message was sent and whether one of those was
//! acknowledged. Three things are checked of the rows read back, in the destination's order:
//!
//! | promise | check |
//! |---|---|
//! | an acknowledgement means the message is safe | each acknowledged (device, n) is there |
//! | order | per device, first occurrences ascend (late duplicates may follow) |
//! | no more than was sent | per (device, n), at most as many rows as the device sent it; exact destinations only |
//!
//! A message that was sent and never acknowledged may be there or not. One that was never sent may not.

use std::collections::HashMap;

/// One message of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// How often it was written to a connection.
    pub sent: u32,
    /// Whether any of those was acknowledged.
    pub acknowledged: bool,
}

/// What the devices did: by device name, the entries of its messages 0, 1, 2, ...
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// By device name.
    pub devices: HashMap<String, Vec<Entry>>,
}

/// How many rows a (device, n) may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// One: nothing was sent twice or the path is exactly once from the device.
    One,
    /// One for each time that the device sent it: exactly once from the edge's outbox on (SQL).
    AsSent,
    /// Any number: duplicates are counted only (Kafka after a kill).
    Any,
    /// The same, and what a node had when it was lost comes from another, perhaps behind what its client sent elsewhere since: that is counted only, too.
    Inherited,
}

/// What the comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Different messages sent at least once.
    pub published: u64,
    /// Of them, acknowledged.
    pub acknowledged: u64,
    /// Rows at the destination.
    pub found: u64,
    /// Rows beyond the first of each message.
    pub duplicates: u64,
    /// Messages whose first row is behind that of a later one of their device.
    pub disordered: u64,
    /// Acknowledged messages without a row.
    pub lost: u64,
    /// Broken promises, in words; the first ten of them in full, then a count.
    pub faults: Vec<String>,
}

/// How many broken promises are told one by one.
const MAX_FAULTS: usize = 10;

impl Ledger {
    /// Compares the rows of a destination, in its order, with what was sent.
    #[must_use]
    pub fn check<'a>(&self, rows: impl IntoIterator<Item = (&'a str, u64)>, copies: Copies) -> Report {
        let mut report = Report::default();
        let mut faults = Vec::new();
        let mut seen: HashMap<(&str, u64), u32> = HashMap::new();
        let mut last_first: HashMap<&str, u64> = HashMap::new();
        for (device, n) in rows {
            report.found += 1;
            let sent = self.entry(device, n).map_or(0, |entry| entry.sent);
            if sent == 0 {
                faults.push(format!("{device} {n} was never sent"));
            }
            let count = seen.entry((device, n)).or_default();
            *count += 1;
            if *count > 1 {
                report.duplicates += 1;
                let most = match copies {
                    Copies::One => 1,
                    Copies::AsSent => sent,
                    Copies::Any | Copies::Inherited => u32::MAX,
                };
                if *count > most && sent > 0 {
                    faults.push(format!("{device} {n}: row {count}, sent {sent} times"));
                }
            } else if let Some(before) = last_first.insert(device, n)
                && before > n
            {
                report.disordered += 1;
                if copies != Copies::Inherited {
                    faults.push(format!("{device}: {n} came first after {before}"));
                }
            }
        }
        let mut devices: Vec<_> = self.devices.iter().collect();
        devices.sort_by_key(|(device, _)| device.as_str());
        for (device, entries) in devices {
            for (n, entry) in (0u64..).zip(entries) {
                report.published += u64::from(entry.sent > 0);
                report.acknowledged += u64::from(entry.acknowledged);
                if entry.acknowledged && !seen.contains_key(&(device.as_str(), n)) {
                    report.lost += 1;
                    faults.push(format!("{device} {n} was acknowledged and is lost"));
                }
            }
        }
        if faults.len() > MAX_FAULTS {
            let more = faults.len() - MAX_FAULTS;
            faults.truncate(MAX_FAULTS);
            faults.push(format!("and {more} more"));
        }
        report.faults = faults;
        report
    }

    fn entry(&self, device: &str, n: u64) -> Option<&Entry> {
        self.devices.get(device)?.get(usize::try_from(n).ok()?)
    }

    /// Different messages sent at least once.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.devices.values().flatten().filter(|entry| entry.sent > 0).count() as u64
    }

    /// Messages acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.devices.values().flatten().filter(|entry| entry.acknowledged).count() as u64
    }

    /// How often messages were written to a connection: above [`Self::published`] by the resends.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.devices.values().flatten().map(|entry| u64::from(entry.sent)).sum()
    }
}

impl Report {
    /// Prints the report's line and checks that no promise is broken.
    ///
    /// # Panics
    /// When one is: with what it is.
    pub fn assert_ok(&self, destination: &str) {
        // On standard error, so that it stands beside the harness's own lines and is shown when a test fails.
        eprintln!("{destination}: {self}");
        assert!(self.faults.is_empty(), "{destination}: {self}\n{}", self.faults.join("\n"));
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { published, acknowledged, found, duplicates, disordered, lost, .. } = self;
        write!(
            f,
            "published {published} acknowledged {acknowledged} found {found} duplicates {duplicates} lost {lost}"
        )?;
        // Where it may be at all.
        if *disordered > 0 { write!(f, " disordered {disordered}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger of one device `d` with (sent, acknowledged) for 0, 1, ...; and what is found wrong with `rows`.
    fn check(entries: &[(u32, bool)], rows: &[u64], copies: Copies, expect: &str) {
        let entries = entries.iter().map(|&(sent, acknowledged)| Entry { sent, acknowledged }).collect();
        let ledger = Ledger { devices: HashMap::from([("d".to_owned(), entries)]) };
        let report = ledger.check(rows.iter().map(|&n| ("d", n)), copies);
        assert_eq!(report.faults.join("; "), expect, "{entries:?} {rows:?}", entries = ledger.devices);
    }

    #[test]
    fn each_broken_promise_is_found_and_nothing_else() {
        let (once, twice, open) = ((1, true), (2, true), (1, false));
        check(&[once, once], &[0, 1], Copies::One, "");
        check(&[once, open], &[0], Copies::One, "");
        check(&[once, open], &[0, 1], Copies::One, "");
        check(&[once, once], &[1], Copies::One, "d 0 was acknowledged and is lost");
        check(&[once, once], &[1, 0], Copies::One, "d: 0 came first after 1");
        check(&[twice, once], &[0, 1, 0], Copies::AsSent, "");
        check(&[twice, once], &[0, 1, 0], Copies::One, "d 0: row 2, sent 2 times");
        check(&[twice, once], &[0, 1, 0, 0], Copies::AsSent, "d 0: row 3, sent 2 times");
        check(&[twice, once], &[0, 1, 0, 0], Copies::Any, "");
        check(&[once, once], &[1, 0, 0], Copies::Inherited, "");
        check(&[once, once], &[1], Copies::Inherited, "d 0 was acknowledged and is lost");
        check(&[once], &[0, 1], Copies::Any, "d 1 was never sent");
        check(&[(0, false)], &[0], Copies::Any, "d 0 was never sent");
    }

    #[test]
    fn the_line_counts() {
        let entries = vec![Entry { sent: 2, acknowledged: true }, Entry { sent: 1, acknowledged: true }];
        let ledger = Ledger { devices: HashMap::from([("d".to_owned(), entries)]) };
        let report = ledger.check([("d", 0), ("d", 0)], Copies::AsSent);
        assert_eq!(report.to_string(), "published 2 acknowledged 2 found 2 duplicates 1 lost 1");
        let report = ledger.check([("d", 1), ("d", 0)], Copies::Inherited);
        assert_eq!(report.to_string(), "published 2 acknowledged 2 found 2 duplicates 0 lost 0 disordered 1");
        assert_eq!((ledger.published(), ledger.acknowledged(), ledger.sent()), (2, 2, 3));
    }
}
