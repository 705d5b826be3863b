//! A node's daemon: what it does from time to time, what it says and hears, and the grantor's shell.

use super::modelled::{Purpose, Round};
use super::moves::Moving;
use super::script::Part;
use super::store::{Tree, Txn};
use super::tasks::{Ask, Reported, Told};
use super::world::{Call, Event, World};
use super::{Plant, tasks};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use stead_ha::{Agent, Leave};
use stead_membership::grantor::{DeclareFailure, Grantor, GrantorCommand, Member};
use stead_membership::{Heartbeat, HeartbeatAnswer, Moment, Outcome, RESTART_LEASE, Refusal, wire};
use stead_model::{BootId, Epoch, FenceProfile, NodeName, NodeState, Vmid};

/// For how long voters wait for a leader at least, in the model.
pub(super) const ELECTION: Duration = Duration::from_millis(700);
/// For how long a question to the cluster waits for its answer.
pub(super) const ROUND: Duration = Duration::from_secs(3);

/// For how long a node that goes down waits for a lease.
const HELPLESS: Duration = Duration::from_secs(10);

/// For how long a daemon that is to be started anew waits for its restart lease.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is tried to end the mark of one.
const UNMARK: Duration = Duration::from_secs(1);

/// What daemons say to each other.
#[derive(Debug, Clone)]
pub(super) enum Msg {
    Append {
        term: u64,
        commit: usize,
    },
    AppendAck {
        term: u64,
    },
    Round {
        term: u64,
        id: u64,
    },
    RoundAck {
        term: u64,
        id: u64,
    },
    /// Of the real consensus.
    Frame(Bytes),
    Beat(Heartbeat),
    Answer(HeartbeatAnswer),
    Report(Reported),
    /// The source of a migration to its target: make a copy that waits; end it; it may run.
    Prepare {
        vmid: Vmid,
        epoch: Epoch,
    },
    Abort {
        vmid: Vmid,
        epoch: Epoch,
    },
    Continue {
        vmid: Vmid,
        epoch: Epoch,
    },
    /// The target to the source: it waits, or cannot; it runs; is it still being moved?
    Prepared {
        vmid: Vmid,
        epoch: Epoch,
        ok: bool,
    },
    Runs {
        vmid: Vmid,
        epoch: Epoch,
    },
    Migrating {
        vmid: Vmid,
        epoch: Epoch,
    },
    /// No, it is not.
    MovesNoMore {
        vmid: Vmid,
        epoch: Epoch,
    },
    Ask {
        id: u64,
        life: u64,
        ask: Ask,
    },
    Told {
        id: u64,
        life: u64,
        told: Told,
    },
    /// To itself: a proposal that is only now on its way to whoever leads by now.
    Late {
        id: u64,
        life: u64,
        ask: Ask,
    },
}

/// What a daemon has in memory.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    pub life: u64,
    pub paused_until: Duration,
    pub grantor: Grantor,
    pub agent: Agent,
    pub leader: Option<usize>,
    /// The term in which it believes to lead.
    pub leads: Option<u64>,
    /// Since when.
    pub led_since: Duration,
    pub heard: Duration,
    pub patience: Duration,
    pub acked: BTreeMap<usize, Duration>,
    pub rounds: BTreeMap<u64, Round>,
    /// The index as of which the grantor knows the members.
    told: Option<usize>,
    /// The members as the grantor knows them.
    members: Option<Rc<BTreeMap<NodeName, NodeState>>>,
    pub next_id: u64,
    due: BTreeMap<&'static str, Duration>,
    /// The index as of which something was done last.
    done: BTreeMap<&'static str, usize>,
    pub reports: BTreeMap<usize, (Reported, Duration)>,
    pub waiting: BTreeMap<u64, (tasks::Then, Duration)>,
    /// It is to go, and since when.
    pub leave: Option<(Leave, Duration)>,
    /// It is to be started anew, and for how long it will be away.
    pub restart: Option<Duration>,
    /// Its own mark is committed: it asks for a restart lease.
    asks: bool,
    /// Procedures of which there is one at a time.
    pub busy: BTreeSet<&'static str>,
    /// Guests on which a task is at work: nobody else touches them.
    pub at_work: BTreeSet<Vmid>,
    /// Migrations from here.
    pub moves: BTreeMap<Vmid, Moving>,
}

