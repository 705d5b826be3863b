//! The configuration as a linearizable log, of which each node has applied a beginning.

use super::config::{Config, Edit};
use super::owners::Owners;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use stead_ha::ManagerState;
use stead_model::{
    BootId, Epoch, FenceProfile, NodeName, NodeState, Ownership, RequestedState, ServiceId, Vmid,
};

/// What is committed.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Each node's state.
    pub nodes: Rc<BTreeMap<NodeName, NodeState>>,
    /// The last boot of each node that its fence devices have confirmed to be off.
    pub off: BTreeMap<NodeName, BootId>,
    /// The boot of each node whose daemon is, or was last, started anew on purpose: it may hold a restart lease.
    pub restart: BTreeMap<NodeName, BootId>,
    /// How often each node's state was written.
    pub node_revisions: Rc<BTreeMap<NodeName, u64>>,
    /// Each guest's owner, and how often that was written.
    pub owners: Owners,
    /// The HA manager's state, and how often it was written.
    pub manager: (Arc<ManagerState>, u64),
    /// What users want.
    pub config: Rc<Config>,
    /// Times of leases and fencing.
    pub profile: FenceProfile,
    /// The ones before, while leases granted by them may be alive.
    pub previous: Option<FenceProfile>,
}

impl Tree {
    /// A cluster of the default profile, in which nothing has happened yet.
    pub fn new(owners: Owners, manager: ManagerState, config: Config) -> Self {
        Self {
            nodes: Rc::default(),
            node_revisions: Rc::default(),
            off: BTreeMap::new(),
            restart: BTreeMap::new(),
            owners,
            manager: (Arc::new(manager), 0),
            config: Rc::new(config),
            profile: FenceProfile::Default,
            previous: None,
        }
    }

    /// Whether HA has the guest, so that the fence process is to guard it. It does so while HA is disarmed too: what is
    /// guarded can be recovered once HA is armed again, whatever became of its node.
    pub fn is_guarded(&self, vmid: Vmid) -> bool {
        let Some(own) = self.owners.get(&vmid) else { return false };
        let resource = self.config.resources.get(&ServiceId { kind: own.kind, vmid });
        resource.is_some_and(|r| r.state != RequestedState::Ignored)
    }

    /// How often a guest's ownership was written.
    pub fn revision(&self, vmid: Vmid) -> u64 {
        self.owners.revision(vmid)
    }

    /// Whether the boot by which a node was last a member is confirmed off, and it has not entered since.
    pub fn is_off(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|s| s.is_lost() && self.off.get(node) == Some(s.boot()))
    }

    /// How often a node's state was written.
    pub fn node_revision(&self, node: &NodeName) -> u64 {
        self.node_revisions.get(node).copied().unwrap_or(0)
    }

    /// Whether a node takes part, by that boot.
    pub fn is_member(&self, node: &NodeName, boot: &BootId) -> bool {
        self.nodes.get(node).is_some_and(|s| !s.is_lost() && s.boot() == boot)
    }

    /// Whether the boot by which a node is, or was last, a member may hold a restart lease.
    pub fn may_restart(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|state| self.restart.get(node) == Some(state.boot()))
    }

    /// The node's record is written as it is, but for the mark.
    fn mark(&mut self, node: &NodeName, boot: Option<&BootId>) {
        match boot {
            Some(boot) => drop(self.restart.insert(node.clone(), boot.clone())),
            None => drop(self.restart.remove(node)),
        }
        if let Some(state) = self.nodes.get(node).cloned() {
            self.set_node(node, state);
        }
    }

    fn set_node(&mut self, node: &NodeName, state: NodeState) {
        Rc::make_mut(&mut self.nodes).insert(node.clone(), state);
        *Rc::make_mut(&mut self.node_revisions).entry(node.clone()).or_default() += 1;
    }

    /// Changes the profile, unless an earlier change is not over.
    pub fn change_profile(&mut self, profile: FenceProfile) -> bool {
        let free = self.previous.is_none() && profile != self.profile;
        if free {
            self.previous = Some(std::mem::replace(&mut self.profile, profile));
        }
        free
    }

    /// The operator's word that a lost node is off: guests under HA are said not to run there, others get another node.
    pub fn node_is_off(&mut self, node: &NodeName) -> bool {
        if !self.nodes.get(node).is_some_and(NodeState::is_lost) {
            return false;
        }
        let to = self.nodes.iter().find(|(_, s)| !s.is_lost()).map(|(n, _)| n.clone());
        let mut freed = vec![];
        for (vmid, own) in self.owners.of(node) {
            let resource = self.config.resources.get(&ServiceId { kind: own.kind, vmid: *vmid });
            let state = resource.map_or(RequestedState::Ignored, |r| r.state);
            let by_ha = !matches!(state, RequestedState::Ignored | RequestedState::Disabled);
            let to = if by_ha { Some(node.clone()) } else { to.clone() };
            let Some(to) = to.filter(|_| !by_ha || (own.running && !own.armed)) else { continue };
            let (owner, epoch) = (to, own.epoch.next());
            freed.push((*vmid, Ownership { owner, epoch, running: false, armed: false, ..own.clone() }));
        }
        freed.into_iter().for_each(|(vmid, own)| self.owners.write(vmid, own));
        true
    }
}

