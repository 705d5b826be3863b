//! What the manager sees, and what it remembers.

use crate::agent::AgentReport;
use crate::history::Change;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_model::ha_cfg::{HaResource, HaRule};
use stead_model::{Epoch, HaOptions, NodeName, ServiceId, StorageId};

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

/// CPU and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// CPUs (a whole one is 1).
    pub cpu: f64,
    /// Memory, bytes.
    pub mem: u64,
}

/// What a service is configured with, and what it uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// At most.
    pub max: Load,
    /// Now, or when it last ran. Zero: not known.
    pub used: Load,
}

/// What is wrong with a storage on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "is")]
pub enum StorageFault {
    /// The node has asked, and was told: it is gone, can't be written, answers errors.
    Inactive {
        /// Why.
        why: String,
    },
    /// The node has asked, and has no answer. Processes that use it may hang where nothing ends them, and what they have
    /// written may still arrive.
    Silent,
}

/// A storage that guests can't use on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageLoss {
    /// How.
    #[serde(flatten)]
    pub fault: StorageFault,
    /// For how long, in seconds, by the node's clock.
    pub seconds: u64,
}

/// A storage as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageView {
    /// What is on it is the same on all nodes.
    pub shared: bool,
    /// The nodes that have it; none: all.
    pub nodes: Option<BTreeSet<NodeName>>,
    /// Switched off.
    pub disabled: bool,
}

/// What a guest has on a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A medium in a drive: needed to start it, not to go on.
    Medium,
    /// A disk.
    Disk,
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Its word.
    pub word: NodeWord,
    /// What its agent reports; none while it is silent.
    pub agent: Option<AgentReport>,
    /// What the machine has.
    pub capacity: Load,
    /// What those use who are not under HA: other guests (`max`: as configured), and the machine itself.
    pub others: Stats,
    /// Storages that it says guests can't use there. Of what it says nothing, nothing is known against it.
    pub lost_storages: BTreeMap<StorageId, StorageLoss>,
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
    /// Its load.
    pub stats: Stats,
    /// The `lock` of its configuration: a task is at work on it, or died doing so.
    pub lock: Option<String>,
    /// The storages that it needs.
    pub storages: Arc<BTreeMap<StorageId, Use>>,
}

/// What becomes of the services while HA is disarmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DisarmMode {
    /// They stay as they are: nothing is started, stopped or moved, and requests are refused.
    Freeze,
    /// HA forgets them: who may, handles them as if they were no resources.
    Ignore,
}

/// A one-time request. It stays until [`crate::Command::DropRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Request {
    /// Move a service: while it runs, or by stop and start.
    Move {
        /// Which.
        sid: ServiceId,
        /// Where to.
        target: NodeName,
        /// Stop, move, start.
        relocate: bool,
    },
    /// Stop a service within a time. Who asks for it sets its requested state to *stopped* in the same commit.
    Stop {
        /// Which.
        sid: ServiceId,
        /// Seconds for its shutdown, after which it is stopped by force; 0: by force at once.
        timeout: u32,
    },
    /// Move everything away from a node, and place nothing there, until this is taken back.
    Maintenance {
        /// Which node.
        node: NodeName,
        /// On, or off.
        on: bool,
    },
    /// Stop to act, on all nodes.
    Disarm {
        /// What becomes of the services.
        mode: DisarmMode,
    },
    /// Act again.
    Arm,
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The node that decides.
    pub me: NodeName,
    /// All nodes.
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// All services, the *ignored* too.
    pub services: BTreeMap<ServiceId, ServiceView>,
    /// All rules, as written: the manager leaves out those that are disabled or contradict each other.
    pub rules: Vec<HaRule>,
    /// Options.
    pub options: HaOptions,
    /// All storages that can be read.
    pub storages: BTreeMap<StorageId, StorageView>,
    /// Requests by the names of their records; handled in this order.
    pub requests: BTreeMap<String, Request>,
    /// How long the *round* is in which the hold duration of automatic rebalancing is counted, seconds: 10 on a cluster.
    pub round: u64,
}

impl View {
    /// The storage of one of a service's disks that its guest, if it runs there, has lost. Of several one that does not answer:
    /// it decides what can be done.
    pub(crate) fn lost_disk(
        &self,
        seen: &ServiceView,
        node: &NodeName,
    ) -> Option<(&StorageId, &StorageLoss)> {
        self.nodes.get(node)?.lost_disk(seen)
    }
}