impl Daemon {
    pub fn new(clock: Moment, now: Duration, life: u64, tree: &Tree) -> Self {
        Self {
            life,
            paused_until: now,
            grantor: Grantor::new(clock, tree.profile, tree.previous),
            agent: Agent::default(),
            leader: None,
            leads: None,
            led_since: now,
            heard: now,
            patience: ELECTION,
            acked: BTreeMap::new(),
            rounds: BTreeMap::new(),
            told: None,
            members: None,
            next_id: 1,
            due: BTreeMap::new(),
            done: BTreeMap::new(),
            reports: BTreeMap::new(),
            waiting: BTreeMap::new(),
            leave: None,
            restart: None,
            asks: false,
            busy: BTreeSet::new(),
            at_work: BTreeSet::new(),
            moves: BTreeMap::new(),
        }
    }

    /// How many of the voters a leader knows to follow, itself among them.
    pub fn followed(&self, now: Duration, voters: usize) -> usize {
        let fresh = |at: &Duration| now - *at < ROUND / 2;
        self.acked.range(..voters).filter(|(_, at)| fresh(at)).count() + 1
    }

    /// Whether something that is done every so often is due; notes that it was done.
    pub fn is_due(&mut self, what: &'static str, now: Duration, every: Duration) -> bool {
        let due = self.due.get(what).is_none_or(|at| now >= *at);
        if due {
            self.due.insert(what, now + every);
        }
        due
    }

    /// The same of what is done after every commit too.
    fn is_due_or_new(&mut self, what: &'static str, now: Duration, every: Duration, applied: usize) -> bool {
        let new = self.done.insert(what, applied) != Some(applied);
        if new {
            self.due.remove(what);
        }
        self.is_due(what, now, every)
    }
}

impl World {
    /// What a daemon does from time to time.
    pub fn tick(&mut self, node: usize) {
        self.agree(node);
        self.grant_step(node);
        self.expire(node);
        self.expire_moves(node);
        let now = self.now;
        let due = |w: &mut Self, what, ms| {
            let every = Duration::from_millis(ms);
            w.daemon(node).is_some_and(|d| d.is_due(what, now, every))
        };
        let woken = |w: &mut Self, what, ms| {
            let (every, applied) = (Duration::from_millis(ms), w.nodes[node].applied);
            w.daemon(node).is_some_and(|d| d.is_due_or_new(what, now, every, applied))
        };
        let heartbeat = u64::try_from(self.heartbeat(node).as_millis()).unwrap_or(u64::MAX);
        if due(self, "beat", heartbeat) {
            self.beat(node);
        }
        if due(self, "report", 300) {
            self.report(node);
        }
        if due(self, "held", 500) {
            self.decide_held(node);
        }
        if due(self, "reconcile", 5000) {
            self.reconcile(node);
        }
        if woken(self, "guard", 500) {
            self.guard(node);
            self.await_handover(node);
        }
        if woken(self, "agent", 500) {
            self.agent_step(node);
        }
        if woken(self, "manage", 500) {
            self.manage(node);
        }
        self.leave(node);
    }

    /// Goes, if it is to and may.
    fn leave(&mut self, node: usize) {
        let now = self.now;
        let Some((leave, since)) = self.nodes[node].daemon.as_ref().and_then(|d| d.leave) else { return };
        let view = self.agent_view(node);
        // Without a lease nothing runs here, and nothing can be moved away or told to the manager.
        let helpless = !view.ready && now - since > HELPLESS && now > self.nodes[node].lease_ends + HELPLESS;
        let Some(d) = self.daemon(node) else { return };
        if !helpless && !d.agent.may_leave(&view) {
            return;
        }
        if leave == Leave::Restart {
            self.restart_daemon(node);
        } else {
            self.go_down(node, leave);
        }
    }

    fn restart_daemon(&mut self, node: usize) {
        self.nodes[node].daemon = None;
        let boots = self.nodes[node].boots;
        self.after(Duration::from_secs(1), Event::StartDaemon { node, boots });
    }

    /// A daemon that is to be started anew marks its node's record, then asks for a restart lease; it waits for that only so long.
    pub fn plan_restart(&mut self, node: usize, time: Duration) {
        let unmarked = self.plan.plant == Plant::RestartUnmarked;
        let Some(d) = self.daemon(node).filter(|d| d.restart.is_none()) else { return };
        d.restart = Some(time);
        let life = d.life;
        d.asks = unmarked;
        if !unmarked {
            self.mark(node);
        }
        self.after(PATIENCE, Event::Restarts { node, life });
    }

    fn mark(&mut self, node: usize) {
        let (name, boot) = (self.nodes[node].name.clone(), self.nodes[node].boot.clone());
        let revision = self.tree(node).node_revision(&name);
        self.ask(node, Ask::Propose(Txn::Mark(name, boot, revision)), tasks::Then::Marked);
    }

