//! From method and path to an endpoint: a trie over segments.

use super::Services;
use super::endpoint::{Handler, Route};
use super::params::Raw;
use std::collections::BTreeMap;
use std::sync::Arc;

/// All endpoints over services `S`.
pub struct Registry<S> {
    endpoints: Vec<Arc<dyn Handler<S>>>,
    root: Node,
}

impl<S> Clone for Registry<S> {
    fn clone(&self) -> Self {
        Self { endpoints: self.endpoints.clone(), root: self.root.clone() }
    }
}

#[derive(Debug, Clone, Default)]
struct Node {
    literal: BTreeMap<String, Node>,
    capture: Option<(String, Box<Node>)>,
    /// A last capture that takes all that is left.
    tail: Option<(String, BTreeMap<&'static str, usize>)>,
    methods: BTreeMap<&'static str, usize>,
}

/// The one capture that may contain slashes.
const TAIL: &str = "volume";

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self { endpoints: vec![], root: Node::default() }
    }
}

impl<S: Services> Registry<S> {
    /// Adds an endpoint. One that was added before at the same place is replaced.
    #[must_use]
    pub fn with(mut self, handler: impl Handler<S> + 'static) -> Self {
        let route = handler.meta().route;
        let at = self.endpoints.len();
        self.endpoints.push(Arc::new(handler));
        self.root.insert(route, at);
        self
    }

    /// Every endpoint, in the order of their addition.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Handler<S>>> {
        self.endpoints.iter()
    }

    /// Finds an endpoint, and what its path captures. Segments are still percent-encoded.
    pub fn find(&self, method: &str, path: &str) -> Option<(&Arc<dyn Handler<S>>, Raw)> {
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let mut captured = vec![];
        let at = self.root.find(method, &segments, &mut captured)?;
        let mut raw = Raw::default();
        for (name, value) in captured {
            raw.add(name, value);
        }
        Some((self.endpoints.get(at)?, raw))
    }

    /// The literal names right below a path's pattern: what an index lists.
    pub fn children(&self, pattern: &str) -> Vec<String> {
        let mut node = &self.root;
        for part in pattern.split('/').filter(|s| !s.is_empty()) {
            let next = if part.starts_with('{') {
                node.capture.as_ref().map(|(_, n)| n.as_ref())
            } else {
                node.literal.get(part)
            };
            match next {
                Some(n) => node = n,
                None => return vec![],
            }
        }
        node.literal.keys().cloned().collect()
    }
}

impl Node {
    fn insert(&mut self, route: Route, at: usize) {
        let mut node = self;
        let segments: Vec<&str> = route.path.split('/').filter(|s| !s.is_empty()).collect();
        for (i, segment) in segments.iter().enumerate() {
            let Some(name) = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) else {
                node = node.literal.entry((*segment).to_owned()).or_default();
                continue;
            };
            if name == TAIL && i + 1 == segments.len() {
                let (_, methods) = node.tail.get_or_insert_with(|| (name.to_owned(), BTreeMap::new()));
                methods.insert(route.method, at);
                return;
            }
            node = &mut node.capture.get_or_insert_with(|| (name.to_owned(), Box::default())).1;
        }
        node.methods.insert(route.method, at);
    }

    fn find(&self, method: &str, rest: &[&str], captured: &mut Vec<(String, String)>) -> Option<usize> {
        let Some((first, below)) = rest.split_first() else { return self.methods.get(method).copied() };
        let decoded = decode(first);
        if let Some(hit) = self.literal.get(&decoded).and_then(|n| n.find(method, below, captured)) {
            return Some(hit);
        }
        if let Some((name, node)) = &self.capture {
            let depth = captured.len();
            captured.push((name.clone(), decoded));
            if let Some(hit) = node.find(method, below, captured) {
                return Some(hit);
            }
            captured.truncate(depth);
        }
        let (name, methods) = self.tail.as_ref()?;
        let hit = methods.get(method)?;
        let whole: Vec<String> = rest.iter().map(|s| decode(s)).collect();
        captured.push((name.clone(), whole.join("/")));
        Some(*hit)
    }
}

/// Undoes percent-encoding. What is not UTF-8 afterwards becomes the replacement character.
pub fn decode(text: &str) -> String {
    let b = text.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        let hex = (b[i] == b'%').then(|| text.get(i + 1..i + 3).and_then(hex_byte));
        match hex.flatten() {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(b[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex_byte(two: &str) -> Option<u8> {
    // `from_str_radix` alone would take a sign.
    two.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(two, 16).ok()).flatten()
}

/// Reads `a=b&c=d`.
pub fn read_form(text: &str, raw: &mut Raw) {
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |t: &str| decode(&t.replace('+', " "));
        raw.add(plain(name), plain(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone_and_broken_one_left_alone() {
        assert_eq!(decode("a%20b%2Fc"), "a b/c");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%+1%C3%A4"), "%zz%+1ä");
        assert_eq!(decode("%ä"), "%ä");
    }

    #[test]
    fn a_form_keeps_repeated_names() {
        let mut raw = Raw::default();
        read_form("a=1&b=x+y%2B&a=2&c", &mut raw);
        let mut expected = Raw::default();
        for (n, v) in [("a", "1"), ("b", "x y+"), ("a", "2"), ("c", "")] {
            expected.add(n, v);
        }
        assert_eq!(raw, expected);
    }
}
