//! What a daemon does in several steps: entering again, deciding held guests, starting and moving guests, managing HA.
//! The order of the steps is that of the daemon's shells.

use super::daemon::Msg;
use super::store::{Checked, Running, Tree, Txn};
use super::world::{Call, Event, World};
use super::{Plant, invariants};
use crate::scenario::Kind;
use crate::scenario::command::Disks;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stead_ha::{
    AgentCommand, AgentReport, AgentService, AgentView, Attempt, Command, Ending, ManagerState, NodeView,
    NodeWord, Process, ServiceView, Stats, StorageLoss, View,
};
use stead_membership::grantor::DeclareFailure;
use stead_membership::{Hold, HolderCommand};
use stead_model::{BootId, Epoch, GuestKind, NodeName, NodeState, Ownership, ServiceId, Vmid};

/// Reports older than this say nothing.
const FRESH: Duration = Duration::from_millis(1500);

/// How long a start waits for a lease, as the daemon's does: longer than the fence time.
const LEASE_WAIT: Duration = Duration::from_secs(10);

/// A question for the leader.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    /// Up to which index must be applied, for a read as new as any commit before?
    Barrier,
    /// Commit this.
    Propose(Txn),
}

/// Its answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told {
    /// Done, by that index.
    Done(usize),
    /// The precondition failed.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// An attempt of the agent's under way.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub command: AgentCommand,
    pub vmid: Vmid,
    pub epoch: Epoch,
    /// So long it waits for a lease once its process is there.
    pub until: Duration,
}

/// What follows an answer.
#[derive(Debug, Clone)]
pub(super) enum Then {
    Nothing,
    Edited,
    Declared(NodeName),
    Marked,
    Enter,
    Entered,
    DecideHeld,
    Managed(Vec<Command>),
    Start(AgentCommand),
    Launch(Task),
    Stopped(AgentCommand),
    Released(AgentCommand),
    Guarded(Vmid, Epoch),
    Reconcile,
    Migrate(AgentCommand, NodeName),
    HandedOver(Vmid),
    ReadOutcome(Vmid),
    Prepare { from: usize, vmid: Vmid, epoch: Epoch },
    EndIncoming { vmid: Vmid, epoch: Epoch },
    ContinueIncoming { vmid: Vmid, epoch: Epoch },
    Reclaimed { vmid: Vmid, epoch: Epoch },
}

/// What a node tells the leader.
#[derive(Debug, Clone)]
pub(super) struct Reported {
    boot: BootId,
    lease: bool,
    copies: BTreeSet<Vmid>,
    ha: AgentReport,
    lost: Option<StorageLoss>,
}

fn sid_of(vmid: Vmid, own: &Ownership) -> ServiceId {
    ServiceId { kind: own.kind, vmid }
}

/// Why something could not be tried that is no service's fault.
fn not_now() -> Ending {
    Ending::NotNow("the cluster did not answer".to_owned())
}

impl World {
    pub fn tree(&self, node: usize) -> Rc<Tree> {
        self.store.at(self.nodes[node].applied)
    }

    pub fn leased(&mut self, node: usize) -> bool {
        let now = self.now;
        let at = self.nodes[node].clock(now);
        self.nodes[node].answering(now).is_some_and(|f| f.holder.lease_left(at).is_some())
    }