/// A change with its precondition.
#[derive(Debug, Clone)]
pub enum Txn {
    /// The node is lost, if it is a member by that boot, and may or may not hold a restart lease, as is said.
    Lose(NodeName, BootId, bool),
    /// The node may hold a restart lease, if it is a member by that boot and its record is of that revision.
    Mark(NodeName, BootId, u64),
    /// It holds none any more, if its record is of that revision.
    Unmark(NodeName, u64),
    /// The node is off, if it is a member by that boot or was lost with it.
    Off(NodeName, BootId),
    /// The node takes part by that boot, if its record is of that revision, and so are those of the guests of which it keeps copies.
    Enter(NodeName, BootId, u64, Vec<(Vmid, u64)>),
    /// The guest moves from a lost node, whose record is of that revision, to another, under the next epoch.
    Recover {
        vmid: Vmid,
        from: NodeName,
        to: NodeName,
        epoch: Epoch,
        unlock: bool,
        lost: u64,
        checked: Checked,
    },
    /// The owner gives a stopped guest to another node.
    Release { vmid: Vmid, from: NodeName, to: NodeName, epoch: Epoch },
    /// The owner gives a guest that has moved while it ran to another node: over the record of that revision, to a member
    /// whose record is of that revision.
    HandOver { vmid: Vmid, from: NodeName, to: NodeName, epoch: Epoch, revision: u64, target: u64 },
    /// The owner may be running the guest, and guards it, or is not any more. Only a member in that boot may run one. It holds over
    /// the record that was read alone: one that is committed late undoes nothing.
    Running { vmid: Vmid, node: NodeName, epoch: Epoch, revision: u64, how: Running },
    /// The record is written as it is, if it is of that revision: no proposal that was built on it can be committed any more.
    Rewrite { vmid: Vmid, node: NodeName, revision: u64 },
    /// The manager's state, over the one that it read, without the requests that it has taken or refused.
    Manager(Arc<ManagerState>, u64, Vec<String>),
    /// No lease of the previous profile is alive any more.
    Settle(FenceProfile),
    /// A user's change.
    User(Edit),
}

/// What a node says of a guest of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// It may run, in this boot, and is guarded.
    Armed(BootId),
    /// It has ended.
    Ended,
}

/// What of a recovery's preconditions is checked; anything but all of them is a planted mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// All.
    All,
    /// Not that the node is lost.
    NotTheLoss,
    /// Not the ownership that it starts from.
    NotTheOwnership,
}

