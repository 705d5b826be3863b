//! What is done to the cluster: faults, and what users do meanwhile. All of it is drawn from the seed before a history begins,
//! so that each act has a number, and one can be left out without another meaning of the rest.

use super::Plan;
use super::config::Edit;
use crate::scenario::Failing;
pub use crate::scenario::command::{Disks, Part};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use stead_ha::{DisarmMode, Leave, Request};
use stead_model::ha_cfg::{HaResource, HaRule, HaRuleKind, RequestedState};
use stead_model::{FenceProfile, GuestKind, HaOptions, NodeName, ServiceId, Vmid};

/// What happens to a leader at a certain commit, before anybody hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ambush {
    /// It leads no more.
    Depose,
    /// Its daemon is killed.
    Kill,
    /// Its machine loses power.
    PowerOff,
    /// Its daemon stands still, and finds out later.
    Pause,
}

/// One act.
#[derive(Debug, Clone)]
pub enum Act {
    /// The network falls into parts: by node, the part that it is in.
    Split(Vec<u8>),
    /// A node is not heard any more, or hears no one.
    OneWay { node: usize, outward: bool },
    /// One node does not hear another.
    Deaf { from: usize, to: usize },
    /// All links work.
    Mend,
    /// Of 1000 messages so many are lost, very late, sent twice.
    Weather { loss: u32, late: u32, twice: u32 },
    /// Power goes, and comes back.
    PowerOff { nodes: BTreeSet<usize>, time: Duration },
    /// Something stands still.
    Pause { part: Part, node: usize, time: Duration },
    /// Something is killed, and started again.
    Kill { part: Part, node: usize, time: Duration },
    /// A guest answers nothing.
    Hang { guest: u32 },
    /// A guest's process dies.
    Die { guest: u32 },
    /// A guest's next starts and moves fail, or it cannot be stopped.
    Fails { guest: u32, failing: Failing },
    /// The configuration's store takes its time: proposals hang, then are committed or not.
    Stall { time: Duration },
    /// The leader loses its lead.
    Depose,
    /// The leader is struck at its n-th commit from now.
    Ambush { commits: u32, how: Ambush },
    /// A node, or its daemon, goes in order, and comes back.
    Leave { node: usize, leave: Leave, time: Duration },
    /// A daemon is started anew on purpose, and is away for so long.
    Restart { node: usize, time: Duration },
    /// A machine's fence device works like this from now on.
    Device { node: usize, works: super::power::Works },
    /// The storage of all disks is like this on a node from now on.
    Disks { node: usize, disks: Disks },
    /// A user changes something.
    User(Edit),
}

/// A guest's name in HA: every third one is a container.
pub fn guest(number: u32) -> ServiceId {
    let vmid = Vmid::new(100 + number).unwrap_or_else(|e| unreachable!("{e}"));
    let kind = if number % 3 == 2 { GuestKind::Lxc } else { GuestKind::Qemu };
    ServiceId { kind, vmid }
}

/// A node's name.
pub fn node(index: usize) -> NodeName {
    format!("n{}", index + 1).parse().unwrap_or_else(|e| unreachable!("{e}"))
}

/// The acts of a seed, in the order of their times; the options of HA; and the guests that run and are not under HA at first.
pub fn draw(seed: u64, plan: &Plan) -> (Vec<(Duration, Act)>, HaOptions, BTreeSet<u32>) {
    let mut pen = Pen { rng: ChaCha8Rng::seed_from_u64(seed), nodes: plan.nodes, guests: plan.guests };
    let options = pen.options();
    let outside: BTreeSet<u32> = (0..plan.guests).filter(|_| pen.rng.random_range(0..5) == 0).collect();
    let mut acts = vec![];
    let last = u64::try_from(plan.faults.as_millis()).unwrap_or(u64::MAX).max(5001);
    for number in &outside {
        let resource = HaResource::new(guest(*number));
        let target = node(pen.node());
        acts.push((pen.ms(5000, last), Act::User(Edit::Add { resource, node: target, running: false })));
    }
    let mut at = Duration::from_millis(5000);
    while at < plan.faults {
        acts.push((at, pen.act()));
        at += pen.ms(100, 4000);
    }
    acts.retain(|(at, _)| *at < plan.faults);
    acts.sort_by_key(|(at, _)| *at);
    (acts, options, outside)
}

struct Pen {
    rng: ChaCha8Rng,
    nodes: usize,
    guests: u32,
}

