//! The driver: all that a node decides about the replicated configuration, without doing any of it. Time, frames,
//! disk results and requests come in as [`Input`]s; what is to be done comes out as [`Command`]s. It uses no clock,
//! random source, file, socket or thread, so the simulator runs it as it is.
//!
//! ```text
//!   Input ──► requests (transactions, reads, members) ──┐
//!             frames ──────────────────────────────────►│ engine (Raft)
//!                                                       ▼
//!   Command ◄── Persist ── Send ── Apply ── Install ── Done ── Status
//! ```
//!
//! The host's duties, on which safety rests:
//! - carry commands out in their order; a `Persist` may take its time (answer [`Input::Persisted`]), all others are
//!   done when the next input is given;
//! - persist in order, whole or not at all, and report only what is on stable storage;
//! - apply to the one [`Machine`](crate::Machine) and report with [`Input::Applied`] at once;
//! - give a boot number that this store has never had before.

mod members;
mod proposals;
mod reads;
mod transfer;

use crate::codec;
use crate::engine::{CommittedRaw, Durable, Engine, EngineFault, Hard, RaftEngine, Ready, Timing};
use crate::error::{ConfError, MemberError, NotLeader, TxnError};
use crate::machine::{Applied, CommittedEntry, Machine, MachineFault, Members, Proposal, ProposalId};
use crate::status::{PeerStatus, RaftStatus};
use crate::tree::StateHash;
use crate::txn::{Commit, Refusal, Revision, Txn};
use crate::wire::{Body, Frame, LogEntry, Message, MessageKind, SnapshotMeta};
use bytes::Bytes;
use members::MemberRequests;
use proposals::Proposals;
use reads::Reads;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use stead_model::RaftId;
use transfer::Transfers;

pub use members::{MAX_VOTERS, MemberChange};

/// How many of its own last states a node remembers to compare with what others tell of theirs.
const REMEMBERED_HASHES: usize = 256;

/// What the driver is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node.
    pub id: u64,
    /// How often this store was opened, this time included. Never the same twice.
    pub boot: u64,
    /// Tells the frames of this cluster and epoch from others'.
    pub tag: u64,
    /// Makes election timeouts differ between clusters; otherwise without meaning.
    pub seed: u64,
    /// The time between two [`Input::Tick`]s.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// The fewest ticks without a leader before an election.
    pub election_ticks: u32,
    /// How many different election timeouts there are, from there on, a tick apart.
    pub election_spread: u32,
    /// By how many ticks more this node leaves elections to the others.
    pub patience: u32,
    /// When a request is given up.
    pub timeout: Duration,
    /// The newest feature level that this version understands.
    pub supports: u32,
    /// The log is compacted when it has this many entries more than at the last time, ...
    pub compact_entries: u64,
    /// ... or this many bytes more, or as many as the state itself has, whichever is more.
    pub compact_bytes: u64,
    /// How many applied entries are kept at least, so that a node that was away shortly needs no snapshot.
    pub keep_entries: u64,
    /// Bytes of a snapshot in one frame.
    pub chunk: usize,
    /// How many such frames may be under way.
    pub window: u64,
}

impl Settings {
    /// With what suits a cluster, for a tick of 50 ms: heartbeats of 100 ms, elections after 700 to 1,150 ms.
    pub fn new(id: RaftId, boot: u64, tag: u64, tick: Duration, timeout: Duration) -> Self {
        Self {
            id: id.0,
            boot,
            tag,
            seed: tag,
            tick,
            heartbeat_ticks: 2,
            election_ticks: 14,
            election_spread: 10,
            patience: 0,
            timeout,
            supports: crate::machine::SUPPORTED_LEVEL,
            compact_entries: 8192,
            compact_bytes: 4 << 20,
            keep_entries: 1024,
            chunk: 256 << 10,
            window: 16,
        }
    }

    /// For a node that is to lead only if no other can: it stands for election after all others have had the time for two
    /// tries. Were it as quick, it and the node that it could vote for would stand against each other.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { patience: 2 * (self.election_ticks + self.election_spread), ..self }
    }

    fn election(&self) -> Duration {
        self.tick * self.election_ticks
    }
}