    /// An answer has come, or comes no more.
    pub fn told(&mut self, node: usize, id: u64, life: u64, told: Told) {
        let Some(d) = self.daemon(node).filter(|d| d.life == life) else { return };
        let Some((then, _)) = d.waiting.remove(&id) else { return };
        if let Told::Done(index) = told {
            let n = &mut self.nodes[node];
            n.applied = n.applied.max(index);
        }
        let done = matches!(told, Told::Done(_));
        match then {
            Then::Nothing => {}
            Then::Edited => self.edit_answered(),
            Then::Declared(lost) => match told {
                Told::Done(_) => self.declared(node, &lost),
                Told::Refused => self.declare_failed(node, &lost, DeclareFailure::Refused),
                Told::Unknown => self.declare_failed(node, &lost, DeclareFailure::Unknown),
            },
            Then::Marked => self.marked(node, done),
            Then::Enter => self.enter_now(node, done),
            Then::Entered => self.idle(node, "enter"),
            Then::DecideHeld => self.decide_now(node, done),
            Then::Managed(commands) => {
                self.idle(node, "manage");
                if done {
                    self.carry_out_manager(node, commands);
                }
            }
            Then::Start(command) => self.start_now(node, command, done),
            Then::Launch(task) if done => self.launch(node, task),
            Then::Launch(task) => self.ended(node, &task.command, not_now()),
            Then::Stopped(command) => self.stopped(node, command, done),
            Then::Released(command) => {
                let ending = if done { Ending::Done } else { not_now() };
                self.ended(node, &command, ending);
            }
            Then::Guarded(vmid, epoch) => {
                self.idle(node, "guard");
                if done && self.plan.plant == Plant::ArmedBeforeRegistered {
                    self.take_up(node, vmid, epoch);
                }
            }
            Then::Reconcile => self.reconcile_now(node, done),
            Then::Migrate(command, to) => self.migrate(node, command, &to, done),
            Then::HandedOver(vmid) => self.handed_over(node, vmid, told),
            Then::ReadOutcome(vmid) => self.read_outcome(node, vmid, done),
            Then::Prepare { from, vmid, epoch } => self.prepare_now(node, from, vmid, epoch, done),
            Then::EndIncoming { vmid, epoch } => self.end_waiting(node, vmid, epoch, done),
            Then::ContinueIncoming { vmid, epoch } => self.continue_now(node, vmid, epoch),
            Then::Reclaimed { vmid, epoch } => self.reclaimed(node, vmid, epoch, done),
        }
    }

    fn begin(&mut self, node: usize, what: &'static str) -> bool {
        self.daemon(node).is_some_and(|d| d.busy.insert(what))
    }

    fn idle(&mut self, node: usize, what: &'static str) {
        if let Some(d) = self.daemon(node) {
            d.busy.remove(what);
        }
    }

    /// The leader refuses this node: it enters again, by a linearizable read and a commit of its own.
    pub fn enter(&mut self, node: usize) {
        if self.plan.plant != Plant::NobodyEnters && self.begin(node, "enter") {
            self.ask(node, Ask::Barrier, Then::Enter);
        }
    }

    fn enter_now(&mut self, node: usize, read: bool) {
        let tree = self.tree(node);
        let n = &self.nodes[node];
        let Some(seen) = tree.nodes.get(&n.name).filter(|_| read).cloned() else {
            return self.idle(node, "enter");
        };
        let fenced_answers = self.nodes[node].answering(self.now).is_some();
        let entered = seen == NodeState::Member { boot: self.nodes[node].boot.clone() };
        if entered || !fenced_answers {
            return self.idle(node, "enter");
        }
        let revision = tree.node_revision(&self.nodes[node].name);
        let mut kept = vec![];
        if !matches!(self.plan.plant, Plant::ThawUnasked | Plant::ThawAcrossEpoch) {
            let n = &self.nodes[node];
            let guarded = n.holds().into_iter().map(|(vmid, epoch, _)| (vmid, epoch));
            let all: BTreeSet<_> = guarded.chain(n.copies.iter().map(|(v, c)| (*v, c.epoch))).collect();
            for (vmid, epoch) in all {
                if self.owns(&tree, node, vmid, epoch) {
                    kept.push((vmid, tree.revision(vmid)));
                    continue;
                }
                self.note(|| {
                    format!("n{}: old copy of guest {vmid} of epoch {epoch} is destroyed", node + 1)
                });
                self.destroy(node, vmid, Some(Kind::Lost));
            }
        }
        let (name, boot) = (self.nodes[node].name.clone(), self.nodes[node].boot.clone());
        if self.plan.plant == Plant::KeptUnnamed {
            kept.clear();
        }
        let txn = Txn::Enter(name, boot, revision, kept);
        let Some(life) = self.daemon(node).map(|d| d.life) else { return };
        // To ask for all processes, and to kill one after the other, takes its time.
        if self.chance(node, 100) {
            let time = self.ms(node, 500, 8000);
            return self.after(time, Event::Enters { node, life, txn });
        }
        self.enters(node, life, txn);
    }

