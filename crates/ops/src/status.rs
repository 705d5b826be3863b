//! Volatile status: what runs where, with what load. It never goes through Raft.
//!
//! Each node reports to the leader, which merges and hands the report on to every node; so every node can
//! answer for the whole cluster. A report that is old tells nothing: its guests are *unknown*, never stopped.

use crate::fence_devices::Fenced;
use crate::guest::addresses::Told;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use stead_ha::Outlook;
use stead_model::{BootId, NodeName, Vmid};
use stead_transport::Fingerprint;
use tokio::sync::watch;

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
    /// How far its clock is ahead of the cluster's, milliseconds; filled in by the leader, who hands the report on.
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
    /// Members that it knows to be alive in another cluster epoch.
    #[serde(default)]
    pub elsewhere: BTreeSet<NodeName>,
    /// The addresses of its guests whose agents tell them.
    #[serde(default)]
    pub addresses: Vec<(Vmid, Vec<IpAddr>)>,
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
    /// What the agents in this node's guests have told.
    told: Arc<RwLock<BTreeMap<Vmid, Told>>>,
    /// How far this node's clock is ahead of the cluster's, milliseconds, as the leader has said last.
    ahead_ms: Arc<AtomicI64>,
    /// The other nodes' clocks. Every node notes them, so that whoever begins to lead knows them.
    clocks: Arc<RwLock<Clocks>>,
    /// Whether it is known how far this node's clock is ahead.
    told_clock: Arc<watch::Sender<bool>>,
}

/// A clock that is farther from the cluster's than this is set wrong: a report is under way for less than four seconds, by
/// the leader to the others.
pub const CLOCK_BOUND: Duration = Duration::from_secs(5);

/// Whoever has heard others for this long has heard all that are on: each reports every two seconds. Before, a wrong
/// clock that came first would count for too much.
const ALL_HEARD_AFTER: Duration = Duration::from_secs(5);

/// Whether a clock is set wrong.
pub fn is_clock_wrong(ahead_ms: i64) -> bool {
    Duration::from_millis(ahead_ms.unsigned_abs()) > CLOCK_BOUND
}

/// What the cluster's clock is taken to be, of how far each node's is ahead of one and the same: the median, so that a wrong
/// one, the leader's too, sets no other. Of an even number, of the two in the middle the one nearer to 0, which is the
/// leader's own: where they can't be told apart, the leader's counts.
fn median(mut ahead_ms: Vec<i64>) -> i64 {
    ahead_ms.sort_unstable();
    let count = ahead_ms.len();
    let middle = &ahead_ms[count.saturating_sub(1) / 2..(count / 2 + 1).min(count)];
    middle.iter().copied().min_by_key(|ms| ms.unsigned_abs()).unwrap_or(0)
}

/// How far the other nodes' clocks are ahead of this one's.
#[derive(Debug, Default)]
struct Clocks {
    /// Since when others are heard without a gap.
    since: Option<Instant>,
    /// Milliseconds, as seen when the report came.
    ahead_ms: BTreeMap<NodeName, (i64, Instant)>,
}

impl Clocks {
    fn hear(&mut self, node: &NodeName, ahead_ms: i64, now: Instant) {
        self.ahead_ms.retain(|_, (_, at)| now.saturating_duration_since(*at) < STALE_AFTER);
        if self.ahead_ms.is_empty() {
            self.since = Some(now);
        }
        self.ahead_ms.insert(node.clone(), (ahead_ms, now));
    }

    /// How far the cluster's clock is ahead of this node's. None: too few have been heard yet.
    fn cluster(&self, now: Instant) -> Option<i64> {
        let ago = |at: Instant| now.saturating_duration_since(at);
        self.since.filter(|since| ago(*since) >= ALL_HEARD_AFTER)?;
        let fresh = self.ahead_ms.values().filter(|(_, at)| ago(*at) < STALE_AFTER);
        Some(median(fresh.map(|(ms, _)| *ms).chain([0]).collect()))
    }
}

impl ClusterStatus {
    /// Notes how far a node's clock is ahead of this one's, now that its report has come, milliseconds. How far it is ahead
    /// of the cluster's, if that can be told.
    pub fn hear_clock(&self, node: &NodeName, ahead_ms: i64) -> Option<i64> {
        let now = Instant::now();
        let mut clocks = self.clocks.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        clocks.hear(node, ahead_ms, now);
        Some(ahead_ms.saturating_sub(clocks.cluster(now)?))
    }

    /// How far this node's clock is ahead of the cluster's by what it has heard itself, if that can be told.
    pub fn own_ahead(&self) -> Option<i64> {
        let clocks = self.clocks.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(clocks.cluster(Instant::now())?.saturating_neg())
    }

    /// Notes how far this node's clock is ahead; 0 also when nobody can tell.
    pub fn is_ahead(&self, ms: i64) {
        self.ahead_ms.store(ms, Ordering::Relaxed);
    }

    /// Notes whether it is known how far this node's clock is ahead.
    pub fn knows_clock(&self, known: bool) {
        self.told_clock.send_if_modified(|was| std::mem::replace(was, known) != known);
    }

