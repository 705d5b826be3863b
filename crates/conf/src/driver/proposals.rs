//! Transactions of this node on their way to the log, and those of others that this node, as leader, is asked to
//! propose.
//!
//! ```text
//!   queued ──► waiting (no leader known) ──► handed over ──► applied here: done
//!                 │                             │  ▲ again, to a new leader or after a while
//!                 ▼ time is up: NoQuorum        ▼ time is up: Unknown
//! ```

use super::{Command, Driver, Outcome, RequestId};
use crate::codec;
use crate::engine::Engine;
use crate::error::TxnError;
use crate::machine::{Proposal, ProposalId};
use crate::tree::FIRST_LEVEL;
use crate::txn::{Op, Refusal, Txn};
use crate::wire::Body;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How many proposals a node may have under way; further ones queue. Bounds what sessions must remember.
const MAX_UNDER_WAY: u64 = 4096;

#[derive(Debug)]
struct Pending {
    request: RequestId,
    proposal: Proposal,
    since: Duration,
    /// When it was handed over last, and in which term.
    sent: Option<(Duration, u64)>,
    /// The term in which it was handed over first.
    first: u64,
}

impl Pending {
    fn mark_sent(&mut self, now: Duration, term: u64) {
        if self.sent.is_none() {
            self.first = term;
        }
        self.sent = Some((now, term));
    }

    /// Whether no leader of another term can have it in its log.
    fn only_in(&self, term: u64) -> bool {
        self.sent.is_none() || self.first == term
    }
}

#[derive(Debug)]
struct Queued {
    request: RequestId,
    txn: Txn,
    at_ms: u64,
    since: Duration,
}

/// This node's transactions.
#[derive(Debug)]
pub(super) struct Proposals {
    origin: u64,
    boot: u64,
    next: u64,
    pending: BTreeMap<u64, Pending>,
    queue: VecDeque<Queued>,
    /// As leader: proposals that are in the log and not applied, with the term of the check.
    logged: BTreeSet<ProposalId>,
    logged_in: u64,
}

impl Proposals {
    pub fn new(origin: u64, boot: u64) -> Self {
        Self {
            origin,
            boot,
            next: 1,
            pending: BTreeMap::new(),
            queue: VecDeque::new(),
            logged: BTreeSet::new(),
            logged_in: 0,
        }
    }

    fn floor(&self) -> u64 {
        self.pending.keys().next().copied().unwrap_or(self.next)
    }

    /// A proposal was applied: it is in the log no more.
    pub fn forget(&mut self, id: ProposalId) {
        self.logged.remove(&id);
    }

    /// Whose request a proposal was, if it still waits.
    pub fn settle(&mut self, id: ProposalId) -> Option<RequestId> {
        if id.origin != self.origin || id.boot != self.boot {
            return None;
        }
        self.pending.remove(&id.seq).map(|pending| pending.request)
    }
}

impl Driver {
    pub(super) fn transact(&mut self, request: RequestId, txn: Txn, at_ms: u64) {
        let (size, limit) = (txn.size(), crate::txn::MAX_TXN);
        if size > limit {
            let refusal = Refusal::TxnSize { size: size as u64, limit: limit as u64 };
            self.out.push(Command::Done(request, Outcome::Txn(Err(TxnError::Refused(refusal)))));
            return;
        }
        self.proposals.queue.push_back(Queued { request, txn, at_ms, since: self.now });
    }

    /// Takes queued transactions in and hands over what is due.
    pub(super) fn push_proposals(&mut self) {
        while self.proposals.next - self.proposals.floor() < MAX_UNDER_WAY
            && let Some(Queued { request, txn, at_ms, since }) = self.proposals.queue.pop_front()
        {
            let seq = self.proposals.next;
            self.proposals.next += 1;
            let id = ProposalId { origin: self.proposals.origin, boot: self.proposals.boot, seq };
            let proposal = Proposal { id, floor: 0, needs: FIRST_LEVEL, at_ms, txn };
            self.proposals.pending.insert(seq, Pending { request, proposal, since, sent: None, first: 0 });
        }
        let leader = self.engine.leader();
        if leader == 0 || self.proposals.pending.is_empty() {
            return;
        }
        let (term, now, again) = (self.engine.term(), self.now, self.settings.election());
        let due = |pending: &Pending| match pending.sent {
            None => true,
            Some((at, sent_in)) => sent_in != term || now >= at + again,
        };
        let due: Vec<u64> =
            self.proposals.pending.iter().filter(|(_, pending)| due(pending)).map(|(seq, _)| *seq).collect();
        let floor = self.proposals.floor();
        for seq in due {
            let Some(pending) = self.proposals.pending.get_mut(&seq) else { continue };
            pending.proposal.floor = floor;
            let proposal = pending.proposal.clone();
            if leader != self.settings.id {
                pending.mark_sent(now, term);
                self.send(leader, Body::Propose(Box::new(proposal)));
                continue;
            }
            match self.propose(&proposal) {
                Ok(true) => {
                    if let Some(pending) = self.proposals.pending.get_mut(&seq) {
                        pending.mark_sent(now, term);
                    }
                }
                Ok(false) => break,
                Err(refusal) => self.refuse(seq, refusal),
            }
        }
    }

