//! A node: the part that a host of the driver plays, in virtual time. What the real shell does with threads.

use super::Bug;
use super::dice::Dice;
use super::disk::SimDisk;
use super::invariants::Invariants;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::driver::{Command, Driver, Input, Outcome, Persist, RequestId, Settings};
use stead_conf::{Committed, CommittedEntry, Machine, Members, Op, RaftStatus};
use stead_model::RaftId;

/// The consensus' tick, in microseconds.
pub const TICK: u64 = 50_000;

/// A node's place, whether it runs or not.
#[derive(Debug)]
pub struct Node {
    pub id: u64,
    pub disk: SimDisk,
    /// Counts starts, so that events of an earlier life are told.
    pub life: u64,
    pub running: Option<Running>,
    /// Frozen until then.
    pub paused_until: u64,
    /// Of 1,000, how much slower or faster its clock is.
    pub drift: i64,
    /// It leaves elections to the others.
    pub patient: bool,
    /// It is told to stand for no election until then, again and again; 0: it is not.
    pub held_until: u64,
}

/// A running node.
pub struct Running {
    pub driver: Driver,
    pub machine: Machine,
    boot: u64,
    pub queue: VecDeque<Persist>,
    /// Being written now; the rest of the queue goes next.
    pub writing: Vec<Persist>,
    next_request: u64,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({:?})", self.driver.status())
    }
}

/// What a node wants of the world.
#[derive(Debug)]
pub enum Wish {
    Send {
        to: u64,
        frame: Bytes,
    },
    /// Something was given to an idle disk.
    Write,
    /// A commit was applied.
    Seen(Arc<Committed>),
    Done(RequestId, Outcome),
}

impl Node {
    pub fn new(id: u64, machine: &Machine, pages: bool) -> Result<Self, String> {
        let disk = SimDisk::new(id, machine, pages)?;
        Ok(Self {
            id,
            disk,
            life: 0,
            running: None,
            paused_until: 0,
            drift: 0,
            patient: false,
            held_until: 0,
        })
    }

    /// Reads the disk and begins anew.
    pub fn start(&mut self, now: u64, bug: Bug, seed: u64) -> Result<(), String> {
        self.life += 1;
        let (mut recovered, mut boot) = self.disk.recover()?;
        match bug {
            Bug::SameBoot => boot = 1,
            Bug::ForgetVote => recovered.hard.vote = 0,
            Bug::CommitAll => {
                recovered.hard.commit = recovered.entries.last().map_or(recovered.hard.commit, |e| e.index);
            }
            _ => {}
        }
        let settings = Settings {
            seed,
            compact_entries: 40,
            compact_bytes: 20_000,
            keep_entries: 6,
            chunk: 700,
            window: 3,
            ..Settings::new(RaftId(self.id), boot, 77, Duration::from_micros(TICK), Duration::from_secs(5))
        };
        let settings = if self.patient { settings.patient() } else { settings };
        let at = Duration::from_micros(now);
        let (mut driver, machine) = Driver::new(settings, recovered, at).map_err(|halt| halt.to_string())?;
        driver.handle(at, Input::Hold(self.held_until > 0 && bug != Bug::ForgetHold));
        self.running = Some(Running {
            driver,
            machine,
            boot,
            queue: VecDeque::new(),
            writing: Vec::new(),
            next_request: 0,
        });
        self.paused_until = 0;
        Ok(())
    }

    /// Gives all that waits to the disk, if that is idle. Says whether it begins to write.
    pub fn begin_write(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        let begins = running.writing.is_empty() && !running.queue.is_empty();
        if begins {
            running.writing = running.queue.drain(..).collect();
        }
        begins
    }

    /// What was being written is on stable storage. Gives the number of the last of it.
    pub fn written(&mut self) -> Result<u64, String> {
        let Some(running) = &mut self.running else { return Ok(0) };
        let batch = std::mem::take(&mut running.writing);
        self.disk.write(&batch)?;
        Ok(batch.last().map_or(0, |persist| persist.number))
    }

    /// The power goes: what was not synced is lost, or not.
    pub fn crash(&mut self, dice: &mut Dice, bug: Bug) {
        let Some(mut running) = self.running.take() else { return };
        let mut batch = std::mem::take(&mut running.writing);
        if bug == Bug::EarlyReport {
            // What was reported is what a host that confirms early would have lost.
            batch.clear();
        }
        self.disk.cut(&batch, dice);
        if bug == Bug::LostTail {
            self.disk.lose_tail();
        }
    }

    pub fn status(&self) -> Option<&RaftStatus> {
        self.running.as_ref().map(|running| running.driver.status())
    }
}

