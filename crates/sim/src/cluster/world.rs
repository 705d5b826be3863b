//! Virtual time, the network, and what happens on a machine.

use super::config::{Config, Edit};
use super::consensus::Conf;
use super::daemon::{Daemon, Msg};
use super::dice::{Dice, Stream};
use super::modelled::Round;
use super::node::{Node, boot_id};
use super::real::{Real, Turn};
use super::scene::Scene;
use super::script::{self, Act, Ambush};
use super::store::{Store, Tree, Txn};
use super::tasks::Task;
use super::watch::Watch;
use super::{Cut, Plan, invariants};
use crate::conf::panicked;
use crate::scenario::{Failing, Kind};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stead_ha::ManagerState;
use stead_membership::Outcome as Granted;
use stead_membership::voters::MAX_VOTERS;
use stead_model::{Epoch, NodeName, NodeState, Ownership, ServiceId, StorageId, Vmid};

/// How often it is looked whether a process answers again.
const HUNG: Duration = Duration::from_millis(500);

/// In a cluster of more nodes than this not all vote.
const ALL_VOTE: usize = 9;

/// For how long all must be well, looked at so often, until a cluster counts as healed.
const WELL: (u32, Duration) = (5, Duration::from_secs(1));

/// What came of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The first invariant that was broken.
    pub broken: Option<Breach>,
    /// What happened, line by line; empty unless it was asked for.
    pub story: Vec<String>,
    /// Acts that were carried out, by their numbers.
    pub acts: Vec<usize>,
    /// The time that was simulated.
    pub time: Duration,
    /// Events in all: two runs of a seed that differ have different ones.
    pub events: u64,
    /// Recoveries that were committed.
    pub recoveries: u32,
    /// Machines that were reset by fencing.
    pub resets: u32,
    /// Guests that went on after a pause.
    pub thaws: u32,
    /// Guests that moved while they ran.
    pub moves: u32,
    /// Nodes that their fence devices have confirmed to be off.
    pub offs: u32,
}

/// An invariant that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Its name.
    pub invariant: &'static str,
    /// When.
    pub at: Duration,
    /// How.
    pub how: String,
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.invariant, self.at.as_secs_f64(), self.how)
    }
}

/// Runs one history.
pub fn run(seed: u64, plan: &Plan) -> Outcome {
    replay(seed, plan, &Cut::default(), false)
}

/// Runs what a cut leaves of a history, and tells it if that is asked for.
pub fn replay(seed: u64, plan: &Plan, cut: &Cut, tells: bool) -> Outcome {
    let mut world = World::new(seed, *plan, cut);
    world.tells = tells;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        world.start();
        world.run();
    }));
    if let Err(panic) = ended {
        world.breaks("panic", panicked(panic.as_ref()));
    }
    world.outcome()
}

/// A call of the daemon's to its fence process that is answered later.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Renew {
        nonce: u64,
        outcome: Granted,
    },
    /// Hold to the lease granted last alone. Then the mark of that revision of the node's record is to go.
    Shorten {
        revision: u64,
        most: Duration,
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
    /// A daemon of that life that waits for a restart lease waits no longer.
    Restarts {
        node: usize,
        life: u64,
    },
    StartDaemon {
        node: usize,
        boots: u64,
    },
    /// An act, by its number.
    Act(usize),
    /// Users' changes that wait for a leader.
    Edits,
    /// A round was confirmed whose proposal hung in the store.
    Commit {
        node: usize,
        life: u64,
        term: u64,
        round: Box<Round>,
    },
    /// What a node must do before it enters is done.
    Enters {
        node: usize,
        life: u64,
        txn: Txn,
    },
    /// A guest that was to shut down has done so.
    Stopping {
        node: usize,
        life: u64,
        /// Under which epoch it was begun.
        begun: Epoch,
        command: Box<stead_ha::AgentCommand>,
    },
    /// QEMU has sent a guest's state, or has given up.
    Sent {
        node: usize,
        boots: u64,
        vmid: Vmid,
        sending: u64,
        life: u64,
    },
    /// The daemon learns of it.
    Streamed {
        node: usize,
        life: u64,
        vmid: Vmid,
        ok: bool,
    },
    /// A fence agent goes on.
    Agent {
        order: u64,
        does: super::power::Does,
    },
    /// Somebody turns a machine on whose outlets are off.
    Restore {
        node: usize,
    },
    /// The cluster heals: is all well?
    Look,
    /// A daemon's driver of the real consensus goes on.
    Driver {
        node: usize,
        life: u64,
        turn: Turn,
    },
}

