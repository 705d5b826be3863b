//! Nodes that have applied the same index are in the same state: trees by fingerprint, and from time to time the
//! whole encoded state, history and sessions included.

use std::collections::BTreeMap;
use stead_conf::{Machine, StateHash};

/// How often the whole state is compared, in entries.
const WHOLE: u64 = 23;

/// The state at each index.
#[derive(Debug, Default)]
pub struct States {
    trees: BTreeMap<u64, StateHash>,
    whole: BTreeMap<u64, Vec<u8>>,
}

impl States {
    /// A node has reached an index.
    pub fn state(&mut self, node: u64, index: u64, machine: &Machine) -> Result<(), String> {
        let hash = machine.hash();
        let known = *self.trees.entry(index).or_insert(hash);
        if known != hash {
            return Err(format!("states differ at {index}: node {node} has {hash}, another had {known}"));
        }
        if !index.is_multiple_of(WHOLE) {
            return Ok(());
        }
        let image = machine.encode().map_err(|error| error.to_string())?;
        if *self.whole.entry(index).or_insert_with(|| image.clone()) != image {
            return Err(format!("whole states differ at {index} on node {node}, though the trees do not"));
        }
        Ok(())
    }
}
