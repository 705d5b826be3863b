//! Moves of a VM against a small model of two nodes: the plan of a move, what is decided of a process, and what the configuration says
//! are the real ones; processes, commits and daemons are a few fields. Daemons and nodes end anywhere, commits come late or never.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use stead_driver::guest::RunState;
use stead_guest::copy::{Claim, claim};
use stead_guest::migration::{Command, Event, Migration};
use stead_guest::saved;
use stead_guest::snapshots::Memory;
use stead_model::vmconfig::VmConfig;
use stead_model::{Epoch, GuestKind, NodeName, Ownership, Vmid, VolumeId};
use stead_ops::guest::reconcile::{Seen, Step, decide};

/// How something goes.
#[derive(Debug, Clone, Copy)]
enum Luck {
    Well,
    Fails,
    /// It is done, or will be, and nobody hears of it.
    Unheard,
    /// It is not, and nobody hears of it.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Live,
    /// Disks go along.
    WithDisks,
    /// What is left of its memory is fetched.
    Fetched,
    Quick,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Begin(How),
    Suspend,
    Start(usize),
    /// The plan's next command is carried out.
    Next(Luck),
    Cancel,
    /// A proposal that was on its way comes to the configuration.
    Arrives,
    /// A process that reads its memory has read it.
    Reads(usize),
    /// The same, and nobody hears whether it is recorded that the memory on disk is of no use any more.
    ReadsUnheard(usize),
    DaemonEnds(usize),
    DaemonBegins(usize),
    Off(usize),
    Reconciles(usize),
    /// A copy that waits looks at the record.
    Looks(usize),
}

#[derive(Debug, Clone)]
struct Process {
    state: RunState,
    epoch: Epoch,
}

#[derive(Debug, Default)]
struct Node {
    is_up: bool,
    process: Option<Process>,
    /// Its daemon waits for a process that reads this memory.
    loading: Option<VolumeId>,
    /// Its daemon watches the record for a copy that waits.
    follows: bool,
}

/// A move as its source's daemon carries it out.
#[derive(Debug)]
struct Moving {
    plan: Migration,
    todo: VecDeque<Command>,
    source: usize,
    how: How,
    /// What was read when it was begun, with its lock.
    seen: u64,
}

#[derive(Debug, Clone)]
struct Proposal {
    seen: u64,
    own: Ownership,
    config: VmConfig,
}

#[derive(Debug)]
struct World {
    own: Ownership,
    config: VmConfig,
    /// Raised by every commit.
    revision: u64,
    /// Volumes that are recorded as nobody's, by node.
    loose: [BTreeSet<VolumeId>; 2],
    on_its_way: Vec<Proposal>,
    nodes: [Node; 2],
    moving: Option<Moving>,
    /// Whose process has memory that the other one's fetches.
    fetched_from: Option<usize>,
    /// Volumes that there are, with how often the guest had been continued when they were whole.
    volumes: BTreeMap<VolumeId, Option<u32>>,
    /// How often CPUs have begun to run.
    continued: u32,
    made: u32,
}

fn node(n: usize) -> NodeName {
    ["n1", "n2"][n].parse().unwrap()
}

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

impl World {
    fn new() -> Self {
        let own = Ownership {
            kind: GuestKind::Qemu,
            owner: node(0),
            epoch: Epoch(7),
            armed: false,
            running: true,
            recovered: false,
        };
        let process = Process { state: RunState::Running, epoch: Epoch(7) };
        Self {
            own,
            config: VmConfig::parse("memory: 32\n").unwrap(),
            revision: 1,
            loose: Default::default(),
            on_its_way: vec![],
            nodes: [
                Node { is_up: true, process: Some(process), ..Node::default() },
                Node { is_up: true, ..Node::default() },
            ],
            moving: None,
            fetched_from: None,
            volumes: BTreeMap::new(),
            continued: 1,
            made: 0,
        }
    }

    fn owner(&self) -> usize {
        usize::from(self.own.owner != node(0))
    }

    fn state(&self, n: usize) -> Option<RunState> {
        self.nodes[n].process.as_ref().map(|p| p.state)
    }

    fn set(&mut self, n: usize, state: RunState) {
        if state == RunState::Running && self.state(n) != Some(RunState::Running) {
            self.continued += 1;
        }
        self.nodes[n].process.as_mut().unwrap().state = state;
    }

