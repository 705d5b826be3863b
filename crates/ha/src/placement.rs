//! Where a service may and should run.
//!
//! [`Places`] is made anew in each round from what is seen and remembered, and follows the decisions of the round, so that
//! each choice sees those before it. A choice goes through the node-affinity rule's nodes by falling priority; among
//! those that the other rules leave and that have the storages and the memory, the node with most of the unit's services is
//! taken, else the one with the least load. Services are counted where they are, and where they are going to.

use crate::rules::{Rules, Unit};
use crate::state::{
    Load, ManagerState, NodeWord, Process, Service, ServiceState, ServiceView, Stats, StorageFault,
    StorageLoss, StorageView, Use, View,
};
use crate::topsis;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use stead_model::{CrsMode, NodeName, RequestedState, ServiceId, StorageId};

/// A choice with its reason, or why there is none.
pub type Choice = Result<(NodeName, String), String>;

/// What a choice is for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The service.
    pub sid: ServiceId,
    /// The node where it is, if it could stay there.
    pub here: Option<&'a NodeName>,
    /// It stays where it is if that is as good by its rules, rather than going where there is less load.
    pub stay: bool,
    /// A better node by priority does not draw it.
    pub content: bool,
    /// It has a process: others that leave its node are not in its way.
    pub running: bool,
    /// Where it failed. None: never mind where it or those that it is to be with have failed.
    pub avoid: Option<&'a BTreeSet<NodeName>>,
}

/// Why a node is none for a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Bar {
    Offline,
    Maintenance,
    Failed,
    Storage(String),
    Apart(String),
    Memory,
}

/// What services mean for a node.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Burden {
    /// How many they are.
    count: usize,
    /// Their load, by the mode.
    load: Load,
    /// Memory that they may use at most.
    configured: u64,
    /// Memory that they use, or will.
    real: u64,
}

impl Burden {
    /// One more service.
    pub fn add(&mut self, mode: CrsMode, stats: Stats, running: bool) {
        let weight = weight(mode, stats);
        self.count += 1;
        self.load.cpu += weight.cpu;
        self.load.mem += weight.mem;
        self.configured += stats.max.mem;
        self.real += if running { stats.used.mem } else { stats.max.mem };
    }
}

/// What services that are not looked at mean for their nodes: those that are at rest, and that no rule names.
pub(crate) type Resting = HashMap<NodeName, Burden>;

/// A service's load by the mode: what it uses, or if it does not run yet, what it may use at most.
fn weight(mode: CrsMode, stats: Stats) -> Load {
    match mode {
        CrsMode::Dynamic if stats.used != Load::default() => stats.used,
        _ => stats.max,
    }
}

/// A node with what is on it.
#[derive(Debug)]
pub(crate) struct Place<'v> {
    pub name: &'v NodeName,
    word: NodeWord,
    /// Services can be placed there.
    pub open: bool,
    pub capacity: Load,
    /// Services that run there or will.
    pub count: usize,
    /// Their load, and that of others, by the mode.
    pub load: Load,
    /// Memory that all of them may use at most.
    configured: u64,
    /// Memory that is in use, or will be.
    pub real: u64,
    lost_storages: &'v BTreeMap<StorageId, StorageLoss>,
}

#[derive(Debug, Default)]
struct Crowd {
    /// Units that are here or going here, with how many of their services.
    stays: Vec<(usize, usize)>,
    /// Units that are leaving.
    leaves: Vec<usize>,
}

/// All nodes with what is on them.
#[derive(Debug)]
pub(crate) struct Places<'v> {
    pub nodes: Vec<Place<'v>>,
    index: HashMap<&'v str, usize>,
    rules: &'v Rules,
    mode: CrsMode,
    services: &'v BTreeMap<ServiceId, ServiceView>,
    storages: &'v BTreeMap<StorageId, StorageView>,
    /// By negative rule and node.
    crowds: HashMap<(usize, usize), Crowd>,
    /// Services that rules name, with the node on which they are counted last.
    standing: HashMap<ServiceId, usize>,
    /// By unit of several services: how many are on each node, or going there.
    units: HashMap<usize, BTreeMap<usize, usize>>,
    /// By unit of several services: nodes on which one of them failed.
    failed: HashMap<usize, BTreeSet<NodeName>>,
}

