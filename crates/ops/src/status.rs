//! Volatile status: what runs where, with what load. It never goes through Raft.
//!
//! Each node reports to the leader, which merges and hands the report on to every node; so every node can
//! answer for the whole cluster. A report that is old tells nothing: its guests are *unknown*, never stopped.

use crate::fence_devices::Fenced;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use stead_ha::Outlook;
use stead_model::{BootId, NodeName, Vmid};
use stead_transport::Fingerprint;

/// After this long without a report, a node's guests count as unknown.
pub const STALE_AFTER: Duration = Duration::from_secs(8);

/// A node's load. Bytes, seconds, shares of 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStats {
    /// Since the host booted.
    pub uptime: u64,
    /// Share of all CPUs.
    pub cpu: f64,
    /// CPUs.
    pub maxcpu: u32,
    /// Memory taken.
    pub mem: u64,
    /// Memory in all.
    pub maxmem: u64,
    /// Root file system taken.
    pub disk: u64,
    /// Root file system in all.
    pub maxdisk: u64,
    /// Load of the last 1, 5 and 15 minutes.
    pub loadavg: [f64; 3],
    /// Kernel release.
    pub kernel: String,
    /// The CPU's name.
    pub cpu_model: String,
    /// Sockets.
    pub sockets: u32,
    /// Swap taken and in all.
    pub swap: (u64, u64),
}

/// A guest's process on the reporting node, as its driver tells it.
pub type GuestReport = stead_driver::guest::GuestProcess;

/// A storage as one node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StorageReport {
    /// Its name.
    pub storage: String,
    /// Guests can use it.
    pub active: bool,
    /// Bytes.
    pub total: u64,
    /// Bytes.
    pub used: u64,
    /// Bytes.
    pub avail: u64,
    /// What is wrong with it, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<stead_ha::StorageLoss>,
}

/// Whether a node reaches another by one of the other's links: a node of the leader's, the leader of everybody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The other.
    pub to: NodeName,
    /// Which link.
    pub link: u8,
    /// Whether it has answered when it was tried last.
    pub answers: bool,
    /// Since when it does or does not, in seconds since 1970.
    pub since: u64,
}

/// What one node reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Who reports.
    pub node: NodeName,
    /// In which boot.
    pub boot: BootId,
    /// Grows with every report of one start of the daemon.
    pub seq: u64,
    /// Which start of the daemon: milliseconds since 1970.
    pub started: u64,
    /// What its clock said when it reported: milliseconds since 1970; 0 from a version that does not say.
    #[serde(default)]
    pub clock_ms: u64,
    /// How far its clock is ahead of the leader's, milliseconds; filled in by the leader, who hands the report on.
    #[serde(default)]
    pub ahead_ms: Option<i64>,
    /// Whether it holds a lease.
    pub lease: bool,
    /// Somebody reads events there: log lines of other nodes' tasks are of use to it.
    #[serde(default)]
    pub listens: bool,
    /// Of the certificate that its TLS port shows.
    #[serde(default)]
    pub fingerprint: Option<Fingerprint>,
    /// By which links it reaches the leader, or, of the leader, the others; nothing of those with one alone.
    #[serde(default)]
    pub links: Vec<LinkReport>,
    /// Its load.
    pub stats: NodeStats,
    /// Its guests' processes.
    pub guests: Vec<GuestReport>,
    /// Its storages.
    pub storages: Vec<StorageReport>,
    /// Its running and latest tasks, as the API shows them.
    pub tasks: Vec<crate::task_view::TaskRow>,
    /// Results of the HA agent's work, for the manager.
    pub ha: serde_json::Value,
    /// From the node that leads: whether the cluster survives the loss of any one node.
    #[serde(default)]
    pub outlook: Option<Outlook>,
    /// What came of the last orders to power nodes off that were given here.
    #[serde(default)]
    pub fenced: Vec<Fenced>,
}

/// What is known of a guest's process.
#[derive(Debug, Clone, PartialEq)]
pub enum GuestKnown {
    /// A fresh report says that it is there.
    Process(GuestReport),
    /// A fresh report of its owner says that there is none.
    Absent,
    /// Nothing fresh is known. Silence is not *stopped*.
    Unknown,
}

