//! Automatic rebalancing: when the nodes' loads have differed too much for long enough, the best single move.
//!
//! A node's load is the mean of the parts of its CPUs and of its memory in use; the imbalance is the coefficient of
//! variation of the loads: their standard deviation, divided by their mean. Services that are to be together move together.

use crate::placement::{Ask, Places};
use crate::state::{Load, ManagerState, Process, ServiceState, View};
use crate::topsis;
use std::collections::BTreeSet;
use stead_model::{AutoRebalance, BalanceMethod, CrsMode, ServiceId};

/// On clusters with more nodes, only the fullest are looked at as sources and the emptiest as targets.
const LOOKED_AT: usize = 32;
/// Costs of a move by TOPSIS: the imbalance that it leaves, what the target then has in use of memory and of CPU, and the
/// memory to be copied.
const WEIGHTS: [f64; 4] = [10.0, 2.0, 1.0, 1.0];

/// A move that makes it better.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Move {
    /// Who moves: one service, or all of a unit.
    pub members: Vec<ServiceId>,
    /// From which node, by number.
    pub from: usize,
    /// To which.
    pub to: usize,
    /// The imbalance before.
    pub before: f64,
    /// And after.
    pub after: f64,
}

/// Loads of the open nodes, with their sum and the sum of their squares.
struct Loads {
    of: Vec<Option<f64>>,
    n: f64,
    sum: f64,
    squares: f64,
}

impl Loads {
    fn new(places: &Places<'_>, mode: CrsMode) -> Self {
        let of: Vec<Option<f64>> = places
            .nodes
            .iter()
            .map(|p| {
                p.open.then(|| match mode {
                    CrsMode::Basic => p.count as f64,
                    CrsMode::Static | CrsMode::Dynamic => mean(p.uses(Load::default())),
                })
            })
            .collect();
        let open = || of.iter().flatten();
        let (n, sum, squares) = (open().count() as f64, open().sum(), open().map(|x| x * x).sum());
        Self { n, sum, squares, of }
    }

    fn imbalance(&self, sum: f64, squares: f64) -> f64 {
        let mean = sum / self.n;
        if self.n < 2.0 || mean <= 0.0 {
            0.0
        } else {
            (squares / self.n - mean * mean).max(0.0).sqrt() / mean
        }
    }

    fn after(&self, from: usize, less: f64, to: usize, more: f64) -> f64 {
        let (a, b) = (self.of[from].unwrap_or_default(), self.of[to].unwrap_or_default());
        let (a2, b2) = ((a - less).max(0.0), b + more);
        self.imbalance(self.sum - a - b + a2 + b2, self.squares - a * a - b * b + a2 * a2 + b2 * b2)
    }
}

fn mean((mem, cpu): (f64, f64)) -> f64 {
    f64::midpoint(mem, cpu)
}

/// The imbalance of the nodes that services can be placed on; 0 when there are fewer than two.
pub(crate) fn imbalance(places: &Places<'_>, mode: CrsMode) -> f64 {
    let loads = Loads::new(places, mode);
    loads.imbalance(loads.sum, loads.squares)
}

/// Those that could move: alone or all of a unit, from one node, running, unlocked, and allowed to.
fn movable(view: &View, state: &ManagerState, places: &Places<'_>) -> Vec<(Vec<ServiceId>, usize)> {
    let mut seen_units = BTreeSet::new();
    let mut out = vec![];
    for (sid, _) in crate::manager::in_order(view) {
        let members = match places.unit(sid) {
            Some((number, members)) => {
                if !seen_units.insert(number) {
                    continue;
                }
                let there = |s: &&ServiceId| {
                    state.service_status.get(s).is_some_and(|s| s.state != ServiceState::Stopped)
                };
                members.iter().filter(there).copied().collect()
            }
            None => vec![sid],
        };
        let mut from = None;
        let free = members.iter().all(|sid| {
            let (Some(s), Some(seen)) = (state.service_status.get(sid), view.services.get(sid)) else {
                return false;
            };
            let node = places.at(&s.node);
            let together = from.is_none() || from == node;
            from = node;
            together
                && s.state == ServiceState::Started
                && seen.process == Process::Running
                && seen.resource.auto_rebalance
                && seen.lock.is_none()
                && s.retry_at.is_none()
                && view.lost_disk(seen, &s.node).is_none()
        });
        if let (true, Some(from)) = (free, from.filter(|f| places.nodes[*f].open)) {
            out.push((members, from));
        }
    }
    out
}

/// The nodes to look at: as sources, and as targets.
fn looked_at(loads: &Loads) -> (Vec<usize>, Vec<usize>) {
    let mut open: Vec<(usize, f64)> =
        loads.of.iter().enumerate().filter_map(|(i, x)| Some((i, (*x)?))).collect();
    let all: Vec<usize> = open.iter().map(|(i, _)| *i).collect();
    if open.len() <= 2 * LOOKED_AT {
        return (all.clone(), all);
    }
    open.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let mut low: Vec<usize> = open.iter().take(LOOKED_AT).map(|(i, _)| *i).collect();
    low.sort_unstable();
    (open.iter().rev().take(LOOKED_AT).map(|(i, _)| *i).collect(), low)
}

/// The best move by the method, if one takes enough of the imbalance away.
pub(crate) fn best(
    view: &View,
    state: &ManagerState,
    places: &Places<'_>,
    auto: &AutoRebalance,
) -> Option<Move> {
    let mode = view.options.crs.mode;
    let loads = Loads::new(places, mode);
    let before = loads.imbalance(loads.sum, loads.squares);
    let (sources, targets) = looked_at(&loads);
    let sources: BTreeSet<usize> = sources.into_iter().collect();
    let mut moves = vec![];
    let mut costs = vec![];
    for (members, from) in movable(view, state, places) {
        if !sources.contains(&from) {
            continue;
        }
        let mut weight = Load::default();
        for load in members.iter().map(|s| places.weight(*s)) {
            weight.cpu += load.cpu;
            weight.mem += load.mem;
        }
        for to in targets.iter().copied().filter(|t| *t != from) {
            let (source, target) = (&places.nodes[from], &places.nodes[to]);
            let part = |p: &crate::placement::Place<'_>| match mode {
                CrsMode::Basic => members.len() as f64,
                _ => mean(p.share(weight)),
            };
            let after = loads.after(from, part(source), to, part(target));
            let ask = |sid: ServiceId| Ask {
                sid,
                here: Some(source.name),
                stay: true,
                content: false,
                running: true,
                avoid: None,
            };
            // Cheap first: most moves make nothing better.
            let better = before - after >= (auto.margin * before).max(1e-9);
            if better
                && places.alike(members[0], from, to)
                && places.room(&members, to)
                && members.iter().all(|s| places.fits(&ask(*s), target.name))
            {
                let (mem, cpu) = target.uses(weight);
                costs.push([after, mem, cpu, weight.mem as f64]);
                moves.push(Move { members: members.clone(), from, to, before, after });
            }
        }
    }
    let chosen = match auto.method {
        BalanceMethod::Topsis => topsis::best(&costs, &WEIGHTS),
        BalanceMethod::Bruteforce => {
            let mut best = None;
            for (i, cost) in costs.iter().enumerate() {
                if best.is_none_or(|b: usize| cost[0] < costs[b][0] - 1e-9) {
                    best = Some(i);
                }
            }
            best
        }
    };
    chosen.map(|i| moves.swap_remove(i))
}