    /// The mark is committed, or not: then it is tried again over the record as it is known by now.
    pub fn marked(&mut self, node: usize, done: bool) {
        let Some(d) = self.daemon(node) else { return };
        d.asks = done;
        if !done {
            self.mark(node);
        }
    }

    pub fn restarts(&mut self, node: usize, life: u64) {
        let away = self.daemon(node).filter(|d| d.life == life).and_then(|d| d.restart);
        if let Some(time) = away {
            self.kill(Part::Daemon, node, time);
        }
    }

    /// The fence process has a lease. After a restart it is to hold to no longer one, and the mark is to go. Its revision is
    /// read before: a later mark means a later restart lease.
    pub fn renewed(&mut self, node: usize, lease: Duration) {
        let restart = lease >= RESTART_LEASE;
        let (tree, now) = (self.tree(node), self.now);
        let name = self.nodes[node].name.clone();
        let Some(d) = self.daemon(node) else { return };
        match (restart, d.restart) {
            (true, Some(_)) => {
                let life = d.life;
                self.restarts(node, life);
            }
            // Read in this order, as by `agents::restart`: the mark, then that this daemon is not to end.
            (false, None) if tree.may_restart(&name) && d.is_due("unmark", now, UNMARK) => {
                let (revision, most) = (tree.node_revision(&name), lease);
                self.ask_fenced(node, Call::Shorten { revision, most });
            }
            _ => {}
        }
    }

    /// The fence process holds to no restart lease any more.
    pub fn unmark(&mut self, node: usize, revision: u64) {
        let name = self.nodes[node].name.clone();
        self.ask(node, Ask::Propose(Txn::Unmark(name, revision)), tasks::Then::Nothing);
    }

    pub fn leads(&self, node: usize) -> Option<u64> {
        self.nodes[node].daemon.as_ref().and_then(|d| d.leads)
    }

    /// It leads no more.
    pub fn depose(&mut self, node: usize) {
        self.note(|| format!("n{}: leads no more", node + 1));
        let Some(d) = self.daemon(node) else { return };
        (d.leads, d.leader) = (None, None);
        let rounds = std::mem::take(&mut d.rounds);
        let out = d.grantor.depose();
        self.grant(node, out);
        // Its own proposals are not given up: they are forwarded to the next leader.
        for round in rounds.into_values() {
            if let Purpose::Ask { from, id, life, ask } = round.purpose
                && from == node
            {
                self.late(node, id, life, ask);
            }
        }
    }

    /// It leads from now on.
    pub fn begins_to_lead(&mut self, node: usize, term: u64) {
        let n = &mut self.nodes[node];
        let at = n.clock(self.now);
        let Some(d) = n.daemon.as_mut() else { return };
        (d.leads, d.told) = (Some(term), None);
        d.reports.clear();
        self.set_members(node);
        let since = if self.plan.plant == Plant::NewLeaderNoWait {
            at.saturating_sub(FenceProfile::Wan.fence_time())
        } else {
            at
        };
        let Some(d) = self.nodes[node].daemon.as_mut() else { return };
        d.led_since = self.now;
        let out = d.grantor.lead(since, term);
        self.grant(node, out);
    }

