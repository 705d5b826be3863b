//! What is told of a commit: to scenarios by their events, and in a history's story in the words of docs/ha.md.

use super::store::{Running, Tree, Txn};
use super::world::World;
use crate::scenario::Kind;
use stead_ha::{ManagerState, NodeStatus};

impl World {
    /// Tells what was committed.
    pub fn tell_commit(&mut self, txn: &Txn, before: &Tree) {
        if self.tells {
            for line in lines(txn, &before.manager.0) {
                self.note(|| line);
            }
        }
        match txn {
            Txn::Recover { vmid, from, to, .. } => {
                self.recoveries += 1;
                self.tell_recovery(*vmid, from, to);
            }
            Txn::Lose(lost, ..) | Txn::Off(lost, _) => {
                self.offs += u32::from(matches!(txn, Txn::Off(..)));
                let lost = self.index(lost);
                self.tell(Kind::FenceRequest, None, lost, None);
            }
            Txn::Release { vmid, from, to, .. } => self.tell_move(*vmid, from, to),
            Txn::HandOver { vmid, from, to, .. } => {
                self.moves += 1;
                self.tell_move(*vmid, from, to);
                // From here on the source's copy is nothing that could be lost.
                if let Some(node) = self.index(from)
                    && let Some(copy) = self.nodes[node].copies.get_mut(vmid)
                {
                    copy.ran = false;
                }
            }
            Txn::Manager(state, ..) => self.tell_manager(&before.manager.0, state),
            _ => {}
        }
    }
}

fn lines(txn: &Txn, before: &ManagerState) -> Vec<String> {
    let one = |text: String| vec![text];
    match txn {
        Txn::Lose(node, ..) => one(format!("committed: {node} is lost")),
        Txn::Mark(node, ..) => one(format!("committed: {node} may hold a restart lease")),
        Txn::Unmark(node, _) => one(format!("committed: {node} holds no restart lease any more")),
        Txn::Off(node, _) => one(format!("committed: {node} is lost, and off")),
        Txn::Enter(node, ..) => one(format!("committed: {node} takes part (again)")),
        Txn::Recover { vmid, from, to, epoch, .. } => {
            one(format!("committed: guest {vmid} is recovered from {from} to {to}, epoch {}", epoch.next()))
        }
        Txn::Release { vmid, from, to, epoch } => {
            one(format!("committed: guest {vmid} goes stopped from {from} to {to}, epoch {}", epoch.next()))
        }
        Txn::HandOver { vmid, from, to, epoch, .. } => {
            one(format!("committed: guest {vmid} is handed over from {from} to {to}, epoch {}", epoch.next()))
        }
        Txn::Running { vmid, node, epoch, how, .. } => {
            let how = match how {
                Running::Armed(_) => "may run, and is armed",
                Running::Ended => "does not run",
            };
            one(format!("committed: guest {vmid} {how} on {node}, epoch {epoch}"))
        }
        Txn::Rewrite { vmid, node, .. } => one(format!("committed: guest {vmid} is taken back by {node}")),
        Txn::Settle(old) => one(format!("committed: no lease of the profile {old} is alive any more")),
        Txn::User(edit) => one(format!("committed, for a user: {edit}")),
        Txn::Manager(now, ..) => changes(before, now),
    }
}

fn changes(before: &ManagerState, now: &ManagerState) -> Vec<String> {
    let mut out = vec![];
    for (node, status) in &now.node_status {
        if before.node_status.get(node) != Some(status) {
            let word = match status {
                NodeStatus::Online => "online",
                NodeStatus::Maintenance => "in maintenance",
                NodeStatus::Unknown => "unknown",
                NodeStatus::Fence => "lost, and its services are recovered",
            };
            out.push(format!("HA: {node} is {word}"));
        }
    }
    for (sid, s) in &now.service_status {
        let old = before.service_status.get(sid);
        if old.is_none_or(|o| o.uid != s.uid || o.reason != s.reason) {
            let to = s.target.as_ref().map(|t| format!(" to {t}")).unwrap_or_default();
            out.push(format!("HA: {sid} {} on {}{to}: {}", s.state.as_str(), s.node, s.reason));
        }
    }
    let gone = before.service_status.keys().filter(|sid| !now.service_status.contains_key(sid));
    out.extend(gone.map(|sid| format!("HA: {sid} is no longer cared for")));
    out
}
