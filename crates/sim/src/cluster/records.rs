//! The world's tree as files of the real configuration: which there are, what a change of the world writes, and over which
//! revisions.
//!
//! A file's content is the number of the proposal that wrote it; what that has made of it is remembered here, and not encoded. What
//! decides whether a proposal takes effect are the checks of its transaction alone.

use super::config::Edit;
use super::store::{Checked, Running, Tree, Txn};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use stead_conf::{Check, Revision};
use stead_model::{NodeName, ServiceId, Vmid};

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum File {
    Node(NodeName),
    Owner(Vmid),
    Manager,
    Resource(ServiceId),
    Request(String),
    Lock(Vmid),
    /// Rules and options.
    Rest,
    Profile,
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "stead/nodes/{name}"),
            Self::Owner(vmid) => write!(f, "stead/guests/{vmid}"),
            Self::Manager => f.write_str("ha/manager_status"),
            Self::Resource(sid) => write!(f, "ha/resources/{sid}"),
            Self::Request(id) => write!(f, "ha/requests/{id}"),
            Self::Lock(vmid) => write!(f, "stead/locks/{vmid}"),
            Self::Rest => f.write_str("ha/rules.cfg"),
            Self::Profile => f.write_str("ha/fence.cfg"),
        }
    }
}

impl File {
    /// All of a tree.
    pub fn all(tree: &Tree) -> Vec<Self> {
        let config = &tree.config;
        let mut all = vec![Self::Manager, Self::Rest, Self::Profile];
        all.extend(tree.nodes.keys().cloned().map(Self::Node));
        all.extend(tree.owners.iter().map(|(vmid, _)| Self::Owner(*vmid)));
        all.extend(config.resources.keys().copied().map(Self::Resource));
        all.extend(config.requests.keys().cloned().map(Self::Request));
        all.extend(config.locks.keys().copied().map(Self::Lock));
        all
    }

    /// Whether it is there.
    pub fn is_in(&self, tree: &Tree) -> bool {
        let config = &tree.config;
        match self {
            Self::Node(name) => tree.nodes.contains_key(name),
            Self::Owner(vmid) => tree.owners.get(vmid).is_some(),
            Self::Resource(sid) => config.resources.contains_key(sid),
            Self::Request(id) => config.requests.contains_key(id),
            Self::Lock(vmid) => config.locks.contains_key(vmid),
            Self::Manager | Self::Rest | Self::Profile => true,
        }
    }

    /// Whether it was written from one tree to the other.
    fn differs(&self, old: &Tree, new: &Tree) -> bool {
        let (a, b) = (&old.config, &new.config);
        match self {
            Self::Node(name) => old.node_revision(name) != new.node_revision(name),
            Self::Owner(vmid) => {
                let of = |tree: &Tree| tree.owners.get(vmid).map(|_| tree.revision(*vmid));
                of(old) != of(new)
            }
            Self::Manager => old.manager.1 != new.manager.1,
            Self::Resource(sid) => a.resources.get(sid) != b.resources.get(sid),
            Self::Request(id) => a.requests.get(id) != b.requests.get(id),
            Self::Lock(vmid) => a.locks.get(vmid) != b.locks.get(vmid),
            Self::Rest => (&a.rules, a.options, a.asked) != (&b.rules, b.options, b.asked),
            Self::Profile => (old.profile, old.previous) != (new.profile, new.previous),
        }
    }

    /// What was written from one tree to the other, removed files too.
    pub fn written(old: &Tree, new: &Tree) -> Vec<Self> {
        let mut all = Self::all(old);
        all.extend(Self::all(new));
        all.sort();
        all.dedup();
        all.retain(|file| file.differs(old, new));
        all
    }