/// Weights of the highest and of the mean use: of memory, which is truly bounded, and of CPU.
const WEIGHTS: [f64; 4] = [10.0, 2.0, 4.0, 2.0];

impl<'v> Places<'v> {
    /// Counts everything. `closed`: nodes that are to be empty. `resting`: what else is on the nodes.
    pub fn new(
        view: &'v View,
        state: &ManagerState,
        rules: &'v Rules,
        closed: &BTreeSet<NodeName>,
        resting: &Resting,
    ) -> Self {
        let mode = view.options.crs.mode;
        let place = |(name, n): (&'v NodeName, &'v crate::state::NodeView)| Place {
            name,
            word: n.word,
            open: n.word == NodeWord::Online && !closed.contains(name),
            capacity: n.capacity,
            count: 0,
            load: match mode {
                CrsMode::Dynamic => n.others.used,
                _ => n.others.max,
            },
            configured: n.others.max.mem,
            real: n.others.used.mem,
            lost_storages: &n.lost_storages,
        };
        let nodes: Vec<Place<'v>> = view.nodes.iter().map(place).collect();
        let index = nodes.iter().enumerate().map(|(i, n)| (n.name.as_str(), i)).collect();
        let mut places = Self {
            nodes,
            index,
            rules,
            mode,
            services: &view.services,
            storages: &view.storages,
            crowds: HashMap::new(),
            standing: HashMap::new(),
            units: HashMap::new(),
            failed: HashMap::new(),
        };
        for place in &mut places.nodes {
            if let Some(burden) = resting.get(place.name) {
                place.bear(*burden);
            }
        }
        for (sid, s) in &state.service_status {
            places.count(*sid, s);
        }
        places
    }

    /// A node's number.
    pub fn at(&self, node: &NodeName) -> Option<usize> {
        self.index.get(node.as_str()).copied()
    }

    fn count(&mut self, sid: ServiceId, s: &Service) {
        let unit = self.rules.of(sid).filter(|(_, u)| u.members.len() > 1).map(|(n, _)| n);
        use ServiceState as S;
        let is_away = s.state.is_move() || matches!(s.state, S::Fence | S::Recovery);
        let settled = is_away.then(|| self.settled(sid, s)).flatten();
        let tried = !s.failed_nodes.is_empty() && !matches!(s.state, S::Stopped | S::Error);
        if let Some(unit) = unit.filter(|_| tried) {
            self.failed.entry(unit).or_default().extend(s.failed_nodes.iter().cloned());
        }
        match s.state {
            S::Started | S::RequestStop | S::Freeze | S::Error if self.runs(sid, s.state) => {
                self.load(sid, &s.node);
                self.stand(sid, &s.node);
            }
            S::RequestStart => self.stand(sid, &s.node),
            S::RequestStop | S::Stopped if self.goes_on(sid) => self.stand(sid, &s.node),
            S::Migrate | S::Relocate | S::Fence | S::Recovery if settled.is_some() => {
                if let Some((owner, true)) = settled {
                    self.load(sid, owner);
                    self.stand(sid, owner);
                }
            }
            S::Migrate | S::Relocate => {
                let wanted =
                    self.services.get(&sid).is_some_and(|v| v.resource.state == RequestedState::Started);
                if let Some(target) = s.target.as_ref().filter(|_| wanted) {
                    self.load(sid, target);
                    self.stand(sid, target);
                    self.leave(sid, &s.node);
                }
            }
            S::Recovery => {
                if let Some(target) = &s.target {
                    self.load(sid, target);
                    self.stand(sid, target);
                }
            }
            S::Started | S::RequestStop | S::Stopped | S::Freeze | S::Error | S::Fence => {}
        }
    }

    /// Where a service is whose move or recovery is over, though its state does not say so yet; and whether it is to run. The
    /// record is what counts: it may have come elsewhere than to the node that was chosen last, or its node is back.
    fn settled(&self, sid: ServiceId, s: &Service) -> Option<(&'v NodeName, bool)> {
        let services: &'v BTreeMap<ServiceId, ServiceView> = self.services;
        let seen = services.get(&sid)?;
        let there = self.at(&seen.owner).is_some_and(|i| self.nodes[i].word != NodeWord::Lost);
        let over = seen.owner != s.node || matches!(s.state, ServiceState::Fence | ServiceState::Recovery);
        (there && over).then_some((&seen.owner, seen.resource.state == RequestedState::Started))
    }

