//! Many guests at once: start, shut down, suspend or move all of a node's, or of the cluster's.
//!
//! One task does it, in the order of the guests' `startup`, by the same use cases as for one guest, each with a task of its own.
//! What fails for one guest does not stop the others: it is a warning in the log, and the task ends as `WARNINGS: n`, or with
//! an error if it failed for all. Who stops the task stops what is under way, and nothing more is begun.
//!
//! | | who | in which order | at a time, by default |
//! |---|---|---|---|
//! | start | does not run, `onboot` or asked for by force | rising, `up` seconds after each | one |
//! | shut down | runs | falling, within `down` seconds each | `max_workers` of the cluster, else 4 |
//! | suspend | its CPUs run | falling | `max_workers`, else 4 |
//! | move | is on another node than the target | by number | `max_workers`, else 1 |
//!
//! Guests under HA go through HA, as one guest does; at the start of the node they are left to it.
//!
//! A guest on another node is acted on by that node, which is told on whose behalf; what the caller may do was checked here.

use crate::guest::Asked;
use crate::guest::migrate::MigrateOptions;
use crate::guest::power::PowerAction;
use crate::peers::call;
use crate::status::GuestKnown;
use crate::{Actor, Ops, OpsError, store};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::RunState;
use stead_model::{GuestKind, NodeName, Upid, Vmid};
use stead_tasks::TaskContext;

/// The call by which a node is asked to act on one of its guests.
pub const ACT_CALL: &str = "guest/act";
/// The call that waits a little for the end of a task.
pub const WAIT_CALL: &str = "task/wait";
/// The call that asks a task to stop.
pub const STOP_CALL: &str = "task/stop";

/// How long [`WAIT_CALL`] waits before it answers that the task goes on.
const WAIT: Duration = Duration::from_secs(5);
/// How long a node may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// How often in a row a node may fail to answer before what it does is given up.
const PATIENCE: u32 = 6;
/// How long the tasks that are under way may take to end when all is to be stopped.
const STOPPING: Duration = Duration::from_secs(30);

/// What to do with each guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Work {
    /// Start it.
    Start {
        /// Seconds within which it must run; none: each step has its own limit.
        timeout: Option<u64>,
    },
    /// Ask its system to shut down.
    Shutdown {
        /// Seconds, unless its `startup` says `down`.
        timeout: u64,
        /// Stop it after that.
        force: bool,
    },
    /// Stop its CPUs.
    Suspend,
    /// Move it.
    Migrate {
        /// Where to.
        target: NodeName,
        /// While it runs. None: if it runs.
        online: Option<bool>,
        /// With disks that the target has not, also while it runs.
        #[serde(default)]
        with_local_disks: bool,
    },
}

/// Which guests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// Of this node alone.
    pub here: bool,
    /// These alone; empty: all.
    pub vms: BTreeSet<Vmid>,
    /// Those alone that start with their node (`onboot`).
    pub onboot: bool,
    /// None that HA maintains.
    pub without_ha: bool,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bulk {
    /// The type of the task: `startall`, ...
    pub worker: &'static str,
    /// What to do.
    pub work: Work,
    /// With whom.
    pub which: Which,
    /// How many at a time.
    pub workers: Option<usize>,
}

/// A guest that is to be acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    vmid: Vmid,
    owner: NodeName,
    /// Its place in the order.
    order: u64,
    /// Seconds to wait after its start.
    up: u64,
    /// What to do with it.
    work: Work,
}

/// What [`ACT_CALL`] carries.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Act {
    /// On whose behalf.
    pub who: String,
    /// The guest.
    pub vmid: Vmid,
    /// What to do.
    pub work: Work,
}

/// How many of the guests it was done with.
#[derive(Debug, Default)]
struct Tally {
    done: usize,
    failed: Vec<Vmid>,
}

impl Work {
    /// The privilege that it needs on a guest.
    pub fn privilege(&self) -> &'static str {
        match self {
            Self::Start { .. } | Self::Shutdown { .. } | Self::Suspend => "VM.PowerMgmt",
            Self::Migrate { .. } => "VM.Migrate",
        }
    }

    fn verb(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Shutdown { .. } => "shut down",
            Self::Suspend => "suspend",
            Self::Migrate { .. } => "migrate",
        }
    }

    /// How many at a time unless something else is said.
    fn workers(&self, of_cluster: Option<usize>) -> usize {
        match self {
            // Whoever wants it quicker says so: a delay after each start would mean little otherwise.
            Self::Start { .. } => 1,
            Self::Shutdown { .. } | Self::Suspend => of_cluster.unwrap_or(4),
            Self::Migrate { .. } => of_cluster.unwrap_or(1),
        }
    }

    /// Whether the last in order begins.
    fn falls(&self) -> bool {
        matches!(self, Self::Shutdown { .. } | Self::Suspend)
    }
}

