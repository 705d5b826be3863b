//! Virtual time, the network, and what happens on a machine.

use super::config::Config;
use super::daemon::{Daemon, Msg};
use super::invariants;
use super::node::{Copy, Node, boot_id};
use super::scene::Scene;
use super::store::{Store, Tree};
use super::tasks::Task;
use super::{Plan, Plant};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stead_ha::ManagerState;
use stead_membership::{HolderCommand, Outcome as Granted, Report};
use stead_model::{Epoch, GuestKind, NodeState, Ownership, ServiceId, Vmid};

use crate::scenario::Kind;

/// What came of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The first invariant that was broken, when, and how.
    pub broken: Option<String>,
    /// The last events before the end.
    pub trace: Vec<String>,
    /// Events in all: two runs of a seed that differ have different ones.
    pub events: u64,
    /// Recoveries that were committed.
    pub recoveries: u32,
    /// Machines that were reset by fencing.
    pub resets: u32,
    /// Guests that went on after a pause.
    pub thaws: u32,
}

/// Runs one history.
pub fn run(seed: u64, plan: Plan) -> Outcome {
    let mut world = World::new(seed, plan);
    world.start();
    world.run();
    world.outcome()
}

/// A call of the daemon's to its fence process that is answered later.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Renew {
        nonce: u64,
        outcome: Granted,
    },
    /// `task` with the life of the daemon that waits for it.
    Run {
        vmid: Vmid,
        epoch: Epoch,
        task: Option<(u64, Task)>,
    },
}

/// What happens.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Tick {
        node: usize,
        life: u64,
    },
    Deliver {
        from: usize,
        to: usize,
        msg: Box<Msg>,
    },
    Fence {
        node: usize,
        life: u64,
        timer: u64,
    },
    Call {
        node: usize,
        life: u64,
        call: Call,
    },
    Job {
        node: usize,
        life: u64,
        vmid: Vmid,
        job: u64,
    },
    Cont {
        node: usize,
        boots: u64,
        vmid: Vmid,
        epoch: Epoch,
        thaw: bool,
    },
    Watchdog {
        node: usize,
        boots: u64,
    },
    Launched {
        node: usize,
        life: u64,
        task: Task,
    },
    Resume {
        node: usize,
        life: u64,
        task: Task,
        ok: bool,
    },
    PowerOn {
        node: usize,
    },
    StartFenced {
        node: usize,
        boots: u64,
    },
    StartDaemon {
        node: usize,
        boots: u64,
    },
    Fault,
    /// The next step of a scenario.
    Step(usize),
    /// Users' changes that wait for a leader.
    Edits,
}

pub(super) struct World {
    pub plan: Plan,
    pub rng: ChaCha8Rng,
    pub now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    next: u64,
    pub nodes: Vec<Node>,
    pub store: Store,
    /// Links that are cut: from, to.
    pub cut: Vec<Vec<bool>>,
    /// Messages lost, in a thousand.
    pub loss: u32,
    /// Messages that are very late, in a thousand.
    pub late: u32,
    pub healing: bool,
    broken: Option<String>,
    trace: VecDeque<String>,
    events: u64,
    recoveries: u32,
    resets: u32,
    thaws: u32,
    /// The scenario that is played, if it is one.
    pub scene: Option<Scene>,
}

