//! There is at most one leader in a term.

use std::collections::BTreeMap;
use stead_conf::RaftStatus;

/// Who led in each term.
#[derive(Debug, Default)]
pub struct Leaders(BTreeMap<u64, u64>);

impl Leaders {
    /// A node's status has changed.
    pub fn status(&mut self, status: &RaftStatus) -> Result<(), String> {
        if !status.is_leader {
            return Ok(());
        }
        let known = *self.0.entry(status.term).or_insert(status.id.0);
        if known == status.id.0 {
            return Ok(());
        }
        Err(format!("nodes {known} and {} both lead in term {}", status.id, status.term))
    }

    /// How many terms had a leader.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}