/// In groups of one order, which follow each other.
fn in_groups(mut items: Vec<Item>, work: &Work) -> Vec<Vec<Item>> {
    items.sort_by_key(|i| i.vmid);
    if matches!(work, Work::Migrate { .. }) {
        return if items.is_empty() { vec![] } else { vec![items] };
    }
    let mut groups = BTreeMap::<u64, Vec<Item>>::new();
    for item in items {
        groups.entry(item.order).or_default().push(item);
    }
    let mut out: Vec<Vec<Item>> = groups.into_values().collect();
    if work.falls() {
        out.reverse();
    }
    out
}

impl Ops {
    /// Does something with many guests, as one task. Of those that are wanted, with all on which the actor has the privilege.
    ///
    /// # Errors
    /// If the target of a move can't be one.
    pub fn bulk(self: &Arc<Self>, actor: &Actor, bulk: Bulk) -> Result<Upid, OpsError> {
        if let Work::Migrate { target, .. } = &bulk.work {
            if bulk.which.here && *target == self.me.name {
                return Err(OpsError::invalid("target", "target is local node."));
            }
            let known = self.migration_target(target)?.value;
            if !self.online(&known) {
                return Err(OpsError::failed(format!("target node '{target}' is not online")));
            }
        }
        let (ops, by) = (self.clone(), actor.clone());
        self.task(bulk.worker, "", &actor.who, move |cx| async move { ops.bulk_now(&cx, &by, &bulk).await })
    }

    /// The guests that shall start with this node and do not run, in their order, with how long is waited after each. Those under HA
    /// are HA's.
    pub async fn starting_with_node(&self) -> Vec<(Vmid, Duration)> {
        let which = Which { here: true, onboot: true, without_ha: true, ..Which::default() };
        let bulk = Bulk { worker: "startall", work: Work::Start { timeout: None }, which, workers: None };
        let mut items = self.wanted(&Actor::system(), &bulk).await;
        // What may run is not started a second time.
        items.retain(|i| self.guest_at(i.vmid).is_ok_and(|g| !g.own.value.running));
        let groups = in_groups(items, &bulk.work);
        groups.into_iter().flatten().map(|i| (i.vmid, Duration::from_secs(i.up))).collect()
    }

    async fn bulk_now(self: &Arc<Self>, cx: &TaskContext, by: &Actor, bulk: &Bulk) -> Result<(), OpsError> {
        let items = self.wanted(by, bulk).await;
        let of_others = bulk.which.vms.iter().filter(|v| !items.iter().any(|i| i.vmid == **v));
        for vmid in of_others {
            cx.log(format!("VM {vmid} is left alone: there is nothing to {} here", bulk.work.verb()));
        }
        let total = items.len();
        if total == 0 {
            cx.log(format!("there is no guest to {}", bulk.work.verb()));
            return Ok(());
        }
        let of_cluster = self.datacenter()?.0.max_workers();
        let workers = bulk.workers.unwrap_or_else(|| bulk.work.workers(of_cluster)).clamp(1, 64);
        let mut tally = Tally::default();
        for group in in_groups(items, &bulk.work) {
            let mut running = stream::iter(group)
                .map(|item| async move { (item.vmid, self.one(cx, by, item).await) })
                .buffer_unordered(workers);
            while let Some((vmid, outcome)) = running.next().await {
                match outcome {
                    Some(true) => tally.done += 1,
                    Some(false) => tally.failed.push(vmid),
                    None => {}
                }
                cx.progress((tally.done + tally.failed.len()) as f64 / total as f64);
            }
            cx.check().map_err(|e| OpsError::failed(e.to_string()))?;
        }
        cx.log(format!("{} of {total} guests: done", tally.done));
        tally.failed.sort_unstable();
        if tally.done == 0 {
            let failed = tally.failed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(OpsError::failed(format!(
                "could not {} any of these guests: {failed}",
                bulk.work.verb()
            )));
        }
        Ok(())
    }