    fn runs(&self, sid: ServiceId, state: ServiceState) -> bool {
        let Some(seen) = self.services.get(&sid) else { return false };
        match state {
            ServiceState::Started => true,
            ServiceState::Freeze => seen.resource.state == RequestedState::Started,
            _ => seen.process == Process::Running,
        }
    }

    /// Whether a service that was to be stopped is to run, and may do so still: this round starts it where it is, and chooses no
    /// node for it.
    fn goes_on(&self, sid: ServiceId) -> bool {
        self.services.get(&sid).is_some_and(|seen| {
            seen.resource.state == RequestedState::Started
                && (seen.running || seen.process == Process::Running)
        })
    }

    fn stats(&self, sid: ServiceId) -> (Stats, bool) {
        self.services
            .get(&sid)
            .map_or((Stats::default(), false), |s| (s.stats, s.process == Process::Running))
    }

    /// A service's load by the mode: what it uses, or if it does not run yet, what it may use at most.
    pub fn weight(&self, sid: ServiceId) -> Load {
        weight(self.mode, self.stats(sid).0)
    }

    /// The service will run on this node.
    pub fn load(&mut self, sid: ServiceId, node: &NodeName) {
        let (stats, running) = self.stats(sid);
        let Some(place) = self.index.get(node.as_str()).copied().and_then(|i| self.nodes.get_mut(i)) else {
            return;
        };
        let mut burden = Burden::default();
        burden.add(self.mode, stats, running);
        place.bear(burden);
    }

    /// The service is started where it is.
    pub fn starts(&mut self, sid: ServiceId, node: &NodeName) {
        self.stand(sid, node);
        self.load(sid, node);
    }

    /// The service holds a place on a node: one, however often it is said.
    fn stand(&mut self, sid: ServiceId, node: &NodeName) {
        let (Some((unit, about)), Some(node)) = (self.rules.of(sid), self.at(node)) else { return };
        if self.standing.insert(sid, node) == Some(node) {
            return;
        }
        if about.members.len() > 1 {
            *self.units.entry(unit).or_default().entry(node).or_default() += 1;
        }
        for rule in &about.apart {
            let crowd = self.crowds.entry((*rule, node)).or_default();
            match crowd.stays.iter_mut().find(|(u, _)| *u == unit) {
                Some((_, n)) => *n += 1,
                None => crowd.stays.push((unit, 1)),
            }
        }
    }

    fn leave(&mut self, sid: ServiceId, node: &NodeName) {
        let (Some((unit, about)), Some(node)) = (self.rules.of(sid), self.at(node)) else { return };
        for rule in &about.apart {
            self.crowds.entry((*rule, node)).or_default().leaves.push(unit);
        }
    }

    /// A service that stood on a node, or on none, goes to another.
    pub fn goes(&mut self, sid: ServiceId, from: Option<&NodeName>, to: &NodeName) {
        if let Some(from) = from {
            if let (Some((unit, about)), Some(node)) = (self.rules.of(sid), self.at(from))
                && self.standing.get(&sid) == Some(&node)
            {
                if let Some(n) = self.units.get_mut(&unit).and_then(|u| u.get_mut(&node)) {
                    *n = n.saturating_sub(1);
                }
                for rule in &about.apart {
                    let crowd = self.crowds.entry((*rule, node)).or_default();
                    if let Some((_, n)) = crowd.stays.iter_mut().find(|(u, _)| *u == unit) {
                        *n = n.saturating_sub(1);
                    }
                    crowd.stays.retain(|(_, n)| *n > 0);
                }
            }
            self.leave(sid, from);
        }
        self.stand(sid, to);
        self.load(sid, to);
    }

