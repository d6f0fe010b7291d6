//! Clients that retain messages, each on a topic of its own, and one that connects somewhere, looks what is there, and goes.

use super::{At, Does, MS, Process, REST_US, World};
use std::collections::BTreeSet;

/// Clients that set and clear the message of a topic, one after the other; a number counts what they did.
pub(super) const RETAINERS: u64 = 3;
/// When they have come to rest, and what they did last has reached everybody.
const SAME_US: u64 = REST_US + 5_000_000;

#[derive(Debug, Default)]
pub(crate) struct Retainer {
    at: Option<At>,
    is_open: bool,
    waits: bool,
    /// What it did last, and what of it was acknowledged last.
    did: u64,
    acknowledged: u64,
    /// Which of it cleared the topic.
    cleared: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(super) at: Option<At>,
    /// What had been acknowledged when it subscribed.
    least: Option<Vec<u64>>,
    /// How often it has looked.
    pub(crate) looks: u64,
    /// What it found when all had come to rest, and where.
    pub(crate) found: Vec<(At, Vec<Option<u64>>)>,
}

pub(super) fn retainer_name(number: u64) -> String {
    format!("retainer-{number}")
}

pub(super) const READER: &str = "reader";

impl World {
    fn somewhere(&mut self) -> Option<At> {
        let all: Vec<At> = self.running.values().filter(|p| !p.paused).map(Process::at).collect();
        (!all.is_empty()).then(|| all[self.rng.below(all.len() as u64) as usize])
    }

    /// One of them does what it does next.
    pub(super) fn retain(&mut self) {
        let number = self.rng.below(RETAINERS + 1);
        if number == RETAINERS {
            self.read();
            return;
        }
        let at = self.retainers[number as usize].at;
        let is_there = at.is_some_and(|at| self.process(at).is_some());
        let rests = self.now_us >= REST_US;
        let retainer = &mut self.retainers[number as usize];
        if !is_there {
            *retainer = Retainer { at: None, is_open: false, waits: false, ..std::mem::take(retainer) };
            let Some(at) = self.somewhere().filter(|_| !rests) else { return };
            self.retainers[number as usize].at = Some(at);
            self.does_at(at, Does::RetainerComes(number));
        } else if let Some(at) = at.filter(|_| retainer.is_open && !retainer.waits && !rests) {
            retainer.waits = true;
            self.does_at(at, Does::Retain(number));
        }
    }

    fn read(&mut self) {
        let at = self.reader.at;
        if at.is_some_and(|at| self.process(at).is_some()) {
            return;
        }
        self.reader.at = self.somewhere();
        self.reader.least = None;
        if let Some(at) = self.reader.at {
            self.does_at(at, Does::ReaderComes);
        }
    }

    /// What it publishes: its topic, and the payload.
    pub(super) fn next_retained(&mut self, number: u64) -> String {
        let clears = self.rng.chance(5);
        let retainer = &mut self.retainers[number as usize];
        retainer.did += 1;
        let did = retainer.did;
        if clears {
            retainer.cleared.insert(did);
        }
        self.say(|| format!("client {number} retains {did}, {}", if clears { "nothing" } else { "itself" }));
        if clears { format!("t=r/{number}") } else { format!("t=r/{number} p={did}") }
    }

    pub(super) fn reader_subscribes(&mut self) {
        let least = self.retainers.iter().map(|retainer| retainer.acknowledged).collect();
        self.reader.least = Some(least);
    }

    pub(super) fn retainer_heard(&mut self, at: At, number: u64, packets: &[String], closed: bool) {
        let retainer = &mut self.retainers[number as usize];
        if retainer.at != Some(at) {
            return;
        }
        for packet in packets {
            match packet.split_whitespace().collect::<Vec<_>>()[..] {
                ["connack", ..] => retainer.is_open = true,
                ["puback", _] | ["puback", _, "10"] => {
                    retainer.waits = false;
                    retainer.acknowledged = retainer.did;
                }
                ["disconnect", "89"] => {}
                _ => panic!("{at:?}: who retains got {packet}"),
            }
        }
        if closed {
            (retainer.at, retainer.is_open, retainer.waits) = (None, false, false);
        }
        if self.aloud && (closed || !packets.is_empty()) {
            eprintln!("{:>10.3} {at:?}: who retains {number} got {packets:?}", self.now_us as f64 / 1e6);
        }
    }

    pub(super) fn reader_heard(&mut self, at: At, packets: &[String], closed: bool) {
        if self.reader.at != Some(at) {
            return;
        }
        let mut found = vec![None; RETAINERS as usize];
        let mut has_suback = false;
        for packet in packets {
            match packet.split_whitespace().collect::<Vec<_>>()[..] {
                ["connack", ..] => self.does_at(at, Does::ReaderSubscribes),
                ["suback", ..] => has_suback = true,
                ["publish", topic, "q0", "r", value] if has_suback => {
                    let number: usize = topic.strip_prefix("r/").unwrap().parse().unwrap();
                    found[number] = Some(value.parse().unwrap());
                }
                // (8e: it came within the millisecond in which it had been at another node, whose word of that came behind.)
                ["publish", ..] | ["disconnect", "89" | "8e"] => {}
                _ => panic!("{at:?}: a reader got {packet}"),
            }
        }
        if has_suback {
            self.check_found(at, &found);
            self.does_at(at, Does::ReaderGoes);
        }
        if closed {
            self.reader.at = None;
        }
    }

    /// What is found is what was acknowledged before, or was done later.
    fn check_found(&mut self, at: At, found: &[Option<u64>]) {
        let least = self.reader.least.take().unwrap();
        self.say(|| format!("{at:?}: a reader found {found:?}, at least {least:?}"));
        for ((retainer, found), least) in self.retainers.iter().zip(found).zip(least) {
            let holds = match found {
                Some(found) => *found >= least && *found <= retainer.did,
                None => least == 0 || retainer.cleared.range(least..).next().is_some(),
            };
            assert!(
                holds,
                "{:.3}: {at:?}: a reader found {found:?} where {least} had been acknowledged; cleared by {:?}",
                self.now_us as f64 / 1e6,
                retainer.cleared
            );
        }
        self.reader.looks += 1;
        if self.now_us >= SAME_US {
            self.reader.found.push((at, found.to_vec()));
        }
    }

    pub(super) fn retain_again_us(&mut self) -> u64 {
        5 * MS + self.rng.below(80 * MS)
    }
}
