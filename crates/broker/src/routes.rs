//! Topic filters -> destinations.
//!
//! # Constraints
//! The cost of a look-up depends on what matches and on the topic's levels, never on the filters that do not match. Most
//! subscriptions of devices have no wildcard and are one of a kind: they must cost little memory.
//!
//! # Data
//! - Filters without wildcards: one table, text -> list; a look-up is one hash and one comparison. The text is shared with
//!   the session that subscribed.
//! - Filters with wildcards: a trie of levels. Its edges are one table for all nodes, (parent, level) -> child, so that a
//!   node needs no table of its own. The walk keeps its own stack: no recursion on input.
//! - A cache of what both said of a topic, with the trie's version: any change of the trie ends all of it; a change of a filter
//!   without wildcards ends what is kept of that topic alone, so that clients that come and go with topics of their own do
//!   not disturb others. Among a million filters a walk is a dozen misses of the processor's caches, and the topics in use are
//!   few. Without wildcard filters it is not used: the table is as good.
//!
//! # Bounds
//! The cache has places in pairs, chosen by the topic's hash; a later topic takes the place of an earlier one, and when that happens
//! often the places are doubled, up to a bound. Only short lists are kept: a long one costs as much to copy as to find.

use compact_str::CompactString;
use ferrule_mqtt::topic;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::hash::BuildHasher;
use std::sync::Arc;

/// Where a filter leads.
pub(crate) trait Destination: Copy {
    /// Tells the destinations of one filter apart.
    fn key(&self) -> u64;
    /// Whether it is a session of this shard: other shards are told of filters that have one.
    fn is_local(&self) -> bool;
}

/// What an insertion or a removal changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Changed<D> {
    /// The destination that was there before.
    pub(crate) old: Option<D>,
    /// The filter has its first local destination now, or lost its last.
    pub(crate) local: bool,
}

/// Where a walk over all filters is that is interrupted by changes. It meets each filter once that was there all the while; others perhaps.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Cursor {
    exact: usize,
    node: usize,
    /// The node's filter that ends with `#` is next.
    below: bool,
}

/// A place that a walk comes to: there may be no filter.
#[derive(Debug, Clone, Copy)]
enum Spot {
    Exact(usize),
    Node(usize, bool),
}

/// The destinations of one filter.
#[derive(Debug, Default)]
enum List<D> {
    #[default]
    Empty,
    /// Most filters have one.
    One(D),
    Many(Box<Many<D>>),
}

#[derive(Debug)]
struct Many<D> {
    all: Vec<D>,
    local: usize,
    /// By key; used from `INDEXED` destinations on.
    index: HashTable<u32>,
}

/// Up to here a scan is faster than a hash, and needs no memory.
const INDEXED: usize = 32;

/// Places of the cache at first, and at most: 32,768 topics are some 4 MB.
const CACHE_MIN: usize = 256;
const CACHE_MAX: usize = 32_768;
/// Longest list that is kept.
const CACHED: usize = 16;

/// A cached answer. Most topics are short and most have one destination: then this is all there is to read, and in one table, not
/// somewhere in the memory of a million filters.
#[derive(Debug)]
struct Cached<D> {
    hash: u64,
    /// Of the trie.
    version: u64,
    topic: CompactString,
    found: SmallVec<[D; 1]>,
    lists: u32,
}

#[derive(Debug)]
struct Cache<D> {
    /// A power of two of them, in pairs.
    places: Vec<Option<Cached<D>>>,
    /// Live answers that gave way to others since the places were last doubled.
    displaced: usize,
}

impl<D> Default for Cache<D> {
    fn default() -> Self {
        Self { places: Vec::new(), displaced: 0 }
    }
}

impl<D: Copy> Cache<D> {
    /// The first of the two places of a hash.
    fn pair(&self, hash: u64) -> usize {
        hash as usize & (self.places.len() - 1) & !1
    }

