//! The real consensus under the world: each node's driver and state machine as they are, over a modelled disk
//! ([`crate::conf`] has the node, its disk and its invariants), with frames as messages among the others of the world's network.
//!
//! ```text
//!   ask ──► Draft: what it makes of the proposer's tree, and checks ──► driver ──► log ──► applied somewhere first
//!                                                                                              │
//!   store ◄── the next entry: the files that the draft has written, taken over ◄───────────────┘
//! ```
//!
//! A daemon that ends takes what its disk was writing along, or not, as if the power had gone; so does a machine.

use super::daemon::Msg;
use super::records::{File, rests_on};
use super::store::{self, Store, Tree, Txn};
use super::tasks::{Ask, Then, Told};
use super::users::RETRY;
use super::world::{Event, World};
use crate::conf::Bug;
use crate::conf::dice::Dice;
use crate::conf::invariants::Invariants;
use crate::conf::node::{Node, Running, TICK, Wish};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use stead_conf::driver::{Input, Outcome, RequestId};
use stead_conf::{Committed, CommittedEntry, Machine, Members, NotLeader, TxnError};
use stead_membership::voters::MAX_VOTERS;

/// Every so many histories run the real store over modelled sectors.
const PAGES_EVERY: u64 = 40;

/// For how long a node that is to give up the lead stands for no election.
const HELD: Duration = Duration::from_secs(1);

/// What happens to a node's driver by itself.
#[derive(Debug, Clone, Copy)]
pub(super) enum Turn {
    /// Its clock goes on.
    Tick,
    /// Its disk has written.
    Written,
    /// It may stand for elections again.
    Free,
    /// A question comes to it only now: of that number, a proposal of that mark or a barrier.
    Ask { id: u64, mark: Option<u64> },
}

/// A proposal.
struct Draft {
    txn: Txn,
    /// The tree with it, as its proposer sees it.
    after: Rc<Tree>,
    files: Vec<File>,
    real: stead_conf::Txn,
}

/// What a driver was asked.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// By a daemon's question of that number.
    Question { id: u64, mark: Option<u64>, newest: u64 },
    /// For a round of its grantor.
    Confirm { round: u64, newest: u64 },
}

/// All nodes' drivers.
pub(super) struct Real {
    seed: u64,
    nodes: Vec<Node>,
    invariants: Invariants,
    drafts: BTreeMap<u64, Draft>,
    asked: BTreeMap<(usize, u64, RequestId), Asked>,
    /// Proposals by which the first of users' changes is to be made, and who was asked last.
    edit: BTreeSet<u64>,
    editor: Option<(usize, u64)>,
}

impl Clone for Real {
    fn clone(&self) -> Self {
        unreachable!("a world is copied to turn its time back, and none of those has real drivers")
    }
}

impl Real {
    /// Drivers for so many nodes, of which all have the tree on their disks. The first of them vote.
    fn new(seed: u64, nodes: usize, tree: &Rc<Tree>) -> Result<Self, String> {
        let files = File::all(tree);
        let put = |txn: stead_conf::Txn, file: &File| txn.put(file.to_string(), "0");
        let founding = files.iter().fold(stead_conf::Txn::new("founder").note("0"), put);
        let mut machine = Machine::found(1, &founding, 0).map_err(|refusal| refusal.to_string())?;
        let id = |node: usize| node as u64 + 1;
        let members = Members {
            voters: (0..nodes.min(MAX_VOTERS)).map(id).collect(),
            learners: (nodes.min(MAX_VOTERS)..nodes).map(id).collect(),
            ..Members::default()
        };
        machine.apply(1, CommittedEntry::Members(members)).map_err(|fault| fault.to_string())?;
        let pages = seed.is_multiple_of(PAGES_EVERY);
        Ok(Self {
            seed,
            nodes: (0..nodes).map(|n| Node::new(id(n), &machine, pages)).collect::<Result<_, _>>()?,
            invariants: Invariants::default(),
            drafts: BTreeMap::new(),
            asked: BTreeMap::new(),
            edit: BTreeSet::new(),
            editor: None,
        })
    }