    /// The entry is proposed, unless its daemon has ended.
    pub fn enters(&mut self, node: usize, life: u64, txn: Txn) {
        if self.daemon_is(node, life) {
            self.ask(node, Ask::Propose(txn), Then::Entered);
        }
    }

    fn owns(&self, tree: &Tree, node: usize, vmid: Vmid, epoch: Epoch) -> bool {
        let any_epoch = self.plan.plant == Plant::ThawAcrossEpoch;
        let mine = |o: &Ownership| o.owner == self.nodes[node].name && (any_epoch || o.epoch == epoch);
        tree.owners.get(&vmid).is_some_and(mine)
    }

    fn held(&self, node: usize) -> Vec<(Vmid, Epoch)> {
        let holds = self.nodes[node].holds().into_iter();
        holds.filter(|(_, _, hold)| *hold == Hold::Held).map(|(v, e, _)| (v, e)).collect()
    }

    /// Guests that were held are decided, once a lease is there.
    pub fn decide_held(&mut self, node: usize) {
        if self.held(node).is_empty() || !self.leased(node) {
            return;
        }
        if self.plan.plant == Plant::ThawUnasked {
            for (vmid, epoch) in self.held(node) {
                self.ask_fenced(node, Call::Run { vmid, epoch, task: None });
            }
        } else if self.begin(node, "held") {
            self.ask(node, Ask::Barrier, Then::DecideHeld);
        }
    }

    fn decide_now(&mut self, node: usize, read: bool) {
        self.idle(node, "held");
        if !read {
            return;
        }
        let tree = self.tree(node);
        for (vmid, epoch) in self.held(node) {
            let own = tree.owners.get(&vmid);
            // A copy that waits for a hand-over is decided by whoever awaits it.
            if own.is_some_and(|o| o.owner != self.nodes[node].name && o.epoch.next() == epoch) {
                continue;
            }
            // All may be sent, and the proposal to hand it over on its way: it is taken back first.
            if self.handover_is_open(node, vmid) && self.owns(&tree, node, vmid, epoch) {
                self.reclaim(node, vmid, epoch);
                continue;
            }
            if self.owns(&tree, node, vmid, epoch) && own.is_some_and(|o| o.running) {
                self.ask_fenced(node, Call::Run { vmid, epoch, task: None });
            } else {
                self.note(|| {
                    format!("n{}: old copy of guest {vmid} of epoch {epoch} is destroyed", node + 1)
                });
                self.destroy(node, vmid, Some(Kind::Lost));
            }
        }
    }

    /// Tells the leader how things stand.
    pub fn report(&mut self, node: usize) {
        let view = self.agent_view(node);
        let n = &self.nodes[node];
        let Some(d) = &n.daemon else { return };
        let copies = n.copies.keys().copied().collect();
        let ha = d.agent.report(&view);
        let lost = n.lost_storage(self.now);
        let report = Reported { boot: n.boot.clone(), lease: view.ready, copies, ha, lost };
        if let Some(leader) = d.leader {
            self.send(node, leader, Msg::Report(report));
        }
    }

    /// The agent's shell.
    pub fn agent_step(&mut self, node: usize) {
        let view = self.agent_view(node);
        let at = self.nodes[node].clock(self.now);
        let Some(d) = self.daemon(node) else { return };
        for command in d.agent.step(at, &view) {
            let free = self.daemon(node).is_some_and(|d| d.at_work.insert(command.sid.vmid));
            if !free {
                self.untried(node, &command);
                continue;
            }
            match command.attempt {
                Attempt::Start => self.ask(node, Ask::Barrier, Then::Start(command)),
                Attempt::Stop { .. } | Attempt::Migrate(_) | Attempt::Relocate { .. } => {
                    self.stop(node, command);
                }
            }
        }
    }