#[derive(Clone)]
pub(super) struct World {
    pub plan: Plan,
    pub dice: Dice,
    pub now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    pub next: u64,
    pub nodes: Vec<Node>,
    indexes: HashMap<NodeName, usize>,
    /// The first so many nodes vote.
    pub voters: usize,
    pub watch: Watch,
    pub store: Store,
    /// The real consensus, if that is to keep the configuration.
    pub real: Option<Box<Real>>,
    /// Links that are cut: from, to.
    pub cut: Vec<Vec<bool>>,
    /// Messages lost, in a thousand.
    pub loss: u32,
    /// Messages that are very late, in a thousand.
    pub late: u32,
    /// Messages that are sent twice, in a thousand.
    pub twice: u32,
    /// Until when proposals hang.
    pub stalls: Duration,
    /// What befalls the leader, and at which commit from now.
    pub ambush: Option<(u32, Ambush)>,
    pub healing: bool,
    /// How often all was well in a row.
    well: u32,
    broken: Option<Breach>,
    pub tells: bool,
    story: Vec<String>,
    script: Vec<(Duration, Act)>,
    acts: Vec<usize>,
    events: u64,
    pub recoveries: u32,
    pub resets: u32,
    pub thaws: u32,
    pub moves: u32,
    pub offs: u32,
    /// Users' changes that wait for a leader.
    pub edits: VecDeque<Edit>,
    /// How guests fail by themselves.
    pub failing: BTreeMap<Vmid, Failing>,
    /// Moves that the manager has ordered, with the epoch under which the guest was then.
    pub ordered: BTreeSet<(ServiceId, Epoch, NodeName)>,
    /// Starts that have failed: of a service, in a state by its number, in a life of a daemon.
    pub failed_starts: BTreeMap<(ServiceId, u64, u64), u32>,
    /// Services that were given up, and are disabled for a moment to be started again.
    pub helped: BTreeSet<ServiceId>,
    /// What fence agents have under way.
    pub orders: BTreeMap<u64, super::power::Order>,
    /// What each guest has its disks on.
    pub disks_of_all: Arc<BTreeMap<StorageId, stead_ha::Use>>,
    /// The scenario that is played, if it is one.
    pub scene: Option<Scene>,
}

impl World {
    fn new(seed: u64, mut plan: Plan, cut: &Cut) -> Self {
        let (mut script, mut options, outside) = script::draw(seed, &plan);
        let devices = super::power::draw(seed, &plan, &mut script);
        super::storage::draw(seed, &plan, &mut script, &mut options);
        (plan.nodes, plan.guests) = (cut.nodes.unwrap_or(plan.nodes), cut.guests.unwrap_or(plan.guests));
        plan.calm |= cut.calm;
        let mut dice = Dice::new(seed, plan.nodes);
        let nodes: Vec<Node> =
            (0..plan.nodes).map(|n| new_node(n + 1, script::node(n), &plan, &mut dice)).collect();
        let own = |i: u32| {
            let sid = script::guest(i);
            let owner = nodes[i as usize % nodes.len()].name.clone();
            let own = Ownership {
                kind: sid.kind,
                owner,
                epoch: Epoch(1),
                armed: false,
                running: outside.contains(&i),
                recovered: false,
            };
            (sid.vmid, own)
        };
        let owners = (0..plan.guests).map(own).collect();
        let under_ha = (0..plan.guests).filter(|i| !outside.contains(i)).map(script::guest);
        let config = Config { options, ..Config::with_defaults(under_ha) };
        let tree = Tree::new(owners, ManagerState::default(), config);
        let mut world = Self::with(dice, plan, nodes, tree);
        world.nodes.iter_mut().zip(devices).for_each(|(node, device)| node.device = device);
        for (number, (at, act)) in script.iter_mut().enumerate() {
            if cut.leaves(number) && act.concerns(plan.nodes, plan.guests) {
                world.at(*at, Event::Act(number));
            }
        }
        world.script = script;
        if plan.conf == Conf::Real {
            world.make_real(seed);
        }
        world
    }