    /// A message has arrived.
    pub fn receive(&mut self, node: usize, from: usize, msg: Msg) {
        let now = self.now;
        match msg {
            Msg::Append { term, commit } if self.accepts(node, term) => {
                let n = &mut self.nodes[node];
                n.applied = n.applied.max(commit);
                let Some(d) = n.daemon.as_mut() else { return };
                (d.heard, d.leader) = (now, Some(from));
                self.send(node, from, Msg::AppendAck { term });
            }
            Msg::AppendAck { term } => {
                let Some(d) = self.daemon(node).filter(|d| d.leads == Some(term)) else { return };
                d.acked.insert(from, now);
            }
            Msg::Round { term, id } if self.accepts(node, term) => {
                self.send(node, from, Msg::RoundAck { term, id });
            }
            Msg::RoundAck { term, id } => self.round_acked(node, from, term, id),
            Msg::Append { .. } | Msg::Round { .. } => {}
            Msg::Frame(frame) => self.frame(node, frame),
            Msg::Beat(beat) if self.grants_uncounted(node, &beat) => {}
            Msg::Beat(beat) => {
                let at = self.nodes[node].clock(now);
                self.set_members(node);
                let Some(d) = self.daemon(node) else { return };
                let out = d.grantor.heartbeat(at, beat);
                self.grant(node, out);
            }
            Msg::Answer(answer) => self.answered(node, answer),
            Msg::Report(report) => {
                if let Some(d) = self.daemon(node) {
                    d.reports.insert(from, (report, now));
                }
            }
            Msg::Prepare { vmid, epoch } => self.prepare(node, from, vmid, epoch),
            Msg::Abort { vmid, epoch } => self.end_incoming(node, vmid, epoch),
            Msg::Continue { vmid, epoch } => self.continue_told(node, vmid, epoch),
            Msg::Prepared { vmid, epoch, ok } => self.prepared(node, vmid, epoch, ok),
            Msg::Runs { vmid, epoch } => self.runs_there(node, vmid, epoch),
            Msg::Migrating { vmid, epoch } => self.migrating(node, from, vmid, epoch),
            Msg::MovesNoMore { vmid, epoch } => self.moves_no_more(node, vmid, epoch),
            Msg::Ask { id, life, ask } => self.asked(node, from, id, life, ask),
            Msg::Told { id, life, told } => self.told(node, id, life, told),
            Msg::Late { id, life, ask } => {
                if let Some(leader) = self.daemon(node).filter(|d| d.life == life).and_then(|d| d.leader) {
                    self.send(node, leader, Msg::Ask { id, life, ask });
                }
            }
        }
    }

    /// Asks the leader for a barrier or a commit; what then, when it is known.
    pub fn ask(&mut self, node: usize, ask: Ask, then: tasks::Then) {
        let until = self.now + ROUND;
        let slow = self.chance(node, 30);
        let Some(d) = self.daemon(node) else { return };
        d.next_id += 1;
        let (id, life) = (d.next_id, d.life);
        d.waiting.insert(id, (then, until));
        self.ask_conf(node, id, life, ask, slow);
    }

    fn expire(&mut self, node: usize) {
        let now = self.now;
        let Some(d) = self.daemon(node) else { return };
        let life = d.life;
        let late: Vec<u64> =
            d.waiting.iter().filter(|(_, (_, until))| *until < now).map(|(id, _)| *id).collect();
        let ended = d.rounds.iter().filter(|(_, r)| r.until < now);
        let failed: Vec<_> = ended.map(|(id, r)| (*id, r.purpose.clone())).collect();
        for id in late {
            self.told(node, id, life, Told::Unknown);
        }
        for (id, purpose) in failed {
            let Some(d) = self.daemon(node) else { return };
            d.rounds.remove(&id);
            if let Purpose::Confirm(round) = purpose {
                self.confirmed(node, round, None);
            }
        }
    }

    /// A round of the grantor's has ended: this node led in that term, or it is not known whether it does.
    pub fn confirmed(&mut self, node: usize, round: u64, term: Option<u64>) {
        if term.is_some() {
            self.set_members(node);
        }
        let Some(d) = self.daemon(node) else { return };
        let out = match term {
            Some(term) => d.grantor.confirmed(round, term),
            None => d.grantor.unconfirmed(round),
        };
        self.grant(node, out);
    }

