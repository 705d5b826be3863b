//! Users' changes: made one after the other, where there is a leader that can.

use super::config::Edit;
use super::store::Txn;
use super::world::{Event, World};
use std::time::Duration;

/// How often users try to make changes for which there is no leader, or of which they don't know what has come.
pub(super) const RETRY: Duration = Duration::from_millis(200);

impl World {
    /// A user wants this: it is committed where there is a leader that can, now or later.
    pub fn edit(&mut self, edit: Edit) {
        self.edits.push_back(edit);
        self.commit_edits();
    }

    /// Commits what users wait for, where there is a leader that can.
    pub fn commit_edits(&mut self) {
        if self.edits.is_empty() {
            return;
        }
        let leader = (0..self.nodes.len()).find(|n| self.leads(*n) == Some(self.store.term));
        let Some(leader) = leader.filter(|n| self.has_majority(*n)) else {
            return self.after(RETRY, Event::Edits);
        };
        if self.real.is_some() {
            return self.propose_edit(leader);
        }
        while let Some(edit) = self.edits.pop_front() {
            let txn = Txn::User(edit.clone());
            let index = if self.is_untrue(&edit) { None } else { self.store.commit(&txn) };
            if let Some(index) = index {
                self.nodes[leader].applied = index;
                self.committed(&txn);
                self.edited(leader, &edit);
            }
        }
    }

    /// The operator has looked: what is said is true.
    pub fn is_untrue(&self, edit: &Edit) -> bool {
        matches!(edit, Edit::Off(n) if self.index(n).is_none_or(|n| self.nodes[n].on))
    }
}
