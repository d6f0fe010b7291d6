//! Retained messages: topic name -> last message, found by filter.
//!
//! A tree of levels, so that a subscription costs what it matches and not what is kept. Bounded in messages and
//! bytes: beyond either a new topic is refused (counted), an existing one is still replaced.

use ferrule_mqtt::topic;
use ferrule_store::record::Retained;
use foldhash::HashMap;
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Debug)]
struct Kept {
    name: Arc<str>,
    /// The highest of a topic wins, wherever it was set.
    stamp: u64,
    /// None: it was cleared, and an older one that comes late must not bring it back.
    message: Option<Arc<Retained>>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, u32>,
    kept: Option<Kept>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// It is in force.
    Done,
    /// A bound refuses it.
    Refused,
    /// A later one is in force.
    Older,
}

/// The index.
#[derive(Debug)]
pub struct RetainedIndex {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Topics whose message expires, by when.
    ends: BTreeSet<(i64, Arc<str>)>,
    len: usize,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

const ROOT: u32 = 0;

impl RetainedIndex {
    /// An empty index with its bounds.
    #[must_use]
    pub fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            nodes: vec![Node::default()],
            free: Vec::new(),
            ends: BTreeSet::new(),
            len: 0,
            bytes: 0,
            max_messages,
            max_bytes,
        }
    }

    /// Other bounds from now on; what is over them stays.
    pub fn set_bounds(&mut self, max_messages: usize, max_bytes: usize) {
        (self.max_messages, self.max_bytes) = (max_messages, max_bytes);
    }

    /// Messages kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the message of a topic.
    pub fn set(&mut self, name: &str, stamp: u64, message: Arc<Retained>) -> Set {
        let size = cost(name, Some(&message));
        let old = self.kept(name);
        if old.is_some_and(|kept| kept.stamp > stamp) {
            return Set::Older;
        }
        if !self.has_room(old, size) {
            return Set::Refused;
        }
        self.put(Kept { name: name.into(), stamp, message: Some(message) });
        Set::Done
    }

    /// Whether a message with so many bytes of payload and properties is within the bounds.
    #[must_use]
    pub fn fits(&self, name: &str, bytes: usize) -> bool {
        let size = cost(name, None) + bytes;
        // Rarely near the bounds: what is there need not be looked up.
        (self.len < self.max_messages && self.bytes + size <= self.max_bytes)
            || self.has_room(self.kept(name), size)
    }

    /// Whether what costs `size` may take the place of `old`.
    fn has_room(&self, old: Option<&Kept>, size: usize) -> bool {
        if self.len < self.max_messages && self.bytes + size <= self.max_bytes {
            return true;
        }
        let old = old.filter(|kept| kept.message.is_some()).map(Kept::cost);
        old.is_some_and(|old| self.bytes + size <= self.max_bytes + old)
    }

    fn put(&mut self, kept: Kept) {
        let mut at = ROOT;
        for level in topic::levels(&kept.name) {
            at = match self.nodes[at as usize].children.get(level) {
                Some(&next) => next,
                None => {
                    let next = self.free.pop().unwrap_or_else(|| {
                        self.nodes.push(Node::default());
                        (self.nodes.len() - 1) as u32
                    });
                    self.nodes[at as usize].children.insert(level.into(), next);
                    next
                }
            };
        }
        self.bytes += kept.cost();
        self.len += usize::from(kept.message.is_some());
        let end = kept.end();
        if let Some(old) = self.nodes[at as usize].kept.replace(kept) {
            self.bytes -= old.cost();
            self.len -= usize::from(old.message.is_some());
            self.forget_end(&old);
        }
        self.ends.extend(end);
    }

    fn forget_end(&mut self, old: &Kept) {
        if let Some(end) = old.end() {
            self.ends.remove(&end);
        }
    }

    /// A topic whose message has expired.
    #[must_use]
    pub fn expired(&self, now_wall_ms: i64) -> Option<Arc<str>> {
        self.ends.first().filter(|(end, _)| *end <= now_wall_ms).map(|(_, name)| Arc::clone(name))
    }

    /// Clears the message of a topic. `remember`: an older one may still be on its way from another shard.
    pub fn clear(&mut self, name: &str, stamp: u64, remember: bool) -> Set {
        match self.kept(name) {
            Some(kept) if kept.stamp > stamp => return Set::Older,
            None if !remember => return Set::Done,
            _ => {}
        }
        if remember {
            self.put(Kept { name: name.into(), stamp, message: None });
        } else {
            self.take(name);
        }
        Set::Done
    }

    /// Forgets that a topic was cleared, unless it has been set since.
    pub fn forget_cleared(&mut self, name: &str, stamp: u64) {
        if self.kept(name).is_some_and(|kept| kept.message.is_none() && kept.stamp == stamp) {
            self.take(name);
        }
    }

    /// Takes an entry out and gives back the branch that nobody uses any more.
    fn take(&mut self, name: &str) {
        let mut path = Vec::with_capacity(8);
        let mut at = ROOT;
        for level in topic::levels(name) {
            let Some(&next) = self.nodes[at as usize].children.get(level) else { return };
            path.push((at, level));
            at = next;
        }
        let Some(old) = self.nodes[at as usize].kept.take() else { return };
        self.len -= usize::from(old.message.is_some());
        self.bytes -= old.cost();
        self.forget_end(&old);
        for (parent, level) in path.into_iter().rev() {
            let node = &self.nodes[at as usize];
            if !node.children.is_empty() || node.kept.is_some() {
                break;
            }
            self.nodes[parent as usize].children.remove(level);
            self.free.push(at);
            at = parent;
        }
    }

    /// The message of a topic.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Retained>> {
        self.kept(name)?.message.as_ref()
    }

    fn kept(&self, name: &str) -> Option<&Kept> {
        let mut levels = topic::levels(name);
        let at = levels.try_fold(ROOT, |at, level| self.nodes[at as usize].children.get(level).copied())?;
        self.nodes[at as usize].kept.as_ref()
    }

    /// Calls `found` for each kept message whose topic the filter matches.
    pub fn matches(&self, filter: &str, mut found: impl FnMut(&Arc<str>, &Arc<Retained>)) {
        let levels: Vec<&str> = topic::levels(filter).collect();
        let mut stack = vec![(ROOT, 0)];
        while let Some((at, depth)) = stack.pop() {
            let node = &self.nodes[at as usize];
            // Not matched by a leading wildcard [MQTT-4.7.2-1].
            let visible = |level: &str| depth > 0 || !level.starts_with('$');
            match levels.get(depth) {
                None => node.each(&mut found),
                Some(&"#") => {
                    // Of the whole subtree, the parent level included (the root has no message).
                    node.each(&mut found);
                    for (_, &next) in node.children.iter().filter(|(level, _)| visible(level)) {
                        self.subtree(next, &mut found);
                    }
                }
                Some(&"+") => {
                    stack.extend(
                        node.children.iter().filter(|(l, _)| visible(l)).map(|(_, &n)| (n, depth + 1)),
                    );
                }
                Some(&level) => stack.extend(node.children.get(level).map(|&next| (next, depth + 1))),
            }
        }
    }

    fn subtree(&self, from: u32, found: &mut impl FnMut(&Arc<str>, &Arc<Retained>)) {
        let mut stack = vec![from];
        while let Some(at) = stack.pop() {
            let node = &self.nodes[at as usize];
            node.each(found);
            stack.extend(node.children.values());
        }
    }
}

