//! A scenario on the modelled cluster: its steps are carried out, and what happens is told.
//!
//! Steps are what users and machines do. Users' changes are committed where there is a leader that can; until then they
//! wait, in their order. What is told of machines - that a guest started, was paused, is lost - comes from the model of the
//! machine, never from what the manager believes.

use super::cables::Cables;
use super::config::{Config, Edit};
use super::dice::Dice;
use super::node::Node;
use super::store::{Tree, Txn};
use super::tasks::{Ask, Then};
use super::world::{Event, World, new_node};
use super::{Plan, Plant};
use crate::scenario::command::{Named, ServiceCommand};
use crate::scenario::story::{NodeEnd, ServiceEnd};
use crate::scenario::{Command, Happening, Hardware, Kind, Load, Scenario, Step, Story};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stead_ha::{DisarmMode, Leave, ManagerState, NodeStatus, Request, ServiceState};
use stead_model::ha_cfg::{HaCfgError, HaResource, RequestedState};
use stead_model::{
    Epoch, FormatError, GuestKind, HaOptions, NodeName, Ownership, ServiceId, Vmid, ha_groups,
};

/// A node that is rebooted is up again after so long.
const REBOOT: Duration = Duration::from_secs(20);

/// A scenario that cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// A node is named that there is not.
    #[error("the node '{0}' is no part of the cluster")]
    Node(NodeName),
    /// The options are wrong.
    #[error("options of the cluster: {0}")]
    Options(#[from] HaCfgError),
    /// The groups cannot be read.
    #[error("groups: {0}")]
    Groups(#[from] FormatError),
    /// What an earlier manager left behind cannot be read.
    #[error("manager_status: {0}")]
    Manager(serde_json::Error),
}

/// What a scenario needs beside the cluster.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    steps: Vec<Step>,
    /// How many of them were carried out.
    played: usize,
    hardware: Vec<Hardware>,
    pub names: BTreeMap<ServiceId, String>,
    later: BTreeMap<ServiceId, Load>,
    loads: BTreeMap<Vmid, Load>,
    /// Every service that there ever was.
    pub known: BTreeSet<ServiceId>,
    pub cables: Cables,
    /// Guests under way from one node to another, with the node that they left.
    pub transit: BTreeMap<Vmid, usize>,
    round: u64,
    told: Vec<Happening>,
}

/// Plays a scenario.
///
/// # Errors
/// If it does not fit together.
pub fn play(scenario: &Scenario) -> Result<Story, PlayError> {
    let mut world = build(scenario)?;
    world.run_before(scenario.end + Duration::from_nanos(1), |_| false);
    world.now = scenario.end;
    Ok(world.story())
}