#[derive(Debug)]
struct Held {
    report: NodeReport,
    at: Instant,
}

impl Held {
    /// A report that is old says nothing, of what is newer either: the clock by which starts are told apart may have been
    /// set back.
    fn overtakes(&self, report: &NodeReport) -> bool {
        let order = |r: &NodeReport| (r.started, r.seq);
        self.at.elapsed() < STALE_AFTER && order(&self.report) > order(report)
    }
}

/// The merged reports of all nodes, on every node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatus {
    nodes: Arc<RwLock<BTreeMap<NodeName, Held>>>,
    /// What this node has found out itself.
    outlook: Arc<RwLock<Option<Outlook>>>,
    /// What came of the last order to power each node off, of those that were given here.
    fenced: Arc<RwLock<BTreeMap<NodeName, Fenced>>>,
    /// How far this node's clock is ahead of the leader's, milliseconds, as the leader has said last.
    ahead_ms: Arc<AtomicI64>,
}

/// A clock that is farther from the leader's than this is set wrong: reports are under way for less than two seconds.
pub const CLOCK_BOUND: Duration = Duration::from_secs(5);

/// Whether a clock is set wrong.
pub fn is_clock_wrong(ahead_ms: i64) -> bool {
    Duration::from_millis(ahead_ms.unsigned_abs()) > CLOCK_BOUND
}

impl ClusterStatus {
    /// Notes what the leader has said of this node's clock.
    pub fn is_ahead(&self, ms: i64) {
        self.ahead_ms.store(ms, Ordering::Relaxed);
    }

    /// What the leader has said last of this node's clock: how many milliseconds it is ahead.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    /// The cluster's time, of a time by this node's clock, both in milliseconds since 1970: where this node's clock is
    /// set wrong, the leader's. So what one node signs is good at all.
    pub fn cluster_ms(&self, own_ms: u64) -> u64 {
        match self.ahead_ms() {
            ahead if is_clock_wrong(ahead) => own_ms.saturating_add_signed(ahead.saturating_neg()),
            _ => own_ms,
        }
    }

    /// The nodes whose clocks are set wrong, and how far they are ahead of the leader's, milliseconds.
    pub fn wrong_clocks(&self) -> Vec<(NodeName, i64)> {
        let fresh = |h: &&Held| h.at.elapsed() < STALE_AFTER;
        let wrong =
            |h: &Held| Some((h.report.node.clone(), h.report.ahead_ms.filter(|ms| is_clock_wrong(*ms))?));
        self.read(|n| n.values().filter(fresh).filter_map(wrong).collect())
    }

