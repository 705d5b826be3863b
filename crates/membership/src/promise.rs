//! The promise between holder and grantor, searched by random histories: clocks that err by 1 %, messages that are
//! late, lost or out of order, leaders that do not know that they were deposed, proposals that arrive under a later
//! leader, profiles that change, a fence process that hangs so that only the watchdog is left.
//!
//! Each `Plant` is a mistake one could make in wiring the two; the search must find every one.

use crate::grantor::{DeclareFailure, Declared, Grantor, GrantorCommand, Member};
use crate::holder::{Holder, HolderCommand};
use crate::wire::{Heartbeat, Outcome, VERSION};
use crate::{HeartbeatAnswer, Moment};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use stead_model::{BootId, Epoch, FenceProfile, NodeName, NodeState, Vmid};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Plant {
    None,
    /// The lease counts from the answer's arrival.
    CountFromAnswer,
    /// A deposed leader's rounds are confirmed.
    DeposedConfirms,
    /// A recovery relies on the commit alone.
    CommitAlone,
    /// A new leader believes to have heard all at its election.
    NoWait,
    /// The holder's clock loses a third.
    BadClock,
    /// A change of the profile is settled as soon as it is made.
    SettleAtOnce,
    /// A daemon that starts does not read the previous profile.
    ForgetPrevious,
    /// A fence device that says it will is believed.
    OffOnOrder,
    /// A restart lease is granted to who asks, marked or not.
    RestartUnmarked,
    /// A new leader does not look for marks of restart leases, nor does the commit of a loss.
    MarkUnseen,
    /// The mark goes while the fence process still holds to the restart lease.
    ClearUnshortened,
    /// The end of a mark is committed over whatever stands there.
    ClearUnchecked,
    /// A daemon that is to end ends its own mark.
    EndingUnseen,
    /// A daemon that is to end asks before its own mark is committed.
    AskBeforeMark,
}

#[derive(Debug, Clone)]
enum Act {
    Wait(u16),
    Beat,
    DeliverBeat(u8, bool),
    EndRound(bool, bool),
    DeliverAnswer(u8),
    Elect(bool),
    Commit(u8),
    Profile(u8),
    /// A leader comes to apply the next change of the profile.
    Apply(bool),
    /// Some leader's proposal to settle is committed.
    Settle(u8),
    /// A leader's daemon starts anew and leads again later.
    Restart(bool),
    /// A heartbeat to that leader and back without a delay.
    Renew(bool),
    /// The node's daemon is to be started anew: it reads its record, to mark it.
    End,
    /// Its record is marked, if it has not changed since, and it asks for a restart lease from now on; else it is read again.
    Mark,
    /// Both at once.
    EndNow,
    /// It is there again, and asks for ordinary ones.
    Return,
    /// Its daemon reads the mark, to end it.
    Read,
    /// Its fence process is to hold to the lease granted last, and then the mark that was read is to go.
    Shorten,
    /// Both at once.
    ReadNow,
    /// All of that from the return on, with no delay.
    Back(bool),
    /// That is committed, if the record has not changed since.
    Clear(u8),
    /// The node's fence device carries a leader's order out, or fails; or it says that it did, and did not yet.
    Device(u8, bool),
}