impl Pen {
    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..=to))
    }

    fn node(&mut self) -> usize {
        self.rng.random_range(0..self.nodes)
    }

    fn of(&mut self, choices: &[u32]) -> u32 {
        choices[self.rng.random_range(0..choices.len())]
    }

    fn guest(&mut self) -> u32 {
        self.rng.random_range(0..self.guests.max(1))
    }

    fn options(&mut self) -> HaOptions {
        let policy = ["conditional", "freeze", "failover", "migrate"][self.rng.random_range(0..4)];
        let crs = ["ha=basic", "ha=basic", "ha=static", "ha=dynamic,ha-auto-rebalance=1"];
        let crs = crs[self.rng.random_range(0..4)];
        HaOptions::parse(Some(&format!("shutdown_policy={policy},storage_loss=move")), Some(crs))
            .unwrap_or_else(|e| unreachable!("{e}"))
    }

    fn act(&mut self) -> Act {
        let node = self.node();
        match self.rng.random_range(0..41) {
            0..2 => Act::Split((0..self.nodes).map(|_| self.rng.random_range(0..2)).collect()),
            2 => Act::Split((0..self.nodes).map(|_| self.rng.random_range(0..3)).collect()),
            3..5 => Act::OneWay { node, outward: self.rng.random() },
            5 => Act::Deaf { from: node, to: self.node() },
            6..10 => Act::Mend,
            10..12 => Act::Weather {
                loss: self.of(&[0, 0, 20, 200, 500]),
                late: self.of(&[0, 10, 100, 400]),
                twice: self.of(&[0, 10, 200]),
            },
            12..14 => self.power_off(node),
            14..20 => self.standstill(node),
            20..24 => self.guests_fault(),
            24 => Act::Stall { time: self.ms(500, 6000) },
            25 => Act::Depose,
            26..28 => self.ambush(),
            28 => self.leave(node),
            29 => Act::Restart { node, time: self.ms(500, 40_000) },
            _ => Act::User(self.wish()),
        }
    }

    fn power_off(&mut self, node: usize) -> Act {
        let mut nodes = BTreeSet::from([node]);
        // With a majority gone, nobody decides anything until it is back.
        while self.rng.random_range(0..5) == 0 && nodes.len() < self.nodes {
            nodes.insert(self.node());
        }
        Act::PowerOff { nodes, time: self.ms(500, 25_000) }
    }

    fn standstill(&mut self, node: usize) -> Act {
        match self.rng.random_range(0..5) {
            0 => Act::Kill { part: Part::Daemon, node, time: self.ms(100, 8000) },
            1 => Act::Kill { part: Part::Fenced, node, time: self.ms(50, 8000) },
            n => {
                let part = [Part::Daemon, Part::Fenced, Part::Machine][n - 2];
                let long = self.rng.random();
                let time = if long { self.ms(3000, 15_000) } else { self.ms(100, 3000) };
                Act::Pause { part, node, time }
            }
        }
    }

    fn guests_fault(&mut self) -> Act {
        let guest = self.guest();
        match self.rng.random_range(0..4) {
            0 => Act::Hang { guest },
            1 => Act::Die { guest },
            _ => {
                let on = self.rng.random::<bool>().then(|| self.node() + 1);
                let (starts, moves) = (self.of(&[0, 1, 2, 5]), self.of(&[0, 0, 1, 3]));
                let stop = self.rng.random_range(0..8) == 0;
                Act::Fails { guest, failing: Failing { starts, moves, stop, on } }
            }
        }
    }

    fn ambush(&mut self) -> Act {
        let how = [Ambush::Depose, Ambush::Kill, Ambush::PowerOff, Ambush::Pause];
        Act::Ambush { commits: self.rng.random_range(1..8), how: how[self.rng.random_range(0..4)] }
    }

    fn leave(&mut self, node: usize) -> Act {
        let leave = [Leave::Shutdown, Leave::Reboot, Leave::Restart][self.rng.random_range(0..3)];
        Act::Leave { node, leave, time: self.ms(10_000, 30_000) }
    }

    fn wish(&mut self) -> Edit {
        use RequestedState as R;
        let sid = guest(self.guest());
        let target = node(self.node());
        match self.rng.random_range(0..26) {
            0..4 => Edit::Want(sid, R::Started),
            4 => Edit::Want(sid, R::Stopped),
            5 => Edit::Want(sid, R::Disabled),
            6..8 => Edit::Want(sid, R::Ignored),
            8..13 => Edit::Ask(Request::Move { sid, target, relocate: false }),
            13 => Edit::Ask(Request::Move { sid, target, relocate: true }),
            14 => Edit::Ask(Request::Stop { sid, timeout: self.of(&[0, 10]) }),
            15 => Edit::Remove(sid),
            16 => Edit::Add { resource: HaResource::new(sid), node: target, running: false },
            17 => Edit::Ask(Request::Maintenance { node: target, on: self.rng.random() }),
            18 => {
                let mode = if self.rng.random() { DisarmMode::Freeze } else { DisarmMode::Ignore };
                Edit::Ask(Request::Disarm { mode })
            }
            19 => Edit::Ask(Request::Arm),
            20..22 => Edit::Rules(self.rules()),
            22..24 => Edit::Profile(FenceProfile::ALL[self.rng.random_range(0..3)]),
            24 => Edit::Lock(sid.vmid, self.rng.random::<bool>().then(|| "backup".to_owned())),
            _ => Edit::Off(target),
        }
    }

    /// A set of rules that can be kept while all nodes are there.
    fn rules(&mut self) -> Vec<HaRule> {
        let mut rules = vec![];
        let rule = |id: &str, resources: BTreeSet<ServiceId>, kind| HaRule {
            id: id.to_owned(),
            resources,
            disable: false,
            comment: None,
            kind,
        };
        if self.rng.random() {
            let first = self.node();
            let others = (0..self.nodes).filter(|n| *n != first && self.rng.random_range(0..3) == 0);
            let named: Vec<usize> = std::iter::once(first).chain(others.collect::<Vec<_>>()).collect();
            let ranked = self.rng.random_range(0..3) == 0;
            let priority = |(i, n): (usize, &usize)| (node(*n), if ranked && i == 0 { 2 } else { 1 });
            let nodes = named.iter().enumerate().map(priority).collect();
            let kind = HaRuleKind::NodeAffinity { nodes, strict: self.rng.random(), positive: true };
            rules.push(rule("where", BTreeSet::from([guest(self.guest())]), kind));
        }
        if self.guests > 1 && self.rng.random() {
            let pair = BTreeSet::from([guest(0), guest(self.rng.random_range(1..self.guests))]);
            let kind = HaRuleKind::ResourceAffinity { positive: self.rng.random() };
            rules.push(rule("among", pair, kind));
        }
        rules
    }
}