impl Running {
    pub fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Gives an input and carries out what follows.
    pub fn input(
        &mut self,
        id: u64,
        now: u64,
        input: Input,
        bug: Bug,
        invariants: &mut Invariants,
    ) -> Result<Vec<Wish>, String> {
        self.driver.handle(Duration::from_micros(now), input);
        self.carry_out(id, now, bug, invariants)
    }

    pub fn carry_out(
        &mut self,
        id: u64,
        now: u64,
        bug: Bug,
        invariants: &mut Invariants,
    ) -> Result<Vec<Wish>, String> {
        let mut wishes = Vec::new();
        loop {
            let commands = self.driver.poll();
            if commands.is_empty() {
                return Ok(wishes);
            }
            for command in commands {
                match command {
                    Command::Persist(persist) => self.persist(now, persist, bug, &mut wishes),
                    Command::Send { to, frame } => wishes.push(Wish::Send { to, frame }),
                    Command::Apply(entries) => {
                        self.apply(id, now, entries, bug, invariants, &mut wishes)?;
                    }
                    Command::Install(machine) => self.install(id, now, *machine, invariants)?,
                    Command::Encode => self.encode(now, bug)?,
                    Command::Done(request, outcome) => wishes.push(Wish::Done(request, outcome)),
                    Command::Status(status) => invariants.status(&status)?,
                    Command::Halt(reason) => return Err(format!("node {id} halted: {reason}")),
                }
            }
        }
    }

    fn persist(&mut self, now: u64, persist: Persist, bug: Bug, wishes: &mut Vec<Wish>) {
        let number = persist.number;
        if self.writing.is_empty() && self.queue.is_empty() {
            wishes.push(Wish::Write);
        }
        self.queue.push_back(persist);
        if bug == Bug::EarlyReport {
            self.driver.handle(Duration::from_micros(now), Input::Persisted(number));
        }
    }

    fn apply(
        &mut self,
        id: u64,
        now: u64,
        entries: Vec<(u64, CommittedEntry)>,
        bug: Bug,
        invariants: &mut Invariants,
        wishes: &mut Vec<Wish>,
    ) -> Result<(), String> {
        let mut applied = Vec::with_capacity(entries.len());
        for (index, entry) in entries {
            invariants.committed.entry(id, index, &entry)?;
            let entry = self.mistaken(bug, entry);
            let done = self.machine.apply(index, entry).map_err(|fault| fault.to_string())?;
            let told = |revision: u64| bug != Bug::DroppedEvent || !revision.is_multiple_of(50);
            if let Some(event) = done.event.as_ref().filter(|event| told(event.revision.0)) {
                invariants.commit(id, event)?;
                wishes.push(Wish::Seen(Arc::clone(event)));
            }
            invariants.agree.state(id, index, &self.machine)?;
            applied.push(done);
        }
        let (revision, hash) = (self.machine.tree().revision(), self.machine.hash());
        self.driver.handle(Duration::from_micros(now), Input::Applied { applied, revision, hash });
        Ok(())
    }

    /// An entry as a host with a mistake would apply it.
    fn mistaken(&self, bug: Bug, entry: CommittedEntry) -> CommittedEntry {
        match (bug, entry) {
            (Bug::FormerVoters, CommittedEntry::Members(_)) => {
                CommittedEntry::Members(self.machine.members().clone())
            }
            (Bug::HalfMove, CommittedEntry::Proposal(mut proposal)) => {
                for op in &mut proposal.txn.ops {
                    if let Op::Move { from, .. } = op {
                        *op = Op::Delete(std::mem::take(from));
                    }
                }
                CommittedEntry::Proposal(proposal)
            }
            (_, entry) => entry,
        }
    }

    fn install(
        &mut self,
        id: u64,
        now: u64,
        machine: Machine,
        invariants: &mut Invariants,
    ) -> Result<(), String> {
        if machine.applied() <= self.machine.applied() {
            return Err(format!("node {id} was given an older state: {}", machine.applied()));
        }
        let outcomes = machine.outcomes(id, self.boot);
        self.machine = machine;
        let (revision, hash) = (self.machine.tree().revision(), self.machine.hash());
        invariants.agree.state(id, self.machine.applied(), &self.machine)?;
        invariants.watches.reset(id, revision.0);
        invariants.figures.snapshots += 1;
        self.driver.handle(Duration::from_micros(now), Input::Installed { outcomes, revision, hash });
        Ok(())
    }

    fn encode(&mut self, now: u64, bug: Bug) -> Result<(), String> {
        let image = self.machine.encode().map_err(|error| error.to_string())?;
        let input = Input::Encoded {
            index: self.machine.applied(),
            members: match bug {
                Bug::SnapshotWithoutMembers => Members { voters: [1].into(), ..Members::default() },
                _ => self.machine.members().clone(),
            },
            image: image.into(),
        };
        self.driver.handle(Duration::from_micros(now), input);
        Ok(())
    }
}
