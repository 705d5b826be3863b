//! The shells of HA: the manager's on the leader, the agent's on every node. Both decide nothing.

use crate::clock::{boottime, unix_ms};
use crate::grant::GrantHandle;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{Check, Op};
use stead_driver::guest::RunState;
use stead_ha::{
    Agent, AgentCommand, AgentView, Attempt, Command, ManagerState, NodeView, NodeWord, Process, Report,
    ServiceView, View, step,
};
use stead_model::ha_cfg::{HaResource, HaResources, HaRules, RequestedState};
use stead_model::{GuestKind, NodeName, NodeState, Ownership, ServiceId, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::migrate::MigrateOptions;
use stead_ops::guest::power::{PowerAction, SHUTDOWN_TIMEOUT};
use stead_ops::ha::{COMMANDS, CrmCommand};
use stead_ops::status::GuestKnown;
use stead_ops::{Actor, Ops, OpsError, store};
use tokio::sync::{mpsc, watch};

/// How often both look again without a cause.
const PERIOD: Duration = Duration::from_millis(500);

/// The manager, for as long as the daemon runs; it acts while this node leads.
pub async fn manage(ops: Arc<Ops>, grant: GrantHandle) {
    let mut watch = ops.conf.watch();
    loop {
        let leads = {
            let s = ops.conf.status();
            let s = s.borrow();
            s.is_leader && s.quorate
        };
        if leads && let Err(e) = manage_once(&ops, &grant).await {
            tracing::warn!("HA manager: {e}");
        }
        // A commit, or the period: reports change without one.
        if let Ok(None) = tokio::time::timeout(PERIOD, watch.next()).await {
            return;
        }
    }
}

/// The resources, and why some sections are none.
fn resources(ops: &Ops) -> Result<(BTreeMap<ServiceId, HaResource>, Vec<String>), OpsError> {
    let (text, _) = ops.file(paths::HA_RESOURCES)?;
    let cfg = HaResources::parse(&text)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_RESOURCES)))?;
    let (good, bad) = cfg.list();
    let told = |(id, why)| format!("{}: '{id}' is left alone: {why}", paths::HA_RESOURCES);
    Ok((good, bad.into_iter().map(told).collect()))
}

/// What is to be said again only when it has changed.
#[derive(Debug, Default)]
struct Said(Vec<String>);

impl Said {
    /// What of `all` is new since the last time.
    fn news(&mut self, all: Vec<String>) -> Vec<String> {
        let old = std::mem::replace(&mut self.0, all);
        self.0.iter().filter(|text| !old.contains(text)).cloned().collect()
    }
}

async fn manage_once(ops: &Ops, grant: &GrantHandle) -> Result<(), OpsError> {
    let view = view(ops, grant).await?;
    if view.services.is_empty() && ops.file(paths::HA_STATUS)?.1.is_none() {
        return Ok(());
    }
    let (text, revision) = ops.file(paths::HA_STATUS)?;
    let before: ManagerState = if text.is_empty() {
        ManagerState::default()
    } else {
        serde_json::from_str(&text)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_STATUS)))?
    };
    let mut state = before.clone();
    let commands = step(unix_ms() / 1000, &view, &mut state);
    if state != before {
        let mut txn = store::txn("root@pam", "HA manager");
        store::put_over(&mut txn, paths::HA_STATUS, revision, store::bytes(&state)?);
        ops.conf.transact(txn).await?;
        say_changes(ops, &before, &state);
    }
    for command in commands {
        if let Err(e) = carry_out(ops, &command).await {
            tracing::warn!("HA manager: {command:?}: {e}");
        }
    }
    Ok(())
}

fn say_changes(ops: &Ops, before: &ManagerState, now: &ManagerState) {
    for (sid, s) in &now.service_status {
        if before.service_status.get(sid).is_none_or(|b| b.uid != s.uid) {
            tracing::info!("{sid}: {:?} on '{}': {}", s.state, s.node, s.reason);
            ops.events.emit(
                "ha",
                sid.to_string(),
                serde_json::json!({"state": s.state, "node": s.node, "reason": s.reason}),
            );
        }
    }
}

