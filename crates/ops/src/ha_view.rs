//! What the manager sees: records and files from the configuration, processes and loads from the nodes' reports.

use crate::ha::COMMANDS;
use crate::status::{GuestKnown, NodeReport};
use crate::store::GuestAt;
use crate::{Ops, OpsError, store};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use stead_conf::Revision;
use stead_driver::guest::{GuestProcess, RunState};
use stead_ha::{
    AgentReport, Load, ManagerState, NodeView, NodeWord, Now, Process, Request, ServiceView, Stats,
    Unmanaged, Use, View,
};
use stead_model::ha_cfg::{HaResource, HaResources, HaRule, HaRules};
use stead_model::vmconfig::devices::as_disk;
use stead_model::vmconfig::{Bus, VmConfig};
use stead_model::{
    Datacenter, HaOptions, NodeName, NodeRecord, NodeState, ServiceId, StorageId, Vmid, ha_groups, paths,
};

/// How long a round is in which an imbalance is counted, as administrators know it, seconds.
const ROUND: u64 = 10;

/// For so long after its start a guest counts with all the memory that it may use, seconds: what it will use is not known yet,
/// and a node must not be filled on the ground that it uses little so far.
const YOUNG: u64 = 60;

/// What is kept from round to round: sizes, so that not every configuration is read each time, and the loads of
/// guests that do not run just now.
#[derive(Debug, Default)]
pub struct Known {
    sizes: HashMap<Vmid, (Revision, Size)>,
    used: HashMap<Vmid, Load>,
}

#[derive(Debug, Clone, Default)]
struct Size {
    max: Load,
    lock: Option<String>,
    storages: Arc<BTreeMap<StorageId, Use>>,
}

impl Known {
    fn size(&mut self, vmid: Vmid, guest: &GuestAt) -> Size {
        let revision = guest.config.revision;
        if let Some((at, size)) = self.sizes.get(&vmid)
            && *at == revision
        {
            return size.clone();
        }
        let size = crate::guest::config::parse(&guest.config.value).map_or_else(
            |_| Size::default(),
            |config| {
                let cpu = config.current.cpus().map_or(1.0, f64::from);
                let mem = config.current.memory().map_or(0, |m| m.0 << 20);
                let lock = config.current.get("lock").map(str::to_owned);
                Size { max: Load { cpu, mem }, lock, storages: Arc::new(storages_of(&config)) }
            },
        );
        self.sizes.insert(vmid, (revision, size.clone()));
        size
    }

    /// A guest's load; of one that does not run, the one that it had.
    fn stats(&mut self, vmid: Vmid, max: Load, process: &GuestKnown) -> Stats {
        if let GuestKnown::Process(p) = process {
            self.used.insert(vmid, Load { cpu: p.cpu * max.cpu, mem: p.mem });
        }
        Stats { max, used: self.used.get(&vmid).copied().unwrap_or_default() }
    }
}

/// The storages that a guest needs, and what for.
pub(crate) fn storages_of(config: &VmConfig) -> BTreeMap<StorageId, Use> {
    let disks = config.current.disks().unwrap_or_default();
    let mut out = BTreeMap::new();
    for (key, volume) in config.current.volumes() {
        if as_disk(key).is_some_and(|(bus, _)| bus == Bus::Unused) {
            continue;
        }
        let medium = disks.iter().any(|d| d.key == key && d.cdrom);
        let how = if medium { Use::Medium } else { Use::Disk };
        let known = out.entry(volume.storage).or_insert(how);
        *known = how.max(*known);
    }
    out
}

/// The resources, and why some sections are none.
pub fn resources(ops: &Ops) -> Result<(BTreeMap<ServiceId, HaResource>, Vec<String>), OpsError> {
    let (text, _) = ops.file(paths::HA_RESOURCES)?;
    let cfg = HaResources::parse(&text)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_RESOURCES)))?;
    let (good, bad) = cfg.list();
    let told = |(id, why)| format!("{}: '{id}' is left alone: {why}", paths::HA_RESOURCES);
    Ok((good, bad.into_iter().map(told).collect()))
}

/// What the manager remembers, and the revision of that.
pub fn manager_state(ops: &Ops) -> Result<(ManagerState, Option<Revision>), OpsError> {
    let (text, revision) = ops.file(paths::HA_STATUS)?;
    if text.is_empty() {
        return Ok((ManagerState::default(), revision));
    }
    let state = serde_json::from_str(&text)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_STATUS)))?;
    Ok((state, revision))
}

