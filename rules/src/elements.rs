//! What a loop asks of the element in hand, read in one pass that finds the element's end as well.
//!
//! # Data
//! A slot for each node of the loop's paths, as places in the text of the whole array. The array was read before, so that its
//! elements are JSON and nested less than [`json::MAX_DEPTH`] deep: that bounds the recursion.
//!
//! # Invariant
//! Of members of one name the first counts, as everywhere; node 0 is the element itself.

use crate::json::{self, Found, JsonError, Kind};
use crate::paths::{NodeId, Paths, Slots};

/// The slots of one element after the other.
#[derive(Debug, Default)]
pub(crate) struct Elements {
    slots: Slots,
}

impl Elements {
    /// Reads the element that begins at `at`; where it ends.
    ///
    /// # Errors
    /// There is no JSON.
    #[inline]
    pub(crate) fn read(&mut self, paths: &Paths, text: &[u8], at: usize) -> Result<usize, JsonError> {
        self.slots.begin(paths);
        self.value(paths, text, at, 0)
    }

    /// What the element has at a node.
    #[inline]
    pub(crate) fn get(&self, node: NodeId) -> Option<Found> {
        self.slots.get(node)
    }

    /// As [`Slots::above`].
    pub(crate) fn above(&self, paths: &Paths, node: NodeId) -> Option<Found> {
        self.slots.above(paths, node)
    }

    /// Reads the value of a node that begins at `at`.
    #[inline]
    fn value(&mut self, paths: &Paths, text: &[u8], at: usize, node: NodeId) -> Result<usize, JsonError> {
        match text.get(at) {
            Some(b'{') if paths.has_keys(node) => self.members(paths, text, at, node),
            Some(b'[') if paths.has_elements(node) => self.items(paths, text, at, node),
            _ => {
                let found = json::value(text, at, 0)?;
                self.slots.put(node, found);
                Ok(found.end as usize)
            }
        }
    }

    fn members(
        &mut self,
        paths: &Paths,
        text: &[u8],
        start: usize,
        node: NodeId,
    ) -> Result<usize, JsonError> {
        let mut at = json::skip_space(text, start + 1);
        if text.get(at) != Some(&b'}') {
            loop {
                let (key, value_at) = json::key(text, at)?;
                at = match paths.child(node, text, key) {
                    Some(child) if self.slots.get(child).is_none() => {
                        self.value(paths, text, value_at, child)?
                    }
                    _ => json::skip_value(text, value_at, 0)?,
                };
                at = json::skip_space(text, at);
                match text.get(at) {
                    Some(b',') => at = json::skip_space(text, at + 1),
                    Some(b'}') => break,
                    _ => return Err(JsonError::Invalid),
                }
            }
        }
        self.slots.put(node, json::found(Kind::Object, start, at + 1));
        Ok(at + 1)
    }

    fn items(&mut self, paths: &Paths, text: &[u8], start: usize, node: NodeId) -> Result<usize, JsonError> {
        let mut at = json::skip_space(text, start + 1);
        if text.get(at) != Some(&b']') {
            for index in 0.. {
                at = match paths.element(node, index) {
                    Some(child) => self.value(paths, text, at, child)?,
                    None => json::skip_value(text, at, 0)?,
                };
                at = json::skip_space(text, at);
                match text.get(at) {
                    Some(b',') => at = json::skip_space(text, at + 1),
                    Some(b']') => break,
                    _ => return Err(JsonError::Invalid),
                }
            }
        }
        self.slots.put(node, json::found(Kind::Array, start, at + 1));
        Ok(at + 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::paths::{PathStep, Scan};
    use proptest::prelude::*;

    /// Where elements of an array begin and end, and what each has at the nodes.
    fn read(paths: &Paths, nodes: &[NodeId], text: &[u8]) -> Vec<Vec<Option<Vec<u8>>>> {
        let mut elements = Elements::default();
        let ends: Vec<usize> = json::items(text).map(|(_, found)| found.end as usize).collect();
        let starts = json::items(text).map(|(_, found)| found.start as usize);
        starts
            .zip(ends)
            .map(|(start, end)| {
                assert_eq!(elements.read(paths, text, start), Ok(end));
                nodes.iter().map(|node| Some(elements.get(*node)?.of(text).to_vec())).collect()
            })
            .collect()
    }

    /// The same by the scan of messages, of each element alone.
    fn scanned(paths: &Paths, nodes: &[NodeId], text: &[u8]) -> Vec<Vec<Option<Vec<u8>>>> {
        json::items(text)
            .map(|(_, element)| {
                let text = element.of(text);
                let mut scan = Scan::default();
                scan.begin(paths);
                nodes
                    .iter()
                    .map(|node| Some(scan.find(paths, text, *node).unwrap()?.of(text).to_vec()))
                    .collect()
            })
            .collect()
    }

    fn json_text() -> impl Strategy<Value = String> {
        let leaf =
            prop::sample::select(vec!["1", "-2.5e3", "\"x\"", "\"\\u0061\"", "null", "{}", "[ ]", "true"]);
        leaf.prop_map(str::to_owned).prop_recursive(4, 24, 4, |inner| {
            let key = prop::sample::select(vec!["a", "b", "long name", "\\u0061"]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| format!("[{}]", items.join(" , "))),
                prop::collection::vec((key, inner), 0..4).prop_map(|members| {
                    let member = |(key, value): &(&str, String)| format!("\"{key}\":{value}");
                    format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    fn step() -> impl Strategy<Value = PathStep> {
        prop_oneof![
            prop::sample::select(vec!["a", "b", "long name"]).prop_map(|key| PathStep::Key(key.to_owned())),
            (0u32..3).prop_map(PathStep::Element),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_scan_of_messages(
            items in prop::collection::vec(json_text(), 0..5),
            asked in prop::collection::vec(prop::collection::vec(step(), 0..4), 1..5),
        ) {
            let mut paths = Paths::default();
            let nodes: Vec<NodeId> = asked.iter().map(|path| paths.insert(path)).collect();
            let text = format!("[ {}]", items.join(" ,"));
            let text = text.as_bytes();
            prop_assert_eq!(read(&paths, &nodes, text), scanned(&paths, &nodes, text));
        }
    }
}