/// The cluster of a scenario, in which nothing has happened yet.
pub(super) fn build(scenario: &Scenario) -> Result<World, PlayError> {
    let calm = scenario.seed.is_none();
    let plan = Plan { nodes: scenario.nodes.len(), plant: Plant::None, calm, ..Plan::default() };
    let mut dice = Dice::new(scenario.seed.unwrap_or(0), plan.nodes);
    let machine = |(i, h): (usize, &Hardware)| {
        let node = new_node(i + 1, h.name.clone(), &plan, &mut dice);
        let offset = if calm { Duration::from_secs(1000) } else { node.offset };
        Node { offset, ..node }
    };
    let nodes: Vec<Node> = scenario.nodes.iter().enumerate().map(machine).collect();
    let known: BTreeSet<&NodeName> = scenario.nodes.iter().map(|h| &h.name).collect();
    let missing = |n: &&NodeName| !known.contains(n);
    let named = scenario
        .services
        .iter()
        .map(|s| &s.node)
        .chain(scenario.steps.iter().flat_map(|s| of_nodes(&s.command)));
    if let Some(node) = named.into_iter().find(missing) {
        return Err(PlayError::Node(node.clone()));
    }
    let owners = scenario.services.iter().map(|s| {
        let own = Ownership {
            kind: s.resource.sid.kind,
            owner: s.node.clone(),
            epoch: Epoch(1),
            armed: false,
            running: false,
            recovered: false,
        };
        (s.resource.sid.vmid, own)
    });
    let mut tree = Tree::new(owners.collect(), manager(scenario)?, config(scenario)?);
    tree.profile = scenario.profile;
    let mut world = World::with(dice, plan, nodes, tree);
    world.failing = scenario.services.iter().map(|s| (s.resource.sid.vmid, s.failing)).collect();
    let unplugged = scenario.nodes.iter().enumerate().filter(|(_, h)| h.power && !h.network);
    let unplugged: BTreeSet<usize> = unplugged.map(|(i, _)| i).collect();
    world.scene = Some(Scene {
        steps: in_order(&scenario.steps),
        played: 0,
        hardware: scenario.nodes.clone(),
        names: scenario.names.clone(),
        later: scenario.later.clone(),
        loads: scenario.services.iter().map(|s| (s.resource.sid.vmid, s.load)).collect(),
        known: scenario.services.iter().map(|s| s.resource.sid).collect(),
        cables: Cables { unplugged, ..Cables::default() },
        transit: BTreeMap::new(),
        round: scenario.round.as_secs(),
        told: vec![],
    });
    world.plug();
    for (node, hardware) in scenario.nodes.iter().enumerate() {
        if hardware.power {
            world.power_on(node);
        }
    }
    Ok(world)
}

/// The nodes that a command cannot be carried out without. A request to move to a node that is none is the manager's to refuse.
pub(super) fn of_nodes(command: &Command) -> Vec<&NodeName> {
    match command {
        Command::Power(n, _) | Command::Network(n, _) | Command::Maintenance(n, _) => vec![n],
        Command::Storage(n, _) => vec![n],
        Command::Shutdown(n) | Command::Reboot(n) | Command::RestartAgent(n) | Command::StopManager(n) => {
            vec![n]
        }
        Command::Service(_, ServiceCommand::MoveByHand(n) | ServiceCommand::Add { node: n, .. }) => vec![n],
        Command::Pause { node, .. } | Command::Kill { node, .. } | Command::ConfirmOff(node) => vec![node],
        Command::Cut { from, to, .. } => vec![from, to],
        Command::Split(side) => side.iter().collect(),
        Command::Service(..)
        | Command::Delay(_)
        | Command::SkipRound
        | Command::Disarm { .. }
        | Command::Arm
        | Command::Mend
        | Command::Stall(_)
        | Command::Weather { .. }
        | Command::Rule(_)
        | Command::Unrule(_)
        | Command::Profile(_) => vec![],
    }
}

fn in_order(steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    steps.sort_by_key(|s| s.at);
    steps
}

fn config(scenario: &Scenario) -> Result<Config, PlayError> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let options = HaOptions::parse(some(&scenario.ha).as_deref(), some(&scenario.crs).as_deref())?;
    let mut resources = scenario.services.iter().map(|s| (s.resource.sid, s.resource.clone())).collect();
    let mut rules = scenario.rules.clone();
    if let Some(groups) = &scenario.groups {
        let (groups, _) = ha_groups::parse(&groups.to_string())?;
        let more = ha_groups::to_rules(&groups, &rules, &mut resources);
        rules.extend(more);
    }
    let locked = scenario.services.iter().filter_map(|s| Some((s.resource.sid.vmid, s.lock.clone()?)));
    Ok(Config { resources, rules, options, locks: locked.collect(), ..Config::default() })
}