/// Names a proposal: who made it, in which life of its daemon, and its number.
pub type ProposalId = (usize, u64, u64);

/// So many entries are kept, and so many more as make this number times the guests.
const KEPT: usize = 64;
const KEPT_GUESTS: usize = 1_000_000;

/// The log, and who was elected last.
#[derive(Debug, Clone)]
pub struct Store {
    /// By index: the later entries, and earlier ones that a node still stands at.
    log: BTreeMap<usize, Rc<Tree>>,
    last: usize,
    /// What came of each proposal: one that arrives again is not applied again.
    done: BTreeMap<ProposalId, Option<usize>>,
    /// The latest term with a leader.
    pub term: u64,
}

impl Store {
    /// A store with one entry.
    pub fn new(first: Tree) -> Self {
        Self::beginning(0, first)
    }

    /// A store whose first entry has that index.
    pub fn beginning(index: usize, first: Tree) -> Self {
        Self { log: BTreeMap::from([(index, Rc::new(first))]), last: index, done: BTreeMap::new(), term: 0 }
    }

    /// The last index.
    pub fn last(&self) -> usize {
        self.last
    }

    fn entry(&self, index: usize) -> &Rc<Tree> {
        self.log.range(index..).next().map_or_else(|| unreachable!("the last entry stays"), |(_, tree)| tree)
    }

    /// The tree as of an index; of one that is no more, as of the next.
    pub fn at(&self, index: usize) -> Rc<Tree> {
        self.entry(index).clone()
    }

    /// What is committed now: for the invariants, and for who has just been elected.
    pub fn newest(&self) -> &Tree {
        self.entry(self.last)
    }

    /// What was committed before the last entry.
    pub fn before(&self) -> Rc<Tree> {
        self.at(self.last.saturating_sub(1))
    }

    /// Appends the change if its precondition holds. Returns the index.
    pub fn commit(&mut self, txn: &Txn) -> Option<usize> {
        let mut tree = self.newest().clone();
        apply(&mut tree, txn).then(|| self.append(tree))
    }

    /// Appends what came of a change. Returns the index.
    pub fn append(&mut self, tree: Tree) -> usize {
        self.last += 1;
        self.log.insert(self.last, Rc::new(tree));
        self.last
    }

    /// Forgets entries at which no node stands, when they have become many for what they hold.
    pub fn trim(&mut self, guests: usize, stands: impl Iterator<Item = usize>) {
        let most = KEPT + KEPT_GUESTS / guests.max(1);
        if self.log.len() < 2 * most {
            return;
        }
        let stood: BTreeSet<usize> = stands.collect();
        let recent = self.last.saturating_sub(most);
        self.log.retain(|index, _| *index >= recent || stood.contains(index));
    }

    /// The same of a proposal, once. The flag says whether it was now.
    pub fn propose(&mut self, id: ProposalId, txn: &Txn) -> (Option<usize>, bool) {
        if let Some(done) = self.done.get(&id) {
            return (*done, false);
        }
        let index = self.commit(txn);
        self.done.insert(id, index);
        (index, index.is_some())
    }
}

