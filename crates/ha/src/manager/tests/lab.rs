//! A cluster on which everything works at once, but for what a test breaks: the manager, an agent on each node, and records.

use crate::agent::{Agent, AgentReport, AgentService, AgentView, Attempt, Ending, Leave};
use crate::history::Change;
use crate::state::*;
use crate::step;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stead_model::ha_cfg::{HaResource, HaRules};
use stead_model::{Epoch, HaOptions, NodeName, RequestedState, ServiceId};

pub fn sid(n: u32) -> ServiceId {
    format!("vm:{n}").parse().unwrap()
}

pub fn ct(n: u32) -> ServiceId {
    format!("ct:{n}").parse().unwrap()
}

pub fn name(n: u32) -> NodeName {
    format!("n{n}").parse().unwrap()
}

pub const GIB: u64 = 1 << 30;

pub struct Lab {
    pub view: View,
    pub state: ManagerState,
    pub now: u64,
    pub history: Vec<(ServiceId, Change)>,
    pub dropped: Vec<(bool, String)>,
    agents: BTreeMap<NodeName, Agent>,
    leaving: BTreeMap<NodeName, Leave>,
    guarding: BTreeSet<NodeName>,
    /// Services that cannot be started on a node.
    pub broken: BTreeSet<(ServiceId, NodeName)>,
    /// Services that cannot be stopped, or moved.
    pub stuck: BTreeSet<ServiceId>,
    requests: u32,
}

impl Lab {
    /// Nodes n1 to n`n`, each with 24 CPUs and 128 GiB.
    pub fn new(n: u32) -> Self {
        let capacity = Load { cpu: 24.0, mem: 128 * GIB };
        let agent = Some(AgentReport::default());
        let (others, lost_storages) = (Stats::default(), BTreeMap::new());
        let node = NodeView { word: NodeWord::Online, agent, capacity, others, lost_storages };
        let view = View {
            me: name(1),
            nodes: (1..=n).map(|i| (name(i), node.clone())).collect(),
            services: BTreeMap::new(),
            rules: vec![],
            options: HaOptions::default(),
            storages: BTreeMap::new(),
            requests: BTreeMap::new(),
            round: 10,
        };
        Self {
            agents: view.nodes.keys().map(|n| (n.clone(), Agent::default())).collect(),
            guarding: view.nodes.keys().cloned().collect(),
            view,
            state: ManagerState::default(),
            now: 1000,
            history: vec![],
            dropped: vec![],
            leaving: BTreeMap::new(),
            broken: BTreeSet::new(),
            stuck: BTreeSet::new(),
            requests: 0,
        }
    }

    /// A resource that is to be started, with 4 CPUs and 4 GiB, half of it used.
    pub fn add(&mut self, sid: ServiceId, node: u32) -> &mut ServiceView {
        let stats = Stats { max: Load { cpu: 4.0, mem: 4 * GIB }, used: Load { cpu: 2.0, mem: 2 * GIB } };
        let service = ServiceView {
            resource: HaResource::new(sid),
            owner: name(node),
            epoch: Epoch(3),
            running: false,
            armed: false,
            process: Process::Absent,
            stats,
            lock: None,
            storages: Arc::default(),
        };
        self.view.services.insert(sid, service);
        self.seen(sid)
    }

    /// With these services, all running.
    pub fn with(mut self, all: &[(u32, u32)]) -> Self {
        for (n, node) in all {
            let s = self.add(sid(*n), *node);
            (s.running, s.armed, s.process) = (true, true, Process::Running);
        }
        self.settle();
        self
    }

    /// With these rules.
    pub fn ruled(mut self, rules: &str) -> Self {
        self.view.rules = HaRules::parse(&rules.replace("    ", "\t")).unwrap().list().0;
        self
    }

    pub fn options(mut self, ha: &str, crs: &str) -> Self {
        let some = |t: &'static str| (!t.is_empty()).then_some(t);
        let (ha, crs): (&'static str, &'static str) = (ha.to_owned().leak(), crs.to_owned().leak());
        self.view.options = HaOptions::parse(some(ha), some(crs)).unwrap();
        self
    }

    pub fn seen(&mut self, sid: ServiceId) -> &mut ServiceView {
        self.view.services.get_mut(&sid).unwrap()
    }

    pub fn node(&mut self, n: u32) -> &mut NodeView {
        self.view.nodes.get_mut(&name(n)).unwrap()
    }

    pub fn want(&mut self, sid: ServiceId, state: RequestedState) {
        self.seen(sid).resource.state = state;
    }

    pub fn ask(&mut self, request: Request) {
        self.requests += 1;
        self.view.requests.insert(format!("{:04}", self.requests), request);
    }

    pub fn ask_move(&mut self, sid: ServiceId, node: u32) {
        self.ask(Request::Move { sid, target: name(node), relocate: false });
    }

    /// The node falls silent.
    pub fn silence(&mut self, n: u32) {
        let node = self.node(n);
        (node.word, node.agent) = (NodeWord::Unknown, None);
        for s in self.view.services.values_mut().filter(|s| s.owner == name(n)) {
            s.process = Process::Unknown;
        }
    }

    /// The node is committed lost.
    pub fn lose(&mut self, n: u32) {
        self.silence(n);
        self.node(n).word = NodeWord::Lost;
    }

    /// The node takes part again, with nothing running.
    pub fn boot(&mut self, n: u32) {
        self.agents.insert(name(n), Agent::default());
        self.leaving.remove(&name(n));
        self.node(n).word = NodeWord::Online;
        self.node(n).agent = Some(AgentReport::default());
        for s in self.view.services.values_mut().filter(|s| s.owner == name(n)) {
            (s.process, s.running, s.armed) = (Process::Absent, false, false);
        }
    }

