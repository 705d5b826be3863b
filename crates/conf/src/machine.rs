//! The replicated state machine: the tree, its history, who has had which change applied already, and the members.
//! Pure: the same committed entries give the same machine on every node.
//!
//! **A change takes effect once.** A proposal is named by its origin, the origin's boot and a number; an origin that
//! gets no answer sends it again, to the next leader as well, so it can stand in the log twice. A session of each
//! origin remembers what was applied. It stays small since every proposal says below which number its origin waits
//! for nothing more (`floor`): what is older is never applied any more, and its outcomes are forgotten.

use crate::codec::{self, CodecError};

use crate::history::{Change, History, HistoryImage, HistoryLimits, Origin};
use crate::tree::{Changed, Entry, StateHash, Tree, TreeImage};
use crate::txn::{Commit, Op, Refusal, Txn};
use crate::watch::{Committed, PathChange};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The newest feature level that this version's `apply` understands.
///
/// | level | since when `apply` understands |
/// |---|---|
/// | 1 | all else |
/// | 2 | [`HistoryLimits`] |
pub const SUPPORTED_LEVEL: u32 = 2;

/// Names a proposal for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProposalId {
    /// The proposing node's Raft id.
    pub origin: u64,
    /// How often its store had been opened.
    pub boot: u64,
    /// Its number within that boot.
    pub seq: u64,
}

/// A transaction on its way through the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Its name.
    pub id: ProposalId,
    /// The origin waits for no proposal below this number.
    pub floor: u64,
    /// The feature level without which it cannot be understood.
    pub needs: u32,
    /// When it was made, in milliseconds since 1970, by the origin's clock.
    pub at_ms: u64,
    /// What is to be done.
    pub txn: Txn,
}

/// Who takes part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who votes in the configuration that is being left, during a joint change.
    pub outgoing: BTreeSet<u64>,
    /// Who holds the tree without a vote.
    pub learners: BTreeSet<u64>,
    /// Who becomes a learner when the joint change ends.
    pub learners_next: BTreeSet<u64>,
    /// Whether the joint change ends by itself.
    pub auto_leave: bool,
}

impl Members {
    /// Whether a node takes part in any role.
    pub fn contains(&self, id: u64) -> bool {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
            .iter()
            .any(|set| set.contains(&id))
    }

    /// All of them.
    pub fn all(&self) -> BTreeSet<u64> {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
            .into_iter()
            .flatten()
            .copied()
            .collect()
    }

    /// Whether a change is half done.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

/// A committed entry of the log, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommittedEntry {
    /// A new leader's first entry: no effect.
    Empty,
    /// A transaction.
    Proposal(Box<Proposal>),
    /// From here on these take part.
    Members(Members),
}

/// What applying an entry did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The entry's index.
    pub index: u64,
    /// For a transaction: its name and what came of it, now or when it was applied first. `None` as outcome: too
    /// old, its origin waits no more.
    pub outcome: Option<(ProposalId, Option<Result<Commit, Refusal>>)>,
    /// For subscribers: present if the tree has changed.
    pub event: Option<Arc<Committed>>,
}

/// This version does not understand what was committed. It must stop: going on would let replicas differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineFault {
    /// The cluster was raised to a feature level beyond this version.
    #[error(
        "the cluster has reached feature level {level}, this version supports {supported}: upgrade this node"
    )]
    Level {
        /// What was committed.
        level: u32,
        /// What is understood.
        supported: u32,
    },
    /// A committed entry cannot be read.
    #[error("a committed entry cannot be read ({0}): upgrade this node, or its memory or disk is faulty")]
    Entry(#[from] CodecError),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    boot: u64,
    floor: u64,
    done: BTreeMap<u64, Result<Commit, Refusal>>,
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Machine {
    tree: Tree,
    history: History,
    sessions: BTreeMap<u64, Session>,
    members: Members,
    removed: BTreeSet<u64>,
    applied: u64,
    supported: u32,
}

#[derive(Serialize)]
struct ImageRef<'a> {
    tree: TreeImage<Cow<'a, BTreeMap<String, Entry>>>,
    history: HistoryImage<Cow<'a, BTreeMap<u64, Change>>>,
    sessions: &'a BTreeMap<u64, Session>,
    members: &'a Members,
    removed: &'a BTreeSet<u64>,
    applied: u64,
}

#[derive(Deserialize)]
struct Image {
    tree: TreeImage<BTreeMap<String, Entry>>,
    history: HistoryImage<BTreeMap<u64, Change>>,
    sessions: BTreeMap<u64, Session>,
    members: Members,
    removed: BTreeSet<u64>,
    applied: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            tree: Tree::new(),
            history: History::default(),
            sessions: BTreeMap::new(),
            members: Members::default(),
            removed: BTreeSet::new(),
            applied: 0,
            supported: SUPPORTED_LEVEL,
        }
    }
}

impl Machine {
    /// The machine of a new cluster of one node, which counts as entry 1.
    pub fn found(id: u64, initial: &Txn, at_ms: u64) -> Result<Self, Refusal> {
        let mut machine = Self { applied: 1, ..Self::default() };
        machine.members.voters.insert(id);
        machine.transact(initial, at_ms)?;
        Ok(machine)
    }

    /// Of a tree and a history that may not fit each other; for tests.
    #[cfg(test)]
    pub(crate) fn with(tree: Tree, history: History) -> Self {
        Self { tree, history, ..Self::default() }
    }

    /// As another version would be that supports other levels; for tests.
    #[must_use]
    pub fn supporting(mut self, level: u32) -> Self {
        self.supported = level;
        self
    }

    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Who changed what.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Who takes part.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Who took part once; their ids are never used again.
    pub fn removed(&self) -> &BTreeSet<u64> {
        &self.removed
    }

