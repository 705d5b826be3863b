//! Each node sees each commit once and in order, or is told that it gets the whole tree anew.

use std::collections::BTreeMap;

/// What each node has seen last.
#[derive(Debug, Default)]
pub struct Watches(BTreeMap<u64, u64>);

impl Watches {
    /// A node begins, or gets the whole tree.
    pub fn reset(&mut self, node: u64, revision: u64) {
        self.0.insert(node, revision);
    }

    /// A node sees a commit.
    pub fn commit(&mut self, node: u64, revision: u64) -> Result<(), String> {
        let seen = self.0.insert(node, revision);
        match seen {
            Some(seen) if revision == seen + 1 => Ok(()),
            seen => Err(format!("node {node} sees commit {revision} after {seen:?}")),
        }
    }
}