fn rules(ops: &Ops, resources: &mut BTreeMap<ServiceId, HaResource>) -> Result<Vec<HaRule>, OpsError> {
    let cannot = |path: &str, e: String| OpsError::failed(format!("{path} cannot be read: {e}"));
    let (text, _) = ops.file(paths::HA_RULES)?;
    let mut rules = HaRules::parse(&text).map_err(|e| cannot(paths::HA_RULES, e.to_string()))?.list().0;
    let (text, _) = ops.file(paths::HA_GROUPS)?;
    let (groups, _) = ha_groups::parse(&text).map_err(|e| cannot(paths::HA_GROUPS, e.to_string()))?;
    rules.extend(ha_groups::to_rules(&groups, &rules, resources));
    Ok(rules)
}

/// The options of HA.
pub fn options(ops: &Ops) -> Result<HaOptions, OpsError> {
    let (text, _) = ops.file(paths::DATACENTER_CFG)?;
    let cfg = Datacenter::parse(&text)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::DATACENTER_CFG)))?;
    HaOptions::parse(cfg.settings.get("ha"), cfg.settings.get("crs"))
        .map_err(|e| OpsError::failed(format!("{}: {e}", paths::DATACENTER_CFG)))
}

fn requests(ops: &Ops) -> BTreeMap<String, Request> {
    ops.conf.view(|tree| {
        let read = |(path, entry): (&str, &stead_conf::Entry)| {
            Some((path.strip_prefix(COMMANDS)?.to_owned(), serde_json::from_slice(&entry.data).ok()?))
        };
        tree.list(COMMANDS).filter_map(|(path, entry)| read((path, entry))).collect()
    })
}

/// A node, with everything on it counted as not under HA; [`take_out`] corrects that.
fn node(word: NodeWord, report: Option<NodeReport>) -> NodeView {
    let Some(report) = report else {
        let (others, lost_storages) = (Stats::default(), BTreeMap::new());
        return NodeView { word, agent: None, capacity: Load::default(), others, lost_storages };
    };
    let lost = report.storages.iter().filter_map(|s| Some((s.storage.parse().ok()?, s.loss.clone()?)));
    let (stats, cpus) = (&report.stats, f64::from(report.stats.maxcpu));
    NodeView {
        word,
        lost_storages: lost.collect(),
        capacity: Load { cpu: cpus, mem: stats.maxmem },
        others: Stats { max: Load::default(), used: Load { cpu: stats.cpu * cpus, mem: stats.mem } },
        agent: Some(serde_json::from_value::<AgentReport>(report.ha).unwrap_or_default()),
    }
}

/// What a service uses is not what others use.
fn take_out(nodes: &mut BTreeMap<NodeName, NodeView>, owner: &NodeName, used: Load) {
    if let Some(node) = nodes.get_mut(owner) {
        let others = &mut node.others.used;
        others.cpu = (others.cpu - used.cpu).max(0.0);
        others.mem = others.mem.saturating_sub(used.mem);
    }
}

/// What a guest under HA means for the memory of its node: one that has just been started, all that it may use.
fn with_youth(stats: Stats, process: &GuestProcess) -> Stats {
    let mem = if process.uptime < YOUNG { stats.used.mem.max(stats.max.mem) } else { stats.used.mem };
    Stats { used: Load { mem, ..stats.used }, ..stats }
}

fn word(state: &NodeState, report: Option<&NodeReport>, settled: bool) -> NodeWord {
    match (state, report) {
        (NodeState::Lost { .. }, _) if settled => NodeWord::Lost,
        (NodeState::Member { boot }, Some(r)) if r.lease && r.boot == *boot => NodeWord::Online,
        _ => NodeWord::Unknown,
    }
}

/// Everything that the manager's next decision rests on. `settled`: whether a node that is committed lost can't have a lease
/// of this leader's time any more.
pub fn view(ops: &Ops, known: &mut Known, settled: impl Fn(&NodeName) -> bool) -> Result<View, OpsError> {
    Ok(look(ops, known, settled)?.0)
}

type Unmanageds = BTreeMap<ServiceId, Unmanaged>;

