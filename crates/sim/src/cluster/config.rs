//! What users want: resources, rules, options, requests, and how they change it.

use super::store::Tree;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use stead_ha::{DisarmMode, Request};
use stead_model::ha_cfg::{HaResource, HaRule, HaRuleKind, RequestedState};
use stead_model::{Epoch, FenceProfile, HaOptions, NodeName, Ownership, ServiceId, Vmid};

/// Users' part of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `ha/resources.cfg`.
    pub resources: BTreeMap<ServiceId, HaResource>,
    /// `ha/rules.cfg`.
    pub rules: Vec<HaRule>,
    /// HA's part of `datacenter.cfg`.
    pub options: HaOptions,
    /// Requests that the manager has not taken.
    pub requests: BTreeMap<String, Request>,
    /// How many there were.
    pub asked: u64,
    /// Locks of guests.
    pub locks: BTreeMap<Vmid, String>,
}

/// A change that a user makes.
#[derive(Debug, Clone)]
pub enum Edit {
    /// A service is to be in that state.
    Want(ServiceId, RequestedState),
    /// A request to the manager. One to stop a service asks for the state *stopped* as well.
    Ask(Request),
    /// A guest is there, on that node, and HA has it.
    Add { resource: HaResource, node: NodeName, running: bool },
    /// HA has it no more.
    Remove(ServiceId),
    /// A lock comes, or goes.
    Lock(Vmid, Option<String>),
    /// Its user has moved it.
    Moved { vmid: Vmid, to: NodeName, running: bool },
    /// These are all rules.
    Rules(Vec<HaRule>),
    /// Other times of leases and fencing.
    Profile(FenceProfile),
    /// That node is off: said only when it is, of a node that is committed lost.
    Off(NodeName),
}

impl Config {
    /// Services that are to run, without rules.
    pub fn with_defaults(sids: impl Iterator<Item = ServiceId>) -> Self {
        Self { resources: sids.map(|s| (s, HaResource::new(s))).collect(), ..Self::default() }
    }

    fn ask(&mut self, request: Request) {
        self.asked += 1;
        if let Request::Stop { sid, .. } = &request
            && let Some(resource) = self.resources.get_mut(sid)
        {
            resource.state = RequestedState::Stopped;
        }
        self.requests.insert(format!("{:08}", self.asked), request);
    }
}

impl Edit {
    /// Makes the change. False: there is nothing that it could be made to.
    pub fn apply(&self, tree: &mut Tree) -> bool {
        let config = Rc::make_mut(&mut tree.config);
        match self {
            Self::Want(sid, state) => {
                config.resources.get_mut(sid).map(|resource| resource.state = *state).is_some()
            }
            Self::Ask(request) => {
                config.ask(request.clone());
                true
            }
            Self::Add { resource, node, running } => {
                let sid = resource.sid;
                config.resources.insert(sid, resource.clone());
                if tree.owners.get(&sid.vmid).is_none() {
                    let own = Ownership {
                        kind: sid.kind,
                        owner: node.clone(),
                        epoch: Epoch(1),
                        armed: false,
                        running: *running,
                        recovered: false,
                    };
                    tree.owners.write(sid.vmid, own);
                }
                true
            }
            Self::Remove(sid) => config.resources.remove(sid).is_some(),
            Self::Lock(vmid, lock) => {
                match lock {
                    Some(lock) => config.locks.insert(*vmid, lock.clone()),
                    None => config.locks.remove(vmid),
                };
                true
            }
            Self::Moved { vmid, to, running } => {
                let Some(own) = tree.owners.get(vmid).cloned() else { return false };
                let (owner, epoch) = (to.clone(), own.epoch.next());
                let own = Ownership { owner, epoch, running: *running, armed: false, ..own };
                tree.owners.write(*vmid, own);
                true
            }
            Self::Rules(rules) => {
                config.rules.clone_from(rules);
                true
            }
            Self::Profile(profile) => tree.change_profile(*profile),
            Self::Off(node) => tree.node_is_off(node),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Want(sid, state) => write!(f, "{sid} is to be {}", state.as_str()),
            Self::Ask(Request::Move { sid, target, relocate }) => {
                write!(f, "{} {sid} to {target}", if *relocate { "relocate" } else { "migrate" })
            }
            Self::Ask(Request::Stop { sid, timeout }) => write!(f, "stop {sid} within {timeout} s"),
            Self::Ask(Request::Maintenance { node, on }) => {
                write!(f, "maintenance of {node} {}", if *on { "begins" } else { "ends" })
            }
            Self::Ask(Request::Disarm { mode: DisarmMode::Freeze }) => f.write_str("disarm, freeze"),
            Self::Ask(Request::Disarm { mode: DisarmMode::Ignore }) => f.write_str("disarm, ignore"),
            Self::Ask(Request::Arm) => f.write_str("arm"),
            Self::Add { resource, .. } => write!(f, "{} comes under HA", resource.sid),
            Self::Remove(sid) => write!(f, "{sid} is taken out of HA"),
            Self::Lock(vmid, Some(lock)) => write!(f, "guest {vmid} is locked ({lock})"),
            Self::Lock(vmid, None) => write!(f, "guest {vmid} is locked no more"),
            Self::Moved { vmid, to, .. } => write!(f, "guest {vmid} is moved to {to} by hand"),
            Self::Rules(rules) if rules.is_empty() => f.write_str("there are no rules any more"),
            Self::Rules(rules) => {
                let all: Vec<String> = rules.iter().map(told).collect();
                write!(f, "the rules are: {}", all.join("; "))
            }
            Self::Profile(profile) => write!(f, "the profile is to be {profile}"),
            Self::Off(node) => write!(f, "{node} is off"),
        }
    }
}

pub(super) fn told(rule: &HaRule) -> String {
    let sids: Vec<String> = rule.resources.iter().map(ToString::to_string).collect();
    let sids = sids.join(", ");
    match &rule.kind {
        HaRuleKind::NodeAffinity { nodes, strict, positive } => {
            let nodes: Vec<String> = nodes.iter().map(|(n, p)| format!("{n}:{p}")).collect();
            let how = match (strict, positive) {
                (true, true) => "must be on",
                (false, true) => "better on",
                (true, false) => "must not be on",
                (false, false) => "better not on",
            };
            format!("{sids} {how} {}", nodes.join(", "))
        }
        HaRuleKind::ResourceAffinity { positive: true } => format!("{sids} together"),
        HaRuleKind::ResourceAffinity { positive: false } => format!("{sids} apart"),
    }
}