/// What a store holds when it is opened.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// Term, vote and a lower bound of what is committed.
    pub hard: Hard,
    /// Index and term of the last entry that was compacted away.
    pub truncated: (u64, u64),
    /// The log after it, without gaps.
    pub entries: Vec<LogEntry>,
    /// The state, as of an entry that is not before `truncated` and not after the last entry.
    pub machine: Machine,
}

/// Something to be made durable, whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Persist {
    /// To be given back with [`Input::Persisted`]. Grows.
    pub number: u64,
    /// Replaces term, vote and commit.
    pub hard: Option<Hard>,
    /// Appended; entries from the first one's index on, if there are any, are removed before.
    pub entries: Vec<LogEntry>,
    /// Replaces the stored state.
    pub state: Option<StoredState>,
    /// All entries up to this index and term are removed, and these two remembered.
    pub truncate: Option<(u64, u64)>,
    /// The whole log is removed first: the state came from another node.
    pub reset: bool,
}

/// A state to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredState {
    /// The entry applied last in it.
    pub index: u64,
    /// [`Machine::encode`]d.
    pub image: Bytes,
}

/// Names a request until it is [`Command::Done`]; given by the host, never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What happens to a driver.
#[derive(Debug)]
pub enum Input {
    /// A tick has passed. After a long pause one is enough.
    Tick,
    /// A frame came from another node.
    Frame(Bytes),
    /// All [`Persist`]s up to this number are on stable storage.
    Persisted(u64),
    /// An [`Command::Apply`] was carried out.
    Applied {
        /// What each entry did.
        applied: Vec<Applied>,
        /// The tree's revision afterwards.
        revision: Revision,
        /// Its fingerprint.
        hash: StateHash,
    },
    /// An [`Command::Install`] was carried out.
    Installed {
        /// [`Machine::outcomes`] of this node's present boot.
        outcomes: Vec<(u64, Result<Commit, Refusal>)>,
        /// The tree's revision.
        revision: Revision,
        /// Its fingerprint.
        hash: StateHash,
    },
    /// An [`Command::Encode`] was carried out.
    Encoded {
        /// The entry applied last.
        index: u64,
        /// The members then.
        members: Members,
        /// The state.
        image: Bytes,
    },
    /// Commit a transaction.
    Transact {
        /// Its name.
        request: RequestId,
        /// Itself.
        txn: Txn,
        /// Wall time for the history, in milliseconds since 1970.
        at_ms: u64,
    },
    /// Wait until all that was committed before is applied here.
    Barrier {
        /// Its name.
        request: RequestId,
    },
    /// Confirm that this node leads.
    Confirm {
        /// Its name.
        request: RequestId,
    },
    /// Change the members.
    Member {
        /// Its name.
        request: RequestId,
        /// How.
        change: MemberChange,
    },
    /// If this node leads: let another one.
    Transfer {
        /// Which.
        to: u64,
    },
    /// Stand for no election, and lead no more, until the opposite is said.
    Hold(bool),
}