    /// What the agent sees.
    pub fn agent_view(&mut self, node: usize) -> AgentView {
        let ready = self.leased(node);
        let tree = self.tree(node);
        let n = &self.nodes[node];
        let resource = |(vmid, own): (&Vmid, &Ownership)| {
            // A resource of the other kind by that number is none of this guest's.
            tree.config.resources.get_key_value(&sid_of(*vmid, own))
        };
        let mine = tree.owners.of(&n.name).filter_map(resource);
        let service = |present, max_restart, requested| AgentService { present, max_restart, requested };
        let services: BTreeMap<ServiceId, AgentService> = mine
            .map(|(sid, r)| (*sid, service(n.copies.contains_key(&sid.vmid), r.max_restart, r.state)))
            .collect();
        let view = AgentView {
            me: n.name.clone(),
            manager: tree.manager.0.clone(),
            ready,
            services,
            policy: tree.config.options.shutdown_policy,
            leave: n.daemon.as_ref().and_then(|d| d.leave).map(|(leave, _)| leave),
            guarding: false,
        };
        // Disarming lets nobody go: see `Tree::is_guarded`.
        AgentView { guarding: view.wants_guard(), ..view }
    }

    pub fn ended(&mut self, node: usize, command: &AgentCommand, ending: Ending) {
        if ending != Ending::Done {
            self.end_transit(command.sid.vmid, Kind::Stop);
        }
        if let Some(d) = self.daemon(node) {
            d.at_work.remove(&command.sid.vmid);
        }
        self.tell_agent(node, command, ending);
    }

    fn tell_agent(&mut self, node: usize, command: &AgentCommand, ending: Ending) {
        let at = self.nodes[node].clock(self.now);
        let starts = command.attempt == Attempt::Start;
        let ending = match ending {
            Ending::Failed(why) if starts && self.plan.plant == Plant::FailureUncounted => {
                Ending::NotNow(why)
            }
            ending => ending,
        };
        if let Some(d) = self.daemon(node) {
            d.agent.ended(at, command, ending);
        }
    }

    /// Another task is at it.
    fn untried(&mut self, node: usize, command: &AgentCommand) {
        self.tell_agent(node, command, Ending::NotNow("another task is at work on it".to_owned()));
    }

    /// Brings processes, fence process and records together again.
    pub fn reconcile(&mut self, node: usize) {
        if self.begin(node, "reconcile") {
            self.ask(node, Ask::Barrier, Then::Reconcile);
        }
    }

    fn reconcile_now(&mut self, node: usize, read: bool) {
        self.idle(node, "reconcile");
        let tree = self.tree(node);
        let n = &self.nodes[node];
        if !read || !tree.is_member(&n.name, &n.boot) {
            return;
        }
        let owned = tree.owners.of(&n.name).filter(|(_, o)| o.running).map(|(v, _)| *v);
        let all: BTreeSet<Vmid> = n.copies.keys().copied().chain(owned).collect();
        let at_work = n.daemon.as_ref().map(|d| d.at_work.clone()).unwrap_or_default();
        for vmid in all.difference(&at_work) {
            let own = tree.owners.get(vmid);
            let mine = own.filter(|o| o.owner == self.nodes[node].name);
            let copy =
                self.nodes[node].copies.get(vmid).map(|c| (c.epoch, c.sent, c.incoming.is_some(), c.frozen));
            match (copy, mine) {
                (Some((epoch, true, _, false)), Some(o)) if o.epoch == epoch && o.running => {
                    self.reclaim(node, *vmid, epoch);
                }
                (Some((epoch, ..)), Some(o)) if o.epoch == epoch => {}
                (Some((_, _, true, _)), None) => {}
                (Some(_), _) => self.destroy(node, *vmid, Some(Kind::Lost)),
                (None, Some(o)) => self.not_running(node, *vmid, o.epoch, Then::Nothing),
                (None, None) => {}
            }
        }
    }

    /// The fence process guards what HA runs here: first it does, then the record says so. What HA no longer maintains stays
    /// guarded until it stops: a guard is no harm.
    pub fn guard(&mut self, node: usize) {
        let tree = self.tree(node);
        let name = self.nodes[node].name.clone();
        for (vmid, own) in tree.owners.of(&name).filter(|(_, o)| o.running) {
            let unguarded = tree.is_guarded(*vmid) && !own.armed;
            let copy = self.nodes[node].copies.get(vmid);
            let runs = copy.is_some_and(|c| c.epoch == own.epoch && c.running && !c.frozen);
            let at_work = self.daemon(node).is_some_and(|d| d.at_work.contains(vmid));
            if at_work || !unguarded || !runs || !self.begin(node, "guard") {
                continue;
            }
            let unordered = self.plan.plant == Plant::ArmedBeforeRegistered;
            let guarded = unordered || self.take_up(node, *vmid, own.epoch);
            if guarded {
                let then = Then::Guarded(*vmid, own.epoch);
                let armed = Running::Armed(self.nodes[node].boot.clone());
                self.record(node, *vmid, own.epoch, armed, then);
            } else {
                self.idle(node, "guard");
            }
            // One at a time.
            return;
        }
    }