/// With daemons that are started anew on purpose, or without.
fn acts(restarts: bool) -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1u16..3000).prop_map(Act::Wait),
        3 => Just(Act::Beat),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(i, b)| Act::DeliverBeat(i, b)),
        4 => (any::<bool>(), prop::bool::weighted(0.9)).prop_map(|(b, ok)| Act::EndRound(b, ok)),
        4 => any::<u8>().prop_map(Act::DeliverAnswer),
        1 => any::<bool>().prop_map(Act::Elect),
        2 => any::<u8>().prop_map(Act::Commit),
        2 => any::<u8>().prop_map(Act::Profile),
        2 => any::<bool>().prop_map(Act::Apply),
        2 => any::<u8>().prop_map(Act::Settle),
        1 => any::<bool>().prop_map(Act::Restart),
        4 => any::<bool>().prop_map(Act::Renew),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(i, ok)| Act::Device(i, ok)),
    ];
    let restart = prop_oneof![
        3 => (3000u16..20_000).prop_map(Act::Wait),
        1 => Just(Act::End),
        2 => Just(Act::Mark),
        3 => Just(Act::EndNow),
        1 => Just(Act::Return),
        1 => Just(Act::Read),
        1 => Just(Act::Shorten),
        2 => Just(Act::ReadNow),
        3 => any::<bool>().prop_map(Act::Back),
        2 => any::<u8>().prop_map(Act::Clear),
    ];
    let act = if restarts { prop_oneof![act, restart].boxed() } else { act.boxed() };
    prop::collection::vec(act, 1..120)
}

/// A clock that runs at `rate` per mille of true time.
fn clock(now: Duration, rate: u32) -> Moment {
    now * rate / 1000
}

struct Leader {
    grantor: Grantor,
    rate: u32,
    /// The round under way, whether this leader was the latest when it began, and how many changes of the profile were
    /// committed then.
    round: Option<(u64, bool, usize)>,
    /// How many of them it has applied.
    applied: usize,
    /// It was elected without a look at the marks.
    blind: bool,
}

/// What is committed but for losses.
#[derive(Debug, Clone, Copy)]
struct Commit {
    profile: FenceProfile,
    /// The one before it until that is settled.
    previous: Option<FenceProfile>,
    /// The node may hold a restart lease.
    restart: bool,
}

struct World {
    plant: Plant,
    now: Duration,
    node_rate: u32,
    holder: Holder,
    hangs_at: Duration,
    leaders: [Leader; 2],
    latest: usize,
    term: u64,
    members: BTreeMap<NodeName, Member>,
    /// Every committed change, oldest first.
    log: Vec<Commit>,
    /// How often the node's record was changed.
    revision: usize,
    /// The node's daemon is to end, and has read its record at that revision to mark it.
    ending: Option<usize>,
    /// It asks for restart leases.
    asks: bool,
    /// It has read a mark of that revision, to end it.
    read: Option<usize>,
    /// Its fence process was given an ordinary lease last, for a heartbeat of this daemon.
    fresh: bool,
    /// Proposals to end the mark, and over which revision.
    clears: Vec<usize>,
    settling: Vec<FenceProfile>,
    beats: Vec<Heartbeat>,
    answers: Vec<HeartbeatAnswer>,
    /// Who proposes the loss, and how.
    proposals: Vec<(usize, Declared)>,
    /// Whose orders to power off are out.
    orders: Vec<usize>,
    /// When the machine is reset for good.
    dead: bool,
    fed: Option<(Moment, Duration)>,
    leased: bool,
    harm: Option<String>,
}

fn node() -> NodeName {
    "n1".parse().unwrap()
}

fn boot() -> BootId {
    "22222222-2222-4222-8222-222222222222".parse().unwrap()
}

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

impl World {
    fn new(plant: Plant, node_rate: u32, rates: [u32; 2], hangs_at: Duration) -> Self {
        let uuid = "11111111-1111-4111-8111-111111111111".parse().unwrap();
        let members: BTreeMap<_, _> =
            [(node(), Member { uuid, state: NodeState::Member { boot: boot() }, off: None, restart: false })]
                .into();
        let leader = |rate| {
            let mut grantor = Grantor::new(Duration::ZERO, FenceProfile::Default, None);
            grantor.set_members(Duration::ZERO, members.clone());
            grantor.set_devices([(node(), None)].into());
            Leader { grantor, rate, round: None, applied: 1, blind: false }
        };
        let mut world = Self {
            plant,
            now: Duration::ZERO,
            node_rate: if plant == Plant::BadClock { 667 } else { node_rate },
            holder: Holder::new(1),
            hangs_at,
            leaders: rates.map(leader),
            latest: 0,
            term: 0,
            members,
            log: vec![Commit { profile: FenceProfile::Default, previous: None, restart: false }],
            revision: 0,
            ending: None,
            asks: false,
            read: None,
            fresh: false,
            clears: Vec::new(),
            settling: Vec::new(),
            beats: Vec::new(),
            answers: Vec::new(),
            proposals: Vec::new(),
            orders: Vec::new(),
            dead: false,
            fed: None,
            leased: false,
            harm: None,
        };
        world.elect(0);
        world
    }