async fn view(ops: &Ops, grant: &GrantHandle) -> Result<View, OpsError> {
    // The agent of every node tells of what can't be read.
    let (resources, _) = resources(ops)?;
    let (rules, _) = ops.file(paths::HA_RULES)?;
    let rules = HaRules::parse(&rules)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_RULES)))?
        .list()
        .0;
    let mut nodes = BTreeMap::new();
    for n in ops.node_records() {
        let report = ops.status.node(&n.name);
        let settled = n.state.is_lost() && grant.settled(&n.name).await;
        let word = match (&n.state, &report) {
            (NodeState::Lost { .. }, _) if settled => NodeWord::Lost,
            (NodeState::Member { boot }, Some(r)) if r.lease && r.boot == *boot => NodeWord::Online,
            _ => NodeWord::Unknown,
        };
        let reports = report.and_then(|r| serde_json::from_value(r.ha).ok()).unwrap_or_default();
        nodes.insert(n.name, NodeView { word, reports });
    }
    let mut services = BTreeMap::new();
    for (sid, resource) in resources {
        if resource.state == RequestedState::Ignored {
            continue;
        }
        let Ok(guest) = ops.guest_at(sid.vmid) else { continue };
        let own = guest.own.value;
        let process = match ops.status.guest(&own.owner, sid.vmid) {
            GuestKnown::Process(p) if matches!(p.state, RunState::Inmigrate) => Process::Unknown,
            GuestKnown::Process(_) => Process::Running,
            GuestKnown::Absent => Process::Absent,
            GuestKnown::Unknown => Process::Unknown,
        };
        let request = request(ops, sid);
        let (owner, epoch, running, armed) = (own.owner, own.epoch, own.running, own.armed);
        services.insert(sid, ServiceView { resource, owner, epoch, running, armed, process, request });
    }
    Ok(View { me: ops.me.name.clone(), nodes, services, rules })
}

fn request(ops: &Ops, sid: ServiceId) -> Option<(NodeName, bool)> {
    let path = format!("{COMMANDS}{}", sid.vmid);
    let found = ops.conf.view(|t| store::record::<CrmCommand>(t, &path)).ok()??;
    Some((found.value.target, found.value.relocate))
}

async fn carry_out(ops: &Ops, command: &Command) -> Result<(), OpsError> {
    match command {
        Command::DropRequest { sid, reason } => {
            let path = format!("{COMMANDS}{}", sid.vmid);
            if reason != "taken" {
                tracing::warn!("{sid}: the request to move it is dropped: {reason}");
            }
            let mut txn = store::txn("root@pam", format!("{sid}: request dropped: {reason}"));
            txn.checks.push(Check::Exists(path.clone()));
            txn.ops.push(Op::Delete(path));
            ops.conf.transact(txn).await?;
            Ok(())
        }
        Command::Recover { sid, from, to, epoch, reason } => {
            let guest = ops.guest_at(sid.vmid)?;
            let node = ops.node_record(from)?;
            let own = &guest.own.value;
            // The preconditions of rule 2: the record as seen, and a node still committed lost.
            let guarded = own.armed || !own.running;
            if own.owner != *from || own.epoch != *epoch || !guarded || !node.value.state.is_lost() {
                return Ok(());
            }
            let new = Ownership {
                owner: to.clone(),
                epoch: epoch.next(),
                armed: false,
                running: false,
                recovered: true,
                kind: own.kind,
            };
            let mut config = stead_ops::guest::config::parse(&guest.config.value)?;
            // A lock names a task of the lost node: it ended with it.
            config.current.remove("lock");
            let mut txn = store::txn("root@pam", format!("{sid} recovered: {reason}"));
            txn.checks.push(Check::Revision(paths::node(from), node.revision));
            store::put_over(
                &mut txn,
                &paths::ownership(sid.vmid),
                Some(guest.own.revision),
                store::bytes(&new)?,
            );
            txn.checks.push(Check::Revision(guest.path(), guest.config.revision));
            txn.ops.push(Op::Delete(guest.path()));
            txn.ops
                .push(Op::Put(paths::guest(to, own.kind, sid.vmid), config.to_string().into_bytes().into()));
            ops.conf.transact(txn).await?;
            tracing::warn!("{sid}: recovered from '{from}' to '{to}' under epoch {}: {reason}", epoch.next());
            Ok(())
        }
    }
}

/// What the agent tells the manager, for the status report.
pub type Reports = BTreeMap<ServiceId, Report>;

