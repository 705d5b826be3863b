//! A migration while the guest runs: the plan is [`stead_guest::migration::Migration`], carried out in the order of the daemon's shells.
//! QEMU sends by itself; its stream goes through both daemons and ends with them.

use super::Plant;
use super::daemon::Msg;
use super::node::{Incoming, Sending};
use super::store::Txn;
use super::tasks::{Ask, Then};
use super::world::{Call, Event, World};
use crate::scenario::Kind;
use crate::scenario::command::Disks;
use std::collections::VecDeque;
use std::time::Duration;
use stead_guest::migration::{Command, Event as Moved, Migration};
use stead_ha::{AgentCommand, Ending};
use stead_model::{Epoch, NodeName, Vmid};

/// How long a target may take to make its process, and to say that it runs.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the source is asked whether it still migrates, while no commit comes.
const ASK_SOURCE: Duration = Duration::from_secs(5);

/// A migration, at its source.
#[derive(Debug, Clone)]
pub(super) struct Moving {
    plan: Migration,
    command: AgentCommand,
    /// Revisions of the ownership and of the target's record, as read at the beginning.
    revision: u64,
    target: u64,
    /// By when the target must have answered.
    until: Option<Duration>,
}

/// What the record says of a copy that waits.
enum Fate {
    Ours,
    Wait,
    Never,
}

impl World {
    /// Begins to move a guest that runs here.
    pub fn begin_migration(&mut self, node: usize, command: AgentCommand, epoch: Epoch, to: &NodeName) {
        let tree = self.tree(node);
        let vmid = command.sid.vmid;
        let (plan, first) = Migration::begin(vmid, to.clone(), epoch, false);
        let (revision, target) = (tree.revision(vmid), tree.node_revision(to));
        let moving = Moving { plan, command, revision, target, until: None };
        if let Some(d) = self.daemon(node) {
            d.moves.insert(vmid, moving);
        }
        self.begin_transit(node, vmid);
        self.carry_out_moves(node, vmid, vec![first]);
    }

    /// Something has happened to a migration.
    pub fn moved(&mut self, node: usize, vmid: Vmid, event: Moved) {
        let Some(moving) = self.daemon(node).and_then(|d| d.moves.get_mut(&vmid)) else { return };
        let commands = moving.plan.on(event);
        self.carry_out_moves(node, vmid, commands);
    }

    fn carry_out_moves(&mut self, node: usize, vmid: Vmid, commands: Vec<Command>) {
        let mut queue = VecDeque::from(commands);
        while let Some(command) = queue.pop_front() {
            let Some(event) = self.carry_out_move(node, vmid, command) else { continue };
            let Some(moving) = self.daemon(node).and_then(|d| d.moves.get_mut(&vmid)) else { return };
            queue.extend(moving.plan.on(event));
        }
    }

    fn carry_out_move(&mut self, node: usize, vmid: Vmid, command: Command) -> Option<Moved> {
        let until = self.now + ANSWER;
        let moving = self.nodes[node].daemon.as_mut()?.moves.get_mut(&vmid)?;
        let (epoch, to) = (moving.plan.epoch, moving.plan.target.clone());
        moving.until =
            matches!(command, Command::PrepareTarget { .. } | Command::AskTargetToRun).then_some(until);
        let (revision, target) = (moving.revision, moving.target);
        let far = self.index(&to)?;
        match command {
            Command::PrepareTarget { epoch } => self.send(node, far, Msg::Prepare { vmid, epoch }),
            Command::Send => self.begin_sending(node, vmid, far),
            // The model's guests have no disks of their own, and are sent before they go over.
            Command::CancelSending
            | Command::BeginFetching
            | Command::LetFetch
            | Command::FollowFetching
            | Command::MirrorDisks
            | Command::SettleDisks
            | Command::SendRest
            | Command::EndMirrors => {}
            Command::ProposeHandover { .. } => {
                let from = self.nodes[node].name.clone();
                let txn = Txn::HandOver { vmid, from, to, epoch, revision, target };
                self.ask(node, Ask::Propose(txn), Then::HandedOver(vmid));
            }
            Command::AskTargetToRun => self.send(node, far, Msg::Continue { vmid, epoch: epoch.next() }),
            Command::EndSource => self.destroy(node, vmid, None),
            Command::EndTarget => {
                self.send(node, far, Msg::Abort { vmid, epoch: epoch.next() });
                return Some(Moved::TargetEnded);
            }
            Command::ContinueSource => return Some(self.continue_source(node, vmid, epoch)),
            Command::Finish(result) => self.end_migration(node, vmid, result),
        }
        None
    }

