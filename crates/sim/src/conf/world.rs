//! The run: nodes, network and clock, event by event.

use super::dice::Dice;
use super::faults::Rates;
use super::invariants::{Invariants, progress};
use super::network::{Network, Weather};
use super::node::{Node, Running, TICK, Wish};
use super::workload::{self, Asked};
use super::{Bug, Failure, Plan};
use bytes::Bytes;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use stead_conf::driver::{Input, MemberChange, Outcome, RequestId};
use stead_conf::{CommittedEntry, Machine, Members, Txn};

/// How long the faults last, in microseconds of virtual time.
const FAULTS: u64 = 8_000_000;
/// Who is held is told so again after so long.
const LOOK: u64 = 200_000;
/// The most nodes there ever are.
const MOST_NODES: u64 = 8;

/// What happened in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Figures {
    /// How much was simulated, in microseconds.
    pub time_us: u64,
    pub events: u64,
    pub frames: u64,
    pub commits: u64,
    pub refused: u64,
    pub unknown: u64,
    pub barriers: u64,
    pub confirmations: u64,
    pub member_changes: u64,
    pub snapshots: u64,
    pub crashes: u64,
    pub leaders: u64,
    pub holds: u64,
    pub judged: u64,
}

#[derive(Debug)]
enum Event {
    Tick {
        node: u64,
        life: u64,
    },
    Frame {
        from: u64,
        to: u64,
        data: Bytes,
    },
    Disk {
        node: u64,
        life: u64,
    },
    Ask,
    Crash,
    Start {
        node: u64,
    },
    Cut,
    Mend,
    Pause,
    Transfer,
    Member,
    /// Somebody is to be held.
    Hold,
    /// Who is held is told so again, or let.
    Look {
        node: u64,
    },
}

struct Due {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// Earliest first in a heap whose greatest comes first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub(super) struct World {
    plan: Plan,
    now: u64,
    order: u64,
    due: BinaryHeap<Due>,
    dice: Dice,
    rates: Rates,
    network: Network,
    nodes: Vec<Node>,
    asked: BTreeMap<(u64, u64, RequestId), Asked>,
    answers: BTreeMap<(u64, u64, RequestId), Outcome>,
    marks: u64,
    healing: bool,
    invariants: Invariants,
}

/// Runs one seed. The same plan always gives the same result.
pub fn run(plan: Plan) -> Result<Figures, Failure> {
    let mut at_us = 0;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(plan)?;
        let result = world.play();
        at_us = world.now;
        let leaders = world.invariants.leaders.count();
        result.map(|()| Figures { time_us: world.now, leaders, ..world.invariants.figures })
    }));
    let what = match result {
        Ok(Ok(figures)) => return Ok(figures),
        Ok(Err(what)) => what,
        Err(panic) => panicked(panic.as_ref()),
    };
    Err(Failure { seed: plan.seed, at_us, what })
}

/// What a panic says.
pub fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or_default())
}

impl World {
    fn new(plan: Plan) -> Result<Self, String> {
        let mut dice = Dice::new(plan.seed);
        let rates = Rates::roll(&mut dice);
        Self::with_rates(plan, dice, rates)
    }

    /// Without faults.
    pub fn quiet(plan: Plan, witness: Option<(u64, u64)>) -> Result<Self, String> {
        Self::with_rates(plan, Dice::new(plan.seed), Rates { witness, ..Rates::quiet() })
    }

