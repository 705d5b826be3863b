//! What if these nodes were lost now? Which guests go where, which stay down and why, and what memory is left.
//!
//! There is no second placement: the manager's own [`step`](crate::step) decides on a copy of what it sees, with the nodes
//! committed lost, round by round until nothing changes any more. Between rounds everything that it asks for works at once:
//! recoveries are committed, guests start, stop and move. A guest that has been recovered counts with all the memory that
//! it may use. Automatic rebalancing rests, since it would move guests for reasons of its own.
//!
//! ```text
//!              ┌── nodes lost ──▶ copy ──▶ step ──▶ carried out ──┐
//!  Now ──▶ Forecast                         ▲                     │ until nothing changes
//!              └── for each node alone      └─────────────────────┘──▶ WhatIf ──▶ Outlook
//! ```
//!
//! The question is asked for every node of a large cluster, so what a loss cannot touch is left out of the copy: a
//! [`Forecast`] sums up once what services that are at rest, and that no rule names, mean for their nodes.

use crate::agent::{AgentReport, Outcome, Report};
use crate::manager::{in_order, is_quiet, step_beside};
use crate::placement::{Places, Resting};
use crate::rules::Rules;
use crate::state::{Command, ManagerState, NodeWord, Process, Service, ServiceState, ServiceView, View};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use stead_model::ha_cfg::{HaRule, HaRuleKind};
use stead_model::{NodeName, RequestedState, ServiceId};

mod outlook;

pub use outlook::{Outlook, Verdict};

/// After so many rounds it is taken for restless.
const ROUNDS: u64 = 200;
/// How far the clock goes on with each round, seconds.
const TICK: u64 = 10;

/// A guest that is not under HA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmanaged {
    /// Where it is.
    pub owner: NodeName,
    /// It runs, or may.
    pub running: bool,
}

/// The cluster as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Now {
    /// Seconds since 1970.
    pub at: u64,
    /// What the manager sees.
    pub view: View,
    /// What it remembers.
    pub state: ManagerState,
    /// Guests that are not among the view's services.
    pub unmanaged: BTreeMap<ServiceId, Unmanaged>,
    /// Who votes on the configuration: without a majority of these nothing is decided.
    pub voters: BTreeSet<NodeName>,
    /// Voters that are there and run no guests: the view has none of them.
    pub witnesses: BTreeSet<NodeName>,
}

/// What becomes of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes to another node.
    Moves {
        /// Which.
        to: NodeName,
        /// It runs there; otherwise it is there, stopped, as it shall be.
        runs: bool,
    },
    /// It stays with its node, and does not run.
    Down,
    /// Its node, which is not lost itself, pauses it until a majority is back.
    Paused,
}

/// A guest that the loss concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFate {
    /// Which.
    pub sid: ServiceId,
    /// Where it is now.
    pub from: NodeName,
    /// What becomes of it.
    pub fate: Fate,
    /// HA maintains it.
    pub ha: bool,
    /// It is to run: HA is asked for that, and has not given it up; or it runs without HA.
    pub wanted: bool,
    /// Why.
    pub reason: String,
}

impl GuestFate {
    /// It would run, but for the loss, and HA has promised that it does.
    pub fn breaks_promise(&self) -> bool {
        self.ha && self.wanted && !matches!(self.fate, Fate::Moves { runs: true, .. })
    }
}

/// A node's memory, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What it has; 0: not known.
    pub total: u64,
    /// In use now, and what is on its way there.
    pub used: u64,
    /// In use after the loss. None: the node is lost, or silent.
    pub after: Option<u64>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhatIf {
    /// The nodes that are asked about.
    pub lost: BTreeSet<NodeName>,
    /// A majority is left. Without one nothing is recovered.
    pub quorate: bool,
    /// It comes to rest. Otherwise this is how it stands after many rounds.
    pub settled: bool,
    /// Every guest that goes elsewhere or does not run any more.
    pub guests: Vec<GuestFate>,
    /// All nodes.
    pub nodes: BTreeMap<NodeName, Room>,
    /// Rules that are not kept then, though they are now, by name: what is against them.
    pub broken: BTreeMap<String, String>,
}

