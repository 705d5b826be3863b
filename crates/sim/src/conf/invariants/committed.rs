//! An entry that one node has applied at an index is the entry that every node applies there, for ever.

use std::collections::BTreeMap;
use stead_conf::CommittedEntry;

/// What was applied first at each index.
#[derive(Debug, Default)]
pub struct CommittedEntries(BTreeMap<u64, CommittedEntry>);

impl CommittedEntries {
    /// A node applies an entry.
    pub fn entry(&mut self, node: u64, index: u64, entry: &CommittedEntry) -> Result<(), String> {
        match self.0.get(&index) {
            None => {
                self.0.insert(index, entry.clone());
                Ok(())
            }
            Some(known) if known == entry => Ok(()),
            Some(known) => Err(format!(
                "a committed entry has changed: node {node} applies at {index} {entry:?}, not {known:?}"
            )),
        }
    }
}