    /// Waits for a leader, kills it, and waits for the next that has committed. Gives how long that took.
    pub fn lose_leader(&mut self) -> Result<u64, String> {
        let settle = self.dice.between(4_000_000, 5_000_000);
        self.until(settle, |_| false)?;
        if let Some((witness, _)) = self.rates.witness {
            self.let_another_lead(witness)?;
        }
        let leads = |node: &&Node| node.status().is_some_and(|status| status.is_leader);
        let Some(leader) = self.nodes.iter().find(leads) else { return Err("there is no leader".to_owned()) };
        let (id, term) = (leader.id, leader.status().map_or(0, |status| status.term));
        let committed = leader.status().map_or(0, |status| status.committed);
        let mut dice = Dice::new(self.dice.bits());
        self.node(id)?.crash(&mut dice, Bug::None);
        let began = self.now;
        let next = |world: &Self| {
            let statuses = world.nodes.iter().filter_map(Node::status);
            let mut leaders = statuses.filter(|status| status.is_leader && status.term > term);
            leaders.any(|status| status.committed > committed)
        };
        // Looked at every millisecond, as fine as it is given.
        while self.now < began + 20_000_000 {
            let end = self.now + 1000;
            self.until(end, |_| false)?;
            if next(self) {
                return Ok(self.now - began);
            }
        }
        Err("there is no new leader".to_owned())
    }

    /// As a witness does that was elected.
    fn let_another_lead(&mut self, witness: u64) -> Result<(), String> {
        let leads = |world: &Self| {
            let status = |node: &&Node| node.status().is_some_and(|status| status.is_leader);
            world.nodes.iter().find(status).map(|node| node.id)
        };
        let end = self.now + 10_000_000;
        while leads(self) == Some(witness) && self.now < end {
            self.input(witness, Input::Transfer { to: 1 })?;
            let soon = self.now + 1_000_000;
            self.until(soon, |_| false)?;
        }
        match leads(self) {
            Some(other) if other != witness => Ok(()),
            seen => Err(format!("no node leads beside the witness: {seen:?}")),
        }
    }

    fn with_rates(plan: Plan, dice: Dice, rates: Rates) -> Result<Self, String> {
        let mut network = Network::new(rates.weather.clone());
        network.far = rates.witness;
        let initial = Txn::new("founder").note("0").put("k/0", "first");
        let mut machine = Machine::found(1, &initial, 0).map_err(|refusal| refusal.to_string())?;
        let members = Members { voters: (1..=rates.nodes.max(1)).collect(), ..Members::default() };
        let first = CommittedEntry::Members(members);
        machine.apply(1, first).map_err(|fault| fault.to_string())?;
        let mut world = Self {
            plan,
            now: 0,
            order: 0,
            due: BinaryHeap::new(),
            dice,
            rates,
            network,
            nodes: Vec::new(),
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            marks: 0,
            healing: false,
            invariants: Invariants::default(),
        };
        for _ in 0..world.rates.nodes.max(1) {
            world.add_node(&machine)?;
        }
        let rates = &world.rates;
        let faults = [
            (rates.question, Event::Ask),
            (rates.crash, Event::Crash),
            (rates.cut, Event::Cut),
            (rates.pause, Event::Pause),
            (rates.transfer, Event::Transfer),
            (rates.member, Event::Member),
            (rates.hold, Event::Hold),
        ];
        for (mean, event) in faults {
            world.again(mean, event);
        }
        Ok(world)
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.due.push(Due { at: self.now + after, order: self.order, event });
    }

    fn again(&mut self, mean: u64, event: Event) {
        if mean > 0 && !self.healing {
            let after = Rates::next(mean, &mut self.dice);
            self.schedule(after, event);
        }
    }

    fn add_node(&mut self, machine: &Machine) -> Result<u64, String> {
        let id = self.nodes.len() as u64 + 1;
        let mut node = Node::new(id, machine, self.plan.pages)?;
        node.patient = self.rates.witness.is_some_and(|(witness, _)| witness == id);
        node.drift = i64::try_from(self.dice.below(201)).unwrap_or(100) - 100;
        self.nodes.push(node);
        self.start(id)?;
        Ok(id)
    }

    fn node(&mut self, id: u64) -> Result<&mut Node, String> {
        let at = usize::try_from(id).unwrap_or(0).wrapping_sub(1);
        self.nodes.get_mut(at).ok_or_else(|| format!("there is no node {id}"))
    }