impl WhatIf {
    /// All that HA keeps running runs again.
    pub fn survives(&self) -> bool {
        self.quorate && self.settled && !self.guests.iter().any(GuestFate::breaks_promise)
    }

    /// Guests that run, are not under HA, and stay down.
    pub fn unmanaged_down(&self) -> usize {
        self.guests.iter().filter(|g| !g.ha && g.wanted).count()
    }
}

/// The cluster as it is, made ready for many questions.
#[derive(Debug)]
pub struct Forecast<'n> {
    now: &'n Now,
    rules: Rules,
    /// What a loss elsewhere may touch.
    view: View,
    state: ManagerState,
    /// The rest, summed up.
    resting: Resting,
    /// The rest, by node.
    left_out: HashMap<&'n NodeName, Vec<ServiceId>>,
    /// Guests that are not under HA, by node.
    unmanaged: HashMap<&'n NodeName, Vec<ServiceId>>,
    /// Memory in use, by node.
    used: BTreeMap<NodeName, u64>,
    /// Rules that are not kept now.
    broken: BTreeMap<String, String>,
}

impl<'n> Forecast<'n> {
    /// Sums up.
    pub fn new(now: &'n Now) -> Self {
        // Disarming looks at every service.
        Self::summing_up(now, now.state.disarm.is_none())
    }

    fn summing_up(now: &'n Now, sum_up: bool) -> Self {
        let names: BTreeSet<NodeName> = now.view.nodes.keys().cloned().collect();
        let rules = Rules::compile(&now.view.rules, &names);
        let asked: BTreeSet<ServiceId> = now.view.requests.values().filter_map(about).collect();
        let mode = now.view.options.crs.mode;
        let (mut resting, mut left_out) = (Resting::new(), HashMap::<_, Vec<_>>::new());
        for (sid, seen) in in_order(&now.view).filter(|_| sum_up) {
            let named = rules.of(sid).is_some() || asked.contains(&sid);
            if named || !is_quiet(&now.view, &now.state, sid, seen) {
                continue;
            }
            left_out.entry(&seen.owner).or_default().push(sid);
            if seen.resource.state == RequestedState::Started {
                resting.entry(seen.owner.clone()).or_default().add(mode, seen.stats, true);
            }
        }
        let mut unmanaged = HashMap::<_, Vec<_>>::new();
        for (sid, guest) in &now.unmanaged {
            unmanaged.entry(&guest.owner).or_default().push(*sid);
        }
        let out: BTreeSet<&ServiceId> = left_out.values().flatten().collect();
        let mut view = without_services(&now.view, &out);
        view.options.crs.auto = None;
        let service_status = now.state.service_status.iter().filter(|(sid, _)| !out.contains(sid));
        let service_status = service_status.map(|(sid, s)| (*sid, s.clone())).collect();
        let state = ManagerState { service_status, ..without_status(&now.state) };
        let used = memory(&view, &state, &rules, &resting);
        let broken = broken(&view, &state, &rules);
        Self { now, rules, view, state, resting, left_out, unmanaged, used, broken }
    }

    /// What would become of the cluster if these nodes were lost at once.
    pub fn without(&self, lost: &BTreeSet<NodeName>) -> WhatIf {
        let votes = self.votes_left(lost);
        let quorate = votes * 2 > self.now.voters.len();
        let mut world = World::new(self, lost);
        let settled = !quorate || world.settle(&self.rules, &self.resting);
        let mut guests = if quorate { world.fates(self.now) } else { self.frozen(lost, votes) };
        guests.extend(self.unguided(lost));
        guests.sort_by_key(|g| (g.sid.vmid, g.sid));
        let after = memory(&world.view, &world.state, &self.rules, &self.resting);
        let online = |name: &NodeName| world.word(name) == NodeWord::Online;
        let room = |(name, total): (&NodeName, u64)| {
            let used = self.used.get(name).copied().unwrap_or_default();
            let after = after.get(name).copied().filter(|_| online(name));
            (name.clone(), Room { total, used, after })
        };
        let nodes = world.view.nodes.iter().map(|(n, v)| room((n, v.capacity.mem))).collect();
        let mut broken = broken(&world.view, &world.state, &self.rules);
        broken.retain(|rule, why| self.broken.get(rule) != Some(why));
        WhatIf { lost: lost.clone(), quorate, settled, guests, nodes, broken }
    }