    pub fn leave(&mut self, n: u32, leave: Leave) {
        self.leaving.insert(name(n), leave);
    }

    /// What a node's agent sees.
    pub fn agent_view(&self, node: &NodeName) -> AgentView {
        let mine = |(sid, s): (&ServiceId, &ServiceView)| {
            let (present, max_restart) = (s.process == Process::Running, s.resource.max_restart);
            (s.owner == *node)
                .then_some((*sid, AgentService { present, max_restart, requested: s.resource.state }))
        };
        AgentView {
            me: node.clone(),
            manager: Arc::new(self.state.clone()),
            ready: true,
            services: self.view.services.iter().filter_map(mine).collect(),
            policy: self.view.options.shutdown_policy,
            leave: self.leaving.get(node).copied(),
            guarding: self.guarding.contains(node),
        }
    }

    /// Whether a node that is to go may go.
    pub fn may_leave(&self, n: u32) -> bool {
        self.agents[&name(n)].may_leave(&self.agent_view(&name(n)))
    }

    /// One round of the manager, and then of each agent. Returns the manager's commands.
    pub fn step(&mut self) -> Vec<Command> {
        self.now += 1;
        let commands = step(self.now, &self.view, &mut self.state);
        for command in &commands {
            match command {
                Command::Record { sid, change } => self.history.push((*sid, change.clone())),
                Command::DropRequest { id, taken, reason } => {
                    self.view.requests.remove(id);
                    self.dropped.push((*taken, reason.clone()));
                }
                Command::Recover { sid, from, to, epoch, unlock, .. } => {
                    let (lost, s) = (self.view.nodes[from].word, self.view.services.get_mut(sid).unwrap());
                    assert_eq!((lost, &s.owner, s.epoch), (NodeWord::Lost, from, *epoch));
                    assert!(s.armed || !s.running);
                    (s.owner, s.epoch) = (to.clone(), epoch.next());
                    (s.running, s.armed, s.process) = (false, false, Process::Absent);
                    s.lock = s.lock.take().filter(|_| !unlock);
                }
            }
        }
        let online: Vec<NodeName> = self
            .view
            .nodes
            .iter()
            .filter(|(_, n)| n.word == NodeWord::Online)
            .map(|(n, _)| n.clone())
            .collect();
        for node in online {
            self.work(&node);
        }
        commands
    }

    fn work(&mut self, node: &NodeName) {
        let view = self.agent_view(node);
        let now = Duration::from_secs(self.now * 10);
        if view.wants_guard() {
            self.guarding.insert(node.clone());
        } else {
            self.guarding.remove(node);
        }
        let commands = self.agents.get_mut(node).unwrap().step(now, &view);
        for command in commands {
            let ending = self.attempt(node, command.sid, &command.attempt);
            self.agents.get_mut(node).unwrap().ended(now, &command, ending);
        }
        let report = self.agents[node].report(&self.agent_view(node));
        self.view.nodes.get_mut(node).unwrap().agent = Some(report);
    }

    fn attempt(&mut self, node: &NodeName, sid: ServiceId, attempt: &Attempt) -> Ending {
        let (broken, stuck) = (self.broken.contains(&(sid, node.clone())), self.stuck.contains(&sid));
        let s = self.view.services.get_mut(&sid).unwrap();
        match attempt {
            Attempt::Start if broken || s.lock.is_some() => return Ending::Failed("no disk".into()),
            _ if stuck => return Ending::Failed("it hangs".into()),
            Attempt::Start => (s.running, s.armed, s.process) = (true, true, Process::Running),
            Attempt::Stop { .. } => (s.running, s.armed, s.process) = (false, false, Process::Absent),
            Attempt::Migrate(to) => (s.owner, s.epoch) = (to.clone(), s.epoch.next()),
            Attempt::Relocate { to, .. } => {
                (s.owner, s.epoch) = (to.clone(), s.epoch.next());
                (s.running, s.armed, s.process) = (false, false, Process::Absent);
            }
        }
        Ending::Done
    }

    /// Steps until nothing changes any more.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..100 {
            let before = (self.state.clone(), self.view.clone());
            self.step();
            quiet = if before == (self.state.clone(), self.view.clone()) { quiet + 1 } else { 0 };
            if quiet == 3 {
                return;
            }
        }
        panic!("it never settles: {:#?}", self.history.iter().rev().take(12).collect::<Vec<_>>());
    }

    pub fn status(&self, sid: ServiceId) -> &Service {
        &self.state.service_status[&sid]
    }

    /// `state node` of a service.
    pub fn is(&self, sid: ServiceId) -> String {
        let s = self.status(sid);
        format!("{} {}", s.state.as_str(), s.node)
    }

    /// Where services run, in order of their numbers.
    pub fn running(&self) -> Vec<String> {
        let runs = |s: &&ServiceView| s.process == Process::Running;
        let told = |s: &ServiceView| format!("{}@{}", s.resource.sid.vmid, s.owner);
        self.view.services.values().filter(runs).map(told).collect()
    }

    /// The states that a service went through since the last call for any.
    pub fn story(&mut self, sid: ServiceId) -> Vec<String> {
        let all = std::mem::take(&mut self.history).into_iter().filter(|(s, _)| *s == sid);
        all.map(|(_, c)| c.state.map_or("-", ServiceState::as_str).to_owned()).collect()
    }
}