/// Makes the change if its precondition holds. Says whether it did.
pub fn apply(tree: &mut Tree, txn: &Txn) -> bool {
    match txn {
        Txn::Mark(node, boot, revision) => {
            let as_seen = tree.is_member(node, boot) && tree.node_revision(node) == *revision;
            if as_seen {
                tree.mark(node, Some(boot));
            }
            as_seen
        }
        Txn::Unmark(node, revision) => {
            let as_seen = tree.node_revision(node) == *revision;
            if as_seen {
                tree.mark(node, None);
            }
            as_seen
        }
        Txn::Lose(node, boot, restart) => {
            let as_seen = tree.is_member(node, boot) && tree.may_restart(node) == *restart;
            if as_seen {
                tree.set_node(node, NodeState::Lost { boot: boot.clone() });
            }
            as_seen
        }
        Txn::Off(node, boot) => {
            let as_seen = tree.nodes.get(node).is_some_and(|s| s.boot() == boot);
            if as_seen {
                tree.set_node(node, NodeState::Lost { boot: boot.clone() });
                tree.off.insert(node.clone(), boot.clone());
            }
            as_seen
        }
        Txn::Enter(node, boot, revision, kept) => {
            let as_kept = |(vmid, revision): &(Vmid, u64)| tree.revision(*vmid) == *revision;
            let as_seen = tree.node_revision(node) == *revision && kept.iter().all(as_kept);
            if as_seen {
                tree.set_node(node, NodeState::Member { boot: boot.clone() });
                if tree.off.get(node) == Some(boot) {
                    tree.off.remove(node);
                }
            }
            as_seen
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
        Txn::Settle(previous) => {
            let as_seen = tree.previous == Some(*previous);
            if as_seen {
                tree.previous = None;
            }
            as_seen
        }
        Txn::User(edit) => edit.apply(tree),
        of_guest => apply_to_guest(tree, of_guest),
    }
}

fn apply_to_guest(tree: &mut Tree, txn: &Txn) -> bool {
    let owned = |tree: &Tree, vmid: &Vmid, owner: &NodeName, epoch: &Epoch| {
        tree.owners.get(vmid).filter(|o| o.owner == *owner && o.epoch == *epoch).cloned()
    };
    let (vmid, new) = match txn {
        Txn::Recover { vmid, from, to, epoch, unlock, lost, checked } => {
            let is_lost = tree.nodes.get(from).is_some_and(NodeState::is_lost);
            let own = match checked {
                Checked::NotTheOwnership => tree.owners.get(vmid).cloned(),
                _ => owned(tree, vmid, from, epoch).filter(|o| o.armed || !o.running || tree.is_off(from)),
            };
            let as_seen = is_lost && tree.node_revision(from) == *lost;
            let Some(own) = own.filter(|_| as_seen || *checked == Checked::NotTheLoss) else { return false };
            if *unlock {
                Rc::make_mut(&mut tree.config).locks.remove(vmid);
            }
            let epoch = own.epoch.next();
            (vmid, Ownership { owner: to.clone(), epoch, armed: false, running: false, ..own })
        }
        Txn::Release { vmid, from, to, epoch } => {
            let free = tree.nodes.get(to).is_some_and(|s| !s.is_lost());
            let own = owned(tree, vmid, from, epoch).filter(|o| !o.running && free);
            let Some(own) = own else { return false };
            (vmid, Ownership { owner: to.clone(), epoch: epoch.next(), ..own })
        }
        Txn::HandOver { vmid, from, to, epoch, revision, target } => {
            let as_seen = tree.revision(*vmid) == *revision && tree.node_revision(to) == *target;
            let Some(own) = owned(tree, vmid, from, epoch).filter(|_| as_seen) else { return false };
            let armed = tree.is_guarded(*vmid);
            (vmid, Ownership { owner: to.clone(), epoch: epoch.next(), running: true, armed, ..own })
        }
        Txn::Running { vmid, node, epoch, revision, how } => {
            let (running, member) = match how {
                Running::Armed(boot) => (true, tree.is_member(node, boot)),
                Running::Ended => (false, true),
            };
            let as_seen = tree.revision(*vmid) == *revision && member;
            let Some(own) = owned(tree, vmid, node, epoch).filter(|_| as_seen) else { return false };
            (vmid, Ownership { running, armed: running, ..own })
        }
        Txn::Rewrite { vmid, node, revision } => {
            let as_seen = tree.revision(*vmid) == *revision;
            let own = tree.owners.get(vmid).filter(|o| as_seen && o.owner == *node).cloned();
            let Some(own) = own else { return false };
            (vmid, own)
        }
        _ => return false,
    };
    tree.owners.write(*vmid, new);
    true
}
