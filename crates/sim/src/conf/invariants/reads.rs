//! After a barrier the local tree holds all that had been applied anywhere when the barrier was asked for. A
//! confirmation of leadership is never of an older term than one given before it was asked for.

/// The newest there was.
#[derive(Debug, Default)]
pub struct Reads {
    revision: u64,
    term: u64,
}

impl Reads {
    /// A node has applied a commit.
    pub fn applied(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// The newest revision applied anywhere up to now.
    pub fn newest_revision(&self) -> u64 {
        self.revision
    }

    /// The newest term confirmed up to now.
    pub fn newest_term(&self) -> u64 {
        self.term
    }

    /// A barrier was answered.
    pub fn barrier(&self, node: u64, newest_then: u64, here: u64) -> Result<(), String> {
        if here < newest_then {
            return Err(format!(
                "stale read: a barrier on node {node} was answered at revision {here}; {newest_then} was committed before it"
            ));
        }
        Ok(())
    }

    /// A leadership was confirmed.
    pub fn confirmed(&mut self, node: u64, newest_then: u64, term: u64) -> Result<(), String> {
        if term < newest_then {
            return Err(format!(
                "node {node} was confirmed in term {term}; term {newest_then} was before it was asked"
            ));
        }
        self.term = self.term.max(term);
        Ok(())
    }
}
