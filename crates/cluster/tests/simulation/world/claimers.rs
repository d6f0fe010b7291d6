//! Clients that want one exclusive subscription: each connects here and there, claims it, gives it back, or goes.

use super::{At, Does, MS, Process, World};

pub(super) const CLAIMERS: u64 = 4;
/// Of two who have it by the word of live members one is to be told so soon.
const DOUBLED_US: u64 = 1_500 * MS;

#[derive(Debug, Default)]
pub(crate) struct Claimer {
    at: Option<At>,
    is_open: bool,
    /// Since when it waits for an answer.
    asked_us: Option<u64>,
    holds: bool,
}

pub(super) fn claimer_name(number: u64) -> String {
    format!("claimer-{number}")
}

impl World {
    pub(super) fn claim(&mut self) {
        let number = self.rng.below(CLAIMERS);
        self.check_doubled();
        let claimer = &self.claimers[number as usize];
        let (at, is_open, waits, holds) =
            (claimer.at, claimer.is_open, claimer.asked_us.is_some(), claimer.holds);
        if at.is_none_or(|at| self.process(at).is_none()) || self.rng.chance(12) {
            let all: Vec<At> = self.running.values().filter(|p| !p.paused).map(Process::at).collect();
            if all.is_empty() {
                return;
            }
            let at = all[self.rng.below(all.len() as u64) as usize];
            // Where it was it may be still, until its node hears of it: its client knows nothing of that.
            self.claimers[number as usize] = Claimer { at: Some(at), ..Claimer::default() };
            self.does_at(at, Does::ClaimerComes(number));
        } else if let Some(at) = at.filter(|_| is_open && !waits) {
            match self.rng.below(4) {
                0 if holds => self.does_at(at, Does::ClaimerGivesBack(number)),
                1 if holds => self.does_at(at, Does::ClaimerGoes(number)),
                _ if !holds => self.does_at(at, Does::Claim(number)),
                _ => {}
            }
        }
    }

    /// Whether it is still where that was meant.
    pub(super) fn is_claimer_at(&self, at: At, number: u64) -> bool {
        let claimer = &self.claimers[number as usize];
        claimer.at == Some(at) && claimer.is_open
    }

    pub(super) fn claimer_does(&mut self, number: u64, asks: bool) {
        let now_us = self.now_us;
        let claimer = &mut self.claimers[number as usize];
        (claimer.holds, claimer.asked_us) = (false, asks.then_some(now_us));
    }

    pub(super) fn claimer_goes(&mut self, number: u64) {
        self.claimers[number as usize] = Claimer::default();
    }

    pub(super) fn claimer_heard(&mut self, at: At, number: u64, packets: &[String], closed: bool) {
        if self.claimers[number as usize].at != Some(at) {
            return;
        }
        for packet in packets {
            let claimer = &mut self.claimers[number as usize];
            match &packet.split(' ').collect::<Vec<_>>()[..] {
                ["connack", ..] => claimer.is_open = true,
                // Else it is for a connection that it has given up.
                ["suback", _, code] if claimer.asked_us.is_some() => {
                    claimer.asked_us = None;
                    claimer.holds = *code == "00";
                    self.granted += u64::from(*code == "00");
                    self.refused += u64::from(*code == "97");
                    self.say(|| format!("{at:?}: claimer {number} has {packet}"));
                }
                ["disconnect", code] => {
                    self.say(|| format!("{at:?}: claimer {number} has {packet}"));
                    self.taken += u64::from(*code == "97");
                }
                _ => {}
            }
        }
        if closed {
            self.claimers[number as usize] = Claimer::default();
        }
        self.check_doubled();
    }

    /// Those who have it at nodes that are live and may acknowledge.
    pub(crate) fn holders(&self) -> Vec<u64> {
        let is_held = |claimer: &Claimer| {
            let process = claimer.at.and_then(|(node, life)| {
                self.running.get(&node).filter(|process| process.life == life && !process.paused)
            });
            process.is_some_and(|process| {
                let clock_us = process.clock(self.now_us);
                claimer.holds && process.site.standing().allows(clock_us, clock_us)
            })
        };
        (0..CLAIMERS).filter(|number| is_held(&self.claimers[*number as usize])).collect()
    }

    /// For how long one has not been answered, at the most.
    pub(crate) fn claims_wait_us(&self) -> u64 {
        let asked = self.claimers.iter().filter_map(|claimer| claimer.asked_us);
        asked.map(|asked_us| self.now_us - asked_us).max().unwrap_or(0)
    }

    fn check_doubled(&mut self) {
        let holders = self.holders();
        if holders.len() < 2 {
            self.doubled_us = None;
            return;
        }
        let since_us = *self.doubled_us.get_or_insert(self.now_us);
        self.say(|| format!("claimers {holders:?} have it"));
        crate::exclusive_has_one_holder::holds_since(self, since_us, DOUBLED_US, &holders);
    }

    pub(super) fn claim_again_us(&mut self) -> u64 {
        20 * MS + self.rng.below(200 * MS)
    }
}