    /// A running guest is registered, and continued under the lease: that changes nothing for it.
    fn take_up(&mut self, node: usize, vmid: Vmid, epoch: Epoch) -> bool {
        let now = self.now;
        let at = self.nodes[node].clock(now);
        let Some(fenced) = self.nodes[node].answering(now) else { return false };
        let known = fenced.holder.guests().any(|(v, g)| v == vmid && g.epoch == epoch);
        if !known && fenced.holder.register(vmid, epoch, true).is_err() {
            return false;
        }
        let runs = matches!(fenced.holder.run(at, vmid, epoch), Ok(HolderCommand::Cont { .. }));
        self.nodes[node].record.entry(vmid).or_insert((epoch, false));
        runs
    }

    /// Starts a guest: record that it may run, register it, execute it, continue it.
    fn start_now(&mut self, node: usize, command: AgentCommand, read: bool) {
        let (tree, vmid) = (self.tree(node), command.sid.vmid);
        let me = self.nodes[node].name.clone();
        let member = tree.is_member(&me, &self.nodes[node].boot);
        let own = tree.owners.get(&vmid).filter(|o| read && member && o.owner == me);
        let Some(epoch) = own.map(|o| o.epoch) else { return self.ended(node, &command, not_now()) };
        let why = match tree.config.locks.get(&vmid) {
            Some(lock) => Some(format!("it is locked ({lock})")),
            None if self.nodes[node].disks.0 != Disks::Well => Some("its storage is not there".to_owned()),
            None if self.start_fails(node, vmid) => Some("it does not start".to_owned()),
            None => None,
        };
        if let Some(why) = why {
            let life = self.nodes[node].daemon.as_ref().map_or(0, |d| d.life);
            *self.failed_starts.entry((command.sid, command.uid, life)).or_default() += 1;
            self.note(|| format!("n{}: guest {vmid}: {why}", node + 1));
            self.tell_guest(Kind::StartFail, vmid, node);
            return self.ended(node, &command, Ending::Failed(why));
        }
        // The fence process knows it first.
        if !self.register(node, vmid, epoch) {
            return self.ended(node, &command, not_now());
        }
        let armed = Running::Armed(self.nodes[node].boot.clone());
        self.record(
            node,
            vmid,
            epoch,
            armed,
            Then::Launch(Task { command, vmid, epoch, until: Duration::ZERO }),
        );
    }

    /// Makes a guest without a process known to the fence process.
    fn register(&mut self, node: usize, vmid: Vmid, epoch: Epoch) -> bool {
        let now = self.now;
        let n = &mut self.nodes[node];
        let gone = !n.copies.contains_key(&vmid);
        let registered = gone
            && n.answering(now).is_some_and(|f| {
                // What was under way concerned a process that is gone.
                f.jobs.remove(&vmid);
                f.holder.register(vmid, epoch, true).is_ok()
            });
        if registered {
            n.record.insert(vmid, (epoch, false));
        }
        registered
    }

    fn launch(&mut self, node: usize, task: Task) {
        let Some(life) = self.daemon(node).map(|d| d.life) else { return };
        let slow = self.chance(node, 100);
        let time = if slow { self.ms(node, 1000, 20_000) } else { self.ms(node, 50, 400) };
        self.after(time, Event::Launched { node, life, task });
    }

    /// The guest's process is there, with stopped CPUs.
    pub fn launched(&mut self, node: usize, task: &Task) {
        let (vmid, epoch) = (task.vmid, task.epoch);
        let Some(life) = self.daemon(node).map(|d| d.life) else { return };
        self.add_copy(node, vmid, epoch);
        let waits = Task { until: self.now + LEASE_WAIT, ..task.clone() };
        if !self.ask_fenced(node, Call::Run { vmid, epoch, task: Some((life, waits)) }) {
            self.ran(node, task, false);
        }
    }