    fn commit(&mut self, n: usize, change: impl FnOnce(&mut Ownership, &mut VmConfig)) {
        let before = self.config.clone();
        change(&mut self.own, &mut self.config);
        self.revision += 1;
        // What a commit takes from the configuration it records as nobody's, where it is made.
        if let Some(m) = saved::memory(&before)
            && saved::memory(&self.config).is_none()
        {
            self.loose[n].insert(m.volume);
        }
    }

    fn propose(&mut self, proposal: Proposal) -> bool {
        let fits = proposal.seen == self.revision;
        if fits {
            // Memory on disk is given up for a process that has it.
            let owner = usize::from(proposal.own.owner != node(0));
            let is_given_up =
                saved::memory(&self.config).is_some() && saved::memory(&proposal.config).is_none();
            assert!(!is_given_up || self.nodes[owner].process.is_some(), "its memory is lost: {self:?}");
            if let Some(memory) = saved::memory(&self.config).filter(|_| is_given_up) {
                self.loose[owner].insert(memory.volume);
            }
            (self.own, self.config) = (proposal.own, proposal.config);
            self.revision += 1;
        }
        fits
    }

    /// Names a place for memory, with this lock, and makes it then.
    fn make_room(&mut self, n: usize, lock: &str) {
        self.made += 1;
        let volume: VolumeId = format!("shared:100/vm-100-state-suspend-{}.raw", self.made).parse().unwrap();
        let memory = Memory { volume: volume.clone(), machine: "pc".into(), accel: "tcg".into(), cpu: None };
        let lock = lock.to_owned();
        self.commit(n, |_, config| {
            saved::begin(config, &memory).unwrap();
            config.current.set("lock", &lock).unwrap();
        });
        self.volumes.insert(volume, None);
    }

    fn save(&mut self, n: usize) {
        let volume = saved::memory(&self.config).unwrap().volume;
        self.volumes.insert(volume, Some(self.continued));
        self.set(n, RunState::Postmigrate);
    }

    fn take_back(&mut self, n: usize) {
        self.commit(n, |_, config| {
            config.current.remove("lock");
            saved::forget(config);
        });
        self.free_loose(n);
    }

    fn unsave(&mut self, n: usize) {
        self.take_back(n);
        if self.nodes[n].process.is_some() {
            self.set(n, RunState::Running);
        }
    }

    fn free_loose(&mut self, n: usize) {
        let named: Vec<_> = self.config.all_volumes();
        for volume in std::mem::take(&mut self.loose[n]) {
            if !named.contains(&volume) {
                self.volumes.remove(&volume);
            }
        }
    }

    fn end_copy(&mut self, n: usize) {
        if self.fetched_from == Some(1 - n) {
            self.fetched_from = None;
        }
        self.nodes[n].process = None;
        self.nodes[n].loading = None;
        self.nodes[n].follows = false;
    }

    /// A process is made that reads the memory on disk.
    fn start_saved(&mut self, n: usize) {
        let volume = saved::memory(&self.config).unwrap().volume;
        let epoch = self.own.epoch;
        self.commit(n, |own, _| own.running = true);
        self.nodes[n].process = Some(Process { state: RunState::Inmigrate, epoch });
        self.nodes[n].loading = Some(volume);
    }

    fn begin(&mut self, how: How) {
        let quick = how == How::Quick;
        let source = self.owner();
        let is_ready = self.nodes[source].is_up && self.config.current.lock().is_none();
        if self.moving.is_some() || !is_ready || self.state(source) != Some(RunState::Running) {
            return;
        }
        if quick {
            self.make_room(source, "migrate");
        } else {
            self.commit(source, |_, config| config.current.set("lock", "migrate").unwrap());
        }
        let (plan, first) = Migration::begin(vmid(), node(1 - source), self.own.epoch, how == How::WithDisks);
        self.moving = Some(Moving { plan, todo: VecDeque::from([first]), source, how, seen: self.revision });
    }

    fn hears(&mut self, event: Event) {
        if let Some(moving) = &mut self.moving {
            let more = moving.plan.on(event);
            moving.todo.extend(more);
        }
    }

    fn next(&mut self, luck: Luck) {
        let Some(moving) = &mut self.moving else { return };
        let Some(command) = moving.todo.pop_front() else { return };
        let (source, how, epoch, seen) = (moving.source, moving.how, moving.plan.epoch, moving.seen);
        let quick = how == How::Quick;
        let event = match command {
            Command::Finish(result) => {
                self.moving = None;
                if result.is_err() && !quick && self.owner() == source && self.own.epoch == epoch {
                    self.commit(source, |_, config| drop(config.current.remove("lock")));
                }
                return;
            }
            Command::EndSource => {
                self.end_copy(source);
                return;
            }
            // The copies of its disks are jobs of its process, which has no state for them.
            Command::EndMirrors => return,
            command if quick => self.next_quick(source, &command, luck, seen),
            command => self.next_live(source, &command, luck, (seen, how)),
        };
        self.hears(event);
    }

