//! The narrow trait behind which the consensus algorithm sits, and raft-rs behind it: the only file that knows it.
//!
//! Traps of raft-rs that are handled here:
//! - Its election timeout comes from an unseeded generator: it is overwritten after every call by one that depends on
//!   node, term and seed alone.
//! - A message that claims more than this node's log holds makes it panic: such messages are refused first.
//! - A leader that commits its own removal goes on leading, and answers reads alone where one voter is left: it is
//!   made to step down.
//! - A stand-alone leader asserts that its log is on disk when it elects itself: it is only let do so then.
//! - Without a first commit in its term a leader may change members unsafely (its guard counts entries of older
//!   terms): such a change is not proposed.
//! - A snapshot from before its receiver was a member is refused there, for ever: a newer one is made.
//! - Forwarding of proposals is off: the driver forwards, so that a proposal is named and applied once.

use crate::machine::Members;
use crate::wire::{LogBody, LogChange, LogEntry, Message, MessageKind, SnapshotMeta};
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
    HardState, MessageType, Snapshot,
};
use raft::{GetEntriesContext, RaftState, RawNode, SnapshotStatus, StateRole, Storage, StorageError};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};

/// What must be on disk before anything that relies on it is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hard {
    /// The newest term seen.
    pub term: u64,
    /// Who got the vote in it; 0 for nobody.
    pub vote: u64,
    /// How far the log is known to be committed. May be older on disk than in memory.
    pub commit: u64,
}

/// Where an election timeout lies, in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub heartbeat: u32,
    /// The shortest time without a leader before an election.
    pub election: u32,
    /// How many different timeouts there are, from there on.
    pub spread: u32,
    /// How much longer this node waits than the others would.
    pub patience: u32,
    pub seed: u64,
}

/// A log that was read from disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durable {
    pub hard: Hard,
    /// The last entry that is no longer there: index and term.
    pub truncated: (u64, u64),
    pub entries: Vec<LogEntry>,
    /// The members as of `applied`.
    pub members: Members,
    pub applied: u64,
}

/// Work that the engine has for its driver.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub number: u64,
    /// Whether `hard`, `entries` or `snapshot` must be on disk before `after` is sent.
    pub sync: bool,
    pub hard: Option<Hard>,
    pub entries: Vec<LogEntry>,
    /// The state is replaced by this snapshot, which came with a message before.
    pub snapshot: Option<SnapshotMeta>,
    pub committed: Vec<(u64, CommittedRaw)>,
    /// To be sent at once.
    pub messages: Vec<Message>,
    /// To be sent once this and all before is on disk.
    pub after: Vec<Message>,
    /// Answered reads: context and index.
    pub reads: Vec<(Vec<u8>, u64)>,
}

#[derive(Debug)]
pub(crate) enum CommittedRaw {
    Data(Bytes),
    Members(Members),
}

/// What is known of another member by the leader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    pub matched: u64,
    pub active: bool,
    pub snapshot: bool,
}

/// The engine cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    /// The leader rightly relies on entries that this node has acknowledged and does not have.
    #[error(
        "the leader relies on log entry {claimed}, which this node acknowledged, but its log ends at {last}: its store is \
         an older copy, or its disk has lost data. It must not vote under this number any more"
    )]
    Lost {
        /// What the leader relies on.
        claimed: u64,
        /// What is there.
        last: u64,
    },
    /// The engine refused its own input.
    #[error("the consensus engine failed: {0}")]
    Internal(String),
}

