//! What can go wrong for those who use the configuration, one type per kind of operation.

use crate::seal::SealError;
use crate::txn::Refusal;
use std::path::PathBuf;
use std::time::Duration;
use stead_model::RaftId;

/// Why a transaction was not seen to commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// It was decided: nothing of it took effect, and nothing ever will.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No majority could be reached, and it was never handed to a leader: nothing of it took effect, and nothing
    /// ever will.
    #[error("cluster not ready - no quorum? (no leader for the configuration change in {waited:?})")]
    NoQuorum {
        /// How long was waited.
        waited: Duration,
    },
    /// It was handed to a leader and no answer came: it may have taken effect, or may still. Read the
    /// configuration after a barrier before deciding anything.
    #[error("no answer to the configuration change in {waited:?}: it may or may not have taken effect")]
    Unknown {
        /// How long was waited.
        waited: Duration,
    },
    /// This node's store stands still. As with [`TxnError::Unknown`], it may have taken effect.
    #[error(
        "the configuration store of this node has stopped: {reason} (the change may or may not have taken effect)"
    )]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Why a barrier, or another question to the cluster, was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfError {
    /// No majority answered.
    #[error("cluster not ready - no quorum? (no answer in {waited:?})")]
    NoQuorum {
        /// How long was waited.
        waited: Duration,
    },
    /// This node's store stands still.
    #[error("the configuration store of this node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// This node does not lead, or could not show that it does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLeader {
    /// Another leads, or nobody known.
    #[error("this node does not lead the cluster")]
    Other {
        /// Who leads, as far as is known here.
        leader: Option<RaftId>,
    },
    /// It was the leader when asked, but a majority did not confirm it in time.
    #[error("a majority did not confirm this node's leadership in {waited:?}")]
    Unconfirmed {
        /// How long was waited.
        waited: Duration,
    },
    /// This node's store stands still.
    #[error("the configuration store of this node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Why a change of the members was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The id belonged to a removed node.
    #[error("Raft id {id} belonged to a removed node; ids are never used again")]
    Used {
        /// The id.
        id: RaftId,
    },
    /// There is no such member.
    #[error("there is no member with Raft id {id}")]
    Unknown {
        /// The id.
        id: RaftId,
    },
    /// It does not hold the log up to now, so that a vote of it would slow the cluster down or stop it.
    #[error("the node with Raft id {id} is {behind} entries behind; it votes when it has caught up")]
    Behind {
        /// The id.
        id: RaftId,
        /// How many entries it lacks, as far as is known.
        behind: u64,
    },
    /// The change would leave no voter.
    #[error("the node with Raft id {id} is the last voter and cannot be removed")]
    LastVoter {
        /// The id.
        id: RaftId,
    },
    /// There are seven voters already, the most there may be.
    #[error("there are {max} voters already")]
    Full {
        /// The most voters there may be.
        max: usize,
    },
    /// It was not seen to take effect in time; it may still. Asking again is safe.
    #[error("the change of members was not seen to take effect in {waited:?}; asking again is safe")]
    Timeout {
        /// How long was waited.
        waited: Duration,
    },
    /// This node's store stands still.
    #[error("the configuration store of this node has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Why a secret was not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// It could not be stored.
    #[error(transparent)]
    Txn(#[from] TxnError),
}

/// Why the store could not be made, opened, or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("no configuration store at {dir}: this node is in no cluster yet; create or join one")]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// There is one already.
    #[error("a configuration store exists at {dir}: this node is in a cluster already")]
    Exists {
        /// Where.
        dir: PathBuf,
    },
    /// Its content is not what was written.
    #[error(
        "the configuration store at {dir} is damaged ({what}); it is not used. Remove this node from the cluster \
         and join it again under a new Raft id, or restore the folder from a backup made while it was stopped"
    )]
    Damaged {
        /// Where.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// Written by a newer version.
    #[error(
        "the configuration store at {dir} has format {found}, this version knows {known}: install the newer version again"
    )]
    Format {
        /// Where.
        dir: PathBuf,
        /// What was found.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// Its cluster has reached a feature level beyond this version.
    #[error(
        "the configuration store at {dir} has reached feature level {found}, this version supports {known}: install the \
         newer version again"
    )]
    Level {
        /// Where.
        dir: PathBuf,
        /// What was found.
        found: u32,
        /// What is supported.
        known: u32,
    },
    /// It belongs to another node.
    #[error("the configuration store at {dir} belongs to the node with Raft id {found}, not {expected}")]
    Identity {
        /// Where.
        dir: PathBuf,
        /// Whose it is.
        found: u64,
        /// Whose it should be.
        expected: u64,
    },
    /// The disk failed.
    #[error("cannot {action} the configuration store at {dir}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Where.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The first transaction of a new cluster was refused.
    #[error("the first configuration cannot be applied: {0}")]
    Initial(#[from] Refusal),
    /// The state of a new epoch could not be made of that of the old one.
    #[error("the configuration at {dir} cannot begin a new cluster epoch: {why}")]
    Succession {
        /// Of the old epoch.
        dir: PathBuf,
        /// Why not.
        why: String,
    },
    /// The thread could not be started.
    #[error("the thread of the configuration store cannot be started: {0}")]
    Thread(std::io::Error),
}