    /// A world of these nodes, all of them members.
    pub fn with(dice: Dice, plan: Plan, nodes: Vec<Node>, mut tree: Tree) -> Self {
        let member = |n: &Node| (n.name.clone(), NodeState::Member { boot: n.boot.clone() });
        tree.nodes = Rc::new(nodes.iter().map(member).collect());
        let store = Store::new(tree);
        Self {
            dice,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            next: 0,
            cut: vec![vec![false; nodes.len()]; nodes.len()],
            indexes: nodes.iter().enumerate().map(|(i, n)| (n.name.clone(), i)).collect(),
            voters: if nodes.len() > ALL_VOTE { MAX_VOTERS } else { nodes.len() },
            watch: Watch::default(),
            nodes,
            store,
            real: None,
            loss: 0,
            late: 0,
            twice: 0,
            stalls: Duration::ZERO,
            ambush: None,
            healing: false,
            well: 0,
            broken: None,
            tells: false,
            story: vec![],
            script: vec![],
            acts: vec![],
            events: 0,
            recoveries: 0,
            resets: 0,
            thaws: 0,
            moves: 0,
            offs: 0,
            edits: VecDeque::new(),
            failing: BTreeMap::new(),
            ordered: BTreeSet::new(),
            failed_starts: BTreeMap::new(),
            helped: BTreeSet::new(),
            orders: BTreeMap::new(),
            disks_of_all: Arc::new([(super::storage::id(), stead_ha::Use::Disk)].into()),
            scene: None,
            plan,
        }
    }

    fn start(&mut self) {
        self.note_beginning();
        for node in 0..self.nodes.len() {
            self.power_on(node);
        }
        // Who is not under HA yet runs already.
        let tree = self.store.at(0);
        for (vmid, own) in tree.owners.iter().filter(|(_, o)| o.running) {
            self.appear(*vmid, &own.owner);
        }
    }

    fn note_beginning(&mut self) {
        let tree = self.store.at(0);
        let (plan, options) = (self.plan, tree.config.options);
        self.note(|| {
            let (nodes, guests) = (plan.nodes, plan.guests);
            let (policy, crs) = (options.shutdown_policy.as_str(), options.crs.mode);
            format!(
                "{nodes} nodes, {guests} guests; shutdown policy {policy}, placement {crs:?}, profile {}",
                tree.profile
            )
        });
        for (vmid, own) in tree.owners.iter().filter(|(_, o)| o.running) {
            self.note(|| format!("guest {vmid} runs on {}, and is not under HA", own.owner));
        }
    }

    /// Does whatever is due before that moment, one after the other, the scenario's steps before all else of their moment;
    /// and checks the invariants after each. `stop` may end it earlier; then this says so.
    pub fn run_before(&mut self, end: Duration, stop: impl Fn(&Self) -> bool) -> bool {
        loop {
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let step = self.next_step();
            let Some(at) = event.into_iter().chain(step).min().filter(|at| *at < end) else { break };
            self.now = at;
            let mut place = None;
            if step == Some(at) {
                self.play_step();
            } else if let Some((_, event)) = self.queue.pop_first() {
                place = event.place();
                self.handle(event);
            }
            self.events += 1;
            if self.broken.is_none() {
                self.check_after(place);
            }
            if stop(self) {
                return true;
            }
        }
        self.now = end;
        false
    }

    /// The invariant that was broken first, if one was.
    pub fn broken_by(&self) -> Option<String> {
        self.broken.as_ref().map(ToString::to_string)
    }

    fn run(&mut self) {
        let (faults, end) = (self.plan.faults, self.plan.faults + self.plan.healing);
        while let Some(next) = self.queue.first_entry() {
            let at = next.key().0;
            if at > faults && !self.healing {
                self.now = faults;
                if self.plan.healing.is_zero() {
                    return;
                }
                self.heal();
                self.after(WELL.1, Event::Look);
                // What that begins may come before what was next.
                continue;
            }
            if at > end {
                break;
            }
            let event = next.remove();
            self.now = at;
            self.events += 1;
            let place = event.place();
            self.handle(event);
            self.check_after(place);
            if self.broken.is_some() || self.well >= WELL.0 {
                return;
            }
        }
        self.now = end;
        if let Some(how) = invariants::healed::check(self) {
            self.breaks("healed", how);
        }
    }

    /// All faults have ended: whether all is well.
    fn look(&mut self) {
        self.well = if invariants::healed::check(self).is_none() { self.well + 1 } else { 0 };
        self.after(WELL.1, Event::Look);
        self.help_up();
    }