    fn end_migration(&mut self, node: usize, vmid: Vmid, result: Result<(), String>) {
        let Some(moving) = self.daemon(node).and_then(|d| d.moves.remove(&vmid)) else { return };
        let ending = match result {
            Ok(()) => Ending::Done,
            Err(why) if self.leased(node) => Ending::Failed(why),
            Err(why) => Ending::NotNow(why),
        };
        if matches!(ending, Ending::Failed(_)) {
            self.tell_guest(Kind::MoveFail, vmid, node);
        }
        if let Some(scene) = self.scene.as_mut().filter(|_| ending != Ending::Done) {
            scene.transit.remove(&vmid);
        }
        self.ended(node, &moving.command, ending);
    }

    fn continue_source(&mut self, node: usize, vmid: Vmid, epoch: Epoch) -> Moved {
        let leased = self.leased(node);
        let Some(copy) = self.nodes[node].copies.get_mut(&vmid).filter(|c| c.epoch == epoch) else {
            return Moved::SourceStuck("it has ended".to_owned());
        };
        if copy.running && !copy.frozen {
            return Moved::SourceRuns;
        }
        if !leased {
            return Moved::SourceStuck("no lease".to_owned());
        }
        copy.sent = false;
        self.ask_fenced(node, Call::Run { vmid, epoch, task: None });
        Moved::SourceRuns
    }

    fn begin_sending(&mut self, node: usize, vmid: Vmid, to: usize) {
        let life = |w: &Self, n: usize| w.nodes[n].daemon.as_ref().map_or(0, |d| d.life);
        let lives = (life(self, node), life(self, to));
        let slow = self.chance(node, 300);
        let time = if slow { self.ms(node, 2000, 20_000) } else { self.ms(node, 2, 1500) };
        let id = self.next;
        let boots = self.nodes[node].boots;
        let fails = self.move_fails(vmid);
        match self.nodes[node].copies.get_mut(&vmid) {
            Some(copy) => copy.sending = Some(Sending { id, to, lives, fails }),
            None => return self.streamed(node, vmid, false),
        }
        self.note(|| format!("n{}: guest {vmid}: its state is being sent to n{}", node + 1, to + 1));
        self.after(time, Event::Sent { node, boots, vmid, sending: id, life: lives.0 });
    }

    /// QEMU is through with sending, one way or the other. Whoever told it to learns of it later.
    pub fn sent(&mut self, node: usize, vmid: Vmid, (id, life): (u64, u64)) {
        let now = self.now;
        let resumes = self.nodes[node].paused_until;
        let boots = self.nodes[node].boots;
        if now < resumes {
            return self.at(resumes, Event::Sent { node, boots, vmid, sending: id, life });
        }
        let Some(copy) = self.nodes[node].copies.get(&vmid) else {
            return self.after(Duration::from_micros(200), Event::Streamed { node, life, vmid, ok: false });
        };
        let Some(sending) = copy.sending.clone().filter(|s| s.id == id) else { return };
        let (epoch, to) = (copy.epoch, sending.to);
        let life_of = |n: usize| self.nodes[n].daemon.as_ref().map_or(0, |d| d.life);
        let linked = !self.cut[node][to] && !self.cut[to][node];
        let there = |c: &super::node::Copy| c.incoming.is_some() && c.epoch == epoch.next() && !c.frozen;
        let far = self.nodes[to].executes(now) && self.nodes[to].copies.get(&vmid).is_some_and(there);
        let ok =
            !copy.hung && !sending.fails && linked && far && (life_of(node), life_of(to)) == sending.lives;
        if let (true, Some(waiting)) = (ok, self.nodes[to].copies.get_mut(&vmid)) {
            waiting.received = true;
        }
        if let Some(copy) = self.nodes[node].copies.get_mut(&vmid) {
            copy.sending = None;
            copy.sent = ok;
            // QEMU stops the CPUs when all is sent, and continues them by itself when it has failed.
            copy.running = !ok && (copy.running || !copy.hung);
        }
        let how = if ok { "its state is sent, its CPUs stand" } else { "its migration fails, it goes on" };
        self.note(|| format!("n{}: guest {vmid}: {how}", node + 1));
        self.after(Duration::from_micros(200), Event::Streamed { node, life, vmid, ok });
    }

    /// The daemon has learned how the sending ended.
    pub fn streamed(&mut self, node: usize, vmid: Vmid, ok: bool) {
        let event = if ok { Moved::Completed } else { Moved::Failed("its migration failed".to_owned()) };
        self.moved(node, vmid, event);
    }

    /// The target is asked to prepare: by a read as new as any commit before.
    pub fn prepare(&mut self, node: usize, from: usize, vmid: Vmid, epoch: Epoch) {
        self.ask(node, Ask::Barrier, Then::Prepare { from, vmid, epoch });
    }