impl World {
    fn new(seed: u64, plan: Plan) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let name = |n: usize| format!("n{n}").parse().unwrap_or_else(|e| unreachable!("{e}"));
        let nodes: Vec<Node> = (1..=plan.nodes).map(|n| new_node(n, name(n), &mut rng)).collect();
        let own = |i: u32| {
            let owner = nodes[i as usize % nodes.len()].name.clone();
            let vmid = Vmid::new(100 + i).unwrap_or_else(|e| unreachable!("{e}"));
            (
                vmid,
                Ownership {
                    kind: GuestKind::Qemu,
                    owner,
                    epoch: Epoch(1),
                    armed: false,
                    running: false,
                    recovered: false,
                },
            )
        };
        let owners: BTreeMap<Vmid, Ownership> = (0..plan.guests).map(own).collect();
        let sids = owners.iter().map(|(vmid, own)| ServiceId { kind: own.kind, vmid: *vmid });
        let config = Rc::new(Config::with_defaults(sids));
        let manager = (Arc::new(ManagerState::default()), 0);
        let tree = Tree { nodes: BTreeMap::new(), owners, manager, config };
        Self::with(rng, plan, nodes, tree)
    }

    /// A world of these nodes, all of them members.
    pub fn with(rng: ChaCha8Rng, plan: Plan, nodes: Vec<Node>, mut tree: Tree) -> Self {
        let member = |n: &Node| (n.name.clone(), NodeState::Member { boot: n.boot.clone() });
        tree.nodes = nodes.iter().map(member).collect();
        let store = Store::new(tree);
        Self {
            rng,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            next: 0,
            cut: vec![vec![false; nodes.len()]; nodes.len()],
            nodes,
            store,
            loss: 0,
            late: 0,
            healing: false,
            broken: None,
            trace: VecDeque::new(),
            events: 0,
            recoveries: 0,
            resets: 0,
            thaws: 0,
            scene: None,
            plan,
        }
    }

    fn start(&mut self) {
        for node in 0..self.nodes.len() {
            self.power_on(node);
        }
        self.after(Duration::from_secs(5), Event::Fault);
    }

    /// Runs on to that moment, and checks the invariants after every event.
    pub fn run_until(&mut self, end: Duration) {
        while let Some(((at, _), event)) = self.queue.pop_first().filter(|((at, _), _)| *at <= end) {
            self.now = at;
            self.events += 1;
            self.handle(event);
            if self.broken.is_none() {
                self.check();
            }
        }
        self.now = end;
    }

    /// The invariant that was broken first, if one was.
    pub fn broken_by(&self) -> Option<String> {
        self.broken.clone()
    }

    fn run(&mut self) {
        let (calm, end) = (self.plan.faults, self.plan.faults + self.plan.healing);
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > calm && !self.healing {
                self.now = calm;
                self.heal();
            }
            if at > end {
                break;
            }
            self.now = at;
            self.events += 1;
            self.handle(event);
            self.check();
            if self.broken.is_some() {
                return;
            }
        }
        self.now = end;
        if self.plan.healing.is_zero() {
            return;
        }
        if let Some(why) = invariants::healed::check(self) {
            self.broken = Some(format!("at {end:?}: {why}"));
        }
    }

    fn outcome(self) -> Outcome {
        Outcome {
            broken: self.broken,
            trace: self.trace.into(),
            events: self.events,
            recoveries: self.recoveries,
            resets: self.resets,
            thaws: self.thaws,
        }
    }

    fn check(&mut self) {
        let broken =
            invariants::ALL.iter().find_map(|(name, check)| check(self).map(|why| format!("{name}: {why}")));
        if let Some(why) = broken {
            self.broken = Some(format!("at {:?}: {why}", self.now));
        }
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.trace.len() == 200 {
            self.trace.pop_front();
        }
        let line = format!("{:>9.3} {}", self.now.as_secs_f64(), text());
        self.trace.push_back(line);
    }

    pub fn at(&mut self, at: Duration, event: Event) {
        self.next += 1;
        self.queue.insert((at.max(self.now), self.next), event);
    }

    pub fn after(&mut self, time: Duration, event: Event) {
        self.at(self.now + time, event);
    }

    /// Milliseconds between two bounds; the lower one where nothing is left to chance.
    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        if self.plan.calm {
            return Duration::from_millis(from);
        }
        Duration::from_micros(self.rng.random_range(from * 1000..=to * 1000))
    }

    /// Whether it happens, by that chance in a thousand.
    pub fn chance(&mut self, thousandth: u32) -> bool {
        !self.plan.calm && self.rng.random_range(0..1000) < thousandth
    }

    /// Sends, unless the link is cut or the message lost.
    pub fn send(&mut self, from: usize, to: usize, msg: Msg) {
        let delay = if from == to { Duration::from_micros(50) } else { self.ms(1, 4) };
        let lost = from != to && (self.cut[from][to] || self.chance(self.loss));
        let late = if from != to && self.chance(self.late) { self.ms(50, 8000) } else { Duration::ZERO };
        if !lost {
            self.after(delay + late, Event::Deliver { from, to, msg: Box::new(msg) });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } => {
                if let Some(later) = self.daemon_waits(node, life) {
                    return self.at(later, Event::Tick { node, life });
                }
                if self.daemon_is(node, life) {
                    self.tick(node);
                    let period = self.ms(40, 60);
                    self.after(period, Event::Tick { node, life });
                }
            }
            Event::Deliver { from, to, msg } => {
                let life = self.nodes[to].daemon.as_ref().map_or(0, |d| d.life);
                match self.daemon_waits(to, life) {
                    Some(later) => self.at(later, Event::Deliver { from, to, msg }),
                    None if self.daemon_is(to, life) => self.receive(to, from, *msg),
                    None => {}
                }
            }
            Event::Launched { node, life, task } => match self.daemon_waits(node, life) {
                Some(later) => self.at(later, Event::Launched { node, life, task }),
                None if self.daemon_is(node, life) => self.launched(node, &task),
                None => {}
            },
            Event::Resume { node, life, task, ok } => match self.daemon_waits(node, life) {
                Some(later) => self.at(later, Event::Resume { node, life, task, ok }),
                None if self.daemon_is(node, life) => self.ran(node, &task, ok),
                None => {}
            },
            Event::Fault => self.fault(),
            Event::Step(index) => self.play_step(index),
            Event::Edits => self.commit_edits(),
            Event::PowerOn { node } if !self.nodes[node].on => self.power_on(node),
            Event::PowerOn { .. } => {}
            Event::StartDaemon { node, boots } => {
                if self.is_boot(node, boots) && self.nodes[node].daemon.is_none() {
                    self.nodes[node].start_daemon(self.now);
                    self.begin_ticking(node);
                }
            }
            other => self.handle_machine(other),
        }
    }

    fn handle_machine(&mut self, event: Event) {
        match event {
            Event::Watchdog { node, boots } => {
                let fires = self.nodes[node].watchdog.is_some_and(|at| at <= self.now);
                if self.is_boot(node, boots) && fires {
                    self.note(|| format!("n{}: the watchdog fires", node + 1));
                    self.tell(Kind::SelfFence, None, Some(node), Some("watchdog".to_owned()));
                    self.reset(node);
                }
            }
            Event::Cont { node, boots, vmid, epoch, thaw } => {
                let resumes = self.nodes[node].paused_until;
                if self.is_boot(node, boots) && self.now < resumes {
                    return self.at(resumes, Event::Cont { node, boots, vmid, epoch, thaw });
                }
                let copies = &mut self.nodes[node].copies;
                let Some(copy) = copies.get_mut(&vmid).filter(|c| c.epoch == epoch) else { return };
                let hung = copy.hung;
                let began = !hung && !copy.running && !copy.frozen;
                let first = began && !copy.ran;
                copy.ran |= began;
                copy.running |= !hung;
                if hung && thaw {
                    self.thaw_failed(node, vmid);
                } else if first {
                    self.tell_guest(Kind::Start, vmid, node);
                } else if began {
                    self.tell_guest(Kind::Thaw, vmid, node);
                }
            }
            Event::StartFenced { node, boots } => {
                let missing = self.nodes[node].fenced.is_none();
                if self.is_boot(node, boots) && missing {
                    self.nodes[node].start_fenced(self.now);
                    self.fence(node);
                }
            }
            Event::Fence { node, life, timer } => match self.fenced_waits(node, life) {
                Some(later) => self.at(later, Event::Fence { node, life, timer }),
                None if self.nodes[node]
                    .fenced
                    .as_ref()
                    .is_some_and(|f| f.life == life && f.timer == timer) =>
                {
                    self.fence(node);
                }
                None => {}
            },
            Event::Call { node, life, call } => match self.fenced_waits(node, life) {
                Some(later) => self.at(later, Event::Call { node, life, call }),
                None => self.call(node, life, call),
            },
            Event::Job { node, life, vmid, job } => match self.fenced_waits(node, life) {
                Some(later) => self.at(later, Event::Job { node, life, vmid, job }),
                None => self.made_safe(node, life, vmid, job),
            },
            _ => {}
        }
    }

    fn is_boot(&self, node: usize, boots: u64) -> bool {
        self.nodes[node].on && self.nodes[node].boots == boots
    }

    fn daemon_is(&self, node: usize, life: u64) -> bool {
        self.nodes[node].daemon.as_ref().is_some_and(|d| d.life == life)
    }

    /// Until when the daemon of that life stands still, if it does.
    fn daemon_waits(&self, node: usize, life: u64) -> Option<Duration> {
        let n = &self.nodes[node];
        let until = n.daemon.as_ref().filter(|d| d.life == life)?.paused_until.max(n.paused_until);
        (until > self.now).then_some(until)
    }

    fn fenced_waits(&self, node: usize, life: u64) -> Option<Duration> {
        let n = &self.nodes[node];
        let until = n.fenced.as_ref().filter(|f| f.life == life)?.paused_until.max(n.paused_until);
        (until > self.now).then_some(until)
    }

    pub fn power_on(&mut self, node: usize) {
        self.note(|| format!("n{}: boots", node + 1));
        self.nodes[node].power_on(self.now, &self.store);
        self.fence(node);
        self.begin_ticking(node);
    }

    fn begin_ticking(&mut self, node: usize) {
        let life = self.nodes[node].lives;
        self.after(Duration::from_millis(1), Event::Tick { node, life });
    }

    /// The machine is reset, and boots some time later.
    pub fn reset(&mut self, node: usize) {
        self.resets += 1;
        self.lose_power(node);
        if self.scene.is_none() {
            let time = self.ms(2000, 12_000);
            self.after(time, Event::PowerOn { node });
        }
    }

    /// Power goes, and with it whatever runs there.
    pub fn lose_power(&mut self, node: usize) {
        let lost: Vec<Vmid> =
            self.nodes[node].copies.iter().filter(|(_, c)| c.ran && !c.lost).map(|(v, _)| *v).collect();
        for vmid in lost {
            self.tell_guest(Kind::Lost, vmid, node);
        }
        self.nodes[node].power_off();
    }

    /// A call to the fence process; none if there is no such process.
    pub fn ask_fenced(&mut self, node: usize, call: Call) -> bool {
        let Some(life) = self.nodes[node].fenced.as_ref().map(|f| f.life) else { return false };
        self.after(Duration::from_micros(100), Event::Call { node, life, call });
        true
    }

    fn call(&mut self, node: usize, life: u64, call: Call) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let at = n.clock(now);
        let Some(fenced) = n.fenced.as_mut().filter(|f| f.life == life) else { return };
        match call {
            Call::Renew { nonce, outcome: Granted::Granted { lease_ms, drain_ms, watchdog_ms } } => {
                let ms = Duration::from_millis;
                let nonce =
                    if self.plan.plant == Plant::LeaseFromAnswer { fenced.holder.nonce(at) } else { nonce };
                let renewed = fenced.holder.renew(at, nonce, ms(lease_ms), ms(drain_ms), ms(watchdog_ms));
                if let (Ok(()), Some(left)) = (renewed, fenced.holder.lease_left(at)) {
                    n.fenced_itself = false;
                    n.times = (ms(drain_ms), ms(watchdog_ms));
                    n.lease_ends = n.lease_ends.max(n.when(at + left));
                }
            }
            Call::Renew { .. } => {}
            Call::Run { vmid, epoch, task } => {
                let begun = fenced.holder.run(at, vmid, epoch);
                match begun {
                    Ok(HolderCommand::Cont { thaw, .. }) => self.cont(node, vmid, epoch, thaw, task),
                    _ => self.answer_run(node, task, false, Duration::ZERO),
                }
            }
        }
        self.fence(node);
    }

    fn answer_run(&mut self, node: usize, task: Option<(u64, Task)>, ok: bool, after: Duration) {
        if let Some((life, task)) = task {
            self.after(after + Duration::from_micros(100), Event::Resume { node, life, task, ok });
        }
    }

    /// The fence process continues a guest. The command takes effect a little later, whatever happens to the sender.
    fn cont(&mut self, node: usize, vmid: Vmid, epoch: Epoch, thaw: bool, task: Option<(u64, Task)>) {
        let delay = self.ms(1, 30);
        let at = self.now + delay;
        let n = &mut self.nodes[node];
        if let Some(entry) = n.record.get_mut(&vmid) {
            entry.1 = false;
        }
        let boots = n.boots;
        let Some(copy) = n.copies.get_mut(&vmid).filter(|c| c.epoch == epoch) else {
            return self.answer_run(node, task, false, delay);
        };
        copy.frozen = false;
        copy.cont_at = at;
        self.thaws += u32::from(thaw);
        self.note(|| format!("n{}: guest {vmid} of epoch {epoch} is continued (thaw: {thaw})", node + 1));
        self.at(at, Event::Cont { node, boots, vmid, epoch, thaw });
        self.answer_run(node, task, true, delay);
    }

    fn thaw_failed(&mut self, node: usize, vmid: Vmid) {
        let at = self.nodes[node].clock(self.now);
        if let Some(fenced) = self.nodes[node].fenced.as_mut() {
            fenced.holder.thaw_failed(at, vmid);
            self.fence(node);
        }
    }

    /// Lets the fence process do what is due.
    pub fn fence(&mut self, node: usize) {
        loop {
            let now = self.now;
            let n = &mut self.nodes[node];
            let at = n.clock(now);
            let Some(fenced) = n.fenced.as_mut() else { return };
            let commands = fenced.holder.step(at);
            let wake = fenced.holder.next_wake(at);
            fenced.timer += 1;
            let (life, timer) = (fenced.life, fenced.timer);
            if let Some(wake) = wake {
                let wake = n.when(wake);
                self.at(wake, Event::Fence { node, life, timer });
            }
            if commands.is_empty() {
                break;
            }
            for command in commands {
                self.carry_out(node, command);
            }
        }
    }

    fn carry_out(&mut self, node: usize, command: HolderCommand) {
        match command {
            HolderCommand::MakeSafe { vmid, .. } => {
                let takes = self.ms(5, 300);
                let (now, job) = (self.now, self.next);
                let n = &mut self.nodes[node];
                let at = n.clock(now);
                let Some(fenced) = n.fenced.as_mut() else { return };
                let Some(copy) = n.copies.get(&vmid) else {
                    return fenced.holder.report(at, vmid, Report::Gone);
                };
                fenced.jobs.insert(vmid, job);
                let life = fenced.life;
                // QEMU carries out its commands in their order.
                let done = (now + takes).max(copy.cont_at + Duration::from_millis(1));
                self.at(done, Event::Job { node, life, vmid, job });
            }
            HolderCommand::Reset { .. } if self.plan.plant == Plant::NoReset => {}
            HolderCommand::Reset { unverified } => {
                self.note(|| format!("n{}: reset because of {unverified:?}", node + 1));
                self.tell(Kind::SelfFence, None, Some(node), Some("reset".to_owned()));
                self.reset(node);
            }
            HolderCommand::FeedWatchdog { .. } if self.plan.plant == Plant::NoReset => {}
            HolderCommand::FeedWatchdog { timeout } => {
                let factor = if self.plan.plant == Plant::SlowWatchdog { 4 } else { 1 };
                self.feed(node, timeout * factor);
            }
            HolderCommand::Cont { .. } => {}
        }
    }

    fn feed(&mut self, node: usize, timeout: Duration) {
        let n = &mut self.nodes[node];
        if n.on {
            n.watchdog = Some(self.now + timeout);
            let boots = n.boots;
            self.after(timeout, Event::Watchdog { node, boots });
        }
    }

    fn made_safe(&mut self, node: usize, life: u64, vmid: Vmid, job: u64) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let at = n.clock(now);
        let Some(fenced) = n.fenced.as_mut().filter(|f| f.life == life && f.jobs.get(&vmid) == Some(&job))
        else {
            return;
        };
        let report = match n.copies.get_mut(&vmid) {
            None => Report::Gone,
            // It answers nothing, so nothing is reported until it does.
            Some(copy) if copy.hung => {
                return self.after(Duration::from_millis(500), Event::Job { node, life, vmid, job });
            }
            Some(copy) => {
                (copy.running, copy.frozen) = (false, true);
                n.record.entry(vmid).and_modify(|entry| entry.1 = true);
                Report::Safe
            }
        };
        fenced.holder.report(at, vmid, report);
        self.note(|| format!("n{}: guest {vmid}: {report:?}", node + 1));
        if report == Report::Safe {
            self.paused(node, vmid);
        }
        self.fence(node);
    }

    fn paused(&mut self, node: usize, vmid: Vmid) {
        let first = !std::mem::replace(&mut self.nodes[node].fenced_itself, true);
        if first {
            self.tell(Kind::SelfFence, None, Some(node), Some("pause".to_owned()));
        }
        if self.nodes[node].copies.get(&vmid).is_some_and(|c| c.ran) {
            self.tell_guest(Kind::Pause, vmid, node);
        }
    }

    /// A guest's process was started, with stopped CPUs.
    pub fn add_copy(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        let copy = Copy {
            epoch,
            running: false,
            frozen: false,
            hung: false,
            cont_at: Duration::ZERO,
            ran: false,
            lost: false,
        };
        self.nodes[node].copies.insert(vmid, copy);
    }

    /// Ends a guest's process; `told` is what that is in the story.
    pub fn destroy(&mut self, node: usize, vmid: Vmid, told: Option<Kind>) {
        let Some((ran, lost)) = self.nodes[node].copies.get(&vmid).map(|c| (c.ran, c.lost)) else {
            return self.nodes[node].destroy(self.now, vmid);
        };
        self.nodes[node].destroy(self.now, vmid);
        let told = if lost { Some(Kind::Destroyed) } else { told };
        if let Some(kind) = told.filter(|_| ran) {
            self.tell_guest(kind, vmid, node);
        }
    }

    pub fn count_recovery(&mut self) {
        self.recoveries += 1;
    }

    pub fn daemon(&mut self, node: usize) -> Option<&mut Daemon> {
        self.nodes[node].daemon.as_mut()
    }
}

pub(super) fn new_node(n: usize, name: stead_model::NodeName, rng: &mut ChaCha8Rng) -> Node {
    let uuid = format!("{n:08x}-1111-4111-8111-111111111111").parse().unwrap_or_else(|e| unreachable!("{e}"));
    Node {
        number: n,
        boot: boot_id(n, 1),
        name,
        uuid,
        rate: rng.random_range(990..=1010),
        offset: Duration::from_millis(rng.random_range(1000..1_000_000)),
        on: false,
        paused_until: Duration::ZERO,
        watchdog: None,
        fenced: None,
        record: BTreeMap::new(),
        times: Default::default(),
        daemon: None,
        copies: BTreeMap::new(),
        boots: 0,
        lives: 0,
        applied: 0,
        term: 0,
        lease_ends: Duration::ZERO,
        fenced_itself: false,
    }
}