    fn handover(&mut self, source: usize, quick: bool, luck: Luck, (to, seen): (Epoch, u64)) -> Event {
        let mut config = self.config.clone();
        match quick {
            true => config.current.set("lock", saved::SAVED).unwrap(),
            false => drop(config.current.remove("lock")),
        }
        let own = Ownership { owner: node(1 - source), epoch: to, running: true, ..self.own.clone() };
        let proposal = Proposal { seen, own, config };
        match luck {
            Luck::Well | Luck::Fails if self.propose(proposal.clone()) => Event::Committed,
            Luck::Well | Luck::Fails if self.own.owner == node(1 - source) && self.own.epoch == to => {
                Event::Committed
            }
            Luck::Well | Luck::Fails if self.own.owner == node(source) && self.own.epoch.next() == to => {
                Event::RefusedStillOurs("changed".into())
            }
            Luck::Well | Luck::Fails => Event::RefusedNotOurs("another's".into()),
            Luck::Unheard => {
                self.on_its_way.push(proposal);
                Event::Unknown("late".into())
            }
            Luck::Lost => Event::Unknown("lost".into()),
        }
    }

    fn next_live(&mut self, source: usize, command: &Command, luck: Luck, (seen, how): (u64, How)) -> Event {
        let (target, failed) = (1 - source, || Event::Failed("broken".into()));
        match *command {
            Command::PrepareTarget { epoch } => {
                let can = self.nodes[target].is_up && self.nodes[target].process.is_none();
                if can && matches!(luck, Luck::Well | Luck::Unheard) {
                    self.nodes[target].process = Some(Process { state: RunState::Inmigrate, epoch });
                    self.nodes[target].follows = true;
                }
                if can && matches!(luck, Luck::Well) { Event::TargetReady } else { failed() }
            }
            Command::Send => {
                let both = self.state(source) == Some(RunState::Running)
                    && self.state(target) == Some(RunState::Inmigrate);
                if !both || !matches!(luck, Luck::Well) {
                    return failed();
                }
                match how {
                    How::Fetched => return Event::NoEnd,
                    How::WithDisks => {
                        self.set(source, RunState::Paused);
                        return Event::Held;
                    }
                    How::Live | How::Quick => {}
                }
                self.sent(source)
            }
            Command::BeginFetching | Command::LetFetch | Command::FollowFetching => {
                self.next_fetching(source, command, luck)
            }
            Command::MirrorDisks if matches!(luck, Luck::Well) => Event::DisksInStep,
            // Mirrors of a guest that runs are not ended so.
            Command::SettleDisks
                if matches!(luck, Luck::Well) && self.state(source) == Some(RunState::Paused) =>
            {
                Event::DisksSettled
            }
            Command::SendRest if matches!(luck, Luck::Well) => {
                let both = self.state(source) == Some(RunState::Paused)
                    && self.state(target) == Some(RunState::Inmigrate);
                if both { self.sent(source) } else { failed() }
            }
            Command::MirrorDisks | Command::SettleDisks | Command::SendRest => failed(),
            Command::CancelSending => {
                self.cancelled(source);
                failed()
            }
            Command::ProposeHandover { to, .. } => self.handover(source, false, luck, (to, seen)),
            Command::AskTargetToRun => {
                if matches!(luck, Luck::Well | Luck::Unheard) && self.nodes[target].process.is_some() {
                    self.nodes[target].follows |= self.nodes[target].is_up;
                    self.looks(target);
                }
                match luck {
                    Luck::Well if self.state(target) == Some(RunState::Running) => Event::TargetRuns,
                    _ => Event::TargetSilent("silent".into()),
                }
            }
            Command::EndTarget => {
                if matches!(luck, Luck::Well | Luck::Unheard) && self.nodes[target].is_up {
                    self.end_incoming(target);
                }
                Event::TargetEnded
            }
            Command::ContinueSource => self.continue_source(source),
            Command::EndSource | Command::EndMirrors | Command::Finish(_) => unreachable!(),
        }
    }