    /// The index of the entry applied last.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// A fingerprint of the tree.
    pub fn hash(&self) -> StateHash {
        self.tree.hash()
    }

    /// What has come of an origin's proposals of one boot, as far as it is remembered.
    pub fn outcomes(&self, origin: u64, boot: u64) -> Vec<(u64, Result<Commit, Refusal>)> {
        let session = self.sessions.get(&origin).filter(|session| session.boot == boot);
        session.map(|session| session.done.clone().into_iter().collect()).unwrap_or_default()
    }

    /// Applies the entry at `index`, which follows the one applied last.
    pub fn apply(&mut self, index: u64, entry: CommittedEntry) -> Result<Applied, MachineFault> {
        let mut applied = Applied { index, outcome: None, event: None };
        match entry {
            CommittedEntry::Empty => {}
            CommittedEntry::Members(members) => self.regroup(members),
            CommittedEntry::Proposal(proposal) => {
                let raised = proposal.txn.ops.iter().filter_map(|op| match op {
                    Op::Level(level) => Some(*level),
                    _ => None,
                });
                let level = raised.max().unwrap_or(0);
                if level > self.supported {
                    return Err(MachineFault::Level { level, supported: self.supported });
                }
                let (outcome, event) = self.propose(&proposal);
                applied.outcome = Some((proposal.id, outcome));
                applied.event = event;
            }
        }
        self.applied = index;
        Ok(applied)
    }

    /// Leaves out a stretch of revisions.
    pub(crate) fn leap(&mut self, by: u64) {
        self.tree.leap(by);
    }

    /// Makes it the first state of another group of which `id` is the only member: nobody of the old group takes part, and
    /// what they have proposed and not heard of is forgotten. Applying `txns` counts as one entry more.
    pub(crate) fn succeed(&mut self, id: u64, txns: &[Txn], at_ms: u64) -> Result<(), Refusal> {
        for txn in txns {
            self.transact(txn, at_ms)?;
        }
        self.regroup(Members { voters: BTreeSet::from([id]), ..Members::default() });
        self.sessions.clear();
        self.applied += 1;
        Ok(())
    }

    fn regroup(&mut self, members: Members) {
        let gone: Vec<u64> = self.members.all().difference(&members.all()).copied().collect();
        for id in gone {
            self.removed.insert(id);
            self.sessions.remove(&id);
        }
        self.members = members;
    }

    fn propose(&mut self, proposal: &Proposal) -> (Option<Result<Commit, Refusal>>, Option<Arc<Committed>>) {
        let ProposalId { origin, boot, seq } = proposal.id;
        if !self.members.contains(origin) {
            return (Some(Err(Refusal::NotMember { id: origin })), None);
        }
        let session = self.sessions.entry(origin).or_default();
        if boot > session.boot {
            *session = Session { boot, ..Session::default() };
        }
        if boot == session.boot && proposal.floor > session.floor {
            session.floor = proposal.floor;
            session.done = session.done.split_off(&proposal.floor);
        }
        if let Some(outcome) = session.done.get(&seq).filter(|_| boot == session.boot) {
            return (Some(outcome.clone()), None);
        }
        if boot < session.boot || seq < session.floor {
            return (None, None);
        }
        let level = self.tree.level();
        let result = if proposal.needs > level {
            Err(Refusal::Level { needs: proposal.needs, level })
        } else {
            self.transact(&proposal.txn, proposal.at_ms)
        };
        let (outcome, event) = match result {
            Ok(event) => (Ok(Commit { revision: self.tree.revision() }), event),
            Err(refusal) => (Err(refusal), None),
        };
        if let Some(session) = self.sessions.get_mut(&origin) {
            session.done.insert(seq, outcome.clone());
        }
        (Some(outcome), event)
    }

    fn transact(&mut self, txn: &Txn, at_ms: u64) -> Result<Option<Arc<Committed>>, Refusal> {
        let before = self.tree.revision();
        let changed = self.tree.apply(txn)?;
        let revision = self.tree.revision();
        if revision == before {
            return Ok(None);
        }
        let origin = Origin { revision, author: &txn.author, note: &txn.note, at_ms };
        self.history.record(origin, &changed, HistoryLimits::of(&self.tree));
        Ok(Some(Arc::new(Committed {
            revision,
            author: txn.author.clone(),
            note: txn.note.clone(),
            at_ms,
            changes: changed
                .into_iter()
                .map(|Changed { path, kind, .. }| PathChange { path, kind })
                .collect(),
        })))
    }

    /// The whole state in its durable form.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::pack(
            codec::IMAGE,
            &ImageRef {
                tree: self.tree.image(),
                history: self.history.image(),
                sessions: &self.sessions,
                members: &self.members,
                removed: &self.removed,
                applied: self.applied,
            },
        )
    }

    /// The state from its durable form. One of a feature level beyond this version is refused, as an entry that raises to
    /// it is: what is in it may mean something else than it seems to here.
    pub fn decode(image: &[u8]) -> Result<Self, MachineFault> {
        let image: Image = codec::unpack(codec::IMAGE, image)?;
        let tree = Tree::from_image(image.tree);
        if tree.level() > SUPPORTED_LEVEL {
            return Err(MachineFault::Level { level: tree.level(), supported: SUPPORTED_LEVEL });
        }
        Ok(Self {
            tree,
            history: History::from_image(image.history),
            sessions: image.sessions,
            members: image.members,
            removed: image.removed,
            applied: image.applied,
            supported: SUPPORTED_LEVEL,
        })
    }
}
