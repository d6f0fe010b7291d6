//! Topic filters -> destinations, in one walk.
//!
//! Nodes live in one vector; a level is a hash look-up, so the cost of a match depends on the topic's levels
//! and on what matches, not on the filters that do not. The walk keeps its own stack: no recursion on input.

use ferrule_mqtt::topic;
use foldhash::HashMap;

#[derive(Debug)]
struct Node<D> {
    children: HashMap<Box<str>, u32>,
    plus: Option<u32>,
    /// Of filters that end here.
    here: Vec<D>,
    /// Of filters that end in `/#` below this node.
    below: Vec<D>,
}

impl<D> Default for Node<D> {
    fn default() -> Self {
        Self { children: HashMap::default(), plus: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<D> Node<D> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.here.is_empty() && self.below.is_empty()
    }
}

/// The trie. `D` is a destination; one filter holds several.
#[derive(Debug)]
pub struct Trie<D> {
    nodes: Vec<Node<D>>,
    free: Vec<u32>,
    /// (node, level) pairs still to visit: kept for its capacity.
    stack: Vec<(u32, u32)>,
    /// Byte offsets of the levels of the topic in hand: kept for its capacity.
    levels: Vec<(u32, u32)>,
    len: usize,
}

impl<D> Default for Trie<D> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new(), stack: Vec::new(), levels: Vec::new(), len: 0 }
    }
}

const ROOT: u32 = 0;

impl<D> Trie<D> {
    /// An empty trie.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Destinations held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a destination, or replaces the one of which `same` is true. `filter` must be valid. Returns the
    /// replaced one.
    pub fn insert(&mut self, filter: &str, destination: D, same: impl Fn(&D) -> bool) -> Option<D> {
        let mut at = ROOT;
        let mut multi = false;
        for level in topic::levels(filter) {
            match level {
                "#" => multi = true,
                "+" => {
                    at = match self.nodes[at as usize].plus {
                        Some(next) => next,
                        None => {
                            let next = self.alloc();
                            self.nodes[at as usize].plus = Some(next);
                            next
                        }
                    }
                }
                _ => {
                    at = match self.nodes[at as usize].children.get(level) {
                        Some(&next) => next,
                        None => {
                            let next = self.alloc();
                            self.nodes[at as usize].children.insert(level.into(), next);
                            next
                        }
                    }
                }
            }
        }
        let node = &mut self.nodes[at as usize];
        let list = if multi { &mut node.below } else { &mut node.here };
        if let Some(old) = list.iter_mut().find(|d| same(d)) {
            return Some(std::mem::replace(old, destination));
        }
        list.push(destination);
        self.len += 1;
        None
    }

    /// Removes the destination of which `same` is true.
    pub fn remove(&mut self, filter: &str, same: impl Fn(&D) -> bool) -> Option<D> {
        let mut path = Vec::with_capacity(8);
        let mut at = ROOT;
        let mut multi = false;
        for level in topic::levels(filter) {
            let next = match level {
                "#" => {
                    multi = true;
                    continue;
                }
                "+" => self.nodes[at as usize].plus,
                _ => self.nodes[at as usize].children.get(level).copied(),
            };
            path.push((at, level));
            at = next?;
        }
        let node = &mut self.nodes[at as usize];
        let list = if multi { &mut node.below } else { &mut node.here };
        let index = list.iter().position(same)?;
        let removed = list.swap_remove(index);
        self.len -= 1;
        // Give back the branch that nobody uses any more.
        for (parent, level) in path.into_iter().rev() {
            if !self.nodes[at as usize].is_empty() {
                break;
            }
            let node = &mut self.nodes[parent as usize];
            if level == "+" {
                node.plus = None;
            } else {
                node.children.remove(level);
            }
            self.nodes[at as usize] = Node::default();
            self.free.push(at);
            at = parent;
        }
        Some(removed)
    }

    /// Calls `found` for each destination whose filter matches the topic name. Topics that begin with `$` are not
    /// matched by filters that begin with a wildcard [MQTT-4.7.2-1].
    pub fn matches(&mut self, name: &str, mut found: impl FnMut(&D)) {
        self.levels.clear();
        let mut start = 0;
        for level in topic::levels(name) {
            self.levels.push((start, start + level.len() as u32));
            start += level.len() as u32 + 1;
        }
        let reserved = name.starts_with('$');
        self.stack.clear();
        self.stack.push((ROOT, 0));
        while let Some((at, depth)) = self.stack.pop() {
            let node = &self.nodes[at as usize];
            let wild = depth > 0 || !reserved;
            if wild {
                // `a/#` matches `a` too: the parent level is included.
                node.below.iter().for_each(&mut found);
            }
            let Some(&(start, end)) = self.levels.get(depth as usize) else {
                node.here.iter().for_each(&mut found);
                continue;
            };
            if wild && let Some(next) = node.plus {
                self.stack.push((next, depth + 1));
            }
            if !node.children.is_empty()
                && let Some(&next) = node.children.get(&name[start as usize..end as usize])
            {
                self.stack.push((next, depth + 1));
            }
        }
    }

    fn alloc(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            (self.nodes.len() - 1) as u32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(trie: &mut Trie<usize>, name: &str) -> Vec<usize> {
        let mut found = Vec::new();
        trie.matches(name, |d| found.push(*d));
        found.sort_unstable();
        found
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just(""), Just("+"), Just("$x")];
        (prop::collection::vec(level, 1..5), any::<bool>()).prop_map(|(mut levels, multi)| {
            if multi {
                levels.push("#");
            }
            levels.join("/")
        })
    }

    fn name() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just(""), Just("$x"), Just("c")];
        prop::collection::vec(level, 1..6).prop_map(|levels| levels.join("/"))
    }

    proptest! {
        /// The trie finds what comparing with every filter finds, also after removals, and gives nodes back.
        #[test]
        fn equals_comparing_with_each(filters in prop::collection::vec(filter(), 0..24), names in prop::collection::vec(name(), 1..12), keep in any::<u32>()) {
            let mut trie = Trie::new();
            for (i, filter) in filters.iter().enumerate() {
                prop_assert_eq!(trie.insert(filter, i, |d| *d == i), None);
            }
            let kept = |i: usize| keep & (1 << (i % 32)) != 0;
            for round in 0..2 {
                for name in &names {
                    let expect: Vec<_> = (0..filters.len())
                        .filter(|&i| (round == 0 || kept(i)) && topic::matches(&filters[i], name)).collect();
                    prop_assert_eq!(found(&mut trie, name), expect, "{}", name);
                }
                if round == 0 {
                    for (i, filter) in filters.iter().enumerate().filter(|(i, _)| !kept(*i)) {
                        prop_assert_eq!(trie.remove(filter, |d| *d == i), Some(i));
                    }
                }
            }
            for (i, filter) in filters.iter().enumerate().filter(|(i, _)| kept(*i)) {
                prop_assert_eq!(trie.remove(filter, |d| *d == i), Some(i));
            }
            prop_assert!(trie.is_empty());
            prop_assert_eq!(trie.nodes.len(), trie.free.len() + 1);
        }
    }
}