    /// Voters that are there and are not lost.
    fn votes_left(&self, lost: &BTreeSet<NodeName>) -> usize {
        let there = |n: &&NodeName| {
            self.now.witnesses.contains(*n)
                || self.view.nodes.get(*n).is_some_and(|v| v.word == NodeWord::Online)
        };
        self.now.voters.iter().filter(|n| !lost.contains(*n)).filter(there).count()
    }

    /// Without a majority: what is lost stays down, and what HA guards elsewhere is paused.
    fn frozen(&self, lost: &BTreeSet<NodeName>, votes: usize) -> Vec<GuestFate> {
        let all = self.now.voters.len();
        let why =
            format!("no majority is left ({votes} of {all} votes): nothing is recovered until one is back");
        let paused = format!("no majority is left ({votes} of {all} votes): it is paused until one is back");
        let mut out = vec![];
        for (sid, seen) in in_order(&self.now.view) {
            let (ha, wanted) = (true, is_wanted(seen, self.now.state.service_status.get(&sid)));
            let from = seen.owner.clone();
            if lost.contains(&from) {
                out.push(GuestFate { sid, from, fate: Fate::Down, ha, wanted, reason: why.clone() });
            } else if seen.armed && seen.process == Process::Running {
                out.push(GuestFate { sid, from, fate: Fate::Paused, ha, wanted, reason: paused.clone() });
            }
        }
        out
    }

    /// Those that HA does not maintain go down with their nodes.
    fn unguided(&self, lost: &BTreeSet<NodeName>) -> Vec<GuestFate> {
        let mut out = vec![];
        let mut stays = |sid: ServiceId, from: &NodeName, wanted, reason: &str| {
            let (from, reason) = (from.clone(), reason.to_owned());
            out.push(GuestFate { sid, from, fate: Fate::Down, ha: false, wanted, reason });
        };
        for sid in lost.iter().filter_map(|n| self.unmanaged.get(n)).flatten() {
            if let Some(guest) = self.now.unmanaged.get(sid) {
                stays(*sid, &guest.owner, guest.running, "it is not under HA");
            }
        }
        let ignored = |s: &ServiceView| s.resource.state == RequestedState::Ignored;
        for (sid, seen) in
            self.now.view.services.iter().filter(|(_, s)| ignored(s) && lost.contains(&s.owner))
        {
            stays(*sid, &seen.owner, seen.running, "HA ignores it");
        }
        out
    }
}

/// The service that a request is about.
fn about(request: &crate::state::Request) -> Option<ServiceId> {
    use crate::state::Request;
    match request {
        Request::Move { sid, .. } | Request::Stop { sid, .. } => Some(*sid),
        Request::Maintenance { .. } | Request::Disarm { .. } | Request::Arm => None,
    }
}

fn without_services(view: &View, out: &BTreeSet<&ServiceId>) -> View {
    let kept = view.services.iter().filter(|(sid, _)| !out.contains(sid));
    View {
        me: view.me.clone(),
        nodes: view.nodes.clone(),
        services: kept.map(|(sid, s)| (*sid, s.clone())).collect(),
        rules: view.rules.clone(),
        options: view.options,
        storages: view.storages.clone(),
        requests: view.requests.clone(),
        round: view.round,
    }
}

/// All but the services.
fn without_status(state: &ManagerState) -> ManagerState {
    ManagerState {
        version: state.version,
        master_node: state.master_node.clone(),
        timestamp: state.timestamp,
        node_status: state.node_status.clone(),
        node_memory: state.node_memory.clone(),
        service_status: BTreeMap::new(),
        disarm: state.disarm,
        imbalanced_since: None,
        rule_errors: state.rule_errors.clone(),
        last_uid: state.last_uid,
    }
}

