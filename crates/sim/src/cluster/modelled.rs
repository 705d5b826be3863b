//! The modelled consensus: elections, rounds and commits as far as the layers above can notice them.
//!
//! A candidate gathers votes from whomever it reaches in that instant, and voters that heard a leader lately refuse. Rounds are
//! real messages, so that a leader can be deposed while one is on its way, and learn of it late or never.

use super::daemon::{ELECTION, Msg, ROUND};
use super::tasks::{Ask, Told};
use super::world::{Event, World};
use std::collections::BTreeSet;
use std::time::Duration;

const APPEND: Duration = Duration::from_millis(100);

/// Why a round is held.
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    Confirm(u64),
    Ask { from: usize, id: u64, life: u64, ask: Ask },
}

#[derive(Debug, Clone)]
pub(super) struct Round {
    acks: BTreeSet<usize>,
    /// The last index when it began.
    index: usize,
    pub until: Duration,
    pub purpose: Purpose,
}

impl World {
    fn majority(&self) -> usize {
        self.voters / 2 + 1
    }

    /// Whether a leader knows enough voters to follow.
    pub fn is_followed(&self, node: usize) -> bool {
        let (now, enough) = (self.now, self.majority());
        self.nodes[node].daemon.as_ref().is_some_and(|d| d.followed(now, self.voters) >= enough)
    }

    /// A leader keeps its own, anybody else stands for election when its time has come.
    pub fn elect(&mut self, node: usize) {
        if self.leads(node).is_some() {
            self.lead(node);
        } else {
            self.stand(node);
        }
    }

    /// Gives the lead to whoever is elected next.
    pub fn stand_back(&mut self, node: usize) {
        self.depose(node);
        let now = self.now;
        if let Some(d) = self.daemon(node) {
            d.heard = now + ELECTION;
        }
    }

    /// A leader keeps its followers, or learns that it has too few.
    fn lead(&mut self, node: usize) {
        let (now, last) = (self.now, self.store.last());
        let newest = self.store.term;
        let n = &mut self.nodes[node];
        let Some(d) = n.daemon.as_mut() else { return };
        let Some(term) = d.leads else { return };
        if d.followed(now, self.voters) < self.voters / 2 + 1 {
            return self.depose(node);
        }
        // What a leader of an older term knows ends where the newer one began; it has no way to commit more.
        let commit = if term == newest { last } else { n.applied };
        n.applied = n.applied.max(commit);
        if d.is_due("append", now, APPEND) {
            for to in (0..self.nodes.len()).filter(|to| *to != node) {
                self.send(node, to, Msg::Append { term, commit });
            }
        }
    }

    /// Stands for election, if no leader was heard for long enough.
    fn stand(&mut self, node: usize) {
        if node >= self.voters {
            return;
        }
        let now = self.now;
        // Where nothing is left to chance, the nodes' numbers part them.
        let apart = if self.plan.calm {
            Duration::from_millis(100) * u32::try_from(node).unwrap_or(7)
        } else {
            self.ms(node, 0, 700)
        };
        let patience = ELECTION + apart;
        let n = &mut self.nodes[node];
        let Some(d) = n.daemon.as_mut() else { return };
        if now.saturating_sub(d.heard) < d.patience {
            return;
        }
        d.patience = patience;
        d.heard = now;
        let voters: Vec<usize> =
            (0..self.voters).filter(|v| *v == node || self.would_vote(*v, node)).collect();
        if voters.len() < self.majority() {
            return;
        }
        let term = voters.iter().map(|v| self.nodes[*v].term).max().unwrap_or(0).max(self.store.term) + 1;
        self.note(|| format!("n{}: is elected for term {term}", node + 1));
        self.store.term = term;
        for voter in voters {
            self.nodes[voter].term = term;
            if voter != node && self.leads(voter).is_some() {
                self.depose(voter);
            }
            let Some(d) = self.daemon(voter) else { continue };
            (d.heard, d.leader) = (now, Some(node));
        }
        self.nodes[node].applied = self.store.last();
        let others = (0..self.cut.len()).filter(|v| *v != node).map(|v| (v, now)).collect();
        if let Some(d) = self.daemon(node) {
            d.acked = others;
        }
        self.begins_to_lead(node, term);
    }