impl Node {
    fn each(&self, found: &mut impl FnMut(&Arc<str>, &Arc<Retained>)) {
        if let Some(Kept { name, message: Some(message), .. }) = &self.kept {
            found(name, message);
        }
    }
}

impl Kept {
    fn end(&self) -> Option<(i64, Arc<str>)> {
        Some((self.message.as_ref()?.expires_wall_ms?, Arc::clone(&self.name)))
    }

    fn cost(&self) -> usize {
        cost(&self.name, self.message.as_deref())
    }
}

fn cost(name: &str, message: Option<&Retained>) -> usize {
    // Node, map entry and allocations of a topic of its own.
    const FIXED: usize = 200;
    FIXED + name.len() + message.map_or(0, |m| m.payload.len() + m.properties.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn message(n: usize) -> Arc<Retained> {
        Arc::new(Retained {
            qos: 0,
            expires_wall_ms: None,
            at_wall_ms: 0,
            properties: Bytes::new(),
            payload: Bytes::from(vec![0; n]),
        })
    }

    #[test]
    fn bounds_refuse_new_topics_and_let_old_ones_be_replaced() {
        let mut index = RetainedIndex::new(2, 10_000);
        let mut set = |name: &str, size| index.set(name, 1, message(size));
        assert_eq!([set("a", 1), set("b", 1)], [Set::Done; 2]);
        assert_eq!([set("c", 1), set("a", 2), set("a", 20_000)], [Set::Refused, Set::Done, Set::Refused]);
        assert_eq!((index.len(), index.get("a").map(|m| m.payload.len())), (2, Some(2)));
        assert_eq!([index.clear("b", 2, false), index.set("c", 2, message(1))], [Set::Done; 2]);
    }

    #[test]
    fn the_highest_stamp_wins_in_any_order() {
        let mut index = RetainedIndex::new(9, 10_000);
        assert_eq!(index.set("a/b", 5, message(5)), Set::Done);
        assert_eq!([index.set("a/b", 4, message(4)), index.clear("a/b", 4, true)], [Set::Older; 2]);
        assert_eq!(index.clear("a/b", 6, true), Set::Done);
        assert_eq!((index.get("a/b"), index.len()), (None, 0));
        assert_eq!(index.set("a/b", 5, message(5)), Set::Older, "cleared since");
        index.forget_cleared("a/b", 5);
        assert_eq!(index.set("a/b", 5, message(5)), Set::Older, "not that one");
        index.forget_cleared("a/b", 6);
        assert_eq!((index.set("a/b", 5, message(5)), index.len()), (Set::Done, 1));
        index.clear("a/b", 7, false);
        assert_eq!((index.bytes, index.nodes.len()), (0, index.free.len() + 1));
    }

    proptest! {
        #[test]
        fn equals_comparing_with_each(
            names in prop::collection::btree_set("(a|b|\\$x)?(/(a|b)?){0,3}", 0..20),
            filter in "((a|b|\\+|\\$x)(/(a|b|\\+)){0,3}(/#)?|#)",
        ) {
            let names: Vec<String> = names.into_iter().filter(|n| !n.is_empty()).collect();
            let mut index = RetainedIndex::new(100, 1 << 20);
            for name in &names {
                prop_assert_eq!(index.set(name, 1, message(1)), Set::Done);
            }
            let mut found = Vec::new();
            index.matches(&filter, |name, _| found.push(name.to_string()));
            found.sort_unstable();
            let mut expect: Vec<_> = names.iter().filter(|n| topic::matches(&filter, n)).cloned().collect();
            expect.sort_unstable();
            prop_assert_eq!(found, expect, "{}", filter);
            for name in &names {
                prop_assert_eq!(index.clear(name, 1, false), Set::Done);
            }
            prop_assert_eq!((index.len(), index.bytes, index.nodes.len()), (0, 0, index.free.len() + 1));
        }
    }
}