    fn elect(&mut self, which: usize) {
        self.term += 1;
        self.latest = which;
        let at = clock(self.now, self.leaders[which].rate);
        let at = if self.plant == Plant::NoWait { at.saturating_sub(Duration::from_secs(8)) } else { at };
        let term = self.term;
        self.leaders[which].blind = self.plant == Plant::MarkUnseen;
        self.tell(which);
        let out = self.leaders[which].grantor.lead(at, term);
        self.leaders[which].round = None;
        self.take(which, out);
    }

    fn take(&mut self, which: usize, commands: Vec<GrantorCommand>) {
        for command in commands {
            match command {
                GrantorCommand::Confirm { round } => {
                    let valid = which == self.latest || self.plant == Plant::DeposedConfirms;
                    self.leaders[which].round = Some((round, valid, self.log.len()));
                }
                GrantorCommand::Answer { answer, .. } => self.answers.push(answer),
                GrantorCommand::DeclareLost(lost) => self.proposals.push((which, lost)),
                GrantorCommand::PowerOff(_) => self.orders.push(which),
                GrantorCommand::CallOff { .. } => self.orders.retain(|w| *w != which),
                // The old copy is gone; what boots then is another story.
                GrantorCommand::PowerOn { .. } => {}
                GrantorCommand::SettleProfile(previous) => self.settling.push(previous),
            }
        }
    }

    fn node_now(&self) -> Moment {
        clock(self.now, self.node_rate)
    }

    /// The fence process at work: a hung guest, so that nothing but a reset makes it safe.
    fn fence(&mut self) {
        let now = self.node_now();
        if self.now < self.hangs_at {
            for command in self.holder.step(now) {
                match command {
                    HolderCommand::FeedWatchdog { timeout } => self.fed = Some((now, timeout)),
                    HolderCommand::Reset { .. } => self.dead = true,
                    HolderCommand::MakeSafe { .. } | HolderCommand::Cont { .. } => {}
                }
            }
        }
        if self.fed.is_some_and(|(at, timeout)| now > at + timeout) {
            self.dead = true;
        }
    }

    fn wait(&mut self, ms: u16) {
        for _ in 0..=ms / 25 {
            self.now += Duration::from_millis(25);
            self.fence();
            for which in 0..2 {
                let at = clock(self.now, self.leaders[which].rate);
                let out = self.leaders[which].grantor.step(at);
                self.take(which, out);
            }
            self.judge();
        }
    }

    /// The latest leader may recover as soon as the node is settled.
    fn judge(&mut self) {
        let leader = &self.leaders[self.latest];
        let lost = self.members[&node()].state.is_lost();
        let settled = leader.grantor.settled(clock(self.now, leader.rate), &node());
        let recovers = settled || (lost && self.plant == Plant::CommitAlone);
        if recovers && self.leased && !self.dead {
            self.harm = Some(format!("recovered at {:?} while the old copy may run", self.now));
        }
    }