    fn would_vote(&self, voter: usize, candidate: usize) -> bool {
        let n = &self.nodes[voter];
        let linked = !self.cut[voter][candidate] && !self.cut[candidate][voter];
        let awake = n.daemon.as_ref().filter(|d| n.executes(self.now) && d.paused_until <= self.now);
        linked && awake.is_some_and(|d| d.leads.is_none() && self.now.saturating_sub(d.heard) >= ELECTION / 2)
    }

    /// Takes the term of whoever speaks, unless it is an old one.
    pub fn accepts(&mut self, node: usize, term: u64) -> bool {
        if term < self.nodes[node].term {
            return false;
        }
        self.nodes[node].term = term;
        if self.leads(node).is_some_and(|mine| mine < term) {
            self.depose(node);
        }
        true
    }

    pub fn begin_round(&mut self, node: usize, purpose: Purpose) {
        let (until, index) = (self.now + ROUND, self.store.last());
        let Some(d) = self.daemon(node) else { return };
        let Some(term) = d.leads else { return };
        d.next_id += 1;
        let id = d.next_id;
        d.rounds.insert(id, Round { acks: BTreeSet::new(), index, until, purpose });
        for to in (0..self.voters).filter(|to| *to != node) {
            self.send(node, to, Msg::Round { term, id });
        }
    }

    pub fn round_acked(&mut self, node: usize, from: usize, term: u64, id: u64) {
        let enough = self.majority();
        let Some(d) = self.daemon(node).filter(|d| d.leads == Some(term)) else { return };
        let Some(round) = d.rounds.get_mut(&id) else { return };
        round.acks.insert(from);
        if round.acks.len() + 1 >= enough {
            self.complete(node, id, term);
        }
    }

    fn complete(&mut self, node: usize, id: u64, term: u64) {
        let Some(round) = self.daemon(node).and_then(|d| d.rounds.remove(&id)) else { return };
        match round.purpose {
            Purpose::Confirm(confirm) => {
                self.confirmed(node, confirm, Some(term));
            }
            Purpose::Ask { from, id, life, ask: Ask::Barrier } => {
                self.send(node, from, Msg::Told { id, life, told: Told::Done(round.index) });
            }
            Purpose::Ask { ask: Ask::Propose(_), .. } if self.now < self.stalls => {
                let life = self.nodes[node].daemon.as_ref().map_or(0, |d| d.life);
                let delay = self.ms(node, 100, 5000);
                self.after(delay, Event::Commit { node, life, term, round: Box::new(round) });
            }
            Purpose::Ask { ask: Ask::Propose(_), .. } => self.conclude(node, term, round),
        }
    }

    /// A majority has a proposal.
    pub fn conclude(&mut self, node: usize, term: u64, round: Round) {
        let Purpose::Ask { from, id, life, ask: Ask::Propose(txn) } = round.purpose else { return };
        // Whatever a deposed leader has not committed is lost with it; nobody hears of it.
        if self.store.term != term {
            return;
        }
        let (index, new) = self.store.propose((from, life, id), &txn);
        if let Some(index) = index {
            self.nodes[node].applied = self.nodes[node].applied.max(index);
        }
        if new {
            self.committed(&txn);
            if self.spring(node) {
                return;
            }
        }
        let told = index.map_or(Told::Refused, Told::Done);
        self.send(node, from, Msg::Told { id, life, told });
    }

    pub fn asked(&mut self, node: usize, from: usize, id: u64, life: u64, ask: Ask) {
        if self.leads(node).is_some() {
            self.begin_round(node, Purpose::Ask { from, id, life, ask });
        } else {
            self.send(node, from, Msg::Told { id, life, told: Told::Unknown });
        }
    }

    /// Hands a question to whoever leads, now or some time later.
    pub fn hand_over(&mut self, node: usize, id: u64, life: u64, ask: Ask, slow: bool) {
        match self.daemon(node).and_then(|d| d.leader) {
            _ if slow => self.late(node, id, life, ask),
            Some(leader) => self.send(node, leader, Msg::Ask { id, life, ask }),
            None => {}
        }
    }

    /// Forwards a proposal some time from now.
    pub fn late(&mut self, node: usize, id: u64, life: u64, ask: Ask) {
        let delay = self.ms(node, 100, 4000);
        let msg = Box::new(Msg::Late { id, life, ask });
        self.after(delay, Event::Deliver { from: node, to: node, msg });
    }
}