    fn next_fetching(&mut self, source: usize, command: &Command, luck: Luck) -> Event {
        let (target, failed) = (1 - source, || Event::Failed("broken".into()));
        let states = (self.state(source), self.state(target));
        match (command, states) {
            (Command::BeginFetching, (Some(RunState::Running), _)) => {
                // However it goes, it may stand.
                if !matches!(luck, Luck::Lost) {
                    self.set(source, RunState::Postmigrate);
                }
                if matches!(luck, Luck::Well) { Event::Standing } else { failed() }
            }
            (Command::LetFetch, (Some(RunState::Postmigrate), Some(RunState::Inmigrate))) => match luck {
                Luck::Well | Luck::Unheard => {
                    self.set(source, RunState::Serving);
                    self.set(target, RunState::Received);
                    self.fetched_from = Some(source);
                    if matches!(luck, Luck::Well) { Event::Fetching } else { failed() }
                }
                Luck::Fails | Luck::Lost => {
                    self.end_copy(target);
                    failed()
                }
            },
            (Command::FollowFetching, (Some(RunState::Serving), Some(_))) if matches!(luck, Luck::Well) => {
                self.fetched_from = None;
                self.set(source, RunState::Postmigrate);
                Event::Completed
            }
            (Command::FollowFetching, _) => Event::Lost("broken".into()),
            _ => failed(),
        }
    }

    /// A copy whose memory is lost in part is ended by its own node.
    fn ends_if_torn(&mut self, n: usize) {
        let is_torn = self.fetched_from == Some(1 - n);
        // What was to come after the commit comes no more.
        let waits = self.state(n) == Some(RunState::Inmigrate) && self.nodes[n].loading.is_none();
        let in_vain = waits
            && self.own.running
            && self.nodes[n].process.as_ref().is_some_and(|p| p.epoch == self.own.epoch)
            && self.owner() == n
            && !saved::is_saved(&self.config);
        if (is_torn || in_vain) && self.nodes[1 - n].process.is_none() {
            self.end_copy(n);
        }
    }

    fn sent(&mut self, source: usize) -> Event {
        self.set(source, RunState::Postmigrate);
        self.set(1 - source, RunState::Received);
        Event::Completed
    }

    /// What is held goes on where it is.
    fn cancelled(&mut self, source: usize) {
        if self.state(source) == Some(RunState::Paused) {
            self.set(source, RunState::Running);
        }
    }

    fn continue_source(&mut self, source: usize) -> Event {
        if self.nodes[source].process.is_none() {
            return Event::SourceStuck("it has ended".into());
        }
        self.set(source, RunState::Running);
        Event::SourceRuns
    }

    fn next_quick(&mut self, source: usize, command: &Command, luck: Luck, seen: u64) -> Event {
        let target = 1 - source;
        match *command {
            Command::PrepareTarget { .. } => Event::TargetReady,
            Command::Send if matches!(luck, Luck::Well) && self.state(source) == Some(RunState::Running) => {
                self.save(source);
                Event::Completed
            }
            Command::Send | Command::CancelSending => Event::Failed("broken".into()),
            Command::ProposeHandover { to, .. } => self.handover(source, true, luck, (to, seen)),
            Command::AskTargetToRun => {
                if matches!(luck, Luck::Well | Luck::Unheard) {
                    self.reconciles(target);
                }
                Event::TargetSilent("not seen to go on".into())
            }
            Command::EndTarget => Event::TargetEnded,
            Command::ContinueSource
                if self.owner() != source || self.own.epoch.next() != self.next_epoch() =>
            {
                Event::SourceStuck("another's".into())
            }
            Command::ContinueSource => {
                self.unsave(source);
                self.continue_source(source)
            }
            Command::MirrorDisks
            | Command::SettleDisks
            | Command::SendRest
            | Command::BeginFetching
            | Command::LetFetch
            | Command::FollowFetching
            | Command::EndMirrors
            | Command::EndSource
            | Command::Finish(_) => unreachable!(),
        }
    }

    fn next_epoch(&self) -> Epoch {
        self.moving.as_ref().map_or(Epoch(0), |m| m.plan.epoch.next())
    }

    /// As the target of a move does with a copy that waits.
    fn looks(&mut self, n: usize) {
        let Some(Process { state, epoch }) = self.nodes[n].process.clone().filter(|_| self.nodes[n].is_up)
        else {
            return;
        };
        if !self.nodes[n].follows {
            return;
        }
        match claim(Some(&self.own), &node(n), epoch) {
            Claim::Owner if saved::is_saved(&self.config) => {
                self.commit(n, |_, _| {});
                self.end_copy(n);
            }
            Claim::Owner if self.own.running && state == RunState::Received => self.set(n, RunState::Running),
            Claim::Heir if self.moving.is_none() => self.end_incoming(n),
            _ => {}
        }
    }

