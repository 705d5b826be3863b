//! What must hold after every event, one file each.

pub mod agree;
pub mod clients;
pub mod committed;
pub mod durable;
pub mod leaders;
pub mod progress;
pub mod reads;
pub mod watches;

use super::Figures;
use stead_conf::{Committed, Machine, RaftStatus};

/// All of them, with what they remember.
#[derive(Debug, Default)]
pub struct Invariants {
    /// Committed entries never change.
    pub committed: committed::CommittedEntries,
    /// What clients were answered can have come of one copy.
    pub clients: clients::Clients,
    /// Applied states agree.
    pub agree: agree::States,
    /// What was acknowledged stays, once.
    pub durable: durable::Acknowledged,
    /// One leader a term.
    pub leaders: leaders::Leaders,
    /// Reads are not stale.
    pub reads: reads::Reads,
    /// Watches see each commit once, in order.
    pub watches: watches::Watches,
    /// What happened in the run.
    pub figures: Figures,
}

impl Invariants {
    /// A node begins with what its disk has.
    pub fn begins(&mut self, node: u64, machine: &Machine) -> Result<(), String> {
        self.watches.reset(node, machine.tree().revision().0);
        let index = machine.applied();
        if index == 0 { Ok(()) } else { self.agree.state(node, index, machine) }
    }

    /// A node has applied a commit.
    pub fn commit(&mut self, node: u64, event: &Committed) -> Result<(), String> {
        self.watches.commit(node, event.revision.0)?;
        self.durable.committed(event)?;
        self.reads.applied(event.revision.0);
        Ok(())
    }

    /// A node's status has changed.
    pub fn status(&mut self, status: &RaftStatus) -> Result<(), String> {
        if let Some(other) = status.diverged {
            return Err(format!("node {} finds that node {other} differs", status.id));
        }
        self.leaders.status(status)
    }
}