/// A consensus algorithm, sans-IO. After any call, [`Engine::ready`] is asked until it has nothing.
pub(crate) trait Engine {
    fn tick(&mut self);
    fn step(&mut self, message: Message) -> Result<(), EngineFault>;
    /// False if this node cannot take it now.
    fn propose(&mut self, data: Vec<u8>) -> bool;
    /// False if this node cannot take it now.
    fn change(&mut self, change: &LogChange) -> bool;
    /// Asks for the index up to which all was committed before; never with a context that was used before.
    fn read(&mut self, context: Vec<u8>);
    fn transfer(&mut self, to: u64);
    /// Starts an election at once.
    fn campaign(&mut self) -> Result<(), EngineFault>;
    /// Whether this node is to stand for no election, and to lay its office down if it leads. It votes and follows all the same.
    fn hold(&mut self, hold: bool);
    fn ready(&mut self) -> Result<Option<Ready>, EngineFault>;
    /// All up to this number is on disk.
    fn persisted(&mut self, number: u64);
    fn applied(&mut self, index: u64);
    /// Forgets the log up to an index that is applied.
    fn compact(&mut self, index: u64);
    /// Whether a follower needs a snapshot that is not there yet.
    fn wants_snapshot(&mut self) -> bool;
    /// A snapshot can be sent now.
    fn offer_snapshot(&mut self, index: u64, members: &Members);
    fn snapshot_sent(&mut self, to: u64, arrived: bool);
    fn term_of(&self, index: u64) -> Option<u64>;
    fn first(&self) -> u64;
    fn last(&self) -> u64;
    fn committed(&self) -> u64;
    fn term(&self) -> u64;
    fn leader(&self) -> u64;
    fn leads(&self) -> bool;
    /// Whether it leads and has committed in its term, so that reads and changes of members are possible.
    fn settled(&self) -> bool;
    fn change_pending(&self) -> bool;
    fn progress(&self, id: u64) -> Option<Progress>;
}

/// The log since its last compaction. All of it is in memory; the disk follows.
#[derive(Debug, Default)]
struct Log {
    hard: Hard,
    truncated: (u64, u64),
    entries: VecDeque<Entry>,
    conf: ConfState,
    offer: Option<Snapshot>,
    wanted: Cell<bool>,
}