    fn end_incoming(&mut self, n: usize) {
        let Some(epoch) = self.nodes[n].process.as_ref().map(|p| p.epoch) else { return };
        if claim(Some(&self.own), &node(n), epoch) == Claim::Heir {
            self.end_copy(n);
        }
    }

    fn suspends(&mut self) {
        let n = self.owner();
        let is_ready = self.nodes[n].is_up && self.config.current.lock().is_none() && self.moving.is_none();
        if is_ready && self.state(n) == Some(RunState::Running) {
            self.make_room(n, saved::SAVING);
            self.save(n);
            self.commit(n, |own, config| {
                config.current.set("lock", saved::SAVED).unwrap();
                own.running = false;
            });
            self.end_copy(n);
        }
    }

    fn starts(&mut self, n: usize) {
        let is_ready = self.nodes[n].is_up && self.owner() == n && self.moving.is_none();
        if !is_ready || self.nodes[n].process.is_some() {
            return;
        }
        if saved::is_saved(&self.config) {
            self.start_saved(n);
        } else if self.config.current.lock().is_none() {
            let epoch = self.own.epoch;
            self.commit(n, |own, _| own.running = true);
            self.nodes[n].process = Some(Process { state: RunState::Prelaunch, epoch });
            self.set(n, RunState::Running);
        }
    }

    /// The memory is given up by a commit before the CPUs run.
    fn reads(&mut self, n: usize) {
        let Some(volume) = self.nodes[n].loading.take() else { return };
        let when = self.volumes.get(&volume).copied().flatten();
        assert_eq!(when, Some(self.continued), "memory of another time is read: {self:?}");
        self.set(n, RunState::Received);
        if self.nodes[n].is_up {
            self.take_back(n);
            self.set(n, RunState::Running);
        }
    }

    fn reconciles(&mut self, n: usize) {
        if !self.nodes[n].is_up {
            return;
        }
        // Who has it in hand holds the guest's mutex.
        if self.moving.as_ref().is_some_and(|m| m.source == n) || self.nodes[n].loading.is_some() {
            return;
        }
        self.ends_if_torn(n);
        let process = self.nodes[n].process.clone();
        let seen = process.as_ref().map(|p| Seen { state: p.state, epoch: p.epoch, stands: false });
        match decide(seen, Some(&self.own), &node(n), false, true, saved::is_saved(&self.config)) {
            Step::Destroy => {
                if self.owner() == n && saved::is_saved(&self.config) {
                    self.commit(n, |_, _| {});
                }
                self.end_copy(n);
            }
            // It is joined anew, or ended.
            Step::Serve => {
                self.fetched_from = None;
                self.end_copy(n);
            }
            Step::Await => {
                self.nodes[n].follows = true;
                self.looks(n);
            }
            Step::Reclaim => {
                self.take_back(n);
                self.set(n, RunState::Running);
            }
            Step::RecordStopped if saved::is_saved(&self.config) => self.start_saved(n),
            Step::RecordStopped => self.commit(n, |own, _| own.running = false),
            Step::Nothing if self.owner() == n => self.free_void_lock(n),
            Step::Nothing | Step::Arm => {}
        }
        self.free_loose(n);
    }

    fn free_void_lock(&mut self, n: usize) {
        match self.config.current.lock() {
            Some(saved::SAVED) | None => {}
            // A process that reads what its daemon began to read is not known any more.
            _ if self.state(n) == Some(RunState::Inmigrate) => {}
            Some(_) if self.config.current.get("vmstate").is_some() => self.unsave(n),
            Some(_) => {
                self.cancelled(n);
                self.commit(n, |_, config| drop(config.current.remove("lock")));
            }
        }
    }

