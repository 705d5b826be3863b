//! What a daemon does in several steps: entering again, deciding held guests, starting and moving guests, managing HA.
//! The order of the steps is that of the daemon's shells.

use super::Plant;
use super::daemon::Msg;
use super::store::{Tree, Txn};
use super::world::{Call, Event, World};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use stead_ha::{
    AgentCommand, AgentView, Attempt, Command, ManagerState, NodeView, NodeWord, Process, Report, Service,
    ServiceView, View,
};
use stead_membership::Hold;
use stead_membership::grantor::DeclareFailure;
use stead_model::ha_cfg::HaResource;
use stead_model::{BootId, Epoch, GuestKind, NodeName, NodeState, ServiceId, Vmid};

/// Reports older than this say nothing.
const FRESH: Duration = Duration::from_millis(1500);

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
}

/// What follows an answer.
#[derive(Debug, Clone)]
pub(super) enum Then {
    Nothing,
    Declared(NodeName),
    Enter,
    Entered,
    DecideHeld,
    Managed(Vec<Command>),
    Start(AgentCommand),
    Launch(Task),
    Stopped(AgentCommand),
    Released(AgentCommand),
}

/// What a node tells the leader.
#[derive(Debug, Clone)]
pub(super) struct Reported {
    boot: BootId,
    lease: bool,
    copies: BTreeSet<Vmid>,
    ha: BTreeMap<ServiceId, Report>,
}

pub(super) fn brief(txn: &Txn) -> String {
    match txn {
        Txn::Manager(state, _) => {
            let service =
                |(sid, s): (&ServiceId, &Service)| format!("{sid} {:?} {} ({})", s.state, s.node, s.reason);
            let services: Vec<String> = state.service_status.iter().map(service).collect();
            format!("HA: {:?}, {}", state.node_status.values().collect::<Vec<_>>(), services.join(", "))
        }
        Txn::Enter(node, boot, _) => format!("{node} enters by boot {boot}"),
        other => format!("{other:?}"),
    }
}

fn sid(vmid: Vmid) -> ServiceId {
    ServiceId { kind: GuestKind::Qemu, vmid }
}

impl World {
    fn tree(&self, node: usize) -> Rc<Tree> {
        self.store.at(self.nodes[node].applied)
    }

    fn leased(&mut self, node: usize) -> bool {
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
            Then::Declared(lost) => match told {
                Told::Done(_) => self.declared(node, &lost),
                Told::Refused => self.declare_failed(node, &lost, DeclareFailure::Refused),
                Told::Unknown => self.declare_failed(node, &lost, DeclareFailure::Unknown),
            },
            Then::Enter => self.enter_now(node, done),
            Then::Entered => self.idle(node, "enter"),
            Then::DecideHeld => self.decide_now(node, done),
            Then::Managed(commands) => {
                self.idle(node, "manage");
                if done {
                    self.recover(node, commands);
                }
            }
            Then::Start(command) => self.start_now(node, command, done),
            Then::Launch(task) if done => self.launch(node, task),
            Then::Launch(task) => self.ended(node, &task.command, false),
            Then::Stopped(command) => self.stopped(node, command, done),
            Then::Released(command) => self.ended(node, &command, done),
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
        if self.begin(node, "enter") {
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
        if self.plan.plant != Plant::ThawUnasked {
            for (vmid, epoch, _) in self.nodes[node].holds() {
                if !self.owns(&tree, node, vmid, epoch) {
                    self.nodes[node].destroy(self.now, vmid);
                }
            }
        }
        let (name, boot) = (self.nodes[node].name.clone(), self.nodes[node].boot.clone());
        self.ask(node, Ask::Propose(Txn::Enter(name, boot, seen)), Then::Entered);
    }

    fn owns(&self, tree: &Tree, node: usize, vmid: Vmid, epoch: Epoch) -> bool {
        tree.owners.get(&vmid).is_some_and(|o| o.owner == self.nodes[node].name && o.epoch == epoch)
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
            if self.owns(&tree, node, vmid, epoch) {
                self.ask_fenced(node, Call::Run { vmid, epoch, task: None });
            } else {
                self.note(|| {
                    format!("n{}: old copy of guest {vmid} of epoch {epoch} is destroyed", node + 1)
                });
                self.nodes[node].destroy(self.now, vmid);
            }
        }
    }