    fn deliver_answer(&mut self, at: u8) {
        let answer = self.answers.swap_remove(usize::from(at) % self.answers.len());
        let Outcome::Granted { lease_ms, drain_ms, watchdog_ms } = answer.outcome else { return };
        if self.dead || self.now >= self.hangs_at {
            return;
        }
        let now = self.node_now();
        let restart = lease_ms == 60_000;
        let nonce = if self.plant == Plant::CountFromAnswer { self.holder.nonce(now) } else { answer.nonce };
        let ms = Duration::from_millis;
        if self.holder.renew(now, nonce, ms(lease_ms), ms(drain_ms), ms(watchdog_ms)).is_ok() {
            self.fresh = !restart;
            if !self.leased {
                self.holder.register(vmid(), Epoch(1), true).unwrap();
                self.leased = self.holder.run(now, vmid(), Epoch(1)).is_ok();
            }
            self.fence();
        }
    }

    fn commit(&mut self, at: u8) {
        let (which, lost) = self.proposals.swap_remove(usize::from(at) % self.proposals.len());
        let marked = self.log[self.log.len() - 1].restart;
        let as_named = lost.off || marked == lost.restart || self.plant == Plant::MarkUnseen;
        let Some(member) =
            self.members.get_mut(&node()).filter(|m| as_named && (lost.off || !m.state.is_lost()))
        else {
            return self.leaders[which].grantor.declare_failed(&node(), DeclareFailure::Refused);
        };
        self.revision += 1;
        member.state = NodeState::Lost { boot: boot() };
        if lost.off {
            member.off = Some(boot());
        }
        for which in 0..2 {
            // One log: whoever applies the loss has applied what was committed before it.
            self.apply(which, self.log.len());
            self.tell(which);
        }
        let Leader { grantor, rate, .. } = &mut self.leaders[which];
        grantor.declared(clock(self.now, *rate), &node());
    }

    /// A leader is told the members as it has applied them.
    fn tell(&mut self, which: usize) {
        let mut members = self.members.clone();
        let leader = &mut self.leaders[which];
        let marked = match self.plant {
            Plant::RestartUnmarked => self.asks && which == self.latest,
            _ => self.log[leader.applied - 1].restart && !leader.blind,
        };
        for member in members.values_mut() {
            member.restart = marked;
        }
        leader.grantor.set_members(clock(self.now, leader.rate), members);
    }

    fn mark(&mut self, restart: bool) {
        let last = self.log[self.log.len() - 1];
        self.revision += 1;
        self.log.push(Commit { restart, ..last });
    }

    fn marked(&self) -> bool {
        self.log[self.log.len() - 1].restart
    }

    /// The daemon is to end.
    fn end(&mut self) {
        self.ending = Some(self.revision);
        match self.plant {
            Plant::AskBeforeMark => self.asks |= self.marked(),
            Plant::RestartUnmarked => {
                self.asks = true;
                self.tell(self.latest);
            }
            _ => {}
        }
    }

    /// Its mark is committed over the record that it read, or it reads again.
    fn mark_read(&mut self) {
        let Some(read) = self.ending.filter(|_| !self.asks) else { return };
        if read == self.revision {
            self.mark(true);
            self.asks = true;
        } else {
            self.ending = Some(self.revision);
        }
    }

    /// The daemon's last steps after it is there again.
    fn read(&mut self) {
        let ending = self.ending.is_some() && self.plant != Plant::EndingUnseen;
        if self.fresh && !ending && self.marked() {
            self.read = Some(self.revision);
        }
    }

    fn shorten(&mut self) {
        let Some(read) = self.read.take() else { return };
        let (now, profile) = (self.node_now(), self.log[self.log.len() - 1].profile);
        let skips = self.plant == Plant::ClearUnshortened;
        if skips || self.holder.shorten(now, profile.lease()).is_ok() {
            self.fence();
            self.clears.push(read);
        }
    }

    fn clear(&mut self, at: u8) {
        let over = self.clears.swap_remove(usize::from(at) % self.clears.len());
        if over == self.revision || self.plant == Plant::ClearUnchecked {
            self.mark(false);
        }
    }

