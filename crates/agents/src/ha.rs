//! The shells of HA: the manager's on the leader, the agent's on every node. Both decide nothing.

use crate::clock::{boottime, unix_ms};
use crate::grant::GrantHandle;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{Check, Op, Txn};
use stead_ha::{
    Agent, AgentCommand, AgentReport, AgentService, AgentView, Attempt, Command, Ending, Forecast, History,
    ManagerState, View, step,
};
use stead_model::{GuestKind, NodeName, Ownership, ServiceId, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::lock::is_given_away;
use stead_ops::guest::migrate::MigrateOptions;
use stead_ops::guest::power::{PowerAction, SHUTDOWN_TIMEOUT};
use stead_ops::ha::{COMMANDS, HISTORY};
use stead_ops::ha_view::{self, resources};
use stead_ops::{Actor, Ops, OpsError, store};
use tokio::sync::{mpsc, watch};

/// How often both look again without a cause.
const PERIOD: Duration = Duration::from_millis(500);

/// The manager, for as long as the daemon runs; it acts while this node leads.
pub async fn manage(ops: Arc<Ops>, grant: GrantHandle) {
    let (mut watch, mut known) = (ops.conf.watch(), ha_view::Known::default());
    loop {
        if leads(&ops)
            && let Err(e) = manage_once(&ops, &grant, &mut known).await
        {
            tracing::warn!("HA manager: {e}");
        }
        // A commit, or the period: reports change without one.
        if let Ok(None) = tokio::time::timeout(PERIOD, watch.next()).await {
            return;
        }
    }
}

/// Whether this node is the one whose manager decides.
fn leads(ops: &Ops) -> bool {
    let status = ops.conf.status();
    let status = status.borrow();
    status.is_leader && status.quorate
}

/// Nodes that are committed lost, and whose leases have run out for sure.
async fn settled(ops: &Ops, grant: &GrantHandle) -> BTreeSet<NodeName> {
    let mut out = BTreeSet::new();
    for node in ops.guest_nodes().into_iter().filter(|n| n.state.is_lost()) {
        if grant.settled(&node.name).await {
            out.insert(node.name);
        }
    }
    out
}

/// How often it is found out what the loss of a node would mean.
const FORESEE: Duration = Duration::from_secs(5);
/// It may take this part of one CPU's time; on large clusters it is found out less often instead.
const SHARE: u32 = 20;

/// Finds out, for as long as the daemon runs, whether the cluster survives the loss of any one node. The node that leads does, and
/// its status report tells the others.
pub async fn foresee(ops: Arc<Ops>, grant: GrantHandle) {
    let mut known = ha_view::Known::default();
    loop {
        let mut rest = FORESEE;
        let outlook = if leads(&ops) {
            let settled = settled(&ops, &grant).await;
            let began = std::time::Instant::now();
            match ha_view::now(&ops, &mut known, |n| settled.contains(n)) {
                Ok(now) => {
                    let found = tokio::task::spawn_blocking(move || Forecast::new(&now).any_one()).await;
                    rest = rest.max(began.elapsed() * SHARE);
                    found.ok()
                }
                Err(e) => {
                    tracing::debug!("what the loss of a node would mean is not known: {e}");
                    None
                }
            }
        } else {
            None
        };
        ops.status.foresee(outlook);
        tokio::time::sleep(rest).await;
    }
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

async fn manage_once(ops: &Ops, grant: &GrantHandle, known: &mut ha_view::Known) -> Result<(), OpsError> {
    let settled = settled(ops, grant).await;
    let view = ha_view::view(ops, known, |n| settled.contains(n))?;
    let (before, revision) = ha_view::manager_state(ops)?;
    if view.services.is_empty() && view.requests.is_empty() && revision.is_none() {
        return Ok(());
    }
    let mut state = before.clone();
    let commands = step(unix_ms() / 1000, &view, &mut state);
    let mut txn = store::txn("root@pam", what_changed(&before, &state));
    if state != before {
        store::put_over(&mut txn, paths::HA_STATUS, revision, store::bytes(&state)?);
    }
    note(ops, &view, &commands, &mut txn)?;
    if !txn.ops.is_empty() {
        ops.conf.transact(txn).await?;
        say_changes(ops, &before, &state);
    }
    for command in commands {
        if let Command::Recover { .. } = &command
            && let Err(e) = recover(ops, &command).await
        {
            tracing::warn!("HA manager: {command:?}: {e}");
        }
    }
    Ok(())
}

/// What the history calls a change of the manager's state.
fn what_changed(before: &ManagerState, now: &ManagerState) -> String {
    const AT_MOST: usize = 5;
    let mut what = vec![];
    if let Some(master) = now.master_node.as_ref().filter(|m| before.master_node.as_ref() != Some(*m)) {
        what.push(format!("'{master}' decides"));
    }
    let changed = |sid: &ServiceId, uid| before.service_status.get(sid).is_none_or(|b| b.uid != uid);
    for (sid, s) in now.service_status.iter().filter(|(sid, s)| changed(sid, s.uid)) {
        what.push(format!("{sid} {} on '{}'", format!("{:?}", s.state).to_lowercase(), s.node));
    }
    let gone = before.service_status.keys().filter(|sid| !now.service_status.contains_key(sid));
    what.extend(gone.map(|sid| format!("{sid} is no longer cared for")));
    if what.len() > AT_MOST {
        let more = what.len() - AT_MOST;
        what.truncate(AT_MOST);
        what.push(format!("and {more} more"));
    }
    match what.is_empty() {
        true => "HA: what is known of the nodes and requests".to_owned(),
        false => format!("HA: {}", what.join(", ")),
    }
}

/// What belongs into the commit of the state: requests that were taken, and what became of services.
fn note(ops: &Ops, view: &View, commands: &[Command], txn: &mut Txn) -> Result<(), OpsError> {
    let mut histories: BTreeMap<ServiceId, History> = BTreeMap::new();
    for command in commands {
        match command {
            Command::DropRequest { id, taken, reason } => {
                if !taken {
                    tracing::warn!("HA: the request '{id}' is refused: {reason}");
                    ops.events.emit("ha", id.clone(), serde_json::json!({"refused": reason}));
                }
                let path = format!("{COMMANDS}{id}");
                // Not one that has taken its place meanwhile.
                if let Some(request) = view.requests.get(id) {
                    txn.checks.push(Check::Equals(path.clone(), store::bytes(request)?.into()));
                    txn.ops.push(Op::Delete(path));
                }
            }
            Command::Record { sid, change } => match histories.entry(*sid) {
                std::collections::btree_map::Entry::Occupied(mut known) => {
                    known.get_mut().push(change.clone());
                }
                std::collections::btree_map::Entry::Vacant(new) => {
                    new.insert(ops.ha_history(*sid)?).push(change.clone());
                }
            },
            Command::Recover { .. } => {}
        }
    }
    for (sid, history) in histories {
        let path = format!("{HISTORY}{}", sid.vmid);
        txn.ops.push(Op::Put(path, store::bytes(&history)?.into()));
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

/// Commits a new owner.
async fn recover(ops: &Ops, command: &Command) -> Result<(), OpsError> {
    let Command::Recover { sid, from, to, epoch, unlock, reason } = command else { return Ok(()) };
    let guest = ops.guest_at(sid.vmid)?;
    let node = ops.node_record(from)?;
    let own = &guest.own.value;
    // The preconditions of rule 2: the record as seen, and a node still committed lost.
    let guarded = own.armed || !own.running || node.value.is_off();
    if own.owner != *from || own.epoch != *epoch || !guarded || !node.value.state.is_lost() {
        return Ok(());
    }
    let mut config = stead_ops::guest::config::parse(&guest.config.value)?;
    let new = Ownership {
        owner: to.clone(),
        epoch: epoch.next(),
        armed: false,
        running: false,
        // A frozen copy may hold the locks of its images. One that the fence process never held is not frozen: if it runs,
        // against the operator's word, its locks are what is left between two writers. So they are where a tool was at the images.
        recovered: own.armed || (own.recovered && config.current.lock().is_none()),
        kind: own.kind,
    };
    // A lock names a task of the lost node: it ended with it.
    if *unlock && !ops.conf.view(|t| is_given_away(t, &guest, &config)) {
        config.current.remove("lock");
    }
    let mut txn = store::txn("root@pam", format!("{sid} recovered: {reason}"));
    txn.checks.push(Check::Revision(paths::node(from), node.revision));
    store::put_over(&mut txn, &paths::ownership(sid.vmid), Some(guest.own.revision), store::bytes(&new)?);
    txn.checks.push(Check::Revision(guest.path(), guest.config.revision));
    txn.ops.push(Op::Delete(guest.path()));
    txn.ops.push(Op::Put(paths::guest(to, own.kind, sid.vmid), config.to_string().into_bytes().into()));
    ops.conf.transact(txn).await?;
    tracing::warn!("{sid}: recovered from '{from}' to '{to}' under epoch {}: {reason}", epoch.next());
    Ok(())
}

/// What the agent tells the manager, for the status report.
pub type Reports = AgentReport;

/// The agent, for as long as the daemon runs.
pub async fn agent(ops: Arc<Ops>, reports: watch::Sender<Reports>) {
    let mut agent = Agent::default();
    let mut watch = ops.conf.watch();
    let mut guests = ops.guests.events();
    let mut wish = ops.departure.wish();
    let (ended, mut endings) = mpsc::channel::<Ended>(64);
    // Endings that the agent has not been told yet: each counts, or a service would stay busy for ever.
    let mut untold = vec![];
    let mut said = Said::default();
    loop {
        match agent_view(&ops).await {
            Ok((view, bad)) => {
                for text in said.news(bad) {
                    tracing::warn!("{text}");
                }
                for (command, ending) in untold.drain(..) {
                    agent.ended(boottime(), &command, ending);
                }
                for command in agent.step(boottime(), &view) {
                    tokio::spawn(attempt(ops.clone(), command, ended.clone()));
                }
                ops.departure.may_go(agent.may_leave(&view));
                let changed = reports.send_if_modified(|r| {
                    let new = agent.report(&view);
                    std::mem::replace(r, new.clone()) != new
                });
                if changed {
                    ops.flush.now().await;
                }
            }
            Err(e) => tracing::warn!("HA agent: {e}"),
        }
        tokio::select! {
            event = watch.next() => if event.is_none() { return },
            _ = guests.recv() => {}
            Some(ending) = endings.recv() => untold.push(ending),
            // Its sender lives as long as the use cases.
            _ = wish.changed() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// An attempt, and how it has ended.
type Ended = (AgentCommand, Ending);

/// What the agent sees, and which resources can't be read.
async fn agent_view(ops: &Ops) -> Result<(AgentView, Vec<String>), OpsError> {
    let manager = serde_json::from_value(ops.ha_manager_status()?)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_STATUS)))?;
    let here = ops.guests.list().await.into_iter().map(|p| ServiceId { kind: GuestKind::Qemu, vmid: p.vmid });
    let here: BTreeSet<ServiceId> = here.collect();
    let (resources, bad) = resources(ops)?;
    let mut services = BTreeMap::new();
    for (vmid, own) in ops.conf.view(store::guests) {
        let sid = ServiceId { kind: own.kind, vmid };
        if let Some(r) = resources.get(&sid).filter(|_| own.owner == ops.me.name) {
            let (present, max_restart, requested) = (here.contains(&sid), r.max_restart, r.state);
            services.insert(sid, AgentService { present, max_restart, requested });
        }
    }
    let mut view = AgentView {
        me: ops.me.name.clone(),
        manager: Arc::new(manager),
        ready: ops.lease.borrow().held,
        services,
        policy: ha_view::options(ops)?.shutdown_policy,
        leave: *ops.departure.wish().borrow(),
        guarding: true,
    };
    // While HA is disarmed the fence process keeps its guard: who loses the lease is paused, and goes on with the next one.
    // Nothing is recovered, since the manager rests; and what is armed can be recovered once HA is armed again.
    view.guarding = view.wants_guard();
    Ok((view, bad))
}

/// Carries one attempt out, as a task that users see, and tells how it ended.
async fn attempt(ops: Arc<Ops>, command: AgentCommand, ended: mpsc::Sender<Ended>) {
    tracing::info!("{}: {:?}: {}", command.sid, command.attempt, command.reason);
    let ending = match try_it(&ops, &command).await {
        Ok(()) => Ending::Done,
        Err(e) => {
            tracing::warn!("{}: {:?}: {e}", command.sid, command.attempt);
            // For want of the cluster, not of the service. A task tells in words alone, but without a lease it is so.
            let cluster =
                matches!(e, OpsError::NoQuorum(_) | OpsError::Undecided(_) | OpsError::Unreachable { .. });
            let why = e.to_string();
            if cluster || !ops.lease.borrow().held { Ending::NotNow(why) } else { Ending::Failed(why) }
        }
    };
    // The agent is gone only when the daemon ends.
    let _ = ended.send((command, ending)).await;
}

/// How a guest is stopped: in its time, or at once.
fn stop_within(timeout: Option<u32>) -> PowerAction {
    match timeout {
        Some(0) => PowerAction::Stop { timeout: stead_ops::guest::power::STOP_TIMEOUT },
        Some(s) => PowerAction::Shutdown { timeout: Duration::from_secs(s.into()), force: true },
        None => PowerAction::Shutdown { timeout: SHUTDOWN_TIMEOUT, force: true },
    }
}

async fn try_it(ops: &Arc<Ops>, command: &AgentCommand) -> Result<(), OpsError> {
    let (actor, vmid) = (Actor::system(), command.sid.vmid);
    let by_ha = Asked { by_ha: true, skiplock: false };
    let go = |target: &NodeName, online| MigrateOptions::to(target.clone(), online);
    let upid = match &command.attempt {
        Attempt::Start => ops.start(&actor, vmid, by_ha).await?,
        Attempt::Stop { timeout } => {
            let upid = ops.power(&actor, vmid, stop_within(*timeout), by_ha).await?;
            let ended = outcome(ops, &upid).await;
            // A user may have pulled the plug meanwhile: what counts is that it is stopped.
            let _lock = ops.guest_locks.lock(vmid).await?;
            return if ops.guests.state(vmid).await.is_none() { Ok(()) } else { ended };
        }
        Attempt::Migrate(target) => {
            let live = ops.guests.state(vmid).await.is_some();
            ops.migrate(&actor, vmid, go(target, live), by_ha).await?
        }
        Attempt::Relocate { to, timeout } => {
            if ops.guests.state(vmid).await.is_some() {
                let stopped = ops.power(&actor, vmid, stop_within(*timeout), by_ha).await?;
                outcome(ops, &stopped).await?;
            }
            // Refused while there is a process: what could not be ended is not handed over.
            ops.migrate(&actor, vmid, go(to, false), by_ha).await?
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
    fn the_history_says_what_the_manager_has_changed() {
        let state = |uids: &[(u32, u64)]| {
            let one = |(vmid, uid): &(u32, u64)| {
                let service =
                    serde_json::json!({"state": "started", "node": "n1", "uid": uid, "reason": "", "x": 0});
                (format!("vm:{vmid}"), service)
            };
            let all: serde_json::Map<_, _> = uids.iter().map(one).collect();
            let text = serde_json::json!({"master_node": "n1", "service_status": all}).to_string();
            serde_json::from_str::<ManagerState>(&text).unwrap()
        };
        let (none, first, next) = (ManagerState::default(), state(&[(100, 1)]), state(&[(101, 2)]));
        assert_eq!(what_changed(&none, &first), "HA: 'n1' decides, vm:100 started on 'n1'");
        assert_eq!(what_changed(&first, &next), "HA: vm:101 started on 'n1', vm:100 is no longer cared for");
        let many: Vec<_> = (100..120).map(|n| (n, 9)).collect();
        assert!(what_changed(&first, &state(&many)).ends_with("vm:104 started on 'n1', and 15 more"));
        assert_eq!(what_changed(&first, &first), "HA: what is known of the nodes and requests");
    }

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