    /// The fence process has continued it, or has not.
    pub fn ran(&mut self, node: usize, task: &Task, ok: bool) {
        if ok {
            let life = self.nodes[node].daemon.as_ref().map_or(0, |d| d.life);
            self.failed_starts.remove(&(task.command.sid, task.command.uid, life));
        }
        if !ok && self.nodes[node].copies.get(&task.vmid).is_some_and(|c| c.epoch == task.epoch) {
            self.destroy(node, task.vmid, Some(Kind::Lost));
            self.not_running(node, task.vmid, task.epoch, Then::Nothing);
        }
        self.ended(node, &task.command, if ok { Ending::Done } else { not_now() });
    }

    fn not_running(&mut self, node: usize, vmid: Vmid, epoch: Epoch, then: Then) {
        self.record(node, vmid, epoch, Running::Ended, then);
    }

    /// Proposes to write how a guest is, over the record as this node knows it.
    fn record(&mut self, node: usize, vmid: Vmid, epoch: Epoch, how: Running, then: Then) {
        let (me, revision) = (self.nodes[node].name.clone(), self.tree(node).revision(vmid));
        self.ask(node, Ask::Propose(Txn::Running { vmid, node: me, epoch, revision, how }), then);
    }

    fn stop(&mut self, node: usize, command: AgentCommand) {
        let vmid = command.sid.vmid;
        let (moves, present) = (
            matches!(command.attempt, Attempt::Migrate(_) | Attempt::Relocate { .. }),
            self.nodes[node].copies.contains_key(&vmid),
        );
        let lock = self.tree(node).config.locks.get(&vmid).cloned();
        if let Some(lock) = lock.filter(|_| moves) {
            self.tell_guest(Kind::MoveFail, vmid, node);
            return self.ended(node, &command, Ending::Failed(format!("it is locked ({lock})")));
        }
        if let Attempt::Migrate(to) | Attempt::Relocate { to, .. } = &command.attempt
            && !self.answers(node, to)
        {
            self.tell_guest(Kind::MoveFail, vmid, node);
            let why = format!("'{to}' does not answer");
            return self.ended(node, &command, Ending::Failed(why));
        }
        let live = present && command.sid.kind == GuestKind::Qemu;
        if let Attempt::Migrate(to) = command.attempt.clone()
            && live
        {
            return self.ask(node, Ask::Barrier, Then::Migrate(command, to));
        }
        if moves && self.move_fails(vmid) {
            self.tell_guest(Kind::MoveFail, vmid, node);
            return self.ended(node, &command, Ending::Failed("its migration failed".to_owned()));
        }
        let begun = self.epoch_of(node, vmid);
        if !present || self.plan.calm {
            return self.stop_now(node, command, begun);
        }
        let Some(life) = self.daemon(node).map(|d| d.life) else { return };
        let slow = self.chance(node, 300);
        let time = if slow { self.ms(node, 1000, 15_000) } else { self.ms(node, 20, 500) };
        self.after(time, Event::Stopping { node, life, begun, command: Box::new(command) });
    }

    /// Under which epoch a guest's record stands here.
    fn epoch_of(&self, node: usize, vmid: Vmid) -> Epoch {
        self.tree(node).owners.get(&vmid).map_or(Epoch(0), |o| o.epoch)
    }

    /// It has shut down, or the plug is pulled.
    pub fn stop_now(&mut self, node: usize, command: AgentCommand, begun: Epoch) {
        let vmid = command.sid.vmid;
        let epoch = self.epoch_of(node, vmid);
        if epoch != begun {
            // The process that was to end is gone, and what the command was about with it.
            return self.ended(node, &command, not_now());
        }
        let present = self.nodes[node].copies.contains_key(&vmid);
        let hangs = self.nodes[node].disks.0 == Disks::Hung;
        if present && hangs && self.plan.plant == Plant::HangIsEnd {
            // It is still there, and executes.
            return self.not_running(node, vmid, epoch, Then::Stopped(command));
        }
        if present && (hangs || self.stop_fails(vmid)) {
            self.tell_guest(Kind::StopFail, vmid, node);
            return self.ended(node, &command, Ending::Failed("it does not stop".to_owned()));
        }
        self.destroy(node, vmid, Some(Kind::Stop));
        self.not_running(node, vmid, epoch, Then::Stopped(command));
    }

