//! Clients whose sessions live on: they connect here and there, leave without a word, and know what they are owed.

use super::{At, Does, Process, TROUBLE_US, World};
use std::collections::BTreeSet;

/// Clients with a session that lives on, each with a topic of its own: it goes by a number from here on.
pub(super) const KEEPERS: u64 = 3;
pub(super) const KEEPER: u64 = 1 << 40;
/// When they have come to rest.
pub(super) const REST_US: u64 = TROUBLE_US + 15_000_000;
/// A client with a session that lives on.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    /// Where it connected last: what it gets elsewhere goes nowhere.
    pub(super) at: Option<At>,
    /// It has asked there for a new session, and waits for the answer: a CONNECT that it had given up would end what it has by then.
    anew: Option<At>,
    /// Since when it has its SUBACK.
    pub(super) since_us: Option<u64>,
    pub(crate) got: BTreeSet<u64>,
    /// What came twice when all had come to rest.
    pub(crate) again: u64,
    /// What was acknowledged that was published since.
    pub(crate) owed: BTreeSet<u64>,
}

pub(super) fn keeper_name(number: u64) -> String {
    format!("keeper-{number}")
}

impl World {
    /// A client with a session that lives on connects to some node, if it is not connected.
    pub(super) fn keeper_comes(&mut self, number: u64) {
        let name = keeper_name(number);
        let rests = self.now_us >= REST_US;
        if self.waits(number) {
            return;
        }
        let keeper = &self.keepers[number as usize];
        let here = keeper.at.and_then(|at| self.process(at)).filter(|process| !process.paused);
        let is_here = here.is_some_and(|process| process.rig.peer(&name).conn.is_some());
        if is_here && (rests || self.rng.chance(2)) {
            return;
        }
        let all: Vec<At> = self.running.values().filter(|p| !p.paused).map(Process::at).collect();
        if all.is_empty() {
            return;
        }
        let at = all[self.rng.below(all.len() as u64) as usize];
        self.say(|| format!("client {number} connects to {at:?}"));
        self.keepers[number as usize].at = Some(at);
        // Now and then it begins anew.
        let anew = !rests && self.rng.chance(12);
        if anew {
            let keeper = &mut self.keepers[number as usize];
            keeper.since_us = None;
            keeper.owed.clear();
            keeper.anew = Some(at);
        }
        self.does_at(at, Does::Keep(number, anew));
    }

    /// Whether a client waits for its new session.
    fn waits(&mut self, number: u64) -> bool {
        let Some(at) = self.keepers[number as usize].anew else { return false };
        let is_open = |process: &mut Process| process.rig.peer(&keeper_name(number)).conn.is_some();
        let waits = self.connects(at, number) || self.process(at).is_some_and(is_open);
        if !waits {
            self.keepers[number as usize].anew = None;
        }
        waits
    }

    /// Whether a client is about to connect there.
    fn connects(&mut self, at: At, number: u64) -> bool {
        let does = |does: &Does| matches!(does, Does::Keep(of, _) if *of == number);
        let process = self.process(at);
        process.is_some_and(|process| process.workers.iter().any(|worker| worker.does.iter().any(does)))
    }

    pub(super) fn keeper_goes(&mut self, number: u64) {
        if self.waits(number) {
            return;
        }
        if let Some(at) = self.keepers[number as usize].at.take() {
            self.does_at(at, Does::KeepGone(number));
        }
    }

    /// A client with a session that lives on gets a packet.
    pub(super) fn keeper_heard(&mut self, at: At, number: u64, packet: &str) {
        let now_us = self.now_us;
        if self.connects(at, number) {
            return; // That is for a connection which it has given up.
        }
        let keeper = &mut self.keepers[number as usize];
        if keeper.at != Some(at) {
            return; // It has gone elsewhere.
        }
        if self.aloud {
            eprintln!("{:>10.3} {at:?}: client {number} got {packet}", now_us as f64 / 1e6);
        }
        let words: Vec<&str> = packet.split_whitespace().collect();
        let does = match words[..] {
            ["connack", present] => {
                keeper.anew = None;
                let expected = if keeper.since_us.is_some() { "sp=1" } else { present };
                assert_eq!(
                    present,
                    expected,
                    "{:.3}: {at:?}: the session of client {number}",
                    now_us as f64 / 1e6
                );
                keeper.since_us.is_none().then_some(Does::KeepSubscribe(number))
            }
            ["suback", _, "01"] => {
                keeper.since_us = Some(now_us);
                None
            }
            ["publish", _, "q1", id, .., value] => {
                let is_new = keeper.got.insert(value.parse().unwrap());
                keeper.again += u64::from(!is_new && now_us > REST_US + 5_000_000);
                let id = id.strip_prefix("id=").unwrap();
                Some(Does::KeepPuback(number, id.parse().unwrap()))
            }
            ["disconnect", _] => {
                keeper.at = None;
                None
            }
            _ => panic!("{:.3}: {at:?}: client {number} got {packet}", now_us as f64 / 1e6),
        };
        if let Some(does) = does {
            self.does_at(at, does);
        }
    }

    /// Messages that clients got whose sessions live on.
    pub(crate) fn kept(&self) -> usize {
        self.keepers.iter().map(|keeper| keeper.got.len()).sum()
    }
}