/// What an earlier manager left behind, as far as it means something here: states of services and of nodes. There `uid`
/// is any text; here it is a number that grows.
fn manager(scenario: &Scenario) -> Result<ManagerState, PlayError> {
    let Some(value) = &scenario.manager else { return Ok(ManagerState::default()) };
    let mut services = serde_json::Map::new();
    for (index, (name, old)) in value["service_status"].as_object().into_iter().flatten().enumerate() {
        let Ok(named) = Named::parse(name) else { continue };
        let mut service = json!({"uid": index + 1, "reason": "as an earlier manager left it"});
        for key in ["node", "target", "failed_nodes", "maintenance_node"] {
            if !old[key].is_null() {
                service[key] = old[key].clone();
            }
        }
        // To be started is to be started, wherever.
        service["state"] = match old["state"].as_str() {
            Some("request_start_balance") => json!("request_start"),
            _ => old["state"].clone(),
        };
        services.insert(named.sid.to_string(), service);
    }
    let state = json!({
        "last_uid": services.len(),
        "service_status": services,
        "node_status": value["node_status"].as_object().cloned().unwrap_or_default(),
    });
    serde_json::from_value(state).map_err(PlayError::Manager)
}

pub(super) fn status_word(status: NodeStatus) -> String {
    serde_json::to_value(status).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

impl World {
    /// Tells something of a guest on a node.
    pub fn tell_guest(&mut self, kind: Kind, vmid: Vmid, node: usize) {
        let sid = self.sid(vmid);
        self.tell(kind, Some(sid), Some(node), None);
    }

    /// Tells what happened, if anybody listens.
    pub fn tell(&mut self, kind: Kind, sid: Option<ServiceId>, node: Option<usize>, extra: Option<String>) {
        let (at, node) = (self.now, node.map(|n| self.nodes[n].name.to_string()));
        if let Some(scene) = &mut self.scene {
            let service = sid.map(|s| scene.names.get(&s).cloned().unwrap_or_else(|| s.to_string()));
            scene.told.push(Happening { at, kind, service, node, extra });
        }
    }

    fn sid(&self, vmid: Vmid) -> ServiceId {
        let kind = self.store.newest().owners.get(&vmid).map_or(GuestKind::Qemu, |o| o.kind);
        ServiceId { kind, vmid }
    }

    /// What a guest may use, and what it uses while it runs.
    pub fn load_of(&self, vmid: Vmid) -> Load {
        self.scene.as_ref().and_then(|s| s.loads.get(&vmid).copied()).unwrap_or_default()
    }

    /// What a machine has: CPUs, bytes.
    pub fn capacity(&self, node: usize) -> (f64, u64) {
        let hardware = self.scene.as_ref().and_then(|s| s.hardware.get(node));
        hardware.map_or((24.0, 128 << 30), |h| (h.maxcpu, h.maxmem))
    }

    /// Whether this attempt to start a guest fails by itself.
    pub fn start_fails(&mut self, node: usize, vmid: Vmid) -> bool {
        let Some(failing) = self.failing.get_mut(&vmid) else { return false };
        let fails = failing.starts > 0 && failing.on.is_none_or(|n| n == node + 1);
        failing.starts -= u32::from(fails);
        fails
    }

    /// Whether this attempt to move a guest fails by itself.
    pub fn move_fails(&mut self, vmid: Vmid) -> bool {
        let Some(failing) = self.failing.get_mut(&vmid) else { return false };
        let fails = failing.moves > 0;
        failing.moves -= u32::from(fails);
        fails
    }

    /// Whether the guest cannot be stopped.
    pub fn stop_fails(&self, vmid: Vmid) -> bool {
        self.failing.get(&vmid).is_some_and(|f| f.stop)
    }

    /// Sets the links as the cables are.
    pub fn plug(&mut self) {
        let Some(cables) = self.scene.as_ref().map(|s| s.cables.clone()) else { return };
        for (from, row) in self.cut.iter_mut().enumerate() {
            for (to, cut) in row.iter_mut().enumerate() {
                *cut = from != to && cables.is_cut(from, to);
            }
        }
    }

    fn cable(&mut self, node: usize, plugged: bool) -> bool {
        let Some(scene) = &mut self.scene else { return false };
        let changed = match plugged {
            true => scene.cables.unplugged.remove(&node),
            false => scene.cables.unplugged.insert(node),
        };
        self.plug();
        changed
    }

    /// When the next step is due.
    pub fn next_step(&self) -> Option<Duration> {
        self.scene.as_ref().and_then(|s| s.steps.get(s.played)).map(|s| s.at)
    }

    /// These are the steps from now on. Those that were carried out must be among them.
    pub fn set_steps(&mut self, steps: &[Step]) {
        if let Some(scene) = &mut self.scene {
            scene.steps = steps.to_vec();
        }
    }

    /// What was told since this was asked last.
    pub fn take_told(&mut self) -> Vec<Happening> {
        self.scene.as_mut().map(|s| std::mem::take(&mut s.told)).unwrap_or_default()
    }

    /// Whether anything was told since then.
    pub fn has_told(&self) -> bool {
        self.scene.as_ref().is_some_and(|s| !s.told.is_empty())
    }

    /// Carries out the next step.
    pub fn play_step(&mut self) {
        let Some(scene) = &mut self.scene else { return };
        let Some(step) = scene.steps.get(scene.played).cloned() else { return };
        scene.played += 1;
        self.play_command(&step.command);
    }

    fn play_command(&mut self, command: &Command) {
        match command {
            Command::Power(n, on) => self.power_command(n, *on),
            Command::Network(n, on) => {
                if let Some(node) = self.index(n) {
                    let kind = if *on { Kind::InNetOn } else { Kind::InNetOff };
                    self.tell(kind, None, Some(node), None);
                    self.cable(node, *on);
                }
            }
            Command::Shutdown(n) => self.leave_command(n, Leave::Shutdown),
            Command::Reboot(n) => self.leave_command(n, Leave::Reboot),
            Command::RestartAgent(n) => {
                self.tell_command(None, format!("restart-lrm {n}"));
                self.set_leave_of(n, Leave::Restart);
            }
            Command::Delay(time) => self.tell_command(None, format!("delay {}", time.as_secs_f64())),
            Command::SkipRound => self.tell_command(None, "skip-round crm".to_owned()),
            Command::Maintenance(n, on) => {
                let word = if *on { "enable" } else { "disable" };
                self.tell_command(None, format!("crm {n} {word}-node-maintenance"));
                self.edit(Edit::Ask(Request::Maintenance { node: n.clone(), on: *on }));
            }
            Command::Disarm { ignore } => {
                let (mode, word) =
                    if *ignore { (DisarmMode::Ignore, "ignore") } else { (DisarmMode::Freeze, "freeze") };
                self.tell_command(None, format!("crm disarm-ha {word}"));
                self.edit(Edit::Ask(Request::Disarm { mode }));
            }
            Command::Arm => {
                self.tell_command(None, "crm arm-ha".to_owned());
                self.edit(Edit::Ask(Request::Arm));
            }
            Command::StopManager(n) => {
                self.tell_command(None, format!("crm {n} stop"));
                if let Some(node) = self.index(n).filter(|n| self.leads(*n).is_some()) {
                    self.step_down(node);
                }
            }
            Command::Service(named, command) => self.service_command(*named, command),
            other => self.play_fault(other),
        }
    }

    pub fn tell_command(&mut self, sid: Option<ServiceId>, words: String) {
        self.tell(Kind::InCommand, sid, None, Some(words));
    }

    /// With power comes the network: that is how a machine is put back.
    fn power_command(&mut self, name: &NodeName, on: bool) {
        let Some(node) = self.index(name) else { return };
        let kind = if on { Kind::InPowerOn } else { Kind::InPowerOff };
        self.tell(kind, None, Some(node), Some("cmdlist".to_owned()));
        if on {
            self.cable(node, true);
            if !self.nodes[node].on {
                self.power_on(node);
            }
        } else if self.nodes[node].on {
            self.lose_power(node);
        }
    }

    fn leave_command(&mut self, name: &NodeName, leave: Leave) {
        let Some(node) = self.index(name) else { return };
        let kind = if leave == Leave::Reboot { Kind::InReboot } else { Kind::InShutdown };
        self.tell(kind, None, Some(node), None);
        self.set_leave(node, leave);
    }

    fn set_leave_of(&mut self, name: &NodeName, leave: Leave) {
        if let Some(node) = self.index(name) {
            self.set_leave(node, leave);
        }
    }

    /// A node, or its daemon, is to go.
    pub fn set_leave(&mut self, node: usize, leave: Leave) {
        let now = self.now;
        if let Some(daemon) = self.daemon(node) {
            daemon.leave = Some((leave, now));
        }
    }

    /// The node has nothing more to do: it goes down in order.
    pub fn go_down(&mut self, node: usize, leave: Leave) {
        let word = if leave == Leave::Reboot { "reboot" } else { "shutdown" };
        // What HA has not stopped is stopped by the machine: guests that it leaves alone, and all while it is disarmed.
        let running: Vec<Vmid> =
            self.nodes[node].copies.iter().filter(|(_, c)| c.running).map(|(v, _)| *v).collect();
        for vmid in running {
            self.destroy(node, vmid, Some(Kind::Stop));
        }
        self.lose_power(node);
        self.tell(Kind::Off, None, Some(node), Some(word.to_owned()));
        if leave == Leave::Reboot {
            self.after(REBOOT, Event::PowerOn { node });
        }
    }

    fn service_command(&mut self, named: Named, command: &ServiceCommand) {
        let (sid, vmid) = (named.sid, named.sid.vmid);
        let words = |what: &str, of: &dyn std::fmt::Display| format!("{what} {of}");
        let said = match command {
            ServiceCommand::Want(state) => state.as_str().to_owned(),
            ServiceCommand::Stop(time) => words("stop", &time.as_secs()),
            ServiceCommand::Migrate(to) => words("migrate", to),
            ServiceCommand::Relocate(to) => words("relocate", to),
            ServiceCommand::Add { node, state, .. } => format!("add {node} {}", state.as_str()),
            ServiceCommand::Delete => "delete".to_owned(),
            ServiceCommand::Die => "die".to_owned(),
            ServiceCommand::Hang => "hang".to_owned(),
            ServiceCommand::Lock(lock) => words("lock", lock),
            ServiceCommand::Unlock => "unlock".to_owned(),
            ServiceCommand::MoveByHand(to) => words("manual-migrate", to),
            ServiceCommand::Static(..) => "set-static-stats".to_owned(),
            ServiceCommand::Dynamic(..) => "set-dynamic-stats".to_owned(),
        };
        self.tell_command(Some(sid), said);
        match command {
            ServiceCommand::Want(state) => self.edit(Edit::Want(sid, *state)),
            ServiceCommand::Stop(time) => {
                let timeout = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
                self.edit(Edit::Ask(Request::Stop { sid, timeout }));
            }
            ServiceCommand::Migrate(to) => {
                self.edit(Edit::Ask(Request::Move { sid, target: to.clone(), relocate: false }));
            }
            ServiceCommand::Relocate(to) => {
                self.edit(Edit::Ask(Request::Move { sid, target: to.clone(), relocate: true }));
            }
            ServiceCommand::Add { node, state, running } => self.add(named, node, *state, *running),
            ServiceCommand::Delete => self.edit(Edit::Remove(sid)),
            ServiceCommand::Die => self.die(vmid),
            ServiceCommand::Hang => {
                self.nodes.iter_mut().filter_map(|n| n.copies.get_mut(&vmid)).for_each(|c| c.hung = true);
            }
            ServiceCommand::Lock(lock) => self.edit(Edit::Lock(vmid, Some(lock.clone()))),
            ServiceCommand::Unlock => self.edit(Edit::Lock(vmid, None)),
            ServiceCommand::MoveByHand(to) => {
                let running = self.nodes.iter().any(|n| n.guest_executes(self.now, vmid).is_some());
                self.edit(Edit::Moved { vmid, to: to.clone(), running });
            }
            ServiceCommand::Static(..) | ServiceCommand::Dynamic(..) => {
                if let Some(scene) = &mut self.scene {
                    command.change_load(scene.loads.entry(vmid).or_default());
                }
            }
        }
    }

    fn die(&mut self, vmid: Vmid) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].copies.remove(&vmid).is_some() {
                self.tell_guest(Kind::Died, vmid, node);
            }
        }
    }

    fn add(&mut self, named: Named, node: &NodeName, state: RequestedState, running: bool) {
        let sid = named.sid;
        self.failing.entry(sid.vmid).or_insert_with(|| named.failing());
        if let Some(scene) = &mut self.scene {
            scene.known.insert(sid);
            let load = scene.later.get(&sid).copied().unwrap_or_default();
            scene.loads.entry(sid.vmid).or_insert(load);
        }
        let resource = HaResource { state, ..HaResource::new(sid) };
        self.edit(Edit::Add { resource, node: node.clone(), running });
    }

    /// What users have done to a guest outside HA happens at once.
    pub fn edited(&mut self, leader: usize, edit: &Edit) {
        match edit {
            Edit::Profile(_) if self.plan.plant == Plant::ProfileShrunk => {
                let forgotten = self.store.newest().previous.map(Txn::Settle);
                let Some(forgotten) = forgotten else { return };
                if self.real.is_some() {
                    self.ask(leader, Ask::Propose(forgotten), Then::Nothing);
                } else if let Some(index) = self.store.commit(&forgotten) {
                    self.nodes[leader].applied = index;
                }
            }
            Edit::Add { resource, node, running: true } => self.appear(resource.sid.vmid, &node.clone()),
            Edit::Moved { vmid, to, running } => {
                for node in 0..self.nodes.len() {
                    self.destroy(node, *vmid, None);
                }
                if *running {
                    self.appear(*vmid, to);
                }
            }
            _ => {}
        }
    }

    /// A guest runs there, without HA.
    pub fn appear(&mut self, vmid: Vmid, node: &NodeName) {
        let Some(node) = self.index(node).filter(|n| self.nodes[*n].on) else { return };
        let Some(epoch) = self.store.newest().owners.get(&vmid).map(|o| o.epoch) else { return };
        self.add_copy(node, vmid, epoch);
        if let Some(copy) = self.nodes[node].copies.get_mut(&vmid) {
            (copy.running, copy.ran) = (true, true);
        }
        self.tell_guest(Kind::Start, vmid, node);
    }

    /// A running guest leaves its node.
    pub fn begin_transit(&mut self, node: usize, vmid: Vmid) {
        let ran = self.nodes[node].copies.get(&vmid).is_some_and(|c| c.ran);
        if let Some(scene) = self.scene.as_mut().filter(|_| ran) {
            scene.transit.insert(vmid, node);
        }
    }

    /// A guest under way will not arrive.
    pub fn end_transit(&mut self, vmid: Vmid, kind: Kind) {
        if let Some(node) = self.scene.as_mut().and_then(|s| s.transit.remove(&vmid)) {
            self.tell_guest(kind, vmid, node);
        }
    }

    /// The length of the reference's round, seconds.
    pub fn round(&self) -> u64 {
        self.scene.as_ref().map_or(10, |s| s.round)
    }

    /// What the manager keeps in a service's history.
    pub fn tell_change(&mut self, sid: ServiceId, change: &stead_ha::Change) {
        let node = self.index(&change.node);
        let state = change.state.map_or("left alone", ServiceState::as_str);
        let to = change.target.as_ref().map(|t| format!(" to {t}")).unwrap_or_default();
        self.tell(Kind::State, Some(sid), node, Some(format!("{state}{to}: {}", change.reason)));
    }

    /// A move was committed.
    pub fn tell_move(&mut self, vmid: Vmid, from: &NodeName, to: &NodeName) {
        let sid = self.sid(vmid);
        let to = self.index(to);
        let live = self.scene.as_mut().is_some_and(|s| s.transit.remove(&vmid).is_some());
        let kind = if live { Kind::Migrate } else { Kind::Relocate };
        self.tell(kind, Some(sid), to, Some(from.to_string()));
    }

    /// A recovery was committed: what is frozen on the lost node can never run again.
    pub fn tell_recovery(&mut self, vmid: Vmid, from: &NodeName, to: &NodeName) {
        let sid = self.sid(vmid);
        let (from_index, to) = (self.index(from), self.index(to));
        if let Some(node) = from_index {
            let now = self.now;
            let executes = self.nodes[node].guest_executes(now, vmid).is_some();
            let copy = self.nodes[node].copies.get_mut(&vmid).filter(|c| c.ran && !c.lost && c.frozen);
            if let Some(copy) = copy.filter(|_| !executes) {
                copy.lost = true;
                self.tell_guest(Kind::Lost, vmid, node);
            }
        }
        self.end_transit(vmid, Kind::Lost);
        self.tell(Kind::Recover, Some(sid), to, Some(from.to_string()));
    }

    /// The manager has committed a new state.
    pub fn tell_manager(&mut self, before: &ManagerState, now: &ManagerState) {
        if self.scene.is_none() {
            return;
        }
        for (name, status) in &now.node_status {
            if before.node_status.get(name) != Some(status) {
                let node = self.index(name);
                if *status == NodeStatus::Fence {
                    self.tell(Kind::FenceOk, None, node, None);
                }
                self.tell(Kind::NodeState, None, node, Some(status_word(*status)));
            }
        }
        for (sid, s) in &now.service_status {
            let old = before.service_status.get(sid);
            if s.state == ServiceState::Error && old.is_none_or(|o| o.state != s.state) {
                let was = old.map(|o| o.state.as_str().to_owned());
                self.tell(Kind::Error, Some(*sid), None, was);
            }
            let waits =
                |s: &stead_ha::Service| s.state == ServiceState::Recovery && s.reason.contains("waits");
            if waits(s) && !old.is_some_and(waits) {
                let node = self.index(&s.node);
                self.tell(Kind::NoRecover, Some(*sid), node, None);
            }
        }
        for sid in before.service_status.keys().filter(|s| !now.service_status.contains_key(s)) {
            self.tell(Kind::Unmanaged, Some(*sid), None, None);
        }
        let disarmed = |s: &ManagerState| s.disarm.is_some_and(|d| d.done);
        match (disarmed(before), disarmed(now)) {
            (false, true) => self.tell(Kind::Disarmed, None, None, None),
            (true, false) => self.tell(Kind::Armed, None, None, None),
            _ => {}
        }
    }

    fn story(self) -> Story {
        let tree = self.store.newest().clone();
        let now = self.now;
        let broken = self.broken_by();
        let Some(scene) = self.scene else { return Story::default() };
        let running_on = |vmid: Vmid| {
            self.nodes.iter().find(|n| n.guest_executes(now, vmid).is_some()).map(|n| n.name.to_string())
        };
        let service = |sid: &ServiceId| {
            let resource = tree.config.resources.get(sid);
            let status = tree.manager.0.service_status.get(sid);
            let owner = tree.owners.get(&sid.vmid).filter(|_| resource.is_some());
            let end = ServiceEnd {
                node: owner.map(|o| o.owner.to_string()),
                want: resource.map(|r| r.state.as_str().to_owned()),
                state: status.map(|s| s.state.as_str().to_owned()),
                running_on: running_on(sid.vmid),
                reason: status.map(|s| s.reason.clone()),
            };
            (scene.names.get(sid).cloned().unwrap_or_else(|| sid.to_string()), end)
        };
        let node = |(i, n): (usize, &Node)| {
            let state = tree.manager.0.node_status.get(&n.name).map(|s| status_word(*s));
            let network = n.on && !scene.cables.unplugged.contains(&i);
            (n.name.to_string(), NodeEnd { power: n.on, network, state })
        };
        Story {
            services: scene.known.iter().map(service).collect(),
            nodes: self.nodes.iter().enumerate().map(node).collect(),
            events: scene.told,
            rules: tree.manager.0.rule_errors.clone(),
            broken,
        }
    }
}
