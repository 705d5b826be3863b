//! What the manager sees: records and files from the configuration, processes and loads from the nodes' reports.

use super::resources;
use crate::grant::GrantHandle;
use std::collections::{BTreeMap, HashMap};
use stead_conf::Revision;
use stead_driver::guest::RunState;
use stead_ha::{AgentReport, Load, NodeView, NodeWord, Process, Request, ServiceView, Stats, View};
use stead_model::ha_cfg::{HaResource, HaRule, HaRules};
use stead_model::{Datacenter, HaOptions, NodeName, NodeState, ServiceId, Vmid, ha_groups, paths};
use stead_ops::ha::COMMANDS;
use stead_ops::status::{GuestKnown, NodeReport};
use stead_ops::store::GuestAt;
use stead_ops::{Ops, OpsError, store};

/// How long a round is in which an imbalance is counted, as administrators know it, seconds.
const ROUND: u64 = 10;

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
}

impl Known {
    fn size(&mut self, vmid: Vmid, guest: &GuestAt) -> Size {
        let revision = guest.config.revision;
        if let Some((at, size)) = self.sizes.get(&vmid)
            && *at == revision
        {
            return size.clone();
        }
        let size = stead_ops::guest::config::parse(&guest.config.value).map_or_else(
            |_| Size::default(),
            |config| {
                let cpu = config.current.cpus().map_or(1.0, f64::from);
                let mem = config.current.memory().map_or(0, |m| m.0 << 20);
                Size { max: Load { cpu, mem }, lock: config.current.get("lock").map(str::to_owned) }
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
        return NodeView { word, agent: None, capacity: Load::default(), others: Stats::default() };
    };
    let (stats, cpus) = (&report.stats, f64::from(report.stats.maxcpu));
    NodeView {
        word,
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

/// Everything that the manager's next decision rests on.
pub async fn view(ops: &Ops, grant: &GrantHandle, known: &mut Known) -> Result<View, OpsError> {
    // The agent of every node tells of what can't be read.
    let (mut resources, _) = resources(ops)?;
    let rules = rules(ops, &mut resources)?;
    let mut nodes = BTreeMap::new();
    for n in ops.guest_nodes() {
        let report = ops.status.node(&n.name);
        let settled = n.state.is_lost() && grant.settled(&n.name).await;
        let word = match (&n.state, &report) {
            (NodeState::Lost { .. }, _) if settled => NodeWord::Lost,
            (NodeState::Member { boot }, Some(r)) if r.lease && r.boot == *boot => NodeWord::Online,
            _ => NodeWord::Unknown,
        };
        nodes.insert(n.name, node(word, report));
    }
    let mut services = BTreeMap::new();
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
            continue;
        };
        let process = match seen {
            GuestKnown::Process(p) if matches!(p.state, RunState::Inmigrate) => Process::Unknown,
            GuestKnown::Process(_) => Process::Running,
            GuestKnown::Absent => Process::Absent,
            GuestKnown::Unknown => Process::Unknown,
        };
        if process == Process::Running {
            take_out(&mut nodes, &own.owner, stats.used);
        }
        let (owner, epoch, running, armed) = (own.owner, own.epoch, own.running, own.armed);
        let lock = size.lock;
        services.insert(sid, ServiceView { resource, owner, epoch, running, armed, process, stats, lock });
    }
    known.sizes.retain(|vmid, _| ops.guest_at(*vmid).is_ok());
    let (options, requests) = (options(ops)?, requests(ops));
    Ok(View { me: ops.me.name.clone(), nodes, services, rules, options, requests, round: ROUND })
}
