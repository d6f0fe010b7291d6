//! Topic aliases that we set [MQTT 5, 3.3.2.3.4]: a topic that a client gets again and again is named by two bytes.
//!
//! A connection's aliases are as many as the client takes and `topic_alias_max` of its listener allows, few enough to be searched
//! from the front. They are given by use: a topic without one gets the next that is free, then that of the topic that was not used
//! for the longest. An alias counts as set once a packet with it is in the output, which leaves whole and in order or not at all.

use foldhash::fast::FixedState;
use std::hash::BuildHasher;

/// Of one connection.
#[derive(Debug)]
pub(crate) struct Aliases {
    max: u16,
    hasher: FixedState,
    /// By alias, from 1.
    set: Vec<Set>,
    uses: u64,
}

#[derive(Debug)]
struct Set {
    hash: u64,
    topic: Box<str>,
    used: u64,
}

/// What a topic goes by in one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) number: u16,
    /// The packet sets it: it has to name the topic as well.
    pub(crate) is_new: bool,
}

impl Aliases {
    /// For a client that takes so many: at least one.
    pub(crate) fn new(max: u16, hasher: FixedState) -> Self {
        Self { max, hasher, set: Vec::new(), uses: 0 }
    }

    /// The alias of a topic; it is then set.
    pub(crate) fn of(&mut self, topic: &str) -> Alias {
        self.uses += 1;
        let (used, hash) = (self.uses, self.hasher.hash_one(topic));
        if let Some(at) = self.set.iter().position(|set| set.hash == hash && *set.topic == *topic) {
            self.set[at].used = used;
            return Alias { number: at as u16 + 1, is_new: false };
        }
        let new = Set { hash, topic: topic.into(), used };
        if self.set.len() < usize::from(self.max) {
            self.set.push(new);
            return Alias { number: self.set.len() as u16, is_new: true };
        }
        let oldest = self.set.iter().enumerate().min_by_key(|(_, set)| set.used);
        let at = oldest.map_or(0, |(at, _)| at);
        self.set[at] = new;
        Alias { number: at as u16 + 1, is_new: true }
    }

    /// The packet that would have set it was not written.
    pub(crate) fn unset(&mut self, alias: Alias) {
        let at = usize::from(alias.number) - 1;
        if !alias.is_new {
            return;
        }
        if at + 1 == self.set.len() {
            self.set.pop();
        } else if let Some(set) = self.set.get_mut(at) {
            // No topic is empty: nobody finds it, and it is the next to be given.
            (set.topic, set.used) = ("".into(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_given_by_use() {
        let mut aliases = Aliases::new(2, FixedState::with_seed(1));
        let of = |aliases: &mut Aliases, topic| {
            let Alias { number, is_new } = aliases.of(topic);
            (number, is_new)
        };
        assert_eq!(of(&mut aliases, "a"), (1, true));
        assert_eq!(of(&mut aliases, "b"), (2, true));
        assert_eq!(of(&mut aliases, "a"), (1, false));
        assert_eq!(of(&mut aliases, "c"), (2, true), "b was not used for the longest");
        assert_eq!(of(&mut aliases, "a"), (1, false));
        assert_eq!(of(&mut aliases, "b"), (2, true));
        // Not written: whoever reads knows nothing of it.
        aliases.unset(Alias { number: 2, is_new: true });
        assert_eq!(of(&mut aliases, "b"), (2, true));
        aliases.unset(Alias { number: 2, is_new: false });
        assert_eq!(of(&mut aliases, "b"), (2, false));
    }
}
