//! What the manager sees, and what it remembers.

use crate::agent::Report;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use stead_model::ha_cfg::{HaResource, HaRule};
use stead_model::{Epoch, NodeName, ServiceId};

/// A node as the manager may count on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeWord {
    /// A member that reports and holds a lease: services can be placed there.
    Online,
    /// A member that is silent or has no lease. Nothing is placed there and nothing is taken from there.
    Unknown,
    /// Committed lost: its guests are safe, and may be recovered.
    Lost,
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Its word.
    pub word: NodeWord,
    /// What its agent reports; none while it is silent.
    pub reports: BTreeMap<ServiceId, Report>,
}

/// What is known of a guest's process on its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// A fresh report says that it runs.
    Running,
    /// A fresh report says that there is none.
    Absent,
    /// Nothing fresh is known.
    Unknown,
}

/// A service as committed and reported.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// What its user wants.
    pub resource: HaResource,
    /// The only node that may run it.
    pub owner: NodeName,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The owner may be running it.
    pub running: bool,
    /// The owner's fence process guards it.
    pub armed: bool,
    /// Its process.
    pub process: Process,
    /// A one-time request: where to, and whether by stop and start.
    pub request: Option<(NodeName, bool)>,
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The node that decides.
    pub me: NodeName,
    /// All nodes.
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// All services that are not *ignored*.
    pub services: BTreeMap<ServiceId, ServiceView>,
    /// Rules in force.
    pub rules: Vec<HaRule>,
}

/// A service's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// To be started; a node is being chosen.
    RequestStart,
    /// Kept running on its node.
    Started,
    /// To be stopped.
    RequestStop,
    /// Stopped.
    Stopped,
    /// To be moved while it runs.
    Migrate,
    /// To be stopped, moved and started.
    Relocate,
    /// Its node was lost.
    Fence,
    /// A node is being chosen, or its commit awaited.
    Recovery,
    /// Given up until it is disabled.
    Error,
}

/// What the manager remembers of a service. Written as administrators know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its state.
    pub state: ServiceState,
    /// Where it is, or shall be.
    pub node: NodeName,
    /// Where it is being moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<NodeName>,
    /// Grows with every change of state: an agent's report belongs to one.
    pub uid: u64,
    /// Why it is in this state.
    pub reason: String,
    /// Nodes on which it failed since it last ran.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub failed_nodes: BTreeSet<NodeName>,
    /// How often a node gave up to start it since it last ran.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub relocate_tries: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// All that the manager remembers: `ha/manager_status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerState {
    /// Format.
    #[serde(default)]
    pub version: u32,
    /// Who decides.
    #[serde(default)]
    pub master_node: Option<NodeName>,
    /// When it last changed anything, seconds since 1970.
    #[serde(default)]
    pub timestamp: u64,
    /// Nodes.
    #[serde(default)]
    pub node_status: BTreeMap<NodeName, NodeWord>,
    /// Services.
    #[serde(default)]
    pub service_status: BTreeMap<ServiceId, Service>,
    /// The last `uid` given.
    #[serde(default)]
    pub last_uid: u64,
}