    fn end_proposal(&mut self, seq: u64, error: TxnError) {
        if let Some(pending) = self.proposals.pending.remove(&seq) {
            self.out.push(Command::Done(pending.request, Outcome::Txn(Err(error))));
        }
    }

    /// As leader: puts a proposal into the log, unless it is there already. False if it cannot now.
    fn propose(&mut self, proposal: &Proposal) -> Result<bool, Refusal> {
        self.check_levels(proposal)?;
        let term = self.engine.term();
        if self.proposals.logged_in != term {
            self.proposals.logged_in = term;
            self.proposals.logged.clear();
        }
        let id = proposal.id;
        if self.proposals.logged.contains(&id) {
            return Ok(true);
        }
        let Ok(data) = codec::pack(codec::PROPOSAL, proposal) else { return Ok(false) };
        let taken = self.engine.propose(data);
        if taken {
            self.proposals.logged.insert(id);
        }
        Ok(taken)
    }

    /// A feature level is committed only if every member is known to understand it.
    fn check_levels(&self, proposal: &Proposal) -> Result<(), Refusal> {
        let levels = proposal.txn.ops.iter().filter_map(|op| match op {
            Op::Level(level) => Some(*level),
            _ => None,
        });
        let Some(level) = levels.max() else { return Ok(()) };
        for member in self.members.all() {
            let supports = if member == self.settings.id {
                Some(self.settings.supports)
            } else {
                self.peers.get(&member).and_then(|peer| peer.supports)
            };
            if supports.is_none_or(|supports| supports < level) {
                return Err(Refusal::LevelSupport { level, member });
            }
        }
        Ok(())
    }

    /// Another node hands a proposal over.
    pub(super) fn proposed(&mut self, from: u64, proposal: &Proposal) {
        if !self.engine.leads() || proposal.id.origin != from || !self.members.contains(from) {
            return;
        }
        let ProposalId { boot, seq, .. } = proposal.id;
        if let Err(refusal) = self.propose(proposal) {
            self.send(from, Body::Refused { boot, seq, refusal });
        }
    }

    /// The leader will not propose it.
    pub(super) fn refused(&mut self, boot: u64, seq: u64, refusal: Refusal) {
        if boot == self.settings.boot {
            self.refuse(seq, refusal);
        }
    }

    /// If an earlier leader may have put it into the log, then the log decides, not this refusal.
    fn refuse(&mut self, seq: u64, refusal: Refusal) {
        let term = self.engine.term();
        if self.proposals.pending.get(&seq).is_some_and(|pending| pending.only_in(term)) {
            self.end_proposal(seq, TxnError::Refused(refusal));
        }
    }

    pub(super) fn expire_proposals(&mut self) {
        let (now, timeout) = (self.now, self.settings.timeout);
        while self.proposals.queue.front().is_some_and(|queued| now >= queued.since + timeout)
            && let Some(queued) = self.proposals.queue.pop_front()
        {
            let error = TxnError::NoQuorum { waited: now - queued.since };
            self.out.push(Command::Done(queued.request, Outcome::Txn(Err(error))));
        }
        let over = |pending: &&Pending| now >= pending.since + timeout;
        let over: Vec<(u64, Duration, bool)> = self
            .proposals
            .pending
            .iter()
            .filter(|(_, pending)| over(pending))
            .map(|(seq, pending)| (*seq, now - pending.since, pending.sent.is_some()))
            .collect();
        for (seq, waited, sent) in over {
            let error = if sent { TxnError::Unknown { waited } } else { TxnError::NoQuorum { waited } };
            self.end_proposal(seq, error);
        }
    }
}
