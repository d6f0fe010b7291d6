//! The payload paths of a whole rule set, and the one lazy scan of a message that answers them.
//!
//! [`Paths`] is a trie: node 0 is the payload, an edge a key or an index from 0. A rule asks for a node; [`Scan`]
//! walks the payload from where it stopped last, descends only where the trie does, validates and skips the rest, and
//! stops as soon as the node is known. What it meets for other rules on the way it keeps, so a message is read at
//! most once however many rules ask.
//!
//! Answers do not depend on what other rules asked: the first of duplicate keys counts, a value found stays valid
//! whatever follows it, a node is missing as soon as the container that could hold it has ended, and only a node that
//! is still open when the text breaks is [`JsonError::Invalid`].
//!
//! A slot per node and a frame per open container, both reused; a generation number empties the slots.

use crate::json::{self, Found, JsonError, Kind, MAX_DEPTH};

/// A path's node.
pub(crate) type NodeId = u32;

/// One step of a static path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathStep {
    Key(String),
    /// From 0.
    Element(u32),
}

#[derive(Debug, Clone, Default)]
struct Node {
    parent: NodeId,
    keys: Vec<(Box<str>, NodeId)>,
    /// [`json::short`] of each key, and its child again.
    shorts: Vec<(u64, NodeId)>,
    elements: Vec<(u32, NodeId)>,
}

/// The trie.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    nodes: Vec<Node>,
}

impl Default for Paths {
    fn default() -> Self {
        Paths { nodes: vec![Node::default()] }
    }
}

impl Paths {
    /// The node of a path, made if it is new.
    pub(crate) fn insert(&mut self, path: &[PathStep]) -> NodeId {
        let mut at: NodeId = 0;
        for step in path {
            let fresh = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let node = &mut self.nodes[at as usize];
            let child = match step {
                PathStep::Key(key) => match node.keys.binary_search_by(|(k, _)| (**k).cmp(key)) {
                    Ok(i) => node.keys[i].1,
                    Err(i) => {
                        node.keys.insert(i, (key.as_str().into(), fresh));
                        node.shorts.insert(i, (json::short(key), fresh));
                        fresh
                    }
                },
                PathStep::Element(index) => match node.elements.binary_search_by_key(index, |e| e.0) {
                    Ok(i) => node.elements[i].1,
                    Err(i) => {
                        node.elements.insert(i, (*index, fresh));
                        fresh
                    }
                },
            };
            if child == fresh {
                self.nodes.push(Node { parent: at, ..Node::default() });
            }
            at = child;
        }
        at
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether somebody asks for a member of what is at `node`.
    #[inline]
    pub(crate) fn has_keys(&self, node: NodeId) -> bool {
        !self.nodes[node as usize].keys.is_empty()
    }

    /// Whether somebody asks for an element of what is at `node`.
    #[inline]
    pub(crate) fn has_elements(&self, node: NodeId) -> bool {
        !self.nodes[node as usize].elements.is_empty()
    }

    /// The node called `key`, whose content is in `text`, under `node`.
    #[inline(always)]
    pub(crate) fn child(&self, node: NodeId, text: &[u8], key: json::Key) -> Option<NodeId> {
        let Node { keys, shorts, .. } = &self.nodes[node as usize];
        if keys.len() <= 8 {
            return match key.short {
                0 => {
                    keys.iter().find(|(name, _)| json::key_is(text, key.found, name)).map(|(_, child)| *child)
                }
                short => shorts.iter().find(|(known, _)| *known == short).map(|(_, child)| *child),
            };
        }
        let name = json::content(text, key.found);
        keys.binary_search_by(|(k, _)| (**k).cmp(&name)).ok().map(|i| keys[i].1)
    }

    /// The node of this element, from 0, under `node`.
    #[inline]
    pub(crate) fn element(&self, node: NodeId, index: u32) -> Option<NodeId> {
        let elements = &self.nodes[node as usize].elements;
        elements.binary_search_by_key(&index, |e| e.0).ok().map(|i| elements[i].1)
    }

    /// Whether `node` is `below` or one of its ancestors.
    #[inline]
    fn covers(&self, node: NodeId, below: NodeId) -> bool {
        let mut at = below;
        loop {
            if at == node {
                return true;
            }
            if at == 0 {
                return false;
            }
            at = self.nodes[at as usize].parent;
        }
    }
}

/// What was found at each node of a text.
#[derive(Debug)]
pub(crate) struct Slots {
    generation: u32,
    /// By node; those of other generations are empty.
    slots: Vec<(u32, Found)>,
}

impl Default for Slots {
    fn default() -> Self {
        Slots { generation: 1, slots: Vec::new() }
    }
}

impl Slots {
    /// Another text comes, of whom these paths are asked.
    #[inline]
    pub(crate) fn begin(&mut self, paths: &Paths) {
        const EMPTY: (u32, Found) = (0, Found { kind: Kind::Null, start: 0, end: 0 });
        if self.generation == u32::MAX {
            self.slots.clear();
            self.generation = 0;
        }
        self.generation += 1;
        if self.slots.len() != paths.len() {
            self.slots.resize(paths.len(), EMPTY);
        }
    }

