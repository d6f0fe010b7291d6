//! Nodes that die two at a time, and nothing else that is worse than a slow link: four nodes, whose wills have two copies. The next ones die when all
//! have been live again for a while.

use super::{At, MS, NodeId, PeerId, Process, State, World};

/// All have been live for so long: what there is to copy has been copied.
const WHOLE_US: u64 = 500 * MS;

/// How much later the second dies at most: long before anybody could know of the first.
const APART_US: u64 = 400 * MS;

#[derive(Debug, Default)]
pub(crate) struct Deaths {
    whole_since_us: Option<u64>,
    /// The last that died were two.
    pub(super) two: bool,
    /// Nodes that lived were removed, so often: they were too slow.
    pub(crate) mistaken: u64,
}

impl World {
    /// Every node runs, is live in the store, and may acknowledge.
    fn is_whole(&self) -> bool {
        let is_live = |process: &Process| {
            let (me, clock_us) = (process.site.me(), process.clock(self.now_us));
            let is_in = |members: &[super::Member]| {
                members.iter().any(|member| member.id == me && member.state == State::Live)
            };
            is_in(&self.view.members) && !process.paused && process.site.standing().allows(clock_us, clock_us)
        };
        self.running.len() as u64 == self.nodes && self.running.values().all(is_live)
    }

    pub(super) fn death(&mut self) {
        let (whole, now_us) = (self.is_whole(), self.now_us);
        let Some(deaths) = &mut self.deaths else { return };
        if !whole {
            deaths.whole_since_us = None;
            return;
        }
        let since_us = *deaths.whole_since_us.get_or_insert(now_us);
        let a = NodeId(self.rng.below(self.nodes));
        let b = NodeId((a.0 + 1 + self.rng.below(self.nodes - 1)) % self.nodes);
        if now_us - since_us < WHOLE_US {
            if self.rng.chance(4) {
                self.reset(a, b);
            }
            return;
        }
        let two = !self.rng.chance(5);
        if let Some(deaths) = &mut self.deaths {
            (deaths.whole_since_us, deaths.two) = (None, two);
        }
        self.say(|| format!("{a:?} is killed, and {b:?} with it: {two}"));
        let apart_us = if self.rng.chance(2) { self.rng.below(APART_US) } else { 0 };
        for (node, us) in [(a, 0), (b, apart_us)].into_iter().take(1 + usize::from(two)) {
            if let Some(of) = self.running.get(&node).map(Process::at) {
                self.after(us, super::Event::Die { of });
            }
            // Not before the other has died: it would be known at once that this one is gone.
            let us = APART_US + 100 * MS + self.rng.below(4_000 * MS);
            self.after(us, super::Event::Start { node });
        }
    }

    pub(super) fn dies(&mut self, of: At) {
        if self.process(of).is_some() {
            self.die(of.0);
        }
    }

    /// A member was removed.
    pub(super) fn was_removed(&mut self, id: PeerId) {
        let lives = self.running.get(&id.node).is_some_and(|process| process.site.me() == id);
        if let Some(deaths) = &mut self.deaths {
            deaths.mistaken += u64::from(lives);
        }
    }
}
