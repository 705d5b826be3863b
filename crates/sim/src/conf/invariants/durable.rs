//! A transaction that was acknowledged is in the sequence of commits at the revision that was named, and stays
//! there; each takes effect at most once; one that was refused, or never handed to a leader, never does.

use std::collections::{BTreeMap, BTreeSet};
use stead_conf::{Committed, Revision};

/// The one sequence of commits, as the first node applied it, and what was said of it.
#[derive(Debug, Default)]
pub struct Acknowledged {
    sequence: BTreeMap<u64, String>,
    marks: BTreeMap<String, u64>,
    never: BTreeSet<String>,
    newest: u64,
}

impl Acknowledged {
    /// A node has applied a commit.
    pub fn committed(&mut self, event: &Committed) -> Result<(), String> {
        let (revision, mark) = (event.revision.0, &event.note);
        if let Some(known) = self.sequence.get(&revision) {
            if known != mark {
                return Err(format!("revision {revision} is transaction {mark} here and {known} elsewhere"));
            }
            return Ok(());
        }
        if self.never.contains(mark) {
            return Err(format!(
                "transaction {mark} took effect at {revision}, though its caller was told it never will"
            ));
        }
        if let Some(before) = self.marks.insert(mark.clone(), revision) {
            return Err(format!("transaction {mark} took effect twice, at {before} and {revision}"));
        }
        self.sequence.insert(revision, mark.clone());
        Ok(())
    }

    /// Which transaction is at a revision.
    pub fn writer(&self, revision: Revision) -> Result<u64, String> {
        // What the cluster was founded with no node has applied.
        let founding = (revision == Revision(1)).then_some(0);
        let known = self.sequence.get(&revision.0).and_then(|mark| mark.parse().ok()).or(founding);
        known.ok_or_else(|| format!("revision {revision} is seen, and no node has applied it"))
    }

    /// Where a transaction is.
    pub fn place(&self, mark: u64) -> Option<u64> {
        self.marks.get(&mark.to_string()).copied()
    }

    /// A caller was told that its transaction is committed.
    pub fn acknowledged(&mut self, mark: u64, revision: u64) -> Result<(), String> {
        self.newest = self.newest.max(revision);
        match self.marks.get(&mark.to_string()) {
            Some(at) if *at == revision => Ok(()),
            at => Err(format!("transaction {mark} was acknowledged at {revision}, but is at {at:?}")),
        }
    }

    /// A caller was told that its transaction has not and will not take effect.
    pub fn never(&mut self, mark: u64) -> Result<(), String> {
        let mark = mark.to_string();
        if let Some(at) = self.marks.get(&mark) {
            return Err(format!(
                "transaction {mark} took effect at {at}, and its caller is told that it did not"
            ));
        }
        self.never.insert(mark);
        Ok(())
    }

    /// At the end: what was acknowledged is there.
    pub fn survives(&self, node: u64, revision: u64) -> Result<(), String> {
        if revision < self.newest {
            return Err(format!(
                "node {node} is at revision {revision} after healing; {} was acknowledged",
                self.newest
            ));
        }
        Ok(())
    }
}