    /// As read, it is still here: it is moved while it runs.
    fn migrate(&mut self, node: usize, command: AgentCommand, to: &NodeName, read: bool) {
        let (tree, vmid) = (self.tree(node), command.sid.vmid);
        let n = &self.nodes[node];
        let own = tree.owners.get(&vmid).filter(|o| o.owner == n.name && o.running);
        let runs = |epoch| n.copies.get(&vmid).is_some_and(|c| c.epoch == epoch && c.running && !c.frozen);
        match own.map(|o| o.epoch).filter(|epoch| read && runs(*epoch) && tree.is_member(&n.name, &n.boot)) {
            Some(epoch) => self.begin_migration(node, command, epoch, to),
            None => self.ended(node, &command, not_now()),
        }
    }

    /// Whether a node answers another one.
    fn answers(&self, node: usize, other: &NodeName) -> bool {
        let Some(to) = self.index(other) else { return false };
        let linked = node == to || !(self.cut[node][to] || self.cut[to][node]);
        let awake = |d: &super::daemon::Daemon| d.paused_until <= self.now;
        linked && self.nodes[to].executes(self.now) && self.nodes[to].daemon.as_ref().is_some_and(awake)
    }

    fn stopped(&mut self, node: usize, command: AgentCommand, done: bool) {
        let vmid = command.sid.vmid;
        let epoch = self.tree(node).owners.get(&vmid).map_or(Epoch(0), |o| o.epoch);
        match command.attempt.clone() {
            Attempt::Migrate(to) | Attempt::Relocate { to, .. } if done => {
                let from = self.nodes[node].name.clone();
                let txn = Txn::Release { vmid, from, to, epoch };
                self.ask(node, Ask::Propose(txn), Then::Released(command));
            }
            _ => self.ended(node, &command, if done { Ending::Done } else { not_now() }),
        }
    }

    /// The manager's shell.
    pub fn manage(&mut self, node: usize) {
        if self.leads(node).is_none() || !self.begin(node, "manage") {
            return;
        }
        let tree = self.tree(node);
        let view = self.view(node, &tree);
        let (before, revision) = &tree.manager;
        let mut state = ManagerState::clone(before);
        let commands = stead_ha::step(self.now.as_secs(), &view, &mut state);
        if let Some(how) = invariants::rules::check(&tree.config.rules, &view, before, &state) {
            self.breaks("rules", how);
        }
        let dropped =
            |c: &Command| if let Command::DropRequest { id, .. } = c { Some(id.clone()) } else { None };
        let dropped: Vec<String> = commands.iter().filter_map(dropped).collect();
        if state == **before && dropped.is_empty() {
            self.idle(node, "manage");
            self.carry_out_manager(node, commands);
        } else {
            let txn = Txn::Manager(Arc::new(state), *revision, dropped);
            self.ask(node, Ask::Propose(txn), Then::Managed(commands));
        }
    }