    /// Tells the leader how things stand.
    pub fn report(&mut self, node: usize) {
        let lease = self.leased(node);
        let n = &self.nodes[node];
        let Some(d) = &n.daemon else { return };
        let copies = n.copies.keys().copied().collect();
        let report = Reported { boot: n.boot.clone(), lease, copies, ha: d.agent.reports() };
        if let Some(leader) = d.leader {
            self.send(node, leader, Msg::Report(report));
        }
    }

    /// The agent's shell.
    pub fn agent_step(&mut self, node: usize) {
        let view = AgentView { ready: self.leased(node), ..self.agent_view(node) };
        let at = self.nodes[node].clock(self.now);
        let Some(d) = self.daemon(node) else { return };
        for command in d.agent.step(at, &view) {
            match command.attempt {
                Attempt::Start => self.ask(node, Ask::Barrier, Then::Start(command)),
                Attempt::Stop | Attempt::Migrate(_) | Attempt::Relocate(_) => self.stop(node, command),
            }
        }
    }

    fn agent_view(&self, node: usize) -> AgentView {
        let tree = self.tree(node);
        let me = self.nodes[node].name.clone();
        let mine = tree.owners.iter().filter(|(_, o)| o.owner == me);
        let owned: BTreeSet<ServiceId> = mine.map(|(v, _)| sid(*v)).collect();
        let present = self.nodes[node].copies.keys().map(|v| sid(*v)).filter(|s| owned.contains(s)).collect();
        let max_restart = owned.iter().map(|s| (*s, HaResource::new(*s).max_restart)).collect();
        AgentView { me, manager: tree.manager.0.clone(), ready: false, owned, present, max_restart }
    }

    /// What fails here fails for want of the cluster, never of the service.
    fn ended(&mut self, node: usize, command: &AgentCommand, ok: bool) {
        let view = self.agent_view(node);
        let at = self.nodes[node].clock(self.now);
        let result = if ok { Ok(()) } else { Err("it failed".to_owned()) };
        if let Some(d) = self.daemon(node) {
            d.agent.ended(at, &view, command, result);
        }
    }

    /// Starts a guest: record that it may run, register it, execute it, continue it.
    fn start_now(&mut self, node: usize, command: AgentCommand, read: bool) {
        let (tree, vmid) = (self.tree(node), command.sid.vmid);
        let me = self.nodes[node].name.clone();
        let own = tree.owners.get(&vmid).filter(|o| read && o.owner == me);
        let Some(epoch) = own.map(|o| o.epoch) else { return self.ended(node, &command, false) };
        let txn = Txn::Running { vmid, node: me, epoch, running: true };
        self.ask(node, Ask::Propose(txn), Then::Launch(Task { command, vmid, epoch }));
    }