impl Log {
    fn last(&self) -> u64 {
        self.truncated.0 + self.entries.len() as u64
    }

    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let keep = usize::try_from(first.index.saturating_sub(self.truncated.0 + 1)).unwrap_or(usize::MAX);
        self.entries.truncate(keep);
        self.entries.extend(entries.iter().cloned());
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(self.truncated.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    fn compact(&mut self, index: u64) {
        while self.truncated.0 < index
            && let Some(entry) = self.entries.pop_front()
        {
            self.truncated = (entry.index, entry.term);
        }
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard = HardState {
            term: self.hard.term,
            vote: self.hard.vote,
            commit: self.hard.commit,
            ..HardState::default()
        };
        Ok(RaftState { hard_state: hard, conf_state: self.conf.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        let mut size = 0;
        for index in low..high {
            let entry = self.at(index).ok_or(StorageError::Unavailable)?;
            size += entry.data.len() as u64 + 32;
            if !entries.is_empty() && size > limit {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index < self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        Ok(self.at(index).ok_or(StorageError::Unavailable)?.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // A state from before the receiver was a member would be refused there.
        let fits = |offer: &&Snapshot| {
            let meta = offer.get_metadata();
            meta.index >= request_index.max(self.truncated.0) && from_conf(meta.get_conf_state()).contains(to)
        };
        match self.offer.as_ref().filter(fits) {
            Some(offer) => Ok(offer.clone()),
            None => {
                self.wanted.set(true);
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

/// raft-rs.
pub(crate) struct RaftEngine {
    node: RawNode<Log>,
    timing: Timing,
    /// Readies given out that are not on disk.
    unsaved: u64,
    saved: u64,
    held: bool,
    /// Ticks since the leader was heard, while this node is held.
    quiet: u32,
}

impl RaftEngine {
    pub fn new(id: u64, timing: Timing, durable: &Durable) -> Result<Self, EngineFault> {
        let mut hard = durable.hard;
        // The commit index on disk may be older than a snapshot written after it.
        hard.commit = hard.commit.max(durable.applied);
        let log = Log {
            hard,
            truncated: durable.truncated,
            entries: durable.entries.iter().map(to_entry).collect::<Result<_, _>>()?,
            conf: to_conf(&durable.members),
            offer: None,
            wanted: Cell::new(false),
        };
        let config = raft::Config {
            id,
            election_tick: timing.election as usize,
            heartbeat_tick: timing.heartbeat as usize,
            min_election_tick: timing.election as usize,
            max_election_tick: (timing.election + timing.spread.max(1) + timing.patience) as usize,
            applied: durable.applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 16 << 20,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger).map_err(internal)?;
        let mut engine = Self { node, timing, unsaved: 0, saved: 0, held: false, quiet: 0 };
        engine.settle_timeout();
        Ok(engine)
    }

    /// Replaces the random election timeout: different for every node in a term, another one in the next.
    fn settle_timeout(&mut self) {
        let raft = &mut self.node.raft;
        let mixed = mix(self.timing.seed ^ mix(raft.id) ^ raft.term.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let within = u32::try_from(mixed % u64::from(self.timing.spread.max(1))).unwrap_or(0);
        let ticks = self.timing.election + within + self.timing.patience;
        if raft.randomized_election_timeout() != ticks as usize {
            raft.set_randomized_election_timeout(ticks as usize);
        }
    }

    fn sole_voter(&self) -> bool {
        let raft = &self.node.raft;
        let members = raft.prs().conf().to_conf_state();
        members.voters == [raft.id] && members.voters_outgoing.is_empty()
    }

    /// See the module's header: a sole voter may elect itself only when all is on disk; and who abstains not at all.
    fn must_wait(&self) -> bool {
        let unsaved = self.unsaved != self.saved && self.sole_voter();
        !self.leads() && (self.abstains() || unsaved)
    }

    /// Who is held stands for no election, and neither does who has taken a state that is not on its disk: for an election
    /// raft-rs reads all entries after the one applied last, and panics where the state has taken their place.
    fn abstains(&self) -> bool {
        self.held || self.node.store().truncated.0 > self.node.raft.raft_log.applied
    }

    /// Who abstains does not stand for election, but must notice as others do that its leader is silent: until then it votes for
    /// nobody else.
    fn tick_held(&mut self) {
        self.quiet += 1;
        let raft = &mut self.node.raft;
        if self.quiet > self.timing.election && raft.leader_id != raft::INVALID_ID {
            raft.become_follower(raft.term, raft::INVALID_ID);
            self.settle_timeout();
        }
    }

    fn check(&self, message: &Message) -> Result<bool, EngineFault> {
        let last = self.last();
        if message.kind == MessageKind::Heartbeat && message.term >= self.term() && message.commit > last {
            return Err(EngineFault::Lost { claimed: message.commit, last });
        }
        let contiguous =
            (message.index + 1..).zip(&message.entries).all(|(index, entry)| entry.index == index);
        Ok(match message.kind {
            MessageKind::Append => contiguous,
            MessageKind::AppendResponse => message.reject || message.index <= last,
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => message.entries.len() == 1,
            MessageKind::TimeoutNow => !self.must_wait(),
            _ => true,
        })
    }

    fn apply_change(&mut self, data: &[u8]) -> Result<Members, EngineFault> {
        let mut change = ConfChangeV2::default();
        change.merge_from_bytes(data).map_err(internal)?;
        let conf = self.node.apply_conf_change(&change).map_err(internal)?;
        self.node.mut_store().conf = conf.clone();
        let raft = &mut self.node.raft;
        let votes = conf.voters.contains(&raft.id) || conf.voters_outgoing.contains(&raft.id);
        if raft.state == StateRole::Leader && !votes {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        self.settle_timeout();
        Ok(from_conf(&conf))
    }
}

impl Engine for RaftEngine {
    fn tick(&mut self) {
        if self.abstains() && !self.leads() {
            return self.tick_held();
        }
        if !self.must_wait() {
            self.node.tick();
            self.settle_timeout();
        }
    }

    fn step(&mut self, message: Message) -> Result<(), EngineFault> {
        if self.check(&message)? {
            let from = message.from;
            let message = to_message(message)?;
            // Refused: it came from a node that is no member any more, or asks what cannot be done now.
            let _refused = self.node.step(message);
            if self.leader() == from {
                self.quiet = 0;
            }
            self.settle_timeout();
        }
        Ok(())
    }

    fn propose(&mut self, data: Vec<u8>) -> bool {
        self.leads() && self.node.propose(Vec::new(), data).is_ok()
    }

    fn change(&mut self, change: &LogChange) -> bool {
        self.settled()
            && !self.change_pending()
            && self.node.propose_conf_change(Vec::new(), to_change(change)).is_ok()
    }

    fn read(&mut self, context: Vec<u8>) {
        self.node.read_index(context);
    }

    fn transfer(&mut self, to: u64) {
        self.node.transfer_leader(to);
    }

    fn campaign(&mut self) -> Result<(), EngineFault> {
        if !self.must_wait() {
            self.node.campaign().map_err(internal)?;
            self.settle_timeout();
        }
        Ok(())
    }

    fn hold(&mut self, hold: bool) {
        // Said again it changes nothing: counted anew each time, the leader's silence would never be noticed.
        if self.held == hold {
            return;
        }
        self.held = hold;
        self.quiet = 0;
        let raft = &mut self.node.raft;
        if hold && raft.state != StateRole::Follower {
            raft.become_follower(raft.term, raft::INVALID_ID);
            self.settle_timeout();
        }
    }

    fn ready(&mut self) -> Result<Option<Ready>, EngineFault> {
        if !self.node.has_ready() {
            return Ok(None);
        }
        let mut given = self.node.ready();
        let mut ready = Ready {
            number: given.number(),
            sync: given.must_sync(),
            hard: given.hs().map(|hard| Hard { term: hard.term, vote: hard.vote, commit: hard.commit }),
            entries: given.entries().iter().map(from_entry).collect::<Result<_, _>>()?,
            snapshot: from_snapshot(given.snapshot()),
            messages: from_messages(given.take_messages())?,
            after: from_messages(given.take_persisted_messages())?,
            reads: given.take_read_states().into_iter().map(|read| (read.request_ctx, read.index)).collect(),
            committed: Vec::new(),
        };
        let committed = given.take_committed_entries();
        let conf = given.snapshot().get_metadata().get_conf_state().clone();
        let log = self.node.mut_store();
        if let Some(meta) = &ready.snapshot {
            log.truncated = (meta.index, meta.term);
            log.entries.clear();
            log.conf = conf;
            log.offer = None;
        }
        log.append(given.entries());
        self.unsaved = ready.number;
        self.node.advance_append_async(given);
        for mut entry in committed {
            let raw = match entry.get_entry_type() {
                EntryType::EntryNormal => CommittedRaw::Data(entry.take_data()),
                _ => CommittedRaw::Members(self.apply_change(&entry.data)?),
            };
            ready.committed.push((entry.index, raw));
        }
        Ok(Some(ready))
    }

    fn persisted(&mut self, number: u64) {
        self.saved = self.saved.max(number);
        self.node.on_persist_ready(number);
    }

    fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
    }

    fn compact(&mut self, index: u64) {
        self.node.mut_store().compact(index);
    }

    fn wants_snapshot(&mut self) -> bool {
        self.node.store().wanted.take()
    }

    fn offer_snapshot(&mut self, index: u64, members: &Members) {
        let Some(term) = self.term_of(index) else { return };
        let mut offer = Snapshot::default();
        let meta = offer.mut_metadata();
        meta.index = index;
        meta.term = term;
        meta.set_conf_state(to_conf(members));
        self.node.mut_store().offer = Some(offer);
    }

    fn snapshot_sent(&mut self, to: u64, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(to, status);
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        self.node.raft.raft_log.term(index).ok()
    }

    fn first(&self) -> u64 {
        self.node.store().truncated.0 + 1
    }

    fn last(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    fn term(&self) -> u64 {
        self.node.raft.term
    }

    fn leader(&self) -> u64 {
        self.node.raft.leader_id
    }

    fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn settled(&self) -> bool {
        self.leads() && self.node.raft.promotable() && self.node.raft.commit_to_current_term()
    }

    fn change_pending(&self) -> bool {
        self.node.raft.has_pending_conf()
    }

    fn progress(&self, id: u64) -> Option<Progress> {
        self.node.raft.prs().get(id).map(|progress| Progress {
            matched: progress.matched,
            active: progress.recent_active,
            snapshot: progress.state == raft::ProgressState::Snapshot,
        })
    }
}

fn internal(error: impl std::fmt::Display) -> EngineFault {
    EngineFault::Internal(error.to_string())
}

/// A well-mixed number of a number (the finalizer of splitmix64).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn to_conf(members: &Members) -> ConfState {
    let list = |set: &BTreeSet<u64>| set.iter().copied().collect::<Vec<u64>>();
    let mut conf = ConfState::default();
    conf.set_voters(list(&members.voters));
    conf.set_voters_outgoing(list(&members.outgoing));
    conf.set_learners(list(&members.learners));
    conf.set_learners_next(list(&members.learners_next));
    conf.set_auto_leave(members.auto_leave);
    conf
}

fn from_conf(conf: &ConfState) -> Members {
    let set = |list: &[u64]| list.iter().copied().collect::<BTreeSet<u64>>();
    Members {
        voters: set(&conf.voters),
        outgoing: set(&conf.voters_outgoing),
        learners: set(&conf.learners),
        learners_next: set(&conf.learners_next),
        auto_leave: conf.auto_leave,
    }
}

fn to_change(change: &LogChange) -> ConfChangeV2 {
    let mut out = ConfChangeV2::default();
    out.set_transition(match change.transition {
        0 => ConfChangeTransition::Auto,
        1 => ConfChangeTransition::Implicit,
        _ => ConfChangeTransition::Explicit,
    });
    let step = |&(role, id): &(u8, u64)| {
        let mut step = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
        step.set_change_type(match role {
            0 => ConfChangeType::AddNode,
            1 => ConfChangeType::RemoveNode,
            _ => ConfChangeType::AddLearnerNode,
        });
        step
    };
    out.set_changes(change.steps.iter().map(step).collect::<Vec<_>>().into());
    out
}

fn from_change(change: &ConfChangeV2) -> LogChange {
    LogChange {
        transition: match change.get_transition() {
            ConfChangeTransition::Auto => 0,
            ConfChangeTransition::Implicit => 1,
            ConfChangeTransition::Explicit => 2,
        },
        steps: change
            .changes
            .iter()
            .map(|step| {
                let role = match step.get_change_type() {
                    ConfChangeType::AddNode => 0,
                    ConfChangeType::RemoveNode => 1,
                    ConfChangeType::AddLearnerNode => 2,
                };
                (role, step.node_id)
            })
            .collect(),
    }
}

fn to_entry(entry: &LogEntry) -> Result<Entry, EngineFault> {
    let mut out = Entry { index: entry.index, term: entry.term, ..Entry::default() };
    match &entry.body {
        LogBody::Data(data) => out.data = data.clone(),
        LogBody::Change(change) => {
            out.set_entry_type(EntryType::EntryConfChangeV2);
            out.data = to_change(change).write_to_bytes().map_err(internal)?.into();
        }
    }
    Ok(out)
}

fn from_entry(entry: &Entry) -> Result<LogEntry, EngineFault> {
    let body = match entry.get_entry_type() {
        EntryType::EntryNormal => LogBody::Data(entry.data.clone()),
        _ => {
            let mut change = ConfChangeV2::default();
            change.merge_from_bytes(&entry.data).map_err(internal)?;
            LogBody::Change(from_change(&change))
        }
    };
    Ok(LogEntry { index: entry.index, term: entry.term, body })
}

fn from_snapshot(snapshot: &Snapshot) -> Option<SnapshotMeta> {
    let meta = snapshot.get_metadata();
    (meta.index != 0).then(|| SnapshotMeta {
        index: meta.index,
        term: meta.term,
        members: from_conf(meta.get_conf_state()),
    })
}

const KINDS: [(MessageKind, MessageType); 12] = [
    (MessageKind::Append, MessageType::MsgAppend),
    (MessageKind::AppendResponse, MessageType::MsgAppendResponse),
    (MessageKind::Vote, MessageType::MsgRequestVote),
    (MessageKind::VoteResponse, MessageType::MsgRequestVoteResponse),
    (MessageKind::PreVote, MessageType::MsgRequestPreVote),
    (MessageKind::PreVoteResponse, MessageType::MsgRequestPreVoteResponse),
    (MessageKind::Heartbeat, MessageType::MsgHeartbeat),
    (MessageKind::HeartbeatResponse, MessageType::MsgHeartbeatResponse),
    (MessageKind::TimeoutNow, MessageType::MsgTimeoutNow),
    (MessageKind::ReadIndex, MessageType::MsgReadIndex),
    (MessageKind::ReadIndexResponse, MessageType::MsgReadIndexResp),
    (MessageKind::Snapshot, MessageType::MsgSnapshot),
];

fn to_message(message: Message) -> Result<raft::eraftpb::Message, EngineFault> {
    let mut out = raft::eraftpb::Message::default();
    for (ours, theirs) in KINDS {
        if ours == message.kind {
            out.set_msg_type(theirs);
        }
    }
    out.from = message.from;
    out.to = message.to;
    out.term = message.term;
    out.log_term = message.log_term;
    out.index = message.index;
    out.set_entries(message.entries.iter().map(to_entry).collect::<Result<Vec<_>, _>>()?.into());
    out.commit = message.commit;
    out.commit_term = message.commit_term;
    out.reject = message.reject;
    out.reject_hint = message.reject_hint;
    out.request_snapshot = message.request_snapshot;
    out.context = message.context;
    // A campaign by transfer is told by its context, which is the only one a vote has.
    if let Some(snapshot) = &message.snapshot {
        let meta = out.mut_snapshot().mut_metadata();
        meta.index = snapshot.index;
        meta.term = snapshot.term;
        meta.set_conf_state(to_conf(&snapshot.members));
    }
    Ok(out)
}

fn from_messages(messages: Vec<raft::eraftpb::Message>) -> Result<Vec<Message>, EngineFault> {
    let mut out = Vec::with_capacity(messages.len());
    for mut message in messages {
        // Kinds that are not ours never travel: raft-rs makes them for itself.
        let Some((kind, _)) = KINDS.iter().find(|(_, theirs)| *theirs == message.get_msg_type()) else {
            continue;
        };
        out.push(Message {
            kind: *kind,
            from: message.from,
            to: message.to,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.entries.iter().map(from_entry).collect::<Result<_, _>>()?,
            commit: message.commit,
            commit_term: message.commit_term,
            reject: message.reject,
            reject_hint: message.reject_hint,
            request_snapshot: message.request_snapshot,
            context: message.take_context(),
            snapshot: from_snapshot(message.get_snapshot()),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(meta: SnapshotMeta) -> Message {
        Message {
            kind: MessageKind::Snapshot,
            from: 2,
            to: 1,
            term: 1,
            log_term: 0,
            index: 0,
            entries: vec![],
            commit: 0,
            commit_term: 0,
            reject: false,
            reject_hint: 0,
            request_snapshot: 0,
            context: Bytes::new(),
            snapshot: Some(meta),
        }
    }

    /// A disk takes its time to write a state that came from the leader, which then falls silent.
    #[test]
    fn who_has_a_state_that_is_not_on_its_disk_stands_for_no_election() {
        let members = Members { voters: [1, 2, 3].into(), ..Members::default() };
        let hard = Hard { term: 1, vote: 0, commit: 5 };
        let durable =
            Durable { hard, truncated: (5, 1), entries: vec![], members: members.clone(), applied: 5 };
        let timing = Timing { heartbeat: 2, election: 14, spread: 10, patience: 0, seed: 1 };
        let mut engine = RaftEngine::new(1, timing, &durable).unwrap();
        engine.step(snapshot(SnapshotMeta { index: 40, term: 1, members })).unwrap();
        let mut number = 0;
        for _ in 0..100 {
            while let Some(ready) = engine.ready().unwrap() {
                number = ready.number;
            }
            engine.tick();
            assert_eq!(engine.node.raft.state, StateRole::Follower);
        }
        engine.persisted(number);
        engine.applied(40);
        for _ in 0..100 {
            engine.tick();
        }
        assert_ne!(engine.node.raft.state, StateRole::Follower, "then it does");
    }
}