    fn read<R>(&self, f: impl FnOnce(&BTreeMap<NodeName, Held>) -> R) -> R {
        f(&self.nodes.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Whether a newer report of that node is held: this one was overtaken on its way.
    pub fn is_overtaken(&self, report: &NodeReport) -> bool {
        self.read(|n| n.get(&report.node).is_some_and(|held| held.overtakes(report)))
    }

    /// Takes a report, unless a newer one is held. Returns whether anything that users see has changed.
    pub fn merge(&self, report: NodeReport) -> bool {
        let mut nodes = self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = nodes.get(&report.node);
        if old.is_some_and(|o| o.overtakes(&report)) {
            return false;
        }
        let shape = |r: &NodeReport| r.guests.iter().map(|g| (g.vmid, g.state)).collect::<Vec<_>>();
        let changed =
            old.is_none_or(|o| shape(&o.report) != shape(&report) || o.report.lease != report.lease);
        nodes.insert(report.node.clone(), Held { report, at: Instant::now() });
        changed
    }

    /// Forgets a node that was removed.
    pub fn forget(&self, node: &NodeName) {
        self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(node);
        self.fenced.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(node);
    }

    /// A node's report, if it is fresh.
    pub fn node(&self, node: &NodeName) -> Option<NodeReport> {
        self.read(|n| n.get(node).filter(|h| h.at.elapsed() < STALE_AFTER).map(|h| h.report.clone()))
    }

    /// Every fresh report.
    pub fn all(&self) -> Vec<NodeReport> {
        self.read(|n| n.values().filter(|h| h.at.elapsed() < STALE_AFTER).map(|h| h.report.clone()).collect())
    }

    /// The nodes whose fresh reports say that somebody reads events there.
    pub fn listening(&self) -> Vec<NodeName> {
        let fresh = |h: &&Held| h.at.elapsed() < STALE_AFTER && h.report.listens;
        self.read(|n| n.values().filter(fresh).map(|h| h.report.node.clone()).collect())
    }

    /// Notes what this node has found out about the loss of any one node, for its next reports. None: it does not lead.
    pub fn foresee(&self, outlook: Option<Outlook>) {
        *self.outlook.write().unwrap_or_else(std::sync::PoisonError::into_inner) = outlook;
    }

    /// What this node has found out itself.
    pub fn own_outlook(&self) -> Option<Outlook> {
        self.outlook.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Whether the cluster survives the loss of any one node, as the node that leads has found out last.
    pub fn outlook(&self) -> Option<Outlook> {
        let fresh = |h: &&Held| h.at.elapsed() < STALE_AFTER;
        let told = self
            .read(|n| n.values().filter(fresh).filter_map(|h| h.report.outlook.clone()).max_by_key(|o| o.at));
        self.own_outlook().or(told)
    }

    /// Notes how far an order of this node to power another off is, for its next reports.
    pub fn fenced(&self, what: Fenced) {
        let mut fenced = self.fenced.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        fenced.insert(what.node.clone(), what);
    }

    /// An order that is under way was called off.
    pub fn called_off(&self, node: &NodeName) {
        let mut fenced = self.fenced.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if fenced.get(node).is_some_and(|f| f.took_ms.is_none()) {
            fenced.remove(node);
        }
    }

    /// What came of the orders that were given here.
    pub fn own_fenced(&self) -> Vec<Fenced> {
        self.fenced.read().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect()
    }

    /// How far the last order to power a node off is, wherever it was given.
    pub fn last_fenced(&self, node: &NodeName) -> Option<Fenced> {
        let fresh = |h: &&Held| h.at.elapsed() < STALE_AFTER;
        let mut all: Vec<Fenced> =
            self.read(|n| n.values().filter(fresh).flat_map(|h| h.report.fenced.clone()).collect());
        all.extend(self.own_fenced());
        // Of one order the later word: a report may be older than what is known here.
        all.into_iter().filter(|f| f.node == *node).max_by_key(|f| (f.at_ms, f.took_ms))
    }

    /// What is known of a guest's process on its owner.
    pub fn guest(&self, owner: &NodeName, vmid: Vmid) -> GuestKnown {
        self.read(|n| match n.get(owner).filter(|h| h.at.elapsed() < STALE_AFTER) {
            None => GuestKnown::Unknown,
            Some(h) => match h.report.guests.iter().find(|g| g.vmid == vmid) {
                Some(g) => GuestKnown::Process(g.clone()),
                None => GuestKnown::Absent,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_wrong_is_put_right_by_the_leaders() {
        const YEARS: i64 = 3 * 365 * 86_400_000;
        let status = ClusterStatus::default();
        for (ahead, now) in [(0, 1_000_000_000_000), (4_000, 1_000_000_000_000), (-4_000, 1_000_000_000_000)]
        {
            status.is_ahead(ahead);
            assert_eq!(status.cluster_ms(1_000_000_000_000), now, "{ahead} is under way, perhaps");
        }
        status.is_ahead(YEARS);
        assert_eq!(status.cluster_ms(1_000_000_000_000 + YEARS.unsigned_abs()), 1_000_000_000_000);
        status.is_ahead(-YEARS);
        assert_eq!(status.cluster_ms(1_000_000_000_000 - YEARS.unsigned_abs()), 1_000_000_000_000);
        status.is_ahead(i64::MAX);
        assert_eq!(status.cluster_ms(5), 0);
    }
}