/// HA shall keep it running, and has not given it up.
fn is_wanted(seen: &ServiceView, s: Option<&Service>) -> bool {
    seen.resource.state == RequestedState::Started && s.is_none_or(|s| s.state != ServiceState::Error)
}

/// Memory in use by node, with what is on its way there.
fn memory(view: &View, state: &ManagerState, rules: &Rules, resting: &Resting) -> BTreeMap<NodeName, u64> {
    let places = Places::new(view, state, rules, &BTreeSet::new(), resting);
    places.nodes.iter().map(|p| (p.name.clone(), p.real)).collect()
}

/// Where a rule's resources run.
fn standing<'s>(rule: &HaRule, state: &'s ManagerState) -> BTreeMap<&'s NodeName, Vec<ServiceId>> {
    let mut on = BTreeMap::<_, Vec<_>>::new();
    for sid in &rule.resources {
        if let Some(s) = state.service_status.get(sid).filter(|s| s.state == ServiceState::Started) {
            on.entry(&s.node).or_default().push(*sid);
        }
    }
    on
}

fn places(on: &BTreeMap<&NodeName, Vec<ServiceId>>) -> String {
    let listed = |sids: &[ServiceId]| sids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    on.iter().map(|(node, sids)| format!("{} on '{node}'", listed(sids))).collect::<Vec<_>>().join("; ")
}

/// The rules in force that what runs does not keep, with what is against them.
fn broken(view: &View, state: &ManagerState, rules: &Rules) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for rule in view.rules.iter().filter(|r| !r.disable && !rules.errors.contains_key(&r.id)) {
        let mut on = standing(rule, state);
        let kept = match &rule.kind {
            HaRuleKind::NodeAffinity { nodes, positive, .. } => {
                on.retain(|node, _| nodes.contains_key(*node) != *positive);
                on.is_empty()
            }
            HaRuleKind::ResourceAffinity { positive: true } => on.len() < 2,
            HaRuleKind::ResourceAffinity { positive: false } => {
                on.retain(|_, sids| sids.len() > 1);
                on.is_empty()
            }
        };
        if !kept {
            out.insert(rule.id.clone(), places(&on));
        }
    }
    out
}

/// A copy of the cluster, after the loss.
struct World<'a> {
    at: u64,
    view: View,
    state: ManagerState,
    lost: &'a BTreeSet<NodeName>,
}

impl<'a> World<'a> {
    fn new(forecast: &Forecast<'_>, lost: &'a BTreeSet<NodeName>) -> Self {
        let (now, mut view, mut state) = (forecast.now, forecast.view.clone(), forecast.state.clone());
        for sid in lost.iter().filter_map(|n| forecast.left_out.get(n)).flatten() {
            if let Some(seen) = now.view.services.get(sid) {
                view.services.insert(*sid, seen.clone());
            }
            if let Some(s) = now.state.service_status.get(sid) {
                state.service_status.insert(*sid, s.clone());
            }
        }
        for (_, node) in view.nodes.iter_mut().filter(|(name, _)| lost.contains(*name)) {
            (node.word, node.agent) = (NodeWord::Lost, None);
        }
        for seen in view.services.values_mut().filter(|s| lost.contains(&s.owner)) {
            seen.process = Process::Unknown;
        }
        let online = view.nodes.iter().find(|(_, n)| n.word == NodeWord::Online);
        if let Some((name, _)) = online.filter(|_| lost.contains(&view.me)) {
            view.me = name.clone();
        }
        Self { at: now.at, view, state, lost }
    }

    fn word(&self, node: &NodeName) -> NodeWord {
        self.view.nodes.get(node).map_or(NodeWord::Lost, |n| n.word)
    }

    /// Until nothing changes. Whether it came to that.
    fn settle(&mut self, rules: &Rules, resting: &Resting) -> bool {
        for _ in 0..ROUNDS {
            self.at += TICK;
            let (commands, decided) = step_beside(self.at, &self.view, &mut self.state, rules, resting);
            if !(self.carry_out(&commands) | self.work()) && !decided {
                return true;
            }
        }
        false
    }