impl NodeView {
    /// [`View::lost_disk`] of this node.
    pub(crate) fn lost_disk(&self, seen: &ServiceView) -> Option<(&StorageId, &StorageLoss)> {
        if self.lost_storages.is_empty() {
            return None;
        }
        let disks = seen.storages.iter().filter(|(_, how)| **how == Use::Disk);
        let found = disks.filter_map(|(id, _)| self.lost_storages.get_key_value(id));
        found.max_by_key(|(_, loss)| (loss.fault == StorageFault::Silent, loss.seconds))
    }
}

/// A service's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Left as it is: its node restarts and is awaited, or HA is disarmed.
    Freeze,
    /// Its node was lost.
    Fence,
    /// A node is being chosen, or its commit awaited.
    Recovery,
    /// Given up until it is disabled.
    Error,
}

impl ServiceState {
    /// Its name, as administrators know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestStart => "request_start",
            Self::Started => "started",
            Self::RequestStop => "request_stop",
            Self::Stopped => "stopped",
            Self::Migrate => "migrate",
            Self::Relocate => "relocate",
            Self::Freeze => "freeze",
            Self::Fence => "fence",
            Self::Recovery => "recovery",
            Self::Error => "error",
        }
    }

    /// It is being moved to its target.
    pub fn is_move(self) -> bool {
        matches!(self, Self::Migrate | Self::Relocate)
    }
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
    /// The node that it left for maintenance: it goes back there when that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_node: Option<NodeName>,
    /// Seconds that its shutdown may take, if they are named: by its user, or where its disks are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// A move failed: the manager tries none of its own before then. Seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A node as the manager shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Services run there.
    Online,
    /// It takes part, and is being emptied or is empty.
    Maintenance,
    /// It is silent, or down, and there is nothing (more) to be done about it.
    Unknown,
    /// It is committed lost, and its services are being recovered.
    #[serde(alias = "lost")]
    Fence,
}

/// What the manager remembers of a node beyond its word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMemory {
    /// Its user put it into maintenance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maintenance: bool,
    /// What its agent said last. It outlives the node's silence: that is how a reboot is told from a loss.
    #[serde(default)]
    pub mode: crate::agent::AgentMode,
}

/// How far disarming has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disarm {
    /// What becomes of the services.
    pub mode: DisarmMode,
    /// Every recovery and every move that was under way has ended, and the nodes let go.
    pub ready: bool,
    /// All nodes that take part have said that they guard nothing any more. Before that: disarming.
    pub done: bool,
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
    /// Nodes, to be shown.
    #[serde(default)]
    pub node_status: BTreeMap<NodeName, NodeStatus>,
    /// Nodes of which there is more to remember than the default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_memory: BTreeMap<NodeName, NodeMemory>,
    /// Services.
    #[serde(default)]
    pub service_status: BTreeMap<ServiceId, Service>,
    /// Whether HA is disarmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disarm: Option<Disarm>,
    /// Since when the nodes are out of balance, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imbalanced_since: Option<u64>,
    /// Rules that are left out, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rule_errors: BTreeMap<String, String>,
    /// The last `uid` given.
    #[serde(default)]
    pub last_uid: u64,
}

impl ManagerState {
    /// What is remembered of a node.
    pub fn memory(&self, node: &NodeName) -> NodeMemory {
        self.node_memory.get(node).copied().unwrap_or_default()
    }
}

/// What is to be done besides keeping the changed [`ManagerState`]. The shell carries it out and decides nothing;
/// what came of it shows in the next [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Commit `to` as owner under the next epoch, if the record still says `from` under `epoch` *and* the node `from`
    /// is still committed lost.
    Recover {
        /// Which service.
        sid: ServiceId,
        /// Whose it was.
        from: NodeName,
        /// Whose it becomes.
        to: NodeName,
        /// The epoch that it starts from.
        epoch: Epoch,
        /// Its lock names a task that ended with the node: take it off. Otherwise a lock stays.
        unlock: bool,
        /// Why there.
        reason: String,
    },
    /// Remove a one-time request, in the commit of the state that it led to.
    DropRequest {
        /// The name of its record.
        id: String,
        /// Whether it was taken; otherwise it can't be.
        taken: bool,
        /// What became of it.
        reason: String,
    },
    /// Keep this in the service's history ([`crate::history::History`]), in the commit of the state.
    Record {
        /// Which service.
        sid: ServiceId,
        /// What changed, and why.
        change: Change,
    },
}