    /// The guests that it is to be done with.
    async fn wanted(&self, by: &Actor, bulk: &Bulk) -> Vec<Item> {
        let mut out = vec![];
        let which = &bulk.which;
        for (vmid, own) in self.conf.view(store::guests) {
            let chosen = (which.vms.is_empty() || which.vms.contains(&vmid))
                && (!which.here || own.owner == self.me.name)
                && own.kind == GuestKind::Qemu
                && by.may(&format!("/vms/{vmid}"), bulk.work.privilege());
            if !chosen || (which.without_ha && self.ha_maintains(vmid).unwrap_or(true)) {
                continue;
            }
            let Ok(guest) = self.guest_at(vmid) else { continue };
            let Ok(config) = crate::guest::config::parse(&guest.config.value) else { continue };
            let config = config.current;
            if config.template() && !matches!(bulk.work, Work::Migrate { .. }) {
                continue;
            }
            let state = self.run_state(vmid, &own.owner).await;
            let fits = match &bulk.work {
                Work::Start { .. } => state.is_none() && (!which.onboot || config.onboot()),
                Work::Shutdown { .. } => state.is_some(),
                Work::Suspend => state == Some(RunState::Running),
                Work::Migrate { target, .. } => own.owner != *target,
            };
            if !fits {
                continue;
            }
            let startup = config.startup().unwrap_or_default();
            let work = match &bulk.work {
                Work::Shutdown { timeout, force } => {
                    Work::Shutdown { timeout: startup.down.unwrap_or(*timeout), force: *force }
                }
                other => other.clone(),
            };
            let (order, up) = (startup.order.unwrap_or(u64::MAX), startup.up.unwrap_or(0));
            out.push(Item { vmid, owner: own.owner, order, up, work });
        }
        out
    }

    async fn run_state(&self, vmid: Vmid, owner: &NodeName) -> Option<RunState> {
        if *owner == self.me.name {
            return self.guests.state(vmid).await.map(|p| p.state);
        }
        match self.status.guest(owner, vmid) {
            GuestKnown::Process(p) => Some(p.state),
            GuestKnown::Absent | GuestKnown::Unknown => None,
        }
    }

    /// One guest. Whether it was done; none if it was not begun, since all was to be stopped.
    async fn one(self: &Arc<Self>, cx: &TaskContext, by: &Actor, item: Item) -> Option<bool> {
        let Item { vmid, owner, up, work, .. } = item;
        if cx.is_cancelled() {
            return None;
        }
        let verb = work.verb();
        cx.log(format!("VM {vmid} on node '{owner}': {verb}"));
        let starts = matches!(work, Work::Start { .. });
        let act = Act { who: by.who.clone(), vmid, work };
        let ended = match self.begin(by, &owner, &act).await {
            Ok(upid) => self.follow(cx, &owner, &upid).await,
            Err(e) => Err(e.to_string()),
        };
        match ended {
            Ok(status) => cx.log(format!("VM {vmid}: {status}")),
            Err(why) => {
                cx.warn(format!("VM {vmid}: could not {verb} it: {why}"));
                return Some(false);
            }
        }
        if starts && up > 0 {
            // Whether all is to be stopped is asked before the next one.
            let _ = cx.or_cancelled(tokio::time::sleep(Duration::from_secs(up))).await;
        }
        Some(true)
    }

    /// Begins it, where the guest is.
    async fn begin(self: &Arc<Self>, by: &Actor, owner: &NodeName, act: &Act) -> Result<Upid, OpsError> {
        if *owner == self.me.name {
            return self.act(by, act).await;
        }
        let to = self.node_record(owner)?.value;
        Ok(call(&*self.peers, &to, ACT_CALL, act, LIMIT).await?)
    }

    /// Acts on a guest of this node, on behalf of someone whom another node has found allowed to.
    ///
    /// # Errors
    /// As the use case of one guest.
    pub async fn act_for(self: &Arc<Self>, act: &Act) -> Result<Upid, OpsError> {
        self.act(&Actor::new(act.who.clone(), false, Arc::new(|_, _| true)), act).await
    }