    fn get(&self, hash: u64, version: u64, name: &str) -> Option<&Cached<D>> {
        if self.places.is_empty() {
            return None;
        }
        let pair = self.pair(hash);
        self.places[pair..pair + 2]
            .iter()
            .flatten()
            .find(|c| c.hash == hash && c.version == version && *c.topic == *name)
    }

    fn put(&mut self, cached: Cached<D>) {
        if self.places.is_empty() || (self.displaced >= self.places.len() && self.places.len() < CACHE_MAX) {
            let len = (self.places.len() * 2).max(CACHE_MIN);
            let old =
                std::mem::replace(&mut self.places, std::iter::repeat_with(|| None).take(len).collect());
            self.displaced = 0;
            old.into_iter().flatten().filter(|c| c.version == cached.version).for_each(|c| self.put(c));
        }
        let pair = self.pair(cached.hash);
        let version = cached.version;
        let free = |place: &Option<Cached<D>>| place.as_ref().is_none_or(|c| c.version != version);
        let at = match self.places[pair..pair + 2].iter().position(free) {
            Some(at) => at,
            None => {
                self.displaced += 1;
                // Any bit that does not choose the pair.
                (cached.hash >> 63) as usize
            }
        };
        self.places[pair + at] = Some(cached);
    }

    /// What is kept of one topic is not true any more.
    fn forget(&mut self, hash: u64) {
        if !self.places.is_empty() {
            let pair = self.pair(hash);
            for place in &mut self.places[pair..pair + 2] {
                place.take_if(|c| c.hash == hash);
            }
        }
    }
}

#[derive(Debug)]
struct Exact<D> {
    filter: Arc<str>,
    list: List<D>,
}

/// All filters.
#[derive(Debug)]
pub(crate) struct Routes<D> {
    hasher: FixedState,
    /// Places of `exact`, by text.
    by_text: HashTable<u32>,
    exact: Vec<Exact<D>>,
    exact_free: Vec<u32>,
    trie: Trie<D>,
    cache: Cache<D>,
    len: usize,
}

impl<D: Destination> Routes<D> {
    pub(crate) fn new(hasher: FixedState) -> Self {
        Self {
            by_text: HashTable::new(),
            exact: Vec::new(),
            exact_free: Vec::new(),
            trie: Trie::new(hasher.clone()),
            cache: Cache::default(),
            len: 0,
            hasher,
        }
    }

    /// Destinations held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a destination or replaces the one with its key. `filter` must be valid.
    pub(crate) fn insert(&mut self, filter: &Arc<str>, destination: D) -> Changed<D> {
        let list = if topic::has_wildcards(filter) {
            self.trie.list_mut(filter)
        } else {
            let hash = self.hasher.hash_one(&**filter);
            self.cache.forget(hash);
            let at = match self.by_text.find(hash, |&at| *self.exact[at as usize].filter == **filter) {
                Some(&at) => at,
                None => {
                    let entry = Exact { filter: Arc::clone(filter), list: List::Empty };
                    let at = self.exact_free.pop().unwrap_or(self.exact.len() as u32);
                    match self.exact.get_mut(at as usize) {
                        Some(place) => *place = entry,
                        None => self.exact.push(entry),
                    }
                    let (exact, hasher) = (&self.exact, &self.hasher);
                    self.by_text.insert_unique(hash, at, |&at| hasher.hash_one(&*exact[at as usize].filter));
                    at
                }
            };
            &mut self.exact[at as usize].list
        };
        let before = list.local();
        let old = list.insert(destination, &self.hasher);
        let local = before == 0 && list.local() > 0;
        self.len += usize::from(old.is_none());
        Changed { old, local }
    }

