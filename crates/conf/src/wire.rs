//! What nodes send each other, in this project's own encoding: a frame of another cluster, another version or with a
//! flipped bit is dropped before anything of it is understood, and no third party's format is parsed.

use crate::codec::{self, CodecError};
use crate::machine::{Members, Proposal};
use crate::raw;
use crate::tree::StateHash;
use crate::txn::Refusal;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A frame: who to whom, and what every frame tells of its sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frame {
    /// Of the sender's cluster ([`ClusterKey::tag`](crate::ClusterKey::tag)).
    pub tag: u64,
    pub from: u64,
    pub to: u64,
    /// The newest feature level that the sender understands.
    pub supports: u32,
    /// How far the sender has applied, and its tree's fingerprint there: replicas compare.
    pub applied: u64,
    pub hash: StateHash,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// Raft's own.
    Raft(Message),
    /// To the leader: a proposal of the sender.
    Propose(Box<Proposal>),
    /// From the leader: it will not propose this.
    Refused { boot: u64, seq: u64, refusal: Refusal },
    /// To the leader: change the members. `token` is the sender's, to name it in the answer.
    Member { token: u64, change: Change },
    /// From the leader: it will not. Success shows in the members themselves.
    MemberRefused { token: u64, fault: MemberFault },
    /// A part of a snapshot.
    Chunk(Chunk),
    /// How much of a snapshot has arrived in order.
    ChunkAck { index: u64, term: u64, received: u64 },
}

/// [`MemberChange`](crate::MemberChange) on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    AddLearner(u64),
    Promote(u64),
    Demote(u64),
    Replace { old: u64, new: u64 },
    Remove(u64),
}

/// Why the leader refuses a change of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemberFault {
    Used(u64),
    Unknown(u64),
    Behind { id: u64, behind: u64 },
    LastVoter(u64),
    Full,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// The sender's term, in which it leads.
    pub leads: u64,
    /// The snapshot's last entry.
    pub index: u64,
    pub term: u64,
    pub total: u64,
    pub offset: u64,
    #[serde(with = "raw")]
    pub data: Bytes,
}

/// Raft's messages that travel. Proposals and snapshots have frames of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MessageKind {
    Append,
    AppendResponse,
    Vote,
    VoteResponse,
    PreVote,
    PreVoteResponse,
    Heartbeat,
    HeartbeatResponse,
    TimeoutNow,
    ReadIndex,
    ReadIndexResponse,
    /// Local only: the engine wants a snapshot sent, or one has arrived whole.
    Snapshot,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub kind: MessageKind,
    pub from: u64,
    pub to: u64,
    pub term: u64,
    pub log_term: u64,
    pub index: u64,
    pub entries: Vec<LogEntry>,
    pub commit: u64,
    pub commit_term: u64,
    pub reject: bool,
    pub reject_hint: u64,
    pub request_snapshot: u64,
    #[serde(with = "raw")]
    pub context: Bytes,
    /// Of [`MessageKind::Snapshot`] alone.
    pub snapshot: Option<SnapshotMeta>,
}

/// Which state a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotMeta {
    pub index: u64,
    pub term: u64,
    pub members: Members,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its place.
    pub index: u64,
    /// The term it was made in.
    pub term: u64,
    /// What it says.
    pub body: LogBody,
}

/// What an entry of the log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogBody {
    /// Bytes of the proposer; none in a new leader's first entry.
    Data(#[serde(with = "raw")] Bytes),
    /// A change of members.
    Change(LogChange),
}

/// A change of members in the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChange {
    /// How it goes over: 0 as needed, 1 jointly and leaving by itself, 2 jointly and left by request.
    pub transition: u8,
    /// Role (0 voter, 1 none, 2 learner) and id. None at all: leaves a joint configuration.
    pub steps: Vec<(u8, u64)>,
}

impl Frame {
    pub fn encode(&self) -> Result<Bytes, CodecError> {
        Ok(codec::pack(codec::FRAME, self)?.into())
    }

    pub fn decode(data: &[u8]) -> Result<Self, CodecError> {
        codec::unpack(codec::FRAME, data)
    }
}