    async fn act(self: &Arc<Self>, by: &Actor, act: &Act) -> Result<Upid, OpsError> {
        let (vmid, asked) = (act.vmid, Asked::default());
        let owner = self.guest_at(vmid)?.own.value.owner;
        if owner != self.me.name {
            return Err(OpsError::failed(format!("it is on node '{owner}' by now")));
        }
        match &act.work {
            Work::Start { timeout } => {
                self.start_within(by, vmid, asked, timeout.map(Duration::from_secs)).await
            }
            Work::Shutdown { timeout, force } => {
                let action = PowerAction::Shutdown { timeout: Duration::from_secs(*timeout), force: *force };
                self.power(by, vmid, action, asked).await
            }
            Work::Suspend => self.power(by, vmid, PowerAction::Suspend, asked).await,
            Work::Migrate { target, online, with_local_disks } => {
                let online = match online {
                    Some(online) => *online,
                    None => self.guests.state(vmid).await.is_some(),
                };
                let with_local_disks = *with_local_disks;
                let options =
                    MigrateOptions { with_local_disks, ..MigrateOptions::to(target.clone(), online) };
                self.migrate(by, vmid, options, asked).await
            }
        }
    }

    /// Waits for a guest's task; when all is to be stopped, asks it to stop first.
    async fn follow(&self, cx: &TaskContext, node: &NodeName, upid: &Upid) -> Result<String, String> {
        let status = match cx.or_cancelled(self.end_of(node, upid)).await {
            Ok(status) => status,
            Err(stopped) => {
                self.stop_at(node, upid).await;
                tokio::time::timeout(STOPPING, self.end_of(node, upid))
                    .await
                    .map_err(|_| stopped.to_string())?
            }
        }?;
        if status == "OK" || status.starts_with("WARNINGS") { Ok(status) } else { Err(status) }
    }

    async fn end_of(&self, node: &NodeName, upid: &Upid) -> Result<String, String> {
        let gone = || format!("its task {upid} is gone");
        if *node == self.me.name {
            return self.tasks.wait(upid).await.and_then(|t| t.exitstatus).ok_or_else(gone);
        }
        let mut silent = 0;
        loop {
            let to = self.node_record(node).map_err(|e| e.to_string())?.value;
            match call::<_, Option<String>>(&*self.peers, &to, WAIT_CALL, upid, LIMIT).await {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => silent = 0,
                Err(e) if silent >= PATIENCE => return Err(format!("what became of it is not known: {e}")),
                Err(crate::peers::PeerError::Refused(why)) => return Err(why),
                Err(_) => {
                    silent += 1;
                    // There is nothing to await: a node that can't be reached says nothing.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn stop_at(&self, node: &NodeName, upid: &Upid) {
        if *node == self.me.name {
            self.tasks.stop(upid);
            return;
        }
        let Ok(to) = self.node_record(node) else { return };
        if let Err(e) = call::<_, bool>(&*self.peers, &to.value, STOP_CALL, upid, LIMIT).await {
            tracing::debug!("task {upid} could not be asked to stop: {e}");
        }
    }

    /// How a task of this node has ended, if it does so within a few seconds; none: it goes on.
    ///
    /// # Errors
    /// If there is no such task.
    pub async fn wait_a_little(&self, upid: &Upid) -> Result<Option<String>, OpsError> {
        match tokio::time::timeout(WAIT, self.tasks.wait(upid)).await {
            Err(_) => Ok(None),
            Ok(Some(task)) => Ok(task.exitstatus),
            Ok(None) => Err(OpsError::failed(format!("no such task '{upid}'"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(vmid: u32, order: Option<u64>) -> Item {
        let (vmid, owner) = (Vmid::new(vmid).unwrap(), "n1".parse().unwrap());
        Item { vmid, owner, order: order.unwrap_or(u64::MAX), up: 0, work: Work::Suspend }
    }

    fn groups(work: &Work) -> Vec<Vec<u32>> {
        let all = vec![
            item(104, None),
            item(103, Some(1)),
            item(102, Some(2)),
            item(101, Some(1)),
            item(100, None),
        ];
        let groups = in_groups(all, work);
        groups.into_iter().map(|g| g.into_iter().map(|i| i.vmid.get()).collect()).collect()
    }

    #[test]
    fn guests_start_by_their_order_and_stop_the_other_way_round() {
        let start = groups(&Work::Start { timeout: None });
        assert_eq!(start, [vec![101, 103], vec![102], vec![100, 104]]);
        let stop = groups(&Work::Shutdown { timeout: 1, force: true });
        assert_eq!(stop, [vec![100, 104], vec![102], vec![101, 103]]);
        assert_eq!(groups(&Work::Suspend), stop);
        let target = "n2".parse().unwrap();
        let migrate = groups(&Work::Migrate { target, online: None, with_local_disks: false });
        assert_eq!(migrate, [vec![100, 101, 102, 103, 104]]);
    }
}