    /// The guest's process is made here, known to the fence process first, and waits.
    pub fn prepare_now(&mut self, node: usize, from: usize, vmid: Vmid, epoch: Epoch, read: bool) {
        let (tree, now) = (self.tree(node), self.now);
        let source = self.nodes[from].name.clone();
        let n = &mut self.nodes[node];
        let owner = tree.owners.get(&vmid).is_some_and(|o| o.owner == source && o.epoch.next() == epoch);
        let member = tree.is_member(&n.name, &n.boot);
        let free = !n.copies.contains_key(&vmid) && n.disks.0 == Disks::Well;
        let ready = read && owner && member && free;
        let registered = ready
            && n.answering(now).is_some_and(|f| {
                f.jobs.remove(&vmid);
                f.holder.register(vmid, epoch, true).is_ok()
            });
        if registered {
            n.record.insert(vmid, (epoch, false));
            self.add_copy(node, vmid, epoch);
            if let Some(copy) = self.nodes[node].copies.get_mut(&vmid) {
                copy.incoming = Some(Incoming { from, asked: now });
            }
        }
        self.send(node, from, Msg::Prepared { vmid, epoch, ok: registered });
    }

    /// The target has answered.
    pub fn prepared(&mut self, node: usize, vmid: Vmid, epoch: Epoch, ok: bool) {
        if !self.moves_under(node, vmid, epoch) {
            return;
        }
        let event = if ok { Moved::TargetReady } else { Moved::Failed("the target refuses".to_owned()) };
        self.moved(node, vmid, event);
    }

    fn moves_under(&self, node: usize, vmid: Vmid, epoch: Epoch) -> bool {
        let moving = self.nodes[node].daemon.as_ref().and_then(|d| d.moves.get(&vmid));
        moving.is_some_and(|m| m.plan.epoch.next() == epoch)
    }

    /// The target says that the guest runs there.
    pub fn runs_there(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        if self.moves_under(node, vmid, epoch) {
            self.moved(node, vmid, Moved::TargetRuns);
        }
    }

    /// What came of the proposal to hand a guest over.
    pub fn handed_over(&mut self, node: usize, vmid: Vmid, told: super::tasks::Told) {
        use super::tasks::Told;
        match told {
            Told::Done(_) => self.moved(node, vmid, Moved::Committed),
            Told::Unknown => self.moved(node, vmid, Moved::Unknown("no answer".to_owned())),
            Told::Refused => self.ask(node, Ask::Barrier, Then::ReadOutcome(vmid)),
        }
    }

    /// The hand-over was refused for good: whose is the guest?
    pub fn read_outcome(&mut self, node: usize, vmid: Vmid, read: bool) {
        let tree = self.tree(node);
        let me = self.nodes[node].name.clone();
        let Some(moving) = self.daemon(node).and_then(|d| d.moves.get(&vmid)) else { return };
        let (epoch, target) = (moving.plan.epoch, moving.plan.target.clone());
        let event = match tree.owners.get(&vmid) {
            _ if !read => return self.ask(node, Ask::Barrier, Then::ReadOutcome(vmid)),
            Some(o) if o.owner == target && o.epoch == epoch.next() => Moved::Committed,
            Some(o) if o.owner == me && o.epoch == epoch => {
                Moved::RefusedStillOurs("it has changed".to_owned())
            }
            _ => Moved::RefusedNotOurs("it was recovered elsewhere".to_owned()),
        };
        self.moved(node, vmid, event);
    }

    /// Migrations whose target does not answer.
    pub fn expire_moves(&mut self, node: usize) {
        let now = self.now;
        let Some(d) = self.daemon(node) else { return };
        let late = d.moves.iter().filter(|(_, m)| m.until.is_some_and(|u| u < now));
        let late: Vec<Vmid> = late.map(|(v, _)| *v).collect();
        for vmid in late {
            // One of the two is what the plan waits for.
            self.moved(node, vmid, Moved::TargetSilent("no answer".to_owned()));
            self.moved(node, vmid, Moved::Failed("no answer".to_owned()));
        }
    }

    fn fate(&self, node: usize, vmid: Vmid, epoch: Epoch) -> Fate {
        let tree = self.tree(node);
        match tree.owners.get(&vmid) {
            Some(o) if o.epoch == epoch && o.owner == self.nodes[node].name && o.running => Fate::Ours,
            Some(o) if o.epoch.next() == epoch && o.owner != self.nodes[node].name => Fate::Wait,
            _ => Fate::Never,
        }
    }