/// The agent, for as long as the daemon runs.
pub async fn agent(ops: Arc<Ops>, reports: watch::Sender<Reports>) {
    let mut agent = Agent::default();
    let mut watch = ops.conf.watch();
    let mut guests = ops.guests.events();
    let (ended, mut endings) = mpsc::channel::<Ending>(64);
    // Endings that the agent has not been told yet: each counts, or a service would stay busy for ever.
    let mut untold = vec![];
    let mut said = Said::default();
    loop {
        match agent_view(&ops).await {
            Ok((view, bad)) => {
                for text in said.news(bad) {
                    tracing::warn!("{text}");
                }
                for (command, result) in untold.drain(..) {
                    agent.ended(boottime(), &view, &command, result);
                }
                for command in agent.step(boottime(), &view) {
                    tokio::spawn(attempt(ops.clone(), command, ended.clone()));
                }
            }
            Err(e) => tracing::warn!("HA agent: {e}"),
        }
        let changed = reports.send_if_modified(|r| {
            let new = agent.reports();
            std::mem::replace(r, new.clone()) != new
        });
        if changed {
            ops.flush.now().await;
        }
        tokio::select! {
            event = watch.next() => if event.is_none() { return },
            _ = guests.recv() => {}
            Some(ending) = endings.recv() => untold.push(ending),
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// How an attempt has ended.
type Ending = (AgentCommand, Result<(), String>);

/// What the agent sees, and which resources can't be read.
async fn agent_view(ops: &Ops) -> Result<(AgentView, Vec<String>), OpsError> {
    let manager = serde_json::from_value(ops.ha_manager_status()?)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_STATUS)))?;
    let mut owned = BTreeSet::new();
    for (vmid, own) in ops.conf.view(store::guests) {
        if own.owner == ops.me.name && own.kind == GuestKind::Qemu {
            owned.insert(ServiceId { kind: own.kind, vmid });
        }
    }
    let present =
        ops.guests.list().await.into_iter().map(|p| ServiceId { kind: GuestKind::Qemu, vmid: p.vmid });
    let (good, bad) = resources(ops)?;
    let max_restart = good.into_iter().map(|(sid, r)| (sid, r.max_restart)).collect();
    let present = present.filter(|s| owned.contains(s)).collect();
    let ready = ops.lease.borrow().held;
    Ok((AgentView { me: ops.me.name.clone(), manager, ready, owned, present, max_restart }, bad))
}

/// Carries one attempt out, as a task that users see, and tells how it ended.
async fn attempt(ops: Arc<Ops>, command: AgentCommand, ended: mpsc::Sender<Ending>) {
    tracing::info!("{}: {:?}: {}", command.sid, command.attempt, command.reason);
    let result = try_it(&ops, &command).await.map_err(|e| e.to_string());
    if let Err(e) = &result {
        tracing::warn!("{}: {:?}: {e}", command.sid, command.attempt);
    }
    // The agent is gone only when the daemon ends.
    let _ = ended.send((command, result)).await;
}

async fn try_it(ops: &Arc<Ops>, command: &AgentCommand) -> Result<(), OpsError> {
    let (actor, vmid) = (Actor::system(), command.sid.vmid);
    let by_ha = Asked { by_ha: true, skiplock: false };
    let stop = PowerAction::Shutdown { timeout: SHUTDOWN_TIMEOUT, force: true };
    let go = |target: &NodeName, online| MigrateOptions { target: target.clone(), online, bwlimit: None };
    let upid = match &command.attempt {
        Attempt::Start => ops.start(&actor, vmid, by_ha).await?,
        Attempt::Stop => {
            let upid = ops.power(&actor, vmid, stop, by_ha).await?;
            let ended = outcome(ops, &upid).await;
            // A user may have pulled the plug meanwhile: what counts is that it is stopped.
            let _lock = ops.guest_locks.lock(vmid).await?;
            return if ops.guests.state(vmid).await.is_none() { Ok(()) } else { ended };
        }
        Attempt::Migrate(target) => {
            let live = ops.guests.state(vmid).await.is_some();
            ops.migrate(&actor, vmid, go(target, live), by_ha).await?
        }
        Attempt::Relocate(target) => {
            if ops.guests.state(vmid).await.is_some() {
                let stopped = ops.power(&actor, vmid, stop, by_ha).await?;
                outcome(ops, &stopped).await?;
            }
            ops.migrate(&actor, vmid, go(target, false), by_ha).await?
        }
    };
    outcome(ops, &upid).await
}

async fn outcome(ops: &Ops, upid: &stead_model::Upid) -> Result<(), OpsError> {
    let Some(task) = ops.tasks.wait(upid).await else {
        return Err(OpsError::failed(format!("task {upid} is gone")));
    };
    match task.exitstatus {
        Some(s) if s == "OK" || s.starts_with("WARNINGS") => Ok(()),
        Some(s) => Err(OpsError::Failed(s)),
        None => Err(OpsError::failed("the task has no result")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_said_again_only_when_it_has_changed() {
        let mut said = Said::default();
        let all = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(said.news(all(&["a", "b"])), ["a", "b"]);
        assert!((0..100).all(|_| said.news(all(&["a", "b"])).is_empty()));
        assert_eq!(said.news(all(&["a", "c"])), ["c"]);
        assert!(said.news(all(&[])).is_empty());
        assert_eq!(said.news(all(&["a"])), ["a"], "mended, and broken again");
    }
}