    fn outcome(self) -> Outcome {
        Outcome {
            broken: self.broken,
            story: self.story,
            acts: self.acts,
            time: self.now,
            events: self.events,
            recoveries: self.recoveries,
            resets: self.resets,
            thaws: self.thaws,
            moves: self.moves,
            offs: self.offs,
        }
    }

    /// An invariant is broken. The first one counts.
    pub fn breaks(&mut self, invariant: &'static str, how: String) {
        if self.broken.is_none() {
            self.broken = Some(Breach { invariant, at: self.now, how });
        }
    }

    /// Tells what happens, if somebody wants to know.
    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.tells {
            let line = format!("{:>8.3}  {}", self.now.as_secs_f64(), text());
            self.story.push(line);
        }
    }

    /// What a daemon may find committed that was not before.
    pub fn committed(&mut self, txn: &Txn) {
        let before = self.store.before();
        for (name, check) in invariants::OF_COMMITS {
            if let Some(how) = check(self, &before, txn) {
                self.breaks(name, how);
            }
        }
        self.tell_commit(txn, &before);
        let guests = before.config.resources.len();
        self.store.trim(guests, self.nodes.iter().map(|n| n.applied));
    }

    /// A node's number.
    pub fn index(&self, name: &NodeName) -> Option<usize> {
        self.indexes.get(name).copied()
    }

    pub fn at(&mut self, at: Duration, event: Event) {
        self.next += 1;
        self.queue.insert((at.max(self.now), self.next), event);
    }

    pub fn after(&mut self, time: Duration, event: Event) {
        self.at(self.now + time, event);
    }

    /// Milliseconds between two bounds; the lower one where nothing is left to chance.
    pub fn ms(&mut self, node: usize, from: u64, to: u64) -> Duration {
        self.span(Stream::Node(node), from, to)
    }

    fn span(&mut self, stream: Stream, from: u64, to: u64) -> Duration {
        if self.plan.calm {
            return Duration::from_millis(from);
        }
        Duration::from_micros(from * 1000 + self.dice.draw(stream) % ((to - from) * 1000 + 1))
    }

    /// Whether it happens, by that chance in a thousand.
    pub fn chance(&mut self, node: usize, thousandth: u32) -> bool {
        self.hits(Stream::Node(node), thousandth)
    }

    fn hits(&mut self, stream: Stream, thousandth: u32) -> bool {
        thousandth > 0 && !self.plan.calm && self.dice.draw(stream) % 1000 < u64::from(thousandth)
    }

    /// Sends, unless the link is cut or the message lost.
    pub fn send(&mut self, from: usize, to: usize, msg: Msg) {
        if from == to {
            return self.after(Duration::from_micros(50), Event::Deliver { from, to, msg: Box::new(msg) });
        }
        let link = Stream::Link(from, to);
        if self.cut[from][to] || self.hits(link, self.loss) {
            return;
        }
        let copies = if self.hits(link, self.twice) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.span(link, 1, 4);
            let late = if self.hits(link, self.late) { self.span(link, 50, 8000) } else { Duration::ZERO };
            self.after(delay + late, Event::Deliver { from, to, msg: Box::new(msg.clone()) });
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
                    let period = self.ms(node, 40, 60);
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
            Event::Act(number) => self.play_act(number),
            Event::Look => self.look(),
            Event::Enters { node, life, txn } => match self.daemon_waits(node, life) {
                Some(later) => self.at(later, Event::Enters { node, life, txn }),
                None => self.enters(node, life, txn),
            },
            Event::Stopping { node, life, begun, command } => match self.daemon_waits(node, life) {
                Some(later) => self.at(later, Event::Stopping { node, life, begun, command }),
                None if self.daemon_is(node, life) => self.stop_now(node, *command, begun),
                None => {}
            },
            Event::Streamed { node, life, vmid, ok } => match self.daemon_waits(node, life) {
                Some(later) => self.at(later, Event::Streamed { node, life, vmid, ok }),
                None if self.daemon_is(node, life) => self.streamed(node, vmid, ok),
                None => {}
            },
            Event::Commit { node, life, term, round } => {
                if self.daemon_is(node, life) && self.leads(node) == Some(term) {
                    self.conclude(node, term, *round);
                }
            }
            Event::Edits => self.commit_edits(),
            Event::Driver { node, life, turn } => match self.daemon_waits(node, life) {
                Some(later) => self.at(later, Event::Driver { node, life, turn }),
                None if self.daemon_is(node, life) => self.turn(node, turn),
                None => {}
            },
            Event::PowerOn { node } if !self.nodes[node].on && self.nodes[node].is_fed() => {
                self.power_on(node);
            }
            // Who turns it on sees that its outlets are off, and turns those on too.
            Event::PowerOn { node } if self.healing && !self.nodes[node].on => self.restore(node),
            Event::PowerOn { .. } => {}
            Event::Agent { order, does } => self.agent_goes_on(order, does),
            Event::Restore { node } => self.restore(node),
            Event::Restarts { node, life } => self.restarts(node, life),
            Event::StartDaemon { node, boots } => {
                if self.is_boot(node, boots) && self.nodes[node].daemon.is_none() {
                    self.conf_starts(node);
                    self.nodes[node].start_daemon(self.now, &self.store);
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
                let stands = |c: &&mut super::node::Copy| c.epoch == epoch && !c.frozen;
                let Some(copy) = copies.get_mut(&vmid).filter(stands) else { return };
                if copy.hung && thaw {
                    return self.thaw_failed(node, vmid);
                }
                if copy.hung {
                    // QEMU carries it out when it answers again.
                    copy.cont_at = self.now + HUNG;
                    return self.after(HUNG, Event::Cont { node, boots, vmid, epoch, thaw });
                }
                let began = !copy.running;
                let first = began && !copy.ran;
                copy.ran |= began;
                copy.running = true;
                if first {
                    self.tell_guest(Kind::Start, vmid, node);
                } else if began {
                    self.tell_guest(Kind::Thaw, vmid, node);
                }
                self.arrived(node, vmid);
            }
            Event::Sent { node, boots, vmid, sending, life } if self.is_boot(node, boots) => {
                self.sent(node, vmid, (sending, life));
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

    fn play_act(&mut self, number: usize) {
        let Some((_, act)) = self.script.get(number).cloned() else { return };
        self.acts.push(number);
        self.note(|| format!("* {act}"));
        self.act(act);
    }

    pub fn is_boot(&self, node: usize, boots: u64) -> bool {
        self.nodes[node].on && self.nodes[node].boots == boots
    }

    pub fn daemon_is(&self, node: usize, life: u64) -> bool {
        self.nodes[node].daemon.as_ref().is_some_and(|d| d.life == life)
    }

    /// Until when the daemon of that life stands still, if it does.
    fn daemon_waits(&self, node: usize, life: u64) -> Option<Duration> {
        let n = &self.nodes[node];
        let until = n.daemon.as_ref().filter(|d| d.life == life)?.paused_until.max(n.paused_until);
        (until > self.now).then_some(until)
    }

    pub fn fenced_waits(&self, node: usize, life: u64) -> Option<Duration> {
        let n = &self.nodes[node];
        let until = n.fenced.as_ref().filter(|f| f.life == life)?.paused_until.max(n.paused_until);
        (until > self.now).then_some(until)
    }

    pub fn daemon(&mut self, node: usize) -> Option<&mut Daemon> {
        self.nodes[node].daemon.as_mut()
    }
}

pub(super) fn new_node(n: usize, name: NodeName, plan: &Plan, dice: &mut Dice) -> Node {
    let uuid = format!("{n:08x}-1111-4111-8111-111111111111").parse().unwrap_or_else(|e| unreachable!("{e}"));
    let stream = Stream::Node(n - 1);
    let (rate, offset) = (dice.draw(stream), dice.draw(stream));
    let drift = if plan.calm { 0 } else { u64::from(plan.drift) };
    let rate = 1000 - drift + rate % (2 * drift + 1);
    Node {
        number: n,
        boot: boot_id(n, 1),
        name,
        uuid,
        rate: u32::try_from(rate).unwrap_or(1000),
        offset: Duration::from_millis(1000 + offset % 1_000_000),
        on: false,
        device: None,
        paused_until: Duration::ZERO,
        watchdog: None,
        fenced: None,
        record: BTreeMap::new(),
        times: Default::default(),
        daemon: None,
        disks: Default::default(),
        copies: BTreeMap::new(),
        boots: 0,
        lives: 0,
        applied: 0,
        term: 0,
        lease_ends: Duration::ZERO,
        fenced_itself: false,
    }
}