fn look(
    ops: &Ops,
    known: &mut Known,
    settled: impl Fn(&NodeName) -> bool,
) -> Result<(View, Unmanageds), OpsError> {
    // The agent of every node tells of what can't be read.
    let (mut resources, _) = resources(ops)?;
    let rules = rules(ops, &mut resources)?;
    let mut nodes = BTreeMap::new();
    for n in ops.guest_nodes() {
        let report = ops.status.node(&n.name);
        let settled = n.state.is_lost() && settled(&n.name);
        let word = word(&n.state, report.as_ref(), settled);
        nodes.insert(n.name, node(word, report));
    }
    let off: BTreeSet<NodeName> =
        ops.guest_nodes().into_iter().filter(NodeRecord::is_off).map(|n| n.name).collect();
    let (mut services, mut unmanaged) = (BTreeMap::new(), BTreeMap::new());
    for (vmid, own) in ops.conf.view(store::guests) {
        let sid = ServiceId { kind: own.kind, vmid };
        let Ok(guest) = ops.guest_at(vmid) else { continue };
        let own = guest.own.value.clone();
        let seen = ops.status.guest(&own.owner, vmid);
        let size = known.size(vmid, &guest);
        let stats = known.stats(vmid, size.max, &seen);
        let Some(resource) = resources.remove(&sid) else {
            if let (Some(node), true) = (nodes.get_mut(&own.owner), own.running) {
                node.others.max.cpu += size.max.cpu;
                node.others.max.mem += size.max.mem;
            }
            unmanaged.insert(sid, Unmanaged { owner: own.owner, running: own.running });
            continue;
        };
        let process = match &seen {
            GuestKnown::Process(p) if matches!(p.state, RunState::Inmigrate) => Process::Unknown,
            GuestKnown::Process(_) => Process::Running,
            GuestKnown::Absent => Process::Absent,
            GuestKnown::Unknown => Process::Unknown,
        };
        let stats = match &seen {
            GuestKnown::Process(p) if process == Process::Running => {
                take_out(&mut nodes, &own.owner, stats.used);
                with_youth(stats, p)
            }
            _ => stats,
        };
        // What ran without a guard on a node that is off runs no more: nobody need be asked for their word.
        let armed = own.armed || off.contains(&own.owner);
        let (owner, epoch, running) = (own.owner, own.epoch, own.running);
        let Size { lock, storages, .. } = size;
        let seen = ServiceView { resource, owner, epoch, running, armed, process, stats, lock, storages };
        services.insert(sid, seen);
    }
    known.sizes.retain(|vmid, _| ops.guest_at(*vmid).is_ok());
    let (options, requests, storages) = (options(ops)?, requests(ops), ops.storage_views());
    let me = ops.me.name.clone();
    let view = View { me, nodes, services, rules, options, storages, requests, round: ROUND };
    Ok((view, unmanaged))
}

/// The cluster as it is, to ask what would become of it.
pub fn now(ops: &Ops, known: &mut Known, settled: impl Fn(&NodeName) -> bool) -> Result<Now, OpsError> {
    let (view, unmanaged) = look(ops, known, settled)?;
    let (state, _) = manager_state(ops)?;
    let voters: BTreeSet<_> = ops.conf_voters().into_iter().collect();
    let voting: Vec<_> = ops.node_records().into_iter().filter(|n| voters.contains(&n.raft_id)).collect();
    let there = voting.iter().filter(|n| n.witness && ops.online(n));
    let witnesses = there.map(|n| n.name.clone()).collect();
    let voters = voting.into_iter().map(|n| n.name).collect();
    let at = crate::clock::unix_ms() / 1000;
    Ok(Now { at, view, state, unmanaged, voters, witnesses })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_needs_the_storages_of_its_disks_and_media() {
        let config = "scsi0: nfs1:100/vm-100-disk-0.raw,size=1G\nide2: isos:iso/x.iso,media=cdrom\n\
                      unused0: old:100/vm-100-disk-1.raw\nefidisk0: nfs2:100/vm-100-disk-2.raw\n\
                      sata0: nfs1:iso/y.iso,media=cdrom\n";
        let found = storages_of(&crate::guest::config::parse(config).unwrap());
        let told: Vec<_> = found.iter().map(|(id, how)| (id.as_str(), *how)).collect();
        assert_eq!(told, [("isos", Use::Medium), ("nfs1", Use::Disk), ("nfs2", Use::Disk)]);
    }

    #[test]
    fn a_young_guest_counts_with_all_the_memory_that_it_may_use() {
        let process = |uptime| GuestProcess {
            vmid: Vmid::MIN.to_string().parse().unwrap(),
            epoch: stead_model::Epoch(1),
            pid: 1,
            state: RunState::Running,
            stands: false,
            uptime,
            cpu: 0.0,
            mem: 100,
            balloon: None,
            net_in: 0,
            net_out: 0,
            disk_read: 0,
            disk_write: 0,
            machine: String::new(),
            accel: String::new(),
            version: String::new(),
            model: None,
        };
        let stats = Stats { max: Load { cpu: 1.0, mem: 1000 }, used: Load { cpu: 0.5, mem: 100 } };
        let counted = |uptime| with_youth(stats, &process(uptime)).used;
        assert_eq!(counted(0), Load { cpu: 0.5, mem: 1000 });
        assert_eq!(counted(YOUNG), stats.used);
    }
}