/// What the host is to do.
#[derive(Debug)]
pub enum Command {
    /// Write to stable storage, then say [`Input::Persisted`].
    Persist(Persist),
    /// Carry a frame to another node. It may be lost.
    Send {
        /// Which.
        to: u64,
        /// The frame.
        frame: Bytes,
    },
    /// Apply entries to the machine, in order, then say [`Input::Applied`].
    Apply(Vec<(u64, CommittedEntry)>),
    /// Replace the machine, then say [`Input::Installed`].
    Install(Box<Machine>),
    /// Encode the machine as it is now, then say [`Input::Encoded`].
    Encode,
    /// A request has ended.
    Done(RequestId, Outcome),
    /// The status has changed.
    Status(Box<RaftStatus>),
    /// Stop: going on would be wrong.
    Halt(HaltReason),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Input::Transact`].
    Txn(Result<Commit, TxnError>),
    /// Of [`Input::Barrier`].
    Barrier(Result<(), ConfError>),
    /// Of [`Input::Confirm`].
    Confirm(Result<LeadershipTerm, NotLeader>),
    /// Of [`Input::Member`].
    Member(Result<(), MemberError>),
}

/// The term in which leadership was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeadershipTerm(pub u64);

/// Why a node must not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HaltReason {
    /// The consensus engine found something that cannot be.
    #[error(transparent)]
    Engine(#[from] EngineFault),
    /// What is committed is not understood here.
    #[error(transparent)]
    Machine(#[from] MachineFault),
}

/// What waits for the disk.
#[derive(Debug)]
struct Waiting {
    persist: u64,
    ready: Option<u64>,
    /// Sent once it is there.
    after: Vec<Message>,
    /// A snapshot that then counts as applied.
    installed: Option<u64>,
    /// The end of an own compaction.
    compaction: bool,
}

/// What frames tell of other nodes.
#[derive(Debug, Default)]
struct Peer {
    supports: Option<u32>,
}

/// See the module.
pub struct Driver {
    settings: Settings,
    engine: RaftEngine,
    now: Duration,
    out: Vec<Command>,
    halted: bool,
    members: Members,
    removed: BTreeSet<u64>,
    applied: u64,
    revision: Revision,
    hash: StateHash,
    hashes: VecDeque<(u64, StateHash)>,
    hard: Hard,
    hard_saved: Hard,
    next_persist: u64,
    waiting: VecDeque<Waiting>,
    log_bytes: u64,
    /// The entry of the stored state.
    state_index: u64,
    /// The entry of the snapshot installed last.
    installed: u64,
    state_bytes: u64,
    compacting: bool,
    encoding: bool,
    peers: BTreeMap<u64, Peer>,
    leader_heard: Option<Duration>,
    diverged: Option<u64>,
    status: RaftStatus,
    proposals: Proposals,
    reads: Reads,
    member_requests: MemberRequests,
    transfers: Transfers,
}

impl Driver {
    /// A driver for what a store holds. The second value is the machine as of the stored state, which the host keeps.
    pub fn new(
        settings: Settings,
        recovered: Recovered,
        now: Duration,
    ) -> Result<(Self, Machine), HaltReason> {
        let Recovered { hard, truncated, entries, machine } = recovered;
        let log_bytes = entries.iter().map(entry_bytes).sum();
        let durable = Durable {
            hard,
            truncated,
            entries,
            members: machine.members().clone(),
            applied: machine.applied(),
        };
        let timing = Timing {
            heartbeat: settings.heartbeat_ticks,
            election: settings.election_ticks,
            spread: settings.election_spread,
            patience: settings.patience,
            seed: settings.seed,
        };
        let engine = RaftEngine::new(settings.id, timing, &durable)?;
        let driver = Self {
            engine,
            now,
            out: Vec::new(),
            halted: false,
            members: machine.members().clone(),
            removed: machine.removed().clone(),
            applied: machine.applied(),
            revision: machine.tree().revision(),
            hash: machine.hash(),
            hashes: VecDeque::new(),
            hard,
            hard_saved: hard,
            next_persist: 1,
            waiting: VecDeque::new(),
            log_bytes,
            state_index: machine.applied(),
            installed: 0,
            state_bytes: machine.tree().bytes(),
            compacting: false,
            encoding: false,
            peers: BTreeMap::new(),
            leader_heard: None,
            diverged: None,
            status: RaftStatus::of(RaftId(settings.id)),
            proposals: Proposals::new(settings.id, settings.boot),
            reads: Reads::new(settings.id, settings.boot),
            member_requests: MemberRequests::default(),
            transfers: Transfers::default(),
            settings,
        };
        Ok((driver, machine))
    }

    /// Takes an input in. Follow with [`Driver::poll`], after one or after many.
    pub fn handle(&mut self, now: Duration, input: Input) {
        self.now = self.now.max(now);
        if self.halted {
            return;
        }
        match input {
            Input::Tick => self.tick(),
            Input::Frame(frame) => self.frame(&frame),
            Input::Persisted(number) => self.persisted(number),
            Input::Applied { applied, revision, hash } => self.on_applied(applied, revision, hash),
            Input::Installed { outcomes, revision, hash } => self.on_installed(outcomes, revision, hash),
            Input::Encoded { index, members, image } => self.encoded(index, &members, image),
            Input::Transact { request, txn, at_ms } => self.transact(request, txn, at_ms),
            Input::Barrier { request } => self.reads.barrier(request, self.now + self.settings.timeout),
            Input::Confirm { request } => self.confirm(request),
            Input::Member { request, change } => self.member(request, change),
            Input::Transfer { to } if self.engine.leads() => self.engine.transfer(to),
            Input::Transfer { .. } => {}
            Input::Hold(hold) => self.engine.hold(hold),
        }
    }

    /// What is to be done now. Ask until it is empty, carrying out what comes.
    pub fn poll(&mut self) -> Vec<Command> {
        if !self.halted {
            if let Err(reason) = self.advance() {
                self.halt(reason);
            }
            self.publish();
        }
        std::mem::take(&mut self.out)
    }

    /// The status as published last.
    pub fn status(&self) -> &RaftStatus {
        &self.status
    }

    fn halt(&mut self, reason: HaltReason) {
        self.halted = true;
        self.status.stopped = Some(reason.to_string());
        self.status.lost = matches!(reason, HaltReason::Engine(EngineFault::Lost { .. }));
        self.out.push(Command::Halt(reason));
    }

    fn advance(&mut self) -> Result<(), HaltReason> {
        // A stand-alone node need not wait for anyone before it leads.
        let alone = self.members.voters.len() == 1 && self.members.voters.contains(&self.settings.id);
        if alone && !self.members.is_joint() && !self.engine.leads() && self.waiting.is_empty() {
            self.engine.campaign()?;
        }
        loop {
            self.push_proposals();
            self.push_reads();
            let Some(ready) = self.engine.ready()? else { break };
            self.take(ready)?;
        }
        if self.engine.wants_snapshot() {
            self.encode();
        }
        Ok(())
    }

    fn take(&mut self, ready: Ready) -> Result<(), HaltReason> {
        for message in ready.messages {
            self.send_message(message);
        }
        self.hard = ready.hard.unwrap_or(self.hard);
        let mut persist = Persist::default();
        let mut installed = None;
        if let Some(meta) = ready.snapshot {
            installed = Some(meta.index);
            self.install(&meta, &mut persist)?;
        }
        if ready.sync {
            self.log_bytes += ready.entries.iter().map(entry_bytes).sum::<u64>();
            persist.entries = ready.entries;
            let persist = self.persist(persist);
            let (ready, after) = (Some(ready.number), ready.after);
            self.waiting.push_back(Waiting { persist, ready, after, installed, compaction: false });
        } else if let Some(last) = self.waiting.iter_mut().rev().find(|waiting| !waiting.compaction) {
            // Nothing of its own to write, but what it says may rely on what is being written.
            last.ready = Some(ready.number);
            last.after.extend(ready.after);
        } else {
            self.engine.persisted(ready.number);
            for message in ready.after {
                self.send_message(message);
            }
        }
        self.commit(ready.committed)?;
        for (context, index) in ready.reads {
            self.read_answered(&context, index);
        }
        Ok(())
    }

    /// Gives a persist its number and the newest hard state, and hands it to the host.
    fn persist(&mut self, mut persist: Persist) -> u64 {
        persist.number = self.next_persist;
        self.next_persist += 1;
        if self.hard != self.hard_saved {
            self.hard_saved = self.hard;
            persist.hard = Some(self.hard);
        }
        let number = persist.number;
        self.out.push(Command::Persist(persist));
        number
    }

    fn persisted(&mut self, number: u64) {
        while self.waiting.front().is_some_and(|waiting| waiting.persist <= number)
            && let Some(waiting) = self.waiting.pop_front()
        {
            if let Some(ready) = waiting.ready {
                self.engine.persisted(ready);
            }
            if let Some(index) = waiting.installed {
                self.engine.applied(index);
            }
            if waiting.compaction {
                self.compacting = false;
            }
            for message in waiting.after {
                self.send_message(message);
            }
        }
    }

    fn commit(&mut self, committed: Vec<(u64, CommittedRaw)>) -> Result<(), HaltReason> {
        if committed.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(committed.len());
        for (index, raw) in committed {
            let entry = match raw {
                CommittedRaw::Data(data) if data.is_empty() => CommittedEntry::Empty,
                CommittedRaw::Data(data) => CommittedEntry::Proposal(Box::new(
                    codec::unpack::<Proposal>(codec::PROPOSAL, &data).map_err(MachineFault::from)?,
                )),
                CommittedRaw::Members(members) => {
                    self.regroup(members.clone());
                    CommittedEntry::Members(members)
                }
            };
            entries.push((index, entry));
        }
        self.out.push(Command::Apply(entries));
        Ok(())
    }

    fn regroup(&mut self, members: Members) {
        let all = members.all();
        self.removed.extend(self.members.all().difference(&all));
        self.peers.retain(|id, _| all.contains(id));
        self.transfers.retain(&all);
        self.members = members;
    }

    fn on_applied(&mut self, applied: Vec<Applied>, revision: Revision, hash: StateHash) {
        let Some(last) = applied.last() else { return };
        self.set_applied(last.index, revision, hash);
        self.engine.applied(self.applied);
        for applied in applied {
            if let Some((id, outcome)) = applied.outcome {
                self.proposals.forget(id);
                if let Some(outcome) = outcome
                    && let Some(request) = self.proposals.settle(id)
                {
                    let outcome = Outcome::Txn(outcome.map_err(TxnError::Refused));
                    self.out.push(Command::Done(request, outcome));
                }
            }
        }
        self.finish_reads();
        self.review_members();
        self.maybe_compact();
    }

    fn set_applied(&mut self, index: u64, revision: Revision, hash: StateHash) {
        self.applied = index;
        self.revision = revision;
        self.hash = hash;
        self.hashes.push_back((index, hash));
        if self.hashes.len() > REMEMBERED_HASHES {
            self.hashes.pop_front();
        }
    }

    fn on_installed(
        &mut self,
        outcomes: Vec<(u64, Result<Commit, Refusal>)>,
        revision: Revision,
        hash: StateHash,
    ) {
        self.set_applied(self.installed, revision, hash);
        for (seq, outcome) in outcomes {
            let id = ProposalId { origin: self.settings.id, boot: self.settings.boot, seq };
            if let Some(request) = self.proposals.settle(id) {
                self.out.push(Command::Done(request, Outcome::Txn(outcome.map_err(TxnError::Refused))));
            }
        }
        self.finish_reads();
        self.review_members();
    }

    fn tick(&mut self) {
        self.engine.tick();
        self.expire_proposals();
        self.expire_reads();
        self.tick_members();
        self.tick_transfers();
    }

    fn frame(&mut self, data: &[u8]) {
        let Ok(frame) = Frame::decode(data) else { return };
        let known = frame.tag == self.settings.tag && frame.to == self.settings.id && frame.from != frame.to;
        if !known || self.removed.contains(&frame.from) {
            return;
        }
        let from = frame.from;
        self.peers.entry(from).or_default().supports = Some(frame.supports);
        if self.engine.leader() == from {
            self.leader_heard = Some(self.now);
        }
        if self.hashes.iter().any(|(index, hash)| *index == frame.applied && *hash != frame.hash) {
            self.diverged = Some(from);
        }
        match frame.body {
            Body::Raft(message) => self.message(from, message),
            Body::Propose(proposal) => self.proposed(from, &proposal),
            Body::Refused { boot, seq, refusal } => self.refused(boot, seq, refusal),
            Body::Member { token, change } => self.member_asked(from, token, change),
            Body::MemberRefused { token, fault } => self.member_refused(token, fault),
            Body::Chunk(chunk) => self.chunk(from, &chunk),
            Body::ChunkAck { index, term, received } => self.chunk_ack(from, index, term, received),
        }
    }

    fn message(&mut self, from: u64, message: Message) {
        let relayed = message.kind == MessageKind::ReadIndex;
        if (message.from != from && !relayed)
            || message.to != self.settings.id
            || message.kind == MessageKind::Snapshot
        {
            return;
        }
        self.step(message);
    }

    fn step(&mut self, message: Message) {
        let from = message.from;
        if let Err(fault) = self.engine.step(message) {
            self.halt(fault.into());
        } else if self.engine.leader() == from {
            self.leader_heard = Some(self.now);
        }
    }

    fn send_message(&mut self, message: Message) {
        if message.kind == MessageKind::Snapshot {
            self.start_transfer(&message);
        } else {
            self.send(message.to, Body::Raft(message));
        }
    }

    fn send(&mut self, to: u64, body: Body) {
        let frame = Frame {
            tag: self.settings.tag,
            from: self.settings.id,
            to,
            supports: self.settings.supports,
            applied: self.applied,
            hash: self.hash,
            body,
        };
        // A frame too large to be described is lost, as on the way.
        if let Ok(frame) = frame.encode() {
            self.out.push(Command::Send { to, frame });
        }
    }

    fn maybe_compact(&mut self) {
        let entries = self.applied - self.state_index;
        let bytes = self.settings.compact_bytes.max(self.state_bytes);
        if !self.compacting
            && (entries >= self.settings.compact_entries || self.log_bytes >= bytes)
            && entries > 0
        {
            self.compacting = true;
            self.encode();
        }
    }

    fn encode(&mut self) {
        if !self.encoding {
            self.encoding = true;
            self.out.push(Command::Encode);
        }
    }

    /// The state is there, to be stored in the log's place or sent to a follower.
    fn encoded(&mut self, index: u64, members: &Members, image: Bytes) {
        self.encoding = false;
        if index < self.state_index {
            // A snapshot came in meanwhile: what was encoded before it is of no more use.
            self.compacting &= self.waiting.iter().any(|waiting| waiting.compaction);
            return;
        }
        self.transfers.offer(index, image.clone());
        self.engine.offer_snapshot(index, members);
        if !self.compacting || self.waiting.iter().any(|waiting| waiting.compaction) {
            return;
        }
        let cut = index.saturating_sub(self.settings.keep_entries).max(self.engine.first() - 1);
        self.state_index = index;
        self.state_bytes = image.len() as u64;
        self.log_bytes = 0;
        let truncate = self.engine.term_of(cut).map(|term| (cut, term));
        self.engine.compact(cut);
        let state = Some(StoredState { index, image });
        let persist = self.persist(Persist { state, truncate, ..Persist::default() });
        let waiting = Waiting { persist, ready: None, after: Vec::new(), installed: None, compaction: true };
        self.waiting.push_back(waiting);
    }

    /// A snapshot that came in replaces everything.
    fn install(&mut self, meta: &SnapshotMeta, persist: &mut Persist) -> Result<(), HaltReason> {
        let Some((machine, image)) = self.transfers.arrived(meta.index, meta.term) else {
            return Err(
                EngineFault::Internal(format!("snapshot {} was taken and is not there", meta.index)).into()
            );
        };
        self.removed = machine.removed().clone();
        self.regroup(machine.members().clone());
        self.removed.clone_from(machine.removed());
        self.state_index = meta.index;
        self.installed = meta.index;
        self.state_bytes = image.len() as u64;
        self.log_bytes = 0;
        persist.reset = true;
        persist.truncate = Some((meta.index, meta.term));
        persist.state = Some(StoredState { index: meta.index, image });
        self.out.push(Command::Install(Box::new(machine)));
        Ok(())
    }

    fn publish(&mut self) {
        let leads = self.engine.leads();
        let fresh =
            self.leader_heard.is_some_and(|heard| self.now < heard + self.settings.election() * 3 / 2);
        let leader = Some(self.engine.leader()).filter(|id| *id != 0 && (leads || fresh)).map(RaftId);
        let ids = |set: &BTreeSet<u64>| set.iter().copied().map(RaftId).collect::<Vec<_>>();
        let status = RaftStatus {
            id: RaftId(self.settings.id),
            leader,
            term: self.engine.term(),
            is_leader: leads,
            quorate: leader.is_some(),
            member: self.members.contains(self.settings.id),
            voters: ids(&self.members.voters),
            outgoing: ids(&self.members.outgoing),
            learners: ids(&self.members.learners),
            applied: self.applied,
            committed: self.engine.committed(),
            revision: self.revision,
            peers: if leads { self.peer_status() } else { Vec::new() },
            diverged: self.diverged.map(RaftId),
            stopped: self.status.stopped.clone(),
            lost: self.status.lost,
        };
        if status != self.status {
            self.status = status;
            self.out.push(Command::Status(Box::new(self.status.clone())));
        }
    }

    fn peer_status(&self) -> Vec<PeerStatus> {
        let others = self.members.all().into_iter().filter(|id| *id != self.settings.id);
        let peer = |id| {
            let progress = self.engine.progress(id)?;
            Some(PeerStatus {
                id: RaftId(id),
                matched: progress.matched,
                active: progress.active,
                snapshot: progress.snapshot,
                supports: self.peers.get(&id).and_then(|peer| peer.supports),
            })
        };
        others.filter_map(peer).collect()
    }
}

fn entry_bytes(entry: &LogEntry) -> u64 {
    match &entry.body {
        crate::wire::LogBody::Data(data) => data.len() as u64 + 32,
        crate::wire::LogBody::Change(_) => 64,
    }
}