    /// Whether it is known how far this node's clock is ahead.
    pub fn clock_told(&self) -> watch::Receiver<bool> {
        self.told_clock.subscribe()
    }

    /// What was noted last of this node's clock: how many milliseconds it is ahead.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    /// The cluster's time, of a time by this node's clock, both in milliseconds since 1970: where this node's clock is
    /// set wrong, the median of the nodes'. So what one node signs is good at all.
    pub fn cluster_ms(&self, own_ms: u64) -> u64 {
        match self.ahead_ms() {
            ahead if is_clock_wrong(ahead) => own_ms.saturating_add_signed(ahead.saturating_neg()),
            _ => own_ms,
        }
    }

    /// The nodes whose clocks are set wrong, the leader's too, and how far they are ahead of the cluster's, milliseconds.
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
        self.clocks.write().unwrap_or_else(std::sync::PoisonError::into_inner).ahead_ms.remove(node);
    }

    /// A node's report, if it is fresh.
    pub fn node(&self, node: &NodeName) -> Option<NodeReport> {
        self.read(|n| n.get(node).filter(|h| h.at.elapsed() < STALE_AFTER).map(|h| h.report.clone()))
    }

    /// Every fresh report.
    pub fn all(&self) -> Vec<NodeReport> {
        self.read(|n| n.values().filter(|h| h.at.elapsed() < STALE_AFTER).map(|h| h.report.clone()).collect())
    }

    /// The members of whom a fresh report says that they are alive in another cluster epoch.
    pub fn elsewhere(&self) -> BTreeSet<NodeName> {
        let fresh = |h: &&Held| h.at.elapsed() < STALE_AFTER;
        self.read(|n| n.values().filter(fresh).flat_map(|h| h.report.elsewhere.iter().cloned()).collect())
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

    /// What the agents in this node's guests have told.
    pub(crate) fn told(&self) -> BTreeMap<Vmid, Told> {
        self.told.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Notes what they have told.
    pub(crate) fn tell(&self, told: BTreeMap<Vmid, Told>) {
        *self.told.write().unwrap_or_else(std::sync::PoisonError::into_inner) = told;
    }

    /// The addresses of this node's guests that run, for its reports.
    pub fn own_addresses(&self, running: &[GuestReport]) -> Vec<(Vmid, Vec<IpAddr>)> {
        let all = self.told();
        let runs = |vmid: &Vmid, told: &Told| running.iter().any(|p| p.vmid == *vmid && told.is_of(p.pid));
        let with = all.into_iter().filter(|(vmid, told)| !told.addresses.is_empty() && runs(vmid, told));
        with.map(|(vmid, told)| (vmid, told.addresses)).collect()
    }

    /// The addresses of a guest, as its owner reports them.
    pub fn addresses(&self, owner: &NodeName, vmid: Vmid) -> Vec<IpAddr> {
        self.read(|n| {
            let fresh = n.get(owner).filter(|h| h.at.elapsed() < STALE_AFTER);
            let found = fresh.and_then(|h| h.report.addresses.iter().find(|(id, _)| *id == vmid));
            found.map(|(_, addresses)| addresses.clone()).unwrap_or_default()
        })
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

    const YEARS: i64 = 3 * 365 * 86_400_000;

    #[test]
    fn one_wrong_clock_sets_no_other() {
        // Of three: another's, and the leader's, from which the others are away.
        assert_eq!(median(vec![-300, YEARS, 0]), 0);
        assert_eq!(median(vec![-YEARS, -YEARS - 300, 0]), -YEARS);
        // Of two nobody can tell which one is wrong: the leader's counts.
        assert_eq!((median(vec![YEARS, 0]), median(vec![-YEARS, 0])), (0, 0));
        // Of four, the leader's wrong, another's wrong, two by two.
        assert_eq!(median(vec![YEARS, YEARS + 200, YEARS + 300, 0]), YEARS);
        assert_eq!(median(vec![-100, 0, -YEARS, -200]), -100);
        assert_eq!(median(vec![YEARS, 0, 100, YEARS]), 100);
        assert_eq!((median(vec![0]), median(vec![])), (0, 0));
    }

    #[test]
    fn clocks_count_while_their_nodes_report_and_once_all_have() {
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let begin = Instant::now();
        let after = |s| begin + Duration::from_secs(s);
        let mut clocks = Clocks::default();
        assert_eq!(clocks.cluster(after(60)), None, "nobody was heard");
        clocks.hear(&a, YEARS, begin);
        assert_eq!(clocks.cluster(after(1)), None, "the other one may come yet");
        for s in [2, 4, 6] {
            clocks.hear(&a, YEARS, after(s));
            clocks.hear(&b, YEARS - 100, after(s));
        }
        assert_eq!(clocks.cluster(after(6)), Some(YEARS - 100), "this node's own is wrong");
        clocks.hear(&a, YEARS, after(13));
        assert_eq!(clocks.cluster(after(15)), Some(0), "b is off");
        clocks.hear(&a, YEARS, after(60));
        assert_eq!(clocks.cluster(after(61)), None, "after a gap as at the beginning");
    }

    #[test]
    fn a_clock_that_is_set_wrong_is_put_right() {
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