    fn start(&mut self, id: u64) -> Result<(), String> {
        let (now, bug, seed) = (self.now, self.plan.bug, self.plan.seed);
        let node = self.node(id)?;
        if node.running.is_some() {
            return Ok(());
        }
        node.start(now, bug, seed)?;
        let life = node.life;
        if let Some(running) = &self.nodes[usize::try_from(id - 1).unwrap_or(0)].running {
            self.invariants.begins(id, &running.machine)?;
        }
        let phase = self.dice.below(TICK);
        self.schedule(phase, Event::Tick { node: id, life });
        self.with(id, Running::carry_out)
    }

    /// Lets a running node do something and sees to what it wishes.
    fn with(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Running, u64, u64, Bug, &mut Invariants) -> Result<Vec<Wish>, String>,
    ) -> Result<(), String> {
        let (now, bug) = (self.now, self.plan.bug);
        let at = usize::try_from(id).unwrap_or(0).wrapping_sub(1);
        let Some(node) = self.nodes.get_mut(at) else { return Ok(()) };
        let life = node.life;
        let Some(running) = &mut node.running else { return Ok(()) };
        let wishes = act(running, id, now, bug, &mut self.invariants)?;
        for wish in wishes {
            match wish {
                Wish::Send { to, frame } => {
                    for delay in self.network.carry(id, to, &mut self.dice) {
                        self.schedule(delay, Event::Frame { from: id, to, data: frame.clone() });
                    }
                }
                Wish::Write => self.begin_write(id)?,
                Wish::Seen(_) => {}
                Wish::Done(request, outcome) => self.answered(id, life, request, outcome)?,
            }
        }
        Ok(())
    }

    fn input(&mut self, id: u64, input: Input) -> Result<(), String> {
        self.with(id, |running, id, now, bug, invariants| running.input(id, now, input, bug, invariants))
    }

    fn answered(&mut self, id: u64, life: u64, request: RequestId, outcome: Outcome) -> Result<(), String> {
        let key = (id, life, request);
        let at = usize::try_from(id).unwrap_or(0).wrapping_sub(1);
        if let Some(asked) = self.asked.remove(&key)
            && let Some(running) = self.nodes.get(at).and_then(|node| node.running.as_ref())
        {
            workload::answered(id, &asked, &outcome, &running.machine, &mut self.invariants)?;
            let answer = workload::answer(&asked, &outcome, &running.machine, &self.invariants)?;
            self.invariants.clients.end(key, self.now, answer);
        }
        if self.healing {
            self.answers.insert(key, outcome);
        }
        Ok(())
    }

    fn begin_write(&mut self, id: u64) -> Result<(), String> {
        let slow = if self.healing { 2000 } else { self.rates.slow_disk };
        let after = self.dice.between(100, slow);
        let node = self.node(id)?;
        let life = node.life;
        if node.begin_write() {
            self.schedule(after, Event::Disk { node: id, life });
        }
        Ok(())
    }

    fn written(&mut self, id: u64, life: u64) -> Result<(), String> {
        let refused = !self.healing && self.dice.chance(self.rates.refused);
        let node = self.node(id)?;
        if node.life != life || node.running.is_none() {
            return Ok(());
        }
        if refused {
            // A node whose disk refuses a write stops at once.
            return self.crash(id);
        }
        let last = node.written()?;
        if self.plan.bug != Bug::EarlyReport {
            self.input(id, Input::Persisted(last))?;
        }
        self.begin_write(id)
    }

    fn crash(&mut self, id: u64) -> Result<(), String> {
        let bug = self.plan.bug;
        let mut dice = Dice::new(self.dice.bits());
        self.node(id)?.crash(&mut dice, bug);
        self.asked.retain(|(node, _, _), _| *node != id);
        self.invariants.figures.crashes += 1;
        let down = self.dice.pick(&[20_000, 500_000, 3_000_000]).unwrap_or(20_000);
        let after = self.dice.between(1000, down);
        self.schedule(after, Event::Start { node: id });
        Ok(())
    }

    fn up(&self) -> Vec<u64> {
        self.nodes.iter().filter(|node| node.running.is_some()).map(|node| node.id).collect()
    }

    fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Faults, then healing, then order.
    fn play(&mut self) -> Result<(), String> {
        self.until(FAULTS, |_| false)?;
        self.heal()?;
        let end = self.now + progress::HEALED_WITHIN;
        if !self.until(end, |world| progress::missing(&world.nodes).is_none())? {
            let missing = progress::missing(&self.nodes).unwrap_or_default();
            let states: Vec<_> = self.nodes.iter().map(Node::status).collect();
            return Err(format!("no progress after healing: {missing}: {states:?}"));
        }
        self.last_questions()?;
        let settled = self.now + progress::HEALED_WITHIN;
        if !self.until(settled, |world| progress::missing(&world.nodes).is_none())? {
            let missing = progress::missing(&self.nodes).unwrap_or_default();
            return Err(format!("no order after the last commits: {missing}"));
        }
        for (id, machine) in self.members() {
            self.invariants.durable.survives(id, machine)?;
        }
        self.invariants.figures.judged = self.invariants.clients.count();
        self.invariants.clients.judge(&self.invariants.durable)
    }

    fn members(&self) -> Vec<(u64, u64)> {
        // By who has applied most: a leader whose disk is slow knows last of a removal that the others have committed.
        let machines = self.nodes.iter().filter_map(|node| Some(&node.running.as_ref()?.machine));
        let members = machines.max_by_key(|m| m.applied()).map(|m| m.members().all()).unwrap_or_default();
        let revision = |node: &Node| node.running.as_ref().map(|running| running.machine.tree().revision().0);
        self.nodes
            .iter()
            .filter(|node| members.contains(&node.id))
            .map(|node| (node.id, revision(node).unwrap_or(0)))
            .collect()
    }

    /// Runs until a time, or until something holds. True if it held.
    fn until(&mut self, end: u64, holds: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let mut look = self.now;
        while let Some(due) = self.due.pop() {
            if due.at > end {
                self.due.push(due);
                break;
            }
            self.now = due.at;
            self.invariants.figures.events += 1;
            self.event(due.event)?;
            if self.now >= look {
                look = self.now + TICK;
                if holds(self) {
                    return Ok(true);
                }
            }
        }
        self.now = self.now.max(end);
        Ok(holds(self))
    }

    fn heal(&mut self) -> Result<(), String> {
        self.healing = true;
        self.network.heal();
        self.network.weather = Weather::fair();
        for node in &mut self.nodes {
            node.paused_until = 0;
            node.drift = 0;
        }
        let voters: Vec<u64> = self.voters().into_iter().collect();
        let kept = self.dice.pick(&voters).filter(|_| voters.len() > 2);
        for node in &mut self.nodes {
            // One that is held for ever keeps nobody from going on.
            let held = node.held_until > 0 && Some(node.id) == kept;
            node.held_until = if held { u64::MAX } else { 0 };
            self.invariants.leaders.hold(node.id, held);
        }
        for id in self.ids() {
            self.start(id)?;
        }
        Ok(())
    }

    /// The voters by the newest state that anybody has applied.
    fn voters(&self) -> BTreeSet<u64> {
        let machines = self.nodes.iter().filter_map(|node| Some(&node.running.as_ref()?.machine));
        machines.max_by_key(|m| m.applied()).map(|m| m.members().voters.clone()).unwrap_or_default()
    }

    /// Tells a node that it is held, for as long as it is. Of two voters the one that has the newer log may be the only one that
    /// can lead.
    fn look(&mut self, id: u64) -> Result<(), String> {
        let (now, few) = (self.now, self.healing && self.voters().len() < 3);
        let node = self.node(id)?;
        let held = node.held_until > now && !few;
        if !held {
            node.held_until = 0;
        }
        self.invariants.leaders.hold(id, held);
        self.input(id, Input::Hold(held))?;
        if held {
            self.schedule(LOOK, Event::Look { node: id });
        }
        Ok(())
    }

    /// Every member commits and reads, and is answered.
    fn last_questions(&mut self) -> Result<(), String> {
        for (id, _) in self.members() {
            for attempt in 1.. {
                let mark = self.next_mark();
                let txn = Txn::new("last").note(mark.to_string()).put(format!("last/{id}"), mark.to_string());
                let written = self.ask(id, Asked::Txn { mark }, |request| Input::Transact {
                    request,
                    txn,
                    at_ms: mark,
                })?;
                let newest = self.invariants.reads.newest_revision();
                let path = format!("last/{id}");
                let read =
                    self.ask(id, Asked::Barrier { newest, path }, |request| Input::Barrier { request })?;
                let end = self.now + 7_000_000;
                let both = [written, read];
                self.until(end, |world| both.iter().all(|key| world.answers.contains_key(key)))?;
                let good = |key| {
                    matches!(self.answers.get(key), Some(Outcome::Txn(Ok(_)) | Outcome::Barrier(Ok(()))))
                };
                // A removal that was asked for before may have been carried out only now.
                let gone = !self.members().iter().any(|(member, _)| *member == id);
                if gone || both.iter().all(good) {
                    break;
                }
                if attempt == 3 {
                    let answers: Vec<_> = both.iter().map(|key| self.answers.get(key)).collect();
                    let states: Vec<_> = self.nodes.iter().map(Node::status).collect();
                    return Err(format!("node {id} is not answered after healing: {answers:?}: {states:?}"));
                }
            }
        }
        Ok(())
    }

    fn next_mark(&mut self) -> u64 {
        self.marks += 1;
        self.marks
    }

    fn ask(
        &mut self,
        id: u64,
        asked: Asked,
        input: impl FnOnce(RequestId) -> Input,
    ) -> Result<(u64, u64, RequestId), String> {
        let node = self.node(id)?;
        let life = node.life;
        let Some(running) = &mut node.running else { return Err(format!("node {id} is down")) };
        let request = running.request();
        let (key, input) = ((id, life, request), input(request));
        self.note(key, &asked, &input)?;
        self.asked.insert(key, asked);
        self.input(id, input)?;
        Ok(key)
    }

    /// Whether a node is frozen: then the event waits.
    fn frozen(&mut self, id: u64, event: Event) -> Option<Event> {
        let until = self.node(id).map_or(0, |node| node.paused_until);
        if until <= self.now {
            return Some(event);
        }
        self.schedule(until - self.now, event);
        None
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Tick { node, .. } | Event::Disk { node, .. } => {
                let Some(event) = self.frozen(node, event) else { return Ok(()) };
                self.node_event(event)
            }
            Event::Frame { from, to, .. } => {
                if !self.network.arrives(from, to) {
                    return Ok(());
                }
                let Some(event) = self.frozen(to, event) else { return Ok(()) };
                self.node_event(event)
            }
            Event::Start { node } => self.start(node),
            Event::Look { node } => self.look(node),
            _ if self.healing => Ok(()),
            fault => self.fault(&fault),
        }
    }

    fn node_event(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Tick { node: id, life } => {
                let node = self.node(id)?;
                if node.life != life || node.running.is_none() {
                    return Ok(());
                }
                let drift = node.drift;
                let after = TICK.saturating_add_signed(i64::try_from(TICK).unwrap_or(0) * drift / 1000);
                self.schedule(after, Event::Tick { node: id, life });
                self.input(id, Input::Tick)
            }
            Event::Frame { to, data, .. } => {
                self.invariants.figures.frames += 1;
                self.input(to, Input::Frame(data))
            }
            Event::Disk { node, life } => self.written(node, life),
            _ => Ok(()),
        }
    }

    fn fault(&mut self, event: &Event) -> Result<(), String> {
        let up = self.up();
        let chosen = self.dice.pick(&up);
        match event {
            Event::Ask => {
                self.again(self.rates.question, Event::Ask);
                if let Some(id) = chosen { self.random_question(id) } else { Ok(()) }
            }
            Event::Crash => {
                self.again(self.rates.crash, Event::Crash);
                if let Some(id) = chosen { self.crash(id) } else { Ok(()) }
            }
            Event::Cut => {
                self.again(self.rates.cut, Event::Cut);
                self.network
                    .break_links(&self.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), &mut self.dice);
                let after = self.dice.between(100_000, 4_000_000);
                self.schedule(after, Event::Mend);
                Ok(())
            }
            Event::Mend => {
                self.network.heal();
                Ok(())
            }
            Event::Pause => {
                self.again(self.rates.pause, Event::Pause);
                let until = self.now + self.dice.between(50_000, 2_500_000);
                if let Some(id) = chosen {
                    self.node(id)?.paused_until = until;
                }
                Ok(())
            }
            Event::Transfer => {
                self.again(self.rates.transfer, Event::Transfer);
                let to = self.dice.pick(&self.ids()).unwrap_or(1);
                let leader =
                    self.nodes.iter().find(|node| node.status().is_some_and(|status| status.is_leader));
                match leader.map(|leader| leader.id) {
                    Some(id) => self.input(id, Input::Transfer { to }),
                    None => Ok(()),
                }
            }
            Event::Member => {
                self.again(self.rates.member, Event::Member);
                if let Some(id) = chosen { self.random_member_change(id) } else { Ok(()) }
            }
            Event::Hold => {
                self.again(self.rates.hold, Event::Hold);
                let until = self.now + self.dice.between(50_000, 6_000_000);
                let Some(id) = chosen else { return Ok(()) };
                let node = self.node(id)?;
                let is_told = node.held_until > 0;
                node.held_until = until;
                self.invariants.figures.holds += 1;
                if is_told { Ok(()) } else { self.look(id) }
            }
            Event::Tick { .. }
            | Event::Frame { .. }
            | Event::Disk { .. }
            | Event::Look { .. }
            | Event::Start { .. } => Ok(()),
        }
    }

    fn random_question(&mut self, id: u64) -> Result<(), String> {
        let mark = self.next_mark();
        let at = usize::try_from(id).unwrap_or(0).wrapping_sub(1);
        let Some(node) = self.nodes.get_mut(at) else { return Ok(()) };
        let life = node.life;
        let Some(running) = &mut node.running else { return Ok(()) };
        let mut request = running.request();
        let (mut input, asked) =
            workload::question(request, &running.machine, mark, &self.invariants, &mut self.dice);
        let barrier = matches!(asked, Asked::Barrier { .. });
        if barrier && self.plan.bug == Bug::SameRead {
            request = RequestId(u64::MAX);
            input = Input::Barrier { request };
        }
        self.note((id, life, request), &asked, &input)?;
        self.asked.insert((id, life, request), asked);
        if barrier && self.plan.bug == Bug::LocalBarrier {
            return self.answered(id, life, request, Outcome::Barrier(Ok(())));
        }
        self.input(id, input)
    }

    /// Notes in the history of clients what is asked.
    fn note(&mut self, key: (u64, u64, RequestId), asked: &Asked, input: &Input) -> Result<(), String> {
        if let Some(call) = workload::call(asked, input, &self.invariants)? {
            self.invariants.clients.begin(key, self.now, call);
        }
        Ok(())
    }

    fn random_member_change(&mut self, id: u64) -> Result<(), String> {
        let fresh = self.nodes.len() as u64 + 1;
        let at = usize::try_from(id).unwrap_or(0).wrapping_sub(1);
        let Some(running) = self.nodes.get(at).and_then(|node| node.running.as_ref()) else { return Ok(()) };
        let change = workload::member_change(&running.machine, fresh, &mut self.dice);
        if let MemberChange::AddLearner(new) = change
            && new.0 == fresh
        {
            if fresh > MOST_NODES {
                return Ok(());
            }
            self.add_node(&Machine::default())?;
        }
        self.ask(id, Asked::Member, |request| Input::Member { request, change }).map(drop)
    }
}