    fn ends(&mut self, n: usize) {
        self.nodes[n].is_up = false;
        self.nodes[n].follows = false;
        if self.moving.as_ref().is_some_and(|m| m.source == n) {
            self.moving = None;
        }
        // The process goes on reading.
        if self.nodes[n].loading.is_some() {
            self.reads(n);
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Begin(how) => self.begin(how),
            Act::Suspend => self.suspends(),
            Act::Start(n) => self.starts(n),
            Act::Next(luck) => self.next(luck),
            Act::Cancel => self.hears(Event::CancelRequested),
            Act::Arrives => {
                if let Some(proposal) = self.on_its_way.pop() {
                    self.propose(proposal);
                }
            }
            Act::Reads(n) => self.reads(n),
            Act::ReadsUnheard(n) => {
                if self.nodes[n].loading.take().is_some() {
                    self.set(n, RunState::Received);
                    let mut config = self.config.clone();
                    config.current.remove("lock");
                    saved::forget(&mut config);
                    self.on_its_way.push(Proposal { seen: self.revision, own: self.own.clone(), config });
                }
            }
            Act::DaemonEnds(n) => self.ends(n),
            Act::DaemonBegins(n) => self.nodes[n].is_up = true,
            Act::Off(n) => {
                // What is lost with a node's power is lost, whatever is on its way.
                self.on_its_way.clear();
                self.nodes[n].loading = None;
                self.ends(n);
                self.end_copy(n);
            }
            Act::Reconciles(n) => self.reconciles(n),
            Act::Looks(n) => self.looks(n),
        }
    }

    /// What is true at any time.
    fn is_safe(&self) {
        let runs = |n: &usize| self.state(*n) == Some(RunState::Running);
        let running: Vec<usize> = (0..2).filter(runs).collect();
        assert!(running.len() < 2, "it runs twice: {self:?}");
        for n in running {
            let epoch = self.nodes[n].process.as_ref().unwrap().epoch;
            assert_eq!(claim(Some(&self.own), &node(n), epoch), Claim::Owner, "an old copy runs: {self:?}");
        }
        if saved::is_saved(&self.config) {
            let volume = saved::memory(&self.config).unwrap().volume;
            let when = self.volumes.get(&volume).copied().flatten();
            assert_eq!(when, Some(self.continued), "its memory is not on disk: {self:?}");
        }
    }

    /// What is true in the end, once nothing is broken any more.
    fn comes_to_rest(&mut self) {
        while let Some(proposal) = self.on_its_way.pop() {
            self.propose(proposal);
            self.is_safe();
        }
        for _ in 0..12 {
            for _ in 0..8 {
                self.next(Luck::Well);
            }
            for n in 0..2 {
                self.nodes[n].is_up = true;
                self.looks(n);
                self.reads(n);
                self.reconciles(n);
                self.is_safe();
            }
        }
        let (owner, lock) = (self.owner(), self.config.current.lock());
        assert!(self.moving.is_none(), "a move has no end: {self:?}");
        assert!(self.nodes[1 - owner].process.is_none(), "an old copy is left: {self:?}");
        assert_eq!(self.own.running, self.state(owner) == Some(RunState::Running), "{self:?}");
        assert!(lock.is_none() || (lock == Some(saved::SAVED) && !self.own.running), "locked: {self:?}");
        let named: BTreeSet<_> = self.config.all_volumes().into_iter().collect();
        let there: BTreeSet<_> = self.volumes.keys().cloned().collect();
        assert_eq!(there, named, "{self:?}");
    }
}

fn luck() -> impl Strategy<Value = Luck> {
    prop_oneof![6 => Just(Luck::Well), 1 => Just(Luck::Fails), 1 => Just(Luck::Unheard), 1 => Just(Luck::Lost)]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => prop_oneof![Just(How::Live), Just(How::WithDisks), Just(How::Fetched), Just(How::Quick)].prop_map(Act::Begin),
        1 => Just(Act::Suspend),
        2 => (0..2_usize).prop_map(Act::Start),
        12 => luck().prop_map(Act::Next),
        1 => Just(Act::Cancel),
        2 => Just(Act::Arrives),
        2 => (0..2_usize).prop_map(Act::Reads),
        1 => (0..2_usize).prop_map(Act::ReadsUnheard),
        1 => (0..2_usize).prop_map(Act::DaemonEnds),
        2 => (0..2_usize).prop_map(Act::DaemonBegins),
        1 => (0..2_usize).prop_map(Act::Off),
        3 => (0..2_usize).prop_map(Act::Reconciles),
        2 => (0..2_usize).prop_map(Act::Looks),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever ends where: the guest never runs twice, and never as an old copy; memory is read once, and only that of the moment at
    /// which it stood; in the end one copy is as the record says, no lock of a dead task is left, and no volume is nobody's.
    #[test]
    fn a_vm_is_one_wherever_its_moves_are_cut_off(acts in proptest::collection::vec(act(), 0..80)) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
            world.is_safe();
        }
        world.comes_to_rest();
    }
}