    /// What the manager asks for.
    fn carry_out(&mut self, commands: &[Command]) -> bool {
        let mut changed = false;
        for command in commands {
            match command {
                Command::Recover { sid, from, to, epoch, unlock, .. } => {
                    let Some(seen) = self.view.services.get_mut(sid) else { continue };
                    if seen.owner != *from || seen.epoch != *epoch {
                        continue;
                    }
                    (seen.owner, seen.epoch) = (to.clone(), epoch.next());
                    (seen.running, seen.armed, seen.process) = (false, false, Process::Absent);
                    seen.lock = seen.lock.take().filter(|_| !unlock);
                    changed = true;
                }
                Command::DropRequest { id, .. } => changed |= self.view.requests.remove(id).is_some(),
                Command::Record { .. } => {}
            }
        }
        changed
    }

    /// What the agents do.
    fn work(&mut self) -> bool {
        let (view, mut changed) = (&mut self.view, false);
        let online: BTreeSet<NodeName> =
            view.nodes.iter().filter(|(_, n)| n.word == NodeWord::Online).map(|(n, _)| n.clone()).collect();
        for (sid, s) in &self.state.service_status {
            let Some(seen) = view.services.get_mut(sid) else { continue };
            if seen.owner != s.node || !online.contains(&seen.owner) {
                continue;
            }
            let ended = attempt(s, seen, &online, &mut changed);
            let Some((outcome, node)) = ended.zip(view.nodes.get_mut(&s.node)) else { continue };
            let agent = node.agent.get_or_insert_with(AgentReport::default);
            let report = Report { uid: s.uid, outcome };
            changed |= agent.services.insert(*sid, report.clone()) != Some(report);
        }
        changed
    }

    /// What has become of HA's guests.
    fn fates(&self, now: &Now) -> Vec<GuestFate> {
        let mut out = vec![];
        for (sid, seen) in &self.view.services {
            let Some(before) = now.view.services.get(sid) else { continue };
            if seen.resource.state == RequestedState::Ignored {
                continue;
            }
            let wanted = is_wanted(before, now.state.service_status.get(sid));
            let runs = seen.process == Process::Running;
            let moved = seen.owner != before.owner;
            let ended = wanted && before.process == Process::Running && !runs;
            if !moved && !ended && !self.lost.contains(&before.owner) {
                continue;
            }
            let fate = match moved && (runs || !wanted) {
                true => Fate::Moves { to: seen.owner.clone(), runs },
                false => Fate::Down,
            };
            let reason = self.state.service_status.get(sid).map(|s| s.reason.as_str());
            let reason = reason.unwrap_or("HA is disarmed, and has let go of it");
            let reason = reason.strip_suffix("; recovered").unwrap_or(reason).to_owned();
            out.push(GuestFate { sid: *sid, from: before.owner.clone(), fate, ha: true, wanted, reason });
        }
        out
    }
}

/// What the agent of a service's node makes of it at once. Its word, where the manager waits for one.
fn attempt(
    s: &Service,
    seen: &mut ServiceView,
    online: &BTreeSet<NodeName>,
    changed: &mut bool,
) -> Option<Outcome> {
    let wanted = seen.resource.state == RequestedState::Started;
    match (s.state, &s.target) {
        (ServiceState::Started, _) if wanted && seen.process != Process::Running => {
            if let Some(lock) = &seen.lock {
                return Some(Outcome::Failed(format!("it is locked ({lock})")));
            }
            (seen.running, seen.armed, seen.process) = (true, true, Process::Running);
            // What it will use is not known yet.
            seen.stats.used.mem = seen.stats.max.mem;
            *changed = true;
            None
        }
        (ServiceState::RequestStop, _) => {
            *changed |= seen.process != Process::Absent;
            (seen.running, seen.armed, seen.process) = (false, false, Process::Absent);
            Some(Outcome::Done)
        }
        (ServiceState::Migrate | ServiceState::Relocate, Some(target)) if online.contains(target) => {
            (seen.owner, seen.epoch) = (target.clone(), seen.epoch.next());
            if s.state == ServiceState::Relocate {
                (seen.running, seen.armed, seen.process) = (false, false, Process::Absent);
            }
            *changed = true;
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