    fn set_members(&mut self, node: usize) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let told = n.daemon.as_ref().and_then(|d| d.told);
        if told == Some(n.applied) {
            return;
        }
        let (at, tree) = (n.clock(now), self.store.at(n.applied));
        let Some(d) = n.daemon.as_mut() else { return };
        d.told = Some(n.applied);
        // Who does not lead is told of the members when it does.
        let same = d.members.as_ref().is_some_and(|known| Rc::ptr_eq(known, &tree.nodes));
        if d.leads.is_none() || same {
            return d.grantor.set_profile(at, tree.profile, tree.previous);
        }
        d.members = Some(tree.nodes.clone());
        let uuid = |name: &NodeName| self.index(name).map(|i| self.nodes[i].uuid.clone());
        let forgives = self.plan.plant == Plant::LostNotSticky;
        let member = |(name, state): (&NodeName, &stead_model::NodeState)| {
            let state = match state {
                NodeState::Lost { boot } if forgives => NodeState::Member { boot: boot.clone() },
                state => state.clone(),
            };
            let restart = tree.may_restart(name) || self.asks_unmarked(name);
            Some((
                name.clone(),
                Member { uuid: uuid(name)?, state, off: tree.off.get(name).cloned(), restart },
            ))
        };
        let members = tree.nodes.iter().filter_map(member).collect();
        let devices = self.devices_but(node);
        if let Some(d) = self.daemon(node) {
            d.grantor.set_devices(devices);
            d.grantor.set_members(at, members);
            d.grantor.set_profile(at, tree.profile, tree.previous);
        }
    }

    /// A planted mistake: a leader believes who asks, and no other leader hears of it.
    fn asks_unmarked(&self, name: &NodeName) -> bool {
        let daemon = self.index(name).and_then(|i| self.nodes[i].daemon.as_ref());
        self.plan.plant == Plant::RestartUnmarked && daemon.is_some_and(|d| d.restart.is_some())
    }

    fn grant_step(&mut self, node: usize) {
        self.set_members(node);
        let at = self.nodes[node].clock(self.now);
        let Some(d) = self.daemon(node) else { return };
        let out = d.grantor.step(at);
        self.grant(node, out);
    }

    /// Carries the grantor's commands out.
    fn grant(&mut self, node: usize, commands: Vec<GrantorCommand>) {
        for command in commands {
            match command {
                GrantorCommand::Confirm { round } if self.plan.plant == Plant::UnconfirmedGrant => {
                    let Some(d) = self.daemon(node) else { return };
                    let term = d.grantor.term().unwrap_or(0);
                    let out = d.grantor.confirmed(round, term);
                    self.grant(node, out);
                }
                GrantorCommand::Confirm { round } => self.confirm(node, round),
                GrantorCommand::SettleProfile(previous) => {
                    self.ask(node, Ask::Propose(Txn::Settle(previous)), tasks::Then::Nothing);
                }
                GrantorCommand::Answer { node: to, answer } => {
                    if let Some(to) = self.index(&to) {
                        self.send(node, to, Msg::Answer(answer));
                    }
                }
                GrantorCommand::PowerOff(order) => self.order_off(node, &order),
                GrantorCommand::PowerOn { node: off } => self.order_on(&off),
                GrantorCommand::CallOff { node: of } => self.call_off(node, &of),
                GrantorCommand::DeclareLost(lost) => {
                    self.note(|| format!("n{}: gives {} up after {:?}", node + 1, lost.node, lost.silent));
                    let named = (lost.node.clone(), lost.boot);
                    let txn = match lost.off {
                        true => Txn::Off(named.0, named.1),
                        false => Txn::Lose(named.0, named.1, lost.restart),
                    };
                    self.ask(node, Ask::Propose(txn), tasks::Then::Declared(lost.node));
                }
            }
        }
    }

    pub fn declared(&mut self, node: usize, lost: &NodeName) {
        self.set_members(node);
        let at = self.nodes[node].clock(self.now);
        if let Some(d) = self.daemon(node) {
            d.grantor.declared(at, lost);
        }
    }

    pub fn declare_failed(&mut self, node: usize, lost: &NodeName, failure: DeclareFailure) {
        if let Some(d) = self.daemon(node) {
            d.grantor.declare_failed(lost, failure);
        }
    }

    fn beat(&mut self, node: usize) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let at = n.clock(now);
        let Some(fenced) = n.answering(now) else { return };
        let nonce = fenced.holder.nonce(at);
        let (name, uuid, boot): (_, _, BootId) = (n.name.clone(), n.uuid.clone(), n.boot.clone());
        let restart = n.daemon.as_ref().is_some_and(|d| d.asks);
        let beat = Heartbeat { v: wire::VERSION, node: name, uuid, boot, nonce, restart };
        if let Some(leader) = n.daemon.as_ref().and_then(|d| d.leader) {
            self.send(node, leader, Msg::Beat(beat));
        }
    }

    /// How often this node asks for its lease.
    fn heartbeat(&self, node: usize) -> Duration {
        let tree = self.store.at(self.nodes[node].applied);
        let previous = tree.previous.map_or(tree.profile.heartbeat(), FenceProfile::heartbeat);
        previous.min(tree.profile.heartbeat())
    }

    fn answered(&mut self, node: usize, answer: HeartbeatAnswer) {
        if self.plan.plant == Plant::ThawBeforeDecision {
            for copy in self.nodes[node].copies.values_mut().filter(|c| c.frozen && !c.hung) {
                (copy.frozen, copy.running) = (false, copy.incoming.is_none());
            }
        }
        match answer.outcome {
            outcome @ Outcome::Granted { .. } => {
                self.ask_fenced(node, Call::Renew { nonce: answer.nonce, outcome });
            }
            Outcome::Refused { reason: Refusal::Lost | Refusal::WrongBoot { .. } } => self.enter(node),
            Outcome::Refused { .. } => {}
        }
    }
}