    /// Removes the destination with this key.
    pub(crate) fn remove(&mut self, filter: &str, key: u64) -> Changed<D> {
        let nothing = Changed { old: None, local: false };
        let changed = if topic::has_wildcards(filter) {
            self.trie.remove(filter, key)
        } else {
            let hash = self.hasher.hash_one(filter);
            self.cache.forget(hash);
            let exact = &mut self.exact;
            let Ok(entry) = self.by_text.find_entry(hash, |&at| *exact[at as usize].filter == *filter) else {
                return nothing;
            };
            let at = *entry.get();
            let list = &mut exact[at as usize].list;
            let before = list.local();
            let old = list.remove(key, &self.hasher);
            let local = before > 0 && list.local() == 0;
            if list.is_empty() {
                entry.remove();
                exact[at as usize] = Exact { filter: Arc::from(""), list: List::Empty };
                self.exact_free.push(at);
            }
            Changed { old, local }
        };
        self.len -= usize::from(changed.old.is_some());
        changed
    }

    /// Appends all destinations whose filter matches the topic name, and says of how many filters they are: those of
    /// one filter are all different. Topics that begin with `$` are not matched by filters that begin
    /// with a wildcard [MQTT-4.7.2-1].
    pub(crate) fn matches(&mut self, name: &str, into: &mut Vec<D>) -> usize {
        let hash = self.hasher.hash_one(name);
        let version = self.trie.version;
        let cached = !self.trie.is_empty();
        if cached && let Some(cached) = self.cache.get(hash, version, name) {
            into.extend_from_slice(&cached.found);
            return cached.lists as usize;
        }
        let before = into.len();
        let mut lists = 0;
        if let Some(&at) = self.by_text.find(hash, |&at| *self.exact[at as usize].filter == *name) {
            into.extend_from_slice(self.exact[at as usize].list.as_slice());
            lists += 1;
        }
        if !cached {
            return lists;
        }
        lists += self.trie.matches(name, into);
        let found = &into[before..];
        if found.len() <= CACHED {
            // As many lists as destinations at most.
            let lists = lists as u32;
            self.cache.put(Cached { hash, version, topic: name.into(), found: found.into(), lists });
        }
        lists
    }

    /// All filters that have a local destination.
    pub(crate) fn local_filters(&self, each: impl FnMut(&str)) {
        self.filters(|list| list.local() > 0, each);
    }

    /// All filters that have the destination with this key: a walk over everything.
    pub(crate) fn filters_of(&self, key: u64, each: impl FnMut(&str)) {
        self.filters(|list| list.as_slice().iter().any(|destination| destination.key() == key), each);
    }

    /// The next filter that has a local destination.
    pub(crate) fn next_local(&self, cursor: &mut Cursor) -> Option<Cow<'_, str>> {
        loop {
            let spot = self.step(cursor)?;
            if self.list(spot).is_some_and(|list| list.local() > 0) {
                return Some(self.text(spot));
            }
        }
    }

    /// Removes the destination with this key from the next filters, wherever it is stale; true: there are no more. `left`: filters that may
    /// still be looked at.
    pub(crate) fn sweep(
        &mut self,
        cursor: &mut Cursor,
        left: &mut usize,
        key: u64,
        is_stale: impl Fn(&D) -> bool,
    ) -> bool {
        while *left > 0 {
            *left -= 1;
            let Some(spot) = self.step(cursor) else { return true };
            if self.list(spot).is_some_and(|list| list.as_slice().iter().any(&is_stale)) {
                let filter = self.text(spot).into_owned();
                self.remove(&filter, key);
            }
        }
        false
    }

    fn step(&self, cursor: &mut Cursor) -> Option<Spot> {
        if cursor.exact < self.exact.len() {
            cursor.exact += 1;
            return Some(Spot::Exact(cursor.exact - 1));
        }
        if cursor.node >= self.trie.nodes.len() {
            return None;
        }
        let spot = Spot::Node(cursor.node, cursor.below);
        cursor.node += usize::from(cursor.below);
        cursor.below = !cursor.below;
        Some(spot)
    }

    fn list(&self, spot: Spot) -> Option<&List<D>> {
        match spot {
            Spot::Exact(at) => Some(&self.exact.get(at)?.list),
            Spot::Node(at, below) => {
                let ends = self.trie.nodes.get(at)?.ends.as_ref()?;
                Some(if below { &ends.below } else { &ends.here })
            }
        }
    }

    fn text(&self, spot: Spot) -> Cow<'_, str> {
        match spot {
            Spot::Exact(at) => Cow::Borrowed(&self.exact[at].filter),
            Spot::Node(at, below) => Cow::Owned(self.trie.text(at as u32, below)),
        }
    }

    fn filters(&self, has: impl Fn(&List<D>) -> bool, mut each: impl FnMut(&str)) {
        self.exact.iter().filter(|e| has(&e.list)).for_each(|e| each(&e.filter));
        self.trie.filters(has, each);
    }
}