    #[inline]
    pub(crate) fn get(&self, node: NodeId) -> Option<Found> {
        self.slots.get(node as usize).filter(|slot| slot.0 == self.generation).map(|slot| slot.1)
    }

    #[inline]
    pub(crate) fn put(&mut self, node: NodeId, found: Found) {
        let generation = self.generation;
        if let Some(slot) = self.slots.get_mut(node as usize) {
            *slot = (generation, found);
        }
    }

    /// What was found where the way to a node ended before it.
    pub(crate) fn above(&self, paths: &Paths, node: NodeId) -> Option<Found> {
        let mut at = node;
        while at != 0 {
            at = paths.nodes[at as usize].parent;
            if let Some(found) = self.get(at) {
                return Some(found);
            }
        }
        None
    }
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    node: NodeId,
    start: u32,
    /// Elements begun so far.
    index: u32,
    object: bool,
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    /// A value, for this node.
    Value(NodeId),
    /// The first item of the top frame, or its end.
    First,
    /// A comma or the end of the top frame.
    After,
}

/// The scan of the current message.
#[derive(Debug)]
pub(crate) struct Scan {
    slots: Slots,
    frames: Vec<Frame>,
    at: usize,
    expect: Expect,
    failed: Option<JsonError>,
}

impl Default for Scan {
    fn default() -> Self {
        Scan { slots: Slots::default(), frames: Vec::new(), at: 0, expect: Expect::Value(0), failed: None }
    }
}

impl Scan {
    /// Forgets the message; `paths` are those of the next one's rules.
    pub(crate) fn begin(&mut self, paths: &Paths) {
        self.slots.begin(paths);
        self.frames.clear();
        self.at = 0;
        self.expect = Expect::Value(0);
        self.failed = None;
    }

    /// What is asked from here on cannot be read.
    pub(crate) fn fail(&mut self, error: JsonError) {
        self.failed = Some(error);
    }