    fn change_profile(&mut self, to: u8) {
        let all = [FenceProfile::Fast, FenceProfile::Default, FenceProfile::Wan];
        let to = all[usize::from(to) % all.len()];
        let last = self.log[self.log.len() - 1];
        if last.previous.is_none() && to != last.profile {
            self.log.push(Commit { profile: to, previous: Some(last.profile), ..last });
            if self.plant == Plant::SettleAtOnce {
                self.log.push(Commit { profile: to, ..last });
            }
        }
    }

    /// A leader applies the changes up to the `upto`th.
    fn apply(&mut self, which: usize, upto: usize) {
        while self.leaders[which].applied < upto.min(self.log.len()) {
            let Leader { grantor, rate, applied, blind, .. } = &mut self.leaders[which];
            let Commit { profile, previous, restart } = self.log[*applied];
            // What is marked under its eyes it sees.
            *blind &= restart == self.log[*applied - 1].restart;
            *applied += 1;
            grantor.set_profile(clock(self.now, *rate), profile, previous);
            self.tell(which);
        }
    }

    /// What it knew is gone; what it had applied is on its disk. It follows the other, or is elected later.
    fn restart(&mut self, which: usize) {
        let Leader { rate, applied, .. } = self.leaders[which];
        let Commit { profile, previous, .. } = self.log[applied - 1];
        let previous = previous.filter(|_| self.plant != Plant::ForgetPrevious);
        let now = clock(self.now, rate);
        let mut grantor = Grantor::new(now, profile, previous);
        grantor.set_devices([(node(), None)].into());
        self.leaders[which] = Leader { grantor, rate, round: None, applied, blind: false };
        self.tell(which);
        if which == self.latest {
            self.elect(1 - which);
        }
    }

    /// What a device does, it does whoever leads by now.
    fn device(&mut self, at: u8, ok: bool) {
        let which = self.orders.swap_remove(usize::from(at) % self.orders.len());
        self.dead |= ok;
        let grantor = &mut self.leaders[which].grantor;
        if ok || self.plant == Plant::OffOnOrder {
            grantor.powered_off(&node(), &boot());
        } else {
            grantor.power_off_failed(&node(), &boot());
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Wait(ms) => self.wait(ms),
            Act::Beat if !self.dead && self.now < self.hangs_at => {
                let uuid = self.members[&node()].uuid.clone();
                let nonce = self.holder.nonce(self.node_now());
                let (v, boot, restart) = (VERSION, boot(), self.asks);
                self.beats.push(Heartbeat { v, node: node(), uuid, boot, nonce, restart });
            }
            Act::DeliverBeat(i, to) if !self.beats.is_empty() => {
                let beat = self.beats.swap_remove(usize::from(i) % self.beats.len());
                let which = usize::from(to);
                let at = clock(self.now, self.leaders[which].rate);
                let out = self.leaders[which].grantor.heartbeat(at, beat);
                self.take(which, out);
            }
            Act::EndRound(which, ok) => {
                let which = usize::from(which);
                let Some((round, valid, committed)) = self.leaders[which].round.take() else { return };
                if ok && valid {
                    // What the round proves committed is applied before it counts.
                    self.apply(which, committed);
                }
                let grantor = &mut self.leaders[which].grantor;
                let term = grantor.term().unwrap_or(0);
                let out =
                    if ok && valid { grantor.confirmed(round, term) } else { grantor.unconfirmed(round) };
                self.take(which, out);
            }
            Act::DeliverAnswer(i) if !self.answers.is_empty() => self.deliver_answer(i),
            Act::Elect(which) => self.elect(usize::from(which)),
            Act::Commit(i) if !self.proposals.is_empty() => self.commit(i),
            Act::Profile(to) => self.change_profile(to),
            Act::Apply(which) => self.apply(usize::from(which), self.leaders[usize::from(which)].applied + 1),
            Act::Settle(i) if !self.settling.is_empty() => {
                let previous = self.settling.swap_remove(usize::from(i) % self.settling.len());
                let last = self.log[self.log.len() - 1];
                if last.previous == Some(previous) {
                    self.log.push(Commit { previous: None, ..last });
                }
            }
            Act::End => self.end(),
            Act::Mark => self.mark_read(),
            Act::EndNow => {
                self.end();
                self.mark_read();
            }
            // The daemon after it. What the one before has under way is no process's any more, but for what it has proposed.
            Act::Return => (self.ending, self.asks, self.fresh, self.read) = (None, false, false, None),
            Act::Read => self.read(),
            Act::Shorten if !self.dead && self.now < self.hangs_at => self.shorten(),
            Act::ReadNow => {
                self.act(&Act::Read);
                self.act(&Act::Shorten);
            }
            Act::Back(to) => {
                for act in [Act::Return, Act::Renew(to), Act::ReadNow] {
                    self.act(&act);
                }
            }
            Act::Clear(i) if !self.clears.is_empty() => self.clear(i),
            Act::Device(i, ok) if !self.orders.is_empty() => self.device(i, ok),
            Act::Restart(which) => self.restart(usize::from(which)),
            Act::Renew(to) => {
                for act in
                    [Act::Beat, Act::DeliverBeat(0, to), Act::EndRound(to, true), Act::DeliverAnswer(0)]
                {
                    self.act(&act);
                }
            }
            _ => {}
        }
    }
}

