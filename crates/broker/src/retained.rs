//! Retained messages: topic name -> last message, found by filter.
//!
//! A tree of levels, so that a subscription costs what it matches and not what is kept. Bounded in messages and
//! bytes: beyond either a new topic is refused (counted), an existing one is still replaced.

use ferrule_mqtt::topic;
use ferrule_store::record::Record;
use ferrule_store::record::Retained;
use foldhash::HashMap;
use foldhash::fast::FixedState;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::BuildHasher;
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
    /// All that is kept, by the age of its stamp; none: nobody asks.
    ages: Option<BTreeMap<u64, Bucket>>,
    len: usize,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

const ROOT: u32 = 0;

/// What has stamps of the same 2^20 ms, some 17 minutes.
#[derive(Debug, Default)]
struct Bucket {
    /// The exclusive or of the digests of all.
    digest: u64,
    topics: HashSet<Arc<str>>,
}

/// Of a stamp that has milliseconds above 22 bits.
const BUCKET_BITS: u32 = 42;

impl RetainedIndex {
    /// An empty index with its bounds.
    #[must_use]
    pub fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            nodes: vec![Node::default()],
            free: Vec::new(),
            ends: BTreeSet::new(),
            ages: None,
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
        if old.is_some_and(|kept| kept.is_ahead_of(stamp, Some(&message))) {
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
        if let Some(old) = self.nodes[at as usize].kept.take() {
            self.forget(&old);
        }
        self.ends.extend(kept.end());
        if let Some(ages) = &mut self.ages {
            kept.add_to(ages);
        }
        self.nodes[at as usize].kept = Some(kept);
    }

    /// It has been taken out.
    fn forget(&mut self, old: &Kept) {
        self.len -= usize::from(old.message.is_some());
        self.bytes -= old.cost();
        if let Some(end) = old.end() {
            self.ends.remove(&end);
        }
        if let Some(ages) = &mut self.ages {
            old.take_from(ages);
        }
    }

    /// From now on it is known what there is of which age.
    pub fn track(&mut self) {
        if self.ages.is_none() {
            let mut ages = BTreeMap::new();
            let all = self.nodes.iter().filter_map(|node| node.kept.as_ref());
            all.for_each(|kept| kept.add_to(&mut ages));
            self.ages = Some(ages);
        }
    }

    /// Where what has a stamp is found by its age.
    #[must_use]
    pub fn bucket(stamp: u64) -> u64 {
        stamp >> BUCKET_BITS
    }

    /// Each bucket that something is in, with a digest of all that is. Two indices with the same messages and cleared topics have the same.
    pub fn digests(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ages.iter().flatten().map(|(at, bucket)| (*at, bucket.digest))
    }

    /// The topics of a bucket.
    pub fn in_bucket(&self, at: u64) -> impl Iterator<Item = Arc<str>> {
        let bucket = self.ages.as_ref().and_then(|ages| ages.get(&at));
        bucket.into_iter().flat_map(|bucket| bucket.topics.iter().cloned())
    }

    /// What is known of a topic: the stamp, and the message unless it was cleared.
    #[must_use]
    pub fn known(&self, name: &str) -> Option<(u64, Option<Arc<Retained>>)> {
        self.kept(name).map(|kept| (kept.stamp, kept.message.clone()))
    }

    /// A topic whose message has expired.
    #[must_use]
    pub fn expired(&self, now_wall_ms: i64) -> Option<Arc<str>> {
        self.ends.first().filter(|(end, _)| *end <= now_wall_ms).map(|(_, name)| Arc::clone(name))
    }

    /// Clears the message of a topic. `remember`: an older one may still be on its way from another shard.
    pub fn clear(&mut self, name: &str, stamp: u64, remember: bool) -> Set {
        match self.kept(name) {
            Some(kept) if kept.is_ahead_of(stamp, None) => return Set::Older,
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
        self.forget(&old);
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

    /// Whether it wins over another of its topic, or is the same.
    fn is_ahead_of(&self, stamp: u64, message: Option<&Arc<Retained>>) -> bool {
        // As in a store that several nodes share: by what is written there.
        let record = |message: Option<&Arc<Retained>>| message.map(|message| message.to_bytes());
        self.stamp > stamp || (self.stamp == stamp && record(self.message.as_ref()) >= record(message))
    }

    /// Another release, whose hash may be another, finds everything different, and is sent it.
    fn digest(&self) -> u64 {
        let message = self.message.as_deref().map(|m| (m.qos, &m.properties, &m.payload));
        FixedState::with_seed(0).hash_one((&*self.name, self.stamp, message))
    }

    fn add_to(&self, ages: &mut BTreeMap<u64, Bucket>) {
        let bucket = ages.entry(RetainedIndex::bucket(self.stamp)).or_default();
        bucket.digest ^= self.digest();
        bucket.topics.insert(Arc::clone(&self.name));
    }

    fn take_from(&self, ages: &mut BTreeMap<u64, Bucket>) {
        let at = RetainedIndex::bucket(self.stamp);
        let Some(bucket) = ages.get_mut(&at) else { return };
        bucket.digest ^= self.digest();
        bucket.topics.remove(&self.name);
        if bucket.topics.is_empty() {
            ages.remove(&at);
        }
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
        fn the_same_changes_in_any_order_have_the_same_digests(
            changes in prop::collection::vec((0_u8..4, 0_u64..5, 0_usize..3), 0..20),
            order in any::<u64>(),
        ) {
            let apply = |index: &mut RetainedIndex, &(name, age, size): &(u8, u64, usize)| {
                let (name, stamp) = (format!("t/{name}"), age << (BUCKET_BITS - 1));
                match size {
                    0 => index.clear(&name, stamp, true),
                    size => index.set(&name, stamp, message(size)),
                }
            };
            let (mut a, mut b) = (RetainedIndex::new(100, 1 << 20), RetainedIndex::new(100, 1 << 20));
            a.track();
            changes.iter().for_each(|change| assert_ne!(apply(&mut a, change), Set::Refused));
            let mut other = changes.clone();
            other.sort_by_key(|change| FixedState::with_seed(order).hash_one(change));
            other.iter().for_each(|change| assert_ne!(apply(&mut b, change), Set::Refused));
            b.track();
            let all = |index: &RetainedIndex| {
                let names = (0..4).map(|name| format!("t/{name}"));
                names.map(|name| index.known(&name)).collect::<Vec<_>>()
            };
            prop_assert_eq!(all(&a), all(&b));
            let digests: Vec<_> = a.digests().collect();
            prop_assert_eq!(&digests, &b.digests().collect::<Vec<_>>());
            let found = digests.iter().flat_map(|(bucket, _)| a.in_bucket(*bucket));
            let mut found: Vec<_> = found.map(|name| name.to_string()).collect();
            found.sort_unstable();
            let mut expect: Vec<_> = changes.iter().map(|change| format!("t/{}", change.0)).collect();
            expect.sort_unstable();
            expect.dedup();
            prop_assert_eq!(found, expect);
        }

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
                prop_assert_eq!(index.clear(name, 2, false), Set::Done);
            }
            prop_assert_eq!((index.len(), index.bytes, index.nodes.len()), (0, 0, index.free.len() + 1));
        }
    }
}