    fn launch(&mut self, node: usize, task: Task) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let (gone, life) = (!n.copies.contains_key(&task.vmid), n.daemon.as_ref().map_or(0, |d| d.life));
        let registered = n.answering(now).map(|f| {
            // What was under way concerned a process that is gone.
            f.jobs.remove(&task.vmid);
            f.holder.register(task.vmid, task.epoch, gone)
        });
        if !gone || !matches!(registered, Some(Ok(()))) {
            return self.ended(node, &task.command, false);
        }
        n.record.insert(task.vmid, (task.epoch, false));
        let slow = self.chance(100);
        let time = if slow { self.ms(1000, 20_000) } else { self.ms(50, 400) };
        self.after(time, Event::Launched { node, life, task });
    }

    /// The guest's process is there, with stopped CPUs.
    pub fn launched(&mut self, node: usize, task: &Task) {
        let (vmid, epoch) = (task.vmid, task.epoch);
        let Some(life) = self.daemon(node).map(|d| d.life) else { return };
        self.add_copy(node, vmid, epoch);
        if !self.ask_fenced(node, Call::Run { vmid, epoch, task: Some((life, task.clone())) }) {
            self.ran(node, task, false);
        }
    }

    /// The fence process has continued it, or has not.
    pub fn ran(&mut self, node: usize, task: &Task, ok: bool) {
        if !ok && self.nodes[node].copies.get(&task.vmid).is_some_and(|c| c.epoch == task.epoch) {
            self.nodes[node].destroy(self.now, task.vmid);
            self.not_running(node, task.vmid, task.epoch, Then::Nothing);
        }
        self.ended(node, &task.command, ok);
    }

    fn not_running(&mut self, node: usize, vmid: Vmid, epoch: Epoch, then: Then) {
        let me = self.nodes[node].name.clone();
        self.ask(node, Ask::Propose(Txn::Running { vmid, node: me, epoch, running: false }), then);
    }

    fn stop(&mut self, node: usize, command: AgentCommand) {
        let vmid = command.sid.vmid;
        let epoch = self.tree(node).owners.get(&vmid).map_or(Epoch(0), |o| o.epoch);
        self.nodes[node].destroy(self.now, vmid);
        self.not_running(node, vmid, epoch, Then::Stopped(command));
    }

    fn stopped(&mut self, node: usize, command: AgentCommand, done: bool) {
        let vmid = command.sid.vmid;
        let epoch = self.tree(node).owners.get(&vmid).map_or(Epoch(0), |o| o.epoch);
        match command.attempt.clone() {
            Attempt::Migrate(to) | Attempt::Relocate(to) if done => {
                let from = self.nodes[node].name.clone();
                let txn = Txn::Release { vmid, from, to, epoch };
                self.ask(node, Ask::Propose(txn), Then::Released(command));
            }
            _ => self.ended(node, &command, done),
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
        let mut state: ManagerState = before.clone();
        let commands = stead_ha::step(self.now.as_secs(), &view, &mut state);
        if state == *before {
            self.idle(node, "manage");
            self.recover(node, commands);
        } else {
            let txn = Txn::Manager(Box::new(state), *revision);
            self.ask(node, Ask::Propose(txn), Then::Managed(commands));
        }
    }

    fn recover(&mut self, node: usize, commands: Vec<Command>) {
        for command in commands {
            if let Command::Recover { sid, from, to, epoch, .. } = command {
                let unchecked = self.plan.plant == Plant::SilenceIsLoss;
                let txn = Txn::Recover { vmid: sid.vmid, from, to, epoch, unchecked };
                self.ask(node, Ask::Propose(txn), Then::Nothing);
            }
        }
    }

    fn view(&self, node: usize, tree: &Tree) -> View {
        let nodes: BTreeMap<NodeName, NodeView> = tree
            .nodes
            .iter()
            .map(|(name, state)| (name.clone(), self.node_view(node, name, state)))
            .collect();
        let services = tree.owners.iter().map(|(vmid, own)| {
            let seen = self.fresh(node, &own.owner).map(|r| r.copies.contains(vmid));
            let process = match seen {
                Some(true) => Process::Running,
                Some(false) => Process::Absent,
                None => Process::Unknown,
            };
            let view = ServiceView {
                resource: HaResource::new(sid(*vmid)),
                owner: own.owner.clone(),
                epoch: own.epoch,
                running: own.running,
                armed: own.armed,
                process,
                request: None,
            };
            (sid(*vmid), view)
        });
        let services = services.collect();
        View { me: self.nodes[node].name.clone(), nodes, services, rules: Vec::new() }
    }

    fn fresh(&self, node: usize, of: &NodeName) -> Option<&Reported> {
        let d = self.nodes[node].daemon.as_ref()?;
        let (report, at) = d.reports.get(&self.index(of)?)?;
        (self.now - *at < FRESH).then_some(report)
    }

    fn node_view(&self, node: usize, name: &NodeName, state: &NodeState) -> NodeView {
        let report = self.fresh(node, name);
        let n = &self.nodes[node];
        let settled = n.daemon.as_ref().is_some_and(|d| d.grantor.settled(n.clock(self.now), name));
        let word = match (state, report) {
            (NodeState::Lost { .. }, _) if settled || self.plan.plant == Plant::LossIsSettled => {
                NodeWord::Lost
            }
            (NodeState::Member { boot }, Some(r)) if r.lease && r.boot == *boot => NodeWord::Online,
            (_, None) if self.plan.plant == Plant::SilenceIsLoss => NodeWord::Lost,
            _ => NodeWord::Unknown,
        };
        NodeView { word, reports: report.map(|r| r.ha.clone()).unwrap_or_default() }
    }
}