    /// Who keeps a unit from a node: the name of the rule. `leaving`: those who are on their way out count too.
    fn crowded(&self, number: usize, unit: &Unit, node: usize, leaving: bool) -> Option<&'v str> {
        let rules: &'v Rules = self.rules;
        let taken = |rule: &&usize| {
            self.crowds.get(&(**rule, node)).is_some_and(|c| {
                c.stays.iter().any(|(u, _)| *u != number)
                    || (leaving && c.leaves.iter().any(|u| *u != number))
            })
        };
        unit.apart.iter().find(taken).and_then(|rule| rules.apart.get(*rule)).map(String::as_str)
    }

    fn bar(&self, ask: &Ask<'_>, node: usize) -> Option<Bar> {
        let place = &self.nodes[node];
        let here = ask.here == Some(place.name);
        if place.word != NodeWord::Online {
            return Some(Bar::Offline);
        }
        if !place.open {
            return Some(Bar::Maintenance);
        }
        let unit = self.rules.of(ask.sid);
        if let Some(avoid) = ask.avoid {
            let failed = |f: &BTreeSet<NodeName>| f.contains(place.name);
            if failed(avoid) || unit.is_some_and(|(n, _)| self.failed.get(&n).is_some_and(failed)) {
                return Some(Bar::Failed);
            }
        }
        if let Some(why) = self.lacks(ask, place) {
            return Some(Bar::Storage(why));
        }
        if let Some((number, unit)) = unit
            && let Some(rule) = self.crowded(number, unit, node, !(here && ask.running))
        {
            return Some(Bar::Apart(rule.to_owned()));
        }
        let (stats, _) = self.stats(ask.sid);
        if !here && place.capacity.mem > 0 && place.real + stats.max.mem > place.capacity.mem {
            return Some(Bar::Memory);
        }
        None
    }

    /// Which storage keeps a service from a node, and why; or one that is to be with it, and is to run too. What runs there has
    /// its storages open: whether it is to leave for want of them is not for a choice to say.
    fn lacks(&self, ask: &Ask<'_>, place: &Place<'_>) -> Option<String> {
        let alone = [ask.sid];
        let unit = self.unit(ask.sid).map_or(&alone[..], |(_, members)| members);
        unit.iter().find_map(|sid| {
            let seen = self.services.get(sid)?;
            let own = *sid == ask.sid;
            let runs_there = seen.owner == *place.name && seen.process != Process::Absent;
            if (runs_there && (!own || ask.here == Some(place.name)))
                || (!own && seen.resource.state != RequestedState::Started)
            {
                return None;
            }
            let why = |(id, how)| self.unusable(id, how, seen, place);
            seen.storages.iter().find_map(why)
        })
    }

    fn unusable(&self, id: &StorageId, how: &Use, seen: &ServiceView, place: &Place<'_>) -> Option<String> {
        let why = match place.lost_storages.get(id).map(|loss| &loss.fault) {
            Some(StorageFault::Silent) => "does not answer".to_owned(),
            Some(StorageFault::Inactive { why }) => format!("can't be used: {why}"),
            None => match self.storages.get(id)? {
                s if s.disabled => "is disabled".to_owned(),
                s if s.nodes.as_ref().is_some_and(|nodes| !nodes.contains(place.name)) => {
                    "is not for this node".to_owned()
                }
                s if !s.shared && *how == Use::Disk && seen.owner != *place.name => {
                    "is not shared, and its disk is on another node".to_owned()
                }
                _ => return None,
            },
        };
        Some(format!("storage '{id}' {why}"))
    }

    /// Why a node can't take a service for want of a storage.
    pub fn wants_storage(&self, sid: ServiceId, node: &NodeName) -> Option<String> {
        let ask = Ask { sid, here: None, stay: false, content: false, running: false, avoid: None };
        self.at(node).and_then(|i| self.lacks(&ask, &self.nodes[i]))
    }

    /// Whether a service could run on a node by its rules, its storages, its memory and the node's state.
    pub fn fits(&self, ask: &Ask<'_>, node: &NodeName) -> bool {
        let ruled = match self.rules.of(ask.sid).and_then(|(_, u)| u.node_rule.as_ref()) {
            Some(rule) => !rule.strict || rule.rank(node).is_some(),
            None => true,
        };
        ruled && self.at(node).is_some_and(|i| self.bar(ask, i).is_none())
    }

    /// The nodes that its node-affinity rule leaves, in groups of falling priority.
    fn tiers(&self, sid: ServiceId) -> Vec<Vec<usize>> {
        let all = 0..self.nodes.len();
        let Some(rule) = self.rules.of(sid).and_then(|(_, u)| u.node_rule.as_ref()) else {
            return vec![all.collect()];
        };
        let mut tiers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        let mut rest = vec![];
        for node in all {
            match rule.rank(self.nodes[node].name) {
                Some(rank) => tiers.entry(rank).or_default().push(node),
                None => rest.push(node),
            }
        }
        let mut out: Vec<_> = tiers.into_values().collect();
        if !rule.strict {
            out.push(rest);
        }
        out
    }

    /// Chooses a node.
    ///
    /// # Errors
    /// Why there is none, for those who wait for it.
    pub fn choose(&self, ask: &Ask<'_>) -> Choice {
        if let Some(h) = ask.here.and_then(|h| self.at(h)).filter(|h| self.is_well(ask, *h)) {
            return Ok((self.nodes[h].name.clone(), "it is there".into()));
        }
        let tiers = self.tiers(ask.sid);
        let unit = self.rules.of(ask.sid).filter(|(_, u)| u.members.len() > 1);
        let here = ask.here.and_then(|h| self.at(h));
        let mut bars = vec![];
        let tiers = match here {
            // It may stay on a node of lower priority: all that its rule allows are alike to it.
            Some(h) if ask.content && self.bar(ask, h).is_none() && tiers.iter().any(|t| t.contains(&h)) => {
                vec![tiers.concat()]
            }
            _ => tiers,
        };
        for tier in &tiers {
            let mut fit = vec![];
            for node in tier {
                match self.bar(ask, *node) {
                    None => fit.push(*node),
                    Some(bar) => bars.push((*node, bar)),
                }
            }
            if fit.is_empty() {
                continue;
            }
            if let Some((number, _)) = unit
                && let Some((node, n)) = self.most(number, &fit)
            {
                let why = format!("{n} of the services that it is to be with are there");
                return Ok((self.nodes[node].name.clone(), why));
            }
            if let Some(h) = here.filter(|h| ask.stay && fit.contains(h)) {
                return Ok((self.nodes[h].name.clone(), "it is there".into()));
            }
            // Of equals, it would rather stay.
            if let Some(i) = fit.iter().position(|n| Some(*n) == here) {
                fit[..=i].rotate_right(1);
            }
            return Ok(self.least(ask.sid, unit.map(|(_, u)| u), &fit));
        }
        Err(self.why_not(ask.sid, &tiers, &bars))
    }

    /// Whether a service is to stay, as most do, without a look at the other nodes: none could be better.
    fn is_well(&self, ask: &Ask<'_>, here: usize) -> bool {
        let best = |u: &Unit| {
            u.node_rule.as_ref().is_none_or(|r| {
                let rank = r.rank(self.nodes[here].name);
                r.is_best(rank) || (ask.content && rank.is_some())
            })
        };
        let gathered = |n: usize, u: &Unit| {
            u.members.len() == 1
                || self.units.get(&n).is_none_or(|on| on.iter().all(|(node, n)| *node == here || *n == 0))
        };
        ask.stay
            && self.rules.of(ask.sid).is_none_or(|(n, u)| best(u) && gathered(n, u))
            && self.bar(ask, here).is_none()
    }

    /// Where most of a unit are; of equals the first by name.
    fn most(&self, unit: usize, fit: &[usize]) -> Option<(usize, usize)> {
        let on = self.units.get(&unit)?;
        let there = fit.iter().filter_map(|n| Some((*n, *on.get(n)?))).filter(|(_, n)| *n > 0);
        there.max_by_key(|(node, n)| (*n, std::cmp::Reverse(*node)))
    }

    /// The node with the least load, once the service or its whole unit is there.
    fn least(&self, sid: ServiceId, unit: Option<&Unit>, fit: &[usize]) -> (NodeName, String) {
        let roomy = |n: &usize| {
            let (place, (stats, _)) = (&self.nodes[*n], self.stats(sid));
            place.capacity.mem == 0 || place.configured + stats.max.mem <= place.capacity.mem
        };
        let comfortable: Vec<usize> = fit.iter().copied().filter(roomy).collect();
        let fit = if comfortable.is_empty() { fit } else { &comfortable };
        let alone = fit.len() == 1;
        let by_count = || fit.iter().min_by_key(|n| self.nodes[**n].count).copied();
        let place = match self.mode {
            CrsMode::Basic => by_count(),
            CrsMode::Static | CrsMode::Dynamic => {
                let sids = unit.map_or(vec![sid], |u| u.members.clone());
                let mut more = Load::default();
                for load in sids.into_iter().map(|s| self.weight(s)) {
                    more.cpu += load.cpu;
                    more.mem += load.mem;
                }
                topsis::best(&self.costs(more, fit), &WEIGHTS).map(|i| fit[i])
            }
        };
        let place = &self.nodes[place.or_else(by_count).unwrap_or_default()];
        let rule = match self.node_rule(sid) {
            Some(rule) if rule.rank(place.name).is_some() => format!(" of rule '{}'", rule.id),
            Some(rule) => format!(" outside of rule '{}', none of whose nodes can take it,", rule.id),
            None => String::new(),
        };
        let why = match self.mode {
            _ if alone => format!("the only node{rule} that can take it"),
            CrsMode::Basic => format!("the node{rule} with the fewest services ({})", place.count),
            CrsMode::Static => format!("the node{rule} with the most room by what is configured"),
            CrsMode::Dynamic => format!("the node{rule} with the most room by what is used"),
        };
        (place.name.clone(), why)
    }

    /// What it would cost to place a load on each of these nodes: the highest use of a node and the mean of the squares of all,
    /// of memory and of CPU. Squares, so that a load rather goes where little is in use.
    fn costs(&self, more: Load, fit: &[usize]) -> Vec<[f64; 4]> {
        let uses: Vec<Option<(f64, f64)>> =
            self.nodes.iter().map(|p| p.open.then(|| p.uses(Load::default()))).collect();
        let n = uses.iter().flatten().count().max(1) as f64;
        let squares = |(m, c): (f64, f64), u: &(f64, f64)| (m + u.0 * u.0, c + u.1 * u.1);
        let (mem, cpu) = uses.iter().flatten().fold((0.0, 0.0), squares);
        // The two highest: whichever node is looked at, the highest of the others is among them.
        let highest = |of: fn(&(f64, f64)) -> f64| {
            let mut top = [(usize::MAX, 0.0); 2];
            for (i, u) in uses.iter().enumerate() {
                let Some(u) = u.as_ref().map(of) else { continue };
                if u > top[0].1 {
                    top = [(i, u), top[0]];
                } else if u > top[1].1 {
                    top[1] = (i, u);
                }
            }
            top
        };
        let (top_mem, top_cpu) = (highest(|u| u.0), highest(|u| u.1));
        let others = |top: [(usize, f64); 2], node| if top[0].0 == node { top[1].1 } else { top[0].1 };
        fit.iter()
            .map(|node| {
                let (was, then) = (uses[*node].unwrap_or_default(), self.nodes[*node].uses(more));
                [
                    others(top_mem, *node).max(then.0),
                    ((mem - was.0 * was.0 + then.0 * then.0) / n).max(0.0).sqrt(),
                    others(top_cpu, *node).max(then.1),
                    ((cpu - was.1 * was.1 + then.1 * then.1) / n).max(0.0).sqrt(),
                ]
            })
            .collect()
    }

    /// The unit of several services that a service belongs to: its number and its members.
    pub fn unit(&self, sid: ServiceId) -> Option<(usize, &'v [ServiceId])> {
        let rules: &'v Rules = self.rules;
        rules.of(sid).filter(|(_, u)| u.members.len() > 1).map(|(n, u)| (n, u.members.as_slice()))
    }

    /// Whether rules name a service.
    pub fn ruled(&self, sid: ServiceId) -> bool {
        self.rules.of(sid).is_some()
    }

    /// Whether two nodes are alike to a service by its node-affinity rule.
    pub fn alike(&self, sid: ServiceId, a: usize, b: usize) -> bool {
        let rank = |n: usize| {
            let rule = self.rules.of(sid).and_then(|(_, u)| u.node_rule.as_ref());
            rule.map(|r| r.rank(self.nodes[n].name))
        };
        rank(a) == rank(b)
    }

    /// Whether a node is at least as good as another by its node-affinity rule.
    pub fn as_good(&self, sid: ServiceId, node: usize, other: usize) -> bool {
        let rank = |n: usize| {
            let rule = self.rules.of(sid).and_then(|(_, u)| u.node_rule.as_ref());
            rule.map_or(Some(0), |r| r.rank(self.nodes[n].name)).unwrap_or(u32::MAX)
        };
        rank(node) <= rank(other)
    }

    /// Whether a node has the memory for all of these.
    pub fn room(&self, sids: &[ServiceId], node: usize) -> bool {
        let (place, more) = (&self.nodes[node], sids.iter().map(|s| self.stats(*s).0.max.mem).sum::<u64>());
        place.capacity.mem == 0 || place.real + more <= place.capacity.mem
    }

    /// By what its unit is kept from a node: the name of the negative rule.
    pub fn kept_apart(&self, sid: ServiceId, node: &NodeName) -> Option<&'v str> {
        let (number, unit) = self.rules.of(sid)?;
        self.crowded(number, unit, self.at(node)?, true)
    }

    /// Its node-affinity rule.
    pub fn node_rule(&self, sid: ServiceId) -> Option<&'v crate::rules::NodeRule> {
        let rules: &'v Rules = self.rules;
        rules.of(sid).and_then(|(_, u)| u.node_rule.as_ref())
    }

    fn why_not(&self, sid: ServiceId, tiers: &[Vec<usize>], bars: &[(usize, Bar)]) -> String {
        let (number, rule) = self
            .rules
            .of(sid)
            .map_or((None, None), |(n, u)| (Some(n).filter(|_| u.members.len() > 1), u.node_rule.as_ref()));
        let of_unit = if number.is_some() { " (or those that it is to be with)" } else { "" };
        let whose = match rule.filter(|r| r.strict) {
            Some(rule) if tiers.iter().all(Vec::is_empty) => {
                return format!("the cluster has no node that its rule '{}' allows", rule.id);
            }
            Some(rule) => format!("no node that its rule '{}' allows can take it", rule.id),
            None => "no node can take it".to_owned(),
        };
        let mut by_bar: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (node, bar) in bars {
            let text = match bar {
                Bar::Offline => "not online".to_owned(),
                Bar::Maintenance => "to be empty".to_owned(),
                Bar::Failed => format!("it failed there{of_unit}"),
                Bar::Storage(why) => why.clone(),
                Bar::Apart(rule) => format!("kept apart by rule '{rule}'"),
                Bar::Memory => format!(
                    "too little memory left for the {} MiB that it may use, at most {} MiB are free",
                    self.stats(sid).0.max.mem >> 20,
                    self.most_free(bars) >> 20
                ),
            };
            by_bar.entry(text).or_default().push(self.nodes[*node].name.as_str());
        }
        let some = |(bar, nodes): (String, Vec<&str>)| match nodes.len() {
            0..=4 => format!("{}: {bar}", nodes.join(", ")),
            n => format!("{} and {} more: {bar}", nodes[..3].join(", "), n - 3),
        };
        let detail: Vec<String> = by_bar.into_iter().map(some).take(6).collect();
        format!("{whose} ({})", detail.join("; "))
    }

    /// Of the nodes that have too little memory, what is free on the one with the most.
    fn most_free(&self, bars: &[(usize, Bar)]) -> u64 {
        let short = bars.iter().filter(|(_, bar)| *bar == Bar::Memory).map(|(node, _)| &self.nodes[*node]);
        short.map(|p| p.capacity.mem.saturating_sub(p.real)).max().unwrap_or_default()
    }
}