    /// Looks after copies that wait for their hand-over.
    pub fn await_handover(&mut self, node: usize) {
        let waiting =
            self.nodes[node].copies.iter().filter_map(|(v, c)| Some((*v, c.epoch, c.incoming.clone()?)));
        let waiting: Vec<(Vmid, Epoch, Incoming)> = waiting.collect();
        for (vmid, epoch, incoming) in waiting {
            match self.fate(node, vmid, epoch) {
                Fate::Ours => self.continue_incoming(node, vmid, epoch),
                Fate::Never => self.end_incoming(node, vmid, epoch),
                Fate::Wait if self.now - incoming.asked > ASK_SOURCE => {
                    let asked = self.now;
                    if let Some(copy) = self.nodes[node].copies.get_mut(&vmid) {
                        copy.incoming = Some(Incoming { asked, ..incoming });
                    }
                    self.send(node, incoming.from, Msg::Migrating { vmid, epoch });
                }
                Fate::Wait => {}
            }
        }
    }

    /// Whether a guest is still being moved to whoever asks.
    pub fn migrating(&mut self, node: usize, from: usize, vmid: Vmid, epoch: Epoch) {
        if !self.moves_under(node, vmid, epoch) {
            self.send(node, from, Msg::MovesNoMore { vmid, epoch });
        }
    }

    /// The source has given up: the record, read as new as can be, decides.
    pub fn moves_no_more(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        self.ask(node, Ask::Barrier, Then::EndIncoming { vmid, epoch });
    }

    /// It is still not ours, and the source moves it no more.
    pub fn end_waiting(&mut self, node: usize, vmid: Vmid, epoch: Epoch, read: bool) {
        if read && !matches!(self.fate(node, vmid, epoch), Fate::Ours) {
            self.end_incoming(node, vmid, epoch);
        }
    }

    /// The source tells that the hand-over is committed.
    pub fn continue_told(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        match self.fate(node, vmid, epoch) {
            Fate::Ours => self.continue_incoming(node, vmid, epoch),
            _ => self.ask(node, Ask::Barrier, Then::ContinueIncoming { vmid, epoch }),
        }
    }

    /// The same, by a read as new as any commit before.
    pub fn continue_now(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        if matches!(self.fate(node, vmid, epoch), Fate::Ours) {
            self.continue_incoming(node, vmid, epoch);
        }
    }

    /// A guest that waited runs now.
    pub fn arrived(&mut self, node: usize, vmid: Vmid) {
        let Some(copy) = self.nodes[node].copies.get(&vmid).filter(|c| c.incoming.is_some()) else { return };
        let epoch = copy.epoch;
        if self.nodes[node].daemon.is_some() {
            self.continue_incoming(node, vmid, epoch);
        }
    }

    fn continue_incoming(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        let late = self.plan.plant == Plant::ContinueLate;
        // Whoever sends it on holds the guest's mutex.
        let sent_on = self.nodes[node].daemon.as_ref().is_some_and(|d| d.moves.contains_key(&vmid));
        let Some(copy) = self.nodes[node].copies.get_mut(&vmid).filter(|c| c.epoch == epoch) else { return };
        if (copy.running && !copy.frozen) || (copy.ran && !late) {
            if let Some(from) = copy.incoming.take().map(|i| i.from) {
                self.send(node, from, Msg::Runs { vmid, epoch });
            }
        } else if copy.received && (!sent_on || late) {
            self.ask_fenced(node, Call::Run { vmid, epoch, task: None });
        }
    }

    /// Ends a copy that never ran.
    pub fn end_incoming(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        let waits = |c: &super::node::Copy| c.epoch == epoch && c.incoming.is_some();
        let ours = matches!(self.fate(node, vmid, epoch), Fate::Ours);
        if self.nodes[node].copies.get(&vmid).is_some_and(waits) && !ours {
            self.destroy(node, vmid, None);
        }
    }

    /// What a broken migration has left is taken back: the record is written anew first, so that no hand-over that is still on
    /// its way can be committed.
    pub fn reclaim(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        let revision = self.tree(node).revision(vmid);
        let me = self.nodes[node].name.clone();
        self.ask(
            node,
            Ask::Propose(Txn::Rewrite { vmid, node: me, revision }),
            Then::Reclaimed { vmid, epoch },
        );
    }

    /// The record was written anew, or was not.
    pub fn reclaimed(&mut self, node: usize, vmid: Vmid, epoch: Epoch, done: bool) {
        let tree = self.tree(node);
        let Some(copy) = self.nodes[node].copies.get_mut(&vmid).filter(|c| done && c.epoch == epoch) else {
            return;
        };
        if tree.owners.get(&vmid).is_some_and(|o| o.epoch == epoch) {
            copy.sent = false;
            self.ask_fenced(node, Call::Run { vmid, epoch, task: None });
        }
    }

    /// Whether it is open to whom a copy belongs: all of it was sent, and a hand-over may still be committed.
    pub fn handover_is_open(&self, node: usize, vmid: Vmid) -> bool {
        let sent = self.nodes[node].copies.get(&vmid).is_some_and(|c| c.sent);
        sent && self.plan.plant != Plant::ThawInHandover
    }
}