// === impl List ===

impl<D: Destination> List<D> {
    fn as_slice(&self) -> &[D] {
        match self {
            Self::Empty => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => &many.all,
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn local(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(one) => usize::from(one.is_local()),
            Self::Many(many) => many.local,
        }
    }

    fn insert(&mut self, destination: D, hasher: &FixedState) -> Option<D> {
        match self {
            Self::Empty => {
                *self = Self::One(destination);
                None
            }
            Self::One(one) if one.key() == destination.key() => Some(std::mem::replace(one, destination)),
            Self::One(one) => {
                let all = vec![*one, destination];
                let local = all.iter().filter(|d| d.is_local()).count();
                *self = Self::Many(Box::new(Many { all, local, index: HashTable::new() }));
                None
            }
            Self::Many(many) => many.insert(destination, hasher),
        }
    }

    fn remove(&mut self, key: u64, hasher: &FixedState) -> Option<D> {
        match self {
            Self::Empty => None,
            Self::One(one) if one.key() == key => {
                let old = *one;
                *self = Self::Empty;
                Some(old)
            }
            Self::One(_) => None,
            Self::Many(many) => {
                let old = many.remove(key, hasher);
                if let [last] = *many.all {
                    *self = Self::One(last);
                }
                old
            }
        }
    }
}

impl<D: Destination> Many<D> {
    fn position(&self, key: u64, hasher: &FixedState) -> Option<usize> {
        if self.all.len() < INDEXED {
            return self.all.iter().position(|d| d.key() == key);
        }
        let found = self.index.find(hasher.hash_one(key), |&at| self.all[at as usize].key() == key);
        found.map(|&at| at as usize)
    }

    fn insert(&mut self, destination: D, hasher: &FixedState) -> Option<D> {
        if let Some(at) = self.position(destination.key(), hasher) {
            return Some(std::mem::replace(&mut self.all[at], destination));
        }
        self.all.push(destination);
        self.local += usize::from(destination.is_local());
        let (all, index) = (&self.all, &mut self.index);
        let hash = |at: &u32| hasher.hash_one(all[*at as usize].key());
        // At the threshold all of them, later the new one alone.
        let from = match all.len() {
            ..INDEXED => return None,
            INDEXED => 0,
            len => len - 1,
        };
        for at in from as u32..all.len() as u32 {
            index.insert_unique(hash(&at), at, hash);
        }
        None
    }