/// A reason without what changes from moment to moment: its figures of memory. Two reasons of one shape say the same.
pub(crate) fn shape(reason: &str) -> String {
    let words: Vec<&str> = reason.split(' ').collect();
    let figure = |i: usize| {
        words[i].parse::<u64>().is_ok() && words.get(i + 1).is_some_and(|next| next.starts_with("MiB"))
    };
    (0..words.len()).filter(|i| !figure(*i)).map(|i| words[i]).collect::<Vec<_>>().join(" ")
}

impl Place<'_> {
    /// More services are on it.
    fn bear(&mut self, burden: Burden) {
        self.count += burden.count;
        self.load.cpu += burden.load.cpu;
        self.load.mem += burden.load.mem;
        self.configured += burden.configured;
        self.real += burden.real;
    }

    /// The part of its memory and of its CPUs that a load is.
    pub fn share(&self, load: Load) -> (f64, f64) {
        let part = |used: f64, of: f64| if of > 0.0 { used / of } else { 0.0 };
        (part(load.mem as f64, self.capacity.mem as f64), part(load.cpu, self.capacity.cpu))
    }

    /// The part of its memory and of its CPUs in use, with some more.
    pub fn uses(&self, more: Load) -> (f64, f64) {
        self.share(Load { cpu: self.load.cpu + more.cpu, mem: self.load.mem + more.mem })
    }
}
