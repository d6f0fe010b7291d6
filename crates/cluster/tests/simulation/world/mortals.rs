//! Clients with a will, whose sessions end with their connections: they go without a word, say goodbye, or lose their node.

use super::{At, Does, MS, Process, World};
use std::collections::BTreeMap;

pub(super) const MORTALS: u64 = 3;

#[derive(Debug, Default)]
pub(crate) struct Mortal {
    at: Option<At>,
    is_open: bool,
    life: u64,
}

/// A connection of one of them.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// It had its CONNACK.
    pub(crate) is_acknowledged: bool,
    /// From a shard that knew itself of a live member: before that it has no copies made.
    pub(crate) of_member: bool,
    /// It sent a DISCONNECT.
    pub(crate) said_goodbye: bool,
    /// It is connected still, as far as its client knows.
    pub(crate) is_open: bool,
    /// How often its will was published, on whichever node.
    pub(crate) wills: u64,
    /// Its client broke the connection off then.
    pub(crate) broken_us: Option<u64>,
    /// Where it was, and when that died, if the will had not been published by then; and whether another died with it.
    at: Option<At>,
    pub(crate) died_us: Option<u64>,
    pub(crate) with_another: bool,
}

pub(super) fn mortal_name(number: u64) -> String {
    format!("mortal-{number}")
}

/// Where its will goes: to a topic of this life alone.
pub(super) fn will_topic(life: u64) -> String {
    format!("w/{life}")
}

impl World {
    pub(super) fn mortal(&mut self) {
        let number = self.rng.below(self.mortals.len() as u64);
        let at = self.mortals[number as usize].at;
        if at.is_none_or(|at| self.process(at).is_none()) {
            self.mortal_ended(number);
            let all: Vec<At> = self.running.values().filter(|p| !p.paused).map(Process::at).collect();
            if all.is_empty() {
                return;
            }
            let at = all[self.rng.below(all.len() as u64) as usize];
            let life = self.lived.len() as u64;
            self.lived.insert(life, Life { is_open: true, at: Some(at), ..Life::default() });
            self.mortals[number as usize] = Mortal { at: Some(at), is_open: false, life };
            self.does_at(at, Does::MortalComes(number, life));
        } else if let Some(at) = at.filter(|_| self.mortals[number as usize].is_open) {
            let life = self.mortals[number as usize].life;
            match self.rng.below(8) {
                0 => self.does_at(at, Does::MortalGoes(number, life)),
                1 => self.does_at(at, Does::MortalLeaves(number, life)),
                _ => {}
            }
        }
    }

    fn mortal_ended(&mut self, number: u64) {
        let mortal = &mut self.mortals[number as usize];
        (mortal.at, mortal.is_open) = (None, false);
        if let Some(life) = self.lived.get_mut(&mortal.life) {
            life.is_open = false;
        }
    }

    /// It is about to go: whether this is still the connection that was meant.
    pub(super) fn mortal_goes(&mut self, number: u64, life: u64, says_goodbye: bool) -> bool {
        if self.mortals[number as usize].life != life || !self.mortals[number as usize].is_open {
            return false;
        }
        self.say(|| format!("client {number} ends its life {life}, with a word: {says_goodbye}"));
        let now_us = self.now_us;
        let ended = self.lived.get_mut(&life).unwrap();
        (ended.said_goodbye, ended.broken_us) = (says_goodbye, Some(now_us));
        self.mortal_ended(number);
        true
    }

    /// A process has died.
    pub(super) fn mortals_lost(&mut self, at: At) {
        let (now_us, together) = (self.now_us, self.deaths.as_ref().is_some_and(|deaths| deaths.two));
        for life in self.lived.values_mut().filter(|life| life.at == Some(at) && life.wills == 0) {
            (life.died_us, life.with_another) = (Some(now_us), together);
        }
    }

    /// By a shard that knows itself of a live member, or not yet.
    pub(super) fn mortal_heard(
        &mut self,
        at: At,
        number: u64,
        packets: &[String],
        closed: bool,
        is_live: bool,
    ) {
        let connects = |does: &Does| matches!(does, Does::MortalComes(of, _) if *of == number);
        let mut workers = self.process(at).into_iter().flat_map(|process| &process.workers);
        if workers.any(|worker| worker.does.iter().any(connects)) {
            return; // That is for a connection which it has given up.
        }
        let mortal = &mut self.mortals[number as usize];
        if mortal.at != Some(at) {
            return;
        }
        if packets.iter().any(|packet| packet.starts_with("connack")) {
            mortal.is_open = true;
            let life = self.lived.get_mut(&mortal.life).unwrap();
            (life.is_acknowledged, life.of_member) = (true, is_live);
        }
        if closed {
            self.mortal_ended(number);
        }
    }

    /// Wills that a node has published.
    pub(super) fn count_wills(&mut self, at: At) {
        let Some(process) = self.process(at) else { return };
        let mut fired = BTreeMap::<u64, u64>::new();
        for seen in process.rig.hook.0.borrow_mut().seen.drain(..) {
            if let Some((life, _)) = seen.strip_prefix("w/").and_then(|seen| seen.split_once(' ')) {
                *fired.entry(life.parse().unwrap()).or_default() += 1;
            }
        }
        for (life, times) in fired {
            self.say(|| format!("{at:?}: the will of life {life}"));
            let life_of = self.lived.get_mut(&life).unwrap();
            life_of.wills += times;
            assert!(life_of.wills < 2, "{:.3}: life {life} has its will twice", self.now_us as f64 / 1e6);
        }
    }

    pub(super) fn mortal_again_us(&mut self) -> u64 {
        (10 * MS + self.rng.below(150 * MS)) * MORTALS / self.mortals.len() as u64
    }
}