fn seconds(time: &Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn names(nodes: impl IntoIterator<Item = usize>) -> String {
    nodes.into_iter().map(|n| format!("n{}", n + 1)).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split(parts) => {
                let part = |p: u8| names((0..parts.len()).filter(|n| parts[*n] == p));
                let all: BTreeSet<u8> = parts.iter().copied().collect();
                let all: Vec<String> = all.into_iter().map(part).collect();
                write!(f, "the network falls into parts: {}", all.join(" | "))
            }
            Self::OneWay { node, outward: true } => write!(f, "n{}: nobody hears it", node + 1),
            Self::OneWay { node, outward: false } => write!(f, "n{}: it hears nobody", node + 1),
            Self::Deaf { from, to } => write!(f, "n{}: does not hear n{}", to + 1, from + 1),
            Self::Mend => f.write_str("the network is whole again"),
            Self::Weather { loss, late, twice } => {
                write!(f, "of 1000 messages {loss} are lost, {late} late, {twice} sent twice")
            }
            Self::PowerOff { nodes, time } => {
                write!(f, "{}: power off for {}", names(nodes.iter().copied()), seconds(time))
            }
            Self::Pause { part, node, time } => {
                write!(f, "n{}: {part} stands still for {}", node + 1, seconds(time))
            }
            Self::Kill { part, node, time } => {
                write!(f, "n{}: {part} is killed, and started again after {}", node + 1, seconds(time))
            }
            Self::Hang { guest: g } => write!(f, "{}: answers nothing any more", guest(*g)),
            Self::Die { guest: g } => write!(f, "{}: its process dies", guest(*g)),
            Self::Fails { guest: g, failing } => {
                let on = failing.on.map(|n| format!(" on n{n}")).unwrap_or_default();
                let stop = if failing.stop { ", and it does not stop" } else { "" };
                let Failing { starts, moves, .. } = failing;
                write!(f, "{}: its next {starts} starts{on} and {moves} moves fail{stop}", guest(*g))
            }
            Self::Stall { time } => write!(f, "proposals hang for {}", seconds(time)),
            Self::Depose => f.write_str("the leader loses its lead"),
            Self::Ambush { commits, how } => {
                let what = match how {
                    Ambush::Depose => "loses its lead",
                    Ambush::Kill => "is killed",
                    Ambush::PowerOff => "loses its power",
                    Ambush::Pause => "stands still",
                };
                write!(f, "the leader {what} at commit {commits} from now, before anybody hears of it")
            }
            Self::Leave { node, leave, .. } => {
                let what = match leave {
                    Leave::Shutdown => "is shut down",
                    Leave::Reboot => "is rebooted",
                    Leave::Restart => "restarts its daemon",
                };
                write!(f, "n{}: {what} in order", node + 1)
            }
            Self::Restart { node, time } => {
                write!(
                    f,
                    "n{}: its daemon is stopped on purpose, and started again after {}",
                    node + 1,
                    seconds(time)
                )
            }
            Self::Device { node, works } => write!(f, "n{}: its fence device {works}", node + 1),
            Self::Disks { node, disks } => write!(f, "n{}: its storage is {disks}", node + 1),
            Self::User(edit) => write!(f, "a user: {edit}"),
        }
    }
}
