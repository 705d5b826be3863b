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

#[cfg(test)]
mod tests {
    //! The durable and the wire formats, byte by byte: what is written today must be read for ever.

    use super::*;
    use crate::codec::golden;
    use crate::machine::{CommittedEntry, Machine, ProposalId};
    use crate::txn::{Check, Op, Revision, Txn};

    fn proposal() -> Proposal {
        let txn = Txn::new("root@pam")
            .note("why")
            .absent("a")
            .exists("b")
            .unchanged("c", Revision(300))
            .check(Check::Equals("d".into(), "x".into()))
            .put("e", "y")
            .delete("f")
            .rename("g", "h")
            .op(Op::Level(2));
        Proposal { id: ProposalId { origin: 1, boot: 2, seq: 3 }, floor: 3, needs: 1, at_ms: 1_000, txn }
    }

    #[test]
    fn golden_proposal() {
        let data = codec::pack(codec::PROPOSAL, &proposal()).unwrap();
        golden(&data, "golden/proposal.hex");
        assert_eq!(codec::unpack::<Proposal>(codec::PROPOSAL, &data).unwrap(), proposal());
    }

    #[test]
    fn golden_log_rows() {
        let data = LogEntry { index: 7, term: 2, body: LogBody::Data("text".into()) };
        let change = LogChange { transition: 1, steps: vec![(0, 1), (2, 300)] };
        let change = LogEntry { index: 8, term: 2, body: LogBody::Change(change) };
        for (entry, file) in [(data, "golden/log_data.hex"), (change, "golden/log_change.hex")] {
            let row = codec::pack(codec::LOG, &entry).unwrap();
            golden(&row, file);
            assert_eq!(codec::unpack::<LogEntry>(codec::LOG, &row).unwrap(), entry);
        }
    }

    #[test]
    fn golden_frames() {
        let message = Message {
            kind: MessageKind::Append,
            from: 1,
            to: 2,
            term: 3,
            log_term: 3,
            index: 6,
            entries: vec![LogEntry { index: 7, term: 3, body: LogBody::Data("x".into()) }],
            commit: 6,
            commit_term: 0,
            reject: false,
            reject_hint: 0,
            request_snapshot: 0,
            context: Bytes::from_static(b"ctx"),
            snapshot: None,
        };
        let chunk = Chunk { leads: 3, index: 9, term: 2, total: 10, offset: 5, data: "parts".into() };
        let bodies = [
            (Body::Raft(message), "golden/frame_append.hex"),
            (Body::Propose(Box::new(proposal())), "golden/frame_propose.hex"),
            (Body::Chunk(chunk), "golden/frame_chunk.hex"),
            (
                Body::Member { token: 4, change: Change::Replace { old: 1, new: 2 } },
                "golden/frame_member.hex",
            ),
        ];
        for (body, file) in bodies {
            let hash = StateHash([7; 32]);
            let frame = Frame { tag: 5, from: 1, to: 2, supports: 1, applied: 6, hash, body };
            let data = frame.encode().unwrap();
            golden(&data, file);
            assert_eq!(Frame::decode(&data).unwrap(), frame);
        }
    }

    #[test]
    fn golden_state() {
        let mut machine =
            Machine::found(1, &Txn::new("root@pam").note("first").put("a", "1"), 1_000).unwrap();
        let change = Proposal {
            id: ProposalId { origin: 1, boot: 1, seq: 1 },
            floor: 1,
            needs: 1,
            at_ms: 2_000,
            txn: Txn::new("root@pam").put("a", "2").put("b", "3"),
        };
        machine.apply(2, CommittedEntry::Proposal(Box::new(change))).unwrap();
        let image = machine.encode().unwrap();
        golden(&image, "golden/state.hex");
        assert_eq!(Machine::decode(&image).unwrap().hash(), machine.hash());
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let body = Body::ChunkAck { index: 1, term: 2, received: 3 };
        let hash = StateHash([0; 32]);
        let frame = Frame { tag: 5, from: 1, to: 2, supports: 1, applied: 6, hash, body };
        let data = frame.encode().unwrap();
        for bit in 0..data.len() * 8 {
            let mut bad = data.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..data.len() {
            assert!(Frame::decode(&data[..len]).is_err(), "cut to {len}");
        }
    }
}