/// What came of one history, if harm did; and whether it got as far as a committed loss of a leased node.
fn run(
    plant: Plant,
    acts: &[Act],
    node_rate: u32,
    rates: [u32; 2],
    hangs_at: Duration,
) -> (Option<String>, bool) {
    let mut world = World::new(plant, node_rate, rates, hangs_at);
    for act in acts {
        world.act(act);
        world.judge();
        if world.harm.is_some() {
            break;
        }
    }
    let interesting = world.leased && world.members[&node()].state.is_lost();
    (world.harm, interesting)
}

fn search(plant: Plant, restarts: bool, cases: u32) -> Result<(), String> {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let rng = prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha);
    let mut runner = prop::test_runner::TestRunner::new_with_rng(config, rng);
    let reached = std::cell::Cell::new(0u32);
    let rate = 990u32..=1010;
    let rates = (rate.clone(), rate.clone(), rate, 0u64..if restarts { 120_000 } else { 60_000 });
    let result = runner.run(&(acts(restarts), rates), |(acts, (n, a, b, hangs))| {
        let (harm, interesting) = run(plant, &acts, n, [a, b], Duration::from_millis(hangs));
        reached.set(reached.get() + u32::from(interesting));
        prop_assert!(harm.is_none(), "{}", harm.unwrap_or_default());
        Ok(())
    });
    if plant == Plant::None {
        assert!(reached.get() > cases / 50, "the search hardly reached a loss: {} of {cases}", reached.get());
    }
    result.map_err(|e| e.to_string())
}

#[test]
fn a_settled_node_runs_nothing() {
    search(Plant::None, false, 2000).unwrap();
    search(Plant::None, true, 2000).unwrap();
}

#[test]
fn every_planted_mistake_is_found() {
    for plant in [
        Plant::CountFromAnswer,
        Plant::DeposedConfirms,
        Plant::CommitAlone,
        Plant::NoWait,
        Plant::BadClock,
        Plant::SettleAtOnce,
        Plant::ForgetPrevious,
        Plant::OffOnOrder,
    ] {
        assert!(search(plant, false, 20_000).is_err(), "{plant:?} was not found");
    }
}

#[test]
fn every_mistake_with_restart_leases_is_found() {
    for plant in [
        Plant::RestartUnmarked,
        Plant::MarkUnseen,
        Plant::ClearUnshortened,
        Plant::ClearUnchecked,
        Plant::EndingUnseen,
        Plant::AskBeforeMark,
    ] {
        assert!(search(plant, true, 20_000).is_err(), "{plant:?} was not found");
    }
}