    /// A proposal of what a change makes of a tree; nothing if that has nothing to write, and none if it cannot be made.
    fn draft(&mut self, node: usize, tree: &Tree, txn: &Txn) -> Option<Option<u64>> {
        let running = self.nodes[node].running.as_ref()?;
        let mut after = tree.clone();
        if !store::apply(&mut after, txn) {
            return None;
        }
        let files = File::written(tree, &after);
        if files.is_empty() {
            return Some(None);
        }
        let mark = self.drafts.len() as u64 + 1;
        let seen = |file: &File| Some(running.machine.tree().get(&file.to_string())?.revision.0);
        let mut real = stead_conf::Txn::new(format!("n{}", node + 1)).note(mark.to_string());
        for (file, named) in rests_on(txn, tree, &files) {
            real = real.check(file.check(named.or_else(|| seen(&file))));
        }
        for file in &files {
            let path = file.to_string();
            real = if file.is_in(&after) { real.put(path, mark.to_string()) } else { real.delete(path) };
        }
        self.drafts.insert(mark, Draft { txn: txn.clone(), after: Rc::new(after), files, real });
        Some(Some(mark))
    }

    /// Judges an answer, and says what it means to who has asked.
    fn judge(&mut self, node: usize, asked: Asked, outcome: &Outcome) -> Result<Told, String> {
        let revision = self.nodes[node].running.as_ref().map_or(0, |r| r.machine.tree().revision().0);
        let here = usize::try_from(revision).unwrap_or(usize::MAX);
        let id = self.nodes[node].id;
        match (asked, outcome) {
            (Asked::Question { mark: Some(mark), .. }, Outcome::Txn(result)) => match result {
                Ok(commit) if revision < commit.revision.0 => {
                    Err(format!("n{id} answered {mark} before applying it"))
                }
                Ok(commit) => {
                    self.invariants.durable.acknowledged(mark, commit.revision.0).map(|()| Told::Done(here))
                }
                Err(TxnError::Refused(_)) => self.invariants.durable.never(mark).map(|()| Told::Refused),
                Err(TxnError::NoQuorum { .. }) => self.invariants.durable.never(mark).map(|()| Told::Unknown),
                Err(TxnError::Unknown { .. }) => Ok(Told::Unknown),
                Err(stopped @ TxnError::Stopped { .. }) => Err(stopped.to_string()),
            },
            (Asked::Question { newest, .. }, Outcome::Barrier(Ok(()))) => {
                self.invariants.reads.barrier(id, newest, revision).map(|()| Told::Done(here))
            }
            (Asked::Question { .. }, Outcome::Barrier(Err(_))) => Ok(Told::Unknown),
            (asked, outcome) => Err(format!("{asked:?} was answered by {outcome:?}")),
        }
    }
}

impl World {
    /// From now on real drivers keep the configuration, which begins as it is.
    pub fn make_real(&mut self, seed: u64) {
        let mut first = self.store.newest().clone();
        for file in File::all(&first) {
            let tree = first.clone();
            file.take(&tree, &mut first, 1);
        }
        let first = Rc::new(first);
        match Real::new(seed, self.nodes.len(), &first) {
            Ok(real) => {
                self.real = Some(Box::new(real));
                self.store = Store::beginning(1, Tree::clone(&first));
            }
            Err(how) => self.breaks("conf", how),
        }
    }

    /// A daemon is about to start: its driver begins with what is on its disk.
    pub fn conf_starts(&mut self, node: usize) {
        if self.real.is_none() {
            return;
        }
        let (at, cut) = (self.conf_clock(node), self.dice.draw(super::dice::Stream::Node(node)));
        let Some(real) = self.real.as_deref_mut() else { return };
        let conf = &mut real.nodes[node];
        conf.crash(&mut Dice::new(cut), Bug::None);
        let begun = conf.start(at, Bug::None, real.seed);
        let begun = begun.and_then(|()| {
            let Some(running) = &conf.running else { return Ok(0) };
            real.invariants.begins(conf.id, &running.machine)?;
            Ok(running.machine.tree().revision().0)
        });
        real.asked.retain(|(of, ..), _| *of != node);
        match begun {
            Ok(revision) => self.nodes[node].applied = usize::try_from(revision).unwrap_or(usize::MAX),
            Err(how) => self.breaks("conf", how),
        }
    }