    /// Takes it over from a tree, as written by that transaction.
    pub fn take(&self, from: &Tree, to: &mut Tree, revision: u64) {
        let config = Rc::make_mut(&mut to.config);
        match self {
            Self::Node(name) => {
                let Some(state) = from.nodes.get(name) else { return };
                Rc::make_mut(&mut to.nodes).insert(name.clone(), state.clone());
                Rc::make_mut(&mut to.node_revisions).insert(name.clone(), revision);
                copy(name, &from.off, &mut to.off);
                copy(name, &from.restart, &mut to.restart);
            }
            Self::Owner(vmid) => {
                if let Some(own) = from.owners.get(vmid) {
                    to.owners.write_at(*vmid, own.clone(), revision);
                }
            }
            Self::Manager => to.manager = (from.manager.0.clone(), revision),
            Self::Resource(sid) => copy(sid, &from.config.resources, &mut config.resources),
            Self::Request(id) => copy(id, &from.config.requests, &mut config.requests),
            Self::Lock(vmid) => copy(vmid, &from.config.locks, &mut config.locks),
            Self::Rest => {
                config.rules.clone_from(&from.config.rules);
                (config.options, config.asked) = (from.config.options, from.config.asked);
            }
            Self::Profile => (to.profile, to.previous) = (from.profile, from.previous),
        }
    }

    /// It must be as it was seen: of that revision, or not there.
    pub fn check(&self, seen: Option<u64>) -> Check {
        let path = self.to_string();
        match seen {
            Some(revision) => Check::Revision(path, Revision(revision)),
            None => Check::Absent(path),
        }
    }
}

fn copy<K: Ord + Clone, V: Clone>(key: &K, from: &BTreeMap<K, V>, to: &mut BTreeMap<K, V>) {
    match from.get(key) {
        Some(value) => drop(to.insert(key.clone(), value.clone())),
        None => drop(to.remove(key)),
    }
}

/// The files over which a change holds, each with the revision that it names if it names one: otherwise that which its proposer sees.
pub(super) fn rests_on(txn: &Txn, tree: &Tree, written: &[File]) -> Vec<(File, Option<u64>)> {
    let node = |name: &NodeName| File::Node(name.clone());
    match txn {
        Txn::Mark(name, _, revision) | Txn::Unmark(name, revision) => vec![(node(name), Some(*revision))],
        Txn::Lose(name, ..) | Txn::Off(name, _) => vec![(node(name), None)],
        Txn::Enter(name, _, revision, kept) => {
            let kept = kept.iter().map(|(vmid, revision)| (File::Owner(*vmid), Some(*revision)));
            std::iter::once((node(name), Some(*revision))).chain(kept).collect()
        }
        Txn::Recover { vmid, from, lost, checked, .. } => {
            let loss = (*checked != Checked::NotTheLoss).then(|| (node(from), Some(*lost)));
            let own = (*checked != Checked::NotTheOwnership).then_some((File::Owner(*vmid), None));
            loss.into_iter().chain(own).collect()
        }
        Txn::Release { vmid, to, .. } => vec![(File::Owner(*vmid), None), (node(to), None)],
        Txn::HandOver { vmid, to, revision, target, .. } => {
            // Whether HA has it decides whether it is armed there.
            let guarded = tree.owners.get(vmid).map(|own| ServiceId { kind: own.kind, vmid: *vmid });
            let resource = guarded.map(|sid| (File::Resource(sid), None));
            let named = [(File::Owner(*vmid), Some(*revision)), (node(to), Some(*target))];
            named.into_iter().chain(resource).collect()
        }
        Txn::Running { vmid, node: name, revision, how, .. } => {
            let member = matches!(how, Running::Armed(_)).then(|| (node(name), None));
            std::iter::once((File::Owner(*vmid), Some(*revision))).chain(member).collect()
        }
        Txn::Rewrite { vmid, revision, .. } => vec![(File::Owner(*vmid), Some(*revision))],
        Txn::Manager(_, seen, _) => vec![(File::Manager, Some(*seen))],
        Txn::Settle(_) => vec![(File::Profile, None)],
        Txn::User(edit) => {
            let off = if let Edit::Off(name) = edit { Some(node(name)) } else { None };
            written.iter().cloned().chain(off).map(|file| (file, None)).collect()
        }
    }
}
