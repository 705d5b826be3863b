//! The configuration as a linearizable log, of which each node has applied a beginning.

use super::config::{Config, Edit};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use stead_ha::ManagerState;
use stead_model::{BootId, Epoch, NodeName, NodeState, Ownership, RequestedState, ServiceId, Vmid};

/// What is committed.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Each node's state.
    pub nodes: BTreeMap<NodeName, NodeState>,
    /// Each guest's owner.
    pub owners: BTreeMap<Vmid, Ownership>,
    /// The HA manager's state, and how often it was written.
    pub manager: (Arc<ManagerState>, u64),
    /// What users want.
    pub config: Rc<Config>,
}

impl Tree {
    /// Whether HA has the guest, so that the fence process is to guard it. It does so while HA is disarmed too: what is
    /// guarded can be recovered once HA is armed again, whatever became of its node.
    pub fn is_guarded(&self, vmid: Vmid) -> bool {
        let Some(own) = self.owners.get(&vmid) else { return false };
        let resource = self.config.resources.get(&ServiceId { kind: own.kind, vmid });
        resource.is_some_and(|r| r.state != RequestedState::Ignored)
    }
}

/// A change with its precondition.
#[derive(Debug, Clone)]
pub enum Txn {
    /// The node is lost, if it is a member by that boot.
    Lose(NodeName, BootId),
    /// The node takes part by that boot, if its record is still as seen.
    Enter(NodeName, BootId, NodeState),
    /// The guest moves from a lost node to another, under the next epoch. The flag plants that the loss is not checked.
    Recover { vmid: Vmid, from: NodeName, to: NodeName, epoch: Epoch, unlock: bool, unchecked: bool },
    /// The owner gives a guest to another node: one that does not run, or (`live`) one that has moved while it ran.
    Release { vmid: Vmid, from: NodeName, to: NodeName, epoch: Epoch, live: bool },
    /// The owner may be running the guest, and guards it, or is not any more.
    Running { vmid: Vmid, node: NodeName, epoch: Epoch, running: bool, armed: bool },
    /// The manager's state, over the one that it read, without the requests that it has taken or refused.
    Manager(Arc<ManagerState>, u64, Vec<String>),
    /// A user's change.
    User(Edit),
}

/// The log, and who was elected last.
#[derive(Debug)]
pub struct Store {
    log: Vec<Rc<Tree>>,
    /// The latest term with a leader.
    pub term: u64,
}

impl Store {
    /// A store with one entry.
    pub fn new(first: Tree) -> Self {
        Self { log: vec![Rc::new(first)], term: 0 }
    }

    /// The last index.
    pub fn last(&self) -> usize {
        self.log.len() - 1
    }

    /// The tree as of an index.
    pub fn at(&self, index: usize) -> Rc<Tree> {
        self.log[index].clone()
    }

    /// What is committed now: for the invariants, and for who has just been elected.
    pub fn newest(&self) -> &Tree {
        &self.log[self.last()]
    }

    /// Appends the change if its precondition holds. Returns the index.
    pub fn commit(&mut self, txn: &Txn) -> Option<usize> {
        let mut tree = self.newest().clone();
        if !apply(&mut tree, txn) {
            return None;
        }
        self.log.push(Rc::new(tree));
        Some(self.last())
    }
}

fn apply(tree: &mut Tree, txn: &Txn) -> bool {
    match txn {
        Txn::Lose(node, boot) => {
            let as_seen = tree.nodes.get(node) == Some(&NodeState::Member { boot: boot.clone() });
            if as_seen {
                tree.nodes.insert(node.clone(), NodeState::Lost { boot: boot.clone() });
            }
            as_seen
        }
        Txn::Enter(node, boot, seen) => {
            let as_seen = tree.nodes.get(node) == Some(seen);
            if as_seen {
                tree.nodes.insert(node.clone(), NodeState::Member { boot: boot.clone() });
            }
            as_seen
        }
        Txn::Recover { vmid, from, to, epoch, unlock, unchecked } => {
            let lost = tree.nodes.get(from).is_some_and(NodeState::is_lost);
            let Some(own) = tree.owners.get_mut(vmid).filter(|o| o.owner == *from && o.epoch == *epoch)
            else {
                return false;
            };
            if lost || *unchecked {
                *own = Ownership {
                    owner: to.clone(),
                    epoch: epoch.next(),
                    armed: false,
                    running: false,
                    ..*own
                };
                if *unlock {
                    Rc::make_mut(&mut tree.config).locks.remove(vmid);
                }
            }
            lost || *unchecked
        }
        Txn::Release { vmid, from, to, epoch, live } => {
            let mine = |o: &&mut Ownership| o.owner == *from && o.epoch == *epoch && o.running == *live;
            let own = tree.owners.get_mut(vmid).filter(mine);
            own.map(|own| (own.owner, own.epoch) = (to.clone(), epoch.next())).is_some()
        }
        Txn::Running { vmid, node, epoch, running, armed } => {
            let own = tree.owners.get_mut(vmid).filter(|o| o.owner == *node && o.epoch == *epoch);
            own.map(|own| (own.running, own.armed) = (*running, *armed)).is_some()
        }
        Txn::Manager(state, seen, dropped) => {
            let as_seen = tree.manager.1 == *seen;
            if as_seen {
                tree.manager = (state.clone(), seen + 1);
                if !dropped.is_empty() {
                    Rc::make_mut(&mut tree.config).requests.retain(|id, _| !dropped.contains(id));
                }
            }
            as_seen
        }
        Txn::User(edit) => edit.apply(tree),
    }
}