    fn carry_out_manager(&mut self, node: usize, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Recover { sid, from, to, epoch, unlock, .. } => {
                    let checked = match self.plan.plant {
                        Plant::SilenceIsLoss => Checked::NotTheLoss,
                        Plant::EpochUnchecked => Checked::NotTheOwnership,
                        _ => Checked::All,
                    };
                    let lost = self.tree(node).node_revision(&from);
                    let to = if self.plan.plant == Plant::WrongTarget { from.clone() } else { to };
                    let txn = Txn::Recover { vmid: sid.vmid, from, to, epoch, unlock, lost, checked };
                    self.ask(node, Ask::Propose(txn), Then::Nothing);
                }
                Command::Record { sid, change } => self.tell_change(sid, &change),
                Command::DropRequest { taken: false, reason, .. } => {
                    self.tell(Kind::Refused, None, None, Some(reason));
                }
                Command::DropRequest { .. } => {}
            }
        }
    }

    fn view(&self, node: usize, tree: &Tree) -> View {
        let nodes: BTreeMap<NodeName, NodeView> = tree
            .nodes
            .iter()
            .map(|(name, state)| (name.clone(), self.node_view(node, tree, name, state)))
            .collect();
        let services = tree.config.resources.iter().filter_map(|(sid, resource)| {
            let own = tree.owners.get(&sid.vmid)?;
            let seen = self.fresh(node, &own.owner).map(|r| r.copies.contains(&sid.vmid));
            let process = match seen {
                Some(true) => Process::Running,
                Some(false) => Process::Absent,
                None => Process::Unknown,
            };
            let view = ServiceView {
                resource: resource.clone(),
                owner: own.owner.clone(),
                epoch: own.epoch,
                running: own.running,
                // What ran without a guard on a node that is off runs no more.
                armed: own.armed || tree.is_off(&own.owner),
                process,
                stats: self.stats(sid.vmid),
                lock: tree.config.locks.get(&sid.vmid).cloned(),
                storages: self.disks_of_all.clone(),
            };
            Some((*sid, view))
        });
        let services = services.collect();
        let rules = if self.plan.plant == Plant::RulesUnseen { vec![] } else { tree.config.rules.clone() };
        let options = tree.config.options;
        let requests = tree.config.requests.clone();
        let round = self.round();
        let (me, storages) = (self.nodes[node].name.clone(), super::storage::configured());
        View { me, nodes, services, rules, options, storages, requests, round }
    }

    fn stats(&self, vmid: Vmid) -> Stats {
        let load = self.load_of(vmid);
        let max = stead_ha::Load { cpu: load.maxcpu, mem: load.maxmem };
        let used = stead_ha::Load { cpu: load.cpu, mem: load.mem };
        Stats { max, used }
    }

    fn fresh(&self, node: usize, of: &NodeName) -> Option<&Reported> {
        let d = self.nodes[node].daemon.as_ref()?;
        let (report, at) = d.reports.get(&self.index(of)?)?;
        (self.now - *at < FRESH).then_some(report)
    }

    fn node_view(&self, node: usize, tree: &Tree, name: &NodeName, state: &NodeState) -> NodeView {
        let report = self.fresh(node, name);
        let n = &self.nodes[node];
        let settled = n.daemon.as_ref().is_some_and(|d| match self.plan.plant {
            // The grantor is not told of the loss, so it can't be asked.
            Plant::LostNotSticky => {
                let fence = tree.profile.fence_time();
                let silent = d.grantor.heard(n.clock(self.now), name).unwrap_or(fence);
                silent >= fence && self.now > d.led_since + fence
            }
            _ => d.grantor.settled(n.clock(self.now), name),
        });
        let word = match (state, report) {
            (NodeState::Lost { .. }, _) if settled || self.plan.plant == Plant::LossIsSettled => {
                NodeWord::Lost
            }
            (NodeState::Member { boot }, Some(r)) if r.lease && r.boot == *boot => NodeWord::Online,
            (_, None) if self.plan.plant == Plant::SilenceIsLoss => NodeWord::Lost,
            _ => NodeWord::Unknown,
        };
        let (cpu, mem) = self.index(name).map_or((0.0, 0), |n| self.capacity(n));
        let mut others = Stats::default();
        let foreign =
            |(vmid, o): &(&Vmid, &Ownership)| !tree.config.resources.contains_key(&sid_of(**vmid, o));
        let runs = |vmid: &Vmid| report.is_some_and(|r| r.copies.contains(vmid));
        for (vmid, _) in tree.owners.of(name).filter(foreign).filter(|(v, _)| runs(v)) {
            let stats = self.stats(*vmid);
            others.max.cpu += stats.max.cpu;
            others.max.mem += stats.max.mem;
            others.used.cpu += stats.used.cpu;
            others.used.mem += stats.used.mem;
        }
        let agent = report.map(|r| r.ha.clone());
        let lost = report.and_then(|r| r.lost.clone());
        let lost_storages = lost.map(|loss| (super::storage::id(), loss)).into_iter().collect();
        NodeView { word, agent, capacity: stead_ha::Load { cpu, mem }, others, lost_storages }
    }
}
