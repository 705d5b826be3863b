//! There is at most one leader in a term, and it is nobody who is held.

use std::collections::{BTreeMap, BTreeSet};
use stead_conf::RaftStatus;

/// Who led in each term, and who is not to.
#[derive(Debug, Default)]
pub struct Leaders {
    terms: BTreeMap<u64, u64>,
    held: BTreeSet<u64>,
}

impl Leaders {
    /// A node is to lead nothing, or may.
    pub fn hold(&mut self, node: u64, hold: bool) {
        if hold {
            self.held.insert(node);
        } else {
            self.held.remove(&node);
        }
    }

    /// A node's status has changed.
    pub fn status(&mut self, status: &RaftStatus) -> Result<(), String> {
        if !status.is_leader {
            return Ok(());
        }
        if self.held.contains(&status.id.0) {
            return Err(format!("node {} is held, and leads in term {}", status.id, status.term));
        }
        let known = *self.terms.entry(status.term).or_insert(status.id.0);
        if known == status.id.0 {
            return Ok(());
        }
        Err(format!("nodes {known} and {} both lead in term {}", status.id, status.term))
    }

    /// How many terms had a leader.
    pub fn count(&self) -> u64 {
        self.terms.len() as u64
    }
}