    /// It has started.
    pub fn conf_began(&mut self, node: usize) {
        if self.real.is_some() {
            self.turn_after(Duration::from_millis(1), node, Turn::Tick);
            self.drive_with(node, Running::carry_out);
        }
    }

    /// What a node's clock shows, in microseconds.
    fn conf_clock(&self, node: usize) -> u64 {
        u64::try_from(self.nodes[node].clock(self.now).as_micros()).unwrap_or(u64::MAX)
    }

    fn turn_after(&mut self, time: Duration, node: usize, turn: Turn) {
        let Some(life) = self.nodes[node].daemon.as_ref().map(|d| d.life) else { return };
        self.after(time, Event::Driver { node, life, turn });
    }

    /// Its turn has come, and its daemon goes.
    pub fn turn(&mut self, node: usize, turn: Turn) {
        match turn {
            Turn::Tick => {
                let period = Duration::from_micros(TICK) * 1000 / self.nodes[node].rate;
                self.turn_after(period, node, Turn::Tick);
                self.drive(node, Input::Tick);
            }
            Turn::Written => {
                let Some(real) = self.real.as_deref_mut() else { return };
                match real.nodes[node].written() {
                    Ok(last) => self.drive(node, Input::Persisted(last)),
                    Err(how) => self.breaks("conf", how),
                }
                self.write(node);
            }
            Turn::Free => self.drive(node, Input::Hold(false)),
            Turn::Ask { id, mark } => {
                let Some(real) = self.real.as_deref_mut() else { return };
                let newest = real.invariants.reads.newest_revision();
                let asked = Asked::Question { id, mark, newest };
                let txn = mark.and_then(|mark| real.drafts.get(&mark)).map(|draft| draft.real.clone());
                let at_ms = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
                self.question(node, asked, |request| match txn {
                    Some(txn) => Input::Transact { request, txn, at_ms },
                    None => Input::Barrier { request },
                });
            }
        }
    }

    fn question(&mut self, node: usize, asked: Asked, input: impl FnOnce(RequestId) -> Input) {
        let Some(real) = self.real.as_deref_mut() else { return };
        let conf = &mut real.nodes[node];
        let Some(request) = conf.running.as_mut().map(Running::request) else { return };
        real.asked.insert((node, conf.life, request), asked);
        self.drive(node, input(request));
    }

    /// A daemon's question to the cluster. What is to be proposed is made of the tree that it sees now, however late it goes.
    pub fn ask_driver(&mut self, node: usize, id: u64, ask: Ask, slow: bool) {
        let tree = self.tree(node);
        let Some(real) = self.real.as_deref_mut() else { return };
        let mark = match ask {
            Ask::Barrier => None,
            Ask::Propose(txn) => match real.draft(node, &tree, &txn) {
                Some(Some(mark)) => Some(mark),
                // It is as it should be already, or cannot be: nobody needs to be asked.
                nothing => {
                    let told =
                        if nothing.is_some() { Told::Done(self.nodes[node].applied) } else { Told::Refused };
                    let Some(life) = self.nodes[node].daemon.as_ref().map(|d| d.life) else { return };
                    return self.send(node, node, Msg::Told { id, life, told });
                }
            },
        };
        if let Some(mark) = mark
            && self
                .real
                .as_ref()
                .is_some_and(|real| real.drafts.get(&mark).is_some_and(|d| matches!(d.txn, Txn::User(_))))
        {
            self.edits_by(node, mark);
        }
        let time = if slow { self.ms(node, 100, 4000) } else { Duration::from_micros(50) };
        self.turn_after(time, node, Turn::Ask { id, mark });
    }

    /// A leader is to confirm that it leads.
    pub fn confirm_driver(&mut self, node: usize, round: u64) {
        let Some(real) = self.real.as_deref() else { return };
        let newest = real.invariants.reads.newest_term();
        self.question(node, Asked::Confirm { round, newest }, |request| Input::Confirm { request });
    }

