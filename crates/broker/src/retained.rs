//! Retained messages: topic name -> last message, found by filter.
//!
//! A tree of levels, so that a subscription costs what it matches and not what is kept. Bounded in messages and
//! bytes: beyond either a new topic is refused (counted), an existing one is still replaced.

use ferrule_mqtt::topic;
use ferrule_store::record::Retained;
use foldhash::HashMap;
use std::sync::Arc;

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, u32>,
    message: Option<(Arc<str>, Arc<Retained>)>,
}

/// The index.
#[derive(Debug)]
pub struct RetainedIndex {
    nodes: Vec<Node>,
    free: Vec<u32>,
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
        Self { nodes: vec![Node::default()], free: Vec::new(), len: 0, bytes: 0, max_messages, max_bytes }
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

    /// Sets the message of a topic. False when a bound refuses it.
    pub fn set(&mut self, name: &str, message: Arc<Retained>) -> bool {
        let size = cost(name, &message);
        if self.len >= self.max_messages || self.bytes + size > self.max_bytes {
            let old = self
                .find(name)
                .and_then(|at| self.nodes[at as usize].message.as_ref())
                .map(|(n, m)| cost(n, m));
            if old.is_none_or(|old| self.bytes + size > self.max_bytes + old) {
                return false;
            }
        }
        let mut at = ROOT;
        for level in topic::levels(name) {
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
        self.bytes += size;
        match self.nodes[at as usize].message.replace((name.into(), message)) {
            Some((name, old)) => self.bytes -= cost(&name, &old),
            None => self.len += 1,
        }
        true
    }

    /// Clears the message of a topic. False when there was none.
    pub fn clear(&mut self, name: &str) -> bool {
        let mut path = Vec::with_capacity(8);
        let mut at = ROOT;
        for level in topic::levels(name) {
            let Some(&next) = self.nodes[at as usize].children.get(level) else { return false };
            path.push((at, level));
            at = next;
        }
        let Some((_, old)) = self.nodes[at as usize].message.take() else { return false };
        self.len -= 1;
        self.bytes -= cost(name, &old);
        for (parent, level) in path.into_iter().rev() {
            let node = &self.nodes[at as usize];
            if !node.children.is_empty() || node.message.is_some() {
                break;
            }
            self.nodes[parent as usize].children.remove(level);
            self.free.push(at);
            at = parent;
        }
        true
    }

    /// The message of a topic.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Retained>> {
        let at = self.find(name)?;
        self.nodes[at as usize].message.as_ref().map(|(_, m)| m)
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
                None => node.message.iter().for_each(|(n, m)| found(n, m)),
                Some(&"#") => {
                    // Of the whole subtree, the parent level included (the root has no message).
                    node.message.iter().for_each(|(n, m)| found(n, m));
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
            node.message.iter().for_each(|(n, m)| found(n, m));
            stack.extend(node.children.values());
        }
    }

    fn find(&self, name: &str) -> Option<u32> {
        topic::levels(name).try_fold(ROOT, |at, level| self.nodes[at as usize].children.get(level).copied())
    }
}

fn cost(name: &str, message: &Retained) -> usize {
    // Node, map entry and allocations of a topic of its own.
    const FIXED: usize = 200;
    FIXED + name.len() + message.payload.len() + message.properties.len()
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
        assert!(index.set("a", message(1)) && index.set("b", message(1)));
        assert!(!index.set("c", message(1)) && index.set("a", message(2)));
        assert!(!index.set("a", message(20_000)));
        assert_eq!((index.len(), index.get("a").map(|m| m.payload.len())), (2, Some(2)));
        assert!(index.clear("b") && !index.clear("b") && index.set("c", message(1)));
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
                prop_assert!(index.set(name, message(1)));
            }
            let mut found = Vec::new();
            index.matches(&filter, |name, _| found.push(name.to_string()));
            found.sort_unstable();
            let mut expect: Vec<_> = names.iter().filter(|n| topic::matches(&filter, n)).cloned().collect();
            expect.sort_unstable();
            prop_assert_eq!(found, expect, "{}", filter);
            for name in &names {
                prop_assert!(index.clear(name));
            }
            prop_assert_eq!((index.len(), index.bytes, index.nodes.len()), (0, 0, index.free.len() + 1));
        }
    }
}