    /// The value at `node` in `text`; `None` when the text has none.
    #[inline]
    pub(crate) fn find(
        &mut self,
        paths: &Paths,
        text: &[u8],
        node: NodeId,
    ) -> Result<Option<Found>, JsonError> {
        if let Some(found) = self.slots.get(node) {
            return Ok(Some(found));
        }
        if self.slots.above(paths, node).is_some() {
            return Ok(None);
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.run(paths, text, node) {
            Ok(()) => Ok(self.slots.get(node)),
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    /// As [`Slots::above`].
    pub(crate) fn above(&self, paths: &Paths, node: NodeId) -> Option<Found> {
        self.slots.above(paths, node)
    }

    /// Goes on until `want`, or something that holds it, is recorded.
    fn run(&mut self, paths: &Paths, text: &[u8], want: NodeId) -> Result<(), JsonError> {
        let mut at = self.at;
        if !json::is_readable(text) {
            return Err(JsonError::Invalid);
        }
        loop {
            // Where the next item's value begins, and its node.
            let (node, found) = match self.expect {
                Expect::Value(node) => {
                    at = json::skip_space(text, at);
                    let known = &paths.nodes[node as usize];
                    let descend = match text.get(at) {
                        Some(b'{') => !known.keys.is_empty(),
                        Some(b'[') => !known.elements.is_empty(),
                        _ => false,
                    };
                    if descend {
                        if self.frames.len() >= MAX_DEPTH {
                            return Err(JsonError::TooDeep);
                        }
                        let start = at as u32;
                        let object = text[at] == b'{';
                        self.frames.push(Frame { node, start, index: 0, object });
                        self.expect = Expect::First;
                        at += 1;
                        continue;
                    }
                    let found = json::value(text, at, self.frames.len())?;
                    at = found.end as usize;
                    (node, found)
                }
                Expect::First | Expect::After => {
                    let first = matches!(self.expect, Expect::First);
                    let depth = self.frames.len();
                    let Some(frame) = self.frames.last_mut() else { return Ok(()) };
                    at = json::skip_space(text, at);
                    let closes = match text.get(at) {
                        Some(b'}') => frame.object,
                        Some(b']') => !frame.object,
                        Some(b',') if !first => {
                            at = json::skip_space(text, at + 1);
                            false
                        }
                        Some(_) if first => false,
                        _ => return Err(JsonError::Invalid),
                    };
                    if closes {
                        at += 1;
                        let kind = if frame.object { Kind::Object } else { Kind::Array };
                        let closed = (frame.node, json::found(kind, frame.start as usize, at));
                        self.frames.pop();
                        closed
                    } else {
                        // Members that nobody asks for are passed in this loop.
                        let child = loop {
                            let child = if frame.object {
                                let (key, value_at) = json::key(text, at)?;
                                at = value_at;
                                paths.child(frame.node, text, key)
                            } else {
                                let index = frame.index;
                                frame.index += 1;
                                paths.element(frame.node, index)
                            };
                            if child.is_some() {
                                break child;
                            }
                            at = json::skip_value(text, at, depth)?;
                            if text.get(at) != Some(&b',') {
                                break None;
                            }
                            at = json::skip_space(text, at + 1);
                        };
                        self.expect = match child {
                            None => Expect::After,
                            Some(child) if self.slots.get(child).is_none() => Expect::Value(child),
                            // A second member of this name: the first one counts.
                            Some(_) => {
                                at = json::skip_value(text, at, depth)?;
                                Expect::After
                            }
                        };
                        continue;
                    }
                }
            };
            self.expect = Expect::After;
            if node == 0 && json::skip_space(text, at) != text.len() {
                return Err(JsonError::Invalid);
            }
            self.slots.put(node, found);
            if node == 0 || paths.covers(node, want) {
                self.at = at;
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    fn parse(path: &str) -> Vec<PathStep> {
        path.split('.')
            .filter(|s| !s.is_empty())
            .map(|s| match s.parse() {
                Ok(n) => PathStep::Element(n),
                Err(_) => PathStep::Key(s.to_owned()),
            })
            .collect()
    }

    /// What each path gives, asked in order.
    fn ask(text: &str, asked: &[&str]) -> Vec<String> {
        let mut paths = Paths::default();
        let nodes: Vec<NodeId> = asked.iter().map(|p| paths.insert(&parse(p))).collect();
        let mut scan = Scan::default();
        scan.begin(&paths);
        nodes
            .iter()
            .map(|&n| match scan.find(&paths, text.as_bytes(), n) {
                Ok(Some(f)) => String::from_utf8(f.of(text.as_bytes()).to_vec()).unwrap(),
                Ok(None) => "-".to_owned(),
                Err(e) => format!("{e:?}"),
            })
            .collect()
    }

    #[test]
    fn finds_stops_and_says_why_not() {
        for (text, asked, expected) in [
            (
                r#"{"a":1,"b":{"c":[10,20,{"d":"x"}]}}"#,
                &["b.c.2.d", "a", "b.c.1", "b.x", "q"][..],
                "\"x\" 1 20 - -",
            ),
            // The first of duplicates, also inside.
            (r#"{"a":{"x":1},"a":{"y":2},"b":3}"#, &["a.y", "a.x", "b"], "- 1 3"),
            // What was found before the break stays; what was still open is invalid; what had ended is missing.
            (r#"{"a":1,"b":{} oops"#, &["a", "z", "b.c", "a.q"], "1 Invalid - -"),
            ("{\"a\":1} x", &["a", "z"], "1 Invalid"),
            ("5", &["a"], "-"),
            ("5 6", &["a"], "Invalid"),
            ("", &["a"], "Invalid"),
            ("[1,[2,3]]", &["1.1", "0", "7", "a"], "3 1 - -"),
            (r#"{"\u0061":7}"#, &["a"], "7"),
            ("{\"a\":01}", &["a"], "Invalid"),
            ("{\"a\":\"\\ud800\"}", &["a"], "Invalid"),
            ("[,1]", &["0"], "Invalid"),
            ("[1,]", &["1"], "Invalid"),
            ("{\"b\":[1,],\"a\":1}", &["a"], "Invalid"),
            ("{\"b\":{,},\"a\":1}", &["a"], "Invalid"),
            ("{\"b\":[],\"c\":{ },\"d\":[ [ ] ],\"a\":1}", &["a"], "1"),
        ] {
            assert_eq!(ask(text, asked).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{{\"b\":{}{},\"a\":1}}", "[".repeat(n), "]".repeat(n));
        assert_eq!(ask(&nested(126), &["a"]), ["1"]);
        assert_eq!(ask(&nested(127), &["a"]), ["TooDeep"]);
        assert!(serde_json::from_str::<Value>(&nested(126)).is_ok());
        assert_eq!(ask(&"[".repeat(1_000_000), &["a"]), ["TooDeep"]);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9f64).prop_map(Value::from),
            "[a-c\\\\\"\u{e9}\u{1F600}\n]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec(("[a-d]{1,2}", inner), 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        /// Whatever path is read, in whatever order, equals what serde_json's parse gives.
        #[test]
        fn agrees_with_serde_json(
            json in any_json(),
            asked in proptest::collection::vec("([a-d]|[0-3])(\\.([a-d]|[0-3])){0,3}", 1..6),
            pretty in any::<bool>(),
        ) {
            let text = if pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) };
            let text = text.unwrap();
            // Read back: without its `float_roundtrip`, serde_json's own reading of a float may be an ulp off.
            let json: Value = serde_json::from_str(&text).unwrap();
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            for (path, got) in asked.iter().zip(ask(&text, &asked)) {
                let mut at = Some(&json);
                for step in parse(path) {
                    at = match step {
                        PathStep::Key(k) => at.and_then(|v| v.as_object()?.get(&k)),
                        PathStep::Element(i) => at.and_then(|v| v.as_array()?.get(i as usize)),
                    };
                }
                match at {
                    None => prop_assert_eq!(got, "-"),
                    Some(v) => prop_assert_eq!(&serde_json::from_str::<Value>(&got).unwrap(), v),
                }
            }
        }

        /// A text is JSON for the scan exactly when it is for serde_json (whose numbers must fit a float).
        #[test]
        fn accepts_what_serde_json_accepts(text in "[\\[\\]{},:\"a0-9.eE+\\-tfn ul\\\\]{0,16}") {
            let ours = json::document(text.as_bytes()).is_ok();
            let theirs = serde_json::from_str::<Value>(&text);
            match theirs {
                Ok(_) => prop_assert!(ours, "{}", text),
                Err(e) => prop_assert!(!ours || e.to_string().contains("out of range"), "{}: {}", text, e),
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..200) {
            let mut paths = Paths::default();
            let nodes = [paths.insert(&parse("a.b")), paths.insert(&parse("a.0.c")), paths.insert(&parse("b"))];
            let good = br#"{"a":[{"c":"\ud83d\ude00"}],"x":{"y":[1.5e3,null,true]},"b":"z"}"#;
            for text in [&bytes[..], &good[..cut.min(good.len())]] {
                let mut scan = Scan::default();
                scan.begin(&paths);
                for n in nodes {
                    let _ = scan.find(&paths, text, n);
                }
                let _ = json::items(text).count();
                let _ = json::element(text, -1);
            }
        }
    }
}