    /// A node stands for no election for a while.
    pub fn hold(&mut self, node: usize) {
        self.turn_after(HELD, node, Turn::Free);
        self.drive(node, Input::Hold(true));
    }

    /// Gives a driver an input, and sees to what follows.
    pub fn drive(&mut self, node: usize, input: Input) {
        self.drive_with(node, |running, id, now, bug, invariants| {
            running.input(id, now, input, bug, invariants)
        });
    }

    fn drive_with(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut Running, u64, u64, Bug, &mut Invariants) -> Result<Vec<Wish>, String>,
    ) {
        let at = self.conf_clock(node);
        let Some(real) = self.real.as_deref_mut() else { return };
        let conf = &mut real.nodes[node];
        let (id, life) = (conf.id, conf.life);
        let Some(running) = &mut conf.running else { return };
        match act(running, id, at, Bug::None, &mut real.invariants) {
            Ok(wishes) => self.see_to(node, life, wishes),
            Err(how) => self.breaks("conf", how),
        }
    }

    fn see_to(&mut self, node: usize, life: u64, wishes: Vec<Wish>) {
        let (mut frames, mut answers, mut writes, mut struck) = (vec![], vec![], false, false);
        for wish in wishes {
            match wish {
                Wish::Send { to, frame } => frames.push((to, frame)),
                Wish::Write => writes = true,
                Wish::Done(request, outcome) => answers.push((request, outcome)),
                Wish::Seen(event) => struck |= self.seen(node, &event),
            }
        }
        if writes {
            self.write(node);
        }
        self.stand_at(node);
        if struck && self.spring(node) {
            // Nobody hears of it.
            frames.clear();
        }
        self.send_frames(node, frames);
        self.follow(node);
        for (request, outcome) in answers {
            self.answer(node, life, request, &outcome);
        }
    }

    fn send_frames(&mut self, node: usize, frames: Vec<(u64, Bytes)>) {
        for (to, frame) in frames {
            let to = usize::try_from(to).unwrap_or(0).wrapping_sub(1);
            if to < self.nodes.len() {
                self.send(node, to, Msg::Frame(frame));
            }
        }
    }

    fn write(&mut self, node: usize) {
        let Some(real) = self.real.as_deref_mut() else { return };
        if real.nodes[node].begin_write() {
            let time = if self.now < self.stalls { self.ms(node, 100, 5000) } else { self.ms(node, 1, 4) };
            self.turn_after(time, node, Turn::Written);
        }
    }

    /// The node's daemon reads what its machine has applied.
    fn stand_at(&mut self, node: usize) {
        let Some(real) = self.real.as_deref() else { return };
        let Some(running) = &real.nodes[node].running else { return };
        let applied = usize::try_from(running.machine.tree().revision().0).unwrap_or(usize::MAX);
        self.nodes[node].applied = applied;
        if applied > self.store.last() {
            self.breaks(
                "conf",
                format!("n{} is at revision {applied}, and nobody has seen that committed", node + 1),
            );
        }
    }

    /// A node has applied a commit. The first one that does tells the world. Says whether that was the leader.
    fn seen(&mut self, node: usize, event: &Committed) -> bool {
        let revision = event.revision.0;
        let index = usize::try_from(revision).unwrap_or(usize::MAX);
        if index != self.store.last() + 1 {
            return false;
        }
        let mark: u64 = event.note.parse().unwrap_or(0);
        let Some(real) = self.real.as_deref_mut() else { return false };
        let Some(draft) = real.drafts.get(&mark) else {
            self.breaks(
                "conf",
                format!("revision {revision} is of '{}', which nobody has proposed", event.note),
            );
            return false;
        };
        let written: BTreeSet<String> = draft.files.iter().map(ToString::to_string).collect();
        let changed: BTreeSet<String> = event.changes.iter().map(|change| change.path.clone()).collect();
        let mut tree = self.store.newest().clone();
        draft.files.iter().for_each(|file| file.take(&draft.after, &mut tree, revision));
        let txn = draft.txn.clone();
        let of_edit = real.edit.contains(&mark);
        if written != changed {
            self.breaks(
                "conf",
                format!("revision {revision} has changed {changed:?}, and was to change {written:?}"),
            );
        }
        self.store.append(tree);
        self.committed(&txn);
        if let (Txn::User(edit), true) = (&txn, of_edit) {
            self.edits.pop_front();
            self.edits_over();
            self.edited(node, edit);
            self.after(Duration::ZERO, Event::Edits);
        }
        self.leads(node).is_some()
    }

    /// Whom a node follows, and whether it leads.
    fn follow(&mut self, node: usize) {
        let Some(real) = self.real.as_deref() else { return };
        let Some(status) = real.nodes[node].status() else { return };
        let leader = status.leader.and_then(|id| usize::try_from(id.0).ok()?.checked_sub(1));
        let leads = status.is_leader.then_some(status.term);
        let was = self.leads(node);
        if was.is_some() && was != leads {
            self.depose(node);
        }
        if let Some(d) = self.daemon(node) {
            d.leader = leader;
        }
        if let Some(term) = leads.filter(|_| was != leads) {
            self.note(|| format!("n{}: is elected for term {term}", node + 1));
            self.store.term = self.store.term.max(term);
            self.begins_to_lead(node, term);
        }
    }

    fn answer(&mut self, node: usize, life: u64, request: RequestId, outcome: &Outcome) {
        let Some(real) = self.real.as_deref_mut() else { return };
        let Some(asked) = real.asked.remove(&(node, life, request)) else { return };
        if let (Asked::Confirm { round, newest }, Outcome::Confirm(confirmed)) = (asked, outcome) {
            return self.confirmed_driver(node, round, newest, confirmed.as_ref().map(|term| term.0));
        }
        let judged = real.judge(node, asked, outcome);
        let Some(daemon) = self.nodes[node].daemon.as_ref().map(|d| d.life) else { return };
        match (asked, judged) {
            (Asked::Question { id, .. }, Ok(told)) => self.told(node, id, daemon, told),
            (Asked::Confirm { .. }, Ok(_)) => {}
            (_, Err(how)) => self.breaks("conf", how),
        }
    }

    fn confirmed_driver(&mut self, node: usize, round: u64, newest: u64, confirmed: Result<u64, &NotLeader>) {
        let Some(real) = self.real.as_deref_mut() else { return };
        let id = real.nodes[node].id;
        let stale = confirmed.ok().and_then(|term| real.invariants.reads.confirmed(id, newest, term).err());
        if let Some(how) = stale {
            self.breaks("conf", how);
        }
        self.confirmed(node, round, confirmed.ok());
    }

    /// Has a leader propose what users wait for, one after the other.
    pub fn propose_edit(&mut self, leader: usize) {
        let Some((editor, life)) = self.real.as_ref().map(|real| real.editor.unwrap_or((usize::MAX, 0)))
        else {
            return;
        };
        if editor < self.nodes.len() && self.daemon_is(editor, life) {
            return self.after(RETRY, Event::Edits);
        }
        while let Some(edit) = self.edits.front().cloned() {
            let tree = self.tree(leader);
            let mut after = Tree::clone(&tree);
            let untrue = self.is_untrue(&edit);
            if untrue || !edit.apply(&mut after) || File::written(&tree, &after).is_empty() {
                self.edits.pop_front();
                self.edits_over();
                continue;
            }
            self.ask(leader, Ask::Propose(Txn::User(edit)), Then::Edited);
            return self.after(RETRY, Event::Edits);
        }
    }

    fn edits_by(&mut self, node: usize, mark: u64) {
        let life = self.nodes[node].daemon.as_ref().map_or(0, |d| d.life);
        if let Some(real) = self.real.as_deref_mut() {
            real.edit.insert(mark);
            real.editor = Some((node, life));
        }
    }

    /// The first of users' changes is made, or never will be.
    fn edits_over(&mut self) {
        if let Some(real) = self.real.as_deref_mut() {
            real.edit.clear();
            real.editor = None;
        }
    }

    /// Whoever was asked last for a user's change has answered: it can be tried again, if need be.
    pub fn edit_answered(&mut self) {
        if let Some(real) = self.real.as_deref_mut() {
            real.editor = None;
        }
    }
}