    fn remove(&mut self, key: u64, hasher: &FixedState) -> Option<D> {
        let at = self.position(key, hasher)?;
        let indexed = self.all.len() >= INDEXED;
        if indexed && let Ok(entry) = self.index.find_entry(hasher.hash_one(key), |&i| i as usize == at) {
            entry.remove();
        }
        let removed = self.all.swap_remove(at);
        self.local -= usize::from(removed.is_local());
        if self.all.len() < INDEXED {
            self.index = HashTable::new();
        } else if let Some(moved) = self.all.get(at) {
            let was = self.all.len();
            let hash = hasher.hash_one(moved.key());
            if let Some(place) = self.index.find_mut(hash, |&i| i as usize == was) {
                *place = at as u32;
            }
        }
        Some(removed)
    }
}

// === the trie ===

const ROOT: u32 = 0;

#[derive(Debug)]
struct Node<D> {
    parent: u32,
    /// 0: none, since the root is nobody's child.
    plus: u32,
    /// Children by level, the `+` one not counted.
    children: u32,
    level: Box<str>,
    ends: Option<Box<Ends<D>>>,
}

/// Of filters that end at a node.
#[derive(Debug)]
struct Ends<D> {
    here: List<D>,
    /// In `/#` below it.
    below: List<D>,
}

impl<D> Default for Ends<D> {
    fn default() -> Self {
        Self { here: List::Empty, below: List::Empty }
    }
}

#[derive(Debug)]
struct Trie<D> {
    hasher: FixedState,
    nodes: Vec<Node<D>>,
    free: Vec<u32>,
    /// Children by (parent, level).
    edges: HashTable<u32>,
    filters: usize,
    /// Moved on by every change.
    version: u64,
    /// (node, depth) pairs still to visit: kept for its capacity.
    stack: Vec<(u32, u32)>,
    /// Start, end and hash of the levels of the topic in hand: kept for its capacity.
    levels: Vec<(u32, u32, u64)>,
}

/// The hash of an edge from its level's: computed once a level, however many nodes ask.
fn edge(parent: u32, level: u64) -> u64 {
    // The golden ratio's bits spread small numbers; the fold brings high bits down, where tables look.
    let mixed = (level ^ u64::from(parent)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl<D: Destination> Trie<D> {
    fn new(hasher: FixedState) -> Self {
        Self {
            hasher,
            nodes: vec![Node::new(ROOT, "")],
            free: Vec::new(),
            edges: HashTable::new(),
            filters: 0,
            version: 1,
            stack: Vec::new(),
            levels: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.filters == 0
    }

    fn child(&self, parent: u32, level: &str, hash: u64) -> Option<u32> {
        let is = |&at: &u32| {
            let node = &self.nodes[at as usize];
            node.parent == parent && *node.level == *level
        };
        self.edges.find(edge(parent, hash), is).copied()
    }

    fn step(&self, at: u32, level: &str) -> Option<u32> {
        match level {
            "+" => Some(self.nodes[at as usize].plus).filter(|next| *next != ROOT),
            _ => self.child(at, level, self.hasher.hash_one(level)),
        }
    }

    /// The list of a filter, which is made when it is not there, and is about to change.
    fn list_mut(&mut self, filter: &str) -> &mut List<D> {
        self.version += 1;
        let mut at = ROOT;
        let mut multi = false;
        for level in topic::levels(filter) {
            if level == "#" {
                multi = true;
                continue;
            }
            at = match self.step(at, level) {
                Some(next) => next,
                None => self.grow(at, level),
            };
        }
        let ends = self.nodes[at as usize].ends.get_or_insert_default();
        let list = if multi { &mut ends.below } else { &mut ends.here };
        // The caller puts something in.
        self.filters += usize::from(list.is_empty());
        list
    }

    fn grow(&mut self, parent: u32, level: &str) -> u32 {
        let node = Node::new(parent, level);
        let next = self.free.pop().unwrap_or(self.nodes.len() as u32);
        match self.nodes.get_mut(next as usize) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        if level == "+" {
            self.nodes[parent as usize].plus = next;
        } else {
            self.nodes[parent as usize].children += 1;
            let (nodes, hasher) = (&self.nodes, &self.hasher);
            let hash = |&at: &u32| {
                let node = &nodes[at as usize];
                edge(node.parent, hasher.hash_one(&*node.level))
            };
            self.edges.insert_unique(hash(&next), next, hash);
        }
        next
    }

    fn remove(&mut self, filter: &str, key: u64) -> Changed<D> {
        let nothing = Changed { old: None, local: false };
        let mut at = ROOT;
        let mut multi = false;
        for level in topic::levels(filter) {
            if level == "#" {
                multi = true;
                continue;
            }
            match self.step(at, level) {
                Some(next) => at = next,
                None => return nothing,
            }
        }
        let hasher = self.hasher.clone();
        let Some(ends) = &mut self.nodes[at as usize].ends else { return nothing };
        let list = if multi { &mut ends.below } else { &mut ends.here };
        let before = list.local();
        let Some(old) = list.remove(key, &hasher) else { return nothing };
        self.version += 1;
        let local = before > 0 && list.local() == 0;
        self.filters -= usize::from(list.is_empty());
        if ends.here.is_empty() && ends.below.is_empty() {
            self.nodes[at as usize].ends = None;
            self.prune(at);
        }
        Changed { old: Some(old), local }
    }

    /// Gives back the branch that nobody uses any more.
    fn prune(&mut self, mut at: u32) {
        while at != ROOT {
            let node = &self.nodes[at as usize];
            if node.children > 0 || node.plus != ROOT || node.ends.is_some() {
                return;
            }
            let parent = node.parent;
            if *node.level == *"+" {
                self.nodes[parent as usize].plus = ROOT;
            } else {
                let hash = edge(parent, self.hasher.hash_one(&*node.level));
                if let Ok(entry) = self.edges.find_entry(hash, |&child| child == at) {
                    entry.remove();
                }
                self.nodes[parent as usize].children -= 1;
            }
            self.nodes[at as usize] = Node::new(ROOT, "");
            self.free.push(at);
            at = parent;
        }
    }

    /// As [`Routes::matches`].
    fn matches(&mut self, name: &str, into: &mut Vec<D>) -> usize {
        let mut levels = std::mem::take(&mut self.levels);
        let mut stack = std::mem::take(&mut self.stack);
        levels.clear();
        stack.clear();
        let mut start = 0;
        for level in topic::levels(name) {
            // A topic has at most 65,535 bytes.
            let end = start + level.len() as u32;
            levels.push((start, end, self.hasher.hash_one(level)));
            start = end + 1;
        }
        let reserved = name.starts_with('$');
        let mut lists = 0;
        let mut take = |list: &List<D>| {
            lists += usize::from(!list.is_empty());
            into.extend_from_slice(list.as_slice());
        };
        stack.push((ROOT, 0));
        while let Some((at, depth)) = stack.pop() {
            let node = &self.nodes[at as usize];
            let wild = depth > 0 || !reserved;
            if wild && let Some(ends) = &node.ends {
                // `a/#` matches `a` too: the parent level is included.
                take(&ends.below);
            }
            let Some(&(start, end, hash)) = levels.get(depth as usize) else {
                node.ends.iter().for_each(|ends| take(&ends.here));
                continue;
            };
            if wild && node.plus != ROOT {
                stack.push((node.plus, depth + 1));
            }
            if node.children > 0
                && let Some(next) = self.child(at, &name[start as usize..end as usize], hash)
            {
                stack.push((next, depth + 1));
            }
        }
        self.levels = levels;
        self.stack = stack;
        lists
    }

    fn filters(&self, has: impl Fn(&List<D>) -> bool, mut each: impl FnMut(&str)) {
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(ends) = &node.ends else { continue };
            for (list, multi) in [(&ends.here, false), (&ends.below, true)] {
                if has(list) {
                    each(&self.text(at as u32, multi));
                }
            }
        }
    }

    /// The filter that ends at a node.
    fn text(&self, mut at: u32, multi: bool) -> String {
        let mut levels = Vec::new();
        levels.extend(multi.then_some("#"));
        while at != ROOT {
            let node = &self.nodes[at as usize];
            levels.push(&*node.level);
            at = node.parent;
        }
        levels.reverse();
        levels.join("/")
    }
}

impl<D> Node<D> {
    fn new(parent: u32, level: &str) -> Self {
        Self { parent, plus: ROOT, children: 0, level: level.into(), ends: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct To(u64);

    impl Destination for To {
        fn key(&self) -> u64 {
            self.0
        }
        fn is_local(&self) -> bool {
            self.0.is_multiple_of(2)
        }
    }

    fn routes() -> Routes<To> {
        Routes::new(FixedState::with_seed(1))
    }

    fn found(routes: &mut Routes<To>, name: &str) -> Vec<u64> {
        let mut found = Vec::new();
        routes.matches(name, &mut found);
        let mut found: Vec<u64> = found.into_iter().map(|to| to.0).collect();
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
        /// Finds what comparing with every filter finds, also after removals and from the cache; says which filters have local
        /// destinations; and gives nodes back.
        #[test]
        fn equals_comparing_with_each(filters in prop::collection::vec(filter(), 0..24), names in prop::collection::vec(name(), 1..12), keep in any::<u32>()) {
            let mut routes = routes();
            let mut local = std::collections::BTreeMap::<&str, usize>::new();
            for (i, filter) in filters.iter().enumerate() {
                let changed = routes.insert(&filter.as_str().into(), To(i as u64));
                let count = local.entry(filter).or_default();
                *count += usize::from(i % 2 == 0);
                prop_assert_eq!(changed, Changed { old: None, local: *count == 1 && i % 2 == 0 });
            }
            let mut told = Vec::new();
            routes.local_filters(|f| told.push(f.to_owned()));
            told.sort_unstable();
            let expect: Vec<_> = local.iter().filter(|(_, n)| **n > 0).map(|(f, _)| (*f).to_owned()).collect();
            prop_assert_eq!(told, expect);
            for (i, filter) in filters.iter().enumerate() {
                let mut of = Vec::new();
                routes.filters_of(i as u64, |f| of.push(f.to_owned()));
                prop_assert_eq!(&of[..], std::slice::from_ref(filter));
            }
            let kept = |i: usize| keep & (1 << (i % 32)) != 0;
            for round in 0..2 {
                for name in names.iter().chain(&names) {
                    let expect: Vec<_> = (0..filters.len())
                        .filter(|&i| (round == 0 || kept(i)) && topic::matches(&filters[i], name))
                        .map(|i| i as u64)
                        .collect();
                    prop_assert_eq!(found(&mut routes, name), expect, "{}", name);
                }
                if round == 0 {
                    for (i, filter) in filters.iter().enumerate().filter(|(i, _)| !kept(*i)) {
                        prop_assert_eq!(routes.remove(filter, i as u64).old, Some(To(i as u64)));
                    }
                }
            }
            for (i, filter) in filters.iter().enumerate().filter(|(i, _)| kept(*i)) {
                prop_assert_eq!(routes.remove(filter, i as u64).old, Some(To(i as u64)));
            }
            prop_assert_eq!(routes.len(), 0);
            prop_assert_eq!(routes.trie.nodes.len(), routes.trie.free.len() + 1);
            prop_assert_eq!((routes.trie.edges.len(), routes.by_text.len()), (0, 0));
        }

        /// Long lists keep their index through any order of insertions and removals.
        #[test]
        fn long_lists(steps in prop::collection::vec((0_u64..100, any::<bool>()), 0..400)) {
            let mut routes = routes();
            let mut model = std::collections::BTreeSet::new();
            for (key, add) in steps {
                let old = if add {
                    let old = routes.insert(&"x/+".into(), To(key)).old;
                    prop_assert_eq!(old.is_none(), model.insert(key));
                    old
                } else {
                    let old = routes.remove("x/+", key).old;
                    prop_assert_eq!(old.is_some(), model.remove(&key));
                    old
                };
                prop_assert!(old.is_none_or(|to| to.0 == key));
                prop_assert_eq!(found(&mut routes, "x/y"), model.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
